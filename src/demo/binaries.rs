//! Finds PostgreSQL's server programs on this machine: in the same places as `scripts/setup`, which can also fetch them.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a server with replicas needs, and we to ask it something.
const NEEDED: [&str; 5] = ["initdb", "postgres", "pg_ctl", "pg_basebackup", "psql"];

/// A directory with PostgreSQL's server programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    dir: PathBuf,
    /// The major version.
    pub major: u32,
}

/// There is no PostgreSQL server on this machine where one is looked for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// Nowhere.
    #[error(
        "no PostgreSQL server programs found (PATH, pg_config, /usr/lib/postgresql, /usr/pgsql-*, Homebrew): install \
         them (apt-get install postgresql, brew install postgresql), set PG_BINDIR to their directory, or run `make \
         demo`, which fetches them"
    )]
    Nowhere,
    /// Not where the environment says that they are.
    #[error("PG_BINDIR is {dir}, but it has no working {program}: PostgreSQL's server programs belong there", dir = .dir.display())]
    NotThere {
        /// The directory.
        dir: PathBuf,
        /// The first program that is missing, or does not run.
        program: &'static str,
    },
}

impl Binaries {
    /// Looks in `$PG_BINDIR` alone if it is set, else in `PATH`, `pg_config --bindir`, where distributions and Homebrew
    /// put them.
    pub fn find() -> Result<Self, NotFound> {
        if let Some(dir) = std::env::var_os("PG_BINDIR") {
            let dir = PathBuf::from(dir);
            let program = NEEDED.into_iter().find(|name| !dir.join(name).is_file()).unwrap_or("postgres");
            return Self::at(&dir).ok_or(NotFound::NotThere { dir, program });
        }
        candidates().iter().find_map(|dir| Self::at(dir)).ok_or(NotFound::Nowhere)
    }

    /// The programs in this directory, if all of them are there.
    pub fn at(dir: &Path) -> Option<Self> {
        if !NEEDED.iter().all(|name| dir.join(name).is_file()) {
            return None;
        }
        let output = Command::new(dir.join("postgres")).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // "postgres (PostgreSQL) 15.18 (Debian ...)", "postgres (PostgreSQL) 19beta1"
        let version = text.split_whitespace().nth(2)?;
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        Some(Self { dir: dir.canonicalize().unwrap_or_else(|_| dir.to_owned()), major: digits.parse().ok()? })
    }

    /// The path of a program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

fn candidates() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where a program in the PATH really is: distributions put links to some of them there.
    for dir in std::env::split_paths(&path) {
        if let Ok(real) = dir.join("postgres").canonicalize() {
            dirs.extend(real.parent().map(Path::to_owned));
        }
    }
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        dirs.push(String::from_utf8_lossy(&output.stdout).trim().into());
    }
    dirs.extend(numbered(Path::new("/usr/lib/postgresql"), ""));
    dirs.extend(numbered(Path::new("/usr"), "pgsql-"));
    for prefix in ["/opt/homebrew/opt", "/usr/local/opt", "/home/linuxbrew/.linuxbrew/opt"] {
        let formulas = std::fs::read_dir(prefix).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = formulas
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("postgresql"))
            .map(|entry| entry.path().join("bin"))
            .collect();
        found.sort();
        dirs.extend(found.into_iter().rev());
    }
    dirs
}

/// The `bin` directories under those whose name is this prefix and a number, the highest number first.
fn numbered(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).collect()
}
