//! What comes out of a websocket, for whoever is at our end of it.

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};

/// What the server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Bytes),
    /// The end: nothing follows.
    Closed {
        /// The close code; `None` where there was none.
        code: Option<u16>,
        /// The server's words.
        reason: String,
    },
}

/// Returns what comes next; pings are answered and passed over.
pub(super) async fn recv<S>(socket: &mut WebSocketStream<S>) -> Result<Received, tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let closing = match socket.next().await.transpose()? {
            Some(Message::Text(text)) => return Ok(Received::Text(text.as_str().to_owned())),
            Some(Message::Binary(bytes)) => return Ok(Received::Binary(bytes)),
            Some(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Some(Message::Close(closing)) => closing,
            None => None,
        };
        return Ok(match closing {
            Some(CloseFrame { code, reason }) => {
                Received::Closed { code: Some(code.into()), reason: reason.as_str().to_owned() }
            }
            None => Received::Closed { code: None, reason: String::new() },
        });
    }
}
