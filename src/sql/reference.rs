//! Statements that name a prepared statement: EXECUTE, DEALLOCATE and PREPARE.

use super::lexer::{Lexer, StrKind, Token};
use std::ops::Range;

/// What a statement does with a prepared one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// EXECUTE.
    Execute,
    /// DEALLOCATE.
    Deallocate,
    /// PREPARE.
    Prepare,
    /// DEALLOCATE ALL, DISCARD ALL: drops all that there are, and names none.
    Forget,
}

/// A statement that names a prepared one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// What it does with it.
    pub verb: Verb,
    /// The name, folded or unquoted as PostgreSQL does it.
    pub name: Box<[u8]>,
    /// Where it stands in the text.
    pub range: Range<usize>,
    /// How many values an EXECUTE gives; none where the text does not say it.
    pub values: Option<u16>,
}

/// The prepared statement that a text names, if it is one such statement. Behind the name of one that runs or makes another
/// stands what is not looked at.
pub fn reference(text: &[u8], standard_strings: bool) -> Option<Reference> {
    let mut lexer = Lexer::new(text, standard_strings);
    let found = next(&mut lexer).filter(|found| found.verb != Verb::Forget)?;
    if found.verb == Verb::Deallocate {
        while lexer.peek() == Token::Punct(b';') {
            lexer.next_token();
        }
        if lexer.next_token() != Token::End {
            return None;
        }
    }
    Some(found)
}

/// What the statements of a text do with prepared ones.
pub fn references(text: &[u8], standard_strings: bool) -> Vec<Reference> {
    let mut lexer = Lexer::new(text, standard_strings);
    let mut found = Vec::new();
    loop {
        found.extend(next(&mut lexer));
        loop {
            match lexer.next_token() {
                Token::End | Token::Broken => return found,
                Token::Punct(b';') => break,
                Token::Word(_)
                | Token::Quoted(_)
                | Token::Str(..)
                | Token::Number(_)
                | Token::Param
                | Token::Punct(_)
                | Token::Operator(_) => {}
            }
        }
    }
}

/// Reads the beginning of a statement.
fn next(lexer: &mut Lexer<'_>) -> Option<Reference> {
    let Token::Word(first) = lexer.peek() else { return None };
    let verb = match first {
        word if word.eq_ignore_ascii_case(b"execute") => Verb::Execute,
        word if word.eq_ignore_ascii_case(b"deallocate") => Verb::Deallocate,
        word if word.eq_ignore_ascii_case(b"prepare") => Verb::Prepare,
        word if word.eq_ignore_ascii_case(b"discard") => Verb::Forget,
        _ => return None,
    };
    lexer.next_token();
    let is = |token: Token<'_>, known: &[u8]| matches!(token, Token::Word(word) if word.eq_ignore_ascii_case(known));
    let mut token = lexer.peek();
    let mut ahead = lexer.clone();
    ahead.next_token();
    match verb {
        Verb::Deallocate
            if is(token, b"prepare") && !matches!(ahead.peek(), Token::End | Token::Punct(b';') | Token::Broken) =>
        {
            lexer.next_token();
            token = lexer.peek();
        }
        // It prepares a transaction.
        Verb::Prepare if is(token, b"transaction") && matches!(ahead.peek(), Token::Str(..)) => return None,
        Verb::Execute | Verb::Deallocate | Verb::Prepare | Verb::Forget => {}
    }
    // ALL is no name.
    match (verb, is(token, b"all")) {
        (Verb::Deallocate | Verb::Forget, true) => {
            let end = lexer.offset();
            return Some(Reference { verb: Verb::Forget, name: Box::default(), range: end..end, values: None });
        }
        (Verb::Forget, false) => return None,
        (_, _) => {}
    }
    let (name, len) = match token {
        Token::Word(word) => (word.to_ascii_lowercase(), word.len()),
        Token::Quoted(name) if !name.is_empty() => {
            (String::from_utf8(name.to_vec()).ok()?.replace("\"\"", "\"").into_bytes(), name.len() + 2)
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
    lexer.next_token();
    let end = lexer.offset();
    let values = if verb == Verb::Execute { values(lexer.clone()) } else { None };
    Some(Reference { verb, name: name.into(), range: end - len..end, values })
}

/// Counts the values that follow the name of what is run: expressions in parentheses.
fn values(mut lexer: Lexer<'_>) -> Option<u16> {
    if lexer.peek() != Token::Punct(b'(') {
        return Some(0);
    }
    let (mut depth, mut count) = (0_usize, 1_u16);
    loop {
        match lexer.next_token() {
            Token::Punct(b'(' | b'[') => depth += 1,
            Token::Punct(b')' | b']') => match depth.checked_sub(1)? {
                0 => return Some(count),
                outer => depth = outer,
            },
            Token::Punct(b',') if depth == 1 => count = count.checked_add(1)?,
            Token::End | Token::Broken | Token::Punct(b';') => return None,
            // Where it ends depends on a setting.
            Token::Str(StrKind::Plain | StrKind::Escape, string) if string.contains(&b'\\') => return None,
            Token::Str(StrKind::Other, _) => return None,
            Token::Word(_)
            | Token::Quoted(_)
            | Token::Str(..)
            | Token::Number(_)
            | Token::Param
            | Token::Punct(_)
            | Token::Operator(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_found_where_it_stands() {
        use Verb::{Deallocate, Execute, Prepare};
        for (text, expected) in [
            ("deallocate S1;", Some((Deallocate, "s1", 11..13))),
            ("DEALLOCATE PREPARE \"S 1\"", Some((Deallocate, "S 1", 19..24))),
            ("deallocate prepare", Some((Deallocate, "prepare", 11..18))),
            ("deallocate all", None),
            ("discard all", None),
            ("deallocate \"all\"", Some((Deallocate, "all", 11..16))),
            ("deallocate a; select 1", None),
            ("/* x */ execute p(1, 'x')", Some((Execute, "p", 16..17))),
            ("execute \"a\"\"b\"", Some((Execute, "a\"b", 8..14))),
            ("prepare p (int) as select $1", Some((Prepare, "p", 8..9))),
            ("prepare transaction 'p'", None),
            ("prepare transaction as select 1", Some((Prepare, "transaction", 8..19))),
            ("select execute p", None),
            ("execute", None),
        ] {
            let found = reference(text.as_bytes(), true);
            let found = found.map(|r| (r.verb, String::from_utf8(r.name.into()).unwrap(), r.range));
            assert_eq!(found, expected.map(|(verb, n, r)| (verb, n.to_owned(), r)), "{text}");
        }
    }

    #[test]
    fn the_values_of_what_is_run_are_counted() {
        for (text, expected) in [
            ("execute p", Some(0)),
            ("execute p;", Some(0)),
            ("execute p(1)", Some(1)),
            ("execute p (f(1, 2), array[3, 4], ',', (5), $x$,)$x$) ; select 1, 2", Some(5)),
            ("execute p(1, 2", None),
            ("execute p(1; select 2)", None),
            ("execute p('1)", None),
            (r"execute p('\', 1, '\')", None),
            ("prepare p(int, int) as select $1", None),
        ] {
            assert_eq!(reference(text.as_bytes(), true).unwrap().values, expected, "{text}");
        }
    }

    #[test]
    fn all_that_the_statements_of_a_text_name_is_found() {
        let text = b"begin; execute a('; execute b'); select execute; /* x */ deallocate C; prepare d as execute e;";
        let found: Vec<_> =
            references(text, true).iter().map(|r| (r.verb, String::from_utf8_lossy(&r.name).into_owned())).collect();
        let expected = [(Verb::Execute, "a"), (Verb::Deallocate, "c"), (Verb::Prepare, "d")];
        assert_eq!(found, expected.map(|(verb, name)| (verb, name.to_owned())));
        let verbs = |text: &[u8]| references(text, true).iter().map(|found| found.verb).collect::<Vec<_>>();
        assert_eq!(verbs(b"deallocate prepare all; discard plans; DISCARD ALL"), [Verb::Forget, Verb::Forget]);
    }
}
