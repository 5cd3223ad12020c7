//! Read the server messages that we look into. The server is untrusted input too: every field is optional (faults.md I16).

use super::{FrameError, Report, SqlState, TxStatus};

/// The fields of an ErrorResponse or NoticeResponse that decide anything here, borrowed from its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ErrorFields<'a> {
    /// The severity in English (`V`, or `S` from servers before 9.6).
    pub severity: &'a [u8],
    /// The SQLSTATE.
    pub code: Option<SqlState>,
    /// The primary message.
    pub message: &'a [u8],
    /// The DETAIL.
    pub detail: Option<&'a [u8]>,
    /// The HINT.
    pub hint: Option<&'a [u8]>,
}

impl ErrorFields<'_> {
    /// Whether the server closes the connection after this message.
    pub fn is_fatal(&self) -> bool {
        self.severity == b"FATAL" || self.severity == b"PANIC"
    }

    /// The same as an error of ours, in the server's words: for a client that is to survive its server's end.
    pub fn report(&self) -> Report {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = self.code.unwrap_or(SqlState::PROTOCOL_VIOLATION);
        let mut report = Report::as_postgres(code, text(self.message));
        report.detail = self.detail.map(text);
        report.hint = self.hint.map(text);
        report
    }

    /// The message for a log line; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        let code = self.code.map(|c| format!("{c}: ")).unwrap_or_default();
        format!("{code}{}", String::from_utf8_lossy(self.message))
    }
}

/// Reads the fields of an error or notice from its body, or from the beginning of a very long one.
pub fn error(body: &[u8]) -> ErrorFields<'_> {
    let mut fields = ErrorFields::default();
    let mut rest = body;
    while let Some((&kind, value)) = rest.split_first() {
        let Some(end) = value.iter().position(|&b| b == 0) else { break };
        match kind {
            0 => break,
            b'V' => fields.severity = &value[..end],
            b'S' if fields.severity.is_empty() => fields.severity = &value[..end],
            b'C' => fields.code = SqlState::parse(&value[..end]),
            b'M' => fields.message = &value[..end],
            b'D' => fields.detail = Some(&value[..end]),
            b'H' => fields.hint = Some(&value[..end]),
            _ => {}
        }
        rest = &value[end + 1..];
    }
    fields
}

/// Reads a ReadyForQuery body.
pub fn ready(body: &[u8]) -> Result<TxStatus, FrameError> {
    match body {
        [status] => TxStatus::from_byte(*status).ok_or(FrameError::Body("ReadyForQuery")),
        _ => Err(FrameError::Body("ReadyForQuery")),
    }
}

/// How many rows a command has returned, changed or copied, as its tag says: the number at its end.
pub fn rows_of_tag(tag: &[u8]) -> u64 {
    let digits = tag.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The tag of a CommandComplete body, without its terminator.
pub fn command_tag(body: &[u8]) -> &[u8] {
    body.strip_suffix(b"\0").unwrap_or(body)
}

/// Name and value of a ParameterStatus body.
pub fn parameter_status(body: &[u8]) -> Result<(&str, &str), FrameError> {
    let malformed = FrameError::Body("ParameterStatus");
    let text = std::str::from_utf8(body).map_err(|_| malformed)?;
    let (name, rest) = text.split_once('\0').ok_or(malformed)?;
    Ok((name, rest.strip_suffix('\0').ok_or(malformed)?))
}

/// A NotificationResponse, borrowed from its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification<'a> {
    /// The process that notified.
    pub pid: i32,
    /// The channel, at most 63 bytes in an encoding that is the session's.
    pub channel: &'a [u8],
    /// The payload, less than 8000 bytes in the server's encoding.
    pub payload: &'a [u8],
}

/// Reads a NotificationResponse body.
pub fn notification(body: &[u8]) -> Result<Notification<'_>, FrameError> {
    const WHAT: FrameError = FrameError::Body("NotificationResponse");
    let (pid, rest) = body.split_first_chunk::<4>().ok_or(WHAT)?;
    let mut texts = rest.split(|&b| b == 0);
    match (texts.next(), texts.next(), texts.next(), texts.next()) {
        (Some(channel), Some(payload), Some([]), None) => {
            Ok(Notification { pid: i32::from_be_bytes(*pid), channel, payload })
        }
        _ => Err(WHAT),
    }
}

/// The columns of a DataRow body, `None` for a null.
pub fn row(body: &[u8]) -> Result<Vec<Option<&[u8]>>, FrameError> {
    let malformed = || FrameError::Body("DataRow");
    let (count, mut rest) = body.split_first_chunk::<2>().ok_or_else(malformed)?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (len, tail) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
        let len = i32::from_be_bytes(*len);
        if len == -1 {
            columns.push(None);
            rest = tail;
            continue;
        }
        let len = usize::try_from(len).map_err(|_| malformed())?;
        let (value, tail) = tail.split_at_checked(len).ok_or_else(malformed)?;
        columns.push(Some(value));
        rest = tail;
    }
    if rest.is_empty() { Ok(columns) } else { Err(malformed()) }
}

/// Process id and secret of a BackendKeyData body.
pub fn key_data(body: &[u8]) -> Result<(i32, &[u8]), FrameError> {
    match body.split_first_chunk::<4>() {
        Some((pid, secret)) if (4..=256).contains(&secret.len()) => Ok((i32::from_be_bytes(*pid), secret)),
        _ => Err(FrameError::Body("BackendKeyData")),
    }
}

/// What an Authentication message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// Nothing more: the login succeeded.
    Ok,
    /// The password as it is.
    Cleartext,
    /// The password hashed with this salt.
    Md5([u8; 4]),
    /// A SASL exchange, by one of these mechanisms (terminated strings, ended by an empty one).
    Sasl(&'a [u8]),
    /// The next step of the SASL exchange.
    SaslContinue(&'a [u8]),
    /// The last step of the SASL exchange.
    SaslFinal(&'a [u8]),
    /// A method we do not speak (GSS, SSPI, Kerberos...), by its number.
    Unsupported(i32),
}

/// Reads an Authentication body.
pub fn authentication(body: &[u8]) -> Result<Authentication<'_>, FrameError> {
    const WHAT: FrameError = FrameError::Body("Authentication");
    let (method, rest) = body.split_first_chunk::<4>().ok_or(WHAT)?;
    Ok(match (i32::from_be_bytes(*method), rest) {
        (0, []) => Authentication::Ok,
        (3, []) => Authentication::Cleartext,
        (5, &[a, b, c, d]) => Authentication::Md5([a, b, c, d]),
        (10, mechanisms) => Authentication::Sasl(mechanisms),
        (11, data) => Authentication::SaslContinue(data),
        (12, data) => Authentication::SaslFinal(data),
        (0 | 3 | 5, _) => return Err(WHAT),
        (other, _) => Authentication::Unsupported(other),
    })
}

/// The mechanism names of an `AuthenticationSASL` message.
pub fn sasl_mechanisms(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&b| b == 0).take_while(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i16_an_error_without_any_field_is_read_without_a_panic() {
        for body in [b"".as_slice(), b"\0", b"C", b"CX\0", b"C\0\0", b"M", b"\xff\xff"] {
            let fields = error(body);
            assert_eq!((fields.code, fields.is_fatal()), (None, false), "{body:?}");
        }
        let fields = error(b"SFEHLER\0VERROR\0C57P01\0Mgone\0\0");
        assert_eq!((fields.severity, fields.code), (&b"ERROR"[..], Some(SqlState::ADMIN_SHUTDOWN)));
        assert_eq!(fields.text(), "57P01: gone");
        assert!(error(b"SFATAL\0C57P01\0\0").is_fatal());
    }

    #[test]
    fn a_row_must_account_for_every_byte() {
        assert_eq!(row(b"\0\x02\0\0\0\x01x\xff\xff\xff\xff"), Ok(vec![Some(&b"x"[..]), None]));
        for bad in [b"".as_slice(), b"\0\x01", b"\0\x01\0\0\0\x05x", b"\0\x00x", b"\0\x01\x80\0\0\0"] {
            assert!(row(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_notification_is_a_process_and_two_terminated_texts() {
        let read = notification(b"\0\0\x01\x02ch\0pay\0");
        assert_eq!(read, Ok(Notification { pid: 258, channel: b"ch", payload: b"pay" }));
        assert_eq!(notification(b"\0\0\0\x01c\0\0").unwrap().payload, b"");
        for bad in [b"\0\0\0".as_slice(), b"\0\0\0\x01", b"\0\0\0\x01c\0", b"\0\0\0\x01c\0p", b"\0\0\0\x01c\0p\0x"] {
            assert!(notification(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn authentication_messages_of_a_wrong_size_are_malformed_and_unknown_ones_unsupported() {
        assert_eq!(authentication(b"\0\0\0\x05abcd"), Ok(Authentication::Md5(*b"abcd")));
        assert_eq!(authentication(b"\0\0\0\x07"), Ok(Authentication::Unsupported(7)));
        for bad in [b"\0\0\0".as_slice(), b"\0\0\0\x05abc", b"\0\0\0\0x"] {
            assert!(authentication(bad).is_err());
        }
        assert_eq!(sasl_mechanisms(b"A\0B\0\0C").collect::<Vec<_>>(), [b"A", b"B"]);
    }
}
