//! Requests to Vault: small JSON bodies over a few connections. Redirects are not followed, and nothing of a body is kept.

use std::fmt;
use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use zeroize::Zeroizing;

use crate::authorities::client_config;
use crate::config::Vault as Options;
use crate::keys::{KeyError, Said};

/// The largest answer: that about a key with some hundred versions.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Connections that wait for the next request: as many as calls run at the same time by default.
const MAX_IDLE: usize = 16;

/// One Vault.
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    address: String,
    namespace: Option<HeaderValue>,
}

/// What Vault answered.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Http {
    pub(super) fn new(options: &Options) -> io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(options.connect_timeout));
        // What may be asked without TLS, this machine alone, the check of the configuration has decided.
        let tls = client_config(options.ca_file.as_deref()).map_err(io::Error::other)?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let connector = connector.enable_http1().wrap_connector(tcp);
        let mut client = Client::builder(TokioExecutor::new());
        let client = client.pool_max_idle_per_host(MAX_IDLE).build(connector);
        let namespace = options.namespace.as_deref().map(HeaderValue::from_str).transpose();
        let namespace = namespace.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Self { client, address: options.address.clone(), namespace })
    }

    /// Asks `path`, which stands behind `/v1/`.
    ///
    /// # Errors
    /// [`KeyError::Unavailable`] without an answer; every status is one.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        token: Option<&HeaderValue>,
        body: Option<&str>,
    ) -> Result<Answer, KeyError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", self.address))
            // An agent may ask for it, so that no web page can make requests through it.
            .header("x-vault-request", "true")
            .header(CONTENT_TYPE, "application/json");
        let named = [("x-vault-token", token), ("x-vault-namespace", self.namespace.as_ref())];
        for (name, value) in named {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        let body = Full::new(Bytes::copy_from_slice(body.unwrap_or_default().as_bytes()));
        let request = request.body(body).map_err(|_| no_answer(&"the request cannot be written"))?;
        let answer = self.client.request(request).await.map_err(|error| no_answer(&cause(&error)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_BODY_BYTES).collect().await;
        let body = body.map_err(|_| no_answer(&"an answer that is broken or too large"))?;
        Ok(Answer { status, body: Zeroizing::new(body.to_bytes().to_vec()) })
    }
}

impl Answer {
    /// Whether it is an error with these words.
    pub(super) fn says(&self, words: &str) -> bool {
        !self.status.is_success() && String::from_utf8_lossy(&self.body).contains(words)
    }

    /// Returns what may be told of it.
    pub(super) fn said(&self) -> Said {
        let status = self.status.as_u16();
        let hint = match status {
            301..=308 => {
                ", it names another node; give the address of the active one, or have standbys forward"
            }
            _ if self.says("sealed") => ", it is sealed",
            _ if self.says("invalid token") => ", the token is invalid",
            _ if self.says("permission denied") => ", permission denied",
            _ => "",
        };
        Said::new(&format!("vault answered {status}{hint}"))
    }

    /// Sorts an answer that another try may change.
    pub(super) fn passing(&self) -> KeyError {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => KeyError::Throttled(self.said()),
            _ => KeyError::Unavailable(self.said()),
        }
    }
}

fn no_answer(why: &dyn fmt::Display) -> KeyError {
    KeyError::Unavailable(Said::new(&why.to_string()))
}

/// Returns the innermost cause: the outer ones only say that something has failed.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    innermost.to_string()
}
