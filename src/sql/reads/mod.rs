//! Whether a text only reads: what may run on a replica.
//!
//! Safe, never clever: what is not proven to be a read is none. A statement is a read if it is of a kind that reads, locks
//! nothing, and names nothing that may do more. Names are all that a text shows: of functions it calls, in whatever notation,
//! and of relations, types and operators behind which such functions hide. What they stand for only the database knows:
//! [`Objects`] answers for it, and [`builtins`] for PostgreSQL's own functions. A name counts wherever it stands, as a column
//! too: that may keep a read from a replica, and never sends a write there.
//!
//! Who asks has to know of what no text shows, and send to the primary what it is true of:
//!
//! - a `client_encoding` that PostgreSQL has for clients only (SJIS, BIG5, GBK, UHC, GB18030, JOHAB, SHIFT_JIS_2004) lets bytes
//!   of a character look like ASCII;
//! - a temporary table may hide any name, so a session that has one stays where it is;
//! - a Parse may give a parameter a type of the database's own by its number (16384 or more), whose input function then runs;
//! - where transactions are SERIALIZABLE by default, no replica runs any.
//!
//! An answer that is kept is as old as the catalogue it came from.

pub mod builtins;
pub mod calls;
mod harmless;
mod kinds;
mod lengths;
mod query;
mod transaction;

pub use harmless::writes_nothing;
pub use lengths::Lengths;
pub use transaction::{Modes, Transaction};

use super::lexer::{Lexer, Token};
use super::plain;

/// Longer texts are not looked into.
pub const MAX_TEXT: usize = 64 * 1024;
/// Nor are those with more parentheses inside each other.
pub const MAX_DEPTH: usize = 64;
/// Bytes of a name that count: `NAMEDATALEN` - 1. PostgreSQL cuts longer ones, so they may mean any that begins alike.
const NAME_LEN: usize = 63;

/// Where a text may run, and what it does to the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// The worst of its statements. A text without any is a read.
    pub run: Run,
    /// How many statements it has; stops counting at 255, and where the text is not understood.
    pub statements: u8,
    /// What its first statement does to the transaction, if that is what it is for. It is then `Write(Why::Transaction)`.
    pub transaction: Option<Transaction>,
}

/// Where a statement may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// It only reads: wherever it runs, nothing changes, and it leaves nothing behind.
    Read,
    /// It reads with a cursor, which lives as long as its transaction: a read only within one that is READ ONLY.
    Cursor,
    /// It is not proven to be a read.
    Write(Why),
}

impl Run {
    /// The worse of two. Of two writes, the first has said why.
    #[must_use]
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Write(_), _) => self,
            (_, Self::Write(_)) => other,
            (Self::Cursor, Self::Read | Self::Cursor) => self,
            (Self::Read, Self::Read | Self::Cursor) => other,
        }
    }
}

/// What keeps a text from being a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Longer than [`MAX_TEXT`].
    TooLong,
    /// Nested deeper than [`MAX_DEPTH`].
    TooDeep,
    /// Not understood: a quote or comment that does not end, a name that is cut or written with escapes.
    Unclear,
    /// A command that is none of those that read.
    Command(Span),
    /// It begins, ends or changes a transaction.
    Transaction,
    /// It changes a setting.
    Setting,
    /// It makes, uses or drops what only its own session has: prepared statements, cursors WITH HOLD, temporary objects.
    Session,
    /// A locking clause: FOR UPDATE and its like.
    Locking,
    /// SELECT INTO.
    Into,
    /// INSERT, UPDATE, DELETE or MERGE within a query.
    Modifies,
    /// COPY other than TO STDOUT.
    Copy,
    /// It asks whether its server is the primary: a client of one address has to hear that it is.
    Role,
    /// A function that may write, lock, or have effects elsewhere.
    Function(Span),
    /// A function that nobody knows.
    UnknownFunction(Span),
    /// A relation or type behind which more than a read may hide, or that a replica cannot read.
    Object(Span),
    /// An operator that may write.
    Operator(Span),
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: u16,
    len: u16,
}

impl Span {
    fn new(text: &[u8], part: &[u8]) -> Self {
        // Both are within MAX_TEXT.
        let start = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
        Self { start: u16::try_from(start).unwrap_or(u16::MAX), len: u16::try_from(part.len()).unwrap_or(u16::MAX) }
    }

    /// Reads it out of the text it is of.
    pub fn of(self, text: &[u8]) -> &[u8] {
        let start = usize::from(self.start);
        text.get(start..start + usize::from(self.len)).unwrap_or_default()
    }
}

/// What is known of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// All functions of the name only read.
    Plain,
    /// One of them may do more.
    Suspect,
    /// There is none of the name.
    Unknown,
}

/// What a database has beyond what is built into PostgreSQL. All names are as the server has them: unquoted ones in lower
/// case. Where no schema is given, the answer is that of the worst object in any: a `search_path` may lead to each.
pub trait Objects {
    /// A sieve for the names that [`Self::suspects`] may say yes to, and that [`Self::function`] may suspect.
    fn lengths(&self) -> &Lengths;
    /// Whether reading a relation of this name, or having a value of a type of this name, may do more than read.
    fn suspects(&self, schema: Option<&[u8]>, name: &[u8]) -> bool;
    /// What is known of a function of this name.
    fn function(&self, schema: Option<&[u8]>, name: &[u8]) -> Trust;
    /// Whether an operator that this token is, or is a part of, may do more than read.
    fn operator(&self, token: &[u8]) -> bool;
    /// Whether all that may do more than read is functions, and what has a name that begins with `pg_`.
    fn is_bare(&self) -> bool;
}

/// A database with nothing but what is built in, and plain tables: for tests, and for explaining a text without a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain;

static NO_LENGTHS: Lengths = Lengths::NONE;

impl Objects for Plain {
    fn lengths(&self) -> &Lengths {
        &NO_LENGTHS
    }

    fn suspects(&self, _: Option<&[u8]>, _: &[u8]) -> bool {
        false
    }

    fn function(&self, _: Option<&[u8]>, _: &[u8]) -> Trust {
        Trust::Unknown
    }

    fn operator(&self, _: &[u8]) -> bool {
        false
    }

    fn is_bare(&self) -> bool {
        true
    }
}

/// Says where a text may run. `standard_strings` is the session's `standard_conforming_strings`.
pub fn access<O: Objects + ?Sized>(text: &[u8], standard_strings: bool, objects: &O) -> Access {
    let mut access = Access { run: Run::Read, statements: 0, transaction: None };
    if text.len() > MAX_TEXT {
        return Access { run: Run::Write(Why::TooLong), statements: 1, ..access };
    }
    if objects.is_bare() && plain::reads(text) {
        return Access { statements: 1, ..access };
    }
    let mut scan = Scan { text, lexer: Lexer::new(text, standard_strings), objects };
    loop {
        let first = scan.lexer.next_token();
        match first {
            Token::End => return access,
            Token::Punct(b';') => continue,
            Token::Word(_)
            | Token::Quoted(_)
            | Token::Str(..)
            | Token::Number(_)
            | Token::Param
            | Token::Punct(_)
            | Token::Operator(_)
            | Token::Broken => {}
        }
        let (run, transaction) = scan.statement(first);
        if access.statements == 0 {
            access.transaction = transaction;
        }
        access.statements = access.statements.saturating_add(1);
        access.run = access.run.and(run);
        if matches!(run, Run::Write(_)) && !scan.skip_statement() {
            return access;
        }
    }
}

/// A text that is being looked at.
struct Scan<'a, 'o, O: ?Sized> {
    text: &'a [u8],
    lexer: Lexer<'a>,
    objects: &'o O,
}

/// A name in lower case, or as it is quoted.
struct Folded {
    bytes: [u8; NAME_LEN],
    len: usize,
}

impl Folded {
    /// None for one that is too long, or that stands for another than its bytes.
    #[inline]
    fn of(token: Token<'_>) -> Option<Self> {
        match token {
            Token::Word(word) => Self::word(word),
            // Empty: written with escapes. With a quote in it: that is doubled here.
            Token::Quoted(name) => (!name.is_empty() && !name.contains(&b'"')).then(|| Self::copy(name)).flatten(),
            Token::Str(..)
            | Token::Number(_)
            | Token::Param
            | Token::Punct(_)
            | Token::Operator(_)
            | Token::End
            | Token::Broken => None,
        }
    }

    #[inline]
    fn copy(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; NAME_LEN];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self { bytes, len: name.len() })
    }

    #[inline]
    fn word(word: &[u8]) -> Option<Self> {
        let mut folded = Self::copy(word)?;
        folded.bytes[..word.len()].make_ascii_lowercase();
        Some(folded)
    }

    #[inline]
    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests;
