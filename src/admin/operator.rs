//! What an operator can see and do, whichever way it is asked for: console, signal, HTTP.

use super::command::{Command, Shutdown};
use super::explain;
use super::metrics::{self, Vitals};
use super::show::{self, Cell};
use crate::client::Context;
use crate::client::entry::Order;
use crate::config::Setting;
use crate::pool::{GateState, PoolSet, Totals};
use crate::telemetry::Telemetry;
use crate::wire::{Report, SqlState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// How often a wait for something looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What only the assembly can do.
#[derive(Debug)]
pub enum Request {
    /// Read the configuration again, with these settings on top; the answer is every fault there is.
    Reload(Vec<(String, String)>, oneshot::Sender<Result<(), Vec<String>>>),
    /// End the program.
    Shutdown(Shutdown),
}

/// What an operator can see and do.
pub struct Operator {
    /// Clients and pools.
    pub context: Arc<Context>,
    /// The metrics.
    pub telemetry: Arc<Telemetry>,
    settings: RwLock<Vec<Setting>>,
    /// Settings that SET changed, until the next RELOAD.
    overrides: Mutex<Vec<(String, String)>>,
    /// Held by who changes a setting.
    setting: tokio::sync::Mutex<()>,
    requests: UnboundedSender<Request>,
    samples: Mutex<Samples>,
    /// The listener accepts connections.
    pub listening: AtomicBool,
    /// The program is about to end.
    pub draining: AtomicBool,
    /// The start is done.
    pub started: AtomicBool,
    /// Reloads that were applied, and that were refused.
    pub reloads: [AtomicU64; 2],
    /// Lines that were left out of the log.
    pub log_lines_left_out: AtomicU64,
    /// Since when each worker's event loop was last seen to turn, in milliseconds since `born`.
    pub heartbeats: Vec<AtomicU64>,
    /// When the process started.
    pub born: Instant,
    start: Duration,
}

/// The totals at the beginning of the window of averages and of the one before.
#[derive(Debug, Default)]
struct Samples {
    last: Vec<(Arc<str>, Totals)>,
    averages: Vec<(Arc<str>, Totals)>,
    taken: Option<Instant>,
    period: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a command answers.
#[derive(Debug, Default)]
pub struct Answer {
    /// Rows, if it has any.
    pub rows: Vec<Vec<Cell>>,
    /// A remark.
    pub notice: Option<Report>,
}

impl Operator {
    /// For these parts; `workers` threads serve clients.
    pub fn new(
        context: Arc<Context>,
        telemetry: Arc<Telemetry>,
        settings: Vec<Setting>,
        requests: UnboundedSender<Request>,
        workers: usize,
    ) -> Self {
        let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self {
            context,
            telemetry,
            settings: RwLock::new(settings),
            overrides: Mutex::default(),
            setting: tokio::sync::Mutex::default(),
            requests,
            samples: Mutex::default(),
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            started: AtomicBool::new(false),
            reloads: [AtomicU64::new(0), AtomicU64::new(0)],
            log_lines_left_out: AtomicU64::new(0),
            heartbeats: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            born: Instant::now(),
            start,
        }
    }

    /// Every setting as it was resolved last.
    pub fn settings(&self) -> Vec<Setting> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over settings as they were resolved.
    pub fn set_settings(&self, settings: Vec<Setting>) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// Whether some pool is paused.
    pub fn is_paused(&self) -> bool {
        self.context.directory.has_pauses()
    }

    /// How long ago the slowest worker was last seen to turn.
    pub fn worker_lag(&self) -> Duration {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        let oldest = self.heartbeats.iter().map(|beat| beat.load(Ordering::Relaxed)).min().unwrap_or(now);
        Duration::from_millis(now.saturating_sub(oldest))
    }

    /// Notes that a worker's event loop turns.
    pub fn beat(&self, worker: usize) {
        if let Some(beat) = self.heartbeats.get(worker) {
            beat.store(u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// The metrics, as Prometheus reads them.
    pub fn metrics(&self) -> String {
        let vitals = Vitals {
            start: self.start,
            reloads: self.reloads[0].load(Ordering::Relaxed),
            failed_reloads: self.reloads[1].load(Ordering::Relaxed),
            log_lines_left_out: self.log_lines_left_out.load(Ordering::Relaxed),
            worker_lag: self.worker_lag(),
        };
        metrics::render(&self.telemetry, &self.context, vitals)
    }

    /// Takes a sample for the averages. To be called once in each period.
    pub fn sample(&self, now: Instant) {
        let totals = self.context.directory.totals();
        let mut samples = lock(&self.samples);
        let before = std::mem::replace(&mut samples.last, totals.clone());
        let since = |name: &Arc<str>, now: &Totals| {
            let old = before.iter().find(|(n, _)| n == name).map(|(_, old)| *old).unwrap_or_default();
            now.since(&old)
        };
        samples.averages = totals.iter().map(|(name, now)| (Arc::clone(name), since(name, now))).collect();
        samples.period = samples.taken.map_or_else(|| now - self.born, |taken| now - taken);
        samples.taken = Some(now);
    }

    /// For each database: totals, and what came together in the last whole period.
    pub fn statistics(&self) -> Vec<(Arc<str>, Totals, (Totals, Duration))> {
        let totals = self.context.directory.totals();
        let samples = lock(&self.samples);
        let average = |name: &Arc<str>, now: &Totals| match samples.taken {
            // Before the first period is over, it is what there was so far.
            None => (*now, self.born.elapsed()),
            Some(_) => {
                let found = samples.averages.iter().find(|(n, _)| n == name).map(|(_, totals)| *totals);
                (found.unwrap_or_default(), samples.period)
            }
        };
        totals.into_iter().map(|(name, now)| (Arc::clone(&name), now, average(&name, &now))).collect()
    }

    /// Carries out a command.
    ///
    /// # Errors
    /// What the operator is told.
    pub async fn run(&self, command: &Command, is_admin: bool) -> Result<Answer, Report> {
        if command.needs_admin() && !is_admin {
            return Err(Report::as_postgres(SqlState::INSUFFICIENT_PRIVILEGE, "admin access needed")
                .hint("Log in as one of console.admin_users."));
        }
        let mut answer = Answer::default();
        match command {
            Command::Empty => {}
            Command::Show(table) => {
                answer.rows = show::rows(*table, self);
            }
            Command::ShowSetting(name) => {
                answer.rows = vec![vec![Cell::Text(Command::driver_setting(name).to_owned())]]
            }
            Command::ExplainRoute { database, sql } => {
                let no_such = |name: &str| error(SqlState::INVALID_CATALOG_NAME, format!("no such database: {name}"));
                let rows = explain::rows(self, database.as_deref(), sql);
                answer.rows = rows.ok_or_else(|| no_such(database.as_deref().unwrap_or_default()))?;
            }
            Command::SelectOne => answer.rows = vec![vec![Cell::Int(1)]],
            Command::SetIgnored => {
                let notice = Report::as_postgres(SqlState::SUCCESSFUL_COMPLETION, "SET ignored").notice();
                answer.notice = Some(notice);
            }
            Command::Pause(database) => self.pause(database.as_deref()).await?,
            Command::Resume(database) => self.resume(database.as_deref())?,
            Command::Reconnect(database) => {
                for set in self.sets(database.as_deref())? {
                    set.pools().iter().for_each(|pool| pool.reconnect());
                }
            }
            Command::WaitClose(database) => {
                let sets = self.sets(database.as_deref())?;
                while sets.iter().any(|set| set.pools_to_the_last().iter().any(|pool| pool.has_outdated())) {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
            Command::Kill(database) => self.kill(database.as_deref())?,
            Command::KillClient(id) => {
                let clients = self.context.clients.all();
                let found = clients.iter().find(|client| client.id == *id);
                found.ok_or_else(|| error(SqlState::UNDEFINED_OBJECT, "client not found"))?.order(Order::Kill);
            }
            Command::Disable(database) => self.database(database)?.set_disabled(true),
            Command::Enable(database) => self.database(database)?.set_disabled(false),
            Command::Reload => {
                self.reload(Vec::new()).await?;
            }
            Command::Set(key, value) => self.set(key, value).await?,
            Command::Shutdown(how) => {
                let _ = self.requests.send(Request::Shutdown(*how));
            }
        }
        Ok(answer)
    }

    fn database(&self, name: &str) -> Result<Arc<crate::pool::Database>, Report> {
        let known = self.context.directory.databases().into_iter().find(|database| database.config.name == name);
        known.ok_or_else(|| error(SqlState::INVALID_CATALOG_NAME, format!("no such database: {name}")))
    }

    /// The pools of a database, by the name that clients write, or all.
    fn sets(&self, database: Option<&str>) -> Result<Vec<Arc<PoolSet>>, Report> {
        let mut sets = self.context.directory.sets();
        if let Some(name) = database {
            sets.retain(|set| *set.name.database == *name);
            if sets.is_empty() {
                self.context
                    .directory
                    .database(name)
                    .map_err(|_| error(SqlState::INVALID_CATALOG_NAME, format!("no such database: {name}")))?;
            }
        }
        Ok(sets)
    }

    async fn pause(&self, database: Option<&str>) -> Result<(), Report> {
        self.sets(database)?;
        if !self.context.directory.set_paused(database, true) {
            return Err(error(SqlState::NOT_IN_STATE, "already suspended/paused"));
        }
        let sets = self.sets(database)?;
        // Until nothing is connected, so that the servers may be stopped. RESUME ends the wait too.
        let connected = |set: &Arc<PoolSet>| {
            set.pools().iter().any(|pool| pool.gate() == GateState::Paused)
                && set.pools_to_the_last().iter().any(|pool| pool.gate() != GateState::Open && !pool.is_disconnected())
        };
        while sets.iter().any(connected) {
            sets.iter().for_each(|set| set.pools().iter().for_each(|pool| pool.drop_idle_unless_open()));
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    fn resume(&self, database: Option<&str>) -> Result<(), Report> {
        self.sets(database)?;
        if !self.context.directory.set_paused(database, false) {
            return Err(error(SqlState::NOT_IN_STATE, "pooler is not paused/suspended"));
        }
        Ok(())
    }

    fn kill(&self, database: Option<&str>) -> Result<(), Report> {
        self.sets(database)?;
        self.context.directory.set_paused(database, true);
        for client in self.context.clients.all() {
            if database.is_none_or(|name| *client.database == *name) {
                client.order(Order::Kill);
            }
        }
        Ok(())
    }

    async fn set(&self, key: &str, value: &str) -> Result<(), Report> {
        // One after the other: each is set on top of those before.
        let _turn = self.setting.lock().await;
        let setting = self.settings().into_iter().find(|setting| setting.key == key);
        let setting = setting.ok_or_else(|| {
            error(SqlState::UNDEFINED_OBJECT, format!("unknown setting: {key}")).hint("SHOW CONFIG lists them all.")
        })?;
        if !setting.reloads {
            return Err(error(SqlState::NOT_IN_STATE, format!("{key} cannot be changed while the pooler runs")));
        }
        let mut wanted = self.overrides();
        wanted.retain(|(k, _)| k != key);
        wanted.push((key.to_owned(), value.to_owned()));
        self.reload(wanted).await
    }

    /// What SET has changed.
    pub fn overrides(&self) -> Vec<(String, String)> {
        lock(&self.overrides).clone()
    }

    /// The configuration was read again, with these settings on top of it: what was SET otherwise is forgotten.
    pub fn has_reloaded(&self, overrides: &[(String, String)]) {
        *lock(&self.overrides) = overrides.to_vec();
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    pub async fn reload(&self, overrides: Vec<(String, String)>) -> Result<(), Report> {
        let (answer, answered) = oneshot::channel();
        let _ = self.requests.send(Request::Reload(overrides, answer));
        match answered.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(faults)) => {
                Err(Report::ours(SqlState::CONFIG_FILE_ERROR, "RELOAD failed, see logs for additional details")
                    .detail(faults.join("\n"))
                    .hint("Nothing has changed."))
            }
            Err(_) => Err(error(SqlState::ADMIN_SHUTDOWN, "pooler is shutting down")),
        }
    }
}

fn error(code: SqlState, message: impl Into<String>) -> Report {
    Report::as_postgres(code, message)
}
