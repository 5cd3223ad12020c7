//! Pools: who gets a server when, how many there are, and what is left of the one before.

use crate::support::client::{bind, close, execute, message, parse, query, sync};
use crate::support::{Ambassador, Client, PATIENCE, binaries, shared, url, wait_until};
use pg_ambassador::config::{self, Sources};
use pg_ambassador::pool::Directory;
use pg_ambassador::pool::directory::Purpose;
use pg_ambassador::telemetry::Telemetry;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A database of the test's own on the shared server, so that its backends can be counted.
fn database(name: &str) -> String {
    let mut direct = Client::new(shared().port());
    direct.query(&format!("drop database if exists {name} with (force)"));
    direct.query(&format!("create database {name}"));
    format!("postgres://127.0.0.1:{}/{name}?sslmode=disable", shared().port())
}

/// How many backends PostgreSQL has for clients of a database.
fn backends(direct: &mut Client, database: &str) -> usize {
    let sql = format!(
        "select count(*) from pg_stat_activity where datname = '{database}' and backend_type = 'client backend'"
    );
    direct.value(&sql).parse().unwrap()
}

/// Counts the backends of a database for as long as something goes on; the highest count.
fn most_backends(database: &str, work: impl FnOnce()) -> usize {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let counter = scope.spawn(|| {
            let mut direct = Client::new(shared().port());
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(backends(&mut direct, database));
                std::thread::sleep(Duration::from_millis(2));
            }
            most
        });
        let ended = Ended(&over);
        work();
        drop(ended);
        counter.join().unwrap()
    })
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A column of the one line of SHOW POOLS for clients of this user.
fn pool(ambassador: &Ambassador, column: usize) -> usize {
    ambassador.show("POOLS")[0][column].as_deref().unwrap().parse().unwrap()
}

const WAITING: usize = 3;
const IDLE: usize = 9;

fn console(ambassador: &Ambassador) -> Client {
    Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")])
}

const PID: &str = "select pg_backend_pid()";

#[test]
fn in_transaction_mode_a_server_is_kept_for_a_transaction_and_no_longer() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut one = Client::new(ambassador.port);
    let mut two = Client::new(ambassador.port);
    assert_eq!(one.value(PID), two.value(PID));
    one.query("begin; select 1");
    two.send(&query("select 'after'"));
    wait_until("the other waits", || pool(&ambassador, WAITING) == 1);
    one.query("create temp table pooling_transaction (n int) on commit drop");
    one.query("commit");
    assert_eq!(two.read_until(b"Z").unwrap()[1].columns()[0].as_deref(), Some("after"));
}

#[test]
fn a_server_that_a_client_only_likes_to_keep_stays_while_half_a_message_is_on_its_way_to_it() {
    Client::new(shared().port()).query(
        "drop table if exists pooling_half; drop sequence if exists pooling_half_s; \
         create table pooling_half (n int); create sequence pooling_half_s",
    );
    for asked_before in [false, true] {
        let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
        let (mut one, mut two) = (Client::new(ambassador.port), Client::new(ambassador.port));
        let ask = |two: &mut Client| {
            two.send(&query("select 'whole'"));
            wait_until("the other waits", || pool(&ambassador, WAITING) == 1);
        };
        one.query("select nextval('pooling_half_s')");
        wait_until("it keeps its server", || ambassador.show("PINS").len() == 1);
        one.send(&query("copy pooling_half from stdin"));
        assert_eq!(one.read().unwrap().tag, b'G');
        if asked_before {
            ask(&mut two);
        }
        let half = message(b'd', &vec![b'x'; 300_000]);
        let (front, rest) = half.split_at(200_000);
        one.send(&[&message(b'd', b"no number\n"), front].concat());
        let failed = one.read_until(b"Z").unwrap();
        assert_eq!((failed[0].tag, failed[0].code().as_str()), (b'E', "22P02"), "{failed:?}");
        if !asked_before {
            ask(&mut two);
        }
        one.send(rest);
        assert_eq!(two.read_until(b"Z").unwrap()[1].columns()[0].as_deref(), Some("whole"), "{asked_before}");
        assert_eq!(one.value("select 1"), "1");
    }
}

#[test]
fn a_server_that_is_given_back_in_the_middle_of_a_message_serves_nobody_else() {
    let flags = vec![("url".to_owned(), url(shared())), ("pool_size".to_owned(), "1".to_owned())];
    let config = config::resolve(&Sources { flags, ..Sources::default() }).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let handle = tokio::runtime::Handle::current();
        let directory =
            Directory::new(&config.directory, Arc::default(), Arc::new(Telemetry::default()), handle).unwrap();
        let pools = directory.pools("postgres", "postgres", Purpose::Clients, None).unwrap();
        let lease = || async { pools.lease_until(1, Instant::now() + PATIENCE).await.unwrap() };
        let first = lease().await;
        let pid = first.entry.key.pid;
        first.finish(Instant::now());
        let mut whole = lease().await;
        assert_eq!(whole.entry.key.pid, pid);
        whole.output.extend(b"Q\0");
        whole.finish(Instant::now());
        let mut half_sent = lease().await;
        assert_ne!(half_sent.entry.key.pid, pid);
        let pid = half_sent.entry.key.pid;
        half_sent.input.extend(b"N\0");
        half_sent.finish(Instant::now());
        assert_ne!(lease().await.entry.key.pid, pid);
    });
}

#[test]
fn in_session_mode_a_server_is_kept_until_its_client_leaves_and_is_clean_then() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1", "--pool-mode", "session"]);
    let mut one = Client::new(ambassador.port);
    one.query("create temp table pooling_session (n int)");
    one.query("set work_mem = '77kB'");
    one.query("prepare pooled as select 1");
    assert_eq!(one.value("show work_mem"), "77kB");
    // Another one with other settings: its login cannot be answered from memory, and must not need a second server.
    let waiter = std::thread::spawn({
        let port = ambassador.port;
        move || {
            let mut two = Client::new(port);
            assert_eq!(two.value("show work_mem"), "4MB");
            two.try_query("select * from pooling_session").unwrap_err();
            assert_eq!(two.query("select * from pg_prepared_statements").len(), 0);
        }
    });
    wait_until("the other waits", || pool(&ambassador, WAITING) == 1);
    one.send(&message(b'X', b""));
    waiter.join().unwrap();
}

#[test]
fn in_statement_mode_every_statement_is_alone_and_transactions_are_refused() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1", "--pool-mode", "statement"]);
    let mut client = Client::new(ambassador.port);
    assert_eq!(client.value("select 1"), "1");
    let batch = [parse("", "select $1::text"), bind("", "", &[Some("x")]), execute("", 0), sync()].concat();
    assert!(client.exchange(&batch).iter().any(|m| m.tag == b'D'));
    // Several statements in one message are one transaction for PostgreSQL, and one statement for the pool.
    client.query("select 1; select 2");
    let mut direct = Client::new(shared().port());
    direct.query("drop table if exists pooling_statement; create table pooling_statement (n int)");
    for begin in ["begin", "START TRANSACTION", "begin; insert into pooling_statement values (1)"] {
        let mut client = Client::new(ambassador.port);
        client.send(&query(begin));
        let mut messages = Vec::new();
        while let Ok(message) = client.read() {
            messages.push(message);
        }
        let error = messages.last().unwrap();
        assert_eq!((error.tag, error.code().as_str()), (b'E', "25001"), "{begin}: {messages:?}");
    }
    assert_eq!(Client::new(ambassador.port).value("select count(*) from pooling_statement"), "0");
}

#[test]
fn who_has_defined_objects_gets_its_own_connection_back_and_strangers_get_another() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "3", "--workers", "1"]);
    let ends = |pid: &str| {
        let mut direct = Client::new(shared().port());
        wait_until("its server has ended", || {
            direct.value(&format!("select count(*) from pg_stat_activity where pid = {pid}")) == "0"
        });
    };
    let mut definer = Client::new(ambassador.port);
    definer.query("create or replace function pooling_defined() returns int language sql as 'select 1'");
    let its = definer.value(PID);
    // It is idle, and was used last.
    let mut stranger = Client::new(ambassador.port);
    let other = stranger.value(PID);
    assert_ne!(other, its);
    for _ in 0..3 {
        assert_eq!((stranger.value(PID), definer.value(PID)), (other.clone(), its.clone()));
    }
    // Where there is no room any more, any will do.
    stranger.query("begin; select 1");
    let mut second = Client::new(ambassador.port);
    second.query("begin; select 1");
    let mut third = Client::new(ambassador.port);
    assert_eq!(third.value(PID), its);
    second.query("commit");
    // It goes with its client, which may have another one at the time.
    definer.send(&message(b'X', b""));
    ends(&its);
    stranger.query("commit");
    assert_eq!(stranger.value(PID), second.value(PID), "the one that was used last is used next");

    // The same for one that leaves while it has it, and while it is at work there.
    for leave in ["begin; alter function pooling_defined() stable", "alter function pooling_defined() volatile"] {
        let mut definer = Client::new(ambassador.port);
        definer.query("alter function pooling_defined() immutable");
        let its = definer.value(PID);
        definer.query(leave);
        if leave.starts_with("begin") {
            definer.send(&query("select pg_sleep(0.05)"));
        }
        drop(definer);
        ends(&its);
    }
}

#[test]
fn f31_under_many_clients_postgresql_never_sees_more_backends_than_the_pool_has() {
    const POOL: usize = 5;
    let url = database("pooling_many");
    let ambassador = Ambassador::start(&[&url, "--pool-size", &POOL.to_string(), "--set", "dials_per_server=20"]);
    let port = ambassador.port;
    let most = most_backends("pooling_many", || {
        std::thread::scope(|scope| {
            for id in 0..200 {
                scope.spawn(move || {
                    let mut client = Client::new(port);
                    for at in 0..5 {
                        match id % 4 {
                            // Leaves its server dirty, closes it, and is cut off.
                            0 => drop(client.query("set work_mem = '1MB'")),
                            1 if at == 4 => {
                                let _ = client.try_query("select pg_terminate_backend(pg_backend_pid())");
                            }
                            2 if at == 4 => return client.send(&query("begin; select pg_sleep(0.01)")),
                            _ => drop(client.query("select pg_sleep(0.001)")),
                        }
                    }
                });
            }
        });
    });
    assert!(most <= POOL, "{most} backends for a pool of {POOL}");
}

#[test]
fn f31_who_waits_is_served_in_the_order_of_arrival() {
    const CLIENTS: usize = 30;
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1", "--workers", "2"]);
    let mut direct = Client::new(shared().port());
    direct.query("drop table if exists pooling_fifo; create table pooling_fifo (at serial, client int)");
    let mut holder = Client::new(ambassador.port);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(ambassador.port)).collect();
    holder.query("begin; select 1");
    for (id, client) in clients.iter_mut().enumerate() {
        client.send(&query(format!("insert into pooling_fifo (client) values ({id})")));
        wait_until("it is in the queue", || pool(&ambassador, WAITING) == id + 1);
    }
    holder.query("commit");
    for client in &mut clients {
        client.read_until(b"Z").unwrap();
    }
    let order: Vec<usize> = direct
        .query("select client from pooling_fifo order by at")
        .iter()
        .map(|row| row[0].as_deref().unwrap().parse().unwrap())
        .collect();
    assert_eq!(order, (0..CLIENTS).collect::<Vec<_>>());
}

#[test]
fn f31_who_waits_too_long_is_told_why_and_stays() {
    let ambassador = Ambassador::start(&[
        url(shared()).as_str(),
        "--pool-size",
        "1",
        "--checkout-timeout",
        "400ms",
        "--set",
        "queue_notice=100ms",
    ]);
    let mut holder = Client::new(ambassador.port);
    let mut waiter = Client::new(ambassador.port);
    holder.query("begin; select 1");
    for request in [query("select 1"), [parse("", "select 1"), bind("", "", &[]), execute("", 0), sync()].concat()] {
        let messages = waiter.exchange(&request);
        let tags: Vec<u8> = messages.iter().map(|m| m.tag).collect();
        assert_eq!(tags, b"NEZ", "{messages:?}");
        let [notice, error, ready] = messages.as_slice() else { unreachable!() };
        assert_eq!(notice.field(b'S').as_deref(), Some("NOTICE"));
        assert!(notice.field(b'M').unwrap().starts_with("pg-ambassador: no server connection available"));
        assert_eq!((error.field(b'S').as_deref(), error.code().as_str()), (Some("ERROR"), "53300"));
        let text = error.field(b'M').unwrap();
        assert!(text.starts_with("pg-ambassador: pool exhausted 1/1, waited "), "{text}");
        let detail = error.field(b'D').unwrap();
        assert!(detail.contains("pool=postgres/postgres") && detail.contains("waited_ms="), "{detail}");
        assert!(error.field(b'H').unwrap().contains("pool_size"));
        assert_eq!(ready.body, b"I");
    }
    holder.query("commit");
    assert_eq!(waiter.value("select 2"), "2");
    assert_eq!(pool(&ambassador, WAITING), 0);
}

#[test]
fn the_connection_that_was_used_last_is_used_next() {
    // Of several threads each likes best what it had last itself.
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "5", "--workers", "1"]);
    let mut clients: Vec<Client> = (0..5).map(|_| Client::new(ambassador.port)).collect();
    clients.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
    let pids: Vec<String> = clients.iter_mut().map(|client| client.value(PID)).collect();
    for (client, pid) in clients.iter_mut().zip(&pids) {
        client.query("commit");
        for _ in 0..3 {
            assert_eq!(&client.value(PID), pid);
        }
    }
    // All are idle now; the last one given back serves everybody.
    for client in &mut clients {
        assert_eq!(&client.value(PID), &pids[4]);
    }
}

#[test]
fn unused_connections_are_closed_but_for_those_that_are_to_be_kept() {
    let url = database("pooling_idle");
    let ambassador = Ambassador::start(&[
        url.as_str(),
        "--pool-size",
        "5",
        "--set",
        "server_idle_timeout=100ms",
        "--set",
        "min_pool_size=2",
    ]);
    let mut direct = Client::new(shared().port());
    let mut clients: Vec<Client> = (0..5).map(|_| Client::new(ambassador.port)).collect();
    clients.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
    assert_eq!(backends(&mut direct, "pooling_idle"), 5);
    clients.iter_mut().for_each(|client| drop(client.query("commit")));
    wait_until("only the least are left", || backends(&mut direct, "pooling_idle") == 2);
    // And they are made again when somebody closes them.
    direct.query("select pg_terminate_backend(pid) from pg_stat_activity where datname = 'pooling_idle'");
    wait_until("the least are there again", || pool(&ambassador, IDLE) == 2);
}

#[test]
fn a_connection_that_has_lived_long_enough_is_replaced_without_an_error() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1", "--set", "server_lifetime=200ms"]);
    let mut client = Client::new(ambassador.port);
    client.query("begin; select 1");
    let first = client.value(PID);
    // Not while somebody has it.
    let mut console = console(&ambassador);
    wait_until("it is old", || {
        console.query("SHOW SERVERS");
        client.value("select clock_timestamp() > backend_start + interval '500 ms' from pg_stat_activity where pid = pg_backend_pid()") == "t"
    });
    assert_eq!(client.value(PID), first);
    client.query("commit");
    assert_ne!(client.value(PID), first);
}

#[test]
fn the_reserve_is_opened_for_who_has_waited_and_closed_again() {
    let url = database("pooling_reserve");
    let ambassador = Ambassador::start(&[
        url.as_str(),
        "--pool-size",
        "2",
        "--set",
        "reserve_pool_size=1",
        "--set",
        "reserve_pool_timeout=100ms",
        "--set",
        "server_idle_timeout=100ms",
    ]);
    let mut direct = Client::new(shared().port());
    let mut clients: Vec<Client> = (0..4).map(|_| Client::new(ambassador.port)).collect();
    // Again and again: what was opened must really be closed.
    for _ in 0..4 {
        let (holders, waiters) = clients.split_at_mut(2);
        holders.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
        waiters.iter_mut().for_each(|client| client.send(&query("begin; select 1")));
        wait_until("one of the two is served by the reserve", || {
            backends(&mut direct, "pooling_reserve") == 3 && pool(&ambassador, WAITING) == 1
        });
        holders.iter_mut().for_each(|client| drop(client.query("commit")));
        for client in waiters {
            client.read_until(b"Z").unwrap();
            client.query("commit");
        }
        wait_until("the reserve is closed", || {
            backends(&mut direct, "pooling_reserve") <= 2 && pool(&ambassador, WAITING) == 0
        });
    }
    let most = most_backends("pooling_reserve", || burst(ambassador.port, 40));
    assert!(most <= 3, "{most} backends for a pool of 2 and a reserve of 1");
}

/// Many clients at once, each with a short transaction.
fn burst(port: u16, clients: usize) {
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(move || Client::new(port).query("select pg_sleep(0.02)"));
        }
    });
}

#[test]
fn a_pool_that_is_made_smaller_and_larger_again_has_the_size_it_was_given_last() {
    let url = database("pooling_resize");
    let ambassador = Ambassador::start(&[url.as_str(), "--pool-size", "6", "--set", "dials_per_server=20"]);
    let mut console = console(&ambassador);
    let mut direct = Client::new(shared().port());
    Client::new(ambassador.port).query("select 1");
    for _ in 0..3 {
        for size in [2, 6] {
            console.query(&format!("SET pool_size = '{size}'"));
        }
    }
    let most = most_backends("pooling_resize", || burst(ambassador.port, 40));
    assert!(most <= 6, "{most} backends for a pool of 6");
    // The same while all connections are in use: what is too much goes when it comes back.
    let mut clients: Vec<Client> = (0..6).map(|_| Client::new(ambassador.port)).collect();
    clients.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
    for size in [2, 6, 2] {
        console.query(&format!("SET pool_size = '{size}'"));
    }
    clients.iter_mut().for_each(|client| drop(client.query("commit")));
    wait_until("the pool has shrunk", || backends(&mut direct, "pooling_resize") <= 2);
    let most = most_backends("pooling_resize", || burst(ambassador.port, 40));
    assert!(most <= 2, "{most} backends for a pool of 2");
    console.query("SET pool_size = '4'");
    let mut clients: Vec<Client> = (0..4).map(|_| Client::new(ambassador.port)).collect();
    clients.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
    assert_eq!(backends(&mut direct, "pooling_resize"), 4);
}

#[test]
fn i06_what_a_client_leaves_behind_is_never_seen_by_the_next() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1", "--set", "paranoid=true"]);
    let mut one = Client::new(ambassador.port);
    let mut two = Client::new(ambassador.port);
    let dirt = [
        "set work_mem = '99kB'",
        "select set_config('work_mem', '99kB', false)",
        "do $$ begin perform set_config('work_mem', '99kB', false); end $$",
        "create temp table left_behind (n int)",
        "select pg_advisory_lock(4242)",
        "listen left_behind",
        "prepare left_behind as select 1",
        "declare left_behind cursor with hold for select 1",
        "set role pg_monitor",
        "set session authorization pg_monitor",
        "begin; set work_mem = '99kB'; commit",
        "load 'plpgsql'; set search_path = nowhere",
    ];
    for sql in dirt {
        one.query(sql);
        // Some of it keeps its server, for as long as its client is there.
        drop(one);
        let clean = two.query(
            "select current_setting('work_mem'), current_user, session_user, current_setting('search_path'), \
             (select count(*) from pg_prepared_statements), (select count(*) from pg_cursors), \
             (select count(*) from pg_listening_channels()), \
             (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), \
             (select count(*) from pg_class where relpersistence = 't' and relname = 'left_behind')",
        );
        let clean: Vec<&str> = clean[0].iter().map(|value| value.as_deref().unwrap()).collect();
        let expected = ["4MB", "postgres", "postgres", "\"$user\", public", "0", "0", "0", "0", "0"];
        assert_eq!(clean, expected, "after {sql}");
        one = Client::new(ambassador.port);
    }
}

#[test]
fn a_connection_that_nobody_made_dirty_is_not_reset() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    let mut direct = Client::new(shared().port());
    for request in [
        query("select 1"),
        query("begin; select 1; commit"),
        [parse("kept", "select 1"), bind("", "kept", &[]), execute("", 0), sync()].concat(),
        [close(b'P', ""), sync()].concat(),
    ] {
        client.exchange(&request);
        let pid = client.value(PID);
        wait_until("it is idle", || pool(&ambassador, IDLE) == 1);
        let last = direct.value(&format!("select query from pg_stat_activity where pid = {pid}"));
        assert_eq!(last, PID, "something ran behind the client's last query");
    }
}

#[test]
fn limits_of_a_database_and_of_a_user_hold_over_all_pools() {
    database("pooling_limit_a");
    database("pooling_limit_b");
    let mut direct = Client::new(shared().port());
    for role in ["pooling_one", "pooling_two"] {
        direct.query(&format!("drop role if exists {role}"));
        direct.query(&format!("create role {role} superuser login"));
    }
    let port = shared().port();
    let file = shared().dir().join("limits.toml");
    let text = format!(
        "pool_size = 5\n\
         [databases.a]\nurl = \"postgres://127.0.0.1:{port}/pooling_limit_a?sslmode=disable\"\n\
         max_server_connections = 3\nmax_clients = 7\n\
         [databases.b]\nurl = \"postgres://127.0.0.1:{port}/pooling_limit_b?sslmode=disable\"\n\
         [users.pooling_two]\nmax_server_connections = 2\nmax_clients = 9\n"
    );
    std::fs::write(&file, text).unwrap();
    let ambassador = Ambassador::start(&["--config", file.to_str().unwrap()]);
    let login =
        |user: &str, database: &str| Client::try_login(ambassador.port, &[("user", user), ("database", database)]);
    let transactions = |user: &'static str, database: &'static str, count: usize| {
        std::thread::scope(|scope| {
            for _ in 0..count {
                scope.spawn(move || login(user, database).unwrap().query("select pg_sleep(0.02)"));
            }
        });
    };
    // The database's limit, by two users at once.
    let most = most_backends("pooling_limit_a", || {
        std::thread::scope(|scope| {
            scope.spawn(|| transactions("pooling_one", "a", 3));
            scope.spawn(|| transactions("pooling_two", "a", 3));
        });
    });
    assert!(most <= 3, "{most} backends of a database that may have 3");
    // A database without a limit is not limited by another's.
    let mut clients: Vec<Client> = (0..5).map(|_| login("pooling_one", "b").unwrap()).collect();
    clients.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
    assert_eq!(backends(&mut direct, "pooling_limit_b"), 5);
    drop(clients);
    // The user's limit, in two databases at once.
    let most = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut direct = Client::new(port);
            while !over.load(Ordering::Relaxed) {
                let sql = "select count(*) from pg_stat_activity where usename = 'pooling_two'";
                most.fetch_max(direct.value(sql).parse().unwrap(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let _ended = Ended(&over);
        std::thread::scope(|scope| {
            scope.spawn(|| transactions("pooling_two", "a", 4));
            scope.spawn(|| transactions("pooling_two", "b", 4));
        });
    });
    assert!(most.load(Ordering::Relaxed) <= 2, "{most:?} backends of a user who may have 2");
    // Clients of the database, and of the user.
    let refused = |user: &str, database: &str, limit: usize| {
        wait_until("earlier clients have left", || ambassador.show("CLIENTS").len() <= 1);
        let kept: Vec<Client> = (0..limit).map(|_| login(user, database).unwrap()).collect();
        let error = login(user, database).err().expect("one too many");
        assert_eq!((error.field(b'S').as_deref(), error.code().as_str()), (Some("FATAL"), "53300"));
        drop(kept);
    };
    refused("pooling_one", "a", 7);
    refused("pooling_two", "b", 9);
}

#[test]
fn a_cold_pgbench_with_many_clients_ends_without_an_error_in_every_mode() {
    const POOL: usize = 8;
    let url = database("pooling_bench");
    let prepared = ["-i", "-q", "-s", "1"];
    assert!(pgbench(shared().port(), "pooling_bench", &prepared).0, "pgbench -i");
    let failures = Mutex::new(Vec::new());
    for mode in ["transaction", "session", "statement"] {
        for protocol in ["simple", "extended", "prepared"] {
            for connect in [false, true] {
                let ambassador = Ambassador::start(&[&url, "--pool-size", &POOL.to_string(), "--pool-mode", mode]);
                let count = if connect { "4" } else { "10" };
                // A thread that waits for one client's statement to be prepared does not serve its others; in session
                // mode these may be the ones who have all servers.
                let threads = if mode == "session" { "64" } else { "2" };
                let mut args = vec!["-n", "-S", "-M", protocol, "-t", count, "-c", "64", "-j", threads];
                if connect {
                    args.push("-C");
                }
                let most = most_backends("pooling_bench", || {
                    let (ok, output) = pgbench(ambassador.port, "pooling_bench", &args);
                    if !ok || output.contains("aborted") {
                        failures.lock().unwrap().push(format!("{mode} {args:?}: {output}"));
                    }
                });
                assert!(most <= POOL, "{mode} {args:?}: {most} backends");
            }
        }
    }
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Runs pgbench; whether it succeeded, and what it said.
fn pgbench(port: u16, database: &str, args: &[&str]) -> (bool, String) {
    let mut command = Command::new("timeout");
    // It has no patience of its own.
    command.arg("60").arg(binaries().path("pgbench"));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "postgres"]).args(args).arg(database);
    command.env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable").stdin(Stdio::null());
    let output = command.output().expect("pgbench");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}
