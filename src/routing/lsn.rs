//! Positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A position in the write-ahead log. Only positions of one timeline can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

/// A text that is no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a WAL position as two hexadecimal numbers, such as 0/16B3748")]
pub struct NoLsn;

/// The header at the start of each page, and of the first page of a segment (`SizeOfXLogShortPHD`, `SizeOfXLogLongPHD`).
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

impl Lsn {
    /// The position of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// How many bytes it is ahead of another.
    pub const fn ahead_of(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }

    /// An insert position as replicas can reach it.
    ///
    /// PostgreSQL gives the place where the next record will begin. At the start of a page that is behind the page's header,
    /// while the last record, and so what a replica has replayed, ends in front of it: after `pg_switch_wal()` no
    /// replica of an idle primary would ever get there. Nothing but the header is between the two.
    #[must_use]
    pub const fn reachable(self, page: u64, segment: u64) -> Self {
        if page == 0 || segment == 0 {
            return self;
        }
        let header = if self.0 % segment < page { LONG_HEADER } else { SHORT_HEADER };
        if self.0 % page == header { Self(self.0 - header) } else { self }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = NoLsn;

    fn from_str(text: &str) -> Result<Self, NoLsn> {
        let half = |text: &str| {
            let hex = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
            if hex { u64::from_str_radix(text, 16).map_err(|_| NoLsn) } else { Err(NoLsn) }
        };
        let (high, low) = text.trim().split_once('/').ok_or(NoLsn)?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 8192;
    const SEGMENT: u64 = 16 << 20;

    #[test]
    fn positions_are_read_and_written_as_postgresql_does() {
        for (text, number) in [
            ("0/0", 0),
            ("0/16B3748", 0x016B_3748),
            ("1/0", 1 << 32),
            ("FFFFFFFF/FFFFFFFF", u64::MAX),
            ("A/1F", 0xA_0000_001F),
        ] {
            assert_eq!(text.parse(), Ok(Lsn::new(number)), "{text}");
            assert_eq!(Lsn::new(number).to_string(), text);
        }
        for text in ["", "0", "/", "0/", "/0", "0/0/0", "0/123456789", "-1/0", "+1/0", "0x1/0", "g/0", "0 /1"] {
            assert_eq!(text.parse::<Lsn>(), Err(NoLsn), "{text}");
        }
    }

    #[test]
    fn an_insert_position_behind_a_header_is_taken_back_in_front_of_it() {
        for (insert, reachable) in [
            ("0/4000028", "0/4000000"), // 40 at the start of a segment
            ("0/4002018", "0/4002000"), // 24 at the start of a page
            ("0/4000018", "0/4000018"), // 24 in a segment's first page is inside its header: it never comes
            ("0/4002028", "0/4002028"), // 40 in another page is 16 bytes of a record
            ("0/4000029", "0/4000029"),
            ("0/4002019", "0/4002019"),
            ("0/4000000", "0/4000000"),
            ("0/16B3748", "0/16B3748"),
        ] {
            let insert: Lsn = insert.parse().unwrap();
            assert_eq!(insert.reachable(PAGE, SEGMENT), reachable.parse().unwrap(), "{insert}");
            assert_eq!(insert.reachable(0, 0), insert);
        }
    }
}
