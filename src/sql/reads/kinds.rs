//! Kinds of statements: which of them may be reads, by the words that they begin with.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are what the statement is not")]

use super::query::End;
use super::{Folded, Modes, Objects, Run, Scan, Span, Transaction, Why};
use crate::sql::lexer::Token;

type Kind = (Run, Option<Transaction>);

fn write(why: Why) -> Kind {
    (Run::Write(why), None)
}

fn transaction(what: Transaction) -> Kind {
    (Run::Write(Why::Transaction), Some(what))
}

fn run(result: Result<(), Why>, otherwise: Run) -> Kind {
    (result.map_or_else(Run::Write, |()| otherwise), None)
}

/// Whether a token is this word, which is given in lower case.
pub(super) fn is(token: Token<'_>, word: &[u8]) -> bool {
    matches!(token, Token::Word(found) if found.eq_ignore_ascii_case(word))
}

impl<'a, O: Objects + ?Sized> Scan<'a, '_, O> {
    /// Looks at a statement. It is read to its end unless it is a write.
    pub(super) fn statement(&mut self, first: Token<'a>) -> Kind {
        let word = match first {
            Token::Punct(b'(') => return run(self.query(first, End::Statement), Run::Read),
            Token::Word(word) => word,
            Token::Broken => return write(Why::Unclear),
            _ => return write(Why::Command(self.here())),
        };
        let Some(folded) = Folded::word(word) else { return write(Why::Unclear) };
        match folded.get() {
            b"select" | b"values" | b"table" | b"with" => run(self.query(first, End::Statement), Run::Read),
            b"show" => run(self.show(), Run::Read),
            b"explain" => run(self.explain(), Run::Read),
            b"copy" => run(self.copy(), Run::Read),
            b"declare" => run(self.declare(), Run::Cursor),
            b"fetch" | b"move" | b"close" => run(self.rest(), Run::Cursor),
            b"begin" => transaction(Transaction::Begin(self.modes())),
            b"start" => transaction(Transaction::Begin(self.modes())),
            b"commit" | b"end" => transaction(self.end(true)),
            b"rollback" | b"abort" => transaction(self.end(false)),
            b"savepoint" | b"release" => transaction(Transaction::Savepoint),
            b"prepare" if is(self.lexer.peek(), b"transaction") => transaction(Transaction::TwoPhase),
            b"prepare" | b"execute" | b"deallocate" | b"discard" | b"listen" | b"unlisten" | b"load" => {
                write(Why::Session)
            }
            b"set" => self.set(),
            b"reset" => write(Why::Setting),
            b"lock" => write(Why::Locking),
            _ => write(Why::Command(Span::new(self.text, word))),
        }
    }

    /// Goes on behind the end of a statement of which nothing more is asked; false if the text cannot be read further.
    pub(super) fn skip_statement(&mut self) -> bool {
        loop {
            match self.lexer.skip_to(|_| false) {
                Token::Punct(b';') | Token::End => return true,
                Token::Broken => return false,
                _ => {}
            }
        }
    }

    fn here(&self) -> Span {
        let end = self.lexer.offset();
        Span::new(self.text, self.text.get(end.saturating_sub(1)..end).unwrap_or_default())
    }

    fn rest(&mut self) -> Result<(), Why> {
        if self.skip_statement() { Ok(()) } else { Err(Why::Unclear) }
    }

    /// A client may ask so whether it has found the primary.
    fn show(&mut self) -> Result<(), Why> {
        match Folded::of(self.lexer.peek()) {
            Some(name) if matches!(name.get(), b"transaction_read_only" | b"in_hot_standby") => Err(Why::Role),
            _ => self.rest(),
        }
    }

    /// A read if what it explains is one, with ANALYZE or without.
    fn explain(&mut self) -> Result<(), Why> {
        let mut token = self.lexer.next_token();
        while is(token, b"analyze") || is(token, b"analyse") || is(token, b"verbose") {
            token = self.lexer.next_token();
        }
        if token == Token::Punct(b'(') && !begins_query(self.lexer.peek()) {
            self.skip_parentheses()?;
            token = self.lexer.next_token();
        }
        if begins_query(token) { self.query(token, End::Statement) } else { Err(Why::Command(self.of(token))) }
    }

    fn of(&self, token: Token<'_>) -> Span {
        if let Token::Word(word) = token { Span::new(self.text, word) } else { self.here() }
    }

    /// Skips what stands in the parentheses that were just opened.
    fn skip_parentheses(&mut self) -> Result<(), Why> {
        let mut depth = 1usize;
        while depth > 0 {
            match self.lexer.next_token() {
                Token::Punct(b'(') => depth += 1,
                Token::Punct(b')') => depth -= 1,
                Token::End | Token::Broken | Token::Punct(b';') => return Err(Why::Unclear),
                _ => {}
            }
        }
        Ok(())
    }

    /// COPY of a query or a table TO STDOUT.
    fn copy(&mut self) -> Result<(), Why> {
        let mut token = self.lexer.next_token();
        if token == Token::Punct(b'(') {
            self.query(token, End::Parenthesis)?;
            token = self.lexer.next_token();
        } else {
            let mut schema = None;
            let mut name = token;
            token = self.lexer.next_token();
            while token == Token::Punct(b'.') {
                schema = Some(name);
                name = self.lexer.next_token();
                token = self.lexer.next_token();
            }
            self.relation(schema, name)?;
            if token == Token::Punct(b'(') {
                self.skip_parentheses()?;
                token = self.lexer.next_token();
            }
        }
        if is(token, b"to") && is(self.lexer.next_token(), b"stdout") { self.rest() } else { Err(Why::Copy) }
    }

    /// DECLARE of a cursor that ends with its transaction.
    fn declare(&mut self) -> Result<(), Why> {
        let mut last = Token::End;
        loop {
            let token = self.lexer.next_token();
            match token {
                Token::Word(_) if is(token, b"for") => break,
                Token::Word(_) if is(token, b"hold") && is(last, b"with") => return Err(Why::Session),
                Token::Word(_) | Token::Quoted(_) => last = token,
                _ => return Err(Why::Unclear),
            }
        }
        let token = self.lexer.next_token();
        if begins_query(token) { self.query(token, End::Statement) } else { Err(Why::Unclear) }
    }

    fn end(&mut self, commits: bool) -> Transaction {
        let mut token = self.lexer.peek();
        if is(token, b"work") || is(token, b"transaction") {
            self.lexer.next_token();
            token = self.lexer.peek();
        }
        if is(token, b"prepared") {
            return Transaction::TwoPhase;
        }
        if is(token, b"to") {
            return Transaction::Savepoint;
        }
        let chains = is(token, b"and") && {
            self.lexer.next_token();
            is(self.lexer.peek(), b"chain")
        };
        Transaction::End { commits, chains }
    }

    fn set(&mut self) -> Kind {
        let mut ahead = self.lexer.clone();
        let mut next = || ahead.next_token();
        let first = next();
        if is(first, b"transaction") && !matches!(self.second(), Token::Punct(b'.') | Token::Operator(_)) {
            self.lexer.next_token();
            return transaction(Transaction::Set(self.modes()));
        }
        if is(first, b"session") && is(next(), b"characteristics") && is(next(), b"as") && is(next(), b"transaction") {
            self.lexer = ahead;
            return (Run::Write(Why::Setting), Some(Transaction::Default(self.modes())));
        }
        write(Why::Setting)
    }

    /// The token behind the next one.
    fn second(&self) -> Token<'a> {
        let mut ahead = self.lexer.clone();
        ahead.next_token();
        ahead.next_token()
    }

    /// Modes up to the end of the statement, which stays for whoever skips it.
    fn modes(&mut self) -> Modes {
        let mut modes = Modes::default();
        if is(self.lexer.peek(), b"work") || is(self.lexer.peek(), b"transaction") {
            self.lexer.next_token();
        }
        loop {
            let Token::Word(word) = self.lexer.peek() else {
                match self.lexer.peek() {
                    Token::Punct(b',') => {}
                    Token::Punct(b';') | Token::End => return modes,
                    _ => return Modes { others: true, ..modes },
                }
                self.lexer.next_token();
                continue;
            };
            self.lexer.next_token();
            let mut take = |word: &[u8]| {
                let found = is(self.lexer.peek(), word);
                if found {
                    self.lexer.next_token();
                }
                found
            };
            match word.to_ascii_lowercase().as_slice() {
                b"read" if take(b"only") => modes.read_only = Some(true),
                b"read" if take(b"write") => modes.read_only = Some(false),
                b"isolation" if take(b"level") => {
                    modes.serializable = Some(take(b"serializable"));
                    let _ = (take(b"repeatable") && take(b"read"))
                        || (take(b"read") && (take(b"committed") || take(b"uncommitted")));
                }
                b"not" | b"deferrable" => {}
                _ => modes.others = true,
            }
        }
    }
}

/// Whether a query begins with a token.
fn begins_query(token: Token<'_>) -> bool {
    match token {
        Token::Punct(b'(') => true,
        Token::Word(word) => {
            [&b"select"[..], b"values", b"table", b"with"].iter().any(|known| word.eq_ignore_ascii_case(known))
        }
        _ => false,
    }
}
