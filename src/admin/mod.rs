//! The SQL console and the HTTP endpoint.

pub mod command;
pub mod console;
mod explain;
pub mod http;
pub mod metrics;
pub mod operator;
pub mod show;

pub use console::SqlConsole;
pub use operator::{Operator, Request};
