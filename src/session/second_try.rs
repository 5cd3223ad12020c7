//! A read that a replica could not serve, and that its client hears nothing of: it is sent once more, to another server.
//!
//! A hot standby cannot have changed anything, so a request that was proven to only read may run twice. What must not
//! happen is that the client gets a part of one answer and then another: from the first byte that was passed on, the
//! answer is what it is. Until then a copy of what was sent is kept, and nothing else is in flight.

use super::pipeline::{Fate, Kind, Owed, Pipeline};
use super::{Outbound, ServerSide, Session};
use crate::wire::frame::{self, HEADER};
use crate::wire::{FrontendTag, SqlState, TxStatus, frontend};

/// Why a read was taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The replica would have had to write (25006), or cannot do that during recovery (0A000, 55000).
    Recovery,
    /// Replay has overtaken it (40001, 40P01).
    Conflict,
    /// It does not know what the text names (class 42, 3F000): perhaps it does not know it yet.
    Unknown,
    /// The connection broke, or the server ended it.
    Lost,
}

impl Refusal {
    /// What an error of a replica means; none if any other server would say the same.
    pub(super) fn of(code: SqlState) -> Option<Self> {
        match code {
            SqlState::READ_ONLY_TRANSACTION | SqlState::FEATURE_NOT_SUPPORTED | SqlState::NOT_IN_STATE => {
                Some(Self::Recovery)
            }
            SqlState::SERIALIZATION_FAILURE | SqlState::DEADLOCK_DETECTED => Some(Self::Conflict),
            SqlState::SYNTAX_ERROR => None,
            code if code.is_of_class(b"42") || code.is_of_class(b"3F") => Some(Self::Unknown),
            _ => None,
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recovery => "a replica refused it",
            Self::Conflict => "it conflicted with recovery on a replica",
            Self::Unknown => "a replica does not know what it names",
            Self::Lost => "a replica was lost",
        }
    }
}

/// What is kept of a read on a replica.
#[derive(Debug, Default)]
pub(super) struct SecondTry {
    state: State,
    bytes: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is no second try.
    #[default]
    Off,
    /// Nothing of the answer was passed on yet.
    Armed,
    /// It was taken back.
    TakenBack(Refusal),
}

impl Session {
    /// The request that comes next goes to a replica, alone, and may be taken back.
    pub fn arm_second_try(&mut self) {
        let kept = self.second_try.get_or_insert_default();
        kept.bytes.clear();
        kept.state = State::Armed;
    }

    /// The request that comes next goes elsewhere, and is sent once.
    #[inline]
    pub fn disarm_second_try(&mut self) {
        if let Some(kept) = &mut self.second_try {
            kept.state = State::Off;
        }
    }

    #[inline]
    pub(super) fn is_armed(&self) -> bool {
        self.second_try.as_ref().is_some_and(|kept| kept.state == State::Armed)
    }

    /// A message of the request was handled: it is kept if its answer is still owed.
    #[inline]
    pub(super) fn keep_for_second_try(&mut self, message: &[u8], server: &ServerSide) {
        if let Some(kept) = &mut self.second_try
            && kept.state == State::Armed
            && !server.pipeline.owed.is_empty()
        {
            kept.bytes.extend_from_slice(message);
        }
    }

    /// Something of the answer goes to the client: it stands.
    #[inline]
    pub(super) fn answer_stands(&mut self) {
        if let Some(kept) = &mut self.second_try
            && kept.state == State::Armed
        {
            kept.state = State::Off;
        }
    }

    /// A replica has answered with an error: whether the request is taken back, and the client told nothing.
    pub(super) fn takes_back(
        &mut self,
        code: Option<SqlState>,
        server: &mut ServerSide,
        to_client: &mut Outbound<'_>,
    ) -> bool {
        let Some(refusal) = code.and_then(Refusal::of).filter(|_| self.is_armed()) else { return false };
        let Some(front) = server.pipeline.owed.front_mut() else { return false };
        if matches!(front.kind, Kind::Query { .. }) {
            front.fate = Fate::Swallow;
            if let Some(note) = front.note.take() {
                self.undo(*note, server);
            }
        } else {
            self.skip_to_sync(server);
            // A fence is behind its Sync.
            if let Some(sync) = server.pipeline.owed.front_mut() {
                sync.fate = Fate::Swallow;
            }
        }
        to_client.clear();
        self.forget_what_was_prepared();
        self.taken_back(refusal);
        true
    }

    /// The replica is gone: whether the request is taken back, and the client told nothing.
    pub fn takes_back_lost(&mut self, server: &mut ServerSide) -> bool {
        // Only of a replica is it known that nothing was changed.
        if !server.fenced || !self.is_armed() || self.is_mid_frame() || server.is_mid_frame() {
            return false;
        }
        let Pipeline { owed, .. } = std::mem::replace(&mut server.pipeline, Pipeline::new());
        for note in owed.into_iter().filter_map(|Owed { note, .. }| note).rev() {
            self.undo_lost(*note);
        }
        self.tx = TxStatus::Idle;
        self.forget_what_was_prepared();
        self.taken_back(Refusal::Lost);
        true
    }

    fn taken_back(&mut self, refusal: Refusal) {
        if let Some(kept) = &mut self.second_try {
            kept.state = State::TakenBack(refusal);
        }
    }

    /// The client does not know yet that its names were taken: they are free again.
    fn forget_what_was_prepared(&mut self) {
        let Some(kept) = &self.second_try else { return };
        let mut rest = &kept.bytes[..];
        while let Ok(Some(found)) = frame::frontend(rest) {
            let Some(body) = rest.get(HEADER..found.len) else { return };
            if found.tag == FrontendTag::Parse
                && let Ok(parse) = frontend::parse(body)
                && !parse.name.is_empty()
            {
                self.prepared.remove(parse.name);
            }
            rest = &rest[found.len..];
        }
    }

    /// A request that was taken back, to be handled as if the client had only now sent it, before all that it has sent
    /// since; and why. To be asked for when the server is gone or free.
    pub fn take_taken_back(&mut self) -> Option<(Refusal, Vec<u8>)> {
        let kept = self.second_try.as_mut()?;
        let State::TakenBack(refusal) = kept.state else { return None };
        kept.state = State::Off;
        Some((refusal, std::mem::take(&mut kept.bytes)))
    }

    /// Whether a request was taken back.
    pub fn has_taken_back(&self) -> bool {
        self.second_try.as_ref().is_some_and(|kept| matches!(kept.state, State::TakenBack(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Interners, Params, PoolMode};
    use crate::wire::reply;

    /// A session that has armed itself and then sends a text to a server.
    fn sent(fenced: bool, text: &str) -> (Session, ServerSide) {
        let interners = Interners::default();
        let settings = interners.settings.intern::<&str, &str>([]);
        let params = Params::default();
        let mut session = Session::new(1, PoolMode::Transaction, settings.clone(), &params);
        let mut server = ServerSide::new(settings, params, 10);
        server.set_fenced(fenced);
        session.arm_second_try();
        let (mut request, mut head, mut answer) = (Vec::new(), Vec::new(), Vec::new());
        reply::query(&mut request, text);
        let mut out = Outbound::new(&request, &mut head);
        session.attach(&mut server, &mut out);
        session.on_client(&interners, &request, Some(&mut server), &mut out, &mut answer).unwrap();
        (session, server)
    }

    #[test]
    fn what_was_lost_with_a_replica_is_sent_once_more_and_what_was_lost_with_a_primary_never() {
        let (mut session, mut server) = sent(true, "select 1");
        assert!(session.takes_back_lost(&mut server));
        let (refusal, request) = session.take_taken_back().unwrap();
        assert_eq!((refusal, frame::frontend(&request).unwrap().unwrap().tag), (Refusal::Lost, FrontendTag::Query));
        let (mut session, mut server) = sent(false, "insert into t values (1)");
        assert!(!session.takes_back_lost(&mut server), "however it came to be armed");
        assert!(session.take_taken_back().is_none());
    }

    #[test]
    fn who_is_disarmed_takes_nothing_back() {
        let (mut session, mut server) = sent(true, "select 1");
        session.disarm_second_try();
        assert!(!session.takes_back_lost(&mut server));
    }
}
