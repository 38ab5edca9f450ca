//! Vapi's custom transcriber: the handshake `GET /vapi/v1/{tenant}/{route}[/{ticket}]`.
//!
//! Status codes, in this order: 405 another method, 400 a query, 426 no upgrade, 401 no such tenant, or no secret or token of
//! it, 404 no such route or ticket, 503 draining or full, 429 over the tenant's limit.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{HeaderMap, Request, StatusCode};

use crate::answer::Answer;
use crate::config::{Route, RouteProvider, Tenant, TenantStatus};
use crate::domain::ids::{RouteName, TenantId};
use crate::domain::ticket::Ticket;
use crate::ingest::Peer;
use crate::ingest::admission::{self, Refused, admit, check_form, log_no_calls, open_ticket, upgrade};
use crate::node::Node;

use super::{PREFIX, is_known};

const UNAUTHORIZED: Refused =
    Refused { status: StatusCode::UNAUTHORIZED, code: "unauthorized", detail: "unauthorized" };
const NOT_FOUND: Refused =
    Refused { status: StatusCode::NOT_FOUND, code: "not_found", detail: "nothing is here" };

/// Answers a request below `/vapi/v1/` that is none of server messages.
pub async fn answer(request: Request<Incoming>, peer: Peer, id: &str, node: Arc<Node>) -> Answer {
    admission::answer(handshake(request, peer, &node).await, id)
}

async fn handshake(mut request: Request<Incoming>, peer: Peer, node: &Arc<Node>) -> Result<Answer, Refused> {
    let accept = check_form(&request)?;
    let target = Target::parse(request.uri().path());
    let (tenant, route, ticket) = authenticate(&target, request.headers(), node).inspect_err(|refused| {
        tracing::warn!(source = %peer.source, why = refused.code, "transcriber handshake refused");
    })?;
    let admitted = admit(tenant, route, ticket, &mut request, node).await?;
    Ok(upgrade(request, accept, admitted, node))
}

/// What a path names.
struct Target<'p> {
    tenant: &'p str,
    route: &'p str,
    ticket: Option<&'p str>,
    /// More than a path may have.
    has_more: bool,
}

impl<'p> Target<'p> {
    fn parse(path: &'p str) -> Self {
        let mut parts = path.strip_prefix(PREFIX).unwrap_or_default().split('/');
        let tenant = parts.next().unwrap_or_default();
        let route = parts.next().filter(|route| !route.is_empty()).unwrap_or(RouteName::DEFAULT);
        let ticket = parts.next().filter(|ticket| !ticket.is_empty());
        Self { tenant, route, ticket, has_more: parts.next().is_some() }
    }
}

/// Checks who dials, then what for: a stranger learns of no route and no ticket.
fn authenticate(
    target: &Target<'_>,
    headers: &HeaderMap,
    node: &Node,
) -> Result<(Arc<Tenant>, Route, Option<Ticket>), Refused> {
    let tenant = target.tenant.parse::<TenantId>().ok().and_then(|tenant| node.tenant(&tenant));
    // A handshake has no body that could be signed, so that an HMAC proves nothing here.
    let tenant = tenant.filter(|tenant| is_known(tenant, headers)).ok_or(UNAUTHORIZED)?;
    let route = target.route.parse().ok().and_then(|route| tenant.route(&route).cloned());
    let route = route.filter(|route| route.provider == RouteProvider::VapiTranscriber);
    if tenant.status != TenantStatus::Active {
        log_no_calls(&tenant);
    }
    let is_open = tenant.status == TenantStatus::Active && !target.has_more;
    let route = route.filter(|_| is_open).ok_or(NOT_FOUND)?;
    let ticket = open_ticket(target.ticket, &tenant, &route).map_err(|_| NOT_FOUND)?;
    Ok((tenant, route, ticket))
}
