//! Transaction mode: what a client sets, makes or holds follows it or keeps its server, and nobody else ever sees it.

use crate::support::client::{Message, bind, close, describe, execute, parse, query, sync};
use crate::support::{Ambassador, Client, Random, shared, url, wait_until};

/// A database of the test's own on the shared server.
fn database(name: &str) -> String {
    let mut direct = Client::new(shared().port());
    direct.query(&format!("drop database if exists {name} with (force)"));
    direct.query(&format!("create database {name}"));
    name.to_owned()
}

fn ambassador(size: usize) -> Ambassador {
    Ambassador::start(&[url(shared()).as_str(), "--pool-size", &size.to_string(), "-s", "paranoid=true"])
}

fn login(port: u16, database: &str, more: &[(&str, &str)]) -> Client {
    Client::login(port, &[&[("user", "postgres"), ("database", database)], more].concat())
}

/// Runs each step directly and through an ambassador, on one server that another client uses between any two of them,
/// and compares every byte of the answers.
fn same_as_direct(name: &str, startup: &[(&str, &str)], steps: &[&str]) {
    same_through(&ambassador(4), name, startup, steps);
}

fn same_through(pooled: &Ambassador, name: &str, startup: &[(&str, &str)], steps: &[&str]) {
    // Locks belong to a database: each way has its own.
    let (name, direct) = (database(name), database(&format!("{name}_direct")));
    let mut direct = login(shared().port(), &direct, startup);
    let mut through = login(pooled.port, &name, startup);
    // It has settings of its own, so that those of the other have to be taken back and set again each time.
    let mut other = login(pooled.port, &name, &[("application_name", "other"), ("TimeZone", "Asia/Tokyo")]);
    for (at, step) in steps.iter().enumerate() {
        let [expected, found] = [&mut direct, &mut through]
            .map(|c| c.exchange(&query(step)).into_iter().map(Message::without_oids).collect::<Vec<_>>());
        assert_eq!(found, expected, "step {at}: {step}\n{}", pooled.log());
        assert_eq!(
            other.value("select current_setting('application_name') || current_setting('TimeZone')"),
            "otherAsia/Tokyo"
        );
        assert_eq!(other.value("select current_setting('search_path') || current_user"), "\"$user\", publicpostgres");
        assert_eq!(pooled.complaint(), None, "by step {at}: {step}");
    }
}

#[test]
fn settings_follow_their_client_and_nobody_else() {
    same_as_direct(
        "transparent_settings",
        &[("application_name", "mine"), ("options", "-c work_mem=2MB -c my.start=s")],
        &[
            "set timezone to 'Europe/Paris'",
            "show timezone",
            "set search_path = pg_catalog, public",
            "show search_path",
            "select set_config('my.tenant', 'a ''quoted'' \"one\" \\ {x}', false)",
            "select current_setting('my.tenant')",
            "set my.other = 5",
            "select current_setting('my.other'), current_setting('my.start')",
            "set names 'LATIN1'",
            "show client_encoding",
            "set time zone interval '+03:30' hour to minute",
            "show timezone",
            "set session characteristics as transaction read only",
            "create table nowhere ()",
            "set session characteristics as transaction read write",
            "show transaction_read_only",
            "set nothing_like_it = 1",
            "set work_mem = 'much'",
            "show work_mem",
            "set datestyle = german",
            "select date '2026-02-03'",
            "reset datestyle",
            "select date '2026-02-03'",
            "set extra_float_digits = 0; set bytea_output = 'escape'; select '\\x01'::bytea, 0.1::float8 + 0.2",
            "select '\\x01'::bytea, 0.1::float8 + 0.2",
        ],
    );
}

#[test]
fn settings_follow_commit_rollback_and_savepoints() {
    same_as_direct(
        "transparent_transactions",
        &[],
        &[
            "begin",
            "set application_name = 'rolled back'",
            "rollback",
            "show application_name",
            "begin; set work_mem = '1MB'; savepoint a; set work_mem = '2MB'; savepoint b",
            "set work_mem = '3MB'",
            "rollback to b",
            "show work_mem",
            "release a",
            "set local maintenance_work_mem = '5MB'",
            "commit",
            "show work_mem",
            "show maintenance_work_mem",
            "begin",
            "set lock_timeout = '5s'",
            "select 1/0",
            "commit",
            "show lock_timeout",
            "set lock_timeout = '6s'; select 1/0",
            "show lock_timeout",
            "begin; select set_config('x.y', 'local', true)",
            "select current_setting('x.y')",
            "commit",
            "do $$ begin perform set_config('hidden.one', 'in a block', false); execute 'set work_mem = ''9MB'''; end $$",
            "select current_setting('hidden.one'), current_setting('work_mem')",
            "begin; do $$ begin perform set_config('hidden.one', 'gone', false); raise exception 'x'; end $$",
            "rollback",
            "select current_setting('hidden.one')",
        ],
    );
}

#[test]
fn a_reset_takes_settings_back_to_what_they_were_at_the_login() {
    same_as_direct(
        "transparent_reset",
        &[("options", "-c work_mem=3MB -c my.start=s -c search_path=pg_catalog"), ("lock_timeout", "7s")],
        &[
            "set work_mem = '4MB'",
            "reset work_mem",
            "show work_mem",
            "set my.start = 'other'; set search_path = public",
            "reset all",
            "show search_path",
            "select current_setting('my.start'), current_setting('lock_timeout'), current_setting('work_mem')",
            "begin",
            "set lock_timeout = '8s'",
            "set lock_timeout to default",
            "show lock_timeout",
            "rollback",
            "set my.start = 'x'",
            "discard all",
            "select current_setting('my.start'), current_setting('lock_timeout'), current_setting('work_mem')",
        ],
    );
}

#[test]
fn a_reset_of_what_was_set_at_the_login_is_reported_as_often_as_it_changes_something() {
    same_as_direct(
        "transparent_reset_reports",
        &[("application_name", "mine"), ("TimeZone", "Asia/Seoul"), ("options", "-c datestyle=German -c my.start=s")],
        &[
            "reset application_name",
            "set application_name = 'other'",
            "reset application_name",
            // The server's own default, to which a reset would not change anything.
            "set timezone = 'UTC'; set intervalstyle = iso_8601",
            "set timezone to default",
            "begin",
            "set datestyle = 'SQL, DMY'",
            "reset datestyle",
            "rollback",
            "begin; set datestyle = 'ISO'",
            "reset datestyle",
            "commit",
            "reset datestyle; select 1/0",
            "set application_name = ''; set timezone = 'UTC'; set datestyle = 'ISO'; set client_encoding = latin1",
            "reset all",
            "set application_name = ''; set timezone = 'UTC'",
            "discard all",
            "show application_name",
        ],
    );
    let pooled = ambassador(2);
    let startup = [("application_name", "mine"), ("TimeZone", "Asia/Seoul")];
    let run = |text: &str| [parse("", text), bind("", "", &[]), execute("", 0), sync()].concat();
    let texts =
        ["set application_name = 'a'", "reset application_name", "select 1", "set timezone = 'UTC'", "reset all"];
    let [expected, found] = [shared().port(), pooled.port].map(|port| {
        let mut client = login(port, "postgres", &startup);
        // All at once, and by both protocols.
        client.send(&texts.map(run).concat());
        client.send(&texts.map(query).concat());
        (0..2 * texts.len()).map(|_| client.read_until(b"Z").unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(found, expected);
}

#[test]
fn a_role_follows_its_client_and_is_given_back_before_others_are_served() {
    let mut direct = Client::new(shared().port());
    for role in ["travelling_a", "travelling_b"] {
        direct.query(&format!("drop role if exists {role}"));
        direct.query(&format!("create role {role}"));
    }
    same_as_direct(
        "transparent_roles",
        &[],
        &[
            "set role travelling_a",
            "select current_user, session_user",
            "set work_mem = '1MB'",
            "reset role",
            "select current_user, session_user",
            "set session authorization travelling_b",
            "select current_user, session_user, current_setting('work_mem')",
            "set role travelling_a",
            "create table forbidden ()",
            "select current_user, session_user",
            "reset session authorization",
            "select current_user, session_user",
            "begin; set local role travelling_a",
            "select current_user",
            "commit",
            "select current_user",
            "set role nobody_like_that",
            "set role none",
            "select current_user",
        ],
    );
    direct.query("drop role travelling_a");
    direct.query("drop role travelling_b");
}

#[test]
fn temporary_tables_locks_and_cursors_keep_their_server_for_as_long_as_they_exist() {
    same_as_direct(
        "transparent_pins",
        &[],
        &[
            "create temp table t as select 1 as n",
            "select * from t",
            "insert into t values (2)",
            "select count(*) from t",
            "drop table t",
            "select * from t",
            "create function pg_temp.f() returns int language sql as 'select 7'",
            "select pg_temp.f()",
            "drop function pg_temp.f()",
            "begin; create temp table gone (n int) on commit drop; commit",
            "begin; create temp table t (n int); rollback",
            "declare c cursor with hold for select * from generate_series(1, 5)",
            "fetch 2 from c",
            "fetch 2 from c",
            "close c",
            "select pg_advisory_lock(4711), pg_try_advisory_lock(4712)",
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
            "select pg_advisory_unlock(4711)",
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
            "select pg_advisory_unlock_all()",
            "prepare s (int) as select $1 * 2",
            "execute s (21)",
            "prepare s as select 1",
            "deallocate s",
            "execute s (21)",
            "prepare t as select set_config('by.execute', 'yes', false)",
            "execute t",
            "deallocate all",
            "select current_setting('by.execute')",
            "select count(*) from pg_prepared_statements where from_sql",
        ],
    );
}

#[test]
fn a_pin_is_shown_with_its_reason_and_ends_with_what_it_is_for() {
    let ambassador = ambassador(2);
    let mut one = Client::new(ambassador.port);
    let shown = |reasons: &str| {
        wait_until("SHOW PINS says so", || {
            let rows = ambassador.show("PINS");
            match reasons {
                "" => rows.is_empty(),
                reasons => rows.len() == 1 && rows[0][4].as_deref() == Some(reasons),
            }
        });
    };
    shown("");
    one.query("create temp table shown (n int)");
    shown("temporary");
    one.query("select pg_advisory_lock(99)");
    shown("temporary,advisory_lock");
    assert!(ambassador.metric("pg_ambassador_pinned_clients") >= 2.0);
    one.query("drop table shown");
    shown("advisory_lock");
    // A lock that a savepoint or an error does not give back is still held.
    one.try_query("begin; select pg_advisory_unlock(99); select 1/0").unwrap_err();
    one.query("rollback");
    shown("");
    assert!(ambassador.metric("pg_ambassador_pins_total") >= 2.0);
    assert!(ambassador.log().contains("a client keeps its server"), "{}", ambassador.log());
}

#[test]
fn a_client_that_leaves_with_state_leaves_none_of_it() {
    let ambassador = ambassador(1);
    let name = database("transparent_leaving");
    for (at, state) in [
        "create temp table left_behind (n int)",
        "select pg_advisory_lock(5)",
        "declare c cursor with hold for select 1",
        "prepare s as select 1",
        "set role pg_monitor",
        "set my.secret = 'x'",
        "begin; set work_mem = '1MB'; create temp table left_behind (n int)",
        "load 'plpgsql'",
        "select setseed(0.5)",
        "listen left_behind",
        "discard all",
    ]
    .iter()
    .enumerate()
    {
        let mut leaving = login(ambassador.port, &name, &[("application_name", "leaver")]);
        leaving.query(state);
        if at % 2 == 0 {
            leaving.send(b"X\0\0\0\x04");
        }
        drop(leaving);
        let mut next = login(ambassador.port, &name, &[]);
        let left = "select (select count(*) from pg_class where relname = 'left_behind') || current_user \
            || coalesce(current_setting('my.secret', true), '') || current_setting('work_mem') \
            || (select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())) \
            || (select count(*) from pg_cursors where name = 'c') || current_setting('application_name') \
            || (select count(*) from pg_prepared_statements where from_sql)";
        assert_eq!(next.value(left), "0postgres4MB000", "{state}");
        assert!(next.try_query("select * from left_behind").is_err(), "{state}");
    }
}

#[test]
fn a_statement_prepared_under_another_search_path_is_never_reused() {
    let name = database("transparent_search_path");
    let ambassador = ambassador(1);
    let mut direct = login(shared().port(), &name, &[]);
    for schema in ["a", "b"] {
        direct.query(&format!("create schema {schema}; create table {schema}.t as select '{schema}' as x"));
    }
    let mut clients = ["a", "b"].map(|schema| {
        let mut client = login(ambassador.port, &name, &[]);
        client.query(&format!("set search_path = {schema}"));
        (schema, client)
    });
    let ask = |client: &mut Client, parse_too: bool| {
        let mut batch = if parse_too { parse("s", "select x from t") } else { Vec::new() };
        batch.extend([bind("", "s", &[]), execute("", 0), sync()].concat());
        let answer = client.exchange(&batch);
        let row = answer.iter().find(|m| m.tag == b'D').unwrap_or_else(|| panic!("{answer:?}"));
        row.columns()[0].clone().unwrap()
    };
    for round in 0..5 {
        for (schema, client) in &mut clients {
            assert_eq!(ask(client, round == 0), *schema, "round {round}");
        }
    }
    // Inside a transaction that changes it, and is rolled back.
    let (_, one) = &mut clients[0];
    one.query("begin; set local search_path = b");
    let answer = one.exchange(&[parse("u", "select x from t"), bind("", "u", &[]), execute("", 0), sync()].concat());
    assert_eq!(answer.iter().find(|m| m.tag == b'D').unwrap().columns()[0].as_deref(), Some("b"));
    one.query("rollback");
    let answer = one.exchange(&[bind("", "u", &[]), execute("", 0), sync()].concat());
    assert_eq!(answer.iter().find(|m| m.tag == b'D').unwrap().columns()[0].as_deref(), Some("a"));
}

#[test]
fn parameters_of_a_bound_set_config_are_followed_too() {
    let ambassador = ambassador(1);
    let (mut one, mut two) = (Client::new(ambassador.port), Client::new(ambassador.port));
    let set = [
        parse("", "select set_config($1, $2, false)"),
        bind("", "", &[Some("bound.name"), Some("bound value")]),
        execute("", 0),
        sync(),
    ];
    one.exchange(&set.concat());
    assert_eq!(two.value("select coalesce(nullif(current_setting('bound.name', true), ''), 'none')"), "none");
    assert_eq!(one.value("select current_setting('bound.name')"), "bound value");
}

#[test]
fn parameter_status_reaches_the_client_whose_setting_it_is_and_no_other() {
    let ambassador = ambassador(1);
    let mut one = Client::new(ambassador.port);
    let mut two = login(ambassador.port, "postgres", &[("application_name", "two")]);
    let statuses = |messages: &[Message]| messages.iter().filter(|m| m.tag == b'S').count();
    assert_eq!(statuses(&one.exchange(&query("set application_name = 'one'"))), 1);
    for _ in 0..3 {
        assert_eq!(statuses(&two.exchange(&query("select 1"))), 0);
        assert_eq!(statuses(&one.exchange(&query("select 1"))), 0);
    }
    assert_eq!(one.value("show application_name"), "one");
    assert_eq!(two.value("show application_name"), "two");
}

#[test]
fn many_clients_with_settings_of_their_own_never_meet_on_few_servers() {
    let ambassador = ambassador(3);
    std::thread::scope(|scope| {
        for id in 0..24u64 {
            let port = ambassador.port;
            scope.spawn(move || {
                let mut random = Random::new(id);
                let mut client = Client::new(port);
                let (mut tenant, mut zone) = (String::new(), "UTC");
                client.query("set timezone = 'UTC'");
                for round in 0..40 {
                    match random.below(4) {
                        0 => {
                            tenant = format!("tenant {id} {round}");
                            client.query(&format!("set app.tenant = '{tenant}'"));
                        }
                        1 => {
                            zone = ["UTC", "Asia/Tokyo", "Europe/Paris"][random.below(3)];
                            client.query(&format!("begin; set timezone = '{zone}'; commit"));
                        }
                        2 => {
                            client.query("begin; set app.tenant = 'lost'; set timezone = 'Asia/Seoul'");
                            client.query("rollback");
                        }
                        _ => {}
                    }
                    let now = client.value(
                        "select coalesce(current_setting('app.tenant', true), '') || '/' || current_setting('timezone')",
                    );
                    assert_eq!(now, format!("{tenant}/{zone}"), "client {id}, round {round}");
                }
            });
        }
    });
}

#[test]
fn an_idle_transaction_holds_no_server_until_its_first_statement() {
    let ambassador = ambassador(1);
    // Of a pool's first transaction the server itself has to say how long it may be idle.
    Client::new(ambassador.port).query("begin");
    let mut clients: Vec<Client> = (0..5).map(|_| Client::new(ambassador.port)).collect();
    let begin_batch = [parse("", "BEGIN"), bind("", "", &[]), execute("", 0), sync()].concat();
    for (at, client) in clients.iter_mut().enumerate() {
        let answer = if at % 2 == 0 { client.exchange(&query("begin")) } else { client.exchange(&begin_batch) };
        assert_eq!(answer.last().unwrap().body, b"T", "client {at}");
    }
    // All are in a transaction, and the one server is free.
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.value("select (now() = statement_timestamp() or true)::text"), "true", "client {at}");
        client.query("commit");
    }
    let mut one = Client::new(ambassador.port);
    one.query("begin isolation level serializable read only");
    assert_eq!(
        one.value("select current_setting('transaction_isolation') || current_setting('transaction_read_only')"),
        "serializableon"
    );
    one.query("rollback");
    assert_eq!(
        one.value("select current_setting('transaction_isolation') || current_setting('transaction_read_only')"),
        "read committedoff"
    );
}

#[test]
fn a_transaction_that_begins_late_is_the_same_as_one_that_begins_at_once() {
    same_as_direct(
        "transparent_deferred",
        &[],
        &[
            "begin",
            "commit",
            "START TRANSACTION READ ONLY",
            "create table nowhere ()",
            "select 1",
            "rollback",
            "begin isolation level repeatable read",
            "begin",
            "show transaction_isolation",
            "commit",
            "commit",
            "begin",
            "set local work_mem = '1MB'",
            "show work_mem",
            "rollback and chain",
            "show work_mem",
            "rollback",
            "begin; select 1",
            "commit",
            "begin",
            "select 1/0",
            "commit",
            "begin",
            "",
            "savepoint a",
            "rollback to a",
            "end",
            "begin read only not deferrable",
            "rollback",
            "begin isolation level nonsense",
            "abort",
        ],
    );
}

#[test]
fn sequences_stand_where_their_client_has_left_them() {
    // Not in paranoid mode: a server that is being looked at is one less, and then the others are asked for.
    let pooled = Ambassador::start(&[url(shared()).as_str(), "--pool-size", "4"]);
    same_through(
        &pooled,
        "transparent_sequences",
        &[],
        &[
            "create sequence s; create sequence r",
            "select currval('s')",
            "select lastval()",
            "select nextval('s')",
            "select currval('s'), lastval()",
            "select nextval('r')",
            "select nextval('s')",
            "select currval('r'), currval('s'), lastval()",
            "select setval('r', 99)",
            "select currval('r')",
            "create table t (id serial, x int)",
            "insert into t (x) values (1)",
            "select lastval(), currval('t_id_seq')",
            "discard sequences",
            "select lastval()",
        ],
    );
}

#[test]
fn a_server_that_is_kept_for_its_sequences_goes_to_whoever_needs_it() {
    let name = database("transparent_yield");
    let ambassador = ambassador(2);
    let mut direct = login(shared().port(), &name, &[]);
    direct.query("create sequence s");
    let mut clients: Vec<Client> = (0..8).map(|_| login(ambassador.port, &name, &[])).collect();
    for round in 0..3 {
        for client in &mut clients {
            client.query("select nextval('s')");
            assert_eq!(client.value("select 1"), "1", "round {round}");
        }
    }
    // Nobody is shown where another has left a sequence.
    let mut stranger = login(ambassador.port, &name, &[]);
    let error = stranger.try_query("select currval('s')").unwrap_err();
    assert_eq!(error.code(), "55000");
    let error = stranger.try_query("select lastval()").unwrap_err();
    assert_eq!(error.code(), "55000");
    let backends = direct
        .value(&format!("select count(*) from pg_stat_activity where datname = '{name}' and pid <> pg_backend_pid()"));
    assert!(backends.parse::<u32>().unwrap() <= 2, "{backends}");
}

#[test]
fn f32_an_idle_transaction_without_a_server_ends_when_its_client_has_said_so() {
    let ambassador = ambassador(1);
    for set in [true, false] {
        let options: &[(&str, &str)] =
            if set { &[] } else { &[("options", "-c idle_in_transaction_session_timeout=50ms")] };
        let mut client = login(ambassador.port, "postgres", options);
        if set {
            client.query("set idle_in_transaction_session_timeout = 50");
        }
        assert_eq!(client.value("select 1"), "1");
        client.query("begin");
        let end = client.read().unwrap();
        assert_eq!((end.tag, end.code().as_str()), (b'E', "25P03"), "{end:?}");
        assert!(client.is_closed());
    }
}

#[test]
fn f32_an_idle_transaction_without_a_server_ends_when_its_role_or_database_says_so() {
    let mut direct = Client::new(shared().port());
    direct.query("drop role if exists hasty; create role hasty login; alter role hasty set idle_in_transaction_session_timeout = '50ms'");
    let name = database("hasty_database");
    direct.query(&format!("alter database {name} set idle_in_transaction_session_timeout = '50ms'"));
    let ambassador = ambassador(1);
    let mut told = Vec::new();
    for port in [shared().port(), ambassador.port] {
        for (user, database) in [("hasty", "postgres"), ("postgres", &*name)] {
            let login = || Client::login(port, &[("user", user), ("database", database)]);
            // One that has the server told, and those who come behind it.
            for before in [&[][..], &["begin", "select 1", "commit"], &["set application_name = 'x'"]] {
                let mut client = login();
                for text in before {
                    client.query(text);
                }
                client.query("begin");
                let end = client.read().unwrap();
                told.push(end.body.split(|byte| *byte == 0).take(4).map(<[u8]>::to_vec).collect::<Vec<_>>());
                assert!(client.is_closed());
            }
            // Whoever says that it may be idle may be.
            let mut client = login();
            client.query("set idle_in_transaction_session_timeout = 0");
            client.query("begin");
            direct.query("select pg_sleep(0.1)");
            client.query("commit");
        }
    }
    let (expected, found) = told.split_at(told.len() / 2);
    assert_eq!(found, expected);
    assert_eq!(found[0][2], b"C25P03");
    // No server is taken for a transaction that is idle.
    let mut idle = Client::login(ambassador.port, &[("user", "hasty"), ("database", "postgres")]);
    idle.query("begin");
    assert_eq!(Client::login(ambassador.port, &[("user", "hasty"), ("database", "postgres")]).value("select 1"), "1");
}

#[test]
fn sql_finds_the_statements_that_were_prepared_by_the_protocol() {
    let ambassador = ambassador(1);
    let (mut one, mut two) = (Client::new(ambassador.port), Client::new(ambassador.port));
    for client in [&mut one, &mut two] {
        client.exchange(&[parse("S 1", "select $1::int * 2"), parse("plain", "select 7"), sync()].concat());
    }
    assert_eq!(one.value("execute \"S 1\" (21)"), "42");
    assert_eq!(two.value("select 2"), "2", "another in between");
    assert_eq!(one.value("EXECUTE plain"), "7");
    one.query("deallocate \"S 1\"");
    assert_eq!(one.try_query("execute \"S 1\" (21)").unwrap_err().code(), "26000");
    assert_eq!(one.try_query("deallocate \"S 1\"").unwrap_err().code(), "26000");
    one.query("begin; select 1");
    one.query("DEALLOCATE PREPARE plain;");
    one.query("rollback");
    let answer = one.exchange(&[bind("", "plain", &[]), execute("", 0), sync()].concat());
    assert_eq!(answer[0].code(), "26000");
    assert_eq!(two.value("execute \"S 1\" (4)"), "8");
    // The same with a server at hand and without.
    one.exchange(&[parse("plain", "select 8"), sync()].concat());
    assert_eq!(one.value("execute plain"), "8");
}

/// A turn of the same conversation on both ways, every byte of which has to be the same.
fn same_batches(name: &str, batches: &[Vec<u8>]) {
    let pooled = ambassador(2);
    let database = database(name);
    let mut other = login(pooled.port, &database, &[]);
    // Others have statements of the same names, and prepare the same texts.
    other.exchange(&[parse("x", "select 'of another', 2"), parse("e", "execute x"), sync()].concat());
    let mut clients = [shared().port(), pooled.port].map(|port| login(port, &database, &[]));
    for (at, batch) in batches.iter().enumerate() {
        let syncs = {
            let (mut rest, mut count) = (&batch[..], 0);
            while rest.len() >= 5 {
                count += usize::from(matches!(rest[0], b'S' | b'Q'));
                rest = &rest[1 + u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize..];
            }
            count
        };
        let [expected, found] = clients.each_mut().map(|client| {
            client.send(batch);
            let answers: Vec<_> = (0..syncs).flat_map(|_| client.read_until(b"Z").unwrap()).collect();
            answers
        });
        assert_eq!(found, expected, "batch {at}: {}\n{}", batch.escape_ascii(), pooled.log());
        other.exchange(&[parse("", "select 1"), sync()].concat());
    }
    assert_eq!(other.query("execute x")[0][0].as_deref(), Some("of another"));
}

#[test]
fn by_the_extended_protocol_sql_finds_the_statements_of_the_protocol() {
    let run = |text: &str| [parse("", text), describe(b'S', ""), bind("", "", &[]), describe(b'P', ""), execute("", 0)];
    let run = |text: &str| run(text).concat();
    let x = || parse("x", "select $1::int + 1, 'text'");
    let alone = |text: &str| [run(text), sync()].concat();
    let batches = [
        // DEALLOCATE: once it is gone, and not before.
        [x(), sync()].concat(),
        alone("deallocate x"),
        alone("deallocate x"),
        [bind("", "x", &[Some("1")]), execute("", 0), sync()].concat(),
        [x(), sync()].concat(),
        [run("DEALLOCATE PREPARE X"), x(), bind("", "x", &[Some("1")]), execute("", 0), sync()].concat(),
        // Bound, and run in another batch, or not at all.
        query("begin"),
        [parse("", "deallocate x"), bind("p", "", &[]), sync()].concat(),
        [bind("", "x", &[Some("1")]), execute("", 0), sync()].concat(),
        [execute("p", 0), bind("", "x", &[Some("1")]), execute("", 0), sync()].concat(),
        query("rollback"),
        [bind("", "x", &[Some("1")]), execute("", 0), sync()].concat(),
        // An error before it, and one behind it.
        [x(), sync()].concat(),
        [run("select 1/0"), run("deallocate x"), sync()].concat(),
        [bind("", "x", &[Some("2")]), execute("", 0), sync()].concat(),
        [run("deallocate x"), run("select 1/0"), sync()].concat(),
        [bind("", "x", &[Some("3")]), execute("", 0), sync()].concat(),
        // Prepared once, run twice.
        [x(), parse("d", "deallocate x"), sync()].concat(),
        [bind("", "d", &[]), execute("", 0), sync()].concat(),
        [bind("", "d", &[]), execute("", 0), sync(), x(), sync()].concat(),
        [bind("", "d", &[]), execute("", 0), sync(), bind("", "x", &[Some("4")]), execute("", 0), sync()].concat(),
        // All at once.
        [x(), sync(), alone("deallocate x"), alone("deallocate x"), x(), sync(), alone("execute x(5)")].concat(),
        alone("deallocate all"),
        alone("execute x(5)"),
        // EXECUTE.
        [x(), parse("e", "execute x(6)"), describe(b'S', "e"), sync()].concat(),
        alone("execute x(7)"),
        [describe(b'S', "e"), bind("", "e", &[]), describe(b'P', ""), execute("", 0), sync()].concat(),
        alone("execute x('seven')"),
        [bind("", "e", &[]), execute("", 0), bind("", "e", &[]), execute("", 0), sync()].concat(),
        alone("execute x"),
        query("begin; select 1/0"),
        alone("execute x(8)"),
        query("rollback"),
        [close(b'S', "x"), bind("", "e", &[]), execute("", 0), sync()].concat(),
        // What was parsed before there was such a statement has no rows, whatever there is by now.
        [parse("", "execute x(9)"), sync()].concat(),
        [x(), sync()].concat(),
        [describe(b'S', ""), sync()].concat(),
    ];
    same_batches("extended_references", &batches);
}

#[test]
fn a_name_is_taken_for_sql_and_for_the_protocol_alike() {
    let run = |text: &str| [parse("", text), bind("", "", &[]), execute("", 0), sync()].concat();
    let batches = [
        [parse("x", "select 1"), sync()].concat(),
        run("prepare x as select 2"),
        query("prepare x as select 2"),
        query("prepare x (int) as select 2; select 3"),
        query("prepare y as select 'y'"),
        [parse("y", "select 4"), sync()].concat(),
        [parse("y", "select wrong from nowhere"), sync()].concat(),
        [parse("z", "select 5"), bind("", "z", &[]), execute("", 0), sync()].concat(),
        query("execute y"),
        run("execute y"),
        run("deallocate y"),
        [parse("y", "select 6"), bind("", "y", &[]), execute("", 0), sync()].concat(),
        run("deallocate x"),
        query("prepare x as select 7"),
        run("execute x"),
        query("execute x"),
    ];
    same_batches("names_taken", &batches);
}

/// Functions that leave something in the session that calls them, or nothing.
const LEAVING: &str = "\
    create function zone(text) returns text language plpgsql as $$ begin perform set_config('TimeZone', $1, false); return $1; end $$; \
    create function tenant(text) returns text language plpgsql as $$ begin perform set_config('my.tenant', $1, false); return $1; end $$; \
    create function outer_zone(text) returns text language sql as $$ select lower(zone($1)) $$; \
    create function dynamic() returns int language plpgsql as $$ begin execute 'set application_name = ''by a function'''; return 1; end $$; \
    create function locks() returns int language plpgsql as $$ begin perform pg_advisory_lock(4711); return 1; end $$; \
    create function makes() returns int language plpgsql as $$ begin create temporary table made (a int); insert into made values (1); return 1; end $$; \
    create function plain(a int) returns int language plpgsql as $$ declare b int; begin if (a > 1) then b := abs(a) + 1; \
      update counted set n = n + 1; else b := coalesce(a, 0); end if; return b; end $$; \
    create function local_zone() returns text language sql as $$ select set_config('TimeZone', 'Asia/Seoul', true) $$; \
    create function by_default(text default set_config('TimeZone', 'Asia/Baku', false)) returns text language sql as $$ select $1 $$; \
    create table клиент (n int); \
    create function between_names(text) returns int language plpgsql as $$ begin perform 1 from клиент; \
      perform set_config('TimeZone', $1, false); update клиент set n = 1; return 1; end $$; \
    create table counted (n int); insert into counted values (0)";

#[test]
fn what_a_function_leaves_follows_its_client_or_keeps_its_server() {
    same_as_direct(
        "transparent_functions",
        &[("application_name", "mine")],
        &[
            LEAVING,
            "select zone('Europe/Paris')",
            "show timezone",
            "select public.outer_zone('Asia/Kolkata') as \"Zone\"",
            "show timezone",
            "select 1 where \"zone\"('America/Lima') is not null",
            "show timezone",
            "select zone /* a comment */ ('UTC'), 'a string (1)'",
            "show timezone",
            "begin; select zone('Asia/Tokyo'); rollback",
            "show timezone",
            "begin",
            "with z as (select zone('Africa/Cairo') as x) select x from z",
            "insert into counted (n) values (length(zone('Africa/Algiers')))",
            "commit",
            "show timezone",
            "select by_default()",
            "show timezone",
            "select between_names('Asia/Baghdad')",
            "show timezone",
            "select tenant('one')",
            "select current_setting('my.tenant')",
            "select tenant('two')",
            "select current_setting('my.tenant')",
            "select dynamic()",
            "show application_name",
            "declare c cursor with hold for select zone('Asia/Dhaka')",
            "fetch all from c",
            "show timezone",
            "select local_zone()",
            "show timezone",
            "prepare z as select zone('Asia/Manila')",
            "execute z",
            "show timezone",
            "deallocate z; close c",
            "deallocate all; select zone('Europe/Oslo')",
            "show timezone",
            "prepare z as select 1; select zone('Europe/Rome')",
            "show timezone",
            "select locks()",
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
            "select pg_advisory_unlock_all()",
            "select makes()",
            "select * from made",
            "create or replace function plain(a int) returns int language plpgsql as $$ begin perform zone('Asia/Tokyo'); return a; end $$",
            "select plain(1)",
            "show timezone",
        ],
    );
}

#[test]
fn a_function_that_leaves_nothing_is_asked_about_once() {
    let ambassador = ambassador(2);
    let name = database("functions_plain");
    let mut client = login(ambassador.port, &name, &[]);
    client.query(LEAVING);
    // Behind the question of what that has left: what was known of functions is forgotten once more with its answer.
    client.query("select 1");
    let mut callers = [(); 3].map(|()| login(ambassador.port, &name, &[]));
    let surveys = || ambassador.metric("pg_ambassador_surveys_total");
    wait_until("it is known", || {
        let before = surveys();
        callers[0].query("select plain(7)");
        // Nobody is asked behind the second one's answer any more.
        callers[0].query("select 1");
        before > 0.0 && surveys() == before
    });
    let before = surveys();
    for client in &mut callers {
        for _ in 0..20 {
            assert_eq!(client.value("select plain(7) as x"), "8");
            client.query("insert into counted (n) values (plain(1))");
            client.exchange(
                &[parse("", "select plain($1)"), bind("", "", &[Some("2")]), execute("", 0), sync()].concat(),
            );
        }
        client.exchange(&[parse("p", "select plain($1)"), sync()].concat());
        for _ in 0..20 {
            client.exchange(&[bind("", "p", &[Some("2")]), execute("", 0), sync()].concat());
        }
    }
    assert_eq!(surveys(), before);
    // Until it is another function, whoever makes it so.
    client.query("drop role if exists definer; create role definer superuser login");
    let mut definer = Client::login(ambassador.port, &[("user", "definer"), ("database", &name)]);
    definer.query(
        "create or replace function plain(a int) returns int language sql as $$ select length(zone('Asia/Tokyo')) $$",
    );
    for client in &mut callers {
        client.query("select plain(7)");
        assert_eq!(client.value("show timezone"), "Asia/Tokyo");
    }
    assert_ne!(login(ambassador.port, &name, &[]).value("show timezone"), "Asia/Tokyo");
}

#[test]
fn one_statement_in_many_traces_is_prepared_once() {
    let ambassador = ambassador(1);
    let mut client = Client::new(ambassador.port);
    for i in 0..20 {
        let sql = format!("select 1 /*traceparent='00-{i:032x}-{i:016x}-01'*/");
        let name = format!("s{i}");
        client.exchange(&[parse(&name, &sql), bind("", &name, &[]), execute("", 0), sync()].concat());
    }
    wait_until("the counts are in", || ambassador.metric("pg_ambassador_client_parses_total") == 20.0);
    assert_eq!(ambassador.metric("pg_ambassador_server_parses_total"), 1.0);
}

#[test]
fn a_message_that_waits_for_the_settings_to_be_replayed_keeps_the_server_that_it_waits_for() {
    let ambassador = ambassador(1);
    let over = std::sync::atomic::AtomicBool::new(false);
    let mut one = login(ambassador.port, "postgres", &[("TimeZone", "Asia/Tokyo")]);
    one.exchange(&[parse("s", "select 1"), sync()].concat());
    std::thread::scope(|scope| {
        for zone in ["Asia/Seoul", "Africa/Cairo"] {
            let (port, over) = (ambassador.port, &over);
            scope.spawn(move || {
                let mut rival = login(port, "postgres", &[("TimeZone", zone)]);
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(rival.value("show timezone"), zone);
                }
            });
        }
        for _ in 0..20 {
            one.send(&[parse("s", "select 2"), sync()].concat());
            let answer = one.read_until(b"Z");
            over.fetch_or(answer.is_err(), std::sync::atomic::Ordering::Relaxed);
            assert_eq!(answer.unwrap()[0].code(), "42P05");
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn the_modes_of_a_transaction_are_no_settings_of_its_session() {
    same_as_direct(
        "transparent_modes",
        &[],
        &[
            "set default_transaction_isolation = 'serializable'",
            // PostgreSQL lists them as set in the session from here on.
            "begin; set transaction isolation level serializable; set transaction read only, deferrable; commit",
            "set work_mem = '1MB'",
            "show transaction_isolation",
            "set default_transaction_isolation = 'read committed'",
            "select current_setting('transaction_isolation'), current_setting('work_mem')",
        ],
    );
}

#[test]
fn what_deallocate_all_drops_is_gone_for_what_was_sent_right_behind_it() {
    let ambassador = ambassador(2);
    let [mut one, mut two, mut three] = [(); 3].map(|()| Client::new(ambassador.port));
    // The one server has the statement, and is in use when the other gets it, too.
    two.query("begin; select 1");
    one.exchange(&[parse("s", "select 1"), sync()].concat());
    three.query("begin; select 1");
    two.query("rollback");
    let drop_all = [parse("", "deallocate all"), bind("", "", &[]), execute("", 0), sync()].concat();
    one.send(&[drop_all, bind("", "s", &[]), execute("", 0), sync()].concat());
    one.read_until(b"Z").unwrap();
    let answer = one.read_until(b"Z").unwrap();
    assert_eq!((answer[0].tag, answer[0].code()), (b'E', "26000".to_owned()), "{answer:?}");
}

#[test]
fn a_statement_keeps_the_meaning_that_its_constants_had_when_it_was_prepared() {
    let ambassador = ambassador(1);
    for (text, change) in [
        ("select '01/02/2026'::date", "set datestyle = 'SQL, DMY'"),
        ("select timestamptz '2026-01-01'", "set timezone = 'Asia/Tokyo'"),
        ("select length('m\u{fc}de')", "set client_encoding = latin1"),
        ("select length('a\\nb')", "set standard_conforming_strings = off"),
        ("select count(*) from generate_series(1, 2) i where null = null", "set transform_null_equals = on"),
        ("select '{null,a}'::text[]", "set array_nulls = off"),
    ] {
        for name in ["s", ""] {
            let [expected, found] = [shared().port(), ambassador.port].map(|port| {
                let mut client = Client::new(port);
                client.exchange(&[parse(name, text), sync()].concat());
                // A simple query would drop the unnamed statement.
                client.exchange(&[parse("c", change), bind("", "c", &[]), execute("", 0), sync()].concat());
                // Another client has its own unnamed statement on the server by now.
                Client::new(port).exchange(&[parse("", "select 1"), sync()].concat());
                client.exchange(&[bind("", name, &[]), execute("", 0), sync()].concat())
            });
            assert_eq!(found, expected, "{text}, {change}, {name:?}");
        }
    }
}

#[test]
fn a_text_for_a_name_that_is_taken_is_looked_at_before_the_name_is_refused() {
    let ambassador = ambassador(2);
    let text = |name: &str| parse("s", &format!("select * from {name}"));
    let [expected, found] = [shared().port(), ambassador.port].map(|port| {
        let mut client = Client::new(port);
        client.query("create schema if not exists taken; create table if not exists taken.seen (a int)");
        client.query("set search_path = taken");
        client.exchange(&[text("seen"), sync()].concat());
        // What the name stands for is not to be seen from here.
        client.query("set search_path = pg_catalog");
        client.query("select 1");
        // The server that has it is another's from here.
        let mut other = Client::new(port);
        other.query("begin; select 1");
        let mut answers = Vec::new();
        for (around, texts) in [
            ("", ["nowhere", "seen", "pg_class"]),
            ("begin", ["pg_class", "seen", "nowhere"]),
            ("rollback", ["taken.seen", "pg_class", "pg_class"]),
        ] {
            client.query(around);
            answers.extend(texts.map(|name| client.exchange(&[text(name), sync()].concat())));
        }
        client.query("set search_path = taken");
        answers.push(client.exchange(&[bind("", "s", &[]), execute("", 0), sync()].concat()));
        answers
    });
    assert_eq!(found, expected);
}

#[test]
fn a_setting_of_ones_own_is_asked_for_again_where_there_was_no_answer() {
    let ambassador = ambassador(1);
    let name = database("lost_question");
    let mut direct = login(shared().port(), &name, &[]);
    let [mut one, mut other] = [(); 2].map(|()| login(ambassador.port, &name, &[]));
    one.query("select 1");
    // The question reads that, too.
    direct.query("begin; lock table pg_catalog.pg_language in access exclusive mode");
    one.query("set statement_timeout = '50ms'; select set_config('my.y', 'mine', false)");
    wait_until("it was asked in vain", || !ambassador.show("PINS").is_empty());
    direct.query("rollback");
    one.query("reset statement_timeout");
    wait_until("it was answered", || ambassador.show("PINS").is_empty());
    let found = other.query("select current_setting('my.y', true)").remove(0).remove(0);
    assert!(found.is_none_or(|found| found.is_empty()));
    assert_eq!(one.value("select current_setting('my.y')"), "mine");
}

#[test]
fn what_a_pipeline_has_set_is_nobody_elses_whatever_else_it_asks_for() {
    let ambassador = ambassador(1);
    let name = database("pipelined_settings");
    let mut one = login(ambassador.port, &name, &[]);
    let mut other = login(ambassador.port, &name, &[]);
    one.query("begin; select 1");
    one.query("commit");
    let run = |sql: &str| [parse("", sql), bind("p", "", &[]), execute("p", 0), sync()].concat();
    for round in 0..200 {
        let value = format!("of round {round}");
        let sets = [
            parse("", "select set_config($1, $2, $3)"),
            describe(b'S', ""),
            bind("", "", &[Some("my.pipelined"), Some(&value), Some("false")]),
            execute("", 0),
            sync(),
        ];
        let last = ["deallocate s1", "execute s2", "select 1", "select set_config('my.other', 'x', false)"][round % 4];
        let first = ["deallocate prepare s1", "select 1", "execute s3"][round % 3];
        one.send(&[sets.concat(), run(first), run(last)].concat());
        for _ in 0..3 {
            one.read_until(b"Z").unwrap();
        }
        let found = other.query("select current_setting('my.pipelined', true)").remove(0).remove(0);
        assert!(found.is_none_or(|found| found.is_empty()), "round {round}: {first}; {last}");
        assert_eq!(one.value("select current_setting('my.pipelined')"), value, "round {round}: {first}; {last}");
    }
}

#[test]
fn a_bind_with_the_wrong_number_of_values_is_told_so_whatever_has_become_of_its_table() {
    let direct_database = database("miscounted_direct");
    let pooled_database = database("miscounted");
    let pooled = ambassador(2);
    let mut direct = login(shared().port(), &direct_database, &[]);
    let mut through = login(pooled.port, &pooled_database, &[]);
    let [mut first, mut second] = [0; 2].map(|_| login(pooled.port, &pooled_database, &[]));
    let mut both = |messages: &[Vec<u8>]| {
        let [expected, found] = [&mut direct, &mut through].map(|client| client.exchange(&messages.concat()));
        let [expected, found] =
            [expected, found].map(|answer| answer.into_iter().map(Message::without_oids).collect::<Vec<_>>());
        assert_eq!(found, expected, "{}", pooled.log());
        expected
    };
    both(&[parse("rollback", "rollback"), sync()]);
    for name in ["s", ""] {
        first.query("begin; select 1");
        both(&[query("begin; create temp table gone (a int)")]);
        both(&[parse(name, "insert into gone values ($1)"), sync()]);
        both(&[bind("", "rollback", &[]), execute("", 0), sync()]);
        // The server that has it goes to another client, and one that has not is free.
        second.query("begin; select 1");
        first.query("rollback");
        for values in [&[][..], &[Some("1"), Some("2")]] {
            let answer = both(&[bind("", name, values), execute("", 0), sync()]);
            assert_eq!(answer[0].code(), "08P01", "{name:?}: {answer:?}");
        }
        // With the right number it is the table that is missed.
        let answer = both(&[bind("", name, &[Some("1")]), execute("", 0), sync()]);
        assert_eq!(answer[0].code(), "42P01", "{name:?}: {answer:?}");
        second.query("rollback");
    }
}

#[test]
fn a_statement_that_is_not_planned_has_the_parameters_that_were_declared_for_it() {
    let (name, direct) = (database("unplanned"), database("unplanned_direct"));
    let pooled = ambassador(2);
    let mut direct = login(shared().port(), &direct, &[]);
    let mut through = login(pooled.port, &name, &[]);
    let [mut first, mut second] = [0; 2].map(|_| login(pooled.port, &name, &[]));
    for (at, text) in [
        "create function f(int) returns int language sql return $1 + 1",
        "prepare p (int) as select $1 * 2",
        "drop function f(int)",
        "copy (select $1) to stdout",
    ]
    .into_iter()
    .enumerate()
    {
        for name in [&format!("s{at}"), ""] {
            let mut both = |messages: &[Vec<u8>]| {
                let [expected, found] = [&mut direct, &mut through].map(|client| client.exchange(&messages.concat()));
                let [expected, found] =
                    [expected, found].map(|a| a.into_iter().map(Message::without_oids).collect::<Vec<_>>());
                assert_eq!(found, expected, "{text} as {name:?}\n{}", pooled.log());
            };
            first.query("begin; select 1");
            both(&[parse(name, text), sync()]);
            // The server that has it goes to another client, and one that has not is free.
            second.query("begin; select 1");
            first.query("rollback");
            both(&[bind("", name, &[]), sync()]);
            both(&[bind("", name, &[Some("1")]), sync()]);
            second.query("rollback");
        }
    }
}

#[test]
fn a_failed_transaction_describes_and_closes_what_returns_nothing_on_any_server() {
    let (name, direct) = (database("described_failed"), database("described_failed_direct"));
    let pooled = ambassador(2);
    let mut direct = login(shared().port(), &direct, &[]);
    let mut through = login(pooled.port, &name, &[]);
    let [mut first, mut second] = [0; 2].map(|_| login(pooled.port, &name, &[]));
    let mut both = |messages: &[Vec<u8>]| {
        let [expected, found] = [&mut direct, &mut through].map(|client| client.exchange(&messages.concat()));
        assert_eq!(found, expected, "{}", pooled.log());
        expected
    };
    first.query("begin; select 1");
    both(&[parse("s", "close h"), sync()]);
    second.query("begin; select 1");
    first.query("rollback");
    both(&[query("begin")]);
    both(&[query("select 1/0")]);
    both(&[describe(b'S', "s"), close(b'S', "s"), sync()]);
    both(&[query("rollback")]);
    let answer = both(&[parse("s", "select 1"), bind("", "s", &[]), execute("", 0), sync()]);
    assert_eq!(answer[0].tag, b'1', "its name is free");
}
