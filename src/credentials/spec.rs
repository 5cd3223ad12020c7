//! What an operator says of who we are upstream.

#[cfg(feature = "aws")]
use crate::net::Address;
use crate::secret::SecretString;
use std::path::PathBuf;
use std::time::Duration;

/// Where a credential comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Spec {
    /// There is none: the server lets us in, or it does not.
    #[default]
    None,
    /// A password.
    Password(SecretString),
    /// A file that holds a password.
    File(PathBuf),
    /// A program that prints one.
    Command(CommandSpec),
    /// A file of libpq's with passwords by host, port, database and user.
    Passfile(PathBuf),
    /// IAM tokens of RDS and Aurora.
    #[cfg(feature = "aws")]
    AwsRdsIam {
        /// The profile of AWS's configuration files; the SDK's own choice if there is none.
        profile: Option<String>,
        /// What the servers are called in tokens.
        endpoints: Vec<(Address, Endpoint)>,
    },
    /// Access tokens of Google's metadata server.
    #[cfg(feature = "gcp")]
    GcpIam {
        /// The OAuth scope.
        scope: String,
        /// The service account, as the metadata server calls it.
        account: String,
    },
    /// Access tokens of Microsoft Entra.
    #[cfg(feature = "azure")]
    AzureEntra {
        /// Whom the token is for.
        resource: String,
        /// Which managed identity, where there are several.
        client_id: Option<String>,
    },
}

impl Spec {
    /// Whether what a client's own login has shown is better than this, where it is to be passed through.
    pub fn yields_to_clients(&self) -> bool {
        matches!(self, Self::None | Self::Password(_) | Self::Passfile(_))
    }
}

/// A program that prints a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandSpec {
    /// The program and its arguments. No shell looks at them.
    pub argv: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// How long what it printed is good for, where it does not say so itself; none for until it is refused.
    pub ttl: Option<Duration>,
}

/// A server as AWS knows it: what we dial may be another name of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The endpoint's name.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Its region.
    pub region: String,
}

impl Endpoint {
    /// The region that is part of an endpoint's name: `*.REGION.rds.amazonaws.com`, and that of China. A global writer
    /// endpoint has none.
    pub fn region_of(host: &str) -> Option<&str> {
        let host = host.trim_end_matches('.');
        let rest = host.strip_suffix(".cn").unwrap_or(host).strip_suffix(".rds.amazonaws.com")?;
        let region = rest.rsplit('.').next().filter(|region| region.len() < rest.len())?;
        // us-east-1, us-gov-west-1, cn-north-1; not global-abc123.
        let is_region = region.split('-').count() >= 3 && region.ends_with(|c: char| c.is_ascii_digit());
        (is_region && !region.starts_with("global")).then_some(region)
    }
}

/// As whom we log in, and to which database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// The role on the server.
    pub user: String,
    /// The database on the server.
    pub database: String,
}

/// The clouds' own credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `aws_rds_iam`
    AwsRdsIam,
    /// `gcp_iam`
    GcpIam,
    /// `azure_entra`
    AzureEntra,
}

impl Kind {
    /// Their names, and whether this program was built with them.
    const ALL: [(&str, Self, bool); 3] = [
        ("aws_rds_iam", Self::AwsRdsIam, cfg!(feature = "aws")),
        ("gcp_iam", Self::GcpIam, cfg!(feature = "gcp")),
        ("azure_entra", Self::AzureEntra, cfg!(feature = "azure")),
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AwsRdsIam => "aws_rds_iam",
            Self::GcpIam => "gcp_iam",
            Self::AzureEntra => "azure_entra",
        }
    }

    /// Reads a name.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(name: &str) -> Result<Self, String> {
        match Self::ALL.iter().find(|(known, ..)| *known == name) {
            Some((_, kind, true)) => Ok(*kind),
            Some((_, _, false)) => {
                Err(format!("this program was built without {name}: build it with its default features"))
            }
            None => {
                let names = Self::ALL.map(|(name, ..)| name).join(", ");
                Err(format!("{name:?}: write one of {names}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_region_is_read_from_an_endpoints_name_and_from_nothing_else() {
        for (host, region) in [
            ("db.abc.eu-west-1.rds.amazonaws.com", Some("eu-west-1")),
            ("db.cluster-ro-abc.us-gov-west-1.rds.amazonaws.com", Some("us-gov-west-1")),
            ("db.abc.cn-north-1.rds.amazonaws.com.cn", Some("cn-north-1")),
            ("db.abc.eu-west-1.rds.amazonaws.com.", Some("eu-west-1")),
            ("db.global-abc.global.rds.amazonaws.com", None),
            ("x.global-xyz-a-1.rds.amazonaws.com", None),
            ("eu-west-1.rds.amazonaws.com", None),
            ("db.eu-west-1.example.com", None),
            ("localhost", None),
        ] {
            assert_eq!(Endpoint::region_of(host), region, "{host}");
        }
    }
}
