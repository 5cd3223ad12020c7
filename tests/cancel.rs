//! A cancel request cancels its own client's query, and never anything else.

use crate::support::chaos::{Chaos, Rule, Way};
use crate::support::client::{bind, execute, message, parse, query, sync};
use crate::support::{Ambassador, Client, PATIENCE, Random, shared, url, wait_until};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The packet that cancels what the client with this key runs.
fn request(key: &[u8]) -> Vec<u8> {
    let len = u32::try_from(8 + key.len()).unwrap();
    [&len.to_be_bytes()[..], &80_877_102_u32.to_be_bytes(), key].concat()
}

/// Sends a cancel request and waits until it is done; what was answered, which must be nothing.
fn cancel(port: u16, key: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&request(key)).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn is_running(marker: &str) -> bool {
    let sql = format!(
        "select count(*) from pg_stat_activity where state = 'active' and query like '%{marker}%' and pid <> pg_backend_pid()"
    );
    Client::new(shared().port()).value(&sql) != "0"
}

#[test]
fn a_running_query_is_cancelled_and_its_client_goes_on() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    for sql in ["select pg_sleep(3600), 'cancel one'", "begin; select pg_sleep(3600), 'cancel one'"] {
        client.send(&query(sql));
        wait_until("the query runs", || is_running("cancel one"));
        assert_eq!(cancel(ambassador.port, &client.key), b"");
        let messages = client.read_until(b"Z").unwrap();
        let error = messages.iter().find(|m| m.tag == b'E').unwrap();
        assert_eq!((error.code().as_str(), error.field(b'S').as_deref()), ("57014", Some("ERROR")));
        client.query("rollback");
        assert_eq!(client.value("select 1"), "1");
    }
}

#[test]
fn a_client_that_waits_for_a_server_is_taken_out_of_the_queue() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut holder = Client::new(ambassador.port);
    holder.query("begin; select 1");
    let mut waiter = Client::new(ambassador.port);
    for request in [
        query("select 'never run'"),
        [parse("", "select 1"), bind("", "", &[]), execute("", 0), sync()].concat(),
        query("begin; select 1"),
    ] {
        waiter.send(&request);
        wait_until("the client waits", || ambassador.show("POOLS")[0][3].as_deref() == Some("1"));
        assert_eq!(cancel(ambassador.port, &waiter.key), b"");
        let messages = waiter.read_until(b"Z").unwrap();
        let tags: Vec<u8> = messages.iter().map(|m| m.tag).collect();
        assert_eq!(tags, b"EZ");
        assert_eq!((messages[0].code().as_str(), messages[1].body.as_slice()), ("57014", b"I".as_slice()));
    }
    // The holder was never touched, and the waiter is none the worse.
    holder.query("commit");
    assert_eq!(waiter.value("select 2"), "2");
}

#[test]
fn a_key_that_is_nobodys_or_of_a_client_that_left_is_met_with_silence() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    let left = Client::new(ambassador.port);
    let old_key = left.key.clone();
    drop(left);
    wait_until("the client has left", || ambassador.show("CLIENTS").len() == 1);
    client.send(&query("select pg_sleep(0.5), 'not cancelled'"));
    let mut wrong_secret = client.key.clone();
    *wrong_secret.last_mut().unwrap() ^= 1;
    let mut long_secret = client.key.clone();
    long_secret.extend([0; 28]);
    for key in [&old_key, &wrong_secret, &long_secret, &vec![0; 8]] {
        assert_eq!(cancel(ambassador.port, key), b"");
    }
    assert!(client.read_until(b"Z").unwrap().iter().all(|m| m.tag != b'E'));
}

#[test]
fn a_cancel_in_a_pipeline_ends_one_request_and_the_others_are_answered() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    let sleep = "select pg_sleep(3600), 'cancel piped'";
    let batch = [parse("", sleep), bind("", "", &[]), execute("", 0), bind("", "", &[]), execute("", 0), sync()];
    for first in [query(sleep), batch.concat()] {
        client.send(&[first, query("select 'second'"), query("select 'third'")].concat());
        wait_until("the query runs", || is_running("cancel piped"));
        cancel(ambassador.port, &client.key);
        let messages = client.read_until(b"Z").unwrap();
        let errors: Vec<String> = messages.iter().filter(|m| m.tag == b'E').map(|m| m.code()).collect();
        assert_eq!(errors, ["57014"]);
        for expected in ["second", "third"] {
            let messages = client.read_until(b"Z").unwrap();
            let row = messages.iter().find(|m| m.tag == b'D').unwrap();
            assert_eq!(row.columns()[0].as_deref(), Some(expected));
        }
    }
}

#[test]
fn a_cancel_comes_through_tls() {
    let (cert, key, roots) = certificate();
    let dir = shared().dir();
    let (cert_path, key_path) = (dir.join("cancel.crt"), dir.join("cancel.key"));
    std::fs::write(&cert_path, cert).unwrap();
    std::fs::write(&key_path, key).unwrap();
    let paths = [cert_path.to_str().unwrap(), key_path.to_str().unwrap()];
    let ambassador =
        Ambassador::start(&[&url(shared()), "--pool-size", "1", "--tls-cert", paths[0], "--tls-key", paths[1]]);
    let mut client = Client::new(ambassador.port);
    client.send(&query("select pg_sleep(3600), 'cancel tls'"));
    wait_until("the query runs", || is_running("cancel tls"));

    let mut stream = TcpStream::connect(("127.0.0.1", ambassador.port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"S");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut tls = rustls::StreamOwned::new(connection, stream);
    tls.write_all(&request(&client.key)).unwrap();
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    let messages = client.read_until(b"Z").unwrap();
    assert_eq!(messages.iter().find(|m| m.tag == b'E').unwrap().code(), "57014");
}

/// A certificate for localhost, its key, and who trusts it.
fn certificate() -> (String, String, rustls::RootCertStore) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem(), roots)
}

#[test]
fn i04_a_client_that_cancels_nothing_is_never_cancelled() {
    const CLIENTS: usize = 8;
    const QUERIES: usize = 300;
    // The way of a cancel request to the server takes long: that is when it would meet the next client's query.
    let slow = Chaos::start(shared().port());
    let ambassador =
        Ambassador::start(&[&format!("postgres://127.0.0.1:{}/?sslmode=disable", slow.port), "--pool-size", "2"]);
    let port = ambassador.port;
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(port)).collect();
    for client in &mut clients {
        client.query("select 1");
    }
    slow.dial_delay(Duration::from_millis(25));
    let dialled = slow.accepted();
    let cancelled = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (id, client) in clients.iter_mut().enumerate() {
            let cancelled = &cancelled;
            scope.spawn(move || {
                let mut random = Random::new(id as u64);
                let cancels = id % 2 == 0;
                for at in 0..QUERIES {
                    let sql = format!("select '{id}-{at}', pg_sleep({})", random.below(4) as f64 / 1000.0);
                    client.send(&query(sql));
                    let canceller = (cancels && random.below(10) < 3).then(|| {
                        let (key, delay) = (client.key.clone(), Duration::from_millis(random.below(24) as u64));
                        std::thread::spawn(move || {
                            std::thread::sleep(delay);
                            cancel(port, &key);
                        })
                    });
                    let messages = client.read_until(b"Z").unwrap();
                    match messages.iter().find(|m| m.tag == b'E') {
                        None => {
                            let row = messages.iter().find(|m| m.tag == b'D').unwrap();
                            assert_eq!(row.columns()[0], Some(format!("{id}-{at}")));
                        }
                        Some(error) => {
                            assert_eq!(error.code(), "57014", "client {id}, seed {id}");
                            assert!(cancels, "client {id} was hit by somebody else's cancel request");
                            cancelled.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    // Half of them let the request overtake the next query, as impatient applications do.
                    if let Some(canceller) = canceller.filter(|_| random.one_in(2)) {
                        canceller.join().unwrap();
                    }
                }
            });
        }
    });
    assert!(slow.accepted() > dialled, "no cancel request ever went to the server: nothing was tested");
    assert!(cancelled.load(Ordering::Relaxed) > 0, "no cancel request ever hit its own query: nothing was tested");
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn i22_a_storm_of_cancel_requests_takes_a_lane_of_its_own() {
    const POOL: usize = 2;
    let slow = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[
        &format!("postgres://127.0.0.1:{}/?sslmode=disable", slow.port),
        "--pool-size",
        &POOL.to_string(),
    ]);
    let port = ambassador.port;
    let mut victim = Client::new(port);
    let mut bystander = Client::new(port);
    victim.query("begin; select 1");
    bystander.query("select 1");
    victim.query("rollback");
    slow.dial_delay(Duration::from_millis(20));
    let over = AtomicBool::new(false);
    let most = AtomicUsize::new(0);
    let key = victim.key.clone();
    std::thread::scope(|scope| {
        // A failed assertion shall end the test, not leave the others running.
        let ended = Ended(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(slow.open(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        scope.spawn(|| {
            // Whatever hits it are its own cancel requests.
            while !over.load(Ordering::Relaxed) {
                let _ = victim.try_query("select pg_sleep(0.05)");
            }
        });
        let stormers: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..10 {
                        cancel(port, &key);
                    }
                })
            })
            .collect();
        for _ in 0..50 {
            assert_eq!(bystander.value("select 42"), "42");
        }
        for stormer in stormers {
            stormer.join().unwrap();
        }
        drop(ended);
    });
    let most = most.load(Ordering::Relaxed);
    // The lane has room for twice the pool; the proxy sees the end of a connection a moment after its beginning's maker.
    assert!(most <= POOL + 2 * (2 * POOL), "{most} connections to the server at a time");
    bystander.send(&message(b'X', b""));
}

#[test]
fn i04_a_cancel_request_that_nobody_has_seen_arrive_hits_nobody_else_and_keeps_nobody_from_a_login() {
    let slow = Chaos::start(shared().port());
    let url = format!("postgres://127.0.0.1:{}/?sslmode=disable", slow.port);
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1", "--workers", "1", "-s", "max_logins=2"]);
    let mut holder = Client::new(shared().port());
    holder.query("select pg_advisory_lock(2801)");
    let mut first = Client::new(ambassador.port);
    let pid = first.value("select pg_backend_pid()");
    first.send(&query("select pg_advisory_xact_lock_shared(2801), 'cancel late'"));
    wait_until("the query runs", || is_running("cancel late"));

    // What goes to the server is read by nobody, as if it had no time for it.
    slow.set(Way::ToServer, Rule { stalled: true, ..Rule::default() });
    let dialled = slow.accepted();
    let cancels: Vec<_> = (0..2)
        .map(|_| {
            let (port, key) = (ambassador.port, first.key.clone());
            std::thread::spawn(move || cancel(port, &key))
        })
        .collect();
    wait_until("both are on their way", || slow.accepted() == dialled + 2);
    drop(Client::new(ambassador.port));
    assert!(cancels.iter().all(|cancel| !cancel.is_finished()), "nobody waits for them to log in");
    for cancel in cancels {
        assert_eq!(cancel.join().unwrap(), b"");
    }
    holder.query("select pg_advisory_unlock(2801)");
    assert!(first.read_until(b"Z").unwrap().iter().all(|message| message.tag != b'E'));
    // They may arrive at any time from now on.
    slow.calm();
    assert_ne!(Client::new(ambassador.port).value("select pg_backend_pid()"), pid);
}
