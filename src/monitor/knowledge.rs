//! What the functions, views and operators of a database may do: asked of the database itself, in the background.
//!
//! Until it is known nothing is taken for a read. It is asked for anew on a clock, and soon after a client of ours has
//! defined something.

use super::{Login, Shared};
use crate::routing::{Catalogue, catalogue};
use crate::server::{ExchangeError, Server};
use crate::wire::reply;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::timeout;

/// How old the answer may become while somebody uses it.
const REFRESH: Duration = Duration::from_secs(60);
/// How soon it is asked for again after something was defined, or after nobody has answered.
const SOON: Duration = Duration::from_secs(1);
/// How long the question may take: a catalogue may be large, and a server busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of one database.
#[derive(Debug)]
pub struct Knowledge {
    database: Box<str>,
    /// Functions that an operator vouches for.
    allowed: Box<[Box<str>]>,
    /// As whom it may be asked.
    logins: Mutex<Vec<Weak<Login>>>,
    newest: Mutex<Option<Arc<Facts>>>,
    /// The number of the newest; 0 if there is none.
    version: AtomicU64,
    used: AtomicBool,
    /// Something was defined since it was last asked for.
    defined: AtomicBool,
    outdated: Notify,
}

/// An answer of the database.
#[derive(Debug)]
pub struct Facts {
    /// Unique among all answers of all databases.
    pub version: u64,
    /// The answer.
    pub catalogue: Catalogue,
    /// When it came.
    pub at: Instant,
}

/// Why it could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NotKnown {
    /// There is nobody to ask.
    #[error("no server is up")]
    NobodyIsUp,
    /// No connection comes about.
    #[error(transparent)]
    Dial(Arc<crate::server::DialError>),
    /// The connection broke.
    #[error(transparent)]
    Broken(#[from] ExchangeError),
    /// The server's own words.
    #[error("{0}")]
    Refused(String),
    /// It takes too long.
    #[error("no answer within {PATIENCE:?}")]
    Silent,
}

impl Knowledge {
    pub(super) fn new(database: &str, allowed: Box<[Box<str>]>) -> Arc<Self> {
        Arc::new(Self {
            database: database.into(),
            allowed,
            logins: Mutex::default(),
            newest: Mutex::new(None),
            version: AtomicU64::new(0),
            used: AtomicBool::new(true),
            defined: AtomicBool::new(false),
            outdated: Notify::new(),
        })
    }

    /// The number of the newest answer, 0 if there is none yet: an atomic load.
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The newest answer.
    pub fn newest(&self) -> Option<Arc<Facts>> {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Somebody goes by it still.
    #[inline]
    pub fn touch(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// A client of ours has defined something.
    pub fn is_outdated(&self) {
        self.defined.store(true, Ordering::Relaxed);
        self.outdated.notify_one();
    }

    /// It may be asked as this one, for as long as the caller keeps it.
    pub(super) fn lend(&self, login: &Arc<Login>) {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.retain(|known| known.strong_count() > 0);
        logins.push(Arc::downgrade(login));
    }

    fn login(&self) -> Option<Arc<Login>> {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.retain(|known| known.strong_count() > 0);
        logins.iter().filter_map(Weak::upgrade).min_by_key(|login| login.due())
    }

    /// The functions that an operator vouches for.
    pub(super) fn allowed(&self) -> &[Box<str>] {
        &self.allowed
    }

    fn learn(&self, version: u64, catalogue: Catalogue) {
        let known = Facts { version, catalogue, at: Instant::now() };
        let (functions, suspected) = (known.catalogue.functions(), known.catalogue.suspected());
        if self.version() == 0 {
            tracing::info!(database = %self.database, functions, suspected, "the database's functions are known");
        }
        if known.catalogue.suspects_everything() {
            tracing::warn!(
                database = %self.database,
                "a cast or operator between built-in types calls a volatile function: no statement is taken for a read"
            );
        }
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(known));
        self.version.store(version, Ordering::Release);
    }
}

impl Shared {
    /// Keeps one database's answer new, for as long as somebody holds it.
    pub(super) async fn study(self: Arc<Self>, knowledge: Weak<Knowledge>) {
        loop {
            let Some(known) = knowledge.upgrade() else { return };
            let asked = timeout(PATIENCE, self.ask_of(&known)).await.unwrap_or(Err(NotKnown::Silent));
            let pause = match asked {
                Ok(catalogue) => {
                    known.learn(self.ticks.draw().tick.0, catalogue);
                    REFRESH
                }
                Err(NotKnown::NobodyIsUp) => SOON,
                Err(why) => {
                    tracing::warn!(database = %known.database, "the database's functions are not known: {why}");
                    10 * SOON
                }
            };
            let began = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = known.outdated.notified() => tokio::time::sleep_until((began + SOON).into()).await,
            }
            known.used.store(false, Ordering::Relaxed);
            // Nobody who uses it is served by asking for ever.
            let unused = Arc::downgrade(&known);
            drop(known);
            while let Some(known) = unused.upgrade()
                && !known.used.load(Ordering::Relaxed)
            {
                drop(known);
                tokio::time::sleep(SOON).await;
            }
        }
    }

    async fn ask_of(&self, knowledge: &Knowledge) -> Result<Catalogue, NotKnown> {
        let topology = Arc::clone(&self.published.borrow());
        let login = knowledge.login().ok_or(NotKnown::NobodyIsUp)?;
        // A replica has the same answer, and more time; but not what was defined just now.
        let defined = knowledge.defined.swap(false, Ordering::Relaxed);
        let up = |at: &usize| topology.nodes[*at].state.is_up();
        let all = || (0..topology.nodes.len()).filter(up);
        let primary = topology.primary.filter(|_| defined);
        let other = || all().find(|at| Some(*at) != topology.primary).or_else(|| all().next());
        let at = primary.or_else(other).ok_or(NotKnown::NobodyIsUp)?;
        let mut server = login.dial(at).await.map_err(NotKnown::Dial)?;
        let answer = ask(&mut server, knowledge.allowed()).await;
        server.close();
        answer
    }
}

/// Asks a server what the functions, views and operators of its database may do. `allowed` names functions that an operator
/// vouches for. The connection is not as it was afterwards.
pub async fn ask(server: &mut Server, allowed: &[impl AsRef<str>]) -> Result<Catalogue, NotKnown> {
    // The planner's guess of its cost is so far off that compiling would take seconds.
    server.simple("set jit = off").await?;
    let arrays = catalogue::parameters(allowed.iter().map(AsRef::as_ref)).map(|names| array(&names));
    let values = arrays.each_ref().map(|array| Some(array.as_bytes()));
    let mut request = Vec::new();
    reply::parse(&mut request, b"", catalogue::QUERY.as_bytes(), &[0, 0]);
    reply::bind_text(&mut request, b"", &values);
    reply::execute(&mut request);
    reply::sync(&mut request);
    let answer = server.exchange(&request, 1).await?;
    if let Some(error) = answer.error {
        return Err(NotKnown::Refused(format!("{}: {}", error.code, error.message)));
    }
    let text = |row: &'_ Vec<Option<String>>, at: usize| row.get(at).cloned().flatten().unwrap_or_default();
    let rows: Vec<_> =
        answer.rows.iter().map(|row| (text(row, 0), text(row, 1), text(row, 2), text(row, 3) == "t")).collect();
    Ok(Catalogue::from_rows(rows.iter().map(|(kind, schema, name, suspect)| (&**kind, &**schema, &**name, *suspect))))
}

/// An array of text as PostgreSQL reads one (array_in).
fn array(items: &[&str]) -> String {
    let quoted: Vec<_> =
        items.iter().map(|item| format!("\"{}\"", item.replace('\\', "\\\\").replace('"', "\\\""))).collect();
    format!("{{{}}}", quoted.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_can_be_an_element_of_an_array() {
        assert_eq!(array(&[]), "{}");
        assert_eq!(array(&["a.b", "q\"u\\o,te{}"]), r#"{"a.b","q\"u\\o,te{}"}"#);
    }
}
