//! What is destroyed at once, and what the deletion ledger and receipts say of it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::{IntoParams, ToSchema};

use crate::clock;
use crate::control::erase::{EraseReport, Eraser, Target};
use crate::control::ledger::Ledger;
use crate::control::retention::receipt;
use crate::domain::ids::RecordingId;
use crate::domain::index::Term;
use crate::domain::ledger::Entry;
use crate::domain::time::UnixMillis;

use super::Shared;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input::{self, Named, Parameters};
use super::recordings::ordered_by;

/// Entries of a page of the ledger unless told, and at most; of each an object is read and opened.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// What is to be destroyed: one of the three.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DeletionOrder {
    /// One recording.
    #[serde(default)]
    recording: Option<String>,
    /// All recordings of this call: the provider's id of it.
    #[serde(default)]
    call: Option<String>,
    /// All recordings of calls with this party: a telephone number in international form, or a SIP address.
    #[serde(default)]
    party: Option<String>,
    /// Count what would be destroyed, and destroy nothing.
    #[serde(default)]
    dry_run: bool,
}

/// What became of recordings.
#[derive(Serialize, ToSchema)]
pub(super) struct DeletionReport {
    /// Whether everything that was found has been dealt with. If not, it goes on; what is counted is what is done by now.
    done: bool,
    /// Whether nothing was destroyed, because only a count was asked for.
    dry_run: bool,
    /// Recordings that were found.
    found: u64,
    /// Of these, destroyed.
    deleted: u64,
    /// Kept, because they are held.
    held: u64,
    /// Not playable any more, and to be destroyed by a sweep: their call goes on, or a lock of the store is not over.
    waiting: u64,
    /// Destroyed before.
    gone: u64,
    /// Could not be destroyed. Asking again is safe.
    failed: u64,
}

impl DeletionReport {
    fn of(report: EraseReport, done: bool, dry_run: bool) -> Json<Self> {
        let EraseReport { found, deleted, held, waiting, gone, failed } = report;
        Json(Self { done, dry_run, found, deleted, held, waiting, gone, failed })
    }
}

impl DeletionOrder {
    /// Returns what is named. Errors do not show it: it is personal.
    fn target(&self) -> Result<Target, ApiError> {
        let one = "allowed: exactly one of recording, call and party";
        match (&self.recording, &self.call, &self.party) {
            (Some(recording), None, None) => recording
                .parse()
                .map(Target::Recording)
                .map_err(|_| ApiError::invalid("recording", "allowed: 32 lower-case hexadecimal digits")),
            (None, Some(call), None) => {
                Term::call(call).map(Target::Term).map_err(|why| ApiError::invalid("call", why.to_string()))
            }
            (None, None, Some(party)) => Term::party(party)
                .map(Target::Term)
                .map_err(|why| ApiError::invalid("party", why.to_string())),
            (None, None, None) => Err(ApiError::invalid("recording", format!("is missing; {one}"))),
            (Some(_), Some(_), _) | (None, Some(_), Some(_)) => Err(ApiError::invalid("call", one)),
            (Some(_), None, Some(_)) => Err(ApiError::invalid("party", one)),
        }
    }
}

/// Destroy a recording, or all recordings of a call or a party, at once
///
/// The key is destroyed first, then everything else. What is held stays. A call that goes on is not played any more, and is
/// deleted when it has ended. Each recording has its order in audit log and deletion ledger. What takes longer than half of
/// the time that a request may take goes on behind the answer 202, and asking again tells how far it has come.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/deletions", operation_id = "create_deletion", tag = "recordings",
    params(("tenant" = String, Path, description = "The tenant's id")),
    request_body = DeletionOrder,
    responses(
        (status = 200, body = DeletionReport),
        (status = 202, body = DeletionReport, description = "It goes on"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    input::Json(order): input::Json<DeletionOrder>,
) -> Result<(StatusCode, Json<DeletionReport>), ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?.id.clone());
    let (target, by) = (order.target()?, ordered_by(&caller));
    let eraser = Eraser::new(
        Arc::clone(&node.store),
        Arc::clone(&node.keys),
        node.audit.clone(),
        node.config.retention.grace,
    )
    .with_notices(node.notices.clone());
    if order.dry_run {
        let report = eraser.survey(&tenant, &target, &by).await?;
        return Ok((StatusCode::OK, DeletionReport::of(report, true, true)));
    }
    let (told, progress) = watch::channel(EraseReport::default());
    let deletion = async move {
        let tell = |report: &EraseReport| {
            let _before = told.send_replace(*report);
        };
        eraser.run(&tenant, &target, &by, tell).await
    };
    match run_behind(&shared, deletion).await? {
        Some(report) => Ok((StatusCode::OK, DeletionReport::of(report, true, false))),
        None => Ok((StatusCode::ACCEPTED, DeletionReport::of(*progress.borrow(), false, false))),
    }
}

/// Does what destroys, and waits for half of the time that a request may take; `None` when it goes on behind the answer.
/// Whoever hangs up does not stop it half-way.
pub(super) async fn run_behind<T, E>(
    shared: &Shared,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<Option<T>, ApiError>
where
    T: Send + 'static,
    E: std::error::Error + Into<ApiError> + Send + 'static,
{
    let place = Arc::clone(&shared.deletions).try_acquire_owned();
    let place = place.map_err(|_| ApiError::Unavailable("a place for another deletion"))?;
    let working = tokio::spawn(async move {
        let done = work.await;
        drop(place);
        if let Err(error) = &done {
            tracing::warn!(error = error as &dyn std::error::Error, "a deletion through the API has stopped");
        }
        done
    });
    match tokio::time::timeout(shared.pace.timeout() / 2, working).await {
        Ok(Ok(done)) => done.map(Some).map_err(Into::into),
        Ok(Err(_)) => Err(ApiError::Unavailable("the deletion")),
        Err(_) => Ok(None),
    }
}

/// The receipt of a deletion.
#[derive(Serialize, ToSchema)]
pub(super) struct ReceiptView {
    recording: String,
    /// `expired` or `requested`.
    reason: &'static str,
    deleted: String,
    /// From when on no backup has it either.
    r#final: String,
    /// How many objects it had.
    objects: u64,
    /// The number of its entry in the deletion ledger; none of deletions before there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    ledger: Option<u64>,
}

/// Show the receipt of a recording that was deleted
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/recordings/{recording}/receipt", operation_id = "show_receipt", tag = "recordings",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("recording" = String, Path, description = "The recording's id"),
    ),
    responses(
        (status = 200, body = ReceiptView),
        (status = 404, body = Problem, content_type = "application/problem+json", description = "It was not deleted"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show_receipt(
    State(shared): State<Shared>,
    caller: Caller,
    Named(recording): Named,
) -> Result<Json<ReceiptView>, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    node.audit.record(&tenant.id, caller.event("show-receipt", recording.to_string())).await?;
    let receipt = receipt(&*node.store, tenant.id.tag(), recording).await?.ok_or(ApiError::NotFound)?;
    Ok(Json(ReceiptView {
        recording: recording.to_string(),
        reason: receipt.reason.name(),
        deleted: clock::rfc3339(UnixMillis(receipt.deleted_at_ms)),
        r#final: clock::rfc3339(UnixMillis(receipt.final_at_ms)),
        objects: receipt.objects,
        ledger: receipt.ledger,
    }))
}

/// Which entries are wanted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LedgerQuery {
    /// At most so many entries are looked at: 1 to 1000. Unless given 100, and 1000 with `recording`.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Only entries about this recording.
    recording: Option<String>,
}

/// A page of the deletion ledger, oldest first.
#[derive(Serialize, ToSchema)]
pub(super) struct LedgerPage {
    entries: Vec<LedgerEntry>,
    /// Where the next page begins; none when the ledger ended in this one. With `recording` a page may be empty and have one.
    next: Option<String>,
}

/// An entry of the deletion ledger.
#[derive(Serialize, ToSchema)]
pub(super) struct LedgerEntry {
    number: u64,
    /// `ordered`, `shortened` or `deleted`.
    what: &'static str,
    recording: String,
    /// When it was ordered, or its key was destroyed.
    at: String,
    /// Of an order: `recording`, `call`, `party`, `tenant` or `replay`.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'static str>,
    /// Who ordered it, or shortened the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<String>,
    /// Why, in their words; of a deletion `expired` or `requested`.
    reason: String,
    /// When it has to be gone, or had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    /// Of a deletion: from when on no backup has its key either.
    #[serde(skip_serializing_if = "Option::is_none")]
    r#final: Option<String>,
    /// Of a deletion: how many objects it had.
    #[serde(skip_serializing_if = "Option::is_none")]
    objects: Option<u64>,
}

impl LedgerEntry {
    fn of((number, entry): (u64, Entry)) -> Self {
        let time = |at: u64| clock::rfc3339(UnixMillis(at));
        match entry {
            Entry::Ordered { recording, scope, actor, reason, at_ms } => Self {
                number,
                what: "ordered",
                recording,
                at: time(at_ms),
                scope: Some(scope.name()),
                actor: Some(actor),
                reason,
                expires: None,
                r#final: None,
                objects: None,
            },
            Entry::Shortened { recording, actor, reason, at_ms, expires_ms } => Self {
                number,
                what: "shortened",
                recording,
                at: time(at_ms),
                scope: None,
                actor: Some(actor),
                reason,
                expires: Some(time(expires_ms)),
                r#final: None,
                objects: None,
            },
            Entry::Deleted { recording, reason, expires_ms, deleted_at_ms, final_at_ms, objects } => Self {
                number,
                what: "deleted",
                recording,
                at: time(deleted_at_ms),
                scope: None,
                actor: None,
                reason: reason.name().to_owned(),
                expires: expires_ms.map(time),
                r#final: Some(time(final_at_ms)),
                objects: Some(objects),
            },
        }
    }
}

/// Read the deletion ledger: who had which recording deleted, why, and when its key was destroyed
///
/// That the entries of a page follow on each other is checked; whether the whole chain is unbroken is told by
/// `callseal ledger verify`.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/ledger", operation_id = "list_ledger", tag = "recordings",
    params(("tenant" = String, Path, description = "The tenant's id"), LedgerQuery),
    responses(
        (status = 200, body = LedgerPage),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list_ledger(
    State(shared): State<Shared>,
    caller: Caller,
    Parameters(query): Parameters<LedgerQuery>,
) -> Result<Json<LedgerPage>, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let limit = query.limit.unwrap_or(if query.recording.is_some() { MAX_PAGE } else { PAGE });
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("allowed: 1 to {MAX_PAGE}")));
    }
    let from = query.cursor.as_deref().map_or(Ok(0), str::parse::<u64>);
    let from = from.map_err(|_| ApiError::invalid("cursor", "allowed: the next of the page before"))?;
    let wanted = query.recording.as_deref().map(str::parse::<RecordingId>).transpose();
    let wanted =
        wanted.map_err(|_| ApiError::invalid("recording", "allowed: 32 lower-case hexadecimal digits"))?;
    let subject = query.recording.unwrap_or_else(|| tenant.id.to_string());
    node.audit.record(&tenant.id, caller.event("read-ledger", subject)).await?;
    let ledger = Ledger::new(Arc::clone(&node.store), Arc::clone(&node.keys));
    let mut found = ledger.page(&tenant.id, from, limit).await?;
    let next = found.last().filter(|_| found.len() == limit).map(|(number, _)| (number + 1).to_string());
    found.retain(|(_, entry)| wanted.is_none() || entry.recording() == wanted);
    Ok(Json(LedgerPage { entries: found.into_iter().map(LedgerEntry::of).collect(), next }))
}
