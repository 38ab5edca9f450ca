//! Requests of people about what is kept of them: access, delete, port, restrict.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::clock;
use crate::control::requests::{Dealt, NewRequest, Requests, SubjectReport};
use crate::domain::ids::RequestId;
use crate::domain::index::Term;
use crate::domain::request::{MAX_BEHALF_BYTES, Request, RequestKind, RequestState, Step};
use crate::domain::time::UnixMillis;

use super::Shared;
use super::deletions::run_behind;
use super::error::{ApiError, Problem};
use super::guard::Caller;
use super::input::{self, NamedRequest, Parameters};
use super::recordings::{ordered_by, time};

/// Requests of a page unless told, and at most; of each an object is read and opened.
const PAGE: usize = 50;
const MAX_PAGE: usize = 200;

fn requests(shared: &Shared) -> Requests {
    let node = &shared.node;
    let (store, keys) = (Arc::clone(&node.store), Arc::clone(&node.keys));
    Requests::new(store, keys, node.audit.clone(), node.config.retention.grace)
        .with_notices(node.notices.clone())
}

/// A request to write down. Why it is believed to come from that person stands in the reason.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RequestOrder {
    /// `access`, `delete`, `port` or `restrict`.
    kind: String,
    /// Whom it is about: a telephone number in international form, or a SIP address.
    party: String,
    /// When it came in (RFC 3339); now unless given. The time to deal with it runs from then.
    #[serde(default)]
    #[schema(format = DateTime)]
    received: Option<String>,
    /// On whose behalf somebody else asks: 1 to 256 bytes.
    #[serde(default)]
    on_behalf_of: Option<String>,
}

/// A request, without the number.
#[derive(Serialize, ToSchema)]
pub(super) struct RequestView {
    request: String,
    /// `access`, `delete`, `port` or `restrict`.
    kind: &'static str,
    /// `open`, `fulfilled`, `refused`, or `lifted` for a restriction that is in force no more.
    state: &'static str,
    received: String,
    due: String,
    /// Whether it is open and its date is past.
    overdue: bool,
}

impl RequestView {
    fn of(id: RequestId, request: &Request) -> Self {
        Self {
            request: id.to_string(),
            kind: request.kind.name(),
            state: request.state.name(),
            received: clock::rfc3339(UnixMillis(request.received_ms)),
            due: clock::rfc3339(UnixMillis(request.due_ms)),
            overdue: request.state == RequestState::Open && clock::wall().0 > request.due_ms,
        }
    }
}

/// A request with everything that was done about it.
#[derive(Serialize, ToSchema)]
pub(super) struct WholeRequest {
    #[serde(flatten)]
    request: RequestView,
    /// Whom it is about.
    party: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_behalf_of: Option<String>,
    steps: Vec<StepView>,
}

/// What somebody has done about a request.
#[derive(Serialize, ToSchema)]
pub(super) struct StepView {
    /// `opened`, `tried`, `fulfilled`, `refused` or `lifted`.
    what: &'static str,
    at: String,
    actor: String,
    reason: String,
    /// What came of it: counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Recordings that a deletion had to leave, because they are held; at most 200.
    exceptions: Vec<String>,
}

impl WholeRequest {
    fn of(id: RequestId, request: &Request) -> Json<Self> {
        let steps = request.steps.iter().map(|step: &Step| StepView {
            what: step.deed.name(),
            at: clock::rfc3339(UnixMillis(step.at_ms)),
            actor: step.actor.clone(),
            reason: step.reason.clone(),
            detail: step.detail.clone(),
            exceptions: step.exceptions.clone(),
        });
        Json(Self {
            request: RequestView::of(id, request),
            party: request.expose_party().to_owned(),
            on_behalf_of: request.on_behalf_of.clone(),
            steps: steps.collect(),
        })
    }
}

/// Write down what somebody asks for
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/requests", operation_id = "open_request", tag = "requests",
    params(("tenant" = String, Path, description = "The tenant's id")),
    request_body = RequestOrder,
    responses(
        (status = 201, body = RequestView),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn open(
    State(shared): State<Shared>,
    caller: Caller,
    input::Json(order): input::Json<RequestOrder>,
) -> Result<(StatusCode, Json<RequestView>), ApiError> {
    let behalf = order.on_behalf_of;
    let is_good =
        |text: &String| (1..=MAX_BEHALF_BYTES).contains(&text.len()) && !text.contains(char::is_control);
    if !behalf.as_ref().is_none_or(is_good) {
        let allowed = format!("allowed: 1 to {MAX_BEHALF_BYTES} bytes without control characters");
        return Err(ApiError::invalid("on_behalf_of", allowed));
    }
    let new = NewRequest {
        kind: order.kind.parse::<RequestKind>().map_err(|why| ApiError::invalid("kind", why.to_string()))?,
        party: Term::party(&order.party).map_err(|why| ApiError::invalid("party", why.to_string()))?,
        received: order.received.as_deref().map(|text| time("received", text)).transpose()?,
        due_after: shared.node.config.requests.due_after,
        on_behalf_of: behalf,
    };
    let (id, request) = requests(&shared).open(&caller.tenant()?.id, new, &ordered_by(&caller)).await?;
    Ok((StatusCode::CREATED, Json(RequestView::of(id, &request))))
}

/// Which requests are wanted.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RequestQuery {
    /// At most so many are looked at: 1 to 200, 50 unless given.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<usize>,
    /// The `next` of the page before.
    cursor: Option<String>,
    /// Only those in this state: `open`, `fulfilled`, `refused` or `lifted`.
    state: Option<String>,
}

/// A page of requests, oldest first.
#[derive(Serialize, ToSchema)]
pub(super) struct RequestPage {
    requests: Vec<RequestView>,
    /// Where the next page begins; none after the last. With `state` a page may be empty and have one.
    next: Option<String>,
}

/// List requests, without numbers
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/requests", operation_id = "list_requests", tag = "requests",
    params(("tenant" = String, Path, description = "The tenant's id"), RequestQuery),
    responses(
        (status = 200, body = RequestPage),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(shared): State<Shared>,
    caller: Caller,
    Parameters(query): Parameters<RequestQuery>,
) -> Result<Json<RequestPage>, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(ApiError::invalid("limit", format!("allowed: 1 to {MAX_PAGE}")));
    }
    let cursor = query.cursor.as_deref().map(str::parse).transpose();
    let cursor = cursor.map_err(|_| ApiError::invalid("cursor", "allowed: the next of the page before"))?;
    let states = [RequestState::Open, RequestState::Fulfilled, RequestState::Refused, RequestState::Lifted];
    let wanted = match query.state.as_deref() {
        None => None,
        Some(text) => Some(
            states
                .into_iter()
                .find(|state| state.name() == text)
                .ok_or_else(|| ApiError::invalid("state", "allowed: open, fulfilled, refused, lifted"))?,
        ),
    };
    node.audit.record(&tenant.id, caller.event("list-requests", tenant.id.to_string())).await?;
    let found = requests(&shared).list(&tenant.id, cursor, limit).await?;
    let next = found.last().filter(|_| found.len() == limit).map(|(id, _)| id.to_string());
    let wanted = found.iter().filter(|(_, request)| wanted.is_none_or(|state| state == request.state));
    let requests = wanted.map(|(id, request)| RequestView::of(*id, request)).collect();
    Ok(Json(RequestPage { requests, next }))
}

/// Show a request, its number, and everything that was done about it
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/requests/{request}", operation_id = "show_request", tag = "requests",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("request" = String, Path, description = "The request's id"),
    ),
    responses(
        (status = 200, body = WholeRequest),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn show(
    State(shared): State<Shared>,
    caller: Caller,
    NamedRequest(id): NamedRequest,
) -> Result<Json<WholeRequest>, ApiError> {
    let (node, tenant) = (&shared.node, caller.tenant()?);
    let request = requests(&shared).get(&tenant.id, id).await?;
    node.audit.record(&tenant.id, caller.event("show-request", id.to_string())).await?;
    Ok(WholeRequest::of(id, &request))
}

/// What is kept about somebody, as `callseal requests report` prints it: recordings, times, retention, place.
#[derive(Serialize, ToSchema)]
#[schema(value_type = Object)]
pub(super) struct ReportView(SubjectReport);

/// Tell what is kept about whom a request is: recordings, times, retention, place
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/requests/{request}/report", operation_id = "report_request", tag = "requests",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("request" = String, Path, description = "The request's id"),
    ),
    responses(
        (status = 200, body = ReportView),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn report(
    State(shared): State<Shared>,
    caller: Caller,
    NamedRequest(id): NamedRequest,
) -> Result<Json<ReportView>, ApiError> {
    let report = requests(&shared).report(&caller.tenant()?.id, id, &ordered_by(&caller)).await?;
    Ok(Json(ReportView(report)))
}

/// What became of an attempt to do what is asked for.
#[derive(Serialize, ToSchema)]
pub(super) struct DealtView {
    #[serde(flatten)]
    request: RequestView,
    /// Whether it is done. If not, the request is open still: ask again later.
    done: bool,
    /// For access and port: what is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    report: Option<SubjectReport>,
    /// For delete: what was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// For delete: recordings that are held and stay; at most 200.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    exceptions: Vec<String>,
}

/// Do what is asked for
///
/// `access` and `port` are answered with the report; the copy itself is made by `callseal requests export`, or with links to the
/// recordings. `delete` destroys at once whatever is not held. `restrict` puts the restriction in force. Where something is left to
/// be done, or it takes longer than half of the time that a request may take, the answer is 202, and the request stays open.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/requests/{request}/fulfil", operation_id = "fulfil_request", tag = "requests",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("request" = String, Path, description = "The request's id"),
    ),
    responses(
        (status = 200, body = DealtView),
        (status = 202, body = DealtView, description = "Something is left to be done"),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "It was dealt with"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn fulfil(
    State(shared): State<Shared>,
    caller: Caller,
    NamedRequest(id): NamedRequest,
) -> Result<(StatusCode, Json<DealtView>), ApiError> {
    let (tenant, by) = (caller.tenant()?.id.clone(), ordered_by(&caller));
    // Read first: nobody gets a place for what is not there.
    let request = requests(&shared).get(&tenant, id).await?;
    let doing = requests(&shared);
    let work = async move { doing.fulfil(&tenant, id, &by).await };
    let dealt = run_behind(&shared, work).await?;
    let Dealt { request, report, .. } = dealt.unwrap_or(Dealt { request, report: None, erased: None });
    let done = request.state != RequestState::Open;
    let last = request.steps.last();
    let view = DealtView {
        request: RequestView::of(id, &request),
        done,
        report,
        detail: last.and_then(|step| step.detail.clone()),
        exceptions: last.map(|step| step.exceptions.clone()).unwrap_or_default(),
    };
    Ok((if done { StatusCode::OK } else { StatusCode::ACCEPTED }, Json(view)))
}

/// Decline a request; the reason is kept
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/requests/{request}/refuse", operation_id = "refuse_request", tag = "requests",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("request" = String, Path, description = "The request's id"),
    ),
    responses(
        (status = 200, body = RequestView),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn refuse(
    State(shared): State<Shared>,
    caller: Caller,
    NamedRequest(id): NamedRequest,
) -> Result<Json<RequestView>, ApiError> {
    let request = requests(&shared).refuse(&caller.tenant()?.id, id, &ordered_by(&caller)).await?;
    Ok(Json(RequestView::of(id, &request)))
}

/// End a restriction: recordings may be played again
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/requests/{request}/lift", operation_id = "lift_request", tag = "requests",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("request" = String, Path, description = "The request's id"),
    ),
    responses(
        (status = 200, body = RequestView),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn lift(
    State(shared): State<Shared>,
    caller: Caller,
    NamedRequest(id): NamedRequest,
) -> Result<Json<RequestView>, ApiError> {
    let request = requests(&shared).lift(&caller.tenant()?.id, id, &ordered_by(&caller)).await?;
    Ok(Json(RequestView::of(id, &request)))
}
