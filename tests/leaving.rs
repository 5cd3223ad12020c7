//! A client that leaves, at whatever byte and in whatever state, harms nobody who comes after it.
//!
//! Everywhere a pool of one: the next client is served by the very connection the last one left, or by a new one in its
//! place.

use crate::support::client::{Message, bind, cstr, describe, execute, message, parse, query, sync};
use crate::support::{Ambassador, Client, Random, shared, url, wait_until};
use std::net::Shutdown;
use std::time::Duration;

/// How a client leaves.
#[derive(Debug, Clone, Copy)]
enum Leave {
    /// In order, as far as TCP knows.
    Fin,
    /// The connection breaks.
    Reset,
    /// It says no more, but could still be told something.
    Half,
}

const LEAVES: [Leave; 3] = [Leave::Fin, Leave::Reset, Leave::Half];

/// Leaves; what comes back has to be kept until the next client was served.
fn leave(client: Client, how: Leave) -> Option<Client> {
    match how {
        Leave::Fin => None,
        Leave::Reset => {
            socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
            None
        }
        Leave::Half => {
            client.stream.shutdown(Shutdown::Write).unwrap();
            Some(client)
        }
    }
}

fn start(mode: &str) -> Ambassador {
    Ambassador::start(&[&url(shared()), "--pool-size", "1", "--pool-mode", mode, "--set", "paranoid=true"])
}

/// A table of the test's own.
fn table(name: &str) {
    let mut direct = Client::new(shared().port());
    direct.query(&format!("drop table if exists {name}; create table {name} (v text)"));
}

/// The next client: gets its own rows, on a session without a transaction; and how many rows of its table there are.
fn next_client(ambassador: &Ambassador, name: &str, after: &str) -> u64 {
    let mut next = Client::new(ambassador.port);
    let sql = format!("select 'mine {after}', txid_current_if_assigned() is null, (select count(*) from {name})");
    let rows = next.try_query(&sql).unwrap_or_else(|error| panic!("after {after}: {error:?}"));
    assert_eq!(rows.len(), 1, "after {after}");
    let [mine, clean, count] = rows[0].as_slice() else { panic!("after {after}: {rows:?}") };
    assert_eq!(mine.as_deref(), Some(format!("mine {after}").as_str()));
    assert_eq!(clean.as_deref(), Some("t"), "after {after}: a transaction was left open");
    // And with parameters: a Bind is where half a message of somebody else would do the most harm.
    let batch = [parse("", "select $1::text"), bind("", "", &[Some(after)]), execute("", 0), sync()].concat();
    let tags: Vec<u8> = next.exchange(&batch).iter().map(|m| m.tag).collect();
    assert_eq!(tags, b"12DCZ", "after {after}");
    next.send(&message(b'X', b""));
    count.as_deref().unwrap().parse().unwrap()
}

/// Cuts a request at each byte, in each way; only the whole request may have had an effect.
fn cut_everywhere(name: &str, before: &[&str], request: &[u8], whole_has_effect: bool) {
    table(name);
    let ambassador = start("transaction");
    for how in LEAVES {
        for len in 0..=request.len() {
            let mut client = Client::new(ambassador.port);
            for sql in before {
                client.query(sql);
            }
            client.send(&request[..len]);
            let kept = leave(client, how);
            let rows = next_client(&ambassador, name, &format!("{how:?} at byte {len} of {}", request.len()));
            drop(kept);
            if len < request.len() || !whole_has_effect {
                assert_eq!(rows, 0, "{how:?} at byte {len} of {}", request.len());
            } else {
                Client::new(shared().port()).query(&format!("truncate {name}"));
            }
        }
    }
}

#[test]
fn i03_a_client_that_leaves_at_any_byte_of_a_query_harms_nobody() {
    cut_everywhere("leaving_simple", &[], &query("insert into leaving_simple values ('x')"), true);
}

fn insert_batch(name: &str) -> Vec<u8> {
    [
        parse("s", &format!("insert into {name} values ($1)")),
        bind("p", "s", &[Some("some value or other")]),
        describe(b'P', "p"),
        execute("p", 0),
        sync(),
    ]
    .concat()
}

#[test]
fn i03_a_client_that_leaves_at_any_byte_of_a_batch_harms_nobody() {
    cut_everywhere("leaving_batch", &[], &insert_batch("leaving_batch"), true);
}

#[test]
fn i03_a_client_that_leaves_in_a_message_that_has_gone_to_the_server_in_part_harms_nobody() {
    table("leaving_large");
    let ambassador = start("transaction");
    let text = "x".repeat(300_000);
    let insert = parse("", "insert into leaving_large values ($1)");
    let bound = [insert, bind("", "", &[Some(&text)]), execute("", 0), sync()].concat();
    for request in [query(format!("insert into leaving_large values ('{text}')")), bound] {
        for how in LEAVES {
            for len in [1_000, 65_535, 65_536, 70_000, 131_072, 200_000, 300_000] {
                let mut client = Client::new(ambassador.port);
                client.send(&request[..len]);
                let kept = leave(client, how);
                assert_eq!(next_client(&ambassador, "leaving_large", &format!("{how:?} at byte {len}")), 0);
                drop(kept);
            }
        }
    }
}

#[test]
fn i02_a_client_that_leaves_in_its_transaction_is_rolled_back_whatever_it_was_saying() {
    let before = ["begin", "insert into leaving_transaction values ('not to be seen')"];
    cut_everywhere("leaving_transaction", &before, &query("select 1"), false);
    cut_everywhere("leaving_transaction_batch", &["begin"], &insert_batch("leaving_transaction_batch"), false);
}

#[test]
fn i02_a_client_that_leaves_a_failed_transaction_is_rolled_back() {
    table("leaving_failed");
    let ambassador = start("transaction");
    for how in LEAVES {
        let mut client = Client::new(ambassador.port);
        client.query("begin; select 1");
        client.query("insert into leaving_failed values ('not to be seen')");
        client.try_query("select 1/0").unwrap_err();
        let kept = leave(client, how);
        assert_eq!(next_client(&ambassador, "leaving_failed", &format!("{how:?}")), 0);
        drop(kept);
    }
}

#[test]
fn f25_a_client_that_leaves_in_copy_in_has_stored_nothing() {
    for (mode, name) in [("transaction", "leaving_copy_in"), ("session", "leaving_copy_in_session")] {
        table(name);
        let ambassador = start(mode);
        let data = [message(b'd', b"one\n"), message(b'd', b"two\n"), message(b'c', b"")].concat();
        for how in LEAVES {
            for len in 0..data.len() {
                let mut client = Client::new(ambassador.port);
                client.send(&query(format!("copy {name} from stdin")));
                assert_eq!(client.read().unwrap().tag, b'G');
                client.send(&data[..len]);
                let kept = leave(client, how);
                let rows = next_client(&ambassador, name, &format!("{how:?} at byte {len}"));
                drop(kept);
                assert_eq!(rows, 0, "{how:?} at byte {len}: part of a COPY was committed");
            }
        }
    }
}

#[test]
fn f25_a_client_that_leaves_before_it_is_asked_for_copy_data_has_stored_nothing() {
    table("leaving_copy_early");
    let ambassador = start("transaction");
    let data = message(b'd', b"one\n");
    let extended = [
        parse("", "copy leaving_copy_early from stdin"),
        bind("", "", &[]),
        execute("", 0),
        sync(),
        message(b'd', b"one\n"),
    ]
    .concat();
    let simple = query("copy leaving_copy_early from stdin");
    for (what, request) in [("alone", simple.clone()), ("with data", [simple, data].concat()), ("extended", extended)] {
        for how in LEAVES {
            let mut client = Client::new(ambassador.port);
            client.send(&request);
            let kept = leave(client, how);
            assert_eq!(next_client(&ambassador, "leaving_copy_early", &format!("{how:?} {what}")), 0);
            drop(kept);
        }
    }
}

#[test]
fn f26_a_client_that_leaves_a_running_query_does_not_keep_the_server() {
    table("leaving_query");
    let ambassador = start("transaction");
    for how in LEAVES {
        let mut client = Client::new(ambassador.port);
        client.send(&query(format!("select pg_sleep(3600), 'left by {how:?}'")));
        wait_until("the query runs", || running(&format!("left by {how:?}")) == 1);
        let kept = leave(client, how);
        next_client(&ambassador, "leaving_query", &format!("{how:?}"));
        wait_until("the query was cancelled", || running(&format!("left by {how:?}")) == 0);
        drop(kept);
    }
}

fn running(marker: &str) -> usize {
    let sql = format!(
        "select count(*) from pg_stat_activity where state = 'active' and query like '%{marker}%' and pid <> pg_backend_pid()"
    );
    Client::new(shared().port()).value(&sql).parse().unwrap()
}

#[test]
fn f26_a_client_that_leaves_a_large_result_does_not_keep_the_server() {
    table("leaving_result");
    let ambassador = start("transaction");
    let rows = "select repeat('x', 1000) from generate_series(1, 20000)";
    for sql in [rows.to_owned(), format!("copy ({rows}) to stdout"), "select repeat('y', 10000000)".to_owned()] {
        for how in LEAVES {
            for messages in [0, 10] {
                let mut client = Client::new(ambassador.port);
                client.send(&query(&sql));
                for _ in 0..messages.min(if sql.contains("'y'") { 1 } else { 10 }) {
                    client.read().unwrap();
                }
                let kept = leave(client, how);
                next_client(
                    &ambassador,
                    "leaving_result",
                    &format!("{how:?} after {messages} messages of {}", sql.replace('\'', "")),
                );
                drop(kept);
            }
        }
    }
}

#[test]
fn f26_who_says_goodbye_in_front_of_a_large_result_and_does_not_read_it_is_not_waited_for() {
    // With more than this kept for it a client is not read for requests any more.
    const MUCH: f64 = 64.0 * 1024.0;
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let kept = || ambassador.metric("pg_ambassador_buffer_bytes");
    let mut direct = Client::new(shared().port());
    let mut rounds = 0;
    // How much of it is kept here and how much by the system is the system's choice.
    for _ in 0..100 {
        if rounds == 3 {
            return;
        }
        let mut client = Client::new(ambassador.port);
        client.send(&query("select repeat('goodbye', 2000000)"));
        client.read().unwrap();
        let waiting =
            "select count(*) from pg_stat_activity where wait_event = 'ClientWrite' and query like '%goodbye%'";
        wait_until("its server waits", || direct.value(waiting) == "1");
        rounds += usize::from(kept() > MUCH);
        client.stream.shutdown(Shutdown::Write).unwrap();
        // Long before client_write_timeout.
        wait_until("it is gone", || ambassador.show("CLIENTS").is_empty());
        assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
    }
    panic!("in {rounds} of 100 rounds only much was kept for the client");
}

#[test]
fn i05_a_statement_whose_preparation_its_client_left_is_not_taken_for_prepared() {
    let ambassador = start("transaction");
    for round in 0..20 {
        for how in LEAVES {
            let sql = format!("select {round}, $1::text");
            let mut client = Client::new(ambassador.port);
            let batch = [parse("same", &sql), bind("", "same", &[Some("x")]), execute("", 0)].concat();
            client.send(&batch[..if round % 2 == 0 { batch.len() } else { parse("same", &sql).len() }]);
            let kept = leave(client, how);
            let mut next = Client::new(ambassador.port);
            let batch =
                [parse("same", &sql), sync(), bind("", "same", &[Some("mine")]), execute("", 0), sync()].concat();
            next.send(&batch);
            let first: Vec<u8> = next.read_until(b"Z").unwrap().iter().map(|m| m.tag).collect();
            assert_eq!(first, b"1Z", "round {round} {how:?}");
            let second = next.read_until(b"Z").unwrap();
            let row = second.iter().find(|m| m.tag == b'D').unwrap_or_else(|| panic!("{second:?}"));
            assert_eq!(row.columns()[1].as_deref(), Some("mine"));
            drop(kept);
        }
    }
}

/// What a client is to be told for what it sent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Row(String),
    Error,
    Ready,
}

/// One batch: bytes, and what has to come back for them. `failed`: the transaction it is part of has failed.
fn batch(random: &mut Random, nonce: &str) -> (Vec<u8>, Vec<Told>) {
    let row = |suffix: &str| Told::Row(format!("{nonce}{suffix}"));
    let select = |suffix: &str| format!("select '{nonce}{suffix}'");
    let echo = |suffix: &str| [bind("", "", &[Some(&format!("{nonce}{suffix}"))]), execute("", 0)].concat();
    let start = parse("", "select $1::text");
    let fails = [parse("", "select 1/$1::int"), bind("", "", &[Some("0")]), execute("", 0)].concat();
    match random.below(9) {
        0 => (query(select("")), vec![row(""), Told::Ready]),
        1 => {
            let sql = format!("{}; select 1/0; {}", select("a"), select("b"));
            (query(sql), vec![row("a"), Told::Error, Told::Ready])
        }
        2 => ([start, echo(""), sync()].concat(), vec![row(""), Told::Ready]),
        3 => ([parse("", "selec"), echo("x"), sync()].concat(), vec![Told::Error, Told::Ready]),
        4 => {
            let bytes = [start.clone(), echo("a"), fails, start, echo("b"), sync()].concat();
            (bytes, vec![row("a"), Told::Error, Told::Ready])
        }
        5 => {
            let parts = [
                query("begin"),
                [start, echo("a"), sync()].concat(),
                query("select 1/0"),
                query(select("b")),
                query("rollback"),
                query(select("c")),
            ];
            let told = vec![
                Told::Ready,
                row("a"),
                Told::Ready,
                Told::Error,
                Told::Ready,
                Told::Error,
                Told::Ready,
                Told::Ready,
                row("c"),
                Told::Ready,
            ];
            (parts.concat(), told)
        }
        6 => {
            let batch = [parse(nonce, "select $1::text"), bind("", nonce, &[Some(nonce)]), execute("", 0), sync()];
            (batch.concat(), vec![row(""), Told::Ready])
        }
        7 => ([bind("", "no such statement", &[]), sync()].concat(), vec![Told::Error, Told::Ready]),
        _ => (sync(), vec![Told::Ready]),
    }
}

fn told(message: &Message) -> Option<Told> {
    match message.tag {
        b'D' => Some(Told::Row(message.columns()[0].clone().unwrap_or_default())),
        b'E' => Some(Told::Error),
        b'Z' => Some(Told::Ready),
        _ => None,
    }
}

#[test]
fn i01_every_row_is_its_own_clients_however_many_batches_fail_in_a_pipeline() {
    const CLIENTS: u64 = 6;
    const ROUNDS: u64 = 25;
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "2", "--set", "paranoid=true"]);
    let port = ambassador.port;
    std::thread::scope(|scope| {
        for id in 0..CLIENTS {
            scope.spawn(move || {
                let mut client = Client::new(port);
                for round in 0..ROUNDS {
                    let seed = id << 32 | round;
                    let mut random = Random::new(seed);
                    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
                    for at in 0..1 + random.below(64) {
                        let nonce = format!("{id}-{round}-{at}-{:x}", random.next());
                        let (more, told) = batch(&mut random, &nonce);
                        bytes.extend(more);
                        expected.extend(told);
                    }
                    client.send(&bytes);
                    let readies = expected.iter().filter(|told| **told == Told::Ready).count();
                    if random.one_in(4) {
                        // Leave in the middle of the answers, or before them; others must not notice.
                        for _ in 0..random.below(readies) {
                            client.read_until(b"Z").unwrap();
                        }
                        let left = std::mem::replace(&mut client, Client::new(port));
                        leave(left, if random.one_in(2) { Leave::Fin } else { Leave::Reset });
                        continue;
                    }
                    let mut got = Vec::new();
                    for _ in 0..readies {
                        got.extend(client.read_until(b"Z").unwrap().iter().filter_map(told));
                    }
                    assert_eq!(got, expected, "seed {seed:#x}");
                }
            });
        }
    });
}

#[test]
fn i25_no_server_stays_with_a_client_that_is_gone() {
    table("leaving_watch");
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "4"]);
    let requests = [
        query("begin"),
        query("select pg_sleep(0.05)"),
        query("copy leaving_watch from stdin"),
        query("select generate_series(1, 100000)"),
        insert_batch("leaving_watch")[..60].to_vec(),
        cstr("Q\0\0\0"),
    ];
    for (at, how) in (0..60).map(|at| (at, LEAVES[at % 3])) {
        let mut client = Client::new(ambassador.port);
        client.send(&requests[at % requests.len()]);
        drop(leave(client, how));
    }
    wait_until("no server is with a client", || {
        let pools = ambassador.show("POOLS");
        let busy = |column: usize| pools.iter().all(|row| row[column].as_deref() == Some("0"));
        // cl_active, cl_waiting, sv_active, sv_being_canceled, sv_tested
        [2, 3, 6, 8, 11].into_iter().all(busy)
    });
}
