//! When a credential is used, renewed and given up. Pure: time and chance are arguments.
//!
//! What is held is used until shortly before its end. It is renewed long before that, and the old one stays until the new
//! one is there. Failures are retried after growing pauses. What a server refused is fetched anew, once, then after growing
//! pauses too.

use std::time::{Duration, Instant, SystemTime};

/// The first pause after a failed fetch, and the longest (faults.md F17).
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Where a server refuses also what was fetched because it had refused the one before: how long until a refusal may cause
/// another such fetch, and the longest such time. With the pools' own pauses that makes five logins in the first minute
/// (faults.md I17).
const REFUSED: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(600));
/// The longest time before its end in which a credential is not used any more: clocks differ, and logins take time.
const MARGIN: Duration = Duration::from_secs(60);
/// The same as a part of its life, for those that live short. 900 s, an RDS token's life, has the whole margin.
const MARGIN_PART: u32 = 15;
/// A credential that nobody has asked for in this time is not renewed.
const UNUSED: Duration = Duration::from_secs(3600);

/// A moment on both clocks. One stands still while the machine sleeps, the other can be set: what ends by either has ended
/// (faults.md F29).
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// The clock that never goes back.
    pub mono: Instant,
    /// The clock of the world.
    pub wall: SystemTime,
}

impl Now {
    /// This moment.
    pub fn read() -> Self {
        Self { mono: Instant::now(), wall: SystemTime::now() }
    }
}

/// When in its life a credential is renewed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Renewal {
    /// The part of its life after which that happens at the earliest.
    pub earliest: f64,
    /// And at the latest: chance decides, so that many do not move as one.
    pub latest: f64,
    /// It happens at least so long before the end, unless that were before half of its life.
    pub before_end: Duration,
}

impl Renewal {
    /// For RDS tokens, which are signed here and live 900 s: after 600 to 660 s.
    pub const SIGNED: Self = Self { earliest: 600.0 / 900.0, latest: 660.0 / 900.0, before_end: Duration::ZERO };
    /// For all that is fetched from elsewhere: after 75 to 80 % of its life, or 5 minutes before the end.
    pub const FETCHED: Self = Self { earliest: 0.75, latest: 0.8, before_end: Duration::from_secs(300) };
}

/// How long what was fetched is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Until it is refused.
    Forever,
    /// Until then.
    Until(SystemTime),
    /// Until it is refused, but what it comes from changes without a word: it is looked at again after this long.
    Watched(Duration),
}

/// What is held, without the secret itself.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Differs from that of every other credential of this source.
    pub serial: u64,
    /// When it was fetched.
    pub since: Instant,
    /// When it ends, less the margin.
    pub end: Option<Now>,
    /// When it ends, as its maker says.
    pub expires: Option<SystemTime>,
    renew_at: Option<Instant>,
    refused: bool,
}

impl Held {
    /// Whether a server has refused it, and another is to be fetched.
    pub fn is_refused(&self) -> bool {
        self.refused
    }
}

/// What somebody gets who asks for a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// What is held.
    Use,
    /// Whatever the fetch brings that is to begin now, or has begun.
    Wait,
    /// Nothing: the last fetch has failed, and it is not yet time for another.
    Fail,
}

/// When the next fetch is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Now.
    Now,
    /// Then.
    At(Instant),
    /// When somebody asks.
    WhenAsked,
}

/// What came of a fetch that brought something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// It is another credential.
    New,
    /// It is the one that is held.
    Same,
    /// It has ended already, or will at once.
    Expired,
}

/// One credential's course.
#[derive(Debug)]
pub struct Course {
    renewal: Renewal,
    held: Option<Held>,
    serials: u64,
    asked: Option<Instant>,
    fetching: bool,
    failures: u32,
    retry_at: Option<Instant>,
    /// When a refusal last caused a fetch, and how long the next one has to wait for another.
    refusal: Option<(Instant, Duration)>,
}

impl Course {
    /// Nothing is held yet.
    pub fn new(renewal: Renewal) -> Self {
        Self {
            renewal,
            held: None,
            serials: 0,
            asked: None,
            fetching: false,
            failures: 0,
            retry_at: None,
            refusal: None,
        }
    }

    /// What is held, good or not.
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Whether what is held may still be presented.
    pub fn is_good(&self, now: Now) -> bool {
        self.held.is_some_and(|held| held.end.is_none_or(|end| now.mono < end.mono && now.wall < end.wall))
    }

    /// How many fetches in a row have failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Somebody wants to log in.
    pub fn ask(&mut self, now: Now) -> Answer {
        self.asked = Some(now.mono);
        let refused = self.held.is_some_and(|held| held.refused);
        if self.is_good(now) && !refused {
            return Answer::Use;
        }
        match self.due(now) {
            Due::Now => Answer::Wait,
            Due::At(_) | Due::WhenAsked if self.fetching => Answer::Wait,
            Due::At(_) | Due::WhenAsked => Answer::Fail,
        }
    }

    /// When the next fetch is to begin.
    pub fn due(&self, now: Now) -> Due {
        let Some(asked) = self.asked else { return Due::WhenAsked };
        let at = match (self.held, self.retry_at) {
            (_, Some(at)) => at,
            (None, None) => return Due::Now,
            (Some(held), None) if held.refused || !self.is_good(now) => return Due::Now,
            (Some(held), None) => match held.renew_at {
                Some(at) => at,
                None => return Due::WhenAsked,
            },
        };
        // Who asks again finds it good or has it fetched.
        let unused = now.mono.saturating_duration_since(asked) >= UNUSED;
        match at <= now.mono {
            _ if unused => Due::WhenAsked,
            true => Due::Now,
            false => Due::At(at),
        }
    }

    /// A fetch begins.
    pub fn begin(&mut self) {
        self.fetching = true;
    }

    /// The fetch has brought a credential, `same` if it is the one that is held. `chance` is from 0 to 1.
    pub fn fetched(&mut self, now: Now, life: Life, same: bool, chance: f64) -> Fetched {
        let (expires, left) = match life {
            Life::Until(at) => (Some(at), Some(at.duration_since(now.wall).unwrap_or_default())),
            Life::Forever | Life::Watched(_) => (None, None),
        };
        let margin = left.map(|left| MARGIN.min(left / MARGIN_PART));
        if left.is_some_and(|left| left.is_zero()) {
            self.failed(now, chance);
            return Fetched::Expired;
        }
        self.fetching = false;
        self.failures = 0;
        self.retry_at = None;
        let end = left.zip(margin).map(|(left, margin)| {
            let usable = left.saturating_sub(margin);
            Now { mono: now.mono + usable, wall: now.wall + usable }
        });
        let renew_at = match (life, left) {
            (Life::Watched(period), _) => Some(now.mono + period),
            (_, Some(left)) => Some(now.mono + self.renewal.after(left, chance)),
            (_, None) => None,
        };
        let since = self.held.filter(|_| same).map_or(now.mono, |held| held.since);
        self.serials += u64::from(!same || self.held.is_none());
        self.held = Some(Held { serial: self.serials, since, end, expires, renew_at, refused: false });
        if same { Fetched::Same } else { Fetched::New }
    }

    /// The fetch has failed.
    pub fn failed(&mut self, now: Now, chance: f64) {
        self.fetching = false;
        self.failures = self.failures.saturating_add(1);
        let (first, longest) = RETRY;
        let pause = first.saturating_mul(1 << (self.failures - 1).min(16)).min(longest);
        self.retry_at = Some(now.mono + pause.mul_f64(0.5 + 0.5 * chance));
        if let Some(held) = &mut self.held {
            // Better than nothing: who presents it backs off by itself when it is refused again.
            held.refused = false;
        }
    }

    /// A server has refused the credential of this serial. True if another is there, or will be: the login is worth one
    /// more attempt.
    pub fn refused(&mut self, serial: u64, now: Now) -> bool {
        let Some(held) = &mut self.held else { return true };
        if held.serial != serial || held.refused {
            return true;
        }
        if self.retry_at.is_some() {
            return false;
        }
        let (first, longest) = REFUSED;
        let pause = match self.refusal {
            Some((at, pause)) if now.mono.saturating_duration_since(at) < pause => return false,
            Some((at, pause)) if now.mono.saturating_duration_since(at) < longest * 2 => (pause * 2).min(longest),
            Some(_) | None => first,
        };
        self.refusal = Some((now.mono, pause));
        held.refused = true;
        true
    }

    /// A server has accepted the credential of this serial: what was refused before is over.
    pub fn accepted(&mut self, serial: u64) {
        if self.held.is_some_and(|held| held.serial == serial) {
            self.refusal = None;
        }
    }

    /// Lets go of what is held if it has ended, or nobody asks for it any more.
    pub fn expire(&mut self, now: Now) -> bool {
        let idle = self.asked.is_none_or(|asked| now.mono.saturating_duration_since(asked) >= UNUSED);
        let gone = self.held.is_some() && (idle || !self.is_good(now));
        if gone {
            self.held = None;
        }
        if idle {
            self.asked = None;
        }
        gone
    }
}

impl Renewal {
    fn after(&self, life: Duration, chance: f64) -> Duration {
        let part = life.mul_f64(self.earliest + (self.latest - self.earliest) * chance);
        part.min(life.saturating_sub(self.before_end).max(life / 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Now {
        Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) }
    }

    fn after(now: Now, seconds: u64) -> Now {
        let by = Duration::from_secs(seconds);
        Now { mono: now.mono + by, wall: now.wall + by }
    }

    fn token(now: Now, seconds: u64) -> Life {
        Life::Until(now.wall + Duration::from_secs(seconds))
    }

    /// A course that holds a credential for so many seconds.
    fn holding(now: Now, renewal: Renewal, seconds: u64, chance: f64) -> Course {
        let mut course = Course::new(renewal);
        assert_eq!((course.ask(now), course.due(now)), (Answer::Wait, Due::Now));
        course.begin();
        assert_eq!(course.fetched(now, token(now, seconds), false, chance), Fetched::New);
        course
    }

    fn seconds_to(due: Due, from: Now) -> f64 {
        match due {
            Due::At(at) => (at - from.mono).as_secs_f64(),
            other @ (Due::Now | Due::WhenAsked) => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_fetched_before_somebody_asks() {
        let course = Course::new(Renewal::FETCHED);
        assert_eq!(course.due(start()), Due::WhenAsked);
    }

    #[test]
    fn an_rds_token_is_renewed_after_600_to_660_seconds_and_unusable_after_840() {
        let now = start();
        for (chance, due) in [(0.0, 600.0), (0.5, 630.0), (1.0, 660.0)] {
            let mut course = holding(now, Renewal::SIGNED, 900, chance);
            assert!((seconds_to(course.due(now), now) - due).abs() < 0.01);
            assert_eq!(course.due(after(now, 661)), Due::Now);
            assert_eq!(course.ask(after(now, 839)), Answer::Use);
            assert_eq!(course.ask(after(now, 841)), Answer::Wait);
        }
    }

    #[test]
    fn others_are_renewed_at_75_to_80_percent_or_5_minutes_before_the_end_but_not_before_half_their_life() {
        let now = start();
        for (life, chance, due) in
            [(3600, 0.0, 2700.0), (3600, 1.0, 2880.0), (1000, 0.0, 700.0), (400, 1.0, 200.0), (20, 0.0, 10.0)]
        {
            let course = holding(now, Renewal::FETCHED, life, chance);
            let got = seconds_to(course.due(now), now);
            assert!((got - due).abs() < 0.01, "{life} {chance}: {got}");
        }
    }

    #[test]
    fn the_old_one_is_used_while_the_new_one_is_fetched_and_when_that_fails() {
        let now = start();
        let mut course = holding(now, Renewal::SIGNED, 900, 0.0);
        let late = after(now, 700);
        course.begin();
        assert_eq!(course.ask(late), Answer::Use);
        course.failed(late, 1.0);
        assert_eq!(course.ask(late), Answer::Use);
        assert_eq!(course.held().unwrap().serial, 1);
        let pauses = (1..8).map(|_| {
            let pause = seconds_to(course.due(late), late);
            course.begin();
            course.failed(late, 1.0);
            pause
        });
        assert_eq!(pauses.collect::<Vec<_>>(), [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
    }

    #[test]
    fn an_expired_one_is_never_presented_by_whichever_clock() {
        let now = start();
        let mut course = holding(now, Renewal::SIGNED, 900, 0.0);
        let asleep = Now { mono: now.mono, ..after(now, 900) };
        let set_back = Now { wall: now.wall, ..after(now, 900) };
        for late in [after(now, 900), asleep, set_back] {
            assert!(!course.is_good(late));
            assert_eq!((course.ask(late), course.due(late)), (Answer::Wait, Due::Now));
        }
        course.begin();
        course.failed(after(now, 900), 1.0);
        // Not presented either while the endpoint is down; and who asks meanwhile does not make it busier.
        assert_eq!(course.ask(after(now, 900)), Answer::Fail);
        assert_eq!(course.ask(after(now, 901)), Answer::Wait);
    }

    #[test]
    fn one_that_comes_expired_is_a_failure() {
        let now = start();
        let mut course = Course::new(Renewal::FETCHED);
        course.ask(now);
        course.begin();
        assert_eq!(course.fetched(now, Life::Until(now.wall), false, 1.0), Fetched::Expired);
        assert_eq!(course.ask(now), Answer::Fail);
    }

    #[test]
    fn i17_a_refused_one_is_fetched_anew_once_for_all_and_then_only_after_growing_pauses() {
        let now = start();
        let mut course = holding(now, Renewal::SIGNED, 900, 0.0);
        assert!(course.refused(1, now));
        // The others that presented it share the fetch, and wait for it rather than present it again.
        assert!(course.refused(1, now));
        assert_eq!((course.ask(now), course.due(now)), (Answer::Wait, Due::Now));
        course.begin();
        course.fetched(now, token(now, 900), false, 0.0);
        assert!(course.refused(1, now), "who presented the old one may present the new one");
        assert_eq!((course.ask(now), course.held().unwrap().serial), (Answer::Use, 2));
        // Refused again, at once and every second: when is it fetched?
        let mut fetches = Vec::new();
        for second in 0..600 {
            let then = after(now, second);
            let serial = course.held().unwrap().serial;
            if course.refused(serial, then) {
                fetches.push(second);
                course.begin();
                course.fetched(then, token(then, 900), false, 0.0);
            }
        }
        assert_eq!(fetches, [60, 180, 420]);
    }

    #[test]
    fn one_that_was_accepted_and_then_refused_is_fetched_anew_however_soon() {
        let now = start();
        let mut course = holding(now, Renewal::SIGNED, 900, 0.0);
        for serial in 1..5 {
            assert!(course.refused(serial, now));
            course.begin();
            course.fetched(now, token(now, 900), false, 0.0);
            assert!(!course.refused(serial + 1, now));
            course.accepted(serial + 1);
        }
    }

    #[test]
    fn a_refused_one_is_used_again_when_no_other_can_be_had() {
        let now = start();
        let mut course = holding(now, Renewal::SIGNED, 900, 0.0);
        assert!(course.refused(1, now));
        course.begin();
        course.failed(now, 0.0);
        assert_eq!(course.ask(now), Answer::Use);
        assert!(!course.refused(1, now), "the endpoint is down: there is nothing else to try");
    }

    #[test]
    fn the_same_again_is_no_other() {
        let now = start();
        let mut course = Course::new(Renewal::FETCHED);
        course.ask(now);
        course.begin();
        course.fetched(now, Life::Watched(Duration::from_secs(2)), false, 0.0);
        assert!((seconds_to(course.due(now), now) - 2.0).abs() < 0.01);
        let later = after(now, 2);
        course.begin();
        assert_eq!(course.fetched(later, Life::Watched(Duration::from_secs(2)), true, 0.0), Fetched::Same);
        let held = course.held().unwrap();
        assert_eq!((held.serial, held.since), (1, now.mono));
    }

    #[test]
    fn one_that_nobody_asks_for_is_not_renewed_and_let_go() {
        let now = start();
        let mut course = holding(now, Renewal::SIGNED, 7200, 0.0);
        assert_eq!(course.due(after(now, 4900)), Due::WhenAsked);
        assert!(!course.expire(after(now, 60)));
        assert!(course.expire(after(now, 4900)));
        assert_eq!(course.due(after(now, 4900)), Due::WhenAsked);
        assert_eq!(course.ask(after(now, 4901)), Answer::Wait);
    }
}
