//! Asks the nodes of a cluster what they are, on a clock and when somebody waits for it, and publishes what they answer.
//!
//! Each node has a task with one connection and never more than one question on its way: who asks while one is, gets the
//! answer to the next. Whatever comes is put into a [`Survey`], and what that makes of it goes out as one immutable
//! [`Topology`].

mod knowledge;
mod login;
mod meter;
mod probe;

pub use knowledge::{Facts, Knowledge, NotKnown, ask};
pub use login::Login;
pub use meter::{Busy, Meter};

use crate::net::Address;
use crate::routing::survey::{Known, Location, Probe, Survey};
use crate::routing::{Causal, Consistency, Lsn, Moment, NodeId, State, Tick, Topology, Trouble};
use crate::server::DialError;
use probe::{Link, NoAnswer};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// How close probes of a node may follow each other when somebody waits all the time.
const CLOSEST: Duration = Duration::from_millis(5);
/// The same for logins at one that gave no answer: however many wait for it, it is not to be flooded with them.
const CLOSEST_LOGINS: Duration = Duration::from_millis(100);
/// While nobody needs to know, nodes are asked this many times less often.
const IDLE_FACTOR: u32 = 10;
/// Who needed to know so long ago may need to again.
const ACTIVE: Duration = Duration::from_secs(2);
/// A login takes several round trips, so it may take longer than a probe, by this factor.
const LOGIN_FACTOR: u32 = 3;
/// How long a replica may take to answer who waits for a position: no probe of it is sent meanwhile, and others may wait for that.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
const UNKNOWN: usize = usize::MAX;

/// How nodes are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Habits {
    /// How often while somebody needs to know, or while something is wrong.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// A replica that is further behind than this has come back when it is not any more.
    pub max_lag: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self { interval: Duration::from_millis(100), timeout: Duration::from_secs(1), max_lag: Duration::from_secs(10) }
    }
}

/// The numbers of probes, one row of them for all clusters.
#[derive(Debug, Default)]
pub struct Ticks(AtomicU64);

impl Ticks {
    /// This moment. What has happened before the call has happened for every probe with a higher number.
    #[inline]
    pub fn now(&self) -> Moment {
        self.at(Instant::now())
    }

    #[inline]
    fn at(&self, now: Instant) -> Moment {
        // Neither may this move in front of what has happened, nor a probe in front of its number.
        Moment { tick: Tick(self.0.load(Ordering::SeqCst)), at: now }
    }

    fn draw(&self) -> Moment {
        let at = Instant::now();
        Moment { tick: Tick(self.0.fetch_add(1, Ordering::SeqCst) + 1), at }
    }
}

/// A node to watch.
#[derive(Debug, Clone)]
pub struct Member {
    /// What is known of it from the configuration.
    pub known: Known,
    /// Where it is.
    pub address: Address,
    /// What it has to do.
    pub meter: Arc<Meter>,
}

/// The monitor of a cluster. Dropped, it stops.
#[derive(Debug)]
pub struct Monitor {
    shared: Arc<Shared>,
    tasks: Vec<AbortHandle>,
    runtime: Handle,
    /// What is known of each database, for as long as somebody needs it.
    databases: Mutex<HashMap<Box<str>, Weak<Knowledge>>>,
}

#[derive(Debug)]
struct Shared {
    members: Vec<Member>,
    ticks: Arc<Ticks>,
    habits: Mutex<Habits>,
    logins: Mutex<Vec<Weak<Login>>>,
    survey: Mutex<Survey>,
    published: watch::Sender<Arc<Topology>>,
    /// The primary's place, for those who need nothing else.
    primary: AtomicUsize,
    /// Wakes the task of each node.
    kicks: Vec<Notify>,
    /// For each node, a position that somebody waits for it to replay, and until when.
    awaited: Vec<Mutex<Option<(Lsn, Instant)>>>,
    born: Instant,
    /// When somebody last needed to know, in milliseconds since `born`.
    needed: AtomicU64,
}

/// The newest [`Topology`] for one reader: it costs an atomic load unless there is a new one.
#[derive(Debug)]
pub struct Watcher {
    receiver: watch::Receiver<Arc<Topology>>,
    newest: Arc<Topology>,
}

/// Why there is no primary.
#[derive(Debug, Clone)]
pub enum NoPrimary {
    /// The time was over.
    Timeout,
    /// The nodes refuse the login.
    Refused(Arc<DialError>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watcher {
    /// The newest one.
    #[inline]
    pub fn get(&mut self) -> &Arc<Topology> {
        // An error says that the monitor is gone: what it said last has to do.
        if self.receiver.has_changed().unwrap_or(false) {
            self.newest = Arc::clone(&self.receiver.borrow_and_update());
        }
        &self.newest
    }

    /// Waits for the next one.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.newest = Arc::clone(&self.receiver.borrow_and_update());
    }
}

impl Monitor {
    /// Starts to watch these nodes, on this runtime.
    pub fn start(
        runtime: &Handle,
        place: Location,
        members: Vec<Member>,
        habits: Habits,
        ticks: Arc<Ticks>,
    ) -> Arc<Self> {
        let now = Instant::now();
        let known = members.iter().map(|member| member.known.clone()).collect();
        let mut survey = Survey::new(place, known, habits.max_lag, now);
        let (published, _) = watch::channel(Arc::new(survey.topology()));
        let shared = Arc::new(Shared {
            kicks: members.iter().map(|_| Notify::new()).collect(),
            awaited: members.iter().map(|_| Mutex::default()).collect(),
            members,
            ticks,
            habits: Mutex::new(habits),
            logins: Mutex::default(),
            survey: Mutex::new(survey),
            published,
            primary: AtomicUsize::new(UNKNOWN),
            born: now,
            needed: AtomicU64::new(0),
        });
        let watch = |at| runtime.spawn(Arc::clone(&shared).watch(at)).abort_handle();
        let tasks = (0..shared.members.len()).map(watch).collect();
        Arc::new(Self { shared, tasks, runtime: runtime.clone(), databases: Mutex::default() })
    }

    /// Takes over changed labels and habits.
    pub fn adopt(&self, place: Location, known: &[Known], habits: Habits) {
        *lock(&self.shared.habits) = habits;
        let mut survey = lock(&self.shared.survey);
        survey.relabel(place, habits.max_lag, known);
        self.shared.publish(&mut survey);
    }

    /// Nodes may be asked as this one, for as long as the caller keeps it.
    pub fn lend(&self, login: &Arc<Login>) {
        let mut logins = lock(&self.shared.logins);
        logins.retain(|known| known.strong_count() > 0);
        if !logins.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(login))) {
            logins.push(Arc::downgrade(login));
        }
        drop(logins);
        self.shared.kick_all();
    }

    /// What is known of the functions of a database, and will be for as long as the caller keeps it and its login.
    /// `allowed` names functions that an operator vouches for.
    pub fn knowledge(&self, database: &str, login: &Arc<Login>, allowed: &[String]) -> Arc<Knowledge> {
        let mut databases = lock(&self.databases);
        databases.retain(|_, known| known.strong_count() > 0);
        if let Some(known) = databases.get(database).and_then(Weak::upgrade)
            && known.allowed().iter().map(|name| &**name).eq(allowed.iter().map(String::as_str))
        {
            known.lend(login);
            return known;
        }
        let known = Knowledge::new(database, allowed.iter().map(|name| name.as_str().into()).collect());
        known.lend(login);
        databases.insert(database.into(), Arc::downgrade(&known));
        let study = Arc::clone(&self.shared).study(Arc::downgrade(&known));
        self.runtime.spawn(study);
        known
    }

    /// What is known now.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::clone(&self.shared.published.borrow())
    }

    /// What is known now and later, for one reader.
    pub fn watcher(&self) -> Watcher {
        let receiver = self.shared.published.subscribe();
        let newest = Arc::clone(&receiver.borrow());
        Watcher { receiver, newest }
    }

    /// This moment, in the numbers of probes.
    #[inline]
    pub fn now(&self) -> Moment {
        self.shared.ticks.now()
    }

    /// The same for one who has just looked at the clock.
    #[inline]
    pub fn moment(&self, now: Instant) -> Moment {
        self.shared.ticks.at(now)
    }

    /// What a node has to do.
    pub fn meter(&self, at: usize) -> Option<&Arc<Meter>> {
        self.shared.members.get(at).map(|member| &member.meter)
    }

    /// The nodes, in the order of the topology.
    pub fn members(&self) -> &[Member] {
        &self.shared.members
    }

    /// Somebody routes by what is known: it is kept new for a while.
    #[inline]
    pub fn touch(&self, now: Instant) {
        let now = now.saturating_duration_since(self.shared.born).as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        // Not written more often than it matters: all threads share the line.
        if self.shared.needed.load(Ordering::Relaxed) + 100 < now {
            let before = self.shared.needed.swap(now, Ordering::Relaxed);
            if u128::from(now - before.min(now)) > ACTIVE.as_millis() {
                self.shared.kick_all();
            }
        }
    }

    /// Somebody waits for an answer to a probe that begins after now: all nodes are asked at once.
    pub fn want_sample(&self) {
        self.shared.needed.store(self.shared.since_born(), Ordering::Relaxed);
        self.shared.kick_all();
    }

    /// A client's connection has seen trouble at a node: it broke, or the server is about to end.
    pub fn suspect(&self, node: NodeId, what: &'static str) {
        self.shared.report(node, |survey, at, now| survey.suspect(at, what, now));
    }

    /// A client's connection has seen that a node is not the primary: it refused to write, or says that it is in recovery.
    /// It is not believed to be until it says so again.
    pub fn demote(&self, node: NodeId, what: &'static str) {
        let tick = self.now().tick;
        self.shared.report(node, |survey, at, now| survey.demote(at, what, tick, now));
    }

    /// A client's connection has seen that a replica has become the primary.
    pub fn look_again(&self, node: NodeId) {
        self.shared.report(node, |_, _, _| {});
    }

    /// The primary's place among the nodes, if there is one.
    #[inline]
    pub fn primary(&self) -> Option<usize> {
        let at = self.shared.primary.load(Ordering::Acquire);
        (at != UNKNOWN).then_some(at)
    }

    /// The primary's place among the nodes, waited for. `login` is whose refusal would end the wait.
    pub async fn find_primary(&self, login: &Login, deadline: Instant) -> Result<usize, NoPrimary> {
        let mut watcher = self.watcher();
        loop {
            let topology = watcher.get();
            if let Some(at) = topology.primary {
                return Ok(at);
            }
            let tried = topology.nodes.iter().all(|node| node.state != State::New);
            if tried && let Some(error) = login.refusal() {
                return Err(NoPrimary::Refused(error));
            }
            self.want_sample();
            let interval = lock(&self.shared.habits).interval;
            let until = (Instant::now() + interval).min(deadline);
            let _ = tokio::time::timeout_at(until.into(), watcher.changed()).await;
            if Instant::now() >= deadline && watcher.get().primary.is_none() {
                return Err(NoPrimary::Timeout);
            }
        }
    }

    /// Waits until the position is known of all that a session has written and seen. False if that was not so in time.
    pub async fn position(&self, causal: &mut Causal, deadline: Instant) -> bool {
        let mut watcher = self.watcher();
        loop {
            let topology = watcher.get();
            causal.settle(topology);
            if causal.lsn(topology).is_ok() {
                return true;
            }
            self.want_sample();
            if tokio::time::timeout_at(deadline.into(), watcher.changed()).await.is_err() {
                return false;
            }
        }
    }

    /// Waits until a node has answered a probe that was sent after this time. False if that was not so in time.
    pub async fn sampled_since(&self, node: NodeId, time: Instant, deadline: Instant) -> bool {
        let mut watcher = self.watcher();
        loop {
            if watcher.get().node(node).is_some_and(|node| node.sampled >= time) {
                return true;
            }
            self.want_sample();
            if tokio::time::timeout_at(deadline.into(), watcher.changed()).await.is_err() {
                return false;
            }
        }
    }

    /// Waits until a replica has all that a session needs. False if that was not so in time.
    pub async fn freshness(
        &self,
        causal: &mut Causal,
        consistency: Consistency,
        begun: Moment,
        deadline: Instant,
    ) -> bool {
        let mut watcher = self.watcher();
        loop {
            let topology = watcher.get();
            causal.settle(topology);
            let mut sound = topology.nodes.iter().filter(|node| node.is_sound_replica());
            if sound.any(|node| causal.is_fresh(node, topology, consistency, begun).is_ok()) {
                return true;
            }
            if let Some(position) = causal.awaits(topology, consistency, begun) {
                self.shared.wants_position(position, deadline);
            }
            self.want_sample();
            if tokio::time::timeout_at(deadline.into(), watcher.changed()).await.is_err() {
                return false;
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    fn since_born(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn kick_all(&self) {
        self.kicks.iter().for_each(Notify::notify_one);
    }

    /// Somebody waits for any node to replay this. The nearest such position is the one to wait for: who needs more asks again.
    fn wants_position(&self, position: Lsn, until: Instant) {
        for awaited in &self.awaited {
            let mut awaited = lock(awaited);
            *awaited = Some(match *awaited {
                Some((other, its)) if other <= position && its > Instant::now() => (other, its),
                Some(_) | None => (position, until),
            });
        }
    }

    /// The position that a replica is to replay before it is asked anything else, and how long that may take.
    fn awaited(&self, at: usize) -> Option<(Lsn, Duration)> {
        let (position, until) = lock(&self.awaited[at]).take()?;
        let topology = self.published.borrow();
        let node = &topology.nodes[at];
        let is_behind = node.is_sound_replica() && node.lsn.is_some_and(|lsn| lsn < position);
        is_behind.then(|| (position, until.saturating_duration_since(Instant::now()).min(LONGEST_WAIT)))
    }

    fn report(&self, node: NodeId, change: impl FnOnce(&mut Survey, usize, Instant)) {
        let Some(at) = self.members.iter().position(|member| member.known.id == node) else { return };
        let mut survey = lock(&self.survey);
        change(&mut survey, at, Instant::now());
        self.publish(&mut survey);
        drop(survey);
        self.kick_all();
    }

    fn publish(&self, survey: &mut Survey) {
        let new = Arc::new(survey.topology());
        self.primary.store(new.primary.unwrap_or(UNKNOWN), Ordering::Release);
        let old = self.published.send_replace(Arc::clone(&new));
        log_changes(&old, &new);
    }

    /// How long until a node is asked again, if nobody wants it sooner.
    fn pause(&self, at: usize) -> Duration {
        let Habits { interval, .. } = *lock(&self.habits);
        let needed = Duration::from_millis(self.needed.load(Ordering::Relaxed)) + ACTIVE >= self.born.elapsed();
        let survey = lock(&self.survey);
        // A node that is down for good shall not be dialled ten times a second for ever.
        let down = matches!(self.published.borrow().nodes[at].state, State::Down(_));
        if (needed && !down) || survey.is_pressing() { interval } else { IDLE_FACTOR * interval }
    }

    /// Asks one node, again and again.
    async fn watch(self: Arc<Self>, at: usize) {
        let mut link = None;
        loop {
            let began = Instant::now();
            let closest = self.ask(at, &mut link).await;
            let pause = self.pause(at);
            tokio::select! {
                () = tokio::time::sleep_until((began + pause).into()) => {}
                () = self.kicks[at].notified() => tokio::time::sleep_until((began + closest).into()).await,
            }
        }
    }

    /// Asks a node once; gives how soon it may be asked again.
    async fn ask(&self, at: usize, link: &mut Option<Link>) -> Duration {
        let Habits { timeout: limit, .. } = *lock(&self.habits);
        let mut connected = match link.take() {
            Some(link) => link,
            None => match timeout(LOGIN_FACTOR * limit, self.connect(at)).await {
                Ok(Ok(Some(link))) => link,
                // Nobody has a login to lend.
                Ok(Ok(None)) => return CLOSEST,
                Ok(Err(trouble)) => {
                    self.failed(at, trouble);
                    return CLOSEST_LOGINS;
                }
                Err(_) => {
                    self.failed(at, Trouble::Silent(LOGIN_FACTOR * limit));
                    return CLOSEST_LOGINS;
                }
            },
        };
        let worked = connected.proven;
        if let Some((position, patience)) = self.awaited(at) {
            match timeout(patience + limit, connected.wait_for(position, patience)).await {
                Ok(Ok(())) => {}
                // As it would be for a probe.
                Ok(Err(error)) => {
                    self.failed(at, Trouble::Lost(error.to_string().into()));
                    return CLOSEST;
                }
                Err(_) => {
                    self.failed(at, Trouble::Silent(patience + limit));
                    return CLOSEST;
                }
            }
        }
        let sent = self.ticks.draw();
        let trouble = match timeout(limit, connected.ask()).await {
            Ok(Ok(answer)) => {
                let now = Instant::now();
                let first = !std::mem::replace(&mut connected.proven, true);
                let probe = Probe { sent, took: now - sent.at, first };
                let mut survey = lock(&self.survey);
                survey.answered(at, probe, &answer, now);
                self.publish(&mut survey);
                *link = Some(connected);
                return CLOSEST;
            }
            Ok(Err(NoAnswer::Broken(error))) => Trouble::Lost(error.to_string().into()),
            Ok(Err(NoAnswer::Odd(what))) => {
                connected.close();
                Trouble::Answer(what)
            }
            Err(_) => Trouble::Silent(limit),
        };
        self.failed(at, trouble);
        if !worked {
            return CLOSEST_LOGINS;
        }
        // It may just have been this connection.
        self.kicks[at].notify_one();
        CLOSEST
    }

    fn failed(&self, at: usize, trouble: Trouble) {
        let mut survey = lock(&self.survey);
        survey.failed(at, trouble, Instant::now());
        self.publish(&mut survey);
    }

    async fn connect(&self, at: usize) -> Result<Option<Link>, Trouble> {
        let Some(login) = self.login() else { return Ok(None) };
        if login.due().is_some_and(|due| due > Instant::now()) {
            let why = login.refusal().map(|error| error.to_string()).unwrap_or_default();
            return Err(Trouble::Login(why.into()));
        }
        let server = login.dial(at).await.map_err(|error| match &*error {
            DialError::Refused { .. } | DialError::Proof { .. } | DialError::NoCredential { .. } => {
                Trouble::Login(error.to_string().into())
            }
            DialError::Connect { .. }
            | DialError::Tls { .. }
            | DialError::TlsRefused { .. }
            | DialError::Broken { .. }
            | DialError::LeftAlone { .. }
            | DialError::Timeout { .. } => Trouble::Unreachable(error.to_string().into()),
        })?;
        let link = Link::new(server).await.map_err(|error| match error {
            NoAnswer::Broken(error) => Trouble::Lost(error.to_string().into()),
            NoAnswer::Odd(what) => Trouble::Answer(what),
        })?;
        Ok(Some(link))
    }

    /// A login that was not refused lately, or else the one that may be tried first.
    fn login(&self) -> Option<Arc<Login>> {
        let mut logins = lock(&self.logins);
        logins.retain(|login| login.strong_count() > 0);
        logins.iter().filter_map(Weak::upgrade).min_by_key(|login| login.due())
    }
}

fn log_changes(old: &Topology, new: &Topology) {
    for (old, new) in old.nodes.iter().zip(&new.nodes) {
        let (host, port, role) = (&*new.host, new.port, new.role.as_str());
        if std::mem::discriminant(&old.state) != std::mem::discriminant(&new.state) {
            let why = new.state.why().unwrap_or_default();
            match new.state {
                State::New | State::Up => tracing::info!(host, port, role, "node is {}", new.state.as_str()),
                State::Suspect(_) => tracing::info!(host, port, role, why, "node is suspect"),
                State::Down(_) | State::Refused(_) => {
                    tracing::warn!(host, port, role, why, "node is {}", new.state.as_str());
                }
            }
        }
    }
    match (old.primary(), new.primary()) {
        (Some(old), Some(new)) if old.id == new.id => {}
        (_, Some(new)) => tracing::info!(host = &*new.host, port = new.port, timeline = new.timeline, "primary found"),
        (Some(old), None) => tracing::warn!(host = &*old.host, port = old.port, "there is no primary any more"),
        (None, None) => {}
    }
}
