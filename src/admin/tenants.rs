//! Tenants; nothing of their secrets.

pub(super) mod change;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::clock;
use crate::config::{Origin, Record, RouteMode, RouteProvider, Tenant};

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;

/// The tenants that a token reaches.
#[derive(Serialize, ToSchema)]
pub(super) struct TenantList {
    tenants: Vec<TenantView>,
}

/// A tenant.
#[derive(Serialize, ToSchema)]
pub(super) struct TenantView {
    id: String,
    /// `file` or `store`: where it is kept. Only those of the store can be changed here.
    source: &'static str,
    /// Counts the changes of a tenant of the store, from 1; its ETag.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u32>,
    /// When what it has is deleted, if it is being closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    close_by: Option<String>,
    /// `active`, `suspended`, `closing` or `closed`.
    status: &'static str,
    /// Days from the end of a call to the expiry of its audio.
    call_audio_days: u32,
    /// Days that audit records are kept.
    access_log_days: u32,
    /// Streams at the same time.
    max_streams: u32,
    routes: Vec<RouteView>,
}

/// A route of a tenant.
#[derive(Serialize, ToSchema)]
pub(super) struct RouteView {
    name: String,
    /// `twilio`, `vapi-transcriber`, `vapi-listen` or `vapi-transport`.
    provider: &'static str,
    /// Whether calls are passed on to an agent.
    relayed: bool,
    /// `always`, `on-consent` or `never`.
    record: &'static str,
    require_ticket: bool,
}

impl TenantView {
    fn of(tenant: &Tenant) -> Self {
        let routes = tenant.routes.iter().map(|route| RouteView {
            name: route.name.to_string(),
            provider: match route.provider {
                RouteProvider::Twilio => "twilio",
                RouteProvider::VapiTranscriber => "vapi-transcriber",
                RouteProvider::VapiListen => "vapi-listen",
                RouteProvider::VapiTransport => "vapi-transport",
            },
            relayed: route.mode == RouteMode::Bidirectional && route.is_passed_on(),
            record: match route.record {
                Record::Always => "always",
                Record::OnConsent => "on-consent",
                Record::Never => "never",
            },
            require_ticket: route.require_ticket,
        });
        let (source, revision, close_by) = match tenant.origin {
            Origin::File => ("file", None, None),
            Origin::Store { revision, close_by, .. } => {
                ("store", Some(revision), close_by.map(clock::rfc3339))
            }
        };
        Self {
            source,
            revision,
            close_by,
            id: tenant.id.to_string(),
            status: tenant.status.name(),
            call_audio_days: tenant.retention.call_audio_days,
            access_log_days: tenant.retention.access_log_days,
            max_streams: tenant.limits.max_streams,
            routes: routes.collect(),
        }
    }
}

/// List the tenants that the token reaches
#[utoipa::path(
    get, path = "/v1/tenants", operation_id = "list_tenants", tag = "tenants",
    responses(
        (status = 200, body = TenantList),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(State(shared): State<Shared>, caller: Caller) -> Result<Json<TenantList>, ApiError> {
    let tenants = shared.node.tenants.load();
    let reached = tenants.iter().filter(|tenant| caller.principal.reach.covers(&tenant.id));
    Ok(Json(TenantList { tenants: reached.map(|tenant| TenantView::of(tenant)).collect() }))
}

/// Show a tenant
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}", operation_id = "show_tenant", tag = "tenants",
    params(("tenant" = String, Path, description = "The tenant's id")),
    responses(
        (status = 200, body = TenantView),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(caller: Caller) -> Result<Shown, ApiError> {
    Ok(shown(TenantView::of(caller.tenant()?)))
}

/// A tenant and its ETag.
type Shown = (HeaderMap, Json<TenantView>);

fn shown(view: TenantView) -> Shown {
    (etag(view.revision), Json(view))
}

/// A tenant of a file has no revision, and so no ETag.
pub(super) fn etag(revision: Option<u32>) -> HeaderMap {
    let value = revision.and_then(|revision| HeaderValue::from_str(&format!("\"{revision}\"")).ok());
    value.map(|value| (header::ETAG, value)).into_iter().collect()
}
