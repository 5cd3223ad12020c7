//! Many clients with state of their own on few servers, for as long as one likes (`SOAK_SECONDS`): what a client reads of
//! its own state is its own, whoever else has used the server in between, and at the end nothing of anybody is left.

use crate::support::client::{Message, bind, execute, parse, query, sync};
use crate::support::{Ambassador, Client, Random, cluster, url, wait_until};
use pg_ambassador::demo::cluster::Options;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: u64 = 200;
const SERVERS: &str = "8";
const ROLES: usize = 4;
const ZONES: [&str; 4] = ["UTC", "Asia/Tokyo", "Europe/Paris", "America/Lima"];

/// What all clients have done.
#[derive(Default)]
struct Done {
    steps: AtomicU64,
    left: AtomicU64,
    cancels: AtomicU64,
    canceled: AtomicU64,
    heard: AtomicU64,
}

/// A client's own channel, as those who notify on it see it.
#[derive(Default)]
struct Channel {
    listening: bool,
    /// How often its client began or ended to listen.
    changes: u64,
    /// What was committed after its client had begun to listen, and before it ends to: it must hear that.
    owed: Vec<String>,
}

/// What a client has set, and so must find.
struct Mine {
    name: String,
    path: String,
    zone: &'static str,
    role: String,
    tenant: String,
}

impl Mine {
    fn new(id: u64) -> Self {
        let name = format!("client {id}");
        Self { path: "\"$user\", public".into(), zone: "UTC", role: "postgres".into(), tenant: String::new(), name }
    }

    fn expected(&self) -> String {
        format!("{}|{}|{}|{}|{}", self.name, self.path, self.zone, self.role, self.tenant)
    }
}

const LOOK: &str = "select current_setting('application_name') || '|' || current_setting('search_path') || '|' \
    || current_setting('timezone') || '|' || current_user || '|' || coalesce(current_setting('soak.tenant', true), '')";

struct Soaked<'a> {
    id: u64,
    port: u16,
    random: Random,
    client: Client,
    mine: Mine,
    done: &'a Done,
    /// Of all clients, by their numbers.
    channels: &'a [Mutex<Channel>],
    rounds: u64,
}

impl<'a> Soaked<'a> {
    fn new(id: u64, port: u16, done: &'a Done, channels: &'a [Mutex<Channel>]) -> Self {
        let mine = Mine::new(id);
        let client = login(port, &mine.name);
        Self { id, port, random: Random::new(id), client, mine, done, channels, rounds: 0 }
    }

    fn step(&mut self) {
        self.rounds += 1;
        self.done.steps.fetch_add(1, Ordering::Relaxed);
        match self.random.below(16) {
            0..=4 => self.set(),
            5 => {
                self.client.query("begin; set timezone = 'Asia/Seoul'; set soak.tenant = 'lost'; set role soak_0");
                self.client.query("rollback");
            }
            6 => self.temporary(),
            7 => self.lock(),
            8 => self.named(),
            9 => self.cancel(),
            10 => {
                self.client.query("reset all; reset role");
                self.mine = Mine::new(self.id);
            }
            11 if self.random.one_in(4) => self.come_back(),
            12 => self.listen(),
            13 => (0..4).for_each(|at| self.notify(at)),
            _ => {}
        }
        self.look();
    }

    fn look(&mut self) {
        let (expected, found) = (self.mine.expected(), self.client.value(LOOK));
        assert_eq!(found, expected, "client {}, round {}", self.id, self.rounds);
    }

    fn set(&mut self) {
        let (id, round) = (self.id, self.rounds);
        match self.random.below(5) {
            0 => {
                self.mine.name = format!("client {id} {round}");
                self.client.query(&format!("set application_name = '{}'", self.mine.name));
            }
            1 => {
                self.mine.path = format!("soak_{id}, public");
                self.client.query(&format!("set search_path = {}", self.mine.path));
            }
            2 => {
                self.mine.zone = ZONES[self.random.below(ZONES.len())];
                self.client.query(&format!("begin; set timezone = '{}'; commit", self.mine.zone));
            }
            3 => {
                self.mine.role = format!("soak_{}", self.random.below(ROLES));
                self.client.query(&format!("set role {}", self.mine.role));
            }
            _ => {
                self.mine.tenant = format!("tenant {id} {round}");
                let set = [
                    parse("", "select set_config('soak.tenant', $1, false)"),
                    bind("", "", &[Some(&self.mine.tenant)]),
                    execute("", 0),
                    sync(),
                ];
                self.client.exchange(&set.concat());
            }
        }
    }

    /// For a short time only: there are more clients than servers.
    fn temporary(&mut self) {
        let number = self.id * 1000 + self.rounds % 1000;
        self.client.query(&format!("create temp table soaked as select {number} as n"));
        assert_eq!(self.client.value("select n from soaked"), number.to_string());
        self.client.query("drop table soaked");
    }

    fn lock(&mut self) {
        let key = self.id + 1;
        self.client.query(&format!("select pg_advisory_lock({key})"));
        let held = "select string_agg(objid::text, ',') from pg_locks where locktype = 'advisory' \
            and pid = pg_backend_pid()";
        assert_eq!(self.client.value(held), key.to_string());
        assert_eq!(self.client.value(&format!("select pg_advisory_unlock({key})")), "t");
    }

    fn channel(&self, id: u64) -> std::sync::MutexGuard<'a, Channel> {
        self.channels[usize::try_from(id).unwrap()].lock().unwrap()
    }

    /// Begins to listen, or hears all that it must and ends to.
    fn listen(&mut self) {
        let id = self.id;
        if !self.channel(id).listening {
            self.client.query(&format!("listen soak_{id}"));
            let mut channel = self.channel(id);
            (channel.listening, channel.changes) = (true, channel.changes + 1);
            return;
        }
        self.hear();
        if self.random.one_in(3) {
            self.client.query(&format!("unlisten soak_{id}"));
        } else {
            let mut channel = self.channel(id);
            (channel.listening, channel.changes) = (true, channel.changes + 1);
        }
    }

    /// Reads until everything has come that must; from here on nothing more is owed.
    fn hear(&mut self) {
        let owed = {
            let mut channel = self.channel(self.id);
            (channel.listening, channel.changes) = (false, channel.changes + 1);
            std::mem::take(&mut channel.owed)
        };
        let name = format!("soak_{}", self.id);
        loop {
            let heard: HashSet<&String> = self.client.heard.iter().map(|(_, payload)| payload).collect();
            assert_eq!(heard.len(), self.client.heard.len(), "client {} heard something twice", self.id);
            if owed.iter().all(|payload| heard.contains(payload)) {
                break;
            }
            // It is idle, so nothing else can come.
            self.client.read().unwrap_or_else(|error| panic!("client {} lost a notification: {error}", self.id));
        }
        for (channel, payload) in self.client.heard.drain(..) {
            assert!(channel == name && payload != "rolled back", "client {} heard {channel}: {payload}", self.id);
            self.done.heard.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn notify(&mut self, at: u8) {
        let to = self.random.below(self.channels.len()) as u64;
        if self.random.one_in(4) {
            self.client.query(&format!("begin; notify soak_{to}, 'rolled back'; rollback"));
            return;
        }
        let payload = format!("{} {} {at}", self.id, self.rounds);
        let (listening, changes) = {
            let channel = self.channel(to);
            (channel.listening, channel.changes)
        };
        self.client.query(&format!("notify soak_{to}, '{payload}'"));
        let mut channel = self.channel(to);
        if listening && channel.changes == changes {
            channel.owed.push(payload);
        }
    }

    /// All clients call their statement the same, and none means the same.
    fn named(&mut self) {
        let text = format!("select 'statement of {} {}'", self.id, self.rounds % 3);
        let close = crate::support::client::close(b'S', "s");
        self.client.exchange(&[close, parse("s", &text), sync()].concat());
        let answer = self.client.exchange(&[bind("", "s", &[]), execute("", 0), sync()].concat());
        assert_eq!(first_row(&answer), text[8..text.len() - 1], "{answer:?}");
    }

    /// Only who asks for it is cancelled; all other statements of all clients succeed, or the test fails.
    fn cancel(&mut self) {
        self.client.send(&query("select pg_sleep(0.02)"));
        let mut request = vec![0, 0, 0, 0, 4, 210, 22, 46];
        request.extend(&self.client.key);
        let len = u32::try_from(request.len()).unwrap();
        request[..4].copy_from_slice(&len.to_be_bytes());
        std::thread::sleep(Duration::from_millis(self.random.below(25) as u64));
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(&request).unwrap();
        self.done.cancels.fetch_add(1, Ordering::Relaxed);
        let answer = self.client.read_until(b"Z").unwrap();
        // The end of the connection says that the request has been carried out: what comes now is not meant.
        let _ = stream.read(&mut [0]);
        if let Some(error) = answer.iter().find(|message| message.tag == b'E') {
            assert_eq!(error.code(), "57014");
            self.done.canceled.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Leaves without a word, in the middle of something, and comes back as if it were new.
    fn come_back(&mut self) {
        self.done.left.fetch_add(1, Ordering::Relaxed);
        match self.random.below(4) {
            0 => self.client.send(&query("begin; set soak.tenant = 'left'; select pg_advisory_lock(1000000)")[..20]),
            1 => self.client.send(&query("begin; set role soak_0; create temp table soaked (n int)")),
            2 => self.client.send(&query("set soak.tenant = 'left behind'")),
            _ => {}
        }
        {
            let mut channel = self.channel(self.id);
            *channel = Channel { changes: channel.changes + 1, ..Channel::default() };
        }
        self.mine = Mine::new(self.id);
        self.client = login(self.port, &self.mine.name);
    }
}

fn login(port: u16, name: &str) -> Client {
    let mut client = Client::login(port, &[("user", "postgres"), ("database", "postgres"), ("application_name", name)]);
    client.query("set timezone = 'UTC'");
    client
}

fn first_row(answer: &[Message]) -> String {
    let row = answer.iter().find(|message| message.tag == b'D').unwrap_or_else(|| panic!("{answer:?}"));
    row.columns()[0].clone().unwrap()
}

#[test]
fn soak_of_many_clients_with_state_of_their_own_on_few_servers() {
    let seconds = std::env::var("SOAK_SECONDS").map_or(5, |text| text.parse().expect("SOAK_SECONDS is a number"));
    let server = cluster(&Options::default());
    let mut direct = Client::new(server.port());
    for role in 0..ROLES {
        direct.query(&format!("create role soak_{role} superuser"));
    }
    let ambassador = Ambassador::start(&[url(&server).as_str(), "--pool-size", SERVERS, "-s", "paranoid=true"]);
    let done = Done::default();
    let channels: Vec<Mutex<Channel>> = (0..CLIENTS).map(|_| Mutex::default()).collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for id in 0..CLIENTS {
            let (port, done, channels) = (ambassador.port, &done, &channels);
            scope.spawn(move || {
                let mut client = Soaked::new(id, port, done, channels);
                while Instant::now() < end {
                    client.step();
                }
                client.look();
                client.hear();
                // Some say goodbye, some just close.
                if id % 2 == 0 {
                    client.client.send(b"X\0\0\0\x04");
                }
            });
        }
    });
    wait_until("no client keeps a server", || ambassador.show("PINS").is_empty());
    assert!(ambassador.metric("pg_ambassador_pins_total") > 0.0, "nothing was ever pinned");
    assert_eq!(ambassador.metric("pg_ambassador_pinned_clients"), 0.0);
    assert_eq!(ambassador.metric("pg_ambassador_leaks_total"), 0.0);
    wait_until("nothing is locked", || {
        direct.value("select count(*) from pg_locks where locktype = 'advisory'") == "0"
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{seconds} s: {} steps, {} times left and came back, {} cancel requests, of which {} came in time, {} notifications heard, none lost",
        count(&done.steps),
        count(&done.left),
        count(&done.cancels),
        count(&done.canceled),
        count(&done.heard)
    );
}
