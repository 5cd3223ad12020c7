//! LISTEN and NOTIFY in transaction mode: nobody keeps a server for it, and nothing is lost.

use crate::support::client::{Message, bind, execute, message, parse, query, sync};
use crate::support::{Ambassador, Chaos, Client, Rule, Way, shared, url, wait_until};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn database(name: &str) -> String {
    let mut direct = Client::new(shared().port());
    direct.query(&format!("drop database if exists {name} with (force)"));
    direct.query(&format!("create database {name}"));
    name.to_owned()
}

fn ambassador(size: usize) -> Ambassador {
    Ambassador::start(&[url(shared()).as_str(), "--pool-size", &size.to_string(), "-s", "paranoid=true"])
}

fn login(port: u16, database: &str) -> Client {
    Client::login(port, &[("user", "postgres"), ("database", database)])
}

/// Channel and payload of a notification.
fn heard(message: &Message) -> (String, String) {
    assert_eq!(message.tag, b'A', "{message:?}");
    let text = String::from_utf8(message.body[4..].to_vec()).unwrap();
    let (channel, payload) = text.trim_end_matches('\0').split_once('\0').unwrap_or((text.trim_end_matches('\0'), ""));
    (channel.to_owned(), payload.to_owned())
}

fn next(client: &mut Client) -> (String, String) {
    heard(&client.read().expect("a notification"))
}

/// Nothing has come: whatever was sent before is delivered before the answer to a query behind it.
fn hears_nothing(client: &mut Client) {
    let answer = client.exchange(&query("notify of_the_test_itself"));
    assert!(answer.iter().all(|m| m.tag != b'A'), "{answer:?}");
}

#[test]
fn idle_listeners_hold_no_server_and_hear_everything_in_order() {
    let name = database("notify_idle");
    let ambassador = ambassador(2);
    let mut clients: Vec<Client> = (0..20).map(|_| login(ambassador.port, &name)).collect();
    for client in &mut clients {
        client.query("listen jobs");
    }
    let mut other = login(ambassador.port, &name);
    for i in 0..50 {
        other.query(&format!("notify jobs, 'number {i}'"));
    }
    // One from elsewhere, past the ambassador.
    login(shared().port(), &name).query("select pg_notify('jobs', 'direct')");
    for client in &mut clients {
        for i in 0..50 {
            assert_eq!(next(client), ("jobs".into(), format!("number {i}")));
        }
        assert_eq!(next(client), ("jobs".into(), "direct".into()));
        assert_eq!(client.value("select 1"), "1");
    }
    assert!(ambassador.show("PINS").is_empty());
    let listeners = ambassador.show("LISTENERS");
    assert_eq!(listeners.len(), 1, "{listeners:?}");
}

#[test]
fn listen_takes_effect_at_commit_and_not_after_a_rollback() {
    let name = database("notify_commit");
    let ambassador = ambassador(2);
    let (mut one, mut other) = (login(ambassador.port, &name), login(ambassador.port, &name));
    one.query("begin; listen rolled_back");
    one.query("rollback");
    one.query("begin; savepoint a; listen under_savepoint");
    one.query("rollback to a; listen kept");
    one.query("commit");
    for channel in ["rolled_back", "under_savepoint", "kept"] {
        other.query(&format!("notify {channel}, 'x'"));
    }
    assert_eq!(next(&mut one), ("kept".into(), "x".into()));
    hears_nothing(&mut one);
    // UNLISTEN, rolled back and not.
    one.query("begin; unlisten kept");
    one.query("rollback");
    other.query("notify kept, 'still'");
    assert_eq!(next(&mut one), ("kept".into(), "still".into()));
    one.query("begin");
    one.query("unlisten kept");
    one.query("listen instead");
    one.query("commit");
    other.query("notify kept, 'no more'");
    other.query("notify instead, 'yes'");
    assert_eq!(next(&mut one), ("instead".into(), "yes".into()));
    one.exchange(&[parse("", "unlisten *"), bind("", "", &[]), execute("", 0), sync()].concat());
    other.query("notify instead, 'no more'");
    hears_nothing(&mut one);
    one.query("listen again; unlisten again; listen again");
    other.query("notify again");
    assert_eq!(next(&mut one), ("again".into(), String::new()));
    one.query("discard all");
    other.query("notify again");
    hears_nothing(&mut one);
    assert!(ambassador.show("PINS").is_empty());
}

#[test]
fn who_notifies_itself_is_told_before_its_answer_is_complete() {
    let name = database("notify_self");
    let ambassador = ambassador(1);
    let mut one = login(ambassador.port, &name);
    one.query("listen me");
    for sql in ["notify me, 'a'", "select pg_notify('me', 'b')", "begin; notify me, 'c'; commit"] {
        let answer = one.exchange(&query(sql));
        let position =
            |tag: u8| answer.iter().position(|m| m.tag == tag).unwrap_or_else(|| panic!("{sql}: {answer:?}"));
        assert!(position(b'A') < position(b'Z'), "{sql}");
    }
    let both = one.exchange(&query("listen two; notify two, 'at once'"));
    assert!(both.iter().any(|m| m.tag == b'A'), "{both:?}");
    // Nothing is told inside a transaction.
    one.query("begin; select 1");
    login(shared().port(), &name).query("notify me, 'while open'");
    assert_eq!(one.value("select 2"), "2");
    one.send(&query("commit"));
    let mut seen = one.read_until(b"Z").unwrap();
    if !seen.iter().any(|m| m.tag == b'A') {
        seen = vec![one.read().unwrap()];
    }
    let told = seen.iter().find(|m| m.tag == b'A').map(heard);
    assert_eq!(told, Some(("me".into(), "while open".into())));
}

#[test]
fn hostile_names_and_payloads_arrive_as_they_were_sent() {
    let name = database("notify_hostile");
    let ambassador = ambassador(1);
    let mut one = login(ambassador.port, &name);
    let mut other = login(ambassador.port, &name);
    let long = "x".repeat(63);
    for channel in ["We\"ird; drop table x; --", "  spaces  ", "Größe", "$$", "'", "\\", &long, "ambassador:x", "*"] {
        let quoted = channel.replace('"', "\"\"");
        one.query(&format!("listen \"{quoted}\""));
        let payload = "p'\"\\;\n".repeat(1100);
        let notify = [
            parse("", "select pg_notify($1, $2)"),
            bind("", "", &[Some(channel), Some(&payload)]),
            execute("", 0),
            sync(),
        ];
        other.exchange(&notify.concat());
        assert_eq!(next(&mut one), (channel.to_owned(), payload));
        one.query(&format!("unlisten \"{quoted}\""));
    }
    hears_nothing(&mut one);
}

#[test]
fn a_lost_listening_connection_is_made_again_and_its_clients_stay() {
    let name = database("notify_lost");
    let ambassador = ambassador(1);
    let mut one = login(ambassador.port, &name);
    one.query("listen lost");
    let mut direct = login(shared().port(), "postgres");
    let pid = ambassador.show("LISTENERS")[0][3].clone().expect("it is connected");
    direct.query(&format!("select pg_terminate_backend({pid})"));
    wait_until("the loss is seen", || ambassador.metric("pg_ambassador_listening_connections_lost_total") == 1.0);
    let mut other = login(ambassador.port, &name);
    let mut got = None;
    wait_until("a notification arrives", || {
        other.query("notify lost, 'again'");
        one.send(&query("select 1"));
        let answer = one.read_until(b"Z").unwrap();
        got = answer.iter().find(|m| m.tag == b'A').map(heard);
        got.is_some()
    });
    assert_eq!(got, Some(("lost".into(), "again".into())));
}

#[test]
fn thousands_of_channels_of_hundreds_of_clients_share_one_connection() {
    let name = database("notify_many");
    let ambassador = ambassador(2);
    let mut clients: Vec<Client> = (0..60).map(|_| login(ambassador.port, &name)).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        let sql: Vec<String> = (0..50).map(|i| format!("listen c_{at}_{i}")).collect();
        client.query(&sql.join("; "));
    }
    let mut other = login(ambassador.port, &name);
    for at in 0..clients.len() {
        other.query(&format!("notify c_{at}_49, '{at}'"));
    }
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(next(client), (format!("c_{at}_49"), at.to_string()));
    }
    let mut direct = login(shared().port(), "postgres");
    let backends = direct.value(&format!(
        "select count(*) from pg_stat_activity where datname = '{name}' and backend_type = 'client backend'"
    ));
    assert!(backends.parse::<u32>().unwrap() <= 3, "{backends} backends");
}

#[test]
fn a_listen_that_only_a_function_knows_of_keeps_its_server_and_works() {
    let name = database("notify_hidden");
    let ambassador = ambassador(2);
    let (mut one, mut other) = (login(ambassador.port, &name), login(ambassador.port, &name));
    one.query("do $$ begin execute 'listen hidden'; end $$");
    wait_until("it keeps its server", || ambassador.show("PINS").len() == 1);
    other.query("notify hidden, 'x'");
    assert_eq!(next(&mut one), ("hidden".into(), "x".into()));
    one.query("unlisten *");
    wait_until("it gives it back", || ambassador.show("PINS").is_empty());
}

#[test]
fn a_listener_that_leaves_listens_to_nothing_any_more() {
    let name = database("notify_left");
    let ambassador = ambassador(1);
    for _ in 0..3 {
        let mut one = login(ambassador.port, &name);
        one.query("listen gone");
        one.send(&message(b'X', b""));
    }
    wait_until("nobody listens", || ambassador.metric("pg_ambassador_listening_clients") == 0.0);
    assert_eq!(login(ambassador.port, &name).value("select count(*) from pg_listening_channels()"), "0");
}

#[test]
fn who_notifies_itself_hears_it_before_the_answer_and_never_what_it_has_stopped_to_listen_to() {
    let name = database("notify_same");
    let ambassador = ambassador(2);
    let [expected, found] = [shared().port(), ambassador.port].map(|port| {
        let mut client = login(port, &name);
        let mut answers = Vec::new();
        for round in 0..10 {
            for text in [
                "listen a",
                "listen b",
                // An UNLISTEN, known only when the server has been asked, and something to hear.
                "unlisten b; notify a, 'one'; notify b, 'none'",
                "do $$ begin perform pg_notify('a', 'by a block'); end $$",
                "listen b; notify b",
                "unlisten *; notify a, 'nobody'",
                "listen a",
                "unlisten a",
                "notify a, 'nobody'",
            ] {
                let extended = round % 2 == 1 && !text.contains(';');
                let answer = client.exchange(&match extended {
                    true => [parse("", text), bind("", "", &[]), execute("", 0), sync()].concat(),
                    false => query(text),
                });
                let told = |m: Message| if m.tag == b'A' { format!("{:?}", heard(&m)) } else { format!("{m:?}") };
                answers.push((text, answer.into_iter().map(told).collect::<Vec<_>>()));
            }
        }
        answers
    });
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "answer {at}");
    }
}

#[test]
fn what_was_sent_in_the_transaction_that_listens_is_heard_before_its_commit_is_answered() {
    let name = database("notify_within");
    let ambassador = ambassador(2);
    for round in 0..5 {
        let [expected, found] = [shared().port(), ambassador.port].map(|port| {
            let mut client = login(port, &name);
            let mut answers = Vec::new();
            for text in [
                // The server is asked what this has left, and answers when the transaction has begun. Pinned, for there is
                // something that it has left.
                "declare h cursor with hold for select 1; do $$ begin perform 1; end $$",
                "begin; select 1",
                "notify other, 'another'; notify a, 'before'",
                "unlisten other; listen \"Odd\"",
                "listen a; unlisten other",
                "notify a; notify other, 'another'",
                "select 1",
                "commit",
            ] {
                let answer = client.exchange(&query(text));
                let told = |m: Message| if m.tag == b'A' { format!("{:?}", heard(&m)) } else { format!("{m:?}") };
                answers.push((text, answer.into_iter().map(told).collect::<Vec<_>>()));
            }
            answers
        });
        assert_eq!(found, expected, "round {round}");
    }
}

#[test]
fn what_is_asked_while_an_answer_waits_for_notifications_is_answered_behind_it() {
    let chaos = Chaos::start(shared().port());
    let url = format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port);
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1"]);
    let mut client = login(ambassador.port, &database("notify_pipelined"));
    client.query("listen here");
    // The server is asked what the block has left, and the answer takes a while. Until then its end has to wait.
    chaos.set(Way::ToClient, Rule { latency: Duration::from_millis(300), ..Rule::default() });
    let block = query("do $$ begin notify here, 'from a block'; end $$");
    let before = chaos.passed(Way::ToServer);
    client.send(&block);
    wait_until("the question is on its way", || chaos.passed(Way::ToServer) > before + block.len());
    client.send(&query("select 1"));
    let tags = |messages: &[Message]| messages.iter().map(|m| char::from(m.tag)).collect::<String>();
    assert_eq!(tags(&client.read_until(b"Z").unwrap()), "CAZ");
    assert_eq!(tags(&client.read_until(b"Z").unwrap()), "TDCZ");
}

#[test]
fn an_unlisten_in_a_text_that_fails_ends_nothing() {
    let ambassador = ambassador(2);
    let mut client = login(ambassador.port, &database("notify_failed_unlisten"));
    let batch = |text: &str| [parse("", text), bind("", "", &[]), execute("", 0)].concat();
    for failing in [
        query("select 1/0; unlisten here"),
        query("unlisten here; select 1/0"),
        query("rollback to nowhere; unlisten *"),
        [batch("unlisten here"), batch("select 1/0"), sync()].concat(),
        [query("begin; unlisten here; select 1/0"), query("rollback")].concat(),
    ] {
        client.query("listen here");
        client.send(&failing);
        let ends = if failing.ends_with(b"rollback\0") { 2 } else { 1 };
        (0..ends).for_each(|_| drop(client.read_until(b"Z").unwrap()));
        client.heard.clear();
        client.query("notify here, 'still'");
        assert_eq!(client.heard, [("here".into(), "still".into())], "{}", String::from_utf8_lossy(&failing));
    }
    // One that is committed does.
    for done in ["select 1; unlisten here", "begin; unlisten *; commit"] {
        client.query("listen here");
        client.query(done);
        client.heard.clear();
        client.query("notify here, 'nobody'");
        assert!(client.heard.is_empty(), "{done}: {:?}", client.heard);
    }
}

#[test]
fn who_notifies_itself_hears_it_before_it_is_told_of_changed_parameters() {
    let ambassador = ambassador(2);
    // One must not hear the other.
    let mut direct = login(shared().port(), &database("notify_reported_direct"));
    let mut through = login(ambassador.port, &database("notify_reported"));
    for text in [
        "listen here",
        "notify here, 'a'; set timezone = 'Asia/Tokyo'",
        "begin; set datestyle = 'German'; notify here; commit",
        "set timezone = 'UTC'",
        "begin; set timezone = 'Asia/Seoul'; notify here; rollback",
        "unlisten *; notify here; set timezone = 'Asia/Seoul'",
    ] {
        let told = |client: &mut Client| -> Vec<(char, String)> {
            let answer = client.exchange(&query(text));
            // Whose backend has notified differs.
            let body = |m: &Message| String::from_utf8_lossy(&m.body[if m.tag == b'A' { 4 } else { 0 }..]).into_owned();
            answer.iter().map(|m| (char::from(m.tag), body(m))).collect()
        };
        assert_eq!(told(&mut through), told(&mut direct), "{text}");
    }
}

#[test]
fn who_notifies_itself_in_a_pipeline_or_by_a_function_of_its_own_hears_it_before_that_is_answered() {
    let ambassador = ambassador(2);
    let [direct, through] = ["notify_pipeline_direct", "notify_pipeline"].map(database);
    let run = |text: &str| [parse("", text), bind("", "", &[]), execute("", 0), sync()].concat();
    let [expected, found] = [(shared().port(), direct), (ambassador.port, through)].map(|(port, name)| {
        let mut client = login(port, &name);
        client.query(
            "create table t (v text); \
             create function tell(text) returns text language plpgsql as $$ begin perform pg_notify('here', $1); return $1; end $$; \
             create function told() returns trigger language plpgsql as $$ begin perform tell('row ' || new.v); return new; end $$; \
             create trigger t after insert or update on t for each row execute function told(); \
             prepare p as select tell('prepared')",
        );
        client.query("listen here");
        let mut answers = Vec::new();
        for (at, text) in [
            "notify here, 'a'",
            "select 1",
            "select tell('by a function')",
            "insert into t values ('1')",
            "update t set v = '2'",
            "with n as (insert into t values ('3') returning v) select count(*) from n",
            "execute p",
            "begin; insert into t values ('4')",
            "select v from t order by v",
            "commit",
            "begin; select tell('rolled back'); rollback",
            "select 2; notify here, 'b'; select 3",
            "show timezone",
        ]
        .into_iter()
        .enumerate()
        {
            let messages = if at % 2 == 1 && !text.contains(';') { run(text) } else { query(text) };
            // Alone, and with others behind it.
            for pipelined in [&[][..], &[query("select 'behind'"), run("notify here, 'last'"), run("select 1")]] {
                client.send(&[messages.clone(), pipelined.concat()].concat());
                for _ in 0..=pipelined.len() {
                    let answer = client.read_until(b"Z").unwrap();
                    let told = |m: Message| if m.tag == b'A' { format!("{:?}", heard(&m)) } else { format!("{m:?}") };
                    let answer = answer.into_iter().map(Message::without_oids);
                    answers.push((text, answer.map(told).collect::<Vec<_>>()));
                }
                if text.contains("commit") || text.starts_with("begin; insert") {
                    break;
                }
            }
        }
        answers
    });
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "answer {at}");
    }
}

#[test]
fn what_was_committed_before_a_first_listen_was_is_not_heard_and_what_was_behind_it_is() {
    let ambassador = ambassador(2);
    let [direct, through] = ["notify_between_direct", "notify_between"].map(database);
    let run = |text: &str| [parse("", text), bind("", "", &[]), execute("", 0), sync()].concat();
    let [expected, found] = [(shared().port(), direct), (ambassador.port, through)].map(|(port, name)| {
        let mut other = login(shared().port(), &name);
        // Somebody who listens to the channel before, and for the whole time, or nobody.
        (0..24)
            .map(|round| {
                let mut long = login(port, &name);
                if round % 2 == 1 {
                    long.query("listen here");
                }
                let mut client = login(port, &name);
                if round % 4 >= 2 {
                    client.query("listen elsewhere");
                }
                let ask = |client: &mut Client, text: &str| match round / 8 {
                    1 => client.exchange(&run(text)),
                    _ => client.exchange(&query(text)),
                };
                ask(&mut client, "begin");
                if round % 8 >= 4 {
                    ask(&mut client, "select 1");
                }
                ask(&mut client, "listen here");
                other.query("notify here, 'between'");
                other.query("notify elsewhere, 'between'");
                if round / 8 == 2 {
                    client.query("savepoint a");
                    other.query("notify here, 'between'");
                }
                ask(&mut client, "commit");
                other.query("notify here, 'after'");
                while !client.heard.iter().any(|(channel, payload)| channel == "here" && payload == "after") {
                    client.read().unwrap();
                }
                client.heard
            })
            .collect::<Vec<_>>()
    });
    for (round, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "round {round}");
    }
}

#[test]
fn a_transaction_that_begins_while_the_server_is_asked_changes_what_is_listened_to_as_any_other() {
    let chaos = Chaos::start(shared().port());
    let url = format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port);
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1"]);
    let mut client = login(ambassador.port, &database("notify_asked"));
    client.query("listen first");
    chaos.set(Way::ToClient, Rule { latency: Duration::from_millis(50), ..Rule::default() });
    for (channel, change, heard) in [
        ("before", "listen second; notify second, 'new'", &[("second", "new")][..]),
        ("behind", "unlisten first; notify first, 'old'", &[]),
    ] {
        // It is answered at once, and then the server is asked what came of it.
        client.query(&format!("listen {channel}"));
        client.query("begin");
        client.query("select 1");
        client.query(change);
        client.heard.clear();
        client.query("commit");
        let told: Vec<(&str, &str)> = client.heard.iter().map(|(c, p)| (c.as_str(), p.as_str())).collect();
        assert_eq!(told, heard, "{change}\n{}", ambassador.log());
    }
}

#[test]
fn what_is_committed_and_chained_is_told_when_the_chain_ends() {
    let (name, direct) = (database("notify_chained"), database("notify_chained_direct"));
    for (round, chained) in [
        &["rollback"][..],
        &["listen other; select 1/0", "rollback"],
        &["listen other", "rollback"],
        &["notify here, 'lost'", "rollback"],
        &["notify here, 'lost'", "select 1/0", "rollback"],
        &["listen other; select 1/0", "commit"],
        &["listen other", "notify other, 'kept'", "commit"],
    ]
    .into_iter()
    .enumerate()
    {
        let ambassador = ambassador(2);
        let [expected, found] = [(shared().port(), &direct), (ambassador.port, &name)].map(|(port, name)| {
            let mut client = login(port, name);
            for text in ["begin", "listen here", "notify here, 'kept'", "commit and chain"].iter().chain(chained) {
                client.exchange(&query(text));
            }
            std::mem::take(&mut client.heard)
        });
        assert_eq!(found, expected, "round {round}: {chained:?}\n{}", ambassador.log());
        assert!(found.contains(&("here".into(), "kept".into())), "round {round}");
    }
}

#[test]
fn an_unlisten_that_is_rolled_back_is_not_taken_for_an_earlier_one() {
    let chaos = Chaos::start(shared().port());
    let url = format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port);
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1"]);
    let mut client = login(ambassador.port, &database("notify_marks"));
    client.query("listen one");
    client.query("listen two");
    chaos.set(Way::ToClient, Rule { latency: Duration::from_millis(50), ..Rule::default() });
    // It is answered at once, and then the server is asked what came of it.
    client.query("unlisten one");
    client.query("begin");
    client.query("select 1");
    client.query("unlisten two");
    client.query("rollback");
    client.heard.clear();
    client.query("notify two, 'still'");
    assert_eq!(client.heard, [("two".into(), "still".into())], "{}", ambassador.log());
}

#[test]
fn what_was_sent_between_a_chained_rollback_and_a_first_listen_is_not_heard() {
    let name = database("notify_older");
    let ambassador = ambassador(2);
    let (mut client, mut other) = (login(ambassador.port, &name), login(ambassador.port, &name));
    client.query("begin; listen here");
    client.exchange(&query("select 1/0"));
    // It is a rollback, and the transaction that follows has listened to nothing so far.
    client.query("commit and chain");
    client.query("listen here");
    other.query("notify here, 'too early'");
    client.query("commit");
    client.query("notify here, 'heard'");
    assert_eq!(client.heard, [("here".into(), "heard".into())], "{}", ambassador.log());
}

#[test]
fn what_was_unlistened_to_right_before_it_is_listened_to_again_is_heard() {
    let chaos = Chaos::start(shared().port());
    let url = format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port);
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1"]);
    let mut client = login(ambassador.port, &database("notify_again"));
    client.query("listen here");
    client.query("listen there");
    chaos.set(Way::ToClient, Rule { latency: Duration::from_millis(50), ..Rule::default() });
    // It is answered at once, and then the server is asked what came of it.
    client.query("unlisten here");
    client.query("begin");
    client.query("select 1");
    client.query("listen here");
    client.query("notify here, 'again'");
    client.heard.clear();
    client.query("commit");
    assert_eq!(client.heard, [("here".into(), "again".into())], "{}", ambassador.log());
    client.heard.clear();
    client.query("notify here, 'and again'");
    assert_eq!(client.heard, [("here".into(), "and again".into())], "{}", ambassador.log());
}

/// How many clients of a pool wait for a server.
fn waiting(ambassador: &Ambassador) -> usize {
    ambassador.show("POOLS").iter().map(|pool| pool[3].as_deref().unwrap().parse::<usize>().unwrap()).sum()
}

#[test]
fn a_server_that_was_waited_for_stays_until_it_is_told_to_listen() {
    let chaos = Chaos::start(shared().port());
    let url = format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port);
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1"]);
    let name = database("notify_stays");
    let [mut one, mut two, mut three] = [(); 3].map(|()| login(ambassador.port, &name));
    two.query("begin; select 1");
    // Nobody can listen for it yet.
    chaos.refuse(true);
    one.send(&query("listen here"));
    wait_until("it waits", || waiting(&ambassador) == 1);
    three.send(&query("begin; select 1"));
    wait_until("both wait", || waiting(&ambassador) == 2);
    two.query("commit");
    wait_until("it has its server", || waiting(&ambassador) == 1);
    chaos.refuse(false);
    assert_eq!(one.read_until(b"Z").unwrap()[0].tag, b'C');
    three.read_until(b"Z").unwrap();
    three.query("notify here, 'heard'; commit");
    assert_eq!(next(&mut one), ("here".into(), "heard".into()));
}

#[test]
fn what_was_to_be_listened_to_when_the_server_was_lost_is_not_heard() {
    let chaos = Chaos::start(shared().port());
    let url = format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port);
    let name = database("notify_unheard");
    for running in [false, true] {
        let ambassador = Ambassador::start(&[&url, "--pool-size", "1"]);
        let mut client = login(ambassador.port, &name);
        client.query("listen here");
        client.query("listen here");
        // Until that is known its loss would end the client.
        let idle = || ambassador.show("POOLS").iter().any(|pool| pool[9].as_deref() == Some("1"));
        wait_until("its server is back", idle);
        let mut direct = login(shared().port(), &name);
        let terminate = |direct: &mut Client, what: &str| {
            let of = format!("from pg_stat_activity where datname = '{name}' and pid <> pg_backend_pid() and {what}");
            wait_until("it is there", || direct.value(&format!("select count(*) {of}")) == "1");
            direct.query(&format!("select pg_terminate_backend(pid, 10000) {of}"));
        };
        match running {
            true => {
                client.send(&query("listen lost; select pg_sleep(3600)"));
                terminate(&mut direct, "query like '%3600%'");
            }
            false => {
                // Nobody can listen for it in time: the listening connection is gone, and there is none to be had.
                client.query("begin; select 'open'");
                chaos.refuse(true);
                terminate(&mut direct, "query not like '%open%'");
                client.send(&query("listen lost"));
                wait_until("it is under way", || ambassador.log().contains("listening connection is lost"));
                terminate(&mut direct, "query like '%open%'");
                wait_until("the loss is seen", || ambassador.log().contains("lost a server connection in use"));
                chaos.refuse(false);
                wait_until("it is there again", || ambassador.log().contains("the listening connection is back"));
            }
        }
        assert!(client.read_until(b"Z").unwrap().iter().any(|m| m.tag == b'E'));
        client.query("rollback");
        client.query("notify here, 'old'; notify lost, 'new'");
        assert_eq!(client.heard, [("here".into(), "old".into())], "{running}");
    }
}

#[test]
fn who_changes_its_encoding_misses_nothing_and_hears_nothing_twice() {
    let name = database("notify_encoding");
    let ambassador = ambassador(2);
    let mut client = login(ambassador.port, &name);
    client.query("listen here");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let mut other = login(shared().port(), &name);
            let mut sent = 0;
            while !over.load(Ordering::Relaxed) {
                other.query(&format!("notify here, '{sent}'"));
                sent += 1;
            }
            sent
        });
        for encoding in ["LATIN1", "UTF8", "LATIN2", "LATIN1", "UTF8"].into_iter().cycle().take(20) {
            client.query(&format!("set client_encoding = '{encoding}'"));
            let before = client.heard.len();
            while client.heard.len() < before + 10 {
                client.read().unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
        let sent = sent.join().unwrap();
        client.query("notify here, 'end'");
        let expected = (0..sent).map(|n| n.to_string()).chain(["end".to_owned()]);
        let heard = client.heard.iter().map(|(_, payload)| payload.clone());
        assert_eq!(heard.collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    });
}

#[test]
fn who_changes_its_encoding_while_nobody_can_listen_in_it_goes_on_to_hear() {
    let chaos = Chaos::start(shared().port());
    let url = format!("postgres://127.0.0.1:{}/?sslmode=disable", chaos.port);
    let ambassador = Ambassador::start(&[&url, "--pool-size", "1"]);
    let name = database("notify_encoding_kept");
    let mut client = login(ambassador.port, &name);
    client.query("listen here");
    chaos.refuse(true);
    client.query("set client_encoding = 'LATIN1'");
    // It is answered when that has failed.
    client.query("select 1");
    login(shared().port(), &name).query("notify here, 'still'");
    assert_eq!(next(&mut client), ("here".into(), "still".into()));
    chaos.refuse(false);
    wait_until("somebody listens in its encoding", || {
        client.query("select 1");
        ambassador.show("LISTENERS").iter().any(|row| row.contains(&Some("LATIN1".into())))
    });
    client.query("notify here, 'again'");
    assert_eq!(client.heard.last(), Some(&("here".into(), "again".into())));
}
