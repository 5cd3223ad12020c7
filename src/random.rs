//! Randomness that nobody can guess, from the system.

use base64ct::{Base64, Encoding};
use std::cell::RefCell;
use zeroize::Zeroize;

/// Bytes that a thread gets from the system's source at once: asking for few costs as much as asking for many.
const STOCK: usize = 512;

thread_local! {
    /// Bytes that were not given out yet, up to a length; zero behind it.
    static UNUSED: RefCell<([u8; STOCK], usize)> = const { RefCell::new(([0; STOCK], 0)) };
}

// The system's source does not fail once it was seeded, and that is long before a pooler starts.
#[allow(clippy::expect_used, reason = "without randomness there is no security to be had")]
fn fill(bytes: &mut [u8]) {
    aws_lc_rs::rand::fill(bytes).expect("the system's random source");
}

/// Random bytes. No two callers get the same ones, and what was given out is not kept.
pub fn bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= STOCK) };
    UNUSED.with_borrow_mut(|(stock, left)| {
        if *left < N {
            fill(stock);
            *left = STOCK;
        }
        let taken = &mut stock[*left - N..*left];
        let mut bytes = [0; N];
        bytes.copy_from_slice(taken);
        taken.zeroize();
        *left -= N;
        bytes
    })
}

/// A nonce for a SCRAM exchange, in printable form.
pub fn nonce() -> String {
    Base64::encode_string(&bytes::<18>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_given_out_twice_and_nothing_that_was_given_out_is_kept() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            assert!(seen.insert(bytes::<18>()));
            UNUSED.with_borrow(|(stock, left)| assert!(stock[*left..].iter().all(|&byte| byte == 0)));
        }
        assert!(!seen.contains(&[0; 18]));
    }
}
