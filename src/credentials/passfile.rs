//! libpq's passfile: `host:port:database:user:password`, one a line; the first line that fits counts.
//!
//! Source: PostgreSQL documentation, "The Password File".

use super::engine::{Engine, Fetch, Value};
use super::file::{self, Access};
use super::policy::Life;
use super::{BoxFuture, Credential, CredentialError, Proof, Role, Source};
use crate::net::Address;
use crate::secret::SecretString;
use std::path::PathBuf;
use std::sync::Arc;

/// A passfile with thousands of lines is still smaller.
const LONGEST: usize = 1 << 20;
/// Where libpq looks for unix sockets if nothing is said: lines call it `localhost`. Debian's and PostgreSQL's own.
const DEFAULT_SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// The lines of a passfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lines(Arc<Vec<Line>>);

#[derive(Debug, PartialEq, Eq)]
struct Line {
    /// Host, port, database and user; none for `*`.
    keys: [Option<String>; 4],
    password: SecretString,
}

impl Value for Lines {
    fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    fn principal(&self) -> Option<String> {
        None
    }
}

impl Lines {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self(Arc::new(lines.filter_map(Line::parse).collect()))
    }

    fn password(&self, node: &Address, role: &Role) -> Option<&SecretString> {
        let host = match node {
            Address::Unix { dir, .. } if DEFAULT_SOCKET_DIRS.iter().any(|known| dir.as_os_str() == *known) => {
                "localhost"
            }
            Address::Tcp { .. } | Address::Unix { .. } => node.host(),
        };
        let port = node.port().to_string();
        let wanted = [host, &port, &role.database, &role.user];
        let fits =
            |line: &&Line| line.keys.iter().zip(wanted).all(|(key, is)| key.as_deref().is_none_or(|key| key == is));
        self.0.iter().find(fits).map(|line| &line.password)
    }
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = vec![zeroize::Zeroizing::new(String::with_capacity(line.len()))];
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => fields.last_mut()?.extend(chars.next()),
                // The password is the rest, but for escapes: libpq ends it at a colon too.
                ':' => fields.push(zeroize::Zeroizing::new(String::with_capacity(line.len()))),
                c => fields.last_mut()?.push(c),
            }
        }
        let [host, port, database, user, password, ..] = fields.as_slice() else { return None };
        let key = |field: &str| (field != "*").then(|| field.to_owned());
        Some(Self {
            keys: [key(host), key(port), key(database), key(user)],
            password: SecretString::new(password.as_str()),
        })
    }
}

/// Reads the file.
pub(super) async fn fetch(path: PathBuf) -> Result<Fetch<Lines>, String> {
    let read = tokio::task::spawn_blocking(move || file::read(&path, Access::OwnerOnly, LONGEST));
    let text = read.await.map_err(|error| error.to_string())??;
    Ok(Fetch { value: Lines::parse(&text), life: Life::Watched(file::LOOK) })
}

/// Whether the file can be read, for whoever checks a configuration.
///
/// # Errors
/// Why it cannot.
pub fn check(path: &std::path::Path) -> Result<(), String> {
    file::read(path, Access::OwnerOnly, LONGEST).map(drop)
}

/// The lines that fit one role.
#[derive(Debug)]
pub(super) struct Passfile {
    pub(super) engine: Arc<Engine<Lines>>,
    pub(super) role: Role,
}

impl Source for Passfile {
    fn credential<'a>(&'a self, node: &'a Address) -> BoxFuture<'a, Result<Credential, CredentialError>> {
        Box::pin(async move {
            let (lines, held) = self.engine.get().await?;
            // As with libpq: where no line fits there is no password, and the server may ask for none.
            let proof = lines.password(node, &self.role).map_or(Proof::Nothing, |text| Proof::Password(text.clone()));
            Ok(Credential { serial: held.serial, ..proof.into() })
        })
    }

    fn refused(&self, _node: &Address, serial: u64) -> bool {
        self.engine.refused(serial)
    }

    fn accepted(&self, _node: &Address, serial: u64) {
        self.engine.accepted(serial);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_counts() {
        let lines = Lines::parse(
            "# a comment\nbroken:line\ndb:5432:shop:app:first\ndb:*:*:app:second\n*:*:*:odd\\:user:with\\:colon\\\\\n\
             localhost:*:*:sock:socket\n*:6000:*:*:last\n",
        );
        let role = |user: &str, database: &str| Role { user: user.into(), database: database.into() };
        let find = |host: &str, port, user, database: &str| {
            lines.password(&Address::new(host, port), &role(user, database)).map(SecretString::expose)
        };
        assert_eq!(find("db", 5432, "app", "shop"), Some("first"));
        assert_eq!(find("db", 5432, "app", "other"), Some("second"));
        assert_eq!(find("db", 5432, "odd:user", "x"), Some("with:colon\\"));
        assert_eq!(find("/var/run/postgresql", 5432, "sock", "x"), Some("socket"));
        assert_eq!(find("elsewhere", 6000, "anybody", "x"), Some("last"));
        assert_eq!(find("elsewhere", 5432, "anybody", "x"), None);
    }
}
