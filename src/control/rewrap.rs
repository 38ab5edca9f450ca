//! Moves all envelopes of a tenant under the newest version of its present KEK, one recording after the other.
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
use crate::domain::time::UnixMillis;
use crate::keys::{
    KeyError, KeyService, Rewrapped, UsedKek, Wrap, envelope_recording, envelopes_prefix, needs_move,
};
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

/// How many envelopes are under which KEK of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// By KEK and version; those without envelopes are left out.
    pub by_kek: BTreeMap<UsedKek, Under>,
    /// Envelopes that cannot be read, or that name no KEK of the tenant.
    pub unreadable: u64,
    /// Of the others, those that a rewrap would move.
    pub to_move: u64,
}

/// The envelopes under one version of a KEK.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Under {
    /// How many.
    pub envelopes: u64,
    /// When the first of them was wrapped, RFC 3339.
    pub oldest: String,
}

impl Status {
    /// Returns how many envelopes are under a KEK.
    pub fn under(&self, kek: &UsedKek) -> u64 {
        self.by_kek.get(kek).map_or(0, |under| under.envelopes)
    }

    fn count(&mut self, wrap: &Wrap, (newest, older_than): (&UsedKek, Option<UnixMillis>)) {
        self.to_move += u64::from(needs_move(wrap, newest, older_than));
        let under = self.by_kek.entry(wrap.used()).or_default();
        under.envelopes += 1;
        if under.oldest.is_empty() || wrap.wrapped_at < under.oldest {
            under.oldest.clone_from(&wrap.wrapped_at);
        }
    }
}

/// Moves envelopes.
pub struct Rewrap {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
    /// From one envelope to the next.
    pause: Duration,
    older_than: Option<UnixMillis>,
}

impl Rewrap {
    /// Moves at most `per_sec` envelopes a second, at least one.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, audit: AuditLog, per_sec: u32) -> Self {
        Self { store, keys, audit, pause: Duration::from_secs(1) / per_sec.max(1), older_than: None }
    }

    /// Moves also what is under the newest KEK but was wrapped before this moment: for key services that do not tell which
    /// version of a KEK they used.
    #[must_use]
    pub fn older_than(self, moment: Option<UnixMillis>) -> Self {
        Self { older_than: moment, ..self }
    }

    /// Moves every envelope of a tenant that is not under the newest version of its present KEK, and calls `progress` after each.
    ///
    /// # Errors
    /// [`RewrapError`]: some may have been moved. An envelope that cannot be moved is no error but `failed` in the report.
    pub async fn run(
        &self,
        tenant: &TenantId,
        by: &OrderedBy,
        mut progress: impl FnMut(&RewrapReport),
    ) -> Result<RewrapReport, RewrapError> {
        let newest = &self.keys.newest_kek(tenant).await?;
        let UsedKek { provider, kek, version } = newest;
        self.record(tenant, by, "begun", format!("provider={provider} kek={kek} version={version}")).await?;
        let mut report = RewrapReport::default();
        let mut after = None;
        while let Some(page) = self.page(tenant, &mut after).await? {
            let first = clock::monotonic();
            let paced = stream::iter((0..).zip(page)).then(|(place, recording): (u32, _)| async move {
                tokio::time::sleep_until((first + self.pause * place).into()).await;
                recording
            });
            let moving = paced
                .map(|recording| async move { (recording, self.move_one(tenant, recording, newest).await) })
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

    /// Counts envelopes by KEK and version, and calls `progress` with how many were read.
    ///
    /// # Errors
    /// [`RewrapError::Store`], and [`RewrapError::Key`] when the newest version cannot be told.
    pub async fn status(
        &self,
        tenant: &TenantId,
        mut progress: impl FnMut(u64),
    ) -> Result<Status, RewrapError> {
        let newest = self.keys.newest_kek(tenant).await?;
        let (mut status, mut after, mut read) = (Status::default(), None, 0);
        while let Some(page) = self.page(tenant, &mut after).await? {
            let mut wraps = stream::iter(page)
                .map(|recording| self.keys.wrap_of(tenant, recording))
                .buffer_unordered(CONCURRENCY);
            while let Some(wrap) = wraps.next().await {
                match wrap {
                    Ok(Some(wrap)) => status.count(&wrap, (&newest, self.older_than)),
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

    async fn move_one(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        newest: &UsedKek,
    ) -> Result<Rewrapped, KeyError> {
        let outcome = self.keys.rewrap(tenant, recording, (newest, self.older_than)).await?;
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
