//! What a client keeps in memory, and what becomes of it where all clients together keep too much (faults.md F20).

use super::relay::{Relay, Server};
use crate::net::budget::UNCOUNTED;
use crate::net::scratch;
use crate::wire::{Report, SqlState};
use std::task::Context;
use std::time::{Duration, Instant};

/// A client that is not read for want of room, or may come to that.
#[derive(Debug)]
pub(super) struct Starved {
    since: Instant,
    /// When it was last looked at.
    looked: Instant,
}

/// How often it is looked whether a client that is not read is still there: what it does is not heard of then.
pub(super) const LOOK_AFTER: Duration = Duration::from_secs(1);

/// What is read at once while there is no room: as much as a connection may keep without being counted.
const SMALL_PORTION: usize = UNCOUNTED;

impl Relay {
    /// How much may be read at once.
    #[inline]
    pub(super) fn portion(&self) -> usize {
        if self.allotment.budget().is_exhausted() { SMALL_PORTION } else { scratch::READ }
    }

    /// What it keeps, in bytes.
    #[inline]
    fn keeps(&self) -> usize {
        let own = self.input.capacity() + self.output.capacity() + self.stream.backlog();
        match &self.server {
            Server::Leased(lease) => own + lease.input.capacity() + lease.output.capacity() + lease.stream.backlog(),
            Server::None | Server::Waiting(_) => own,
        }
    }

    /// Counts what it keeps. To be called when it waits.
    #[inline]
    pub(super) fn account(&mut self) {
        self.allotment.set(self.keeps());
        if self.input.capacity() > UNCOUNTED && self.starved.is_none() {
            self.watch();
        }
    }

    /// Looks after one in the middle of a large message: it may fall silent, and keep for ever what others wait for.
    #[cold]
    fn watch(&mut self) {
        let now = Instant::now();
        self.starved = Some(Box::new(Starved { since: now, looked: now }));
    }

    /// Whether it keeps so much that it must not be read now. It is woken when it may be.
    #[inline]
    pub(super) fn lacks_room(&mut self, cx: &Context<'_>) -> bool {
        if self.starved.is_none() && !self.allotment.budget().is_exhausted() {
            return false;
        }
        self.has_to_wait(cx)
    }

    #[cold]
    fn has_to_wait(&mut self, cx: &Context<'_>) -> bool {
        // Who has left is read to its end: that makes room.
        if self.allotment.budget().is_exhausted() && self.keeps() > UNCOUNTED && !self.stream.is_ending() {
            let now = Instant::now();
            let starved = self.starved.get_or_insert_with(|| Box::new(Starved { since: now, looked: now }));
            starved.looked = now;
            if self.allotment.wait(cx.waker()) {
                return true;
            }
        }
        self.starved = None;
        false
    }

    /// Since when it is not read for want of room, and since when nobody has looked whether it is still there.
    #[inline]
    pub(super) fn starved_since(&self) -> Option<(Instant, Instant)> {
        self.starved.as_ref().map(|starved| (starved.since, starved.looked))
    }

    /// Looks after one that waits, which must not be for longer than `limit`: what it keeps may be what others wait for. Gives
    /// what it is told at the end of that.
    pub(super) fn look_for_room(&mut self, limit: Duration, now: Instant) -> Option<Report> {
        let starved = self.starved.as_mut()?;
        // Whether it is still there will be seen where it is read; it may be that something else keeps it from that by now.
        starved.looked = now;
        let waited = now.saturating_duration_since(starved.since);
        if !self.allotment.budget().is_exhausted() {
            // There is room. Only who still keeps a part of a large message is looked after further.
            starved.since = now;
            if self.input.capacity() <= UNCOUNTED {
                self.starved = None;
            }
            return None;
        }
        (!limit.is_zero() && waited >= limit).then(|| self.out_of_memory(waited))
    }

    fn out_of_memory(&self, waited: Duration) -> Report {
        Report::as_postgres(SqlState::OUT_OF_MEMORY, "out of memory")
            .detail(format!(
                "pg-ambassador: the buffers of all clients have kept {} bytes, as much as they may (buffer_limit), for {waited:?}.",
                self.allotment.budget().taken()
            ))
            .hint("Raise buffer_limit, let fewer clients in (max_clients), or look for clients that do not read their results.")
    }
}
