//! Restrictions: recordings of a party that nobody may use, and nothing deletes because of that.
//!
//! The store has an empty object for each restricted party, under its blind id, so that every node sees a restriction with
//! its next look, without a key, and nobody can read whom it is about. Which recordings are meant is told by the blind index.

use crate::domain::ids::{RecordingId, RequestId, TenantTag};
use crate::domain::index::{IndexEntry, IndexKind};
use crate::store::{ObjectClass, ObjectName, Store, StoreError, Tags, layout};
use crate::upload::entries_of;

/// Restrictions listed at a time.
const PAGE: usize = 1000;

/// Whether nobody may play a recording. One request to the store where nothing is restricted, a few otherwise.
///
/// # Errors
/// [`StoreError`]; then nobody knows.
pub async fn is_restricted(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
) -> Result<bool, StoreError> {
    if store.list_after(&layout::restrictions_prefix(tenant), None, 1).await?.is_empty() {
        return Ok(false);
    }
    for entry in entries_of(store, tenant, recording).await? {
        let prefix = layout::restrictions_of_prefix(tenant, entry);
        if entry.kind == IndexKind::Party && !store.list_after(&prefix, None, 1).await?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Puts a restriction in force.
pub(super) async fn restrict(
    store: &dyn Store,
    tenant: TenantTag,
    (party, request): (IndexEntry, RequestId),
) -> Result<(), StoreError> {
    let name = layout::restriction(tenant, party, request);
    store.put_new(&name, bytes::Bytes::new(), &Tags::of(tenant, ObjectClass::Request)).await.map(drop)
}

/// Ends the restriction of a request, under whatever index keys it was put.
pub(super) async fn lift(store: &dyn Store, tenant: TenantTag, request: RequestId) -> Result<(), StoreError> {
    for (name, of) in restrictions(store, tenant).await? {
        if of == request {
            store.purge(name.as_str()).await?;
        }
    }
    Ok(())
}

/// Returns every restriction of a tenant, and the request that asks for it.
pub(super) async fn restrictions(
    store: &dyn Store,
    tenant: TenantTag,
) -> Result<Vec<(ObjectName, RequestId)>, StoreError> {
    let (prefix, mut after, mut found) = (layout::restrictions_prefix(tenant), None, Vec::new());
    loop {
        let page = store.list_after(&prefix, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(found) };
        after = Some(last.name.clone());
        let named = page.into_iter().filter_map(|object| {
            let request = layout::restriction_request(&object.name)?;
            Some((object.name, request))
        });
        found.extend(named);
    }
}
