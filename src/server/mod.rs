//! One connection to PostgreSQL: dialled, logged in, spoken to for our own purposes, reset.

mod audit;
pub mod dial;
pub mod entry;
mod exchange;

pub use dial::{DialError, Target};
pub use entry::{ServerEntry, ServerState};
pub use exchange::{Exchange, ExchangeError};

use crate::net::Stream;
use crate::session::settings::Settings;
use crate::session::{Params, ServerSide};
use crate::wire::frame::HEADER;
use crate::wire::{BackendTag, SqlState, backend};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// A server connection.
#[derive(Debug)]
pub struct Server {
    /// The bytes.
    pub stream: Stream,
    /// What is known of the session at the other end.
    pub side: ServerSide,
    /// What consoles and cancel requests see of it.
    pub entry: Arc<ServerEntry>,
    /// Bytes that were read and wait for the rest of their frame.
    pub input: Vec<u8>,
    /// Bytes that wait for room in the socket.
    pub output: Vec<u8>,
    /// What a session begins with here.
    pub defaults: Settings,
    /// When it has lived long enough.
    pub retire_at: Option<Instant>,
    /// When it was last given back.
    pub idle_since: Instant,
    /// Its pool's generation when it was dialled; an older one is not used again.
    pub generation: u64,
    /// The thread whose runtime it is registered with.
    pub home: ThreadId,
    /// What is given back when it is gone: its places within limits, its line in the consoles.
    pub held: Vec<Box<dyn Held>>,
}

/// This thread, as a home of connections: without counting another user of its handle each time.
#[inline]
pub fn home() -> ThreadId {
    thread_local!(static HOME: ThreadId = std::thread::current().id());
    HOME.with(|home| *home)
}

/// Something that a server connection holds and that its end gives back.
pub trait Held: Send + Sync + std::fmt::Debug {}

impl<T: Send + Sync + std::fmt::Debug> Held for T {}

impl Server {
    /// The reported settings.
    pub fn params(&self) -> &Params {
        self.side.params()
    }

    /// Moves it to the runtime of this thread, if it is not there.
    pub fn come_home(self: Box<Self>) -> std::io::Result<Box<Self>> {
        let home = home();
        if self.home == home {
            return Ok(self);
        }
        let server = *self;
        Ok(Box::new(Self { stream: server.stream.rehome()?, home, ..server }))
    }

    /// Whether it must not be handed out: closed, or with something to say that nobody asked for.
    pub fn is_stale(&mut self) -> bool {
        !self.input.is_empty() || !self.output.is_empty() || self.stream.is_stale()
    }

    /// Whether its last words are that an operator has ended it. They are looked for only on a connection without TLS.
    pub fn was_ended_by_admin(&self) -> bool {
        let mut words = [0; 512];
        let words = self.stream.peek(&mut words);
        words.first() == Some(&BackendTag::Error.byte())
            && words.get(HEADER..).is_some_and(|body| backend::error(body).code == Some(SqlState::ADMIN_SHUTDOWN))
    }

    /// Says goodbye and closes.
    pub fn close(mut self) {
        self.say_goodbye();
    }

    /// Says goodbye, and waits for at most `limit` until the server has closed its end, too. What the connection holds is
    /// given back after that.
    pub async fn see_off(mut self: Box<Self>, limit: Duration) {
        /// What it may have to say before it goes.
        const LAST_WORDS: usize = 64 * 1024;
        self.say_goodbye();
        let Ok(mut server) = self.come_home() else { return };
        let _ = tokio::time::timeout(limit, async {
            let (mut words, mut buf) = (0, [0; 1024]);
            while words <= LAST_WORDS
                && let Ok(read @ 1..) = server.stream.read(&mut buf).await
            {
                words += read;
            }
        })
        .await;
    }

    fn say_goodbye(&mut self) {
        self.entry.set_state(ServerState::Closed);
        if self.output.is_empty() && !self.side.is_mid_frame() {
            self.stream.write_last(&crate::wire::reply::TERMINATE);
        }
    }
}
