//! Statements that begin or end a transaction and do nothing else: those that can be answered without a server.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are what the statement is not")]

use super::lexer::{Lexer, Token};

/// A statement that begins or ends a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// BEGIN, with whatever modes.
    Begin,
    /// START TRANSACTION, with whatever modes: the same under another command tag.
    Start,
    /// COMMIT or END.
    Commit,
    /// ROLLBACK or ABORT.
    Rollback,
}

impl Control {
    /// What a text does, if it is one such statement as PostgreSQL's grammar has it (`TransactionStmt` in gram.y) and
    /// nothing else. AND CHAIN does more.
    pub fn of(text: &[u8], standard_strings: bool) -> Option<Self> {
        let mut words = Words { lexer: Lexer::new(text, standard_strings), ahead: None };
        words.skip_semicolons();
        let control = match () {
            () if words.take("begin") => Self::Begin,
            () if words.take("start") => return (words.take("transaction") && words.modes()).then_some(Self::Start),
            () if words.take("commit") || words.take("end") => Self::Commit,
            () if words.take("rollback") || words.take("abort") => Self::Rollback,
            () => return None,
        };
        let _ = words.take("work") || words.take("transaction");
        let complete = match control {
            Self::Begin | Self::Start => words.modes(),
            Self::Commit | Self::Rollback => {
                (!words.take("and") || (words.take("no") && words.take("chain"))) && words.at_end()
            }
        };
        complete.then_some(control)
    }

    /// Whether a text is PREPARE TRANSACTION.
    pub fn prepares_transaction(text: &[u8], standard_strings: bool) -> bool {
        let mut words = Words { lexer: Lexer::new(text, standard_strings), ahead: None };
        words.skip_semicolons();
        if !(words.take("prepare") && words.take("transaction") && matches!(words.peek(), Token::Str(..))) {
            return false;
        }
        words.ahead = None;
        words.at_end()
    }

    /// Whether a text begins with a ROLLBACK of a whole transaction, and says more behind it.
    pub fn rolls_back_first(text: &[u8], standard_strings: bool) -> bool {
        let mut words = Words { lexer: Lexer::new(text, standard_strings), ahead: None };
        words.skip_semicolons();
        if !(words.take("rollback") || words.take("abort")) {
            return false;
        }
        let _ = words.take("work") || words.take("transaction");
        words.peek() == Token::Punct(b';')
    }

    /// Its command tag.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Begin => "BEGIN",
            Self::Start => "START TRANSACTION",
            Self::Commit => "COMMIT",
            Self::Rollback => "ROLLBACK",
        }
    }
}

struct Words<'a> {
    lexer: Lexer<'a>,
    ahead: Option<Token<'a>>,
}

impl<'a> Words<'a> {
    fn peek(&mut self) -> Token<'a> {
        *self.ahead.get_or_insert_with(|| self.lexer.next_token())
    }

    fn take(&mut self, word: &str) -> bool {
        let is = matches!(self.peek(), Token::Word(found) if found.eq_ignore_ascii_case(word.as_bytes()));
        if is {
            self.ahead = None;
        }
        is
    }

    fn skip_semicolons(&mut self) {
        while self.peek() == Token::Punct(b';') {
            self.ahead = None;
        }
    }

    fn at_end(&mut self) -> bool {
        self.skip_semicolons();
        self.peek() == Token::End
    }

    /// Transaction modes up to the end, with or without commas between them.
    fn modes(&mut self) -> bool {
        let mut after_comma = false;
        loop {
            if !after_comma && self.at_end() {
                return true;
            }
            let known = if self.take("isolation") {
                self.take("level")
                    && (self.take("serializable")
                        || (self.take("repeatable") && self.take("read"))
                        || (self.take("read") && (self.take("committed") || self.take("uncommitted"))))
            } else if self.take("read") {
                self.take("only") || self.take("write")
            } else {
                let _ = self.take("not");
                self.take("deferrable")
            };
            if !known {
                return false;
            }
            after_comma = self.peek() == Token::Punct(b',');
            if after_comma {
                self.ahead = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_begins_or_ends_a_transaction_and_nothing_else_is_taken_for_it() {
        for (text, expected) in [
            ("begin", Some(Control::Begin)),
            (" /* x */ BEGIN ; ; -- end", Some(Control::Begin)),
            ("begin work isolation level repeatable read, read only not deferrable", Some(Control::Begin)),
            ("start transaction read write", Some(Control::Start)),
            ("begin transaction isolation level read uncommitted", Some(Control::Begin)),
            ("commit", Some(Control::Commit)),
            ("END WORK;", Some(Control::Commit)),
            ("commit and no chain", Some(Control::Commit)),
            ("rollback transaction", Some(Control::Rollback)),
            ("abort", Some(Control::Rollback)),
            ("begin; select 1", None),
            ("begin read", None),
            ("begin read only,", None),
            ("begin isolation level chaos", None),
            ("begin not", None),
            ("begin 'x'", None),
            ("start", None),
            ("commit and chain", None),
            ("commit prepared 'x'", None),
            ("rollback to a", None),
            ("\"begin\"", None),
            ("select 1", None),
            ("", None),
        ] {
            assert_eq!(Control::of(text.as_bytes(), true), expected, "{text}");
        }
    }
}
