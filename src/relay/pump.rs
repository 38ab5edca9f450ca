//! One call: two sockets, a queue in each direction, and the rules of who may end it.
//!
//! The provider's socket is always read. What an agent is too slow for is dropped, audio first; what a provider is too slow
//! for makes the agent wait. Messages are written in the poll that has read them; nothing is parsed.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::future::BoxFuture;
use metrics::{counter, gauge};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep_until;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use crate::clock;
use crate::config::OnLoss;
use crate::jitter::jittered;
use crate::observe::metrics as names;
use crate::websocket::Failure;

use super::counts::Counts;
use super::dial::{DialError, Dialer, Handshake, UpstreamSocket};
use super::overheard::{Listener, Side};
use super::passed::{Alignment, Passed, Traffic};
use super::pulse::Pulse;
use super::queue::{Pushed, Queue};
use super::socket::{Broken, close, is_decision, passed_on, write};

/// After the provider's last message both sides are closed by us.
const CLOSE_AFTER_STOP: Duration = Duration::from_secs(5);
/// Messages read in a row from one side before the other is looked at.
const BATCH: usize = 64;
/// The first wait before an agent is dialled again, and the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// A call to be passed on.
pub struct Call<S> {
    /// The provider's websocket, open.
    pub provider: WebSocketStream<S>,
    /// What was read from it already, in order; sent to every agent that is dialled.
    pub greeting: Vec<Passed>,
    /// The first attempt to reach the agent, which may have begun long ago.
    pub dialling: BoxFuture<'static, Result<UpstreamSocket, DialError>>,
    /// How to dial again.
    pub dialer: Dialer,
    /// Whom to dial again.
    pub handshake: Handshake,
    /// What ends the phone call when the agent is lost for good, and answers whether it is over; polled then and not before.
    pub hang_up: Option<BoxFuture<'static, bool>>,
    /// Who gets copies.
    pub listener: Listener,
}

/// How a call is passed on.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What the messages are.
    pub traffic: Traffic,
    /// What may wait, in each direction.
    pub queue_bytes: usize,
    /// What becomes of the call when the agent is lost.
    pub on_loss: OnLoss,
    /// Silence of a side after which it is pinged.
    pub ping_after: Duration,
    /// Silence after that ping which ends the side.
    pub dead_after: Duration,
    /// The moment at which the call is ended in any case.
    pub ends_at: Instant,
}

/// Who ended a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The provider closed its connection, or said that the stream is over.
    ByProvider,
    /// The provider's connection broke.
    ProviderLost,
    /// The agent closed its connection.
    ByAgent,
    /// The agent was lost, or never reached.
    AgentLost,
    /// We: the provider broke the protocol.
    ByRule,
    /// We: the call lasted its longest.
    TooLong,
    /// We: the node stops.
    Stopping,
}

/// Passes a call on until it ends; both sides are closed then. `stopping` ends it at once.
pub async fn relay<S>(call: Call<S>, settings: Settings, stopping: impl Future<Output = ()>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    gauge!(names::RELAYED_CALLS).increment(1.0);
    let mut pump = Pump::new(call, settings);
    let ended = pump.run(stopping).await;
    pump.publish();
    gauge!(names::RELAYED_CALLS).decrement(1.0);
    ended
}

struct Pump<S> {
    provider: WebSocketStream<S>,
    agent: Agent,
    to_agent: Queue,
    to_provider: Queue,
    greeting: Vec<Passed>,
    alignment: Alignment,
    dialer: Dialer,
    handshake: Handshake,
    hang_up: Option<BoxFuture<'static, bool>>,
    listener: Listener,
    settings: Settings,
    provider_pulse: Pulse,
    agent_pulse: Pulse,
    /// Since when the agent is away, and how long to wait before the next attempt.
    away: Option<(Instant, Duration)>,
    stopped_at: Option<Instant>,
    counts: Counts,
}

enum Agent {
    Dialling(BoxFuture<'static, Result<UpstreamSocket, DialError>>),
    Open(UpstreamSocket),
    /// Until the next attempt.
    Away(Instant),
    /// It does not come back, for this reason, and the phone call is being ended.
    Gone(BoxFuture<'static, bool>, &'static str),
}

/// What happened that the pump cannot deal with by itself.
enum Event {
    ProviderClosed(Option<CloseFrame>),
    ProviderFailed(Failure),
    Dialled(Result<UpstreamSocket, DialError>),
    AgentClosed(Option<CloseFrame>),
    AgentLost,
    /// Whether the phone call is over, and why it was ended.
    HungUp(bool, &'static str),
    Verdict,
    Deadline,
    Stopping,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Pump<S> {
    fn new(call: Call<S>, settings: Settings) -> Self {
        let now = clock::monotonic();
        let mut to_agent = Queue::new(settings.queue_bytes, settings.traffic);
        for message in &call.greeting {
            // Two short messages never fill a queue.
            to_agent.push(message.clone());
        }
        Self {
            provider: call.provider,
            agent: Agent::Dialling(call.dialling),
            to_agent,
            to_provider: Queue::new(settings.queue_bytes, settings.traffic),
            greeting: call.greeting,
            alignment: Alignment::new(settings.traffic),
            dialer: call.dialer,
            handshake: call.handshake,
            hang_up: call.hang_up,
            listener: call.listener,
            settings,
            provider_pulse: Pulse::new(now),
            agent_pulse: Pulse::new(now),
            away: None,
            stopped_at: None,
            counts: Counts::new(),
        }
    }

    async fn run(&mut self, stopping: impl Future<Output = ()>) -> Ended {
        let mut verdicts = self.listener.verdicts();
        tokio::pin!(stopping);
        loop {
            let deadline = self.next_deadline();
            let event = tokio::select! {
                event = poll_fn(|context| self.poll(context)) => event,
                () = verdicts.changed() => Event::Verdict,
                () = sleep_until(deadline.into()) => Event::Deadline,
                () = &mut stopping => Event::Stopping,
            };
            if let Some(ended) = self.handle(event).await {
                return ended;
            }
        }
    }

    /// Moves everything that can be moved.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        if let Some(event) = self.read_provider(context) {
            return Poll::Ready(event);
        }
        if let Some(event) = self.read_agent(context) {
            return Poll::Ready(event);
        }
        if let Agent::Open(agent) = &mut self.agent
            && let Err(Broken) = write(agent, &mut self.to_agent, &mut self.counts.to_agent, context)
        {
            return Poll::Ready(Event::AgentLost);
        }
        let written = write(&mut self.provider, &mut self.to_provider, &mut self.counts.to_provider, context);
        if let Err(Broken) = written {
            return Poll::Ready(Event::ProviderFailed(Failure::LOST));
        }
        Poll::Pending
    }

    fn read_provider(&mut self, context: &mut Context<'_>) -> Option<Event> {
        for _ in 0..BATCH {
            let Poll::Ready(message) = Pin::new(&mut self.provider).poll_next(context) else { return None };
            let now = clock::monotonic();
            self.provider_pulse = Pulse::new(now);
            let passed = match message {
                Some(Ok(Message::Text(text))) => Passed::Text(text),
                Some(Ok(Message::Binary(bytes))) if self.settings.traffic != Traffic::Texts => {
                    Passed::Binary(bytes)
                }
                Some(Ok(Message::Binary(_))) => {
                    self.counts.dropped_to_agent.increment(1);
                    continue;
                }
                Some(Ok(Message::Close(frame))) => return Some(Event::ProviderClosed(frame)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(error)) => return Some(Event::ProviderFailed(Failure::of(&error))),
                None => return Some(Event::ProviderFailed(Failure::LOST)),
            };
            self.counts.count_in(passed.len());
            self.listener.offer(Side::Provider, now, &passed);
            if let Err(Broken) = self.forward_to_agent(now, passed) {
                return Some(Event::AgentLost);
            }
        }
        context.waker().wake_by_ref();
        None
    }

    fn forward_to_agent(&mut self, now: Instant, message: Passed) -> Result<(), Broken> {
        let message = self.alignment.take(message);
        if self.away.is_some() {
            // What the caller says while there is no agent would be stale when there is one again.
            self.counts.dropped_to_agent.increment(1);
            return Ok(());
        }
        match self.to_agent.push(message) {
            Pushed::Kept { dropped } => {
                self.counts.to_agent.begin(now);
                self.counts.dropped_to_agent.increment(dropped);
                Ok(())
            }
            // An agent without the rest would know another call than the one there is.
            Pushed::Overflowed => Err(Broken),
        }
    }

    fn read_agent(&mut self, context: &mut Context<'_>) -> Option<Event> {
        for _ in 0..BATCH {
            let message = match &mut self.agent {
                Agent::Dialling(dialling) => {
                    let Poll::Ready(dialled) = dialling.as_mut().poll(context) else { return None };
                    return Some(Event::Dialled(dialled));
                }
                Agent::Away(_) => return None,
                Agent::Gone(hanging_up, why) => {
                    let Poll::Ready(is_over) = hanging_up.as_mut().poll(context) else { return None };
                    return Some(Event::HungUp(is_over, why));
                }
                // The agent may wait; the provider may not.
                Agent::Open(_) if self.to_provider.is_full() => return None,
                Agent::Open(agent) => {
                    let Poll::Ready(message) = Pin::new(&mut **agent).poll_next(context) else { return None };
                    message
                }
            };
            let now = clock::monotonic();
            self.agent_pulse = Pulse::new(now);
            let passed = match message {
                Some(Ok(Message::Text(text))) => Passed::Text(text),
                Some(Ok(Message::Binary(bytes))) if self.settings.traffic != Traffic::Texts => {
                    Passed::Binary(bytes)
                }
                Some(Ok(Message::Binary(_))) => {
                    self.counts.dropped_to_provider.increment(1);
                    continue;
                }
                Some(Ok(Message::Close(frame))) => return Some(Event::AgentClosed(frame)),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(_)) | None => return Some(Event::AgentLost),
            };
            self.listener.offer(Side::Agent, now, &passed);
            // Room was looked for before, so that nothing is dropped here.
            self.to_provider.push_last(passed);
            self.counts.to_provider.begin(now);
        }
        context.waker().wake_by_ref();
        None
    }

    async fn handle(&mut self, event: Event) -> Option<Ended> {
        match event {
            Event::ProviderClosed(frame) => {
                let (code, reason) = passed_on(frame);
                self.end(None, Some((code, reason.as_str()))).await;
                Some(if self.is_agent_gone() { Ended::AgentLost } else { Ended::ByProvider })
            }
            Event::ProviderFailed(failure) => {
                self.end(failure.close, Some((1001, "caller's connection was lost"))).await;
                Some(match failure {
                    _ if self.stopped_at.is_some() => Ended::ByProvider,
                    Failure { is_violation: true, .. } => Ended::ByRule,
                    _ if self.is_agent_gone() => Ended::AgentLost,
                    Failure { is_violation: false, .. } => Ended::ProviderLost,
                })
            }
            Event::Dialled(Ok(agent)) => {
                self.opened(agent);
                None
            }
            Event::Dialled(Err(error)) => {
                counter!(names::UPSTREAM_DIALS, "result" => error.name()).increment(1);
                tracing::warn!(error = &error as &dyn std::error::Error, "agent was not reached");
                self.lost("agent unreachable").await
            }
            Event::AgentClosed(frame) if self.stopped_at.is_some() || is_decision(frame.as_ref()) => {
                let (code, reason) = passed_on(frame);
                self.end(Some((code, reason.as_str())), None).await;
                Some(if self.stopped_at.is_some() { Ended::ByProvider } else { Ended::ByAgent })
            }
            Event::AgentClosed(_) | Event::AgentLost => self.lost("agent lost").await,
            Event::HungUp(is_over, why) => {
                self.end(Some(if is_over { (1000, "call ended") } else { (1011, why) }), None).await;
                Some(Ended::AgentLost)
            }
            Event::Verdict => self.judged().await,
            Event::Deadline => self.deadline().await,
            Event::Stopping => {
                let close = Some((1001, "shutting down"));
                self.end(close, close).await;
                Some(Ended::Stopping)
            }
        }
    }

    fn opened(&mut self, agent: UpstreamSocket) {
        counter!(names::UPSTREAM_DIALS, "result" => "opened").increment(1);
        if self.away.take().is_some() {
            tracing::info!("agent is back");
            self.to_agent.clear();
            for message in &self.greeting {
                self.to_agent.push(message.clone());
            }
            self.alignment.begin_anew();
        }
        self.agent = Agent::Open(agent);
        self.agent_pulse = Pulse::new(clock::monotonic());
    }

    /// The agent is gone without having said so.
    async fn lost(&mut self, why: &'static str) -> Option<Ended> {
        let now = clock::monotonic();
        if self.stopped_at.is_some() {
            self.end(Some((1000, "done")), None).await;
            return Some(Ended::ByProvider);
        }
        if let Some(longest) = self.settings.on_loss.hold() {
            let (since, backoff) = self.away.unwrap_or((now, FIRST_BACKOFF));
            if now + backoff < since + longest {
                self.do_without_agent(Agent::Away(now + jittered(backoff)));
                self.away = Some((since, LONGEST_BACKOFF.min(backoff * 2)));
                counter!(names::AGENTS_LOST, "action" => "hold").increment(1);
                return None;
            }
        }
        if let Some(hang_up) = self.hang_up.take() {
            // The provider is read on meanwhile, and what the caller says is recorded.
            self.do_without_agent(Agent::Gone(hang_up, why));
            self.away.get_or_insert((now, FIRST_BACKOFF));
            counter!(names::AGENTS_LOST, "action" => "hangup").increment(1);
            return None;
        }
        counter!(names::AGENTS_LOST, "action" => "close").increment(1);
        tracing::warn!("{why}; the call is given back to the provider");
        self.end(Some((1011, why)), None).await;
        Some(Ended::AgentLost)
    }

    /// Puts something in the place of an agent that is lost.
    fn do_without_agent(&mut self, instead: Agent) {
        self.counts.dropped_to_agent.increment(self.to_agent.clear());
        self.agent = instead;
    }

    fn is_agent_gone(&self) -> bool {
        matches!(self.agent, Agent::Gone(..))
    }

    async fn judged(&mut self) -> Option<Ended> {
        let verdict = self.listener.verdict();
        if let Some((code, reason)) = verdict.close {
            self.end(Some((code, reason)), Some((1008, "provider broke the protocol"))).await;
            return Some(Ended::ByRule);
        }
        if verdict.has_stopped {
            self.stopped_at.get_or_insert_with(clock::monotonic);
        }
        None
    }

    fn next_deadline(&self) -> Instant {
        let mut next = self.settings.ends_at.min(self.provider_pulse.deadline(&self.settings));
        match &self.agent {
            Agent::Open(_) => next = next.min(self.agent_pulse.deadline(&self.settings)),
            Agent::Away(until) => next = next.min(*until),
            Agent::Dialling(_) | Agent::Gone(..) => {}
        }
        match self.stopped_at {
            Some(stopped_at) => next.min(stopped_at + CLOSE_AFTER_STOP),
            None => next,
        }
    }

    async fn deadline(&mut self) -> Option<Ended> {
        let now = clock::monotonic();
        if self.stopped_at.is_some_and(|stopped_at| now >= stopped_at + CLOSE_AFTER_STOP) {
            let close = Some((1000, "done"));
            self.end(close, close).await;
            return Some(Ended::ByProvider);
        }
        if now >= self.settings.ends_at {
            let close = Some((1008, "longest stream"));
            self.end(close, close).await;
            return Some(Ended::TooLong);
        }
        if let Agent::Away(until) = &self.agent
            && now >= *until
        {
            self.dial_again();
        }
        if self.provider_pulse.deadline(&self.settings) <= now
            && !self.provider_pulse.ping(&mut self.provider)
        {
            self.end(None, Some((1001, "caller's connection was lost"))).await;
            return Some(Ended::ProviderLost);
        }
        if let Agent::Open(agent) = &mut self.agent
            && self.agent_pulse.deadline(&self.settings) <= now
            && !self.agent_pulse.ping(agent)
        {
            return self.lost("agent lost").await;
        }
        None
    }

    fn dial_again(&mut self) {
        let (dialer, handshake) = (self.dialer.clone(), self.handshake.clone());
        self.agent = Agent::Dialling(Box::pin(async move { dialer.dial(&handshake).await }));
    }

    /// Writes what waits, then closes both sides; a close of `None` only answers the other end's.
    async fn end(&mut self, provider: Option<(u16, &str)>, agent: Option<(u16, &str)>) {
        let (to_provider, to_agent) = (&mut self.to_provider, &mut self.to_agent);
        let closing_agent = async {
            if let Agent::Open(socket) = &mut self.agent {
                close(socket, to_agent, agent).await;
            }
        };
        tokio::join!(close(&mut self.provider, to_provider, provider), closing_agent);
    }

    fn publish(&mut self) {
        self.counts.to_agent.publish();
        self.counts.to_provider.publish();
        self.counts.publish_in();
    }
}
