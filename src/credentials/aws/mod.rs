//! `aws_rds_iam`: tokens of RDS and Aurora. A token is a signed URL without its scheme, made here from AWS credentials; only
//! those have to be fetched.

mod chain;
mod transport;

pub use chain::fetch as fetch_keys;
pub(super) use chain::{Keys, fetch_held};

use super::engine::{Engine, Fetch};
use super::managed::Secret;
use super::policy::Life;
use super::spec::Endpoint;
use crate::secret::SecretString;
use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// How long a token is good for, if the credentials that have signed it are.
const LIFE: Duration = Duration::from_secs(900);
/// The service's name in signatures.
const SERVICE: &str = "rds-db";
/// What is not encoded in a query (RFC 3986, section 2.3).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What to look at when a server refuses a token.
pub(super) const ADVICE: &str = "the role must have rds_iam (GRANT rds_iam TO role); the AWS identity must be allowed \
     rds-db:connect to arn:aws:rds-db:REGION:ACCOUNT:dbuser:RESOURCE/ROLE; iam_host and iam_port must be the endpoint's own; the \
     clock must be right";

/// Signs a token.
///
/// # Errors
/// What of the arguments cannot be signed.
pub fn token(endpoint: &Endpoint, user: &str, keys: &Credentials, now: SystemTime) -> Result<SecretString, String> {
    let Endpoint { host, port, region } = endpoint;
    let user = utf8_percent_encode(user, QUERY);
    let url = format!("https://{host}:{port}/?Action=connect&DBUser={user}");
    let identity = keys.clone().into();
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(LIFE);
    settings.signature_location = SignatureLocation::QueryParams;
    let params = v4::SigningParams::builder().identity(&identity).region(region).name(SERVICE).time(now);
    let params = params.settings(settings).build().map_err(|error| error.to_string())?.into();
    let authority = format!("{host}:{port}");
    let headers = [("host", authority.as_str())].into_iter();
    let request = SignableRequest::new("GET", &url, headers, SignableBody::Bytes(&[]));
    let request = request.map_err(|error| format!("{host} cannot be signed: {error}"))?;
    let signed = sign(request, &params).map_err(|error| error.to_string())?;
    let (instructions, _) = signed.into_parts();
    let added: usize = instructions.params().iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    // Of the size that it will have: a text that grows leaves copies behind.
    let mut token = Zeroizing::new(String::with_capacity(url.len() + added));
    token.push_str(&url["https://".len()..]);
    for (name, value) in instructions.params() {
        token.push('&');
        token.push_str(name);
        token.push('=');
        token.extend(utf8_percent_encode(value, QUERY));
    }
    Ok(SecretString::new(std::mem::take(&mut *token)))
}

/// Signs a token with the credentials of an engine.
pub(super) async fn fetch(
    keys: Arc<Engine<Keys>>,
    endpoint: Arc<Endpoint>,
    user: Arc<str>,
    refused: bool,
) -> Result<Fetch<Secret>, String> {
    let mut got = keys.get().await.map_err(|error| error.to_string())?;
    // It may be the keys that are no good any more.
    if refused && keys.refused(got.1.serial) {
        got = keys.get().await.map_err(|error| error.to_string())?;
    }
    let (Keys(credentials), _) = got;
    let now = SystemTime::now();
    let text = token(&endpoint, &user, &credentials, now)?;
    let until = now + LIFE;
    let until = credentials.expiry().map_or(until, |expiry| expiry.min(until));
    Ok(Fetch { value: Secret::token(text), life: Life::Until(until) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeMap;

    const GOLDEN: &str = include_str!("golden.json");

    fn query(token: &str) -> (String, BTreeMap<String, String>) {
        let (place, query) = token.split_once("/?").unwrap();
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap());
        (place.to_owned(), pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn tokens_are_those_that_botocore_signs() {
        let vectors: Value = serde_json::from_str(GOLDEN).unwrap();
        for vector in vectors.as_array().unwrap() {
            let text = |name: &str| vector[name].as_str().map(str::to_owned);
            let keys =
                Credentials::new(text("akid").unwrap(), text("secret").unwrap(), text("session"), None, "a test");
            let endpoint = Endpoint {
                host: text("host").unwrap(),
                port: vector["port"].as_u64().unwrap().try_into().unwrap(),
                region: text("region").unwrap(),
            };
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(vector["epoch"].as_u64().unwrap());
            let token = token(&endpoint, &text("user").unwrap(), &keys, now).unwrap();
            let expected = text("token").unwrap();
            // Only where the session's token stands is ours to choose.
            assert_eq!(query(token.expose()), query(&expected));
            if vector["session"].is_null() {
                assert_eq!(token.expose(), expected);
            }
        }
    }
}
