//! The blind index: which recordings belong to a call or a party.
//!
//! Entries are put by whoever stores or finishes a recording, and removed by whoever deletes it. A node that only records must
//! not have the index key, with which every number can be tried: it leaves a request, and a node that opens recordings puts
//! the entries once the recording is finished. To look for something is
//! an access like any other: it is in the audit log before anybody learns what was found, without the number.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::control::audit::{AuditError, AuditEvent, AuditLog};
use crate::control::recordings::{RecordingError, StoredRecording, list};
use crate::control::requests::{RequestError, restrict_anew};
use crate::control::retention::OrderedBy;
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::index::{IndexEntry, PartyKeys, Term, Terms};
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService};
use crate::observe::metrics;
use crate::store::{ObjectName, Store, StoreError, layout};
use crate::upload::{
    Entries, Index, NotIndexed, Requests, RetentionTags, RetryPolicy, put_entries, remove_other_entries,
};

/// Recordings looked at between two reports of progress.
const PAGE: usize = 100;
/// Requests that one recording takes at most: envelope, list and manifest, and the most entries that one has.
const REQUESTS: u32 = 40;

/// Why nothing can be told or put.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The index key.
    #[error("index key")]
    Key(#[from] KeyError),
    /// The store.
    #[error("store of the index")]
    Store(#[from] StoreError),
    /// There is no audit record, so nothing is told.
    #[error("audit log")]
    Audit(#[from] AuditError),
    /// What is restricted cannot be put under another index key.
    #[error("restrictions of the tenant")]
    Restrictions(#[source] Box<RequestError>),
    /// The recordings of the tenant.
    #[error("recordings of the tenant")]
    Recordings(#[from] RecordingError),
}

/// The terms of a recording that is being made, and what makes them blind.
pub struct RecordingIndex {
    keys: Arc<KeyService>,
    tenant: TenantId,
    party_keys: PartyKeys,
    terms: Mutex<Terms>,
}

impl RecordingIndex {
    /// Begins with the terms that are known at the start of a call.
    pub fn new(keys: Arc<KeyService>, tenant: TenantId, party_keys: PartyKeys, terms: Terms) -> Self {
        Self { keys, tenant, party_keys, terms: Mutex::new(terms) }
    }

    /// Adds what was learned of the call.
    pub fn note(&self, name: &str, text: &str) {
        let term = self.party_keys.term(name, text);
        self.terms.lock().unwrap_or_else(PoisonError::into_inner).extend(term);
    }
}

#[async_trait]
impl Index for RecordingIndex {
    async fn entries(&self) -> Result<Entries, NotIndexed> {
        let terms = self.terms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !self.keys.opens() && terms.iter().next().is_some() {
            return Ok(Entries::Wanted);
        }
        blind(&self.keys, &self.tenant, &terms).await.map(Entries::These).map_err(|error| NotIndexed {
            is_retryable: error.is_retryable() || matches!(error, KeyError::BadLogin(_) | KeyError::Entropy),
            source: error.into(),
        })
    }
}

/// Makes terms blind.
pub(super) async fn blind(
    keys: &KeyService,
    tenant: &TenantId,
    terms: &Terms,
) -> Result<Vec<IndexEntry>, KeyError> {
    if terms.iter().next().is_none() {
        return Ok(Vec::new());
    }
    let key = keys.index_key(tenant).await?;
    Ok(terms.iter().map(|term| term.blind(key.dek.expose())).collect())
}

/// Looks for recordings.
pub struct Finder {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
}

impl Finder {
    /// Looks in `store`.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, audit: AuditLog) -> Self {
        Self { store, keys, audit }
    }

    /// Returns the recordings of a call or a party, oldest first, up to `limit` after `after`. Calls that go on are among
    /// them some seconds after they began.
    ///
    /// # Errors
    /// [`IndexError`]; nothing is told then.
    pub async fn find(
        &self,
        tenant: &TenantId,
        term: &Term,
        by: &OrderedBy,
        (after, limit): (Option<RecordingId>, usize),
    ) -> Result<Vec<RecordingId>, IndexError> {
        let found = find(&*self.store, &self.keys, tenant, term, (after, limit)).await;
        let kind = term.kind().name();
        let event = AuditEvent {
            role: by.role.to_owned(),
            source: by.source.clone(),
            request: by.request.clone(),
            reason: Some(by.reason.clone()),
            result: if found.is_ok() { "allowed" } else { "failed" }.to_owned(),
            detail: found.as_ref().ok().map(|(blind, found)| {
                let blind = blind.map_or_else(|| "none".to_owned(), |entry| entry.blind.to_string());
                format!("blind={blind} found={}", found.len())
            }),
            ..AuditEvent::by_operator(&by.actor, "find", kind.to_owned())
        };
        self.audit.record(tenant, event).await?;
        found.map(|(_, found)| found)
    }
}

/// Looks without telling the audit log: for whoever tells it what becomes of each recording. Answers the entry that the
/// term has, if the tenant has an index.
pub(super) async fn find(
    store: &dyn Store,
    keys: &KeyService,
    tenant: &TenantId,
    term: &Term,
    (after, limit): (Option<RecordingId>, usize),
) -> Result<(Option<IndexEntry>, Vec<RecordingId>), IndexError> {
    let Some(key) = keys.known_index_key(tenant).await? else { return Ok((None, Vec::new())) };
    let (tag, entry) = (tenant.tag(), term.blind(key.dek.expose()));
    let after: Option<ObjectName> = after.map(|recording| layout::index_entry(tag, entry, recording));
    let listed = store.list_after(&layout::index_term_prefix(tag, entry), after.as_ref(), limit).await?;
    let found = listed.iter().filter_map(|object| layout::index_recording(&object.name)).collect();
    Ok((Some(entry), found))
}

/// What a reindexing did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reindexed {
    /// Recordings of the tenant.
    pub recordings: u64,
    /// Of these, with all their entries now.
    pub indexed: u64,
    /// Not finished yet: whoever finishes them puts their entries.
    pub running: u64,
    /// Cannot be read; the log says why.
    pub failed: u64,
}

/// Puts the entries of all recordings of a tenant anew.
pub struct Reindex {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
    party_keys: PartyKeys,
    policy: RetryPolicy,
}

impl Reindex {
    /// Works in `store`.
    pub fn new(
        store: Arc<dyn Store>,
        keys: Arc<KeyService>,
        audit: AuditLog,
        (party_keys, policy): (PartyKeys, RetryPolicy),
    ) -> Self {
        Self { store, keys, audit, party_keys, policy }
    }

    /// Puts missing entries, for recordings from before there was an index or before a name of parties was configured. With
    /// `replaces_key`, another index key takes the place of the present one first, and all entries are made under it.
    ///
    /// # Errors
    /// [`IndexError`]; calling again is safe.
    pub async fn run(
        &self,
        tenant: &TenantId,
        by: &OrderedBy,
        replaces_key: bool,
        mut progress: impl FnMut(&Reindexed),
    ) -> Result<Reindexed, IndexError> {
        let event = AuditEvent {
            reason: Some(by.reason.clone()),
            result: "begun".to_owned(),
            detail: Some(format!("new_key={replaces_key}")),
            ..AuditEvent::by_operator(&by.actor, "reindex", tenant.to_string())
        };
        self.audit.record(tenant, event).await?;
        if replaces_key {
            self.keys.replace_index_key(tenant).await?;
            let anew = restrict_anew(&self.store, &self.keys, &self.audit, tenant).await;
            anew.map_err(|error| IndexError::Restrictions(Box::new(error)))?;
        }
        let (mut report, mut after) = (Reindexed::default(), None);
        loop {
            let page = list(&*self.store, tenant, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(report) };
            after = Some(*last);
            for recording in page {
                report.recordings += 1;
                match self.one(tenant, recording, replaces_key).await {
                    Ok(true) => report.indexed += 1,
                    Ok(false) => report.running += 1,
                    Err(IndexError::Recordings(RecordingError::NotFound)) => report.recordings -= 1,
                    Err(error) => {
                        report.failed += 1;
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(%recording, error, "recording is not in the index");
                    }
                }
                progress(&report);
            }
        }
    }

    /// Puts the entries of finished recordings that nodes which only record have asked for. `is_unfinished` spares the others a
    /// look.
    ///
    /// # Errors
    /// [`StoreError`]; calling again is safe.
    pub async fn catch_up(
        &self,
        tenant: &TenantId,
        is_unfinished: impl Fn(RecordingId) -> bool + Send,
    ) -> Result<Reindexed, StoreError> {
        let (prefix, mut after) = (layout::index_wanted_prefix(tenant.tag()), None);
        let mut report = Reindexed::default();
        loop {
            let page = self.in_time(1, self.store.list_after(&prefix, after.as_ref(), PAGE)).await??;
            let Some(last) = page.last() else { return Ok(report) };
            after = Some(last.name.clone());
            for object in &page {
                let Some(recording) = layout::index_recording(&object.name) else { continue };
                report.recordings += 1;
                if is_unfinished(recording) {
                    report.running += 1;
                    continue;
                }
                match self.in_time(REQUESTS, self.one(tenant, recording, false)).await? {
                    Ok(true) => report.indexed += 1,
                    // It was deleted.
                    Err(IndexError::Recordings(RecordingError::NotFound)) => report.recordings -= 1,
                    Ok(false) => {
                        report.running += 1;
                        continue;
                    }
                    Err(error) => {
                        report.failed += 1;
                        ::metrics::counter!(metrics::INDEX_FAILURES).increment(1);
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(%recording, error, "recording is not found by call or number yet");
                        continue;
                    }
                }
                self.in_time(1, self.store.purge(object.name.as_str())).await??;
            }
        }
    }

    /// So many requests must be done in their time.
    async fn in_time<T>(&self, requests: u32, asking: impl Future<Output = T>) -> Result<T, StoreError> {
        let late =
            || StoreError::Io { action: "answer in time", source: std::io::ErrorKind::TimedOut.into() };
        tokio::time::timeout(self.policy.try_timeout * requests, asking).await.map_err(|_| late())
    }

    async fn one(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        is_anew: bool,
    ) -> Result<bool, IndexError> {
        let stored = StoredRecording::open_finished(&self.store, &self.keys, tenant, recording).await?;
        let Some(finished) = stored.as_ref().and_then(StoredRecording::manifest) else { return Ok(false) };
        let terms = self.party_keys.terms(&finished.metadata, &finished.end.notes);
        let entries = blind(&self.keys, tenant, &terms).await?;
        let retention = RetentionTags { tenant: tenant.tag(), days: finished.metadata.retention_days };
        let requests = Requests::new(&*self.store, self.policy);
        put_entries(requests, retention, recording, (&entries, UnixMillis(finished.end.ended_ms))).await?;
        if is_anew {
            // Not before: a restricted recording that nothing leads to a party from could be played.
            remove_other_entries(&*self.store, tenant.tag(), recording, &entries).await?;
        }
        Ok(true)
    }
}
