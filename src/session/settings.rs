//! The settings (GUCs) of a session that differ from its server's defaults, and the difference between two such sets.
//!
//! A set is immutable and interned: two sessions with the same settings hold the same pointer, so the question "does
//! this server have what this client set?" is one comparison and no allocation.

pub(super) use crate::sql::READING;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One setting: its name in lower case, and its value as `set_config()` takes it.
pub type Setting = (Box<str>, Box<str>);

/// An interned set of settings.
#[derive(Clone)]
pub struct Settings(Arc<Inner>);

struct Inner {
    list: Vec<Setting>,
    parse_key: Arc<[Setting]>,
}

/// Settings whose value cannot change what a statement's text means when it is parsed and analysed. A statement
/// prepared under one value of these may serve a session with another; all others separate prepared statements.
///
/// `search_path` is not among them: PostgreSQL re-analyses on a change, and would then refuse a changed result type.
const NO_PARSE_EFFECT: &[&str] = &[
    "application_name",
    "bytea_output",
    "client_min_messages",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "jit",
    "lock_timeout",
    "maintenance_work_mem",
    "statement_timeout",
    "synchronous_commit",
    "transaction_timeout",
    "work_mem",
];

/// Settings that say who the session is, in the order in which they are taken on.
const IDENTITY: [&str; 2] = ["session_authorization", "role"];

/// The order in which settings are applied: identity last.
fn apply_order(a: &str, b: &str) -> Ordering {
    let rank = |name: &str| IDENTITY.iter().position(|i| *i == name).map_or(0, |at| at + 1);
    rank(a).cmp(&rank(b)).then_with(|| a.cmp(b))
}

impl Settings {
    /// The value of a setting that is in the set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.list.iter().find(|(n, _)| &**n == name).map(|(_, value)| &**value)
    }

    /// All settings, in the order in which they are applied.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.list.iter().map(|(name, value)| (&**name, &**value))
    }

    /// How many settings there are.
    pub fn len(&self) -> usize {
        self.0.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.list.is_empty()
    }

    /// Whether both are the same set: one pointer comparison.
    #[inline]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The settings that may change what a statement's text means.
    pub(super) fn parse_key(&self) -> &Arc<[Setting]> {
        &self.0.parse_key
    }

    /// What to set, and what to reset (`None`), to make a session with these settings one with `wanted`.
    pub fn difference<'a>(&'a self, wanted: &'a Self) -> Vec<(&'a str, Option<&'a str>)> {
        let is_identity = |name: &str| IDENTITY.contains(&name);
        let mut changes = Vec::new();
        changes.extend(self.iter().filter(|(n, _)| !is_identity(n) && wanted.get(n).is_none()).map(|(n, _)| (n, None)));
        changes.extend(
            wanted.iter().filter(|(n, v)| !is_identity(n) && self.get(n) != Some(v)).map(|(n, v)| (n, Some(v))),
        );
        if changes.is_empty() && IDENTITY.iter().all(|name| self.get(name) == wanted.get(name)) {
            return changes;
        }
        // The right to set the rest is the login role's: give identity back first of all, take it on last of all. Role
        // falls back to none with every change of session_authorization.
        let given_back = IDENTITY.iter().rev().filter(|name| self.get(name).is_some()).map(|name| (*name, None));
        let taken_on = IDENTITY.iter().filter_map(|name| wanted.get(name).map(|value| (*name, Some(value))));
        given_back.chain(changes).chain(taken_on).collect()
    }
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.same(other)
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Where sets are interned. One for the whole program, or a pointer comparison means nothing.
#[allow(clippy::type_complexity, reason = "weak references by their contents; a name would hide that")]
#[derive(Default)]
pub struct SettingsInterner {
    sets: Mutex<HashMap<Box<[Setting]>, Weak<Inner>>>,
    parse_keys: Mutex<HashMap<Box<[Setting]>, Weak<[Setting]>>>,
}

impl SettingsInterner {
    /// The set of these settings. Names are folded to lower case; of one that is named twice the last value counts.
    pub fn intern<N: AsRef<str>, V: AsRef<str>>(&self, settings: impl IntoIterator<Item = (N, V)>) -> Settings {
        let mut list: Vec<Setting> = Vec::new();
        for (name, value) in settings {
            let (name, value) = (name.as_ref().to_ascii_lowercase().into_boxed_str(), value.as_ref().into());
            match list.iter_mut().find(|(n, _)| *n == name) {
                Some(slot) => slot.1 = value,
                None => list.push((name, value)),
            }
        }
        list.sort_by(|(a, _), (b, _)| apply_order(a, b));
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inner) = sets.get(list.as_slice()).and_then(Weak::upgrade) {
            return Settings(inner);
        }
        let inner = Arc::new(Inner { parse_key: self.parse_key(&list), list: list.clone() });
        // What nobody holds any more goes when the map would grow: it never holds more than twice what is in use.
        if sets.len() == sets.capacity() {
            sets.retain(|_, set| set.strong_count() > 0);
        }
        sets.insert(list.into_boxed_slice(), Arc::downgrade(&inner));
        Settings(inner)
    }

    fn parse_key(&self, list: &[Setting]) -> Arc<[Setting]> {
        let key: Vec<Setting> = list.iter().filter(|(name, _)| !NO_PARSE_EFFECT.contains(&&**name)).cloned().collect();
        let mut keys = self.parse_keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = keys.get(key.as_slice()).and_then(Weak::upgrade) {
            return shared;
        }
        let shared: Arc<[Setting]> = key.as_slice().into();
        if keys.len() == keys.capacity() {
            keys.retain(|_, key| key.strong_count() > 0);
        }
        keys.insert(key.into_boxed_slice(), Arc::downgrade(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_are_one_pointer_whatever_their_order_and_case() {
        let interner = SettingsInterner::default();
        let a = interner.intern([("TimeZone", "UTC"), ("a.b", "1")]);
        let b = interner.intern([("a.b", "0"), ("A.B", "1"), ("timezone", "UTC")]);
        assert!(a.same(&b));
        assert!(!a.same(&interner.intern([("timezone", "UTC")])));
        assert_eq!(a.get("timezone"), Some("UTC"));
    }

    #[test]
    fn the_difference_gives_identity_back_first_and_takes_it_on_last() {
        let interner = SettingsInterner::default();
        let server = interner.intern([("role", "ann"), ("work_mem", "1MB"), ("x", "1")]);
        let client = interner.intern([("role", "bob"), ("session_authorization", "bob"), ("x", "1"), ("a", "2")]);
        assert_eq!(
            server.difference(&client),
            [
                ("role", None),
                ("work_mem", None),
                ("a", Some("2")),
                ("session_authorization", Some("bob")),
                ("role", Some("bob"))
            ]
        );
        assert_eq!(
            server.difference(&interner.intern([("x", "1"), ("a", "3")])),
            [("role", None), ("work_mem", None), ("a", Some("3"))]
        );
        let moved = interner.intern([("role", "ann"), ("work_mem", "2MB"), ("x", "1")]);
        assert_eq!(server.difference(&moved), [("role", None), ("work_mem", Some("2MB")), ("role", Some("ann"))]);
        assert_eq!(server.difference(&server.clone()), []);
    }

    #[test]
    fn only_settings_that_may_change_a_statements_meaning_are_in_its_key() {
        let interner = SettingsInterner::default();
        let a = interner.intern([("application_name", "a"), ("search_path", "x")]);
        let b = interner.intern([("application_name", "b"), ("search_path", "x")]);
        let c = interner.intern([("search_path", "y")]);
        assert!(Arc::ptr_eq(a.parse_key(), b.parse_key()));
        assert!(!Arc::ptr_eq(a.parse_key(), c.parse_key()));
    }

    #[test]
    fn sets_that_nobody_holds_are_forgotten() {
        let interner = SettingsInterner::default();
        for i in 0..10_000 {
            interner.intern([("x", i.to_string())]);
        }
        assert!(interner.sets.lock().unwrap().len() < 100);
    }
}
