//! A client that speaks the protocol byte by byte.

use super::PATIENCE;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;

/// One message of a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\"{}\"", char::from(self.tag), self.body.escape_ascii())
    }
}

impl Message {
    /// A field of an error or notice.
    pub fn field(&self, kind: u8) -> Option<String> {
        let mut fields = self.body.split(|&b| b == 0).filter(|field| !field.is_empty());
        let found = fields.find(|field| field[0] == kind)?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    }

    /// Without what may differ between two databases: OIDs of tables, which each numbers for itself.
    #[must_use]
    pub fn without_oids(mut self) -> Self {
        if self.tag == b'T' {
            let body = &mut self.body;
            let mut at = 2;
            while at < body.len() {
                at += body[at..].iter().position(|&b| b == 0).unwrap() + 1;
                let table = u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
                if table >= 16_384 {
                    body[at..at + 4].copy_from_slice(&[0xff; 4]);
                }
                at += 18;
            }
        }
        self
    }

    /// The SQLSTATE of an error or notice.
    pub fn code(&self) -> String {
        self.field(b'C').unwrap_or_default()
    }

    /// The columns of a row, as text.
    pub fn columns(&self) -> Vec<Option<String>> {
        pg_ambassador::wire::backend::row(&self.body)
            .unwrap()
            .into_iter()
            .map(|column| column.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
            .collect()
    }
}

/// Builds a message of a client.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    message.extend(body);
    message
}

pub fn cstr(text: impl AsRef<[u8]>) -> Vec<u8> {
    [text.as_ref(), b"\0"].concat()
}

pub fn query(sql: impl AsRef<[u8]>) -> Vec<u8> {
    message(b'Q', &cstr(sql))
}

pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[cstr(name), cstr(sql), vec![0, 0]].concat())
}

/// Bind of text parameters, with text results.
pub fn bind(portal: &str, statement: &str, values: &[Option<&str>]) -> Vec<u8> {
    let mut body = [cstr(portal), cstr(statement), vec![0, 0]].concat();
    body.extend(u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        match value {
            None => body.extend((-1i32).to_be_bytes()),
            Some(value) => {
                body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
                body.extend(value.as_bytes());
            }
        }
    }
    body.extend([0, 0]);
    message(b'B', &body)
}

pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    message(b'D', &[vec![kind], cstr(name)].concat())
}

pub fn close(kind: u8, name: &str) -> Vec<u8> {
    message(b'C', &[vec![kind], cstr(name)].concat())
}

pub fn execute(portal: &str, limit: i32) -> Vec<u8> {
    message(b'E', &[cstr(portal), limit.to_be_bytes().to_vec()].concat())
}

pub fn sync() -> Vec<u8> {
    message(b'S', b"")
}

pub fn flush() -> Vec<u8> {
    message(b'H', b"")
}

pub fn startup(params: &[(&str, &str)]) -> Vec<u8> {
    startup_version([0, 3, 0, 0], params)
}

pub fn startup_version(version: [u8; 4], params: &[(&str, &str)]) -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet.extend(version);
    for (name, value) in params {
        packet.extend(cstr(name));
        packet.extend(cstr(value));
    }
    packet.push(0);
    let len = u32::try_from(packet.len()).unwrap();
    packet[..4].copy_from_slice(&len.to_be_bytes());
    packet
}

/// A connection.
pub struct Client {
    pub stream: TcpStream,
    input: Vec<u8>,
    /// Process id and secret.
    pub key: Vec<u8>,
    /// What the server reported at the login.
    pub params: Vec<(String, String)>,
    /// Channel and payload of each notification that was read.
    pub heard: Vec<(String, String)>,
}

impl Client {
    /// Connects without saying anything.
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, input: Vec::new(), key: Vec::new(), params: Vec::new(), heard: Vec::new() }
    }

    /// Connects and logs in, where no password is asked for.
    pub fn login(port: u16, params: &[(&str, &str)]) -> Self {
        Self::try_login(port, params).unwrap_or_else(|error| panic!("login: {error:?}"))
    }

    /// The same as the usual user.
    pub fn new(port: u16) -> Self {
        Self::login(port, &[("user", "postgres"), ("database", "postgres")])
    }

    pub fn try_login(port: u16, params: &[(&str, &str)]) -> Result<Self, Message> {
        let mut client = Self::connect(port);
        client.send(&startup(params));
        client.finish_login()?;
        Ok(client)
    }

    /// Reads what comes after the authentication, up to the first ReadyForQuery.
    pub fn finish_login(&mut self) -> Result<(), Message> {
        loop {
            let message = self.read().expect("an answer to the login");
            match message.tag {
                b'E' => return Err(message),
                b'K' => self.key = message.body,
                b'S' => {
                    let mut words = message.body.split(|&b| b == 0).map(|w| String::from_utf8_lossy(w).into_owned());
                    self.params.push((words.next().unwrap(), words.next().unwrap()));
                }
                b'Z' => return Ok(()),
                _ => {}
            }
        }
    }

    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads one message; an error at the end of the connection.
    pub fn read(&mut self) -> io::Result<Message> {
        let mut chunk = [0; 65536];
        loop {
            if self.input.len() >= 5 {
                let len = 1 + u32::from_be_bytes(self.input[1..5].try_into().unwrap()) as usize;
                if self.input.len() >= len {
                    let message = Message { tag: self.input[0], body: self.input[5..len].to_vec() };
                    self.input.drain(..len);
                    if message.tag == b'A' {
                        let mut texts = message.body[4..].split(|byte| *byte == 0);
                        let mut text = || String::from_utf8_lossy(texts.next().unwrap_or_default()).into_owned();
                        self.heard.push((text(), text()));
                    }
                    return Ok(message);
                }
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.input.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Reads up to and including a message with one of these tags.
    pub fn read_until(&mut self, tags: &[u8]) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            let message = self.read()?;
            let last = tags.contains(&message.tag);
            messages.push(message);
            if last {
                return Ok(messages);
            }
        }
    }

    /// Sends and reads up to the next ReadyForQuery.
    pub fn exchange(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.send(bytes);
        self.read_until(b"Z").expect("an answer")
    }

    /// Runs a simple query; the rows, or the first error.
    pub fn try_query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Message> {
        let messages = self.exchange(&query(sql));
        if let Some(error) = messages.iter().find(|m| m.tag == b'E') {
            return Err(error.clone());
        }
        Ok(messages.iter().filter(|m| m.tag == b'D').map(Message::columns).collect())
    }

    /// Runs a simple query that succeeds.
    pub fn query(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// The one value of a query's one row.
    pub fn value(&mut self, sql: &str) -> String {
        let rows = self.query(sql);
        assert!(rows.len() == 1 && rows[0].len() == 1, "{sql}: {rows:?}");
        rows[0][0].clone().unwrap_or_else(|| panic!("{sql}: null"))
    }

    /// Whether the server has closed the connection; reads what it still sends.
    pub fn is_closed(&mut self) -> bool {
        loop {
            match self.read() {
                Ok(_) => {}
                Err(error) => {
                    let timeout = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    return !timeout;
                }
            }
        }
    }
}
