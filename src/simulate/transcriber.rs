//! Vapi's end of a custom transcriber: dials, says what its audio is, and sends both parties' samples.
//!
//! Vapi documents neither the headers of its handshake, but for the secret, nor how much audio a message has.

use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Message, http};

use super::received::{Received, recv};
use super::tls::{Endpoint, TlsClient};
use super::twilio::{CallError, shake_hands};

/// How long the server may take to answer our close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A call whose websocket is open.
pub struct TranscriberCall {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

impl TranscriberCall {
    /// Dials `target` with these headers.
    ///
    /// # Errors
    /// [`CallError::Refused`] for any status but 101, other variants when it does not come that far.
    pub async fn connect(
        endpoint: &Endpoint,
        target: &str,
        headers: &[(&str, &str)],
        tls: &TlsClient,
    ) -> Result<Self, CallError> {
        let authority = endpoint.authority();
        let mut request = http::Request::get(format!("wss://{authority}{target}"))
            .header("host", authority)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", generate_key());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).map_err(CallError::BadRequest)?;
        Ok(Self { socket: shake_hands(request, endpoint, tls).await? })
    }

    /// Returns the text that a stream begins with.
    pub fn start(sample_rate: u32, channels: u8) -> String {
        format!(
            r#"{{"type":"start","encoding":"linear16","container":"raw","sampleRate":{sample_rate},"channels":{channels}}}"#
        )
    }

    /// Sends a text.
    ///
    /// # Errors
    /// [`CallError::WebSocket`] when the connection broke.
    pub async fn send_text(&mut self, text: impl Into<String>) -> Result<(), CallError> {
        Ok(self.socket.send(Message::text(text.into())).await?)
    }

    /// Sends samples, or a part of one.
    ///
    /// # Errors
    /// [`CallError::WebSocket`] when the connection broke.
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) -> Result<(), CallError> {
        Ok(self.socket.send(Message::binary(bytes.into())).await?)
    }

    /// Returns what the server sends next.
    ///
    /// # Errors
    /// [`CallError::WebSocket`] when the connection broke.
    pub async fn recv(&mut self) -> Result<Received, CallError> {
        Ok(recv(&mut self.socket).await?)
    }

    /// Closes the websocket, as Vapi does at a call's end; waits a little for the answer.
    pub async fn close(mut self, code: u16) {
        let closing = CloseFrame { code: code.into(), reason: "".into() };
        let _already_closed = self.socket.close(Some(closing)).await;
        let answer = async { while !matches!(self.recv().await, Ok(Received::Closed { .. }) | Err(_)) {} };
        let _in_time = timeout(CLOSE_TIMEOUT, answer).await;
    }

    /// Ends the connection as a lost peer does.
    pub fn reset(self) {
        let (tcp, _) = self.socket.get_ref().get_ref();
        // Without the option the connection ends with a FIN, which is as abrupt for the server.
        let _fin_instead = tcp.set_zero_linger();
    }
}
