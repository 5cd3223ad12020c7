//! The client's frames: what each needs, what it leaves in the queue of owed replies, and how it goes on.

use super::lending::{EVERY, REFERRING};
use super::pipeline::{Copy, Fate, Kind, Note, Owed};
use super::prepared::{Lookup, Own, PREFIX, Presence, Statement};
use super::reading;
use super::settings::Settings;
use super::{
    Body, End, Interners, Next, Orphan, Outbound, ServerSide, Session, Taken, Unnamed, Violation, WHOLE_FRAME,
};
use crate::sql::assigned::{Name, assigned};
use crate::sql::prepared::{miscounted, texts};
use crate::sql::reads::calls::calls;
use crate::sql::reference::Verb;
use crate::sql::{self, Analysis, Control, Effects};
use crate::wire::frame::{self, Frame, HEADER};
use crate::wire::frontend::{self, Named};
use crate::wire::{BackendTag, FrontendTag, Report, SqlState, TxStatus, reply};
use std::ops::Range;
use std::sync::Arc;

/// Answers that may be owed before a client has to wait for them: what is remembered of each takes memory, and time to
/// look through.
const MOST_OWED: usize = 8192;

/// The frame at hand: where it stands in the input, and how much of it has arrived.
#[derive(Clone, Copy)]
struct Cut {
    tag: FrontendTag,
    start: usize,
    /// End of what has arrived of it.
    end: usize,
    /// Its full size.
    len: usize,
}

impl Cut {
    fn is_whole(&self) -> bool {
        self.end - self.start == self.len
    }

    fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    fn body<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        &input[self.start + HEADER..self.end]
    }
}

/// What became of a frame.
pub(super) enum Fare {
    /// It was handled, up to the end of what has arrived of it.
    Done,
    /// It was handled together with those behind it: so many bytes.
    Batch(usize),
    /// It was not handled; this is needed first.
    Wait(Next),
}

impl Session {
    /// Handles the client's frames in `input` as far as it can.
    ///
    /// Bytes for the server go to `to_server`, answers of our own to `to_client`. Without a server it stops at the first
    /// frame that needs one.
    ///
    /// # Errors
    /// [`Violation::Client`] if the bytes are no frames: the connection has to be closed.
    pub fn on_client(
        &mut self,
        shared: &Interners,
        input: &[u8],
        mut server: Option<&mut ServerSide>,
        to_server: &mut Outbound<'_>,
        to_client: &mut Vec<u8>,
    ) -> Result<Taken, Violation> {
        let mut at = 0;
        let next = loop {
            if let Some(body) = &mut self.body {
                let piece = at..input.len().min(at + body.left);
                body.left -= piece.len();
                at = piece.end;
                if body.pass {
                    to_server.pass(piece);
                }
                if body.left > 0 {
                    break Next::Input;
                }
                self.body = None;
            }
            if self.at_fence {
                break Next::Fence;
            }
            let found = match frame::frontend(&input[at..]) {
                Ok(Some(found)) => found,
                Ok(None) => break Next::Input,
                // PostgreSQL reads one message after the other: what was asked before is answered first.
                Err(_) if server.as_ref().is_some_and(|server| server.will_settle()) => {
                    wait_for_quiet(to_server);
                    break Next::Quiet;
                }
                Err(error) => return Err(Violation::Client(error)),
            };
            let Frame { tag, len } = found;
            let cut = Cut { tag, start: at, end: input.len().min(at + len), len };
            if !cut.is_whole() && wants_whole(tag, len) {
                break Next::Input;
            }
            let skipped = self.skipping || server.as_ref().is_some_and(|s| s.pipeline.skipping);
            let late = skipped && self.late_refusal.is_some();
            if late {
                self.meets_late_refusal(tag, cut.body(input), to_client);
            }
            let fare = if skipped && tag != FrontendTag::Sync && tag != FrontendTag::Terminate {
                // Who did not know of the error, or asks in the middle of a batch, sends no Sync.
                let ends = (tag == FrontendTag::Query && (self.waits_with_loans || late))
                    || (tag == FrontendTag::FunctionCall && late);
                if ends && let Some(server) = &mut server {
                    self.ends_refused_query(server, to_server);
                }
                self.drop_rest(cut);
                Fare::Done
            } else {
                match &mut server {
                    Some(server) => {
                        self.pressed = false;
                        self.with_server(shared, input, cut, server, to_server, to_client)?
                    }
                    None => self.without_server(shared, input, cut, to_client)?,
                }
            };
            match fare {
                Fare::Done => {
                    if let Some(server) = server.as_deref().filter(|server| server.fenced) {
                        self.keep_for_second_try(&input[cut.range()], server);
                        self.at_fence =
                            matches!(tag, FrontendTag::Query | FrontendTag::Sync | FrontendTag::FunctionCall);
                    }
                    at = cut.end;
                }
                Fare::Batch(len) => at += len,
                Fare::Wait(next) => break next,
            }
        };
        Ok(Taken { bytes: at, next })
    }

    /// Looks at a Query's text; one that streams past is unknown.
    fn analyse(&self, cut: Cut, text: &[u8]) -> Analysis {
        if cut.is_whole() { sql::analyse(text, self.standard_strings) } else { Analysis::UNKNOWN }
    }

    /// The rest of a frame that did not arrive whole follows its beginning to the server.
    fn pass_rest(&mut self, cut: Cut) {
        if !cut.is_whole() {
            self.body = Some(Body { left: cut.len - (cut.end - cut.start), pass: true });
        }
    }

    /// Nothing of this frame goes anywhere.
    fn drop_rest(&mut self, cut: Cut) {
        if !cut.is_whole() {
            self.body = Some(Body { left: cut.len - (cut.end - cut.start), pass: false });
        }
    }

    /// A frame while no server is attached: nothing is owed, so what we answer goes out at once.
    fn without_server(
        &mut self,
        shared: &Interners,
        input: &[u8],
        cut: Cut,
        to_client: &mut Vec<u8>,
    ) -> Result<Fare, Violation> {
        if self.orphan.is_some() {
            return Ok(self.orphan(shared, input, cut, to_client));
        }
        match cut.tag {
            // These have no body: what a server says to one that has is for a server to say.
            FrontendTag::Sync | FrontendTag::Flush if cut.len > HEADER => Ok(Fare::Wait(Next::Server)),
            FrontendTag::Sync => {
                self.skipping = false;
                self.pressed = false;
                reply::ready(to_client, self.tx);
                Ok(Fare::Done)
            }
            FrontendTag::Flush => Ok(Fare::Done),
            // PostgreSQL reads and ignores these outside a COPY.
            FrontendTag::CopyData | FrontendTag::CopyDone | FrontendTag::CopyFail => {
                self.drop_rest(cut);
                Ok(Fare::Done)
            }
            FrontendTag::Close => match frontend::named(cut.body(input)) {
                // No server holds anything under this client's names, and closing what does not exist is no error.
                Ok(named) => {
                    self.close_without_server(named);
                    reply::message(to_client, BackendTag::CloseComplete, |_| {});
                    Ok(Fare::Done)
                }
                Err(_) => Ok(Fare::Wait(Next::Server)),
            },
            FrontendTag::Terminate => Ok(Fare::Wait(Next::End)),
            FrontendTag::Password => Err(Violation::Client(frame::FrameError::Type(FrontendTag::Password.byte()))),
            FrontendTag::Parse if self.pressed && self.knows_to_parse(shared, input, cut) => {
                reply::message(to_client, BackendTag::ParseComplete, |_| {});
                Ok(Fare::Done)
            }
            FrontendTag::Query
            | FrontendTag::Parse
            | FrontendTag::Bind
            | FrontendTag::Describe
            | FrontendTag::Execute
            | FrontendTag::FunctionCall => {
                if cut.tag == FrontendTag::Query && self.analysed.is_none() && cut.is_whole() {
                    let text = frontend::query(cut.body(input));
                    // The rest of a text is looked at when it is sent: what only reads need not be.
                    if let Some(analysis) = sql::analyse_beginning(text, self.standard_strings) {
                        if self.answer_control(text, &analysis, to_client)
                            || self.answer_deallocate(text, &analysis, to_client)
                        {
                            return Ok(Fare::Done);
                        }
                        self.analysed = Some(analysis);
                    }
                }
                if matches!(cut.tag, FrontendTag::Parse | FrontendTag::Bind)
                    && let Some(len) = self.answer_control_batch(&input[cut.start..], to_client)
                {
                    return Ok(Fare::Batch(len));
                }
                Ok(Fare::Wait(Next::Server))
            }
        }
    }

    /// Prepares a text under a new name without a server, if one has parsed this text before.
    ///
    /// Only where no server is to be had, because it may have changed its mind since. Preparing is all that pgbench does for
    /// as long as it takes, for all its clients: while it waits for a server for one of them it does not go on with the
    /// others, who hold all servers in their transactions.
    fn knows_to_parse(&mut self, shared: &Interners, input: &[u8], cut: Cut) -> bool {
        if !cut.is_whole() {
            return false;
        }
        let Ok(parse) = frontend::parse(cut.body(input)) else { return false };
        if parse.name.is_empty() || !matches!(self.prepared.look_up(parse.name, self.batch), Lookup::Unknown) {
            return false;
        }
        let Some(statement) = shared.statements.proven(parse.query, parse.types, &self.settings) else { return false };
        self.counts.client_parses += 1;
        let name = self.prepared.begin(parse.name, Some(statement), self.batch);
        self.prepared.confirm(&name);
        true
    }

    fn close_without_server(&mut self, named: Named<'_>) {
        match named {
            Named::Statement(b"") => self.unnamed = None,
            Named::Statement(name) => self.prepared.remove(name),
            Named::Portal(_) => {}
        }
    }

    /// A frame while the client holds a failed transaction whose server is gone.
    fn orphan(&mut self, shared: &Interners, input: &[u8], cut: Cut, to_client: &mut Vec<u8>) -> Fare {
        self.analysed = None;
        match cut.tag {
            FrontendTag::Query => {
                let text = frontend::query(cut.body(input));
                match End::of(text, self.standard_strings) {
                    Some(end) => drop(self.end_orphan(end, to_client)),
                    None if cut.is_whole() && Control::rolls_back_first(text, self.standard_strings) => {
                        // All that it says is for a server, which has nothing to roll back, and goes on from there.
                        (self.orphan, self.tx) = (None, TxStatus::Idle);
                        return Fare::Wait(Next::Server);
                    }
                    None => self.failed_transaction().write(to_client),
                }
                reply::ready(to_client, self.tx);
                self.drop_rest(cut);
            }
            FrontendTag::Parse => match frontend::parse(cut.body(input)) {
                Ok(parse) if self.parse_in_orphan(shared, &parse) => {
                    reply::message(to_client, BackendTag::ParseComplete, |_| {});
                }
                _ => self.refuse_in_orphan(cut, to_client),
            },
            FrontendTag::Bind => {
                let end = frontend::bind(cut.body(input)).ok().and_then(|bind| self.end_named(bind.statement));
                match (end, &mut self.orphan) {
                    (Some(_), Some(orphan)) => {
                        orphan.bound = end;
                        reply::message(to_client, BackendTag::BindComplete, |_| {});
                        self.drop_rest(cut);
                    }
                    _ => self.refuse_in_orphan(cut, to_client),
                }
            }
            FrontendTag::Describe => match frontend::named(cut.body(input)) {
                Ok(Named::Statement(name)) if self.end_named(name).is_some() => {
                    reply::message(to_client, BackendTag::ParameterDescription, |body| body.extend([0, 0]));
                    reply::message(to_client, BackendTag::NoData, |_| {});
                }
                Ok(Named::Portal(_)) if self.orphan.as_ref().is_some_and(|orphan| orphan.bound.is_some()) => {
                    reply::message(to_client, BackendTag::NoData, |_| {});
                }
                _ => self.refuse_in_orphan(cut, to_client),
            },
            FrontendTag::Execute => match self.orphan.as_ref().and_then(|orphan| orphan.bound) {
                Some(end) => self.skipping = !self.end_orphan(end, to_client),
                None => self.refuse_in_orphan(cut, to_client),
            },
            FrontendTag::Close => {
                if let Ok(named) = frontend::named(cut.body(input)) {
                    self.close_without_server(named);
                }
                reply::message(to_client, BackendTag::CloseComplete, |_| {});
            }
            FrontendTag::Sync => {
                self.skipping = false;
                reply::ready(to_client, self.tx);
            }
            FrontendTag::FunctionCall => {
                self.failed_transaction().write(to_client);
                reply::ready(to_client, self.tx);
                self.drop_rest(cut);
            }
            FrontendTag::Terminate => return Fare::Wait(Next::End),
            FrontendTag::Flush
            | FrontendTag::CopyData
            | FrontendTag::CopyDone
            | FrontendTag::CopyFail
            | FrontendTag::Password => self.drop_rest(cut),
        }
        Fare::Done
    }

    /// Takes a statement that ends the transaction; false for any other.
    fn parse_in_orphan(&mut self, shared: &Interners, parse: &frontend::Parse<'_>) -> bool {
        let Some(end) = End::of(parse.query, self.standard_strings) else { return false };
        if parse.name.is_empty() {
            if let Some(orphan) = &mut self.orphan {
                orphan.parsed = Some(end);
            }
            return true;
        }
        if !matches!(self.prepared.look_up(parse.name, self.batch), Lookup::Unknown) {
            return false;
        }
        let analyse = || sql::analyse(parse.query, self.standard_strings);
        let statement = shared.statements.intern(parse.query, parse.types, &self.settings, analyse);
        let name = self.prepared.begin(parse.name, Some(statement), self.batch);
        self.prepared.confirm(&name);
        true
    }

    /// How a prepared statement ends the transaction, if it does.
    fn end_named(&self, name: &[u8]) -> Option<End> {
        if name.is_empty() {
            let parsed = self.orphan.as_ref().and_then(|orphan| orphan.parsed);
            let text = self.unnamed.as_ref().and_then(|unnamed| unnamed.text.as_deref());
            return parsed.or_else(|| End::of(frontend::query(text?), self.standard_strings));
        }
        match self.prepared.look_up(name, self.batch) {
            Lookup::Known(_, statement) => End::of(&statement.query, self.standard_strings),
            Lookup::Undecided | Lookup::Unknown => None,
        }
    }

    /// The client ends its failed transaction; true if that went as it asked.
    ///
    /// It asked to commit, and nobody has told it yet that there is nothing to commit: that is an error. Where it was told,
    /// PostgreSQL's answer to COMMIT is a quiet ROLLBACK.
    fn end_orphan(&mut self, end: End, to_client: &mut Vec<u8>) -> bool {
        self.tx = TxStatus::Idle;
        match (end, self.orphan.take().and_then(|orphan| orphan.untold)) {
            (End::Commit, Some(untold)) => {
                untold.write(to_client);
                false
            }
            (End::Commit | End::Rollback, _) => {
                reply::command_complete(to_client, "ROLLBACK");
                true
            }
        }
    }

    fn refuse_in_orphan(&mut self, cut: Cut, to_client: &mut Vec<u8>) {
        self.failed_transaction().write(to_client);
        self.skipping = true;
        self.drop_rest(cut);
    }

    /// What is said inside a failed transaction: first what happened to its server, then PostgreSQL's own words.
    fn failed_transaction(&mut self) -> Report {
        self.orphan.as_mut().and_then(|orphan| orphan.untold.take()).unwrap_or_else(|| {
            Report::as_postgres(
                SqlState::FAILED_TRANSACTION,
                "current transaction is aborted, commands ignored until end of transaction block",
            )
        })
    }

    /// A frame while a server is attached.
    fn with_server(
        &mut self,
        shared: &Interners,
        input: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
        to_client: &mut Vec<u8>,
    ) -> Result<Fare, Violation> {
        if self.lending.is_some() {
            self.take_back_left(server, to_server);
        }
        // What is answered by ourselves costs the server nothing, which could hold nobody back.
        if server.pipeline.owed.len() >= MOST_OWED && asks(cut.tag) && server.will_settle() {
            return Ok(wait_for_quiet(to_server));
        }
        if server.may_forget_names() && names_statement(cut.tag, cut.body(input)) && server.will_settle() {
            return Ok(wait_for_quiet(to_server));
        }
        if self.channels.is_some() && asks(cut.tag) && self.awaits_itself(server) {
            return Ok(wait_for_quiet(to_server));
        }
        match cut.tag {
            FrontendTag::Query => {
                let found = self.analysed.take();
                let analysis = found.unwrap_or_else(|| self.analyse(cut, frontend::query(cut.body(input))));
                if analysis.commits
                    && let Some(fare) = self.commits_a_listen(server, to_server)
                {
                    self.analysed = Some(analysis);
                    return Ok(fare);
                }
                // Behind a text that resets something there is a Sync of ours, and an error before it would end there.
                let resets = analysis.effects.has(Effects::RESET) && !self.startup.is_empty();
                if resets && server.pipeline.batch_of_client && server.will_settle() {
                    self.analysed = Some(analysis);
                    return Ok(wait_for_quiet(to_server));
                }
                if let Some(fare) = self.concerns_sequences(analysis.effects, server, to_server) {
                    self.analysed = Some(analysis);
                    return Ok(fare);
                }
                let marks = self.marks;
                if analysis.effects.has(LISTENING)
                    && let Some(fare) = self.concerns_channels(analysis.effects, cut.body(input), server, to_server)
                {
                    self.analysed = Some(analysis);
                    return Ok(fare);
                }
                if analysis.effects.has(Effects::LOOKING) {
                    self.hide_others(server, to_server);
                }
                if analysis.effects.has(REFERRING) {
                    let text = frontend::query(cut.body(input));
                    let alone = analysis.statements == 1 && cut.is_whole();
                    let dropped = if alone { self.deallocate(text, server, to_server, to_client) } else { None };
                    let alone = !server.pipeline.batch_of_client;
                    let fare = dropped.or_else(|| self.lend_to_query(shared, text, server, to_server));
                    if let Some(fare) = fare {
                        if matches!(fare, Fare::Wait(_)) {
                            self.analysed = Some(analysis);
                            self.waits_with_loans = alone && self.has_loans();
                            self.unmark(self.marks.saturating_sub(marks));
                        }
                        return Ok(fare);
                    }
                    // No Sync of ours can follow it at once.
                    if analysis.copies && self.has_loans() && server.will_settle() {
                        self.analysed = Some(analysis);
                        self.waits_with_loans = alone;
                        self.unmark(self.marks.saturating_sub(marks));
                        return Ok(wait_for_quiet(to_server));
                    }
                    self.waits_with_loans = false;
                }
                self.will_run(analysis.effects, cut.body(input), server);
                let mut owed = Owed::forward(Kind::Query { commits: analysis.commits });
                // A simple query drops the unnamed statement, wherever it was made; unless it is skipped, and with it what
                // would have made or dropped one before it.
                if self.unnamed.is_some() || server.unnamed.is_some() || self.unnamed_pending.0 > 0 {
                    owed = owed.with(self.unnamed_dropped(server));
                }
                self.batch = self.batch.wrapping_add(1);
                server.pipeline.push(owed);
                to_server.pass(cut.range());
                self.pass_rest(cut);
                // Behind a COPY that waits for data nothing but data may be sent.
                if analysis.effects.has(Effects::RESET) && !(analysis.copies && analysis.statements > 1) {
                    self.restore_startup(concerns_identity(cut.body(input)), server, to_server);
                }
                if self.lending.is_some() {
                    match analysis.copies {
                        false => self.give_back(server, to_server),
                        // It keeps the name, and with it the client.
                        true => server.soil(Effects::PREPARE),
                    }
                }
                if self.marks > 0 && !analysis.copies {
                    self.send_marks(server, to_server);
                }
            }
            FrontendTag::Parse => return Ok(self.parse(shared, input, cut, server, to_server, to_client)),
            FrontendTag::Bind => return self.bind(shared, input, cut, server, to_server),
            FrontendTag::Describe => return Ok(self.describe(shared, input, cut, server, to_server)),
            FrontendTag::Execute => {
                if !cut.body(input).ends_with(&[0, 0, 0, 0]) {
                    self.limited_batch = Some(self.batch);
                }
                let mut owed = Owed::forward(Kind::Execute { commits: self.bound_commits });
                if self.lending.is_some() {
                    let portal = frontend::query(cut.body(input));
                    match self.runs_reference(shared, portal, server, to_server) {
                        Ok(None) => {}
                        Ok(Some(note)) => owed = owed.with(note),
                        Err(fare) => return Ok(fare),
                    }
                }
                server.pipeline.push(owed);
                to_server.pass(cut.range());
            }
            FrontendTag::Close => return Ok(self.close(input, cut, server, to_server, to_client)),
            FrontendTag::FunctionCall => {
                server.soil(Effects::UNKNOWN);
                self.note_notify();
                server.pipeline.push(Owed::forward(Kind::Function));
                to_server.pass(cut.range());
                self.pass_rest(cut);
            }
            FrontendTag::Sync => {
                if let Copy::In { stray_syncs, ended: false } = &mut server.pipeline.copy {
                    *stray_syncs += 1;
                } else {
                    server.pipeline.push(Owed::forward(Kind::Sync));
                    server.pipeline.skipping = false;
                }
                self.skipping = false;
                self.batch = self.batch.wrapping_add(1);
                to_server.pass(cut.range());
                if let Some(identity) = self.resets.take().filter(|_| server.pipeline.copy == Copy::None) {
                    self.restore_startup(identity, server, to_server);
                }
                if self.lending.is_some() {
                    self.give_back(server, to_server);
                }
                if self.marks > 0 && server.pipeline.copy == Copy::None {
                    self.send_marks(server, to_server);
                }
            }
            FrontendTag::Flush => {
                // One with a body is malformed, and fails as any other message of a batch does.
                if cut.len > HEADER && !server.in_copy_in() {
                    server.pipeline.push(Owed::forward(Kind::Parse));
                }
                to_server.pass(cut.range());
            }
            FrontendTag::CopyData => {
                to_server.pass(cut.range());
                self.pass_rest(cut);
            }
            FrontendTag::CopyDone | FrontendTag::CopyFail => {
                if let Copy::In { ended, .. } = &mut server.pipeline.copy {
                    *ended = true;
                }
                if server.pipeline.copy != Copy::Both {
                    server.pipeline.push(Owed::forward(Kind::CopyEnd));
                    server.skip_idle_markers();
                }
                to_server.pass(cut.range());
            }
            // The same for a goodbye, and for a password that nobody has asked for.
            FrontendTag::Terminate | FrontendTag::Password if server.will_settle() => {
                return Ok(wait_for_quiet(to_server));
            }
            FrontendTag::Terminate => return Ok(Fare::Wait(Next::End)),
            FrontendTag::Password => {
                return Err(Violation::Client(frame::FrameError::Type(FrontendTag::Password.byte())));
            }
        }
        Ok(Fare::Done)
    }

    fn parse(
        &mut self,
        shared: &Interners,
        input: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
        to_client: &mut Vec<u8>,
    ) -> Fare {
        let body = cut.body(input);
        let parsed = if cut.is_whole() { frontend::parse(body).ok() } else { None };
        let Some(parse) = parsed else {
            // Too long to keep, or malformed. An unnamed one passes; the text cannot be made again elsewhere, which only
            // matters if it is bound in a later batch. A named one passes under the client's own name.
            let unnamed = body.first() == Some(&0);
            server.soil(if unnamed { Effects::UNKNOWN } else { Effects::PREPARE });
            let mut owed = Owed::forward(Kind::Parse);
            if unnamed {
                owed.note = Some(self.unnamed_sent(None, Analysis::UNKNOWN, false, server));
            }
            server.pipeline.push(owed);
            to_server.pass(cut.range());
            self.pass_rest(cut);
            return Fare::Done;
        };
        if parse.name.is_empty() {
            // Drivers that do not name their statements say the same again and again.
            let (text, analysis) = match self.unnamed.as_deref() {
                Some(Unnamed { text: Some(text), analysis, standard_strings, .. })
                    if **text == body[1..] && *standard_strings == self.standard_strings =>
                {
                    (Arc::clone(text), *analysis)
                }
                Some(_) | None => (Arc::from(&body[1..]), sql::analyse(parse.query, self.standard_strings)),
            };
            // Once a batch has begun, the server cannot be asked.
            let begins = !server.pipeline.batch_open;
            if analysis.effects.has(LISTENING) && begins && self.waits_for_channels(analysis.effects, server) {
                return wait_for_quiet(to_server);
            }
            // What it returns, and whether it can be run at all, is decided now.
            if analysis.effects.has(Effects::EXECUTE)
                && let Some(fare) = self.lend(shared, parse.query, &[Verb::Execute], server, to_server)
            {
                return fare;
            }
            let blind = analysis.effects.has(Effects::EXECUTE) && !self.knows_what_it_executes(parse.query);
            let before = self.unnamed_sent(Some(text), analysis, blind, server);
            server.pipeline.push(Owed { note: Some(before), ..Owed::forward(Kind::Parse) });
            to_server.pass(cut.range());
            return Fare::Done;
        }
        // What its text means is known when the server has said what is set there.
        if server.is_asking() && server.will_settle() {
            return wait_for_quiet(to_server);
        }
        let existing = match self.prepared.look_up(parse.name, self.batch) {
            Lookup::Unknown => None,
            // Whether it exists is known when nothing is on its way.
            Lookup::Known(..) | Lookup::Undecided if server.will_settle() => return wait_for_quiet(to_server),
            Lookup::Known(name, _) => Some(Arc::clone(name)),
            Lookup::Undecided => None,
        };
        if let Some(name) = existing {
            // PostgreSQL refuses a name that is taken, but only after it has looked at the text: let the server do both.
            server.take_name(to_server);
            server.pipeline.push(Owed::forward(Kind::Parse).naming(&name));
            reply::parse(to_server.edit(), Own::Taken.name().as_bytes(), parse.query, parse.types);
            return Fare::Done;
        }
        // What is the same but for the trace it is run in is one statement.
        let query = sql::without_trace(parse.query, self.standard_strings).unwrap_or(parse.query);
        let parse = frontend::Parse { query, ..parse };
        let analyse = || sql::analyse(parse.query, self.standard_strings);
        let mut statement = if server.is_unsettled_for(parse.query) {
            shared.statements.private(parse.query, parse.types, analyse())
        } else {
            shared.statements.intern(parse.query, parse.types, &self.settings, analyse)
        };
        if statement.analysis.effects.has(Effects::EXECUTE) {
            // In another session the name that it has in it stands for something else.
            statement = shared.statements.private(parse.query, parse.types, statement.analysis);
            if let Some(fare) = self.lend(shared, parse.query, &[Verb::Execute], server, to_server) {
                return fare;
            }
        }
        if self.sql_prepared.is_some() {
            // An earlier batch may yet fail, or have dropped that name.
            if !server.pipeline.surely_accepts() && server.will_settle() {
                return wait_for_quiet(to_server);
            }
            if server.pipeline.surely_accepts() {
                Self::try_name(&parse, server, to_server);
            }
        }
        self.counts.client_parses += 1;
        let name = self.prepared.begin(parse.name, Some(Arc::clone(&statement)), self.batch);
        let presence = server.prepared.touch(statement.id, self.batch);
        // PostgreSQL itself has to parse where that shows: inside a failed transaction it refuses to, and behind a portal
        // that was run in part it makes what that has written visible (CommandCounterIncrement in exec_parse_message).
        let shows = !server.pipeline.surely_accepts() || self.limited_batch == Some(self.batch);
        if presence != Presence::Held || shows {
            if presence != Presence::Missing {
                server.drop_statement(&statement, self.batch, to_server);
            }
            server.make_room(self.batch, to_server);
            reply::parse(to_server.edit(), statement.name.as_bytes(), parse.query, parse.types);
            server.parses += 1;
            let sent = Some(server.prepared.parse(&statement, self.batch));
            let note = Note::Parsed { name: Some(name), statement, sent };
            server.pipeline.push(Owed::forward(Kind::Parse).with(note));
        } else {
            if self.begins_batch(server) {
                self.answered_batch = Some(self.batch);
            }
            let note = Note::Parsed { name: Some(name), statement, sent: None };
            let mut answer = Vec::new();
            reply::message(&mut answer, BackendTag::ParseComplete, |_| {});
            self.answer_ourselves(server, answer, note, to_client);
        }
        Fare::Done
    }

    /// A Parse of the unnamed statement is on its way; gives what to go back to if it is skipped.
    fn unnamed_sent(
        &mut self,
        text: Option<Arc<[u8]>>,
        analysis: Analysis,
        blind: bool,
        server: &mut ServerSide,
    ) -> Box<Note> {
        self.unnamed_count = self.unnamed_count.wrapping_add(1);
        let id = (self.id << 32) | u64::from(self.unnamed_count);
        let (standard_strings, unsettled) = (self.standard_strings, server.is_unsettled());
        let made = Unnamed { id, text, analysis, standard_strings, unsettled, read_by: None, blind };
        self.unnamed_pending = (self.unnamed_pending.0 + 1, self.batch);
        let before = server.unnamed.replace(id);
        match server.spare.take() {
            Some((mut note, mut unnamed)) => {
                *unnamed = made;
                *note = Note::Unnamed { client: self.unnamed.replace(unnamed), server: before };
                note
            }
            None => Box::new(Note::Unnamed { client: self.unnamed.replace(Box::new(made)), server: before }),
        }
    }

    /// A message that drops the unnamed statement is on its way; gives what to go back to if it is skipped.
    fn unnamed_dropped(&mut self, server: &mut ServerSide) -> Note {
        self.unnamed_pending = (self.unnamed_pending.0 + 1, self.batch);
        Note::Unnamed { client: self.unnamed.take(), server: server.unnamed.take() }
    }

    /// Whether the unnamed statement depends on the answer to a message in an earlier batch, which may yet fail.
    fn unnamed_is_undecided(&self, server: &ServerSide) -> bool {
        let undecided = |(pending, batch): (u32, u32)| pending > 0 && batch != self.batch;
        undecided(self.unnamed_pending) || undecided(server.unnamed_pending)
    }

    fn bind(
        &mut self,
        shared: &Interners,
        input: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
    ) -> Result<Fare, Violation> {
        let body = cut.body(input);
        let Ok(bind) = frontend::bind(&body[..body.len().min(WHOLE_FRAME - HEADER)]) else {
            if !cut.is_whole() && cut.end - cut.start < WHOLE_FRAME {
                return Ok(Fare::Wait(Next::Input));
            }
            // Which statement it is for is never found out, and it must not be another client's.
            if cut.len > WHOLE_FRAME {
                return Err(Violation::Client(frame::FrameError::Body("Bind")));
            }
            server.pipeline.push(Owed::forward(Kind::Bind));
            to_server.pass(cut.range());
            self.pass_rest(cut);
            return Ok(Fare::Done);
        };
        let mut whole = None;
        if bind.statement.is_empty() {
            if self.unnamed_is_undecided(server) && server.will_settle() {
                return Ok(wait_for_quiet(to_server));
            }
            let analysis = self.unnamed.as_ref().map_or(Analysis::UNKNOWN, |u| u.analysis);
            if analysis.effects.has(REFERRING)
                && let Some(text) = self.unnamed.as_ref().and_then(|unnamed| unnamed.text.clone())
                && let Some(fare) = self.lend(shared, &text, &EVERY, server, to_server)
            {
                return Ok(fare);
            }
            if let Some(needed) = self.unnamed_miscounted(body, server) {
                // Nobody's: whoever binds the unnamed statement next brings its own.
                server.unnamed = Some(super::server_frames::NOBODY);
                server.unnamed_pending = (server.unnamed_pending.0 + 1, self.batch);
                reply::parse(to_server.edit(), b"", b"", &texts(needed));
                server.pipeline.push(Owed::swallow(Kind::Parse).with(Note::UnnamedMade));
                server.pipeline.push(Owed::forward(Kind::Bind));
                to_server.pass(cut.range());
                self.pass_rest(cut);
                return Ok(Fare::Done);
            }
            self.ensure_unnamed(server, to_server);
            if analysis.effects.has(Effects::LOOKING) {
                self.hide_others(server, to_server);
            }
            // Where there is no statement the Bind fails.
            if analysis.commits
                && self.unnamed.is_some()
                && let Some(fare) = self.commits_a_listen(server, to_server)
            {
                return Ok(fare);
            }
            if let Some(fare) = self.concerns_sequences(analysis.effects, server, to_server) {
                return Ok(fare);
            }
            let wanted = !analysis.effects.is_none() || self.channels.is_some();
            let text = self.unnamed.as_ref().and_then(|u| u.text.clone().filter(|_| wanted));
            if analysis.effects.has(LISTENING)
                && let Some(fare) =
                    self.concerns_channels(analysis.effects, text.as_deref().unwrap_or_default(), server, to_server)
            {
                return Ok(fare);
            }
            self.bound(analysis, text.as_deref().unwrap_or_default(), body, server);
            whole = self.reset_by_null(analysis.effects, text.as_deref().unwrap_or_default(), cut, body);
            if self.lending.is_some() || analysis.effects.has(REFERRING) {
                self.note_portal(bind.portal, analysis.effects, text.as_deref().unwrap_or_default());
            }
        } else {
            match self.prepared.look_up(bind.statement, self.batch) {
                Lookup::Known(name, statement) => {
                    let (name, statement) = (Arc::clone(name), Arc::clone(statement));
                    let begins = self.begins_batch(server);
                    let owed = Owed::forward(Kind::Bind).naming(&name);
                    if statement.analysis.effects.has(REFERRING)
                        && let Some(fare) = self.lend(shared, &statement.query, &EVERY, server, to_server)
                    {
                        return Ok(fare);
                    }
                    if statement.analysis.commits
                        && let Some(fare) = self.commits_a_listen(server, to_server)
                    {
                        return Ok(fare);
                    }
                    let Some(statement) = self.current(shared, &name, statement, server) else {
                        return Ok(wait_for_quiet(to_server));
                    };
                    let settings = &self.settings;
                    let instead = |missing: &Statement| {
                        let needed = miscounted(&missing.query, &missing.types, frontend::bind_count(body))?;
                        Some(stand_in(shared, &texts(needed), settings))
                    };
                    let Some(statement) = server.ensure_prepared(statement, self.batch, to_server, instead) else {
                        return Ok(wait_for_quiet(to_server));
                    };
                    if let Some(fare) = self.concerns_sequences(statement.analysis.effects, server, to_server) {
                        return Ok(fare);
                    }
                    if statement.analysis.effects.has(LISTENING)
                        && let Some(fare) =
                            self.concerns_channels(statement.analysis.effects, &statement.query, server, to_server)
                    {
                        return Ok(fare);
                    }
                    if statement.analysis.effects.has(Effects::LOOKING) {
                        self.hide_others(server, to_server);
                    }
                    let effects = self.effects_of(&statement, server);
                    let analysis = Analysis { effects, ..statement.analysis };
                    self.bound(analysis, &statement.query, body, server);
                    if self.lending.is_some() || effects.has(REFERRING) {
                        self.note_portal(bind.portal, effects, &statement.query);
                    }
                    if begins {
                        self.keep(&input[cut.start..], server);
                    }
                    server.pipeline.push(owed);
                    if let Some(whole) = self.reset_by_null(effects, &statement.query, cut, body) {
                        write_bind(bind.portal, statement.name.as_bytes(), &whole, to_server);
                        return Ok(Fare::Done);
                    }
                    rename_bind(cut, bind, &statement.name, to_server);
                    to_server.pass(cut.start + HEADER + bind.names_len..cut.end);
                    self.pass_rest(cut);
                    return Ok(Fare::Done);
                }
                Lookup::Undecided if server.will_settle() => return Ok(wait_for_quiet(to_server)),
                Lookup::Undecided | Lookup::Unknown => {}
            }
        }
        if is_ours(bind.statement) {
            rename_bind(cut, bind, PREFIX, to_server);
            server.pipeline.push(Owed::forward(Kind::Bind).naming(&bind.statement.into()));
            to_server.pass(cut.start + HEADER + bind.names_len..cut.end);
            self.pass_rest(cut);
            return Ok(Fare::Done);
        }
        // An unknown name goes as it is: no server has a statement of that name, and says so in its own words.
        server.pipeline.push(Owed::forward(Kind::Bind));
        if let Some(whole) = whole {
            write_bind(bind.portal, bind.statement, &whole, to_server);
            return Ok(Fare::Done);
        }
        to_server.pass(cut.range());
        self.pass_rest(cut);
        Ok(Fare::Done)
    }

    /// What follows the names in a Bind that takes settings back to what the session began with, by a null as their value: with
    /// these values, because the server does not know them.
    #[inline]
    fn reset_by_null(&self, effects: Effects, text: &[u8], cut: Cut, body: &[u8]) -> Option<Vec<u8>> {
        const SETTING: Effects = Effects::SETTING.and(Effects::LOCAL).and(Effects::LOCAL_NAMED);
        if !effects.has(SETTING) || self.startup.is_empty() || !cut.is_whole() {
            return None;
        }
        self.values_for_nulls(text, body)
    }

    #[cold]
    fn values_for_nulls(&self, text: &[u8], body: &[u8]) -> Option<Vec<u8>> {
        let assigned = assigned(frontend::query(text), self.standard_strings);
        if assigned.is_empty() {
            return None;
        }
        let values: Vec<_> = frontend::bind_values(body).collect();
        frontend::bind_without_nulls(body, |number| {
            let name = match assigned.iter().find(|assigned| assigned.value == number)?.name {
                Name::Is(name) => name,
                Name::Parameter(number) => values.get(usize::from(number.checked_sub(1)?))?,
            };
            let (_, value) = self.startup.iter().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name))?;
            Some(value.as_bytes())
        })
    }

    /// What is bound will be run: what it may leave behind counts from here.
    #[inline]
    fn bound(&mut self, analysis: Analysis, text: &[u8], body: &[u8], server: &mut ServerSide) {
        self.counts.binds += 1;
        self.answered_batch = None;
        if analysis.effects.has(Effects::LOCAL_NAMED) && sql::reads_constants(frontend::bind_values(body)) {
            server.soil(Effects::LOCAL);
        }
        if self.marks > 0 && !analysis.effects.has(LISTENS) {
            self.note_unlisten(text);
        }
        self.will_run(analysis.effects, text, server);
        // What it calls has been noted by now.
        if analysis.effects.has(NAMING) || server.dirty.has(NAMING) {
            server.note_values(body);
        }
        if analysis.effects.has(Effects::RESET) {
            self.resets = Some(self.resets == Some(true) || concerns_identity(text));
        }
        self.bound_commits = analysis.commits;
    }

    /// A statement is on its way: what it may leave behind counts from here. Its text may have a terminator, and
    /// something else behind that.
    #[inline]
    pub(super) fn will_run(&mut self, effects: Effects, text: &[u8], server: &mut ServerSide) {
        if effects.has(NAMING.and(Effects::PREPARE).and(Effects::EXECUTE)) {
            self.will_run_with_names(effects, text, server);
        }
        if self.channels.is_some() {
            self.may_notify(effects, text);
        }
        if effects.has(Effects::CALLING) {
            self.will_call(text, server);
        }
        server.soil(effects);
    }

    /// The same for one that calls functions. True if those leave nothing behind.
    #[cold]
    fn will_call(&self, text: &[u8], server: &mut ServerSide) -> bool {
        let calls = calls(frontend::query(text), self.standard_strings);
        let verdict = server.functions.judge(&calls);
        for name in verdict.missing {
            server.inquire(name);
        }
        for name in verdict.settings {
            server.too_many_names |= !sql::custom_name(name.as_bytes(), &mut server.custom_names);
        }
        // The caller may say which.
        if verdict.effects.has(NAMING) {
            server.note_names(frontend::query(text), self.standard_strings);
        }
        server.soil(verdict.effects);
        verdict.effects.is_none()
    }

    /// What a statement that others share may leave behind; what it calls is looked at once.
    #[inline]
    fn effects_of(&self, statement: &Statement, server: &mut ServerSide) -> Effects {
        let effects = statement.analysis.effects;
        if !effects.has(Effects::CALLING) {
            return effects;
        }
        let version = server.functions.version();
        if !statement.is_harmless(version) && self.will_call(&statement.query, server) {
            statement.note_harmless(version);
        }
        effects.without(Effects::CALLING)
    }

    /// A statement is about to be sent that moves sequences or asks where they stand.
    ///
    /// Where they stand in a session nobody can ask, so a client that has moved some keeps its server for as long as
    /// nobody else needs it. For one that has only inserted rows that is done once it has shown that it asks.
    pub(super) fn concerns_sequences(
        &mut self,
        effects: Effects,
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
    ) -> Option<Fare> {
        if !effects.has(Effects::ASKING.and(Effects::SEQUENCE).and(Effects::INSERTING)) {
            return None;
        }
        if effects.has(Effects::ASKING) {
            self.asks_sequences = true;
            // What makes it forget is skipped behind an error, and what is skipped has to be sent again.
            let undecided = server.forgets_in.is_some_and(|batch| batch != self.batch);
            let unsure = undecided || !server.pipeline.surely_accepts() || server.may_forget_names();
            if (server.sequences_of_another || undecided) && unsure && server.will_settle() {
                return Some(wait_for_quiet(to_server));
            }
            if server.sequences_of_another && server.pipeline.surely_accepts() {
                // An honest error instead of somebody else's number.
                server.run_in_front(Own::Forget, "discard sequences", Some(Note::Forgot), to_server);
                server.sequences_of_another = false;
                server.forgets_in = Some(self.batch);
            }
        } else if effects.has(Effects::SEQUENCE) || self.asks_sequences {
            // What it asks for from now on is its own.
            server.sequences_of_another = false;
            server.dirty = server.dirty.and(Effects::SEQUENCE);
        }
        None
    }

    /// The same for one that may set settings which have to be asked for by name.
    fn will_run_with_names(&mut self, effects: Effects, text: &[u8], server: &mut ServerSide) {
        let text = frontend::query(text);
        if effects.has(NAMING) {
            server.note_names(text, self.standard_strings);
        }
        if effects.has(Effects::UNKNOWN) {
            self.note_notify();
        }
        if effects.has(Effects::PREPARE) {
            let prepared = self.sql_prepared.get_or_insert_default();
            prepared.effects = prepared.effects.and(effects.without(Effects::PREPARE.and(Effects::CALLING)));
            if effects.has(Effects::CALLING) {
                prepared.effects = prepared.effects.and(Effects::UNKNOWN);
            }
            if effects.has(NAMING) {
                server.too_many_names |= !sql::custom_names(text, self.standard_strings, &mut prepared.names);
            }
        }
        if effects.has(Effects::EXECUTE)
            && let Some(prepared) = &self.sql_prepared
        {
            server.soil(prepared.effects);
            for name in &prepared.names {
                server.too_many_names |= !sql::custom_name(name.as_bytes(), &mut server.custom_names);
            }
        }
    }

    /// A statement that listens, or no longer does, or notifies, is about to be sent, unless something else comes first.
    #[cold]
    fn concerns_channels(
        &mut self,
        effects: Effects,
        text: &[u8],
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
    ) -> Option<Fare> {
        // The answer that is due says what was committed before this, and must not be taken for what comes of it; and who
        // notifies itself must not hear what it does not listen to any more.
        if self.waits_for_channels(effects, server) {
            return Some(wait_for_quiet(to_server));
        }
        self.learn_channels(server);
        if self.wants_channels(effects, text) {
            return Some(Fare::Wait(Next::Channels));
        }
        if effects.has(Effects::UNLISTEN) {
            self.note_unlisten(text);
        }
        if effects.has(Effects::NOTIFY) {
            self.note_notify();
        }
        None
    }

    /// A COMMIT is about to be sent, unless something else comes first: it may be that of a LISTEN.
    #[inline]
    fn commits_a_listen(&mut self, server: &ServerSide, to_server: &mut Outbound<'_>) -> Option<Fare> {
        if !self.listens_tentatively() {
            return None;
        }
        // Which transaction is to be committed is known when all before it is answered.
        if server.will_settle() && self.tx.is_open() {
            return Some(wait_for_quiet(to_server));
        }
        self.must_catch_up().then_some(Fare::Wait(Next::Channels))
    }

    /// Whether it has yet to be found out what the client listens to.
    fn waits_for_channels(&self, effects: Effects, server: &ServerSide) -> bool {
        let due = match effects.has(LISTENS) {
            // What was sent to it before is not to be heard.
            true => effects.has(Effects::LISTEN) || server.is_asking(),
            false => server.asked.has(LISTENS) || (server.dirty.has(LISTENS) && server.pipeline.tx == TxStatus::Idle),
        };
        due && server.will_settle()
    }

    /// A Query that drops a statement which the client has prepared by the protocol. None if it does something else.
    fn deallocate(
        &mut self,
        text: &[u8],
        server: &ServerSide,
        to_server: &mut Outbound<'_>,
        to_client: &mut Vec<u8>,
    ) -> Option<Fare> {
        let reference = sql::reference(text, self.standard_strings).filter(|found| found.verb == Verb::Deallocate)?;
        let name = match self.prepared.look_up(&reference.name, self.batch) {
            Lookup::Known(name, _) => Arc::clone(name),
            Lookup::Undecided if server.will_settle() => return Some(wait_for_quiet(to_server)),
            Lookup::Undecided | Lookup::Unknown => return None,
        };
        if server.will_settle() {
            return Some(wait_for_quiet(to_server));
        }
        // A failed transaction refuses it, and the end of a batch is for the server to make.
        if server.pipeline.tx == TxStatus::Failed || server.pipeline.batch_open {
            return None;
        }
        // The server keeps it for others.
        self.prepared.remove(&name);
        self.unnamed = None;
        self.batch = self.batch.wrapping_add(1);
        self.completed += 1;
        reply::command_complete(to_client, "DEALLOCATE");
        reply::ready(to_client, self.tx);
        Some(Fare::Done)
    }

    /// The client is about to look at the prepared statements of its session: those of others and of ours are none of them.
    #[cold]
    fn hide_others(&mut self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        for own in server.prepared.owned().collect::<Vec<_>>() {
            reply::close_statement(to_server.edit(), own.name().as_bytes());
            server.pipeline.push(Owed::swallow(Kind::Close).with(Note::OwnGone(own)));
            server.prepared.own &= !own.bit();
        }
        for statement in server.prepared.held().iter().filter(|statement| !self.prepared.uses(statement.id)) {
            server.drop_statement(statement, self.batch, to_server);
        }
    }

    /// The statement that a client's name stands for, as it is to be prepared on this server now; none if that is known
    /// only when the server has answered.
    ///
    /// Its text may mean something else by now than it did when it was prepared, because the client has changed its
    /// settings. PostgreSQL then looks at it anew, and so do we: under another name, so that who has not changed them keeps
    /// what it has. What was read when it was prepared is read the same again; see `reading`.
    #[inline]
    pub(super) fn current(
        &mut self,
        shared: &Interners,
        name: &Arc<[u8]>,
        statement: Arc<Statement>,
        server: &ServerSide,
    ) -> Option<Arc<Statement>> {
        let unsettled = server.is_unsettled_for(&statement.query);
        if statement.is_meant_by(&self.settings) && !unsettled {
            return Some(statement);
        }
        // What was read once is not read again, where it is still there.
        if server.prepared.expects(statement.id) && (unsettled || statement.is_private()) {
            return Some(statement);
        }
        if server.is_asking() && server.will_settle() {
            return None;
        }
        let analysis = statement.analysis;
        let for_now = unsettled && server.is_unsettled_for_now();
        if for_now && let Some((_, copy)) = self.copies.iter().find(|(of, _)| *of == statement.id) {
            return Some(Arc::clone(copy));
        }
        let now = if unsettled {
            shared.statements.private(&statement.query, &statement.types, analysis)
        } else {
            let reading = statement.reading_under(&self.settings);
            let (query, types) = (&statement.query, &statement.types);
            shared.statements.intern_read_by(query, types, &self.settings, &reading, || analysis)
        };
        // Where only this transaction has other settings, what was meant before counts again behind it.
        if for_now {
            self.copies.push((statement.id, Arc::clone(&now)));
        } else {
            self.prepared.replace(name, &now);
        }
        Some(now)
    }

    /// Sees to it that the server's unnamed statement is this client's, or none if the client has none.
    fn ensure_unnamed(&mut self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let mine = self.unnamed.as_deref();
        if server.unnamed == mine.map(|u| u.id) {
            return;
        }
        server.unnamed = mine.map(|u| u.id);
        server.unnamed_pending = (server.unnamed_pending.0 + 1, self.batch);
        match mine.and_then(|u| u.text.as_deref()) {
            Some(text) => {
                let can = server.can_read_as_then();
                let reading = match mine.and_then(|u| u.read_by.as_ref()).filter(|_| can) {
                    Some(then) => reading::unnamed_changes(text, then, &self.settings),
                    None => Vec::new(),
                };
                server.set_reading(&reading, true, Fate::Swallow, to_server);
                reply::request(to_server.edit(), FrontendTag::Parse, |body| {
                    body.push(0);
                    body.extend(text);
                });
                server.pipeline.push(Owed::swallow(Kind::Parse).with(Note::UnnamedMade));
                server.set_reading(&reading, false, Fate::Swallow, to_server);
            }
            None => {
                reply::close_statement(to_server.edit(), b"");
                server.pipeline.push(Owed::swallow(Kind::Close).with(Note::UnnamedMade));
            }
        }
    }

    /// How many parameters the unnamed statement has, if a Bind for it has another number of values, and the server's is another
    /// client's.
    fn unnamed_miscounted(&self, body: &[u8], server: &ServerSide) -> Option<u16> {
        let unnamed = self.unnamed.as_deref().filter(|unnamed| server.unnamed != Some(unnamed.id))?;
        let text = unnamed.text.as_deref()?;
        let query = frontend::query(text);
        miscounted(query, text.get(query.len() + 1..)?, frontend::bind_count(body))
    }

    fn describe(
        &mut self,
        shared: &Interners,
        input: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
    ) -> Fare {
        match frontend::named(cut.body(input)) {
            Ok(Named::Statement(b"")) => {
                if self.unnamed_is_undecided(server) && server.will_settle() {
                    return wait_for_quiet(to_server);
                }
                let executes = |unnamed: &Unnamed| unnamed.analysis.effects.has(Effects::EXECUTE) && !unnamed.blind;
                let unnamed = self.unnamed.as_ref().filter(|unnamed| executes(unnamed));
                if let Some(text) = unnamed.and_then(|unnamed| unnamed.text.clone())
                    && let Some(fare) = self.lend(shared, &text, &[Verb::Execute], server, to_server)
                {
                    return fare;
                }
                self.ensure_unnamed(server, to_server);
                server.pipeline.push(Owed::forward(Kind::DescribeStatement));
                to_server.pass(cut.range());
            }
            Ok(Named::Statement(name)) => {
                let mut owed = Owed::forward(Kind::DescribeStatement);
                match self.prepared.look_up(name, self.batch) {
                    Lookup::Known(name, statement) => {
                        let begins = self.begins_batch(server);
                        let name = Arc::clone(name);
                        owed = owed.naming(&name);
                        let statement = Arc::clone(statement);
                        if statement.analysis.effects.has(Effects::EXECUTE)
                            && let Some(fare) = self.lend(shared, &statement.query, &[Verb::Execute], server, to_server)
                        {
                            return fare;
                        }
                        let Some(statement) = self.current(shared, &name, statement, server) else {
                            return wait_for_quiet(to_server);
                        };
                        // A failed transaction takes no text any more, but describes a statement that returns nothing.
                        let (refuses, settings) = (server.pipeline.surely_refuses(), &self.settings);
                        let instead = |missing: &Statement| {
                            let is_bare = refuses && sql::prepared::is_bare(&missing.query);
                            is_bare.then(|| stand_in(shared, &missing.types, settings))
                        };
                        let Some(statement) = server.ensure_prepared(statement, self.batch, to_server, instead) else {
                            return wait_for_quiet(to_server);
                        };
                        if begins {
                            self.keep(&input[cut.start..], server);
                        }
                        self.prepared.describe(&name);
                        name_statement(FrontendTag::Describe, &statement.name, to_server);
                    }
                    Lookup::Undecided if server.will_settle() => return wait_for_quiet(to_server),
                    Lookup::Undecided | Lookup::Unknown if is_ours(name) => {
                        owed = owed.naming(&name.into());
                        name_statement(FrontendTag::Describe, PREFIX, to_server);
                    }
                    Lookup::Undecided | Lookup::Unknown => to_server.pass(cut.range()),
                }
                server.pipeline.push(owed);
            }
            Ok(Named::Portal(_)) | Err(_) => {
                self.describes_portals = true;
                server.pipeline.push(Owed::forward(Kind::DescribePortal));
                to_server.pass(cut.range());
            }
        }
        Fare::Done
    }

    fn close(
        &mut self,
        input: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
        to_client: &mut Vec<u8>,
    ) -> Fare {
        let mut owed = Owed::forward(Kind::Close);
        if let Ok(Named::Statement(name)) = frontend::named(cut.body(input)) {
            if name.is_empty() {
                owed = owed.with(self.unnamed_dropped(server));
            } else {
                match self.prepared.look_up(name, self.batch) {
                    Lookup::Known(..) => {
                        if self.has_loans() {
                            self.close_lent(name, server, to_server);
                        }
                        // The server keeps it for others.
                        let name = self.prepared.begin(name, None, self.batch);
                        let mut answer = Vec::new();
                        reply::message(&mut answer, BackendTag::CloseComplete, |_| {});
                        self.answer_ourselves(server, answer, Note::Closed { name }, to_client);
                        return Fare::Done;
                    }
                    Lookup::Undecided if server.will_settle() => return wait_for_quiet(to_server),
                    Lookup::Undecided | Lookup::Unknown if is_ours(name) => {
                        name_statement(FrontendTag::Close, PREFIX, to_server);
                        server.pipeline.push(owed);
                        return Fare::Done;
                    }
                    Lookup::Undecided | Lookup::Unknown => {}
                }
            }
        }
        server.pipeline.push(owed);
        to_server.pass(cut.range());
        Fare::Done
    }

    /// An answer of our own: now if nothing is owed before it, else when its turn comes.
    fn answer_ourselves(&mut self, server: &mut ServerSide, bytes: Vec<u8>, note: Note, to_client: &mut Vec<u8>) {
        (server.pipeline.batch_open, server.pipeline.batch_of_client) = (true, true);
        if server.pipeline.owed.is_empty() {
            to_client.extend(bytes);
            match note {
                Note::Parsed { name: Some(name), .. } | Note::Closed { name } => self.prepared.confirm(&name),
                Note::Parsed { name: None, .. }
                | Note::Unnamed { .. }
                | Note::UnnamedMade
                | Note::Dropped { .. }
                | Note::OwnMade(_)
                | Note::OwnGone(_)
                | Note::Forgot
                | Note::Begun
                | Note::Asked
                | Note::Mark(_)
                | Note::Limit
                | Note::Unlistened
                | Note::Lent
                | Note::Tried
                | Note::Restoring
                | Note::Restored
                | Note::Reply(_) => {}
            }
            return;
        }
        server.pipeline.push(Owed::forward(Kind::Own).with(note));
        server.pipeline.push(Owed::forward(Kind::Own).with(Note::Reply(bytes)));
    }

    /// The pooler itself refuses what the client asked for, while no server is attached and its frame comes next.
    ///
    /// `frame` is the client's input from that frame on; its bytes up to the returned count are taken.
    #[allow(clippy::wildcard_enum_match_arm, reason = "all others are answered by the Sync that follows")]
    pub fn refuse(&mut self, report: &Report, input: &[u8], to_client: &mut Vec<u8>) -> Result<usize, Violation> {
        report.write(to_client);
        self.analysed = None;
        self.waits_with_loans = false;
        self.parameters_told = false;
        self.forget_deferred();
        if self.tx != TxStatus::Idle {
            self.orphan = Some(Orphan::default());
            self.tx = TxStatus::Failed;
        }
        let Some(Frame { tag, len }) = frame::frontend(input).map_err(Violation::Client)? else { return Ok(0) };
        let cut = Cut { tag, start: 0, end: input.len().min(len), len };
        match tag {
            FrontendTag::Query | FrontendTag::FunctionCall => reply::ready(to_client, self.tx),
            _ => self.skipping = true,
        }
        self.drop_rest(cut);
        Ok(cut.end)
    }
}

/// Effects of statements that have to do with notifications.
const LISTENING: Effects = LISTENS.and(Effects::NOTIFY);

/// Effects of statements that change what is listened to.
const LISTENS: Effects = Effects::LISTEN.and(Effects::UNLISTEN);

/// Effects of statements that may set settings under names of the client's own making.
const NAMING: Effects = Effects::SETTING.and(Effects::UNKNOWN);

impl ServerSide {
    /// Notes the names in a text that may be such settings.
    fn note_names(&mut self, text: &[u8], standard_strings: bool) {
        self.too_many_names |= !sql::custom_names(text, standard_strings, &mut self.custom_names);
    }

    /// The same for the parameters in the body of a Bind.
    fn note_values(&mut self, body: &[u8]) {
        for value in frontend::bind_values(body) {
            self.too_many_names |= !sql::custom_name(value, &mut self.custom_names);
        }
    }

    /// Whether something may be on its way that drops all prepared statements: DEALLOCATE ALL, DISCARD ALL.
    #[inline]
    pub(super) fn may_forget_names(&self) -> bool {
        self.dirty.has(Effects::PREPARE.and(Effects::DISCARD))
    }

    /// Whether waiting lets everything that is owed be answered. In a COPY the server waits for the client instead.
    pub(super) fn will_settle(&self) -> bool {
        self.is_busy() && !self.in_copy_in()
    }

    /// Puts a Parse in front if the server does not have the statement: that of the one that is to be there `instead`, if
    /// any. Gives the one that the server then has, or none if that cannot be known yet.
    fn ensure_prepared(
        &mut self,
        mut statement: Arc<Statement>,
        batch: u32,
        to_server: &mut Outbound<'_>,
        instead: impl FnOnce(&Statement) -> Option<Arc<Statement>>,
    ) -> Option<Arc<Statement>> {
        let mut presence = self.prepared.touch(statement.id, batch);
        if presence != Presence::Held
            && let Some(other) = instead(&statement)
        {
            presence = self.prepared.touch(other.id, batch);
            statement = other;
        }
        match presence {
            Presence::Held => return Some(statement),
            Presence::Undecided if self.will_settle() => return None,
            Presence::Undecided | Presence::Missing => {}
        }
        if !statement.reading.is_empty() && !self.pipeline.surely_accepts() && self.will_settle() {
            return None;
        }
        self.make_room(batch, to_server);
        self.prepare(&statement, batch, Fate::Swallow, to_server);
        Some(statement)
    }

    /// Sees to it that there is a statement under the name that stands for those which are taken. What the client has run
    /// may have dropped it; and even a failed transaction takes an empty text.
    fn take_name(&mut self, to_server: &mut Outbound<'_>) {
        let (own, out) = (Own::Taken, to_server.edit());
        reply::close_statement(out, own.name().as_bytes());
        self.pipeline.push(Owed::swallow(Kind::Close));
        reply::parse(out, own.name().as_bytes(), b"", &[0, 0]);
        let owed = Owed::swallow(Kind::Parse);
        // Skipped, both leave what was there.
        self.pipeline.push(if self.prepared.has_own(own) { owed } else { owed.with(Note::OwnMade(own)) });
        self.prepared.own |= own.bit();
    }

    /// Sends the Parse of a statement that the server lacks.
    fn prepare(&mut self, statement: &Arc<Statement>, batch: u32, fate: Fate, to_server: &mut Outbound<'_>) {
        let reads = self.can_read_as_then() && statement.is_meant_by(&self.settings);
        let reading = if reads { &*statement.reading } else { &[] };
        self.set_reading(reading, true, fate, to_server);
        reply::parse(to_server.edit(), statement.name.as_bytes(), &statement.query, &statement.types);
        self.parses += 1;
        let sent = Some(self.prepared.parse(statement, batch));
        let note = Note::Parsed { name: None, statement: Arc::clone(statement), sent };
        self.pipeline.push(Owed { fate, ..Owed::swallow(Kind::Parse) }.with(note));
        self.set_reading(reading, false, fate, to_server);
    }

    /// Closes the statements that were not used for longest, so that one more has room.
    fn make_room(&mut self, batch: u32, to_server: &mut Outbound<'_>) {
        while let Some(surplus) = self.prepared.surplus(self.prepared_limit.saturating_sub(1)) {
            self.drop_statement(&surplus, batch, to_server);
        }
    }

    fn drop_statement(&mut self, statement: &Arc<Statement>, batch: u32, to_server: &mut Outbound<'_>) {
        reply::close_statement(to_server.edit(), statement.name.as_bytes());
        let note = Note::Dropped { statement: Arc::clone(statement), sent: self.prepared.close(statement, batch) };
        self.pipeline.push(Owed::swallow(Kind::Close).with(note));
    }

    /// Markers that nothing will answer go when nothing is in front of them.
    pub(super) fn skip_idle_markers(&mut self) {
        while self.pipeline.copy == Copy::None
            && self.pipeline.owed.front().is_some_and(|owed| owed.kind == Kind::CopyEnd)
        {
            self.pipeline.owed.pop_front();
        }
    }
}

/// A statement that does nothing and has parameters of these types: one that may stand in for another where all that counts
/// are its parameters, and that a server takes whatever has become of the tables, even in a failed transaction.
#[cold]
fn stand_in(shared: &Interners, types: &[u8], settings: &Settings) -> Arc<Statement> {
    shared.statements.intern(b"", types, settings, || sql::analyse(b"", true))
}

/// What comes next can be judged only when everything before it is answered; the Flush makes the server do that.
pub(super) fn wait_for_quiet(to_server: &mut Outbound<'_>) -> Fare {
    reply::request(to_server.edit(), FrontendTag::Flush, |_| {});
    Fare::Wait(Next::Quiet)
}

/// Whether a message begins a request.
fn asks(tag: FrontendTag) -> bool {
    match tag {
        FrontendTag::Query
        | FrontendTag::Parse
        | FrontendTag::Bind
        | FrontendTag::Describe
        | FrontendTag::Execute
        | FrontendTag::Close
        | FrontendTag::FunctionCall
        | FrontendTag::Sync => true,
        FrontendTag::CopyData
        | FrontendTag::CopyDone
        | FrontendTag::CopyFail
        | FrontendTag::Flush
        | FrontendTag::Password
        | FrontendTag::Terminate => false,
    }
}

/// Whether a frame is of use only when all of it is there, and short enough to wait for that.
fn wants_whole(tag: FrontendTag, len: usize) -> bool {
    match tag {
        FrontendTag::CopyData | FrontendTag::FunctionCall => false,
        // Of a longer Bind its names are enough; `bind` waits for them.
        FrontendTag::Query | FrontendTag::Parse | FrontendTag::Bind => len <= WHOLE_FRAME,
        FrontendTag::Close
        | FrontendTag::CopyDone
        | FrontendTag::CopyFail
        | FrontendTag::Describe
        | FrontendTag::Execute
        | FrontendTag::Flush
        | FrontendTag::Password
        | FrontendTag::Sync
        | FrontendTag::Terminate => true,
    }
}

/// Whether a message means a statement by its name: what that stands for must be known.
fn names_statement(tag: FrontendTag, body: &[u8]) -> bool {
    match tag {
        FrontendTag::Parse => body.first() != Some(&0),
        FrontendTag::Describe | FrontendTag::Close => body.first() == Some(&b'S') && body.get(1) != Some(&0),
        FrontendTag::Bind => true,
        FrontendTag::CopyData
        | FrontendTag::CopyDone
        | FrontendTag::CopyFail
        | FrontendTag::Execute
        | FrontendTag::Flush
        | FrontendTag::FunctionCall
        | FrontendTag::Password
        | FrontendTag::Query
        | FrontendTag::Sync
        | FrontendTag::Terminate => false,
    }
}

/// Whether a text that resets something may reset the role.
fn concerns_identity(text: &[u8]) -> bool {
    let text = frontend::query(text).to_ascii_lowercase();
    let has = |word: &[u8]| text.windows(word.len()).any(|window| window == word);
    has(b"role") || has(b"authorization") || has(b"all")
}

/// Whether a client names what only we may name: a statement that others share. The bare prefix, which is sent in place
/// of such a name, is no statement on any server.
pub(super) fn is_ours(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

/// Writes a Describe or Close of the statement of this name on the server.
fn name_statement(tag: FrontendTag, name: &str, to_server: &mut Outbound<'_>) {
    reply::request(to_server.edit(), tag, |body| {
        body.push(b'S');
        body.extend(name.as_bytes());
        body.push(0);
    });
}

/// Writes a Bind of which `rest` follows the names.
#[cold]
fn write_bind(portal: &[u8], statement: &[u8], rest: &[u8], to_server: &mut Outbound<'_>) {
    reply::request(to_server.edit(), FrontendTag::Bind, |body| {
        body.extend([portal, &[0], statement, &[0], rest].concat());
    });
}

/// Writes the beginning of a Bind under the statement's name on the server; the rest of it passes as it is.
fn rename_bind(cut: Cut, bind: frontend::Bind<'_>, name: &str, to_server: &mut Outbound<'_>) {
    let out = to_server.edit();
    out.push(FrontendTag::Bind.byte());
    // At most the client's own length, which was checked, and a name of ours.
    let len = cut.len - 1 - bind.statement.len() + name.len();
    out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bind.portal);
    out.push(0);
    out.extend(name.as_bytes());
    out.push(0);
}
