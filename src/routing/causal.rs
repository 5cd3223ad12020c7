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
    fn bound(&self, topology: &Topology) -> Option<Lsn> {
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
        Mark { moment: self.moment, lsn: own.and_then(|node| node.lsn), timeline: topology.timeline }
    }
}

impl Causal {
    /// The session has written: on the primary, and the answer came before `now`.
    pub fn wrote(&mut self, now: Moment) {
        // It contains what was seen before, too.
        *self = Self { floor: Some(Mark { moment: now, lsn: None, timeline: 0 }), seen: None, wrote: true };
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
        let mark = Mark { moment: now, lsn: Some(lsn), timeline: topology.timeline };
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
            Consistency::Global => Some(Mark { moment: begun, lsn: None, timeline: 0 }),
        };
        if global.is_none() && self.is_free() {
            return Ok(Fresh::ALWAYS);
        }
        let stays = self
            .seen
            .filter(|seen| global.is_none() && seen.node == node.id && seen.proven && seen.timeline == node.timeline);
        let stays = stays.map(|seen| seen.moment.at);
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
    fn exactly(self, topology: &Topology) -> Self {
        match self.bound(topology) {
            Some(lsn) => Self { lsn: Some(lsn), timeline: topology.timeline, ..self },
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
