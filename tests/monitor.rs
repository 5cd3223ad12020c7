//! The monitor: what servers are is found out, and found out soon, without anybody saying so.

use crate::support::client::message;
use crate::support::hostile::{self, Visit};
use crate::support::{Ambassador, Chaos, Client, Hostile, How, Way, cluster, wait_until};
use pg_ambassador::demo::cluster::{Cluster, Options};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What SHOW NODES says of each server, by its port.
fn nodes(ambassador: &Ambassador) -> BTreeMap<u16, BTreeMap<&'static str, String>> {
    const COLUMNS: [&str; 22] = [
        "database",
        "host",
        "port",
        "role",
        "state",
        "why",
        "tier",
        "zone",
        "region",
        "timeline",
        "lsn",
        "lag_bytes",
        "lag_ms",
        "rtt_us",
        "weight",
        "outstanding",
        "latency_us",
        "reads",
        "reads_percent",
        "probe_age_ms",
        "state_seconds",
        "generation",
    ];
    let rows = ambassador.show("NODES");
    let named = |row: Vec<Option<String>>| {
        assert_eq!(row.len(), COLUMNS.len());
        COLUMNS.into_iter().zip(row.into_iter().map(Option::unwrap_or_default)).collect::<BTreeMap<_, _>>()
    };
    rows.into_iter().map(named).map(|row| (row["port"].parse().unwrap(), row)).collect()
}

fn replicated(replicas: usize, settings: &[(&str, &str)]) -> Cluster {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    cluster(&Options { replicas, settings, ..Options::default() })
}

fn hosts(ports: &[u16]) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("postgres://{}/?sslmode=disable", hosts.join(","))
}

fn ports(cluster: &Cluster) -> Vec<u16> {
    cluster.nodes.iter().map(|node| node.port).collect()
}

/// Waits until a column of a server's line is so.
fn wait_for(ambassador: &Ambassador, port: u16, column: &str, is_so: impl Fn(&str) -> bool) {
    wait_until(&format!("{column} of {port}"), || nodes(ambassador).get(&port).is_some_and(|row| is_so(&row[column])));
}

/// How many connections a monitor has there.
fn probes(cluster: &Cluster, node: usize) -> String {
    let sql = "select count(*) from pg_stat_activity where application_name = 'pg-ambassador monitor'";
    cluster.psql(node, sql).unwrap()
}

/// The server that a client's next statement runs on.
fn port_of(client: &mut Client) -> u16 {
    client.value("/* ambassador: primary */ select inet_server_port()").parse().unwrap()
}

#[test]
fn monitor_finds_roles_that_nobody_has_configured_and_follows_a_promotion() {
    let cluster = replicated(2, &[]);
    let ports = ports(&cluster);
    // The primary is named in the middle.
    let ambassador = Ambassador::start(&[&hosts(&[ports[1], ports[0], ports[2]])]);
    let mut client = Client::new(ambassador.port);
    assert_eq!(port_of(&mut client), ports[0]);
    for (&port, role) in ports.iter().zip(["primary", "replica", "replica"]) {
        wait_for(&ambassador, port, "role", |found| found == role);
        wait_for(&ambassador, port, "state", |state| state == "up");
        wait_for(&ambassador, port, "timeline", |timeline| timeline == "1");
    }
    assert!(nodes(&ambassador)[&ports[1]]["lsn"].contains('/'));
    cluster.stop(0, "immediate").unwrap();
    cluster.promote(1).unwrap();
    // Nothing is sent to a replica meanwhile: the client waits for the new primary, or has one error of its lost connection.
    let mut client = Client::new(ambassador.port);
    client.value("create table monitored (); select 1");
    assert_eq!(port_of(&mut client), ports[1]);
    wait_for(&ambassador, ports[1], "timeline", |timeline| timeline == "2");
    wait_for(&ambassador, ports[0], "state", |state| state == "down");
}

#[test]
fn monitor_fences_an_old_primary_that_comes_back() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = Ambassador::start(&[&hosts(&ports)]);
    let mut client = Client::new(ambassador.port);
    assert_eq!(port_of(&mut client), ports[0]);
    wait_for(&ambassador, ports[1], "role", |role| role == "replica");
    // Nobody has stopped it: there are two.
    cluster.promote(1).unwrap();
    wait_for(&ambassador, ports[0], "state", |state| state == "refused");
    let row = &nodes(&ambassador)[&ports[0]];
    assert!(row["why"].contains("timeline 1"), "{row:?}");
    assert_eq!(port_of(&mut Client::new(ambassador.port)), ports[1]);
    drop(client);
}

#[test]
fn monitor_believes_neither_of_two_clusters_of_which_none_has_more_nodes() {
    let (one, other) = (cluster(&Options::default()), cluster(&Options::default()));
    let ambassador = Ambassador::start(&[&hosts(&[one.port(), other.port()]), "--checkout-timeout", "1s"]);
    let error = match Client::try_login(ambassador.port, &[("user", "postgres"), ("database", "postgres")]) {
        Ok(mut client) => client.try_query("select 1").unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.code(), "25006", "{error:?}");
    for port in [one.port(), other.port()] {
        wait_for(&ambassador, port, "why", |why| why.contains("another cluster"));
    }
}

#[test]
fn of_two_primaries_of_one_timeline_none_gets_a_write_and_replicas_go_on_to_get_reads() {
    let cluster = replicated(2, &[]);
    let ports = ports(&cluster);
    let ambassador = Ambassador::start(&[hosts(&ports).as_str(), "--checkout-timeout", "1s"]);
    let options = ("options", "-c ambassador.consistency=eventual");
    let mut client = Client::login(ambassador.port, &[("user", "postgres"), ("database", "postgres"), options]);
    let read = |client: &mut Client| client.value("select inet_server_port()").parse::<u16>().unwrap();
    wait_until("reads go to replicas", || read(&mut client) != ports[0]);
    cluster.stop(1, "fast").unwrap();
    std::fs::remove_file(cluster.nodes[1].data.join("standby.signal")).unwrap();
    cluster.restart(1).unwrap();
    for port in &ports[..2] {
        wait_for(&ambassador, *port, "why", |why| why.contains("takes writes too"));
    }
    let error = client.try_query("create table nowhere ()").unwrap_err();
    assert_eq!(error.code(), "25006", "{error:?}");
    assert!(error.field(b'M').unwrap().contains("no unambiguous primary"), "{error:?}");
    assert_eq!(read(&mut client), ports[2]);
}

#[test]
fn monitor_sees_a_paused_replica_fall_behind_and_an_idle_primary_stand_still() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = Ambassador::start(&[hosts(&ports).as_str(), "--set", "max_lag=1s"]);
    let mut client = Client::new(ambassador.port);
    client.value("create table behind (n int); select 1");
    let replica = ports[1];
    wait_for(&ambassador, replica, "lag_bytes", |bytes| bytes == "0");
    // A new segment has a long header; the insert position is behind it, and no replica ever replays that far.
    client.query("select pg_switch_wal()");
    wait_for(&ambassador, replica, "lag_bytes", |bytes| bytes == "0");
    std::thread::sleep(Duration::from_millis(1500));
    let row = &nodes(&ambassador)[&replica];
    assert_eq!((row["lag_bytes"].as_str(), row["lag_ms"].as_str(), row["why"].as_str()), ("0", "0", ""), "{row:?}");
    cluster.psql(1, "select pg_wal_replay_pause()").unwrap();
    client.value("insert into behind select generate_series(1, 1000); select 1");
    wait_for(&ambassador, replica, "why", |why| why == "lagging");
    let row = &nodes(&ambassador)[&replica];
    assert!(row["lag_bytes"].parse::<u64>().unwrap() > 10_000, "{row:?}");
    assert!(row["lag_ms"].parse::<u64>().unwrap() >= 1000, "{row:?}");
    cluster.psql(1, "select pg_wal_replay_resume()").unwrap();
    wait_for(&ambassador, replica, "why", str::is_empty);
}

#[test]
fn monitor_gives_a_silent_server_up_and_has_one_question_on_its_way() {
    let cluster = replicated(1, &[]);
    let chaos = Chaos::start(cluster.nodes[1].port);
    let url = hosts(&[cluster.port(), chaos.port]);
    // In session mode nothing but the monitor ever connects to a replica.
    let ambassador = Ambassador::start(&[url.as_str(), "--set", "probe_timeout=300ms", "--pool-mode", "session"]);
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    wait_for(&ambassador, chaos.port, "state", |state| state == "up");
    assert_eq!((chaos.open(), chaos.accepted()), (1, 1));
    chaos.dial_delay(Duration::from_secs(60));
    chaos.end_all(How::Blackhole);
    let began = Instant::now();
    wait_for(&ambassador, chaos.port, "state", |state| state == "down");
    // The idle interval, the probe's time, and the login's, which may take three times as long.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(nodes(&ambassador)[&chaos.port]["why"].contains("no answer"));
    client.query("select 1");
    chaos.dial_delay(Duration::ZERO);
    wait_for(&ambassador, chaos.port, "state", |state| state == "up");
    // What the proxy still has open are logins that were given up.
    let before = chaos.passed(Way::ToServer);
    std::thread::sleep(Duration::from_secs(1));
    let bytes = chaos.passed(Way::ToServer) - before;
    assert!(bytes < 30_000, "{bytes} bytes");
    client.query("select 1");
}

#[test]
fn monitor_shares_its_probes_among_all_pools_of_the_same_servers() {
    let cluster = replicated(1, &[]);
    cluster.psql(0, "create role a login; create role b login").unwrap();
    cluster.psql(0, "create database other").unwrap();
    let ambassador = Ambassador::start(&[&hosts(&ports(&cluster))]);
    let clients = [("a", "postgres"), ("b", "postgres"), ("a", "other"), ("postgres", "other")]
        .map(|(user, database)| Client::login(ambassador.port, &[("user", user), ("database", database)]));
    wait_until("the replica is watched", || probes(&cluster, 1) == "1");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(probes(&cluster, 1), "1");
    let labels = format!("server=\"127.0.0.1:{}\"", cluster.nodes[1].port);
    let metrics = ambassador.http("/metrics").1;
    assert!(metrics.contains(&format!("pg_ambassador_node_up{{{labels}}} 1")), "{metrics}");
    drop(clients);
}

#[test]
fn monitor_knows_aurora_by_its_function() {
    let cluster = replicated(1, &[]);
    // What Aurora has, as far as a probe looks at it.
    let fake = "create function pg_catalog.aurora_db_instance_identifier() returns text language sql as $$ select 'me' $$; \
                create function pg_catalog.aurora_replica_status(out server_id text, out replica_lag_in_msec float8, \
                out last_update_timestamp timestamptz) returns setof record language sql \
                as $$ select 'me', 5000, pg_catalog.clock_timestamp() $$";
    cluster.psql(0, fake).unwrap();
    let ports = ports(&cluster);
    let url = hosts(&ports);
    wait_until("the replica has it", || cluster.psql(1, "select pg_catalog.aurora_db_instance_identifier()").is_ok());
    let ambassador = Ambassador::start(&[url.as_str(), "--set", "max_lag=2s"]);
    assert_eq!(port_of(&mut Client::new(ambassador.port)), ports[0]);
    wait_for(&ambassador, ports[1], "lag_ms", |ms| ms.parse::<u64>().is_ok_and(|ms| (5000..6000).contains(&ms)));
    assert_eq!(nodes(&ambassador)[&ports[1]]["why"], "lagging");
}

#[test]
fn monitor_asks_as_a_role_that_may_see_little() {
    let cluster = replicated(1, &[]);
    let revoke = "create role small login; revoke execute on function pg_control_system(), pg_control_checkpoint(), \
                  pg_control_recovery() from public";
    cluster.psql(0, revoke).unwrap();
    let ambassador = Ambassador::start(&[&hosts(&ports(&cluster))]);
    let mut client = Client::login(ambassador.port, &[("user", "small"), ("database", "postgres")]);
    assert_eq!(port_of(&mut client), cluster.port());
    wait_for(&ambassador, cluster.nodes[1].port, "role", |role| role == "replica");
    wait_for(&ambassador, cluster.nodes[1].port, "state", |state| state == "up");
}

#[test]
fn monitor_lets_a_client_hear_at_once_that_its_database_does_not_exist() {
    let cluster = replicated(1, &[]);
    let ambassador = Ambassador::start(&[&hosts(&ports(&cluster))]);
    let began = Instant::now();
    let mut client = Client::connect(ambassador.port);
    client.send(&crate::support::client::startup(&[("user", "postgres"), ("database", "nowhere")]));
    assert_eq!(client.finish_login().unwrap_err().code(), "3D000");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_server_that_answers_no_probe_is_not_logged_in_at_without_a_pause() {
    let cluster = replicated(1, &[]);
    cluster.psql(0, "create role blind login; revoke execute on function pg_is_in_recovery() from public").unwrap();
    let chaos = Chaos::start(cluster.port());
    let url =
        format!("postgres://blind@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable", chaos.port, ports(&cluster)[1]);
    let ambassador = Ambassador::start(&[&url, "--checkout-timeout", "1s", "--set", "probe_interval=1s"]);
    let client =
        std::thread::spawn(move || Client::try_login(ambassador.port, &[("user", "x"), ("database", "x")]).err());
    wait_until("it was asked", || chaos.accepted() > 0);
    // The client waits for a primary for a second, and the monitor with it.
    let error = client.join().unwrap().unwrap();
    assert_eq!(error.code(), "57P03", "{error:?}");
    assert!(chaos.accepted() < 20, "{} logins", chaos.accepted());
}

/// What a scripted server is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plays {
    /// The primary of this timeline, at this position.
    Primary(u32, &'static str),
    /// A replica that has replayed this.
    Replica(&'static str),
}

/// Answers whatever the monitor asks, and passes all else on to `other`.
fn play(
    visit: &mut Visit,
    sql: &str,
    version: &str,
    plays: Plays,
    other: impl FnOnce(&mut Visit) -> std::io::Result<()>,
) -> std::io::Result<()> {
    if sql.contains("pg_size_bytes") {
        return visit.send(&hostile::row(&[Some("8192"), Some("16777216"), Some("0"), Some(version)]));
    }
    if sql.contains("pg_control_system") {
        return visit.send(&hostile::row(&[Some("7")]));
    }
    if !sql.contains("pg_walfile_name") {
        return other(visit);
    }
    visit.send(&match plays {
        Plays::Primary(timeline, lsn) => {
            let lsn = Some(lsn);
            let timeline = format!("{timeline:08X}");
            hostile::row(&[Some("f"), lsn, lsn, Some(&timeline), None, None, None, None, None])
        }
        Plays::Replica(lsn) => {
            hostile::row(&[Some("t"), None, None, None, Some(lsn), Some(lsn), Some("0"), Some("f"), Some("1")])
        }
    })
}

/// The text of the next query; none at the end.
fn hear(visit: &mut Visit) -> std::io::Result<Option<String>> {
    loop {
        let message = visit.read()?;
        match message.tag {
            b'Q' => return Ok(Some(String::from_utf8_lossy(&message.body).into_owned())),
            b'X' => return Ok(None),
            _ => {}
        }
    }
}

#[test]
fn a_returned_primary_that_is_too_old_to_say_what_it_is_gets_no_write() {
    // The first one is the primary as far as the monitor has seen, and has become a replica by the time a client comes.
    let returned = Arc::new(AtomicBool::new(false));
    let server = |is_first: bool| {
        let returned = Arc::clone(&returned);
        Hostile::start(move |visit| {
            visit.startup()?;
            visit.send(&hostile::welcome_of("13.9 (Debian 13.9-1)"))?;
            while let Some(sql) = hear(visit)? {
                let plays = match (is_first, returned.load(Ordering::SeqCst)) {
                    (true, false) => Plays::Primary(1, "0/3000000"),
                    (false, true) => Plays::Primary(2, "0/3000000"),
                    (true, true) | (false, false) => Plays::Replica("0/3000000"),
                };
                play(visit, &sql, "130009", plays, |visit| {
                    if sql.starts_with("select pg_catalog.pg_is_in_recovery()") {
                        returned.store(true, Ordering::SeqCst);
                        return visit.send(&hostile::answer(if is_first { "t" } else { "f" }));
                    }
                    visit.send(&hostile::answer("done"))
                })?;
            }
            Ok(())
        })
    };
    let (first, second) = (server(true), server(false));
    let ambassador = Ambassador::start(&[&hosts(&[first.port, second.port])]);
    let mut client = Client::new(ambassador.port);
    client.query("insert into t values (1)");
    assert!(second.has_heard(b"insert into t") && !first.has_heard(b"insert into t"));
}

/// Where a read goes that has to wait for a replica of PostgreSQL 19, which answers a WAIT FOR with this, and how often it was
/// told to wait.
fn read_after_write(answer: fn() -> Vec<u8>) -> (String, usize) {
    const BEFORE: &str = "0/3000000";
    const BEHIND: &str = "0/3000100";
    let (written, waits, probes) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::<AtomicUsize>::default());
    let serve = move |visit: &mut Visit, answer: &mut dyn FnMut(&mut Visit, &str) -> std::io::Result<()>| {
        visit.startup()?;
        visit.send(&hostile::welcome_of("19.0"))?;
        while let Some(sql) = hear(visit)? {
            answer(visit, &sql)?;
        }
        Ok(())
    };
    let primary = {
        let written = Arc::clone(&written);
        Hostile::start(move |visit| {
            serve(visit, &mut |visit, sql| {
                let lsn = if written.load(Ordering::SeqCst) { BEHIND } else { BEFORE };
                play(visit, sql, "190000", Plays::Primary(1, lsn), |visit| {
                    written.fetch_or(sql.starts_with("insert"), Ordering::SeqCst);
                    visit.send(&hostile::answer("primary"))
                })
            })
        })
    };
    let replica = {
        let waits: Arc<AtomicUsize> = Arc::clone(&waits);
        Hostile::start(move |visit| {
            serve(visit, &mut |visit, sql| {
                // It has caught up when it was told to wait, and some probes later.
                let told = waits.load(Ordering::SeqCst) > 0;
                let later = sql.contains("pg_walfile_name") && told && probes.fetch_add(1, Ordering::SeqCst) >= 3;
                let lsn = if later { BEHIND } else { BEFORE };
                play(visit, sql, "190000", Plays::Replica(lsn), |visit| {
                    if sql.starts_with("WAIT FOR LSN") {
                        assert!(
                            sql.starts_with("WAIT FOR LSN '0/3000100' WITH (MODE 'standby_replay', TIMEOUT '"),
                            "{sql}"
                        );
                        waits.fetch_add(1, Ordering::SeqCst);
                        return visit.send(&answer());
                    }
                    visit.send(&hostile::answer("replica"))
                })
            })
        })
    };
    let ambassador =
        Ambassador::start(&[hosts(&[primary.port, replica.port]).as_str(), "--set", "wait_for_replica=30s"]);
    let mut client = Client::new(ambassador.port);
    wait_for(&ambassador, replica.port, "role", |role| role == "replica");
    client.query("insert into t values (1)");
    let read = client.value("/* ambassador: replica */ select 1");
    (read, waits.load(Ordering::SeqCst))
}

#[test]
fn a_replica_that_can_be_told_to_wait_is_told_so_until_it_has_what_a_read_needs() {
    let (read, waits) = read_after_write(|| hostile::answer("timeout"));
    assert!(read == "replica" && waits >= 3, "{read} after {waits} waits");
}

#[test]
fn a_replica_that_refuses_to_wait_is_asked_as_any_other() {
    let (read, waits) =
        read_after_write(|| [message(b'E', b"SERROR\0VERROR\0C42601\0Mno\0\0"), message(b'Z', b"I")].concat());
    assert_eq!((read.as_str(), waits), ("replica", 1));
}
