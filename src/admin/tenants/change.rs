//! Tenants that are kept in the store: make, show, change, suspend, resume, close.
//!
//! Each change names the revision that it is a change of, in `If-Match`, so that nobody overwrites what they have not read. It is in
//! the tenant's audit log before any node takes it.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use toml::Table;
use utoipa::ToSchema;

use crate::config::{Origin, Tenant};
use crate::control::audit::AuditEvent;
use crate::domain::ids::TenantId;
use crate::tenants::{Author, ChangeError, Desk, Draft, Order, Stored};

use super::super::Shared;
use super::super::error::{ApiError, Problem};
use super::super::guard::Caller;
use super::super::input;
use super::{Shown, TenantView, etag, shown};

/// The options of a tenant's file as JSON, without `status`. A secret is given as `{"value": "…"}`.
#[derive(Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub(in super::super) struct NewSettings(Table);

/// The settings of a tenant of the store, and who made them.
#[derive(Serialize, ToSchema)]
pub(in super::super) struct SettingsView {
    id: String,
    /// Counts changes, from 1; the ETag.
    revision: u32,
    /// When it was made.
    at: String,
    /// Who made it.
    by: String,
    /// Why, in their words.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// `active`, `suspended`, `closing` or `closed`.
    status: &'static str,
    /// The options of a tenant's file. In the place of a secret stands `{"kept": "…"}`, which may be sent back to keep it.
    #[schema(value_type = Object)]
    settings: Table,
}

/// Make a tenant that is kept in the store
///
/// Every node has it within 15 seconds; the one that answers has it at once. The body has the options of a tenant's file, its `id`
/// among them. All that is wrong is in `faults`.
#[utoipa::path(
    post, path = "/v1/tenants", operation_id = "create_tenant", tag = "tenants",
    request_body = NewSettings,
    responses(
        (status = 201, body = TenantView, headers(("ETag" = String, description = "Its revision"))),
        (status = 409, body = Problem, content_type = "application/problem+json", description = "There is one of that name"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in super::super) async fn create(
    State(shared): State<Shared>,
    caller: Caller,
    input::Json(NewSettings(settings)): input::Json<NewSettings>,
) -> Result<(StatusCode, HeaderMap, Json<TenantView>), ApiError> {
    let stored = stored(&shared)?;
    let draft = desk(&shared, stored, &caller).create(settings).await?;
    let (headers, view) = put(&shared, &caller, stored, &draft, true).await?;
    Ok((StatusCode::CREATED, headers, view))
}

/// Show the settings of a tenant of the store, without its secrets
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/settings", operation_id = "show_settings", tag = "tenants",
    params(("tenant" = String, Path, description = "The tenant's id")),
    responses(
        (status = 200, body = SettingsView, headers(("ETag" = String, description = "Its revision"))),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in super::super) async fn settings(
    State(shared): State<Shared>,
    caller: Caller,
) -> Result<(HeaderMap, Json<SettingsView>), ApiError> {
    let tenant = of_store(&caller)?;
    let stored = stored(&shared)?;
    let read = stored.book.newest(tenant.id.tag()).await.map_err(ChangeError::from)?;
    let read = read.ok_or(ApiError::NotFound)?;
    shared.node.audit.record(&tenant.id, caller.event("tenant.shown", tenant.id.to_string())).await?;
    let view = SettingsView {
        id: read.tenant.clone(),
        revision: read.revision,
        at: read.at.clone(),
        by: read.by.clone(),
        reason: read.reason.clone(),
        status: read.status.name(),
        settings: read.settings.shown(stored.book.naming_key()),
    };
    Ok((etag(Some(read.revision)), Json(view)))
}

/// Give a tenant of the store other settings
///
/// The body has all of them, as they are to be. Calls that run go on with those that they began with.
#[utoipa::path(
    put, path = "/v1/tenants/{tenant}/settings", operation_id = "update_tenant", tag = "tenants",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("If-Match" = String, Header, description = "The ETag that was read"),
    ),
    request_body = NewSettings,
    responses(
        (status = 200, body = TenantView, headers(("ETag" = String, description = "Its revision"))),
        (status = 412, body = Problem, content_type = "application/problem+json", description = "It has changed since"),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in super::super) async fn update(
    State(shared): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
    input::Json(NewSettings(settings)): input::Json<NewSettings>,
) -> Result<Shown, ApiError> {
    let tenant = of_store(&caller)?;
    let (stored, expected) = (stored(&shared)?, if_match(&headers)?);
    let draft = match desk(&shared, stored, &caller).update(&tenant.id, Some(expected), settings).await {
        Err(error @ ChangeError::DaysInSettings { .. }) => {
            return Err(refused(&shared, caller.event("tenant.updated", tenant.id.to_string()), error).await);
        }
        draft => draft?,
    };
    let has_other_keys = draft.tenant.keks != tenant.keks;
    put(&shared, &caller, stored, &draft, has_other_keys).await
}

/// Suspend a tenant of the store
///
/// New calls and playback are refused until it is resumed; calls that run go on, and recordings are kept and expire as promised.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/suspend", operation_id = "suspend_tenant", tag = "tenants",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("If-Match" = String, Header, description = "The ETag that was read"),
    ),
    responses(
        (status = 200, body = TenantView, headers(("ETag" = String, description = "Its revision"))),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in super::super) async fn suspend(
    State(shared): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Shown, ApiError> {
    order(&shared, &caller, &headers, Order::Suspend).await
}

/// Resume a tenant of the store that is suspended, or that is being closed and whose day has not come
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/resume", operation_id = "resume_tenant", tag = "tenants",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("If-Match" = String, Header, description = "The ETag that was read"),
    ),
    responses(
        (status = 200, body = TenantView, headers(("ETag" = String, description = "Its revision"))),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in super::super) async fn resume(
    State(shared): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Shown, ApiError> {
    order(&shared, &caller, &headers, Order::Resume).await
}

/// Close a tenant of the store
///
/// New calls are refused from now on. Recordings can be played until the day that the answer names in `close_by`; then all of them
/// are deleted but those that are held.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/close", operation_id = "close_tenant", tag = "tenants",
    params(
        ("tenant" = String, Path, description = "The tenant's id"),
        ("If-Match" = String, Header, description = "The ETag that was read"),
    ),
    responses(
        (status = 200, body = TenantView, headers(("ETag" = String, description = "Its revision"))),
        (status = "default", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in super::super) async fn close(
    State(shared): State<Shared>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Shown, ApiError> {
    order(&shared, &caller, &headers, Order::Close).await
}

async fn order(
    shared: &Shared,
    caller: &Caller,
    headers: &HeaderMap,
    order: Order,
) -> Result<Shown, ApiError> {
    let tenant = of_store(caller)?;
    let (stored, expected) = (stored(shared)?, if_match(headers)?);
    let draft = desk(shared, stored, caller).order(&tenant.id, Some(expected), order).await?;
    put(shared, caller, stored, &draft, false).await
}

/// Puts a change and shows what it made. `has_other_keys`: they must work before anything is put.
async fn put(
    shared: &Shared,
    caller: &Caller,
    stored: &Stored,
    draft: &Draft,
    has_other_keys: bool,
) -> Result<Shown, ApiError> {
    if has_other_keys {
        stored.admit(draft.tenant.clone()).await?;
    }
    put_draft(shared, caller, stored, draft).await?;
    Ok(shown(TenantView::of(&draft.tenant)))
}

/// Puts a change after its audit record, and has this node take it.
pub(in super::super) async fn put_draft(
    shared: &Shared,
    caller: &Caller,
    stored: &Stored,
    draft: &Draft,
) -> Result<(), ApiError> {
    let (id, detail) = (&draft.tenant.id, Some(draft.detail()));
    let event = caller.event(draft.revision.made.action(), id.to_string());
    let event = AuditEvent { detail, reason: draft.revision.reason.clone(), ..event };
    shared.node.audit.record(id, event.clone()).await?;
    let outcome = draft.put(&stored.book).await;
    // Also after a failure: it may be there all the same, and keys that were taken for it must go otherwise.
    stored.look().await;
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => Err(refused(shared, event, error).await),
    }
}

/// Notes in the audit log of the tenant that `event` names why something was refused.
pub(in super::super) async fn refused(shared: &Shared, event: AuditEvent, why: ChangeError) -> ApiError {
    let error = ApiError::from(why);
    let Ok(id) = event.subject.parse::<TenantId>() else { return error };
    let event = AuditEvent { result: error.code().to_owned(), ..event };
    match shared.node.audit.record(&id, event).await {
        Ok(()) => error,
        Err(unheard) => unheard.into(),
    }
}

pub(in super::super) fn stored(shared: &Shared) -> Result<&Stored, ApiError> {
    shared.node.tenants.stored().ok_or_else(|| ApiError::Conflict {
        code: "not_configured",
        detail: "this node keeps no tenants in the store; allowed where its file has tenants.keys".to_owned(),
    })
}

fn desk<'a>(shared: &'a Shared, stored: &'a Stored, caller: &Caller) -> Desk<'a> {
    desk_with(shared, stored, caller, caller.reason())
}

pub(in super::super) fn desk_with<'a>(
    shared: &'a Shared,
    stored: &'a Stored,
    caller: &Caller,
    reason: Option<&str>,
) -> Desk<'a> {
    let tenants = shared.node.tenants.load();
    let of_files = tenants.iter().filter(|tenant| tenant.origin == Origin::File);
    let of_files: Vec<TenantId> = of_files.map(|tenant| tenant.id.clone()).collect();
    let author = Author { name: caller.principal.actor.clone(), reason: reason.map(str::to_owned) };
    Desk { config: &shared.node.config, of_files, book: &stored.book, author }
}

pub(in super::super) fn of_store(caller: &Caller) -> Result<&Tenant, ApiError> {
    let tenant = caller.tenant()?;
    match tenant.origin {
        Origin::Store { .. } => Ok(tenant),
        Origin::File => Err(ChangeError::OfFile.into()),
    }
}

/// Reads which revision a change is of.
pub(in super::super) fn if_match(headers: &HeaderMap) -> Result<u32, ApiError> {
    let mut given = headers.get_all(header::IF_MATCH).iter();
    let (first, more) = (given.next().ok_or(ApiError::NoPrecondition)?, given.next());
    let text = first.to_str().ok().filter(|_| more.is_none());
    let number = text.and_then(|text| text.trim().strip_prefix('"')?.strip_suffix('"')?.parse().ok());
    number.ok_or_else(|| ApiError::invalid("if-match", "allowed: one ETag as it was read, such as \"3\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_one_revision() {
        let read = |texts: &[&str]| {
            let values = texts.iter().map(|text| (header::IF_MATCH, text.parse().unwrap()));
            let mut headers = HeaderMap::new();
            values.for_each(|(name, value)| {
                headers.append(name, value);
            });
            if_match(&headers)
        };
        assert_eq!(read(&["\"7\""]).unwrap(), 7);
        assert!(matches!(read(&[]), Err(ApiError::NoPrecondition)));
        for wrong in [&["*"][..], &["7"], &["W/\"7\""], &["\"x\""], &["\"7\", \"8\""], &["\"7\"", "\"7\""]] {
            assert!(matches!(read(wrong), Err(ApiError::Invalid { .. })), "{wrong:?}");
        }
    }
}
