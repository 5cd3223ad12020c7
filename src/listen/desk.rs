//! The task that owns one listening connection: takes the clients' wishes, tells the server, and hands the mail out.

use super::board::{Board, REQUEST};
use super::line::{Line, Lost, Message, OpenError};
use super::{Channel, Facts, Habits, Hubs, Mailbox, lock};
use crate::pool::{PoolName, PoolSet};
use crate::wire::{Report, SqlState};
use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;

/// The pause after a failed attempt to connect: the first, and the longest (faults.md I23).
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How often it is looked whether another server has become the primary.
const LOOK_FOR_PRIMARY: Duration = Duration::from_secs(1);
/// A connection that lived for so long was a good one.
const LASTING: Duration = Duration::from_secs(10);
/// What is waited for when nothing is due.
const FAR: Duration = Duration::from_secs(3600);

/// What is asked of a desk.
#[derive(Debug)]
pub(super) enum Command {
    Listen(Pending),
    /// The client with this mailbox does not listen to these any more.
    Unlisten(u64, Vec<Channel>),
    /// End, and drop this when it is done.
    Close(oneshot::Sender<()>),
}

/// A subscription that has not come true yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) pools: Arc<PoolSet>,
    pub(super) channels: Vec<Channel>,
    /// With which they were opened.
    pub(super) opening: u64,
    /// It asks for no channel, but for an answer of the connection there is.
    pub(super) is_barrier: bool,
    /// And that this is notified before.
    pub(super) notify: Option<Channel>,
    pub(super) asked: Instant,
    pub(super) deadline: Instant,
    /// It was refused together with others: to find out whose fault that was, each is tried alone.
    pub(super) alone: bool,
    pub(super) done: oneshot::Sender<Result<(), Report>>,
}

impl Pending {
    fn fail(self, report: Report) {
        self.mailbox.undo(self.channels, self.opening);
        let _ = self.done.send(Err(report));
    }

    fn expire(self, cause: Option<&str>) {
        let (pool, waited) = (&self.pools.name, self.asked.elapsed().as_millis());
        let cause = cause.map(|cause| format!(" cause={cause}")).unwrap_or_default();
        let report = Report::ours(SqlState::CANNOT_CONNECT_NOW, "no listening connection")
            .detail(format!("pool={pool} waited_ms={waited}{cause}"))
            .hint(
                "See the pooler's log for attempts that failed. Where server connections are limited, there must be room \
                 for one more than the pools need.",
            );
        self.fail(report);
    }
}

/// A request that the server has not answered yet.
#[derive(Debug)]
struct Flight {
    sent: Instant,
    /// Channels that the server is asked for.
    listen: Vec<Channel>,
    /// Channels that are wanted and that the server tells us of already.
    kept: Vec<Channel>,
    unlisten: Vec<Channel>,
    pending: Vec<Pending>,
    /// It is for those who listened on the connection that was lost.
    again: bool,
}

/// The task.
#[derive(Debug)]
pub(super) struct Desk {
    hubs: Weak<Hubs>,
    habits: Habits,
    facts: Arc<Facts>,
    inbox: UnboundedReceiver<Command>,
    board: Board,
    /// The pools of each client that listens or wants to, by the id of its mailbox.
    pools: HashMap<u64, Arc<PoolSet>>,
    pending: VecDeque<Pending>,
    flight: Option<Flight>,
    /// What is still to be listened to on a new connection, for those who were there before.
    again: VecDeque<Vec<Channel>>,
    /// Since when the server tells us of channels that nobody listens to.
    stale: Option<Instant>,
    /// Since when nobody listens.
    idle: Option<Instant>,
    /// When the connection was lost that is not back yet.
    lost: Option<Instant>,
    /// Attempts to connect that have failed, or led to a connection that did not last, since the last one that did; and
    /// why.
    failures: u32,
    cause: Option<String>,
    closing: Option<oneshot::Sender<()>>,
}

/// Why a connection is not served any more.
enum End {
    Lost(Lost),
    /// Nobody has needed it for long enough.
    Idle,
    /// Nobody will need it any more.
    Over,
}

/// An attempt to connect, and as whom.
type Dial = Pin<Box<dyn Future<Output = (PoolName, Result<Line, OpenError>)> + Send>>;

impl Drop for Desk {
    /// It ends when nobody needs it, or with the program. Otherwise it is a bug, which must not look like silence.
    fn drop(&mut self) {
        if self.closing.is_none() {
            self.board.abandon();
        }
    }
}

impl Desk {
    pub(super) fn new(hubs: &Arc<Hubs>, facts: Arc<Facts>, inbox: UnboundedReceiver<Command>) -> Self {
        Self {
            hubs: Arc::downgrade(hubs),
            habits: hubs.habits,
            facts,
            inbox,
            board: Board::new(Arc::clone(&hubs.budget)),
            pools: HashMap::new(),
            pending: VecDeque::new(),
            flight: None,
            again: VecDeque::new(),
            stale: None,
            idle: None,
            lost: None,
            failures: 0,
            cause: None,
            closing: None,
        }
    }

    /// Serves for as long as anybody may need it.
    pub(super) async fn run(mut self) {
        while self.wait_for_clients().await {
            let Some(mut line) = self.connect().await else { continue };
            self.begin(&line);
            let end = self.serve(&mut line).await;
            *lock(&self.facts.connection) = None;
            match end {
                End::Lost(why) => self.mourn(line, &why),
                End::Idle | End::Over => {
                    self.failures = 0;
                    line.close();
                }
            }
        }
    }

    fn is_needed(&self) -> bool {
        self.board.clients() > 0 || !self.pending.is_empty()
    }

    /// Waits until somebody listens; false if nobody ever will.
    async fn wait_for_clients(&mut self) -> bool {
        while self.closing.is_none() {
            if self.is_needed() {
                return true;
            }
            match tokio::time::timeout(self.habits.idle, self.inbox.recv()).await {
                Ok(Some(command)) => self.handle(command),
                Ok(None) => return false,
                Err(_) => {
                    let retired = self.hubs.upgrade().is_none_or(|hubs| hubs.retire(&self.facts.key));
                    if retired {
                        return false;
                    }
                }
            }
        }
        false
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Listen(pending) => {
                self.pools.insert(pending.mailbox.id, Arc::clone(&pending.pools));
                self.pending.push_back(pending);
            }
            Command::Unlisten(id, channels) => self.unlisten(id, &channels),
            Command::Close(done) => self.closing = Some(done),
        }
        self.count();
    }

    fn unlisten(&mut self, id: u64, channels: &[Channel]) {
        for channel in channels {
            self.board.remove(channel, id);
        }
        let gone: HashSet<&Channel> = channels.iter().collect();
        let in_flight = self.flight.iter_mut().flat_map(|flight| &mut flight.pending);
        for pending in self.pending.iter_mut().chain(in_flight).filter(|pending| pending.mailbox.id == id) {
            pending.channels.retain(|channel| !gone.contains(channel));
        }
        let all = std::mem::take(&mut self.pending).into_iter();
        let (idle, waiting): (Vec<Pending>, Vec<Pending>) = all.partition(|p| p.channels.is_empty() && !p.is_barrier);
        self.pending = waiting.into();
        for pending in idle {
            let _ = pending.done.send(Ok(()));
        }
        self.forget_pools(id);
    }

    /// Drops the pools of a client that neither listens nor wants to.
    fn forget_pools(&mut self, id: u64) {
        let in_flight = self.flight.iter().flat_map(|flight| &flight.pending);
        if !self.board.has_client(id) && !self.pending.iter().chain(in_flight).any(|p| p.mailbox.id == id) {
            self.pools.remove(&id);
        }
    }

    fn count(&self) {
        self.facts.channels.store(self.board.channels(), Ordering::Relaxed);
        self.facts.clients.store(self.board.clients(), Ordering::Relaxed);
    }

    // ------------------------------------------------------------------------------------------------- connecting

    /// Pools to connect with: those of any client serve all. Of those that were not tried, the first by name, so that it
    /// is the same one each time.
    fn role(&self, tried: &HashMap<PoolName, Report>) -> Option<Arc<PoolSet>> {
        let untried = self.pools.values().filter(|pools| !tried.contains_key(&pools.name));
        untried.min_by(|a, b| a.name.cmp(&b.name)).cloned()
    }

    /// Connects, for as long as anybody listens.
    async fn connect(&mut self) -> Option<Line> {
        // Roles that could not connect in this round, and why; and whether waiting would help any of them.
        let (mut tried, mut hopeless) = (HashMap::new(), true);
        let mut dial = self.dial(self.role(&tried)?, self.pause());
        while self.is_needed() && self.closing.is_none() {
            let deadline = self.pending.iter().map(|pending| pending.deadline).min();
            tokio::select! {
                command = self.inbox.recv() => {
                    self.handle(command?);
                    self.fail_barriers();
                }
                (role, opened) = &mut dial => match opened {
                    Ok(line) => return Some(line),
                    Err(error) => {
                        self.note_failure(&error);
                        hopeless &= error.is_final();
                        tried.insert(role, error.report());
                        let mut next = self.role(&tried);
                        // A role that may not log in says nothing about the next one.
                        let at_once = next.is_some() && error.is_final();
                        if next.is_none() {
                            if hopeless {
                                self.give_up(&tried);
                            }
                            (tried, hopeless) = (HashMap::new(), true);
                            next = self.role(&tried);
                        }
                        dial = self.dial(next?, if at_once { Duration::ZERO } else { self.pause() });
                    }
                },
                () = sleep_until(deadline) => self.expire(),
            }
        }
        None
    }

    fn dial(&self, pools: Arc<PoolSet>, pause: Duration) -> Dial {
        let encoding = Arc::clone(&self.facts.key.encoding);
        Box::pin(async move {
            tokio::time::sleep(pause).await;
            (pools.name.clone(), Line::open(pools, encoding).await)
        })
    }

    /// How long to wait with the next attempt: anywhere between half and all of what doubles with each failure.
    fn pause(&self) -> Duration {
        let (first, longest) = PAUSE;
        let doublings = self.failures.checked_sub(1).map(|more| first.saturating_mul(1 << more.min(16)).min(longest));
        doublings.unwrap_or_default().mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    fn note_failure(&mut self, error: &OpenError) {
        tracing::debug!(database = %self.facts.key.database, %error, "no listening connection");
        self.cause = Some(error.to_string());
        self.failures = self.failures.saturating_add(1);
    }

    /// No role can connect, and waiting does not help: tells everybody what came of their own.
    fn give_up(&mut self, tried: &HashMap<PoolName, Report>) {
        for pending in std::mem::take(&mut self.pending) {
            match tried.get(&pending.pools.name).cloned() {
                Some(report) => {
                    let id = pending.mailbox.id;
                    pending.fail(report);
                    self.forget_pools(id);
                }
                None => self.pending.push_back(pending),
            }
        }
    }

    /// Fails what only the connection that is gone could have answered.
    fn fail_barriers(&mut self) {
        let all = std::mem::take(&mut self.pending).into_iter();
        let (barriers, waiting): (Vec<Pending>, Vec<Pending>) = all.partition(|pending| pending.is_barrier);
        self.pending = waiting.into();
        for barrier in barriers {
            barrier.expire(self.cause.as_deref());
        }
    }

    /// Fails the subscriptions that have waited for too long.
    fn expire(&mut self) {
        let now = Instant::now();
        let all = std::mem::take(&mut self.pending).into_iter();
        let (mut late, waiting): (Vec<Pending>, Vec<Pending>) = all.partition(|pending| pending.deadline <= now);
        self.pending = waiting.into();
        if let Some(flight) = &mut self.flight {
            late.extend(flight.pending.extract_if(.., |pending| pending.deadline <= now));
        }
        for pending in late {
            let id = pending.mailbox.id;
            pending.expire(self.cause.as_deref());
            self.forget_pools(id);
        }
    }

    // ---------------------------------------------------------------------------------------------------- serving

    fn begin(&mut self, line: &Line) {
        self.cause = None;
        self.again = self.board.start_over().into();
        let node: Arc<str> = line.pool.node.address.to_string().into();
        tracing::debug!(database = %self.facts.key.database, %node, pid = line.pid(), "listening");
        *lock(&self.facts.connection) = Some((node, line.pid(), Instant::now()));
        self.note_return(line);
    }

    /// Everybody who listened before the connection was lost does again.
    fn note_return(&mut self, line: &Line) {
        if self.again.is_empty()
            && let Some(lost) = self.lost.take()
        {
            let (database, node) = (&self.facts.key.database, &line.pool.node.address);
            let (channels, after) = (self.board.channels(), lost.elapsed());
            tracing::info!(%database, %node, channels, ?after, "the listening connection is back");
        }
    }

    async fn serve(&mut self, line: &mut Line) -> End {
        let (pool, generation) = (Arc::clone(&line.pool), line.generation());
        let mut outdated = std::pin::pin!(pool.outdated(generation));
        loop {
            if self.closing.is_some() {
                return End::Over;
            }
            if let Some(end) = self.keep_time(line) {
                return end;
            }
            if self.flight.is_none() {
                self.launch(line);
            }
            let due = self.due(line);
            tokio::select! {
                turned = line.turn() => {
                    if let Err(end) = turned.and_then(|()| self.read(line)) {
                        return End::Lost(end);
                    }
                }
                command = self.inbox.recv() => match command {
                    Some(command) => self.take(command),
                    None => return End::Over,
                },
                why = &mut outdated => return End::Lost(Lost::Outdated(why)),
                () = sleep_until(due) => {}
            }
        }
    }

    /// Takes a command and those that have come with it, so that they go to the server together.
    fn take(&mut self, command: Command) {
        /// Commands taken before mail is looked at again.
        const TOGETHER: usize = 1000;
        self.handle(command);
        for _ in 0..TOGETHER {
            let Ok(command) = self.inbox.try_recv() else { return };
            self.handle(command);
        }
    }

    /// What time alone brings.
    fn keep_time(&mut self, line: &Line) -> Option<End> {
        let now = Instant::now();
        let is_over =
            |since: Option<Instant>, limit| since.is_some_and(|at| now.saturating_duration_since(at) >= limit);
        self.expire();
        self.stale = if self.board.has_stale() { self.stale.or(Some(now)) } else { None };
        self.idle = if self.is_needed() || self.flight.is_some() { None } else { self.idle.or(Some(now)) };
        if is_over(self.flight.as_ref().map(|flight| flight.sent), self.habits.patience) {
            return Some(End::Lost(Lost::Silent(self.habits.patience)));
        }
        if is_over(self.idle, self.habits.idle) {
            self.idle = None;
            return Some(End::Idle);
        }
        let primary = line.pools.primary();
        if primary.is_some_and(|primary| !Arc::ptr_eq(&primary, &line.pool)) {
            return Some(End::Lost(Lost::Elsewhere));
        }
        None
    }

    /// When to look at the time again.
    fn due(&self, line: &Line) -> Option<Instant> {
        let Habits { idle, linger, probe, patience } = self.habits;
        let in_flight = self.flight.iter().flat_map(|flight| &flight.pending);
        let deadlines = self.pending.iter().chain(in_flight).map(|pending| pending.deadline).min();
        let answer = self.flight.as_ref().map(|flight| flight.sent + patience);
        let alive = self.flight.is_none().then_some(line.heard + probe);
        let stale = self.stale.filter(|_| self.flight.is_none()).map(|since| since + linger);
        let follow = (line.pools.pools().len() > 1).then(|| Instant::now() + LOOK_FOR_PRIMARY);
        [deadlines, answer, alive, stale, follow, self.idle.map(|since| since + idle)].into_iter().flatten().min()
    }

    /// Sends what is to be sent.
    fn launch(&mut self, line: &mut Line) {
        let now = Instant::now();
        let (mut listen, mut kept, mut pending, again) = match self.again.pop_front() {
            Some(channels) => (channels, Vec::new(), Vec::new(), true),
            None => (Vec::new(), Vec::new(), Vec::new(), false),
        };
        let size = if again { REQUEST } else { self.board_pending(&mut listen, &mut kept, &mut pending) };
        let alone = pending.iter().any(|pending| pending.alone);
        let linger = self.stale.is_none_or(|since| now.saturating_duration_since(since) < self.habits.linger);
        let unlisten =
            if alone || again || (pending.is_empty() && linger) { Vec::new() } else { self.board.take_stale(size) };
        let probe = now.saturating_duration_since(line.heard) >= self.habits.probe;
        if listen.is_empty() && pending.is_empty() && unlisten.is_empty() && !probe {
            return;
        }
        for channel in &unlisten {
            self.board.set_listened(channel, false);
        }
        let notify: Vec<Channel> = pending.iter().filter_map(|pending| pending.notify.clone()).collect();
        line.request(&listen, &unlisten, &notify);
        self.flight = Some(Flight { sent: now, listen, kept, unlisten, pending, again });
    }

    /// Chooses the subscriptions that go with the next request: all of one, and as many as fit. Gives its size in bytes.
    fn board_pending(
        &mut self,
        listen: &mut Vec<Channel>,
        kept: &mut Vec<Channel>,
        chosen: &mut Vec<Pending>,
    ) -> usize {
        let (mut size, mut seen) = (0, HashSet::new());
        while size < REQUEST
            && let Some(next) = self.pending.pop_front_if(|next| !next.alone || chosen.is_empty())
        {
            for channel in next.channels.iter().filter(|channel| seen.insert(Arc::clone(channel))) {
                if self.board.needs_listen(channel) {
                    size += channel.len() + 16;
                    listen.push(Arc::clone(channel));
                } else {
                    self.board.keep(channel);
                    kept.push(Arc::clone(channel));
                }
            }
            let alone = next.alone;
            chosen.push(next);
            if alone {
                break;
            }
        }
        size
    }

    fn read(&mut self, line: &mut Line) -> Result<(), Lost> {
        let mut lost = None;
        let mut answered_again = false;
        let (mut notifications, mut delivered) = (0, 0);
        line.messages(|message| match message {
            Message::Notification { channel, frame } => {
                let reached = self.board.deliver(channel, frame) as u64;
                notifications += u64::from(reached > 0);
                delivered += reached;
            }
            Message::Answer(answer) => match self.land(answer) {
                Ok(again) => answered_again |= again,
                Err(why) => lost = Some(why),
            },
            Message::Remark(report) => {
                let database = &self.facts.key.database;
                tracing::warn!(%database, sqlstate = %report.code, "a notification was lost: {}", report.message);
            }
        })?;
        self.facts.notifications.fetch_add(notifications, Ordering::Relaxed);
        self.facts.delivered.fetch_add(delivered, Ordering::Relaxed);
        if let Some(hubs) = self.hubs.upgrade() {
            hubs.totals.delivered.fetch_add(delivered, Ordering::Relaxed);
        }
        if let Some(lost) = lost {
            if matches!(lost, Lost::Standby) {
                line.pools.forget_primary();
            }
            return Err(lost);
        }
        if answered_again {
            self.note_return(line);
        }
        Ok(())
    }

    /// The server has answered. Says whether that was for those who had listened before a loss.
    fn land(&mut self, answer: Result<(), Report>) -> Result<bool, Lost> {
        let Some(flight) = self.flight.take() else { return Ok(false) };
        let again = flight.again;
        match answer {
            Ok(()) => self.fulfil(flight),
            Err(report) => self.refused(flight, report)?,
        }
        self.count();
        Ok(again)
    }

    fn fulfil(&mut self, flight: Flight) {
        for channel in flight.listen.iter().chain(&flight.kept) {
            self.board.set_listened(channel, true);
        }
        for pending in flight.pending {
            for channel in &pending.channels {
                self.board.add(channel, &pending.mailbox, pending.opening);
            }
            let _ = pending.done.send(Ok(()));
            self.forget_pools(pending.mailbox.id);
        }
    }

    /// Nothing of the request was done: its statements are one transaction.
    fn refused(&mut self, mut flight: Flight, report: Report) -> Result<(), Lost> {
        let is_standby = report.code == SqlState::READ_ONLY_TRANSACTION;
        if is_standby || flight.again {
            self.flight = Some(flight);
            return Err(if is_standby { Lost::Standby } else { Lost::Fatal(report) });
        }
        for channel in flight.unlisten.iter().chain(&flight.kept) {
            self.board.set_listened(channel, true);
        }
        if flight.pending.len() == 1
            && let Some(pending) = flight.pending.pop()
        {
            let id = pending.mailbox.id;
            pending.fail(report);
            self.forget_pools(id);
            return Ok(());
        }
        for mut pending in flight.pending.into_iter().rev() {
            pending.alone = true;
            self.pending.push_front(pending);
        }
        Ok(())
    }

    /// The connection is lost. Who listens goes on listening, on the next one.
    fn mourn(&mut self, line: Line, why: &Lost) {
        let (database, node) = (&self.facts.key.database, &line.pool.node.address);
        let (channels, clients) = (self.board.channels(), self.board.clients());
        if channels > 0 {
            tracing::warn!(
                %database, %node, channels, clients,
                "the listening connection is lost ({why}): notifications that are sent until it is back may be lost"
            );
            self.lost.get_or_insert_with(Instant::now);
            self.facts.lost.fetch_add(1, Ordering::Relaxed);
            if let Some(hubs) = self.hubs.upgrade() {
                hubs.totals.lost.fetch_add(1, Ordering::Relaxed);
            }
        } else {
            tracing::debug!(%database, %node, %why, "the listening connection is lost");
        }
        self.cause = Some(why.to_string());
        // One that has lasted is replaced at once: every moment without it costs notifications.
        let lasted = line.age() >= LASTING;
        self.failures = if lasted { 0 } else { self.failures.saturating_add(1) };
        if let Some(flight) = self.flight.take() {
            for pending in flight.pending.into_iter().rev() {
                self.pending.push_front(pending);
            }
        }
        self.fail_barriers();
        line.close();
    }
}

/// Waits until then, or long enough for nobody to mind.
async fn sleep_until(at: Option<Instant>) {
    tokio::time::sleep_until(at.unwrap_or_else(|| Instant::now() + FAR).into()).await;
}
