//! What has happened in a pool: counters that every worker adds to and every console reads.

use crate::counter::Sharded;
use crate::session::{Pin, Pins};
use crate::telemetry::{self, Histogram, Telemetry};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What one thread has counted.
        #[derive(Default)]
        struct Counted {
            $($name: AtomicU64,)+
            pins: [AtomicU64; Pin::ALL.len()],
        }

        /// The counters at one moment.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct Totals { $($(#[$doc])* pub $name: u64,)+ }

        impl Stats {
            /// The counters now.
            pub fn totals(&self) -> Totals {
                let each = |of: &Counted| Totals { $($name: of.$name.load(Ordering::Relaxed),)+ };
                self.counted.all().fold(Totals::default(), |sum, counted| sum.plus(&each(counted)))
            }

            /// Adds what happened elsewhere.
            #[inline]
            pub fn add(&self, more: &Totals) {
                let (counted, adder) = self.counted.own();
                $(if more.$name != 0 { adder.add(&counted.$name, more.$name); })+
            }
        }

        impl Totals {
            /// The sum of both.
            #[must_use]
            pub fn plus(&self, other: &Self) -> Self {
                Self { $($name: self.$name.wrapping_add(other.$name),)+ }
            }

            /// What was added since `before`.
            #[must_use]
            pub fn since(&self, before: &Self) -> Self {
                Self { $($name: self.$name.saturating_sub(before.$name),)+ }
            }
        }
    };
}

/// Counters since the start, and the histograms of what takes time.
#[derive(Default)]
pub struct Stats {
    counted: Sharded<Counted>,
    meters: OnceLock<Meters>,
}

totals! {
    /// Times a client was given a connection.
    assignments,
    /// Transactions.
    transactions,
    /// Queries: simple ones, and extended-protocol batches.
    queries,
    /// Bytes from clients.
    received,
    /// Bytes to clients.
    sent,
    /// Microseconds in transactions.
    transaction_us,
    /// Microseconds in queries.
    query_us,
    /// Microseconds that clients waited for a connection.
    wait_us,
    /// Clients that had to wait.
    waits,
    /// Named statements that clients prepared.
    client_parses,
    /// Parse messages that servers were sent.
    server_parses,
    /// Bind messages.
    binds,
    /// Logins of clients.
    logins,
    /// Waits that ended with the checkout timeout.
    timeouts,
    /// Failed attempts to connect.
    dial_errors,
    /// Connections made.
    connects,
    /// Microseconds that took.
    connect_us,
    /// Connections found closed or unfit when they were about to be handed out.
    stale,
    /// Connections lost while a client had them.
    lost,
    /// Connections on which paranoid mode has found something of their last client.
    leaks,
    /// Questions to servers about what their clients have left there.
    surveys,
}

/// Histograms of what takes time.
struct Meters {
    query: Arc<Histogram>,
    transaction: Arc<Histogram>,
    wait: Arc<Histogram>,
    connect: Arc<Histogram>,
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.totals().fmt(f)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Stats {
    #[inline]
    fn count(&self, counter: impl FnOnce(&Counted) -> &AtomicU64) {
        let (counted, adder) = self.counted.own();
        adder.add(counter(counted), 1);
    }

    #[inline]
    pub(super) fn count_assignment(&self) {
        self.count(|counted| &counted.assignments);
    }

    pub(super) fn count_stale(&self) {
        self.count(|counted| &counted.stale);
    }

    pub(super) fn count_timeout(&self) {
        self.count(|counted| &counted.timeouts);
    }

    pub(super) fn count_dial_error(&self) {
        self.count(|counted| &counted.dial_errors);
    }

    /// Begins to record histograms. Not before a first connection was made: names that clients make up must not become
    /// labels.
    pub(super) fn measure(&self, telemetry: &Telemetry, labels: &[(&'static str, &str)]) {
        self.meters.get_or_init(|| Meters {
            query: telemetry.histogram(&telemetry::QUERY_SECONDS, labels),
            transaction: telemetry.histogram(&telemetry::TRANSACTION_SECONDS, labels),
            wait: telemetry.histogram(&telemetry::WAIT_SECONDS, labels),
            connect: telemetry.histogram(&telemetry::CONNECT_SECONDS, labels),
        });
    }

    pub(super) fn record_connect(&self, took: Duration) {
        let (counted, adder) = self.counted.own();
        adder.add(&counted.connects, 1);
        adder.add(&counted.connect_us, micros(took));
        if let Some(meters) = self.meters.get() {
            meters.connect.record(took);
        }
    }

    /// A request was answered.
    #[inline]
    pub fn record_query(&self, took: Duration) {
        let (counted, adder) = self.counted.own();
        adder.add(&counted.query_us, micros(took));
        if let Some(meters) = self.meters.get() {
            meters.query.record(took);
        }
    }

    /// A transaction ended.
    #[inline]
    pub fn record_transaction(&self, took: Duration) {
        let (counted, adder) = self.counted.own();
        adder.add(&counted.transaction_us, micros(took));
        if let Some(meters) = self.meters.get() {
            meters.transaction.record(took);
        }
    }

    /// A client waited for a connection.
    pub fn record_wait(&self, waited: Duration) {
        let (counted, adder) = self.counted.own();
        adder.add(&counted.waits, 1);
        adder.add(&counted.wait_us, micros(waited));
        if let Some(meters) = self.meters.get() {
            meters.wait.record(waited);
        }
    }

    /// A connection was lost while a client had it.
    pub fn count_lost(&self) {
        self.count(|counted| &counted.lost);
    }

    /// A client keeps its server, for reasons of which those in `before` are known already.
    pub fn count_pins(&self, before: Pins, now: Pins) {
        let (counted, adder) = self.counted.own();
        for pin in now.iter().filter(|pin| !before.has(*pin)) {
            adder.add(&counted.pins[pin as usize], 1);
        }
    }

    /// How often clients have kept a server, by reason.
    pub fn pins(&self) -> impl Iterator<Item = (Pin, u64)> {
        let count = |pin: Pin| self.counted.all().map(|of| of.pins[pin as usize].load(Ordering::Relaxed)).sum();
        Pin::ALL.into_iter().map(move |pin| (pin, count(pin)))
    }

    pub(super) fn count_leak(&self) {
        self.count(|counted| &counted.leaks);
    }

    /// A client logged in.
    pub fn count_login(&self) {
        self.count(|counted| &counted.logins);
    }
}
