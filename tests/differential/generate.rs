//! Makes a random legal session from a seed.

use super::statements::{
    CHANNELS, CONSTANTS, ERRORS, KEPT, LARGE, MEANINGS, PARAMETERS, READS, SELECTS, SETTINGS, STARTUP, WRITES,
};
use crate::support::Random;
use crate::support::client::{bind, close, cstr, describe, execute, flush, message, parse, query, sync};
use std::time::Duration;

/// One turn of a conversation: what is sent, and what is read before the next turn.
#[derive(Debug, Clone)]
pub struct Turn {
    pub send: Vec<u8>,
    /// Reads until so many messages with one of `until`'s tags have come.
    pub until: &'static [u8],
    pub count: usize,
    /// How long the client thinks before it says so, where that gives others the time to use its server.
    pub pause: Duration,
    /// For people.
    pub text: String,
}

/// As a count: one more if the turn before ended with the server asking for COPY data.
pub const ANSWER_OF_COPY: usize = usize::MAX;

/// How a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Terminate, then close.
    Polite,
    /// Close without a word.
    Close,
    /// Send part of a message, then close.
    HalfMessage(usize),
    /// Ask for something and leave before the answer.
    Unanswered,
    /// Close in the middle of the data of a COPY.
    InCopy,
}

/// A whole session.
#[derive(Debug, Clone)]
pub struct Session {
    pub seed: u64,
    /// Parameters of its startup packet, beside user and database.
    pub startup: Vec<(&'static str, String)>,
    pub turns: Vec<Turn>,
    pub ending: Ending,
    /// Splits what is sent into pieces of at most this size.
    pub slice: Option<usize>,
}

/// What the generator believes of the transaction. It need not be right: it only steers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tx {
    None,
    Open,
    Failed,
}

struct Generator {
    random: Random,
    seed: u64,
    tx: Tx,
    turns: Vec<Turn>,
    names: usize,
    /// The client has asked for settings at its login.
    asked: bool,
}

impl Session {
    pub fn generate(seed: u64) -> Self {
        let mut generator =
            Generator { random: Random::new(seed), seed, tx: Tx::None, turns: Vec::new(), names: 0, asked: false };
        let startup = generator.startup();
        generator.asked = !startup.is_empty();
        generator.begin();
        // Before settings of its own keep what others have left away from it.
        if generator.random.one_in(3) {
            generator.unnamed();
        }
        let turns = 3 + generator.random.below(26);
        for _ in 0..turns {
            generator.turn();
        }
        let random = &mut generator.random;
        let ending = match random.below(9) {
            0 => Ending::Close,
            1 => Ending::HalfMessage(1 + random.below(20)),
            2 => Ending::Unanswered,
            3 => Ending::InCopy,
            _ => Ending::Polite,
        };
        let slice = if random.one_in(3) { Some(1 + random.below(40)) } else { None };
        Self { seed, startup, turns: generator.turns, ending, slice }
    }
}

impl Generator {
    fn sql(&self, text: &str) -> String {
        text.replace('@', &format!("s{}", self.seed)).replace('#', &self.seed.to_string())
    }

    fn values(&self, values: &[Option<&str>]) -> Vec<Option<String>> {
        values.iter().map(|value| value.map(|text| self.sql(text))).collect()
    }

    /// What the client asks for at its login: most ask for little.
    fn startup(&mut self) -> Vec<(&'static str, String)> {
        if self.random.one_in(3) {
            return vec![("application_name", "differential".to_owned())];
        }
        let mut startup = Vec::new();
        for (name, values) in STARTUP {
            if self.random.one_in(4) {
                let value = *self.random.choose(values);
                startup.push((*name, self.sql(value)));
            }
        }
        startup
    }

    fn push(&mut self, send: Vec<u8>, until: &'static [u8], count: usize, text: impl Into<String>) {
        let state = match self.tx {
            Tx::None => "",
            Tx::Open => "[tx] ",
            Tx::Failed => "[failed] ",
        };
        let pause = match self.random.below(8) {
            0 | 1 => Duration::from_millis(2),
            2 => Duration::from_millis(6),
            _ => Duration::ZERO,
        };
        self.turns.push(Turn { send, until, count, pause, text: format!("{state}{}", text.into()) });
    }

    fn push_query(&mut self, text: &str) {
        let sql = self.sql(text);
        self.push(query(&sql), b"Z", 1, sql);
    }

    /// The session's own schemas, so that sessions do not meet in the database.
    fn begin(&mut self) {
        let sql = self.sql(
            "drop schema if exists @, @_a, @_b cascade; create schema @; create schema @_a; create schema @_b; \
             create table @.t (id serial primary key, v int, s text); \
             insert into @.t(v, s) values (10, 'ten'), (20, 'twenty'), (30, null); \
             create table @_a.w as select 'from a' as x, 1 as y; \
             create table @_b.w as select 'from b' as x, i as y from generate_series(1, 2) i; \
             create function @.setter(text, text) returns void language plpgsql \
             as $$ begin perform set_config($1, $2, false); end $$; \
             create function @.outer(text, text) returns void language sql as $$ select @.setter($1, $2) $$; \
             create function @.tell(text) returns text language plpgsql \
             as $$ begin perform pg_notify('@', $1); return $1; end $$; \
             create function @.told() returns trigger language plpgsql \
             as $$ begin perform @.tell('row ' || new.id); return new; end $$; \
             create trigger told after update on @.t for each row execute function @.told(); \
             grant all on schema @, @_a, @_b to public; grant all on all tables in schema @, @_a to public; \
             grant all on all sequences in schema @ to public",
        );
        self.push(query(&sql), b"Z", 1, "set up");
    }

    fn turn(&mut self) {
        match self.random.below(33) {
            0..=6 => self.simple(),
            7..=8 => self.transaction(),
            9..=13 => self.extended(),
            14..=15 => self.pipeline(),
            16 => self.flushed(),
            17 => self.copy_out(),
            18..=19 => self.copy_in(),
            20 => self.cursor(),
            21 => self.function_call(),
            22 | 28 => self.across_a_change(),
            23 => self.portal(),
            24 => self.two_phase(),
            25 => self.large_object(),
            30..=31 => self.channels(),
            32 => self.unnamed(),
            _ => self.multi(),
        }
    }

    fn statement(&mut self) -> String {
        let list = match self.random.below(16) {
            0..=2 => SELECTS,
            3..=4 => WRITES,
            5 => ERRORS,
            6..=9 => SETTINGS,
            10..=12 => READS,
            _ => KEPT,
        };
        let text = *self.random.choose(list);
        if std::ptr::eq(list, ERRORS)
            && self.tx == Tx::Open
            && !text.is_empty()
            && text != ";"
            && !text.starts_with("--")
        {
            self.tx = Tx::Failed;
        }
        self.sql(text)
    }

    fn simple(&mut self) {
        if self.random.one_in(8) {
            let text = *self.random.choose(CONSTANTS);
            let sql = self.sql(text);
            if self.random.one_in(3) {
                return self.push(query(&sql), b"Z", 1, sql);
            }
            let batch = [parse("constant", &sql), bind("", "constant", &[]), execute("", 0), close(b'S', "constant")];
            return self.push([batch.concat(), sync()].concat(), b"Z", 1, format!("extended {sql}"));
        }
        if self.random.one_in(12) {
            let sql = match self.random.below(4) {
                0 => format!("{}; {}", self.reference(), self.reference()),
                1 => {
                    let name = *self.random.choose(&["s1", "\"S1\""]);
                    let dropped = *self.random.choose(&["all", name]);
                    let end = if self.random.one_in(2) { format!("; execute {name}") } else { String::new() };
                    format!("deallocate {dropped}; prepare {name} as select 'by sql'{end}")
                }
                _ => self.reference(),
            };
            return self.push(query(&sql), b"Z", 1, sql);
        }
        let before = self.tx;
        let sql = self.statement();
        let after = std::mem::replace(&mut self.tx, before);
        self.push(query(&sql), b"Z", 1, sql);
        self.tx = after;
    }

    /// One of several statements of a message or batch. A reset takes settings back to what the client had asked for at its
    /// login only behind the whole of that.
    fn one_of_many(&mut self) -> String {
        loop {
            let sql = self.statement();
            let resets = ["reset", "default", "discard all"].iter().any(|word| sql.contains(word));
            // What such a statement returns is decided when it is prepared: prepared again elsewhere, p1 may exist by then.
            if sql.starts_with("execute p") {
                continue;
            }
            if !self.asked || !resets || sql.contains("authorization") {
                return sql;
            }
        }
    }

    fn multi(&mut self) {
        let count = 2 + self.random.below(3);
        let before = self.tx;
        let sql = (0..count).map(|_| self.one_of_many()).collect::<Vec<_>>().join("; ");
        self.tx = before;
        self.push(query(&sql), b"Z", 1, sql);
    }

    fn transaction(&mut self) {
        let sql = match self.tx {
            Tx::None => {
                let begin = *self.random.choose(&[
                    "begin",
                    "start transaction",
                    "begin isolation level serializable",
                    "BEGIN READ ONLY",
                    "begin; select 1",
                    "begin work isolation level repeatable read, read write",
                ]);
                self.tx = Tx::Open;
                begin
            }
            Tx::Open => match self.random.below(8) {
                0..=2 => {
                    self.tx = Tx::None;
                    "commit"
                }
                3 => {
                    self.tx = Tx::None;
                    "rollback"
                }
                4 => *self.random.choose(&["savepoint a", "savepoint b"]),
                5 => *self.random.choose(&["rollback to savepoint a", "rollback to b"]),
                6 => *self.random.choose(&["release savepoint a", "release b"]),
                _ => *self.random.choose(&["commit and chain", "rollback and chain"]),
            },
            Tx::Failed => match self.random.below(4) {
                0 => "rollback to savepoint a",
                1 => {
                    self.tx = Tx::None;
                    "commit"
                }
                _ => {
                    self.tx = Tx::None;
                    "rollback"
                }
            },
        };
        if self.random.one_in(3) {
            let batch = [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
            self.push(batch, b"Z", 1, format!("extended {sql}"));
        } else {
            self.push(query(sql), b"Z", 1, sql);
        }
    }

    /// A name for a statement or portal: few, so that they collide.
    fn name(&mut self) -> String {
        ["", "", "s1", "s2", "a longer name of a statement", "S1"][self.random.below(6)].to_owned()
    }

    /// SQL about a statement that may have been prepared by the protocol.
    fn reference(&mut self) -> String {
        let name = *self.random.choose(&["s1", "s2", "\"a longer name of a statement\"", "\"S1\""]);
        match self.random.below(6) {
            0..=1 => format!("deallocate {name}"),
            2 => format!("DEALLOCATE PREPARE {name}"),
            3 => "deallocate all".to_owned(),
            _ => format!("execute {name}"),
        }
    }

    /// Messages of one batch, without its Sync.
    fn batch(&mut self) -> (Vec<u8>, String) {
        let (mut bytes, mut text) = (Vec::new(), Vec::new());
        let mut add = |message: Vec<u8>, what: String| {
            bytes.extend(message);
            text.push(what);
        };
        for _ in 0..1 + self.random.below(3) {
            if self.random.one_in(8) {
                // Under no name: what EXECUTE runs names nothing itself.
                let (sql, portal) = (self.reference(), self.name());
                add(parse("", &sql), format!("P {sql}"));
                if self.random.one_in(3) {
                    add(describe(b'S', ""), "D S".into());
                }
                add(bind(&portal, "", &[]), format!("B {portal:?}"));
                add(execute(&portal, 0), format!("E {portal:?}"));
                continue;
            }
            let (sql, values) = if self.random.one_in(2) {
                (self.one_of_many(), Vec::new())
            } else {
                let (sql, values) = *self.random.choose(PARAMETERS);
                (self.sql(sql), self.values(values))
            };
            let values: Vec<Option<&str>> = values.iter().map(Option::as_deref).collect();
            let (statement, portal) = (self.name(), self.name());
            if !self.random.one_in(4) {
                add(parse(&statement, &sql), format!("P {statement:?} {sql}"));
            }
            if self.random.one_in(3) {
                add(describe(b'S', &statement), format!("D S {statement:?}"));
            }
            if !self.random.one_in(5) {
                add(bind(&portal, &statement, &values), format!("B {portal:?} {statement:?} {values:?}"));
                if self.random.one_in(2) {
                    add(describe(b'P', &portal), format!("D P {portal:?}"));
                }
                let limit = [0, 0, 1, 2, 100][self.random.below(5)];
                for _ in 0..1 + self.random.below(2) {
                    add(execute(&portal, limit), format!("E {portal:?} {limit}"));
                }
                if self.random.one_in(4) {
                    add(close(b'P', &portal), format!("C P {portal:?}"));
                }
            }
            if self.random.one_in(3) {
                add(close(b'S', &statement), format!("C S {statement:?}"));
            }
            if self.random.one_in(8) {
                add(flush(), "H".into());
            }
        }
        (bytes, text.join(", "))
    }

    fn extended(&mut self) {
        let (mut bytes, text) = self.batch();
        bytes.extend(sync());
        self.push(bytes, b"Z", 1, format!("{text}, S"));
    }

    /// Several batches and simple queries in one write.
    fn pipeline(&mut self) {
        let count = 2 + self.random.below(4);
        let (mut bytes, mut texts) = (Vec::new(), Vec::new());
        for _ in 0..count {
            if self.random.one_in(3) {
                let before = self.tx;
                let sql = self.statement();
                self.tx = before;
                bytes.extend(query(&sql));
                texts.push(format!("Q {sql}"));
            } else {
                let (batch, text) = self.batch();
                bytes.extend(batch);
                bytes.extend(sync());
                texts.push(format!("{text}, S"));
            }
        }
        self.push(bytes, b"Z", count, texts.join(", "));
    }

    /// A batch whose first half is answered before the second half is sent, as drivers do that ask for types first.
    fn flushed(&mut self) {
        let text = *self.random.choose(SELECTS);
        let sql = self.sql(text);
        self.names += 1;
        let name = format!("f{}", self.names);
        if self.random.one_in(3) {
            // Everything is answered before the Sync, and some of it in part.
            let limit = [0, 1, 2][self.random.below(3)];
            let first = [parse("", &sql), describe(b'S', ""), bind(&name, "", &[]), describe(b'P', &name)].concat();
            let all = [first, execute(&name, limit), flush()].concat();
            self.push(all, b"CIsE", 1, format!("P {sql}, D S, B {name:?}, D P, E {limit}, H"));
            let rest = [execute(&name, 0), close(b'P', &name), sync()].concat();
            self.push(rest, b"Z", 1, format!("E {name:?}, C P, S"));
            return;
        }
        let first = [parse(&name, &sql), describe(b'S', &name), flush()].concat();
        // An error ends it too: then everything up to the Sync is skipped.
        self.push(first, b"TnE", 1, format!("P {name:?} {sql}, D S, H"));
        let second = [bind("", &name, &[]), execute("", 0), close(b'S', &name), sync()].concat();
        self.push(second, b"Z", 1, format!("B {name:?}, E, C, S"));
    }

    /// Statements that are prepared on one side of a change of settings and run on the other, by name and without one.
    fn across_a_change(&mut self) {
        self.names += 1;
        let name = if self.random.one_in(3) { String::new() } else { format!("c{}", self.names) };
        let (text, changes) = match self.random.below(8) {
            0 => (*self.random.choose(READS), KEPT),
            1..=2 => (*self.random.choose(READS), SETTINGS),
            _ => *self.random.choose(MEANINGS),
        };
        let change = *self.random.choose(changes);
        let (sql, change) = (self.sql(text), self.sql(change));
        let run = [bind("", &name, &[]), describe(b'P', ""), execute("", 0), sync()].concat();
        self.push(
            [parse(&name, &sql), describe(b'S', &name), sync()].concat(),
            b"Z",
            1,
            format!("P {name:?} {sql}, D, S"),
        );
        if self.random.one_in(2) {
            self.push(run.clone(), b"Z", 1, format!("B {name:?}, D P, E, S"));
        }
        match self.random.below(4) {
            // Nothing changes, but others may have used the server.
            3 => {}
            // A simple query drops the unnamed statement.
            0 => self.push(query(&change), b"Z", 1, change),
            1 => {
                let batch = [parse("change", &change), bind("", "change", &[]), execute("", 0), close(b'S', "change")];
                self.push([batch.concat(), sync()].concat(), b"Z", 1, format!("extended {change}"));
            }
            _ => {
                let first = [parse("change", &change), bind("", "change", &[]), execute("", 0), sync()].concat();
                let all = [first, run.clone(), close(b'S', "change"), sync()].concat();
                self.push(all, b"Z", 3, format!("extended {change}, S, B {name:?}, D P, E, S, C, S"));
            }
        }
        for _ in 0..1 + self.random.below(2) {
            self.push(run.clone(), b"Z", 1, format!("B {name:?}, D P, E, S"));
            if let Some(turn) = self.turns.last_mut() {
                turn.pause = Duration::from_millis(4);
            }
        }
    }

    /// An unnamed statement that is run in batches behind its own, when others may have left theirs on the server.
    fn unnamed(&mut self) {
        let text = *self.random.choose(SELECTS);
        let sql = self.sql(text);
        self.push([parse("", &sql), describe(b'S', ""), sync()].concat(), b"Z", 1, format!("P \"\" {sql}, D S, S"));
        for _ in 0..1 + self.random.below(3) {
            self.push([bind("", "", &[]), execute("", 0), sync()].concat(), b"Z", 1, "B \"\" \"\", E, S");
            if let Some(turn) = self.turns.last_mut() {
                turn.pause = Duration::from_millis(4);
            }
        }
    }

    /// What a session listens to and notifies: nobody else uses its channels, so that what it hears, and when, is certain.
    /// Not among others in a pipeline: there notifications come behind the last answer.
    fn channels(&mut self) {
        let within = self.tx == Tx::None && self.random.one_in(3);
        if within {
            self.push_query("begin");
            self.tx = Tx::Open;
        }
        if self.random.one_in(3) {
            self.pipelined_channels();
        }
        for _ in 0..1 + self.random.below(4) {
            let count = if self.random.one_in(4) { 2 } else { 1 };
            let texts: Vec<String> = (0..count)
                .map(|_| {
                    let text = *self.random.choose(CHANNELS);
                    self.sql(text)
                })
                .collect();
            if count == 1 && self.random.one_in(3) {
                let batch = [parse("", &texts[0]), bind("", "", &[]), execute("", 0), sync()].concat();
                self.push(batch, b"Z", 1, format!("extended {}", texts[0]));
            } else {
                let sql = texts.join("; ");
                self.push(query(&sql), b"Z", 1, sql);
            }
        }
        if within {
            let end = *self.random.choose(&["commit", "commit", "rollback"]);
            self.push_query(end);
            self.tx = Tx::None;
        }
    }

    /// The same, and something else, in one write.
    fn pipelined_channels(&mut self) {
        let count = 2 + self.random.below(4);
        let (mut bytes, mut texts) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let list = self.random.choose(&[CHANNELS, CHANNELS, SELECTS]);
            let text = *self.random.choose(list);
            let sql = self.sql(text);
            bytes.extend(match self.random.one_in(2) {
                true => [parse("", &sql), bind("", "", &[]), execute("", 0), sync()].concat(),
                false => query(&sql),
            });
            texts.push(sql);
        }
        self.push(bytes, b"Z", count, format!("at once: {}", texts.join(" | ")));
    }

    /// A portal that lives across several batches of one transaction.
    fn portal(&mut self) {
        if self.tx == Tx::None {
            self.push(query("begin"), b"Z", 1, "begin");
            self.tx = Tx::Open;
        }
        let text = *self.random.choose(&[
            "select i, repeat('p', i) from generate_series(1, 9) i",
            "select * from @.t order by id",
            "insert into @.t(v) select generate_series(1, 4) returning v",
            "select x from w",
            "values (1), (2)",
        ]);
        let sql = self.sql(text);
        let first = [parse("", &sql), bind("p", "", &[]), describe(b'P', "p"), execute("p", 2), sync()].concat();
        self.push(first, b"Z", 1, format!("P {sql}, B \"p\", D P, E 2, S"));
        for _ in 0..self.random.below(4) {
            match self.random.below(5) {
                0 => {
                    let between = self.random.choose(&[SELECTS, SETTINGS, READS]);
                    let text = *self.random.choose(between);
                    self.push_query(text);
                }
                1 => {
                    self.push([execute("p", 1), flush()].concat(), b"sCIE", 1, "E \"p\" 1, H");
                    self.push([execute("p", 1), sync()].concat(), b"Z", 1, "E \"p\" 1, S");
                }
                2 => self.push([describe(b'P', "p"), sync()].concat(), b"Z", 1, "D P \"p\", S"),
                3 => self.push(query("fetch 1 from p"), b"Z", 1, "fetch 1 from p"),
                _ => self.push([execute("p", 3), sync()].concat(), b"Z", 1, "E \"p\" 3, S"),
            }
        }
        self.push([close(b'P', "p"), sync()].concat(), b"Z", 1, "C P \"p\", S");
    }

    /// A transaction that is prepared, and ended when others may have used the server.
    fn two_phase(&mut self) {
        // Whoever is not who prepared it may not end it, and it would keep its locks.
        for text in ["rollback", "reset session authorization", "set session characteristics as transaction read write"]
        {
            self.push_query(text);
        }
        self.tx = Tx::Open;
        self.push_query("begin");
        for _ in 0..1 + self.random.below(2) {
            let list = self.random.choose(&[WRITES, SETTINGS, SELECTS]);
            let text = *self.random.choose(list);
            self.push_query(text);
        }
        self.names += 1;
        let id = format!("differential {} {}", self.seed, self.names);
        let prepare = format!("prepare transaction '{id}'");
        if self.random.one_in(2) {
            self.push(query(&prepare), b"Z", 1, prepare);
        } else {
            let batch = [parse("", &prepare), bind("", "", &[]), execute("", 0), sync()].concat();
            self.push(batch, b"Z", 1, format!("extended {prepare}"));
        }
        self.tx = Tx::None;
        for text in ["select count(*) from pg_prepared_xacts where gid like 'differential # %'", "reset role"] {
            self.push_query(text);
        }
        let end = *self.random.choose(&["commit", "rollback"]);
        self.push_query(&format!("reset session authorization; {end} prepared '{id}'"));
        let end = format!("{end} prepared '{id}'");
        self.push(query(&end), b"Z", 1, end);
    }

    fn large_object(&mut self) {
        let opened = self.tx == Tx::None && self.random.one_in(2);
        if opened {
            self.push_query("begin");
            self.tx = Tx::Open;
        }
        for _ in 0..2 + self.random.below(4) {
            let text = *self.random.choose(LARGE);
            self.push_query(text);
        }
        if opened {
            self.push_query("commit");
            self.tx = Tx::None;
        }
    }

    fn copy_out(&mut self) {
        let sql = self.sql("copy (select i, repeat('y', i % 50) from generate_series(1, 200) i) to stdout");
        if self.random.one_in(2) {
            self.push(query(&sql), b"Z", 1, sql);
        } else {
            let batch = [parse("", &sql), bind("", "", &[]), execute("", 0), sync()].concat();
            self.push(batch, b"Z", 1, format!("extended {sql}"));
        }
    }

    fn copy_in(&mut self) {
        let sql = self.sql("copy @.t(v, s) from stdin");
        let data = match self.random.below(6) {
            0 => vec![message(b'd', b"1\tx\n2\ty\n"), message(b'd', b"3\tz\n"), message(b'c', b"")],
            1 => vec![message(b'd', b"not a number\tx\n"), message(b'c', b"")],
            2 => vec![message(b'd', b"1\tx\n"), message(b'f', &cstr("the client changed its mind"))],
            3 => vec![message(b'c', b"")],
            // It fails in the middle: what comes behind that is still sent.
            4 => {
                let rows = |from: usize| (from..from + 40).map(|i| format!("{i}\trow {i}\n")).collect::<String>();
                let (good, more) = (message(b'd', rows(0).as_bytes()), message(b'd', rows(40).as_bytes()));
                vec![good, message(b'd', b"1\tx\ttoo many columns\n"), more.clone(), more, message(b'c', b"")]
            }
            _ => vec![message(b'd', b"1\tx\n2\t"), message(b'd', b"y\n\\.\n"), message(b'c', b"")],
        };
        let extended = self.random.one_in(2);
        if self.random.one_in(2) {
            // All at once, without waiting for the server to be ready for it.
            let mut bytes =
                if extended { [parse("", &sql), bind("", "", &[]), execute("", 0)].concat() } else { query(&sql) };
            bytes.extend(data.concat());
            if extended {
                bytes.extend(sync());
            }
            self.push(bytes, b"Z", 1, format!("{sql} and its data at once, extended: {extended}"));
        } else if extended {
            // libpq sends a Sync right behind the Execute, and another behind the data.
            let first = [parse("", &sql), bind("", "", &[]), execute("", 0), sync()].concat();
            self.push(first, b"GZ", 1, format!("extended {sql}, S"));
            self.push([data.concat(), sync()].concat(), b"Z", 1, "its data, S");
        } else {
            self.push(query(&sql), b"GZ", 1, sql);
            // If the COPY was refused, the server ignores the data; the Sync makes it say something in both cases.
            self.push([data.concat(), sync()].concat(), b"Z", ANSWER_OF_COPY, "its data, S");
        }
        if extended {
            // A COPY left behind as the unnamed statement would be run by whatever binds that next, and nobody would
            // send its data: no legal session.
            self.push([parse("", "select 1"), sync()].concat(), b"Z", 1, "P \"\" select 1, S");
        }
    }

    fn cursor(&mut self) {
        let declare = "declare c cursor for select i, i * i from generate_series(1, 50) i";
        let sql = match self.random.below(5) {
            0 | 1 => declare,
            2 => "fetch 7 from c",
            3 => "move 5 in c",
            _ => "close c",
        };
        self.push(query(sql), b"Z", 1, sql);
    }

    /// The legacy fast path: `int4pl(int4, int4)` and `upper(text)` by their OIDs.
    fn function_call(&mut self) {
        let (oid, args): (u32, Vec<Vec<u8>>) = match self.random.below(3) {
            0 => (177, vec![1i32.to_be_bytes().to_vec(), 41i32.to_be_bytes().to_vec()]),
            1 => (871, vec![b"upper".to_vec()]),
            _ => (154, vec![1i32.to_be_bytes().to_vec(), 0i32.to_be_bytes().to_vec()]),
        };
        let mut body = oid.to_be_bytes().to_vec();
        body.extend([0, 1, 0, 1]);
        body.extend(u16::try_from(args.len()).unwrap().to_be_bytes());
        for arg in args {
            body.extend(u32::try_from(arg.len()).unwrap().to_be_bytes());
            body.extend(arg);
        }
        body.extend([0, 1]);
        self.push(message(b'F', &body), b"Z", 1, format!("function {oid}"));
    }
}
