//! A text's verdict: where it may run as far as it alone goes.

use super::catalogue::Catalogue;
use super::{Destination, Leaning, Reason};
use crate::sql::reads::{Run, Transaction};
use crate::sql::{Lexer, Token, access};

/// Encodings that PostgreSQL has for clients only: bytes of a character may look like ASCII.
const CLIENT_ONLY: [&str; 8] = ["SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004", "SHIFTJIS"];
/// Types with lower numbers are PostgreSQL's own (`FirstNormalObjectId`).
const FIRST_OF_ITS_OWN: u32 = 16384;

/// Where a text may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// On a replica.
    Read,
    /// On a replica, within a transaction that is READ ONLY.
    Cursor,
    /// On the primary only.
    Write(Reason),
}

/// What a hint asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// Whatever is right.
    #[default]
    Auto,
    /// The primary.
    Primary,
    /// A replica, also where that is not proven to be right.
    Replica,
}

impl Wish {
    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "auto" | "" => Some(Self::Auto),
            "primary" => Some(Self::Primary),
            "replica" => Some(Self::Replica),
            _ => None,
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

impl Verdict {
    /// Where what is judged so goes outside a transaction, as long as some replica is fit. `serializable`: its transactions are,
    /// unless it says otherwise; `learned`: a replica has refused the same before.
    pub fn destination(self, leaning: Leaning, serializable: bool, learned: bool) -> (Destination, Reason) {
        use Destination::{Primary, Replica};
        match (self, leaning.route) {
            (Self::Write(reason), Wish::Replica) if reason.is_doubt() => (Replica, leaning.by),
            (Self::Write(reason), _) => (Primary, reason),
            (Self::Cursor, _) => (Primary, Reason::Session),
            (Self::Read, Wish::Primary) => (Primary, leaning.by),
            (Self::Read, _) if serializable => (Primary, Reason::Serializable),
            (Self::Read, _) if learned => (Primary, Reason::Learned),
            (Self::Read, Wish::Replica) => (Replica, leaning.by),
            (Self::Read, Wish::Auto) => (Replica, Reason::Read),
        }
    }

    /// What a text is, what it does to the transaction if that is what it is for, and how many statements it has.
    pub fn of(
        text: &[u8],
        types: &[u8],
        standard_strings: bool,
        catalogue: &Catalogue,
    ) -> (Self, Option<Transaction>, u8) {
        if types_of_its_own(types) {
            return (Self::Write(Reason::ParameterType), None, 1);
        }
        let access = access(text, standard_strings, catalogue);
        let verdict = match access.run {
            Run::Read => Self::Read,
            Run::Cursor => Self::Cursor,
            Run::Write(why) => Self::Write(why.into()),
        };
        (verdict, access.transaction.filter(|_| access.statements == 1), access.statements)
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Cursor => "cursor",
            Self::Write(_) => "write",
        }
    }

    /// The worse of two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Write(_), _) => self,
            (_, Self::Write(_)) => other,
            (Self::Cursor, _) | (_, Self::Cursor) => Self::Cursor,
            (Self::Read, Self::Read) => Self::Read,
        }
    }

    /// As a number, to be kept with a statement; never 0.
    pub fn number(self) -> u8 {
        match self {
            Self::Read => 1,
            Self::Cursor => 2,
            Self::Write(reason) => 3 + reason as u8,
        }
    }

    /// Reads such a number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => None,
            1 => Some(Self::Read),
            2 => Some(Self::Cursor),
            more => Reason::of(more - 3).map(Self::Write),
        }
    }
}

/// Whether a parameter is declared, by its number, to be of a type that is the database's own: its input function runs.
fn types_of_its_own(types: &[u8]) -> bool {
    let oids = types.get(2..).unwrap_or_default();
    oids.chunks_exact(4).any(|oid| oid.try_into().is_ok_and(|oid| u32::from_be_bytes(oid) >= FIRST_OF_ITS_OWN))
}

/// Whether bytes of this encoding of a client may look like what they are not.
pub fn hides_text(client_encoding: &str) -> bool {
    CLIENT_ONLY.iter().any(|name| client_encoding.trim().eq_ignore_ascii_case(name))
}

/// What a comment in front of a text asks for: `/* ambassador: primary */`, or `replica`.
#[inline]
pub fn hint(text: &[u8]) -> Wish {
    if matches!(text.first(), Some(b'/' | b' ' | b'\n' | b'\t' | b'\r')) { comment(text) } else { Wish::Auto }
}

#[cold]
fn comment(text: &[u8]) -> Wish {
    let mut rest = text.trim_ascii_start();
    // Tools put comments of their own in front.
    while let Some(inner) = rest.strip_prefix(b"/*") {
        let Some(end) = inner.windows(2).position(|window| window == b"*/") else { return Wish::Auto };
        let words = inner[..end].trim_ascii();
        if let Some(word) = words.strip_prefix(b"ambassador:") {
            return std::str::from_utf8(word).ok().and_then(Wish::parse).unwrap_or_default();
        }
        rest = inner[end + 2..].trim_ascii_start();
    }
    Wish::Auto
}

/// A text's fingerprint: the same for texts that differ in constants, comments and white space only.
pub fn fingerprint(text: &[u8], standard_strings: bool) -> u64 {
    use std::hash::{BuildHasher, Hash, Hasher};
    let mut hasher = foldhash::fast::FixedState::with_seed(0).build_hasher();
    let mut lexer = Lexer::new(text, standard_strings);
    loop {
        match lexer.next_token() {
            Token::End | Token::Broken => return hasher.finish(),
            Token::Word(word) => word.to_ascii_lowercase().hash(&mut hasher),
            Token::Quoted(name) => (b'"', name).hash(&mut hasher),
            Token::Str(..) | Token::Number(_) | Token::Param => b'?'.hash(&mut hasher),
            Token::Punct(byte) => byte.hash(&mut hasher),
            Token::Operator(operator) => operator.hash(&mut hasher),
        }
    }
}

/// What a text looks like without its constants and comments: for people, and nobody's secrets. It ends where it is not
/// understood.
pub fn shape(text: &[u8], standard_strings: bool) -> String {
    let mut shape = Vec::with_capacity(text.len());
    let mut lexer = Lexer::new(text, standard_strings);
    loop {
        let before = lexer.offset();
        let token = lexer.next_token();
        let written = text.get(before..lexer.offset()).unwrap_or_default();
        let apart = written.first().is_some_and(u8::is_ascii_whitespace)
            || written.starts_with(b"--")
            || written.starts_with(b"/*");
        if apart && !shape.is_empty() && token != Token::End {
            shape.push(b' ');
        }
        match token {
            Token::End => break,
            Token::Broken => {
                shape.extend(b"...");
                break;
            }
            Token::Word(word) => shape.extend(word),
            Token::Quoted(name) => shape.extend([b"\"", name, b"\""].concat()),
            Token::Str(..) | Token::Number(_) => shape.push(b'?'),
            Token::Param => {
                shape.extend(written.iter().rposition(|&b| b == b'$').map_or(&b""[..], |at| &written[at..]))
            }
            Token::Punct(_) if [&b"::"[..], b":=", b".."].iter().any(|two| written.ends_with(two)) => {
                shape.extend(&written[written.len() - 2..]);
            }
            Token::Punct(byte) => shape.push(byte),
            Token::Operator(operator) => shape.extend(operator),
        }
    }
    String::from_utf8_lossy(&shape).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_its_number() {
        let all = [Verdict::Read, Verdict::Cursor].into_iter().chain(Reason::ALL.iter().map(|r| Verdict::Write(*r)));
        for verdict in all {
            assert_eq!(Verdict::from_number(verdict.number()), Some(verdict));
        }
        assert_eq!(Verdict::from_number(0), None);
        assert_eq!(Verdict::from_number(255), None);
    }

    #[test]
    fn a_hint_is_a_comment_in_front() {
        for (text, wish) in [
            ("/* ambassador: primary */ select 1", Wish::Primary),
            ("  /*ambassador:REPLICA*/select 1", Wish::Replica),
            ("/* app=x */ /* ambassador: replica */ select 1", Wish::Replica),
            ("/* ambassador: nonsense */ select 1", Wish::Auto),
            ("/* ambassador: primary", Wish::Auto),
            ("select 1 /* ambassador: primary */", Wish::Auto),
            ("select '/* ambassador: primary */'", Wish::Auto),
        ] {
            assert_eq!(hint(text.as_bytes()), wish, "{text}");
        }
    }

    #[test]
    fn only_types_of_the_databases_own_make_a_parameter_suspect() {
        let types = |oids: &[u32]| {
            let mut bytes = u16::try_from(oids.len()).unwrap().to_be_bytes().to_vec();
            oids.iter().for_each(|oid| bytes.extend(oid.to_be_bytes()));
            bytes
        };
        assert!(!types_of_its_own(&types(&[])) && !types_of_its_own(&types(&[23, 0, 16383])));
        assert!(types_of_its_own(&types(&[23, 16384])));
    }

    #[test]
    fn texts_that_differ_in_constants_only_have_one_fingerprint() {
        let of = |text: &str| fingerprint(text.as_bytes(), true);
        assert_eq!(of("select f(1, 'a') -- x"), of("SELECT  f($1, 'b')"));
        assert_ne!(of("select f(1)"), of("select g(1)"));
        assert_ne!(of("select \"f\"(1)"), of("select f(1)"));
    }

    #[test]
    fn a_shape_shows_no_constant_and_no_comment() {
        for (text, expected) in [
            ("select f(1, 'a', $2) -- secret", "select f(?, ?, $2)"),
            ("/* secret */select  $$secret$$::text, E'\\'secret'\n from \"T\" t", "select ?::text, ? from \"T\" t"),
            ("select a[1:2], 3.5e1 where x<>0x1f", "select a[?:?], ? where x<>?"),
            ("select 'secret", "select ..."),
            ("", ""),
        ] {
            assert_eq!(shape(text.as_bytes(), true), expected, "{text}");
        }
    }
}
