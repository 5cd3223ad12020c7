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
use crate::telemetry::{self as t, Page, Telemetry};
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
    /// Lines that were left out of the log.
    pub log_lines_left_out: u64,
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
    let page = &Page::new();
    let (clients, counters) = (&context.clients, &context.counters);
    page.gauge(&t::INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    page.gauge(&t::UP_SINCE, &[], vitals.start.as_secs_f64());
    page.set(&t::RELOADS, &[("result", "applied")], vitals.reloads);
    page.set(&t::RELOADS, &[("result", "refused")], vitals.failed_reloads);
    page.gauge(&t::WORKER_LAG, &[], vitals.worker_lag.as_secs_f64());
    page.gauge(&t::CLIENT_LIMIT, &[], float(clients.limit()));
    match context.certificate_ends.load(Ordering::Relaxed) {
        0 => {}
        ends => page.gauge(&t::CERTIFICATE_ENDS, &[], Duration::from_secs(ends).as_secs_f64()),
    }
    page.gauge(&t::BUFFERS, &[], float(context.budget.taken()));
    page.gauge(&t::BUFFER_LIMIT, &[], float(context.budget.limit().unwrap_or_default()));
    page.set(&t::BUFFERS_EXHAUSTED, &[], context.budget.times_exhausted());
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    for (metric, counter) in [
        (&t::ACCEPTED, &counters.accepted),
        (&t::ACCEPT_ERRORS, &counters.accept_errors),
        (&t::LOGIN_TIMEOUTS, &counters.timeouts),
        (&t::VIOLATIONS, &counters.violations),
        (&t::CANCELS, &counters.cancels),
        (&t::PANICS, &counters.panics),
    ] {
        page.set(metric, &[], load(counter));
    }
    for (metric, counts) in [(&t::REFUSED, &counters.refused), (&t::ENDED, &counters.ended)] {
        for (state, count) in counts.all() {
            page.set(metric, &[("sqlstate", &state)], count);
        }
    }
    page.set(&t::LOG_LINES_LEFT_OUT, &[], vitals.log_lines_left_out);
    if let Some(log) = &context.access_log {
        page.set(&t::ACCESS_LOG_DROPPED, &[], log.dropped());
    }
    render_clients(page, clients);
    render_listening(page, &context.hubs);
    for monitor in context.directory.monitors() {
        render_nodes(page, &monitor);
    }
    for report in context.directory.keyring().reports() {
        render_credential(page, &report);
    }
    let queues = queues(clients);
    for set in context.directory.sets() {
        let names = [("database", &*set.name.database), ("user", &*set.name.user)];
        let (waiting, longest) = queues.get(&set.name).copied().unwrap_or_default();
        page.gauge(&t::POOL_CLIENTS, &names, float(set.clients()));
        page.gauge(&t::POOL_WAITING, &names, float(waiting));
        page.gauge(&t::POOL_MAX_WAIT, &names, longest.as_secs_f64());
        if let Some(routes) = set.routes() {
            render_routes(page, &routes, names);
        }
        for (at, pool) in set.pools().iter().enumerate() {
            let address = pool.node.address.to_string();
            let labels = [names[0], names[1], ("server", address.as_str())];
            // What happened while no server was chosen is counted with the first.
            let unassigned = if at == 0 { set.stats.totals() } else { Totals::default() };
            render_pool(page, pool, &unassigned, &labels);
        }
    }
    page.render(telemetry)
}

fn render_clients(page: &Page, clients: &Clients) {
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
        page.gauge(&t::CLIENTS, &[("state", state.as_str())], float(count));
    }
    for (pin, count) in pinned {
        page.gauge(&t::PINNED, &[("reason", pin.as_str())], float(count));
    }
}

fn render_listening(page: &Page, hubs: &Hubs) {
    let all = hubs.status();
    page.gauge(&t::LISTENING_CONNECTIONS, &[], float(all.iter().filter(|hub| hub.connection.is_some()).count()));
    page.gauge(&t::LISTENING_CHANNELS, &[], float(all.iter().map(|hub| hub.channels).sum()));
    page.gauge(&t::LISTENING_CLIENTS, &[], float(all.iter().map(|hub| hub.clients).sum()));
    page.set(&t::NOTIFICATIONS, &[], hubs.totals().delivered.load(Ordering::Relaxed));
    page.set(&t::LISTENING_LOST, &[], hubs.totals().lost.load(Ordering::Relaxed));
}

fn render_nodes(page: &Page, monitor: &Monitor) {
    let topology = monitor.topology();
    for (node, member) in topology.nodes.iter().zip(monitor.members()) {
        let address = member.address.to_string();
        let labels = [("server", address.as_str())];
        page.gauge(&t::NODE_UP, &labels, f64::from(u8::from(node.state.is_up())));
        for role in [Role::Primary, Role::Replica, Role::Unknown] {
            let labels = [labels[0], ("role", role.as_str())];
            page.gauge(&t::NODE_ROLE, &labels, f64::from(u8::from(node.role == role)));
        }
        let bytes = node.lag_bytes.and_then(|bytes| usize::try_from(bytes).ok());
        page.gauge(&t::NODE_LAG_BYTES, &labels, bytes.map_or(0.0, float));
        page.gauge(&t::NODE_LAG_SECONDS, &labels, node.lag.unwrap_or_default().as_secs_f64());
        page.gauge(&t::NODE_PROBE_SECONDS, &labels, node.rtt.as_secs_f64());
        page.gauge(&t::NODE_PROBE_AGE, &labels, node.sampled.elapsed().as_secs_f64());
        let meter = &member.meter;
        page.gauge(&t::NODE_OUTSTANDING, &labels, f64::from(meter.outstanding()));
        page.gauge(&t::NODE_READ_SECONDS, &labels, f64::from(meter.latency_us()) / 1e6);
        page.gauge(&t::NODE_SPILLED, &labels, f64::from(meter.spilled()));
        page.set(&t::NODE_READS, &labels, meter.reads());
    }
}

fn render_routes(page: &Page, routes: &Routes, names: [(&'static str, &str); 2]) {
    for (to, reason, count) in routes.record().counts() {
        let labels = [names[0], names[1], ("destination", to.as_str()), ("reason", reason.as_str())];
        page.set(&t::ROUTED, &labels, count);
    }
    page.set(&t::RETRIED, &names, routes.record().retried());
}

fn render_credential(page: &Page, report: &Report) {
    // Not the principal where it changes with each credential: series must not add up.
    let server = report.server.as_deref().unwrap_or_default();
    let labels = [("source", report.source), ("name", report.name.as_str()), ("server", server)];
    page.gauge(&t::CREDENTIAL_GOOD, &labels, f64::from(u8::from(report.good)));
    if let Some(age) = report.age {
        page.gauge(&t::CREDENTIAL_AGE, &labels, age.as_secs_f64());
    }
    if let Some(at) = report.expires {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        page.gauge(&t::CREDENTIAL_EXPIRES, &labels, since.as_secs_f64());
    }
    for (result, count) in [("success", report.fetched), ("failure", report.failed)] {
        page.set(&t::CREDENTIAL_FETCHES, &[labels[0], labels[1], labels[2], ("result", result)], count);
    }
    page.set(&t::CREDENTIAL_REFUSED, &labels, report.refused);
}

fn render_pool(page: &Page, pool: &Pool, unassigned: &Totals, labels: &[(&'static str, &str); 3]) {
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
        page.gauge(&t::POOL_SERVERS, &labels, float(count));
    }
    page.gauge(&t::POOL_SIZE, labels, float(pool.config().size));
    page.gauge(&t::POOL_PAUSED, labels, f64::from(u8::from(pool.gate() == GateState::Paused)));
    let totals = pool.stats.totals().plus(unassigned);
    for (metric, value) in [
        (&t::QUERIES, totals.queries),
        (&t::TRANSACTIONS, totals.transactions),
        (&t::RECEIVED, totals.received),
        (&t::SENT, totals.sent),
        (&t::TIMEOUTS, totals.timeouts),
        (&t::ASSIGNMENTS, totals.assignments),
        (&t::STALE, totals.stale),
        (&t::LOST, totals.lost),
        (&t::LEAKS, totals.leaks),
        (&t::SURVEYS, totals.surveys),
        (&t::UNKNOWN_OUTCOMES, totals.unknown_outcomes),
        (&t::REFUSED_CREDENTIALS, totals.refused_credentials),
        (&t::CLIENT_PARSES, totals.client_parses),
        (&t::SERVER_PARSES, totals.server_parses),
        (&t::BINDS, totals.binds),
        (&t::LOGINS, totals.logins),
    ] {
        page.set(metric, labels, value);
    }
    let with = |label: (&'static str, &str), metric, count| {
        page.set(metric, &[labels[0], labels[1], labels[2], label], count);
    };
    pool.stats.pins().for_each(|(pin, count)| with(("reason", pin.as_str()), &t::PINS, count));
    pool.stats.losses().for_each(|(loss, count)| with(("reason", loss.as_str()), &t::CLOSED, count));
    pool.stats.departures().for_each(|(of, count)| with(("state", of.as_str()), &t::DEPARTURES, count));
    for (state, count) in pool.stats.connect_errors() {
        with(("sqlstate", &state), &t::CONNECT_ERRORS, count);
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of things that exist are far below 2^53")]
fn float(count: usize) -> f64 {
    count as f64
}
