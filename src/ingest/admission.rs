//! Admits streams: the form of their handshakes, tickets, limits, keys, and the upgrade to a websocket. Whoever dials has
//! proven who it is before.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::answer::{Answer, empty, problem};
use crate::clock;
use crate::config::{Ingest, NoKeyPolicy, Route, RouteProvider, SocketUrl, Tenant};
use crate::domain::notice::NoticeKind;
use crate::domain::provider::vapi::MAX_BINARY_BYTES;
use crate::domain::provider::vapi_transport::TransportFormat;
use crate::domain::provider::vapi_webhook::CallId;
use crate::domain::ticket::{BroughtTo, Ticket};
use crate::drain::Phase;
use crate::keys::Minted;
use crate::node::Node;
use crate::observe::metrics;
use crate::observe::traces::{Span, words};
use crate::relay::MAX_MESSAGE_BYTES;
use crate::tickets::{NotTaken, Redeemed};

use super::connection;
use super::limits::{Limited, StreamPermit};
use super::relayed::{self, Dialling};

/// The connection must have become a websocket in this time.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream that may begin.
pub(super) struct Admitted {
    pub(super) tenant: Arc<Tenant>,
    pub(super) route: Route,
    /// What it has brought, and whether another node was brought it before.
    pub(super) ticket: Option<(Ticket, Redeemed)>,
    /// `None` where there is none to be had and the tenant lets calls go on unrecorded.
    pub(super) key: Option<Minted>,
    pub(super) permit: StreamPermit,
    /// Where a call of Vapi's transport goes on to; none on routes of other providers.
    pub(super) line: Option<Line>,
    /// What is told of it to whoever looks at traces.
    pub(super) span: Span,
    /// The connection's place, held until the stream ends.
    pub(super) place: Option<Arc<OwnedSemaphorePermit>>,
}

/// Vapi's end of a call of its websocket transport.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) url: SocketUrl,
    pub(super) call: CallId,
    pub(super) format: TransportFormat,
}

/// A websocket that was a TLS connection.
pub(super) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Why a handshake is refused.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) detail: &'static str,
}

/// Whatever is wrong with who asks.
pub(super) const FORBIDDEN: Refused =
    Refused { status: StatusCode::FORBIDDEN, code: "forbidden", detail: "forbidden" };

/// Says why a provider that has proved itself is refused; the provider learns no more than a stranger.
pub(super) fn log_no_calls(tenant: &Tenant) {
    let status = tenant.status.name();
    tracing::warn!(tenant = %tenant.id, status, "call refused: its tenant takes none");
}

/// Answers a handshake, and counts it.
pub(super) fn answer(outcome: Result<Answer, Refused>, id: &str) -> Answer {
    let answer = outcome.unwrap_or_else(|Refused { status, code, detail }| problem(status, code, detail, id));
    let status = answer.status().as_u16().to_string();
    ::metrics::counter!(metrics::HANDSHAKES, "status" => status).increment(1);
    answer
}

/// Checks that a request becomes a websocket; answers the value of `Sec-WebSocket-Accept`.
pub(super) fn check_form(request: &Request<Incoming>) -> Result<HeaderValue, Refused> {
    let refused = |status, code, detail| Err(Refused { status, code, detail });
    if request.method() != Method::GET {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "allowed: GET");
    }
    if request.uri().query().is_some() {
        return refused(StatusCode::BAD_REQUEST, "query_not_allowed", "a stream URL has no query");
    }
    let headers = request.headers();
    let upgrade_required = Refused {
        status: StatusCode::UPGRADE_REQUIRED,
        code: "upgrade_required",
        detail: "this is a websocket of version 13",
    };
    let is_websocket = has_token(headers, header::CONNECTION, "upgrade")
        && has_token(headers, header::UPGRADE, "websocket")
        && headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| is_websocket && key.len() == 24);
    let accept = key.and_then(|key| HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok());
    accept.ok_or(upgrade_required)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// A ticket that is brought must be good, also where none is needed.
pub(super) fn open_ticket(
    text: Option<&str>,
    tenant: &Tenant,
    route: &Route,
) -> Result<Option<Ticket>, Refused> {
    let Some(text) = text else {
        return if route.require_ticket { Err(FORBIDDEN) } else { Ok(None) };
    };
    let secret = |kid: &str| tenant.tickets.keys.get(kid).map(|key| key.expose());
    let place = BroughtTo {
        tenant: &tenant.id,
        route: route.name.as_str(),
        max_ttl_secs: tenant.tickets.max_ttl.as_secs(),
    };
    let opened = Ticket::open(text, place, secret, clock::wall().0 / 1000);
    opened.map(Some).map_err(|refusal| {
        tracing::warn!(tenant = %tenant.id, route = %route.name, why = %refusal, "ticket is not taken");
        FORBIDDEN
    })
}

/// Begins what is told of a stream. What providers say of traces is not looked at.
pub(super) fn begin_span(tenant: &Tenant, route: &Route) -> Span {
    let mut span = Span::begin(words::STREAM);
    span.tenant(&tenant.id);
    span.route(&route.name);
    span.word(words::PROVIDER, route.provider.name());
    span
}

/// Admits a stream of whoever has proven to be the tenant's provider.
pub(super) async fn admit(
    tenant: Arc<Tenant>,
    route: Route,
    ticket: Option<Ticket>,
    request: &mut Request<Incoming>,
    node: &Arc<Node>,
) -> Result<Admitted, Refused> {
    let mut span = begin_span(&tenant, &route);
    let admitting = span.place().around(try_admit(tenant, route, ticket, request, node));
    match admitting.await {
        Ok(admitted) => Ok(Admitted { span, ..admitted }),
        Err(refused) => {
            span.fail(refused.code);
            Err(refused)
        }
    }
}

async fn try_admit(
    tenant: Arc<Tenant>,
    route: Route,
    ticket: Option<Ticket>,
    request: &mut Request<Incoming>,
    node: &Arc<Node>,
) -> Result<Admitted, Refused> {
    if node.drain.phase() != Phase::Running {
        return Err(unavailable("draining"));
    }
    if let Some(why) = node.cannot_keep() {
        return Err(unavailable(why));
    }
    let limits = &tenant.limits;
    let permit = node
        .limits
        .admit(&tenant.id, limits.max_streams, limits.max_starts_per_sec, clock::monotonic())
        .map_err(|limited| Refused {
            status: StatusCode::TOO_MANY_REQUESTS,
            code: match limited {
                Limited::Streams => "too_many_streams",
                Limited::Starts => "too_many_starts",
            },
            detail: "over the tenant's limit",
        })?;
    let key = take_key(&tenant, &route, node).await?;
    // Last, so that a call that is refused for another reason keeps its ticket.
    let redeemed = ticket.as_ref().map(|ticket| node.tickets.redeem(tenant.id.tag(), ticket)).transpose();
    let redeemed = match redeemed {
        Ok(redeemed) => redeemed,
        Err(not_taken) => {
            if let Some(key) = key {
                node.keys.give_back(&tenant.id, key);
            }
            tracing::warn!(tenant = %tenant.id, why = %not_taken, "ticket is not taken");
            return Err(match not_taken {
                NotTaken::Used => FORBIDDEN,
                NotTaken::Full => unavailable("too many tickets"),
            });
        }
    };
    let ticket = ticket.zip(redeemed);
    let place = request.extensions_mut().remove::<Arc<OwnedSemaphorePermit>>();
    Ok(Admitted { tenant, route, ticket, key, permit, line: None, span: Span::default(), place })
}

fn unavailable(detail: &'static str) -> Refused {
    Refused { status: StatusCode::SERVICE_UNAVAILABLE, code: "unavailable", detail }
}

/// Takes a key for a new call; `None` where there is none and the tenant lets calls go on unrecorded.
async fn take_key(tenant: &Tenant, route: &Route, node: &Arc<Node>) -> Result<Option<Minted>, Refused> {
    let mut span = Span::begin(words::STREAM_KEY);
    let error = match span.place().around(node.keys.take(&tenant.id)).await {
        Ok(key) => return Ok(Some(key)),
        Err(error) => error,
    };
    span.fail(error.label());
    tracing::error!(tenant = %tenant.id, error = &error as &dyn std::error::Error, "no key for a new call");
    // Without anybody to pass it on to there is nothing to take a call for, whatever the tenant's policy.
    let is_refused = tenant.no_key_policy == NoKeyPolicy::Refuse || !route.is_passed_on();
    let kind = if is_refused { NoticeKind::Blocked } else { NoticeKind::Skipped };
    node.notices.tell_key_unavailable(&tenant.id, error.label());
    node.notices.tell_unrecorded(&tenant.id, kind, route.name.as_str(), "no-key");
    if is_refused {
        return Err(unavailable("no key"));
    }
    ::metrics::counter!(metrics::CALLS_UNRECORDED).increment(1);
    Ok(None)
}

/// Answers the handshake with 101; the stream begins when the connection has become a websocket. Whom it is passed on to is
/// dialled at once.
pub(super) fn upgrade(
    mut request: Request<Incoming>,
    accept: HeaderValue,
    admitted: Admitted,
    node: &Arc<Node>,
) -> Answer {
    let dialling = match (&admitted.line, &admitted.route.upstream) {
        (Some(line), _) => Some(Dialling::begin_line(node, line)),
        (None, Some(upstream)) => Some(Dialling::begin(node, &admitted.tenant.id, &admitted.route, upstream)),
        (None, None) => None,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(run_upgraded(upgrade, Box::new(admitted), dialling.map(Box::new), Arc::clone(node)));
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    answer
}

async fn run_upgraded(
    upgrade: hyper::upgrade::OnUpgrade,
    mut admitted: Box<Admitted>,
    dialling: Option<Box<Dialling>>,
    node: Arc<Node>,
) {
    let settings = websocket_config(&node.config.ingest, admitted.route.provider, dialling.is_some());
    let Some(socket) = Box::pin(become_websocket(upgrade, settings)).await else {
        admitted.span.fail("no_websocket");
        if let Some(key) = admitted.key {
            node.keys.give_back(&admitted.tenant.id, key);
        }
        return;
    };
    admitted.span.event(words::CONNECTED);
    // Tasks of their own: this one has room for a handshake, which they would keep until the call ends.
    match dialling {
        Some(dialling) => tokio::spawn(relayed::run(socket, admitted, dialling, node)),
        None => tokio::spawn(connection::run(socket, admitted, node)),
    };
}

async fn become_websocket(
    upgrade: hyper::upgrade::OnUpgrade,
    settings: WebSocketConfig,
) -> Option<Box<Socket>> {
    let Ok(Ok(upgraded)) = tokio::time::timeout(UPGRADE_TIMEOUT, upgrade).await else {
        tracing::debug!("connection ended before it became a websocket");
        return None;
    };
    let Ok(parts) = upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>() else {
        tracing::error!("upgraded connection is not the TLS stream it was made from");
        return None;
    };
    let (stream, read) = (parts.io.into_inner(), parts.read_buf.to_vec());
    Some(Box::new(WebSocketStream::from_partially_read(stream, read, Role::Server, Some(settings)).await))
}

/// The library's own limits are 128 KiB of read buffer per connection, 64 MiB a message and no bound on writing.
fn websocket_config(ingest: &Ingest, provider: RouteProvider, is_relayed: bool) -> WebSocketConfig {
    let max_message_bytes =
        if provider == RouteProvider::Twilio { ingest.max_message_bytes } else { MAX_BINARY_BYTES };
    // Several short messages of an agent are written at once, and a long one must fit.
    let (write_buffer_bytes, max_write_buffer_bytes) = match is_relayed {
        true => (ingest.write_buffer_bytes, 2 * MAX_MESSAGE_BYTES),
        false => (0, ingest.write_buffer_bytes),
    };
    WebSocketConfig::default()
        .read_buffer_size(ingest.read_buffer_bytes)
        .write_buffer_size(write_buffer_bytes)
        .max_write_buffer_size(max_write_buffer_bytes)
        .max_message_size(Some(max_message_bytes))
        .max_frame_size(Some(max_message_bytes))
}
