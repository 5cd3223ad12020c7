//! Stop signals, and how a stop goes: first the clients may leave, then they have to.

use crate::admin::Operator;
use crate::client::entry::Order;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the operating system asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// SIGTERM: end, in order.
    Terminate,
    /// SIGINT or SIGQUIT: end now.
    Interrupt,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// The signals that concern us.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
}

impl Signals {
    /// Begins to listen for them.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Notice {
        tokio::select! {
            _ = self.terminate.recv() => Notice::Terminate,
            _ = self.interrupt.recv() => Notice::Interrupt,
            _ = self.quit.recv() => Notice::Interrupt,
            _ = self.hangup.recv() => Notice::Reload,
        }
    }
}

/// How a stop goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How long clients may go on as if nothing was. The listener goes on accepting: the application beside us may still
    /// need us to end in order itself.
    pub patience: Duration,
    /// How long open transactions may take to end after that.
    pub grace: Duration,
}

/// How often the clients are counted.
const COUNT: Duration = Duration::from_millis(20);

/// Lets clients leave, then asks them to, then ends them. Ends early when none is left.
pub async fn drain(operator: &Operator, plan: Plan) {
    let clients = &operator.context.clients;
    operator.draining.store(true, Ordering::Relaxed);
    tracing::info!(clients = clients.count(), patience = ?plan.patience, "draining");
    let gone = |until: Instant| async move {
        while clients.count() > 0 && Instant::now() < until {
            tokio::time::sleep(COUNT).await;
        }
        clients.count() == 0
    };
    if gone(Instant::now() + plan.patience).await {
        return;
    }
    operator.context.closed.store(true, Ordering::Relaxed);
    tracing::info!(clients = clients.count(), grace = ?plan.grace, "closing idle clients");
    for client in clients.all() {
        client.order(Order::Drain);
    }
    if gone(Instant::now() + plan.grace).await {
        return;
    }
    end(operator).await;
}

/// Ends all clients now, and tells them.
pub async fn end(operator: &Operator) {
    let clients = &operator.context.clients;
    operator.draining.store(true, Ordering::Relaxed);
    operator.context.closed.store(true, Ordering::Relaxed);
    let left = clients.all();
    if !left.is_empty() {
        tracing::warn!(clients = left.len(), "closing clients");
    }
    for client in left {
        client.order(Order::Kill);
    }
    // Long enough for their tasks to write a line each.
    let until = Instant::now() + Duration::from_secs(1);
    while clients.count() > 0 && Instant::now() < until {
        tokio::time::sleep(COUNT).await;
    }
}
