//! One PostgreSQL server, as all pools that connect to it share it.

use crate::net::Address;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Limits of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeLimits {
    /// Connections over all pools; `None` for no limit but those of the pools.
    pub connections: Option<usize>,
    /// Logins at the same time.
    pub dials: usize,
}

/// One server.
#[derive(Debug)]
pub struct Node {
    /// Where it is.
    pub address: Address,
    dials: Semaphore,
    connections: Option<Arc<Semaphore>>,
    /// Some pool cannot connect because all places are taken: others shall give up what they do not use.
    crowded: AtomicBool,
}

impl Node {
    /// A server with these limits.
    pub fn new(address: Address, limits: NodeLimits) -> Arc<Self> {
        Arc::new(Self {
            address,
            dials: Semaphore::new(limits.dials.max(1)),
            connections: limits.connections.map(|n| Arc::new(Semaphore::new(n))),
            crowded: AtomicBool::new(false),
        })
    }

    /// A place among the logins that run at the same time.
    pub(super) async fn dial_slot(&self) -> Option<SemaphorePermit<'_>> {
        self.dials.acquire().await.ok()
    }

    pub(super) fn connection_limit(&self) -> Option<Arc<Semaphore>> {
        self.connections.clone()
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
