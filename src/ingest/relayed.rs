//! A call that is passed on to an agent: the stream begins here, then two tasks go on with it. One passes messages on and
//! waits for nobody; the other decodes and records copies.

use std::iter;
use std::sync::Arc;

use futures_util::StreamExt;
use hyper::HeaderMap;
use metrics::{counter, gauge};
use tokio::sync::oneshot;
use tokio::time::sleep_until;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::AbortOnDropHandle;

use crate::clock;
use crate::config::{OnLoss, Route, Upstream};
use crate::domain::ids::TenantId;
use crate::domain::recording::EndCause;
use crate::domain::relay_proof::{
    PROOF_HEADER, Proof, ROUTE_HEADER, STREAM_HEADER, TENANT_HEADER, TIMESTAMP_HEADER,
};
use crate::domain::sign::encode_hex;
use crate::drain::Phase;
use crate::keys::fill_random;
use crate::node::Node;
use crate::observe::metrics as names;
use crate::relay::{
    Call, DialError, Dialer, Ended, Handshake, Listening, Passed, Settings, Side, UpstreamSocket, Verdict,
    overhear, relay,
};

use super::admission::{Admitted, Line, Socket};
use super::stream::{MustEnd, StreamInHand};
use super::{connection, hangup};

/// Messages before `start`: there is one.
const MAX_GREETING: usize = 16;
/// Copies taken in a row before sealed bytes are handed over.
const BATCH: usize = 64;

/// The first attempt to reach an agent; it began with the provider's handshake.
pub(super) struct Dialling {
    on_loss: OnLoss,
    handshake: Handshake,
    /// Who dials, also when the agent was lost.
    dialer: Dialer,
    /// Given up with this value.
    task: AbortOnDropHandle<Result<UpstreamSocket, DialError>>,
}

impl Dialling {
    /// Begins to dial.
    pub(super) fn begin(node: &Node, tenant: &TenantId, route: &Route, upstream: &Upstream) -> Self {
        let handshake = handshake(tenant, route, upstream);
        let dialer = if upstream.public_only { &node.public_dialer } else { &node.dialer };
        Self::dial(dialer, handshake, upstream.on_loss)
    }

    /// Begins to dial Vapi's end of a call. It can be dialled once: when it is lost, so is the call.
    pub(super) fn begin_line(node: &Node, line: &Line) -> Self {
        // The URL is all that proves us.
        let handshake = Handshake { url: line.url.clone(), headers: HeaderMap::new() };
        Self::dial(&node.vapi_dialer, handshake, OnLoss::Close)
    }

    fn dial(dialer: &Dialer, handshake: Handshake, on_loss: OnLoss) -> Self {
        let (first, to) = (dialer.clone(), handshake.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move { first.dial(&to).await }));
        Self { on_loss, handshake, dialer: dialer.clone(), task }
    }
}

/// Says who we are: the agent cannot check Twilio's signature, which is over our URL.
fn handshake(tenant: &TenantId, route: &Route, upstream: &Upstream) -> Handshake {
    let mut random = [0; 16];
    // Without random bytes there is no key either, and so no call.
    let _filled = fill_random(&mut random).is_ok();
    let proof = Proof {
        timestamp: clock::wall().0 / 1000,
        tenant: tenant.as_str(),
        route: route.name.as_str(),
        stream: &encode_hex(&random),
        target: upstream.url.target(),
    };
    let mut headers = upstream.headers.clone();
    let secrets: Vec<&[u8]> = upstream.secrets.iter().map(|secret| secret.expose()).collect();
    let values = [
        (TENANT_HEADER, proof.tenant.to_owned()),
        (ROUTE_HEADER, proof.route.to_owned()),
        (STREAM_HEADER, proof.stream.to_owned()),
        (TIMESTAMP_HEADER, proof.timestamp.to_string()),
        (PROOF_HEADER, proof.signatures(&secrets)),
    ];
    for (name, value) in values {
        // Ids, digits and hexadecimal digits always make a header.
        if let Ok(value) = value.parse() {
            headers.insert(name, value);
        }
    }
    Handshake { url: upstream.url.clone(), headers }
}

/// Runs a call until it ends.
pub(super) async fn run(
    mut socket: Box<Socket>,
    mut admitted: Box<Admitted>,
    dialling: Box<Dialling>,
    node: Arc<Node>,
) {
    gauge!(names::LIVE_STREAMS).increment(1.0);
    // Until the provider knows: the process must not end between our close frame and its answer.
    let (place, alive) = (admitted.place.take(), node.drain.alive());
    let ingest = &node.config.ingest;
    let ends_at = clock::monotonic() + admitted.tenant.limits.max_stream.min(ingest.max_stream);
    let mut stream = StreamInHand::new(Arc::clone(&node), *admitted);
    match greeting(&mut socket, &mut stream, &node).await {
        Err(end) => {
            stream.finish(end.cause);
            connection::close_with(&mut socket, end).await;
        }
        Ok(greeting) => {
            let settings = Settings {
                traffic: stream.traffic(),
                queue_bytes: node.config.relay.queue_bytes,
                on_loss: dialling.on_loss,
                ping_after: ingest.ping_after,
                dead_after: ingest.dead_after,
                ends_at,
            };
            Box::pin(pass_on(*socket, stream, greeting, *dialling, settings, &node)).await;
        }
    }
    gauge!(names::LIVE_STREAMS).decrement(1.0);
    drop((place, alive));
}

/// Reads until the stream has said whose it is. Nothing reaches the agent before that.
async fn greeting(
    socket: &mut Socket,
    stream: &mut StreamInHand,
    node: &Node,
) -> Result<Vec<Passed>, connection::End> {
    let until = clock::monotonic() + node.config.ingest.start_timeout;
    let mut greeting = Vec::new();
    // Where a ticket has said it all, nothing is waited for.
    while !stream.has_started() {
        let message = tokio::select! {
            message = socket.next() => message,
            () = sleep_until(until.into()) => {
                return Err(connection::End::closing(EndCause::ProtocolError, 1008, "no_start"));
            }
            () = node.drain.reached(Phase::Stopping) => {
                return Err(connection::End::closing(EndCause::Shutdown, 1001, "shutting down"));
            }
        };
        let must_end = match message {
            Some(Ok(Message::Text(text))) => {
                let must_end = stream.text(clock::monotonic(), &text);
                greeting.push(Passed::Text(text));
                must_end
            }
            Some(Ok(Message::Binary(bytes))) => stream.binary(clock::monotonic(), &bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => None,
            Some(Ok(Message::Close(_))) => return Err(connection::End::quietly(EndCause::ClosedEarly)),
            Some(Err(error)) => return Err(connection::End::of_error(&error, EndCause::PeerLost)),
            None => return Err(connection::End::quietly(EndCause::PeerLost)),
        };
        if let Some(end) = must_end {
            return Err(end.into());
        }
        if greeting.len() >= MAX_GREETING && !stream.has_started() {
            return Err(connection::End::closing(EndCause::ProtocolError, 1008, "no_start"));
        }
    }
    Ok(greeting)
}

async fn pass_on(
    socket: Socket,
    stream: StreamInHand,
    greeting: Vec<Passed>,
    dialling: Dialling,
    settings: Settings,
    node: &Arc<Node>,
) {
    let (listener, listening) = overhear();
    let (ended, end) = oneshot::channel();
    let tenant = stream.tenant().clone();
    let to_end = stream.twilio_call().filter(|_| settings.on_loss.hangs_up());
    let hang_up = to_end.map(|call| hangup::when_polled(node, stream.tenant_in_full(), call));
    let listener_task = tokio::spawn(listen(listening, stream, end));
    let call = Call {
        provider: socket,
        greeting,
        dialling: Box::pin(async move { dialling.task.await.unwrap_or(Err(DialError::TimedOut)) }),
        dialer: dialling.dialer,
        handshake: dialling.handshake,
        hang_up,
        listener,
    };
    let outcome = relay(call, settings, node.drain.reached(Phase::Stopping)).await;
    tracing::info!(%tenant, ended = ?outcome, "relayed call is over");
    // Nobody listens any more when the recording has ended before the call.
    let _told = ended.send(cause_of(outcome)).is_ok();
    if listener_task.await.is_err() {
        counter!(names::STREAMS_ENDED, "cause" => "panic").increment(1);
        tracing::error!(%tenant, "recording of a relayed call failed; recovery will finish it");
    }
}

fn cause_of(ended: Ended) -> EndCause {
    match ended {
        Ended::ByProvider => EndCause::ClosedEarly,
        Ended::ProviderLost => EndCause::PeerLost,
        Ended::ByAgent => EndCause::AgentClosed,
        Ended::AgentLost => EndCause::AgentLost,
        Ended::ByRule => EndCause::ProtocolError,
        Ended::TooLong => EndCause::Limit,
        Ended::Stopping => EndCause::Shutdown,
    }
}

/// Takes copies until the call is over. Holds the process until the recording has ended.
async fn listen(mut listening: Listening, mut stream: StreamInHand, end: oneshot::Receiver<EndCause>) {
    let mut verdict = Verdict::default();
    loop {
        let timeout = stream.next_timeout();
        let due = async {
            match timeout {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            copy = listening.next() => {
                let Some(first) = copy else { break };
                let read_at = first.at;
                let rest = iter::from_fn(|| listening.next_now()).take(BATCH - 1);
                for copy in iter::once(first).chain(rest) {
                    let must_end = take(&mut stream, &copy);
                    verdict.close = verdict.close.or(must_end.map(|end| (end.code, end.reason)));
                }
                stream.hand_over(read_at);
                verdict.has_stopped = stream.has_stopped();
                listening.tell(verdict);
            }
            () = due => stream.timeout(clock::monotonic()),
        }
    }
    // It ends in any case now.
    stream.missed(clock::monotonic(), listening.missed_last());
    let cause = end.await.unwrap_or(EndCause::Internal);
    stream.finish(cause);
}

fn take(stream: &mut StreamInHand, copy: &crate::relay::Copy) -> Option<MustEnd> {
    let missed = stream.missed(copy.at, copy.missed);
    let must_end = match (copy.side, &copy.message) {
        (Side::Provider, Passed::Text(text)) => stream.text(copy.at, text),
        (Side::Provider, Passed::Binary(bytes)) => stream.binary(copy.at, bytes),
        (Side::Agent, Passed::Text(text)) => {
            stream.said(copy.at, text);
            None
        }
        (Side::Agent, Passed::Binary(bytes)) => {
            stream.said_samples(copy.at, bytes);
            None
        }
    };
    missed.or(must_end)
}
