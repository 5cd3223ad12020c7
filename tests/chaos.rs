//! The proxy that plays the network: what it claims to do, it does.

use crate::support::{Ambassador, Chaos, Client, How, Rule, Way, shared, wait_until};
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// A client behind a proxy in front of the shared server.
fn behind() -> (Chaos, Client) {
    let chaos = Chaos::start(shared().port());
    let client = Client::new(chaos.port);
    (chaos, client)
}

#[test]
fn bytes_in_slices_of_one_arrive_whole_through_both_sides_of_the_ambassador() {
    let upstream = Chaos::start(shared().port());
    let ambassador = Ambassador::start(&[format!("postgres://127.0.0.1:{}/?sslmode=disable", upstream.port)]);
    let downstream = Chaos::start(ambassador.port);
    for chaos in [&upstream, &downstream] {
        chaos.set_both(Rule { slice: 1, ..Rule::default() });
    }
    let mut client = Client::new(downstream.port);
    assert_eq!(client.value("select repeat('x', 1000)"), "x".repeat(1000));
    assert!(upstream.passed(Way::ToClient) > 1000 && downstream.passed(Way::ToServer) > 40);
}

#[test]
fn latency_holds_an_answer_back() {
    let (chaos, mut client) = behind();
    chaos.set(Way::ToServer, Rule { latency: Duration::from_millis(50), ..Rule::default() });
    let start = Instant::now();
    assert_eq!(client.value("select 1"), "1");
    assert!(start.elapsed() >= Duration::from_millis(50));
}

#[test]
fn a_cut_passes_exactly_so_many_bytes() {
    let chaos = Chaos::start(shared().port());
    chaos.set(Way::ToClient, Rule { cut: Some((13, How::Close)), ..Rule::default() });
    let mut client = Client::connect(chaos.port);
    client.send(&crate::support::client::startup(&[("user", "postgres"), ("database", "postgres")]));
    let mut answer = Vec::new();
    client.stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.len(), 13);
}

#[test]
fn a_reset_is_a_reset_and_a_close_is_none() {
    let (chaos, mut client) = behind();
    assert_eq!(chaos.end_all(How::Reset), 1);
    assert_eq!(client.read().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let (chaos, mut client) = behind();
    chaos.end_all(How::Close);
    assert_eq!(client.read().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    wait_until("it has gone", || chaos.open() == 0);
}

#[test]
fn a_blackhole_takes_everything_and_gives_nothing() {
    let (chaos, mut client) = behind();
    chaos.end_all(How::Blackhole);
    wait_until("the order was carried out", || {
        client.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        client.send(&crate::support::client::query("select 1"));
        client.read_until(b"Z").is_err()
    });
    let passed = chaos.passed(Way::ToServer);
    client.send(&crate::support::client::query("select 1"));
    assert!(client.read().is_err());
    assert_eq!((chaos.passed(Way::ToServer), chaos.open()), (passed, 1));
}

#[test]
fn a_half_close_leaves_the_other_way_open() {
    let (chaos, mut client) = behind();
    client.send(&crate::support::client::query("select pg_sleep(0.2), 42"));
    wait_until("the query has passed", || chaos.passed(Way::ToServer) > 60);
    chaos.end_all(How::HalfClose(Way::ToServer));
    let messages = client.read_until(b"Z").unwrap();
    assert_eq!(messages.iter().find(|m| m.tag == b'D').unwrap().columns()[1].as_deref(), Some("42"));
}

#[test]
fn a_refusing_proxy_refuses_and_comes_back_on_the_same_port() {
    let (chaos, mut client) = behind();
    chaos.refuse(true);
    let refused = std::net::TcpStream::connect(("127.0.0.1", chaos.port)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(client.value("select 1"), "1");
    chaos.calm();
    assert_eq!(Client::new(chaos.port).value("select 2"), "2");
}
