//! `gcp_iam`: access tokens of Google's metadata server, for Cloud SQL and AlloyDB.
//!
//! Source: Google Cloud documentation, "Access tokens for metadata server", "IAM authentication" of both products.

use super::engine::Fetch;
use super::http::{HttpError, Limits, Request, oauth};
use super::managed::Secret;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::time::SystemTime;

/// Where the metadata server is, and the variable by which Google's own libraries find another.
const HOST: &str = "metadata.google.internal";
const HOST_VARIABLE: &str = "GCE_METADATA_HOST";

/// What to look at when a server refuses a token.
pub(super) const ADVICE: &str = "the user must be the service account's address without .gserviceaccount.com, be added to \
     the instance as an IAM user, and have the role Cloud SQL Instance User (or AlloyDB Database User); the clock must be right";

/// Asks for a token.
pub(super) async fn fetch(scope: String, account: String) -> Result<Fetch<Secret>, String> {
    let host = std::env::var(HOST_VARIABLE).ok().filter(|host| !host.is_empty());
    let host = host.as_deref().unwrap_or(HOST);
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let uri = format!(
        "http://{host}/computeMetadata/v1/instance/service-accounts/{}/token?scopes={}",
        encode(&account),
        encode(&scope)
    );
    let answer = ask(&uri).await.map_err(|error| format!("Google's metadata server: {error}; {REACH}"))?;
    oauth::token(&answer, SystemTime::now()).map_err(|error| {
        let hint = match answer.status {
            404 => "; is a service account attached to this machine, and is gcp_service_account its name?",
            403 => "; is the scope among the access scopes of this machine, or cloud-platform?",
            _ => "",
        };
        format!("Google's metadata server: {error}{hint}")
    })
}

const REACH: &str = "it is there on Google's machines only; in GKE workload identity must be on";

async fn ask(uri: &str) -> Result<super::http::Answer, HttpError> {
    Request::get(uri)?.header("metadata-flavor", "Google")?.send(Limits::default()).await
}
