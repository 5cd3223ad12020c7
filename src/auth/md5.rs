//! PostgreSQL's MD5 password exchange: kept for old clients and servers, and never offered where better is at hand.

use crate::secret;
use md5::{Digest, Md5};

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `pg_authid` stores: `md5` and the hash of password and user.
pub fn stored(user: &str, password: &[u8]) -> String {
    format!("md5{}", hex(&Md5::new().chain_update(password).chain_update(user).finalize()))
}

/// The answer to a challenge, from what is stored.
pub fn response(stored: &str, salt: [u8; 4]) -> String {
    let inner = stored.strip_prefix("md5").unwrap_or(stored);
    format!("md5{}", hex(&Md5::new().chain_update(inner).chain_update(salt).finalize()))
}

/// Whether `answer` is the answer to the challenge; takes the same time whatever it is.
pub fn verify(stored: &str, salt: [u8; 4], answer: &[u8]) -> bool {
    secret::is_same(response(stored, salt).as_bytes(), answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_are_those_of_postgresql() {
        // `select 'md5' || md5('secret' || 'ann')` of PostgreSQL 15.
        let hash = stored("ann", b"secret");
        assert_eq!(hash, postgres_protocol::password::md5(b"secret", "ann"));
        let answer = response(&hash, *b"abcd");
        assert_eq!(answer, postgres_protocol::authentication::md5_hash(b"ann", b"secret", *b"abcd"));
        assert!(verify(&hash, *b"abcd", answer.as_bytes()));
        assert!(!verify(&hash, *b"abce", answer.as_bytes()) && !verify(&hash, *b"abcd", b""));
    }
}
