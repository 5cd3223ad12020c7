//! Notifications for one client: from the connection that listens for many.

use super::relay::{Relay, Server, Step, Stop, UNREAD_OUTPUT};
use crate::listen::{Listener, Subscription};
use crate::session::ChannelName;
use crate::wire::{Report, SqlState};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// How long a client waits for the listening connection before its own server listens instead.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client waits for each step of another listener's taking over, and the longest pause before that is tried again
/// when it has failed.
const HANDOVER: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// How long a client waits for what it has sent to itself.
const CATCH_UP: Duration = Duration::from_secs(2);

/// A client that listens.
pub(super) struct Hearing {
    listener: Listener,
    /// What wakes the client's task.
    waker: Waker,
    waiting: Option<(Subscription, Wait)>,
    /// When it may be tried again to replace the listener.
    retry: Option<Instant>,
    /// How long that was put off.
    pause: Duration,
}

/// What a subscription is waited for.
enum Wait {
    /// The client's next frame: it is about to listen to these.
    Channels(Vec<ChannelName>),
    /// The client's next frame: it commits its first LISTEN, which is of these.
    Commit(Vec<ChannelName>),
    /// The client's ReadyForQuery.
    Ready,
    /// Another listener is about to take over.
    Replaced(Box<Replacing>),
}

/// The client has changed its encoding, for which another connection listens.
///
/// The old listener goes on until the new one has everything, and each notification is to be heard once. Both connections
/// get them in the same order, but which of those that have come on one will still come on the other neither says. So when
/// both listen a notification of our own is sent: what came before it on the old connection is delivered, and what comes
/// behind it on the new one. What comes before it is thus in the old encoding, as it would be had it come before the change.
struct Replacing {
    next: Listener,
    /// The channel of that notification.
    mark: ChannelName,
    stage: Stage,
}

/// What of it is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The new one listens.
    Next,
    /// The old one listens to the mark, too.
    Both,
    /// It was sent, and has come on the new one.
    Sent,
    /// It has come on the old one.
    Come,
}

impl Hearing {
    /// Whether the client's input has to wait.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether the client's next frame waits with the server that it goes to.
    pub(super) fn needs_server(&self) -> bool {
        self.waiting.as_ref().is_some_and(|(_, wait)| wait.is_for_frame())
    }
}

impl Hearing {
    /// The client listens to none of these any more.
    fn unlisten(&self, names: Vec<ChannelName>) {
        if let Some((_, Wait::Replaced(replacing))) = &self.waiting {
            replacing.next.unlisten(names.iter().cloned());
        }
        self.listener.unlisten(names);
    }

    /// Goes on to replace the listener. False if that has failed, and it stays.
    fn replace(&mut self, mut replacing: Box<Replacing>, now: Instant) -> bool {
        let Replacing { next, mark, stage } = &mut *replacing;
        let subscription;
        (subscription, *stage) = match stage {
            Stage::Next => (self.listener.listen([mark.clone()], now + HANDOVER), Stage::Both),
            Stage::Both => (next.notify(mark.clone(), now + HANDOVER), Stage::Sent),
            Stage::Sent => (self.listener.catch_up(now + HANDOVER), Stage::Come),
            Stage::Come => {
                let taken = next.take_over(&self.listener, mark);
                next.unlisten([mark.clone()]);
                if taken {
                    self.listener = replacing.next;
                } else {
                    self.keep(&replacing, now);
                }
                return taken;
            }
        };
        self.waiting = Some((subscription, Wait::Replaced(replacing)));
        true
    }

    /// The listener stays, and hears in the encoding that the client had. It is tried again with one of the next requests,
    /// not with each: the client waits meanwhile.
    fn keep(&mut self, replacing: &Replacing, now: Instant) {
        self.listener.unlisten([replacing.mark.clone()]);
        self.pause = (2 * self.pause).clamp(HANDOVER, LONGEST_PAUSE);
        self.retry = Some(now + self.pause);
    }

    /// Whether what has come may be delivered: not what may be from before the LISTEN that is about to be sent, nor what may
    /// be behind the mark.
    fn may_deliver(&self) -> bool {
        match &self.waiting {
            Some((_, Wait::Channels(_) | Wait::Commit(_))) => false,
            Some((_, Wait::Replaced(replacing))) => matches!(replacing.stage, Stage::Next | Stage::Both),
            Some((_, Wait::Ready)) | None => true,
        }
    }
}

impl Wait {
    fn is_for_frame(&self) -> bool {
        matches!(self, Self::Channels(_) | Self::Commit(_))
    }
}

impl Relay {
    fn encoding(&self) -> String {
        let Server::Leased(lease) = &self.server else { return String::new() };
        lease.side.params().get("client_encoding").unwrap_or_default().to_owned()
    }

    /// The session wants channels to be listened to before it goes on.
    pub(super) fn hear(&mut self, cx: &Context<'_>) {
        // What it has stopped to listen to before: it may be about to begin again.
        if let Some(hearing) = &self.hearing {
            let dropped = self.session.take_dropped_channels();
            if !dropped.is_empty() {
                hearing.listener.unlisten(dropped);
            }
        }
        let names = self.session.take_wanted_channels();
        let now = self.clock.now();
        let deadline = now + PATIENCE;
        let encoding = self.encoding();
        let hearing = self.hearing.get_or_insert_with(|| {
            let listener = self.upstream.hubs.listener(&self.upstream.pools, &encoding, cx.waker().clone());
            Box::new(Hearing { listener, waker: cx.waker().clone(), waiting: None, retry: None, pause: Duration::ZERO })
        });
        hearing.waiting = Some(match names.is_empty() {
            false => (hearing.listener.listen(names.clone(), deadline), Wait::Channels(names)),
            true => {
                let names = self.session.tentative_channels();
                (hearing.listener.catch_up(now + CATCH_UP), Wait::Commit(names))
            }
        });
    }

    /// What the client was about to listen to it is not: its server is lost, or there is none.
    pub(super) fn unheard(&mut self) {
        if let Some(hearing) = &mut self.hearing
            && let Some((_, wait)) = hearing.waiting.take_if(|(_, wait)| wait.is_for_frame())
        {
            // The frame that has waited for it is looked at anew: it may be refused now, or ask for the same again.
            if let Wait::Channels(names) = wait {
                hearing.listener.unlisten(names);
            }
            self.unhandled = !self.input.is_empty();
        }
        self.session.forget_tentative_channels();
        self.heard_changes();
    }

    /// A transaction has ended: what the client listens to may have changed.
    pub(super) fn heard_changes(&mut self) {
        let dropped = self.session.take_dropped_channels();
        let Some(hearing) = &mut self.hearing else {
            // No listener was to be had.
            if self.session.holds_ready() {
                self.session.release_ready(&mut self.output);
                self.unhandled = !self.input.is_empty();
            }
            return;
        };
        if !dropped.is_empty() {
            hearing.unlisten(dropped);
        }
        let now = self.clock.now();
        // What the client does not listen to any more is known once the server has answered. It is asked as soon as nothing
        // is on its half way, which `Relay::step` sees to. But the rest of a message that the client has begun may never come.
        let asking = match &self.server {
            Server::Leased(lease) => {
                let may_ask = self.session.may_release(&lease.side) && lease.side.may_ask_for_channels();
                lease.side.is_asking() || may_ask
            }
            Server::None | Server::Waiting(_) => false,
        };
        if self.session.holds_ready() && !asking && hearing.waiting.is_none() {
            hearing.waiting = Some((hearing.listener.catch_up(now + CATCH_UP), Wait::Ready));
        }
        let encoding = self.encoding();
        let Some(hearing) = &mut self.hearing else { return };
        if hearing.waiting.is_some() || asking || self.session.tx().is_open() {
            return;
        }
        if hearing.listener.is_idle() {
            self.hearing = None;
        } else if encoding.is_empty() {
            // No server says which it is.
        } else if hearing.listener.has_encoding(&encoding) {
            (hearing.retry, hearing.pause) = (None, Duration::ZERO);
        } else if hearing.retry.is_none_or(|retry| retry <= now) {
            let next = self.upstream.hubs.listener(&self.upstream.pools, &encoding, hearing.waker.clone());
            // No other pooler must send the same.
            let mark = ChannelName::from(format!("ambassador:switch:{:016x}", fastrand::u64(..)).as_bytes());
            let names = self.session.heard_channels().into_iter().chain([mark.clone()]);
            let subscription = next.listen(names, now + HANDOVER);
            let replacing = Replacing { next, mark, stage: Stage::Next };
            hearing.waiting = Some((subscription, Wait::Replaced(Box::new(replacing))));
        }
    }

    /// Goes on with what waits for the listening connection, and passes on what it has heard.
    pub(super) fn poll_hearing(&mut self, cx: &mut Context<'_>) -> Result<Step, Stop> {
        let Some(hearing) = &mut self.hearing else { return Ok(Step::Stuck) };
        let mut step = Step::Stuck;
        // Not in the turn in which that comes true either: the LISTEN is sent at its end.
        let may_deliver = hearing.may_deliver();
        if let Some((subscription, _)) = &mut hearing.waiting
            && let Poll::Ready(result) = Pin::new(subscription).poll(cx)
        {
            step = Step::Progress;
            self.unhandled = !self.input.is_empty();
            match hearing.waiting.take().map(|(_, wait)| wait) {
                Some(Wait::Channels(names)) => {
                    if let Err(report) = &result {
                        tracing::warn!(
                            client = self.listed.entry.id,
                            "no connection listens for a client, which keeps its server instead: {}",
                            report.message
                        );
                    }
                    // On a connection that listened to them already, for others, something may have come by now.
                    hearing.listener.forget(names.iter().cloned());
                    self.session.channels_are_heard(names, result.is_ok());
                }
                Some(Wait::Commit(names)) => {
                    if result.is_ok() {
                        hearing.listener.forget(names);
                    }
                    self.session.has_caught_up();
                }
                Some(Wait::Ready) => {
                    self.take_mail()?;
                    self.session.release_ready(&mut self.output);
                }
                Some(Wait::Replaced(replacing)) => {
                    let now = self.clock.now();
                    let going_on = match &result {
                        Ok(()) => hearing.replace(replacing, now),
                        Err(_) => {
                            hearing.keep(&replacing, now);
                            false
                        }
                    };
                    if !going_on {
                        let why = result
                            .err()
                            .map_or_else(|| "it was lost meanwhile".to_owned(), |report| report.message.to_string());
                        tracing::warn!(
                            client = self.listed.entry.id,
                            "no connection listens in the encoding that a client has changed to; it hears in the one before: {why}"
                        );
                    }
                }
                None => {}
            }
        }
        let busy = match &self.server {
            Server::None | Server::Waiting(_) => false,
            Server::Leased(lease) => lease.side.is_busy() || lease.side.is_mid_frame() || !lease.input.is_empty(),
        };
        let Some(hearing) = &self.hearing else { return Ok(step) };
        let ready = may_deliver
            && hearing.may_deliver()
            && !busy
            && self.session.may_be_notified()
            && !self.session.holds_ready();
        if ready && hearing.listener.mailbox().has_mail() && self.output.len() < UNREAD_OUTPUT {
            self.take_mail()?;
            step = Step::Progress;
        }
        Ok(step)
    }

    fn take_mail(&mut self) -> Result<(), Stop> {
        let Some(hearing) = &self.hearing else { return Ok(()) };
        let before = self.output.len();
        match hearing.listener.mailbox().take_into(&mut self.output, UNREAD_OUTPUT) {
            Ok(_) => {
                self.tally.sent += (self.output.len() - before) as u64;
                Ok(())
            }
            Err(missed) => {
                let report =
                    Report::ours(SqlState::OUT_OF_MEMORY, "notifications were lost").detail(missed.to_string());
                Err(Stop::Fatal(report))
            }
        }
    }
}
