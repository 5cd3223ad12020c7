//! The subcommand `route`: of each statement of a script, where it would go and why.

use crate::args;
use crate::config::{self, Fault, Sources};
use crate::monitor;
use crate::pool::Directory;
use crate::pool::directory::Purpose;
use crate::routing::explain::explain;
use crate::routing::{Catalogue, Destination, Leaning, Reason};
use crate::session::Interners;
use crate::sql::Statements;
use crate::sql::reads::{Objects, Plain, Transaction};
use crate::telemetry::Telemetry;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long it may take to ask the database.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of a statement is printed.
const SHOWN: usize = 60;
/// How wide the reasons are, where they are not longer.
const REASON_WIDTH: usize = 40;

/// Why it cannot be said.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// The script cannot be read, or the answer not be written.
    #[error("{what}: {error}")]
    System {
        /// What.
        what: String,
        /// Why.
        error: io::Error,
    },
    /// The URL has faults.
    #[error("{0}")]
    Config(String),
    /// The database does not answer.
    #[error("the database cannot be asked: {0}")]
    Database(String),
}

/// Prints where each statement would go. True if all are for replicas.
pub fn run(options: &args::Route) -> Result<bool, RouteError> {
    let script = read(options)?;
    let catalogue = options.database_url.as_deref().map(|url| catalogue(url, options)).transpose()?;
    let report = match &catalogue {
        Some(catalogue) => report(&script, catalogue, true),
        None => report(&script, &Plain, false),
    };
    match io::stdout().write_all(report.text.as_bytes()) {
        // Whoever reads it has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        result => result.map_err(|error| RouteError::System { what: "standard output".into(), error })?,
    }
    Ok(report.only_reads)
}

fn read(options: &args::Route) -> Result<Vec<u8>, RouteError> {
    if let Some(sql) = &options.command {
        return Ok(sql.clone().into_bytes());
    }
    match &options.file {
        Some(file) if file.as_os_str() != "-" => {
            std::fs::read(file).map_err(|error| RouteError::System { what: file.display().to_string(), error })
        }
        Some(_) | None => {
            let mut script = Vec::new();
            let read = io::stdin().read_to_end(&mut script);
            read.map_err(|error| RouteError::System { what: "standard input".into(), error })?;
            Ok(script)
        }
    }
}

/// Asks the database what its functions, views and operators do, as `run` would log in there.
fn catalogue(url: &str, options: &args::Route) -> Result<Catalogue, RouteError> {
    let env =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let sources = Sources {
        flags: vec![("url".into(), url.to_owned()), ("read_functions".into(), options.read_functions.join(","))],
        // libpq's variables; ours say how to run.
        env: env.filter(|(name, _)| name.starts_with("PG") && !name.starts_with(config::source::ENV_PREFIX)).collect(),
        file: None,
    };
    let faults = |faults: Vec<Fault>| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    let config = config::resolve(&sources).map_err(|list| RouteError::Config(faults(list)))?;
    let database = config.directory.databases.first();
    let user = database.and_then(|database| database.user.clone()).or_else(|| std::env::var("USER").ok());
    let user = user.ok_or_else(|| RouteError::Config("--database-url names no user".into()))?;
    let name = database.and_then(|database| database.dbname.clone()).unwrap_or_else(|| user.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| RouteError::System { what: "cannot start".into(), error })?;
    let ask = async {
        let here = tokio::runtime::Handle::current();
        let directory =
            Directory::new(&config.directory, Arc::new(Interners::default()), Arc::new(Telemetry::default()), here)
                .map_err(|(_, error)| error.to_string())?;
        let pools = directory.pools(&name, &user, Purpose::Clients, None).map_err(|_| "no such database".to_owned())?;
        let mut lease = pools.lease_until(0, Instant::now() + PATIENCE).await.map_err(|error| error.to_string())?;
        monitor::ask(&mut lease, &options.read_functions).await.map_err(|error| error.to_string())
    };
    let answer = runtime.block_on(async { tokio::time::timeout(2 * PATIENCE, ask).await });
    answer.unwrap_or_else(|_| Err("it does not answer".into())).map_err(RouteError::Database)
}

/// What there is to print.
struct Report {
    text: String,
    only_reads: bool,
}

/// The beginning of a statement on one line.
fn beginning(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(10 * SHOWN)]);
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let mut line = words.collect::<Vec<_>>().join(" ");
    if line.chars().count() > SHOWN {
        line = line.chars().take(SHOWN - 3).collect::<String>() + "...";
    }
    line
}

fn percent(part: usize, whole: usize) -> usize {
    (100 * part).checked_div(whole).unwrap_or(0)
}

fn report<O: Objects + ?Sized>(script: &[u8], objects: &O, known: bool) -> Report {
    let mut text = String::new();
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut count, mut reads) = (0, 0);
    // Whether a transaction is open, and then whether a replica may run it.
    let mut open = None;
    for statement in Statements::new(script) {
        let explained = explain(statement.text, true, objects);
        let (destination, reason) = match (open, explained.transaction) {
            (Some(true), _) => (Destination::Replica, Reason::ReadOnlyTransaction),
            (Some(false), _) => (Destination::Primary, Reason::Transaction),
            (None, _) => explained.destination(Leaning::NONE, false),
        };
        match explained.transaction {
            Some(Transaction::Begin(_)) if open.is_none() => open = Some(destination == Destination::Replica),
            Some(Transaction::End { chains: false, .. } | Transaction::TwoPhase) => open = None,
            Some(_) | None => {}
        }
        count += 1;
        reads += usize::from(destination == Destination::Replica);
        *reasons.entry(reason.as_str()).or_default() += 1;
        let of_text = open.is_none() || explained.transaction.is_some();
        let culprit = explained.culprit.filter(|_| of_text && destination == Destination::Primary);
        let culprit = culprit.map(|culprit| format!(": {}", String::from_utf8_lossy(culprit))).unwrap_or_default();
        let why = format!("{}{culprit}", reason.as_str());
        let _ = writeln!(
            text,
            "{:>6}  {:<7}  {why:<REASON_WIDTH$}  {}",
            statement.line,
            destination.as_str(),
            beginning(statement.text.get(statement.first..).unwrap_or_default())
        );
    }
    let _ = writeln!(
        text,
        "{}{count} statement{}: {reads} to a replica ({} %), {} to the primary.",
        if count > 0 { "\n" } else { "" },
        if count == 1 { "" } else { "s" },
        percent(reads, count),
        count - reads
    );
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (reason, count) in reasons {
        let _ = writeln!(text, "{count:>6}  {reason}");
    }
    if !known {
        text.push_str("Functions and views of a database are not known here; --database-url has one asked for them.\n");
    }
    Report { text, only_reads: reads == count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_go_where_they_begin() {
        let script = "begin; select 1; commit; select 1; begin read only; select 1; end; \n\
                      begin read only; commit and chain; select 1; rollback; insert into t values (1)";
        let report = report(script.as_bytes(), &Plain, true);
        let lines: Vec<Vec<&str>> = report
            .text
            .lines()
            .take(12)
            .map(|line| line.split("  ").map(str::trim).filter(|w| !w.is_empty()).collect())
            .collect();
        let went: Vec<(&str, &str)> = lines.iter().map(|line| (line[1], line[2])).collect();
        let (writes, reads) = (("primary", "transaction"), ("replica", "read-only transaction"));
        assert_eq!(went[..4], [writes, writes, writes, ("replica", "read")]);
        assert_eq!(went[4..11], [reads; 7]);
        assert_eq!(lines[11], ["2", "primary", "command: insert", "insert into t values (1)"]);
        assert!(
            !report.only_reads && report.text.contains("\n12 statements: 8 to a replica (66 %), 4 to the primary.\n")
        );
    }
}
