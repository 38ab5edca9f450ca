//! Dials an agent: TLS whose verification cannot be switched off, one attempt in a bounded time, no redirects.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::handshake::client::{Request, generate_key};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, http};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::authorities::{AuthoritiesError, client_config};
use crate::config::{Ingest, SocketUrl};
use crate::domain::address::is_public;

/// A websocket to an agent; boxed, because it is large and moves between tasks.
pub type UpstreamSocket = Box<WebSocketStream<TlsStream<TcpStream>>>;

/// The longest message of an agent. A minute of audio, which is more than agents send at a time, has 640 KB.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
const USER_AGENT: &str = concat!("callseal/", env!("CARGO_PKG_VERSION"));

/// Why an agent was not reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No address for the name, or nobody listens.
    #[error("agent cannot be reached")]
    Unreachable(#[source] io::Error),
    /// No TLS, or a certificate that nobody vouches for.
    #[error("TLS with the agent")]
    Tls(#[source] io::Error),
    /// An address of its name is none of the internet.
    #[error("address is not public")]
    NotPublic,
    /// It answers the handshake with another status than 101.
    #[error("agent refuses the handshake with status {0}")]
    Refused(u16),
    /// It does not speak the protocol.
    #[error("websocket handshake with the agent")]
    WebSocket(#[source] Box<tungstenite::Error>),
    /// It did not answer in time.
    #[error("agent did not answer in time")]
    TimedOut,
}

impl DialError {
    /// Returns the word for it in metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Tls(_) => "tls",
            Self::NotPublic => "not_public",
            Self::Refused(_) => "refused",
            Self::WebSocket(_) => "protocol",
            Self::TimedOut => "timeout",
        }
    }
}

/// What is said in a handshake beside what every websocket says.
#[derive(Clone)]
pub struct Handshake {
    /// Whom to dial.
    pub url: SocketUrl,
    /// Further headers; values may be secrets.
    pub headers: HeaderMap,
}

/// Dials agents. Clones share their settings.
#[derive(Clone)]
pub struct Dialer {
    tls: TlsConnector,
    timeout: Duration,
    websocket: WebSocketConfig,
    reach: Reach,
}

/// Which addresses are dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Any: the configuration has named the host.
    Any,
    /// Those of the internet alone, all that a name has: somebody else has named the host.
    Public,
}

impl Dialer {
    /// Trusts the authorities in `ca_file` alone, or else those of the system.
    ///
    /// # Errors
    /// [`AuthoritiesError`].
    pub fn new(
        ca_file: Option<&Path>,
        timeout: Duration,
        ingest: &Ingest,
        reach: Reach,
    ) -> Result<Self, AuthoritiesError> {
        let mut config = client_config(ca_file)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            timeout,
            websocket: WebSocketConfig::default()
                .read_buffer_size(ingest.read_buffer_bytes)
                .write_buffer_size(ingest.read_buffer_bytes)
                .max_write_buffer_size(ingest.write_buffer_bytes + 2 * MAX_MESSAGE_BYTES)
                .max_message_size(Some(MAX_MESSAGE_BYTES))
                .max_frame_size(Some(MAX_MESSAGE_BYTES)),
            reach,
        })
    }

    /// Opens a websocket. The addresses that were looked at are dialled, and no others.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn dial(&self, handshake: &Handshake) -> Result<UpstreamSocket, DialError> {
        let dialling = async {
            let url = &handshake.url;
            let name = ServerName::try_from(url.host().to_owned())
                .map_err(|error| DialError::Unreachable(io::Error::other(error)))?;
            let addresses = tokio::net::lookup_host((url.host(), url.port()));
            let addresses: Vec<SocketAddr> = addresses.await.map_err(DialError::Unreachable)?.collect();
            if self.reach == Reach::Public && !addresses.iter().all(|address| is_public(address.ip())) {
                return Err(DialError::NotPublic);
            }
            let tcp = TcpStream::connect(&*addresses).await.map_err(DialError::Unreachable)?;
            tcp.set_nodelay(true).map_err(DialError::Unreachable)?;
            let tls = self.tls.connect(name, tcp).await.map_err(DialError::Tls)?;
            let opened = client_async_with_config(request(handshake)?, tls, Some(self.websocket)).await;
            match opened {
                Ok((socket, _)) => Ok(Box::new(socket)),
                Err(tungstenite::Error::Http(answer)) => Err(DialError::Refused(answer.status().as_u16())),
                Err(error) => Err(DialError::WebSocket(Box::new(error))),
            }
        };
        tokio::time::timeout(self.timeout, Box::pin(dialling)).await.unwrap_or(Err(DialError::TimedOut))
    }
}

fn request(handshake: &Handshake) -> Result<Request, DialError> {
    let url = &handshake.url;
    let fixed = [
        ("host", url.authority()),
        ("user-agent", USER_AGENT),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", &generate_key()),
    ];
    let unwritable = |error: http::Error| DialError::WebSocket(Box::new(error.into()));
    let uri = format!("wss://{}{}", url.authority(), url.target());
    let mut request = http::Request::get(uri).body(()).map_err(unwritable)?;
    *request.headers_mut() = handshake.headers.clone();
    for (name, value) in fixed {
        let value = HeaderValue::from_str(value).map_err(|error| unwritable(error.into()))?;
        request.headers_mut().insert(HeaderName::from_static(name), value);
    }
    Ok(request)
}
