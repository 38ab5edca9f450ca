//! The audit log, to be asked.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::control::audit::{AuditReader, AuditRecord, Filter, Span};
use crate::domain::time::UnixMillis;

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input::Parameters;
use super::recordings::time;

/// Records of a page unless told.
const PAGE: usize = 100;
/// Records of a page at most, of some hundred bytes each.
const MAX_PAGE: usize = 1_000;

/// Which records are wanted. Everything given must hold.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// At most so many: 1 to 1000, 100 unless given.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Of this time or later (RFC 3339).
    #[param(format = DateTime)]
    from: Option<String>,
    /// Of before this time (RFC 3339).
    #[param(format = DateTime)]
    to: Option<String>,
    /// By whom.
    actor: Option<String>,
    /// From which address or range.
    source: Option<String>,
    /// To which recording or other subject.
    subject: Option<String>,
    /// What was done.
    action: Option<String>,
    /// By which key: the id of a token, the `kid` of a grant or ticket.
    key: Option<String>,
    /// With which result.
    result: Option<String>,
}

/// A page of records, oldest first.
#[derive(Serialize, ToSchema)]
pub(super) struct AuditPage {
    /// Records as `callseal audit show` prints them: time, node, actor, role, source, action, subject, reason, result, request.
    #[schema(value_type = Vec<Object>)]
    records: Vec<AuditRecord>,
    /// Where the next page begins; none after the last.
    next: Option<String>,
    /// How many objects on the way cannot be read. What they held is not among the records.
    damage: usize,
}

/// Ask the audit log who did what
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/audit", operation_id = "query_audit", tag = "audit",
    params(("tenant" = String, Path, description = "The tenant's id"), AuditQuery),
    responses(
        (status = 200, body = AuditPage),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn query(
    State(shared): State<Shared>,
    caller: Caller,
    Parameters(query): Parameters<AuditQuery>,
) -> Result<Json<AuditPage>, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("allowed: 1 to {MAX_PAGE}")));
    }
    let cursor = query.cursor.as_deref().map(str::parse).transpose();
    let cursor = cursor.map_err(|_| ApiError::invalid("cursor", "allowed: the next of the page before"))?;
    let filter = filter(query)?;
    node.audit.record(&tenant.id, caller.event("query-audit", tenant.id.to_string())).await?;
    let page = AuditReader::new(&node.keys, &*node.store).query(&tenant.id, &filter, cursor, limit).await?;
    let next = page.next.map(|next| next.to_string());
    Ok(Json(AuditPage { records: page.records, next, damage: page.damage.len() }))
}

fn filter(query: AuditQuery) -> Result<Filter, ApiError> {
    let moment = |field, text: Option<String>| -> Result<Option<UnixMillis>, ApiError> {
        text.map(|text| time(field, &text)).transpose()
    };
    let source = query.source.map(|text| {
        text.parse()
            .map_err(|_| ApiError::invalid("source", "allowed: an address or range such as 192.0.2.0/24"))
    });
    Ok(Filter {
        span: Span { from: moment("from", query.from)?, until: moment("to", query.to)? },
        actor: query.actor,
        source: source.transpose()?,
        subject: query.subject,
        action: query.action,
        key: query.key,
        result: query.result,
        with_marks: false,
    })
}
