//! What PostgreSQL knows of a prepared statement, as far as its text alone says it.

use super::lexer::{Lexer, Token, is_word};

/// How many parameters a statement has for which types of `declared` were declared; none where the text does not say it.
///
/// PostgreSQL looks into a statement when it is prepared only if it can be planned (`parse_analyze_varparams`): a `$1` in any
/// other one is no parameter.
pub fn parameters(text: &[u8], declared: u16) -> Option<u16> {
    const PLANNED: [&[u8]; 8] = [b"select", b"insert", b"update", b"delete", b"merge", b"values", b"with", b"table"];
    let is_planned = first_word(text).is_some_and(|word| is_any(word, &PLANNED));
    let highest = highest_parameter(text, true).filter(|_| is_planned)?;
    // What reads differently by the other way to read strings says nothing.
    (highest_parameter(text, false) == Some(highest)).then_some(highest.max(declared))
}

/// How many parameters a statement has, if it is given another number of `values`; none as well where either is not known. The
/// `types` are those that are declared, as they stand in a Parse.
///
/// PostgreSQL says so before it looks at the text again. A server that lacks the statement would say first what is wrong with
/// its text by now, where that is something: a table that is gone.
#[cold]
pub fn miscounted(text: &[u8], types: &[u8], values: Option<u16>) -> Option<u16> {
    let declared = u16::from_be_bytes(*types.first_chunk::<2>()?);
    let needed = parameters(text, declared)?;
    (values? != needed).then_some(needed)
}

/// So many parameters of type text, as they stand in a Parse.
pub fn texts(count: u16) -> Vec<u8> {
    const TEXT: u32 = 25;
    let mut types = count.to_be_bytes().to_vec();
    types.extend(TEXT.to_be_bytes().repeat(usize::from(count)));
    types
}

/// Whether a statement returns no rows, and has the parameters that are declared for it and no others, whatever the database
/// looks like.
pub fn is_bare(text: &[u8]) -> bool {
    const BARE: [&[u8]; 24] = [
        b"abort",
        b"alter",
        b"begin",
        b"close",
        b"comment",
        b"commit",
        b"deallocate",
        b"discard",
        b"do",
        b"drop",
        b"end",
        b"grant",
        b"listen",
        b"lock",
        b"move",
        b"notify",
        b"prepare",
        b"release",
        b"reset",
        b"revoke",
        b"rollback",
        b"savepoint",
        b"set",
        b"unlisten",
    ];
    first_word(text).is_some_and(|word| is_any(word, &BARE))
}

/// Whether a statement changes rows of a table and returns none, whatever the database looks like.
pub fn only_changes(text: &[u8]) -> bool {
    const CHANGING: [&[u8]; 4] = [b"insert", b"update", b"delete", b"merge"];
    // The word itself is enough to be in doubt, wherever it stands.
    let returning = |part: &[u8]| part.eq_ignore_ascii_case(b"returning");
    first_word(text).is_some_and(|word| is_any(word, &CHANGING)) && !text.windows(9).any(returning)
}

fn first_word(text: &[u8]) -> Option<&[u8]> {
    let Token::Word(word) = Lexer::new(text, true).next_token() else { return None };
    Some(word)
}

fn is_any(word: &[u8], words: &[&[u8]]) -> bool {
    words.iter().any(|known| word.eq_ignore_ascii_case(known))
}

/// The highest number of a parameter in a text; none if it is none that PostgreSQL takes, or the text cannot be read.
fn highest_parameter(text: &[u8], standard_strings: bool) -> Option<u16> {
    let mut lexer = Lexer::new(text, standard_strings);
    let mut highest = 0;
    loop {
        match lexer.next_token() {
            Token::End => return Some(highest),
            Token::Broken => return None,
            Token::Param => {
                let read = &text[..lexer.offset()];
                let digits = read.rsplit(|byte| *byte == b'$').next()?;
                // Before PostgreSQL 15 `1a$1` was a number and a name.
                if read[..read.len() - digits.len() - 1].last().is_some_and(|byte| is_word(*byte)) {
                    return None;
                }
                highest = highest.max(lexer.parameter()?);
            }
            Token::Word(_)
            | Token::Quoted(_)
            | Token::Str(..)
            | Token::Number(_)
            | Token::Punct(_)
            | Token::Operator(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_those_that_postgresql_would_see() {
        let count = |text: &str| parameters(text.as_bytes(), 0);
        assert_eq!(count("select 1"), Some(0));
        assert_eq!(count(" /* $3 */ SELECT $2, $10+$1 -- $11"), Some(10));
        assert_eq!(count("with x as (select 1) select $1::text || '$7' || $x$ $8 $x$ || \"$9\" || a$6"), Some(1));
        assert_eq!(count("values ($65535)"), Some(65_535));
        assert_eq!(count("select $65536"), None);
        assert_eq!(count("select $1, 'open"), None);
        assert_eq!(parameters(b"insert into t values ($1)", 3), Some(3));
        // Where the quote ends depends on a setting.
        assert_eq!(count(r"select '\', $1, '\'"), None);
        for unplanned in [
            "prepare p (int) as select $1 * 2",
            "create function f(int) returns int return $1 + 1",
            "copy (select $1) to stdout",
            "explain select $1",
            "declare c cursor for select $1",
            "",
            "(select $1)",
        ] {
            assert_eq!(count(unplanned), None, "{unplanned}");
        }
    }

    #[test]
    fn what_changes_rows_and_may_return_them_does_not_only_change_them() {
        for text in ["insert into t values ($1)", "/* x */ Update t set x = 1", "delete from t", "merge into t"] {
            assert!(only_changes(text.as_bytes()), "{text}");
        }
        for text in ["insert into t values (1) RETURNING x", "with x as (select 1) delete from t", "select 1", ""] {
            assert!(!only_changes(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_returns_rows_or_may_have_parameters_is_not_bare() {
        for bare in ["close h", "-- x\nSET a = 1", "rollback", "Prepare p as select 1", "move 2 in h"] {
            assert!(is_bare(bare.as_bytes()), "{bare}");
        }
        for other in
            ["fetch h", "show a", "declare c cursor for select $1", "explain select 1", "call p()", "", "\"set\""]
        {
            assert!(!is_bare(other.as_bytes()), "{other}");
        }
    }
}
