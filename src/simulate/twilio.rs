//! Twilio's end of one media stream.
//!
//! A [`CallPlan`] says what happens, [`TwilioCall::connect`] shakes hands, [`TwilioCall::run`] plays the whole call.
//! Tests that send something no provider would use [`TwilioCall::send`] and [`TwilioCall::recv`] instead.

mod conversation;
mod plan;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, SinkExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::handshake::client::{Request, generate_key};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{self, Message, http};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::clock;

use super::https::HttpsError;
use super::lag::LagHistogram;
use super::messages::{Direction, TwilioMessages};
use super::received::{Received, recv};
use super::speech::CHUNK_MS;
use super::tls::{ConnectError, Endpoint, TlsClient};

pub use conversation::Conversation;
pub use plan::{CallEnd, CallPlan, Pacing, Signing};

/// How long the answer to the handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may take to answer our close; Twilio's own limit is not documented.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a call looks for something to read, in ticks of 20 ms of audio. With every message it would cost a generator of a
/// thousand calls as much as the message.
const READ_EVERY_TICKS: usize = 16;
/// Twilio reads small messages; what it sends is a few hundred bytes. More is for tests of limits.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No TLS connection.
    #[error("place call")]
    Connect(#[from] ConnectError),
    /// The target or a header of the plan cannot be written as HTTP.
    #[error("handshake request cannot be written")]
    BadRequest(#[source] http::Error),
    /// The server answered the handshake with another status than 101.
    #[error("server refused the call with status {status}")]
    Refused {
        /// The HTTP status.
        status: u16,
    },
    /// No answer to the handshake within ten seconds.
    #[error("server did not answer the handshake within 10 s")]
    HandshakeTimeout,
    /// The connection broke, or the server broke the websocket protocol.
    #[error("websocket")]
    WebSocket(#[source] Box<tungstenite::Error>),
    /// The server ended the connection before the call was over.
    #[error("server closed the connection with code {code:?} ({reason})")]
    Closed {
        /// The close code; `None` where the connection ended without one.
        code: Option<u16>,
        /// The server's words.
        reason: String,
    },
    /// The server did not dial the other end of the call within ten seconds.
    #[error("server did not dial the other end within 10 s")]
    NotDialled,
    /// The server did not end the call within ten seconds of its being over.
    #[error("server did not end the call within 10 s")]
    NotEnded,
    /// What one end said reached the other in another form, or not at all.
    #[error("message {0} did not reach the other end as it was sent")]
    NotPassedOn(usize),
    /// The server did not take a message about the call.
    #[error("tell of the call")]
    NotTold(#[source] Box<HttpsError>),
}

impl From<tungstenite::Error> for CallError {
    fn from(error: tungstenite::Error) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Audio sent so far, in milliseconds of the longer track.
    pub sent_ms: u64,
    /// Audio of the whole call.
    pub total_ms: u64,
    /// Messages sent so far, greeting included.
    pub messages: u64,
    /// How much later than due the later of the last 20 ms' messages was with the kernel; zero where nothing is paced.
    pub lag: Duration,
}

/// How a call went.
#[derive(Debug, Clone)]
pub struct CallReport {
    /// Messages sent.
    pub messages: u64,
    /// Bytes of JSON sent.
    pub bytes: u64,
    /// Text and binary messages that the server sent; always 0 on a stream that only listens.
    pub received: u64,
    /// How much later than due each audio message was with the kernel. Empty where the call is not paced.
    pub send_lag: LagHistogram,
    /// When the first audio message was due.
    pub started_at: Instant,
    /// When the last message was with the kernel.
    pub last_sent: Instant,
    /// The code with which the server answered our close; `None` where none was awaited or came.
    pub close_code: Option<u16>,
}

/// A call whose websocket is open.
pub struct TwilioCall {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    plan: CallPlan,
    messages: TwilioMessages,
    sent: u64,
    sent_bytes: u64,
    received: u64,
    send_lag: LagHistogram,
}

impl TwilioCall {
    /// Connects and shakes hands as Twilio does: signed, no `Origin`, no extension, no subprotocol.
    ///
    /// # Errors
    /// [`CallError::Refused`] for any status but 101, other variants when it does not come that far.
    pub async fn connect(plan: CallPlan, tls: &TlsClient) -> Result<Self, CallError> {
        let socket = shake_hands(handshake_request(&plan)?, &plan.endpoint, tls).await?;
        let messages = TwilioMessages::new(plan.ids.clone());
        let send_lag = LagHistogram::default();
        Ok(Self { socket, plan, messages, sent: 0, sent_bytes: 0, received: 0, send_lag })
    }

    /// Plays the call: greeting, audio at the plan's pace, its end. Calls `progress` after every 20 ms of audio.
    ///
    /// Reads what the server sends every 320 ms of audio, and only counts it.
    ///
    /// # Errors
    /// [`CallError::Closed`] or [`CallError::WebSocket`] when the server does not stay until the end.
    pub async fn run(mut self, mut progress: impl FnMut(Progress)) -> Result<CallReport, CallError> {
        self.greet().await?;
        let started_at = clock::monotonic();
        let ticks = self.plan.ticks();
        for tick in 0..ticks {
            let lag = self.send_tick(started_at, tick).await?;
            let sent_ms = (tick as u64 + 1) * CHUNK_MS;
            progress(Progress { sent_ms, total_ms: ticks as u64 * CHUNK_MS, messages: self.sent, lag });
        }
        if self.plan.end == CallEnd::Stop {
            self.send_stop().await?;
        }
        let mut report = CallReport {
            messages: self.sent,
            bytes: self.sent_bytes,
            received: self.received,
            send_lag: std::mem::take(&mut self.send_lag),
            started_at,
            last_sent: clock::monotonic(),
            close_code: None,
        };
        match self.plan.end {
            CallEnd::Stop | CallEnd::CloseWithoutStop => report.close_code = self.close(1000, "").await,
            CallEnd::Drop => self.reset(),
        }
        Ok(report)
    }

    /// Sends `connected` and `start`.
    ///
    /// # Errors
    /// See [`TwilioCall::send`].
    pub async fn greet(&mut self) -> Result<(), CallError> {
        self.send_text(TwilioMessages::connected()).await?;
        let tracks: &[Direction] = match self.plan.agent {
            Some(_) => &[Direction::Inbound, Direction::Outbound],
            None => &[Direction::Inbound],
        };
        let start = self.messages.start(tracks, &self.plan.parameters);
        self.send_text(start).await
    }

    /// Sends one chunk of audio, base64, as the next media message of its track.
    ///
    /// # Errors
    /// See [`TwilioCall::send`].
    pub async fn send_media(
        &mut self,
        direction: Direction,
        timestamp_ms: u64,
        payload: &str,
    ) -> Result<(), CallError> {
        let media = self.messages.media(direction, timestamp_ms, payload);
        self.send_text(media).await
    }

    /// Sends `stop`, and leaves the connection open.
    ///
    /// # Errors
    /// See [`TwilioCall::send`].
    pub async fn send_stop(&mut self) -> Result<(), CallError> {
        let stop = self.messages.stop();
        self.send_text(stop).await
    }

    /// Sends any text.
    ///
    /// # Errors
    /// See [`TwilioCall::send`].
    pub async fn send_text(&mut self, text: impl Into<String>) -> Result<(), CallError> {
        self.send(Message::text(text.into())).await
    }

    /// Sends any bytes as a binary message.
    ///
    /// # Errors
    /// See [`TwilioCall::send`].
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) -> Result<(), CallError> {
        self.send(Message::binary(bytes.into())).await
    }

    /// Sends one websocket message or frame of any kind, masked, and flushes it.
    ///
    /// # Errors
    /// [`CallError::Closed`] when the server has closed the connection, else [`CallError::WebSocket`].
    pub async fn send(&mut self, message: Message) -> Result<(), CallError> {
        let bytes = message.len() as u64;
        if let Err(error) = self.socket.send(message).await {
            return Err(self.why_closed(error).await);
        }
        self.sent += 1;
        self.sent_bytes += bytes;
        Ok(())
    }

    /// Returns the next thing that the server sent; pings are answered and passed over.
    ///
    /// # Errors
    /// [`CallError::WebSocket`] when the connection broke.
    pub async fn recv(&mut self) -> Result<Received, CallError> {
        Ok(recv(&mut self.socket).await?)
    }

    /// Closes the websocket and returns the code with which the server answers within five seconds, if it does.
    pub async fn close(mut self, code: u16, reason: &'static str) -> Option<u16> {
        let closing = CloseFrame { code: code.into(), reason: reason.into() };
        // A server that closed first has answered already; its code can still be read.
        let _already_closed = self.socket.close(Some(closing)).await;
        let answer = async {
            loop {
                match self.recv().await {
                    Ok(Received::Closed { code, .. }) => return code,
                    Ok(Received::Text(_) | Received::Binary(_)) => {}
                    Err(_) => return None,
                }
            }
        };
        timeout(CLOSE_TIMEOUT, answer).await.ok().flatten()
    }

    /// Ends the connection as a lost peer does: a TCP reset, no websocket close, no end of TLS.
    pub fn reset(self) {
        let (tcp, _) = self.socket.get_ref().get_ref();
        // Without the option the connection ends with a FIN, which is as abrupt for the server.
        let _fin_instead = tcp.set_zero_linger();
    }

    /// Returns what writes this stream's messages, to send them changed or out of order.
    pub fn messages(&mut self) -> &mut TwilioMessages {
        &mut self.messages
    }

    /// Returns the TLS stream under the websocket, to send bytes that are no websocket frames.
    pub fn into_inner(self) -> TlsStream<TcpStream> {
        self.socket.into_inner()
    }

    /// Sends what both sides say in one interval of 20 ms; answers how late the later message was.
    async fn send_tick(&mut self, started_at: Instant, tick: usize) -> Result<Duration, CallError> {
        let mut worst = Duration::ZERO;
        let position_ms = tick as u64 * CHUNK_MS;
        let timestamp_ms = self.plan.first_timestamp_ms + position_ms;
        for direction in [Direction::Inbound, Direction::Outbound] {
            let Some(payload) = self.plan.track(direction).and_then(|track| track.base64(tick)) else {
                continue;
            };
            let media = self.messages.media(direction, timestamp_ms, payload);
            let due = self.plan.due(position_ms, direction).map(|after| started_at + after);
            if tick.is_multiple_of(READ_EVERY_TICKS) {
                self.read_what_is_there()?;
            }
            if let Some(due) = due {
                tokio::time::sleep_until(due.into()).await;
            }
            self.send_text(media).await?;
            if let Some(due) = due {
                let lag = clock::monotonic().saturating_duration_since(due);
                self.send_lag.record(lag);
                worst = worst.max(lag);
            }
        }
        Ok(worst)
    }

    fn read_what_is_there(&mut self) -> Result<(), CallError> {
        while let Some(received) = self.recv().now_or_never() {
            self.count_received(received?)?;
        }
        Ok(())
    }

    fn count_received(&mut self, received: Received) -> Result<(), CallError> {
        match received {
            Received::Text(_) | Received::Binary(_) => {
                self.received += 1;
                Ok(())
            }
            Received::Closed { code, reason } => Err(CallError::Closed { code, reason }),
        }
    }

    /// Looks for the close message of a server that does not take ours any more.
    async fn why_closed(&mut self, error: tungstenite::Error) -> CallError {
        if !matches!(error, tungstenite::Error::Io(_)) {
            return error.into();
        }
        let close_message = async {
            loop {
                if let Received::Closed { code, reason } = self.recv().await? {
                    return Ok::<_, CallError>(CallError::Closed { code, reason });
                }
            }
        };
        match timeout(CLOSE_TIMEOUT, close_message).await {
            Ok(Ok(closed)) => closed,
            Ok(Err(_)) | Err(_) => error.into(),
        }
    }
}

/// Writes the upgrade request; header names are lower case, as Twilio's own.
/// Connects, and makes the connection a websocket.
pub(super) async fn shake_hands(
    request: Request,
    endpoint: &Endpoint,
    tls: &TlsClient,
) -> Result<WebSocketStream<TlsStream<TcpStream>>, CallError> {
    let stream = tls.connect(endpoint).await?;
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES).write_buffer_size(0);
    let answer = timeout(HANDSHAKE_TIMEOUT, client_async_with_config(request, stream, Some(config))).await;
    match answer.map_err(|_| CallError::HandshakeTimeout)? {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(answer)) => Err(CallError::Refused { status: answer.status().as_u16() }),
        Err(error) => Err(error.into()),
    }
}

fn handshake_request(plan: &CallPlan) -> Result<Request, CallError> {
    let authority = plan.endpoint.authority();
    let mut request = http::Request::get(format!("wss://{authority}{}", plan.target))
        .header("host", authority)
        .header("user-agent", "Twilio.TmeWs/1.0")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", generate_key());
    if let Some(signature) = plan.signature() {
        request = request.header("x-twilio-signature", signature);
    }
    for (name, value) in &plan.extra_headers {
        request = request.header(name, value);
    }
    request.body(()).map_err(CallError::BadRequest)
}

#[cfg(test)]
mod tests;
