//! Buffers of the thread, borrowed for the length of one synchronous step.
//!
//! A connection that waits holds no buffer: it waits for readiness first, and then reads into these. What does not fit
//! into one step (half a frame, bytes the peer's socket did not take) the connection keeps in a buffer of its own.

use std::cell::RefCell;

/// Bytes read at once. Large enough that a bulk transfer spends its time in copying, not in system calls; what a peer
/// that does not read can make us keep for it is bounded by this too.
pub const READ: usize = 128 * 1024;

/// One thread's buffers.
pub struct Scratch {
    /// What was read. [`READ`] bytes long, plus room for what was left over from the last read.
    pub input: Vec<u8>,
    /// What was written anew.
    pub head: Vec<u8>,
    /// What is for the client without coming from the server.
    pub reply: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        input: vec![0; READ + crate::session::WHOLE_FRAME],
        head: Vec::new(),
        reply: Vec::new(),
    });
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static CIPHER: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 * 1024]);
}

/// The largest buffer for rewritten bytes that is kept: a client that once sent a giant statement must not cost for ever.
const KEEP: usize = 256 * 1024;

/// Lends the thread's buffers, emptied. Must not be called again inside `step`.
pub fn with<R>(step: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        // What a step that panicked has left is its client's, and nobody else's (faults.md F35).
        scratch.head.clear();
        scratch.reply.clear();
        let result = step(scratch);
        for buffer in [&mut scratch.head, &mut scratch.reply] {
            buffer.clear();
            if buffer.capacity() > KEEP {
                *buffer = Vec::new();
            }
        }
        result
    })
}

/// Spare buffers that one thread keeps, and the largest of them: most of what is kept is one small message for less than
/// a turn of the event loop.
const SPARES: (usize, usize) = (64, 8 * 1024);

/// Puts bytes behind what `buffer` keeps; one that keeps nothing takes a spare buffer for it.
#[inline]
pub fn keep(buffer: &mut Vec<u8>, bytes: &[u8]) {
    if buffer.capacity() == 0 && !bytes.is_empty() {
        *buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    }
    buffer.extend_from_slice(bytes);
}

/// Leaves `buffer` empty and without memory, which is for whoever keeps something next.
#[inline]
pub fn release(buffer: &mut Vec<u8>) {
    let (most, largest) = SPARES;
    if buffer.capacity() == 0 {
        return;
    }
    let mut spare = std::mem::take(buffer);
    if spare.capacity() <= largest {
        spare.clear();
        SPARE.with_borrow_mut(|spares| {
            if spares.len() < most {
                spares.push(spare);
            }
        });
    }
}

/// Lends the thread's buffer for bytes as TLS has them.
pub(super) fn with_cipher<R>(step: impl FnOnce(&mut [u8]) -> R) -> R {
    CIPHER.with_borrow_mut(|cipher| step(cipher))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f35_what_a_step_that_panicked_has_written_goes_to_nobody_else() {
        let step = || {
            with(|scratch| {
                scratch.head.extend(b"for one");
                scratch.reply.extend(b"for one");
                panic!("a bug");
            })
        };
        assert!(std::panic::catch_unwind(step).is_err());
        with(|scratch| assert!(scratch.head.is_empty() && scratch.reply.is_empty()));
    }
}
