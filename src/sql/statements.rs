//! The statements of a script, cut as psql cuts them: at semicolons outside of quotes, comments and parentheses, and of the
//! body of a function in standard SQL (`BEGIN ATOMIC ... END`). What is for psql itself is passed over: its commands
//! (`\set`), and the data of `COPY ... FROM STDIN`.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are what is not looked for")]

use super::lexer::{Lexer, Token};

/// A statement of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Statement<'a> {
    /// The line on which it begins, from 1; comments in front of it do not count.
    pub line: usize,
    /// It, with comments in front of it and without its semicolon.
    pub text: &'a [u8],
    /// Where in that its first word begins.
    pub first: usize,
}

/// Cuts a script into its statements.
#[derive(Debug, Clone)]
pub struct Statements<'a> {
    script: &'a [u8],
    at: usize,
    /// Lines that end before this place.
    lines: usize,
    counted: usize,
}

/// What psql remembers of a statement, to find the end of a function's body (psqlscan.l).
#[derive(Debug, Default)]
struct Words {
    count: usize,
    /// The first letters of the first words, as far as they are those that CREATE FUNCTION begins with.
    first: [u8; 4],
    body: usize,
    /// COPY, and FROM STDIN.
    copy: bool,
    from: bool,
    stdin: bool,
}

impl Words {
    fn see(&mut self, word: &[u8], in_parentheses: bool) {
        let is = |known: &str| word.eq_ignore_ascii_case(known.as_bytes());
        if let Some(first) = self.first.get_mut(self.count)
            && ["create", "or", "replace", "function", "procedure"].into_iter().any(is)
        {
            *first = word[0].to_ascii_lowercase();
        }
        self.copy |= self.count == 0 && is("copy");
        self.stdin |= self.from && is("stdin") && !in_parentheses;
        self.from = is("from");
        self.count += 1;
        let routine = matches!(self.first, [b'c', b'f' | b'p', ..] | [b'c', b'o', b'r', b'f' | b'p']);
        if routine && !in_parentheses {
            if is("begin") || (is("case") && self.body > 0) {
                self.body += 1;
            } else if is("end") {
                self.body = self.body.saturating_sub(1);
            }
        }
    }
}

impl<'a> Statements<'a> {
    /// Cuts this script.
    pub fn new(script: &'a [u8]) -> Self {
        Self { script, at: 0, lines: 0, counted: 0 }
    }

    /// The line of a place that is not before those that were asked for already.
    fn line(&mut self, place: usize) -> usize {
        self.lines += self.script[self.counted..place].iter().filter(|&&byte| byte == b'\n').count();
        self.counted = place;
        self.lines + 1
    }

    fn end_of_line(&self, from: usize) -> usize {
        let rest = self.script.get(from..).unwrap_or_default();
        from + rest.iter().position(|&byte| byte == b'\n').map_or(rest.len(), |at| at + 1)
    }

    /// Behind the data of a COPY, which ends with a line of its own.
    fn skip_data(&mut self) {
        self.at = self.end_of_line(self.at);
        while self.at < self.script.len() {
            let end = self.end_of_line(self.at);
            let line = self.script[self.at..end].trim_ascii_end();
            self.at = end;
            if line == b"\\." {
                return;
            }
        }
    }

    /// From `start` to the end of a statement; none if there is nothing but blanks, comments and psql's own commands.
    fn statement(&mut self, start: usize) -> Option<Statement<'a>> {
        let script = self.script;
        let mut words = Words::default();
        let (mut base, mut depth, mut first) = (start, 0usize, None);
        let mut lexer = Lexer::new(&script[base..], true);
        let end = loop {
            let before = base + lexer.offset();
            let token = lexer.next_token();
            let after = (base + lexer.offset()).min(script.len());
            let begins = match token {
                Token::Word(word) => after - word.len(),
                _ => before,
            };
            match token {
                Token::End => {
                    self.at = script.len();
                    break script.len();
                }
                Token::Broken if script.get(after) == Some(&b'\\') => {
                    self.at = self.end_of_line(after);
                    break after;
                }
                // A byte that no token begins with; but a quote or comment that does not end takes all the rest.
                Token::Broken if after < script.len() => {
                    base = after + 1;
                    lexer = Lexer::new(&script[base..], true);
                }
                Token::Broken => {
                    self.at = script.len();
                    first.get_or_insert(begins);
                    break script.len();
                }
                Token::Punct(b';') if depth == 0 && words.body == 0 => {
                    self.at = after;
                    break after - 1;
                }
                Token::Punct(b'(') => depth += 1,
                Token::Punct(b')') => depth = depth.saturating_sub(1),
                Token::Word(word) => words.see(word, depth > 0),
                _ => {}
            }
            first.get_or_insert(begins);
        };
        if words.copy && words.stdin {
            self.skip_data();
        }
        let first = first?;
        let line = self.line(first);
        Some(Statement { line, text: script[start..end].trim_ascii_end(), first: first - start })
    }
}

impl<'a> Iterator for Statements<'a> {
    type Item = Statement<'a>;

    fn next(&mut self) -> Option<Statement<'a>> {
        loop {
            let blank = self.script[self.at..].iter().position(|byte| !byte.is_ascii_whitespace())?;
            if let Some(found) = self.statement(self.at + blank) {
                return Some(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(script: &str) -> Vec<(usize, &str)> {
        let statements = Statements::new(script.as_bytes());
        statements.map(|found| (found.line, std::str::from_utf8(found.text).unwrap())).collect()
    }

    #[test]
    fn statements_end_at_semicolons_that_are_none_of_theirs() {
        assert_eq!(cut(" select 1 ;; select ';', \"a;b\"\n;"), [(1, "select 1"), (1, "select ';', \"a;b\"")]);
        assert_eq!(
            cut("-- one; two\nselect $a$;$$;$a$;\n\n/* ; /* ; */ ; */ table t"),
            [(2, "-- one; two\nselect $a$;$$;$a$"), (4, "/* ; /* ; */ ; */ table t")]
        );
        assert_eq!(cut("create rule r as on insert to t do (select 1; select 2);\nselect 3").len(), 2);
        assert_eq!(cut("select 'it''s;'; select E'\\';'; select U&'\\0041;'").len(), 3);
        assert!(cut("").is_empty() && cut(" ; -- x\n ;").is_empty() && cut("/* x */").is_empty());
    }

    #[test]
    fn a_function_in_standard_sql_is_one_statement() {
        let body =
            "create or replace function f() returns int begin atomic select case when true then 1 end; select 2; end";
        assert_eq!(cut(&format!("{body};\nselect 1;")), [(1, body), (2, "select 1")]);
        assert_eq!(cut("begin; select 1; end; create table function (); begin; end").len(), 6);
    }

    #[test]
    fn what_is_for_psql_is_passed_over() {
        let script = "\\set x 1\nselect :x, :'x';\n  \\echo it's\nselect 2 \\gset\ncopy t (a) from stdin;\n1;'\n\\.\nselect 3;\\q";
        assert_eq!(
            cut(script),
            [(2, "select :x, :'x'"), (4, "select 2"), (5, "copy t (a) from stdin"), (8, "select 3")]
        );
        assert_eq!(cut("copy t from stdin;\n1\n2").len(), 1);
    }

    #[test]
    fn what_does_not_end_is_one_statement_and_a_strange_byte_stops_nothing() {
        assert_eq!(cut("select 1;\nselect 'a; select 2;"), [(1, "select 1"), (2, "select 'a; select 2;")]);
        assert_eq!(cut("select E'\\").len(), 1);
        assert_eq!(cut("select 1 /* ;").len(), 1);
        assert_eq!(cut("select {x}; select $ ; select 3").len(), 3);
    }
}
