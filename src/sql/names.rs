//! Names that a text may set as settings of its own making (`my.tenant`).
//!
//! PostgreSQL lists all its settings but those: whoever wants to know of one has to ask for it by name. So every word
//! with a dot in it that a text holds, inside its strings too, may be one. Too many are no harm: nothing is set under them.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are no part of a name")]

use super::lexer::{Lexer, StrKind, Token};

/// Names that are taken from one text. Who sets more than this at once has them reset behind the transaction.
const MAX_NAMES: usize = 64;
/// PostgreSQL has no limit for these; a longer word is data.
const MAX_LEN: usize = 128;
/// How deep strings are looked into: a DO block that runs EXECUTE with a string has two.
const MAX_DEPTH: usize = 3;

/// Adds the names in `text` to `names`, in lower case, each once. False if there were more than are kept.
pub fn custom_names(text: &[u8], standard_strings: bool, names: &mut Vec<Box<str>>) -> bool {
    scan(text, standard_strings, MAX_DEPTH, names)
}

/// Adds `word` if it can be the name of such a setting, as `set_config()` takes it.
pub fn custom_name(word: &[u8], names: &mut Vec<Box<str>>) -> bool {
    let Ok(word) = std::str::from_utf8(word) else { return true };
    let is_part = |part: &str| !part.is_empty() && !part.starts_with(|c: char| c.is_ascii_digit());
    let is_name = word.len() <= MAX_LEN
        && word.contains('.')
        && word.split('.').all(is_part)
        && !word.bytes().any(|b| b.is_ascii_whitespace() || matches!(b, b'\'' | b'"' | b'(' | b')' | b';' | b',' | 0));
    if !is_name {
        return true;
    }
    let name = word.to_ascii_lowercase().into_boxed_str();
    if names.contains(&name) {
        return true;
    }
    if names.len() >= MAX_NAMES {
        return false;
    }
    names.push(name);
    true
}

fn scan(text: &[u8], standard_strings: bool, depth: usize, names: &mut Vec<Box<str>>) -> bool {
    let mut lexer = Lexer::new(text, standard_strings);
    let mut dotted: Vec<u8> = Vec::new();
    let (mut behind_dot, mut complete) = (false, true);
    loop {
        let token = lexer.next_token();
        match token {
            Token::Word(word) | Token::Quoted(word) => {
                if !behind_dot {
                    complete &= custom_name(&dotted, names);
                    dotted.clear();
                }
                dotted.extend_from_slice(word);
                behind_dot = false;
                continue;
            }
            Token::Punct(b'.') if !dotted.is_empty() => {
                dotted.push(b'.');
                behind_dot = true;
                continue;
            }
            _ => {}
        }
        complete &= custom_name(&dotted, names);
        dotted.clear();
        behind_dot = false;
        match token {
            Token::End | Token::Broken => return complete,
            Token::Str(StrKind::Plain | StrKind::Dollar | StrKind::Escape, string) if string.contains(&b'.') => {
                complete &= custom_name(string, names);
                if depth > 0 && string.len() > 3 {
                    complete &= scan(string, standard_strings, depth - 1, names);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_dot_are_found_wherever_they_stand() {
        for (text, expected) in [
            ("select 1.5, 'a', x", &[][..]),
            ("set my.Tenant = 'x.y z'", &["my.tenant", "x.y"]),
            ("set \"my\" . b to 1", &["my.b"]),
            ("select set_config('App.user', $1, false) from s.t where s.t.x = 1", &["app.user", "s.t", "s.t.x"]),
            ("do $$ begin perform set_config('a.b', 'c', false); execute 'set x.y = 1'; end $$", &["a.b", "x.y"]),
            ("do 'begin execute ''set q.r = 1''; end'", &["q.r"]),
        ] {
            let mut names = Vec::new();
            assert!(custom_names(text.as_bytes(), true, &mut names), "{text}");
            let names: Vec<&str> = names.iter().map(|n| &**n).collect();
            assert_eq!(names, expected, "{text}");
        }
    }

    #[test]
    fn more_names_than_are_kept_are_said_to_be_too_many() {
        let text: String = (0..100).map(|i| format!("select a.b{i};")).collect();
        let mut names = Vec::new();
        assert!(!custom_names(text.as_bytes(), true, &mut names));
        assert_eq!(names.len(), MAX_NAMES);
    }
}
