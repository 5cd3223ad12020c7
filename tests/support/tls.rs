//! Certificates of every kind, and a client that speaks TLS.

use super::client::{Message, startup};
use super::{Client, Dir};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned, SupportedProtocolVersion};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

/// An authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for these names; the first is the common name too.
    pub fn sign(&self, names: &[&str]) -> Pair {
        self.sign_with(names, |_| {})
    }

    /// The same, with something special about it.
    pub fn sign_with(&self, names: &[&str], special: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = params(names);
        special(&mut params);
        let key = KeyPair::generate().unwrap();
        Pair { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// One that ran out long ago.
    pub fn sign_expired(&self, names: &[&str]) -> Pair {
        self.sign_with(names, |params| {
            params.not_before = rcgen::date_time_ymd(2019, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        })
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names[0]);
    params
}

/// A certificate that nobody has signed but itself.
pub fn self_signed(names: &[&str]) -> Pair {
    let key = KeyPair::generate().unwrap();
    Pair { cert: params(names).self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

impl Pair {
    /// Writes both; the paths of certificate and key.
    pub fn write(&self, dir: &Dir, name: &str) -> (PathBuf, PathBuf) {
        (dir.write(&format!("{name}.crt"), &self.cert), dir.write(&format!("{name}.key"), &self.key))
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.cert.as_bytes()).map(Result::unwrap).collect()
    }

    fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    /// The configuration of a server that has it, and that speaks these versions.
    pub fn server(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
        Arc::new(builder.with_no_client_auth().with_single_cert(self.chain(), self.private()).unwrap())
    }
}

/// The configuration of a client that believes this authority.
pub fn client_config(
    authority: &str,
    identity: Option<&Pair>,
    alpn: &[&[u8]],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(cert.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(pair) => builder.with_client_auth_cert(pair.chain(), pair.private()).unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// A client that speaks TLS.
pub struct TlsClient {
    pub stream: StreamOwned<ClientConnection, TcpStream>,
    input: Vec<u8>,
}

impl TlsClient {
    /// Asks for TLS with an SSLRequest.
    pub fn connect(port: u16, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let mut client = Client::connect(port);
        client.send(&[0, 0, 0, 8, 4, 210, 22, 47]);
        let mut answer = [0];
        client.stream.read_exact(&mut answer)?;
        assert_eq!(answer, *b"S");
        Self::direct(client.stream, config)
    }

    /// Speaks TLS at once.
    pub fn direct(stream: TcpStream, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, stream);
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(Self { stream, input: Vec::new() })
    }

    pub fn login(port: u16, config: &Arc<ClientConfig>, params: &[(&str, &str)]) -> io::Result<Self> {
        let mut client = Self::connect(port, config)?;
        client.start(params)?;
        Ok(client)
    }

    /// Sends a startup message and reads up to the first ReadyForQuery; an error is the message.
    pub fn start(&mut self, params: &[(&str, &str)]) -> io::Result<()> {
        self.send(&startup(params))?;
        let messages = self.read_until(b"ZE")?;
        match messages.last() {
            Some(last) if last.tag == b'E' => Err(io::Error::other(format!("{last:?}"))),
            _ => Ok(()),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    pub fn read(&mut self) -> io::Result<Message> {
        let mut chunk = [0; 65536];
        loop {
            if self.input.len() >= 5 {
                let len = 1 + u32::from_be_bytes(self.input[1..5].try_into().unwrap()) as usize;
                if self.input.len() >= len {
                    let message = Message { tag: self.input[0], body: self.input[5..len].to_vec() };
                    self.input.drain(..len);
                    return Ok(message);
                }
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => self.input.extend_from_slice(&chunk[..read]),
            }
        }
    }

    pub fn read_until(&mut self, tags: &[u8]) -> io::Result<Vec<Message>> {
        let mut messages = Vec::new();
        loop {
            messages.push(self.read()?);
            if messages.last().is_some_and(|last| tags.contains(&last.tag)) {
                return Ok(messages);
            }
        }
    }

    /// The one value of a query's one row.
    pub fn value(&mut self, sql: &str) -> io::Result<String> {
        self.send(&super::client::query(sql))?;
        let messages = self.read_until(b"Z")?;
        let row = messages.iter().find(|m| m.tag == b'D').ok_or_else(|| io::Error::other(format!("{messages:?}")))?;
        Ok(row.columns()[0].clone().unwrap_or_default())
    }
}
