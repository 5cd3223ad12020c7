//! What the operator wrote -> what the program may rely on.
//!
//! A flag wins over the environment, the environment over the file, the file over the default. Whoever holds a
//! [`Config`] holds one without faults.

mod credentials;
mod resolve;
mod service;
pub mod source;
pub mod units;
pub mod url;

pub use resolve::resolve;
pub use source::{Fault, File, Place, Setting, Sources};

use crate::access_log::AccessLogConfig;
use crate::auth::{Method, UserList};
use crate::client::{AuthQuery, Limits};
use crate::net::SocketOptions;
use crate::net::tls::{Authorities, ListenerTls};
use crate::pool::DirectoryConfig;
use crate::routing::Preference;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The whole configuration: each part's own, composed.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where clients come in by TCP.
    pub listen: Vec<SocketAddr>,
    /// Further addresses, with a mode of their own.
    pub listeners: Vec<ListenerConfig>,
    /// Where clients come in by unix socket.
    pub unix: Option<UnixListen>,
    /// Where metrics and health are served.
    pub admin_listen: Option<SocketAddr>,
    /// TLS for clients.
    pub tls: Option<ListenerTls>,
    /// How clients prove who they are.
    pub auth: AuthConfig,
    /// Who may use the console.
    pub console: ConsoleConfig,
    /// Worker threads.
    pub workers: usize,
    /// Clients at most.
    pub max_clients: usize,
    /// Bytes that all buffers may take up; 0 is no limit.
    pub buffer_limit: usize,
    /// Connections that may be on their way to a login at the same time.
    pub max_logins: usize,
    /// How long a login may take.
    pub login_timeout: Duration,
    /// Timeouts of clients.
    pub limits: Limits,
    /// Options of clients' sockets.
    pub socket: SocketOptions,
    /// Databases, users, pools.
    pub directory: DirectoryConfig,
    /// What is logged and how.
    pub log: LogConfig,
    /// Where a line is written for each request.
    pub access_log: Option<AccessLogConfig>,
    /// How long a stop waits for clients to leave.
    pub drain_timeout: Duration,
    /// How long after that open transactions may take to end.
    pub drain_grace: Duration,
    /// What has to work before `/startupz` says that the start is done.
    pub startup: StartupPolicy,
    /// The window of averages in SHOW STATS.
    pub stats_period: Duration,
    /// Whether a crash may leave a core file, and a debugger may look: both show secrets.
    pub core_dumps: bool,
    /// Every setting as it was resolved.
    pub settings: Vec<Setting>,
    /// The configuration file.
    pub file: Option<PathBuf>,
}

impl Config {
    /// Whether somebody has written this setting.
    pub fn is_set(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key && setting.place.is_some())
    }

    /// Every file that this configuration was read from or names: what a reload reads again.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.file.iter().cloned().collect();
        let names = ["auth.file", "tls.cert", "tls.key", "tls.client_ca"];
        files.extend(
            self.settings
                .iter()
                .filter(|s| names.contains(&s.key.as_str()) && !s.value.is_empty())
                .map(|s| s.value.clone().into()),
        );
        for database in &self.directory.databases {
            files.extend(database.tls.authorities.iter().filter_map(|authority| match authority {
                Authorities::File(path) => Some(path.clone()),
                Authorities::System => None,
            }));
            files.extend(
                database.tls.identity.iter().flat_map(|identity| [identity.cert.clone(), identity.key.clone()]),
            );
        }
        files.sort();
        files.dedup();
        files
    }
}

/// Addresses where clients come in whose reads go somewhere in particular.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerConfig {
    /// The addresses.
    pub listen: Vec<SocketAddr>,
    /// What is said of their reads.
    pub preference: Preference,
}

/// Where clients come in by unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixListen {
    /// The path of the socket.
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
}

/// How clients prove who they are.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// The method for TCP.
    pub method: Method,
    /// The method for the unix socket.
    pub unix_method: Method,
    /// Who is known.
    pub users: Arc<UserList>,
    /// How others are looked up.
    pub query: Option<AuthQuery>,
    /// Whether what a login shows is used upstream.
    pub pass_through: bool,
}

/// Who may use the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleConfig {
    /// Who may change things.
    pub admin_users: Vec<String>,
    /// Who may look; `*` is everybody who can log in.
    pub stats_users: Vec<String>,
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// What is logged: a level, or levels by module.
    pub level: String,
    /// How.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What has to work before the start is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupPolicy {
    /// A login at a primary.
    Primary,
    /// Listening.
    ListenOnly,
}

/// The name among `names` that `typed` was meant for, if one is near.
pub(crate) fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = names.map(|name| (distance(typed, name), name)).min_by_key(|(distance, _)| *distance)?;
    (near.0 <= typed.len().max(3) / 3).then_some(near.1)
}

/// How many letters have to be changed, added, removed or swapped to turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            rows[i][j] = change.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                rows[i][j] = rows[i][j].min(rows[i - 2][j - 2] + 1);
            }
        }
    }
    rows[a.len()][b.len()]
}
