//! `pg-ambassador route`: of a script, with and without a database, where each statement would go.

use crate::support::{cluster, shared};
use pg_ambassador::demo::cluster::Options;
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs it with this standard input; its exit code, and what it printed to either stream.
fn route(args: &[&str], script: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pg-ambassador"));
    command.arg("route").args(args).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may have ended without reading it.
    let _ = child.stdin.take().unwrap().write_all(script.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Line number, destination, and why, of each statement.
fn lines(printed: &str) -> Vec<(u32, String, String)> {
    let columns = |line: &str| {
        let words: Vec<&str> = line.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        (words[0].parse().unwrap(), words[1].to_owned(), words[2].to_owned())
    };
    printed.lines().take_while(|line| !line.is_empty()).map(columns).collect()
}

const SCRIPT: &str = "-- a report\nselect count(*), ';' from sales;\nselect area(1),\n  log_it(2);\n\
                      update sales set paid = true; table seen;\n";

#[test]
fn a_script_is_explained_without_a_database() {
    let (code, printed, said) = route(&[], SCRIPT);
    let line = |at, to: &str, why: &str| (at, to.to_owned(), why.to_owned());
    assert_eq!((code, said.as_str()), (0, ""));
    let expected = [
        line(2, "replica", "read"),
        line(3, "primary", "unknown function: log_it"),
        line(5, "primary", "command: update"),
        line(5, "replica", "read"),
    ];
    assert_eq!(lines(&printed), expected, "{printed}");
    assert!(printed.contains("  select count(*), ';' from sales\n"), "{printed}");
    assert!(printed.contains("\n4 statements: 2 to a replica (50 %), 2 to the primary.\n"), "{printed}");
    assert!(printed.ends_with("--database-url has one asked for them.\n"), "{printed}");
}

#[test]
fn a_script_is_explained_by_what_a_database_has() {
    let cluster = cluster(&Options::default());
    let made = "create function area(int) returns int language sql stable as 'select 1'; \
                create function log_it(int) returns int language sql as 'select 1'; create view seen as select log_it(1)";
    cluster.psql(0, made).unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable", cluster.port());
    let (code, printed, said) = route(&["--database-url", &url, "-"], SCRIPT);
    let why: Vec<String> = lines(&printed).into_iter().map(|(_, _, why)| why).collect();
    let expected = ["read", "function that may write: log_it", "command: update", "object that may write: seen"];
    assert_eq!((code, said.as_str(), why.as_slice()), (0, "", expected.map(str::to_owned).as_slice()), "{printed}");
    assert!(!printed.contains("not known"), "{printed}");
    let vouched =
        ["--database-url", &url, "--read-functions", "public.log_it,other", "--only-reads", "-c", "table seen"];
    assert_eq!(route(&vouched, "").0, 0);
}

#[test]
fn an_exit_code_says_what_came_of_it() {
    assert_eq!(route(&["--only-reads", "-c", "select 1"], "").0, 0);
    assert_eq!(route(&["--only-reads"], "select 1; vacuum").0, 3);
    assert_eq!(route(&["--only-writes"], "").0, 2);
    assert_eq!(route(&["-c", "select 1", "a file too"], "").0, 2);
    let (code, printed, said) = route(&["no/such.sql"], "");
    assert!(code == 1 && printed.is_empty() && said.starts_with("pg-ambassador: no/such.sql: "), "{said}");
    let (code, _, said) = route(&["--database-url", "mysql://h"], "");
    assert!(code == 1 && said.contains("a URL begins with postgres://"), "{said}");
    let nobody = format!("postgres://nobody@127.0.0.1:{}/nowhere?sslmode=disable", shared().port());
    let (code, _, said) = route(&["--database-url", &nobody], "select 1");
    assert!(code == 1 && said.contains("the database cannot be asked"), "{said}");
}
