//! An agent: the websocket server that a bidirectional stream is passed on to.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::HeaderMap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use super::received::{Received, recv};

/// How long a client may take to shake hands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that have arrived and nobody has taken.
const MAX_WAITING: usize = 1024;

/// An agent that listens with a certificate of its own making.
pub struct AgentServer {
    address: SocketAddr,
    certificate_pem: String,
    calls: mpsc::Receiver<AgentCall>,
    accepting: JoinHandle<()>,
}

/// A call that has reached the agent.
pub struct AgentCall {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    /// The headers of the handshake.
    pub headers: HeaderMap,
    /// Path and query of the handshake.
    pub target: String,
}

impl AgentServer {
    /// Listens on a free port of this machine as `localhost`; `refuse_with` answers every handshake with that status.
    ///
    /// # Errors
    /// No certificate, no port.
    pub async fn start(refuse_with: Option<u16>) -> anyhow::Result<Self> {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), "localhost", refuse_with).await
    }

    /// Listens on an address with a certificate for `name`.
    ///
    /// # Errors
    /// No certificate, no port.
    pub async fn listen(address: SocketAddr, name: &str, refuse_with: Option<u16>) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()])?;
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        Self::listen_as(address, &certificate, key.as_bytes(), refuse_with).await
    }

    /// Listens on an address with a certificate that somebody else has made, and what it comes from behind it; both in PEM.
    ///
    /// # Errors
    /// A certificate or key that cannot be used, no port.
    pub async fn listen_as(
        address: SocketAddr,
        certificate_pem: &str,
        key_pem: &[u8],
        refuse_with: Option<u16>,
    ) -> anyhow::Result<Self> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate_pem.as_bytes()).collect();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                chain.context("certificate")?,
                PrivateKeyDer::from_pem_slice(key_pem).context("key")?,
            )?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (call, calls) = mpsc::channel(MAX_WAITING);
        let accepting = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, call) = (acceptor.clone(), call.clone());
                tokio::spawn(async move {
                    let taking = tokio::time::timeout(HANDSHAKE_TIMEOUT, take(tcp, &acceptor, refuse_with));
                    if let Ok(Ok(taken)) = taking.await {
                        drop(call.send(taken).await);
                    }
                });
            }
        });
        Ok(Self { address, certificate_pem: certificate_pem.to_owned(), calls, accepting })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the certificate that vouches for it.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Waits for the next call; `None` when it listens no more.
    pub async fn call(&mut self) -> Option<AgentCall> {
        self.calls.recv().await
    }

    /// Stops listening; calls that are there go on.
    pub fn stop_listening(&self) {
        self.accepting.abort();
    }
}

impl Drop for AgentServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl AgentCall {
    /// Returns what the client sends next; pings are answered and passed over.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn recv(&mut self) -> Result<Received, tungstenite::Error> {
        recv(&mut self.socket).await
    }

    /// Sends a text message.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send_text(&mut self, text: impl Into<String>) -> Result<(), tungstenite::Error> {
        self.socket.send(Message::text(text.into())).await
    }

    /// Sends a binary message, as no agent should.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) -> Result<(), tungstenite::Error> {
        self.socket.send(Message::binary(bytes.into())).await
    }

    /// Closes the websocket, and waits for the other end's answer.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn close(mut self, code: u16, reason: &str) -> Result<(), tungstenite::Error> {
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        self.socket.close(Some(frame)).await?;
        while let Some(Ok(_)) = self.socket.next().await {}
        Ok(())
    }

    /// Ends the connection as a process that dies does.
    pub fn reset(self) {
        let (tcp, _) = self.socket.get_ref().get_ref();
        // Without the option the connection ends with a FIN, which is as abrupt.
        let _fin_instead = tcp.set_zero_linger();
    }
}

async fn take(tcp: TcpStream, acceptor: &TlsAcceptor, refuse_with: Option<u16>) -> anyhow::Result<AgentCall> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await?;
    let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
    let (mut headers, mut target) = (HeaderMap::new(), String::new());
    #[expect(clippy::result_large_err, reason = "the library's type")]
    let look = |request: &Request, answer: Response| -> Result<Response, ErrorResponse> {
        headers = request.headers().clone();
        target = request.uri().to_string();
        let Some(status) = refuse_with.and_then(|status| status.try_into().ok()) else { return Ok(answer) };
        let mut refusal = ErrorResponse::new(None);
        *refusal.status_mut() = status;
        Err(refusal)
    };
    let socket = accept_hdr_async_with_config(stream, look, Some(config)).await?;
    Ok(AgentCall { socket, headers, target })
}
