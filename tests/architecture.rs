//! Who may know whom: the pure modules get bytes, values, time and randomness as arguments, and fetch none of them.

use std::path::{Path, PathBuf};

/// What decides, and does nothing.
const PURE: [&str; 5] = ["wire", "sql", "session", "auth", "routing"];

/// What a pure module may not name: sockets, clocks, the environment, chance, and whoever has them.
const FOREIGN: [&str; 15] = [
    "tokio",
    "std::net",
    "std::env",
    "std::fs",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime",
    "fastrand",
    "crate::random",
    "metrics::",
    "tracing::",
    "rustix",
    "socket2",
    "rustls",
];

/// Modules of this crate that a pure module may use.
const FRIENDS: [&str; 6] = ["wire", "sql", "session", "auth", "routing", "secret"];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The code of a file, line by line: without comments, and without its tests, which come last.
fn code(path: &Path) -> Vec<(usize, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().enumerate().take_while(|(_, line)| !line.starts_with("#[cfg(test)]"));
    lines.map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default().to_owned())).collect()
}

fn files_of(modules: &[&str]) -> Vec<PathBuf> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for module in modules {
        let (dir, file) = (src.join(module), src.join(format!("{module}.rs")));
        if dir.is_dir() {
            sources(&dir, &mut files);
        } else if file.is_file() {
            files.push(file);
        }
    }
    files
}

#[test]
fn pure_modules_fetch_nothing() {
    let files = files_of(&PURE);
    assert!(files.len() > 10, "the pure modules are not where they are looked for: {files:?}");
    let mut found = Vec::new();
    for path in files {
        for (line, text) in code(&path) {
            let foreign = FOREIGN.iter().filter(|name| text.contains(*name));
            found.extend(foreign.map(|name| format!("{}:{line} names {name}", path.display())));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn pure_modules_know_only_pure_modules() {
    let mut found = Vec::new();
    for path in files_of(&PURE) {
        for (line, text) in code(&path) {
            for after in text.split("crate::").skip(1) {
                let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if !FRIENDS.contains(&name.as_str()) {
                    found.push(format!("{}:{line} knows {name}", path.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn only_the_place_of_assembly_knows_the_whole_configuration() {
    let mut found = Vec::new();
    for path in files_of(&[
        "client",
        "listen",
        "pool",
        "monitor",
        "server",
        "net",
        "credentials",
        "routing",
        "wire",
        "sql",
        "session",
        "auth",
    ]) {
        for (line, text) in code(&path) {
            if text.contains("crate::config") {
                found.push(format!("{}:{line}", path.display()));
            }
        }
    }
    assert!(found.is_empty(), "parts that import the configuration:\n{}", found.join("\n"));
}
