//! Worker threads: each has a runtime, a listener on every address, and the clients it serves.

use crate::client::{self, Context, Door};
use crate::counter;
use crate::net::listener::{Accepted, Bound};
use crate::net::{Socket, SocketOptions, Stream};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// An address where clients come in.
#[derive(Debug)]
pub struct Entrance {
    /// The socket.
    pub bound: Bound,
    /// How they come in there.
    pub door: Arc<Door>,
}

/// What all workers share.
struct Team {
    context: Arc<Context>,
    entrances: Vec<Entrance>,
    socket: SocketOptions,
    /// Clients of each worker.
    loads: Vec<AtomicUsize>,
    /// Connections for each worker from the others.
    hand_over: Vec<UnboundedSender<Arrival>>,
    logins: usize,
    beat: Beat,
}

type Beat = Box<dyn Fn(usize) + Send + Sync>;

/// A connection that one worker accepted for another, its other end, the entrance it came through, its place among those
/// who have not proven anything yet, and in the other worker's load.
type Arrival = (Accepted, Option<SocketAddr>, Arc<Door>, OwnedSemaphorePermit, Load);

/// Running workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

/// A client counted in its worker's load.
struct Load(Arc<Team>, usize);

impl Load {
    fn new(team: &Arc<Team>, worker: usize) -> Self {
        team.loads[worker].fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(team), worker)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.loads[self.1].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` workers. `logins` connections may be on their way to a login in each of them; `beat` is called by
    /// each about once a second, with its number.
    pub fn start(
        count: usize,
        logins: usize,
        context: &Arc<Context>,
        entrances: Vec<Entrance>,
        socket: SocketOptions,
        beat: impl Fn(usize) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (hand_over, arrivals): (Vec<_>, Vec<_>) = (0..count).map(|_| unbounded_channel()).unzip();
        let beat: Beat = Box::new(beat);
        let loads = (0..count).map(|_| AtomicUsize::new(0)).collect();
        let team = Arc::new(Team { context: Arc::clone(context), entrances, socket, loads, hand_over, logins, beat });
        let mut threads = Vec::new();
        for (at, arrivals) in arrivals.into_iter().enumerate() {
            let (team, stopped) = (Arc::clone(&team), stopped.clone());
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{at}")).spawn(move || {
                counter::become_worker(at);
                runtime.block_on(work(team, at, arrivals, stopped));
                // What clients are left end here; their servers are closed, never given back.
                runtime.shutdown_background();
            })?;
            threads.push(thread);
        }
        Ok(Self { threads, stop })
    }

    /// Stops accepting, drops all clients that are left, and waits for the threads to end.
    pub fn stop(self) {
        let _ = self.stop.send(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker has panicked");
            }
        }
    }
}

async fn work(
    team: Arc<Team>,
    at: usize,
    mut arrivals: UnboundedReceiver<Arrival>,
    mut stopped: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(team.logins));
    for entrance in 0..team.entrances.len() {
        tokio::spawn(accept(Arc::clone(&team), at, entrance, Arc::clone(&slots)));
    }
    let mut beats = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = beats.tick() => (team.beat)(at),
            arrival = arrivals.recv() => match arrival {
                Some((accepted, peer, door, slot, load)) => {
                    if let Ok(socket) = accepted.into_socket() {
                        welcome(&team, socket, peer, door, slot, load);
                    }
                }
                None => return,
            },
            _ = stopped.changed() => return,
        }
    }
}

/// Accepts connections at one entrance, for as long as the worker lives.
async fn accept(team: Arc<Team>, at: usize, entrance: usize, slots: Arc<Semaphore>) {
    let Entrance { bound, door } = &team.entrances[entrance];
    let listener = match bound.register() {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot listen");
            return;
        }
    };
    loop {
        // Who has not proven anything yet takes one of few places: a flood of them waits in the kernel's queue.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, peer)) => {
                let lightest = team.lightest(at);
                if lightest == at {
                    welcome(&team, socket, peer, Arc::clone(door), slot, Load::new(&team, at));
                } else if let Ok(accepted) = Accepted::from_socket(socket) {
                    let load = Load::new(&team, lightest);
                    let _ = team.hand_over[lightest].send((accepted, peer, Arc::clone(door), slot, load));
                }
            }
            Err(error) => {
                team.context.counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "cannot accept a connection");
                // Out of descriptors or memory: it will not get better by trying at once.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Team {
    /// The worker with the fewest clients; this one unless another has fewer.
    fn lightest(&self, at: usize) -> usize {
        let load = |i: usize| self.loads[i].load(Ordering::Relaxed);
        let lightest = (0..self.loads.len()).min_by_key(|&i| load(i)).unwrap_or(at);
        if load(lightest) < load(at) { lightest } else { at }
    }
}

/// Serves a connection in this worker.
fn welcome(
    team: &Team,
    socket: Socket,
    peer: Option<SocketAddr>,
    door: Arc<Door>,
    slot: OwnedSemaphorePermit,
    load: Load,
) {
    // Linux hands the options of the listening socket down to what is accepted there.
    if cfg!(not(target_os = "linux"))
        && let Socket::Tcp(stream) = &socket
        && let Err(error) = team.socket.apply(stream)
    {
        // The peer is gone already.
        tracing::debug!(%error, "cannot set socket options");
        return;
    }
    tokio::spawn(client::serve(Arc::clone(&team.context), door, Stream::plain(socket), peer, slot, load));
}
