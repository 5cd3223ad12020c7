//! Fetches one credential in the background, holds it, and gives it to whoever logs in.

use super::policy::{Answer, Course, Due, Fetched, Held, Life, Now, Renewal};
use super::{BoxFuture, CredentialError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// A fetch that takes longer has failed. Longer than any endpoint's own retries are worth waiting for.
const FETCH_TIMEOUT: Duration = Duration::from_secs(20);
/// The same failure is logged this often.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// What a fetch brings.
#[derive(Debug, Clone)]
pub struct Fetch<V> {
    /// The credential.
    pub value: V,
    /// How long it is good for.
    pub life: Life,
}

/// Fetches; told whether a server has refused what was fetched last.
type Fetcher<V> = Box<dyn Fn(bool) -> BoxFuture<'static, Result<Fetch<V>, String>> + Send + Sync>;

/// What consoles and metrics show of a credential.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The kind of source.
    pub source: &'static str,
    /// What it is fetched for or from, as the configuration names it.
    pub name: String,
    /// Whose credential it is: what it says itself, or its name.
    pub principal: String,
    /// The server it is for, if it is for one only.
    pub server: Option<String>,
    /// How long ago it was fetched; none if there is none.
    pub age: Option<Duration>,
    /// When it ends; none if it does not.
    pub expires: Option<SystemTime>,
    /// Whether it may be presented.
    pub good: bool,
    /// Fetches that brought one.
    pub fetched: u64,
    /// Fetches that failed.
    pub failed: u64,
    /// Times a server has refused it.
    pub refused: u64,
    /// Why the last fetch failed, and how long ago; kept after a later one succeeded.
    pub last_error: Option<(Arc<str>, Duration)>,
}

/// Something that can be shown.
pub trait Reported: Send + Sync {
    /// How it stands.
    fn report(&self) -> Report;

    /// Whether the last fetch has failed.
    fn is_failing(&self) -> bool;
}

/// One credential and its course. Dropped, it ends its background task.
pub struct Engine<V> {
    shared: Arc<Shared<V>>,
    task: JoinHandle<()>,
}

struct Shared<V> {
    name: Name,
    fetch: Fetcher<V>,
    state: Mutex<State<V>>,
    /// Counts the fetches that have ended.
    ended: watch::Sender<u64>,
    /// Something was asked for, or refused: the background task is to look again.
    asked: Notify,
}

struct State<V> {
    course: Course,
    value: Option<V>,
    principal: String,
    counts: [u64; 3],
    last_error: Option<(Arc<str>, Instant)>,
    logged: Option<Instant>,
}

impl<V> std::fmt::Debug for Engine<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Engine").field(&self.shared.name).finish()
    }
}

impl<V> Drop for Engine<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What an engine is called, and how it works.
#[derive(Debug)]
pub struct Name {
    /// The kind of source.
    pub source: &'static str,
    /// What it is fetched for or from.
    pub name: String,
    /// The server it is for, if it is for one only.
    pub server: Option<String>,
}

/// A credential as it is held.
pub trait Value: Clone + Send + Sync + 'static {
    /// Whether it is the same secret.
    fn is_same(&self, other: &Self) -> bool;

    /// Whose it is, if it says so itself.
    fn principal(&self) -> Option<String>;
}

impl<V: Value> Engine<V> {
    /// An engine that fetches on this runtime, when somebody asks for the first time.
    pub fn start(
        runtime: &Handle,
        name: Name,
        renewal: Renewal,
        fetch: impl Fn(bool) -> BoxFuture<'static, Result<Fetch<V>, String>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        let shared = Arc::new(Shared {
            fetch: Box::new(fetch),
            state: Mutex::new(State {
                course: Course::new(renewal),
                value: None,
                principal: name.name.clone(),
                counts: [0; 3],
                last_error: None,
                logged: None,
            }),
            ended: watch::Sender::new(0),
            asked: Notify::new(),
            name,
        });
        let task = runtime.spawn(Arc::clone(&shared).renew());
        Arc::new(Self { shared, task })
    }

    /// The credential, and what is known of it. Waits only while there is none that may be presented and one is being
    /// fetched.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn get(&self) -> Result<(V, Held), CredentialError> {
        let mut ended = self.shared.ended.subscribe();
        loop {
            {
                let mut state = self.shared.state();
                match state.course.ask(Now::read()) {
                    Answer::Use => {
                        if let (Some(value), Some(held)) = (&state.value, state.course.held()) {
                            return Ok((value.clone(), *held));
                        }
                        return Err(state.why());
                    }
                    Answer::Wait => {}
                    Answer::Fail => return Err(state.why()),
                }
            }
            self.shared.asked.notify_one();
            // The sender lives as long as this.
            let _ = ended.changed().await;
        }
    }

    /// Reads something of the credential, if there is one that may be presented.
    pub fn look<T>(&self, read: impl FnOnce(&V) -> T) -> Option<T> {
        let state = self.shared.state();
        state.value.as_ref().filter(|_| state.course.is_good(Now::read())).map(read)
    }

    /// Whether there is one that may be presented.
    pub fn is_good(&self) -> bool {
        self.shared.state().course.is_good(Now::read())
    }

    /// A server has accepted the credential of this serial.
    pub fn accepted(&self, serial: u64) {
        self.shared.state().course.accepted(serial);
    }

    /// A server has refused the credential of this serial. True if a login is worth one more attempt.
    pub fn refused(&self, serial: u64) -> bool {
        let mut state = self.shared.state();
        state.counts[2] += 1;
        let again = state.course.refused(serial, Now::read());
        drop(state);
        self.shared.asked.notify_one();
        again
    }
}

impl<V: Value> Reported for Engine<V> {
    fn is_failing(&self) -> bool {
        self.shared.state().course.failures() > 0
    }

    fn report(&self) -> Report {
        let state = self.shared.state();
        let held = state.course.held();
        let [fetched, failed, refused] = state.counts;
        Report {
            source: self.shared.name.source,
            name: self.shared.name.name.clone(),
            principal: state.principal.clone(),
            server: self.shared.name.server.clone(),
            age: held.map(|held| held.since.elapsed()),
            expires: held.and_then(|held| held.expires),
            good: state.course.is_good(Now::read()),
            fetched,
            failed,
            refused,
            last_error: state.last_error.as_ref().map(|(text, at)| (Arc::clone(text), at.elapsed())),
        }
    }
}

impl<V> State<V> {
    fn why(&self) -> CredentialError {
        let cause = self.last_error.as_ref().map_or("none was fetched yet", |(text, _)| text);
        let expired = self.course.held().and_then(|held| held.expires).and_then(|at| at.elapsed().ok());
        CredentialError(match expired {
            Some(ago) => format!("it expired {} s ago: {cause}", ago.as_secs()),
            None => cause.to_owned(),
        })
    }
}

impl<V: Value> Shared<V> {
    fn state(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches whenever that is due, for ever.
    async fn renew(self: Arc<Self>) {
        loop {
            let due = {
                let mut state = self.state();
                let now = Now::read();
                // A credential that has ended stays for its date, so that errors can say since when.
                if state.course.due(now) == Due::WhenAsked && state.course.expire(now) {
                    state.value = None;
                }
                state.course.due(now)
            };
            match due {
                Due::Now => self.fetch_now().await,
                Due::At(at) => {
                    let _ = tokio::time::timeout_at(at.into(), self.asked.notified()).await;
                }
                // Looked at again now and then: what nobody asks for is not kept for ever.
                Due::WhenAsked => {
                    let _ = tokio::time::timeout(FORGET, self.asked.notified()).await;
                }
            }
        }
    }

    async fn fetch_now(&self) {
        let refused = {
            let mut state = self.state();
            state.course.begin();
            state.course.held().is_some_and(Held::is_refused)
        };
        // In a task of its own: a bug there must not leave everybody waiting for ever.
        let mut fetch = tokio::spawn((self.fetch)(refused));
        let result = match tokio::time::timeout(FETCH_TIMEOUT, &mut fetch).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("a bug of the pooler ended the fetch; please report it".to_owned()),
            Err(_) => {
                fetch.abort();
                Err(format!("no answer within {} s", FETCH_TIMEOUT.as_secs()))
            }
        };
        let mut state = self.state();
        let now = Now::read();
        let error = match result {
            Ok(Fetch { value, life }) => {
                let same = state.value.as_ref().is_some_and(|held| held.is_same(&value));
                match state.course.fetched(now, life, same, fastrand::f64()) {
                    Fetched::Expired => {
                        Some("it has expired before it came: is this machine's clock right?".to_owned())
                    }
                    outcome @ (Fetched::New | Fetched::Same) => {
                        if let Some(principal) = value.principal() {
                            state.principal = principal;
                        }
                        state.value = Some(value);
                        // A file that is looked at and has not changed is no news.
                        if outcome == Fetched::New || !matches!(life, Life::Watched(_)) {
                            state.counts[0] += 1;
                            tracing::debug!(
                                source = self.name.source,
                                principal = state.principal,
                                "fetched a credential"
                            );
                        }
                        None
                    }
                }
            }
            Err(error) => {
                state.course.failed(now, fastrand::f64());
                Some(error)
            }
        };
        match error {
            None => {
                if state.logged.take().is_some() {
                    tracing::info!(
                        source = self.name.source,
                        principal = state.principal,
                        "credentials can be had again"
                    );
                }
            }
            Some(error) => {
                state.counts[1] += 1;
                if state.logged.is_none_or(|at| now.mono.saturating_duration_since(at) >= LOG_AGAIN) {
                    state.logged = Some(now.mono);
                    let kept = state.course.is_good(now);
                    tracing::warn!(
                        source = self.name.source,
                        principal = state.principal,
                        kept,
                        "cannot fetch a credential: {error}"
                    );
                }
                state.last_error = Some((error.into(), now.mono));
            }
        }
        drop(state);
        self.ended.send_modify(|count| *count += 1);
    }
}

/// How often an engine that has nothing to do looks whether what it holds is to be let go.
const FORGET: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    impl Value for u64 {
        fn is_same(&self, other: &Self) -> bool {
            self == other
        }

        fn principal(&self) -> Option<String> {
            None
        }
    }

    fn name() -> Name {
        Name { source: "test", name: "somebody".into(), server: None }
    }

    /// An engine whose fetches count, wait for a permit of the gate, and fail while `down`.
    fn engine(life: Duration) -> (Arc<Engine<u64>>, Arc<AtomicU64>, Arc<tokio::sync::Semaphore>) {
        let (count, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
        let (counted, gated) = (Arc::clone(&count), Arc::clone(&gate));
        let engine = Engine::start(&Handle::current(), name(), Renewal::FETCHED, move |_| {
            let (count, gate) = (Arc::clone(&counted), Arc::clone(&gated));
            Box::pin(async move {
                gate.acquire().await.map_err(|_| "down".to_owned())?.forget();
                let value = count.fetch_add(1, Ordering::SeqCst) + 1;
                Ok(Fetch { value, life: Life::Until(SystemTime::now() + life) })
            })
        });
        (engine, count, gate)
    }

    #[tokio::test]
    async fn all_who_wait_share_one_fetch() {
        let (engine, count, gate) = engine(Duration::from_secs(3600));
        let waiters: Vec<_> = (0..50)
            .map(|_| {
                let engine = Arc::clone(&engine);
                tokio::spawn(async move { engine.get().await.map(|(value, _)| value) })
            })
            .collect();
        tokio::task::yield_now().await;
        gate.add_permits(1);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().unwrap(), 1);
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_refused_credential_is_fetched_once_for_all_who_were_refused() {
        let (engine, count, gate) = engine(Duration::from_secs(3600));
        gate.add_permits(1);
        let (_, held) = engine.get().await.unwrap();
        assert!((0..20).all(|_| engine.refused(held.serial)));
        gate.add_permits(1);
        let (value, held) = engine.get().await.unwrap();
        assert_eq!((value, held.serial, count.load(Ordering::SeqCst)), (2, 2, 2));
        assert!(!engine.refused(held.serial), "not so soon again");
        assert_eq!(engine.report().refused, 21);
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_who_wait_and_to_those_who_come_before_the_next_attempt() {
        let (engine, count, gate) = engine(Duration::from_secs(3600));
        gate.close();
        assert_eq!(engine.get().await.unwrap_err().to_string(), "down");
        assert_eq!(engine.get().await.unwrap_err().to_string(), "down");
        assert_eq!(count.load(Ordering::SeqCst), 0);
        assert_eq!(engine.report().failed, 1);
    }

    #[tokio::test]
    async fn a_login_does_not_wait_for_a_renewal() {
        // Renewed after half of its life: the renewal hangs at the gate while the old one is given out.
        let (engine, _, gate) = engine(Duration::from_millis(400));
        gate.add_permits(1);
        let (first, held) = engine.get().await.unwrap();
        while engine.shared.state().course.due(Now::read()) != Due::Now {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if let Ok(got) = tokio::time::timeout(Duration::from_millis(1), engine.get()).await {
            assert_eq!((got.as_ref().unwrap().0, got.unwrap().1.serial), (first, held.serial));
        }
        gate.add_permits(1);
        while engine.look(|value| *value) != Some(2) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
