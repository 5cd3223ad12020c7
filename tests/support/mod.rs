//! What tests need: PostgreSQL servers, ambassadors, clients that speak the protocol byte by byte, and faults.

#![allow(dead_code, reason = "a kit: it may hold more than the tests of one day use")]

pub mod ambassador;
pub mod chaos;
pub mod client;
pub mod dir;
pub mod hostile;
pub mod iam;
pub mod random;
pub mod tls;
pub mod web;

pub use ambassador::Ambassador;
pub use chaos::{Chaos, How, Rule, Way};
pub use client::Client;
pub use dir::Dir;
pub use hostile::Hostile;
pub use random::Random;

use pg_ambassador::demo::binaries::Binaries;
use pg_ambassador::demo::cluster::{Cluster, Options};
use std::sync::OnceLock;
use std::time::Duration;

/// How long anything may take before the test has hung. Never how long something should take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// PostgreSQL's programs.
pub fn binaries() -> &'static Binaries {
    static BINARIES: OnceLock<Binaries> = OnceLock::new();
    BINARIES.get_or_init(|| Binaries::find().unwrap_or_else(|error| panic!("{error}")))
}

/// A server that all tests share. They may use it, but must not stop it or change its configuration.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| cluster(&Options::default()))
}

/// A server of the test's own.
pub fn cluster(options: &Options) -> Cluster {
    Cluster::start(binaries(), options).unwrap_or_else(|error| panic!("{error}"))
}

/// The URL of a cluster's primary, without TLS, user and database.
pub fn url(cluster: &Cluster) -> String {
    format!("postgres://127.0.0.1:{}/?sslmode=disable", cluster.port())
}

/// Waits until something is so. Hanging is failing.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
