//! A string that is wiped when it is dropped and never printed.

use zeroize::Zeroizing;

/// A password or token.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretString(Zeroizing<String>);

impl SecretString {
    /// Takes a string over.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The string itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SecretString {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Compares what somebody has shown with what is known, in a time that tells nothing of where they differ.
pub fn is_same(shown: &[u8], known: &[u8]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(shown, known).is_ok()
}
