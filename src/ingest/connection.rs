//! One provider websocket from its first message to its last. The socket is always read: what we do not read in time,
//! the provider throws away.

use std::future::poll_fn;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use metrics::{Counter, counter, gauge};
use tokio::task::coop;
use tokio::time::sleep_until;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::clock;
use crate::config::Ingest;
use crate::domain::provider::CloseReason;
use crate::domain::recording::EndCause;
use crate::drain::Phase;
use crate::node::Node;
use crate::observe::metrics as names;
use crate::websocket::{self, Close, Failure};

use super::admission::{Admitted, Socket};
use super::stream::{MustEnd, StreamInHand};

/// After the provider's `stop` it closes the socket; we do after this.
const CLOSE_AFTER_STOP: Duration = Duration::from_secs(5);
/// Messages taken in a row before sealed bytes are handed over.
const BATCH: usize = 64;
/// Message counts are published after so many.
const PUBLISH_EVERY: u64 = 500;

/// Runs a stream until it ends.
pub(super) async fn run(mut socket: Box<Socket>, mut admitted: Box<Admitted>, node: Arc<Node>) {
    gauge!(names::LIVE_STREAMS).increment(1.0);
    // Both until the provider knows: the process must not end between our close frame and its answer.
    let (place, alive) = (admitted.place.take(), node.drain.alive());
    let mut stream = Connection::new(*admitted, Arc::clone(&node));
    let end = stream.receive(&mut socket).await;
    stream.finish(end.cause);
    close_with(&mut socket, end).await;
    gauge!(names::LIVE_STREAMS).decrement(1.0);
    drop((place, alive));
}

/// How a stream ended, and what is told to the provider.
pub(super) struct End {
    pub(super) cause: EndCause,
    /// Code and reason of our close frame; `None` when there is nobody to tell.
    close: Option<Close>,
}

impl End {
    pub(super) fn quietly(cause: EndCause) -> Self {
        Self { cause, close: None }
    }

    pub(super) fn closing(cause: EndCause, code: u16, reason: &'static str) -> Self {
        Self { cause, close: Some((code, reason)) }
    }

    /// `lost` is what a connection is that breaks without anybody's fault.
    pub(super) fn of_error(error: &WsError, lost: EndCause) -> Self {
        let failure = Failure::of(error);
        let cause = if failure.is_violation { EndCause::ProtocolError } else { lost };
        Self { cause, close: failure.close }
    }
}

struct Connection {
    node: Arc<Node>,
    stream: StreamInHand,
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
        let now = clock::monotonic();
        let longest = admitted.tenant.limits.max_stream.min(node.config.ingest.max_stream);
        Self {
            timers: Timers {
                opened_at: now,
                last_message_at: now,
                ping_sent: false,
                stopped_at: None,
                longest,
            },
            stream: StreamInHand::new(Arc::clone(&node), admitted),
            node,
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
        // Whether the timer and the node's end were polled since the timer was last set.
        let mut is_listening = false;
        loop {
            let woken = poll_fn(|context| {
                let read_at = match self.poll_messages(socket, context) {
                    Ok(read_at) => read_at,
                    Err(end) => return Poll::Ready(Woken::Ended(end)),
                };
                // Deadlines mostly move away; the timer is touched only when one comes nearer.
                let next = self.next_deadline();
                if next < armed {
                    armed = next;
                    timer.as_mut().reset(armed.into());
                } else if let Some(read_at) = read_at.filter(|_| is_listening) {
                    // A message woke us, as nearly always. The timer and the node's end still know whom to wake, and whether
                    // their time has come is told without them.
                    if node.drain.is_stopping() {
                        return Poll::Ready(Woken::Stopping);
                    }
                    return if read_at >= armed { Poll::Ready(Woken::Deadline) } else { Poll::Pending };
                }
                // With nothing left of what a task may do in a row, neither would note whom to wake.
                is_listening = coop::has_budget_remaining();
                if timer.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Woken::Deadline);
                }
                stopping.as_mut().poll(context).map(|()| Woken::Stopping)
            });
            match woken.await {
                Woken::Ended(end) => return end,
                Woken::Stopping => return End::closing(EndCause::Shutdown, 1001, "shutting down"),
                Woken::Deadline => {
                    if let Some(end) = self.timeout(socket) {
                        return end;
                    }
                    armed = self.next_deadline();
                    timer.as_mut().reset(armed.into());
                    is_listening = false;
                }
            }
        }
    }

    /// Takes every message that is there, then hands over what was sealed. One wake-up reads the socket until it is empty.
    /// Answers when it read, if there was a message.
    fn poll_messages(
        &mut self,
        socket: &mut Socket,
        context: &mut Context<'_>,
    ) -> Result<Option<Instant>, End> {
        self.prefetch(socket);
        // One time for all of them: before the first was decrypted.
        let read_at = clock::monotonic();
        let mut has_read = false;
        let mut outcome = Ok(());
        for taken in 0..=BATCH {
            if taken == BATCH {
                // Others want to be served as well; this stream goes on after them.
                context.waker().wake_by_ref();
                break;
            }
            let Poll::Ready(message) = Pin::new(&mut *socket).poll_next(context) else { break };
            has_read = true;
            if let Some(end) = self.message(read_at, message) {
                outcome = Err(end);
                break;
            }
        }
        if has_read {
            self.timers.last_message_at = read_at;
            self.timers.ping_sent = false;
            self.stream.hand_over(read_at);
        }
        outcome.map(|()| has_read.then_some(read_at))
    }

    /// Reads a little of everything that a message needs. With many calls none of it is in the processor's cache: what is
    /// asked for at once comes in the time of one, and the message waits for each where it is asked for as it goes.
    fn prefetch(&self, socket: &Socket) {
        let (_, tls) = socket.get_ref().get_ref();
        black_box((tls.wants_read(), socket.get_config().read_buffer_size));
        black_box((self.messages, self.timers.last_message_at));
        self.stream.prefetch();
    }

    fn message(&mut self, now: Instant, message: Next) -> Option<End> {
        match message {
            Some(Ok(Message::Text(text))) => {
                self.count(text.len());
                self.text(now, text.as_str())
            }
            Some(Ok(Message::Binary(binary))) => {
                self.count(binary.len());
                self.stream.binary(now, &binary).map(End::from)
            }
            Some(Ok(Message::Close(_))) => Some(End::quietly(self.cause_of_close(EndCause::ClosedEarly))),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => None,
            Some(Err(error)) => Some(End::of_error(&error, self.cause_of_close(EndCause::PeerLost))),
            None => Some(End::quietly(self.cause_of_close(EndCause::PeerLost))),
        }
    }

    fn text(&mut self, now: Instant, text: &str) -> Option<End> {
        let end = self.stream.text(now, text);
        if self.timers.stopped_at.is_none() && self.stream.has_stopped() {
            self.timers.stopped_at = Some(now);
        }
        end.map(End::from)
    }

    /// After `stop` every end is a good one.
    fn cause_of_close(&self, cause: EndCause) -> EndCause {
        if self.stream.has_stopped() { EndCause::Stop } else { cause }
    }

    fn next_deadline(&self) -> Instant {
        let ingest = &self.node.config.ingest;
        let timers = &self.timers;
        let silence =
            if timers.ping_sent { ingest.ping_after + ingest.dead_after } else { ingest.ping_after };
        let mut next = (timers.last_message_at + silence).min(timers.opened_at + timers.longest);
        if !self.stream.has_started() {
            next = next.min(timers.opened_at + ingest.start_timeout);
        }
        if let Some(stopped_at) = timers.stopped_at {
            next = next.min(stopped_at + CLOSE_AFTER_STOP);
        }
        match self.stream.next_timeout() {
            Some(cut) => next.min(cut),
            None => next,
        }
    }

    fn timeout(&mut self, socket: &mut Socket) -> Option<End> {
        let now = clock::monotonic();
        if let Some(end) = self.expired(now, &self.node.config.ingest) {
            return Some(end);
        }
        self.stream.timeout(now);
        let silent_since = now.duration_since(self.timers.last_message_at);
        if !self.timers.ping_sent && silent_since >= self.node.config.ingest.ping_after {
            self.timers.ping_sent = true;
            if !websocket::ping(socket) {
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
        if !self.stream.has_started() && now >= timers.opened_at + ingest.start_timeout {
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
        self.stream.finish(cause);
    }
}

impl From<MustEnd> for End {
    fn from(end: MustEnd) -> Self {
        Self::closing(end.cause, end.code, end.reason)
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
pub(super) async fn close_with(socket: &mut Socket, end: End) {
    websocket::close(socket, std::iter::empty(), end.close).await;
}
