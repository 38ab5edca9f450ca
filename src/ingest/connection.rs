//! One provider websocket from its first message to its last. The socket is always read: what we do not read in time,
//! the provider throws away.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::{SinkExt, Stream, StreamExt};
use metrics::{Counter, counter, gauge};
use tokio::io::AsyncWriteExt;
use tokio::time::sleep_until;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error as WsError};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::clock;
use crate::config::{Ingest, NoKeyPolicy, Record as RecordPolicy, Route, Tenant};
use crate::domain::provider::twilio::{AccountSid, TwilioDecoder};
use crate::domain::provider::{CloseReason, DropReason, Event, Refusal, StreamStart};
use crate::domain::recording::EndCause;
use crate::domain::session::SessionError;
use crate::drain::Phase;
use crate::ingest::limits::StreamPermit;
use crate::keys::Minted;
use crate::node::Node;
use crate::observe::metrics as names;

use super::twilio::{Admitted, Socket};
use crate::recorder::Recorder;

/// After the provider's `stop` it closes the socket; we do after this.
const CLOSE_AFTER_STOP: Duration = Duration::from_secs(5);
/// How long a close handshake or a ping may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Messages taken in a row before sealed bytes are handed over.
const BATCH: usize = 64;
/// Message counts are published after so many.
const PUBLISH_EVERY: u64 = 500;

/// Runs a stream until it ends.
pub(super) async fn run(mut socket: Socket, mut admitted: Admitted, node: Arc<Node>) {
    gauge!(names::LIVE_STREAMS).increment(1.0);
    // Both until the provider knows: the process must not end between our close frame and its answer.
    let (place, alive) = (admitted.place.take(), node.drain.alive());
    let mut stream = Connection::new(admitted, Arc::clone(&node));
    let end = stream.receive(&mut socket).await;
    stream.finish(end.cause);
    close(&mut socket, end).await;
    gauge!(names::LIVE_STREAMS).decrement(1.0);
    drop((place, alive));
}

/// How a stream ended, and what is told to the provider.
struct End {
    cause: EndCause,
    /// Code and reason of our close frame; `None` when there is nobody to tell.
    close: Option<(u16, &'static str)>,
}

impl End {
    fn quietly(cause: EndCause) -> Self {
        Self { cause, close: None }
    }

    fn closing(cause: EndCause, code: u16, reason: &'static str) -> Self {
        Self { cause, close: Some((code, reason)) }
    }
}

struct Connection {
    node: Arc<Node>,
    tenant: Arc<Tenant>,
    route: Route,
    permit: StreamPermit,
    /// Until the stream starts.
    key: Option<Minted>,
    decoder: TwilioDecoder,
    recorder: Option<Recorder>,
    timers: Timers,
    messages: u64,
    bytes: u64,
    messages_in: Counter,
    bytes_in: Counter,
}

/// The moments that end or probe a stream.
struct Timers {
    opened_at: Instant,
    last_message_at: Instant,
    ping_sent: bool,
    stopped_at: Option<Instant>,
    longest: Duration,
}

impl Connection {
    fn new(admitted: Admitted, node: Arc<Node>) -> Self {
        let Admitted { tenant, route, key, permit, .. } = admitted;
        let accounts: Vec<AccountSid> = tenant.twilio.account_sids.clone();
        let now = clock::monotonic();
        Self {
            decoder: TwilioDecoder::new(accounts, node.config.ingest.max_dropped_messages),
            timers: Timers {
                opened_at: now,
                last_message_at: now,
                ping_sent: false,
                stopped_at: None,
                longest: tenant.limits.max_stream.min(node.config.ingest.max_stream),
            },
            node,
            tenant,
            route,
            permit,
            key: Some(key),
            recorder: None,
            messages: 0,
            bytes: 0,
            messages_in: counter!(names::MESSAGES_IN),
            bytes_in: counter!(names::BYTES_IN),
        }
    }

    /// Takes messages until the stream ends.
    async fn receive(&mut self, socket: &mut Socket) -> End {
        let node = Arc::clone(&self.node);
        let mut stopping = pin!(node.drain.reached(Phase::Stopping));
        let mut armed = self.next_deadline();
        let mut timer = pin!(sleep_until(armed.into()));
        loop {
            let woken = poll_fn(|context| {
                if let Poll::Ready(end) = self.poll_messages(socket, context) {
                    return Poll::Ready(Woken::Ended(end));
                }
                // Deadlines mostly move away; the timer is touched only when one comes nearer.
                let next = self.next_deadline();
                if next < armed {
                    armed = next;
                    timer.as_mut().reset(armed.into());
                }
                if timer.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Woken::Deadline);
                }
                stopping.as_mut().poll(context).map(|()| Woken::Stopping)
            });
            match woken.await {
                Woken::Ended(end) => return end,
                Woken::Stopping => return End::closing(EndCause::Shutdown, 1001, "shutting down"),
                Woken::Deadline => {
                    if let Some(end) = self.timeout(socket).await {
                        return end;
                    }
                    armed = self.next_deadline();
                    timer.as_mut().reset(armed.into());
                }
            }
        }
    }

    /// Takes every message that is there, then hands over what was sealed. One wake-up reads the socket until it is empty.
    fn poll_messages(&mut self, socket: &mut Socket, context: &mut Context<'_>) -> Poll<End> {
        let mut first_read_at = None;
        let mut outcome = Poll::Pending;
        for taken in 0..=BATCH {
            if taken == BATCH {
                // Others want to be served as well; this stream goes on after them.
                context.waker().wake_by_ref();
                break;
            }
            let read_at = clock::monotonic();
            let Poll::Ready(message) = Pin::new(&mut *socket).poll_next(context) else { break };
            first_read_at.get_or_insert(read_at);
            self.timers.last_message_at = read_at;
            self.timers.ping_sent = false;
            if let Some(end) = self.message(read_at, message) {
                outcome = Poll::Ready(end);
                break;
            }
        }
        if let (Some(recorder), Some(read_at)) = (&mut self.recorder, first_read_at) {
            recorder.hand_over(read_at);
        }
        outcome
    }

    fn message(&mut self, now: Instant, message: Next) -> Option<End> {
        match message {
            Some(Ok(Message::Text(text))) => {
                self.count(text.len());
                self.text(now, text.as_str())
            }
            Some(Ok(Message::Binary(binary))) => {
                self.count(binary.len());
                let refusal = self.decoder.dropped(DropReason::Binary);
                self.refused(refusal)
            }
            Some(Ok(Message::Close(_))) => Some(End::quietly(self.cause_of_close(EndCause::ClosedEarly))),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => None,
            Some(Err(error)) => Some(self.socket_error(&error)),
            None => Some(End::quietly(self.cause_of_close(EndCause::PeerLost))),
        }
    }

    fn text(&mut self, now: Instant, text: &str) -> Option<End> {
        let outcome = match self.decoder.decode(text) {
            Ok(Event::Media(media)) => match &mut self.recorder {
                Some(recorder) => recorder.media(now, &media),
                None => Ok(()),
            },
            Ok(Event::Start(start)) => return self.start(&start),
            Ok(Event::Stop { sequence }) => {
                self.stop(now, sequence);
                Ok(())
            }
            Ok(Event::Connected) => Ok(()),
            Ok(Event::Mark { sequence, name }) => match &mut self.recorder {
                Some(recorder) => recorder.mark(now, sequence, &name),
                None => Ok(()),
            },
            Ok(Event::Dtmf { sequence, digit }) => match &mut self.recorder {
                Some(recorder) => recorder.dtmf(now, sequence, digit),
                None => Ok(()),
            },
            Ok(Event::Ignored { sequence, .. }) => {
                if let Some(recorder) = &mut self.recorder {
                    recorder.number(sequence);
                }
                Ok(())
            }
            Err(refusal) => return self.refused(refusal),
        };
        self.recorded(outcome)
    }

    fn start(&mut self, start: &StreamStart) -> Option<End> {
        if !self.permit.claim(&start.stream) {
            let reason = CloseReason::OtherStream;
            return Some(End::closing(EndCause::ProtocolError, reason.code(), reason.name()));
        }
        let key = self.key.take()?;
        if self.route.record == RecordPolicy::Never {
            self.node.keys.give_back(&self.tenant.id, key);
            return None;
        }
        match Recorder::start(&self.node, &self.tenant, &self.route, key, start) {
            Ok(recorder) => {
                tracing::info!(
                    tenant = %self.tenant.id,
                    route = %self.route.name,
                    recording = %recorder.recording(),
                    "recording begins"
                );
                self.recorder = Some(recorder);
                None
            }
            Err(error) => {
                tracing::error!(tenant = %self.tenant.id, error = &error as &dyn std::error::Error, "no recording");
                match self.tenant.no_key_policy {
                    NoKeyPolicy::PassUnrecorded => None,
                    NoKeyPolicy::Refuse => Some(End::closing(EndCause::Internal, 1011, "cannot record")),
                }
            }
        }
    }

    fn stop(&mut self, now: Instant, sequence: Option<u64>) {
        self.timers.stopped_at = Some(now);
        if let Some(mut recorder) = self.recorder.take() {
            recorder.number(sequence);
            recorder.finish(EndCause::Stop);
        }
    }

    fn recorded(&mut self, outcome: Result<(), SessionError>) -> Option<End> {
        match outcome {
            Ok(()) => None,
            Err(SessionError::BadBase64(_)) => {
                let refusal = self.decoder.dropped(DropReason::BadBase64);
                self.refused(refusal)
            }
            Err(error) => {
                // The call goes on; only its recording does not.
                tracing::error!(error = &error as &dyn std::error::Error, "recording ends early");
                if let Some(recorder) = self.recorder.take() {
                    recorder.finish(EndCause::Internal);
                }
                None
            }
        }
    }

    fn refused(&mut self, refusal: Refusal) -> Option<End> {
        match refusal {
            Refusal::Drop(reason) => {
                counter!(names::MESSAGES_DROPPED, "reason" => reason.name()).increment(1);
                if let Some(recorder) = self.recorder.as_mut().filter(|_| reason != DropReason::BadBase64) {
                    recorder.dropped();
                }
                None
            }
            Refusal::Close(reason) => {
                tracing::warn!(tenant = %self.tenant.id, reason = reason.name(), "stream closed by us");
                Some(End::closing(EndCause::ProtocolError, reason.code(), reason.name()))
            }
        }
    }

    fn socket_error(&self, error: &WsError) -> End {
        tracing::debug!(error = error as &dyn std::error::Error, "websocket failed");
        #[expect(clippy::wildcard_enum_match_arm, reason = "everything else is a lost peer")]
        match error {
            WsError::Capacity(CapacityError::MessageTooLong { .. }) => {
                End::closing(EndCause::ProtocolError, 1009, "message too big")
            }
            WsError::Utf8(_) => End::closing(EndCause::ProtocolError, 1007, "text is not UTF-8"),
            WsError::Protocol(_) => {
                End::closing(self.cause_of_close(EndCause::PeerLost), 1002, "protocol error")
            }
            _ => End::quietly(self.cause_of_close(EndCause::PeerLost)),
        }
    }

    /// After `stop` every end is a good one.
    fn cause_of_close(&self, cause: EndCause) -> EndCause {
        if self.decoder.has_stopped() { EndCause::Stop } else { cause }
    }

    fn next_deadline(&self) -> Instant {
        let ingest = &self.node.config.ingest;
        let timers = &self.timers;
        let silence =
            if timers.ping_sent { ingest.ping_after + ingest.dead_after } else { ingest.ping_after };
        let mut next = (timers.last_message_at + silence).min(timers.opened_at + timers.longest);
        if !self.decoder.has_started() {
            next = next.min(timers.opened_at + ingest.start_timeout);
        }
        if let Some(stopped_at) = timers.stopped_at {
            next = next.min(stopped_at + CLOSE_AFTER_STOP);
        }
        match self.recorder.as_ref().and_then(Recorder::next_timeout) {
            Some(cut) => next.min(cut),
            None => next,
        }
    }

    async fn timeout(&mut self, socket: &mut Socket) -> Option<End> {
        let now = clock::monotonic();
        if let Some(end) = self.expired(now, &self.node.config.ingest) {
            return Some(end);
        }
        if let Some(recorder) = &mut self.recorder {
            let outcome = recorder.timeout(now);
            recorder.hand_over(now);
            if let Some(end) = self.recorded(outcome) {
                return Some(end);
            }
        }
        let silent_since = now.duration_since(self.timers.last_message_at);
        if !self.timers.ping_sent && silent_since >= self.node.config.ingest.ping_after {
            self.timers.ping_sent = true;
            let ping = socket.send(Message::Ping(Bytes::new()));
            if !matches!(tokio::time::timeout(WRITE_TIMEOUT, ping).await, Ok(Ok(()))) {
                return Some(End::quietly(self.cause_of_close(EndCause::PeerLost)));
            }
        }
        None
    }

    fn expired(&self, now: Instant, ingest: &Ingest) -> Option<End> {
        let timers = &self.timers;
        if timers.stopped_at.is_some_and(|stopped_at| now >= stopped_at + CLOSE_AFTER_STOP) {
            return Some(End::closing(EndCause::Stop, 1000, "done"));
        }
        if !self.decoder.has_started() && now >= timers.opened_at + ingest.start_timeout {
            let reason = CloseReason::NoStart;
            return Some(End::closing(EndCause::ProtocolError, reason.code(), reason.name()));
        }
        if now >= timers.opened_at + timers.longest {
            return Some(End::closing(EndCause::Limit, 1008, "longest stream"));
        }
        let dead_after = ingest.ping_after + ingest.dead_after;
        if timers.ping_sent && now >= timers.last_message_at + dead_after {
            return Some(End::quietly(EndCause::PeerLost));
        }
        None
    }

    fn count(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes as u64;
        if self.messages >= PUBLISH_EVERY {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.messages_in.increment(std::mem::take(&mut self.messages));
        self.bytes_in.increment(std::mem::take(&mut self.bytes));
    }

    fn finish(mut self, cause: EndCause) {
        self.publish();
        if let Some(recorder) = self.recorder.take() {
            recorder.finish(cause);
        }
        if let Some(key) = self.key.take() {
            counter!(names::STREAMS_ENDED, "cause" => "never-started").increment(1);
            self.node.keys.give_back(&self.tenant.id, key);
        }
    }
}

/// Why a stream's task goes on.
enum Woken {
    Ended(End),
    Deadline,
    Stopping,
}

/// What the websocket gives next; `None`: its end.
type Next = Option<Result<Message, WsError>>;

/// Sends our close frame, if there is one to send, and waits a little for the provider's.
async fn close(socket: &mut Socket, end: End) {
    let frame = end.close.map(|(code, reason)| CloseFrame { code: code.into(), reason: reason.into() });
    let closing = async {
        if let Some(frame) = frame
            && socket.close(Some(frame)).await.is_err()
        {
            return;
        }
        // Reading on also sends the answer to the provider's own close frame.
        while let Some(Ok(_)) = socket.next().await {}
        // The answer may still be inside the TLS session; ending that properly sends it.
        if let Err(error) = socket.get_mut().shutdown().await {
            tracing::debug!(error = &error as &dyn std::error::Error, "provider was gone before we closed");
        }
    };
    if tokio::time::timeout(WRITE_TIMEOUT, closing).await.is_err() {
        tracing::debug!("provider did not answer our close frame");
    }
}
