//! One client, from hello to goodbye.

mod access;
mod cancel;
mod cleanup;
pub mod entry;
mod hearing;
pub mod limits;
pub mod login;
mod lookout;
mod pace;
mod peer;
mod relay;
mod room;
mod route;

pub use cancel::CancelLane;
pub use entry::{ClientEntry, Clients};
pub use limits::Limits;
pub use login::{AuthQuery, Door, DoorTls};

use crate::access_log::AccessLog;
use crate::auth::UserList;
use crate::auth::scram::Mock;
use crate::counter::ByState;
use crate::credentials::{BoxFuture, PassThrough, Proof};
use crate::listen::Hubs;
use crate::net::Stream;
use crate::net::budget::Budget;
use crate::pool::{Directory, PoolName};
use crate::session::Interners;
use crate::wire::Report;
use login::{Ended, LoggedIn};
use relay::{End, Relay, Serving, Upstream};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// What serving clients needs.
pub struct Context {
    /// All clients.
    pub clients: Arc<Clients>,
    /// Settings and statements that sessions share.
    pub interners: Arc<Interners>,
    /// All pools.
    pub directory: Arc<Directory>,
    /// The connections that listen for clients.
    pub hubs: Arc<Hubs>,
    /// The lane for cancel requests.
    pub cancels: CancelLane,
    /// Who may log in.
    pub users: RwLock<Arc<UserList>>,
    /// How users are looked up that are not listed.
    pub auth_query: Option<AuthQuery>,
    /// Whether what a client's login shows is used to log in upstream.
    pub pass_through: bool,
    /// Timeouts.
    pub limits: RwLock<Arc<Limits>>,
    /// How long a login may take.
    pub login_timeout: Duration,
    /// The console, for those who ask for its database.
    pub console: Arc<dyn Console>,
    /// What users play against who are not known.
    pub mock: Mock,
    /// Turns of hashing a password.
    pub slow_checks: Arc<Semaphore>,
    /// Names that many clients share.
    pub names: Names,
    /// Sources of passed-through logins.
    pub sources: Mutex<HashMap<PoolName, Arc<PassThrough>>>,
    /// What became of connections.
    pub counters: Counters,
    /// Where a line is written for each request, if there is such a place.
    pub access_log: Option<Arc<AccessLog>>,
    /// What all buffers may take up.
    pub budget: Arc<Budget>,
    /// Until when the listeners' certificate is valid, in seconds since 1970; 0 if there is none.
    pub certificate_ends: AtomicU64,
    /// New clients are refused.
    pub closed: AtomicBool,
}

/// What became of connections.
#[derive(Debug, Default)]
pub struct Counters {
    /// Accepted connections.
    pub accepted: AtomicU64,
    /// Connections that could not be accepted.
    pub accept_errors: AtomicU64,
    /// Logins that failed.
    pub refused: ByState,
    /// Clients that we have ended, and told why.
    pub ended: ByState,
    /// Logins that took too long.
    pub timeouts: AtomicU64,
    /// Clients that broke the protocol.
    pub violations: AtomicU64,
    /// Cancel requests.
    pub cancels: AtomicU64,
    /// Tasks that panicked. Must be 0.
    pub panics: AtomicU64,
}

/// Somebody who serves the clients of the console's database.
pub trait Console: Send + Sync {
    /// Whether this is the name of the console's database.
    fn is_named(&self, database: &str) -> bool;

    /// Serves a client that has logged in.
    fn serve<'a>(&'a self, login: LoggedIn) -> BoxFuture<'a, ()>;
}

/// Strings of which there are many equal ones.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashSet<Arc<str>>>);

impl Names {
    /// The one string that is equal to this one.
    pub fn intern(&self, name: &str) -> Arc<str> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = names.get(name) {
            return Arc::clone(known);
        }
        if names.len() == names.capacity() {
            names.retain(|name| Arc::strong_count(name) > 1);
        }
        let name: Arc<str> = name.into();
        names.insert(Arc::clone(&name));
        name
    }
}

impl Context {
    /// The timeouts of now.
    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sets the timeouts of everybody, those who are there included.
    pub fn set_limits(&self, limits: Limits) {
        let limits = {
            let mut now = self.limits.write().unwrap_or_else(PoisonError::into_inner);
            if **now == limits {
                return;
            }
            *now = Arc::new(limits);
            Arc::clone(&now)
        };
        // Who is not on the list yet looks at what was set above later than it gets there.
        for client in self.clients.all() {
            client.set_limits(Arc::clone(&limits));
        }
    }

    /// The users of now.
    pub fn users(&self) -> Arc<UserList> {
        Arc::clone(&self.users.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn pass_through_source(&self, database: &str, user: &str, proof: Proof) -> Arc<PassThrough> {
        let name = PoolName { database: database.into(), user: user.into() };
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        match sources.get(&name) {
            Some(source) => {
                source.learn(proof);
                Arc::clone(source)
            }
            None => {
                let source = PassThrough::new(proof);
                sources.insert(name, Arc::clone(&source));
                source
            }
        }
    }
}

/// Leads one connection to its session and serves that. `slot` is held during the login, `load` to the end.
pub fn serve(
    context: Arc<Context>,
    door: Arc<Door>,
    stream: Stream,
    peer: Option<SocketAddr>,
    slot: impl Send + 'static,
    load: impl Send + Unpin + 'static,
) -> impl Future<Output = ()> + Send {
    context.counters.accepted.fetch_add(1, Ordering::Relaxed);
    let opening = Box::pin(open(Arc::clone(&context), door, stream, peer, slot));
    Serving::new(opening, move |id, end| {
        conclude_session(&context, id, end);
        drop(load);
    })
}

fn conclude_session(context: &Context, id: u64, end: End) {
    match end {
        End::Left => tracing::debug!(client = id, "left"),
        End::Io(error) => tracing::debug!(client = id, %error, "connection lost"),
        End::Protocol(error) => {
            context.counters.violations.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(client = id, %error, "protocol violation of a client");
        }
        End::Panicked => {
            context.counters.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!(client = id, "a bug of the pooler ended this client's connection; please report it");
        }
        End::Ended(report) => {
            context.counters.ended.count(report.code);
            tracing::info!(client = id, sqlstate = %report.code, "closed: {}", report.message);
        }
    }
}

async fn open(
    context: Arc<Context>,
    door: Arc<Door>,
    stream: Stream,
    peer: Option<SocketAddr>,
    slot: impl Send,
) -> Option<Relay> {
    let context = &context;
    let login = tokio::time::timeout(context.login_timeout, login::login(context, &door, stream, peer)).await;
    let mut login = match login {
        Ok(Ok(login)) => login,
        Ok(Err((stream, ended))) => {
            // What cancels has a lane of its own, and must not keep others from their login (faults.md I22).
            if matches!(ended, Ended::Cancel(_)) {
                drop(slot);
            }
            Box::pin(conclude(context, stream, Vec::new(), ended, peer)).await;
            return None;
        }
        // Silently: whoever is this slow does not listen either.
        Err(_) => {
            context.counters.timeouts.fetch_add(1, Ordering::Relaxed);
            tracing::info!(peer = peer.map(tracing::field::display), "login timeout");
            return None;
        }
    };
    drop(slot);
    if context.console.is_named(&login.startup.database) {
        context.console.serve(login).await;
        return None;
    }
    if context.closed.load(Ordering::Relaxed) {
        let report = Report::ours(crate::wire::SqlState::ADMIN_SHUTDOWN, "the pooler is shutting down");
        Box::pin(conclude(context, Some(login.stream), login.unsent, report.into(), peer)).await;
        return None;
    }
    let place = login.take_place()?;
    match login::open(context, &door, &mut login, place).await {
        Ok(opened) => {
            // Those who were on the list then have been told.
            if context.closed.load(Ordering::Relaxed) {
                drop((opened.listed, opened.member));
                let report = Report::ours(crate::wire::SqlState::ADMIN_SHUTDOWN, "the pooler is shutting down");
                Box::pin(conclude(context, Some(login.stream), Vec::new(), report.into(), peer)).await;
                return None;
            }
            let upstream = Upstream {
                pools: opened.pools,
                hubs: Arc::clone(&context.hubs),
                interners: Arc::clone(&context.interners),
                limits: context.limits(),
                listener: *door.preference.read().unwrap_or_else(PoisonError::into_inner),
                access_log: context.access_log.clone(),
                budget: Arc::clone(&context.budget),
            };
            let id = opened.listed.entry.id;
            tracing::debug!(client = id, peer = peer.map(tracing::field::display), "logged in");
            let places = (opened.listed, opened.member);
            Some(Relay::new(login.stream, opened.session, places, upstream, login.input))
        }
        Err(ended) => {
            Box::pin(conclude(context, Some(login.stream), login.unsent, ended, peer)).await;
            None
        }
    }
}

/// Ends a connection that is no session. What is `unsent` goes out in front of what it may be told.
async fn conclude(context: &Context, stream: Option<Stream>, unsent: Vec<u8>, ended: Ended, peer: Option<SocketAddr>) {
    match ended {
        Ended::Cancel(key) => {
            context.counters.cancels.fetch_add(1, Ordering::Relaxed);
            context.cancels.cancel(&context.clients, &key).await;
            // libpq takes the end of a TLS connection without a close_notify for a request that failed.
            if let Some(mut stream) = stream {
                stream.write_last(&[]);
            }
        }
        Ended::Refused(report) => {
            context.counters.refused.count(report.code);
            tracing::info!(peer = peer.map(tracing::field::display), sqlstate = %report.code, "refused: {}", report.message);
            if let Some(stream) = stream {
                let _ = tokio::time::timeout(Duration::from_secs(1), login::refuse(stream, unsent, &report)).await;
            }
        }
        Ended::Silently(why) => {
            context.counters.violations.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(peer = peer.map(tracing::field::display), "closed: {why}");
        }
        Ended::Io(error) => {
            tracing::debug!(peer = peer.map(tracing::field::display), %error, "connection lost during the login")
        }
    }
}
