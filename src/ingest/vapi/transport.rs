//! Vapi's websocket transport: the handshake `GET /vapi-transport/v1/{tenant}/{route}/{ticket}` of the tenant's own client, which
//! brings the caller. The ticket is all that proves it, and says which websocket of Vapi the call goes on to.
//!
//! Status codes, in this order: 405 another method, 400 a query, 426 no upgrade, 403 an `Origin` header, 403 whatever is wrong
//! with tenant, route, ticket or Vapi's URL in it, 503 draining or full, 429 over the tenant's limit.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, header};

use crate::answer::Answer;
use crate::clock;
use crate::config::{Route, RouteProvider, Tenant, TenantStatus};
use crate::domain::ids::TenantId;
use crate::domain::provider::vapi_listen_url::{ListenPolicy, ListenUrl};
use crate::domain::ticket::{BroughtTo, Ticket};
use crate::ingest::Peer;
use crate::ingest::admission::{self, FORBIDDEN, Line, Refused, admit, check_form, open_ticket, upgrade};
use crate::node::Node;

/// What all its paths begin with.
pub const PREFIX: &str = "/vapi-transport/v1/";

/// Answers a request below [`PREFIX`].
pub async fn answer(request: Request<Incoming>, peer: Peer, id: &str, node: Arc<Node>) -> Answer {
    admission::answer(handshake(request, peer, &node).await, id)
}

async fn handshake(mut request: Request<Incoming>, peer: Peer, node: &Arc<Node>) -> Result<Answer, Refused> {
    let accept = check_form(&request)?;
    // The other end is a server of the tenant; a page must not spend a ticket that it came by.
    if request.headers().contains_key(header::ORIGIN) {
        return Err(FORBIDDEN);
    }
    let (tenant, route, ticket) = authenticate(request.uri().path(), node).inspect_err(|_| {
        tracing::warn!(source = %peer.source, "transport handshake refused: forbidden");
    })?;
    // Before the ticket is used, so that one with a wrong URL costs nothing.
    let line = line(&ticket, &tenant, &route, node)?;
    let mut admitted = admit(tenant, route, Some(ticket), &mut request, node).await?;
    admitted.line = Some(line);
    Ok(upgrade(request, accept, admitted, node))
}

/// Finds tenant and route, and opens the ticket. Everything wrong is the same 403, after the same work.
fn authenticate(path: &str, node: &Node) -> Result<(Arc<Tenant>, Route, Ticket), Refused> {
    let parts: Vec<&str> = path.strip_prefix(PREFIX).unwrap_or_default().split('/').collect();
    let [tenant, route, text] = parts.as_slice() else { return Err(FORBIDDEN) };
    let named: TenantId = tenant.parse().map_err(|_| FORBIDDEN)?;
    let tenant = node.tenant(&named).filter(|tenant| tenant.status == TenantStatus::Active);
    let route = route.parse().ok().and_then(|route| tenant.as_deref()?.route(&route).cloned());
    let route = route.filter(|route| route.provider == RouteProvider::VapiTransport);
    let Some((tenant, route)) = tenant.zip(route) else {
        let nowhere = BroughtTo { tenant: &named, route: "", max_ttl_secs: 0 };
        let _no_such_route = Ticket::open(text, nowhere, |_| None, clock::wall().secs());
        return Err(FORBIDDEN);
    };
    let ticket = open_ticket(Some(text), &tenant, &route)?.ok_or(FORBIDDEN)?;
    Ok((tenant, route, ticket))
}

/// Checks the URL of a ticket: a tenant's key may be with a program that puts anything there.
fn line(ticket: &Ticket, tenant: &Tenant, route: &Route, node: &Node) -> Result<Line, Refused> {
    let refused = |why: &str| {
        tracing::warn!(tenant = %tenant.id, route = %route.name, why, "Vapi's URL in a ticket is not dialled");
        FORBIDDEN
    };
    let given = ticket.vapi.as_ref().ok_or_else(|| refused("missing"))?;
    let policy = ListenPolicy {
        hosts: tenant.vapi.listen_hosts.clone(),
        any_port: node.config.vapi.allow_private_hosts,
    };
    let (url, call) = ListenUrl::check_transport(&given.url, ticket.call.as_deref(), &policy)
        .map_err(|why| refused(&why.to_string()))?;
    let url = url.expose().parse().map_err(|_| refused("form"))?;
    Ok(Line { url, call, format: given.audio })
}
