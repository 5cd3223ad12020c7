//! The SQL console and the HTTP endpoint: what operators, exporters and scripts rely on.

use crate::support::client::{bind, describe, execute, message, parse, query, sync};
use crate::support::{Ambassador, Client, cluster, shared, url, wait_until};
use pg_ambassador::demo::cluster::Options;
use std::collections::BTreeMap;

fn login(ambassador: &Ambassador, user: &str) -> Client {
    Client::login(ambassador.port, &[("user", user), ("database", "pgbouncer")])
}

fn console(ambassador: &Ambassador) -> Client {
    login(ambassador, "ambassador")
}

/// The names of the columns of a RowDescription.
fn names(body: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = &body[2..];
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == 0).unwrap();
        names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        rest = &rest[end + 19..];
    }
    names
}

const STATS: &str = "server_assignment_count xact_count query_count received sent xact_time query_time wait_time \
                     client_parse_count server_parse_count bind_count client_login_count";

/// PgBouncer's tables and their columns in its order.
fn tables() -> Vec<(&'static str, String)> {
    let prefixed = |prefix: &str| -> String {
        let named = |name: &str| match (prefix, name) {
            ("avg_", "received") => "avg_recv".to_owned(),
            _ => format!("{prefix}{name}"),
        };
        STATS.split_whitespace().map(named).collect::<Vec<_>>().join(" ")
    };
    let totals = STATS.replace("received", "bytes_received").replace(" sent ", " bytes_sent ");
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let clients = "type user database replication state addr port local_addr local_port connect_time request_time wait \
                   wait_us close_needed ptr link remote_pid tls application_name prepared_statements id";
    vec![
        (
            "POOLS",
            words(
                "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active \
                 sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode \
                 load_balance_hosts",
            ),
        ),
        ("STATS", format!("database {} {}", prefixed("total_"), prefixed("avg_"))),
        ("STATS_TOTALS", words(&format!("database {totals}"))),
        (
            "STATS_AVERAGES",
            words(
                "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
                 wait_time avg_client_parse_count avg_server_parse_count avg_bind_count avg_client_login_count",
            ),
        ),
        ("TOTALS", "name value".into()),
        ("CLIENTS", words(clients)),
        ("SERVERS", words(clients)),
        (
            "DATABASES",
            words(
                "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode \
                 load_balance_hosts max_connections current_connections max_client_connections \
                 current_client_connections paused disabled",
            ),
        ),
        (
            "USERS",
            words(
                "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
                 max_user_client_connections current_client_connections",
            ),
        ),
        ("LISTS", "list items".into()),
        ("CONFIG", "key value default changeable".into()),
        ("MEM", "name size used free memtotal".into()),
        (
            "NODES",
            words(
                "database host port role state why tier zone region timeline lsn lag_bytes lag_ms rtt_us weight \
                 outstanding latency_us reads reads_percent probe_age_ms state_seconds generation",
            ),
        ),
        ("STATE", "key value".into()),
        ("VERSION", "version".into()),
    ]
}

#[test]
fn every_table_has_pgbouncers_columns_in_both_protocols() {
    let ambassador = Ambassador::start(&[url(shared())]);
    let mut client = Client::new(ambassador.port);
    client.query("begin; select 1");
    let mut console = console(&ambassador);
    for (table, columns) in tables() {
        for text in [format!("SHOW {table}"), format!("show {};", table.to_lowercase())] {
            let simple = console.exchange(&query(&text));
            assert_eq!(simple[0].tag, b'T', "{text}: {simple:?}");
            assert_eq!(names(&simple[0].body).join(" "), columns, "{text}");
            let width = columns.split(' ').count();
            let rows: Vec<_> = simple.iter().filter(|m| m.tag == b'D').collect();
            assert!(!rows.is_empty() && rows.iter().all(|row| row.columns().len() == width), "{text}");
            let tags: Vec<u8> = simple.iter().map(|m| m.tag).filter(|tag| *tag != b'D').collect();
            assert_eq!(tags, b"TCZ", "{text}");
            let batch =
                [parse("", &text), describe(b'S', ""), bind("", "", &[]), describe(b'P', ""), execute("", 0), sync()];
            let extended = console.exchange(&batch.concat());
            let tags: Vec<u8> = extended.iter().map(|m| m.tag).filter(|tag| *tag != b'D').collect();
            assert_eq!(tags, b"1tT2TCZ", "{text}");
            for described in extended.iter().filter(|m| m.tag == b'T') {
                assert_eq!(names(&described.body).join(" "), columns, "{text}");
            }
        }
    }
}

#[test]
fn a_driver_that_speaks_only_the_extended_protocol_can_use_the_console() {
    let ambassador = Ambassador::start(&[url(shared())]);
    let _client = Client::new(ambassador.port);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = format!("host=127.0.0.1 port={} user=ambassador dbname=ambassador", ambassador.port);
        let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        for (table, columns) in tables() {
            let statement = client.prepare(&format!("SHOW {table}")).await.unwrap();
            let prepared: Vec<&str> = statement.columns().iter().map(|column| column.name()).collect();
            assert_eq!(prepared.join(" "), columns);
            let rows = client.query(&statement, &[]).await.unwrap();
            assert!(!rows.is_empty(), "{table}");
        }
        // Values come in binary, which this driver asks for.
        let rows = client.query("SHOW LISTS", &[]).await.unwrap();
        let list = |name: &str| {
            let row = rows.iter().find(|row| row.get::<_, &str>(0) == name).unwrap();
            match row.try_get::<_, i64>(1) {
                Ok(items) => items,
                Err(_) => i64::from(row.get::<_, i32>(1)),
            }
        };
        assert_eq!((list("used_clients"), list("pools")), (1, 1));
        client.execute("RELOAD", &[]).await.unwrap();
        assert_eq!(client.execute("PAUSE nowhere", &[]).await.err().and_then(|e| e.code().cloned()), None);
        drop(client);
        connection.await.unwrap().unwrap();
    });
}

#[test]
fn f36_who_is_no_administrator_may_look_and_nothing_else() {
    let ambassador = Ambassador::start(&[
        url(shared()).as_str(),
        "--set",
        "console.admin_users=chief",
        "--set",
        "console.stats_users=watcher",
    ]);
    let mut watcher = login(&ambassador, "watcher");
    for (table, _) in tables() {
        watcher.exchange(&query(format!("SHOW {table}")));
    }
    for command in [
        "PAUSE",
        "RESUME",
        "RECONNECT",
        "WAIT_CLOSE",
        "KILL",
        "KILL_CLIENT 1",
        "DISABLE \"*\"",
        "ENABLE \"*\"",
        "RELOAD",
        "SET pool_size = '1'",
        "SHUTDOWN",
    ] {
        assert_eq!(watcher.try_query(command).unwrap_err().code(), "42501", "{command}");
        let batch = [parse("", command), bind("", "", &[]), execute("", 0), sync()].concat();
        let messages = watcher.exchange(&batch);
        assert_eq!(messages.iter().find(|m| m.tag == b'E').unwrap().code(), "42501", "{command}");
    }
    let refused = Client::try_login(ambassador.port, &[("user", "nobody"), ("database", "ambassador")]);
    assert_eq!(refused.err().unwrap().code(), "42501");
    login(&ambassador, "chief").query("RELOAD");
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}

#[test]
fn f30_a_pause_holds_clients_back_without_an_error_and_resume_lets_all_go_on() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "3"]);
    let mut busy = Client::new(ambassador.port);
    let mut clients: Vec<Client> = (0..6).map(|_| Client::new(ambassador.port)).collect();
    busy.query("begin; select 1");
    let port = ambassador.port;
    let pause = std::thread::spawn(move || {
        let mut console = Client::login(port, &[("user", "ambassador"), ("database", "ambassador")]);
        console.query("PAUSE");
    });
    let paused = || ambassador.show("DATABASES").iter().any(|row| row[15].as_deref() == Some("1"));
    wait_until("it is paused", paused);
    for (at, client) in clients.iter_mut().enumerate() {
        client.send(&query(format!("select {at}")));
    }
    wait_until("all wait", || ambassador.show("POOLS")[0][3].as_deref() == Some("6"));
    // The open transaction goes on, and its end ends the wait for the pause.
    assert_eq!(busy.value("select 'still'"), "still");
    assert!(!pause.is_finished());
    busy.query("commit");
    pause.join().unwrap();
    // Now nothing is connected: the server may be restarted.
    assert_eq!(ambassador.show("SERVERS").len(), 0);
    assert_eq!(
        ambassador.show("STATE").iter().find(|row| row[0].as_deref() == Some("paused")).unwrap()[1].as_deref(),
        Some("yes")
    );
    // A client that waits may still cancel, and newcomers wait too.
    let mut impatient = clients.pop().unwrap();
    cancel(port, &impatient.key);
    assert_eq!(impatient.read_until(b"Z").unwrap()[0].code(), "57014");
    let mut newcomer = Client::new(port);
    newcomer.send(&query("select 'new'"));
    wait_until("it waits", || ambassador.show("POOLS")[0][3].as_deref() == Some("6"));
    console(&ambassador).query("RESUME");
    for (at, client) in clients.iter_mut().enumerate() {
        let messages = client.read_until(b"Z").unwrap();
        assert_eq!(messages[1].columns()[0], Some(at.to_string()), "{messages:?}");
    }
    assert_eq!(newcomer.read_until(b"Z").unwrap()[1].columns()[0].as_deref(), Some("new"));
}

fn cancel(port: u16, key: &[u8]) {
    let mut stream = Client::connect(port);
    let len = u32::try_from(8 + key.len()).unwrap();
    stream.send(&[&len.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), key].concat());
    assert!(stream.is_closed());
}

#[test]
fn f30_a_pause_also_holds_back_those_who_come_for_the_first_time() {
    let ambassador = Ambassador::start(&[url(shared())]);
    let mut console = console(&ambassador);
    console.query("PAUSE");
    assert_eq!(console.try_query("PAUSE").unwrap_err().field(b'M').as_deref(), Some("already suspended/paused"));
    let port = ambassador.port;
    let newcomer = std::thread::spawn(move || Client::new(port).value("select 'served'"));
    wait_until("the newcomer has connected", || ambassador.metric("pg_ambassador_connections_accepted_total") >= 2.0);
    // Whatever it waits for: PostgreSQL has not seen it.
    for _ in 0..20 {
        assert_eq!(ambassador.show("SERVERS").len(), 0);
    }
    assert!(!newcomer.is_finished());
    console.query("RESUME");
    assert_eq!(newcomer.join().unwrap(), "served");
    assert_eq!(console.try_query("RESUME").unwrap_err().field(b'M').as_deref(), Some("pooler is not paused/suspended"));
}

#[test]
fn f30_a_server_can_be_restarted_during_a_pause_and_nobody_notices() {
    let cluster = cluster(&Options::default());
    let ambassador = Ambassador::start(&[&url(&cluster), "--pool-size", "2"]);
    let port = ambassador.port;
    let mut clients: Vec<Client> = (0..10).map(|_| Client::new(port)).collect();
    clients.iter_mut().for_each(|client| drop(client.query("select 1")));
    let mut console = console(&ambassador);
    console.query("PAUSE");
    clients.iter_mut().for_each(|client| client.send(&query("select 2")));
    cluster.stop(0, "smart").unwrap();
    cluster.restart(0).unwrap();
    console.query("RESUME");
    for client in &mut clients {
        let messages = client.read_until(b"Z").unwrap();
        assert_eq!(messages[1].columns()[0].as_deref(), Some("2"), "{messages:?}");
    }
}

#[test]
fn reconnect_replaces_connections_when_they_are_free_and_wait_close_waits_for_it() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "2"]);
    let mut holder = Client::new(ambassador.port);
    let mut other = Client::new(ambassador.port);
    holder.query("begin; select 1");
    let (held, idle) = (holder.value("select pg_backend_pid()"), other.value("select pg_backend_pid()"));
    console(&ambassador).query("RECONNECT");
    assert_ne!(other.value("select pg_backend_pid()"), idle);
    let port = ambassador.port;
    let waiter = std::thread::spawn(move || {
        Client::login(port, &[("user", "ambassador"), ("database", "ambassador")]).query("WAIT_CLOSE");
    });
    assert_eq!(holder.value("select pg_backend_pid()"), held);
    assert!(!waiter.is_finished());
    let needed = ambassador.show("SERVERS").iter().filter(|row| row[13].as_deref() == Some("1")).count();
    assert_eq!(needed, 1);
    holder.query("commit");
    waiter.join().unwrap();
    assert_ne!(holder.value("select pg_backend_pid()"), held);
}

#[test]
fn kill_client_ends_one_client_and_kill_ends_all() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "2"]);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(ambassador.port)).collect();
    clients[0].query("begin; select 1");
    let mut console = console(&ambassador);
    let ids: Vec<String> = ambassador.show("CLIENTS").iter().map(|row| row[20].clone().unwrap()).collect();
    console.query(&format!("KILL_CLIENT {}", ids[0]));
    let error = clients[0].read().unwrap();
    assert_eq!((error.field(b'S').as_deref(), error.code().as_str()), (Some("FATAL"), "57P01"));
    assert!(clients[0].is_closed());
    assert_eq!(console.try_query("KILL_CLIENT 999999").unwrap_err().code(), "42704");
    assert_eq!(clients[1].value("select 1"), "1");
    console.query("KILL");
    for client in &mut clients[1..] {
        assert_eq!(client.read().unwrap().code(), "57P01");
        assert!(client.is_closed());
    }
    wait_until("nothing is connected", || ambassador.show("SERVERS").is_empty());
    console.query("RESUME");
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}

#[test]
fn a_disabled_database_refuses_newcomers_and_keeps_who_is_there() {
    let ambassador = Ambassador::start(&[url(shared())]);
    let mut there = Client::new(ambassador.port);
    let mut console = console(&ambassador);
    console.query("DISABLE \"*\"");
    let error = Client::try_login(ambassador.port, &[("user", "postgres"), ("database", "postgres")]).err().unwrap();
    assert_eq!((error.field(b'S').as_deref(), error.code().as_str()), (Some("FATAL"), "57P03"));
    assert_eq!(there.value("select 1"), "1");
    console.query("ENABLE \"*\"");
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
    assert_eq!(console.try_query("DISABLE nowhere").unwrap_err().code(), "3D000");
}

#[test]
fn set_changes_a_setting_until_the_next_reload() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "3"]);
    let mut console = console(&ambassador);
    let value = |console: &mut Client, key: &str| {
        let rows = console.query("SHOW CONFIG");
        rows.iter().find(|row| row[0].as_deref() == Some(key)).unwrap()[1].clone().unwrap()
    };
    console.query("SET pool_size = '5'");
    assert_eq!(value(&mut console, "pool_size"), "5");
    assert_eq!(console.try_query("SET pool_size = 'many'").unwrap_err().code(), "F0000");
    assert_eq!(value(&mut console, "pool_size"), "5");
    assert_eq!(console.try_query("SET no_such_thing = '1'").unwrap_err().code(), "42704");
    assert_eq!(console.try_query("SET workers = '1'").unwrap_err().code(), "55000");
    console.query("RELOAD");
    assert_eq!(value(&mut console, "pool_size"), "3");
    assert_eq!(console.try_query("DROP TABLE x").unwrap_err().field(b'S').as_deref(), Some("ERROR"));
    console.send(&message(b'X', b""));
    assert!(console.is_closed());
}

#[test]
fn shutdown_ends_the_program() {
    for (command, code) in [("SHUTDOWN", 0), ("SHUTDOWN WAIT_FOR_SERVERS", 0), ("SHUTDOWN WAIT_FOR_CLIENTS", 0)] {
        let mut ambassador = Ambassador::start(&[url(shared())]);
        let mut client = Client::new(ambassador.port);
        let _ = console(&ambassador).try_query(command);
        if command.ends_with("CLIENTS") {
            assert_eq!(client.value("select 1"), "1");
            client.send(&message(b'X', b""));
        } else {
            assert_eq!(client.read().unwrap().code(), "57P01", "{command}");
        }
        assert_eq!(ambassador.wait().code(), Some(code), "{command}");
    }
}

#[test]
fn while_clients_may_still_leave_the_console_is_obeyed() {
    let mut ambassador = Ambassador::start(&[url(shared())]);
    let mut client = Client::new(ambassador.port);
    let mut console = console(&ambassador);
    console.query("SHUTDOWN WAIT_FOR_CLIENTS");
    console.query("RELOAD");
    console.query("SET pool_size = 3");
    console.query("SHUTDOWN WAIT_FOR_CLIENTS");
    assert_eq!(client.value("select 1"), "1");
    let _ = console.try_query("SHUTDOWN");
    assert_eq!(client.read().unwrap().code(), "57P01");
    assert_eq!(ambassador.wait().code(), Some(0));
}

/// The samples of a scrape: names with their labels, and values. Fails at what is not in the text format.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut types = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            let words: Vec<&str> = comment.splitn(3, ' ').collect();
            match words.as_slice() {
                ["TYPE", name, kind @ ("counter" | "gauge" | "histogram")] => {
                    assert!(types.insert((*name).to_owned(), *kind).is_none(), "{name} has two types");
                }
                ["HELP", _, help] => assert!(!help.is_empty(), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let name = series.split('{').next().unwrap();
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{line}");
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end).filter(|base| types.get(*base) == Some(&"histogram")));
        let kind = types.get(base.unwrap_or(name)).unwrap_or_else(|| panic!("{name} has no type"));
        assert!(*kind != "counter" || name.ends_with("_total"), "{name} is a counter");
        assert!(name.starts_with("pg_ambassador_") || name.starts_with("process_"), "{name}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(samples.insert(series.to_owned(), value).is_none(), "{series} twice");
    }
    samples
}

#[test]
fn metrics_are_in_prometheus_format_and_their_labels_are_bounded() {
    let ambassador = Ambassador::start(&[url(shared())]);
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    let before = samples(&ambassador.http("/metrics").1);
    for at in 0..50 {
        client.query(&format!("select {at} as x{at}"));
        client.try_query(&format!("select nonsense{at}")).unwrap_err();
        let name = format!("client {at}");
        Client::login(ambassador.port, &[("user", "postgres"), ("database", "postgres"), ("application_name", &name)])
            .query("select 1");
    }
    wait_until("they have left", || ambassador.show("CLIENTS").len() == 1);
    let (status, text) = ambassador.http("/metrics");
    assert_eq!(status, 200);
    let after = samples(&text);
    // As many series as before, but for those that count something for the first time.
    assert!(after.len() < before.len() + 20, "{} series before, {} after", before.len(), after.len());
    for word in ["select", "nonsense", "client 4", "x4"] {
        assert!(!text.to_lowercase().contains(&format!("\"{word}")), "{word} is in a label");
    }
}

#[test]
fn health_is_told_apart() {
    let ambassador = Ambassador::start(&[url(shared())]);
    wait_until("it has started", || ambassador.http("/startupz").0 == 200);
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(ambassador.http(path).0, 200, "{path}");
    }
    assert_eq!(ambassador.http("/nothing").0, 404);
}

#[test]
fn the_name_that_a_client_gives_its_application_is_shown_and_the_names_of_its_pool() {
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", shared().port());
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1"]);
    let mut client =
        Client::login(ambassador.port, &[("user", "ann"), ("database", "shop"), ("application_name", "a")]);
    // The console is served by another thread, which may be a moment ahead.
    let shown = |table: &str, expected: [&str; 3]| {
        wait_until(&format!("SHOW {table} has {expected:?}"), || {
            ambassador.show(table).pop().is_some_and(|row| [1, 2, 18].map(|at| row[at].clone().unwrap()) == expected)
        });
    };
    shown("CLIENTS", ["ann", "shop", "a"]);
    client.query("set application_name = 'b'");
    shown("CLIENTS", ["ann", "shop", "b"]);
    client.query("begin; set local application_name = 'c'");
    shown("CLIENTS", ["ann", "shop", "c"]);
    // Who has it, by the names that SHOW POOLS has.
    shown("SERVERS", ["ann", "shop", "c"]);
    client.query("rollback");
    shown("CLIENTS", ["ann", "shop", "b"]);
    shown("SERVERS", ["ann", "shop", ""]);
}

#[test]
fn who_leaves_while_a_command_runs_is_not_waited_for_and_a_pause_stays() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    client.query("begin");
    client.query("select 1");
    let mut console = console(&ambassador);
    console.send(&query("PAUSE"));
    wait_until("it is paused", || ambassador.metric("pg_ambassador_pool_paused") > 0.0);
    // As libpq leaves.
    console.send(&message(b'X', b""));
    drop(console);
    wait_until("it is noticed", || ambassador.log().contains("who waits for a console command has left"));
    client.query("commit");
    assert!(ambassador.metric("pg_ambassador_pool_paused") > 0.0);
    self::console(&ambassador).query("RESUME");
    assert_eq!(client.value("select 1"), "1");
}

#[test]
fn f20_who_does_not_read_the_consoles_answers_is_let_go_and_keeps_nobody_waiting() {
    let ambassador = Ambassador::start(&[&url(shared()), "--set", "client_write_timeout=500ms"]);
    let mut silent = console(&ambassador);
    // More than the socket's buffers take.
    silent.send(&query("SHOW CONFIG").repeat(2000));
    let mut other = console(&ambassador);
    assert!(other.value("SHOW VERSION").contains("pg-ambassador"));
    wait_until("it is let go", || ambassador.log().contains("a console session did not take its answers"));
    assert!(other.value("SHOW VERSION").contains("pg-ambassador"));
}
