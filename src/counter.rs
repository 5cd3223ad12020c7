//! Counters that every worker adds to and anybody reads.
//!
//! A query adds to a dozen of them, and an addition that other threads may race with costs as much as some twenty that
//! they may not. So each worker thread has a shard of its own, which it alone writes; all other threads share one.

use crate::wire::SqlState;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Shards: the shared one, and one for each of the first workers. Workers beyond them use the shared one.
const SHARDS: usize = 5;

thread_local! {
    /// This thread's shard.
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// Makes this thread a worker: it alone writes the shard of that number. Of threads that count in the same counters, at most
/// one may have a number at a time.
pub fn become_worker(number: usize) {
    OWN.set(if number + 1 < SHARDS { number + 1 } else { 0 });
}

/// Something that is counted, once for each shard. The alignment keeps threads out of each other's cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard<T>(T);

/// Counters of one kind, a copy for each thread that counts.
#[derive(Debug, Default)]
pub struct Sharded<T>([Shard<T>; SHARDS]);

impl<T> Sharded<T> {
    /// This thread's copy, and how to add to it.
    #[inline]
    pub fn own(&self) -> (&T, Adder) {
        let own = OWN.get();
        // It is never above the number of shards.
        let shard = self.0.get(own).unwrap_or(&self.0[0]);
        (&shard.0, Adder { alone: own != 0, _thread: std::marker::PhantomData })
    }

    /// All copies.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|shard| &shard.0)
    }
}

/// Adds to the counters of a shard. Only of use in the thread that got it.
#[derive(Clone, Copy)]
pub struct Adder {
    alone: bool,
    _thread: std::marker::PhantomData<*const ()>,
}

impl Adder {
    /// Adds; the counter wraps.
    #[inline]
    pub fn add(self, counter: &AtomicU64, more: u64) {
        if self.alone {
            // Nobody else writes it: no addition can be lost between the two.
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        } else {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }
}

/// SQLSTATEs that are counted each for itself: servers are not trusted to make up only a few.
const STATES: usize = 64;

/// Counts what happens rarely, by its SQLSTATE.
#[derive(Debug, Default)]
pub struct ByState(Mutex<BTreeMap<String, u64>>);

impl ByState {
    /// Counts one more.
    pub fn count(&self, state: SqlState) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = state.to_string();
        if counts.len() >= STATES && !counts.contains_key(&state) {
            state = "other".to_owned();
        }
        *counts.entry(state).or_default() += 1;
    }

    /// What was counted.
    pub fn all(&self) -> Vec<(String, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(state, count)| (state.clone(), *count)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_where_workers_and_other_threads_count_together() {
        let counters = Sharded::<AtomicU64>::default();
        std::thread::scope(|scope| {
            for worker in [Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), None, None] {
                let counters = &counters;
                scope.spawn(move || {
                    if let Some(number) = worker {
                        become_worker(number);
                    }
                    for _ in 0..20_000 {
                        let (own, adder) = counters.own();
                        adder.add(own, 1);
                    }
                });
            }
        });
        assert_eq!(counters.all().map(|counter| counter.load(Ordering::Relaxed)).sum::<u64>(), 160_000);
    }
}
