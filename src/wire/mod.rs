//! The PostgreSQL frontend/backend protocol, versions 3.0 and 3.2: bytes in, values out.
//!
//! Nothing here awaits or knows a socket. Source of every format: the PostgreSQL documentation, chapter
//! "Frontend/Backend Protocol", sections "Message Formats" and "Protocol Flow".

pub mod backend;
pub mod frame;
pub mod frontend;
pub mod reply;
pub mod sqlstate;
pub mod startup;

pub use frame::{BackendTag, FrameError, FrontendTag};
pub use reply::Report;
pub use sqlstate::SqlState;

/// The transaction status byte of a ReadyForQuery message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxStatus {
    /// `I`: outside a transaction block.
    Idle,
    /// `T`: inside a transaction block.
    Active,
    /// `E`: inside a failed transaction block; everything but its end is refused.
    Failed,
}

impl TxStatus {
    /// Reads the byte; a server that sends another one is not a PostgreSQL server.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::Active),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// Whether a transaction block is open, failed or not.
    pub fn is_open(self) -> bool {
        self != Self::Idle
    }

    /// The byte of this status.
    pub fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::Active => b'T',
            Self::Failed => b'E',
        }
    }
}
