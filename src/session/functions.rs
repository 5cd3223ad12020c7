//! What the functions of a database may leave in the session that calls them.
//!
//! PostgreSQL's own functions are known by their names. Of another the server is asked when it is first called, in the same
//! question as what it has left: its language, and its body, if that can be read. From then on, for a while, a call of one
//! that leaves nothing costs nothing; of any other what it may leave is asked for after each call. What has a body that is not
//! understood, and what is written in a language that cannot be read, may leave anything.

use crate::sql::Effects;
use crate::sql::reads::calls::{self, Calls};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Names that are remembered of one database.
const MOST: usize = 10_000;
/// Names that one question is about.
pub(super) const ASKED: usize = 64;

/// What is known of the functions of one database, as its servers have said it.
#[derive(Debug)]
pub struct Functions {
    /// Since when they are remembered.
    since: Mutex<Option<Instant>>,
    /// Unique in this process; another one whenever something was forgotten.
    version: AtomicU64,
    known: Mutex<HashMap<Box<str>, Known>>,
}

/// What is known of all functions of one name.
#[derive(Debug, Default)]
struct Known {
    effects: Effects,
    calls: Vec<Box<str>>,
    /// Names of settings of the client's own making in their bodies.
    settings: Vec<Box<str>>,
    /// There are more of them than are kept.
    too_many: bool,
}

/// What some calls may leave behind.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) effects: Effects,
    /// Names that nothing is known of.
    pub(super) missing: Vec<Box<str>>,
    pub(super) settings: Vec<Box<str>>,
}

/// A row of an answer about functions: a name, and the verdict.
pub(super) type Row = (Box<[u8]>, Box<[u8]>);

static NEXT_VERSION: AtomicU64 = AtomicU64::new(1);

impl Default for Functions {
    fn default() -> Self {
        let version = AtomicU64::new(NEXT_VERSION.fetch_add(1, Ordering::Relaxed));
        Self { since: Mutex::default(), version, known: Mutex::default() }
    }
}

impl Functions {
    /// Forgets what is remembered for too long: somebody else may have defined it anew.
    pub fn forget_after(&self, limit: Duration, now: Instant) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(*since.get_or_insert(now)) >= limit {
            *since = Some(now);
            drop(since);
            self.forget();
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Box<str>, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found out before is another's if this is another.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Something may have been defined since.
    pub fn forget(&self) {
        let mut known = self.known();
        known.clear();
        self.version.store(NEXT_VERSION.fetch_add(1, Ordering::Relaxed), Ordering::Release);
    }

    /// What these calls may leave behind, and those behind them.
    pub(super) fn judge(&self, calls: &Calls) -> Verdict {
        let mut verdict = Verdict::default();
        if calls.unclear {
            verdict.effects = Effects::UNKNOWN;
        }
        let known = self.known();
        let mut too_many = false;
        let mut seen: HashSet<&str> = HashSet::new();
        let mut due: Vec<&str> = calls.names.iter().map(|name| &**name).collect();
        while let Some(name) = due.pop() {
            if !seen.insert(name) {
                continue;
            }
            match known.get(name) {
                Some(found) => {
                    verdict.effects = verdict.effects.and(found.effects);
                    verdict.settings.extend(found.settings.iter().cloned());
                    too_many |= found.too_many;
                    due.extend(found.calls.iter().map(|name| &**name));
                }
                None => {
                    verdict.effects = verdict.effects.and(Effects::UNKNOWN);
                    if verdict.missing.len() < ASKED {
                        verdict.missing.push(name.into());
                    }
                }
            }
        }
        if !verdict.effects.has(Effects::SETTING.and(Effects::UNKNOWN)) {
            verdict.settings.clear();
        } else if too_many {
            verdict.effects = verdict.effects.and(Effects::UNKNOWN);
        }
        verdict
    }

    /// The server was asked about these names when this was the version, and has answered: a name and a verdict for each
    /// function. Gives what they may have set, and what has to be asked before all of that is known.
    pub(super) fn learn(&self, version: u64, asked: Vec<Box<str>>, rows: &[Row]) -> Learned {
        let verdict_of = |name: &str| {
            // Who has no row does not exist.
            let mut all = Known::default();
            for (_, verdict) in rows.iter().filter(|(of, _)| **of == *name.as_bytes()) {
                all.add(verdict);
            }
            all
        };
        let found: Vec<(Box<str>, Known)> = asked.into_iter().map(|name| (name.clone(), verdict_of(&name))).collect();
        let names: Vec<Box<str>> = found.iter().map(|(name, _)| name.clone()).collect();
        let mut known = self.known();
        if self.version() != version {
            // Something was defined while the answer was on its way. What these may have set they may have set all the same.
            let settings = found.into_iter().flat_map(|(_, known)| known.settings).collect();
            return Learned { settings, missing: names };
        }
        if known.len() + found.len() > MOST {
            known.clear();
        }
        known.extend(found);
        drop(known);
        let behind = self.judge(&Calls { names, unclear: false });
        Learned { settings: behind.settings, missing: behind.missing }
    }
}

/// What came of an answer about functions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Learned {
    /// Names of settings that they, and what they call, may have set.
    pub(super) settings: Vec<Box<str>>,
    /// Names of functions to ask about next.
    pub(super) missing: Vec<Box<str>>,
}

impl Known {
    fn add(&mut self, verdict: &[u8]) {
        match verdict {
            b"h" => {}
            [b'b', text @ ..] => {
                let body = calls::body(text);
                self.effects = self.effects.and(body.effects);
                if body.calls.unclear {
                    self.effects = self.effects.and(Effects::UNKNOWN);
                }
                self.calls.extend(body.calls.names);
                // What it calls may set what it says.
                self.too_many |= !crate::sql::custom_names(text, true, &mut self.settings);
            }
            _ => self.effects = self.effects.and(Effects::UNKNOWN),
        }
    }
}

/// The part of the question that asks about functions by name, `$3`. A default of a parameter may call anything. Verdicts: `h`, harmless: PostgreSQL's own, of extensions
/// that are known to keep nothing in the session, or in C and not declared to be volatile; `b` and a body; `u`, anything else.
/// What is not ASCII in a body could not be had in every encoding. In its place stands a byte that begins no token: in strings
/// and comments it is of no interest, and what has it in a name is not understood.
pub(super) const QUESTION: &str = "\
    select 'f', p.proname::pg_catalog.text, case \
    when p.proargdefaults is not null then 'u' \
    when l.lanname operator(pg_catalog.=) 'internal' \
    and (p.prokind operator(pg_catalog.<>) 'a' or p.oid operator(pg_catalog.<) 16384::pg_catalog.oid) then 'h' \
    when exists (select from pg_catalog.pg_depend d join pg_catalog.pg_extension e on e.oid operator(pg_catalog.=) d.refobjid \
    where d.classid operator(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
    and d.objid operator(pg_catalog.=) p.oid and d.deptype operator(pg_catalog.=) 'e' \
    and e.extname operator(pg_catalog.=) any ('{btree_gin,btree_gist,citext,cube,earthdistance,fuzzystrmatch,h3,hstore,intarray,\
    isn,lo,ltree,pg_trgm,pgcrypto,postgis,seg,unaccent,uuid-ossp,vector}'::pg_catalog.name[])) then 'h' \
    when l.lanname operator(pg_catalog.=) 'c' and p.provolatile operator(pg_catalog.<>) 'v' then 'h' \
    when l.lanname operator(pg_catalog.=) any ('{sql,plpgsql}'::pg_catalog.name[]) \
    and p.prosrc operator(pg_catalog.<>) '' and pg_catalog.length(p.prosrc) operator(pg_catalog.<) 30000 \
    then 'b' operator(pg_catalog.||) pg_catalog.regexp_replace(p.prosrc, E'[^\\\\x01-\\\\x7f]', E'\\x01', 'g') \
    else 'u' end \
    from pg_catalog.pg_proc p join pg_catalog.pg_language l on l.oid operator(pg_catalog.=) p.prolang \
    where p.proname operator(pg_catalog.=) any ($3::pg_catalog.name[])";

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(names: &[&str]) -> Calls {
        Calls { names: names.iter().map(|name| (*name).into()).collect(), unclear: false }
    }

    #[test]
    fn what_a_function_may_leave_is_what_those_may_that_it_calls() {
        let functions = Functions::default();
        let verdict = functions.judge(&calls(&["outer"]));
        assert_eq!((verdict.effects, verdict.missing), (Effects::UNKNOWN, vec![Box::from("outer")]));
        let row = |name: &str, verdict: &str| (name.as_bytes().into(), verdict.as_bytes().into());
        let rows = [row("outer", "bselect inner(1), absent(2)"), row("outer", "h")];
        let asked = || vec!["outer".into(), "absent".into()];
        let learned = functions.learn(functions.version(), asked(), &rows);
        assert_eq!(
            learned,
            Learned { settings: vec![], missing: vec!["inner".into()] },
            "what it calls is asked for next"
        );
        assert_eq!(functions.judge(&calls(&["outer"])).missing, [Box::from("inner")]);
        let rows = [row("inner", "bbegin perform set_config('my.x', outer(1), false); end")];
        let learned = functions.learn(functions.version(), vec![Box::from("inner")], &rows);
        assert!(learned.settings.contains(&"my.x".into()) && learned.missing.is_empty(), "{learned:?}");
        let verdict = functions.judge(&calls(&["outer"]));
        assert_eq!((verdict.effects, verdict.missing.len()), (Effects::SETTING, 0));
        assert_eq!(verdict.settings, [Box::from("my.x")]);
        assert_eq!(functions.judge(&calls(&["absent"])).effects, Effects::NONE);
        // Another answer than that to the last question is out of date.
        let version = functions.version();
        functions.forget();
        let learned = functions.learn(version, vec![Box::from("absent"), Box::from("inner")], &rows);
        let (settings, missing) = (vec!["my.x".into()], vec!["absent".into(), "inner".into()]);
        assert_eq!(learned, Learned { settings, missing }, "what they have set is looked for all the same");
        assert_eq!(functions.judge(&calls(&["absent"])).effects, Effects::UNKNOWN);
    }
}
