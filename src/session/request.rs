//! A client's request as a whole, before any of it is sent: what it would run, so that somebody can say where.

use super::prepared::{Lookup, Statement};
use super::{Session, WHOLE_FRAME};
use crate::sql::{Analysis, Command, Effects};
use crate::wire::frame::{self, HEADER};
use crate::wire::frontend::{self, Named};
use crate::wire::{FrontendTag, TxStatus};
use std::sync::Arc;

/// Bytes of a request that are waited for and looked at. Longer ones are nobody's to judge.
pub const LONGEST_REQUEST: usize = 16 * 1024;

/// A text that a request would run or prepare.
#[derive(Debug, Clone, Copy)]
pub struct Spoken<'a> {
    /// The SQL.
    pub text: &'a [u8],
    /// The parameter types as they stand in a Parse message; empty for a simple query.
    pub types: &'a [u8],
    /// The statement that it is, if it was prepared before.
    pub statement: Option<&'a Arc<Statement>>,
}

/// How far a request could be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it is there, so many bytes, and every text in it was passed on.
    Whole(usize),
    /// The rest of it is still to come, and nothing that the client waits for.
    Unfinished,
    /// Who was asked has seen enough.
    Enough,
    /// It does what no text shows, or it is too long.
    Opaque,
}

impl Session {
    /// Passes every text of the request that `input` begins with to `look`, until that has seen enough and says `false`.
    ///
    /// A request is a Query, or a batch of the extended protocol up to its Sync. To be asked while no server is attached.
    #[allow(clippy::wildcard_enum_match_arm, reason = "whatever is not named is for the primary: the safe case")]
    pub fn look_at_request(&self, input: &[u8], mut look: impl FnMut(Spoken<'_>) -> bool) -> Extent {
        let mut at = 0;
        // What the unnamed statement is from here on, and how many names were given.
        let (mut unnamed_made, mut named, mut closed) = (false, 0usize, false);
        let mut answers_wanted = false;
        let unfinished = |answers_wanted: bool| {
            let waits = !answers_wanted && input.len() < LONGEST_REQUEST;
            if waits { Extent::Unfinished } else { Extent::Opaque }
        };
        loop {
            let Ok(found) = frame::frontend(&input[at..]) else { return Extent::Opaque };
            let Some(found) = found else { return unfinished(answers_wanted) };
            if found.len > LONGEST_REQUEST.min(WHOLE_FRAME) || at + found.len > LONGEST_REQUEST {
                return Extent::Opaque;
            }
            let Some(body) = input.get(at + HEADER..at + found.len) else { return unfinished(answers_wanted) };
            let first = at == 0;
            at += found.len;
            match found.tag {
                FrontendTag::Query if first => {
                    let spoken = Spoken { text: frontend::query(body), types: &[], statement: None };
                    return if look(spoken) { Extent::Whole(at) } else { Extent::Enough };
                }
                FrontendTag::Parse => {
                    let Ok(parse) = frontend::parse(body) else { return Extent::Opaque };
                    match parse.name {
                        b"" => unnamed_made = true,
                        _ => named += 1,
                    }
                    if !look(Spoken { text: parse.query, types: parse.types, statement: None }) {
                        return Extent::Enough;
                    }
                }
                FrontendTag::Bind => {
                    // What comes behind a Close may run what that has closed, and then it could not be sent twice.
                    let Ok(bind) = frontend::bind(body) else { return Extent::Opaque };
                    if closed || !self.look_at_bound(bind.statement, unnamed_made, named, &mut look) {
                        return if closed { Extent::Opaque } else { Extent::Enough };
                    }
                }
                FrontendTag::Describe => match frontend::named(body) {
                    Ok(Named::Statement(name)) => {
                        if closed || !self.look_at_bound(name, unnamed_made, named, &mut look) {
                            return if closed { Extent::Opaque } else { Extent::Enough };
                        }
                    }
                    Ok(Named::Portal(_)) => {}
                    Err(_) => return Extent::Opaque,
                },
                FrontendTag::Execute => {}
                FrontendTag::Close => closed |= matches!(frontend::named(body), Ok(Named::Statement(_)) | Err(_)),
                FrontendTag::Flush => answers_wanted = true,
                FrontendTag::Sync => return Extent::Whole(at),
                _ => return Extent::Opaque,
            }
        }
    }

    /// The same for the statement of a name; true also for one that does not exist, of which any server says so.
    fn look_at_bound(
        &self,
        name: &[u8],
        unnamed_made: bool,
        named: usize,
        look: &mut impl FnMut(Spoken<'_>) -> bool,
    ) -> bool {
        if name.is_empty() {
            if unnamed_made {
                return true;
            }
            let Some(unnamed) = self.unnamed.as_deref() else { return true };
            let Some(body) = unnamed.text.as_deref() else { return false };
            let text = frontend::query(body);
            let types = body.get(text.len() + 1..).unwrap_or_default();
            return look(Spoken { text, types, statement: None });
        }
        match self.prepared.look_up(name, self.batch) {
            Lookup::Known(_, statement) => {
                let (text, types) = (&*statement.query, &*statement.types);
                look(Spoken { text, types, statement: Some(statement) })
            }
            // Prepared in this very request, or never.
            Lookup::Unknown => named > 0 || !super::client_frames::is_ours(name),
            Lookup::Undecided => false,
        }
    }

    /// What comes next was proven to be one statement that only reads. If it is a Query with a SELECT, it leaves nothing
    /// behind, and need not be looked at for that.
    #[inline]
    pub fn note_single_read(&mut self, input: &[u8]) {
        let [tag, _, _, _, _, text @ ..] = input else { return };
        if *tag == FrontendTag::Query.byte()
            && let [word @ .., b' ' | b'\n' | b'\t'] = &text[..text.len().min(7)]
            && word.eq_ignore_ascii_case(b"select")
            && !self.may_call(input)
        {
            let effects = Effects::NONE;
            let one = Analysis { first: Command::Other, statements: 1, effects, commits: false, copies: false };
            self.analysed = Some(one);
        }
    }

    /// Whether a Query may call a function of the user's own: one that only reads may leave something in its session.
    fn may_call(&self, input: &[u8]) -> bool {
        let Ok(Some(found)) = frame::frontend(input) else { return true };
        input
            .get(HEADER..found.len)
            .is_none_or(|body| crate::sql::reads::calls::may_call(frontend::query(body), self.standard_strings))
    }

    /// The text of the BEGIN that no server has seen, if the client is in such a transaction: empty for a plain one.
    pub fn deferred_begin(&self) -> Option<&[u8]> {
        self.deferred.as_ref().map(|deferred| deferred.text())
    }

    /// Whether the client is outside of any transaction.
    pub fn is_between_transactions(&self) -> bool {
        self.tx == TxStatus::Idle
    }

    /// How the client's texts are read: `standard_conforming_strings`.
    pub fn standard_strings(&self) -> bool {
        self.standard_strings
    }
}
