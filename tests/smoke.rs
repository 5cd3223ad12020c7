//! The least that must work.

use crate::support::{Ambassador, Client, shared, url};

#[test]
fn a_query_comes_back_through_the_ambassador() {
    let ambassador = Ambassador::start(&[url(shared())]);
    let mut client = Client::new(ambassador.port);
    assert_eq!(client.value("select 40 + 2"), "42");
    assert_eq!(client.param("server_encoding"), Some("UTF8"));
}
