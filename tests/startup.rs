//! From the first byte to the session: first packets, good and bad, and what strangers may cost.

use crate::support::client::{
    bind, close, cstr, describe, execute, flush, message, parse, query, startup, startup_version, sync,
};
use crate::support::{Ambassador, Chaos, Client, Rule, shared, url, wait_until};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;

const LOGIN: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];
const SSL: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

fn ambassador() -> Ambassador {
    Ambassador::start(&[url(shared())])
}

/// What is answered to these first bytes when nothing follows them: messages as `tag code`, and single bytes.
fn answer(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut client = Client::connect(port);
    let _ = client.try_send(bytes);
    let _ = client.stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    let _ = client.stream.read_to_end(&mut answer);
    answer
}

/// The severity and SQLSTATE of the error in an answer, or what it is instead.
fn verdict(answer: &[u8]) -> String {
    match answer.first() {
        None => return "silence".to_owned(),
        Some(b'R' | b'E') => {}
        Some(_) => return answer.escape_ascii().to_string(),
    }
    let mut rest = answer;
    while let Some((head, body)) = rest.split_first_chunk::<5>() {
        let len = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4;
        if head[0] == b'E' {
            let error = crate::support::client::Message { tag: b'E', body: body[..len].to_vec() };
            return format!("{} {}", error.field(b'V').unwrap_or_default(), error.code());
        }
        rest = &body[len..];
    }
    "a session".to_owned()
}

fn packet(len: i32, rest: &[u8]) -> Vec<u8> {
    [&len.to_be_bytes(), rest].concat()
}

#[test]
fn first_packets_that_are_none_get_what_postgresql_gives_them() {
    let ambassador = ambassador();
    let body = |bytes: &[u8]| packet(i32::try_from(bytes.len()).unwrap() + 8, &[&[0, 3, 0, 0], bytes].concat());
    let huge = format!("user\0postgres\0application_name\0{}\0\0", "x".repeat(9_900));
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("half a length", vec![0, 0]),
        ("half a packet", packet(100, &[0, 3, 0, 0])),
        ("a length of 0", packet(0, b"")),
        ("a length of 3", packet(3, b"")),
        ("a length of 4", packet(4, b"")),
        ("a length of 7", packet(7, &[0, 3, 0])),
        ("a negative length", packet(-1, &[0; 100])),
        ("the least length", packet(i32::MIN, &[0; 100])),
        ("the greatest length", packet(i32::MAX, &[0; 100])),
        ("10,004 bytes of zeros", packet(10_004, &[0; 10_000])),
        ("10,005 bytes", packet(10_005, &[0; 10_001])),
        ("http", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("no parameters at all", packet(8, &[0, 3, 0, 0])),
        ("an empty list", body(b"\0")),
        ("no terminator", body(b"user\0postgres\0")),
        ("a name without a value", body(b"user\0postgres\0database\0\0")),
        ("a name that does not end", body(b"user\0postgres\0database")),
        ("no user", body(b"database\0postgres\0\0")),
        ("an empty user", body(b"user\0\0\0")),
        ("protocol 4", packet(9, &[0, 4, 0, 0, 0])),
        ("protocol 1234.0", packet(9, &[4, 210, 0, 0, 0])),
        ("a cancel request without a key", packet(8, &[4, 210, 22, 46])),
        ("a cancel request for nobody", packet(16, &[4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 1])),
        ("a setting that does not exist", startup(&[LOGIN[0], LOGIN[1], ("no_such_setting", "1")])),
        ("a setting with a bad value", startup(&[LOGIN[0], LOGIN[1], ("DateStyle", "sideways")])),
        ("options with a setting that does not exist", startup(&[LOGIN[0], LOGIN[1], ("options", "-c nope=1")])),
        ("a database that does not exist", startup(&[LOGIN[0], ("database", "nowhere")])),
        ("a user that does not exist", startup(&[("user", "nobody_at_all"), LOGIN[1]])),
        ("almost 10,000 bytes", body(huge.as_bytes())),
        ("SSL, then nothing", SSL.to_vec()),
    ];
    for (name, bytes) in rows {
        let direct = verdict(&answer(shared().port(), &bytes));
        assert_eq!(verdict(&answer(ambassador.port, &bytes)), direct, "{name}");
    }
    // Here PostgreSQL answers in the format of that time.
    for old in [1, 2] {
        assert_eq!(verdict(&answer(ambassador.port, &packet(9, &[0, old, 0, 0, 0]))), "FATAL 0A000", "protocol {old}");
    }
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}

#[test]
fn an_older_minor_version_is_spoken_and_a_newer_one_is_negotiated_down() {
    let ambassador = ambassador();
    for (asked, spoken, options, key) in [
        (0u8, None, vec![], 4),
        (1, None, vec![], 4),
        (2, None, vec![], 32),
        (3, Some(2u8), vec![], 32),
        (255, Some(2), vec!["_pq_.a", "_pq_.b"], 32),
        (0, Some(0), vec!["_pq_.a"], 4),
        (2, Some(2), vec!["_pq_.test"], 32),
    ] {
        let mut params = LOGIN.to_vec();
        params.extend(options.iter().map(|option| (*option, "x")));
        let mut client = Client::connect(ambassador.port);
        client.send(&startup_version([0, 3, 0, asked], &params));
        let messages = client.read_until(b"Z").unwrap();
        let told = messages.iter().find(|m| m.tag == b'v').map(|m| m.body.clone());
        let expected = spoken.map(|minor| {
            let mut body = vec![0, 3, 0, minor, 0, 0, 0, u8::try_from(options.len()).unwrap()];
            body.extend(options.iter().flat_map(cstr));
            body
        });
        assert_eq!(told, expected, "3.{asked} {options:?}");
        let secret = messages.iter().find(|m| m.tag == b'K').unwrap().body.len() - 4;
        assert_eq!(secret, key, "3.{asked}: the length of the cancel secret");
        assert_eq!(client.value("select 1"), "1");
    }
}

#[test]
fn a_long_cancel_key_cancels_and_half_of_it_does_not() {
    let ambassador = ambassador();
    let mut client = Client::connect(ambassador.port);
    client.send(&startup_version([0, 3, 0, 2], &LOGIN));
    client.finish_login().unwrap();
    let cancel = |key: &[u8]| {
        let packet = packet(i32::try_from(key.len()).unwrap() + 8, &[&[4, 210, 22, 46], key].concat());
        assert!(answer(ambassador.port, &packet).is_empty());
    };
    client.send(&query("select pg_sleep(60)"));
    wait_until("the query runs", || {
        Client::new(shared().port())
            .value("select count(*) from pg_stat_activity where query = 'select pg_sleep(60)' and state = 'active'")
            != "0"
    });
    let mut wrong = client.key.clone();
    *wrong.last_mut().unwrap() ^= 1;
    for key in [&wrong[..], &client.key[..8], &client.key[..client.key.len() - 1]] {
        cancel(key);
    }
    // It still runs: had one of them worked, the server would have answered by the time it has answered this.
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
    client.stream.set_nonblocking(true).unwrap();
    assert!(client.stream.peek(&mut [0]).is_err());
    client.stream.set_nonblocking(false).unwrap();
    cancel(&client.key.clone());
    let messages = client.read_until(b"Z").unwrap();
    assert_eq!(messages[messages.len() - 2].code(), "57014", "{messages:?}");
}

#[test]
fn tls_and_gss_are_refused_with_one_byte_and_the_login_goes_on() {
    let ambassador = ambassador();
    for requests in [vec![SSL], vec![GSS], vec![SSL, GSS], vec![GSS, SSL]] {
        let mut client = Client::connect(ambassador.port);
        for request in &requests {
            client.send(request);
            let mut byte = [0];
            client.stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, *b"N");
        }
        client.send(&startup(&LOGIN));
        client.finish_login().unwrap();
        assert_eq!(client.value("select 1"), "1");
    }
}

#[test]
fn i12_requests_for_encryption_that_alternate_are_answered_once_each_and_then_no_more() {
    let ambassador = ambassador();
    let mut client = Client::connect(ambassador.port);
    for request in [GSS, SSL] {
        client.send(&request);
        let mut byte = [0];
        client.stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"N");
    }
    for request in [GSS, SSL].repeat(5_000) {
        if client.try_send(&request).is_err() {
            break;
        }
    }
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{}", rest.escape_ascii());
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}

#[test]
fn i12_bytes_behind_a_request_for_encryption_are_refused_as_postgresql_refuses_them() {
    let ambassador = ambassador();
    for (name, request) in [("SSL", SSL), ("GSS", GSS)] {
        let bytes = [request.to_vec(), startup(&LOGIN)].concat();
        let answer = answer(ambassador.port, &bytes);
        assert_eq!(verdict(&answer), "FATAL 08P01", "{name}");
        assert!(String::from_utf8_lossy(&answer).contains("received unencrypted data after"), "{name}");
    }
}

#[test]
fn i11_startup_parameters_of_a_stranger_change_nothing_for_anybody_else() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1", "-s", "paranoid=true"]);
    let hostile: &[&[(&str, &str)]] = &[
        &[("search_path", "evil, pg_catalog")],
        &[("options", "-c search_path=evil -c statement_timeout=60001")],
        &[("role", "pg_read_all_data")],
        &[("session_authorization", "postgres")],
        &[("is_superuser", "on")],
        &[("server_version", "99")],
        &[("DateStyle", "ISO'; drop table x; --")],
        &[("application_name", "'; select pg_sleep(100); --")],
        &[("application_name", "\u{1f980}\n\\'\"$1")],
        &[("default_transaction_read_only", "on"), ("statement_timeout", "1min")],
        &[("USER", "somebody"), ("DATABASE", "else")],
        &[("client_encoding", "SQL_ASCII")],
        &[("client_encoding", "no such")],
        &[("options", "-d 5 -E --nothing")],
        &[("options", "\\")],
        &[("user", "postgres"), ("user", "nobody")],
    ];
    let state = "select current_user, session_user, current_setting('search_path'), \
         current_setting('statement_timeout'), current_setting('default_transaction_read_only'), \
         current_setting('client_encoding'), current_setting('DateStyle'), current_setting('application_name')";
    let before = Client::new(ambassador.port).query(state);
    for params in hostile {
        let params: Vec<_> = LOGIN.iter().chain(*params).copied().collect();
        let direct =
            Client::try_login(shared().port(), &params).map(|mut client| client.try_query(state).map_err(|e| e.code()));
        let pooled =
            Client::try_login(ambassador.port, &params).map(|mut client| client.try_query(state).map_err(|e| e.code()));
        match (direct, pooled) {
            (Ok(direct), Ok(pooled)) => assert_eq!(pooled, direct, "{params:?}"),
            // Switches of the server program are not for a pooler to pass on.
            (_, Err(error)) if error.code() == "0A000" => assert!(params.iter().any(|(name, _)| *name == "options")),
            (direct, pooled) => {
                let code = |r: Result<_, crate::support::client::Message>| r.err().map(|error| error.code());
                assert_eq!(code(pooled.map(|_| ())), code(direct.map(|_| ())), "{params:?}");
            }
        }
        assert_eq!(Client::new(ambassador.port).query(state), before, "after {params:?}");
    }
}

#[test]
fn f22_who_is_slow_to_log_in_is_closed_and_keeps_nobody_out() {
    let ambassador = Ambassador::start(&[&url(shared()), "-s", "client_login_timeout=1s", "--workers", "1"]);
    let mut slow = Client::connect(ambassador.port);
    let packet = startup(&LOGIN);
    // A byte at a time keeps a timeout for each read from ever running out; there is one for all of it.
    let mut bytes = packet.iter().chain(std::iter::repeat(&0));
    wait_until("the slow one is closed", || {
        assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
        std::thread::sleep(std::time::Duration::from_millis(100));
        slow.stream.write_all(&[*bytes.next().unwrap()]).is_err()
    });
    let mut said = Vec::new();
    let _ = slow.stream.read_to_end(&mut said);
    assert!(said.is_empty(), "closed without a word: {}", said.escape_ascii());
    wait_until("it is counted", || ambassador.metric("pg_ambassador_login_timeouts_total") >= 1.0);
}

/// The sockets that a process has open.
fn sockets(pid: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter(|to| to.to_string_lossy().starts_with("socket:"))
        .count()
}

#[test]
fn f23_strangers_are_let_in_a_few_at_a_time_cost_no_server_and_a_client_is_served_after_them() {
    let ambassador = Ambassador::start(&[
        &url(shared()),
        "-s",
        "client_login_timeout=3s",
        "-s",
        "max_logins=4",
        "--workers",
        "2",
        "-s",
        "startup=listen-only",
    ]);
    let before = sockets(ambassador.pid());
    let strangers: Vec<Client> = (0..200).map(|_| Client::connect(ambassador.port)).collect();
    wait_until("the places are taken", || sockets(ambassador.pid()) >= before + 4);
    // A worker may have registered its own copy of the listening socket after the first count.
    let more = sockets(ambassador.pid()) - before;
    assert!(more <= 4 + 2, "max_logins are let in, not {more}");
    drop(strangers);
    assert_eq!(ambassador.show("SERVERS").len(), 0, "a stranger has cost a server");
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}

#[test]
fn f23_one_client_too_many_is_told_so_and_one_that_leaves_makes_room() {
    let ambassador = Ambassador::start(&[&url(shared()), "--max-clients", "3"]);
    let mut clients: Vec<Client> = (0..3).map(|_| Client::new(ambassador.port)).collect();
    for _ in 0..20 {
        let error = Client::try_login(ambassador.port, &LOGIN).err().expect("no place is left");
        assert_eq!((error.field(b'V').as_deref(), error.code().as_str()), (Some("FATAL"), "53300"));
        assert_eq!(error.field(b'M').as_deref(), Some("sorry, too many clients already"));
    }
    for client in &mut clients {
        assert_eq!(client.value("select 1"), "1");
    }
    clients.pop();
    wait_until("there is room", || Client::try_login(ambassador.port, &LOGIN).is_ok());
}

/// A conversation in which every type of message occurs that a client may send, and most that a server may.
fn every_message() -> Vec<Vec<u8>> {
    // int4pl(7, 8), in binary.
    let call =
        [&177u32.to_be_bytes()[..], &[0, 1, 0, 1, 0, 2, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, 8, 0, 1]].concat();
    vec![
        query("truncate split"),
        query("select 1; select 2 where false; notify nobody"),
        query("do $$ begin raise notice 'x'; end $$"),
        query(""),
        query("set application_name to 'split'"),
        query("copy split from stdin"),
        [message(b'd', b"1\tone\n"), message(b'd', b"2\ttwo\n"), message(b'c', b"")].concat(),
        query("copy split to stdout"),
        query("copy split from stdin"),
        message(b'f', &cstr("no")),
        [parse("s", "select a, b from split where a > $1::int order by a"), describe(b'S', "s"), sync()].concat(),
        [
            bind("p", "s", &[Some("0")]),
            describe(b'P', "p"),
            execute("p", 1),
            flush(),
            execute("p", 0),
            close(b'P', "p"),
            sync(),
        ]
        .concat(),
        [bind("", "s", &[None]), execute("", 0), close(b'S', "s"), sync()].concat(),
        [parse("", "select broken from"), bind("", "", &[]), execute("", 0), sync()].concat(),
        [parse("", ""), describe(b'S', ""), bind("", "", &[]), describe(b'P', ""), execute("", 0), sync()].concat(),
        message(b'F', &call),
    ]
}

/// The types of the messages that a conversation reads; and for those that say something, what.
fn play(client: &mut Client) -> Vec<String> {
    let mut read = Vec::new();
    for request in every_message() {
        let copying = request.ends_with(b"copy split from stdin\0");
        client.send(&request);
        let messages = client.read_until(if copying { b"G" } else { b"Z" });
        let messages = messages.unwrap_or_else(|error| panic!("{}: {error}", request.escape_ascii()));
        read.extend(messages.iter().map(|message| format!("{message:?}")));
    }
    read
}

#[test]
fn every_type_of_message_cut_at_each_byte_on_both_sides_says_the_same() {
    let mut owner = Client::new(shared().port());
    owner.query("create table split (a int, b text)");
    let direct = play(&mut owner);
    let tags: BTreeSet<char> = direct.iter().filter_map(|message| message.chars().next()).collect();
    for tag in "ZCDTtnsNESI123GHdcV".chars() {
        assert!(tags.contains(&tag), "the conversation has no {tag}: {tags:?}");
    }
    let upstream = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[format!("postgres://127.0.0.1:{}/?sslmode=disable", upstream.port)]);
    let downstream = Chaos::start(ambassador.port);
    for slice in [1, 2, 3, 5, 7, 64, 0] {
        for chaos in [&upstream, &downstream] {
            chaos.set_both(Rule { slice, ..Rule::default() });
        }
        let mut client = Client::new(downstream.port);
        let pooled = play(&mut client);
        let parameter = |message: &String| !message.starts_with('S');
        let without = |list: &[String]| list.iter().filter(|m| parameter(m)).cloned().collect::<Vec<_>>();
        let (pooled, direct) = (without(&pooled), without(&direct));
        for (pooled, direct) in pooled.iter().zip(&direct) {
            assert_eq!(pooled, direct, "in slices of {slice}");
        }
        assert_eq!(pooled.len(), direct.len(), "in slices of {slice}");
        assert_eq!(client.param("server_encoding"), Some("UTF8"));
    }
    owner.query("drop table split");
}

#[test]
fn a_login_cut_at_each_byte_is_a_login_or_is_over() {
    let ambassador = ambassador();
    let packet = startup(&LOGIN);
    for cut in 0..packet.len() {
        // In two parts, with a question in between that shows that the first has been read.
        let mut client = Client::connect(ambassador.port);
        client.send(&packet[..cut]);
        std::thread::sleep(std::time::Duration::from_micros(200));
        client.send(&packet[cut..]);
        client.finish_login().unwrap();
        // Half of it, and no more.
        assert!(answer(ambassador.port, &packet[..cut]).is_empty(), "{cut}");
    }
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}
