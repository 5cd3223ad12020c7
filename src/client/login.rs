//! From the first byte of a connection to a session: TLS, startup packet, proof of identity, welcome.

use super::Context;
use super::entry::{Identity, Listed};
use crate::auth::scram::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ServerExchange, Verifier};
use crate::auth::{self, Decision, Facts, Method, Secret, Transport};
use crate::credentials::{PassThrough, Proof};
use crate::net::tls::{self, ALPN};
use crate::net::{Socket, Stream, scratch};
use crate::pool::directory::{NoSuchDatabase, Purpose, Replication};
use crate::pool::{Full, LeaseError, Member, Pool, PoolSet, Welcome};
use crate::random;
use crate::routing::Preference;
use crate::secret::{SecretString, is_same};
use crate::session::settings::Settings;
use crate::session::{Params, PoolMode, Session};
use crate::wire::frame::{self, HEADER};
use crate::wire::reply::{self, AuthRequest};
use crate::wire::startup::{self, CancelKey, Hello, Startup, StartupError};
use crate::wire::{FrontendTag, Report, SqlState, TxStatus, frontend};
use rustls::ServerConfig;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// How clients come in at one address.
#[derive(Debug)]
pub struct Door {
    /// Where it is, if it is at one address and not at all that this machine has.
    pub address: Option<SocketAddr>,
    /// How they prove who they are.
    pub method: Method,
    /// TLS, if it is offered; replaced when its files change.
    pub tls: RwLock<Option<Arc<DoorTls>>>,
    /// Whether a client without TLS is refused.
    pub tls_required: bool,
    /// What is said of the reads of those who come in here; a reload may change it for those who come later.
    pub preference: RwLock<Preference>,
}

/// TLS of a [`Door`].
#[derive(Debug)]
pub struct DoorTls {
    /// The configuration.
    pub config: Arc<ServerConfig>,
    /// The channel binding data of our certificate.
    pub end_point: Option<Vec<u8>>,
    /// Until when our certificate is valid, since 1970.
    pub valid_until: Option<Duration>,
}

/// A client that has logged in.
pub struct LoggedIn {
    /// Its connection.
    pub stream: Stream,
    /// Its other end, where it is TCP.
    pub peer: Option<SocketAddr>,
    /// Bytes that came behind its last message.
    pub input: Vec<u8>,
    /// What it asked for.
    pub startup: Startup,
    /// Its place among all, until its session takes it.
    pub place: Option<super::entry::Place>,
    /// What its login has shown that logs in elsewhere.
    pub proof: Option<Proof>,
    /// What goes out in front of the next thing that it is sent: as PostgreSQL does, the end of a SCRAM exchange waits
    /// for what follows it.
    pub unsent: Vec<u8>,
}

impl LoggedIn {
    /// Takes the place for the session.
    pub(super) fn take_place(&mut self) -> Option<super::entry::Place> {
        self.place.take()
    }
}

/// How a connection that is no session ended.
#[derive(Debug)]
pub enum Ended {
    /// The peer closed, or broke the protocol in a way to which nothing is said.
    Silently(&'static str),
    /// It was a cancel request.
    Cancel(CancelKey),
    /// It was refused, and told why.
    Refused(Report),
    /// Its socket broke.
    Io(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Report> for Ended {
    fn from(report: Report) -> Self {
        Self::Refused(report)
    }
}

/// A connection before it is a session.
struct Visitor<'a> {
    context: &'a Context,
    door: &'a Door,
    stream: Stream,
    peer: Option<SocketAddr>,
    buf: Vec<u8>,
    /// What it is sent next.
    output: Vec<u8>,
    tls: Option<Arc<DoorTls>>,
    /// No TLS handshake is half done.
    reachable: bool,
}

/// How much is read at once before somebody has logged in.
const CHUNK: usize = 1024;
/// Room for the longest message of a SCRAM exchange.
const ANSWER: usize = 128;
/// Room for what a client is told at its login that is its own: the cancel key, and that it may begin.
const OWN_WELCOME: usize = 64;

/// Leads a connection to its session. The caller bounds the time.
///
/// # Errors
/// When it ends otherwise. A refused one has not been told yet: [`refuse`] does.
pub async fn login(
    context: &Context,
    door: &Door,
    stream: Stream,
    peer: Option<SocketAddr>,
) -> Result<LoggedIn, (Option<Stream>, Ended)> {
    let mut visitor =
        Visitor { context, door, stream, peer, buf: Vec::new(), output: Vec::new(), tls: None, reachable: true };
    let startup = match visitor.greet().await {
        Ok(startup) => startup,
        // Whom a TLS handshake has failed with nothing more can be said to.
        Err(ended) => return Err((visitor.reachable.then_some(visitor.stream), ended)),
    };
    match visitor.admit(&startup).await {
        Ok((place, proof)) => {
            let Visitor { stream, buf: input, output: unsent, .. } = visitor;
            Ok(LoggedIn { stream, peer, input, startup, place, proof, unsent })
        }
        Err(ended) => Err((Some(visitor.stream), ended)),
    }
}

/// Tells a client why it is refused, if it listens, behind what it is to be sent before that.
pub async fn refuse(mut stream: Stream, unsent: Vec<u8>, report: &Report) {
    let mut message = unsent;
    report.clone().fatal().write(&mut message);
    if stream.write_all(&message).await.is_ok() {
        stream.write_last(&[]);
    }
}

impl<'a> Visitor<'a> {
    /// Reads until `buf` holds `len` bytes.
    async fn fill(&mut self, len: usize) -> Result<(), Ended> {
        while self.buf.len() < len {
            let (stream, buf) = (&mut self.stream, &mut self.buf);
            // Through the thread's buffer: one of its own would have to be made, cleared and kept while it waits.
            let read = std::future::poll_fn(|cx| {
                scratch::with(|scratch| {
                    let chunk = &mut scratch.input[..CHUNK];
                    stream.poll_read(cx, chunk).map_ok(|read| {
                        buf.extend_from_slice(&chunk[..read]);
                        // It may have been a password.
                        chunk[..read].fill(0);
                        read
                    })
                })
            });
            if read.await? == 0 {
                return Err(Ended::Silently("closed before the login was complete"));
            }
        }
        Ok(())
    }

    /// Reads first packets until there is a startup message.
    async fn greet(&mut self) -> Result<Startup, Ended> {
        // At most one request for each: PostgreSQL itself recursed here without end (CVE-2026-6479).
        let (mut asked_tls, mut asked_gss) = (false, false);
        loop {
            self.fill(1).await?;
            if self.buf[0] == startup::TLS_HANDSHAKE && self.tls.is_none() && !asked_gss {
                Box::pin(self.start_tls(true)).await?;
                continue;
            }
            self.fill(4).await?;
            let len = startup::packet_len(&self.buf).map_err(silent)?.unwrap_or(0);
            self.fill(len).await?;
            let hello = Hello::parse(&self.buf[..len]).map_err(|error| startup_error(&error))?;
            self.buf.drain(..len);
            match hello {
                Hello::Startup(startup) => {
                    if self.door.tls_required && self.tls.is_none() {
                        let report = Report::ours(SqlState::INVALID_AUTHORIZATION, "this listener requires TLS")
                            .hint("Connect with sslmode=require or better.");
                        return Err(report.into());
                    }
                    return Ok(startup);
                }
                Hello::Cancel(key) => return Err(Ended::Cancel(key)),
                Hello::Tls if !asked_tls && self.tls.is_none() => {
                    asked_tls = true;
                    // What came behind the request came unencrypted, and must not be taken for what comes encrypted
                    // (faults.md I12).
                    if !self.buf.is_empty() {
                        let report = Report::as_postgres(
                            SqlState::PROTOCOL_VIOLATION,
                            "received unencrypted data after SSL request",
                        )
                        .detail("This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.");
                        return Err(report.into());
                    }
                    let offered = self.door.tls.read().unwrap_or_else(PoisonError::into_inner).is_some();
                    if !offered {
                        self.stream.write_all(b"N").await?;
                        continue;
                    }
                    self.stream.write_all(b"S").await?;
                    Box::pin(self.start_tls(false)).await?;
                }
                Hello::Gss if !asked_gss && self.tls.is_none() => {
                    asked_gss = true;
                    if !self.buf.is_empty() {
                        let report = Report::as_postgres(
                            SqlState::PROTOCOL_VIOLATION,
                            "received unencrypted data after GSSAPI encryption request",
                        );
                        return Err(report.into());
                    }
                    self.stream.write_all(b"N").await?;
                }
                Hello::Tls | Hello::Gss => {
                    return Err(Ended::Silently("asked for encryption again"));
                }
            }
        }
    }

    async fn start_tls(&mut self, direct: bool) -> Result<(), Ended> {
        self.reachable = false;
        let Some(tls) = self.door.tls.read().unwrap_or_else(PoisonError::into_inner).clone() else {
            return Err(Ended::Silently("began with TLS, and this listener has none"));
        };
        let received = std::mem::take(&mut self.buf);
        self.stream.accept_tls(Arc::clone(&tls.config), &received).await?;
        let protocol = self.stream.tls().and_then(|c| c.alpn_protocol());
        // Without the round trip that shows a client to speak PostgreSQL, only the negotiated protocol does.
        if direct && protocol != Some(ALPN) {
            return Err(Ended::Silently("began with TLS, but not for PostgreSQL"));
        }
        self.tls = Some(tls);
        self.reachable = true;
        Ok(())
    }

    /// Makes the client prove who it is.
    async fn admit(&mut self, startup: &Startup) -> Result<(Option<super::entry::Place>, Option<Proof>), Ended> {
        if startup.needs_negotiation() {
            let mut message = Vec::new();
            reply::negotiate_version(&mut message, startup.spoken_minor(), &startup.unknown_options);
            self.stream.write_all(&message).await?;
        }
        // Whoever wants to know why there are too many clients must not be one too many.
        let exempt = self.context.console.is_named(&startup.database);
        if !exempt && self.context.budget.is_exhausted() {
            return Err(Report::as_postgres(SqlState::OUT_OF_MEMORY, "out of memory")
                .detail("pg-ambassador: the buffers of its clients take up all of buffer_limit")
                .hint("Raise buffer_limit, or look for clients that do not read their results.")
                .into());
        }
        let place = if exempt { None } else { self.context.clients.place() };
        if place.is_none() && !exempt {
            return Err(Report::as_postgres(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
                .detail(format!("pg-ambassador: max_clients is {}", self.context.clients.limit()))
                .into());
        }
        let users = self.context.users();
        let known = users.get(&startup.user);
        let looked_up = match (known, &self.context.auth_query) {
            (None, Some(query)) if self.door.method != Method::Trust => {
                Box::pin(query.look_up(self.context, startup)).await.map_err(|error| Ended::Refused(error.report()))?
            }
            _ => None,
        };
        let secret = known.cloned().or(looked_up.map(Arc::new));
        let certificate = self.certificate();
        let peer = self.stream.socket().peer_uid().and_then(super::peer::user_name);
        let facts = Facts {
            method: self.door.method,
            transport: transport(self.stream.socket(), self.peer),
            tls: self.tls.is_some(),
            user: &startup.user,
            secret: secret.as_deref(),
            certificate: certificate.as_deref(),
            peer: peer.as_deref(),
        };
        let proof = match auth::decide(&facts) {
            Decision::Allow => None,
            Decision::Scram => Some(self.scram(startup, secret).await?),
            Decision::Md5 => self.md5(startup, secret.as_deref()).await?,
            Decision::Password => {
                let slow = users.has_verifiers() || self.context.auth_query.is_some();
                Some(Box::pin(self.password(startup, secret, slow)).await?)
            }
            Decision::Deny(why) => {
                let message = format!("{why} for user \"{}\"", startup.user);
                return Err(Report::as_postgres(SqlState::INVALID_AUTHORIZATION, message).into());
            }
        };
        Ok((place, proof))
    }

    fn certificate(&self) -> Option<String> {
        let chain = self.stream.tls()?.peer_certificates()?;
        tls::common_name(chain.first()?)
    }

    /// Reads the body of one password message.
    async fn password_message(&mut self) -> Result<Zeroizing<Vec<u8>>, Ended> {
        self.fill(1).await?;
        if self.buf[0] != FrontendTag::Password.byte() {
            let message = format!("expected password response, got message type {}", self.buf[0]);
            return Err(Report::as_postgres(SqlState::PROTOCOL_VIOLATION, message).into());
        }
        self.fill(HEADER).await?;
        let frame = frame::frontend(&self.buf).map_err(|_| Ended::Silently("password message of an invalid length"))?;
        let len = frame.map_or(HEADER, |frame| frame.len);
        self.fill(len).await?;
        let body = Zeroizing::new(self.buf[HEADER..len].to_vec());
        self.buf.drain(..len);
        Ok(body)
    }

    async fn ask(&mut self, request: AuthRequest<'_>) -> Result<Zeroizing<Vec<u8>>, Ended> {
        self.output.reserve(ANSWER);
        reply::authentication(&mut self.output, request);
        self.stream.write_all(&self.output).await?;
        self.output.clear();
        self.password_message().await
    }

    /// Does what is slow by design where nobody else waits for it, when it has a turn: a burst of logins must not take the
    /// processors from those who are in.
    #[cold]
    fn off_the_worker<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> Pin<Box<dyn Future<Output = Option<R>> + Send>> {
        let turns = Arc::clone(&self.context.slow_checks);
        Box::pin(async move {
            let turn = turns.acquire_owned().await.ok()?;
            let work = tokio::task::spawn_blocking(move || {
                let result = work();
                // Here, as this goes on where nobody waits for it any more.
                drop(turn);
                result
            });
            work.await.ok()
        })
    }

    /// The verifier that somebody plays against who is not known.
    #[cold]
    fn stand_in(&self, startup: &Startup) -> Arc<Verifier> {
        let iterations = self.context.users().usual_iterations();
        Arc::new(self.context.mock.verifier(&startup.user, iterations))
    }

    async fn scram(&mut self, startup: &Startup, secret: Option<Arc<Secret>>) -> Result<Proof, Ended> {
        if let Some(secret) = secret.as_ref().filter(|secret| secret.is_underived()) {
            let secret = Arc::clone(secret);
            self.off_the_worker(move || secret.verifier(random::bytes)).await;
        }
        let verifier = secret.and_then(|secret| secret.verifier(random::bytes));
        // Whoever is not known plays against a verifier that nobody has the password for (faults.md I18).
        let verifier = verifier.unwrap_or_else(|| self.stand_in(startup));
        let end_point = self.tls.as_ref().and_then(|tls| tls.end_point.clone());
        let mechanisms: &[&str] =
            if end_point.is_some() { &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256] } else { &[SCRAM_SHA_256] };
        let initial = self.ask(AuthRequest::Sasl(mechanisms)).await?;
        let malformed = || Report::as_postgres(SqlState::PROTOCOL_VIOLATION, "malformed SCRAM message");
        let (mechanism, first) = frontend::sasl_initial(&initial).map_err(|_| malformed())?;
        let plus = mechanism == SCRAM_SHA_256_PLUS.as_bytes();
        if !mechanisms.iter().any(|m| m.as_bytes() == mechanism) {
            let message = "client selected an invalid SASL authentication mechanism";
            return Err(Report::as_postgres(SqlState::PROTOCOL_VIOLATION, message).into());
        }
        let failed = |_| Ended::from(wrong_password(&startup.user));
        let first = first.ok_or_else(malformed)?;
        let exchange =
            ServerExchange::start(first, verifier, end_point.as_deref(), plus, &random::nonce()).map_err(failed)?;
        let answer = self.ask(AuthRequest::SaslContinue(exchange.message().as_bytes())).await?;
        let (last, keys) = exchange.finish(&answer).map_err(failed)?;
        reply::authentication(&mut self.output, AuthRequest::SaslFinal(last.as_bytes()));
        Ok(Proof::Keys(keys))
    }

    async fn md5(&mut self, startup: &Startup, secret: Option<&Secret>) -> Result<Option<Proof>, Ended> {
        let salt = random::bytes();
        let message = self.ask(AuthRequest::Md5(salt)).await?;
        let answer = frontend::password(&message).unwrap_or_default();
        let stored = match secret {
            Some(Secret::Md5(stored)) => stored.clone(),
            Some(Secret::Password(password, _)) => {
                SecretString::new(auth::md5::stored(&startup.user, password.expose().as_bytes()))
            }
            // Nobody has this one.
            Some(Secret::Scram(_)) | None => SecretString::new(random::nonce()),
        };
        if !auth::md5::verify(stored.expose(), salt, answer) {
            return Err(wrong_password(&startup.user).into());
        }
        Ok(None)
    }

    /// `slow`: some passwords are checked by verifiers, which takes long enough to tell who is known by. So it is done for
    /// all then.
    async fn password(&mut self, startup: &Startup, secret: Option<Arc<Secret>>, slow: bool) -> Result<Proof, Ended> {
        let message = self.ask(AuthRequest::Cleartext).await?;
        let password = frontend::password(&message).ok().and_then(|p| std::str::from_utf8(p).ok()).unwrap_or_default();
        if password.is_empty() {
            return Err(Report::as_postgres(SqlState::INVALID_PASSWORD, "empty password returned by client").into());
        }
        let verifier = match secret.as_deref() {
            Some(Secret::Scram(verifier)) => Some(Arc::clone(verifier)),
            Some(Secret::Password(..) | Secret::Md5(_)) | None => slow.then(|| self.stand_in(startup)),
        };
        let fits = match verifier {
            Some(verifier) => {
                let password = SecretString::new(password);
                self.off_the_worker(move || verifier.fits(password.expose())).await.unwrap_or_default()
            }
            None => false,
        };
        let right = match secret.as_deref() {
            Some(Secret::Password(known, _)) => is_same(known.expose().as_bytes(), password.as_bytes()),
            Some(Secret::Md5(stored)) => {
                is_same(auth::md5::stored(&startup.user, password.as_bytes()).as_bytes(), stored.expose().as_bytes())
            }
            Some(Secret::Scram(_)) => fits,
            None => false,
        };
        if !right {
            return Err(wrong_password(&startup.user).into());
        }
        Ok(Proof::Password(SecretString::new(password)))
    }
}

fn silent(_: StartupError) -> Ended {
    Ended::Silently("startup packet of an invalid length")
}

fn startup_error(error: &StartupError) -> Ended {
    let code = match error {
        StartupError::Length => return Ended::Silently("startup packet of an invalid length"),
        StartupError::Cancel => return Ended::Silently("malformed cancel request"),
        StartupError::Version(..) => SqlState::FEATURE_NOT_SUPPORTED,
        StartupError::Layout => SqlState::PROTOCOL_VIOLATION,
        StartupError::Encoding => SqlState::CHARACTER_NOT_IN_REPERTOIRE,
        StartupError::NoUser => SqlState::INVALID_AUTHORIZATION,
    };
    Report::as_postgres(code, error.to_string()).into()
}

/// The one message for every wrong password and every unknown user.
fn wrong_password(user: &str) -> Report {
    Report::as_postgres(SqlState::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))
}

fn transport(socket: &Socket, peer: Option<SocketAddr>) -> Transport {
    match (socket, peer) {
        (Socket::Unix(_), _) => Transport::Unix,
        (Socket::Tcp(_), Some(peer)) if peer.ip().to_canonical().is_loopback() => Transport::Loopback,
        // Whose address is not known any more is trusted least.
        (Socket::Tcp(_), Some(_) | None) => Transport::Remote,
    }
}

/// A session, ready to be relayed.
pub struct Opened {
    /// The client's place in the list of all.
    pub listed: Listed,
    /// Its session.
    pub session: Session,
    /// Its pools.
    pub pools: Arc<PoolSet>,
    /// Its place among their clients.
    pub member: Member,
}

/// Opens the session of a client that has logged in: checks its database and settings against a server, and welcomes it.
pub async fn open(
    context: &Context,
    door: &Door,
    login: &mut LoggedIn,
    place: super::entry::Place,
) -> Result<Opened, Ended> {
    let startup = &mut login.startup;
    let mut settings = std::mem::take(&mut startup.settings);
    let startup = &*startup;
    let database =
        context.directory.database(&startup.database).map_err(|error| no_database(&startup.database, &error))?;
    if database.is_disabled() {
        let message = format!("database \"{}\" is disabled", startup.database);
        let report = Report::ours(SqlState::CANNOT_CONNECT_NOW, message)
            .detail("It was disabled on the console.")
            .hint("ENABLE it there, or ask its administrator to.");
        return Err(report.into());
    }
    if let Some(options) = &startup.options {
        let more = startup::options_settings(options).map_err(|word| {
            Report::ours(SqlState::FEATURE_NOT_SUPPORTED, format!("unsupported word in options: {word:?}"))
                .hint("Only -c name=value and --name=value can be carried to every server.")
        })?;
        // PostgreSQL: what stands in `options` is applied before what has a key of its own.
        settings.splice(0..0, more);
    }
    let no_database = |error: NoSuchDatabase| no_database(&startup.database, &error);
    let pools = match &startup.replication {
        Some(kind) => {
            let replication = Replication { kind: kind.clone(), settings: std::mem::take(&mut settings) };
            context.directory.replication(&startup.database, &startup.user, replication).map_err(no_database)?
        }
        None if context.pass_through && database.passes_through(&startup.user) && login.proof.is_some() => {
            let proof = login.proof.clone().unwrap_or(Proof::Nothing);
            let source = context.pass_through_source(&startup.database, &startup.user, proof);
            context
                .directory
                .pools(&startup.database, &startup.user, Purpose::Clients, Some(source))
                .map_err(no_database)?
        }
        None => {
            context.directory.pools(&startup.database, &startup.user, Purpose::Clients, None).map_err(no_database)?
        }
    };
    let member = pools.join().map_err(|full| {
        let whose = match full {
            Full::Database => format!("database \"{}\"", startup.database),
            Full::User => format!("user \"{}\"", startup.user),
        };
        Report::as_postgres(SqlState::TOO_MANY_CONNECTIONS, format!("too many connections for {whose}"))
            .detail("pg-ambassador: its max_clients is reached")
    })?;
    let welcome = match pools.primary().and_then(|pool| pool.welcome(&settings)) {
        Some(welcome) => welcome,
        // Boxed, as all that dials is: nearly every login does without.
        None => while_there(&login.stream, Box::pin(learn_welcome(context, &pools, settings))).await?,
    };
    let names = &pools.name;
    let identity = Identity {
        user: Arc::clone(&names.user),
        database: Arc::clone(&names.database),
        application_name: Arc::clone(&welcome.application_name),
        replication: match startup.replication.as_deref() {
            None => "none",
            Some("database") => "logical",
            Some(_) => "physical",
        },
        long_key: startup.spoken_minor() >= 2,
    };
    // The kernel need not be asked which of our addresses it is at, where there is only one.
    let ends = login.peer.and_then(|peer| Some((peer, door.address.or_else(|| login.stream.socket().local())?)));
    let listed = context.clients.list(place, identity, &login.stream, ends);
    let mut message = std::mem::take(&mut login.unsent);
    message.reserve(welcome.messages.len() + OWN_WELCOME);
    message.extend_from_slice(&welcome.messages);
    reply::key_data(&mut message, listed.entry.key.pid, &listed.entry.key.secret);
    reply::ready(&mut message, TxStatus::Idle);
    login.stream.write_all(&message).await?;
    pools.stats.count_login();
    let session = Session::new(listed.entry.id, pools.mode(), welcome.settings.clone(), &welcome.params);
    Ok(Opened { listed, session, pools, member })
}

/// How often is looked whether somebody has left who waits for the end of its login.
const LOOK: Duration = Duration::from_secs(1);

/// Goes on as long as the client is there: who has left needs no server, and no place among the clients.
async fn while_there<T>(
    stream: &Stream,
    mut welcome: impl Future<Output = Result<T, Ended>> + Unpin,
) -> Result<T, Ended> {
    loop {
        if let Ok(welcome) = tokio::time::timeout(LOOK, &mut welcome).await {
            return welcome;
        }
        if stream.is_closed() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Finds out what a client with these settings is told at its login.
async fn learn_welcome(
    context: &Context,
    pools: &PoolSet,
    startup: Vec<(String, String)>,
) -> Result<Arc<Welcome>, Ended> {
    let settings = context.interners.settings.intern(startup.iter().map(|(name, value)| (name, value)));
    let known = pools.primary().and_then(|pool| Some((pool.welcome_of(&settings)?, pool)));
    let (welcome, pool) = match known {
        Some(known) => known,
        None => {
            let (params, pool) = ask_for_params(context, pools, &settings).await?;
            let mut messages = Vec::with_capacity(512);
            reply::authentication(&mut messages, AuthRequest::Ok);
            for (name, value) in params.iter() {
                reply::parameter_status(&mut messages, name, value);
            }
            let application_name = context.names.intern(settings.get("application_name").unwrap_or_default());
            (Arc::new(Welcome { settings, params, messages: messages.into(), application_name }), pool)
        }
    };
    pool.remember_welcome(startup, Arc::clone(&welcome));
    Ok(welcome)
}

/// Asks a server what it reports to a client with these settings: it knows which values are good, and how it writes them.
async fn ask_for_params(
    context: &Context,
    pools: &PoolSet,
    settings: &Settings,
) -> Result<(Arc<Params>, Arc<Pool>), Ended> {
    let deadline = Instant::now() + context.limits().checkout;
    let refused = |error: LeaseError| Ended::Refused(error.report());
    let mut lease = pools.lease_until(0, deadline).await.map_err(refused)?;
    let broken = |error: &dyn std::fmt::Display| {
        Report::ours(SqlState::CONNECTION_FAILURE, "the server was lost during the login").detail(error.to_string())
    };
    match tokio::time::timeout_at(deadline.into(), lease.apply(settings)).await {
        Ok(Ok(Ok(()))) => {}
        // The server's own words: a direct login would have failed with them.
        Ok(Ok(Err(report))) => {
            lease.close();
            return Err(report.into());
        }
        Ok(Err(error)) => return Err(broken(&error).into()),
        Err(_) => return Err(broken(&"no answer").into()),
    }
    let (params, pool) = (Arc::new(lease.params().clone()), Arc::clone(lease.pool()));
    if pools.mode() == PoolMode::Session || lease.side.may_hold_state() {
        lease.reset_and_finish(std::time::Duration::from_secs(10));
    } else {
        lease.finish(Instant::now());
    }
    Ok((params, pool))
}

fn no_database(name: &str, _: &NoSuchDatabase) -> Report {
    Report::as_postgres(SqlState::INVALID_CATALOG_NAME, format!("database \"{name}\" does not exist"))
        .detail("pg-ambassador: no such database is configured")
}

/// How users are looked up in a database.
#[derive(Debug, Clone)]
pub struct AuthQuery {
    /// The query: one parameter, the user; two columns, the user and its secret.
    pub query: String,
    /// The role that may run it.
    pub user: String,
    /// That role's password.
    pub password: Option<SecretString>,
    /// The database to run it in; the client's if there is none.
    pub database: Option<String>,
}

impl AuthQuery {
    /// What a database knows of a user.
    async fn look_up(&self, context: &Context, startup: &Startup) -> Result<Option<Secret>, LeaseError> {
        let database = self.database.as_deref().unwrap_or(&startup.database);
        let proof = match &self.password {
            Some(text) => Proof::Password(text.clone()),
            None => Proof::Nothing,
        };
        // Connections of its own, on which no client's settings are ever applied (faults.md I11).
        let source = PassThrough::new(proof);
        let Ok(pools) = context.directory.pools(database, &self.user, Purpose::Auth, Some(source)) else {
            return Ok(None);
        };
        let deadline = Instant::now() + context.limits().checkout;
        let mut lease = pools.lease_until(0, deadline).await?;
        let mut request = Vec::new();
        reply::parse(&mut request, b"", self.query.as_bytes(), &[0, 0]);
        reply::bind_text(&mut request, b"", &[Some(startup.user.as_bytes())]);
        reply::execute(&mut request);
        reply::sync(&mut request);
        let Ok(Ok(answer)) = tokio::time::timeout_at(deadline.into(), lease.exchange(&request, 1)).await else {
            return Ok(None);
        };
        lease.finish(Instant::now());
        if let Some(error) = answer.error {
            tracing::error!(sqlstate = %error.code, "auth_query failed: {}", error.message);
            return Ok(None);
        }
        Ok(match answer.rows.as_slice() {
            [row] => match row.as_slice() {
                // A null secret is a user without a password, or one whose password has expired: nobody can log in as it.
                [Some(user), Some(secret), ..] if *user == startup.user => Some(Secret::parse(secret)),
                _ => None,
            },
            _ => None,
        })
    }
}
