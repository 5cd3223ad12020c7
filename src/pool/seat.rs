//! deadpool's part in a pool: it counts the seats. Only who has one may have a connection.

use super::Pool;
use deadpool::managed::{self, Metrics, Object, RecycleResult, Timeouts};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Weak;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// deadpool's manager. What it hands out is nothing but the permission.
#[derive(Debug)]
pub(super) struct Seats;

impl managed::Manager for Seats {
    type Type = ();
    type Error = Infallible;

    async fn create(&self) -> Result<(), Infallible> {
        Ok(())
    }

    async fn recycle(&self, (): &mut (), _metrics: &Metrics) -> RecycleResult<Infallible> {
        Ok(())
    }
}

/// The permission to have a connection. Dropped, it goes to who waits for one.
#[derive(Debug)]
pub(super) struct Seat {
    object: Option<Object<Seats>>,
    pool: Weak<Pool>,
}

impl Seat {
    /// A seat that nobody has, if there is one. Never waits.
    pub(super) fn free(seats: &managed::Pool<Seats>, pool: Weak<Pool>) -> Option<Self> {
        const AT_ONCE: Timeouts = Timeouts { wait: Some(Duration::ZERO), create: None, recycle: None };
        let got = pin!(seats.timeout_get(&AT_ONCE)).poll(&mut Context::from_waker(Waker::noop()));
        match got {
            Poll::Ready(Ok(object)) => Some(Self { object: Some(object), pool }),
            Poll::Ready(Err(_)) | Poll::Pending => None,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            // What it permitted is over; the object itself is nothing.
            let () = Object::take(object);
        }
        if let Some(pool) = self.pool.upgrade() {
            pool.seat_those_in_line();
        }
    }
}
