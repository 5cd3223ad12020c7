//! Answers of probes -> [`Topology`]: roles, the primary, lag, health, tiers.
//!
//! Who is the primary is asked of the nodes, and two that say so cannot both be right. The higher timeline of the same
//! cluster wins, since only a promotion makes one; between equals nobody does, because writes would go to both. A node of
//! another cluster is never used: that is a wrong address.

use super::Lsn;
use super::topology::{Moment, NodeId, NodeView, Refusal, Role, Sample, State, Tick, Topology, Trouble};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many answers of the primary are kept: some seconds of them, after which a later one has to do.
const SAMPLES: usize = 64;

/// Where the ambassador itself stands, as far as somebody has said so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Location {
    /// The zone.
    pub zone: Option<Arc<str>>,
    /// The region.
    pub region: Option<Arc<str>>,
}

/// A node to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Which.
    pub id: NodeId,
    /// Where it is.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// Where it stands.
    pub place: Location,
    /// Its share of the reads, beside others of its tier.
    pub weight: u16,
}

/// A probe that was answered.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Its number, and when it was sent.
    pub sent: Moment,
    /// How long the answer took.
    pub took: Duration,
    /// It was the first over its connection.
    pub first: bool,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// It replays what another writes.
    pub in_recovery: bool,
    /// A primary's insert position, as replicas can reach it.
    pub insert: Option<Lsn>,
    /// A primary's flush position.
    pub flush: Option<Lsn>,
    /// How far a replica has replayed.
    pub replayed: Option<Lsn>,
    /// How much of it a replica has.
    pub received: Option<Lsn>,
    /// How old the last transaction is that it has replayed.
    pub replay_age: Option<Duration>,
    /// Its replay is paused.
    pub paused: bool,
    /// The highest timeline that it is known to be on; 0 for none.
    pub timeline: u32,
    /// Its cluster's identifier.
    pub system: Option<u64>,
    /// With shared storage: how far it is behind.
    pub shared_lag: Option<Duration>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Health {
    #[default]
    New,
    Up,
    Suspect(Trouble),
    Down(Trouble),
}

#[derive(Debug)]
struct Node {
    view: NodeView,
    health: Health,
    /// It is no primary, whatever is said by a probe that began before.
    demoted: Option<Tick>,
    lagging: bool,
}

/// What is known of a cluster.
#[derive(Debug)]
pub struct Survey {
    place: Location,
    max_lag: Duration,
    nodes: Vec<Node>,
    primary: Option<usize>,
    timeline: u32,
    system: Option<u64>,
    samples: VecDeque<Sample>,
    /// Whose they are.
    sampled: Option<usize>,
    generation: u64,
}

impl Survey {
    /// Nothing is known yet.
    pub fn new(place: Location, nodes: Vec<Known>, max_lag: Duration, now: Instant) -> Self {
        let node = |known: Known| Node {
            view: NodeView {
                id: known.id,
                host: known.host,
                port: known.port,
                zone: known.place.zone,
                region: known.place.region,
                weight: known.weight,
                role: Role::Unknown,
                state: State::New,
                since: now,
                returned: None,
                timeline: 0,
                system: None,
                lsn: None,
                lag_bytes: None,
                lag: None,
                paused: false,
                shared_storage: false,
                rtt: Duration::ZERO,
                tier: 0,
                tick: Tick(0),
                sampled: now,
                unbroken: Tick(0),
            },
            health: Health::New,
            demoted: None,
            lagging: false,
        };
        let mut survey = Self {
            place,
            max_lag,
            nodes: nodes.into_iter().map(node).collect(),
            primary: None,
            timeline: 0,
            system: None,
            samples: VecDeque::with_capacity(SAMPLES),
            sampled: None,
            generation: 0,
        };
        survey.assign_tiers();
        survey
    }

    /// Takes over changed labels and weights.
    pub fn relabel(&mut self, place: Location, max_lag: Duration, nodes: &[Known]) {
        (self.place, self.max_lag) = (place, max_lag);
        for known in nodes {
            if let Some(node) = self.nodes.iter_mut().find(|node| node.view.id == known.id) {
                node.view.zone.clone_from(&known.place.zone);
                node.view.region.clone_from(&known.place.region);
                node.view.weight = known.weight;
            }
        }
        self.assign_tiers();
    }

    /// A node has answered a probe. `now` is when.
    pub fn answered(&mut self, at: usize, probe: Probe, answer: &Answer, now: Instant) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        let view = &mut node.view;
        node.health = Health::Up;
        if view.tick == Tick(0) || probe.first {
            view.unbroken = probe.sent.tick;
            view.timeline = 0;
        }
        (view.tick, view.sampled) = (probe.sent.tick, probe.sent.at);
        let believed = node.demoted.is_none_or(|tick| probe.sent.tick > tick);
        if believed {
            node.demoted = None;
        }
        view.role = match (answer.in_recovery, believed) {
            (true, _) => Role::Replica,
            (false, true) => Role::Primary,
            (false, false) => Role::Unknown,
        };
        // What a replica can tell of its timeline comes and goes with its connection to the primary, but it never
        // goes back to an older one without a restart.
        view.timeline = view.timeline.max(answer.timeline);
        view.system = answer.system.or(view.system);
        view.paused = answer.paused;
        view.shared_storage = answer.shared_lag.is_some();
        view.lsn = if answer.in_recovery { answer.replayed } else { answer.insert };
        view.rtt = smoothed(view.rtt, probe.took);
        self.decide(now);
        if self.primary == Some(at) {
            self.sample(probe.sent, answer);
        }
        self.measure_lag(at, answer, now);
        self.assign_tiers();
    }

    fn sample(&mut self, sent: Moment, answer: &Answer) {
        let Some(insert) = answer.insert else { return };
        let flush = answer.flush.unwrap_or(insert);
        // After a crash a primary goes on from what it had flushed: what it said before that is no measure any more.
        if self.samples.back().is_some_and(|last| insert < last.insert) {
            self.samples.clear();
        }
        if self.samples.len() >= SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { tick: sent.tick, at: sent.at, insert, flush });
    }

    /// A replica's lag. As bytes it is behind what the primary had flushed: there is nothing more to be had. As time it is
    /// the age of the oldest sample of the primary that it has not reached. The timestamp of the last transaction that it has
    /// replayed grows on an idle primary, and right after one it is as old as the pause was: it is believed only where
    /// there is something to replay and samples do not reach far enough back.
    fn measure_lag(&mut self, at: usize, answer: &Answer, now: Instant) {
        let (lag_bytes, lag) = match (answer.in_recovery, answer.shared_lag, answer.replayed) {
            (false, ..) => (None, None),
            (true, Some(lag), _) => (None, Some(lag)),
            (true, None, None) => (None, None),
            (true, None, Some(replayed)) => {
                let bytes = self.samples.back().map(|last| last.flush.ahead_of(replayed));
                let age = answer.replay_age.filter(|_| answer.received.is_some_and(|received| received > replayed));
                let ahead = self.samples.iter().position(|sample| sample.flush > replayed);
                let lag = match ahead {
                    None if self.samples.is_empty() => age,
                    None => Some(Duration::ZERO),
                    Some(first) => {
                        let sent = self.nodes[at].view.sampled;
                        let seen = sent.saturating_duration_since(self.samples[first].at);
                        Some(if first == 0 { seen.max(age.unwrap_or_default()) } else { seen })
                    }
                };
                (bytes, lag)
            }
        };
        let node = &mut self.nodes[at];
        (node.view.lag_bytes, node.view.lag) = (lag_bytes, lag);
        let lagging = !self.max_lag.is_zero() && lag.is_some_and(|lag| lag > self.max_lag);
        if node.lagging && !lagging {
            node.view.returned = Some(now);
        }
        node.lagging = lagging;
    }

    /// A node has not answered.
    pub fn failed(&mut self, at: usize, trouble: Trouble, now: Instant) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.health = match node.health {
            Health::Up => Health::Suspect(trouble),
            Health::New | Health::Suspect(_) | Health::Down(_) => Health::Down(trouble),
        };
        if matches!(node.health, Health::Down(_)) {
            node.view.role = Role::Unknown;
            node.view.lag = None;
            node.view.lag_bytes = None;
        }
        self.decide(now);
    }

    /// A client's connection has seen trouble at a node.
    pub fn suspect(&mut self, at: usize, what: &'static str, now: Instant) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        if node.health == Health::Up {
            node.health = Health::Suspect(Trouble::Reported(what));
            self.decide(now);
        }
    }

    /// A client's connection has seen that a node is no primary. Only a probe that begins after `tick` may say otherwise.
    pub fn demote(&mut self, at: usize, what: &'static str, tick: Tick, now: Instant) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.demoted = node.demoted.max(Some(tick));
        if node.view.role == Role::Primary {
            node.view.role = Role::Unknown;
        }
        self.suspect(at, what, now);
        self.decide(now);
    }

    /// Whether there is a reason to hurry.
    pub fn is_pressing(&self) -> bool {
        let pressing = |health: &Health| matches!(health, Health::New | Health::Suspect(_));
        self.primary.is_none() || self.nodes.iter().any(|node| pressing(&node.health))
    }

    /// The primary's place among the nodes.
    pub fn primary(&self) -> Option<usize> {
        self.primary
    }

    /// What is known, as it is now.
    pub fn topology(&mut self) -> Topology {
        self.generation += 1;
        Topology {
            generation: self.generation,
            nodes: self.nodes.iter().map(|node| node.view.clone()).collect(),
            primary: self.primary,
            timeline: self.timeline,
            system: self.system,
            samples: self.samples.iter().copied().collect(),
        }
    }

    // ------------------------------------------------------------------------------------------------------ decisions

    fn decide(&mut self, now: Instant) {
        if self.system.is_none() {
            self.system = self.agreed_system();
        }
        let undecided = self.system.is_none() && self.answering().any(|node| node.view.system.is_some());
        let belongs = |node: &Node| match (self.system, node.view.system) {
            (Some(ours), Some(its)) => ours == its,
            (None, Some(_)) => !undecided,
            (_, None) => true,
        };
        let newest = self.answering().filter(|node| belongs(node)).map(|node| node.view.timeline).max();
        let timeline = self.timeline.max(newest.unwrap_or(0));
        let claims = |node: &Node| {
            node.view.role == Role::Primary && node.is_answering() && belongs(node) && !node.is_behind(timeline)
        };
        let claimants: Vec<usize> = (0..self.nodes.len()).filter(|&at| claims(&self.nodes[at])).collect();
        let primary = if let [one] = claimants[..] { Some(one) } else { None };
        let refusals: Vec<Option<Refusal>> = self
            .nodes
            .iter()
            .enumerate()
            .map(|(at, node)| match node.view.system {
                Some(system) if !belongs(node) => Some(Refusal::OtherSystem(system)),
                _ if node.is_behind(timeline) => Some(Refusal::OldTimeline(node.view.timeline)),
                _ if primary.is_none() && claimants.contains(&at) => Some(Refusal::TwoPrimaries),
                _ => None,
            })
            .collect();
        // While nobody is the primary, what the last one said still holds, until another is or the timeline changes.
        let changed = primary.is_some() && primary != self.sampled;
        if changed || timeline != self.timeline {
            self.samples.clear();
            self.sampled = primary;
        }
        (self.primary, self.timeline) = (primary, timeline);
        for (node, refusal) in self.nodes.iter_mut().zip(refusals) {
            node.settle(refusal, now);
        }
    }

    fn answering(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.is_answering())
    }

    /// The identifier that more than half of the nodes have, or that most have when all have been tried.
    fn agreed_system(&self) -> Option<u64> {
        let systems: Vec<u64> = self.answering().filter_map(|node| node.view.system).collect();
        let count = |system: u64| systems.iter().filter(|&&other| other == system).count();
        let most = systems.iter().map(|&system| count(system)).max()?;
        let mut winners: Vec<u64> = systems.iter().copied().filter(|&system| count(system) == most).collect();
        winners.sort_unstable();
        winners.dedup();
        let tried = self.nodes.iter().all(|node| node.health != Health::New);
        match winners[..] {
            [winner] if tried || most * 2 > self.nodes.len() => Some(winner),
            _ => None,
        }
    }

    /// Nearest first. By labels where there are any, else by how long probes take.
    fn assign_tiers(&mut self) {
        let place = &self.place;
        let labelled = (place.zone.is_some() && self.nodes.iter().any(|node| node.view.zone.is_some()))
            || (place.region.is_some() && self.nodes.iter().any(|node| node.view.region.is_some()));
        if labelled {
            let same = |ours: &Option<Arc<str>>, its: &Option<Arc<str>>| ours.is_some() && ours == its;
            for node in &mut self.nodes {
                let view = &mut node.view;
                view.tier = match (same(&place.zone, &view.zone), same(&place.region, &view.region)) {
                    (true, _) => 0,
                    (false, true) => 1,
                    (false, false) => 2,
                };
            }
            return;
        }
        let measured = |at: &usize| !self.nodes[*at].view.rtt.is_zero() && Some(*at) != self.primary;
        let mut order: Vec<usize> = (0..self.nodes.len()).filter(measured).collect();
        order.sort_by_key(|&at| self.nodes[at].view.rtt);
        let (mut tier, mut nearest) = (0, order.first().map_or(Duration::ZERO, |&at| self.nodes[at].view.rtt));
        for at in order {
            let view = &mut self.nodes[at].view;
            if view.rtt > reach(nearest, view.tier == tier) {
                (tier, nearest) = (tier.saturating_add(1), view.rtt);
            }
            view.tier = tier;
        }
    }
}

/// How far a tier reaches whose nearest node answers in this time: further for who is in it, so that nobody goes in and
/// out with every breath of the network.
fn reach(nearest: Duration, is_in: bool) -> Duration {
    let (factor, more) = if is_in { (2.0, Duration::from_millis(2)) } else { (1.5, Duration::from_millis(1)) };
    nearest.mul_f64(factor).max(nearest + more)
}

/// Quick to believe that a way is short, slow to believe that it is long: delays only ever add to the way itself.
fn smoothed(rtt: Duration, took: Duration) -> Duration {
    if rtt.is_zero() {
        took
    } else if took < rtt {
        rtt - (rtt - took) / 2
    } else {
        rtt + (took - rtt) / 16
    }
}

impl Node {
    fn is_answering(&self) -> bool {
        matches!(self.health, Health::Up | Health::Suspect(_))
    }

    fn is_behind(&self, timeline: u32) -> bool {
        // With shared storage there is one history only; and who cannot tell is not accused.
        self.is_answering() && !self.view.shared_storage && (1..timeline).contains(&self.view.timeline)
    }

    fn settle(&mut self, refusal: Option<Refusal>, now: Instant) {
        let state = match (&self.health, refusal) {
            (Health::Up | Health::Suspect(_), Some(refusal)) => State::Refused(refusal),
            (Health::New, _) => State::New,
            (Health::Up, None) => State::Up,
            (Health::Suspect(trouble), None) => State::Suspect(trouble.clone()),
            (Health::Down(trouble), _) => State::Down(trouble.clone()),
        };
        let view = &mut self.view;
        if std::mem::discriminant(&state) != std::mem::discriminant(&view.state) {
            view.since = now;
        }
        let was_away = matches!(view.state, State::Down(_) | State::Refused(_));
        if was_away && state == State::Up {
            view.returned = Some(now);
        }
        view.state = state;
    }
}
