//! Why a server stays with its client between transactions.

use crate::sql::Effects;

/// State of a session that cannot follow its client to another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// Temporary tables, functions, types...
    Temporary,
    /// A cursor WITH HOLD.
    Cursor,
    /// A statement that SQL prepared, or one too long to be prepared again elsewhere.
    Prepared,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// A LISTEN that the shared listening connection has not taken over yet.
    Listen,
    /// A library that was loaded: it cannot be unloaded.
    Library,
    /// A seed of `random()`: it cannot be read.
    Seed,
    /// The positions of sequences (`currval`, `lastval`): they cannot be read.
    Sequence,
    /// Something that could not be asked for.
    Unknown,
}

impl Pin {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::Temporary,
        Self::Cursor,
        Self::Prepared,
        Self::AdvisoryLock,
        Self::Listen,
        Self::Library,
        Self::Seed,
        Self::Sequence,
        Self::Unknown,
    ];

    /// A word for it, in consoles, logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Temporary => "temporary",
            Self::Cursor => "cursor",
            Self::Prepared => "prepared",
            Self::AdvisoryLock => "advisory_lock",
            Self::Listen => "listen",
            Self::Library => "library",
            Self::Seed => "seed",
            Self::Sequence => "sequence",
            Self::Unknown => "unknown",
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// A set of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins(u16);

impl Pins {
    /// None: the server may go.
    pub const NONE: Self = Self(0);

    /// Whether there is none.
    #[inline]
    pub fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether `pin` is among them.
    #[inline]
    pub fn has(self, pin: Pin) -> bool {
        self.0 & pin.bit() != 0
    }

    /// Adds a reason, or takes it away.
    pub fn set(&mut self, pin: Pin, is: bool) {
        if is {
            self.0 |= pin.bit();
        } else {
            self.0 &= !pin.bit();
        }
    }

    /// The reasons.
    pub fn iter(self) -> impl Iterator<Item = Pin> {
        Pin::ALL.into_iter().filter(move |pin| self.has(*pin))
    }

    /// As a number, to be kept in an atomic.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// From [`Pins::bits`].
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Whether no reset takes away what is left: such a connection serves nobody else.
    pub fn is_lasting(self) -> bool {
        self.has(Pin::Library) || self.has(Pin::Seed)
    }

    /// What can be said without asking, from what a client has run.
    pub(super) fn of_lasting(effects: Effects) -> Self {
        let mut pins = Self::NONE;
        pins.set(Pin::Library, effects.has(Effects::LOAD));
        pins.set(Pin::Seed, effects.has(Effects::SEED));
        pins
    }

    /// Whether they are all of a kind that is given up as soon as another client needs the server.
    pub fn are_soft(self) -> bool {
        self.0 == Pin::Sequence.bit()
    }

    /// All of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::fmt::Display for Pins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for pin in self.iter() {
            write!(f, "{separator}{}", pin.as_str())?;
            separator = ",";
        }
        Ok(())
    }
}
