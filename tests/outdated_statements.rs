//! Prepared statements whose tables change under them.

use crate::support::client::{bind, close, describe, execute, parse, sync};
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

    // The name that was prepared before: refused, as PostgreSQL itself would.
    let refused = client.exchange(&run("old"));
    assert_eq!(refused[0].code(), "0A000", "{refused:?}");
    // The text under a new name, on both servers.
    for client in [&mut client, &mut other] {
        client.query("begin");
        let messages = client.exchange(&[parse("new", sql), describe(b'S', "new"), run("new")].concat());
        let tags: Vec<u8> = messages.iter().map(|m| m.tag).collect();
        assert_eq!(String::from_utf8_lossy(&tags), "1tT2DCZ", "{messages:?}");
        assert_eq!(messages[4].columns(), [Some("1".into()), Some("b".into())]);
    }
}
