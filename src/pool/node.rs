//! One PostgreSQL server, as all pools that connect to it share it.

use crate::monitor::Meter;
use crate::net::Address;
use crate::routing::NodeId;
use std::sync::Arc;
use tokio::sync::{Semaphore, SemaphorePermit};

/// One server.
#[derive(Debug)]
pub struct Node {
    /// Which it is: the same address has the same number for as long as the program runs.
    pub id: NodeId,
    /// Where it is.
    pub address: Address,
    /// What it has to do.
    pub meter: Arc<Meter>,
    dials: Semaphore,
}

impl Node {
    /// A server where so many logins may run at the same time.
    pub fn new(id: NodeId, address: Address, dials: usize) -> Arc<Self> {
        let dials = Semaphore::new(dials.max(1));
        Arc::new(Self { id, address, meter: Arc::default(), dials })
    }

    /// A place among the logins that run at the same time.
    pub(super) async fn dial_slot(&self) -> Option<SemaphorePermit<'_>> {
        self.dials.acquire().await.ok()
    }
}
