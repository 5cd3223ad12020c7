//! A query: whether anything in it may do more than read.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are what is not looked for")]

use super::builtins::{self, Known};
use super::kinds::is;
use super::{Folded, Lengths, MAX_DEPTH, NAME_LEN, Objects, Scan, Span, Trust, Why};
use crate::sql::lexer::Token;

/// Where a query ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With its statement.
    Statement,
    /// With the parenthesis that it began with.
    Parenthesis,
}

/// What is known of a pair of parentheses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Nothing.
    None,
    /// In it stands WITH, and the query that it is for is still to come: names behind commas are those of its parts.
    With,
    /// It belongs to DISTINCT ON or OPERATOR: an expression may follow.
    Prefix,
}

/// Words that are looked at, whatever the database has.
const WORDS: [&[u8]; 14] = [
    b"insert",
    b"update",
    b"delete",
    b"merge",
    b"into",
    b"no",
    b"share",
    b"key",
    b"with",
    b"select",
    b"values",
    b"table",
    builtins::SESSION_VIEWS[0],
    builtins::SESSION_VIEWS[1],
];

/// The sieve for them, for schemas of temporary objects (`pg_temp`, `pg_temp_3`), and for views that show their server.
static WORD_LENGTHS: Lengths = {
    let mut lengths = Lengths::NONE;
    let mut at = 0;
    while at < WORDS.len() {
        lengths.add(WORDS[at]);
        at += 1;
    }
    let mut longest: &[u8] = b"pg_stat_something_with_the_longest_name";
    while longest.len() >= 7 {
        lengths.add(longest);
        longest = longest.split_at(longest.len() - 1).0;
    }
    lengths
};

/// Keywords that may be names of functions, but stand in front of parentheses by themselves.
pub(super) const BEFORE_PARENTHESES: [&[u8]; 25] = [
    b"by",
    b"columns",
    b"cube",
    b"data",
    b"escape",
    b"exclude",
    b"filter",
    b"first",
    b"ilike",
    b"is",
    b"join",
    b"key",
    b"like",
    b"materialized",
    b"next",
    b"operator",
    b"over",
    b"passing",
    b"path",
    b"range",
    b"rollup",
    b"second",
    b"sets",
    b"value",
    b"varying",
];

/// Keywords that never were names of functions, in any version: the most frequent ones in front of parentheses.
const ALWAYS_RESERVED: [&[u8]; 9] = [b"in", b"as", b"and", b"or", b"on", b"from", b"where", b"using", b"values"];

/// The last tokens, in a ring.
struct Past<'a> {
    tokens: [Token<'a>; 4],
    next: usize,
}

impl<'a> Past<'a> {
    #[inline]
    fn push(&mut self, token: Token<'a>) {
        self.tokens[self.next % 4] = token;
        self.next = self.next.wrapping_add(1);
    }

    /// The youngest, or one that is older by so many.
    #[inline]
    fn back(&self, by: usize) -> Token<'a> {
        self.tokens[self.next.wrapping_sub(1 + by) % 4]
    }

    /// What the youngest, which stands behind a dot, is qualified with.
    fn qualifier(&self) -> Option<Token<'a>> {
        Some(self.back(2)).filter(|token| matches!(token, Token::Word(_) | Token::Quoted(_)))
    }
}

impl<'a, O: Objects + ?Sized> Scan<'a, '_, O> {
    /// Looks at a query from its first token to its end.
    pub(super) fn query(&mut self, first: Token<'a>, end: End) -> Result<(), Why> {
        let mut marks = [Mark::None; MAX_DEPTH];
        let mut depth = 0usize;
        // Whether the parenthesis that was closed last may be followed by an expression.
        let mut prefix = false;
        let mut past = Past { tokens: [Token::End; 4], next: 0 };
        // Whether the last token is a dot, and whether it is a name behind one.
        let (mut dot, mut dotted) = (false, false);
        let mut token = first;
        loop {
            if dotted && token != Token::Punct(b'(') {
                self.attribute(&past)?;
            }
            let behind_dot = std::mem::replace(&mut dot, false);
            let called_dotted = std::mem::replace(&mut dotted, false);
            match token {
                Token::Word(_) if behind_dot => dotted = true,
                Token::Word(word) => {
                    if WORD_LENGTHS.may_have(word) {
                        self.telling(word, past.back(0), &mut marks[depth])?;
                    }
                    if word.len() > NAME_LEN {
                        return Err(Why::Unclear);
                    }
                    if self.objects.lengths().may_have(word) {
                        self.relation(None, token)?;
                    }
                }
                Token::Quoted(name) => {
                    if name.is_empty() || name.len() > NAME_LEN || name.contains(&b'"') || temporary(name) {
                        return Err(Why::Unclear);
                    }
                    dotted = behind_dot;
                    if !behind_dot {
                        self.relation(None, token)?;
                    }
                }
                Token::Punct(b'.') => dot = true,
                Token::Punct(b'(') => {
                    match past.back(0) {
                        Token::Word(_) | Token::Quoted(_) if called_dotted => self.qualified_call(&past)?,
                        Token::Word(_) | Token::Quoted(_) => self.call(&past, marks[depth], prefix)?,
                        // WITH a AS (...) (SELECT ...)
                        Token::Punct(b')') if marks[depth] == Mark::With => marks[depth] = Mark::None,
                        _ => {}
                    }
                    depth += 1;
                    if depth >= MAX_DEPTH {
                        return Err(Why::TooDeep);
                    }
                    let prefixes = is(past.back(0), b"on") || is(past.back(0), b"operator");
                    marks[depth] = if prefixes { Mark::Prefix } else { Mark::None };
                }
                Token::Punct(b')') => {
                    prefix = marks[depth] == Mark::Prefix;
                    depth = depth.saturating_sub(1);
                }
                Token::Operator(operator) => {
                    if self.objects.operator(operator) {
                        return Err(Why::Operator(Span::new(self.text, operator)));
                    }
                }
                // Before PostgreSQL 15 a number ends where a word begins: `1into t`.
                Token::Number(number) if !ends_as_number(number) => return Err(Why::Unclear),
                Token::Broken => return Err(Why::Unclear),
                Token::End | Token::Punct(b';') => return Ok(()),
                Token::Punct(_) | Token::Number(_) | Token::Str(..) | Token::Param => {}
            }
            if depth == 0 && end == End::Parenthesis {
                return Ok(());
            }
            past.push(token);
            token = self.lexer.next_token();
        }
    }

    /// What a word says that the sieve did not tell apart from those of interest.
    #[inline]
    fn telling(&self, word: &[u8], before: Token<'_>, mark: &mut Mark) -> Result<(), Why> {
        let is_one_of = |known: &[&[u8]]| known.iter().any(|known| known.eq_ignore_ascii_case(word));
        match word.len() {
            2 | 3 if is_one_of(&[b"no", b"key"]) && is(before, b"for") => Err(Why::Locking),
            4 if is_one_of(&[b"into"]) => Err(Why::Into),
            4 if matches!(before, Token::End | Token::Punct(b'(')) && is_one_of(&[b"with"]) => {
                *mark = Mark::With;
                Ok(())
            }
            5 if is_one_of(&[b"share"]) && is(before, b"for") => Err(Why::Locking),
            6 if is_one_of(&[b"update"]) && is(before, b"for") => Err(Why::Locking),
            5 | 6 if is_one_of(&[b"insert", b"update", b"delete", b"merge"]) => Err(Why::Modifies),
            5 | 6 if *mark == Mark::With && is_one_of(&[b"select", b"values", b"table"]) => {
                *mark = Mark::None;
                Ok(())
            }
            7.. if temporary(word) || is_one_of(&builtins::SESSION_VIEWS) => Err(Why::Session),
            7.. if builtins::shows_the_server(word) => Err(Why::Role),
            _ => Ok(()),
        }
    }

    /// A relation or type that a statement names.
    pub(super) fn relation(&self, schema: Option<Token<'_>>, name: Token<'_>) -> Result<(), Why> {
        let (Token::Word(written) | Token::Quoted(written)) = name else { return Err(Why::Unclear) };
        let Some(name) = Folded::of(name) else { return Err(Why::Unclear) };
        let schema = match schema.map(Folded::of) {
            Some(None) => return Err(Why::Unclear),
            Some(found) => found,
            None => None,
        };
        let schema = schema.as_ref().map(Folded::get);
        if builtins::SESSION_VIEWS.contains(&name.get()) || schema.is_some_and(temporary) {
            return Err(Why::Session);
        }
        if builtins::shows_the_server(name.get()) {
            return Err(Why::Role);
        }
        if self.objects.suspects(schema, name.get()) {
            return Err(Why::Object(Span::new(self.text, written)));
        }
        Ok(())
    }

    /// A name behind a dot that is not called with parentheses: a column, a relation in a schema - or a function after all,
    /// as PostgreSQL takes `(x).f` for `f(x)`.
    #[inline]
    fn attribute(&self, past: &Past<'a>) -> Result<(), Why> {
        let (Token::Word(written) | Token::Quoted(written)) = past.back(0) else { return Ok(()) };
        let suspect = self.objects.lengths().may_have(written);
        let of_session = builtins::SESSION_VIEWS.iter().any(|view| view.eq_ignore_ascii_case(written));
        let shows = || builtins::shows_the_server(written);
        if !suspect && !of_session && !builtins::WRITES_LENGTHS.may_have(written) && !shows() {
            return if written.len() > NAME_LEN { Err(Why::Unclear) } else { Ok(()) };
        }
        let Some(name) = Folded::of(past.back(0)) else { return Err(Why::Unclear) };
        let name = name.get();
        if builtins::writes(name) || (suspect && self.objects.function(None, name) == Trust::Suspect) {
            return Err(Why::Function(Span::new(self.text, written)));
        }
        match past.qualifier() {
            Some(schema) if suspect || of_session || builtins::shows_the_server(name) => {
                self.relation(Some(schema), past.back(0))
            }
            _ => Ok(()),
        }
    }

    /// A name in front of a parenthesis, and behind a dot.
    fn qualified_call(&self, past: &Past<'a>) -> Result<(), Why> {
        let (Token::Word(written) | Token::Quoted(written)) = past.back(0) else { return Err(Why::Unclear) };
        let Some(function) = Folded::of(past.back(0)) else { return Err(Why::Unclear) };
        let Some(schema) = past.qualifier().and_then(Folded::of) else { return Err(Why::Unclear) };
        let built_in = schema.get() == b"pg_catalog";
        let span = Span::new(self.text, written);
        match self.objects.function(Some(schema.get()), function.get()) {
            Trust::Suspect => Err(Why::Function(span)),
            Trust::Plain if !built_in => Ok(()),
            Trust::Unknown if !built_in => Err(Why::UnknownFunction(span)),
            plain_or_unknown => {
                let known = Known::of(function.get());
                match plain_or_unknown {
                    _ if known.writes() => Err(Why::Function(span)),
                    Trust::Plain => Ok(()),
                    Trust::Suspect | Trust::Unknown if known.reads() => Ok(()),
                    Trust::Suspect | Trust::Unknown => Err(Why::UnknownFunction(span)),
                }
            }
        }
    }

    /// A name in front of a parenthesis.
    fn call(&self, past: &Past<'a>, mark: Mark, prefix: bool) -> Result<(), Why> {
        let name = past.back(0);
        let (Token::Word(written) | Token::Quoted(written)) = name else { return Ok(()) };
        let bare = matches!(name, Token::Word(_));
        if bare && ALWAYS_RESERVED.iter().any(|known| known.eq_ignore_ascii_case(written)) {
            return Ok(());
        }
        let known = if bare { Known::of_word(written) } else { Known::of(written) };
        if known.reads() && !self.objects.lengths().may_have(written) {
            return Ok(());
        }
        let Some(folded) = Folded::of(name) else { return Err(Why::Unclear) };
        let function = folded.get();
        if known.writes() {
            return Err(Why::Function(Span::new(self.text, written)));
        }
        match self.objects.function(None, function) {
            Trust::Suspect => return Err(Why::Function(Span::new(self.text, written))),
            Trust::Plain => return Ok(()),
            Trust::Unknown => {}
        }
        let fine = known.reads()
            || (bare && (known.reserved() || BEFORE_PARENTHESES.contains(&function)))
            || names_columns(past.back(1), mark, prefix);
        if fine { Ok(()) } else { Err(Why::UnknownFunction(Span::new(self.text, written))) }
    }
}

/// Whether a name behind this token is no function's: an alias or a part of WITH, with a list of columns, or a type. It is
/// asked only for names of which there is no function.
fn names_columns(before: Token<'_>, mark: Mark, prefix: bool) -> bool {
    match before {
        Token::Quoted(_) => true,
        Token::Punct(b')') => !prefix,
        Token::Punct(b',') => mark == Mark::With,
        Token::Word(_) if is(before, b"as") || is(before, b"with") || is(before, b"recursive") => true,
        Token::Word(_) => Folded::of(before).is_some_and(|word| !Known::of(word.get()).keyword()),
        _ => false,
    }
}

/// Whether a name is that of a schema for temporary objects.
fn temporary(name: &[u8]) -> bool {
    name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"pg_temp"))
        && name.get(7).is_none_or(|&next| next == b'_')
}

/// Whether a number is one to its end.
fn ends_as_number(number: &[u8]) -> bool {
    let hex = matches!(number, [b'0', b'x' | b'X', rest @ ..] if rest.iter().all(u8::is_ascii_hexdigit));
    hex || number.last().is_some_and(|last| last.is_ascii_digit() || *last == b'.')
}
