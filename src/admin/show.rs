//! What SHOW answers: PgBouncer's columns in PgBouncer's order, so that its exporters and runbooks work.

use super::command::{Command, Table};
use super::metrics;
use super::operator::Operator;
use crate::client::ClientEntry;
use crate::client::entry::ClientState;
use crate::config::Setting;
use crate::credentials::Report;
use crate::listen::Status;
use crate::monitor::{Member, Monitor};
use crate::pool::{GateState, Learned, Node, PoolName, PoolSet, Routes, Totals};
use crate::routing::balance::{Unfit, is_fit};
use crate::routing::{Destination, NodeView, Policy, Reason, Tick};
use crate::server::{ServerEntry, ServerState};
use crate::session::PoolMode;
use crate::wire::reply::ColumnType;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// A text.
    Text(String),
    /// A number, of whatever type its column has.
    Int(i64),
    /// Null.
    Null,
}

/// The columns of a table.
pub type Columns = Vec<(&'static str, ColumnType)>;

pub(super) fn text(value: impl ToString) -> Cell {
    Cell::Text(value.to_string())
}

pub(super) fn int(value: impl TryInto<i64>) -> Cell {
    Cell::Int(value.try_into().unwrap_or(i64::MAX))
}

/// Columns from `name:type` words; `t` text, `i` int4, `b` int8, `n` numeric.
fn columns(spec: &'static str) -> Columns {
    let column = |word: &'static str| {
        let (name, kind) = word.rsplit_once(':').unwrap_or((word, "t"));
        let kind = match kind {
            "i" => ColumnType::Int4,
            "b" => ColumnType::Int8,
            "n" => ColumnType::Numeric,
            _ => ColumnType::Text,
        };
        (name, kind)
    };
    spec.split_whitespace().map(column).collect()
}

const PEOPLE: &str = "type user database replication state addr port:i local_addr local_port:i connect_time request_time \
     wait:i wait_us:i close_needed:i ptr link remote_pid:i tls application_name prepared_statements:i id:b";
const TOTALS: &str = "server_assignment_count:n xact_count:n query_count:n bytes_received:n bytes_sent:n xact_time:n \
     query_time:n wait_time:n client_parse_count:n server_parse_count:n bind_count:n client_login_count:n";
const AVERAGES: &str = "server_assignment_count:n xact_count:n query_count:n bytes_received:n bytes_sent:n xact_time:n \
     query_time:n wait_time:n avg_client_parse_count:n avg_server_parse_count:n avg_bind_count:n avg_client_login_count:n";
const STATS: &str = "total_server_assignment_count:n total_xact_count:n total_query_count:n total_received:n \
     total_sent:n total_xact_time:n total_query_time:n total_wait_time:n total_client_parse_count:n \
     total_server_parse_count:n total_bind_count:n total_client_login_count:n avg_server_assignment_count:n \
     avg_xact_count:n avg_query_count:n avg_recv:n avg_sent:n avg_xact_time:n avg_query_time:n avg_wait_time:n \
     avg_client_parse_count:n avg_server_parse_count:n avg_bind_count:n avg_client_login_count:n";

/// The columns that a command answers with; none for commands without rows.
pub fn describe(command: &Command) -> Columns {
    let with_database = |spec| [columns("database"), columns(spec)].concat();
    match command {
        Command::Show(table) => match table {
            Table::Clients | Table::Servers => columns(PEOPLE),
            Table::Config => columns("key value default changeable"),
            Table::Credentials => columns(
                "source principal server state age_seconds:b expires expires_seconds:b fetched:b failed:b refused:b last_error \
                 last_error_seconds:b",
            ),
            Table::Databases => columns(
                "name host port:i database force_user pool_size:i min_pool_size:i reserve_pool_size:i server_lifetime:i \
                 pool_mode load_balance_hosts max_connections:i current_connections:i max_client_connections:i \
                 current_client_connections:i paused:i disabled:i",
            ),
            Table::Help => columns("command description"),
            Table::Learned => columns("database user text why uses:b age_seconds:b"),
            Table::Listeners => columns(
                "database encoding server remote_pid:i channels:i clients:i notifications:b delivered:b lost:b \
                 connected_seconds:b",
            ),
            Table::Lists => columns("list items:i"),
            Table::Mem => columns("name size:i used:i free:i memtotal:b"),
            Table::Nodes => columns(
                "database host port:i role state why tier:i zone region timeline:i lsn lag_bytes:b lag_ms:b rtt_us:b weight:i \
                 outstanding:i latency_us:b reads:b reads_percent:i probe_age_ms:b state_seconds:b generation:b",
            ),
            Table::Pins => {
                columns("client_id:b server_id:b database user reasons pinned_time seconds:b application_name")
            }
            Table::Pools => columns(
                "database user cl_active:i cl_waiting:i cl_active_cancel_req:i cl_waiting_cancel_req:i sv_active:i \
                 sv_active_cancel:i sv_being_canceled:i sv_idle:i sv_used:i sv_tested:i sv_login:i maxwait:i maxwait_us:i \
                 pool_mode load_balance_hosts",
            ),
            Table::Routes => columns("database user destination reason requests:b"),
            Table::State => columns("key value"),
            Table::Stats => with_database(STATS),
            Table::StatsAverages => with_database(AVERAGES),
            Table::StatsTotals => with_database(TOTALS),
            Table::Totals => columns("name value:b"),
            Table::Users => columns(
                "name pool_size:i reserve_pool_size:i pool_mode max_user_connections:i current_connections:i \
                 max_user_client_connections:i current_client_connections:i",
            ),
            Table::Version => columns("version"),
        },
        Command::ShowSetting(name) => {
            let known = [
                "client_encoding",
                "default_transaction_isolation",
                "standard_conforming_strings",
                "datestyle",
                "timezone",
                "server_version",
                "transaction_isolation",
            ];
            let name = known.iter().find(|known| *known == name).copied().unwrap_or("setting");
            vec![(name, ColumnType::Text)]
        }
        Command::ExplainRoute { .. } => columns(super::explain::COLUMNS),
        Command::SelectOne => vec![("?column?", ColumnType::Int4)],
        Command::Empty
        | Command::Pause(_)
        | Command::Resume(_)
        | Command::Reconnect(_)
        | Command::WaitClose(_)
        | Command::Kill(_)
        | Command::KillClient(_)
        | Command::Disable(_)
        | Command::Enable(_)
        | Command::Reload
        | Command::Shutdown(_)
        | Command::Set(..)
        | Command::SetIgnored => Vec::new(),
    }
}

/// The rows of a table.
pub fn rows(table: Table, operator: &Operator) -> Vec<Vec<Cell>> {
    match table {
        Table::Clients => operator.context.clients.all().iter().map(|client| client_row(client)).collect(),
        Table::Servers => servers(operator),
        Table::Config => operator.settings().iter().map(config_row).collect(),
        Table::Credentials => operator.context.directory.keyring().reports().iter().map(credential_row).collect(),
        Table::Databases => databases(operator),
        Table::Help => help(),
        Table::Learned => learned(operator),
        Table::Listeners => operator.context.hubs.status().iter().map(listener_row).collect(),
        Table::Lists => lists(operator),
        Table::Mem => memory(operator),
        Table::Nodes => nodes(operator),
        Table::Pins => operator.context.clients.all().iter().filter_map(|client| pin_row(client)).collect(),
        Table::Pools => pools(operator),
        Table::Routes => routes(operator),
        Table::State => {
            let paused = operator.is_paused();
            let yes = |is: bool| text(if is { "yes" } else { "no" });
            [("active", !paused), ("paused", paused), ("suspended", false)]
                .into_iter()
                .map(|(key, is)| vec![text(key), yes(is)])
                .collect()
        }
        Table::Stats => stats(operator, |totals, averages| [total_cells(totals), average_cells(averages)].concat()),
        Table::StatsTotals => stats(operator, |totals, _| total_cells(totals)),
        Table::StatsAverages => stats(operator, |_, averages| average_cells(averages)),
        Table::Totals => totals(operator),
        Table::Users => users(operator),
        Table::Version => vec![vec![text(format!("pg-ambassador {}", env!("CARGO_PKG_VERSION")))]],
    }
}

fn credential_row(report: &Report) -> Vec<Cell> {
    let some = |value: Option<Cell>| value.unwrap_or(Cell::Null);
    let ends = |at: SystemTime| at.duration_since(SystemTime::now()).map_or_else(|e| -seconds(e.duration()), seconds);
    vec![
        text(report.source),
        text(&report.principal),
        some(report.server.as_ref().map(text)),
        text(match (report.good, report.age) {
            (true, _) => "good",
            (false, Some(_)) => "expired",
            (false, None) => "none",
        }),
        some(report.age.map(|age| Cell::Int(seconds(age)))),
        some(report.expires.map(|at| text(date(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())))),
        some(report.expires.map(|at| Cell::Int(ends(at)))),
        int(report.fetched),
        int(report.failed),
        int(report.refused),
        some(report.last_error.as_ref().map(|(error, _)| text(error))),
        some(report.last_error.as_ref().map(|(_, ago)| Cell::Int(seconds(*ago)))),
    ]
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn mode_name(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
        PoolMode::Statement => "statement",
    }
}

/// A moment as PgBouncer writes it: `2026-01-31 12:00:00 UTC`.
fn moment(at: Instant) -> String {
    let ago = at.elapsed();
    date(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(ago))
}

/// The same of a time since 1970.
fn date(since: Duration) -> String {
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Civil date from days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_part = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_part + 2) / 5 + 1;
    let month = if month_part < 10 { month_part + 3 } else { month_part - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

fn ends(ends: Option<(SocketAddr, SocketAddr)>) -> [Cell; 4] {
    match ends {
        Some((peer, local)) => {
            [text(peer.ip().to_canonical()), int(peer.port()), text(local.ip().to_canonical()), int(local.port())]
        }
        None => [text("unix"), int(0), text("unix"), int(0)],
    }
}

fn wait_cells(wait: Duration) -> [Cell; 2] {
    [int(wait.as_secs()), int(wait.subsec_micros())]
}

fn client_row(client: &ClientEntry) -> Vec<Cell> {
    let [addr, port, local_addr, local_port] = ends(client.ends);
    let [wait, wait_us] = wait_cells(client.waiting().unwrap_or_default());
    let server = client.server();
    vec![
        text("C"),
        text(&client.user),
        text(&client.database),
        text(client.replication),
        text(client.state().as_str()),
        addr,
        port,
        local_addr,
        local_port,
        text(moment(client.connected)),
        text(moment(client.requested())),
        wait,
        wait_us,
        int(0),
        text(format!("c{}", client.id)),
        text(server.map(|server| format!("s{}", server.id)).unwrap_or_default()),
        int(client.key.pid),
        text(client.tls.as_deref().unwrap_or_default()),
        text(client.application_name()),
        int(client.prepared()),
        int(client.id),
    ]
}

fn pin_row(client: &ClientEntry) -> Option<Vec<Cell>> {
    let (pins, since) = client.pins()?;
    Some(vec![
        int(client.id),
        client.server().map_or(Cell::Null, |server| int(server.id)),
        text(&client.database),
        text(&client.user),
        text(pins),
        text(moment(since)),
        int(since.elapsed().as_secs()),
        text(client.application_name()),
    ])
}

fn servers(operator: &Operator) -> Vec<Vec<Cell>> {
    let mut rows = Vec::new();
    let clients: HashMap<u64, _> =
        operator.context.clients.all().iter().map(|client| (client.id, client.application_name())).collect();
    for set in operator.context.directory.sets() {
        for pool in set.pools_to_the_last() {
            let mut servers = [pool.servers(), pool.servers_apart()].concat();
            servers.sort_by_key(|server| server.id);
            let outdated = pool.reconnected_at();
            rows.extend(servers.iter().map(|server| {
                let close_needed = outdated.is_some_and(|at| server.connected < at);
                let application = clients.get(&server.client()).map_or("", |name| &**name);
                server_row(server, [&pool.name.user, &pool.name.database, application], close_needed)
            }));
        }
    }
    rows
}

fn server_row(server: &ServerEntry, [user, database, application]: [&str; 3], close_needed: bool) -> Vec<Cell> {
    let [addr, port, local_addr, local_port] = match server.ends {
        Some(_) => ends(server.ends),
        None => [text(&server.target.address), int(server.target.address.port()), text("unix"), int(0)],
    };
    let client = server.client();
    vec![
        text("S"),
        text(user),
        text(database),
        text("none"),
        text(server.state().as_str()),
        addr,
        port,
        local_addr,
        local_port,
        text(moment(server.connected)),
        text(moment(server.requested())),
        int(0),
        int(0),
        int(u8::from(close_needed)),
        text(format!("s{}", server.id)),
        text(if client == 0 { String::new() } else { format!("c{client}") }),
        int(server.key.pid),
        text(server.tls.as_deref().unwrap_or_default()),
        text(application),
        int(server.prepared()),
        int(server.id),
    ]
}

fn config_row(setting: &Setting) -> Vec<Cell> {
    let changeable = if setting.reloads { "yes" } else { "no" };
    vec![text(&setting.key), text(&setting.value), text(&setting.default), text(changeable)]
}

/// A limit as PgBouncer shows it: 0 for none.
fn limit(limit: Option<usize>) -> Cell {
    int(limit.unwrap_or(0))
}

fn databases(operator: &Operator) -> Vec<Vec<Cell>> {
    let sets = operator.context.directory.sets();
    let row = |database: &std::sync::Arc<crate::pool::Database>| {
        let config = &database.config;
        let mine = |set: &&std::sync::Arc<PoolSet>| set.database().config.name == config.name;
        let connections: usize =
            sets.iter().filter(mine).flat_map(|set| set.pools_to_the_last()).map(|pool| pool.connections()).sum();
        let hosts: Vec<&str> = config.nodes.iter().map(|node| node.host()).collect();
        let paused = operator.context.directory.is_paused(&config.name)
            || sets.iter().filter(mine).any(|set| set.pools().iter().any(|p| p.gate() == GateState::Paused));
        vec![
            text(&config.name),
            text(hosts.join(",")),
            int(config.nodes.first().map_or(0, |node| node.port())),
            text(config.dbname.as_deref().unwrap_or(&config.name)),
            config.user.as_ref().map_or(Cell::Null, text),
            int(config.pool.size),
            int(config.pool.min_idle),
            int(config.pool.reserve),
            int(config.pool.lifetime.as_secs()),
            text(mode_name(config.mode)),
            Cell::Null,
            limit(config.max_connections),
            int(connections),
            limit(config.max_clients),
            int(database.clients()),
            int(u8::from(paused)),
            int(u8::from(database.is_disabled())),
        ]
    };
    operator.context.directory.databases().iter().map(row).collect()
}

fn help() -> Vec<Vec<Cell>> {
    let shows = Table::ALL.iter().map(|(_, name, help)| (format!("SHOW {name}"), *help));
    let commands = [
        ("EXPLAIN ROUTE [FOR db] statement", "where a statement would go now, and why"),
        ("PAUSE [db]", "let transactions end and hold new ones back"),
        ("RESUME [db]", "let them go on"),
        ("RECONNECT [db]", "close server connections as soon as they are free, and open new ones"),
        ("WAIT_CLOSE [db]", "wait until RECONNECT has closed them all"),
        ("KILL [db]", "close all connections now and hold new ones back until RESUME"),
        ("KILL_CLIENT id", "close one client's connection"),
        ("DISABLE db", "refuse new clients"),
        ("ENABLE db", "accept them again"),
        ("RELOAD", "read the configuration again"),
        ("SET key = 'value'", "change a setting until the next RELOAD"),
        ("SHUTDOWN [WAIT_FOR_SERVERS | WAIT_FOR_CLIENTS]", "end the pooler"),
    ];
    let commands = commands.into_iter().map(|(command, help)| (command.to_owned(), help));
    shows.chain(commands).map(|(command, help)| vec![text(command), text(help)]).collect()
}

/// Without a connection there is neither a server nor a time.
fn listener_row(hub: &Status) -> Vec<Cell> {
    let [server, pid, seconds] = match &hub.connection {
        Some((server, pid, since)) => [text(server), int(*pid), int(since.elapsed().as_secs())],
        None => [Cell::Null, Cell::Null, Cell::Null],
    };
    vec![
        text(&hub.database),
        text(&hub.encoding),
        server,
        pid,
        int(hub.channels),
        int(hub.clients),
        int(hub.notifications),
        int(hub.delivered),
        int(hub.lost),
        seconds,
    ]
}

/// The set of pools of each database and user whose reads are routed, and what they are routed by.
fn routed(operator: &Operator) -> impl Iterator<Item = (PoolName, Arc<Routes>)> {
    let sets = operator.context.directory.sets().into_iter();
    sets.filter_map(|set| Some((set.name.clone(), set.routes()?)))
}

fn learned(operator: &Operator) -> Vec<Vec<Cell>> {
    let row = |name: &PoolName, known: Learned| {
        let age = int(known.at.elapsed().as_secs());
        vec![text(&name.database), text(&name.user), text(known.text), text(known.why), int(known.uses), age]
    };
    let rows = |(name, routes): (PoolName, Arc<Routes>)| {
        routes.record().all_learned().into_iter().map(|known| row(&name, known)).collect::<Vec<_>>()
    };
    routed(operator).flat_map(rows).collect()
}

fn routes(operator: &Operator) -> Vec<Vec<Cell>> {
    let rows = |(name, routes): (PoolName, Arc<Routes>)| {
        let row = |(to, reason, count): (Destination, Reason, u64)| {
            vec![text(&name.database), text(&name.user), text(to.as_str()), text(reason.as_str()), int(count)]
        };
        routes.record().counts().into_iter().map(row).collect::<Vec<_>>()
    };
    routed(operator).flat_map(rows).collect()
}

fn nodes(operator: &Operator) -> Vec<Vec<Cell>> {
    let directory = &operator.context.directory;
    let mut rows = Vec::new();
    for database in directory.databases() {
        let name = database.config.name.as_str();
        match directory.monitor_of(&database) {
            Some(monitor) => rows.extend(watched(name, &monitor, &database.config.routing.policy)),
            // One server is not asked what it is, nor are several before the first client needs one.
            None => rows.extend(database.nodes().iter().map(|node| unwatched(name, node))),
        }
    }
    rows
}

pub(super) fn option<T>(value: Option<T>, cell: impl FnOnce(T) -> Cell) -> Cell {
    value.map_or(Cell::Null, cell)
}

fn watched(database: &str, monitor: &Monitor, policy: &Policy) -> Vec<Vec<Cell>> {
    let topology = monitor.topology();
    let sum: u64 = monitor.members().iter().map(|member| member.meter.reads()).sum();
    let row = |(node, member): (&NodeView, &Member)| {
        let why = node.state.why().or_else(|| {
            let unfit = is_fit(node, policy).err().filter(|unfit| *unfit != Unfit::NoReplica);
            unfit.map(|unfit| unfit.as_str().to_owned())
        });
        let reads = member.meter.reads();
        let why = why.or_else(|| node.paused.then(|| "replay is paused".to_owned()));
        vec![
            text(database),
            text(&node.host),
            int(node.port),
            text(node.role.as_str()),
            text(node.state.as_str()),
            option(why, text),
            int(node.tier),
            option(node.zone.as_deref(), text),
            option(node.region.as_deref(), text),
            if node.timeline == 0 { Cell::Null } else { int(node.timeline) },
            option(node.lsn, text),
            option(node.lag_bytes, int),
            option(node.lag, |lag| int(lag.as_millis())),
            int(node.rtt.as_micros()),
            int(node.weight),
            int(member.meter.outstanding()),
            int(member.meter.latency_us()),
            int(reads),
            int((100 * reads).checked_div(sum).unwrap_or(0)),
            if node.tick == Tick(0) { Cell::Null } else { int(node.sampled.elapsed().as_millis()) },
            int(node.since.elapsed().as_secs()),
            int(topology.generation),
        ]
    };
    topology.nodes.iter().zip(monitor.members()).map(row).collect()
}

fn unwatched(database: &str, node: &Node) -> Vec<Cell> {
    let mut row = vec![text(database), text(node.address.host()), int(node.address.port())];
    row.extend([text("unknown"), text("not watched")]);
    row.extend(std::iter::repeat_n(Cell::Null, 17));
    row
}

fn lists(operator: &Operator) -> Vec<Vec<Cell>> {
    let directory = &operator.context.directory;
    let sets = directory.sets();
    let servers: Vec<_> = sets.iter().flat_map(|set| set.pools_to_the_last()).flat_map(|pool| pool.servers()).collect();
    let used = servers.iter().filter(|server| server.client() != 0).count();
    let clients = operator.context.clients.count();
    [
        ("databases", directory.databases().len()),
        ("users", directory.users().len()),
        ("peers", 0),
        ("pools", sets.len()),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", clients),
        ("login_clients", 0),
        ("free_servers", servers.len() - used),
        ("used_servers", used),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ]
    .into_iter()
    .map(|(list, items)| vec![text(list), int(items)])
    .collect()
}

fn memory(operator: &Operator) -> Vec<Vec<Cell>> {
    let resident = std::fs::read_to_string("/proc/self/statm").ok().and_then(|statm| {
        statm.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * rustix::param::page_size() as u64)
    });
    let clients = operator.context.clients.count();
    let servers: usize =
        operator.context.directory.sets().iter().flat_map(|set| set.pools_to_the_last()).map(|p| p.connections()).sum();
    let statements = operator.context.interners.statements.len();
    [
        ("resident", 1, 1, resident.unwrap_or(0)),
        ("buffers", 1, operator.context.budget.taken(), 0),
        ("clients", std::mem::size_of::<ClientEntry>(), clients, 0),
        ("servers", std::mem::size_of::<crate::server::Server>(), servers, 0),
        ("statements", std::mem::size_of::<crate::session::prepared::Statement>(), statements, 0),
    ]
    .into_iter()
    .map(|(name, size, used, total)| {
        let total = if total > 0 { total } else { (size * used) as u64 };
        vec![text(name), int(size), int(used), int(0), int(total)]
    })
    .collect()
}

fn pools(operator: &Operator) -> Vec<Vec<Cell>> {
    let queues = metrics::queues(&operator.context.clients);
    let clients = operator.context.clients.all();
    let row = |set: &std::sync::Arc<PoolSet>| {
        let servers: Vec<_> = set.pools_to_the_last().iter().flat_map(|pool| pool.servers()).collect();
        let in_state = |state: ServerState| int(servers.iter().filter(|server| server.state() == state).count());
        let (waiting, longest) = queues.get(&set.name).copied().unwrap_or_default();
        // PgBouncer counts a client as active unless it waits for a server.
        let active = clients
            .iter()
            .filter(|c| c.database == set.name.database && c.user == set.name.user && c.state() != ClientState::Waiting)
            .count();
        let [maxwait, maxwait_us] = wait_cells(longest);
        vec![
            text(&set.name.database),
            text(&set.name.user),
            int(active),
            int(waiting),
            int(0),
            int(0),
            in_state(ServerState::Active),
            int(0),
            in_state(ServerState::BeingCanceled),
            in_state(ServerState::Idle),
            int(0),
            in_state(ServerState::Tested),
            in_state(ServerState::New),
            maxwait,
            maxwait_us,
            text(mode_name(set.mode())),
            Cell::Null,
        ]
    };
    operator.context.directory.sets().iter().map(row).collect()
}

/// Totals in the order of SHOW STATS.
fn values(totals: &Totals) -> [u64; 12] {
    [
        totals.assignments,
        totals.transactions,
        totals.queries,
        totals.received,
        totals.sent,
        totals.transaction_us,
        totals.query_us,
        totals.wait_us,
        totals.client_parses,
        totals.server_parses,
        totals.binds,
        totals.logins,
    ]
}

fn total_cells(totals: &Totals) -> Vec<Cell> {
    values(totals).into_iter().map(int).collect()
}

/// What is counted a second; times are for one transaction or query.
fn average_values((totals, period): &(Totals, Duration)) -> [u64; 12] {
    let ms = u64::try_from(period.as_millis()).unwrap_or(u64::MAX).max(1);
    let mut values = values(totals).map(|value| value.saturating_mul(1000) / ms);
    values[5] = totals.transaction_us / totals.transactions.max(1);
    values[6] = totals.query_us / totals.queries.max(1);
    values[7] = totals.wait_us.saturating_mul(1000) / ms;
    values
}

fn average_cells(averages: &(Totals, Duration)) -> Vec<Cell> {
    average_values(averages).into_iter().map(int).collect()
}

fn stats(operator: &Operator, cells: impl Fn(&Totals, &(Totals, Duration)) -> Vec<Cell>) -> Vec<Vec<Cell>> {
    let rows = operator.statistics().into_iter().map(|(database, totals, averages)| {
        let mut row = vec![text(database)];
        row.extend(cells(&totals, &averages));
        row
    });
    rows.collect()
}

fn totals(operator: &Operator) -> Vec<Vec<Cell>> {
    const NAMES: [&str; 12] = [
        "server_assignment_count",
        "xact_count",
        "query_count",
        "client_bytes",
        "server_bytes",
        "xact_time",
        "query_time",
        "wait_time",
        "ps_client_parse_count",
        "ps_server_parse_count",
        "ps_bind_count",
        "client_login_count",
    ];
    let (mut sum, mut window, mut period) = (Totals::default(), Totals::default(), Duration::ZERO);
    for (_, totals, (recent, over)) in operator.statistics() {
        sum = sum.plus(&totals);
        window = window.plus(&recent);
        period = period.max(over);
    }
    let total = NAMES.iter().zip(values(&sum)).map(|(name, value)| (format!("total_{name}"), value));
    let average =
        NAMES.iter().zip(average_values(&(window, period))).map(|(name, value)| (format!("avg_{name}"), value));
    total.chain(average).map(|(name, value)| vec![text(name), int(value)]).collect()
}

fn users(operator: &Operator) -> Vec<Vec<Cell>> {
    let sets = operator.context.directory.sets();
    let row = |(name, config, clients): (String, crate::pool::UserConfig, usize)| {
        let mine = sets.iter().filter(|set| *set.name.user == *name);
        let connections: usize = mine.flat_map(|set| set.pools_to_the_last()).map(|pool| pool.connections()).sum();
        vec![
            text(&name),
            config.pool_size.map_or(Cell::Null, int),
            Cell::Null,
            config.mode.map_or(Cell::Null, |mode| text(mode_name(mode))),
            limit(config.max_connections),
            int(connections),
            limit(config.max_clients),
            int(clients),
        ]
    };
    operator.context.directory.users().into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_pgbouncer_writes_them() {
        let now = moment(Instant::now());
        assert_eq!(now.len(), "2026-01-31 12:00:00 UTC".len());
        let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%d"]).output().unwrap();
        assert!(now.starts_with(String::from_utf8_lossy(&output.stdout).trim()), "{now}");
    }

    #[test]
    fn columns_are_pgbouncers_in_pgbouncers_order() {
        let names = |text: &str| {
            let columns = describe(&Command::parse(text).unwrap());
            columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
        };
        // From the table of commands in PgBouncer's documentation and source.
        for (command, expected) in [
            (
                "SHOW POOLS",
                "database, user, cl_active, cl_waiting, cl_active_cancel_req, cl_waiting_cancel_req, sv_active, sv_active_cancel, sv_being_canceled, sv_idle, sv_used, sv_tested, sv_login, maxwait, maxwait_us, pool_mode, load_balance_hosts",
            ),
            (
                "SHOW STATS",
                "database, total_server_assignment_count, total_xact_count, total_query_count, total_received, total_sent, total_xact_time, total_query_time, total_wait_time, total_client_parse_count, total_server_parse_count, total_bind_count, total_client_login_count, avg_server_assignment_count, avg_xact_count, avg_query_count, avg_recv, avg_sent, avg_xact_time, avg_query_time, avg_wait_time, avg_client_parse_count, avg_server_parse_count, avg_bind_count, avg_client_login_count",
            ),
            (
                "SHOW STATS_TOTALS",
                "database, server_assignment_count, xact_count, query_count, bytes_received, bytes_sent, xact_time, query_time, wait_time, client_parse_count, server_parse_count, bind_count, client_login_count",
            ),
            (
                "SHOW STATS_AVERAGES",
                "database, server_assignment_count, xact_count, query_count, bytes_received, bytes_sent, xact_time, query_time, wait_time, avg_client_parse_count, avg_server_parse_count, avg_bind_count, avg_client_login_count",
            ),
            (
                "SHOW CLIENTS",
                "type, user, database, replication, state, addr, port, local_addr, local_port, connect_time, request_time, wait, wait_us, close_needed, ptr, link, remote_pid, tls, application_name, prepared_statements, id",
            ),
            (
                "SHOW DATABASES",
                "name, host, port, database, force_user, pool_size, min_pool_size, reserve_pool_size, server_lifetime, pool_mode, load_balance_hosts, max_connections, current_connections, max_client_connections, current_client_connections, paused, disabled",
            ),
            (
                "SHOW USERS",
                "name, pool_size, reserve_pool_size, pool_mode, max_user_connections, current_connections, max_user_client_connections, current_client_connections",
            ),
            ("SHOW LISTS", "list, items"),
            ("SHOW CONFIG", "key, value, default, changeable"),
            ("SHOW MEM", "name, size, used, free, memtotal"),
            ("SHOW STATE", "key, value"),
            ("SHOW TOTALS", "name, value"),
            ("SHOW VERSION", "version"),
        ] {
            assert_eq!(names(command), expected, "{command}");
        }
    }
}
