//! EXPLAIN ROUTE: where a statement would go now, why, and which server would get it.

use super::operator::Operator;
use super::show::{Cell, int, option, text};
use crate::pool::{PoolName, PoolSet, Routes};
use crate::routing::balance::{self, Unfit, WhyPrimary};
use crate::routing::explain::{Explained, explain};
use crate::routing::{
    Causal, Choice, Consistency, Destination, Leaning, Load, Moment, NodeId, NodeView, Preference, Reason, Tick,
    Topology, choose, verdict,
};
use crate::sql::reads::Plain;
use std::collections::HashMap;
use std::time::Instant;

/// How often the choice is made, to see how often each server is chosen.
const DRAWS: u32 = 1000;

/// The columns of its answer.
pub(super) const COLUMNS: &str = "database user verdict destination reason culprit server role percent:i remark";

/// The rows of its answer for one database, by the name that clients write, or for all; none if there is no such
/// database. The session that is spoken of has set nothing, written nothing and read nothing yet.
pub(super) fn rows(operator: &Operator, database: Option<&str>, sql: &str) -> Option<Vec<Vec<Cell>>> {
    let directory = &operator.context.directory;
    let mut rows = Vec::new();
    let mut sets = directory.sets();
    sets.retain(|set| database.is_none_or(|name| *set.name.database == *name));
    for set in &sets {
        match set.routes() {
            Some(routes) => rows.extend(routed(&set.name, &routes, sql)),
            None => rows.push(unrouted(set, sql)),
        }
    }
    let unused = match database {
        Some(_) if !sets.is_empty() => Vec::new(),
        Some(name) => vec![(name.to_owned(), directory.database(name).ok()?)],
        None => {
            let all = directory.databases().into_iter().map(|database| (database.config.name.clone(), database));
            all.filter(|(name, _)| !sets.iter().any(|set| *set.database().config.name == **name)).collect()
        }
    };
    for (name, database) in unused {
        let why = match database.nodes().len() {
            0 | 1 => "it has one server",
            _ => "no client has used it yet: nothing is known of its servers and functions",
        };
        rows.push(row([text(name), Cell::Null], &explain(sql.as_bytes(), true, &Plain), None, Some(why)));
    }
    Some(rows)
}

fn row(
    names: [Cell; 2],
    explained: &Explained<'_>,
    went: Option<(Destination, Reason)>,
    why: Option<&'static str>,
) -> Vec<Cell> {
    let [destination, reason] = match went {
        Some((destination, reason)) => [text(destination.as_str()), text(reason.as_str())],
        None => [Cell::Null, Cell::Null],
    };
    let culprit = option(explained.culprit, |culprit| text(String::from_utf8_lossy(culprit)));
    let mut row = Vec::from(names);
    row.extend([text(explained.kind()), destination, reason, culprit, Cell::Null, Cell::Null, Cell::Null]);
    row.push(option(why, text));
    row
}

fn unrouted(set: &PoolSet, sql: &str) -> Vec<Cell> {
    let why = if set.monitor().is_some() {
        "session pooling: whatever a client does, it keeps its connection to the primary"
    } else {
        "it has one server"
    };
    let names = [text(&set.name.database), text(&set.name.user)];
    row(names, &explain(sql.as_bytes(), true, &Plain), None, Some(why))
}

/// What would become of a read.
struct Fate {
    went: (Destination, Reason),
    /// How often each replica was chosen.
    chosen: HashMap<NodeId, u32>,
    /// The tier that was chosen from.
    tier: Option<u8>,
}

fn routed(name: &PoolName, routes: &Routes, sql: &str) -> Vec<Vec<Cell>> {
    let facts = routes.knowledge().newest();
    let explained = match &facts {
        Some(facts) => explain(sql.as_bytes(), true, &facts.catalogue),
        None => explain(sql.as_bytes(), true, &Plain).unknown(),
    };
    let now = Instant::now();
    let learned = routes.record().remembers(verdict::fingerprint(sql.as_bytes(), true), now);
    let leaning = Leaning::of(None, routes.user, Preference::default(), routes.config.route);
    let went = explained.destination(leaning, learned);
    let topology = routes.monitor.topology();
    let fate = match went.0 {
        Destination::Replica => fate(routes, &topology, went, now),
        Destination::Primary | Destination::Nowhere => Fate { went, chosen: HashMap::new(), tier: None },
    };
    let of_node = |node: &NodeView| {
        let percent = match fate.went.0 {
            Destination::Primary if topology.is_primary(node.id) => 100,
            Destination::Primary | Destination::Nowhere => 0,
            Destination::Replica => (fate.chosen.get(&node.id).copied().unwrap_or(0) * 100 + DRAWS / 2) / DRAWS,
        };
        // Where no replica was asked for, there is nothing to say of them.
        let why = (went.0 == Destination::Replica).then(|| why_not(node, routes, &topology, &fate, now)).flatten();
        let mut row = row([text(&name.database), text(&name.user)], &explained, Some(fate.went), None);
        let server = text(format_args!("{}:{}", node.host, node.port));
        row.splice(6.., [server, text(node.role.as_str()), int(percent), option(why, text)]);
        row
    };
    topology.nodes.iter().map(of_node).collect()
}

/// A session that has done nothing yet, and a moment before the last answer of the primary: `global` needs no more.
fn fresh(node: &NodeView, topology: &Topology, consistency: Consistency, now: Instant) -> Result<(), &'static str> {
    let before = topology.last_sample().map_or(Tick(0), |tick| Tick(tick.0.saturating_sub(1)));
    let begun = Moment { tick: before, at: now };
    Causal::default().is_fresh(node, topology, consistency, begun).map(drop).map_err(|why| why.as_str())
}

/// What a session that has come in by no listener in particular begins with.
fn consistency_of(routes: &Routes) -> Consistency {
    Consistency::of(None, routes.user, Preference::default(), routes.config.consistency)
}

fn load(node: &NodeView, routes: &Routes) -> Load {
    routes.pool_of(node.id).map(|pool| pool.load()).unwrap_or_default()
}

fn fate(routes: &Routes, topology: &Topology, went: (Destination, Reason), now: Instant) -> Fate {
    let config = &routes.config;
    let mut fate = Fate { went, chosen: HashMap::new(), tier: None };
    for _ in 0..DRAWS {
        let fresh = |node: &NodeView| fresh(node, topology, consistency_of(routes), now).is_ok();
        match choose(topology, &config.policy, now, fastrand::u64(..), true, fresh, |node| load(node, routes)) {
            Choice::Replica(id) | Choice::Queue(id) => {
                *fate.chosen.entry(id).or_default() += 1;
                fate.tier = topology.node(id).map(|node| node.tier);
            }
            Choice::Primary(why) => fate.went = (Destination::Primary, why.into()),
            Choice::Refuse(why) => fate.went = (Destination::Nowhere, why.into()),
        }
    }
    fate
}

/// Why a server does not get more of the reads, if there is a reason.
fn why_not(node: &NodeView, routes: &Routes, topology: &Topology, fate: &Fate, now: Instant) -> Option<String> {
    let policy = &routes.config.policy;
    match balance::is_fit(node, policy) {
        Err(Unfit::NoReplica) if topology.is_primary(node.id) => {
            let spilled = fate.went == (Destination::Primary, WhyPrimary::AllBusy.into());
            return (fate.went.0 != Destination::Primary || spilled).then(|| match spilled {
                true => format!("reads may take {} % of its pool", policy.primary_read_share),
                false => "it is the primary".to_owned(),
            });
        }
        Err(Unfit::Lagging) => {
            let lag = node.lag.unwrap_or_default();
            return Some(format!("lagging: {} ms behind, and max_lag is {:?}", lag.as_millis(), policy.max_lag));
        }
        Err(Unfit::NoWeight) => return Some("its weight is 0".to_owned()),
        Err(Unfit::NoReplica | Unfit::NotUp | Unfit::NotFresh) => {
            let why = node.state.why().map(|why| format!(": {why}")).unwrap_or_default();
            return Some(format!("{}{why}", node.state.as_str()));
        }
        Ok(()) => {}
    }
    if let Err(why) = fresh(node, topology, consistency_of(routes), now) {
        return Some(format!("not fresh: {why}"));
    }
    if load(node, routes).saturated {
        return Some("all its connections are busy".to_owned());
    }
    if let Some(nearest) = fate.tier.filter(|tier| *tier < node.tier) {
        return Some(format!("tier {nearest} is nearer than tier {}, and has room", node.tier));
    }
    let share = balance::share(node, policy, now);
    (share < f64::from(node.weight)).then(|| format!("it has come back: its share grows for {:?}", policy.slow_start))
}
