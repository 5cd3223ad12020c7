//! How long a transaction may be idle where the client has not said it: as the role, the database or the server's
//! configuration have it.
//!
//! While a transaction holds no server, no server ends it. So each connection is asked once, in front of the first transaction
//! on it and in the same write. Until one has told, BEGIN goes to the server at once, which itself knows.

use super::pipeline::{Kind, Note, Owed};
use super::server_frames::NOBODY;
use super::{Outbound, ServerSide, Session};
use crate::wire::{backend, reply};
use std::time::Duration;

/// Asks for it: what RESET would make of the setting, in milliseconds.
const QUESTION: &str = "\
    select reset_val from pg_catalog.pg_settings \
    where name operator(pg_catalog.=) 'idle_in_transaction_session_timeout'";
/// The answer is a number. A longer row is none.
const MAX_ROW: usize = 64;

/// Whether a server has said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// It was not asked.
    Unasked,
    /// It was asked, and may have answered.
    Asked(Option<Duration>),
    /// It has answered, if it could.
    Told,
}

impl Session {
    /// Whether it is known how long a transaction of this client may be idle.
    #[inline]
    pub fn knows_idle_limit(&self) -> bool {
        self.knows_limit
    }

    /// It is known, by what another client's server has said, or does not matter. What comes next is looked at anew.
    pub fn idle_limit_is_known(&mut self) {
        self.knows_limit = true;
        self.analysed = None;
    }

    /// Whether the end of a transaction that no server knows of would be seen.
    pub(super) fn may_defer(&mut self) -> bool {
        let may = self.knows_limit || self.settings.get("idle_in_transaction_session_timeout").is_some();
        self.asks_limit = !may;
        may
    }

    /// Asks the server that a transaction begins on, if it was not asked yet.
    #[inline]
    pub(super) fn ask_limit(&mut self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let begins = std::mem::take(&mut self.asks_limit) || self.deferred.is_some();
        // A replica answers one request at a time, and what it answers to may be taken back.
        if begins && !server.fenced && matches!(server.limit, Limit::Unasked) {
            server.ask_limit(to_server);
        }
    }
}

impl ServerSide {
    #[cold]
    fn ask_limit(&mut self, to_server: &mut Outbound<'_>) {
        // A simple query: a Sync would end what skips the client's message behind settings that were refused, see `replay`.
        reply::query(to_server.edit(), QUESTION);
        self.pipeline.push(Owed::behind(Kind::Query { commits: false }).with(Note::Limit));
        self.unnamed = Some(NOBODY);
        self.limit = Limit::Asked(None);
    }

    /// Whether a row of this size is read whole, as an answer to that.
    #[inline]
    pub(super) fn reads_limit(&self, len: usize) -> bool {
        matches!(self.limit, Limit::Asked(_)) && len <= MAX_ROW
    }

    /// A row that is not the client's. True if it was the answer.
    pub(super) fn limit_row(&mut self, body: &[u8]) -> bool {
        // Settings that are replayed answer with rows as well.
        let is_answer =
            self.pipeline.owed.front().is_some_and(|owed| matches!(owed.note.as_deref(), Some(Note::Limit)));
        let Limit::Asked(found) = &mut self.limit else { return false };
        if !is_answer {
            return false;
        }
        let row = backend::row(body).unwrap_or_default();
        let number = row.first().copied().flatten().and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok());
        *found = number.map(Duration::from_millis);
        true
    }

    /// The server has answered.
    pub(super) fn limit_is_told(&mut self) {
        if let Limit::Asked(limit) = self.limit {
            self.limit = Limit::Told;
            // A server that cannot say it knows no such limit.
            self.told_limit = Some(limit.unwrap_or_default());
        }
    }

    /// It could not: the next one may be asked.
    #[cold]
    pub(super) fn limit_is_not_told(&mut self) {
        self.limit = Limit::Told;
    }

    /// How long a transaction may be idle there, if it was told since the last call.
    #[inline]
    pub fn take_idle_limit(&mut self) -> Option<Duration> {
        self.told_limit.take()
    }
}
