//! Notices to a tenant's own server: where they go, what came of them, once more, and a trial.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::clock;
use crate::config::{Tenant, Webhook};
use crate::notices::manage::{Desk, Shown, TrialError, try_out};
use crate::store::layout::NoticePlace;

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input::{NamedNotice, Parameters};

/// Notices of a page unless told.
const PAGE: usize = 50;
/// Notices of a page at most: each costs a few requests to the store.
const MAX_PAGE: usize = 200;

/// Where a tenant is told, and whether it is.
#[derive(Serialize, ToSchema)]
pub(super) struct WebhookView {
    /// The receiver's host and port. The rest of its URL may be a secret.
    host: String,
    /// What is told.
    events: Vec<&'static str>,
    /// Whether notices hold the provider's id of the call.
    call_ids: bool,
    /// With how many secrets notices are signed: two while the secret changes.
    secrets: usize,
    /// Notices that are to be delivered.
    waiting: usize,
    /// Since when the oldest of them waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_waiting: Option<String>,
}

/// Show where a tenant is told what happens, and how much waits
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/webhook", operation_id = "show_webhook", tag = "webhooks",
    params(("tenant" = String, Path, description = "The tenant's id")),
    responses(
        (status = 200, body = WebhookView),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "There is none"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(shared): State<Shared>,
    caller: Caller,
) -> Result<Json<WebhookView>, ApiError> {
    let tenant = caller.tenant()?;
    let webhook = webhook(tenant)?;
    shared.node.audit.record(&tenant.id, caller.event("show-webhook", tenant.id.to_string())).await?;
    let (waiting, oldest) = desk(&shared, tenant)?.waiting().await?;
    Ok(Json(WebhookView {
        host: webhook.url.authority().to_owned(),
        events: webhook.events.iter().map(|event| event.name()).collect(),
        call_ids: webhook.call_ids,
        secrets: webhook.secrets.len(),
        waiting,
        oldest_waiting: oldest.map(clock::rfc3339),
    }))
}

/// What came of a trial.
#[derive(Serialize, ToSchema)]
pub(super) struct TrialView {
    /// Whether the receiver has answered with a status of 2xx.
    delivered: bool,
    /// The notice's id, if it was delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// The receiver's status, if it was delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// What went wrong: `unreachable`, `tls`, `not_public`, `protocol`, `timeout`, `redirect`, `gone` or `refused`.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Post a `webhook.test` notice to the receiver once
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/webhook/test", operation_id = "test_webhook", tag = "webhooks",
    params(("tenant" = String, Path, description = "The tenant's id")),
    responses(
        (status = 200, body = TrialView, description = "It was tried; `delivered` says what came of it"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "There is none"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn test(State(shared): State<Shared>, caller: Caller) -> Result<Json<TrialView>, ApiError> {
    let tenant = caller.tenant()?;
    let webhook = webhook(tenant)?;
    let event = caller.event("webhook-test", webhook.url.authority().to_owned());
    shared.node.audit.record(&tenant.id, event).await?;
    let nothing = TrialView { delivered: false, id: None, status: None, error: None, detail: None };
    Ok(Json(match try_out(&shared.node.poster, &tenant.id, webhook).await {
        Ok(trial) => TrialView { delivered: true, id: Some(trial.id), status: Some(trial.status), ..nothing },
        Err(TrialError::Post(error)) => {
            TrialView { error: Some(error.name()), detail: Some(error.to_string()), ..nothing }
        }
        Err(TrialError::Id(_)) => return Err(ApiError::Unavailable("the source of random bytes")),
    }))
}

/// Which notices are listed.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct NoticeQuery {
    /// `waiting`: to be delivered; `sent`: delivered in the last week; `dead`, unless given: not deliverable, for a month.
    state: Option<String>,
    /// At most so many: 1 to 200, 50 unless given.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<usize>,
    /// The `next` of the page before.
    cursor: Option<String>,
}

/// A page of notices, in the order of their ids.
#[derive(Serialize, ToSchema)]
pub(super) struct NoticePage {
    notices: Vec<NoticeView>,
    /// Where the next page begins; none after the last.
    next: Option<String>,
}

/// A notice and where it stands.
#[derive(Serialize, ToSchema)]
pub(super) struct NoticeView {
    id: String,
    /// `waiting`, `sent` or `dead`.
    state: &'static str,
    /// How often it was tried.
    attempts: u32,
    /// When it came to this state, or was tried last.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    /// What came of the last attempt that is noted.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<String>,
    /// What is told.
    #[schema(value_type = Object)]
    body: serde_json::Value,
}

impl From<Shown> for NoticeView {
    fn from(Shown { id, state, attempts, at, last, body }: Shown) -> Self {
        Self { id, state, attempts, at, last, body }
    }
}

/// List notices: those that could not be delivered, or others
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/notices", operation_id = "list_notices", tag = "webhooks",
    params(("tenant" = String, Path, description = "The tenant's id"), NoticeQuery),
    responses(
        (status = 200, body = NoticePage),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    caller: Caller,
    Parameters(query): Parameters<NoticeQuery>,
) -> Result<Json<NoticePage>, ApiError> {
    let tenant = caller.tenant()?;
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("allowed: 1 to {MAX_PAGE}")));
    }
    let place = match query.state.as_deref() {
        None | Some("dead") => NoticePlace::Dead,
        Some("waiting") => NoticePlace::Waiting,
        Some("sent") => NoticePlace::Sent,
        Some(_) => return Err(ApiError::invalid("state", "allowed: waiting, sent, dead")),
    };
    let cursor = query.cursor.as_deref().map(str::parse).transpose();
    let after = cursor.map_err(|_| ApiError::invalid("cursor", "allowed: the next of the page before"))?;
    shared.node.audit.record(&tenant.id, caller.event("list-notices", tenant.id.to_string())).await?;
    let (shown, next) = desk(&shared, tenant)?.page(place, after, limit).await?;
    let notices = shown.into_iter().map(NoticeView::from).collect();
    Ok(Json(NoticePage { notices, next: next.map(|next| next.to_string()) }))
}

/// Show a notice
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/notices/{notice}", operation_id = "show_notice", tag = "webhooks",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("notice" = String, Path, description = "The notice's id"),
    ),
    responses(
        (status = 200, body = NoticeView),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn notice(
    State(shared): State<Shared>,
    caller: Caller,
    NamedNotice(notice): NamedNotice,
) -> Result<Json<NoticeView>, ApiError> {
    let tenant = caller.tenant()?;
    let shown = desk(&shared, tenant)?.show(notice).await?.ok_or(ApiError::NotFound)?;
    shared.node.audit.record(&tenant.id, caller.event("show-notice", notice.to_string())).await?;
    Ok(Json(shown.into()))
}

/// A notice that is sent again.
#[derive(Serialize, ToSchema)]
pub(super) struct Redelivered {
    id: String,
    /// `waiting`.
    state: &'static str,
}

/// Send a dead or delivered notice again, with the same id
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/notices/{notice}/redeliver", operation_id = "redeliver_notice", tag = "webhooks",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("notice" = String, Path, description = "The notice's id"),
    ),
    responses(
        (status = 202, body = Redelivered, description = "It waits for its delivery"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "It waits already"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn redeliver(
    State(shared): State<Shared>,
    caller: Caller,
    NamedNotice(notice): NamedNotice,
) -> Result<(StatusCode, Json<Redelivered>), ApiError> {
    let tenant = caller.tenant()?;
    webhook(tenant)?;
    let event = caller.event("webhook-redeliver", notice.to_string());
    shared.node.audit.record(&tenant.id, event).await?;
    desk(&shared, tenant)?.redeliver(notice).await?;
    let state = NoticePlace::Waiting.name();
    Ok((StatusCode::ACCEPTED, Json(Redelivered { id: notice.to_string(), state })))
}

fn webhook(tenant: &Tenant) -> Result<&Webhook, ApiError> {
    let none = || ApiError::Conflict {
        code: "not_configured",
        detail: "the tenant has no webhook; its file may have a table [webhook]".to_owned(),
    };
    tenant.webhook.as_ref().ok_or_else(none)
}

fn desk(shared: &Shared, tenant: &Tenant) -> Result<Desk, ApiError> {
    shared.node.notices.desk(tenant.id.clone()).ok_or(ApiError::NotFound)
}
