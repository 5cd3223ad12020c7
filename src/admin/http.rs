//! The HTTP endpoint: metrics, and whether the program is started, ready and alive.

use super::operator::Operator;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at the same time: scrapers and probes are few.
const CONNECTIONS: usize = 32;
/// A request that takes longer to arrive is none.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// An event loop that has not turned for this long is stuck.
const STUCK: Duration = Duration::from_secs(5);

/// Serves until the program ends.
pub async fn serve(listener: TcpListener, operator: Arc<Operator>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let operator = Arc::clone(&operator);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let operator = Arc::clone(&operator);
                async move { Ok::<_, Infallible>(respond(&request, &operator)) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(16 * 1024);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "HTTP connection ended");
            }
            drop(slot);
        });
    }
}

fn respond(request: &Request<Incoming>, operator: &Operator) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
    }
    let health = |problem: Option<String>| match problem {
        None => plain(StatusCode::OK, "ok\n"),
        Some(problem) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{problem}\n")),
    };
    match request.uri().path() {
        "/metrics" => {
            let mut response = plain(StatusCode::OK, &operator.metrics());
            let text = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, text);
            response
        }
        "/livez" => health(stuck(operator)),
        "/readyz" => health(if operator.draining.load(Ordering::Relaxed) {
            Some("draining".to_owned())
        } else {
            not_started(operator)
        }),
        "/startupz" => health(not_started(operator)),
        "/" => plain(StatusCode::OK, "pg-ambassador: /metrics /livez /readyz /startupz\n"),
        _ => plain(StatusCode::NOT_FOUND, "not found; there are /metrics /livez /readyz /startupz\n"),
    }
}

/// The event loops, and never the database: restarting us would not mend that.
fn stuck(operator: &Operator) -> Option<String> {
    let lag = operator.worker_lag();
    (lag > STUCK).then(|| format!("a worker's event loop has not turned for {lag:?}"))
}

fn not_started(operator: &Operator) -> Option<String> {
    if !operator.listening.load(Ordering::Relaxed) {
        return Some("not listening yet".into());
    }
    (!operator.started.load(Ordering::Relaxed)).then(|| {
        let reports = operator.context.directory.keyring().reports();
        let failing =
            reports.iter().find_map(|report| Some((report, &report.last_error.as_ref().filter(|_| !report.good)?.0)));
        let why = failing.map(|(report, error)| format!(": {}: {error}", report.source)).unwrap_or_default();
        format!("no login at a primary has succeeded yet{why}")
    })
}

fn plain(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_owned())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
