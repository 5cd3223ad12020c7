//! A server that follows a script, however bad.

use super::client::{Message, message};
use super::{PATIENCE, wait_until};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A running server. Dropped, it accepts no more.
pub struct Hostile {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    visits: AtomicUsize,
    over: AtomicBool,
    heard: Mutex<Vec<u8>>,
}

trait Bytes: Read + Write + Send {}
impl<T: Read + Write + Send> Bytes for T {}

/// One connection to it.
pub struct Visit {
    stream: Box<dyn Bytes>,
    tcp: TcpStream,
    shared: Arc<Shared>,
    /// How many came before.
    pub number: usize,
}

impl Hostile {
    /// Plays this script to whoever connects; the connection ends with the script.
    pub fn start(script: impl Fn(&mut Visit) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (shared, script) = (Arc::new(Shared::default()), Arc::new(script));
        let hostile = Self { port, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for tcp in listener.incoming().map_while(Result::ok) {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                let number = shared.visits.fetch_add(1, Ordering::SeqCst);
                let (script, shared) = (Arc::clone(&script), Arc::clone(&shared));
                std::thread::spawn(move || {
                    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
                    tcp.set_write_timeout(Some(PATIENCE)).unwrap();
                    tcp.set_nodelay(true).unwrap();
                    let stream = Box::new(tcp.try_clone().unwrap());
                    // That the other side hangs up is what most scripts are about.
                    let _ = script(&mut Visit { stream, tcp, shared, number });
                });
            }
        });
        hostile
    }

    /// How many have connected.
    pub fn visits(&self) -> usize {
        self.shared.visits.load(Ordering::SeqCst)
    }

    /// Whether any of them has sent this.
    pub fn has_heard(&self, bytes: &[u8]) -> bool {
        self.shared.heard.lock().unwrap().windows(bytes.len()).any(|w| w == bytes)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Visit {
    fn exactly(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        self.shared.heard.lock().unwrap().extend(&bytes);
        Ok(bytes)
    }

    /// Reads a first packet, without its length.
    pub fn hello(&mut self) -> io::Result<Vec<u8>> {
        let len = self.exactly(4)?;
        self.exactly(u32::from_be_bytes(len.try_into().unwrap()) as usize - 4)
    }

    /// Reads first packets up to a startup message; refuses TLS.
    pub fn startup(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let hello = self.hello()?;
            if hello[..4] != [4, 210, 22, 47] {
                return Ok(hello);
            }
            self.send(b"N")?;
        }
    }

    pub fn read(&mut self) -> io::Result<Message> {
        let head = self.exactly(5)?;
        let len = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4;
        Ok(Message { tag: head[0], body: self.exactly(len)? })
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Speaks TLS from here on.
    pub fn tls(&mut self, config: &Arc<rustls::ServerConfig>) -> io::Result<()> {
        let connection = rustls::ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        self.stream = Box::new(rustls::StreamOwned::new(connection, self.tcp.try_clone()?));
        Ok(())
    }

    /// Takes the login to its end, as a server does that trusts everybody.
    pub fn welcome(&mut self) -> io::Result<()> {
        self.startup()?;
        self.send(&welcome())
    }

    /// Answers every query with one row that says this, until the client leaves.
    pub fn serve(&mut self, value: &str) -> io::Result<()> {
        loop {
            match self.read()?.tag {
                b'Q' => self.send(&answer(value))?,
                b'X' => return Ok(()),
                _ => {}
            }
        }
    }

    /// Reads to the end, and keeps the connection open up to there.
    pub fn wait_for_the_end(&mut self) -> io::Result<()> {
        while !self.exactly(1)?.is_empty() {}
        Ok(())
    }

    /// Sends this over and over until the other side has had enough.
    pub fn send_for_ever(&mut self, bytes: &[u8]) -> io::Result<()> {
        let many = bytes.repeat(1 + 65536 / bytes.len().max(1));
        loop {
            self.send(&many)?;
        }
    }
}

/// All of a successful login.
pub fn welcome() -> Vec<u8> {
    [
        message(b'R', &[0, 0, 0, 0]),
        message(b'S', b"server_version\x0015.0\0"),
        message(b'S', b"client_encoding\0UTF8\0"),
        message(b'K', &[0, 0, 0, 1, 1, 2, 3, 4]),
        message(b'Z', b"I"),
    ]
    .concat()
}

/// The answer to a query: one row with one column.
pub fn answer(value: &str) -> Vec<u8> {
    let mut row = vec![0, 1];
    row.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
    row.extend(value.as_bytes());
    [
        message(b'T', b"\0\x01x\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"),
        message(b'D', &row),
        message(b'C', b"SELECT 1\0"),
        message(b'Z', b"I"),
    ]
    .concat()
}

/// The answer to a query: one row with these columns.
pub fn row(columns: &[Option<&str>]) -> Vec<u8> {
    let count = u16::try_from(columns.len()).unwrap().to_be_bytes();
    let (mut names, mut row) = (count.to_vec(), count.to_vec());
    for column in columns {
        names.extend(b"x\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0");
        row.extend(column.map_or(-1, |text| i32::try_from(text.len()).unwrap()).to_be_bytes());
        row.extend(column.unwrap_or_default().as_bytes());
    }
    [message(b'T', &names), message(b'D', &row), message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat()
}

/// All of a successful login at a server of this version.
pub fn welcome_of(version: &str) -> Vec<u8> {
    [
        message(b'R', &[0, 0, 0, 0]),
        message(b'S', format!("server_version\0{version}\0").as_bytes()),
        message(b'S', b"client_encoding\0UTF8\0"),
        message(b'K', &[0, 0, 0, 1, 1, 2, 3, 4]),
        message(b'Z', b"I"),
    ]
    .concat()
}

/// The memory that a process has in use, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Waits until so many have connected.
pub fn wait_for_visits(hostile: &Hostile, count: usize) {
    wait_until("the hostile server was visited", || hostile.visits() >= count);
}
