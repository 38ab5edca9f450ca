//! The audit log: asked, verified, handed on.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::{IntoParams, ToSchema};

use crate::clock;
use crate::control::audit::{
    AuditError, AuditEvent, AuditReader, AuditRecord, ExportFormat, Filter, Proof, Span, Verification,
};
use crate::domain::time::UnixMillis;

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input::Parameters;
use super::recordings::time;
use super::stream;

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

/// What a verification of the log has found.
#[derive(Serialize, ToSchema)]
pub(super) struct Verified {
    /// Whether nothing shows that a record was changed, moved, inserted or removed.
    unbroken: bool,
    /// Chains whose ends nobody vouches for: their processes were killed a short time ago, or their ends were cut off.
    silent: usize,
    /// As `callseal audit verify --json` prints it: records, objects, from, to, kept_since, chains with their heads, findings.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    verification: Verification,
}

/// Check that no audit record was changed, moved, inserted or removed
///
/// Reads all of the log, and is refused with 503 if that takes longer than one request may; then use `callseal audit verify`.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/audit/verification", operation_id = "verify_audit", tag = "audit",
    params(("tenant" = String, Path, description = "The tenant's id")),
    responses(
        (status = 200, body = Verified),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn verify(State(shared): State<Shared>, caller: Caller) -> Result<Json<Verified>, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let _place = place(&shared)?;
    node.audit.record(&tenant.id, caller.event("verify-audit", tenant.id.to_string())).await?;
    let reader = AuditReader::new(&node.keys, &*node.store);
    let verification = reader.verify(&tenant.id, None, clock::wall()).await.map_err(unreadable)?;
    let (unbroken, silent) = (verification.is_unbroken(), verification.silent().count());
    Ok(Json(Verified { unbroken, silent, verification }))
}

/// What is handed on.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExportQuery {
    /// `jsonl`: one record a line, the proof last; `csv`: a table, whose proof is asked for separately. Required.
    format: Option<String>,
    /// Records of this time or later (RFC 3339).
    #[param(format = DateTime)]
    from: Option<String>,
    /// Records of before this time (RFC 3339).
    #[param(format = DateTime)]
    to: Option<String>,
}

impl ExportQuery {
    fn check(&self) -> Result<(ExportFormat, Span), ApiError> {
        let format = match self.format.as_deref() {
            Some("jsonl") => ExportFormat::JsonLines,
            Some("csv") => ExportFormat::Csv,
            Some(_) | None => return Err(ApiError::invalid("format", "allowed: jsonl, csv")),
        };
        let from = self.from.as_deref().map(|text| time("from", text)).transpose()?;
        let until = self.to.as_deref().map(|text| time("to", text)).transpose()?;
        if from.zip(until).is_some_and(|(from, until)| from >= until) {
            return Err(ApiError::invalid("to", "allowed: a time after that of from"));
        }
        Ok((format, Span { from, until }))
    }

    fn event(&self, caller: &Caller, action: &str, subject: String) -> AuditEvent {
        let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let detail = format!("format={} from={} to={}", text(&self.format), text(&self.from), text(&self.to));
        AuditEvent { detail: Some(detail), ..caller.event(action, subject) }
    }
}

/// Hand on audit records, with what proves that none is missing in between
///
/// Cut off where the log is broken. The last line of `jsonl` is the proof; without it an export is not whole.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/audit/export", operation_id = "export_audit", tag = "audit",
    params(("tenant" = String, Path, description = "The tenant's id"), ExportQuery),
    responses(
        (status = 200, description = "The records", content((String = "application/x-ndjson"), (String = "text/csv"))),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "The log is broken"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn export(
    State(shared): State<Shared>,
    caller: Caller,
    Parameters(query): Parameters<ExportQuery>,
) -> Result<Response, ApiError> {
    let (node, tenant) = (Arc::clone(&shared.node), caller.tenant()?.id.clone());
    let (format, span) = query.check()?;
    let place = place(&shared)?;
    node.audit.record(&tenant, query.event(&caller, "export-audit", tenant.to_string())).await?;
    let (kind, end) = match format {
        ExportFormat::JsonLines => ("application/x-ndjson", "jsonl"),
        ExportFormat::Csv => ("text/csv; charset=utf-8; header=present", "csv"),
    };
    let file = format!("audit-{tenant}.{end}");
    stream::written(kind, &file, |mut out| async move {
        let _place = place;
        let reader = AuditReader::new(&node.keys, &*node.store);
        reader.export(&tenant, span, format, &mut out).await.map_err(unreadable).map(drop)
    })
    .await
}

/// What proves that an export is whole: v, tenant, from, until, records, sha256, chains.
#[derive(Serialize, ToSchema)]
#[schema(value_type = Object)]
pub(super) struct Proved(Proof);

/// Prove an export
///
/// The proof of what `export` answers for the same query: its digest, and where each chain was taken up and left. For a span
/// that is over (`to` in the past) the two belong together byte for byte.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/audit/proof", operation_id = "prove_audit", tag = "audit",
    params(("tenant" = String, Path, description = "The tenant's id"), ExportQuery),
    responses(
        (status = 200, body = Proved),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "The log is broken"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn proof(
    State(shared): State<Shared>,
    caller: Caller,
    Parameters(query): Parameters<ExportQuery>,
) -> Result<Json<Proved>, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let (format, span) = query.check()?;
    let _place = place(&shared)?;
    node.audit.record(&tenant.id, query.event(&caller, "prove-audit", tenant.id.to_string())).await?;
    let reader = AuditReader::new(&node.keys, &*node.store);
    let proof = reader.export(&tenant.id, span, format, &mut tokio::io::sink()).await;
    proof.map(|proof| Json(Proved(proof))).map_err(unreadable)
}

/// Takes one of the places of those who read a whole log.
fn place(shared: &Shared) -> Result<OwnedSemaphorePermit, ApiError> {
    Arc::clone(&shared.log_readers).try_acquire_owned().map_err(|_| ApiError::Busy("readings of audit logs"))
}

fn unreadable(error: AuditError) -> ApiError {
    match error {
        AuditError::Broken(finding) => {
            tracing::error!(%finding, "the audit log is broken");
            ApiError::Conflict { code: "audit_broken", detail: finding.to_string() }
        }
        // Whoever reads is gone.
        AuditError::Output(_) => ApiError::Unavailable("an answer"),
        AuditError::Unavailable
        | AuditError::Taken
        | AuditError::Key(_)
        | AuditError::Store(_)
        | AuditError::File(_) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the audit log cannot be read");
            ApiError::Unavailable("the audit log")
        }
    }
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
