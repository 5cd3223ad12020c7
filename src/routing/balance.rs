//! The choice of a replica among those that are fit.
//!
//! Tiers first: the nearest one that has room. Within it the better of two that chance has drawn, by what they have to do
//! and how quick they are; a node's weight, and how long it has been back, are its chance of being drawn.

use super::topology::{NodeId, NodeView, Role, State, Topology};
use std::time::{Duration, Instant};

/// More nodes than this are not looked at: a place on the stack for each.
pub const MOST_NODES: usize = 64;
/// Nearly all clusters have no more.
const FEW_NODES: usize = 6;
/// The share with which a node that has come back begins.
const FIRST_SHARE: f64 = 0.05;
/// Differences between nodes that are smaller than this are noise.
const NOISE_US: u64 = 500;
/// A wait of less than this is none: a busy node whose line moves so fast has room.
const SHORT_WAIT_US: u64 = 2_000;

/// Where reads go when no replica may have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Fallback {
    /// To the primary.
    #[default]
    Primary,
    /// Nowhere: the client gets an error.
    Error,
}

/// What an operator says of the choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Replicas that are further behind get no reads; zero for no limit.
    pub max_lag: Duration,
    /// How long a replica that has come back takes to get its full share; zero for none.
    pub slow_start: Duration,
    /// Where reads go when no replica may have them.
    pub fallback: Fallback,
    /// How much of the primary's pool may be busy with reads that spill over because replicas are busy, in percent.
    pub primary_read_share: u8,
}

/// What a node has to do right now, as this pool sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Requests that are under way.
    pub outstanding: u32,
    /// How long a read takes, smoothed, in microseconds; 0 if none was seen.
    pub latency_us: u32,
    /// All connections that there may be are busy.
    pub saturated: bool,
    /// Clients that wait for one.
    pub waiting: u32,
    /// Of the requests under way, reads that spilled over from replicas. Of interest on the primary only.
    pub spilled: u32,
    /// Connections that there may be. Of interest where they are all busy, and on the primary.
    pub capacity: u32,
}

impl Load {
    /// How long a read would have to wait for a connection, going by how long reads take.
    fn wait_us(&self) -> u64 {
        u64::from(self.latency_us) * (u64::from(self.waiting) + 1) / u64::from(self.capacity.max(1))
    }
}

/// Where a read goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// To this replica, which has room.
    Replica(NodeId),
    /// To this replica, and to wait there: not for long, or else because neither another one nor the primary has room.
    Queue(NodeId),
    /// To the primary.
    Primary(WhyPrimary),
    /// Nowhere.
    Refuse(WhyPrimary),
}

/// Why no replica gets a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WhyPrimary {
    /// There is none.
    NoReplica,
    /// Somebody has taken all out of service: their weight is 0.
    NoWeight,
    /// None is in good health, of those in service.
    NoneUp,
    /// All that are up are further behind than `max_lag`.
    AllLag,
    /// None has all that the session needs.
    NoneFresh,
    /// All are busy.
    AllBusy,
}

/// Why a node gets no reads of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unfit {
    /// It is no replica.
    NoReplica,
    /// Its weight is 0.
    NoWeight,
    /// It is not in good health.
    NotUp,
    /// It is too far behind.
    Lagging,
    /// It lacks what the session needs.
    NotFresh,
}

impl WhyPrimary {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoReplica => "no replica",
            Self::NoWeight => "every replica has weight 0",
            Self::NoneUp => "no replica is up",
            Self::AllLag => "every replica that is up is further behind than max_lag",
            Self::NoneFresh => "no replica is fresh enough for the session",
            Self::AllBusy => "every replica is busy",
        }
    }
}

impl Unfit {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoReplica => "no replica",
            Self::NoWeight => "weight 0",
            Self::NotUp => "not up",
            Self::Lagging => "lagging",
            Self::NotFresh => "not fresh",
        }
    }
}

/// Whether a node may get reads as far as its own condition goes.
pub fn is_fit(node: &NodeView, policy: &Policy) -> Result<(), Unfit> {
    match (node.role, &node.state) {
        (Role::Primary, _) => Err(Unfit::NoReplica),
        (Role::Replica | Role::Unknown, _) if node.weight == 0 => Err(Unfit::NoWeight),
        // Of one that does not answer nobody knows what it is any more.
        (Role::Unknown, _) => Err(Unfit::NotUp),
        (Role::Replica, State::New | State::Suspect(_) | State::Down(_) | State::Refused(_)) => Err(Unfit::NotUp),
        (Role::Replica, State::Up) if is_lagging(node, policy) => Err(Unfit::Lagging),
        (Role::Replica, State::Up) => Ok(()),
    }
}

fn is_lagging(node: &NodeView, policy: &Policy) -> bool {
    !policy.max_lag.is_zero() && node.lag.is_some_and(|lag| lag > policy.max_lag)
}

/// A replica's chance of being drawn.
pub fn share(node: &NodeView, policy: &Policy, now: Instant) -> f64 {
    let warm = match node.returned {
        Some(since) if !policy.slow_start.is_zero() => {
            let back = now.saturating_duration_since(since).as_secs_f64() / policy.slow_start.as_secs_f64();
            back.clamp(FIRST_SHARE, 1.0)
        }
        Some(_) | None => 1.0,
    };
    f64::from(node.weight) * warm
}

/// Chooses where a read goes. `fresh` says whether a replica has what the session needs, `load` what a node has to do, and
/// `chance` is any number that nobody could foresee. `patient`: rather than going further away it waits a moment where all
/// connections are busy. (Away is also where the session has to stay for a while, until what it has seen there is known of
/// other nodes.)
pub fn choose(
    topology: &Topology,
    policy: &Policy,
    now: Instant,
    chance: u64,
    patient: bool,
    fresh: impl Fn(&NodeView) -> bool,
    load: impl Fn(&NodeView) -> Load,
) -> Choice {
    // Few have more, and clearing room for the most would cost more than all the rest.
    if topology.nodes.len() <= FEW_NODES {
        choose_among::<FEW_NODES>(topology, policy, now, chance, patient, fresh, load)
    } else {
        choose_among::<MOST_NODES>(topology, policy, now, chance, patient, fresh, load)
    }
}

fn choose_among<const MOST: usize>(
    topology: &Topology,
    policy: &Policy,
    now: Instant,
    chance: u64,
    patient: bool,
    fresh: impl Fn(&NodeView) -> bool,
    load: impl Fn(&NodeView) -> Load,
) -> Choice {
    let mut fit: [Option<(&NodeView, Load, f64)>; MOST] = [None; MOST];
    let mut count = 0;
    let mut best_failure = None;
    for node in topology.nodes.iter().take(MOST) {
        let condition = is_fit(node, policy).and_then(|()| if fresh(node) { Ok(()) } else { Err(Unfit::NotFresh) });
        match condition {
            Ok(()) => {
                fit[count] = Some((node, load(node), share(node, policy, now)));
                count += 1;
            }
            Err(unfit) => best_failure = best_failure.max(Some(unfit)),
        }
    }
    let fit = &fit[..count];
    // Who reads without a pause stays where it is: for others there is no proof yet.
    if let [Some((node, load, _))] = fit
        && !load.saturated
    {
        return Choice::Replica(node.id);
    }
    let tiers = || fit.iter().flatten().map(|(node, ..)| node.tier);
    let Some(nearest) = tiers().min() else {
        let why = match best_failure {
            None | Some(Unfit::NoReplica) => WhyPrimary::NoReplica,
            Some(Unfit::NoWeight) => WhyPrimary::NoWeight,
            Some(Unfit::NotUp) => WhyPrimary::NoneUp,
            Some(Unfit::Lagging) => WhyPrimary::AllLag,
            Some(Unfit::NotFresh) => WhyPrimary::NoneFresh,
        };
        return match policy.fallback {
            Fallback::Primary => Choice::Primary(why),
            Fallback::Error => Choice::Refuse(why),
        };
    };
    let mut tier = Some(nearest);
    while let Some(at) = tier {
        if let Some(node) = draw(fit, at, |load| !load.saturated, chance) {
            return Choice::Replica(node);
        }
        if patient && let Some(node) = draw(fit, at, |load| load.wait_us() <= SHORT_WAIT_US, chance) {
            return Choice::Queue(node);
        }
        tier = tiers().filter(|&other| other > at).min();
    }
    if policy.fallback == Fallback::Primary && primary_has_room(topology, policy, &load) {
        return Choice::Primary(WhyPrimary::AllBusy);
    }
    draw(fit, nearest, |_| true, chance).map_or(Choice::Refuse(WhyPrimary::AllBusy), Choice::Queue)
}

fn primary_has_room(topology: &Topology, policy: &Policy, load: impl Fn(&NodeView) -> Load) -> bool {
    topology.primary().map(load).is_some_and(|load| {
        let most = u64::from(load.capacity) * u64::from(policy.primary_read_share) / 100;
        !load.saturated && u64::from(load.spilled) < most
    })
}

/// The better of two nodes of a tier that chance has drawn, of those that will do.
fn draw(
    fit: &[Option<(&NodeView, Load, f64)>],
    tier: u8,
    will_do: impl Fn(&Load) -> bool,
    chance: u64,
) -> Option<NodeId> {
    let all = || fit.iter().flatten().filter(|(node, load, _)| node.tier == tier && will_do(load));
    let sum: f64 = all().map(|(.., share)| share).sum();
    let pick = |chance: u32| {
        let mut left = f64::from(chance) / (f64::from(u32::MAX) + 1.0) * sum;
        let hit = all().find(|(.., share)| {
            left -= share;
            left < 0.0
        });
        // Sums of fractions may fall short of themselves.
        hit.or_else(|| all().next_back())
    };
    #[allow(clippy::cast_possible_truncation, reason = "the two halves of the number")]
    let (first, second) = (pick(chance as u32)?, pick((chance >> 32) as u32)?);
    let cost = |(_, load, _): &(&NodeView, Load, f64)| {
        (u64::from(load.outstanding) + u64::from(load.waiting) + 1) * (u64::from(load.latency_us) + NOISE_US)
    };
    Some(if cost(second) < cost(first) { second.0.id } else { first.0.id })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::survey::{Answer, Known, Location, Probe, Survey};
    use crate::routing::topology::{Moment, Tick};
    use crate::routing::{Lsn, Trouble};
    use std::collections::BTreeMap;

    const POLICY: Policy = Policy {
        max_lag: Duration::from_secs(10),
        slow_start: Duration::from_secs(10),
        fallback: Fallback::Primary,
        primary_read_share: 50,
    };

    /// Node 0 is the primary, the others are replicas of these tiers.
    fn topology(tiers: &[u8], now: Instant) -> Topology {
        let known = (0..=tiers.len()).map(|at| Known {
            id: NodeId(u32::try_from(at).unwrap()),
            host: "h".into(),
            port: 1,
            place: Location::default(),
            weight: 1,
        });
        let mut survey = Survey::new(Location::default(), known.collect(), POLICY.max_lag, now);
        for at in 0..=tiers.len() {
            let lsn = Some(Lsn::new(1));
            let answer = Answer {
                in_recovery: at > 0,
                insert: lsn,
                flush: lsn,
                replayed: lsn,
                timeline: 1,
                ..Answer::default()
            };
            let sent = Moment { tick: Tick(1), at: now };
            survey.answered(at, Probe { sent, took: Duration::from_millis(1), first: true }, &answer, now);
        }
        let mut topology = survey.topology();
        for (node, &tier) in topology.nodes[1..].iter_mut().zip(tiers) {
            node.tier = tier;
        }
        topology
    }

    fn mix(mut x: u64) -> u64 {
        x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn shares(topology: &Topology, now: Instant, load: impl Fn(&NodeView) -> Load) -> BTreeMap<u32, u32> {
        let mut shares = BTreeMap::new();
        for chance in 0..10_000 {
            match choose(topology, &POLICY, now, mix(chance), false, |_| true, &load) {
                Choice::Replica(node) => *shares.entry(node.0).or_insert(0) += 1,
                other @ (Choice::Queue(_) | Choice::Primary(_) | Choice::Refuse(_)) => panic!("{other:?}"),
            }
        }
        shares
    }

    fn idle(_: &NodeView) -> Load {
        Load { capacity: 20, ..Load::default() }
    }

    #[test]
    fn the_nearest_tier_gets_all_reads_while_it_has_room() {
        let now = Instant::now();
        let topology = topology(&[1, 0, 0, 2], now);
        let shares = shares(&topology, now, idle);
        assert_eq!(shares.keys().copied().collect::<Vec<_>>(), [2, 3]);
        assert!(shares.values().all(|&share| share.abs_diff(5000) < 300), "{shares:?}");
    }

    #[test]
    fn reads_spill_over_to_the_next_tier_then_to_the_primary_up_to_its_share_and_wait_at_last() {
        let now = Instant::now();
        let topology = topology(&[0, 1], now);
        let full = |until: u32, spilled| {
            move |node: &NodeView| Load {
                saturated: (1..=until).contains(&node.id.0),
                spilled,
                capacity: 20,
                ..Load::default()
            }
        };
        let pick = |load: &dyn Fn(&NodeView) -> Load| choose(&topology, &POLICY, now, 1, false, |_| true, load);
        assert_eq!(pick(&full(0, 0)), Choice::Replica(NodeId(1)));
        assert_eq!(pick(&full(1, 0)), Choice::Replica(NodeId(2)));
        assert_eq!(pick(&full(2, 9)), Choice::Primary(WhyPrimary::AllBusy));
        assert_eq!(pick(&full(2, 10)), Choice::Queue(NodeId(1)));
    }

    #[test]
    fn who_is_patient_waits_where_the_line_moves_fast_and_nowhere_else() {
        let now = Instant::now();
        let topology = topology(&[0, 1], now);
        let busy = |latency_us, waiting| {
            move |node: &NodeView| Load {
                saturated: node.id.0 == 1,
                latency_us,
                waiting,
                capacity: 10,
                ..Load::default()
            }
        };
        let pick =
            |patient, load: &dyn Fn(&NodeView) -> Load| choose(&topology, &POLICY, now, 1, patient, |_| true, load);
        assert_eq!(pick(true, &busy(1_000, 5)), Choice::Queue(NodeId(1)));
        assert_eq!(pick(false, &busy(1_000, 5)), Choice::Replica(NodeId(2)));
        assert_eq!(pick(true, &busy(1_000, 30)), Choice::Replica(NodeId(2)), "a long line");
        assert_eq!(pick(true, &busy(50_000, 0)), Choice::Replica(NodeId(2)), "reads that take long");
    }

    #[test]
    fn the_reason_for_the_primary_is_the_best_that_any_replica_has() {
        let now = Instant::now();
        let mut topology = topology(&[0, 0], now);
        let pick =
            |topology: &Topology, policy: &Policy, fresh| choose(topology, policy, now, 1, false, |_| fresh, idle);
        assert_eq!(pick(&topology, &POLICY, false), Choice::Primary(WhyPrimary::NoneFresh));
        topology.nodes[1].lag = Some(Duration::from_secs(11));
        assert_eq!(pick(&topology, &POLICY, true), Choice::Replica(NodeId(2)));
        topology.nodes[2].state = State::Down(Trouble::Reported("x"));
        assert_eq!(pick(&topology, &POLICY, true), Choice::Primary(WhyPrimary::AllLag));
        topology.nodes[1].state = State::Down(Trouble::Reported("x"));
        assert_eq!(pick(&topology, &POLICY, true), Choice::Primary(WhyPrimary::NoneUp));
        let strict = Policy { fallback: Fallback::Error, ..POLICY };
        assert_eq!(pick(&topology, &strict, true), Choice::Refuse(WhyPrimary::NoneUp));
        // What does not answer for long has no role any more.
        topology.nodes[1].role = Role::Unknown;
        topology.nodes[2].role = Role::Unknown;
        assert_eq!(pick(&topology, &POLICY, true), Choice::Primary(WhyPrimary::NoneUp));
        topology.nodes[1].weight = 0;
        assert_eq!(pick(&topology, &POLICY, true), Choice::Primary(WhyPrimary::NoneUp), "the other one is in service");
        topology.nodes[2].weight = 0;
        assert_eq!(pick(&topology, &POLICY, true), Choice::Primary(WhyPrimary::NoWeight));
        topology.nodes = topology.nodes[..1].into();
        assert_eq!(pick(&topology, &POLICY, true), Choice::Primary(WhyPrimary::NoReplica));
    }

    #[test]
    fn a_busy_or_slow_node_gets_less() {
        let now = Instant::now();
        let topology = topology(&[0, 0], now);
        let busy = |node: &NodeView| Load { outstanding: if node.id.0 == 1 { 8 } else { 0 }, ..idle(node) };
        let slow = |node: &NodeView| Load { latency_us: if node.id.0 == 1 { 50_000 } else { 500 }, ..idle(node) };
        for shares in [shares(&topology, now, busy), shares(&topology, now, slow)] {
            assert!(shares[&1].abs_diff(2500) < 300, "only where both draws hit it: {shares:?}");
        }
    }

    #[test]
    fn a_node_that_is_back_gets_its_share_little_by_little_and_one_of_weight_0_gets_none() {
        let now = Instant::now();
        let mut topology = topology(&[0, 0], now);
        topology.nodes[1].returned = Some(now);
        let at = |topology: &Topology, seconds| {
            let shares = shares(topology, now + Duration::from_secs(seconds), idle);
            shares.get(&1).copied().unwrap_or(0)
        };
        let grown: Vec<u32> = [0, 2, 5, 10, 100].map(|seconds| at(&topology, seconds)).to_vec();
        assert!(
            grown[0] < 700 && grown.is_sorted_by(|a, b| *a <= b + 300) && grown[3].abs_diff(5000) < 300,
            "{grown:?}"
        );
        topology.nodes[1].weight = 0;
        assert_eq!(at(&topology, 100), 0);
        topology.nodes[1].weight = 3;
        assert!(at(&topology, 100).abs_diff(7500) < 300);
    }
}
