//! Who are you, and who are we: the exchanges and the decision, without a socket.

pub mod decide;
pub mod md5;
pub mod scram;
pub mod userlist;

pub use decide::{Decision, Facts, Method, Transport, decide};
pub use userlist::{Secret, UserList};
