//! LISTEN in transaction mode: one server connection listens for all clients of a database, so that an idle listener holds
//! no server.
//!
//! A client that listens has a [`Listener`]. What it listens to goes to its desk, a task that owns the listening
//! connection of the client's database and knows who listens to what; it tells the server of a channel when the first
//! client comes, and of its end when the last has left. Notifications go the other way: the desk puts each frame, once in
//! memory, into the [`Mailbox`] of everyone who listens to its channel, and wakes them.
//!
//! What PostgreSQL promises holds: from the moment at which a [`Subscription`] has come true, every notification that is
//! committed reaches the mailbox, in the order of the commits, and none that was committed before it was asked for. If the
//! connection is lost the desk says so in the log, makes another and listens to everything again; what was sent meanwhile
//! is lost, as it is for any client of PostgreSQL that has to connect again.
//!
//! Notifications come in the encoding of the session that receives them, so there is one connection for each encoding that
//! clients of a database use. Any role may listen to anything in a database that it can connect to: one connection, logged
//! in as any of the clients, serves them all.

mod board;
mod desk;
mod line;
mod mailbox;

pub use mailbox::{LIMIT, Mailbox, Missed};

use crate::net::budget::Budget;
use crate::pool::{LeaseError, PoolSet};
use crate::wire::{Report, SqlState};
use desk::{Command, Desk, Pending};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

/// The name of a channel, in the encoding of those who listen to it.
type Channel = Arc<[u8]>;

/// How long the end of a connection is waited for when the program stops.
const GOODBYE: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How listening connections are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Habits {
    /// How long a connection is kept when nobody listens any more.
    pub idle: Duration,
    /// How long a channel that nobody listens to any more may stay on the server: who comes back in time costs nothing.
    pub linger: Duration,
    /// A connection that was silent for this long is asked whether it is alive. TCP keepalive sees a host that vanished;
    /// it does not see a process that stopped, nor what is behind a proxy.
    pub probe: Duration,
    /// How long the server may take to answer.
    pub patience: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(30),
            linger: Duration::from_secs(1),
            probe: Duration::from_secs(30),
            patience: Duration::from_secs(10),
        }
    }
}

/// All listening connections. Their tasks run on one runtime, which must live as long as the clients do.
#[derive(Debug)]
pub struct Hubs {
    runtime: Handle,
    habits: Habits,
    budget: Arc<Budget>,
    hubs: Mutex<HashMap<Key, Arc<Hub>>>,
    closed: AtomicBool,
    totals: Totals,
}

/// Clients of the same database who can share a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// As clients name it.
    database: Arc<str>,
    encoding: Arc<str>,
}

/// What has happened on all listening connections since the start.
#[derive(Debug, Default)]
pub struct Totals {
    /// Notifications put into mailboxes: one for each client that it was for.
    pub delivered: AtomicU64,
    /// Listening connections lost while somebody listened.
    pub lost: AtomicU64,
}

/// The way to one desk.
#[derive(Debug)]
struct Hub {
    commands: UnboundedSender<Command>,
    facts: Arc<Facts>,
}

/// What a desk lets others know.
#[derive(Debug)]
struct Facts {
    key: Key,
    channels: AtomicUsize,
    clients: AtomicUsize,
    notifications: AtomicU64,
    delivered: AtomicU64,
    lost: AtomicU64,
    /// The server, its process, and since when there is a connection to it.
    connection: Mutex<Option<(Arc<str>, i32, Instant)>>,
}

/// What is known of one listening connection.
#[derive(Debug, Clone)]
pub struct Status {
    /// The database as clients name it.
    pub database: Arc<str>,
    /// The encoding of its clients.
    pub encoding: Arc<str>,
    /// The server, its process, and since when there is a connection to it; none while there is no connection.
    pub connection: Option<(Arc<str>, i32, Instant)>,
    /// Channels that somebody listens to.
    pub channels: usize,
    /// Clients that listen.
    pub clients: usize,
    /// Notifications that somebody listened for.
    pub notifications: u64,
    /// The same, counted for each client that they reached.
    pub delivered: u64,
    /// Times it was lost while somebody listened.
    pub lost: u64,
}

impl Hubs {
    /// No connections. The tasks of those to come run on `runtime`; what they keep for clients counts in `budget`.
    pub fn new(runtime: Handle, habits: Habits, budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            habits,
            budget,
            hubs: Mutex::default(),
            closed: AtomicBool::new(false),
            totals: Totals::default(),
        })
    }

    /// A place for one client of these pools whose `client_encoding` is `encoding`, as the server spells it, and whose task
    /// `waker` wakes. Nothing is dialled before it listens to something.
    pub fn listener(self: &Arc<Self>, pools: &Arc<PoolSet>, encoding: &str, waker: Waker) -> Listener {
        let key = Key { database: Arc::clone(&pools.name.database), encoding: encoding.into() };
        let mut hubs = lock(&self.hubs);
        // One whose task has ended by a bug must not stand in the way of a new one.
        hubs.retain(|_, hub| !hub.commands.is_closed());
        let hub = Arc::clone(hubs.entry(key.clone()).or_insert_with(|| self.open(key)));
        Listener { mailbox: Mailbox::new(waker), hub, pools: Arc::clone(pools) }
    }

    fn open(self: &Arc<Self>, key: Key) -> Arc<Hub> {
        // As many commands as clients have transactions that change what they listen to, each of which costs a client more
        // than the desk.
        let (commands, inbox) = unbounded_channel();
        let facts = Arc::new(Facts {
            key,
            channels: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            notifications: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            connection: Mutex::default(),
        });
        if !self.closed.load(Ordering::Relaxed) {
            self.runtime.spawn(Desk::new(self, Arc::clone(&facts), inbox).run());
        }
        Arc::new(Hub { commands, facts })
    }

    /// Forgets a hub that nobody has, and says whether it did.
    fn retire(&self, key: &Key) -> bool {
        let mut hubs = lock(&self.hubs);
        // Under this lock nobody new can get it.
        let unused = hubs.get(key).is_none_or(|hub| Arc::strong_count(hub) == 1);
        if unused {
            hubs.remove(key);
        }
        unused
    }

    /// What is known of each connection, by database and encoding.
    pub fn status(&self) -> Vec<Status> {
        let mut all: Vec<Status> = lock(&self.hubs).values().map(|hub| hub.facts.status()).collect();
        all.sort_by(|a, b| (&a.database, &a.encoding).cmp(&(&b.database, &b.encoding)));
        all
    }

    /// What has happened on all of them.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Closes all connections in order; nobody can listen any more. For the end of the program.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let hubs: Vec<Arc<Hub>> = lock(&self.hubs).drain().map(|(_, hub)| hub).collect();
        let goodbyes = hubs.iter().map(|hub| {
            let (done, over) = oneshot::channel();
            let _ = hub.commands.send(Command::Close(done));
            over
        });
        let goodbyes: Vec<_> = goodbyes.collect();
        let all = async {
            for over in goodbyes {
                let _ = over.await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE, all).await;
    }
}

impl Facts {
    fn status(&self) -> Status {
        Status {
            database: Arc::clone(&self.key.database),
            encoding: Arc::clone(&self.key.encoding),
            connection: lock(&self.connection).clone(),
            channels: self.channels.load(Ordering::Relaxed),
            clients: self.clients.load(Ordering::Relaxed),
            notifications: self.notifications.load(Ordering::Relaxed),
            delivered: self.delivered.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
        }
    }
}

/// One client that listens. Dropped, it listens to nothing any more.
#[derive(Debug)]
pub struct Listener {
    mailbox: Arc<Mailbox>,
    hub: Arc<Hub>,
    pools: Arc<PoolSet>,
}

impl Listener {
    /// Where its notifications are put.
    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    /// Whether it listens for clients with this encoding. One whose client has changed it must be replaced.
    pub fn has_encoding(&self, encoding: &str) -> bool {
        *self.hub.facts.key.encoding == *encoding
    }

    /// Listens to these channels as well: names of up to 63 bytes, as `pg_listening_channels()` has them. With several
    /// calls at a time, the later ones do not wait for what the earlier ones have asked for.
    ///
    /// The subscription comes true when a round trip to the server has shown that it tells us of all of them, also of those
    /// that others listen to already. It fails when there was no connection by `deadline`, when none can be had, or when
    /// the server refuses a name; then none of the channels that were new is listened to. Dropping it changes nothing.
    pub fn listen(&self, channels: impl IntoIterator<Item = Box<[u8]>>, deadline: Instant) -> Subscription {
        let channels: Vec<Channel> = channels.into_iter().map(Channel::from).collect();
        if channels.iter().any(|channel| !board::is_name(channel)) {
            let report = Report::ours(SqlState::INVALID_PARAMETER_VALUE, "no channel can have this name");
            return Subscription::decided(Err(report));
        }
        let (channels, opening) = self.mailbox.open(channels);
        if channels.is_empty() {
            return Subscription::decided(Ok(()));
        }
        self.ask(channels, opening, None, deadline)
    }

    /// Comes true when all notifications that were committed before now are in the mailbox, at the cost of a round trip:
    /// PostgreSQL gives a client what it has sent to itself before it says that it is ready, and clients count on that.
    /// Fails at once where the connection is lost, and by `deadline`; the client need not be told.
    pub fn catch_up(&self, deadline: Instant) -> Subscription {
        if self.is_idle() { Subscription::decided(Ok(())) } else { self.ask(Vec::new(), 0, None, deadline) }
    }

    /// The same, and it notifies a channel before.
    pub fn notify(&self, channel: Box<[u8]>, deadline: Instant) -> Subscription {
        self.ask(Vec::new(), 0, Some(channel.into()), deadline)
    }

    /// Takes over what has come for another listener of the same client, as far as a notification of the channel `mark` that
    /// both have got: before that it is the other one's that counts, and behind it this one's. Both get all in the same
    /// order, so nothing is missing and nothing is there twice. False, and nothing is changed, if one of them lacks the mark.
    pub fn take_over(&self, other: &Self, mark: &[u8]) -> bool {
        self.mailbox.take_over(&other.mailbox, mark)
    }

    fn ask(&self, channels: Vec<Channel>, opening: u64, notify: Option<Channel>, deadline: Instant) -> Subscription {
        let (done, answer) = oneshot::channel();
        let pending = Pending {
            mailbox: Arc::clone(&self.mailbox),
            pools: Arc::clone(&self.pools),
            is_barrier: channels.is_empty(),
            channels,
            opening,
            notify,
            asked: Instant::now(),
            deadline,
            alone: false,
            done,
        };
        let _ = self.hub.commands.send(Command::Listen(pending));
        Subscription(Answer::Asked(answer))
    }

    /// Listens to none of these any more, from now on. What waits of them is dropped.
    pub fn unlisten(&self, channels: impl IntoIterator<Item = Box<[u8]>>) {
        self.shut(channels.into_iter().map(Channel::from).collect());
    }

    /// Drops what has come of these channels so far: it was sent before the client listened to them.
    pub fn forget(&self, channels: impl IntoIterator<Item = Box<[u8]>>) {
        let channels: Vec<Channel> = channels.into_iter().map(Channel::from).collect();
        self.mailbox.clear(&channels);
    }

    /// Listens to exactly these: [`Listener::unlisten`] to all others, and [`Listener::listen`].
    pub fn listen_only(&self, channels: impl IntoIterator<Item = Box<[u8]>>, deadline: Instant) -> Subscription {
        let channels: Vec<Box<[u8]>> = channels.into_iter().collect();
        let wanted: std::collections::HashSet<&[u8]> = channels.iter().map(|channel| &**channel).collect();
        let others = self.mailbox.channels().into_iter().filter(|channel| !wanted.contains(&**channel)).collect();
        self.shut(others);
        self.listen(channels, deadline)
    }

    /// Whether it listens to nothing.
    pub fn is_idle(&self) -> bool {
        self.mailbox.channels().is_empty()
    }

    fn shut(&self, channels: Vec<Channel>) {
        let channels = self.mailbox.shut(channels);
        if !channels.is_empty() {
            let _ = self.hub.commands.send(Command::Unlisten(self.mailbox.id, channels));
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shut(self.mailbox.channels());
    }
}

/// The promise that channels are listened to; an error is for the client.
#[derive(Debug)]
#[must_use = "until it has come true, notifications may be missed"]
pub struct Subscription(Answer);

#[derive(Debug)]
enum Answer {
    /// It was known at once; none if it was taken.
    Known(Option<Result<(), Report>>),
    /// The desk gives it.
    Asked(oneshot::Receiver<Result<(), Report>>),
}

impl Subscription {
    fn decided(answer: Result<(), Report>) -> Self {
        Self(Answer::Known(Some(answer)))
    }
}

impl Future for Subscription {
    type Output = Result<(), Report>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let closed = || Err(LeaseError::Closed.report());
        match &mut self.0 {
            Answer::Known(answer) => Poll::Ready(answer.take().unwrap_or_else(closed)),
            Answer::Asked(answer) => {
                let answer = ready!(Pin::new(answer).poll(cx)).unwrap_or_else(|_| closed());
                self.0 = Answer::Known(None);
                Poll::Ready(answer)
            }
        }
    }
}
