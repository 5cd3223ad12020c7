//! The one place of assembly: configuration in, all parts wired, run until stopped.

use crate::access_log::{AccessLog, Target};
use crate::admin::command::Shutdown;
use crate::admin::{Operator, Request, SqlConsole, http, metrics};
use crate::auth::Method;
use crate::auth::scram::Mock;
use crate::client::{CancelLane, Clients, Context, Door, DoorTls};
use crate::config::{self, Config, Fault, File, ListenerConfig, Sources, StartupPolicy};
use crate::credentials::Spec;
use crate::drain::{self, Notice, Plan, Signals};
use crate::listen::{Habits, Hubs};
use crate::logs::Logs;
use crate::net::budget::Budget;
use crate::net::listener::{Bound, SocketFile};
use crate::net::tls::{self, ListenerTls, TlsError};
use crate::pool::Directory;
use crate::pool::directory::{Purpose, WILDCARD};
use crate::random;
use crate::routing::Preference;
use crate::session::Interners;
use crate::telemetry::Telemetry;
use crate::watch::Watch;
use crate::worker::{Entrance, Workers};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A certificate that ends within this time should be renewed by now: those who do it by themselves do it weeks before.
const SOON: Duration = Duration::from_secs(7 * 86_400);
/// How often pools are kept in order.
const MAINTENANCE: Duration = Duration::from_secs(1);
/// How long the last lines of the access log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often files are looked at for changes: ConfigMap volumes swap symbolic links, which no file notification shows.
const FILE_WATCH: Duration = Duration::from_secs(5);

/// Why the start failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {error}{}", hint(.error, .flag))]
    Listen {
        /// The address.
        address: String,
        /// The flag that chooses another.
        flag: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The access log cannot be written to.
    #[error("cannot write to the access log {path:?}: {error}; choose another file with access_log")]
    AccessLog {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// TLS files cannot be used.
    #[error("{what}: {error}")]
    Tls {
        /// Whose TLS.
        what: String,
        /// Why.
        error: TlsError,
    },
    /// The system refused something else.
    #[error("{what}: {error}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
}

#[allow(clippy::wildcard_enum_match_arm, reason = "a hint for the two kinds that have one")]
fn hint(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse if flag == LISTEN => {
            format!("; something else listens there, perhaps a PostgreSQL server: choose another address with {flag}")
        }
        io::ErrorKind::AddrInUse => format!("; something else listens there: choose another address with {flag}"),
        io::ErrorKind::PermissionDenied => format!("; that is not allowed here: choose another with {flag}"),
        _ => String::new(),
    }
}

const LISTEN: &str = "--listen";

/// A running ambassador.
pub struct Ambassador {
    /// What can be seen and done.
    pub operator: Arc<Operator>,
    /// Where clients come in.
    pub addresses: Vec<SocketAddr>,
    /// Where metrics and health are served.
    pub admin_address: Option<SocketAddr>,
    config: Config,
    sources: Sources,
    /// The ways in, by the addresses that were asked for.
    /// With the addresses of the further listener that they are of.
    doors: Vec<(Option<Vec<SocketAddr>>, Arc<Door>)>,
    requests: UnboundedReceiver<Request>,
    workers: Workers,
    log: Logs,
    console: Arc<SqlConsole>,
    _socket: Option<SocketFile>,
}

impl Ambassador {
    /// Wires all parts and starts to listen. To be called inside the runtime of the control thread.
    pub async fn start(config: Config, sources: Sources, log: Logs) -> Result<Self, StartError> {
        raise_descriptor_limit();
        if !config.core_dumps {
            forbid_core_dumps();
        }
        warn_of_files(&config);
        if sources.flags.iter().any(|(key, value)| key == "url" && config::url::without_password(value) != *value) {
            tracing::warn!(
                "the URL on the command line holds a password, which everybody on this machine can see: use \
                 PG_AMBASSADOR_URL, password_file or password_command"
            );
        }
        let telemetry = Arc::new(Telemetry::default());
        let interners = Arc::new(Interners::default());
        // On this runtime: it lives until all clients have gone, whichever worker they are with.
        let runtime = tokio::runtime::Handle::current();
        let shared = (Arc::clone(&interners), Arc::clone(&telemetry));
        let directory = Directory::new(&config.directory, shared.0, shared.1, runtime.clone())
            .map_err(|(database, error)| StartError::Tls { what: format!("database {database:?}"), error })?;
        let access_log = config.access_log.as_ref().map(|access| {
            AccessLog::start(access).map_err(|error| StartError::AccessLog {
                path: match &access.target {
                    Target::File(path) => path.clone(),
                    Target::Stdout | Target::Stderr => PathBuf::new(),
                },
                error,
            })
        });
        let access_log = access_log.transpose()?;
        let console = Arc::new(SqlConsole::new(config.console.clone(), runtime.clone()));
        let budget = Budget::new(config.buffer_limit);
        let context = Arc::new(Context {
            clients: Clients::new(config.max_clients),
            interners,
            directory,
            hubs: Hubs::new(runtime, Habits::default(), Arc::clone(&budget)),
            cancels: CancelLane::new(2 * config.directory.databases.iter().map(|d| d.pool.size).max().unwrap_or(1)),
            users: RwLock::new(Arc::clone(&config.auth.users)),
            auth_query: config.auth.query.clone(),
            pass_through: config.auth.pass_through,
            limits: RwLock::new(Arc::new(config.limits.clone())),
            login_timeout: config.login_timeout,
            console: Arc::clone(&console) as Arc<dyn crate::client::Console>,
            mock: Mock::new(&random::bytes()),
            slow_checks: Arc::new(Semaphore::new(turns_of_hashing())),
            names: crate::client::Names::default(),
            sources: std::sync::Mutex::default(),
            counters: crate::client::Counters::default(),
            access_log,
            budget,
            certificate_ends: AtomicU64::new(0),
            closed: std::sync::atomic::AtomicBool::new(false),
        });
        let (sender, requests) = unbounded_channel();
        let settings = config.settings.clone();
        let operator = Operator::new(Arc::clone(&context), telemetry, settings, sender, config.workers);
        let operator = Arc::new(operator);
        console.connect(Arc::clone(&operator));

        let (entrances, doors, socket) = bind(&config)?;
        let tls = doors.first().and_then(|(_, door)| door.tls.read().unwrap_or_else(PoisonError::into_inner).clone());
        note_certificate(&context, tls.as_ref());
        let addresses = entrances.iter().filter_map(|entrance| entrance.bound.local()).collect();
        let admin_address = serve_http(&config, &operator).await?;
        let beat = Arc::clone(&operator);
        // Each accepts only when it has a place for whom it accepts: one for each entrance, and one to log in.
        let logins = config.max_logins.div_ceil(config.workers).max(entrances.len() + 1);
        let workers =
            Workers::start(config.workers, logins, &context, entrances, config.socket, move |worker| beat.beat(worker))
                .map_err(|error| StartError::System { what: "cannot start the workers", error })?;
        operator.listening.store(true, Ordering::Relaxed);
        crate::watchdog::start(Arc::clone(&operator))
            .map_err(|error| StartError::System { what: "cannot start the watchdog", error })?;
        Ok(Self {
            operator,
            addresses,
            admin_address,
            config,
            sources,
            doors,
            requests,
            workers,
            log,
            console,
            _socket: socket,
        })
    }

    /// Serves until it is told to stop.
    pub async fn run(mut self) -> io::Result<()> {
        let mut signals = Signals::listen()?;
        let started = tokio::spawn(prove_start(Arc::clone(&self.operator), self.config.clone()));
        let mut maintenance = tokio::time::interval(MAINTENANCE);
        let mut sampling =
            tokio::time::interval_at(tokio::time::Instant::now() + self.config.stats_period, self.config.stats_period);
        let mut watching = tokio::time::interval(FILE_WATCH);
        let mut watch = Watch::new(self.config.files());
        let operator = Arc::clone(&self.operator);
        let mut draining: Option<Pin<Box<dyn Future<Output = ()> + '_>>> = None;
        let drain = |plan| {
            started.abort();
            Some(Box::pin(drain::drain(&operator, plan)) as Pin<Box<dyn Future<Output = ()> + '_>>)
        };
        loop {
            let drained = async {
                match &mut draining {
                    Some(draining) => draining.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = drained => break,
                notice = signals.next() => match notice {
                    Notice::Terminate if draining.is_none() => draining = drain(self.plan()),
                    // A second signal, whichever, ends the patience.
                    Notice::Terminate | Notice::Interrupt => {
                        drain::end(&operator).await;
                        break;
                    }
                    Notice::Reload => drop(self.reload(&[], &mut watch)),
                },
                Some(request) = self.requests.recv() => match request {
                    Request::Reload(overrides, answer) => {
                        let _ = answer.send(self.reload(&overrides, &mut watch));
                    }
                    Request::Shutdown(Shutdown::Now) => {
                        drain::end(&operator).await;
                        break;
                    }
                    Request::Shutdown(Shutdown::WaitForServers) => {
                        draining = drain(Plan { patience: Duration::ZERO, ..self.plan() });
                    }
                    Request::Shutdown(Shutdown::WaitForClients) if draining.is_none() => draining = drain(self.plan()),
                    Request::Shutdown(Shutdown::WaitForClients) => {}
                },
                _ = maintenance.tick() => {
                    let queues = metrics::queues(&self.operator.context.clients);
                    let waits = queues.into_iter().map(|(name, (_, longest))| (name, longest)).collect();
                    self.operator.context.directory.maintain(Instant::now(), &waits);
                    self.log.tell_what_was_left_out();
                    self.operator.log_lines_left_out.store(self.log.left_out(), Ordering::Relaxed);
                },
                _ = sampling.tick() => self.operator.sample(Instant::now()),
                _ = watching.tick() => {
                    if let Some(changed) = watch.changed() {
                        tracing::info!(file = %changed.display(), "a file has changed: reloading");
                        let set = self.operator.overrides();
                        drop(self.reload(&set, &mut watch));
                    }
                },
            }
        }
        started.abort();
        drop(draining);
        self.operator.context.hubs.close().await;
        self.stop();
        Ok(())
    }

    /// Stops at once what still runs.
    pub fn stop(self) {
        crate::watchdog::stop(&self.operator);
        let access_log = self.operator.context.access_log.clone();
        self.workers.stop();
        if let Some(log) = access_log {
            log.close(LAST_LINES);
        }
        tracing::info!("stopped");
    }

    fn plan(&self) -> Plan {
        Plan { patience: self.config.drain_timeout, grace: self.config.drain_grace }
    }

    /// Reads the configuration again, checks it whole, and applies it whole or not at all.
    fn reload(&mut self, overrides: &[(String, String)], watch: &mut Watch) -> Result<(), Vec<String>> {
        // Whether the configuration has faults is nothing to whoever has moved the file away.
        if let Some(log) = &self.operator.context.access_log {
            log.reopen();
        }
        let result = self.read_again(overrides).and_then(|config| self.apply(config));
        let [applied, refused] = &self.operator.reloads;
        match &result {
            Ok(changes) => {
                self.operator.has_reloaded(overrides);
                applied.fetch_add(1, Ordering::Relaxed);
                let changes = if changes.is_empty() { "nothing".to_owned() } else { changes.join(", ") };
                tracing::info!(changed = changes, "reloaded the configuration");
            }
            Err(faults) => {
                refused.fetch_add(1, Ordering::Relaxed);
                for fault in faults {
                    tracing::error!("reload refused, nothing has changed: {fault}");
                }
            }
        }
        *watch = Watch::new(self.config.files());
        result.map(drop)
    }

    fn read_again(&self, overrides: &[(String, String)]) -> Result<Config, Vec<String>> {
        let mut sources = self.sources.clone();
        if let Some(file) = &mut sources.file {
            let text = std::fs::read_to_string(&file.path);
            file.text = text.map_err(|error| vec![format!("{}: {error}", file.path.display())])?;
        }
        for (key, value) in overrides {
            sources.flags.retain(|(path, _)| path != key);
            sources.flags.push((key.clone(), value.clone()));
        }
        config::resolve(&sources).map_err(|faults| faults.iter().map(Fault::to_string).collect())
    }

    /// Applies a configuration; gives what has changed.
    fn apply(&mut self, config: Config) -> Result<Vec<String>, Vec<String>> {
        let door_tls = config.tls.as_ref().map(load_door).transpose().map_err(|error| vec![format!("tls: {error}")])?;
        let context = &self.operator.context;
        context
            .directory
            .reload(&config.directory)
            .map_err(|(database, error)| vec![format!("database {database:?}: {error}")])?;
        context.set_limits(config.limits.clone());
        self.console.adopt(config.console.clone());
        *context.users.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&config.auth.users);
        context.clients.set_limit(config.max_clients);
        context.budget.set_limit(config.buffer_limit);
        note_certificate(context, door_tls.as_ref());
        for (_, door) in &self.doors {
            *door.tls.write().unwrap_or_else(PoisonError::into_inner) = door_tls.clone();
        }
        // A listener that was not there at the start is none.
        for (addresses, door) in &self.doors {
            let is_of = |listener: &&ListenerConfig| addresses.as_ref() == Some(&listener.listen);
            if let Some(listener) = config.listeners.iter().find(is_of) {
                *door.preference.write().unwrap_or_else(PoisonError::into_inner) = listener.preference;
            }
        }
        self.log.set_level(&config.log.level);
        if let (Some(log), Some(access)) = (&context.access_log, &config.access_log) {
            log.adopt(access);
        }
        let mut changes = Vec::new();
        for setting in &config.settings {
            let before = self.config.settings.iter().find(|old| old.key == setting.key);
            if before.is_none_or(|old| old.value != setting.value) {
                if setting.reloads {
                    changes.push(setting.key.clone());
                } else {
                    tracing::warn!(
                        setting = setting.key,
                        "a change of this setting takes effect with the next start only"
                    );
                }
            }
        }
        self.operator.set_settings(config.settings.clone());
        self.config = config;
        Ok(changes)
    }
}

/// What listening has made: the ways in, the doors whose TLS a reload changes, the unix socket's file.
type Opened = (Vec<Entrance>, Vec<(Option<Vec<SocketAddr>>, Arc<Door>)>, Option<SocketFile>);

/// How many passwords are hashed at a time: on half of the processors, as the others serve who is in.
fn turns_of_hashing() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

/// Opens every listener.
fn bind(config: &Config) -> Result<Opened, StartError> {
    let tls = config.tls.as_ref().map(load_door).transpose();
    let tls = tls.map_err(|error| StartError::Tls { what: "tls".into(), error })?;
    let required = config.tls.as_ref().is_some_and(|tls| tls.required);
    let door = |address: Option<SocketAddr>, preference| {
        let (method, tls) = (config.auth.method, RwLock::new(tls.clone()));
        let address = address.filter(|address| !address.ip().is_unspecified());
        Arc::new(Door { address, method, tls, tls_required: required, preference: RwLock::new(preference) })
    };
    let defaulted = !config.is_set("listen");
    let (mut entrances, mut doors) = (Vec::new(), Vec::new());
    let further = config.listeners.iter().map(|listener| (&listener.listen, listener.preference, "listeners"));
    for (addresses, preference, flag) in [(&config.listen, Preference::default(), LISTEN)].into_iter().chain(further) {
        for address in addresses {
            match Bound::tcp(*address, &config.socket) {
                Ok(bound) => {
                    let door = door(bound.local(), preference);
                    doors.push(((flag != LISTEN).then(|| addresses.clone()), Arc::clone(&door)));
                    entrances.push(Entrance { bound, door });
                }
                // Nobody asked for IPv6 by name, and not every machine has it.
                Err(error)
                    if flag == LISTEN && defaulted && address.is_ipv6() && error.kind() != io::ErrorKind::AddrInUse =>
                {
                    tracing::debug!(%address, %error, "not listening");
                }
                Err(error) => return Err(StartError::Listen { address: address.to_string(), flag, error }),
            }
        }
    }
    let mut file = None;
    if let Some(unix) = &config.unix {
        let (bound, made) = Bound::unix(&unix.path, unix.mode).map_err(|error| StartError::Listen {
            address: unix.path.display().to_string(),
            flag: "--unix-socket",
            error,
        })?;
        // Unix sockets have no TLS, as PostgreSQL has it.
        let door = Arc::new(Door {
            address: None,
            method: config.auth.unix_method,
            tls: RwLock::new(None),
            tls_required: false,
            preference: RwLock::default(),
        });
        entrances.push(Entrance { bound, door });
        file = Some(made);
    }
    if config.auth.method == Method::Trust {
        tracing::warn!("auth.method is trust: every process on this machine can log in as anybody");
    }
    Ok((entrances, doors, file))
}

fn load_door(tls: &ListenerTls) -> Result<Arc<DoorTls>, TlsError> {
    let leaf = tls.leaf()?;
    let (end_point, valid_until) = (tls::server_end_point(&leaf), tls::valid_until(&leaf));
    let config = tls.load()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if let Some(left) = valid_until.map(|until| until.saturating_sub(now))
        && left < SOON
    {
        let days = left.as_secs() / 86_400;
        tracing::warn!(cert = %tls.identity.cert.display(), days, "the certificate of tls.cert ends soon, or has ended: renew it");
    }
    Ok(Arc::new(DoorTls { config, end_point, valid_until }))
}

/// Notes until when the listeners' certificate is valid.
fn note_certificate(context: &Context, tls: Option<&Arc<DoorTls>>) {
    let until = tls.and_then(|tls| tls.valid_until).unwrap_or_default();
    context.certificate_ends.store(until.as_secs(), Ordering::Relaxed);
}

async fn serve_http(config: &Config, operator: &Arc<Operator>) -> Result<Option<SocketAddr>, StartError> {
    let Some(address) = config.admin_listen else { return Ok(None) };
    match tokio::net::TcpListener::bind(address).await {
        Ok(listener) => {
            let bound = listener.local_addr().ok();
            tokio::spawn(http::serve(listener, Arc::clone(operator)));
            Ok(bound)
        }
        // The default must not keep a second ambassador on a machine from starting.
        Err(error) if !config.is_set("admin_listen") => {
            tracing::warn!(%address, %error, "metrics and health are not served: choose an address with --admin-listen");
            Ok(None)
        }
        Err(error) => Err(StartError::Listen { address: address.to_string(), flag: "--admin-listen", error }),
    }
}

/// Logs in at a primary once, as far as the configuration says as whom; then the start is done.
async fn prove_start(operator: Arc<Operator>, config: Config) {
    if config.startup == StartupPolicy::Primary {
        for database in &config.directory.databases {
            let name =
                if database.name == WILDCARD { database.dbname.as_deref() } else { Some(database.name.as_str()) };
            let (Some(name), Some(user)) = (name.or(database.user.as_deref()), &database.user) else { continue };
            let Ok(pools) = operator.context.directory.pools(name, user, Purpose::Clients, None) else { continue };
            loop {
                let deadline = Instant::now() + config.limits.checkout;
                match pools.lease_until(0, deadline).await {
                    Ok(lease) => {
                        lease.finish(Instant::now());
                        break;
                    }
                    Err(error) => tracing::warn!(pool = %pools.name, "still waiting for a first login: {error}"),
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    operator.started.store(true, Ordering::Relaxed);
    tracing::info!("ready");
}

/// Keeps our memory, with all its secrets, to ourselves: no core dump, and no debugger of another process of the same user.
fn forbid_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "cannot forbid core dumps");
    }
    // A limit of 0 does not keep a core from a program that the system pipes it to.
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "cannot forbid core dumps");
        }
    }
}

/// Says of files with secrets who else can read them.
fn warn_of_files(config: &Config) {
    let logins =
        config.directory.databases.iter().flat_map(|database| database.logins.values().chain([&database.login]));
    let mut files: Vec<_> =
        logins.filter_map(|login| if let Spec::File(path) = login { Some(path) } else { None }).collect();
    files.sort();
    files.dedup();
    for path in files {
        if let Ok(Some(warning)) = crate::credentials::check_file(path) {
            tracing::warn!("{warning}");
        }
    }
}

/// Every client costs a descriptor: takes all that the system allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
}

/// Reads the configuration file that flags or environment name.
pub fn read_file(path: Option<PathBuf>) -> Result<Option<File>, String> {
    let Some(path) = path else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(File { path, text })),
        Err(error) => Err(format!("cannot read the configuration file {}: {error}", path.display())),
    }
}
