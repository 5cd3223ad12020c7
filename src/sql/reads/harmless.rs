//! Texts that are no reads, and yet write nothing: they change the session that runs them, and that is all.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are what the statement is not")]

use super::kinds::is;
use super::{Folded, MAX_TEXT, Objects, Run, Scan, Trust};
use crate::sql::lexer::{Lexer, Token};

/// Whether a text surely writes nothing that another session could ever see: it only reads, sets, begins or ends a
/// transaction, or does away with what its own session has. To be asked of a text that runs outside of a transaction: what a
/// COMMIT commits is not in it. `objects` is what the database has beyond what is built in; where that is not known, nothing
/// that could be a function or a view passes.
///
/// The grammar of SET knows constants only: nothing in it is evaluated.
pub fn writes_nothing<O: Objects + ?Sized>(text: &[u8], standard_strings: bool, objects: Option<&O>) -> bool {
    if text.len() > MAX_TEXT {
        return false;
    }
    let mut lexer = Lexer::new(text, standard_strings);
    loop {
        let start = lexer.clone();
        let word = match lexer.next_token() {
            Token::End => return true,
            Token::Punct(b';') => continue,
            Token::Word(word) => Folded::word(word),
            _ => None,
        };
        let next = lexer.peek();
        let is_harmless = match word.as_ref().map_or(&b""[..], Folded::get) {
            // Deferred constraints are checked there and then, by triggers.
            b"set" => !is(next, b"constraints"),
            b"reset" | b"show" | b"discard" | b"deallocate" | b"listen" | b"unlisten" | b"begin" | b"start" => true,
            b"savepoint" | b"release" => true,
            b"commit" | b"end" | b"rollback" | b"abort" => !is(next, b"prepared"),
            _ => false,
        };
        if is_harmless {
            if !ends(&mut lexer) {
                return false;
            }
            continue;
        }
        let Some(objects) = objects else { return false };
        if let Some(behind) = set_config(start.clone(), objects) {
            lexer = behind;
            continue;
        }
        let mut scan = Scan { text, lexer: start, objects };
        let first = scan.lexer.next_token();
        match scan.statement(first).0 {
            Run::Read | Run::Cursor => lexer = scan.lexer,
            Run::Write(_) => return false,
        }
    }
}

/// Goes on behind the end of a statement; false if the text cannot be read further.
fn ends(lexer: &mut Lexer<'_>) -> bool {
    loop {
        match lexer.skip_to(|_| false) {
            Token::Punct(b';') | Token::End => return true,
            Token::Broken => return false,
            _ => {}
        }
    }
}

/// What comes behind a SELECT of nothing but `set_config()` with constants, as drivers send it in place of SET.
fn set_config<'a, O: Objects + ?Sized>(mut lexer: Lexer<'a>, objects: &O) -> Option<Lexer<'a>> {
    if !is(lexer.next_token(), b"select") || objects.function(None, b"set_config") != Trust::Unknown {
        return None;
    }
    loop {
        let mut name = lexer.next_token();
        if is(name, b"pg_catalog") && lexer.next_token() == Token::Punct(b'.') {
            name = lexer.next_token();
        }
        if !is(name, b"set_config") || lexer.next_token() != Token::Punct(b'(') {
            return None;
        }
        for closing in [b',', b',', b')'] {
            let value = lexer.next_token();
            let is_constant = matches!(value, Token::Str(..) | Token::Number(_) | Token::Param)
                || [&b"true"[..], b"false", b"null"].into_iter().any(|word| is(value, word));
            if !is_constant || lexer.next_token() != Token::Punct(closing) {
                return None;
            }
        }
        match lexer.next_token() {
            Token::Punct(b',') => {}
            Token::Punct(b';') | Token::End => return Some(lexer),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::reads::Plain;

    #[test]
    fn what_only_changes_its_own_session_writes_nothing() {
        for (text, known, unknown) in [
            ("set a.b = 'c'", true, true),
            ("SET SESSION time zone interval '1' hour to minute; reset all;", true, true),
            ("set transaction read only", true, true),
            ("set constraints all immediate", false, false),
            ("set a = 1; insert into t values (1)", false, false),
            ("show x; discard all; deallocate s; listen c; unlisten *", true, true),
            ("begin; commit", true, true),
            ("begin; savepoint s; rollback to s; release s; end", true, true),
            ("commit prepared 'x'", false, false),
            ("rollback prepared 'x'", false, false),
            ("prepare transaction 'x'", false, false),
            ("prepare s as select 1", false, false),
            ("execute s", false, false),
            ("notify c", false, false),
            ("begin; select 1; commit", true, false),
            ("begin; select nextval('s'); commit", false, false),
            ("select set_config('a.b', 'c', false)", true, false),
            ("SELECT pg_catalog.Set_Config('a.b', $1, true), set_config('c', '1', 'f');", true, false),
            ("select set_config('a.b', f(1), false)", false, false),
            ("select set_config('a.b', 'c', false), f(1)", false, false),
            ("select set_config('a.b', 'c', false) from t", false, false),
            ("select set_config('a.b', 'c' || 'd', false)", false, false),
            ("set a = 'open", false, false),
            ("", true, true),
        ] {
            assert_eq!(writes_nothing(text.as_bytes(), true, Some(&Plain)), known, "{text}");
            assert_eq!(writes_nothing(text.as_bytes(), true, None::<&Plain>), unknown, "{text}");
        }
    }
}
