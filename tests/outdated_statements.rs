//! Prepared statements whose tables change under them.

use crate::support::client::{Message, bind, close, describe, execute, parse, sync};
use crate::support::{Ambassador, Client, shared, url};

#[test]
fn i05_a_text_prepared_anew_after_its_table_changed_is_parsed_anew_on_every_server() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "2"]);
    let (mut client, mut other) = (Client::new(ambassador.port), Client::new(ambassador.port));
    client.query("drop table if exists outdated; create table outdated (a int); insert into outdated values (1)");
    let sql = "select * from outdated";
    let run = |name: &str| [bind("", name, &[]), execute("", 0), sync()].concat();
    // Both servers have it: the other client holds one of them, then the other one.
    for _ in 0..2 {
        client.exchange(&[parse("first", sql), run("first")].concat());
        client.query("begin");
        other.exchange(&[parse("its", sql), run("its")].concat());
        client.exchange(&run("first"));
        client.query("commit");
        client.exchange(&[close(b'S', "first"), sync()].concat());
        other.exchange(&[close(b'S', "its"), sync()].concat());
    }
    client.exchange(&[parse("old", sql), run("old")].concat());
    client.query("alter table outdated add b text default 'b'");

    // The name that was prepared before: inside a transaction refused, as PostgreSQL itself would.
    client.query("begin");
    let refused = client.exchange(&run("old"));
    assert_eq!(refused[0].code(), "0A000", "{refused:?}");
    client.query("rollback");
    // The text under a new name, on both servers.
    for client in [&mut client, &mut other] {
        client.query("begin");
        let messages = client.exchange(&[parse("new", sql), describe(b'S', "new"), run("new")].concat());
        let tags: Vec<u8> = messages.iter().map(|m| m.tag).collect();
        assert_eq!(String::from_utf8_lossy(&tags), "1tT2DCZ", "{messages:?}");
        assert_eq!(messages[4].columns(), [Some("1".into()), Some("b".into())]);
    }
}

fn tags(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.tag)).collect()
}

/// Two clients with a table of this name, on one server.
fn clients(table: &str) -> (Ambassador, [Client; 2]) {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut clients = [(); 2].map(|()| Client::new(ambassador.port));
    clients[0]
        .query(&format!("drop table if exists {table}; create table {table} (a int); insert into {table} values (1)"));
    (ambassador, clients)
}

#[test]
fn i05_a_statement_that_is_outdated_is_prepared_anew_and_run_once_more() {
    let (_ambassador, [mut client, mut other]) = clients("outdated_retried");
    let text = "select * from outdated_retried where a = $1";
    let run = [bind("", "s", &[Some("1")]), execute("", 0), sync()].concat();
    let described = [bind("", "s", &[Some("1")]), describe(b'P', ""), execute("", 0), sync()].concat();
    for client in [&mut client, &mut other] {
        client.exchange(&[parse("s", text), sync()].concat());
        assert_eq!(tags(&client.exchange(&run)), "2DCZ");
    }
    for column in ["b", "c"] {
        client.query(&format!("alter table outdated_retried add {column} text default '{column}'"));
        // Nobody was told of the columns, or asks for them now.
        let answer = client.exchange(&run);
        assert_eq!(tags(&answer), "2DCZ", "{answer:?}");
        assert_eq!(answer[1].columns().last(), Some(&Some(column.into())));
        let answer = other.exchange(if column == "b" { &run } else { &described });
        assert_eq!(answer[answer.len() - 3].columns().last(), Some(&Some(column.into())), "{answer:?}");
        // What is prepared by now is used.
        assert_eq!(client.exchange(&run), client.exchange(&run));
    }
}

#[test]
fn i05_who_prepares_a_text_after_its_table_changed_never_meets_what_was_prepared_before() {
    let (_ambassador, [mut client, mut other]) = clients("outdated_shared");
    let text = "select * from outdated_shared";
    client.exchange(&[parse("s", text), bind("", "s", &[]), execute("", 0), sync()].concat());
    client.query("alter table outdated_shared add b text default 'b'");
    let described = other.exchange(&[parse("mine", text), describe(b'S', "mine"), sync()].concat());
    assert_eq!(tags(&described), "1tTZ", "{described:?}");
    let answer = other.exchange(&[bind("", "mine", &[]), execute("", 0), sync()].concat());
    assert_eq!(answer[1].columns(), [Some("1".into()), Some("b".into())]);
    client.query("alter table outdated_shared add c text default 'c'");
    let batch = [parse("again", text), bind("", "again", &[]), describe(b'P', ""), execute("", 0), sync()].concat();
    let answer = other.exchange(&batch);
    assert_eq!(tags(&answer), "12TDCZ", "{answer:?}");
}

#[test]
fn i05_who_would_take_the_new_columns_for_the_old_is_refused() {
    let (_ambassador, [mut client, mut other]) = clients("outdated_refused");
    let insert = "insert into outdated_refused (a) values (2)";
    let text = "select * from outdated_refused order by a";
    client.exchange(&[parse("s", text), describe(b'S', "s"), parse("i", insert), sync()].concat());
    other.exchange(&[parse("s", text), parse("i", insert), sync()].concat());
    let run = |name: &str| [bind("", name, &[]), execute("", 0)].concat();
    client.query("alter table outdated_refused add b text");
    let refused = client.exchange(&[run("s"), sync()].concat());
    assert_eq!(refused[0].code(), "0A000", "{refused:?}");
    // What has run before it in the same batch would have to be run once more, too.
    let refused = other.exchange(&[run("i"), run("s"), sync()].concat());
    assert_eq!((tags(&refused).as_str(), refused[2].code()), ("2CEZ", "0A000".into()));
    assert_eq!(other.value("select count(*) from outdated_refused"), "1");
    // It is what the client asks for next that counts.
    let answer = client.exchange(&[bind("", "s", &[]), describe(b'P', ""), execute("", 0), sync()].concat());
    assert_eq!(tags(&answer), "2TDCZ", "{answer:?}");
}

#[test]
fn i05_what_is_sent_once_more_is_never_what_another_batch_or_client_had_sent() {
    let (_ambassador, [mut client, mut other]) = clients("outdated_kept");
    let text = "select *, $1::text as said from outdated_kept";
    let run = |said: &str| [bind("", "s", &[Some(said)]), execute("", 0)].concat();
    for client in [&mut client, &mut other] {
        client.exchange(&[parse("s", text), run("before"), sync()].concat());
    }
    client.query("alter table outdated_kept add b text");
    // Sent once more itself; of the next one a copy stays with the server.
    client.exchange(&[run("renewed"), sync()].concat());
    client.exchange(&[run("theirs"), sync()].concat());
    // The end of this one looks the same. Its beginning has run, so it cannot be sent again.
    let insert = [parse("", "insert into outdated_kept (a) values (2)"), bind("", "", &[]), execute("", 0)].concat();
    let answer = other.exchange(&[insert, run("mine"), sync()].concat());
    assert_eq!((tags(&answer).as_str(), answer[3].code()), ("12CEZ", "0A000".into()), "{answer:?}");
    assert_eq!(other.value("select count(*) from outdated_kept"), "1");
}
