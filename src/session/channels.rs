//! What a client listens to.
//!
//! Its LISTEN goes to the server as any other statement does, and the server is asked afterwards what was committed. But
//! not the server tells the client of notifications: a connection that listens for many clients does
//! ([`crate::listen`]), so that nobody has to keep a server for that. That connection listens *before* the client's own
//! LISTEN is sent, so that nothing is missed between the two; what it hears before the client's transaction has ended is
//! delivered behind it.
//!
//! UNLISTEN means nothing to a server that does not listen. So behind it a channel of ours is listened to there, in the
//! same transaction: if that is found when the server is asked, the UNLISTEN was committed as well.

use super::pipeline::{Fate, Kind, Note, Owed};
use super::{Outbound, PoolMode, ServerSide, Session};
use crate::sql::reads::{Plain, Run, Why};
use crate::sql::{self, Effects};
use crate::wire::{TxStatus, frontend, reply};
use std::collections::BTreeSet;

/// The name of a channel, as `pg_listening_channels()` gives it.
pub type Name = Box<[u8]>;

/// What the channels by which an UNLISTEN is seen to be committed are called, with a number behind it.
const MARK: &[u8] = b"ambassador:unlisten:";

/// UNLISTENs of one transaction that are told apart. Whoever does more stops listening to nothing: more is heard, not less.
const MAX_MARKS: usize = 256;

/// What an UNLISTEN is about.
#[derive(Debug)]
enum Unlistened {
    One(Name),
    All,
    /// It was rolled back.
    Nothing,
}

/// What a client that has ever listened listens to.
#[derive(Debug, Default)]
pub(super) struct Channels {
    /// What was committed.
    listening: BTreeSet<Name>,
    /// What is heard, and not committed yet.
    tentative: BTreeSet<Name>,
    /// What is to be heard before the client's next frame can go to the server.
    wanted: Vec<Name>,
    /// What cannot be heard: the server has to tell the client itself.
    deaf: BTreeSet<Name>,
    /// UNLISTENs since the server was last asked.
    unlistened: Vec<Unlistened>,
    /// The number of the first of them. No number is used twice: the server may still have the mark of an earlier one.
    first: usize,
    /// What is not to be heard any more.
    dropped: Vec<Name>,
    /// The client has sent a notification, and may be its own listener.
    notified: bool,
    /// Some of what is tentative may have been committed already: it was listened to in an earlier transaction.
    older: bool,
    /// What was sent before the commit that comes next is known.
    caught_up: bool,
    /// ParameterStatus messages that PostgreSQL would send between the notifications and ReadyForQuery.
    reported: Vec<u8>,
}

impl Channels {
    /// The UNLISTENs from here on are rolled back before they are marked. Gives how many of the last `unmarked` these are.
    fn rolled_back_to(&mut self, at: usize, unmarked: usize) -> usize {
        let rolled_back = self.unlistened.len().saturating_sub(at).min(unmarked);
        self.unlistened.truncate(self.unlistened.len() - rolled_back);
        rolled_back
    }

    /// The UNLISTEN of this number is committed.
    fn unlisten(&mut self, number: usize) {
        let at = number.checked_sub(self.first);
        let Some(unlistened) = at.and_then(|at| self.unlistened.get_mut(at)) else { return };
        match std::mem::replace(unlistened, Unlistened::Nothing) {
            Unlistened::Nothing => {}
            Unlistened::One(name) => {
                self.deaf.remove(&name);
                if self.listening.remove(&name) {
                    self.dropped.push(name);
                }
            }
            Unlistened::All => {
                self.dropped.extend(std::mem::take(&mut self.listening));
                self.deaf.clear();
            }
        }
    }
}

impl Session {
    /// Channels that have to be listened to before the client's next frame is handled.
    pub fn take_wanted_channels(&mut self) -> Vec<Name> {
        self.channels.as_mut().map(|channels| std::mem::take(&mut channels.wanted)).unwrap_or_default()
    }

    /// They are listened to now, or they cannot be.
    pub fn channels_are_heard(&mut self, names: Vec<Name>, heard: bool) {
        let channels = self.channels.get_or_insert_default();
        if heard {
            channels.tentative.extend(names);
        } else {
            channels.deaf.extend(names);
        }
    }

    /// Channels that are not to be listened to for this client any more.
    pub fn take_dropped_channels(&mut self) -> Vec<Name> {
        self.channels.as_mut().map(|channels| std::mem::take(&mut channels.dropped)).unwrap_or_default()
    }

    /// A first LISTEN is about to be committed: whether it has to be known first what was sent before that. PostgreSQL
    /// begins to listen when the commit begins (`Exec_ListenPreCommit`), so that what was committed before is not heard,
    /// unless it listens already.
    pub(super) fn must_catch_up(&mut self) -> bool {
        let Some(channels) = &mut self.channels else { return false };
        if std::mem::take(&mut channels.caught_up) {
            return false;
        }
        self.tx.is_open() && !channels.older && channels.listening.is_empty() && !channels.tentative.is_empty()
    }

    /// A transaction was committed. Another may follow at once (AND CHAIN), whose end is not the first that counts.
    #[inline]
    pub(super) fn has_committed(&mut self) {
        if let Some(channels) = &mut self.channels {
            channels.older = !channels.tentative.is_empty();
        }
    }

    /// Whether something is listened to that may not have been committed.
    pub(super) fn listens_tentatively(&self) -> bool {
        self.channels.as_ref().is_some_and(|channels| !channels.tentative.is_empty())
    }

    /// Channels that the client's next frame may begin to listen to.
    pub fn tentative_channels(&self) -> Vec<Name> {
        self.channels.iter().flat_map(|channels| &channels.tentative).cloned().collect()
    }

    /// What was sent before the commit that comes next is known.
    pub fn has_caught_up(&mut self) {
        if let Some(channels) = &mut self.channels {
            channels.caught_up = true;
        }
    }

    /// What was to be listened to was not: the server is lost, or there was none. What an earlier transaction may have
    /// committed is heard: rather too much than too little.
    pub fn forget_tentative_channels(&mut self) {
        let Some(channels) = &mut self.channels else { return };
        let tentative = std::mem::take(&mut channels.tentative);
        match std::mem::take(&mut channels.older) {
            true => channels.listening.extend(tentative),
            false => channels.dropped.extend(tentative),
        }
        channels.wanted.clear();
        channels.caught_up = false;
    }

    /// All that is listened to for this client.
    pub fn heard_channels(&self) -> Vec<Name> {
        let heard = self.channels.iter().flat_map(|channels| channels.listening.iter().chain(&channels.tentative));
        heard.cloned().collect()
    }

    /// Whether this client may be told of notifications now: PostgreSQL does that between transactions only.
    pub fn may_be_notified(&self) -> bool {
        !self.tx.is_open() && self.body.is_none() && !self.skipping
    }

    /// Whether the client's answer is held back until it was told of what it sent itself.
    pub fn holds_ready(&self) -> bool {
        self.held_ready
    }

    /// Nothing keeps the answer back any more.
    pub fn release_ready(&mut self, to_client: &mut Vec<u8>) {
        if std::mem::take(&mut self.held_ready) {
            to_client.append(&mut self.take_reported());
            reply::ready(to_client, self.tx);
        }
    }

    /// Keeps a ParameterStatus message until it is known whether notifications come before it. False if none can.
    pub(super) fn keeps_reported(&mut self, message: &[u8]) -> bool {
        let Some(channels) = self.channels.as_mut().filter(|channels| channels.notified) else { return false };
        if channels.listening.is_empty() && channels.tentative.is_empty() {
            return false;
        }
        channels.reported.extend_from_slice(message);
        true
    }

    /// What was kept of them.
    pub(super) fn take_reported(&mut self) -> Vec<u8> {
        self.channels.as_mut().map(|channels| std::mem::take(&mut channels.reported)).unwrap_or_default()
    }

    /// A ReadyForQuery is about to be passed: whether it has to wait. Only the last that is owed can.
    pub(super) fn hold_ready(&mut self, is_last: bool) -> bool {
        if self.tx.is_open() {
            return false;
        }
        let Some(channels) = &mut self.channels else { return false };
        channels.older = !channels.tentative.is_empty();
        if !is_last {
            return false;
        }
        let listens = !(channels.listening.is_empty() && channels.tentative.is_empty());
        debug_assert!(!self.held_ready, "nothing is asked behind an answer that is held back");
        self.held_ready = std::mem::take(&mut channels.notified) && listens;
        self.held_ready
    }

    /// What a text says of channels, before it goes to a server. True if something has to be listened to first.
    pub(super) fn wants_channels(&mut self, effects: Effects, text: &[u8]) -> bool {
        if self.mode != PoolMode::Transaction {
            return false;
        }
        let said = sql::channels(frontend::query(text), self.standard_strings);
        if effects.has(Effects::LISTEN) {
            // Before it has ever listened, nobody has minded what it has sent in the transaction that it is in.
            let first = || Box::new(Channels { notified: true, ..Channels::default() });
            let channels = self.channels.get_or_insert_with(first);
            for said in &said {
                if let sql::Channel::Listen(name) = said
                    && !(channels.listening.contains(name)
                        || channels.tentative.contains(name)
                        || channels.deaf.contains(name)
                        || channels.wanted.contains(name))
                {
                    channels.wanted.push(name.clone());
                }
            }
            return !channels.wanted.is_empty();
        }
        false
    }

    /// The text is on its way: behind it the server gets what shows whether its UNLISTENs are committed.
    pub(super) fn note_unlisten(&mut self, text: &[u8]) {
        let Some(channels) = &mut self.channels else { return };
        // Those of this text, and of this batch, that are rolled back within it need no mark. What is not certain to be
        // committed goes on being heard.
        let mut savepoints = Vec::new();
        let mut begun = channels.unlistened.len().saturating_sub(self.marks);
        for said in sql::channels(frontend::query(text), self.standard_strings) {
            let unlistened = match said {
                sql::Channel::Listen(_) => continue,
                sql::Channel::Unlisten(name) => Unlistened::One(name),
                sql::Channel::UnlistenAll => Unlistened::All,
                sql::Channel::Commit => {
                    begun = channels.unlistened.len();
                    savepoints.clear();
                    continue;
                }
                sql::Channel::Savepoint(name) => {
                    savepoints.push((name, channels.unlistened.len()));
                    continue;
                }
                sql::Channel::Rollback => {
                    savepoints.clear();
                    self.marks -= channels.rolled_back_to(begun, self.marks);
                    continue;
                }
                sql::Channel::RollbackTo(name) => {
                    let at = savepoints.iter().rposition(|(known, _)| *known == name);
                    savepoints.truncate(at.map_or(0, |at| at + 1));
                    let begun = at.map_or(begun, |at| savepoints[at].1);
                    self.marks -= channels.rolled_back_to(begun, self.marks);
                    continue;
                }
            };
            if channels.unlistened.len() < MAX_MARKS {
                channels.unlistened.push(unlistened);
                self.marks += 1;
            }
        }
    }

    /// What was noted last of a text that waits was not sent.
    pub(super) fn unmark(&mut self, count: usize) {
        if let Some(channels) = self.channels.as_mut().filter(|_| count > 0) {
            channels.unlistened.truncate(channels.unlistened.len().saturating_sub(count));
            self.marks -= count;
        }
    }

    /// Sends the marks of the UNLISTENs before it.
    pub(super) fn send_marks(&mut self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let count = std::mem::take(&mut self.marks);
        let Some(channels) = &self.channels else { return };
        let end = channels.first + channels.unlistened.len();
        for number in end - count.min(channels.unlistened.len())..end {
            let text = format!("LISTEN \"{}{number}\"", String::from_utf8_lossy(MARK));
            reply::query(to_server.edit(), &text);
            server.pipeline.push(Owed::behind(Kind::Query { commits: false }).with(Note::Mark(number)));
        }
        // A simple query drops the unnamed statement.
        if count > 0 && server.unnamed.is_some() {
            server.unnamed = Some(super::server_frames::NOBODY);
        }
    }

    /// What is answered now has failed outside of a transaction block, and was rolled back as a whole. Its marks come in a
    /// message of their own, and are committed all the same.
    #[cold]
    pub(super) fn void_marks(&mut self, server: &ServerSide) {
        let Some(channels) = &mut self.channels else { return };
        for owed in server.pipeline.owed.iter().skip(1).take_while(|owed| owed.fate == Fate::Behind) {
            if let Some(Note::Mark(number)) = owed.note.as_deref()
                && let Some(at) = number.checked_sub(channels.first)
                && let Some(unlistened) = channels.unlistened.get_mut(at)
            {
                *unlistened = Unlistened::Nothing;
            }
        }
    }

    /// A mark is answered. Outside of a transaction block what it came behind has succeeded, or it would have been voided,
    /// whatever has become of the mark itself, which a cancel may have hit.
    #[cold]
    pub(super) fn mark_is_answered(&mut self, number: usize, server: &ServerSide) {
        if server.pipeline.tx == TxStatus::Idle
            && let Some(channels) = &mut self.channels
        {
            channels.unlisten(number);
        }
    }

    /// The number of the next UNLISTEN: a question that is asked now tells of those before it.
    pub(super) fn next_mark(&self) -> usize {
        self.channels.as_ref().map_or(0, |channels| channels.first + channels.unlistened.len())
    }

    /// A notification of a statement of the client may come back to itself.
    pub(super) fn note_notify(&mut self) {
        if let Some(channels) = &mut self.channels {
            channels.notified = true;
        }
    }

    /// A statement of a client that listens is on its way, which may send a notification where nobody sees it: in a function
    /// or a trigger. What only reads, and what is about the transaction alone, does not.
    #[cold]
    pub(super) fn may_notify(&mut self, effects: Effects, text: &[u8]) {
        let access = sql::access(frontend::query(text), self.standard_strings, &Plain);
        let harmless = match access.run {
            Run::Read | Run::Cursor => true,
            Run::Write(Why::Transaction | Why::Setting) => access.statements == 1,
            Run::Write(_) => access.statements == 1 && effects.has(Effects::LISTEN.and(Effects::UNLISTEN)),
        };
        if !harmless {
            self.note_notify();
        }
    }

    /// Whether an answer that is due has to be the last before the notifications that come with it: then nothing is asked
    /// behind it until it is there.
    pub(super) fn awaits_itself(&self, server: &ServerSide) -> bool {
        let Some(channels) = self.channels.as_ref().filter(|channels| channels.notified) else { return false };
        let listens = !(channels.listening.is_empty() && channels.tentative.is_empty());
        listens && !server.pipeline.batch_open && server.will_settle()
    }

    /// Whether a notification that this client's server has sent reaches the client on another way.
    pub(super) fn hears(&self, channel: &[u8]) -> bool {
        self.channels.as_ref().is_some_and(|c| c.listening.contains(channel) || c.tentative.contains(channel))
            || channel.starts_with(MARK)
    }

    /// The client has been told that it listens to nothing any more.
    pub(super) fn unlistened_all(&mut self) {
        if let Some(channels) = &mut self.channels {
            channels.dropped.extend(std::mem::take(&mut channels.listening));
            channels.dropped.extend(std::mem::take(&mut channels.tentative));
            channels.deaf.clear();
        }
    }

    /// The server listens to these channels, asked behind the UNLISTENs before number `asked`. True if the client depends on
    /// the server for one of them.
    pub(super) fn server_listens(&mut self, names: &[Box<str>], asked: usize) -> bool {
        let mut depends = false;
        let Some(channels) = &mut self.channels else {
            if names.is_empty() {
                return false;
            }
            // Something has listened where nobody could see it.
            self.channels = Some(Box::default());
            return self.server_listens(names, asked);
        };
        let is_mark = |name: &str| name.as_bytes().starts_with(MARK);
        let number = |name: &str| name.get(MARK.len()..).and_then(|digits| digits.parse::<usize>().ok());
        let marked = names.iter().filter(|name| is_mark(name)).filter_map(|name| number(name));
        let mut committed: Vec<usize> = marked.collect();
        committed.sort_unstable();
        committed.into_iter().for_each(|number| channels.unlisten(number));
        let told = asked.saturating_sub(channels.first).min(channels.unlistened.len());
        channels.unlistened.drain(..told);
        channels.first += told;
        for name in names.iter().filter(|name| !is_mark(name)) {
            let name: Name = name.as_bytes().into();
            if channels.tentative.remove(&name) || channels.dropped.contains(&name) {
                channels.dropped.retain(|dropped| *dropped != name);
                channels.listening.insert(name);
            } else if !channels.listening.contains(&name) {
                depends = true;
                channels.deaf.insert(name);
            }
        }
        channels.older = false;
        // What was not committed need not be heard.
        let rolled_back = std::mem::take(&mut channels.tentative);
        channels.dropped.extend(rolled_back);
        depends
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Interners, Params};
    use super::*;
    use crate::wire::{Report, SqlState};

    const ANSWER: &[u8] = b"C\0\0\0\x0dUNLISTEN\0Z\0\0\0\x05I";

    /// A client that listens to `a`, and has sent UNLISTEN to its server.
    fn unlistening() -> (Interners, Session, ServerSide) {
        let shared = Interners::default();
        let settings = shared.settings.intern([("user", "u")]);
        let mut session = Session::new(1, PoolMode::Transaction, settings.clone(), &Params::default());
        let mut server = ServerSide::new(settings, Params::default(), 10);
        let listening = BTreeSet::from([Name::from(*b"a")]);
        session.channels = Some(Box::new(Channels { listening, ..Channels::default() }));
        let (mut request, mut head, mut answer) = (Vec::new(), Vec::new(), Vec::new());
        reply::query(&mut request, "unlisten a");
        let mut out = Outbound::new(&request, &mut head);
        session.on_client(&shared, &request, Some(&mut server), &mut out, &mut answer).unwrap();
        (shared, session, server)
    }

    fn answers(session: &mut Session, server: &mut ServerSide, frames: &[u8]) {
        let mut head = Vec::new();
        session.on_server(frames, server, &mut Outbound::new(frames, &mut head)).unwrap();
    }

    #[test]
    fn an_unlisten_whose_mark_was_cancelled_was_committed_all_the_same() {
        let (_shared, mut session, mut server) = unlistening();
        answers(&mut session, &mut server, ANSWER);
        let mut cancelled = Vec::new();
        Report::as_postgres(SqlState::QUERY_CANCELED, "canceling statement due to user request").write(&mut cancelled);
        cancelled.extend(b"Z\0\0\0\x05I");
        answers(&mut session, &mut server, &cancelled);
        assert!(!server.is_busy());
        session.server_listens(&[], session.next_mark());
        assert_eq!(session.take_dropped_channels(), [Name::from(*b"a")]);
    }

    #[test]
    fn what_a_server_was_not_told_to_listen_to_is_not_heard_and_what_was_committed_is() {
        let (_shared, mut session, _server) = unlistening();
        session.channels_are_heard(vec![Name::from(*b"b")], true);
        session.forget_tentative_channels();
        assert_eq!(session.take_dropped_channels(), [Name::from(*b"b")]);
        assert_eq!(session.heard_channels(), [Name::from(*b"a")]);
        session.channels_are_heard(vec![Name::from(*b"c")], true);
        session.has_committed();
        session.forget_tentative_channels();
        assert!(session.take_dropped_channels().is_empty());
        assert_eq!(session.heard_channels(), [Name::from(*b"a"), Name::from(*b"c")]);
    }

    #[test]
    fn an_answer_from_before_an_unlisten_says_nothing_of_it() {
        let (_shared, mut session, mut server) = unlistening();
        session.server_listens(&[], 0);
        answers(&mut session, &mut server, ANSWER);
        session.server_listens(&["ambassador:unlisten:0".into()], session.next_mark());
        assert_eq!(session.take_dropped_channels(), [Name::from(*b"a")]);
    }
}
