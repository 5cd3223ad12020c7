//! pg-ambassador: the application connects to it as to a local PostgreSQL server, and it does the rest.
//!
//! This page is the map. Earlier wins: correct, then transparent, then fast, then small.
//!
//! # The layers
//!
//! ```text
//! main -> args, ambassador -> config          the one place of assembly; no part imports config
//!   |- worker -> net -> client -> listen -> pool -> monitor -> server -> net, credentials      everything that awaits
//!   |- admin                      the SQL console, metrics and health; sees clients and pools, changes them on order
//!   |- route                      the subcommand that says of a script where its statements would go
//!   |- drain, watch, watchdog     how it stops, what changed on disk, whether it is alive
//!   |- access_log                 a line for each request, written by a thread of its own
//!   '- telemetry -> counter       every metric and the logs; counters that workers add to without disturbing each other
//!
//!  -- pure: bytes, values, time and randomness are arguments -----------------------------------------------
//!   routing                       which nodes there are, which is fresh enough for a session, and the best of those
//!   session -> sql, wire          what a client's conversation implies: replies owed, transaction, statements
//!   auth    -> wire               who may log in, and what it has to prove
//!   sql                           just enough of the language: words of a statement, and what it does to a session
//!   wire                          the protocol: frames, messages read and written, SQLSTATEs
//! ```
//!
//! Arrows point down only, and what is pure stays so: `tests/architecture.rs` reads the imports.
//!
//! # The life of a query
//!
//! 1. A [`worker`] thread accepts through [`net::listener`] and gives the connection a task of its own in [`client`].
//! 2. The login reads the first packet with [`wire::startup`] (TLS, cancel or startup), lets [`auth::decide()`] say what has
//!    to be proven, and ends with a client that belongs to one set of pools ([`pool`]).
//! 3. The relay cuts bytes into frames: [`wire::frame`]. Small ones are looked into whole; of rows and COPY data the
//!    header is enough.
//! 4. [`session::Session`] gets each frame of the client. It has [`sql::classify`] look at statements, tracks what they do to
//!    the session, and says whether a server is needed.
//!    Where there are several, `client::route` says which: the request's texts are judged ([`sql::reads`], [`routing`]), and
//!    what the session has written and seen decides which replicas are fresh enough for it.
//! 5. The [`pool`] lends one within the checkout timeout, first come first served. What that server lacks - settings,
//!    prepared statements - goes in front of the client's own message in the same write, and its replies are owed to nobody.
//! 6. Bytes of the server pass the session again. Runs of frames that nobody needs are forwarded as one slice; what the
//!    queue of owed replies (`session::pipeline`) waits for is crossed off it.
//! 7. Nothing owed, no partial frame, no transaction, nothing left behind that would have to be reset: the server goes back
//!    to its pool. That queue is the only judge. Everything else keeps the server, or closes it.
//!
//! The client's task owns the server connection while it has it: there is no channel between the two, and no lock is held
//! over an await. Dropping is the safe path everywhere: a lease that is dropped closes its connection, only one that is
//! finished returns it.
//!
//! A client that listens (LISTEN) needs no server while it waits: [`listen`] keeps one connection for all of them.
//!
//! # Where to begin reading
//!
//! [`session`] for what the program promises, [`pool`] for how it keeps it, [`ambassador`] for how all is put together, and
//! [`demo`] for a cluster to try it on.

pub mod access_log;
pub mod admin;
pub mod ambassador;
pub mod args;
pub mod auth;
pub mod client;
pub mod config;
pub mod counter;
pub mod credentials;
pub mod demo;
pub mod drain;
pub mod listen;
pub mod logs;
pub mod monitor;
pub mod net;
pub mod pool;
pub mod random;
pub mod route;
pub mod routing;
pub mod secret;
pub mod server;
pub mod session;
pub mod sql;
pub mod telemetry;
pub mod watch;
pub mod watchdog;
pub mod wire;
pub mod worker;
