//! Malformed input on both sides: the one who sends it gets what PostgreSQL would give it, and everybody else notices nothing.

use crate::support::client::{bind, close, describe, execute, message, parse, query, startup, sync};
use crate::support::hostile::{Visit, answer, resident, wait_for_visits, welcome};
use crate::support::{Ambassador, Client, Dir, Hostile, shared, wait_until};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const USER: (&str, &str) = ("user", "postgres");

/// How much more memory an ambassador may have after it has met somebody hostile. What they send is far more.
const GROWTH: u64 = 24 << 20;

/// An ambassador with a good server and bad ones: databases `good`, and the others by their names.
struct Between {
    ambassador: Ambassador,
    _dir: Dir,
    resident: u64,
}

impl Between {
    fn new(bad: &[(&str, &str)], settings: &str) -> Self {
        let dir = Dir::new();
        let mut text = format!(
            "checkout_timeout = \"1s\"\nserver_connect_timeout = \"1s\"\n{settings}\n[databases.good]\nurl = \"postgres://127.0.0.1:{}/postgres?sslmode=disable\"\n",
            shared().port()
        );
        for (name, url) in bad {
            text.push_str(&format!("[databases.{name}]\nurl = \"{url}\"\n"));
        }
        let config = dir.write("ambassador.toml", &text);
        let ambassador = Ambassador::start(&["--config", config.to_str().unwrap()]);
        let between = Self { resident: 0, ambassador, _dir: dir };
        between.innocent("before");
        let resident = resident(between.ambassador.pid());
        Self { resident, ..between }
    }

    /// With one bad server, in database `bad`.
    fn with(hostile: &Hostile, query: &str) -> Self {
        Self::new(&[("bad", &format!("postgres://127.0.0.1:{}/bad?{query}", hostile.port))], "")
    }

    fn login(&self, database: &str) -> Result<Client, crate::support::client::Message> {
        Client::try_login(self.ambassador.port, &[USER, ("database", database)])
    }

    /// Somebody who has nothing to do with it is served as ever.
    fn innocent(&self, after: &str) {
        let mut client = self.login("good").unwrap_or_else(|error| panic!("after {after}: {error:?}"));
        assert_eq!(client.value("select 6 * 7"), "42", "after {after}");
    }

    fn has_not_grown(&self, after: &str) {
        let now = resident(self.ambassador.pid());
        assert!(now < self.resident + GROWTH, "after {after}: {} KiB more", (now - self.resident) / 1024);
    }
}

// ---------------------------------------------------------------------------------------------------- hostile clients

/// What a server does with a logged-in client that sends this: the messages, and that the connection ends.
fn told(port: u16, bytes: &[u8]) -> Vec<String> {
    let mut client = Client::login(port, &[USER, ("database", "postgres")]);
    client.send(bytes);
    let mut messages = Vec::new();
    while let Ok(message) = client.read() {
        messages.push(match message.tag {
            b'E' => format!("E {} {:?}", message.code(), message.field(b'M')),
            tag => format!("{}", char::from(tag)),
        });
    }
    messages
}

fn header(tag: u8, length: i32) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(length.to_be_bytes());
    bytes
}

#[test]
fn i15_a_length_that_cannot_be_ends_the_connection_without_a_word_as_in_postgresql() {
    let ambassador = Ambassador::start(&[crate::support::url(shared())]);
    let lengths = [0, 1, 3, -1, -4, i32::MIN, i32::MAX];
    for tag in *b"QPBDECSHFdcf" {
        for length in lengths {
            let bytes = header(tag, length);
            // What PostgreSQL does is the measure; it is asked for one type, it has one function for all.
            if tag == b'Q' {
                assert_eq!(told(shared().port(), &bytes), Vec::<String>::new(), "PostgreSQL, {length}");
            }
            assert_eq!(told(ambassador.port, &bytes), Vec::<String>::new(), "{} {length}", char::from(tag));
        }
    }
    for tag in *b"SHDEC" {
        assert_eq!(told(ambassador.port, &header(tag, 10_001)), Vec::<String>::new(), "{}", char::from(tag));
    }
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}

#[test]
fn a_message_type_that_no_client_sends_is_refused_in_postgresqls_words() {
    let ambassador = Ambassador::start(&[crate::support::url(shared())]);
    // Unknown ones, those that only servers send, and a password that nobody has asked for.
    for tag in *b"\0\x01?!aZRTKIGVWAtnNsv123p\xff\x80" {
        let bytes = message(tag, b"\0\0\0\0");
        let direct = told(shared().port(), &bytes);
        assert_eq!(direct, [format!("E 08P01 Some(\"invalid frontend message type {tag}\")")]);
        assert_eq!(told(ambassador.port, &bytes), direct, "{tag}");
    }
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}

#[test]
fn what_was_asked_before_a_bad_message_is_still_answered() {
    let ambassador = Ambassador::start(&[crate::support::url(shared())]);
    for (before, bad) in [
        (query("select 1"), message(b'?', b"")),
        (query("select 1"), header(b'Q', 1)),
        ([crate::support::client::parse("", "select 1"), bind("", "", &[])].concat(), message(b'?', b"")),
        (query("begin; select 1"), message(b'?', b"")),
    ] {
        let bytes = [before, bad].concat();
        assert_eq!(told(ambassador.port, &bytes), told(shared().port(), &bytes), "{}", bytes.escape_ascii());
    }
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}

#[test]
fn bodies_that_are_not_what_their_type_says_are_answered_as_postgresql_answers_them() {
    let ambassador = Ambassador::start(&[crate::support::url(shared()), "--pool-size".into(), "2".into()]);
    let bad_bind = |counts: &[u8]| message(b'B', &[b"\0\0", counts].concat());
    let rows: &[Vec<u8>] = &[
        message(b'Q', b"select 1"),
        message(b'Q', b""),
        message(b'Q', b"select 1\0more\0"),
        message(b'P', b""),
        message(b'P', b"x"),
        message(b'P', b"\0select 1\0\0\x05"),
        message(b'P', b"\0select 1\0\xff\xff"),
        message(b'D', b""),
        message(b'D', b"X\0"),
        message(b'D', b"Sx"),
        message(b'C', b"Q\0"),
        message(b'C', b""),
        message(b'E', b""),
        message(b'E', b"\0\0"),
        message(b'S', b"x"),
        message(b'H', b"x"),
        message(b'F', b""),
        message(b'F', b"\0\0\0\x01\xff\xff"),
    ];
    let binds = [
        bad_bind(b""),
        bad_bind(b"\xff\xff"),
        bad_bind(b"\0\0\xff\xff"),
        bad_bind(b"\0\0\0\x01\x7f\xff\xff\xff"),
        bad_bind(b"\0\0\0\x01\x80\0\0\0"),
        bad_bind(b"\0\0\0\x01\xff\xff\xff\xfe\0\0"),
        bad_bind(b"\0\x01\0\x07\0\0\0\0"),
        message(b'B', b"\0"),
    ];
    let binds = binds.map(|bad| [crate::support::client::parse("", "select $1::text"), bad].concat());
    for bad in rows.iter().chain(&binds) {
        // A Sync, so that there is an answer to wait for, and then the end.
        let bytes = [bad.as_slice(), &crate::support::client::sync(), &message(b'X', b"")].concat();
        assert_eq!(told(ambassador.port, &bytes), told(shared().port(), &bytes), "{}", bytes.escape_ascii());
        assert_eq!(Client::new(ambassador.port).value("select 1"), "1", "after {}", bytes.escape_ascii());
    }
}

// ---------------------------------------------------------------------------------------------------- hostile servers

/// What becomes of a client that wants the hostile server's database: the SQLSTATE and message it is told.
fn refusal(between: &Between) -> (String, String) {
    match between.login("bad") {
        Ok(_) => panic!("it was let in"),
        Err(error) => (error.code(), error.field(b'M').unwrap_or_default()),
    }
}

type Script = fn(&mut Visit) -> io::Result<()>;
type AnyScript = Box<dyn Fn(&mut Visit) -> io::Result<()> + Send + Sync>;

fn auth(method: i32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&method.to_be_bytes(), rest].concat())
}

/// Takes the client's first SCRAM message and answers it with this, in which `{r}` is the client's nonce.
fn challenge(visit: &mut Visit, template: &str) -> io::Result<()> {
    visit.startup()?;
    visit.send(&auth(10, b"SCRAM-SHA-256\0\0"))?;
    let first = String::from_utf8_lossy(&visit.read()?.body).into_owned();
    let nonce = first.rsplit("r=").next().unwrap().to_owned();
    visit.send(&auth(11, template.replace("{r}", &nonce).as_bytes()))?;
    visit.wait_for_the_end()
}

#[test]
fn f33_a_server_that_breaks_the_login_costs_its_own_clients_the_login_and_nobody_else_anything() {
    let long = "x".repeat(64 * 1024 - 200);
    let scripts: Vec<(&str, AnyScript)> = vec![
        ("closes", Box::new(|_| Ok(()))),
        ("says nothing", Box::new(Visit::wait_for_the_end)),
        ("i16: an error without any field", Box::new(|v| v.startup().and_then(|_| v.send(&message(b'E', b"\0"))))),
        ("i16: an error without a body", Box::new(|v| v.startup().and_then(|_| v.send(&message(b'E', b""))))),
        ("i16: a short SQLSTATE", Box::new(|v| v.startup().and_then(|_| v.send(&message(b'E', b"C1\0Mx\0\0"))))),
        ("garbage", Box::new(|v| v.startup().and_then(|_| v.send(&[0xff; 4000])).and_then(|()| v.wait_for_the_end()))),
        (
            "a length of 0",
            Box::new(|v| v.startup().and_then(|_| v.send(&header(b'R', 0))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "a length of 3",
            Box::new(|v| v.startup().and_then(|_| v.send(&header(b'R', 3))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "a negative length",
            Box::new(|v| v.startup().and_then(|_| v.send(&header(b'E', -1))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "a huge length",
            Box::new(|v| v.startup().and_then(|_| v.send(&header(b'E', i32::MAX))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "a huge error",
            Box::new(|v| v.startup().and_then(|_| v.send(&header(b'E', 1 << 30))).and_then(|()| v.send_for_ever(b"M"))),
        ),
        (
            "a row",
            Box::new(|v| v.startup().and_then(|_| v.send(&message(b'D', b"\0\0"))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "ready at once",
            Box::new(|v| v.startup().and_then(|_| v.send(&message(b'Z', b"I"))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "in a transaction",
            Box::new(|v| {
                v.startup()?;
                v.send(&[auth(0, b""), message(b'Z', b"T")].concat())?;
                v.wait_for_the_end()
            }),
        ),
        (
            "an impossible status",
            Box::new(|v| {
                v.startup()?;
                v.send(&[auth(0, b""), message(b'Z', b"?")].concat())?;
                v.wait_for_the_end()
            }),
        ),
        (
            "a key of no length",
            Box::new(|v| {
                v.startup()?;
                v.send(&[auth(0, b""), message(b'K', b"\0\0\0\x01")].concat())?;
                v.wait_for_the_end()
            }),
        ),
        (
            "a setting without a value",
            Box::new(|v| {
                v.startup()?;
                v.send(&[auth(0, b""), message(b'S', b"x\0")].concat())?;
                v.wait_for_the_end()
            }),
        ),
        ("Kerberos", Box::new(|v| v.startup().and_then(|_| v.send(&auth(2, b""))).and_then(|()| v.wait_for_the_end()))),
        (
            "i13: the password in clear, over plain TCP",
            Box::new(|v| v.startup().and_then(|_| v.send(&auth(3, b""))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "SASL with no mechanism",
            Box::new(|v| v.startup().and_then(|_| v.send(&auth(10, b"\0"))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "SASL with another mechanism",
            Box::new(|v| v.startup().and_then(|_| v.send(&auth(10, b"PLAIN\0\0"))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "the end of SASL first",
            Box::new(|v| v.startup().and_then(|_| v.send(&auth(12, b"v=x"))).and_then(|()| v.wait_for_the_end())),
        ),
        (
            "success in the middle of SASL",
            Box::new(|v| {
                v.startup()?;
                v.send(&auth(10, b"SCRAM-SHA-256\0\0"))?;
                v.read()?;
                v.send(&welcome())?;
                v.wait_for_the_end()
            }),
        ),
        ("i14: no iterations", Box::new(|v| challenge(v, "r={r}x,s=AAAA,i=0"))),
        ("i14: fewer than no iterations", Box::new(|v| challenge(v, "r={r}x,s=AAAA,i=-1"))),
        ("i14: two billion iterations", Box::new(|v| challenge(v, "r={r}x,s=AAAA,i=2147483647"))),
        ("i14: a nonce of 64 KiB", {
            let template = format!("r={{r}}{long},s=AAAA,i=4096");
            Box::new(move |v| challenge(v, &template))
        }),
        ("i14: a salt of 64 KiB", {
            let template = format!("r={{r}}x,s={long},i=4096");
            Box::new(move |v| challenge(v, &template))
        }),
        ("somebody else's nonce", Box::new(|v| challenge(v, "r=xyz,s=AAAA,i=4096"))),
        ("notices without end", Box::new(|v| v.startup().and_then(|_| v.send_for_ever(&message(b'N', b"SX\0Mx\0\0"))))),
        (
            "settings without end",
            Box::new(|v| {
                v.startup()?;
                v.send(&auth(0, b""))?;
                for number in 0u64.. {
                    v.send(&message(b'S', format!("s{number}\0{}\0", "v".repeat(8000)).as_bytes()))?;
                }
                Ok(())
            }),
        ),
    ];
    let names: Vec<&str> = scripts.iter().map(|(name, _)| *name).collect();
    let servers: Vec<Hostile> = scripts.into_iter().map(|(_, script)| Hostile::start(script)).collect();
    let urls: Vec<(String, String)> = servers
        .iter()
        .enumerate()
        .map(|(at, server)| {
            (format!("bad{at}"), format!("postgres://u:hunter2@127.0.0.1:{}/bad?sslmode=disable", server.port))
        })
        .collect();
    let urls: Vec<(&str, &str)> = urls.iter().map(|(name, url)| (name.as_str(), url.as_str())).collect();
    let between = Between::new(&urls, "");
    std::thread::scope(|scope| {
        for (at, name) in names.iter().enumerate() {
            let (between, urls, servers) = (&between, &urls, &servers);
            scope.spawn(move || {
                let Err(error) = between.login(urls[at].0) else { panic!("{name}: it was let in") };
                assert_eq!(error.field(b'V').as_deref(), Some("FATAL"), "{name}: {error:?}");
                assert_ne!(error.code(), "28P01", "{name}: the client's own password was right");
                assert!(servers[at].visits() > 0, "{name}");
                assert!(!servers[at].has_heard(b"hunter2"), "{name}: the password went over the wire");
                between.innocent(name);
            });
        }
    });
    between.has_not_grown("all of them");
}

#[test]
fn i14_absurd_scram_parameters_are_our_own_error_and_are_not_tried_again_and_again() {
    let hostile = Hostile::start(|visit: &mut Visit| challenge(visit, "r={r}x,s=AAAA,i=2147483647"));
    let between =
        Between::new(&[("bad", &format!("postgres://u:p@127.0.0.1:{}/bad?sslmode=disable", hostile.port))], "");
    for _ in 0..20 {
        let (code, message) = refusal(&between);
        assert_eq!(code, "08001", "{message}");
        assert!(message.starts_with("pg-ambassador: "), "{message}");
    }
    // faults.md I17: at once, and then not before five seconds have passed; this takes less.
    assert!(hostile.visits() <= 2, "{} attempts", hostile.visits());
}

#[test]
fn f33_a_server_that_speaks_unasked_while_idle_is_thrown_away_and_its_client_notices_nothing() {
    let unasked: [(&str, Vec<u8>); 6] = [
        ("a row", message(b'D', b"\0\0")),
        ("ready", message(b'Z', b"I")),
        ("an error", message(b'E', b"SERROR\0C42601\0Mx\0\0")),
        ("a setting", message(b'S', b"x\0y\0")),
        ("half a message", b"D\0\0".to_vec()),
        ("garbage", vec![0xff; 100]),
    ];
    for (name, bytes) in unasked {
        let [(now, told), (done, sent)] = [(); 2].map(|()| {
            let flag = Arc::new(AtomicBool::new(false));
            (Arc::clone(&flag), flag)
        });
        let hostile = Hostile::start(move |visit: &mut Visit| {
            visit.welcome()?;
            if visit.number > 0 {
                return visit.serve("second");
            }
            visit.read()?;
            visit.send(&answer("first"))?;
            // Only when the answer has been read for sure: what comes with it is another case.
            visit.read()?;
            visit.send(&answer("first again"))?;
            while !told.load(Ordering::SeqCst) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            visit.send(&bytes)?;
            sent.store(true, Ordering::SeqCst);
            visit.wait_for_the_end()
        });
        let between = Between::with(&hostile, "sslmode=disable");
        let mut client = between.login("bad").unwrap();
        assert_eq!(client.value("select 1"), "first", "{name}");
        assert_eq!(client.value("select 1"), "first again", "{name}");
        now.store(true, Ordering::SeqCst);
        wait_until("it has spoken", || done.load(Ordering::SeqCst));
        assert_eq!(client.value("select 1"), "second", "{name}");
        wait_for_visits(&hostile, 2);
        between.innocent(name);
    }
}

#[test]
fn f33_a_server_that_breaks_the_protocol_while_busy_costs_its_owner_the_session_and_nobody_else_anything() {
    let scripts: Vec<(&str, Script)> = vec![
        ("a login message", |v| v.send(&auth(0, b""))),
        ("a key", |v| v.send(&message(b'K', &[0; 8]))),
        ("an answer to no Parse", |v| v.send(&message(b'1', b""))),
        ("an answer to no Bind", |v| v.send(&message(b'2', b""))),
        ("an unknown type", |v| v.send(&message(b'?', b""))),
        ("a length of 0", |v| v.send(&header(b'C', 0))),
        ("a negative length", |v| v.send(&header(b'D', -5))),
        ("an impossible status", |v| v.send(&message(b'Z', b"?"))),
        ("a status of no length", |v| v.send(&message(b'Z', b""))),
        ("a setting without a name", |v| v.send(&message(b'S', b""))),
        ("ready twice", |v| v.send(&[message(b'C', b"X\0"), message(b'Z', b"I"), message(b'Z', b"I")].concat())),
    ];
    for (name, script) in scripts {
        let hostile = Hostile::start(move |visit: &mut Visit| {
            visit.welcome()?;
            while visit.read()?.tag != b'Q' {}
            script(visit)?;
            visit.wait_for_the_end()
        });
        let between = Between::with(&hostile, "sslmode=disable");
        let mut client = between.login("bad").unwrap();
        client.send(&query("select 1"));
        let mut messages = Vec::new();
        while let Ok(message) = client.read() {
            messages.push(message);
        }
        let last = messages.last().unwrap_or_else(|| panic!("{name}: no answer"));
        assert_eq!((last.tag, last.code().as_str()), (b'E', "08P01"), "{name}: {messages:?}");
        assert_eq!(last.field(b'M').as_deref(), Some("pg-ambassador: server protocol violation"), "{name}");
        assert_eq!(messages.iter().filter(|m| m.tag == b'E').count(), 1, "i28, {name}: {messages:?}");
        between.innocent(name);
    }
}

#[test]
fn f33_a_server_that_breaks_the_protocol_again_and_again_is_left_alone() {
    let hostile = Hostile::start(move |visit: &mut Visit| {
        visit.welcome()?;
        while visit.read()?.tag != b'Q' {}
        visit.send(&message(b'?', b""))?;
        visit.wait_for_the_end()
    });
    let url = format!("postgres://127.0.0.1:{}/bad?sslmode=disable", hostile.port);
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1", "--checkout-timeout", "1s"]);
    for _ in 0..3 {
        let mut client = Client::login(ambassador.port, &[("user", "postgres"), ("database", "bad")]);
        client.send(&query("select 1"));
        assert_eq!(client.read_until(b"E").unwrap().last().unwrap().code(), "08P01");
    }
    let visits = hostile.visits();
    let refused = Client::try_login(ambassador.port, &[("user", "postgres"), ("database", "bad")]);
    let refused =
        refused.map_or_else(|error| error.code(), |mut client| client.try_query("select 1").unwrap_err().code());
    assert_eq!(refused, "57P03");
    assert_eq!(hostile.visits(), visits, "nobody has called there again");
}

#[test]
fn i16_an_error_that_lacks_everything_reaches_its_client_as_it_is() {
    for body in [b"\0".as_slice(), b"", b"Mx\0\0", b"C\0\0", b"SERROR\0C123456789\0\0", b"\xff\xfe\0\0"] {
        let hostile = Hostile::start(move |visit: &mut Visit| {
            visit.welcome()?;
            while visit.read()?.tag != b'Q' {}
            visit.send(&[message(b'E', body), message(b'Z', b"I")].concat())?;
            visit.serve("next")
        });
        let between = Between::with(&hostile, "sslmode=disable");
        let mut client = between.login("bad").unwrap();
        let messages = client.exchange(&query("select 1"));
        assert_eq!((messages[0].tag, messages[0].body.as_slice()), (b'E', body), "{messages:?}");
        assert_eq!(client.value("select 1"), "next");
        between.innocent("an empty error");
    }
}

#[test]
fn i16_a_fatal_error_without_a_sqlstate_is_survived() {
    let hostile = Hostile::start(|visit: &mut Visit| {
        visit.welcome()?;
        if visit.number > 0 {
            return visit.serve("next");
        }
        while visit.read()?.tag != b'Q' {}
        visit.send(&message(b'E', b"SFATAL\0VFATAL\0\0"))
    });
    let between = Between::with(&hostile, "sslmode=disable");
    let mut client = between.login("bad").unwrap();
    let messages = client.exchange(&query("select 1"));
    assert_eq!((messages[0].tag, messages[0].code().len()), (b'E', 5), "{messages:?}");
    assert_eq!(client.value("select 1"), "next");
}

#[test]
fn a_server_that_reports_settings_without_end_does_not_make_us_keep_them() {
    let hostile = Hostile::start(|visit: &mut Visit| {
        visit.welcome()?;
        while visit.read()?.tag != b'Q' {}
        for number in 0..20_000 {
            visit.send(&message(b'S', format!("s{number}\0{}\0", "v".repeat(4000)).as_bytes()))?;
        }
        visit.send(&answer("at last"))?;
        visit.wait_for_the_end()
    });
    let between = Between::with(&hostile, "sslmode=disable");
    let mut client = between.login("bad").unwrap();
    assert_eq!(client.value("select 1"), "at last");
    between.has_not_grown("80 MB of settings");
    between.innocent("80 MB of settings");
}

// --------------------------------------------------------------------------------------------- the answer to SSLRequest

#[test]
fn i12_a_server_that_answers_the_question_for_tls_wrongly_is_not_spoken_to() {
    let garbage: [(&str, Vec<u8>); 5] = [
        ("an error message", message(b'E', b"SFATAL\0C0A000\0Mx\0\0")),
        ("another byte", b"X".to_vec()),
        ("yes, and a login behind it", [b"S".to_vec(), welcome()].concat()),
        ("yes, and garbage behind it", [b"S".to_vec(), vec![0; 100]].concat()),
        ("no", b"N".to_vec()),
    ];
    for (name, bytes) in garbage {
        let hostile = Hostile::start(move |visit: &mut Visit| {
            visit.hello()?;
            visit.send(&bytes)?;
            visit.wait_for_the_end()
        });
        let between = Between::new(
            &[("bad", &format!("postgres://u:hunter2@127.0.0.1:{}/bad?sslmode=require", hostile.port))],
            "",
        );
        let (code, _) = refusal(&between);
        assert!(["08001", "57P03"].contains(&code.as_str()), "{name}: {code}");
        assert!(!hostile.has_heard(b"hunter2") && !hostile.has_heard(b"user\0"), "{name}: something went out in clear");
        between.innocent(name);
    }
}

#[test]
fn a_client_that_leaves_a_hostile_server_hanging_takes_it_along() {
    let hostile = Hostile::start(|visit: &mut Visit| {
        visit.welcome()?;
        while visit.read()?.tag != b'Q' {}
        visit.send_for_ever(&message(b'N', b"SNOTICE\0C00000\0Mx\0\0"))
    });
    let between = Between::with(&hostile, "sslmode=disable");
    let mut client = between.login("bad").unwrap();
    client.send(&query("select 1"));
    for _ in 0..1000 {
        assert_eq!(client.read().unwrap().tag, b'N');
    }
    drop(client);
    wait_until("no server is left", || {
        let servers = between.ambassador.show("SERVERS");
        !servers.iter().any(|row| row.iter().flatten().any(|cell| cell == &hostile.port.to_string()))
    });
    between.innocent("notices without end");
    between.has_not_grown("notices without end");
}

/// Many strangers who break everything at once, and one who does not.
#[test]
fn f22_strangers_who_send_garbage_all_at_once_keep_nobody_from_being_served() {
    let ambassador = Arc::new(Ambassador::start(&[crate::support::url(shared())]));
    let strangers: Vec<_> = (0..8u64)
        .map(|seed| {
            let ambassador = Arc::clone(&ambassador);
            std::thread::spawn(move || {
                let mut random = crate::support::Random::new(seed);
                for _ in 0..40 {
                    let mut client = Client::connect(ambassador.port);
                    let mut bytes =
                        if random.one_in(2) { startup(&[USER, ("database", "postgres")]) } else { Vec::new() };
                    bytes.extend((0..random.below(200)).map(|_| random.next().to_be_bytes()[0]));
                    let _ = client.try_send(&bytes);
                    let _ = client.stream.shutdown(std::net::Shutdown::Write);
                    assert!(client.is_closed());
                }
            })
        })
        .collect();
    let mut client = Client::new(ambassador.port);
    while !strangers.iter().all(std::thread::JoinHandle::is_finished) {
        assert_eq!(client.value("select 6 * 7"), "42");
    }
    for stranger in strangers {
        stranger.join().unwrap();
    }
}

#[test]
fn i05_the_names_that_servers_know_statements_by_are_not_for_clients_to_use() {
    let ambassador = Ambassador::start(&[&crate::support::url(shared()), "--pool-size", "1", "-s", "paranoid=true"]);
    let mut owner = Client::new(ambassador.port);
    let prepared = [parse("mine", "select 'mine alone'"), sync()].concat();
    assert_eq!(owner.exchange(&prepared)[0].tag, b'1');
    let run = [bind("", "mine", &[]), execute("", 0), sync()].concat();
    assert_eq!(owner.exchange(&run)[1].columns(), [Some("mine alone".to_owned())]);
    for number in 0..8 {
        for name in [format!("ambassador:{number}"), format!("ambassador:set{number}"), "ambassador:".to_owned()] {
            for request in [
                [bind("", &name, &[]), execute("", 0), sync()].concat(),
                [describe(b'S', &name), sync()].concat(),
                [close(b'S', &name), sync()].concat(),
            ] {
                let direct = Client::new(shared().port()).exchange(&request);
                assert_eq!(Client::new(ambassador.port).exchange(&request), direct, "{name}");
            }
            assert_eq!(owner.exchange(&run)[1].columns(), [Some("mine alone".to_owned())], "{name}");
        }
    }
}

#[test]
fn i05_a_bind_whose_names_do_not_end_does_not_reach_a_server() {
    let ambassador = Ambassador::start(&[&crate::support::url(shared()), "--pool-size", "1"]);
    let mut owner = Client::new(ambassador.port);
    owner.exchange(&[parse("", "select 'mine alone'"), sync()].concat());
    // A portal's name so long that nobody reads to its end, for the statement without a name that is another client's.
    let mut stranger = Client::new(ambassador.port);
    let portal = "p".repeat(200_000);
    let _ = stranger.try_send(&[bind(&portal, "", &[]), execute(&portal[..9_000], 0), sync()].concat());
    while let Ok(message) = stranger.read() {
        assert_ne!(message.tag, b'2', "it was bound");
    }
    assert_eq!(owner.value("select 1"), "1");
}
