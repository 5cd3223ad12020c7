//! What a statement does to the transaction it runs in.

/// A statement that begins, ends or changes a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transaction {
    /// BEGIN or START TRANSACTION.
    Begin(Modes),
    /// SET TRANSACTION: for the one that is open, before its first query.
    Set(Modes),
    /// SET SESSION CHARACTERISTICS AS TRANSACTION: for all that begin later.
    Default(Modes),
    /// COMMIT or END, ROLLBACK or ABORT.
    End {
        /// It makes what was done durable.
        commits: bool,
        /// AND CHAIN: another begins at once, with the same modes.
        chains: bool,
    },
    /// SAVEPOINT, RELEASE, ROLLBACK TO.
    Savepoint,
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    TwoPhase,
}

/// Modes of a transaction, as far as they say where it may run. The last one that is named counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// READ ONLY, or READ WRITE; none if neither is said.
    pub read_only: Option<bool>,
    /// SERIALIZABLE, which no replica grants, or another isolation level; none if it is not said.
    pub serializable: Option<bool>,
    /// Something else stands there: SNAPSHOT, or what PostgreSQL does not understand either.
    pub others: bool,
}

impl Modes {
    /// Whether a replica may run the transaction, given what holds where nothing is said.
    pub fn allow_replica(self, default_read_only: bool, default_serializable: bool) -> bool {
        let read_only = self.read_only.unwrap_or(default_read_only);
        read_only && !self.serializable.unwrap_or(default_serializable) && !self.others
    }
}
