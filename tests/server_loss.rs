//! Servers that are lost, idle and busy: what clients see, and that nothing is ever sent twice.

use crate::support::chaos::{Chaos, How, Rule, Way};
use crate::support::client::{Message, bind, close, describe, execute, parse, query, startup, sync};
use crate::support::{Ambassador, Client, Random, cluster, shared, url, wait_until};
use pg_ambassador::demo::cluster::Options;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The process ids of an ambassador's server connections.
fn backends(ambassador: &Ambassador) -> Vec<String> {
    ambassador.show("SERVERS").into_iter().filter_map(|row| row[16].clone()).collect()
}

fn terminate(port: u16, pids: &[String]) {
    let mut direct = Client::new(port);
    for pid in pids {
        direct.query(&format!("select pg_terminate_backend({pid}, 10000)"));
    }
}

fn through(chaos: &Chaos) -> String {
    format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port)
}

fn errors(messages: &[Message]) -> Vec<(String, String)> {
    let errors = messages.iter().filter(|m| m.tag == b'E');
    errors.map(|m| (m.field(b'S').unwrap_or_default(), m.code())).collect()
}

fn pair(severity: &str, code: &str) -> Vec<(String, String)> {
    vec![(severity.to_owned(), code.to_owned())]
}

/// The transaction status at the end of an exchange.
fn status(messages: &[Message]) -> u8 {
    messages.last().unwrap().body[0]
}

fn is_running(port: u16, marker: &str) -> bool {
    let sql = format!(
        "select count(*) from pg_stat_activity where state = 'active' and query like '%{marker}%' and pid <> pg_backend_pid()"
    );
    Client::new(port).value(&sql) != "0"
}

#[test]
fn f1_clients_do_not_notice_that_an_idle_server_was_terminated() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "3"]);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(ambassador.port)).collect();
    for round in 0..5 {
        for client in &mut clients {
            client.query("begin; select 1");
        }
        for client in &mut clients {
            client.query("commit");
        }
        let pids = backends(&ambassador);
        assert_eq!(pids.len(), 3, "round {round}");
        terminate(shared().port(), &pids);
        for client in &mut clients {
            client.query("begin; select 1");
            client.query("commit");
        }
    }
}

#[test]
fn each_way_to_lose_a_server_is_counted_by_its_reason() {
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[through(&chaos).as_str(), "--pool-size", "1"]);
    let count = |name: &str, label: &str| {
        let (_, page) = ambassador.http("/metrics");
        let of = |line: &&str| line.starts_with(&format!("pg_ambassador_{name}{{")) && line.contains(label);
        page.lines().filter(of).map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    let lost = |reason: &str| count("server_closed_total", &format!("reason=\"{reason}\""));
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    let before = chaos.passed(Way::ToClient);
    terminate(shared().port(), &backends(&ambassador));
    wait_until("the ambassador could know", || chaos.passed(Way::ToClient) > before);
    assert_eq!(client.value("select 1"), "1");
    assert_eq!((lost("admin_idle"), lost("admin_active")), (1, 0));
    // The server goes on with what nobody waits for any more: each has a name of its own.
    let sleep = |name: &str| format!("select pg_sleep(3600), 'loss {name}'");
    let begin = |client: &mut Client, text: &str, name: &str| {
        client.send(&query(format!("{text}{}", sleep(name))));
        wait_until("it runs", || is_running(shared().port(), &format!("loss {name}")));
    };
    let code = |client: &mut Client| errors(&client.read_until(b"Z").unwrap())[0].1.clone();
    begin(&mut client, "", "counted");
    terminate(shared().port(), &backends(&ambassador));
    assert_eq!(code(&mut client), "57P01");
    assert_eq!((lost("admin_idle"), lost("admin_active")), (1, 1));
    begin(&mut client, "", "by reset");
    assert_eq!(chaos.end_all(How::Reset), 1);
    assert_eq!(code(&mut client), "08006");
    assert_eq!((lost("reset"), lost("closed")), (1, 0));
    begin(&mut client, "", "by close");
    assert_eq!(chaos.end_all(How::Close), 1);
    assert_eq!(code(&mut client), "08006");
    assert_eq!((lost("reset"), lost("closed")), (1, 1));
    assert_eq!(count("txn_unknown_total", ""), 0, "nothing was committed");
    begin(&mut client, "begin; select 1; commit; ", "unknown");
    assert_eq!(chaos.end_all(How::Close), 1);
    assert_eq!(code(&mut client), "08007");
    assert_eq!(count("txn_unknown_total", ""), 1);
    begin(&mut client, "", "left");
    drop(client);
    wait_until("it has left", || count("client_abort_total", "state=\"active\"") == 1);
    let stranger = Client::try_login(ambassador.port, &[("user", "postgres"), ("database", "no such database")]);
    assert_eq!(stranger.err().unwrap().code(), "3D000");
    assert_eq!(count("server_connect_errors_total", "sqlstate=\"3D000\""), 1);
}

#[test]
fn i21_after_all_idle_servers_were_terminated_many_clients_see_no_error() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "8"]);
    let port = ambassador.port;
    let mut holders: Vec<Client> = (0..8).map(|_| Client::new(port)).collect();
    holders.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
    holders.iter_mut().for_each(|client| drop(client.query("commit")));
    let pids = backends(&ambassador);
    assert_eq!(pids.len(), 8);
    terminate(shared().port(), &pids);
    std::thread::scope(|scope| {
        for thread in 0..10 {
            scope.spawn(move || {
                for at in 0..20 {
                    let nonce = format!("{thread}-{at}");
                    assert_eq!(Client::new(port).value(&format!("select '{nonce}'")), nonce);
                }
            });
        }
    });
}

#[test]
fn f2_a_server_terminated_during_a_query_costs_one_error_and_its_client_stays() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    let sleep = "select pg_sleep(3600), 'loss f2'";
    for request in [query(sleep), [parse("", sleep), bind("", "", &[]), execute("", 0), sync()].concat()] {
        client.send(&request);
        wait_until("the query runs", || is_running(shared().port(), "loss f2"));
        terminate(shared().port(), &backends(&ambassador));
        let messages = client.read_until(b"Z").unwrap();
        assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "57P01"), b'I'));
        assert_eq!(client.value("select 1"), "1");
    }
}

#[test]
fn f2_where_it_is_asked_for_the_client_is_closed_with_the_server() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1", "--set", "on_server_loss=close"]);
    let mut client = Client::new(ambassador.port);
    client.send(&query("select pg_sleep(3600), 'loss close'"));
    wait_until("the query runs", || is_running(shared().port(), "loss close"));
    terminate(shared().port(), &backends(&ambassador));
    let mut messages = Vec::new();
    while let Ok(message) = client.read() {
        messages.push(message);
    }
    assert_eq!(errors(&messages), pair("FATAL", "57P01"));
    assert_eq!(messages.last().unwrap().tag, b'E', "a FATAL error is the last message");
}

#[test]
fn f3_a_server_terminated_in_a_transaction_leaves_a_failed_one_until_it_is_ended() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    for (end, tag) in [("rollback", "ROLLBACK"), ("commit", "ROLLBACK"), ("end", "ROLLBACK")] {
        client.query("begin; select 1");
        client.query("select 1");
        terminate(shared().port(), &backends(&ambassador));
        let messages = client.exchange(&query("select 2"));
        assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "57P01"), b'E'));
        let messages = client.exchange(&query("select 3"));
        assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "25P02"), b'E'));
        let batch = [parse("", "select 4"), bind("", "", &[]), execute("", 0), sync()].concat();
        let messages = client.exchange(&batch);
        assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "25P02"), b'E'));
        let messages = client.exchange(&query(end));
        assert_eq!((errors(&messages), status(&messages)), (vec![], b'I'));
        assert_eq!(messages[0].body, [tag.as_bytes(), b"\0"].concat());
        assert_eq!(client.value("select 5"), "5");
    }
}

#[test]
fn f3_a_commit_of_a_transaction_whose_loss_nobody_has_told_of_is_an_error() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    client.exchange(&[parse("end", "commit"), sync()].concat());
    let batch = |parse: &[u8], name: &str| [parse, &bind("", name, &[]), &execute("", 0), &sync()].concat();
    for commit in [query("commit"), batch(&parse("", "commit"), ""), batch(b"", "end")] {
        client.query("begin; select 1");
        client.query("select 1");
        terminate(shared().port(), &backends(&ambassador));
        let messages = client.exchange(&commit);
        assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "57P01"), b'I'), "{messages:?}");
        assert!(messages.iter().all(|m| m.tag != b'C'), "{messages:?}");
        assert_eq!(client.value("select 1"), "1");
    }
}

#[test]
fn f3_prepared_statements_run_in_a_lost_transaction_fail_and_do_not_end_it() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    client.exchange(&[parse("one", "select 1"), parse("end", "rollback"), parse("old", "select 2"), sync()].concat());
    let run = |name: &str| [bind("", name, &[]), describe(b'P', ""), execute("", 0), sync()].concat();
    client.query("begin; select 1");
    client.exchange(&run("one"));
    terminate(shared().port(), &backends(&ambassador));
    for code in ["57P01", "25P02", "25P02"] {
        let messages = client.exchange(&run("one"));
        assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", code), b'E'), "{messages:?}");
    }
    // Closing needs no transaction, and the name is free afterwards.
    client.exchange(&[close(b'S', "old"), sync()].concat());
    let messages = client.exchange(&run("end"));
    assert_eq!((errors(&messages), status(&messages)), (vec![], b'I'), "{messages:?}");
    assert_eq!(client.exchange(&run("one")).iter().filter(|m| m.tag == b'D').count(), 1);
    let messages = client.exchange(&[parse("old", "select 3"), sync()].concat());
    assert_eq!(errors(&messages), vec![]);
    // A statement that was prepared in a lost transaction, because it ends one, is there later.
    client.query("begin; select 1");
    terminate(shared().port(), &backends(&ambassador));
    let messages = client.exchange(&[parse("made", "rollback"), run("made")].concat());
    assert_eq!((errors(&messages), status(&messages)), (vec![], b'I'), "{messages:?}");
    client.query("begin; select 1");
    let messages = client.exchange(&run("made"));
    assert_eq!((errors(&messages), status(&messages)), (vec![], b'I'), "{messages:?}");
}

#[test]
fn f3_a_lost_transaction_is_not_chained_to_one_that_commits_by_itself() {
    let mut direct = Client::new(shared().port());
    direct.query("drop table if exists loss_chain; create table loss_chain (n int)");
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    for end in ["rollback and chain", "commit and chain", "end work and chain"] {
        client.query("begin; select 1");
        terminate(shared().port(), &backends(&ambassador));
        client.exchange(&query("select 2"));
        let messages = client.exchange(&query(end));
        assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "25P02"), b'E'));
        client.exchange(&query("insert into loss_chain values (1)"));
        client.exchange(&query("rollback"));
        assert_eq!(direct.value("select count(*) from loss_chain"), "0");
    }
    // What another prepared transaction becomes is no end of this one.
    client.query("begin; select 1");
    terminate(shared().port(), &backends(&ambassador));
    client.exchange(&query("select 2"));
    let messages = client.exchange(&query("commit prepared 'x'"));
    assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "25P02"), b'E'));
    // More may stand behind what ends it.
    let messages = client.exchange(&query("rollback; begin"));
    assert_eq!((errors(&messages), status(&messages)), (vec![], b'T'));
    assert_eq!(client.value("select 3"), "3");
}

#[test]
fn f3_who_believes_to_have_what_was_lost_with_the_server_is_closed() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    // A lock of the session outlives its transaction.
    let mut client = Client::new(ambassador.port);
    client.query("begin; select 1");
    client.query("select pg_advisory_lock(20261127)");
    terminate(shared().port(), &backends(&ambassador));
    client.send(&query("select 2"));
    assert_eq!(errors(&client.read_until(b"E").unwrap()), pair("FATAL", "57P01"));
    assert!(client.is_closed());
    // What was set before the next of several requests.
    let mut client = Client::new(ambassador.port);
    client.send(&[query("set search_path = x"), query("select pg_sleep(3600), 'loss believed'")].concat());
    client.read_until(b"Z").unwrap();
    wait_until("the query runs", || is_running(shared().port(), "loss believed"));
    terminate(shared().port(), &backends(&ambassador));
    assert_eq!(errors(&client.read_until(b"E").unwrap()), pair("FATAL", "57P01"));
    assert!(client.is_closed());
    // What was set in the transaction that is lost is not.
    let mut client = Client::new(ambassador.port);
    client.query("begin; select 1");
    client.query("set search_path = y");
    terminate(shared().port(), &backends(&ambassador));
    let messages = client.exchange(&query("select 2"));
    assert_eq!(errors(&messages), pair("ERROR", "57P01"));
    client.query("rollback");
    assert_ne!(client.value("show search_path"), "y");
}

#[test]
fn f3_a_query_that_waits_when_its_server_is_lost_is_answered() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    client.exchange(&[parse("p", "select 1"), parse("q", "select 2"), sync()].concat());
    client.send(&[query("select pg_sleep(3600), 'loss waits'"), query("deallocate p; execute q")].concat());
    wait_until("the query runs", || is_running(shared().port(), "loss waits"));
    terminate(shared().port(), &backends(&ambassador));
    assert_eq!(errors(&client.read_until(b"Z").unwrap()), pair("ERROR", "57P01"));
    assert_eq!(errors(&client.read_until(b"Z").unwrap()), []);
    // Behind a BEGIN that was on its way.
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[through(&chaos).as_str(), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    client.query("begin");
    client.query("commit");
    client.query("begin");
    chaos.set(Way::ToClient, Rule { stalled: true, ..Rule::default() });
    client.send(&query("listen loss_waits"));
    let state = format!("select state || wait_event from pg_stat_activity where pid = {}", backends(&ambassador)[0]);
    let mut direct = Client::new(shared().port());
    wait_until("it has begun", || direct.value(&state) == "activeClientRead");
    chaos.end_all(How::Close);
    chaos.calm();
    let messages = client.read_until(b"Z").unwrap();
    assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "08006"), b'E'));
    client.query("rollback");
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn f3_what_was_found_in_a_text_that_its_server_never_saw_says_nothing_of_the_next() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let (mut client, mut other) = (Client::new(ambassador.port), Client::new(ambassador.port));
    client.query("begin; select 1");
    let sleep = "select pg_sleep(3600), 'loss found'";
    client.send(&[query(sleep), query("listen loss_found")].concat());
    wait_until("the query runs", || is_running(shared().port(), "loss found"));
    terminate(shared().port(), &backends(&ambassador));
    client.read_until(b"Z").unwrap();
    client.read_until(b"Z").unwrap();
    client.query("rollback");
    client.query("set search_path = loss_found");
    assert_ne!(other.value("show search_path"), "loss_found");
    assert_eq!(client.value("show search_path"), "loss_found");
}

#[test]
fn f3_the_same_in_the_middle_of_a_statement_of_the_transaction() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    client.query("begin; select 1");
    client.send(&query("select pg_sleep(3600), 'loss f3'"));
    wait_until("the query runs", || is_running(shared().port(), "loss f3"));
    terminate(shared().port(), &backends(&ambassador));
    let messages = client.read_until(b"Z").unwrap();
    assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "57P01"), b'E'));
    client.query("rollback");
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn f3_a_commit_whose_answer_was_lost_is_unknown_and_never_sent_again() {
    let mut direct = Client::new(shared().port());
    direct.query("drop table if exists loss_commit; create table loss_commit (n int)");
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[through(&chaos).as_str(), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    let extended = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
    let ways = [query("commit"), query("select 1; commit"), extended("COMMIT"), extended("end work")];
    for (n, commit) in ways.iter().enumerate() {
        for how in [How::Close, How::Reset] {
            client.query("begin; select 1");
            client.query(&format!("insert into loss_commit values ({n})"));
            chaos.set(Way::ToClient, Rule { stalled: true, ..Rule::default() });
            client.send(commit);
            wait_until("it is committed", || direct.value("select count(*) from loss_commit") == "1");
            chaos.end_all(how);
            let messages = client.read_until(b"Z").unwrap();
            assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "08007"), b'I'), "{n} {how:?}");
            chaos.calm();
            assert_eq!(client.value("select count(*) from loss_commit"), "1", "the transaction ran twice");
            client.query("truncate loss_commit");
        }
    }
}

#[test]
fn f4_after_a_crash_of_the_server_clients_are_told_and_wait_for_the_recovery() {
    let cluster = cluster(&Options::default());
    let ambassador = Ambassador::start(&[&url(&cluster), "--pool-size", "4"]);
    let mut idle = Client::new(ambassador.port);
    let mut busy = Client::new(ambassador.port);
    let mut victim = Client::new(ambassador.port);
    let mut open = Client::new(ambassador.port);
    open.query("begin; select 1");
    victim.query("begin; select 1");
    let pid = victim.value("select pg_backend_pid()");
    busy.send(&query("select pg_sleep(3600), 'loss f4'"));
    wait_until("the query runs", || is_running(cluster.port(), "loss f4"));
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    let messages = busy.read_until(b"Z").unwrap();
    let warning = messages.iter().find(|m| m.tag == b'N').map(Message::code);
    assert_eq!(warning.as_deref(), Some("57P02"), "{messages:?}");
    assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "08006"), b'I'));
    let messages = victim.exchange(&query("select 1"));
    assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "08006"), b'E'));
    let messages = open.exchange(&query("select 1"));
    assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "08006"), b'E'), "{messages:?}");
    // The server says 57P03 until it has recovered: nobody hears of it.
    for client in [&mut victim, &mut open] {
        client.query("rollback");
    }
    for client in [&mut idle, &mut busy, &mut victim, &mut open] {
        assert_eq!(client.value("select 42"), "42");
    }
}

#[test]
fn f5_a_reset_costs_an_idle_client_nothing_and_a_busy_one_an_error() {
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[through(&chaos).as_str(), "--pool-size", "2"]);
    let mut client = Client::new(ambassador.port);
    for how in [How::Reset, How::Close] {
        client.query("select 1");
        assert!(chaos.end_all(how) > 0);
        wait_until("the connection is gone", || chaos.open() == 0);
        assert_eq!(client.value("select 2"), "2");
        client.send(&query("select pg_sleep(3600), 'loss f5'"));
        wait_until("the query runs", || is_running(shared().port(), "loss f5"));
        chaos.end_all(how);
        let messages = client.read_until(b"Z").unwrap();
        assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "08006"), b'I'));
        terminate_running("loss f5");
        client.query("begin; select 1");
        chaos.end_all(how);
        wait_until("the connection is gone", || chaos.open() == 0);
        let messages = client.exchange(&query("select 3"));
        assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "08006"), b'E'));
        client.query("rollback");
    }
}

fn terminate_running(marker: &str) {
    let sql = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where query like '%{marker}%' and pid <> pg_backend_pid()"
    );
    Client::new(shared().port()).query(&sql);
}

#[test]
fn f5_a_connection_cut_at_any_byte_of_an_answer_is_an_error_or_the_end_never_a_wrong_answer() {
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[through(&chaos).as_str(), "--pool-size", "1"]);
    let sql = "select 'abcdefgh', 12345 union all select 'ijkl', 6";
    let batch = [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
    let requests = [query(sql), batch];
    let mut whole = Vec::new();
    for request in &requests {
        let before = chaos.passed(Way::ToClient);
        let messages = Client::new(ambassador.port).exchange(request);
        wait_until("all has passed", || chaos.passed(Way::ToClient) > before);
        whole.push(messages);
    }
    for (request, whole) in requests.iter().zip(&whole) {
        let len: usize = whole.iter().map(|m| m.body.len() + 5).sum();
        for at in 0..len {
            let mut client = Client::new(ambassador.port);
            client.query("begin; select 1");
            let start = chaos.passed(Way::ToClient);
            chaos.set(Way::ToClient, Rule { slice: 1, ..Rule::default() });
            client.send(request);
            wait_until("so many bytes have passed", || chaos.passed(Way::ToClient) >= start + at);
            chaos.end_all(How::Reset);
            let mut messages = Vec::new();
            let ended = loop {
                match client.read() {
                    Ok(message) if message.tag == b'Z' => break false,
                    Ok(message) => messages.push(message),
                    Err(_) => break true,
                }
            };
            let rows: Vec<_> = messages.iter().filter(|m| m.tag == b'D').cloned().collect();
            let expected: Vec<_> = whole.iter().filter(|m| m.tag == b'D').cloned().collect();
            assert!(expected.starts_with(&rows), "byte {at}: {messages:?}");
            let failed = messages.iter().any(|m| m.tag == b'E');
            assert!(ended || failed || rows == expected, "byte {at}: a part of an answer looks whole: {messages:?}");
            chaos.calm();
        }
    }
}

#[test]
fn the_query_timeout_is_one_for_each_query_of_a_pipeline() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1", "--set", "query_timeout=2s"]);
    let mut client = Client::new(ambassador.port);
    client.send(&query("select pg_sleep(0.25)").repeat(12));
    for _ in 0..12 {
        assert_eq!(errors(&client.read_until(b"Z").unwrap()), []);
    }
}

#[test]
fn f6_a_server_that_has_fallen_silent_is_given_up_after_the_query_timeout() {
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[through(&chaos).as_str(), "--pool-size", "1", "--set", "query_timeout=1s"]);
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    chaos.end_all(How::Blackhole);
    client.send(&query("select 2"));
    let mut messages = Vec::new();
    while let Ok(message) = client.read() {
        messages.push(message);
    }
    assert_eq!(errors(&messages), pair("FATAL", "57014"));
    assert_eq!(Client::new(ambassador.port).value("select 3"), "3");
}

#[test]
fn f6_a_login_into_silence_ends_and_the_client_is_told() {
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[
        through(&chaos).as_str(),
        "--checkout-timeout",
        "1s",
        "--set",
        "server_connect_timeout=300ms",
    ]);
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    terminate(shared().port(), &backends(&ambassador));
    chaos.set_both(Rule { stalled: true, ..Rule::default() });
    let messages = client.exchange(&query("select 2"));
    assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "57P03"), b'I'));
    chaos.calm();
    chaos.end_all(How::Close);
    assert_eq!(client.value("select 3"), "3");
}

#[test]
fn f8_clients_wait_for_a_server_that_refuses_and_are_told_when_it_takes_too_long() {
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[through(&chaos).as_str(), "--checkout-timeout", "1s"]);
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    chaos.refuse(true);
    chaos.end_all(How::Close);
    wait_until("the ambassador has noticed", || ambassador.show("SERVERS").is_empty());
    let messages = client.exchange(&query("select 2"));
    assert_eq!((errors(&messages), status(&messages)), (pair("ERROR", "57P03"), b'I'));
    let error = messages.iter().find(|m| m.tag == b'E').unwrap();
    assert!(error.field(b'M').unwrap().starts_with("pg-ambassador: "), "{error:?}");
    assert!(error.field(b'D').unwrap().contains("waited_ms=") && error.field(b'H').is_some(), "{error:?}");
    // Somebody who has not logged in yet is told the same, and closed. No one with these settings was here before.
    let mut newcomer = Client::connect(ambassador.port);
    newcomer.send(&startup(&[("user", "postgres"), ("database", "postgres"), ("application_name", "new")]));
    let error = newcomer.finish_login().unwrap_err();
    assert_eq!((error.field(b'S').unwrap().as_str(), error.code().as_str()), ("FATAL", "57P03"));
}

#[test]
fn f8_who_waits_while_the_server_comes_back_is_served_and_hears_nothing() {
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[through(&chaos).as_str(), "--checkout-timeout", "60s"]);
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    chaos.refuse(true);
    chaos.end_all(How::Close);
    wait_until("the ambassador has noticed", || ambassador.show("SERVERS").is_empty());
    client.send(&query("select 3"));
    wait_until("the client waits", || ambassador.show("POOLS")[0][3].as_deref() == Some("1"));
    chaos.refuse(false);
    let messages = client.read_until(b"Z").unwrap();
    assert_eq!(messages.iter().find(|m| m.tag == b'D').unwrap().columns()[0].as_deref(), Some("3"), "{messages:?}");
    assert!(errors(&messages).is_empty(), "{messages:?}");
}

#[test]
fn f8_a_server_that_is_full_is_made_do_with() {
    let settings = [("max_connections", "5"), ("superuser_reserved_connections", "0"), ("max_wal_senders", "2")];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let cluster = cluster(&Options { settings: settings.to_vec(), ..Options::default() });
    let ambassador = Ambassador::start(&[&url(&cluster), "--pool-size", "8", "--checkout-timeout", "3s"]);
    let port = ambassador.port;
    let others: Vec<Client> = (0..2).map(|_| Client::new(cluster.port())).collect();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(move || {
                let mut client = Client::new(port);
                for at in 0..10 {
                    assert_eq!(client.value(&format!("select {at}")), at.to_string());
                    client.query("select pg_sleep(0.01)");
                }
            });
        }
    });
    // Without a single connection of its own there is nothing to make do with.
    ambassador_lets_go(&ambassador);
    let more: Vec<Client> = (0..3).map(|_| Client::new(cluster.port())).collect();
    let error = match Client::try_login(port, &[("user", "postgres"), ("database", "postgres")]) {
        Ok(mut client) => client.try_query("select 1").unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(error.code(), "53300", "{error:?}");
    drop(more);
    assert_eq!(Client::new(port).value("select 1"), "1");
    drop(others);
}

/// Closes all its server connections.
fn ambassador_lets_go(ambassador: &Ambassador) {
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    console.query("RECONNECT");
    console.query("WAIT_CLOSE");
    wait_until("the server has noticed", || ambassador.show("SERVERS").is_empty());
}

#[test]
fn i09_nothing_is_sent_twice_whatever_is_killed() {
    const CLIENTS: u64 = 6;
    const STATEMENTS: u64 = 60;
    let mut direct = Client::new(shared().port());
    direct.query("drop table if exists loss_ledger; create table loss_ledger (client int, seq int)");
    let chaos = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[through(&chaos).as_str(), "--pool-size", "3"]);
    let port = ambassador.port;
    let over = AtomicBool::new(false);
    let acknowledged: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let mut random = Random::new(9);
            let mut direct = Client::new(shared().port());
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20 + random.below(60) as u64));
                match random.below(6) {
                    0 => drop(chaos.end_all(How::Reset)),
                    1 => drop(chaos.end_all(How::Close)),
                    _ => {
                        let pids = backends(&ambassador);
                        if !pids.is_empty() {
                            let pid = random.choose(&pids);
                            direct.query(&format!("select pg_terminate_backend({pid})"));
                        }
                    }
                }
            }
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|id| {
                scope.spawn(move || {
                    let mut random = Random::new(id);
                    let mut acknowledged = Vec::new();
                    // A login may fail with its server; it is no statement.
                    let login = || loop {
                        if let Ok(client) = Client::try_login(port, &[("user", "postgres"), ("database", "postgres")]) {
                            break client;
                        }
                    };
                    let mut client = login();
                    for seq in 0..STATEMENTS {
                        let sql = format!("insert into loss_ledger values ({id}, {seq})");
                        let batch = [parse("", &sql), bind("", "", &[]), execute("", 0), sync()].concat();
                        let steps = match random.below(4) {
                            0 => vec![query(&sql)],
                            1 => vec![batch],
                            2 => vec![query("begin; select 1"), query(&sql), query("commit")],
                            _ => vec![[query("begin; select 1"), batch, query("commit")].concat()],
                        };
                        let mut failed = false;
                        for step in &steps {
                            client.send(step);
                            let readies =
                                if steps.len() == 1 && step.starts_with(&query("begin; select 1")) { 3 } else { 1 };
                            for _ in 0..readies {
                                let messages = client.read_until(b"Z").expect("the client is kept");
                                failed |= messages.iter().any(|m| m.tag == b'E');
                                if status(&messages) == b'E' && failed && readies == 1 {
                                    client.exchange(&query("rollback"));
                                    break;
                                }
                            }
                            if failed {
                                break;
                            }
                        }
                        let rolled = client.exchange(&query("rollback"));
                        assert_eq!(status(&rolled), b'I');
                        if !failed {
                            acknowledged.push((id, seq));
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        let results: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        over.store(true, Ordering::Relaxed);
        killer.join().unwrap();
        results.into_iter().flat_map(|result| result.unwrap()).collect()
    });
    let mut stored = BTreeMap::new();
    for row in direct.query("select client, seq from loss_ledger") {
        let number = |at: usize| row[at].as_deref().unwrap().parse::<u64>().unwrap();
        *stored.entry((number(0), number(1))).or_insert(0) += 1;
    }
    let twice: Vec<_> = stored.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "stored twice: {twice:?}");
    let lost: Vec<_> = acknowledged.iter().filter(|entry| !stored.contains_key(entry)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let all = usize::try_from(CLIENTS * STATEMENTS).unwrap();
    assert!(acknowledged.len() < all, "nothing was lost: nothing was tested");
}

#[test]
fn i23_after_a_restart_the_server_is_dialled_by_a_few_at_a_time() {
    const POOL: usize = 10;
    const CLIENTS: usize = 100;
    let cluster = cluster(&Options::default());
    let chaos = Chaos::start(cluster.port());
    let ambassador =
        Ambassador::start(&[through(&chaos).as_str(), "--pool-size", &POOL.to_string(), "--set", "dials_per_server=3"]);
    let port = ambassador.port;
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(port)).collect();
    clients[0].query("select 1");
    chaos.refuse(true);
    cluster.stop(0, "fast").unwrap();
    for client in &mut clients {
        client.send(&query("select pg_sleep(0.01)"));
    }
    let waiting = || ambassador.show("POOLS")[0][3].as_deref() == Some(CLIENTS.to_string().as_str());
    wait_until("all clients wait", waiting);
    cluster.restart(0).unwrap();
    let before = chaos.accepted();
    chaos.refuse(false);
    for client in &mut clients {
        let messages = client.read_until(b"Z").unwrap();
        assert_eq!(errors(&messages), vec![]);
    }
    let logins = chaos.accepted() - before;
    assert!(logins <= POOL + POOL / 5, "{logins} connections for a pool of {POOL}");
}
