//! Who may log in, with which secret: PgBouncer's userlist format.
//!
//! Lines of `"user" "secret"`; a quote inside is doubled; what follows the second string is ignored; `;` and `#` begin a
//! comment line. A secret is a password, `md5` and 32 hex digits, or a SCRAM verifier.

use super::scram::{DEFAULT_ITERATIONS, Verifier};
use crate::secret::SecretString;
use foldhash::fast::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

/// What we know of a user to check a login by.
pub enum Secret {
    /// The password itself. The verifier is derived at the first SCRAM login, not at each.
    Password(SecretString, OnceLock<Arc<Verifier>>),
    /// PostgreSQL's MD5 hash.
    Md5(SecretString),
    /// A SCRAM verifier.
    Scram(Arc<Verifier>),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password(..) => "Password(***)",
            Self::Md5(_) => "Md5(***)",
            Self::Scram(_) => "Scram(***)",
        })
    }
}

impl Secret {
    /// Tells the three kinds apart as PostgreSQL does (`get_password_type`).
    pub fn parse(text: &str) -> Self {
        if let Some(verifier) = Verifier::parse(text) {
            return Self::Scram(Arc::new(verifier));
        }
        match text.strip_prefix("md5") {
            Some(hex) if hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Self::Md5(SecretString::new(text))
            }
            _ => Self::Password(SecretString::new(text), OnceLock::new()),
        }
    }

    /// Whether [`Secret::verifier`] is slow this time.
    pub fn is_underived(&self) -> bool {
        matches!(self, Self::Password(_, verifier) if verifier.get().is_none())
    }

    /// The verifier for a SCRAM login; none can be made from an MD5 hash. Slow the first time for a
    /// password, and then `salt` is asked for a random one.
    pub fn verifier(&self, salt: impl FnOnce() -> [u8; 16]) -> Option<Arc<Verifier>> {
        match self {
            Self::Scram(verifier) => Some(Arc::clone(verifier)),
            Self::Password(password, verifier) => {
                let iterations = NonZeroU32::new(DEFAULT_ITERATIONS)?;
                let derive = || Arc::new(Verifier::new(password.expose(), &salt(), iterations));
                Some(Arc::clone(verifier.get_or_init(derive)))
            }
            Self::Md5(_) => None,
        }
    }
}

/// A fault in a userlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserListFault {
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

/// The users of a list.
#[derive(Debug, Default)]
pub struct UserList {
    users: HashMap<String, Arc<Secret>, RandomState>,
    /// How many verifiers there are with so many iterations.
    verifiers: BTreeMap<u32, usize>,
}

impl UserList {
    /// Reads a list; gives every fault in it.
    pub fn parse(text: &str) -> Result<Self, Vec<UserListFault>> {
        let mut list = Self::default();
        let mut faults = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            let mut rest = line;
            match (quoted(&mut rest), quoted(&mut rest)) {
                (Some(user), Some(secret)) if !user.is_empty() => {
                    if list.insert(user.clone(), Secret::parse(&secret)).is_some() {
                        faults.push(UserListFault { line: at + 1, message: format!("user {user:?} is listed twice") });
                    }
                }
                _ => faults.push(UserListFault {
                    line: at + 1,
                    message: "expected two strings in double quotes: \"user\" \"secret\"".into(),
                }),
            }
        }
        if faults.is_empty() { Ok(list) } else { Err(faults) }
    }

    /// Adds or replaces a user; gives what was known of it before.
    pub fn insert(&mut self, user: String, secret: Secret) -> Option<Arc<Secret>> {
        if let Secret::Scram(verifier) = &secret {
            *self.verifiers.entry(verifier.iterations()).or_default() += 1;
        }
        self.users.insert(user, Arc::new(secret))
    }

    /// What is known of a user.
    pub fn get(&self, user: &str) -> Option<&Arc<Secret>> {
        self.users.get(user)
    }

    /// Whether there is a SCRAM verifier among the secrets: to check a password by one takes long enough to be noticed.
    pub fn has_verifiers(&self) -> bool {
        !self.verifiers.is_empty()
    }

    /// The iterations of most of the SCRAM verifiers: who is not listed should not be told by another number.
    pub fn usual_iterations(&self) -> u32 {
        self.verifiers.iter().max_by_key(|(_, count)| **count).map_or(DEFAULT_ITERATIONS, |(iterations, _)| *iterations)
    }

    /// The users, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }
}

/// Takes a quoted string off the front.
fn quoted(rest: &mut &str) -> Option<String> {
    let mut text = rest.trim_start().strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let end = text.find('"')?;
        value.push_str(&text[..end]);
        text = &text[end + 1..];
        match text.strip_prefix('"') {
            Some(tail) => {
                value.push('"');
                text = tail;
            }
            None => {
                *rest = text;
                return Some(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_of_secret_are_told_apart() {
        let list = UserList::parse(
            "; comment\n\"ann\" \"pa\"\"ss\" \"ignored\"\n\n\"bob\" \"md50123456789abcdef0123456789abcdef\"\n\"cy\" \"SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\n\"dee\" \"md5short\"",
        )
        .unwrap();
        assert!(matches!(list.get("ann").map(Arc::as_ref), Some(Secret::Password(p, _)) if p.expose() == "pa\"ss"));
        assert!(matches!(list.get("bob").map(Arc::as_ref), Some(Secret::Md5(_))));
        assert!(matches!(list.get("cy").map(Arc::as_ref), Some(Secret::Scram(_))));
        assert!(matches!(list.get("dee").map(Arc::as_ref), Some(Secret::Password(..))));
        assert!(list.get("eve").is_none());
    }

    #[test]
    fn every_fault_is_reported_with_its_line() {
        let faults = UserList::parse("\"a\" \"b\"\nx\n\"a\" \"c\"\n\"d\n\"\" \"e\"").unwrap_err();
        assert_eq!(faults.iter().map(|f| f.line).collect::<Vec<_>>(), [2, 3, 4, 5]);
    }

    #[test]
    fn a_password_is_derived_once() {
        let secret = Secret::parse("pencil");
        assert!(secret.is_underived());
        assert_eq!(secret.verifier(|| [1; 16]), secret.verifier(|| unreachable!()));
        assert!(!secret.is_underived());
        assert!(Secret::parse("md50123456789abcdef0123456789abcdef").verifier(|| [1; 16]).is_none());
    }
}
