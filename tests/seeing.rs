//! Seeing where statements go and why: SHOW LEARNED, SHOW ROUTES, SHOW NODES, metrics, EXPLAIN ROUTE.

use crate::support::{Ambassador, Client, cluster, shared, url, wait_until};
use pg_ambassador::demo::cluster::{Cluster, Options};
use std::collections::BTreeMap;

const WHERE: &str = "select inet_server_port()";

fn replicated(replicas: usize) -> (Cluster, Vec<u16>) {
    let cluster = cluster(&Options { replicas, ..Options::default() });
    let ports = cluster.nodes.iter().map(|node| node.port).collect();
    (cluster, ports)
}

/// An ambassador in front of these, the primary first, as soon as it sends reads to a replica.
fn routed(ports: &[u16], parameters: &str, more: &[&str]) -> Ambassador {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("postgres://{}/?sslmode=disable{parameters}", hosts.join(","));
    let args: Vec<&str> = [url.as_str()].into_iter().chain(more.iter().copied()).collect();
    let ambassador = Ambassador::start(&args);
    wait_for_replicas(&mut Client::new(ambassador.port), ports[0]);
    ambassador
}

fn wait_for_replicas(client: &mut Client, primary: u16) {
    wait_until("a read goes to a replica", || client.value(WHERE) != primary.to_string());
}

/// What SHOW ROUTES has counted, by destination and reason.
fn counts(ambassador: &Ambassador) -> BTreeMap<(String, String), u64> {
    let row = |row: Vec<Option<String>>| {
        let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        assert_eq!(row[..2], ["postgres", "postgres"]);
        ((row[2].clone(), row[3].clone()), row[4].parse().unwrap())
    };
    ambassador.show("ROUTES").into_iter().map(row).collect()
}

#[test]
fn what_a_replica_has_refused_is_shown_without_its_constants() {
    let (cluster, ports) = replicated(1);
    let late =
        "create function late(text) returns pg_lsn language plpgsql stable as 'begin return pg_current_wal_lsn(); end'";
    cluster.psql(0, late).unwrap();
    let ambassador = routed(&ports, "", &[]);
    let mut client = Client::new(ambassador.port);
    assert_eq!(ambassador.show("LEARNED").len(), 0);
    wait_until("a replica has refused it", || {
        client.query("select late('secret') -- secret");
        !ambassador.show("LEARNED").is_empty()
    });
    let mut row: Vec<String> = Vec::new();
    // While its server is asked what the function has left the client goes on there, and is not routed.
    wait_until("it was remembered", || {
        client.query("SELECT late('another')");
        let learned = ambassador.show("LEARNED");
        assert_eq!(learned.len(), 1, "{learned:?}");
        row = learned[0].iter().cloned().map(Option::unwrap_or_default).collect();
        row[4].parse::<u64>().unwrap() > 0
    });
    assert_eq!(row[..3], ["postgres", "postgres", "select late(?)"]);
    assert!(row[3].contains("refused") && row[4].parse::<u64>().unwrap() > 0, "{row:?}");
    let (_, metrics) = ambassador.http("/metrics");
    let line = "pg_ambassador_retried_reads_total{database=\"postgres\",user=\"postgres\"} 1\n";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn requests_are_counted_by_where_they_went_and_why() {
    let (_cluster, ports) = replicated(1);
    let ambassador = routed(&ports, "", &[]);
    let mut client = Client::new(ambassador.port);
    let before = counts(&ambassador);
    let mut expected = before.clone();
    for (sql, destination, reason) in [
        (WHERE, "replica", "read"),
        ("/* ambassador: replica */ select 1", "replica", "hint in a comment"),
        ("create table counted ()", "primary", "command"),
        ("select * from counted for update", "primary", "locking clause"),
    ] {
        client.query(sql);
        *expected.entry((destination.into(), reason.into())).or_default() += 1;
    }
    assert_eq!(counts(&ambassador), expected);
    let (_, metrics) = ambassador.http("/metrics");
    for ((destination, reason), count) in expected {
        let labels =
            format!("database=\"postgres\",user=\"postgres\",destination=\"{destination}\",reason=\"{reason}\"");
        let line = format!("pg_ambassador_routed_total{{{labels}}} {count}\n");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

/// Waits until who comes now reads on a replica: it sees what others had written before, and each replica has a connection
/// that is old enough for that.
fn settled(ambassador: &Ambassador, primary: u16) {
    let on_replica = |_| Client::new(ambassador.port).value(WHERE) != primary.to_string();
    wait_until("new sessions read on replicas", || (0..10).all(on_replica));
}

#[test]
fn reads_are_counted_for_each_server() {
    let (_cluster, ports) = replicated(2);
    let ambassador = routed(&ports, "", &["--set", "slow_start=0s"]);
    settled(&ambassador, ports[0]);
    let mut served = BTreeMap::new();
    for _ in 0..20 {
        *served.entry(Client::new(ambassador.port).value(WHERE)).or_insert(0) += 1;
    }
    let nodes: Vec<Vec<String>> = ambassador
        .show("NODES")
        .into_iter()
        .map(|row| row.into_iter().map(Option::unwrap_or_default).collect())
        .collect();
    let (_, metrics) = ambassador.http("/metrics");
    for node in nodes {
        // Port, outstanding, latency_us, reads, reads_percent.
        let [port, outstanding, latency, reads, percent] = [2, 15, 16, 17, 18].map(|at| node[at].clone());
        assert_eq!(outstanding, "0", "{node:?}");
        let reads: u64 = reads.parse().unwrap();
        assert!(reads >= served.get(&port).copied().unwrap_or(0), "{node:?}: {served:?}");
        assert_eq!(
            (reads > 0, latency != "0", percent != "0"),
            (node[3] == "replica", reads > 0, reads > 0),
            "{node:?}"
        );
        let line = format!("pg_ambassador_node_reads_total{{server=\"127.0.0.1:{port}\"}} {reads}\n");
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

/// What EXPLAIN ROUTE says: a line for each server.
fn explain(ambassador: &Ambassador, sql: &str) -> Vec<BTreeMap<&'static str, String>> {
    const COLUMNS: [&str; 10] =
        ["database", "user", "verdict", "destination", "reason", "culprit", "server", "role", "percent", "remark"];
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    let rows = console.query(&format!("EXPLAIN ROUTE {sql}"));
    let named = |row: Vec<Option<String>>| {
        assert_eq!(row.len(), COLUMNS.len());
        COLUMNS.into_iter().zip(row.into_iter().map(Option::unwrap_or_default)).collect()
    };
    rows.into_iter().map(named).collect()
}

#[test]
fn explain_route_says_what_then_happens() {
    let (cluster, ports) = replicated(1);
    let made = "create function quiet(int) returns int language sql stable as 'select $1'; \
                create function loud(int) returns int language sql volatile as 'select $1'; \
                create function late() returns pg_lsn language plpgsql stable as 'begin return pg_current_wal_lsn(); end'; \
                create view through as select loud(1); create table plain (a int); create sequence numbers";
    cluster.psql(0, made).unwrap();
    // It is the replica that is asked what functions there are.
    wait_until("the replica has it all", || cluster.psql(1, "select to_regclass('numbers')").unwrap() == "numbers");
    let ambassador = routed(&ports, "", &[]);
    let mut client = Client::new(ambassador.port);
    for (sql, culprit) in [
        (WHERE, ""),
        ("select ';' || $$;$$ -- ; insert", ""),
        ("select quiet(1)", ""),
        ("select quiet(1), loud(2)", "loud"),
        ("table through", "through"),
        ("select nextval('numbers')", "nextval"),
        ("insert into plain values (1)", "insert"),
        ("select 1; delete from plain", "delete"),
        ("select * from plain for share", ""),
        ("select a into other from plain", ""),
        ("show server_version", ""),
        ("explain select 1", ""),
        ("copy plain to stdout", ""),
        ("set work_mem = '1MB'", ""),
        ("/* ambassador: primary */ select 1", ""),
        ("/* ambassador: replica */ select loud(1)", "loud"),
        ("select pg_is_in_recovery()", "pg_is_in_recovery"),
    ] {
        // A session that has read on the primary may have to wait for a replica: each is a new one.
        settled(&ambassador, ports[0]);
        client = Client::new(ambassador.port);
        let said = explain(&ambassador, sql);
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said.iter().all(|row| row["culprit"] == culprit), "{sql}: {said:?}");
        let before = counts(&ambassador);
        client.query(sql);
        let mut after = counts(&ambassador);
        after.retain(|key, count| before.get(key) != Some(count));
        let went: Vec<_> = after.into_keys().collect();
        assert_eq!(went, [(said[0]["destination"].clone(), said[0]["reason"].clone())], "{sql}");
        let percents: Vec<&str> = said.iter().map(|row| row["percent"].as_str()).collect();
        let expected = if went[0].0 == "replica" { ["0", "100"] } else { ["100", "0"] };
        assert_eq!(percents, expected, "{sql}: {said:?}");
    }
    // What a replica has refused.
    assert_eq!(explain(&ambassador, "select late()")[0]["reason"], "read");
    wait_until("a replica has refused it", || {
        client.query("select late()");
        !ambassador.show("LEARNED").is_empty()
    });
    assert_eq!(explain(&ambassador, "SELECT late()")[0]["reason"], "learned");
}

#[test]
fn explain_route_says_why_a_server_gets_no_reads() {
    let (cluster, ports) = replicated(2);
    let ambassador = routed(&ports, "&zones=here,here,there", &["--set", "zone=here", "--set", "max_lag=1s"]);
    let remark = |port: u16| {
        let said = explain(&ambassador, "FOR postgres select 1");
        said.into_iter().find(|row| row["server"] == format!("127.0.0.1:{port}")).unwrap()
    };
    assert_eq!(remark(ports[0])["remark"], "it is the primary");
    wait_until("the nearer one gets all", || remark(ports[1])["percent"] == "100");
    assert_eq!(remark(ports[2])["remark"], "tier 0 is nearer than tier 2, and has room");
    cluster.psql(1, "select pg_wal_replay_pause()").unwrap();
    let mut client = Client::new(ambassador.port);
    client.query("create table behind ()");
    wait_until("the nearer one lags", || remark(ports[1])["remark"].starts_with("lagging: "));
    assert_eq!((remark(ports[1])["percent"].as_str(), remark(ports[2])["percent"].as_str()), ("0", "100"));
    cluster.stop(2, "immediate").unwrap();
    wait_until("the other is down", || remark(ports[2])["remark"].starts_with("down: "));
    let said = remark(ports[0]);
    assert_eq!((said["destination"].as_str(), said["reason"].as_str()), ("primary", "every replica lags"));
    assert_eq!((said["verdict"].as_str(), said["percent"].as_str(), said["remark"].as_str()), ("read", "100", ""));
}

#[test]
fn explain_route_tells_databases_that_are_not_routed() {
    let unused = Ambassador::start(&["postgres://127.0.0.1:1,127.0.0.1:2/?sslmode=disable"]);
    let said = explain(&unused, "FOR shop select 1");
    assert!(said[0]["database"] == "shop" && said[0]["remark"].starts_with("no client has used it yet"), "{said:?}");
    let ambassador = Ambassador::start(&[url(shared())]);
    let unused = explain(&ambassador, "FOR \"postgres\" select f(1)");
    assert_eq!((unused[0]["database"].as_str(), unused[0]["culprit"].as_str()), ("postgres", "f"));
    Client::new(ambassador.port).query("select 1");
    let said = explain(&ambassador, "select 1");
    assert_eq!((said[0]["destination"].as_str(), said[0]["remark"].as_str()), ("", "it has one server"));
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    assert_eq!(console.try_query("EXPLAIN ROUTE").unwrap_err().code(), "42601");
}

#[test]
fn a_function_that_an_operator_vouches_for_runs_on_a_replica() {
    let (cluster, ports) = replicated(1);
    let made = "create schema geo; create function geo.near() returns int language sql volatile as 'select inet_server_port()'; \
                create function geo.far() returns int language sql volatile as 'select inet_server_port()'";
    cluster.psql(0, made).unwrap();
    wait_until("the replica has them", || cluster.psql(1, "select to_regproc('geo.far')").unwrap() == "geo.far");
    let ambassador = routed(&ports, "", &["--set", "read_functions=geo.near,geo.other"]);
    let mut client = Client::new(ambassador.port);
    assert_eq!(client.value("select geo.near()"), ports[1].to_string());
    assert_eq!(client.value("select geo.far()"), ports[0].to_string());
    // The console changes it while clients are there.
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    console.query("SET read_functions = 'geo.far'");
    wait_until("it is known", || explain(&ambassador, "select geo.near()")[0]["reason"] == "function that may write");
    assert_eq!(explain(&ambassador, "select geo.far()")[0]["destination"], "replica");
    assert_eq!(client.value("select geo.near()"), ports[0].to_string());
}

#[test]
fn a_read_that_no_replica_may_have_is_told_the_true_reason() {
    let (cluster, ports) = replicated(1);
    let hosts = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
    let url = format!("postgres://{hosts}/?sslmode=disable");
    let out_of_service = Ambassador::start(&[&format!("{url}&weights=1,0")]);
    let reason = |client: &mut Client| {
        client.query("select 1");
        client.query("show last route")[0][2].clone().unwrap()
    };
    let mut client = Client::new(out_of_service.port);
    wait_until("the functions are known", || reason(&mut client) != "functions not known yet");
    assert_eq!(reason(&mut client), "every replica has weight 0");
    assert_eq!(explain(&out_of_service, "select 1")[1]["remark"], "its weight is 0");
    let ambassador = routed(&ports, "", &[]);
    let mut client = Client::login(
        ambassador.port,
        &[("user", "postgres"), ("database", "postgres"), ("options", "-c ambassador.consistency=primary")],
    );
    client.query("create table written ()");
    assert_eq!(reason(&mut client), "session has written");
    cluster.stop(1, "immediate").unwrap();
    wait_until("the replica is down", || explain(&ambassador, "select 1")[1]["remark"].starts_with("down: "));
    assert_eq!(explain(&ambassador, "select 1")[0]["reason"], "no replica is up");
    let mut client = Client::new(ambassador.port);
    assert_eq!(reason(&mut client), "no replica is up");
}
