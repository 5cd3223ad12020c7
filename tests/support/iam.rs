//! A server that logs nobody in without a good token: it speaks TLS, asks for a password in clear, has the test check it, and
//! leads whoever passes to a real PostgreSQL server. And AWS's side of RDS tokens: signatures are computed again.

use super::tls::Pair;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A running server. Dropped, it is gone with all its connections.
pub struct Checker {
    pub port: u16,
    acceptor: Arc<Mutex<tokio_rustls::TlsAcceptor>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    _end: tokio::sync::oneshot::Sender<()>,
}

/// A login that came as far as a password.
#[derive(Debug, Clone)]
pub struct Seen {
    pub user: String,
    pub password: String,
    pub accepted: bool,
}

/// Says whether a user may log in with this password.
type Check = dyn Fn(&str, &str) -> Result<(), String> + Send + Sync;

impl Checker {
    /// Starts one in front of a server that trusts everybody.
    pub fn start(
        pair: &Pair,
        upstream: u16,
        check: impl Fn(&str, &str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = Arc::new(Mutex::new(acceptor(pair)));
        let current = Arc::clone(&acceptor);
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (check, shared): (Arc<Check>, _) = (Arc::new(check), Arc::clone(&seen));
        let (end, ended) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let serve = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let acceptor = current.lock().unwrap().clone();
                        let (check, seen) = (Arc::clone(&check), Arc::clone(&shared));
                        tokio::spawn(async move { drop(serve(stream, acceptor, upstream, &*check, &seen).await) });
                    }
                };
                tokio::select! { () = serve => {}, _ = ended => {} }
            });
        });
        Self { port, acceptor, seen, _end: end }
    }

    /// Shows another certificate from now on.
    pub fn set_certificate(&self, pair: &Pair) {
        *self.acceptor.lock().unwrap() = acceptor(pair);
    }

    /// The logins so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many of them were accepted, and how many were not.
    pub fn counts(&self) -> (usize, usize) {
        let seen = self.seen.lock().unwrap();
        let accepted = seen.iter().filter(|login| login.accepted).count();
        (accepted, seen.len() - accepted)
    }
}

fn acceptor(pair: &Pair) -> tokio_rustls::TlsAcceptor {
    pair.server(&[&rustls::version::TLS12, &rustls::version::TLS13]).into()
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    super::client::message(tag, body)
}

async fn packet(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn serve(
    mut tcp: TcpStream,
    acceptor: tokio_rustls::TlsAcceptor,
    upstream: u16,
    check: &Check,
    seen: &Mutex<Vec<Seen>>,
) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    // Nobody gets in without TLS, but cancel requests go on as they came.
    let hello = packet(&mut tcp).await?;
    if hello[..4] != [4, 210, 22, 47] {
        let refusal = b"SFATAL\0C28000\0Mpg_hba.conf rejects connection, no encryption\0\0";
        return tcp.write_all(&message(b'E', refusal)).await;
    }
    tcp.write_all(b"S").await?;
    let mut tls = acceptor.accept(tcp).await?;
    let startup = packet(&mut tls).await?;
    let mut upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).await?;
    upstream.set_nodelay(true)?;
    if startup[..4] == [0, 3, 0, 0] || startup[..4] == [0, 3, 0, 2] {
        let words: Vec<&str> = startup[4..].split(|&b| b == 0).map(|word| std::str::from_utf8(word).unwrap()).collect();
        let user = words.chunks(2).find(|pair| pair[0] == "user").map(|pair| pair[1].to_owned()).unwrap();
        tls.write_all(&message(b'R', &[0, 0, 0, 3])).await?;
        assert_eq!(tls.read_u8().await?, b'p');
        let mut password = packet(&mut tls).await?;
        password.pop();
        let password = String::from_utf8(password).unwrap();
        let result = check(&user, &password);
        seen.lock().unwrap().push(Seen { user: user.clone(), password, accepted: result.is_ok() });
        if let Err(why) = result {
            // As RDS says it, and for the test's log why.
            let text = format!("SFATAL\0C28000\0MPAM authentication failed for user \"{user}\"\0D{why}\0\0");
            tls.write_all(&message(b'E', text.as_bytes())).await?;
            return tls.shutdown().await;
        }
    }
    upstream.write_u32(u32::try_from(startup.len()).unwrap() + 4).await?;
    upstream.write_all(&startup).await?;
    tokio::io::copy_bidirectional(&mut tls, &mut upstream).await?;
    Ok(())
}

/// What AWS knows of a key.
#[derive(Debug, Clone)]
pub struct Key {
    pub secret: String,
    pub session: Option<String>,
    pub expires: Option<SystemTime>,
}

/// All keys that were ever given out, by their ids.
#[derive(Debug, Clone, Default)]
pub struct Keys(Arc<Mutex<HashMap<String, Key>>>);

impl Keys {
    pub fn insert(&self, id: &str, key: Key) {
        self.0.lock().unwrap().insert(id.to_owned(), key);
    }

    /// A key that lives for ever.
    pub fn with(id: &str, secret: &str) -> Self {
        let keys = Self::default();
        keys.insert(id, Key { secret: secret.into(), session: None, expires: None });
        keys
    }

    /// None of the keys of now is good any more.
    pub fn revoke_all(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Checks a token as RDS does.
    pub fn check(&self, token: &str, endpoint: (&str, u16, &str), user: &str) -> Result<(), String> {
        let (host, port, region) = endpoint;
        let place = format!("{host}:{port}/?");
        let query = token.strip_prefix(&place).ok_or_else(|| format!("it is not for {place}"))?;
        let mut pairs: BTreeMap<&str, &str> =
            query.split('&').map(|pair| pair.split_once('=').ok_or("no pair")).collect::<Result<_, _>>()?;
        let signature = pairs.remove("X-Amz-Signature").ok_or("no signature")?;
        let field = |name: &str| {
            let text = pairs.get(name).ok_or_else(|| format!("no {name}"))?;
            percent_encoding::percent_decode_str(text).decode_utf8().map(String::from).map_err(|e| e.to_string())
        };
        let expected = [("Action", "connect"), ("DBUser", user), ("X-Amz-Algorithm", "AWS4-HMAC-SHA256")];
        for (name, value) in expected.into_iter().chain([("X-Amz-Expires", "900"), ("X-Amz-SignedHeaders", "host")]) {
            if field(name)? != value {
                return Err(format!("{name} is {}, not {value}", field(name)?));
            }
        }
        let credential = field("X-Amz-Credential")?;
        let (id, scope) = credential.split_once('/').ok_or("no scope")?;
        let date = field("X-Amz-Date")?;
        if scope != format!("{}/{region}/rds-db/aws4_request", &date[..8]) {
            return Err(format!("it is for {scope}"));
        }
        let key = self.0.lock().unwrap().get(id).cloned().ok_or_else(|| format!("the key {id} is not known"))?;
        if pairs.get("X-Amz-Security-Token").map(|_| field("X-Amz-Security-Token")).transpose()? != key.session {
            return Err("it has another session".into());
        }
        let canonical: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = format!(
            "GET\n/\n{}\nhost:{host}:{port}\n\nhost\n{}",
            canonical.join("&"),
            hex(digest(&SHA256, b"").as_ref())
        );
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(digest(&SHA256, request.as_bytes()).as_ref()));
        let mut secret = format!("AWS4{}", key.secret).into_bytes();
        for part in [&date[..8], region, "rds-db", "aws4_request", &to_sign] {
            let sign = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), part.as_bytes());
            secret = sign.as_ref().to_vec();
        }
        if hex(&secret) != signature {
            return Err("the signature is wrong".into());
        }
        let now = SystemTime::now();
        let signed = parse_date(&date).ok_or("no date")?;
        if now < signed - Duration::from_secs(300) || now >= signed + Duration::from_secs(900) {
            return Err("its time is over".into());
        }
        match key.expires {
            Some(end) if now >= end => Err("the key has expired".into()),
            _ => Ok(()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `20231114T221320Z`, by `date`'s arithmetic.
fn parse_date(text: &str) -> Option<SystemTime> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let seconds = number(9, 11)? * 3600 + number(11, 13)? * 60 + number(13, 15)?;
    let leap = |year: u64| u64::from(year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)));
    let years: u64 = (1970..year).map(|year| 365 + leap(year)).sum();
    let lengths = [31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months: u64 = lengths.iter().take(usize::try_from(month).ok()? - 1).sum();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs((years + months + day - 1) * 86_400 + seconds))
}

/// A time as AWS's endpoints write it.
pub fn write_date(at: SystemTime) -> String {
    let output = std::process::Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%SZ", "-d"])
        .arg(format!("@{}", at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
