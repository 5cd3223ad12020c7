//! A TCP or unix socket, and the options that make a dead peer show itself.

use super::{Address, attempts};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::{TcpStream, ToSocketAddrs, UnixStream, lookup_host};

/// Options of a TCP connection. The defaults notice a peer that vanished within about ten seconds; without them Linux
/// takes some fifteen minutes (`tcp_retries2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketOptions {
    /// Idle time before the first keepalive probe.
    pub keepalive_idle: Duration,
    /// Time between probes.
    pub keepalive_interval: Duration,
    /// Unanswered probes until the connection counts as dead.
    pub keepalive_count: u32,
    /// How long sent data may stay unacknowledged (`TCP_USER_TIMEOUT`); zero leaves it to the system.
    pub user_timeout: Duration,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            keepalive_idle: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(2),
            keepalive_count: 3,
            user_timeout: Duration::from_secs(10),
        }
    }
}

/// What is known of who waits for a socket to be readable. The runtime would find out the same each time it is asked, at the
/// price of a lock and a clone of the waker.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Reading {
    /// The task whose waker the runtime has, by the address of what the waker leads to, since when nothing was read; or 0.
    /// As long as the runtime has the waker that address is nobody else's.
    waker: usize,
    /// How often in a row there was something to read.
    in_a_row: u8,
}

/// After so many reads in a row others have their turn. The runtime has a budget like that for what it polls itself.
const IN_A_ROW: u8 = 64;

/// What is written in one piece although it comes in two.
const TOGETHER: usize = 1024;

/// How is sent: without waiting, and a closed connection is an error, not a signal. Where there is no flag for the latter,
/// the signal is ignored: Rust's runtime sees to that.
#[cfg(not(target_vendor = "apple"))]
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
#[cfg(target_vendor = "apple")]
const SEND: SendFlags = SendFlags::DONTWAIT;

impl SocketOptions {
    /// Sets the options, and no-delay, on a TCP socket.
    pub fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        socket.set_tcp_nodelay(true)?;
        if !self.keepalive_idle.is_zero() {
            let keepalive = TcpKeepalive::new()
                .with_time(self.keepalive_idle)
                .with_interval(self.keepalive_interval)
                .with_retries(self.keepalive_count);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        #[cfg(target_os = "linux")]
        if !self.user_timeout.is_zero() {
            socket.set_tcp_user_timeout(Some(self.user_timeout))?;
        }
        Ok(())
    }
}

/// A connected socket, registered with the runtime of the thread that made it.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Connects: to whichever address of a host name answers first.
    pub async fn connect(address: &Address, options: &SocketOptions) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => Self::connect_to((host.as_str(), *port), options).await,
            Address::Unix { dir, port } => UnixStream::connect(Address::socket_path(dir, *port)).await.map(Self::Unix),
        }
    }

    /// Connects to what this stands for.
    pub async fn connect_to(peer: impl ToSocketAddrs, options: &SocketOptions) -> io::Result<Self> {
        let stream = attempts::connect(lookup_host(peer).await?.collect()).await?;
        options.apply(&stream)?;
        Ok(Self::Tcp(stream))
    }

    /// Registers the socket with the runtime of this thread instead of the one it was registered with.
    pub fn rehome(self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => TcpStream::from_std(stream.into_std()?).map(Self::Tcp),
            Self::Unix(stream) => UnixStream::from_std(stream.into_std()?).map(Self::Unix),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }

    /// Whether the runtime has heard, in one of its turns so far, of something that was not read. Asks nobody.
    #[inline]
    pub(super) fn may_be_readable(&self) -> bool {
        self.while_readable(|| Ok(())).is_ok()
    }

    /// Reads without waiting and without the runtime; `None` if there is nothing to read. `Some(0)` is the end.
    pub(super) fn read_now(&self, buf: &mut [u8], peek: bool) -> io::Result<Option<usize>> {
        let flags = if peek { RecvFlags::PEEK | RecvFlags::DONTWAIT } else { RecvFlags::DONTWAIT };
        match recv(self.fd(), buf, flags) {
            Ok((read, _)) => Ok(Some(read)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what fits without waiting.
    pub(super) fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Whether the peer has closed, be it behind something that was not read. Without waiting.
    pub(super) fn is_ending(&self) -> bool {
        // Elsewhere than on Linux only a connection that is closed both ways shows itself behind unread bytes.
        #[cfg(target_os = "linux")]
        let ending = PollFlags::RDHUP;
        #[cfg(not(target_os = "linux"))]
        let ending = PollFlags::empty();
        let fd = self.fd();
        let mut polled = [PollFd::new(&fd, ending)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut polled, Some(&now)), Ok(1..)) && !polled[0].revents().is_empty()
    }

    /// Says that nothing more comes. Can still be read.
    pub(super) fn shutdown(&self) {
        let _ = rustix::net::shutdown(self.fd(), rustix::net::Shutdown::Write);
    }

    /// Closes with a reset: the peer shall not wait for what is still in our buffers.
    pub(super) fn abort(self) {
        if let Self::Tcp(stream) = &self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// Lets data stay unacknowledged for as long as the system thinks fit; gives how long it might before, if there was a
    /// limit.
    pub(super) fn lift_user_timeout(&self) -> Option<Duration> {
        #[cfg(target_os = "linux")]
        if let Self::Tcp(stream) = self {
            let socket = SockRef::from(stream);
            let before = socket.tcp_user_timeout().ok().flatten();
            return before.filter(|_| socket.set_tcp_user_timeout(None).is_ok());
        }
        None
    }

    /// Sets that limit again.
    pub(super) fn set_user_timeout(&self, limit: Duration) {
        #[cfg(target_os = "linux")]
        if let Self::Tcp(stream) = self {
            // A socket that takes no options has nothing left to lose.
            let _ = SockRef::from(stream).set_tcp_user_timeout(Some(limit));
        }
        #[cfg(not(target_os = "linux"))]
        let _ = limit;
    }

    /// The other end, for logs and consoles.
    pub fn peer(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Our end.
    pub fn local(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// The user id of the process at the other end of a unix socket.
    pub fn peer_uid(&self) -> Option<u32> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(stream) => stream.peer_cred().ok().map(|cred| cred.uid()),
        }
    }

    /// Reads into `buf`, which must not be empty; 0 is the end. If there is nothing the task is woken when there is, as its
    /// socket's `reading` knows.
    #[inline]
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
        reading: &mut Reading,
    ) -> Poll<io::Result<usize>> {
        if reading.in_a_row >= IN_A_ROW {
            reading.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let (mut asked, mut read) = (false, None);
            let attempt = self.while_readable(|| {
                asked = true;
                let (got, _) = recv(self.fd(), &mut *buf, RecvFlags::DONTWAIT)?;
                read = Some(got);
                // Less than there was room for: the socket is empty, and the runtime, told so, need not ask it again.
                if got > 0 && got < buf.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            if let Some(read) = read {
                reading.waker = 0;
                reading.in_a_row += 1;
                return Poll::Ready(Ok(read));
            }
            if let Err(error) = attempt
                && error.kind() != io::ErrorKind::WouldBlock
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Poll::Ready(Err(error));
            }
            let waker = cx.waker().data().addr();
            if asked || reading.waker != waker || waker == 0 {
                // Without budget left the runtime wakes the task and asks nothing: it has not got the waker then.
                let has_budget = tokio::task::coop::has_budget_remaining();
                match self.poll_readable(cx) {
                    Poll::Ready(ready) => ready?,
                    Poll::Pending => {
                        *reading = Reading { waker: if has_budget { waker } else { 0 }, in_a_row: 0 };
                        return Poll::Pending;
                    }
                }
            } else {
                reading.in_a_row = 0;
                return Poll::Pending;
            }
        }
    }

    fn while_readable(&self, read: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.try_io(Interest::READABLE, read),
            Self::Unix(stream) => stream.try_io(Interest::READABLE, read),
        }
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx),
            Self::Unix(stream) => stream.poll_read_ready(cx),
        }
    }

    #[inline]
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, parts: [&[u8]; 2]) -> Poll<io::Result<usize>> {
        let one = match parts {
            [head, []] => head,
            [[], run] => run,
            // A copy of little costs less than a call that takes it in pieces.
            [head, run] if head.len() + run.len() <= TOGETHER => {
                let mut both = [0; TOGETHER];
                both[..head.len()].copy_from_slice(head);
                both[head.len()..][..run.len()].copy_from_slice(run);
                return self.poll_write(cx, [&both[..head.len() + run.len()], &[]]);
            }
            [head, run] => {
                return self.poll_write_slices(cx, &[IoSlice::new(head), IoSlice::new(run)]);
            }
        };
        // Nearly every write finds room: the runtime is only needed to wait for it.
        match send(self.fd(), one, SEND) {
            Ok(written) => return Poll::Ready(Ok(written)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Poll::Ready(Err(error.into())),
        }
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, one),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, one),
        }
    }

    pub(super) fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }
}
