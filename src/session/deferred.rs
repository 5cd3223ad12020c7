//! A transaction that has begun for the client, and for no server yet.
//!
//! BEGIN is answered here; the server gets it in front of the first statement, in the same write. So a client that
//! thinks about what to do in its transaction holds no server, and one that then does nothing never had one.

use super::pipeline::{Kind, Note, Owed};
use super::prepared::{Lookup, Own};
use super::server_frames::NOBODY;
use super::{Outbound, PoolMode, ServerSide, Session, Unnamed};
use crate::sql::reference::Verb;
use crate::sql::{self, Analysis, Command, Control, Effects};
use crate::wire::frame::{self, Frame, HEADER};
use crate::wire::frontend::{self, Named};
use crate::wire::{BackendTag, FrontendTag, TxStatus, reply};
use std::sync::Arc;
use std::time::Duration;

/// A BEGIN that no server has seen.
#[derive(Debug)]
pub(super) struct Deferred {
    /// Its text, if it says more than that a transaction begins.
    text: Option<Box<[u8]>>,
}

impl Deferred {
    /// The text; empty for a plain BEGIN.
    pub(super) fn text(&self) -> &[u8] {
        self.text.as_deref().unwrap_or_default()
    }
}

/// What is to be answered for one message of a batch that needs no server.
enum Answer {
    Parsed,
    Bound,
    StatementDescribed,
    PortalDescribed,
    Executed,
}

impl Session {
    /// Whether a transaction has begun that no server knows of.
    pub fn is_deferred(&self) -> bool {
        self.deferred.is_some()
    }

    /// The client gets no server for its transaction: there is nothing to begin any more.
    pub(super) fn forget_deferred(&mut self) {
        self.deferred = None;
    }

    /// The client's own `idle_in_transaction_session_timeout`: none if it has set none, zero if it has turned it off.
    pub fn idle_transaction_limit(&self) -> Option<Duration> {
        self.settings.get("idle_in_transaction_session_timeout").and_then(duration)
    }

    /// What this text begins or ends, if no server is needed to say so.
    fn control(&mut self, text: &[u8], analysis: &Analysis) -> Option<Control> {
        let may_be = match analysis.first {
            Command::Begin => self.deferred.is_none() && self.tx == TxStatus::Idle,
            Command::Commit | Command::Rollback => self.deferred.is_some(),
            Command::Empty | Command::Other => false,
        };
        if !may_be || analysis.statements != 1 || self.mode != PoolMode::Transaction {
            return None;
        }
        let control = Control::of(text, self.standard_strings)?;
        let begins = matches!(control, Control::Begin | Control::Start);
        (!begins || self.may_defer()).then_some(control)
    }

    fn carry_out(&mut self, control: Control, text: &[u8]) {
        match control {
            Control::Begin | Control::Start => {
                let plain = text.eq_ignore_ascii_case(b"begin");
                self.deferred = Some(Box::new(Deferred { text: (!plain).then(|| text.into()) }));
                self.tx = TxStatus::Active;
            }
            Control::Commit | Control::Rollback => {
                self.deferred = None;
                self.tx = TxStatus::Idle;
            }
        }
    }

    /// Answers a Query that only begins a transaction, or only ends one that no server knows of.
    pub(super) fn answer_control(&mut self, text: &[u8], analysis: &Analysis, to_client: &mut Vec<u8>) -> bool {
        let Some(control) = self.control(text, analysis) else { return false };
        // A simple query drops the unnamed statement.
        self.unnamed = None;
        self.carry_out(control, text);
        reply::command_complete(to_client, control.tag());
        self.end_batch_without_server(to_client);
        true
    }

    /// Answers a DEALLOCATE of a statement that the client has prepared by the protocol: no server knows its name.
    pub(super) fn answer_deallocate(&mut self, text: &[u8], analysis: &Analysis, to_client: &mut Vec<u8>) -> bool {
        if analysis.statements != 1 || !analysis.effects.has(Effects::PREPARE) {
            return false;
        }
        let Some(reference) =
            sql::reference(text, self.standard_strings).filter(|found| found.verb == Verb::Deallocate)
        else {
            return false;
        };
        let Lookup::Known(..) = self.prepared.look_up(&reference.name, self.batch) else { return false };
        self.prepared.remove(&reference.name);
        self.unnamed = None;
        reply::command_complete(to_client, "DEALLOCATE");
        self.end_batch_without_server(to_client);
        true
    }

    pub(super) fn end_batch_without_server(&mut self, to_client: &mut Vec<u8>) {
        self.batch = self.batch.wrapping_add(1);
        self.completed += 1;
        reply::ready(to_client, self.tx);
    }

    /// The same for a batch of the extended protocol, if all of it is there: Parse of the unnamed statement or none, Bind,
    /// Execute, Sync, and Describe where it may stand. Gives how many bytes it has.
    pub(super) fn answer_control_batch(&mut self, input: &[u8], to_client: &mut Vec<u8>) -> Option<usize> {
        let mut at = 0;
        let mut next = || {
            let Frame { tag, len } = frame::frontend(&input[at..]).ok()??;
            let body = input.get(at + HEADER..at + len)?;
            at += len;
            Some((tag, body))
        };
        let mut answers = Vec::new();
        let mut made = None;
        let (mut tag, mut body) = next()?;
        if tag == FrontendTag::Parse {
            let parse = frontend::parse(body).ok()?;
            // It is looked at before the rest, because nearly every batch begins with a Parse of something else.
            let analysis = sql::analyse_beginning(parse.query, self.standard_strings)?;
            if !parse.name.is_empty() || parse.types != [0, 0] {
                return None;
            }
            made = Some((Arc::from(&body[1..]), analysis, parse.query));
            answers.push(Answer::Parsed);
            (tag, body) = next()?;
        }
        if tag == FrontendTag::Describe && made.is_some() && frontend::named(body).ok()? == Named::Statement(b"") {
            answers.push(Answer::StatementDescribed);
            (tag, body) = next()?;
        }
        if tag != FrontendTag::Bind {
            return None;
        }
        let bind = frontend::bind(body).ok()?;
        let (control, text): (Control, Box<[u8]>) = match &made {
            Some((_, analysis, query)) if bind.statement.is_empty() => {
                (self.control(query, analysis)?, (*query).into())
            }
            Some(_) => return None,
            None => {
                let Lookup::Known(_, statement) = self.prepared.look_up(bind.statement, self.batch) else {
                    return None;
                };
                let statement = Arc::clone(statement);
                (self.control(&statement.query, &statement.analysis)?, statement.query.clone())
            }
        };
        // No parameters; what formats it asks for is no matter, where there are no columns.
        if !bind.portal.is_empty() || frontend::bind_values(body).next().is_some() {
            return None;
        }
        answers.push(Answer::Bound);
        (tag, body) = next()?;
        if tag == FrontendTag::Describe && frontend::named(body).ok()? == Named::Portal(b"") {
            answers.push(Answer::PortalDescribed);
            (tag, body) = next()?;
        }
        if tag != FrontendTag::Execute || body.first() != Some(&0) {
            return None;
        }
        answers.push(Answer::Executed);
        let (FrontendTag::Sync, []) = next()? else { return None };
        if let Some((text, analysis, _)) = made {
            self.unnamed_count = self.unnamed_count.wrapping_add(1);
            let id = (self.id << 32) | u64::from(self.unnamed_count);
            let standard_strings = self.standard_strings;
            let made = Unnamed {
                id,
                text: Some(text),
                analysis,
                standard_strings,
                unsettled: true,
                read_by: None,
                blind: false,
            };
            self.unnamed = Some(Box::new(made));
        }
        self.carry_out(control, &text);
        for answer in answers {
            answer.write(control, to_client);
        }
        self.end_batch_without_server(to_client);
        Some(at)
    }

    /// Puts the BEGIN in front of the first statement. It goes by the extended protocol: should the server refuse it, it
    /// skips what comes behind.
    pub(super) fn begin_on(deferred: &Deferred, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        match &deferred.text {
            None => server.run_in_front(Own::Begin, "begin", Some(Note::Begun), to_server),
            Some(text) => {
                reply::parse(to_server.edit(), b"", text, &[0, 0]);
                server.unnamed = Some(NOBODY);
                server.pipeline.push(Owed::swallow(Kind::Parse));
                server.execute_in_front("", Some(Note::Begun), to_server);
            }
        }
    }
}

/// A duration as PostgreSQL writes settings of this kind: a number, and a unit unless it is milliseconds.
fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let milliseconds = match text[digits..].trim() {
        "" | "ms" => number,
        "us" => number / 1000,
        "s" => number.checked_mul(1000)?,
        "min" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        "d" => number.checked_mul(86_400_000)?,
        _ => return None,
    };
    Some(Duration::from_millis(milliseconds))
}

impl ServerSide {
    /// Runs a statement of ours in front of the client's next message, which is skipped should ours fail.
    pub(super) fn run_in_front(&mut self, own: Own, text: &str, note: Option<Note>, to_server: &mut Outbound<'_>) {
        let name = own.name();
        if !self.prepared.has_own(own) {
            reply::parse(to_server.edit(), name.as_bytes(), text.as_bytes(), &[0, 0]);
            self.prepared.own |= own.bit();
            self.pipeline.push(Owed::swallow(Kind::Parse).with(Note::OwnMade(own)));
        }
        self.execute_in_front(&name, note, to_server);
    }

    fn execute_in_front(&mut self, name: &str, note: Option<Note>, to_server: &mut Outbound<'_>) {
        let out = to_server.edit();
        reply::bind_text(out, name.as_bytes(), &[]);
        self.pipeline.push(Owed::swallow(Kind::Bind));
        reply::execute(out);
        let owed = Owed::swallow(Kind::Execute { commits: false });
        self.pipeline.push(match note {
            Some(note) => owed.with(note),
            None => owed,
        });
        // The client must not find a portal that it has not made.
        reply::close_portal(out);
        self.pipeline.push(Owed::swallow(Kind::Close));
    }
}

impl Answer {
    fn write(&self, control: Control, to_client: &mut Vec<u8>) {
        match self {
            Self::Parsed => reply::message(to_client, BackendTag::ParseComplete, |_| {}),
            Self::Bound => reply::message(to_client, BackendTag::BindComplete, |_| {}),
            Self::StatementDescribed => {
                reply::message(to_client, BackendTag::ParameterDescription, |body| body.extend([0, 0]));
                reply::message(to_client, BackendTag::NoData, |_| {});
            }
            Self::PortalDescribed => reply::message(to_client, BackendTag::NoData, |_| {}),
            Self::Executed => reply::command_complete(to_client, control.tag()),
        }
    }
}
