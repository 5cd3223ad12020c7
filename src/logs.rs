//! The log: where it goes, what is in it, and how much of one kind.

use crate::config::{LogConfig, LogFormat};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata};
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// The log of a running program.
#[derive(Clone)]
pub struct Logs {
    level: Handle<Targets, Registry>,
    rate: Arc<Rate>,
}

impl Logs {
    /// Logs at another level from now on. The text was checked when it was resolved.
    pub fn set_level(&self, level: &str) {
        let _ = self.level.reload(targets(level));
    }

    /// Says what was left out since it was last asked. To be called about once a second.
    pub fn tell_what_was_left_out(&self) {
        for (kind, lines) in self.rate.take_left_out() {
            tracing::warn!(kind, lines, "more lines of this kind were left out of the log");
        }
    }

    /// Lines that were left out since the start.
    pub fn left_out(&self) -> u64 {
        self.rate.left_out.load(Ordering::Relaxed)
    }
}

/// Lines of one kind, which is one place in the code, that are written in one second (faults.md R4): what happens to
/// thousands of clients at once must not fill the disk, nor cost what the log costs thousands of times.
const MOST: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// Counts lines by their kind.
#[derive(Default)]
struct Rate {
    kinds: Mutex<HashMap<Identifier, Lately>>,
    left_out: AtomicU64,
}

/// What was said of one kind lately.
struct Lately {
    since: Instant,
    lines: u32,
    left_out: u64,
    /// Where in the code it is.
    kind: &'static str,
}

impl Rate {
    fn kinds(&self) -> MutexGuard<'_, HashMap<Identifier, Lately>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more of this kind may be written at `now`.
    fn allows(&self, kind: &'static Metadata<'static>, now: Instant) -> bool {
        let mut kinds = self.kinds();
        let lately = match kinds.entry(kind.callsite()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Lately { since: now, lines: 0, left_out: 0, kind: kind.name() }),
        };
        if now.saturating_duration_since(lately.since) >= SECOND {
            (lately.since, lately.lines) = (now, 0);
        }
        if lately.lines < MOST {
            lately.lines += 1;
            return true;
        }
        lately.left_out += 1;
        self.left_out.fetch_add(1, Ordering::Relaxed);
        false
    }

    fn take_left_out(&self) -> Vec<(&'static str, u64)> {
        let mut kinds = self.kinds();
        let of_kind = |lately: &mut Lately| (lately.kind, std::mem::take(&mut lately.left_out));
        kinds.values_mut().map(of_kind).filter(|(_, lines)| *lines > 0).collect()
    }
}

/// Lets lines through that are not too many of their kind.
struct Limited(Arc<Rate>);

impl<S> Filter<S> for Limited {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let kind = event.metadata();
        // Who looks for something wants all of it, and what operators do is on record in any case (faults.md F36).
        let counts = *kind.level() <= Level::INFO && !kind.target().starts_with("pg_ambassador::admin");
        !counts || self.0.allows(kind, Instant::now())
    }
}

/// What is logged at a level. Of libraries that handle secrets only what an operator should know, unless the level names
/// them: what they trace is not ours to vouch for.
fn targets(level: &str) -> Targets {
    let targets: Targets = level.parse().unwrap_or_else(|_| Targets::new().with_default(Level::INFO));
    let quiet = ["aws_", "hyper", "rustls"].into_iter().filter(|library| !level.contains(library));
    let most = targets.default_level().unwrap_or(LevelFilter::OFF).min(LevelFilter::WARN);
    quiet.fold(targets, |targets, library| targets.with_target(library, most))
}

/// Begins to log to the standard error stream. To be called once.
pub fn begin(config: &LogConfig) -> Logs {
    let (filter, level) = reload::Layer::new(targets(&config.level));
    let rate = Arc::<Rate>::default();
    let output = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    let output = match config.format {
        LogFormat::Text => output.boxed(),
        LogFormat::Json => output.json().flatten_event(true).boxed(),
    };
    let output = output.with_filter(filter.and(Limited(Arc::clone(&rate))));
    // A second set-up can only come from a test in the same process: the first stays.
    let _ = tracing_subscriber::registry().with(output).try_init();
    Logs { level, rate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::callsite::{Callsite, DefaultCallsite};
    use tracing::field::FieldSet;
    use tracing::metadata::Kind;

    static METADATA: Metadata<'static> = Metadata::new(
        "event src/x.rs:1",
        "pg_ambassador::client",
        Level::WARN,
        None,
        None,
        None,
        FieldSet::new(&[], tracing::callsite::Identifier(&CALLSITE)),
        Kind::EVENT,
    );
    static CALLSITE: DefaultCallsite = DefaultCallsite::new(&METADATA);

    #[test]
    fn of_one_kind_there_are_ten_lines_a_second_and_the_rest_is_told_as_a_number() {
        let (rate, start) = (Rate::default(), Instant::now());
        assert_eq!(CALLSITE.metadata().name(), METADATA.name());
        let written = |at: Duration| (0..25).filter(|_| rate.allows(&METADATA, start + at)).count();
        assert_eq!(written(Duration::ZERO), 10);
        assert_eq!(written(SECOND / 2), 0);
        assert_eq!(rate.take_left_out(), [("event src/x.rs:1", 40)]);
        assert_eq!(written(SECOND), 10);
        assert_eq!(rate.take_left_out(), [("event src/x.rs:1", 15)]);
        assert!(rate.take_left_out().is_empty());
        assert_eq!(rate.left_out.load(Ordering::Relaxed), 55);
    }
}
