//! The outbox: notices in the store, from when they are written to when a receiver has them or their time is over.
//!
//! State is a series of objects that are created once, as everywhere in the store. A notice waits as object `0000`; whoever
//! creates object `0001` makes the first attempt, and so on, so that no attempt is made by two nodes. A notice that was
//! delivered, or is dead, lies in another place for a while, where a repetition of the same event finds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use crate::clock;
use crate::domain::cmr::Dek;
use crate::domain::ids::{NoticeId, RecordingId, TenantId, TenantTag};
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService, Minted};
use crate::store::layout::{self, NoticePlace};
use crate::store::{ObjectClass, ObjectName, PutOutcome, Store, StoreError, Tags};

use super::record::{Attempt, Damaged, Place, Settled, key_of};

/// How long a key of the outbox is used for new objects.
const KEY_AGE: Duration = Duration::from_secs(24 * 3600);
/// How long one request may take: as long as one of an upload.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Objects listed at a time.
const PAGE: usize = 1000;
/// Keys of this process that are remembered for each tenant, so that it opens what it has written.
const KEYS: usize = 3;

/// Why the outbox does not take or give a notice.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The store.
    #[error("store of notices")]
    Store(#[from] StoreError),
    /// The key.
    #[error("key of notices")]
    Key(#[from] KeyError),
    /// An object that does not open.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// The store did not answer in time.
    #[error("store did not answer in time")]
    TimedOut,
    /// An object cannot be sealed: no random bytes.
    #[error("notice cannot be sealed")]
    Seal,
}

impl OutboxError {
    /// Whether the notice is not there, or nobody will ever read it.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Store(StoreError::NotFound) | Self::Damaged(_) | Self::Key(KeyError::NoEnvelope))
    }
}

/// A notice that waits, as a listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub notice: NoticeId,
    /// How many attempts were begun.
    pub attempts: u32,
    /// When it was put, by the store's clock.
    pub put_at: UnixMillis,
    /// When the last attempt was begun, or it was put.
    pub last_at: UnixMillis,
}

/// A key of the outbox.
struct Key {
    id: RecordingId,
    dek: Arc<Dek>,
    since: Instant,
}

/// The outbox of all tenants.
pub struct Outbox {
    pub(super) store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    pub(super) node: String,
    own: Mutex<HashMap<TenantTag, Arc<OwnKeys>>>,
}

/// The keys that this process has minted for a tenant.
#[derive(Default)]
struct OwnKeys {
    /// Newest last.
    keys: Mutex<Vec<Key>>,
    /// So that a key is minted once.
    minting: tokio::sync::Mutex<()>,
}

impl Outbox {
    /// Keeps notices in `store`; `node` stands in their attempts.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, node: String) -> Self {
        Self { store, keys, node, own: Mutex::default() }
    }

    /// Sees to it that new notices of a tenant can be sealed, also when the key service is away later.
    ///
    /// # Errors
    /// [`OutboxError::Key`].
    pub async fn prepare(&self, tenant: &TenantId) -> Result<(), OutboxError> {
        self.key(tenant).await.map(drop)
    }

    /// Puts a notice, unless it is there.
    ///
    /// # Errors
    /// [`OutboxError`]; it may be there all the same, and calling again is safe.
    pub async fn put(
        &self,
        tenant: &TenantId,
        notice: NoticeId,
        body: &[u8],
    ) -> Result<PutOutcome, OutboxError> {
        let tag = tenant.tag();
        let place = Place { tenant: tag, notice, place: NoticePlace::Waiting, attempt: 0 };
        self.put_sealed(tenant, &layout::waiting_notice(tag, notice, 0), place, body).await
    }

    /// Reads the body of a notice that waits.
    ///
    /// # Errors
    /// [`OutboxError`]; [`StoreError::NotFound`] if it does not wait any more.
    pub async fn body(&self, tenant: &TenantId, notice: NoticeId) -> Result<Vec<u8>, OutboxError> {
        let tag = tenant.tag();
        let place = Place { tenant: tag, notice, place: NoticePlace::Waiting, attempt: 0 };
        self.read(tenant, &layout::waiting_notice(tag, notice, 0), place).await
    }

    /// Begins attempt `attempt`; answers whether it is ours to make. `last` is what came of the one before.
    ///
    /// # Errors
    /// [`OutboxError`]; then it is not to be made.
    pub(super) async fn begin_attempt(
        &self,
        tenant: &TenantId,
        notice: NoticeId,
        attempt: u32,
        last: Option<String>,
    ) -> Result<bool, OutboxError> {
        let tag = tenant.tag();
        let place = Place { tenant: tag, notice, place: NoticePlace::Waiting, attempt };
        let begun = Attempt { v: 1, at: clock::rfc3339(clock::wall()), node: self.node.clone(), last };
        let name = layout::waiting_notice(tag, notice, attempt);
        Ok(self.put_sealed(tenant, &name, place, &json(&begun)).await? == PutOutcome::Created)
    }

    /// Whether a notice was delivered before.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub(super) async fn is_sent(&self, tag: TenantTag, notice: NoticeId) -> Result<bool, OutboxError> {
        let name = layout::settled_notice(tag, NoticePlace::Sent, notice);
        match in_time(self.store.head(&name)).await {
            Ok(_) => Ok(true),
            Err(OutboxError::Store(StoreError::NotFound)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts a notice where it waits no more, and takes it out of the queue.
    ///
    /// # Errors
    /// [`OutboxError`]; calling again is safe.
    pub(super) async fn settle(
        &self,
        tenant: &TenantId,
        notice: NoticeId,
        place: NoticePlace,
        settled: &Settled,
    ) -> Result<(), OutboxError> {
        let tag = tenant.tag();
        let name = layout::settled_notice(tag, place, notice);
        let place = Place { tenant: tag, notice, place, attempt: 0 };
        self.put_sealed(tenant, &name, place, &json(settled)).await?;
        self.take_out(tag, notice).await
    }

    /// Reads a notice that waits no more; `None` if it is not there.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub async fn settled(
        &self,
        tenant: &TenantId,
        place: NoticePlace,
        notice: NoticeId,
    ) -> Result<Option<Settled>, OutboxError> {
        let tag = tenant.tag();
        let name = layout::settled_notice(tag, place, notice);
        let text = match self.read(tenant, &name, Place { tenant: tag, notice, place, attempt: 0 }).await {
            Err(OutboxError::Store(StoreError::NotFound)) => return Ok(None),
            text => text?,
        };
        Ok(Some(serde_json::from_slice(&text).map_err(|_| Damaged)?))
    }

    /// Reads the note of an attempt.
    pub(super) async fn attempt(
        &self,
        tenant: &TenantId,
        notice: NoticeId,
        attempt: u32,
    ) -> Result<Attempt, OutboxError> {
        let tag = tenant.tag();
        let place = Place { tenant: tag, notice, place: NoticePlace::Waiting, attempt };
        let text = self.read(tenant, &layout::waiting_notice(tag, notice, attempt), place).await?;
        Ok(serde_json::from_slice(&text).map_err(|_| Damaged)?)
    }

    /// Counts the attempts that were begun for a notice.
    pub(super) async fn attempts(&self, tag: TenantTag, notice: NoticeId) -> Result<u32, OutboxError> {
        let prefix = layout::waiting_prefix(tag, notice);
        let objects = in_time(self.store.list_after(&prefix, None, PAGE)).await?;
        let last = objects.last().and_then(|object| layout::notice_of(&object.name));
        Ok(last.map_or(0, |(_, attempt)| attempt))
    }

    /// Takes a notice and its attempts out of the queue.
    ///
    /// # Errors
    /// [`OutboxError`]; calling again is safe.
    pub(super) async fn take_out(&self, tag: TenantTag, notice: NoticeId) -> Result<(), OutboxError> {
        self.remove(&layout::waiting_prefix(tag, notice)).await
    }

    /// Removes attempts of a notice that is not there.
    ///
    /// # Errors
    /// [`OutboxError`]; calling again is safe.
    pub(super) async fn drop_attempts(&self, tag: TenantTag, notice: NoticeId) -> Result<(), OutboxError> {
        let prefix = layout::waiting_prefix(tag, notice);
        let objects = in_time(self.store.list_after(&prefix, None, PAGE)).await?;
        let names = objects.into_iter().map(|object| object.name);
        let is_attempt = |name: &ObjectName| layout::notice_of(name).is_none_or(|(_, attempt)| attempt > 0);
        for name in names.filter(is_attempt) {
            self.remove(name.as_str()).await?;
        }
        Ok(())
    }

    /// Forgets a notice that waits no more.
    ///
    /// # Errors
    /// [`OutboxError`]; calling again is safe.
    pub(super) async fn forget(
        &self,
        tag: TenantTag,
        place: NoticePlace,
        notice: NoticeId,
    ) -> Result<(), OutboxError> {
        self.remove(layout::settled_notice(tag, place, notice).as_str()).await
    }

    /// Lists what waits, in the order of ids: at most `limit` notices, and how many there are.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub async fn waiting(
        &self,
        tag: TenantTag,
        limit: usize,
    ) -> Result<(Vec<Waiting>, usize, Option<UnixMillis>), OutboxError> {
        let prefix = layout::notices_prefix(tag, NoticePlace::Waiting);
        let (mut found, mut count, mut oldest) = (Vec::<Waiting>::new(), 0, None::<UnixMillis>);
        let (mut after, mut current) = (None, None);
        loop {
            let page = in_time(self.store.list_after(&prefix, after.as_ref(), PAGE)).await?;
            for object in &page {
                let Some((notice, attempt)) = layout::notice_of(&object.name) else { continue };
                let at = object.modified.unwrap_or(UnixMillis(0));
                if current != Some(notice) {
                    current = Some(notice);
                    count += 1;
                    oldest = Some(oldest.map_or(at, |oldest| oldest.min(at)));
                    if found.len() < limit {
                        found.push(Waiting { notice, attempts: attempt, put_at: at, last_at: at });
                    }
                } else if let Some(last) = found.last_mut().filter(|last| last.notice == notice) {
                    (last.attempts, last.last_at) = (attempt, at);
                }
            }
            if page.len() < PAGE {
                return Ok((found, count, oldest));
            }
            after = page.last().map(|object| object.name.clone());
        }
    }

    /// Lists the notices that lie in a place, with when they came there; at most `limit`.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub(super) async fn list_settled(
        &self,
        tag: TenantTag,
        place: NoticePlace,
        limit: usize,
    ) -> Result<Vec<(NoticeId, Option<UnixMillis>)>, OutboxError> {
        let prefix = layout::notices_prefix(tag, place);
        let (mut found, mut after) = (Vec::new(), None);
        while found.len() < limit {
            let page = in_time(self.store.list_after(&prefix, after.as_ref(), PAGE)).await?;
            let notices =
                page.iter().filter_map(|object| Some((layout::notice_of(&object.name)?.0, object.modified)));
            found.extend(notices);
            if page.len() < PAGE {
                break;
            }
            after = page.last().map(|object| object.name.clone());
        }
        found.truncate(limit);
        Ok(found)
    }

    /// Lists the ids of the notices in a place, in their order; at most `limit` after `after`.
    ///
    /// # Errors
    /// [`OutboxError`].
    pub(super) async fn ids_after(
        &self,
        tag: TenantTag,
        place: NoticePlace,
        after: Option<NoticeId>,
        limit: usize,
    ) -> Result<Vec<NoticeId>, OutboxError> {
        let prefix = layout::notices_prefix(tag, place);
        // Behind all attempts of a notice that waits, and behind a settled one.
        let mut after = after.and_then(|notice| ObjectName::new(format!("{prefix}{notice}/z")).ok());
        let mut found: Vec<NoticeId> = Vec::new();
        loop {
            let page = in_time(self.store.list_after(&prefix, after.as_ref(), PAGE)).await?;
            let ids = page.iter().filter_map(|object| Some(layout::notice_of(&object.name)?.0));
            found.extend(ids);
            found.dedup();
            if found.len() >= limit || page.len() < PAGE {
                found.truncate(limit);
                return Ok(found);
            }
            after = page.last().map(|object| object.name.clone());
        }
    }

    /// Reads the store's clock.
    pub(super) async fn now(&self) -> Result<UnixMillis, OutboxError> {
        in_time(self.store.now()).await
    }

    async fn remove(&self, prefix: &str) -> Result<(), OutboxError> {
        if self.store.profile().versions {
            in_time(self.store.purge(prefix)).await?;
            return Ok(());
        }
        let objects = in_time(self.store.list_after(prefix, None, PAGE)).await?;
        let mut names: Vec<ObjectName> = objects.into_iter().map(|object| object.name).collect();
        // The notice goes last: attempts without one would be nobody's.
        names.reverse();
        in_time(self.store.delete_all(&names)).await
    }

    async fn put_sealed(
        &self,
        tenant: &TenantId,
        name: &ObjectName,
        place: Place,
        text: &[u8],
    ) -> Result<PutOutcome, OutboxError> {
        let (key_id, dek) = self.key(tenant).await?;
        let object = place.seal(key_id, &dek, text).ok_or(OutboxError::Seal)?;
        let tags = Tags::of(tenant.tag(), ObjectClass::Notice);
        in_time(self.store.put_new(name, Bytes::from(object), &tags)).await
    }

    async fn read(&self, tenant: &TenantId, name: &ObjectName, place: Place) -> Result<Vec<u8>, OutboxError> {
        let object = in_time(self.store.get(name, None)).await?.bytes;
        let key_id = key_of(&object)?;
        let own = self.own(tenant.tag());
        let own = own.keys().iter().find(|key| key.id == key_id).map(|key| Arc::clone(&key.dek));
        let dek = match own {
            Some(dek) => dek,
            None => self.keys.open(tenant, key_id).await?.dek,
        };
        Ok(place.open(&dek, &object)?.to_vec())
    }

    /// Returns the key for new objects of a tenant; one that is too old is replaced, if another can be had.
    async fn key(&self, tenant: &TenantId) -> Result<(RecordingId, Arc<Dek>), OutboxError> {
        let own = self.own(tenant.tag());
        if let Some((id, dek, false)) = own.newest() {
            return Ok((id, dek));
        }
        let _minting = own.minting.lock().await;
        let present = match own.newest() {
            Some((id, dek, false)) => return Ok((id, dek)),
            present => present,
        };
        match (self.keys.mint(tenant).await, present) {
            (Ok(Minted { ids, dek, .. }), _) => {
                let key = Key { id: ids.recording, dek: Arc::new(dek), since: clock::monotonic() };
                let newest = (key.id, Arc::clone(&key.dek));
                let mut keys = own.keys();
                keys.push(key);
                if keys.len() > KEYS {
                    keys.remove(0);
                }
                Ok(newest)
            }
            (Err(_), Some((id, dek, _))) => Ok((id, dek)),
            (Err(error), None) => Err(error.into()),
        }
    }

    fn own(&self, tag: TenantTag) -> Arc<OwnKeys> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(own.entry(tag).or_default())
    }
}

impl OwnKeys {
    /// Returns the newest key, and whether it is old.
    fn newest(&self) -> Option<(RecordingId, Arc<Dek>, bool)> {
        let keys = self.keys();
        let key = keys.last()?;
        Some((key.id, Arc::clone(&key.dek), clock::since(key.since) > KEY_AGE))
    }

    fn keys(&self) -> MutexGuard<'_, Vec<Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn in_time<T>(request: impl Future<Output = Result<T, StoreError>>) -> Result<T, OutboxError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(OutboxError::TimedOut),
    }
}

/// Plain records always have a JSON form.
fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).unwrap_or_default()
}
