//! The pools of one database and user, one for each server.

use super::directory::Database;
use super::limit::Limit;
use super::{
    GateState, Lease, LeaseError, Node, Pool, PoolConfig, PoolName, Record, Routes, Stats, Totals, Wait, Wish, lock,
};
use crate::credentials::Source;
use crate::monitor::{Login, Monitor, NoPrimary};
use crate::routing::{NodeId, Preference};
use crate::server::Target;
use crate::session::PoolMode;
use crate::session::settings::Settings;
use crate::telemetry::Telemetry;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// What a set of pools should be like.
pub(super) struct Wanted {
    pub(super) database: Arc<Database>,
    /// Its servers, and the limits of connections to each that hold over several pools.
    pub(super) targets: Vec<(Arc<Node>, Target, Vec<Arc<Limit>>)>,
    /// What watches these servers, where there are several, and how it can log in.
    pub(super) monitor: Option<(Arc<Monitor>, Arc<Login>)>,
    pub(super) pool: PoolConfig,
    pub(super) source: Arc<dyn Source>,
    /// The source was made from the configuration.
    pub(super) own_source: bool,
    pub(super) mode: PoolMode,
    pub(super) defaults: Settings,
    pub(super) telemetry: Arc<Telemetry>,
    /// What is said of the user's reads.
    pub(super) preference: Preference,
    /// Clients of the database and of the user, and how many there may be.
    pub(super) clients: [(Arc<AtomicUsize>, Option<usize>); 2],
}

/// The pools of one database and user.
#[derive(Debug)]
pub struct PoolSet {
    /// The names.
    pub name: PoolName,
    /// What happened to its clients while they had no server.
    pub stats: Stats,
    state: RwLock<State>,
    /// Pools of servers that the configuration has no more, for as long as somebody has a connection of theirs.
    leaving: Mutex<Vec<Arc<Pool>>>,
    /// What happened in those that are gone.
    departed: Mutex<Totals>,
    /// Counts the configurations.
    version: AtomicU64,
    members: Arc<AtomicUsize>,
    /// See [`PoolSet::idle_limit`]: milliseconds and one more; 0 if it is not known.
    idle_limit: AtomicU64,
    /// Since when it has had neither clients nor connections.
    unused: Mutex<Option<Instant>>,
}

#[derive(Debug, Clone)]
struct State {
    database: Arc<Database>,
    mode: PoolMode,
    pools: Arc<[Arc<Pool>]>,
    monitor: Option<(Arc<Monitor>, Arc<Login>)>,
    routes: Option<Arc<Routes>>,
    /// What its connections log in with, if that was not made from the configuration.
    given: Option<Arc<dyn Source>>,
    preference: Preference,
    clients: [(Arc<AtomicUsize>, Option<usize>); 2],
}

/// What a client knows of its pools: looked up again only when the configuration has changed, because it is asked for with
/// each transaction.
#[derive(Debug)]
pub struct View {
    /// Of [`PoolSet::version`].
    version: u64,
    pools: Arc<[Arc<Pool>]>,
    monitor: Option<Arc<Monitor>>,
}

/// A client counted among those of its pools, its database and its user.
#[derive(Debug)]
pub struct Member(Vec<Arc<AtomicUsize>>);

impl Drop for Member {
    fn drop(&mut self) {
        for count in &self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Which limit of clients is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The database's.
    Database,
    /// The user's.
    User,
}

impl PoolSet {
    pub(super) fn new(name: PoolName, wanted: Wanted) -> Arc<Self> {
        let state = State::new(&name, &wanted, &[], Arc::default());
        Arc::new(Self {
            name,
            stats: Stats::default(),
            state: RwLock::new(state),
            leaving: Mutex::default(),
            departed: Mutex::default(),
            version: AtomicU64::new(1),
            members: Arc::default(),
            idle_limit: AtomicU64::new(0),
            unused: Mutex::new(None),
        })
    }

    /// How long the server lets a transaction be idle that says nothing of it: zero for ever, none if no server has said it.
    pub fn idle_limit(&self) -> Option<Duration> {
        self.idle_limit.load(Ordering::Relaxed).checked_sub(1).map(Duration::from_millis)
    }

    /// A server has said it.
    pub fn note_idle_limit(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX - 1);
        self.idle_limit.store(limit.saturating_add(1), Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> State {
        self.read().clone()
    }

    /// Takes over a changed configuration. Pools of servers that are still there keep their connections, unless what
    /// they are connected to changed. New ones are open or paused as `gate` says, before anybody finds them.
    pub(super) fn adopt(&self, wanted: Wanted, gate: GateState) {
        // First, as whoever adds up what happened has it.
        let mut leaving = lock(&self.leaving);
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let old = Arc::clone(&state.pools);
        let record = state.routes.as_ref().map(|routes| Arc::clone(routes.record())).unwrap_or_default();
        let new = State::new(&self.name, &wanted, &old, record);
        set_gates(&new.pools, gate);
        *state = new;
        self.version.fetch_add(1, Ordering::Release);
        let kept = |pool: &Arc<Pool>| state.pools.iter().any(|p| Arc::ptr_eq(p, pool));
        for pool in old.iter().filter(|pool| !kept(pool)) {
            // Who has a connection keeps it to the end of its transaction; who waits for one finds the other pools by now.
            pool.set_retired();
            leaving.push(Arc::clone(pool));
        }
    }

    /// What its connections log in with, if that was not made from the configuration.
    pub(super) fn given(&self) -> Option<Arc<dyn Source>> {
        self.read().given.clone()
    }

    /// The database.
    pub fn database(&self) -> Arc<Database> {
        self.state().database
    }

    /// What is said of its user's reads.
    pub fn preference(&self) -> Preference {
        self.read().preference
    }

    /// When a server goes back to its pool.
    pub fn mode(&self) -> PoolMode {
        self.state().mode
    }

    /// Its pools, one for each server.
    pub fn pools(&self) -> Arc<[Arc<Pool>]> {
        Arc::clone(&self.read().pools)
    }

    /// Counts one client more, if there may be one.
    pub fn join(&self) -> Result<Member, Full> {
        let state = self.state();
        let mut counted = Member(Vec::with_capacity(3));
        for ((count, limit), full) in state.clients.iter().zip([Full::Database, Full::User]) {
            let limit = limit.unwrap_or(usize::MAX);
            let joined = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1));
            joined.map_err(|_| full)?;
            counted.0.push(Arc::clone(count));
        }
        self.members.fetch_add(1, Ordering::Relaxed);
        counted.0.push(Arc::clone(&self.members));
        Ok(counted)
    }

    /// How many clients are logged in here.
    pub fn clients(&self) -> usize {
        self.members.load(Ordering::Relaxed)
    }

    /// What reads are routed by, where there are several servers and a client may change between them.
    pub fn routes(&self) -> Option<Arc<Routes>> {
        self.read().routes.clone()
    }

    /// Changes with what [`PoolSet::routes`] gives: an atomic load.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What watches its servers, where there are several.
    pub fn monitor(&self) -> Option<Arc<Monitor>> {
        self.read().monitor.as_ref().map(|(monitor, _)| Arc::clone(monitor))
    }

    /// The pool of a node.
    pub fn pool_of(&self, node: NodeId) -> Option<Arc<Pool>> {
        self.read().pools.iter().find(|pool| pool.node.id == node).cloned()
    }

    /// The pool of the primary, if it is known.
    #[inline]
    pub fn primary(&self) -> Option<Arc<Pool>> {
        let state = self.read();
        let at = match &state.monitor {
            None => 0,
            Some((monitor, _)) => monitor.primary()?,
        };
        state.pools.get(at).cloned()
    }

    /// The pools as they are now.
    pub fn view(&self) -> View {
        let state = self.read();
        View {
            version: self.version(),
            pools: Arc::clone(&state.pools),
            monitor: state.monitor.as_ref().map(|(monitor, _)| Arc::clone(monitor)),
        }
    }

    /// A connection to the primary if one is idle right now. Never waits, never dials.
    #[inline]
    pub fn try_lease(&self, view: &mut View, client: u64, wish: Wish, now: Instant) -> Option<Lease> {
        self.primary_in(view)?.try_lease(client, wish, now)
    }

    #[inline]
    fn primary_in<'a>(&self, view: &'a mut View) -> Option<&'a Arc<Pool>> {
        if view.version != self.version() {
            *view = self.view();
        }
        let at = match &view.monitor {
            None => 0,
            Some(monitor) => monitor.primary()?,
        };
        view.pools.get(at)
    }

    /// A connection to the primary, waited for and dialled for as long as `deadline` allows.
    pub async fn lease_until(&self, client: u64, deadline: Instant) -> Result<Lease, LeaseError> {
        loop {
            let lease = match self.find_primary(deadline).await?.lease_until(client, deadline).await {
                Err(LeaseError::Moved(_)) => continue,
                lease => lease?,
            };
            if !self.is_demoted(&lease) {
                return Ok(lease);
            }
            lease.finish(Instant::now());
        }
    }

    /// Whether this connection, taken for one to the primary, has said that it is none: then nobody believes it any more.
    /// Where there is one server only it is what it is.
    #[inline]
    pub fn is_demoted(&self, lease: &Lease) -> bool {
        lease.side.is_in_recovery() && self.demote(lease)
    }

    /// Whether the primary is another server by now than the one that this connection leads to.
    pub fn has_moved(&self, lease: &Lease) -> bool {
        let state = self.read();
        let Some((monitor, _)) = &state.monitor else { return false };
        monitor.primary().and_then(|at| state.pools.get(at)).is_none_or(|pool| pool.node.id != lease.pool().node.id)
    }

    #[cold]
    fn demote(&self, lease: &Lease) -> bool {
        let Some(monitor) = self.monitor() else { return false };
        // A connection from before a promotion hears of it only with its next answer, and is as good as any.
        let topology = monitor.topology();
        let is_it = |node: NodeId| node == lease.pool().node.id;
        if topology.primary().is_some_and(|primary| is_it(primary.id) && primary.sampled > lease.entry.connected) {
            return false;
        }
        monitor.demote(lease.pool().node.id, "it says that it is in recovery");
        true
    }

    /// The same for a caller that keeps the time itself, as with [`Pool::lease`].
    pub fn wait(self: &Arc<Self>, view: &mut View, client: u64, started: Instant, deadline: Instant) -> Wait {
        if let Some(primary) = self.primary_in(view) {
            return Arc::clone(primary).wait(client, started, deadline);
        }
        let this = Arc::clone(self);
        Wait::Long(
            Box::pin(async move {
                let primary = this.find_primary(deadline).await?;
                primary.lease(client, started, deadline).await
            }),
            Arc::default(),
        )
    }

    /// Why there was no connection after so long a wait.
    pub fn timed_out(&self, waited: Duration) -> LeaseError {
        match self.primary() {
            Some(pool) => pool.timed_out(waited),
            None => self.no_primary(),
        }
    }

    /// Why there is no primary.
    fn no_primary(&self) -> LeaseError {
        match self.monitor() {
            Some(monitor) if monitor.topology().is_ambiguous() => LeaseError::Ambiguous(self.name.clone()),
            Some(_) | None => LeaseError::NoPrimary(self.name.clone()),
        }
    }

    /// The pool of the primary, waited for if there is none.
    pub async fn find_primary(&self, deadline: Instant) -> Result<Arc<Pool>, LeaseError> {
        loop {
            if let Some(pool) = self.primary() {
                return Ok(pool);
            }
            let monitor = self.read().monitor.clone();
            let (monitor, login) = monitor.ok_or_else(|| self.no_primary())?;
            match monitor.find_primary(&login, deadline).await {
                // Unless it is gone again, or the servers are others now.
                Ok(_) => {}
                Err(NoPrimary::Refused(error)) => return Err(LeaseError::Upstream(error)),
                Err(NoPrimary::Timeout) => return Err(self.no_primary()),
            }
        }
    }

    /// What is believed of the primary was wrong.
    pub fn forget_primary(&self) {
        let primary = self.primary();
        if let (Some(monitor), Some(pool)) = (self.monitor(), primary) {
            monitor.demote(pool.node.id, "it is not the primary, or cannot be reached");
        }
    }

    /// Opens or closes all its pools.
    pub(super) fn set_gate(&self, state: GateState) {
        set_gates(&self.pools(), state);
    }

    /// Its pools, and those that the configuration has no more and whose connections are still there.
    pub fn pools_to_the_last(&self) -> Vec<Arc<Pool>> {
        let leaving = lock(&self.leaving).iter().filter(|pool| !pool.is_disconnected()).cloned().collect::<Vec<_>>();
        [self.pools().to_vec(), leaving].concat()
    }

    /// Lets go of pools that have no connections any more; what happened in them is not forgotten.
    fn see_off_the_leaving(&self) {
        lock(&self.leaving).retain(|pool| {
            pool.drop_idle_unless_open();
            let is_there = !pool.is_disconnected();
            if !is_there {
                let mut departed = lock(&self.departed);
                *departed = departed.plus(&pool.stats.totals());
            }
            is_there
        });
    }

    /// What happened in all its pools.
    pub fn totals(&self) -> Totals {
        let leaving = lock(&self.leaving);
        let before = self.stats.totals().plus(&lock(&self.departed));
        self.pools().iter().chain(leaving.iter()).fold(before, |sum, pool| sum.plus(&pool.stats.totals()))
    }

    pub(super) fn maintain(&self, now: Instant, waiting: Duration) {
        self.see_off_the_leaving();
        let mut connections = 0;
        for pool in self.pools().iter() {
            pool.maintain(now, waiting.is_zero() && pool.must_make_room());
            pool.adjust_reserve(waiting);
            connections += pool.connections();
            if pool.config().min_idle > pool.connections() && pool.proven.load(Ordering::Relaxed) {
                tokio::spawn(Arc::clone(pool).fill_to_minimum());
            }
        }
        let mut unused = lock(&self.unused);
        if connections > 0 || self.clients() > 0 {
            *unused = None;
        } else {
            unused.get_or_insert(now);
        }
    }

    pub(super) fn unused_for(&self, now: Instant) -> Option<Duration> {
        lock(&self.unused).map(|since| now.saturating_duration_since(since))
    }
}

fn set_gates(pools: &[Arc<Pool>], state: GateState) {
    pools.iter().filter(|pool| pool.gate() != state).for_each(|pool| pool.set_gate(state));
}

impl State {
    fn new(name: &PoolName, wanted: &Wanted, old: &[Arc<Pool>], record: Arc<Record>) -> Self {
        if let Some((monitor, login)) = &wanted.monitor {
            monitor.lend(login);
        }
        let config = &wanted.database.config;
        let dbname: Arc<str> = config.dbname.as_deref().unwrap_or(&name.database).into();
        let functions = wanted.database.functions(&dbname);
        let pool = |(node, target, limits): &(Arc<Node>, Target, Vec<Arc<Limit>>)| {
            if let Some(pool) = old.iter().find(|pool| Arc::ptr_eq(&pool.node, node)) {
                pool.reconfigure(wanted.pool.clone());
                pool.retarget(target.clone());
                if wanted.own_source || !Arc::ptr_eq(&pool.source(), &wanted.source) {
                    pool.set_source(Arc::clone(&wanted.source));
                }
                return Arc::clone(pool);
            }
            Pool::new(
                name.clone(),
                Arc::clone(node),
                target.clone(),
                wanted.pool.clone(),
                Arc::clone(&wanted.source),
                wanted.defaults.clone(),
                limits.clone(),
                Arc::clone(&functions),
                Arc::clone(&wanted.telemetry),
            )
        };
        let pools: Arc<[_]> = wanted.targets.iter().map(pool).collect();
        let monitor = wanted.monitor.clone().filter(|_| wanted.mode != PoolMode::Session);
        let routes = monitor.map(|monitor| {
            Routes::new(
                monitor,
                Arc::clone(&pools),
                (config.routing.clone(), wanted.preference),
                (*dbname).into(),
                record,
            )
        });
        Self {
            pools,
            routes,
            monitor: wanted.monitor.clone(),
            database: Arc::clone(&wanted.database),
            mode: wanted.mode,
            given: (!wanted.own_source).then(|| Arc::clone(&wanted.source)),
            preference: wanted.preference,
            clients: wanted.clients.clone(),
        }
    }
}
