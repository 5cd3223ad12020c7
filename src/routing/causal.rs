//! What a session has written and seen, and which nodes are fresh enough for it.
//!
//! The promise: within a session, a read sees everything that the session has committed, and never goes back in time. It
//! must cost nothing per transaction, so no server is ever asked for a session's sake. All there is are probes, numbered
//! ([`Tick`]) in the order in which they begin:
//!
//! * **A bound from the primary.** A session notes the number T of the last probe *after* something was acknowledged.
//!   Whatever the primary answers to a probe with a higher number was measured later, so its insert position X is at or
//!   past everything that was committed by then: everything the session wrote, and everything it can have seen on any node,
//!   since no replica is ahead of the primary. A replica that has replayed X therefore has all of it. The first such
//!   probe gives the lowest X; later ones are as good.
//! * **A bound from a replica.** What a session saw on a replica is also at or before that replica's own position in a later
//!   probe, if it was not restarted in between: recovery after a crash begins further back. Its probes' connection
//!   proves that, when it is older than the read.
//! * **Seen on the primary counts like written.** Else a read on the primary and the next on a replica could go back. That
//!   means that a session that reads there without a pause stays there, because its last read is always newer than the last
//!   probe. [`Causal::worth_waiting`] says when all that keeps it there is a probe, which takes a round trip to bring.
//! * **Staying.** On the replica that a session read last there is nothing to prove, as long as the connection was there
//!   already when that read ended.
//! * **Connections.** All of this is about a server process that goes on. [`Fresh::takes`] says whether a connection is old
//!   enough: one that is newer than the proof may lead to a replica that has been restarted since, and so to its past.
//! * **Timelines.** Positions of different timelines cannot be compared. After a promotion every position is void, but not
//!   the number of the probe it came from: what has survived is in the new primary from its first moment, so its answer to
//!   a probe after T bounds it as before. Until there is one, reads go to the primary. A replica of another timeline than
//!   the newest is fresh for nobody who needs anything.
//! * **Shared storage** (Aurora) has no positions. There the time that passed since is compared with the replica's lag.
//!
//! A position of another session ([`Causal::set_min_lsn`]) is known exactly, and is a bound like the others: the primary had it
//! before this session heard of it, so a later answer of the primary is one too, whichever is lower.

use super::topology::{Moment, NodeId, NodeView, Tick, Topology};
use super::{Lsn, Role};
use std::time::{Duration, Instant};

/// How much older than the replica's lag something must be where there are no positions: lags are averages.
const LAG_MARGIN: Duration = Duration::from_millis(100);

/// What reads may miss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Consistency {
    /// Nothing that the session has written or seen.
    #[default]
    Session,
    /// Whatever the replica has not replayed yet.
    Eventual,
    /// As `Session`, and after the first write all reads go to the primary.
    Primary,
    /// Nothing that anybody has committed before the read began.
    Global,
}

/// Something that must be there: all that was there at a moment, or up to an exact position if one is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    moment: Moment,
    lsn: Option<Lsn>,
    /// The timeline of that position.
    timeline: u32,
    /// No later sample can give a lower one: the first one after the moment has been looked at.
    settled: bool,
}

/// Where a session read last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    node: NodeId,
    /// When the read had ended.
    moment: Moment,
    timeline: u32,
    /// The node was known to have all that the session needed.
    proven: bool,
}

/// What a session has written and seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Causal {
    floor: Option<Mark>,
    seen: Option<Seen>,
    wrote: bool,
}

/// A node has all that a session needs, over connections that are old enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fresh {
    /// The newest connection for which this holds.
    until: Option<Instant>,
    /// It was not just assumed.
    proven: bool,
}

impl Fresh {
    /// Whatever the connection.
    pub const ALWAYS: Self = Self { until: None, proven: true };
    /// Nobody cares.
    const ASSUMED: Self = Self { until: None, proven: false };

    /// Whether this holds over a connection that was logged in at this time.
    pub fn takes(self, connected: Instant) -> bool {
        self.until.is_none_or(|until| connected <= until)
    }
}

/// Why a replica is not fresh enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NotFresh {
    /// The primary has not been probed since the session's last write or read.
    NoSample,
    /// It has not replayed enough.
    Behind,
    /// It is not known to be on the primary's timeline.
    OtherTimeline,
    /// The session has written, and is to read on the primary from then on.
    WroteOnce,
    /// It is neither the primary nor a replica as far as is known.
    UnknownRole,
}

impl NotFresh {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSample => "no sample since the session's last transaction",
            Self::Behind => "behind the session",
            Self::OtherTimeline => "on another timeline",
            Self::WroteOnce => "the session has written",
            Self::UnknownRole => "unknown role",
        }
    }
}

impl Consistency {
    /// Its name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Eventual => "eventual",
            Self::Primary => "primary",
            Self::Global => "global",
        }
    }

    /// Reads a name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Session, Self::Eventual, Self::Primary, Self::Global].into_iter().find(|mode| mode.as_str() == text)
    }
}

impl Mark {
    /// At or past everything that must be there, on the newest timeline; none if that is not known yet.
    #[inline]
    fn bound(&self, topology: &Topology) -> Option<Lsn> {
        if self.settled && self.timeline == topology.timeline {
            return self.lsn;
        }
        let exact = self.lsn.filter(|_| self.timeline == topology.timeline);
        let sampled = topology.sample_after(self.moment.tick).map(|sample| sample.insert);
        match (exact, sampled) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, other) => one.or(other),
        }
    }

    /// Both have to be there.
    fn and(self, other: Self) -> Self {
        let later = |a: Moment, b: Moment| Moment { tick: a.tick.max(b.tick), at: a.at.max(b.at) };
        let comparable = self.timeline == other.timeline;
        Self {
            moment: later(self.moment, other.moment),
            // Where one is not exact, the sum is not.
            lsn: self.lsn.zip(other.lsn).filter(|_| comparable).map(|(a, b)| a.max(b)),
            timeline: self.timeline,
            settled: self.settled && other.settled && comparable,
        }
    }
}

impl Seen {
    fn mark(&self, topology: &Topology) -> Mark {
        let own = topology.node(self.node).filter(|node| {
            node.role == Role::Replica
                && node.unbroken <= self.moment.tick
                && node.tick > self.moment.tick
                && node.timeline == topology.timeline
                && self.timeline == topology.timeline
        });
        Mark { moment: self.moment, lsn: own.and_then(|node| node.lsn), timeline: topology.timeline, settled: false }
    }
}

impl Causal {
    /// The session has written: on the primary, and the answer came before `now`.
    pub fn wrote(&mut self, now: Moment) {
        // It contains what was seen before, too.
        *self =
            Self { floor: Some(Mark { moment: now, lsn: None, timeline: 0, settled: false }), seen: None, wrote: true };
    }

    /// Before this session began, and before `now`, something was written that it must not miss.
    pub fn inherits(&mut self, now: Moment) {
        let mark = Mark { moment: now, lsn: None, timeline: 0, settled: false };
        self.floor = Some(self.floor.map_or(mark, |floor| floor.and(mark)));
    }

    /// A read has ended on this node, before `now`. `fresh` is what allowed it, and was kept over the connection's
    /// age: none if it went there regardless.
    pub fn read_on(&mut self, node: NodeId, fresh: Option<Fresh>, topology: &Topology, now: Moment) {
        let proven = fresh.is_some_and(|fresh| fresh.proven);
        if !proven && let Some(seen) = self.seen {
            // What was seen before must not be forgotten: this node may have had less.
            let mark = seen.mark(topology).exactly(topology);
            self.floor = Some(self.floor.map_or(mark, |floor| floor.exactly(topology).and(mark)));
        }
        self.seen = Some(Seen { node, moment: now, timeline: topology.timeline, proven });
    }

    /// Nothing before this position may be missing: it is from a token of another session.
    pub fn set_min_lsn(&mut self, lsn: Lsn, topology: &Topology, now: Moment) {
        let mark = Mark { moment: now, lsn: Some(lsn), timeline: topology.timeline, settled: false };
        self.floor = Some(self.floor.map_or(mark, |floor| floor.exactly(topology).and(mark)));
        // A replica that was good enough for what was needed so far need not be for this.
        if let Some(seen) = &mut self.seen {
            seen.proven = false;
        }
    }

    /// The position of everything that the session has written and seen, for another one to wait for. None if it needs
    /// nothing, or `Err` while that is not known: it is after the next probe of the primary.
    pub fn lsn(&self, topology: &Topology) -> Result<Option<Lsn>, NotFresh> {
        let marks = [self.floor, self.seen.map(|seen| seen.mark(topology))];
        let bounds = marks.into_iter().flatten().map(|mark| mark.bound(topology).ok_or(NotFresh::NoSample));
        bounds.collect::<Result<Vec<_>, _>>().map(|bounds| bounds.into_iter().max())
    }

    /// What a replica has to replay before it may have a read that began at `begun`, as far as that is known.
    pub fn awaits(&self, topology: &Topology, consistency: Consistency, begun: Moment) -> Option<Lsn> {
        match consistency {
            Consistency::Eventual => None,
            Consistency::Session | Consistency::Primary => self.lsn(topology).ok().flatten(),
            // Whatever the session itself needs was there before that.
            Consistency::Global => topology.sample_after(begun.tick).map(|sample| sample.insert),
        }
    }

    /// Keeps the exact position of what is needed as soon as it is known. Samples are forgotten after some seconds, and then
    /// a later one has to do. To be called now and then, such as before a decision.
    pub fn settle(&mut self, topology: &Topology) {
        self.floor = self.floor.map(|floor| floor.exactly(topology));
    }

    /// Where the session read last: the best place for the next read, if that is a replica.
    pub fn last(&self) -> Option<NodeId> {
        self.seen.map(|seen| seen.node)
    }

    /// Whether it has written.
    pub fn has_written(&self) -> bool {
        self.wrote
    }

    /// Whether it needs nothing: every node will do.
    pub fn is_free(&self) -> bool {
        self.floor.is_none() && self.seen.is_none()
    }

    /// Whether a node has all that a read needs which began at `begun`.
    pub fn is_fresh(
        &self,
        node: &NodeView,
        topology: &Topology,
        consistency: Consistency,
        begun: Moment,
    ) -> Result<Fresh, NotFresh> {
        if topology.is_primary(node.id) {
            return Ok(Fresh::ALWAYS);
        }
        if node.role != Role::Replica {
            return Err(NotFresh::UnknownRole);
        }
        let global = match consistency {
            Consistency::Eventual => return Ok(Fresh::ASSUMED),
            Consistency::Primary if self.wrote => return Err(NotFresh::WroteOnce),
            Consistency::Session | Consistency::Primary => None,
            Consistency::Global => Some(Mark { moment: begun, lsn: None, timeline: 0, settled: false }),
        };
        if global.is_none() && self.is_free() {
            return Ok(Fresh::ALWAYS);
        }
        let stays = self
            .seen
            .filter(|seen| global.is_none() && seen.node == node.id && seen.proven && seen.timeline == node.timeline);
        let stays = stays.map(|seen| seen.moment.at);
        // What a newer probe proves would allow newer connections, and there is none.
        if let Some(until) = stays.filter(|seen| *seen >= node.sampled) {
            return Ok(Fresh { until: Some(until), proven: true });
        }
        let needs = [self.floor, self.seen.map(|seen| seen.mark(topology)), global];
        let proven = Self::has_all(node, topology, needs).map(|()| node.sampled);
        match (stays, proven) {
            (Some(seen), Ok(sampled)) => Ok(Fresh { until: Some(seen.max(sampled)), proven: true }),
            (Some(until), Err(_)) | (None, Ok(until)) => Ok(Fresh { until: Some(until), proven: true }),
            (None, Err(why)) => Err(why),
        }
    }

    fn has_all(node: &NodeView, topology: &Topology, needs: [Option<Mark>; 3]) -> Result<(), NotFresh> {
        if node.shared_storage {
            let lag = node.lag.ok_or(NotFresh::NoSample)? + LAG_MARGIN;
            let newest = needs.into_iter().flatten().map(|mark| mark.moment.at).max();
            let is_past = |at: Instant| node.sampled.checked_duration_since(at).is_some_and(|since| since >= lag);
            return if newest.is_none_or(is_past) { Ok(()) } else { Err(NotFresh::Behind) };
        }
        if node.timeline != topology.timeline || topology.timeline == 0 {
            return Err(NotFresh::OtherTimeline);
        }
        let has = node.lsn.ok_or(NotFresh::NoSample)?;
        for mark in needs.into_iter().flatten() {
            if has < mark.bound(topology).ok_or(NotFresh::NoSample)? {
                return Err(NotFresh::Behind);
            }
        }
        Ok(())
    }

    /// Whether a session whose reads go to the primary should rather wait a moment for a probe: some replica has all that
    /// it wrote, and only what it has read on the primary since is too new to be known. Without that it would stay there
    /// for as long as it reads without a pause.
    pub fn worth_waiting(&self, topology: &Topology, consistency: Consistency) -> bool {
        let seen = match consistency {
            Consistency::Eventual => return false,
            Consistency::Primary if self.wrote => return false,
            // Each read needs a probe of its own.
            Consistency::Global => return topology.nodes.iter().any(NodeView::is_sound_replica),
            Consistency::Session | Consistency::Primary => self.seen,
        };
        seen.is_some()
            && topology
                .nodes
                .iter()
                .filter(|node| node.is_sound_replica())
                .any(|node| Self::has_all(node, topology, [self.floor, None, None]).is_ok())
    }
}

impl Mark {
    /// The same with an exact position, if that is known.
    #[inline]
    fn exactly(self, topology: &Topology) -> Self {
        if self.settled && self.timeline == topology.timeline {
            return self;
        }
        match self.bound(topology) {
            Some(lsn) => {
                let settled = topology.sample_after(self.moment.tick).is_some();
                Self { lsn: Some(lsn), timeline: topology.timeline, settled, ..self }
            }
            None => self,
        }
    }
}

impl Topology {
    /// The number of the last probe of the primary that was answered.
    pub fn last_sample(&self) -> Option<Tick> {
        self.samples.last().map(|sample| sample.tick)
    }
}

#[cfg(test)]
mod tests {
    //! A model: servers with logs that grow, are applied late, are lost in part and fork; a monitor whose probes take their
    //! time; sessions that read wherever they may. What a read misses of what its session has seen is a violation, unless
    //! the whole cluster has lost it.

    use super::*;
    use crate::routing::survey::{Answer, Known, Location, Probe, Survey};
    use std::sync::Arc;

    const NODES: usize = 4;
    const SESSIONS: usize = 6;

    struct Chance(u64);

    impl Chance {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut x = self.0;
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            usize::try_from((x ^ (x >> 31)) % n as u64).unwrap()
        }

        fn one_in(&mut self, n: usize) -> bool {
            self.below(n) == 0
        }
    }

    /// A server. Its log is what it has applied; a commit is a number of its own.
    #[derive(Clone, Default)]
    struct Server {
        log: Vec<u32>,
        /// Of a primary's log, what it would still have after a crash, and what replicas can have.
        flushed: usize,
        timeline: u32,
        /// Raised when all its connections break.
        epoch: u32,
        /// It is on a history that has ended.
        forked: bool,
        connections: Vec<Instant>,
    }

    enum Flight {
        None,
        Sent(Moment, u32),
        Measured(Moment, u32, Answer),
    }

    enum Doing {
        Nothing,
        Reading { node: usize, epoch: u32, fresh: Option<Fresh> },
        HasRead { node: usize, fresh: Option<Fresh> },
        HasWritten,
    }

    struct Session {
        causal: Causal,
        doing: Doing,
        seen: Vec<u32>,
    }

    struct World {
        chance: Chance,
        servers: Vec<Server>,
        primary: usize,
        now: Instant,
        tick: u64,
        flights: Vec<Flight>,
        links: Vec<Option<u32>>,
        survey: Survey,
        topology: Arc<Topology>,
        sessions: Vec<Session>,
        commits: u32,
        reads: [u32; 2],
    }

    fn common(a: &[u32], b: &[u32]) -> usize {
        a.iter().zip(b).take_while(|(a, b)| a == b).count()
    }

    impl World {
        fn new(seed: u64) -> Self {
            let now = Instant::now();
            let known = |at| Known { id: NodeId(at), host: "h".into(), port: 1, place: Location::default(), weight: 1 };
            let known = (0..u32::try_from(NODES).unwrap()).map(known).collect();
            let mut survey = Survey::new(Location::default(), known, Duration::ZERO, now);
            let topology = Arc::new(survey.topology());
            let session = |_| Session { causal: Causal::default(), doing: Doing::Nothing, seen: Vec::new() };
            Self {
                chance: Chance(seed),
                servers: vec![Server { timeline: 1, ..Server::default() }; NODES],
                primary: 0,
                now,
                tick: 0,
                flights: (0..NODES).map(|_| Flight::None).collect(),
                links: vec![None; NODES],
                survey,
                topology,
                sessions: (0..SESSIONS).map(session).collect(),
                commits: 0,
                reads: [0; 2],
            }
        }

        fn moment(&self) -> Moment {
            Moment { tick: Tick(self.tick), at: self.now }
        }

        fn commit(&mut self) {
            self.commits += 1;
            self.servers[self.primary].log.push(self.commits);
        }

        /// A replica applies some of what the primary has flushed.
        fn replicate(&mut self) {
            let at = self.chance.below(NODES);
            if self.chance.one_in(3) {
                let primary = &mut self.servers[self.primary];
                primary.flushed = primary.log.len();
            }
            let (primary, replica) = (self.servers[self.primary].clone(), &mut self.servers[at]);
            if at == self.primary || replica.forked {
                return;
            }
            let until = (replica.log.len() + 1 + self.chance.below(3)).min(primary.flushed);
            if until > replica.log.len() {
                replica.log = primary.log[..until].to_vec();
            }
            replica.timeline = primary.timeline;
        }

        fn probe(&mut self) {
            let at = self.chance.below(NODES);
            let server = &self.servers[at];
            self.flights[at] = match std::mem::replace(&mut self.flights[at], Flight::None) {
                Flight::None => {
                    self.tick += 1;
                    Flight::Sent(Moment { tick: Tick(self.tick), at: self.now }, server.epoch)
                }
                Flight::Sent(sent, epoch) => {
                    let lsn = |len: usize| Some(Lsn::new(1000 + len as u64));
                    let recovers = at != self.primary;
                    let answer = Answer {
                        in_recovery: recovers,
                        insert: lsn(server.log.len()).filter(|_| !recovers),
                        flush: lsn(server.flushed).filter(|_| !recovers),
                        replayed: lsn(server.log.len()).filter(|_| recovers),
                        received: lsn(server.log.len()).filter(|_| recovers),
                        timeline: server.timeline,
                        system: Some(1),
                        ..Answer::default()
                    };
                    Flight::Measured(sent, epoch, answer)
                }
                Flight::Measured(sent, epoch, answer) => {
                    if epoch == server.epoch {
                        let first = self.links[at].replace(epoch) != Some(epoch);
                        let probe = Probe { sent, took: Duration::from_millis(1), first };
                        self.survey.answered(at, probe, &answer, self.now);
                    } else {
                        self.survey.failed(at, crate::routing::Trouble::Reported("broken"), self.now);
                    }
                    self.topology = Arc::new(self.survey.topology());
                    Flight::None
                }
            };
        }

        fn disturb(&mut self) {
            let at = self.chance.below(NODES);
            let primary = self.servers[self.primary].clone();
            let server = &mut self.servers[at];
            match self.chance.below(4) {
                // A crash: what was not flushed is lost, and a replica begins further back.
                0 => {
                    let kept = if at == self.primary {
                        server.flushed
                    } else {
                        server.log.len().saturating_sub(self.chance.below(6))
                    };
                    server.log.truncate(kept);
                    server.epoch += 1;
                    server.connections.clear();
                }
                // A promotion: the old primary is gone, and comes back as a replica.
                1 if at != self.primary && !server.forked => {
                    server.timeline = primary.timeline + 1;
                    let old = std::mem::replace(&mut self.primary, at);
                    self.commit();
                    self.servers[at].flushed = self.servers[at].log.len();
                    let log = self.servers[at].log.clone();
                    for other in (0..NODES).filter(|&other| other != at) {
                        // Who has more than the new primary had cannot follow it.
                        let server = &mut self.servers[other];
                        server.forked = common(&server.log, &log) < server.log.len();
                    }
                    self.servers[old].epoch += 1;
                    self.servers[old].connections.clear();
                }
                // pg_rewind.
                _ if server.forked => {
                    server.log.truncate(common(&server.log, &primary.log));
                    server.forked = false;
                    server.epoch += 1;
                    server.connections.clear();
                }
                _ => {}
            }
        }

        fn act(&mut self) {
            let which = self.chance.below(SESSIONS);
            let now = self.moment();
            let topology = Arc::clone(&self.topology);
            match std::mem::replace(&mut self.sessions[which].doing, Doing::Nothing) {
                Doing::Nothing if self.chance.one_in(8) => {
                    if topology.primary == Some(self.primary) {
                        self.commit();
                        let log = self.servers[self.primary].log.clone();
                        let session = &mut self.sessions[which];
                        (session.seen, session.doing) = (log, Doing::HasWritten);
                    }
                }
                Doing::Nothing => self.begin_read(which, &topology, now),
                Doing::HasWritten => self.sessions[which].causal.wrote(now),
                Doing::HasRead { node, fresh } => {
                    let id = topology.nodes[node].id;
                    self.sessions[which].causal.read_on(id, fresh, &topology, now);
                }
                Doing::Reading { node, epoch, fresh } => {
                    let server = &self.servers[node];
                    if server.epoch != epoch {
                        return;
                    }
                    let session = &mut self.sessions[which];
                    let survives = common(&session.seen, &self.servers[self.primary].log);
                    let has = common(&session.seen[..survives], &server.log);
                    if fresh.is_some() {
                        assert!(
                            has == survives,
                            "session {which} misses {} of {survives} on node {node}: {:?} {topology:#?}",
                            survives - has,
                            session.causal
                        );
                        self.reads[usize::from(node != self.primary)] += 1;
                    }
                    if has == survives {
                        session.seen.clone_from(&server.log);
                    }
                    session.doing = Doing::HasRead { node, fresh };
                }
            }
        }

        fn begin_read(&mut self, which: usize, topology: &Topology, now: Moment) {
            let node = self.chance.below(NODES);
            let session = &mut self.sessions[which];
            if self.chance.one_in(2) {
                session.causal.settle(topology);
            }
            let view = &topology.nodes[node];
            let server = &mut self.servers[node];
            if server.connections.is_empty() || self.chance.one_in(4) {
                server.connections.push(self.now);
            }
            let connected = server.connections[self.chance.below(server.connections.len())];
            let usable = topology.primary == Some(node) || view.is_sound_replica();
            let fresh = session.causal.is_fresh(view, topology, Consistency::Session, now).ok();
            let fresh = fresh.filter(|fresh| usable && fresh.takes(connected));
            // What is said to be the primary may have been promoted away from since: it does not answer as one any more.
            let is_stale_primary = topology.primary == Some(node) && node != self.primary;
            if is_stale_primary || (fresh.is_none() && !self.chance.one_in(20)) {
                return;
            }
            session.doing = Doing::Reading { node, epoch: server.epoch, fresh };
        }

        fn run(&mut self, steps: usize, calm: usize) {
            for _ in 0..steps {
                self.now += Duration::from_millis(1);
                match self.chance.below(10) {
                    0..2 => self.replicate(),
                    2..6 => self.probe(),
                    _ => self.act(),
                }
                if self.chance.one_in(calm) {
                    self.disturb();
                }
            }
        }
    }

    #[test]
    fn no_session_misses_what_it_has_written_or_seen() {
        let mut reads = [0; 2];
        for seed in 0..150 {
            let mut world = World::new(seed);
            world.run(4000, [40, 200, 1_000_000][usize::try_from(seed % 3).unwrap()]);
            for (sum, count) in reads.iter_mut().zip(world.reads) {
                *sum += count;
            }
        }
        assert!(reads[0] > 10_000 && reads[1] > 10_000, "on the primary and on replicas: {reads:?}");
    }

    fn views() -> (Topology, Instant) {
        let mut world = World::new(1);
        world.servers[0].log = vec![1];
        world.servers[0].flushed = 1;
        world.servers[1].log = vec![1];
        while world.tick < 60 {
            world.now += Duration::from_millis(1);
            world.probe();
        }
        (world.survey.topology(), world.now)
    }

    #[test]
    fn a_session_that_needs_nothing_may_read_anywhere_over_any_connection() {
        let (topology, now) = views();
        let (causal, moment) = (Causal::default(), Moment { tick: Tick(1000), at: now });
        let fresh = causal.is_fresh(&topology.nodes[2], &topology, Consistency::Session, moment).unwrap();
        assert!(fresh.takes(now) && causal.is_free());
        assert_eq!(causal.lsn(&topology), Ok(None));
    }

    #[test]
    fn a_write_waits_for_a_later_sample_and_the_replica_for_its_position() {
        let (topology, now) = views();
        let check = |causal: &Causal, node: usize| {
            let begun = Moment { tick: Tick(1000), at: now };
            causal.is_fresh(&topology.nodes[node], &topology, Consistency::Session, begun)
        };
        let mut causal = Causal::default();
        causal.wrote(Moment { tick: Tick(1000), at: now });
        assert_eq!(check(&causal, 1), Err(NotFresh::NoSample));
        assert_eq!(causal.lsn(&topology), Err(NotFresh::NoSample));
        assert_eq!(check(&causal, 0), Ok(Fresh::ALWAYS));
        causal.wrote(Moment { tick: Tick(0), at: now });
        let fresh = check(&causal, 1).unwrap();
        assert!(!fresh.takes(now + Duration::from_secs(1)), "over an old connection only");
        assert_eq!(check(&causal, 2), Err(NotFresh::Behind));
        assert_eq!(causal.lsn(&topology), Ok(Some(Lsn::new(1001))));
        assert!(!causal.worth_waiting(&topology, Consistency::Session));
        // What it has then read on the primary is newer than any sample, but what it wrote is there already.
        causal.read_on(NodeId(0), Some(Fresh::ALWAYS), &topology, Moment { tick: Tick(1000), at: now });
        assert_eq!(check(&causal, 1), Err(NotFresh::NoSample));
        assert!(causal.worth_waiting(&topology, Consistency::Session));
    }

    #[test]
    fn modes_differ_in_what_a_read_may_miss() {
        let (topology, now) = views();
        let moment = |tick| Moment { tick: Tick(tick), at: now };
        let mut causal = Causal::default();
        let check = |causal: &Causal, mode, begun| {
            causal.is_fresh(&topology.nodes[1], &topology, mode, moment(begun)).map(|_| ())
        };
        assert_eq!(check(&causal, Consistency::Primary, 0), Ok(()));
        assert_eq!(check(&causal, Consistency::Global, 0), Ok(()));
        assert_eq!(check(&causal, Consistency::Global, 1000), Err(NotFresh::NoSample));
        causal.wrote(moment(0));
        assert_eq!(check(&causal, Consistency::Session, 0), Ok(()));
        assert_eq!(check(&causal, Consistency::Primary, 0), Err(NotFresh::WroteOnce));
        causal.wrote(moment(1000));
        assert_eq!(check(&causal, Consistency::Eventual, 0), Ok(()));
    }

    #[test]
    fn a_token_of_another_session_is_waited_for() {
        let (topology, now) = views();
        let moment = Moment { tick: Tick(1000), at: now };
        let check = |lsn| {
            let mut causal = Causal::default();
            causal.set_min_lsn(Lsn::new(lsn), &topology, moment);
            causal.is_fresh(&topology.nodes[1], &topology, Consistency::Session, moment).map(|_| ())
        };
        assert_eq!(check(1001), Ok(()));
        assert_eq!(check(1002), Err(NotFresh::Behind));
    }
}
