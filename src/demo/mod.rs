//! The embedded default: a throw-away PostgreSQL primary with two replicas, the ambassador in front, and live figures.

pub mod binaries;
pub mod cluster;

use crate::admin::Operator;
use crate::ambassador::Ambassador;
use crate::args;
use crate::client::entry::ClientState;
use crate::config::{self, Fault, Sources};
use crate::pool::Totals;
use crate::telemetry;
use binaries::Binaries;
use cluster::{Cluster, Options, SUPERUSER};
use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// The database of the demonstration.
const DATABASE: &str = "demo";

/// Why the demonstration does not run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// No PostgreSQL.
    #[error(transparent)]
    Binaries(#[from] binaries::NotFound),
    /// PostgreSQL does not start.
    #[error(transparent)]
    Cluster(#[from] cluster::ClusterError),
    /// The ambassador does not start.
    #[error(transparent)]
    Start(#[from] crate::ambassador::StartError),
    /// The options make no configuration.
    #[error("{0}")]
    Config(String),
    /// The system refused something.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

/// The address if it is free, else the next port that is.
fn free_address(wanted: SocketAddr) -> SocketAddr {
    let mut address = wanted;
    while TcpListener::bind(address).is_err() && address.port() < u16::MAX {
        address.set_port(address.port() + 1);
    }
    address
}

/// Prints a line. Nobody may be left to read it, and that must not keep us from cleaning up.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Runs the demonstration until Ctrl-C.
pub fn run(options: &args::Demo) -> Result<(), DemoError> {
    let run_for = options.run_for.as_deref().map(config::units::duration).transpose();
    let run_for = run_for.map_err(|fault| DemoError::Config(format!("--run-for: {fault}")))?;
    let binaries = Binaries::find()?;
    say(format_args!("PostgreSQL {} from {}", binaries.major, binaries.dir().display()));
    say("Starting a primary and two streaming replicas...");
    let cluster = Cluster::start(&binaries, &Options { replicas: 2, ..Options::default() })?;
    cluster.psql(0, &format!("create database {DATABASE}"))?;
    let listen = free_address(options.listen);
    if listen != options.listen {
        say(format_args!("{} cannot be had: the ambassador listens on {listen} instead.", options.listen));
    }
    let admin = free_address(options.admin_listen);
    let hosts: Vec<String> = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let sources = Sources {
        flags: vec![
            ("url".into(), format!("postgres://{}/?sslmode=disable", hosts.join(","))),
            ("listen".into(), listen.to_string()),
            ("admin_listen".into(), admin.to_string()),
            // That anybody on this machine may log in goes without saying here.
            ("log.level".into(), "warn,pg_ambassador::ambassador=error".into()),
            ("drain_timeout".into(), "0".into()),
        ],
        ..Sources::default()
    };
    let faults = |faults: Vec<Fault>| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let config = config::resolve(&sources).map_err(|list| DemoError::Config(faults(list)))?;
    let log = telemetry::init_logs(&config.log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ambassador = Ambassador::start(config, sources, log).await?;
        print_welcome(&cluster, listen, admin);
        let figures = tokio::spawn(show_figures(Arc::clone(&ambassador.operator)));
        // Closing the terminal ends the demonstration, where it would make a real ambassador reload.
        let mut hangup = signal(SignalKind::hangup())?;
        let end = async {
            match run_for {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = ambassador.run() => result?,
            _ = hangup.recv() => {}
            () = end => {}
        }
        figures.abort();
        say("\nCleaning up...");
        Ok::<(), DemoError>(())
    })?;
    drop(cluster);
    say("Nothing is left behind.");
    Ok(())
}

fn print_welcome(cluster: &Cluster, listen: SocketAddr, admin: SocketAddr) {
    let (host, port) = (listen.ip(), listen.port());
    let ports: Vec<String> = cluster.nodes.iter().map(|node| node.port.to_string()).collect();
    let program = |name| cluster.binaries().path(name).display().to_string();
    let (psql, pgbench) = (program("psql"), program("pgbench"));
    let to = format!("-h {host} -p {port} -U {SUPERUSER}");
    say("\nThe ambassador is ready. In another terminal, paste:\n");
    say(format_args!("  {psql} {to} {DATABASE}"));
    // Some distributions put it into another package.
    if cluster.binaries().path("pgbench").is_file() {
        say(format_args!("  {pgbench} {to} -i -q {DATABASE}"));
        say(format_args!("  {pgbench} {to} -c 64 -j 2 -T 20 -S {DATABASE}"));
    }
    say(format_args!("  {psql} -h {host} -p {port} -U ambassador ambassador -c 'SHOW POOLS'"));
    say(format_args!("  curl http://{admin}/metrics\n"));
    say(format_args!("For an application: postgres://{SUPERUSER}@{listen}/{DATABASE}?sslmode=disable"));
    say(format_args!("Behind it: the primary on port {}, replicas on {}.", ports[0], ports[1..].join(" and ")));
    say("Ctrl-C ends everything and removes every trace.\n");
}

/// Prints what goes on: a line that changes on a terminal, else a line now and then.
async fn show_figures(operator: Arc<Operator>) {
    let terminal = std::io::stdout().is_terminal();
    let period = Duration::from_secs(if terminal { 1 } else { 5 });
    let mut tick = tokio::time::interval(period);
    let (mut before, mut at) = (Totals::default(), Instant::now());
    tick.tick().await;
    loop {
        tick.tick().await;
        let sets = operator.context.directory.sets();
        let totals = sets.iter().fold(Totals::default(), |sum, set| sum.plus(&set.totals()));
        let (since, seconds) = (totals.since(&before), at.elapsed().as_secs_f64());
        (before, at) = (totals, Instant::now());
        let clients = operator.context.clients.all();
        let waiting = clients.iter().filter(|client| client.state() == ClientState::Waiting).count();
        let servers: usize = sets.iter().flat_map(|set| set.pools().to_vec()).map(|pool| pool.connections()).sum();
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let rate = |count: u64| count as f64 / seconds;
        let mean = since.query_us.checked_div(since.queries).unwrap_or(0);
        let line = format!(
            "clients {:>4} ({waiting} waiting) | servers {servers:>3} | {:>8.0} queries/s | mean {mean} us | {:>7.2} MB/s out",
            clients.len(),
            rate(since.queries),
            rate(since.sent) / 1e6,
        );
        if terminal {
            let mut out = std::io::stdout();
            let _ = write!(out, "\r{line}\x1b[K").and_then(|()| out.flush());
        } else {
            say(line);
        }
    }
}
