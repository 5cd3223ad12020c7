//! The constants of a statement mean for good what they meant when it was prepared.
//!
//! PostgreSQL reads them then: a date by `DateStyle`, a backslash by `standard_conforming_strings`. Whatever the session
//! sets later changes nothing, unless it is `search_path`: then all of the text is looked at anew. So a statement that is
//! prepared again, on another server, is prepared under the settings of then, which are put back behind it in the same
//! write.

use super::pipeline::Fate;
use super::prepared::Own;
use super::settings::{READING, Setting, Settings};
use super::{Outbound, ServerSide};

/// A setting that constants were read by, and its value by now; none is the server's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reading {
    name: &'static str,
    then: Option<Box<str>>,
    now: Option<Box<str>>,
}

const _: () = assert!(READING.len() <= Own::MOST);

/// Whether something in a text may be read in one way or another.
pub(super) fn may_have_constants(text: &[u8]) -> bool {
    let quotes = |pair: &[u8]| pair[0] == b'$' && !pair[1].is_ascii_digit();
    text.contains(&b'\'')
        || text.windows(2).any(quotes)
        || text.windows(4).any(|word| word.eq_ignore_ascii_case(b"null"))
}

/// By what constants are to be read that were read under `then`, but for what `reading` says, where `now` is set.
pub(super) fn changes(then: &[Setting], reading: &[Reading], now: &[Setting]) -> Vec<Reading> {
    fn get<'a>(settings: &'a [Setting], name: &str) -> Option<&'a str> {
        settings.iter().find(|(n, _)| **n == *name).map(|(_, value)| &**value)
    }
    if get(then, "search_path") != get(now, "search_path") {
        return Vec::new();
    }
    let changed = READING.into_iter().filter_map(|name| {
        let read = reading.iter().find(|reading| reading.name == name);
        let then = read.map_or_else(|| get(then, name), |read| read.then.as_deref());
        let now = get(now, name);
        (then != now).then(|| Reading { name, then: then.map(Into::into), now: now.map(Into::into) })
    });
    let changed: Vec<Reading> = changed.collect();
    // Parameters are read in the encoding of the time: with one on its way they had better be the same in all.
    let is_ascii = |value: &Option<Box<str>>| value.as_ref().is_none_or(|value| value.is_ascii());
    if changed.iter().all(|reading| is_ascii(&reading.then) && is_ascii(&reading.now)) { changed } else { Vec::new() }
}

/// The same for the unnamed statement.
pub(super) fn unnamed_changes(text: &[u8], then: &Settings, now: &Settings) -> Vec<Reading> {
    if may_have_constants(text) { changes(then.parse_key(), &[], now.parse_key()) } else { Vec::new() }
}

impl ServerSide {
    /// Whether the settings of another time can be set for a moment: it is known what they are now, and nothing that is on
    /// its way can have failed the transaction.
    pub(super) fn can_read_as_then(&self) -> bool {
        !self.is_unsettled() && self.pipeline.surely_accepts()
    }

    /// Sets what constants are to be read by: that of then, or that of now again.
    pub(super) fn set_reading(&mut self, reading: &[Reading], then: bool, fate: Fate, to_server: &mut Outbound<'_>) {
        if reading.is_empty() {
            return;
        }
        let value = |reading: &Reading| if then { reading.then.clone() } else { reading.now.clone() };
        let values: Vec<(&str, Option<Box<str>>)> = reading.iter().map(|r| (r.name, value(r))).collect();
        let values: Vec<Option<&[u8]>> = values
            .iter()
            .flat_map(|(name, value)| [Some(name.as_bytes()), value.as_deref().map(str::as_bytes)])
            .collect();
        self.set_in_front(&values, fate, to_server);
    }
}
