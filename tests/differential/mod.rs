//! The judge: random legal sessions, run directly and through the ambassador; every byte of the answers must be the same.
//!
//! `DIFFERENTIAL_SESSIONS` says how many sessions (default 400), `DIFFERENTIAL_SEED` where to start: a seed that is
//! printed with a difference brings the same session back. `DIFFERENTIAL_REPLICAS` has so many replicas serve the
//! ambassador's reads. `DIFFERENTIAL_ENOUGH` says after how many differences to stop
//! (default 5). A single session is printed whole. `seeded/` has bugs that it must find: `make seeded-bugs`.

mod coverage;
mod generate;
mod rivals;
mod run;
mod statements;

use crate::support::{Ambassador, Chaos, Client, Rule, Way as Direction, cluster};
use coverage::Coverage;
use generate::Session;
use pg_ambassador::demo::cluster::{Cluster, Options};
use run::{Outcome, Way, left_behind, play};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Sessions that run at the same time.
const AT_ONCE: usize = 12;
/// How late what a slow server says arrives.
const LATENCY: Duration = Duration::from_millis(2);
/// So many sessions say everything there is to say.
const COMPLETE: u64 = 300;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// The databases of the two ways: alike when a session starts, and each used by one way only.
const DATABASES: [&str; 2] = ["direct", "pooled"];

/// A server with both databases, and the roles that sessions take on.
fn server() -> Cluster {
    let settings = vec![("max_prepared_transactions".to_owned(), "500".to_owned())];
    let replicas = usize::try_from(number("DIFFERENTIAL_REPLICAS", 0)).unwrap();
    let server = cluster(&Options { settings, replicas, ..Options::default() });
    let psql = |sql: &str| server.psql(0, sql).unwrap();
    psql("create role differential_a");
    psql("create role differential_b superuser");
    // What the names of the sessions' own tables mean where those are not to be seen: prepared again on another server, a
    // statement that has lost its table would fail at that, before whatever else is wrong with its use.
    let common = "create table w as select 'common'::text as x, 0 as y; create view tt as select 0 as n where false; \
        grant select on w, tt to public";
    for database in DATABASES {
        psql(&format!("create database {database}"));
        psql(&format!("grant all on database {database} to public"));
        // Whoever waits for a lock waits for itself: no session uses what is another's.
        psql(&format!("alter database {database} set lock_timeout = '3s'"));
    }
    for database in DATABASES {
        let params = [("user", "postgres"), ("database", database)];
        Client::login(server.port(), &params).query(common);
    }
    server
}

#[test]
fn random_sessions_cannot_tell_the_ambassador_from_the_server() {
    let (sessions, first) = (number("DIFFERENTIAL_SESSIONS", 400), number("DIFFERENTIAL_SEED", 1));
    let enough = number("DIFFERENTIAL_ENOUGH", 5);
    let server = server();
    // What one of them asks its servers is answered late: what comes next meets questions that are under way.
    let slow: Vec<Chaos> = server.nodes.iter().map(|node| Chaos::start(node.port)).collect();
    slow.iter().for_each(|way| way.set(Direction::ToClient, Rule { latency: LATENCY, ..Rule::default() }));
    // Few servers, so that sessions have to share them.
    let ambassadors: Vec<Ambassador> = (1..=5)
        .map(|number| {
            let is_slow = number == 5;
            let (size, workers) = (if is_slow { 2 } else { number }, if number % 2 == 0 { "2" } else { "1" });
            let size = size.to_string();
            // The question of paranoid mode drops the unnamed statement each time: one of them does without.
            let paranoid = if number == 2 { "paranoid=false" } else { "paranoid=true" };
            // A session may, by chance, ask for a series of a thousand million numbers: others wait until it is through.
            let patience = "checkout_timeout=10min";
            let statements = "max_prepared_statements=6";
            let args = ["--pool-size", &size, "--workers", workers, "-s", statements, "-s", paranoid, "-s", patience];
            // On a busy machine somebody may wait for long, and is told nothing that a server would not say.
            let args = [&args[..], &["-s", "queue_notice=0"]].concat();
            let ports = server.nodes.iter().zip(&slow).map(|(node, slow)| if is_slow { slow.port } else { node.port });
            let hosts: Vec<_> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
            let url = format!("postgres://{}/?sslmode=disable", hosts.join(","));
            Ambassador::start(&[&[url.as_str()], &args[..]].concat())
        })
        .collect();
    let (next, played) = (AtomicU64::new(first), AtomicU64::new(0));
    let differences = Mutex::new(Vec::new());
    let coverage = Mutex::new(Coverage::default());
    let over = AtomicBool::new(false);
    let judge = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + sessions || differences.lock().unwrap().len() as u64 >= enough {
                return;
            }
            let session = Session::generate(seed);
            let pooled = &ambassadors[usize::try_from(seed).unwrap() % ambassadors.len()];
            if sessions == 1 {
                let texts: Vec<&str> = session.turns.iter().map(|turn| turn.text.as_str()).collect();
                println!("login with {:?}, then\n  {}", session.startup, texts.join("\n  "));
            }
            let direct = play(&session, Way::Direct, server.port(), DATABASES[0]);
            let through = play(&session, Way::Through, pooled.port, DATABASES[1]);
            let number = played.fetch_add(1, Ordering::Relaxed) + 1;
            coverage.lock().unwrap().add(&session, &direct);
            let difference = Outcome::difference(&session, &direct, &through)
                .or_else(|| left_behind(&session, server.port()))
                .or_else(|| pooled.complaint().map(|line| format!("by then its ambassador had logged: {line}")));
            if let Some(difference) = difference {
                let mut report = format!("seed {seed}, session {number}: {difference}");
                if report.contains("pool exhausted") {
                    let (clients, servers) = (pooled.show("CLIENTS"), pooled.show("SERVERS"));
                    report.push_str(&format!("\nclients: {clients:?}\nservers: {servers:?}"));
                }
                differences.lock().unwrap().push(report);
            }
        }
    };
    std::thread::scope(|scope| {
        for (seed, ambassador) in ambassadors.iter().enumerate() {
            let (over, differences, next, played) = (&over, &differences, &next, &played);
            scope.spawn(move || {
                if let Err(seen) = rivals::rival(seed as u64, ambassador.port, DATABASES[1], over) {
                    let about = next.load(Ordering::Relaxed);
                    differences
                        .lock()
                        .unwrap()
                        .push(format!("seed {about}, session {}, or before: {seen}", played.load(Ordering::Relaxed)));
                    // Nobody can be trusted any more.
                    next.fetch_add(sessions, Ordering::Relaxed);
                }
            });
        }
        let judges: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(judge)).collect();
        let ends: Vec<_> = judges.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.unwrap());
    });
    let (played, coverage) = (played.into_inner(), coverage.into_inner().unwrap());
    let differences = differences.into_inner().unwrap();
    println!("{played} sessions, {} messages, {} differences\n{coverage}", coverage.messages(), differences.len());
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n\n"));
    assert!(sessions < COMPLETE || coverage.missing().is_empty(), "never sent: {:?}", coverage.missing());
}
