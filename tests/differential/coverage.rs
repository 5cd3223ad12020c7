//! Which messages were sent in which state of the client's transaction.

use super::generate::{Ending, Session};
use super::run::Outcome;
use std::collections::BTreeMap;
use std::fmt;

/// The messages a client may send once it is logged in.
const TAGS: &[(char, &str)] = &[
    ('B', "Bind"),
    ('C', "Close"),
    ('D', "Describe"),
    ('E', "Execute"),
    ('F', "FunctionCall"),
    ('H', "Flush"),
    ('P', "Parse"),
    ('Q', "Query"),
    ('S', "Sync"),
    ('X', "Terminate"),
    ('c', "CopyDone"),
    ('d', "CopyData"),
    ('f', "CopyFail"),
];

/// Message type and what the last ReadyForQuery before its turn said, and how often.
#[derive(Debug, Default)]
pub struct Coverage {
    counts: BTreeMap<(char, char), u64>,
}

impl Coverage {
    /// Counts what a session sent, in the states that the server itself reported.
    pub fn add(&mut self, session: &Session, direct: &Outcome) {
        for (turn, state) in session.turns.iter().zip(&direct.states) {
            let mut rest = turn.send.as_slice();
            while rest.len() >= 5 {
                let len = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
                *self.counts.entry((char::from(rest[0]), char::from(*state))).or_default() += 1;
                rest = &rest[(len + 1).min(rest.len())..];
            }
        }
        if session.ending == Ending::Polite
            && let Some(state) = direct.states.get(session.turns.len())
        {
            *self.counts.entry(('X', char::from(*state))).or_default() += 1;
        }
    }

    /// How many messages there were.
    pub fn messages(&self) -> u64 {
        self.counts.values().sum()
    }

    /// What was never sent.
    pub fn missing(&self) -> Vec<String> {
        let pairs = TAGS.iter().flat_map(|(tag, name)| ['I', 'T', 'E'].map(|state| (*tag, *name, state)));
        let missing = pairs.filter(|(tag, _, state)| !self.counts.contains_key(&(*tag, *state)));
        missing.map(|(_, name, state)| format!("{name} in {state}")).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:16} {:>10} {:>16} {:>10}", "messages sent", "outside", "in a transaction", "failed")?;
        for (tag, name) in TAGS {
            let count = |state| self.counts.get(&(*tag, state)).copied().unwrap_or_default();
            writeln!(f, "{tag} {name:14} {:>10} {:>16} {:>10}", count('I'), count('T'), count('E'))?;
        }
        Ok(())
    }
}
