//! Connect to a server and log in.

#![allow(clippy::wildcard_enum_match_arm, reason = "a login names the messages it waits for; all others break it")]

use super::exchange::{ExchangeError, read_message};
use super::{Server, ServerEntry, ServerState};
use crate::auth::md5;
use crate::auth::scram::{Binding, ClientFirst, Keys, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramError};
use crate::credentials::{Credential, Proof, Source};
use crate::net::tls::{self, SslMode};
use crate::net::{Address, Socket, SocketOptions, Stream};
use crate::random;
use crate::secret::SecretString;
use crate::session::settings::Settings;
use crate::session::{Params, ServerSide};
use crate::wire::backend::{self, Authentication};
use crate::wire::frame::{AUTH, FrameError, HEADER};
use crate::wire::startup::{self, CancelKey};
use crate::wire::{BackendTag, FrontendTag, Report, SqlState, TxStatus, reply};
use rustls::ClientConfig;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Where to log in, and as whom.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where.
    pub address: Address,
    /// How much TLS is insisted on.
    pub ssl_mode: SslMode,
    /// The TLS configuration, unless `ssl_mode` is [`SslMode::Disable`] or the address a unix socket.
    pub tls: Option<Arc<ClientConfig>>,
    /// Whether that configuration proves who the server is.
    pub tls_verifies: bool,
    /// Whether to speak TLS at once.
    pub tls_direct: bool,
    /// Options of the socket.
    pub socket: SocketOptions,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// `replication`, for a replication connection.
    pub replication: Option<String>,
    /// Settings that go into the startup packet.
    pub settings: Vec<(String, String)>,
    /// How many prepared statements the server may hold for us.
    pub prepared_limit: usize,
    /// It is one of several: one that does not report whether it is in recovery is asked.
    pub asks_role: bool,
}

/// What a server is asked that does not report it.
const ROLE: &str = "select pg_catalog.pg_is_in_recovery()";
/// From this version on servers report `in_hot_standby`.
const REPORTS_ROLE: u32 = 14;

/// Whether this server is too old to report whether it is in recovery.
fn hides_role(params: &Params) -> bool {
    let major = params.get("server_version").and_then(|version| version.split(['.', ' ']).next()?.parse::<u32>().ok());
    params.get("in_hot_standby").is_none() && major.is_some_and(|major| major < REPORTS_ROLE)
}

impl Target {
    /// Whether a connection to the other is as good as one to this.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.address == other.address
            && self.ssl_mode == other.ssl_mode
            && self.user == other.user
            && self.database == other.database
    }
}

/// Why a server could not be had.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No connection came about.
    #[error("cannot connect to {address}: {error}")]
    Connect {
        /// Where.
        address: Address,
        /// What the system said.
        error: io::Error,
    },
    /// TLS failed.
    #[error("TLS with {address} failed: {error}{}", tls_hint(.error))]
    Tls {
        /// Where.
        address: Address,
        /// Why.
        error: io::Error,
    },
    /// The server does not speak TLS, and we insist on it.
    #[error("{address} does not accept TLS, and sslmode={} insists on it", .mode.as_str())]
    TlsRefused {
        /// Where.
        address: Address,
        /// How much was insisted on.
        mode: SslMode,
    },
    /// The connection broke while logging in.
    #[error("the login at {address} broke off: {error}")]
    Broken {
        /// Where.
        address: Address,
        /// How.
        error: ExchangeError,
    },
    /// The server refused, in its own words.
    #[error("{address} refused the login: {}: {}", .report.code, .report.message)]
    Refused {
        /// Where.
        address: Address,
        /// What it said.
        report: Report,
    },
    /// We could not or would not give what the server asked for.
    #[error("cannot log in at {address} as {user:?}: {why}")]
    Proof {
        /// Where.
        address: Address,
        /// As whom.
        user: String,
        /// Why.
        why: String,
    },
    /// There is nothing to log in with.
    #[error("no credential for {user:?} at {address}: {why}")]
    NoCredential {
        /// Where.
        address: Address,
        /// As whom.
        user: String,
        /// Why.
        why: String,
    },
    /// It was not tried: the server is left alone (faults.md F33).
    #[error("{address} has broken the protocol again and again, and is left alone for a while")]
    LeftAlone {
        /// Where.
        address: Address,
    },
    /// It took too long.
    #[error("the login at {address} took longer than {limit:?}")]
    Timeout {
        /// Where.
        address: Address,
        /// The limit.
        limit: Duration,
    },
}

/// What an operator may try when TLS fails for this reason.
fn tls_hint(error: &io::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("UnknownIssuer") {
        " (name the authority's certificate with sslrootcert=FILE)"
    } else if text.contains("NotValidForName") || text.contains("not valid for name") {
        " (dial the name that the certificate is for, or use sslmode=verify-ca)"
    } else {
        ""
    }
}

/// What becomes of the attempts after this error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may work a moment later.
    Retry,
    /// The server is full: make do with the connections there are.
    Full,
    /// Our credential is no good. Trying it again would only get us locked out (faults.md I17).
    Credential,
    /// What the client itself asked for does not exist or is not allowed: the server's words are for the client.
    Client,
}

impl DialError {
    /// What becomes of the attempts after this error.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Broken { .. }
            // Its source backs off by itself.
            | Self::NoCredential { .. }
            | Self::LeftAlone { .. }
            | Self::Timeout { .. } => Verdict::Retry,
            Self::TlsRefused { .. } | Self::Proof { .. } => Verdict::Credential,
            Self::Refused { report, .. } => match report.code {
                SqlState::CANNOT_CONNECT_NOW | SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => Verdict::Retry,
                SqlState::TOO_MANY_CONNECTIONS => Verdict::Full,
                SqlState::INVALID_PASSWORD => Verdict::Credential,
                // 28000 stands for a wrong token (PAM) as well as for a role that does not exist or may not log in.
                SqlState::INVALID_AUTHORIZATION if report.message.contains("authentication failed") => {
                    Verdict::Credential
                }
                _ => Verdict::Client,
            },
        }
    }

    /// What to count it under.
    pub fn sqlstate(&self) -> SqlState {
        self.server_report().map_or(SqlState::CANNOT_CONNECT, |report| report.code)
    }

    /// The server's own error, if it made one.
    pub fn server_report(&self) -> Option<&Report> {
        match self {
            Self::Refused { report, .. } => Some(report),
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::TlsRefused { .. }
            | Self::Broken { .. }
            | Self::Proof { .. }
            | Self::NoCredential { .. }
            | Self::LeftAlone { .. }
            | Self::Timeout { .. } => None,
        }
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// What to log in to a target with.
///
/// # Errors
/// Why there is nothing.
pub async fn credential(target: &Target, source: &dyn Source) -> Result<Credential, DialError> {
    source.credential(&target.address).await.map_err(|error| DialError::NoCredential {
        address: target.address.clone(),
        user: target.user.clone(),
        why: error.to_string(),
    })
}

/// Connects and logs in with a credential of this source; once more with another, if the server refuses the first and the
/// source has another (faults.md F9). Each attempt may take so long.
pub async fn log_in(
    target: &Target,
    first: Credential,
    source: &dyn Source,
    defaults: &Settings,
    limit: Duration,
) -> Result<Box<Server>, DialError> {
    let mut credential = first;
    let mut attempts = 2;
    loop {
        attempts -= 1;
        let result = dial_as(target, &credential, defaults, limit).await;
        let Err(error) = &result else {
            source.accepted(&target.address, credential.serial);
            return result;
        };
        if error.verdict() != Verdict::Credential {
            return result;
        }
        if attempts > 0
            && matches!(error, DialError::Refused { .. })
            && source.refused(&target.address, credential.serial)
        {
            // Where no other is to be had, what the server has said is the better answer.
            if let Ok(other) = self::credential(target, source).await
                && other.serial != credential.serial
            {
                tracing::info!(node = %target.address, "the server refused a credential: trying a new one");
                credential = other;
                continue;
            }
        }
        if let (Some(advice), DialError::Refused { .. }) = (source.advice(), error) {
            tracing::warn!(node = %target.address, user = target.user, "the server refuses our token: {advice}");
        }
        return result;
    }
}

async fn dial_as(
    target: &Target,
    credential: &Credential,
    defaults: &Settings,
    limit: Duration,
) -> Result<Box<Server>, DialError> {
    let named;
    let target = match &credential.user {
        Some(user) => {
            named = Target { user: user.to_string(), ..target.clone() };
            &named
        }
        None => target,
    };
    let dialled = async {
        let mut server = dial(target, &credential.proof, defaults).await?;
        // A server goes from primary to replica by a restart only, which no connection survives: once is enough.
        if target.asks_role && hides_role(server.params()) {
            let broken = |error| DialError::Broken { address: target.address.clone(), error };
            let answer = server.simple(ROLE).await.map_err(broken)?;
            let answer = answer.rows.first().and_then(|row| row.first()?.as_deref());
            server.side.note_recovery(answer == Some("t"));
        }
        Ok(server)
    };
    let dialled = tokio::time::timeout(limit, dialled).await;
    let mut server = dialled.unwrap_or_else(|_| Err(DialError::Timeout { address: target.address.clone(), limit }))?;
    server.retire_at = credential.retire_at;
    Ok(server)
}

/// Connects and logs in. The caller bounds the time.
async fn dial(target: &Target, proof: &Proof, defaults: &Settings) -> Result<Box<Server>, DialError> {
    let plain_first = target.ssl_mode == SslMode::Allow;
    match attempt(target, proof, defaults, !plain_first).await {
        // libpq: `allow` tries TLS when plain is refused, `prefer` plain when TLS fails.
        Err(DialError::Refused { .. }) if plain_first => attempt(target, proof, defaults, true).await,
        Err(DialError::Tls { .. } | DialError::Refused { .. }) if target.ssl_mode == SslMode::Prefer => {
            attempt(target, proof, defaults, false).await
        }
        other => other,
    }
}

async fn attempt(target: &Target, proof: &Proof, defaults: &Settings, tls: bool) -> Result<Box<Server>, DialError> {
    let stream = connect(target, tls).await?;
    Login { target, proof, stream, input: Vec::new() }.run(defaults).await
}

/// Connects, with TLS where it is wanted.
async fn connect(target: &Target, with_tls: bool) -> Result<Stream, DialError> {
    let socket = Socket::connect(&target.address, &target.socket)
        .await
        .map_err(|error| DialError::Connect { address: target.address.clone(), error })?;
    secure(socket, target, with_tls).await
}

/// Connects once more to the server that this connection leads to, whatever its name stands for by now.
pub async fn connect_again(entry: &ServerEntry) -> Result<Stream, DialError> {
    let Some((peer, _)) = entry.ends else { return connect(&entry.target, true).await };
    let target = &entry.target;
    let socket = Socket::connect_to(peer, &target.socket)
        .await
        .map_err(|error| DialError::Connect { address: target.address.clone(), error })?;
    secure(socket, target, true).await
}

/// Speaks TLS where it is wanted.
async fn secure(socket: Socket, target: &Target, with_tls: bool) -> Result<Stream, DialError> {
    let address = &target.address;
    let mut stream = Stream::plain(socket);
    let config = match (&target.tls, address) {
        (Some(config), Address::Tcp { .. }) if with_tls => Arc::clone(config),
        // TLS does not exist on unix sockets.
        _ => return Ok(stream),
    };
    let broken = |error: io::Error| DialError::Broken { address: address.clone(), error: error.into() };
    if !target.tls_direct {
        // SSLRequest
        stream.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).await.map_err(broken)?;
        // One byte and not more: what comes behind it unencrypted is an attack (CVE-2021-23222), and TLS will choke on it.
        let mut answer = [0];
        match (stream.read(&mut answer).await.map_err(broken)?, answer[0]) {
            (0, _) => return Err(broken(io::ErrorKind::UnexpectedEof.into())),
            (_, b'S') => {}
            (_, b'N') if target.ssl_mode <= SslMode::Prefer => return Ok(stream),
            (_, b'N') => return Err(DialError::TlsRefused { address: address.clone(), mode: target.ssl_mode }),
            _ => return Err(broken(io::Error::new(io::ErrorKind::InvalidData, "no PostgreSQL server answers there"))),
        }
    }
    stream.connect_tls(config, address.host()).await.map_err(|error| DialError::Tls { address: address.clone(), error })
}

/// A login in progress.
struct Login<'a> {
    target: &'a Target,
    proof: &'a Proof,
    stream: Stream,
    input: Vec<u8>,
}

impl Login<'_> {
    fn broken(&self, error: impl Into<ExchangeError>) -> DialError {
        DialError::Broken { address: self.target.address.clone(), error: error.into() }
    }

    fn no_proof(&self, why: impl Into<String>) -> DialError {
        DialError::Proof { address: self.target.address.clone(), user: self.target.user.clone(), why: why.into() }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), DialError> {
        let sent = self.stream.write_all(bytes).await;
        sent.map_err(|error| self.broken(error))
    }

    /// Reads one message; an error message of the server ends the login.
    async fn receive(&mut self) -> Result<(BackendTag, Vec<u8>), DialError> {
        loop {
            let cap = usize::try_from(AUTH).unwrap_or(usize::MAX);
            let frame = match read_message(&mut self.stream, &mut self.input, cap).await {
                Ok(frame) => frame,
                Err(error) => return Err(self.broken(error)),
            };
            let body = self.input[HEADER..frame.len].to_vec();
            self.input.drain(..frame.len);
            match frame.tag {
                BackendTag::Notice | BackendTag::NegotiateVersion => {}
                BackendTag::Error => {
                    let report = backend::error(&body).report();
                    return Err(DialError::Refused { address: self.target.address.clone(), report });
                }
                tag => return Ok((tag, body)),
            }
        }
    }

    async fn run(mut self, defaults: &Settings) -> Result<Box<Server>, DialError> {
        let target = self.target;
        // Not even the first packet: a server that is not who it should be learns nothing of who would have come.
        if matches!(self.proof, Proof::Token(_)) && !self.is_verified() {
            return Err(self.no_proof("a token leaves over verified TLS only: use sslmode=verify-full"));
        }
        let mut params = vec![("user", target.user.as_str()), ("database", target.database.as_str())];
        if let Some(replication) = &target.replication {
            params.push(("replication", replication));
        }
        params.extend(target.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let startup = startup::message(params).map_err(|error| self.broken(error))?;
        self.send(&startup).await?;
        self.authenticate().await?;
        let (mut params, mut key) = (Params::default(), CancelKey { pid: 0, secret: Box::default() });
        loop {
            let (tag, body) = self.receive().await?;
            match tag {
                BackendTag::ParameterStatus => {
                    let (name, value) = backend::parameter_status(&body).map_err(|error| self.broken(error))?;
                    params.set(name, value);
                }
                BackendTag::BackendKeyData => {
                    let (pid, secret) = backend::key_data(&body).map_err(|error| self.broken(error))?;
                    key = CancelKey { pid, secret: secret.into() };
                }
                BackendTag::Ready => match backend::ready(&body) {
                    Ok(TxStatus::Idle) => break,
                    _ => return Err(self.broken(FrameError::Body("ReadyForQuery"))),
                },
                _ => return Err(self.broken(FrameError::Unexpected("login"))),
            }
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let entry = ServerEntry::new(id, target.clone(), key, &self.stream);
        entry.set_state(ServerState::New);
        Ok(Box::new(Server {
            side: ServerSide::new(defaults.clone(), params, target.prepared_limit),
            entry,
            stream: self.stream,
            input: self.input,
            output: Vec::new(),
            defaults: defaults.clone(),
            retire_at: None,
            idle_since: Instant::now(),
            generation: 0,
            home: super::home(),
            held: Vec::new(),
        }))
    }

    async fn authenticate(&mut self) -> Result<(), DialError> {
        let (tag, body) = self.receive().await?;
        if tag != BackendTag::Authentication {
            return Err(self.broken(FrameError::Unexpected("login")));
        }
        match backend::authentication(&body).map_err(|error| self.broken(error))? {
            Authentication::Ok => return Ok(()),
            Authentication::Cleartext => {
                let password = match self.proof {
                    Proof::Token(token) => token.clone(),
                    Proof::Nothing | Proof::Password(_) | Proof::Keys(_) => self.password("a password in clear")?,
                };
                if !self.is_verified() {
                    return Err(self.no_proof(
                        "the server asks for the password in clear, and the connection is not verified TLS: \
                         use sslmode=verify-full",
                    ));
                }
                self.send_password(password.expose()).await?;
            }
            Authentication::Md5(salt) => {
                let password = self.password("an MD5 challenge's answer")?;
                let stored = md5::stored(&self.target.user, password.expose().as_bytes());
                self.send_password(&md5::response(&stored, salt)).await?;
            }
            Authentication::Sasl(mechanisms) => self.scram(mechanisms).await?,
            Authentication::SaslContinue(_) | Authentication::SaslFinal(_) => {
                return Err(self.broken(FrameError::Unexpected("SASL")));
            }
            Authentication::Unsupported(method) => {
                return Err(self
                    .no_proof(format!("the server asks for authentication method {method}, which is not supported")));
            }
        }
        self.expect_authentication("the end of the login", |a| (a == Authentication::Ok).then_some(())).await
    }

    /// Whether the connection is TLS with a server that has proven who it is.
    fn is_verified(&self) -> bool {
        self.stream.tls().is_some() && self.target.tls_verifies
    }

    fn password(&self, what: &str) -> Result<SecretString, DialError> {
        match self.proof {
            Proof::Password(text) => Ok(text.clone()),
            // Its hash is of no use to the server: it would only have to be a password that the role has.
            Proof::Token(_) => Err(self.no_proof(format!(
                "the server asks for {what}, but a token is taken as a password in clear only: does the role log in by \
                 the cloud's IAM there?"
            ))),
            Proof::Nothing => Err(self.no_proof(format!("the server asks for {what}, and none is configured"))),
            Proof::Keys(_) => {
                Err(self.no_proof(format!("the server asks for {what}, and a SCRAM login was passed through")))
            }
        }
    }

    async fn send_password(&mut self, password: &str) -> Result<(), DialError> {
        let mut message = zeroize::Zeroizing::new(Vec::with_capacity(password.len() + 6));
        reply::request(&mut message, FrontendTag::Password, |body| {
            body.extend(password.as_bytes());
            body.push(0);
        });
        self.send(&message).await
    }

    async fn expect_authentication<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(Authentication<'_>) -> Option<T>,
    ) -> Result<T, DialError> {
        let (tag, body) = self.receive().await?;
        if tag != BackendTag::Authentication {
            return Err(self.broken(FrameError::Unexpected(what)));
        }
        let authentication = backend::authentication(&body).map_err(|error| self.broken(error))?;
        read(authentication).ok_or_else(|| self.broken(FrameError::Unexpected(what)))
    }

    async fn scram(&mut self, mechanisms: &[u8]) -> Result<(), DialError> {
        if matches!(self.proof, Proof::Token(_)) {
            return self.password("a SCRAM proof").map(drop);
        }
        let offered = |name: &str| backend::sasl_mechanisms(mechanisms).any(|m| m == name.as_bytes());
        let certificate = self.stream.tls().and_then(|tls| tls.peer_certificates()).and_then(|chain| chain.first());
        let end_point = certificate.and_then(tls::server_end_point);
        let (mechanism, binding) = match &end_point {
            Some(hash) if offered(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, Binding::EndPoint(hash)),
            Some(_) if offered(SCRAM_SHA_256) => (SCRAM_SHA_256, Binding::NotOffered),
            None if offered(SCRAM_SHA_256) => (SCRAM_SHA_256, Binding::None),
            _ => return Err(self.no_proof("the server offers no SASL mechanism that is supported")),
        };
        let failed = |login: &Self, error: ScramError| login.no_proof(error.to_string());
        let first = ClientFirst::start(binding, random::nonce());
        let mut message = Vec::new();
        reply::request(&mut message, FrontendTag::Password, |body| {
            let data = first.message();
            body.extend(mechanism.as_bytes());
            body.push(0);
            body.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
            body.extend(data.as_bytes());
        });
        self.send(&message).await?;
        let answer = self
            .expect_authentication("SASL", |a| match a {
                Authentication::SaslContinue(data) => Some(data.to_vec()),
                _ => None,
            })
            .await?;
        let challenge = first.challenge(&answer).map_err(|error| failed(self, error))?;
        let keys = match self.proof {
            Proof::Keys(keys) => keys.clone(),
            Proof::Nothing | Proof::Password(_) | Proof::Token(_) => {
                let password = self.password("a password")?;
                let (salt, iterations) = (challenge.salt.clone(), challenge.iterations);
                // Some milliseconds of CPU: not on the thread that serves clients.
                tokio::task::spawn_blocking(move || Keys::derive(password.expose(), &salt, iterations))
                    .await
                    .map_err(|error| self.no_proof(error.to_string()))?
            }
        };
        let (proof, last) = challenge.prove(&keys);
        let mut message = Vec::new();
        reply::request(&mut message, FrontendTag::Password, |body| body.extend(proof.as_bytes()));
        self.send(&message).await?;
        let answer = self
            .expect_authentication("SASL", |a| match a {
                Authentication::SaslFinal(data) => Some(data.to_vec()),
                _ => None,
            })
            .await?;
        last.verify(&answer).map_err(|error| failed(self, error))
    }
}
