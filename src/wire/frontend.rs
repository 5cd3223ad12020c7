//! Read the client messages that we look into.
//!
//! Each function takes a body (no tag, no length) or the beginning of one, and borrows from it. A body that does not
//! have the layout of its type is an error here and goes to the server as it is: PostgreSQL knows best what to say.

use super::FrameError;
use std::ffi::CStr;

/// Splits a terminated string off the front.
fn cstr<'a>(buf: &'a [u8], what: &'static str) -> Result<(&'a [u8], &'a [u8]), FrameError> {
    let end = buf.iter().position(|&b| b == 0).ok_or(FrameError::Body(what))?;
    Ok((&buf[..end], &buf[end + 1..]))
}

/// What a Describe or Close message names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// A prepared statement; the empty name is the unnamed one.
    Statement(&'a [u8]),
    /// A portal; the empty name is the unnamed one.
    Portal(&'a [u8]),
}

/// A Parse message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// The statement's name; empty for the unnamed statement.
    pub name: &'a [u8],
    /// The SQL text.
    pub query: &'a [u8],
    /// The parameter types as they stand in the message: a count and that many OIDs.
    pub types: &'a [u8],
}

/// Reads a whole Parse body.
pub fn parse(body: &[u8]) -> Result<Parse<'_>, FrameError> {
    let (name, rest) = cstr(body, "Parse")?;
    let (query, types) = cstr(rest, "Parse")?;
    let count = types.first_chunk::<2>().ok_or(FrameError::Body("Parse"))?;
    if types.len() != 2 + 4 * usize::from(u16::from_be_bytes(*count)) {
        return Err(FrameError::Body("Parse"));
    }
    Ok(Parse { name, query, types })
}

/// The names at the beginning of a Bind body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// The portal that is made.
    pub portal: &'a [u8],
    /// The statement that is bound.
    pub statement: &'a [u8],
    /// Bytes of the body that the two names take, terminators included.
    pub names_len: usize,
}

/// Reads the names of a Bind from the beginning of its body; an error if they do not end in `prefix`.
pub fn bind(prefix: &[u8]) -> Result<Bind<'_>, FrameError> {
    let (portal, rest) = cstr(prefix, "Bind")?;
    let (statement, rest) = cstr(rest, "Bind")?;
    Ok(Bind { portal, statement, names_len: prefix.len() - rest.len() })
}

/// How many parameter values the Bind has that begins with this, and what follows their number; none if it ends before.
fn values(prefix: &[u8]) -> Option<(u16, &[u8])> {
    let (formats, rest) = prefix.get(bind(prefix).ok()?.names_len..)?.split_first_chunk::<2>()?;
    let rest = rest.get(2 * usize::from(u16::from_be_bytes(*formats))..)?;
    let (count, rest) = rest.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*count), rest))
}

/// How many parameter values the Bind has that begins with this, nulls counted; none if it ends before it says so.
pub fn bind_count(prefix: &[u8]) -> Option<u16> {
    values(prefix).map(|(count, _)| count)
}

/// The parameter values of a whole Bind body, nulls left out, as far as it has the layout of one.
pub fn bind_values(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (values, mut rest) = values(body).unwrap_or_default();
    let mut next = move || {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let Ok(len) = usize::try_from(i32::from_be_bytes(*len)) else {
            rest = after;
            return Some(&[][..]);
        };
        let value = after.get(..len)?;
        rest = &after[len..];
        Some(value)
    };
    (0..values).map_while(move |_| next())
}

/// What follows the names in a whole Bind body, with values instead of nulls: what `value` gives for the parameter of a number,
/// beginning with 1. None if it gives none, or the body has not the layout of one.
pub fn bind_without_nulls<'a>(body: &[u8], mut value: impl FnMut(u16) -> Option<&'a [u8]>) -> Option<Vec<u8>> {
    let (count, mut rest) = values(body)?;
    let begin = bind(body).ok()?.names_len;
    let mut out = body[begin..body.len() - rest.len()].to_vec();
    let mut changed = false;
    for number in 1..=count {
        let (len, after) = rest.split_first_chunk::<4>()?;
        let given = usize::try_from(i32::from_be_bytes(*len)).ok();
        match (given, value(number).filter(|_| given.is_none())) {
            (None, Some(value)) => {
                out.extend(i32::try_from(value.len()).ok()?.to_be_bytes());
                out.extend(value);
                (changed, rest) = (true, after);
            }
            (given, _) => {
                let len = len.len() + given.unwrap_or_default();
                out.extend(rest.get(..len)?);
                rest = &rest[len..];
            }
        }
    }
    out.extend(rest);
    changed.then_some(out)
}

/// Reads a Describe or Close body.
pub fn named(body: &[u8]) -> Result<Named<'_>, FrameError> {
    const WHAT: &str = "Describe or Close";
    let (&kind, rest) = body.split_first().ok_or(FrameError::Body(WHAT))?;
    let (name, rest) = cstr(rest, WHAT)?;
    match (kind, rest.is_empty()) {
        (b'S', true) => Ok(Named::Statement(name)),
        (b'P', true) => Ok(Named::Portal(name)),
        _ => Err(FrameError::Body(WHAT)),
    }
}

/// The SQL text of a Query body, which ends with a terminator. `prefix` may be the beginning of a long one.
pub fn query(prefix: &[u8]) -> &[u8] {
    // The standard library looks for a terminator a word at a time.
    CStr::from_bytes_until_nul(prefix).map_or(prefix, CStr::to_bytes)
}

/// A SASLInitialResponse: the mechanism and the client's first message, if it sent one.
pub fn sasl_initial(body: &[u8]) -> Result<(&[u8], Option<&[u8]>), FrameError> {
    const WHAT: &str = "SASLInitialResponse";
    let (mechanism, rest) = cstr(body, WHAT)?;
    let (len, data) = rest.split_first_chunk::<4>().ok_or(FrameError::Body(WHAT))?;
    match i32::from_be_bytes(*len) {
        -1 if data.is_empty() => Ok((mechanism, None)),
        len if usize::try_from(len).is_ok_and(|len| len == data.len()) => Ok((mechanism, Some(data))),
        _ => Err(FrameError::Body(WHAT)),
    }
}

/// The password of a PasswordMessage, without its terminator.
pub fn password(body: &[u8]) -> Result<&[u8], FrameError> {
    match cstr(body, "Password")? {
        (password, []) => Ok(password),
        _ => Err(FrameError::Body("Password")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parse_body_is_read_whole_or_not_at_all() {
        let body = b"s1\0select $1\0\0\x01\0\0\0\x17";
        let read = parse(body).unwrap();
        assert_eq!((read.name, read.query, read.types), (&b"s1"[..], &b"select $1"[..], &b"\0\x01\0\0\0\x17"[..]));
        for cut in 0..body.len() {
            assert!(parse(&body[..cut]).is_err(), "{cut}");
        }
        assert!(parse(b"s1\0select 1\0\xff\xff").is_err(), "a count past the end");
    }

    #[test]
    fn the_names_of_a_bind_are_read_from_its_beginning() {
        let read = bind(b"p\0stmt\0\0\0\0\0").unwrap();
        assert_eq!((read.portal, read.statement, read.names_len), (&b"p"[..], &b"stmt"[..], 7));
        assert!(bind(b"p\0stm").is_err());
    }

    #[test]
    fn the_values_of_a_bind_are_read_as_far_as_they_go() {
        let body = b"p\0s\0\0\x01\0\0\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\x01c\0\0";
        assert_eq!(bind_values(body).collect::<Vec<_>>(), [&b"ab"[..], b"", b"c"]);
        assert_eq!((bind_count(body), bind_count(&body[..10]), bind_count(&body[..9])), (Some(3), Some(3), None));
        for cut in 0..body.len() {
            assert!(bind_values(&body[..cut]).count() <= 3);
        }
        assert_eq!(bind_values(b"p\0s\0\0\0\0\x01\x7f\xff\xff\xffx").count(), 0);
    }

    #[test]
    fn describe_and_close_name_a_statement_or_a_portal() {
        assert_eq!(named(b"Sx\0"), Ok(Named::Statement(b"x")));
        assert_eq!(named(b"P\0"), Ok(Named::Portal(b"")));
        for bad in [b"".as_slice(), b"S", b"Qx\0", b"Sx\0y", b"Sx"] {
            assert!(named(bad).is_err());
        }
    }

    #[test]
    fn a_sasl_response_states_its_own_length() {
        assert_eq!(sasl_initial(b"M\0\0\0\0\x02ab"), Ok((&b"M"[..], Some(&b"ab"[..]))));
        assert_eq!(sasl_initial(b"M\0\xff\xff\xff\xff"), Ok((&b"M"[..], None)));
        for bad in [b"M\0\0\0\0\x03ab".as_slice(), b"M\0\x80\0\0\0", b"M\0\0\0", b"M"] {
            assert!(sasl_initial(bad).is_err());
        }
    }
}
