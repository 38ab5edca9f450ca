//! Writing to one side and closing it.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Sink;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::websocket;

use super::counts::Lag;
use super::queue::Queue;

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
        let Some(message) = queue.pop() else { break };
        if socket.as_mut().start_send(Message::from(message)).is_err() {
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
    websocket::close(socket, std::iter::from_fn(|| queue.pop().map(Message::from)), frame).await;
}
