//! Randomness that nobody can guess, from the system.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// Random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The system's source does not fail once it was seeded, and that is long before a pooler starts.
    #[allow(clippy::expect_used, reason = "without randomness there is no security to be had")]
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source");
    bytes
}

/// A nonce for a SCRAM exchange, in printable form.
pub fn nonce() -> String {
    BASE64.encode(bytes::<18>())
}
