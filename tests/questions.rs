//! What a client asks while the server is asked what it has left there: the answer is late, and out of date.

use crate::support::chaos::How;
use crate::support::client::{bind, execute, flush, parse, query, sync};
use crate::support::{Ambassador, Chaos, Client, Rule, Way, shared, url, wait_until};
use std::time::Duration;

/// A database of the test's own on the shared server.
fn database(name: &str) -> String {
    let mut direct = Client::new(shared().port());
    direct.query(&format!("drop database if exists {name} with (force)"));
    direct.query(&format!("create database {name}"));
    name.to_owned()
}

fn login(port: u16, database: &str) -> Client {
    Client::login(port, &[("user", "postgres"), ("database", database)])
}

/// A pool of one connection, whose server answers late once [`late`] is called.
fn slow() -> (Chaos, Ambassador) {
    let chaos = Chaos::start(shared().port());
    let url = format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port);
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1"]);
    (chaos, ambassador)
}

fn late(chaos: &Chaos) {
    chaos.set(Way::ToClient, Rule { latency: Duration::from_millis(50), ..Rule::default() });
}

/// A setting of a client's own making, if there is one.
const MINE: &str = "select coalesce(nullif(current_setting('my.own', true), ''), 'none')";

#[test]
fn what_a_function_has_set_is_found_though_another_is_defined_before_the_answer() {
    let (chaos, ambassador) = slow();
    let name = database("questions_defined");
    let (mut client, mut other) = (login(ambassador.port, &name), login(ambassador.port, &name));
    client.query("create function f() returns void language plpgsql as 'begin perform set_config(''my.own'', ''set'', false); end'");
    late(&chaos);
    client.query("select f()");
    client.query("create function g() returns int language sql as 'select 1'");
    assert_eq!(other.value(MINE), "none");
    assert_eq!(client.value(MINE), "set");
}

#[test]
fn what_a_function_sets_that_another_calls_is_found_at_the_first_call() {
    let ambassador = Ambassador::start(&[url(shared()).as_str(), "--pool-size", "1"]);
    let name = database("questions_nested");
    let mut direct = login(shared().port(), &name);
    direct.query("create function inner() returns void language plpgsql as 'begin perform set_config(''my.own'', ''set'', false); end'");
    direct.query("create function middle() returns void language sql as 'select inner()'");
    direct.query("create function put(text) returns void language plpgsql as 'begin perform set_config($1, ''set'', false); end'");
    direct.query("create function puts() returns void language sql as 'select put(''my.other'')'");
    direct.query("create function outer() returns void language sql as 'select middle()'");
    let (mut client, mut other) = (login(ambassador.port, &name), login(ambassador.port, &name));
    client.query("select outer()");
    assert_eq!(other.value(MINE), "none");
    assert_eq!(client.value(MINE), "set");
    // The name stands in the one and is set by the other.
    let look = MINE.replace("my.own", "my.other");
    client.query("select puts()");
    assert_eq!(other.value(&look), "none");
    assert_eq!(client.value(&look), "set");
}

#[test]
fn what_a_function_sets_whose_caller_says_the_name_is_found_at_every_call() {
    let ambassador = Ambassador::start(&[url(shared()).as_str(), "--pool-size", "1"]);
    let name = database("questions_named");
    let mut direct = login(shared().port(), &name);
    direct.query("create function put(text, text) returns void language plpgsql as 'begin perform set_config($1, $2, false); end'");
    let mut other = login(ambassador.port, &name);
    // Known since the first of them.
    for round in 0..4 {
        let mut client = login(ambassador.port, &name);
        let own = format!("my.own{round}");
        match round {
            0 | 1 => drop(client.query(&format!("select put('{own}', 'set')"))),
            2 => {
                let call = [parse("", "select put($1, $2)"), bind("", "", &[Some(&own), Some("set")]), execute("", 0)];
                client.exchange(&[call.concat(), sync()].concat());
            }
            _ => {
                client.exchange(&[parse("s", "select put($1, $2)"), sync()].concat());
                client.exchange(&[bind("", "s", &[Some(&own), Some("set")]), execute("", 0), sync()].concat());
            }
        }
        let look = format!("select coalesce(nullif(current_setting('{own}', true), ''), 'none')");
        assert_eq!(other.value(&look), "none", "round {round}");
        assert_eq!(client.value(&look), "set", "round {round}");
    }
}

#[test]
fn a_transaction_does_not_run_under_other_settings_where_its_own_are_refused() {
    let name = database("questions_refused");
    let ambassador = Ambassador::start(&[url(shared()).as_str(), "--pool-size", "1"]);
    let mut direct = login(shared().port(), &name);
    direct.query("create table t (who text)");
    direct.query("create role questions_refused");
    let (mut client, mut other) = (login(ambassador.port, &name), login(ambassador.port, &name));
    for text in ["begin", "commit", "set role questions_refused"] {
        client.query(text);
    }
    other.query("select 1");
    direct.query("drop role questions_refused");
    // The next connection was not asked yet how long a transaction may be idle.
    let pid = other.value("select pg_backend_pid()");
    direct.query(&format!("select pg_terminate_backend({pid}, 10000)"));
    client.query("begin");
    client.send(&query("insert into t values (current_user); commit"));
    let answer = client.read_until(b"ZE").expect("an answer");
    assert_eq!(answer.last().map(|message| message.tag), Some(b'E'), "{answer:?}");
    wait_until("its server is done with it", || {
        other.value("select count(*) from pg_locks where relation = 't'::regclass") == "0"
    });
    assert_eq!(direct.value("select count(*) from t"), "0", "{}", ambassador.log());
}

#[test]
fn a_server_that_is_lost_before_it_has_said_what_a_client_left_there_ends_its_session() {
    let (chaos, ambassador) = slow();
    let mut client = login(ambassador.port, &database("questions_lost"));
    client.query("select 1");
    late(&chaos);
    client.query("set search_path = elsewhere");
    chaos.end_all(How::Reset);
    // With its old settings it would not be told that they are not the ones that it has set.
    client.send(&query("show search_path"));
    let answer = client.read_until(b"ZE").expect("an answer");
    assert_eq!(answer.last().map(|message| message.tag), Some(b'E'), "{answer:?}");
    assert!(client.is_closed());
}

#[test]
fn discard_all_ends_what_a_listen_has_begun_of_which_the_answer_is_late() {
    let (chaos, ambassador) = slow();
    let mut client = login(ambassador.port, &database("questions_discarded"));
    client.query("listen one");
    client.query("notify one");
    late(&chaos);
    client.query("listen two");
    client.query("discard all");
    chaos.calm();
    client.heard.clear();
    client.query("notify two, 'nobody'");
    client.query("notify one, 'nobody'");
    client.query("select 1");
    assert!(client.heard.is_empty(), "{:?}", client.heard);
}

#[test]
fn who_is_asked_for_its_server_in_the_middle_of_a_batch_gives_it_back_behind_it() {
    let ambassador = Ambassador::start(&[url(shared()).as_str(), "--pool-size", "1"]);
    let name = database("questions_yield");
    let (mut client, port) = (login(ambassador.port, &name), ambassador.port);
    client.query("create sequence s");
    client.query("select nextval('s')");
    client.send(&[parse("", "select pg_sleep(0.3)"), bind("", "", &[]), execute("", 0), flush()].concat());
    let other = std::thread::spawn(move || login(port, &name).value("select 1"));
    wait_until("it waits", || ambassador.show("POOLS").iter().any(|row| row[3].as_deref() == Some("1")));
    client.read_until(b"C").expect("its answer");
    client.exchange(&sync());
    assert_eq!(other.join().unwrap(), "1");
}

#[test]
fn a_comment_in_front_of_the_line_break_that_continues_a_string_hides_nothing() {
    let ambassador = Ambassador::start(&[url(shared()).as_str(), "--pool-size", "1"]);
    let name = database("questions_continued");
    let (mut client, mut other) = (login(ambassador.port, &name), login(ambassador.port, &name));
    let before = other.value("show work_mem");
    let text = "select E'x' -- c\n'\\'', set_config('work_mem', '1MB', false) -- '";
    assert_eq!(client.query(text), [[Some("x'".to_owned()), Some("1MB".to_owned())]]);
    assert_eq!(other.value("show work_mem"), before);
    assert_eq!(client.value("show work_mem"), "1MB");
}
