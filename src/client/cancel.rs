//! Cancel requests: from a client to the server that runs its query, and to no other (faults.md I4).

use super::entry::{CancelTarget, Clients, Order};
use crate::server::{ServerEntry, dial};
use crate::wire::startup::CancelKey;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long a cancel request may take to reach its server: connect, send, see the server close.
const LIMIT: Duration = Duration::from_secs(10);

/// Requests that wait for the lane or are in it. One more is dropped, as one is that comes too late: each holds a socket.
const MOST: usize = 1024;

/// The lane for cancel requests: bounded, and beside the pools, so that a storm of them harms nobody (faults.md I22).
#[derive(Debug)]
pub struct CancelLane {
    slots: Semaphore,
    places: Semaphore,
}

impl CancelLane {
    /// A lane for so many requests at a time.
    pub fn new(slots: usize) -> Self {
        Self { slots: Semaphore::new(slots), places: Semaphore::new(MOST) }
    }

    /// Carries out a client's request. An unknown key is nobody's business: nothing is said.
    pub async fn cancel(&self, clients: &Clients, key: &CancelKey) {
        let Some(client) = clients.find(key) else { return };
        let Ok(_place) = self.places.try_acquire() else { return };
        let Ok(Ok(_slot)) = tokio::time::timeout(LIMIT, self.slots.acquire()).await else { return };
        match client.cancel_target() {
            CancelTarget::Nothing => {}
            CancelTarget::Queue => client.order(Order::LeaveQueue),
            CancelTarget::Server { server, request, on_its_way } => {
                let connected = tokio::time::timeout(LIMIT, dial::connect_again(&server)).await;
                let Ok(Ok(stream)) = connected else { return };
                // While we connected, the query may have ended and another begun: that one nobody wants to cancel.
                if client.still_runs(request) {
                    deliver(stream, &server).await;
                }
                drop(on_its_way);
            }
        }
    }
}

/// Cancels what a server runs for a client that left.
pub(super) async fn send(server: &Arc<ServerEntry>) {
    let on_its_way = server.cancel_begins();
    if let Ok(Ok(stream)) = tokio::time::timeout(LIMIT, dial::connect_again(server)).await {
        deliver(stream, server).await;
    }
    drop(on_its_way);
}

/// Sends the request and waits until the server closes. One that does not is too busy to look at it, and may do so when the
/// connection has gone to somebody else: that must not be (faults.md I4).
async fn deliver(mut stream: crate::net::Stream, server: &ServerEntry) {
    server.cancel_is_sent();
    let delivered = async {
        stream.write_all(&server.key.request()).await?;
        let mut byte = [0];
        while stream.read(&mut byte).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    if let Ok(Ok(())) = tokio::time::timeout(LIMIT, delivered).await {
        server.cancel_has_arrived();
    }
}
