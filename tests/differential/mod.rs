//! The judge: random legal sessions, run directly and through the ambassador; every byte of the answers must be the same.
//!
//! `DIFFERENTIAL_SESSIONS` says how many sessions (default 400), `DIFFERENTIAL_SEED` where to start: a seed that is
//! printed with a difference brings the same session back.

mod generate;
mod run;

use crate::support::{Ambassador, cluster, url};
use generate::Session;
use pg_ambassador::demo::cluster::Options;
use run::{Outcome, play};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Sessions that run at the same time.
const AT_ONCE: usize = 12;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// The databases of the two ways: alike when a session starts, and each used by one way only.
const DATABASES: [&str; 2] = ["direct", "pooled"];

#[test]
fn random_sessions_cannot_tell_the_ambassador_from_the_server() {
    let (sessions, first) = (number("DIFFERENTIAL_SESSIONS", 400), number("DIFFERENTIAL_SEED", 1));
    let server = cluster(&Options::default());
    for database in DATABASES {
        server.psql(0, &format!("create database {database}")).unwrap();
    }
    // Few servers, so that sessions have to share them.
    let ambassadors: Vec<Ambassador> = (1..=4)
        .map(|size| {
            let (size, workers) = (size.to_string(), if size % 2 == 0 { "2" } else { "1" });
            let args =
                ["--pool-size", &size, "--workers", workers, "-s", "max_prepared_statements=6", "-s", "paranoid=true"];
            Ambassador::start(&[&[url(&server).as_str()], &args[..]].concat())
        })
        .collect();
    let next = AtomicU64::new(first);
    let (messages, differences) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let coverage = Mutex::new(generate::Coverage::default());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + sessions || differences.lock().unwrap().len() >= 5 {
                        return;
                    }
                    let session = Session::generate(seed);
                    coverage.lock().unwrap().add(&session);
                    messages.fetch_add(session.messages(), Ordering::Relaxed);
                    let pooled = &ambassadors[usize::try_from(seed).unwrap() % ambassadors.len()];
                    let direct = play(&session, server.port(), DATABASES[0]);
                    let through = play(&session, pooled.port, DATABASES[1]);
                    if let Some(difference) = Outcome::difference(&session, &direct, &through) {
                        let mut report = format!("seed {seed}: {difference}");
                        if report.contains("pool exhausted") {
                            let (clients, servers) = (pooled.show("CLIENTS"), pooled.show("SERVERS"));
                            report.push_str(&format!("\nclients: {clients:?}\nservers: {servers:?}"));
                        }
                        differences.lock().unwrap().push(report);
                    }
                }
            });
        }
    });
    println!("{sessions} sessions, {} messages\n{}", messages.load(Ordering::Relaxed), coverage.lock().unwrap());
    let differences = differences.into_inner().unwrap();
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n\n"));
}
