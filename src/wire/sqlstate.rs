//! The SQLSTATE codes that the ambassador itself emits or acts upon.
//!
//! Source: PostgreSQL documentation, appendix "PostgreSQL Error Codes".

use std::fmt;

/// A five-character SQLSTATE.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)+) => {
        impl SqlState { $($(#[$doc])* pub const $name: Self = Self(*$code);)+ }
    };
}

states! {
    /// The pooler could not establish a connection to the server.
    CANNOT_CONNECT = b"08001";
    /// An established server connection was lost.
    CONNECTION_FAILURE = b"08006";
    /// The outcome of a COMMIT is not known.
    TRANSACTION_UNKNOWN = b"08007";
    /// A peer broke the protocol.
    PROTOCOL_VIOLATION = b"08P01";
    /// A feature that does not exist here.
    FEATURE_NOT_SUPPORTED = b"0A000";
    /// A setting was given an unacceptable value.
    INVALID_PARAMETER_VALUE = b"22023";
    /// Bytes that are not valid in their encoding.
    CHARACTER_NOT_IN_REPERTOIRE = b"22021";
    /// A transaction block was opened where none may be.
    ACTIVE_TRANSACTION = b"25001";
    /// A write in a read-only transaction or on a standby.
    READ_ONLY_TRANSACTION = b"25006";
    /// The transaction is failed; only its end is accepted.
    FAILED_TRANSACTION = b"25P02";
    /// An open transaction was idle for too long.
    IDLE_IN_TRANSACTION_TIMEOUT = b"25P03";
    /// A transaction took too long.
    TRANSACTION_TIMEOUT = b"25P04";
    /// A prepared statement does not exist.
    INVALID_STATEMENT_NAME = b"26000";
    /// The user may not log in.
    INVALID_AUTHORIZATION = b"28000";
    /// The password is wrong.
    INVALID_PASSWORD = b"28P01";
    /// The database does not exist.
    INVALID_CATALOG_NAME = b"3D000";
    /// Serialization failure, or a conflict with recovery.
    SERIALIZATION_FAILURE = b"40001";
    /// The role lacks a privilege.
    INSUFFICIENT_PRIVILEGE = b"42501";
    /// A syntax error.
    SYNTAX_ERROR = b"42601";
    /// A deadlock; on a standby also one with the replay.
    DEADLOCK_DETECTED = b"40P01";
    /// An unknown setting or object.
    UNDEFINED_OBJECT = b"42704";
    /// A prepared statement exists already.
    DUPLICATE_STATEMENT = b"42P05";
    /// A memory budget is exhausted.
    OUT_OF_MEMORY = b"53200";
    /// No connection slot is left.
    TOO_MANY_CONNECTIONS = b"53300";
    /// The object is not in the state the command needs.
    NOT_IN_STATE = b"55000";
    /// The statement was cancelled.
    QUERY_CANCELED = b"57014";
    /// The server or pooler is shut down by its administrator.
    ADMIN_SHUTDOWN = b"57P01";
    /// Another backend crashed.
    CRASH_SHUTDOWN = b"57P02";
    /// The server does not accept connections now.
    CANNOT_CONNECT_NOW = b"57P03";
    /// An idle session was ended.
    IDLE_SESSION_TIMEOUT = b"57P05";
    /// The configuration cannot be used.
    CONFIG_FILE_ERROR = b"F0000";
    /// A fault of the program itself.
    INTERNAL_ERROR = b"XX000";
    /// No error: the code of notices.
    SUCCESSFUL_COMPLETION = b"00000";
    /// A warning.
    WARNING = b"01000";
}

impl SqlState {
    /// Reads a code as it stands in an ErrorResponse; anything but five upper-case letters and digits is none.
    pub fn parse(code: &[u8]) -> Option<Self> {
        let code: [u8; 5] = code.try_into().ok()?;
        code.iter().all(|c| c.is_ascii_digit() || c.is_ascii_uppercase()).then_some(Self(code))
    }

    /// Whether it is of this class: its first two characters.
    pub fn is_of_class(&self, class: &[u8; 2]) -> bool {
        self.0.starts_with(class)
    }

    /// The five characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XX000")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
