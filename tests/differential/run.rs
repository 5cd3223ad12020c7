//! Plays a session and compares what came of it.

use super::DATABASES;
use super::generate::{ANSWER_OF_COPY, Ending, Session, Turn};
use crate::support::client::{Client, Message, message, query};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What a session was answered: one list a turn, and how it broke off, if it did.
#[derive(Debug)]
pub struct Outcome {
    answers: Vec<Vec<Message>>,
    /// What the last ReadyForQuery before each turn said, and behind the last one.
    pub states: Vec<u8>,
    /// The last reported value of each reported setting.
    reported: BTreeMap<String, String>,
    broken: Option<String>,
}

/// A server that has not noticed by then that its client is gone never will.
const NOTICED: Duration = Duration::from_secs(5);

/// Which of the two ways is played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Direct,
    Through,
}

/// Plays a session against a server.
pub fn play(session: &Session, way: Way, port: u16, database: &str) -> Outcome {
    let mut outcome = Outcome { answers: Vec::new(), states: vec![b'I'], reported: BTreeMap::new(), broken: None };
    let mut params = vec![("user", "postgres"), ("database", database)];
    params.extend(session.startup.iter().map(|(name, value)| (*name, value.as_str())));
    let mut client = match Client::try_login(port, &params) {
        Ok(client) => client,
        Err(error) => {
            outcome.broken = Some(format!("login: {error:?}"));
            return outcome;
        }
    };
    outcome.reported.extend(client.params.drain(..));
    let mut status = b'I';
    for turn in &session.turns {
        let mut answers = Vec::new();
        let in_copy = outcome.answers.last().and_then(|last| last.last()).is_some_and(|last| last.tag == b'G');
        let count = match turn.count {
            ANSWER_OF_COPY => 1 + usize::from(in_copy),
            count => count,
        };
        // A client that waits gives others the time to use its server: directly there are none.
        if way == Way::Through && !turn.pause.is_zero() {
            std::thread::sleep(turn.pause);
        }
        let result = take_turn(&mut client, turn, count, session.slice, &mut answers);
        outcome.note_reports(&answers);
        let answers = without_refusals(answers, &mut status);
        outcome.answers.push(answers.into_iter().map(Message::without_oids).map(without_pid).collect());
        outcome.states.push(status);
        if let Err(error) = result {
            use std::io::ErrorKind;
            // How the end of a connection shows itself is a matter of timing.
            let ended = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
            let ended = ended.contains(&error.kind());
            outcome.broken = Some(if ended { "closed".into() } else { error.to_string() });
            return outcome;
        }
    }
    end(client, session);
    outcome
}

impl Outcome {
    /// Keeps what was reported of settings.
    fn note_reports(&mut self, answers: &[Message]) {
        for message in answers.iter().filter(|message| message.tag == b'S') {
            let mut words = message.body.split(|&b| b == 0).map(|word| String::from_utf8_lossy(word).into_owned());
            self.reported.insert(words.next().unwrap(), words.next().unwrap());
        }
    }
}

fn take_turn(
    client: &mut Client,
    turn: &Turn,
    mut left: usize,
    slice: Option<usize>,
    answers: &mut Vec<Message>,
) -> std::io::Result<()> {
    for piece in turn.send.chunks(slice.unwrap_or(usize::MAX)) {
        client.try_send(piece)?;
    }
    while left > 0 {
        let message = client.read()?;
        left -= usize::from(turn.until.contains(&message.tag));
        answers.push(message);
    }
    Ok(())
}

fn end(mut client: Client, session: &Session) {
    let last = query(format!("select pg_sleep(0.01), 'unanswered {}'", session.seed));
    // Whatever becomes of it is nobody's business: the connection is closed right behind it.
    let _ = match session.ending {
        Ending::Polite => client.try_send(&message(b'X', b"")),
        Ending::Close => Ok(()),
        Ending::HalfMessage(len) => client.try_send(&last[..len.min(last.len() - 1)]),
        Ending::Unanswered => client.try_send(&last),
        Ending::InCopy => {
            let row = message(b'd', b"4711\tof a client that left\n");
            let copy = query(format!("copy s{}.t(v, s) from stdin", session.seed));
            client.try_send(&copy).and_then(|()| client.read_until(b"GZ")).and_then(|_| client.try_send(&row))
        }
    };
}

/// What a session has left in its database, once the server has noticed that it is gone.
pub fn left_behind(session: &Session, port: u16) -> Option<String> {
    let seed = session.seed;
    let look = format!(
        "select (select coalesce(string_agg(t::text, ' ' order by id), '') from s{seed}.t) || \
         (select count(*) from pg_prepared_xacts where gid like 'differential {seed} %' and database = current_database())"
    );
    let [direct, through] =
        DATABASES.map(|database| Client::login(port, &[("user", "postgres"), ("database", database)]));
    let mut looks = [direct, through];
    let start = Instant::now();
    loop {
        let [direct, through] = looks.each_mut().map(|client| format!("{:?}", client.try_query(&look)));
        if direct == through {
            return None;
        }
        if start.elapsed() > NOTICED {
            return Some(format!("left in the database, directly: {direct}\nthrough: {through}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Who has sent a notification is another process through the ambassador.
fn without_pid(mut message: Message) -> Message {
    if message.tag == b'A' {
        message.body[..4].fill(0);
    }
    message
}

/// Within a failed transaction PostgreSQL refuses all but its end; which of several possible refusals comes depends on
/// the order of its checks. A statement that would have to be prepared again on another server cannot be: it is refused at
/// that, before whatever else would be wrong with its use. So of a batch that begins and ends in a failed transaction only
/// its end is compared.
fn without_refusals(messages: Vec<Message>, status: &mut u8) -> Vec<Message> {
    let (mut kept, mut batch) = (Vec::new(), Vec::new());
    for message in messages {
        let ready = (message.tag == b'Z').then(|| message.body[0]);
        batch.push(message);
        if let Some(now) = ready {
            if *status == b'E' && now == b'E' {
                batch.retain(|m| m.tag == b'Z');
            }
            kept.append(&mut batch);
            *status = now;
        }
    }
    kept.append(&mut batch);
    kept
}

impl Outcome {
    /// The first difference, told for people; none if there is none.
    pub fn difference(session: &Session, direct: &Self, through: &Self) -> Option<String> {
        for (at, turn) in session.turns.iter().enumerate() {
            let (a, b) = (direct.answers.get(at), through.answers.get(at));
            if a.is_some() && a == b {
                continue;
            }
            if a != b {
                let history: Vec<&str> = session.turns[..at].iter().map(|turn| turn.text.as_str()).collect();
                // What both have in common is told by its tags alone.
                let common = match (a, b) {
                    (Some(a), Some(b)) => a.iter().zip(b).take_while(|(a, b)| a == b).count(),
                    _ => 0,
                };
                let short = |answers: Option<&Vec<Message>>| {
                    let text = |(at, m): (usize, &Message)| match at < common {
                        true => char::from(m.tag).to_string(),
                        false => format!(" {m:?}").chars().take(240).collect(),
                    };
                    answers.map(|list| list.iter().enumerate().map(text).take(common + 12).collect::<String>())
                };
                let (a, b) = (short(a), short(b));
                return Some(format!(
                    "login with {:?}, after\n  {}\nturn {at} (slices of {:?}): {}\n  direct:  {a:?} {:?}\n  through: {b:?} {:?}",
                    session.startup,
                    history.join("\n  "),
                    session.slice,
                    turn.text,
                    direct.broken,
                    through.broken,
                ));
            }
            if a.is_none() {
                break;
            }
        }
        if direct.broken != through.broken {
            return Some(format!("direct: {:?}, through: {:?}", direct.broken, through.broken));
        }
        (direct.reported != through.reported)
            .then(|| format!("reported at the end, directly: {:?}\nthrough: {:?}", direct.reported, through.reported))
    }
}
