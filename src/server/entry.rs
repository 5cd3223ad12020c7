//! What others may know of a server connection while its client's task owns it: the consoles, and cancel requests.

use super::dial::Target;
use crate::wire::startup::CancelKey;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;
use tokio::sync::Notify;

/// What a server connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ServerState {
    /// Being dialled and logged in.
    New = 0,
    /// In its pool.
    Idle = 1,
    /// With a client.
    Active = 2,
    /// Being reset for the next client.
    Tested = 3,
    /// Kept from its pool until a cancel request on its way has arrived.
    BeingCanceled = 4,
    /// Gone.
    Closed = 5,
    /// Kept for the notifications that clients listen for.
    Listening = 6,
}

impl ServerState {
    const ALL: [Self; 7] =
        [Self::New, Self::Idle, Self::Active, Self::Tested, Self::BeingCanceled, Self::Closed, Self::Listening];

    /// PgBouncer's word for it, where PgBouncer has the state.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listening => "listening",
            Self::New => "new",
            Self::Idle => "idle",
            Self::Active => "active",
            Self::Tested => "tested",
            Self::BeingCanceled => "being_canceled",
            Self::Closed => "closed",
        }
    }
}

/// The shared part of a server connection.
#[derive(Debug)]
pub struct ServerEntry {
    /// Unique in this process.
    pub id: u64,
    /// Where it was dialled, and as whom.
    pub target: Target,
    /// Its key for cancel requests.
    pub key: CancelKey,
    /// When it was dialled.
    pub connected: Instant,
    /// Its two ends, where it is TCP.
    pub ends: Option<(std::net::SocketAddr, std::net::SocketAddr)>,
    /// The TLS version and cipher, where it is TLS.
    pub tls: Option<String>,
    state: AtomicU8,
    /// The client that has it; 0 for none.
    client: AtomicU64,
    /// Milliseconds after `connected` at which it was last handed out.
    requested_ms: AtomicU64,
    /// Prepared statements it holds.
    prepared: AtomicU32,
    /// Cancel requests on their way to it.
    cancels: AtomicU32,
    cancels_done: Notify,
    /// Cancel requests that were sent to it and not seen to arrive.
    cancels_at_large: AtomicU32,
}

impl ServerEntry {
    /// A connection that has just been logged in.
    pub fn new(id: u64, target: Target, key: CancelKey, stream: &crate::net::Stream) -> Arc<Self> {
        let socket = stream.socket();
        let entry = Arc::new(Self {
            id,
            target,
            key,
            connected: Instant::now(),
            ends: socket.peer().zip(socket.local()),
            tls: stream.tls().map(|tls| {
                let version = tls.protocol_version().map_or("?", |v| v.as_str().unwrap_or("?"));
                let cipher = tls.negotiated_cipher_suite().map_or("?", |c| c.suite().as_str().unwrap_or("?"));
                format!("{version}/{cipher}")
            }),
            state: AtomicU8::new(ServerState::New as u8),
            client: AtomicU64::new(0),
            requested_ms: AtomicU64::new(0),
            prepared: AtomicU32::new(0),
            cancels: AtomicU32::new(0),
            cancels_done: Notify::new(),
            cancels_at_large: AtomicU32::new(0),
        });
        lock(shard(id)).insert(id, Arc::downgrade(&entry));
        entry
    }

    /// The connection of a number, if it is still there.
    pub fn find(id: u64) -> Option<Arc<Self>> {
        lock(shard(id)).get(&id)?.upgrade()
    }

    /// What it is doing.
    pub fn state(&self) -> ServerState {
        ServerState::ALL[usize::from(self.state.load(Ordering::Relaxed)).min(ServerState::ALL.len() - 1)]
    }

    /// Notes what it is doing.
    pub fn set_state(&self, state: ServerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// A client has it from now on; 0: none.
    pub fn set_client(&self, client: u64, now: Instant) {
        self.client.store(client, Ordering::Relaxed);
        if client != 0 {
            let ms = now.saturating_duration_since(self.connected).as_millis();
            self.requested_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// The client that has it; 0 for none.
    pub fn client(&self) -> u64 {
        self.client.load(Ordering::Relaxed)
    }

    /// When it was last handed out.
    pub fn requested(&self) -> Instant {
        self.connected + std::time::Duration::from_millis(self.requested_ms.load(Ordering::Relaxed))
    }

    /// Notes how many prepared statements it holds.
    pub fn set_prepared(&self, count: usize) {
        self.prepared.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// How many prepared statements it holds.
    pub fn prepared(&self) -> u32 {
        self.prepared.load(Ordering::Relaxed)
    }

    /// A cancel request sets out; the server stays out of its pool until the returned value is dropped.
    pub fn cancel_begins(self: &Arc<Self>) -> CancelOnItsWay {
        self.cancels.fetch_add(1, Ordering::SeqCst);
        CancelOnItsWay(Arc::clone(self))
    }

    /// Whether a cancel request is on its way.
    #[inline]
    pub fn is_being_canceled(&self) -> bool {
        self.cancels.load(Ordering::SeqCst) > 0
    }

    /// A cancel request is about to be written.
    pub fn cancel_is_sent(&self) {
        self.cancels_at_large.fetch_add(1, Ordering::SeqCst);
    }

    /// The server has closed behind a request that was written: PostgreSQL does that when the signal is on its way.
    pub fn cancel_has_arrived(&self) {
        self.cancels_at_large.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether a cancel request may reach it at any time from now on, because nobody has seen it arrive. Whoever has the
    /// connection next could be hit (faults.md I4).
    #[inline]
    pub fn may_be_canceled(&self) -> bool {
        self.cancels_at_large.load(Ordering::SeqCst) > 0
    }

    /// Waits until no cancel request is on its way.
    pub async fn cancels_done(&self) {
        loop {
            let done = self.cancels_done.notified();
            if !self.is_being_canceled() {
                return;
            }
            done.await;
        }
    }
}

impl Drop for ServerEntry {
    fn drop(&mut self) {
        lock(shard(self.id)).remove(&self.id);
    }
}

/// All connections that there are, by number. A client notes the number of the one that it has, which is one store; who
/// wants to know more, to cancel what runs there or for a console, is rare.
static ALL: LazyLock<[Shard; 16]> = LazyLock::new(Default::default);

/// Some of them.
type Shard = Mutex<HashMap<u64, Weak<ServerEntry>, RandomState>>;

fn shard(id: u64) -> &'static Shard {
    &ALL[usize::from(id.to_le_bytes()[0] & 15)]
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While this lives, a cancel request may still reach the server.
#[derive(Debug)]
pub struct CancelOnItsWay(Arc<ServerEntry>);

impl Drop for CancelOnItsWay {
    fn drop(&mut self) {
        self.0.cancels.fetch_sub(1, Ordering::AcqRel);
        self.0.cancels_done.notify_waiters();
    }
}
