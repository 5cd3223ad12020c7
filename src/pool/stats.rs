//! What has happened in a pool: counters that every worker adds to and every console reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counters since the start.
        #[derive(Debug, Default)]
        pub struct Stats { $($name: AtomicU64,)+ }

        /// The counters at one moment.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct Totals { $($(#[$doc])* pub $name: u64,)+ }

        impl Stats {
            /// The counters now.
            pub fn totals(&self) -> Totals {
                Totals { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }

            /// Adds what happened elsewhere.
            pub fn add(&self, more: &Totals) {
                $(if more.$name != 0 { self.$name.fetch_add(more.$name, Ordering::Relaxed); })+
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
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Stats {
    #[inline]
    pub(super) fn count_assignment(&self) {
        self.assignments.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_stale(&self) {
        self.stale.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_timeout(&self) {
        self.timeouts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_dial_error(&self) {
        self.dial_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn record_connect(&self, took: Duration) {
        self.connects.fetch_add(1, Ordering::Relaxed);
        self.connect_us.fetch_add(micros(took), Ordering::Relaxed);
    }

    pub(super) fn record_wait(&self, waited: Duration) {
        self.waits.fetch_add(1, Ordering::Relaxed);
        self.wait_us.fetch_add(micros(waited), Ordering::Relaxed);
    }

    /// A connection was lost while a client had it.
    pub fn count_lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// A client logged in.
    pub fn count_login(&self) {
        self.logins.fetch_add(1, Ordering::Relaxed);
    }
}
