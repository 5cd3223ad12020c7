//! The queue of replies that a server still owes, and the one judge of when it is free.
//!
//! Every message that goes to a server and will be answered leaves an entry; the answers take the entries off again, in
//! the order in which PostgreSQL promises them. Nothing else decides that a server may go to another client (faults.md I1).

use super::Unnamed;
use super::prepared::{Operation, Own, Statement};
use crate::wire::{BackendTag, TxStatus};
use std::collections::VecDeque;
use std::sync::Arc;

/// Which message is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Query: anything, until ReadyForQuery. `commits`: a lost answer leaves a transaction's outcome unknown.
    Query { commits: bool },
    /// FunctionCall: until ReadyForQuery.
    Function,
    /// Parse: ParseComplete.
    Parse,
    /// Bind: BindComplete.
    Bind,
    /// Describe of a statement: ParameterDescription, then RowDescription or NoData.
    DescribeStatement,
    /// Describe of a portal: RowDescription or NoData.
    DescribePortal,
    /// Execute: rows, until CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute { commits: bool },
    /// Close: CloseComplete.
    Close,
    /// Sync: ReadyForQuery.
    Sync,
    /// CopyDone or CopyFail: answered by the end of the COPY, not by itself.
    CopyEnd,
    /// Nothing from the server: an answer of our own whose turn has to come.
    Own,
}

impl Kind {
    /// Whether a lost answer leaves a transaction's outcome unknown.
    pub(super) fn commits(self) -> bool {
        matches!(self, Self::Query { commits: true } | Self::Execute { commits: true })
    }
}

/// What becomes of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The client gets it.
    Forward,
    /// It answers a message of ours in front of the client's, which must not be run if ours fails.
    Swallow,
    /// It answers a message of ours behind the client's: its failure is nobody's but ours. What it reports of settings is
    /// for the client, all the same.
    Behind,
}

/// What has to be done or undone when an entry goes.
#[derive(Debug)]
pub(super) enum Note {
    /// Parse of a named statement. `name` is the client's; none for a replay. `sent`: the server is asked, by this.
    Parsed { name: Option<Arc<[u8]>>, statement: Arc<Statement>, sent: Option<Operation> },
    /// Parse of the unnamed statement, and what there was before: the client's, and whose the server's was.
    Unnamed { client: Option<Box<Unnamed>>, server: Option<u64> },
    /// Shows whether this one of the client's UNLISTENs is committed.
    Mark(usize),
    /// A message of ours that makes the server's unnamed statement the client's, or none if the client has none.
    UnnamedMade,
    /// A Close of ours: the server holds this statement no more.
    Dropped { statement: Arc<Statement>, sent: Operation },
    /// The client closed this name.
    Closed { name: Arc<[u8]> },
    /// Bytes that are the client's when this entry's turn comes.
    Reply(Vec<u8>),
    /// A Parse of a statement for our own purposes.
    OwnMade(Own),
    /// A Close of one.
    OwnGone(Own),
    /// The server has forgotten where sequences stand.
    Forgot,
    /// The BEGIN that the client was told had succeeded.
    Begun,
    /// The end of a question about what was left behind.
    Asked,
    /// Makes a name of the client's known to the server, for a while: what is wrong with that, the client is told.
    Lent,
    /// What the client is about to prepare, to see whether the server takes it under that name.
    Tried,
    /// A question about how long a transaction may be idle.
    Limit,
    /// The server is told to listen to nothing any more.
    Unlistened,
    /// The first of our messages that restore what a session began with.
    Restoring,
    /// The last of them.
    Restored,
}

/// One reply owed.
#[derive(Debug)]
pub(super) struct Owed {
    pub(super) kind: Kind,
    pub(super) fate: Fate,
    pub(super) note: Option<Box<Note>>,
    /// The client's name for the statement that the message names by ours.
    pub(super) name: Option<Arc<[u8]>>,
}

impl Owed {
    pub(super) fn forward(kind: Kind) -> Self {
        Self { kind, fate: Fate::Forward, note: None, name: None }
    }

    pub(super) fn swallow(kind: Kind) -> Self {
        Self { kind, fate: Fate::Swallow, note: None, name: None }
    }

    pub(super) fn behind(kind: Kind) -> Self {
        Self { kind, fate: Fate::Behind, note: None, name: None }
    }

    pub(super) fn with(mut self, note: Note) -> Self {
        self.note = Some(Box::new(note));
        self
    }

    pub(super) fn naming(mut self, name: &Arc<[u8]>) -> Self {
        self.name = Some(Arc::clone(name));
        self
    }
}

/// How far a COPY has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Copy {
    None,
    /// The server reads data from the client.
    In {
        /// Syncs that were sent before the end of the data: ignored by the server, unless it had failed by then.
        stray_syncs: u32,
        /// The end of the data was sent.
        ended: bool,
    },
    /// The server sends data.
    Out,
    /// Both (replication): the connection belongs to this client for good.
    Both,
}

/// The conversation with one server.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) owed: VecDeque<Owed>,
    /// The status of the last ReadyForQuery.
    pub(super) tx: TxStatus,
    pub(super) copy: Copy,
    /// Extended-protocol messages were sent and no Sync since: an implicit transaction is open.
    pub(super) batch_open: bool,
    /// Some of these are the client's, who will send the Sync: what is ours alone ends with the client's Query, if one comes.
    pub(super) batch_of_client: bool,
    /// An extended-protocol message failed: the server skips everything until Sync.
    pub(super) skipping: bool,
    /// Something of the client's has failed since the last ReadyForQuery.
    pub(super) failed: bool,
    /// The replies can no longer be counted. The server stays with this client and is closed behind it.
    pub(super) ambiguous: bool,
}

impl Pipeline {
    pub(super) fn new() -> Self {
        Self {
            owed: VecDeque::new(),
            tx: TxStatus::Idle,
            copy: Copy::None,
            batch_open: false,
            batch_of_client: false,
            skipping: false,
            failed: false,
            ambiguous: false,
        }
    }

    /// Nothing owed, no transaction, no batch, no COPY.
    #[inline]
    pub(super) fn is_free(&self) -> bool {
        self.owed.is_empty()
            && self.tx == TxStatus::Idle
            && !self.batch_open
            && !self.skipping
            && !self.ambiguous
            && self.copy == Copy::None
    }

    /// Whether nothing that is owed behind the answer at hand is for the client.
    pub(super) fn owes_client_only_this(&self) -> bool {
        self.owed.iter().skip(1).all(|owed| owed.fate == Fate::Behind)
    }

    /// Whether something of this kind is on its way.
    pub(super) fn owes(&self, is: impl Fn(&Note) -> bool) -> bool {
        self.owed.iter().filter_map(|owed| owed.note.as_deref()).any(is)
    }

    /// Whether a message that is sent now will be accepted in any case, unless one of its own batch fails before it.
    pub(super) fn surely_accepts(&self) -> bool {
        // What is ours leaves no transaction failed.
        let ends = |owed: &Owed| {
            owed.fate == Fate::Forward && matches!(owed.kind, Kind::Sync | Kind::Query { .. } | Kind::Function)
        };
        self.tx != TxStatus::Failed && !self.owed.iter().any(ends)
    }

    /// Whether a message that is sent now meets a failed transaction.
    pub(super) fn surely_refuses(&self) -> bool {
        let ends =
            |owed: &Owed| matches!(owed.kind, Kind::Sync | Kind::Query { .. } | Kind::Function | Kind::Execute { .. });
        self.tx == TxStatus::Failed && !self.owed.iter().any(ends)
    }

    #[inline]
    pub(super) fn push(&mut self, owed: Owed) {
        match owed.kind {
            Kind::Parse
            | Kind::Bind
            | Kind::DescribeStatement
            | Kind::DescribePortal
            | Kind::Execute { .. }
            | Kind::Close => {
                self.batch_open = true;
                self.batch_of_client |= owed.fate == Fate::Forward;
            }
            Kind::Sync | Kind::Query { .. } | Kind::Function => {
                (self.batch_open, self.batch_of_client) = (false, false)
            }
            Kind::CopyEnd | Kind::Own => {}
        }
        self.owed.push_back(owed);
    }

    /// Whether a frame of this type may answer the entry, and whether it is the last that does.
    ///
    /// `None`: the server broke the protocol. CopyData, DataRow and errors are judged elsewhere.
    #[inline]
    #[allow(clippy::wildcard_enum_match_arm, reason = "whatever is not named answers nothing: the safe case")]
    pub(super) fn answers(kind: Kind, tag: BackendTag) -> Option<bool> {
        use BackendTag as T;
        match kind {
            Kind::Query { .. } => match tag {
                T::Ready => Some(true),
                T::RowDescription
                | T::DataRow
                | T::CommandComplete
                | T::EmptyQuery
                | T::CopyIn
                | T::CopyOut
                | T::CopyBoth
                | T::CopyData
                | T::CopyDone => Some(false),
                _ => None,
            },
            Kind::Function => match tag {
                T::Ready => Some(true),
                T::FunctionResult => Some(false),
                _ => None,
            },
            Kind::Parse => (tag == T::ParseComplete).then_some(true),
            Kind::Bind => (tag == T::BindComplete).then_some(true),
            Kind::DescribeStatement => match tag {
                T::ParameterDescription => Some(false),
                T::RowDescription | T::NoData => Some(true),
                _ => None,
            },
            Kind::DescribePortal => matches!(tag, T::RowDescription | T::NoData).then_some(true),
            Kind::Execute { .. } => match tag {
                T::CommandComplete | T::EmptyQuery | T::PortalSuspended => Some(true),
                T::DataRow | T::CopyIn | T::CopyOut | T::CopyBoth | T::CopyData | T::CopyDone => Some(false),
                _ => None,
            },
            Kind::Close => (tag == T::CloseComplete).then_some(true),
            Kind::Sync => (tag == T::Ready).then_some(true),
            Kind::CopyEnd | Kind::Own => None,
        }
    }

    /// COPY IN begins: what the client sent behind the command and before the end of its data, the server reads as a
    /// part of the COPY. It ignores Sync there (CopyGetData, copyfromparse.c), so no answer to those will come.
    pub(super) fn copy_in_begins(&mut self) {
        let end = self.owed.iter().position(|o| o.kind == Kind::CopyEnd).unwrap_or(self.owed.len());
        let mut at = 0;
        self.owed.retain(|owed| {
            let stray = at > 0 && at < end && owed.kind == Kind::Sync;
            at += 1;
            !stray
        });
        let ended = self.owed.iter().any(|o| o.kind == Kind::CopyEnd);
        // With the Sync gone the batch is open again, until the Sync behind the data; that may be on its way already.
        let ends = |o: &Owed| matches!(o.kind, Kind::Sync | Kind::Query { .. } | Kind::Function);
        let closed = self.owed.iter().skip_while(|o| o.kind != Kind::CopyEnd).any(ends);
        if !closed && matches!(self.owed.front(), Some(Owed { kind: Kind::Execute { .. }, .. })) {
            (self.batch_open, self.batch_of_client) = (true, true);
        }
        self.copy = Copy::In { stray_syncs: 0, ended };
    }

    /// A COPY, if there is one, is over, well or badly; the end marker of its data, if it was sent, is behind us too.
    pub(super) fn copy_ends(&mut self) {
        let copy = std::mem::replace(&mut self.copy, Copy::None);
        if matches!(copy, Copy::In { .. })
            && let Some(at) = self.owed.iter().position(|o| o.kind == Kind::CopyEnd)
        {
            self.owed.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(pipeline: &Pipeline) -> Vec<Kind> {
        pipeline.owed.iter().map(|o| o.kind).collect()
    }

    #[test]
    fn a_sync_that_the_server_reads_as_part_of_a_copy_is_not_owed_an_answer() {
        let execute = Kind::Execute { commits: false };
        let mut pipeline = Pipeline::new();
        for kind in [execute, Kind::Sync] {
            pipeline.push(Owed::forward(kind));
        }
        pipeline.copy_in_begins();
        assert_eq!(kinds(&pipeline), [execute]);
        assert!(pipeline.batch_open && !pipeline.is_free());

        let mut pipeline = Pipeline::new();
        for kind in [execute, Kind::Sync, Kind::CopyEnd, Kind::Sync] {
            pipeline.push(Owed::forward(kind));
        }
        pipeline.copy_in_begins();
        assert_eq!(kinds(&pipeline), [execute, Kind::CopyEnd, Kind::Sync]);
        pipeline.copy_ends();
        pipeline.owed.pop_front();
        assert_eq!(kinds(&pipeline), [Kind::Sync]);
    }

    #[test]
    fn i01_a_copy_whose_end_came_early_leaves_its_batch_open_until_its_own_sync() {
        let execute = Kind::Execute { commits: false };
        let mut pipeline = Pipeline::new();
        for kind in [execute, Kind::Sync, Kind::CopyEnd] {
            pipeline.push(Owed::forward(kind));
        }
        pipeline.copy_in_begins();
        pipeline.copy_ends();
        pipeline.owed.pop_front();
        assert!(pipeline.owed.is_empty() && !pipeline.is_free(), "what was copied is not committed yet");
        pipeline.push(Owed::forward(Kind::Sync));
        pipeline.owed.pop_front();
        assert!(pipeline.is_free());
    }

    #[test]
    fn i01_a_server_is_free_only_when_nothing_is_owed_and_nothing_is_open() {
        let mut pipeline = Pipeline::new();
        assert!(pipeline.is_free());
        pipeline.push(Owed::forward(Kind::Bind));
        pipeline.owed.clear();
        assert!(!pipeline.is_free(), "an answered batch without its Sync is an open transaction");
        pipeline.push(Owed::forward(Kind::Sync));
        assert!(!pipeline.is_free());
        pipeline.owed.clear();
        assert!(pipeline.is_free());
        pipeline.tx = TxStatus::Failed;
        assert!(!pipeline.is_free());
    }

    #[test]
    fn i28_a_client_that_asks_without_end_has_to_wait_for_answers() {
        use super::super::{Interners, Next, Outbound, Params, PoolMode, ServerSide, Session};
        use crate::wire::{FrontendTag, reply};

        let shared = Interners::default();
        let settings = shared.settings.intern([("user", "u")]);
        let mut session = Session::new(1, PoolMode::Transaction, settings.clone(), &Params::default());
        let mut server = ServerSide::new(settings, Params::default(), 10);
        let (mut asked, mut waits) = (0, false);
        while !waits && asked < 100_000 {
            let mut request = Vec::new();
            reply::parse(&mut request, b"s", b"select 1", &[0, 0]);
            reply::request(&mut request, FrontendTag::Close, |body| body.extend(b"Ss\0"));
            let (mut head, mut answer) = (Vec::new(), Vec::new());
            let mut out = Outbound::new(&request, &mut head);
            let taken = session.on_client(&shared, &request, Some(&mut server), &mut out, &mut answer).unwrap();
            waits = taken.next == Next::Quiet;
            asked += 1;
        }
        assert!(waits && server.pipeline.owed.len() <= asked * 4, "{asked}");
    }
}
