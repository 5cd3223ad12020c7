//! Whether a server can still be reached that says nothing while it is sent a lot.
//!
//! Linux would take a server for dead that acknowledges all and only does not read (`TCP_USER_TIMEOUT`): a COPY that waits for
//! a lock. So that limit is lifted behind much that was sent ([`Stream::is_unheard`](crate::net::Stream::is_unheard)), and a
//! server that is really gone would be found out after a quarter of an hour (`tcp_retries2`). Instead somebody knocks at its
//! door now and then: whoever answers, be it with a refusal, is there (faults.md F6, I19).

use super::relay::{Relay, Server};
use crate::net::{Socket, SocketOptions};
use crate::wire::{Report, SqlState};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::{sleep_until, timeout};

/// Knocks in a row that nobody has answered: one may get lost, or a server's queue be full.
const MISSED: u32 = 2;

impl Relay {
    /// Ready if the server has been out of reach for as long as the limit says.
    #[cold]
    pub(super) fn poll_lookout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let unheard = match &self.server {
            Server::Leased(lease) => lease.stream.unheard().zip(lease.entry.ends),
            Server::Waiting(_) | Server::None => None,
        };
        let Some(((since, limit), (peer, _))) = unheard else {
            self.lookout = None;
            return Poll::Pending;
        };
        let lookout = self.lookout.get_or_insert_with(|| Box::pin(out_of_sight(peer, since, limit)));
        let gone = lookout.as_mut().poll(cx);
        if gone.is_ready() {
            self.lookout = None;
        }
        gone
    }
}

/// Comes to an end when nobody answers at `peer`, at the earliest `limit` after `since`.
async fn out_of_sight(peer: SocketAddr, since: Instant, limit: Duration) {
    let (mut next, mut missed) = (since + limit / 2, 0);
    while missed < MISSED {
        sleep_until(next.into()).await;
        let began = Instant::now();
        if answers(peer, limit / (2 * MISSED)).await {
            (next, missed) = (began + limit / 2, 0);
        } else {
            (next, missed) = (began + limit / (2 * MISSED), missed + 1);
        }
    }
}

async fn answers(peer: SocketAddr, patience: Duration) -> bool {
    // As any other connection of ours, but that it ends without a word, as PostgreSQL takes well.
    match timeout(patience, Socket::connect_to(peer, &SocketOptions::default())).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            !matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
        }
        Err(_) => false,
    }
}

/// What the client is told then.
pub(super) fn out_of_reach() -> Report {
    Report::ours(SqlState::CONNECTION_FAILURE, "the server cannot be reached any more")
        .detail("It has not answered to what it was sent, and takes no connections.")
        .hint("See whether its machine and the network are up, and run again what was not committed.")
}
