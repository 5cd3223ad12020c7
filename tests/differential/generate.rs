//! Makes a random legal session from a seed.

use crate::support::Random;
use crate::support::client::{bind, close, cstr, describe, execute, flush, message, parse, query, sync};
use std::collections::BTreeMap;
use std::fmt;

/// One turn of a conversation: what is sent, and what is read before the next turn.
#[derive(Debug, Clone)]
pub struct Turn {
    pub send: Vec<u8>,
    /// Reads until so many messages with one of `until`'s tags have come.
    pub until: &'static [u8],
    pub count: usize,
    /// For people.
    pub text: String,
}

/// As a count: one more if the turn before ended with the server asking for COPY data.
pub const ANSWER_OF_COPY: usize = usize::MAX;

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Terminate, then close.
    Polite,
    /// Close without a word.
    Close,
    /// Send part of a message, then close.
    HalfMessage(usize),
    /// Ask for something and leave before the answer.
    Unanswered,
}

/// A whole session.
#[derive(Debug, Clone)]
pub struct Session {
    pub seed: u64,
    pub turns: Vec<Turn>,
    pub ending: Ending,
    /// Splits what is sent into pieces of at most this size.
    pub slice: Option<usize>,
}

/// In which state of its transaction the client has sent what: message type and state, and how often.
#[derive(Debug, Default)]
pub struct Coverage(BTreeMap<(char, &'static str), u64>);

impl Coverage {
    pub fn add(&mut self, session: &Session) {
        for turn in &session.turns {
            let state = if turn.text.starts_with("[tx]") {
                "in a transaction"
            } else if turn.text.starts_with("[failed]") {
                "in a failed transaction"
            } else {
                "outside a transaction"
            };
            let mut rest = turn.send.as_slice();
            while rest.len() >= 5 {
                let len = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
                *self.0.entry((char::from(rest[0]), state)).or_default() += 1;
                rest = &rest[(len + 1).min(rest.len())..];
            }
        }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "messages sent, by type and state:")?;
        for ((tag, state), count) in &self.0 {
            writeln!(f, "  {tag} {state:24} {count:>8}")?;
        }
        Ok(())
    }
}

/// What the generator believes of the transaction. It need not be right: it only steers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tx {
    None,
    Open,
    Failed,
}

struct Generator {
    random: Random,
    seed: u64,
    tx: Tx,
    turns: Vec<Turn>,
    names: usize,
}

/// Statements without parameters; `@` is the session's schema.
const SELECTS: &[&str] = &[
    "select 1",
    "select 'text', 2, null, true, 1.5::numeric, array[1,2]",
    "select i, repeat('x', i) from generate_series(1, 7) i",
    "select i from generate_series(1, 300) i",
    "select repeat('long', 5000)",
    "select * from @.t order by id",
    "select count(*), sum(v) from @.t",
    "values (1, 'a'), (2, 'b')",
    "with r as (select * from @.t) select count(*) from r",
    "show server_encoding",
    "explain (costs off) select * from @.t where id = 1",
    "select id from @.t where false",
    "select",
    "table @.t",
    "select 1 as \"Odd Name\", $$dollar; select 2$$ as d /* comment; */ -- end",
    "select current_setting('server_version_num')::int > 100000",
];

const WRITES: &[&str] = &[
    "insert into @.t(v, s) values (1, 'one')",
    "insert into @.t(v, s) select i, 'row ' || i from generate_series(1, 5) i returning id, s",
    "update @.t set v = v + 1 where id < 4",
    "delete from @.t where id % 5 = 4 returning id",
    "insert into @.t(v) values (null)",
    "create table if not exists @.u (id int)",
    "drop table if exists @.u",
    "truncate @.u",
    "do $$ begin raise notice 'hello % from plpgsql', 1; raise warning 'w'; end $$",
    "alter table @.t alter column s set default 'd'",
    "analyze @.t",
    "lock table @.t in access share mode",
];

const ERRORS: &[&str] = &[
    "select 1/0",
    "selec 1",
    "select * from @.nowhere",
    "select 'unterminated",
    "insert into @.t(id, v) values (1, 1), (1, 2)",
    "select cast('x' as int)",
    "do $$ begin raise exception 'raised' using detail = 'the detail', hint = 'the hint', errcode = '22012'; end $$",
    "select i / (i - 3) from generate_series(1, 5) i",
    "update @.t set v = 'x'",
    "select * from @.t for update nowait of zz",
    "",
    ";",
    "-- nothing",
];

/// Statements with parameters, and values that fit them, mostly.
const PARAMETERS: &[(&str, &[Option<&str>])] = &[
    ("select $1::int + $2::int", &[Some("1"), Some("2")]),
    ("select $1::text", &[Some("a 'quoted' text")]),
    ("select $1::text is null", &[None]),
    ("select * from @.t where id = $1 order by id", &[Some("1")]),
    ("insert into @.t(v, s) values ($1, $2) returning id", &[Some("5"), Some("bound")]),
    ("select i from generate_series(1, $1::int) i", &[Some("25")]),
    ("update @.t set v = $1 where id = $2", &[Some("9"), Some("2")]),
    ("select $1::int / $2::int", &[Some("1"), Some("0")]),
    ("select $1::int", &[Some("not a number")]),
    ("delete from @.t where v = $1", &[Some("9")]),
];

impl Session {
    pub fn generate(seed: u64) -> Self {
        let mut generator = Generator { random: Random::new(seed), seed, tx: Tx::None, turns: Vec::new(), names: 0 };
        generator.begin();
        let turns = 3 + generator.random.below(22);
        for _ in 0..turns {
            generator.turn();
        }
        let random = &mut generator.random;
        let ending = match random.below(8) {
            0 => Ending::Close,
            1 => Ending::HalfMessage(1 + random.below(20)),
            2 => Ending::Unanswered,
            _ => Ending::Polite,
        };
        let slice = if random.one_in(3) { Some(1 + random.below(40)) } else { None };
        Self { seed, turns: generator.turns, ending, slice }
    }

    pub fn messages(&self) -> u64 {
        let count = |turn: &Turn| {
            let (mut rest, mut count) = (turn.send.as_slice(), 0);
            while rest.len() >= 5 {
                let len = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
                rest = &rest[(len + 1).min(rest.len())..];
                count += 1;
            }
            count
        };
        self.turns.iter().map(count).sum()
    }
}

impl Generator {
    fn sql(&self, text: &str) -> String {
        text.replace('@', &format!("s{}", self.seed))
    }

    fn push(&mut self, send: Vec<u8>, until: &'static [u8], count: usize, text: impl Into<String>) {
        let state = match self.tx {
            Tx::None => "",
            Tx::Open => "[tx] ",
            Tx::Failed => "[failed] ",
        };
        self.turns.push(Turn { send, until, count, text: format!("{state}{}", text.into()) });
    }

    /// The session's own schema, so that sessions do not meet in the database.
    fn begin(&mut self) {
        let sql = self.sql(
            "drop schema if exists @ cascade; create schema @; create table @.t (id serial primary key, v int, s text); \
             insert into @.t(v, s) values (10, 'ten'), (20, 'twenty'), (30, null)",
        );
        self.push(query(&sql), b"Z", 1, "set up");
    }

    fn turn(&mut self) {
        match self.random.below(20) {
            0..=4 => self.simple(),
            5..=6 => self.transaction(),
            7..=10 => self.extended(),
            11..=12 => self.pipeline(),
            13 => self.flushed(),
            14 => self.copy_out(),
            15..=16 => self.copy_in(),
            17 => self.cursor(),
            18 => self.function_call(),
            _ => self.multi(),
        }
    }

    fn statement(&mut self) -> String {
        let list = match self.random.below(10) {
            0..=5 => SELECTS,
            6..=8 => WRITES,
            _ => ERRORS,
        };
        let text = *self.random.choose(list);
        if std::ptr::eq(list, ERRORS)
            && self.tx == Tx::Open
            && !text.is_empty()
            && text != ";"
            && !text.starts_with("--")
        {
            self.tx = Tx::Failed;
        }
        self.sql(text)
    }

    fn simple(&mut self) {
        let before = self.tx;
        let sql = self.statement();
        let after = std::mem::replace(&mut self.tx, before);
        self.push(query(&sql), b"Z", 1, sql);
        self.tx = after;
    }

    fn multi(&mut self) {
        let count = 2 + self.random.below(3);
        let before = self.tx;
        let sql = (0..count).map(|_| self.statement()).collect::<Vec<_>>().join("; ");
        self.tx = before;
        self.push(query(&sql), b"Z", 1, sql);
    }

    fn transaction(&mut self) {
        let sql = match self.tx {
            Tx::None => {
                let begin = *self.random.choose(&[
                    "begin",
                    "start transaction",
                    "begin isolation level serializable",
                    "BEGIN READ ONLY",
                    "begin; select 1",
                    "begin work isolation level repeatable read, read write",
                ]);
                self.tx = Tx::Open;
                begin
            }
            Tx::Open => match self.random.below(8) {
                0..=2 => {
                    self.tx = Tx::None;
                    "commit"
                }
                3 => {
                    self.tx = Tx::None;
                    "rollback"
                }
                4 => "savepoint a",
                5 => "rollback to savepoint a",
                6 => "release savepoint a",
                _ => "commit and chain",
            },
            Tx::Failed => match self.random.below(4) {
                0 => "rollback to savepoint a",
                1 => {
                    self.tx = Tx::None;
                    "commit"
                }
                _ => {
                    self.tx = Tx::None;
                    "rollback"
                }
            },
        };
        if self.random.one_in(3) {
            let batch = [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
            self.push(batch, b"Z", 1, format!("extended {sql}"));
        } else {
            self.push(query(sql), b"Z", 1, sql);
        }
    }

    /// A name for a statement or portal: few, so that they collide.
    fn name(&mut self) -> String {
        ["", "", "s1", "s2", "a longer name of a statement", "S1"][self.random.below(6)].to_owned()
    }

    /// Messages of one batch, without its Sync.
    fn batch(&mut self) -> (Vec<u8>, String) {
        let (mut bytes, mut text) = (Vec::new(), Vec::new());
        let mut add = |message: Vec<u8>, what: String| {
            bytes.extend(message);
            text.push(what);
        };
        for _ in 0..1 + self.random.below(3) {
            let (sql, values) = if self.random.one_in(2) {
                (self.statement(), &[][..])
            } else {
                let (sql, values) = *self.random.choose(PARAMETERS);
                (self.sql(sql), values)
            };
            let (statement, portal) = (self.name(), self.name());
            if !self.random.one_in(4) {
                add(parse(&statement, &sql), format!("P {statement:?} {sql}"));
            }
            if self.random.one_in(3) {
                add(describe(b'S', &statement), format!("D S {statement:?}"));
            }
            if !self.random.one_in(5) {
                add(bind(&portal, &statement, values), format!("B {portal:?} {statement:?} {values:?}"));
                if self.random.one_in(2) {
                    add(describe(b'P', &portal), format!("D P {portal:?}"));
                }
                let limit = [0, 0, 1, 2, 100][self.random.below(5)];
                for _ in 0..1 + self.random.below(2) {
                    add(execute(&portal, limit), format!("E {portal:?} {limit}"));
                }
                if self.random.one_in(4) {
                    add(close(b'P', &portal), format!("C P {portal:?}"));
                }
            }
            if self.random.one_in(3) {
                add(close(b'S', &statement), format!("C S {statement:?}"));
            }
            if self.random.one_in(8) {
                add(flush(), "H".into());
            }
        }
        (bytes, text.join(", "))
    }

    fn extended(&mut self) {
        let (mut bytes, text) = self.batch();
        bytes.extend(sync());
        self.push(bytes, b"Z", 1, format!("{text}, S"));
    }

    /// Several batches and simple queries in one write.
    fn pipeline(&mut self) {
        let count = 2 + self.random.below(4);
        let (mut bytes, mut texts) = (Vec::new(), Vec::new());
        for _ in 0..count {
            if self.random.one_in(3) {
                let before = self.tx;
                let sql = self.statement();
                self.tx = before;
                bytes.extend(query(&sql));
                texts.push(format!("Q {sql}"));
            } else {
                let (batch, text) = self.batch();
                bytes.extend(batch);
                bytes.extend(sync());
                texts.push(format!("{text}, S"));
            }
        }
        self.push(bytes, b"Z", count, texts.join(", "));
    }

    /// A batch whose first half is answered before the second half is sent, as drivers do that ask for types first.
    fn flushed(&mut self) {
        let text = *self.random.choose(SELECTS);
        let sql = self.sql(text);
        self.names += 1;
        let name = format!("f{}", self.names);
        let first = [parse(&name, &sql), describe(b'S', &name), flush()].concat();
        // An error ends it too: then everything up to the Sync is skipped.
        self.push(first, b"TnE", 1, format!("P {name:?} {sql}, D S, H"));
        let second = [bind("", &name, &[]), execute("", 0), close(b'S', &name), sync()].concat();
        self.push(second, b"Z", 1, format!("B {name:?}, E, C, S"));
    }

    fn copy_out(&mut self) {
        let sql = self.sql("copy (select i, repeat('y', i % 50) from generate_series(1, 200) i) to stdout");
        if self.random.one_in(2) {
            self.push(query(&sql), b"Z", 1, sql);
        } else {
            let batch = [parse("", &sql), bind("", "", &[]), execute("", 0), sync()].concat();
            self.push(batch, b"Z", 1, format!("extended {sql}"));
        }
    }

    fn copy_in(&mut self) {
        let sql = self.sql("copy @.t(v, s) from stdin");
        let data = match self.random.below(4) {
            0 => vec![message(b'd', b"1\tx\n2\ty\n"), message(b'd', b"3\tz\n"), message(b'c', b"")],
            1 => vec![message(b'd', b"not a number\tx\n"), message(b'c', b"")],
            2 => vec![message(b'd', b"1\tx\n"), message(b'f', &cstr("the client changed its mind"))],
            _ => vec![message(b'c', b"")],
        };
        let extended = self.random.one_in(2);
        if self.random.one_in(2) {
            // All at once, without waiting for the server to be ready for it.
            let mut bytes =
                if extended { [parse("", &sql), bind("", "", &[]), execute("", 0)].concat() } else { query(&sql) };
            bytes.extend(data.concat());
            if extended {
                bytes.extend(sync());
            }
            self.push(bytes, b"Z", 1, format!("{sql} and its data at once, extended: {extended}"));
        } else if extended {
            // libpq sends a Sync right behind the Execute, and another behind the data.
            let first = [parse("", &sql), bind("", "", &[]), execute("", 0), sync()].concat();
            self.push(first, b"GZ", 1, format!("extended {sql}, S"));
            self.push([data.concat(), sync()].concat(), b"Z", 1, "its data, S");
        } else {
            self.push(query(&sql), b"GZ", 1, sql);
            // If the COPY was refused, the server ignores the data; the Sync makes it say something in both cases.
            self.push([data.concat(), sync()].concat(), b"Z", ANSWER_OF_COPY, "its data, S");
        }
        if extended {
            // A COPY left behind as the unnamed statement would be run by whatever binds that next, and nobody would
            // send its data: no legal session.
            self.push([parse("", "select 1"), sync()].concat(), b"Z", 1, "P \"\" select 1, S");
        }
    }

    fn cursor(&mut self) {
        let declare = "declare c cursor for select i, i * i from generate_series(1, 50) i";
        let sql = match self.random.below(5) {
            0 | 1 => declare,
            2 => "fetch 7 from c",
            3 => "move 5 in c",
            _ => "close c",
        };
        self.push(query(sql), b"Z", 1, sql);
    }

    /// The legacy fast path: `int4pl(int4, int4)` and `upper(text)` by their OIDs.
    fn function_call(&mut self) {
        let (oid, args): (u32, Vec<Vec<u8>>) = match self.random.below(3) {
            0 => (177, vec![1i32.to_be_bytes().to_vec(), 41i32.to_be_bytes().to_vec()]),
            1 => (871, vec![b"upper".to_vec()]),
            _ => (154, vec![1i32.to_be_bytes().to_vec(), 0i32.to_be_bytes().to_vec()]),
        };
        let mut body = oid.to_be_bytes().to_vec();
        body.extend([0, 1, 0, 1]);
        body.extend(u16::try_from(args.len()).unwrap().to_be_bytes());
        for arg in args {
            body.extend(u32::try_from(arg.len()).unwrap().to_be_bytes());
            body.extend(arg);
        }
        body.extend([0, 1]);
        self.push(message(b'F', &body), b"Z", 1, format!("function {oid}"));
    }
}
