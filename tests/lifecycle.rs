//! The life of the process: how it starts again, reads its configuration again, and ends.

use crate::support::client::{message, query, startup};
use crate::support::{Ambassador, Client, shared, url, wait_until};
use std::fs;
use std::path::{Path, PathBuf};

/// A directory of the test's own, removed with the shared server.
fn dir(name: &str) -> PathBuf {
    let dir = shared().dir().join(name);
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

fn config(pool_size: usize, more: &str) -> String {
    format!("url = \"{}\"\npool_size = {pool_size}\n{more}\n", url(shared()))
}

fn start(file: &Path) -> Ambassador {
    Ambassador::start(&["--config", file.to_str().unwrap()])
}

fn setting(ambassador: &Ambassador, key: &str) -> String {
    let rows = ambassador.show("CONFIG");
    rows.iter().find(|row| row[0].as_deref() == Some(key)).unwrap()[1].clone().unwrap()
}

fn reloads(ambassador: &Ambassador) -> f64 {
    ambassador.metric("pg_ambassador_reloads_total")
}

const PID: &str = "select pg_backend_pid()";

#[test]
fn f27_sigterm_lets_clients_go_on_until_they_leave() {
    let mut ambassador = Ambassador::start(&[&url(shared()), "--set", "drain_timeout=60s"]);
    let mut client = Client::new(ambassador.port);
    wait_until("it is ready", || ambassador.http("/readyz").0 == 200);
    ambassador.signal("TERM");
    wait_until("it is not ready any more", || ambassador.http("/readyz").0 == 503);
    assert_eq!(ambassador.http("/livez").0, 200);
    // The application beside us may still need us, even anew, to end in order itself.
    assert_eq!(client.value("select 1"), "1");
    let mut late = Client::new(ambassador.port);
    assert_eq!(late.value("select 2"), "2");
    late.send(&message(b'X', b""));
    client.send(&message(b'X', b""));
    assert_eq!(ambassador.wait().code(), Some(0));
}

#[test]
fn f27_after_the_drain_timeout_idle_clients_are_told_and_transactions_end_first() {
    let mut ambassador =
        Ambassador::start(&[&url(shared()), "--set", "drain_timeout=200ms", "--set", "drain_grace=60s"]);
    let mut idle = Client::new(ambassador.port);
    let mut busy = Client::new(ambassador.port);
    busy.query("begin; select 1");
    ambassador.signal("TERM");
    let error = idle.read().unwrap();
    assert_eq!((error.field(b'S').as_deref(), error.code().as_str()), (Some("FATAL"), "57P01"));
    assert!(idle.is_closed());
    assert_eq!(busy.value("select 'still'"), "still");
    busy.query("commit");
    assert_eq!(busy.read().unwrap().code(), "57P01");
    assert!(busy.is_closed());
    assert_eq!(ambassador.wait().code(), Some(0));
}

#[test]
fn f27_a_second_sigterm_ends_at_once() {
    let mut ambassador = Ambassador::start(&[&url(shared()), "--set", "drain_timeout=600s"]);
    let mut busy = Client::new(ambassador.port);
    busy.query("begin; select 1");
    ambassador.signal("TERM");
    wait_until("it drains", || ambassador.http("/readyz").0 == 503);
    ambassador.signal("TERM");
    assert_eq!(busy.read().unwrap().code(), "57P01");
    assert!(busy.is_closed());
    assert_eq!(ambassador.wait().code(), Some(0));
}

#[test]
fn f27_sigint_ends_at_once_and_servers_are_left_without_a_transaction() {
    let mut ambassador = Ambassador::start(&[url(shared())]);
    let mut busy = Client::new(ambassador.port);
    busy.query("begin; select 1");
    let pid = busy.value(PID);
    ambassador.signal("INT");
    assert_eq!(busy.read().unwrap().code(), "57P01");
    assert_eq!(ambassador.wait().code(), Some(0));
    let mut direct = Client::new(shared().port());
    let left = format!("select count(*) from pg_stat_activity where pid = {pid}");
    wait_until("the server has ended the session", || direct.value(&left) == "0");
}

#[test]
fn f28_after_sigkill_a_new_one_binds_the_same_port_at_once() {
    let ambassador = Ambassador::start(&[url(shared())]);
    let mut clients: Vec<Client> = (0..5).map(|_| Client::new(ambassador.port)).collect();
    clients.iter_mut().for_each(|client| drop(client.query("begin; select 1")));
    let address = format!("127.0.0.1:{}", ambassador.port);
    ambassador.signal("KILL");
    for client in &mut clients {
        assert!(client.is_closed());
    }
    drop(ambassador);
    let again = Ambassador::start(&[url(shared()).as_str(), "--listen", &address]);
    assert!(again.log().contains(&format!("listening address={address}")), "{}", again.log());
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(Client::new(port).value("select 1"), "1");
}

#[test]
fn f18_a_faulty_file_changes_nothing_and_is_reported_with_its_place() {
    let dir = dir("lifecycle_faulty");
    let file = dir.join("ambassador.toml");
    fs::write(&file, config(3, "")).unwrap();
    let ambassador = start(&file);
    let mut client = Client::new(ambassador.port);
    let pid = client.value(PID);
    // One right change and one wrong: neither is made.
    fs::write(&file, config(7, "checkout_timeout = \"soon\"")).unwrap();
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    let error = console.try_query("RELOAD").unwrap_err();
    assert_eq!((error.field(b'S').as_deref(), error.code().as_str()), (Some("ERROR"), "F0000"));
    assert!(error.field(b'D').unwrap().contains("ambassador.toml:3:"), "{error:?}");
    assert_eq!(setting(&ambassador, "pool_size"), "3");
    ambassador.signal("HUP");
    wait_until("the signal was answered", || reloads(&ambassador) >= 2.0);
    assert!(ambassador.log().contains("reload refused, nothing has changed"), "{}", ambassador.log());
    assert_eq!(setting(&ambassador, "pool_size"), "3");
    assert_eq!(client.value(PID), pid);
    fs::write(&file, config(7, "checkout_timeout = \"5s\"")).unwrap();
    console.query("RELOAD");
    assert_eq!(setting(&ambassador, "pool_size"), "7");
    assert_eq!(client.value(PID), pid);
}

#[test]
fn sighup_applies_what_changed_and_what_did_not_keeps_its_connections() {
    let dir = dir("lifecycle_sighup");
    let file = dir.join("ambassador.toml");
    let port = shared().port();
    let text = |database: &str, size: usize| {
        let url = |database: &str| format!("url = \"postgres://127.0.0.1:{port}/{database}?sslmode=disable\"");
        format!("[databases.kept]\n{}\n[databases.moved]\n{}\npool_size = {size}\n", url("postgres"), url(database))
    };
    fs::write(&file, text("postgres", 2)).unwrap();
    let ambassador = start(&file);
    let client = |database: &str| Client::login(ambassador.port, &[("user", "postgres"), ("database", database)]);
    let (mut kept, mut moved, mut busy) = (client("kept"), client("moved"), client("moved"));
    let (kept_pid, moved_pid) = (kept.value(PID), moved.value(PID));
    busy.query("begin; select 1");
    let busy_pid = busy.value(PID);
    fs::write(&file, text("template1", 3)).unwrap();
    ambassador.signal("HUP");
    wait_until("it has reloaded", || ambassador.log().contains("reloaded the configuration"));
    assert_eq!(kept.value(PID), kept_pid);
    assert_eq!(busy.value(PID), busy_pid, "a transaction keeps its connection");
    busy.query("commit");
    assert_eq!(moved.value("select current_database()"), "template1");
    assert_ne!(moved.value(PID), moved_pid);
    assert_eq!(busy.value("select current_database()"), "template1");
}

#[test]
fn a_changed_file_is_taken_up_by_itself_even_behind_swapped_symbolic_links() {
    // As Kubernetes mounts a ConfigMap: the file is a link to a link's directory, and the link is replaced.
    let dir = dir("lifecycle_links");
    for (version, size) in [("v1", 3), ("v2", 5)] {
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("ambassador.toml"), config(size, "")).unwrap();
    }
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, dir.join(name)).unwrap();
    link("v1", "..data");
    link("..data/ambassador.toml", "ambassador.toml");
    let ambassador = start(&dir.join("ambassador.toml"));
    assert_eq!(setting(&ambassador, "pool_size"), "3");
    link("v2", "..data_tmp");
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    wait_until("the change is taken up", || setting(&ambassador, "pool_size") == "5");
}

#[test]
fn a_reload_forgets_what_was_set_and_says_anew_who_may_use_the_console() {
    let dir = dir("lifecycle_console");
    let file = dir.join("ambassador.toml");
    let text = |admin: &str| config(3, "") + &format!("[console]\nadmin_users = [\"{admin}\"]\n");
    fs::write(&file, text("ann")).unwrap();
    let ambassador = start(&file);
    let console = |user: &str| Client::login(ambassador.port, &[("user", user), ("database", "pgbouncer")]);
    let value = |console: &mut Client, key: &str| {
        let rows = console.query("SHOW CONFIG");
        rows.iter().find(|row| row[0].as_deref() == Some(key)).unwrap()[1].clone().unwrap()
    };
    console("ann").query("SET pool_size = '5'");
    assert_eq!(console("bob").try_query("SET pool_size = '6'").unwrap_err().code(), "42501");
    fs::write(&file, text("bob")).unwrap();
    ambassador.signal("HUP");
    wait_until("it has reloaded", || value(&mut console("ann"), "pool_size") == "3");
    assert_eq!(console("ann").try_query("SET pool_size = '6'").unwrap_err().code(), "42501");
    // What was set before the reload does not come back with what is set after it.
    console("bob").query("SET query_timeout = '1h'");
    assert_eq!(value(&mut console("bob"), "pool_size"), "3");
}

#[test]
fn who_leaves_while_it_waits_for_the_end_of_its_login_gives_its_place_back() {
    let args = [&url(shared()), "--max-clients", "1", "--checkout-timeout", "1h"];
    let ambassador = Ambassador::start(&args);
    drop(Client::new(ambassador.port));
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "pgbouncer")]);
    console.query("PAUSE");
    wait_until("the first one has left", || ambassador.show("CLIENTS").is_empty());
    // Settings that no server was asked about yet.
    let accepted = || ambassador.metric("pg_ambassador_connections_accepted_total");
    let before = accepted();
    let mut stranger = Client::connect(ambassador.port);
    let login = [("user", "postgres"), ("database", "postgres"), ("work_mem", "1234kB")];
    stranger.send(&startup(&login));
    // Not by logging in: whoever does so before it has the only place.
    wait_until("it was accepted", || accepted() > before);
    let known = [("user", "postgres"), ("database", "postgres")];
    wait_until("it has the place", || {
        Client::try_login(ambassador.port, &known).err().is_some_and(|error| error.code() == "53300")
    });
    drop(stranger);
    wait_until("there is a place", || Client::try_login(ambassador.port, &known).is_ok());
    console.query("RESUME");
}

#[test]
fn what_the_environment_says_of_a_database_says_nothing_of_those_with_sections() {
    let dir = dir("lifecycle_environment");
    let file = dir.join("ambassador.toml");
    let section =
        format!("[databases.template1]\nurl = \"postgres://127.0.0.1:{}/?sslmode=disable\"\n", shared().port());
    fs::write(&file, section).unwrap();
    let args = ["--config", file.to_str().unwrap()];
    let ambassador = Ambassador::start_with(&args, &[("PGDATABASE", "elsewhere"), ("PGUSER", "nobody")]);
    let mut client = Client::login(ambassador.port, &[("user", "postgres"), ("database", "template1")]);
    assert_eq!(client.value("select current_database() || ' ' || current_user"), "template1 postgres");
}

#[test]
fn f35_a_client_that_is_lost_in_any_way_leaves_the_others_and_the_process_alone() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "2"]);
    let mut other = Client::new(ambassador.port);
    // Bytes that make no sense, at every stage.
    for garbage in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x04", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x08\0\x03\0\0"] {
        let mut stranger = Client::connect(ambassador.port);
        let _ = stranger.try_send(garbage);
        stranger.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(stranger.is_closed());
        let mut client = Client::new(ambassador.port);
        client.query("begin; select 1");
        let _ = client.try_send(&[b"\0", garbage].concat());
        assert!(client.is_closed());
        assert_eq!(other.exchange(&query("select 1")).len(), 4);
    }
    assert_eq!(ambassador.metric("pg_ambassador_panics_total"), 0.0);
    assert_eq!(ambassador.http("/livez").0, 200);
}
