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
        // Until all have been tried that is no reason to refuse one.
        let waits = undecided && self.nodes.iter().any(|node| node.health == Health::New);
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
            node.settle(refusal, waits, now);
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

    fn settle(&mut self, refusal: Option<Refusal>, waits: bool, now: Instant) {
        let state = match (&self.health, refusal) {
            (Health::Up | Health::Suspect(_), Some(Refusal::OtherSystem(_))) if waits => State::New,
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A cluster whose nodes answer when the test says so.
    struct Rig {
        survey: Survey,
        now: Instant,
        tick: u64,
    }

    fn known(at: u32, zone: Option<&str>, region: Option<&str>) -> Known {
        let place = Location { zone: zone.map(Into::into), region: region.map(Into::into) };
        Known { id: NodeId(at), host: format!("n{at}").into(), port: 5432, place, weight: 1 }
    }

    fn primary(lsn: u64, timeline: u32) -> Answer {
        let lsn = Some(Lsn::new(lsn));
        Answer { insert: lsn, flush: lsn, timeline, system: Some(7), ..Answer::default() }
    }

    fn replica(lsn: u64, timeline: u32) -> Answer {
        let lsn = Some(Lsn::new(lsn));
        Answer { in_recovery: true, replayed: lsn, received: lsn, timeline, system: Some(7), ..Answer::default() }
    }

    impl Rig {
        fn new(nodes: u32) -> Self {
            let nodes = (0..nodes).map(|at| known(at, None, None)).collect();
            let now = Instant::now();
            Self { survey: Survey::new(Location::default(), nodes, 1000 * MS, now), now, tick: 0 }
        }

        fn answer_in(&mut self, took: Duration, at: usize, answer: &Answer) {
            self.tick += 1;
            let sent = Moment { tick: Tick(self.tick), at: self.now };
            self.now += took;
            self.survey.answered(at, Probe { sent, took, first: false }, answer, self.now);
        }

        fn answer(&mut self, at: usize, answer: &Answer) {
            self.answer_in(MS, at, answer);
        }

        /// A primary and a replica that have agreed on which cluster they are.
        fn pair() -> Self {
            let mut rig = Self::new(2);
            rig.answer(1, &replica(100, 1));
            rig.answer(0, &primary(100, 1));
            rig
        }

        fn fail(&mut self, at: usize) {
            self.survey.failed(at, Trouble::Lost("x".into()), self.now);
        }

        fn state(&mut self, at: usize) -> State {
            self.survey.topology().nodes[at].state.clone()
        }

        fn lag(&mut self, at: usize) -> (Option<u64>, Option<u128>) {
            let topology = self.survey.topology();
            (topology.nodes[at].lag_bytes, topology.nodes[at].lag.map(|lag| lag.as_millis()))
        }
    }

    #[test]
    fn roles_are_what_the_nodes_say() {
        let mut rig = Rig::new(3);
        assert!(rig.survey.is_pressing() && rig.survey.primary().is_none());
        rig.answer(1, &primary(100, 1));
        assert_eq!(rig.survey.primary(), None, "one of three may belong to another cluster than the others");
        rig.answer(0, &replica(100, 1));
        assert_eq!(rig.survey.primary(), Some(1));
        rig.answer(2, &replica(90, 1));
        assert!(!rig.survey.is_pressing());
        let topology = rig.survey.topology();
        assert_eq!(
            topology.nodes.iter().map(|n| n.role).collect::<Vec<_>>(),
            [Role::Replica, Role::Primary, Role::Replica]
        );
        assert_eq!((topology.timeline, topology.system, topology.samples.len()), (1, Some(7), 0));
        rig.answer(1, &primary(100, 1));
        assert_eq!(rig.survey.topology().samples.len(), 1);
    }

    #[test]
    fn of_two_primaries_the_one_of_the_higher_timeline_is_right() {
        let mut rig = Rig::new(2);
        rig.answer(0, &primary(100, 1));
        rig.answer(1, &replica(100, 1));
        assert_eq!(rig.survey.primary(), Some(0));
        rig.answer(1, &primary(120, 2));
        assert_eq!(rig.survey.primary(), Some(1));
        assert_eq!(rig.state(0), State::Refused(Refusal::OldTimeline(1)));
        // Whatever becomes of the new one: what the old one writes may be thrown away.
        rig.fail(1);
        rig.fail(1);
        rig.answer(0, &primary(200, 1));
        assert_eq!(rig.survey.primary(), None);
        assert_eq!(rig.state(0), State::Refused(Refusal::OldTimeline(1)));
    }

    #[test]
    fn of_two_primaries_of_one_timeline_neither_is_used() {
        let mut rig = Rig::new(3);
        rig.answer(0, &primary(100, 2));
        rig.answer(1, &primary(100, 2));
        rig.answer(2, &replica(100, 2));
        assert_eq!(rig.survey.primary(), None);
        assert_eq!(rig.state(0), State::Refused(Refusal::TwoPrimaries));
        assert_eq!(rig.state(2), State::Up, "reads go on");
        rig.answer(1, &primary(100, 3));
        assert_eq!(rig.survey.primary(), Some(1));
    }

    #[test]
    fn a_node_of_another_cluster_is_never_used() {
        let mut rig = Rig::new(3);
        rig.answer(2, &Answer { system: Some(8), ..primary(900, 9) });
        rig.answer(0, &primary(100, 1));
        assert_eq!(rig.survey.primary(), None, "nobody knows which cluster is meant");
        rig.answer(1, &replica(100, 1));
        assert_eq!(rig.survey.primary(), Some(0));
        assert_eq!(rig.state(2), State::Refused(Refusal::OtherSystem(8)));
        assert_eq!(rig.survey.topology().timeline, 1);
    }

    #[test]
    fn one_failure_makes_a_node_suspect_and_the_second_puts_it_down() {
        let mut rig = Rig::new(2);
        rig.answer(0, &primary(100, 1));
        rig.answer(1, &replica(100, 1));
        rig.fail(0);
        assert!(matches!(rig.state(0), State::Suspect(_)) && rig.survey.is_pressing());
        assert_eq!(rig.survey.primary(), Some(0));
        rig.fail(0);
        assert!(matches!(rig.state(0), State::Down(_)));
        assert_eq!(rig.survey.primary(), None);
        rig.answer(0, &primary(100, 1));
        assert_eq!(rig.survey.primary(), Some(0));
        assert!(rig.survey.topology().nodes[0].returned.is_some());
    }

    #[test]
    fn a_demoted_primary_is_believed_only_what_it_says_to_a_later_probe() {
        let mut rig = Rig::new(2);
        rig.answer(0, &primary(100, 1));
        rig.answer(1, &replica(100, 1));
        let tick = rig.tick + 1;
        rig.survey.demote(0, "25006", Tick(tick), rig.now);
        assert_eq!(rig.survey.primary(), None);
        // That probe was on its way already.
        rig.answer(0, &primary(100, 1));
        assert_eq!(rig.survey.primary(), None);
        rig.answer(0, &primary(100, 1));
        assert_eq!(rig.survey.primary(), Some(0));
    }

    #[test]
    fn lag_is_what_a_replica_has_not_reached_of_what_the_primary_had() {
        let mut rig = Rig::pair();
        rig.answer(1, &replica(100, 1));
        assert_eq!(rig.lag(1), (Some(0), Some(0)));
        rig.answer(0, &primary(300, 1));
        rig.now += 500 * MS;
        rig.answer(1, &replica(200, 1));
        assert_eq!(rig.lag(1), (Some(100), Some(501)));
    }

    #[test]
    fn the_growing_timestamp_of_an_idle_primary_is_no_lag() {
        let hour = Some(Duration::from_secs(3600));
        let mut rig = Rig::new(2);
        // Nothing to compare with yet, and nothing to replay.
        rig.answer(1, &Answer { replay_age: hour, ..replica(100, 1) });
        assert_eq!(rig.lag(1), (None, None));
        rig.answer(0, &primary(100, 1));
        rig.answer(1, &Answer { replay_age: hour, ..replica(100, 1) });
        assert_eq!(rig.lag(1), (Some(0), Some(0)));
        // The first transaction after the pause is on its way.
        rig.answer(0, &primary(300, 1));
        let on_its_way = Answer { replay_age: hour, received: Some(Lsn::new(300)), ..replica(100, 1) };
        rig.answer(1, &on_its_way);
        assert_eq!(rig.lag(1), (Some(200), Some(1)));
        // But one that is behind all that is known of the primary may be as old as it says.
        let mut rig = Rig::new(2);
        rig.answer(1, &on_its_way);
        rig.answer(0, &primary(300, 1));
        rig.answer(1, &on_its_way);
        assert_eq!(rig.lag(1), (Some(200), Some(3_600_000)));
    }

    #[test]
    fn what_a_primary_has_not_flushed_is_no_lag() {
        let mut rig = Rig::new(2);
        rig.answer(1, &replica(100, 1));
        rig.answer(0, &Answer { flush: Some(Lsn::new(100)), ..primary(150, 1) });
        rig.answer(1, &replica(100, 1));
        assert_eq!(rig.lag(1), (Some(0), Some(0)));
        assert_eq!(rig.survey.topology().samples[0].insert, Lsn::new(150));
    }

    #[test]
    fn samples_end_with_the_primary_they_are_of_and_with_its_crash() {
        let mut rig = Rig::new(2);
        rig.answer(1, &replica(100, 1));
        for lsn in 0..100 {
            rig.answer(0, &primary(100 + lsn, 1));
        }
        assert_eq!(rig.survey.topology().samples.len(), SAMPLES);
        rig.fail(0);
        rig.fail(0);
        assert_eq!(rig.survey.topology().samples.len(), SAMPLES, "nobody is primary: what was known still holds");
        rig.answer(0, &primary(150, 1));
        assert_eq!(rig.survey.topology().samples.len(), 1, "unflushed WAL was lost in a crash");
        rig.answer(1, &primary(300, 2));
        let samples = rig.survey.topology().samples;
        assert_eq!(samples.iter().map(|sample| sample.insert).collect::<Vec<_>>(), [Lsn::new(300)]);
    }

    #[test]
    fn labels_make_tiers_and_without_any_the_distance_does() {
        let nodes = vec![known(0, Some("a"), Some("r")), known(1, Some("b"), Some("r")), known(2, None, Some("s"))];
        let place = Location { zone: Some("b".into()), region: Some("r".into()) };
        let mut survey = Survey::new(place, nodes, MS, Instant::now());
        let tiers = |survey: &mut Survey| survey.topology().nodes.iter().map(|node| node.tier).collect::<Vec<_>>();
        assert_eq!(tiers(&mut survey), [1, 0, 2]);
        let mut rig = Rig::new(5);
        for (at, ms) in [(1, 1), (2, 2), (3, 20), (4, 100)] {
            rig.answer_in(ms * MS, at, &replica(100, 1));
        }
        assert_eq!(tiers(&mut rig.survey), [0, 0, 0, 1, 2]);
        // A breath of the network moves nobody.
        for _ in 0..20 {
            rig.answer_in(MS * 5 / 2, 2, &replica(100, 1));
        }
        assert_eq!(tiers(&mut rig.survey), [0, 0, 0, 1, 2]);
        for _ in 0..60 {
            rig.answer_in(MS * 10, 2, &replica(100, 1));
        }
        assert_eq!(tiers(&mut rig.survey), [0, 0, 1, 2, 3]);
    }

    #[test]
    fn a_replica_that_was_too_far_behind_comes_back_slowly() {
        let mut rig = Rig::pair();
        rig.answer(0, &primary(200, 1));
        rig.now += 2000 * MS;
        rig.answer(1, &replica(100, 1));
        assert_eq!(rig.survey.topology().nodes[1].returned, None);
        rig.answer(1, &replica(200, 1));
        assert_eq!(rig.survey.topology().nodes[1].returned, Some(rig.now));
    }
}
