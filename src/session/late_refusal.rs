//! A loan that the server refuses: a text of the extended protocol runs a statement that can no longer be prepared.
//!
//! PostgreSQL takes such a text, and binds it: it looks at the statement again only when the text is described or run. So what
//! is refused when it is lent, in front of the Parse or the Bind, is kept back until then.

use super::pipeline::{Fate, Kind, Note};
use super::{Outbound, ServerSide, Session};
use crate::wire::frontend::{self, Named};
use crate::wire::{BackendTag, FrontendTag, reply};
use std::sync::Arc;

/// The error that is kept back. The server skips everything by then.
#[derive(Debug)]
pub(super) struct LateRefusal {
    error: Vec<u8>,
    text: Text,
    is_bound: bool,
}

/// The text that runs what was refused.
#[derive(Debug)]
struct Text {
    /// The client's name for it; none if it has none.
    name: Option<Arc<[u8]>>,
    /// The types of its parameters, as they stand in a Parse.
    types: Box<[u8]>,
}

/// What becomes of a message that meets the error.
#[derive(PartialEq, Eq)]
enum Met {
    /// It is answered as if there were none.
    Passes,
    /// It is the one that is refused.
    Refused,
}

impl LateRefusal {
    /// Tells it now.
    pub(super) fn tell(&self, out: &mut Vec<u8>) {
        out.extend(&self.error);
    }

    /// What a message of this kind, which is about the statement of this name, is answered.
    fn meets(&mut self, kind: Kind, name: Option<&[u8]>, out: &mut Vec<u8>) -> Met {
        let met = match kind {
            _ if name != self.text.name.as_deref() || self.is_bound => Met::Refused,
            Kind::Bind => {
                self.is_bound = true;
                reply::message(out, BackendTag::BindComplete, |_| {});
                Met::Passes
            }
            Kind::DescribeStatement => {
                reply::message(out, BackendTag::ParameterDescription, |body| body.extend(&*self.text.types));
                Met::Refused
            }
            Kind::Parse
            | Kind::Query { .. }
            | Kind::Function
            | Kind::DescribePortal
            | Kind::Execute { .. }
            | Kind::Close
            | Kind::Sync
            | Kind::CopyEnd
            | Kind::Own => Met::Refused,
        };
        if met == Met::Refused {
            self.tell(out);
        }
        met
    }
}

impl Session {
    /// The loan at the front of what is owed was refused, with the error that has this body. Gives whether that is kept back: then everything up
    /// to the next Sync is answered, or will be.
    #[cold]
    pub(super) fn refuses_later(
        &mut self,
        error: &[u8],
        server: &mut ServerSide,
        to_client: &mut Outbound<'_>,
    ) -> bool {
        let owed = &server.pipeline.owed;
        let sync = owed.iter().position(|owed| owed.kind == Kind::Sync);
        let Some(first) = owed.iter().position(|owed| owed.fate == Fate::Forward) else { return false };
        let Some(text) = self.text_of(first, server) else { return false };
        let mut batch = owed.iter().take(sync.unwrap_or(owed.len())).filter(|owed| owed.fate == Fate::Forward);
        // A Query in the middle of a batch ends with a Sync of ours.
        if batch.any(|owed| matches!(owed.kind, Kind::Query { .. } | Kind::Function)) {
            return false;
        }
        let mut message = Vec::new();
        reply::message(&mut message, BackendTag::Error, |out| out.extend(error));
        let mut refusal = LateRefusal { error: message, text, is_bound: false };
        let batch: Vec<_> = server.pipeline.owed.drain(..sync.unwrap_or(server.pipeline.owed.len())).collect();
        let (mut refused, mut parsed, mut skipped) = (false, None, Vec::new());
        for owed in batch {
            if owed.fate == Fate::Forward && !refused {
                if owed.kind == Kind::Parse && parsed.is_none() && !refusal.is_bound {
                    reply::message(to_client.edit(), BackendTag::ParseComplete, |_| {});
                    parsed = owed.note;
                    continue;
                }
                refused = refusal.meets(owed.kind, owed.name.as_deref(), to_client.edit()) == Met::Refused;
            }
            skipped.extend(owed.note);
        }
        for note in skipped.into_iter().rev() {
            self.undo(*note, server);
        }
        if let Some(note) = parsed {
            self.made_without_a_server(*note, server);
        }
        match (sync, refused) {
            (_, true) => {}
            (Some(_), false) => refusal.tell(to_client.edit()),
            (None, false) => self.late_refusal = Some(Box::new(refusal)),
        }
        server.pipeline.skipping = sync.is_none();
        true
    }

    /// The client's name for the text that a Parse, a Bind or a Describe is about, which is owed at this place, and the types
    /// of its parameters.
    fn text_of(&self, at: usize, server: &ServerSide) -> Option<Text> {
        let owed = server.pipeline.owed.get(at)?;
        match (owed.kind, owed.note.as_deref(), &owed.name) {
            (Kind::Parse, Some(Note::Parsed { name: Some(name), statement, .. }), _) => {
                return Some(Text { name: Some(Arc::clone(name)), types: (*statement.types).into() });
            }
            (Kind::Bind | Kind::DescribeStatement, _, Some(name)) => {
                let types = (*self.prepared.statement(name)?.types).into();
                return Some(Text { name: Some(Arc::clone(name)), types });
            }
            (Kind::Parse, Some(Note::Unnamed { .. }), _) | (Kind::Bind | Kind::DescribeStatement, _, None) => {}
            _ => return None,
        }
        // What has dropped or replaced it since knows what there was.
        let later = server.pipeline.owed.iter().skip(at + 1).find_map(|owed| match owed.note.as_deref() {
            Some(Note::Unnamed { client, .. }) => Some(client),
            _ => None,
        });
        let text = later.unwrap_or(&self.unnamed).as_ref()?.text.as_deref()?;
        Some(Text { name: None, types: text.get(frontend::query(text).len() + 1..)?.into() })
    }

    /// The client has what this Parse makes, and the server does not.
    #[allow(clippy::wildcard_enum_match_arm, reason = "a Parse of the client's has no other note")]
    fn made_without_a_server(&mut self, note: Note, server: &mut ServerSide) {
        if let Note::Parsed { name: Some(name), .. } = &note {
            self.prepared.confirm(name);
        }
        match note {
            Note::Parsed { statement, sent: Some(sent), .. } => server.prepared.settle(statement.id, sent, false),
            Note::Unnamed { server: held, .. } => {
                self.unnamed_pending.0 = self.unnamed_pending.0.saturating_sub(1);
                for owed in &mut server.pipeline.owed {
                    if let Some(Note::Unnamed { server: holder, .. }) = owed.note.as_deref_mut() {
                        *holder = held;
                        return;
                    }
                    // It leaves the server none.
                    if matches!(owed.kind, Kind::Query { .. }) {
                        return;
                    }
                }
                server.unnamed = held;
            }
            _ => {}
        }
    }

    /// A message comes that the server skips, while an error is kept back: answers it as PostgreSQL would.
    #[cold]
    pub(super) fn meets_late_refusal(&mut self, tag: FrontendTag, body: &[u8], to_client: &mut Vec<u8>) {
        let Some(refusal) = &mut self.late_refusal else { return };
        let (kind, name) = match (tag, frontend::bind(body), frontend::named(body)) {
            // What was answered so far is with the client by now.
            (FrontendTag::Flush, ..) => return,
            (FrontendTag::Bind, Ok(bind), _) => (Kind::Bind, bind.statement),
            (FrontendTag::Describe, _, Ok(Named::Statement(name))) => (Kind::DescribeStatement, name),
            _ => (Kind::Sync, &b""[..]),
        };
        let name = (!name.is_empty()).then_some(name);
        // A Sync ends what was never described or run; by then the transaction has failed nevertheless.
        let name = if kind == Kind::Sync { refusal.text.name.clone() } else { name.map(Into::into) };
        if refusal.meets(kind, name.as_deref(), to_client) == Met::Refused {
            self.late_refusal = None;
        }
    }
}
