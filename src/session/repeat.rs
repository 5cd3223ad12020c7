//! A batch that is sent once more because its statement was outdated.
//!
//! PostgreSQL refuses to run a prepared statement whose result has other columns since its tables were changed (0A000,
//! "cached plan must not change result type"). Outside a transaction nothing has happened by then, and the statement is
//! ours: it is prepared anew under another name, and the client's own bytes are sent again. For that a copy of them stays
//! with the server; whether they can be used is looked at only when it comes to that.
//!
//! But a client that was told of the old columns, and does not ask again in this batch, would take the new ones for
//! those. It gets the error, as it would without us.

use super::pipeline::{Copy, Fate, Kind, Owed};
use super::{Interners, ServerSide, Session};
use crate::wire::frame::{self, Frame, HEADER};
use crate::wire::{FrontendTag, TxStatus};
use std::sync::Arc;

/// Longer batches are not kept.
const MOST: usize = 8 * 1024;

/// What is to be sent once more.
#[derive(Debug)]
pub(super) struct Again {
    /// The client's name for the statement.
    name: Arc<[u8]>,
    bytes: Vec<u8>,
}

/// A copy of what a client has sent, in case it has to be sent once more.
#[derive(Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    /// The client, and the number of its batch. The bytes of any other are nobody's business: they may look the same.
    of: (u64, u32),
}

impl Session {
    /// Whether nothing of the batch has been run, so that it could be sent once more.
    #[inline]
    pub(super) fn begins_batch(&self, server: &ServerSide) -> bool {
        let untouched = !server.pipeline.batch_open || self.answered_batch == Some(self.batch);
        untouched && self.tx == TxStatus::Idle && server.pipeline.tx == TxStatus::Idle
    }

    /// The first use of a statement in its batch is on its way: `input` begins with it.
    #[inline]
    pub(super) fn keep(&mut self, input: &[u8], server: &mut ServerSide) {
        server.kept.bytes.clear();
        server.kept.of = (self.id, self.batch);
        if input.len() <= MOST && !self.repeated {
            server.kept.bytes.extend_from_slice(input);
        }
        self.repeated = false;
        self.answered_batch = None;
    }

    /// The statement of the message in front was refused because it is outdated: whether the client's batch will be sent
    /// once more, and so need not know.
    pub(super) fn repeats(&mut self, server: &mut ServerSide) -> bool {
        let Some(name) = server.pipeline.owed.front().and_then(|front| front.name.clone()) else { return false };
        let idle = self.tx == TxStatus::Idle && server.pipeline.tx == TxStatus::Idle;
        if !idle || self.body.is_some() || self.skipping || server.pipeline.copy != Copy::None {
            return false;
        }
        // With its Sync, which is owed, the client has begun its next batch.
        if server.kept.of != (self.id, self.batch.wrapping_sub(1)) {
            return false;
        }
        let Some(describes) = describes(&server.kept.bytes, server.pipeline.owed.iter()) else { return false };
        if !describes && (self.describes_portals || self.prepared.is_described(&name)) {
            return false;
        }
        // Of a statement PostgreSQL tells the parameters before it looks at what it returns.
        self.parameters_told = server.pipeline.owed.front().is_some_and(|front| front.kind == Kind::DescribeStatement);
        server.pipeline.owed.clear();
        server.pipeline.push(Owed::swallow(Kind::Sync));
        self.again = Some(Box::new(Again { name, bytes: std::mem::take(&mut server.kept.bytes) }));
        true
    }

    /// What is to be handled once more, as if the client had only now sent it: before all that it has sent since.
    #[inline]
    pub fn take_again(&mut self, shared: &Interners) -> Option<Vec<u8>> {
        if self.again.is_none() { None } else { self.prepare_anew(shared) }
    }

    #[cold]
    fn prepare_anew(&mut self, shared: &Interners) -> Option<Vec<u8>> {
        let Again { name, bytes } = *self.again.take()?;
        if let Some(old) = self.prepared.statement(&name).cloned() {
            let fresh = shared.statements.intern(&old.query, &old.types, &self.settings, || old.analysis);
            self.prepared.replace(&name, &fresh);
        }
        self.repeated = true;
        Some(bytes)
    }
}

/// Whether these bytes are what all these answers are owed to, one whole batch; and if so, whether it asks what the
/// statement returns before it runs it.
fn describes<'a>(mut bytes: &[u8], owed: impl Iterator<Item = &'a Owed>) -> Option<bool> {
    let (mut describes, mut runs, mut ended) = (false, false, false);
    for owed in owed {
        let Frame { tag, len } = frame::frontend(bytes).ok()??;
        let body = bytes.get(HEADER..len)?;
        let is_it = match (owed.kind, tag) {
            (..) if ended || owed.fate != Fate::Forward || owed.note.is_some() => false,
            (Kind::Bind, FrontendTag::Bind) => true,
            (Kind::DescribeStatement, FrontendTag::Describe) => {
                describes |= !runs;
                body.first() == Some(&b'S')
            }
            (Kind::DescribePortal, FrontendTag::Describe) => {
                describes |= !runs;
                body.first() == Some(&b'P')
            }
            (Kind::Execute { .. }, FrontendTag::Execute) => {
                runs = true;
                true
            }
            (Kind::Sync, FrontendTag::Sync) => {
                ended = true;
                true
            }
            _ => false,
        };
        if !is_it {
            return None;
        }
        bytes = &bytes[len..];
    }
    (ended && bytes.is_empty()).then_some(describes)
}
