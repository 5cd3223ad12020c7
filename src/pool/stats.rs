//! What has happened in a pool: counters that every worker adds to and every console reads.

use crate::counter::ByState;
use crate::counter::Sharded;
use crate::server::DialError;
use crate::server::dial::Verdict;
use crate::session::{Pin, Pins};
use crate::telemetry::{self, Histogram, Telemetry};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

macro_rules! kinds {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $kind:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$of])* $kind,)+ }

        impl $name {
            /// All there are.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$kind),+];

            /// As metrics and logs name it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $text,)+ }
            }
        }
    };
}

kinds! {
    /// How a connection came to its end that nobody here had ended (faults.md F1 to F6, F12, F33).
    Loss {
        /// An operator or a shutdown of the server ended it while it was idle.
        AdminIdle = "admin_idle",
        /// The same while a client had it.
        AdminActive = "admin_active",
        /// It was found closed, or with something to say, when it was idle.
        Idle = "idle",
        /// Another process of the server has crashed, and all were ended.
        Crash = "crash",
        /// It stood in the way of a standby's recovery.
        Conflict = "recovery_conflict",
        /// The server ended it for another reason, which it gave.
        Server = "server",
        /// It was reset.
        Reset = "reset",
        /// It ended without a word.
        Closed = "closed",
        /// Nothing was heard of the server any more.
        Timeout = "timeout",
        /// The server broke the protocol.
        Protocol = "protocol",
        /// It did not take the settings of its client's session.
        Settings = "settings",
    }
}

kinds! {
    /// In the midst of what a client left (faults.md F25, F26).
    Departure {
        /// A COPY that it was sending.
        CopyIn = "copy_in",
        /// Something that was not answered.
        Active = "active",
        /// A transaction.
        InTransaction = "in_transaction",
    }
}

macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What one thread has counted.
        #[derive(Default)]
        struct Counted {
            $($name: AtomicU64,)+
            pins: [AtomicU64; Pin::ALL.len()],
            losses: [AtomicU64; Loss::ALL.len()],
            departures: [AtomicU64; Departure::ALL.len()],
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
    connect_errors: ByState,
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
    /// Transactions whose COMMIT was under way when their server was lost.
    unknown_outcomes,
    /// Credentials of ours that the server has refused.
    refused_credentials,
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

    pub(super) fn count_dial_error(&self, error: &DialError) {
        self.count(|counted| &counted.dial_errors);
        self.connect_errors.count(error.sqlstate());
        if error.verdict() == Verdict::Credential {
            self.count(|counted| &counted.refused_credentials);
        }
    }

    /// Failed attempts to connect, by SQLSTATE.
    pub fn connect_errors(&self) -> Vec<(String, u64)> {
        self.connect_errors.all()
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

    /// A connection was lost while a client had it; `unknown` if it was waiting for the answer to a COMMIT.
    pub fn count_lost(&self, loss: Loss, unknown: bool) {
        self.count(|counted| &counted.lost);
        self.count_loss(loss);
        if unknown {
            self.count(|counted| &counted.unknown_outcomes);
        }
    }

    /// A connection was lost.
    pub(super) fn count_loss(&self, loss: Loss) {
        self.count(|counted| &counted.losses[loss as usize]);
    }

    /// How often connections were lost, by reason.
    pub fn losses(&self) -> impl Iterator<Item = (Loss, u64)> {
        let count = |loss: Loss| self.counted.all().map(|of| of.losses[loss as usize].load(Ordering::Relaxed)).sum();
        Loss::ALL.into_iter().map(move |loss| (loss, count(loss)))
    }

    /// A client left in the midst of something.
    pub fn count_departure(&self, of: Departure) {
        self.count(|counted| &counted.departures[of as usize]);
    }

    /// How often clients have left in the midst of something.
    pub fn departures(&self) -> impl Iterator<Item = (Departure, u64)> {
        let count = |of: Departure| self.counted.all().map(|c| c.departures[of as usize].load(Ordering::Relaxed)).sum();
        Departure::ALL.into_iter().map(move |of| (of, count(of)))
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
