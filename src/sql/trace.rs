//! Comments that carry the context of a trace (`traceparent`, as sqlcommenter writes it): another one for each execution
//! of what is the same statement.

use super::lexer::{Lexer, Token};

const WORD: &[u8] = b"traceparent=";
/// How long the value of a `traceparent` is.
const VALUE: usize = 55;

fn carries(comment: &[u8]) -> bool {
    comment.windows(WORD.len()).any(|window| window == WORD)
}

/// The text without such a comment at its beginning or its end; none if it has none there.
pub fn without_trace(text: &[u8], standard_strings: bool) -> Option<&[u8]> {
    apart(text, standard_strings).map(|(_, text, _)| text)
}

/// The trace and the span that such a comment names, in hexadecimal digits: `traceparent='00-TRACE-SPAN-FLAGS'`, as W3C's Trace
/// Context has it, with the quotes as they are or in percent signs.
pub fn traceparent(text: &[u8], standard_strings: bool) -> Option<(&str, &str)> {
    let (front, _, back) = apart(text, standard_strings)?;
    [back, front].into_iter().find_map(|comment| {
        let at = comment.windows(WORD.len()).position(|window| window == WORD)?;
        let value = &comment[at + WORD.len()..];
        let value = value.strip_prefix(b"'").or_else(|| value.strip_prefix(b"%27")).unwrap_or(value);
        let value = std::str::from_utf8(value.get(..VALUE)?).ok()?;
        let mut parts = value.split('-');
        let mut part = |len: usize| {
            let is_hex = |part: &&str| part.len() == len && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            parts.next().filter(is_hex)
        };
        let (_, trace, span, _) = (part(2)?, part(32)?, part(16)?, part(2)?);
        Some((trace, span))
    })
}

/// A text's comments of a trace in front and behind, and what is between them; none if it has none there.
fn apart(text: &[u8], standard_strings: bool) -> Option<(&[u8], &[u8], &[u8])> {
    if !carries(text) {
        return None;
    }
    let (mut found, mut front, mut back) = (text, &text[..0], &text[..0]);
    let trimmed = text.trim_ascii_start();
    if trimmed.starts_with(b"/*")
        && let Some(len) = trimmed.windows(2).position(|window| window == b"*/")
        && carries(&trimmed[..len])
        && !trimmed[2..len].windows(2).any(|window| window == b"/*")
    {
        (front, found) = trimmed.split_at(len + 2);
    }
    let mut lexer = Lexer::new(found, standard_strings);
    let mut end = 0;
    loop {
        match lexer.next_token() {
            Token::End => break,
            // Who knows where it ends.
            Token::Broken => return None,
            Token::Word(_)
            | Token::Quoted(_)
            | Token::Str(..)
            | Token::Number(_)
            | Token::Param
            | Token::Punct(_)
            | Token::Operator(_) => end = lexer.offset(),
        }
    }
    if carries(&found[end..]) {
        (found, back) = found.split_at(end);
    }
    (found.len() < text.len()).then_some((front, found, back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_from_such_a_comment_only() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let value = format!("00-{trace}-{span}-01");
        for (text, found) in [
            (format!("select 1 /*a='b',traceparent='{value}'*/"), true),
            (format!("/*traceparent=%27{value}%27*/ select 1"), true),
            (format!("select 1 -- traceparent={value}"), true),
            (format!("select 'traceparent={value}'"), false),
            (format!("select 1 /*traceparent='{}'*/", value.replace('b', "x")), false),
            (format!("select 1 /*traceparent='{}'*/", &value[..40]), false),
            ("select 1 /*traceparent=".to_owned(), false),
        ] {
            assert_eq!(traceparent(text.as_bytes(), true), found.then_some((trace, span)), "{text}");
        }
    }

    #[test]
    fn only_a_comment_with_a_trace_before_or_behind_the_statement_is_left_out() {
        for (text, expected) in [
            ("select 1 /*traceparent='00-a-b-01'*/", Some("select 1")),
            ("select 1 -- x\n /*a='b',traceparent='00'*/ ;", None),
            ("/*traceparent='00'*/ select 1", Some(" select 1")),
            ("select 1", None),
            ("select 'traceparent=' /* hint */", None),
            ("select /*traceparent='00'*/ 1", None),
            ("/*+ SeqScan(t) */ select 1 /*traceparent='00'*/", Some("/*+ SeqScan(t) */ select 1")),
            ("select 'open /*traceparent='00'*/", None),
        ] {
            assert_eq!(without_trace(text.as_bytes(), true), expected.map(str::as_bytes), "{text}");
        }
    }
}
