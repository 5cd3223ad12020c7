//! Write the messages that we originate: to clients as a server would, and to servers as a client would.

use super::{BackendTag, FrontendTag, SqlState, TxStatus};

/// How grave a message of ours is, and with it what becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement fails; the session goes on.
    Error,
    /// The session ends with this message.
    Fatal,
    /// A remark.
    Notice,
    /// A remark that something is not as it should be.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Notice => "NOTICE",
            Self::Warning => "WARNING",
        }
    }
}

/// An error or notice of our own.
///
/// One that is the pooler's own cause begins with `pg-ambassador: ` ([`Report::ours`]); one that says what a direct
/// server would have said does not ([`Report::as_postgres`]), because drivers and people match the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How grave it is.
    pub severity: Severity,
    /// Its SQLSTATE.
    pub code: SqlState,
    /// The primary message.
    pub message: String,
    /// Facts: pool, node, how long was waited.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Report {
    /// An error whose cause is the pooler or what it found upstream.
    pub fn ours(code: SqlState, message: impl std::fmt::Display) -> Self {
        Self::as_postgres(code, format!("pg-ambassador: {message}"))
    }

    /// An error in PostgreSQL's own words.
    pub fn as_postgres(code: SqlState, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), detail: None, hint: None }
    }

    /// The same, ending the session.
    #[must_use]
    pub fn fatal(mut self) -> Self {
        self.severity = Severity::Fatal;
        self
    }

    /// The same, as a notice.
    #[must_use]
    pub fn notice(mut self) -> Self {
        self.severity = Severity::Notice;
        self
    }

    /// With a DETAIL.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With a HINT.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Writes it as an ErrorResponse or NoticeResponse.
    pub fn write(&self, out: &mut Vec<u8>) {
        let tag = match self.severity {
            Severity::Error | Severity::Fatal => BackendTag::Error,
            Severity::Notice | Severity::Warning => BackendTag::Notice,
        };
        message(out, tag, |body| {
            let severity = self.severity.as_str();
            let fields = [
                (b'S', Some(severity)),
                (b'V', Some(severity)),
                (b'C', Some(self.code.as_str())),
                (b'M', Some(self.message.as_str())),
                (b'D', self.detail.as_deref()),
                (b'H', self.hint.as_deref()),
            ];
            for (kind, value) in fields {
                if let Some(value) = value {
                    body.push(kind);
                    cstr(body, value.as_bytes());
                }
            }
            body.push(0);
        });
    }
}

/// Appends a terminated string; a NUL inside would end it early, so nothing behind one is written.
fn cstr(out: &mut Vec<u8>, text: &[u8]) {
    let end = text.iter().position(|&b| b == 0).unwrap_or(text.len());
    out.extend_from_slice(&text[..end]);
    out.push(0);
}

fn frame(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    // Bodies made here are bounded by what went into them; one past 4 GiB cannot be built.
    let len = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Writes a message to a client with the body that `body` appends.
pub fn message(out: &mut Vec<u8>, tag: BackendTag, body: impl FnOnce(&mut Vec<u8>)) {
    frame(out, tag.byte(), body);
}

/// Writes a message to a server with the body that `body` appends.
pub fn request(out: &mut Vec<u8>, tag: FrontendTag, body: impl FnOnce(&mut Vec<u8>)) {
    frame(out, tag.byte(), body);
}

/// ReadyForQuery.
pub fn ready(out: &mut Vec<u8>, status: TxStatus) {
    message(out, BackendTag::Ready, |body| body.push(status.byte()));
}

/// CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, BackendTag::CommandComplete, |body| cstr(body, tag.as_bytes()));
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, BackendTag::ParameterStatus, |body| {
        cstr(body, name.as_bytes());
        cstr(body, value.as_bytes());
    });
}

/// BackendKeyData.
pub fn key_data(out: &mut Vec<u8>, pid: i32, secret: &[u8]) {
    message(out, BackendTag::BackendKeyData, |body| {
        body.extend(pid.to_be_bytes());
        body.extend(secret);
    });
}

/// NegotiateProtocolVersion: the version we speak and the options we do not know.
pub fn negotiate_version(out: &mut Vec<u8>, minor: u16, unknown_options: &[String]) {
    message(out, BackendTag::NegotiateVersion, |body| {
        // The whole version number, as PostgreSQL sends it and libpq reads it.
        body.extend([0, 3]);
        body.extend(minor.to_be_bytes());
        body.extend(u32::try_from(unknown_options.len()).unwrap_or(u32::MAX).to_be_bytes());
        for option in unknown_options {
            cstr(body, option.as_bytes());
        }
    });
}

/// The authentication requests we make of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthRequest<'a> {
    /// Logged in.
    Ok,
    /// Send the password.
    Cleartext,
    /// Send the password hashed with this salt.
    Md5([u8; 4]),
    /// Choose one of these SASL mechanisms.
    Sasl(&'a [&'a str]),
    /// The server's first SCRAM message.
    SaslContinue(&'a [u8]),
    /// The server's final SCRAM message.
    SaslFinal(&'a [u8]),
}

/// Authentication.
pub fn authentication(out: &mut Vec<u8>, request: AuthRequest<'_>) {
    message(out, BackendTag::Authentication, |body| {
        let code: u32 = match request {
            AuthRequest::Ok => 0,
            AuthRequest::Cleartext => 3,
            AuthRequest::Md5(_) => 5,
            AuthRequest::Sasl(_) => 10,
            AuthRequest::SaslContinue(_) => 11,
            AuthRequest::SaslFinal(_) => 12,
        };
        body.extend_from_slice(&code.to_be_bytes());
        match request {
            AuthRequest::Ok | AuthRequest::Cleartext => {}
            AuthRequest::Md5(salt) => body.extend(salt),
            AuthRequest::Sasl(mechanisms) => {
                for mechanism in mechanisms {
                    cstr(body, mechanism.as_bytes());
                }
                body.push(0);
            }
            AuthRequest::SaslContinue(data) | AuthRequest::SaslFinal(data) => body.extend(data),
        }
    });
}

/// The type of a result column that we make ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `text`
    Text,
    /// `int4`
    Int4,
    /// `int8`
    Int8,
    /// `numeric`
    Numeric,
}

impl ColumnType {
    /// OID and size as `pg_type` has them.
    fn oid_and_len(self) -> (u32, i16) {
        match self {
            Self::Text => (25, -1),
            Self::Int4 => (23, 4),
            Self::Int8 => (20, 8),
            Self::Numeric => (1700, -1),
        }
    }
}

/// RowDescription of columns that belong to no table; `formats` as in Bind's result formats (`true`: binary).
pub fn row_description(out: &mut Vec<u8>, columns: &[(&str, ColumnType)], format: impl Fn(usize) -> bool) {
    message(out, BackendTag::RowDescription, |body| {
        body.extend(u16::try_from(columns.len()).unwrap_or(u16::MAX).to_be_bytes());
        for (at, (name, kind)) in columns.iter().enumerate() {
            cstr(body, name.as_bytes());
            let (oid, len) = kind.oid_and_len();
            body.extend(0u32.to_be_bytes());
            body.extend(0u16.to_be_bytes());
            body.extend(oid.to_be_bytes());
            body.extend(len.to_be_bytes());
            body.extend((-1i32).to_be_bytes());
            body.extend(u16::from(format(at)).to_be_bytes());
        }
    });
}

/// DataRow of values as they stand on the wire; `None` is null.
pub fn data_row<V: AsRef<[u8]>>(out: &mut Vec<u8>, values: &[Option<V>]) {
    message(out, BackendTag::DataRow, |body| {
        body.extend(u16::try_from(values.len()).unwrap_or(u16::MAX).to_be_bytes());
        for value in values {
            match value {
                None => body.extend((-1i32).to_be_bytes()),
                Some(value) => {
                    let value = value.as_ref();
                    body.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
                    body.extend(value);
                }
            }
        }
    });
}

/// A simple Query.
pub fn query(out: &mut Vec<u8>, sql: &str) {
    request(out, FrontendTag::Query, |body| cstr(body, sql.as_bytes()));
}

/// Parse with the types as they stood in a client's message.
pub fn parse(out: &mut Vec<u8>, name: &[u8], query: &[u8], types: &[u8]) {
    request(out, FrontendTag::Parse, |body| {
        cstr(body, name);
        cstr(body, query);
        body.extend(types);
    });
}

/// Bind of text parameters (`None` is null) to the unnamed portal, with text results.
pub fn bind_text(out: &mut Vec<u8>, statement: &[u8], values: &[Option<&[u8]>]) {
    request(out, FrontendTag::Bind, |body| {
        body.push(0);
        cstr(body, statement);
        body.extend(0u16.to_be_bytes());
        body.extend(u16::try_from(values.len()).unwrap_or(u16::MAX).to_be_bytes());
        for value in values {
            match value {
                None => body.extend((-1i32).to_be_bytes()),
                Some(value) => {
                    body.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
                    body.extend(*value);
                }
            }
        }
        body.extend(0u16.to_be_bytes());
    });
}

/// Execute of the unnamed portal, without a row limit.
pub fn execute(out: &mut Vec<u8>) {
    request(out, FrontendTag::Execute, |body| body.extend([0; 5]));
}

/// Close of a prepared statement.
pub fn close_statement(out: &mut Vec<u8>, name: &[u8]) {
    request(out, FrontendTag::Close, |body| {
        body.push(b'S');
        cstr(body, name);
    });
}

/// Close of the unnamed portal.
pub fn close_portal(out: &mut Vec<u8>) {
    request(out, FrontendTag::Close, |body| body.extend(b"P\0"));
}

/// Sync.
pub fn sync(out: &mut Vec<u8>) {
    request(out, FrontendTag::Sync, |_| {});
}

/// Terminate.
pub const TERMINATE: [u8; 5] = [b'X', 0, 0, 0, 4];

/// CopyFail with this reason.
pub fn copy_fail(out: &mut Vec<u8>, reason: &str) {
    request(out, FrontendTag::CopyFail, |body| cstr(body, reason.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{backend, frame};

    #[test]
    fn an_error_of_ours_reads_back_with_its_fields() {
        let mut out = Vec::new();
        Report::ours(SqlState::TOO_MANY_CONNECTIONS, "pool exhausted").detail("d").hint("h\0cut").write(&mut out);
        let whole = frame::backend(&out).unwrap().unwrap();
        assert_eq!((whole.tag, whole.len), (BackendTag::Error, out.len()));
        let fields = backend::error(&out[frame::HEADER..]);
        assert_eq!(fields.message, b"pg-ambassador: pool exhausted");
        assert_eq!(fields.code, Some(SqlState::TOO_MANY_CONNECTIONS));
        assert!(out.ends_with(b"Hh\0\0"), "a NUL ends a string and cannot start a field");
    }

    #[test]
    fn rows_read_back_as_they_were_written() {
        let mut out = Vec::new();
        data_row(&mut out, &[Some("a"), None, Some("")]);
        assert_eq!(backend::row(&out[frame::HEADER..]), Ok(vec![Some(&b"a"[..]), None, Some(&b""[..])]));
    }
}
