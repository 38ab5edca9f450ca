//! Moves all envelopes of a tenant under the newest version of its KEK, one recording after the other.
//!
//! May stop anywhere, be repeated, and run on many nodes at the same time. An envelope whose recording is being deleted is
//! never brought back: the order that begins a deletion comes before its key is destroyed, and is looked for after the new
//! revision was written.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use crate::clock;
use crate::control::audit::{AuditError, AuditEvent, AuditLog};
use crate::control::retention::{OrderedBy, receipt};
use crate::domain::ids::{RecordingId, TenantId};
use crate::keys::{KeyError, KeyService, Rewrapped, envelope_recording, envelopes_prefix};
use crate::store::{ObjectName, Store, StoreError};
use crate::upload::newest_order;

/// Envelopes listed at a time.
const PAGE: usize = 1000;
/// Envelopes moved at the same time: 16 at some ten requests of 5 ms are 300 a second.
const CONCURRENCY: usize = 16;

/// Why envelopes could not be moved or counted.
#[derive(Debug, thiserror::Error)]
pub enum RewrapError {
    /// The list of envelopes.
    #[error("list key envelopes")]
    Store(#[from] StoreError),
    /// The tenant has no KEK.
    #[error("key-encryption key")]
    Key(#[from] KeyError),
    /// There is no audit record, so nothing is done.
    #[error("audit log")]
    Audit(#[from] AuditError),
}

/// What a rewrap did. Without changes, what it would have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RewrapReport {
    /// Recordings that have an envelope.
    pub envelopes: u64,
    /// Of these, moved now.
    pub moved: u64,
    /// Under the newest version before.
    pub current: u64,
    /// Destroyed meanwhile, or to be destroyed.
    pub gone: u64,
    /// Could not be moved; the log says why.
    pub failed: u64,
}

/// How many envelopes are under which version of a tenant's KEK.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// By version; versions without envelopes are left out.
    pub by_version: BTreeMap<String, u64>,
    /// Envelopes that cannot be read.
    pub unreadable: u64,
}

/// Moves envelopes.
pub struct Rewrap {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
    /// From one envelope to the next.
    pause: Duration,
}

impl Rewrap {
    /// Moves at most `per_sec` envelopes a second, at least one.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, audit: AuditLog, per_sec: u32) -> Self {
        Self { store, keys, audit, pause: Duration::from_secs(1) / per_sec.max(1) }
    }

    /// Moves every envelope of a tenant that is not under the newest version, and calls `progress` after each.
    ///
    /// # Errors
    /// [`RewrapError`]: some may have been moved. An envelope that cannot be moved is no error but `failed` in the report.
    pub async fn run(
        &self,
        tenant: &TenantId,
        by: &OrderedBy,
        mut progress: impl FnMut(&RewrapReport),
    ) -> Result<RewrapReport, RewrapError> {
        let version = self.keys.newest_kek_version(tenant).await?;
        self.record(tenant, by, "begun", format!("version={version}")).await?;
        let mut report = RewrapReport::default();
        let mut after = None;
        while let Some(page) = self.page(tenant, &mut after).await? {
            let first = clock::monotonic();
            let paced = stream::iter((0..).zip(page)).then(|(place, recording): (u32, _)| async move {
                tokio::time::sleep_until((first + self.pause * place).into()).await;
                recording
            });
            let moving = paced
                .map(|recording| async move { (recording, self.move_one(tenant, recording).await) })
                .buffer_unordered(CONCURRENCY);
            let mut moving = pin!(moving);
            while let Some((recording, outcome)) = moving.next().await {
                report.count(recording, outcome);
                progress(&report);
            }
        }
        let RewrapReport { moved, failed, .. } = report;
        let detail = format!("version={version} moved={moved} failed={failed}");
        self.record(tenant, by, if failed == 0 { "done" } else { "incomplete" }, detail).await?;
        Ok(report)
    }

    /// Counts envelopes by version, and calls `progress` with how many were read.
    ///
    /// # Errors
    /// [`RewrapError::Store`].
    pub async fn status(
        &self,
        tenant: &TenantId,
        mut progress: impl FnMut(u64),
    ) -> Result<Status, RewrapError> {
        let (mut status, mut after, mut read) = (Status::default(), None, 0);
        while let Some(page) = self.page(tenant, &mut after).await? {
            let mut versions = stream::iter(page)
                .map(|recording| self.keys.kek_version(tenant, recording))
                .buffer_unordered(CONCURRENCY);
            while let Some(version) = versions.next().await {
                match version {
                    Ok(Some(version)) => *status.by_version.entry(version).or_default() += 1,
                    Ok(None) => {}
                    Err(KeyError::Store(error)) => return Err(error.into()),
                    Err(_) => status.unreadable += 1,
                }
                read += 1;
                progress(read);
            }
        }
        Ok(status)
    }

    /// Returns the recordings of the next page of envelopes, each once; `None` behind the last one.
    async fn page(
        &self,
        tenant: &TenantId,
        after: &mut Option<ObjectName>,
    ) -> Result<Option<Vec<RecordingId>>, StoreError> {
        let listed = self.store.list_after(&envelopes_prefix(tenant.tag()), after.as_ref(), PAGE).await?;
        let Some(last) = listed.last() else { return Ok(None) };
        // Revisions of one envelope may lie on two pages; the second look finds it done.
        *after = Some(last.name.clone());
        let mut recordings: Vec<_> =
            listed.iter().filter_map(|info| envelope_recording(&info.name)).collect();
        recordings.dedup();
        Ok(Some(recordings))
    }

    async fn move_one(&self, tenant: &TenantId, recording: RecordingId) -> Result<Rewrapped, KeyError> {
        let outcome = self.keys.rewrap(tenant, recording).await?;
        if outcome == Rewrapped::Gone {
            return Ok(outcome);
        }
        if self.is_to_be_deleted(tenant, recording).await? {
            self.keys.shred(tenant.tag(), recording).await?;
            return Ok(Rewrapped::Gone);
        }
        self.keys.drop_older(tenant, recording).await?;
        Ok(outcome)
    }

    async fn is_to_be_deleted(&self, tenant: &TenantId, recording: RecordingId) -> Result<bool, StoreError> {
        let order = newest_order(&*self.store, tenant.tag(), recording).await?;
        if order.is_some_and(|(_, order)| order.deletion.is_some()) {
            return Ok(true);
        }
        Ok(receipt(&*self.store, tenant.tag(), recording).await?.is_some())
    }

    async fn record(
        &self,
        tenant: &TenantId,
        by: &OrderedBy,
        result: &str,
        detail: String,
    ) -> Result<(), AuditError> {
        let event = AuditEvent {
            reason: Some(by.reason.clone()),
            result: result.to_owned(),
            detail: Some(detail),
            ..AuditEvent::by_operator(&by.actor, "keys-rewrap", tenant.to_string())
        };
        self.audit.record(tenant, event).await
    }
}

impl RewrapReport {
    fn count(&mut self, recording: RecordingId, outcome: Result<Rewrapped, KeyError>) {
        self.envelopes += 1;
        match outcome {
            Ok(Rewrapped::Moved) => self.moved += 1,
            Ok(Rewrapped::Current) => self.current += 1,
            Ok(Rewrapped::Gone) => self.gone += 1,
            Err(error) => {
                self.failed += 1;
                let error = &error as &dyn std::error::Error;
                tracing::error!(%recording, error, "key envelope was not moved");
            }
        }
    }
}
