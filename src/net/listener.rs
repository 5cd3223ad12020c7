//! Listening sockets: TCP and unix, shared by all workers.

use super::{Socket, SocketOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Connections that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// How long a connection may stay without a byte from the client until it is accepted all the same, in seconds. A PostgreSQL
/// client speaks first; accepting it before that is a wake-up of the worker, a read and a wait for nothing.
#[cfg(target_os = "linux")]
const DEFER_ACCEPT: u32 = 1;

/// A bound socket that no runtime knows yet.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// A unix socket.
    Unix(std::os::unix::net::UnixListener),
}

/// The path of a unix socket that we made. Removed when it is dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Bound {
    /// Binds a TCP address. What is accepted there has these options.
    pub fn tcp(address: SocketAddr, options: &SocketOptions) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        // A restart must not wait for the connections of the last run to be forgotten.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_nonblocking(true)?;
        options.apply(&socket)?;
        #[cfg(target_os = "linux")]
        defer::defer_accept(&socket);
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
        Ok(Self::Tcp(socket.into()))
    }

    /// Binds a unix socket with these permissions. A file that a dead process has left is removed first.
    pub fn unix(path: &Path, mode: u32) -> io::Result<(Self, SocketFile)> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let message = "there is a file of that name, and it is no socket: name another path, or move it away";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process is listening there")),
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                // It may be alive, and not for us.
                Err(error) => return Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        let file = SocketFile(path.to_owned());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        listener.set_nonblocking(true)?;
        Ok((Self::Unix(listener), file))
    }

    /// The TCP address it is bound to: with its real port, where port 0 asked for any.
    pub fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// The same socket, registered with the runtime of this thread.
    pub fn register(&self) -> io::Result<Listener> {
        Ok(match self {
            Self::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Self::Unix(listener) => Listener::Unix(UnixListener::from_std(listener.try_clone()?)?),
        })
    }
}

/// A listening socket of one worker.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A unix socket.
    Unix(UnixListener),
}

/// An accepted connection on its way to the worker that will serve it.
#[derive(Debug)]
pub enum Accepted {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// A unix socket.
    Unix(std::os::unix::net::UnixStream),
}

impl Listener {
    /// Waits for a connection; gives its other end too, where it is TCP.
    pub async fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| (Socket::Tcp(stream), Some(peer))),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| (Socket::Unix(stream), None)),
        }
    }
}

impl Accepted {
    /// Takes a connection from the runtime of this thread.
    pub fn from_socket(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Tcp(stream) => Self::Tcp(stream.into_std()?),
            Socket::Unix(stream) => Self::Unix(stream.into_std()?),
        })
    }

    /// Gives the connection to the runtime of this thread.
    pub fn into_socket(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream)?),
            Self::Unix(stream) => Socket::Unix(UnixStream::from_std(stream)?),
        })
    }
}

/// The one socket option that neither socket2 nor rustix knows, and that std does not give to everybody yet
/// (`TcpStreamExt::set_deferaccept`).
#[cfg(target_os = "linux")]
mod defer {
    use nix::{getsockopt_impl, libc, setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// `TCP_DEFER_ACCEPT`, tcp(7): a connection is accepted when its first bytes are there.
        DeferAccept,
        Both,
        libc::IPPROTO_TCP,
        libc::TCP_DEFER_ACCEPT,
        u32
    );

    /// Has connections wait until their first bytes are there. It saves time and is not needed: where it is refused, all works
    /// without.
    pub(super) fn defer_accept(socket: &impl std::os::fd::AsFd) {
        let _ = nix::sys::socket::setsockopt(socket, DeferAccept, &super::DEFER_ACCEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_client_is_accepted_when_it_has_said_something() {
        use std::io::{Read, Write};
        let Ok(Bound::Tcp(listener)) = Bound::tcp("127.0.0.1:0".parse().unwrap(), &SocketOptions::default()) else {
            panic!("no listener");
        };
        listener.set_nonblocking(false).unwrap();
        let connect = || std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // Both are connected as far as they can tell, and the second one speaks first.
        let (_silent, mut client) = (connect(), connect());
        client.write_all(b"hello").unwrap();
        let (mut accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        accepted.set_nonblocking(false).unwrap();
        let mut received = [0; 5];
        accepted.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"hello");
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let path = std::env::temp_dir().join(format!("ambassador-no-socket-{}", std::process::id()));
        std::fs::write(&path, "precious").unwrap();
        let error = Bound::unix(&path, 0o600).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
        // What a dead process has left is replaced.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_bound, file) = Bound::unix(&path, 0o600).unwrap();
        drop(file);
        assert!(!path.exists());
    }
}
