//! One program for all targets: the first byte of an input chooses the target, so that one corpus serves all.
//! `FUZZ_TARGET` keeps it at one of them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pg_ambassador_fuzz::TARGETS;
use std::sync::OnceLock;

fn chosen() -> Option<usize> {
    static CHOSEN: OnceLock<Option<usize>> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").ok()?;
        Some(TARGETS.iter().position(|target| target.name == name).expect("FUZZ_TARGET names a target"))
    })
}

fuzz_target!(|data: &[u8]| {
    match (chosen(), data.split_first()) {
        (Some(target), _) => (TARGETS[target].run)(data),
        (None, Some((first, rest))) => (TARGETS[usize::from(*first) % TARGETS.len()].run)(rest),
        (None, None) => {}
    }
});
