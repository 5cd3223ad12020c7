//! A small web server that answers what a test says: metadata services, token endpoints.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A running web server. Dropped, it accepts no more.
pub struct Web {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    down: AtomicBool,
    over: AtomicBool,
}

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// An answer: its status, headers and body.
pub type Answer = (u16, Vec<(String, String)>, String);

/// An answer without headers of its own.
pub fn ok(body: impl Into<String>) -> Answer {
    (200, Vec::new(), body.into())
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn read(stream: &TcpStream) -> Option<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let mut words = line.split_whitespace();
        let mut asked = Self { method: words.next()?.into(), path: words.next()?.into(), ..Self::default() };
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => asked.headers.push((name.into(), value.trim().into())),
                None => break,
            }
        }
        let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        asked.body = String::from_utf8(body).ok()?;
        Some(asked)
    }
}

impl Web {
    pub fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (shared, answer) = (Arc::new(Shared::default()), Arc::new(answer));
        let web = Self { port, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                let (answer, shared) = (Arc::clone(&answer), Arc::clone(&shared));
                std::thread::spawn(move || {
                    let Some(asked) = Asked::read(&stream) else { return };
                    shared.asked.lock().unwrap().push(asked.clone());
                    // Down is an endpoint that takes requests and breaks off.
                    if shared.down.load(Ordering::SeqCst) {
                        return;
                    }
                    let (status, headers, body) = answer(&asked);
                    let mut text =
                        format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
                    for (name, value) in headers {
                        text.push_str(&format!("{name}: {value}\r\n"));
                    }
                    let _ = stream.write_all(format!("{text}\r\n{body}").as_bytes());
                });
            }
        });
        web
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::SeqCst);
    }

    /// What was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}
