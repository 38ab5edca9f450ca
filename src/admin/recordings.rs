//! Stored recordings: which there are, what is known of one, links, holds, deletion.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::clock;
use crate::control::index::Finder;
use crate::control::recordings::{self, RecordingError, StoredRecording};
use crate::control::retention::{OrderedBy, Orders, Placed, receipt};
use crate::domain::ids::RecordingId;
use crate::domain::index::Term;
use crate::domain::retention::Order;
use crate::domain::sign::{decode_base64url, encode_base64url, encode_hex};
use crate::domain::time::UnixMillis;
use crate::upload::newest_order;

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input::{Named, Parameters};

/// Recordings of a page unless told.
const PAGE: usize = 50;
/// Recordings of a page at most: with details each costs a few requests to the store.
const MAX_PAGE: usize = 200;
/// Recordings whose details are read at the same time.
const AT_ONCE: usize = 8;

/// Which recordings are listed.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// At most so many: 1 to 200, 50 unless given.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<usize>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Begun at this time or later (RFC 3339).
    #[param(format = DateTime)]
    from: Option<String>,
    /// Begun before this time (RFC 3339).
    #[param(format = DateTime)]
    to: Option<String>,
    /// Of this call: the provider's id of it.
    call: Option<String>,
    /// Of calls with this party: a telephone number in international form, with its `+` as `%2B`, or a SIP address.
    party: Option<String>,
    /// Whether state and length are read as well, which costs a few requests to the store for each recording.
    #[serde(default)]
    details: bool,
}

/// A page of recordings, oldest first.
#[derive(Serialize, ToSchema)]
pub(super) struct RecordingPage {
    recordings: Vec<Listed>,
    /// Where the next page begins; none after the last.
    next: Option<String>,
}

/// A recording of a list.
#[derive(Serialize, ToSchema)]
pub(super) struct Listed {
    recording: String,
    /// When it began.
    created: String,
    /// With `details`: `receiving`, `complete`, `partial`, `recovered`, or `unreadable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    /// With `details`: how long it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

/// List recordings
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/recordings", operation_id = "list_recordings", tag = "recordings",
    params(("tenant" = String, Path, description = "The tenant's id"), ListQuery),
    responses(
        (status = 200, body = RecordingPage),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    caller: Caller,
    Parameters(query): Parameters<ListQuery>,
) -> Result<Json<RecordingPage>, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("allowed: 1 to {MAX_PAGE}")));
    }
    let from = query.from.as_deref().map(|text| time("from", text)).transpose()?;
    let to = query.to.as_deref().map(|text| time("to", text)).transpose()?;
    let cursor = query.cursor.as_deref().map(read_cursor).transpose()?;
    // The last id that could have been made before that time.
    let before = from.map(|from| RecordingId::new(from.0.saturating_sub(1), &[0xff; 10]));
    let place = (cursor.max(before), limit + 1);
    let mut found = match wanted(query.call.as_deref(), query.party.as_deref())? {
        Some(term) => {
            let (store, keys) = (Arc::clone(&node.store), Arc::clone(&node.keys));
            let finder = Finder::new(store, keys, node.audit.clone());
            finder.find(&tenant.id, &term, &ordered_by(&caller), place).await?
        }
        None => {
            node.audit.record(&tenant.id, caller.event("list-recordings", tenant.id.to_string())).await?;
            recordings::list(&*node.store, &tenant.id, place.0, place.1).await?
        }
    };
    found.retain(|recording| to.is_none_or(|to| recording.created_ms() < to.0));
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| has_more).map(|last| cursor_of(*last));
    let listed = stream::iter(found.into_iter().map(|recording| {
        let tenant = tenant.id.clone();
        async move {
            let mut listed = Listed {
                recording: recording.to_string(),
                created: clock::rfc3339(UnixMillis(recording.created_ms())),
                state: None,
                seconds: None,
            };
            if query.details {
                match StoredRecording::open(Arc::clone(&node.store), &node.keys, &tenant, recording).await {
                    Ok(stored) => {
                        (listed.state, listed.seconds) = (Some(stored.state_name()), Some(stored.seconds()));
                    }
                    Err(RecordingError::Unavailable(cause)) => {
                        return Err(ApiError::from(RecordingError::Unavailable(cause)));
                    }
                    // Listed and then deleted, not begun, or damaged.
                    Err(RecordingError::NotFound | RecordingError::Integrity(_)) => {
                        listed.state = Some("unreadable");
                    }
                }
            }
            Ok(listed)
        }
    }));
    let recordings = listed.buffered(AT_ONCE).try_collect().await?;
    Ok(Json(RecordingPage { recordings, next }))
}

/// Returns what is looked for. Errors do not show it: it is personal.
pub(super) fn wanted(call: Option<&str>, party: Option<&str>) -> Result<Option<Term>, ApiError> {
    match (call, party) {
        (None, None) => Ok(None),
        (Some(call), None) => {
            Term::call(call).map(Some).map_err(|why| ApiError::invalid("call", why.to_string()))
        }
        (None, Some(party)) => {
            Term::party(party).map(Some).map_err(|why| ApiError::invalid("party", why.to_string()))
        }
        (Some(_), Some(_)) => Err(ApiError::invalid("party", "allowed: call or party, not both")),
    }
}

pub(super) fn time(field: &'static str, text: &str) -> Result<UnixMillis, ApiError> {
    let parsed = clock::parse_rfc3339(text);
    parsed.ok_or_else(|| ApiError::invalid(field, "allowed: a time such as 2026-11-26T12:00:00Z"))
}

fn cursor_of(last: RecordingId) -> String {
    encode_base64url(&last.0)
}

fn read_cursor(text: &str) -> Result<RecordingId, ApiError> {
    let bytes = decode_base64url(text.as_bytes()).and_then(|bytes| bytes.try_into().ok());
    bytes.map(RecordingId).ok_or_else(|| ApiError::invalid("cursor", "allowed: the next of the page before"))
}

/// What is known of a recording.
#[derive(Serialize, ToSchema)]
pub(super) struct RecordingView {
    recording: String,
    /// `receiving`, `complete`, `partial` or `recovered`.
    state: &'static str,
    seconds: f64,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
    /// Whether nothing may delete it.
    hold: bool,
    /// When it expires although its sealed date is later.
    #[serde(skip_serializing_if = "Option::is_none")]
    ordered_expiry: Option<String>,
}

/// What is known of a recording whose call is over.
#[derive(Serialize, ToSchema)]
struct Ended {
    ended: String,
    /// When it is deleted unless it is held or an order says earlier: its sealed date, or the later one that its tenant gave it.
    expires: String,
    cause: &'static str,
    route: String,
    provider: String,
    /// The provider's call.
    call: String,
    /// How the caller's consent is known, where the route asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    consent: Option<String>,
    /// What the provider and the ticket said of the call, and what was learned while it ran.
    texts: std::collections::BTreeMap<String, String>,
    /// Missing audio.
    gaps: Vec<Gap>,
    /// SHA-256 of the manifest.
    root: String,
}

/// A stretch without audio.
#[derive(Serialize, ToSchema)]
struct Gap {
    track: u8,
    /// From the beginning of the recording as it is played and exported; below 0 for what is missing before that.
    at_seconds: f64,
    seconds: f64,
    /// Why: `source`, `pause`, …
    reason: &'static str,
    /// Whether audio was lost, and not left out on purpose.
    lost: bool,
}

/// Show a recording
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/recordings/{recording}", operation_id = "show_recording", tag = "recordings",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("recording" = String, Path, description = "The recording's id"),
    ),
    responses(
        (status = 200, body = RecordingView),
        (status = 410, body = Problem, content_type = "application/problem+json", description = "It was deleted"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(shared): State<Shared>,
    caller: Caller,
    Named(recording): Named,
) -> Result<Json<RecordingView>, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let stored = open(&shared, &caller, recording).await?;
    node.audit.record(&tenant.id, caller.event("show-recording", recording.to_string())).await?;
    let order = newest_order(&*node.store, tenant.id.tag(), recording).await?.map(|(_, order)| order);
    Ok(Json(RecordingView {
        recording: recording.to_string(),
        state: stored.state_name(),
        seconds: stored.seconds(),
        created: clock::rfc3339(UnixMillis(recording.created_ms())),
        ended: ended(&stored, order.as_ref().unwrap_or(&Order::NONE)),
        hold: order.as_ref().is_some_and(|order| order.hold),
        ordered_expiry: order.and_then(|order| order.expires_ms).map(|at| clock::rfc3339(UnixMillis(at))),
    }))
}

/// Opens a recording; one that was deleted says so.
pub(super) async fn open(
    shared: &Shared,
    caller: &Caller,
    recording: RecordingId,
) -> Result<StoredRecording, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    match StoredRecording::open(Arc::clone(&node.store), &node.keys, &tenant.id, recording).await {
        Err(RecordingError::NotFound) => {
            let receipt = receipt(&*node.store, tenant.id.tag(), recording).await?;
            Err(receipt.map_or(ApiError::NotFound, |receipt| {
                let at = clock::rfc3339(UnixMillis(receipt.deleted_at_ms));
                ApiError::Gone(format!("it was deleted at {at}: {}", receipt.reason.name()))
            }))
        }
        opened => Ok(opened?),
    }
}

fn ended(stored: &StoredRecording, order: &Order) -> Option<Ended> {
    let finished = stored.manifest()?;
    let (metadata, end) = (&finished.metadata, &finished.end);
    let (rate, origin) = (f64::from(stored.format().rate()), f64::from(stored.timeline().origin()));
    let gaps = end.gaps.iter().map(|gap| Gap {
        track: gap.track,
        at_seconds: (f64::from(gap.pts) - origin) / rate,
        seconds: f64::from(gap.samples) / rate,
        reason: gap.reason_name(),
        lost: gap.is_loss(),
    });
    let texts = [&metadata.parameters, &metadata.ticket, &end.notes].into_iter().flatten();
    Some(Ended {
        ended: clock::rfc3339(UnixMillis(end.ended_ms)),
        expires: clock::rfc3339(stored.kept_until(order)?),
        cause: end.cause.name(),
        route: metadata.route.clone(),
        provider: metadata.provider.clone(),
        call: metadata.call.clone(),
        consent: metadata.consent.clone(),
        texts: texts.map(|(name, text)| (name.clone(), text.clone())).collect(),
        gaps: gaps.collect(),
        root: encode_hex(&finished.root),
    })
}

/// What holds for a recording after an order.
#[derive(Serialize, ToSchema)]
pub(super) struct OrderView {
    recording: String,
    /// Whether nothing may delete it.
    hold: bool,
    /// When it expires although its sealed date is later.
    #[serde(skip_serializing_if = "Option::is_none")]
    ordered_expiry: Option<String>,
    /// Whether the order changed anything.
    changed: bool,
}

impl OrderView {
    fn of(recording: RecordingId, Placed { order, changed }: Placed) -> Json<Self> {
        Json(Self {
            recording: recording.to_string(),
            hold: order.hold,
            ordered_expiry: order.expires_ms.map(|at| clock::rfc3339(UnixMillis(at))),
            changed,
        })
    }
}

fn orders(shared: &Shared) -> Orders {
    let node = &shared.node;
    Orders::new(Arc::clone(&node.store), Arc::clone(&node.keys), node.audit.clone())
        .with_notices(node.notices.clone())
}

pub(super) fn ordered_by(caller: &Caller) -> OrderedBy {
    let event = caller.event("", String::new());
    OrderedBy {
        actor: event.actor,
        role: caller.role(),
        source: event.source,
        request: event.request,
        reason: event.reason.unwrap_or_default(),
    }
}

/// Hold a recording: nothing deletes it until it is released
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/recordings/{recording}/hold", operation_id = "hold_recording", tag = "recordings",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("recording" = String, Path, description = "The recording's id"),
    ),
    responses(
        (status = 200, body = OrderView),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn hold(
    State(shared): State<Shared>,
    caller: Caller,
    Named(recording): Named,
) -> Result<Json<OrderView>, ApiError> {
    let by = ordered_by(&caller);
    let placed = orders(&shared).hold(&caller.tenant()?.id, recording, &by).await?;
    Ok(OrderView::of(recording, placed))
}

/// Release a held recording: its date counts again
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/recordings/{recording}/release", operation_id = "release_recording", tag = "recordings",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("recording" = String, Path, description = "The recording's id"),
    ),
    responses(
        (status = 200, body = OrderView),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn release(
    State(shared): State<Shared>,
    caller: Caller,
    Named(recording): Named,
) -> Result<Json<OrderView>, ApiError> {
    let by = ordered_by(&caller);
    let placed = orders(&shared).release(&caller.tenant()?.id, recording, &by).await?;
    Ok(OrderView::of(recording, placed))
}

/// Delete a recording before its date
///
/// The next sweep deletes it; a call that still runs is deleted when it has ended. A held recording is refused.
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/recordings/{recording}", operation_id = "delete_recording", tag = "recordings",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("recording" = String, Path, description = "The recording's id"),
    ),
    responses(
        (status = 202, body = OrderView, description = "The next sweep deletes it"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "It is held"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn delete(
    State(shared): State<Shared>,
    caller: Caller,
    Named(recording): Named,
) -> Result<(StatusCode, Json<OrderView>), ApiError> {
    let by = ordered_by(&caller);
    let placed = orders(&shared).delete(&caller.tenant()?.id, recording, &by).await?;
    Ok((StatusCode::ACCEPTED, OrderView::of(recording, placed)))
}
