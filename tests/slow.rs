//! Clients that do not read, messages without an end, and a machine that has nothing left to give.

use crate::support::client::{Message, message, query};
use crate::support::{Ambassador, Client, shared, url, wait_until};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Resident memory of the ambassador, in bytes.
fn resident(ambassador: &Ambassador) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", ambassador.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// The most that is resident while something goes on.
fn most_resident(ambassador: &Ambassador, work: impl FnOnce() + Send) -> usize {
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        let mut most = 0;
        while !work.is_finished() {
            most = most.max(resident(ambassador));
            std::thread::sleep(Duration::from_millis(5));
        }
        work.join().unwrap();
        most
    })
}

const MIB: usize = 1024 * 1024;

#[test]
fn f20_clients_that_do_not_read_their_results_cost_next_to_nothing() {
    const CLIENTS: usize = 50;
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "50"]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(ambassador.port)).collect();
    // What a transaction costs at all is no part of it.
    clients.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
    let before = resident(&ambassador);
    for client in &mut clients {
        client.send(&query("select repeat('x', 1000) from generate_series(1, 64 * 1024)"));
    }
    let mut direct = Client::new(shared().port());
    wait_until("all servers wait for their clients", || {
        direct.value(
            "select count(*) from pg_stat_activity where wait_event = 'ClientWrite' and query like '%64 * 1024%'",
        ) == CLIENTS.to_string()
    });
    let more = resident(&ambassador).saturating_sub(before);
    assert!(more < 16 * MIB, "{more} bytes for {CLIENTS} clients that do not read");
    // And who does read in the end has lost nothing.
    let rows = clients[0].read_until(b"Z").unwrap().iter().filter(|m| m.tag == b'D').count();
    assert_eq!(rows, 64 * 1024);
}

/// A message that has to be whole, and is large.
fn large() -> Vec<u8> {
    query(format!("select length('{}')", "x".repeat(60_000)))
}

/// An ambassador, three clients, and others that have taken all that buffers may take up: their messages are not whole.
fn exhausted(more: &[&str]) -> (Ambassador, [Client; 3], Vec<Client>) {
    let url = url(shared());
    let ambassador = Ambassador::start(&[&[url.as_str(), "-s", "buffer_limit=1MiB", "--workers", "1"], more].concat());
    let clients = std::array::from_fn(|_| Client::new(ambassador.port));
    let mut others: Vec<Client> = (0..20).map(|_| Client::new(ambassador.port)).collect();
    for other in &mut others {
        other.send(&large()[..59_000]);
    }
    wait_until("the limit is reached", || ambassador.metric("pg_ambassador_buffers_exhausted_total") == 1.0);
    (ambassador, clients, others)
}

#[test]
fn f20_where_all_buffers_are_taken_newcomers_are_refused_and_who_is_there_goes_on() {
    let (ambassador, [mut small, mut reader, _], others) = exhausted(&[]);
    let refused = Client::try_login(ambassador.port, &[("user", "postgres"), ("database", "postgres")]).err().unwrap();
    assert_eq!((refused.field(b'S').as_deref(), refused.code().as_str()), (Some("FATAL"), "53200"));
    assert!(refused.field(b'H').unwrap().contains("buffer_limit"));
    // The console is there, and says why.
    let buffers = ambassador.show("MEM").into_iter().find(|row| row[0].as_deref() == Some("buffers")).unwrap();
    assert!(buffers[4].as_ref().unwrap().parse::<usize>().unwrap() > MIB - MIB / 8, "{buffers:?}");
    assert_eq!(small.value("select 1"), "1");
    // Who takes what is sent is served, however much it is.
    reader.send(&query("select repeat('f20', 1000) from generate_series(1, 4096)"));
    assert!(read_through(&mut reader) > 4096 * 3000);
    drop(others);
    wait_until("nothing is kept", || ambassador.metric("pg_ambassador_buffer_bytes") == 0.0);
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
}

#[test]
fn f20_a_large_message_waits_for_room_and_is_then_taken() {
    let (ambassador, [mut large, mut small, _], others) = exhausted(&[]);
    large.send(&self::large());
    // The one worker has looked at it when it has answered this.
    assert_eq!(small.value("select 1"), "1");
    assert_eq!(ambassador.metric("pg_ambassador_buffers_exhausted_total"), 1.0);
    large.stream.set_nonblocking(true).unwrap();
    assert_eq!(large.stream.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    large.stream.set_nonblocking(false).unwrap();
    drop(others);
    let answer = large.read_until(b"Z").unwrap();
    assert!(answer.iter().any(|message| message.tag == b'D' && message.body.ends_with(b"60000")), "{answer:?}");
}

#[test]
fn f20_who_keeps_room_and_says_nothing_is_ended_and_who_waits_for_it_goes_on() {
    let (ambassador, [mut large, ..], mut others) = exhausted(&["--checkout-timeout", "500ms"]);
    let text = self::large();
    large.send(&text[..59_000]);
    let login = || Client::try_login(ambassador.port, &[("user", "postgres"), ("database", "postgres")]);
    wait_until("newcomers are let in again", || login().is_ok());
    assert!(ambassador.metric("pg_ambassador_clients_ended_total") >= 3.0, "as many as keep an eighth of it");
    let ended = others.iter_mut().find_map(|other| {
        other.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        other.read().ok()
    });
    let ended = ended.expect("one of those who said nothing was told why it was ended");
    assert_eq!((ended.field(b'S').as_deref(), ended.code().as_str()), (Some("FATAL"), "53200"));
    large.send(&text[59_000..]);
    let answer = large.read_until(b"Z").unwrap();
    assert!(answer.iter().any(|message| message.tag == b'D' && message.body.ends_with(b"60000")), "{answer:?}");
}

#[test]
fn f21_a_client_that_does_not_read_for_too_long_is_closed_and_its_query_cancelled() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1", "--set", "client_write_timeout=300ms"]);
    let mut client = Client::new(ambassador.port);
    client.send(&query("select repeat('slow f21', 1000) from generate_series(1, 1000000)"));
    let mut next = Client::new(ambassador.port);
    assert_eq!(next.value("select 1"), "1");
    let mut direct = Client::new(shared().port());
    wait_until("the query has ended", || {
        direct.value(
            "select count(*) from pg_stat_activity where state = 'active' and query like '%slow f21%' and pid <> pg_backend_pid()",
        ) == "0"
    });
    let mut rest = Vec::new();
    // Its connection has ended, behind what it did not read.
    let _ = client.stream.read_to_end(&mut rest);
    wait_until("it is not served any more", || ambassador.show("CLIENTS").len() == 1);
}

#[test]
fn who_is_there_and_does_not_read_for_a_while_is_not_taken_for_gone() {
    let cluster = shared();
    let through = format!("{}&tcp_user_timeout=500", url(cluster));
    let ambassador = Ambassador::start(&[&through, "--pool-size", "2", "--set", "tcp.user_timeout=500ms"]);
    let mut direct = Client::new(cluster.port());
    direct.query("drop table if exists slow_lock; create table slow_lock (x text)");
    direct.query("begin; lock table slow_lock");
    // A client that looks at the first page of a long result.
    let mut reader = Client::new(ambassador.port);
    reader.send(&query("select repeat('slow', 250) from generate_series(1, 40000)"));
    // And a server that waits for a lock before it reads what is copied.
    let mut writer = Client::new(ambassador.port);
    let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
    let data = [query("copy slow_lock from stdin"), message(b'd', &line).repeat(16 * 1024), message(b'c', b"")];
    let sender = std::thread::spawn(move || {
        writer.send(&data.concat());
        writer
    });
    let waits = "select count(*) from pg_locks where not granted and relation = 'slow_lock'::regclass";
    wait_until("the COPY waits", || direct.value(waits) == "1");
    // Nobody says when the system would lose its patience: after half a second, and the time of a probe.
    std::thread::sleep(Duration::from_secs(2));
    direct.query("commit");
    assert!(read_through(&mut reader) > 40_000_000);
    let messages = sender.join().unwrap().read_until(b"Z").unwrap();
    let tags: Vec<u8> = messages.iter().map(|message| message.tag).collect();
    assert_eq!(tags, b"GCZ");
    assert_eq!(direct.value("select count(*) from slow_lock"), (16 * 1024).to_string());
    // What was lifted for them is in force again.
    assert_eq!(reader.value("select 1"), "1");
}

/// A way to a server that can vanish: who is connected is not heard of any more, and nobody else gets an answer either.
struct Way {
    port: u16,
    vanished: Arc<AtomicBool>,
    crowd: Vec<TcpStream>,
}

impl Way {
    fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let vanished = Arc::<AtomicBool>::default();
        let flag = Arc::clone(&vanished);
        std::thread::spawn(move || {
            // One connection that nobody takes fills the queue of those: whoever knocks then hears nothing.
            socket2::SockRef::from(&listener).listen(0).unwrap();
            while !flag.load(Ordering::SeqCst) {
                let Ok((near, _)) = listener.accept() else { return };
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { return };
                let ways = [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)];
                for (mut from, mut to) in ways {
                    let flag = Arc::clone(&flag);
                    std::thread::spawn(move || {
                        let mut chunk = [0; 4096];
                        while let Ok(read) = from.read(&mut chunk) {
                            if flag.load(Ordering::SeqCst) {
                                std::thread::sleep(Duration::from_secs(30));
                            }
                            if read == 0 || to.write_all(&chunk[..read]).is_err() {
                                return;
                            }
                        }
                    });
                }
            }
            std::thread::sleep(Duration::from_secs(30));
        });
        Self { port: address.port(), vanished, crowd: Vec::new() }
    }

    fn vanish(&mut self) {
        self.vanished.store(true, Ordering::SeqCst);
        let address = ([127, 0, 0, 1], self.port).into();
        while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            self.crowd.push(one);
        }
    }
}

#[test]
fn f06_a_server_that_vanishes_behind_much_that_it_was_sent_is_missed() {
    let mut way = Way::to(shared().port());
    let through = format!("postgres://127.0.0.1:{}/?sslmode=disable&tcp_user_timeout=1000", way.port);
    let ambassador = Ambassador::start(&[&through, "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    assert_eq!(client.value("select 1"), "1");
    way.vanish();
    let answer = client.exchange(&query(format!("select length('{}')", "x".repeat(48 * 1024))));
    assert_eq!(answer[0].tag, b'E', "{answer:?}");
    assert_eq!(answer[0].code(), "08006");
    assert_eq!(answer.last().unwrap().tag, b'Z');
}

/// Reads a result and throws it away; gives the size of it.
fn read_through(client: &mut Client) -> usize {
    // Piece by piece: one message may be larger than what a test wants to hold.
    let (mut total, mut head) = (0, [0; 5]);
    let mut chunk = vec![0; 65536];
    loop {
        client.stream.read_exact(&mut head).unwrap();
        let mut left = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4;
        total += left;
        while left > 0 {
            let piece = left.min(chunk.len());
            client.stream.read_exact(&mut chunk[..piece]).unwrap();
            left -= piece;
        }
        assert_ne!(head[0], b'E', "{}", String::from_utf8_lossy(&chunk[..200]));
        if head[0] == b'Z' {
            return total;
        }
    }
}

#[test]
fn f24_messages_and_copies_of_any_size_stream_past_in_constant_memory() {
    const SIZE: usize = 128 * MIB;
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    client.query("drop table if exists slow_copy; create unlogged table slow_copy (v text)");
    // Once through everything in small, so that what is only needed once is there.
    let copy_in = |client: &mut Client, size: usize, piece: usize| {
        client.send(&query("copy slow_copy from stdin"));
        assert_eq!(client.read().unwrap().tag, b'G');
        let mut row = vec![b'x'; piece - 1];
        row.push(b'\n');
        let head = message(b'd', &row);
        for _ in 0..size / piece {
            client.stream.write_all(&head).unwrap();
        }
        client.send(&message(b'c', b""));
        let tags: Vec<u8> = client.read_until(b"Z").unwrap().iter().map(|m: &Message| m.tag).collect();
        assert_eq!(tags, b"CZ");
        client.query("truncate slow_copy");
    };
    let all = |client: &mut Client, size: usize| {
        client.send(&query(format!("select repeat('x', {size})")));
        assert!(read_through(client) >= size);
        client.send(&query(format!(
            "copy (select repeat('x', 1000) from generate_series(1, {})) to stdout",
            size / 1000
        )));
        assert!(read_through(client) >= size / 1000 * 1000);
        copy_in(client, size, 64 * 1024);
        copy_in(client, size / 4, size / 4);
    };
    all(&mut client, MIB);
    let before = resident(&ambassador);
    let most = most_resident(&ambassador, || all(&mut client, SIZE));
    let more = most.saturating_sub(before);
    assert!(more < MIB, "{more} bytes more for messages of {SIZE}");
}

#[test]
fn f19_out_of_file_descriptors_who_is_there_goes_on_and_newcomers_wait() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "2"]);
    let mut there: Vec<Client> = (0..4).map(|_| Client::new(ambassador.port)).collect();
    there.iter_mut().for_each(|client| drop(client.query("select 1")));
    // Both limits: the program takes all that the hard one allows.
    let pid = ambassador.pid().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, "--nofile=64:64"]).status().unwrap();
    assert!(status.success());
    let crowd: Vec<Client> = (0..100).map(|_| Client::connect(ambassador.port)).collect();
    wait_until("there is no descriptor left", || ambassador.log().contains("cannot accept a connection"));
    for client in &mut there {
        assert_eq!(client.value("select 1"), "1");
    }
    drop(crowd);
    assert_eq!(Client::new(ambassador.port).value("select 1"), "1");
    assert!(ambassador.metric("pg_ambassador_accept_errors_total") > 0.0);
}

#[test]
fn f23_a_flood_of_clients_is_served_up_to_the_limit_and_the_rest_refused() {
    const LIMIT: usize = 20;
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "2", "--max-clients", &LIMIT.to_string()]);
    let port = ambassador.port;
    let logins: Vec<_> = std::thread::scope(|scope| {
        let login = || Client::try_login(port, &[("user", "postgres"), ("database", "postgres")]);
        let threads: Vec<_> = (0..200).map(|_| scope.spawn(login)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (mut served, refused): (Vec<_>, Vec<_>) = logins.into_iter().partition(Result::is_ok);
    assert_eq!(served.len(), LIMIT);
    for error in refused.into_iter().filter_map(Result::err) {
        assert_eq!((error.field(b'S').as_deref(), error.code().as_str()), (Some("FATAL"), "53300"));
        assert_eq!(error.field(b'M').as_deref(), Some("sorry, too many clients already"));
    }
    for client in served.iter_mut().flatten() {
        assert_eq!(client.value("select 1"), "1");
    }
    // The console is not for the many: it has to be there when they are too many.
    assert_eq!(ambassador.show("CLIENTS").len(), LIMIT);
    drop(served);
    wait_until("they have left", || ambassador.show("CLIENTS").is_empty());
    assert_eq!(Client::new(port).value("select 1"), "1");
}

#[test]
fn i24_a_large_message_leaves_no_large_buffer_behind() {
    const CLIENTS: usize = 20;
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "20"]);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(ambassador.port)).collect();
    clients.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
    let before = resident(&ambassador);
    let text = "x".repeat(2 * MIB);
    for client in &mut clients {
        assert_eq!(client.value(&format!("select length('{text}')")), text.len().to_string());
        client.send(&query(format!("select repeat('x', {})", 4 * MIB)));
        read_through(client);
    }
    let more = resident(&ambassador).saturating_sub(before);
    assert!(more < 4 * MIB, "{more} bytes are still there after large messages of {CLIENTS} clients");
}
