//! Every metric: its name, unit, help and labels.
//!
//! Hot paths count in atomics of their own ([`crate::pool::Stats`]); what they counted becomes metrics when somebody
//! asks. Labels are names from the configuration or of pools, never SQL and never values.

use crate::counter::Sharded;
use metrics::{Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a metric counts.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
pub struct Metric {
    name: &'static str,
    kind: Kind,
    unit: Option<Unit>,
    help: &'static str,
}

macro_rules! metrics_table {
    ($($const:ident = $name:literal, $kind:ident, $unit:expr, $help:literal;)+) => {
        $(#[doc = $help]
        pub const $const: Metric = Metric { name: $name, kind: Kind::$kind, unit: $unit, help: $help };)+
        const ALL: &[&Metric] = &[$(&$const),+];
    };
}

metrics_table! {
    INFO = "pg_ambassador_build_info", Gauge, None, "Always 1; the version is a label.";
    UP_SINCE = "pg_ambassador_start_time_seconds", Gauge, Some(Unit::Seconds), "When the process started, in seconds since 1970.";
    CLIENTS = "pg_ambassador_clients", Gauge, None, "Clients that are logged in, by what they are doing.";
    CLIENT_LIMIT = "pg_ambassador_clients_max", Gauge, None, "Clients that there may be (max_clients).";
    CERTIFICATE_ENDS = "pg_ambassador_tls_cert_expiry_timestamp_seconds", Gauge, Some(Unit::Seconds), "When the certificate of tls.cert ends, in seconds since 1970.";
    BUFFERS = "pg_ambassador_buffer_bytes", Gauge, Some(Unit::Bytes), "What clients keep in buffers: results that they do not read, and parts of messages. Less than 16 KiB of one client is not counted.";
    BUFFER_LIMIT = "pg_ambassador_buffer_limit_bytes", Gauge, Some(Unit::Bytes), "What all clients may keep in buffers (buffer_limit); 0 is no limit.";
    BUFFERS_EXHAUSTED = "pg_ambassador_buffers_exhausted_total", Counter, None, "How often that limit was reached.";
    ACCEPTED = "pg_ambassador_connections_accepted_total", Counter, None, "Connections accepted.";
    ACCEPT_ERRORS = "pg_ambassador_accept_errors_total", Counter, None, "Connections that could not be accepted.";
    REFUSED = "pg_ambassador_clients_refused_total", Counter, None, "Logins refused, by SQLSTATE: 28P01 a wrong password, 3D000 no such database, 53300 too many clients.";
    ENDED = "pg_ambassador_clients_ended_total", Counter, None, "Clients that were ended, by SQLSTATE: 57014 a time limit, 25P03 and 25P04 limits of transactions, 57P01 a shutdown or KILL.";
    LOGIN_TIMEOUTS = "pg_ambassador_login_timeouts_total", Counter, None, "Logins that took longer than client_login_timeout.";
    VIOLATIONS = "pg_ambassador_protocol_violations_total", Counter, None, "Clients that broke the protocol.";
    CANCELS = "pg_ambassador_cancel_requests_total", Counter, None, "Cancel requests received.";
    PANICS = "pg_ambassador_panics_total", Counter, None, "Clients whose task panicked. Anything but 0 is a bug.";
    POOL_SERVERS = "pg_ambassador_pool_servers", Gauge, None, "Server connections, by what they are doing.";
    POOL_SIZE = "pg_ambassador_pool_size", Gauge, None, "Server connections that there may be (pool_size).";
    POOL_CLIENTS = "pg_ambassador_pool_clients", Gauge, None, "Clients of the pool.";
    POOL_WAITING = "pg_ambassador_pool_waiting", Gauge, None, "Clients that wait for a server connection.";
    POOL_MAX_WAIT = "pg_ambassador_pool_max_wait_seconds", Gauge, Some(Unit::Seconds), "How long the first of them has waited.";
    POOL_PAUSED = "pg_ambassador_pool_paused", Gauge, None, "1 while the pool is paused.";
    QUERIES = "pg_ambassador_queries_total", Counter, None, "Queries: simple ones, and extended-protocol batches.";
    TRANSACTIONS = "pg_ambassador_transactions_total", Counter, None, "Transactions.";
    RECEIVED = "pg_ambassador_received_bytes_total", Counter, Some(Unit::Bytes), "Bytes from clients.";
    SENT = "pg_ambassador_sent_bytes_total", Counter, Some(Unit::Bytes), "Bytes to clients.";
    QUERY_SECONDS = "pg_ambassador_query_seconds", Histogram, Some(Unit::Seconds), "From a request's arrival at a server to the end of its answer.";
    TRANSACTION_SECONDS = "pg_ambassador_transaction_seconds", Histogram, Some(Unit::Seconds), "How long clients held a server connection.";
    WAIT_SECONDS = "pg_ambassador_checkout_wait_seconds", Histogram, Some(Unit::Seconds), "How long clients waited for a server connection, of those who had to.";
    TIMEOUTS = "pg_ambassador_checkout_timeouts_total", Counter, None, "Waits that ended with the checkout timeout.";
    ASSIGNMENTS = "pg_ambassador_server_assignments_total", Counter, None, "Times a client was given a server connection.";
    CONNECT_SECONDS = "pg_ambassador_server_connect_seconds", Histogram, Some(Unit::Seconds), "How long making a server connection took, login included.";
    CONNECT_ERRORS = "pg_ambassador_server_connect_errors_total", Counter, None, "Attempts to make a server connection that failed, by SQLSTATE.";
    REFUSED_CREDENTIALS = "pg_ambassador_server_auth_failures_total", Counter, None, "Attempts that failed because the server refused what we log in with.";
    CLOSED = "pg_ambassador_server_closed_total", Counter, None, "Server connections that ended and that nobody here had ended, by reason.";
    UNKNOWN_OUTCOMES = "pg_ambassador_txn_unknown_total", Counter, None, "Transactions whose COMMIT was under way when their server was lost: nobody knows how they ended.";
    DEPARTURES = "pg_ambassador_client_abort_total", Counter, None, "Clients that left in the midst of something, by what.";
    STALE = "pg_ambassador_server_stale_total", Counter, None, "Idle connections found closed or too old when they were about to be used.";
    LOST = "pg_ambassador_server_lost_total", Counter, None, "Connections lost while a client had them.";
    LEAKS = "pg_ambassador_leaks_total", Counter, None, "Connections on which paranoid mode has found something of their last client. Anything but 0 is a bug.";
    PINS = "pg_ambassador_pins_total", Counter, None, "Times a client began to keep its server between transactions, by reason.";
    PINNED = "pg_ambassador_pinned_clients", Gauge, None, "Clients that keep their server between transactions, by reason.";
    SURVEYS = "pg_ambassador_surveys_total", Counter, None, "Questions to servers about what their clients have left there.";
    CLIENT_PARSES = "pg_ambassador_client_parses_total", Counter, None, "Named statements that clients prepared.";
    SERVER_PARSES = "pg_ambassador_server_parses_total", Counter, None, "Parse messages sent to servers for named statements.";
    BINDS = "pg_ambassador_binds_total", Counter, None, "Bind messages.";
    LOGINS = "pg_ambassador_logins_total", Counter, None, "Clients that logged in.";
    LISTENING_CONNECTIONS = "pg_ambassador_listening_connections", Gauge, None, "Server connections that listen for clients (LISTEN).";
    LISTENING_CHANNELS = "pg_ambassador_listening_channels", Gauge, None, "Channels that clients listen to over them.";
    LISTENING_CLIENTS = "pg_ambassador_listening_clients", Gauge, None, "Clients that listen over them.";
    NOTIFICATIONS = "pg_ambassador_notifications_delivered_total", Counter, None, "Notifications for clients that listen over them, counted for each client.";
    LISTENING_LOST = "pg_ambassador_listening_connections_lost_total", Counter, None, "Such connections lost while clients listened: notifications may have been missed.";
    NODE_UP = "pg_ambassador_node_up", Gauge, None, "1 while a server answers and may be used.";
    NODE_ROLE = "pg_ambassador_node_role", Gauge, None, "1 for the role that a server has.";
    NODE_LAG_BYTES = "pg_ambassador_node_lag_bytes", Gauge, Some(Unit::Bytes), "How far a replica is behind what the primary has flushed.";
    NODE_LAG_SECONDS = "pg_ambassador_node_lag_seconds", Gauge, Some(Unit::Seconds), "The same as time.";
    NODE_PROBE_SECONDS = "pg_ambassador_node_probe_seconds", Gauge, Some(Unit::Seconds), "How long a server takes to answer a probe, smoothed.";
    NODE_PROBE_AGE = "pg_ambassador_node_probe_age_seconds", Gauge, Some(Unit::Seconds), "How long ago a server last answered one.";
    NODE_OUTSTANDING = "pg_ambassador_node_outstanding", Gauge, None, "Requests that a server has under way, of databases with several servers.";
    NODE_READ_SECONDS = "pg_ambassador_node_read_seconds", Gauge, Some(Unit::Seconds), "How long reads on a replica take, smoothed.";
    NODE_SPILLED = "pg_ambassador_node_spilled", Gauge, None, "Reads that the primary has under way because every replica is busy.";
    NODE_READS = "pg_ambassador_node_reads_total", Counter, None, "Reads that a replica has served.";
    ROUTED = "pg_ambassador_routed_total", Counter, None, "Requests of databases with several servers, by where they went and why.";
    RETRIED = "pg_ambassador_retried_reads_total", Counter, None, "Reads that were sent once more, to the primary, because a replica had refused them or was lost.";
    CREDENTIAL_AGE = "pg_ambassador_credential_age_seconds", Gauge, Some(Unit::Seconds), "How long ago a credential was fetched.";
    CREDENTIAL_EXPIRES = "pg_ambassador_credential_expiry_timestamp_seconds", Gauge, Some(Unit::Seconds), "When a credential ends, in seconds since 1970.";
    CREDENTIAL_GOOD = "pg_ambassador_credential_usable", Gauge, None, "1 while there is a credential that may be presented.";
    CREDENTIAL_FETCHES = "pg_ambassador_credential_refreshes_total", Counter, None, "Fetches of a credential, by result.";
    CREDENTIAL_REFUSED = "pg_ambassador_credential_refusals_total", Counter, None, "Logins that a server refused with a credential.";
    ACCESS_LOG_DROPPED = "pg_ambassador_access_log_dropped_total", Counter, None, "Lines of the access log that were lost: written too slowly, or not at all.";
    LOG_LINES_LEFT_OUT = "pg_ambassador_log_lines_left_out_total", Counter, None, "Lines of the log that were left out, because there were too many of their kind.";
    RELOADS = "pg_ambassador_reloads_total", Counter, None, "Reloads of the configuration, by result.";
    WORKER_LAG = "pg_ambassador_worker_lag_seconds", Gauge, Some(Unit::Seconds), "How long ago the slowest worker's event loop was last seen to turn.";
}

/// Upper bounds of the buckets of wait and query times, in microseconds, and as Prometheus writes them in seconds.
const BUCKETS: [(u64, &str); 17] = [
    (100, "0.0001"),
    (250, "0.00025"),
    (500, "0.0005"),
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (5_000_000, "5"),
    (10_000_000, "10"),
    (30_000_000, "30"),
];

/// How long something took, in buckets that are fixed from the start.
///
/// The exporter's own histograms keep every sample until they are sorted into buckets later, and read the clock for each;
/// here a sample is two additions, since every query makes two or three.
#[derive(Debug, Default)]
pub struct Histogram(Sharded<Samples>);

/// What one thread has recorded.
#[derive(Debug, Default)]
struct Samples {
    /// One for each bound, and one for what is longer.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one more.
    #[inline]
    pub fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|(bound, _)| *bound < us);
        let (samples, adder) = self.0.own();
        adder.add(&samples.counts[bucket], 1);
        adder.add(&samples.sum_us, us);
    }

    /// Its lines, as Prometheus reads them.
    fn render(&self, name: &str, labels: &str, out: &mut String) {
        let mut sum = 0;
        let bounds = BUCKETS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        for (at, bound) in bounds.enumerate() {
            sum += self.0.all().map(|samples| samples.counts[at].load(Ordering::Relaxed)).sum::<u64>();
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {sum}");
        }
        let us: u64 = self.0.all().map(|samples| samples.sum_us.load(Ordering::Relaxed)).sum();
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}.{:06}", us / 1_000_000, us % 1_000_000);
        let _ = writeln!(out, "{name}_count{{{labels}}} {sum}");
    }
}

/// The histograms that are recorded to.
#[derive(Default)]
pub struct Telemetry(Mutex<Vec<Registered>>);

/// A histogram, and where its lines belong.
struct Registered {
    name: &'static str,
    labels: String,
    histogram: Arc<Histogram>,
}

/// Labels as they stand between the braces. The values are names that somebody chose: quotes in them must not end them.
fn write_labels(labels: &[(&'static str, &str)]) -> String {
    let escape = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect::<Vec<_>>().join(",")
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Telemetry")
    }
}

impl Telemetry {
    /// The histogram of these labels, which can be recorded to. It is forgotten when nobody has it any more.
    pub fn histogram(&self, metric: &Metric, labels: &[(&'static str, &str)]) -> Arc<Histogram> {
        let labels = write_labels(labels);
        let mut histograms = self.histograms();
        if let Some(known) = histograms.iter().find(|known| known.name == metric.name && known.labels == labels) {
            return Arc::clone(&known.histogram);
        }
        let histogram = Arc::<Histogram>::default();
        histograms.push(Registered { name: metric.name, labels, histogram: Arc::clone(&histogram) });
        histogram
    }

    fn histograms(&self) -> MutexGuard<'_, Vec<Registered>> {
        let mut histograms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        histograms.retain(|registered| Arc::strong_count(&registered.histogram) > 1);
        histograms
    }
}

/// Everything that is told at one moment.
///
/// It is made anew each time. What clients make up must not add up, and the counters of a pool that was forgotten begin
/// again with 0 when it comes back: Prometheus takes that for what it is, where one that stands still until the new count
/// has passed the old one would be wrong.
pub struct Page {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Page")
    }
}

impl Page {
    /// An empty one.
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        for metric in ALL {
            let (name, unit, help) = (metric.name.into(), metric.unit, metric.help.into());
            match metric.kind {
                Kind::Counter => recorder.describe_counter(name, unit, help),
                Kind::Gauge => recorder.describe_gauge(name, unit, help),
                Kind::Histogram => {}
            }
        }
        let handle = recorder.handle();
        Self { recorder, handle }
    }

    fn key(metric: &Metric, labels: &[(&'static str, &str)]) -> Key {
        let labels: Vec<Label> = labels.iter().map(|(k, v)| Label::new(*k, (*v).to_owned())).collect();
        Key::from_parts(metric.name, labels)
    }

    /// Tells what was counted elsewhere.
    pub fn set(&self, metric: &Metric, labels: &[(&'static str, &str)], value: u64) {
        self.recorder.register_counter(&Self::key(metric, labels), &METADATA).absolute(value);
    }

    /// Tells what something is now.
    pub fn gauge(&self, metric: &Metric, labels: &[(&'static str, &str)], value: f64) {
        self.recorder.register_gauge(&Self::key(metric, labels), &METADATA).set(value);
    }

    /// All of it and the histograms, as Prometheus reads it.
    pub fn render(&self, telemetry: &Telemetry) -> String {
        let mut out = self.handle.render();
        let histograms = telemetry.histograms();
        for metric in ALL.iter().filter(|metric| matches!(metric.kind, Kind::Histogram)) {
            let mut of_metric = histograms.iter().filter(|histogram| histogram.name == metric.name).peekable();
            if of_metric.peek().is_some() {
                let _ = writeln!(out, "# HELP {0} {1}\n# TYPE {0} histogram", metric.name, metric.help);
            }
            for Registered { name, labels, histogram } in of_metric {
                histogram.render(name, labels, &mut out);
            }
        }
        out
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

static METADATA: Metadata<'static> = Metadata::new("pg_ambassador", Level::INFO, None);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_sample_once_and_in_every_bucket_from_its_own_on() {
        let telemetry = Telemetry::default();
        let labels = [("database", "a\"b\\c")];
        let histogram = telemetry.histogram(&QUERY_SECONDS, &labels);
        for us in [1, 100, 101, 2_000_000, 31_000_000] {
            histogram.record(Duration::from_micros(us));
        }
        assert!(Arc::ptr_eq(&histogram, &telemetry.histogram(&QUERY_SECONDS, &labels)));
        let text = Page::new().render(&telemetry);
        for line in [
            r#"pg_ambassador_query_seconds_bucket{database="a\"b\\c",le="0.0001"} 2"#,
            r#"pg_ambassador_query_seconds_bucket{database="a\"b\\c",le="0.00025"} 3"#,
            r#"pg_ambassador_query_seconds_bucket{database="a\"b\\c",le="30"} 4"#,
            r#"pg_ambassador_query_seconds_bucket{database="a\"b\\c",le="+Inf"} 5"#,
            r#"pg_ambassador_query_seconds_sum{database="a\"b\\c"} 33.000202"#,
            r#"pg_ambassador_query_seconds_count{database="a\"b\\c"} 5"#,
            "# TYPE pg_ambassador_query_seconds histogram",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        drop(histogram);
        assert!(!Page::new().render(&telemetry).contains("query_seconds"), "nobody has it any more");
    }
}
