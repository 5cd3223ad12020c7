//! Messages that meet each other, and what they have done to each other before: whatever they are, the answers are those that
//! PostgreSQL gives.

use crate::support::client::{Message, bind, close, describe, execute, flush, parse, query, sync};
use crate::support::{Ambassador, Client, shared, url};

/// A database of the test's own on the shared server, and a pool of one connection to it.
fn pooled(name: &str) -> (Ambassador, String) {
    let mut direct = Client::new(shared().port());
    direct.query(&format!("drop database if exists {name} with (force)"));
    direct.query(&format!("create database {name}"));
    (Ambassador::start(&[&url(shared()), "--pool-size", "1"]), name.to_owned())
}

fn login(port: u16, database: &str) -> Client {
    Client::login(port, &[("user", "postgres"), ("database", database)])
}

/// What was answered, told by tags, and of errors, ends, rows and commands what they say.
fn told(messages: &[Message]) -> Vec<String> {
    let told = messages.iter().filter(|message| message.tag != b'S').map(|message| match message.tag {
        b'E' => format!("E {}", message.code()),
        b'Z' => format!("Z {}", char::from(message.body[0])),
        b'C' => format!("C {}", String::from_utf8_lossy(&message.body).trim_end_matches('\0')),
        b'D' => format!("D {:?}", message.columns()),
        tag => char::from(tag).to_string(),
    });
    told.collect()
}

/// Sends each of these, waits for as many ends as it has, and gives all that was answered.
fn play(client: &mut Client, steps: &[(Vec<u8>, usize)]) -> Vec<Vec<String>> {
    let step = |(bytes, ends): &(Vec<u8>, usize)| {
        client.send(bytes);
        (0..*ends).flat_map(|_| told(&client.read_until(b"Z").unwrap())).collect()
    };
    steps.iter().map(step).collect()
}

/// The same directly and through an ambassador.
fn same_as_directly(name: &str, setup: &[&str], steps: &[(Vec<u8>, usize)]) {
    let (ambassador, database) = pooled(name);
    let mut answers = Vec::new();
    for port in [shared().port(), ambassador.port] {
        let mut direct = login(shared().port(), &database);
        direct.query("drop schema public cascade; create schema public");
        setup.iter().for_each(|text| drop(direct.query(text)));
        answers.push(play(&mut login(port, &database), steps));
    }
    assert_eq!(answers[1], answers[0]);
}

fn run(name: &str) -> Vec<u8> {
    [bind("", name, &[]), execute("", 0)].concat()
}

fn text(text: &str) -> Vec<u8> {
    [parse("", text), run("")].concat()
}

#[test]
fn a_loan_that_is_refused_ends_like_any_other_error() {
    same_as_directly(
        "interplay_loan",
        &["create table w (x int)"],
        &[
            ([parse("s", "select x from w"), parse("t", "select x from w"), sync()].concat(), 1),
            (query("drop table w"), 1),
            (query("execute s"), 1),
            (query("select 1"), 1),
            (query("begin"), 1),
            (query("execute s"), 1),
            (query("rollback"), 1),
            ([query("execute s"), query("select 2"), query("execute s; select 3")].concat(), 3),
            (query("select 4"), 1),
        ],
    );
}

#[test]
fn what_returns_nothing_and_can_no_longer_be_run_is_refused_when_it_is_run() {
    let whole = |name: &str, text: &str| {
        let described = [parse(name, text), describe(b'S', name), bind("", name, &[]), describe(b'P', "")].concat();
        [described, execute("", 0), sync()].concat()
    };
    let no_rows = "insert into t values ($1)";
    same_as_directly(
        "interplay_stale",
        &["create table t (x int)"],
        &[
            ([parse("s", no_rows), parse("d", "delete from t where x = $1"), sync()].concat(), 1),
            ([parse("n", "execute s"), parse("rows", "select x from t where x = $1"), sync()].concat(), 1),
            (whole("", "execute s(1)"), 1),
            (whole("run", "execute s(2)"), 1),
            (query("drop table t; create view t as select 1 as x, 2 as y limit 1"), 1),
            // They are counted before the statement is looked at again, and this is done when it is run.
            (query("execute s"), 1),
            (query("execute s(1, f(2, 3))"), 1),
            (query("execute rows"), 1),
            (query("execute n"), 1),
            (whole("", "execute s"), 1),
            (whole("", "execute s(1)"), 1),
            (whole("a", "execute d(array[1, 2], 3)"), 1),
            (whole("b", "execute d(1)"), 1),
            ([query("begin"), whole("", "execute s"), query("rollback")].concat(), 3),
            ([query("begin"), whole("", "execute d(1)"), query("rollback")].concat(), 3),
            (run("run"), 0),
            (sync(), 1),
            (query("select 1"), 1),
        ],
    );
}

#[test]
fn what_can_no_longer_be_prepared_is_refused_when_it_is_described_or_run() {
    let text = |name: &str| parse(name, "execute rows");
    let run = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    let whole = |name: &str| [bind("", name, &[]), describe(b'P', ""), execute("", 0), sync()].concat();
    let batches: Vec<Vec<u8>> = vec![
        [text(""), run("")].concat(),
        [text(""), whole("")].concat(),
        [text(""), describe(b'S', ""), run("")].concat(),
        [text("a"), run("a")].concat(),
        // It was made nevertheless.
        run("a"),
        whole("a"),
        [describe(b'S', "a"), sync()].concat(),
        [text("d"), describe(b'S', "d"), flush(), sync()].concat(),
        [parse("e", "execute a"), whole("e")].concat(),
        [query("begin"), text(""), run(""), query("rollback"), whole("")].concat(),
        [text(""), bind("p", "", &[]), execute("p", 0), sync(), close(b'S', ""), run("")].concat(),
    ];
    let ends = |batch: &[u8]| batch.windows(5).filter(|window| *window == sync()).count();
    for piecemeal in [false, true] {
        let mut steps =
            vec![([parse("rows", "select x from t"), sync()].concat(), 1), (query("alter table t rename to u"), 1)];
        for batch in &batches {
            let queries = batch.windows(4).filter(|w| matches!(*w, b"egin" | b"back")).count();
            let ends = ends(batch) + queries;
            if piecemeal {
                let (last, first) = batch.split_last().unwrap();
                steps.extend(first.iter().map(|byte| (vec![*byte], 0)));
                steps.push((vec![*last], ends));
            } else {
                steps.push((batch.clone(), ends));
            }
        }
        same_as_directly("interplay_late", &["create table t (x int)"], &steps);
    }
}

#[test]
fn who_asks_by_a_query_behind_a_refusal_that_is_kept_back_is_answered() {
    let (ambassador, database) = pooled("interplay_middle");
    let mut client = login(ambassador.port, &database);
    client.query("create table t (x int)");
    client.exchange(&[parse("rows", "select x from t"), sync()].concat());
    client.query("drop table t");
    client.send(&[parse("", "execute rows"), flush()].concat());
    assert_eq!(client.read().unwrap().tag, b'1');
    // Without a Sync.
    assert_eq!(told(&client.exchange(&query("select 1"))), ["E 42P01", "Z I"]);
    assert_eq!(client.value("select 2"), "2");
    client.send(&[parse("", "execute rows"), query("reset my.x"), query("select 3")].concat());
    let answers = [(); 2].map(|()| told(&client.read_until(b"Z").unwrap()));
    assert_eq!(answers[0].last().unwrap(), "Z I");
    assert_eq!(answers[1], ["T", "D [Some(\"3\")]", "C SELECT 1", "Z I"]);
}

#[test]
fn what_returns_nothing_is_run_by_as_many_portals_as_the_client_likes() {
    let run = |portal: usize| {
        let name = portal.to_string();
        [parse("", "execute s(1)"), bind(&name, "", &[]), execute(&name, 0)].concat()
    };
    let each: Vec<_> = (0..70).map(|portal| ([run(portal), sync()].concat(), 1)).collect();
    let at_once = (0..1100).flat_map(run).chain(sync()).collect::<Vec<_>>();
    let within = [query("begin"), at_once, query("commit")].concat();
    let first = ([parse("s", "insert into t values ($1)"), sync()].concat(), 1);
    let last = (query("select count(*) from t"), 1);
    let steps = [vec![first], each, vec![(within, 3), last]].concat();
    same_as_directly("interplay_portals", &["create table t (x int)"], &steps);
}

#[test]
fn a_loan_that_is_refused_while_another_is_waited_for_ends_like_any_other_error() {
    same_as_directly(
        "interplay_loans",
        &["create table w (x int)"],
        &[
            ([parse("s", "select x from w"), sync()].concat(), 1),
            (query("drop table w"), 1),
            ([parse("t", "select 1"), sync(), query("execute s; execute t"), query("select 2")].concat(), 3),
            (query("execute t"), 1),
        ],
    );
}

#[test]
fn a_loan_that_is_refused_ends_whatever_stands_in_front_of_it_or_behind() {
    let prepared = [
        parse("gone", "select x from w"),
        parse("one", "select 1"),
        parse("sets", "prepare z as select 1"),
        parse("a", "select 2"),
        sync(),
    ];
    same_as_directly(
        "interplay_behind",
        &["create table w (x int)", "create table t (n int)"],
        &[
            (prepared.concat(), 1),
            (query("drop table w"), 1),
            (query("execute gone; copy t to stdout"), 1),
            (query("execute one; copy t to stdout"), 1),
            (query("begin"), 1),
            (query("execute gone; execute sets; execute one"), 1),
            (query("rollback"), 1),
            ([parse("", "no sql"), query("execute one"), text("select 3"), sync()].concat(), 1),
            ([parse("", "no sql"), query("deallocate a"), sync()].concat(), 1),
            ([parse("", "no sql"), query("reset all"), text("select 3"), sync()].concat(), 1),
            ([query("select 4"), query("deallocate a; select 5")].concat(), 2),
            ([parse("a", "select 6"), text("execute a"), sync()].concat(), 1),
        ],
    );
}

#[test]
fn what_a_refused_query_would_have_unlistened_is_listened_to() {
    let (ambassador, database) = pooled("interplay_refused");
    let mut client = login(ambassador.port, &database);
    client.query("create table w (x int); listen c");
    let statements =
        [parse("gone", "select x from w"), parse("sets", "prepare z as select 1"), parse("one", "select 1")];
    client.exchange(&[statements.concat(), sync()].concat());
    client.query("drop table w; listen c");
    let refused = client.exchange(&query("unlisten c; execute gone; execute sets; execute one"));
    assert_eq!(told(&refused), ["E 42P01", "Z I"]);
    client.query("select 1");
    assert!(client.exchange(&query("notify c")).iter().any(|message| message.tag == b'A'));
}

#[test]
fn a_request_that_waits_is_refused_where_the_settings_of_its_session_are() {
    let (ambassador, database) = pooled("interplay_settings");
    let mut direct = login(shared().port(), &database);
    direct.query("drop role if exists interplay_settings; create role interplay_settings");
    let (mut client, mut other) = (login(ambassador.port, &database), login(ambassador.port, &database));
    client.query("set role interplay_settings");
    other.query("select 1");
    direct.query("drop role interplay_settings");
    for _ in 0..2 {
        let refused = client.exchange(&query("listen c"));
        assert_eq!(told(&refused), ["E 22023", "Z I"]);
    }
    assert_eq!(other.value("select 1"), "1");
}

#[test]
fn statements_of_ours_that_are_hidden_right_behind_their_making_are_made_again() {
    let (ambassador, database) = pooled("interplay_hidden");
    let (mut client, mut other) = (login(ambassador.port, &database), login(ambassador.port, &database));
    client.query("create sequence a");
    client.query("select nextval('a')");
    for text in ["begin", "commit"] {
        other.query(text);
    }
    for round in 0..3 {
        other.query("begin");
        assert_eq!(other.value("select count(*) from pg_prepared_statements"), "0", "round {round}");
        other.query("commit");
        let asked = other.exchange(&query("select currval('a') from pg_prepared_statements"));
        assert_eq!(told(&asked).last().unwrap(), "Z I", "round {round}");
        other.exchange(&[query("set work_mem = '2MB'"), query("table pg_prepared_statements")].concat());
        other.read_until(b"Z").unwrap();
        client.query("begin");
        assert_eq!(client.value("select 1"), "1", "round {round}");
        client.query("commit");
        assert!(told(&client.exchange(&query("select currval('a')"))).contains(&"E 55000".to_owned()), "round {round}");
    }
}

#[test]
fn what_was_lent_under_a_name_goes_with_the_name() {
    let batch = [text("execute s"), close(b'S', "s"), parse("s", "select 2"), text("execute s"), sync()].concat();
    let closed = [text("execute s"), close(b'S', "s"), text("execute s"), sync()].concat();
    let forgotten = [text("execute s"), text("deallocate all"), parse("s", "select 3"), text("execute s"), sync()];
    same_as_directly(
        "interplay_names",
        &[],
        &[
            ([parse("s", "select 1"), sync()].concat(), 1),
            (batch, 1),
            (closed, 1),
            ([parse("s", "select 1"), sync()].concat(), 1),
            (forgotten.concat(), 1),
            (query("execute s"), 1),
        ],
    );
}

#[test]
fn what_a_client_prepares_again_by_sql_is_its_own() {
    same_as_directly(
        "interplay_again",
        &[],
        &[
            ([parse("s", "select 1"), sync()].concat(), 1),
            (query("deallocate all; prepare s as select 2"), 1),
            (query("execute s"), 1),
            (query("deallocate s"), 1),
            ([parse("s", "select 3"), sync()].concat(), 1),
            ([text("deallocate s"), text("prepare s as select 4"), sync()].concat(), 1),
            (query("execute s"), 1),
            (query("deallocate s"), 1),
            ([parse("s", "select 5"), sync()].concat(), 1),
            (query("deallocate s; prepare s as select 6; execute s"), 1),
            (query("execute s"), 1),
            (query("deallocate s; select 7"), 1),
            (query("execute s"), 1),
        ],
    );
}

#[test]
fn a_name_that_sql_has_taken_is_taken_behind_an_earlier_batch_as_well() {
    let batches = [text("select 1/0"), sync(), parse("s", "select 2"), sync()];
    same_as_directly(
        "interplay_taken",
        &[],
        &[(query("prepare s as select 1"), 1), (batches.concat(), 2), (query("execute s"), 1)],
    );
}

#[test]
fn what_was_lent_to_a_text_that_fails_before_it_drops_it_is_taken_back() {
    let again = "deallocate s; prepare s as select 2";
    same_as_directly(
        "interplay_left",
        &[],
        &[
            ([parse("s", "select 1"), sync()].concat(), 1),
            (query(format!("select 1/0; {again}")), 1),
            (query("execute s"), 1),
            (query("begin"), 1),
            (query("select 1/0"), 1),
            (query(again), 1),
            (query("rollback"), 1),
            (query("execute s"), 1),
            (query("begin"), 1),
            (query("select 1/0"), 1),
            (query("rollback; prepare s as select 4"), 1),
            (query("begin"), 1),
            (query("select 1/0"), 1),
            (query("rollback; deallocate s"), 1),
            (query("execute s"), 1),
            ([parse("s", "select 3"), sync()].concat(), 1),
            ([query("begin"), query("select 1/0"), query(again), query("rollback"), query("execute s")].concat(), 5),
        ],
    );
}

#[test]
fn what_sql_has_prepared_outlives_a_batch_that_could_not_take_its_name() {
    let batch = [parse("s", "select 2"), describe(b'S', "s"), text("deallocate s"), sync()];
    same_as_directly(
        "interplay_outlives",
        &[],
        &[(query("prepare s as select 1"), 1), (batch.concat(), 1), (query("execute s"), 1)],
    );
}

#[test]
fn a_deallocate_ends_the_batch_before_it() {
    let (ambassador, database) = pooled("interplay_deallocate");
    for (n, port) in [shared().port(), ambassador.port].into_iter().enumerate() {
        let mut direct = login(shared().port(), &database);
        direct.query("drop table if exists t; create table t (n int)");
        let mut client = login(port, &database);
        client.exchange(&[parse("s", "select 1"), sync()].concat());
        client.send(&[text(&format!("insert into t values ({n})")), flush()].concat());
        client.read_until(b"C").unwrap();
        let answers = told(&client.exchange(&query("deallocate s")));
        assert_eq!(answers, ["C DEALLOCATE", "Z I"]);
        assert_eq!(direct.value("select count(*) from t"), "1", "what it was told is committed");
        assert_eq!(told(&client.exchange(&[run("s"), sync()].concat())), ["E 26000", "Z I"]);
    }
}

#[test]
fn a_bind_that_arrives_in_pieces_is_told_what_a_whole_one_is() {
    let (ambassador, database) = pooled("interplay_pieces");
    let whole = [bind("", "s", &[Some("1")]), execute("", 0), sync()].concat();
    let answers = [shared().port(), ambassador.port].map(|port| {
        let mut client = login(port, &database);
        client.query("drop table if exists t; create table t (x int)");
        let mut told = play(&mut client, &[([parse("s", "select x from t"), sync()].concat(), 1)]);
        // Where it goes next has no statement of that name, and none can be made.
        Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]).query("RECONNECT");
        client.query("drop table t");
        // Its names, and no more before they were looked at: the console is answered by the same thread.
        client.send(&whole[..8]);
        ambassador.show("CLIENTS");
        client.send(&whole[8..]);
        told.push(self::told(&client.read_until(b"Z").unwrap()));
        told
    });
    assert_eq!(answers[1], answers[0]);
}

#[test]
fn a_null_takes_a_setting_back_to_what_the_session_began_with() {
    let (ambassador, database) = pooled("interplay_null");
    let call = |values: &[Option<&str>]| [bind("", "", values), execute("", 0), sync()].concat();
    let named = |name: &str, value: Option<&str>| [bind("", name, &[value]), execute("", 0), sync()].concat();
    let steps = [
        ([parse("", "select set_config($1, $2, $3)"), call(&[Some("My.X"), None, Some("false")])].concat(), 1),
        (call(&[Some("datestyle"), None, Some("true")]), 1),
        (query("set my.x = 'set'; set datestyle = iso"), 1),
        ([parse("n", "select set_config('my.x', $1, false)"), named("n", None)].concat(), 1),
        (query("show my.x; show datestyle"), 1),
        (named("n", Some("given")), 1),
        (call(&[Some("my.unknown"), None, Some("false")]), 1),
        ([parse("", "select set_config($1, $2, $3)"), call(&[Some("datestyle"), None, Some("false")])].concat(), 1),
        (query("show my.x; show datestyle"), 1),
    ];
    let answers = [shared().port(), ambassador.port].map(|port| {
        let options = "-c my.x=begun -c datestyle=German";
        let mut client = Client::login(port, &[("user", "postgres"), ("database", &database), ("options", options)]);
        play(&mut client, &steps)
    });
    assert_eq!(answers[1], answers[0]);
}

#[test]
fn what_is_prepared_under_a_local_setting_is_nobody_elses() {
    let (ambassador, database) = pooled("interplay_local");
    let day = "select to_char('01/02/2026'::date, 'Month')";
    let ways: [&[&str]; 4] = [
        &["set local datestyle = 'SQL, DMY'"],
        &["select set_config('datestyle', 'SQL, DMY', true)"],
        &["set local \"DateStyle\" to 'German'", "savepoint a"],
        &["select set_config('date' || 'style', 'SQL, DMY', true)"],
    ];
    for (n, way) in ways.into_iter().enumerate() {
        let day = format!("{day}, {n}");
        let (mut client, mut other) = (login(ambassador.port, &database), login(ambassador.port, &database));
        let row = |client: &mut Client, bytes: Vec<u8>| {
            let messages = client.exchange(&[bytes, sync()].concat());
            let row = messages.iter().find(|m| m.tag == b'D').unwrap_or_else(|| panic!("{messages:?}"));
            row.columns()[0].clone().unwrap().trim().to_owned()
        };
        client.query("begin");
        way.iter().for_each(|text| drop(client.query(text)));
        let february = row(&mut client, [parse("s", &day), run("s")].concat());
        assert_eq!(february, "February", "{way:?}");
        client.query("commit");
        assert_eq!(row(&mut other, [parse("x", &day), run("x")].concat()), "January", "{way:?}");
        // What was read once stays so, wherever it is run.
        assert_eq!(row(&mut client, run("s")), "February", "{way:?}");
        // The same the other way round.
        client.query("begin");
        way.iter().for_each(|text| drop(client.query(text)));
        assert_eq!(row(&mut client, [parse("y", &day), run("y")].concat()), "February", "{way:?}");
        // The unnamed one as well.
        client.exchange(&[parse("", &day), sync()].concat());
        client.query("commit");
    }
}

#[test]
fn a_local_setting_that_a_parameter_names_counts_like_any_other() {
    let (ambassador, database) = pooled("interplay_named");
    let (mut client, mut other) = (login(ambassador.port, &database), login(ambassador.port, &database));
    let february = |client: &mut Client, name: &str| {
        let text = "select to_char('01/02/2026'::date, 'Month'), 'named'";
        let messages = client.exchange(&[parse(name, text), run(name), sync()].concat());
        messages.iter().any(|message| message.tag == b'D' && message.columns()[0].as_ref().unwrap().starts_with("Feb"))
    };
    client.query("begin");
    let values = [Some("DateStyle"), Some("SQL, DMY")];
    let set = [parse("", "select set_config($1, $2, true)"), bind("", "", &values), execute("", 0), sync()];
    client.exchange(&set.concat());
    assert!(february(&mut client, "s"));
    client.query("commit");
    assert!(!february(&mut other, "x"));
}

#[test]
fn a_local_setting_stays_when_something_is_prepared_again() {
    let (ambassador, database) = pooled("interplay_again_local");
    let mut client = login(ambassador.port, &database);
    client.exchange(&[parse("s", "select 'x', now()"), sync()].concat());
    client.query("set timezone = 'Europe/Berlin'");
    // Others take the connection, until it does not have the statement any more.
    let mut other = login(ambassador.port, &database);
    other.query("deallocate all");
    client.query("begin");
    client.query("set local timezone = 'Asia/Tokyo'");
    client.exchange(&[run("s"), sync()].concat());
    assert_eq!(client.value("show timezone"), "Asia/Tokyo");
    client.query("commit");
    assert_eq!(client.value("show timezone"), "Europe/Berlin");
}

/// A pool of one connection on which another client has moved two sequences.
fn moved(name: &str) -> (Ambassador, Client, Client) {
    let (ambassador, database) = pooled(name);
    let mut other = login(ambassador.port, &database);
    other.query("create table t (n int)");
    other.query("create sequence a");
    other.query("create sequence b start 100");
    other.query("select nextval('a'), nextval('b')");
    let client = login(ambassador.port, &database);
    (ambassador, other, client)
}

#[test]
fn a_number_of_another_client_is_not_told_behind_an_error() {
    let refused = ["E 55000", "Z I"];
    {
        let (_ambassador, _other, mut client) = moved("interplay_failed");
        for text in ["begin", "select 1/0", "select currval('b')", "rollback"] {
            client.exchange(&query(text));
        }
        assert_eq!(told(&client.exchange(&query("select currval('b')"))).last_chunk::<2>().unwrap(), &refused);
    }
    let (_ambassador, _other, mut client) = moved("interplay_batch");
    client.exchange(&[text("select 1/0"), text("select currval('b')"), sync()].concat());
    assert_eq!(told(&client.exchange(&query("select currval('b')"))).last_chunk::<2>().unwrap(), &refused);
    let (_ambassador, _other, mut client) = moved("interplay_batches");
    let batch = [text("select 1/0"), text("select currval('b')"), sync(), text("select currval('b')"), sync()];
    let answers = play(&mut client, &[(batch.concat(), 2)]);
    assert_eq!(answers[0].last_chunk::<2>().unwrap(), &refused, "{answers:?}");
}

#[test]
fn to_ask_for_a_sequence_right_behind_an_error_costs_no_transaction() {
    let (_ambassador, mut other, mut client) = moved("interplay_lost");
    for text in ["begin", "insert into t values (1)", "savepoint a"] {
        client.query(text);
    }
    let answers = play(&mut client, &[([query("select 1/0"), query("select currval('a')")].concat(), 2)]);
    assert_eq!(answers[0], ["E 22012", "Z E", "E 25P02", "Z E"]);
    client.query("rollback to a");
    client.query("commit");
    assert_eq!(other.value("select count(*) from t"), "1");
}

#[test]
fn to_ask_for_a_sequence_right_behind_what_drops_all_statements_is_no_end() {
    for first in ["deallocate all", "select name from pg_prepared_statements", "discard plans"] {
        let (_ambassador, mut other, mut client) = moved("interplay_dropped");
        // Our own statement for it is there.
        client.exchange(&query("select currval('a')"));
        other.query("select 1");
        let answers = play(&mut client, &[([query(first), query("select currval('a')")].concat(), 2)]);
        assert_eq!(answers[0].last_chunk::<2>().unwrap(), &["E 55000", "Z I"], "{first}: {answers:?}");
    }
}

#[test]
fn an_unlisten_that_is_refused_or_skipped_leaves_the_unnamed_statement_as_postgresql_does() {
    same_as_directly(
        "interplay_unnamed_unlisten",
        &[],
        &[
            (query("listen c"), 1),
            // Refused as a text of two commands, and nothing is left of what was unnamed before.
            ([text("select 1"), sync()].concat(), 1),
            ([text("unlisten c; select 2"), sync()].concat(), 1),
            ([run(""), sync()].concat(), 1),
            // Skipped: what was unnamed before still is.
            ([parse("", "select 3"), sync()].concat(), 1),
            ([parse("s", "no sql"), text("unlisten c"), sync()].concat(), 1),
            ([run(""), sync()].concat(), 1),
            // The same with more behind it.
            ([parse("s", "no sql"), text("unlisten c"), sync(), text("select 4"), sync()].concat(), 2),
            ([text("unlisten c; select 2"), sync(), run(""), sync(), text("select 5"), sync()].concat(), 3),
            ([run(""), sync()].concat(), 1),
        ],
    );
}

#[test]
fn an_unlisten_that_is_rolled_back_where_it_stands_is_none() {
    let (ambassador, database) = pooled("interplay_unlisten");
    let batch = |texts: &[&str]| [texts.iter().flat_map(|sql| text(sql)).collect(), sync()].concat();
    let ways: [Vec<Vec<u8>>; 6] = [
        vec![query("begin; unlisten c; rollback")],
        vec![query("begin"), query("unlisten c; rollback")],
        vec![query("begin"), query("savepoint a; unlisten c; rollback to a"), query("commit")],
        vec![query("begin"), query("savepoint a"), query("unlisten *; rollback to savepoint a"), query("commit")],
        vec![batch(&["begin", "unlisten c", "rollback"])],
        vec![query("begin"), batch(&["unlisten *", "rollback"])],
    ];
    for (n, way) in ways.iter().enumerate() {
        let mut client = login(ambassador.port, &database);
        client.query("listen c");
        way.iter().for_each(|bytes| drop(client.exchange(bytes)));
        let told = client.exchange(&query("notify c"));
        assert!(told.iter().any(|message| message.tag == b'A'), "way {n}");
    }
    // And one that is not.
    for text in
        ["begin; unlisten c; commit", "unlisten c; savepoint a", "begin; unlisten c; savepoint a; rollback to a; end"]
    {
        let mut client = login(ambassador.port, &database);
        client.query("listen c");
        client.exchange(&query(text));
        let told = client.exchange(&query("notify c"));
        assert_eq!(told.iter().any(|message| message.tag == b'A'), text.starts_with("unlisten"), "{text}");
    }
}

#[test]
fn a_long_pipeline_is_answered_in_order_whoever_answers_what() {
    let prepared = [parse("s", "select 1"), run("s"), sync()].concat();
    let again = [close(b'S', "s"), parse("s", "select 1")].concat();
    same_as_directly(
        "interplay_long",
        &[],
        &[
            (prepared.clone(), 1),
            ([text("select pg_sleep(0.2)"), again.repeat(10_000), run("s"), sync()].concat(), 1),
            ([text("select pg_sleep(0.2)"), run("s").repeat(10_000), sync(), prepared].concat(), 2),
        ],
    );
}
