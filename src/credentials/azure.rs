//! `azure_entra`: access tokens of Microsoft Entra, for Azure Database for PostgreSQL.
//!
//! Where they come from is read from the environment, as Microsoft's own libraries do: a workload identity (AKS), an
//! identity endpoint (Container Apps, App Service), or the instance metadata service of a virtual machine.
//! Source: Microsoft documentation, "managed identities", "workload identity", "Microsoft Entra authentication with PostgreSQL".

use super::engine::Fetch;
use super::file::{self, Access};
use super::http::{Answer, HttpError, Limits, Request, is_loopback, oauth};
use super::managed::Secret;
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::path::PathBuf;
use std::time::SystemTime;

/// The instance metadata service, and the variable by which Microsoft's libraries find another.
const IMDS: &str = "http://169.254.169.254";
const IMDS_VARIABLE: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";
const AUTHORITY: &str = "https://login.microsoftonline.com";
/// A federated token is a JWT of one or two kilobytes.
const LONGEST_ASSERTION: usize = 64 * 1024;

/// What to look at when a server refuses a token.
pub(super) const ADVICE: &str = "the user must be the name of a role made with pgaadauth_create_principal for this identity \
     (or a group it is in), Microsoft Entra authentication must be on for the server, and the clock right";

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Asks for a token.
pub(super) async fn fetch(resource: String, client_id: Option<String>) -> Result<Fetch<Secret>, String> {
    let client_id = client_id.or_else(|| variable("AZURE_CLIENT_ID"));
    let named = |error: String, what: &str| format!("Azure's {what}: {error}");
    let (answer, what) = match (variable("AZURE_FEDERATED_TOKEN_FILE"), variable("IDENTITY_ENDPOINT")) {
        (Some(file), _) => {
            let what = "workload identity";
            (workload(file.into(), &resource, client_id).await.map_err(|error| named(error, what))?, what)
        }
        (None, Some(endpoint)) => {
            let what = "identity endpoint";
            let header = variable("IDENTITY_HEADER").unwrap_or_default();
            let uri = format!("{endpoint}?api-version=2019-08-01{}", query(&resource, client_id.as_deref()));
            (get(&uri, ("x-identity-header", &header)).await.map_err(|error| named(error.to_string(), what))?, what)
        }
        (None, None) => {
            let what = "instance metadata service";
            let host = variable(IMDS_VARIABLE).unwrap_or_else(|| IMDS.to_owned());
            let query = query(&resource, client_id.as_deref());
            let uri =
                format!("{}/metadata/identity/oauth2/token?api-version=2018-02-01{query}", host.trim_end_matches('/'));
            let answer = get(&uri, ("metadata", "true")).await;
            (answer.map_err(|error| named(format!("{error}; it is there on Azure's machines only"), what))?, what)
        }
    };
    oauth::token(&answer, SystemTime::now()).map_err(|error| {
        let hint =
            if answer.status == 400 { "; is an identity assigned, and is azure_client_id the right one?" } else { "" };
        named(format!("{error}{hint}"), what)
    })
}

fn query(resource: &str, client_id: Option<&str>) -> String {
    let client = client_id.map(|id| format!("&client_id={}", encode(id))).unwrap_or_default();
    format!("&resource={}{client}", encode(resource))
}

async fn get(uri: &str, (name, value): (&'static str, &str)) -> Result<Answer, HttpError> {
    Request::get(uri)?.header(name, value)?.send(Limits::default()).await
}

/// Trades the token of Kubernetes' service account for one of Entra's.
async fn workload(file: PathBuf, resource: &str, client_id: Option<String>) -> Result<Answer, String> {
    let missing = |name: &str| format!("{name} is not set: does the pod have the label azure.workload.identity/use?");
    let tenant = variable("AZURE_TENANT_ID").ok_or_else(|| missing("AZURE_TENANT_ID"))?;
    let client = client_id.ok_or_else(|| missing("AZURE_CLIENT_ID"))?;
    let authority = variable("AZURE_AUTHORITY_HOST").unwrap_or_else(|| AUTHORITY.to_owned());
    // Read each time: Kubernetes renews it.
    let read = tokio::task::spawn_blocking(move || file::read(&file, Access::Unchanged, LONGEST_ASSERTION));
    let assertion = read.await.map_err(|error| error.to_string())??;
    let uri = format!("{}/{}/oauth2/v2.0/token", authority.trim_end_matches('/'), encode(&tenant));
    let mut request = Request::get(&uri).map_err(|error| error.to_string())?;
    if request.uri.scheme_str() != Some("https") && !is_loopback(&request.uri) {
        return Err(format!("AZURE_AUTHORITY_HOST {authority}: the service account's token leaves over https only"));
    }
    request.method = Method::POST;
    request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    request.body = format!(
        "grant_type=client_credentials&client_id={}&scope={}&client_assertion={}\
         &client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer",
        encode(&client),
        encode(&format!("{}/.default", resource.trim_end_matches('/'))),
        encode(assertion.trim())
    )
    .into();
    request.send(Limits::default()).await.map_err(|error| error.to_string())
}
