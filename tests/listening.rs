//! The connection that listens for all clients: what reaches whom, and what happens when it is lost.

use crate::support::chaos::{Chaos, How, Way};
use crate::support::client::query;
use crate::support::{Ambassador, Client, PATIENCE, cluster, shared, url, wait_until};
use pg_ambassador::config::{self, Sources};
use pg_ambassador::demo::cluster::Options;
use pg_ambassador::listen::{Habits, Hubs, LIMIT, Listener, Missed, Status};
use pg_ambassador::net::budget::Kept;
use pg_ambassador::pool::directory::Purpose;
use pg_ambassador::pool::{Directory, PoolSet};
use pg_ambassador::session::Interners;
use pg_ambassador::telemetry::Telemetry;
use pg_ambassador::wire::{Report, backend};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Hubs in front of a server, on a runtime of their own as in the program.
struct Exchange {
    directory: Arc<Directory>,
    hubs: Arc<Hubs>,
    runtime: Handle,
    _end: oneshot::Sender<()>,
}

impl Exchange {
    fn new(url: &str, habits: Habits) -> Self {
        Self::with(&[("url".to_owned(), url.to_owned())], habits)
    }

    fn with(settings: &[(String, String)], habits: Habits) -> Self {
        let config = config::resolve(&Sources { flags: settings.to_vec(), ..Sources::default() }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (interners, telemetry) = (Arc::new(Interners::default()), Arc::new(Telemetry::default()));
        let directory = Directory::new(&config.directory, interners, telemetry, handle.clone()).unwrap();
        let (end, ended) = oneshot::channel();
        std::thread::spawn(move || drop(runtime.block_on(ended)));
        let hubs = Hubs::new(handle.clone(), habits, Arc::default());
        Self { directory, hubs, runtime: handle, _end: end }
    }

    fn at(port: u16) -> Self {
        Self::new(&format!("postgres://127.0.0.1:{port}/?sslmode=disable"), Habits::default())
    }

    fn pools(&self, database: &str, user: &str) -> Arc<PoolSet> {
        self.directory.pools(database, user, Purpose::Clients, None).unwrap()
    }

    fn client_of(&self, database: &str, encoding: &str) -> Listener {
        self.hubs.listener(&self.pools(database, "postgres"), encoding, Waker::noop().clone())
    }

    fn client(&self) -> Listener {
        self.client_of("postgres", "UTF8")
    }

    fn try_listen(&self, client: &Listener, channels: &[&[u8]], patience: Duration) -> Result<(), Report> {
        let channels = channels.iter().map(|channel| Box::from(*channel));
        self.runtime.block_on(client.listen(channels, Instant::now() + patience))
    }

    fn listen(&self, client: &Listener, channels: &[&str]) {
        let channels: Vec<&[u8]> = channels.iter().map(|channel| channel.as_bytes()).collect();
        self.try_listen(client, &channels, PATIENCE).unwrap();
    }

    fn status(&self) -> Status {
        let mut all = self.hubs.status();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn pid(&self) -> i32 {
        self.status().connection.unwrap().1
    }
}

/// What has come, as channel and payload.
fn mail(client: &Listener) -> Vec<(String, String)> {
    let frames = client.mailbox().take().unwrap();
    let read = |frame: &Arc<Kept>| {
        assert_eq!(frame[0], b'A');
        let notification = backend::notification(&frame[5..]).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(notification.channel), text(notification.payload))
    };
    frames.iter().map(read).collect()
}

/// Waits for so many, and no more.
fn wait_for_mail(client: &Listener, count: usize) -> Vec<(String, String)> {
    let mut all = Vec::new();
    wait_until("the mail comes", || {
        all.extend(mail(client));
        all.len() >= count
    });
    assert_eq!(all.len(), count, "{:?}", &all[count..]);
    all
}

fn notify(client: &mut Client, channel: &str, payload: &str) {
    let [channel, payload] = [channel, payload].map(|text| text.replace('\'', "''"));
    client.query(&format!("select pg_notify('{channel}', '{payload}')"));
}

fn pair(channel: &str, payload: &str) -> (String, String) {
    (channel.to_owned(), payload.to_owned())
}

/// A name that no other test uses: they share a server.
fn unique(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    format!("{name} {}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[test]
fn notifications_come_in_order_whole_and_from_the_moment_of_the_subscription() {
    let exchange = Exchange::at(shared().port());
    let (early, late) = (exchange.client(), exchange.client());
    let channel = unique("order");
    let mut notifier = Client::new(shared().port());
    notify(&mut notifier, &channel, "too early");
    exchange.listen(&early, &[&channel]);
    for n in 0..100 {
        notify(&mut notifier, &channel, &n.to_string());
    }
    // The server need not be asked for a channel that it tells us of, but what is on its way is not for who comes now.
    exchange.listen(&late, &[&channel]);
    assert!(!late.mailbox().has_mail(), "{:?}", mail(&late));
    let long = "x".repeat(7999);
    notify(&mut notifier, &channel, &long);
    notifier.query("begin");
    notify(&mut notifier, &channel, "a");
    notify(&mut notifier, &channel, "b");
    notifier.query("commit");
    let mut expected: Vec<_> = (0..100).map(|n| pair(&channel, &n.to_string())).collect();
    let end = [pair(&channel, &long), pair(&channel, "a"), pair(&channel, "b")];
    expected.extend(end.clone());
    assert_eq!(wait_for_mail(&early, 103), expected);
    assert_eq!(wait_for_mail(&late, 3), end);
    let frame_pid = {
        notify(&mut notifier, &channel, "c");
        wait_until("it comes", || early.mailbox().has_mail());
        let frames = early.mailbox().take().unwrap();
        backend::notification(&frames[0][5..]).unwrap().pid
    };
    assert_eq!(frame_pid.to_string(), notifier.value("select pg_backend_pid()"), "it names who has notified");
    let status = exchange.status();
    assert_eq!(
        (status.channels, status.clients, status.notifications, status.delivered, status.lost),
        (1, 2, 104, 108, 0)
    );
}

#[test]
fn any_name_can_be_listened_to() {
    let exchange = Exchange::at(shared().port());
    let client = exchange.client();
    let long = "é".repeat(31) + "x";
    let names = [
        "we\"ird; drop table x; --",
        " with space ",
        "UPPER",
        "upper",
        "ünïcödé ☃",
        "select",
        "back\\slash 'quoted'",
        "new\nline",
        "\"",
        "$$",
        &long,
    ];
    exchange.listen(&client, &names);
    let mut notifier = Client::new(shared().port());
    for name in names {
        notify(&mut notifier, name, name);
    }
    let expected: Vec<_> = names.iter().map(|name| pair(name, name)).collect();
    assert_eq!(wait_for_mail(&client, names.len()), expected);
    for bad in [&b""[..], b"nul\0byte", &[b'x'; 64]] {
        let report = exchange.try_listen(&client, &[b"fine", bad], PATIENCE).unwrap_err();
        assert_eq!(report.code.as_str(), "22023", "{report:?}");
    }
    assert_eq!(exchange.status().channels, names.len());
}

#[test]
fn a_name_that_the_server_refuses_fails_for_whoever_wants_it_alone() {
    let exchange = Exchange::at(shared().port());
    let (good, bad, other) = (exchange.client(), exchange.client(), exchange.client());
    let channel = unique("refused");
    let deadline = Instant::now() + PATIENCE;
    let name = |name: &[u8]| [Box::from(name)];
    // Asked for together: one request to the server.
    let subscriptions = (
        good.listen(name(channel.as_bytes()), deadline),
        bad.listen([Box::from(&b"\xff\xfe"[..]), Box::from(&b"fine"[..])], deadline),
        other.listen(name(channel.as_bytes()), deadline),
    );
    exchange.runtime.block_on(async {
        subscriptions.0.await.unwrap();
        let report = subscriptions.1.await.unwrap_err();
        assert_eq!(report.code.as_str(), "22021", "{report:?}");
        subscriptions.2.await.unwrap();
    });
    assert!(bad.is_idle(), "none of its channels is listened to");
    notify(&mut Client::new(shared().port()), &channel, "1");
    assert_eq!(wait_for_mail(&good, 1), wait_for_mail(&other, 1));
    exchange.try_listen(&bad, &[b"fine"], PATIENCE).unwrap();
}

#[test]
fn thousands_of_channels_and_hundreds_of_clients_each_get_what_is_theirs() {
    const CHANNELS: usize = 3_000;
    let exchange = Exchange::at(shared().port());
    let prefix = unique("many");
    let channel = |n: usize| format!("{prefix}-{n}");
    let all = exchange.client();
    let names: Vec<String> = (0..CHANNELS).map(channel).collect();
    exchange.listen(&all, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let common = unique("common");
    let clients: Vec<Listener> = (0..200).map(|_| exchange.client()).collect();
    let deadline = Instant::now() + PATIENCE;
    let wanted = |n: usize| [channel(n), common.clone()].map(|name| Box::from(name.as_bytes()));
    let subscriptions: Vec<_> =
        clients.iter().enumerate().map(|(n, client)| client.listen(wanted(n), deadline)).collect();
    exchange.runtime.block_on(async {
        for subscription in subscriptions {
            subscription.await.unwrap();
        }
    });
    let mut notifier = Client::new(shared().port());
    notifier.query(&format!("select pg_notify('{prefix}-' || n, n::text) from generate_series(0, {}) n", CHANNELS - 1));
    notify(&mut notifier, &common, "all");
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(wait_for_mail(client, 2), [pair(&channel(n), &n.to_string()), pair(&common, "all")]);
    }
    let got = wait_for_mail(&all, CHANNELS);
    assert!(got.iter().enumerate().all(|(n, (name, payload))| *name == channel(n) && *payload == n.to_string()));
    assert_eq!(exchange.status().clients, 201);
    drop(clients);
    wait_until("they are gone", || exchange.status().clients == 1);
    assert_eq!(exchange.status().channels, CHANNELS);
    let mut direct = Client::new(shared().port());
    let connections = "select count(*) from pg_stat_activity where application_name like 'pg-ambassador%' and pid = ";
    assert_eq!(direct.value(&format!("{connections}{}", exchange.pid())), "1");
}

#[test]
fn a_lost_connection_is_replaced_and_listens_to_everything_again() {
    let exchange = Exchange::at(shared().port());
    let clients: Vec<Listener> = (0..3).map(|_| exchange.client()).collect();
    let channels: Vec<String> = (0..1_500).map(|n| format!("{:060}", n + 1_000_000)).collect();
    for client in &clients {
        exchange.listen(client, &channels.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let mut notifier = Client::new(shared().port());
    for round in 1..=3 {
        let pid = exchange.pid();
        notifier.query(&format!("select pg_terminate_backend({pid}, 10000)"));
        wait_until("it is noticed", || exchange.status().lost == round);
        // A subscription is true of the new connection: it can wait for it.
        exchange.listen(&clients[0], &[&format!("late {round}")]);
        assert_ne!(exchange.pid(), pid);
        for channel in [&channels[0], &channels[1_499]] {
            notify(&mut notifier, channel, &round.to_string());
        }
        for client in &clients {
            let expected = [pair(&channels[0], &round.to_string()), pair(&channels[1_499], &round.to_string())];
            assert_eq!(wait_for_mail(client, 2), expected);
        }
    }
    assert_eq!(exchange.hubs.totals().lost.load(Ordering::Relaxed), 3);
}

#[test]
fn f6_a_connection_that_does_not_answer_is_given_up() {
    let chaos = Chaos::start(shared().port());
    let habits =
        Habits { probe: Duration::from_millis(100), patience: Duration::from_millis(500), ..Habits::default() };
    let exchange = Exchange::new(&format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port), habits);
    let client = exchange.client();
    let channel = unique("silent");
    exchange.listen(&client, &[&channel]);
    // It is asked again and again, and lives.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(exchange.status().lost, 0);
    chaos.end_all(How::Blackhole);
    wait_until("it is noticed", || exchange.status().lost == 1);
    exchange.listen(&client, &["another"]);
    notify(&mut Client::new(shared().port()), &channel, "1");
    assert_eq!(wait_for_mail(&client, 1), [pair(&channel, "1")]);
}

#[test]
fn f8_a_subscription_waits_for_the_server_until_its_deadline() {
    let chaos = Chaos::start(shared().port());
    chaos.refuse(true);
    let exchange = Exchange::at(chaos.port);
    let client = exchange.client();
    let channel = unique("wait");
    let report = exchange.try_listen(&client, &[channel.as_bytes()], Duration::from_millis(300)).unwrap_err();
    assert_eq!(report.code.as_str(), "57P03", "{report:?}");
    assert!(report.message.starts_with("pg-ambassador: ") && report.detail.is_some(), "{report:?}");
    assert!(client.is_idle());
    let subscription = client.listen([Box::from(channel.as_bytes())], Instant::now() + PATIENCE);
    std::thread::sleep(Duration::from_millis(300));
    chaos.refuse(false);
    exchange.runtime.block_on(subscription).unwrap();
    notify(&mut Client::new(shared().port()), &channel, "1");
    assert_eq!(wait_for_mail(&client, 1).len(), 1);
}

#[test]
fn where_one_role_cannot_log_in_another_listens_for_it() {
    let exchange = Exchange::at(shared().port());
    let stranger = exchange.hubs.listener(&exchange.pools("postgres", "nobody"), "UTF8", Waker::noop().clone());
    let report = exchange.try_listen(&stranger, &[b"x"], PATIENCE).unwrap_err();
    assert_eq!(report.code.as_str(), "28000", "{report:?}");
    let known = exchange.client();
    let deadline = Instant::now() + PATIENCE;
    let first = stranger.listen([Box::from(&b"x"[..])], deadline);
    let second = known.listen([Box::from(&b"x"[..])], deadline);
    exchange.runtime.block_on(async {
        // Alone it may have failed before the other came.
        drop(first.await);
        second.await.unwrap();
    });
    exchange.try_listen(&stranger, &[b"x"], PATIENCE).unwrap();
}

#[test]
fn who_listens_no_more_gets_no_more_and_the_server_is_told() {
    let chaos = Chaos::start(shared().port());
    let habits = Habits { linger: Duration::from_millis(10), ..Habits::default() };
    let exchange = Exchange::new(&format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port), habits);
    let client = exchange.client();
    let (gone, stays) = (unique("gone"), unique("stays"));
    exchange.listen(&client, &[&gone, &stays]);
    let mut notifier = Client::new(shared().port());
    notify(&mut notifier, &gone, "1");
    wait_until("it comes", || client.mailbox().has_mail());
    exchange.runtime.block_on(client.listen_only([Box::from(stays.as_bytes())], Instant::now() + PATIENCE)).unwrap();
    assert!(!client.mailbox().has_mail(), "what waited is dropped");
    wait_until("nobody listens to it", || exchange.status().channels == 1);
    // What the server still sends of the channel is counted by the proxy.
    wait_until("the server is told", || {
        let before = chaos.passed(Way::ToClient);
        notify(&mut notifier, &gone, &"x".repeat(7000));
        std::thread::sleep(Duration::from_millis(20));
        chaos.passed(Way::ToClient) - before < 7000
    });
    notify(&mut notifier, &stays, "2");
    assert_eq!(wait_for_mail(&client, 1), [pair(&stays, "2")]);
}

#[test]
fn who_catches_up_has_all_that_was_sent_before() {
    let exchange = Exchange::at(shared().port());
    let client = exchange.client();
    let catch_up = || exchange.runtime.block_on(client.catch_up(Instant::now() + PATIENCE));
    catch_up().unwrap();
    let channel = unique("catch up");
    exchange.listen(&client, &[&channel]);
    let mut notifier = Client::new(shared().port());
    for n in 0..300 {
        notify(&mut notifier, &channel, &n.to_string());
        catch_up().unwrap();
        assert_eq!(mail(&client), [pair(&channel, &n.to_string())]);
    }
    exchange.directory.set_paused(None, true);
    wait_until("there is no connection", || exchange.status().connection.is_none());
    let asked = Instant::now();
    assert!(catch_up().is_err() && asked.elapsed() < PATIENCE / 2, "nobody waits for what cannot come");
}

#[test]
fn a_connection_that_nobody_needs_is_closed_and_comes_back() {
    let habits = Habits { idle: Duration::from_millis(200), ..Habits::default() };
    let exchange = Exchange::new(&url(shared()), habits);
    let client = exchange.client();
    let channel = unique("idle");
    exchange.listen(&client, &[&channel]);
    let pid = exchange.pid();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(exchange.pid(), pid, "somebody listens");
    client.unlisten([Box::from(channel.as_bytes())]);
    wait_until("it is closed", || exchange.status().connection.is_none());
    let mut direct = Client::new(shared().port());
    wait_until("the server has seen it leave", || {
        direct.value(&format!("select count(*) from pg_stat_activity where pid = {pid}")) == "0"
    });
    exchange.listen(&client, &[&channel]);
    notify(&mut direct, &channel, "1");
    assert_eq!(wait_for_mail(&client, 1).len(), 1);
    assert_eq!(exchange.status().lost, 0);
    drop(client);
    wait_until("nothing is left", || exchange.hubs.status().is_empty());
}

#[test]
fn f30_a_pause_closes_it_and_a_reconnect_replaces_it() {
    let exchange = Exchange::at(shared().port());
    let client = exchange.client();
    let channel = unique("pause");
    exchange.listen(&client, &[&channel]);
    let (pools, pid) = (exchange.pools("postgres", "postgres"), exchange.pid());
    let pool = pools.primary().unwrap();
    let seen = pool.servers_apart();
    assert_eq!((seen.len(), seen[0].state().as_str(), pool.connections()), (1, "listening", 0));
    pool.reconnect();
    wait_until("it is replaced", || exchange.status().connection.is_some_and(|(_, now, _)| now != pid));
    exchange.directory.set_paused(None, true);
    wait_until("it is closed", || pool.servers_apart().is_empty());
    std::thread::sleep(Duration::from_millis(100));
    assert!(exchange.status().connection.is_none());
    exchange.directory.set_paused(None, false);
    exchange.listen(&client, &["more"]);
    notify(&mut Client::new(shared().port()), &channel, "1");
    assert_eq!(wait_for_mail(&client, 1).len(), 1);
    assert_eq!(exchange.status().lost, 2);
}

#[test]
fn each_gets_notifications_in_its_own_encoding() {
    let exchange = Exchange::at(shared().port());
    let (utf8, latin1) = (exchange.client(), exchange.client_of("postgres", "LATIN1"));
    let channel = unique("é").replace(' ', "-");
    exchange.listen(&utf8, &[&channel]);
    let encoded: Vec<u8> = channel.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    exchange.try_listen(&latin1, &[&encoded], PATIENCE).unwrap();
    assert_eq!(exchange.hubs.status().len(), 2);
    assert!(latin1.has_encoding("LATIN1") && !latin1.has_encoding("UTF8"));
    let mut notifier = Client::new(shared().port());
    // What has no place in an encoding ends the session that would get it, with and without us. The client stays.
    for payload in ["ü", "☃"] {
        notify(&mut notifier, &channel, payload);
    }
    let of_latin1 = || exchange.hubs.status().into_iter().find(|status| &*status.encoding == "LATIN1").unwrap();
    wait_until("it is lost", || of_latin1().lost == 1);
    exchange.try_listen(&latin1, &[b"more"], PATIENCE).unwrap();
    notify(&mut notifier, &channel, "ö");
    let expected = ["ü", "☃", "ö"].map(|payload| pair(&channel, payload));
    assert_eq!(wait_for_mail(&utf8, 3), expected);
    let mut payloads = Vec::new();
    wait_until("both come", || {
        let frames = latin1.mailbox().take().unwrap();
        payloads.extend(frames.iter().map(|frame| backend::notification(&frame[5..]).unwrap().payload.to_vec()));
        payloads.len() >= 2
    });
    assert_eq!(payloads, [b"\xfc", b"\xf6"]);
    // A loss in the middle of a subscription is none of the client's business.
    for round in 0..3 {
        notifier.send(&query(format!("select pg_notify('{channel}', '☃{round}')")));
        exchange.try_listen(&latin1, &[format!("r{round}").as_bytes()], PATIENCE).unwrap();
        notifier.read_until(b"Z").unwrap();
    }
    assert!(exchange.hubs.status().iter().all(|status| &*status.encoding == "LATIN1" || status.lost == 0));
}

#[test]
fn settings_for_the_clients_of_a_role_do_not_end_it() {
    let mut direct = Client::new(shared().port());
    direct.query("drop role if exists impatient");
    direct.query("create role impatient login");
    direct.query("alter role impatient set statement_timeout = 100");
    if direct.value("select current_setting('server_version_num')::int >= 140000") == "t" {
        direct.query("alter role impatient set idle_session_timeout = 100");
    }
    let exchange = Exchange::at(shared().port());
    let client = exchange.hubs.listener(&exchange.pools("postgres", "impatient"), "UTF8", Waker::noop().clone());
    let channel = unique("impatient");
    exchange.listen(&client, &[&channel]);
    std::thread::sleep(Duration::from_millis(500));
    notify(&mut direct, &channel, "1");
    assert_eq!(wait_for_mail(&client, 1).len(), 1);
    assert_eq!(exchange.status().lost, 0);
}

#[test]
fn f21_a_client_that_takes_nothing_is_told_that_it_missed_something() {
    let exchange = Exchange::at(shared().port());
    let (sleeper, reader) = (exchange.client(), exchange.client());
    let channel = unique("full");
    exchange.listen(&sleeper, &[&channel]);
    exchange.listen(&reader, &[&channel]);
    let mut notifier = Client::new(shared().port());
    let (per_round, payload) = (500, 7_900);
    let mut got = 0;
    for round in 0..=LIMIT / (per_round * payload) {
        notifier.query(&format!(
            "select pg_notify('{channel}', rpad(n::text, {payload}, 'x')) from generate_series(1, {per_round}) n"
        ));
        wait_until("the other has all", || {
            let mut out = Vec::new();
            while reader.mailbox().has_mail() {
                got += reader.mailbox().take_into(&mut out, usize::MAX).unwrap();
            }
            got == per_round * (round + 1)
        });
    }
    wait_until("it is told", || sleeper.mailbox().missed().is_some());
    assert_eq!(sleeper.mailbox().take(), Err(Missed::Overflow));
}

#[test]
fn it_counts_in_the_limits_and_never_takes_the_last_place() {
    for (limit, is_enough) in [(1, false), (2, true)] {
        let flags = [("url", url(shared())), ("max_server_connections", limit.to_string())];
        let exchange = Exchange::with(&flags.map(|(key, value)| (key.to_owned(), value)), Habits::default());
        let pools = exchange.pools("postgres", "postgres");
        let lease = || exchange.runtime.block_on(pools.lease_until(0, Instant::now() + PATIENCE)).unwrap();
        let client = exchange.client();
        // As after a LISTEN, there is a connection that clients use.
        let used = lease();
        let patience = if is_enough { PATIENCE } else { Duration::from_millis(300) };
        let listened = exchange.try_listen(&client, &[unique("limit").as_bytes()], patience);
        assert_eq!(listened.is_ok(), is_enough, "{limit}: {listened:?}");
        exchange.runtime.block_on(async { drop(used) });
        lease();
    }
}

#[test]
fn it_follows_the_primary() {
    let cluster = cluster(&Options { replicas: 1, ..Options::default() });
    let (first, second) = (cluster.nodes[0].port, cluster.nodes[1].port);
    // The standby first: it must be found out.
    let url = format!("postgres://127.0.0.1:{second},127.0.0.1:{first}/?sslmode=disable&connect_timeout=1");
    let exchange = Exchange::new(&url, Habits::default());
    let client = exchange.client();
    exchange.listen(&client, &["failover"]);
    assert_eq!(&*exchange.status().connection.unwrap().0, format!("127.0.0.1:{first}"));
    cluster.stop(0, "immediate").unwrap();
    cluster.promote(1).unwrap();
    wait_until("it is with the new one", || {
        exchange.status().connection.is_some_and(|(node, ..)| *node == *format!("127.0.0.1:{second}"))
    });
    exchange.listen(&client, &["more"]);
    notify(&mut Client::new(second), "failover", "1");
    assert_eq!(wait_for_mail(&client, 1).len(), 1);
}

#[test]
fn closing_says_goodbye_and_ends_what_waits() {
    let exchange = Exchange::at(shared().port());
    let client = exchange.client();
    exchange.listen(&client, &[&unique("close")]);
    let pid = exchange.pid();
    exchange.runtime.block_on(exchange.hubs.close());
    let mut direct = Client::new(shared().port());
    wait_until("the server has seen it leave", || {
        direct.value(&format!("select count(*) from pg_stat_activity where pid = {pid}")) == "0"
    });
    let report = exchange.try_listen(&client, &[b"late"], PATIENCE).unwrap_err();
    assert_eq!(report.code.as_str(), "57P01", "{report:?}");
    let report = exchange.try_listen(&exchange.client(), &[b"later"], PATIENCE).unwrap_err();
    assert_eq!(report.code.as_str(), "57P01", "{report:?}");
}

#[test]
fn the_console_and_the_metrics_know_who_listens() {
    let ambassador = Ambassador::start(&[url(shared())]);
    assert!(ambassador.show("LISTENERS").is_empty());
    let help = ambassador.show("HELP");
    assert!(help.iter().any(|row| row[0].as_deref() == Some("SHOW LISTENERS")), "{help:?}");
    for name in ["connections", "channels", "clients", "connections_lost_total"] {
        assert_eq!(ambassador.metric(&format!("pg_ambassador_listening_{name}")), 0.0);
    }
    assert_eq!(ambassador.metric("pg_ambassador_notifications_delivered_total"), 0.0);
}
