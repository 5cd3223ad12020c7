//! Just enough SQL: the words of a statement, and what they say about where it may run and what it leaves behind.

pub mod assigned;
pub mod channels;
pub mod classify;
pub mod control;
pub mod lexer;
pub mod names;
mod plain;
pub mod prepared;
pub mod reads;
pub mod reference;
pub mod statements;
pub mod trace;

pub use channels::{Channel, channels};
pub use classify::{Analysis, Command, Effects, READING, analyse, analyse_beginning, reads_constants};
pub use control::Control;
pub use lexer::{Lexer, StrKind, Token};
pub use names::{custom_name, custom_names};
pub use reads::{Access, access};
pub use reference::reference;
pub use statements::{Statement, Statements};
pub use trace::{traceparent, without_trace};
