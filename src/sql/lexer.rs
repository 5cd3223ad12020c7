//! The words of a statement, past comments and every form of quote.
//!
//! PostgreSQL's lexical rules, after src/backend/parser/scan.l: nested comments, dollar quotes, `E''`, `U&''`, `B''`,
//! `X''` and `N''` strings, string continuation over a line break, quoted identifiers, operators. Text that ends inside
//! a quote or comment yields [`Token::Broken`]: whoever classifies takes that for "unknown".

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are what the statement is not")]

/// One token, borrowed from the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'a> {
    /// An unquoted identifier or keyword, as written.
    Word(&'a [u8]),
    /// A quoted identifier: what stands between the quotes, with doubled quotes still doubled.
    Quoted(&'a [u8]),
    /// A string constant: what stands between its quotes, as written.
    Str(StrKind, &'a [u8]),
    /// A numeric constant.
    Number(&'a [u8]),
    /// A parameter: `$1`.
    Param,
    /// `( ) [ ] , ; . :` and `::`, `..`, `:=` by their first byte.
    Punct(u8),
    /// An operator.
    Operator(&'a [u8]),
    /// The end of the text.
    End,
    /// The text ends inside a quote or comment, or has a byte that starts no token.
    Broken,
}

/// How the bytes of a string constant stand for its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrKind {
    /// `'...'` with only doubled quotes, and `$tag$...$tag$` with nothing special at all.
    Plain,
    /// Dollar-quoted: the value is the text.
    Dollar,
    /// `E'...'`, or any string while `standard_conforming_strings` is off: backslashes escape.
    Escape,
    /// `U&'...'`, `B'...'`, `X'...'`: no value that we read.
    Other,
}

/// Iterates over the tokens of a text.
#[derive(Debug, Clone)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    /// `standard_conforming_strings`: whether a backslash in a plain string is only a backslash.
    standard_strings: bool,
}

/// Byte classes, one look-up a byte.
const SPACE: u8 = 1;
const WORD_START: u8 = 2;
const WORD: u8 = 4;
const DIGIT: u8 = 8;
const OPERATOR: u8 = 16;
const PUNCT: u8 = 32;

static CLASS: [u8; 256] = {
    let mut table = [0u8; 256];
    let mut byte = 0usize;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation, reason = "counts to 255")]
        let b = byte as u8;
        table[byte] = match b {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0c | 0x0b => SPACE,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => WORD_START | WORD,
            b'0'..=b'9' => DIGIT | WORD,
            b'$' => WORD,
            b'+' | b'-' | b'*' | b'/' | b'<' | b'>' | b'=' | b'~' | b'!' | b'@' | b'#' | b'%' | b'^' | b'&' | b'|'
            | b'`' | b'?' => OPERATOR,
            b'(' | b')' | b'[' | b']' | b',' | b';' | b'.' | b':' => PUNCT,
            _ => 0,
        };
        byte += 1;
    }
    table
};

#[inline]
fn is(byte: u8, class: u8) -> bool {
    CLASS[usize::from(byte)] & class != 0
}

/// Whether a byte may go on a word.
#[inline]
pub(super) fn is_word(byte: u8) -> bool {
    is(byte, WORD)
}

impl<'a> Lexer<'a> {
    /// Starts at the beginning of `text`; `standard_strings` is the session's `standard_conforming_strings`.
    pub fn new(text: &'a [u8], standard_strings: bool) -> Self {
        Self { text, at: 0, standard_strings }
    }

    /// Where the next token will be looked for: the offset just behind the last one.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// The number of the parameter that was the last token; none if it is none that PostgreSQL takes.
    pub fn parameter(&self) -> Option<u16> {
        let digits = self.text.get(..self.at)?.rsplit(|byte| *byte == b'$').next()?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    }

    /// The token after this one, without taking it.
    pub fn peek(&self) -> Token<'a> {
        self.clone().next_token()
    }

    #[inline]
    fn byte(&self, at: usize) -> u8 {
        self.text.get(at).copied().unwrap_or(0)
    }

    /// Skips white space and comments; false if a comment does not end.
    #[inline]
    fn skip_blank(&mut self) -> bool {
        loop {
            let Some(&byte) = self.text.get(self.at) else { return true };
            if is(byte, SPACE) {
                self.at += 1;
            } else if byte == b'-' && self.byte(self.at + 1) == b'-' {
                self.skip_line();
            } else if byte == b'/' && self.byte(self.at + 1) == b'*' {
                if !self.skip_block() {
                    return false;
                }
            } else {
                return true;
            }
        }
    }

    fn skip_line(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.iter().position(|&b| b == b'\n' || b == b'\r').unwrap_or(rest.len());
    }

    /// Skips a block comment, which nests; false if it does not end.
    fn skip_block(&mut self) -> bool {
        let mut depth = 0usize;
        while self.at < self.text.len() {
            match (self.text[self.at], self.byte(self.at + 1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return true;
                    }
                }
                _ => self.at += 1,
            }
        }
        false
    }

    /// The next token.
    #[inline]
    pub fn next_token(&mut self) -> Token<'a> {
        if !self.skip_blank() {
            return Token::Broken;
        }
        let start = self.at;
        let Some(&byte) = self.text.get(start) else { return Token::End };
        let class = CLASS[usize::from(byte)];
        if class & WORD_START != 0 {
            return self.word(start, byte);
        }
        if class & DIGIT != 0 || (byte == b'.' && is(self.byte(start + 1), DIGIT)) {
            return self.number(start);
        }
        if class & PUNCT != 0 {
            self.at += 1;
            let second = self.byte(self.at);
            if (byte == b':' && (second == b':' || second == b'=')) || (byte == b'.' && second == b'.') {
                self.at += 1;
            }
            return Token::Punct(byte);
        }
        match byte {
            b'\'' => {
                self.at += 1;
                let kind = if self.standard_strings { StrKind::Plain } else { StrKind::Escape };
                self.string(kind)
            }
            b'"' => {
                self.at += 1;
                self.quoted_identifier()
            }
            b'$' => self.dollar(),
            _ if class & OPERATOR != 0 => self.operator(start),
            _ => Token::Broken,
        }
    }

    /// Skips to the next semicolon, quoted identifier or word that is `wanted`, past everything else, and gives it; or the
    /// end, or what breaks the text.
    pub fn skip_to(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Token<'a> {
        loop {
            let Some(&byte) = self.text.get(self.at) else { return Token::End };
            let class = CLASS[usize::from(byte)];
            if class & WORD_START != 0 {
                let rest = &self.text[self.at..];
                let len = rest.iter().position(|&b| !is(b, WORD)).unwrap_or(rest.len());
                if len > 1 {
                    self.at += len;
                    if wanted(&rest[..len]) {
                        return Token::Word(&rest[..len]);
                    }
                    continue;
                }
            } else if class & SPACE != 0 {
                self.at += 1;
                continue;
            }
            // One letter may be the prefix of a string; all else has rules of its own.
            match self.next_token() {
                token @ (Token::End | Token::Broken | Token::Quoted(_) | Token::Punct(b';')) => return token,
                // Behind a comment.
                Token::Word(word) if word.len() > 1 && wanted(word) => return Token::Word(word),
                Token::Word(_)
                | Token::Str(..)
                | Token::Number(_)
                | Token::Param
                | Token::Punct(_)
                | Token::Operator(_) => {}
            }
        }
    }

    #[inline]
    fn word(&mut self, start: usize, first: u8) -> Token<'a> {
        let rest = &self.text[start + 1..];
        self.at = start + 1 + rest.iter().position(|&b| !is(b, WORD)).unwrap_or(rest.len());
        let next = self.byte(self.at);
        // A one-letter word right before a quote is the prefix of a string; `U&` is two bytes with no space between.
        if self.at == start + 1 && (next == b'\'' || next == b'&') {
            match (first | 0x20, next) {
                (b'e', b'\'') => {
                    self.at += 1;
                    return self.string(StrKind::Escape);
                }
                (b'b' | b'x', b'\'') => {
                    self.at += 1;
                    return self.string(StrKind::Other);
                }
                (b'n', b'\'') => {
                    self.at += 1;
                    let kind = if self.standard_strings { StrKind::Plain } else { StrKind::Escape };
                    return self.string(kind);
                }
                (b'u', b'&') if self.byte(self.at + 1) == b'\'' => {
                    self.at += 2;
                    return self.string(StrKind::Other);
                }
                (b'u', b'&') if self.byte(self.at + 1) == b'"' => {
                    self.at += 2;
                    // Its escapes would have to be decoded to know the name: no name that we read.
                    return match self.quoted_identifier() {
                        Token::Quoted(_) => Token::Quoted(b""),
                        broken => broken,
                    };
                }
                _ => {}
            }
        }
        Token::Word(&self.text[start..self.at])
    }

    fn number(&mut self, start: usize) -> Token<'a> {
        // Digits, underscores, a radix prefix, a fraction, an exponent: nothing in it can hide another token, but a
        // range `1..2` (two dots) must not be taken for a fraction. Most are digits and nothing else.
        while is(self.byte(self.at), DIGIT) {
            self.at += 1;
        }
        while let Some(&byte) = self.text.get(self.at) {
            let dot = byte == b'.' && self.byte(self.at + 1) != b'.';
            let sign = (byte == b'+' || byte == b'-')
                && self.byte(self.at + 1).is_ascii_digit()
                && self.at > start
                && self.text[self.at - 1] | 0x20 == b'e'
                && !matches!(self.text.get(start..start + 2), Some(b"0x" | b"0X"));
            if byte == b'$' || !(is(byte, WORD) || dot || sign) {
                break;
            }
            self.at += 1;
        }
        Token::Number(&self.text[start..self.at])
    }

    /// The rest of a string constant, behind its opening quote.
    fn string(&mut self, kind: StrKind) -> Token<'a> {
        let start = self.at;
        loop {
            match self.text.get(self.at) {
                None => return Token::Broken,
                Some(b'\\') if kind == StrKind::Escape => self.at += 2,
                Some(b'\'') if self.byte(self.at + 1) == b'\'' => self.at += 2,
                Some(b'\'') => {
                    let end = self.at;
                    self.at += 1;
                    if !self.continues() {
                        return Token::Str(kind, &self.text[start..end]);
                    }
                    // The value is now in pieces: read to its end by the same rules, but with no value that we read.
                    return match self.string(kind) {
                        Token::Str(..) => Token::Str(StrKind::Other, b""),
                        broken => broken,
                    };
                }
                Some(_) => self.at += 1,
            }
        }
    }

    /// Whether the string constant just closed goes on behind a line break; if so, stands behind its next quote.
    fn continues(&mut self) -> bool {
        let (mut at, mut newline) = (self.at, false);
        loop {
            match self.byte(at) {
                b'\n' | b'\r' => {
                    newline = true;
                    at += 1;
                }
                b if is(b, SPACE) => at += 1,
                // In front of the line break, too: the comment ends with it (scan.l, `whitespace_with_newline`).
                b'-' if self.byte(at + 1) == b'-' => {
                    let rest = &self.text[at..];
                    at += rest.iter().position(|&b| b == b'\n' || b == b'\r').unwrap_or(rest.len());
                }
                b'\'' if newline => {
                    self.at = at + 1;
                    return true;
                }
                _ => return false,
            }
        }
    }

    fn quoted_identifier(&mut self) -> Token<'a> {
        let start = self.at;
        while let Some(&byte) = self.text.get(self.at) {
            self.at += 1;
            if byte == b'"' {
                if self.byte(self.at) != b'"' {
                    return Token::Quoted(&self.text[start..self.at - 1]);
                }
                self.at += 1;
            }
        }
        Token::Broken
    }

    /// `$1`, `$$...$$` or `$tag$...$tag$`.
    fn dollar(&mut self) -> Token<'a> {
        let start = self.at;
        let mut at = start + 1;
        if is(self.byte(at), DIGIT) {
            while is(self.byte(at), DIGIT) {
                at += 1;
            }
            self.at = at;
            return Token::Param;
        }
        while is(self.byte(at), WORD) && self.byte(at) != b'$' {
            at += 1;
        }
        if self.byte(at) != b'$' {
            return Token::Broken;
        }
        let tag = &self.text[start..=at];
        let body = at + 1;
        match self.text[body..].windows(tag.len()).position(|w| w == tag) {
            None => {
                self.at = self.text.len();
                Token::Broken
            }
            Some(len) => {
                self.at = body + len + tag.len();
                Token::Str(StrKind::Dollar, &self.text[body..body + len])
            }
        }
    }

    fn operator(&mut self, start: usize) -> Token<'a> {
        while let Some(&byte) = self.text.get(self.at) {
            let comment = matches!((byte, self.byte(self.at + 1)), (b'-', b'-') | (b'/', b'*'));
            if !is(byte, OPERATOR) || comment {
                break;
            }
            self.at += 1;
        }
        Token::Operator(&self.text[start..self.at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token<'_>> {
        let mut lexer = Lexer::new(text.as_bytes(), true);
        let mut tokens = Vec::new();
        loop {
            let token = lexer.next_token();
            tokens.push(token);
            if matches!(token, Token::End | Token::Broken) {
                return tokens;
            }
        }
    }

    fn words(text: &str) -> Vec<&str> {
        let words = tokens(text).into_iter().filter_map(|t| match t {
            Token::Word(w) => Some(std::str::from_utf8(w).unwrap()),
            _ => None,
        });
        words.collect()
    }

    #[test]
    fn words_hide_neither_in_comments_nor_in_quotes() {
        for text in [
            "a /* x /* y */ z */ b",
            "a -- x\n b",
            "a 'x '' y' b",
            "a E'x \\' y' b",
            "a \"x \"\" y\" b",
            "a $$ x $$ b",
            "a $t$ x $$ y $t$ b",
            "a U&'x' b",
            "a U&\"x\" b",
            "a X'1f' B'01' N'x' b",
            "a $1 b",
            "a 1.5e-3 b",
            "a 'x'\n'y' b",
            "a E'x'\n'y\\'' b",
            "a 'x' -- c\n b",
            "a-/*x*/b",
            "a+--x\nb",
            "a 'x\\' b",
        ] {
            assert_eq!(words(text), ["a", "b"], "{text}");
        }
    }

    #[test]
    fn a_backslash_escapes_in_a_plain_string_only_while_standard_strings_are_off() {
        let text = b"'x\\' y' z";
        let mut lexer = Lexer::new(text, false);
        assert_eq!(lexer.next_token(), Token::Str(StrKind::Escape, b"x\\' y"));
        assert_eq!(lexer.next_token(), Token::Word(b"z"));
        let mut lexer = Lexer::new(text, true);
        assert_eq!(lexer.next_token(), Token::Str(StrKind::Plain, b"x\\"));
    }

    #[test]
    fn a_string_goes_on_only_behind_a_line_break() {
        assert_eq!(tokens("'a' 'b'").len(), 3);
        assert_eq!(tokens("'a'\n  'b'"), [Token::Str(StrKind::Other, b""), Token::End]);
        assert_eq!(tokens("'a' -- c\n 'b'"), [Token::Str(StrKind::Other, b""), Token::End]);
        assert_eq!(tokens("'a' -- 'b'").len(), 2, "a comment in which the text ends");
        assert_eq!(tokens("'a' /* c */\n 'b'").len(), 3, "one of the other kind");
        assert_eq!(tokens("'a'\n-- c\n 'b'"), [Token::Str(StrKind::Other, b""), Token::End]);
    }

    #[test]
    fn text_that_ends_inside_a_quote_or_comment_is_broken() {
        for text in ["'x", "\"x", "/* x", "/* /* */", "$$ x $", "$t$ x $$", "E'x\\'", "$x", "\u{1}"] {
            assert_eq!(tokens(text).last(), Some(&Token::Broken), "{text:?}");
        }
    }

    #[test]
    fn operators_stop_where_a_comment_starts() {
        assert_eq!(
            tokens("1<=/*c*/2::int"),
            [
                Token::Number(b"1"),
                Token::Operator(b"<="),
                Token::Number(b"2"),
                Token::Punct(b':'),
                Token::Word(b"int"),
                Token::End
            ]
        );
        assert_eq!(tokens("a[1..2]").len(), 7);
    }

    #[test]
    fn skipping_stops_where_token_by_token_reading_finds_what_is_wanted() {
        let wanted = |word: &[u8]| word.starts_with(b"w");
        for text in [
            "a b, (wx) w1 + wy;",
            "e'w1' E'\\' w2' b'w' x'w' n'w' u&'w' U&\"w\" w3",
            "'w' $$w$$ $w$ w $w$ \"w\" /* w /* w */ w */ -- w\n w4.w5",
            "1.5w 1..2 .5 :w6 ::w7 a.w8[w9] $1 w",
            "; w; ;",
            "w 'unterminated",
            "w \u{1}",
        ] {
            let (mut slow, mut fast) = (Lexer::new(text.as_bytes(), true), Lexer::new(text.as_bytes(), true));
            loop {
                let expected = loop {
                    match slow.next_token() {
                        Token::Word(word) if word.len() > 1 && wanted(word) => break Token::Word(word),
                        token @ (Token::End | Token::Broken | Token::Quoted(_) | Token::Punct(b';')) => break token,
                        _ => {}
                    }
                };
                assert_eq!(fast.skip_to(wanted), expected, "{text}");
                if matches!(expected, Token::End | Token::Broken) {
                    break;
                }
            }
        }
    }

    #[test]
    fn no_text_makes_the_lexer_panic_or_stand_still() {
        let alphabet = b"a'\"$\\/*-. \n1eEuU&;(\xff\0x";
        let mut state = 0x2545_f491_4f6c_dd1du64;
        for _ in 0..20_000 {
            let mut text = Vec::new();
            for _ in 0..12 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                text.push(alphabet[usize::try_from(state % alphabet.len() as u64).unwrap()]);
            }
            let mut lexer = Lexer::new(&text, state & 1 == 0);
            for _ in 0..=text.len() {
                if matches!(lexer.next_token(), Token::End | Token::Broken) {
                    break;
                }
            }
            assert!(matches!(lexer.next_token(), Token::End | Token::Broken), "{text:?}");
        }
    }
}
