//! Those who wait for a server while an operator changes where it is, or whether it may be used at all.

use crate::support::client::{message, query};
use crate::support::hostile::{Visit, wait_for_visits, welcome};
use crate::support::{Ambassador, Client, Dir, Hostile, shared, url, wait_until};
use pg_ambassador::config::{self, Sources};
use pg_ambassador::credentials::{PassThrough, Proof, Source};
use pg_ambassador::pool::directory::{DirectoryConfig, Purpose};
use pg_ambassador::pool::{Directory, GateState};
use pg_ambassador::telemetry::Telemetry;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An ambassador whose configuration a test rewrites.
struct Site {
    dir: Dir,
    ambassador: Ambassador,
}

impl Site {
    fn new(text: &str) -> Self {
        let dir = Dir::new();
        let file: PathBuf = dir.write("ambassador.toml", text);
        // How long a client waits that nobody serves any more.
        let args = ["--config", file.to_str().unwrap(), "--checkout-timeout", "8s"];
        Self { ambassador: Ambassador::start(&args), dir }
    }

    fn client(&self, user: &str, database: &str) -> Client {
        Client::login(self.ambassador.port, &[("user", user), ("database", database)])
    }

    /// A client whose first query needs a new connection.
    fn client_without_a_server(&self) -> Client {
        let client = self.client("postgres", "postgres");
        self.console("RECONNECT");
        client
    }

    fn console(&self, command: &str) {
        self.client("ambassador", "pgbouncer").query(command);
    }

    fn reload(&self, text: &str) {
        self.dir.write("ambassador.toml", text);
        self.console("RELOAD");
    }

    /// Waits until so many clients of a database and user wait for a server.
    fn wait_for_waiting(&self, user: &str, database: &str, count: usize) {
        let is_it = |row: &&Vec<Option<String>>| row[0].as_deref() == Some(database) && row[1].as_deref() == Some(user);
        wait_until("they wait", || {
            let rows = self.ambassador.show("POOLS");
            rows.iter().find(is_it).is_some_and(|row| row[3].as_deref() == Some(&*count.to_string()))
        });
    }
}

/// The one value that a query sent before is answered with.
fn answer(client: &mut Client) -> String {
    let messages = client.read_until(b"Z").unwrap();
    let row = messages.iter().find(|m| m.tag == b'D').unwrap_or_else(|| panic!("{messages:?}"));
    row.columns()[0].clone().unwrap()
}

/// The shared server, by a name of it: to us, each name is another server.
fn by_name(host: &str) -> String {
    format!("url = \"postgres://{host}:{}/postgres?sslmode=disable\"\n", shared().port())
}

fn hostile_url(hostile: &Hostile, database: &str) -> String {
    format!("url = \"postgres://127.0.0.1:{}/{database}?sslmode=disable\"\n", hostile.port)
}

#[test]
fn who_waits_in_a_pause_goes_to_the_server_that_a_reload_names() {
    let site = Site::new(&by_name("127.0.0.1"));
    let (mut waiter, mut listener) = (site.client("postgres", "postgres"), site.client("postgres", "postgres"));
    assert_eq!(waiter.value("select 1"), "1");
    listener.query("listen reloading_before");
    site.console("PAUSE");
    waiter.send(&query("select 'moved'"));
    site.wait_for_waiting("postgres", "postgres", 1);
    site.reload(&by_name("localhost"));
    site.wait_for_waiting("postgres", "postgres", 1);
    assert!(site.ambassador.show("SERVERS").is_empty(), "it is paused there, too");
    site.console("RESUME");
    assert_eq!(answer(&mut waiter), "moved");
    // The connection that listens has moved, too: for who did before, and for who does now.
    waiter.query("listen reloading_after");
    for (channel, hears) in [("reloading_before", &mut listener), ("reloading_after", &mut waiter)] {
        Client::new(shared().port()).query(&format!("notify {channel}, 'heard'"));
        while hears.heard.is_empty() {
            hears.query("select 1");
        }
        assert_eq!(hears.heard, [(channel.to_owned(), "heard".to_owned())]);
    }
}

#[test]
fn who_is_in_line_for_a_server_that_a_reload_takes_away_goes_to_the_new_one() {
    let site = Site::new(&format!("{}pool_size = 1\n", by_name("127.0.0.1")));
    let (mut holder, mut waiter) = (site.client("postgres", "postgres"), site.client("postgres", "postgres"));
    holder.query("begin; select 1");
    waiter.send(&query("select 'served'"));
    site.wait_for_waiting("postgres", "postgres", 1);
    site.reload(&format!("{}pool_size = 1\n", by_name("localhost")));
    assert_eq!(answer(&mut waiter), "served");
    assert_eq!(holder.value("select 'still'"), "still", "a transaction keeps its connection");
    holder.query("commit");
    assert_eq!(holder.value("select 'on'"), "on");
}

#[test]
fn wait_close_waits_for_the_transactions_on_a_server_that_a_reload_takes_away() {
    let site = Site::new(&by_name("127.0.0.1"));
    let mut holder = site.client("postgres", "postgres");
    holder.query("begin; select 1");
    site.reload(&by_name("localhost"));
    let mut console = site.client("ambassador", "pgbouncer");
    console.send(&query("WAIT_CLOSE"));
    let closed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            console.read_until(b"Z").unwrap();
            closed.store(true, Ordering::SeqCst);
        });
        for _ in 0..20 {
            assert_eq!(site.ambassador.show("SERVERS").len(), 1, "the connection is still there, and shown");
        }
        assert!(!closed.load(Ordering::SeqCst));
        holder.query("commit");
        wait_until("it has closed", || closed.load(Ordering::SeqCst));
    });
    assert!(site.ambassador.show("SERVERS").is_empty());
    let totals = site.ambassador.show("STATS_TOTALS");
    let mine = totals.iter().find(|row| row[0].as_deref() == Some("postgres")).unwrap();
    assert_ne!(mine[1].as_deref(), Some("0"), "what happened there is not forgotten: {mine:?}");
}

/// A server that lets in whoever comes first, and never again until it is told to.
fn reluctant(lets_in: &Arc<AtomicBool>) -> Hostile {
    let lets_in = Arc::clone(lets_in);
    Hostile::start(move |visit: &mut Visit| {
        let hello = visit.startup()?;
        let text = String::from_utf8_lossy(&hello).into_owned();
        if visit.number > 0 && text.contains("first") {
            wait_until("it lets somebody in", || lets_in.load(Ordering::SeqCst));
        }
        visit.send(&welcome())?;
        visit.serve(if text.contains("first") { "first" } else { "second" })
    })
}

#[test]
fn who_waits_for_a_login_at_a_server_that_a_reload_takes_away_goes_to_the_new_one() {
    let lets_in = Arc::new(AtomicBool::new(false));
    let server = reluctant(&lets_in);
    let site = Site::new(&hostile_url(&server, "first"));
    let mut client = site.client_without_a_server();
    client.send(&query("select 'there'"));
    wait_for_visits(&server, 2);
    site.reload(&by_name("127.0.0.1"));
    assert_eq!(answer(&mut client), "there");
    lets_in.store(true, Ordering::SeqCst);
}

#[test]
fn a_login_that_was_begun_before_a_reload_serves_nobody_behind_it() {
    let lets_in = Arc::new(AtomicBool::new(false));
    let server = reluctant(&lets_in);
    let site = Site::new(&hostile_url(&server, "first"));
    let mut client = site.client_without_a_server();
    client.send(&query("select current_database()"));
    wait_for_visits(&server, 2);
    site.reload(&hostile_url(&server, "second"));
    lets_in.store(true, Ordering::SeqCst);
    assert_eq!(answer(&mut client), "second");
}

#[test]
fn a_login_that_fails_behind_a_reload_says_nothing_of_the_target_of_now() {
    let refuses = Arc::new(AtomicBool::new(false));
    let server = Hostile::start({
        let refuses = Arc::clone(&refuses);
        move |visit: &mut Visit| {
            let hello = visit.startup()?;
            let is_first = String::from_utf8_lossy(&hello).contains("first");
            if visit.number > 0 && is_first {
                wait_until("it refuses somebody", || refuses.load(Ordering::SeqCst));
                return visit.send(&message(b'E', b"SFATAL\0VFATAL\0C3D000\0Mdatabase \"first\" does not exist\0\0"));
            }
            visit.send(&welcome())?;
            visit.serve(if is_first { "first" } else { "second" })
        }
    });
    let site = Site::new(&hostile_url(&server, "first"));
    let mut client = site.client_without_a_server();
    client.send(&query("select current_database()"));
    wait_for_visits(&server, 2);
    site.reload(&hostile_url(&server, "second"));
    refuses.store(true, Ordering::SeqCst);
    assert_eq!(answer(&mut client), "second");
}

#[test]
fn who_waits_in_a_pause_for_a_database_that_a_reload_takes_away_goes_on_when_it_is_over() {
    let database = |name: &str| format!("[databases.{name}]\n{}", by_name("127.0.0.1"));
    let both = format!("{}{}", database("kept"), database("gone"));
    let site = Site::new(&both);
    let mut client = site.client("postgres", "gone");
    assert_eq!(client.value("select 1"), "1");
    site.console("PAUSE");
    client.send(&query("select 'served'"));
    site.wait_for_waiting("postgres", "gone", 1);
    site.reload(&database("kept"));
    site.console("RESUME");
    assert_eq!(answer(&mut client), "served");
    let newcomer = || Client::try_login(site.ambassador.port, &[("user", "postgres"), ("database", "gone")]);
    assert_eq!(newcomer().err().unwrap().code(), "3D000");
    // It is the same database if it comes back, and forgotten with its last client if it does not.
    site.reload(&both);
    let mut other = newcomer().unwrap();
    assert_eq!(client.value("select pg_backend_pid()"), other.value("select pg_backend_pid()"));
    site.reload(&database("kept"));
    drop((client, other));
    wait_until("it is forgotten", || site.ambassador.show("POOLS").iter().all(|row| row[0].as_deref() != Some("gone")));
}

#[test]
fn a_pause_ends_a_login_that_is_under_way_and_its_client_waits() {
    let (paused, hung_up) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let server = Hostile::start({
        let (paused, hung_up) = (Arc::clone(&paused), Arc::clone(&hung_up));
        move |visit: &mut Visit| {
            let mut serve = || {
                visit.startup()?;
                if visit.number == 1 {
                    wait_until("it is paused", || paused.load(Ordering::SeqCst));
                }
                visit.send(&welcome())?;
                visit.serve("served")
            };
            let end = serve();
            hung_up.fetch_or(visit.number == 1, Ordering::SeqCst);
            end
        }
    });
    let site = Site::new(&hostile_url(&server, "first"));
    let mut client = site.client_without_a_server();
    client.send(&query("select 1"));
    wait_for_visits(&server, 2);
    site.console("PAUSE");
    paused.store(true, Ordering::SeqCst);
    wait_until("the server is left alone", || hung_up.load(Ordering::SeqCst) || server.has_heard(b"select 1"));
    assert!(!server.has_heard(b"select 1"));
    site.wait_for_waiting("postgres", "postgres", 1);
    site.console("RESUME");
    assert_eq!(answer(&mut client), "served");
}

#[test]
fn a_kill_leaves_no_server_connected_that_is_cleaned_behind_its_client() {
    let site = Site::new(&format!("{}pool_mode = \"session\"\n", by_name("127.0.0.1")));
    let mut client = site.client("postgres", "postgres");
    client.query("set work_mem = '99kB'");
    site.console("KILL");
    assert_eq!(client.read().unwrap().code(), "57P01");
    wait_until("nothing is connected", || site.ambassador.show("SERVERS").is_empty());
}

/// What a configuration says of pools.
fn directory_config(settings: &[(&str, &str)]) -> DirectoryConfig {
    let flags = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    config::resolve(&Sources { flags, ..Sources::default() }).unwrap().directory
}

/// Runs this with a directory that nobody else uses.
fn with_directory<F: Future<Output = ()>>(config: &DirectoryConfig, work: impl FnOnce(Arc<Directory>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let handle = tokio::runtime::Handle::current();
        work(Directory::new(config, Arc::default(), Arc::new(Telemetry::default()), handle).unwrap()).await;
    });
}

#[test]
fn what_all_are_paused_for_the_resume_of_one_database_does_not_open() {
    with_directory(&directory_config(&[("url", &url(shared()))]), |directory| async move {
        let set = directory.pools("one", "postgres", Purpose::Clients, None).unwrap();
        let gate = || set.pools()[0].gate();
        for database in [Some("one"), None] {
            assert!(directory.set_paused(database, true));
            assert_eq!(gate(), GateState::Paused);
        }
        assert!(directory.set_paused(Some("one"), false));
        assert_eq!(gate(), GateState::Paused);
        assert!(directory.set_paused(None, false));
        assert_eq!(gate(), GateState::Open);
    });
}

#[test]
fn a_database_that_comes_back_while_clients_of_it_are_there_is_the_same_as_before() {
    let said = |name: &str| {
        let mut config = directory_config(&[("url", &url(shared()))]);
        config.databases[0].name = name.to_owned();
        config
    };
    let (gone, other) = (said("gone"), said("other"));
    with_directory(&gone.clone(), |directory| async move {
        let set = directory.pools("gone", "postgres", Purpose::Clients, None).unwrap();
        let member = set.join().unwrap();
        directory.database("gone").unwrap().set_disabled(true);
        directory.reload(&other).unwrap();
        assert!(directory.database("gone").is_err());
        directory.reload(&gone).unwrap();
        let again = directory.database("gone").unwrap();
        assert_eq!((again.clients(), again.is_disabled()), (1, true));
        drop(member);
        assert_eq!(again.clients(), 0);
    });
}

#[test]
fn what_clients_have_shown_is_kept_over_a_reload_and_given_to_pools_that_were_made_without() {
    let said = directory_config(&[("url", &url(shared()))]);
    with_directory(&said.clone(), |directory| async move {
        let pools = |source| directory.pools("postgres", "postgres", Purpose::Clients, source).unwrap();
        let has = |source: &Arc<dyn Source>| Arc::ptr_eq(&pools(None).pools()[0].source(), source);
        let shown: Arc<dyn Source> = PassThrough::new(Proof::Nothing);
        // The first was trusted, and has shown nothing.
        assert!(!has(&shown));
        pools(Some(Arc::clone(&shown)));
        assert!(has(&shown));
        directory.reload(&said).unwrap();
        assert!(has(&shown));
        // Unless it is said who we are.
        let other = directory_config(&[("url", &format!("{}&user=somebody", url(shared())))]);
        directory.reload(&other).unwrap();
        assert!(!has(&shown));
    });
}

#[test]
fn a_connection_of_our_own_that_waits_over_a_reload_is_made_to_the_target_of_now() {
    let said = |database: &str| {
        directory_config(&[("url", &format!("postgres://127.0.0.1:{}/{database}?sslmode=disable", shared().port()))])
    };
    with_directory(&said("postgres"), |directory| async move {
        let set = directory.pools("any", "postgres", Purpose::Clients, None).unwrap();
        directory.set_paused(None, true);
        let pool = Arc::clone(&set.pools()[0]);
        let dial = tokio::spawn(async move { pool.dial_apart([]).await });
        tokio::task::yield_now().await;
        directory.reload(&said("template1")).unwrap();
        directory.set_paused(None, false);
        let mut server = dial.await.unwrap().unwrap();
        let answer = server.simple("select current_database()").await.unwrap();
        assert_eq!(answer.rows[0][0].as_deref(), Some("template1"));
    });
}

/// Two databases on the shared server, one with so many places, and a user who may have one connection.
fn limited(places: usize) -> Site {
    let mut direct = Client::new(shared().port());
    direct.query("drop role if exists reloading_one; create role reloading_one superuser login");
    let server = by_name("127.0.0.1");
    Site::new(&format!(
        "[databases.small]\n{server}max_server_connections = {places}\n[databases.large]\n{server}\
         [users.reloading_one]\nmax_server_connections = 1\n"
    ))
}

#[test]
fn who_waits_for_a_place_of_one_limit_holds_none_of_another() {
    let site = limited(1);
    let mut waiter = site.client("reloading_one", "small");
    assert_eq!(waiter.value("select 1"), "1");
    let mut holder = site.client("reloading_one", "large");
    holder.query("begin; select 1");
    waiter.send(&query("select 'waited'"));
    site.wait_for_waiting("reloading_one", "small", 1);
    assert_eq!(site.client("postgres", "small").value("select 'served'"), "served");
    holder.query("commit");
    assert_eq!(answer(&mut waiter), "waited");
}

#[test]
fn nobody_gives_up_a_connection_for_who_lacks_a_place_of_another_limit() {
    let site = limited(2);
    let mut waiter = site.client("reloading_one", "small");
    assert_eq!(waiter.value("select 1"), "1");
    let mut holder = site.client("reloading_one", "large");
    holder.query("begin; select 1");
    let mut other = site.client("postgres", "small");
    waiter.send(&query("select 'waited'"));
    site.wait_for_waiting("reloading_one", "small", 1);
    let pid = other.value("select pg_backend_pid()");
    for _ in 0..5 {
        assert_eq!(other.value("select pg_backend_pid() from pg_sleep(0.06)"), pid);
    }
    holder.query("commit");
    assert_eq!(answer(&mut waiter), "waited");
}

#[test]
fn timeouts_that_are_set_are_those_of_who_is_there_already() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "2"]);
    let mut idle = Client::new(ambassador.port);
    assert_eq!(idle.value("select 1"), "1");
    let mut busy = Client::new(ambassador.port);
    busy.send(&query("select pg_sleep(1000)"));
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    wait_until("it runs", || ambassador.show("SERVERS").iter().any(|row| row[4].as_deref() == Some("active")));
    console.query("SET query_timeout = '100ms'");
    let error = busy.read_until(b"E").unwrap().pop().unwrap();
    assert_eq!((error.field(b'S').as_deref(), error.code().as_str()), (Some("FATAL"), "57014"));
    assert_eq!(idle.value("select 2"), "2");
    console.query("SET client_idle_timeout = '100ms'");
    assert_eq!(idle.read_until(b"E").unwrap().pop().unwrap().code(), "57P05");
}
