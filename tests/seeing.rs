//! Seeing where statements go and why: SHOW LEARNED, SHOW ROUTES, SHOW NODES, metrics, EXPLAIN ROUTE.

use crate::support::{Ambassador, Client, cluster, wait_until};
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
    client.query("SELECT late('another')");
    let learned = ambassador.show("LEARNED");
    assert_eq!(learned.len(), 1, "{learned:?}");
    let row: Vec<String> = learned[0].iter().cloned().map(Option::unwrap_or_default).collect();
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

#[test]
fn reads_are_counted_for_each_server() {
    let (_cluster, ports) = replicated(2);
    let ambassador = routed(&ports, "", &[]);
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
