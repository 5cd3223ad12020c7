//! Where something listens: a host and port, or a unix socket.

use std::fmt;
use std::path::{Path, PathBuf};

/// An address to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A host name or IP address, and a port.
    Tcp {
        /// Name or address; an IPv6 address without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A unix socket in this directory, named after the port as PostgreSQL names it.
    Unix {
        /// The directory.
        dir: PathBuf,
        /// Port.
        port: u16,
    },
}

impl Address {
    /// A host as libpq reads it: one that begins with a slash is the directory of a unix socket.
    pub fn new(host: &str, port: u16) -> Self {
        if host.starts_with('/') {
            Self::Unix { dir: PathBuf::from(host), port }
        } else {
            Self::Tcp { host: host.to_owned(), port }
        }
    }

    /// The host, or the directory of the socket.
    pub fn host(&self) -> &str {
        match self {
            Self::Tcp { host, .. } => host,
            Self::Unix { dir, .. } => dir.to_str().unwrap_or("?"),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Tcp { port, .. } | Self::Unix { port, .. } => *port,
        }
    }

    /// The path of the socket `.s.PGSQL.<port>` in a directory.
    pub fn socket_path(dir: &Path, port: u16) -> PathBuf {
        dir.join(format!(".s.PGSQL.{port}"))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix { dir, port } => write!(f, "{}", Self::socket_path(dir, *port).display()),
        }
    }
}
