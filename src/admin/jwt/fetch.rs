//! Asks an issuer for its key set: TLS whose verification cannot be switched off, to an address that was looked at, in a bounded
//! time and size. Redirects are not followed: who they lead to has not been named by anybody.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, header, http};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::authorities::{AuthoritiesError, client_config};
use crate::config::HttpsUrl;
use crate::domain::address::is_public;
use crate::domain::jwt::{BadKeySet, KeySet};

use super::MAX_KEY_SET_BYTES;

const USER_AGENT: &str = concat!("callseal/", env!("CARGO_PKG_VERSION"));
/// The head of an answer may have as much.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long the issuer may take; somebody may be waiting for an answer of the API.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no key set.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("issuer cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("TLS with the issuer")]
    Tls(#[source] io::Error),
    #[error("address of the issuer is not public; allow_private is not set")]
    NotPublic,
    #[error("request to the issuer")]
    Http(#[source] hyper::Error),
    #[error("request cannot be written")]
    BadRequest(#[source] http::Error),
    #[error("issuer did not answer in time")]
    TimedOut,
    #[error("issuer answers with status {0}")]
    Status(StatusCode),
    #[error("answer of the issuer is cut off, or has more than {MAX_KEY_SET_BYTES} bytes")]
    Body,
    #[error("key set of the issuer cannot be used")]
    KeySet(#[source] BadKeySet),
}

/// Asks for one key set.
pub(super) struct Fetcher {
    tls: TlsConnector,
    url: HttpsUrl,
    allow_private: bool,
}

impl Fetcher {
    pub(super) fn new(
        url: HttpsUrl,
        ca_file: Option<&Path>,
        allow_private: bool,
    ) -> Result<Self, AuthoritiesError> {
        let mut config = client_config(ca_file)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), url, allow_private })
    }

    pub(super) async fn fetch(&self) -> Result<KeySet, FetchError> {
        let text = tokio::time::timeout(TIMEOUT, self.get()).await.unwrap_or(Err(FetchError::TimedOut))?;
        KeySet::parse(&text).map_err(FetchError::KeySet)
    }

    async fn get(&self) -> Result<Bytes, FetchError> {
        let request = Request::get(self.url.target())
            .header(header::HOST, self.url.authority())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(FetchError::BadRequest)?;
        let name = ServerName::try_from(self.url.host().to_owned())
            .map_err(|error| FetchError::Unreachable(io::Error::other(error)))?;
        let addresses = tokio::net::lookup_host((self.url.host(), self.url.port())).await;
        let addresses: Vec<SocketAddr> = addresses.map_err(FetchError::Unreachable)?.collect();
        // The addresses that were looked at are dialled, and no others.
        if !self.allow_private && !addresses.iter().all(|address| is_public(address.ip())) {
            return Err(FetchError::NotPublic);
        }
        let tcp = TcpStream::connect(&*addresses).await.map_err(FetchError::Unreachable)?;
        let tls = self.tls.connect(name, tcp).await.map_err(FetchError::Tls)?;
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(FetchError::Http)?;
        // Ends with this request, whatever becomes of it.
        let mut driving = JoinSet::new();
        driving.spawn(connection);
        let answer = sender.send_request(request).await.map_err(FetchError::Http)?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_KEY_SET_BYTES).collect().await;
        Ok(body.map_err(|_| FetchError::Body)?.to_bytes())
    }
}
