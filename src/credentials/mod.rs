//! Who we are upstream: what proves it, and where that comes from.

use crate::auth::scram::Keys;
use crate::net::Address;
use crate::secret::SecretString;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

/// What proves to a server who we are.
#[derive(Clone)]
pub enum Proof {
    /// Nothing: the server lets us in, or asks for what we do not have.
    Nothing,
    /// A password, or a token in its place.
    Password {
        /// The password.
        text: SecretString,
        /// Whether it may be sent in clear over a connection that is not verified TLS. Never for tokens.
        may_leave_in_clear: bool,
    },
    /// The SCRAM keys that a client's own login has shown us.
    Keys(Keys),
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Password { .. } => "Password(***)",
            Self::Keys(_) => "Keys(***)",
        })
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
    /// What to log in to this node with, now.
    fn proof<'a>(&'a self, node: &'a Address) -> BoxFuture<'a, Result<Proof, CredentialError>>;

    /// A server refused what [`Source::proof`] gave; true if the next one may be another.
    fn refused(&self, node: &Address) -> bool;
}

/// A password that is known from the start, or none.
#[derive(Debug)]
pub struct Fixed(pub Proof);

impl Source for Fixed {
    fn proof<'a>(&'a self, _node: &'a Address) -> BoxFuture<'a, Result<Proof, CredentialError>> {
        let proof = self.0.clone();
        Box::pin(async move { Ok(proof) })
    }

    fn refused(&self, _node: &Address) -> bool {
        false
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
    fn proof<'a>(&'a self, _node: &'a Address) -> BoxFuture<'a, Result<Proof, CredentialError>> {
        let proof = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Box::pin(async move { Ok(proof) })
    }

    fn refused(&self, _node: &Address) -> bool {
        false
    }
}
