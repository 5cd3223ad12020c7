//! Notifications for one client: from the connection that listens for many.

use super::relay::{Relay, Server, Step, Stop, UNREAD_OUTPUT};
use crate::listen::{Listener, Subscription};
use crate::session::ChannelName;
use crate::wire::{Report, SqlState};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How long a client waits for the listening connection before its own server listens instead.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a client waits for what it has sent to itself.
const CATCH_UP: Duration = Duration::from_secs(2);

/// A client that listens.
pub(super) struct Hearing {
    listener: Listener,
    /// What wakes the client's task.
    waker: Waker,
    waiting: Option<(Subscription, Wait)>,
}

/// What a subscription is waited for.
enum Wait {
    /// The client's next frame: it is about to listen to these.
    Channels(Vec<ChannelName>),
    /// The client's next frame: it commits its first LISTEN, which is of these.
    Commit(Vec<ChannelName>),
    /// The client's ReadyForQuery.
    Ready,
    /// Another listener took over, because the client has changed its encoding.
    Replaced,
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
            Box::new(Hearing { listener, waker: cx.waker().clone(), waiting: None })
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
            hearing.listener.unlisten(dropped);
        }
        let deadline = self.clock.now();
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
            hearing.waiting = Some((hearing.listener.catch_up(deadline + CATCH_UP), Wait::Ready));
        }
        let encoding = self.encoding();
        let Some(hearing) = &mut self.hearing else { return };
        if hearing.waiting.is_some() || asking || self.session.tx().is_open() {
            return;
        }
        if hearing.listener.is_idle() {
            self.hearing = None;
        } else if !encoding.is_empty() && !hearing.listener.has_encoding(&encoding) {
            let listener = self.upstream.hubs.listener(&self.upstream.pools, &encoding, hearing.waker.clone());
            let subscription = listener.listen(self.session.heard_channels(), deadline + PATIENCE);
            hearing.listener = listener;
            hearing.waiting = Some((subscription, Wait::Replaced));
        }
    }

    /// Goes on with what waits for the listening connection, and passes on what it has heard.
    pub(super) fn poll_hearing(&mut self, cx: &mut Context<'_>) -> Result<Step, Stop> {
        let Some(hearing) = &mut self.hearing else { return Ok(Step::Stuck) };
        let mut step = Step::Stuck;
        // What waits then may be from before the LISTEN that is about to be sent.
        let before_listen = hearing.needs_server();
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
                Some(Wait::Replaced) | None => {}
            }
        }
        let busy = match &self.server {
            Server::None | Server::Waiting(_) => false,
            Server::Leased(lease) => lease.side.is_busy() || lease.side.is_mid_frame() || !lease.input.is_empty(),
        };
        let Some(hearing) = &self.hearing else { return Ok(step) };
        let ready = !before_listen && !busy && self.session.may_be_notified() && !self.session.holds_ready();
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
