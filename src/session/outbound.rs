//! Bytes on their way out: a run of the input that passes as it is, and what had to be written anew before it.
//!
//! In the common case every frame passes unchanged and the run is the input itself: no copy, one write.

use std::ops::Range;

/// What is to be written to one peer for one piece of input.
#[derive(Debug)]
pub struct Outbound<'a> {
    input: &'a [u8],
    head: &'a mut Vec<u8>,
    run: Range<usize>,
}

impl<'a> Outbound<'a> {
    /// Starts with nothing to write. `head` is scratch space and must be empty.
    pub fn new(input: &'a [u8], head: &'a mut Vec<u8>) -> Self {
        debug_assert!(head.is_empty());
        Self { input, head, run: 0..0 }
    }

    /// Passes a piece of the input as it is.
    #[inline]
    pub fn pass(&mut self, piece: Range<usize>) {
        if self.run.end == piece.start && !self.run.is_empty() {
            self.run.end = piece.end;
        } else {
            self.spill();
            self.run = piece;
        }
    }

    /// The buffer to write other bytes to; they come behind all that was passed so far.
    #[inline]
    pub fn edit(&mut self) -> &mut Vec<u8> {
        self.spill();
        self.head
    }

    #[inline]
    fn spill(&mut self) {
        if !self.run.is_empty() {
            self.head.extend_from_slice(&self.input[self.run.clone()]);
            self.run = 0..0;
        }
    }

    /// Takes everything back.
    pub fn clear(&mut self) {
        self.head.clear();
        self.run = 0..0;
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.head.is_empty() && self.run.is_empty()
    }

    /// What to write, in this order.
    pub fn parts(&self) -> [&[u8]; 2] {
        [self.head, &self.input[self.run.clone()]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_that_adjoin_are_one_run_and_edits_keep_their_place() {
        let input = b"abcdefgh";
        let mut head = Vec::new();
        let mut out = Outbound::new(input, &mut head);
        out.pass(0..2);
        out.pass(2..4);
        assert_eq!(out.parts(), [b"".as_slice(), b"abcd"]);
        out.edit().extend(b"-x-");
        out.pass(4..5);
        out.pass(6..8);
        assert_eq!(out.parts(), [b"abcd-x-e".as_slice(), b"gh"]);
    }
}
