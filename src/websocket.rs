//! What all our websockets have in common, whoever is at the other end: what a failure means, pings, and closing.

use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

/// How long a close handshake, or what is written before it, may take.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Code and reason of a close frame (RFC 6455, section 7.4).
pub type Close = (u16, &'static str);

/// How a connection ended that nobody closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The peer sent what it must not send; otherwise it was lost.
    pub is_violation: bool,
    /// What the peer is told; `None` where it cannot be told anything.
    pub close: Option<Close>,
}

impl Failure {
    /// The connection ended without a word.
    pub const LOST: Self = Self { is_violation: false, close: None };

    /// Makes out what an error means.
    pub fn of(error: &Error) -> Self {
        tracing::debug!(error = error as &dyn std::error::Error, "websocket failed");
        #[expect(clippy::wildcard_enum_match_arm, reason = "everything else is a lost peer")]
        match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => {
                Self { is_violation: true, close: Some((1009, "message too big")) }
            }
            Error::Utf8(_) => Self { is_violation: true, close: Some((1007, "text is not UTF-8")) },
            // Also what a connection cut within a frame looks like.
            Error::Protocol(_) => Self { is_violation: false, close: Some((1002, "protocol error")) },
            _ => Self::LOST,
        }
    }
}

/// Sends a ping if there is room for one; `false` when nothing can be written any more. Never waits: whoever has no room
/// for a ping is silent, and that is what shows.
pub fn ping<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut WebSocketStream<S>) -> bool {
    !matches!(socket.send(Message::Ping(Bytes::new())).now_or_never(), Some(Err(_)))
}

/// Writes `last` and our close frame, if there is one; waits for the peer's end for [`CLOSE_TIMEOUT`] in all.
///
/// Without a frame only the peer's own close is answered.
pub async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    last: impl Iterator<Item = Message>,
    frame: Option<(u16, &str)>,
) {
    let frame = frame.map(|(code, reason)| CloseFrame { code: code.into(), reason: reason.into() });
    let closing = async {
        for message in last {
            if socket.send(message).await.is_err() {
                break;
            }
        }
        if let Some(frame) = frame
            && socket.close(Some(frame)).await.is_err()
        {
            return;
        }
        // Reading on also sends the answer to the peer's own close frame.
        while let Some(Ok(_)) = socket.next().await {}
        // The answer may still be inside the TLS session; ending that properly sends it.
        if let Err(error) = socket.get_mut().shutdown().await {
            tracing::debug!(error = &error as &dyn std::error::Error, "peer was gone before we closed");
        }
    };
    if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
        tracing::debug!("peer did not answer our close frame");
    }
}
