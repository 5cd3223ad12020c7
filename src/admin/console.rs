//! The SQL console: the protocol's server side, simple and extended, for clients that ask for its database.

#![allow(clippy::wildcard_enum_match_arm, reason = "the console answers few messages, and passes over the others")]

use super::command::Command;
use super::operator::{Answer, Operator};
use super::show::{self, Cell};
use crate::client::Console;
use crate::client::login::LoggedIn;
use crate::config::ConsoleConfig;
use crate::credentials::BoxFuture;
use crate::net::Stream;
use crate::wire::frame::{self, HEADER};
use crate::wire::frontend::{self, Named};
use crate::wire::reply::{self, AuthRequest, ColumnType};
use crate::wire::{BackendTag, FrontendTag, Report, SqlState, TxStatus};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::runtime::Handle;

/// What the console says it is: a version that drivers understand, and then the truth.
pub const SERVER_VERSION: &str = concat!("16.0 (pg-ambassador ", env!("CARGO_PKG_VERSION"), ")");
/// The console's databases.
const NAMES: [&str; 2] = ["ambassador", "pgbouncer"];
/// A command is a line, not a book.
const MAX_MESSAGE: usize = 64 * 1024;
/// How often is looked whether somebody who waits for a command has left.
const LOOK: Duration = Duration::from_secs(1);
/// Statements and portals that one session may have.
const MAX_STATEMENTS: usize = 1000;

/// The console.
pub struct SqlConsole {
    config: RwLock<ConsoleConfig>,
    /// Where its sessions run: a table of ten thousand clients must not keep the clients of a worker waiting.
    runtime: Handle,
    /// Set by the assembly, once there is one.
    operator: OnceLock<Arc<Operator>>,
}

impl SqlConsole {
    /// A console for these users, whose sessions run there.
    pub fn new(config: ConsoleConfig, runtime: Handle) -> Self {
        Self { config: RwLock::new(config), runtime, operator: OnceLock::new() }
    }

    /// Lets in these users from now on. Sessions that are open stay what they are.
    pub fn adopt(&self, config: ConsoleConfig) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    fn config(&self) -> RwLockReadGuard<'_, ConsoleConfig> {
        self.config.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whom it works for.
    pub fn connect(&self, operator: Arc<Operator>) {
        let _ = self.operator.set(operator);
    }

    fn is_admin(&self, login: &LoggedIn) -> bool {
        // Whoever is the same user of the operating system could just as well send signals.
        let own = login.stream.socket().peer_uid() == Some(rustix::process::getuid().as_raw());
        own || self.config().admin_users.contains(&login.startup.user)
    }

    fn may_look(&self, user: &str) -> bool {
        self.config().stats_users.iter().any(|name| name == "*" || name == user)
    }
}

impl Console for SqlConsole {
    fn is_named(&self, database: &str) -> bool {
        NAMES.contains(&database)
    }

    fn serve<'a>(&'a self, login: LoggedIn) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Some(operator) = self.operator.get().cloned() else { return };
            let is_admin = self.is_admin(&login);
            let user = login.startup.user.clone();
            if !is_admin && !self.may_look(&user) {
                let report = Report::as_postgres(
                    SqlState::INSUFFICIENT_PRIVILEGE,
                    format!("user \"{user}\" may not use the console"),
                )
                .hint("Name it in console.stats_users or console.admin_users.");
                crate::client::login::refuse(login.stream, login.unsent, &report).await;
                return;
            }
            let session = Session {
                operator,
                stream: login.stream,
                input: login.input,
                output: login.unsent,
                user,
                is_admin,
                statements: HashMap::new(),
                portals: HashMap::new(),
                skipping: false,
            };
            // It ends with its connection.
            let _ = self.runtime.spawn(session.serve()).await;
        })
    }
}

/// A session of the console.
struct Session {
    operator: Arc<Operator>,
    stream: Stream,
    input: Vec<u8>,
    output: Vec<u8>,
    user: String,
    is_admin: bool,
    statements: HashMap<Vec<u8>, Arc<Command>>,
    portals: HashMap<Vec<u8>, Portal>,
    skipping: bool,
}

/// A bound command.
struct Portal {
    command: Arc<Command>,
    /// The wire format of each column, or of all: true for binary.
    formats: Vec<bool>,
}

impl Portal {
    fn format(&self, column: usize) -> bool {
        match self.formats.as_slice() {
            [] => false,
            [all] => *all,
            each => each.get(column).copied().unwrap_or(false),
        }
    }
}

impl Session {
    async fn serve(mut self) {
        match self.stream.rehome() {
            Ok(stream) => self.stream = stream,
            Err(error) => return tracing::debug!(%error, "console session lost"),
        }
        if let Err(error) = self.run().await {
            tracing::debug!(%error, "console session ended");
        }
    }

    async fn run(mut self) -> io::Result<()> {
        tracing::info!(user = self.user, admin = self.is_admin, "console session");
        reply::authentication(&mut self.output, AuthRequest::Ok);
        for (name, value) in [
            ("server_version", SERVER_VERSION),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("application_name", ""),
            ("is_superuser", "off"),
            ("session_authorization", &self.user.clone()),
            ("DateStyle", "ISO, MDY"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("integer_datetimes", "on"),
            ("standard_conforming_strings", "on"),
        ] {
            reply::parameter_status(&mut self.output, name, value);
        }
        reply::key_data(&mut self.output, 0, &[0; 4]);
        reply::ready(&mut self.output, TxStatus::Idle);
        loop {
            self.flush().await?;
            // Others are served by this thread between two of many commands that were sent at once.
            tokio::task::yield_now().await;
            let (tag, body) = match self.message().await? {
                Some(message) => message,
                None => return Ok(()),
            };
            if self.skipping && !matches!(tag, FrontendTag::Sync | FrontendTag::Terminate) {
                continue;
            }
            match tag {
                FrontendTag::Terminate => return Ok(()),
                FrontendTag::Query => self.query(&body).await,
                FrontendTag::Sync => {
                    self.skipping = false;
                    self.portals.clear();
                    reply::ready(&mut self.output, TxStatus::Idle);
                }
                FrontendTag::Flush => {}
                FrontendTag::Parse
                | FrontendTag::Bind
                | FrontendTag::Describe
                | FrontendTag::Execute
                | FrontendTag::Close => {
                    if let Err(report) = self.extended(tag, &body).await {
                        report.write(&mut self.output);
                        self.skipping = true;
                    }
                }
                FrontendTag::CopyData | FrontendTag::CopyDone | FrontendTag::CopyFail => {}
                FrontendTag::FunctionCall => {
                    error("function calls are not supported by the console").write(&mut self.output);
                    reply::ready(&mut self.output, TxStatus::Idle);
                }
                FrontendTag::Password => return Ok(()),
            }
        }
    }

    /// Sends what is to be sent, to somebody who takes it.
    async fn flush(&mut self) -> io::Result<()> {
        let output = std::mem::take(&mut self.output);
        let limit = self.operator.context.limits().client_write;
        if limit.is_zero() {
            return self.stream.write_all(&output).await;
        }
        let written = tokio::time::timeout(limit, self.stream.write_all(&output)).await;
        written.unwrap_or_else(|_| {
            tracing::info!(user = self.user, ?limit, "closed: a console session did not take its answers");
            Err(io::ErrorKind::TimedOut.into())
        })
    }

    /// Reads one message; none at the end of the connection, or when what comes is no message.
    async fn message(&mut self) -> io::Result<Option<(FrontendTag, Vec<u8>)>> {
        let mut chunk = [0; 4096];
        loop {
            match frame::frontend(&self.input) {
                Err(_) => return Ok(None),
                Ok(Some(frame)) if frame.len > MAX_MESSAGE => {
                    error("the command is too long").fatal().write(&mut self.output);
                    self.flush().await?;
                    return Ok(None);
                }
                Ok(Some(frame)) if self.input.len() >= frame.len => {
                    let body = self.input[HEADER..frame.len].to_vec();
                    self.input.drain(..frame.len);
                    return Ok(Some((frame.tag, body)));
                }
                Ok(_) => match self.stream.read(&mut chunk).await? {
                    0 => return Ok(None),
                    read => self.input.extend_from_slice(&chunk[..read]),
                },
            }
        }
    }

    async fn query(&mut self, body: &[u8]) {
        let text = String::from_utf8_lossy(frontend::query(body)).into_owned();
        match self.execute_text(&text).await {
            Ok(()) => {}
            Err(report) => report.write(&mut self.output),
        }
        reply::ready(&mut self.output, TxStatus::Idle);
    }

    async fn execute_text(&mut self, text: &str) -> Result<(), Report> {
        let command = parse(text)?;
        if command == Command::Empty {
            reply::message(&mut self.output, BackendTag::EmptyQuery, |_| {});
            return Ok(());
        }
        let answer = self.carry_out(&command).await?;
        let columns = show::describe(&command);
        if !columns.is_empty() {
            reply::row_description(&mut self.output, &columns, |_| false);
        }
        self.answer(&command, &answer, &columns, |_| false);
        Ok(())
    }

    async fn carry_out(&mut self, command: &Command) -> Result<Answer, Report> {
        if command.needs_admin() {
            tracing::info!(user = self.user, ?command, allowed = self.is_admin, "console command");
        }
        let answer = self.while_there(self.operator.run(command, self.is_admin)).await?;
        if let Some(notice) = &answer.notice {
            notice.write(&mut self.output);
        }
        Ok(answer)
    }

    /// Waits for a command as long as somebody waits for its answer. What it has begun stays as it is: a PAUSE is in force.
    async fn while_there(&self, command: impl Future<Output = Result<Answer, Report>>) -> Result<Answer, Report> {
        let mut command = std::pin::pin!(command);
        loop {
            if let Ok(answer) = tokio::time::timeout(LOOK, &mut command).await {
                return answer;
            }
            if self.stream.is_ending() {
                tracing::info!(user = self.user, "who waits for a console command has left");
                return Err(error("nobody waits for the command any more"));
            }
        }
    }

    fn answer(&mut self, command: &Command, answer: &Answer, columns: &show::Columns, binary: impl Fn(usize) -> bool) {
        for row in &answer.rows {
            let values: Vec<Option<Vec<u8>>> = row
                .iter()
                .zip(columns)
                .enumerate()
                .map(|(at, (cell, (_, kind)))| encode(cell, *kind, binary(at)))
                .collect();
            reply::data_row(&mut self.output, &values);
        }
        reply::command_complete(&mut self.output, command.tag());
    }

    async fn extended(&mut self, tag: FrontendTag, body: &[u8]) -> Result<(), Report> {
        let malformed = |_| Report::as_postgres(SqlState::PROTOCOL_VIOLATION, "malformed message");
        match tag {
            FrontendTag::Parse => {
                let message = frontend::parse(body).map_err(malformed)?;
                if message.types.len() > 2 {
                    return Err(error("console commands take no parameters"));
                }
                let command = Arc::new(parse(&String::from_utf8_lossy(message.query))?);
                if self.statements.len() >= MAX_STATEMENTS {
                    return Err(error("too many prepared statements"));
                }
                if !message.name.is_empty() && self.statements.contains_key(message.name) {
                    let name = String::from_utf8_lossy(message.name);
                    return Err(Report::as_postgres(
                        SqlState::DUPLICATE_STATEMENT,
                        format!("prepared statement \"{name}\" already exists"),
                    ));
                }
                self.statements.insert(message.name.to_vec(), command);
                reply::message(&mut self.output, BackendTag::ParseComplete, |_| {});
            }
            FrontendTag::Bind => {
                let bind = frontend::bind(body).map_err(malformed)?;
                let command = self.statement(bind.statement)?;
                let formats = result_formats(&body[bind.names_len..])
                    .ok_or_else(|| Report::as_postgres(SqlState::PROTOCOL_VIOLATION, "malformed Bind message"))?;
                if self.portals.len() >= MAX_STATEMENTS {
                    return Err(error("too many portals"));
                }
                self.portals.insert(bind.portal.to_vec(), Portal { command, formats });
                reply::message(&mut self.output, BackendTag::BindComplete, |_| {});
            }
            FrontendTag::Describe => match frontend::named(body).map_err(malformed)? {
                Named::Statement(name) => {
                    let command = self.statement(name)?;
                    reply::message(&mut self.output, BackendTag::ParameterDescription, |body| body.extend([0, 0]));
                    self.describe(&command, |_| false);
                }
                Named::Portal(name) => {
                    let portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
                    self.describe(&portal.command, |column| portal.format(column));
                    self.portals.insert(name.to_vec(), portal);
                }
            },
            FrontendTag::Execute => {
                let name = body.split(|&b| b == 0).next().unwrap_or_default();
                let portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
                if *portal.command == Command::Empty {
                    reply::message(&mut self.output, BackendTag::EmptyQuery, |_| {});
                } else {
                    let answer = self.carry_out(&portal.command).await?;
                    let columns = show::describe(&portal.command);
                    self.answer(&portal.command, &answer, &columns, |column| portal.format(column));
                }
            }
            _ => {
                match frontend::named(body).map_err(malformed)? {
                    Named::Statement(name) => drop(self.statements.remove(name)),
                    Named::Portal(name) => drop(self.portals.remove(name)),
                }
                reply::message(&mut self.output, BackendTag::CloseComplete, |_| {});
            }
        }
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<Arc<Command>, Report> {
        self.statements.get(name).cloned().ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            Report::as_postgres(
                SqlState::INVALID_STATEMENT_NAME,
                format!("prepared statement \"{name}\" does not exist"),
            )
        })
    }

    fn describe(&mut self, command: &Command, binary: impl Fn(usize) -> bool) {
        let columns = show::describe(command);
        if columns.is_empty() {
            reply::message(&mut self.output, BackendTag::NoData, |_| {});
        } else {
            reply::row_description(&mut self.output, &columns, binary);
        }
    }
}

fn parse(text: &str) -> Result<Command, Report> {
    Command::parse(text).map_err(|message| Report::as_postgres(SqlState::SYNTAX_ERROR, message))
}

fn error(message: &str) -> Report {
    Report::as_postgres(SqlState::FEATURE_NOT_SUPPORTED, message)
}

fn no_portal(name: &[u8]) -> Report {
    let name = String::from_utf8_lossy(name);
    Report::as_postgres(SqlState::INVALID_STATEMENT_NAME, format!("portal \"{name}\" does not exist"))
}

/// The result formats of a Bind message, from what follows its names. There are no parameters.
fn result_formats(rest: &[u8]) -> Option<Vec<bool>> {
    let count = |at: usize| rest.get(at..at + 2).map(|c| usize::from(u16::from_be_bytes([c[0], c[1]])));
    let parameter_formats = count(0)?;
    let at = 2 + 2 * parameter_formats;
    (count(at)? == 0).then_some(())?;
    let formats = count(at + 2)?;
    let formats = rest.get(at + 4..at + 4 + 2 * formats)?;
    Some(formats.chunks_exact(2).map(|format| format != [0, 0]).collect())
}

/// A value as it goes over the wire.
fn encode(cell: &Cell, kind: ColumnType, binary: bool) -> Option<Vec<u8>> {
    match (cell, kind) {
        (Cell::Null, _) => None,
        (Cell::Text(text), _) => Some(text.as_bytes().to_vec()),
        (Cell::Int(value), _) if !binary => Some(value.to_string().into_bytes()),
        (Cell::Int(value), ColumnType::Int4) => Some(i32::try_from(*value).unwrap_or(i32::MAX).to_be_bytes().to_vec()),
        (Cell::Int(value), ColumnType::Int8) => Some(value.to_be_bytes().to_vec()),
        (Cell::Int(value), ColumnType::Numeric) => Some(numeric(*value)),
        (Cell::Int(value), ColumnType::Text) => Some(value.to_string().into_bytes()),
    }
}

/// A whole number in numeric's binary form: digits to the base of 10,000 (numeric.c, `numeric_send`).
fn numeric(value: i64) -> Vec<u8> {
    let mut digits = Vec::new();
    let mut rest = value.unsigned_abs();
    while rest > 0 {
        digits.push(u16::try_from(rest % 10_000).unwrap_or_default());
        rest /= 10_000;
    }
    digits.reverse();
    let weight = i16::try_from(digits.len()).unwrap_or_default() - 1;
    let trailing = digits.iter().rev().take_while(|digit| **digit == 0).count();
    digits.truncate(digits.len() - trailing);
    let sign: u16 = if value < 0 { 0x4000 } else { 0 };
    let mut out = u16::try_from(digits.len()).unwrap_or_default().to_be_bytes().to_vec();
    out.extend(weight.max(0).to_be_bytes());
    out.extend(sign.to_be_bytes());
    out.extend(0u16.to_be_bytes());
    out.extend(digits.iter().flat_map(|digit| digit.to_be_bytes()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerics_are_encoded_as_postgresql_does() {
        // `select numeric_send(x)` of PostgreSQL 15.
        let hex = |value| numeric(value).iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(0), "0000000000000000");
        assert_eq!(hex(1), "00010000000000000001");
        assert_eq!(hex(10_000), "00010001000000000001");
        assert_eq!(hex(123_456_789), "000300020000000000010929".to_owned() + "1a85");
        assert_eq!(hex(-42), "0001000040000000002a");
    }

    #[test]
    fn result_formats_are_found_behind_parameter_formats() {
        assert_eq!(result_formats(&[0, 0, 0, 0, 0, 0]), Some(vec![]));
        assert_eq!(result_formats(&[0, 1, 0, 1, 0, 0, 0, 2, 0, 1, 0, 0]), Some(vec![true, false]));
        assert_eq!(result_formats(&[0, 0, 0, 1, 0, 0]), None);
        assert_eq!(result_formats(&[0]), None);
    }
}
