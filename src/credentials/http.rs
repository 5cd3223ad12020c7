//! A small HTTP client for the few requests that credentials take: one connection for each, over our own streams.

use crate::net::tls::web_client;
use crate::net::{Address, Socket, SocketOptions, Stream};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{DATE, HOST};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{HeaderMap, Method, Uri};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use zeroize::{Zeroize, Zeroizing};

/// Answers of the clouds are some kilobytes.
const LONGEST_ANSWER: usize = 1 << 20;
/// Metadata services answer at once or are not there.
const CONNECT: Duration = Duration::from_secs(2);
const ANSWER: Duration = Duration::from_secs(10);
/// Clocks that differ by more are worth a word: AWS refuses what was signed 5 minutes from its own time.
const SKEW: Duration = Duration::from_secs(60);

/// How long the parts of a request may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connect: Duration,
    pub(super) answer: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connect: CONNECT, answer: ANSWER }
    }
}

/// A request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    #[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "only the AWS SDK looks at them"))]
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    /// The address makes no sense, or is one that secrets must not be sent to.
    #[error("{0}: {1}")]
    Address(String, &'static str),
    /// Nobody is there.
    #[error("cannot connect to {0}: {1}")]
    Connect(Address, io::Error),
    /// It took too long.
    #[error("no answer from {0} within {1:?}")]
    Timeout(Address, Duration),
    /// The conversation broke.
    #[error("the request to {0} failed: {1}")]
    Broken(Address, Box<dyn std::error::Error + Send + Sync>),
}

impl Request {
    /// A GET.
    pub(super) fn get(uri: &str) -> Result<Self, HttpError> {
        let uri = uri.parse().map_err(|_| HttpError::Address(uri.to_owned(), "is no URL"))?;
        Ok(Self { method: Method::GET, uri, headers: HeaderMap::new(), body: Bytes::new() })
    }

    /// The same with one header more.
    #[cfg(any(feature = "azure", feature = "gcp"))]
    pub(super) fn header(mut self, name: &'static str, value: &str) -> Result<Self, HttpError> {
        let value = hyper::header::HeaderValue::from_str(value);
        let value = value.map_err(|_| HttpError::Address(name.to_owned(), "its value is no header's"))?;
        self.headers.insert(hyper::header::HeaderName::from_static(name), value);
        Ok(self)
    }

    /// Sends it, and reads the answer.
    pub(super) async fn send(self, limits: Limits) -> Result<Answer, HttpError> {
        let secure = match self.uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(HttpError::Address(self.uri.to_string(), "write http:// or https://")),
        };
        let host = self.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = self.uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let address = Address::Tcp { host, port };
        let connect = tokio::time::timeout(limits.connect, connect(&address, secure));
        let stream = connect.await.map_err(|_| HttpError::Timeout(address.clone(), limits.connect))??;
        let exchange = tokio::time::timeout(limits.answer, self.exchange(stream));
        let answer = exchange.await.map_err(|_| HttpError::Timeout(address.clone(), limits.answer))?;
        answer.map_err(|error| HttpError::Broken(address, error))
    }

    async fn exchange(self, stream: Stream) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(Io(stream)).await?;
        let connection = Ending(tokio::spawn(connection));
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = hyper::Request::builder().method(self.method).uri(path);
        if let Some(authority) = self.uri.authority() {
            request = request.header(HOST, authority.as_str());
        }
        let mut request = request.body(Full::new(self.body))?;
        for (name, value) in &self.headers {
            request.headers_mut().insert(name, value.clone());
        }
        let (head, body) = sender.send_request(request).await?.into_parts();
        let mut body = Limited::new(body, LONGEST_ANSWER);
        let mut bytes = Zeroizing::new(Vec::with_capacity(16 * 1024));
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                append(&mut bytes, &data);
            }
        }
        drop(connection);
        note_skew(&head.headers);
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: bytes })
    }
}

/// Appends, and wipes what is left behind when the buffer moves.
fn append(bytes: &mut Zeroizing<Vec<u8>>, more: &[u8]) {
    if bytes.capacity() - bytes.len() < more.len() {
        let mut larger = Vec::with_capacity(2 * (bytes.len() + more.len()));
        larger.extend_from_slice(bytes);
        std::mem::replace(&mut **bytes, larger).zeroize();
    }
    bytes.extend_from_slice(more);
}

/// Says when an answer's clock is not ours: tokens and signatures will be refused for it.
fn note_skew(headers: &HeaderMap) {
    let theirs = headers.get(DATE).and_then(|date| date.to_str().ok()).and_then(|d| httpdate::parse_http_date(d).ok());
    let now = SystemTime::now();
    let skew = theirs.map(|theirs| theirs.duration_since(now).or_else(|_| now.duration_since(theirs)));
    if let Some(Ok(skew)) = skew
        && skew > SKEW
    {
        let seconds = skew.as_secs();
        tracing::warn!(seconds, "clock skew: this machine's clock differs from that of a credential endpoint");
    }
}

async fn connect(address: &Address, secure: bool) -> Result<Stream, HttpError> {
    let broken = |error| HttpError::Connect(address.clone(), error);
    let socket = Socket::connect(address, &SocketOptions::default()).await.map_err(broken)?;
    let stream = Stream::plain(socket);
    if !secure {
        return Ok(stream);
    }
    let config = web_client().map_err(|error| broken(io::Error::other(error)))?;
    stream.connect_tls(config, address.host()).await.map_err(broken)
}

/// Whether what is sent to this URL stays on this machine.
#[cfg(feature = "azure")]
pub(super) fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A task that ends with its owner.
struct Ending<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A stream as hyper wants it.
struct Io(Stream);

impl Read for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut chunk = [0; 4096];
        let most = chunk.len().min(buf.remaining());
        if most == 0 {
            return Poll::Ready(Ok(()));
        }
        let read = ready!(self.0.poll_read(cx, &mut chunk[..most]))?;
        buf.put_slice(&chunk[..read]);
        chunk.zeroize();
        Poll::Ready(Ok(()))
    }
}

impl Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, [buf, &[]])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.write_last(&[]);
        Poll::Ready(Ok(()))
    }
}

/// What the token endpoints of Google and Microsoft answer with.
#[cfg(any(feature = "azure", feature = "gcp"))]
pub(super) mod oauth {
    use super::Answer;
    use crate::credentials::engine::Fetch;
    use crate::credentials::managed::Secret;
    use crate::credentials::policy::Life;
    use crate::secret::SecretString;
    use serde_json::Value;
    use std::time::{Duration, SystemTime};

    /// Words of an error are repeated up to so many characters.
    const QUOTED: usize = 300;

    /// A number, which some write as a text.
    fn number(value: Option<&Value>) -> Option<u64> {
        let value = value?;
        value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
    }

    /// Reads the token, and until when it is good.
    ///
    /// # Errors
    /// What the endpoint says, or what is wrong with its answer; never the answer itself.
    pub(crate) fn token(answer: &Answer, now: SystemTime) -> Result<Fetch<Secret>, String> {
        let json: Option<Value> = serde_json::from_slice(&answer.body).ok();
        if answer.status != 200 {
            let said = json.as_ref().and_then(|json| {
                let text = |name: &str| json.get(name).and_then(Value::as_str);
                text("error_description").or_else(|| text("message")).or_else(|| text("error"))
            });
            let plain = || std::str::from_utf8(&answer.body).ok().filter(|text| !text.contains(['<', '{']));
            let said: String = said.or_else(plain).unwrap_or_default().chars().take(QUOTED).collect();
            return Err(format!("status {}: {}", answer.status, said.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
        let mut json = json.ok_or("the answer is no valid JSON")?;
        let after = number(json.get("expires_in")).map(|seconds| now + Duration::from_secs(seconds));
        let at = number(json.get("expires_on")).map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        let until = after.or(at).ok_or("the answer does not say how long the token lives")?;
        match json.get_mut("access_token").map(Value::take) {
            Some(Value::String(text)) if !text.is_empty() => {
                Ok(Fetch { value: Secret::token(SecretString::new(text)), life: Life::Until(until) })
            }
            _ => Err("the answer has no access_token".to_owned()),
        }
    }
}
