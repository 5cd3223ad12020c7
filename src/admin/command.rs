//! The console's commands, as text.

use crate::sql::{Lexer, StrKind, Token};

/// A command of the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Nothing but white space and semicolons.
    Empty,
    /// SHOW a table.
    Show(Table),
    /// SHOW one setting that drivers ask for.
    ShowSetting(String),
    /// EXPLAIN ROUTE of a statement, in one database or in all.
    ExplainRoute {
        /// The database, by the name that clients write.
        database: Option<String>,
        /// The statement: any SQL.
        sql: String,
    },
    /// `SELECT 1`, as health checks do.
    SelectOne,
    /// PAUSE one database or all.
    Pause(Option<String>),
    /// RESUME one database or all.
    Resume(Option<String>),
    /// RECONNECT one database or all.
    Reconnect(Option<String>),
    /// WAIT_CLOSE one database or all.
    WaitClose(Option<String>),
    /// KILL one database or all.
    Kill(Option<String>),
    /// KILL_CLIENT by its id.
    KillClient(u64),
    /// DISABLE a database.
    Disable(String),
    /// ENABLE a database.
    Enable(String),
    /// RELOAD the configuration.
    Reload,
    /// SHUTDOWN: at once, when servers are free, or when clients have left.
    Shutdown(Shutdown),
    /// SET a setting of the pooler.
    Set(String, String),
    /// SET of something that drivers set and that means nothing here.
    SetIgnored,
}

/// How to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// At once.
    Now,
    /// When no transaction is open any more.
    WaitForServers,
    /// When all clients have left, or the drain timeout has passed.
    WaitForClients,
}

macro_rules! tables {
    ($($variant:ident = $name:literal, $help:literal;)+) => {
        /// The tables that SHOW knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Table { $(#[doc = $help] $variant,)+ }

        impl Table {
            /// All of them, with their names and what they show.
            pub const ALL: &[(Self, &'static str, &'static str)] = &[$((Self::$variant, $name, $help)),+];
        }
    };
}

tables! {
    Clients = "CLIENTS", "clients that are logged in";
    Config = "CONFIG", "settings, their defaults, and whether RELOAD or SET changes them";
    Credentials = "CREDENTIALS", "what servers are logged in to with: where it comes from, how old it is, when it ends, what went wrong; never the secret";
    Databases = "DATABASES", "configured databases";
    Help = "HELP", "this list";
    Learned = "LEARNED", "statements that a replica has refused: for a while they go to the primary";
    Listeners = "LISTENERS", "connections that listen for clients (LISTEN)";
    Lists = "LISTS", "how many of everything there are";
    Mem = "MEM", "memory";
    Nodes = "NODES", "servers of each database: what they are, how far behind, how near, and why they are not used";
    Pins = "PINS", "clients that keep their server between transactions, and why";
    Pools = "POOLS", "pools: clients and servers by what they are doing";
    Routes = "ROUTES", "how many requests went to replicas and to the primary, and why";
    Servers = "SERVERS", "server connections";
    State = "STATE", "whether the pooler is active, paused or suspended";
    Stats = "STATS", "totals and averages for each database";
    StatsAverages = "STATS_AVERAGES", "averages for each database";
    StatsTotals = "STATS_TOTALS", "totals for each database";
    Totals = "TOTALS", "totals over all databases";
    Users = "USERS", "users";
    Version = "VERSION", "the version";
}

/// Settings that drivers read or set on every connection.
const DRIVER_SETTINGS: &[(&str, &str)] = &[
    ("client_encoding", "UTF8"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "UTC"),
    ("server_version", super::console::SERVER_VERSION),
    ("transaction_isolation", "read committed"),
];

/// The words of a command: quoted ones without their quotes, an equals sign as a word of its own.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        if let quote @ ('\'' | '"') = first {
            let mut word = String::new();
            let mut tail = &rest[1..];
            loop {
                let end = tail.find(quote).ok_or("a quote is not closed")?;
                word.push_str(&tail[..end]);
                tail = &tail[end + 1..];
                match tail.strip_prefix(quote) {
                    Some(more) => {
                        word.push(quote);
                        tail = more;
                    }
                    None => break,
                }
            }
            words.push(word);
            rest = tail.trim_start();
        } else if first == '=' || first == ';' {
            words.push(first.to_string());
            rest = rest[1..].trim_start();
        } else {
            let end = rest.find(|c: char| c.is_whitespace() || "=;'\"".contains(c)).unwrap_or(rest.len());
            words.push(rest[..end].to_owned());
            rest = rest[end..].trim_start();
        }
    }
    while words.last().is_some_and(|word| word == ";") {
        words.pop();
    }
    Ok(words)
}

impl Command {
    /// Reads a command.
    ///
    /// # Errors
    /// What is wrong, for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = || format!("invalid command '{}', use SHOW HELP;", text.trim());
        if let Some(explain) = Self::explain_route(text)? {
            return Ok(explain);
        }
        let words = words(text)?;
        let upper: Vec<String> = words.iter().map(|word| word.to_ascii_uppercase()).collect();
        let upper: Vec<&str> = upper.iter().map(String::as_str).collect();
        let name = || words.get(1).cloned();
        Ok(match upper.as_slice() {
            [] => Self::Empty,
            ["SELECT", "1"] => Self::SelectOne,
            // PgBouncer takes SELECT for SHOW.
            ["SHOW" | "SELECT", what] => match Table::ALL.iter().find(|(_, name, _)| name == what) {
                Some((table, ..)) => Self::Show(*table),
                None => Self::setting(&what.to_ascii_lowercase()).ok_or_else(invalid)?,
            },
            ["SHOW", "TRANSACTION", "ISOLATION", "LEVEL"] => {
                Self::setting("transaction_isolation").ok_or_else(invalid)?
            }
            ["PAUSE"] | ["PAUSE", _] => Self::Pause(name()),
            ["RESUME"] | ["RESUME", _] => Self::Resume(name()),
            ["RECONNECT"] | ["RECONNECT", _] => Self::Reconnect(name()),
            ["WAIT_CLOSE"] | ["WAIT_CLOSE", _] => Self::WaitClose(name()),
            ["KILL"] | ["KILL", _] => Self::Kill(name()),
            ["KILL_CLIENT", id] => Self::KillClient(id.parse().map_err(|_| "KILL_CLIENT takes an id of SHOW CLIENTS")?),
            ["DISABLE", _] => Self::Disable(words[1].clone()),
            ["ENABLE", _] => Self::Enable(words[1].clone()),
            ["RELOAD"] => Self::Reload,
            ["SHUTDOWN"] => Self::Shutdown(Shutdown::Now),
            ["SHUTDOWN", "WAIT_FOR_SERVERS"] => Self::Shutdown(Shutdown::WaitForServers),
            ["SHUTDOWN", "WAIT_FOR_CLIENTS"] => Self::Shutdown(Shutdown::WaitForClients),
            ["SET", rest @ ..] => match rest {
                ["SESSION" | "LOCAL", ..] => Self::SetIgnored,
                [key, "=" | "TO", ..] if rest.len() >= 3 => {
                    let key = key.to_ascii_lowercase();
                    let driver = DRIVER_SETTINGS.iter().any(|(name, _)| *name == key);
                    let known = ["application_name", "extra_float_digits", "search_path"].contains(&key.as_str());
                    if driver || known { Self::SetIgnored } else { Self::Set(key, words[3..].join(" ")) }
                }
                _ => return Err("SET takes a setting and its value: SET key = 'value'".into()),
            },
            _ => return Err(invalid()),
        })
    }

    /// `EXPLAIN ROUTE [FOR database] statement`. The statement is SQL, with quotes, comments and semicolons of its own.
    fn explain_route(text: &str) -> Result<Option<Self>, String> {
        let mut lexer = Lexer::new(text.as_bytes(), true);
        let is =
            |token: Token<'_>, word: &str| matches!(token, Token::Word(w) if w.eq_ignore_ascii_case(word.as_bytes()));
        if !is(lexer.next_token(), "explain") || !is(lexer.next_token(), "route") {
            return Ok(None);
        }
        let usage = || "EXPLAIN ROUTE [FOR database] takes a statement".to_owned();
        let mut database = None;
        if is(lexer.peek(), "for") {
            lexer.next_token();
            let (Token::Word(name) | Token::Quoted(name) | Token::Str(StrKind::Plain, name)) = lexer.next_token()
            else {
                return Err(usage());
            };
            database = Some(String::from_utf8_lossy(name).replace("\"\"", "\""));
        }
        let sql = text.get(lexer.offset()..).unwrap_or_default().trim();
        if sql.trim_end_matches(';').is_empty() {
            return Err(usage());
        }
        Ok(Some(Self::ExplainRoute { database, sql: sql.to_owned() }))
    }

    fn setting(name: &str) -> Option<Self> {
        DRIVER_SETTINGS.iter().any(|(known, _)| *known == name).then(|| Self::ShowSetting(name.to_owned()))
    }

    /// The value of a setting that drivers ask for.
    pub fn driver_setting(name: &str) -> &'static str {
        DRIVER_SETTINGS.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// Whether only an administrator may do this.
    pub fn needs_admin(&self) -> bool {
        match self {
            Self::Empty
            | Self::Show(_)
            | Self::ShowSetting(_)
            | Self::ExplainRoute { .. }
            | Self::SelectOne
            | Self::SetIgnored => false,
            Self::Pause(_)
            | Self::Resume(_)
            | Self::Reconnect(_)
            | Self::WaitClose(_)
            | Self::Kill(_)
            | Self::KillClient(_)
            | Self::Disable(_)
            | Self::Enable(_)
            | Self::Reload
            | Self::Shutdown(_)
            | Self::Set(..) => true,
        }
    }

    /// What CommandComplete says.
    pub fn tag(&self) -> &'static str {
        match self {
            Self::Empty => "",
            Self::Show(_) | Self::ShowSetting(_) => "SHOW",
            Self::ExplainRoute { .. } => "EXPLAIN",
            Self::SelectOne => "SELECT 1",
            Self::Pause(_) => "PAUSE",
            Self::Resume(_) => "RESUME",
            Self::Reconnect(_) => "RECONNECT",
            Self::WaitClose(_) => "WAIT_CLOSE",
            Self::Kill(_) => "KILL",
            Self::KillClient(_) => "KILL_CLIENT",
            Self::Disable(_) => "DISABLE",
            Self::Enable(_) => "ENABLE",
            Self::Reload => "RELOAD",
            Self::Shutdown(_) => "SHUTDOWN",
            Self::Set(..) | Self::SetIgnored => "SET",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_in_any_case_with_quotes_and_semicolons() {
        let db = |name: &str| Some(name.to_owned());
        for (text, command) in [
            ("show pools;", Command::Show(Table::Pools)),
            ("SELECT clients", Command::Show(Table::Clients)),
            ("  ", Command::Empty),
            (";", Command::Empty),
            ("PAUSE", Command::Pause(None)),
            ("pause \"my db\" ;", Command::Pause(db("my db"))),
            ("KILL_CLIENT 12", Command::KillClient(12)),
            ("SET pool_size = 5", Command::Set("pool_size".into(), "5".into())),
            ("set log.level to 'debug'", Command::Set("log.level".into(), "debug".into())),
            ("SET client_encoding TO 'UTF8'", Command::SetIgnored),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Command::SetIgnored),
            ("show server_version", Command::ShowSetting("server_version".into())),
            ("SHUTDOWN WAIT_FOR_CLIENTS", Command::Shutdown(Shutdown::WaitForClients)),
            ("select 1", Command::SelectOne),
        ] {
            assert_eq!(Command::parse(text), Ok(command), "{text}");
        }
        for text in [
            "SHOW",
            "SHOW nothing",
            "KILL_CLIENT x",
            "KILL_CLIENT",
            "DISABLE",
            "DROP TABLE x",
            "PAUSE a b",
            "SET x",
            "PAUSE 'a",
        ] {
            assert!(Command::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_stands_behind_explain_route_is_sql_of_any_kind() {
        for (text, database, sql) in [
            ("EXPLAIN ROUTE select 1;", None, "select 1;"),
            ("explain route select ';', \"a;b\", $$'$$ -- x", None, "select ';', \"a;b\", $$'$$ -- x"),
            ("explain/**/route for shop\nselect 1; select 2", Some("shop"), "select 1; select 2"),
            ("EXPLAIN ROUTE FOR \"my \"\"db\" select 'it is open", Some("my \"db"), "select 'it is open"),
            ("explain route /* ambassador: primary */ select 1", None, "/* ambassador: primary */ select 1"),
            ("explain route (select 1)", None, "(select 1)"),
        ] {
            let expected = Command::ExplainRoute { database: database.map(str::to_owned), sql: sql.to_owned() };
            assert_eq!(Command::parse(text), Ok(expected), "{text}");
        }
        for text in ["explain route", "explain route ;", "explain route for", "explain route for x", "explain select 1"]
        {
            assert!(Command::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn f36_whatever_changes_something_needs_an_administrator() {
        for text in [
            "PAUSE",
            "RESUME",
            "RECONNECT",
            "WAIT_CLOSE",
            "KILL",
            "KILL_CLIENT 1",
            "DISABLE x",
            "ENABLE x",
            "RELOAD",
            "SHUTDOWN",
            "SET a = b",
        ] {
            assert!(Command::parse(text).unwrap().needs_admin(), "{text}");
        }
    }
}
