//! Sockets and TLS: the only code that knows what bytes travel on.

pub mod address;
mod attempts;
pub mod budget;
pub mod listener;
pub mod scratch;
pub mod socket;
pub mod stream;
pub mod tls;

pub use address::Address;
pub use socket::{Socket, SocketOptions};
pub use stream::Stream;
