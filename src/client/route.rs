//! Where a client's next request goes, and what that means for those after it.
//!
//! The session says what the request would run, the database's catalogue whether that only reads, the topology which
//! replicas are fit, and what the client has written and seen which of those are fresh enough for it. All of that is pure
//! (`routing`); here it is put together, for one client.

use super::relay::Step;
use crate::monitor::{Busy, Facts, Watcher};
use crate::pool::{Lease, Pool, PoolSet, Routes};
use crate::routing::verdict::{self, Wish};
use crate::routing::{
    Causal, Choice, Consistency, Destination, Fresh, Leaning, Load, Lsn, Moment, NodeId, NodeView, Preference, Reason,
    Verdict, balance, choose,
};
use crate::session::settings::Settings;
use crate::session::{Extent, Refusal, Session, Spoken, invalid_value};
use crate::sql::reads::{Modes, Transaction, writes_nothing};
use crate::wire::{Report, SqlState};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a read waits for a probe at most, where nothing but that keeps it from a replica.
const FOR_A_PROBE: Duration = Duration::from_millis(20);
/// How soon a client whose wait for a probe was in vain may wait again.
const AFTER_A_VAIN_WAIT: Duration = Duration::from_millis(200);
/// How long SHOW ambassador.lsn waits for a probe.
const FOR_A_POSITION: Duration = Duration::from_secs(2);
/// How often a read that waits for a replica's connection looks whether that replica is still the place to wait for. Where
/// reads take long those who come next wait so long until they go elsewhere.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Where to go.
pub(super) enum Go {
    /// To the primary.
    Primary,
    /// To this replica.
    Replica(Arc<Pool>),
    /// Nowhere yet: the request is not all there.
    Unfinished,
    /// Nowhere yet: see [`Router::poll_wait`].
    Wait,
    /// Nowhere.
    Refuse(Report),
}

/// What one client's requests are routed by.
pub(super) struct Router {
    routes: Arc<Routes>,
    /// Of [`PoolSet::version`].
    version: u64,
    watcher: Watcher,
    facts: Option<Arc<Facts>>,
    causal: Causal,
    /// What is said of the listener that the client came in by.
    listener: Preference,
    wishes: Wishes,
    /// When the request at hand was first looked at.
    begun: Option<Moment>,
    /// It has waited for a probe that shows some replica to be fresh enough.
    waited: bool,
    /// It has waited for a connection in vain, and goes wherever there is one.
    impatient: bool,
    /// The request that was judged last is one statement that only reads.
    single_read: bool,
    /// It has waited for one that shows this of a connection that was made for it.
    waited_connected: bool,
    wait: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
    /// When it may wait again.
    waits_again: Option<Instant>,
    /// The request at hand goes to the primary, for this reason.
    once: Option<Reason>,
    plan: Option<Plan>,
    under_way: Option<UnderWay>,
    last: Option<LastRoute>,
}

/// What was decided for the request at hand.
#[derive(Debug, Clone, Copy)]
struct Plan {
    reason: Reason,
    /// It only reads, and is so many bytes long.
    reads: Option<usize>,
    replica: Option<ToReplica>,
    /// It spilled over to the primary, because all replicas are busy.
    spilled: bool,
}

#[derive(Debug, Clone, Copy)]
struct ToReplica {
    node: NodeId,
    fresh: Fresh,
    /// It begins a transaction, which stays there.
    transaction: bool,
    /// Since when it waits for a connection, or was last looked at.
    since: Instant,
}

/// What is being served.
struct UnderWay {
    node: NodeId,
    /// Nothing that was sent may write.
    reads: bool,
    /// Nothing was sent yet, or what goes out next was judged: see [`Router::follows`].
    unsent: bool,
    /// Something was sent already.
    sent: bool,
    replica: Option<Fresh>,
    busy: Busy,
    since: Instant,
}

/// Where the last request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LastRoute {
    pub(super) to: Destination,
    pub(super) node: NodeId,
    pub(super) reason: Reason,
}

/// What a client's settings say of routing, and what is said of its user and its listener where they say nothing.
struct Wishes {
    of: Settings,
    leaning: Leaning,
    consistency: Consistency,
    min_lsn: Option<Lsn>,
    read_only: bool,
    serializable: bool,
    hidden: bool,
}

fn is_on(value: Option<&str>) -> bool {
    // Any beginning of these words is one of them (parse_bool in bool.c).
    value.is_some_and(|value| {
        let value = value.trim().to_ascii_lowercase();
        let begins = |word: &str| !value.is_empty() && word.starts_with(&*value);
        begins("true") || begins("yes") || value == "on" || value == "1"
    })
}

impl Wishes {
    fn of(settings: &Settings, routes: &Routes, listener: Preference) -> Self {
        // What was reset is an empty string ever after.
        let get = |name| settings.get(name).filter(|value| !value.is_empty());
        let (user, config) = (routes.user, &routes.config);
        let consistency = get("ambassador.consistency").and_then(Consistency::parse);
        Self {
            leaning: Leaning::of(get("ambassador.route").and_then(Wish::parse), user, listener, config.route),
            consistency: Consistency::of(consistency, user, listener, config.consistency),
            min_lsn: get("ambassador.min_lsn").and_then(|text| text.trim().parse().ok()),
            read_only: is_on(get("default_transaction_read_only")),
            serializable: get("default_transaction_isolation")
                .is_some_and(|level| level.trim().eq_ignore_ascii_case("serializable")),
            hidden: get("client_encoding").is_some_and(verdict::hides_text),
            of: settings.clone(),
        }
    }
}

/// What was found out about a request.
struct Judged {
    verdict: Verdict,
    /// What its only text does to the transaction.
    transaction: Option<Transaction>,
    texts: usize,
    statements: u8,
    comment: Wish,
    learned: bool,
}

impl Router {
    /// A router for a client of these pools; none where there is nothing to choose from.
    pub(super) fn new(pools: &PoolSet, settings: &Settings, listener: Preference) -> Option<Box<Self>> {
        let version = pools.version();
        let routes = pools.routes()?;
        let mut causal = Causal::default();
        if let Some(written) = routes.record().written() {
            causal.inherits(written);
        }
        let mut router = Self {
            version,
            watcher: routes.monitor.watcher(),
            facts: routes.knowledge().newest(),
            causal,
            listener,
            wishes: Wishes::of(settings, &routes, listener),
            begun: None,
            waited: false,
            impatient: false,
            single_read: false,
            waited_connected: false,
            wait: None,
            waits_again: None,
            once: None,
            plan: None,
            under_way: None,
            last: None,
            routes,
        };
        router.note_min_lsn();
        Some(Box::new(router))
    }

    /// Takes over what has changed. False if there is nothing to choose from any more.
    fn refresh(&mut self, pools: &PoolSet, settings: &Settings) -> bool {
        if self.version != pools.version() {
            let version = pools.version();
            let Some(routes) = pools.routes() else { return false };
            self.version = version;
            self.watcher = routes.monitor.watcher();
            self.wishes = Wishes::of(settings, &routes, self.listener);
            self.facts = None;
            self.routes = routes;
        }
        let knowledge = self.routes.knowledge();
        knowledge.touch();
        if knowledge.version() != self.facts.as_ref().map_or(0, |facts| facts.version) {
            self.facts = knowledge.newest();
        }
        if !self.wishes.of.same(settings) {
            let before = self.wishes.min_lsn;
            self.wishes = Wishes::of(settings, &self.routes, self.listener);
            if self.wishes.min_lsn != before {
                self.note_min_lsn();
            }
        }
        true
    }

    fn note_min_lsn(&mut self) {
        if let Some(lsn) = self.wishes.min_lsn {
            let now = self.routes.monitor.now();
            self.causal.set_min_lsn(lsn, self.watcher.get(), now);
        }
    }

    /// Says where the request goes that `input` begins with. To be asked while no server is attached.
    pub(super) fn decide(&mut self, pools: &PoolSet, session: &Session, input: &[u8], now: Instant) -> Go {
        if !self.refresh(pools, session.settings()) {
            self.forget_request();
            return Go::Primary;
        }
        if self.wait.is_some() {
            return Go::Wait;
        }
        self.routes.monitor.touch(now);
        if let Some(reason) = self.once {
            let reads = match session.look_at_request(input, |_| true) {
                Extent::Whole(len) if reason.is_of_a_read() => Some(len),
                Extent::Whole(_) | Extent::Unfinished | Extent::Enough | Extent::Opaque => None,
            };
            return self.choose_primary(reason, reads);
        }
        let (reason, transaction, len) = match self.judge_request(session, input) {
            Candidate::Replica { reason, transaction, len, single } => {
                self.single_read = single && reason == Reason::Read;
                (reason, transaction, len)
            }
            Candidate::Primary { reason, reads } => return self.choose_primary(reason, reads),
            Candidate::Unfinished => return Go::Unfinished,
        };
        let begun = *self.begun.get_or_insert_with(|| self.routes.monitor.moment(now));
        if self.wishes.consistency == Consistency::Primary && self.causal.has_written() {
            return self.choose_primary(Reason::HasWritten, Some(len));
        }
        self.causal.settle(self.watcher.get());
        let choice = self.choose(begun, !self.impatient, now);
        let topology = self.watcher.get();
        let fresh = |node: &_| self.causal.is_fresh(node, topology, self.wishes.consistency, begun);
        match choice {
            Choice::Replica(id) | Choice::Queue(id) => {
                let proof = topology.node(id).and_then(|node| fresh(node).ok());
                let (Some(fresh), Some(pool)) = (proof, self.routes.pool_of(id).cloned()) else {
                    return self.choose_primary(Reason::NoneFresh, Some(len));
                };
                let replica = ToReplica { node: id, fresh, transaction, since: now };
                self.plan = Some(Plan { reason, reads: Some(len), replica: Some(replica), spilled: false });
                Go::Replica(pool)
            }
            Choice::Primary(why @ balance::WhyPrimary::NoneFresh) if self.may_wait(now) => {
                self.wait_for_freshness(begun, now).unwrap_or_else(|| self.choose_primary(why.into(), Some(len)))
            }
            Choice::Primary(why) => {
                let go = self.choose_primary(why.into(), Some(len));
                if let Some(plan) = &mut self.plan {
                    plan.spilled = why == balance::WhyPrimary::AllBusy;
                }
                go
            }
            Choice::Refuse(why @ balance::WhyPrimary::NoneFresh) if self.may_wait(now) => {
                self.wait_for_freshness(begun, now).unwrap_or_else(|| self.refuse(why))
            }
            Choice::Refuse(why) => self.refuse(why),
        }
    }

    fn choose(&mut self, begun: Moment, patient: bool, now: Instant) -> Choice {
        let topology = self.watcher.get();
        let (causal, consistency, routes) = (&self.causal, self.wishes.consistency, &self.routes);
        let fresh = |node: &NodeView| causal.is_fresh(node, topology, consistency, begun).is_ok();
        let load = |node: &NodeView| match routes.pool_of(node.id) {
            Some(pool) if topology.is_primary(node.id) => pool.load_of_primary(),
            Some(pool) => pool.load(),
            None => Load::default(),
        };
        choose(topology, &routes.config.policy, now, fastrand::u64(..), patient, fresh, load)
    }

    fn refuse(&mut self, why: balance::WhyPrimary) -> Go {
        self.forget_request();
        self.routes.record().count(Destination::Nowhere, why.into());
        Go::Refuse(
            Report::ours(SqlState::CANNOT_CONNECT_NOW, format!("no replica may serve this read: {}", why.as_str()))
                .hint("replica_fallback = \"error\" keeps it from the primary."),
        )
    }

    fn choose_primary(&mut self, reason: Reason, reads: Option<usize>) -> Go {
        self.plan = Some(Plan { reason, reads, replica: None, spilled: false });
        Go::Primary
    }

    fn may_wait(&self, now: Instant) -> bool {
        !self.waited && self.waits_again.is_none_or(|at| at <= now)
    }

    /// Waits for a probe that proves some replica to be fresh enough, if that is worth it.
    fn wait_for_freshness(&mut self, begun: Moment, now: Instant) -> Option<Go> {
        let consistency = self.wishes.consistency;
        let limit = match self.causal.worth_waiting(self.watcher.get(), consistency) {
            true => FOR_A_PROBE.max(self.routes.config.wait_for_replica),
            false => self.routes.config.wait_for_replica,
        };
        if limit.is_zero() {
            return None;
        }
        let (monitor, mut causal, deadline) = (Arc::clone(&self.routes.monitor), self.causal, now + limit);
        self.waited = true;
        self.wait = Some(Box::pin(async move { monitor.freshness(&mut causal, consistency, begun, deadline).await }));
        Some(Go::Wait)
    }

    /// Whether the request at hand waits for a probe.
    pub(super) fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// Goes on with that wait; progress when it is over.
    pub(super) fn poll_wait(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(wait) = &mut self.wait else { return Step::Stuck };
        let Poll::Ready(is_fresh) = wait.as_mut().poll(cx) else { return Step::Stuck };
        self.wait = None;
        if !is_fresh {
            self.waits_again = Some(Instant::now() + AFTER_A_VAIN_WAIT);
        }
        Step::Progress
    }

    // ------------------------------------------------------------------------------------------ what a request is

    fn judge_request(&self, session: &Session, input: &[u8]) -> Candidate {
        let primary = |reason| Candidate::Primary { reason, reads: None };
        let begin = session.deferred_begin().map(|text| self.modes_of(text, session));
        if let Some(modes) = begin
            && !modes.allow_replica(self.wishes.read_only, self.wishes.serializable)
            && modes.read_only.is_some()
        {
            return primary(Reason::Transaction);
        }
        let judged = self.judge(session, input);
        let (judged, len) = match judged {
            (_, Extent::Opaque) => return primary(Reason::Opaque),
            (judged, Extent::Whole(len)) => (judged, len),
            (judged, Extent::Enough) => (judged, usize::MAX),
            (judged, Extent::Unfinished) if begin.is_none() || judged.verdict == Verdict::Read => {
                return Candidate::Unfinished;
            }
            (_, Extent::Unfinished) => return primary(Reason::Opaque),
        };
        let leaning = self.wishes.leaning.unless(judged.comment);
        if let Some(begun) = begin {
            return self.judge_transaction(begun, &judged, leaning);
        }
        match judged.verdict.destination(leaning, self.wishes.serializable, judged.learned) {
            (Destination::Replica, reason) => {
                Candidate::Replica { reason, transaction: false, len, single: judged.statements == 1 }
            }
            (Destination::Primary | Destination::Nowhere, reason) => {
                let reads = match judged.verdict {
                    Verdict::Read => Some(len),
                    Verdict::Write(reason) if reason.may_write_nothing() => self.writes_nothing(session, input),
                    Verdict::Write(_) | Verdict::Cursor => None,
                };
                Candidate::Primary { reason, reads }
            }
        }
    }

    /// How long a request is that is no read, if it writes nothing all the same: then it counts as one.
    #[cold]
    fn writes_nothing(&self, session: &Session, input: &[u8]) -> Option<usize> {
        let (strings, catalogue) = (session.standard_strings(), self.facts.as_ref().map(|facts| &facts.catalogue));
        match session.look_at_request(input, |spoken| writes_nothing(spoken.text, strings, catalogue)) {
            Extent::Whole(len) => Some(len),
            Extent::Unfinished | Extent::Enough | Extent::Opaque => None,
        }
    }

    /// The first request of a transaction that no server has seen.
    fn judge_transaction(&self, begun: Modes, judged: &Judged, leaning: Leaning) -> Candidate {
        let primary = |reason| Candidate::Primary { reason, reads: None };
        let Wishes { read_only, serializable, .. } = self.wishes;
        let set = match judged.transaction {
            Some(Transaction::Set(modes)) if judged.texts == 1 => Some(modes),
            Some(_) | None => None,
        };
        let modes = match set {
            Some(set) => Modes {
                read_only: set.read_only.or(begun.read_only),
                serializable: set.serializable.or(begun.serializable),
                others: set.others || begun.others,
            },
            None => begun,
        };
        if !modes.allow_replica(read_only, serializable) {
            return primary(Reason::Transaction);
        }
        if leaning.route == Wish::Primary {
            return primary(leaning.by);
        }
        match judged.verdict {
            Verdict::Write(reason) if set.is_none() => primary(reason),
            Verdict::Write(_) | Verdict::Read | Verdict::Cursor => {
                Candidate::Replica { reason: Reason::ReadOnlyTransaction, transaction: true, len: 0, single: false }
            }
        }
    }

    fn modes_of(&self, begin: &[u8], session: &Session) -> Modes {
        if begin.is_empty() {
            return Modes::default();
        }
        let access = crate::sql::access(begin, session.standard_strings(), &crate::sql::reads::Plain);
        match access.transaction {
            Some(Transaction::Begin(modes)) if access.statements == 1 => modes,
            _ => Modes { others: true, ..Modes::default() },
        }
    }

    fn judge(&self, session: &Session, input: &[u8]) -> (Judged, Extent) {
        let strings = session.standard_strings();
        let mut judged = Judged {
            verdict: Verdict::Read,
            transaction: None,
            texts: 0,
            statements: 0,
            comment: Wish::Auto,
            learned: false,
        };
        let record = self.routes.record();
        let extent = session.look_at_request(input, |spoken| {
            judged.texts += 1;
            if judged.comment == Wish::Auto {
                judged.comment = verdict::hint(spoken.text);
            }
            let (verdict, transaction, statements) = self.judge_text(&spoken, strings);
            judged.statements = judged.statements.saturating_add(statements);
            if judged.texts == 1 {
                judged.transaction = transaction;
            }
            if verdict == Verdict::Read && record.has_learned() {
                judged.learned |= record.knows(verdict::fingerprint(spoken.text, strings), Instant::now());
            }
            judged.verdict = judged.verdict.and(verdict);
            match judged.verdict {
                Verdict::Write(reason) => reason.is_doubt(),
                Verdict::Read | Verdict::Cursor => true,
            }
        });
        (judged, extent)
    }

    #[inline]
    fn judge_text(&self, spoken: &Spoken<'_>, strings: bool) -> (Verdict, Option<Transaction>, u8) {
        let write = |reason| (Verdict::Write(reason), None, 1);
        if self.wishes.hidden {
            return write(Reason::Encoding);
        }
        let Some(facts) = &self.facts else { return write(Reason::NotKnownYet) };
        if let Some(statement) = spoken.statement
            && let Some(verdict) = Verdict::from_number(statement.judged(facts.version))
        {
            return (verdict, None, 1);
        }
        let (verdict, transaction, statements) = Verdict::of(spoken.text, spoken.types, strings, &facts.catalogue);
        if let Some(statement) = spoken.statement
            && transaction.is_none()
        {
            statement.note_judged(facts.version, verdict.number());
        }
        (verdict, transaction, statements)
    }

    // ---------------------------------------------------------------------------------------------- what comes of it

    /// Whether the request at hand goes to a replica.
    #[inline]
    pub(super) fn is_for_replica(&self) -> bool {
        self.plan.is_some_and(|plan| plan.replica.is_some())
    }

    /// Whether the request at hand is one statement that was proven to only read.
    #[inline]
    pub(super) fn is_single_read(&self) -> bool {
        self.single_read
    }

    /// Whether this connection may serve the request at hand. If not, the request waits for a probe that is younger than
    /// the connection, which goes back to its pool until then; or, if it has waited before, it goes to the primary.
    pub(super) fn takes(&mut self, lease: &Lease, now: Instant) -> bool {
        let Some(Plan { replica: Some(replica), .. }) = self.plan else { return true };
        let (node, connected) = (lease.pool().node.id, lease.entry.connected);
        let takes = replica.node == node && replica.fresh.takes(connected);
        let may_wait = !self.waited_connected && self.waits_again.is_none_or(|at| at <= now);
        if !takes && replica.node == node && may_wait {
            let limit = FOR_A_PROBE.max(self.routes.config.wait_for_replica);
            let (monitor, deadline) = (Arc::clone(&self.routes.monitor), now + limit);
            self.waited_connected = true;
            self.wait = Some(Box::pin(async move { monitor.sampled_since(node, connected, deadline).await }));
        } else if !takes {
            self.once = Some(Reason::NewConnection);
            self.routes.monitor.want_sample();
        }
        takes
    }

    /// The request at hand goes out on this connection, with all of the `pending` bytes that the client has sent. `Some` if that is a replica's; then whether it begins a transaction.
    pub(super) fn begins(&mut self, lease: &Lease, pending: usize, now: Instant) -> Option<bool> {
        let plan = self.plan.take();
        self.forget_request();
        let node = lease.pool().node.id;
        let Plan { reason, reads, replica, spilled } =
            plan.unwrap_or(Plan { reason: Reason::Opaque, reads: None, replica: None, spilled: false });
        let meter = &lease.pool().node.meter;
        let busy = if spilled { meter.begin_spilled() } else { meter.begin() };
        let to = if replica.is_some() { Destination::Replica } else { Destination::Primary };
        self.routes.record().count(to, reason);
        self.last = Some(LastRoute { to, node, reason });
        let (reads, replica_fresh) = (reads == Some(pending), replica.map(|r| r.fresh));
        self.under_way =
            Some(UnderWay { node, reads, unsent: true, sent: false, replica: replica_fresh, busy, since: now });
        replica.map(|replica| replica.transaction)
    }

    /// The request at hand is over, or never went anywhere: nothing of it is to be taken for the next one's.
    pub(super) fn forget_request(&mut self) {
        (self.plan, self.once, self.begun) = (None, None, None);
        (self.waited, self.waited_connected, self.impatient) = (false, false, false);
    }

    /// Whether what was sent to the server that the client has writes nothing.
    #[inline]
    pub(super) fn has_only_read(&self) -> bool {
        self.under_way.as_ref().is_some_and(|under_way| under_way.sent && under_way.reads)
    }

    /// The server is kept for a moment after what it was lent for, to be asked what was set, and the client goes on with
    /// these bytes. To be asked while nothing is owed to the client.
    pub(super) fn follows(&mut self, session: &Session, input: &[u8]) {
        let writes_nothing = self.writes_nothing(session, input) == Some(input.len());
        if let Some(under_way) = &mut self.under_way {
            under_way.unsent = writes_nothing;
        }
    }

    /// Where the last request went.
    pub(super) fn last(&self) -> Option<LastRoute> {
        self.last
    }

    /// Something goes out. Behind what was judged comes what nobody has asked about.
    #[inline]
    pub(super) fn sends(&mut self) {
        if let Some(UnderWay { reads, unsent, sent, .. }) = &mut self.under_way {
            *reads &= std::mem::take(unsent);
            if std::mem::replace(sent, true)
                && let Some(last) = &mut self.last
            {
                last.reason = Reason::Kept;
            }
        }
    }

    /// All is answered, and the connection goes; or it is gone.
    pub(super) fn ends(&mut self, now: Instant) {
        let Some(UnderWay { node, reads, replica, busy, since, .. }) = self.under_way.take() else { return };
        let moment = self.routes.monitor.moment(now);
        match replica {
            Some(fresh) => {
                busy.finish(now.saturating_duration_since(since));
                self.causal.read_on(node, Some(fresh), self.watcher.get(), moment);
            }
            None if reads => self.causal.read_on(node, Some(Fresh::ALWAYS), self.watcher.get(), moment),
            None => {
                self.causal.wrote(moment);
                self.routes.record().note_written(moment);
            }
        }
    }

    /// The request was taken back from a replica: it goes to the primary now.
    pub(super) fn taken_back(&mut self, refusal: Refusal, request: &[u8], session: &Session, now: Instant) {
        let record = self.routes.record();
        record.count_retry();
        self.once = Some(match refusal {
            Refusal::Recovery => Reason::Refused,
            Refusal::Conflict | Refusal::Unknown => Reason::Refused,
            Refusal::Lost => Reason::Lost,
        });
        if refusal == Refusal::Recovery {
            let strings = session.standard_strings();
            session.look_at_request(request, |spoken| {
                record.learn(verdict::fingerprint(spoken.text, strings), spoken.text, refusal.as_str(), now);
                true
            });
        }
    }

    /// Somebody has defined something.
    pub(super) fn defined(&self) {
        self.routes.knowledge().is_outdated();
    }

    /// Whether the request at hand waits for a replica's connection, and since when it was last looked at.
    pub(super) fn waits_for_replica(&self) -> Option<Instant> {
        self.plan.and_then(|plan| plan.replica).map(|replica| replica.since)
    }

    /// Whether to go on waiting for the replica's connection: whether that replica may still have it, and no other place has
    /// room. One that `is_dialled` is waited for in any case: who left each time would never have it, however soon it comes.
    pub(super) fn should_wait_on(&mut self, is_dialled: bool, now: Instant) -> bool {
        let (Some(begun), Some(Plan { replica: Some(replica), .. })) = (self.begun, &mut self.plan) else {
            return true;
        };
        replica.since = now;
        let waits_for = replica.node;
        let node = self.watcher.get().node(waits_for);
        let is_fit = node.is_some_and(|node| balance::is_fit(node, &self.routes.config.policy).is_ok());
        if is_dialled {
            return is_fit;
        }
        match self.choose(begun, false, now) {
            Choice::Replica(_) | Choice::Primary(_) => {
                self.impatient = true;
                false
            }
            Choice::Queue(_) | Choice::Refuse(_) => is_fit,
        }
    }

    /// The replica that it waited for has no connection for it.
    pub(super) fn no_connection(&mut self) {
        if let Some(Plan { replica: Some(replica), .. }) = self.plan {
            self.routes.monitor.suspect(replica.node, "no connection comes about");
            self.once = Some(Reason::NoConnection);
        }
    }

    /// A connection in use was lost.
    pub(super) fn lost(&self, node: NodeId) {
        self.routes.monitor.suspect(node, "a connection in use was lost");
    }

    /// The position of all that the client has written and seen: none while that is waited for, see
    /// [`Router::poll_wait`].
    pub(super) fn lsn(&mut self, now: Instant) -> Option<Result<Lsn, Report>> {
        let topology = self.watcher.get();
        self.causal.settle(topology);
        match self.causal.lsn(topology) {
            Ok(lsn) => {
                self.waited = false;
                Some(Ok(lsn.unwrap_or(Lsn::new(0))))
            }
            Err(why) if self.waited => {
                self.waited = false;
                let report = Report::ours(SqlState::NOT_IN_STATE, "the position of this session is not known");
                Some(Err(report.detail(why.as_str()).hint("The primary answers no probes right now.")))
            }
            Err(_) => {
                let (monitor, mut causal) = (Arc::clone(&self.routes.monitor), self.causal);
                self.waited = true;
                self.wait = Some(Box::pin(async move { monitor.position(&mut causal, now + FOR_A_POSITION).await }));
                None
            }
        }
    }
}

/// The row that SHOW LAST ROUTE gives.
pub(super) fn last_route(router: Option<&Router>) -> Vec<(&'static str, Option<String>)> {
    let last = router.and_then(|router| router.last.map(|last| (last, router)));
    let node = |(last, router): (LastRoute, &Router)| {
        router.routes.pool_of(last.node).map(|pool| pool.node.address.to_string())
    };
    match (last, router) {
        (Some(last), _) => vec![
            ("destination", Some(last.0.to.as_str().to_owned())),
            ("node", node(last)),
            ("reason", Some(last.0.reason.as_str().to_owned())),
        ],
        (None, Some(_)) => vec![("destination", None), ("node", None), ("reason", Some("no request yet".to_owned()))],
        (None, None) => vec![
            ("destination", Some("primary".to_owned())),
            ("node", None),
            ("reason", Some("nothing to choose from: one server, or session mode".to_owned())),
        ],
    }
}

/// What one of our settings is where the client has not set it.
pub(super) fn default_of(name: &str, pools: &PoolSet, listener: Preference) -> String {
    let (database, user) = (pools.database(), pools.preference());
    let config = &database.config.routing;
    match name {
        "route" => Leaning::of(None, user, listener, config.route).route.as_str().to_owned(),
        "consistency" => Consistency::of(None, user, listener, config.consistency).as_str().to_owned(),
        _ => "0/0".to_owned(),
    }
}

/// Whether a client may set one of our settings to a value.
pub(super) fn check_setting(name: &str, value: &str) -> Result<(), Report> {
    let (is_right, hint) = match name {
        "route" => (Wish::parse(value).is_some(), "Available values: auto, primary, replica."),
        "consistency" => (Consistency::parse(value).is_some(), "Available values: session, eventual, primary, global."),
        "min_lsn" => (value.trim().parse::<Lsn>().is_ok(), "Write a position of the log, such as 0/16B3748."),
        _ => {
            let message = format!("unrecognized configuration parameter \"ambassador.{name}\"");
            return Err(Report::as_postgres(SqlState::UNDEFINED_OBJECT, message)
                .hint("There are ambassador.route, ambassador.consistency and ambassador.min_lsn."));
        }
    };
    if is_right || value == "default" { Ok(()) } else { Err(invalid_value(name, value, hint)) }
}

/// Where a request may go, as far as it alone goes.
enum Candidate {
    /// `single`: its texts are one statement.
    Replica {
        reason: Reason,
        transaction: bool,
        len: usize,
        single: bool,
    },
    Primary {
        reason: Reason,
        reads: Option<usize>,
    },
    Unfinished,
}
