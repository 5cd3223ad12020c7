//! Timeouts of a client's connection.

use std::time::Duration;

/// Timeouts of a client's connection. Zero is off, everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long a client waits for a server.
    pub checkout: Duration,
    /// After how much of that it is told with a NOTICE.
    pub notice_after: Duration,
    /// How long a request may run.
    pub query: Duration,
    /// How long a transaction may last.
    pub transaction: Duration,
    /// How long a transaction may be open without a request.
    pub idle_transaction: Duration,
    /// How long a client may be silent outside a transaction.
    pub client_idle: Duration,
    /// How long a client may leave its results unread.
    pub client_write: Duration,
    /// How long resetting a server may take.
    pub reset: Duration,
    /// How long a server may go on with what a client that left has asked for.
    pub abandoned: Duration,
    /// How long a client may take to accept the message that ends its connection.
    pub last_word: Duration,
    /// A client whose server is lost is closed, as a direct connection would be, instead of told and kept.
    pub close_on_server_loss: bool,
    /// Whether any of the timeouts is set that have to be looked at for every request.
    pub any: bool,
}

impl Limits {
    /// Sees to it that `any` is what it says.
    #[must_use]
    pub fn settled(mut self) -> Self {
        self.any = [self.query, self.transaction, self.idle_transaction, self.client_idle].iter().any(|d| !d.is_zero());
        self
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            checkout: Duration::from_secs(30),
            notice_after: Duration::from_secs(5),
            query: Duration::ZERO,
            transaction: Duration::ZERO,
            idle_transaction: Duration::ZERO,
            client_idle: Duration::ZERO,
            client_write: Duration::from_secs(60),
            reset: Duration::from_secs(10),
            abandoned: Duration::from_secs(1),
            last_word: Duration::from_millis(500),
            close_on_server_loss: false,
            any: false,
        }
    }
}
