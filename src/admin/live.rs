//! Live recordings: which there are, pause, resume, consent.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::clock;
use crate::control::recordings::StoredRecording;
use crate::domain::ids::RecordingId;
use crate::domain::live_order::LiveOrder;
use crate::live::{LiveState, LiveStream, orders};

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input::Named;

/// The streams that this node has.
#[derive(Serialize, ToSchema)]
pub(super) struct StreamList {
    /// The node that was asked. Others may have more.
    node: String,
    streams: Vec<StreamView>,
}

/// A stream that is recorded, or will be once the caller agrees.
#[derive(Serialize, ToSchema)]
pub(super) struct StreamView {
    /// The recording's id.
    recording: String,
    route: String,
    /// `twilio` or `vapi`.
    provider: &'static str,
    /// The provider's call; empty where the provider does not say.
    call: String,
    started: String,
    /// `recording`, `paused` or `awaiting-consent`.
    state: &'static str,
}

/// What was ordered of a live recording.
#[derive(Serialize, ToSchema)]
pub(super) struct Ordered {
    recording: String,
    /// How it stands now: `recording`, `paused` or `awaiting-consent`; `requested` when another node has the call and will
    /// obey within about a second.
    state: &'static str,
}

impl StreamView {
    fn of(stream: &LiveStream) -> Self {
        Self {
            recording: stream.recording.to_string(),
            route: stream.route.to_string(),
            provider: stream.provider,
            call: stream.call.clone(),
            started: clock::rfc3339(stream.started),
            state: stream.state().name(),
        }
    }
}

/// List the live recordings of the node that answers
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/streams", operation_id = "list_streams", tag = "calls",
    params(("tenant" = String, Path, description = "The tenant's id")),
    responses(
        (status = 200, body = StreamList),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(State(shared): State<Shared>, caller: Caller) -> Result<Json<StreamList>, ApiError> {
    let tenant = caller.tenant()?;
    shared.node.audit.record(&tenant.id, caller.event("list-streams", tenant.id.to_string())).await?;
    let streams = shared.node.live.of_tenant(&tenant.id);
    let node = shared.node.config.node.as_str().to_owned();
    Ok(Json(StreamList { node, streams: streams.iter().map(|stream| StreamView::of(stream)).collect() }))
}

/// Makes the operation of one order. They differ in what the document says of them, and in nothing else.
macro_rules! operation {
    ($(#[$about:meta])* $name:ident = $order:expr, $path:literal, $id:literal, $now:literal, $soon:literal) => {
        $(#[$about])*
        #[utoipa::path(
            post, path = $path, operation_id = $id, tag = "calls",
            params(
                ("tenant" = String, Path, description = "The tenant's id"),
                ("recording" = String, Path, description = "The recording's id"),
            ),
            responses(
                (status = 200, body = Ordered, description = $now),
                (status = 202, body = Ordered, description = $soon),
                (status = "default", body = Problem, content_type = "application/problem+json"),
            ),
        )]
        pub(super) async fn $name(
            State(shared): State<Shared>,
            caller: Caller,
            Named(recording): Named,
        ) -> Result<(StatusCode, Json<Ordered>), ApiError> {
            order(&shared, &caller, recording, $order).await
        }
    };
}

operation! {
    /// Pause a live recording
    ///
    /// From this moment on neither audio nor keys pressed are sealed; the call goes on. The recording has silence there, and
    /// says that it was paused.
    pause = LiveOrder::Pause,
    "/v1/tenants/{tenant}/recordings/{recording}/pause",
    "pause_recording",
    "It is paused",
    "Another node has the call and will pause it within about a second"
}

operation! {
    /// Resume a paused recording
    resume = LiveOrder::Resume,
    "/v1/tenants/{tenant}/recordings/{recording}/resume",
    "resume_recording",
    "It goes on",
    "Another node has the call and will go on within about a second"
}

operation! {
    /// Say that the caller agrees to be recorded
    ///
    /// For routes with `record = "on-consent"`. The recording begins now; what was said before is nowhere.
    consent = LiveOrder::Consent,
    "/v1/tenants/{tenant}/recordings/{recording}/consent",
    "consent_to_recording",
    "It is recorded from now on",
    "Another node has the call and will record it within about a second"
}

/// Gives an order. A pause comes before its audit record, because a card number does not wait for a store; what lets more be
/// recorded comes after it.
async fn order(
    shared: &Shared,
    caller: &Caller,
    recording: RecordingId,
    order: LiveOrder,
) -> Result<(StatusCode, Json<Ordered>), ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let event = caller.event(order.name(), recording.to_string());
    let at = clock::wall();
    if let Some(stream) = node.live.find(&tenant.id, recording) {
        if order == LiveOrder::Resume && stream.state() == LiveState::AwaitingConsent {
            let detail = "the caller has not agreed yet; allowed: consent".to_owned();
            return Err(ApiError::Conflict { code: "no_consent", detail });
        }
        if order == LiveOrder::Pause {
            stream.obey(order, at);
        }
        node.audit.record(&tenant.id, event).await?;
        if order != LiveOrder::Pause {
            stream.obey(order, at);
        }
        let ordered = Ordered { recording: recording.to_string(), state: stream.state().name() };
        return Ok((StatusCode::OK, Json(ordered)));
    }
    let key = node
        .keys
        .open(&tenant.id, recording)
        .await
        .map_err(|error| ApiError::from(crate::control::recordings::RecordingError::from(error)))?;
    let stored = StoredRecording::open_finished(&node.store, &node.keys, &tenant.id, recording).await?;
    if stored.is_some() {
        let detail = "the recording is over".to_owned();
        return Err(ApiError::Conflict { code: "not_live", detail });
    }
    let order_key = key.dek.live_order_key();
    let about = (tenant.id.tag(), recording);
    if order == LiveOrder::Pause {
        orders::leave(&*node.store, about, &order_key, order, at).await?;
    }
    node.audit.record(&tenant.id, event).await?;
    if order != LiveOrder::Pause {
        orders::leave(&*node.store, about, &order_key, order, at).await?;
    }
    Ok((StatusCode::ACCEPTED, Json(Ordered { recording: recording.to_string(), state: "requested" })))
}
