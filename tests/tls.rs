//! TLS on both sides: who is believed, who is not, and that nothing but the certificate decides.

use crate::support::client::startup;
use crate::support::hostile::Visit;
use crate::support::tls::{Authority, Pair, TlsClient, client_config, self_signed};
use crate::support::{Ambassador, Client, Dir, Hostile, cluster, shared, url, wait_until};
use pg_ambassador::demo::cluster::{Cluster, Options};
use rustls::version::{TLS12, TLS13};
use std::io::{self, Read, Write};
use std::sync::Arc;

const LOGIN: [(&str, &str); 2] = [("user", "postgres"), ("database", "postgres")];
const BOTH: [&rustls::SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A server that trusts everybody and answers every query with whether it was asked over TLS.
fn server(tls: Option<Arc<rustls::ServerConfig>>) -> Hostile {
    Hostile::start(move |visit: &mut Visit| {
        let hello = visit.hello()?;
        let over = match (&tls, hello[..4] == [4, 210, 22, 47]) {
            (Some(config), true) => {
                visit.send(b"S")?;
                visit.tls(config)?;
                visit.hello()?;
                "tls"
            }
            (None, true) => {
                visit.send(b"N")?;
                visit.hello()?;
                "plain"
            }
            (_, false) => "plain",
        };
        visit.send(&crate::support::hostile::welcome())?;
        visit.serve(over)
    })
}

#[test]
fn i13_every_sslmode_believes_whom_libpq_would_believe() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let here = ["localhost", "127.0.0.1"];
    let dir = Dir::new();
    let roots = dir.write("root.crt", &ours.pem).display().to_string();
    let servers = [
        ("good", Some(ours.sign(&here))),
        ("wrong name", Some(ours.sign(&["elsewhere.example"]))),
        ("other authority", Some(theirs.sign(&here))),
        ("expired", Some(ours.sign_expired(&here))),
        ("self-signed", Some(self_signed(&here))),
        ("no tls", None),
    ];
    // What each gets, in the order of the servers.
    const P: &str = "plain";
    const T: &str = "tls";
    const NO: &str = "08001";
    let rows: [(&str, bool, [&str; 6]); 9] = [
        ("disable", true, [P, P, P, P, P, P]),
        ("allow", false, [P, P, P, P, P, P]),
        ("prefer", false, [T, T, T, T, T, P]),
        ("require", false, [T, T, T, T, T, NO]),
        // libpq: with an authority at hand `require` is `verify-ca`.
        ("require", true, [T, T, NO, NO, NO, NO]),
        ("verify-ca", true, [T, T, NO, NO, NO, NO]),
        ("verify-full", true, [T, NO, NO, NO, NO, NO]),
        // The default, where nothing is said.
        ("", true, [T, NO, NO, NO, NO, NO]),
        ("prefer", true, [T, T, T, T, T, P]),
    ];
    let running: Vec<Hostile> =
        servers.iter().map(|(_, pair)| server(pair.as_ref().map(|p| p.server(&BOTH)))).collect();
    let mut config = "checkout_timeout = \"2s\"\n".to_owned();
    for (row, (mode, with_roots, _)) in rows.iter().enumerate() {
        for (column, server) in running.iter().enumerate() {
            let mut query = Vec::new();
            query.extend((!mode.is_empty()).then(|| format!("sslmode={mode}")));
            query.extend(with_roots.then(|| format!("sslrootcert={roots}")));
            let query = query.join("&");
            config.push_str(&format!(
                "[databases.d{row}_{column}]\nurl = \"postgres://127.0.0.1:{}/x?{query}\"\n",
                server.port
            ));
        }
    }
    let ambassador = Ambassador::start(&["--config", dir.write("a.toml", &config).to_str().unwrap()]);
    std::thread::scope(|scope| {
        for (row, (mode, with_roots, expected)) in rows.iter().enumerate() {
            for (column, (name, _)) in servers.iter().enumerate() {
                let ambassador = &ambassador;
                scope.spawn(move || {
                    let database = format!("d{row}_{column}");
                    let got = match Client::try_login(ambassador.port, &[LOGIN[0], ("database", &database)]) {
                        Ok(mut client) => client.value("select 1"),
                        Err(error) => error.code(),
                    };
                    // A certificate may be put right a moment later: that is waited for, up to the checkout timeout.
                    let got = if got == "57P03" { NO.to_owned() } else { got };
                    assert_eq!(got, expected[column], "sslmode={mode}, authority known: {with_roots}, server: {name}");
                });
            }
        }
    });
}

/// A real server with TLS, and what it takes to be believed by it and to believe it.
struct Secure {
    cluster: Cluster,
    dir: Dir,
    authority: Authority,
    client: Pair,
}

fn secure() -> &'static Secure {
    static SECURE: std::sync::OnceLock<Secure> = std::sync::OnceLock::new();
    SECURE.get_or_init(|| {
        let authority = Authority::new("ours");
        let pair = authority.sign(&["localhost", "127.0.0.1"]);
        let setting = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let cluster = cluster(&Options {
            settings: vec![
                setting("ssl", "on"),
                setting("ssl_cert_file", "server.crt"),
                setting("ssl_key_file", "server.key"),
                setting("ssl_ca_file", "root.crt"),
                setting("password_encryption", "scram-sha-256"),
            ],
            hba: vec![
                "hostssl all scrammer 127.0.0.1/32 scram-sha-256".into(),
                "hostssl all certified 127.0.0.1/32 cert".into(),
                "hostssl all clear 127.0.0.1/32 password".into(),
                "host all scrammer,certified,clear 127.0.0.1/32 reject".into(),
            ],
            files: vec![
                ("server.crt".into(), pair.cert.clone().into_bytes()),
                ("server.key".into(), pair.key.clone().into_bytes()),
                ("root.crt".into(), authority.pem.clone().into_bytes()),
            ],
            ..Options::default()
        });
        for role in ["scrammer", "certified", "clear"] {
            cluster.psql(0, &format!("create role {role} login password 'secret'")).unwrap();
        }
        let dir = Dir::new();
        dir.write("root.crt", &authority.pem);
        let client = authority.sign(&["certified"]);
        client.write(&dir, "client");
        Secure { cluster, dir, client, authority }
    })
}

impl Secure {
    fn url(&self, user: &str, more: &str) -> String {
        let (dir, port) = (self.dir.path().display(), self.cluster.port());
        format!("postgres://{user}@127.0.0.1:{port}/postgres?sslrootcert={dir}/root.crt{more}")
    }

    /// An ambassador with TLS towards its clients, in front of the shared server.
    fn front(&self, more: &[&str]) -> Ambassador {
        let (cert, key) =
            self.authority.sign(&["localhost", "127.0.0.1"]).write(&self.dir, &format!("front{}", more.len()));
        let url = url(shared());
        let args = [&url, "--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
        Ambassador::start(&[&args[..], more].concat())
    }
}

#[test]
fn upstream_logins_over_verified_tls_work_with_scram_plus_certificates_and_passwords() {
    let secure = secure();
    let dir = secure.dir.path().display();
    for (user, more) in [
        ("scrammer:secret", String::new()),
        ("clear:secret", String::new()),
        ("certified", format!("&sslcert={dir}/client.crt&sslkey={dir}/client.key")),
    ] {
        let ambassador = Ambassador::start(&[secure.url(user, &more)]);
        let mut client = Client::new(ambassador.port);
        assert_eq!(client.value("select ssl from pg_stat_ssl where pid = pg_backend_pid()"), "t", "{user}");
        assert_eq!(client.value("select version from pg_stat_ssl where pid = pg_backend_pid()"), "TLSv1.3", "{user}");
    }
}

#[test]
fn i13_a_password_does_not_leave_in_clear_over_tls_that_proves_nothing() {
    let secure = secure();
    let url = format!("postgres://clear:secret@127.0.0.1:{}/postgres?sslmode=require", secure.cluster.port());
    let ambassador = Ambassador::start(&[&url, "--checkout-timeout", "1s"]);
    let error = Client::try_login(ambassador.port, &LOGIN).err().expect("it is refused");
    assert_eq!(error.code(), "08001", "{error:?}");
}

#[test]
fn both_versions_of_tls_are_spoken_on_both_sides_and_older_ones_are_not_offered() {
    let secure = secure();
    let front = secure.front(&[]);
    for version in [&TLS12, &TLS13] {
        let pair = secure.authority.sign(&["127.0.0.1"]);
        let upstream = server(Some(pair.server(&[version])));
        let url =
            format!("postgres://127.0.0.1:{}/x?sslrootcert={}/root.crt", upstream.port, secure.dir.path().display());
        let ambassador = Ambassador::start(&[url]);
        assert_eq!(Client::new(ambassador.port).value("select 1"), "tls", "{version:?}");
        let config = client_config(&secure.authority.pem, None, &[], &[version]);
        let mut client = TlsClient::login(front.port, &config, &LOGIN).unwrap();
        assert_eq!(client.value("select 1").unwrap(), "1", "{version:?}");
    }
}

#[test]
fn direct_tls_is_spoken_with_postgresqls_protocol_name_and_not_without() {
    let secure = secure();
    let front = secure.front(&["-s", "tls.required=true"]);
    let connect = |alpn: &[&[u8]]| {
        let config = client_config(&secure.authority.pem, None, alpn, &BOTH);
        let mut client = TlsClient::direct(Client::connect(front.port).stream, &config)?;
        client.start(&LOGIN)?;
        client.value("select 1")
    };
    assert_eq!(connect(&[b"postgresql"]).unwrap(), "1");
    assert_eq!(connect(&[b"http/1.1", b"postgresql"]).unwrap(), "1");
    assert!(connect(&[]).is_err());
    assert!(connect(&[b"http/1.1"]).is_err());
    // Without TLS there is no way in.
    let error = Client::try_login(front.port, &LOGIN).err().expect("it is refused");
    assert_eq!(error.code(), "28000", "{error:?}");
}

#[test]
fn a_client_that_asks_for_tls_and_speaks_something_else_is_closed() {
    let secure = secure();
    let front = secure.front(&["-s", "max_clients=50"]);
    for bytes in [startup(&LOGIN), vec![0x16; 300], vec![0x16, 3, 1, 0xff, 0xff], b"GET / HTTP/1.0\r\n\r\n".to_vec()] {
        let mut client = Client::connect(front.port);
        client.send(&[0, 0, 0, 8, 4, 210, 22, 47]);
        let mut answer = [0];
        client.stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, *b"S");
        let _ = client.try_send(&bytes);
        let _ = client.stream.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = client.stream.read_to_end(&mut rest);
        // At most an alert: nothing that was sent in clear is taken for a login (faults.md I12).
        assert!(rest.is_empty() || rest[0] == 21, "{}", rest.escape_ascii());
    }
    let config = client_config(&secure.authority.pem, None, &[], &BOTH);
    assert_eq!(TlsClient::login(front.port, &config, &LOGIN).unwrap().value("select 1").unwrap(), "1");
}

#[test]
fn what_comes_behind_the_end_of_a_tls_connection_ends_that_connection_and_hinders_nobody() {
    let secure = secure();
    let front = secure.front(&["--workers", "1"]);
    let rest = vec![0; 16 * 1024];
    // Before there is a key.
    let mut client = Client::connect(front.port);
    client.send(&[0, 0, 0, 8, 4, 210, 22, 47]);
    let mut answer = [0];
    client.stream.read_exact(&mut answer).unwrap();
    client.send(&[&[0x15, 3, 3, 0, 2, 1, 0], &rest[..]].concat());
    let _ = client.stream.read_to_end(&mut Vec::new());
    for version in BOTH {
        let config = client_config(&secure.authority.pem, None, &[], &[version]);
        let mut strange = TlsClient::connect(front.port, &config).unwrap().stream;
        let mut bytes = Vec::new();
        strange.conn.send_close_notify();
        strange.conn.write_tls(&mut bytes).unwrap();
        bytes.extend(&rest);
        strange.sock.write_all(&bytes).unwrap();
        let mut left = Vec::new();
        // Closed, whichever way: some of what was sent was never read.
        let _ = strange.sock.read_to_end(&mut left);
        assert_eq!(TlsClient::login(front.port, &config, &LOGIN).unwrap().value("select 1").unwrap(), "1");
    }
}

#[test]
fn i29_rows_of_one_byte_to_sixteen_megabytes_pass_over_tls_on_both_sides() {
    let secure = secure();
    let (cert, key) = secure.authority.sign(&["localhost"]).write(&secure.dir, "rows");
    let url = secure.url("scrammer:secret", "");
    let ambassador =
        Ambassador::start(&[&url, "--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()]);
    for version in [&TLS12, &TLS13] {
        let config = client_config(&secure.authority.pem, None, &[], &[version]);
        let mut client = TlsClient::login(ambassador.port, &config, &LOGIN).unwrap();
        for size in [1, 4095, 8191, 8192, 16_383, 16_384, 16_385, 65_535, 65_536, 131_072, 1 << 20, 16 << 20] {
            let value = client.value(&format!("select repeat('x', {size})")).unwrap();
            assert!(value.len() == size && value.bytes().all(|b| b == b'x'), "{size} bytes over {version:?}");
            // And the other way: a statement of that size.
            let length = client.value(&format!("select length('{value}')")).unwrap();
            assert_eq!(length, size.to_string(), "{version:?}");
        }
    }
}

#[test]
fn a_client_certificate_logs_in_the_user_it_names_and_nobody_else() {
    let secure = secure();
    let root = secure.dir.path().join("root.crt");
    let ca = format!("tls.client_ca={}", root.display());
    let front = secure.front(&["-s", &ca, "--auth-method", "cert"]);
    let login = |identity: Option<&Pair>, user: &str| -> io::Result<String> {
        let config = client_config(&secure.authority.pem, identity, &[], &BOTH);
        TlsClient::login(front.port, &config, &[("user", user), LOGIN[1]])?.value("select current_user")
    };
    let postgres = secure.authority.sign(&["postgres"]);
    let stranger = Authority::new("theirs").sign(&["postgres"]);
    assert_eq!(login(Some(&postgres), "postgres").unwrap(), "postgres");
    for (identity, user) in [
        (None, "postgres"),
        (Some(&secure.client), "postgres"),
        (Some(&postgres), "certified"),
        (Some(&stranger), "postgres"),
        (Some(&secure.authority.sign_expired(&["postgres"])), "postgres"),
    ] {
        assert!(login(identity, user).is_err(), "{user}");
    }
    assert!(Client::try_login(front.port, &LOGIN).is_err(), "without TLS");
}

#[test]
fn f16_a_new_certificate_is_used_after_a_reload_and_a_bad_one_is_not_and_nobody_is_cut_off() {
    let secure = secure();
    let dir = Dir::new();
    let (cert, key) = secure.authority.sign(&["localhost"]).write(&dir, "front");
    let url = url(shared());
    let front = Ambassador::start(&[&url, "--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()]);
    let config = client_config(&secure.authority.pem, None, &[], &BOTH);
    let certificate = |client: &TlsClient| client.stream.conn.peer_certificates().unwrap()[0].to_vec();
    let mut before = TlsClient::login(front.port, &config, &LOGIN).unwrap();
    let first = certificate(&before);
    secure.authority.sign(&["localhost"]).write(&dir, "front");
    front.signal("HUP");
    wait_until("the new certificate is there", || {
        certificate(&TlsClient::login(front.port, &config, &LOGIN).unwrap()) != first
    });
    assert_eq!(before.value("select 1").unwrap(), "1");
    let second = certificate(&TlsClient::login(front.port, &config, &LOGIN).unwrap());
    dir.write("front.crt", "nonsense");
    front.signal("HUP");
    wait_until("the bad file is complained about", || front.log().contains("front.crt"));
    let mut after = TlsClient::login(front.port, &config, &LOGIN).unwrap();
    assert_eq!((certificate(&after), after.value("select 1").unwrap().as_str()), (second, "1"));
    assert_eq!(before.value("select 2").unwrap(), "2");
}

#[test]
fn f16_when_the_listeners_certificate_ends_is_told_and_warned_of_in_time() {
    let secure = secure();
    let dir = Dir::new();
    let until = |year, month, day| {
        let pair = secure
            .authority
            .sign_with(&["localhost"], |params| params.not_after = rcgen::date_time_ymd(year, month, day));
        pair.write(&dir, "ends")
    };
    let (cert, key) = until(2040, 1, 1);
    let url = url(shared());
    let front = Ambassador::start(&[&url, "--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()]);
    let ends = || front.metric("pg_ambassador_tls_cert_expiry_timestamp_seconds");
    // What `date -u -d 2040-01-01 +%s` says.
    assert_eq!(ends(), 2_208_988_800.0);
    assert!(!front.log().contains("renew it"));
    until(2020, 1, 1);
    front.signal("HUP");
    wait_until("the other certificate is there", || ends() == 1_577_836_800.0);
    assert!(front.log().contains("renew it"), "{}", front.log());
    let plain = Ambassador::start(&[&url]);
    assert!(!plain.http("/metrics").1.contains("tls_cert_expiry"), "there is none");
}

#[test]
fn a_changed_client_certificate_is_shown_by_new_connections_and_the_working_ones_stay() {
    let secure = secure();
    let dir = Dir::new();
    let renew = || drop(secure.authority.sign(&["certified"]).write(&dir, "own"));
    renew();
    let own = format!("&sslcert={0}/own.crt&sslkey={0}/own.key", dir.path().display());
    let ambassador = Ambassador::start(&[secure.url("certified", &own)]);
    let serial = "select client_serial from pg_stat_ssl where pid = pg_backend_pid()";
    let mut working = Client::new(ambassador.port);
    working.query("begin");
    let before = working.value(serial);
    renew();
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    let mut other = Client::new(ambassador.port);
    wait_until("the new certificate is shown", || {
        console.query("RECONNECT");
        other.value(serial) != before
    });
    assert_eq!(working.value(serial), before);
}
