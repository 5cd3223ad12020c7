//! When the next attempt to connect may be made, after some have failed.

use crate::server::DialError;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first pause after a failure, and the longest (faults.md I23), for failures that may pass by themselves.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// The same for a refused credential (faults.md I17): servers lock out who tries too often.
const REFUSED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// A server that breaks the protocol so often within this time is not dialled for that long (faults.md F33).
const VIOLATIONS: (usize, Duration) = (3, Duration::from_secs(60));
const BANNED: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
    /// When the last failure was counted.
    failed_at: Option<Instant>,
    refused: Option<Arc<DialError>>,
    pub(super) reconnected_at: Option<Instant>,
    /// When the server has broken the protocol lately.
    violations: Vec<Instant>,
}

/// Whether to try now.
#[derive(Debug)]
pub(super) enum Wait {
    /// Try.
    Go,
    /// Not before this.
    Until(Instant),
    /// Not now, and for this reason the answer is no.
    Refused(Arc<DialError>),
}

/// The pause after so many failures: doubling, and anywhere between half and all of it, so that many do not move as one.
fn pause((first, longest): (Duration, Duration), failures: u32) -> Duration {
    let full = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(longest);
    full.mul_f64(0.5 + 0.5 * fastrand::f64())
}

impl Backoff {
    pub(super) fn wait(&self, now: Instant) -> Wait {
        match (self.until, &self.refused) {
            (Some(until), Some(error)) if until > now => Wait::Refused(Arc::clone(error)),
            (Some(until), None) if until > now => Wait::Until(until),
            _ => Wait::Go,
        }
    }

    /// Whether to try now, for one who does so at once. After a refused credential it is one at a time: the others hear no,
    /// until it is known what became of that attempt, or it was given up.
    pub(super) fn begin(&mut self, now: Instant) -> Wait {
        let wait = self.wait(now);
        if matches!(wait, Wait::Go) && self.refused.is_some() {
            self.until = Some(now + REFUSED.0);
        }
        wait
    }

    /// An attempt that began at `began` failed.
    pub(super) fn failed(&mut self, began: Instant, now: Instant) {
        // Attempts made side by side fail for one reason: they are one failure.
        if self.failed_at.is_some_and(|at| began < at) && self.until.is_some() {
            return;
        }
        self.failed_at = Some(now);
        self.failures = self.failures.saturating_add(1);
        self.refused = None;
        self.until = Some(now + pause(RETRY, self.failures));
    }

    pub(super) fn refused(&mut self, now: Instant, error: Arc<DialError>) {
        if self.refused.is_none() {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.refused = Some(error);
        // No jitter below the least: it is a promise.
        let (first, longest) = REFUSED;
        self.until = Some(now + first.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(longest));
    }

    /// An attempt came to its end before it was known whether the credential is good: the next one may find out.
    pub(super) fn left_open(&mut self) {
        if self.refused.is_some() {
            self.until = None;
        }
    }

    /// The server has broken the protocol. Gives whether that was once too often: it is left alone then.
    pub(super) fn violated(&mut self, now: Instant) -> bool {
        let (most, within) = VIOLATIONS;
        self.violations.retain(|at| now.saturating_duration_since(*at) < within);
        self.violations.push(now);
        let is_banned = self.violations.len() >= most;
        if is_banned {
            self.violations.clear();
            self.refused = None;
            self.until = Some(now + BANNED);
        }
        is_banned
    }

    pub(super) fn succeeded(&mut self) {
        self.failures = 0;
        self.until = None;
        self.refused = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Address;

    #[test]
    fn i23_pauses_double_to_a_limit_and_a_success_ends_them() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        for (failures, longest) in [(1, 50), (2, 100), (3, 200), (8, 5_000), (30, 5_000)] {
            while backoff.failures < failures {
                backoff.failed(now, now);
            }
            let Wait::Until(until) = backoff.wait(now) else { panic!() };
            let (least, most) = (Duration::from_millis(longest / 2), Duration::from_millis(longest));
            assert!((least..=most).contains(&(until - now)), "{failures}: {:?}", until - now);
        }
        backoff.succeeded();
        assert!(matches!(backoff.wait(now), Wait::Go));
    }

    #[test]
    fn i23_attempts_that_fail_side_by_side_are_one_failure() {
        let (began, now) = (Instant::now(), Instant::now() + Duration::from_millis(10));
        let mut backoff = Backoff::default();
        for _ in 0..4 {
            backoff.failed(began, now);
        }
        let Wait::Until(until) = backoff.wait(now) else { panic!() };
        assert!(until - now <= Duration::from_millis(50));
        backoff.failed(until, until);
        assert_eq!(backoff.failures, 2);
    }

    #[test]
    fn i17_a_refused_credential_is_tried_at_most_five_times_a_minute_however_many_want_it() {
        let (start, error) = (Instant::now(), Arc::new(refusal()));
        let (mut now, mut attempts) = (start, 0);
        let mut backoff = Backoff::default();
        while now < start + Duration::from_secs(60) {
            // As many as may dial at once.
            let begun = (0..4).filter(|_| matches!(backoff.begin(now), Wait::Go)).count();
            attempts += begun;
            now += Duration::from_millis(10);
            (0..begun).for_each(|_| backoff.refused(now, Arc::clone(&error)));
        }
        assert_eq!(attempts, 5);
        assert!(matches!(backoff.begin(now + REFUSED.1), Wait::Go));
        assert!(matches!(backoff.begin(now + REFUSED.1), Wait::Refused(_)));
        backoff.left_open();
        assert!(matches!(backoff.begin(now + REFUSED.1), Wait::Go));
        backoff.succeeded();
        assert!((0..4).all(|_| matches!(backoff.begin(now), Wait::Go)));
    }

    #[test]
    fn f33_who_breaks_the_protocol_three_times_in_a_minute_is_left_alone() {
        let (start, mut backoff) = (Instant::now(), Backoff::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        for at in [0, 40, 70, 110] {
            assert!(!backoff.violated(after(at)), "{at}");
            assert!(matches!(backoff.wait(after(at)), Wait::Go));
        }
        assert!(backoff.violated(after(120)));
        assert!(matches!(backoff.wait(after(129)), Wait::Until(_)));
        assert!(matches!(backoff.wait(after(130)), Wait::Go));
    }

    fn refusal() -> DialError {
        DialError::Proof { address: Address::new("h", 1), user: "u".into(), why: "x".into() }
    }

    #[test]
    fn i17_a_refused_credential_is_tried_at_most_five_times_a_minute() {
        let mut now = Instant::now();
        let end = now + Duration::from_secs(60);
        let mut backoff = Backoff::default();
        let error = Arc::new(refusal());
        let mut attempts = 0;
        while now < end {
            if matches!(backoff.wait(now), Wait::Go) {
                attempts += 1;
                backoff.refused(now, Arc::clone(&error));
                assert!(matches!(backoff.wait(now), Wait::Refused(_)));
            }
            now += Duration::from_millis(10);
        }
        assert_eq!(attempts, 4, "after 0, 5, 15 and 35 seconds");
    }
}
