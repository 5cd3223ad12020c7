//! Who we are upstream, as it is written: for all databases, for one, for a user, in a URL, in libpq's variables.

use super::resolve::Resolver;
use super::source::{Place, Raw};
use super::units;
use crate::credentials::{CommandSpec, Kind, Spec, check_file, check_passfile};
use crate::net::Address;
use crate::net::tls::UpstreamTls;
use crate::secret::SecretString;
use std::path::PathBuf;
use std::time::Duration;

/// How long a `password_command` may take, unless it is said.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a credential comes from, as one place says it. More than one of these is too many.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct What {
    pub(super) password: Option<SecretString>,
    pub(super) file: Option<PathBuf>,
    pub(super) command: Vec<String>,
    pub(super) kind: Option<Kind>,
    /// Only asked where the others are not there, as in libpq.
    pub(super) passfile: Option<PathBuf>,
    /// Where that is written, if it is known better than by the database.
    pub(super) place: Option<Place>,
}

/// What else is to be said of it, by the same names everywhere.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct How {
    pub(super) timeout: Duration,
    pub(super) ttl: Duration,
    pub(super) iam_host: Vec<String>,
    pub(super) iam_port: Vec<u16>,
    pub(super) aws_region: Vec<String>,
    pub(super) aws_profile: Option<String>,
    pub(super) gcp_scope: String,
    pub(super) gcp_service_account: String,
    pub(super) azure_resource: String,
    pub(super) azure_client_id: Option<String>,
}

impl Default for How {
    fn default() -> Self {
        Self {
            timeout: COMMAND_TIMEOUT,
            ttl: Duration::ZERO,
            iam_host: Vec::new(),
            iam_port: Vec::new(),
            aws_region: Vec::new(),
            aws_profile: None,
            gcp_scope: "cloudsql".into(),
            gcp_service_account: "default".into(),
            azure_resource: "https://ossrdbms-aad.database.windows.net".into(),
            azure_client_id: None,
        }
    }
}

/// Both.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Words {
    pub(super) what: What,
    pub(super) how: How,
}

impl What {
    /// What is said here, or else there.
    pub(super) fn or(self, other: Self) -> Self {
        if self == Self::default() { other } else { self }
    }
}

fn show_path(path: &Option<PathBuf>) -> String {
    path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
}

impl Resolver {
    /// Reads `password_file`, `password_command` and `credentials`, with this in front of their names. `path` ends with a
    /// dot, or is empty.
    fn what(&mut self, path: &str, prefix: &str, password: Option<SecretString>) -> What {
        let key = |name: &str| format!("{path}{prefix}{name}");
        let file = self.path(&key("password_file"));
        let command = self.texts(&key("password_command"), &[]);
        let parse = |raw: &Raw| match raw.text()? {
            "" => Ok(None),
            name => Kind::parse(name).map(Some),
        };
        let show = |kind: &Option<Kind>| kind.map_or("", Kind::as_str).to_owned();
        let kind = self.0.get(&key("credentials"), None, true, parse, show);
        let said = [
            ("password", password.is_some()),
            ("password_file", file.is_some()),
            ("password_command", !command.is_empty()),
            ("credentials", kind.is_some()),
        ];
        let said: Vec<String> = said.into_iter().filter(|(_, is)| *is).map(|(name, _)| key(name)).collect();
        if let [_, second, ..] = said.as_slice() {
            let place = self.0.place_of(second);
            self.0.fault(place, format!("{} exclude each other: say one", said.join(" and ")));
        }
        let place = said.first().map(|key| self.0.place_of(key));
        What { password, file, command, kind, passfile: None, place }
    }

    /// Reads all that can be said of credentials for all databases (an empty `path`), or for one (a path with its dot).
    /// What is not said there is as in `default`.
    pub(super) fn credential_words(&mut self, path: &str, password: Option<SecretString>, default: Words) -> Words {
        let key = |name: &str| format!("{path}{name}");
        let mut what = self.what(path, "", password);
        what.passfile = self
            .0
            .get(&key("passfile"), None, true, |raw| Ok(Some(raw.text()?.into())), show_path)
            .filter(|path: &PathBuf| !path.as_os_str().is_empty());
        if what.passfile.is_some() && what.place.is_none() {
            what.place = Some(self.0.place_of(&key("passfile")));
        }
        let Words { what: what_else, how } = default;
        let ports =
            |raw: &Raw| raw.texts()?.iter().map(|(text, _)| super::url::port(text)).collect::<Result<Vec<_>, _>>();
        let show_ports = |ports: &Vec<u16>| ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let text = |raw: &Raw| raw.text().map(str::to_owned);
        let parse_texts = |raw: &Raw| Ok(raw.texts()?.into_iter().map(|(text, _)| text).collect::<Vec<_>>());
        let show_texts = |texts: &Vec<String>| texts.join(", ");
        let option = |raw: &Raw| raw.text().map(|text| Some(text.to_owned()).filter(|text| !text.is_empty()));
        let show_option = |text: &Option<String>| text.clone().unwrap_or_default();
        let how = How {
            timeout: self.positive(&key("password_command_timeout"), how.timeout),
            ttl: self.0.get(&key("password_ttl"), how.ttl, true, Raw::duration, |d| units::show_duration(*d)),
            iam_host: self.0.get(&key("iam_host"), how.iam_host, true, parse_texts, show_texts),
            iam_port: self.0.get(&key("iam_port"), how.iam_port, true, ports, show_ports),
            aws_region: self.0.get(&key("aws_region"), how.aws_region, true, parse_texts, show_texts),
            aws_profile: self.0.get(&key("aws_profile"), how.aws_profile, true, option, show_option),
            gcp_scope: self.0.get(&key("gcp_scope"), how.gcp_scope, true, text, Clone::clone),
            gcp_service_account: self.0.get(
                &key("gcp_service_account"),
                how.gcp_service_account,
                true,
                text,
                Clone::clone,
            ),
            azure_resource: self.0.get(&key("azure_resource"), how.azure_resource, true, text, Clone::clone),
            azure_client_id: self.0.get(&key("azure_client_id"), how.azure_client_id, true, option, show_option),
        };
        Words { what: what.or(what_else), how }
    }

    /// Reads who a user is upstream, and what it logs in with there.
    pub(super) fn server_login(&mut self, name: &str) -> (Option<String>, What) {
        let path = format!("users.{name}.");
        let user = self.text(&format!("{path}server_user"), true);
        let password = self.secret(&format!("{path}server_password"));
        (user, self.what(&path, "server_", password))
    }

    /// What words mean for a database with these servers.
    pub(super) fn spec(&mut self, words: Words, nodes: &[Address], tls: &UpstreamTls, place: &Place) -> Spec {
        let Words { what, how } = words;
        let place = what.place.as_ref().unwrap_or(place);
        if let Some(kind) = what.kind {
            let name = kind.as_str();
            if !tls.verifies() {
                let mode = tls.mode.as_str();
                let message = format!(
                    "credentials = {name}: tokens leave over verified TLS only, and sslmode={mode} does not prove who the \
                     server is: use sslmode=verify-full"
                );
                self.0.fault(place.clone(), message);
            }
            if let Some(node) = nodes.iter().find(|node| matches!(node, Address::Unix { .. })) {
                let message = format!("credentials = {name}: tokens leave over TLS only, and {node} is a unix socket");
                self.0.fault(place.clone(), message);
            }
            return self.cloud(kind, how, nodes, place);
        }
        if !what.command.is_empty() {
            let ttl = Some(how.ttl).filter(|ttl| !ttl.is_zero());
            return Spec::Command(CommandSpec { argv: what.command, timeout: how.timeout, ttl });
        }
        if let Some(path) = what.file {
            if let Err(error) = check_file(&path) {
                self.0.fault(place.clone(), format!("password_file {error}"));
            }
            return Spec::File(path);
        }
        if let Some(password) = what.password {
            return Spec::Password(password);
        }
        match what.passfile {
            Some(path) => {
                if let Err(error) = check_passfile(&path) {
                    self.0.fault(place.clone(), format!("passfile {error}"));
                }
                Spec::Passfile(path)
            }
            None => Spec::None,
        }
    }

    #[allow(unused_variables, reason = "a build without clouds needs little of this")]
    fn cloud(&mut self, kind: Kind, how: How, nodes: &[Address], place: &Place) -> Spec {
        match kind {
            #[cfg(feature = "aws")]
            Kind::AwsRdsIam => {
                let endpoints = self.endpoints(&how, nodes, place);
                Spec::AwsRdsIam { profile: how.aws_profile, endpoints }
            }
            #[cfg(feature = "gcp")]
            Kind::GcpIam => {
                let scope = match how.gcp_scope.as_str() {
                    "cloudsql" => "https://www.googleapis.com/auth/sqlservice.login",
                    "alloydb" => "https://www.googleapis.com/auth/alloydb.login",
                    url if url.starts_with("https://") => url,
                    other => {
                        let message = format!("gcp_scope {other:?}: write cloudsql, alloydb or a scope's URL");
                        self.0.fault(place.clone(), message);
                        ""
                    }
                };
                Spec::GcpIam { scope: scope.to_owned(), account: how.gcp_service_account }
            }
            #[cfg(feature = "azure")]
            Kind::AzureEntra => Spec::AzureEntra { resource: how.azure_resource, client_id: how.azure_client_id },
            #[cfg(not(all(feature = "aws", feature = "gcp", feature = "azure")))]
            // Its name was refused already.
            _ => Spec::None,
        }
    }

    /// What AWS calls the servers: as they are dialled, unless it is said otherwise, for all or for each.
    #[cfg(feature = "aws")]
    fn endpoints(
        &mut self,
        how: &How,
        nodes: &[Address],
        place: &Place,
    ) -> Vec<(Address, crate::credentials::Endpoint)> {
        use crate::credentials::Endpoint;
        let lists =
            [("iam_host", how.iam_host.len()), ("iam_port", how.iam_port.len()), ("aws_region", how.aws_region.len())];
        for (name, count) in lists {
            if count > 1 && count != nodes.len() {
                self.0.fault(
                    place.clone(),
                    format!("{name}: write one for all, or one for each of the {} hosts", nodes.len()),
                );
            }
        }
        fn pick<T: Clone>(list: &[T], at: usize) -> Option<T> {
            if list.len() == 1 { list.first().cloned() } else { list.get(at).cloned() }
        }
        let mut endpoints = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            let host =
                pick(&how.iam_host, at).filter(|host| !host.is_empty()).unwrap_or_else(|| node.host().to_owned());
            let port = pick(&how.iam_port, at).unwrap_or(node.port());
            let region = pick(&how.aws_region, at).filter(|region| !region.is_empty());
            let Some(region) = region.or_else(|| Endpoint::region_of(&host).map(str::to_owned)) else {
                let message = format!(
                    "credentials = aws_rds_iam: {host} does not say in which AWS region it is: set aws_region (and iam_host to \
                     the endpoint's own name, if this is another name of it)"
                );
                self.0.fault(place.clone(), message);
                continue;
            };
            if host.parse::<std::net::IpAddr>().is_ok() {
                let message = format!("credentials = aws_rds_iam: AWS signs for names, not for {host}: set iam_host");
                self.0.fault(place.clone(), message);
            }
            endpoints.push((node.clone(), Endpoint { host, port, region }));
        }
        endpoints
    }
}
