//! The embedded default: a throw-away PostgreSQL primary with two replicas, the ambassador in front, and live figures.

pub mod binaries;
pub mod cluster;

use crate::admin::Operator;
use crate::ambassador::Ambassador;
use crate::args;
use crate::client::entry::ClientState;
use crate::config::{self, Fault, Sources};
use crate::logs;
use crate::pool::Totals;
use crate::routing::{NodeId, NodeView, Role};
use binaries::Binaries;
use cluster::{Cluster, Options, SUPERUSER};
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// The database of the demonstration.
const DATABASE: &str = "demo";
/// Where its servers are said to stand, and the ambassador: one replica is near, the other far away.
const REGIONS: &str = "home,home,away";
const HOME: &str = "home";

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
            ("url".into(), format!("postgres://{}/?sslmode=disable&regions={REGIONS}", hosts.join(","))),
            ("region".into(), HOME.to_owned()),
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
    let log = logs::begin(&config.log);
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
    let console = format!("{psql} -h {host} -p {port} -U ambassador ambassador");
    say(format_args!("  {console} -c 'SHOW NODES' -c 'SHOW POOLS'"));
    say(format_args!("  curl http://{admin}/metrics\n"));
    say("Where statements go, and why: a read, a write, a read of what was written, and what the console says.\n");
    say(format_args!("  {psql} {to} {DATABASE} -c 'select inet_server_port()' -c 'show last route' \\"));
    say("    -c 'create table if not exists seen (at timestamptz)' -c 'insert into seen values (now())' \\");
    say("    -c 'select count(*), inet_server_port() from seen' -c 'show last route'");
    say(format_args!("  {console} -c 'EXPLAIN ROUTE FOR {DATABASE} SELECT lower(x), nextval($$s$$) FROM t'\n"));
    say(
        "The near replica stands still, and reads go elsewhere as soon as they would miss something; then it goes on.\n",
    );
    let near = format!("{psql} -h 127.0.0.1 -p {} -U {SUPERUSER} postgres", ports[1]);
    say(format_args!("  {near} -c 'select pg_wal_replay_pause()'"));
    say(format_args!("  {near} -c 'select pg_wal_replay_resume()'\n"));
    say(format_args!("For an application: postgres://{SUPERUSER}@{listen}/{DATABASE}?sslmode=disable"));
    say(format_args!(
        "Behind it: the primary on port {}, a replica near it on {}, and one that is said to be far away on {}.",
        ports[0], ports[1], ports[2]
    ));
    say("Ctrl-C ends everything and removes every trace.\n");
}

/// What each server has served since the last call: its name, how many queries, and what there is to say of it.
fn per_node(operator: &Operator, served: &mut HashMap<NodeId, u64>) -> Vec<(String, u64, String)> {
    let Some(monitor) = operator.context.directory.monitors().into_iter().next() else { return Vec::new() };
    let mut now: HashMap<NodeId, u64> = HashMap::new();
    for pool in operator.context.directory.sets().iter().flat_map(|set| set.pools().to_vec()) {
        *now.entry(pool.node.id).or_default() += pool.stats.totals().queries;
    }
    let describe = |node: &NodeView| {
        let queries = now.get(&node.id).copied().unwrap_or(0);
        let before = served.get(&node.id).copied().unwrap_or(0);
        let name = match node.role {
            Role::Replica => {
                node.region.as_deref().map_or_else(|| "replica".to_owned(), |region| format!("replica at {region}"))
            }
            role @ (Role::Primary | Role::Unknown) => role.as_str().to_owned(),
        };
        let remark = match (node.role, node.paused, node.lag) {
            (Role::Replica, true, _) => ", paused".to_owned(),
            (Role::Replica, false, Some(lag)) if !lag.is_zero() => format!(", {} ms behind", lag.as_millis()),
            _ => String::new(),
        };
        (name, queries.saturating_sub(before), remark)
    };
    let described = monitor.topology().nodes.iter().map(describe).collect();
    *served = now;
    described
}

/// Prints what goes on: a line that changes on a terminal, else a line now and then.
async fn show_figures(operator: Arc<Operator>) {
    let terminal = std::io::stdout().is_terminal();
    let period = Duration::from_secs(if terminal { 1 } else { 5 });
    let mut tick = tokio::time::interval(period);
    let (mut before, mut at) = (Totals::default(), Instant::now());
    let mut served = HashMap::new();
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
        let nodes: Vec<String> = per_node(&operator, &mut served)
            .into_iter()
            .map(|(name, queries, remark)| format!("{name} {:.0}/s{remark}", rate(queries)))
            .collect();
        let line = format!(
            "clients {:>3} ({waiting} waiting) | servers {servers:>2} | {:>6.0} queries/s, mean {mean} us | {}",
            clients.len(),
            rate(since.queries),
            nodes.join(" | "),
        );
        if terminal {
            let mut out = std::io::stdout();
            let _ = write!(out, "\r{line}\x1b[K").and_then(|()| out.flush());
        } else {
            say(line);
        }
    }
}
