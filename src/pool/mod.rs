//! A pool of server connections for one node, database and user, on deadpool.
//!
//! deadpool hands out *seats* (`seat`): it counts who may have a connection. Whoever has a seat without a connection dials;
//! dialling, its back-off and its errors stay here, and deadpool's `create` and `recycle` never wait. A connection keeps its
//! seat for as long as it lives, also while it is idle: then it waits in the `queue`, which puts it into the hands of who
//! is first in line. deadpool's own queue is not used: through it, each checkout costs a search in two locked lists and a
//! future as large as the rare case of a dial.

mod apart;
mod backoff;
pub mod directory;
mod error;
mod gate;
mod keepers;
mod limit;
mod node;
mod poolset;
mod queue;
mod routes;
mod seat;
mod stats;

pub use directory::{Database, DatabaseConfig, Directory, DirectoryConfig, NodeLabels, RoutingConfig, UserConfig};
pub use error::LeaseError;
pub use gate::GateState;
pub use keepers::Keeper;
pub use node::Node;
pub use poolset::{Full, Member, PoolSet, View};
pub use queue::Wish;
pub use routes::{Learned, Record, Routes};
pub use stats::{Departure, Loss, Stats, Totals};

use crate::credentials::{Credential, Source};
use crate::routing::Load;
use crate::server::dial::{self, Verdict};
use crate::server::{DialError, Server, ServerEntry, ServerState, Target};
use crate::session::settings::Settings;
use crate::session::{Functions, Params};
use crate::telemetry::Telemetry;
use backoff::Backoff;
use deadpool::managed;
use gate::Gate;
use limit::Limit;
use queue::{Need, Place, Queue, Waiting};
use seat::{Seat, Seats};
use std::collections::HashMap;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout_at;

/// A connection that was used this recently was seen alive this recently: no need to ask the kernel again, unless the runtime
/// has heard of something since.
const HOT: Duration = Duration::from_millis(2);
/// How often who waits for a place within a limit looks whether there is something else to wait for.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(50);
/// How long a server may take to end a session that is over.
const PATIENCE_WITH_THE_LEAVING: Duration = Duration::from_millis(500);
/// How long a pool makes do with fewer connections after the server said that it is full.
const FULL_RETRY: Duration = Duration::from_secs(5);
/// How long it is remembered what functions may leave behind: somebody else may define them anew. What our own clients
/// define is known at once.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What a pool may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Connections at most.
    pub size: usize,
    /// Connections to keep even while nobody needs them.
    pub min_idle: usize,
    /// More connections than `size`, for clients that have waited for `reserve_after`.
    pub reserve: usize,
    /// When the reserve is opened.
    pub reserve_after: Duration,
    /// How long an unused connection is kept; zero for ever.
    pub idle_timeout: Duration,
    /// How long a connection lives, give or take a tenth; zero for ever.
    pub lifetime: Duration,
    /// How long connecting and logging in may take.
    pub connect_timeout: Duration,
    /// Whether each connection that comes back is asked what its client has left behind.
    pub paranoid: bool,
}

/// Names by which people know a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolName {
    /// The database as clients name it.
    pub database: Arc<str>,
    /// The user as clients name it.
    pub user: Arc<str>,
}

/// A pool.
#[derive(Debug)]
pub struct Pool {
    /// Its names.
    pub name: PoolName,
    /// The server it connects to.
    pub node: Arc<Node>,
    /// What has happened in it.
    pub stats: Stats,
    target: RwLock<Arc<Target>>,
    config: RwLock<Arc<PoolConfig>>,
    source: RwLock<Arc<dyn Source>>,
    defaults: Settings,
    seats: managed::Pool<Seats>,
    queue: Arc<Queue>,
    itself: Weak<Self>,
    gate: Gate,
    /// Raised by RECONNECT and by changes of the target: connections of an older one are not used again.
    generation: AtomicU64,
    backoff: Mutex<Backoff>,
    servers: Mutex<HashMap<u64, Arc<ServerEntry>>>,
    /// Connections of our own, which no client can have ([`Pool::dial_apart`]).
    apart: Mutex<HashMap<u64, Arc<ServerEntry>>>,
    /// How many are being made.
    logins: Mutex<usize>,
    /// Why the last attempt to connect failed, until one succeeds.
    last_error: Mutex<Option<Arc<DialError>>>,
    welcomes: Mutex<Vec<(StartupSettings, Arc<Welcome>)>>,
    /// Limits of connections that hold over several pools, in the order in which places are taken.
    limits: Vec<Arc<Limit>>,
    telemetry: Arc<Telemetry>,
    shrunk: Mutex<Option<Instant>>,
    /// The number of seats it is to have as soon as that is possible.
    postponed_size: Mutex<Option<usize>>,
    /// There may be more seats taken than there are to be.
    too_many: AtomicBool,
    paranoid: bool,
    /// The role that came with the last credential.
    role: Mutex<Option<Arc<str>>>,
    keepers: keepers::Keepers,
    /// Somebody has ever been served: the server side of this pool works, or did.
    pub proven: AtomicBool,
    /// What the functions of its database may leave behind.
    functions: Arc<Functions>,
}

/// Settings as they stand in a startup packet.
type StartupSettings = Vec<(String, String)>;

/// What clients that begin with the same settings are told at their login.
#[derive(Debug)]
pub struct Welcome {
    /// The settings.
    pub settings: Settings,
    /// The values that are reported.
    pub params: Arc<Params>,
    /// Their messages, and the one in front that says that the client is in.
    pub messages: Box<[u8]>,
    /// The name of the application, if one is set.
    pub application_name: Arc<str>,
}

/// Places within limits, held by the connection they are for.
type HeldPlaces = Vec<Box<dyn crate::server::Held>>;

/// What came of waiting for places.
enum Places {
    Held(HeldPlaces),
    /// None, but the pool has so many connections.
    Enough(usize),
    None,
}

/// A connection on loan. Dropped, it is closed and its seat is free: only [`Lease::finish`] gives it back.
#[derive(Debug)]
pub struct Lease {
    server: Box<Server>,
    pool: Arc<Pool>,
}

impl Deref for Lease {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

impl Lease {
    /// The pool it came from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Whether nothing is on its half way, neither to the server nor from it.
    #[inline]
    pub fn is_drained(&self) -> bool {
        self.output.is_empty() && self.input.is_empty()
    }

    /// Gives the connection back. It must be free, and nothing of its client may be left on it.
    pub fn finish(self, now: Instant) {
        if !self.is_drained() {
            // What is half sent or half read would be taken for the next client's.
            tracing::debug!(server = self.entry.id, "closing a server connection in the middle of a message");
            self.close();
            return;
        }
        let Self { mut server, pool } = self;
        debug_assert!(server.side.is_free(), "{server:?}");
        server.idle_since = now;
        server.entry.set_client(0, now);
        server.entry.set_prepared(server.side.prepared_len());
        if pool.paranoid {
            server.entry.set_state(ServerState::Tested);
            tokio::spawn(Self { server, pool }.audit_and_put_back());
            return;
        }
        if server.entry.is_being_canceled() {
            server.entry.set_state(ServerState::BeingCanceled);
            tokio::spawn(async move {
                server.entry.cancels_done().await;
                Self { server, pool }.put_back();
            });
            return;
        }
        Self { server, pool }.put_back();
    }

    async fn audit_and_put_back(mut self) {
        let entry = Arc::clone(&self.server.entry);
        entry.cancels_done().await;
        match self.server.audit().await {
            Ok(leaks) if leaks.is_empty() => self.put_back(),
            Ok(leaks) => {
                self.pool.stats.count_leak();
                tracing::error!(
                    server = entry.id,
                    pid = entry.key.pid,
                    "paranoid: left behind by a client: {}",
                    leaks.join("; ")
                );
            }
            Err(error) => tracing::debug!(server = entry.id, %error, "lost a server connection while auditing it"),
        }
    }

    #[inline]
    fn put_back(self) {
        let pool = &self.pool;
        // Behind a closed gate nobody would look at it again.
        if !pool.gate.is_open()
            || pool.is_outdated(&self.server, self.server.idle_since)
            || pool.must_make_room()
            || pool.has_too_many()
            || self.server.entry.may_be_canceled()
        {
            self.close();
            return;
        }
        self.server.entry.set_state(ServerState::Idle);
        self.pool.queue.put(self.server);
    }

    /// Cleans the connection with DISCARD ALL, off the client's path, and gives it back.
    pub fn reset_and_finish(mut self, limit: Duration) {
        self.server.entry.set_state(ServerState::Tested);
        self.server.entry.set_client(0, Instant::now());
        tokio::spawn(async move {
            // A cancel that is still on its way must hit neither the reset nor the next client.
            let entry = Arc::clone(&self.server.entry);
            let cleaned = tokio::time::timeout(limit, async {
                entry.cancels_done().await;
                self.server.reset().await
            });
            match cleaned.await {
                Ok(Ok(true)) => {
                    self.server.idle_since = Instant::now();
                    if self.pool.paranoid {
                        self.audit_and_put_back().await;
                    } else {
                        self.put_back();
                    }
                }
                Ok(Ok(false)) => self.close(),
                Ok(Err(error)) => {
                    tracing::debug!(server = entry.id, %error, "closing a server connection that could not be reset");
                }
                Err(_) => {
                    tracing::warn!(server = entry.id, ?limit, "closing a server connection whose reset takes too long")
                }
            }
        });
    }

    /// Says goodbye and closes the connection. The seat is free when the server has closed its end, too: until then
    /// PostgreSQL counts the old backend beside a new one.
    pub fn close(self) {
        let server = self.server;
        if tokio::runtime::Handle::try_current().is_ok() {
            tokio::spawn(server.see_off(PATIENCE_WITH_THE_LEAVING));
        } else {
            server.close();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool without connections.
    #[allow(clippy::too_many_arguments, reason = "one place of assembly calls it, with one of each part")]
    fn new(
        name: PoolName,
        node: Arc<Node>,
        target: Target,
        config: PoolConfig,
        source: Arc<dyn Source>,
        defaults: Settings,
        limits: Vec<Arc<Limit>>,
        functions: Arc<Functions>,
        telemetry: Arc<Telemetry>,
    ) -> Arc<Self> {
        let seats = managed::Pool::builder(Seats).max_size(config.size);
        // Only a timeout without a runtime could fail, and there is none.
        #[allow(clippy::expect_used, reason = "no timeout is configured")]
        let seats = seats.build().expect("a pool without timeouts");
        Arc::new_cyclic(|itself| Self {
            itself: Weak::clone(itself),
            queue: Arc::default(),
            name,
            node,
            stats: Stats::default(),
            target: RwLock::new(Arc::new(target)),
            source: RwLock::new(source),
            defaults,
            seats,
            gate: Gate::default(),
            generation: AtomicU64::new(0),
            backoff: Mutex::default(),
            servers: Mutex::default(),
            apart: Mutex::default(),
            logins: Mutex::default(),
            last_error: Mutex::default(),
            welcomes: Mutex::default(),
            limits,
            telemetry,
            shrunk: Mutex::new(None),
            postponed_size: Mutex::new(None),
            too_many: AtomicBool::new(false),
            role: Mutex::default(),
            keepers: keepers::Keepers::default(),
            paranoid: config.paranoid,
            config: RwLock::new(Arc::new(config)),
            proven: AtomicBool::new(false),
            functions,
        })
    }

    /// A connection if one is idle right now. Never waits, never dials.
    #[inline]
    pub fn try_lease(self: &Arc<Self>, client: u64, wish: Wish, now: Instant) -> Option<Lease> {
        loop {
            if !self.gate.is_open() {
                return None;
            }
            let server = self.queue.take_idle(wish, || self.may_grow())?;
            if let Some(server) = self.hand_out(server, client, now) {
                return Some(Lease { server, pool: Arc::clone(self) });
            }
        }
    }

    /// A connection that is fit to be lent out, noted as the client's; another is closed.
    #[inline]
    fn hand_out(&self, server: Box<Server>, client: u64, now: Instant) -> Option<Box<Server>> {
        let mut server = server;
        let hot = now.saturating_duration_since(server.idle_since) < HOT;
        let suspect = !hot || server.stream.may_be_readable();
        if self.is_outdated(&server, now) || (suspect && self.is_lost(&mut server)) {
            self.stats.count_stale();
            server.close();
            return None;
        }
        let server = server.come_home().ok()?;
        server.entry.set_state(ServerState::Active);
        server.entry.set_client(client, now);
        self.stats.count_assignment();
        Some(server)
    }

    /// Whether an idle connection is closed, or has something to say that nobody asked for.
    fn is_lost(&self, server: &mut Server) -> bool {
        let is_stale = server.is_stale();
        if is_stale {
            self.note_idle_loss(server);
        }
        is_stale
    }

    #[cold]
    fn note_idle_loss(&self, server: &Server) {
        let loss = if server.was_ended_by_admin() { Loss::AdminIdle } else { Loss::Idle };
        self.stats.count_loss(loss);
        tracing::info!(
            pool = %self.name, server = server.entry.id, node = %self.node.address, reason = loss.as_str(),
            "an idle server connection was lost"
        );
    }

    /// Whether it was made before the last RECONNECT or change of the target.
    fn is_of_before(&self, server: &Server) -> bool {
        server.generation != self.generation.load(Ordering::Relaxed)
    }

    fn is_outdated(&self, server: &Server, now: Instant) -> bool {
        self.is_of_before(server)
            // While there is nothing to log in with, the connections that are there are all there will be (faults.md F17).
            || (server.retire_at.is_some_and(|at| at <= now) && self.source().is_ready(&self.node.address))
    }

    /// A connection, waited for and dialled for as long as `deadline` allows.
    pub async fn lease_until(self: &Arc<Self>, client: u64, deadline: Instant) -> Result<Lease, LeaseError> {
        let started = Instant::now();
        match timeout_at(deadline.into(), Arc::clone(self).lease(client, started, deadline)).await {
            Ok(result) => result,
            Err(_) => Err(self.timed_out(started.elapsed())),
        }
    }

    /// The same for a caller that keeps the time itself: `deadline` only bounds attempts to connect. When it has passed
    /// the caller drops the future and asks [`Pool::timed_out`] for the reason. It began to wait when it `started`.
    pub async fn lease(self: Arc<Self>, client: u64, started: Instant, deadline: Instant) -> Result<Lease, LeaseError> {
        self.lease_with(None, client, started, deadline, Arc::default()).await
    }

    /// The same for who may have a place already.
    async fn lease_with(
        self: Arc<Self>,
        mut place: Option<Place>,
        client: u64,
        started: Instant,
        deadline: Instant,
        dialling: Arc<Dialling>,
    ) -> Result<Lease, LeaseError> {
        loop {
            if !self.gate.is_open() {
                // What is idle is closed while a pool is paused.
                place = None;
                self.opened().await?;
            }
            if place.is_none()
                && self.keepers.are_there()
                && self.is_full()
                && self.keepers.ask_one().await
                && let Some(lease) = self.try_lease(client, Wish::NONE, Instant::now())
            {
                return Ok(lease);
            }
            let got = match place.take() {
                Some(place) => place,
                None => match self.enter(Wish::NONE) {
                    Ok(place) => place,
                    Err(mut waiting) => std::future::poll_fn(|cx| waiting.poll(cx)).await,
                },
            };
            if !self.gate.is_open() {
                // Paused while we waited.
                continue;
            }
            let seat = match got {
                Place::Server(server) => match self.hand_out(server, client, Instant::now()) {
                    Some(server) => return Ok(Lease { server, pool: self }),
                    None => continue,
                },
                Place::Seat(seat) => seat,
                Place::None => return Err(LeaseError::Moved(self.name.clone())),
            };
            // Boxed: the rare case must not make the common one large.
            match Box::pin(self.fill_while_open(started, deadline.into(), &dialling)).await? {
                Some(mut server) => {
                    server.held.push(Box::new(seat));
                    self.stats.count_assignment();
                    server.entry.set_state(ServerState::Active);
                    server.entry.set_client(client, Instant::now());
                    return Ok(Lease { server, pool: self });
                }
                // The server is full: queue again, behind a smaller pool. Or the gate has closed: wait for that.
                None => drop(seat),
            }
        }
    }

    /// Waits until the pool is not paused.
    async fn opened(&self) -> Result<(), LeaseError> {
        self.gate.opened().await;
        match self.gate.state() {
            GateState::Open | GateState::Paused => Ok(()),
            GateState::Disabled => Err(LeaseError::Disabled(self.name.clone())),
            GateState::Retired => Err(LeaseError::Moved(self.name.clone())),
        }
    }

    /// A place at once, or one in the line.
    fn enter(&self, wish: Wish) -> Result<Place, Waiting> {
        self.queue.enter(wish, |need| match need {
            Need::Preferred if !self.may_grow() => None,
            Need::Preferred | Need::Necessary => self.free_seat(),
        })
    }

    /// Whether there is a seat for a new connection, and connecting is not known to fail.
    #[cold]
    fn may_grow(&self) -> bool {
        let status = self.seats.status();
        status.size < status.max_size && matches!(lock(&self.backoff).wait(Instant::now()), backoff::Wait::Go)
    }

    /// A client leaves that has left traces on this connection: if it is idle, it ends.
    pub fn retire(self: &Arc<Self>, wish: Wish, client: u64) {
        if wish.last != 0
            && let Some(server) = self.queue.take(wish.last)
        {
            if server.side.worn_by() == client {
                Lease { server, pool: Arc::clone(self) }.close();
            } else {
                self.queue.put(server);
            }
        }
    }

    /// The same as [`Pool::lease`] for a client that has found no idle connection: who only waits for one is spared a
    /// future that could do more.
    pub fn wait(self: Arc<Self>, client: u64, started: Instant, deadline: Instant) -> Wait {
        if self.gate.is_open() && !self.keepers.are_there() {
            return match self.enter(Wish::NONE) {
                Ok(place) => {
                    let dialling = Arc::default();
                    let lease = self.lease_with(Some(place), client, started, deadline, Arc::clone(&dialling));
                    Wait::Long(Box::pin(lease), dialling)
                }
                Err(waiting) => Wait::InLine(InLine { waiting, pool: self, client, started, deadline }),
            };
        }
        let dialling = Arc::default();
        Wait::Long(Box::pin(self.lease_with(None, client, started, deadline, Arc::clone(&dialling))), dialling)
    }

    /// [`Pool::fill`] for as long as the pool is open: a PAUSE ends a login that is under way, and what was made in the
    /// very moment is closed. `Ok(None)` then, too.
    async fn fill_while_open(
        self: &Arc<Self>,
        started: Instant,
        deadline: tokio::time::Instant,
        dialling: &Dialling,
    ) -> Result<Option<Box<Server>>, LeaseError> {
        let filled = tokio::select! {
            biased;
            () = self.gate.closed() => {
                dialling.note(None);
                None
            }
            filled = self.fill(started, deadline, dialling) => filled?,
        };
        match filled {
            Some(server) if !self.gate.is_open() => {
                server.see_off(PATIENCE_WITH_THE_LEAVING).await;
                Ok(None)
            }
            filled => Ok(filled),
        }
    }

    /// Dials until there is a connection, `deadline` passes, or it makes no sense any more.
    ///
    /// `Ok(None)`: the server takes no more connections, but this pool has some to queue for; or the gate is not open.
    async fn fill(
        self: &Arc<Self>,
        started: Instant,
        deadline: tokio::time::Instant,
        dialling: &Dialling,
    ) -> Result<Option<Box<Server>>, LeaseError> {
        let timeout = || self.timed_out(started.elapsed());
        loop {
            let wait = lock(&self.backoff).wait(Instant::now());
            match wait {
                backoff::Wait::Go => {}
                backoff::Wait::Until(at) => {
                    if tokio::time::Instant::from_std(at) >= deadline {
                        tokio::time::sleep_until(deadline).await;
                        return Err(timeout());
                    }
                    tokio::time::sleep_until(at.into()).await;
                    continue;
                }
                backoff::Wait::Refused(error) => return Err(LeaseError::Upstream(error)),
            }
            let held = match self.try_places(None) {
                Ok(held) => held,
                Err(_) => match self.wait_for_places(deadline).await {
                    Places::Held(held) => held,
                    Places::Enough(live) => {
                        self.shrink(live, "a limit of connections is reached");
                        return Ok(None);
                    }
                    Places::None => return Err(timeout()),
                },
            };
            // Read before the target: a connection to a target of before is known by it.
            let generation = self.generation.load(Ordering::Acquire);
            // Before there is a slot: whoever waits for a credential must not keep those from dialling who have one.
            let (target, source, began) = (self.target(), self.source(), Instant::now());
            let credential = match timeout_at(deadline, dial::credential(&target, &*source)).await {
                Ok(Ok(credential)) => credential,
                Ok(Err(error)) => {
                    self.dial_failed(began, &source, error);
                    continue;
                }
                Err(_) => return Err(timeout()),
            };
            let Ok(slot) = timeout_at(deadline, self.node.dial_slot()).await else {
                return Err(timeout());
            };
            let began = Instant::now();
            if credential.usable_until.is_some_and(|end| end <= began) {
                continue;
            }
            let making = self.note_login();
            if !self.gate.is_open() {
                return Ok(None);
            }
            // Whoever was before us at this may have found out that it is no use. Last of all: the one that may try does.
            if !matches!(lock(&self.backoff).begin(began), backoff::Wait::Go) {
                continue;
            }
            dialling.note(Some(began));
            let dialled = self.dial(&target, &*source, credential, generation).await;
            dialling.note(None);
            drop(slot);
            match dialled {
                // It may lead to where nobody wants to go any more.
                Ok(server) if self.is_of_before(&server) => {
                    lock(&self.backoff).left_open();
                    server.see_off(PATIENCE_WITH_THE_LEAVING).await;
                }
                Ok(mut server) => {
                    self.dial_succeeded();
                    lock(&self.servers).insert(server.entry.id, Arc::clone(&server.entry));
                    drop(making);
                    server.held.extend(held);
                    return Ok(Some(server));
                }
                Err(error) if generation != self.generation.load(Ordering::Relaxed) => {
                    lock(&self.backoff).left_open();
                    tracing::debug!(pool = %self.name, %error, "cannot connect to a target of before");
                }
                Err(error) => {
                    let error = self.dial_failed(began, &source, error);
                    match error.verdict() {
                        Verdict::Client | Verdict::Credential => return Err(LeaseError::Upstream(error)),
                        Verdict::Full => {
                            let live = self.connections();
                            if live > 0 {
                                self.shrink(live, "the server is full");
                                return Ok(None);
                            }
                            lock(&self.backoff).failed(began, Instant::now());
                        }
                        Verdict::Retry => {}
                    }
                    if tokio::time::Instant::now() >= deadline {
                        return Err(timeout());
                    }
                }
            }
        }
    }

    /// Counts a login until what this gives is dropped: by then the connection must have its line, or be none. To be asked
    /// before a last look at the gate: who closes it then sees the login, or is seen.
    fn note_login(&self) -> UnderWay<'_> {
        *lock(&self.logins) += 1;
        UnderWay(&self.logins)
    }

    /// Whether nothing leads to the server: no connection, and none that is being made.
    pub fn is_disconnected(&self) -> bool {
        // First: a login that is over by now has left its connection.
        let logins = *lock(&self.logins);
        logins == 0 && self.connections() == 0 && lock(&self.apart).is_empty()
    }

    /// A connection of its has broken the protocol while a client had it; `unknown` if it owed the answer to a COMMIT.
    pub fn note_violation(&self, unknown: bool) {
        self.stats.count_lost(Loss::Protocol, unknown);
        if lock(&self.backoff).violated(Instant::now()) {
            let error = DialError::LeftAlone { address: self.node.address.clone() };
            tracing::error!(pool = %self.name, "{error}");
            *lock(&self.last_error) = Some(Arc::new(error));
            self.reconnect();
        }
    }

    fn dial_succeeded(&self) {
        lock(&self.backoff).succeeded();
        *lock(&self.last_error) = None;
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Notes that the attempt which began at `began` with something of `source` failed. What a full server means for the next
    /// one is for the caller.
    fn dial_failed(&self, began: Instant, source: &Arc<dyn Source>, error: DialError) -> Arc<DialError> {
        self.stats.count_dial_error(&error);
        tracing::warn!(pool = %self.name, node = %self.node.address, %error, "cannot get a server connection");
        let error = Arc::new(error);
        *lock(&self.last_error) = Some(Arc::clone(&error));
        match error.verdict() {
            // What has been replaced meanwhile says nothing of what there is now.
            Verdict::Credential if !Arc::ptr_eq(source, &self.source()) => {}
            Verdict::Credential => lock(&self.backoff).refused(Instant::now(), Arc::clone(&error)),
            Verdict::Retry => lock(&self.backoff).failed(began, Instant::now()),
            Verdict::Full | Verdict::Client => lock(&self.backoff).left_open(),
        }
        error
    }

    /// Places within all limits, if they are to be had right now, one of which somebody may have already; or which limit has
    /// none.
    fn try_places(&self, mut taken: Option<(usize, OwnedSemaphorePermit)>) -> Result<HeldPlaces, usize> {
        let mut held: HeldPlaces = Vec::with_capacity(self.limits.len() + 1);
        for (at, limit) in self.limits.iter().enumerate() {
            let place = match taken.take_if(|(of, _)| *of == at) {
                Some((_, place)) => place,
                None => limit.try_take().ok_or(at)?,
            };
            held.push(Box::new(place));
        }
        Ok(held)
    }

    /// Waits for places within all limits, unless there are connections of this pool's own to queue for. Whoever waits for one
    /// of these places holds no other: somebody may need nothing else.
    async fn wait_for_places(&self, deadline: tokio::time::Instant) -> Places {
        let lacking = AtomicUsize::new(usize::MAX);
        let mut places = pin!(async {
            let mut taken = None;
            loop {
                let at = match self.try_places(taken.take()) {
                    Ok(held) => return held,
                    Err(at) => at,
                };
                lacking.store(at, Ordering::Relaxed);
                if let Some(limit) = self.limits.get(at) {
                    limit.wants_room();
                    taken = limit.take().await.map(|place| (at, place));
                }
            }
        });
        loop {
            let live = self.connections();
            if live > 0 {
                return Places::Enough(live);
            }
            // Somebody else's connection is worth less than the first one here.
            if let Some(limit) = self.limits.get(lacking.load(Ordering::Relaxed)) {
                limit.wants_room();
            }
            let look_again = tokio::time::Instant::now() + LOOK_FOR_ROOM;
            match timeout_at(look_again.min(deadline), places.as_mut()).await {
                Ok(held) => return Places::Held(held),
                Err(_) if tokio::time::Instant::now() >= deadline => return Places::None,
                Err(_) => {}
            }
        }
    }

    /// Whether a connection that comes back has to be given up, because another pool has none and no place for one.
    #[inline]
    fn must_make_room(&self) -> bool {
        self.limits.iter().any(|limit| limit.is_crowded())
    }

    /// One attempt to reach a target of this generation, and a second with another credential where this one is outdated.
    async fn dial(
        self: &Arc<Self>,
        target: &Target,
        source: &dyn Source,
        credential: Credential,
        generation: u64,
    ) -> Result<Box<Server>, DialError> {
        let config = self.config();
        let started = Instant::now();
        let mut server = dial::log_in(target, credential, source, &self.defaults, config.connect_timeout).await?;
        let address = target.address.to_string();
        let labels = [("database", &*self.name.database), ("user", &*self.name.user), ("server", address.as_str())];
        self.stats.measure(&self.telemetry, &labels);
        self.stats.record_connect(started.elapsed());
        server.generation = generation;
        server.side.share_functions(&self.functions);
        if !config.lifetime.is_zero() {
            // A tenth either way, so that connections made together do not end together.
            let at = Instant::now() + config.lifetime.mul_f64(0.9 + 0.2 * fastrand::f64());
            // A role that ends with its credential may take its sessions with it.
            server.retire_at = Some(server.retire_at.map_or(at, |sooner| sooner.min(at)));
        }
        server.held.push(Box::new(Registered { pool: Arc::downgrade(self), id: server.entry.id }));
        tracing::debug!(pool = %self.name, node = %target.address, server = server.entry.id, pid = server.entry.key.pid, "new server connection");
        Ok(server)
    }

    fn shrink(&self, to: usize, why: &'static str) {
        let mut shrunk = lock(&self.shrunk);
        if shrunk.is_none() {
            tracing::warn!(pool = %self.name, node = %self.node.address, connections = to, "{why}: making do with the connections there are");
        }
        *shrunk = Some(Instant::now());
        self.resize(to);
    }

    /// Changes the number of seats, at once or, where that is not possible yet, when it is.
    ///
    /// deadpool takes a seat back only if it was ever made, and counts on nobody having more than there are when it makes
    /// new ones; else it would hand out more than it was asked to. So all seats are made before it shrinks, and it grows
    /// when the last shrinking is over.
    fn resize(&self, size: usize) {
        let mut postponed = lock(&self.postponed_size);
        *postponed = None;
        let now = self.seats.status();
        if size == now.max_size {
            return;
        }
        if size > now.max_size && now.size > now.max_size {
            *postponed = Some(size);
            return;
        }
        let mut empty = Vec::new();
        let mut idle = Vec::new();
        if size < now.max_size {
            idle = self.queue.retain(|_| false);
            empty.extend(std::iter::from_fn(|| self.free_seat()));
        }
        self.seats.resize(size);
        // Empty ones go first, then those that were unused for longest: the last one is what is used next.
        drop(empty);
        let surplus = self.seats.status().size.saturating_sub(size).min(idle.len());
        idle.drain(..surplus).for_each(|server| server.close());
        self.too_many.store(true, Ordering::Relaxed);
        idle.into_iter().for_each(|server| self.queue.put(server));
        self.seat_those_in_line();
    }

    /// Whether a connection that comes back has to be given up, because the pool has become smaller.
    #[inline]
    fn has_too_many(&self) -> bool {
        self.too_many.load(Ordering::Relaxed) && {
            let status = self.seats.status();
            self.too_many.store(status.size > status.max_size, Ordering::Relaxed);
            status.size > status.max_size
        }
    }

    /// A seat that nobody has.
    fn free_seat(&self) -> Option<Seat> {
        Seat::free(&self.seats, Weak::clone(&self.itself))
    }

    /// Gives seats that nobody has to those who wait.
    fn seat_those_in_line(&self) {
        self.queue.seat_those_in_line(|| self.free_seat());
    }

    /// Whether all connections that there may be are in use.
    fn is_full(&self) -> bool {
        let status = self.seats.status();
        status.available == 0 && status.size >= status.max_size && self.queue.idle() == 0
    }

    /// What its server has to do, as it is seen from here.
    #[inline]
    pub fn load(&self) -> Load {
        let meter = &self.node.meter;
        let load = Load { outstanding: meter.outstanding(), latency_us: meter.latency_us(), ..Load::default() };
        if self.queue.idle() > 0 {
            return load;
        }
        let status = self.seats.status();
        Load {
            saturated: status.available == 0 && status.size >= status.max_size,
            waiting: u32::try_from(self.queue.waiting()).unwrap_or(u32::MAX),
            capacity: u32::try_from(status.max_size).unwrap_or(u32::MAX),
            ..load
        }
    }

    /// The same for the primary, of which there is more to know.
    pub fn load_of_primary(&self) -> Load {
        let capacity = u32::try_from(self.seats.status().max_size).unwrap_or(u32::MAX);
        Load { spilled: self.node.meter.spilled(), capacity, ..self.load() }
    }

    /// A client keeps a connection that it gives back as soon as it is asked.
    pub fn is_kept(&self, keeper: Arc<dyn Keeper>, client: u64) {
        self.keepers.add(keeper, client);
        // Somebody may be waiting for it already.
        if self.queue.has_line() {
            self.keepers.ask_all();
        }
    }

    /// It does not any more.
    pub fn is_kept_no_more(&self, client: u64) {
        self.keepers.remove(client);
    }

    /// A client that was asked has given its connection back, or could not.
    pub fn keeper_has_answered(&self) {
        self.keepers.answered();
    }

    /// Why there was no connection after so long a wait.
    pub fn timed_out(&self, waited: Duration) -> LeaseError {
        self.stats.count_timeout();
        LeaseError::Timeout {
            pool: self.name.clone(),
            node: self.node.address.clone(),
            waited,
            size: self.config().size,
            used: self.connections(),
            paused: !self.gate.is_open(),
            cause: lock(&self.last_error).clone(),
        }
    }

    /// Its connections.
    pub fn servers(&self) -> Vec<Arc<ServerEntry>> {
        lock(&self.servers).values().filter(|server| server.state() != ServerState::Closed).cloned().collect()
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        lock(&self.servers).values().filter(|server| server.state() != ServerState::Closed).count()
    }

    /// What it may do.
    pub fn config(&self) -> Arc<PoolConfig> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where it logs in, and as whom.
    pub fn target(&self) -> Arc<Target> {
        Arc::clone(&self.target.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What its connections log in with.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.source.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over another source of what connections log in with. Those that are there stay.
    pub(super) fn set_source(&self, source: Arc<dyn Source>) {
        *self.source.write().unwrap_or_else(PoisonError::into_inner) = source;
        lock(&self.backoff).succeeded();
    }

    /// Takes over a changed configuration. Connections stay.
    pub fn reconfigure(&self, config: PoolConfig) {
        let mut slot = self.config.write().unwrap_or_else(PoisonError::into_inner);
        if **slot != config {
            self.resize(config.size);
            *slot = Arc::new(config);
        }
    }

    /// Takes over a changed target. Connections end when they are free if they lead to somewhere else now; a changed
    /// certificate concerns new ones only.
    pub fn retarget(&self, target: Target) {
        let mut slot = self.target.write().unwrap_or_else(PoisonError::into_inner);
        let elsewhere = !slot.is_same_place(&target);
        *slot = Arc::new(target);
        drop(slot);
        if elsewhere {
            self.reconnect();
        }
    }

    /// Every connection of now ends as soon as it is free.
    pub fn reconnect(&self) {
        // Whoever reads this one finds the target that it came with.
        self.generation.fetch_add(1, Ordering::Release);
        lock(&self.backoff).reconnected_at = Some(Instant::now());
        lock(&self.welcomes).clear();
        self.gate.nudge();
        self.maintain(Instant::now(), false);
    }

    /// Opens or closes the pool for new leases. While it is not open its idle connections are closed.
    pub fn set_gate(&self, state: GateState) {
        self.gate.set(state);
        if !self.gate.is_open() {
            self.keepers.ask_all();
        }
        self.drop_idle_unless_open();
    }

    /// The database has this server no more: idle connections end now and others when they are free, and whoever waits is
    /// told to look for another pool.
    pub(super) fn set_retired(&self) {
        self.gate.set(GateState::Retired);
        self.queue.close();
        self.keepers.ask_all();
        self.reconnect();
    }

    /// Closes what came back while the pool is not open.
    pub fn drop_idle_unless_open(&self) {
        if !self.gate.is_open() {
            self.queue.retain(|_| false).into_iter().for_each(|server| server.close());
        }
    }

    /// Whether the pool is open for leases.
    pub fn gate(&self) -> GateState {
        self.gate.state()
    }

    /// How many connections a client has right now.
    pub fn active(&self) -> usize {
        lock(&self.servers).values().filter(|s| s.state() == ServerState::Active).count()
    }

    /// Whether a connection of an older generation is still there.
    pub fn has_outdated(&self) -> bool {
        // An idle one of an older generation is closed at once; what is left is with clients.
        self.reconnected_at().is_some_and(|at| {
            let outdated =
                |servers: &Mutex<HashMap<u64, Arc<ServerEntry>>>| lock(servers).values().any(|s| s.connected < at);
            outdated(&self.servers) || outdated(&self.apart)
        })
    }

    /// When [`Pool::reconnect`] was last called: older connections are to be closed.
    pub fn reconnected_at(&self) -> Option<Instant> {
        lock(&self.backoff).reconnected_at
    }

    /// Closes idle connections that are too old, too long unused, closed by the server or not wanted any more, and opens
    /// what `min_idle` asks for. With `make_room`, closes one that others need more. To be called about once a second.
    pub fn maintain(&self, now: Instant, make_room: bool) {
        let config = self.config();
        // What came back in the very moment in which the gate was closed.
        self.drop_idle_unless_open();
        self.follow_credential();
        self.functions.forget_after(REMEMBERED, now);
        let cut_off = !self.source().is_ready(&self.node.address);
        let mut spare = self.connections().saturating_sub(config.min_idle);
        let removed = self.queue.retain(|server| {
            if self.is_outdated(server, now) {
                return false;
            }
            if server.stream.is_closed() {
                self.note_idle_loss(server);
                return false;
            }
            let unused = now.saturating_duration_since(server.idle_since);
            let too_long = !cut_off && !config.idle_timeout.is_zero() && unused >= config.idle_timeout;
            if (too_long || make_room) && spare > 0 {
                spare -= 1;
                return false;
            }
            true
        });
        removed.into_iter().for_each(|server| server.close());
        let mut shrunk = lock(&self.shrunk);
        if shrunk.is_some_and(|since| now.saturating_duration_since(since) >= FULL_RETRY) {
            *shrunk = None;
            self.resize(config.size);
        }
        drop(shrunk);
        let postponed = *lock(&self.postponed_size);
        if let Some(size) = postponed {
            self.resize(size);
        }
    }

    /// Where a new role came with the credential, connections of the old one end as soon as they are free.
    fn follow_credential(&self) {
        let node = &self.node.address;
        let Some(user) = self.source().user(node) else { return };
        let before = lock(&self.role).replace(Arc::clone(&user));
        if before.is_some_and(|before| before != user) {
            tracing::info!(pool = %self.name, node = %node, user = &*user, "a new role came with the credential: connections of the old one end when they are free");
            self.generation.fetch_add(1, Ordering::Relaxed);
            lock(&self.backoff).reconnected_at = Some(Instant::now());
            self.gate.nudge();
        }
    }

    /// Opens the reserve for clients of whom the first has waited for `longest`, or closes it when nobody waits.
    pub fn adjust_reserve(&self, longest: Duration) {
        let config = self.config();
        if config.reserve == 0 || lock(&self.shrunk).is_some() {
            return;
        }
        if longest >= config.reserve_after {
            self.resize(config.size + config.reserve);
        } else if longest.is_zero() {
            self.resize(config.size);
        }
    }

    /// Opens connections until there are `min_idle`, if anybody has ever been served here.
    pub async fn fill_to_minimum(self: Arc<Self>) {
        while self.connections() < self.config().min_idle && self.gate.is_open() {
            let deadline = Instant::now() + self.config().connect_timeout;
            let Some(seat) = self.free_seat() else { return };
            match self.fill_while_open(Instant::now(), deadline.into(), &Dialling::default()).await {
                Ok(Some(mut server)) => {
                    server.held.push(Box::new(seat));
                    server.entry.set_state(ServerState::Idle);
                    self.queue.put(server);
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// What a client with these settings is told at its login, if some client was before. They are compared as they
    /// stand in the startup packet: nearly all clients of a program write the same.
    pub fn welcome(&self, startup: &[(String, String)]) -> Option<Arc<Welcome>> {
        lock(&self.welcomes).iter().find(|(known, _)| known == startup).map(|(_, welcome)| Arc::clone(welcome))
    }

    /// What a client with these settings is told, if some client was that wrote them differently.
    pub fn welcome_of(&self, settings: &Settings) -> Option<Arc<Welcome>> {
        let welcomes = lock(&self.welcomes);
        let found = welcomes.iter().find(|(_, welcome)| welcome.settings.same(settings));
        found.map(|(_, welcome)| Arc::clone(welcome))
    }

    /// Remembers what a client that writes these settings is told.
    pub fn remember_welcome(&self, startup: StartupSettings, welcome: Arc<Welcome>) {
        /// Clients whose settings are all their own gain nothing from being remembered.
        const MOST: usize = 64;
        let mut welcomes = lock(&self.welcomes);
        if welcomes.len() >= MOST {
            welcomes.remove(0);
        }
        welcomes.push((startup, welcome));
    }

    /// The settings a session begins with.
    pub fn defaults(&self) -> &Settings {
        &self.defaults
    }
}

/// Since when a connection is being made for who waits.
#[derive(Debug, Default)]
pub struct Dialling(Mutex<Option<Instant>>);

impl Dialling {
    fn note(&self, since: Option<Instant>) {
        *lock(&self.0) = since;
    }
}

/// An attempt to connect that takes longer than this is not waited for where there is another place to go.
const WORTH_WAITING: Duration = Duration::from_secs(1);

/// A wait for a connection.
pub enum Wait {
    /// Somebody will give us one.
    InLine(InLine),
    /// There may be more to do than to wait.
    Long(Pin<Box<dyn Future<Output = Result<Lease, LeaseError>> + Send>>, Arc<Dialling>),
}

/// A client in a pool's line.
#[derive(Debug)]
pub struct InLine {
    waiting: Waiting,
    pool: Arc<Pool>,
    client: u64,
    started: Instant,
    deadline: Instant,
}

impl Wait {
    /// Ready with a connection, or with why there is none; not to be asked again then.
    pub fn poll(&mut self, cx: &mut Context<'_>, now: impl FnOnce() -> Instant) -> Poll<Result<Lease, LeaseError>> {
        if let Self::InLine(InLine { waiting, pool, client, started, deadline }) = self {
            let Poll::Ready(place) = waiting.poll(cx) else { return Poll::Pending };
            let place = match place {
                Place::Server(server) if pool.gate.is_open() => match pool.hand_out(server, *client, now()) {
                    Some(server) => return Poll::Ready(Ok(Lease { server, pool: Arc::clone(pool) })),
                    None => None,
                },
                other @ (Place::Server(_) | Place::Seat(_) | Place::None) => Some(other),
            };
            let dialling = Arc::default();
            let lease = Arc::clone(pool).lease_with(place, *client, *started, *deadline, Arc::clone(&dialling));
            *self = Self::Long(Box::pin(lease), dialling);
        }
        match self {
            Self::InLine(_) => Poll::Pending,
            Self::Long(future, _) => future.as_mut().poll(cx),
        }
    }

    /// Whether a connection is being made for this client, which ends if it does not wait any more; and has not been for so
    /// long that it may as well never come.
    pub fn is_dialling(&self, now: Instant) -> bool {
        match self {
            Self::Long(_, dialling) => {
                lock(&dialling.0).is_some_and(|since| now.saturating_duration_since(since) < WORTH_WAITING)
            }
            Self::InLine(_) => false,
        }
    }
}

impl std::fmt::Debug for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InLine(line) => line.fmt(f),
            Self::Long(..) => f.write_str("Long"),
        }
    }
}

/// A login, counted.
#[derive(Debug)]
struct UnderWay<'a>(&'a Mutex<usize>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut count = lock(self.0);
        *count = count.saturating_sub(1);
    }
}

/// A connection's line in its pool's list.
#[derive(Debug)]
struct Registered {
    pool: Weak<Pool>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            lock(&pool.servers).remove(&self.id);
            lock(&pool.apart).remove(&self.id);
            pool.limits.iter().for_each(|limit| limit.room_was_made());
        }
    }
}

impl std::fmt::Display for PoolName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.database, self.user)
    }
}
