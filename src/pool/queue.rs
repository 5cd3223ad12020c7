//! What of a pool waits: idle connections for a client, and clients for a connection, first come first served. One of the
//! two is always empty.
//!
//! A connection or a seat that becomes free is put into the hands of who is first in line, in one step: nobody who comes
//! later can be faster, and who is woken need not ask for anything.

use super::seat::Seat;
use crate::server::Server;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::thread::ThreadId;

use super::lock;

/// What somebody gets who waited.
#[derive(Debug)]
pub(super) enum Place {
    /// A connection, which has its seat with it.
    Server(Box<Server>),
    /// A seat, for a connection that is to be dialled.
    Seat(Seat),
    /// Nothing: there will never be anything here again.
    None,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// How many connections are idle and how many clients wait, as whoever had the lock last has left it.
    idle: AtomicUsize,
    waiting: AtomicUsize,
}

/// The lock on a queue. What changed under it shows when it is given up.
struct Locked<'a> {
    queue: &'a Queue,
    inner: MutexGuard<'a, Inner>,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.queue.idle.store(self.inner.idle.len(), Ordering::Relaxed);
        self.queue.waiting.store(self.inner.line.len(), Ordering::Relaxed);
    }
}

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// The one that was used last is the last.
    idle: Vec<Idle>,
    line: VecDeque<Arc<Ticket>>,
    /// Nobody waits here any more.
    closed: bool,
}

/// An idle connection, and what it is chosen by: looking into each would touch much memory.
#[derive(Debug)]
struct Idle {
    id: u64,
    home: ThreadId,
    worn: bool,
    server: Box<Server>,
}

/// Whose turn it will be.
#[derive(Debug, Default)]
struct Ticket(Mutex<Turn>);

#[derive(Debug, Default)]
struct Turn {
    place: Option<Place>,
    waker: Option<Waker>,
}

/// Why a seat is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// There is a connection, but a new one would be better.
    Preferred,
    /// There is none.
    Necessary,
}

/// What a client would like best; it takes any.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// The connection on which it has left traces, by its number; or 0.
    pub last: u64,
}

impl Wish {
    /// Any will do.
    pub const NONE: Self = Self { last: 0 };
}

impl Queue {
    #[inline]
    fn lock(&self) -> Locked<'_> {
        Locked { queue: self, inner: lock(&self.inner) }
    }

    /// An idle connection: the one that is wished for, or else the one that was used last by this thread, before one of
    /// another, before one with traces of somebody else. None with such traces if `may_grow` says that there is room for a
    /// new one.
    #[inline]
    pub(super) fn take_idle(&self, wish: Wish, may_grow: impl FnOnce() -> bool) -> Option<Box<Server>> {
        let home = crate::server::home();
        self.lock().take_idle(wish, home, may_grow)
    }

    /// Takes a connection out, if it is idle.
    pub(super) fn take(&self, id: u64) -> Option<Box<Server>> {
        let mut inner = self.lock();
        let at = inner.idle.iter().position(|idle| idle.id == id)?;
        Some(inner.idle.remove(at).server)
    }

    /// A place at once, or a place in the line. `free_seat` is asked for a seat if there is no idle connection, or none that
    /// is as good as new.
    pub(super) fn enter(
        self: &Arc<Self>,
        wish: Wish,
        free_seat: impl Fn(Need) -> Option<Seat>,
    ) -> Result<Place, Waiting> {
        let home = crate::server::home();
        let mut inner = self.lock();
        if inner.closed {
            return Ok(Place::None);
        }
        let mut seat = None;
        let idle = inner.take_idle(wish, home, || {
            seat = free_seat(Need::Preferred);
            seat.is_some()
        });
        if let Some(server) = idle {
            return Ok(Place::Server(server));
        }
        if seat.is_none() && inner.line.is_empty() {
            seat = free_seat(Need::Necessary);
        }
        if let Some(seat) = seat {
            return Ok(Place::Seat(seat));
        }
        let ticket = Arc::new(Ticket::default());
        inner.line.push_back(Arc::clone(&ticket));
        Err(Waiting { queue: Arc::clone(self), ticket })
    }

    /// A connection that is free, for who is first in line.
    #[inline]
    pub(super) fn put(&self, server: Box<Server>) {
        let mut inner = self.lock();
        match inner.line.pop_front() {
            Some(ticket) => {
                let waker = ticket.give(Place::Server(server));
                drop(inner);
                wake(waker);
            }
            None => {
                let (id, home, worn) = (server.entry.id, server.home, server.side.worn_by() != 0);
                inner.idle.push(Idle { id, home, worn, server });
            }
        }
    }

    /// Seats have become free: those in the line get them, as long as there are any.
    pub(super) fn seat_those_in_line(&self, mut free_seat: impl FnMut() -> Option<Seat>) {
        loop {
            let mut inner = self.lock();
            if inner.line.is_empty() {
                return;
            }
            let Some(seat) = free_seat() else { return };
            let waker = inner.line.pop_front().and_then(|first| first.give(Place::Seat(seat)));
            drop(inner);
            wake(waker);
        }
    }

    /// Sends away all who wait, and whoever comes from now on.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        let wakers: Vec<_> = inner.line.drain(..).map(|ticket| ticket.give(Place::None)).collect();
        drop(inner);
        wakers.into_iter().for_each(wake);
    }

    /// Removes idle connections for which this is false, the ones that were unused for longest first.
    #[allow(clippy::vec_box, reason = "they are boxed everywhere else")]
    pub(super) fn retain(&self, mut keep: impl FnMut(&Server) -> bool) -> Vec<Box<Server>> {
        let mut inner = self.lock();
        inner.idle.extract_if(.., |idle| !keep(&idle.server)).map(|idle| idle.server).collect()
    }

    /// How many connections are idle.
    pub(super) fn idle(&self) -> usize {
        self.idle.load(Ordering::Relaxed)
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether somebody waits.
    pub(super) fn has_line(&self) -> bool {
        self.waiting() > 0
    }
}

impl Inner {
    #[inline]
    fn take_idle(&mut self, wish: Wish, home: ThreadId, may_grow: impl FnOnce() -> bool) -> Option<Box<Server>> {
        let top = self.idle.last()?;
        if wish.last == 0 && top.home == home && !top.worn {
            return self.idle.pop().map(|idle| idle.server);
        }
        let rank = |idle: &Idle| (idle.id == wish.last, !idle.worn, idle.home == home);
        // Of equals the last.
        let (best, idle) = self.idle.iter().enumerate().max_by_key(|(_, idle)| rank(idle))?;
        if idle.worn && idle.id != wish.last && may_grow() {
            return None;
        }
        Some(self.idle.remove(best).server)
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Ticket {
    /// Gives its owner what it waits for; who is to be woken must be told so. Only while the queue is locked: an owner that
    /// leaves looks here when it has left the line.
    fn give(&self, place: Place) -> Option<Waker> {
        let mut turn = lock(&self.0);
        turn.place = Some(place);
        turn.waker.take()
    }
}

/// A place in the line. Dropped, it is given up, and what its owner had got by then goes to the next.
#[derive(Debug)]
pub(super) struct Waiting {
    queue: Arc<Queue>,
    ticket: Arc<Ticket>,
}

impl Waiting {
    /// Ready when it is one's turn; not to be asked again then.
    #[inline]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Place> {
        let mut turn = lock(&self.ticket.0);
        if let Some(place) = turn.place.take() {
            return Poll::Ready(place);
        }
        if !turn.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            turn.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It was called, so that nobody else has the ticket any more, unless it is still in the line.
        if Arc::get_mut(&mut self.ticket).is_none() {
            self.queue.lock().line.retain(|ticket| !Arc::ptr_eq(ticket, &self.ticket));
        }
        let place = lock(&self.ticket.0).place.take();
        match place {
            None | Some(Place::None) => {}
            Some(Place::Server(server)) => self.queue.put(server),
            // Dropped, it is offered to those in the line.
            Some(Place::Seat(seat)) => drop(seat),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seat::Seats;
    use super::*;
    use deadpool::managed;
    use std::sync::Weak;

    fn seats(count: usize) -> impl Fn() -> Option<Seat> {
        let seats = managed::Pool::builder(Seats).max_size(count).build().unwrap();
        move || Seat::free(&seats, Weak::new())
    }

    fn poll(waiting: &mut Waiting) -> Option<Place> {
        match waiting.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(place) => Some(place),
            Poll::Pending => None,
        }
    }

    #[test]
    fn who_waits_is_served_in_the_order_of_arrival_and_who_comes_later_waits_behind() {
        let (queue, free) = (Arc::new(Queue::default()), seats(1));
        let taken = queue.enter(Wish::NONE, |_| free()).unwrap();
        let [mut first, mut second] = [(); 2].map(|()| queue.enter(Wish::NONE, |_| free()).unwrap_err());
        assert!(poll(&mut first).is_none() && poll(&mut second).is_none());
        drop(taken);
        // There is a seat now, but not for this one.
        let mut third = queue.enter(Wish::NONE, |_| free()).unwrap_err();
        queue.seat_those_in_line(&free);
        assert!(poll(&mut third).is_none() && poll(&mut second).is_none());
        assert!(poll(&mut first).is_some());
        queue.seat_those_in_line(&free);
        assert!(poll(&mut second).is_some());
        drop(third);
        assert!(!queue.has_line());
    }

    #[test]
    fn who_waits_where_there_will_never_be_anything_again_is_sent_away_and_who_comes_later_too() {
        let (queue, free) = (Arc::new(Queue::default()), seats(1));
        let _taken = queue.enter(Wish::NONE, |_| free()).unwrap();
        let [mut first, second] = [(); 2].map(|()| queue.enter(Wish::NONE, |_| free()).unwrap_err());
        queue.close();
        assert!(matches!(poll(&mut first), Some(Place::None)));
        drop(second);
        assert!(matches!(queue.enter(Wish::NONE, |_| free()), Ok(Place::None)));
        assert!(!queue.has_line());
    }

    #[test]
    fn who_leaves_is_not_served_and_takes_nothing_along() {
        let (queue, free) = (Arc::new(Queue::default()), seats(1));
        let taken = queue.enter(Wish::NONE, |_| free()).unwrap();
        let [first, mut second] = [(); 2].map(|()| queue.enter(Wish::NONE, |_| free()).unwrap_err());
        drop(first);
        drop(taken);
        queue.seat_those_in_line(&free);
        let got = poll(&mut second);
        assert!(got.is_some() && free().is_none());
        // One that has been served and has not looked yet.
        let third = queue.enter(Wish::NONE, |_| free()).unwrap_err();
        drop(got);
        queue.seat_those_in_line(&free);
        assert!(free().is_none(), "it has the seat");
        drop(third);
        assert!(free().is_some() && !queue.has_line());
    }
}
