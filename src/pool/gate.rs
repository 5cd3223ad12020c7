//! Whether a pool hands out connections: PAUSE and RESUME, DISABLE and ENABLE, and its end.

use std::sync::atomic::{AtomicU8, Ordering};
use tokio::sync::Notify;

/// Whether a pool hands out connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum GateState {
    /// It does.
    Open = 0,
    /// Clients wait.
    Paused = 1,
    /// Clients are refused.
    Disabled = 2,
    /// Its server is none of the database's any more: clients look for another pool. This is for good.
    Retired = 3,
}

#[derive(Debug, Default)]
pub(super) struct Gate {
    state: AtomicU8,
    changed: Notify,
}

impl Gate {
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Relaxed) == GateState::Open as u8
    }

    pub(super) fn state(&self) -> GateState {
        match self.state.load(Ordering::Acquire) {
            0 => GateState::Open,
            1 => GateState::Paused,
            2 => GateState::Disabled,
            _ => GateState::Retired,
        }
    }

    pub(super) fn set(&self, state: GateState) {
        // Whoever still knew the pool when it was retired must not open it.
        let set = |old| (old != GateState::Retired as u8).then_some(state as u8);
        let _ = self.state.fetch_update(Ordering::Release, Ordering::Relaxed, set);
        self.changed.notify_waiters();
    }

    /// Makes those look again who wait for something to change.
    pub(super) fn nudge(&self) {
        self.changed.notify_waiters();
    }

    /// Waits until something has changed since now.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Waits until the gate is not open.
    pub(super) async fn closed(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.is_open() {
                return;
            }
            changed.await;
        }
    }

    /// Waits while the gate is paused. Those who waited go on in the order in which they came.
    pub(super) async fn opened(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state() != GateState::Paused {
                return;
            }
            changed.await;
        }
    }
}
