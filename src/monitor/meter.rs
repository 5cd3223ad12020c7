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
    spilled: AtomicU32,
}

/// A request under way. Dropped, it is not any more.
#[derive(Debug)]
pub struct Busy {
    meter: Arc<Meter>,
    spilled: bool,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.meter.outstanding.fetch_sub(1, Ordering::Relaxed);
        if self.spilled {
            self.meter.spilled.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Busy {
    /// A read that was routed there has ended after so long.
    pub fn finish(self, took: Duration) {
        self.meter.reads.fetch_add(1, Ordering::Relaxed);
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let before = self.meter.latency_us.load(Ordering::Relaxed);
        // A lost update between two threads is one sample less of many.
        let after = if before == 0 { took } else { before - before / 8 + took / 8 };
        self.meter.latency_us.store(after, Ordering::Relaxed);
    }
}

impl Meter {
    /// Counts a request that begins.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Busy { meter: Arc::clone(self), spilled: false }
    }

    /// Counts a read that begins here because every replica is busy.
    pub fn begin_spilled(self: &Arc<Self>) -> Busy {
        self.spilled.fetch_add(1, Ordering::Relaxed);
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Busy { meter: Arc::clone(self), spilled: true }
    }

    /// Of the requests under way, reads that are here because every replica is busy.
    pub fn spilled(&self) -> u32 {
        self.spilled.load(Ordering::Relaxed)
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
