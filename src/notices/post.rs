//! Posts one notice to one receiver: TLS whose verification cannot be switched off, to an address that was looked at, in a
//! bounded time; redirects are not followed, and nothing of the answer is kept but its status.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, header, http};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::authorities::{AuthoritiesError, client_config};
use crate::clock;
use crate::config::Webhook;
use crate::domain::address::is_public;
use crate::domain::ids::NoticeId;
use crate::domain::notice::{self, Verdict};
use crate::observe::traces::{TRACEPARENT, traceparent};

const USER_AGENT: &str = concat!("callseal/", env!("CARGO_PKG_VERSION"));
/// The head of an answer may have as much.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// As much of the body of an answer is read, so that polite receivers see their answer arrive.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// And for no longer than this: the status is all that counts.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a receiver does not have a notice. No text of it shows more of the URL than its host.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// No address for the name, or nobody listens.
    #[error("receiver cannot be reached")]
    Unreachable(#[source] io::Error),
    /// No TLS, or a certificate that nobody vouches for.
    #[error("TLS with the receiver")]
    Tls(#[source] io::Error),
    /// An address of its name is none of the internet.
    #[error("address of the receiver is not public")]
    NotPublic,
    /// It does not speak HTTP, or the connection broke.
    #[error("request to the receiver")]
    Http(#[source] hyper::Error),
    /// The request cannot be written.
    #[error("request cannot be written")]
    BadRequest(#[source] http::Error),
    /// It did not answer in time.
    #[error("receiver did not answer in time")]
    TimedOut,
    /// It leads elsewhere.
    #[error("receiver answers with a redirect, {0}, which is not followed")]
    Redirect(u16),
    /// It does not want this notice any more.
    #[error("receiver answers 410: it does not want this notice")]
    Gone,
    /// It answers with another status than 2xx.
    #[error("receiver answers with status {0}")]
    Refused(u16),
}

impl PostError {
    /// Returns the word for it in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Tls(_) => "tls",
            Self::NotPublic => "not_public",
            Self::Http(_) | Self::BadRequest(_) => "protocol",
            Self::TimedOut => "timeout",
            Self::Redirect(_) => "redirect",
            Self::Gone => "gone",
            Self::Refused(_) => "refused",
        }
    }
}

/// Posts notices. Clones share their settings.
#[derive(Clone)]
pub struct Poster {
    tls: TlsConnector,
    timeout: Duration,
}

impl Poster {
    /// Trusts the authorities in `ca_file` alone, or else those of the system; one attempt takes at most `timeout`.
    ///
    /// # Errors
    /// [`AuthoritiesError`].
    pub fn new(ca_file: Option<&Path>, timeout: Duration) -> Result<Self, AuthoritiesError> {
        let mut config = client_config(ca_file)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), timeout })
    }

    /// Makes one attempt; answers the receiver's status, which is 2xx.
    ///
    /// # Errors
    /// [`PostError`].
    pub async fn post(&self, webhook: &Webhook, notice: NoticeId, body: &[u8]) -> Result<u16, PostError> {
        let posting = Box::pin(self.try_post(webhook, notice, body));
        let status = tokio::time::timeout(self.timeout, posting).await.unwrap_or(Err(PostError::TimedOut))?;
        match notice::judge(status) {
            Verdict::Delivered => Ok(status),
            Verdict::Gone => Err(PostError::Gone),
            Verdict::Redirect => Err(PostError::Redirect(status)),
            Verdict::Again => Err(PostError::Refused(status)),
        }
    }

    async fn try_post(&self, webhook: &Webhook, notice: NoticeId, body: &[u8]) -> Result<u16, PostError> {
        let request = request(webhook, notice, body).map_err(PostError::BadRequest)?;
        let url = &webhook.url;
        let name = ServerName::try_from(url.host().to_owned())
            .map_err(|error| PostError::Unreachable(io::Error::other(error)))?;
        let addresses = tokio::net::lookup_host((url.host(), url.port())).await;
        let addresses: Vec<SocketAddr> = addresses.map_err(PostError::Unreachable)?.collect();
        // The addresses that were looked at are dialled, and no others: a name may have others the next moment.
        if !webhook.allow_private && !addresses.iter().all(|address| is_public(address.ip())) {
            return Err(PostError::NotPublic);
        }
        let tcp = TcpStream::connect(&*addresses).await.map_err(PostError::Unreachable)?;
        tcp.set_nodelay(true).map_err(PostError::Unreachable)?;
        let tls = self.tls.connect(name, tcp).await.map_err(PostError::Tls)?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(PostError::Http)?;
        // Ends with this attempt, whatever becomes of it.
        let mut driving = JoinSet::new();
        driving.spawn(connection);
        let answer = sender.send_request(request).await.map_err(PostError::Http)?;
        let status = answer.status().as_u16();
        read(answer.into_body()).await;
        Ok(status)
    }
}

/// Reads the body of an answer and throws it away.
async fn read(body: Incoming) {
    let reading = Limited::new(body, MAX_BODY_BYTES).collect();
    // What becomes of it does not matter.
    let _read = tokio::time::timeout(BODY_TIMEOUT, reading).await.is_ok();
}

fn request(webhook: &Webhook, notice: NoticeId, body: &[u8]) -> Result<Request<Full<Bytes>>, http::Error> {
    let timestamp = clock::wall().secs();
    let secrets = webhook.secrets.iter().map(|secret| secret.expose());
    let signed = notice::sign(secrets, timestamp, body);
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(webhook.url.target())
        .header(header::HOST, webhook.url.authority())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .header(notice::ID, notice.to_string())
        .header(notice::TIMESTAMP, timestamp)
        .header(notice::BODY_SIGNATURE, signed.body)
        .header(notice::TIMED_SIGNATURE, signed.timed)
        .body(Full::new(Bytes::copy_from_slice(body)))?;
    if let Some(parent) = traceparent() {
        request.headers_mut().insert(TRACEPARENT, parent);
    }
    Ok(request)
}
