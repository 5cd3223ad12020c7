//! Ask the server what a client has left on it: the only judge of which settings were committed, and of what keeps a
//! server with its client.
//!
//! Statements only say what they *may* leave behind. Whether a SET was rolled back, whether a lock is still held, what a
//! function did: the server knows. So when it is free after such a statement it is asked, off the client's path, and
//! the answer replaces what was believed. What can follow the client (settings, channels) becomes the client's; the rest
//! pins the server. Clients that never do such a thing are never asked about.

use super::functions::{self, ASKED};
use super::pipeline::{Kind, Note, Owed};
use super::prepared::Own;
use super::reading;
use super::{Interners, Outbound, Params, Pin, Pins, ServerSide, Session};
use crate::sql::Effects;
use crate::wire::{Report, SqlState, TxStatus, backend, reply};

/// What the question is about, as bits of its second parameter.
const SETTINGS: u32 = 1;
const TEMPORARY: u32 = 1 << 1;
const CURSORS: u32 = 1 << 2;
const PREPARED: u32 = 1 << 3;
const CHANNELS: u32 = 1 << 4;
const LOCKS: u32 = 1 << 5;

/// The question: rows of a kind, a name and a value. `$1` are names of settings that `pg_settings` does not list, `$2`
/// says what is of interest: the rest costs nothing. `$3` are names of functions; see [`functions::QUESTION`].
///
/// The modes of a transaction are listed as set in the session for ever after, but they are not of it: each transaction
/// begins with the default ones. Every name and operator says where it is from: the client's `search_path` is in force. Temporary objects all depend on
/// their schema (`pg_depend`), whatever they are.
const QUESTION: &str = "\
    select 's', name, setting from pg_catalog.pg_settings \
    where ($2::pg_catalog.int4 operator(pg_catalog.&) 1) operator(pg_catalog.>) 0 \
    and source operator(pg_catalog.=) 'session' \
    and name operator(pg_catalog.<>) \
    all ('{transaction_isolation,transaction_read_only,transaction_deferrable}'::pg_catalog.text[]) \
    union all select 's', n, pg_catalog.current_setting(n, true) from pg_catalog.unnest($1::pg_catalog.text[]) n \
    where ($2 operator(pg_catalog.&) 1) operator(pg_catalog.>) 0 \
    union all select 'r', 'role', pg_catalog.current_setting('role') \
    where ($2 operator(pg_catalog.&) 1) operator(pg_catalog.>) 0 \
    union all select 'u', 'session_authorization', session_user::pg_catalog.text \
    where ($2 operator(pg_catalog.&) 1) operator(pg_catalog.>) 0 \
    union all select 't', '', '' where ($2 operator(pg_catalog.&) 2) operator(pg_catalog.>) 0 \
    and exists (select from pg_catalog.pg_depend \
    where refclassid operator(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
    and refobjid operator(pg_catalog.=) pg_catalog.pg_my_temp_schema()) \
    union all select 'c', '', '' where ($2 operator(pg_catalog.&) 4) operator(pg_catalog.>) 0 \
    and exists (select from pg_catalog.pg_cursors where is_holdable) \
    union all select 'p', '', '' where ($2 operator(pg_catalog.&) 8) operator(pg_catalog.>) 0 \
    and exists (select from pg_catalog.pg_prepared_statements \
    where pg_catalog.left(name, 11) operator(pg_catalog.<>) 'ambassador:') \
    union all select 'l', c, '' from pg_catalog.pg_listening_channels() c \
    where ($2 operator(pg_catalog.&) 16) operator(pg_catalog.>) 0 \
    union all select 'a', '', '' where ($2 operator(pg_catalog.&) 32) operator(pg_catalog.>) 0 \
    and exists (select from pg_catalog.pg_locks where locktype operator(pg_catalog.=) 'advisory' \
    and pid operator(pg_catalog.=) pg_catalog.pg_backend_pid()) \
    union all ";

/// Effects that matter only when the statement is sent.
const PASSING: Effects = Effects::LOOKING
    .and(Effects::NOTIFY)
    .and(Effects::ASKING)
    .and(Effects::INSERTING)
    .and(Effects::SEQUENCE)
    .and(Effects::CALLING)
    .and(Effects::LOCAL_NAMED)
    .and(Effects::FUNCTIONS)
    .and(Effects::DEFINING);

/// Effects that leave traces in the server's process, which nobody can ask for: the schema of temporary objects, loaded
/// libraries, what those have in memory.
const WEARING: Effects = Effects::DEFINING.and(Effects::TEMP);

/// Effects that stay when their transaction is rolled back.
const NOT_ROLLED_BACK: Effects = Effects::ADVISORY.and(Effects::PREPARE).and(Effects::DISCARD).and(Effects::LASTING);

/// How often a question is asked again that the server did not answer.
const TRIES: u8 = 3;
/// A row of an answer is a setting and its value. Who sets a longer one keeps the server.
const MAX_ROW: usize = 64 * 1024;

/// The answer, as it comes in.
#[derive(Debug, Default)]
pub(super) struct Findings {
    topics: u32,
    settings: Vec<(String, String)>,
    user: Option<String>,
    pins: Pins,
    channels: Vec<Box<str>>,
    /// The number of the first UNLISTEN that is not behind it.
    next_mark: usize,
    /// Settings of the client's own making that were asked about.
    names: Vec<Box<str>>,
    /// Functions that were asked about, by which version of what was known, and what was said of them.
    asked: Vec<Box<str>>,
    version: u64,
    functions: Vec<functions::Row>,
    /// Something in the answer could not be read.
    unreadable: bool,
    failed: Option<SqlState>,
    complete: bool,
}

impl Findings {
    /// A row of the answer, if it is short enough to be read.
    pub(super) fn row(&mut self, body: Option<&[u8]>) {
        if self.complete {
            // Of something else that we have run since.
            return;
        }
        let Some(Ok(columns)) = body.map(backend::row) else {
            self.unreadable = true;
            return;
        };
        let &[Some(kind), name, value] = columns.as_slice() else {
            self.unreadable = true;
            return;
        };
        if let (b"f", Some(name), Some(verdict)) = (kind, name, value) {
            self.functions.push((name.into(), verdict.into()));
            return;
        }
        let text = |column: Option<&[u8]>| std::str::from_utf8(column.unwrap_or_default()).ok().map(str::to_owned);
        let (Some(name), Some(text)) = (text(name), text(value)) else {
            self.unreadable = true;
            return;
        };
        match kind {
            // A setting by that name does not exist.
            b"s" if value.is_none() => {}
            b"s" => self.settings.push((name, text)),
            b"r" => self.settings.push((name, text)),
            b"u" => self.user = Some(text),
            b"t" => self.pins.set(Pin::Temporary, true),
            b"c" => self.pins.set(Pin::Cursor, true),
            b"p" => self.pins.set(Pin::Prepared, true),
            b"l" => self.channels.push(name.into()),
            b"a" => self.pins.set(Pin::AdvisoryLock, true),
            _ => self.unreadable = true,
        }
    }

    /// The server refused to answer.
    pub(super) fn failed(&mut self, report: &Report) {
        if !self.complete {
            self.failed = Some(report.code);
        }
    }

    /// All of it was read.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }
}

/// What is to become of a server whose client needs nothing of it right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// It stays: something is under way, or something keeps it.
    Stay,
    /// It has to be asked first what was left on it; see [`Session::ask`].
    Ask,
    /// It may serve another client.
    Part,
}

impl Session {
    /// Whether the server is done with this client for now, and if so, whether it can go.
    #[inline]
    pub fn parting(&mut self, shared: &Interners, server: &mut ServerSide) -> Parting {
        if !self.may_release(server) {
            return Parting::Stay;
        }
        if server.dirty.is_none() && server.pins.is_none() && server.findings.is_none() && !server.listens {
            return Parting::Part;
        }
        self.parting_from_dirty(shared, server)
    }

    fn parting_from_dirty(&mut self, shared: &Interners, server: &mut ServerSide) -> Parting {
        if let Some(findings) = server.findings.take_if(|findings| findings.complete) {
            self.learn(shared, server, *findings);
        }
        server.pins = server.pins.and(Pins::of_lasting(server.dirty));
        if server.dirty.has(Effects::SEQUENCE.and(Effects::FORGETTING)) {
            server.pins.set(Pin::Sequence, !server.dirty.has(Effects::FORGETTING));
        }
        if server.topics() != 0 || server.listens {
            return Parting::Ask;
        }
        (server.dirty, server.told) = (Effects::NONE, Effects::NONE);
        self.copies = Vec::new();
        if server.pins.is_none() { Parting::Part } else { Parting::Stay }
    }

    /// Asks the server what was left on it. The answers are ours; when they are there, [`Session::parting`] knows more.
    pub fn ask(&mut self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        if !server.dirty.is_none() {
            // This answer is taken for all there is to know.
            server.dirty = server.dirty.and(server.unanswered);
        }
        let topics = server.topics();
        // What it would tell of, the client hears from elsewhere. But not before it was asked what it listens to by now.
        if topics & CHANNELS == 0 && std::mem::take(&mut server.listens) {
            reply::query(to_server.edit(), "UNLISTEN *");
            server.pipeline.push(Owed::behind(Kind::Query { commits: false }).with(Note::Unlistened));
            if server.unnamed.is_some() {
                server.unnamed = Some(super::server_frames::NOBODY);
            }
        }
        if topics == 0 {
            return;
        }
        let mut names = std::mem::take(&mut server.custom_names);
        for (name, _) in server.settings.iter().filter(|(name, _)| name.contains('.')) {
            crate::sql::custom_name(name.as_bytes(), &mut names);
        }
        server.asked = std::mem::replace(&mut server.dirty, Effects::NONE);
        server.told = Effects::NONE;
        let (asked, version) = (std::mem::take(&mut server.inquiries), server.functions.version());
        let (list, topics_text, functions) = (array(&names), topics.to_string(), array(&asked));
        let next_mark = self.next_mark();
        server.findings = Some(Box::new(Findings { topics, names, next_mark, asked, version, ..Findings::default() }));
        let values = [Some(list.as_bytes()), Some(topics_text.as_bytes()), Some(functions.as_bytes())];
        server.ask_own(Own::Ask, &values, Note::Asked, to_server);
    }

    /// What the server said becomes what is known.
    fn learn(&mut self, shared: &Interners, server: &mut ServerSide, findings: Findings) {
        let asked = std::mem::replace(&mut server.asked, Effects::NONE);
        if findings.failed.is_some() || findings.unreadable {
            // Cancelled, or short of time: ask again. Else it keeps the server, and is asked about when it has run again.
            for name in &findings.names {
                server.too_many_names |= !crate::sql::custom_name(name.as_bytes(), &mut server.custom_names);
            }
            findings.asked.into_iter().for_each(|name| server.inquire(name));
            server.tries += 1;
            let gone = findings.failed == Some(SqlState::INVALID_STATEMENT_NAME);
            if gone {
                // Something has run DEALLOCATE ALL where we could not see it.
                server.prepared.clear();
            }
            if (gone || findings.failed == Some(SqlState::QUERY_CANCELED)) && server.tries < TRIES {
                server.dirty = server.dirty.and(asked);
            } else {
                server.tries = 0;
                server.unanswered = server.unanswered.and(asked);
                server.pins.set(Pin::Unknown, true);
            }
            return;
        }
        server.tries = 0;
        server.unanswered = Effects::NONE;
        server.pins.set(Pin::Unknown, server.too_many_names);
        for (topic, pin) in
            [(TEMPORARY, Pin::Temporary), (CURSORS, Pin::Cursor), (PREPARED, Pin::Prepared), (LOCKS, Pin::AdvisoryLock)]
        {
            if findings.topics & topic != 0 {
                server.pins.set(pin, findings.pins.has(pin));
            }
        }
        // Something may have been prepared behind the question.
        if findings.topics & PREPARED != 0 && !findings.pins.has(Pin::Prepared) && !server.dirty.has(Effects::PREPARE) {
            self.sql_prepared = None;
        }
        if findings.topics & CHANNELS != 0 {
            let depends = self.server_listens(&findings.channels, findings.next_mark);
            server.pins.set(Pin::Listen, depends);
            server.listens = !depends && !findings.channels.is_empty();
        }
        if findings.topics & SETTINGS != 0 {
            let mut list = findings.settings;
            if let Some(user) = findings.user.filter(|user| **user != *server.login_user) {
                list.push(("session_authorization".into(), user));
            }
            self.settings_are(shared, server, list);
        }
        if !findings.asked.is_empty() {
            // What they may have set could not be asked for by name before.
            let learned = server.functions.learn(findings.version, findings.asked, &findings.functions);
            for name in learned.settings {
                server.too_many_names |= !crate::sql::custom_name(name.as_bytes(), &mut server.custom_names);
                server.dirty = server.dirty.and(Effects::SETTING);
            }
            for name in learned.missing {
                server.inquire(name);
                server.dirty = server.dirty.and(Effects::SETTING);
            }
        }
    }

    /// The same for channels alone, in a transaction that has begun before the answer was there: what it listens to is no part
    /// of that answer.
    pub(super) fn learn_channels(&mut self, server: &mut ServerSide) {
        let Some(findings) = &mut server.findings else { return };
        let readable = findings.complete && findings.failed.is_none() && !findings.unreadable;
        if !readable || findings.topics & CHANNELS == 0 {
            return;
        }
        findings.topics &= !CHANNELS;
        let (names, asked) = (std::mem::take(&mut findings.channels), findings.next_mark);
        let depends = self.server_listens(&names, asked);
        server.pins.set(Pin::Listen, depends);
        server.listens = !depends && !names.is_empty();
    }

    /// The settings of the session on the server are these. Those that it began with and has no more were reset, and a
    /// reset takes them back to what they were at the login.
    fn settings_are(&mut self, shared: &Interners, server: &mut ServerSide, list: Vec<(String, String)>) {
        // No role is what a session begins with, unless it has begun with one: then it is what the client has set. (A reset
        // would have been followed by what it began with, see `restore_startup`.)
        let began_with_role = self.startup.get("role").is_some();
        let known =
            shared.settings.intern(list.into_iter().filter(|(n, v)| n != "role" || v != "none" || began_with_role));
        let reset = self.startup.iter().filter(|(name, _)| known.get(name).is_none());
        let mine: Vec<(&str, &str)> = reset.chain(known.iter()).collect();
        let mine = shared.settings.intern(mine);
        let before = std::mem::replace(&mut self.settings, mine);
        server.settings = known;
        if let Some(unnamed) = &mut self.unnamed
            && !unnamed.unsettled
            && !before.same(&self.settings)
        {
            unnamed.read_by.get_or_insert(before);
        }
    }

    /// Behind a message that may have reset settings: they are to be what they were at the login. PostgreSQL itself would
    /// do that, had it been told them in the startup packet.
    ///
    /// `identity`: what the session began with as its role may be among them.
    pub(super) fn restore_startup(&mut self, identity: bool, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let (names, values): (Vec<&str>, Vec<&str>) =
            self.startup.iter().filter(|(name, _)| identity || *name != "role").unzip();
        if names.is_empty() {
            return;
        }
        let (names, values) = (array(&names), array(&values));
        server.ask_own(Own::Restore, &[Some(names.as_bytes()), Some(values.as_bytes())], Note::Restored, to_server);
    }
}

/// Sets again what the session began with, where it is set no more.
pub(super) const RESTORE: &str = "\
    select pg_catalog.set_config(n, v, false) from rows from \
    (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) u(n, v) \
    where case when n operator(pg_catalog.=) 'role' then pg_catalog.current_setting(n) operator(pg_catalog.=) 'none' \
    when n operator(pg_catalog.=) 'session_authorization' then false \
    when n operator(pg_catalog.~) '[.]' \
    then (pg_catalog.current_setting(n, true) operator(pg_catalog.=) '') is not false \
    else not exists (select from pg_catalog.pg_settings where pg_catalog.lower(name) operator(pg_catalog.=) n \
    and source operator(pg_catalog.=) 'session') end";

impl ServerSide {
    /// Whether what is set here is not what the session is known to have set: a statement that is parsed here now may mean
    /// something else than it does elsewhere.
    #[inline]
    pub(super) fn is_unsettled(&self) -> bool {
        self.dirty.and(self.asked).and(self.unanswered).has(Effects::MEANING) || self.pins.has(Pin::Temporary)
    }

    /// The same for one statement: that constants are read otherwise is of no interest where there are none.
    #[inline]
    pub(super) fn is_unsettled_for(&self, query: &[u8]) -> bool {
        self.is_unsettled() && (!self.is_unsettled_for_now() || reading::may_have_constants(query))
    }

    /// Whether that is so until the end of the transaction only.
    pub(super) fn is_unsettled_for_now(&self) -> bool {
        let lasting = Effects::MEANING.without(Effects::LOCAL);
        !self.dirty.and(self.asked).and(self.unanswered).has(lasting) && !self.pins.has(Pin::Temporary)
    }

    /// What has to be asked about.
    fn topics(&self) -> u32 {
        let dirty = self.dirty;
        if dirty.is_none() {
            return 0;
        }
        let ending = |pin| dirty.has(Effects::ENDING) && self.pins.has(pin);
        let all = Effects::UNKNOWN.and(Effects::DISCARD);
        let mut topics = 0;
        for (topic, effects, ended) in [
            (SETTINGS, Effects::SETTING, false),
            (TEMPORARY, Effects::TEMP, ending(Pin::Temporary)),
            (CURSORS, Effects::CURSOR, ending(Pin::Cursor)),
            (PREPARED, Effects::PREPARE, false),
            (CHANNELS, Effects::LISTEN.and(Effects::UNLISTEN), false),
            (LOCKS, Effects::ADVISORY, false),
        ] {
            if ended || dirty.has(effects.and(all)) {
                topics |= topic;
            }
        }
        topics
    }

    /// Notes what a message that is on its way may leave behind.
    #[inline]
    pub(super) fn soil(&mut self, effects: Effects) {
        self.dirty = self.dirty.and(effects.without(PASSING)).and(self.unanswered);
        // On a replica nothing can be defined.
        if effects.has(WEARING) && !self.fenced {
            self.worn_by = self.user;
            self.defined = true;
            if effects.has(Effects::FUNCTIONS) {
                self.redefined = true;
                self.functions.forget();
            }
        }
    }

    /// Gives up what its client only likes to keep. True if the server may go now.
    pub fn yields(&mut self) -> bool {
        let mut rest = self.pins;
        rest.set(Pin::Sequence, false);
        let may = self.pins.has(Pin::Sequence) && rest.is_none() && self.dirty.is_none() && self.is_free();
        if may && self.findings.is_none() {
            self.pins = rest;
            self.sequences_of_another = true;
            return true;
        }
        false
    }

    /// Whether something was sent since the last call that may define functions, views and the like.
    pub fn take_defined(&mut self) -> bool {
        std::mem::take(&mut self.defined)
    }

    /// What was defined is committed by now, if it ever is: functions may be others than those that were asked about.
    #[inline]
    pub fn note_defined(&mut self) {
        if std::mem::take(&mut self.redefined) {
            self.functions.forget();
        }
    }

    /// Why it stays with its client.
    pub fn pins(&self) -> Pins {
        self.pins
    }

    /// Whether something of its client may be left on it.
    pub fn may_hold_state(&self) -> bool {
        let effects = self.dirty.and(self.asked).and(self.unanswered);
        !effects.is_none() || !self.pins.is_none() || self.listens
    }

    /// Whether it is not known yet what its client has left on it, which was told that it has: the question about that was
    /// not asked yet, or is under way, or its answer was not looked at.
    pub fn may_be_missed(&self) -> bool {
        !self.asked.is_none() || self.findings.is_some() || !self.told.is_none()
    }

    /// The client is told how a request of its has ended: what that may have left behind is there, unless it is lost with the
    /// transaction that is open.
    #[inline]
    pub(super) fn note_told(&mut self) {
        if !self.dirty.is_none() {
            let lasting = match self.pipeline.tx {
                TxStatus::Idle => Effects::ASKED.and(Effects::LASTING),
                TxStatus::Active | TxStatus::Failed => NOT_ROLLED_BACK,
            };
            self.told = self.told.and(self.dirty.only(lasting));
        }
    }

    /// An answer about channels that was not looked at is out of date.
    pub(super) fn forget_channels(&mut self) {
        if let Some(findings) = &mut self.findings {
            findings.topics &= !CHANNELS;
        }
        self.listens = false;
    }

    /// A function of this name is to be asked about.
    pub(super) fn inquire(&mut self, name: Box<str>) {
        if self.inquiries.len() < ASKED && !self.inquiries.contains(&name) {
            self.inquiries.push(name);
        }
    }

    /// It was told to listen to nothing any more, and has not done it.
    #[cold]
    pub(super) fn still_listens(&mut self) {
        self.tries += 1;
        // As long as it does it serves nobody else.
        self.listens = self.tries < TRIES;
        self.pins.set(Pin::Listen, !self.listens);
    }

    /// Whether no reset makes it what it was. A session that ever had temporary objects keeps their schema.
    pub fn is_spoilt(&self) -> bool {
        let lasting = Effects::LASTING.and(Effects::TEMP);
        self.pins.is_lasting() || self.pins.has(Pin::Temporary) || self.dirty.and(self.asked).has(lasting)
    }

    /// The client that last did something here which left traces in the process of the server; 0 if there is none, or
    /// the traces are gone.
    pub fn worn_by(&self) -> u64 {
        self.worn_by
    }

    /// Whether a question about what was left on it is under way.
    #[inline]
    pub fn is_asking(&self) -> bool {
        self.findings.is_some()
    }

    /// Whether the server is free, and may be asked what its client listens to by now.
    pub fn may_ask_for_channels(&self) -> bool {
        self.is_free() && self.topics() & CHANNELS != 0
    }

    /// Runs one of our own statements behind what the client has asked for.
    fn ask_own(&mut self, own: Own, values: &[Option<&[u8]>], note: Note, to_server: &mut Outbound<'_>) {
        let out = to_server.edit();
        let name = own.name();
        // What the client has just asked for may drop it, and it may fail to: whichever it is, it is made anew.
        let uncertain = own == Own::Restore;
        if uncertain {
            reply::close_statement(out, name.as_bytes());
            self.pipeline.push(Owed::behind(Kind::Close).with(Note::Restoring));
        }
        if uncertain || !self.prepared.has_own(own) {
            let text = if own == Own::Ask { [QUESTION, functions::QUESTION].concat() } else { RESTORE.to_owned() };
            reply::parse(out, name.as_bytes(), text.as_bytes(), &[0, 0]);
            self.pipeline.push(Owed::behind(Kind::Parse).with(Note::OwnMade(own)));
            self.prepared.own |= own.bit();
        }
        reply::bind_text(out, name.as_bytes(), values);
        self.pipeline.push(Owed::behind(Kind::Bind));
        reply::execute(out);
        self.pipeline.push(Owed::behind(Kind::Execute { commits: false }));
        // Inside a transaction it would outlive the Sync, and the client would find it.
        reply::close_portal(out);
        self.pipeline.push(Owed::behind(Kind::Close));
        reply::sync(out);
        self.pipeline.push(Owed::behind(Kind::Sync).with(note));
    }

    /// The longest frame of an answer that is read whole.
    pub(super) fn reads_rows(&self, len: usize) -> bool {
        (self.is_asking() && len <= MAX_ROW) || self.reads_limit(len)
    }
}

/// The name under which the server itself knows who logged in.
pub(super) fn login_user(params: &Params) -> Box<str> {
    params.get("session_authorization").unwrap_or_default().into()
}

/// A PostgreSQL array of text.
fn array<S: AsRef<str>>(items: &[S]) -> String {
    let mut text = String::from("{");
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push('"');
        for c in item.as_ref().chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_keeps_every_byte_of_its_items() {
        assert_eq!(array(&["a.b", "x\"y\\z", ""]), r#"{"a.b","x\"y\\z",""}"#);
    }

    #[test]
    fn rows_of_what_we_run_behind_the_question_are_no_answer_to_it() {
        let mut findings = Findings::default();
        findings.row(Some(b"\0\x03\0\0\0\x01c\0\0\0\0\0\0\0\0"));
        findings.complete();
        // What a session began with is set again.
        findings.row(Some(b"\0\x01\0\0\0\x01x"));
        assert!(findings.pins.has(Pin::Cursor) && !findings.unreadable);
    }

    #[test]
    fn what_cannot_be_read_is_said_to_be_unknown() {
        let mut findings = Findings::default();
        findings.row(Some(b"\0\x03\0\0\0\x01s\0\0\0\x01x\0\0\0\x01\xff"));
        assert!(findings.unreadable);
        let mut findings = Findings::default();
        findings.row(Some(b"\0\x03\0\0\0\x01s\0\0\0\x01x\0\0\0\x01y"));
        findings.row(Some(b"\0\x03\0\0\0\x01s\0\0\0\x01z\xff\xff\xff\xff"));
        assert_eq!(findings.settings, [("x".to_owned(), "y".to_owned())]);
        assert!(!findings.unreadable);
    }
}
