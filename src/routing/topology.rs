//! A cluster as it was last seen: an immutable snapshot, which every decision takes one of.

use super::Lsn;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A node, for as long as the program runs: the same address has the same number in all clusters and reloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// The number of a probe. It is drawn before the probe is sent, so what had happened when somebody read the number of
/// the last one has happened for every probe with a higher number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(pub u64);

/// When something had happened: the last probe that was on its way then, and the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The last probe that had been begun.
    pub tick: Tick,
    /// The time.
    pub at: Instant,
}

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// It takes writes.
    Primary,
    /// It replays them.
    Replica,
    /// It was not asked yet, or what it said is not believed any more.
    #[default]
    Unknown,
}

/// What is the matter with a node that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// No connection comes about.
    Unreachable(Arc<str>),
    /// It refuses our login.
    Login(Arc<str>),
    /// The connection broke.
    Lost(Arc<str>),
    /// No answer came in time.
    Silent(Duration),
    /// It answered something else.
    Answer(Arc<str>),
    /// A client's connection has seen it.
    Reported(&'static str),
}

/// Why a node that answers is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It belongs to another cluster.
    OtherSystem(u64),
    /// It is on an older timeline than another node: what it has may be lost already.
    OldTimeline(u32),
    /// Another node of the same timeline takes writes too.
    TwoPrimaries,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    /// It was not asked yet.
    #[default]
    New,
    /// It answers.
    Up,
    /// It did not answer once, or a client has seen trouble: it is asked again at once.
    Suspect(Trouble),
    /// It does not answer.
    Down(Trouble),
    /// It answers, and is not to be used.
    Refused(Refusal),
}

/// A node as it was last seen.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Which it is.
    pub id: NodeId,
    /// Where it is.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// Where it stands, as far as somebody has said so.
    pub zone: Option<Arc<str>>,
    /// The region of that.
    pub region: Option<Arc<str>>,
    /// Its share of the reads, beside others of its tier.
    pub weight: u16,
    /// What it is for.
    pub role: Role,
    /// How it is.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// Since when it gets reads again, if it was away: its share grows from there.
    pub returned: Option<Instant>,
    /// The timeline it is known to be on; 0 is none.
    pub timeline: u32,
    /// The cluster it belongs to.
    pub system: Option<u64>,
    /// How far it has replayed; a primary's insert position, as replicas can reach it.
    pub lsn: Option<Lsn>,
    /// How far it is behind the primary.
    pub lag_bytes: Option<u64>,
    /// The same as time.
    pub lag: Option<Duration>,
    /// Somebody has paused its replay.
    pub paused: bool,
    /// Shared storage: there is no replay position, and `lag` is all that is known (Aurora).
    pub shared_storage: bool,
    /// How long probes take, smoothed; zero if none was answered.
    pub rtt: Duration,
    /// How near it is: 0 is nearest.
    pub tier: u8,
    /// The last probe that it answered.
    pub tick: Tick,
    /// When that was sent.
    pub sampled: Instant,
    /// The first probe that it answered without an interruption since: while that lasts it was not restarted.
    pub unbroken: Tick,
}

/// What the primary answered to one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The probe.
    pub tick: Tick,
    /// When it was sent.
    pub at: Instant,
    /// Every commit that had been acknowledged then is at or before this position.
    pub insert: Lsn,
    /// Replicas can be as far as this.
    pub flush: Lsn,
}

/// A cluster as it was last seen.
#[derive(Debug, Clone)]
pub struct Topology {
    /// Counts the snapshots.
    pub generation: u64,
    /// The nodes, in the order in which they are configured.
    pub nodes: Box<[NodeView]>,
    /// Which of them is the primary, by its place in `nodes`.
    pub primary: Option<usize>,
    /// The highest timeline that was seen; 0 is none.
    pub timeline: u32,
    /// The cluster's identifier.
    pub system: Option<u64>,
    /// What the primary has answered lately, oldest first. All of one node and timeline.
    pub samples: Box<[Sample]>,
}

impl Topology {
    /// A node.
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The primary.
    pub fn primary(&self) -> Option<&NodeView> {
        self.nodes.get(self.primary?)
    }

    /// Whether there is no primary because several servers claim to be, and nothing says which of them is right: they are of one
    /// timeline, or of clusters of which none has more nodes.
    pub fn is_ambiguous(&self) -> bool {
        let claims = |node: &NodeView| match &node.state {
            State::Refused(Refusal::TwoPrimaries) => true,
            State::Refused(Refusal::OtherSystem(_)) => self.system.is_none() && node.role == Role::Primary,
            State::Refused(Refusal::OldTimeline(_)) | State::New | State::Up | State::Suspect(_) | State::Down(_) => {
                false
            }
        };
        self.primary.is_none() && self.nodes.iter().any(claims)
    }

    /// Whether this node is the primary.
    pub fn is_primary(&self, id: NodeId) -> bool {
        self.primary().is_some_and(|primary| primary.id == id)
    }

    /// The first answer of the primary to a probe that began after this one.
    #[inline]
    pub fn sample_after(&self, tick: Tick) -> Option<&Sample> {
        // Who reads without a pause asks for one that is not there yet.
        if self.samples.last()?.tick <= tick {
            return None;
        }
        self.samples.get(self.samples.partition_point(|sample| sample.tick <= tick))
    }
}

impl NodeView {
    /// Whether reads may go there as far as health goes: an answering replica of the right timeline.
    pub fn is_sound_replica(&self) -> bool {
        self.role == Role::Replica && matches!(self.state, State::Up)
    }
}

impl Role {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Unknown => "unknown",
        }
    }
}

impl State {
    /// Its name.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Up => "up",
            Self::Suspect(_) => "suspect",
            Self::Down(_) => "down",
            Self::Refused(_) => "refused",
        }
    }

    /// Why it is so, where there is a reason.
    pub fn why(&self) -> Option<String> {
        match self {
            Self::New | Self::Up => None,
            Self::Suspect(trouble) | Self::Down(trouble) => Some(trouble.to_string()),
            Self::Refused(refusal) => Some(refusal.to_string()),
        }
    }

    /// Whether it answers and may be used.
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "unreachable: {why}"),
            Self::Login(why) => write!(f, "the login is refused: {why}"),
            Self::Lost(why) => write!(f, "the connection broke: {why}"),
            Self::Silent(limit) => write!(f, "no answer within {limit:?}"),
            Self::Answer(why) => write!(f, "unexpected answer: {why}"),
            Self::Reported(what) => write!(f, "reported by a client's connection: {what}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherSystem(system) => write!(f, "it belongs to another cluster: system identifier {system}"),
            Self::OldTimeline(timeline) => {
                write!(
                    f,
                    "timeline {timeline} is older than another node's (a role with pg_read_all_stats sees it change at once)"
                )
            }
            Self::TwoPrimaries => f.write_str("another node of the same timeline takes writes too"),
        }
    }
}
