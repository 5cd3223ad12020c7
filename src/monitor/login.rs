//! As whom a monitor logs in: as one of the pools would that it watches for.

use crate::credentials::Source;
use crate::server::dial::{self, Verdict};
use crate::server::{DialError, Server, Target};
use crate::session::settings::Settings;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A refused login is tried again after this, doubled each time up to the other: more would get us locked out
/// (faults.md I17).
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// An attempt never takes longer; whoever makes it has less patience.
const ATTEMPT: Duration = Duration::from_secs(60);

/// What our own sessions begin with. Names are looked up where only the system's own are.
const SETTINGS: [(&str, &str); 2] =
    [("application_name", "pg-ambassador monitor"), ("search_path", "pg_catalog, pg_temp")];

/// A login for each node of a cluster.
#[derive(Debug)]
pub struct Login {
    targets: Box<[Target]>,
    source: Arc<dyn Source>,
    defaults: Settings,
    refused: Mutex<Option<Refused>>,
}

#[derive(Debug, Clone)]
struct Refused {
    error: Arc<DialError>,
    until: Instant,
    pause: Duration,
}

impl Login {
    /// A login at these, in the order of the cluster's nodes.
    pub fn new(targets: impl IntoIterator<Item = Target>, source: Arc<dyn Source>, defaults: Settings) -> Arc<Self> {
        let with_settings = |mut target: Target| {
            target.settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
            target.replication = None;
            target
        };
        let targets = targets.into_iter().map(with_settings).collect();
        Arc::new(Self { targets, source, defaults, refused: Mutex::default() })
    }

    fn refused(&self) -> MutexGuard<'_, Option<Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a server has refused it, until one lets it in.
    pub fn refusal(&self) -> Option<Arc<DialError>> {
        self.refused().as_ref().map(|refused| Arc::clone(&refused.error))
    }

    /// When it may be tried.
    pub(super) fn due(&self) -> Option<Instant> {
        self.refused().as_ref().map(|refused| refused.until)
    }

    /// Logs in at a node. The caller bounds the time.
    pub(super) async fn dial(&self, at: usize) -> Result<Box<Server>, Arc<DialError>> {
        let target = &self.targets[at];
        let result = match dial::credential(target, &*self.source).await {
            Ok(credential) => dial::log_in(target, credential, &*self.source, &self.defaults, ATTEMPT).await,
            Err(error) => Err(error),
        };
        let mut refused = self.refused();
        match result {
            Ok(server) => {
                *refused = None;
                Ok(server)
            }
            Err(error) => {
                let verdict = error.verdict();
                let error = Arc::new(error);
                match verdict {
                    Verdict::Client | Verdict::Credential => {
                        let pause = refused.as_ref().map_or(FIRST_PAUSE, |r| (2 * r.pause).min(LONGEST_PAUSE));
                        let until = Instant::now() + pause;
                        *refused = Some(Refused { error: Arc::clone(&error), until, pause });
                    }
                    Verdict::Retry | Verdict::Full => {}
                }
                Err(error)
            }
        }
    }
}
