//! One PostgreSQL server, as all pools that connect to it share it.

use crate::net::Address;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Semaphore, SemaphorePermit};

/// One server.
#[derive(Debug)]
pub struct Node {
    /// Where it is.
    pub address: Address,
    dials: Semaphore,
    /// Some pool cannot connect because all places are taken: others shall give up what they do not use.
    crowded: AtomicBool,
}

impl Node {
    /// A server where so many logins may run at the same time.
    pub fn new(address: Address, dials: usize) -> Arc<Self> {
        Arc::new(Self { address, dials: Semaphore::new(dials.max(1)), crowded: AtomicBool::new(false) })
    }

    /// A place among the logins that run at the same time.
    pub(super) async fn dial_slot(&self) -> Option<SemaphorePermit<'_>> {
        self.dials.acquire().await.ok()
    }

    pub(super) fn wants_room(&self) {
        self.crowded.store(true, Ordering::Relaxed);
    }

    pub(super) fn room_was_made(&self) {
        self.crowded.store(false, Ordering::Relaxed);
    }

    /// Whether idle connections to this server should be given up for others.
    pub fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }
}
