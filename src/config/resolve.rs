//! Sources -> [`Config`]: every setting, its default, its checks.

use super::credentials::{What, Words};
use super::source::{Place, Raw, Reader};
use super::url::{self, Url};
use super::{
    AuthConfig, Config, ConsoleConfig, Fault, ListenerConfig, LogConfig, LogFormat, Sources, StartupPolicy, UnixListen,
    units,
};
use crate::access_log::{AccessLogConfig, Target};
use crate::auth::{Method, Secret, UserList};
use crate::client::{AuthQuery, Limits};
use crate::monitor::Habits;
use crate::net::tls::{Authorities, Identity, ListenerTls, SslMode, UpstreamTls};
use crate::net::{Address, SocketOptions};
use crate::pool::directory::{DatabaseConfig, UserConfig, WILDCARD};
use crate::pool::{DirectoryConfig, NodeLabels, PoolConfig, RoutingConfig};
use crate::routing::survey::Location;
use crate::routing::verdict::Wish;
use crate::routing::{Consistency, Fallback, Preference};
use crate::secret::SecretString;
use crate::session::PoolMode;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// PgBouncer's query for looking users up; a password that has expired is none (CVE-2025-2291).
const AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL ELSE rolpassword END \
     FROM pg_catalog.pg_authid WHERE rolname OPERATOR(pg_catalog.=) $1 AND rolcanlogin";

/// The least `buffer_limit`: with less, a few large messages that come in pieces keep everybody else out.
const LEAST_BUFFERS: u64 = 1 << 20;

/// What may be logged.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Resolves everything, and checks it.
///
/// # Errors
/// Every fault there is, each with its place.
pub fn resolve(sources: &Sources) -> Result<Config, Vec<Fault>> {
    let mut read = Resolver(Reader::new(sources));
    let config = read.config(sources);
    let (settings, faults) = read.0.finish();
    match config {
        Some(config) if faults.is_empty() => {
            let file = sources.file.as_ref().map(|file| file.path.clone());
            Ok(Config { settings, file, ..config })
        }
        _ => Err(faults),
    }
}

pub(super) struct Resolver(pub(super) Reader);

/// What a database has that is not its own from the settings for all.
struct Defaults {
    mode: PoolMode,
    pool: PoolConfig,
    prepared_limit: usize,
    max_connections: Option<usize>,
    socket: SocketOptions,
    routing: RoutingConfig,
    credentials: Words,
    /// What users log in with upstream, by their names.
    logins: Vec<(String, What)>,
}

/// A list with one item a comma.
fn show_list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// 0 is off.
fn limit(count: usize) -> Option<usize> {
    (count > 0).then_some(count)
}

/// Whether this may be a function's name, with or without its schema; no arguments, no blanks left over from a list.
fn is_function_name(text: &str) -> bool {
    !text.is_empty()
        && text.split('.').count() <= 2
        && text.split('.').all(|part| !part.is_empty() && part == part.trim())
        && !text.contains(['(', ')', ',', '"'])
}

fn parse_route(raw: &Raw) -> Result<Wish, String> {
    let text = raw.text()?;
    let route = Wish::parse(text).filter(|_| !text.trim().is_empty());
    route.ok_or_else(|| format!("{text:?}: write {}", url::ROUTES))
}

fn parse_consistency(raw: &Raw) -> Result<Consistency, String> {
    let text = raw.text()?;
    Consistency::parse(text).ok_or_else(|| format!("{text:?}: write {}", url::CONSISTENCIES))
}

fn mode_name(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
        PoolMode::Statement => "statement",
    }
}

fn parse_mode(raw: &Raw) -> Result<PoolMode, String> {
    match raw.text()? {
        "session" => Ok(PoolMode::Session),
        "transaction" => Ok(PoolMode::Transaction),
        "statement" => Ok(PoolMode::Statement),
        other => Err(format!("{other:?} is no pool mode: write session, transaction or statement")),
    }
}

impl Resolver {
    // ------------------------------------------------------------------------------------------------- small readers

    fn duration(&mut self, path: &str, default: Duration) -> Duration {
        self.0.get(path, default, true, Raw::duration, |d| units::show_duration(*d))
    }

    /// A duration that cannot be off.
    pub(super) fn positive(&mut self, path: &str, default: Duration) -> Duration {
        let parse = |raw: &Raw| match raw.duration()? {
            Duration::ZERO => Err("cannot be off: write more than 0".to_owned()),
            duration => Ok(duration),
        };
        self.0.get(path, default, true, parse, |d| units::show_duration(*d))
    }

    fn count(&mut self, path: &str, default: usize, reloads: bool) -> usize {
        self.0.get(path, default, reloads, Raw::count, ToString::to_string)
    }

    /// A number of at least 1.
    fn at_least_one(&mut self, path: &str, default: usize, reloads: bool) -> usize {
        let parse = |raw: &Raw| match raw.count()? {
            0 => Err("must be 1 or more".to_owned()),
            count => Ok(count),
        };
        self.0.get(path, default, reloads, parse, ToString::to_string)
    }

    fn percent(&mut self, path: &str, default: u8) -> u8 {
        let parse = |raw: &Raw| match u8::try_from(raw.count()?) {
            Ok(percent @ 0..=100) => Ok(percent),
            Ok(_) | Err(_) => Err("write a number of percent, from 0 to 100".to_owned()),
        };
        self.0.get(path, default, true, parse, ToString::to_string)
    }

    fn flag(&mut self, path: &str, default: bool) -> bool {
        self.0.get(path, default, true, Raw::flag, ToString::to_string)
    }

    pub(super) fn text(&mut self, path: &str, reloads: bool) -> Option<String> {
        let parse = |raw: &Raw| raw.text().map(|text| Some(text.to_owned()).filter(|text| !text.is_empty()));
        self.0.get(path, None, reloads, parse, |text| text.clone().unwrap_or_default())
    }

    pub(super) fn secret(&mut self, path: &str) -> Option<SecretString> {
        let parse = |raw: &Raw| raw.text().map(|text| (!text.is_empty()).then(|| SecretString::new(text)));
        self.0.get(path, None, true, parse, |secret| secret.as_ref().map_or("", |_| "***").to_owned())
    }

    pub(super) fn path(&mut self, path: &str) -> Option<PathBuf> {
        self.text(path, true).map(PathBuf::from)
    }

    pub(super) fn texts(&mut self, path: &str, default: &[&str]) -> Vec<String> {
        let default: Vec<String> = default.iter().map(|&text| text.to_owned()).collect();
        let parse = |raw: &Raw| Ok(raw.texts()?.into_iter().map(|(text, _)| text).collect());
        self.0.get(path, default, true, parse, |texts: &Vec<String>| show_list(texts))
    }

    fn method(&mut self, path: &str, default: Method) -> Method {
        let parse = |raw: &Raw| {
            let text = raw.text()?;
            let methods = "trust, peer, scram-sha-256, md5, password or cert";
            Method::parse(text).ok_or_else(|| format!("{text:?} is no method: write {methods}"))
        };
        self.0.get(path, default, false, parse, |method| method.as_str().to_owned())
    }

    // ---------------------------------------------------------------------------------------------------- the whole

    fn config(&mut self, sources: &Sources) -> Option<Config> {
        let socket = self.socket();
        let tls = self.listener_tls();
        let auth = self.auth(tls.as_ref());
        let listen = self.listen(&auth, tls.as_ref());
        let listeners = self.listeners(&listen, &auth, tls.as_ref());
        let unix = self.unix();
        let admin_listen = self.admin_listen();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = self.at_least_one("workers", cores.min(2), false);
        let max_clients = self.at_least_one("max_clients", 1000, true);
        let buffer_limit = self.buffer_limit();
        let max_logins = self.at_least_one("max_logins", 128, false);
        let login_timeout = self.positive("client_login_timeout", Duration::from_secs(10));
        let limits = self.limits();
        let routing = self.routing(None, RoutingConfig::default());
        let habits = self.habits(&routing);
        let place = self.location("zone", "region");
        let mut labels = self.labels();
        let (users, logins) = self.users();
        let defaults = self.pool_defaults(socket, routing, logins);
        let databases = self.databases(sources, &defaults, &mut labels);
        let dials_per_node = self.at_least_one("dials_per_server", 4, false);
        // Nothing is returned from here before the last setting was asked for: what is not would pass for unknown.
        let config = Config {
            listen,
            listeners,
            unix,
            admin_listen,
            tls,
            auth,
            console: ConsoleConfig {
                admin_users: self.texts("console.admin_users", &["ambassador"]),
                stats_users: self.texts("console.stats_users", &["*"]),
            },
            workers,
            max_clients,
            buffer_limit,
            max_logins,
            login_timeout,
            limits,
            socket,
            directory: DirectoryConfig {
                databases: databases.clone().unwrap_or_default(),
                users,
                dials_per_node,
                habits,
                place,
                labels,
            },
            log: self.log(),
            access_log: self.access_log(),
            drain_timeout: self.duration("drain_timeout", Duration::from_secs(25)),
            drain_grace: self.duration("drain_grace", Duration::from_secs(3)),
            startup: self.startup(),
            stats_period: self.positive("stats_period", Duration::from_secs(60)),
            core_dumps: self.0.get("core_dumps", false, false, Raw::flag, ToString::to_string),
            settings: Vec::new(),
            file: None,
        };
        databases.map(|_| config)
    }

    fn buffer_limit(&mut self) -> usize {
        let parse = |raw: &Raw| match raw.size()? {
            size if size > 0 && size < LEAST_BUFFERS => {
                Err(format!("has to be {} at least, or 0 for no limit", units::show_size(LEAST_BUFFERS)))
            }
            size => Ok(size),
        };
        let size = self.0.get("buffer_limit", 256 << 20, true, parse, |size| units::show_size(*size));
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    fn socket(&mut self) -> SocketOptions {
        let default = SocketOptions::default();
        SocketOptions {
            keepalive_idle: self.duration("tcp.keepalive_idle", default.keepalive_idle),
            keepalive_interval: self.positive("tcp.keepalive_interval", default.keepalive_interval),
            keepalive_count: u32::try_from(self.at_least_one(
                "tcp.keepalive_count",
                default.keepalive_count as usize,
                true,
            ))
            .unwrap_or(u32::MAX),
            user_timeout: self.duration("tcp.user_timeout", default.user_timeout),
        }
    }

    fn listener_tls(&mut self) -> Option<ListenerTls> {
        let (cert, key) = (self.path("tls.cert"), self.path("tls.key"));
        let client_authorities = self.path("tls.client_ca");
        let required = self.flag("tls.required", false);
        match (cert, key) {
            (Some(cert), Some(key)) => {
                let tls = ListenerTls { identity: Identity { cert, key }, client_authorities, required };
                if let Err(error) = tls.load() {
                    let place = self.0.place_of("tls.cert");
                    self.0.fault(place, format!("tls: {error}"));
                }
                Some(tls)
            }
            (None, None) => {
                if client_authorities.is_some() || required {
                    let place = self.0.place_of(if required { "tls.required" } else { "tls.client_ca" });
                    self.0.fault(place, "tls: needs tls.cert and tls.key");
                }
                None
            }
            (cert, _) => {
                let (there, missing) = if cert.is_some() { ("tls.cert", "tls.key") } else { ("tls.key", "tls.cert") };
                let place = self.0.place_of(there);
                self.0.fault(place, format!("{there} goes together with {missing}"));
                None
            }
        }
    }

    fn auth(&mut self, tls: Option<&ListenerTls>) -> AuthConfig {
        let method = self.method("auth.method", Method::Trust);
        // Unix sockets have no certificates; who is at the other end is known there all the same.
        let unix_default = if method == Method::Cert { Method::Peer } else { method };
        let unix_method = self.method("auth.unix_method", unix_default);
        if method == Method::Peer {
            let place = self.0.place_of("auth.method");
            self.0.fault(place, "auth.method: peer works on unix sockets only: write it as auth.unix_method");
        }
        if unix_method == Method::Cert {
            let place = self.0.place_of("auth.unix_method");
            self.0.fault(place, "auth.unix_method: unix sockets have no certificates");
        }
        if method == Method::Cert && tls.is_none_or(|tls| tls.client_authorities.is_none()) {
            let place = self.0.place_of("auth.method");
            self.0.fault(place, "auth.method: cert needs tls.cert, tls.key and tls.client_ca");
        }
        let mut users = UserList::default();
        if let Some(path) = self.path("auth.file") {
            let place = self.0.place_of("auth.file");
            match std::fs::read_to_string(&path).map_err(|error| error.to_string()).map(|text| UserList::parse(&text)) {
                Err(error) => self.0.fault(place, format!("auth.file {}: {error}", path.display())),
                Ok(Err(faults)) => {
                    for fault in faults {
                        self.0.fault(Place::File(path.clone(), fault.line, 1), fault.message);
                    }
                }
                Ok(Ok(list)) => users = list,
            }
        }
        for (name, _) in self.0.tables("users") {
            if let Some(secret) = self.secret(&format!("users.{name}.password")) {
                users.insert(name, Secret::parse(secret.expose()));
            }
        }
        let query_user = self.text("auth.query_user", false);
        let query_password = self.secret("auth.query_password");
        let query_database = self.text("auth.query_database", false);
        let query = self.text("auth.query", false);
        if query_user.is_none() && query.is_some() {
            let place = self.0.place_of("auth.query");
            self.0.fault(place, "auth.query needs auth.query_user, the role that may run it");
        }
        AuthConfig {
            method,
            unix_method,
            users: Arc::new(users),
            query: query_user.map(|user| AuthQuery {
                query: query.unwrap_or_else(|| AUTH_QUERY.to_owned()),
                user,
                password: query_password,
                database: query_database,
            }),
            pass_through: self.flag("auth.pass_through", false),
        }
    }

    fn listen(&mut self, auth: &AuthConfig, tls: Option<&ListenerTls>) -> Vec<SocketAddr> {
        let default: Vec<SocketAddr> =
            vec![([127, 0, 0, 1], url::DEFAULT_PORT).into(), (std::net::Ipv6Addr::LOCALHOST, url::DEFAULT_PORT).into()];
        self.addresses("listen", default, auth, tls)
    }

    /// Addresses beside those, each with what is said of the reads that come in there.
    fn listeners(&mut self, taken: &[SocketAddr], auth: &AuthConfig, tls: Option<&ListenerTls>) -> Vec<ListenerConfig> {
        let mut taken = taken.to_vec();
        let mut listeners = Vec::new();
        for (at, place) in self.0.tables("listeners") {
            let path = format!("listeners.{at}");
            let key = format!("{path}.listen");
            let listen = self.addresses(&key, Vec::new(), auth, tls);
            if listen.is_empty() && matches!(self.0.place_of(&key), Place::Nowhere(_)) {
                self.0.fault(place, "a listener needs an address: write listen = [\"127.0.0.1:5433\"]");
            }
            for address in &listen {
                // Port 0 is another one each time.
                if address.port() != 0 && taken.contains(address) {
                    let place = self.0.place_of(&key);
                    self.0.fault(place, format!("{key}: {address} is listened on already: name each address once"));
                }
                taken.push(*address);
            }
            listeners.push(ListenerConfig { listen, preference: self.preference(&path) });
        }
        listeners
    }

    /// What is said of the reads of a user or a listener.
    fn preference(&mut self, path: &str) -> Preference {
        let parse_route = |raw: &Raw| match raw.text()? {
            "" => Ok(None),
            _ => parse_route(raw).map(Some),
        };
        let parse_consistency = |raw: &Raw| match raw.text()? {
            "" => Ok(None),
            _ => parse_consistency(raw).map(Some),
        };
        let show_route = |route: &Option<Wish>| route.map_or("", Wish::as_str).to_owned();
        let show_consistency = |mode: &Option<Consistency>| mode.map_or("", Consistency::as_str).to_owned();
        Preference {
            route: self.0.get(&format!("{path}.route"), None, true, parse_route, show_route),
            consistency: self.0.get(&format!("{path}.consistency"), None, true, parse_consistency, show_consistency),
        }
    }

    /// Addresses to listen on. Those that others can reach have to be safe.
    fn addresses(
        &mut self,
        path: &str,
        default: Vec<SocketAddr>,
        auth: &AuthConfig,
        tls: Option<&ListenerTls>,
    ) -> Vec<SocketAddr> {
        let parse = |raw: &Raw| {
            let mut addresses = Vec::new();
            for (text, _) in raw.texts()? {
                let address = text.parse::<SocketAddr>().map_err(|_| {
                    format!("{text:?} is no address: write ADDRESS:PORT, such as 127.0.0.1:5432 or [::1]:5432")
                })?;
                addresses.push(address);
            }
            Ok(addresses)
        };
        let addresses = self.0.get(path, default, false, parse, |list: &Vec<SocketAddr>| show_list(list));
        for address in addresses.iter().filter(|address| !address.ip().is_loopback()) {
            let place = self.0.place_of(path);
            if tls.is_none() || auth.method == Method::Trust {
                self.0.fault(
                    place,
                    format!(
                        "{path}: {address} can be reached from other machines: set tls.cert and tls.key, and an \
                         auth.method other than trust, or listen on 127.0.0.1"
                    ),
                );
            }
        }
        addresses
    }

    fn unix(&mut self) -> Option<UnixListen> {
        let parse = |raw: &Raw| {
            u32::from_str_radix(raw.text()?, 8)
                .ok()
                .filter(|mode| *mode <= 0o777)
                .ok_or_else(|| "write permissions in octal digits, such as \"0600\"".to_owned())
        };
        let mode = self.0.get("unix_socket_mode", 0o600, false, parse, |mode| format!("{mode:04o}"));
        let path = self.path("unix_socket")?;
        // PostgreSQL's clients look for a socket by its port in a directory.
        let path = if path.is_dir() { Address::socket_path(&path, url::DEFAULT_PORT) } else { path };
        Some(UnixListen { path, mode })
    }

    fn admin_listen(&mut self) -> Option<SocketAddr> {
        let parse = |raw: &Raw| match raw.text()? {
            "" | "off" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| format!("{text:?} is no address: write ADDRESS:PORT, such as 127.0.0.1:9090, or off")),
        };
        let show = |address: &Option<SocketAddr>| address.map_or_else(|| "off".to_owned(), |a| a.to_string());
        self.0.get("admin_listen", Some(([127, 0, 0, 1], 9090).into()), false, parse, show)
    }

    fn limits(&mut self) -> Limits {
        let default = Limits::default();
        let parse = |raw: &Raw| match raw.text()? {
            "error" => Ok(false),
            "close" => Ok(true),
            other => Err(format!("{other:?}: write error (the client is told and stays) or close")),
        };
        let close = self.0.get("on_server_loss", false, true, parse, |c| if *c { "close" } else { "error" }.to_owned());
        Limits {
            checkout: self.positive("checkout_timeout", default.checkout),
            notice_after: self.duration("queue_notice", default.notice_after),
            query: self.duration("query_timeout", default.query),
            transaction: self.duration("transaction_timeout", default.transaction),
            idle_transaction: self.duration("idle_transaction_timeout", default.idle_transaction),
            client_idle: self.duration("client_idle_timeout", default.client_idle),
            client_write: self.duration("client_write_timeout", default.client_write),
            reset: self.positive("server_reset_timeout", default.reset),
            close_on_server_loss: close,
            ..default
        }
        .settled()
    }

    fn pool_defaults(
        &mut self,
        socket: SocketOptions,
        routing: RoutingConfig,
        logins: Vec<(String, What)>,
    ) -> Defaults {
        Defaults {
            mode: self.0.get("pool_mode", PoolMode::Transaction, true, parse_mode, |m| mode_name(*m).to_owned()),
            pool: PoolConfig {
                size: self.at_least_one("pool_size", 20, true),
                min_idle: self.count("min_pool_size", 0, true),
                reserve: self.count("reserve_pool_size", 0, true),
                reserve_after: self.duration("reserve_pool_timeout", Duration::from_secs(5)),
                idle_timeout: self.duration("server_idle_timeout", Duration::from_secs(600)),
                lifetime: self.duration("server_lifetime", Duration::from_secs(3600)),
                connect_timeout: self.positive("server_connect_timeout", Duration::from_secs(5)),
                paranoid: self.0.get("paranoid", false, false, Raw::flag, ToString::to_string),
            },
            prepared_limit: self.at_least_one("max_prepared_statements", 500, true),
            max_connections: limit(self.count("max_server_connections", 0, false)),
            socket,
            routing,
            credentials: self.credential_words("", None, Words::default()),
            logins,
        }
    }

    // ------------------------------------------------------------------------------------------------------ routing

    /// Where reads go: for all databases, or for one.
    fn routing(&mut self, path: Option<&str>, default: RoutingConfig) -> RoutingConfig {
        let key = |name: &str| path.map_or_else(|| name.to_owned(), |path| format!("{path}.{name}"));
        let policy = default.policy;
        let parse_fallback = |raw: &Raw| match raw.text()? {
            "primary" => Ok(Fallback::Primary),
            "error" => Ok(Fallback::Error),
            other => Err(format!("{other:?}: write primary or error")),
        };
        let show_fallback = |fallback: &Fallback| match fallback {
            Fallback::Primary => "primary".to_owned(),
            Fallback::Error => "error".to_owned(),
        };
        let parse_functions = |raw: &Raw| {
            let names: Vec<String> = raw.texts()?.into_iter().map(|(text, _)| text).collect();
            match names.iter().find(|name| !is_function_name(name)) {
                Some(name) => Err(format!("{name:?}: write the name of a function, as in \"schema.name\" or \"name\"")),
                None => Ok(names.into()),
            }
        };
        let route = self.0.get(&key("route"), default.route, true, parse_route, |route| route.as_str().to_owned());
        let show_mode = |mode: &Consistency| mode.as_str().to_owned();
        let mode = self.0.get(&key("consistency"), default.consistency, true, parse_consistency, show_mode);
        RoutingConfig {
            route,
            consistency: mode,
            wait_for_replica: self.duration(&key("wait_for_replica"), default.wait_for_replica),
            read_functions: self
                .0
                .get(&key("read_functions"), default.read_functions, true, parse_functions, |f| show_list(f)),
            policy: crate::routing::Policy {
                max_lag: self.duration(&key("max_lag"), policy.max_lag),
                slow_start: self.duration(&key("slow_start"), policy.slow_start),
                fallback: self.0.get(&key("replica_fallback"), policy.fallback, true, parse_fallback, show_fallback),
                primary_read_share: self.percent(&key("primary_read_share"), policy.primary_read_share),
            },
        }
    }

    fn habits(&mut self, routing: &RoutingConfig) -> Habits {
        let default = Habits::default();
        Habits {
            interval: self.positive("probe_interval", default.interval),
            timeout: self.positive("probe_timeout", default.timeout),
            max_lag: routing.policy.max_lag,
        }
    }

    fn location(&mut self, zone: &str, region: &str) -> Location {
        let label = |resolver: &mut Self, key: &str| resolver.text(key, true).map(Into::into);
        Location { zone: label(self, zone), region: label(self, region) }
    }

    /// What is said of servers, by their address.
    fn labels(&mut self) -> HashMap<Address, NodeLabels> {
        let mut labels = HashMap::new();
        for (at, place) in self.0.tables("nodes") {
            let key = |name: &str| format!("nodes.{at}.{name}");
            let parse_weight = |raw: &Raw| u16::try_from(raw.count()?).map_err(|_| "at most 65535".to_owned());
            let host = self.text(&key("host"), true);
            let node = NodeLabels {
                place: self.location(&key("zone"), &key("region")),
                weight: self.0.get(&key("weight"), 1, true, parse_weight, ToString::to_string),
            };
            match host.map(|host| Url::parse(&format!("postgres://{host}"))) {
                Some(Ok(url)) if url.hosts.len() == 1 => drop(labels.insert(url.hosts[0].clone(), node)),
                Some(Ok(_)) => self.0.fault(place, "host: name one server"),
                Some(Err(faults)) => faults.into_iter().for_each(|fault| self.0.fault(place.clone(), fault)),
                None => self.0.fault(place, "host is missing: which server is this?"),
            }
        }
        labels
    }

    // --------------------------------------------------------------------------------------------------- databases

    fn databases(
        &mut self,
        sources: &Sources,
        defaults: &Defaults,
        labels: &mut HashMap<Address, NodeLabels>,
    ) -> Option<Vec<DatabaseConfig>> {
        let mut databases = Vec::new();
        let libpq = Libpq::new(sources);
        let url = self.url("url");
        let names = self.0.tables("databases");
        // The wildcard exists for a URL or PGHOST; databases with names of their own do without.
        let service = libpq.get("PGSERVICE");
        if url.is_some() || service.is_some() || libpq.names_a_host() {
            let mut url = url.unwrap_or_default();
            url.service = url.service.or(service);
            self.fill_from_service(&mut url, sources, "url");
            label(labels, &url);
            databases.extend(self.database(WILDCARD, url, &libpq, defaults, None));
        }
        for (name, place) in names {
            let path = format!("databases.{name}");
            let mut url = self.url(&format!("{path}.url")).unwrap_or_default();
            self.fill_from_service(&mut url, sources, &format!("{path}.url"));
            label(labels, &url);
            databases.extend(self.database(&name, url, &libpq, defaults, Some((&path, place))));
        }
        // One that is empty, as what a script has not filled in, is none.
        let no_url = self.0.raw_value("url").is_none_or(|raw| raw.text().is_ok_and(str::is_empty));
        if databases.is_empty() && no_url && self.0.tables("databases").is_empty() {
            self.0.fault(
                Place::Nowhere("url".into()),
                "there is nothing to connect to: give a URL such as postgres://host/database, set PG_AMBASSADOR_URL or \
                 PGHOST, or name databases in a configuration file",
            );
        }
        (!databases.is_empty()).then_some(databases)
    }

    fn url(&mut self, path: &str) -> Option<Url> {
        let raw = self.0.raw_value(path);
        let parse = |raw: &Raw| raw.text().map(|text| Some(text.to_owned()).filter(|text| !text.is_empty()));
        let show = |text: &Option<String>| text.as_deref().map(url::without_password).unwrap_or_default();
        let text = self.0.get(path, None, true, parse, show)?;
        match Url::parse(&text) {
            Ok(url) => Some(url),
            Err(faults) => {
                let place = raw.map_or_else(|| Place::Nowhere(path.to_owned()), |raw| raw.place);
                for fault in faults {
                    self.0.fault(place.clone(), format!("{path}: {fault}"));
                }
                None
            }
        }
    }

    /// Takes what a URL leaves out from the service that it names.
    fn fill_from_service(&mut self, url: &mut Url, sources: &Sources, path: &str) {
        let Some(name) = &url.service else { return };
        match super::service::look_up(name, &sources.env) {
            Ok(service) => url.fill_from(service),
            Err(faults) => {
                let place = self.0.place_of(path);
                faults.into_iter().for_each(|fault| self.0.fault(place.clone(), fault));
            }
        }
    }

    /// What a database logs in with: what its section says, or its URL, or the settings for all, or libpq's variables.
    fn database_words(&mut self, path: Option<&str>, url: &Url, libpq: &Libpq, general: &Words) -> Words {
        let of_url = What {
            password: url.password.clone(),
            file: url.password_file.clone(),
            kind: url.credentials,
            passfile: url.passfile.clone(),
            ..What::default()
        };
        let of_libpq = What {
            password: libpq.get("PGPASSWORD").map(SecretString::new),
            passfile: libpq.get("PGPASSFILE").map(PathBuf::from),
            ..What::default()
        };
        let mut words = general.clone();
        words.what = of_url.or(words.what).or(of_libpq);
        let how = &mut words.how;
        for (own, from_url) in [(&mut how.iam_host, &url.iam_host), (&mut how.aws_region, &url.aws_region)] {
            if !from_url.is_empty() {
                own.clone_from(from_url);
            }
        }
        if !url.iam_port.is_empty() {
            how.iam_port.clone_from(&url.iam_port);
        }
        how.aws_profile = url.aws_profile.clone().or(how.aws_profile.take());
        how.azure_client_id = url.azure_client_id.clone().or(how.azure_client_id.take());
        match path {
            None => words,
            Some(path) => {
                let password = self.secret(&format!("{path}.password"));
                self.credential_words(&format!("{path}."), password, words)
            }
        }
    }

    fn database(
        &mut self,
        name: &str,
        url: Url,
        libpq: &Libpq,
        defaults: &Defaults,
        section: Option<(&str, Place)>,
    ) -> Option<DatabaseConfig> {
        let (path, place) = section.map_or((None, self.0.place_of("url")), |(path, place)| (Some(path), place));
        let mut nodes = url.hosts.clone();
        let own = |key: &str| path.map(|path| format!("{path}.{key}"));
        if let Some(key) = own("hosts") {
            let parse = |raw: &Raw| {
                let hosts: Vec<String> = raw.texts()?.into_iter().map(|(text, _)| text).collect();
                let url = Url::parse(&format!("postgres://{}", hosts.join(","))).map_err(|f| f.join("; "))?;
                Ok(url.hosts)
            };
            let hosts = self.0.get(&key, Vec::new(), true, parse, |hosts: &Vec<Address>| show_list(hosts));
            if !hosts.is_empty() {
                nodes = hosts;
            }
        }
        if nodes.is_empty() {
            nodes = libpq.hosts();
        }
        if nodes.is_empty() {
            self.0.fault(place.clone(), format!("database {name:?} has no host: name one in its url or hosts"));
            return None;
        }
        let mut seen = Vec::new();
        for node in &nodes {
            if seen.contains(&node) {
                self.0.fault(place.clone(), format!("database {name:?} names {node} twice"));
            }
            seen.push(node);
        }
        let text = |resolver: &mut Self, key: &str| own(key).and_then(|key| resolver.text(&key, true));
        // What the environment says is said of the one database that has no section.
        let libpq_says = |key| libpq.get(key).filter(|_| path.is_none());
        let dbname = text(self, "dbname").or(url.dbname.clone()).or_else(|| libpq_says("PGDATABASE"));
        let user = text(self, "user").or(url.user.clone()).or_else(|| libpq_says("PGUSER"));
        let words = self.database_words(path, &url, libpq, &defaults.credentials);
        let tls =
            self.upstream_tls(&url, libpq, own("sslmode"), own("sslrootcert"), own("sslcert"), own("sslkey"), &place);
        let logins = defaults.logins.iter().map(|(user, what)| {
            let words = Words { what: what.clone(), how: words.how.clone() };
            (user.clone(), self.spec(words, &nodes, &tls, &place))
        });
        let logins = logins.collect();
        let login = self.spec(words, &nodes, &tls, &place);
        let (mut mode, mut pool) = (defaults.mode, defaults.pool.clone());
        let (mut prepared_limit, mut max_connections, mut max_clients) =
            (defaults.prepared_limit, defaults.max_connections, None);
        let mut routing = defaults.routing.clone();
        routing.route = url.route.unwrap_or(routing.route);
        routing.consistency = url.consistency.unwrap_or(routing.consistency);
        routing.policy.max_lag = url.max_lag.unwrap_or(routing.policy.max_lag);
        if let Some(path) = path {
            let key = |name: &str| format!("{path}.{name}");
            mode = self.0.get(&key("pool_mode"), mode, true, parse_mode, |m| mode_name(*m).to_owned());
            pool.size = self.at_least_one(&key("pool_size"), pool.size, true);
            pool.min_idle = self.count(&key("min_pool_size"), pool.min_idle, true);
            pool.reserve = self.count(&key("reserve_pool_size"), pool.reserve, true);
            pool.lifetime = self.duration(&key("server_lifetime"), pool.lifetime);
            pool.idle_timeout = self.duration(&key("server_idle_timeout"), pool.idle_timeout);
            prepared_limit = self.at_least_one(&key("max_prepared_statements"), prepared_limit, true);
            max_connections = limit(self.count(&key("max_server_connections"), max_connections.unwrap_or(0), false));
            max_clients = limit(self.count(&key("max_clients"), 0, true));
            routing = self.routing(Some(path), routing);
        }
        if let Some(timeout) = url.connect_timeout.filter(|timeout| !timeout.is_zero()) {
            pool.connect_timeout = timeout;
        }
        let socket = SocketOptions {
            keepalive_idle: url.keepalives_idle.unwrap_or(defaults.socket.keepalive_idle),
            keepalive_interval: url.keepalives_interval.unwrap_or(defaults.socket.keepalive_interval),
            keepalive_count: url.keepalives_count.unwrap_or(defaults.socket.keepalive_count),
            user_timeout: url.tcp_user_timeout.unwrap_or(defaults.socket.user_timeout),
        };
        Some(DatabaseConfig {
            name: name.to_owned(),
            nodes,
            dbname,
            user,
            login,
            logins,
            mode,
            tls,
            socket,
            pool,
            max_connections,
            max_clients,
            prepared_limit,
            routing,
        })
    }

    #[allow(clippy::too_many_arguments, reason = "the keys of one setting each")]
    fn upstream_tls(
        &mut self,
        url: &Url,
        libpq: &Libpq,
        mode_key: Option<String>,
        roots_key: Option<String>,
        cert_key: Option<String>,
        key_key: Option<String>,
        place: &Place,
    ) -> UpstreamTls {
        let parse_mode = |text: &str| {
            SslMode::parse(text)
                .ok_or_else(|| format!("{text:?}: write disable, allow, prefer, require, verify-ca or verify-full"))
        };
        let mut mode = url.sslmode;
        if mode.is_none()
            && let Some(text) = libpq.get("PGSSLMODE")
        {
            match parse_mode(&text) {
                Ok(parsed) => mode = Some(parsed),
                Err(message) => self.0.fault(Place::Env("PGSSLMODE".into()), message),
            }
        }
        // The default upstream proves who the server is (faults.md I13).
        let mut mode = mode.unwrap_or(SslMode::VerifyFull);
        if let Some(key) = mode_key {
            mode = self.0.get(&key, mode, true, |raw| parse_mode(raw.text()?), |m| m.as_str().to_owned());
        }
        let mut authorities = url.sslrootcert.clone();
        if authorities.is_empty() {
            authorities = libpq.get("PGSSLROOTCERT").map(|text| url::authorities(&text)).unwrap_or_default();
        }
        if let Some(key) = roots_key {
            let names = self.texts(&key, &[]);
            if !names.is_empty() {
                authorities = url::authorities(&names.join(","));
            }
        }
        let path = |resolver: &mut Self, key: Option<String>, url: &Option<PathBuf>, env: &str| {
            key.and_then(|key| resolver.path(&key)).or(url.clone()).or_else(|| libpq.get(env).map(PathBuf::from))
        };
        let cert = path(self, cert_key, &url.sslcert, "PGSSLCERT");
        let key = path(self, key_key, &url.sslkey, "PGSSLKEY");
        if cert.is_some() != key.is_some() {
            self.0.fault(place.clone(), "sslcert and sslkey go together");
        }
        let identity = cert.zip(key).map(|(cert, key)| Identity { cert, key });
        let tls = UpstreamTls { mode, authorities, identity, direct: url.direct_tls.unwrap_or(false) };
        let names_files = tls.authorities.iter().any(|a| matches!(a, Authorities::File(_))) || tls.identity.is_some();
        if mode != SslMode::Disable
            && names_files
            && let Err(error) = tls.load()
        {
            self.0.fault(place.clone(), format!("TLS upstream: {error}"));
        }
        tls
    }

    fn users(&mut self) -> (HashMap<String, UserConfig>, Vec<(String, What)>) {
        let mut users = HashMap::new();
        let mut logins = Vec::new();
        for (name, _) in self.0.tables("users") {
            let key = |field: &str| format!("users.{name}.{field}");
            let show = |mode: &Option<PoolMode>| mode.map(mode_name).unwrap_or_default().to_owned();
            let parse = |raw: &Raw| match raw.text()? {
                "" => Ok(None),
                _ => parse_mode(raw).map(Some),
            };
            let mode = self.0.get(&key("pool_mode"), None, true, parse, show);
            let (server_user, login) = self.server_login(&name);
            if login != What::default() {
                logins.push((name.clone(), login));
            }
            let user = UserConfig {
                server_user,
                preference: self.preference(&format!("users.{name}")),
                mode,
                pool_size: limit(self.count(&key("pool_size"), 0, true)),
                max_connections: limit(self.count(&key("max_server_connections"), 0, false)),
                max_clients: limit(self.count(&key("max_clients"), 0, true)),
            };
            users.insert(name, user);
        }
        (users, logins)
    }

    fn log(&mut self) -> LogConfig {
        let parse_level = |raw: &Raw| {
            let text = raw.text()?;
            // A word that is no level would be taken for the name of a module.
            let is_level = |word: &str| LEVELS.contains(&word.trim().to_ascii_lowercase().as_str());
            let known = text.split(',').all(|part| is_level(part.rsplit('=').next().unwrap_or(part)));
            match text.parse::<tracing_subscriber::filter::Targets>() {
                Ok(_) if known => Ok(text.to_owned()),
                Ok(_) | Err(_) => Err(format!("{text:?}: write error, warn, info, debug or trace")),
            }
        };
        let parse_format = |raw: &Raw| match raw.text()? {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("{other:?}: write text or json")),
        };
        let show = |format: &LogFormat| match format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        };
        LogConfig {
            level: self.0.get("log.level", "info".to_owned(), true, parse_level, Clone::clone),
            format: self.0.get("log.format", LogFormat::Text, false, parse_format, show),
        }
    }

    fn access_log(&mut self) -> Option<AccessLogConfig> {
        let parse = |raw: &Raw| match raw.text()? {
            "" | "off" => Ok(None),
            "stdout" => Ok(Some(Target::Stdout)),
            "stderr" => Ok(Some(Target::Stderr)),
            path if path.contains('/') => Ok(Some(Target::File(path.into()))),
            other => Err(format!("{other:?}: write stdout, stderr, or a path with a / in it")),
        };
        let show = |target: &Option<Target>| match target {
            None => String::new(),
            Some(Target::Stdout) => "stdout".to_owned(),
            Some(Target::Stderr) => "stderr".to_owned(),
            Some(Target::File(path)) => path.display().to_string(),
        };
        let target = self.0.get("access_log", None, false, parse, show);
        let min_duration = self.duration("access_log_min_duration", Duration::ZERO);
        let sample = self.percent("access_log_sample", 100);
        target.map(|target| AccessLogConfig { target, min_duration, sample })
    }

    fn startup(&mut self) -> StartupPolicy {
        let parse = |raw: &Raw| match raw.text()? {
            "primary" => Ok(StartupPolicy::Primary),
            "listen-only" => Ok(StartupPolicy::ListenOnly),
            other => Err(format!("{other:?}: write primary or listen-only")),
        };
        let show = |policy: &StartupPolicy| match policy {
            StartupPolicy::Primary => "primary".to_owned(),
            StartupPolicy::ListenOnly => "listen-only".to_owned(),
        };
        self.0.get("startup", StartupPolicy::Primary, true, parse, show)
    }
}

/// What a URL says of its servers; what the file says of one wins.
fn label(labels: &mut HashMap<Address, NodeLabels>, url: &Url) {
    if url.zones.is_empty() && url.regions.is_empty() && url.weights.is_empty() {
        return;
    }
    let text =
        |list: &[String], at: usize| list.get(at).filter(|text| !text.is_empty()).map(|text| text.as_str().into());
    for (at, host) in url.hosts.iter().enumerate() {
        labels.entry(host.clone()).or_insert_with(|| NodeLabels {
            place: Location { zone: text(&url.zones, at), region: text(&url.regions, at) },
            weight: url.weights.get(at).copied().unwrap_or(1),
        });
    }
}

/// libpq's environment variables, for what a URL leaves out.
struct Libpq(HashMap<String, String>);

impl Libpq {
    fn new(sources: &Sources) -> Self {
        let named = sources.env.iter().filter(|(name, value)| name.starts_with("PG") && !value.is_empty());
        Self(named.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    fn names_a_host(&self) -> bool {
        self.0.contains_key("PGHOST")
    }

    fn hosts(&self) -> Vec<Address> {
        let Some(hosts) = self.get("PGHOST") else {
            let port = self.get("PGPORT").and_then(|port| url::port(&port).ok());
            return port.map(|port| vec![Address::new("localhost", port)]).unwrap_or_default();
        };
        let ports: Vec<u16> = self.get("PGPORT").iter().flat_map(|p| p.split(',')).flat_map(url::port).collect();
        let port = |at: usize| ports.get(at).or(ports.first()).copied().unwrap_or(url::DEFAULT_PORT);
        hosts.split(',').enumerate().map(|(at, host)| Address::new(host, port(at))).collect()
    }
}
