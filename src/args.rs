//! What the operator typed; nothing derived.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "what documents an argument is its help text: brackets are brackets"
)]

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A PostgreSQL ambassador: the application connects to it as to a local server, and it does the rest.
#[derive(Debug, Parser)]
#[command(name = "pg-ambassador", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve clients until stopped.
    Run(Settings),
    /// Check the configuration, and print it as it was resolved, with secrets hidden.
    Check(Settings),
    /// Start a throw-away PostgreSQL primary with two replicas and the ambassador in front.
    Demo(Demo),
    /// Say of each statement of a script whether it would go to a replica or to the primary, and why.
    Route(Route),
    /// Ask a running ambassador for its health; exits with 0 if it is ready.
    Healthcheck(Healthcheck),
    /// Print a token for RDS or Aurora, as `aws rds generate-db-auth-token` does.
    #[cfg(feature = "aws")]
    Token(Token),
    /// Make a SCRAM verifier of a password read from standard input, for a user list.
    Hash(Hash),
}

/// Settings on the command line. They win over the environment (PG_AMBASSADOR_*) and the file.
#[derive(Debug, Args)]
pub struct Settings {
    /// Where to connect to: postgres://[user[:password]@]host[:port][,host:port...]/[db]?sslmode=...
    ///
    /// What it names is forced; what it leaves out (user, database) is taken from the client.
    pub url: Option<String>,

    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Where clients come in; may be repeated [default: 127.0.0.1:5432 and [::1]:5432]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<String>,

    /// Unix socket where clients come in: a path, or a directory for .s.PGSQL.5432.
    #[arg(long, value_name = "PATH")]
    pub unix_socket: Option<String>,

    /// Where metrics and health are served, or "off" [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDR:PORT")]
    pub admin_listen: Option<String>,

    /// When a server goes back to its pool: transaction, session or statement [default: transaction]
    #[arg(long, value_name = "MODE")]
    pub pool_mode: Option<String>,

    /// Server connections for each database and user [default: 20]
    #[arg(long, value_name = "N")]
    pub pool_size: Option<String>,

    /// Clients at most [default: 1000]
    #[arg(long, value_name = "N")]
    pub max_clients: Option<String>,

    /// How long a client waits for a server connection [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub checkout_timeout: Option<String>,

    /// Worker threads [default: the number of cores, at most 2]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,

    /// How clients prove who they are: trust, scram-sha-256, md5, password or cert [default: trust]
    #[arg(long, value_name = "METHOD")]
    pub auth_method: Option<String>,

    /// Users and their secrets, in PgBouncer's userlist format.
    #[arg(long, value_name = "FILE")]
    pub auth_file: Option<String>,

    /// Certificate chain for clients' TLS (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,

    /// Private key for clients' TLS (PEM).
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,

    /// What is logged: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// How log lines look: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,

    /// Any other setting of the configuration file; may be repeated.
    #[arg(long = "set", short = 's', value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Settings {
    /// The settings by their paths in the configuration file.
    ///
    /// # Errors
    /// A `--set` that is no `KEY=VALUE`.
    pub fn flags(&self) -> Result<Vec<(String, String)>, String> {
        let one = |path: &str, value: &Option<String>| value.clone().map(|value| (path.to_owned(), value));
        let mut flags: Vec<_> = [
            one("url", &self.url),
            one("unix_socket", &self.unix_socket),
            one("admin_listen", &self.admin_listen),
            one("pool_mode", &self.pool_mode),
            one("pool_size", &self.pool_size),
            one("max_clients", &self.max_clients),
            one("checkout_timeout", &self.checkout_timeout),
            one("workers", &self.workers),
            one("auth.method", &self.auth_method),
            one("auth.file", &self.auth_file),
            one("tls.cert", &self.tls_cert),
            one("tls.key", &self.tls_key),
            one("log.level", &self.log_level),
            one("log.format", &self.log_format),
        ]
        .into_iter()
        .flatten()
        .collect();
        flags.extend(self.listen.iter().map(|address| ("listen".to_owned(), address.clone())));
        for pair in &self.set {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("--set {pair}: write KEY=VALUE"))?;
            flags.push((key.trim().to_owned(), value.to_owned()));
        }
        Ok(flags)
    }
}

/// Options of the demonstration.
#[derive(Debug, Args)]
pub struct Demo {
    /// Where clients come in; the next free port is taken if this one is not.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:5432")]
    pub listen: std::net::SocketAddr,

    /// Where metrics are served; the next free port is taken if this one is not.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9090")]
    pub admin_listen: std::net::SocketAddr,

    /// End by itself after this long, for scripts.
    #[arg(long, value_name = "DURATION")]
    pub run_for: Option<String>,
}

/// Options of the explanation.
#[derive(Debug, Args)]
#[command(after_help = "Exits with 0; with 1 if the script cannot be read or the database not be asked; with 2 if an \
    argument is wrong; with 3 if --only-reads is given and something goes to the primary.\n\n\
    Examples:\n  \
    pg-ambassador route -c 'select now()'\n  \
    pg-ambassador route --database-url postgres://app@db/shop queries.sql\n  \
    git show HEAD:report.sql | pg-ambassador route --only-reads")]
pub struct Route {
    /// The script; standard input if it is not named, or "-".
    ///
    /// It is cut into statements as psql would, without variables; psql's own commands and the data of COPY FROM STDIN are
    /// passed over. Its session is thought to have set nothing, and not to have written before it reads.
    #[arg(conflicts_with = "command")]
    pub file: Option<PathBuf>,

    /// The statements themselves, instead of a file.
    #[arg(long, short = 'c', value_name = "SQL")]
    pub command: Option<String>,

    /// A database that is asked what its functions, views and operators do: as for `run`.
    ///
    /// Without it, only what is built into PostgreSQL is known: statements that call other functions are not called reads,
    /// and views are taken for harmless.
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,

    /// Functions that only read, whatever they are declared to be: what the setting of this name has.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "database_url")]
    pub read_functions: Vec<String>,

    /// Exit with 3 if a statement would go to the primary.
    #[arg(long)]
    pub only_reads: bool,
}

/// Options of the health check.
#[derive(Debug, Args)]
pub struct Healthcheck {
    /// Where the ambassador serves its health [default: what admin_listen says]
    #[arg(long, value_name = "ADDR:PORT")]
    pub admin_listen: Option<String>,

    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// What to ask for: readyz, startupz or livez.
    #[arg(long, default_value = "readyz")]
    pub check: String,
}

/// Options of the token.
#[cfg(feature = "aws")]
#[derive(Debug, Args)]
pub struct Token {
    /// The endpoint's own name, not another name of it.
    #[arg(long, value_name = "HOST")]
    pub host: String,

    /// Its port.
    #[arg(long, value_name = "PORT", default_value_t = crate::config::url::DEFAULT_PORT)]
    pub port: u16,

    /// The role on the server.
    #[arg(long, value_name = "USER")]
    pub user: String,

    /// The endpoint's region [default: what its name says]
    #[arg(long, value_name = "REGION")]
    pub region: Option<String>,

    /// The profile of AWS's configuration files [default: AWS_PROFILE]
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
}

/// Options of the verifier.
#[derive(Debug, Args)]
pub struct Hash {
    /// How often the password is hashed.
    #[arg(long, default_value_t = crate::auth::scram::DEFAULT_ITERATIONS)]
    pub iterations: u32,
}
