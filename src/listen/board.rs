//! Who listens to what, and what of it the connection has been told. Pure.

use super::{Channel, Mailbox};
use crate::net::budget::{Budget, Kept};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Bytes of statements that go into one request, about: enough to make the round trip count for little, and little
/// enough that others need not wait long behind it.
pub(super) const REQUEST: usize = 64 * 1024;

/// Who listens to what, and what of it the connection has been told.
#[derive(Debug, Default)]
pub(super) struct Board {
    channels: HashMap<Channel, Entry>,
    /// Channels of each client, by the id of its mailbox.
    clients: HashMap<u64, usize>,
    /// Channels that the server still tells us of, and that nobody listens to any more.
    stale: BTreeSet<Channel>,
    /// Channels that somebody listens to.
    heard: usize,
    /// What waits for clients counts there.
    budget: Arc<Budget>,
}

/// A channel.
#[derive(Debug, Default)]
struct Entry {
    /// By the id of their mailbox, with the opening since which they hear it.
    subscribers: HashMap<u64, (Arc<Mailbox>, u64)>,
    /// The server tells this connection of it.
    listened: bool,
}

impl Board {
    /// Nobody listens. What will wait for clients counts in `budget`.
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Channels that somebody listens to.
    pub(super) fn channels(&self) -> usize {
        self.heard
    }

    /// Clients that listen to something.
    pub(super) fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Whether this client listens to something.
    pub(super) fn has_client(&self, id: u64) -> bool {
        self.clients.contains_key(&id)
    }

    /// Whether there are channels to UNLISTEN.
    pub(super) fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Whether the server has to be asked for this channel.
    pub(super) fn needs_listen(&self, channel: &Channel) -> bool {
        !self.channels.get(channel).is_some_and(|entry| entry.listened)
    }

    /// A client hears this channel from now on, which it has opened with this opening.
    pub(super) fn add(&mut self, channel: &Channel, mailbox: &Arc<Mailbox>, opening: u64) {
        let entry = self.channels.entry(Arc::clone(channel)).or_default();
        let was_unheard = entry.subscribers.is_empty();
        if entry.subscribers.insert(mailbox.id, (Arc::clone(mailbox), opening)).is_none() {
            *self.clients.entry(mailbox.id).or_default() += 1;
            self.heard += usize::from(was_unheard);
            self.stale.remove(channel);
        }
    }

    /// A client does not hear this channel any more.
    pub(super) fn remove(&mut self, channel: &Channel, id: u64) {
        let Some(entry) = self.channels.get_mut(channel) else { return };
        if entry.subscribers.remove(&id).is_none() {
            return;
        }
        if let Some(count) = self.clients.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.clients.remove(&id);
            }
        }
        if entry.subscribers.is_empty() {
            self.heard -= 1;
            if entry.listened {
                self.stale.insert(Arc::clone(channel));
            } else {
                self.channels.remove(channel);
            }
        }
    }

    /// The server tells the connection of this channel from now on, or not any more.
    pub(super) fn set_listened(&mut self, channel: &Channel, listened: bool) {
        let entry = self.channels.entry(Arc::clone(channel)).or_default();
        entry.listened = listened;
        match (listened, entry.subscribers.is_empty()) {
            (true, true) => drop(self.stale.insert(Arc::clone(channel))),
            (false, true) => {
                self.channels.remove(channel);
                self.stale.remove(channel);
            }
            (_, false) => {}
        }
    }

    /// Somebody is about to listen to a channel that the server tells us of.
    pub(super) fn keep(&mut self, channel: &Channel) {
        self.stale.remove(channel);
    }

    /// Some channels to UNLISTEN, as many as go into one request behind `size` bytes.
    pub(super) fn take_stale(&mut self, mut size: usize) -> Vec<Channel> {
        let mut taken = Vec::new();
        while size < REQUEST
            && let Some(channel) = self.stale.pop_first()
        {
            size += UNLISTEN.len() + channel.len() + QUOTES;
            taken.push(channel);
        }
        taken
    }

    /// The connection is gone, and with it everything that the server was told. Gives what a new one has to LISTEN to, in
    /// requests.
    pub(super) fn start_over(&mut self) -> Vec<Vec<Channel>> {
        self.stale.clear();
        self.channels.retain(|_, entry| {
            entry.listened = false;
            !entry.subscribers.is_empty()
        });
        let (mut requests, mut size) = (Vec::new(), REQUEST);
        for channel in self.channels.keys() {
            if size >= REQUEST {
                requests.push(Vec::new());
                size = 0;
            }
            size += LISTEN.len() + channel.len() + QUOTES;
            if let Some(request) = requests.last_mut() {
                request.push(Arc::clone(channel));
            }
        }
        requests
    }

    /// Nobody will get anything any more, and everybody must know.
    pub(super) fn abandon(&self) {
        self.channels.values().flat_map(|entry| entry.subscribers.values()).for_each(|(mailbox, _)| mailbox.abandon());
    }

    /// Gives a frame to all who hear its channel; the number of those who took it.
    pub(super) fn deliver(&self, channel: &[u8], frame: &[u8]) -> usize {
        let Some((channel, entry)) = self.channels.get_key_value(channel) else { return 0 };
        if entry.subscribers.is_empty() {
            return 0;
        }
        let frame = Arc::new(Kept::new(frame, &self.budget));
        entry.subscribers.values().filter(|(mailbox, opening)| mailbox.push(channel, *opening, &frame)).count()
    }
}

const LISTEN: &str = "LISTEN ";
const UNLISTEN: &str = "UNLISTEN ";
const NOTIFY: &str = "NOTIFY ";
/// Bytes around a name: quotes and semicolon.
const QUOTES: usize = 3;
/// The longest name: `NAMEDATALEN` less its end.
const LONGEST: usize = 63;

/// Whether a channel can have this name. Another one would end the statement, or be refused by the server and take all
/// statements of its request with it.
pub(super) fn is_name(channel: &[u8]) -> bool {
    (1..=LONGEST).contains(&channel.len()) && !channel.contains(&0)
}

/// LISTEN, UNLISTEN and NOTIFY for these channels, as one query.
pub(super) fn statements(listen: &[Channel], unlisten: &[Channel], notify: &[Channel]) -> Vec<u8> {
    let mut sql = Vec::new();
    for (verb, channels) in [(LISTEN, listen), (UNLISTEN, unlisten), (NOTIFY, notify)] {
        for channel in channels {
            sql.extend_from_slice(verb.as_bytes());
            quote(&mut sql, channel);
            sql.push(b';');
        }
    }
    sql
}

/// Appends a name as an identifier. In no encoding that PostgreSQL takes from clients is a quote part of another
/// character.
fn quote(sql: &mut Vec<u8>, name: &[u8]) {
    sql.push(b'"');
    for &byte in name {
        if byte == b'"' {
            sql.push(b'"');
        }
        sql.push(byte);
    }
    sql.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn channel(name: &str) -> Channel {
        name.as_bytes().into()
    }

    fn mailbox(channels: &[&str]) -> Arc<Mailbox> {
        let mailbox = Mailbox::new(Waker::noop().clone());
        mailbox.open(channels.iter().map(|name| channel(name)).collect());
        mailbox
    }

    #[test]
    fn names_are_quoted_whatever_is_in_them() {
        let sql = |listen: &[&str], unlisten: &[&str]| {
            let channels = |names: &[&str]| names.iter().map(|name| channel(name)).collect::<Vec<_>>();
            String::from_utf8(statements(&channels(listen), &channels(unlisten), &[])).unwrap()
        };
        for (listen, unlisten, expected) in [
            (&["a"][..], &[][..], r#"LISTEN "a";"#),
            (&["We\"ird; drop", "b c"], &["x"], r#"LISTEN "We""ird; drop";LISTEN "b c";UNLISTEN "x";"#),
            (&["\"", "\\'$$--", "é"], &[], r#"LISTEN """";LISTEN "\'$$--";LISTEN "é";"#),
            (&[], &[], ""),
        ] {
            assert_eq!(sql(listen, unlisten), expected);
        }
        let long = [b'x'; 64];
        assert!(is_name(&long[..63]) && is_name(b"\xff;\n"));
        for bad in [&b""[..], &long, b"a\0b"] {
            assert!(!is_name(bad));
        }
    }

    #[test]
    fn a_frame_reaches_each_who_hears_its_channel_and_nobody_else() {
        let mut board = Board::default();
        let (both, one) = (mailbox(&["a", "b"]), mailbox(&["b"]));
        board.add(&channel("a"), &both, 1);
        board.add(&channel("b"), &both, 1);
        board.add(&channel("b"), &one, 1);
        board.add(&channel("b"), &one, 1);
        assert_eq!((board.channels(), board.clients()), (2, 2));
        assert_eq!(board.deliver(b"a", b"1"), 1);
        assert_eq!(board.deliver(b"b", b"2"), 2);
        assert_eq!(board.deliver(b"c", b"3"), 0);
        let (to_both, to_one) = (both.take().unwrap(), one.take().unwrap());
        assert_eq!((to_both.len(), to_one.len()), (2, 1));
        assert!(Arc::ptr_eq(&to_both[1], &to_one[0]), "one copy for all");
        board.remove(&channel("b"), both.id);
        board.remove(&channel("z"), both.id);
        assert_eq!(board.deliver(b"b", b"4"), 1);
        board.abandon();
        assert!(both.take().is_err() && one.take().is_err(), "both have a channel left");
    }

    #[test]
    fn a_channel_that_nobody_hears_is_unlistened_unless_somebody_comes_back() {
        let mut board = Board::default();
        let (a, client) = (channel("a"), mailbox(&["a"]));
        assert!(board.needs_listen(&a));
        board.set_listened(&a, true);
        board.add(&a, &client, 1);
        assert!(!board.needs_listen(&a) && !board.has_stale());
        board.remove(&a, client.id);
        assert!(board.has_stale() && !board.has_client(client.id));
        board.add(&a, &client, 1);
        assert!(!board.has_stale());
        board.remove(&a, client.id);
        assert_eq!(board.take_stale(0), [Arc::clone(&a)]);
        board.set_listened(&a, false);
        assert!(board.needs_listen(&a) && board.channels.is_empty());
    }

    #[test]
    fn who_has_stopped_and_begun_again_gets_nothing_by_the_entry_from_before() {
        let mut board = Board::default();
        let (a, client) = (channel("a"), mailbox(&["a"]));
        board.add(&a, &client, 1);
        // The client's task has done both, and the board knows of neither.
        client.shut(vec![Arc::clone(&a)]);
        let (_, opening) = client.open(vec![Arc::clone(&a)]);
        assert_eq!(board.deliver(b"a", b"old"), 0);
        board.remove(&a, client.id);
        board.add(&a, &client, opening);
        assert_eq!(board.deliver(b"a", b"new"), 1);
        assert_eq!(client.take().unwrap(), [Arc::new(Kept::new(b"new", &Arc::default()))]);
    }

    #[test]
    fn after_a_loss_everything_that_is_heard_is_asked_for_again() {
        let mut board = Board::default();
        let client = mailbox(&[]);
        for n in 0..3_000 {
            let channel: Channel = format!("{n:063}").into_bytes().into();
            board.set_listened(&channel, true);
            board.add(&channel, &client, 1);
            if n % 3 == 0 {
                board.remove(&channel, client.id);
            }
        }
        let requests = board.start_over();
        let asked: Vec<&Channel> = requests.iter().flatten().collect();
        assert_eq!((asked.len(), board.channels(), board.has_stale()), (2_000, 2_000, false));
        assert!(asked.iter().all(|channel| board.needs_listen(channel)));
        assert!(
            requests.iter().all(|request| statements(request, &[], &[]).len() < REQUEST + 100),
            "requests are bounded"
        );
        assert!(requests.len() < 10);
    }
}
