//! A long result is taken in larger pieces when it is not taken at once.
//!
//! A server sends its results in pieces of 8 KiB, and a pooler that is quicker than the server takes each by itself: most of
//! what a long result costs is then waking up, not its bytes. Between two pieces it rests for a moment: the kernel's
//! buffers take meanwhile what the server goes on to send. Nothing is slower for that but the end of the result, by the moment.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// Bytes from which on a result is long: sending that much takes many times the moment.
const LONG: u64 = 4 * 1024 * 1024;

/// The shortest moment that the runtime knows.
const MOMENT: Duration = Duration::from_millis(1);

/// A piece that is worth taking, in bytes.
const PIECE: usize = 64 * 1024;

/// The least that has to arrive in a moment, in bytes: from a slower server there would be no larger pieces, but more of them.
const WORTHWHILE: u64 = 32 * 1024;

/// How the result under way is taken.
#[derive(Default)]
pub(super) struct Pace {
    /// What has come of it, in bytes.
    come: u64,
    /// Where it is a long one.
    long: Option<Box<Long>>,
}

struct Long {
    since: Instant,
    rest: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Ready when the server may be read.
    #[inline]
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.long {
            None => Poll::Ready(()),
            Some(long) => long.poll(cx),
        }
    }

    /// So many bytes have come, and more will.
    #[inline]
    pub(super) fn goes_on(&mut self, bytes: usize) {
        self.come += bytes as u64;
        if self.come > LONG && bytes < PIECE {
            self.rest();
        }
    }

    /// The server has answered all.
    #[inline]
    pub(super) fn is_over(&mut self) {
        self.come = 0;
        if self.long.is_some() {
            self.long = None;
        }
    }

    #[cold]
    fn rest(&mut self) {
        let now = Instant::now();
        let Some(long) = &mut self.long else {
            self.long = Some(Box::new(Long { since: now, rest: None }));
            return;
        };
        if is_quick(self.come - LONG, now.saturating_duration_since(long.since)) {
            long.rest = Some(Box::pin(tokio::time::sleep_until((now + MOMENT).into())));
        }
    }
}

impl Long {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(rest) = &mut self.rest {
            std::task::ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        Poll::Ready(())
    }
}

/// Whether so many bytes in that time are as many as make a rest worthwhile.
fn is_quick(bytes: u64, took: Duration) -> bool {
    let moments = took.as_nanos() / MOMENT.as_nanos();
    u128::from(bytes) >= moments * u128::from(WORTHWHILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_long_result_rests_and_only_between_small_pieces() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _here = runtime.enter();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut pace = Pace::default();
        let piece = 8 * 1024;
        for _ in 0..LONG / piece as u64 {
            pace.goes_on(piece);
            assert!(pace.poll(&mut cx).is_ready(), "it is not long yet");
        }
        // From here on it is.
        pace.goes_on(piece);
        pace.goes_on(PIECE);
        assert!(pace.poll(&mut cx).is_ready(), "large pieces come as they are");
        pace.goes_on(piece);
        assert!(pace.poll(&mut cx).is_pending());
        runtime.block_on(std::future::poll_fn(|cx| pace.poll(cx)));
        assert!(pace.poll(&mut cx).is_ready());
        pace.is_over();
        pace.goes_on(piece);
        assert!(pace.poll(&mut cx).is_ready(), "the next one begins anew");
    }

    #[test]
    fn a_slow_server_is_taken_as_it_comes() {
        assert!(is_quick(1, Duration::ZERO));
        assert!(is_quick(100 * 1024 * 1024, Duration::from_secs(1)));
        assert!(!is_quick(10 * 1024 * 1024, Duration::from_secs(1)));
    }
}
