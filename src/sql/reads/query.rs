//! A query: whether anything in it may do more than read.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are what is not looked for")]

use super::kinds::is;
use super::{Folded, Lengths, MAX_DEPTH, NAME_LEN, Objects, Scan, Span, Trust, Why, builtins};
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
const WORDS: [&[u8]; 13] = [
    b"insert", b"update", b"delete", b"merge", b"into", b"no", b"share", b"key", b"with", b"select", b"values",
    b"table", b"pg_temp",
];

static WORD_LENGTHS: Lengths = {
    let mut lengths = Lengths::NONE;
    let mut at = 0;
    while at < WORDS.len() {
        lengths.add(WORDS[at]);
        at += 1;
    }
    lengths
};

/// Keywords that may be names of functions, but stand in front of parentheses by themselves.
const BEFORE_PARENTHESES: [&[u8]; 25] = [
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

/// The last tokens, the youngest first.
#[derive(Clone, Copy)]
struct Past<'a>([Token<'a>; 3]);

impl<'a> Past<'a> {
    #[inline]
    fn push(&mut self, token: Token<'a>) {
        self.0 = [token, self.0[0], self.0[1]];
    }

    /// Whether the youngest stands behind a dot.
    #[inline]
    fn dotted(&self) -> bool {
        self.0[1] == Token::Punct(b'.')
    }

    /// What a name behind a dot is qualified with.
    #[inline]
    fn qualifier(&self) -> Option<Token<'a>> {
        Some(self.0[2]).filter(|token| matches!(token, Token::Word(_) | Token::Quoted(_)))
    }
}

impl<'a, O: Objects + ?Sized> Scan<'a, '_, O> {
    /// Looks at a query from its first token to its end.
    pub(super) fn query(&mut self, first: Token<'a>, end: End) -> Result<(), Why> {
        let mut marks = [Mark::None; MAX_DEPTH];
        let mut depth = 0usize;
        // Whether the parenthesis that was closed last may be followed by an expression.
        let mut prefix = false;
        let mut past = Past([Token::End; 3]);
        let mut token = first;
        loop {
            match token {
                Token::Word(word) => {
                    if past.0[0] != Token::Punct(b'.') {
                        self.keyword(word, past.0[0], &mut marks[depth])?;
                        self.bare(token, word)?;
                    }
                }
                Token::Quoted(name) => {
                    if past.0[0] != Token::Punct(b'.') {
                        self.bare(token, name)?;
                    }
                }
                Token::Punct(b'(') => {
                    match past.0[0] {
                        Token::Word(_) | Token::Quoted(_) => self.call(&past, marks[depth], prefix)?,
                        // WITH a AS (...) (SELECT ...)
                        Token::Punct(b')') if marks[depth] == Mark::With => marks[depth] = Mark::None,
                        _ => {}
                    }
                    depth += 1;
                    if depth >= MAX_DEPTH {
                        return Err(Why::TooDeep);
                    }
                    let prefixes = is(past.0[0], b"on") || is(past.0[0], b"operator");
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
                Token::End | Token::Punct(b';') => {
                    self.attribute(&past)?;
                    return Ok(());
                }
                Token::Punct(_) | Token::Number(_) | Token::Str(..) | Token::Param => {}
            }
            if token != Token::Punct(b'(') && past.dotted() {
                self.attribute(&past)?;
            }
            if depth == 0 && end == End::Parenthesis {
                return Ok(());
            }
            past.push(token);
            token = self.lexer.next_token();
        }
    }

    /// What a keyword, or a word like one, says.
    #[inline]
    fn keyword(&mut self, word: &[u8], before: Token<'_>, mark: &mut Mark) -> Result<(), Why> {
        if !WORD_LENGTHS.may_have(word) {
            return if word.len() > 7 && temporary(word) { Err(Why::Session) } else { Ok(()) };
        }
        let Some(folded) = Folded::word(word) else { return Ok(()) };
        match folded.get() {
            b"into" => return Err(Why::Into),
            b"update" if is(before, b"for") => return Err(Why::Locking),
            b"insert" | b"update" | b"delete" | b"merge" => return Err(Why::Modifies),
            b"no" | b"share" | b"key" if is(before, b"for") => return Err(Why::Locking),
            b"with" if matches!(before, Token::End | Token::Punct(b'(')) => *mark = Mark::With,
            b"select" | b"values" | b"table" if *mark == Mark::With => *mark = Mark::None,
            b"pg_temp" => return Err(Why::Session),
            _ => {}
        }
        Ok(())
    }

    /// A name that is not qualified: of a relation, a type, or anything else.
    #[inline]
    fn bare(&mut self, token: Token<'a>, name: &[u8]) -> Result<(), Why> {
        if name.len() > NAME_LEN || name.is_empty() {
            return Err(Why::Unclear);
        }
        if matches!(token, Token::Quoted(_)) && (name.contains(&b'"') || temporary(name)) {
            return Err(Why::Unclear);
        }
        if builtins::SESSION_VIEWS_LENGTHS.may_have(name) || self.objects.lengths().may_have(name) {
            self.relation(None, token)?;
        }
        Ok(())
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
        if self.objects.suspects(schema, name.get()) {
            return Err(Why::Object(Span::new(self.text, written)));
        }
        Ok(())
    }

    /// A name behind a dot that is not called with parentheses: a column, a relation in a schema - or a function after all,
    /// as PostgreSQL takes `(x).f` for `f(x)`.
    fn attribute(&self, past: &Past<'a>) -> Result<(), Why> {
        if !past.dotted() {
            return Ok(());
        }
        let (Token::Word(written) | Token::Quoted(written)) = past.0[0] else { return Ok(()) };
        let Some(name) = Folded::of(past.0[0]) else { return Err(Why::Unclear) };
        let name = name.get();
        let suspect = self.objects.lengths().may_have(name);
        if builtins::writes(name) || (suspect && self.objects.function(None, name) == Trust::Suspect) {
            return Err(Why::Function(Span::new(self.text, written)));
        }
        if let Some(qualifier) = past.qualifier()
            && (suspect || builtins::SESSION_VIEWS_LENGTHS.may_have(name))
        {
            self.relation(Some(qualifier), past.0[0])?;
        }
        Ok(())
    }

    /// A name in front of a parenthesis.
    fn call(&self, past: &Past<'a>, mark: Mark, prefix: bool) -> Result<(), Why> {
        let [name, before, _] = past.0;
        let (Token::Word(written) | Token::Quoted(written)) = name else { return Ok(()) };
        let Some(folded) = Folded::of(name) else { return Err(Why::Unclear) };
        let function = folded.get();
        let span = || Span::new(self.text, written);
        if past.dotted() {
            let Some(schema) = past.qualifier().and_then(Folded::of) else { return Err(Why::Unclear) };
            let schema = schema.get();
            return match self.objects.function(Some(schema), function) {
                Trust::Suspect => Err(Why::Function(span())),
                Trust::Plain => Ok(()),
                Trust::Unknown if schema != b"pg_catalog" => Err(Why::UnknownFunction(span())),
                Trust::Unknown if builtins::reads(function) => Ok(()),
                Trust::Unknown if builtins::writes(function) => Err(Why::Function(span())),
                Trust::Unknown => Err(Why::UnknownFunction(span())),
            };
        }
        let bare = matches!(name, Token::Word(_));
        if bare && matches!(function, b"in" | b"values" | b"as" | b"and" | b"or" | b"on" | b"from" | b"where" | b"any")
        {
            // Always were reserved; the most frequent ones.
            return Ok(());
        }
        if builtins::writes(function) {
            return Err(Why::Function(span()));
        }
        match self.objects.function(None, function) {
            Trust::Suspect => return Err(Why::Function(span())),
            Trust::Plain => return Ok(()),
            Trust::Unknown => {}
        }
        let syntax = bare && (BEFORE_PARENTHESES.contains(&function) || builtins::reserved(function));
        if syntax || builtins::reads(function) || names_columns(before, mark, prefix) {
            return Ok(());
        }
        Err(Why::UnknownFunction(span()))
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
        Token::Word(_) => Folded::of(before).is_some_and(|word| !builtins::keyword(word.get())),
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
