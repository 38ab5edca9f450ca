//! Requests written and answers read byte by byte, over TLS, where a client library would not send what a test wants.

use std::time::Duration;

use callseal::domain::provider::twilio_signature::sign_url;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::{AUTH_TOKEN, Server};

/// A connection as a provider opens it, after the TLS handshake.
pub(crate) type Raw = TlsStream<TcpStream>;

pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// An HTTP/1.1 answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case, without `date`, in the order of the answer.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// Returns a header's value; empty when there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// Returns the body without the id of its request.
    pub(crate) fn body_without_id(&self) -> serde_json::Value {
        let mut body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!(body["request"].as_str().map(str::len), Some(12), "{}", self.body);
        body["request"] = serde_json::Value::Null;
        body
    }
}

impl Server {
    /// Opens a TLS connection.
    pub(crate) async fn connect(&self) -> Raw {
        self.tls().connect(&self.endpoint()).await.unwrap()
    }

    /// Sends the bytes of one request on a connection of its own; answers what comes back.
    pub(crate) async fn exchange(&self, request: impl AsRef<[u8]>) -> Answer {
        let mut stream = self.connect().await;
        exchange(&mut stream, request).await
    }
}

/// Sends the bytes of one request and reads its answer.
pub(crate) async fn exchange(stream: &mut Raw, request: impl AsRef<[u8]>) -> Answer {
    stream.write_all(request.as_ref()).await.unwrap();
    timeout(READ_TIMEOUT, read_answer(stream)).await.expect("an answer in time")
}

async fn read_answer(stream: &mut Raw) -> Answer {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a whole head"));
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .filter(|(name, _)| name != "date")
        .collect();
    let mut answer = Answer { status, headers, body: String::new() };
    let length = answer.header("content-length").parse().unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    answer.body = String::from_utf8(body).unwrap();
    answer
}

/// Waits until the other end closes the connection, in whatever way; answers what it sent before.
pub(crate) async fn read_to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut read = Vec::new();
    // A connection that ends without a goodbye has ended as well.
    let _how = timeout(READ_TIMEOUT, stream.read_to_end(&mut read)).await.expect("closed in time").is_ok();
    read
}

/// Writes a stream's handshake as Twilio does; `signature` is the header's whole line, or empty.
pub(crate) fn upgrade(target: &str, signature: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: media.example.com\r\nUser-Agent: Twilio.TmeWs/1.0\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n{signature}\r\n"
    )
}

/// Writes a handshake that [`AUTH_TOKEN`] has signed for this node.
pub(crate) fn signed_upgrade(target: &str) -> String {
    upgrade(target, &signature_of(target))
}

/// Writes the header's line with the signature of a target of `wss://media.example.com`.
pub(crate) fn signature_of(target: &str) -> String {
    let signature = sign_url(AUTH_TOKEN.as_bytes(), &format!("wss://media.example.com{target}"));
    format!("x-twilio-signature: {signature}\r\n")
}
