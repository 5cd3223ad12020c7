//! Any cut of any stream is the same stream: whole conversations against a model of a server, without a socket.

#[path = "../fuzz/src/conversation/mod.rs"]
mod conversation;

use conversation::{Random, client_stream, directly, through_the_session};

#[test]
fn a_conversation_reads_the_same_through_the_session_wherever_both_streams_are_cut() {
    for seed in 0..3000 {
        let mut random = Random::new(seed);
        let client = client_stream(&mut random, 10);
        let expected = directly(&client).escape_ascii().to_string();
        for largest in [1, 7, 64, 4096] {
            let read = through_the_session(&client, random.next(), largest);
            let read = read.map(|bytes| bytes.escape_ascii().to_string());
            assert_eq!(read.as_deref(), Ok(expected.as_str()), "seed {seed}: {}", client.escape_ascii());
        }
    }
}
