//! The access log: a line of JSON for each request, written by a thread of its own.
//!
//! Whoever serves clients must never wait for a disk or for a reader of a pipe: lines go into a queue with a limit, and what
//! does not fit is counted and lost. Lines hold no SQL, no constant and no parameter; what they hold that clients choose is
//! escaped.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime};

/// Lines that may wait to be written: a few MB, and what a disk takes a moment for.
const QUEUE: usize = 4096;
/// Lines that are written at once.
const BATCH: usize = 256;
/// Bytes of a name that somebody chose. PostgreSQL's own have 63 at most.
const LONGEST_NAME: usize = 256;

/// What is logged, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// Where it goes.
    pub target: Target,
    /// Requests that took less are not logged, unless they failed; zero for all.
    pub min_duration: Duration,
    /// How many of those that did not fail are logged, in percent.
    pub sample: u8,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The standard output stream.
    Stdout,
    /// The standard error stream.
    Stderr,
    /// This file, at its end.
    File(PathBuf),
}

/// A running access log.
#[derive(Debug)]
pub struct AccessLog {
    queue: SyncSender<Order>,
    min_us: AtomicU64,
    sample: AtomicU8,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    dropped: AtomicU64,
    /// Somebody was told that lines are lost.
    told: AtomicBool,
    /// The file is to be opened anew.
    reopen: AtomicBool,
}

enum Order {
    Line(Vec<u8>),
    /// Look whether there is something else to do.
    Wake,
    /// End, and say so.
    End(std::sync::mpsc::Sender<()>),
}

/// Who has a line written about it.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a> {
    /// When the request came.
    pub at: SystemTime,
    /// The client's address; none for a unix socket.
    pub client: Option<std::net::SocketAddr>,
    /// The client's number, as in the log and on the console.
    pub session_id: u64,
    /// The process id that the client was told.
    pub pid: i32,
    /// The database that it asked for.
    pub database: &'a str,
    /// The user that it logged in as.
    pub user: &'a str,
    /// `application_name`.
    pub application: &'a str,
    /// The role of the server: `primary` or `replica`; none if no server was needed, or none was to be had.
    pub role: Option<&'static str>,
    /// The server's address.
    pub server: Option<&'a str>,
    /// Why it went there.
    pub reason: Option<&'static str>,
    /// The fingerprint of the statement: [`crate::routing::verdict::fingerprint`].
    pub fingerprint: Option<u64>,
    /// How many requests the line is about: pipelined ones share one.
    pub requests: u64,
    /// How long it waited until it was sent to a server.
    pub wait: Duration,
    /// How long from there to the end of its answer.
    pub execution: Duration,
    /// Rows that the server says it has returned, changed or copied.
    pub rows: u64,
    /// Bytes of the client, and to it.
    pub bytes: (u64, u64),
    /// The SQLSTATE of the first error.
    pub sqlstate: Option<crate::wire::SqlState>,
    /// Trace and span, as they stand in a `traceparent`.
    pub trace: Option<(&'a str, &'a str)>,
}

/// A moment as RFC 3339 has it, in UTC with microseconds.
fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, micros) = (since.as_secs(), since.subsec_micros());
    // A civil date from days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms"), for dates after it.
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// A string as JSON has it; at most so much of it as a name may have.
fn quoted(text: &str) -> String {
    let text = &text[..text.floor_char_boundary(LONGEST_NAME)];
    serde_json::to_string(text).unwrap_or_else(|_| "null".to_owned())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Line<'_> {
    /// The line, with its end.
    pub fn render(&self) -> Vec<u8> {
        let text = |text: Option<&str>| text.map_or_else(|| "null".to_owned(), quoted);
        let client = self.client.map_or_else(|| "unix".to_owned(), |address| address.to_string());
        let fingerprint = self.fingerprint.map(|print| format!("{print:016x}"));
        let (trace, span) = self.trace.unzip();
        let mut line = Vec::with_capacity(640);
        // A vector takes whatever is written to it.
        let _ = writeln!(
            line,
            "{{\"ts\":{},\"client\":{},\"session_id\":{},\"pid\":{},\"db\":{},\"user\":{},\"app\":{},\"pool\":{},\
             \"role\":{},\"server\":{},\"route_reason\":{},\"stmt_fp\":{},\"requests\":{},\"wait_us\":{},\"exec_us\":{},\
             \"rows\":{},\"bytes_in\":{},\"bytes_out\":{},\"sqlstate\":{},\"trace_id\":{},\"span_id\":{}}}",
            quoted(&timestamp(self.at)),
            quoted(&client),
            self.session_id,
            self.pid,
            quoted(self.database),
            quoted(self.user),
            quoted(self.application),
            quoted(&format!("{}/{}", self.database, self.user)),
            text(self.role),
            text(self.server),
            text(self.reason),
            text(fingerprint.as_deref()),
            self.requests,
            micros(self.wait),
            micros(self.execution),
            self.rows,
            self.bytes.0,
            self.bytes.1,
            text(self.sqlstate.map(|code| code.to_string()).as_deref()),
            text(trace),
            text(span),
        );
        line
    }
}

impl AccessLog {
    /// Opens it, and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened, or there is no thread to be had.
    pub fn start(config: &AccessLogConfig) -> io::Result<Arc<Self>> {
        let output = Output::open(&config.target)?;
        let (queue, orders) = sync_channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let log = Self {
            queue,
            min_us: AtomicU64::new(micros(config.min_duration)),
            sample: AtomicU8::new(config.sample),
            shared: Arc::clone(&shared),
        };
        let target = config.target.clone();
        let write = move || write(&orders, output, &target, &shared);
        std::thread::Builder::new().name("access-log".into()).spawn(write)?;
        Ok(Arc::new(log))
    }

    /// Takes over what may change while it runs.
    pub fn adopt(&self, config: &AccessLogConfig) {
        self.min_us.store(micros(config.min_duration), Ordering::Relaxed);
        self.sample.store(config.sample, Ordering::Relaxed);
    }

    /// Whether a request that took so long is to be logged.
    pub fn wants(&self, took: Duration, failed: bool) -> bool {
        let sample = || self.sample.load(Ordering::Relaxed);
        failed
            || (micros(took) >= self.min_us.load(Ordering::Relaxed)
                && (sample() >= 100 || fastrand::u8(..100) < sample()))
    }

    /// Has a line written. Never waits: where there is no room, it is lost.
    pub fn write(&self, line: &Line<'_>) {
        if self.queue.try_send(Order::Line(line.render())).is_err() {
            self.shared.lost(1, "they are written too slowly");
        }
    }

    /// Opens the file anew: somebody has moved it away.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Relaxed);
        // Where there is no room it has enough to do, and looks by itself.
        let _ = self.queue.try_send(Order::Wake);
    }

    /// How many lines were lost.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Writes what is left, and ends; but takes no longer than this.
    pub fn close(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let (ended, end) = channel();
        let mut order = Order::End(ended);
        // A full queue is being written.
        while let Err(TrySendError::Full(back)) = self.queue.try_send(order) {
            if Instant::now() >= until {
                return;
            }
            order = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = end.recv_timeout(until.saturating_duration_since(Instant::now()));
    }
}

impl Shared {
    fn lost(&self, lines: u64, why: &str) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "lines of the access log are lost: {why}; this is said once, pg_ambassador_access_log_dropped_total counts them"
            );
        }
    }
}

/// Where lines go, open.
enum Output {
    Stdout,
    Stderr,
    File(File),
}

impl Output {
    fn open(target: &Target) -> io::Result<Self> {
        match target {
            Target::Stdout => Ok(Self::Stdout),
            Target::Stderr => Ok(Self::Stderr),
            Target::File(path) => open(path).map(Self::File),
        }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines).and_then(|()| stdout.flush())
            }
            Self::Stderr => io::stderr().lock().write_all(lines),
            Self::File(file) => file.write_all(lines),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    // To open a pipe for writing alone would wait for its reader.
    let is_pipe = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    OpenOptions::new().append(true).create(true).read(is_pipe).mode(0o640).open(path)
}

/// Writes what comes, until nobody is left who could send something.
fn write(orders: &Receiver<Order>, mut output: Output, target: &Target, shared: &Shared) {
    let mut lines = Vec::new();
    // Of a write that failed half a line may stand in the file.
    let mut half_written = false;
    let mut ends = None;
    while ends.is_none()
        && let Ok(first) = orders.recv()
    {
        lines.clear();
        if std::mem::take(&mut half_written) {
            lines.push(b'\n');
        }
        let mut count = 0;
        for order in std::iter::once(first).chain(orders.try_iter()) {
            match order {
                Order::Line(line) => {
                    lines.extend_from_slice(&line);
                    count += 1;
                }
                Order::Wake => {}
                Order::End(ended) => {
                    ends = Some(ended);
                    break;
                }
            }
            if count >= BATCH {
                break;
            }
        }
        if shared.reopen.swap(false, Ordering::Relaxed) {
            match Output::open(target) {
                Ok(opened) => output = opened,
                Err(error) => tracing::error!(%error, "cannot open the access log anew: the old file goes on"),
            }
        }
        if let Err(error) = output.write(&lines) {
            shared.lost(count as u64, &error.to_string());
            half_written = true;
        }
    }
    if let Some(ended) = ends {
        let _ = ended.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_as_rfc_3339_has_it() {
        for (micros, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001Z"),
            (1_735_689_599_999_999, "2024-12-31T23:59:59.999999Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(SystemTime::UNIX_EPOCH + Duration::from_micros(micros)), expected);
        }
    }

    #[test]
    fn a_line_is_json_whatever_names_clients_choose() {
        let hostile = "x\",\"user\":\"root\"}\n{\\\u{0}\u{2028}\u{7f}é";
        let long = "é".repeat(1000);
        let line = Line {
            at: SystemTime::UNIX_EPOCH,
            client: None,
            session_id: 7,
            pid: -1,
            database: hostile,
            user: &long,
            application: hostile,
            role: None,
            server: Some("[::1]:5432"),
            reason: Some("read"),
            fingerprint: Some(255),
            requests: 1,
            wait: Duration::from_nanos(1_999),
            execution: Duration::from_secs(2),
            rows: 3,
            bytes: (4, 5),
            sqlstate: Some(crate::wire::SqlState::QUERY_CANCELED),
            trace: None,
        };
        let text = line.render();
        assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["db"], hostile);
        assert_eq!(value["app"], hostile);
        assert_eq!(value["user"].as_str().unwrap().len(), LONGEST_NAME);
        assert_eq!((&value["client"], &value["stmt_fp"]), (&"unix".into(), &"00000000000000ff".into()));
        assert_eq!((&value["wait_us"], &value["exec_us"]), (&1.into(), &2_000_000.into()));
        assert_eq!((&value["sqlstate"], &value["role"]), (&"57014".into(), &serde_json::Value::Null));
    }

    #[test]
    fn what_is_slow_or_fails_is_logged_and_of_the_rest_a_sample() {
        let config = AccessLogConfig { target: Target::Stderr, min_duration: Duration::from_millis(10), sample: 100 };
        let log = AccessLog::start(&config).unwrap();
        let ms = Duration::from_millis;
        assert!(log.wants(ms(10), false) && !log.wants(ms(9), false) && log.wants(ms(0), true));
        log.adopt(&AccessLogConfig { min_duration: Duration::ZERO, sample: 0, ..config.clone() });
        assert!(!log.wants(ms(10), false) && log.wants(ms(0), true));
        log.adopt(&AccessLogConfig { min_duration: Duration::ZERO, sample: 50, ..config });
        let logged = (0..1000).filter(|_| log.wants(ms(1), false)).count();
        assert!((300..700).contains(&logged), "{logged}");
    }
}
