//! Why a client gets no server, and what it is told.

use super::PoolName;
use crate::net::Address;
use crate::server::DialError;
use crate::server::dial::Verdict;
use crate::wire::{Report, SqlState};
use std::sync::Arc;
use std::time::Duration;

/// Why there is no connection to be had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// None came free or could be made in time.
    #[error("no server connection within {waited:?}")]
    Timeout {
        /// The pool.
        pool: PoolName,
        /// The server.
        node: Address,
        /// How long was waited.
        waited: Duration,
        /// How many connections the pool may have.
        size: usize,
        /// How many it had.
        used: usize,
        /// Whether the pool was paused.
        paused: bool,
        /// Why the last attempt to make one failed, if any was made.
        cause: Option<Arc<DialError>>,
    },
    /// The login failed in a way that waiting does not mend.
    #[error(transparent)]
    Upstream(Arc<DialError>),
    /// An administrator has disabled the database.
    #[error("database {:?} is disabled", .0.database)]
    Disabled(PoolName),
    /// None of the servers is a primary.
    #[error("no server of {0} is a primary")]
    NoPrimary(PoolName),
    /// Several servers claim to be the primary, and nothing says which of them is right.
    #[error("no unambiguous primary among the servers of {0}")]
    Ambiguous(PoolName),
    /// The pool is used no more: whoever waited looks for the one that is used now.
    #[error("the servers of {0} have changed")]
    Moved(PoolName),
    /// The program is about to end.
    #[error("the pooler is shutting down")]
    Closed,
}

impl LeaseError {
    /// What the client is told.
    pub fn report(&self) -> Report {
        match self {
            Self::Timeout { pool, node, waited, size, used, paused, cause } => {
                let detail = format!("pool={pool} server={node} waited_ms={}", waited.as_millis());
                match cause {
                    _ if *paused => Report::ours(SqlState::CANNOT_CONNECT_NOW, "the pool is paused")
                        .detail(detail)
                        .hint("RESUME it on the console, or ask its administrator to."),
                    None => {
                        let message = format!("pool exhausted {used}/{size}, waited {} ms", waited.as_millis());
                        Report::ours(SqlState::TOO_MANY_CONNECTIONS, message)
                            .detail(detail)
                            .hint("Shorten transactions, or raise pool_size if the server has room for more.")
                    }
                    Some(cause) => {
                        let detail = format!("{detail} cause={cause}");
                        if let DialError::NoCredential { .. } = &**cause {
                            return Report::ours(SqlState::CANNOT_CONNECT, "no valid credential for the server")
                                .detail(detail)
                                .hint("SHOW CREDENTIALS on the pooler's console, and its log, say what keeps it from getting one.");
                        }
                        match cause.verdict() {
                            Verdict::Full => Report::ours(SqlState::TOO_MANY_CONNECTIONS, "the server has no connection slot left")
                                .detail(detail)
                                .hint("Lower pool_size, or raise the server's max_connections."),
                            Verdict::Retry | Verdict::Credential | Verdict::Client => {
                                Report::ours(SqlState::CANNOT_CONNECT_NOW, "no server available").detail(detail).hint(
                                    "The server was tried until the checkout timeout; see the pooler's log for each attempt.",
                                )
                            }
                        }
                    }
                }
            }
            Self::Upstream(error) => match (error.verdict(), error.server_report()) {
                // The client's own names: the server's own words.
                (Verdict::Client, Some(report)) => report.clone(),
                // Never 28P01: the client's own password was right. Never the server's text: it is not for the client.
                (Verdict::Credential, Some(report)) => Report::ours(
                    SqlState::CANNOT_CONNECT,
                    "upstream rejected the pooler's credentials",
                )
                .detail(format!("the server's SQLSTATE was {}", report.code))
                .hint("See the pooler's log; the next attempt is made after a pause of at most a minute, or at a RELOAD."),
                _ => Report::ours(SqlState::CANNOT_CONNECT, error).hint("See the pooler's log."),
            },
            Self::Disabled(pool) => {
                Report::ours(SqlState::CANNOT_CONNECT_NOW, format!("database \"{}\" is disabled", pool.database))
                    .hint("ENABLE it on the console, or ask its administrator to.")
            }
            Self::NoPrimary(pool) => Report::ours(SqlState::CANNOT_CONNECT_NOW, "no server is a primary")
                .detail(format!("pool={pool}"))
                .hint("All configured servers are in recovery, or cannot be reached."),
            Self::Ambiguous(pool) => Report::ours(SqlState::READ_ONLY_TRANSACTION, "no unambiguous primary")
                .detail(format!("pool={pool}"))
                .hint("Several servers take writes. Stop or demote all but the right one; SHOW NODES on the console says which they are."),
            // Nobody should hear of it.
            Self::Moved(pool) => Report::ours(SqlState::CANNOT_CONNECT_NOW, "the servers have changed")
                .detail(format!("pool={pool}"))
                .hint("Try again."),
            Self::Closed => Report::ours(SqlState::ADMIN_SHUTDOWN, "the pooler is shutting down"),
        }
    }
}
