//! What was counted everywhere, as metrics, when somebody asks.

use crate::client::entry::ClientState;
use crate::client::{Clients, Context};
use crate::credentials::Report;
use crate::listen::Hubs;
use crate::monitor::Monitor;
use crate::pool::{GateState, Pool, PoolName, Routes, Totals};
use crate::routing::Role;
use crate::server::ServerState;
use crate::session::Pin;
use crate::telemetry::{self as t, Telemetry};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// What is measured besides pools and clients.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vitals {
    /// When the process started, since 1970.
    pub start: Duration,
    /// Reloads that were applied.
    pub reloads: u64,
    /// Reloads that were refused.
    pub failed_reloads: u64,
    /// How long ago the slowest worker was last seen to turn.
    pub worker_lag: Duration,
}

/// How many clients wait in each pool, and how long the first of them has.
pub fn queues(clients: &Clients) -> HashMap<PoolName, (usize, Duration)> {
    let mut queues: HashMap<PoolName, (usize, Duration)> = HashMap::new();
    for client in clients.all().iter().filter(|client| client.state() == ClientState::Waiting) {
        let name = PoolName { database: Arc::clone(&client.database), user: Arc::clone(&client.user) };
        let queue = queues.entry(name).or_default();
        queue.0 += 1;
        queue.1 = queue.1.max(client.waiting().unwrap_or_default());
    }
    queues
}

/// Everything, as Prometheus reads it.
pub fn render(telemetry: &Telemetry, context: &Context, vitals: Vitals) -> String {
    let (clients, counters) = (&context.clients, &context.counters);
    telemetry.gauge(&t::INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    telemetry.gauge(&t::UP_SINCE, &[], vitals.start.as_secs_f64());
    telemetry.set(&t::RELOADS, &[("result", "applied")], vitals.reloads);
    telemetry.set(&t::RELOADS, &[("result", "refused")], vitals.failed_reloads);
    telemetry.gauge(&t::WORKER_LAG, &[], vitals.worker_lag.as_secs_f64());
    telemetry.gauge(&t::CLIENT_LIMIT, &[], float(clients.limit()));
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (metric, counter) in [
        (&t::ACCEPTED, &counters.accepted),
        (&t::ACCEPT_ERRORS, &counters.accept_errors),
        (&t::REFUSED, &counters.refused),
        (&t::LOGIN_TIMEOUTS, &counters.timeouts),
        (&t::VIOLATIONS, &counters.violations),
        (&t::CANCELS, &counters.cancels),
        (&t::PANICS, &counters.panics),
    ] {
        telemetry.set(metric, &[], load(counter));
    }
    if let Some(log) = &context.access_log {
        telemetry.set(&t::ACCESS_LOG_DROPPED, &[], log.dropped());
    }
    render_clients(telemetry, clients);
    render_listening(telemetry, &context.hubs);
    for monitor in context.directory.monitors() {
        render_nodes(telemetry, &monitor);
    }
    for report in context.directory.keyring().reports() {
        render_credential(telemetry, &report);
    }
    let queues = queues(clients);
    for set in context.directory.sets() {
        let names = [("database", &*set.name.database), ("user", &*set.name.user)];
        let (waiting, longest) = queues.get(&set.name).copied().unwrap_or_default();
        telemetry.gauge(&t::POOL_CLIENTS, &names, float(set.clients()));
        telemetry.gauge(&t::POOL_WAITING, &names, float(waiting));
        telemetry.gauge(&t::POOL_MAX_WAIT, &names, longest.as_secs_f64());
        if let Some(routes) = set.routes() {
            render_routes(telemetry, &routes, names);
        }
        for (at, pool) in set.pools().iter().enumerate() {
            let address = pool.node.address.to_string();
            let labels = [names[0], names[1], ("server", address.as_str())];
            // What happened while no server was chosen is counted with the first.
            let unassigned = if at == 0 { set.stats.totals() } else { Totals::default() };
            render_pool(telemetry, pool, &unassigned, &labels);
        }
    }
    telemetry.render()
}

fn render_clients(telemetry: &Telemetry, clients: &Clients) {
    let mut counts = [(ClientState::Idle, 0), (ClientState::Active, 0), (ClientState::Waiting, 0)];
    let mut pinned = Pin::ALL.map(|pin| (pin, 0));
    for client in clients.all() {
        if let Some((pins, _)) = client.pins() {
            for (pin, count) in &mut pinned {
                *count += usize::from(pins.has(*pin));
            }
        }
        for (state, count) in &mut counts {
            *count += usize::from(client.state() == *state);
        }
    }
    for (state, count) in counts {
        telemetry.gauge(&t::CLIENTS, &[("state", state.as_str())], float(count));
    }
    for (pin, count) in pinned {
        telemetry.gauge(&t::PINNED, &[("reason", pin.as_str())], float(count));
    }
}

fn render_listening(telemetry: &Telemetry, hubs: &Hubs) {
    let all = hubs.status();
    telemetry.gauge(&t::LISTENING_CONNECTIONS, &[], float(all.iter().filter(|hub| hub.connection.is_some()).count()));
    telemetry.gauge(&t::LISTENING_CHANNELS, &[], float(all.iter().map(|hub| hub.channels).sum()));
    telemetry.gauge(&t::LISTENING_CLIENTS, &[], float(all.iter().map(|hub| hub.clients).sum()));
    telemetry.set(&t::NOTIFICATIONS, &[], hubs.totals().delivered.load(Ordering::Relaxed));
    telemetry.set(&t::LISTENING_LOST, &[], hubs.totals().lost.load(Ordering::Relaxed));
}

fn render_nodes(telemetry: &Telemetry, monitor: &Monitor) {
    let topology = monitor.topology();
    for (node, member) in topology.nodes.iter().zip(monitor.members()) {
        let address = member.address.to_string();
        let labels = [("server", address.as_str())];
        telemetry.gauge(&t::NODE_UP, &labels, f64::from(u8::from(node.state.is_up())));
        for role in [Role::Primary, Role::Replica, Role::Unknown] {
            let labels = [labels[0], ("role", role.as_str())];
            telemetry.gauge(&t::NODE_ROLE, &labels, f64::from(u8::from(node.role == role)));
        }
        let bytes = node.lag_bytes.and_then(|bytes| usize::try_from(bytes).ok());
        telemetry.gauge(&t::NODE_LAG_BYTES, &labels, bytes.map_or(0.0, float));
        telemetry.gauge(&t::NODE_LAG_SECONDS, &labels, node.lag.unwrap_or_default().as_secs_f64());
        telemetry.gauge(&t::NODE_PROBE_SECONDS, &labels, node.rtt.as_secs_f64());
        telemetry.gauge(&t::NODE_PROBE_AGE, &labels, node.sampled.elapsed().as_secs_f64());
        let meter = &member.meter;
        telemetry.gauge(&t::NODE_OUTSTANDING, &labels, f64::from(meter.outstanding()));
        telemetry.gauge(&t::NODE_READ_SECONDS, &labels, f64::from(meter.latency_us()) / 1e6);
        telemetry.gauge(&t::NODE_SPILLED, &labels, f64::from(meter.spilled()));
        telemetry.set(&t::NODE_READS, &labels, meter.reads());
    }
}

fn render_routes(telemetry: &Telemetry, routes: &Routes, names: [(&'static str, &str); 2]) {
    for (to, reason, count) in routes.record().counts() {
        let labels = [names[0], names[1], ("destination", to.as_str()), ("reason", reason.as_str())];
        telemetry.set(&t::ROUTED, &labels, count);
    }
    telemetry.set(&t::RETRIED, &names, routes.record().retried());
}

fn render_credential(telemetry: &Telemetry, report: &Report) {
    // Not the principal where it changes with each credential: series must not add up.
    let server = report.server.as_deref().unwrap_or_default();
    let labels = [("source", report.source), ("name", report.name.as_str()), ("server", server)];
    telemetry.gauge(&t::CREDENTIAL_GOOD, &labels, f64::from(u8::from(report.good)));
    if let Some(age) = report.age {
        telemetry.gauge(&t::CREDENTIAL_AGE, &labels, age.as_secs_f64());
    }
    if let Some(at) = report.expires {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        telemetry.gauge(&t::CREDENTIAL_EXPIRES, &labels, since.as_secs_f64());
    }
    for (result, count) in [("success", report.fetched), ("failure", report.failed)] {
        telemetry.set(&t::CREDENTIAL_FETCHES, &[labels[0], labels[1], labels[2], ("result", result)], count);
    }
    telemetry.set(&t::CREDENTIAL_REFUSED, &labels, report.refused);
}

fn render_pool(telemetry: &Telemetry, pool: &Pool, unassigned: &Totals, labels: &[(&'static str, &str); 3]) {
    let servers = [pool.servers(), pool.servers_apart()].concat();
    for state in [
        ServerState::Active,
        ServerState::Idle,
        ServerState::Tested,
        ServerState::BeingCanceled,
        ServerState::Listening,
    ] {
        let count = servers.iter().filter(|server| server.state() == state).count();
        let labels = [labels[0], labels[1], labels[2], ("state", state.as_str())];
        telemetry.gauge(&t::POOL_SERVERS, &labels, float(count));
    }
    telemetry.gauge(&t::POOL_SIZE, labels, float(pool.config().size));
    telemetry.gauge(&t::POOL_PAUSED, labels, f64::from(u8::from(pool.gate() == GateState::Paused)));
    let totals = pool.stats.totals().plus(unassigned);
    for (metric, value) in [
        (&t::QUERIES, totals.queries),
        (&t::TRANSACTIONS, totals.transactions),
        (&t::RECEIVED, totals.received),
        (&t::SENT, totals.sent),
        (&t::TIMEOUTS, totals.timeouts),
        (&t::ASSIGNMENTS, totals.assignments),
        (&t::CONNECT_ERRORS, totals.dial_errors),
        (&t::STALE, totals.stale),
        (&t::LOST, totals.lost),
        (&t::LEAKS, totals.leaks),
        (&t::SURVEYS, totals.surveys),
        (&t::CLIENT_PARSES, totals.client_parses),
        (&t::SERVER_PARSES, totals.server_parses),
        (&t::BINDS, totals.binds),
        (&t::LOGINS, totals.logins),
    ] {
        telemetry.set(metric, labels, value);
    }
    for (pin, count) in pool.stats.pins() {
        let labels = [labels[0], labels[1], labels[2], ("reason", pin.as_str())];
        telemetry.set(&t::PINS, &labels, count);
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of things that exist are far below 2^53")]
fn float(count: usize) -> f64 {
    count as f64
}
