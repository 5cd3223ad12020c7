//! Whole conversations without a socket: a client's messages, the session, and a model of a server that answers.
//!
//! The model's answers to a client's messages are the truth. Through the session, on servers that come and go and
//! already know other statements, with both streams cut anywhere, the client must read the very same bytes.

#![allow(dead_code, unused_imports, reason = "the fuzzer and the tests use a part each")]

mod generate;
mod model;
#[path = "../../../tests/support/random.rs"]
mod random;
mod rig;

pub use generate::{client_stream, server_stream};
pub use model::Model;
pub use random::Random;
pub use rig::{Ended, Rig};

/// What a server that speaks to the client directly answers to all of this.
pub fn directly(client: &[u8]) -> Vec<u8> {
    let mut model = Model::default();
    let mut answers = Vec::new();
    model.feed(client, &mut answers);
    answers
}

/// What the client reads through a session, with its bytes and the server's cut and interleaved as the seed has it.
pub fn through_the_session(client: &[u8], seed: u64, largest_piece: usize) -> Result<Vec<u8>, String> {
    let mut random = Random::new(seed);
    let mut rig = Rig::with_models(&mut random);
    let mut sent = 0;
    // Each round sends something or reads something; whoever makes no progress for this long hangs.
    let mut idle = 0;
    while idle < 64 {
        idle += 1;
        if sent < client.len() && random.one_in(2) {
            let piece = (1 + random.below(largest_piece)).min(client.len() - sent);
            rig.client_sends(&client[sent..sent + piece]);
            sent += piece;
            idle = 0;
        }
        if rig.server_answers(1 + random.below(largest_piece)) {
            idle = 0;
        }
        if let Some(ended) = rig.ended() {
            return match ended {
                Ended::Goodbye => Ok(rig.client_reads().to_vec()),
                other => Err(format!("ended by {other:?}")),
            };
        }
    }
    match rig.unfinished() {
        None => Ok(rig.client_reads().to_vec()),
        Some(why) => Err(why),
    }
}
