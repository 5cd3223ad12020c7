//! Clients that keep a connection only for as long as nobody else needs it.

use super::lock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// How long a client may take to answer. It is idle, so its task has nothing else to do.
const PATIENCE: Duration = Duration::from_millis(20);

/// A client that can be asked for its connection.
pub trait Keeper: Send + Sync + std::fmt::Debug {
    /// Give it back, if you can; in any case say so ([`super::Pool::keeper_has_answered`]).
    fn give_back(&self);
}

/// The clients of one pool, the one that has kept its connection for longest first.
#[derive(Debug, Default)]
pub(super) struct Keepers {
    list: Mutex<Vec<(u64, Arc<dyn Keeper>)>>,
    count: AtomicUsize,
    answered: Notify,
}

impl Keepers {
    pub(super) fn add(&self, keeper: Arc<dyn Keeper>, client: u64) {
        let mut list = lock(&self.list);
        list.push((client, keeper));
        self.count.store(list.len(), Ordering::Release);
    }

    pub(super) fn remove(&self, client: u64) {
        if self.are_there() {
            let mut list = lock(&self.list);
            list.retain(|(id, _)| *id != client);
            self.count.store(list.len(), Ordering::Release);
        }
    }

    /// Whether there are any.
    #[inline]
    pub(super) fn are_there(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    fn take(&self) -> Option<Arc<dyn Keeper>> {
        if !self.are_there() {
            return None;
        }
        let mut list = lock(&self.list);
        let first = (!list.is_empty()).then(|| list.remove(0).1);
        self.count.store(list.len(), Ordering::Release);
        first
    }

    /// Asks one of them, and waits for its answer. False if there is none to ask.
    pub(super) async fn ask_one(&self) -> bool {
        let answered = self.answered.notified();
        let Some(keeper) = self.take() else { return false };
        keeper.give_back();
        // Whatever it says: there is another way to get a connection.
        let _ = tokio::time::timeout(PATIENCE, answered).await;
        true
    }

    /// Asks all of them.
    pub(super) fn ask_all(&self) {
        while let Some(keeper) = self.take() {
            keeper.give_back();
        }
    }

    pub(super) fn answered(&self) {
        self.answered.notify_waiters();
    }
}
