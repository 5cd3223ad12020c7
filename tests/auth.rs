//! Who gets in, and who we are upstream.

use crate::support::client::{Message, cstr, message, startup};
use crate::support::hostile::Visit;
use crate::support::tls::{Authority, TlsClient, client_config};
use crate::support::{Ambassador, Client, Dir, Hostile, cluster, shared, url};
use pg_ambassador::auth::md5;
use pg_ambassador::auth::scram::{Binding, ClientFirst, DEFAULT_ITERATIONS, Keys, Verifier};
use pg_ambassador::demo::cluster::{Cluster, Options};
use std::num::NonZeroU32;
use std::process::Command;

/// Logs in with a password, by whatever the server asks for; the methods that it asked for, and how that ended.
fn login(port: u16, user: &str, database: &str, password: &str) -> (Vec<i32>, Result<Client, Message>) {
    login_with(port, &[("user", user), ("database", database)], password)
}

fn login_with(port: u16, params: &[(&str, &str)], password: &str) -> (Vec<i32>, Result<Client, Message>) {
    let user = params[0].1;
    let mut client = Client::connect(port);
    client.send(&startup(params));
    let mut asked = Vec::new();
    let mut first = None;
    let mut challenge = None;
    loop {
        let read = client.read().expect("an answer");
        if read.tag == b'E' {
            return (asked, Err(read));
        }
        assert_eq!(read.tag, b'R', "{read:?}");
        let method = i32::from_be_bytes(read.body[..4].try_into().unwrap());
        asked.push(method);
        match method {
            0 => {
                let result = client.finish_login();
                return (asked, result.map(|()| client));
            }
            3 => client.send(&message(b'p', &cstr(password))),
            5 => {
                let salt = read.body[4..8].try_into().unwrap();
                let stored = md5::stored(user, password.as_bytes());
                client.send(&message(b'p', &cstr(md5::response(&stored, salt))));
            }
            10 => {
                let start = ClientFirst::start(Binding::None, "rOprNGfwEbeRWgbNEkqO".into());
                let text = start.message();
                let len = u32::try_from(text.len()).unwrap().to_be_bytes();
                client.send(&message(b'p', &[&cstr("SCRAM-SHA-256")[..], &len, text.as_bytes()].concat()));
                first = Some(start);
            }
            11 => {
                let asked = first.take().unwrap().challenge(&read.body[4..]).unwrap();
                let keys = Keys::derive(password, &asked.salt, asked.iterations);
                let (proof, last) = asked.prove(&keys);
                client.send(&message(b'p', proof.as_bytes()));
                challenge = Some(last);
            }
            12 => challenge.take().unwrap().verify(&read.body[4..]).unwrap(),
            other => panic!("asks for method {other}"),
        }
    }
}

fn verifier(password: &str) -> String {
    Verifier::new(password, b"0123456789abcdef", NonZeroU32::new(DEFAULT_ITERATIONS).unwrap()).to_string()
}

/// Users whose names are their kinds of secret; each has the password `secret`.
fn users(dir: &Dir) -> String {
    let list = format!(
        "\"plain\" \"secret\"\n\"hashed\" \"{}\"\n\"verified\" \"{}\"\n\"postgres\" \"secret\"\n",
        md5::stored("hashed", b"secret"),
        verifier("secret")
    );
    dir.write("users.txt", &list).display().to_string()
}

/// An ambassador that logs everybody in upstream as the superuser, who is trusted there.
fn front(method: &str, file: &str, more: &[&str]) -> Ambassador {
    let url = url(shared()).replace("127.0.0.1", "postgres@127.0.0.1");
    Ambassador::start(&[&[url.as_str(), "--auth-method", method, "--auth-file", file], more].concat())
}

#[test]
fn each_method_lets_in_who_knows_the_password_and_asks_for_it_in_its_own_way() {
    let dir = Dir::new();
    let file = users(&dir);
    let scram = vec![10, 11, 12, 0];
    // The method, the user, and what is asked for; none if that user cannot get in by it.
    for (method, rows) in [
        ("scram-sha-256", [("plain", Some(scram.clone())), ("verified", Some(scram.clone())), ("hashed", None)]),
        ("md5", [("plain", Some(vec![5, 0])), ("verified", Some(scram.clone())), ("hashed", Some(vec![5, 0]))]),
        ("password", [("plain", Some(vec![3, 0])), ("verified", Some(vec![3, 0])), ("hashed", Some(vec![3, 0]))]),
    ] {
        let front = front(method, &file, &[]);
        for (user, expected) in rows {
            let (asked, result) = login(front.port, user, "postgres", "secret");
            match expected {
                Some(expected) => {
                    assert_eq!(asked, expected, "{method} {user}");
                    let mut client = result.unwrap_or_else(|error| panic!("{method} {user}: {error:?}"));
                    assert_eq!(client.value("select current_user"), "postgres");
                }
                None => assert_eq!(result.err().unwrap().code(), "28P01", "{method} {user}"),
            }
            for wrong in ["wrong", "secret ", "Secret", &"x".repeat(1000)] {
                let (_, result) = login(front.port, user, "postgres", wrong);
                assert_eq!(result.err().unwrap().code(), "28P01", "{method} {user} {wrong:.10}");
            }
        }
    }
}

#[test]
fn i18_a_wrong_password_and_an_unknown_user_cannot_be_told_apart() {
    let dir = Dir::new();
    let file = users(&dir);
    for method in ["scram-sha-256", "md5", "password"] {
        let front = front(method, &file, &[]);
        let (known, error) = login(front.port, "plain", "postgres", "wrong");
        let known_error = format!("{:?}", error.err().unwrap()).replace("plain", "USER");
        for stranger in ["nobody", "plain2", "\u{e4}", "select"] {
            let (asked, error) = login(front.port, stranger, "postgres", "wrong");
            assert_eq!(asked, known, "{method}");
            let error = error.err().unwrap();
            let name = format!("{:?}", Message { tag: b'x', body: stranger.into() });
            let name = name.trim_start_matches('x').trim_matches('"');
            assert_eq!(format!("{error:?}").replace(name, "USER"), known_error, "{method}");
            assert_eq!(error.field(b'M'), Some(format!("password authentication failed for user \"{stranger}\"")));
        }
    }
    // The salt of a mock exchange stays the same, as a real user's does.
    let front = front("scram-sha-256", &file, &[]);
    let asked = |user: &str| asked_by_scram(front.port, user);
    assert_eq!(asked("nobody"), asked("nobody"));
    assert_ne!(asked("nobody"), asked("nobody2"));
    assert_eq!(asked("nobody")[0].len(), asked("plain")[0].len());
    assert_eq!(asked("nobody")[1], asked("plain")[1]);
}

/// Salt and iterations that a user is asked to hash the password with, as they stand in the message.
fn asked_by_scram(port: u16, user: &str) -> Vec<String> {
    let mut client = Client::connect(port);
    client.send(&startup(&[("user", user), ("database", "postgres")]));
    client.read().unwrap();
    let text = "n,,n=,r=abcdefgh";
    client.send(&message(b'p', &[&cstr("SCRAM-SHA-256")[..], &[0, 0, 0, 16], text.as_bytes()].concat()));
    let challenge = String::from_utf8(client.read().unwrap().body[4..].to_vec()).unwrap();
    challenge.split(',').skip(1).map(str::to_owned).collect()
}

/// A list whose users have verifiers of so many iterations.
fn users_hashed(dir: &Dir, iterations: u32) -> String {
    let verifier = Verifier::new("secret", b"0123456789abcdef", NonZeroU32::new(iterations).unwrap());
    let list = format!("\"ann\" \"{verifier}\"\n\"bob\" \"{verifier}\"\n\"cy\" \"{}\"\n", self::verifier("secret"));
    dir.write("hashed.txt", &list).display().to_string()
}

#[test]
fn i18_an_unknown_user_is_asked_for_as_many_iterations_as_most_others() {
    let dir = Dir::new();
    let front = front("scram-sha-256", &users_hashed(&dir, 10_000), &[]);
    let iterations = |user: &str| asked_by_scram(front.port, user)[1].clone();
    assert_eq!(iterations("ann"), "i=10000");
    assert_eq!(iterations("nobody"), "i=10000");
    assert_eq!(iterations("cy"), format!("i={DEFAULT_ITERATIONS}"));
}

/// Each of these logins takes a processor for tens of milliseconds.
#[cfg(target_os = "linux")]
#[test]
fn a_burst_of_logins_whose_passwords_are_hashed_takes_turns() {
    let logins = std::thread::available_parallelism().map_or(24, |cores| (4 * cores.get()).max(24));
    let dir = Dir::new();
    let front = front("password", &users_hashed(&dir, 100_000), &[]);
    let threads = || std::fs::read_dir(format!("/proc/{}/task", front.pid())).unwrap().count();
    let before = threads();
    let mut clients: Vec<_> = (0..logins)
        .map(|n| {
            let mut client = Client::connect(front.port);
            client.send(&startup(&[("user", "ann"), ("database", "postgres")]));
            assert_eq!(client.read().unwrap().tag, b'R');
            client.send(&message(b'p', &cstr(if n % 2 == 0 { "secret" } else { "wrong" })));
            client
        })
        .collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let answer = client.read().unwrap();
        assert_eq!(answer.tag, if n % 2 == 0 { b'R' } else { b'E' }, "{answer:?}");
    }
    // A thread that has hashed stays for a while, and is not always the next one that does.
    assert!(threads() < before + logins / 2, "{before} threads, and then {}", threads());
}

#[test]
fn messages_of_a_login_that_are_none_are_refused_and_nobody_gets_in() {
    let dir = Dir::new();
    let front = front("scram-sha-256", &users(&dir), &[]);
    let sasl = |mechanism: &str, len: i32, data: &[u8]| {
        message(b'p', &[&cstr(mechanism)[..], &len.to_be_bytes(), data].concat())
    };
    let ok = b"n,,n=,r=abc";
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("another type", message(b'Q', b"select 1\0")),
        ("nothing", message(b'p', b"")),
        ("a length of 3", vec![b'p', 0, 0, 0, 3]),
        ("70,000 bytes", vec![b'p', 0, 1, 0x11, 0x70]),
        ("an unknown mechanism", sasl("SCRAM-SHA-1", 11, ok)),
        ("channel binding that was not offered", sasl("SCRAM-SHA-256-PLUS", 11, b"p=tls-server-end-point,,n=,r=abc")),
        ("a length that is too long", sasl("SCRAM-SHA-256", 100, ok)),
        ("a length that is negative", sasl("SCRAM-SHA-256", -2, ok)),
        ("no first message", sasl("SCRAM-SHA-256", -1, b"")),
        ("an empty first message", sasl("SCRAM-SHA-256", 0, b"")),
        ("no nonce", sasl("SCRAM-SHA-256", 7, b"n,,n=,r")),
        ("garbage", sasl("SCRAM-SHA-256", 4, &[0xff, 0, 0xff, 1])),
        ("an authorisation identity", sasl("SCRAM-SHA-256", 18, b"n,a=bob,n=,r=abcde")),
    ];
    for (name, bytes) in rows {
        let mut client = Client::connect(front.port);
        client.send(&startup(&[("user", "plain"), ("database", "postgres")]));
        assert_eq!(client.read().unwrap().tag, b'R');
        client.send(&bytes);
        let mut last = None;
        while let Ok(message) = client.read() {
            last = Some(message);
        }
        if let Some(last) = last {
            assert_eq!((last.tag, last.field(b'V').as_deref()), (b'E', Some("FATAL")), "{name}: {last:?}");
        }
    }
    assert!(login(front.port, "plain", "postgres", "secret").1.is_ok());
}

#[test]
fn a_scram_proof_for_one_exchange_is_worth_nothing_in_another() {
    let dir = Dir::new();
    let front = front("scram-sha-256", &users(&dir), &[]);
    let mut recorded: Option<Vec<u8>> = None;
    for _ in 0..2 {
        let mut client = Client::connect(front.port);
        client.send(&startup(&[("user", "plain"), ("database", "postgres")]));
        client.read().unwrap();
        let start = ClientFirst::start(Binding::None, "always-the-same".into());
        let text = start.message();
        let len = u32::try_from(text.len()).unwrap().to_be_bytes();
        client.send(&message(b'p', &[&cstr("SCRAM-SHA-256")[..], &len, text.as_bytes()].concat()));
        let challenge = start.challenge(&client.read().unwrap().body[4..]).unwrap();
        match &recorded {
            None => {
                let keys = Keys::derive("secret", &challenge.salt, challenge.iterations);
                let proof = challenge.prove(&keys).0.into_bytes();
                client.send(&message(b'p', &proof));
                client.finish_login().unwrap();
                recorded = Some(proof);
            }
            Some(proof) => {
                client.send(&message(b'p', proof));
                assert_eq!(client.read().unwrap().code(), "28P01");
            }
        }
    }
}

#[test]
fn libpq_logs_in_with_channel_binding_and_with_every_method_over_tls() {
    let (dir, authority) = (Dir::new(), Authority::new("ours"));
    let file = users(&dir);
    let root = dir.write("root.crt", &authority.pem);
    let (cert, key) = authority.sign(&["localhost"]).write(&dir, "front");
    let tls = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    for (method, binding, user) in [
        ("scram-sha-256", "require", "plain"),
        ("scram-sha-256", "require", "verified"),
        ("scram-sha-256", "disable", "plain"),
        ("md5", "prefer", "hashed"),
        ("password", "prefer", "plain"),
    ] {
        let front = front(method, &file, &tls);
        let info = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user={user} dbname=postgres sslmode=verify-full sslrootcert={} channel_binding={binding}",
            front.port,
            root.display()
        );
        let psql = |password: &str| {
            let program = crate::support::binaries().dir().join("psql");
            let mut command = Command::new(program);
            command.args(["-XAtqc", "select 40 + 2", &info]).env("PGPASSWORD", password);
            let output = command.output().unwrap();
            (
                String::from_utf8_lossy(&output.stdout).trim().to_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        let (value, error) = psql("secret");
        assert_eq!(value, "42", "{method} {binding} {user}: {error}");
        let (value, error) = psql("wrong");
        assert_eq!(value, "", "{method} {user}");
        assert!(error.contains("password authentication failed"), "{error}");
    }
}

#[test]
fn peer_lets_in_the_user_at_the_other_end_of_a_unix_socket_and_nobody_else() {
    let dir = Dir::new();
    let socket = dir.path().join(".s.PGSQL.5432");
    let front = front(
        "scram-sha-256",
        &users(&dir),
        &["--unix-socket", socket.to_str().unwrap(), "-s", "auth.unix_method=peer"],
    );
    let me = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    let psql = |user: &str| {
        let mut command = Command::new(crate::support::binaries().dir().join("psql"));
        let info = format!("host={} port=5432 user={user} dbname=postgres", dir.path().display());
        let output = command.args(["-XAtqwc", "select 40 + 2", &info]).output().unwrap();
        (
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(psql(me.trim()).0, "42", "{}", psql(me.trim()).1);
    let (value, error) = psql("plain");
    assert!(value.is_empty() && error.contains("Peer authentication failed for user \"plain\""), "{error}");
    drop(front);
}

// ------------------------------------------------------------------------------------------------------------ upstream

/// A server that asks each role for its password in the way that the role is called.
fn asking() -> &'static Cluster {
    static ASKING: std::sync::OnceLock<Cluster> = std::sync::OnceLock::new();
    ASKING.get_or_init(|| {
        let hba = |role: &str, method: &str| format!("host all {role} 127.0.0.1/32 {method}");
        let cluster = cluster(&Options {
            hba: vec![
                hba("by_scram", "scram-sha-256"),
                hba("by_md5", "md5"),
                hba("by_password", "password"),
                hba("keeper", "scram-sha-256"),
            ],
            ..Options::default()
        });
        cluster
            .psql(
                0,
                "create role by_scram login password 'secret'; create role keeper login superuser password 'keeper'; \
                 create role late login password 'secret' valid until '2001-01-01'; create role silent login; \
                 create role by_password login password 'secret'; \
                 set password_encryption = 'md5'; create role by_md5 login password 'secret'",
            )
            .unwrap();
        cluster
    })
}

fn upstream(user: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{}/postgres?sslmode=disable", asking().port())
}

#[test]
fn upstream_the_password_is_proven_by_what_the_server_asks_for() {
    for user in ["by_scram", "by_md5"] {
        let ambassador = Ambassador::start(&[upstream(&format!("{user}:secret"))]);
        assert_eq!(Client::new(ambassador.port).value("select current_user"), user);
    }
    // In clear it does not leave over plain TCP (faults.md I13).
    let ambassador = Ambassador::start(&[&upstream("by_password:secret"), "--checkout-timeout", "2s"]);
    let error = Client::try_login(ambassador.port, &[("user", "x"), ("database", "y")]).err().unwrap();
    assert_eq!(error.code(), "08001", "{error:?}");
}

#[test]
fn f09_a_refused_credential_of_ours_is_never_shown_as_the_clients_and_is_not_tried_again_and_again() {
    for user in ["by_scram:wrong", "by_md5:wrong", "by_scram"] {
        let ambassador = Ambassador::start(&[&upstream(user), "--checkout-timeout", "2s"]);
        for _ in 0..10 {
            let error = Client::try_login(ambassador.port, &[("user", "x"), ("database", "y")]).err().unwrap();
            assert_eq!(error.code(), "08001", "{user}: {error:?}");
            assert!(error.field(b'M').unwrap().starts_with("pg-ambassador: "), "{error:?}");
            // No word of the server before the client has logged in.
            assert!(!format!("{error:?}").contains("password authentication failed"), "{error:?}");
        }
    }
}

#[test]
fn i17_a_wrong_password_is_tried_once_however_many_clients_want_it() {
    let refusing = Hostile::start(|visit: &mut Visit| {
        visit.startup()?;
        visit.send(&message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]))?;
        visit.read()?;
        visit.send(&message(b'E', b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user \"u\"\0\0"))
    });
    let url = format!("postgres://u:wrong@127.0.0.1:{}/x?sslmode=disable", refusing.port);
    let ambassador = Ambassador::start(&[&url, "--checkout-timeout", "1s"]);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let error = Client::try_login(ambassador.port, &[("user", "x"), ("database", "y")]).err().unwrap();
                    assert_eq!(error.code(), "08001", "{error:?}");
                }
            });
        }
    });
    // Those that began before the first was refused may have tried as well: as many as may dial at a time (four), for the
    // first client and for the look at which server is the primary.
    assert!(refusing.visits() <= 8, "{} attempts", refusing.visits());
}

#[test]
fn scram_is_passed_through_where_both_sides_have_the_same_verifier() {
    let stored = asking().psql(0, "select rolpassword from pg_authid where rolname = 'by_scram'").unwrap();
    let dir = Dir::new();
    let file = dir.write("users.txt", &format!("\"by_scram\" \"{stored}\"\n")).display().to_string();
    let url = format!("postgres://127.0.0.1:{}/postgres?sslmode=disable", asking().port());
    let args = [&url, "--auth-method", "scram-sha-256", "--auth-file", &file, "-s", "auth.pass_through=true"];
    let ambassador = Ambassador::start(&[&args[..], &["-s", "console.admin_users=by_scram"]].concat());
    let (_, result) = login(ambassador.port, "by_scram", "postgres", "secret");
    let mut client = result.unwrap();
    assert_eq!(client.value("select session_user"), "by_scram");
    let mut console = login(ambassador.port, "by_scram", "pgbouncer", "secret").1.unwrap();
    console.query("RELOAD");
    console.query("RECONNECT");
    assert_eq!(client.value("select session_user"), "by_scram", "what it has shown is good for new connections, too");
    assert_eq!(login(ambassador.port, "by_scram", "postgres", "wrong").1.err().unwrap().code(), "28P01");
}

#[test]
fn auth_query_knows_the_servers_roles_but_not_those_without_or_with_an_expired_password() {
    let url = format!("postgres://keeper:keeper@127.0.0.1:{}/postgres?sslmode=disable", asking().port());
    let keeper = ["-s", "auth.query_user=keeper", "-s", "auth.query_password=keeper"];
    let ambassador = Ambassador::start(&[&[url.as_str(), "--auth-method", "scram-sha-256"], &keeper[..]].concat());
    assert!(login(ambassador.port, "by_scram", "postgres", "secret").1.is_ok());
    for (user, password) in [
        ("by_scram", "wrong"),
        ("late", "secret"),
        ("silent", ""),
        ("nobody", "x"),
        ("' or true --", "secret"),
        ("keeper2", "keeper"),
    ] {
        let (_, result) = login(ambassador.port, user, "postgres", password);
        assert_eq!(result.err().unwrap().code(), "28P01", "{user}");
    }
}

#[test]
fn i11_no_parameter_of_a_stranger_reaches_the_connection_that_looks_it_up() {
    let cluster = asking();
    // Two lists of one name: the strangers' own says what they want it to.
    cluster
        .psql(
            0,
            &format!(
                "create schema evil; create table public.list (name text, secret text); create table evil.list (name text, secret text); \
                 insert into public.list values ('ann', '{}'); insert into evil.list values ('ann', '{}')",
                verifier("right"),
                verifier("evil")
            ),
        )
        .unwrap();
    let url = format!("postgres://keeper:keeper@127.0.0.1:{}/postgres?sslmode=disable", cluster.port());
    let ambassador = Ambassador::start(&[
        &url,
        "--auth-method",
        "scram-sha-256",
        "-s",
        "auth.query_user=keeper",
        "-s",
        "auth.query_password=keeper",
        "-s",
        "auth.query=select name, secret from list where name = $1",
    ]);
    for evil in [("search_path", "evil"), ("options", "-c search_path=evil"), ("options", "--search_path=evil,public")]
    {
        let params = [("user", "ann"), ("database", "postgres"), evil];
        assert_eq!(login_with(ambassador.port, &params, "evil").1.err().unwrap().code(), "28P01", "{evil:?}");
        let mut client = login_with(ambassador.port, &params, "right").1.unwrap();
        assert!(client.value("select current_setting('search_path')").starts_with("evil"), "{evil:?}");
        // And what a session sets after its login stays its own.
        client.query("set search_path to evil");
        drop(client);
        assert_eq!(login(ambassador.port, "ann", "postgres", "evil").1.err().unwrap().code(), "28P01");
    }
}

#[test]
fn f36_the_console_shows_to_everybody_and_obeys_its_administrators_alone() {
    let dir = Dir::new();
    let front =
        front("password", &users(&dir), &["-s", "console.admin_users=plain", "-s", "console.stats_users=verified"]);
    let console = |user: &str| login(front.port, user, "ambassador", "secret").1;
    let mut admin = console("plain").unwrap();
    assert!(
        admin.try_query("SHOW POOLS").is_ok() && admin.try_query("PAUSE").is_ok() && admin.try_query("RESUME").is_ok()
    );
    let mut stats = console("verified").unwrap();
    assert!(stats.try_query("SHOW POOLS").is_ok());
    for command in [
        "PAUSE",
        "RESUME",
        "RELOAD",
        "RECONNECT",
        "KILL postgres",
        "KILL_CLIENT 1",
        "SHUTDOWN",
        "DISABLE x",
        "SET pool_size = 1",
    ] {
        assert_eq!(stats.try_query(command).unwrap_err().code(), "42501", "{command}");
    }
    assert!(console("hashed").is_err(), "neither");
    assert_eq!(login(front.port, "plain", "ambassador", "wrong").1.err().unwrap().code(), "28P01");
}

#[test]
fn md5_and_cleartext_work_over_tls() {
    let (dir, authority) = (Dir::new(), Authority::new("ours"));
    let (cert, key) = authority.sign(&["localhost"]).write(&dir, "front");
    let config = client_config(&authority.pem, None, &[], &[&rustls::version::TLS13]);
    let front =
        front("password", &users(&dir), &["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()]);
    let mut client = TlsClient::connect(front.port, &config).unwrap();
    client.send(&startup(&[("user", "plain"), ("database", "postgres")])).unwrap();
    assert_eq!(client.read().unwrap().body, [0, 0, 0, 3]);
    client.send(&message(b'p', &cstr("secret"))).unwrap();
    client.read_until(b"Z").unwrap();
    assert_eq!(client.value("select 1").unwrap(), "1");
}
