//! Connections of our own: logged in as a pool's, seen by the consoles and counted in the limits, but in no seat of the pool
//! and never lent to a client.

use super::backoff::Wait;
use super::{HeldPlaces, LeaseError, PATIENCE_WITH_THE_LEAVING, Pool, lock};
use crate::server::dial;
use crate::server::{Server, ServerEntry, ServerState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a place within the limits is waited for: another pool's limit may have one.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often one is looked for.
const LOOK_FOR_PLACE: Duration = Duration::from_millis(50);

impl Pool {
    /// One attempt to make a connection that takes no seat, with `settings` in the startup packet, once the pool is open
    /// and its back-off allows an attempt. Waits for as long as that takes; an attempt is bounded by `connect_timeout`.
    /// Dropping the future gives everything back.
    ///
    /// # Errors
    /// The pool was disabled or retired, there was no place within the limits, or why the attempt failed; a pause before the next one is kept by the pool itself, except
    /// after [`crate::server::dial::Verdict::Full`].
    pub async fn dial_apart(
        self: &Arc<Self>,
        settings: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Box<Server>, LeaseError> {
        let settings: Vec<_> = settings.into_iter().collect();
        let started = Instant::now();
        let held = tokio::time::timeout(PLACE_TIMEOUT, self.places_apart()).await;
        let held = held.map_err(|_| self.timed_out(started.elapsed()))?;
        loop {
            self.opened().await?;
            let made = tokio::select! {
                biased;
                () = self.gate.closed() => continue,
                made = self.try_apart(&settings) => made?,
            };
            match made {
                Some(server) if !self.gate.is_open() => server.see_off(PATIENCE_WITH_THE_LEAVING).await,
                Some(mut server) => {
                    server.held.extend(held);
                    return Ok(server);
                }
                None => {}
            }
        }
    }

    /// One attempt, while the pool is open; none if it has to be begun anew.
    async fn try_apart(self: &Arc<Self>, settings: &[(String, String)]) -> Result<Option<Box<Server>>, LeaseError> {
        // Behind the gate, where a change has often come while it was closed. The generation first, as elsewhere.
        let generation = self.generation.load(Ordering::Acquire);
        let mut target = (*self.target()).clone();
        target.settings.extend(settings.iter().cloned());
        let source = self.source();
        let began = Instant::now();
        let credential = match dial::credential(&target, &*source).await {
            Ok(credential) => credential,
            Err(error) => return Err(LeaseError::Upstream(self.dial_failed(began, &source, error))),
        };
        let Some(slot) = self.node.dial_slot().await else { return Err(LeaseError::Closed) };
        let making = self.note_login();
        if !self.gate.is_open() {
            return Ok(None);
        }
        // The one that may try does.
        let wait = lock(&self.backoff).begin(Instant::now());
        match wait {
            Wait::Go => {}
            Wait::Until(at) => {
                // Not with a slot in hand that others could use, and not as a login that somebody waits for.
                drop((slot, making));
                tokio::time::sleep_until(at.into()).await;
                return Ok(None);
            }
            Wait::Refused(error) => return Err(LeaseError::Upstream(error)),
        }
        let began = Instant::now();
        let dialled = self.dial(&target, &*source, credential, generation).await;
        drop(slot);
        match dialled {
            Ok(server) if self.is_of_before(&server) => {
                lock(&self.backoff).left_open();
                server.see_off(PATIENCE_WITH_THE_LEAVING).await;
                Ok(None)
            }
            Ok(server) => {
                self.dial_succeeded();
                server.entry.set_state(ServerState::Listening);
                lock(&self.apart).insert(server.entry.id, Arc::clone(&server.entry));
                drop(making);
                Ok(Some(server))
            }
            Err(_) if generation != self.generation.load(Ordering::Relaxed) => {
                lock(&self.backoff).left_open();
                Ok(None)
            }
            Err(error) => Err(LeaseError::Upstream(self.dial_failed(began, &source, error))),
        }
    }

    /// Places within all limits. Never the last one: a connection that no client can have must leave room for one that
    /// they can.
    async fn places_apart(&self) -> HeldPlaces {
        loop {
            let live = self.connections();
            match self.limits.iter().find(|limit| limit.free() <= usize::from(live == 0)) {
                None => {
                    if let Ok(held) = self.try_places(None) {
                        return held;
                    }
                }
                Some(limit) if live > 1 => limit.wants_room(),
                Some(_) => {}
            }
            tokio::time::sleep(LOOK_FOR_PLACE).await;
        }
    }

    /// Connections that no client can have.
    pub fn servers_apart(&self) -> Vec<Arc<ServerEntry>> {
        lock(&self.apart).values().cloned().collect()
    }

    /// Waits until a connection of this generation should be closed, and says why: RECONNECT, a changed target or server, PAUSE, KILL or
    /// DISABLE.
    pub async fn outdated(&self, generation: u64) -> &'static str {
        loop {
            let changed = self.gate.changed();
            if generation != self.generation.load(Ordering::Relaxed) {
                return "the pool reconnects";
            }
            if !self.gate.is_open() {
                return "the pool is paused";
            }
            changed.await;
        }
    }
}
