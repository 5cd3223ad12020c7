//! A model of a PostgreSQL server: just enough of one to answer what `generate` makes, in the order PostgreSQL would.

use pg_ambassador::wire::frame::{self, HEADER};
use pg_ambassador::wire::frontend::{self, Named};
use pg_ambassador::wire::{BackendTag as B, FrontendTag as F, TxStatus, reply};
use std::collections::HashMap;

/// A server and its one session.
#[derive(Debug, Clone)]
pub struct Model {
    input: Vec<u8>,
    tx: TxStatus,
    statements: HashMap<Vec<u8>, Vec<u8>>,
    portals: HashMap<Vec<u8>, Portal>,
    skipping: bool,
    copying: Option<Copying>,
}

#[derive(Debug, Clone)]
struct Portal {
    sql: Vec<u8>,
    values: Vec<u8>,
    rows_left: usize,
}

#[derive(Debug, Clone)]
struct Copying {
    simple: bool,
    sql: Vec<u8>,
    received: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            input: Vec::new(),
            tx: TxStatus::Idle,
            statements: HashMap::new(),
            portals: HashMap::new(),
            skipping: false,
            copying: None,
        }
    }
}

fn error(out: &mut Vec<u8>, code: &str, text: &[u8]) {
    reply::message(out, B::Error, |body| {
        body.extend(b"SERROR\0VERROR\0C");
        body.extend(code.as_bytes());
        body.extend(b"\0M");
        body.extend(text);
        body.extend(b"\0\0");
    });
}

fn has(sql: &[u8], word: &str) -> bool {
    sql.windows(word.len()).any(|w| w == word.as_bytes())
}

fn returns_rows(sql: &[u8]) -> bool {
    has(sql, "rows") || has(sql, "set_config")
}

/// The statement itself is in every answer about it, so that one answer is never taken for another.
fn description(out: &mut Vec<u8>, sql: &[u8]) {
    reply::message(out, B::RowDescription, |body| {
        body.extend(1u16.to_be_bytes());
        body.extend(sql);
        body.push(0);
        body.extend([0; 18]);
    });
}

fn row(out: &mut Vec<u8>, sql: &[u8], values: &[u8]) {
    reply::data_row(out, &[Some(sql), None, Some(values)]);
}

fn complete(out: &mut Vec<u8>, sql: &[u8]) {
    let tag = if matches!(sql, b"begin" | b"commit" | b"rollback") { sql.to_ascii_uppercase() } else { sql.to_vec() };
    reply::message(out, B::CommandComplete, |body| {
        body.extend(tag);
        body.push(0);
    });
}

impl Model {
    /// Takes bytes of a client, and answers what of them is whole.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.input.extend(bytes);
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        while let Some(found) = frame::frontend(&input[at..]).expect("the session sends frames") {
            if input.len() - at < found.len {
                break;
            }
            self.message(found.tag, &input[at + HEADER..at + found.len], out);
            at += found.len;
        }
        self.input = input[at..].to_vec();
    }

    /// Whether half a message was read.
    pub fn is_mid_message(&self) -> bool {
        !self.input.is_empty()
    }

    fn fail(&mut self, out: &mut Vec<u8>, code: &str, text: &[u8]) {
        error(out, code, text);
        if self.tx == TxStatus::Active {
            self.tx = TxStatus::Failed;
        }
    }

    /// What a statement does to the transaction.
    fn run(&mut self, sql: &[u8]) {
        match sql {
            b"begin" if self.tx == TxStatus::Idle => self.tx = TxStatus::Active,
            b"commit" | b"rollback" => {
                self.tx = TxStatus::Idle;
                self.portals.clear();
            }
            _ => {}
        }
    }

    fn ready(&mut self, out: &mut Vec<u8>) {
        if self.tx == TxStatus::Idle {
            self.portals.clear();
        }
        reply::ready(out, self.tx);
    }

    fn message(&mut self, tag: F, body: &[u8], out: &mut Vec<u8>) {
        if let Some(copying) = &mut self.copying {
            match tag {
                F::CopyData => copying.received += body.len(),
                F::CopyDone | F::CopyFail => {
                    let Some(copying) = self.copying.take() else { return };
                    if tag == F::CopyDone {
                        complete(out, format!("COPY {}", copying.received).as_bytes());
                    } else {
                        self.fail(out, "57014", &[b"COPY failed: ", copying.sql.as_slice()].concat());
                        self.skipping = !copying.simple;
                    }
                    if copying.simple {
                        self.ready(out);
                    }
                }
                F::Flush | F::Sync => {}
                // The generator sends nothing else; whoever does has lost its way, and that shows.
                F::Bind
                | F::Close
                | F::Describe
                | F::Execute
                | F::FunctionCall
                | F::Parse
                | F::Password
                | F::Query
                | F::Terminate => {
                    self.copying = None;
                    self.fail_batch(out, "08P01", b"unexpected message type during COPY from stdin");
                }
            }
            return;
        }
        match tag {
            F::Sync => {
                self.skipping = false;
                self.ready(out);
            }
            _ if self.skipping => {}
            F::Query => self.query(frontend::query(body), out),
            F::Parse => self.parse(body, out),
            F::Bind => self.bind(body, out),
            F::Describe => self.describe(body, out),
            F::Execute => self.execute(body, out),
            F::Close => {
                match frontend::named(body) {
                    Ok(Named::Statement(name)) => drop(self.statements.remove(name)),
                    Ok(Named::Portal(name)) => drop(self.portals.remove(name)),
                    Err(_) => panic!("a malformed Close"),
                }
                reply::message(out, B::CloseComplete, |_| {});
            }
            F::FunctionCall => {
                reply::message(out, B::FunctionResult, |out| out.extend(body));
                self.ready(out);
            }
            F::Flush | F::Terminate | F::CopyData | F::CopyDone | F::CopyFail | F::Password => {}
        }
    }

    fn query(&mut self, sql: &[u8], out: &mut Vec<u8>) {
        self.statements.remove(b"".as_slice());
        self.portals.remove(b"".as_slice());
        if sql.is_empty() {
            reply::message(out, B::EmptyQuery, |_| {});
        } else if has(sql, "fail") {
            self.fail(out, "42601", sql);
        } else if has(sql, "copy in") {
            reply::message(out, B::CopyIn, |body| body.extend([0, 0, 0]));
            self.copying = Some(Copying { simple: true, sql: sql.to_vec(), received: 0 });
            return;
        } else if has(sql, "copy out") {
            copy_out(out, sql);
            complete(out, sql);
        } else {
            if has(sql, "notice") {
                reply::message(out, B::Notice, |body| body.extend(b"SNOTICE\0C00000\0Mhello\0\0"));
            }
            if has(sql, "set x") {
                reply::parameter_status(out, "x", &String::from_utf8_lossy(sql));
            }
            if returns_rows(sql) {
                description(out, sql);
                row(out, sql, b"simple");
                row(out, sql, b"simple");
            }
            complete(out, sql);
            self.run(sql);
        }
        self.ready(out);
    }

    /// An extended-protocol message fails: everything up to the next Sync is skipped.
    fn fail_batch(&mut self, out: &mut Vec<u8>, code: &str, text: &[u8]) {
        self.fail(out, code, text);
        self.skipping = true;
    }

    fn parse(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let parse = frontend::parse(body).expect("a whole Parse");
        // Like PostgreSQL: the unnamed statement is gone before the new one is looked at, a taken name is refused after.
        if parse.name.is_empty() {
            self.statements.remove(b"".as_slice());
        }
        if has(parse.query, "fail") {
            return self.fail_batch(out, "42601", parse.query);
        }
        if self.statements.contains_key(parse.name) {
            let text = [b"prepared statement \"", parse.name, b"\" already exists"].concat();
            return self.fail_batch(out, "42P05", &text);
        }
        self.statements.insert(parse.name.to_vec(), parse.query.to_vec());
        reply::message(out, B::ParseComplete, |_| {});
    }

    fn bind(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let bind = frontend::bind(body).expect("the names of a Bind");
        let Some(sql) = self.statements.get(bind.statement).cloned() else {
            let text = match bind.statement {
                b"" => b"unnamed prepared statement does not exist".to_vec(),
                name => [b"prepared statement \"", name, b"\" does not exist"].concat(),
            };
            return self.fail_batch(out, "26000", &text);
        };
        let values = body[bind.names_len..].to_vec();
        self.portals.insert(bind.portal.to_vec(), Portal { sql, values, rows_left: 3 });
        reply::message(out, B::BindComplete, |_| {});
    }

    fn describe(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let sql = match frontend::named(body).expect("a whole Describe") {
            Named::Statement(name) => match self.statements.get(name).cloned() {
                Some(sql) => {
                    reply::message(out, B::ParameterDescription, |body| body.extend([0, 0]));
                    Ok(sql)
                }
                None if name.is_empty() => Err(b"unnamed prepared statement does not exist".to_vec()),
                None => Err([b"prepared statement \"", name, b"\" does not exist"].concat()),
            },
            Named::Portal(name) => match self.portals.get(name) {
                Some(portal) => Ok(portal.sql.clone()),
                None => Err([b"portal \"", name, b"\" does not exist"].concat()),
            },
        };
        match sql {
            Ok(sql) if returns_rows(&sql) => description(out, &sql),
            Ok(_) => reply::message(out, B::NoData, |_| {}),
            Err(text) => self.fail_batch(out, "26000", &text),
        }
    }

    fn execute(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let end = body.iter().position(|&b| b == 0).expect("a portal's name");
        let (name, limit) = (body[..end].to_vec(), &body[end + 1..]);
        let limit = u32::from_be_bytes(limit.try_into().expect("a limit")) as usize;
        let Some(portal) = self.portals.get_mut(&name) else {
            return self.fail_batch(out, "34000", &[b"portal \"", name.as_slice(), b"\" does not exist"].concat());
        };
        let (sql, values) = (portal.sql.clone(), portal.values.clone());
        if has(&sql, "break") {
            return self.fail_batch(out, "22012", &sql);
        }
        if sql.is_empty() {
            return reply::message(out, B::EmptyQuery, |_| {});
        }
        if has(&sql, "copy in") {
            reply::message(out, B::CopyIn, |body| body.extend([0, 0, 0]));
            self.copying = Some(Copying { simple: false, sql, received: 0 });
            return;
        }
        if has(&sql, "copy out") {
            copy_out(out, &sql);
        } else if returns_rows(&sql) {
            let rows = if limit == 0 { portal.rows_left } else { limit.min(portal.rows_left) };
            portal.rows_left -= rows;
            for _ in 0..rows {
                row(out, &sql, &values);
            }
            if limit != 0 && rows == limit {
                return reply::message(out, B::PortalSuspended, |_| {});
            }
        }
        complete(out, &sql);
        self.run(&sql);
    }
}

fn copy_out(out: &mut Vec<u8>, sql: &[u8]) {
    reply::message(out, B::CopyOut, |body| body.extend([0, 0, 0]));
    for _ in 0..3 {
        reply::message(out, B::CopyData, |body| body.extend(sql));
    }
    reply::message(out, B::CopyDone, |_| {});
}
