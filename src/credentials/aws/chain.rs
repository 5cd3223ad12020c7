//! AWS credentials, from wherever the SDK's own chain finds them: environment, profile (with the roles it assumes), web
//! identity, container endpoints (ECS and EKS Pod Identity), instance metadata.

use super::transport::Transport;
use crate::credentials::engine::{Fetch, Value};
use crate::credentials::policy::Life;
use aws_config::BehaviorVersion;
use aws_config::meta::region::RegionProviderChain;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_types::error::display::DisplayErrorContext;

/// AWS credentials. The SDK wipes them when they are dropped.
#[derive(Debug, Clone)]
pub(in crate::credentials) struct Keys(pub(super) Credentials);

impl Value for Keys {
    fn is_same(&self, Keys(other): &Self) -> bool {
        let Keys(own) = self;
        own.access_key_id() == other.access_key_id()
            && own.secret_access_key() == other.secret_access_key()
            && own.session_token() == other.session_token()
    }

    fn principal(&self) -> Option<String> {
        Some(self.0.access_key_id().to_owned())
    }
}

/// Asks the chain. It is made anew each time: what it reads from files is to be what is there now, and this happens once in
/// the life of what it finds. `region` is for roles that are assumed, where AWS's own settings name none.
///
/// # Errors
/// Why none are found, for an operator.
pub async fn fetch(profile: Option<String>, region: String) -> Result<Credentials, String> {
    // What the environment or a profile names comes first; instance metadata are not asked for what we know.
    let named = ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().any(|name| std::env::var_os(name).is_some());
    let region = if named {
        RegionProviderChain::default_provider()
    } else {
        RegionProviderChain::first_try(aws_config::Region::new(region))
    };
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(Transport).region(region);
    if let Some(profile) = profile {
        loader = loader.profile_name(profile);
    }
    let config = loader.load().await;
    let provider = config.credentials_provider().ok_or("the AWS SDK has no provider chain")?;
    provider.provide_credentials().await.map_err(|error| explain(&error))
}

/// The same as an engine holds them.
pub(in crate::credentials) async fn fetch_held(profile: Option<String>, region: String) -> Result<Fetch<Keys>, String> {
    let keys = fetch(profile, region).await?;
    let life = keys.expiry().map_or(Life::Forever, Life::Until);
    Ok(Fetch { value: Keys(keys), life })
}

/// The SDK's error with all its causes, and what to do about it.
fn explain(error: &CredentialsError) -> String {
    let whole = DisplayErrorContext(error).to_string();
    // Debug output of the whole tree follows in brackets: long, and of no use to an operator. One line, for logs and tables.
    let text = whole.split(" (").next().unwrap_or(&whole).replace("the credential provider was not enabled: ", "");
    let text = text.lines().map(str::trim).collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    let lower = whole.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let hint = if has(&["signaturedoesnotmatch", "requestexpired", "expiredtoken", "requesttimetooskewed"]) {
        "; is this machine's clock right (clock skew)?"
    } else if has(&["accessdenied", "not authorized to perform"]) {
        "; does the role's trust policy allow this identity to assume it?"
    } else if has(&["communicate with imds"]) {
        "; in a container on EC2 the IMDS hop limit has to be 2 (modify-instance-metadata-options \
         --http-put-response-hop-limit 2)"
    } else if has(&["no such file"]) {
        "; is AWS_WEB_IDENTITY_TOKEN_FILE or AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE there?"
    } else {
        ""
    };
    format!("AWS credentials: {text}{hint}")
}
