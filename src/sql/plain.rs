//! Plain SELECTs, told from their bytes alone: many are, and taking one apart costs ten times as much.
//!
//! Without parentheses nothing in a text is called, and nothing in it is another statement. It matters not whether what is
//! looked for stands in a string or a comment, nor what a text means that is no SQL: nobody runs it.

use super::lexer::is_word;

/// Whether a text is one SELECT that can leave nothing behind in its session. Beside what parentheses may hide that is INTO
/// TEMP, `pg_temp`, and our own view of `pg_prepared_statements`.
pub(super) fn leaves_nothing(text: &[u8]) -> bool {
    behind_select(text).is_some_and(|rest| !any(rest, suspicious))
}

/// Whether a text is one SELECT that only reads, in a database where nothing whose name does not begin with `pg_` can do more
/// without parentheses and dots. Beside what makes the above suspicious that is INTO, a locking clause (FOR UPDATE and its
/// like), and a name behind a dot: `t.f` may be `f(t)`.
pub(super) fn reads(text: &[u8]) -> bool {
    behind_select(text).is_some_and(|rest| {
        !any(rest, |[a, b, c, d]| {
            suspicious([a, b, c, d])
                | is(a, b'.')
                | (is(a | 0x20, b'i') & is(b | 0x20, b'n') & is(c | 0x20, b't') & is(d | 0x20, b'o'))
                // Behind FOR stands no letter.
                | (is(a | 0x20, b'f') & is(b | 0x20, b'o') & is(c | 0x20, b'r') & (1 - letter(d)))
        })
    })
}

/// The text behind its first word, if that is SELECT, and without a last semicolon.
fn behind_select(text: &[u8]) -> Option<&[u8]> {
    let (word, rest) = text.split_at_checked(6)?;
    if !word.eq_ignore_ascii_case(b"select") {
        return None;
    }
    let rest = rest.trim_ascii_end();
    let rest = rest.strip_suffix(b";").unwrap_or(rest);
    // What follows it decides whether that is the first word.
    rest.first().is_some_and(|byte| !is_word(*byte)).then_some(rest)
}

#[inline(always)]
fn is(byte: u8, wanted: u8) -> u8 {
    u8::from(byte == wanted)
}

#[inline(always)]
fn letter(byte: u8) -> u8 {
    u8::from((byte | 0x20).wrapping_sub(b'a') < 26)
}

/// A parenthesis, a semicolon, a quoted name, or one of the beginnings `tem` and `pg_`.
#[inline(always)]
fn suspicious([a, b, c, _]: [u8; 4]) -> u8 {
    is(a, b'(')
        | is(a, b';')
        | is(a, b'"')
        | (is(a | 0x20, b't') & is(b | 0x20, b'e') & is(c | 0x20, b'm'))
        | (is(a | 0x20, b'p') & is(b | 0x20, b'g') & is(c, b'_'))
}

/// Whether this is 1 for a byte and the three behind it, anywhere; behind the end there are zeros.
#[inline(always)]
fn any(text: &[u8], one: impl Fn([u8; 4]) -> u8) -> bool {
    /// So many positions at a time: the compiler makes a few wide comparisons of that.
    const WIDE: usize = 16;
    let at = |position: usize| text.get(position).copied().unwrap_or(0);
    let slowly = |from: usize| (from..text.len()).any(|i| one([at(i), at(i + 1), at(i + 2), at(i + 3)]) != 0);
    let Some(last) = text.len().checked_sub(WIDE + 3) else { return slowly(0) };
    let mut found = [0; WIDE];
    for start in (0..last).step_by(WIDE).chain([last]) {
        let Some(bytes) = text[start..].first_chunk::<{ WIDE + 3 }>() else { return true };
        for (i, found) in found.iter_mut().enumerate() {
            *found |= one([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        }
    }
    found != [0; WIDE] || slowly(last + WIDE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::reads::{Plain, Run};
    use crate::sql::{access, analyse};

    #[test]
    fn a_plain_select_is_known_by_its_bytes_and_nothing_else_is_taken_for_one() {
        for text in ["select 1", "SELECT a, 'b'[1] FROM t WHERE aid = 12345", "Select\n1 ;\n ", "select*from t"] {
            assert!(leaves_nothing(text.as_bytes()) && reads(text.as_bytes()), "{text}");
        }
        for text in ["", "select", "selects 1", "select$1", "select\u{e9}", "with x", "sel", "select 1; ;", "table t"] {
            assert!(!leaves_nothing(text.as_bytes()) && !reads(text.as_bytes()), "{text}");
        }
        for len in 1..100 {
            let text = format!("select {}", "pgtmpe_forxint".repeat(len));
            assert!(leaves_nothing(text.as_bytes()) && reads(text.as_bytes()), "{text}");
            assert_eq!(analyse(text.as_bytes(), true), analyse(b"select 1", true));
            let access = access(text.as_bytes(), true, &Plain);
            assert_eq!((access.run, access.statements, access.transaction), (Run::Read, 1, None));
        }
    }

    #[test]
    fn what_is_looked_for_is_found_at_every_place() {
        for (hidden, leaves) in [
            ("(", true),
            (";", true),
            ("\"", true),
            ("temp", true),
            ("TEM", true),
            ("Pg_", true),
            ("pg_", true),
            (".", false),
            ("into", false),
            ("INTO", false),
            ("for ", false),
            ("For\n", false),
            ("FOR/", false),
        ] {
            for before in 0..70 {
                for after in 1..40 {
                    let text = format!("select {}{hidden}{}", "x".repeat(before), "y".repeat(after));
                    assert!(!reads(text.as_bytes()), "{text}");
                    assert_eq!(leaves_nothing(text.as_bytes()), !leaves, "{text}");
                }
            }
        }
        assert!(!reads(b"select 1 from t for") && !reads(b"select a into"));
    }
}
