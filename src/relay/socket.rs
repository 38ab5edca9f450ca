//! Writing to one side, closing it, and what a close means.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Sink;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
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

/// Returns the code and reason with which a close is passed on. What may not be written becomes 1000.
pub(super) fn passed_on(frame: Option<CloseFrame>) -> (u16, String) {
    match frame {
        Some(CloseFrame { code, reason }) if code.is_allowed() => (code.into(), reason.as_str().to_owned()),
        Some(_) | None => (1000, String::new()),
    }
}

/// Whether an agent that closes means to: anything but the codes of a server in trouble.
pub(super) fn is_decision(frame: Option<&CloseFrame>) -> bool {
    !frame.is_some_and(|frame| {
        matches!(
            frame.code,
            CloseCode::Away | CloseCode::Error | CloseCode::Restart | CloseCode::Again | CloseCode::Abnormal
        ) || u16::from(frame.code) == 1014
    })
}
