//! The revisions of tenants in the store: each created once, the highest counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::StoredTenants;
use crate::domain::ids::TenantTag;
use crate::domain::time::UnixMillis;
use crate::store::{ObjectClass, ObjectName, PutOutcome, Store, StoreError, Tags, layout};

use super::revision::{MAX_BYTES, NoRevision, Revision};

/// Objects listed at a time.
const PAGE: usize = 1000;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Where names are not created once: how long another node that makes the same revision may be on its way.
const RACE: Duration = Duration::from_secs(1);

/// Why a revision is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    /// The store; after a put the revision may be there all the same.
    #[error("store of tenants")]
    Store(#[from] StoreError),
    /// The store did not answer in time.
    #[error("store did not answer in time")]
    TimedOut,
    /// What is there cannot be used.
    #[error("revision {revision} of a tenant {source}")]
    Unreadable {
        /// Which.
        revision: u32,
        /// Why.
        source: NoRevision,
    },
    /// Nothing can be sealed: no random bytes, or more than a revision may have.
    #[error("revision cannot be sealed")]
    Seal,
}

/// Reads and writes revisions.
#[derive(Clone)]
pub struct Book {
    store: Arc<dyn Store>,
    keys: Arc<StoredTenants>,
}

impl Book {
    /// Keeps revisions in `store`, sealed with `keys`.
    pub fn new(store: Arc<dyn Store>, keys: &StoredTenants) -> Self {
        Self { store, keys: Arc::new(keys.clone()) }
    }

    /// Returns how tenants are kept.
    pub fn rules(&self) -> &StoredTenants {
        &self.keys
    }

    /// Returns the key that names of kept secrets are made with.
    pub fn naming_key(&self) -> &[u8] {
        self.keys.keys.get(&self.keys.kid).map_or(&[], |key| key.expose())
    }

    /// Returns the newest revision of every tenant.
    ///
    /// # Errors
    /// [`BookError`].
    pub async fn list(&self) -> Result<BTreeMap<TenantTag, u32>, BookError> {
        let (mut newest, mut after) = (BTreeMap::new(), None::<ObjectName>);
        loop {
            let listing = self.store.list_after(layout::TENANTS_PREFIX, after.as_ref(), PAGE);
            let page = in_time(listing).await?;
            // Digits of one width are in the order of their numbers, so that the last one of a tenant is its newest.
            newest.extend(page.iter().filter_map(|object| layout::tenant_revision_of(&object.name)));
            if page.len() < PAGE {
                return Ok(newest);
            }
            after = page.last().map(|object| object.name.clone());
        }
    }

    /// Returns the numbers of a tenant's revisions, the oldest first.
    ///
    /// # Errors
    /// [`BookError`].
    pub async fn revisions(&self, tag: TenantTag) -> Result<Vec<u32>, BookError> {
        let (mut found, mut after) = (Vec::new(), None::<ObjectName>);
        loop {
            let page =
                in_time(self.store.list_after(&layout::tenant_prefix(tag), after.as_ref(), PAGE)).await?;
            let of_page = page.iter().filter_map(|object| layout::tenant_revision_of(&object.name));
            found.extend(of_page.map(|(_, revision)| revision));
            if page.len() < PAGE {
                return Ok(found);
            }
            after = page.last().map(|object| object.name.clone());
        }
    }

    /// Reads one revision.
    ///
    /// # Errors
    /// [`BookError`].
    pub async fn read(&self, tag: TenantTag, revision: u32) -> Result<Revision, BookError> {
        self.open(tag, revision, &self.sealed(tag, revision).await?)
    }

    /// Reads one revision without opening it.
    pub(super) async fn sealed(&self, tag: TenantTag, revision: u32) -> Result<Bytes, BookError> {
        let name = layout::tenant_revision(tag, revision);
        if in_time(self.store.head(&name)).await?.size > MAX_BYTES {
            return Err(BookError::Unreadable { revision, source: NoRevision::Damaged });
        }
        Ok(in_time(self.store.get(&name, None)).await?.bytes)
    }

    /// Opens what lies in the place of a revision.
    pub(super) fn open(&self, tag: TenantTag, revision: u32, object: &[u8]) -> Result<Revision, BookError> {
        let opened = Revision::open(object, (tag, revision), &self.keys);
        opened.map_err(|source| BookError::Unreadable { revision, source })
    }

    /// Reads the newest revision of a tenant; `None` for one that the store does not have.
    ///
    /// # Errors
    /// [`BookError`].
    pub async fn newest(&self, tag: TenantTag) -> Result<Option<Revision>, BookError> {
        match self.revisions(tag).await?.last() {
            Some(newest) => self.read(tag, *newest).await.map(Some),
            None => Ok(None),
        }
    }

    /// Creates a revision; answers whether it is the one that is there now, and not somebody else's of that number.
    ///
    /// # Errors
    /// [`BookError`]; it may be there all the same.
    pub async fn put(&self, tag: TenantTag, revision: &Revision) -> Result<bool, BookError> {
        let name = layout::tenant_revision(tag, revision.revision);
        let object = revision.seal(&self.keys).ok_or(BookError::Seal)?;
        if object.len() as u64 > MAX_BYTES {
            return Err(BookError::Seal);
        }
        let tags = Tags::of(tag, ObjectClass::Tenant);
        let outcome = in_time(self.store.put_new(&name, object.clone(), &tags)).await?;
        if outcome == PutOutcome::Created {
            if self.store.profile().create_once {
                return Ok(true);
            }
            tokio::time::sleep(RACE).await;
        }
        // Each is sealed with other random bytes. A taken name may also be ours, put by a request that was repeated.
        Ok(in_time(self.store.get(&name, None)).await?.bytes == object)
    }

    /// Reads the store's clock.
    ///
    /// # Errors
    /// [`BookError`].
    pub async fn now(&self) -> Result<UnixMillis, BookError> {
        in_time(self.store.now()).await
    }
}

async fn in_time<T>(request: impl Future<Output = Result<T, StoreError>>) -> Result<T, BookError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(BookError::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use super::super::revision::tests::{keys, revision};
    use super::*;
    use crate::store::folder::Folder;

    #[tokio::test]
    async fn the_highest_number_counts_and_each_is_somebodys() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Folder::open(dir.path()).await.unwrap());
        let book = Book::new(Arc::clone(&store), &keys(&["s1"]));
        let tag = revision("acme", 1).id().unwrap().tag();
        assert_eq!(book.newest(tag).await.unwrap(), None);
        for number in 1..=11 {
            assert!(book.put(tag, &revision("acme", number)).await.unwrap());
        }
        let mut late = revision("acme", 11);
        late.by = "somebody else".to_owned();
        assert!(!book.put(tag, &late).await.unwrap(), "the number is taken");
        assert_eq!(book.newest(tag).await.unwrap(), Some(revision("acme", 11)));
        assert_eq!(book.list().await.unwrap(), BTreeMap::from([(tag, 11)]));
        assert_eq!(book.revisions(tag).await.unwrap(), (1..=11).collect::<Vec<_>>());
        let foreign = Book::new(store, &keys(&["s2"]));
        assert!(matches!(foreign.newest(tag).await, Err(BookError::Unreadable { revision: 11, .. })));
    }
}
