//! Where settings are written: flags, the environment, a TOML file; and the reader that takes them from there.
//!
//! Nothing here knows what a setting means. The reader remembers what was asked for, so that whatever else is written
//! can be reported as unknown, and collects every fault with its place instead of stopping at the first.

#![allow(clippy::wildcard_enum_match_arm, reason = "all other kinds of value are the wrong kind")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::PathBuf;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is read once, whichever kind of setting it is.
const AT_START: [&str; 6] =
    ["auth.pass_through", "auth.query_password", "client_login_timeout", "stats_period", "tls.required", "unix_socket"];

/// What each environment variable for a setting begins with.
pub const ENV_PREFIX: &str = "PG_AMBASSADOR_";

/// Something wrong in the configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where it is written.
    pub place: Place,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Where something is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A flag, or the URL on the command line.
    Flag(String),
    /// An environment variable.
    Env(String),
    /// A line and column of a file, both from 1.
    File(PathBuf, usize, usize),
    /// Nowhere: it is missing, or follows from other settings.
    Nowhere(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => f.write_str(flag),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::File(path, line, column) => write!(f, "{}:{line}:{column}", path.display()),
            Self::Nowhere(what) => f.write_str(what),
        }
    }
}

/// A configuration file.
#[derive(Debug, Clone)]
pub struct File {
    /// Its path, for messages.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// Everything that is written.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Settings from the command line, by their path.
    pub flags: Vec<(String, String)>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The file.
    pub file: Option<File>,
}

/// A value as it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    /// The value.
    pub value: Value,
    /// Where it stands.
    pub place: Place,
}

/// The kinds of value that settings have.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A flag's or variable's text, of a kind that only the setting knows.
    Text(String),
    /// A string of the file.
    Str(String),
    /// A whole number.
    Int(i64),
    /// True or false.
    Bool(bool),
    /// A list.
    List(Vec<Raw>),
    /// Anything else, by its name.
    Other(&'static str),
}

/// A setting as it was resolved, for `check` and SHOW CONFIG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its path.
    pub key: String,
    /// Its value, with secrets hidden.
    pub value: String,
    /// Its default.
    pub default: String,
    /// Whether a reload applies a change.
    pub reloads: bool,
    /// Where it was written; none for the default.
    pub place: Option<Place>,
}

/// Takes settings from their sources.
pub struct Reader {
    file: HashMap<String, Raw>,
    /// Paths of tables in the file and where they begin, in the order of the file.
    tables: Vec<(String, Place)>,
    flags: HashMap<String, Raw>,
    env: BTreeMap<String, String>,
    asked: BTreeSet<String>,
    /// What keeps the file from being TOML.
    syntax: Vec<Fault>,
    faults: Vec<Fault>,
    settings: Vec<Setting>,
}

/// Line and column of a byte offset, both from 1; a column counts characters.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The environment variable of a setting.
pub fn env_name(path: &str) -> String {
    format!("{ENV_PREFIX}{}", path.replace('.', "_").to_ascii_uppercase())
}

impl Reader {
    /// Reads the file; what is wrong in it is among the faults.
    pub fn new(sources: &Sources) -> Self {
        let mut reader = Self {
            file: HashMap::new(),
            tables: Vec::new(),
            flags: HashMap::new(),
            env: sources.env.clone(),
            asked: BTreeSet::new(),
            syntax: Vec::new(),
            faults: Vec::new(),
            settings: Vec::new(),
        };
        for (path, text) in &sources.flags {
            let flag = if path == "url" { "URL".to_owned() } else { format!("--{}", path.replace(['_', '.'], "-")) };
            let raw = Raw { value: Value::Text(text.clone()), place: Place::Flag(flag) };
            match reader.flags.get_mut(path) {
                // A flag that may be repeated makes a list.
                Some(Raw { value: Value::List(list), .. }) => list.push(raw),
                Some(first) => {
                    let place = first.place.clone();
                    *first = Raw { value: Value::List(vec![first.clone(), raw]), place };
                }
                None => drop(reader.flags.insert(path.clone(), raw)),
            }
        }
        if let Some(file) = &sources.file {
            let (root, errors) = DeTable::parse_recoverable(&file.text);
            for error in errors {
                let (line, column) = line_and_column(&file.text, error.span().map_or(0, |span| span.start));
                let place = Place::File(file.path.clone(), line, column);
                reader.syntax.push(Fault { place, message: error.message().to_owned() });
            }
            reader.flatten(file, "", root.get_ref());
        }
        reader
    }

    fn place(file: &File, offset: usize) -> Place {
        let (line, column) = line_and_column(&file.text, offset);
        Place::File(file.path.clone(), line, column)
    }

    fn flatten(&mut self, file: &File, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path =
                if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
            let place = Self::place(file, key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) => {
                    self.tables.push((path.clone(), place));
                    self.flatten(file, &path, inner);
                }
                // [[listeners]]: each is a table of its own, by its number.
                DeValue::Array(items) if !items.is_empty() && items.iter().all(|i| i.get_ref().is_table()) => {
                    for (at, item) in items.iter().enumerate() {
                        if let DeValue::Table(inner) = item.get_ref() {
                            let path = format!("{path}.{at}");
                            self.tables.push((path.clone(), Self::place(file, item.span().start)));
                            self.flatten(file, &path, inner);
                        }
                    }
                }
                _ => drop(self.file.insert(path, Self::raw(file, value))),
            }
        }
    }

    fn raw(file: &File, value: &Spanned<DeValue<'_>>) -> Raw {
        let place = Self::place(file, value.span().start);
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Str(text.to_string()),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Other("a huge number"), Value::Int)
            }
            DeValue::Boolean(flag) => Value::Bool(*flag),
            DeValue::Array(items) => Value::List(items.iter().map(|item| Self::raw(file, item)).collect()),
            other @ (DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_)) => Value::Other(other.type_str()),
        };
        Raw { value, place }
    }

    /// What is written for a setting: the flag before the environment before the file.
    pub fn raw_value(&mut self, path: &str) -> Option<Raw> {
        self.asked.insert(path.to_owned());
        if let Some(raw) = self.flags.get(path) {
            return Some(raw.clone());
        }
        let name = env_name(path);
        if let Some(text) = self.env.get(&name) {
            return Some(Raw { value: Value::Text(text.clone()), place: Place::Env(name) });
        }
        self.file.get(path).cloned()
    }

    /// One setting. What cannot be read is a fault, and the default stands in for it.
    pub fn get<T: Clone>(
        &mut self,
        path: &str,
        default: T,
        reloads: bool,
        parse: impl FnOnce(&Raw) -> Result<T, String>,
        show: impl Fn(&T) -> String,
    ) -> T {
        let raw = self.raw_value(path);
        let place = raw.as_ref().map(|raw| raw.place.clone());
        let value = match raw.map(|raw| (parse(&raw), raw)) {
            None => default.clone(),
            Some((Ok(value), _)) => value,
            Some((Err(message), raw)) => {
                self.faults.push(Fault { place: raw.place, message: format!("{path}: {message}") });
                default.clone()
            }
        };
        let reloads = reloads && !AT_START.contains(&path);
        let setting = Setting { key: path.to_owned(), value: show(&value), default: show(&default), reloads, place };
        self.settings.push(setting);
        value
    }

    /// The names of the tables right under `path`, in the order of the file, with their places.
    pub fn tables(&self, path: &str) -> Vec<(String, Place)> {
        let prefix = format!("{path}.");
        let under = self.tables.iter().filter_map(|(table, place)| {
            table.strip_prefix(&prefix).filter(|name| !name.contains('.')).map(|name| (name.to_owned(), place.clone()))
        });
        under.collect()
    }

    /// Where a setting is written, or that it is not.
    pub fn place_of(&self, path: &str) -> Place {
        let env = env_name(path);
        if let Some(raw) = self.flags.get(path) {
            return raw.place.clone();
        }
        if self.env.contains_key(&env) {
            return Place::Env(env);
        }
        self.file.get(path).map_or_else(|| Place::Nowhere(path.to_owned()), |raw| raw.place.clone())
    }

    /// Adds a fault.
    pub fn fault(&mut self, place: Place, message: impl Into<String>) {
        self.faults.push(Fault { place, message: message.into() });
    }

    /// Ends the reading: everything written that nobody asked for is a fault too.
    pub fn finish(mut self) -> (Vec<Setting>, Vec<Fault>) {
        // What a half-read file seems to lack, or to say, only hides the reason.
        if !self.syntax.is_empty() {
            self.faults.retain(|fault| !matches!(fault.place, Place::File(..) | Place::Nowhere(_)));
            self.faults.append(&mut self.syntax);
            self.faults.sort();
            return (self.settings, self.faults);
        }
        let known = |path: &str| self.asked.contains(path);
        let mut faults = Vec::new();
        for (path, raw) in &self.file {
            if !known(path) {
                let name = path.rsplit('.').next().unwrap_or(path);
                let table = &path[..path.len() - name.len()];
                // Names of the same table; of any database where it is a database's.
                let siblings =
                    self.asked.iter().filter_map(|asked| asked.strip_prefix(table)).filter(|n| !n.contains('.'));
                let hint = super::nearest(name, siblings).map(|near| format!("; did you mean {near}?"));
                let message = format!("unknown setting {path}{}", hint.unwrap_or_default());
                faults.push(Fault { place: raw.place.clone(), message });
            }
        }
        for path in self.flags.keys().filter(|path| !known(path)) {
            let hint = super::nearest(path, self.asked.iter().map(String::as_str))
                .map(|near| format!("; did you mean {near}?"));
            let place = Place::Flag(format!("--set {path}"));
            faults.push(Fault { place, message: format!("unknown setting {path}{}", hint.unwrap_or_default()) });
        }
        let variables: BTreeSet<String> = self.asked.iter().map(|path| env_name(path)).collect();
        for name in self.env.keys().filter(|name| name.starts_with(ENV_PREFIX) && !variables.contains(*name)) {
            let hint = super::nearest(name, variables.iter().map(String::as_str))
                .map(|near| format!("; did you mean {near}?"));
            let message = format!("unknown setting{}", hint.unwrap_or_default());
            faults.push(Fault { place: Place::Env(name.clone()), message });
        }
        self.faults.append(&mut faults);
        self.faults.sort();
        self.faults.dedup();
        (self.settings, self.faults)
    }
}

impl Raw {
    /// The text of a string.
    pub fn text(&self) -> Result<&str, String> {
        match &self.value {
            Value::Text(text) | Value::Str(text) => Ok(text),
            other => Err(format!("expected a string, found {}", other.kind())),
        }
    }

    /// A list of strings; in a flag or variable they are separated by commas.
    pub fn texts(&self) -> Result<Vec<(String, Place)>, String> {
        match &self.value {
            Value::Text(text) => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Ok(items.map(|item| (item.to_owned(), self.place.clone())).collect())
            }
            Value::Str(text) => Ok(vec![(text.clone(), self.place.clone())]),
            Value::List(items) => {
                let mut texts = Vec::new();
                for item in items {
                    match &item.value {
                        Value::List(_) => return Err("expected strings in the list, found a list".into()),
                        _ => texts.extend(item.texts()?),
                    }
                }
                Ok(texts)
            }
            other => Err(format!("expected a list of strings, found {}", other.kind())),
        }
    }

    /// A whole number that is not negative.
    pub fn count(&self) -> Result<usize, String> {
        let number = match &self.value {
            Value::Int(number) => usize::try_from(*number).ok(),
            Value::Text(text) => text.trim().parse().ok(),
            other => return Err(format!("expected a whole number, found {}", other.kind())),
        };
        number.ok_or_else(|| "expected a whole number of 0 or more".into())
    }

    /// True or false.
    pub fn flag(&self) -> Result<bool, String> {
        match &self.value {
            Value::Bool(flag) => Ok(*flag),
            Value::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
                "true" | "on" | "yes" | "1" => Ok(true),
                "false" | "off" | "no" | "0" => Ok(false),
                _ => Err(format!("expected true or false, found {text:?}")),
            },
            other => Err(format!("expected true or false, found {}", other.kind())),
        }
    }

    /// A duration with its unit.
    pub fn duration(&self) -> Result<std::time::Duration, String> {
        match &self.value {
            Value::Int(0) => Ok(std::time::Duration::ZERO),
            Value::Int(number) => Err(format!("{number} needs a unit: write \"{number}s\" or \"{number}ms\"")),
            _ => super::units::duration(self.text()?),
        }
    }

    /// A size in bytes, with its unit.
    pub fn size(&self) -> Result<u64, String> {
        match &self.value {
            Value::Int(0) => Ok(0),
            Value::Int(number) => Err(format!("{number} needs a unit: write \"{number}MiB\" or \"{number}KiB\"")),
            _ => super::units::size(self.text()?),
        }
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Str(_) => "a string",
            Self::Int(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }
}
