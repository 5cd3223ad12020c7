//! What others may know of a client while its own task serves it: the consoles, cancel requests, the drain.

use super::limits::Limits;
use crate::pool::Keeper;
use crate::random;
use crate::secret;
use crate::server::ServerEntry;
use crate::server::entry::CancelOnItsWay;
use crate::session::Pins;
use crate::wire::startup::CancelKey;
use foldhash::fast::RandomState;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

/// What a client is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ClientState {
    /// Connected, and nothing runs for it.
    Idle = 0,
    /// It has a server.
    Active = 1,
    /// It waits for a server.
    Waiting = 2,
}

impl ClientState {
    /// PgBouncer's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Active => "active",
            Self::Waiting => "waiting",
        }
    }
}

/// What others may ask of a client's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Order {
    /// Nothing.
    None = 0,
    /// Give the server back, if it is only kept because nobody else has needed it.
    Yield = 1,
    /// Leave the queue for a server: the client cancelled.
    LeaveQueue = 2,
    /// End as soon as no transaction is open.
    Drain = 3,
    /// End now.
    Kill = 4,
}

/// The shared part of a client.
#[derive(Debug)]
pub struct ClientEntry {
    /// Unique in this process.
    pub id: u64,
    /// The user it logged in as.
    pub user: Arc<str>,
    /// The database it asked for.
    pub database: Arc<str>,
    /// Its end and ours, where it is TCP.
    pub ends: Option<(SocketAddr, SocketAddr)>,
    /// The TLS version and cipher, where it is TLS.
    pub tls: Option<Box<str>>,
    /// Whether it is a replication connection: `none`, `logical` or `physical`.
    pub replication: &'static str,
    /// When it connected.
    pub connected: Instant,
    /// What cancels its queries.
    pub key: CancelKey,
    application_name: Mutex<Arc<str>>,
    state: AtomicU8,
    order: AtomicU8,
    /// Timeouts that have changed, until its task takes them.
    new_limits: Mutex<Option<Arc<Limits>>>,
    has_new_limits: AtomicBool,
    requested_ms: AtomicU64,
    prepared: AtomicU32,
    /// Why it keeps its server, and since how many milliseconds after `connected`.
    pins: AtomicU16,
    pinned_ms: AtomicU64,
    /// The number of the request that is under way, for a cancel to hit; 0 for none.
    request: AtomicU64,
    /// The number of the server that it has; 0 for none.
    server: AtomicU64,
    waker: Mutex<Option<Waker>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known of a client when it has logged in.
pub struct Identity {
    /// The user it logged in as.
    pub user: Arc<str>,
    /// The database it asked for.
    pub database: Arc<str>,
    /// `application_name` as it stood in the startup packet.
    pub application_name: Arc<str>,
    /// Whether it is a replication connection.
    pub replication: &'static str,
    /// Whether its cancel key may be long (protocol 3.2).
    pub long_key: bool,
}

impl ClientEntry {
    /// What it is doing.
    pub fn state(&self) -> ClientState {
        match self.state.load(Ordering::Relaxed) {
            0 => ClientState::Idle,
            1 => ClientState::Active,
            _ => ClientState::Waiting,
        }
    }

    pub(super) fn set_state(&self, state: ClientState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// The name it gave its application last, as far as the pooler has seen.
    pub fn application_name(&self) -> Arc<str> {
        Arc::clone(&lock(&self.application_name))
    }

    /// It has set another one.
    pub fn set_application_name(&self, name: Box<str>) {
        *lock(&self.application_name) = name.into();
    }

    /// When its last request began.
    pub fn requested(&self) -> Instant {
        self.connected + Duration::from_millis(self.requested_ms.load(Ordering::Relaxed))
    }

    pub(super) fn note_request(&self, now: Instant) {
        let ms = now.saturating_duration_since(self.connected).as_millis();
        self.requested_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// It waits for a server from now on.
    pub(super) fn waits_since(&self, now: Instant) {
        self.note_request(now);
        self.set_state(ClientState::Waiting);
    }

    /// How long it has waited for a server, if it does.
    pub fn waiting(&self) -> Option<Duration> {
        (self.state() == ClientState::Waiting).then(|| self.requested().elapsed())
    }

    /// How many prepared statements it has.
    pub fn prepared(&self) -> u32 {
        self.prepared.load(Ordering::Relaxed)
    }

    pub(super) fn set_prepared(&self, count: usize) {
        self.prepared.store(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Why it keeps its server between transactions, and since when.
    pub fn pins(&self) -> Option<(Pins, Instant)> {
        let pins = Pins::from_bits(self.pins.load(Ordering::Relaxed));
        let since = self.connected + Duration::from_millis(self.pinned_ms.load(Ordering::Relaxed));
        (!pins.is_none()).then_some((pins, since))
    }

    pub(super) fn set_pins(&self, pins: Pins) {
        if self.pins.swap(pins.bits(), Ordering::Relaxed) == 0 {
            let ms = self.connected.elapsed().as_millis();
            self.pinned_ms.store(u64::try_from(ms).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// The server it has.
    pub fn server(&self) -> Option<Arc<ServerEntry>> {
        ServerEntry::find(self.server.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn attach(&self, server: &ServerEntry) {
        self.server.store(server.id, Ordering::Release);
        self.set_state(ClientState::Active);
    }

    /// It has no server from now on. Only after that may the server be looked at for cancel requests on their way, see
    /// [`ClientEntry::cancel_target`].
    #[inline]
    pub(super) fn detach(&self) {
        self.server.store(0, Ordering::SeqCst);
        self.set_state(ClientState::Idle);
    }

    #[inline]
    pub(super) fn set_request(&self, number: u64) {
        self.request.store(number, Ordering::Release);
    }

    pub(super) fn set_waker(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }

    /// Asks something of the client's task. A graver order replaces a lesser one.
    pub fn order(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::AcqRel);
        self.wake();
    }

    /// Gives it other timeouts.
    pub fn set_limits(&self, limits: Arc<Limits>) {
        *lock(&self.new_limits) = Some(limits);
        self.has_new_limits.store(true, Ordering::Release);
        self.wake();
    }

    /// Timeouts that have changed since the last call.
    #[inline]
    pub(super) fn take_limits(&self) -> Option<Arc<Limits>> {
        if !self.has_new_limits.load(Ordering::Acquire) {
            return None;
        }
        self.has_new_limits.store(false, Ordering::Relaxed);
        lock(&self.new_limits).take()
    }

    fn wake(&self) {
        let waker = lock(&self.waker).clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    #[inline]
    pub(super) fn ordered(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            0 => Order::None,
            1 => Order::Yield,
            2 => Order::LeaveQueue,
            3 => Order::Drain,
            _ => Order::Kill,
        }
    }

    /// This order was carried out, or there was nothing to do.
    pub(super) fn carried_out(&self, order: Order) {
        let _ = self.order.compare_exchange(order as u8, Order::None as u8, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// What a cancel request for this client has to do.
    pub(super) fn cancel_target(&self) -> CancelTarget {
        let id = self.server.load(Ordering::SeqCst);
        match (self.state(), self.request.load(Ordering::Acquire)) {
            (ClientState::Waiting, _) => CancelTarget::Queue,
            (_, 0) => CancelTarget::Nothing,
            (ClientState::Active | ClientState::Idle, request) => {
                let Some(server) = ServerEntry::find(id) else { return CancelTarget::Nothing };
                let on_its_way = server.cancel_begins();
                // From here on the server stays out of its pool until the request has arrived, if the client has it still
                // (faults.md I4). The client first says that it has it no more, and then looks for cancel requests; here it
                // is the other way round. Of the two one sees what the other has done.
                if self.server.load(Ordering::SeqCst) != id {
                    return CancelTarget::Nothing;
                }
                CancelTarget::Server { server, request, on_its_way }
            }
        }
    }

    /// Whether this request is still under way.
    pub(super) fn still_runs(&self, request: u64) -> bool {
        self.request.load(Ordering::Acquire) == request
    }
}

impl Keeper for ClientEntry {
    fn give_back(&self) {
        self.order(Order::Yield);
    }
}

/// What a cancel request has to do.
pub(super) enum CancelTarget {
    /// Nothing runs.
    Nothing,
    /// Take the client out of the queue.
    Queue,
    /// Tell this server, as long as it runs this request.
    Server { server: Arc<ServerEntry>, request: u64, on_its_way: CancelOnItsWay },
}

/// A key that nobody can guess: 63 bits of it from the system's random source, or 287 where the protocol has room.
fn random_key(long: bool) -> CancelKey {
    let [p0, p1, p2, p3, secret @ ..] = random::bytes::<36>();
    // Positive: some drivers print it.
    let pid = i32::from_be_bytes([p0 & 0x7f, p1, p2, p3]);
    CancelKey { pid, secret: secret[..if long { 32 } else { 4 }].into() }
}

/// All clients, by the process id of their cancel keys.
#[derive(Debug)]
pub struct Clients {
    shards: [Mutex<HashMap<i32, Arc<ClientEntry>, RandomState>>; 16],
    count: AtomicUsize,
    limit: AtomicUsize,
    next_id: AtomicU64,
}

/// A client's place among all. Given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    clients: Arc<Clients>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clients.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client that is in the list of all. Dropped, it is taken off.
#[derive(Debug)]
pub struct Listed {
    /// Its entry.
    pub entry: Arc<ClientEntry>,
    place: Place,
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(self.place.clients.shard(self.entry.key.pid)).remove(&self.entry.key.pid);
    }
}

impl Clients {
    /// No clients, and room for `limit`.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            shards: Default::default(),
            count: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            next_id: AtomicU64::new(1),
        })
    }

    fn shard(&self, pid: i32) -> &Mutex<HashMap<i32, Arc<ClientEntry>, RandomState>> {
        &self.shards[usize::from(pid.to_le_bytes()[0] & 15)]
    }

    /// A place for one more, if there is one.
    pub fn place(self: &Arc<Self>) -> Option<Place> {
        let limit = self.limit.load(Ordering::Relaxed);
        let taken = self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1));
        taken.ok().map(|_| Place { clients: Arc::clone(self) })
    }

    /// How many clients there may be.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Changes how many clients there may be. Those who are there stay.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// How many places are taken.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Puts a client on the list, with a cancel key of its own.
    pub fn list(
        &self,
        place: Place,
        identity: Identity,
        stream: &crate::net::Stream,
        ends: Option<(SocketAddr, SocketAddr)>,
    ) -> Listed {
        let tls = stream.tls().map(|tls| {
            let version = tls.protocol_version().and_then(|v| v.as_str()).unwrap_or("?");
            let cipher = tls.negotiated_cipher_suite().and_then(|c| c.suite().as_str()).unwrap_or("?");
            format!("{version}/{cipher}").into_boxed_str()
        });
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        loop {
            let key = random_key(identity.long_key);
            let mut shard = lock(self.shard(key.pid));
            if shard.contains_key(&key.pid) {
                continue;
            }
            let entry = Arc::new(ClientEntry {
                id,
                user: Arc::clone(&identity.user),
                database: Arc::clone(&identity.database),
                ends,
                tls,
                replication: identity.replication,
                connected: Instant::now(),
                key,
                application_name: Mutex::new(Arc::clone(&identity.application_name)),
                state: AtomicU8::new(ClientState::Idle as u8),
                order: AtomicU8::new(Order::None as u8),
                new_limits: Mutex::default(),
                has_new_limits: AtomicBool::new(false),
                requested_ms: AtomicU64::new(0),
                prepared: AtomicU32::new(0),
                pins: AtomicU16::new(0),
                pinned_ms: AtomicU64::new(0),
                request: AtomicU64::new(0),
                server: AtomicU64::new(0),
                waker: Mutex::default(),
            });
            shard.insert(entry.key.pid, Arc::clone(&entry));
            return Listed { entry, place };
        }
    }

    /// The client with this key. The secret is compared in the same time whatever it is.
    pub fn find(&self, key: &CancelKey) -> Option<Arc<ClientEntry>> {
        let shard = lock(self.shard(key.pid));
        let found = shard.get(&key.pid)?;
        secret::is_same(&found.key.secret, &key.secret).then(|| Arc::clone(found))
    }

    /// All clients, in the order in which they came.
    pub fn all(&self) -> Vec<Arc<ClientEntry>> {
        let mut all: Vec<_> = self.shards.iter().flat_map(|s| lock(s).values().cloned().collect::<Vec<_>>()).collect();
        all.sort_by_key(|entry| entry.id);
        all
    }
}
