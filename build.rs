//! Has the linker put the functions that logins and queries run beside each other (`src/layout.txt`, which
//! `benches/run --layout` writes).
//!
//! What one login runs is some hundred functions of a program of 9 MB, and lies on 170 pages of it otherwise. A pooler is
//! woken when others have used the processor, and its caches: each page is an address to look up again. A name that a
//! compiler has changed is no fault: that function then lies where it would without this.

use std::{env, error, fs, path::PathBuf};

const LAYOUT: &str = "src/layout.txt";

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={LAYOUT}");
    if !is_wanted() {
        return Ok(());
    }
    // In the linker's own layout, with one section more: GNU ld and LLD understand this alike.
    let mut script = String::from("SECTIONS {\n  .text.hot : {\n");
    for name in fs::read_to_string(LAYOUT)?.lines() {
        script.push_str(&format!("    *(.text.{name})\n"));
    }
    script.push_str("  }\n}\nINSERT BEFORE .text;\n");
    let path = PathBuf::from(env::var("OUT_DIR")?).join("layout.ld");
    fs::write(&path, script)?;
    println!("cargo::rustc-link-arg-bins=-T");
    println!("cargo::rustc-link-arg-bins={}", path.display());
    Ok(())
}

/// In what is built to be used, by a linker that this was tried with: the compiler's own choice for this target. Whoever has
/// chosen another one is not to find out here that it knows no such scripts.
fn is_wanted() -> bool {
    let value = |name: &str| env::var(name).unwrap_or_default();
    let chosen = value("CARGO_ENCODED_RUSTFLAGS").contains("link") || !value("RUSTC_LINKER").is_empty();
    value("PROFILE") == "release" && value("TARGET") == "x86_64-unknown-linux-gnu" && !chosen
}
