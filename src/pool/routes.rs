//! What a client's reads are routed by: the servers of its pools, what is known of them and of its database.

use super::Pool;
use super::directory::RoutingConfig;
use crate::monitor::{Knowledge, Login, Monitor};
use crate::routing::{Destination, Moment, NodeId, Preference, Reason, verdict};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How many texts are remembered that a replica has refused.
const MOST_LEARNED: usize = 1000;
/// For how long.
const REMEMBERED: Duration = Duration::from_secs(600);
/// How much of such a text is looked at, and how much of that is shown.
const LOOKED_AT: usize = 1000;
const SHOWN: usize = 200;

/// Where requests of one database and user may go, and where they went.
#[derive(Debug)]
pub struct Routes {
    /// What watches the servers.
    pub monitor: Arc<Monitor>,
    /// A pool for each server, in the monitor's order.
    pub pools: Arc<[Arc<Pool>]>,
    /// What an operator says of the database.
    pub config: RoutingConfig,
    /// The same of the user.
    pub user: Preference,
    database: Box<str>,
    login: Arc<Login>,
    knowledge: OnceLock<Arc<Knowledge>>,
    record: Arc<Record>,
}

/// What happened; kept over reloads.
#[derive(Debug)]
pub struct Record {
    replica: [AtomicU64; Reason::ALL.len()],
    primary: [AtomicU64; Reason::ALL.len()],
    nowhere: [AtomicU64; Reason::ALL.len()],
    retried: AtomicU64,
    /// When somebody has last written.
    written: Mutex<Option<Moment>>,
    learned: Mutex<HashMap<u64, Learned>>,
    learned_count: AtomicUsize,
}

/// A text that a replica has refused.
#[derive(Debug, Clone)]
pub struct Learned {
    /// Its beginning, without constants.
    pub text: Box<str>,
    /// The replica's words.
    pub why: &'static str,
    /// When a replica has refused it last.
    pub at: Instant,
    /// How often it was sent to the primary since.
    pub uses: u64,
}

impl Default for Record {
    fn default() -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            replica: zeros(),
            primary: zeros(),
            nowhere: zeros(),
            retried: AtomicU64::new(0),
            written: Mutex::default(),
            learned: Mutex::default(),
            learned_count: AtomicUsize::new(0),
        }
    }
}

impl Record {
    fn of(&self, to: Destination) -> &[AtomicU64; Reason::ALL.len()] {
        match to {
            Destination::Replica => &self.replica,
            Destination::Primary => &self.primary,
            Destination::Nowhere => &self.nowhere,
        }
    }

    /// Counts a request.
    #[inline]
    pub fn count(&self, to: Destination, reason: Reason) {
        self.of(to)[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted, as far as it is not nothing.
    pub fn counts(&self) -> Vec<(Destination, Reason, u64)> {
        let mut counts = Vec::new();
        for to in [Destination::Replica, Destination::Primary, Destination::Nowhere] {
            let all =
                Reason::ALL.iter().zip(self.of(to)).map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)));
            counts.extend(all.filter(|(_, count)| *count > 0).map(|(reason, count)| (to, reason, count)));
        }
        counts
    }

    /// A session has written, before this moment.
    pub fn note_written(&self, now: Moment) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// When a session has last written: what one that begins later must not miss. Who has written and left may be the same
    /// application that comes back now.
    pub fn written(&self) -> Option<Moment> {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read was sent once more, to the primary.
    pub fn count_retry(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads that were sent once more.
    pub fn retried(&self) -> u64 {
        self.retried.load(Ordering::Relaxed)
    }

    fn learned(&self) -> MutexGuard<'_, HashMap<u64, Learned>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is anything that was learnt: an atomic load.
    #[inline]
    pub fn has_learned(&self) -> bool {
        self.learned_count.load(Ordering::Relaxed) > 0
    }

    /// A replica has refused a text.
    pub fn learn(&self, fingerprint: u64, text: &[u8], why: &'static str, now: Instant) {
        let mut learned = self.learned();
        learned.retain(|_, known| now.saturating_duration_since(known.at) < REMEMBERED);
        if learned.len() >= MOST_LEARNED
            && let Some(oldest) = learned.iter().min_by_key(|(_, known)| known.at).map(|(key, _)| *key)
        {
            learned.remove(&oldest);
        }
        learned.insert(fingerprint, Learned { text: shown(text), why, at: now, uses: 0 });
        self.learned_count.store(learned.len(), Ordering::Relaxed);
    }

    /// Whether a replica has refused a text lately; then that is counted.
    pub fn knows(&self, fingerprint: u64, now: Instant) -> bool {
        let mut learned = self.learned();
        let Some(known) = learned.get_mut(&fingerprint) else { return false };
        if now.saturating_duration_since(known.at) >= REMEMBERED {
            learned.remove(&fingerprint);
            self.learned_count.store(learned.len(), Ordering::Relaxed);
            return false;
        }
        known.uses += 1;
        true
    }

    /// Whether a replica has refused a text lately.
    pub fn remembers(&self, fingerprint: u64, now: Instant) -> bool {
        self.learned().get(&fingerprint).is_some_and(|known| now.saturating_duration_since(known.at) < REMEMBERED)
    }

    /// What was learnt, newest first.
    pub fn all_learned(&self) -> Vec<Learned> {
        let mut all: Vec<_> = self.learned().values().cloned().collect();
        all.sort_by_key(|known| std::cmp::Reverse(known.at));
        all
    }
}

/// The beginning of a text, as far as it may be shown.
fn shown(text: &[u8]) -> Box<str> {
    let text = &text[..text.len().min(LOOKED_AT)];
    // What a backslash means depends on the session: behind one, a constant could pass for something else.
    let plain = text.iter().position(|&byte| byte == b'\\').unwrap_or(text.len());
    let mut shown = verdict::shape(&text[..plain], true);
    shown.truncate(shown.floor_char_boundary(SHOWN));
    shown.into()
}

impl Routes {
    pub(super) fn new(
        (monitor, login): (Arc<Monitor>, Arc<Login>),
        pools: Arc<[Arc<Pool>]>,
        (config, user): (RoutingConfig, Preference),
        database: Box<str>,
        record: Arc<Record>,
    ) -> Arc<Self> {
        Arc::new(Self { monitor, pools, config, user, database, login, knowledge: OnceLock::new(), record })
    }

    /// What is known of the functions of the database; from the first call on it is asked for.
    pub fn knowledge(&self) -> &Arc<Knowledge> {
        let ask = || self.monitor.knowledge(&self.database, &self.login, &self.config.read_functions);
        self.knowledge.get_or_init(ask)
    }

    /// What happened.
    pub fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// The pool of a server.
    pub fn pool_of(&self, node: NodeId) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| pool.node.id == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learnt_is_bounded_and_forgotten_after_a_while() {
        let record = Record::default();
        let now = Instant::now();
        for key in 0..2000 {
            record.learn(key, b"select f()", "refused", now + Duration::from_millis(key));
        }
        assert_eq!(record.all_learned().len(), MOST_LEARNED);
        assert!(!record.knows(5, now) && record.knows(1999, now));
        assert_eq!(record.all_learned()[0].uses, 1);
        assert!(!record.knows(1999, now + REMEMBERED + Duration::from_secs(2)));
        assert_eq!(record.all_learned().len(), MOST_LEARNED - 1);
    }

    #[test]
    fn what_is_learnt_is_shown_without_constants() {
        let record = Record::default();
        let texts = ["select f('secret', 1)", "select f(E'\\'secret')", "select 'secret\\', 'secret', 'secret"];
        for (key, text) in texts.into_iter().enumerate() {
            record.learn(key as u64, text.as_bytes(), "refused", Instant::now());
        }
        record.learn(9, "select g() -- x".repeat(100).as_bytes(), "refused", Instant::now());
        let shown = record.all_learned();
        assert!(
            shown.iter().all(|known| known.text.starts_with("select") && !known.text.contains("secret")),
            "{shown:?}"
        );
        assert!(shown.iter().all(|known| known.text.len() <= SHOWN), "{shown:?}");
    }

    #[test]
    fn requests_are_counted_by_where_they_went_and_why() {
        let record = Record::default();
        record.count(Destination::Primary, Reason::Locking);
        record.count(Destination::Replica, Reason::Read);
        record.count(Destination::Replica, Reason::Read);
        assert_eq!(
            record.counts(),
            [(Destination::Replica, Reason::Read, 2), (Destination::Primary, Reason::Locking, 1)]
        );
    }
}
