//! The channels that a text listens to, or no longer.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are no channel")]

use super::lexer::{Lexer, Token};

/// Bytes of a name that count: `NAMEDATALEN` - 1.
const NAME_LEN: usize = 63;

/// What a statement says of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// LISTEN.
    Listen(Box<[u8]>),
    /// UNLISTEN.
    Unlisten(Box<[u8]>),
    /// UNLISTEN *.
    UnlistenAll,
    /// COMMIT and its like: what was said before it counts.
    Commit,
    /// ROLLBACK of all since the transaction began.
    Rollback,
    /// SAVEPOINT.
    Savepoint(Box<[u8]>),
    /// ROLLBACK TO SAVEPOINT.
    RollbackTo(Box<[u8]>),
}

/// What the statements of a text say of channels, and of what becomes of that, in their order. Names are as PostgreSQL will
/// know them: folded, or unquoted, and cut to the length of a name. One that is written with Unicode escapes is left out.
pub fn channels(text: &[u8], standard_strings: bool) -> Vec<Channel> {
    let mut lexer = Lexer::new(text, standard_strings);
    let mut found = Vec::new();
    let mut first = true;
    loop {
        match lexer.next_token() {
            Token::End | Token::Broken => return found,
            Token::Punct(b';') => first = true,
            Token::Word(word) if first => {
                first = false;
                let listens = word.eq_ignore_ascii_case(b"listen");
                if !listens && !word.eq_ignore_ascii_case(b"unlisten") {
                    found.extend(ends(word, lexer.clone()));
                    continue;
                }
                match lexer.next_token() {
                    Token::Operator(b"*") if !listens => found.push(Channel::UnlistenAll),
                    Token::Word(name) => found.push(said(listens, name.to_ascii_lowercase())),
                    Token::Quoted(name) if !name.is_empty() => found.push(said(listens, unquoted(name))),
                    Token::Punct(b';') => first = true,
                    Token::End | Token::Broken => return found,
                    _ => {}
                }
            }
            _ => first = false,
        }
    }
}

/// What a statement with this first word says of the transaction that it is in.
fn ends(word: &[u8], mut rest: Lexer<'_>) -> Option<Channel> {
    let is = |token: Token<'_>, known: &[u8]| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(known));
    let first = |known: &[u8]| word.eq_ignore_ascii_case(known);
    if first(b"commit") || first(b"end") {
        return Some(Channel::Commit);
    }
    let name = |token: Token<'_>| match token {
        Token::Word(word) => Some(cut(word.to_ascii_lowercase())),
        Token::Quoted(name) if !name.is_empty() => Some(cut(unquoted(name))),
        _ => None,
    };
    if first(b"savepoint") {
        return name(rest.next_token()).map(Channel::Savepoint);
    }
    if !first(b"rollback") && !first(b"abort") {
        return None;
    }
    let mut next = rest.next_token();
    if is(next, b"work") || is(next, b"transaction") {
        next = rest.next_token();
    }
    if is(next, b"prepared") {
        return None;
    }
    if !is(next, b"to") {
        return Some(Channel::Rollback);
    }
    let mut token = rest.next_token();
    // A savepoint may be called like that, too.
    if is(token, b"savepoint") && matches!(rest.peek(), Token::Word(_) | Token::Quoted(_)) {
        token = rest.next_token();
    }
    Some(name(token).map_or(Channel::Rollback, Channel::RollbackTo))
}

fn said(listens: bool, name: Vec<u8>) -> Channel {
    let name = cut(name);
    if listens { Channel::Listen(name) } else { Channel::Unlisten(name) }
}

/// A name as PostgreSQL cuts it.
fn cut(mut name: Vec<u8>) -> Box<[u8]> {
    if name.len() > NAME_LEN {
        // A character is never cut in two (pg_mbcliplen), where it is UTF-8.
        let mut end = NAME_LEN;
        while end > 0 && name[end] & 0xc0 == 0x80 {
            end -= 1;
        }
        name.truncate(end);
    }
    name.into()
}

fn unquoted(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut quote = false;
    for &byte in name {
        // Doubled quotes stand for one.
        quote = byte == b'"' && !quote;
        if !quote {
            out.push(byte);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_named_as_postgresql_will_know_them() {
        let listen = |name: &str| Channel::Listen(name.as_bytes().into());
        let unlisten = |name: &str| Channel::Unlisten(name.as_bytes().into());
        for (text, expected) in [
            ("listen Jobs", vec![listen("jobs")]),
            (
                "LISTEN \"We\"\"ird; x\" ; select 'listen a'; unlisten b;unlisten *",
                vec![listen("We\"ird; x"), unlisten("b"), Channel::UnlistenAll],
            ),
            ("select listen from a; /* listen x */", vec![]),
            ("listen U&\"\\0061\"", vec![]),
            ("listen", vec![]),
        ] {
            assert_eq!(channels(text.as_bytes(), true), expected, "{text}");
        }
        let long = format!("listen \"{}é\"", "x".repeat(62));
        assert_eq!(channels(long.as_bytes(), true), [listen(&"x".repeat(62))]);
    }
}
