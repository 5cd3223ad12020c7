//! A client has left its server behind, in whatever state: make it fit for the next client, or close it.

use super::cancel;
use super::limits::Limits;
use crate::net::scratch;
use crate::pool::Lease;
use crate::session::{Outbound, PoolMode, Session};
use crate::wire::{TxStatus, reply};
use std::time::{Duration, Instant};

/// Bytes of results for a client that left that are read to save the connection; more is cheaper to throw away.
const DRAIN: usize = 1024 * 1024;

/// Sees to a server whose client is gone. Goes on in the background where it has to wait.
///
/// `left`: the client closed in order or just vanished; otherwise we ended it, and what it had under way is stopped.
pub(super) fn after_client(lease: Lease, session: Session, mode: PoolMode, left: bool, limits: &Limits, now: Instant) {
    if session.is_mid_frame() || !lease.output.is_empty() || !lease.side.can_be_saved() {
        // Half a frame can be finished by nobody else (faults.md I3), and a batch without its Sync would be committed by
        // ours; without us PostgreSQL rolls it back.
        drop(lease);
        return;
    }
    let dirty = mode == PoolMode::Session || lease.side.may_hold_state();
    // Nobody else is to meet what it has left in the server's process. In session mode the reset has to do.
    let worn = mode != PoolMode::Session && lease.side.worn_by() == session.id();
    if lease.side.is_spoilt() {
        lease.close();
        return;
    }
    if lease.side.is_free() && lease.input.is_empty() {
        if worn {
            lease.close();
        } else if dirty {
            lease.reset_and_finish(limits.reset);
        } else {
            lease.finish(now);
        }
        return;
    }
    let (grace, reset) = (if left { limits.abandoned } else { Duration::ZERO }, limits.reset);
    tokio::spawn(async move {
        if let Some(lease) = settle(lease, session, grace).await {
            if worn {
                lease.close();
            } else if dirty || lease.side.tx() != TxStatus::Idle {
                lease.reset_and_finish(reset);
            } else {
                lease.finish(Instant::now());
            }
        }
    });
}

/// Lets what runs come to its end, or cancels it; `None` if the connection is not worth it.
async fn settle(mut lease: Lease, mut session: Session, grace: Duration) -> Option<Lease> {
    if lease.side.in_copy_in() {
        let mut request = Vec::new();
        reply::copy_fail(&mut request, "the client left");
        lease.stream.write_all(&request).await.ok()?;
    } else if lease.side.is_busy() && !grace.is_zero() {
        let finished = tokio::time::timeout(grace, drain(&mut lease, &mut session)).await;
        match finished {
            Ok(drained) => return drained.then_some(lease),
            Err(_) => cancel::send(&lease.entry).await,
        }
    } else if lease.side.is_busy() {
        cancel::send(&lease.entry).await;
    }
    let limit = Duration::from_secs(1);
    let drained = tokio::time::timeout(limit, drain(&mut lease, &mut session)).await;
    matches!(drained, Ok(true)).then_some(lease)
}

/// Reads and throws away what the server still owes. Safe to drop: what was read is accounted for.
async fn drain(lease: &mut Lease, session: &mut Session) -> bool {
    let mut size = 0;
    while lease.side.is_busy() || lease.side.is_mid_frame() {
        let read = std::future::poll_fn(|cx| {
            scratch::with(|scratch| {
                let kept = lease.input.len();
                scratch.input[..kept].copy_from_slice(&lease.input);
                lease.stream.poll_read(cx, &mut scratch.input[kept..kept + scratch::READ]).map(|read| {
                    let data = &scratch.input[..kept + read.ok()?];
                    let mut out = Outbound::new(data, &mut scratch.head);
                    let taken = session.on_server(data, &mut lease.side, &mut out).ok()?;
                    lease.input = data[taken.bytes..].to_vec();
                    (data.len() > kept).then_some(data.len() - kept)
                })
            })
        });
        match read.await {
            Some(read) => size += read,
            None => return false,
        }
        if size > DRAIN {
            return false;
        }
    }
    lease.input.is_empty()
}
