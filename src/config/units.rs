//! Durations and sizes with their units. A number without one is refused: everybody guesses another.

use std::time::Duration;

const DURATIONS: &[(&str, u64)] =
    &[("ms", 1), ("s", 1_000), ("min", 60_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZES: &[(&str, u64)] = &[
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// The number and the unit of a text like `1.5s`.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}

/// Reads a duration: `250ms`, `30s`, `5min`, `1h`, `2d`; `0` needs no unit and means off.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wanted = || {
        format!(
            "{text:?} is no duration: write a number and a unit, such as \"30s\", \"250ms\" or \"5min\"; \"0\" is off"
        )
    };
    let (number, unit) = split(text).ok_or_else(wanted)?;
    if number == 0.0 && unit.is_empty() {
        return Ok(Duration::ZERO);
    }
    let (_, ms) = DURATIONS.iter().find(|(name, _)| *name == unit).ok_or_else(wanted)?;
    #[allow(clippy::cast_precision_loss, reason = "the factors are small")]
    let duration = Duration::try_from_secs_f64(number * *ms as f64 / 1_000.0).map_err(|_| wanted())?;
    // A century is a slip of the pen, and sums of it overflow clocks.
    if duration > Duration::from_secs(100 * 365 * 86_400) {
        return Err(wanted());
    }
    Ok(duration)
}

/// Writes a duration as [`duration`] reads it.
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0".to_owned(),
        _ if ms.is_multiple_of(86_400_000) => format!("{}d", ms / 86_400_000),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}min", ms / 60_000),
        _ if ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

/// Reads a size in bytes: `16KiB`, `1MiB`, `10MB`; `0` needs no unit and means off.
pub fn size(text: &str) -> Result<u64, String> {
    let wanted =
        || format!("{text:?} is no size: write a number and a unit, such as \"16KiB\" or \"1MiB\"; \"0\" is off");
    let (number, unit) = split(text).ok_or_else(wanted)?;
    if number == 0.0 && unit.is_empty() {
        return Ok(0);
    }
    let (_, factor) = SIZES.iter().find(|(name, _)| *name == unit).ok_or_else(wanted)?;
    #[allow(clippy::cast_precision_loss, reason = "sizes that anybody writes are far below 2^53")]
    let bytes = number * *factor as f64;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked against the bound")]
    if bytes <= 1e15 { Ok(bytes as u64) } else { Err(wanted()) }
}

/// Writes a size as [`size`] reads it.
pub fn show_size(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ if bytes.is_multiple_of(1 << 30) => format!("{}GiB", bytes >> 30),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i30_durations_need_a_unit_and_zero_is_off() {
        for (text, ms) in [
            ("30s", 30_000),
            ("1.5s", 1_500),
            ("250ms", 250),
            ("5min", 300_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("0", 0),
            ("0s", 0),
            (" 2 d ", 172_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["30", "s", "", "-1s", "1 fortnight", "1e9d", "99999999999d", "1.2.3s", "ms5"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_as_it_was() {
        for ms in [0, 1, 250, 1_000, 1_500, 60_000, 90_000, 3_600_000, 86_400_000] {
            let shown = Duration::from_millis(ms);
            assert_eq!(duration(&show_duration(shown)), Ok(shown));
        }
        for bytes in [0, 1, 1000, 1024, 16 << 10, 3 << 20, 5 << 30] {
            assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(size("16KiB"), Ok(16_384));
        assert_eq!(size("1.5MB"), Ok(1_500_000));
        for text in ["16", "KiB", "-1B", "16kib", "1e300B"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
