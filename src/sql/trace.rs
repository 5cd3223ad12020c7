//! Comments that carry the context of a trace (`traceparent`, as sqlcommenter writes it): another one for each execution
//! of what is the same statement.

use super::lexer::{Lexer, Token};

const WORD: &[u8] = b"traceparent=";

fn carries(comment: &[u8]) -> bool {
    comment.windows(WORD.len()).any(|window| window == WORD)
}

/// The text without such a comment at its beginning or its end; none if it has none there.
pub fn without_trace(text: &[u8], standard_strings: bool) -> Option<&[u8]> {
    if !carries(text) {
        return None;
    }
    let mut found = text;
    let trimmed = text.trim_ascii_start();
    if trimmed.starts_with(b"/*")
        && let Some(len) = trimmed.windows(2).position(|window| window == b"*/")
        && carries(&trimmed[..len])
        && !trimmed[2..len].windows(2).any(|window| window == b"/*")
    {
        found = &trimmed[len + 2..];
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
        found = &found[..end];
    }
    (found.len() < text.len()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

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
