//! What a node has to do right now, counted by those who send it there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// What a node has to do, over all pools that lead to it.
#[derive(Debug, Default)]
pub struct Meter {
    outstanding: AtomicU32,
    latency_us: AtomicU32,
    reads: AtomicU64,
}

/// A request under way. Dropped, it is not any more.
#[derive(Debug)]
pub struct Busy(Arc<Meter>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Busy {
    /// A read that was routed there has ended after so long.
    pub fn finish(self, took: Duration) {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let before = self.0.latency_us.load(Ordering::Relaxed);
        // A lost update between two threads is one sample less of many.
        let after = if before == 0 { took } else { before - before / 8 + took / 8 };
        self.0.latency_us.store(after, Ordering::Relaxed);
    }
}

impl Meter {
    /// Counts a request that begins.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    /// Requests under way.
    pub fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// How long reads take, smoothed, in microseconds.
    pub fn latency_us(&self) -> u32 {
        self.latency_us.load(Ordering::Relaxed)
    }

    /// Reads that were routed there and have ended.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}
