//! What the buffers of all connections may take up together (faults.md F20, I24).
//!
//! A connection keeps bytes that its peer does not take, and the first part of a message that has to be whole. Each may
//! keep only so much, but a thousand of them add up. From the limit on, those that keep a lot are not read any more, all
//! others are read in small pieces, and nobody new is let in, until enough was sent on.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

/// The limit of all buffers together, and how much of it is taken.
#[derive(Debug)]
pub struct Budget {
    /// Bytes.
    limit: AtomicUsize,
    /// Bytes.
    taken: AtomicUsize,
    /// The limit was reached, and not enough was given back since.
    exhausted: AtomicBool,
    /// How often it was reached.
    times: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Counts the times that all were woken, from 1 on.
    round: u64,
    wakers: Vec<Waker>,
}

impl Budget {
    /// A budget of so many bytes; 0 is no limit.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: AtomicUsize::new(unlimited(limit)), ..Self::default() })
    }

    /// The limit in bytes; `None` is none.
    pub fn limit(&self) -> Option<usize> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit < usize::MAX)
    }

    /// Sets the limit in bytes; 0 is none.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(unlimited(limit), Ordering::Relaxed);
        self.look();
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// How often the limit was reached.
    pub fn times_exhausted(&self) -> u64 {
        self.times.load(Ordering::Relaxed)
    }

    /// Whether the limit was reached, and less than an eighth of it was given back since.
    #[inline]
    pub fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }

    /// Wakes the task when there is room again, unless it is there already: then the answer is no. `round` is 0 at first,
    /// and belongs to whoever waits.
    fn wait(&self, waker: &Waker, round: &mut u64) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_exhausted() {
            return false;
        }
        if *round != waiting.round {
            *round = waiting.round;
            waiting.wakers.push(waker.clone());
        }
        true
    }

    /// Sees to it that `exhausted` is what it should be, and wakes those who wait where there is room again.
    fn look(&self) {
        // Again behind each turn: somebody may have given back in between, and have seen what was true before.
        while let Some(exhausted) = self.should_turn() {
            self.turn(exhausted);
        }
    }

    /// What `exhausted` should become. Not at once again what it was: who was woken would take it away from the next one.
    fn should_turn(&self) -> Option<bool> {
        let (taken, limit) = (self.taken.load(Ordering::SeqCst), self.limit.load(Ordering::Relaxed));
        match self.exhausted.load(Ordering::SeqCst) {
            false if taken >= limit => Some(true),
            true if taken <= limit - limit / 8 => Some(false),
            _ => None,
        }
    }

    #[cold]
    fn turn(&self, exhausted: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.should_turn() != Some(exhausted) {
            return;
        }
        self.exhausted.store(exhausted, Ordering::SeqCst);
        let (buffer_bytes, limit) = (self.taken(), self.limit.load(Ordering::Relaxed));
        if exhausted {
            self.times.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                buffer_bytes,
                buffer_limit = limit,
                "buffer_limit is reached: clients whose messages take up much have to wait, and new ones are refused"
            );
            return;
        }
        tracing::info!(buffer_bytes, buffer_limit = limit, "there is room for buffers again");
        waiting.round += 1;
        let wakers = std::mem::take(&mut waiting.wakers);
        drop(waiting);
        for waker in wakers {
            waker.wake();
        }
    }
}

impl Default for Budget {
    /// Without a limit.
    fn default() -> Self {
        Self {
            limit: AtomicUsize::new(usize::MAX),
            taken: AtomicUsize::new(0),
            exhausted: AtomicBool::new(false),
            times: AtomicU64::new(0),
            waiting: Mutex::new(Waiting { round: 1, wakers: Vec::new() }),
        }
    }
}

fn unlimited(limit: usize) -> usize {
    if limit == 0 { usize::MAX } else { limit }
}

/// What one connection has taken of a budget. Dropping it gives that back.
#[derive(Debug)]
pub struct Allotment {
    budget: Arc<Budget>,
    bytes: usize,
    /// In which round of wakes its connection is waiting, or was last.
    round: u64,
}

/// What a connection may keep without being counted, in bytes: most keep something for less than a turn of the event loop,
/// and should not meet at a counter for it.
pub const UNCOUNTED: usize = 16 * 1024;

impl Allotment {
    /// Nothing of `budget`.
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0, round: 0 }
    }

    /// What it is of.
    #[inline]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Wakes the task of its connection when there is room again, unless it is there already: then the answer is no.
    pub fn wait(&mut self, waker: &Waker) -> bool {
        self.budget.wait(waker, &mut self.round)
    }

    /// Says how many bytes the connection keeps now.
    #[inline]
    pub fn set(&mut self, bytes: usize) {
        let bytes = if bytes > UNCOUNTED { bytes } else { 0 };
        if bytes != self.bytes {
            self.change(bytes);
        }
    }

    #[cold]
    fn change(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.budget.taken.fetch_add(bytes - self.bytes, Ordering::SeqCst);
        } else {
            self.budget.taken.fetch_sub(self.bytes - bytes, Ordering::SeqCst);
        }
        self.bytes = bytes;
        self.budget.look();
    }
}

impl Drop for Allotment {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What several connections keep together. It counts once, from the first byte on, until the last of them has let it go.
#[derive(Debug)]
pub struct Kept {
    bytes: Box<[u8]>,
    budget: Arc<Budget>,
}

impl Kept {
    /// What keeping it takes beside its bytes, about.
    const BESIDE: usize = 64;

    /// A copy of these bytes.
    pub fn new(bytes: &[u8], budget: &Arc<Budget>) -> Self {
        let kept = Self { bytes: bytes.into(), budget: Arc::clone(budget) };
        budget.taken.fetch_add(kept.size(), Ordering::SeqCst);
        budget.look();
        kept
    }

    /// What it counts in.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    fn size(&self) -> usize {
        self.bytes.len() + Self::BESIDE
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Kept {}

impl std::ops::Deref for Kept {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.size(), Ordering::SeqCst);
        self.budget.look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_is_kept_counts_from_a_limit_on_and_is_given_back_with_its_connection() {
        let budget = Budget::new(0);
        let mut one = Allotment::new(&budget);
        one.set(UNCOUNTED);
        assert_eq!(budget.taken(), 0);
        one.set(UNCOUNTED + 1);
        let mut other = Allotment::new(&budget);
        other.set(100_000);
        assert_eq!(budget.taken(), UNCOUNTED + 1 + 100_000);
        drop(one);
        assert_eq!(budget.taken(), 100_000);
        assert!(!budget.is_exhausted(), "0 is no limit");
        drop(other);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn what_several_keep_counts_once_until_the_last_has_let_it_go() {
        let budget = Budget::new(1000);
        let kept = Arc::new(Kept::new(&[1; 1000], &budget));
        let other = Arc::clone(&kept);
        assert_eq!(budget.taken(), 1000 + Kept::BESIDE);
        assert!(budget.is_exhausted());
        drop(kept);
        assert_eq!(other[..], [1; 1000]);
        assert!(budget.is_exhausted());
        drop(other);
        assert_eq!(budget.taken(), 0);
        assert!(!budget.is_exhausted());
    }

    #[test]
    fn who_waits_for_room_is_woken_once_an_eighth_is_free() {
        let budget = Budget::new(800_000);
        let (mut one, mut other) = (Allotment::new(&budget), Allotment::new(&budget));
        one.set(700_000);
        let (woken, mut round) = (Arc::new(Woken::default()), 0);
        let waker = Arc::clone(&woken).into();
        assert!(!budget.wait(&waker, &mut round), "there is room");
        other.set(100_000);
        assert!(budget.is_exhausted());
        assert!(budget.wait(&waker, &mut round));
        assert!(budget.wait(&waker, &mut round), "asking twice is waiting once");
        other.set(50_000);
        assert!(budget.is_exhausted() && woken.0.load(Ordering::Relaxed) == 0, "too little was given back");
        other.set(0);
        assert!(!budget.is_exhausted());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        one.set(800_000);
        assert!(budget.wait(&waker, &mut round), "another round");
        budget.set_limit(0);
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert_eq!(budget.times_exhausted(), 2);
    }
}
