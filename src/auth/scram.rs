//! SCRAM-SHA-256 and its channel-binding variant (RFC 5802, RFC 7677), both sides; one type for each state.
//!
//! The server's side works from a verifier and never sees a password; what it learns from a client's proof (the
//! client key) is enough to log in to a server that has the same verifier. The client's side works from either.

use crate::secret;
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64ct::{Base64, Encoding};
use std::borrow::Cow;
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";
/// PostgreSQL's default iteration count (`scram_iterations`).
pub const DEFAULT_ITERATIONS: u32 = 4096;
/// More iterations than this cost a CPU too long to be anything but an attack (RUSTSEC-2026-0179).
const MAX_ITERATIONS: u32 = 100_000;
/// Longest nonce or salt that is looked at, in bytes (CVE-2026-6665).
const MAX_FIELD: usize = 1024;
const KEY: usize = 32;
/// The length of a key in base64.
const ENCODED_KEY: usize = KEY.div_ceil(3) * 4;

/// Why an exchange failed. The peer is told as little as PostgreSQL tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// The message does not have the layout of its step.
    #[error("malformed SCRAM message")]
    Malformed,
    /// The peer asks for more than the limits of this implementation.
    #[error("SCRAM parameters are out of bounds")]
    Bounds,
    /// The proof does not fit the verifier: a wrong password.
    #[error("the SCRAM proof is wrong")]
    Proof,
    /// Channel binding was tampered with, or is used where it was not offered.
    #[error("SCRAM channel binding does not match")]
    Binding,
    /// The server does not know the verifier it claims to have.
    #[error("the server's SCRAM signature is wrong")]
    Server,
}

/// What `pg_authid` stores for a SCRAM user.
#[derive(Clone)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; KEY],
    server_key: [u8; KEY],
    /// What every login against it begins with.
    ready: OnceLock<Ready>,
}

/// What is the same in every exchange with one verifier.
#[derive(Clone)]
struct Ready {
    /// `StoredKey` and `ServerKey` as HMAC uses them: half of the hashing of a short message is hashing its key.
    stored_key: hmac::Key,
    server_key: hmac::Key,
    /// See [`parameters`].
    parameters: String,
}

impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        (self.iterations, &self.salt, self.stored_key, self.server_key)
            == (other.iterations, &other.salt, other.stored_key, other.server_key)
    }
}

impl Eq for Verifier {}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

/// What proves to a server that one is the user: enough to log in, not enough to know the password.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Keys {
    client_key: [u8; KEY],
    server_key: [u8; KEY],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> [u8; KEY] {
    sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data)
}

fn sign(key: &hmac::Key, data: &[u8]) -> [u8; KEY] {
    let tag = hmac::sign(key, data);
    let mut out = [0; KEY];
    out.copy_from_slice(tag.as_ref());
    out
}

fn sha256(data: &[u8]) -> [u8; KEY] {
    let mut out = [0; KEY];
    out.copy_from_slice(digest::digest(&digest::SHA256, data).as_ref());
    out
}

fn xor(a: &[u8; KEY], b: &[u8; KEY]) -> [u8; KEY] {
    std::array::from_fn(|i| a[i] ^ b[i])
}

fn decode(text: &str) -> Result<Vec<u8>, ScramError> {
    if text.len() > MAX_FIELD {
        return Err(ScramError::Bounds);
    }
    Base64::decode_vec(text).map_err(|_| ScramError::Malformed)
}

fn decode_key(text: &str) -> Result<[u8; KEY], ScramError> {
    if text.len() > MAX_FIELD {
        return Err(ScramError::Bounds);
    }
    // One byte more than a key has, which is what base64 of a key could be the beginning of.
    let mut bytes = [0; KEY + 1];
    let key = Base64::decode(text, &mut bytes).map_err(|_| ScramError::Malformed)?;
    key.try_into().map_err(|_| ScramError::Malformed)
}

impl Keys {
    /// Derives the keys of a password: slow by design, so not on a thread that has others to serve.
    pub fn derive(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        let prepared = stringprep::saslprep(password);
        let password = prepared.as_deref().unwrap_or(password);
        let mut salted = [0; KEY];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, password.as_bytes(), &mut salted);
        let keys =
            Self { client_key: hmac_sha256(&salted, b"Client Key"), server_key: hmac_sha256(&salted, b"Server Key") };
        salted.zeroize();
        keys
    }
}

impl Verifier {
    /// Makes a verifier, as `CREATE ROLE` does; the salt should be random.
    pub fn new(password: &str, salt: &[u8], iterations: NonZeroU32) -> Self {
        let keys = Keys::derive(password, salt, iterations);
        Self {
            iterations: iterations.get(),
            salt: salt.to_vec(),
            stored_key: sha256(&keys.client_key),
            server_key: keys.server_key,
            ready: OnceLock::new(),
        }
    }

    /// Reads PostgreSQL's form: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        let iterations: u32 = iterations.parse().ok()?;
        (1..=MAX_ITERATIONS).contains(&iterations).then_some(())?;
        Some(Self {
            iterations,
            salt: decode(salt).ok()?,
            stored_key: decode_key(stored_key).ok()?,
            server_key: decode_key(server_key).ok()?,
            ready: OnceLock::new(),
        })
    }

    /// Whether this is the password. Slow by design.
    pub fn fits(&self, password: &str) -> bool {
        let Some(iterations) = NonZeroU32::new(self.iterations) else { return false };
        let keys = Keys::derive(password, &self.salt, iterations);
        secret::is_same(&sha256(&keys.client_key), &self.stored_key)
    }

    /// A verifier for a user that does not exist, as [`Mock`] makes it.
    pub fn mock(user: &str, process_secret: &[u8; KEY]) -> Self {
        Mock::new(process_secret).verifier(user, DEFAULT_ITERATIONS)
    }

    /// How often it has a password hashed.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }

    fn ready(&self) -> &Ready {
        self.ready.get_or_init(|| Ready {
            stored_key: hmac::Key::new(hmac::HMAC_SHA256, &self.stored_key),
            server_key: hmac::Key::new(hmac::HMAC_SHA256, &self.server_key),
            parameters: parameters(&self.salt, self.iterations),
        })
    }
}

/// Makes verifiers for users that do not exist: the same one each time, so that the exchange tells nothing. All but the
/// salt is made beforehand, so that an exchange with one takes as long as one with a verifier that is kept.
pub struct Mock {
    salts: hmac::Key,
    stored_key: [u8; KEY],
    server_key: [u8; KEY],
    signers: [hmac::Key; 2],
}

impl std::fmt::Debug for Mock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mock")
    }
}

impl Mock {
    /// For a process with this secret.
    pub fn new(process_secret: &[u8; KEY]) -> Self {
        let salts = hmac::Key::new(hmac::HMAC_SHA256, process_secret);
        let keys = [b"stored", b"server"].map(|name| sign(&salts, name));
        let signers = keys.map(|key| hmac::Key::new(hmac::HMAC_SHA256, &key));
        Self { salts, stored_key: keys[0], server_key: keys[1], signers }
    }

    /// The verifier of a user, with as many iterations as those of others have.
    pub fn verifier(&self, user: &str, iterations: u32) -> Verifier {
        let salt = sign(&self.salts, user.as_bytes())[..16].to_vec();
        let [stored_key, server_key] = self.signers.clone();
        let ready = Ready { stored_key, server_key, parameters: parameters(&salt, iterations) };
        Verifier {
            iterations,
            salt,
            stored_key: self.stored_key,
            server_key: self.server_key,
            ready: OnceLock::from(ready),
        }
    }
}

/// The attributes that the server's first message ends with.
fn parameters(salt: &[u8], iterations: u32) -> String {
    format!("s={},i={iterations}", Base64::encode_string(salt))
}

impl std::fmt::Display for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [salt, stored, server] = [&self.salt[..], &self.stored_key, &self.server_key].map(Base64::encode_string);
        write!(f, "SCRAM-SHA-256${}:{salt}${stored}:{server}", self.iterations)
    }
}

/// The value of the next attribute of a message, which must have this letter.
fn attribute<'a>(rest: &mut std::str::Split<'a, char>, letter: &str) -> Result<&'a str, ScramError> {
    let field = rest.next().ok_or(ScramError::Malformed)?;
    field.strip_prefix(letter).and_then(|f| f.strip_prefix('=')).ok_or(ScramError::Malformed)
}

// ----------------------------------------------------------------------------------------------- the server's side

/// The server's side, waiting for the client's proof.
pub struct ServerExchange {
    verifier: Arc<Verifier>,
    /// What the client must send back as its `c` attribute.
    binding: Cow<'static, str>,
    /// The client's first message without its header, and ours, as they go into the signature.
    auth_message: String,
    /// Where in it our message begins.
    first: usize,
    /// Where in it the nonce is.
    nonce: Range<usize>,
}

impl ServerExchange {
    /// Takes the client's first message. `end_point` is our channel binding data where TLS has one; `plus` is whether the
    /// client chose the mechanism with channel binding.
    pub fn start(
        client_first: &[u8],
        verifier: impl Into<Arc<Verifier>>,
        end_point: Option<&[u8]>,
        plus: bool,
        our_nonce: &str,
    ) -> Result<Self, ScramError> {
        let verifier = verifier.into();
        let text = std::str::from_utf8(client_first).map_err(|_| ScramError::Malformed)?;
        if text.len() > 2 * MAX_FIELD {
            return Err(ScramError::Bounds);
        }
        let mut fields = text.split(',');
        let flag = fields.next().ok_or(ScramError::Malformed)?;
        let authzid = fields.next().ok_or(ScramError::Malformed)?;
        if !authzid.is_empty() {
            return Err(ScramError::Malformed);
        }
        let binding: Cow<'static, str> = match (flag, plus, end_point) {
            // Of "n,,", and of "y,,".
            ("n", false, _) => "biws".into(),
            // "I could, but you cannot": a lie told by someone in between, if we did offer it.
            ("y", false, None) => "eSws".into(),
            ("p=tls-server-end-point", true, Some(end_point)) => {
                Base64::encode_string(&[flag.as_bytes(), b",,", end_point].concat()).into()
            }
            ("n" | "y" | "p=tls-server-end-point", ..) => return Err(ScramError::Binding),
            _ => return Err(ScramError::Malformed),
        };
        let bare = text.get(flag.len() + 2..).ok_or(ScramError::Malformed)?;
        // The user was named in the startup packet; the name here is ignored, as PostgreSQL does.
        attribute(&mut fields, "n")?;
        let client_nonce = attribute(&mut fields, "r")?;
        if client_nonce.is_empty() || !client_nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ScramError::Malformed);
        }
        let parameters = &verifier.ready().parameters;
        let nonce = client_nonce.len() + our_nonce.len();
        // The client's last message, which is put behind, has the nonce once more and little else.
        let mut auth_message = String::with_capacity(bare.len() + 2 * nonce + parameters.len() + binding.len() + 16);
        auth_message.extend([bare, ","]);
        let first = auth_message.len();
        auth_message.extend(["r=", client_nonce, our_nonce]);
        let nonce = first + 2..auth_message.len();
        auth_message.extend([",", parameters]);
        Ok(Self { verifier, binding, auth_message, first, nonce })
    }

    /// Our first message.
    pub fn message(&self) -> &str {
        &self.auth_message[self.first..]
    }

    /// Takes the client's proof; gives our final message, and the keys that log in elsewhere as this user.
    pub fn finish(self, client_final: &[u8]) -> Result<(String, Keys), ScramError> {
        let text = std::str::from_utf8(client_final).map_err(|_| ScramError::Malformed)?;
        let (without_proof, proof) = text.rsplit_once(',').ok_or(ScramError::Malformed)?;
        let proof = proof.strip_prefix("p=").ok_or(ScramError::Malformed)?;
        let mut fields = without_proof.split(',');
        let binding = attribute(&mut fields, "c")?;
        let nonce = attribute(&mut fields, "r")?;
        if binding != self.binding {
            return Err(ScramError::Binding);
        }
        let Self { verifier, mut auth_message, .. } = self;
        if *nonce != auth_message[self.nonce] {
            return Err(ScramError::Malformed);
        }
        let proof = decode_key(proof)?;
        auth_message.extend([",", without_proof]);
        let ready = verifier.ready();
        let signature = sign(&ready.stored_key, auth_message.as_bytes());
        let client_key = xor(&proof, &signature);
        if !secret::is_same(&sha256(&client_key), &verifier.stored_key) {
            return Err(ScramError::Proof);
        }
        let server_signature = sign(&ready.server_key, auth_message.as_bytes());
        let keys = Keys { client_key, server_key: verifier.server_key };
        let mut last = String::with_capacity(2 + ENCODED_KEY);
        last.push_str("v=");
        let mut encoded = [0; ENCODED_KEY];
        last.push_str(Base64::encode(&server_signature, &mut encoded).unwrap_or_default());
        Ok((last, keys))
    }
}

// ----------------------------------------------------------------------------------------------- the client's side

/// Our channel binding towards a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding<'a> {
    /// No TLS, or a certificate that has no binding data.
    None,
    /// TLS, but the server did not offer the mechanism.
    NotOffered,
    /// The hash of the server's certificate.
    EndPoint(&'a [u8]),
}

impl Binding<'_> {
    fn header(self) -> &'static str {
        match self {
            Self::None => "n,,",
            Self::NotOffered => "y,,",
            Self::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    fn data(self) -> Vec<u8> {
        match self {
            Self::None | Self::NotOffered => self.header().into(),
            Self::EndPoint(data) => [self.header().as_bytes(), data].concat(),
        }
    }
}

/// The client's side, waiting for the server's first message.
pub struct ClientFirst {
    nonce: String,
    header: &'static str,
    binding: String,
}

impl ClientFirst {
    /// Starts an exchange.
    pub fn start(binding: Binding<'_>, nonce: String) -> Self {
        Self { header: binding.header(), binding: Base64::encode_string(&binding.data()), nonce }
    }

    /// Our first message. PostgreSQL takes the user from the startup packet.
    pub fn message(&self) -> String {
        format!("{}n=,r={}", self.header, self.nonce)
    }

    /// Takes the server's first message.
    pub fn challenge(self, server_first: &[u8]) -> Result<Challenge, ScramError> {
        if server_first.len() > 3 * MAX_FIELD {
            return Err(ScramError::Bounds);
        }
        let text = std::str::from_utf8(server_first).map_err(|_| ScramError::Malformed)?;
        let mut fields = text.split(',');
        let nonce = attribute(&mut fields, "r")?;
        let salt = decode(attribute(&mut fields, "s")?)?;
        let iterations: i64 = attribute(&mut fields, "i")?.parse().map_err(|_| ScramError::Malformed)?;
        let iterations = u32::try_from(iterations).ok().filter(|i| *i <= MAX_ITERATIONS).and_then(NonZeroU32::new);
        if nonce.len() > MAX_FIELD || !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Bounds);
        }
        Ok(Challenge {
            salt,
            iterations: iterations.ok_or(ScramError::Bounds)?,
            without_proof: format!("c={},r={nonce}", self.binding),
            auth_message: format!("n=,r={},{text}", self.nonce),
        })
    }
}

/// The client's side, knowing salt and iterations.
pub struct Challenge {
    /// The salt of the user's password.
    pub salt: Vec<u8>,
    /// How often it is hashed.
    pub iterations: NonZeroU32,
    without_proof: String,
    auth_message: String,
}

impl Challenge {
    /// Proves that we have the keys; gives our final message.
    pub fn prove(self, keys: &Keys) -> (String, ServerFinal) {
        let auth_message = format!("{},{}", self.auth_message, self.without_proof);
        let signature = hmac_sha256(&sha256(&keys.client_key), auth_message.as_bytes());
        let proof = xor(&keys.client_key, &signature);
        let expected = hmac_sha256(&keys.server_key, auth_message.as_bytes());
        (format!("{},p={}", self.without_proof, Base64::encode_string(&proof)), ServerFinal { expected })
    }
}

/// The client's side, waiting for the server to prove itself.
pub struct ServerFinal {
    expected: [u8; KEY],
}

impl ServerFinal {
    /// Takes the server's final message.
    pub fn verify(self, server_final: &[u8]) -> Result<(), ScramError> {
        let text = std::str::from_utf8(server_final).map_err(|_| ScramError::Malformed)?;
        let signature = decode_key(attribute(&mut text.split(','), "v")?)?;
        if secret::is_same(&signature, &self.expected) { Ok(()) } else { Err(ScramError::Server) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::nonce;

    const ITERATIONS: NonZeroU32 = NonZeroU32::new(DEFAULT_ITERATIONS).unwrap();

    /// Runs a whole exchange of our client against our server.
    fn exchange(
        password: &str,
        verifier: &Verifier,
        client: Binding<'_>,
        end_point: Option<&[u8]>,
    ) -> Result<(), ScramError> {
        let plus = matches!(client, Binding::EndPoint(_));
        let first = ClientFirst::start(client, nonce());
        let server = ServerExchange::start(first.message().as_bytes(), verifier.clone(), end_point, plus, &nonce())?;
        let challenge = first.challenge(server.message().as_bytes())?;
        let keys = Keys::derive(password, &challenge.salt, challenge.iterations);
        let (proof, last) = challenge.prove(&keys);
        let (message, learnt) = server.finish(proof.as_bytes())?;
        assert_eq!(learnt.client_key, keys.client_key, "what the server learns is what logs in elsewhere");
        last.verify(message.as_bytes())
    }

    #[test]
    fn scram_password_ok_wrong_missing() {
        let verifier = Verifier::new("pencil", b"salt", ITERATIONS);
        assert_eq!(exchange("pencil", &verifier, Binding::None, None), Ok(()));
        assert_eq!(exchange("pencil", &verifier, Binding::NotOffered, None), Ok(()));
        assert_eq!(exchange("Pencil", &verifier, Binding::None, None), Err(ScramError::Proof));
        assert_eq!(exchange("", &verifier, Binding::None, None), Err(ScramError::Proof));
        assert_eq!(exchange("pencil", &Verifier::mock("x", &[1; 32]), Binding::None, None), Err(ScramError::Proof));
    }

    #[test]
    fn i18_whoever_does_not_exist_has_the_same_verifier_each_time_and_another_than_others() {
        let mock = Mock::new(&[7; 32]);
        let first_message = |user: &str| {
            let exchange =
                ServerExchange::start(b"n,,n=,r=abc", mock.verifier(user, DEFAULT_ITERATIONS), None, false, "def")
                    .unwrap();
            exchange.message().to_owned()
        };
        assert_eq!(first_message("ann"), first_message("ann"));
        assert_ne!(first_message("ann"), first_message("bob"));
        let real = Verifier::new("pencil", &[1; 16], ITERATIONS);
        let real = ServerExchange::start(b"n,,n=,r=abc", real, None, false, "def").unwrap();
        assert_eq!(first_message("ann").len(), real.message().len(), "nothing about its message is special");
    }

    #[test]
    fn a_verifier_serves_any_number_of_exchanges() {
        let verifier = Verifier::new("pencil", b"salt", ITERATIONS);
        for _ in 0..3 {
            assert_eq!(exchange("pencil", &verifier, Binding::None, None), Ok(()));
            assert_eq!(exchange("Pencil", &verifier, Binding::None, None), Err(ScramError::Proof));
        }
    }

    #[test]
    fn i13_channel_binding_cannot_be_stripped_or_swapped() {
        let verifier = Verifier::new("pencil", b"salt", ITERATIONS);
        let [ours, theirs] = [b"hash of our certificate".as_slice(), b"hash of another certificate"];
        assert_eq!(exchange("pencil", &verifier, Binding::EndPoint(ours), Some(ours)), Ok(()));
        assert_eq!(exchange("pencil", &verifier, Binding::EndPoint(theirs), Some(ours)), Err(ScramError::Binding));
        assert_eq!(exchange("pencil", &verifier, Binding::EndPoint(ours), None), Err(ScramError::Binding));
        assert_eq!(exchange("pencil", &verifier, Binding::NotOffered, Some(ours)), Err(ScramError::Binding));
        assert_eq!(exchange("pencil", &verifier, Binding::None, Some(ours)), Ok(()));
    }

    #[test]
    fn our_client_agrees_with_an_independent_server_verifier_and_our_server_with_an_independent_client() {
        use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
        // Verifiers: ours reads what postgres-protocol writes.
        let verifier = Verifier::parse(&postgres_protocol::password::scram_sha_256(b"p\xc3\xa4ss")).unwrap();
        assert_eq!(exchange("p\u{e4}ss", &verifier, Binding::None, None), Ok(()));
        // Exchange: postgres-protocol's client against our server.
        let mut client = ScramSha256::new("p\u{e4}ss".as_bytes(), ChannelBinding::unsupported());
        let server = ServerExchange::start(client.message(), verifier, None, false, &nonce()).unwrap();
        client.update(server.message().as_bytes()).unwrap();
        let (last, _) = server.finish(client.message()).unwrap();
        client.finish(last.as_bytes()).unwrap();
    }

    #[test]
    fn i14_a_servers_parameters_are_bounded_before_any_work_is_done() {
        let start = || ClientFirst::start(Binding::None, "abc".into());
        let long = "x".repeat(64 * 1024);
        for (message, error) in [
            ("r=abcd,s=AAAA,i=2147483647".to_owned(), ScramError::Bounds),
            ("r=abcd,s=AAAA,i=100001".to_owned(), ScramError::Bounds),
            ("r=abcd,s=AAAA,i=0".to_owned(), ScramError::Bounds),
            ("r=abcd,s=AAAA,i=-1".to_owned(), ScramError::Bounds),
            ("r=abcd,s=AAAA,i=x".to_owned(), ScramError::Malformed),
            (format!("r=abc{long},s=AAAA,i=4096"), ScramError::Bounds),
            (format!("r=abcd,s={long},i=4096"), ScramError::Bounds),
            ("r=xyz,s=AAAA,i=4096".to_owned(), ScramError::Bounds),
            ("r=abc,s=AAAA,i=4096".to_owned(), ScramError::Bounds),
            ("e=other-error".to_owned(), ScramError::Malformed),
        ] {
            assert_eq!(start().challenge(message.as_bytes()).err(), Some(error), "{:.60}", message);
        }
        assert!(start().challenge(b"r=abcd,s=AAAA,i=4096").is_ok());
    }

    #[test]
    fn a_servers_false_signature_is_noticed() {
        let first = ClientFirst::start(Binding::None, "abc".into());
        let challenge = first.challenge(b"r=abcd,s=AAAA,i=4096").unwrap();
        let keys = Keys::derive("x", &challenge.salt, challenge.iterations);
        let (_, last) = challenge.prove(&keys);
        assert_eq!(last.verify(format!("v={}", Base64::encode_string(&[0; 32])).as_bytes()), Err(ScramError::Server));
    }

    #[test]
    fn malformed_client_messages_are_refused() {
        let start = |m: &[u8]| ServerExchange::start(m, Verifier::mock("u", &[0; 32]), None, false, "n").map(|_| ());
        for message in
            [b"".as_slice(), b"n", b"n,", b"n,,", b"n,,n=", b"n,,n=,r=", b"n,a=x,n=,r=abc", b"x,,n=,r=abc", b"\xff"]
        {
            assert_eq!(start(message), Err(ScramError::Malformed), "{:?}", message.escape_ascii().to_string());
        }
        assert_eq!(start(b"n,,n=,r=abc"), Ok(()));
    }

    #[test]
    fn a_verifier_reads_back_as_it_was_written() {
        let verifier = Verifier::new("x", b"salt", ITERATIONS);
        assert_eq!(Verifier::parse(&verifier.to_string()), Some(verifier));
        for bad in ["", "SCRAM-SHA-256$", "SCRAM-SHA-256$4096:AA==$AA==:AA==", "SCRAM-SHA-256$0:AA==$x:y", "md5abc"] {
            assert_eq!(Verifier::parse(bad), None, "{bad}");
        }
    }
}
