//! A conversation of our own with a server: a request, and all its answers.

use super::Server;
use crate::wire::frame::{self, FrameError, HEADER};
use crate::wire::{BackendTag, Report, TxStatus, backend, reply};
use std::io;

/// What came of a request.
#[derive(Debug, Default)]
pub struct Exchange {
    /// The rows of all its results, as text.
    pub rows: Vec<Vec<Option<String>>>,
    /// The last error, if there was one.
    pub error: Option<Report>,
}

/// Why a conversation broke off. The server cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The server broke the protocol.
    #[error("server protocol violation: {0}")]
    Protocol(#[from] FrameError),
}

/// Rows of our own requests are few and small; a server that sends more is not answering us.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Reads one whole message into `buf`, behind what is there; gives its type and size.
pub(super) async fn read_message(
    stream: &mut crate::net::Stream,
    buf: &mut Vec<u8>,
    cap: usize,
) -> Result<frame::Frame<BackendTag>, ExchangeError> {
    let mut chunk = [0; 4096];
    loop {
        if let Some(found) = frame::backend(buf)? {
            if found.len > cap {
                return Err(FrameError::Unexpected("huge").into());
            }
            if buf.len() >= found.len {
                return Ok(found);
            }
        }
        match stream.read(&mut chunk).await? {
            0 => return Err(ExchangeError::Closed),
            read => buf.extend_from_slice(&chunk[..read]),
        }
    }
}

impl Server {
    /// Sends `request` and reads until `ready` ReadyForQuery messages have come. The server must be free.
    ///
    /// Dropping the future leaves the conversation in the middle: the server must then be closed.
    pub async fn exchange(&mut self, request: &[u8], ready: usize) -> Result<Exchange, ExchangeError> {
        self.stream.write_all(request).await?;
        let mut result = Exchange::default();
        let mut left = ready;
        let mut size = 0;
        while left > 0 {
            let frame = read_message(&mut self.stream, &mut self.input, MAX_ANSWER).await?;
            size += frame.len;
            if size > MAX_ANSWER {
                return Err(FrameError::Unexpected("huge").into());
            }
            let body = &self.input[HEADER..frame.len];
            match frame.tag {
                BackendTag::Ready => {
                    self.side.note_ready(backend::ready(body)?);
                    left -= 1;
                }
                BackendTag::ParameterStatus => {
                    let (name, value) = backend::parameter_status(body)?;
                    self.side.note_param(name, value);
                }
                BackendTag::Error => {
                    let fields = backend::error(body);
                    result.error = Some(fields.report());
                    if fields.is_fatal() {
                        return Err(ExchangeError::Closed);
                    }
                }
                BackendTag::DataRow => result.rows.push(text_row(body)?),
                BackendTag::RowDescription
                | BackendTag::CommandComplete
                | BackendTag::EmptyQuery
                | BackendTag::ParseComplete
                | BackendTag::BindComplete
                | BackendTag::CloseComplete
                | BackendTag::NoData
                | BackendTag::ParameterDescription
                | BackendTag::Notice
                | BackendTag::Notification => {}
                BackendTag::Authentication
                | BackendTag::BackendKeyData
                | BackendTag::CopyBoth
                | BackendTag::CopyData
                | BackendTag::CopyDone
                | BackendTag::CopyIn
                | BackendTag::CopyOut
                | BackendTag::FunctionResult
                | BackendTag::NegotiateVersion
                | BackendTag::PortalSuspended => return Err(FrameError::Unexpected("answer").into()),
            }
            self.input.drain(..frame.len);
        }
        Ok(result)
    }

    /// Runs one simple query.
    pub async fn simple(&mut self, sql: &str) -> Result<Exchange, ExchangeError> {
        let mut request = Vec::new();
        reply::query(&mut request, sql);
        self.exchange(&request, 1).await
    }

    /// Makes the session what it was after the login. `false`: it cannot be, close it.
    pub async fn reset(&mut self) -> Result<bool, ExchangeError> {
        let mut request = Vec::new();
        let mut ready = 1;
        if self.side.tx() != TxStatus::Idle {
            reply::query(&mut request, "ROLLBACK");
            ready += 1;
        }
        reply::query(&mut request, "DISCARD ALL");
        let result = self.exchange(&request, ready).await?;
        let clean = result.error.is_none() && self.side.tx() == TxStatus::Idle && self.input.is_empty();
        if clean {
            self.side.was_reset(self.defaults.clone());
        }
        Ok(clean)
    }

    /// Makes the server's settings these. The error is the server's own, and then the settings are what they were.
    pub async fn apply(
        &mut self,
        settings: &crate::session::settings::Settings,
    ) -> Result<Result<(), Report>, ExchangeError> {
        if self.side.settings().same(settings) {
            return Ok(Ok(()));
        }
        let mut request = self.side.settings_request(settings);
        // Either the empty query or the Sync is answered by the first ReadyForQuery, and if it is the query, by a second.
        reply::sync(&mut request);
        let mut result = self.exchange(&request, 1).await?;
        if let Some(error) = result.error.take() {
            return Ok(Err(error));
        }
        self.exchange(&[], 1).await?;
        self.side.note_settings(settings.clone());
        Ok(Ok(()))
    }
}

fn text_row(body: &[u8]) -> Result<Vec<Option<String>>, FrameError> {
    let columns = backend::row(body)?;
    Ok(columns.into_iter().map(|c| c.map(|bytes| String::from_utf8_lossy(bytes).into_owned())).collect())
}
