//! Which pool serves a client: by the database and user it names, made when the first one asks.

use super::{GateState, Lease, LeaseError, Node, NodeLimits, Pool, PoolConfig, PoolName, Stats, lock};
use crate::credentials::{Fixed, Proof, Source};
use crate::net::tls::{SslMode, UpstreamTls};
use crate::net::{Address, SocketOptions};
use crate::server::Target;
use crate::session::settings::Settings;
use crate::session::{Interners, PoolMode};
use rustls::ClientConfig;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;
use tokio::sync::Semaphore;

/// The name of the database that stands for all that are not named.
pub const WILDCARD: &str = "*";

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
    pub password: Option<zeroize::Zeroizing<String>>,
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
}

/// What an operator says of a user.
#[derive(Debug, Clone, Default)]
pub struct UserConfig {
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
}

/// A database that clients can ask for.
#[derive(Debug)]
pub struct Database {
    /// What is said of it.
    pub config: DatabaseConfig,
    tls: Option<Arc<ClientConfig>>,
    nodes: Vec<Arc<Node>>,
    /// DISABLE: nobody may log in.
    disabled: AtomicBool,
}

/// The pools of one database and user, one for each server.
#[derive(Debug)]
pub struct PoolSet {
    /// The names.
    pub name: PoolName,
    /// The database.
    pub database: Arc<Database>,
    /// When a server goes back to its pool.
    pub mode: PoolMode,
    pools: Vec<Arc<Pool>>,
    /// Which of them is the primary's; `UNKNOWN` until it was looked for.
    primary: AtomicUsize,
    /// Clients that are logged in here.
    pub clients: AtomicUsize,
    /// What happened to its clients while they had no server.
    pub stats: Stats,
}

const UNKNOWN: usize = usize::MAX;

/// All pools.
pub struct Directory {
    interners: Arc<Interners>,
    config: RwLock<Arc<Known>>,
    sets: Mutex<HashMap<(PoolName, Purpose), Arc<PoolSet>>>,
    user_limits: Mutex<HashMap<String, Arc<Semaphore>>>,
    nodes: Mutex<HashMap<Address, Arc<Node>>>,
}

struct Known {
    databases: HashMap<String, Arc<Database>>,
    users: HashMap<String, UserConfig>,
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

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Directory")
    }
}

impl Directory {
    /// Makes the databases. No connection is made.
    ///
    /// # Errors
    /// The first database whose TLS files cannot be used, and why.
    pub fn new(
        config: &DirectoryConfig,
        interners: Arc<Interners>,
    ) -> Result<Arc<Self>, (String, crate::net::tls::TlsError)> {
        let directory = Self {
            interners,
            config: RwLock::new(Arc::new(Known { databases: HashMap::new(), users: HashMap::new() })),
            sets: Mutex::default(),
            user_limits: Mutex::default(),
            nodes: Mutex::default(),
        };
        let known = directory.known(config)?;
        *directory.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
        Ok(Arc::new(directory))
    }

    fn known(&self, config: &DirectoryConfig) -> Result<Known, (String, crate::net::tls::TlsError)> {
        let mut databases = HashMap::new();
        for database in &config.databases {
            let needs_tls = database.tls.mode != SslMode::Disable
                && database.nodes.iter().any(|node| matches!(node, Address::Tcp { .. }));
            let tls = if needs_tls {
                Some(database.tls.load().map_err(|error| (database.name.clone(), error))?)
            } else {
                None
            };
            let limits = NodeLimits { connections: database.max_connections, dials: config.dials_per_node };
            let nodes = database.nodes.iter().map(|address| self.node(address, limits)).collect();
            let made = Database { config: database.clone(), tls, nodes, disabled: AtomicBool::new(false) };
            databases.insert(database.name.clone(), Arc::new(made));
        }
        Ok(Known { databases, users: config.users.clone() })
    }

    fn node(&self, address: &Address, limits: NodeLimits) -> Arc<Node> {
        let mut nodes = lock(&self.nodes);
        Arc::clone(nodes.entry(address.clone()).or_insert_with(|| Node::new(address.clone(), limits)))
    }

    fn current(&self) -> Arc<Known> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The database that a client means by this name.
    pub fn database(&self, name: &str) -> Result<Arc<Database>, NoSuchDatabase> {
        let known = self.current();
        known.databases.get(name).or_else(|| known.databases.get(WILDCARD)).cloned().ok_or(NoSuchDatabase)
    }

    /// The pools for a client.
    pub fn pools(&self, database: &str, user: &str) -> Result<Arc<PoolSet>, NoSuchDatabase> {
        self.pools_for(database, user, Purpose::Clients, None)
    }

    /// The pools for a client or for a purpose of ours, with a source of its own for what they log in with.
    pub fn pools_for(
        &self,
        database: &str,
        user: &str,
        purpose: Purpose,
        source: Option<Arc<dyn Source>>,
    ) -> Result<Arc<PoolSet>, NoSuchDatabase> {
        let name = PoolName { database: database.into(), user: user.into() };
        let mut sets = lock(&self.sets);
        if let Some(set) = sets.get(&(name.clone(), purpose)) {
            return Ok(Arc::clone(set));
        }
        let made = Arc::new(self.make(name.clone(), source, None)?);
        sets.insert((name, purpose), Arc::clone(&made));
        Ok(made)
    }

    /// A set of pools for one replication client alone, not kept.
    pub fn replication(
        &self,
        database: &str,
        user: &str,
        replication: Replication,
    ) -> Result<Arc<PoolSet>, NoSuchDatabase> {
        let name = PoolName { database: database.into(), user: user.into() };
        self.make(name, None, Some(replication)).map(Arc::new)
    }

    fn make(
        &self,
        name: PoolName,
        source: Option<Arc<dyn Source>>,
        replication: Option<Replication>,
    ) -> Result<PoolSet, NoSuchDatabase> {
        let database = self.database(&name.database)?;
        let known = self.current();
        let user = known.users.get(&*name.user).cloned().unwrap_or_default();
        let config = &database.config;
        let mut pool = config.pool.clone();
        if let Some(size) = user.pool_size {
            pool.size = size;
        }
        let mode = if replication.is_some() { PoolMode::Session } else { user.mode.unwrap_or(config.mode) };
        let source = source.unwrap_or_else(|| {
            Arc::new(Fixed(match &config.password {
                Some(text) => Proof::Password { text: text.clone(), may_leave_in_clear: false },
                None => Proof::Nothing,
            }))
        });
        let user_limit = user.max_connections.map(|limit| {
            let mut limits = lock(&self.user_limits);
            Arc::clone(limits.entry(name.user.to_string()).or_insert_with(|| Arc::new(Semaphore::new(limit))))
        });
        let defaults = self.interners.settings.intern::<&str, &str>([]);
        let pools = database.nodes.iter().map(|node| {
            let target = Target {
                address: node.address.clone(),
                ssl_mode: config.tls.mode,
                tls: database.tls.clone(),
                tls_verifies: config.tls.verifies(),
                tls_direct: config.tls.direct,
                socket: config.socket,
                user: config.user.clone().unwrap_or_else(|| name.user.to_string()),
                database: config.dbname.clone().unwrap_or_else(|| name.database.to_string()),
                replication: replication.as_ref().map(|r| r.kind.clone()),
                settings: replication.as_ref().map(|r| r.settings.clone()).unwrap_or_default(),
                prepared_limit: config.prepared_limit,
            };
            let pool_config = if replication.is_some() { PoolConfig { size: 1, ..pool.clone() } } else { pool.clone() };
            let (name, node, source) = (name.clone(), Arc::clone(node), Arc::clone(&source));
            Pool::new(name, node, target, pool_config, source, defaults.clone(), user_limit.clone())
        });
        let pools: Vec<_> = pools.collect();
        let primary = AtomicUsize::new(if pools.len() == 1 { 0 } else { UNKNOWN });
        Ok(PoolSet { name, mode, pools, primary, clients: AtomicUsize::new(0), stats: Stats::default(), database })
    }

    /// All databases, by name.
    pub fn databases(&self) -> Vec<Arc<Database>> {
        let mut databases: Vec<_> = self.current().databases.values().cloned().collect();
        databases.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        databases
    }

    /// The users of whom something is said, by name.
    pub fn users(&self) -> Vec<(String, UserConfig)> {
        let mut users: Vec<_> = self.current().users.iter().map(|(n, c)| (n.clone(), c.clone())).collect();
        users.sort_by(|a, b| a.0.cmp(&b.0));
        users
    }

    /// All sets of pools for clients, by name.
    pub fn sets(&self) -> Vec<Arc<PoolSet>> {
        let sets = lock(&self.sets);
        let mut sets: Vec<_> = sets.values().cloned().collect();
        sets.sort_by(|a, b| a.name.cmp(&b.name));
        sets
    }

    /// Where a server connection's cancel requests go.
    pub fn target_of(&self, server: &crate::server::ServerEntry) -> Option<Arc<Target>> {
        let sets = lock(&self.sets);
        let mut pools = sets.values().flat_map(|set| &set.pools);
        pools.find(|pool| pool.node.address == server.address).map(|pool| pool.target())
    }

    /// Keeps all pools in order. To be called about once a second.
    pub fn maintain(&self, now: Instant) {
        for set in self.sets() {
            for pool in &set.pools {
                pool.maintain(now);
                if pool.config().min_idle > pool.connections() && pool.proven.load(Ordering::Relaxed) {
                    tokio::spawn(Arc::clone(pool).fill_to_minimum());
                }
            }
        }
    }
}

/// What a replication client asked for.
#[derive(Debug, Clone)]
pub struct Replication {
    /// The value of `replication`.
    pub kind: String,
    /// Its other settings: a WAL sender takes them only in the startup packet.
    pub settings: Vec<(String, String)>,
}

impl Database {
    /// DISABLE and ENABLE.
    pub fn set_disabled(&self, disabled: bool) {
        self.disabled.store(disabled, Ordering::Relaxed);
    }

    /// Whether nobody may log in.
    pub fn is_disabled(&self) -> bool {
        self.disabled.load(Ordering::Relaxed)
    }

    /// Its servers.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }
}

impl PoolSet {
    /// Its pools, one for each server.
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// The pool of the primary, if it is known.
    #[inline]
    pub fn primary(&self) -> Option<&Arc<Pool>> {
        self.pools.get(self.primary.load(Ordering::Relaxed))
    }

    /// A connection to the primary if one is idle right now. Never waits, never dials.
    #[inline]
    pub fn try_lease(&self, client: u64, now: Instant) -> Option<Lease> {
        self.primary()?.try_lease(client, now)
    }

    /// A connection to the primary, waited for and dialled for as long as `deadline` allows.
    pub async fn lease(&self, client: u64, deadline: Instant) -> Result<Lease, LeaseError> {
        self.find_primary(deadline).await?.lease(client, deadline).await
    }

    /// The pool of the primary, looked for if it is not known.
    pub async fn find_primary(&self, deadline: Instant) -> Result<&Arc<Pool>, LeaseError> {
        loop {
            if let Some(pool) = self.primary() {
                return Ok(pool);
            }
            let mut last = None;
            for (at, pool) in self.pools.iter().enumerate() {
                let patience = (Instant::now() + pool.config().connect_timeout).min(deadline);
                match Self::is_primary(pool, patience).await {
                    Ok(true) => {
                        self.primary.store(at, Ordering::Relaxed);
                        return Ok(pool);
                    }
                    Ok(false) => {}
                    Err(error) => last = Some(error),
                }
            }
            if Instant::now() >= deadline {
                return Err(last.unwrap_or(LeaseError::NoPrimary(self.name.clone())));
            }
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        }
    }

    async fn is_primary(pool: &Arc<Pool>, deadline: Instant) -> Result<bool, LeaseError> {
        let mut lease = pool.lease(0, deadline).await?;
        let answer = lease.simple("select pg_catalog.pg_is_in_recovery()").await;
        match answer {
            Ok(answer) if answer.error.is_none() => {
                lease.finish(Instant::now());
                Ok(matches!(answer.rows.as_slice(), [row] if row.first().is_some_and(|v| v.as_deref() == Some("f"))))
            }
            _ => Ok(false),
        }
    }

    /// What is believed of the primary was wrong.
    pub fn forget_primary(&self) {
        if self.pools.len() > 1 {
            self.primary.store(UNKNOWN, Ordering::Relaxed);
        }
    }

    /// Opens or closes all its pools.
    pub fn set_gate(&self, state: GateState) {
        for pool in &self.pools {
            pool.set_gate(state);
        }
    }

    /// The settings a session begins with.
    pub fn defaults(&self) -> Option<&Settings> {
        self.pools.first().map(|pool| pool.defaults())
    }
}
