//! What one client's conversation implies: which bytes go on, which are rewritten, and when a server is needed and free.
//!
//! [`Session`] is the client's side and lives as long as the client. [`ServerSide`] is what is known of the session on
//! one server and lives as long as that connection. Frames of the client go through [`Session::on_client`], frames of
//! the server through [`Session::on_server`]; neither awaits, and neither holds bytes that it was given.

mod channels;
mod client_frames;
mod deferred;
mod functions;
mod late_refusal;
mod lending;
mod limit;
mod loss;
mod outbound;
mod own;
mod pin;
mod pipeline;
pub mod prepared;
mod reading;
mod repeat;
mod replay;
mod request;
mod restore;
mod second_try;
mod server_frames;
pub mod settings;
mod survey;

use crate::sql::{Analysis, Control, Effects};
use crate::wire::{FrameError, Report, SqlState, TxStatus};
use pipeline::{Copy, Pipeline};
use prepared::{ClientPrepared, ServerPrepared, StatementInterner};
use repeat::Kept;
use settings::{Settings, SettingsInterner};
use std::sync::Arc;

pub use channels::Name as ChannelName;
pub use functions::Functions;
pub use loss::ServerLoss;
pub use outbound::Outbound;
pub use own::{AtRest, OwnRequest, invalid_value};
pub use pin::{Pin, Pins};
pub use request::{Extent, LONGEST_REQUEST, Spoken};
pub use second_try::Refusal;
pub use survey::Parting;

/// A frame up to this size is looked at whole; of a longer one the beginning, and the rest streams past.
pub const WHOLE_FRAME: usize = 64 * 1024;

/// When a server goes back to its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PoolMode {
    /// When the client leaves.
    Session,
    /// At the end of each transaction.
    Transaction,
    /// At the end of each statement; transaction blocks are refused.
    Statement,
}

/// What all sessions share.
#[derive(Default)]
pub struct Interners {
    /// Sets of settings.
    pub settings: SettingsInterner,
    /// Prepared statements.
    pub statements: StatementInterner,
}

/// One client's side of its conversation.
#[derive(Debug)]
pub struct Session {
    id: u64,
    mode: PoolMode,
    /// What the client's last ReadyForQuery said.
    tx: TxStatus,
    /// What the client's session has set, as far as the server has said.
    settings: Settings,
    /// What it had set at its login: what a reset takes it back to.
    startup: Settings,
    /// What the statements may leave behind that SQL has prepared.
    sql_prepared: Option<Box<SqlPrepared>>,
    /// What it has prepared by the protocol, and speaks of in SQL.
    lending: Option<Box<lending::Lending>>,
    /// An error that the client is told later.
    late_refusal: Option<Box<late_refusal::LateRefusal>>,
    /// What stands for statements until the transaction ends, which has set otherwise how their constants are read: their
    /// numbers, and theirs.
    copies: Vec<(u64, Arc<prepared::Statement>)>,
    /// A Query waits, to which something was lent already.
    waits_with_loans: bool,
    /// A message of this batch may have reset settings; the role as well?
    resets: Option<bool>,
    /// What it is to be told of a reset that is under way.
    restoring: Option<Box<restore::Restoring>>,
    /// What it listens to, if it ever did.
    channels: Option<Box<channels::Channels>>,
    /// UNLISTENs of this batch.
    marks: usize,
    /// It has asked where sequences stand.
    asks_sequences: bool,
    /// The `application_name` that it was told of last, until somebody takes note.
    renamed: Option<Box<str>>,
    /// A ReadyForQuery was held back.
    held_ready: bool,
    prepared: ClientPrepared,
    unnamed: Option<Box<Unnamed>>,
    unnamed_count: u32,
    /// Messages on their way that make or drop the unnamed statement, and the batch of the last of them.
    unnamed_pending: (u32, u32),
    /// The number of the batch that the client's next message is part of.
    batch: u32,
    /// The last batch with an Execute that has a row limit.
    limited_batch: Option<u32>,
    /// The last batch that so far had only answers of our own.
    answered_batch: Option<u32>,
    /// A batch that is to be sent once more.
    again: Option<Box<repeat::Again>>,
    /// It is being sent once more.
    repeated: bool,
    /// A read that may be sent once more, to another server.
    second_try: Option<Box<second_try::SecondTry>>,
    /// On a server with a fence, one request is handled at a time: what comes next has to wait.
    at_fence: bool,
    /// The client has been told of the parameters of the statement that is described once more.
    parameters_told: bool,
    /// The client has asked what a portal returns.
    describes_portals: bool,
    /// A frame whose beginning was handled and whose rest passes or is dropped.
    body: Option<Body>,
    /// We refused a message of a batch ourselves: everything up to its Sync is dropped.
    skipping: bool,
    /// The transaction failed together with its server: until the client ends it, we answer in the server's place.
    orphan: Option<Orphan>,
    /// The client's own frame is being looked at a second time, now with a server: this is what was found.
    analysed: Option<Analysis>,
    /// The transaction that the client believes to be in has begun on no server yet.
    deferred: Option<Box<deferred::Deferred>>,
    /// It is known how long that may be idle.
    knows_limit: bool,
    /// The server that comes next is to be asked for it.
    asks_limit: bool,
    /// No server is to be had for the client's next frame right now.
    pressed: bool,
    /// Whether the statement bound last ends a transaction.
    bound_commits: bool,
    /// `standard_conforming_strings`: how the client's texts are read.
    standard_strings: bool,
    /// ReadyForQuery messages that the client was given since somebody asked.
    completed: u32,
    counts: Counts,
    /// What comes of its requests, if somebody wants to know.
    outcome: Option<Outcome>,
}

/// What came of what a client was answered since somebody asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Rows that its commands have returned, changed or copied, as their tags say.
    pub rows: u64,
    /// The SQLSTATE of the first error.
    pub error: Option<SqlState>,
}

/// What happened with prepared statements since somebody asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Parse messages of the client that named a statement.
    pub client_parses: u64,
    /// Bind messages of the client.
    pub binds: u64,
}

/// What is known of the statements of a client that SQL has prepared.
#[derive(Debug, Default)]
struct SqlPrepared {
    effects: Effects,
    /// Names of settings in their texts.
    names: Vec<Box<str>>,
}

/// The text of the client's unnamed statement, to make it again on another server.
#[derive(Debug)]
struct Unnamed {
    id: u64,
    /// The body of its Parse message, without the name; none if it is too long to keep.
    text: Option<Arc<[u8]>>,
    analysis: Analysis,
    /// How its text was read: `standard_conforming_strings`.
    standard_strings: bool,
    /// It is not known for certain which settings it was parsed under.
    unsettled: bool,
    /// It is an EXECUTE of something that the client did not have when it was parsed: its rows are not known, and PostgreSQL
    /// does not look again.
    blind: bool,
    /// The settings that its constants were read by, if others have become known since.
    read_by: Option<Settings>,
}

/// A failed transaction without a server.
#[derive(Debug, Default)]
struct Orphan {
    /// What happened, if the client has not been told yet: it was idle at that time.
    untold: Option<Report>,
    /// What the unnamed statement is that was made in it.
    parsed: Option<End>,
    /// What was bound last.
    bound: Option<End>,
}

/// How a client ends its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    Rollback,
}

impl End {
    /// The text's, if that is what it does and all it does: AND CHAIN would begin another one, of a kind that only the lost
    /// server knows.
    fn of(text: &[u8], standard_strings: bool) -> Option<Self> {
        match Control::of(text, standard_strings) {
            Some(Control::Commit) => Some(Self::Commit),
            Some(Control::Rollback) => Some(Self::Rollback),
            None if Control::prepares_transaction(text, standard_strings) => Some(Self::Commit),
            Some(Control::Begin | Control::Start) | None => None,
        }
    }
}

/// The rest of a frame that streams past.
#[derive(Debug, Clone, Copy)]
struct Body {
    left: usize,
    pass: bool,
}

/// What is known of the session on one server.
#[derive(Debug)]
pub struct ServerSide {
    pipeline: Pipeline,
    /// What is set there beyond its own defaults.
    settings: Settings,
    /// The last reported value of each reported setting.
    params: Params,
    prepared: ServerPrepared,
    /// It has said that another process of the server has crashed, and that all of them end.
    crashing: bool,
    /// Which client's unnamed statement it holds.
    unnamed: Option<u64>,
    /// How many messages of ours are on their way to make it so, and the batch of the last.
    unnamed_pending: (u32, u32),
    /// Memory for what is kept of the next unnamed statement: who uses no names says so each time.
    spare: Option<(Box<pipeline::Note>, Box<Unnamed>)>,
    /// What the current client may have left behind since the server was asked.
    dirty: Effects,
    /// What the question is about that is under way.
    asked: Effects,
    /// What questions were about that got no answer.
    unanswered: Effects,
    /// What its client has been told that it has left behind, before it was asked about.
    told: Effects,
    /// How often a question got none, one time after the other.
    tries: u8,
    findings: Option<Box<survey::Findings>>,
    /// Why it stays with its client.
    pins: Pins,
    /// See [`ServerSide::worn_by`].
    worn_by: u64,
    /// What functions may leave here.
    functions: Arc<Functions>,
    /// Names of functions to ask about.
    inquiries: Vec<Box<str>>,
    /// Names of settings to ask for, beside those that PostgreSQL lists.
    custom_names: Vec<Box<str>>,
    /// There were more of them than can be asked for.
    too_many_names: bool,
    /// It listens to channels, and need not any more.
    listens: bool,
    /// The client that has it, or had it last.
    user: u64,
    /// Another client had it before, and where sequences stand there may be that one's doing.
    sequences_of_another: bool,
    /// The batch in which it was told to forget that, if it has not answered yet.
    forgets_in: Option<u32>,
    /// The role that logged in.
    login_user: Box<str>,
    /// The batch that was sent last, from its first use of a statement on, should it have to be sent once more.
    kept: Kept,
    body: Option<Body>,
    /// Whether it has said how long a transaction may be idle by default.
    limit: limit::Limit,
    /// See [`ServerSide::take_idle_limit`].
    told_limit: Option<std::time::Duration>,
    /// It is a replica: each request has to be looked at before it comes here.
    fenced: bool,
    /// It has said that it is in recovery.
    in_recovery: bool,
    /// See [`ServerSide::take_defined`].
    defined: bool,
    /// The same, for what is known of functions.
    redefined: bool,
    /// How many prepared statements it may hold.
    prepared_limit: usize,
    /// Parse messages of named statements since somebody asked.
    parses: u32,
}

/// The values of the settings that a server reports, in the order in which it first reported them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Params(Vec<(Box<str>, Box<str>)>);

/// How many bytes of reported settings are kept for a server. PostgreSQL reports some fifteen short ones; a server that
/// reports more than this wants to fill our memory (faults.md I16), and what does not fit is not kept.
const MAX_PARAMS: usize = 64 * 1024;

impl Params {
    /// Notes a reported value.
    pub fn set(&mut self, name: &str, value: &str) {
        if self.get(name) == Some(value) {
            return;
        }
        let others = self.0.iter().filter(|(n, _)| &**n != name);
        // Names and values are never empty of cost: each takes an entry, too.
        let kept: usize = others.map(|(n, v)| n.len() + v.len() + size_of::<(Box<str>, Box<str>)>()).sum();
        if kept + name.len() + value.len() > MAX_PARAMS {
            return;
        }
        match self.0.iter_mut().find(|(n, _)| &**n == name) {
            Some(slot) => slot.1 = value.into(),
            None => self.0.push((name.into(), value.into())),
        }
    }

    /// A reported value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| &**n == name).map(|(_, value)| &**value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

/// How far a piece of input was handled, and why it stopped there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that were handled; what is behind them has to be offered again.
    pub bytes: usize,
    /// Why it stopped.
    pub next: Next,
}

/// What a session needs before it can go on with a client's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// More bytes.
    Input,
    /// A server for the frame that comes next.
    Server,
    /// The answers to what was sent, before the frame that comes next can be judged.
    Quiet,
    /// The answers to what was sent; what comes next may then have to go to another server.
    Fence,
    /// That channels are listened to: see [`Session::take_wanted_channels`].
    Channels,
    /// Nothing: the client said goodbye.
    End,
}

/// Why a session cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The client's bytes are no frames.
    #[error(transparent)]
    Client(FrameError),
    /// The server's bytes are no frames, or answer nothing that was asked.
    #[error("server protocol violation: {0}")]
    Server(FrameError),
    /// The server refused the client's settings: its own error.
    #[error("the server refused to apply the session's settings: {}", .0.message)]
    Replay(Report),
    /// The server refused to begin the transaction that the client was told had begun: its own error.
    #[error("the server refused to begin a transaction: {}", .0.message)]
    Begin(Report),
    /// The server ends the connection because of what the client did; the client was told by the server itself.
    #[error("the server ended the session: {}", .0.message)]
    Final(Report),
    /// The server ends the connection, with these words.
    #[error("the server ended the connection: {}", .0.message)]
    Ended(Report),
}

impl Session {
    /// A session that has just logged in with these settings.
    pub fn new(id: u64, mode: PoolMode, settings: Settings, params: &Params) -> Self {
        let standard_strings = params.get("standard_conforming_strings") != Some("off");
        Self {
            id,
            mode,
            tx: TxStatus::Idle,
            startup: settings.clone(),
            settings,
            sql_prepared: None,
            lending: None,
            late_refusal: None,
            copies: Vec::new(),
            waits_with_loans: false,
            resets: None,
            restoring: None,
            channels: None,
            marks: 0,
            asks_sequences: false,
            renamed: None,
            held_ready: false,
            prepared: ClientPrepared::default(),
            unnamed: None,
            unnamed_count: 0,
            unnamed_pending: (0, 0),
            batch: 0,
            limited_batch: None,
            answered_batch: None,
            again: None,
            repeated: false,
            second_try: None,
            at_fence: false,
            parameters_told: false,
            describes_portals: false,
            body: None,
            skipping: false,
            orphan: None,
            deferred: None,
            analysed: None,
            knows_limit: false,
            asks_limit: false,
            pressed: false,
            bound_commits: false,
            standard_strings,
            completed: 0,
            counts: Counts::default(),
            outcome: None,
        }
    }

    /// The transaction status the client was last told.
    pub fn tx(&self) -> TxStatus {
        self.tx
    }

    /// The client's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The client's number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// When the server goes back.
    pub fn mode(&self) -> PoolMode {
        self.mode
    }

    /// The `application_name` that it has, if it is another one since the last call.
    #[inline]
    pub fn take_name(&mut self) -> Option<Box<str>> {
        self.renamed.take()
    }

    /// What [`Session::take_completed`] would give.
    pub fn completed(&self) -> u64 {
        u64::from(self.completed)
    }

    /// How many ReadyForQuery messages the client was given since the last call.
    pub fn take_completed(&mut self) -> u64 {
        u64::from(std::mem::take(&mut self.completed))
    }

    /// From here on it is noted what comes of requests.
    pub fn watch_outcome(&mut self) {
        self.outcome = Some(Outcome::default());
    }

    /// What came of them since the last call; nothing if it is not noted.
    pub fn take_outcome(&mut self) -> Outcome {
        self.outcome.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// What happened with prepared statements since the last call.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// No server is to be had right now for the frame that asked for one. Gives whether it should be offered once more
    /// before the client waits: some can do without.
    pub fn press(&mut self) -> bool {
        !std::mem::replace(&mut self.pressed, true)
    }

    /// What was sent to a server with a fence is answered, and the client stays there: the next request may follow.
    pub fn pass_fence(&mut self) {
        self.at_fence = false;
    }

    /// How many prepared statements the client has.
    pub fn prepared_len(&self) -> usize {
        self.prepared.len()
    }

    /// Whether a frame of the client has gone to the server in part.
    pub fn is_mid_frame(&self) -> bool {
        self.body.is_some_and(|body| body.pass)
    }

    /// Whether the server is done with this client for now and may serve another.
    #[inline]
    pub fn may_release(&self, server: &ServerSide) -> bool {
        self.mode != PoolMode::Session && self.body.is_none() && server.is_free()
    }
}

impl ServerSide {
    /// A server that has just been logged in to.
    pub fn new(defaults: Settings, params: Params, prepared_limit: usize) -> Self {
        Self {
            pipeline: Pipeline::new(),
            settings: defaults,
            login_user: survey::login_user(&params),
            in_recovery: params.get("in_hot_standby") == Some("on"),
            params,
            prepared: ServerPrepared::default(),
            crashing: false,
            unnamed: None,
            unnamed_pending: (0, 0),
            spare: None,
            dirty: Effects::NONE,
            asked: Effects::NONE,
            unanswered: Effects::NONE,
            told: Effects::NONE,
            tries: 0,
            findings: None,
            pins: Pins::NONE,
            worn_by: 0,
            functions: Arc::default(),
            inquiries: Vec::new(),
            custom_names: Vec::new(),
            too_many_names: false,
            listens: false,
            user: 0,
            sequences_of_another: false,
            forgets_in: None,
            kept: Kept::default(),
            limit: limit::Limit::Unasked,
            told_limit: None,
            body: None,
            fenced: false,
            defined: false,
            redefined: false,
            prepared_limit,
            parses: 0,
        }
    }

    /// What is known of the functions of its database is known to all its connections.
    pub fn share_functions(&mut self, functions: &Arc<Functions>) {
        self.functions = Arc::clone(functions);
    }

    /// Nothing is owed, nothing is open, no frame is in progress.
    #[inline]
    pub fn is_free(&self) -> bool {
        self.pipeline.is_free() && self.body.is_none()
    }

    /// Whether an answer is owed: something is running.
    #[inline]
    pub fn is_busy(&self) -> bool {
        !self.pipeline.owed.is_empty()
    }

    /// Whether all answers that are owed are for us.
    pub fn owes_its_client_nothing(&self) -> bool {
        self.pipeline.owed.iter().all(|owed| owed.fate == pipeline::Fate::Behind)
    }

    /// The transaction status of its last ReadyForQuery.
    pub fn tx(&self) -> TxStatus {
        self.pipeline.tx
    }

    /// Whether the connection can serve another client after this one has left in the middle of something.
    pub fn can_be_saved(&self) -> bool {
        !self.pipeline.ambiguous
            && !self.pipeline.batch_open
            && !self.pipeline.skipping
            && self.pipeline.copy != Copy::Both
    }

    /// Whether it has said that another process of the server has crashed.
    pub fn is_crashing(&self) -> bool {
        self.crashing
    }

    /// Whether an answer is owed that says how a COMMIT has ended.
    pub fn owes_an_outcome(&self) -> bool {
        self.pipeline.owed.iter().any(|owed| owed.kind.commits())
    }

    /// Whether it streams both ways: a replication connection, whose request never ends by itself.
    pub fn is_streaming(&self) -> bool {
        self.pipeline.copy == Copy::Both
    }

    /// Whether it waits for COPY data. Once their end was sent it does not: then it answers whatever comes behind.
    pub fn in_copy_in(&self) -> bool {
        matches!(self.pipeline.copy, Copy::In { ended: false, .. })
    }

    /// Whether it sends COPY data or rows past a frame boundary right now: nothing of ours may be put in between.
    pub fn is_mid_frame(&self) -> bool {
        self.body.is_some()
    }

    /// Whether requests stop behind the one that comes next, each; see [`Next::Fence`].
    pub fn set_fenced(&mut self, fenced: bool) {
        self.fenced = fenced;
    }

    /// Whether they do.
    pub fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// The reported settings.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// What is set beyond the defaults.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The names of the prepared statements that it should have, ours included.
    pub fn prepared_names(&self) -> std::collections::BTreeSet<String> {
        self.prepared.names()
    }

    /// Something of ours has dropped the unnamed statement, outside [`Session::on_client`].
    pub fn unnamed_was_dropped(&mut self) {
        self.unnamed = None;
    }

    /// How many Parse messages of named statements it was sent since the last call.
    pub fn take_parses(&mut self) -> u64 {
        u64::from(std::mem::take(&mut self.parses))
    }

    /// How many prepared statements it holds.
    pub fn prepared_len(&self) -> usize {
        self.prepared.len()
    }

    /// The server was reset by DISCARD ALL: nothing is left but what it began with.
    pub fn was_reset(&mut self, defaults: Settings) {
        self.settings = defaults;
        self.prepared = ServerPrepared::default();
        self.unnamed = None;
        self.dirty = Effects::NONE;
        self.asked = Effects::NONE;
        self.unanswered = Effects::NONE;
        self.told = Effects::NONE;
        self.tries = 0;
        self.findings = None;
        self.pins = Pins::NONE;
        self.inquiries = Vec::new();
        self.custom_names = Vec::new();
        self.too_many_names = false;
        self.listens = false;
        self.user = 0;
        self.worn_by = 0;
        self.sequences_of_another = false;
        self.forgets_in = None;
    }

    /// A ReadyForQuery of an exchange of our own was read, outside [`Session::on_server`].
    pub fn note_ready(&mut self, status: TxStatus) {
        self.pipeline.tx = status;
    }

    /// A ParameterStatus of an exchange of our own was read, outside [`Session::on_server`].
    pub fn note_param(&mut self, name: &str, value: &str) {
        self.params.set(name, value);
        if name == "in_hot_standby" {
            self.in_recovery = value == "on";
        }
    }

    /// It was asked whether it is in recovery, outside [`Session::on_server`].
    pub fn note_recovery(&mut self, in_recovery: bool) {
        self.in_recovery = in_recovery;
    }

    /// Whether it has said, at its login or later, that it is in recovery: then it is a replica. Before PostgreSQL 14 only when
    /// asked.
    #[inline]
    pub fn is_in_recovery(&self) -> bool {
        self.in_recovery
    }

    /// The settings were applied by an exchange of our own, outside [`Session::on_server`].
    pub fn note_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }
}
