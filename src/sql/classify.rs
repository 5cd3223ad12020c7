//! Statement text -> what kind of command it is and what it may leave behind in its session.
//!
//! One pass over the words. Safe, never clever: what is not known is said to be unknown.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other tokens are what the statement is not")]

use super::lexer::{Lexer, StrKind, Token};
use super::plain;
use super::reads::calls;

/// What the names of our own prepared statements begin with (`session::prepared::PREFIX`).
const OURS: &[u8] = b"ambassador:";

/// Text past this is not looked at: its effects are unknown.
pub const MAX_TEXT: usize = 64 * 1024;

/// Settings by which the constants of a text are read, when it is prepared and not again.
pub const READING: [&str; 12] = [
    "array_nulls",
    "backslash_quote",
    "client_encoding",
    "datestyle",
    "default_text_search_config",
    "intervalstyle",
    "lc_monetary",
    "standard_conforming_strings",
    "timezone",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmloption",
];

/// What a statement may leave behind in the session that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Effects(u32);

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
    /// May end what an earlier statement left behind: DROP, CLOSE.
    pub const ENDING: Self = Self(1 << 11);
    /// Runs a statement that SQL prepared: it leaves behind what that one does.
    pub const EXECUTE: Self = Self(1 << 12);
    /// Takes a setting back to what the session began with: RESET, SET ... TO DEFAULT, DISCARD ALL.
    pub const RESET: Self = Self(1 << 13);
    /// UNLISTEN.
    pub const UNLISTEN: Self = Self(1 << 14);
    /// Looks at the prepared statements of its session.
    pub const LOOKING: Self = Self(1 << 15);

    /// NOTIFY, or `pg_notify()`.
    pub const NOTIFY: Self = Self(1 << 16);
    /// Asks where sequences stand in this session: `currval()`, `lastval()`.
    pub const ASKING: Self = Self(1 << 17);
    /// Makes the session forget that: DISCARD SEQUENCES or ALL.
    pub const FORGETTING: Self = Self(1 << 18);
    /// May move a sequence without saying so: INSERT and its like.
    pub const INSERTING: Self = Self(1 << 19);
    /// Makes, changes or drops objects: what its server has cached of them, or a library has in memory, nobody can ask.
    pub const DEFINING: Self = Self(1 << 20);

    /// Names a kind of object that may be, or bring, a function: what was known of functions may not hold any more.
    pub const FUNCTIONS: Self = Self(1 << 22);

    /// Calls functions that are not PostgreSQL's own: what those may leave is theirs.
    pub const CALLING: Self = Self(1 << 21);

    /// Sets for the rest of the transaction by what constants are read ([`READING`]): SET LOCAL, set_config(..., true).
    pub const LOCAL: Self = Self(1 << 23);

    /// The same, if a parameter says so: its value is the name.
    pub const LOCAL_NAMED: Self = Self(1 << 24);

    /// Effects that only the server itself can say the outcome of.
    pub const ASKED: Self = Self(
        Self::SETTING.0
            | Self::TEMP.0
            | Self::CURSOR.0
            | Self::PREPARE.0
            | Self::LISTEN.0
            | Self::UNLISTEN.0
            | Self::ADVISORY.0
            | Self::DISCARD.0
            | Self::UNKNOWN.0,
    );
    /// Effects after which the same text may mean something else on this server than on another.
    pub const MEANING: Self = Self(Self::SETTING.0 | Self::TEMP.0 | Self::DISCARD.0 | Self::UNKNOWN.0 | Self::LOCAL.0);
    /// Effects that nothing can undo, and nobody can ask about: such a connection serves nobody else.
    pub const LASTING: Self = Self(Self::LOAD.0 | Self::SEED.0);

    /// Everything of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether something of `other` is in this.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// What of this is in `other`, too.
    #[must_use]
    pub const fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What of this is not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
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
    /// Whether any of its statements is COPY: the server may read data instead of the next message.
    pub copies: bool,
}

impl Analysis {
    /// What is known of a text that nobody looked at.
    pub const UNKNOWN: Self =
        Self { first: Command::Other, statements: 1, effects: Effects::UNKNOWN, commits: true, copies: true };
}

/// Looks at a whole text, which may hold several statements.
pub fn analyse(text: &[u8], standard_strings: bool) -> Analysis {
    let mut analysis =
        Analysis { first: Command::Empty, statements: 0, effects: Effects::NONE, commits: false, copies: false };
    if text.len() > MAX_TEXT {
        return Analysis::UNKNOWN;
    }
    if plain::leaves_nothing(text) {
        return Analysis { statements: 1, first: Command::Other, ..analysis };
    }
    let mut lexer = Lexer::new(text, standard_strings);
    loop {
        match lexer.next_token() {
            Token::End => break,
            Token::Broken => {
                analysis.effects = analysis.effects.and(Effects::UNKNOWN);
                break;
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
    // Of what is not understood everything is asked for anyway.
    if !analysis.effects.has(Effects::UNKNOWN) && calls::may_call(text, standard_strings) {
        analysis.effects = analysis.effects.and(Effects::CALLING);
    }
    analysis
}

/// The same, for a text whose first word may begin or end a transaction, or drop a prepared statement; none for any other.
pub fn analyse_beginning(text: &[u8], standard_strings: bool) -> Option<Analysis> {
    // Of nearly every text three letters say that it is none.
    if let [first, second, third, ..] = text
        && first.is_ascii_alphabetic()
    {
        let begins = [first | 0x20, second | 0x20, third | 0x20];
        if !matches!(&begins, b"beg" | b"sta" | b"com" | b"end" | b"rol" | b"abo" | b"dea") {
            return None;
        }
    }
    let mut lexer = Lexer::new(text, standard_strings);
    let word = loop {
        match lexer.next_token() {
            Token::Word(word) => break word,
            Token::Punct(b';') => {}
            _ => return None,
        }
    };
    let word = Folded::new(word);
    let telling =
        matches!(word.get(), b"begin" | b"start" | b"commit" | b"end" | b"rollback" | b"abort" | b"deallocate");
    telling.then(|| analyse(text, standard_strings))
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

/// Words of interest within a statement, and what they may leave behind.
const TELLING: [(&[u8], Effects); 34] = [
    (b"currval", Effects::ASKING),
    (b"lastval", Effects::ASKING),
    (b"insert", Effects::INSERTING),
    (b"merge", Effects::INSERTING),
    (b"pg_notify", Effects::NOTIFY),
    (b"pg_prepared_statements", Effects::LOOKING),
    (b"pg_prepared_statement", Effects::LOOKING),
    (b"create", Effects::DEFINING),
    (b"alter", Effects::DEFINING),
    (b"drop", Effects::ENDING.and(Effects::DEFINING)),
    (b"function", Effects::FUNCTIONS),
    (b"procedure", Effects::FUNCTIONS),
    (b"routine", Effects::FUNCTIONS),
    (b"aggregate", Effects::FUNCTIONS),
    (b"extension", Effects::FUNCTIONS),
    (b"language", Effects::FUNCTIONS),
    (b"schema", Effects::FUNCTIONS),
    (b"close", Effects::ENDING),
    (b"temp", Effects::TEMP),
    (b"temporary", Effects::TEMP),
    (b"pg_temp", Effects::TEMP),
    (b"hold", Effects::CURSOR),
    (b"set_config", Effects::SETTING),
    (b"setseed", Effects::SEED),
    (b"seed", Effects::SEED),
    (b"nextval", Effects::SEQUENCE),
    (b"setval", Effects::SEQUENCE),
    (b"pg_advisory_lock", Effects::ADVISORY),
    (b"pg_advisory_lock_shared", Effects::ADVISORY),
    (b"pg_try_advisory_lock", Effects::ADVISORY),
    (b"pg_try_advisory_lock_shared", Effects::ADVISORY),
    (b"pg_advisory_unlock", Effects::ADVISORY),
    (b"pg_advisory_unlock_shared", Effects::ADVISORY),
    (b"pg_advisory_unlock_all", Effects::ADVISORY),
];

/// For each first letter, the lengths of the words of interest that begin with it, and their third letters, as bits:
/// nearly every word of nearly every statement is told from them by this alone.
static SHAPES: [(u32, u32); 256] = {
    let mut table = [(0u32, 0u32); 256];
    let mut at = 0;
    while at < TELLING.len() {
        let word = TELLING[at].0;
        let letters = [word[0], word[0].to_ascii_uppercase()];
        let mut of = 0;
        while of < letters.len() {
            let (lengths, thirds) = &mut table[letters[of] as usize];
            *lengths |= 1 << word.len();
            *thirds |= letter(word[2]);
            of += 1;
        }
        at += 1;
    }
    table
};

/// A letter, large or small, as a bit; what is none shares one with a letter.
const fn letter(byte: u8) -> u32 {
    1 << (byte & 31)
}

/// What a word within a statement says of what may be left behind.
#[inline]
pub(super) fn telling(word: &[u8]) -> Effects {
    // None is shorter.
    let [first, _, third, _, ..] = *word else { return Effects::NONE };
    let (lengths, thirds) = SHAPES[usize::from(first)];
    if word.len() >= 32 || lengths & (1 << word.len()) == 0 || thirds & letter(third) == 0 {
        return Effects::NONE;
    }
    let found = TELLING.iter().find(|(known, _)| known.eq_ignore_ascii_case(word));
    found.map_or(Effects::NONE, |(_, effects)| *effects)
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
            // Only what is local to the transaction ends with it for certain.
            let mut ahead = lexer.clone();
            let local = matches!(next_word(&mut ahead).get(), b"transaction" | b"constraints" | b"local");
            if !local || ahead.peek() == Token::Punct(b'.') {
                add(Effects::SETTING);
            } else {
                add(set_local(lexer.clone()));
            }
            if says_default(lexer.clone()) {
                add(Effects::RESET);
            }
        }
        b"reset" => add(Effects::SETTING.and(Effects::RESET)),
        b"listen" => add(Effects::LISTEN),
        b"unlisten" => add(Effects::UNLISTEN),
        b"notify" => add(Effects::NOTIFY),
        b"prepare" => {
            if next_word(&mut lexer.clone()).get() == b"transaction" {
                command = Command::Commit;
            } else {
                add(Effects::PREPARE);
            }
        }
        b"deallocate" => add(Effects::PREPARE),
        b"execute" => add(Effects::EXECUTE),
        b"load" => add(Effects::LOAD),
        b"discard" => {
            add(Effects::DISCARD);
            match next_word(&mut lexer.clone()).get() {
                b"all" => add(Effects::RESET.and(Effects::FORGETTING)),
                b"sequences" => add(Effects::FORGETTING),
                _ => {}
            }
        }
        // Their text is a string: whatever stands in it may be run.
        b"do" | b"call" => add(Effects::UNKNOWN),
        b"copy" => {
            analysis.copies = true;
            add(Effects::INSERTING);
        }
        _ => {}
    }
    body(first, lexer, analysis);
    command
}

/// Whether the word DEFAULT stands in the rest of a statement.
fn says_default(mut ahead: Lexer<'_>) -> bool {
    loop {
        match ahead.skip_to(|word| word.eq_ignore_ascii_case(b"default")) {
            Token::Word(_) => return true,
            Token::Quoted(_) => {}
            _ => return false,
        }
    }
}

/// What a SET leaves behind that says LOCAL where `ahead` stands, or something else that ends with the transaction.
pub(super) fn set_local(mut ahead: Lexer<'_>) -> Effects {
    if next_word(&mut ahead).get() != b"local" {
        return Effects::NONE;
    }
    match ahead.next_token() {
        // SET LOCAL TIME ZONE, NAMES, XML OPTION.
        Token::Word(name) if [&b"time"[..], b"names", b"xml"].iter().any(|own| own.eq_ignore_ascii_case(name)) => {
            Effects::LOCAL
        }
        Token::Word(name) | Token::Quoted(name) => local(name),
        _ => Effects::NONE,
    }
}

/// What it is to set this for the rest of a transaction.
fn local(name: &[u8]) -> Effects {
    let read_by = READING.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(name));
    if read_by { Effects::LOCAL } else { Effects::NONE }
}

/// Whether one of these values names a setting that constants are read by.
pub fn reads_constants<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> bool {
    values.any(|value| local(value) == Effects::LOCAL)
}

/// What a call of `set_config` leaves behind, of which `ahead` stands behind the name: hardly anything if it is said to be
/// local.
pub(super) fn set_config(mut ahead: Lexer<'_>) -> Effects {
    let mut depth = 0usize;
    let mut last = [Token::End; 2];
    let mut start = ahead.clone();
    start.next_token();
    let name = match (start.next_token(), start.next_token()) {
        (Token::Str(StrKind::Plain, name), Token::Punct(b',')) => local(name),
        (Token::Param, Token::Punct(b',')) => Effects::LOCAL_NAMED,
        // It is made up when it is run.
        _ => Effects::LOCAL,
    };
    loop {
        let token = ahead.next_token();
        match token {
            Token::Punct(b'(' | b'[') => depth += 1,
            Token::Punct(b')') if depth == 1 => break,
            Token::Punct(b')' | b']') => depth = depth.saturating_sub(1),
            Token::End | Token::Broken | Token::Punct(b';') => return Effects::SETTING,
            _ => {}
        }
        if depth == 0 {
            return Effects::SETTING;
        }
        last = [last[1], token];
    }
    match last {
        [Token::Punct(b','), Token::Word(word)] if word.eq_ignore_ascii_case(b"true") => name,
        [Token::Punct(b','), Token::Str(StrKind::Plain, b"true" | b"t" | b"on" | b"1")] => name,
        _ => Effects::SETTING,
    }
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
            // An empty one stands for escapes that were not decoded: it may be any name.
            Token::Quoted(b"") => add(Effects::UNKNOWN),
            // Names of ours on the server: whatever it is that runs there.
            Token::Quoted(name) if name.starts_with(OURS) => add(Effects::UNKNOWN),
            Token::Word(word) | Token::Quoted(word) => match telling(word) {
                Effects::SETTING => add(set_config(lexer.clone())),
                found => add(found),
            },
            Token::Str(..) | Token::Number(_) | Token::Param | Token::Punct(_) | Token::Operator(_) => {}
        }
        token = lexer.skip_to(|word| !telling(word).is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_statement_may_leave_behind_is_seen_in_every_spelling_of_it() {
        for (text, effects) in [
            ("select 1", Effects::NONE),
            ("select temperature, holding, setval2 from pg_advisory", Effects::NONE),
            ("select 'set_config', $$nextval$$ -- hold\n /* temp */", Effects::NONE),
            ("begin; set local role x; set transaction read only; SET CONSTRAINTS all deferred; commit", Effects::NONE),
            ("set local datestyle = 'SQL, DMY'; set local x = 1", Effects::LOCAL),
            ("set local \"TimeZone\" to 'UTC'", Effects::LOCAL),
            ("SET LOCAL TIME ZONE 'UTC'", Effects::LOCAL),
            ("select set_config('timezone', 'UTC', true)", Effects::LOCAL),
            ("select set_config('search_path', $1, true), set_config('a.b', $2, 'true')", Effects::NONE),
            ("select set_config($1, $2, true)", Effects::LOCAL_NAMED),
            ("select set_config(a, $2, true) from b", Effects::LOCAL),
            ("set x = 1", Effects::SETTING),
            // Settings of an extension that is called like a keyword.
            ("set local.x = 1", Effects::SETTING),
            ("set transaction . x = 1", Effects::SETTING),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Effects::SETTING),
            ("select 1; reset all", Effects::SETTING.and(Effects::RESET)),
            ("select pg_catalog.Set_Config('a.b', 'c', false)", Effects::SETTING),
            ("select \"set_config\"('a.b', 'c', false)", Effects::SETTING),
            ("select U&\"\\0073et_config\"('a.b', 'c', false)", Effects::UNKNOWN),
            ("create TEMP table t()", Effects::TEMP.and(Effects::DEFINING)),
            ("select 1 into temporary t", Effects::TEMP),
            ("create table pg_temp.t()", Effects::TEMP.and(Effects::DEFINING)),
            ("declare c cursor with hold for select 1", Effects::CURSOR),
            ("prepare s as select 1", Effects::PREPARE),
            ("prepare transaction 'x'", Effects::NONE),
            ("execute s", Effects::EXECUTE),
            ("deallocate all", Effects::PREPARE),
            ("listen c", Effects::LISTEN),
            ("unlisten *", Effects::UNLISTEN),
            ("set work_mem to default", Effects::SETTING.and(Effects::RESET)),
            ("set a.b = 'default'", Effects::SETTING),
            ("select set_config('a.b', f(x, '('), true), 1", Effects::CALLING),
            ("select lower('F(x)') from t where a in (1)", Effects::NONE),
            ("select set_config($1, $2, 't')", Effects::LOCAL_NAMED),
            ("select set_config('a.b', 'c', $1)", Effects::SETTING),
            ("select set_config('a.b', 'c', not true)", Effects::SETTING),
            ("select \"ambassador:1\"", Effects::UNKNOWN),
            ("select * from pg_catalog.pg_prepared_statements", Effects::LOOKING),
            ("drop table t", Effects::ENDING.and(Effects::DEFINING)),
            ("alter table t add c int", Effects::DEFINING),
            ("select created, alteration from dropped", Effects::NONE),
            ("close all", Effects::ENDING),
            ("discard all", Effects::DISCARD.and(Effects::RESET).and(Effects::FORGETTING)),
            ("select currval('s'), lastval()", Effects::ASKING),
            ("with x as (select pg_advisory_lock(1)) select * from x", Effects::ADVISORY),
            ("select pg_try_advisory_lock_shared(1)", Effects::ADVISORY),
            ("select pg_advisory_unlock_all()", Effects::ADVISORY),
            ("select pg_advisory_xact_lock(1)", Effects::NONE),
            ("load 'auto_explain'", Effects::LOAD),
            ("select nextval('s'), setseed(0)", Effects::SEQUENCE.and(Effects::SEED)),
            ("discard plans", Effects::DISCARD),
            ("do $$ begin end $$", Effects::UNKNOWN),
            ("call p()", Effects::UNKNOWN),
            ("select ('unterminated", Effects::UNKNOWN),
        ] {
            assert_eq!(analyse(text.as_bytes(), true).effects, effects, "{text}");
        }
    }

    #[test]
    fn a_text_that_begins_or_ends_a_transaction_or_drops_a_statement_is_told_by_its_first_word() {
        for (text, telling) in [
            ("begin", true),
            ("  BEGIN read only", true),
            ("/* x */ -- y\n commit", true),
            (";;Rollback", true),
            ("start transaction", true),
            ("End", true),
            ("abort", true),
            ("DEALLOCATE all", true),
            ("select 1", false),
            ("starts", false),
            ("be", false),
            ("", false),
            ("declare c cursor for select 1", false),
        ] {
            assert_eq!(analyse_beginning(text.as_bytes(), true).is_some(), telling, "{text}");
        }
    }

    #[test]
    fn the_end_of_a_transaction_is_seen_and_a_rollback_to_a_savepoint_is_none() {
        for (text, first, statements, commits) in [
            ("", Command::Empty, 0, false),
            (" ; -- nothing\n;", Command::Empty, 0, false),
            ("BEGIN", Command::Begin, 1, false),
            ("start transaction read only", Command::Begin, 1, false),
            ("commit", Command::Commit, 1, true),
            ("/* done */ End", Command::Commit, 1, true),
            ("prepare transaction 'x'", Command::Commit, 1, true),
            ("rollback", Command::Rollback, 1, false),
            ("abort work", Command::Rollback, 1, false),
            ("rollback to savepoint a", Command::Other, 1, false),
            ("rollback transaction to a", Command::Other, 1, false),
            ("rollback prepared 'x'", Command::Other, 1, false),
            ("insert into t values (1); commit", Command::Other, 2, true),
        ] {
            let found = analyse(text.as_bytes(), true);
            assert_eq!((found.first, found.statements, found.commits), (first, statements, commits), "{text}");
        }
    }
}
