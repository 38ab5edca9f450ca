//! The key service: mints DEKs ahead of need and opens envelopes for playback.
//!
//! A small pool per active tenant holds DEKs whose envelopes are already durable, so that a call does not wait for the
//! key provider or the store. An entry that nobody takes is erased after ten minutes. Opened DEKs are cached for at most
//! five minutes: that time is how long a destroyed key may still play.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::clock;
use crate::domain::cmr::{Dek, Expected};
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::store::{ObjectClass, ObjectName, PutOutcome, Store, StoreError, Tags};

use super::envelope::{Envelope, envelope_name, envelope_prefix};
use super::{KeyError, KeyProvider, fill_random};

/// How many minted DEKs wait per tenant: a burst of calls of one second.
const POOL_SIZE: usize = 8;
/// How long a minted DEK may wait.
const POOL_AGE: Duration = Duration::from_secs(600);
/// How long an opened DEK may be used for playback.
const CACHE_AGE: Duration = Duration::from_secs(300);
/// How many opened DEKs are kept: one per concurrent listener.
const CACHE_SIZE: usize = 1024;
/// How long one mint may take; a call start never waits longer.
const MINT_TIMEOUT: Duration = Duration::from_secs(5);

/// A DEK whose envelope is durable, and the recording it was made for.
#[derive(Debug)]
pub struct Minted {
    /// Tenant, recording and key.
    pub ids: Expected,
    /// The key.
    pub dek: Dek,
    minted_at: Instant,
}

/// A DEK opened from its envelope.
#[derive(Debug, Clone)]
pub struct OpenedKey {
    /// Tenant, recording and key.
    pub ids: Expected,
    /// The key.
    pub dek: Arc<Dek>,
}

/// Mints and opens DEKs.
pub struct KeyService {
    pub(super) provider: Arc<dyn KeyProvider>,
    pub(super) store: Arc<dyn Store>,
    pool: Mutex<HashMap<TenantId, Vec<Minted>>>,
    cache: Mutex<HashMap<RecordingId, (OpenedKey, Instant)>>,
}

impl KeyService {
    /// Wraps with `provider`, keeps envelopes in `store`.
    pub fn new(provider: Arc<dyn KeyProvider>, store: Arc<dyn Store>) -> Self {
        Self { provider, store, pool: Mutex::default(), cache: Mutex::default() }
    }

    /// Takes a DEK for a new recording: from the pool, or minted now.
    ///
    /// # Errors
    /// [`KeyError`]; nothing may be recorded then.
    pub async fn take(self: &Arc<Self>, tenant: &TenantId) -> Result<Minted, KeyError> {
        let pooled = self.pool().get_mut(tenant).and_then(Vec::pop);
        let minted = match pooled.filter(|minted| clock::since(minted.minted_at) < POOL_AGE) {
            Some(minted) => Ok(minted),
            None => self.mint(tenant).await,
        };
        let service = Arc::clone(self);
        let refilled = tenant.clone();
        tokio::spawn(async move { service.refill(&refilled).await });
        minted
    }

    /// Gives a DEK back that was taken and not used.
    pub fn give_back(&self, tenant: &TenantId, minted: Minted) {
        self.pool().entry(tenant.clone()).or_default().push(minted);
    }

    /// Mints a DEK and stores its envelope.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn mint(&self, tenant: &TenantId) -> Result<Minted, KeyError> {
        let minting = async {
            let mut random = [0; 10];
            fill_random(&mut random)?;
            let recording = RecordingId::new(clock::wall().0, &random);
            let dek = Dek::filled_by(|key| fill_random(key))?;
            let tag = tenant.tag();
            let ids = Expected { tenant: tag, recording, key: dek.key_id(tag, recording) };
            let wrap = self.provider.wrap(tenant, &ids, &dek).await?;
            self.put_envelope(&ids, &Envelope::new(&ids, wrap)).await?;
            Ok(Minted { ids, dek, minted_at: clock::monotonic() })
        };
        let minted = tokio::time::timeout(MINT_TIMEOUT, minting).await.unwrap_or(Err(KeyError::TimedOut));
        if minted.is_err() {
            metrics::counter!(crate::observe::metrics::KEY_ERRORS).increment(1);
        }
        minted
    }

    /// Opens the DEK of a recording for reading.
    ///
    /// # Errors
    /// [`KeyError::NoEnvelope`] for an unknown recording; see [`KeyError`].
    pub async fn open(&self, tenant: &TenantId, recording: RecordingId) -> Result<OpenedKey, KeyError> {
        if let Some(opened) = self.cached(tenant, recording) {
            return Ok(opened);
        }
        let (ids, dek) = match self.open_stored(tenant, recording).await {
            // A rewrap may destroy the revision between its listing and its reading; the next one is there then.
            Err(KeyError::NoEnvelope) => self.open_stored(tenant, recording).await,
            opened => opened,
        }?;
        let opened = OpenedKey { ids, dek: Arc::new(dek) };
        self.remember(&opened);
        Ok(opened)
    }

    async fn open_stored(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
    ) -> Result<(Expected, Dek), KeyError> {
        let newest = self.newest_envelope(tenant.tag(), recording).await?.ok_or(KeyError::NoEnvelope)?;
        let wrap = newest.envelope.wraps.first().ok_or(KeyError::BadEnvelope("no wrap"))?;
        let dek = self.provider.unwrap(tenant, &newest.ids, wrap).await?;
        if dek.key_id(newest.ids.tenant, recording) != newest.ids.key {
            return Err(KeyError::BadEnvelope("opens to another key"));
        }
        Ok((newest.ids, dek))
    }

    /// Whether a recording has an envelope in the store; what this process knows by heart does not count.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has_envelope(&self, tenant: TenantTag, recording: RecordingId) -> Result<bool, StoreError> {
        let revisions = self.store.list_after(&envelope_prefix(tenant, recording), None, 1).await?;
        Ok(!revisions.is_empty())
    }

    /// Destroys the DEK of a recording: all revisions and versions of its envelope, and the copy in this process. From
    /// then on nobody can open the recording.
    ///
    /// # Errors
    /// [`StoreError`]; the envelope may be gone all the same, and calling again is safe.
    pub async fn shred(&self, tenant: TenantTag, recording: RecordingId) -> Result<(), StoreError> {
        let purged = self.store.purge(&envelope_prefix(tenant, recording)).await;
        self.cache().remove(&recording);
        purged.map(drop)
    }

    /// Erases the envelopes of all pooled DEKs: at shutdown.
    pub async fn erase_pool(&self) {
        let pooled: Vec<_> = self.pool().drain().flat_map(|(_, minted)| minted).collect();
        self.erase(pooled).await;
    }

    /// Erases pooled DEKs that have waited too long. To be called about once a minute.
    pub async fn expire_pool(&self) {
        let mut stale = Vec::new();
        for pooled in self.pool().values_mut() {
            let (old, fresh) = std::mem::take(pooled)
                .into_iter()
                .partition(|minted| clock::since(minted.minted_at) >= POOL_AGE);
            *pooled = fresh;
            stale.extend::<Vec<_>>(old);
        }
        self.erase(stale).await;
        self.cache().retain(|_, (_, opened_at)| clock::since(*opened_at) < CACHE_AGE);
    }

    async fn refill(&self, tenant: &TenantId) {
        while self.pool().get(tenant).map_or(0, Vec::len) < POOL_SIZE {
            match self.mint(tenant).await {
                Ok(minted) => self.give_back(tenant, minted),
                Err(error) => {
                    tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "cannot mint a key ahead");
                    return;
                }
            }
        }
    }

    async fn erase(&self, minted: Vec<Minted>) {
        for Minted { ids, .. } in minted {
            // It may have been moved to a newer KEK meanwhile.
            if let Err(error) = self.store.purge(&envelope_prefix(ids.tenant, ids.recording)).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(recording = %ids.recording, error, "unused envelope stays in the store");
            }
        }
    }

    async fn put_envelope(&self, ids: &Expected, envelope: &Envelope) -> Result<(), KeyError> {
        let json = serde_json::to_vec(envelope).map_err(|_| KeyError::BadEnvelope("not JSON"))?;
        let name: ObjectName = envelope_name(ids.tenant, ids.recording, 0);
        let tags = Tags::of(ids.tenant, ObjectClass::Envelope);
        match self.store.put_new(&name, Bytes::from(json), &tags).await? {
            PutOutcome::Created => Ok(()),
            PutOutcome::AlreadyExists => Err(KeyError::BadEnvelope("exists before its recording")),
        }
    }

    fn cached(&self, tenant: &TenantId, recording: RecordingId) -> Option<OpenedKey> {
        let cache = self.cache();
        let (opened, opened_at) = cache.get(&recording)?;
        let usable = opened.ids.tenant == tenant.tag() && clock::since(*opened_at) < CACHE_AGE;
        usable.then(|| opened.clone())
    }

    fn remember(&self, opened: &OpenedKey) {
        let mut cache = self.cache();
        if cache.len() >= CACHE_SIZE {
            cache.clear();
        }
        cache.insert(opened.ids.recording, (opened.clone(), clock::monotonic()));
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, HashMap<TenantId, Vec<Minted>>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, HashMap<RecordingId, (OpenedKey, Instant)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
