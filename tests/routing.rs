//! Where statements go: writes to the primary, reads to a replica that has all that their session needs.

use crate::support::client::{bind, describe, execute, parse, query, sync};
use crate::support::{Ambassador, Chaos, Client, How, cluster, wait_until};
use pg_ambassador::demo::cluster::{Cluster, Options};
use std::collections::BTreeMap;
use std::time::Duration;

const WHERE: &str = "select inet_server_port()";

fn replicated(replicas: usize, settings: &[(&str, &str)]) -> Cluster {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    cluster(&Options { replicas, settings, ..Options::default() })
}

fn url(ports: &[u16]) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("postgres://{}/?sslmode=disable", hosts.join(","))
}

fn ports(cluster: &Cluster) -> Vec<u16> {
    cluster.nodes.iter().map(|node| node.port).collect()
}

/// Where a client's next read goes.
fn port_of(client: &mut Client) -> u16 {
    client.value(WHERE).parse().unwrap()
}

/// An ambassador in front of these, as soon as it sends reads to a replica.
fn routed(ports: &[u16], primary: u16, more: &[&str]) -> Ambassador {
    let url = url(ports);
    let args: Vec<&str> = [url.as_str()].into_iter().chain(more.iter().copied()).collect();
    let ambassador = Ambassador::start(&args);
    wait_for_replicas(&ambassador, primary);
    ambassador
}

fn wait_for_replicas(ambassador: &Ambassador, primary: u16) {
    let mut client = Client::new(ambassador.port);
    wait_until("a read goes to a replica", || port_of(&mut client) != primary);
}

#[test]
fn reads_go_to_replicas_and_writes_to_the_primary() {
    let cluster = replicated(2, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &[]);
    let mut seen = BTreeMap::new();
    for _ in 0..20 {
        *seen.entry(port_of(&mut Client::new(ambassador.port))).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(!seen.contains_key(&ports[0]), "{seen:?}");
    let mut client = Client::new(ambassador.port);
    client.query("create table routed (a int)");
    let written = client.query("insert into routed values (1) returning inet_server_port()");
    assert_eq!(written[0][0], Some(ports[0].to_string()));
    assert_eq!(client.value("select count(*) from routed"), "1");
    wait_until("reads come back from the primary", || port_of(&mut client) != ports[0]);
    assert_eq!(client.value("select count(*) from routed"), "1");
    // A whole transaction that may write is at the primary, its reads too.
    client.query("begin");
    assert_eq!(port_of(&mut client), ports[0]);
    client.query("commit");
}

#[test]
fn a_transaction_that_is_read_only_runs_on_one_replica() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    for begin in ["begin read only", "start transaction isolation level repeatable read, read only"] {
        client.query(begin);
        assert_eq!(port_of(&mut client), ports[1], "{begin}");
        client.query("declare c cursor for select generate_series(1, 3)");
        assert_eq!(client.query("fetch 2 from c").len(), 2);
        assert_eq!(client.try_query("create table x ()").unwrap_err().code(), "25006");
        client.query("rollback");
    }
    client.query("begin");
    client.query("set transaction read only");
    assert_eq!(port_of(&mut client), ports[1]);
    client.query("commit");
    client.query("begin isolation level serializable read only");
    assert_eq!(port_of(&mut client), ports[0]);
    client.query("commit");
    client.query("set default_transaction_read_only = on");
    wait_until("freshness", || {
        client.query("begin");
        let port = port_of(&mut client);
        client.query("commit");
        port == ports[1]
    });
    // Behind the COMMIT, in one piece with it, comes a write.
    client.query("set default_transaction_read_only = off");
    wait_until("freshness", || port_of(&mut client) == ports[1]);
    client.query("begin read only");
    assert_eq!(port_of(&mut client), ports[1]);
    let pieces = [query("select 1"), query("commit"), query("create table behind ()")].concat();
    client.send(&pieces);
    for _ in 0..3 {
        let answer = client.read_until(b"Z").unwrap();
        assert!(answer.iter().all(|message| message.tag != b'E'), "{answer:?}");
    }
}

const LIARS: &str = "create table written (a int); \
     create function liar() returns int language plpgsql stable as $$ begin execute 'insert into written values (1)'; \
     return inet_server_port(); end $$";

#[test]
fn what_a_replica_refuses_runs_on_the_primary_and_nobody_is_told() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    cluster.psql(0, LIARS).unwrap();
    let ambassador = routed(&ports, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    let refused = client.try_query("select liar()").unwrap_err();
    assert_eq!(refused.code(), "0A000", "the primary's own words: {refused:?}");
    wait_until("freshness", || port_of(&mut client) == ports[1]);
    let batch = [parse("s", "select liar()"), bind("", "s", &[]), describe(b'P', ""), execute("", 0), sync()].concat();
    let answer = client.exchange(&batch);
    let errors: Vec<_> = answer.iter().filter(|message| message.tag == b'E').map(|m| m.code()).collect();
    assert_eq!(errors, ["0A000"]);
    assert_eq!(answer[0].tag, b'1');
}

#[test]
fn a_hint_or_a_setting_says_where_a_read_goes() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    assert_eq!(port_of(&mut client), ports[1]);
    assert_eq!(client.value("/* ambassador: primary */ select inet_server_port()"), ports[0].to_string());
    wait_until("freshness", || port_of(&mut client) == ports[1]);
    client.query("set ambassador.route = 'primary'");
    assert_eq!(port_of(&mut client), ports[0]);
    client.query("reset ambassador.route");
    wait_until("freshness", || port_of(&mut client) == ports[1]);
    // Volatile, and vouched for by who asks.
    cluster
        .psql(0, "create function vouched() returns int language sql volatile as 'select inet_server_port()'")
        .unwrap();
    wait_until("the replica has it", || client.try_query("/* ambassador: replica */ select vouched()").is_ok());
    wait_until("freshness", || client.value("/* ambassador: replica */ select vouched()") == ports[1].to_string());
    assert_eq!(client.value("select vouched()"), ports[0].to_string());
}

#[test]
fn a_replica_that_dies_under_a_read_is_not_noticed() {
    let cluster = replicated(2, &[]);
    let ports = ports(&cluster);
    let proxies = [Chaos::start(ports[1]), Chaos::start(ports[2])];
    let all = [ports[0], proxies[0].port, proxies[1].port];
    let ambassador = routed(&all, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    for round in 0..20 {
        client.send(&query("select 'it is still there' from pg_sleep(0.05)"));
        std::thread::sleep(Duration::from_millis(20));
        proxies[round % 2].end_all(How::Reset);
        let answer = client.read_until(b"Z").unwrap();
        assert!(answer.iter().any(|message| message.tag == b'D'), "{answer:?}");
    }
}
