//! A session between a client and servers, moved by hand: what the relay does, without a socket.

use super::{Model, Random};
use pg_ambassador::session::{
    Interners, Next, Outbound, Params, PoolMode, ServerSide, Session, Violation, WHOLE_FRAME,
};

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The client said goodbye.
    Goodbye,
    /// Somebody broke the protocol, or a server ended the session.
    Violation(Violation),
}

/// What is known of a server, and the server.
struct Backend {
    side: ServerSide,
    model: Option<Model>,
    /// What it has answered and the session has not read.
    answers: Vec<u8>,
}

/// One client's session.
pub struct Rig {
    shared: Interners,
    session: Session,
    /// The one that is leased comes first, if one is.
    backends: Vec<Backend>,
    leased: bool,
    quiet: bool,
    waited: bool,
    released: bool,
    client_in: Vec<u8>,
    server_in: Vec<u8>,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
    ended: Option<Ended>,
    random: Random,
}

impl Rig {
    /// A session in front of servers that answer, some of which have served another client before.
    pub fn with_models(random: &mut Random) -> Self {
        let backends = 1 + random.below(3);
        let mut rig = Self::new(PoolMode::Transaction, backends, 1 + random.below(5), random.next());
        for backend in &mut rig.backends {
            backend.model = Some(Model::default());
        }
        if random.one_in(2) {
            // Somebody was here before, with the same names for other statements.
            let before = super::client_stream(&mut Random::new(random.next()), 12);
            rig.session = session(7, &rig.shared, PoolMode::Transaction, random.one_in(2));
            rig.client_sends(&before);
            while rig.server_answers(usize::MAX) {}
            if rig.leased || rig.ended.is_some() {
                return Self::with_models(random);
            }
            rig.client_in.clear();
            (rig.quiet, rig.to_client) = (false, Vec::new());
        }
        rig.session = session(8, &rig.shared, PoolMode::Transaction, random.one_in(3));
        rig
    }

    /// A session in front of servers that do not answer by themselves.
    pub fn new(mode: PoolMode, backends: usize, prepared_limit: usize, seed: u64) -> Self {
        let shared = Interners::default();
        let backends = (0..backends)
            .map(|_| {
                let defaults = shared.settings.intern::<&str, &str>([]);
                let side = ServerSide::new(defaults, Params::default(), prepared_limit);
                Backend { side, model: None, answers: Vec::new() }
            })
            .collect();
        Self {
            session: session(8, &shared, mode, false),
            shared,
            backends,
            leased: false,
            quiet: false,
            waited: false,
            released: false,
            client_in: Vec::new(),
            server_in: Vec::new(),
            to_server: Vec::new(),
            to_client: Vec::new(),
            ended: None,
            random: Random::new(seed),
        }
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }

    /// Whether the client's bytes had to wait for answers at some time.
    pub fn has_waited(&self) -> bool {
        self.waited
    }

    /// Whether a server was given back at some time.
    pub fn has_released(&self) -> bool {
        self.released
    }

    /// What the client was sent.
    pub fn client_reads(&self) -> &[u8] {
        &self.to_client
    }

    /// What servers were sent.
    pub fn servers_read(&self) -> &[u8] {
        &self.to_server
    }

    /// What is left to do although everything was sent and answered.
    pub fn unfinished(&self) -> Option<String> {
        if !self.client_in.is_empty() {
            return Some(format!(
                "the client's bytes wait: {:?} quiet={}",
                self.client_in.escape_ascii().to_string(),
                self.quiet
            ));
        }
        if !self.server_in.is_empty() {
            return Some(format!("the server's bytes wait: {:?}", self.server_in.escape_ascii().to_string()));
        }
        let half = self.backends.iter().any(|b| b.model.as_ref().is_some_and(Model::is_mid_message));
        half.then(|| "a server has half a message".to_owned())
    }

    /// The client sends this.
    pub fn client_sends(&mut self, bytes: &[u8]) {
        self.client_in.extend(bytes);
        self.handle_client();
    }

    fn handle_client(&mut self) {
        let mut attached = false;
        while !self.quiet && self.ended.is_none() {
            let input = std::mem::take(&mut self.client_in);
            let (mut head, mut answer) = (Vec::new(), Vec::new());
            let mut out = Outbound::new(&input, &mut head);
            let leased = if self.leased { self.backends.first_mut() } else { None };
            let handled = match leased {
                Some(backend) => {
                    if std::mem::take(&mut attached) {
                        self.session.attach(&mut backend.side, &mut out);
                    }
                    let handled =
                        self.session.on_client(&self.shared, &input, Some(&mut backend.side), &mut out, &mut answer);
                    for part in out.parts() {
                        self.to_server.extend(part);
                        if let Some(model) = &mut backend.model {
                            model.feed(part, &mut backend.answers);
                        }
                    }
                    handled
                }
                None => {
                    let handled = self.session.on_client(&self.shared, &input, None, &mut out, &mut answer);
                    assert!(out.is_empty(), "bytes for a server that is not there");
                    handled
                }
            };
            self.to_client.extend(answer);
            match handled {
                Err(violation) => {
                    self.ended = Some(Ended::Violation(violation));
                    return;
                }
                Ok(taken) => {
                    self.client_in = input[taken.bytes..].to_vec();
                    match taken.next {
                        Next::Input => {
                            // What waits is bounded, whatever the client sends (see net::scratch).
                            assert!(self.client_in.len() < WHOLE_FRAME, "{} bytes wait", self.client_in.len());
                            return;
                        }
                        Next::Quiet => (self.quiet, self.waited) = (true, true),
                        // No server has one here.
                        Next::Fence => unreachable!("a fence"),
                        Next::Channels => {
                            let names = self.session.take_wanted_channels();
                            let heard = self.random.one_in(2);
                            self.session.channels_are_heard(names, heard);
                        }
                        Next::End => self.ended = Some(Ended::Goodbye),
                        Next::Server => {
                            assert!(!self.leased, "asks for a second server");
                            let other = self.random.below(self.backends.len());
                            self.backends.swap(0, other);
                            (self.leased, attached) = (true, true);
                        }
                    }
                }
            }
        }
    }

    /// The session reads at most so many bytes of the server's answers; false if there are none.
    pub fn server_answers(&mut self, most: usize) -> bool {
        if !self.leased || self.ended.is_some() {
            return false;
        }
        let answers = &mut self.backends[0].answers;
        let piece: Vec<u8> = answers.drain(..most.min(answers.len())).collect();
        if piece.is_empty() {
            return false;
        }
        self.server_sends(&piece);
        true
    }

    /// The server sends this.
    pub fn server_sends(&mut self, bytes: &[u8]) {
        if !self.leased || self.ended.is_some() {
            return;
        }
        self.server_in.extend(bytes);
        let input = std::mem::take(&mut self.server_in);
        let backend = &mut self.backends[0];
        let mut head = Vec::new();
        let mut out = Outbound::new(&input, &mut head);
        let handled = self.session.on_server(&input, &mut backend.side, &mut out);
        for part in out.parts() {
            self.to_client.extend(part);
        }
        match handled {
            Ok(taken) => {
                self.server_in = input[taken.bytes..].to_vec();
                assert!(self.server_in.len() <= WHOLE_FRAME, "{} bytes wait", self.server_in.len());
                self.after_server_input();
            }
            Err(Violation::Ended(report)) => {
                let _ = self.session.on_server_lost(&mut backend.side, &report, &mut self.to_client);
                self.ended = Some(Ended::Violation(Violation::Ended(report)));
            }
            Err(violation) => self.ended = Some(Ended::Violation(violation)),
        }
    }

    fn after_server_input(&mut self) {
        let side = &self.backends[0].side;
        if side.is_busy() {
            if self.quiet && side.in_copy_in() {
                self.quiet = false;
                self.handle_client();
            }
            return;
        }
        if self.session.may_release(side) && self.server_in.is_empty() {
            assert!(self.backends[0].answers.is_empty(), "released a server that still answers");
            (self.leased, self.released) = (false, true);
        }
        if self.quiet {
            self.quiet = false;
            self.handle_client();
        }
    }
}

/// A session that may have settings, which its servers then have to be given.
fn session(id: u64, shared: &Interners, mode: PoolMode, with_settings: bool) -> Session {
    let wanted: &[(&str, &str)] = if with_settings { &[("application_name", "fuzz"), ("a.b", "x")] } else { &[] };
    let settings = shared.settings.intern(wanted.iter().copied());
    Session::new(id, mode, settings, &Params::default())
}
