//! The key service: mints DEKs ahead of need and opens envelopes for playback.
//!
//! A small pool per active tenant holds DEKs whose envelopes are already durable, so that a call does not wait for the
//! key service or the store. An entry that nobody takes is erased after ten minutes. Opened DEKs are cached for at most
//! five minutes. These times are how long a KEK that was withdrawn, or a DEK that was destroyed, may still be of use.
//!
//! A wrap is opened once before its DEK is handed out: nothing is ever recorded under an envelope that does not open. A node
//! that only records cannot do that; what it does instead is in `recipient`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;

use crate::clock;
use crate::domain::cmr::{Dek, Expected};
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::jitter::jittered;
use crate::locked;
use crate::observe::metrics as names;
use crate::store::{ObjectClass, ObjectName, PutOutcome, Store, StoreError, Tags};

use super::envelope::{Envelope, Wrap, envelope_name, envelope_prefix};
use super::pool::{Pool, Taken};
use super::{KeyError, KeyProvider, fill_random};

/// How long an opened DEK may be used for playback.
const CACHE_AGE: Duration = Duration::from_secs(300);
/// How many opened DEKs are kept: one per concurrent listener.
const CACHE_SIZE: usize = 1024;
/// How long one mint may take; a call start never waits longer.
pub(super) const MINT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after the first failure to mint ahead; it doubles up to the longest one. That is how long calls may go
/// unrecorded after a key service has come back.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// DEKs minted at the same time for one tenant: with a key service that takes half a second, four calls a second.
const MINTED_AT_ONCE: usize = 4;

/// A DEK whose envelope is durable, and the recording it was made for.
#[derive(Debug)]
pub struct Minted {
    /// Tenant, recording and key.
    pub ids: Expected,
    /// The key.
    pub dek: Dek,
    minted_at: Instant,
    /// See [`Pool::generation`].
    pub(super) generation: u64,
}

impl Minted {
    pub(super) fn age(&self) -> Duration {
        clock::since(self.minted_at)
    }
}

/// A DEK opened from its envelope.
#[derive(Debug, Clone)]
pub struct OpenedKey {
    /// Tenant, recording and key.
    pub ids: Expected,
    /// The key.
    pub dek: Arc<Dek>,
}

/// Index keys of all tenants have the same id.
type CacheKey = (TenantTag, RecordingId);

/// Mints and opens DEKs.
pub struct KeyService {
    pub(super) provider: Arc<dyn KeyProvider>,
    pub(super) store: Arc<dyn Store>,
    pool: Pool,
    cache: Mutex<HashMap<CacheKey, (OpenedKey, Instant)>>,
}

impl KeyService {
    /// Wraps with `provider`, keeps envelopes in `store`.
    pub fn new(provider: Arc<dyn KeyProvider>, store: Arc<dyn Store>) -> Self {
        Self { provider, store, pool: Pool::default(), cache: Mutex::default() }
    }

    /// Whether this node opens recordings; else [`KeyService::open`] answers [`KeyError::WriteOnly`].
    pub fn opens(&self) -> bool {
        self.provider.opens()
    }

    /// Takes a DEK for a new recording: from the pool, or minted now.
    ///
    /// Waits for a key service only when the pool is empty and the last mint succeeded.
    ///
    /// # Errors
    /// [`KeyError`]; nothing may be recorded then.
    pub async fn take(self: &Arc<Self>, tenant: &TenantId) -> Result<Minted, KeyError> {
        let Taken { minted, stale, refill, failing } = self.pool.take(tenant);
        if refill || !stale.is_empty() {
            let (service, tenant) = (Arc::clone(self), tenant.clone());
            tokio::spawn(async move {
                service.erase(stale).await;
                if refill {
                    service.refill(&tenant).await;
                }
            });
        }
        match (minted, failing) {
            (Some(minted), _) => Ok(minted),
            (None, Some(kind)) => Err(KeyError::StillFailing(kind)),
            (None, None) => self.mint(tenant).await,
        }
    }

    /// Gives a DEK back that was taken and not used.
    pub fn give_back(self: &Arc<Self>, tenant: &TenantId, minted: Minted) {
        if let Some(no_place) = self.pool.put(tenant, minted) {
            let service = Arc::clone(self);
            tokio::spawn(async move { service.erase(vec![no_place]).await });
        }
    }

    /// Returns how many DEKs are ready for a tenant.
    pub fn waiting(&self, tenant: &TenantId) -> usize {
        self.pool.waiting(tenant)
    }

    /// Mints a DEK, sees that its wrap opens, and stores its envelope.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn mint(&self, tenant: &TenantId) -> Result<Minted, KeyError> {
        let generation = self.pool.generation();
        let minting = async {
            locked::memory().admit()?;
            let mut random = [0; 10];
            fill_random(&mut random)?;
            let recording = RecordingId::new(clock::wall().0, &random);
            let dek = Dek::filled_by(|key| fill_random(key))?;
            let tag = tenant.tag();
            let ids = Expected { tenant: tag, recording, key: dek.key_id(tag, recording) };
            let wrap = self.provider.wrap(tenant, &ids, &dek).await?;
            if self.opens() {
                self.unwrap_checked(tenant, &ids, &wrap).await?;
            }
            match self.put_envelope(&ids, 0, &Envelope::new(&ids, wrap)).await? {
                PutOutcome::Created => {}
                PutOutcome::AlreadyExists => {
                    return Err(KeyError::BadEnvelope("exists before its recording"));
                }
            }
            Ok(Minted { ids, dek, minted_at: clock::monotonic(), generation })
        };
        let minted = tokio::time::timeout(MINT_TIMEOUT, minting).await.unwrap_or(Err(KeyError::TimedOut));
        self.pool.note(tenant, minted.as_ref().err().map(KeyError::label));
        noted("mint", minted)
    }

    /// Opens the DEK of a recording for reading.
    ///
    /// # Errors
    /// [`KeyError::NoEnvelope`] for an unknown recording; [`KeyError::WriteOnly`] on a node that only records; see [`KeyError`].
    pub async fn open(&self, tenant: &TenantId, recording: RecordingId) -> Result<OpenedKey, KeyError> {
        if !self.opens() {
            return Err(KeyError::WriteOnly);
        }
        if let Some(opened) = self.cached(tenant, recording) {
            return Ok(opened);
        }
        let opened = match self.open_stored(tenant, recording).await {
            // A rewrap may destroy the revision between its listing and its reading; the next one is there then.
            Err(KeyError::NoEnvelope) => self.open_stored(tenant, recording).await,
            opened => opened,
        };
        let (ids, dek) = noted("open", opened)?;
        let opened = OpenedKey { ids, dek: Arc::new(dek) };
        self.remember(&opened);
        Ok(opened)
    }

    /// Reads the envelope of a recording as it is stored.
    ///
    /// # Errors
    /// [`KeyError::NoEnvelope`] for an unknown recording; see [`KeyError`].
    pub async fn envelope(&self, tenant: &TenantId, recording: RecordingId) -> Result<Envelope, KeyError> {
        let newest = match self.newest_envelope(tenant.tag(), recording).await? {
            // As above.
            None => self.newest_envelope(tenant.tag(), recording).await?,
            newest => newest,
        };
        Ok(newest.ok_or(KeyError::NoEnvelope)?.envelope)
    }

    async fn open_stored(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
    ) -> Result<(Expected, Dek), KeyError> {
        locked::memory().admit()?;
        let newest = self.newest_envelope(tenant.tag(), recording).await?.ok_or(KeyError::NoEnvelope)?;
        let wrap = self.provider.choose(tenant, &newest.envelope.wraps)?;
        let dek = self.unwrap_checked(tenant, &newest.ids, wrap).await?;
        Ok((newest.ids, dek))
    }

    /// Opens a key from an envelope that is not in the store any more.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn open_envelope(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        json: &[u8],
    ) -> Result<OpenedKey, KeyError> {
        let (envelope, key) = Envelope::parse(json, tenant.tag(), recording)?;
        let ids = Expected { tenant: tenant.tag(), recording, key };
        let wrap = self.provider.choose(tenant, &envelope.wraps)?;
        let dek = self.unwrap_checked(tenant, &ids, wrap).await?;
        Ok(OpenedKey { ids, dek: Arc::new(dek) })
    }

    /// Unwraps a DEK and holds it against its id, so that no key service can put another one in its place.
    pub(super) async fn unwrap_checked(
        &self,
        tenant: &TenantId,
        ids: &Expected,
        wrap: &Wrap,
    ) -> Result<Dek, KeyError> {
        let dek = self.provider.unwrap(tenant, ids, wrap).await?;
        if dek.key_id(ids.tenant, ids.recording) != ids.key {
            return Err(KeyError::BadEnvelope("opens to another key"));
        }
        Ok(dek)
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
        self.forget(tenant, recording);
        purged.map(drop)
    }

    /// Erases the envelopes of all pooled DEKs, and mints none ahead any more: at shutdown.
    pub async fn erase_pool(&self) {
        self.erase(self.pool.close()).await;
    }

    /// Erases the pooled DEKs of tenants whose KEK is another one now.
    pub async fn erase_pools_of(&self, tenants: &[TenantId]) {
        self.erase(self.pool.remove(tenants)).await;
    }

    /// Erases pooled DEKs that have waited too long. To be called about once a minute.
    pub async fn expire_pool(&self) {
        self.erase(self.pool.remove_stale()).await;
        self.cache().retain(|_, (_, opened_at)| clock::since(*opened_at) < CACHE_AGE);
    }

    /// Mints until the pool is full. While that fails it tries on, ever more slowly, as long as the tenant has calls.
    async fn refill(&self, tenant: &TenantId) {
        let (mut pause, mut at_once) = (FIRST_PAUSE, MINTED_AT_ONCE);
        loop {
            let missing = self.pool.missing(tenant);
            if missing == 0 {
                return;
            }
            let minting = (0..missing.min(at_once)).map(|_| self.mint(tenant));
            let mut failed = None;
            for minted in join_all(minting).await {
                match minted.map(|minted| self.pool.put(tenant, minted)) {
                    Ok(no_place) => self.erase(no_place.into_iter().collect()).await,
                    Err(error) => failed = Some(error),
                }
            }
            let Some(error) = failed else {
                (pause, at_once) = (FIRST_PAUSE, MINTED_AT_ONCE);
                continue;
            };
            tracing::warn!(%tenant, error = &error as &dyn std::error::Error, "cannot mint a key ahead");
            tokio::time::sleep(jittered(pause)).await;
            (pause, at_once) = ((pause * 2).min(LONGEST_PAUSE), 1);
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

    pub(super) async fn put_envelope(
        &self,
        ids: &Expected,
        revision: u32,
        envelope: &Envelope,
    ) -> Result<PutOutcome, KeyError> {
        let json = serde_json::to_vec(envelope).map_err(|_| KeyError::BadEnvelope("not JSON"))?;
        let name: ObjectName = envelope_name(ids.tenant, ids.recording, revision);
        let tags = Tags::of(ids.tenant, ObjectClass::Envelope);
        Ok(self.store.put_new(&name, Bytes::from(json), &tags).await?)
    }

    /// Forgets an opened key.
    pub(super) fn forget(&self, tenant: TenantTag, recording: RecordingId) {
        self.cache().remove(&(tenant, recording));
    }

    fn cached(&self, tenant: &TenantId, recording: RecordingId) -> Option<OpenedKey> {
        let cache = self.cache();
        let (opened, opened_at) = cache.get(&(tenant.tag(), recording))?;
        let usable = clock::since(*opened_at) < CACHE_AGE;
        usable.then(|| opened.clone())
    }

    fn remember(&self, opened: &OpenedKey) {
        let mut cache = self.cache();
        if cache.len() >= CACHE_SIZE {
            cache.clear();
        }
        cache.insert((opened.ids.tenant, opened.ids.recording), (opened.clone(), clock::monotonic()));
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, HashMap<CacheKey, (OpenedKey, Instant)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a failure; that a recording is unknown is none.
pub(super) fn noted<T>(purpose: &'static str, done: Result<T, KeyError>) -> Result<T, KeyError> {
    if let Err(error) = &done
        && !matches!(error, KeyError::NoEnvelope)
    {
        metrics::counter!(names::KEY_ERRORS, "use" => purpose, "kind" => error.label()).increment(1);
    }
    done
}
