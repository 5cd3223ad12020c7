//! How fast new logins with tokens may follow each other. RDS throttles from 200 new IAM connections a second on, over all
//! who connect there; Cloud SQL from 12,000 a minute.

use crate::net::Address;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of all servers together: so many a second, and so many at once after a rest.
const OVERALL: Rate = Rate { a_second: 100, at_once: 40 };
/// Of one server: there may be many ambassadors beside this one.
const NODE: Rate = Rate { a_second: 20, at_once: 20 };

/// A rate, and what it forgives.
#[derive(Debug, Clone, Copy)]
struct Rate {
    a_second: u32,
    at_once: u32,
}

/// When the next one is due by the rate alone (the generic cell rate algorithm: ITU-T I.371).
#[derive(Debug, Clone, Copy)]
struct Meter(Instant);

impl Meter {
    /// How long the next one has to wait. It is counted.
    fn take(&mut self, rate: Rate, now: Instant) -> Duration {
        let interval = Duration::from_secs(1) / rate.a_second;
        let due = self.0.max(now);
        self.0 = due + interval;
        due.saturating_duration_since(now).saturating_sub(interval * (rate.at_once - 1))
    }
}

/// The pace of all logins with tokens.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<Option<Address>, Meter>>);

impl Pace {
    /// How long a login at this server has to wait. It is counted.
    pub(super) fn take(&self, node: &Address, now: Instant) -> Duration {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut take = |key, rate| meters.entry(key).or_insert(Meter(now)).take(rate, now);
        take(Some(node.clone()), NODE).max(take(None, OVERALL))
    }

    /// Waits for one's turn.
    pub(super) async fn turn(&self, node: &Address) {
        let wait = self.take(node, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most logins of any second, if everybody goes as soon as the pace allows.
    fn most_in_a_second(nodes: usize, logins: usize) -> usize {
        let (pace, start) = (Pace::default(), Instant::now());
        let address = |at: usize| Address::new(&format!("node{}", at % nodes), 5432);
        let mut times: Vec<Duration> = (0..logins).map(|at| pace.take(&address(at), start)).collect();
        times.sort();
        let within = |from: Duration| times.iter().filter(|&&t| t >= from && t < from + Duration::from_secs(1)).count();
        times.iter().map(|&time| within(time)).max().unwrap_or_default()
    }

    #[test]
    fn a_storm_stays_below_what_the_clouds_allow() {
        assert!((20..=40).contains(&most_in_a_second(1, 500)), "{}", most_in_a_second(1, 500));
        assert!((100..=140).contains(&most_in_a_second(50, 2000)), "{}", most_in_a_second(50, 2000));
    }

    #[test]
    fn a_pool_of_the_usual_size_starts_without_a_pause() {
        let (pace, now) = (Pace::default(), Instant::now());
        assert!((0..20).all(|_| pace.take(&Address::new("h", 1), now).is_zero()));
        assert!(!pace.take(&Address::new("h", 1), now).is_zero());
    }
}
