//! SQL that names a statement which the client has prepared by the protocol: EXECUTE, DEALLOCATE, PREPARE.
//!
//! On the server that statement has another name, which others share. So for as long as such a text needs it, the server
//! has it under the client's name as well: lent in front of the message, and given back behind the batch. What comes of the
//! text is then for the server to say. Only a simple query that is nothing but a DEALLOCATE needs no loan where no batch is open: it
//! is answered here.

use super::client_frames::{Fare, wait_for_quiet};
use super::pipeline::{Copy, Fate, Kind, Note, Owed};
use super::prepared::{Lookup, Statement};
use super::{Interners, Outbound, ServerSide, Session};
use crate::sql::prepared::{miscounted, only_changes, texts};
use crate::sql::reference::{Reference, Verb, references};
use crate::sql::{self, Effects};
use crate::wire::{TxStatus, frontend, reply};
use std::collections::VecDeque;
use std::sync::Arc;

/// All that a statement may do with a prepared one.
pub(super) const EVERY: [Verb; 3] = [Verb::Execute, Verb::Deallocate, Verb::Prepare];
/// Names that are lent for one batch. What is lent may name others, and so on: this bounds that as well.
const MOST: usize = 64;
/// Portals that are remembered of one transaction.
const MOST_PORTALS: usize = 1024;

/// What a prepared statement is lent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To say what the text that names it returns. One that returns nothing is lent when it is run: PostgreSQL looks at it
    /// again only then, and may refuse it.
    Description,
    /// To be there for another one, which names it and is lent for a description, or for whenever it is run.
    Company,
    /// To be run.
    Run,
}

/// Names that a server has for a client.
#[derive(Debug, Default)]
pub(super) struct Lending {
    /// Those that it has until the end of the batch, unless the batch drops them before.
    lent: Vec<Lent>,
    /// Portals of statements that name others, and whom they name.
    portals: Vec<(Box<[u8]>, Reference)>,
    /// What the DEALLOCATEs of the Query that is on its way drop, in their order; none stands for what is not ours.
    deallocates: VecDeque<Option<Box<[u8]>>>,
    /// What a Query that failed has left of its loans, because it was to take the name for another statement.
    left: Vec<Box<[u8]>>,
}

#[derive(Debug)]
struct Lent {
    name: Box<[u8]>,
    /// A message on its way drops it.
    dropped: bool,
    /// And another gives the name to a statement of the client's, which is not ours to close.
    taken: bool,
}

impl Lent {
    fn new(name: &[u8]) -> Self {
        Self { name: name.into(), dropped: false, taken: false }
    }
}

impl Session {
    /// Lends the server what `text` names, if it names something that was prepared by the protocol, before the text is run.
    #[cold]
    pub(super) fn lend(
        &mut self,
        shared: &Interners,
        text: &[u8],
        verbs: &[Verb],
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
    ) -> Option<Fare> {
        let portals = self.lending.as_ref().map_or(0, |lending| lending.portals.len());
        // Where it would not be remembered what a portal runs, nothing could be lent then.
        let purpose = if portals < MOST_PORTALS { Purpose::Description } else { Purpose::Company };
        self.lend_for(purpose, shared, text, verbs, server, to_server)
    }

    fn lend_for(
        &mut self,
        purpose: Purpose,
        shared: &Interners,
        text: &[u8],
        verbs: &[Verb],
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
    ) -> Option<Fare> {
        for reference in references(frontend::query(text), self.standard_strings) {
            if verbs.contains(&reference.verb)
                && let Some(fare) = self.lend_one(purpose, shared, &reference, server, to_server)
            {
                return Some(fare);
            }
        }
        None
    }

    /// The same for a Query, all of whose loans go in front of it, whatever it drops itself in the middle.
    #[cold]
    pub(super) fn lend_to_query(
        &mut self,
        shared: &Interners,
        text: &[u8],
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
    ) -> Option<Fare> {
        // In a COPY the server takes nothing but data.
        if server.pipeline.copy != Copy::None {
            return None;
        }
        let references = references(frontend::query(text), self.standard_strings);
        let drops = references.iter().any(|reference| reference.verb == Verb::Deallocate);
        // Whether an earlier text has dropped what it says is known when that is answered; and an error in the client's own
        // batch before this would end at the Sync of ours behind it.
        if (drops || server.pipeline.batch_of_client) && server.will_settle() && !self.waits_with_loans {
            return Some(wait_for_quiet(to_server));
        }
        let (mut gone, mut all_gone) = (Vec::new(), false);
        let mut deallocates = VecDeque::new();
        for reference in &references {
            if all_gone || gone.contains(&&reference.name) {
                if reference.verb == Verb::Prepare {
                    self.takes_name(&reference.name);
                }
                continue;
            }
            if let Some(fare) = self.lend_one(Purpose::Run, shared, reference, server, to_server) {
                return Some(fare);
            }
            match reference.verb {
                Verb::Deallocate => {
                    let known = matches!(self.prepared.look_up(&reference.name, self.batch), Lookup::Known(..));
                    deallocates.push_back(known.then(|| reference.name.clone()));
                    gone.push(&reference.name);
                }
                Verb::Forget => all_gone = true,
                Verb::Execute | Verb::Prepare => {}
            }
        }
        if !deallocates.is_empty() {
            self.lending.get_or_insert_default().deallocates = deallocates;
        }
        None
    }

    /// A statement of the client's own is about to get this name, which was lent and is dropped by then.
    fn takes_name(&mut self, name: &[u8]) {
        let lent = self.lending.iter_mut().flat_map(|lending| &mut lending.lent);
        lent.filter(|lent| *lent.name == *name).for_each(|lent| lent.taken = true);
    }

    /// The client drops its statement by the protocol: what was lent under that name goes with it.
    #[cold]
    pub(super) fn close_lent(&mut self, name: &[u8], server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let lent = self.lending.iter_mut().flat_map(|lending| &mut lending.lent);
        for lent in lent.filter(|lent| !lent.dropped && *lent.name == *name) {
            lent.dropped = true;
            reply::close_statement(to_server.edit(), name);
            server.pipeline.push(Owed::swallow(Kind::Close));
        }
    }

    /// Everything was dropped that the server had prepared.
    #[cold]
    pub(super) fn all_lent_is_dropped(&mut self) {
        let lent = self.lending.iter_mut().flat_map(|lending| &mut lending.lent);
        lent.for_each(|lent| lent.dropped = true);
    }

    /// A Query has run a DEALLOCATE.
    #[cold]
    pub(super) fn has_deallocated(&mut self) {
        let dropped = self.lending.as_mut().and_then(|lending| lending.deallocates.pop_front());
        if let Some(name) = dropped.flatten() {
            self.prepared.remove(&name);
        }
    }

    /// A Query or a batch is over: whatever it has not dropped stays, and its portals are gone where it ends a transaction.
    #[cold]
    pub(super) fn ends_deallocating(&mut self, server: &ServerSide) {
        let Some(lending) = &mut self.lending else { return };
        lending.left.extend(std::mem::take(&mut lending.deallocates).into_iter().flatten());
        let pipeline = &server.pipeline;
        // What is on its way behind it may have portals of its own.
        let more = pipeline.batch_of_client || pipeline.owed.iter().skip(1).any(|owed| owed.fate == Fate::Forward);
        if pipeline.tx == TxStatus::Idle && !more {
            lending.portals = Vec::new();
        }
        if lending.lent.is_empty() && lending.portals.is_empty() && lending.left.is_empty() {
            self.lending = None;
        }
    }

    /// Takes back what a Query has left, if no batch is open.
    #[cold]
    pub(super) fn take_back_left(&mut self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let Some(lending) = self.lending.as_mut().filter(|lending| !lending.left.is_empty()) else { return };
        if server.pipeline.batch_open || server.pipeline.copy != Copy::None {
            return;
        }
        for name in std::mem::take(&mut lending.left) {
            reply::close_statement(to_server.edit(), &name);
            server.pipeline.push(Owed::behind(Kind::Close));
        }
        reply::sync(to_server.edit());
        server.pipeline.push(Owed::behind(Kind::Sync));
        server.soil(Effects::PREPARE);
        if lending.lent.is_empty() && lending.portals.is_empty() && lending.deallocates.is_empty() {
            self.lending = None;
        }
    }

    /// What was lent to a Query that waits was refused, and the client told so: the server takes nothing before a Sync, which
    /// goes to it in place of the Query.
    #[cold]
    pub(super) fn ends_refused_query(&mut self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        self.waits_with_loans = false;
        self.analysed = None;
        self.batch = self.batch.wrapping_add(1);
        reply::sync(to_server.edit());
        server.pipeline.push(Owed::forward(Kind::Sync));
        server.pipeline.skipping = false;
        self.give_back(server, to_server);
    }

    /// Whether something is lent until the end of the batch.
    pub(super) fn has_loans(&self) -> bool {
        self.lending.as_ref().is_some_and(|lending| !lending.lent.is_empty())
    }

    /// Whether the client has, or may have, one of the statements that a text executes.
    #[cold]
    pub(super) fn knows_what_it_executes(&self, text: &[u8]) -> bool {
        references(text, self.standard_strings).into_iter().any(|reference| {
            reference.verb == Verb::Execute
                && !matches!(self.prepared.look_up(&reference.name, self.batch), Lookup::Unknown)
        })
    }

    fn lend_one(
        &mut self,
        purpose: Purpose,
        shared: &Interners,
        reference: &Reference,
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
    ) -> Option<Fare> {
        let unknown = matches!(self.prepared.look_up(&reference.name, self.batch), Lookup::Unknown);
        if unknown && reference.verb == Verb::Prepare {
            self.takes_name(&reference.name);
        }
        // Where SQL may have taken the name, a Parse that is on its way may be refused for that, and the name is not ours.
        if !unknown && (server.may_forget_names() || self.sql_prepared.is_some()) && server.will_settle() {
            return Some(wait_for_quiet(to_server));
        }
        let (name, statement) = match self.prepared.look_up(&reference.name, self.batch) {
            Lookup::Known(name, statement) => (Arc::clone(name), Arc::clone(statement)),
            Lookup::Undecided if server.will_settle() => return Some(wait_for_quiet(to_server)),
            Lookup::Undecided | Lookup::Unknown => return None,
        };
        let lent = self.lending.as_ref().map_or(&[][..], |lending| &lending.lent);
        if lent.len() >= MOST || lent.iter().any(|lent| !lent.dropped && *lent.name == *name) {
            return None;
        }
        let executes = reference.verb == Verb::Execute;
        if executes && purpose == Purpose::Description && only_changes(&statement.query) {
            return None;
        }
        // A failed transaction takes an empty text only.
        if executes && !server.pipeline.surely_accepts() {
            return if server.will_settle() { Some(wait_for_quiet(to_server)) } else { None };
        }
        // Its parameters are counted before it is looked at again.
        if executes
            && purpose == Purpose::Run
            && let Some(needed) = miscounted(&statement.query, &statement.types, reference.values)
        {
            self.lending.get_or_insert_default().lent.push(Lent::new(&name));
            server.lend_text(&name, b"", &texts(needed), to_server);
            return None;
        }
        if executes && let Some(fare) = self.concerns_sequences(statement.analysis.effects, server, to_server) {
            return Some(fare);
        }
        let current = if executes { self.current(shared, &name, statement, server) } else { Some(statement) };
        let Some(statement) = current else { return Some(wait_for_quiet(to_server)) };
        // Before those that it names itself: it may name itself.
        self.lending.get_or_insert_default().lent.push(Lent::new(&name));
        if executes {
            let effects = statement.analysis.effects;
            let purpose = if purpose == Purpose::Run { Purpose::Run } else { Purpose::Company };
            if effects.has(REFERRING)
                && let Some(fare) = self.lend_for(purpose, shared, &statement.query, &EVERY, server, to_server)
            {
                let lent = self.lending.iter_mut().flat_map(|lending| &mut lending.lent);
                lent.filter(|lent| *lent.name == *name).for_each(|lent| lent.dropped = true);
                return Some(fare);
            }
            self.will_run(effects, &statement.query, server);
        }
        server.lend(&name, executes.then_some(&*statement), to_server);
        None
    }

    /// Takes back what the server has of this batch.
    pub(super) fn give_back(&mut self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let Some(lending) = self.lending.as_mut().filter(|lending| !lending.lent.is_empty()) else { return };
        if server.pipeline.copy != Copy::None {
            return;
        }
        // Those that are dropped as well: the message that does it may fail. The Sync in any case: a loan may have failed.
        for lent in std::mem::take(&mut lending.lent).into_iter().filter(|lent| !lent.taken) {
            reply::close_statement(to_server.edit(), &lent.name);
            server.pipeline.push(Owed::behind(Kind::Close));
        }
        reply::sync(to_server.edit());
        server.pipeline.push(Owed::behind(Kind::Sync));
        if lending.portals.is_empty() && lending.deallocates.is_empty() && lending.left.is_empty() {
            self.lending = None;
        }
    }

    /// A portal is about to be made, of a statement with this text.
    pub(super) fn note_portal(&mut self, portal: &[u8], effects: Effects, text: &[u8]) {
        if let Some(lending) = &mut self.lending {
            lending.portals.retain(|(known, _)| **known != *portal);
        }
        let found = effects.has(REFERRING).then(|| sql::reference(frontend::query(text), self.standard_strings));
        let Some(reference) = found.flatten() else { return };
        let portals = &mut self.lending.get_or_insert_default().portals;
        if portals.len() < MOST_PORTALS {
            portals.push((portal.into(), reference));
        }
    }

    /// A portal is about to be run. Gives what that means for the name that its statement is about.
    #[cold]
    pub(super) fn runs_reference(
        &mut self,
        shared: &Interners,
        portal: &[u8],
        server: &mut ServerSide,
        to_server: &mut Outbound<'_>,
    ) -> Result<Option<Note>, Fare> {
        let portals = self.lending.iter().flat_map(|lending| &lending.portals);
        let Some((_, reference)) = portals.into_iter().find(|(known, _)| **known == *portal).cloned() else {
            return Ok(None);
        };
        if let Some(fare) = self.lend_one(Purpose::Run, shared, &reference, server, to_server) {
            return Err(fare);
        }
        let known = matches!(self.prepared.look_up(&reference.name, self.batch), Lookup::Known(..));
        if reference.verb != Verb::Deallocate || !known {
            return Ok(None);
        }
        if let Some(lending) = &mut self.lending {
            let lent = lending.lent.iter_mut().filter(|lent| lent.name == reference.name);
            lent.for_each(|lent| lent.dropped = true);
        }
        Ok(Some(Note::Closed { name: self.prepared.begin(&reference.name, None, self.batch) }))
    }

    /// The client prepares something by the protocol, and may have taken its name by SQL before: let the server look.
    pub(super) fn try_name(parse: &frontend::Parse<'_>, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let out = to_server.edit();
        reply::parse(out, parse.name, parse.query, parse.types);
        server.pipeline.push(Owed::swallow(Kind::Parse).with(Note::Tried));
        reply::close_statement(out, parse.name);
        server.pipeline.push(Owed::swallow(Kind::Close));
    }
}

/// Effects of statements that may name a prepared statement.
pub(super) const REFERRING: Effects = Effects::EXECUTE.and(Effects::PREPARE);

impl ServerSide {
    /// Prepares a statement under the client's own name, or an empty one if only the name counts.
    fn lend(&mut self, name: &[u8], statement: Option<&Statement>, to_server: &mut Outbound<'_>) {
        let (query, types) =
            statement.map_or((&b""[..], &[0, 0][..]), |statement| (&statement.query, &statement.types));
        let reading = match statement {
            Some(statement) if self.can_read_as_then() && statement.is_meant_by(&self.settings) => &*statement.reading,
            Some(_) | None => &[],
        };
        self.set_reading(reading, true, Fate::Swallow, to_server);
        self.lend_text(name, query, types, to_server);
        self.set_reading(reading, false, Fate::Swallow, to_server);
    }

    fn lend_text(&mut self, name: &[u8], query: &[u8], types: &[u8], to_server: &mut Outbound<'_>) {
        reply::parse(to_server.edit(), name, query, types);
        self.pipeline.push(Owed::swallow(Kind::Parse).with(Note::Lent));
    }
}
