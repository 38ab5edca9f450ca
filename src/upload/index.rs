//! The blind index: puts, tags and removes the entries under which a recording is found.
//!
//! An entry is two empty objects: what leads from the recording to it comes first and goes last, so that whoever deletes the
//! recording finds every entry without any key. Who knows the terms and the key that makes them blind is an [`Index`].

use async_trait::async_trait;
use bytes::Bytes;

use crate::domain::ids::{RecordingId, TenantTag};
use crate::domain::index::IndexEntry;
use crate::domain::retention::Order;
use crate::store::{ObjectName, Store, StoreError, layout};

use super::requests::Requests;
use super::tags::{RetentionTags, newest_order, tag_order};
use crate::domain::time::UnixMillis;

/// Entries listed at a time; a recording has a few.
const PAGE: usize = 1000;

/// Knows under which entries one recording is to be found.
#[async_trait]
pub trait Index: Send + Sync {
    /// Returns the entries, as far as its terms are known by now.
    ///
    /// # Errors
    /// [`NotIndexed`]: the key that makes terms blind is not to be had.
    async fn entries(&self) -> Result<Entries, NotIndexed>;
}

/// Under what a recording is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entries {
    /// Under these entries.
    These(Vec<IndexEntry>),
    /// Under some that only others can make: they are asked to.
    Wanted,
}

impl Entries {
    /// Returns the objects that are to be put, in their order.
    pub(super) fn objects(self, tenant: TenantTag, recording: RecordingId) -> Vec<ObjectName> {
        match self {
            Self::These(entries) => {
                entries.into_iter().flat_map(|entry| objects(tenant, recording, entry)).collect()
            }
            Self::Wanted => vec![layout::index_wanted(tenant, recording)],
        }
    }
}

/// Why a recording has no entries.
#[derive(Debug, thiserror::Error)]
#[error("terms of a recording cannot be made blind")]
pub struct NotIndexed {
    /// Whether trying again may help.
    pub is_retryable: bool,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The objects of an entry, in the order in which they are put.
fn objects(tenant: TenantTag, recording: RecordingId, entry: IndexEntry) -> [ObjectName; 2] {
    [layout::index_of(tenant, recording, entry), layout::index_entry(tenant, entry, recording)]
}

/// Puts the entries of a finished recording that ended at `ended`; those that are there stay. Nothing stays of one that
/// is being deleted.
///
/// # Errors
/// [`StoreError`]; some may be there, and calling again is safe.
pub async fn put_entries(
    requests: Requests<'_>,
    retention: RetentionTags,
    recording: RecordingId,
    (entries, ended): (&[IndexEntry], UnixMillis),
) -> Result<(), StoreError> {
    let tags = retention.index_tags(ended);
    for name in entries.iter().flat_map(|entry| objects(retention.tenant, recording, *entry)) {
        requests.put(&name, Bytes::new(), &tags).await?;
    }
    requests.patiently(|| see_to_order(requests.store(), retention.tenant, recording)).await
}

/// Does with entries that have come late what an order about their recording has done with all others.
pub(super) async fn see_to_order(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
) -> Result<(), StoreError> {
    let order = newest_order(store, tenant, recording).await?.map_or(Order::NONE, |(_, order)| order);
    if order.deletion.is_some() || is_deleted(store, tenant, recording).await? {
        return remove_entries(store, tenant, recording).await;
    }
    if order.changes_tags() { tag_order(store, tenant, recording, &order).await } else { Ok(()) }
}

async fn is_deleted(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
) -> Result<bool, StoreError> {
    match store.head(&layout::receipt(tenant, recording)).await {
        Err(StoreError::NotFound) => Ok(false),
        found => found.map(|_| true),
    }
}

/// Returns the entries of a recording.
///
/// # Errors
/// [`StoreError`].
pub async fn entries_of(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
) -> Result<Vec<IndexEntry>, StoreError> {
    let (prefix, mut after, mut entries) = (layout::index_of_prefix(tenant, recording), None, Vec::new());
    loop {
        let page = store.list_after(&prefix, after.as_ref(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(entries) };
        after = Some(last.name.clone());
        entries.extend(page.iter().filter_map(|object| layout::index_entry_of(&object.name)));
    }
}

/// Removes the entries of a recording that are not among `kept`, with all versions.
///
/// # Errors
/// [`StoreError`]; some may be gone, and calling again is safe.
pub async fn remove_other_entries(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
    kept: &[IndexEntry],
) -> Result<(), StoreError> {
    for entry in entries_of(store, tenant, recording).await? {
        if !kept.contains(&entry) {
            for name in objects(tenant, recording, entry).iter().rev() {
                store.purge(name.as_str()).await?;
            }
        }
    }
    Ok(())
}

/// Removes every entry of a recording, with all versions.
///
/// # Errors
/// [`StoreError`]; some may be gone, and calling again is safe.
pub async fn remove_entries(
    store: &dyn Store,
    tenant: TenantTag,
    recording: RecordingId,
) -> Result<(), StoreError> {
    let entries = entries_of(store, tenant, recording).await?;
    let names: Vec<_> =
        entries.into_iter().map(|entry| layout::index_entry(tenant, entry, recording)).collect();
    if store.profile().versions {
        for name in &names {
            store.purge(name.as_str()).await?;
        }
    } else if !names.is_empty() {
        store.delete_all(&names).await?;
    }
    store.purge(&layout::index_of_prefix(tenant, recording)).await?;
    Ok(())
}
