//! What has come for one client and was not yet given to it.

use super::Channel;
use crate::net::budget::Kept;
use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Bytes of notifications that may wait for one client. PostgreSQL itself has no limit for one session, but for all of
/// them together: a queue of 8 GB (`max_notify_queue_pages`). Who is this far behind does not read at all.
pub const LIMIT: usize = 16 * 1024 * 1024;
/// The same while the buffers of all clients together are at their limit (faults.md F20).
const LIMIT_WITHOUT_ROOM: usize = LIMIT / 16;

/// Why a client has missed notifications: it must not go on as if nothing was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Missed {
    /// It left so many lying that they had to be dropped.
    #[error("more notifications were not taken than may be kept")]
    Overflow,
    /// Nobody listens for it any more: a bug of ours.
    #[error("a bug of the pooler ended the listening connection's task")]
    Abandoned,
}

/// A client's mail: whole NotificationResponse frames, in the order in which they came.
///
/// It belongs to the client's task and to the listening connection's, wherever they run; the lock is held for a push or a
/// pop, never while waiting.
#[derive(Debug)]
pub struct Mailbox {
    /// Unique in this process.
    pub(super) id: u64,
    /// There is something to take, if only the news that something was missed.
    has_mail: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    mail: VecDeque<(Channel, Arc<Kept>)>,
    /// Of `mail`.
    bytes: usize,
    missed: Option<Missed>,
    /// What its client listens to, and since which opening. Kept here, so that nothing is delivered any more from the moment
    /// at which it stops, and not only when the listening connection's task comes to know; nor what is for a channel that
    /// was shut and opened again by now.
    channels: HashMap<Channel, u64>,
    /// How often channels were opened.
    openings: u64,
    waker: Option<Waker>,
}

impl Inner {
    fn miss(&mut self, why: Missed) {
        self.missed.get_or_insert(why);
        self.mail = VecDeque::new();
        self.bytes = 0;
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Mailbox {
    /// An empty one whose client is reached by `waker`.
    pub(super) fn new(waker: Waker) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            has_mail: AtomicBool::new(false),
            inner: Mutex::new(Inner { waker: Some(waker), ..Inner::default() }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is something to take. Costs one load.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.has_mail.load(Ordering::Acquire)
    }

    /// Replaces what wakes the client when its mailbox is not empty any more.
    pub fn set_waker(&self, waker: &Waker) {
        let mut inner = self.inner();
        if !inner.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            inner.waker = Some(waker.clone());
        }
    }

    /// Takes everything.
    ///
    /// # Errors
    /// Something was missed. The client must be told, and its connection end; nothing more will come.
    pub fn take(&self) -> Result<VecDeque<Arc<Kept>>, Missed> {
        let mut inner = self.inner();
        if let Some(missed) = inner.missed {
            return Err(missed);
        }
        self.has_mail.store(false, Ordering::Release);
        inner.bytes = 0;
        Ok(std::mem::take(&mut inner.mail).into_iter().map(|(_, frame)| frame).collect())
    }

    /// Moves whole frames to the end of `out` until that is `enough` bytes long or there are no more; gives their number.
    /// What is left stays, and [`Mailbox::has_mail`] stays true: the client is not woken for it again.
    ///
    /// # Errors
    /// As [`Mailbox::take`].
    pub fn take_into(&self, out: &mut Vec<u8>, enough: usize) -> Result<usize, Missed> {
        let mut inner = self.inner();
        if let Some(missed) = inner.missed {
            return Err(missed);
        }
        let mut taken = 0;
        while out.len() < enough
            && let Some((_, frame)) = inner.mail.pop_front()
        {
            out.extend_from_slice(&frame);
            inner.bytes -= frame.len();
            taken += 1;
        }
        if inner.mail.is_empty() {
            // A burst must not leave its memory with every client that it reached.
            inner.mail = VecDeque::new();
            self.has_mail.store(false, Ordering::Release);
        }
        Ok(taken)
    }

    /// Why something was missed, if it was.
    pub fn missed(&self) -> Option<Missed> {
        self.inner().missed
    }

    /// Nobody will deliver anything any more.
    pub(super) fn abandon(&self) {
        let mut inner = self.inner();
        inner.miss(Missed::Abandoned);
        self.ring(inner);
    }

    /// Wakes the client unless that was done for what it has not taken yet.
    fn ring(&self, inner: MutexGuard<'_, Inner>) {
        let waker = if self.has_mail.swap(true, Ordering::AcqRel) { None } else { inner.waker.clone() };
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Adds a frame of this channel, if the client has listened to it without a break since this opening; says whether it
    /// has.
    pub(super) fn push(&self, channel: &Channel, opening: u64, frame: &Arc<Kept>) -> bool {
        let mut inner = self.inner();
        if inner.missed.is_some() || inner.channels.get(channel) != Some(&opening) {
            return false;
        }
        let limit = if frame.budget().is_exhausted() { LIMIT_WITHOUT_ROOM } else { LIMIT };
        let fits = inner.bytes + frame.len() <= limit;
        if fits {
            inner.bytes += frame.len();
            inner.mail.push_back((Arc::clone(channel), Arc::clone(frame)));
        } else {
            inner.miss(Missed::Overflow);
        }
        self.ring(inner);
        fits
    }

    /// The channels of these that the client did not listen to; it does from now on. And the number of this opening.
    pub(super) fn open(&self, mut channels: Vec<Channel>) -> (Vec<Channel>, u64) {
        let mut inner = self.inner();
        inner.openings += 1;
        let opening = inner.openings;
        channels.retain(|channel| match inner.channels.entry(Arc::clone(channel)) {
            Entry::Occupied(_) => false,
            Entry::Vacant(vacant) => {
                vacant.insert(opening);
                true
            }
        });
        (channels, opening)
    }

    /// The channels of these that the client listened to; it does not any more, and what waits of them is dropped, as
    /// PostgreSQL drops what came for a session that has stopped listening in the meantime.
    pub(super) fn shut(&self, mut channels: Vec<Channel>) -> Vec<Channel> {
        let mut inner = self.inner();
        channels.retain(|channel| inner.channels.remove(channel).is_some());
        self.keep_mail(&mut inner, |open, channel| open.contains_key(channel));
        channels
    }

    /// Shuts the channels of these that were opened with this opening, and not again since.
    pub(super) fn undo(&self, mut channels: Vec<Channel>, opening: u64) {
        let mut inner = self.inner();
        channels.retain(|channel| inner.channels.get(channel) == Some(&opening));
        for channel in &channels {
            inner.channels.remove(channel);
        }
        self.keep_mail(&mut inner, |open, channel| open.contains_key(channel));
    }

    /// Puts what waits in another mailbox before a message of the channel `mark` in the place of what waits here before one,
    /// and drops the rest there. False, and nothing is changed, if one of them has none.
    pub(super) fn take_over(&self, other: &Self, mark: &[u8]) -> bool {
        // Both belong to the same client's task, and nobody else locks two.
        let (mut inner, mut from) = (self.inner(), other.inner());
        let position = |mail: &VecDeque<(Channel, Arc<Kept>)>| mail.iter().position(|(channel, _)| **channel == *mark);
        let (Some(here), Some(there)) = (position(&inner.mail), position(&from.mail)) else { return false };
        let mut mail = std::mem::take(&mut from.mail);
        from.bytes = 0;
        mail.truncate(there);
        inner.mail.drain(..=here);
        mail.append(&mut inner.mail);
        inner.bytes = mail.iter().map(|(_, frame)| frame.len()).sum();
        inner.mail = mail;
        other.has_mail.store(false, Ordering::Release);
        self.has_mail.store(!inner.mail.is_empty(), Ordering::Release);
        true
    }

    /// Drops what waits of these channels.
    pub(super) fn clear(&self, channels: &[Channel]) {
        self.keep_mail(&mut self.inner(), |_, channel| !channels.contains(channel));
    }

    fn keep_mail(&self, inner: &mut Inner, keep: impl Fn(&HashMap<Channel, u64>, &Channel) -> bool) {
        let Inner { mail, bytes, channels, .. } = inner;
        mail.retain(|(channel, frame)| {
            let keep = keep(channels, channel);
            *bytes -= if keep { 0 } else { frame.len() };
            keep
        });
        if mail.is_empty() && inner.missed.is_none() {
            self.has_mail.store(false, Ordering::Release);
        }
    }

    /// What the client listens to.
    pub(super) fn channels(&self) -> Vec<Channel> {
        self.inner().channels.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn channel(name: &str) -> Channel {
        name.as_bytes().into()
    }

    fn mailbox(channels: &[&str]) -> (Arc<Mailbox>, Arc<Bell>) {
        let bell = Arc::new(Bell::default());
        let mailbox = Mailbox::new(Arc::clone(&bell).into());
        mailbox.open(channels.iter().map(|name| channel(name)).collect());
        (mailbox, bell)
    }

    fn frame(bytes: &[u8]) -> Arc<Kept> {
        Arc::new(Kept::new(bytes, &Arc::default()))
    }

    #[test]
    fn mail_is_taken_in_order_and_its_client_woken_once() {
        let (mailbox, bell) = mailbox(&["a", "b"]);
        assert!(!mailbox.has_mail());
        for (name, bytes) in [("a", b"1"), ("b", b"2"), ("a", b"3")] {
            assert!(mailbox.push(&channel(name), 1, &frame(bytes)));
        }
        assert_eq!(bell.0.load(Ordering::Relaxed), 1);
        let mut out = Vec::new();
        assert_eq!(mailbox.take_into(&mut out, 2), Ok(2));
        assert!(mailbox.has_mail());
        assert_eq!(mailbox.take_into(&mut out, 100), Ok(1));
        assert_eq!((out.as_slice(), mailbox.has_mail()), (&b"123"[..], false));
        mailbox.push(&channel("b"), 1, &frame(b"4"));
        assert_eq!(bell.0.load(Ordering::Relaxed), 2);
        assert_eq!(mailbox.take().unwrap(), [frame(b"4")]);
        assert!(!mailbox.has_mail() && mailbox.take().unwrap().is_empty());
    }

    #[test]
    fn a_channel_that_was_shut_delivers_nothing_any_more() {
        let (mailbox, _) = mailbox(&["a", "b"]);
        mailbox.push(&channel("a"), 1, &frame(b"1"));
        mailbox.push(&channel("b"), 1, &frame(b"2"));
        assert_eq!(mailbox.shut(vec![channel("a"), channel("z")]), [channel("a")]);
        assert!(!mailbox.push(&channel("a"), 1, &frame(b"3")));
        assert_eq!(mailbox.take().unwrap(), [frame(b"2")]);
        mailbox.push(&channel("b"), 1, &frame(b"4"));
        mailbox.shut(vec![channel("b")]);
        assert!(!mailbox.has_mail());
        assert_eq!(mailbox.inner().bytes, 0);
    }

    #[test]
    fn a_channel_that_was_opened_again_delivers_nothing_from_before() {
        let (mailbox, _) = mailbox(&["a", "b"]);
        mailbox.shut(vec![channel("a")]);
        assert_eq!(mailbox.open(vec![channel("a"), channel("b")]), (vec![channel("a")], 2));
        assert!(!mailbox.push(&channel("a"), 1, &frame(b"old")));
        // Nor does what has failed from before shut it.
        mailbox.undo(vec![channel("a"), channel("b")], 1);
        assert!(mailbox.push(&channel("a"), 2, &frame(b"new")));
        assert!(!mailbox.push(&channel("b"), 1, &frame(b"none")));
        assert_eq!(mailbox.take().unwrap(), [frame(b"new")]);
    }

    #[test]
    fn one_mailbox_takes_over_from_another_at_the_mark_that_both_have() {
        let [(old, _), (new, _)] = [(); 2].map(|()| mailbox(&["a", "mark"]));
        let push = |mailbox: &Mailbox, mail: &[(&str, &[u8])]| {
            mail.iter().for_each(|(name, bytes)| assert!(mailbox.push(&channel(name), 1, &frame(bytes))));
        };
        push(&old, &[("a", b"1"), ("a", b"2")]);
        push(&new, &[("a", b"2"), ("mark", b"m"), ("a", b"3")]);
        assert!(!new.take_over(&old, b"mark"), "it has not come yet");
        push(&old, &[("mark", b"m"), ("a", b"3")]);
        assert!(new.take_over(&old, b"mark"));
        assert!(!old.has_mail());
        assert_eq!(new.take().unwrap(), [b"1", b"2", b"3"].map(|bytes| frame(bytes)));
        assert!(!new.take_over(&old, b"mark"));
    }

    #[test]
    fn a_full_mailbox_says_so_and_holds_nothing() {
        let (mailbox, bell) = mailbox(&["a"]);
        let half = frame(&vec![0; LIMIT / 2]);
        assert!(mailbox.push(&channel("a"), 1, &half) && mailbox.push(&channel("a"), 1, &half));
        assert!(mailbox.missed().is_none());
        assert!(!mailbox.push(&channel("a"), 1, &frame(b"x")));
        assert!(mailbox.missed().is_some() && mailbox.has_mail());
        assert_eq!(mailbox.take(), Err(Missed::Overflow));
        assert_eq!(mailbox.take_into(&mut Vec::new(), 1), Err(Missed::Overflow));
        assert!(!mailbox.push(&channel("a"), 1, &frame(b"y")));
        mailbox.shut(vec![channel("a")]);
        assert!(mailbox.has_mail(), "the news must not be lost");
        assert_eq!((Arc::strong_count(&half), bell.0.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn f20_while_there_is_no_room_a_mailbox_holds_less_and_what_it_let_go_makes_room() {
        let budget = crate::net::budget::Budget::new(LIMIT / 4);
        let [(one, _), (other, _)] = [(); 2].map(|()| mailbox(&["a"]));
        let mut sent = 0;
        let mail = loop {
            let mail = Arc::new(Kept::new(&[0; 8000], &budget));
            if budget.is_exhausted() {
                break mail;
            }
            assert!(one.push(&channel("a"), 1, &mail) && other.push(&channel("a"), 1, &mail));
            sent += 1;
        };
        assert!(sent * 8000 > LIMIT / 5, "what two have counts once");
        assert!(!one.push(&channel("a"), 1, &mail));
        assert_eq!(one.take(), Err(Missed::Overflow));
        assert_eq!(other.take().unwrap().len(), sent);
        drop(mail);
        assert_eq!(budget.taken(), 0);
    }
}
