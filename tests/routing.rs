//! Where statements go: writes to the primary, reads to a replica that has all that their session needs.

use crate::support::client::{bind, describe, execute, parse, query, sync};
use crate::support::{Ambassador, Chaos, Client, Dir, How, Rule, cluster, wait_until};
use pg_ambassador::demo::cluster::{Cluster, Options};
use std::collections::BTreeMap;
use std::time::Duration;

const WHERE: &str = "select inet_server_port()";

fn replicated(replicas: usize, settings: &[(&str, &str)]) -> Cluster {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    cluster(&Options { replicas, settings, ..Options::default() })
}

fn url(ports: &[u16]) -> String {
    let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("postgres://{}/?sslmode=disable", hosts.join(","))
}

fn ports(cluster: &Cluster) -> Vec<u16> {
    cluster.nodes.iter().map(|node| node.port).collect()
}

/// Where a client's next read goes.
fn port_of(client: &mut Client) -> u16 {
    client.value(WHERE).parse().unwrap()
}

/// An ambassador in front of these, as soon as it sends reads to a replica.
fn routed(ports: &[u16], primary: u16, more: &[&str]) -> Ambassador {
    let url = url(ports);
    let args: Vec<&str> = [url.as_str()].into_iter().chain(more.iter().copied()).collect();
    let ambassador = Ambassador::start(&args);
    wait_for_replicas(&ambassador, primary);
    ambassador
}

fn wait_for_replicas(ambassador: &Ambassador, primary: u16) {
    let mut client = Client::new(ambassador.port);
    wait_until("a read goes to a replica", || port_of(&mut client) != primary);
}

#[test]
fn reads_go_to_replicas_and_writes_to_the_primary() {
    let cluster = replicated(2, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &[]);
    // Whoever comes finds what was written before, and the login of another is taken for that until a probe has come.
    wait_until("new sessions go to replicas", || port_of(&mut Client::new(ambassador.port)) != ports[0]);
    let mut seen = BTreeMap::new();
    for _ in 0..20 {
        *seen.entry(port_of(&mut Client::new(ambassador.port))).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(!seen.contains_key(&ports[0]), "{seen:?}");
    let mut client = Client::new(ambassador.port);
    // There is one address, and it is a primary's.
    assert_eq!(client.param("in_hot_standby"), Some("off"));
    client.query("create table routed (a int)");
    let written = client.query("insert into routed values (1) returning inet_server_port()");
    assert_eq!(written[0][0], Some(ports[0].to_string()));
    assert_eq!(client.value("select count(*) from routed"), "1");
    wait_until("reads come back from the primary", || port_of(&mut client) != ports[0]);
    assert_eq!(client.value("select count(*) from routed"), "1");
    // A whole transaction that may write is at the primary, its reads too.
    client.query("begin");
    assert_eq!(port_of(&mut client), ports[0]);
    client.query("commit");
}

#[test]
fn a_transaction_that_is_read_only_runs_on_one_replica() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    for begin in ["begin read only", "start transaction isolation level repeatable read, read only"] {
        client.query(begin);
        assert_eq!(port_of(&mut client), ports[1], "{begin}");
        client.query("declare c cursor for select generate_series(1, 3)");
        assert_eq!(client.query("fetch 2 from c").len(), 2);
        assert_eq!(client.try_query("create table x ()").unwrap_err().code(), "25006");
        client.query("rollback");
    }
    client.query("begin");
    client.query("set transaction read only");
    assert_eq!(port_of(&mut client), ports[1]);
    client.query("commit");
    client.query("begin isolation level serializable read only");
    assert_eq!(port_of(&mut client), ports[0]);
    client.query("commit");
    client.query("set default_transaction_read_only = on");
    wait_until("freshness", || {
        client.query("begin");
        let port = port_of(&mut client);
        client.query("commit");
        port == ports[1]
    });
    // Behind the COMMIT, in one piece with it, comes a write.
    client.query("set default_transaction_read_only = off");
    wait_until("freshness", || port_of(&mut client) == ports[1]);
    client.query("begin read only");
    assert_eq!(port_of(&mut client), ports[1]);
    let pieces = [query("select 1"), query("commit"), query("create table behind ()")].concat();
    client.send(&pieces);
    for _ in 0..3 {
        let answer = client.read_until(b"Z").unwrap();
        assert!(answer.iter().all(|message| message.tag != b'E'), "{answer:?}");
    }
}

const LIARS: &str = "create table written (a int); \
     create function liar() returns int language plpgsql stable as $$ begin execute 'insert into written values (1)'; \
     return inet_server_port(); end $$";

#[test]
fn what_a_replica_refuses_runs_on_the_primary_and_nobody_is_told() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    cluster.psql(0, LIARS).unwrap();
    let ambassador = routed(&ports, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    let refused = client.try_query("select liar()").unwrap_err();
    assert_eq!(refused.code(), "0A000", "the primary's own words: {refused:?}");
    wait_until("freshness", || port_of(&mut client) == ports[1]);
    let batch = [parse("s", "select liar()"), bind("", "s", &[]), describe(b'P', ""), execute("", 0), sync()].concat();
    let answer = client.exchange(&batch);
    let errors: Vec<_> = answer.iter().filter(|message| message.tag == b'E').map(|m| m.code()).collect();
    assert_eq!(errors, ["0A000"]);
    assert_eq!(answer[0].tag, b'1');
}

#[test]
fn a_hint_or_a_setting_says_where_a_read_goes() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    assert_eq!(port_of(&mut client), ports[1]);
    assert_eq!(client.value("/* ambassador: primary */ select inet_server_port()"), ports[0].to_string());
    wait_until("freshness", || port_of(&mut client) == ports[1]);
    client.query("set ambassador.route = 'primary'");
    assert_eq!(port_of(&mut client), ports[0]);
    client.query("reset ambassador.route");
    wait_until("freshness", || port_of(&mut client) == ports[1]);
    // Volatile, and vouched for by who asks.
    cluster
        .psql(0, "create function vouched() returns int language sql volatile as 'select inet_server_port()'")
        .unwrap();
    wait_until("the replica has it", || client.try_query("/* ambassador: replica */ select vouched()").is_ok());
    wait_until("freshness", || client.value("/* ambassador: replica */ select vouched()") == ports[1].to_string());
    assert_eq!(client.value("select vouched()"), ports[0].to_string());
}

#[test]
fn a_replica_that_dies_under_a_read_is_not_noticed() {
    let cluster = replicated(2, &[]);
    let ports = ports(&cluster);
    let proxies = [Chaos::start(ports[1]), Chaos::start(ports[2])];
    let all = [ports[0], proxies[0].port, proxies[1].port];
    let ambassador = routed(&all, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    for round in 0..20 {
        client.send(&query("select 'it is still there' from pg_sleep(0.05)"));
        std::thread::sleep(Duration::from_millis(20));
        proxies[round % 2].end_all(How::Reset);
        let answer = client.read_until(b"Z").unwrap();
        assert!(answer.iter().any(|message| message.tag == b'D'), "{answer:?}");
    }
}

#[test]
fn a_client_can_ask_where_its_last_request_went_and_why() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    client.query("select 1");
    let row = |client: &mut Client| -> Vec<String> {
        client.query("show last route").remove(0).into_iter().map(Option::unwrap).collect()
    };
    assert_eq!(row(&mut client), ["replica", &format!("127.0.0.1:{}", ports[1]), "read"]);
    client.query("create temp table t ()");
    assert_eq!(row(&mut client), ["primary", &format!("127.0.0.1:{}", ports[0]), "command"]);
    let batch = [parse("", "show last route"), bind("", "", &[]), describe(b'P', ""), execute("", 0), sync()].concat();
    let tags: Vec<u8> = client.exchange(&batch).iter().map(|message| message.tag).collect();
    assert_eq!(String::from_utf8(tags).unwrap(), "12TDCZ");
    // With one server there is nothing to choose from, and a client is told so.
    let single = Ambassador::start(&[&url(&ports[..1])]);
    assert!(Client::new(single.port).query("show last route")[0][2].as_deref().unwrap().contains("one server"));
}

#[test]
fn what_one_session_has_written_another_can_wait_for() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &[]);
    let mut writer = Client::new(ambassador.port);
    writer.query("create table told (a int)");
    let mut reader = Client::new(ambassador.port);
    wait_until("the table is there", || reader.try_query("/* ambassador: replica */ select from told").is_ok());
    assert_eq!(reader.value("show ambassador.lsn").len(), reader.value("show ambassador.lsn").len());
    wait_until("the reader is on the replica", || port_of(&mut reader) == ports[1]);
    cluster.psql(1, "select pg_wal_replay_pause()").unwrap();
    writer.query("insert into told values (1)");
    let token = writer.value("show ambassador.lsn");
    assert!(token.contains('/') && token != "0/0", "{token}");
    assert_eq!(reader.value("select count(*) from told"), "0", "another session, and the replica stands still");
    reader.query(&format!("set ambassador.min_lsn = '{token}'"));
    assert_eq!(reader.value("select count(*) from told"), "1");
    assert_eq!(reader.value("show ambassador.min_lsn"), token);
    cluster.psql(1, "select pg_wal_replay_resume()").unwrap();
    wait_until("the replica has it", || port_of(&mut reader) == ports[1]);
    assert_eq!(reader.value("select count(*) from told"), "1");
}

#[test]
fn each_consistency_keeps_its_promise() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &["--set", "max_lag=0"]);
    let mut client = Client::new(ambassador.port);
    client.query("create table promised (a int)");
    wait_until("freshness", || port_of(&mut client) == ports[1]);
    cluster.psql(1, "select pg_wal_replay_pause()").unwrap();
    let mut other = Client::new(ambassador.port);
    other.query("insert into promised values (1)");
    assert_eq!(client.value("select count(*) from promised"), "0", "a session from before, which was on that replica");
    for (consistency, seen) in [("eventual", "0"), ("session", "1"), ("global", "1")] {
        let options = format!("-c ambassador.consistency={consistency}");
        let known = [("user", "postgres"), ("database", "postgres"), ("options", options.as_str())];
        let mut client = Client::login(ambassador.port, &known);
        assert_eq!(client.value("show ambassador.consistency"), consistency);
        assert_eq!(client.value("select count(*) from promised"), seen, "{consistency}");
    }
    // The session's own write is there in each but eventual.
    for consistency in ["session", "primary", "global"] {
        other.query(&format!("set ambassador.consistency = '{consistency}'"));
        assert_eq!(other.value("select count(*) from promised"), "1", "{consistency}");
    }
    other.query("set ambassador.consistency = 'eventual'");
    // What a SET has done is asked of its server, which a request that comes meanwhile goes to as well.
    wait_until("a read goes to the replica", || other.value("select count(*) from promised") == "0");
    for (wrong, code) in [
        ("set ambassador.consistency = 'strong'", "22023"),
        ("set ambassador.route to 'master'", "22023"),
        ("set ambassador.min_lsn = 'x'", "22023"),
        ("set ambassador.rout = 'primary'", "42704"),
    ] {
        assert_eq!(other.try_query(wrong).unwrap_err().code(), code, "{wrong}");
    }
    assert_eq!(other.value("show ambassador.route"), "auto");
    other.query("create temp table kept (a int)");
    assert_eq!(other.try_query("set ambassador.route = 'x'").unwrap_err().code(), "22023");
    assert_eq!(other.value("select count(*) from kept"), "0", "an error of ours costs no server");
}

#[test]
fn a_read_waits_for_a_connection_that_takes_its_time() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let far = Chaos::start(ports[1]);
    far.set_both(Rule { latency: Duration::from_millis(60), ..Rule::default() });
    let ambassador = routed(&[ports[0], far.port], ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    wait_until("a read of a new session goes there", || port_of(&mut client) == ports[1]);
}

#[test]
fn reads_go_to_the_nearest_replica_and_elsewhere_while_it_is_away_or_lags() {
    let cluster = replicated(3, &[]);
    let ports = ports(&cluster);
    let proxies: Vec<Chaos> = [(1, 1), (2, 20), (3, 100)]
        .into_iter()
        .map(|(node, delay)| {
            let chaos = Chaos::start(ports[node]);
            // Of the way there and of the way back.
            chaos.set_both(Rule { latency: Duration::from_millis(delay) / 2, ..Rule::default() });
            chaos
        })
        .collect();
    let near = &proxies[0];
    let all = [ports[0], near.port, proxies[1].port, proxies[2].port];
    let settings = ["--set", "slow_start=1s", "--set", "max_lag=500ms"];
    let ambassador = routed(&all, ports[0], &settings);
    let mut client = Client::new(ambassador.port);
    wait_until("the nearest is known", || (0..10).all(|_| port_of(&mut client) == ports[1]));
    let served = |client: &mut Client, n: usize| (0..n).filter(|_| port_of(client) == ports[1]).count();
    assert!(served(&mut client, 200) >= 190);
    // It dies.
    near.end_all(How::Reset);
    near.refuse(true);
    for _ in 0..20 {
        assert_ne!(port_of(&mut client), ports[1]);
    }
    near.refuse(false);
    wait_until("the nearest is back", || served(&mut Client::new(ambassador.port), 10) == 10);
    // It lags.
    cluster.psql(1, "select pg_wal_replay_pause()").unwrap();
    cluster.psql(0, "create table lagging as select generate_series(1, 1000)").unwrap();
    let mut client = Client::new(ambassador.port);
    wait_until("reads go elsewhere", || port_of(&mut client) != ports[1]);
    assert_eq!(served(&mut client, 20), 0);
    cluster.psql(1, "select pg_wal_replay_resume()").unwrap();
    wait_until("the nearest is back", || served(&mut Client::new(ambassador.port), 10) == 10);
}

#[test]
fn who_comes_back_reads_what_it_had_written_before_it_left() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &[]);
    let mut client = Client::new(ambassador.port);
    client.query("create table came_back (a int)");
    cluster.psql(1, "select pg_wal_replay_pause()").unwrap();
    client.query("insert into came_back values (1)");
    drop(client);
    assert_eq!(Client::new(ambassador.port).value("select count(*) from came_back"), "1");
    cluster.psql(1, "select pg_wal_replay_resume()").unwrap();
}

#[test]
fn a_read_that_meets_only_long_reads_goes_to_the_primary_after_a_moment() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let ambassador = routed(&ports, ports[0], &["--pool-size", "2", "--set", "consistency=eventual"]);
    let mut reader = Client::new(ambassador.port);
    wait_until("reads go to the replica", || port_of(&mut reader) == ports[1]);
    let sleepers: Vec<Client> = std::iter::repeat_with(|| {
        let mut client = Client::new(ambassador.port);
        client.send(&query("/* ambassador: replica */ select pg_sleep(600)"));
        client
    })
    .take(2)
    .collect();
    let asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'";
    wait_until("both its connections are busy", || cluster.psql(1, asleep).unwrap().trim() == "2");
    assert_eq!(port_of(&mut reader), ports[0]);
    let last = reader.query("show last route").remove(0);
    assert_eq!(last[2].as_deref(), Some("every replica is busy"));
    drop(sleepers);
    wait_until("reads go to the replica again", || port_of(&mut reader) == ports[1]);
}

/// Where the last request of a client went, and why.
fn route_of(client: &mut Client) -> (String, String) {
    let mut row = client.query("show last route").remove(0).into_iter().map(Option::unwrap);
    (row.next().unwrap(), row.nth(1).unwrap())
}

#[test]
fn a_listener_a_user_and_a_database_may_say_where_reads_go_and_the_nearest_to_the_statement_wins() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    cluster.psql(0, "create role mover login; create role teller login; create role plain login").unwrap();
    let text = "[[listeners]]\nlisten = [\"127.0.0.1:0\"]\nroute = \"replica\"\nconsistency = \"eventual\"\n\
                [[listeners]]\nlisten = [\"127.0.0.1:0\"]\nroute = \"primary\"\n\
                [databases.other]\nroute = \"primary\"\nDATABASE\n\
                [users.mover]\nroute = \"primary\"\nconsistency = \"global\"\n[users.teller]\nroute = \"auto\"\n";
    let database = format!("url = \"{}\"\ndbname = \"postgres\"", url(&ports));
    let dir = Dir::new();
    let config = dir.write("ambassador.toml", &text.replace("DATABASE", &database));
    let ambassador = routed(&ports, ports[0], &["--config", config.to_str().unwrap()]);
    let [auto, replica, primary] = ambassador.ports[..] else { panic!("{:?}", ambassador.ports) };
    let login = |port, user, database, options: &str| {
        Client::login(port, &[("user", user), ("database", database), ("options", options)])
    };
    // Whoever comes first to a database finds its functions unknown.
    for (user, database) in
        [("postgres", "postgres"), ("mover", "postgres"), ("teller", "postgres"), ("plain", "other")]
    {
        let mut client = login(auto, user, database, "-c ambassador.route=replica -c ambassador.consistency=eventual");
        wait_until("its reads may go to a replica", || {
            client.query("select 1");
            route_of(&mut client).0 == "replica"
        });
    }
    let cases = [
        (auto, "postgres", "postgres", "", "auto", "session", ("replica", "read")),
        (replica, "postgres", "postgres", "", "replica", "eventual", ("replica", "listener")),
        (primary, "postgres", "postgres", "", "primary", "session", ("primary", "listener")),
        (auto, "mover", "postgres", "", "primary", "global", ("primary", "user")),
        (replica, "mover", "postgres", "", "primary", "global", ("primary", "user")),
        (primary, "teller", "postgres", "", "auto", "session", ("replica", "read")),
        (auto, "plain", "other", "", "primary", "session", ("primary", "configuration")),
        (replica, "plain", "other", "", "replica", "eventual", ("replica", "listener")),
        (primary, "postgres", "postgres", "-c ambassador.route=auto", "auto", "session", ("replica", "read")),
        (
            replica,
            "mover",
            "postgres",
            "-c ambassador.route=replica",
            "replica",
            "global",
            ("replica", "ambassador.route"),
        ),
    ];
    for (port, user, database, options, route, consistency, (destination, reason)) in cases {
        let case = format!("{user} at {port} in {database} with {options:?}");
        wait_until(&case, || {
            let mut client = login(port, user, database, options);
            assert_eq!(client.value("show ambassador.route"), route, "{case}");
            assert_eq!(client.value("show ambassador.consistency"), consistency, "{case}");
            client.query("select 1");
            // A read that waits in vain for a probe, or for a connection, goes to the primary this once.
            let went = route_of(&mut client);
            assert!(went.1 == reason || (destination == "replica" && went.0 == "primary"), "{case}: {went:?}");
            (went.0.as_str(), went.1.as_str()) == (destination, reason)
        });
    }
    // Nearer than all of them is a comment. What surely writes goes to the primary all the same.
    let mut client = login(primary, "postgres", "postgres", "");
    wait_until("a hint overrules the listener", || {
        client.query("/* ambassador: replica */ select 1");
        route_of(&mut client) == ("replica".to_owned(), "hint in a comment".to_owned())
    });
    let mut client = login(replica, "postgres", "postgres", "");
    client.query("create table at_the_primary ()");
    assert_eq!(route_of(&mut client), ("primary".to_owned(), "command".to_owned()));
    for (sql, destination, reason) in [
        ("set ambassador.route = 'primary'", "primary", "ambassador.route"),
        ("reset ambassador.route", "replica", "listener"),
    ] {
        client.query(sql);
        // What a SET has done is asked of its server, which a request that comes meanwhile goes to as well.
        wait_until(sql, || {
            client.query("select 1");
            route_of(&mut client) == (destination.to_owned(), reason.to_owned())
        });
    }
    assert_eq!(client.value("show ambassador.route"), "replica");
}

#[test]
fn a_session_that_has_only_set_something_has_not_written() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    cluster.psql(0, "create table filled (a int)").unwrap();
    let ambassador = routed(&ports, ports[0], &[]);
    let login = || {
        let options = ("options", "-c ambassador.consistency=primary");
        Client::login(ambassador.port, &[("user", "postgres"), ("database", "postgres"), options])
    };
    let extended = [parse("", "set a.b = 'c'"), bind("", "", &[]), describe(b'P', ""), execute("", 0), sync()].concat();
    for request in [
        query("set application_name = 'login'"),
        extended,
        query("set time zone 'UTC'; set a.b = 'c'; show transaction_read_only"),
        query("reset all"),
        query("select set_config('a.b', 'c', false)"),
        query("begin; set local a.b = 'c'; commit"),
        query("discard all"),
    ] {
        let mut client = login();
        let answer = client.exchange(&request);
        assert!(answer.iter().all(|message| message.tag != b'E'), "{answer:?}");
        wait_until("its reads go to a replica", || {
            client.query("select 1");
            let (destination, reason) = route_of(&mut client);
            assert_ne!(reason, "session has written", "{}", request.escape_ascii());
            destination == "replica"
        });
    }
    for request in ["insert into filled values (1)", "set a.b = 'c'; insert into filled values (1)", "notify c"] {
        let mut client = login();
        client.query(request);
        // What a SET has done is asked of its server, which a request that comes meanwhile goes to as well.
        wait_until("its server is free", || {
            client.query("select 1");
            let (destination, reason) = route_of(&mut client);
            assert_eq!(destination, "primary", "{request}");
            reason == "session has written"
        });
    }
    // Nor does a write pass for a read that comes while the server is asked.
    let mut client = login();
    client.send(&[query("set a.b = 'd'"), query("insert into filled values (2)")].concat());
    client.read_until(b"Z").unwrap();
    client.read_until(b"Z").unwrap();
    client.query("set a.b = 'e'");
    client.query("insert into filled values (3)");
    wait_until("its server is free", || {
        client.query("select 1");
        let (destination, reason) = route_of(&mut client);
        assert_eq!(destination, "primary");
        reason == "session has written"
    });
}

#[test]
fn the_first_connection_to_a_replica_serves_the_read_that_it_was_made_for() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    cluster.psql(0, "create role fresh superuser login").unwrap();
    // However busy the machine is: a probe is waited for.
    let ambassador = routed(&ports, ports[0], &["--set", "wait_for_replica=30s"]);
    let mut client = Client::login(ambassador.port, &[("user", "fresh"), ("database", "postgres")]);
    for batch in [false, true] {
        client.query(&format!("create table first_{batch} ()"));
        let servers = ambassador.show("SERVERS");
        assert_eq!(servers.iter().filter(|row| row[1].as_deref() == Some("fresh")).count(), 1, "{servers:?}");
        if batch {
            let batch = [parse("", WHERE), bind("", "", &[]), execute("", 0), sync()].concat();
            let rows = client.exchange(&batch);
            let row = rows.iter().find(|message| message.tag == b'D').unwrap();
            assert_eq!(row.columns(), [Some(ports[1].to_string())]);
        } else {
            assert_eq!(port_of(&mut client), ports[1]);
        }
        assert_eq!(route_of(&mut client), ("replica".to_owned(), "read".to_owned()));
        // The next one is the first again.
        let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
        console.query("RECONNECT");
        client.query("select pg_advisory_xact_lock(1)");
    }
}

#[test]
fn a_reload_changes_where_the_reads_of_users_and_listeners_go() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let dir = Dir::new();
    let said = |listener: &str, user: &str| {
        let text = format!(
            "[[listeners]]\nlisten = [\"127.0.0.1:0\"]\nroute = \"{listener}\"\n[users.postgres]\nroute = \"{user}\"\n"
        );
        dir.write("ambassador.toml", &text)
    };
    let config = said("primary", "");
    let ambassador = routed(&ports, ports[0], &["--config", config.to_str().unwrap()]);
    let reload = || {
        let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
        console.query("RELOAD");
    };
    let listener = ambassador.ports[1];
    let mut client = Client::new(listener);
    assert_eq!(client.value("show ambassador.route"), "primary");
    said("replica", "");
    reload();
    assert_eq!(Client::new(listener).value("show ambassador.route"), "replica");
    assert_eq!(client.value("show ambassador.route"), "primary", "who is there stays where it came in");
    said("replica", "auto");
    reload();
    assert_eq!(client.value("show ambassador.route"), "auto");
    wait_until("its reads go to a replica", || port_of(&mut client) == ports[1]);
}

#[test]
fn what_a_stable_function_has_set_on_a_replica_is_nobody_elses() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    cluster
        .psql(
            0,
            "create function remembers(text) returns text stable language plpgsql as \
             $$ begin return set_config('my.secret', $1, false); end $$",
        )
        .unwrap();
    let ambassador = routed(&ports, ports[0], &["--pool-size", "1", "--set", "consistency=eventual"]);
    let [mut one, mut other] = [(); 2].map(|()| Client::new(ambassador.port));
    wait_until("the function is known, and goes to the replica", || {
        one.query("select remembers('xyzzy')");
        one.query("show last route")[0][0].as_deref() == Some("replica")
    });
    for _ in 0..5 {
        one.query("select remembers('xyzzy')");
        assert_ne!(other.value("select current_setting('my.secret', true)"), "xyzzy");
    }
}

#[test]
fn reads_go_to_no_replica_that_a_reload_took_away() {
    let cluster = replicated(1, &[]);
    let ports = ports(&cluster);
    let dir = Dir::new();
    let text = |ports: &[u16]| format!("[databases.postgres]\nurl = \"{}\"\n", url(ports));
    let config = dir.write("ambassador.toml", &text(&ports));
    let ambassador = Ambassador::start(&["--config", config.to_str().unwrap()]);
    wait_for_replicas(&ambassador, ports[0]);
    let mut client = Client::new(ambassador.port);
    wait_until("it reads on the replica", || port_of(&mut client) == ports[1]);
    dir.write("ambassador.toml", &text(&ports[..1]));
    let mut console = Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]);
    console.query("RELOAD");
    for _ in 0..5 {
        assert_eq!(port_of(&mut client), ports[0]);
    }
}
