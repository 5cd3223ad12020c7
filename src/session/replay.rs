//! Bring a server to the client's settings, in front of the client's own message and in the same write.

use super::pipeline::{Kind, Owed};
use super::settings::Settings;
use super::{Outbound, ServerSide, Session};
use crate::wire::reply;

/// Settings that one statement of ours sets; more take several.
const CHUNK: usize = 16;

/// The name on the server of our statement that sets `count` settings.
fn statement_name(count: usize) -> String {
    format!("{}set{count}", super::prepared::PREFIX)
}

/// The text of that statement. By parameters, so that no value is ever pasted into SQL.
fn statement_text(count: usize) -> String {
    let calls: Vec<String> =
        (0..count).map(|i| format!("pg_catalog.set_config(${},${},false)", 2 * i + 1, 2 * i + 2)).collect();
    format!("select {}", calls.join(","))
}

/// Writes the messages that turn `from` into `to`, and calls `sent` for each answered one.
fn write_changes(from: &Settings, to: &Settings, held: &mut u32, out: &mut Vec<u8>, mut sent: impl FnMut(Kind)) {
    for chunk in from.difference(to).chunks(CHUNK) {
        let name = statement_name(chunk.len());
        let bit = 1u32 << chunk.len();
        if *held & bit == 0 {
            reply::parse(out, name.as_bytes(), statement_text(chunk.len()).as_bytes(), &[0, 0]);
            sent(Kind::Parse);
            *held |= bit;
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
    pub fn attach(&self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        if !server.settings.same(&self.settings) {
            self.replay_settings(server, to_server);
        }
    }

    fn replay_settings(&self, server: &mut ServerSide, to_server: &mut Outbound<'_>) {
        let mut held = server.prepared.set_statements;
        let pipeline = &mut server.pipeline;
        write_changes(&server.settings, &self.settings, &mut held, to_server.edit(), |kind| {
            pipeline.push(Owed::swallow(kind));
        });
        server.prepared.set_statements = held;
        // The simple query drops the unnamed statement.
        server.unnamed = None;
        server.settings = self.settings.clone();
    }
}

impl ServerSide {
    /// The same as a conversation of our own: the messages, ended by a Sync. The caller reads the answers and then
    /// calls [`ServerSide::note_settings`].
    pub fn settings_request(&mut self, wanted: &Settings) -> Vec<u8> {
        let mut out = Vec::new();
        let mut held = self.prepared.set_statements;
        write_changes(&self.settings, wanted, &mut held, &mut out, |_| {});
        self.prepared.set_statements = held;
        out
    }
}
