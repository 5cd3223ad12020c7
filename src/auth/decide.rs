//! Whether a client may log in, and what it has to prove first: one pure function, refusing by default (faults.md I10).

use super::userlist::Secret;

/// How a client may prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// Not at all. Only from this machine.
    Trust,
    /// By being the operating system's user of the same name, at the other end of a unix socket.
    Peer,
    /// By SCRAM-SHA-256, with channel binding where there is TLS.
    Scram,
    /// By an MD5 challenge; by SCRAM where the secret is a SCRAM verifier.
    Md5,
    /// By sending its password. Only over TLS or from this machine.
    Password,
    /// By a TLS client certificate whose common name is the user.
    Cert,
}

impl Method {
    /// Reads the name as `pg_hba.conf` has it.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "trust" => Self::Trust,
            "peer" => Self::Peer,
            "scram-sha-256" => Self::Scram,
            "md5" => Self::Md5,
            "password" => Self::Password,
            "cert" => Self::Cert,
            _ => return None,
        })
    }

    /// The name as `pg_hba.conf` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Peer => "peer",
            Self::Scram => "scram-sha-256",
            Self::Md5 => "md5",
            Self::Password => "password",
            Self::Cert => "cert",
        }
    }
}

/// What a client came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A unix socket.
    Unix,
    /// TCP from this machine.
    Loopback,
    /// TCP from elsewhere.
    Remote,
}

/// What is known when a client asks to log in.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The method its listener asks for.
    pub method: Method,
    /// What it came over.
    pub transport: Transport,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The user it wants to be.
    pub user: &'a str,
    /// What we know of that user.
    pub secret: Option<&'a Secret>,
    /// The common name of its verified certificate.
    pub certificate: Option<&'a str>,
    /// The operating system's user at the other end.
    pub peer: Option<&'a str>,
}

/// What to do with the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Let it in.
    Allow,
    /// SCRAM. Without a verifier the exchange is played to its end all the same, and fails.
    Scram,
    /// An MD5 challenge, which an unknown user fails.
    Md5,
    /// Its password in clear, which an unknown user fails.
    Password,
    /// Refuse it, with PostgreSQL's message for this method.
    Deny(&'static str),
}

/// Decides.
pub fn decide(facts: &Facts<'_>) -> Decision {
    let local = match facts.transport {
        Transport::Unix | Transport::Loopback => true,
        Transport::Remote => false,
    };
    match facts.method {
        Method::Trust if local => Decision::Allow,
        Method::Trust => Decision::Deny("trust authentication is for local connections only"),
        Method::Peer => match (facts.transport, facts.peer) {
            (Transport::Unix, Some(peer)) if peer == facts.user => Decision::Allow,
            _ => Decision::Deny("Peer authentication failed"),
        },
        Method::Cert => match facts.certificate {
            Some(name) if facts.tls && name == facts.user => Decision::Allow,
            _ => Decision::Deny("certificate authentication failed"),
        },
        Method::Scram => Decision::Scram,
        Method::Md5 => match facts.secret {
            Some(Secret::Scram(_)) => Decision::Scram,
            Some(Secret::Md5(_) | Secret::Password(..)) | None if facts.tls || local => Decision::Md5,
            Some(Secret::Md5(_) | Secret::Password(..)) | None => Decision::Deny("md5 authentication needs TLS"),
        },
        Method::Password if facts.tls || local => Decision::Password,
        Method::Password => Decision::Deny("password authentication needs TLS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of method, transport, TLS, secret, certificate and peer.
    fn all() -> Vec<(Facts<'static>, Decision)> {
        let leak = |text: &str| -> &'static Secret { Box::leak(Box::new(Secret::parse(text))) };
        let scram = leak(&super::super::scram::Verifier::mock("x", &[0; 32]).to_string());
        let (plain, md5) = (leak("p"), leak("md50123456789abcdef0123456789abcdef"));
        let mut rows = Vec::new();
        for method in [Method::Trust, Method::Peer, Method::Scram, Method::Md5, Method::Password, Method::Cert] {
            for transport in [Transport::Unix, Transport::Loopback, Transport::Remote] {
                for tls in [false, true] {
                    for secret in [None, Some(plain), Some(md5), Some(scram)] {
                        for certificate in [None, Some("ann"), Some("bob")] {
                            for peer in [None, Some("ann"), Some("bob")] {
                                let facts = Facts { method, transport, tls, user: "ann", secret, certificate, peer };
                                rows.push((facts, decide(&facts)));
                            }
                        }
                    }
                }
            }
        }
        rows
    }

    #[test]
    fn i10_nobody_is_let_in_without_proof_but_by_the_three_methods_that_say_so() {
        for (facts, decision) in all() {
            let allowed = decision == Decision::Allow;
            let why = match facts.method {
                Method::Trust => facts.transport != Transport::Remote,
                Method::Peer => facts.transport == Transport::Unix && facts.peer == Some("ann"),
                Method::Cert => facts.tls && facts.certificate == Some("ann"),
                Method::Scram | Method::Md5 | Method::Password => false,
            };
            assert_eq!(allowed, why, "{facts:?}");
        }
    }

    #[test]
    fn i18_an_unknown_user_is_asked_for_the_same_as_a_known_one() {
        for (facts, decision) in all() {
            if matches!(facts.secret, Some(Secret::Password(..))) {
                let unknown = decide(&Facts { secret: None, ..facts });
                assert_eq!(unknown, decision, "{facts:?}");
            }
        }
    }

    #[test]
    fn i13_a_password_is_asked_for_in_clear_only_where_nobody_can_listen() {
        for (facts, decision) in all() {
            if matches!(decision, Decision::Password | Decision::Md5) {
                assert!(facts.tls || facts.transport != Transport::Remote, "{facts:?}");
            }
        }
    }
}
