//! Cut a byte stream into frames: one tag byte and a length that counts itself.
//!
//! A length is decided here, once: parsed as `i32`, checked against the cap for its type, and only then widened
//! (faults.md I15). Whoever holds a [`Frame`] holds a length that cannot overflow or smuggle.

use thiserror::Error;

/// Bytes of a frame before its body: the tag and the length word.
pub const HEADER: usize = 5;

/// PostgreSQL's limit for message types that are never large (`PQ_SMALL_MESSAGE_LIMIT`, postgres.c).
const SMALL: i32 = 10_000;
/// PostgreSQL's limit for message types that carry data (`PQ_LARGE_MESSAGE_LIMIT`, `MaxAllocSize` - 1).
const LARGE: i32 = 0x3fff_ffff - 1;
/// PostgreSQL's limit for a password or SASL message (`PG_MAX_AUTH_TOKEN_LENGTH`, auth.c).
pub const AUTH: i32 = 65_535;
/// No message of a server but row and copy data has reason to come near this; an error with a huge DETAIL might.
const SERVER: i32 = i32::MAX - 1;

/// Why a byte stream is not a sequence of frames. There is no way to resynchronise: close.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The length word is under 4 or over the cap for its type.
    #[error("message type {tag:?} has an invalid length {length}")]
    Length {
        /// The tag byte.
        tag: char,
        /// The length word as it came.
        length: i32,
    },
    /// The tag byte names no message of this direction.
    #[error("invalid message type {0}")]
    Type(u8),
    /// The body does not have the layout of its type.
    #[error("malformed {0} message")]
    Body(&'static str),
    /// A message that is legal elsewhere came where it may not.
    #[error("unexpected {0} message")]
    Unexpected(&'static str),
}

macro_rules! tags {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $byte:literal, $cap:expr;)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant = $byte,)+ }

        impl $name {
            /// Every type, for tests and tables.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The type a tag byte names.
            #[inline]
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($byte => Some(Self::$variant),)+ _ => None }
            }

            /// The tag byte.
            #[inline]
            pub fn byte(self) -> u8 { self as u8 }

            /// The largest length word accepted for this type.
            #[inline]
            pub fn cap(self) -> i32 { match self { $(Self::$variant => $cap,)+ } }
        }
    };
}

tags! {
    /// The messages a client may send once it is past the startup packet.
    FrontendTag {
        /// Bind parameters to a prepared statement, making a portal.
        Bind = b'B', LARGE;
        /// Close a prepared statement or a portal.
        Close = b'C', SMALL;
        /// A piece of COPY data.
        CopyData = b'd', LARGE;
        /// The end of COPY data.
        CopyDone = b'c', SMALL;
        /// The client gives up a COPY.
        CopyFail = b'f', SMALL;
        /// Describe a prepared statement or a portal.
        Describe = b'D', SMALL;
        /// Run a portal.
        Execute = b'E', SMALL;
        /// Send what has been produced so far.
        Flush = b'H', SMALL;
        /// The legacy fast-path function call.
        FunctionCall = b'F', LARGE;
        /// Prepare a statement.
        Parse = b'P', LARGE;
        /// A password, or a step of a SASL exchange.
        Password = b'p', AUTH;
        /// A simple query.
        Query = b'Q', LARGE;
        /// End of an extended-protocol batch.
        Sync = b'S', SMALL;
        /// Goodbye.
        Terminate = b'X', SMALL;
    }
}

tags! {
    /// The messages a server may send.
    BackendTag {
        /// An authentication request, or its success.
        Authentication = b'R', AUTH;
        /// Process id and secret for a cancel request.
        BackendKeyData = b'K', SMALL;
        /// Bind succeeded.
        BindComplete = b'2', SMALL;
        /// Close succeeded.
        CloseComplete = b'3', SMALL;
        /// A command ended, with its tag.
        CommandComplete = b'C', SMALL;
        /// COPY in both directions begins (replication).
        CopyBoth = b'W', SERVER;
        /// A piece of COPY data.
        CopyData = b'd', SERVER;
        /// The end of COPY data.
        CopyDone = b'c', SMALL;
        /// COPY from the client begins.
        CopyIn = b'G', SERVER;
        /// COPY to the client begins.
        CopyOut = b'H', SERVER;
        /// A row.
        DataRow = b'D', SERVER;
        /// The query string was empty.
        EmptyQuery = b'I', SMALL;
        /// An error.
        Error = b'E', SERVER;
        /// The result of a fast-path call.
        FunctionResult = b'V', SERVER;
        /// The server speaks an older minor version, or lacks protocol options.
        NegotiateVersion = b'v', AUTH;
        /// A statement that returns no rows was described.
        NoData = b'n', SMALL;
        /// A warning or other notice.
        Notice = b'N', SERVER;
        /// An asynchronous notification (LISTEN).
        Notification = b'A', SERVER;
        /// The parameter types of a described statement.
        ParameterDescription = b't', SERVER;
        /// A reported setting has this value.
        ParameterStatus = b'S', SERVER;
        /// Parse succeeded.
        ParseComplete = b'1', SMALL;
        /// Execute reached its row limit.
        PortalSuspended = b's', SMALL;
        /// The server is ready for the next query, with its transaction status.
        Ready = b'Z', SMALL;
        /// The columns of a result.
        RowDescription = b'T', SERVER;
    }
}

/// One frame's type and its size in bytes, header included; the body may not have arrived yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<T> {
    /// The message type.
    pub tag: T,
    /// Total size in bytes: 1 for the tag, plus the length word's value. At least [`HEADER`].
    pub len: usize,
}

#[inline]
fn length_word(buf: &[u8]) -> i32 {
    i32::from_be_bytes([buf[1], buf[2], buf[3], buf[4]])
}

/// Total size of a frame whose length word is valid.
#[inline]
fn total(tag: u8, length: i32, cap: i32) -> Result<usize, FrameError> {
    match usize::try_from(length) {
        Ok(len) if len >= 4 && length <= cap => Ok(len + 1),
        _ => Err(FrameError::Length { tag: char::from(tag), length }),
    }
}

/// The frame at the start of `buf`, a client's bytes; `None` if fewer than [`HEADER`] bytes are there.
///
/// The type is judged by its first byte alone, as PostgreSQL does: it refuses an unknown type before it reads a length.
#[inline]
pub fn frontend(buf: &[u8]) -> Result<Option<Frame<FrontendTag>>, FrameError> {
    let Some(&first) = buf.first() else { return Ok(None) };
    let tag = FrontendTag::from_byte(first).ok_or(FrameError::Type(first))?;
    if buf.len() < HEADER {
        return Ok(None);
    }
    Ok(Some(Frame { tag, len: total(first, length_word(buf), tag.cap())? }))
}

/// The frame at the start of `buf`, a server's bytes; `None` if fewer than [`HEADER`] bytes are there.
#[inline]
pub fn backend(buf: &[u8]) -> Result<Option<Frame<BackendTag>>, FrameError> {
    let Some(&first) = buf.first() else { return Ok(None) };
    let tag = BackendTag::from_byte(first).ok_or(FrameError::Type(first))?;
    if buf.len() < HEADER {
        return Ok(None);
    }
    Ok(Some(Frame { tag, len: total(first, length_word(buf), tag.cap())? }))
}

/// How many bytes of *whole* DataRow and CopyData frames `buf` starts with, and nothing else.
///
/// The one loop that runs once for each row of a result: it looks at five bytes and skips. It stops at the first
/// frame of another type, at an invalid length, or at a frame whose end has not arrived.
#[inline]
pub fn data_run(buf: &[u8]) -> usize {
    let mut at = 0;
    while let Some(header) = buf.get(at..at + HEADER) {
        if header[0] != BackendTag::DataRow as u8 && header[0] != BackendTag::CopyData as u8 {
            break;
        }
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        // A valid length is at least 4; one with the sign bit set is longer than any buffer.
        if length < 4 || length > buf.len() - at - 1 {
            break;
        }
        at += 1 + length;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(tag: u8, length: i32) -> Vec<u8> {
        let mut buf = vec![tag];
        buf.extend(length.to_be_bytes());
        buf
    }

    #[test]
    fn i15_a_length_is_checked_against_its_type_before_it_is_widened() {
        let invalid = |length| FrameError::Length { tag: 'Q', length };
        for length in [0, 1, 3, -1, i32::MIN, i32::MAX, LARGE + 1] {
            assert_eq!(frontend(&header(b'Q', length)), Err(invalid(length)), "{length}");
        }
        assert_eq!(frontend(&header(b'Q', 4)), Ok(Some(Frame { tag: FrontendTag::Query, len: 5 })));
        assert_eq!(frontend(&header(b'Q', LARGE)).map(|f| f.map(|f| f.len)), Ok(Some(0x3fff_ffff)));
        assert!(frontend(&header(b'S', SMALL)).is_ok() && frontend(&header(b'S', SMALL + 1)).is_err());
        assert!(backend(&header(b'Z', SMALL + 1)).is_err() && backend(&header(b'D', i32::MAX)).is_err());
    }

    #[test]
    fn a_type_is_refused_before_its_length_is_read() {
        assert_eq!(frontend(b"?"), Err(FrameError::Type(b'?')));
        assert_eq!(backend(b"?"), Err(FrameError::Type(b'?')));
        assert_eq!(frontend(b"Q\0\0\0"), Ok(None));
        assert_eq!(frontend(b""), Ok(None));
    }

    #[test]
    fn a_run_of_rows_ends_at_another_type_a_bad_length_or_an_incomplete_frame() {
        let row = b"D\0\0\0\x06\0\0".as_slice();
        let copy = b"d\0\0\0\x05x".as_slice();
        let rows = [row, copy, row].concat();
        for (tail, why) in [
            (b"".as_slice(), "the end"),
            (b"C\0\0\0\x04", "another type"),
            (b"D\0\0\0\x03", "a length under 4"),
            (b"D\xff\xff\xff\xff", "a negative length"),
            (b"D\0\0\0\x06\0", "an incomplete row"),
            (b"D\0\0", "an incomplete header"),
        ] {
            assert_eq!(data_run(&[&rows, tail].concat()), rows.len(), "{why}");
        }
    }
}
