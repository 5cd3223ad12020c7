//! A running ambassador: the real program, on free ports.

use super::{Client, PATIENCE, wait_until};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

/// The port of the address that a text begins with.
fn port_of(text: &str) -> u16 {
    let address = text.split_whitespace().next().unwrap();
    address.rsplit(':').next().unwrap().parse().unwrap()
}

/// A running ambassador. Dropped, it is ended at once.
pub struct Ambassador {
    child: Child,
    pub port: u16,
    /// All ports, that one first, in the order of the configuration.
    pub ports: Vec<u16>,
    pub admin_port: u16,
    log: Arc<Mutex<String>>,
}

impl Ambassador {
    /// Starts `pg-ambassador run` with these arguments and waits until it listens.
    pub fn start<S: AsRef<str>>(args: &[S]) -> Self {
        Self::start_with(args, &[])
    }

    /// The same with environment variables.
    pub fn start_with<S: AsRef<str>>(args: &[S], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pg-ambassador"));
        command.arg("run").args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
        command.args(args.iter().map(AsRef::as_ref));
        // Nor may a test ever ask a cloud that it happens to run in.
        let foreign = |name: &String| ["PG", "AWS_", "AZURE_", "IDENTITY_", "GCE_"].iter().any(|p| name.starts_with(p));
        for (name, _) in std::env::vars().filter(|(name, _)| foreign(name)) {
            command.env_remove(name);
        }
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command.envs(env.iter().copied()).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, sink) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = sink.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut ambassador = Self { child, port: 0, ports: Vec::new(), admin_port: 0, log };
        wait_until("the ambassador listens", || {
            if let Ok(Some(status)) = ambassador.child.try_wait() {
                panic!("the ambassador ended with {status}:\n{}", ambassador.log());
            }
            ambassador.log().contains("serving metrics")
        });
        let (log, words) = (ambassador.log(), "listening address=");
        ambassador.ports = log.match_indices(words).map(|(at, _)| port_of(&log[at + words.len()..])).collect();
        ambassador.port = ambassador.ports[0];
        ambassador.admin_port = ambassador.port_after("serving metrics and health address=");
        ambassador
    }

    fn port_after(&self, words: &str) -> u16 {
        let log = self.log();
        port_of(&log[log.find(words).unwrap() + words.len()..])
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What it has logged that it must never log: a panic, or what paranoid mode has found.
    pub fn complaint(&self) -> Option<String> {
        let log = self.log.lock().unwrap();
        let line = log.lines().find(|line| ["panicked at", "paranoid: "].iter().any(|words| line.contains(words)));
        line.map(str::to_owned)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by its number.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until it has ended.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the ambassador ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// The status and body of an HTTP request.
    pub fn http(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin_port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The rows of a SHOW command of the console.
    pub fn show(&self, what: &str) -> Vec<Vec<Option<String>>> {
        Client::login(self.port, &[("user", "ambassador"), ("database", "ambassador")]).query(&format!("SHOW {what}"))
    }

    /// The value of a metric, summed over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.http("/metrics");
        let lines =
            text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }
}

impl Drop for Ambassador {
    fn drop(&mut self) {
        // The invariant that holds for every test: no task has ever panicked (faults.md F35).
        // And paranoid mode, where it is on, has found nothing.
        let panicked = self.complaint().is_some();
        let _ = self.child.kill();
        let _ = self.child.wait();
        if panicked && !std::thread::panicking() {
            panic!("the ambassador panicked, or a client left something behind:\n{}", self.log());
        }
    }
}
