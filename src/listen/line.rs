//! The listening connection itself: made, spoken to, heard.

use super::board;
use crate::pool::{LeaseError, Pool, PoolSet};
use crate::server::dial::Verdict;
use crate::server::{ExchangeError, Server};
use crate::wire::frame::{self, FrameError, HEADER};
use crate::wire::{BackendTag, FrontendTag, Report, SqlState, backend, reply};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

/// Where it is said in `pg_stat_activity` what the connection is for.
const NAME: &str = "pg-ambassador, listening for its clients";
/// Bytes that are read at once.
const CHUNK: usize = 16 * 1024;
/// Bytes of one message at most. A notification has less than 8000 bytes of payload before its encoding is changed; a
/// server that sends more than this is not telling us anything.
const MAX_MESSAGE: usize = 1024 * 1024;
/// How long the primary is looked for before the attempt counts as failed.
const FIND_PRIMARY: Duration = Duration::from_secs(10);

/// Why there is no listening connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("{0}")]
    Lease(#[from] LeaseError),
    #[error("the server is a standby")]
    Standby,
    #[error("preparing it failed: {0}")]
    Broken(#[from] ExchangeError),
    #[error("the server refused to prepare it: {}: {}", .0.code, .0.message)]
    Refused(Report),
    #[error("preparing it took longer than {0:?}")]
    Slow(Duration),
}

impl OpenError {
    /// Whether waiting does not mend it, but another role might.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Lease(LeaseError::Upstream(error)) => match error.verdict() {
                Verdict::Client | Verdict::Credential => true,
                Verdict::Retry | Verdict::Full => false,
            },
            Self::Lease(LeaseError::Disabled(_) | LeaseError::Closed) => true,
            Self::Lease(
                LeaseError::Timeout { .. } | LeaseError::NoPrimary(_) | LeaseError::Ambiguous(_) | LeaseError::Moved(_),
            ) => false,
            Self::Standby | Self::Broken(_) | Self::Refused(_) | Self::Slow(_) => false,
        }
    }

    /// What the client is told.
    pub(super) fn report(&self) -> Report {
        match self {
            Self::Lease(error) => error.report(),
            Self::Standby | Self::Broken(_) | Self::Refused(_) | Self::Slow(_) => {
                Report::ours(SqlState::CANNOT_CONNECT_NOW, "no listening connection").detail(format!("cause={self}"))
            }
        }
    }
}

/// Why a listening connection has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("{0}")]
    Broken(ExchangeError),
    #[error("{}: {}", .0.code, .0.message)]
    Fatal(Report),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("the server is no primary any more")]
    Standby,
    #[error("another server is the primary now")]
    Elsewhere,
    #[error("{0}")]
    Outdated(&'static str),
}

impl<E: Into<ExchangeError>> From<E> for Lost {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

/// What the server has said.
pub(super) enum Message<'a> {
    /// A notification on this channel, as a whole frame.
    Notification { channel: &'a [u8], frame: &'a [u8] },
    /// A request is answered. Requests are answered one by one, in order.
    Answer(Result<(), Report>),
    /// An error that answers no request: a notification that cannot be written in the encoding of this connection.
    Remark(Report),
}

/// A listening connection.
#[derive(Debug)]
pub(super) struct Line {
    server: Box<Server>,
    pub(super) pools: Arc<PoolSet>,
    pub(super) pool: Arc<Pool>,
    /// When it was last heard of.
    pub(super) heard: Instant,
    answers: Answers,
}

/// Which of what the server says answers the request, and which answers nothing.
///
/// The server may fail on its own: when it cannot convert a notification it reports an error, and a ReadyForQuery follows
/// that is not for us. That may come just before or just behind the answer to a request. So each request ends with an empty
/// query, whose answer is like no other.
#[derive(Debug, Default)]
struct Answers {
    /// A request was sent and not yet answered.
    asked: bool,
    /// What is known of its answer.
    answer: Option<Result<(), Report>>,
    /// Since the last ReadyForQuery: the empty query was answered.
    is_end: bool,
    /// Since the last ReadyForQuery: an error.
    error: Option<Report>,
}

impl Answers {
    /// A request is sent, with statements before its empty query or without.
    fn expect(&mut self, statements: bool) {
        self.asked = true;
        self.answer = if statements { None } else { Some(Ok(())) };
    }

    /// A ReadyForQuery has come.
    fn ready(&mut self) -> Option<Message<'static>> {
        let error = self.error.take();
        if std::mem::take(&mut self.is_end) {
            self.asked = false;
            let unanswered = || Err(Report::ours(SqlState::PROTOCOL_VIOLATION, "the server did not answer LISTEN"));
            return Some(Message::Answer(self.answer.take().unwrap_or_else(unanswered)));
        }
        match error {
            None => self.answer = Some(Ok(())),
            // Unless the statements were answered without an error already, or there are none, it may be theirs.
            Some(error) if self.asked && self.answer.as_ref().is_none_or(Result::is_err) => {
                self.answer = Some(Err(error));
            }
            Some(error) => return Some(Message::Remark(error)),
        }
        None
    }
}

impl Line {
    /// Makes one to the primary of these pools, and a session on it that is neutral but for its encoding.
    pub(super) async fn open(pools: Arc<PoolSet>, encoding: Arc<str>) -> Result<Self, OpenError> {
        let (pool, dialled) = loop {
            let pool = pools.find_primary(Instant::now() + FIND_PRIMARY).await?;
            match pool.dial_apart([("client_encoding".to_owned(), encoding.to_string())]).await {
                Err(LeaseError::Moved(_)) => {}
                dialled => break (pool, dialled),
            }
        };
        let mut server = dialled.inspect_err(|error| {
            // It may have failed over: asked again, the pools look for the primary there is now.
            if let LeaseError::Upstream(error) = error
                && error.verdict() == Verdict::Retry
            {
                pools.forget_primary();
            }
        })?;
        // Timeouts that a role or database has for its clients are not for a session that must outlive all of them. Not
        // every version has each of them.
        let question = format!(
            "select pg_catalog.set_config('application_name', '{NAME}', false); \
             select pg_catalog.set_config(name, '0', false) from pg_catalog.pg_settings \
             where name in ('idle_session_timeout', 'statement_timeout', 'transaction_timeout', 'lock_timeout'); \
             select pg_catalog.pg_is_in_recovery()"
        );
        let limit = pool.config().connect_timeout;
        let answer = tokio::time::timeout(limit, server.simple(&question)).await;
        let answer = answer.map_err(|_| OpenError::Slow(limit))??;
        if let Some(report) = answer.error {
            return Err(OpenError::Refused(report));
        }
        if answer.rows.last().and_then(|row| row.first()).is_some_and(|value| value.as_deref() == Some("t")) {
            server.close();
            pools.forget_primary();
            return Err(OpenError::Standby);
        }
        Ok(Self { server, pools, pool, heard: Instant::now(), answers: Answers::default() })
    }

    /// Its pool's generation when it was made.
    pub(super) fn generation(&self) -> u64 {
        self.server.generation
    }

    /// How long ago it was made.
    pub(super) fn age(&self) -> Duration {
        self.server.entry.connected.elapsed()
    }

    /// The process at the other end.
    pub(super) fn pid(&self) -> i32 {
        self.server.entry.key.pid
    }

    /// Asks the server for these channels and no longer for those, and notifies others; with none of all, only for an
    /// answer. The one before must have been answered.
    pub(super) fn request(
        &mut self,
        listen: &[super::Channel],
        unlisten: &[super::Channel],
        notify: &[super::Channel],
    ) {
        let sql = board::statements(listen, unlisten, notify);
        let mut query = |sql: &[u8]| {
            reply::request(&mut self.server.output, FrontendTag::Query, |body| {
                body.extend_from_slice(sql);
                body.push(0);
            });
        };
        if !sql.is_empty() {
            query(&sql);
        }
        query(b"");
        self.answers.expect(!sql.is_empty());
    }

    /// Writes what waits to be written, and waits until something was read. Dropping the future loses nothing.
    pub(super) async fn turn(&mut self) -> Result<(), Lost> {
        let read = std::future::poll_fn(|cx| {
            let Server { stream, output, input, .. } = &mut *self.server;
            while !output.is_empty() {
                match stream.poll_write(cx, [output, &[]])? {
                    Poll::Ready(0) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                    Poll::Ready(written) => drop(output.drain(..written)),
                    Poll::Pending => break,
                }
            }
            if output.is_empty() {
                // What is left of it goes when the socket wakes us.
                let _ = stream.poll_flush(cx)?;
            }
            let mut chunk = [0; CHUNK];
            let read = ready!(stream.poll_read(cx, &mut chunk))?;
            input.extend_from_slice(&chunk[..read]);
            Poll::Ready(Ok::<usize, std::io::Error>(read))
        });
        if read.await? == 0 {
            return Err(Lost::Broken(ExchangeError::Closed));
        }
        self.heard = Instant::now();
        Ok(())
    }

    /// Passes on what was read, message by message.
    pub(super) fn messages(&mut self, mut pass: impl FnMut(Message<'_>)) -> Result<(), Lost> {
        let input = std::mem::take(&mut self.server.input);
        let mut at = 0;
        while let Some(frame) = frame::backend(&input[at..])? {
            if frame.len > MAX_MESSAGE {
                return Err(FrameError::Unexpected("huge").into());
            }
            let Some(bytes) = input[at..].get(..frame.len) else { break };
            if let Some(message) = self.message(frame.tag, bytes)? {
                pass(message);
            }
            at += frame.len;
        }
        self.server.input = if at == input.len() { Vec::new() } else { input[at..].to_vec() };
        Ok(())
    }

    fn message<'a>(&mut self, tag: BackendTag, frame: &'a [u8]) -> Result<Option<Message<'a>>, Lost> {
        let body = &frame[HEADER..];
        match tag {
            BackendTag::Notification => {
                let channel = backend::notification(body)?.channel;
                return Ok(Some(Message::Notification { channel, frame }));
            }
            BackendTag::Error => {
                let fields = backend::error(body);
                if fields.is_fatal() {
                    // A notification that cannot be converted ends a session that was waiting for a query: with the error
                    // itself, and then with one that says less.
                    return Err(Lost::Fatal(self.answers.error.take().unwrap_or_else(|| fields.report())));
                }
                self.answers.error = Some(fields.report());
            }
            BackendTag::EmptyQuery => self.answers.is_end = true,
            BackendTag::Ready => return Ok(self.answers.ready()),
            BackendTag::CommandComplete | BackendTag::Notice | BackendTag::ParameterStatus => {}
            BackendTag::Authentication
            | BackendTag::BackendKeyData
            | BackendTag::BindComplete
            | BackendTag::CloseComplete
            | BackendTag::CopyBoth
            | BackendTag::CopyData
            | BackendTag::CopyDone
            | BackendTag::CopyIn
            | BackendTag::CopyOut
            | BackendTag::DataRow
            | BackendTag::FunctionResult
            | BackendTag::NegotiateVersion
            | BackendTag::NoData
            | BackendTag::ParameterDescription
            | BackendTag::ParseComplete
            | BackendTag::PortalSuspended
            | BackendTag::RowDescription => return Err(FrameError::Unexpected("answer").into()),
        }
        Ok(None)
    }

    /// Says goodbye and closes.
    pub(super) fn close(self) {
        self.server.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a request when the server says this: `e` an error, `i` the empty query's answer, `z` ReadyForQuery.
    /// In the result `+` is a success, `-` a failure and `!` a remark.
    fn said(statements: bool, words: &str) -> String {
        let mut answers = Answers::default();
        answers.expect(statements);
        let mut result = String::new();
        for word in words.chars() {
            match word {
                'e' => answers.error = Some(Report::ours(SqlState::INTERNAL_ERROR, "x")),
                'i' => answers.is_end = true,
                _ => result.push_str(match answers.ready() {
                    Some(Message::Answer(Ok(()))) => "+",
                    Some(Message::Answer(Err(_))) => "-",
                    Some(Message::Remark(_)) => "!",
                    Some(Message::Notification { .. }) => "?",
                    None => "",
                }),
            }
        }
        result
    }

    #[test]
    fn an_error_that_answers_nothing_does_not_pass_for_an_answer() {
        for (statements, words, expected) in [
            (true, "ziz", "+"),
            (true, "eziz", "-"),
            (true, "ezziz", "+"),
            (true, "zeziz", "!+"),
            (true, "ezeziz", "-"),
            (true, "ezzeziz", "!+"),
            (true, "iz", "-"),
            (false, "iz", "+"),
            (false, "eziz", "!+"),
            (false, "izez", "+!"),
            (true, "zizez", "+!"),
        ] {
            assert_eq!(said(statements, words), expected, "{statements} {words}");
        }
    }
}
