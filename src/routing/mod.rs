//! Where a statement may run: which nodes there are, which are fresh enough for a session, and which of those is the best.
//!
//! [`survey`] makes an immutable [`Topology`] of what probes have answered; [`causal`] knows what a session has written and
//! seen; [`balance`] chooses among equals. Nothing here awaits or asks: nodes, time and chance are arguments.

pub mod balance;
pub mod catalogue;
pub mod causal;
pub mod explain;
pub mod lsn;
pub mod preference;
pub mod reason;
pub mod survey;
pub mod topology;
pub mod verdict;

pub use balance::{Choice, Fallback, Load, Policy, WhyPrimary, choose};
pub use catalogue::Catalogue;
pub use causal::{Causal, Consistency, Fresh, NotFresh};
pub use lsn::Lsn;
pub use preference::{Leaning, Preference};
pub use reason::{Destination, Reason};
pub use topology::{Moment, NodeId, NodeView, Role, State, Tick, Topology, Trouble};
pub use verdict::Verdict;
