//! Vapi: its server messages, `POST /vapi/v1/{tenant}/{route}/events`, and below them what they lead to; its transcriber
//! sockets stand beside them.
//!
//! Status codes, in this order: 405 another method, 400 a query, 404 no such tenant or route, 401 no proof, 503 too many bodies at
//! once, 413 and 408 as they say, 401 a wrong signature, 400 no server message, 403 a call of another organisation, 503 no room for it now. Whatever is
//! taken is answered with 200 at once; the work goes on behind a bounded queue.

mod begin;
mod listen;
pub mod transcriber;
pub mod transport;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited as LimitedBody};
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request, StatusCode, header};
use tokio::sync::{Semaphore, mpsc};

use crate::answer::{Answer, full, problem, set};
use crate::clock;
use crate::config::{Route, RouteProvider, Secret, Tenant, TenantStatus};
use crate::domain::ids::{RouteName, TenantId};
use crate::domain::provider::vapi_auth::{NotAuthentic, Proofs, Signed, VapiSecrets, verify};
use crate::domain::provider::vapi_webhook::{InProgress, MAX_BODY_BYTES, Webhook};
use crate::drain::Phase;
use crate::node::Node;
use crate::observe::metrics;

pub use begin::work;

/// What all its paths begin with.
pub const PREFIX: &str = "/vapi/v1/";
const SECRET: HeaderName = HeaderName::from_static("x-vapi-secret");
/// A body must be there in this time; Vapi waits 20 s for an answer unless told otherwise.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bodies that are read at once: bounds their memory to 128 MiB, and a busy node has a few of some KiB.
const MAX_BODIES: usize = 32;
/// Messages that wait to be worked off, which takes microseconds each.
const MAX_WAITING: usize = 1024;
/// The types of messages that want more than an empty answer. A recorder has none to give.
const WANT_ANSWERS: [&str; 4] =
    ["assistant-request", "tool-calls", "transfer-destination-request", "knowledge-base-request"];

/// Where server messages wait.
pub struct Inbox {
    bodies: Semaphore,
    queue: mpsc::Sender<Told>,
}

/// A message of a tenant's Vapi.
pub struct Told {
    tenant: Arc<Tenant>,
    route: Route,
    told_at: Instant,
    webhook: Webhook,
}

impl Inbox {
    /// Makes an inbox and its other end, which [`work`] takes.
    pub fn new() -> (Self, mpsc::Receiver<Told>) {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        (Self { bodies: Semaphore::new(MAX_BODIES), queue }, waiting)
    }
}

/// Whether a path is that of server messages.
pub fn is_events(path: &str) -> bool {
    path.starts_with(PREFIX) && path.ends_with("/events")
}

/// Why a request is refused.
struct Refused {
    status: StatusCode,
    code: &'static str,
    detail: &'static str,
}

/// Answers a request of [`is_events`].
pub async fn answer(request: Request<Incoming>, id: &str, node: Arc<Node>) -> Answer {
    match take(request, &node).await {
        Ok(kind) => {
            count(kind);
            let mut answer = Answer::new(full("{}"));
            set(answer.headers_mut(), header::CONTENT_TYPE, "application/json");
            answer
        }
        Err(Refused { status, code, detail }) => {
            count(code);
            let mut answer = problem(status, code, detail, id);
            if status == StatusCode::METHOD_NOT_ALLOWED {
                set(answer.headers_mut(), header::ALLOW, "POST");
            }
            answer
        }
    }
}

fn count(result: &'static str) {
    ::metrics::counter!(metrics::VAPI_WEBHOOKS, "result" => result).increment(1);
}

/// Takes a message; answers the word for it in metrics.
async fn take(request: Request<Incoming>, node: &Arc<Node>) -> Result<&'static str, Refused> {
    let refused = |status, code, detail| Err(Refused { status, code, detail });
    if request.method() != Method::POST {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "allowed: POST");
    }
    if request.uri().query().is_some() {
        return refused(StatusCode::BAD_REQUEST, "query_not_allowed", "this URL has no query");
    }
    let Some((tenant, route)) = find(request.uri().path(), node) else {
        return refused(StatusCode::NOT_FOUND, "not_found", "nothing is here");
    };
    let told_at = clock::monotonic();
    let unauthorized = || {
        tracing::warn!(tenant = %tenant.id, route = %route.name, "server message refused: not authentic");
        Refused { status: StatusCode::UNAUTHORIZED, code: "unauthorized", detail: "unauthorized" }
    };
    // A stranger's body is not read, unless only the body can tell.
    let is_known = is_known(&tenant, request.headers());
    if !is_known && !is_signed(&tenant, request.headers()) {
        return Err(unauthorized());
    }
    let Ok(_place) = node.vapi.bodies.try_acquire() else {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "busy", "try again in a moment");
    };
    let (parts, body) = request.into_parts();
    let url = format!("{}{}", node.config.public_url.https(), parts.uri.path());
    let body = read(body).await?;
    let request = Signed { url: &url, body: &body };
    if !is_known && authenticate(&tenant, &parts.headers, Some(request)).is_err() {
        return Err(unauthorized());
    }
    let Ok(webhook) = Webhook::parse(&body) else {
        return refused(StatusCode::BAD_REQUEST, "malformed", "not a server message");
    };
    let kind = kind_of(&webhook);
    if let Webhook::InProgress(call) = &webhook {
        check_call(call, &tenant, node)?;
    }
    if kind == "needs_answer" {
        tracing::warn!(tenant = %tenant.id, "Vapi asks for an answer that a recorder does not have");
    }
    if matches!(webhook, Webhook::Other(_)) {
        return Ok(kind);
    }
    if node.vapi.queue.try_send(Told { tenant, route, told_at, webhook }).is_err() {
        return refused(StatusCode::SERVICE_UNAVAILABLE, "busy", "try again in a moment");
    }
    Ok(kind)
}

/// Finds tenant and route of `/vapi/v1/{tenant}[/{route}]/events`.
fn find(path: &str, node: &Node) -> Option<(Arc<Tenant>, Route)> {
    let names = path.strip_prefix(PREFIX)?.strip_suffix("/events")?;
    let (tenant, route) = names.split_once('/').unwrap_or((names, RouteName::DEFAULT));
    let tenant = node.tenant(&tenant.parse::<TenantId>().ok()?)?;
    let route = tenant.route(&route.parse().ok()?)?.clone();
    let is_taken = tenant.status == TenantStatus::Active && route.provider == RouteProvider::VapiListen;
    is_taken.then_some((tenant, route))
}

async fn read(body: Incoming) -> Result<Bytes, Refused> {
    let reading = LimitedBody::new(body, MAX_BODY_BYTES).collect();
    match tokio::time::timeout(BODY_TIMEOUT, reading).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => {
            Err(Refused { status: StatusCode::PAYLOAD_TOO_LARGE, code: "too_large", detail: "at most 4 MiB" })
        }
        Err(_) => Err(Refused {
            status: StatusCode::REQUEST_TIMEOUT,
            code: "timeout",
            detail: "the body did not come",
        }),
    }
}

/// Whether the headers alone prove a request.
fn is_known(tenant: &Tenant, headers: &HeaderMap) -> bool {
    authenticate(tenant, headers, None).is_ok()
}

/// Whether there is a signature, which the body is needed for.
fn is_signed(tenant: &Tenant, headers: &HeaderMap) -> bool {
    tenant.vapi.hmac.as_ref().is_some_and(|hmac| headers.contains_key(&hmac.signature_header))
}

/// Without the signed parts of a request, signatures are not looked at.
fn authenticate(
    tenant: &Tenant,
    headers: &HeaderMap,
    request: Option<Signed<'_>>,
) -> Result<(), NotAuthentic> {
    let vapi = &tenant.vapi;
    let secrets: Vec<&[u8]> = vapi.secrets.iter().map(Secret::expose).collect();
    let tokens: Vec<&[u8]> = vapi.bearer_tokens.iter().map(Secret::expose).collect();
    let hmac = vapi.hmac.as_ref().filter(|_| request.is_some());
    let keys: Vec<&[u8]> = hmac.iter().flat_map(|hmac| &hmac.secrets).map(Secret::expose).collect();
    let named = |name: Option<&HeaderName>| only(headers, name?);
    let proofs = Proofs {
        secret: only(headers, &SECRET),
        authorization: only(headers, &header::AUTHORIZATION),
        signature: named(hmac.map(|hmac| &hmac.signature_header)),
        timestamp: named(hmac.map(|hmac| &hmac.timestamp_header)),
        message_id: named(hmac.map(|hmac| &hmac.message_id_header)),
    };
    let hmac = hmac.map(|hmac| (&hmac.scheme, keys.as_slice()));
    let live = VapiSecrets { secrets: &secrets, tokens: &tokens, hmac };
    let request = request.unwrap_or(Signed { url: "", body: b"" });
    verify(&live, &proofs, request, clock::wall().0 / 1000)
}

/// The value of a header that is there once; two are as good as none.
fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name).iter();
    let (first, more) = (values.next(), values.next());
    first.filter(|_| more.is_none()).map(HeaderValue::as_bytes)
}

/// A call that another node could take is refused while this one stops, so that Vapi tries again where it is told to.
fn check_call(call: &InProgress, tenant: &Tenant, node: &Node) -> Result<(), Refused> {
    let orgs = &tenant.vapi.org_ids;
    let is_own = |org: &String| orgs.iter().any(|own| own.eq_ignore_ascii_case(org));
    if !orgs.is_empty() && !call.org.as_ref().is_some_and(is_own) {
        tracing::warn!(tenant = %tenant.id, "server message refused: a call of another organisation");
        return Err(Refused { status: StatusCode::FORBIDDEN, code: "other_org", detail: "forbidden" });
    }
    if node.drain.phase() != Phase::Running {
        return Err(Refused {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "draining",
            detail: "draining",
        });
    }
    Ok(())
}

fn kind_of(webhook: &Webhook) -> &'static str {
    match webhook {
        Webhook::InProgress(_) => "in_progress",
        Webhook::Ended(..) => "ended",
        Webhook::Report(..) => "report",
        Webhook::Other(Some(kind)) if WANT_ANSWERS.contains(&kind.as_str()) => "needs_answer",
        Webhook::Other(_) => "other",
    }
}
