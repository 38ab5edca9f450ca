//! Twilio's requests: websocket handshakes of streams and status callbacks.
//!
//! Status codes, in this order: 405 another method, 400 a query, 426 no upgrade, 403 an `Origin` header (providers are no
//! browsers), 403 whatever is wrong with tenant, route or signature, 503 draining or full, 429 over the tenant's limit.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Limited as LimitedBody};
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
use crate::config::{Ingest, NoKeyPolicy, Route, RouteProvider, Tenant, TenantStatus};
use crate::domain::ids::{RouteName, TenantId};
use crate::domain::provider::twilio_signature::{
    MAX_FORM_BYTES, Refusal, SignatureHeaders, TwilioSecrets, parse_form, verify_callback, verify_handshake,
};
use crate::domain::ticket::{BroughtTo, Ticket};
use crate::drain::Phase;
use crate::keys::Minted;
use crate::node::Node;
use crate::observe::metrics;
use crate::relay::MAX_MESSAGE_BYTES;
use crate::tickets::{NotTaken, Redeemed};

use super::Peer;
use super::connection;
use super::limits::{Limited, StreamPermit};
use super::relayed::{self, Dialling};

const SIGNATURE: HeaderName = HeaderName::from_static("x-twilio-signature");
const SETTINGS: HeaderName = HeaderName::from_static("x-twilio-webhooks-signature-settings");
/// A callback's body must be there in this time.
const CALLBACK_TIMEOUT: Duration = Duration::from_secs(5);
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
    /// The connection's place, held until the stream ends.
    pub(super) place: Option<Arc<OwnedSemaphorePermit>>,
}

/// A websocket that was a TLS connection.
pub(super) type Socket = WebSocketStream<TlsStream<TcpStream>>;

/// Why a handshake is refused.
struct Refused {
    status: StatusCode,
    code: &'static str,
    detail: &'static str,
}

const FORBIDDEN: Refused = Refused { status: StatusCode::FORBIDDEN, code: "forbidden", detail: "forbidden" };

/// Answers a request below `/twilio/v1/`.
pub async fn answer(request: Request<Incoming>, peer: Peer, id: &str, node: Arc<Node>) -> Answer {
    let target = Target::parse(request.uri().path());
    if target.is_status && request.method() == Method::POST {
        return status_callback(request, &target, id, &node).await;
    }
    let answer = match handshake(request, &target, peer, &node).await {
        Ok(answer) => answer,
        Err(Refused { status, code, detail }) => problem(status, code, detail, id),
    };
    let status = answer.status().as_u16().to_string();
    ::metrics::counter!(metrics::HANDSHAKES, "status" => status).increment(1);
    answer
}

/// What a path names: `/twilio/v1/{tenant}/{route}[/{ticket}]`.
struct Target {
    tenant: Option<TenantId>,
    route: Option<RouteName>,
    ticket: Option<String>,
    /// More than a path may have.
    has_more: bool,
    /// `…/{route}/status`
    is_status: bool,
}

impl Target {
    fn parse(path: &str) -> Self {
        let mut parts = path.strip_prefix("/twilio/v1/").unwrap_or_default().split('/');
        let tenant = parts.next().and_then(|part| part.parse().ok());
        let route = match parts.next() {
            None | Some("") => RouteName::DEFAULT.parse().ok(),
            Some(part) => part.parse().ok(),
        };
        let rest: Vec<&str> = parts.collect();
        let ticket = rest.first().filter(|ticket| !ticket.is_empty()).map(|ticket| (*ticket).to_owned());
        let has_more = !matches!(rest.as_slice(), [] | [_] | [_, ""]);
        Self { tenant, route, ticket, has_more, is_status: rest == ["status"] }
    }
}

async fn handshake(
    mut request: Request<Incoming>,
    target: &Target,
    peer: Peer,
    node: &Arc<Node>,
) -> Result<Answer, Refused> {
    let accept = check_form(&request)?;
    let (tenant, route, ticket) = authenticate(&request, target, node).inspect_err(|_| {
        tracing::warn!(source = %peer.source, "stream handshake refused: forbidden");
    })?;
    let admitted = admit(tenant, route, ticket, &mut request, node).await?;
    let upstream = admitted.route.upstream.as_ref();
    let dialling =
        upstream.map(|upstream| Dialling::begin(node, &admitted.tenant.id, &admitted.route, upstream));
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(run_upgraded(upgrade, admitted, dialling, Arc::clone(node)));
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(answer)
}

/// Checks everything that needs no secret; answers the value of `Sec-WebSocket-Accept`.
fn check_form(request: &Request<Incoming>) -> Result<HeaderValue, Refused> {
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
    let accept = accept.ok_or(upgrade_required)?;
    if headers.contains_key(header::ORIGIN) {
        return refused(StatusCode::FORBIDDEN, "forbidden", "forbidden");
    }
    Ok(accept)
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Checks tenant, route and signature. Everything wrong is the same 403, after the same work.
fn authenticate(
    request: &Request<Incoming>,
    target: &Target,
    node: &Node,
) -> Result<(Arc<Tenant>, Route, Option<Ticket>), Refused> {
    let tenant = target.tenant.as_ref().and_then(|tenant| node.tenant(tenant));
    let route = target.route.as_ref().and_then(|route| tenant.as_deref()?.route(route).cloned());
    let route = route.filter(|route| route.provider == RouteProvider::Twilio);
    let path = request.uri().path();
    let checked = verify(tenant.as_deref(), request.headers(), |secrets, headers| {
        verify_handshake(secrets, node.config.public_url.as_str(), path, headers)
    });
    match (tenant, route, checked) {
        (Some(tenant), Some(route), Ok(())) if tenant.status == TenantStatus::Active && !target.has_more => {
            let ticket = open_ticket(target.ticket.as_deref(), &tenant, &route)?;
            Ok((tenant, route, ticket))
        }
        _ => Err(FORBIDDEN),
    }
}

/// A ticket that is brought must be good, also where none is needed.
fn open_ticket(text: Option<&str>, tenant: &Tenant, route: &Route) -> Result<Option<Ticket>, Refused> {
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

/// Verifies with a tenant's secrets, or with one that nobody has, which takes as long.
fn verify(
    tenant: Option<&Tenant>,
    headers: &HeaderMap,
    check: impl FnOnce(&TwilioSecrets<'_>, SignatureHeaders<'_>) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let signatures: Vec<&[u8]> = headers.get_all(SIGNATURE).iter().map(HeaderValue::as_bytes).collect();
    let settings: Vec<&[u8]> = headers.get_all(SETTINGS).iter().map(HeaderValue::as_bytes).collect();
    let headers = SignatureHeaders { signatures: &signatures, settings: &settings };
    let Some(tenant) = tenant else {
        let nobody: [&[u8]; 1] = [b"no tenant has this token"];
        let secrets =
            TwilioSecrets { auth_tokens: &nobody, shared_keys: &|_| None, require_shared_key: false };
        // Even a match here would open nothing: there is no tenant.
        return check(&secrets, headers);
    };
    let auth_tokens: Vec<&[u8]> = tenant.twilio.auth_tokens.iter().map(|token| token.expose()).collect();
    let shared_key = |id: &str| tenant.twilio.shared_keys.get(id).map(|key| key.expose());
    let secrets = TwilioSecrets {
        auth_tokens: &auth_tokens,
        shared_keys: &shared_key,
        require_shared_key: tenant.twilio.require_shared_key,
    };
    check(&secrets, headers)
}

async fn admit(
    tenant: Arc<Tenant>,
    route: Route,
    ticket: Option<Ticket>,
    request: &mut Request<Incoming>,
    node: &Arc<Node>,
) -> Result<Admitted, Refused> {
    let unavailable =
        |detail| Refused { status: StatusCode::SERVICE_UNAVAILABLE, code: "unavailable", detail };
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
    let key = match node.keys.take(&tenant.id).await {
        Ok(key) => Some(key),
        Err(error) => {
            tracing::error!(tenant = %tenant.id, error = &error as &dyn std::error::Error, "no key for a new call");
            // Without anybody to pass it on to there is nothing to take a call for, whatever the tenant's policy.
            if tenant.no_key_policy == NoKeyPolicy::Refuse || route.upstream.is_none() {
                return Err(unavailable("no key"));
            }
            ::metrics::counter!(metrics::CALLS_UNRECORDED).increment(1);
            None
        }
    };
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
    Ok(Admitted { tenant, route, ticket, key, permit, place })
}

async fn run_upgraded(
    upgrade: hyper::upgrade::OnUpgrade,
    admitted: Admitted,
    dialling: Option<Dialling>,
    node: Arc<Node>,
) {
    let upgraded = match tokio::time::timeout(UPGRADE_TIMEOUT, upgrade).await {
        Ok(Ok(upgraded)) => upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>(),
        Ok(Err(_)) | Err(_) => {
            tracing::debug!("connection ended before it became a websocket");
            if let Some(key) = admitted.key {
                node.keys.give_back(&admitted.tenant.id, key);
            }
            return;
        }
    };
    let Ok(parts) = upgraded else {
        tracing::error!("upgraded connection is not the TLS stream it was made from");
        return;
    };
    let mut settings = websocket_config(&node.config.ingest);
    if dialling.is_some() {
        // Several short messages of an agent are written at once, and a long one must fit.
        settings = settings
            .write_buffer_size(node.config.ingest.write_buffer_bytes)
            .max_write_buffer_size(2 * MAX_MESSAGE_BYTES);
    }
    let read = parts.read_buf.to_vec();
    let socket =
        WebSocketStream::from_partially_read(parts.io.into_inner(), read, Role::Server, Some(settings)).await;
    match dialling {
        Some(dialling) => Box::pin(relayed::run(socket, admitted, dialling, node)).await,
        None => connection::run(socket, admitted, node).await,
    }
}

/// The library's own limits are 128 KiB of read buffer per connection, 64 MiB a message and no bound on writing.
fn websocket_config(ingest: &Ingest) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(ingest.read_buffer_bytes)
        .write_buffer_size(0)
        .max_write_buffer_size(ingest.write_buffer_bytes)
        .max_message_size(Some(ingest.max_message_bytes))
        .max_frame_size(Some(ingest.max_message_bytes))
}

/// `POST /twilio/v1/{tenant}/{route}/status`: Twilio tells how a stream is. Never more than a hint.
async fn status_callback(request: Request<Incoming>, target: &Target, id: &str, node: &Node) -> Answer {
    let forbidden = || problem(StatusCode::FORBIDDEN, "forbidden", "forbidden", id);
    if request.uri().query().is_some() {
        return problem(StatusCode::BAD_REQUEST, "query_not_allowed", "a callback URL has no query", id);
    }
    let (parts, body) = request.into_parts();
    let body = LimitedBody::new(body, MAX_FORM_BYTES).collect();
    let body = match tokio::time::timeout(CALLBACK_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return problem(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "at most 64 KiB", id),
        Err(_) => return problem(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not come", id),
    };
    let Ok(form) = parse_form(&body) else {
        return problem(StatusCode::BAD_REQUEST, "form_malformed", "not a form", id);
    };
    let tenant = target.tenant.as_ref().and_then(|tenant| node.tenant(tenant));
    let known_route = target
        .route
        .as_ref()
        .is_some_and(|route| tenant.as_deref().is_some_and(|tenant| tenant.route(route).is_some()));
    let url = format!("{}{}", node.config.public_url.https(), parts.uri.path());
    let checked = verify(tenant.as_deref(), &parts.headers, |secrets, headers| {
        verify_callback(secrets, &url, &form, headers)
    });
    if checked.is_err() || !known_route {
        return forbidden();
    }
    let event = form.iter().find(|(name, _)| name == "StreamEvent").map(|(_, value)| value.as_str());
    match event {
        Some("stream-error") => tracing::warn!(tenant = ?target.tenant, "Twilio reports a stream error"),
        _ => tracing::debug!("Twilio reports a stream event"),
    }
    empty(StatusCode::NO_CONTENT)
}
