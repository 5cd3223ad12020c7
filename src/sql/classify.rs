//! Statement text -> what kind of command it is and what it may leave behind in its session.
//!
//! One pass over the words. Safe, never clever: what is not known is said to be unknown.

use super::lexer::{Lexer, Token};

/// Text past this is not looked at: its effects are unknown.
pub const MAX_TEXT: usize = 64 * 1024;

/// What a statement may leave behind in the session that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effects(u16);

impl Effects {
    /// Nothing outlives the transaction.
    pub const NONE: Self = Self(0);
    /// Settings: SET, RESET, set_config(), SET ROLE, SET SESSION AUTHORIZATION.
    pub const SETTING: Self = Self(1);
    /// Temporary objects.
    pub const TEMP: Self = Self(1 << 1);
    /// A cursor WITH HOLD.
    pub const CURSOR: Self = Self(1 << 2);
    /// SQL-level prepared statements: PREPARE, EXECUTE, DEALLOCATE.
    pub const PREPARE: Self = Self(1 << 3);
    /// LISTEN or UNLISTEN.
    pub const LISTEN: Self = Self(1 << 4);
    /// A session-level advisory lock taken or released.
    pub const ADVISORY: Self = Self(1 << 5);
    /// A loaded library.
    pub const LOAD: Self = Self(1 << 6);
    /// The position of a sequence in this session (`currval`, `lastval`) and its cache.
    pub const SEQUENCE: Self = Self(1 << 7);
    /// The random seed.
    pub const SEED: Self = Self(1 << 8);
    /// DISCARD.
    pub const DISCARD: Self = Self(1 << 9);
    /// Something that was not understood.
    pub const UNKNOWN: Self = Self(1 << 10);

    /// Everything of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether something of `other` is in this.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether nothing is in this.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// The command a text begins with, as far as anything here depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// No statement at all: white space, comments, semicolons.
    Empty,
    /// BEGIN or START TRANSACTION.
    Begin,
    /// COMMIT, END, PREPARE TRANSACTION: ends a transaction and may make it durable.
    Commit,
    /// ROLLBACK or ABORT of a whole transaction.
    Rollback,
    /// Any other command.
    Other,
}

/// What is known of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Analysis {
    /// The command of its first statement.
    pub first: Command,
    /// How many statements it has; stops counting at 255.
    pub statements: u8,
    /// What it may leave behind.
    pub effects: Effects,
    /// Whether any of its statements is COMMIT or its like.
    pub commits: bool,
}

impl Analysis {
    /// What is known of a text that nobody looked at.
    pub const UNKNOWN: Self = Self { first: Command::Other, statements: 1, effects: Effects::UNKNOWN, commits: true };
}

/// Looks at a whole text, which may hold several statements.
pub fn analyse(text: &[u8], standard_strings: bool) -> Analysis {
    let mut analysis = Analysis { first: Command::Empty, statements: 0, effects: Effects::NONE, commits: false };
    if text.len() > MAX_TEXT {
        return Analysis::UNKNOWN;
    }
    let mut lexer = Lexer::new(text, standard_strings);
    loop {
        match lexer.next_token() {
            Token::End => return analysis,
            Token::Broken => {
                analysis.effects = analysis.effects.and(Effects::UNKNOWN);
                return analysis;
            }
            Token::Punct(b';') => {}
            token => {
                let command = statement(token, &mut lexer, &mut analysis);
                if analysis.statements == 0 {
                    analysis.first = command;
                }
                analysis.statements = analysis.statements.saturating_add(1);
                analysis.commits |= command == Command::Commit;
            }
        }
    }
}

/// A word in lower case, as far as it can be a keyword or a name we know; longer ones are none.
struct Folded {
    bytes: [u8; 32],
    len: usize,
}

impl Folded {
    #[inline]
    fn new(word: &[u8]) -> Self {
        let mut bytes = [0; 32];
        let len = if word.len() <= bytes.len() { word.len() } else { 0 };
        for (to, from) in bytes.iter_mut().zip(&word[..len]) {
            *to = from.to_ascii_lowercase();
        }
        Self { bytes, len }
    }

    #[inline]
    fn get(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The next token if it is a word, in lower case.
fn next_word(lexer: &mut Lexer<'_>) -> Folded {
    match lexer.peek() {
        Token::Word(word) => {
            lexer.next_token();
            Folded::new(word)
        }
        _ => Folded::new(b""),
    }
}

/// Looks at one statement from its first token to its semicolon.
fn statement(first: Token<'_>, lexer: &mut Lexer<'_>, analysis: &mut Analysis) -> Command {
    let Token::Word(word) = first else {
        body(first, lexer, analysis);
        return Command::Other;
    };
    let mut add = |effects| analysis.effects = analysis.effects.and(effects);
    let mut command = Command::Other;
    match Folded::new(word).get() {
        b"begin" | b"start" => command = Command::Begin,
        b"commit" | b"end" => command = Command::Commit,
        b"rollback" | b"abort" => {
            let mut ahead = lexer.clone();
            let mut next = next_word(&mut ahead);
            if matches!(next.get(), b"work" | b"transaction") {
                next = next_word(&mut ahead);
            }
            command = if next.get() == b"to" { Command::Other } else { Command::Rollback };
            if next.get() == b"prepared" {
                command = Command::Other;
            }
        }
        b"set" => {
            // Only the transaction's own modes and constraints end with it for certain.
            let mut ahead = lexer.clone();
            if !matches!(next_word(&mut ahead).get(), b"transaction" | b"constraints") {
                add(Effects::SETTING);
            }
        }
        b"reset" => add(Effects::SETTING),
        b"listen" | b"unlisten" => add(Effects::LISTEN),
        b"prepare" => {
            if next_word(&mut lexer.clone()).get() == b"transaction" {
                command = Command::Commit;
            } else {
                add(Effects::PREPARE);
            }
        }
        b"execute" | b"deallocate" => add(Effects::PREPARE),
        b"load" => add(Effects::LOAD),
        b"discard" => add(Effects::DISCARD),
        b"do" | b"call" => add(Effects::UNKNOWN),
        _ => {}
    }
    body(first, lexer, analysis);
    command
}

/// Looks at the words of a statement up to its semicolon.
fn body(first: Token<'_>, lexer: &mut Lexer<'_>, analysis: &mut Analysis) {
    let mut add = |effects| analysis.effects = analysis.effects.and(effects);
    let mut token = first;
    // `BEGIN ATOMIC ... END` of a function body holds semicolons; CREATE FUNCTION leaves nothing behind by itself.
    loop {
        match token {
            Token::End | Token::Punct(b';') => return,
            Token::Broken => return add(Effects::UNKNOWN),
            Token::Word(word) => match Folded::new(word).get() {
                b"temp" | b"temporary" | b"pg_temp" => add(Effects::TEMP),
                b"hold" => add(Effects::CURSOR),
                b"set_config" => add(Effects::SETTING),
                b"setseed" | b"seed" => add(Effects::SEED),
                b"nextval" | b"setval" => add(Effects::SEQUENCE),
                b"pg_advisory_lock"
                | b"pg_advisory_lock_shared"
                | b"pg_try_advisory_lock"
                | b"pg_try_advisory_lock_shared"
                | b"pg_advisory_unlock"
                | b"pg_advisory_unlock_shared"
                | b"pg_advisory_unlock_all" => add(Effects::ADVISORY),
                _ => {}
            },
            Token::Quoted(_) => {}
            Token::Str(..) | Token::Number(_) | Token::Param | Token::Punct(_) | Token::Operator(_) => {}
        }
        token = lexer.next_token();
    }
}
