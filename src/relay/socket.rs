//! Writing to one side and closing it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Sink, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::counts::Lag;
use super::queue::Queue;

/// How long a close handshake, or what waits before it, may take.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A side to which nothing can be written any more.
pub(super) struct Broken;

/// Writes as much of a queue as the socket takes.
pub(super) fn write<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    queue: &mut Queue,
    lag: &mut Lag,
    context: &mut Context<'_>,
) -> Result<(), Broken> {
    let mut socket = Pin::new(socket);
    while !queue.is_empty() {
        match socket.as_mut().poll_ready(context) {
            Poll::Pending => return Ok(()),
            Poll::Ready(Err(_)) => return Err(Broken),
            Poll::Ready(Ok(())) => {}
        }
        let Some(text) = queue.pop() else { break };
        if socket.as_mut().start_send(Message::Text(text)).is_err() {
            return Err(Broken);
        }
    }
    match socket.poll_flush(context) {
        Poll::Pending => Ok(()),
        Poll::Ready(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => Ok(()),
        Poll::Ready(Err(_)) => Err(Broken),
        Poll::Ready(Ok(())) => {
            lag.end();
            Ok(())
        }
    }
}

/// Writes what waits and closes a side, or answers its close; waits a little for its end.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    queue: &mut Queue,
    frame: Option<(u16, &str)>,
) {
    let closing = async {
        while let Some(text) = queue.pop() {
            if socket.send(Message::Text(text)).await.is_err() {
                break;
            }
        }
        let frame = frame.map(|(code, reason)| CloseFrame { code: code.into(), reason: reason.into() });
        if let Some(frame) = frame
            && socket.close(Some(frame)).await.is_err()
        {
            return;
        }
        // Reading on also sends the answer to the other end's close.
        while let Some(Ok(_)) = socket.next().await {}
        if let Err(error) = socket.get_mut().shutdown().await {
            tracing::debug!(error = &error as &dyn std::error::Error, "peer was gone before we closed");
        }
    };
    if tokio::time::timeout(CLOSE_TIMEOUT, closing).await.is_err() {
        tracing::debug!("peer did not answer our close frame");
    }
}
