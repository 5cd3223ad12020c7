//! What the pure cores cost: the user-mode path of a query, without a socket.

#![allow(missing_docs)] // criterion's macros write undocumented functions

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pg_ambassador::routing::survey::{Answer, Known, Location, Probe, Survey};
use pg_ambassador::routing::{
    Catalogue, Causal, Consistency, Fallback, Load, Lsn, Moment, NodeId, NodeView, Policy, Tick, Topology, Verdict,
    choose,
};
use pg_ambassador::session::prepared::{ClientPrepared, ServerPrepared};
use pg_ambassador::session::settings::Settings;
use pg_ambassador::session::{Interners, Outbound, Params, PoolMode, ServerSide, Session};
use pg_ambassador::sql::{self, Analysis};
use pg_ambassador::wire::frame;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The size of the buffers that are read into.
const BUFFER: usize = 64 * 1024;

fn message(tag: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let length = u32::try_from(body.len() + 4).unwrap_or_else(|_| panic!("a short message"));
    [&[tag], length.to_be_bytes().as_slice(), &body].concat()
}

fn data_row(width: usize) -> Vec<u8> {
    let length = u32::try_from(width - 11).unwrap_or_else(|_| panic!("a short row"));
    message(b'D', &[&[0, 1], &length.to_be_bytes(), &vec![b'x'; width - 11]])
}

/// A buffer full of rows, each of them `width` bytes on the wire.
fn rows(width: usize) -> Vec<u8> {
    data_row(width).repeat(BUFFER / width)
}

fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"])
}

fn row_description() -> Vec<u8> {
    message(b'T', &[&[0, 1], b"abalance\0", &[0; 18]])
}

fn complete(tag: &str) -> Vec<u8> {
    [message(b'C', &[tag.as_bytes(), b"\0"]), message(b'Z', &[b"I"])].concat()
}

/// A client and a server in conversation.
struct Pair {
    interners: Interners,
    session: Session,
    server: ServerSide,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Pair {
    fn new() -> Self {
        let interners = Interners::default();
        let settings = interners.settings.intern([("client_encoding", "UTF8"), ("application_name", "pgbench")]);
        let params = Params::default();
        let session = Session::new(1, PoolMode::Transaction, settings.clone(), &params);
        let server = ServerSide::new(settings, params, 500);
        Self { interners, session, server, to_server: Vec::new(), to_client: Vec::new() }
    }

    fn ask(&mut self, input: &[u8]) {
        self.to_server.clear();
        let mut out = Outbound::new(input, &mut self.to_server);
        self.session.attach(&mut self.server, &mut out);
        let (session, server) = (&mut self.session, &mut self.server);
        let taken = session.on_client(&self.interners, input, Some(server), &mut out, &mut self.to_client);
        assert_eq!(taken.map(|taken| taken.bytes), Ok(input.len()));
        black_box(out.parts());
    }

    fn answer(&mut self, input: &[u8]) {
        self.to_client.clear();
        let mut out = Outbound::new(input, &mut self.to_client);
        let taken = self.session.on_server(input, &mut self.server, &mut out);
        assert_eq!(taken.map(|taken| taken.bytes), Ok(input.len()));
        black_box(out.parts());
    }

    /// A whole trip, at whose end the server is free.
    fn trip(&mut self, request: &[u8], reply: &[u8]) {
        self.ask(request);
        self.answer(reply);
        assert!(self.session.may_release(&self.server));
        black_box((self.session.take_completed(), self.session.take_counts()));
    }
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire::frame");
    for width in [18, 1000] {
        let input = rows(width);
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(format!("data_run, rows of {width} B"), |b| b.iter(|| frame::data_run(black_box(&input))));
    }
    let batch = [row_description(), data_row(18), complete("SELECT 1")].concat();
    group.throughput(Throughput::Bytes(batch.len() as u64));
    group.bench_function("backend, the four frames of an answer", |b| {
        b.iter(|| {
            let mut at = 0;
            while let Ok(Some(frame)) = frame::backend(black_box(&batch[at..])) {
                at += frame.len;
            }
            at
        });
    });
}

fn trips(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session");
    let answer = [row_description(), data_row(18), complete("SELECT 1")].concat();
    group.bench_function("simple query, both ways", |b| {
        let mut pair = Pair::new();
        let request = query("SELECT abalance FROM pgbench_accounts WHERE aid = 123456;");
        b.iter(|| pair.trip(black_box(&request), black_box(&answer)));
    });

    let sql = b"SELECT abalance FROM pgbench_accounts WHERE aid = $1;\0";
    let bind = |name: &[u8]| {
        let bind = message(b'B', &[b"\0", name, &[0, 0, 0, 0, 1, 0, 0, 0, 6], b"123456", &[0, 0]]);
        [bind, message(b'D', &[b"P\0"]), message(b'E', &[b"\0", &[0; 4]])].concat()
    };
    let rows = [message(b'2', &[]), row_description(), data_row(18), message(b'C', &[b"SELECT 1\0"])].concat();
    let (sync, ready) = (message(b'S', &[]), message(b'Z', &[b"I"]));

    group.bench_function("extended, unnamed statement, both ways", |b| {
        let mut pair = Pair::new();
        let request = [message(b'P', &[b"\0", sql, &[0, 0]]), bind(b"\0"), sync.clone()].concat();
        let reply = [message(b'1', &[]), rows.clone(), ready.clone()].concat();
        b.iter(|| pair.trip(black_box(&request), black_box(&reply)));
    });
    for depth in [1, 10] {
        group.bench_function(format!("prepared, {depth} in a batch, both ways"), |b| {
            let mut pair = Pair::new();
            let parse = [message(b'P', &[b"P_0\0", sql, &[0, 0]]), sync.clone()].concat();
            pair.trip(&parse, &[message(b'1', &[]), ready.clone()].concat());
            let request = [bind(b"P_0\0").repeat(depth), sync.clone()].concat();
            let reply = [rows.repeat(depth), ready.clone()].concat();
            b.iter(|| pair.trip(black_box(&request), black_box(&reply)));
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("session.on_server");
    for width in [18, 1000] {
        let input = self::rows(width);
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(format!("rows of {width} B"), |b| {
            let mut pair = Pair::new();
            pair.ask(&query("select x from t"));
            pair.answer(&row_description());
            b.iter(|| pair.answer(black_box(&input)));
        });
    }
}

fn statements(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sql::analyse");
    let texts = [
        (
            "select of 100 B",
            "SELECT a.id, a.name, b.total FROM accounts a JOIN balances b USING (id) WHERE a.id = $1 LIMIT 10 ;;",
        ),
        ("BEGIN", "BEGIN;"),
        ("INSERT", "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 2, 3, 4, CURRENT_TIMESTAMP);"),
    ];
    for (name, text) in texts {
        group.bench_function(name, |b| b.iter(|| sql::analyse(black_box(text.as_bytes()), true)));
    }
}

fn reads(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sql::access");
    let names: Vec<String> =
        (0..500u32).map(|n| format!("{}_object_{n}", char::from(b"abcdefghij"[n as usize % 10]))).collect();
    let rows = names.iter().enumerate().map(|(at, name)| match at % 4 {
        0 => ("object", "public", name.as_str(), true),
        at => ("function", "public", name.as_str(), at == 1),
    });
    let catalogue = Catalogue::from_rows(rows);
    let texts = [
        (
            "access_100_bytes",
            "SELECT a.id, a.name, b.total FROM accounts a JOIN balances b USING (id) WHERE a.id = $1 LIMIT 10 ;;",
        ),
        (
            "access_100_bytes, with calls",
            "SELECT count(*), max(b.total), coalesce(lower(a.name), 'x') FROM accounts a WHERE a.id IN (1, 2, 3, 4);",
        ),
        ("INSERT", "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1, 2, 3, 4, CURRENT_TIMESTAMP);"),
    ];
    for (name, text) in texts {
        group.bench_function(name, |b| b.iter(|| sql::access(black_box(text.as_bytes()), true, &catalogue)));
    }
}

fn settings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("settings");
    let interners = Interners::default();
    let common = [("client_encoding", "UTF8"), ("datestyle", "ISO"), ("application_name", "app"), ("timezone", "UTC")];
    let one = interners.settings.intern(common);
    let other =
        interners.settings.intern(common.map(|(name, value)| (name, if name == "timezone" { "CET" } else { value })));
    let again = interners.settings.intern(common);
    let same = |a: &Settings, b: &Settings| black_box(a).same(black_box(b));
    group.bench_function("same, equal", |b| b.iter(|| same(&one, &again)));
    group.bench_function("same, different", |b| b.iter(|| same(&one, &other)));
    group.bench_function("difference", |b| b.iter(|| black_box(&one).difference(black_box(&other)).len()));
    group.bench_function("intern", |b| b.iter(|| interners.settings.intern(black_box(common))));
}

fn prepared(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("prepared");
    let interners = Interners::default();
    let settings = interners.settings.intern([("client_encoding", "UTF8")]);
    let intern = |n: usize| {
        let text = format!("SELECT abalance FROM pgbench_accounts WHERE aid = $1 AND {n} = {n};");
        interners.statements.intern(text.as_bytes(), &[0, 0], &settings, || Analysis::UNKNOWN)
    };
    let (mut client, mut server) = (ClientPrepared::default(), ServerPrepared::default());
    let all: Vec<_> = (0..200).map(intern).collect();
    for (n, statement) in all.iter().enumerate() {
        let name = format!("P_{n}");
        client.begin(name.as_bytes(), Some(statement.clone()), 1);
        client.confirm(name.as_bytes());
        let operation = server.parse(statement, 1);
        server.settle(statement.id, operation, true);
    }
    server.quiet();
    group.bench_function("look_up, 200 statements", |b| {
        b.iter(|| std::mem::size_of_val(&client.look_up(black_box(b"P_123"), 2)));
    });
    group.bench_function("touch, 200 statements", |b| {
        b.iter_batched(|| (), |()| server.touch(black_box(all[123].id), 2), BatchSize::SmallInput);
    });
    group.bench_function("intern, a known statement", |b| b.iter(|| intern(black_box(17))));
}

/// A primary and two replicas, all of them up and as far as each other.
fn three_nodes(now: Instant) -> Topology {
    let known =
        (0..3).map(|at| Known { id: NodeId(at), host: "h".into(), port: 1, place: Location::default(), weight: 1 });
    let mut survey = Survey::new(Location::default(), known.collect(), Duration::from_secs(10), now);
    for at in 0..3 {
        let lsn = Some(Lsn::new(1));
        let answer =
            Answer { in_recovery: at > 0, insert: lsn, flush: lsn, replayed: lsn, timeline: 1, ..Answer::default() };
        let sent = Moment { tick: Tick(5), at: now };
        survey.answered(at, Probe { sent, took: Duration::from_millis(1), first: true }, &answer, now);
    }
    survey.topology()
}

/// What the relay asks before each request, where a database has several servers.
fn routing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing");
    let now = Instant::now();
    let topology = three_nodes(now);
    let policy = Policy {
        max_lag: Duration::from_secs(10),
        slow_start: Duration::ZERO,
        fallback: Fallback::Primary,
        primary_read_share: 50,
    };
    // It has written, and read on a replica since.
    let mut causal = Causal::default();
    let before = Moment { tick: Tick(1), at: now };
    causal.wrote(before);
    causal.settle(&topology);
    let proof = causal.is_fresh(&topology.nodes[1], &topology, Consistency::Session, before).ok();
    causal.read_on(NodeId(1), proof, &topology, before);
    let decide = |verdict: Verdict, chance: u64| {
        let fresh = |node: &NodeView| causal.is_fresh(node, &topology, Consistency::Session, before).is_ok();
        let load = |_: &NodeView| Load { capacity: 20, ..Load::default() };
        (verdict == Verdict::Read).then(|| choose(&topology, &policy, now, chance, true, fresh, load))
    };
    let catalogue = Catalogue::from_rows([]);
    let mut pair = Pair::new();
    let sql = b"SELECT abalance FROM pgbench_accounts WHERE aid = $1;\0";
    let parse = [message(b'P', &[b"P_0\0", sql, &[0, 0]]), message(b'S', &[])].concat();
    pair.trip(&parse, &[message(b'1', &[]), message(b'Z', &[b"I"])].concat());
    let bind = message(b'B', &[b"\0", b"P_0\0", &[0, 0, 0, 1, 0, 0, 0, 6], b"123456", &[0, 0]]);
    let request = [bind, message(b'E', &[b"\0", &[0; 4]]), message(b'S', &[])].concat();
    let mut chance = 0_u64;
    let mut next = move || {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        chance
    };
    group.bench_function("a repeated prepared statement, to one of two replicas", |b| {
        b.iter(|| {
            let mut verdict = Verdict::Read;
            let extent = pair.session.look_at_request(black_box(&request), |spoken| {
                let known = spoken.statement.and_then(|statement| {
                    Verdict::from_number(statement.judged(7)).or_else(|| {
                        let (found, ..) = Verdict::of(spoken.text, spoken.types, true, &catalogue);
                        statement.note_judged(7, found.number());
                        Some(found)
                    })
                });
                verdict = verdict.and(known.unwrap_or(Verdict::Cursor));
                true
            });
            (extent, decide(verdict, next()))
        });
    });
    group.bench_function("the choice between two replicas alone", |b| {
        b.iter(|| decide(black_box(Verdict::Read), next()))
    });
    group.finish();
}

criterion_group!(cores, routing, frames, trips, statements, reads, settings, prepared);
criterion_main!(cores);
