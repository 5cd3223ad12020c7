//! The server's frames: whom each answers, whether the client gets it, and what it says about the session.

use super::pipeline::{Copy, Fate, Kind, Note, Owed, Pipeline};
use super::prepared::PREFIX;
use super::{Body, Next, Outbound, ServerSide, Session, Taken, Violation, WHOLE_FRAME};
use crate::wire::frame::{self, Frame, FrameError, HEADER};
use crate::wire::{BackendTag, SqlState, TxStatus, backend, reply};

/// An unnamed statement of nobody: one that must be replaced before it is used.
pub(super) const NOBODY: u64 = u64::MAX;

/// The frame at hand.
#[derive(Clone, Copy)]
struct Cut {
    tag: BackendTag,
    start: usize,
    end: usize,
    len: usize,
}

impl Session {
    /// Handles the server's frames in `input`; what the client is to get goes to `to_client`.
    ///
    /// # Errors
    /// [`Violation::Server`] if the bytes are no frames or answer nothing: that server cannot be used any more.
    /// [`Violation::Replay`] if the server refused this client's settings.
    pub fn on_server(
        &mut self,
        input: &[u8],
        server: &mut ServerSide,
        to_client: &mut Outbound<'_>,
    ) -> Result<Taken, Violation> {
        let mut at = 0;
        loop {
            if let Some(body) = &mut server.body {
                let piece = at..input.len().min(at + body.left);
                body.left -= piece.len();
                at = piece.end;
                if body.pass {
                    to_client.pass(piece);
                }
                if body.left > 0 {
                    break;
                }
                server.body = None;
            }
            if server.passes_rows() {
                let run = frame::data_run(&input[at..]);
                if run > 0 {
                    to_client.pass(at..at + run);
                    at += run;
                }
            }
            let Some(Frame { tag, len }) = frame::backend(&input[at..]).map_err(Violation::Server)? else { break };
            let cut = Cut { tag, start: at, end: input.len().min(at + len), len };
            let whole = cut.end - cut.start == len;
            let read = tag == BackendTag::DataRow && server.reads_rows(len);
            if !whole && (read || !streams(tag, len, cut.end - cut.start)) {
                break;
            }
            self.on_frame(input, cut, server, to_client)?;
            at = cut.end;
        }
        if server.pipeline.owed.is_empty() {
            server.prepared.quiet();
        }
        if server.fenced && !to_client.is_empty() {
            self.answer_stands();
        }
        Ok(Taken { bytes: at, next: Next::Input })
    }

    #[inline]
    fn on_frame(
        &mut self,
        input: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_client: &mut Outbound<'_>,
    ) -> Result<(), Violation> {
        let body = &input[cut.start + HEADER..cut.end];
        match cut.tag {
            BackendTag::Notification => {
                let heard = backend::notification(body).is_ok_and(|notification| self.hears(notification.channel));
                forward(cut, !heard, server, to_client);
                Ok(())
            }
            BackendTag::Notice => {
                let pass = server.front_fate() == Fate::Forward;
                server.crashing |= backend::error(body).code == Some(SqlState::CRASH_SHUTDOWN);
                forward(cut, pass, server, to_client);
                Ok(())
            }
            BackendTag::ParameterStatus => self.parameter_status(body, cut, server, to_client),
            BackendTag::Error => self.error(body, cut, server, to_client),
            BackendTag::DataRow
            | BackendTag::CopyData
            | BackendTag::RowDescription
            | BackendTag::ParameterDescription
            | BackendTag::NoData
            | BackendTag::ParseComplete
            | BackendTag::BindComplete
            | BackendTag::CloseComplete
            | BackendTag::CommandComplete
            | BackendTag::EmptyQuery
            | BackendTag::PortalSuspended
            | BackendTag::FunctionResult
            | BackendTag::CopyIn
            | BackendTag::CopyOut
            | BackendTag::CopyBoth
            | BackendTag::CopyDone
            | BackendTag::Ready => self.answer(body, cut, server, to_client),
            BackendTag::Authentication | BackendTag::BackendKeyData | BackendTag::NegotiateVersion => {
                Err(unexpected("login"))
            }
        }
    }

    /// A frame that answers the front of the queue.
    #[inline]
    #[allow(clippy::wildcard_enum_match_arm, reason = "only these change what a server may do next")]
    fn answer(
        &mut self,
        body: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_client: &mut Outbound<'_>,
    ) -> Result<(), Violation> {
        let pipeline = &mut server.pipeline;
        if pipeline.copy == Copy::Both {
            return self.answer_dedicated(body, cut, server, to_client);
        }
        let Some(front) = pipeline.owed.front() else { return Err(unexpected("answer to nothing")) };
        let Some(last) = Pipeline::answers(front.kind, cut.tag) else { return Err(unexpected("answer")) };
        let pass = front.fate == Fate::Forward;
        match cut.tag {
            BackendTag::Ready => {
                let status = backend::ready(body).map_err(Violation::Server)?;
                server.pipeline.tx = status;
                server.pipeline.copy = Copy::None;
                if pass {
                    if std::mem::take(&mut server.pipeline.failed) && status == TxStatus::Idle {
                        self.void_marks(server);
                    }
                    self.tx = status;
                    self.completed += 1;
                    server.note_told();
                    if self.lending.is_some() {
                        self.ends_deallocating(server);
                    }
                    if server.pipeline.restores_next() {
                        self.keep_ready();
                        forward(cut, false, server, to_client);
                        self.pop_answered(server, to_client);
                        return Ok(());
                    }
                    if self.channels.is_some() && self.ready_waits(server, to_client) {
                        forward(cut, false, server, to_client);
                        self.pop_answered(server, to_client);
                        return Ok(());
                    }
                } else if self.restoring.is_some()
                    && self.restored(server, to_client)
                    && !self.ready_waits(server, to_client)
                {
                    reply::ready(to_client.edit(), self.tx);
                }
            }
            BackendTag::CommandComplete => {
                let tag = backend::command_tag(body);
                if let Some(outcome) = self.outcome.as_mut().filter(|_| pass) {
                    outcome.rows += backend::rows_of_tag(tag);
                }
                if pass && tag == b"COMMIT" {
                    self.has_committed();
                }
                self.command_complete(tag, server);
            }
            BackendTag::DataRow if !pass => {
                let whole = cut.end - cut.start == cut.len;
                if !server.limit_row(body)
                    && let Some(findings) = &mut server.findings
                {
                    findings.row(whole.then_some(body));
                }
            }
            BackendTag::ParameterDescription if std::mem::take(&mut self.parameters_told) => {
                forward(cut, false, server, to_client);
                return Ok(());
            }
            BackendTag::CopyIn => server.pipeline.copy_in_begins(),
            BackendTag::CopyOut => server.pipeline.copy = Copy::Out,
            // From here on nothing is counted: whatever comes, this connection serves nobody else.
            BackendTag::CopyBoth => (server.pipeline.copy, server.pipeline.ambiguous) = (Copy::Both, true),
            _ => {}
        }
        forward(cut, pass, server, to_client);
        if last {
            self.pop_answered(server, to_client);
        }
        Ok(())
    }

    /// Whether the client's ReadyForQuery has to wait for notifications. If not, what was kept with it goes before it.
    fn ready_waits(&mut self, server: &ServerSide, to_client: &mut Outbound<'_>) -> bool {
        if self.hold_ready(server.pipeline.owes_client_only_this()) {
            return true;
        }
        let mut reported = self.take_reported();
        if !reported.is_empty() {
            to_client.edit().append(&mut reported);
        }
        false
    }

    /// Takes off the front entry, now answered, and everything behind it that needs no answer.
    fn pop_answered(&mut self, server: &mut ServerSide, to_client: &mut Outbound<'_>) {
        if let Some(Owed { note: Some(mut note), .. }) = server.pipeline.owed.pop_front() {
            if let Note::Unnamed { client, .. } = &mut *note {
                self.unnamed_pending.0 = self.unnamed_pending.0.saturating_sub(1);
                if let Some(mut unnamed) = client.take() {
                    unnamed.text = None;
                    server.spare = Some((note, unnamed));
                }
            } else {
                self.confirm(*note, server, to_client);
            }
        }
        loop {
            server.skip_idle_markers();
            match server.pipeline.owed.front() {
                Some(Owed { kind: Kind::Own, .. }) => {
                    if let Some(Owed { note: Some(note), .. }) = server.pipeline.owed.pop_front() {
                        self.confirm(*note, server, to_client);
                    }
                }
                _ => return,
            }
        }
    }

    /// What an entry's success means.
    fn confirm(&mut self, note: Note, server: &mut ServerSide, to_client: &mut Outbound<'_>) {
        match note {
            Note::Parsed { name, statement, sent } => {
                if let Some(sent) = sent {
                    statement.prove();
                    server.prepared.settle(statement.id, sent, true);
                }
                if let Some(name) = name {
                    self.prepared.confirm(&name);
                }
            }
            Note::Unnamed { .. } => self.unnamed_pending.0 = self.unnamed_pending.0.saturating_sub(1),
            Note::UnnamedMade => server.unnamed_pending.0 = server.unnamed_pending.0.saturating_sub(1),
            Note::Dropped { statement, sent } => server.prepared.settle(statement.id, sent, true),
            Note::Closed { name } => self.prepared.confirm(&name),
            Note::Reply(bytes) => to_client.edit().extend(bytes),
            // Both may be on their way, each with its mark set when it was sent: the later one counts.
            Note::OwnMade(own) if !server.pipeline.owes(|note| matches!(note, Note::OwnGone(gone) if *gone == own)) => {
                server.prepared.own |= own.bit();
            }
            Note::OwnGone(own) if !server.pipeline.owes(|note| matches!(note, Note::OwnMade(made) if *made == own)) => {
                server.prepared.own &= !own.bit();
            }
            Note::Forgot => server.forgets_in = None,
            Note::Mark(number) => self.mark_is_answered(number, server),
            Note::OwnMade(_)
            | Note::OwnGone(_)
            | Note::Begun
            | Note::Lent
            | Note::Tried
            | Note::Restoring
            | Note::Restored
            | Note::Unlistened => {}
            Note::Limit => server.limit_is_told(),
            Note::Asked => {
                if let Some(findings) = &mut server.findings {
                    findings.complete();
                }
            }
        }
    }

    /// What it means that an entry was skipped because of an error before it.
    pub(super) fn undo(&mut self, note: Note, server: &mut ServerSide) {
        match note {
            Note::Parsed { name, statement, sent } => {
                if let Some(sent) = sent {
                    server.prepared.settle(statement.id, sent, false);
                }
                if let Some(name) = name {
                    self.prepared.undo(&name);
                }
            }
            Note::Unnamed { client, server: held } => {
                self.unnamed_pending.0 = self.unnamed_pending.0.saturating_sub(1);
                // What came behind it in a later batch has replaced what it made, and goes back to what it found. A Query
                // of ours between them has left the server none, and says nothing of what the client has.
                let mut held = Some(held);
                for owed in &mut server.pipeline.owed {
                    if let Some(Note::Unnamed { client: slot, server: holder }) = owed.note.as_deref_mut() {
                        *slot = client;
                        if let Some(held) = held {
                            *holder = held;
                        }
                        return;
                    }
                    if matches!(owed.kind, Kind::Query { .. }) {
                        held = None;
                    }
                }
                self.unnamed = client;
                if let Some(held) = held {
                    server.unnamed = held;
                }
            }
            // The server still has whatever it had before, and we do not know whose that was.
            Note::UnnamedMade => {
                server.unnamed_pending.0 = server.unnamed_pending.0.saturating_sub(1);
                let later = server.pipeline.owed.iter_mut().find_map(|owed| match owed.note.as_deref_mut() {
                    Some(Note::Unnamed { server, .. }) => Some(server),
                    _ => None,
                });
                *later.unwrap_or(&mut server.unnamed) = Some(NOBODY);
            }
            Note::Dropped { statement, sent } => server.prepared.settle(statement.id, sent, false),
            Note::Closed { name } => self.prepared.undo(&name),
            Note::OwnMade(own) => server.prepared.own &= !own.bit(),
            Note::OwnGone(own) => server.prepared.own |= own.bit(),
            Note::Forgot => (server.forgets_in, server.sequences_of_another) = (None, true),
            Note::Reply(_)
            | Note::Begun
            | Note::Asked
            | Note::Mark(_)
            | Note::Limit
            | Note::Unlistened
            | Note::Lent
            | Note::Tried
            | Note::Restoring
            | Note::Restored => {}
        }
    }

    /// The same for an entry that its server's end leaves unanswered.
    pub(super) fn undo_lost(&mut self, note: Note) {
        match note {
            Note::Parsed { name: Some(name), .. } | Note::Closed { name } => self.prepared.undo(&name),
            Note::Unnamed { client, .. } => {
                self.unnamed_pending.0 = self.unnamed_pending.0.saturating_sub(1);
                self.unnamed = client;
            }
            Note::Parsed { name: None, .. }
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
    }

    fn command_complete(&mut self, tag: &[u8], server: &mut ServerSide) {
        server.pipeline.copy_ends();
        match tag {
            b"DEALLOCATE" if matches!(server.pipeline.owed.front(), Some(Owed { kind: Kind::Query { .. }, .. })) => {
                self.has_deallocated();
            }
            b"DISCARD ALL" | b"DEALLOCATE ALL" => {
                server.prepared.clear();
                self.prepared.clear();
                self.all_lent_is_dropped();
                if tag == b"DISCARD ALL" {
                    // What was asked before it is not so any more.
                    server.forget_channels();
                    self.unlistened_all();
                }
            }
            _ => {}
        }
    }

    fn parameter_status(
        &mut self,
        body: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_client: &mut Outbound<'_>,
    ) -> Result<(), Violation> {
        let (name, value) = backend::parameter_status(body).map_err(Violation::Server)?;
        // Whoever has one address only is at the primary. What a server is, it is asked.
        let pass = server.front_fate() != Fate::Swallow && name != "in_hot_standby";
        let restores = pass && self.keeps_for_restoring(name, server.params.get(name), server);
        server.note_param(name, value);
        if pass && server.fenced {
            self.answer_stands();
        }
        if pass && name == "standard_conforming_strings" {
            self.standard_strings = value != "off";
        }
        let pass = pass && !restores;
        if pass && name == "application_name" {
            self.renamed = Some(value.into());
        }
        let mut message = Vec::new();
        if pass && self.channels.is_some() {
            reply::parameter_status(&mut message, name, value);
        }
        let kept = !message.is_empty() && self.keeps_reported(&message);
        forward(cut, pass && !kept, server, to_client);
        Ok(())
    }

    fn error(
        &mut self,
        body: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_client: &mut Outbound<'_>,
    ) -> Result<(), Violation> {
        let fields = backend::error(body);
        if fields.is_fatal() {
            let report = fields.report();
            // What the client itself has brought about ends its session, as it would without us.
            let own_doing = [
                SqlState::PROTOCOL_VIOLATION,
                SqlState::IDLE_IN_TRANSACTION_TIMEOUT,
                SqlState::TRANSACTION_TIMEOUT,
                SqlState::IDLE_SESSION_TIMEOUT,
            ];
            if fields.code.is_some_and(|code| own_doing.contains(&code)) {
                forward(cut, true, server, to_client);
                return Err(Violation::Final(report));
            }
            return Err(Violation::Ended(report));
        }
        self.parameters_told = false;
        let Some(front) = server.pipeline.owed.front() else { return Err(unexpected("error")) };
        if front.fate == Fate::Behind && matches!(front.kind, Kind::Query { .. }) {
            match front.note.as_deref() {
                Some(Note::Limit) => server.limit_is_not_told(),
                Some(Note::Unlistened) => server.still_listens(),
                _ => {}
            }
            forward(cut, false, server, to_client);
            return Ok(());
        }
        if front.fate == Fate::Behind {
            if let Some(findings) = &mut server.findings {
                findings.failed(&fields.report());
            }
            self.skip_to_sync(server);
            forward(cut, false, server, to_client);
            return Ok(());
        }
        if matches!(front.note.as_deref(), Some(Note::Begun)) {
            return Err(Violation::Begin(fields.report()));
        }
        if front.fate == Fate::Swallow
            && !matches!(
                front.note.as_deref(),
                Some(Note::Parsed { .. } | Note::UnnamedMade | Note::Lent | Note::Tried)
            )
        {
            return Err(Violation::Replay(fields.report()));
        }
        // "cached plan must not change result type": for a client that comes to prepare it now, this never happened. Nor for
        // this one, if all it wants can be done again.
        if fields.code == Some(SqlState::FEATURE_NOT_SUPPORTED)
            && matches!(front.kind, Kind::Bind | Kind::DescribeStatement)
            && let Some(statement) = front.name.as_deref().and_then(|name| self.prepared.statement(name))
        {
            statement.retire();
            let outdated = b"RRevalidateCachedQuery\0";
            if body.windows(outdated.len()).any(|field| field == outdated) && self.repeats(server) {
                forward(cut, false, server, to_client);
                return Ok(());
            }
        }
        if server.fenced && self.takes_back(fields.code, server, to_client) {
            forward(cut, false, server, to_client);
            return Ok(());
        }
        if let Some(outcome) = &mut self.outcome {
            outcome.error = outcome.error.or(fields.code);
        }
        if matches!(server.pipeline.owed.front().and_then(|front| front.note.as_deref()), Some(Note::Lent))
            && fields.code != Some(SqlState::FAILED_TRANSACTION)
            && cut.end - cut.start == cut.len
            && self.refuses_later(body, server, to_client)
        {
            server.pipeline.failed = true;
            forward(cut, false, server, to_client);
            return Ok(());
        }
        match server.pipeline.owed.front().and_then(|front| renamed_error(body, front)) {
            Some(renamed) => reply::message(to_client.edit(), BackendTag::Error, |out| out.extend(renamed)),
            None => forward(cut, true, server, to_client),
        }
        server.pipeline.failed = true;
        if let Copy::In { stray_syncs, .. } = server.pipeline.copy {
            server.pipeline.ambiguous |= stray_syncs > 0;
        }
        server.pipeline.copy_ends();
        if matches!(server.pipeline.owed.front(), Some(Owed { kind: Kind::Query { .. } | Kind::Function, .. })) {
            return Ok(());
        }
        self.skip_to_sync(server);
        Ok(())
    }

    /// An extended-protocol message failed: the server skips everything up to the next Sync, whatever it is.
    pub(super) fn skip_to_sync(&mut self, server: &mut ServerSide) {
        let sync = server.pipeline.owed.iter().position(|owed| owed.kind == Kind::Sync);
        let skipped = sync.unwrap_or(server.pipeline.owed.len());
        // A Parse of the unnamed statement that failed has dropped the one before it; one that was skipped has not.
        if let Some(Owed { kind: Kind::Parse, note: Some(note), .. }) = server.pipeline.owed.front_mut()
            && let Note::Unnamed { client, server: held } = &mut **note
        {
            (*client, *held) = (None, None);
        }
        // A Query behind a loan that fails is skipped as well, and the Sync of ours behind it is answered in its place.
        let loan = server.pipeline.owed.front().is_some_and(|front| front.fate == Fate::Swallow);
        let (mut notes, mut ends) = (Vec::new(), false);
        for owed in server.pipeline.owed.drain(..skipped) {
            ends |= loan && owed.fate == Fate::Forward && matches!(owed.kind, Kind::Query { .. } | Kind::Function);
            notes.extend(owed.note);
        }
        for note in notes.into_iter().rev() {
            self.undo(*note, server);
        }
        match server.pipeline.owed.front_mut() {
            Some(sync) if ends => sync.fate = Fate::Forward,
            Some(_) => {}
            None => server.pipeline.skipping = true,
        }
    }

    /// A connection that belongs to this client for good: nothing is counted any more, only the end is seen.
    fn answer_dedicated(
        &mut self,
        body: &[u8],
        cut: Cut,
        server: &mut ServerSide,
        to_client: &mut Outbound<'_>,
    ) -> Result<(), Violation> {
        server.pipeline.ambiguous = true;
        if cut.tag == BackendTag::Ready {
            let status = backend::ready(body).map_err(Violation::Server)?;
            server.pipeline.tx = status;
            server.pipeline.copy = Copy::None;
            server.pipeline.owed.clear();
            self.tx = status;
            self.completed += 1;
        }
        forward(cut, true, server, to_client);
        Ok(())
    }
}

impl ServerSide {
    /// Whether rows that come now are the client's.
    #[inline]
    fn passes_rows(&self) -> bool {
        match self.pipeline.owed.front() {
            Some(Owed { kind: Kind::Query { .. } | Kind::Execute { .. }, fate: Fate::Forward, .. }) => true,
            Some(_) | None => self.pipeline.copy == Copy::Both,
        }
    }

    /// Whose answer is due; between requests what comes is the client's.
    fn front_fate(&self) -> Fate {
        self.pipeline.owed.front().map_or(Fate::Forward, |owed| owed.fate)
    }
}

/// Passes or drops a frame, and the rest of it when it comes.
#[inline]
fn forward(cut: Cut, pass: bool, server: &mut ServerSide, to_client: &mut Outbound<'_>) {
    if pass {
        to_client.pass(cut.start..cut.end);
    }
    let left = cut.len - (cut.end - cut.start);
    if left > 0 {
        server.body = Some(Body { left, pass });
    }
}

/// So much of a frame that streams past has to be there before it is handled, if its beginning is looked at.
const BEGINNING: usize = 4096;

/// Whether a frame of `len` bytes may be handled when only `arrived` bytes of it are there.
fn streams(tag: BackendTag, len: usize, arrived: usize) -> bool {
    match tag {
        BackendTag::DataRow | BackendTag::CopyData => true,
        // Their beginning says all that matters here.
        BackendTag::Error
        | BackendTag::Notice
        | BackendTag::RowDescription
        | BackendTag::ParameterDescription
        | BackendTag::FunctionResult
        | BackendTag::CopyIn
        | BackendTag::CopyOut
        | BackendTag::CopyBoth
        | BackendTag::Notification
        | BackendTag::ParameterStatus => len > WHOLE_FRAME && arrived >= BEGINNING,
        BackendTag::Authentication
        | BackendTag::BackendKeyData
        | BackendTag::BindComplete
        | BackendTag::CloseComplete
        | BackendTag::CommandComplete
        | BackendTag::CopyDone
        | BackendTag::EmptyQuery
        | BackendTag::NegotiateVersion
        | BackendTag::NoData
        | BackendTag::ParseComplete
        | BackendTag::PortalSuspended
        | BackendTag::Ready => false,
    }
}

fn unexpected(what: &'static str) -> Violation {
    Violation::Server(FrameError::Unexpected(what))
}

/// The body of an error that names one of our names for a statement, with the client's own name instead.
fn renamed_error(body: &[u8], front: &Owed) -> Option<Vec<u8>> {
    // Only where the protocol itself names a statement: elsewhere such a word would be the client's own data.
    if !matches!(front.kind, Kind::Parse | Kind::Bind | Kind::DescribeStatement) {
        return None;
    }
    let at = body.windows(PREFIX.len()).position(|w| w == PREFIX.as_bytes())?;
    let digits = body[at + PREFIX.len()..].iter().take_while(|b| b.is_ascii_digit()).count();
    let end = at + PREFIX.len() + digits;
    Some([&body[..at], front.name.as_deref()?, &body[end..]].concat())
}
