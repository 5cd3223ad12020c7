//! TLS configurations of both sides, made from files. One provider for the whole program: aws-lc-rs.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use x509_cert::der::{Decode, asn1::AnyRef};

/// The protocol name that PostgreSQL has registered for TLS's application-layer negotiation.
pub const ALPN: &[u8] = b"postgresql";

/// How much of TLS an upstream connection insists on, in libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// Plain first; TLS if the server refuses that.
    Allow,
    /// TLS if the server has it; else plain.
    Prefer,
    /// TLS, but anyone's certificate.
    Require,
    /// TLS, with a certificate that a known authority has signed.
    VerifyCa,
    /// TLS, with such a certificate for the very host that was dialled.
    VerifyFull,
}

impl SslMode {
    /// Reads libpq's spelling.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "disable" => Self::Disable,
            "allow" => Self::Allow,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }

    /// libpq's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

/// Where the certificate authorities come from that a peer's certificate is checked against.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authorities {
    /// The system's.
    System,
    /// Those in this PEM file.
    File(PathBuf),
}

/// A certificate chain and its private key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The chain, our own certificate first.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// What TLS upstream is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// How much of it is insisted on.
    pub mode: SslMode,
    /// Whom to believe; empty means the system's authorities.
    pub authorities: Vec<Authorities>,
    /// Who we are, for servers that ask for a client certificate.
    pub identity: Option<Identity>,
    /// Whether to speak TLS at once instead of asking with an SSLRequest (`sslnegotiation=direct`, PostgreSQL 17).
    pub direct: bool,
}

/// What TLS towards clients is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// Who we are.
    pub identity: Identity,
    /// Whose client certificates are accepted. None are asked for without it.
    pub client_authorities: Option<PathBuf>,
    /// Whether a client without TLS is refused.
    pub required: bool,
}

/// Why no TLS configuration can be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of the kind that is wanted.
    #[error("{what} {}: {error}", .path.display())]
    File {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// A file holds no certificate.
    #[error("{what} {} holds no certificate", .path.display())]
    Empty {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The system has no certificate authorities where they are looked for.
    #[error("no system certificate authorities were found: install ca-certificates, or name a CA file")]
    NoSystemRoots,
    /// Certificate and key do not fit, or are of a kind that is not supported.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    /// The authorities cannot be used.
    #[error("{0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn read_certs(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |error| TlsError::File { what, path: path.to_owned(), error };
    let certs: Vec<_> = CertificateDer::pem_file_iter(path).map_err(error)?.collect::<Result<_, _>>().map_err(error)?;
    if certs.is_empty() { Err(TlsError::Empty { what, path: path.to_owned() }) } else { Ok(certs) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| TlsError::File {
        what: "key file",
        path: path.to_owned(),
        error,
    })
}

fn read_roots(authorities: &[Authorities]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let system = [Authorities::System];
    for authority in if authorities.is_empty() { &system } else { authorities } {
        match authority {
            Authorities::System => {
                let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if added == 0 {
                    return Err(TlsError::NoSystemRoots);
                }
            }
            Authorities::File(path) => {
                for cert in read_certs("CA file", path)? {
                    roots.add(cert)?;
                }
            }
        }
    }
    Ok(roots)
}

impl UpstreamTls {
    /// Reads the files and makes the configuration. Not to be called for [`SslMode::Disable`].
    pub fn load(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = provider();
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        // libpq: with a CA at hand `require` checks the chain as `verify-ca` does.
        let mode =
            if self.mode == SslMode::Require && !self.authorities.is_empty() { SslMode::VerifyCa } else { self.mode };
        let builder = match mode {
            SslMode::VerifyFull => builder.with_root_certificates(read_roots(&self.authorities)?),
            SslMode::VerifyCa => {
                let roots = Arc::new(read_roots(&self.authorities)?);
                let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider).build()?;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(verifier)))
            }
            SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => {
                let algorithms = provider.signature_verification_algorithms;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(algorithms)))
            }
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                builder.with_client_auth_cert(read_certs("certificate file", cert)?, read_key(key)?)?
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }

    /// Whether the configuration proves who the server is: only then may a password leave in clear.
    pub fn verifies(&self) -> bool {
        match self.mode {
            SslMode::VerifyCa | SslMode::VerifyFull => true,
            SslMode::Require => !self.authorities.is_empty(),
            SslMode::Disable | SslMode::Allow | SslMode::Prefer => false,
        }
    }
}

/// The configuration of a client of web servers, who are to be known by the system's authorities.
///
/// # Errors
/// There are none.
#[cfg(feature = "http-client")]
pub fn web_client() -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(read_roots(&[])?).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl ListenerTls {
    /// Reads the files and makes the configuration.
    pub fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = provider();
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(read_roots(&[Authorities::File(path.clone())])?);
                // A client without a certificate may still log in by another method.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).allow_unauthenticated();
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let Identity { cert, key } = &self.identity;
        let mut config = builder.with_single_cert(read_certs("certificate file", cert)?, read_key(key)?)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Sessions of a pooler live long: resumption would only cost memory.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    /// Our own certificate, for channel binding.
    pub fn leaf(&self) -> Result<CertificateDer<'static>, TlsError> {
        let certs = read_certs("certificate file", &self.identity.cert)?;
        certs
            .into_iter()
            .next()
            .ok_or_else(|| TlsError::Empty { what: "certificate file", path: self.identity.cert.clone() })
    }
}

/// The name to check a server's certificate for.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{host:?} is no name a certificate can have")))
}

/// The channel binding data of type `tls-server-end-point` (RFC 5929) for a server's certificate: its hash by the
/// function that its signature uses, or SHA-256 in place of MD5 and SHA-1. None for signatures without such a function.
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    use aws_lc_rs_digest::{SHA256, SHA384, SHA512, digest};
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let algorithm = parsed.signature_algorithm();
    let mut oid = algorithm.oid.to_string();
    if oid == "1.2.840.113549.1.1.10" {
        // RSASSA-PSS names its hash in its parameters: SEQUENCE { [0] AlgorithmIdentifier, ... }.
        let parameters = algorithm.parameters.as_ref()?;
        oid = pss_hash(AnyRef::from(parameters)).unwrap_or_default();
    }
    let algorithm = match oid.as_str() {
        // md5 and sha1 with RSA, ECDSA with SHA-1, and SHA-256 with RSA or ECDSA, or by itself.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.10045.4.1" => &SHA256,
        "1.2.840.113549.1.1.11" | "1.2.840.10045.4.3.2" | "2.16.840.1.101.3.4.2.1" => &SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" | "2.16.840.1.101.3.4.2.2" => &SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" | "2.16.840.1.101.3.4.2.3" => &SHA512,
        _ => return None,
    };
    Some(digest(algorithm, certificate).as_ref().to_vec())
}

use ::aws_lc_rs::digest as aws_lc_rs_digest;

/// The OID of the hash that RSASSA-PSS parameters name.
fn pss_hash(parameters: AnyRef<'_>) -> Option<String> {
    use x509_cert::der::asn1::{ContextSpecific, ObjectIdentifier};
    use x509_cert::der::{Reader, SliceReader, TagNumber};
    let mut fields = SliceReader::new(parameters.value()).ok()?;
    let hash: ContextSpecific<AnyRef<'_>> = ContextSpecific::decode_explicit(&mut fields, TagNumber(0)).ok()??;
    let mut algorithm = SliceReader::new(hash.value.value()).ok()?;
    let oid: ObjectIdentifier = algorithm.decode().ok()?;
    Some(oid.to_string())
}

/// Until when a certificate is valid, since 1970.
pub fn valid_until(certificate: &CertificateDer<'_>) -> Option<Duration> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate().validity().not_after.to_unix_duration())
}

/// The common name of a client's certificate.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    const COMMON_NAME: &str = "2.5.4.3";
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let attributes = parsed.tbs_certificate().subject().iter();
    let mut names = attributes.filter(|attribute| attribute.oid.to_string() == COMMON_NAME);
    let name = std::str::from_utf8(names.next()?.value.value()).ok()?.to_owned();
    // Two names, or one with a NUL, are an attempt to be two people.
    (names.next().is_none() && !name.contains('\0')).then_some(name)
}

/// Checks the chain but not the name (`verify-ca`).
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp, now) {
            // The chain is checked before the name is: this error means that the chain is good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.0.root_hint_subjects()
    }
}

/// Takes any certificate (`require` and below), but still makes the peer prove that it has the key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
