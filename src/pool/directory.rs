//! Which pools serve a client: by the database and user it names, made when the first one asks.

use super::limit::Limit;
use super::poolset::{PoolSet, Wanted};
use super::{GateState, Node, PoolConfig, PoolName, Totals, lock};
use crate::credentials::{Keyring, Role, Source, Spec};
use crate::monitor::{Habits, Login, Member, Monitor, Ticks};
use crate::net::tls::{SslMode, TlsError, UpstreamTls};
use crate::net::{Address, SocketOptions};
use crate::routing::survey::{Known as KnownNode, Location};
use crate::routing::verdict::Wish;
use crate::routing::{Consistency, Fallback, NodeId, Policy, Preference};
use crate::server::Target;
use crate::session::{Functions, Interners, PoolMode};
use crate::telemetry::Telemetry;
use foldhash::fast::RandomState;
use rustls::ClientConfig;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// The name of the database that stands for all that are not named.
pub const WILDCARD: &str = "*";
/// Pools without clients and connections are forgotten after this: names that clients make up must not add up.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// What an operator says of a database.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// The name by which clients ask for it, or [`WILDCARD`].
    pub name: String,
    /// The servers.
    pub nodes: Vec<Address>,
    /// The database on the servers; the client's own name for it if there is none.
    pub dbname: Option<String>,
    /// The role on the servers; the client's user if there is none.
    pub user: Option<String>,
    /// What that role logs in with.
    pub login: Spec,
    /// The same for users who log in as somebody else, by their names as clients write them.
    pub logins: HashMap<String, Spec>,
    /// When a server goes back to its pool.
    pub mode: PoolMode,
    /// TLS towards the servers.
    pub tls: UpstreamTls,
    /// Options of the sockets.
    pub socket: SocketOptions,
    /// Its pools.
    pub pool: PoolConfig,
    /// Connections over all its pools at most, on each server; `None` for no limit.
    pub max_connections: Option<usize>,
    /// Clients at most; `None` for no limit.
    pub max_clients: Option<usize>,
    /// Prepared statements that each connection may hold.
    pub prepared_limit: usize,
    /// Where reads go.
    pub routing: RoutingConfig,
}

/// Where reads go, where there are several servers.
#[derive(Debug, Clone, PartialEq)]
pub struct RoutingConfig {
    /// How a replica is chosen.
    pub policy: Policy,
    /// Where reads go, unless somebody nearer to the statement says otherwise.
    pub route: Wish,
    /// What reads may miss, unless a session says otherwise.
    pub consistency: Consistency,
    /// How long a read may wait for a replica to have what its session has written, before it goes to the primary; zero to go
    /// at once.
    pub wait_for_replica: Duration,
    /// Functions that only read, whatever they are declared to be: with or without their schema.
    pub read_functions: Arc<[String]>,
}

impl Default for RoutingConfig {
    fn default() -> Self {
        Self {
            policy: Policy {
                max_lag: Duration::from_secs(10),
                slow_start: Duration::from_secs(10),
                fallback: Fallback::Primary,
                primary_read_share: 50,
            },
            route: Wish::Auto,
            consistency: Consistency::Session,
            wait_for_replica: Duration::ZERO,
            read_functions: Arc::default(),
        }
    }
}

/// What an operator says of a server, whichever databases are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLabels {
    /// Where it stands.
    pub place: Location,
    /// Its share of the reads, beside others that are as near; 0 for none.
    pub weight: u16,
}

impl Default for NodeLabels {
    fn default() -> Self {
        Self { place: Location::default(), weight: 1 }
    }
}

/// What an operator says of a user.
#[derive(Debug, Clone, Default)]
pub struct UserConfig {
    /// Overrides the role on the servers.
    pub server_user: Option<String>,
    /// Where its reads go, and what they may miss.
    pub preference: Preference,
    /// Overrides the database's mode.
    pub mode: Option<PoolMode>,
    /// Overrides the size of the pools.
    pub pool_size: Option<usize>,
    /// Server connections over all pools at most.
    pub max_connections: Option<usize>,
    /// Clients at most.
    pub max_clients: Option<usize>,
}

/// The configuration of all pools.
#[derive(Debug, Clone, Default)]
pub struct DirectoryConfig {
    /// The databases.
    pub databases: Vec<DatabaseConfig>,
    /// The users of whom something is said.
    pub users: HashMap<String, UserConfig>,
    /// Logins at one server at the same time.
    pub dials_per_node: usize,
    /// How servers are asked what they are, where a database has several.
    pub habits: Habits,
    /// Where this program stands.
    pub place: Location,
    /// The servers of which something is said.
    pub labels: HashMap<Address, NodeLabels>,
}

/// A database that clients can ask for.
#[derive(Debug)]
pub struct Database {
    /// What is said of it.
    pub config: DatabaseConfig,
    tls: Option<Arc<ClientConfig>>,
    nodes: Vec<Arc<Node>>,
    shared: Arc<DatabaseState>,
}

/// What a database keeps when it is configured anew.
#[derive(Debug, Default)]
struct DatabaseState {
    /// What functions may leave behind, for each database on the servers.
    functions: Mutex<HashMap<Arc<str>, Arc<Functions>>>,
    disabled: AtomicBool,
    clients: Arc<AtomicUsize>,
    /// Places for connections on each server, where there is a limit. It does not change while the program runs.
    connections: Mutex<HashMap<Address, Arc<Limit>>>,
    /// What happened in pools that were forgotten.
    retired: Mutex<Totals>,
}

/// All pools.
pub struct Directory {
    interners: Arc<Interners>,
    telemetry: Arc<Telemetry>,
    config: RwLock<Arc<Known>>,
    sets: Mutex<HashMap<(PoolName, Purpose), Arc<PoolSet>, RandomState>>,
    pauses: Mutex<Pauses>,
    /// Held while pools are made or changed, so that what is made of an older configuration never comes behind a newer one.
    changes: Mutex<()>,
    users: Mutex<HashMap<String, UserState>>,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
    /// One for each list of servers that a database has, as long as somebody uses it: thousands of pools must not mean
    /// thousands of probes.
    monitors: Mutex<HashMap<Box<[NodeId]>, Weak<Monitor>>>,
    ticks: Arc<Ticks>,
    keyring: Keyring,
    /// Where they run: it lives until all clients have gone.
    runtime: Handle,
}

/// What PAUSE holds back, pools included that nobody has asked for yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pauses {
    all: bool,
    /// Databases by the names that clients write.
    databases: HashSet<String>,
}

impl Pauses {
    /// What it says of a database.
    fn gate(&self, database: &str) -> GateState {
        if self.all || self.databases.contains(database) { GateState::Paused } else { GateState::Open }
    }
}

/// What is kept of a user over all its pools.
#[derive(Debug, Default)]
struct UserState {
    connections: Option<Arc<Limit>>,
    clients: Arc<AtomicUsize>,
}

#[derive(Default)]
struct Known {
    databases: HashMap<String, Arc<Database>, RandomState>,
    users: HashMap<String, UserConfig>,
    habits: Habits,
    place: Location,
    labels: HashMap<Address, NodeLabels>,
}

/// What a set of pools is for: what clients do must not meet what we do for ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Clients.
    Clients,
    /// Looking up users.
    Auth,
}

/// The client asked for a database that is not configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSuchDatabase;

/// What a replication client asked for.
#[derive(Debug, Clone)]
pub struct Replication {
    /// The value of `replication`.
    pub kind: String,
    /// Its other settings: a WAL sender takes them only in the startup packet.
    pub settings: Vec<(String, String)>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Directory")
    }
}

impl Directory {
    /// Makes the databases. No connection is made. Monitors will run on `runtime`.
    ///
    /// # Errors
    /// The first database whose TLS files cannot be used, and why.
    pub fn new(
        config: &DirectoryConfig,
        interners: Arc<Interners>,
        telemetry: Arc<Telemetry>,
        runtime: Handle,
    ) -> Result<Arc<Self>, (String, TlsError)> {
        let directory = Self {
            interners,
            telemetry,
            config: RwLock::default(),
            sets: Mutex::default(),
            pauses: Mutex::default(),
            changes: Mutex::default(),
            users: Mutex::default(),
            nodes: Mutex::default(),
            monitors: Mutex::default(),
            ticks: Arc::default(),
            keyring: Keyring::new(runtime.clone()),
            runtime,
        };
        directory.reload(config)?;
        Ok(Arc::new(directory))
    }

    /// Takes over a changed configuration, whole or not at all. What did not change keeps its connections.
    ///
    /// # Errors
    /// As [`Directory::new`]; nothing is changed then.
    pub fn reload(&self, config: &DirectoryConfig) -> Result<(), (String, TlsError)> {
        let known = self.known(config)?;
        let _changes = lock(&self.changes);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
        self.relabel();
        let sets: Vec<_> = lock(&self.sets).iter().map(|((_, purpose), set)| (*purpose, Arc::clone(set))).collect();
        for (purpose, set) in sets {
            // Where there is none, clients that are there stay as they are, within reach of RESUME and KILL; nobody new finds it.
            if let Ok(database) = self.database(&set.name.database) {
                let source = set.given().filter(|_| takes_source(&database, &set.name, purpose));
                let wanted = self.wanted(&set.name, database, source, None);
                let pauses = lock(&self.pauses);
                set.adopt(wanted, pauses.gate(&set.name.database));
            }
        }
        self.forget_removed();
        let logins = config.databases.iter().flat_map(|database| database.logins.values().chain([&database.login]));
        let wanted: Vec<&Spec> = logins.collect();
        self.keyring.retain(&wanted);
        Ok(())
    }

    fn known(&self, config: &DirectoryConfig) -> Result<Known, (String, TlsError)> {
        let before = self.current();
        let mut databases = HashMap::default();
        for database in &config.databases {
            let needs_tls = database.tls.mode != SslMode::Disable
                && database.nodes.iter().any(|node| matches!(node, Address::Tcp { .. }));
            let tls = if needs_tls {
                Some(database.tls.load().map_err(|error| (database.name.clone(), error))?)
            } else {
                None
            };
            let nodes = database.nodes.iter().map(|address| self.node(address, config.dials_per_node)).collect();
            // It may come back while clients are there that had it before.
            let had =
                || lock(&self.sets).values().map(|set| set.database()).find(|had| had.config.name == database.name);
            let old = before.databases.get(&database.name).cloned().or_else(had);
            let shared = old.map(|old| Arc::clone(&old.shared)).unwrap_or_default();
            let made = Database { config: database.clone(), tls, nodes, shared };
            databases.insert(database.name.clone(), Arc::new(made));
        }
        Ok(Known {
            databases,
            users: config.users.clone(),
            habits: config.habits,
            place: config.place.clone(),
            labels: config.labels.clone(),
        })
    }

    fn node(&self, address: &Address, dials: usize) -> Arc<Node> {
        let mut nodes = lock(&self.nodes);
        let next = NodeId(u32::try_from(nodes.len()).unwrap_or(u32::MAX));
        Arc::clone(nodes.entry(address.clone()).or_insert_with(|| Node::new(next, address.clone(), dials)))
    }

    fn member(known: &Known, node: &Node) -> Member {
        let labels = known.labels.get(&node.address).cloned().unwrap_or_default();
        let known = KnownNode {
            id: node.id,
            host: node.address.host().into(),
            port: node.address.port(),
            place: labels.place,
            weight: labels.weight,
        };
        Member { known, address: node.address.clone(), meter: Arc::clone(&node.meter) }
    }

    /// The monitor of a database's servers; none where there is one only, of which there is nothing to be found out.
    fn monitor(&self, database: &Database) -> Option<Arc<Monitor>> {
        if database.nodes.len() < 2 {
            return None;
        }
        let key: Box<[NodeId]> = database.nodes.iter().map(|node| node.id).collect();
        let mut monitors = lock(&self.monitors);
        monitors.retain(|_, monitor| monitor.strong_count() > 0);
        if let Some(monitor) = monitors.get(&key).and_then(Weak::upgrade) {
            return Some(monitor);
        }
        let known = self.current();
        let members = database.nodes.iter().map(|node| Self::member(&known, node)).collect();
        let (place, ticks) = (known.place.clone(), Arc::clone(&self.ticks));
        let monitor = Monitor::start(&self.runtime, place, members, known.habits, ticks);
        monitors.insert(key, Arc::downgrade(&monitor));
        Some(monitor)
    }

    /// Tells the monitors of changed labels and habits.
    fn relabel(&self) {
        let known = self.current();
        let nodes: HashMap<NodeId, Arc<Node>> =
            lock(&self.nodes).values().map(|node| (node.id, Arc::clone(node))).collect();
        for monitor in self.monitors() {
            let ids = monitor.members().iter().map(|member| member.known.id);
            let members: Vec<_> =
                ids.filter_map(|id| nodes.get(&id)).map(|node| Self::member(&known, node).known).collect();
            monitor.adopt(known.place.clone(), &members, known.habits);
        }
    }

    /// The monitor of a database's servers, if one is in use.
    pub fn monitor_of(&self, database: &Database) -> Option<Arc<Monitor>> {
        let key: Box<[NodeId]> = database.nodes.iter().map(|node| node.id).collect();
        lock(&self.monitors).get(&key).and_then(Weak::upgrade)
    }

    /// The monitors that are in use.
    pub fn monitors(&self) -> Vec<Arc<Monitor>> {
        lock(&self.monitors).values().filter_map(Weak::upgrade).collect()
    }

    fn current(&self) -> Arc<Known> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The database that a client means by this name.
    pub fn database(&self, name: &str) -> Result<Arc<Database>, NoSuchDatabase> {
        let known = self.current();
        known.databases.get(name).or_else(|| known.databases.get(WILDCARD)).cloned().ok_or(NoSuchDatabase)
    }

    /// The pools for a client or for a purpose of ours, with a source of its own for what they log in with. Pools for clients
    /// that were made without one take it over: whoever came first may have had nothing to show.
    pub fn pools(
        &self,
        database: &str,
        user: &str,
        purpose: Purpose,
        source: Option<Arc<dyn Source>>,
    ) -> Result<Arc<PoolSet>, NoSuchDatabase> {
        let name = PoolName { database: database.into(), user: user.into() };
        // First: pools may be there still for those who came while it was.
        self.database(database)?;
        let key = (name, purpose);
        let find = || lock(&self.sets).get(&key).cloned();
        // What we use ourselves keeps what it was made with.
        let lacks = |set: &PoolSet, source: &Arc<dyn Source>| {
            purpose == Purpose::Clients && !set.given().is_some_and(|given| Arc::ptr_eq(&given, source))
        };
        if let Some(set) = find()
            && !source.as_ref().is_some_and(|source| lacks(&set, source))
        {
            return Ok(set);
        }
        let changes = lock(&self.changes);
        let database = self.database(database)?;
        let source = source.filter(|_| takes_source(&database, &key.0, purpose));
        if let Some(set) = find() {
            if source.as_ref().is_some_and(|source| lacks(&set, source)) {
                let wanted = self.wanted(&key.0, database, source, None);
                let pauses = lock(&self.pauses);
                set.adopt(wanted, pauses.gate(&key.0.database));
            }
            return Ok(set);
        }
        let set = PoolSet::new(key.0.clone(), self.wanted(&key.0, database, source, None));
        // A PAUSE that came before holds it before anybody finds it, and one that comes later finds it.
        let pauses = lock(&self.pauses);
        set.set_gate(pauses.gate(&key.0.database));
        lock(&self.sets).insert(key, Arc::clone(&set));
        drop(pauses);
        drop(changes);
        Ok(set)
    }

    /// Whether a database is paused, by the name that clients write.
    pub fn is_paused(&self, database: &str) -> bool {
        lock(&self.pauses).gate(database) == GateState::Paused
    }

    /// Whether anything is paused.
    pub fn has_pauses(&self) -> bool {
        let pauses = lock(&self.pauses);
        pauses.all || !pauses.databases.is_empty()
    }

    /// PAUSE and RESUME of a database, by the name that clients write, or of all. False if it was so already. What all are
    /// paused for the RESUME of one does not open.
    pub fn set_paused(&self, database: Option<&str>, paused: bool) -> bool {
        let mut pauses = lock(&self.pauses);
        let changed = match (database, paused) {
            (None, true) => !std::mem::replace(&mut pauses.all, true),
            (None, false) => std::mem::take(&mut *pauses) != Pauses::default(),
            (Some(name), true) => !pauses.all && pauses.databases.insert(name.to_owned()),
            (Some(name), false) => pauses.databases.remove(name),
        };
        if changed {
            // Still under the lock: of two who come together the last to be noted must be the last to be heard.
            self.sets().iter().for_each(|set| set.set_gate(pauses.gate(&set.name.database)));
        }
        changed
    }

    /// A set of pools for one replication client alone, not kept.
    pub fn replication(&self, database: &str, user: &str, asked: Replication) -> Result<Arc<PoolSet>, NoSuchDatabase> {
        let name = PoolName { database: database.into(), user: user.into() };
        let wanted = self.wanted(&name, self.database(database)?, None, Some(asked));
        Ok(PoolSet::new(name, wanted))
    }

    /// Forgets the pools of databases that are no more, as soon as nobody has them.
    fn forget_removed(&self) {
        lock(&self.sets).retain(|_, set| Arc::strong_count(set) > 1 || self.database(&set.name.database).is_ok());
    }

    /// What the pools of this name should be like.
    fn wanted(
        &self,
        name: &PoolName,
        database: Arc<Database>,
        source: Option<Arc<dyn Source>>,
        replication: Option<Replication>,
    ) -> Wanted {
        let known = self.current();
        let user = known.users.get(&*name.user).cloned().unwrap_or_default();
        let config = &database.config;
        let mut pool = config.pool.clone();
        pool.size = user.pool_size.unwrap_or(pool.size);
        if replication.is_some() {
            pool = PoolConfig { size: 1, min_idle: 0, reserve: 0, ..pool };
        }
        let own_source = source.is_none();
        let role = Role {
            user: user.server_user.clone().or_else(|| config.user.clone()).unwrap_or_else(|| name.user.to_string()),
            database: config.dbname.clone().unwrap_or_else(|| name.database.to_string()),
        };
        let login = config.logins.get(&*name.user).unwrap_or(&config.login);
        let source = source.unwrap_or_else(|| self.keyring.source(login, &role));
        let (user_connections, user_clients) = {
            let mut users = lock(&self.users);
            let state = users.entry(name.user.to_string()).or_default();
            if state.connections.is_none() {
                state.connections = user.max_connections.map(Limit::new);
            }
            (state.connections.clone(), Arc::clone(&state.clients))
        };
        let target = |node: &Arc<Node>| Target {
            address: node.address.clone(),
            ssl_mode: config.tls.mode,
            tls: database.tls.clone(),
            tls_verifies: config.tls.verifies(),
            tls_direct: config.tls.direct,
            socket: config.socket,
            user: role.user.clone(),
            database: role.database.clone(),
            replication: replication.as_ref().map(|r| r.kind.clone()),
            settings: replication.as_ref().map(|r| r.settings.clone()).unwrap_or_default(),
            prepared_limit: config.prepared_limit,
            asks_role: database.nodes.len() > 1 && replication.is_none(),
        };
        let limits = |node: &Arc<Node>| {
            let of_database = config.max_connections.map(|limit| database.shared.places(&node.address, limit));
            of_database.into_iter().chain(user_connections.clone()).collect()
        };
        let targets = database.nodes.iter().map(|node| (Arc::clone(node), target(node), limits(node))).collect();
        let defaults = self.interners.settings.intern::<&str, &str>([]);
        let monitor = self.monitor(&database).map(|monitor| {
            // Asking that is what it does.
            let targets = database.nodes.iter().map(|node| Target { asks_role: false, ..target(node) });
            (monitor, Login::new(targets, Arc::clone(&source), defaults.clone()))
        });
        Wanted {
            targets,
            monitor,
            pool,
            source,
            own_source,
            mode: if replication.is_some() { PoolMode::Session } else { user.mode.unwrap_or(config.mode) },
            defaults,
            telemetry: Arc::clone(&self.telemetry),
            preference: user.preference,
            clients: [(Arc::clone(&database.shared.clients), config.max_clients), (user_clients, user.max_clients)],
            database: Arc::clone(&database),
        }
    }

    /// All databases, by name.
    pub fn databases(&self) -> Vec<Arc<Database>> {
        let mut databases: Vec<_> = self.current().databases.values().cloned().collect();
        databases.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        databases
    }

    /// All credentials.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// The users of whom something is said, by name, and how many clients each has.
    pub fn users(&self) -> Vec<(String, UserConfig, usize)> {
        let known = self.current();
        let states = lock(&self.users);
        let mut names: Vec<&String> = known.users.keys().chain(states.keys()).collect();
        names.sort();
        names.dedup();
        let clients = |name: &String| states.get(name).map_or(0, |state| state.clients.load(Ordering::Relaxed));
        names.into_iter().map(|n| (n.clone(), known.users.get(n).cloned().unwrap_or_default(), clients(n))).collect()
    }

    /// All sets of pools, by name.
    pub fn sets(&self) -> Vec<Arc<PoolSet>> {
        let mut sets: Vec<_> = lock(&self.sets).values().cloned().collect();
        sets.sort_by(|a, b| a.name.cmp(&b.name));
        sets
    }

    /// What happened in each database since the start, by its name as clients wrote it.
    pub fn totals(&self) -> Vec<(Arc<str>, Totals)> {
        let mut totals: Vec<(Arc<str>, Totals)> = Vec::new();
        let mut add = |name: &Arc<str>, more: Totals| match totals.iter_mut().find(|(n, _)| n == name) {
            Some((_, sum)) => *sum = sum.plus(&more),
            None => totals.push((Arc::clone(name), more)),
        };
        for database in self.databases() {
            let retired = *lock(&database.shared.retired);
            if database.config.name != WILDCARD || retired != Totals::default() {
                add(&database.config.name.as_str().into(), retired);
            }
        }
        for set in self.sets() {
            add(&set.name.database, set.totals());
        }
        totals
    }

    /// Keeps all pools in order. To be called about once a second, with how long the first client of each pool that has
    /// any in its queue has waited.
    pub fn maintain(&self, now: Instant, waits: &HashMap<PoolName, Duration>) {
        for set in self.sets() {
            let waiting = waits.get(&set.name).copied().unwrap_or_default();
            set.maintain(now, waiting);
        }
        lock(&self.sets).retain(|_, set| {
            // Somebody who has it is about to become its client.
            let forget =
                Arc::strong_count(set) == 1 && set.unused_for(now).is_some_and(|unused| unused >= FORGET_AFTER);
            if forget {
                let database = set.database();
                let mut retired = lock(&database.shared.retired);
                *retired = retired.plus(&set.totals());
            }
            !forget
        });
        self.forget_removed();
    }
}

/// Whether pools may log in with something that was given to them.
fn takes_source(database: &Database, name: &PoolName, purpose: Purpose) -> bool {
    purpose != Purpose::Clients || database.passes_through(&name.user)
}

impl DatabaseState {
    fn places(&self, address: &Address, limit: usize) -> Arc<Limit> {
        let mut connections = lock(&self.connections);
        Arc::clone(connections.entry(address.clone()).or_insert_with(|| Limit::new(limit)))
    }
}

impl Database {
    /// DISABLE and ENABLE.
    pub fn set_disabled(&self, disabled: bool) {
        self.shared.disabled.store(disabled, Ordering::Relaxed);
    }

    /// Whether nobody may log in.
    pub fn is_disabled(&self) -> bool {
        self.shared.disabled.load(Ordering::Relaxed)
    }

    /// How many clients are logged in.
    pub fn clients(&self) -> usize {
        self.shared.clients.load(Ordering::Relaxed)
    }

    /// Whether a user's own login may be passed through: not where it was said who we are upstream.
    pub fn passes_through(&self, user: &str) -> bool {
        self.config.user.is_none() && !self.config.logins.contains_key(user) && self.config.login.yields_to_clients()
    }

    /// What the functions of this database on the servers may leave behind: what is found out for one pool, and what one of
    /// its clients defines, all of them know.
    pub(super) fn functions(&self, dbname: &Arc<str>) -> Arc<Functions> {
        Arc::clone(lock(&self.shared.functions).entry(Arc::clone(dbname)).or_default())
    }

    /// Its servers.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }
}
