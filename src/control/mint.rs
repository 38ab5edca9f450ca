//! Makes what opens doors for a while: tickets for calls, grants for recordings.
//!
//! Whoever asks for one has been asked who they are before, and the audit log is told before the answer is given; neither
//! happens here.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use crate::clock;
use crate::config::{Config, Route, RouteProvider, Tenant};
use crate::control::audit::AuditEvent;
use crate::domain::address::IpRange;
use crate::domain::ids::{RecordingId, RouteName};
use crate::domain::playback::grant::{Grant, GrantFault, TrackSelection};
use crate::domain::playback::wav::Encoding;
use crate::domain::provider::vapi_listen_url::{ListenPolicy, ListenUrl};
use crate::domain::provider::vapi_transport::TransportFormat;
use crate::domain::provider::vapi_webhook::SecretUrl;
use crate::domain::sign::encode_hex;
use crate::domain::ticket::{Ticket, VapiLine};
use crate::keys::fill_random;

/// How long a ticket works unless told: a call is placed within minutes of its TwiML.
pub const TICKET_TTL_SECS: u64 = 300;

/// What cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct MintRefused {
    /// The part of the order that is wrong; empty when it is none of them.
    pub field: &'static str,
    /// What is wrong with it, and what is allowed.
    pub problem: String,
}

fn refused(field: &'static str, problem: impl Into<String>) -> MintRefused {
    MintRefused { field, problem: problem.into() }
}

/// What a ticket shall say.
#[derive(Debug, Clone)]
pub struct TicketOrder {
    /// The only route that it is for.
    pub route: RouteName,
    /// The provider's call that it is for; any unless given.
    pub call: Option<String>,
    /// How long it works.
    pub ttl_secs: u64,
    /// How many days the recording is kept, instead of the tenant's.
    pub retention_days: Option<u32>,
    /// The caller has agreed to be recorded.
    pub consent: bool,
    /// What the recording shall say of itself.
    pub metadata: BTreeMap<String, String>,
    /// Vapi's `websocketCallUrl`, for a route of its transport.
    pub vapi_url: Option<SecretUrl>,
    /// The `audioFormat` that the call was made with.
    pub vapi_audio: Option<TransportFormat>,
}

/// A ticket, and how it is used.
pub struct MintedTicket {
    /// What it says.
    pub ticket: Ticket,
    /// The path segment; a secret until it is used.
    pub text: String,
    /// The whole URL to dial.
    pub url: String,
}

/// Makes a ticket.
///
/// # Errors
/// [`MintRefused`].
pub fn ticket(config: &Config, tenant: &Tenant, order: TicketOrder) -> Result<MintedTicket, MintRefused> {
    let route = tenant.route(&order.route).ok_or_else(|| {
        let names: Vec<_> = tenant.routes.iter().map(|route| route.name.as_str()).collect();
        refused("route", format!("the tenant has no route {}; allowed: {}", order.route, names.join(", ")))
    })?;
    let provider = path_of(route)?;
    let longest = tenant.tickets.max_ttl.as_secs();
    if order.ttl_secs == 0 || order.ttl_secs > longest {
        return Err(refused("ttl_secs", format!("allowed for this tenant: 1 to {longest}")));
    }
    let most = tenant.retention.call_audio_days;
    if order.retention_days.is_some_and(|days| !(1..=most).contains(&days)) {
        let problem =
            format!("allowed: 1 to {most}, the days of the tenant; a call can be kept for fewer only");
        return Err(refused("retention_days", problem));
    }
    let line = line(config, tenant, route, &order)?;
    let (mut id, mut salt) = ([0; 16], Zeroizing::new([0; 32]));
    let filled = fill_random(&mut id).and_then(|()| fill_random(&mut *salt));
    filled.map_err(|_| refused("", "no random bytes"))?;
    let iat = clock::wall().0 / 1000;
    let ticket = Ticket {
        v: 1,
        id: encode_hex(&id),
        iat,
        exp: iat + order.ttl_secs,
        route: order.route.as_str().to_owned(),
        call: order.call,
        retention_days: order.retention_days,
        consent: order.consent,
        metadata: order.metadata,
        vapi: line,
    };
    let none = || refused("", "the tenant has no tickets.keys");
    let kid = tenant.tickets.kid.as_ref().ok_or_else(none)?;
    let secret = tenant.tickets.keys.get(kid).ok_or_else(none)?;
    let text = ticket
        .seal(&tenant.id, kid, secret.expose(), &salt)
        .map_err(|fault| refused("metadata", fault.to_string()))?;
    let public = config.public_url.as_str();
    let url = format!("{public}/{provider}/v1/{}/{}/{text}", tenant.id, order.route);
    Ok(MintedTicket { ticket, text, url })
}

/// Returns what the path of a ticket's URL begins with.
fn path_of(route: &Route) -> Result<&'static str, MintRefused> {
    match route.provider {
        RouteProvider::Twilio => Ok("twilio"),
        RouteProvider::VapiTranscriber => Ok("vapi"),
        RouteProvider::VapiTransport => Ok("vapi-transport"),
        RouteProvider::VapiListen => Err(refused(
            "route",
            format!("nobody dials route {}; allowed: one of another provider", route.name),
        )),
    }
}

/// Returns where a call of a transport route goes on to; a call of another one has no such line.
fn line(
    config: &Config,
    tenant: &Tenant,
    route: &Route,
    order: &TicketOrder,
) -> Result<Option<VapiLine>, MintRefused> {
    let is_transport = route.provider == RouteProvider::VapiTransport;
    match (is_transport, &order.vapi_url, order.vapi_audio) {
        (true, Some(url), Some(audio)) => {
            let policy = ListenPolicy {
                hosts: tenant.vapi.listen_hosts.clone(),
                any_port: config.vapi.allow_private_hosts,
            };
            ListenUrl::check_transport(url, order.call.as_deref(), &policy).map_err(|why| {
                let problem = format!(
                    "its {why} is not allowed; allowed: wss://HOST/CALL/transport, of the call if one is given, with a host \
                     below [vapi] listen_hosts"
                );
                refused("vapi_url", problem)
            })?;
            Ok(Some(VapiLine { url: url.clone(), audio }))
        }
        (true, url, _) => {
            let missing = if url.is_none() { "vapi_url" } else { "vapi_audio" };
            Err(refused(
                missing,
                format!("is missing; route {} passes a call on to where it says", route.name),
            ))
        }
        (false, None, None) => Ok(None),
        (false, url, _) => {
            let given = if url.is_some() { "vapi_url" } else { "vapi_audio" };
            Err(refused(given, "allowed with a route of provider \"vapi-transport\" only"))
        }
    }
}

/// Says that a ticket was made, by its id: the ticket itself is a secret.
pub fn ticket_event(actor: &str, ticket: &Ticket, tenant: &Tenant) -> AuditEvent {
    AuditEvent {
        key: tenant.tickets.kid.clone(),
        detail: Some(format!("exp={} route={}", ticket.exp, ticket.route)),
        ..AuditEvent::by_operator(actor, "mint-ticket", ticket.id.clone())
    }
}

/// What a grant shall say.
#[derive(Debug, Clone)]
pub struct GrantOrder {
    /// How long it works; the node's usual time unless given.
    pub ttl_secs: Option<u64>,
    /// Who will listen.
    pub sub: String,
    /// Why.
    pub reason: Option<String>,
    /// Only from there.
    pub ip: Option<IpRange>,
    /// Which track.
    pub track: TrackSelection,
    /// How audio is written.
    pub format: Encoding,
    /// Whether browsers save it instead of playing it.
    pub dl: bool,
}

/// Makes a grant for a recording that is there, and its link.
///
/// # Errors
/// [`MintRefused`].
pub fn grant(
    config: &Config,
    tenant: &Tenant,
    recording: RecordingId,
    order: GrantOrder,
) -> Result<(Grant, String), MintRefused> {
    let longest = tenant.playback.max_ttl.as_secs();
    let ttl_secs = order.ttl_secs.unwrap_or_else(|| config.playback.default_ttl.as_secs().min(longest));
    if ttl_secs == 0 || ttl_secs > longest {
        return Err(refused("ttl_secs", format!("allowed for this tenant: 1 to {longest}")));
    }
    if tenant.hipaa.is_some() && !order.ip.as_ref().is_some_and(IpRange::is_one_line) {
        let problem = "is missing or too wide for a tenant with hipaa.mode = \"on\"; allowed: the address of who will listen, such as \
                       192.0.2.7 or 2001:db8::/64";
        return Err(refused("ip", problem));
    }
    let none = || refused("", "the tenant has no playback.grant_keys");
    let kid = tenant.playback.grant_kid.clone().ok_or_else(none)?;
    let iat = clock::wall().secs();
    let grant = Grant {
        tenant: tenant.id.clone(),
        recording,
        iat,
        exp: iat + ttl_secs,
        kid,
        sub: order.sub,
        reason: order.reason,
        ip: order.ip,
        track: order.track,
        dl: order.dl,
        format: Some(order.format),
    };
    grant.validate().map_err(|fault| {
        let field = if let GrantFault::Malformed(field) = fault { field } else { "" };
        refused(field, fault.to_string())
    })?;
    let url = link(config, tenant, &grant).ok_or_else(none)?;
    Ok((grant, url))
}

/// Signs a grant and returns the whole link; `None` when the tenant does not have the grant's key.
pub fn link(config: &Config, tenant: &Tenant, grant: &Grant) -> Option<String> {
    let query = grant.sign(tenant.playback.grant_keys.get(&grant.kid)?.expose());
    Some(format!("{}/play/{}/{}.wav?{query}", config.public_url.https(), grant.tenant, grant.recording))
}

/// Says that a grant was made.
pub fn grant_event(actor: &str, grant: &Grant) -> AuditEvent {
    AuditEvent {
        key: Some(grant.kid.clone()),
        reason: grant.reason.clone(),
        detail: Some(format!("exp={} track={} sub={}", grant.exp, grant.track.as_str(), grant.sub)),
        ..AuditEvent::by_operator(actor, "mint-grant", grant.recording.to_string())
    }
}
