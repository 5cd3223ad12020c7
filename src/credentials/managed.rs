//! A source whose credentials are fetched and held by engines.

use super::engine::{Engine, Reported, Value};
use super::pace::Pace;
use super::policy::Held;
use super::{BoxFuture, Credential, CredentialError, Proof, Source};
use crate::net::Address;
use crate::secret::SecretString;
use std::sync::Arc;

/// A password or a token, and the role it is for where it says so.
#[derive(Debug, Clone)]
pub(super) struct Secret {
    pub(super) user: Option<Arc<str>>,
    pub(super) text: SecretString,
    pub(super) is_token: bool,
}

impl Secret {
    pub(super) fn password(text: SecretString) -> Self {
        Self { user: None, text, is_token: false }
    }

    #[cfg(feature = "http-client")]
    pub(super) fn token(text: SecretString) -> Self {
        Self { user: None, text, is_token: true }
    }
}

impl Value for Secret {
    fn is_same(&self, other: &Self) -> bool {
        self.user == other.user && self.text == other.text
    }

    fn principal(&self) -> Option<String> {
        self.user.as_deref().map(str::to_owned)
    }
}

/// Which engine a server's logins ask.
#[derive(Debug)]
pub(super) enum Engines {
    /// The same for all servers.
    One(Arc<Engine<Secret>>),
    /// Each server's own.
    #[cfg(feature = "aws")]
    PerNode(Vec<(Address, Arc<Engine<Secret>>)>),
}

/// The source.
pub(super) struct Managed {
    pub(super) engines: Engines,
    /// What the engines' fetches depend on, if it is another engine's.
    pub(super) basis: Option<Arc<dyn Reported>>,
    /// Held to by logins with tokens.
    pub(super) pace: Option<Arc<Pace>>,
    pub(super) advice: Option<&'static str>,
}

impl std::fmt::Debug for Managed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Managed").field(&self.engines).finish()
    }
}

impl Managed {
    fn engine(&self, _node: &Address) -> Option<&Arc<Engine<Secret>>> {
        match &self.engines {
            Engines::One(engine) => Some(engine),
            #[cfg(feature = "aws")]
            Engines::PerNode(engines) => engines.iter().find(|(address, _)| address == _node).map(|(_, engine)| engine),
        }
    }
}

fn credential((secret, held): (Secret, Held)) -> Credential {
    let Secret { user, text, is_token } = secret;
    let usable_until = held.end.map(|end| end.mono);
    Credential {
        proof: if is_token { Proof::Token(text) } else { Proof::Password(text) },
        usable_until,
        retire_at: usable_until.filter(|_| user.is_some()),
        user,
        serial: held.serial,
    }
}

impl Source for Managed {
    fn credential<'a>(&'a self, node: &'a Address) -> BoxFuture<'a, Result<Credential, CredentialError>> {
        Box::pin(async move {
            let engine = self.engine(node);
            let engine = engine.ok_or_else(|| CredentialError(format!("no credential is configured for {node}")))?;
            let got = engine.get().await?;
            match &self.pace {
                None => Ok(credential(got)),
                Some(pace) => {
                    pace.turn(node).await;
                    // It may have ended meanwhile.
                    Ok(credential(engine.get().await?))
                }
            }
        })
    }

    fn refused(&self, node: &Address, serial: u64) -> bool {
        self.engine(node).is_some_and(|engine| engine.refused(serial))
    }

    fn accepted(&self, node: &Address, serial: u64) {
        if let Some(engine) = self.engine(node) {
            engine.accepted(serial);
        }
    }

    fn is_ready(&self, node: &Address) -> bool {
        let fails = |engine: &dyn Reported| engine.is_failing();
        let basis_fails = self.basis.as_deref().is_some_and(fails);
        // What is held may end before another is there, if the last fetch has failed.
        self.engine(node).is_none_or(|engine| engine.is_good() && !fails(&**engine)) && !basis_fails
    }

    fn user(&self, node: &Address) -> Option<Arc<str>> {
        self.engine(node)?.look(|secret| secret.user.clone())?
    }

    fn advice(&self) -> Option<&'static str> {
        self.advice
    }
}
