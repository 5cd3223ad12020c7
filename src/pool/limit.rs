//! A limit of connections that holds over several pools.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So many places. A connection holds one for as long as it lives.
#[derive(Debug)]
pub(super) struct Limit {
    places: Arc<Semaphore>,
    /// Some pool cannot connect because all places are taken: others shall give up what they do not use.
    crowded: AtomicBool,
}

impl Limit {
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(places)), crowded: AtomicBool::new(false) })
    }

    /// How many places are free.
    pub(super) fn free(&self) -> usize {
        self.places.available_permits()
    }

    /// A place, if one is free.
    pub(super) fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// A place, in the order in which it was asked for.
    pub(super) async fn take(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    pub(super) fn wants_room(&self) {
        self.crowded.store(true, Ordering::Relaxed);
    }

    pub(super) fn room_was_made(&self) {
        self.crowded.store(false, Ordering::Relaxed);
    }

    /// Whether idle connections under this limit should be given up for others.
    pub(super) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }
}
