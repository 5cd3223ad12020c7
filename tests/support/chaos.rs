//! A proxy that does to a connection what networks do: it delays, slices, cuts, resets, half-closes and swallows.
//!
//! It stands between a client and the ambassador, or between the ambassador and a server. Its rules may be changed at any
//! time and hold for what is read from then on; what it has done can be asked.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};

/// Where bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Both sides see the end of the stream.
    Close,
    /// Both sides see a reset.
    Reset,
    /// The receiver of this way sees the end of the stream; the other way goes on.
    HalfClose(Way),
    /// Nobody sees anything: what is sent from now on, either way, is taken and lost.
    Blackhole,
}

/// What happens to the bytes that go one way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rule {
    /// Each piece that is read is held back for so long.
    pub latency: Duration,
    /// Bytes are written in pieces of this size; 0 is as they come.
    pub slice: usize,
    /// The pause between two such pieces.
    pub gap: Duration,
    /// Bytes are left unread: the sender sees a window that fills up.
    pub stalled: bool,
    /// After so many bytes of one connection this happens to it.
    pub cut: Option<(usize, How)>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rules {
    to_server: Rule,
    to_client: Rule,
    /// A connection to the server is made only after so long.
    dial_delay: Duration,
    /// Nothing listens: connecting is refused.
    refusing: bool,
}

impl Rules {
    fn of(&self, way: Way) -> Rule {
        match way {
            Way::ToServer => self.to_server,
            Way::ToClient => self.to_client,
        }
    }
}

#[derive(Default)]
struct Seen {
    accepted: AtomicUsize,
    listening: AtomicUsize,
    to_server: AtomicUsize,
    to_client: AtomicUsize,
    /// The connections that are open, by their number.
    open: Mutex<BTreeMap<usize, mpsc::UnboundedSender<How>>>,
}

/// A running proxy. Dropped, it closes everything.
pub struct Chaos {
    pub port: u16,
    rules: watch::Sender<Rules>,
    seen: Arc<Seen>,
}

impl Chaos {
    /// Starts a proxy on a free port of 127.0.0.1 in front of another.
    pub fn start(target: u16) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (rules, watcher) = watch::channel(Rules::default());
        let seen = Arc::new(Seen::default());
        seen.listening.store(1, Ordering::SeqCst);
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            // Dropping the runtime drops every connection.
            runtime.block_on(accept(listener, port, target, watcher, shared));
        });
        Self { port, rules, seen }
    }

    /// Changes what happens to bytes that go this way.
    pub fn set(&self, way: Way, rule: Rule) {
        self.rules.send_modify(|rules| match way {
            Way::ToServer => rules.to_server = rule,
            Way::ToClient => rules.to_client = rule,
        });
    }

    /// Changes what happens to bytes both ways.
    pub fn set_both(&self, rule: Rule) {
        self.set(Way::ToServer, rule);
        self.set(Way::ToClient, rule);
    }

    /// Nothing happens to bytes any more, and connecting works.
    pub fn calm(&self) {
        self.refuse(false);
        self.rules.send_replace(Rules::default());
    }

    /// Delays new connections to the server.
    pub fn dial_delay(&self, delay: Duration) {
        self.rules.send_modify(|rules| rules.dial_delay = delay);
    }

    /// Closes the listening socket, or opens it again. Connections that are open stay.
    pub fn refuse(&self, refusing: bool) {
        self.rules.send_modify(|rules| rules.refusing = refusing);
        super::wait_until("the proxy listens or does not", || {
            (self.seen.listening.load(Ordering::SeqCst) == 0) == refusing
        });
    }

    /// Does this to all connections that are open; gives their number.
    pub fn end_all(&self, how: How) -> usize {
        let open = self.seen.open.lock().unwrap();
        open.values().filter(|connection| connection.send(how).is_ok()).count()
    }

    /// How many connections were accepted.
    pub fn accepted(&self) -> usize {
        self.seen.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.seen.open.lock().unwrap().len()
    }

    /// How many bytes were passed on.
    pub fn passed(&self, way: Way) -> usize {
        self.seen.passed(way).load(Ordering::SeqCst)
    }
}

impl Seen {
    fn passed(&self, way: Way) -> &AtomicUsize {
        match way {
            Way::ToServer => &self.to_server,
            Way::ToClient => &self.to_client,
        }
    }
}

async fn accept(
    listener: std::net::TcpListener,
    port: u16,
    target: u16,
    mut rules: watch::Receiver<Rules>,
    seen: Arc<Seen>,
) {
    let mut listener = Some(TcpListener::from_std(listener).unwrap());
    loop {
        let refusing = rules.borrow_and_update().refusing;
        if refusing {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.ok();
        }
        seen.listening.store(usize::from(listener.is_some()), Ordering::SeqCst);
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await.ok(),
                None if refusing => std::future::pending().await,
                // Somebody else has the port for now.
                None => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    None
                }
            }
        };
        tokio::select! {
            changed = rules.changed() => if changed.is_err() { return },
            accepted = accepted => {
                let Some((client, _)) = accepted else { continue };
                let number = seen.accepted.fetch_add(1, Ordering::SeqCst);
                let (sender, orders) = mpsc::unbounded_channel();
                seen.open.lock().unwrap().insert(number, sender);
                let (rules, seen) = (rules.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let _ = serve(client, target, rules, orders, &seen).await;
                    seen.open.lock().unwrap().remove(&number);
                });
            }
        }
    }
}

async fn serve(
    mut client: TcpStream,
    target: u16,
    rules: watch::Receiver<Rules>,
    mut orders: mpsc::UnboundedReceiver<How>,
    seen: &Seen,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let delay = rules.borrow().dial_delay;
    tokio::time::sleep(delay).await;
    let socket = TcpSocket::new_v4()?;
    let mut server = match socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, target))).await {
        Ok(server) => server,
        // Nearest to a refusal that an accepted connection can be.
        Err(error) => return reset(client).and(Err(error)),
    };
    server.set_nodelay(true)?;
    let (mut done_to_server, mut done_to_client) = (false, false);
    let how = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let to_server = pump(from_client, to_server, Way::ToServer, rules.clone(), seen);
        let to_client = pump(from_server, to_client, Way::ToClient, rules, seen);
        tokio::pin!(to_server, to_client);
        loop {
            let how = tokio::select! {
                how = &mut to_server, if !done_to_server => { done_to_server = true; how },
                how = &mut to_client, if !done_to_client => { done_to_client = true; how },
                Some(how) = orders.recv() => Some(how),
            };
            match how {
                None if done_to_server && done_to_client => break How::Close,
                None => {}
                Some(how) => break how,
            }
        }
    };
    match how {
        How::Close => Ok(()),
        How::Reset => reset(client).and(reset(server)),
        How::Blackhole => {
            let (mut from_client, mut from_server) = (vec![0; 65536], vec![0; 65536]);
            let (mut client_ended, mut server_ended) = (false, false);
            loop {
                let how = tokio::select! {
                    read = client.read(&mut from_client), if !client_ended => { client_ended = read? == 0; continue }
                    read = server.read(&mut from_server), if !server_ended => { server_ended = read? == 0; continue }
                    how = orders.recv() => how,
                };
                match how {
                    Some(How::Reset) => return reset(client).and(reset(server)),
                    Some(How::Blackhole) => {}
                    Some(How::Close | How::HalfClose(_)) | None => return Ok(()),
                }
            }
        }
        How::HalfClose(way) => {
            let (from, to) = match way {
                Way::ToServer => (&mut server, &mut client),
                Way::ToClient => (&mut client, &mut server),
            };
            // `from` hears no more, but what it still says goes on.
            from.shutdown().await?;
            tokio::select! {
                _ = tokio::io::copy(from, to) => Ok(()),
                how = orders.recv() => match how {
                    Some(How::Reset) => reset(client).and(reset(server)),
                    _ => Ok(()),
                },
            }
        }
    }
}

fn reset(stream: TcpStream) -> io::Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// Passes bytes on until their sender ends; what a rule says has to happen to the whole connection is handed back.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    mut rules: watch::Receiver<Rules>,
    seen: &Seen,
) -> Option<How> {
    let mut buf = vec![0; 65536];
    let mut passed = 0;
    loop {
        rules.wait_for(|rules| !rules.of(way).stalled).await.ok()?;
        // A cut at 0 bytes happens before the first of them.
        if let Some((at, how)) = rules.borrow().of(way).cut
            && passed >= at
        {
            return Some(how);
        }
        let read = tokio::select! {
            read = from.read(&mut buf) => read,
            changed = rules.changed() => match changed { Ok(()) => continue, Err(_) => return None },
        };
        let read = match read {
            Ok(0) => {
                let _ = to.shutdown().await;
                return None;
            }
            Ok(read) => read,
            Err(_) => return Some(How::Reset),
        };
        let rule = rules.borrow_and_update().of(way);
        tokio::time::sleep(rule.latency).await;
        let (end, cut) = match rule.cut {
            Some((at, how)) if passed + read >= at => (at.saturating_sub(passed), Some(how)),
            _ => (read, None),
        };
        let slice = if rule.slice == 0 { buf.len() } else { rule.slice };
        for piece in buf[..end].chunks(slice) {
            if to.write_all(piece).await.is_err() {
                return Some(How::Reset);
            }
            passed += piece.len();
            seen.passed(way).fetch_add(piece.len(), Ordering::SeqCst);
            if rule.slice != 0 {
                if rule.gap.is_zero() { tokio::task::yield_now().await } else { tokio::time::sleep(rule.gap).await }
            }
        }
        if cut.is_some() {
            return cut;
        }
    }
}
