//! Twilio's REST API, as far as calls are ended with it: takes requests over TLS, notes them, and answers as it is told.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Longer than any request.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// How a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiAnswer {
    /// With this status and body.
    Status(u16, String),
    /// So much later, with 200.
    Late(Duration),
    /// Not at all; the connection stays open.
    Hang,
    /// Not at all; the connection ends.
    Reset,
}

impl ApiAnswer {
    /// With this status and no body.
    pub fn status(status: u16) -> Self {
        Self::Status(status, String::new())
    }

    /// As Twilio answers for a call that has ended.
    pub fn not_in_progress() -> Self {
        let body = r#"{"code":21220,"message":"Call is not in-progress. Cannot redirect.","status":400}"#;
        Self::Status(400, body.to_owned())
    }
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRequest {
    /// Method, a space, path and query.
    pub line: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: String,
}

impl ApiRequest {
    /// Returns a header; empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// The API on a free port of this machine; it ends when this is dropped.
pub struct TwilioApiServer {
    address: SocketAddr,
    certificate_pem: String,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

struct Shared {
    answers: Mutex<VecDeque<ApiAnswer>>,
    requests: Mutex<Vec<ApiRequest>>,
}

impl TwilioApiServer {
    /// Listens as `localhost` with a certificate of its own making. The answers are given in order, then 200 to everybody.
    ///
    /// # Errors
    /// No certificate, no port.
    pub async fn start(answers: impl IntoIterator<Item = ApiAnswer>) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            answers: Mutex::new(answers.into_iter().collect()),
            requests: Mutex::default(),
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, acceptor, Arc::clone(&shared)));
        Ok(Self { address, certificate_pem: made.cert.pem(), shared, _accepting: accepting })
    }

    /// Returns its URL.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// Returns the certificate that vouches for it.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns what came so far.
    pub fn requests(&self) -> Vec<ApiRequest> {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        connections.spawn(serve(tcp, acceptor.clone(), Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(tcp: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    // Whoever does not believe the certificate goes away.
    let Ok(stream) = acceptor.accept(tcp).await else { return };
    let answer = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { shared.answer(request).await }
    });
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await {
        tracing::trace!(error = &error as &dyn std::error::Error, "a connection to the API ended");
    }
}

impl Shared {
    /// Notes a request; an error ends the connection without an answer.
    async fn answer(&self, request: Request<Incoming>) -> anyhow::Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(anyhow::Error::from_boxed)?;
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        let line = format!("{} {}", parts.method, parts.uri);
        let noted = ApiRequest { line, headers: parts.headers, body };
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(noted);
        let next = self.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let (status, body) = match next.unwrap_or_else(|| ApiAnswer::status(200)) {
            ApiAnswer::Status(status, body) => (status, body),
            ApiAnswer::Late(wait) => {
                tokio::time::sleep(wait).await;
                (200, String::new())
            }
            ApiAnswer::Hang => std::future::pending().await,
            ApiAnswer::Reset => anyhow::bail!("ended on purpose"),
        };
        let mut answer = Response::new(Full::new(Bytes::from(body)));
        *answer.status_mut() = StatusCode::from_u16(status)?;
        Ok(answer)
    }
}
