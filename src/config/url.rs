//! libpq's connection URL: `postgres://[user[:password]@]host[:port][,host:port...]/[db]?name=value&...`
//!
//! Source: PostgreSQL documentation, "Connection Strings" and "Parameter Key Words".

use crate::credentials::Kind;
use crate::net::Address;
use crate::net::tls::{Authorities, SslMode};
use crate::routing::Consistency;
use crate::routing::verdict::Wish;
use crate::secret::SecretString;
use percent_encoding::percent_decode_str;
use std::path::PathBuf;
use std::time::Duration;

/// PostgreSQL's port.
pub const DEFAULT_PORT: u16 = 5432;
/// Where reads may be said to go.
pub(super) const ROUTES: &str = "auto, primary or replica";
/// What they may be said to miss.
pub(super) const CONSISTENCIES: &str = "session, eventual, primary or global";

/// What a URL says. What it leaves out is `None` or empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Url {
    /// The servers, in the order in which they are named.
    pub hosts: Vec<Address>,
    /// The role.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<SecretString>,
    /// The database.
    pub dbname: Option<String>,
    /// `sslmode`.
    pub sslmode: Option<SslMode>,
    /// `sslrootcert`: files, or `system`; several are separated by commas.
    pub sslrootcert: Vec<Authorities>,
    /// `sslcert`.
    pub sslcert: Option<PathBuf>,
    /// `sslkey`.
    pub sslkey: Option<PathBuf>,
    /// `sslnegotiation=direct`.
    pub direct_tls: Option<bool>,
    /// `connect_timeout`, in seconds.
    pub connect_timeout: Option<Duration>,
    /// `tcp_user_timeout`, in milliseconds.
    pub tcp_user_timeout: Option<Duration>,
    /// `keepalives_idle`, in seconds.
    pub keepalives_idle: Option<Duration>,
    /// `keepalives_interval`, in seconds.
    pub keepalives_interval: Option<Duration>,
    /// `keepalives_count`.
    pub keepalives_count: Option<u32>,
    /// `route`: where reads go.
    pub route: Option<Wish>,
    /// `consistency`: what reads may miss.
    pub consistency: Option<Consistency>,
    /// `max_lag`, with its unit: replicas that are further behind get no reads.
    pub max_lag: Option<Duration>,
    /// `service`: a section of libpq's service file, for what is not said here.
    pub service: Option<String>,
    /// `passfile`: libpq's file of passwords.
    pub passfile: Option<PathBuf>,
    /// `password_file`
    pub password_file: Option<PathBuf>,
    /// `credentials`: the cloud whose tokens we log in with.
    pub credentials: Option<Kind>,
    /// `iam_host`, `iam_port`, `aws_region`: what AWS calls the servers; one for all, or one for each.
    pub iam_host: Vec<String>,
    /// The ports.
    pub iam_port: Vec<u16>,
    /// The regions.
    pub aws_region: Vec<String>,
    /// `aws_profile`
    pub aws_profile: Option<String>,
    /// `azure_client_id`
    pub azure_client_id: Option<String>,
    /// `zones`, `regions` and `weights`: one for each server, in their order.
    pub zones: Vec<String>,
    /// The regions.
    pub regions: Vec<String>,
    /// The weights.
    pub weights: Vec<u16>,
}

/// The parameters that are understood.
const KNOWN: &[&str] = &[
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "sslnegotiation",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "service",
    "passfile",
    "password_file",
    "credentials",
    "iam_host",
    "iam_port",
    "aws_region",
    "aws_profile",
    "azure_client_id",
    "route",
    "consistency",
    "max_lag",
    "zones",
    "regions",
    "weights",
    "gssencmode",
    "target_session_attrs",
];

fn decode(text: &str, what: &str) -> Result<String, String> {
    if text.contains('\0') || text.contains("%00") {
        return Err(format!("{what} contains a NUL"));
    }
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| format!("{what} is not UTF-8"))
}

/// Reads a port.
pub fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is no port: write a number from 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

impl Url {
    /// Reads a URL; gives every fault in it.
    pub fn parse(text: &str) -> Result<Self, Vec<String>> {
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let Some(rest) = rest else {
            return Err(vec!["a URL begins with postgres:// or postgresql://".into()]);
        };
        let mut faults = Vec::new();
        let mut url = Self::default();
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, dbname) = rest.split_once('/').unwrap_or((rest, ""));
        let (userinfo, hosts) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
        let mut note = |result: Result<(), String>| faults.extend(result.err());
        if let Some(userinfo) = userinfo {
            let (user, password) = userinfo.split_once(':').map_or((userinfo, None), |(u, p)| (u, Some(p)));
            if !user.is_empty() {
                note(decode(user, "the user").map(|user| url.user = Some(user)));
            }
            if let Some(password) = password {
                note(decode(password, "the password").map(|p| url.password = Some(SecretString::new(p))));
            }
        }
        if !dbname.is_empty() {
            note(decode(dbname, "the database").map(|dbname| url.dbname = Some(dbname)));
        }
        let mut hosts = hosts_and_ports(hosts, &mut faults);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let result = match pair.split_once('=') {
                Some((name, value)) => decode(value, name).and_then(|value| url.parameter(name, &value, &mut hosts)),
                None => Err(format!("{pair:?} has no value: write name=value")),
            };
            faults.extend(result.err());
        }
        if url.sslcert.is_some() != url.sslkey.is_some() {
            faults.push("sslcert and sslkey go together".into());
        }
        let labels = [("zones", url.zones.len()), ("regions", url.regions.len()), ("weights", url.weights.len())];
        for (name, count) in labels {
            if count != 0 && count != hosts.len() {
                faults.push(format!("{name}: one for each of the {} hosts", hosts.len()));
            }
        }
        url.hosts = hosts.into_iter().map(|(host, port)| Address::new(&host, port)).collect();
        if faults.is_empty() { Ok(url) } else { Err(faults) }
    }

    /// The same from parameters with the numbers of their lines; every fault with its line.
    pub fn from_parameters<'a>(
        parameters: impl Iterator<Item = (usize, &'a str, &'a str)>,
    ) -> (Self, Vec<(usize, String)>) {
        let (mut url, mut hosts, mut faults) = (Self::default(), Vec::new(), Vec::new());
        // A port belongs to hosts that may be named behind it.
        let mut pairs: Vec<_> = parameters.collect();
        pairs.sort_by_key(|(_, name, _)| *name == "port");
        for (line, name, value) in pairs {
            faults.extend(url.parameter(name, value, &mut hosts).err().map(|fault| (line, fault)));
        }
        url.hosts = hosts.into_iter().map(|(host, port)| Address::new(&host, port)).collect();
        (url, faults)
    }

    /// Takes from the other what is not said here.
    pub fn fill_from(&mut self, other: Self) {
        fn list<T>(own: &mut Vec<T>, other: Vec<T>) {
            if own.is_empty() {
                *own = other;
            }
        }
        fn one<T>(own: &mut Option<T>, other: Option<T>) {
            if own.is_none() {
                *own = other;
            }
        }
        list(&mut self.hosts, other.hosts);
        one(&mut self.user, other.user);
        one(&mut self.password, other.password);
        one(&mut self.dbname, other.dbname);
        one(&mut self.sslmode, other.sslmode);
        list(&mut self.sslrootcert, other.sslrootcert);
        one(&mut self.sslcert, other.sslcert);
        one(&mut self.sslkey, other.sslkey);
        one(&mut self.direct_tls, other.direct_tls);
        one(&mut self.connect_timeout, other.connect_timeout);
        one(&mut self.tcp_user_timeout, other.tcp_user_timeout);
        one(&mut self.keepalives_idle, other.keepalives_idle);
        one(&mut self.keepalives_interval, other.keepalives_interval);
        one(&mut self.keepalives_count, other.keepalives_count);
        one(&mut self.passfile, other.passfile);
        one(&mut self.password_file, other.password_file);
        one(&mut self.credentials, other.credentials);
        list(&mut self.iam_host, other.iam_host);
        list(&mut self.iam_port, other.iam_port);
        list(&mut self.aws_region, other.aws_region);
        one(&mut self.aws_profile, other.aws_profile);
        one(&mut self.azure_client_id, other.azure_client_id);
        one(&mut self.route, other.route);
        one(&mut self.consistency, other.consistency);
        one(&mut self.max_lag, other.max_lag);
    }

    fn parameter(&mut self, name: &str, value: &str, hosts: &mut Vec<(String, u16)>) -> Result<(), String> {
        let seconds =
            || value.parse().map(Duration::from_secs).map_err(|_| format!("{name}={value}: write whole seconds"));
        match name {
            "host" => {
                let ports: Vec<u16> = hosts.iter().map(|(_, port)| *port).collect();
                *hosts = value
                    .split(',')
                    .enumerate()
                    .map(|(at, host)| (host.to_owned(), ports.get(at).copied().unwrap_or(DEFAULT_PORT)))
                    .collect();
            }
            "port" => {
                let ports = value.split(',').map(port).collect::<Result<Vec<_>, _>>()?;
                if hosts.is_empty() {
                    hosts.push(("localhost".into(), DEFAULT_PORT));
                }
                if ports.len() != 1 && ports.len() != hosts.len() {
                    return Err(format!("port={value}: one port for all hosts, or one for each"));
                }
                for (at, (_, port)) in hosts.iter_mut().enumerate() {
                    *port = ports.get(at).or(ports.first()).copied().unwrap_or(DEFAULT_PORT);
                }
            }
            "user" => self.user = Some(value.to_owned()),
            "password" => self.password = Some(SecretString::new(value)),
            "dbname" => self.dbname = Some(value.to_owned()),
            "sslmode" => {
                let modes = "disable, allow, prefer, require, verify-ca or verify-full";
                let mode = SslMode::parse(value).ok_or_else(|| format!("sslmode={value}: write {modes}"))?;
                self.sslmode = Some(mode);
            }
            "sslrootcert" => self.sslrootcert = authorities(value),
            "sslcert" => self.sslcert = Some(value.into()),
            "sslkey" => self.sslkey = Some(value.into()),
            "sslnegotiation" => {
                self.direct_tls = Some(match value {
                    "direct" => true,
                    "postgres" => false,
                    _ => return Err(format!("sslnegotiation={value}: write postgres or direct")),
                });
            }
            "connect_timeout" => self.connect_timeout = Some(seconds()?),
            "tcp_user_timeout" => {
                let ms = value.parse().map_err(|_| format!("{name}={value}: write whole milliseconds"))?;
                self.tcp_user_timeout = Some(Duration::from_millis(ms));
            }
            "keepalives_idle" => self.keepalives_idle = Some(seconds()?),
            "keepalives_interval" => self.keepalives_interval = Some(seconds()?),
            "keepalives_count" => {
                let count = value.parse().map_err(|_| format!("{name}={value}: write a whole number"))?;
                self.keepalives_count = Some(count);
            }
            "service" => self.service = Some(value.to_owned()),
            "passfile" => self.passfile = Some(value.into()),
            "password_file" => self.password_file = Some(value.into()),
            "credentials" => {
                let kind = Kind::parse(value).map_err(|error| format!("credentials: {error}"))?;
                self.credentials = Some(kind);
            }
            "iam_host" => self.iam_host = list(value),
            "iam_port" => self.iam_port = list(value).iter().map(|text| port(text)).collect::<Result<_, _>>()?,
            "aws_region" => self.aws_region = list(value),
            "aws_profile" => self.aws_profile = Some(value.to_owned()),
            "azure_client_id" => self.azure_client_id = Some(value.to_owned()),
            "route" => self.route = Some(Wish::parse(value).ok_or_else(|| format!("route={value}: write {ROUTES}"))?),
            "consistency" => {
                let mode = Consistency::parse(value);
                self.consistency = Some(mode.ok_or_else(|| format!("consistency={value}: write {CONSISTENCIES}"))?);
            }
            "max_lag" => self.max_lag = Some(super::units::duration(value)?),
            "zones" => self.zones = list(value),
            "regions" => self.regions = list(value),
            "weights" => {
                let weight = |text: String| text.parse().map_err(|_| format!("weights={value}: write whole numbers"));
                self.weights = list(value).into_iter().map(weight).collect::<Result<_, _>>()?;
            }
            // No GSSAPI here, and `prefer` says that none is fine.
            "gssencmode" if matches!(value, "disable" | "prefer") => {}
            "gssencmode" => {
                return Err(format!("gssencmode={value}: GSSAPI encryption is not supported; write disable"));
            }
            // The primary is found by asking the servers, whatever is said here.
            "target_session_attrs" if matches!(value, "any" | "read-write" | "primary") => {}
            "target_session_attrs" => {
                return Err(format!("target_session_attrs={value}: sessions need a primary; write read-write or any"));
            }
            _ => {
                let hint = super::nearest(name, KNOWN.iter().copied()).map(|k| format!("; did you mean {k}?"));
                return Err(format!("unknown parameter {name}{}", hint.unwrap_or_default()));
            }
        }
        Ok(())
    }
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(|item| item.trim().to_owned()).collect()
}

/// The authorities that `sslrootcert` names.
pub fn authorities(value: &str) -> Vec<Authorities> {
    let one = |name: &str| if name == "system" { Authorities::System } else { Authorities::File(name.into()) };
    value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(one).collect()
}

fn hosts_and_ports(text: &str, faults: &mut Vec<String>) -> Vec<(String, u16)> {
    let mut hosts = Vec::new();
    for entry in text.split(',').filter(|entry| !entry.is_empty() || text.contains(',')) {
        let (host, port_text) = match entry.strip_prefix('[').and_then(|e| e.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => entry.split_once(':').map_or((entry, None), |(h, p)| (h, Some(p))),
        };
        let port = match port_text.map(port).transpose() {
            Ok(port) => port.unwrap_or(DEFAULT_PORT),
            Err(fault) => {
                faults.push(fault);
                DEFAULT_PORT
            }
        };
        match decode(host, "a host") {
            Ok(host) if host.is_empty() => faults.push("a host is missing between the commas".into()),
            Ok(host) => hosts.push((host, port)),
            Err(fault) => faults.push(fault),
        }
    }
    hosts
}

/// Hides the password of a URL, for logs and consoles.
pub fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (authority, tail) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
    let authority = match authority.rsplit_once('@') {
        Some((userinfo, hosts)) => match userinfo.split_once(':') {
            Some((user, _)) => format!("{user}:***@{hosts}"),
            None => authority.to_owned(),
        },
        None => authority.to_owned(),
    };
    let (path, query) = tail.split_once('?').map_or((tail, None), |(p, q)| (p, Some(q)));
    let hide = |pair: &str| if pair.starts_with("password=") { "password=***".to_owned() } else { pair.to_owned() };
    let query = query.map(|q| format!("?{}", q.split('&').map(hide).collect::<Vec<_>>().join("&"))).unwrap_or_default();
    format!("{scheme}://{authority}{path}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(url: &str) -> Vec<String> {
        Url::parse(url).unwrap().hosts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_form_of_host_is_read() {
        assert_eq!(hosts("postgres://h"), ["h:5432"]);
        assert_eq!(hosts("postgresql://u:p@a:1,b,c:3/db?sslmode=require"), ["a:1", "b:5432", "c:3"]);
        assert_eq!(hosts("postgres://[::1]:5433/"), ["[::1]:5433"]);
        assert_eq!(hosts("postgres://%2Fvar%2Frun%2Fpostgresql/db"), ["/var/run/postgresql/.s.PGSQL.5432"]);
        assert_eq!(hosts("postgres:///db?host=/tmp&port=6000"), ["/tmp/.s.PGSQL.6000"]);
        assert_eq!(hosts("postgres:///db?host=a,b&port=1,2"), ["a:1", "b:2"]);
        assert!(hosts("postgres:///db").is_empty());
    }

    #[test]
    fn user_password_and_database_are_decoded() {
        let url = Url::parse("postgres://a%40b:p%3Aq%2F@h/d%20b").unwrap();
        assert_eq!(url.user.as_deref(), Some("a@b"));
        assert_eq!(url.password.as_ref().map(SecretString::expose), Some("p:q/"));
        assert_eq!(url.dbname.as_deref(), Some("d b"));
        let url = Url::parse("postgres://h?user=x&password=y&dbname=z").unwrap();
        assert_eq!((url.user.as_deref(), url.dbname.as_deref()), (Some("x"), Some("z")));
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let faults = Url::parse("postgres://h:0,/d?sslmod=x&sslmode=y&connect_timeout=1s&sslcert=f&x").unwrap_err();
        assert_eq!(faults.len(), 7, "{faults:#?}");
        assert!(faults.iter().any(|f| f.contains("did you mean sslmode?")));
        assert!(Url::parse("mysql://h").is_err());
    }

    #[test]
    fn a_password_is_hidden_wherever_it_stands() {
        for url in
            ["postgres://u:s3cret@h/d?x=1", "postgres://h/d?password=s3cret&x=1", "postgres://u:s3c@ret:s3cret@h"]
        {
            assert!(!without_password(url).contains("s3cret"), "{}", without_password(url));
        }
        assert_eq!(without_password("postgres://u@h/d"), "postgres://u@h/d");
    }
}
