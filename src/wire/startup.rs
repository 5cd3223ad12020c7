//! The untagged packets a connection may begin with: startup, TLS or GSS request, cancel request.

use super::FrameError;
use thiserror::Error;

/// PostgreSQL's limit for a startup packet (`MAX_STARTUP_PACKET_LENGTH`, pqcomm.h), which does not count the length word.
pub const MAX_PACKET: usize = 10_000 + 4;
/// The first byte of a TLS record that carries a ClientHello: the client speaks TLS directly, without asking.
pub const TLS_HANDSHAKE: u8 = 0x16;
/// The newest minor version of protocol 3 that we speak.
pub const NEWEST_MINOR: u16 = 2;

const CANCEL: u32 = (1234 << 16) | 5678;
const SSL: u32 = (1234 << 16) | 5679;
const GSS: u32 = (1234 << 16) | 5680;
/// The longest cancel secret of protocol 3.2, in bytes.
const MAX_SECRET: usize = 256;

/// What a connection's first packet asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// SSLRequest: answered `S` or `N`.
    Tls,
    /// GSSENCRequest: answered `N`.
    Gss,
    /// CancelRequest, with the key it names.
    Cancel(CancelKey),
    /// StartupMessage.
    Startup(Startup),
}

/// The key of a session that may be cancelled: what BackendKeyData handed out and a CancelRequest brings back.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelKey {
    /// The process id.
    pub pid: i32,
    /// The secret: 4 bytes in protocol 3.0, up to 256 in 3.2.
    pub secret: Box<[u8]>,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelKey {{ pid: {}, secret: [{} bytes] }}", self.pid, self.secret.len())
    }
}

impl CancelKey {
    /// The whole CancelRequest packet for this key.
    pub fn request(&self) -> Vec<u8> {
        let len = 12 + self.secret.len();
        let mut packet = Vec::with_capacity(len);
        packet.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        packet.extend(CANCEL.to_be_bytes());
        packet.extend(self.pid.to_be_bytes());
        packet.extend(&*self.secret);
        packet
    }
}

/// A StartupMessage of protocol 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// The minor protocol version the client asked for.
    pub minor: u16,
    /// The role the client wants to be.
    pub user: String,
    /// The database; PostgreSQL takes the user's name where none is given.
    pub database: String,
    /// `replication`, as it was written, where it is not false.
    pub replication: Option<String>,
    /// `options`, as it was written: command-line switches for the backend.
    pub options: Option<String>,
    /// Protocol options (`_pq_.*`), none of which we know: they are named in NegotiateProtocolVersion.
    pub unknown_options: Vec<String>,
    /// Everything else: settings of the session, in the order they came.
    pub settings: Vec<(String, String)>,
}

/// Why a startup packet is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StartupError {
    /// PostgreSQL closes without a word, and so do we.
    #[error("invalid length of startup packet")]
    Length,
    /// The secret of a cancel request has no possible length.
    #[error("invalid cancel request")]
    Cancel,
    /// A major version other than 3.
    #[error("unsupported frontend protocol {0}.{1}: server supports 3.0 to 3.{NEWEST_MINOR}")]
    Version(u16, u16),
    /// Names and values are not terminated strings.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// A name or value is not UTF-8.
    #[error("invalid byte sequence for encoding \"UTF8\" in startup packet")]
    Encoding,
    /// No `user`.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
}

/// The size of the packet at the start of `buf`, its length word included; `None` until that word has arrived.
pub fn packet_len(buf: &[u8]) -> Result<Option<usize>, StartupError> {
    let Some(word) = buf.first_chunk::<4>() else { return Ok(None) };
    match usize::try_from(i32::from_be_bytes(*word)) {
        Ok(len) if (8..=MAX_PACKET).contains(&len) => Ok(Some(len)),
        _ => Err(StartupError::Length),
    }
}

impl Hello {
    /// Reads one whole packet, its length word included.
    pub fn parse(packet: &[u8]) -> Result<Self, StartupError> {
        let (Some(code), Some(body)) = (packet.get(4..8).and_then(|c| c.first_chunk::<4>()), packet.get(8..)) else {
            return Err(StartupError::Length);
        };
        match u32::from_be_bytes(*code) {
            SSL => Ok(Self::Tls),
            GSS => Ok(Self::Gss),
            CANCEL => match body.split_first_chunk::<4>() {
                Some((pid, secret)) if (1..=MAX_SECRET).contains(&secret.len()) => {
                    Ok(Self::Cancel(CancelKey { pid: i32::from_be_bytes(*pid), secret: secret.into() }))
                }
                _ => Err(StartupError::Cancel),
            },
            _ => {
                let major = u16::from_be_bytes([code[0], code[1]]);
                let minor = u16::from_be_bytes([code[2], code[3]]);
                if major != 3 {
                    return Err(StartupError::Version(major, minor));
                }
                Startup::parse(minor, body).map(Self::Startup)
            }
        }
    }
}

impl Startup {
    fn parse(minor: u16, body: &[u8]) -> Result<Self, StartupError> {
        // Pairs of terminated strings, and one empty name at the end.
        let pairs = body.strip_suffix(b"\0").ok_or(StartupError::Layout)?;
        let mut words = pairs.split_inclusive(|&b| b == 0).map(|word| {
            let word = word.strip_suffix(b"\0").ok_or(StartupError::Layout)?;
            std::str::from_utf8(word).map_err(|_| StartupError::Encoding)
        });
        let (mut user, mut database) = (None, None);
        let mut startup = Self {
            minor,
            user: String::new(),
            database: String::new(),
            replication: None,
            options: None,
            unknown_options: Vec::new(),
            settings: Vec::new(),
        };
        while let Some(name) = words.next().transpose()? {
            let value = words.next().transpose()?.ok_or(StartupError::Layout)?;
            match name {
                "user" => user = Some(value),
                "database" => database = Some(value),
                "options" => startup.options = Some(value.to_owned()),
                "replication" => startup.replication = (!is_false(value)).then(|| value.to_owned()),
                "" => return Err(StartupError::Layout),
                option if option.starts_with("_pq_.") => startup.unknown_options.push(name.to_owned()),
                _ => startup.settings.push((name.to_owned(), value.to_owned())),
            }
        }
        let user = user.filter(|u| !u.is_empty()).ok_or(StartupError::NoUser)?;
        startup.user = user.to_owned();
        startup.database = database.filter(|d| !d.is_empty()).unwrap_or(user).to_owned();
        Ok(startup)
    }

    /// The minor version the session will speak.
    pub fn spoken_minor(&self) -> u16 {
        self.minor.min(NEWEST_MINOR)
    }

    /// Whether the client has to be told that it gets less than it asked for.
    pub fn needs_negotiation(&self) -> bool {
        self.minor > NEWEST_MINOR || !self.unknown_options.is_empty()
    }
}

/// PostgreSQL's `parse_bool` for the spellings of false that occur in `replication`.
fn is_false(value: &str) -> bool {
    ["false", "off", "no", "0"].iter().any(|f| f.eq_ignore_ascii_case(value))
}

/// Writes a StartupMessage of protocol 3.0 with these parameters.
pub fn message<'a>(params: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Vec<u8>, FrameError> {
    let mut packet = vec![0, 0, 0, 0, 0, 3, 0, 0];
    for (name, value) in params {
        if name.contains('\0') || value.contains('\0') {
            return Err(FrameError::Body("startup"));
        }
        packet.extend(name.as_bytes());
        packet.push(0);
        packet.extend(value.as_bytes());
        packet.push(0);
    }
    packet.push(0);
    let len = i32::try_from(packet.len()).map_err(|_| FrameError::Body("startup"))?;
    packet[..4].copy_from_slice(&len.to_be_bytes());
    Ok(packet)
}

/// Splits `options` as PostgreSQL does (`pg_split_opts`): at white space, a backslash takes the next character as it is.
fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chars = options.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return words;
        }
        let mut word = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_ascii_whitespace()) {
            word.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
        }
        words.push(word);
    }
}

/// The settings that `options` makes: `-c name=value`, `-cname=value` and `--name=value`.
///
/// # Errors
/// The first word that is none of these: a backend switch whose meaning we would have to guess.
pub fn options_settings(options: &str) -> Result<Vec<(String, String)>, String> {
    let mut words = split_options(options).into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let (assignment, shown) = if word == "-c" {
            let next = words.next().ok_or_else(|| word.clone())?;
            (next.clone(), next)
        } else if let Some(rest) = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            (rest.to_owned(), word)
        } else {
            return Err(word);
        };
        let (name, value) = assignment.split_once('=').ok_or(shown)?;
        // PostgreSQL lets a dash stand for an underscore here (ParseLongOption, guc.c).
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: [u8; 4], body: &[u8]) -> Vec<u8> {
        let mut packet = u32::try_from(8 + body.len()).unwrap().to_be_bytes().to_vec();
        packet.extend(code);
        packet.extend(body);
        packet
    }

    fn startup(body: &[u8]) -> Result<Startup, StartupError> {
        match Hello::parse(&packet([0, 3, 0, 0], body))? {
            Hello::Startup(startup) => Ok(startup),
            other @ (Hello::Tls | Hello::Gss | Hello::Cancel(_)) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_database_is_the_user_where_none_is_named() {
        let parsed = startup(b"user\0ann\0application_name\0x\0\0").unwrap();
        assert_eq!((parsed.user.as_str(), parsed.database.as_str()), ("ann", "ann"));
        assert_eq!(parsed.settings, [("application_name".to_owned(), "x".to_owned())]);
    }

    #[test]
    fn a_packet_of_another_layout_is_refused_with_postgresqls_words() {
        for (body, error) in [
            (b"user\0ann\0".as_slice(), StartupError::Layout),
            (b"user\0ann", StartupError::Layout),
            (b"user\0\0\0", StartupError::NoUser),
            (b"\0", StartupError::NoUser),
            (b"", StartupError::Layout),
            (b"user\0a\xff\0\0", StartupError::Encoding),
            (b"user\0ann\0database\0\0", StartupError::Layout),
        ] {
            assert_eq!(startup(body), Err(error), "{:?}", body.escape_ascii().to_string());
        }
        assert_eq!(Hello::parse(&packet([0, 2, 0, 0], b"")), Err(StartupError::Version(2, 0)));
    }

    #[test]
    fn unknown_protocol_options_and_newer_minors_are_negotiated_not_refused() {
        let Hello::Startup(parsed) = Hello::parse(&packet([0, 3, 0, 99], b"user\0a\0_pq_.grease\0x\0\0")).unwrap()
        else {
            panic!()
        };
        assert!(parsed.needs_negotiation() && parsed.settings.is_empty());
        assert_eq!(
            (parsed.spoken_minor(), parsed.unknown_options.as_slice()),
            (2, ["_pq_.grease".to_owned()].as_slice())
        );
    }

    #[test]
    fn a_cancel_request_round_trips_with_short_and_long_secrets() {
        for secret in [vec![1, 2, 3, 4], vec![9; 32], vec![7; 256]] {
            let key = CancelKey { pid: -5, secret: secret.into() };
            assert_eq!(Hello::parse(&key.request()), Ok(Hello::Cancel(key)));
        }
        assert_eq!(Hello::parse(&packet(CANCEL.to_be_bytes(), b"\0\0\0\x01")), Err(StartupError::Cancel));
    }

    #[test]
    fn a_packet_length_outside_postgresqls_limits_is_refused() {
        for len in [0u32, 4, 7, 10_005, u32::MAX, 1 << 31] {
            assert_eq!(packet_len(&len.to_be_bytes()), Err(StartupError::Length), "{len}");
        }
        assert_eq!(packet_len(&[0, 0, 0]), Ok(None));
        assert_eq!(packet_len(&[0, 0, 0, 8]), Ok(Some(8)));
        assert_eq!(packet_len(&10_004u32.to_be_bytes()), Ok(Some(10_004)));
    }

    #[test]
    fn options_are_split_as_postgresql_splits_them() {
        let settings = options_settings(r"-c a=1 --b-c=x\ y  -cd=e=f").unwrap();
        let expected = [("a", "1"), ("b_c", "x y"), ("d", "e=f")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(settings, expected);
        for (bad, word) in [("-d 5", "-d"), ("-c", "-c"), ("-c a", "a"), ("x", "x")] {
            assert_eq!(options_settings(bad), Err(word.to_owned()));
        }
    }
}
