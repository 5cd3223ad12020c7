//! pg-ambassador
pub mod auth;
pub mod client;
pub mod credentials;
pub mod net;
pub mod pool;
pub mod random;
pub mod server;
pub mod session;
pub mod sql;
pub mod wire;
pub mod worker;
