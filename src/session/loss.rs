//! The server is gone: what the client is told for everything that was still owed.

use super::pipeline::{Kind, Pipeline};
use super::{Orphan, ServerSide, Session};
use crate::wire::{Report, SqlState, TxStatus, reply};

/// What the client's connection can do after its server was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerLoss {
    /// The client has been told, message by message, and goes on.
    Survived,
    /// The client has half a frame, or is in a COPY: nothing that we could say would be understood.
    Broken,
}

impl Session {
    /// Answers everything the lost server owed with `cause`, so that the client can go on without it.
    ///
    /// An open transaction is gone with the server: the client is left in a failed one until it ends it. If a COMMIT was
    /// under way its outcome is unknown, and the client is told so (08007) instead.
    pub fn on_server_lost(&mut self, server: &mut ServerSide, cause: &Report, to_client: &mut Vec<u8>) -> ServerLoss {
        let mid_frame = server.body.is_some_and(|body| body.pass);
        if mid_frame || self.is_mid_frame() || server.pipeline.ambiguous {
            return ServerLoss::Broken;
        }
        if !self.holds_ready() {
            to_client.append(&mut self.take_reported());
        }
        self.not_restored(to_client);
        // What it was lent is gone with it, and what was found in a text that waits is for the orphan to find.
        self.lending = None;
        self.waits_with_loans = false;
        self.copies = Vec::new();
        self.analysed = None;
        self.parameters_told = false;
        if let Some(refusal) = self.late_refusal.take() {
            refusal.tell(to_client);
        }
        // And so is what its UNLISTENs were to be seen by.
        self.marks = 0;
        // The client may be in one that has begun on the server only with what it was sent last.
        let was_open = server.pipeline.tx.is_open() || self.tx.is_open();
        let Pipeline { owed, batch_of_client, skipping, .. } = std::mem::replace(&mut server.pipeline, Pipeline::new());
        let unknown = owed.iter().any(|owed| owed.kind.commits());
        // After the loss of an open transaction the client is in a failed one, unless its end was among what was asked.
        let status = if was_open && !unknown { TxStatus::Failed } else { TxStatus::Idle };
        let report = if unknown { unknown_outcome(cause) } else { cause.clone() };
        let of_client = |owed: &super::pipeline::Owed| owed.fate == super::pipeline::Fate::Forward;
        let idle = !owed.iter().any(of_client) && !batch_of_client && !skipping;
        let mut told = skipping;
        let mut notes = Vec::new();
        for owed in owed {
            match owed.kind {
                Kind::Query { .. } | Kind::Function | Kind::Sync => {
                    if owed.fate == super::pipeline::Fate::Forward {
                        if !told {
                            report.write(to_client);
                        }
                        reply::ready(to_client, status);
                    }
                    told = false;
                }
                Kind::Parse
                | Kind::Bind
                | Kind::DescribeStatement
                | Kind::DescribePortal
                | Kind::Execute { .. }
                | Kind::Close
                | Kind::Own => {
                    if !told && owed.fate == super::pipeline::Fate::Forward {
                        report.write(to_client);
                        told = true;
                    }
                }
                Kind::CopyEnd => {}
            }
            notes.extend(owed.note);
        }
        for note in notes.into_iter().rev() {
            self.undo_lost(*note);
        }
        if told || skipping {
            self.skipping = true;
        } else if batch_of_client {
            // Everything sent was answered, but the batch's Sync is still to come: it fails now.
            report.write(to_client);
            self.skipping = true;
        }
        self.tx = status;
        self.orphan =
            (status == TxStatus::Failed).then(|| Orphan { untold: idle.then_some(report), ..Orphan::default() });
        ServerLoss::Survived
    }
}

/// The report of a COMMIT whose answer was lost.
fn unknown_outcome(cause: &Report) -> Report {
    Report::ours(SqlState::TRANSACTION_UNKNOWN, "transaction outcome unknown: the server was lost during COMMIT")
        .detail(cause.message.clone())
        .hint("Find out from the data whether the transaction was committed before you repeat it.")
}
