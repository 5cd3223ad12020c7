//! Statements that name a prepared statement: EXECUTE and DEALLOCATE.

use super::lexer::{Lexer, Token};
use std::ops::Range;

/// What a statement does with a prepared one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// DEALLOCATE; else EXECUTE.
    pub deallocates: bool,
    /// The name, folded or unquoted as PostgreSQL does it.
    pub name: Box<[u8]>,
    /// Where it stands in the text.
    pub range: Range<usize>,
}

/// The prepared statement that a text names, if it is one such statement.
pub fn reference(text: &[u8], standard_strings: bool) -> Option<Reference> {
    let mut lexer = Lexer::new(text, standard_strings);
    let Token::Word(first) = lexer.next_token() else { return None };
    let deallocates = first.eq_ignore_ascii_case(b"deallocate");
    if !deallocates && !first.eq_ignore_ascii_case(b"execute") {
        return None;
    }
    let mut token = lexer.next_token();
    if let Token::Word(word) = token
        && deallocates
        && word.eq_ignore_ascii_case(b"prepare")
        && !matches!(lexer.peek(), Token::End | Token::Punct(b';'))
    {
        token = lexer.next_token();
    }
    let end = lexer.offset();
    let (name, range) = match token {
        // ALL is no name.
        Token::Word(word) if deallocates && word.eq_ignore_ascii_case(b"all") => return None,
        Token::Word(word) => (word.to_ascii_lowercase(), end - word.len()..end),
        Token::Quoted(name) if !name.is_empty() => {
            let unquoted = name.to_vec();
            let unquoted = String::from_utf8(unquoted).ok()?.replace("\"\"", "\"").into_bytes();
            (unquoted, end - name.len() - 2..end)
        }
        Token::Quoted(_)
        | Token::Str(..)
        | Token::Number(_)
        | Token::Param
        | Token::Punct(_)
        | Token::Operator(_)
        | Token::End
        | Token::Broken => return None,
    };
    if deallocates {
        while lexer.peek() == Token::Punct(b';') {
            lexer.next_token();
        }
        if lexer.next_token() != Token::End {
            return None;
        }
    }
    Some(Reference { deallocates, name: name.into(), range })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_found_where_it_stands() {
        for (text, expected) in [
            ("deallocate S1;", Some((true, "s1", 11..13))),
            ("DEALLOCATE PREPARE \"S 1\"", Some((true, "S 1", 19..24))),
            ("deallocate prepare", Some((true, "prepare", 11..18))),
            ("deallocate all", None),
            ("deallocate \"all\"", Some((true, "all", 11..16))),
            ("deallocate a; select 1", None),
            ("/* x */ execute p(1, 'x')", Some((false, "p", 16..17))),
            ("execute \"a\"\"b\"", Some((false, "a\"b", 8..14))),
            ("select execute p", None),
            ("execute", None),
        ] {
            let found = reference(text.as_bytes(), true);
            let found = found.map(|r| (r.deallocates, String::from_utf8(r.name.into()).unwrap(), r.range));
            assert_eq!(found, expected.map(|(d, n, r)| (d, n.to_owned(), r)), "{text}");
        }
    }
}
