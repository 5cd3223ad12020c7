//! Bring a server to the client's settings, in front of the client's own message and in the same write.

use super::pipeline::{Fate, Kind, Note, Owed};
use super::prepared::Own;
use super::settings::Settings;
use super::{Outbound, ServerSide, Session};
use crate::wire::reply;

/// The text of our statement that sets `count` settings. By parameters, so that no value is ever pasted into SQL.
fn statement_text(count: usize) -> String {
    let calls: Vec<String> =
        (0..count).map(|i| format!("pg_catalog.set_config(${},${},false)", 2 * i + 1, 2 * i + 2)).collect();
    format!("select {}", calls.join(","))
}

/// Writes the messages that turn `from` into `to`, and calls `sent` for each answered one.
fn write_changes(from: &Settings, to: &Settings, held: &mut u32, out: &mut Vec<u8>, mut sent: impl FnMut(Kind)) {
    let changes = from.difference(to);
    // Parameters are read in the encoding that the client has at that time: values that need one wait for the right one.
    let encoding = changes.iter().position(|(name, _)| *name == "client_encoding");
    let is_ascii = |(_, value): &(&str, Option<&str>)| value.is_none_or(str::is_ascii);
    let (first, rest) = match encoding {
        Some(at) if !changes.iter().all(is_ascii) => {
            let mut rest = changes;
            (vec![rest.remove(at)], rest)
        }
        Some(_) | None => (Vec::new(), changes),
    };
    for chunk in first.chunks(1).chain(rest.chunks(Own::MOST)) {
        let own = Own::Set(chunk.len());
        let name = own.name();
        if *held & own.bit() == 0 {
            reply::parse(out, name.as_bytes(), statement_text(chunk.len()).as_bytes(), &[0, 0]);
            sent(Kind::Parse);
            *held |= own.bit();
        }
        let values: Vec<Option<&[u8]>> =
            chunk.iter().flat_map(|(name, value)| [Some(name.as_bytes()), value.map(str::as_bytes)]).collect();
        reply::bind_text(out, name.as_bytes(), &values);
        sent(Kind::Bind);
        reply::execute(out);
        sent(Kind::Execute { commits: false });
    }
    // A simple query instead of Sync: it commits what was set just as well, but when the settings were refused the server
    // skips it *and the client's message behind it*, up to a Sync that we have not sent. So a statement can never run
    // under settings that are not its own, and still no round trip is spent to find out. Not an empty one: from
    // PostgreSQL 18 on that leaves the implicit transaction of the messages before it open (start_xact_command). Nor a
    // bare COMMIT: the server's log would get a warning each time.
    reply::query(out, "begin;commit");
    sent(Kind::Query { commits: false });
}

impl Session {
    /// Puts in front of the client's next message what makes the server this client's. One comparison if nothing does.
    #[inline]
    pub fn attach(&mut self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        if !server.settings.same(&self.settings) {
            self.replay_settings(server, to_server);
        }
        self.at_fence = false;
        if server.user != self.id {
            server.user = self.id;
            server.sequences_of_another = true;
            server.pipeline.failed = false;
        }
        self.ask_limit(server, to_server);
        if let Some(deferred) = self.deferred.take() {
            Self::begin_on(&deferred, server, to_server);
        }
    }

    fn replay_settings(&self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let mut held = server.prepared.own;
        let pipeline = &mut server.pipeline;
        write_changes(&server.settings, &self.settings, &mut held, to_server.edit(), |kind| {
            pipeline.push(Owed::swallow(kind));
        });
        server.prepared.own = held;
        // The simple query drops the unnamed statement.
        server.unnamed = None;
        server.settings = self.settings.clone();
    }
}

impl ServerSide {
    /// Sets settings, given as names and values, in front of the client's next message and in its transaction.
    pub(super) fn set_in_front(&mut self, values: &[Option<&[u8]>], fate: Fate, to_server: &mut Outbound<'_>) {
        let own = Own::Set(values.len() / 2);
        let (name, out) = (own.name(), to_server.edit());
        let mut sent = |kind, note: Option<Note>| {
            let owed = Owed { fate, ..Owed::swallow(kind) };
            self.pipeline.push(match note {
                Some(note) => owed.with(note),
                None => owed,
            });
        };
        if !self.prepared.has_own(own) {
            reply::parse(out, name.as_bytes(), statement_text(values.len() / 2).as_bytes(), &[0, 0]);
            sent(Kind::Parse, Some(Note::OwnMade(own)));
            self.prepared.own |= own.bit();
        }
        reply::bind_text(out, name.as_bytes(), values);
        sent(Kind::Bind, None);
        reply::execute(out);
        sent(Kind::Execute { commits: false }, None);
        // The client must not find a portal that it has not made.
        reply::close_portal(out);
        sent(Kind::Close, None);
    }

    /// The same as a conversation of our own: the messages, ended by a Sync. The caller reads the answers and then
    /// calls [`ServerSide::note_settings`].
    pub fn settings_request(&mut self, wanted: &Settings) -> Vec<u8> {
        let mut out = Vec::new();
        let mut held = self.prepared.own;
        write_changes(&self.settings, wanted, &mut held, &mut out, |_| {});
        self.prepared.own = held;
        out
    }
}
