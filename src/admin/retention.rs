//! For how many days a tenant's recordings are kept: shown with what was decided, shortened, proposed, approved, withdrawn.
//!
//! The rules are in `domain::policy`. Each step is in the tenant's audit log before it holds, and each refusal.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::clock;
use crate::config::{Origin, Tenant};
use crate::control::audit::AuditEvent;
use crate::control::redate::{RedateError, Redated, Redating};
use crate::domain::policy::{Decision, Policy, Proposal, Settled, Wanted, Way};
use crate::domain::time::UnixMillis;
use crate::node::Node;
use crate::tenants::{Author, ChangeError, Desk, Draft, RetentionOrder, Stored};

use super::Shared;
use super::deletions::run_behind;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input;
use super::tenants::change::{desk_with, if_match, of_store, put_draft, refused, stored};
use super::tenants::etag;

/// Other days for a tenant's recordings.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetentionChange {
    /// Days from the end of a call to the expiry of its audio. More than hold are proposed, and hold when approved.
    #[schema(minimum = 1, maximum = 3650)]
    call_audio_days: u32,
    /// Why: 1 to 512 bytes. For more days, the documented need.
    reason: String,
    /// Whether calls that have ended get the date as well. Fewer days delete what is over by then; more reach it when approved.
    #[serde(default)]
    also_ended: bool,
    /// Say what would be, with counts for `also_ended`, and change nothing.
    #[serde(default)]
    dry_run: bool,
}

/// The days of a tenant, what is proposed, and what was decided.
#[derive(Serialize, ToSchema)]
pub(super) struct RetentionView {
    /// Days from the end of a call to the expiry of its audio.
    call_audio_days: u32,
    /// Counts the changes of a tenant of the store; the ETag.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u32>,
    /// More days that wait for approval.
    pending: Option<PendingView>,
    /// What was decided, oldest first, at most 200. Of a tenant of a file nothing: its file has its own history.
    history: Vec<SettledView>,
    /// Only after a change, or a look at one: whether nothing was changed because only a look was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run: Option<bool>,
    /// Only with `also_ended`: what becomes of calls that have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<EndedView>,
}

/// More days that wait for approval.
#[derive(Serialize, ToSchema)]
pub(super) struct PendingView {
    call_audio_days_before: u32,
    call_audio_days: u32,
    /// Whether calls that have ended would get the date as well.
    also_ended: bool,
    reason: String,
    /// Who proposed it, and cannot approve it.
    by: String,
    at: String,
    /// Until when it can be approved.
    expires: String,
}

/// A change that is decided.
#[derive(Serialize, ToSchema)]
pub(super) struct SettledView {
    /// Counts, from 1.
    number: u32,
    /// `shortened`, `lengthened`, `withdrawn`, `superseded` or `expired`.
    outcome: &'static str,
    call_audio_days_before: u32,
    call_audio_days: u32,
    /// Whether calls that had ended were to get the date as well.
    also_ended: bool,
    reason: String,
    by: String,
    at: String,
    /// Who approved or ended what was proposed.
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<DecisionView>,
    /// With `also_ended`: when every ended recording had the date; not there while some wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    done: Option<String>,
}

/// Who approved or ended what was proposed.
#[derive(Serialize, ToSchema)]
pub(super) struct DecisionView {
    by: String,
    reason: String,
    at: String,
}

/// What becomes of calls that have ended.
#[derive(Serialize, ToSchema)]
pub(super) struct EndedView {
    /// Whether all of them were looked at. If not it goes on, with the next sweep at the latest; a look stops, and has counted
    /// these.
    complete: bool,
    /// Recordings that get an earlier date.
    shorter: u64,
    /// Recordings that get a later date.
    longer: u64,
    /// Of those with an earlier date: deleted by the next sweep.
    due_at_once: u64,
    /// Of those with another date, held: nothing deletes them before they are released.
    held: u64,
    /// Keep the date that the ticket of their call gave.
    own_days: u64,
    /// Keep their date, as these days give no earlier, or no later one. What is over, or has an earlier date by an order, gets no
    /// later one.
    unchanged: u64,
    /// Calls that run, or are being finished; sweeps come back to them.
    running: u64,
    /// Nobody can read their date; kept until somebody orders otherwise.
    unreadable: u64,
}

impl EndedView {
    fn of(counts: Redated, complete: bool) -> Self {
        let Redated { shorter, longer, due_at_once, held, own_days, unchanged, running, unreadable } = counts;
        Self { complete, shorter, longer, due_at_once, held, own_days, unchanged, running, unreadable }
    }
}

impl RetentionView {
    fn of(tenant: &Tenant, policy: &Policy, now: UnixMillis) -> Self {
        let time = |at: u64| clock::rfc3339(UnixMillis(at));
        let pending = policy.pending(now).map(|proposal| {
            let expires = clock::rfc3339(proposal.expires());
            let Proposal { days_before, days, also_ended, reason, by, at_ms } = proposal.clone();
            let (call_audio_days_before, call_audio_days, at) = (days_before, days, time(at_ms));
            PendingView { call_audio_days_before, call_audio_days, also_ended, reason, by, at, expires }
        });
        let settled = |settled: Settled| SettledView {
            number: settled.number,
            outcome: settled.outcome.name(),
            call_audio_days_before: settled.days_before,
            call_audio_days: settled.days,
            also_ended: settled.also_ended,
            reason: settled.reason,
            by: settled.by,
            at: time(settled.at_ms),
            decision: settled.decision.map(|Decision { by, reason, at_ms }| DecisionView {
                by,
                reason,
                at: time(at_ms),
            }),
            done: settled.done_at_ms.map(time),
        };
        let revision = match tenant.origin {
            Origin::File => None,
            Origin::Store { revision, .. } => Some(revision),
        };
        Self {
            call_audio_days: tenant.retention.call_audio_days,
            revision,
            pending,
            history: policy.history(now).into_iter().map(settled).collect(),
            dry_run: None,
            ended: None,
        }
    }
}

/// The days of a tenant with their ETag.
type Shown = (StatusCode, HeaderMap, Json<RetentionView>);

fn shown(status: StatusCode, view: RetentionView) -> Shown {
    (status, etag(view.revision), Json(view))
}

/// Show for how many days a tenant's recordings are kept, what is proposed, and what was decided
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/retention", operation_id = "show_retention", tag = "tenants",
    params(("tenant" = String, Path, description = "The tenant's id")),
    responses(
        (status = 200, body = RetentionView, headers(("ETag" = String, description = "Its revision"))),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(State(shared): State<Shared>, caller: Caller) -> Result<Shown, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    node.audit.record(&tenant.id, caller.event("retention.shown", tenant.id.to_string())).await?;
    if tenant.origin == Origin::File {
        let now = node.store.now().await?;
        return Ok(shown(StatusCode::OK, RetentionView::of(tenant, &Policy::default(), now)));
    }
    let stored = stored(&shared)?;
    newest(node, stored, tenant).await.map(|view| shown(StatusCode::OK, view))
}

/// Shows a tenant as the store has it now.
async fn newest(node: &Node, stored: &Stored, tenant: &Tenant) -> Result<RetentionView, ApiError> {
    let book = &stored.book;
    let now = book.now().await.map_err(ChangeError::from)?;
    let read = book.newest(tenant.id.tag()).await.map_err(ChangeError::from)?.ok_or(ApiError::NotFound)?;
    let desk = desk_of_node(node, stored);
    let policy = read.retention.clone();
    let tenant = desk.read(&read)?;
    Ok(RetentionView::of(&tenant, &policy, now))
}

/// Keep a tenant's recordings for fewer days, or propose more
///
/// Fewer days hold at once, for calls that begin from now on; with `also_ended` for those that have ended as well, which goes on
/// behind the answer 202 when it takes longer than half of the time that a request may take. More days hold when somebody
/// else has approved them, and with `also_ended` reach ended calls then.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/retention", operation_id = "change_retention", tag = "tenants",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("If-Match" = String, Header, description = "The ETag that was read"),
    ),
    request_body = RetentionChange,
    responses(
        (status = 200, body = RetentionView, headers(("ETag" = String, description = "Its revision"))),
        (status = 202, body = RetentionView, description = "The change holds; calls that have ended are still being given their date"),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "It has changed since"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn change(
    State(shared): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
    input::Json(change): input::Json<RetentionChange>,
) -> Result<Shown, ApiError> {
    let RetentionChange { call_audio_days: days, reason, also_ended, dry_run } = change;
    let order = RetentionOrder::Change(Wanted { days, also_ended });
    if dry_run {
        return look(&shared, &caller, &headers, (order, &reason)).await;
    }
    let (stored, draft) = give(&shared, &caller, &headers, (order, Some(&reason))).await?;
    let (status, view) = follow(&shared, stored, &draft).await?;
    Ok(shown(status, RetentionView { dry_run: Some(false), ..view }))
}

/// Does what a change that holds now has ended recordings wait for; shows what holds then.
async fn follow(
    shared: &Shared,
    stored: &Stored,
    draft: &Draft,
) -> Result<(StatusCode, RetentionView), ApiError> {
    let ended = if draft.reaches_ended() { Some(carry_out(shared, draft).await) } else { None };
    let goes_on = ended.as_ref().is_some_and(|ended| !ended.complete);
    let status = if goes_on { StatusCode::ACCEPTED } else { StatusCode::OK };
    let view = newest(&shared.node, stored, &draft.tenant).await?;
    Ok((status, RetentionView { ended, ..view }))
}

/// Approve more days for a tenant's recordings
///
/// Whoever proposed them cannot: tokens of one name count as one. If they are to reach calls that have ended, that goes on behind
/// the answer 202 when it takes longer than half of the time that a request may take.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/retention/approve", operation_id = "approve_retention", tag = "tenants",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("If-Match" = String, Header, description = "The ETag that was read"),
    ),
    responses(
        (status = 200, body = RetentionView, headers(("ETag" = String, description = "Its revision"))),
        (status = 202, body = RetentionView, description = "The days hold; calls that have ended are still being given their date"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "Nothing is proposed, or by the same actor"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn approve(
    State(shared): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Shown, ApiError> {
    let (stored, draft) =
        give(&shared, &caller, &headers, (RetentionOrder::Approve, caller.reason())).await?;
    let (status, view) = follow(&shared, stored, &draft).await?;
    Ok(shown(status, view))
}

/// Take back more days that are proposed for a tenant's recordings, or decline them
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/retention/withdraw", operation_id = "withdraw_retention", tag = "tenants",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("If-Match" = String, Header, description = "The ETag that was read"),
    ),
    responses(
        (status = 200, body = RetentionView, headers(("ETag" = String, description = "Its revision"))),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn withdraw(
    State(shared): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Shown, ApiError> {
    let (_, draft) = give(&shared, &caller, &headers, (RetentionOrder::Withdraw, caller.reason())).await?;
    let now = shared.node.store.now().await?;
    Ok(shown(StatusCode::OK, RetentionView::of(&draft.tenant, &draft.revision.retention, now)))
}

/// Drafts an order; a refusal is in the audit log.
async fn draft<'a>(
    shared: &'a Shared,
    caller: &Caller,
    headers: &HeaderMap,
    (order, reason): (RetentionOrder, Option<&str>),
) -> Result<(&'a Stored, Draft), ApiError> {
    let tenant = of_store(caller)?;
    let (stored, expected) = (stored(shared)?, if_match(headers)?);
    let desk = desk_with(shared, stored, caller, reason);
    match desk.retention(&tenant.id, Some(expected), order).await {
        Ok(draft) => Ok((stored, draft)),
        Err(error) => {
            let event = caller.event(order.action(), tenant.id.to_string());
            Err(refused(shared, event, error).await)
        }
    }
}

async fn give<'a>(
    shared: &'a Shared,
    caller: &Caller,
    headers: &HeaderMap,
    order: (RetentionOrder, Option<&str>),
) -> Result<(&'a Stored, Draft), ApiError> {
    let (stored, draft) = draft(shared, caller, headers, order).await?;
    put_draft(shared, caller, stored, &draft).await?;
    Ok((stored, draft))
}

/// Says what a change would do, for as long as half of the time that a request may take.
async fn look(
    shared: &Shared,
    caller: &Caller,
    headers: &HeaderMap,
    (order, reason): (RetentionOrder, &str),
) -> Result<Shown, ApiError> {
    let (_, draft) = draft(shared, caller, headers, (order, Some(reason))).await?;
    let (node, tenant) = (&shared.node, &draft.tenant);
    let event = caller.event(order.action(), tenant.id.to_string());
    let event = AuditEvent { result: "looked".to_owned(), reason: Some(reason.to_owned()), ..event };
    node.audit.record(&tenant.id, event).await?;
    let mut view = RetentionView::of(tenant, &draft.revision.retention, node.store.now().await?);
    view.dry_run = Some(true);
    // What is not put has no ETag.
    view.revision = None;
    if let RetentionOrder::Change(Wanted { days, also_ended: true }) = order {
        let mut counts = Redated::default();
        let way = Way::from_to(tenant.retention.call_audio_days, days);
        let redating = redating(node);
        let surveying = Box::pin(redating.survey(&tenant.id, (days, way), |found| counts = *found));
        let complete = match tokio::time::timeout(shared.pace.timeout() / 2, surveying).await {
            Ok(found) => found.map(|_| true)?,
            Err(_) => false,
        };
        view.ended = Some(EndedView::of(counts, complete));
    }
    Ok(shown(StatusCode::OK, view))
}

/// Gives ended recordings their date, behind the answer if that takes long. The change holds, whatever becomes of this: sweeps
/// go on with it.
async fn carry_out(shared: &Shared, draft: &Draft) -> EndedView {
    let (told, progress) = watch::channel(Redated::default());
    let (node, tenant) = (Arc::clone(&shared.node), draft.tenant.id.clone());
    let work = async move {
        let Some(stored) = node.tenants.stored() else { return Ok::<_, RedateError>(None) };
        let tell = |counts: &Redated| {
            let _before = told.send_replace(*counts);
        };
        let done = Box::pin(redating(&node).carry_out(&desk_of_node(&node, stored), &tenant, tell)).await;
        stored.look().await;
        done
    };
    match run_behind(shared, work).await {
        Ok(Some(Some(counts))) => EndedView::of(counts, true),
        Ok(Some(None) | None) | Err(_) => EndedView::of(*progress.borrow(), false),
    }
}

fn redating(node: &Node) -> Redating {
    Redating::new(Arc::clone(&node.store), Arc::clone(&node.keys), node.audit.clone())
}

/// The desk at which a node notes what it has done.
fn desk_of_node<'a>(node: &'a Node, stored: &'a Stored) -> Desk<'a> {
    let author = Author { name: node.config.node.as_str().to_owned(), reason: None };
    Desk { config: &node.config, of_files: Vec::new(), book: &stored.book, author }
}
