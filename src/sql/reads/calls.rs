//! Which functions a text calls that are not PostgreSQL's own, and what the body of one may leave behind.
//!
//! Names in front of a parenthesis are all that a text shows: some of them are no functions. What is called by an operator, a
//! cast, a view, a default or a trigger is not seen.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are what is not looked for")]

use super::builtins::Known;
use super::query::BEFORE_PARENTHESES;
use super::{Folded, NAME_LEN};
use crate::sql::classify::{self, Effects};
use crate::sql::lexer::{Lexer, Token};

/// Names that are taken from one text.
const MOST: usize = 32;

/// What a text calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Calls {
    /// Names of functions, as the server has them, without their schemas.
    pub names: Vec<Box<str>>,
    /// There is more, or something that was not understood.
    pub unclear: bool,
}

impl Calls {
    /// Whether nothing is called.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.unclear
    }

    fn add(&mut self, name: Token<'_>) {
        let folded = Folded::of(name);
        let name = folded.as_ref().and_then(|name| std::str::from_utf8(name.get()).ok());
        // Outside of ASCII a name has other bytes in another encoding, and a body comes with `$` in place of them.
        match name.filter(|name| name.is_ascii() && !name.contains('$') && name.len() <= NAME_LEN) {
            Some(name) if self.names.iter().any(|known| **known == *name) => {}
            Some(name) if self.names.len() < MOST => self.names.push(name.into()),
            Some(_) | None => self.unclear = true,
        }
    }
}

/// Whether a text may call such a function. Of nearly all texts that have a parenthesis at all, the words in front of them say
/// that they do not.
pub fn may_call(text: &[u8], standard_strings: bool) -> bool {
    if !text.contains(&b'(') {
        return false;
    }
    // Between a name and its parenthesis a comment may stand, and end with any word.
    let comments = text.windows(2).any(|pair| pair == b"--" || pair == b"/*");
    let opened = text.iter().enumerate().filter(|(_, byte)| **byte == b'(');
    (comments || opened.map(|(at, _)| at).any(|at| may_be_called(&text[..at])))
        && !calls(text, standard_strings).is_empty()
}

/// Whether what stands before a parenthesis may be the name of a function.
fn may_be_called(before: &[u8]) -> bool {
    let (before, word) = last_word(before);
    match (word, before.last()) {
        (b"", last) => last == Some(&b'"'),
        (_, Some(b'.')) => true,
        (word, _) => {
            let known = Known::of_word(word);
            if known.reads() || known.writes() || known.reserved() {
                return false;
            }
            let past = last_word(before).1;
            let is_keyword = is_before_parentheses(word) && (before.ends_with(b")") || introduces(past));
            !is_keyword && !past.eq_ignore_ascii_case(b"into")
        }
    }
}

/// Cuts the last word off, and white space around it.
fn last_word(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_end();
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..);
    let start = text.iter().rposition(|byte| !is_part(byte)).map_or(0, |at| at + 1);
    let (before, word) = text.split_at(start);
    (before.trim_ascii_end(), word)
}

/// Whether a word may stand before parentheses by itself, although it may be the name of a function as well.
fn is_before_parentheses(word: &[u8]) -> bool {
    let more: [&[u8]; 4] = [b"conflict", b"include", b"set", b"within"];
    BEFORE_PARENTHESES.iter().chain(&more).any(|known| known.eq_ignore_ascii_case(word))
}

/// Whether such a word behind this one is no function: GROUP BY, ON CONFLICT, PRIMARY KEY.
fn introduces(word: &[u8]) -> bool {
    let known: [&[u8]; 16] = [
        b"order",
        b"group",
        b"partition",
        b"on",
        b"primary",
        b"foreign",
        b"for",
        b"update",
        b"left",
        b"right",
        b"full",
        b"inner",
        b"cross",
        b"natural",
        b"outer",
        b"not",
    ];
    known.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// Whether an expression may begin behind this token.
fn begins_expression(before: Token<'_>) -> bool {
    match before {
        Token::Operator(_) | Token::Punct(b'(' | b'[' | b',' | b':') => true,
        Token::Word(word) => Known::of_word(word).keyword() && !introduces(word),
        _ => false,
    }
}

/// The functions that a text calls which are not PostgreSQL's own, as far as it shows.
pub fn calls(text: &[u8], standard_strings: bool) -> Calls {
    let mut lexer = Lexer::new(text, standard_strings);
    let mut calls = Calls::default();
    let mut past = [Token::End; 4];
    // Whether the token at this place in `past` is a cast.
    let mut casts = [false; 4];
    loop {
        let token = lexer.next_token();
        match token {
            Token::End => return calls,
            Token::Broken => {
                calls.unclear = true;
                return calls;
            }
            Token::Punct(b'(') => called(&past, &casts, &mut calls),
            _ => {}
        }
        past.rotate_right(1);
        casts.rotate_right(1);
        past[0] = token;
        casts[0] = token == Token::Punct(b':') && text[..lexer.offset()].ends_with(b"::");
    }
}

/// A parenthesis opens behind these tokens, the youngest first.
fn called(past: &[Token<'_>; 4], casts: &[bool; 4], calls: &mut Calls) {
    let name = past[0];
    let (Token::Word(written) | Token::Quoted(written)) = name else { return };
    let qualified = past[1] == Token::Punct(b'.') && matches!(past[2], Token::Word(_) | Token::Quoted(_));
    let before = if qualified { 3 } else { 1 };
    if casts[before] || matches!(past[before], Token::End | Token::Punct(b';')) {
        return;
    }
    // A table with its columns, or a statement that SQL has prepared.
    let no_function: [&[u8]; 7] = [b"into", b"copy", b"table", b"references", b"execute", b"prepare", b"call"];
    if let Token::Word(word) = past[before]
        && no_function.iter().any(|known| known.eq_ignore_ascii_case(word))
    {
        return;
    }
    let own = matches!(past[2], Token::Word(schema) if schema.eq_ignore_ascii_case(b"pg_catalog"));
    if !qualified || own {
        let bare = matches!(name, Token::Word(_));
        let known = if bare { Known::of_word(written) } else { Known::of(written) };
        let by_itself = || is_before_parentheses(written) && !begins_expression(past[1]);
        let keyword = bare && !qualified && (known.reserved() || by_itself());
        if known.reads() || known.writes() || keyword {
            return;
        }
    }
    calls.add(name);
}

/// What the body of a function says, in SQL or PL/pgSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// What it may leave behind by itself.
    pub effects: Effects,
    /// What it calls.
    pub calls: Calls,
}

/// What a body may leave in the session that runs it.
const LASTING: Effects =
    Effects::SETTING.and(Effects::TEMP).and(Effects::CURSOR).and(Effects::ADVISORY).and(Effects::SEED);

/// Looks into the body of a function.
pub fn body(text: &[u8]) -> Body {
    let mut lexer = Lexer::new(text, true);
    let mut effects = Effects::NONE;
    let mut before = Token::Punct(b';');
    loop {
        let token = lexer.next_token();
        match token {
            Token::End => break,
            Token::Broken | Token::Quoted(b"") => {
                effects = effects.and(Effects::UNKNOWN);
                if token == Token::Broken {
                    break;
                }
            }
            Token::Word(word) | Token::Quoted(word) => {
                let found = match classify::telling(word) {
                    // What its own parameters are nobody sees.
                    Effects::SETTING => match classify::set_config(lexer.clone()) {
                        Effects::LOCAL_NAMED => Effects::LOCAL,
                        found => found,
                    },
                    found => found.only(LASTING),
                };
                effects = effects.and(found);
                if matches!(token, Token::Word(_)) {
                    effects = effects.and(command(word, before, &lexer));
                }
            }
            _ => {}
        }
        before = token;
    }
    Body { effects, calls: calls(text, true) }
}

/// What a word says that may be the first of a command.
fn command(word: &[u8], before: Token<'_>, rest: &Lexer<'_>) -> Effects {
    let is = |known: &[u8]| word.eq_ignore_ascii_case(known);
    // What is put together and run then.
    if is(b"execute") {
        return Effects::UNKNOWN;
    }
    let begins: [&[u8]; 5] = [b"begin", b"then", b"else", b"loop", b"atomic"];
    let first = match before {
        Token::Punct(b';') | Token::Operator(_) => true,
        Token::Word(before) => begins.iter().any(|known| known.eq_ignore_ascii_case(before)),
        _ => false,
    };
    let next = |known: &[u8]| matches!(rest.peek(), Token::Word(next) if next.eq_ignore_ascii_case(known));
    match first {
        true if is(b"set") && !next(b"local") && !next(b"transaction") && !next(b"constraints") => Effects::SETTING,
        true if is(b"set") => classify::set_local(rest.clone()),
        true if is(b"reset") => Effects::SETTING,
        true if is(b"listen") => Effects::LISTEN,
        true if is(b"unlisten") => Effects::UNLISTEN,
        true if is(b"prepare") || is(b"deallocate") => Effects::PREPARE,
        true if is(b"load") => Effects::LOAD,
        true if is(b"discard") || is(b"do") || is(b"call") => Effects::UNKNOWN,
        _ => Effects::NONE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_are_not_built_in_are_found_however_they_are_called() {
        for (text, expected) in [
            ("select 1", &[][..]),
            ("select lower('x'), pg_catalog.abs(1), \"lower\"('y')", &[]),
            ("insert into t (a, b) values (1, 2)", &[]),
            ("insert into s.t (a) select coalesce(a, 1) from x where a in (1, 2)", &[]),
            ("insert into t (a) values (1) on conflict (a) do update set (b, c) = (1, 2)", &[]),
            ("select a from t where a between (1) and (2) and not (a = any (array(select 1))) limit (1)", &[]),
            ("copy t (a) from stdin", &[]),
            ("explain (costs off) select 1", &[]),
            ("execute p (1)", &[]),
            ("select x::vector(3), a::s.\"Type\"(1)", &[]),
            ("select count(*) over (partition by a) from t join u using (a)", &[]),
            ("select 'f(1)', $$g(2)$$ -- h(3)", &[]),
            ("select F(1), s.g(2), \"H\"(3), F (4)", &["f", "g", "H"]),
            ("select s.lower('x')", &["lower"]),
            ("select f /* x */ (1)", &["f"]),
            ("select f -- select\n (1)", &["f"]),
            ("select 1 + f(a := g(2))", &["f", "g"]),
            ("insert into t values (f(1))", &["f"]),
            ("select refresh(1)", &["refresh"]),
            ("select value(1), 2 + key(3) from t where first(4) order by data(5)", &["value", "key", "first", "data"]),
            ("select 1 from t left join (select 1) u on true", &[]),
            ("select sum(a) filter (where a > 1) over (partition by (a) order by (b)) from t group by (a)", &[]),
            // No functions, but that is for the server to say.
            ("select * from t as x (a)", &["x"]),
        ] {
            let found = calls(text.as_bytes(), true);
            assert_eq!(found.names.iter().map(|name| &**name).collect::<Vec<_>>(), expected, "{text}");
            assert!(!found.unclear, "{text}");
            assert_eq!(may_call(text.as_bytes(), true), !expected.is_empty(), "{text}");
        }
        for text in ["select \"a\"\"b\"(1)", "select gr\u{f6}\u{df}e(1)", "select U&\"\\0061\"(1)", "select f('"] {
            assert!(calls(text.as_bytes(), true).unclear, "{text}");
        }
    }

    #[test]
    fn what_a_body_may_leave_behind_is_seen() {
        for (text, effects) in [
            ("select 1", Effects::NONE),
            (
                "begin update t set a = 1; insert into t values (1) on conflict (a) do update set a = 2; end",
                Effects::NONE,
            ),
            ("begin perform set_config('a.b', 'c', true); set local a.b = 'UTC'; end", Effects::NONE),
            ("begin perform set_config('a.b', 'c', true); set local timezone = 'UTC'; end", Effects::LOCAL),
            ("begin if a then set timezone = 'UTC'; end if; end", Effects::SETTING),
            ("begin perform set_config('a.b', 'c', false); end", Effects::SETTING),
            ("begin execute 'x'; end", Effects::UNKNOWN),
            ("begin listen here; end", Effects::LISTEN),
            (
                "begin create temp table x (a int); perform pg_advisory_lock(1); end",
                Effects::TEMP.and(Effects::ADVISORY),
            ),
            ("begin perform 'unterminated; end", Effects::UNKNOWN),
        ] {
            assert_eq!(body(text.as_bytes()).effects, effects, "{text}");
        }
        assert_eq!(body(b"begin return f(1) + abs(2); end").calls.names, [Box::from("f")]);
    }
}
