//! A connection, plain or TLS, seen as bytes. Its reads and writes may be polled side by side.

use super::socket::{Reading, Socket};
use super::{scratch, tls};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

/// A connection to a client or to a server.
pub struct Stream {
    socket: Socket,
    reading: Reading,
    patience: Patience,
    tls: Option<Box<Tls>>,
}

/// Linux takes a peer for dead that acknowledges all it is sent and has no room for more (`TCP_USER_TIMEOUT` in tcp(7)): a
/// client that shows a long result page by page, a server whose COPY waits for a lock. Where so much was sent that it may
/// have come to that, the limit is lifted until the peer is heard of again.
#[derive(Debug, Default)]
struct Patience {
    /// Bytes that were sent since the peer was heard of.
    unanswered: u32,
    /// The limit is lifted.
    lifted: bool,
    /// What it was, in milliseconds; 0 for none.
    limit: u32,
    /// When it was lifted.
    since: Option<Instant>,
}

/// What a peer has room for in any case, whether it reads or not. Some systems begin with 64 KiB.
const ROOM: u32 = 32 * 1024;

impl Patience {
    #[inline]
    fn sent(&mut self, bytes: usize, socket: &Socket) {
        self.unanswered = self.unanswered.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.unanswered > ROOM && !self.lifted {
            self.lift(socket);
        }
    }

    #[inline]
    fn heard(&mut self, socket: &Socket) {
        self.unanswered = 0;
        if self.lifted {
            self.end(socket);
        }
    }

    #[cold]
    fn lift(&mut self, socket: &Socket) {
        self.lifted = true;
        self.since = Some(Instant::now());
        let limit = socket.lift_user_timeout().unwrap_or_default();
        self.limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    }

    #[cold]
    fn end(&mut self, socket: &Socket) {
        self.lifted = false;
        if self.limit > 0 {
            socket.set_user_timeout(Duration::from_millis(self.limit.into()));
        }
    }
}

struct Tls {
    connection: Connection,
    /// Bytes that were read from the socket and that the TLS connection had no room for yet.
    pending: Vec<u8>,
}

/// Bytes that a TLS connection keeps at most of what it was given to send: rustls' own limit, when nobody has set another.
const TLS_BACKLOG: usize = 64 * 1024;

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("socket", &self.socket).field("tls", &self.tls.is_some()).finish()
    }
}

impl Stream {
    /// A plain connection.
    pub fn plain(socket: Socket) -> Self {
        Self { socket, reading: Reading::default(), patience: Patience::default(), tls: None }
    }

    /// Does the server's part of a TLS handshake; `received` is what of it was read already. Of no more use if it fails.
    pub async fn accept_tls(&mut self, config: Arc<ServerConfig>, received: &[u8]) -> io::Result<()> {
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        self.handshake(connection.into(), received).await
    }

    /// Does the client's part of a TLS handshake.
    pub async fn connect_tls(mut self, config: Arc<ClientConfig>, host: &str) -> io::Result<Self> {
        let name = tls::server_name(host)?;
        let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        self.handshake(connection.into(), &[]).await?;
        Ok(self)
    }

    async fn handshake(&mut self, connection: Connection, received: &[u8]) -> io::Result<()> {
        self.tls = Some(Box::new(Tls { connection, pending: received.to_vec() }));
        std::future::poll_fn(|cx| self.poll_handshake(cx)).await
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(cx))?;
            let Some(tls) = &mut self.tls else { return Poll::Ready(Ok(())) };
            if !tls.connection.is_handshaking() && !tls.connection.wants_write() {
                return Poll::Ready(Ok(()));
            }
            if tls.pending.is_empty() {
                let (socket, reading) = (&self.socket, &mut self.reading);
                let pending = &mut tls.pending;
                let read = ready!(scratch::with_cipher(|cipher| {
                    socket.poll_read(cx, cipher, reading).map_ok(|read| {
                        pending.extend_from_slice(&cipher[..read]);
                        read
                    })
                }))?;
                if read == 0 {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the peer closed the connection during the TLS handshake",
                    )));
                }
            }
            if let Err(error) = tls.feed_pending() {
                // The alert that tells the peer what is wrong is best effort.
                let _ = self.poll_flush(cx);
                return Poll::Ready(Err(error));
            }
        }
    }

    /// The TLS connection, if it is one.
    pub fn tls(&self) -> Option<&Connection> {
        self.tls.as_ref().map(|tls| &tls.connection)
    }

    /// Whether the peer was sent more than it may have room for and was not heard of since: nobody but we would find out that
    /// it is gone.
    #[inline]
    pub fn is_unheard(&self) -> bool {
        self.patience.lifted
    }

    /// Since when that is so, and how long it may be before the peer should be looked for, if there is a limit
    /// (`user_timeout`).
    pub fn unheard(&self) -> Option<(Instant, Duration)> {
        let Patience { lifted, limit, since, .. } = self.patience;
        since.filter(|_| lifted && limit > 0).map(|since| (since, Duration::from_millis(limit.into())))
    }

    /// The socket beneath.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Registers the connection with the runtime of this thread.
    pub fn rehome(self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.rehome()?, reading: Reading::default(), ..self })
    }

    /// Reads into `buf`, which must not be empty; 0 is the end of the stream.
    #[inline]
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = match &mut self.tls {
            None => self.socket.poll_read(cx, buf, &mut self.reading),
            Some(_) => self.poll_read_tls(cx, buf),
        };
        if let Poll::Ready(Ok(1..)) = read {
            self.patience.heard(&self.socket);
        }
        read
    }

    fn poll_read_tls(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(tls) = &mut self.tls else { return Poll::Ready(Ok(0)) };
        let (socket, reading) = (&mut self.socket, &mut self.reading);
        loop {
            let mut filled = 0;
            if let Some(end) = tls.drain(buf, &mut filled)? {
                return Poll::Ready(Ok(end));
            }
            if filled > 0 {
                return Poll::Ready(Ok(filled));
            }
            let ended = ready!(scratch::with_cipher(|cipher| -> Poll<io::Result<bool>> {
                // No more than there is room for: what is left over would have to be kept.
                let most = cipher.len().min(buf.len());
                let read = ready!(socket.poll_read(cx, &mut cipher[..most], reading))?;
                if read == 0 {
                    return Poll::Ready(Ok(true));
                }
                let mut bytes = &cipher[..read];
                tls.feed(&mut bytes, buf, &mut filled)?;
                tls.pending.extend_from_slice(bytes);
                Poll::Ready(Ok(false))
            }))?;
            if tls.connection.wants_write() {
                // Key updates and alerts; if the socket is full they go with the next write.
                let _ = tls.flush(socket, cx)?;
            }
            if filled > 0 || ended {
                return Poll::Ready(Ok(filled));
            }
        }
    }

    /// Writes the two parts, one behind the other; the number of bytes taken may be less than all of them.
    ///
    /// Bytes that were taken are out only when [`Stream::poll_flush`] is ready.
    #[inline]
    pub fn poll_write(&mut self, cx: &mut Context<'_>, parts: [&[u8]; 2]) -> Poll<io::Result<usize>> {
        let written = self.poll_write_any(cx, parts);
        if let Poll::Ready(Ok(bytes)) = written {
            self.patience.sent(bytes, &self.socket);
        }
        written
    }

    #[inline]
    fn poll_write_any(&mut self, cx: &mut Context<'_>, parts: [&[u8]; 2]) -> Poll<io::Result<usize>> {
        let Some(tls) = &mut self.tls else { return self.socket.poll_write(cx, parts) };
        ready!(tls.flush(&mut self.socket, cx))?;
        let mut taken = 0;
        for part in parts {
            let written = tls.connection.writer().write(part)?;
            taken += written;
            if written < part.len() {
                break;
            }
        }
        let _ = tls.flush(&mut self.socket, cx)?;
        Poll::Ready(Ok(taken))
    }

    /// What is kept beneath, in bytes: at most, where only TLS itself knows.
    #[inline]
    pub fn backlog(&self) -> usize {
        match &self.tls {
            None => 0,
            Some(tls) => tls.pending.capacity() + if tls.connection.wants_write() { TLS_BACKLOG } else { 0 },
        }
    }

    /// Ready when nothing that was taken is left to be sent.
    #[inline]
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.tls {
            None => Poll::Ready(Ok(())),
            Some(tls) => tls.flush(&mut self.socket, cx),
        }
    }

    /// Whether the peer may have closed, or sent something, as far as the runtime has heard. Asks nobody.
    #[inline]
    pub fn may_be_readable(&self) -> bool {
        self.socket.may_be_readable()
    }

    /// Whether the peer has closed, or has sent something that nobody asked for. Asks the kernel, without waiting.
    pub fn is_stale(&mut self) -> bool {
        let mut byte = [0];
        match self.socket.read_now(&mut byte, true) {
            Ok(None) => false,
            Ok(Some(0)) | Err(_) => true,
            Ok(Some(_)) => match &mut self.tls {
                None => true,
                // It may be a session ticket or a key update, which mean nothing to us.
                Some(tls) => {
                    let mut buf = [0; 64];
                    let fed = scratch::with_cipher(|cipher| match self.socket.read_now(cipher, false) {
                        Ok(Some(read)) if read > 0 => {
                            let mut filled = 0;
                            tls.feed(&mut &cipher[..read], &mut buf, &mut filled).map(|()| filled)
                        }
                        _ => Err(io::ErrorKind::UnexpectedEof.into()),
                    });
                    !matches!(fed, Ok(0)) || tls.is_over()
                }
            },
        }
    }

    /// What has come and was not read, without taking it: nothing if it is encrypted.
    pub fn peek<'a>(&self, buf: &'a mut [u8]) -> &'a [u8] {
        if self.tls.is_some() {
            return &[];
        }
        let peeked = self.socket.read_now(buf, true);
        &buf[..peeked.ok().flatten().unwrap_or_default()]
    }

    /// Whether the peer has closed. Asks the kernel, without waiting; what the peer may have sent is not looked at.
    pub fn is_closed(&self) -> bool {
        matches!(self.socket.read_now(&mut [0], true), Ok(Some(0)) | Err(_))
    }

    /// Whether the peer will send nothing more than what it has sent, or is gone. Asks the kernel, without waiting; what the
    /// peer has sent is not looked at.
    pub fn is_ending(&self) -> bool {
        self.socket.is_ending()
    }

    /// Whether the peer has closed, and has sent nothing that was not read. Asks the kernel, without waiting; of what a TLS
    /// connection has to say at its end it is not known whether it is only that.
    pub fn has_left(&self) -> bool {
        if self.tls.is_some() { self.is_ending() } else { self.is_closed() }
    }

    /// Sends `last` if the socket takes it at once, and says that nothing more comes.
    pub fn write_last(&mut self, last: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        match &mut self.tls {
            None => drop(self.socket.write_now(last)),
            Some(tls) => {
                let _ = tls.connection.writer().write(last);
                tls.connection.send_close_notify();
                let _ = tls.flush(&mut self.socket, &mut cx);
            }
        }
        self.socket.shutdown();
    }

    /// Closes with a reset.
    pub fn abort(self) {
        self.socket.abort();
    }

    /// Reads at least one byte into `buf`; 0 is the end of the stream.
    pub async fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| self.poll_read(cx, buf)).await
    }

    /// Writes all of `bytes` and flushes.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = std::future::poll_fn(|cx| self.poll_write(cx, [bytes, &[]])).await?;
            if taken == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[taken..];
        }
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }
}

impl Tls {
    /// Moves decrypted bytes to `buf`; `Some(0)` if the peer has said that no more will come.
    fn drain(&mut self, buf: &mut [u8], filled: &mut usize) -> io::Result<Option<usize>> {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            let mut bytes = pending.as_slice();
            self.feed(&mut bytes, buf, filled)?;
            self.pending = bytes.to_vec();
            // What there was may have been nothing but the end.
            if *filled > 0 || !self.pending.is_empty() {
                return Ok(None);
            }
        }
        match self.connection.reader().read(&mut buf[*filled..]) {
            Ok(0) if *filled < buf.len() => Ok(Some(0)),
            Ok(read) => {
                *filled += read;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The peer closed without a close_notify, as most PostgreSQL clients do.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    /// Whether the peer has said that no more will come, and all that came before was read.
    fn is_over(&mut self) -> bool {
        matches!(self.connection.reader().read(&mut [0]), Ok(0))
    }

    /// Decrypts `bytes` into `buf` as far as there is room; what is left of `bytes` was not looked at.
    fn feed(&mut self, bytes: &mut &[u8], buf: &mut [u8], filled: &mut usize) -> io::Result<()> {
        loop {
            match self.connection.reader().read(&mut buf[*filled..]) {
                Ok(read) => *filled += read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            if bytes.is_empty() || *filled == buf.len() {
                return Ok(());
            }
            // Nothing is taken behind a close_notify: what comes there is nobody's.
            if self.connection.read_tls(bytes)? == 0 {
                *bytes = &[];
                return Ok(());
            }
            self.connection.process_new_packets().map_err(io::Error::other)?;
        }
    }

    /// Gives the TLS connection what was read during the handshake.
    fn feed_pending(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let mut bytes = pending.as_slice();
        while !bytes.is_empty() && self.connection.is_handshaking() {
            if self.connection.read_tls(&mut bytes)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer gave up the TLS handshake"));
            }
            self.connection.process_new_packets().map_err(io::Error::other)?;
        }
        self.pending = bytes.to_vec();
        Ok(())
    }

    fn flush(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.connection.wants_write() {
            let mut sink = Sink { socket, cx };
            match self.connection.write_tls(&mut sink) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A socket as rustls wants to write to it.
struct Sink<'a, 'b> {
    socket: &'a mut Socket,
    cx: &'a mut Context<'b>,
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.socket.poll_write(self.cx, [buf, &[]]) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self.socket.poll_write_slices(self.cx, bufs) {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
