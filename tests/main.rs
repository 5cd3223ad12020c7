//! Tests of behaviour, against real PostgreSQL servers, through the real program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]
#![allow(clippy::duplicate_mod, reason = "the fuzz targets, which tests replay, share the source of chance")]
#![allow(missing_docs, unreachable_pub, reason = "tests are their own documentation")]

mod access_log;
mod architecture;
mod auth;
mod cancel;
mod causal;
mod chaos;
mod configuration;
mod console;
#[cfg(all(feature = "aws", feature = "azure", feature = "gcp"))]
mod credentials;
mod cuts;
mod differential;
mod drivers;
mod example_config;
mod hostile;
mod interplay;
mod leaving;
mod lifecycle;
mod listening;
mod monitor;
mod notifications;
mod outdated_statements;
mod pooling;
mod prepared_without_a_server;
mod questions;
mod reads;
mod reloading;
mod route_command;
mod routing;
mod seeing;
mod server_loss;
mod slow;
mod smoke;
mod soak;
mod startup;
mod support;
mod tls;
#[cfg(all(feature = "aws", feature = "azure", feature = "gcp"))]
mod tokens;
mod transparency;
