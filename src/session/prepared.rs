//! Client statement names <-> names on a server.
//!
//! A statement that any client prepares is known by its text, its parameter types and the settings that give the text
//! its meaning; on every server it has one name, made from its number. So two clients that call different statements
//! "s1" never meet, and two that prepare the same text share it.

use super::settings::{Setting, Settings};
use crate::sql::Analysis;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
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
}

impl Key<'_> {
    fn hash(&self) -> u64 {
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        self.query.hash(&mut hasher);
        self.types.hash(&mut hasher);
        Arc::as_ptr(self.parse_key).cast::<()>().hash(&mut hasher);
        hasher.finish()
    }

    fn is_of(&self, statement: &Statement) -> bool {
        *self.query == *statement.query
            && *self.types == *statement.types
            && Arc::ptr_eq(self.parse_key, &statement.parse_key)
    }
}

/// Where statements are interned. One for the whole program.
#[derive(Default)]
pub struct StatementInterner {
    next: AtomicU64,
    statements: Mutex<HashMap<u64, Vec<Weak<Statement>>>>,
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
        let key = Key { query, types, parse_key: settings.parse_key() };
        let hash = key.hash();
        let mut statements = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        if statements.len() == statements.capacity() {
            statements.retain(|_, list| {
                list.retain(|s| s.strong_count() > 0);
                !list.is_empty()
            });
        }
        let list = statements.entry(hash).or_default();
        if let Some(found) = list.iter().filter_map(Weak::upgrade).find(|s| key.is_of(s)) {
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
        });
        list.retain(|s| s.strong_count() > 0);
        list.push(Arc::downgrade(&statement));
        statement
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
#[derive(Debug, Default)]
pub struct ClientPrepared(Option<Box<HashMap<Box<[u8]>, Arc<Statement>>>>);

impl ClientPrepared {
    /// The statement of this name.
    #[inline]
    pub fn get(&self, name: &[u8]) -> Option<&Arc<Statement>> {
        self.0.as_ref()?.get(name)
    }

    /// Gives a statement a name.
    pub fn insert(&mut self, name: &[u8], statement: Arc<Statement>) {
        self.0.get_or_insert_default().insert(name.into(), statement);
    }

    /// Takes a name away.
    pub fn remove(&mut self, name: &[u8]) -> Option<Arc<Statement>> {
        let map = self.0.as_mut()?;
        let removed = map.remove(name);
        if map.is_empty() {
            self.0 = None;
        }
        removed
    }

    /// Takes all names away.
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |map| map.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The client's name for the statement that is called `server_name` on servers.
    pub fn name_of(&self, server_name: &[u8]) -> Option<&[u8]> {
        self.0.as_ref()?.iter().find(|(_, s)| s.name.as_bytes() == server_name).map(|(name, _)| &**name)
    }
}

/// The statements that one server has, with the order of their last use.
#[derive(Debug, Default)]
pub struct ServerPrepared {
    statements: HashMap<u64, Held>,
    tick: u64,
    /// Which of our own statements that set settings it has: bit n for the one that sets n.
    pub(super) set_statements: u32,
    /// What was used at or after this tick may still be named by a message on its way to the server.
    in_flight_since: u64,
}

#[derive(Debug)]
struct Held {
    statement: Arc<Statement>,
    used: u64,
    /// ParseComplete was seen (faults.md I5).
    confirmed: bool,
}

impl ServerPrepared {
    /// Marks a statement as used now; false if this server does not have it.
    #[inline]
    pub fn touch(&mut self, id: u64) -> bool {
        self.tick += 1;
        match self.statements.get_mut(&id) {
            Some(held) => {
                held.used = self.tick;
                true
            }
            None => false,
        }
    }

    /// Notes that a Parse is on its way; it counts as held for the messages behind it.
    pub fn sent(&mut self, statement: Arc<Statement>) {
        self.tick += 1;
        let held = Held { used: self.tick, confirmed: false, statement: Arc::clone(&statement) };
        self.statements.insert(statement.id, held);
    }

    /// ParseComplete came.
    pub fn confirm(&mut self, id: u64) {
        if let Some(held) = self.statements.get_mut(&id) {
            held.confirmed = true;
        }
    }

    /// The Parse failed or was skipped: the server does not have it.
    pub fn void(&mut self, id: u64) {
        if self.statements.get(&id).is_some_and(|held| !held.confirmed) {
            self.statements.remove(&id);
        }
    }

    /// The statement is gone from the server, or will be before the next message arrives there.
    pub fn remove(&mut self, id: u64) {
        self.statements.remove(&id);
    }

    /// The server dropped all it had (DEALLOCATE ALL, DISCARD ALL). What is still on its way to it stays.
    pub fn clear_confirmed(&mut self) {
        self.statements.retain(|_, held| !held.confirmed);
        self.set_statements = 0;
    }

    /// Nothing is on its way to the server.
    #[inline]
    pub fn quiet(&mut self) {
        self.in_flight_since = self.tick + 1;
    }

    /// Takes out the least recently used statement while there are more than `limit`, unless a message on its way may
    /// name it. O(n), and only when a server is full.
    pub fn evict(&mut self, limit: usize) -> Option<Arc<Statement>> {
        if self.statements.len() <= limit {
            return None;
        }
        let (id, held) = self.statements.iter().min_by_key(|(_, held)| held.used)?;
        if held.used >= self.in_flight_since || !held.confirmed {
            return None;
        }
        let id = *id;
        self.statements.remove(&id).map(|held| held.statement)
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

    #[test]
    fn i05_eviction_never_takes_a_statement_that_a_message_on_its_way_names() {
        let (settings, statements) = (SettingsInterner::default(), StatementInterner::default());
        let none = settings.intern::<&str, &str>([]);
        let [a, b, c] = ["a", "b", "c"].map(|q| intern(&statements, q, b"\0\0", &none));
        let mut server = ServerPrepared::default();
        for s in [&a, &b] {
            server.sent(Arc::clone(s));
            server.confirm(s.id);
        }
        server.quiet();
        assert!(server.touch(a.id));
        server.sent(Arc::clone(&c));
        assert_eq!(server.evict(2).map(|s| s.id), Some(b.id), "the least recently used");
        assert!(server.evict(1).is_none(), "a was touched by a message on its way, c is not confirmed");
        server.confirm(c.id);
        server.quiet();
        assert_eq!(server.evict(1).map(|s| s.id), Some(a.id));
    }

    #[test]
    fn a_failed_parse_leaves_nothing_and_a_confirmed_one_survives_a_late_failure() {
        let (settings, statements) = (SettingsInterner::default(), StatementInterner::default());
        let statement = intern(&statements, "a", b"\0\0", &settings.intern::<&str, &str>([]));
        let mut server = ServerPrepared::default();
        server.sent(Arc::clone(&statement));
        server.void(statement.id);
        assert!(!server.touch(statement.id));
        server.sent(Arc::clone(&statement));
        server.confirm(statement.id);
        server.void(statement.id);
        assert!(server.touch(statement.id));
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
