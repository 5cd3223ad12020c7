//! The access log: a line of JSON for each request, without anything that was in its SQL.

use crate::support::client::{bind, describe, execute, message, parse, query, sync};
use crate::support::{Ambassador, Client, Dir, cluster, shared, url, wait_until};
use pg_ambassador::demo::cluster::Options;
use pg_ambassador::routing::verdict::fingerprint;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An ambassador in front of the shared server that writes to a file.
fn logging(more: &[&str]) -> (Ambassador, Dir, PathBuf) {
    let dir = Dir::new();
    let path = dir.path().join("access.log");
    let setting = format!("access_log={}", path.display());
    let url = url(shared());
    let args: Vec<&str> = [url.as_str(), "--set", &setting].into_iter().chain(more.iter().copied()).collect();
    (Ambassador::start(&args), dir, path)
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// Waits for so many lines; all of them.
fn wait_for_lines(path: &Path, count: usize) -> Vec<Value> {
    wait_until("the lines are written", || lines(path).len() >= count);
    let found = lines(path);
    assert_eq!(found.len(), count, "{found:#?}");
    found
}

fn print_of(sql: &str) -> Value {
    format!("{:016x}", fingerprint(sql.as_bytes(), true)).into()
}

#[test]
fn each_request_has_one_line_that_says_what_became_of_it() {
    shared().psql(0, "drop table if exists logged; create table logged (a int)").unwrap();
    let (ambassador, _dir, path) = logging(&[]);
    // A pool's first BEGIN goes to the server, which has to say how long a transaction may be idle.
    let mut first = Client::new(ambassador.port);
    for sql in ["begin", "select 1", "commit"] {
        first.query(sql);
    }
    let mut client = Client::login(
        ambassador.port,
        &[("user", "postgres"), ("database", "postgres"), ("application_name", "shop \"one\"")],
    );
    let trace = "/*traceparent='00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'*/";
    let select = "select generate_series(1, 3), 'secret'";
    let sent = query(format!("{select} {trace}"));
    let answer = client.exchange(&sent);
    let insert = "insert into logged select $1::int from generate_series(1, 2)";
    client.query("select 1 from logged");
    client.exchange(&[parse("s", insert), describe(b'S', "s"), sync()].concat());
    client.exchange(&[bind("", "s", &[Some("4711")]), execute("", 0), sync()].concat());
    client.try_query("select 1 / 0, 'secret'").unwrap_err();
    client.query("begin");
    client.query("select 1");
    client.query("commit");
    client.send(&[query("select 1"), query("select 2")].concat());
    client.read_until(b"Z").unwrap();
    client.read_until(b"Z").unwrap();
    client.query("show last route");
    wait_until("the last line is written", || {
        lines(&path).last().is_some_and(|line| line["stmt_fp"] == print_of("show last route"))
    });
    let address = client.stream.local_addr().unwrap().to_string();
    let mut found: Vec<Value> = lines(&path).into_iter().filter(|line| line["client"] == *address).collect();
    // What was sent together may be answered together, or not.
    let pipelined: u64 = found.split_off(8).iter().map(|line| line["requests"].as_u64().unwrap()).sum();
    assert_eq!(pipelined, 3);
    let server = format!("127.0.0.1:{}", shared().port());
    for line in &found {
        assert_eq!(line["pid"], i32::from_be_bytes(client.key[..4].try_into().unwrap()));
        assert_eq!(
            (&line["db"], &line["user"], &line["app"]),
            (&"postgres".into(), &"postgres".into(), &"shop \"one\"".into())
        );
        assert_eq!((&line["pool"], &line["requests"]), (&"postgres/postgres".into(), &1.into()));
        let ts = line["ts"].as_str().unwrap();
        assert!(ts.len() == 27 && ts.ends_with('Z') && &ts[10..11] == "T", "{ts}");
        assert!(line["wait_us"].is_u64() && line["exec_us"].is_u64() && line["session_id"].is_u64());
        let here = line["stmt_fp"] == print_of("begin");
        let expected = if here { (Value::Null, Value::Null) } else { ("primary".into(), server.as_str().into()) };
        assert_eq!((line["role"].clone(), line["server"].clone()), expected, "{line}");
        assert_eq!(line["route_reason"], Value::Null, "there is nothing to choose from: {line}");
    }
    let of =
        |at: usize| (found[at]["stmt_fp"].clone(), found[at]["rows"].as_u64().unwrap(), found[at]["sqlstate"].clone());
    assert_eq!(of(0), (print_of(select), 3, Value::Null));
    assert_eq!(found[0]["trace_id"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(found[0]["span_id"], "b7ad6b7169203331");
    assert_eq!(found[0]["bytes_in"], sent.len());
    let received: usize = answer.iter().map(|message| message.body.len() + 5).sum();
    assert_eq!(found[0]["bytes_out"], received);
    assert_eq!(found[1]["trace_id"], Value::Null);
    assert_eq!(of(2), (print_of(insert), 0, Value::Null));
    assert_eq!(of(3), (print_of(insert), 2, Value::Null));
    assert_eq!(of(4), (print_of("select 1 / 0, 'x'"), 0, "22012".into()));
    assert_eq!([of(5).0, of(6).0, of(7).0], ["begin", "select 1", "commit"].map(print_of));
    let text = std::fs::read_to_string(&path).unwrap();
    for secret in ["secret", "4711", "select", "logged"] {
        assert!(!text.to_lowercase().contains(secret), "{secret} is in\n{text}");
    }
}

#[test]
fn a_line_says_which_replica_has_served_a_read_and_why_a_request_was_refused() {
    let cluster = cluster(&Options { replicas: 1, ..Options::default() });
    let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
    let (dir, url) = (Dir::new(), format!("postgres://127.0.0.1:{},127.0.0.1:{}/?sslmode=disable", ports[0], ports[1]));
    let path = dir.path().join("access.log");
    let setting = format!("access_log={}", path.display());
    let ambassador = Ambassador::start(&[&url, "--set", &setting, "--set", "replica_fallback=error"]);
    let mut client = Client::new(ambassador.port);
    wait_until("a read goes to a replica", || {
        client.try_query("select inet_server_port()").is_ok_and(|rows| rows[0][0] == Some(ports[1].to_string()))
    });
    client.query("create table for_the_primary (a int)");
    cluster.stop(1, "immediate").unwrap();
    wait_until("no replica may have it", || client.try_query("select 'last'").is_err());
    let last = |lines: Vec<Value>, sql: &str| lines.into_iter().rev().find(|line| line["stmt_fp"] == print_of(sql));
    wait_until("the last line is written", || {
        last(lines(&path), "select 'x'").is_some_and(|line| line["sqlstate"] == "57P03")
    });
    let read = last(lines(&path), "select inet_server_port()").unwrap();
    let fields = ["role", "server", "route_reason", "sqlstate"];
    let replica = format!("127.0.0.1:{}", ports[1]);
    assert_eq!(fields.map(|field| read[field].clone()), ["replica".into(), replica.into(), "read".into(), Value::Null]);
    let write = last(lines(&path), "create table for_the_primary (a int)").unwrap();
    let primary = format!("127.0.0.1:{}", ports[0]);
    assert_eq!(
        fields.map(|field| write[field].clone()),
        ["primary".into(), primary.into(), "command".into(), Value::Null]
    );
    let refused = last(lines(&path), "select 'x'").unwrap();
    assert_eq!(fields.map(|field| refused[field].clone()), [Value::Null, Value::Null, Value::Null, "57P03".into()]);
}

#[test]
fn names_that_clients_choose_cannot_forge_a_line() {
    let (ambassador, _dir, path) = logging(&[]);
    let name = "x\",\"user\":\"root\"}\n{\"ts\":\"\\";
    let known = [("user", "postgres"), ("database", "postgres"), ("application_name", name)];
    let mut client = Client::login(ambassador.port, &known);
    client.query("select 1");
    let line = wait_for_lines(&path, 1).remove(0);
    // PostgreSQL itself replaces what is no printable ASCII.
    let app = line["app"].as_str().unwrap().to_owned();
    assert!(app == name || app == name.replace('\n', "?") || app == name.replace('\n', "\\x0a"), "{app:?}");
    assert_eq!(line["user"], "postgres");
}

#[test]
fn only_what_is_slow_or_fails_is_logged_where_that_is_asked_for() {
    let (ambassador, _dir, path) = logging(&["--set", "access_log_min_duration=1h"]);
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    client.try_query("select 1 / 0").unwrap_err();
    assert_eq!(wait_for_lines(&path, 1)[0]["sqlstate"], "22012");
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    console.query("SET access_log_min_duration = '0'");
    client.query("select 1");
    assert_eq!(wait_for_lines(&path, 2)[1]["sqlstate"], Value::Null);
}

#[test]
fn a_file_that_was_moved_away_is_opened_anew_on_sighup() {
    let (mut ambassador, dir, path) = logging(&[]);
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    wait_for_lines(&path, 1);
    let moved = dir.path().join("access.log.1");
    std::fs::rename(&path, &moved).unwrap();
    ambassador.signal("HUP");
    wait_until("there is a new one", || path.exists());
    client.query("select 1");
    wait_for_lines(&path, 1);
    assert_eq!(lines(&moved).len(), 1);
    // And what is left is written before the end.
    client.query("select 1");
    // A goodbye is no request.
    client.send(&message(b'X', b""));
    assert!(client.is_closed());
    drop(client);
    ambassador.signal("TERM");
    assert!(ambassador.wait().success());
    assert_eq!(lines(&path).len(), 2);
}

#[test]
fn a_reader_that_does_not_read_holds_nobody_up() {
    let dir = Dir::new();
    let path = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let setting = format!("access_log={}", path.display());
    let mut ambassador = Ambassador::start(&[url(shared()).as_str(), "--set", &setting]);
    let mut client = Client::new(ambassador.port);
    let dropped = |ambassador: &Ambassador| ambassador.metric("pg_ambassador_access_log_dropped_total");
    wait_until("lines are lost", || {
        (0..500).for_each(|_| drop(client.query("select 1")));
        dropped(&ambassador) > 0.0
    });
    let before = dropped(&ambassador);
    client.query("select 1");
    assert!(dropped(&ambassador) > before);
    let said = |ambassador: &Ambassador| ambassador.log().matches("lines of the access log are lost").count();
    wait_until("that is said", || said(&ambassador) > 0);
    drop(client);
    ambassador.signal("TERM");
    assert!(ambassador.wait().success());
    assert_eq!(said(&ambassador), 1);
}

#[test]
fn a_file_that_cannot_be_written_is_told_at_the_start() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pg-ambassador"));
    command.args([
        "run",
        "postgres://127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
        "--set",
        "access_log=/nowhere/at/all.log",
    ]);
    let said = String::from_utf8(command.env_clear().output().unwrap().stderr).unwrap();
    assert!(said.contains("cannot write to the access log \"/nowhere/at/all.log\""), "{said}");
}
