//! Tickets: URLs for one call each.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock;
use crate::control::mint::{self, TICKET_TTL_SECS, TicketOrder};
use crate::domain::ids::RouteName;
use crate::domain::provider::vapi_webhook::SecretUrl;
use crate::domain::time::UnixMillis;

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input;

/// What a ticket shall say.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTicket {
    /// The only route that it is for; `default` unless given.
    route: Option<String>,
    /// The provider's call that it is for, such as Twilio's CallSid; any unless given.
    call: Option<String>,
    /// How long it works, in seconds: 300 unless given, and at most the tenant's `tickets.max_ttl_secs`.
    #[schema(minimum = 1)]
    ttl_secs: Option<u64>,
    /// How many days the recording is kept, instead of the tenant's: at most as many as these.
    #[schema(minimum = 1, maximum = 3650)]
    retention_days: Option<u32>,
    /// The caller has agreed to be recorded.
    #[serde(default)]
    consent: bool,
    /// What the recording shall say of itself, sealed; at most 16 entries and 512 bytes together.
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    /// Vapi's `websocketCallUrl`, for a route of its transport.
    vapi_url: Option<String>,
    /// The `audioFormat` that the call was made with: `pcm_s16le:RATE` or `mulaw:8000`.
    vapi_audio: Option<String>,
}

/// A ticket.
#[derive(Serialize, ToSchema)]
pub(super) struct MadeTicket {
    /// The path segment. Whoever has it can use it, once.
    ticket: String,
    /// The whole URL for the TwiML or for Vapi.
    url: String,
    /// From when on it is worth nothing.
    expires: String,
}

/// Make a ticket for one call
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/tickets", operation_id = "create_ticket", tag = "calls",
    params(("tenant" = String, Path, description = "The tenant's id")),
    request_body = NewTicket,
    responses(
        (status = 201, body = MadeTicket),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    input::Json(new): input::Json<NewTicket>,
) -> Result<(StatusCode, Json<MadeTicket>), ApiError> {
    let tenant = caller.tenant()?;
    let made = mint::ticket(&shared.node.config, tenant, order(new)?)?;
    let event = caller.complete(mint::ticket_event("", &made.ticket, tenant));
    shared.node.audit.record(&tenant.id, event).await?;
    let expires = clock::rfc3339(UnixMillis(made.ticket.exp * 1000));
    Ok((StatusCode::CREATED, Json(MadeTicket { ticket: made.text, url: made.url, expires })))
}

fn order(new: NewTicket) -> Result<TicketOrder, ApiError> {
    let route = new.route.as_deref().unwrap_or(RouteName::DEFAULT);
    let vapi_audio = new.vapi_audio.as_deref().map(|text| {
        text.parse().map_err(|_| ApiError::invalid("vapi_audio", "allowed: pcm_s16le:RATE or mulaw:8000"))
    });
    Ok(TicketOrder {
        route: route.parse().map_err(|error| ApiError::invalid("route", format!("{error}")))?,
        call: new.call,
        ttl_secs: new.ttl_secs.unwrap_or(TICKET_TTL_SECS),
        retention_days: new.retention_days,
        consent: new.consent,
        metadata: new.metadata,
        vapi_url: new.vapi_url.map(|url| SecretUrl::new(&url)),
        vapi_audio: vapi_audio.transpose()?,
    })
}
