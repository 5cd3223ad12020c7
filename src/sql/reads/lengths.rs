//! A sieve for names: for each first letter, which lengths there are. Nearly every word of nearly every statement is told by
//! this alone to be none of them.

/// For each first byte, the lengths of names that begin with it, as bits. An ASCII letter counts in both cases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths([u64; 256]);

impl Lengths {
    /// None at all.
    pub const NONE: Self = Self([0; 256]);
    /// Whatever there may be.
    pub const ALL: Self = Self([u64::MAX; 256]);

    /// Adds a name.
    pub const fn add(&mut self, name: &[u8]) {
        if name.is_empty() {
            return;
        }
        let bit = Self::bit(name.len());
        self.0[name[0] as usize] |= bit;
        self.0[name[0].to_ascii_uppercase() as usize] |= bit;
    }

    /// Those of the lines of a text.
    pub const fn of_lines(text: &str) -> Self {
        let mut bytes = text.as_bytes();
        let mut lengths = Self::NONE;
        let mut at = 0;
        while at < bytes.len() {
            if bytes[at] == b'\n' {
                let (line, rest) = bytes.split_at(at);
                lengths.add(line);
                bytes = rest.split_at(1).1;
                at = 0;
            } else {
                at += 1;
            }
        }
        lengths.add(bytes);
        lengths
    }

    /// All lengths beyond what a name may have share one bit.
    const fn bit(len: usize) -> u64 {
        1 << if len < 63 { len } else { 63 }
    }

    /// Whether a word may be one of the names.
    #[inline]
    pub fn may_have(&self, word: &[u8]) -> bool {
        word.first().is_some_and(|first| self.0[usize::from(*first)] & Self::bit(word.len()) != 0)
    }
}
