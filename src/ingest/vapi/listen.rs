//! Hears one call: dials its listen socket, dials again when it is lost, and ends the recording when the call is over.
//!
//! A listen socket only listens, so nothing here can harm the call. It begins when the call runs already: its recordings say
//! so and never count as complete.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hyper::HeaderMap;
use hyper::header::{self, HeaderValue};
use metrics::{counter, gauge};
use tokio_tungstenite::tungstenite::Message;

use crate::calls::{Claim, News};
use crate::clock;
use crate::domain::notice::NoticeKind;
use crate::domain::provider::CloseReason;
use crate::domain::provider::vapi_webhook::CallFacts;
use crate::domain::recording::EndCause;
use crate::drain::Phase;
use crate::jitter::jittered;
use crate::node::Node;
use crate::observe::metrics as names;
use crate::observe::traces::{Span, words};
use crate::relay::{DialError, Handshake, UpstreamSocket};
use crate::websocket;

use super::begin::{ToHear, count};
use crate::ingest::admission::begin_span;
use hearing::Hearing;

mod hearing;

/// How long to wait before each further attempt. Others saw a socket refused for some seconds although the call ran.
const WAITS_MS: [u64; 5] = [300, 600, 1200, 2500, 5000];
/// A socket that lived shorter than this is not dialled again at once: whoever closes it will close the next one as well.
const SHORT_LIFE: Duration = Duration::from_secs(5);
/// How long is waited then.
const SHORT_LIFE_WAIT: Duration = Duration::from_secs(1);
/// Sockets that one call may lose; more is a fault that dialling does not mend.
const MAX_LOSSES: u32 = 32;
/// After a call's end its report is waited for so long: it comes a second or two later.
const LINGER: Duration = Duration::from_secs(3);
/// Once the report is there, a socket that says nothing for so long has nothing more: audio comes every 20 ms or so.
const QUIET: Duration = Duration::from_millis(500);
/// A socket that is silent for so long is asked with a ping, and given up after as long again.
const PING_AFTER: Duration = Duration::from_secs(15);

/// Why a socket is not read any more.
enum Ended {
    /// It is gone; the call may go on.
    Lost(EndCause),
    /// Nothing more is to be heard.
    Over(EndCause),
}

/// Hears a call from its first message to its end.
pub(super) async fn run(to_hear: ToHear, node: Arc<Node>) {
    let mut listener = Listener::new(to_hear, node);
    let result = listener.hear().await;
    listener.span.word(words::RESULT, result);
    count(result);
}

struct Listener {
    to_hear: ToHear,
    node: Arc<Node>,
    hearing: Option<Hearing>,
    /// Until the call is heard.
    span: Span,
    /// When the call was over, as a message said.
    over_at: Option<Instant>,
    /// When its report came.
    report_at: Option<Instant>,
    /// What messages have said since the call began.
    learned: CallFacts,
    /// The longest that this call is heard.
    until: Instant,
}

impl Listener {
    fn new(to_hear: ToHear, node: Arc<Node>) -> Self {
        let longest = to_hear.tenant.limits.max_stream.min(node.config.ingest.max_stream);
        Self {
            until: to_hear.told_at + longest,
            span: begin_span(&to_hear.tenant, &to_hear.route),
            to_hear,
            node,
            hearing: None,
            over_at: None,
            report_at: None,
            learned: CallFacts::default(),
        }
    }

    /// Answers the word for what became of the call.
    async fn hear(&mut self) -> &'static str {
        let tenant = self.to_hear.tenant.id.tag();
        let (calls, call) = (Arc::clone(&self.node.calls), self.to_hear.call.call.clone());
        let claiming = calls.claim(tenant, &call, self.to_hear.call.sent_ms);
        let (claim, first) = tokio::join!(claiming, self.dial());
        if claim == Claim::Elsewhere {
            return "elsewhere";
        }
        let Some(mut socket) = first else {
            return if self.over_at.is_some() { "over" } else { "unreachable" };
        };
        let taking = self.span.place().around(self.node.keys.take(&self.to_hear.tenant.id));
        let Ok(key) = taking.await.inspect_err(|error| {
            let kind = error.label();
            let error = error as &dyn std::error::Error;
            tracing::error!(tenant = %self.to_hear.tenant.id, error, "no key for a new call");
            self.tell_no_key(kind);
        }) else {
            return "no_key";
        };
        let to_hear = &self.to_hear;
        self.hearing = Some(Hearing::new(&self.node, to_hear, key, std::mem::take(&mut self.span)));
        gauge!(names::LIVE_STREAMS).increment(1.0);
        let cause = self.read_all(&mut socket).await;
        let refused = self.hearing.as_ref().and_then(Hearing::refused_with);
        close(&mut socket, cause, refused).await;
        gauge!(names::LIVE_STREAMS).decrement(1.0);
        self.finish(cause)
    }

    fn tell_no_key(&self, kind: &'static str) {
        let (tenant, route) = (&self.to_hear.tenant.id, self.to_hear.route.name.as_str());
        self.node.notices.tell_key_unavailable(tenant, kind);
        self.node.notices.tell_unrecorded(tenant, NoticeKind::Skipped, route, "no-key");
    }

    /// Reads one socket after the other until the call is over.
    async fn read_all(&mut self, socket: &mut UpstreamSocket) -> EndCause {
        let mut losses = 0;
        loop {
            let began = clock::monotonic();
            let lost = match self.read(socket).await {
                Ended::Over(cause) => return cause,
                Ended::Lost(cause) => cause,
            };
            losses += 1;
            match self.again(losses, clock::since(began)).await {
                Some(next) => *socket = next,
                None if self.over_at.is_some() => return EndCause::Stop,
                None if self.node.drain.phase() >= Phase::Stopping => return EndCause::Shutdown,
                None => return lost,
            }
        }
    }

    /// Dials after the loss of a socket that has lived for `life`; `None` when the call is over or cannot be reached.
    async fn again(&mut self, losses: u32, life: Duration) -> Option<UpstreamSocket> {
        if let Some(hearing) = &mut self.hearing {
            hearing.lost();
        }
        if self.over_at.is_some() || losses > MAX_LOSSES {
            self.await_report().await;
            return None;
        }
        counter!(names::VAPI_SOCKETS_LOST).increment(1);
        if life < SHORT_LIFE && !self.pause(jittered(SHORT_LIFE_WAIT)).await {
            return None;
        }
        self.dial().await
    }

    /// Dials, and waits and dials again, until there is a socket or no more hope.
    async fn dial(&mut self) -> Option<UpstreamSocket> {
        let handshake = self.handshake()?;
        for wait in WAITS_MS.into_iter().map(Some).chain([None]) {
            let dialled = self.node.vapi_dialer.dial(&handshake).await;
            let result = dialled.as_ref().map_or_else(DialError::name, |_| "connected");
            counter!(names::VAPI_DIALS, "result" => result).increment(1);
            match dialled {
                Ok(socket) => return Some(socket),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(tenant = %self.to_hear.tenant.id, error, "listen socket is not there");
                }
            }
            if self.over_at.is_some() || !self.pause(jittered(Duration::from_millis(wait?))).await {
                return None;
            }
        }
        None
    }

    /// Waits; `false` when there is no reason any more to dial.
    async fn pause(&mut self, wait: Duration) -> bool {
        let until = clock::monotonic() + wait;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => return clock::monotonic() < self.until,
                Some(news) = self.to_hear.heard.news.recv() => self.learn(&news),
                () = self.node.drain.reached(Phase::Stopping) => return false,
            }
            if self.over_at.is_some() {
                self.await_report().await;
                return false;
            }
        }
    }

    /// Waits a little for the report of a call that is over.
    async fn await_report(&mut self) {
        let Some(over_at) = self.over_at else { return };
        while self.report_at.is_none() {
            tokio::select! {
                () = tokio::time::sleep_until((over_at + LINGER).into()) => return,
                Some(news) = self.to_hear.heard.news.recv() => self.learn(&news),
                () = self.node.drain.reached(Phase::Stopping) => return,
            }
        }
    }

    /// Reads a socket until it ends or the call does.
    async fn read(&mut self, socket: &mut UpstreamSocket) -> Ended {
        let node = Arc::clone(&self.node);
        let stopping = node.drain.reached(Phase::Stopping);
        tokio::pin!(stopping);
        let (mut last_message_at, mut is_pinged) = (clock::monotonic(), false);
        loop {
            let silent_at = last_message_at + if is_pinged { 2 * PING_AFTER } else { PING_AFTER };
            let ends_at = self.ends_at(last_message_at);
            let cut_at = self.hearing.as_ref().and_then(Hearing::next_timeout);
            let wake_at = [Some(silent_at), ends_at, cut_at, Some(self.until)]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(silent_at);
            tokio::select! {
                () = &mut stopping => return Ended::Over(EndCause::Shutdown),
                Some(news) = self.to_hear.heard.news.recv() => self.learn(&news),
                message = socket.next() => {
                    let read_at = clock::monotonic();
                    (last_message_at, is_pinged) = (read_at, false);
                    if let Some(ended) = self.message(read_at, message) {
                        return ended;
                    }
                }
                () = tokio::time::sleep_until(wake_at.into()) => {
                    let now = clock::monotonic();
                    if let Some(ended) = self.timeout(now, ends_at) {
                        return ended;
                    }
                    if now >= silent_at {
                        if is_pinged || !websocket::ping(socket) {
                            return Ended::Lost(EndCause::PeerLost);
                        }
                        is_pinged = true;
                    }
                }
            }
        }
    }

    /// When a call that is over is heard no longer: what was said last may still be on its way.
    fn ends_at(&self, last_message_at: Instant) -> Option<Instant> {
        let latest = self.over_at? + LINGER;
        let quiet = self.report_at.map(|report_at| report_at.max(last_message_at) + QUIET);
        Some(quiet.map_or(latest, |quiet| quiet.min(latest)))
    }

    fn timeout(&mut self, now: Instant, ends_at: Option<Instant>) -> Option<Ended> {
        if now >= self.until {
            return Some(Ended::Over(EndCause::Limit));
        }
        if ends_at.is_some_and(|ends_at| now >= ends_at) {
            return Some(Ended::Over(EndCause::Stop));
        }
        self.hearing.as_mut()?.timeout(now).map(Ended::Over)
    }

    fn message<E>(&mut self, now: Instant, message: Option<Result<Message, E>>) -> Option<Ended> {
        let hearing = self.hearing.as_mut()?;
        match message {
            Some(Ok(Message::Binary(audio))) => hearing.binary(now, &audio).map(Ended::Over),
            Some(Ok(Message::Text(text))) => hearing.text(&text).map(Ended::Over),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => None,
            Some(Ok(Message::Close(_))) => Some(Ended::Lost(EndCause::ClosedEarly)),
            Some(Err(_)) | None => Some(Ended::Lost(EndCause::PeerLost)),
        }
    }

    fn learn(&mut self, news: &News) {
        let (News::Ended(facts) | News::Report(facts)) = news;
        for (name, text) in &facts.0 {
            self.learned.0.insert(*name, text.clone());
        }
        let now = clock::monotonic();
        self.over_at.get_or_insert(now);
        if matches!(news, News::Report(_)) {
            self.report_at.get_or_insert(now);
        }
    }

    /// What the handshake says; `None` where the URL cannot be written, which its check has ruled out.
    fn handshake(&self) -> Option<Handshake> {
        let mut headers = HeaderMap::new();
        if let Some(key) = &self.to_hear.tenant.vapi.listen_key {
            let mut value = HeaderValue::from_bytes(&[b"Bearer ", key.expose()].concat()).ok()?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        Some(Handshake { url: self.to_hear.url.expose().parse().ok()?, headers })
    }

    fn finish(&mut self, cause: EndCause) -> &'static str {
        let Some(hearing) = self.hearing.take() else { return "no_audio" };
        let tenant = &self.to_hear.tenant.id;
        if hearing.finish(cause, &self.learned, tenant) { "recorded" } else { "no_audio" }
    }
}

/// Says why we go, where somebody may be there.
async fn close(socket: &mut UpstreamSocket, cause: EndCause, refused: Option<CloseReason>) {
    let code = match cause {
        EndCause::Shutdown => 1001,
        EndCause::ProtocolError => 1008,
        EndCause::Internal => 1011,
        EndCause::Stop
        | EndCause::ClosedEarly
        | EndCause::PeerLost
        | EndCause::AgentClosed
        | EndCause::AgentLost
        | EndCause::Limit
        | EndCause::Crash => 1000,
    };
    let frame = refused.map_or((code, ""), |refused| (refused.code(), refused.name()));
    websocket::close(socket, std::iter::empty(), Some(frame)).await;
}
