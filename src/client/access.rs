//! What the access log is to say of a client's request, while it goes on.

use super::entry::ClientEntry;
use crate::access_log::{AccessLog, Line};
use crate::routing::verdict::fingerprint;
use crate::session::{Outcome, Session};
use crate::sql::traceparent;
use crate::wire::{FrontendTag, SqlState};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// The request at hand.
pub(super) struct Access {
    log: Arc<AccessLog>,
    /// Its first bytes.
    arrived: Option<Instant>,
    /// It has gone to a server.
    sent: Option<Instant>,
    /// Of its texts, one after the other.
    fingerprint: Option<u64>,
    trace: Option<Box<(String, String)>>,
    /// What was counted when the last one ended.
    base: (u64, u64),
    /// Of the answers that the session still counts, those that a line was written about.
    told: u64,
}

/// Where it was served.
#[derive(Default)]
pub(super) struct Served {
    pub(super) role: Option<&'static str>,
    pub(super) server: Option<String>,
    pub(super) reason: Option<&'static str>,
}

impl Access {
    pub(super) fn new(log: &Arc<AccessLog>) -> Box<Self> {
        let log = Arc::clone(log);
        Box::new(Self { log, arrived: None, sent: None, fingerprint: None, trace: None, base: (0, 0), told: 0 })
    }

    /// Looks at what a request begins with, unless that was seen already. To be asked before it is handled.
    pub(super) fn look(&mut self, session: &Session, input: &[u8], now: Instant) {
        let Some(&first) = input.first() else { return };
        // A goodbye is no request.
        if self.sent.is_some() || self.fingerprint.is_some() || first == FrontendTag::Terminate.byte() {
            return;
        }
        self.arrived.get_or_insert(now);
        let strings = session.standard_strings();
        session.look_at_request(input, |spoken| {
            let print = fingerprint(spoken.text, strings);
            self.fingerprint = Some(self.fingerprint.map_or(print, |before| before.rotate_left(5) ^ print));
            if self.trace.is_none() {
                let found = traceparent(spoken.text, strings);
                self.trace = found.map(|(trace, span)| Box::new((trace.to_owned(), span.to_owned())));
            }
            true
        });
    }

    /// It goes to a server.
    pub(super) fn sends(&mut self, now: Instant) {
        self.arrived.get_or_insert(now);
        self.sent.get_or_insert(now);
    }

    /// Whether there is a request that has not ended.
    pub(super) fn is_under_way(&self) -> bool {
        self.arrived.is_some()
    }

    /// How many answers there are that no line was written about, of those that the session counts; it goes on counting from
    /// there, or, if they were `taken`, from nothing.
    pub(super) fn untold(&mut self, completed: u64, taken: bool) -> u64 {
        let told = std::mem::replace(&mut self.told, if taken { 0 } else { completed });
        completed.saturating_sub(told)
    }

    /// It is over. `bytes` are all that were counted of the client's, and for it.
    pub(super) fn ends(
        &mut self,
        entry: &ClientEntry,
        session: &Session,
        served: &Served,
        (requests, outcome): (u64, Outcome),
        bytes: (u64, u64),
        now: Instant,
    ) {
        let arrived = self.arrived.take().unwrap_or(now);
        let sent = self.sent.take();
        let (fingerprint, trace) = (self.fingerprint.take(), self.trace.take());
        let took = now.saturating_duration_since(arrived);
        if self.log.wants(took, outcome.error.is_some()) {
            let set = session.settings().get("application_name");
            let given = entry.application_name();
            self.log.write(&Line {
                at: SystemTime::now().checked_sub(took).unwrap_or(SystemTime::UNIX_EPOCH),
                client: entry.ends.map(|(client, _)| client),
                session_id: entry.id,
                pid: entry.key.pid,
                database: &entry.database,
                user: &entry.user,
                application: set.unwrap_or(&given),
                role: served.role,
                server: served.server.as_deref(),
                reason: served.reason,
                fingerprint,
                requests,
                wait: sent.unwrap_or(now).saturating_duration_since(arrived),
                execution: sent.map(|sent| now.saturating_duration_since(sent)).unwrap_or_default(),
                rows: outcome.rows,
                bytes: (bytes.0.saturating_sub(self.base.0), bytes.1.saturating_sub(self.base.1)),
                sqlstate: outcome.error,
                trace: trace.as_deref().map(|(trace, span)| (trace.as_str(), span.as_str())),
            });
        }
    }

    /// From here on bytes are counted for the next one.
    pub(super) fn count_from(&mut self, bytes: (u64, u64)) {
        self.base = bytes;
    }
}

/// The first error among messages of ours.
pub(super) fn error_in(mut messages: &[u8]) -> Option<SqlState> {
    use crate::wire::{BackendTag, backend, frame};
    while let Ok(Some(found)) = frame::backend(messages) {
        let body = messages.get(frame::HEADER..found.len)?;
        if found.tag == BackendTag::Error {
            return backend::error(body).code;
        }
        messages = &messages[found.len..];
    }
    None
}
