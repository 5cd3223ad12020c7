//! The relay loop of one client: read, ask the session, act. It holds no decision of its own.
//!
//! One task, one state, polled: whichever socket is ready, the loop goes on from where it stands. The client's task owns
//! the server connection while it has it; nothing is sent between tasks for a query, and no lock is held while waiting.
//! Buffers are the thread's ([`scratch`]); what a step leaves over is kept here until the next.

use super::access::{Access, Served, error_in};
use super::cleanup;
use super::entry::{ClientState, Listed, Order};
use super::hearing::Hearing;
use super::limits::Limits;
use super::lookout;
use super::pace::Pace;
use super::room::{LOOK_AFTER, Starved};
use super::route::{self, Go, LOOK_AGAIN, Router};
use crate::access_log::AccessLog;
use crate::listen::Hubs;
use crate::net::budget::{Allotment, Budget};
use crate::net::{Stream, scratch};
use crate::pool::{Departure, Lease, LeaseError, Loss, Member, Pool, PoolSet, Stats, View, Wait, Wish};
use crate::routing::{Destination, Preference};
use crate::session::{
    AtRest, Interners, Next, Outbound, OwnRequest, Parting, Pins, PoolMode, ServerLoss, Session, Taken, Violation,
};
use crate::wire::frame::HEADER;
use crate::wire::{FrameError, FrontendTag, Report, SqlState, TxStatus};
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// Bytes of a client that waits for a server that are read all the same, to notice when it leaves.
const QUEUED_INPUT: usize = 16 * 1024;
/// Bytes for a client that does not take them, past which it is not read any more.
pub(super) const UNREAD_OUTPUT: usize = 64 * 1024;
/// An answer of at most this size may wait for the end of the event loop's turn.
const HOLD_BACK: usize = 4096;

/// One connection, from its login to its end. Written out as a future because there are many of them, and nearly all just
/// wait: an `async fn` would have room for the relay once more in each state that moves it. What is needed for the login, or
/// for a goodbye that takes a while, is an allocation of its own, and given back when that is over.
pub(super) struct Serving<F> {
    stage: Stage,
    conclude: Option<F>,
}

#[allow(clippy::large_enum_variant, reason = "nearly all of them are relays for nearly all of their time")]
enum Stage {
    /// It logs in. No relay comes of it if it is not to be served.
    Opening(Pin<Box<dyn Future<Output = Option<Relay>> + Send>>),
    Relaying(Relay),
    /// The client of this number hears the last of us.
    Leaving(u64, Leaving),
    Over,
}

impl<F: FnOnce(u64, End)> Serving<F> {
    /// Serves what `opening` leads to. `conclude` is told the number of the client and how it ended.
    pub(super) fn new(opening: Pin<Box<dyn Future<Output = Option<Relay>> + Send>>, conclude: F) -> Self {
        Self { stage: Stage::Opening(opening), conclude: Some(conclude) }
    }

    fn ends(&mut self, id: u64, end: End) -> Poll<()> {
        self.stage = Stage::Over;
        if let Some(conclude) = self.conclude.take() {
            conclude(id, end);
        }
        Poll::Ready(())
    }
}

impl<F: FnOnce(u64, End) + Unpin> Future for Serving<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            match &mut this.stage {
                Stage::Relaying(relay) => {
                    let stop = ready!(relay.poll_guarded(cx));
                    let id = relay.listed.entry.id;
                    let Stage::Relaying(relay) = std::mem::replace(&mut this.stage, Stage::Over) else { continue };
                    match relay.leave(stop) {
                        Farewell::Said(end) => return this.ends(id, end),
                        Farewell::ToSay(leaving) => this.stage = Stage::Leaving(id, leaving),
                    }
                }
                Stage::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Some(relay) => {
                        // Others know how to wake it from now on.
                        relay.listed.entry.set_waker(cx.waker());
                        this.stage = Stage::Relaying(relay);
                    }
                    None => {
                        this.stage = Stage::Over;
                        return Poll::Ready(());
                    }
                },
                Stage::Leaving(id, leaving) => {
                    let (id, end) = (*id, ready!(leaving.as_mut().poll(cx)));
                    return this.ends(id, end);
                }
                Stage::Over => return Poll::Ready(()),
            }
        }
    }
}

/// A client that leaves, and does not hold its relay any more.
type Leaving = Pin<Box<dyn Future<Output = End> + Send>>;

/// What is left to do for a client that leaves.
enum Farewell {
    /// Nothing.
    Said(End),
    /// Something is to be sent, as far as it takes it within a moment.
    ToSay(Leaving),
}

/// What a relay needs besides its client.
#[derive(Clone)]
pub(super) struct Upstream {
    /// Where its servers come from.
    pub(super) pools: Arc<PoolSet>,
    /// Who listens for clients that have no server.
    pub(super) hubs: Arc<Hubs>,
    /// Names that all sessions share.
    pub(super) interners: Arc<Interners>,
    /// Timeouts.
    pub(super) limits: Arc<Limits>,
    /// What is said of the reads of whoever comes in where this client has.
    pub(super) listener: Preference,
    /// Where a line is written for each request.
    pub(super) access_log: Option<Arc<AccessLog>>,
    /// What all buffers may take up.
    pub(super) budget: Arc<Budget>,
}

/// One client being served.
pub(super) struct Relay {
    pub(super) stream: Stream,
    pub(super) session: Session,
    pub(super) listed: Listed,
    _member: Member,
    pub(super) upstream: Upstream,
    view: View,
    pub(super) server: Server,
    /// What its requests are routed by, where there are several servers.
    pub(super) router: Option<Box<Router>>,
    /// Its next request goes nowhere, for this reason.
    refusal: Option<Report>,
    /// What it hears of notifications, if it listens.
    pub(super) hearing: Option<Box<Hearing>>,
    /// Bytes of the client that wait: for the rest of their frame, or for a server.
    pub(super) input: Vec<u8>,
    /// Bytes for the client that wait for room in its socket.
    pub(super) output: Vec<u8>,
    /// What these and its server's buffers take up.
    pub(super) allotment: Allotment,
    /// It is not read, because all clients together keep too much.
    pub(super) starved: Option<Box<Starved>>,
    /// The client's next frame has to wait until the server owes nothing.
    quiet: bool,
    /// The client's next request has to wait until the server owes nothing, and may then go to another one.
    at_fence: bool,
    /// `input` has frames that may be handled now.
    pub(super) unhandled: bool,
    /// Nothing can be read in this turn any more, of the client and of the server: who was asked once and had nothing will
    /// wake us, and asking again would only cost.
    dry: Dry,
    /// `output` is held back until every other task that is ready has had its turn; see [`Relay::server_input`].
    held_back: bool,
    /// Something waited for room in the server's socket, and what may follow when it is sent was not looked at.
    unsent: bool,
    /// How many requests the client has made.
    requests: u64,
    /// The last of them is answered, and what the server still owes is for us.
    request_over: bool,
    /// Which server it would like to have.
    wish: Wish,
    /// Why the client keeps its server.
    pins: Pins,
    /// Somebody needs the server that it only likes to keep: it goes back when what it does now is done.
    wanted_back: bool,
    timer: Option<Pin<Box<Sleep>>>,
    /// How the result under way is read.
    pace: Pace,
    /// A look for the server, while that says nothing to a lot that it was sent.
    pub(super) lookout: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    pub(super) clock: Clock,
    pub(super) tally: Tally,
    /// What the access log is to say of its requests, if there is one.
    access: Option<Box<Access>>,
}

/// The server of the client.
pub(super) enum Server {
    None,
    Waiting(Wait),
    Leased(Lease),
}

/// Whose socket has nothing to be read.
#[derive(Default)]
struct Dry {
    client: bool,
    server: bool,
}

/// Since when what is under way.
#[derive(Default)]
pub(super) struct Clock {
    /// The first request since nothing was owed.
    request: Option<Instant>,
    /// The lease of the server, or the beginning of the transaction.
    transaction: Option<Instant>,
    /// The wait for a server.
    waiting: Option<Instant>,
    /// A NOTICE told the client that it waits.
    told: bool,
    /// Output that the client does not take.
    stalled: Option<Instant>,
    /// The client was last heard of.
    heard: Option<Instant>,
    /// When the request before the one that runs was answered, if they came together, and how many were then.
    answered: (u64, Option<Instant>),
    /// When this step began, if it has looked.
    step: Option<Instant>,
}

impl Clock {
    /// The time, read once in each step at most.
    #[inline]
    pub(super) fn now(&mut self) -> Instant {
        *self.step.get_or_insert_with(Instant::now)
    }

    /// Since when the request runs that is answered next.
    fn running(&self) -> Option<Instant> {
        self.answered.1.or(self.request)
    }

    /// No request is under way.
    fn no_request(&mut self) -> Option<Instant> {
        self.answered = (0, None);
        self.request.take()
    }
}

/// What is counted until it is added to the pool's statistics.
#[derive(Default)]
pub(super) struct Tally {
    received: u64,
    pub(super) sent: u64,
}

/// How a client's connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// It said goodbye or closed.
    Left,
    /// Its socket broke.
    Io(io::Error),
    /// It broke the protocol.
    Protocol(FrameError),
    /// We ended it, and told it why.
    Ended(Report),
    /// A bug of ours ended it.
    Panicked,
}

/// Why the loop ends; the client may have to be told.
pub(super) enum Stop {
    Client(End),
    /// To be sent as the last message.
    Fatal(Report),
    /// Sent already as the last message, but perhaps not yet taken by the socket.
    Told(Report),
    /// A bug of ours.
    Panicked,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Client(End::Io(error))
    }
}

/// Whether a step got anywhere.
#[derive(PartialEq, Eq)]
pub(super) enum Step {
    Progress,
    Stuck,
}

impl Relay {
    /// Serves a client that has just logged in.
    pub(super) fn new(
        stream: Stream,
        mut session: Session,
        places: (Listed, Member),
        upstream: Upstream,
        input: Vec<u8>,
    ) -> Self {
        let (listed, member) = places;
        let access = upstream.access_log.as_ref().map(Access::new);
        if access.is_some() {
            session.watch_outcome();
        }
        let router = Router::new(&upstream.pools, session.settings(), upstream.listener);
        if router.is_some() {
            // Where a transaction runs its first statement says: BEGIN never goes ahead to find out how long it may be idle.
            session.idle_limit_is_known();
        }
        Self {
            stream,
            router,
            refusal: None,
            session,
            listed,
            _member: member,
            view: upstream.pools.view(),
            allotment: Allotment::new(&upstream.budget),
            starved: None,
            upstream,
            server: Server::None,
            hearing: None,
            output: Vec::new(),
            quiet: false,
            at_fence: false,
            unhandled: !input.is_empty(),
            input,
            dry: Dry::default(),
            held_back: false,
            unsent: false,
            requests: 0,
            request_over: false,
            wish: Wish::NONE,
            pins: Pins::NONE,
            wanted_back: false,
            timer: None,
            pace: Pace::default(),
            lookout: None,
            clock: Clock { heard: Some(Instant::now()), ..Clock::default() },
            tally: Tally::default(),
            access,
        }
    }

    /// Goes on as far as it can; ready when the connection is to end. A panic is a bug of ours; it shall cost this client
    /// its connection and nobody else anything.
    fn poll_guarded(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        std::panic::catch_unwind(AssertUnwindSafe(|| self.poll(cx))).unwrap_or_else(|_| {
            self.server = Server::None;
            self.output.clear();
            Poll::Ready(Stop::Panicked)
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Stop> {
        self.dry = Dry::default();
        loop {
            match self.step(cx) {
                Ok(Step::Progress) if self.held_back => {
                    self.held_back = false;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Ok(Step::Progress) => {}
                Ok(Step::Stuck) => {
                    self.account();
                    match self.poll_timer(cx) {
                        Ok(Step::Progress) => {}
                        Ok(Step::Stuck) => return Poll::Pending,
                        Err(stop) => return Poll::Ready(stop),
                    }
                }
                Err(stop) => return Poll::Ready(stop),
            }
        }
    }

    /// One round: everything that can go on goes on once.
    fn step(&mut self, cx: &mut Context<'_>) -> Result<Step, Stop> {
        let mut step = Step::Stuck;
        self.clock.step = None;
        if let Some(limits) = self.listed.entry.take_limits() {
            if self.upstream.limits.query.is_zero() && self.session.completed() > 0 {
                // When the request began that runs now nobody has noted.
                self.clock.answered = (self.session.completed(), Some(self.clock.now()));
            }
            self.upstream.limits = limits;
        }
        let order = self.listed.entry.ordered();
        if order != Order::None {
            self.carry_out(order)?;
        }
        if self.poll_lease(cx)? == Step::Progress {
            step = Step::Progress;
        }
        if self.waits_for_probe() && self.poll_route(cx) == Step::Progress {
            step = Step::Progress;
        }
        if let Some(report) = self.refusal.take() {
            self.refuse(&report)?;
            step = Step::Progress;
        }
        if self.hearing.is_some() && self.poll_hearing(cx)? == Step::Progress {
            step = Step::Progress;
        }
        if self.poll_client_output(cx)?.is_ready() && self.server_input(cx)? == Step::Progress {
            step = Step::Progress;
            if self.held_back {
                return Ok(step);
            }
        }
        self.unsent |= matches!(&self.server, Server::Leased(lease) if !lease.output.is_empty());
        if self.poll_server_output(cx).is_ready() {
            if std::mem::take(&mut self.unsent) {
                self.after_server_output()?;
                step = Step::Progress;
            }
            if self.client_input(cx)? == Step::Progress {
                step = Step::Progress;
            }
        }
        Ok(step)
    }

    fn carry_out(&mut self, order: Order) -> Result<(), Stop> {
        match order {
            Order::None => Ok(()),
            Order::Yield => {
                self.listed.entry.carried_out(order);
                let awaited = self.is_awaited_by_a_listen();
                if let Server::Leased(lease) = &mut self.server {
                    let pool = Arc::clone(lease.pool());
                    let may_go = !awaited && lease.is_drained() && self.session.may_release(&lease.side);
                    if may_go && self.session.tx() == TxStatus::Idle && lease.side.yields() {
                        self.pins_are(Pins::NONE);
                        let now = self.clock.now();
                        self.release(now);
                    } else {
                        self.wanted_back = self.pins.are_soft();
                    }
                    pool.keeper_has_answered();
                }
                Ok(())
            }
            Order::LeaveQueue => {
                self.listed.entry.carried_out(order);
                if matches!(self.server, Server::Waiting(_)) {
                    let report =
                        Report::as_postgres(SqlState::QUERY_CANCELED, "canceling statement due to user request");
                    self.refuse(&report)?;
                }
                Ok(())
            }
            Order::Drain => {
                let busy = match &self.server {
                    Server::None => self.session.tx().is_open() || self.waits_for_probe(),
                    Server::Waiting(_) => true,
                    Server::Leased(lease) => !lease.side.is_free(),
                };
                if busy { Ok(()) } else { Err(Stop::Fatal(shutdown())) }
            }
            Order::Kill => Err(Stop::Fatal(shutdown())),
        }
    }

    // ------------------------------------------------------------------------------------------ towards the client

    /// Sends what waits for the client. Ready: there is nothing, and the server may be read.
    #[inline]
    fn poll_client_output(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Stop> {
        if self.output.is_empty() && self.stream.tls().is_none() {
            return Ok(Poll::Ready(()));
        }
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.poll_write(cx, [&self.output[written..], &[]])? {
                Poll::Ready(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Poll::Ready(n) => written += n,
                Poll::Pending => break,
            }
        }
        if written > 0 {
            self.clock.stalled = None;
        }
        if written == self.output.len() {
            scratch::release(&mut self.output);
        } else {
            self.output.drain(..written);
            self.clock.stalled.get_or_insert_with(Instant::now);
            return Ok(Poll::Pending);
        }
        match self.stream.poll_flush(cx)? {
            Poll::Ready(()) => {
                self.clock.stalled = None;
                Ok(Poll::Ready(()))
            }
            Poll::Pending => {
                self.clock.stalled.get_or_insert_with(Instant::now);
                Ok(Poll::Pending)
            }
        }
    }

    // ------------------------------------------------------------------------------------------ towards the server

    /// Sends what waits for the server. Ready: there is nothing, and the client may be read.
    #[inline]
    fn poll_server_output(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Server::Leased(lease) = &mut self.server else { return Poll::Ready(()) };
        let server = &mut **lease;
        if server.output.is_empty() && server.stream.tls().is_none() {
            return Poll::Ready(());
        }
        let mut written = 0;
        while written < server.output.len() {
            match server.stream.poll_write(cx, [&server.output[written..], &[]]) {
                Poll::Ready(Ok(n)) if n > 0 => written += n,
                // What a broken connection means is found when it is read: the server may have said why.
                Poll::Ready(_) => written = server.output.len(),
                Poll::Pending => break,
            }
        }
        if written == server.output.len() {
            scratch::release(&mut server.output);
        } else {
            server.output.drain(..written);
            return Poll::Pending;
        }
        match server.stream.poll_flush(cx) {
            Poll::Ready(_) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Everything is sent. If the server has nothing to answer to that, this is all that it was kept for.
    fn after_server_output(&mut self) -> Result<(), Stop> {
        let is_through = matches!(&self.server, Server::Leased(lease) if self.session.may_release(&lease.side));
        if is_through && !self.quiet && !self.is_awaited_by_a_listen() { self.after_server_input() } else { Ok(()) }
    }

    // -------------------------------------------------------------------------------------------- from the server

    fn server_input(&mut self, cx: &mut Context<'_>) -> Result<Step, Stop> {
        let portion = self.portion();
        let Server::Leased(lease) = &mut self.server else { return Ok(Step::Stuck) };
        if self.dry.server || self.pace.poll(cx).is_pending() {
            return Ok(Step::Stuck);
        }
        let (stream, session, output) = (&mut self.stream, &mut self.session, &mut self.output);
        let pace = &mut self.pace;
        let read = scratch::with(|scratch| -> Result<Poll<Result<Read, Stop>>, Stop> {
            let server = &mut **lease;
            let kept = server.input.len();
            scratch.input[..kept].copy_from_slice(&server.input);
            let read = match server.stream.poll_read(cx, &mut scratch.input[kept..kept + portion]) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(0)) => return Ok(Poll::Ready(Ok(lost(None)))),
                Poll::Ready(Ok(read)) => read,
                Poll::Ready(Err(error)) => return Ok(Poll::Ready(Ok(lost(Some(&error))))),
            };
            let data = &scratch.input[..kept + read];
            let mut out = Outbound::new(data, &mut scratch.head);
            let handled = session.on_server(data, &mut server.side, &mut out);
            let [head, run] = out.parts();
            self.tally.sent += (head.len() + run.len()) as u64;
            if head.len() + run.len() <= HOLD_BACK && output.is_empty() && server.side.is_free() {
                // Woken clients are what sending costs most, and a process that is awake already costs nothing to wake:
                // all small answers of this turn of the event loop go out one after the other, at its end.
                scratch::keep(output, head);
                scratch::keep(output, run);
                self.held_back = true;
            } else {
                write_or_keep(stream, cx, [head, run], output)?;
            }
            Ok(Poll::Ready(match handled {
                Ok(taken) => {
                    if server.side.is_free() {
                        pace.is_over();
                    } else if stream.tls().is_none() && read < portion && !server.side.is_streaming() {
                        // To encrypt much at once takes longer than to do it piece by piece, while it is in the cache.
                        pace.goes_on(read);
                    }
                    scratch::release(&mut server.input);
                    scratch::keep(&mut server.input, &data[taken.bytes..]);
                    Ok(Read::Handled)
                }
                Err(Violation::Ended(report) | Violation::Begin(report)) => {
                    let loss = said(report.code);
                    Ok(Read::Lost(report, loss))
                }
                Err(Violation::Replay(report)) => Ok(Read::Refused(
                    Report::ours(report.code, format!("the session's settings cannot be applied: {}", report.message))
                        .hint("RESET the setting, or set it to a value that exists."),
                )),
                Err(Violation::Server(error)) => Ok(Read::Broken(error)),
                Err(Violation::Final(report)) => Ok(Read::Final(report)),
                Err(Violation::Client(error)) => Err(Stop::Client(End::Protocol(error))),
            }))
        })?;
        match read {
            Poll::Pending => {
                self.dry.server = true;
                Ok(Step::Stuck)
            }
            Poll::Ready(read) => {
                match read? {
                    Read::Handled => {
                        if let Some(name) = self.session.take_name() {
                            self.listed.entry.set_application_name(name);
                        }
                        self.after_server_input()?;
                    }
                    Read::Lost(report, loss) => self.server_lost(&report, loss)?,
                    Read::Refused(report) => self.server_refused(&report)?,
                    Read::Final(report) => {
                        self.drop_server();
                        return Err(Stop::Told(report));
                    }
                    Read::Broken(error) => {
                        if let Server::Leased(lease) = &self.server {
                            lease.pool().note_violation(lease.side.owes_an_outcome());
                        }
                        tracing::warn!(client = self.listed.entry.id, %error, "server protocol violation");
                        let report = Report::ours(SqlState::PROTOCOL_VIOLATION, "server protocol violation")
                            .detail(error.to_string())
                            .fatal();
                        let mid_frame = self.drop_server();
                        return Err(if mid_frame { Stop::Client(End::Ended(report)) } else { Stop::Fatal(report) });
                    }
                }
                Ok(Step::Progress)
            }
        }
    }

    /// The server has answered something: it may be free now, and what waited for that may go on.
    #[inline]
    fn after_server_input(&mut self) -> Result<(), Stop> {
        let Server::Leased(lease) = &mut self.server else { return Ok(()) };
        if let Some(again) = self.session.take_again(&self.upstream.interners) {
            self.handle_again(again);
            return Ok(());
        }
        if lease.side.is_busy() {
            if !self.upstream.limits.query.is_zero() && self.session.completed() != self.clock.answered.0 {
                self.clock.answered = (self.session.completed(), Some(self.clock.now()));
            }
            // There is nothing of the client's any more that could be cancelled.
            if !self.request_over && lease.side.owes_its_client_nothing() {
                self.request_over = true;
                self.listed.entry.set_request(0);
            }
            // The server waits for COPY data: what the client sends next is a part of that, or an error.
            if self.quiet && lease.side.in_copy_in() {
                self.quiet = false;
                self.unhandled = true;
            }
            return Ok(());
        }
        let now = self.clock.now();
        self.listed.entry.set_request(0);
        if self.clock.request.is_some() {
            self.clock.heard = Some(now);
        }
        if let Some(since) = self.clock.no_request() {
            lease.pool().stats.record_query(now.saturating_duration_since(since));
        }
        if let Some(limit) = lease.side.take_idle_limit() {
            self.upstream.pools.note_idle_limit(limit);
            self.session.idle_limit_is_known();
        }
        let completed = self.session.take_completed();
        if self.access.is_some() && completed > 0 {
            self.log_access(Some(completed), None);
        }
        // It was taken, or is kept, for a frame that waits for something else.
        let awaited = self.quiet || self.is_awaited_by_a_listen();
        let Server::Leased(lease) = &mut self.server else { return Ok(()) };
        if self.session.mode() == PoolMode::Statement && lease.side.tx().is_open() {
            let report =
                Report::ours(SqlState::ACTIVE_TRANSACTION, "transaction blocks not allowed in statement pooling mode")
                    .detail("A server is for one statement only here, and goes to somebody else behind it.")
                    .hint("Use pool_mode = transaction where transactions of several statements are needed.");
            return Err(Stop::Fatal(report));
        }
        let mut parting = if lease.is_drained() {
            self.session.parting(&self.upstream.interners, &mut lease.side)
        } else {
            Parting::Stay
        };
        // Until it goes: it is asked for but once.
        if self.wanted_back
            && !awaited
            && parting == Parting::Stay
            && lease.is_drained()
            && self.session.may_release(&lease.side)
            && lease.side.yields()
        {
            parting = Parting::Part;
        }
        // What waits for these answers is for this very server. Given back, it would have the client's settings taken
        // away by the next one, and each time it comes back they would have to be answered first: for ever, among many.
        if awaited && parting == Parting::Part {
            parting = Parting::Stay;
        }
        if parting == Parting::Ask {
            let mut question = Vec::new();
            self.session.ask(&mut lease.side, &mut Outbound::new(&[], &mut question));
            lease.output = question;
            lease.pool().stats.add(&crate::pool::Totals { surveys: 1, ..Default::default() });
        }
        let (pins, open) = (lease.side.pins(), lease.side.tx().is_open());
        if !open {
            lease.side.note_defined();
        }
        if pins != self.pins {
            self.pins_are(pins);
        }
        if completed == 0 {
            // Nothing of the client's was answered: it was a question of our own.
        } else if !open || parting == Parting::Part {
            self.add_tally(completed, now);
        } else {
            self.stats().add(&crate::pool::Totals { queries: completed, ..Default::default() });
        }
        if self.hearing.is_some() || self.session.holds_ready() {
            self.heard_changes();
        }
        if let Some(access) = &mut self.access {
            access.count_from((self.tally.received, self.tally.sent));
        }
        if parting == Parting::Part {
            self.release(now);
        }
        if self.quiet {
            self.quiet = false;
            self.unhandled = true;
        }
        if self.router.is_some() && parting != Parting::Ask {
            self.after_routed(open);
        }
        Ok(())
    }

    /// What was routed is answered: what waits for that may go on, or be sent once more.
    fn after_routed(&mut self, open: bool) {
        if matches!(&self.server, Server::Leased(lease) if lease.side.is_fenced() && lease.side.is_free()) && !open {
            // It has left something on a replica that only reads leave nothing on. Nobody stays there.
            tracing::warn!(client = self.listed.entry.id, pins = %self.pins, "closing a replica's connection after a read");
            self.drop_server();
        }
        if matches!(self.server, Server::None) && self.session.has_taken_back() {
            self.send_once_more();
        }
        if self.at_fence {
            self.at_fence = false;
            self.session.pass_fence();
            self.unhandled = true;
        }
    }

    /// A read that was taken back from a replica goes to the primary.
    fn send_once_more(&mut self) {
        let Some((refusal, request)) = self.session.take_taken_back() else { return };
        tracing::debug!(client = self.listed.entry.id, "a read goes to the primary: {}", refusal.as_str());
        let now = self.clock.now();
        if let Some(router) = &mut self.router {
            router.taken_back(refusal, &request, &self.session, now);
        }
        self.handle_again(request);
    }

    /// The client's input is handled once more from here on.
    #[cold]
    fn handle_again(&mut self, mut input: Vec<u8>) {
        input.append(&mut self.input);
        self.input = input;
        self.quiet = false;
        self.unhandled = true;
    }

    /// The access log hears of the request that is over. `error` is one of ours that ended it.
    /// `taken`: so many answers were counted, and taken from the session's count.
    #[cold]
    fn log_access(&mut self, taken: Option<u64>, error: Option<SqlState>) {
        let now = self.clock.now();
        let served = match &self.server {
            Server::Leased(lease) => {
                let last = self.router.as_ref().and_then(|router| router.last());
                let replica = last.map_or(lease.side.is_in_recovery(), |last| last.to == Destination::Replica);
                Served {
                    role: Some(if replica { "replica" } else { "primary" }),
                    server: Some(lease.pool().node.address.to_string()),
                    reason: last.map(|last| last.reason.as_str()),
                }
            }
            Server::None | Server::Waiting(_) => Served::default(),
        };
        let mut outcome = self.session.take_outcome();
        outcome.error = outcome.error.or(error);
        let bytes = (self.tally.received, self.tally.sent);
        if let Some(access) = &mut self.access {
            let requests = access.untold(taken.unwrap_or(self.session.completed()), taken.is_some());
            access.ends(&self.listed.entry, &self.session, &served, (requests, outcome), bytes, now);
            access.count_from(bytes);
        }
    }

    /// The same of what was answered here: to be asked before it is sent.
    #[cold]
    fn log_answered(&mut self, answer: &[u8]) {
        let is_over = matches!(answer, [.., b'Z', 0, 0, 0, 5, _]);
        let busy = matches!(&self.server, Server::Leased(lease) if lease.side.is_busy());
        let under_way = self.access.as_ref().is_some_and(|access| access.is_under_way());
        if is_over && !busy && under_way {
            self.log_access(None, error_in(answer));
        }
    }

    fn stats(&self) -> &Stats {
        match &self.server {
            Server::Leased(lease) => &lease.pool().stats,
            Server::None | Server::Waiting(_) => &self.upstream.pools.stats,
        }
    }

    fn add_tally(&mut self, queries: u64, now: Instant) {
        let tally = std::mem::take(&mut self.tally);
        if let Some(since) = self.clock.transaction.take() {
            self.stats().record_transaction(now.saturating_duration_since(since));
        }
        let counts = self.session.take_counts();
        let server_parses = match &mut self.server {
            Server::Leased(lease) => lease.side.take_parses(),
            Server::None | Server::Waiting(_) => 0,
        };
        self.stats().add(&crate::pool::Totals {
            queries,
            transactions: 1,
            received: tally.received,
            sent: tally.sent,
            client_parses: counts.client_parses,
            server_parses,
            binds: counts.binds,
            ..Default::default()
        });
    }

    /// Whether the server stays for a frame that waits until channels are listened to.
    #[inline]
    fn is_awaited_by_a_listen(&self) -> bool {
        self.hearing.as_ref().is_some_and(|hearing| hearing.needs_server())
    }

    /// Gives the server back.
    #[inline]
    fn release(&mut self, now: Instant) {
        if let Server::Leased(mut lease) = std::mem::replace(&mut self.server, Server::None) {
            self.wanted_back = false;
            if let Some(router) = &mut self.router {
                router.ends(now);
                if lease.side.take_defined() {
                    router.defined();
                }
            }
            self.listed.entry.detach();
            self.listed.entry.set_prepared(self.session.prepared_len());
            if lease.side.worn_by() == self.listed.entry.id {
                self.wish = Wish { last: lease.entry.id };
            }
            lease.finish(now);
        }
    }

    /// What keeps the server with the client has changed.
    #[cold]
    fn pins_are(&mut self, pins: Pins) {
        let Server::Leased(lease) = &self.server else { return };
        let (client, server) = (self.listed.entry.id, lease.entry.id);
        if pins.is_none() {
            tracing::info!(client, server, was = %self.pins, "a client gives back the server that it kept");
        } else {
            tracing::info!(client, server, reason = %pins, "a client keeps its server");
        }
        lease.pool().stats.count_pins(self.pins, pins);
        if pins.are_soft() {
            lease.pool().is_kept(Arc::clone(&self.listed.entry) as _, client);
        } else if self.pins.are_soft() {
            lease.pool().is_kept_no_more(client);
        }
        self.listed.entry.set_pins(pins);
        self.pins = pins;
    }

    /// The server that the client kept is gone.
    fn unpin(&mut self) {
        if !self.pins.is_none() {
            if let Server::Leased(lease) = &self.server {
                lease.pool().is_kept_no_more(self.listed.entry.id);
            }
            self.pins = Pins::NONE;
            self.listed.entry.set_pins(Pins::NONE);
        }
    }

    /// Parts from a server that cannot be used any more; true if the client has got half a frame of it.
    fn drop_server(&mut self) -> bool {
        matches!(self.part_from_server(), Server::Leased(lease) if lease.side.is_mid_frame())
    }

    fn part_from_server(&mut self) -> Server {
        self.unpin();
        self.wanted_back = false;
        self.pace.is_over();
        let server = std::mem::replace(&mut self.server, Server::None);
        if let Some(router) = &mut self.router {
            router.ends(self.clock.now());
        }
        self.session.pass_fence();
        self.at_fence = false;
        self.quiet = false;
        self.unhandled = !self.input.is_empty();
        self.clock.no_request();
        self.clock.transaction = None;
        self.listed.entry.set_request(0);
        self.listed.entry.detach();
        server
    }

    /// The server does not take the client's settings, and no other one will.
    fn server_refused(&mut self, report: &Report) -> Result<(), Stop> {
        let (waits, before) = (self.quiet, self.output.len());
        self.server_lost(report, Loss::Settings)?;
        // A frame that has waited for that is not owed an answer yet, and would wait for the same again.
        if waits && self.output.len() == before && matches!(self.server, Server::None) && !self.input.is_empty() {
            self.refuse(report)?;
        }
        Ok(())
    }

    fn server_lost(&mut self, report: &Report, loss: Loss) -> Result<(), Stop> {
        let Server::Leased(lease) = &mut self.server else { return Ok(()) };
        let loss = if lease.side.is_crashing() { Loss::Crash } else { loss };
        tracing::warn!(
            client = self.listed.entry.id, server = lease.entry.id, node = %lease.entry.target.address,
            reason = loss.as_str(), sqlstate = %report.code, "lost a server connection in use: {}", report.message
        );
        lease.pool().stats.count_lost(loss, lease.side.owes_an_outcome());
        if let Some(router) = &self.router {
            router.lost(lease.pool().node.id);
        }
        if self.session.takes_back_lost(&mut lease.side) {
            if let Server::Leased(lease) = self.part_from_server() {
                lease.close();
            }
            self.send_once_more();
            return Ok(());
        }
        // What could not follow it to another server is gone with this one: it must not go on as if it were not.
        let kept = !lease.side.pins().is_none() && !lease.side.pins().are_soft();
        let state = kept || lease.side.may_be_missed();
        let close = state || self.session.mode() == PoolMode::Session || self.upstream.limits.close_on_server_loss;
        let told = if close {
            ServerLoss::Broken
        } else {
            self.session.on_server_lost(&mut lease.side, report, &mut self.output)
        };
        if self.access.as_ref().is_some_and(|access| access.is_under_way()) {
            self.log_access(None, Some(report.code));
        }
        let mut mid_frame = false;
        if let Server::Leased(lease) = self.part_from_server() {
            mid_frame = lease.side.is_mid_frame();
            lease.close();
        }
        if let Some(again) = self.session.take_again(&self.upstream.interners) {
            self.handle_again(again);
        }
        if self.hearing.is_some() || self.session.holds_ready() {
            self.unheard();
        }
        match told {
            ServerLoss::Survived => Ok(()),
            ServerLoss::Broken if mid_frame => Err(Stop::Client(End::Ended(report.clone()))),
            ServerLoss::Broken => Err(Stop::Fatal(report.clone())),
        }
    }

    // -------------------------------------------------------------------------------------------- from the client

    /// Handles what the client sent before and could not be handled then, or reads more.
    fn client_input(&mut self, cx: &mut Context<'_>) -> Result<Step, Stop> {
        // What comes behind an answer that is held back is answered behind it.
        let hears = self.session.holds_ready() || self.hearing.as_ref().is_some_and(|hearing| hearing.is_waiting());
        let routes = self.at_fence || self.waits_for_probe();
        let queued = matches!(self.server, Server::Waiting(_)) || self.quiet || hears || routes;
        let again = self.unhandled && !queued;
        if queued && self.input.len() >= QUEUED_INPUT {
            return Ok(Step::Stuck);
        }
        // Answers that the client does not take keep it from asking for more.
        if self.output.len() > UNREAD_OUTPUT || (!self.output.is_empty() && matches!(self.server, Server::None)) {
            // Nor does who has left take them, and the server is somebody else's then (faults.md F26).
            if !matches!(self.server, Server::None) && self.stream.may_be_readable() && self.stream.has_left() {
                return Err(Stop::Client(End::Left));
            }
            return Ok(Step::Stuck);
        }
        if again {
            self.unhandled = false;
        } else if self.dry.client || self.lacks_room(cx) {
            return Ok(Step::Stuck);
        }
        let portion = self.portion();
        let step = scratch::with(|scratch| {
            let kept = self.input.len();
            scratch.input[..kept].copy_from_slice(&self.input);
            let mut read = 0;
            if !again {
                read = match self.stream.poll_read(cx, &mut scratch.input[kept..kept + portion])? {
                    Poll::Pending => {
                        self.dry.client = true;
                        return Ok(Step::Stuck);
                    }
                    Poll::Ready(0) => return Err(Stop::Client(End::Left)),
                    Poll::Ready(read) => read,
                };
                self.tally.received += read as u64;
            }
            let data = &scratch.input[..kept + read];
            if queued {
                scratch::keep(&mut self.input, &data[kept..]);
                return Ok(Step::Progress);
            }
            let taken = self.handle_client(cx, data, &mut scratch.head, &mut scratch.reply)?;
            scratch::release(&mut self.input);
            scratch::keep(&mut self.input, &data[taken..]);
            Ok(Step::Progress)
        })?;
        // The server was kept for a frame that then needed none, or for the rest of one that is not answered.
        let is_through = match &self.server {
            Server::Leased(lease) if again => !lease.side.is_busy(),
            Server::Leased(lease) => {
                (self.wanted_back || self.clock.request.is_some()) && self.session.may_release(&lease.side)
            }
            Server::None | Server::Waiting(_) => false,
        };
        if is_through && !self.quiet && !self.is_awaited_by_a_listen() {
            self.after_server_input()?;
        }
        Ok(step)
    }

    /// Handles the client's bytes as far as it can; gives how far.
    fn handle_client(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        head: &mut Vec<u8>,
        answer: &mut Vec<u8>,
    ) -> Result<usize, Stop> {
        let mut at = 0;
        let mut attached = false;
        loop {
            head.clear();
            let rest = &data[at..];
            if let Some(access) = &mut self.access {
                access.look(&self.session, rest, self.clock.now());
            }
            if matches!(self.server, Server::Leased(_)) && !attached {
                match self.ask_ambassador(rest, answer) {
                    Asked::No => {}
                    Asked::Answered(len) => {
                        at += len;
                        continue;
                    }
                    Asked::Later => break,
                }
                if let (Some(router), Server::Leased(lease)) = (&mut self.router, &self.server)
                    && router.has_only_read()
                    && lease.side.owes_its_client_nothing()
                    && !self.session.is_mid_request()
                {
                    router.follows(&self.session, rest);
                }
            }
            let mut out = Outbound::new(rest, head);
            let taken = match &mut self.server {
                Server::Leased(lease) => {
                    let server = &mut **lease;
                    if std::mem::take(&mut attached) {
                        self.session.attach(&mut server.side, &mut out);
                    }
                    let taken = self.session.on_client(
                        &self.upstream.interners,
                        rest,
                        Some(&mut server.side),
                        &mut out,
                        answer,
                    );
                    if !out.is_empty() {
                        if let Some(router) = &mut self.router {
                            router.sends();
                        }
                        // What only hurries the answers to what is ours is no request.
                        let asks = !matches!(&taken, Ok(Taken { bytes: 0, next: Next::Quiet }));
                        if asks && std::mem::take(&mut self.request_over) && self.clock.request.is_some() {
                            self.requests += 1;
                            self.listed.entry.set_request(self.requests);
                        }
                        if self.clock.request.is_none() {
                            let now = self.clock.now();
                            self.clock.request = Some(now);
                            self.clock.transaction.get_or_insert(now);
                            self.listed.entry.note_request(now);
                            self.requests += 1;
                            if let Some(access) = &mut self.access {
                                access.sends(now);
                            }
                            self.listed.entry.set_request(self.requests);
                        }
                        // A broken connection is found when it is read.
                        let _ = write_or_keep(&mut server.stream, cx, out.parts(), &mut server.output);
                    }
                    taken
                }
                Server::None | Server::Waiting(_) => {
                    self.session.on_client(&self.upstream.interners, rest, None, &mut out, answer)
                }
            };
            let taken = match taken {
                Ok(taken) => taken,
                Err(violation) => {
                    self.output.extend_from_slice(answer);
                    return Err(protocol_error(violation));
                }
            };
            at += taken.bytes;
            match taken.next {
                Next::Input => break,
                Next::Quiet => {
                    self.quiet = true;
                    break;
                }
                Next::Fence => {
                    self.at_fence = true;
                    break;
                }
                Next::Channels => {
                    self.hear(cx);
                    break;
                }
                Next::End => {
                    self.output.extend_from_slice(answer);
                    return Err(Stop::Client(End::Left));
                }
                Next::Server => {
                    if !self.session.knows_idle_limit() && self.upstream.pools.idle_limit().is_some() {
                        self.session.idle_limit_is_known();
                        continue;
                    }
                    let now = self.clock.now();
                    match self.ask_ambassador(&data[at..], answer) {
                        Asked::No => {}
                        Asked::Answered(len) => {
                            at += len;
                            continue;
                        }
                        Asked::Later => break,
                    }
                    let replica = match &mut self.router {
                        None => None,
                        Some(router) => match router.decide(&self.upstream.pools, &self.session, &data[at..], now) {
                            Go::Primary => None,
                            Go::Replica(pool) => {
                                if router.is_single_read() {
                                    self.session.note_single_read(&data[at..]);
                                }
                                Some(pool)
                            }
                            Go::Unfinished | Go::Wait => break,
                            Go::Refuse(report) => {
                                self.refusal = Some(report);
                                break;
                            }
                        },
                    };
                    match self.try_lease(replica.as_ref(), now) {
                        Some(lease) if self.takes(&lease) => {
                            self.attach(lease, data.len() - at);
                            attached = true;
                        }
                        Some(lease) => lease.finish(now),
                        // Only a Parse can do without.
                        None if data.get(at) == Some(&FrontendTag::Parse.byte()) && self.session.press() => {}
                        None => {
                            self.queue(replica, now);
                            break;
                        }
                    }
                }
            }
        }
        if !answer.is_empty() {
            if self.session.is_deferred() {
                self.clock.heard = Some(self.clock.now());
            }
            self.tally.sent += answer.len() as u64;
            if self.access.is_some() {
                self.log_answered(answer);
            }
            if self.output.is_empty() {
                write_or_keep(&mut self.stream, cx, [answer, &[]], &mut self.output)?;
            } else {
                self.output.extend_from_slice(answer);
            }
        }
        Ok(at)
    }

    /// Answers what the client asks of us and not of a server.
    #[inline]
    fn ask_ambassador(&mut self, input: &[u8], answer: &mut Vec<u8>) -> Asked {
        if !may_be_own(input) || self.session.is_mid_request() {
            return Asked::No;
        }
        let Some(request) = self.session.own_request(input) else { return Asked::No };
        if let Server::Leased(lease) = &self.server {
            match self.session.is_at_rest(&lease.side) {
                AtRest::Yes => {}
                AtRest::Soon => {
                    self.quiet = true;
                    return Asked::Later;
                }
                AtRest::No => return Asked::No,
            }
        }
        self.answer_own(&request, input, answer)
    }

    #[cold]
    fn answer_own(&mut self, request: &OwnRequest, input: &[u8], answer: &mut Vec<u8>) -> Asked {
        let now = self.clock.now();
        let row = match request {
            OwnRequest::LastRoute => route::last_route(self.router.as_deref()),
            OwnRequest::Show("lsn") => match self.router.as_mut().map(|router| router.lsn(now)) {
                None => vec![("ambassador.lsn", None)],
                Some(Some(Ok(lsn))) => vec![("ambassador.lsn", Some(lsn.to_string()))],
                Some(None) => return Asked::Later,
                Some(Some(Err(report))) => {
                    self.refusal = Some(report);
                    return Asked::Later;
                }
            },
            OwnRequest::Show(name) => {
                let full = match *name {
                    "route" => "ambassador.route",
                    "consistency" => "ambassador.consistency",
                    _ => "ambassador.min_lsn",
                };
                // What was set the server tells.
                if self.session.settings().get(full).is_some_and(|value| !value.is_empty()) {
                    return Asked::No;
                }
                vec![(full, Some(route::default_of(name, &self.upstream.pools, self.upstream.listener)))]
            }
            OwnRequest::Set(name, value) => match route::check_setting(name, value) {
                // An error would have to fail the server's transaction, too. A value that means nothing is passed over.
                Err(_) if matches!(self.server, Server::Leased(_)) && self.session.tx().is_open() => return Asked::No,
                Ok(()) => return Asked::No,
                Err(report) => {
                    self.refusal = Some(report);
                    return Asked::Later;
                }
            },
        };
        match self.session.answer_with_row(input, &row, answer) {
            Some(len) => Asked::Answered(len),
            None => Asked::No,
        }
    }

    #[inline]
    fn try_lease(&mut self, replica: Option<&Arc<Pool>>, now: Instant) -> Option<Lease> {
        let id = self.listed.entry.id;
        match replica {
            None => self.upstream.pools.try_lease(&mut self.view, id, self.wish, now),
            Some(pool) => pool.try_lease(id, Wish::NONE, now),
        }
    }

    /// Whether this connection will do for the request that comes next.
    #[inline]
    fn takes(&mut self, lease: &Lease) -> bool {
        match &mut self.router {
            Some(router) if router.is_for_replica() => router.takes(lease, self.clock.now()),
            Some(_) | None => !self.upstream.pools.is_demoted(lease),
        }
    }

    /// Whether the primary is another server by now than the one that was waited for.
    fn has_moved(&self, lease: &Lease) -> bool {
        let for_replica = self.router.as_ref().is_some_and(|router| router.is_for_replica());
        !for_replica && self.upstream.pools.has_moved(lease)
    }

    /// Whether the request that comes next waits for a probe.
    #[inline]
    fn waits_for_probe(&self) -> bool {
        self.router.as_ref().is_some_and(|router| router.is_waiting())
    }

    /// Goes on with a wait for a probe.
    fn poll_route(&mut self, cx: &mut Context<'_>) -> Step {
        let Some(router) = &mut self.router else { return Step::Stuck };
        let step = router.poll_wait(cx);
        if step == Step::Progress {
            self.unhandled = !self.input.is_empty();
        }
        step
    }

    #[inline]
    fn attach(&mut self, mut lease: Lease, pending: usize) {
        // It was for another one.
        self.lookout = None;
        if let Some(router) = &mut self.router {
            let replica = router.begins(&lease, pending, self.clock.now());
            lease.side.set_fenced(replica.is_some());
            if replica == Some(false) {
                self.session.arm_second_try();
            } else {
                self.session.disarm_second_try();
            }
        }
        self.listed.entry.attach(&lease.entry);
        self.dry.server = false;
        self.server = Server::Leased(lease);
    }

    fn queue(&mut self, replica: Option<Arc<Pool>>, now: Instant) {
        let deadline = now + self.upstream.limits.checkout;
        self.listed.entry.waits_since(now);
        self.clock.waiting = Some(now);
        self.clock.told = false;
        let id = self.listed.entry.id;
        self.server = Server::Waiting(match replica {
            None => self.upstream.pools.wait(&mut self.view, id, now, deadline),
            Some(pool) => pool.wait(id, now, deadline),
        });
    }

    /// The request that waits for a server is looked at anew.
    fn decide_again(&mut self) {
        self.server = Server::None;
        self.clock.waiting = None;
        self.listed.entry.set_state(ClientState::Idle);
        self.unhandled = !self.input.is_empty();
    }

    fn poll_lease(&mut self, cx: &mut Context<'_>) -> Result<Step, Stop> {
        let Server::Waiting(lease) = &mut self.server else { return Ok(Step::Stuck) };
        let Poll::Ready(lease) = lease.poll(cx, || self.clock.now()) else { return Ok(Step::Stuck) };
        if let (Some(since), Ok(lease)) = (self.clock.waiting.take(), &lease) {
            lease.pool().stats.record_wait(self.clock.now().saturating_duration_since(since));
        }
        match lease {
            Ok(lease) if !self.takes(&lease) || self.has_moved(&lease) => {
                let now = self.clock.now();
                lease.finish(now);
                self.decide_again();
            }
            Ok(mut lease) => {
                let server = &mut *lease;
                let mut head = Vec::new();
                let mut out = Outbound::new(&[], &mut head);
                self.session.attach(&mut server.side, &mut out);
                // Kept here, it goes out in front of the client's message and in the same write.
                server.output = head;
                self.attach(lease, self.input.len());
                self.unhandled = true;
                self.client_input(cx)?;
            }
            Err(LeaseError::Moved(_)) => self.decide_again(),
            Err(error) => match &mut self.router {
                Some(router) if router.waits_for_replica().is_some() => {
                    tracing::debug!(client = self.listed.entry.id, "no replica for a read: {error}");
                    router.no_connection();
                    self.decide_again();
                }
                Some(_) | None => self.no_server(&error)?,
            },
        }
        Ok(Step::Progress)
    }

    fn no_server(&mut self, error: &LeaseError) -> Result<(), Stop> {
        let report = error.report();
        tracing::warn!(client = self.listed.entry.id, sqlstate = %report.code, "no server for a client: {error}");
        self.refuse(&report)
    }

    /// Refuses what the client waits for a server for.
    fn refuse(&mut self, report: &Report) -> Result<(), Stop> {
        // One that is there stays: it was not asked.
        if !matches!(self.server, Server::Leased(_)) {
            self.server = Server::None;
            self.listed.entry.set_state(ClientState::Idle);
        }
        self.clock.waiting = None;
        if let Some(router) = &mut self.router {
            router.forget_request();
        }
        let before = self.output.len();
        let taken = self.session.refuse(report, &self.input, &mut self.output).map_err(protocol_error)?;
        self.input.drain(..taken);
        if self.access.is_some() {
            self.tally.sent += (self.output.len() - before) as u64;
            self.log_access(None, Some(report.code));
        }
        self.unhandled = !self.input.is_empty();
        // What an undecided transaction listens to keeps its server.
        if self.hearing.is_some() && !matches!(self.server, Server::Leased(_)) {
            self.unheard();
        }
        Ok(())
    }

    // --------------------------------------------------------------------------------------------------- deadlines

    /// When something has to happen by itself.
    #[inline]
    fn next_deadline(&self) -> Option<Instant> {
        let limits = &self.upstream.limits;
        let deferred = self.session.is_deferred();
        let starved = self.starved_since();
        if self.clock.stalled.is_none() && self.clock.waiting.is_none() && starved.is_none() && !limits.any && !deferred
        {
            return None;
        }
        let mut next: Option<Instant> = None;
        let mut at = |since: Option<Instant>, limit: Duration| {
            if let Some(since) = since
                && !limit.is_zero()
            {
                let deadline = since + limit;
                next = Some(next.map_or(deadline, |n| n.min(deadline)));
            }
        };
        at(self.clock.stalled, limits.client_write);
        at(self.clock.waiting, limits.checkout);
        at(starved.map(|(since, _)| since), limits.checkout);
        at(starved.map(|(_, looked)| looked), LOOK_AFTER);
        if self.clock.waiting.is_some()
            && let Some(router) = &self.router
        {
            at(router.waits_for_replica(), LOOK_AGAIN);
        }
        if !self.clock.told {
            at(self.clock.waiting, limits.notice_after);
        }
        if deferred && self.clock.waiting.is_none() {
            at(self.clock.heard, self.idle_transaction_limit());
        }
        if limits.any {
            at(self.running(), limits.query);
            at(self.clock.transaction, limits.transaction);
            if self.clock.request.is_none() && self.clock.waiting.is_none() {
                at(
                    self.clock.heard,
                    if self.session.tx().is_open() { limits.idle_transaction } else { limits.client_idle },
                );
            }
        }
        next
    }

    /// Since when the request runs that is answered next, if it is one that should end.
    fn running(&self) -> Option<Instant> {
        match &self.server {
            Server::Leased(lease) if lease.side.is_streaming() => None,
            Server::Leased(_) | Server::Waiting(_) | Server::None => self.clock.running(),
        }
    }

    /// How long a transaction that holds no server may be idle: as long as its server would let it be.
    fn idle_transaction_limit(&self) -> Duration {
        let own = self.session.idle_transaction_limit();
        own.or_else(|| self.upstream.pools.idle_limit()).unwrap_or_default()
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<Step, Stop> {
        let unheard = matches!(&self.server, Server::Leased(lease) if lease.stream.is_unheard());
        if (unheard || self.lookout.is_some()) && self.poll_lookout(cx).is_ready() {
            self.server_lost(&lookout::out_of_reach(), Loss::Timeout)?;
            return Ok(Step::Progress);
        }
        let Some(deadline) = self.next_deadline() else { return Ok(Step::Stuck) };
        // A timer that goes off too early costs one look; one that is set anew for each query costs every time.
        if let Some(timer) = &mut self.timer
            && timer.deadline() <= deadline.into()
            && timer.as_mut().poll(cx).is_pending()
        {
            return Ok(Step::Stuck);
        }
        if deadline <= Instant::now() {
            self.timer = None;
            self.time_is_up()?;
            return Ok(Step::Progress);
        }
        let timer = self.timer.insert(Box::pin(tokio::time::sleep_until(deadline.into())));
        Ok(if timer.as_mut().poll(cx).is_ready() { Step::Progress } else { Step::Stuck })
    }

    fn time_is_up(&mut self) -> Result<(), Stop> {
        let limits = Arc::clone(&self.upstream.limits);
        let now = Instant::now();
        let is_up = |since: Option<Instant>, limit: Duration| {
            !limit.is_zero() && since.is_some_and(|since| now.saturating_duration_since(since) >= limit)
        };
        if is_up(self.clock.stalled, limits.client_write) {
            let report = Report::ours(SqlState::QUERY_CANCELED, "the client does not read its results")
                .detail(format!("nothing was taken for {:?}", limits.client_write));
            return Err(Stop::Fatal(report));
        }
        if self.starved.is_some()
            && let Some(report) = self.look_for_room(limits.checkout, now)
        {
            return Err(Stop::Fatal(report));
        }
        if let Server::Waiting(wait) = &self.server
            && let Some(router) = &mut self.router
            && is_up(router.waits_for_replica(), LOOK_AGAIN)
            && !router.should_wait_on(wait.is_dialling(now), now)
        {
            self.decide_again();
            return Ok(());
        }
        if let Some(since) = self.clock.waiting
            && is_up(self.clock.waiting, limits.checkout)
        {
            let error = self.upstream.pools.timed_out(now.saturating_duration_since(since));
            return self.no_server(&error);
        }
        if is_up(self.clock.waiting, limits.notice_after) && !self.clock.told {
            self.clock.told = true;
            Report::ours(SqlState::SUCCESSFUL_COMPLETION, "no server connection available, client being queued")
                .detail(format!("pool={}", self.upstream.pools.name))
                .notice()
                .write(&mut self.output);
        }
        if is_up(self.running(), limits.query) {
            let report = Report::ours(SqlState::QUERY_CANCELED, "query timeout")
                .detail(format!("query_timeout is {:?}; the query was cancelled.", limits.query))
                .hint("Raise query_timeout, or set statement_timeout, which ends the query and not the connection.");
            return Err(Stop::Fatal(report));
        }
        if is_up(self.clock.transaction, limits.transaction) {
            let report = Report::ours(SqlState::TRANSACTION_TIMEOUT, "transaction timeout")
                .detail(format!("transaction_timeout is {:?}; the transaction was rolled back.", limits.transaction))
                .hint("Raise transaction_timeout, or make transactions shorter.");
            return Err(Stop::Fatal(report));
        }
        if self.session.is_deferred()
            && self.clock.waiting.is_none()
            && is_up(self.clock.heard, self.idle_transaction_limit())
        {
            return Err(Stop::Fatal(idle_in_transaction()));
        }
        if self.clock.request.is_none() && self.clock.waiting.is_none() {
            if self.session.tx().is_open() {
                if is_up(self.clock.heard, limits.idle_transaction) {
                    return Err(Stop::Fatal(idle_in_transaction()));
                }
            } else if is_up(self.clock.heard, limits.client_idle) {
                return Err(Stop::Fatal(Report::as_postgres(
                    SqlState::IDLE_SESSION_TIMEOUT,
                    "terminating connection due to idle-session timeout",
                )));
            }
        }
        Ok(())
    }

    // --------------------------------------------------------------------------------------------------- the end

    /// Ends the connection, and sees to the server. Gives what the client is to be told.
    fn leave(mut self, stop: Stop) -> Farewell {
        let now = Instant::now();
        if self.access.as_ref().is_some_and(|access| access.is_under_way()) {
            let error = match &stop {
                Stop::Fatal(report) | Stop::Told(report) | Stop::Client(End::Ended(report)) => Some(report.code),
                Stop::Panicked => Some(SqlState::INTERNAL_ERROR),
                Stop::Client(End::Left | End::Io(_) | End::Protocol(_) | End::Panicked) => None,
            };
            self.log_access(None, error);
        }
        let completed = self.session.take_completed();
        if self.tally.received > 0 || completed > 0 {
            let tally = std::mem::take(&mut self.tally);
            let totals = crate::pool::Totals {
                queries: completed,
                received: tally.received,
                sent: tally.sent,
                ..Default::default()
            };
            self.stats().add(&totals);
        }
        // Be it that it has another one now.
        if let Some(pool) = self.upstream.pools.primary().filter(|_| self.session.mode() != PoolMode::Session) {
            pool.retire(self.wish, self.listed.entry.id);
        }
        let mid_frame = match std::mem::replace(&mut self.server, Server::None) {
            Server::None | Server::Waiting(_) => false,
            Server::Leased(lease) => {
                if !self.pins.is_none() {
                    lease.pool().is_kept_no_more(self.listed.entry.id);
                }
                let mid_frame = lease.side.is_mid_frame();
                let left = matches!(stop, Stop::Client(End::Left));
                let midst = match &lease.side {
                    side if side.in_copy_in() => Some(Departure::CopyIn),
                    side if side.is_busy() => Some(Departure::Active),
                    side if side.tx().is_open() => Some(Departure::InTransaction),
                    _ => None,
                };
                if let Some(midst) = midst.filter(|_| matches!(stop, Stop::Client(End::Left | End::Io(_)))) {
                    lease.pool().stats.count_departure(midst);
                }
                self.listed.entry.detach();
                let mode = self.session.mode();
                cleanup::after_client(lease, self.session, mode, left, &self.upstream.limits, now);
                mid_frame
            }
        };
        let mut last = std::mem::take(&mut self.output);
        let end = match stop {
            // What was answered before a goodbye, or before a frame that is none, is still the client's.
            Stop::Client(end @ (End::Left | End::Protocol(_))) => end,
            Stop::Client(end) => return Farewell::Said(end),
            Stop::Told(report) => End::Ended(report),
            Stop::Panicked => {
                last.clear();
                Report::ours(SqlState::INTERNAL_ERROR, "internal error").fatal().write(&mut last);
                End::Panicked
            }
            Stop::Fatal(report) => {
                let report = report.fatal();
                if mid_frame {
                    return Farewell::Said(End::Ended(report));
                }
                report.write(&mut last);
                End::Ended(report)
            }
        };
        if last.is_empty() && self.stream.tls().is_none() {
            return Farewell::Said(end);
        }
        // It has its place among all clients to its end.
        let (mut stream, places, limit) = (self.stream, (self.listed, self._member), self.upstream.limits.last_word);
        Farewell::ToSay(Box::pin(async move {
            let _ = tokio::time::timeout(limit, stream.write_all(&last)).await;
            drop(places);
            end
        }))
    }
}

/// Whether a message may be one for us, SHOW or SET, as a Query or in a Parse: nearly everything else is none of these by
/// its first letters.
#[inline]
fn may_be_own(input: &[u8]) -> bool {
    let Some(body) = input.get(HEADER..) else { return false };
    let Some(start) = body.iter().position(|byte| !matches!(byte, 0 | b' ' | b'\n' | b'\t')) else { return false };
    // What stands in front of the text of a Parse is a name.
    let named = input[0] == FrontendTag::Parse.byte() && body[0] != 0;
    match body[start..] {
        [b's' | b'S', second, third, ..] => {
            named || matches!([second | 0x20, third | 0x20], [b'h', b'o'] | [b'e', b't'])
        }
        _ => false,
    }
}

/// What came of a question to us.
enum Asked {
    /// It is none.
    No,
    /// It was answered, and had so many bytes.
    Answered(usize),
    /// It is answered as soon as that can be.
    Later,
}

/// What came of reading the server.
enum Read {
    Handled,
    Lost(Report, Loss),
    /// It does not take the client's settings.
    Refused(Report),
    Final(Report),
    Broken(FrameError),
}

fn protocol_error(violation: Violation) -> Stop {
    match violation {
        Violation::Client(FrameError::Type(byte)) => Stop::Fatal(Report::as_postgres(
            SqlState::PROTOCOL_VIOLATION,
            format!("invalid frontend message type {byte}"),
        )),
        // PostgreSQL closes without a word, because nothing it could say would be in step.
        Violation::Client(error) | Violation::Server(error) => Stop::Client(End::Protocol(error)),
        Violation::Replay(report) | Violation::Begin(report) | Violation::Ended(report) | Violation::Final(report) => {
            Stop::Fatal(report)
        }
    }
}

fn shutdown() -> Report {
    Report::as_postgres(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}

fn idle_in_transaction() -> Report {
    let words = "terminating connection due to idle-in-transaction timeout";
    Report::as_postgres(SqlState::IDLE_IN_TRANSACTION_TIMEOUT, words)
}

/// How a server is lost that has given this reason.
fn said(code: SqlState) -> Loss {
    match code {
        SqlState::ADMIN_SHUTDOWN => Loss::AdminActive,
        SqlState::CRASH_SHUTDOWN => Loss::Crash,
        SqlState::SERIALIZATION_FAILURE => Loss::Conflict,
        _ => Loss::Server,
    }
}

fn lost(error: Option<&io::Error>) -> Read {
    let loss = match error.map(io::Error::kind) {
        None => Loss::Closed,
        Some(io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            Loss::Timeout
        }
        Some(_) => Loss::Reset,
    };
    let report = Report::ours(SqlState::CONNECTION_FAILURE, "the server closed the connection unexpectedly");
    let report = match error {
        None => report.detail("It has sent no word of why."),
        Some(error) => report.detail(error.to_string()),
    };
    Read::Lost(report.hint("See the server's log, and run again what was not committed."), loss)
}

/// Writes both parts as far as the socket takes them now, and keeps the rest in `kept`, which what comes must stay behind.
#[inline]
fn write_or_keep(stream: &mut Stream, cx: &mut Context<'_>, parts: [&[u8]; 2], kept: &mut Vec<u8>) -> io::Result<()> {
    let [mut head, mut run] = parts;
    if !kept.is_empty() {
        scratch::keep(kept, head);
        scratch::keep(kept, run);
        return Ok(());
    }
    while !(head.is_empty() && run.is_empty()) {
        match stream.poll_write(cx, [head, run]) {
            Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(Ok(written)) => {
                let of_head = written.min(head.len());
                head = &head[of_head..];
                run = &run[written - of_head..];
            }
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => {
                scratch::keep(kept, head);
                scratch::keep(kept, run);
                return Ok(());
            }
        }
    }
    Ok(())
}
