//! Links to recordings: signed and expiring.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::clock;
use crate::control::mint::{self, GrantOrder};
use crate::control::restriction::is_restricted;
use crate::domain::playback::grant::TrackSelection;
use crate::domain::playback::wav::Encoding;
use crate::domain::time::UnixMillis;

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input::{self, Named};
use super::recordings::open;

/// What a link shall allow.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewGrant {
    /// Who will listen; goes into the audit log. 1 to 128 bytes.
    sub: String,
    /// How long it works, in seconds: `playback.default_ttl_secs` unless given, and at most the tenant's longest.
    #[schema(minimum = 1)]
    ttl_secs: Option<u64>,
    /// Only from this address or range.
    ip: Option<String>,
    /// `caller`, `agent` or `both`, which is the default.
    track: Option<String>,
    /// `pcm`, which is the default, or `ulaw`.
    format: Option<String>,
    /// Whether browsers save it instead of playing it.
    #[serde(default)]
    download: bool,
}

/// A link to a recording.
#[derive(Serialize, ToSchema)]
pub(super) struct MadeGrant {
    /// Whoever has it can listen until it expires.
    url: String,
    /// From when on it is worth nothing.
    expires: String,
}

/// Make a signed, expiring link to a recording
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/recordings/{recording}/grants", operation_id = "create_grant", tag = "recordings",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("recording" = String, Path, description = "The recording's id"),
    ),
    request_body = NewGrant,
    responses(
        (status = 201, body = MadeGrant),
        (status = 410, body = Problem, content_type = "application/problem+json", description = "It was deleted"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    Named(recording): Named,
    input::Json(new): input::Json<NewGrant>,
) -> Result<(StatusCode, Json<MadeGrant>), ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let order = grant_order(new, caller.reason())?;
    open(&shared, &caller, recording).await?;
    if is_restricted(&*node.store, tenant.id.tag(), recording).await? {
        return Err(ApiError::Restricted);
    }
    let (grant, url) = mint::grant(&node.config, tenant, recording, order)?;
    let event = caller.complete(mint::grant_event(&grant.sub, &grant));
    node.audit.record(&tenant.id, event).await?;
    let expires = clock::rfc3339(UnixMillis(grant.exp.saturating_mul(1000)));
    Ok((StatusCode::CREATED, Json(MadeGrant { url, expires })))
}

fn grant_order(new: NewGrant, reason: Option<&str>) -> Result<GrantOrder, ApiError> {
    let track = match new.track.as_deref() {
        None | Some("both") => TrackSelection::Both,
        Some("caller") => TrackSelection::Caller,
        Some("agent") => TrackSelection::Agent,
        Some(_) => return Err(ApiError::invalid("track", "allowed: caller, agent, both")),
    };
    let format = match new.format.as_deref() {
        None | Some("pcm") => Encoding::Pcm16,
        Some("ulaw") => Encoding::Ulaw,
        Some(_) => return Err(ApiError::invalid("format", "allowed: pcm, ulaw")),
    };
    let ip = new.ip.map(|text| {
        text.parse().map_err(|_| ApiError::invalid("ip", "allowed: an address or range such as 192.0.2.0/24"))
    });
    let reason = reason.map(str::to_owned);
    Ok(GrantOrder {
        ttl_secs: new.ttl_secs,
        sub: new.sub,
        reason,
        ip: ip.transpose()?,
        track,
        format,
        dl: new.download,
    })
}
