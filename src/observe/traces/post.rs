//! Requests to the collector: OTLP over HTTP, protobuf, each within its time. Redirects are not followed, and of an answer nothing
//! is kept but its status, how many spans it rejects, and how long it asks to be left alone.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;

use crate::authorities::client_config;
use crate::config::{SecretRef, Traces};

const USER_AGENT: &str = concat!("callseal/", env!("CARGO_PKG_VERSION"));
const PROTOBUF: &str = "application/x-protobuf";
/// The largest answer: a count and a sentence.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// A connection that was silent for so long is not used any more: many collectors close theirs after a minute.
const IDLE: Duration = Duration::from_secs(30);

/// Why the collector has not taken spans. No text of it shows the URL, a header or the answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum PostError {
    /// Nobody answers at its address, or not as HTTP and TLS have it.
    #[error("collector cannot be reached: {0}")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("collector did not answer in time")]
    TimedOut,
    /// It asks to come back.
    #[error("collector answers with status {status}")]
    Busy {
        /// The status.
        status: u16,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// It does not want these spans, or us.
    #[error("collector answers with status {0}")]
    Refused(u16),
    /// A header's value cannot be read.
    #[error("header for the collector: {0}")]
    Header(String),
}

impl PostError {
    /// Whether the same request may be taken later although nobody changes anything here.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut | Self::Busy { .. } | Self::Header(_) => true,
            Self::Refused(_) => false,
        }
    }

    /// Returns how long the collector wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            Self::Unreachable(_) | Self::TimedOut | Self::Refused(_) | Self::Header(_) => None,
        }
    }
}

/// One collector.
pub(super) struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoint: Uri,
    headers: Vec<(HeaderName, SecretRef)>,
    authority: String,
    timeout: Duration,
}

impl Collector {
    /// Prepares to send; nothing is dialled yet.
    ///
    /// # Errors
    /// The certificates cannot be used.
    pub(super) fn new(options: &Traces) -> io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(options.timeout));
        // What may be sent without TLS, to this machine alone, the check of the configuration has decided.
        let tls = client_config(options.ca_file.as_deref()).map_err(io::Error::other)?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let connector = connector.enable_http1().wrap_connector(tcp);
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_max_idle_per_host(1).pool_idle_timeout(IDLE).pool_timer(TokioTimer::new());
        Ok(Self {
            client: client.build(connector),
            endpoint: options.endpoint.clone(),
            headers: options.headers.clone(),
            authority: options.authority().to_owned(),
            timeout: options.timeout,
        })
    }

    /// Returns what may be shown of it.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Makes one request; answers how many spans of it are rejected.
    ///
    /// # Errors
    /// [`PostError`].
    pub(super) async fn post(&self, body: Bytes) -> Result<u64, PostError> {
        let posting = Box::pin(self.try_post(body));
        tokio::time::timeout(self.timeout, posting).await.unwrap_or(Err(PostError::TimedOut))
    }

    async fn try_post(&self, body: Bytes) -> Result<u64, PostError> {
        let mut headers = read_headers(self.headers.clone()).await?;
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.endpoint.clone();
        *request.headers_mut() = headers;
        let answer = self.client.request(request).await;
        read(answer.map_err(|error| PostError::Unreachable(innermost(&error)))?).await
    }
}

async fn read(answer: Response<Incoming>) -> Result<u64, PostError> {
    let status = answer.status();
    let retry_after = retry_after(answer.headers());
    let body = Limited::new(answer.into_body(), MAX_BODY_BYTES).collect().await;
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Err(PostError::Busy { status: status.as_u16(), retry_after }),
        status if status.is_success() => {
            // A collector that says nothing that can be read has taken everything.
            let said = body.ok().and_then(|body| ExportTraceServiceResponse::decode(body.to_bytes()).ok());
            let rejected = said.and_then(|said| said.partial_success).map(|partly| partly.rejected_spans);
            Ok(rejected.and_then(|rejected| u64::try_from(rejected).ok()).unwrap_or_default())
        }
        status => Err(PostError::Refused(status.as_u16())),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// Reads the secrets on a thread that may block: somebody may have changed them.
async fn read_headers(headers: Vec<(HeaderName, SecretRef)>) -> Result<HeaderMap, PostError> {
    let mut read = HeaderMap::new();
    for (name, secret) in headers {
        let secret = tokio::task::spawn_blocking(move || secret.read()).await;
        let secret = secret.map_err(|_| PostError::Header(format!("{name} cannot be read")))?;
        let secret = secret.map_err(PostError::Header)?;
        let mut value = HeaderValue::from_bytes(secret.expose())
            .map_err(|_| PostError::Header(format!("{name} holds what no header may")))?;
        value.set_sensitive(true);
        read.insert(name, value);
    }
    Ok(read)
}

/// The outer causes only say that something has failed.
fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    innermost.to_string()
}
