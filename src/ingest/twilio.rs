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

use crate::answer::{Answer, empty, problem};
use crate::config::{Route, RouteProvider, Tenant, TenantStatus};
use crate::domain::ids::{RouteName, TenantId};
use crate::domain::provider::twilio_signature::{
    MAX_FORM_BYTES, Refusal, SignatureHeaders, TwilioSecrets, parse_form, verify_callback, verify_handshake,
};
use crate::domain::ticket::Ticket;
use crate::node::Node;

use super::Peer;
use super::admission::{self, FORBIDDEN, Refused, admit, check_form, log_no_calls, open_ticket, upgrade};

const SIGNATURE: HeaderName = HeaderName::from_static("x-twilio-signature");
const SETTINGS: HeaderName = HeaderName::from_static("x-twilio-webhooks-signature-settings");
/// A callback's body must be there in this time.
const CALLBACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers a request below `/twilio/v1/`.
pub async fn answer(request: Request<Incoming>, peer: Peer, id: &str, node: Arc<Node>) -> Answer {
    let target = Target::parse(request.uri().path());
    if target.is_status && request.method() == Method::POST {
        return status_callback(request, &target, id, &node).await;
    }
    admission::answer(handshake(request, &target, peer, &node).await, id)
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
    // Providers are no browsers.
    if request.headers().contains_key(header::ORIGIN) {
        return Err(FORBIDDEN);
    }
    let (tenant, route, ticket) = authenticate(&request, target, node).inspect_err(|_| {
        tracing::warn!(source = %peer.source, "stream handshake refused: forbidden");
    })?;
    let admitted = admit(tenant, route, ticket, &mut request, node).await?;
    Ok(upgrade(request, accept, admitted, node))
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
        (Some(tenant), Some(_), Ok(())) if tenant.status != TenantStatus::Active => {
            log_no_calls(&tenant);
            Err(FORBIDDEN)
        }
        _ => Err(FORBIDDEN),
    }
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
