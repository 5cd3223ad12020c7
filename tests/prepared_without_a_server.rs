//! Preparing a text that is known while every server is busy.

use crate::support::client::{bind, execute, parse, sync};
use crate::support::{Ambassador, Client, shared, url};

#[test]
fn a_known_text_is_prepared_while_all_servers_are_in_transactions() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let (mut holder, mut other) = (Client::new(ambassador.port), Client::new(ambassador.port));
    holder.exchange(&[parse("s", "select 7"), sync()].concat());
    holder.query("begin");
    // One thread speaks for both clients, as in pgbench: it waits for this answer before it ends the transaction.
    let messages = other.exchange(&[parse("mine", "select 7"), sync()].concat());
    assert_eq!(messages.iter().map(|m| m.tag).collect::<Vec<_>>(), b"1Z", "{messages:?}");
    // The same name again is refused, by a server.
    holder.query("commit");
    let messages = other.exchange(&[parse("mine", "select 8"), sync()].concat());
    assert_eq!(messages[0].code(), "42P05", "{messages:?}");
    let messages = other.exchange(&[bind("", "mine", &[]), execute("", 0), sync()].concat());
    assert_eq!(messages[1].columns(), [Some("7".into())]);
}

#[test]
fn a_text_that_a_server_refused_is_asked_for_again() {
    let ambassador = Ambassador::start(&[&url(shared()), "--pool-size", "1"]);
    let mut client = Client::new(ambassador.port);
    for _ in 0..2 {
        let messages = client.exchange(&[parse("s", "select * from never_made"), sync()].concat());
        assert_eq!(messages[0].code(), "42P01", "{messages:?}");
    }
}
