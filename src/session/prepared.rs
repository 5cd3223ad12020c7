//! Client statement names <-> names on a server.
//!
//! A statement that any client prepares is known by its text, its parameter types and the settings that give the text
//! its meaning; on every server it has one name, made from its number. So two clients that call different statements
//! "s1" never meet, and two that prepare the same text share it.

use super::reading::{self, Reading};
use super::settings::{Setting, Settings};
use crate::sql::Analysis;
use foldhash::fast::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What the name of each of our statements on a server begins with.
pub const PREFIX: &str = "ambassador:";

/// A statement that some client prepared by name.
pub struct Statement {
    /// Its number: unique in this process, never reused.
    pub id: u64,
    /// Its name on every server.
    pub name: Box<str>,
    /// The SQL text.
    pub query: Box<[u8]>,
    /// The parameter types as they stand in a Parse message.
    pub types: Box<[u8]>,
    /// What is known of the text.
    pub analysis: Analysis,
    parse_key: Arc<[Setting]>,
    /// By what its constants are read, where that is not what the settings are by which the rest of it is.
    pub(super) reading: Box<[Reading]>,
    /// Some server has parsed it.
    proven: AtomicBool,
    /// What was found of where it may run; see [`Statement::judged`].
    judged: AtomicU64,
    /// The version of what is known of functions by which it leaves nothing behind.
    harmless: AtomicU64,
    /// A server refused it because what it reads has changed since it was parsed.
    outdated: AtomicBool,
}

impl Statement {
    /// A server has parsed it: its text is known to be right.
    pub(super) fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Whoever prepares this text from now on gets a statement that is parsed afresh, on every server; the names that
    /// stand for this one keep it until they meet the server's refusal themselves.
    pub fn retire(&self) {
        self.outdated.store(true, Ordering::Relaxed);
    }

    /// What was noted of where it may run, by this version of what is known of its database; 0 if nothing was.
    #[inline]
    pub fn judged(&self, version: u64) -> u8 {
        let judged = self.judged.load(Ordering::Relaxed);
        if judged >> 8 == version { judged.to_le_bytes()[0] } else { 0 }
    }

    /// Notes where it may run.
    pub fn note_judged(&self, version: u64, verdict: u8) {
        self.judged.store((version << 8) | u64::from(verdict), Ordering::Relaxed);
    }

    /// Whether all that it calls was found to leave nothing behind, by this version of what is known.
    #[inline]
    pub(super) fn is_harmless(&self, version: u64) -> bool {
        self.harmless.load(Ordering::Relaxed) == version
    }

    /// It was.
    pub(super) fn note_harmless(&self, version: u64) {
        self.harmless.store(version, Ordering::Relaxed);
    }

    fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    /// Whether its text means to a session with these settings what it meant to the one that prepared it.
    #[inline]
    pub(super) fn is_meant_by(&self, settings: &Settings) -> bool {
        Arc::ptr_eq(&self.parse_key, settings.parse_key())
    }

    /// By what its constants are to be read for a session that has these settings by now.
    pub(super) fn reading_under(&self, settings: &Settings) -> Vec<Reading> {
        if self.is_private() || !reading::may_have_constants(&self.query) {
            return Vec::new();
        }
        reading::changes(&self.parse_key, &self.reading, settings.parse_key())
    }

    /// Whether nobody else gets it.
    pub(super) fn is_private(&self) -> bool {
        self.parse_key.first().is_some_and(|(name, _)| **name == *PREFIX)
    }
}

impl std::fmt::Debug for Statement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Statement({})", self.name)
    }
}

/// What makes two statements one.
struct Key<'a> {
    query: &'a [u8],
    types: &'a [u8],
    parse_key: &'a Arc<[Setting]>,
    reading: &'a [Reading],
}

impl Key<'_> {
    fn hash(&self, state: &RandomState) -> u64 {
        state.hash_one((self.query, self.types, Arc::as_ptr(self.parse_key).cast::<()>()))
    }

    fn is_of(&self, statement: &Statement) -> bool {
        *self.query == *statement.query
            && *self.types == *statement.types
            && Arc::ptr_eq(self.parse_key, &statement.parse_key)
            && *self.reading == *statement.reading
    }
}

/// Where statements are interned. One for the whole program.
#[derive(Default)]
pub struct StatementInterner {
    next: AtomicU64,
    hashing: RandomState,
    statements: Mutex<HashMap<u64, Vec<Weak<Statement>>, RandomState>>,
}

impl StatementInterner {
    /// The statement with this text and these types, prepared under these settings. A new one is looked at once.
    pub fn intern(
        &self,
        query: &[u8],
        types: &[u8],
        settings: &Settings,
        analyse: impl FnOnce() -> Analysis,
    ) -> Arc<Statement> {
        self.intern_read_by(query, types, settings, &[], analyse)
    }

    /// The same for one whose constants were read by other settings.
    pub(super) fn intern_read_by(
        &self,
        query: &[u8],
        types: &[u8],
        settings: &Settings,
        reading: &[Reading],
        analyse: impl FnOnce() -> Analysis,
    ) -> Arc<Statement> {
        let key = Key { query, types, parse_key: settings.parse_key(), reading };
        let hash = key.hash(&self.hashing);
        let mut statements = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        if statements.len() == statements.capacity() {
            statements.retain(|_, list| {
                list.retain(|s| s.strong_count() > 0);
                !list.is_empty()
            });
        }
        let list = statements.entry(hash).or_default();
        if let Some(found) = list.iter().filter_map(Weak::upgrade).find(|s| key.is_of(s) && !s.is_outdated()) {
            return found;
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let statement = Arc::new(Statement {
            id,
            name: format!("{PREFIX}{id}").into(),
            query: query.into(),
            types: types.into(),
            analysis: analyse(),
            parse_key: Arc::clone(key.parse_key),
            reading: reading.into(),
            proven: AtomicBool::new(false),
            judged: AtomicU64::new(0),
            harmless: AtomicU64::new(0),
            outdated: AtomicBool::new(false),
        });
        list.retain(|s| s.strong_count() > 0);
        list.push(Arc::downgrade(&statement));
        statement
    }

    /// A statement that nobody else gets: one that is parsed while it is not certain what its text means.
    pub fn private(&self, query: &[u8], types: &[u8], analysis: Analysis) -> Arc<Statement> {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Statement {
            id,
            name: format!("{PREFIX}{id}").into(),
            query: query.into(),
            types: types.into(),
            analysis,
            // An allocation of its own is a key of its own.
            parse_key: Arc::from(vec![(Box::from(PREFIX), id.to_string().into_boxed_str())]),
            reading: Box::default(),
            proven: AtomicBool::new(false),
            judged: AtomicU64::new(0),
            harmless: AtomicU64::new(0),
            outdated: AtomicBool::new(false),
        })
    }

    /// The statement with this text and these types that some server is known to have parsed.
    pub fn proven(&self, query: &[u8], types: &[u8], settings: &Settings) -> Option<Arc<Statement>> {
        let key = Key { query, types, parse_key: settings.parse_key(), reading: &[] };
        let statements = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        let list = statements.get(&key.hash(&self.hashing))?;
        let is_proven = |s: &Arc<Statement>| key.is_of(s) && !s.is_outdated() && s.proven.load(Ordering::Relaxed);
        list.iter().filter_map(Weak::upgrade).find(is_proven)
    }

    /// How many statements are alive.
    pub fn len(&self) -> usize {
        let statements = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        statements.values().flatten().filter(|s| s.strong_count() > 0).count()
    }

    /// Whether none is alive.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The names one client has given to its statements. Most clients have none, and pay one pointer.
#[allow(clippy::box_collection, clippy::type_complexity, reason = "thousands of idle clients pay for it")]
#[derive(Debug, Default)]
pub struct ClientPrepared(Option<Box<HashMap<Arc<[u8]>, Named, RandomState>>>);

/// What stands behind a name.
#[derive(Debug, Default)]
struct Named {
    /// The statement; none once it was closed.
    statement: Option<Arc<Statement>>,
    /// The client has asked what it returns.
    described: bool,
    /// Parse and Close messages of this name that are on their way, in their order.
    pending: VecDeque<Pending>,
}

#[derive(Debug)]
struct Pending {
    /// The batch it is part of.
    batch: u32,
    /// What the name stood for before it.
    before: Option<Arc<Statement>>,
}

/// What a name stands for right now.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// For nothing.
    Unknown,
    /// For this statement; and the name itself, to keep.
    Known(&'a Arc<[u8]>, &'a Arc<Statement>),
    /// That depends on the answer to a message in an earlier batch, which may yet fail.
    Undecided,
}

impl ClientPrepared {
    /// What a message of this batch means by a name.
    #[inline]
    pub fn look_up(&self, name: &[u8], batch: u32) -> Lookup<'_> {
        let Some((name, named)) = self.0.as_ref().and_then(|map| map.get_key_value(name)) else {
            return Lookup::Unknown;
        };
        match named {
            // Within a batch an error skips what is behind it: whatever is asked there may be taken for granted.
            named if named.pending.iter().any(|pending| pending.batch != batch) => Lookup::Undecided,
            Named { statement: None, .. } => Lookup::Unknown,
            Named { statement: Some(statement), .. } => Lookup::Known(name, statement),
        }
    }

    /// Whether any name stands for a statement.
    pub fn uses(&self, id: u64) -> bool {
        let names = self.0.iter().flat_map(|map| map.values());
        names.filter_map(|named| named.statement.as_ref()).any(|statement| statement.id == id)
    }

    /// What a name stands for if all that is on its way for it succeeds.
    pub fn statement(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.0.as_ref()?.get(name)?.statement.as_ref()
    }

    /// A Parse or Close of a name is on its way, in this batch; behind it the name stands for `statement`. Gives the name
    /// itself, to keep.
    pub fn begin(&mut self, name: &[u8], statement: Option<Arc<Statement>>, batch: u32) -> Arc<[u8]> {
        let map = self.0.get_or_insert_default();
        let key: Arc<[u8]> = map.get_key_value(name).map_or_else(|| name.into(), |(key, _)| Arc::clone(key));
        let named = map.entry(Arc::clone(&key)).or_default();
        named.described &= statement.is_none();
        let before = std::mem::replace(&mut named.statement, statement);
        named.pending.push_back(Pending { batch, before });
        key
    }

    /// The client has asked what a statement returns.
    pub(super) fn describe(&mut self, name: &[u8]) {
        if let Some(named) = self.0.as_mut().and_then(|map| map.get_mut(name)) {
            named.described = true;
        }
    }

    /// Whether it has ever done so.
    pub(super) fn is_described(&self, name: &[u8]) -> bool {
        self.0.as_ref().and_then(|map| map.get(name)).is_some_and(|named| named.described)
    }

    /// What stands behind a name is now said by another statement of the same text.
    pub fn replace(&mut self, name: &[u8], statement: &Arc<Statement>) {
        if let Some(named) = self.0.as_mut().and_then(|map| map.get_mut(name)) {
            named.statement = Some(Arc::clone(statement));
        }
    }

    /// The first message on its way for a name succeeded.
    pub fn confirm(&mut self, name: &[u8]) {
        self.settle(name, |named| drop(named.pending.pop_front()));
    }

    /// The last message on its way for a name failed, or was skipped.
    pub fn undo(&mut self, name: &[u8]) {
        self.settle(name, |named| {
            if let Some(pending) = named.pending.pop_back() {
                named.statement = pending.before;
            }
        });
    }

    fn settle(&mut self, name: &[u8], settle: impl FnOnce(&mut Named)) {
        let Some(map) = self.0.as_mut() else { return };
        if let Some(named) = map.get_mut(name) {
            settle(named);
            if named.statement.is_none() && named.pending.is_empty() {
                map.remove(name);
            }
        }
        self.shrink();
    }

    /// Takes a name away that nothing is on its way for.
    pub fn remove(&mut self, name: &[u8]) {
        if let Some(map) = self.0.as_mut() {
            map.remove(name);
        }
        self.shrink();
    }

    /// Takes all names away that nothing is on its way for.
    pub fn clear(&mut self) {
        if let Some(map) = self.0.as_mut() {
            map.retain(|_, named| !named.pending.is_empty());
        }
        self.shrink();
    }

    fn shrink(&mut self) {
        if self.0.as_ref().is_some_and(|map| map.is_empty()) {
            self.0 = None;
        }
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |map| map.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

/// The statements that one server has, with the order of their last use.
#[derive(Debug, Default)]
pub struct ServerPrepared {
    statements: HashMap<u64, Held, RandomState>,
    tick: u64,
    /// What was used at or after this tick may still be named by a message on its way to the server.
    in_flight_since: u64,
    /// Which statements for our own purposes it has, or will have.
    pub(super) own: u32,
}

/// A statement for our own purposes, which servers keep prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    /// Sets so many settings, up to [`Own::MOST`].
    Set(usize),
    /// Asks what a client has left.
    Ask,
    /// Sets again what a session began with.
    Restore,
    /// BEGIN without any modes.
    Begin,
    /// Forgets where the sequences stand.
    Forget,
    /// Does nothing; its name is taken.
    Taken,
}

impl Own {
    /// Settings that one statement sets at most.
    pub(super) const MOST: usize = 16;

    pub(super) fn bit(self) -> u32 {
        match self {
            Self::Set(count) => 1 << count,
            Self::Ask => 1 << (Self::MOST + 1),
            Self::Restore => 1 << (Self::MOST + 2),
            Self::Begin => 1 << (Self::MOST + 3),
            Self::Forget => 1 << (Self::MOST + 4),
            Self::Taken => 1 << (Self::MOST + 5),
        }
    }

    /// Its name on the server.
    pub(super) fn name(self) -> String {
        match self {
            Self::Set(count) => format!("{PREFIX}set{count}"),
            Self::Ask => format!("{PREFIX}ask"),
            Self::Restore => format!("{PREFIX}restore"),
            Self::Begin => format!("{PREFIX}begin"),
            Self::Forget => format!("{PREFIX}forget"),
            // Like those of statements, which are counted from 1.
            Self::Taken => format!("{PREFIX}0"),
        }
    }
}

/// What is known of one statement on one server.
#[derive(Debug)]
struct Held {
    statement: Arc<Statement>,
    used: u64,
    /// The server had it when it last said so (faults.md I5).
    present: bool,
    /// Parse and Close messages on their way, in their order.
    pending: Vec<OnItsWay>,
}

#[derive(Debug)]
struct OnItsWay {
    operation: Operation,
    /// The batch it is part of.
    batch: u32,
    /// Whether it adds the statement, or takes it away.
    adds: bool,
}

/// Whether a server has a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It does, or will before the next message of this batch is looked at.
    Held,
    /// It does not, or will not.
    Missing,
    /// That depends on the answer to a message in an earlier batch, which may yet be skipped.
    Undecided,
}

/// A Parse or Close on its way to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation(u64);

impl Held {
    /// Whether a message sent now will find the statement, if nothing on its way fails.
    fn is_expected(&self) -> bool {
        self.pending.last().map_or(self.present, |last| last.adds)
    }
}

impl ServerPrepared {
    /// Marks a statement as used now by a message of this batch, if this server has it.
    #[inline]
    pub fn touch(&mut self, id: u64, batch: u32) -> Presence {
        self.tick += 1;
        match self.statements.get_mut(&id) {
            None => Presence::Missing,
            Some(held) => {
                held.used = self.tick;
                match held.is_expected() {
                    _ if held.pending.iter().any(|pending| pending.batch != batch) => Presence::Undecided,
                    true => Presence::Held,
                    false => Presence::Missing,
                }
            }
        }
    }

    /// Whether it has a statement, or will have it if all on its way succeeds.
    pub fn expects(&self, id: u64) -> bool {
        self.statements.get(&id).is_some_and(Held::is_expected)
    }

    fn begin(&mut self, statement: &Arc<Statement>, batch: u32, adds: bool) -> Operation {
        self.tick += 1;
        let used = self.tick;
        let held = self.statements.entry(statement.id).or_insert_with(|| Held {
            statement: Arc::clone(statement),
            used,
            present: false,
            pending: Vec::new(),
        });
        held.used = used;
        held.pending.push(OnItsWay { operation: Operation(used), batch, adds });
        Operation(used)
    }

    /// A Parse is on its way; what is sent behind it may count on the statement.
    pub fn parse(&mut self, statement: &Arc<Statement>, batch: u32) -> Operation {
        self.begin(statement, batch, true)
    }

    /// A Close is on its way.
    pub fn close(&mut self, statement: &Arc<Statement>, batch: u32) -> Operation {
        self.begin(statement, batch, false)
    }

    /// What was on its way has succeeded, or has failed or was skipped.
    pub fn settle(&mut self, id: u64, operation: Operation, succeeded: bool) {
        let Some(held) = self.statements.get_mut(&id) else { return };
        if let Some(at) = held.pending.iter().position(|pending| pending.operation == operation) {
            let settled = held.pending.remove(at);
            if succeeded {
                held.present = settled.adds;
            }
        }
        if !held.present && held.pending.is_empty() {
            self.statements.remove(&id);
        }
    }

    /// The server dropped all it had (DEALLOCATE ALL, DISCARD ALL). What is still on its way to it stays.
    pub fn clear(&mut self) {
        self.statements.retain(|_, held| {
            held.present = false;
            !held.pending.is_empty()
        });
        self.own = 0;
    }

    /// Nothing is on its way to the server.
    #[inline]
    pub fn quiet(&mut self) {
        self.in_flight_since = self.tick + 1;
    }

    /// The least recently used statement, if there are more than `limit`, unless a message on its way may name it. The
    /// caller closes it. O(n), and only when a server is full.
    pub fn surplus(&self, limit: usize) -> Option<Arc<Statement>> {
        if self.statements.len() <= limit {
            return None;
        }
        let idle = |held: &&Held| held.present && held.pending.is_empty() && held.used < self.in_flight_since;
        let oldest = self.statements.values().filter(idle).min_by_key(|held| held.used)?;
        // Only as many as are too many: those that are being closed already do not count.
        let staying = self.statements.values().filter(|held| held.is_expected()).count();
        (staying > limit).then(|| Arc::clone(&oldest.statement))
    }

    /// The statements that the server has and nothing is on its way for.
    pub(super) fn held(&self) -> Vec<Arc<Statement>> {
        let settled = |held: &&Held| held.present && held.pending.is_empty();
        self.statements.values().filter(settled).map(|held| Arc::clone(&held.statement)).collect()
    }

    /// Statements for our own purposes that it has, or will have.
    pub(super) fn owned(&self) -> impl Iterator<Item = Own> {
        let all = (1..=Own::MOST).map(Own::Set).chain([Own::Ask, Own::Restore, Own::Begin, Own::Forget, Own::Taken]);
        all.filter(|own| self.has_own(*own))
    }

    /// Whether the server has a statement of ours, or will have it.
    pub(super) fn has_own(&self, own: Own) -> bool {
        self.own & own.bit() != 0
    }

    /// The names of the statements that the server has, our own included.
    pub(super) fn names(&self) -> std::collections::BTreeSet<String> {
        let own = self.owned().map(Own::name);
        let present = self.statements.values().filter(|held| held.present);
        present.map(|held| held.statement.name.to_string()).chain(own).collect()
    }

    /// How many statements the server has.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::settings::SettingsInterner;

    fn intern(statements: &StatementInterner, query: &str, types: &[u8], settings: &Settings) -> Arc<Statement> {
        statements.intern(query.as_bytes(), types, settings, || Analysis::UNKNOWN)
    }

    #[test]
    fn i05_a_statement_is_its_text_its_types_and_the_settings_that_give_it_meaning() {
        let (settings, statements) = (SettingsInterner::default(), StatementInterner::default());
        let none = settings.intern::<&str, &str>([]);
        let a = intern(&statements, "select 1", b"\0\0", &none);
        assert!(Arc::ptr_eq(&a, &intern(&statements, "select 1", b"\0\0", &none)));
        let path = settings.intern([("search_path", "x")]);
        for other in [
            intern(&statements, "select 2", b"\0\0", &none),
            intern(&statements, "select 1", b"\0\x01\0\0\0\x17", &none),
            intern(&statements, "select 1", b"\0\0", &path),
        ] {
            assert_ne!(other.id, a.id);
        }
        let app = settings.intern([("application_name", "x")]);
        assert!(Arc::ptr_eq(&a, &intern(&statements, "select 1", b"\0\0", &app)));
    }

    fn hold(server: &mut ServerPrepared, statement: &Arc<Statement>) {
        let operation = server.parse(statement, 0);
        server.settle(statement.id, operation, true);
    }

    #[test]
    fn i05_eviction_never_takes_a_statement_that_a_message_on_its_way_names() {
        let (settings, statements) = (SettingsInterner::default(), StatementInterner::default());
        let none = settings.intern::<&str, &str>([]);
        let [a, b, c] = ["a", "b", "c"].map(|q| intern(&statements, q, b"\0\0", &none));
        let mut server = ServerPrepared::default();
        hold(&mut server, &a);
        hold(&mut server, &b);
        server.quiet();
        assert_eq!(server.touch(a.id, 1), Presence::Held);
        let parse = server.parse(&c, 1);
        assert_eq!(server.surplus(2).map(|s| s.id), Some(b.id), "the least recently used");
        let close = server.close(&b, 1);
        assert!(server.surplus(1).is_none(), "a was touched by a message on its way, c is on its way itself");
        server.settle(c.id, parse, true);
        server.settle(b.id, close, true);
        server.quiet();
        assert_eq!(server.surplus(1).map(|s| s.id), Some(a.id));
    }

    #[test]
    fn i05_what_a_server_has_is_what_it_said_and_what_is_on_its_way() {
        let (settings, statements) = (SettingsInterner::default(), StatementInterner::default());
        let statement = intern(&statements, "a", b"\0\0", &settings.intern::<&str, &str>([]));
        let mut server = ServerPrepared::default();
        // A failed Parse leaves nothing.
        let failed = server.parse(&statement, 1);
        assert_eq!(server.touch(statement.id, 1), Presence::Held);
        assert_eq!(server.touch(statement.id, 2), Presence::Undecided);
        server.settle(statement.id, failed, false);
        assert_eq!(server.touch(statement.id, 1), Presence::Missing);
        assert!(server.is_empty());
        // The first of two fails, when the second is on its way already and will succeed.
        let first = server.parse(&statement, 1);
        let close = server.close(&statement, 2);
        let second = server.parse(&statement, 2);
        server.settle(statement.id, first, false);
        server.settle(statement.id, close, true);
        server.settle(statement.id, second, true);
        assert_eq!(server.touch(statement.id, 3), Presence::Held);
        // A skipped Close leaves it where it was.
        let skipped = server.close(&statement, 3);
        assert_eq!(server.touch(statement.id, 3), Presence::Missing);
        assert_eq!(server.touch(statement.id, 4), Presence::Undecided);
        server.settle(statement.id, skipped, false);
        assert_eq!(server.touch(statement.id, 4), Presence::Held);
    }

    #[test]
    fn a_name_that_an_earlier_batch_may_yet_fail_to_make_or_close_is_undecided() {
        let (settings, statements) = (SettingsInterner::default(), StatementInterner::default());
        let none = settings.intern::<&str, &str>([]);
        let [a, b] = ["a", "b"].map(|query| intern(&statements, query, b"\0\0", &none));
        let mut names = ClientPrepared::default();
        names.begin(b"s", Some(Arc::clone(&a)), 1);
        assert!(matches!(names.look_up(b"s", 1), Lookup::Known(_, s) if s.id == a.id));
        assert!(matches!(names.look_up(b"s", 2), Lookup::Undecided));
        names.confirm(b"s");
        assert!(matches!(names.look_up(b"s", 2), Lookup::Known(..)));
        // Closed and made again in one batch that then fails: it is what it was.
        names.begin(b"s", None, 3);
        assert!(matches!(names.look_up(b"s", 3), Lookup::Unknown));
        names.begin(b"s", Some(b), 3);
        names.undo(b"s");
        names.undo(b"s");
        assert!(matches!(names.look_up(b"s", 4), Lookup::Known(_, s) if s.id == a.id));
        // Made again, and only the second of the two messages fails.
        names.begin(b"s", None, 5);
        names.begin(b"s", Some(Arc::clone(&a)), 5);
        names.confirm(b"s");
        names.undo(b"s");
        assert!(names.is_empty());
    }

    #[test]
    fn statements_that_nobody_holds_are_forgotten() {
        let (settings, statements) = (SettingsInterner::default(), StatementInterner::default());
        let none = settings.intern::<&str, &str>([]);
        for i in 0..10_000 {
            intern(&statements, &format!("select {i}"), b"\0\0", &none);
        }
        assert!(statements.is_empty() && statements.statements.lock().unwrap().len() < 100);
    }
}
