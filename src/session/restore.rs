//! What a client is told of its settings when a reset takes them back to what they were at its login.
//!
//! The server resets to its own defaults, and reports that; behind the client's request we set again what the session had
//! begun with ([`Session::restore_startup`]), and the server reports that, too. PostgreSQL, told in the startup packet, would
//! report once, in front of ReadyForQuery, and only what has changed. So what comes in between is kept, with the ReadyForQuery,
//! until the last value is known.

use super::pipeline::{Kind, Note, Pipeline};
use super::{Outbound, ServerSide, Session};
use crate::wire::reply;

/// Settings that are kept. PostgreSQL reports some fifteen; a server that reports without end fills nobody's memory
/// (faults.md I16).
const MOST: usize = 256;

/// What the client is told of when its settings are what they were at its login.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    /// Reported settings, and what the client believes them to be.
    reported: Vec<(Box<str>, Option<Box<str>>)>,
    /// Its ReadyForQuery is kept.
    ready: bool,
}

impl Pipeline {
    /// Whether what was just answered is followed by messages of ours that restore settings.
    #[inline]
    pub(super) fn restores_next(&self) -> bool {
        let next = self.owed.get(1).and_then(|owed| owed.note.as_deref());
        matches!(next, Some(Note::Restoring))
    }

    /// Whether the request that is being answered is followed by them, or is they.
    fn restores(&self) -> bool {
        let ends = |kind: Kind| matches!(kind, Kind::Sync | Kind::Query { .. } | Kind::Function);
        let Some(end) = self.owed.iter().position(|owed| ends(owed.kind)) else { return false };
        let note = |at: usize| self.owed.get(at).and_then(|owed| owed.note.as_deref());
        matches!(note(end), Some(Note::Restored)) || matches!(note(end + 1), Some(Note::Restoring))
    }
}

impl Session {
    /// Keeps what a server reports of a setting, which was `before`. False if it is for the client now.
    pub(super) fn keeps_for_restoring(&mut self, name: &str, before: Option<&str>, server: &ServerSide) -> bool {
        if self.startup.is_empty() || !server.pipeline.restores() {
            return false;
        }
        let reported = &mut self.restoring.get_or_insert_default().reported;
        if reported.len() >= MOST {
            return false;
        }
        if !reported.iter().any(|(known, _)| **known == *name) {
            reported.push((name.into(), before.map(Into::into)));
        }
        true
    }

    /// The client's ReadyForQuery waits for the settings to be restored.
    #[cold]
    pub(super) fn keep_ready(&mut self) {
        self.restoring.get_or_insert_default().ready = true;
    }

    /// The settings are restored: the client is told what has changed. True if it is owed a ReadyForQuery.
    #[cold]
    pub(super) fn restored(&mut self, server: &ServerSide, to_client: &mut Outbound<'_>) -> bool {
        let Some(restoring) = self.restoring.take() else { return false };
        let Restoring { mut reported, ready } = *restoring;
        // PostgreSQL goes by its list of settings, which is in this order.
        reported.sort_by_cached_key(|(name, _)| name.to_ascii_lowercase());
        for (name, before) in reported {
            let Some(value) = server.params.get(&name).filter(|value| before.as_deref() != Some(value)) else {
                continue;
            };
            let mut message = Vec::new();
            reply::parameter_status(&mut message, &name, value);
            if !self.keeps_reported(&message) {
                to_client.edit().append(&mut message);
            }
        }
        ready
    }

    /// The server is lost before that: what it had answered stands.
    pub(super) fn not_restored(&mut self, to_client: &mut Vec<u8>) {
        if self.restoring.take().is_some_and(|restoring| restoring.ready) {
            reply::ready(to_client, self.tx);
        }
    }
}
