//! Our own HTTP client as the AWS SDK wants one: no second TLS stack.

use crate::credentials::http::{HttpError, Limits, Request};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};

/// Makes connectors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transport;

/// One with its limits.
#[derive(Debug)]
struct Connector(Limits);

impl HttpClient for Transport {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let default = Limits::default();
        SharedHttpConnector::new(Connector(Limits {
            connect: settings.connect_timeout().unwrap_or(default.connect),
            answer: settings.read_timeout().unwrap_or(default.answer),
        }))
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let limits = self.0;
        HttpConnectorFuture::new(async move {
            let user = |error: Box<dyn std::error::Error + Send + Sync>| ConnectorError::user(error);
            let request = convert(&request).map_err(user)?;
            let answer = request.send(limits).await.map_err(|error| match error {
                HttpError::Timeout(..) => ConnectorError::timeout(error.into()),
                HttpError::Connect(..) | HttpError::Broken(..) => ConnectorError::io(error.into()),
                HttpError::Address(..) => ConnectorError::user(error.into()),
            })?;
            let status = StatusCode::try_from(answer.status).map_err(|error| user(error.into()))?;
            let mut response = HttpResponse::new(status, SdkBody::from(answer.body.as_slice()));
            for (name, value) in &answer.headers {
                if let Ok(value) = value.to_str() {
                    response.headers_mut().append(name.as_str().to_owned(), value.to_owned());
                }
            }
            Ok(response)
        })
    }
}

fn convert(request: &HttpRequest) -> Result<Request, Box<dyn std::error::Error + Send + Sync>> {
    let mut converted = Request::get(request.uri())?;
    converted.method = request.method().parse()?;
    for (name, value) in request.headers() {
        converted.headers.append(HeaderName::try_from(name)?, HeaderValue::try_from(value)?);
    }
    let body = request.body().bytes().ok_or("the AWS SDK streams a request's body")?;
    converted.body = Bytes::copy_from_slice(body);
    Ok(converted)
}
