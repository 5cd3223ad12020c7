//! Who we are upstream: what proves it, and where that comes from.
//!
//! Whoever logs in asks a [`Source`]. Behind it stands an [`engine`] for each credential that has to be fetched: it fetches in
//! the background, by a pure [`policy`], and gives the same credential to all who ask. The [`Keyring`] makes sources from
//! what an operator says ([`Spec`]), the same one for the same words, and shows how they stand.

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "azure")]
mod azure;
mod command;
pub mod engine;
mod file;
#[cfg(feature = "gcp")]
mod gcp;
#[cfg(feature = "http-client")]
mod http;
mod keyring;
mod managed;
mod pace;
mod passfile;
pub mod policy;
mod spec;

pub use engine::Report;
pub use file::check as check_file;
pub use keyring::Keyring;
pub use passfile::check as check_passfile;
pub use spec::{CommandSpec, Endpoint, Kind, Role, Spec};

use crate::auth::scram::Keys;
use crate::net::Address;
use crate::secret::SecretString;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What proves to a server who we are.
#[derive(Clone)]
pub enum Proof {
    /// Nothing: the server lets us in, or asks for what we do not have.
    Nothing,
    /// A password. In clear it leaves over verified TLS only.
    Password(SecretString),
    /// A token in a password's place. It leaves in clear, over verified TLS, or not at all.
    Token(SecretString),
    /// The SCRAM keys that a client's own login has shown us.
    Keys(Keys),
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Password(_) => "Password(***)",
            Self::Token(_) => "Token(***)",
            Self::Keys(_) => "Keys(***)",
        })
    }
}

/// What to log in with.
#[derive(Debug, Clone)]
pub struct Credential {
    /// What proves it.
    pub proof: Proof,
    /// Who we are, where the credential says so: Vault makes a new role for each password.
    pub user: Option<Arc<str>>,
    /// Differs from that of every other credential of its source.
    pub serial: u64,
    /// It must not be presented from then on.
    pub usable_until: Option<Instant>,
    /// When connections that were made with it are to be gone: with such a role, its sessions may end.
    pub retire_at: Option<Instant>,
}

impl From<Proof> for Credential {
    fn from(proof: Proof) -> Self {
        Self { proof, user: None, serial: 0, usable_until: None, retire_at: None }
    }
}

/// Why there is nothing to log in with.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct CredentialError(pub String);

/// A future of a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where the proof for one role comes from.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// What to log in to this node with, now. To be asked for each login: it may make one wait so that there are not too
    /// many of them.
    fn credential<'a>(&'a self, node: &'a Address) -> BoxFuture<'a, Result<Credential, CredentialError>>;

    /// A server refused the credential of this serial; true if the next one may be another.
    fn refused(&self, _node: &Address, _serial: u64) -> bool {
        false
    }

    /// A server accepted the credential of this serial.
    fn accepted(&self, _node: &Address, _serial: u64) {}

    /// Whether there is something to log in with right now. While there is not, connections that work are kept.
    fn is_ready(&self, _node: &Address) -> bool {
        true
    }

    /// The role that comes with the credential of now, where it says so.
    fn user(&self, _node: &Address) -> Option<Arc<str>> {
        None
    }

    /// What to look at when a server refuses what this gives.
    fn advice(&self) -> Option<&'static str> {
        None
    }
}

/// A password that is known from the start, or none.
#[derive(Debug)]
pub struct Fixed(pub Proof);

impl Source for Fixed {
    fn credential<'a>(&'a self, _node: &'a Address) -> BoxFuture<'a, Result<Credential, CredentialError>> {
        let proof = self.0.clone();
        Box::pin(async move { Ok(proof.into()) })
    }
}

/// The keys of the client's own login (SCRAM pass-through) or its password: whoever logged in last has the newest.
#[derive(Debug)]
pub struct PassThrough(Mutex<Proof>);

impl PassThrough {
    /// Starts with what the first login has shown.
    pub fn new(proof: Proof) -> Arc<Self> {
        Arc::new(Self(Mutex::new(proof)))
    }

    /// A login has shown this.
    pub fn learn(&self, proof: Proof) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = proof;
    }
}

impl Source for PassThrough {
    fn credential<'a>(&'a self, _node: &'a Address) -> BoxFuture<'a, Result<Credential, CredentialError>> {
        let proof = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move { Ok(proof.into()) })
    }
}
