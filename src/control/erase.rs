//! Destroys recordings at once: one, those of a call, those of a party, or all of a tenant; and again what a restored
//! backup has brought back.
//!
//! Nothing is destroyed but by the same steps as an ordinary deletion: an order in audit log and ledger, then the
//! key, then everything else. A hold beats it. What somebody still works on is deleted when that is done, by the next
//! sweep.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::clock;
use crate::control::audit::{AuditError, AuditEvent, AuditLog};
use crate::control::deletion::{Case, DeletionError, Deletions, Verdict};
use crate::control::index::{IndexError, find};
use crate::control::ledger::Ledger;
use crate::control::recordings::{RecordingError, list};
use crate::control::retention::{OrderedBy, Orders, RetentionError, receipt};
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::index::{INDEX_KEY_ID, Term};
use crate::domain::ledger::Scope;
use crate::domain::retention::{Fate, Refusal};
use crate::keys::KeyService;
use crate::notices::Notices;
use crate::store::{Store, StoreError, layout};
use crate::upload::{entries_of, newest_order};

/// Recordings found at a time.
const PAGE: usize = 200;

/// What is to be destroyed.
#[derive(Debug, Clone)]
pub enum Target {
    /// One recording.
    Recording(RecordingId),
    /// All recordings of a call or a party that the index knows.
    Term(Term),
    /// All recordings of the tenant.
    Tenant,
}

impl Target {
    fn scope(&self) -> Scope {
        match self {
            Self::Recording(_) => Scope::Recording,
            Self::Term(term) => Scope::of(term.kind()),
            Self::Tenant => Scope::Tenant,
        }
    }
}

/// What became of recordings. Of a survey: what would become of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct EraseReport {
    /// Recordings that were found.
    pub found: u64,
    /// Of these, destroyed.
    pub deleted: u64,
    /// Kept, because they are held.
    pub held: u64,
    /// To be destroyed by a sweep: a call goes on, or a lock of the store is not over. Of the latter the key is gone.
    pub waiting: u64,
    /// Destroyed before.
    pub gone: u64,
    /// Could not be destroyed; the log says why.
    pub failed: u64,
}

/// Why nothing was destroyed, or not everything.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The store; calling again is safe.
    #[error("store")]
    Store(#[from] StoreError),
    /// There is no audit record, so nothing is destroyed.
    #[error("audit log")]
    Audit(#[from] AuditError),
    /// The index.
    #[error("index")]
    Index(#[from] IndexError),
    /// The recordings of the tenant.
    #[error("recordings of the tenant")]
    Recordings(#[from] RecordingError),
}

/// What became of one recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Deleted,
    Held,
    Waiting,
    Gone,
}

/// Why one recording was not destroyed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("order")]
    Order(#[from] RetentionError),
    #[error("deletion")]
    Deletion(#[from] DeletionError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Deletion(error.into())
    }
}

/// Destroys recordings.
pub struct Eraser {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
    orders: Orders,
    deletions: Deletions,
}

impl Eraser {
    /// Works in `store`, whose backups and versions may live for `grace` longer.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, audit: AuditLog, grace: Duration) -> Self {
        let ledger = Ledger::new(Arc::clone(&store), Arc::clone(&keys));
        let orders =
            Orders::with_ledger(Arc::clone(&store), Arc::clone(&keys), audit.clone(), ledger.clone());
        let deletions = Deletions {
            store: Arc::clone(&store),
            keys: Arc::clone(&keys),
            audit: audit.clone(),
            notices: Notices::off(),
            ledger,
            grace,
        };
        Self { store, keys, audit, orders, deletions }
    }

    /// Tells tenants what is destroyed.
    #[must_use]
    pub fn with_notices(mut self, notices: Notices) -> Self {
        self.orders = self.orders.with_notices(notices.clone());
        self.deletions.notices = notices;
        self
    }

    /// Says what would become of everything, and changes nothing. That somebody looked is in the audit log.
    ///
    /// # Errors
    /// [`EraseError`].
    pub async fn survey(
        &self,
        tenant: &TenantId,
        target: &Target,
        by: &OrderedBy,
    ) -> Result<EraseReport, EraseError> {
        self.record(tenant, target, by, ("looked", None)).await?;
        let (mut report, mut after) = (EraseReport::default(), None);
        while let Some(page) = self.page(tenant, target, &mut after).await? {
            for recording in page {
                let outcome = self.would(tenant, recording).await;
                report.count(recording, outcome);
            }
        }
        Ok(report)
    }

    /// Destroys everything that is not held, and calls `progress` after each recording.
    ///
    /// # Errors
    /// [`EraseError`]: some may be destroyed, and calling again is safe. A recording that cannot be destroyed is no
    /// error but `failed` in the report.
    pub async fn run(
        &self,
        tenant: &TenantId,
        target: &Target,
        by: &OrderedBy,
        mut progress: impl FnMut(&EraseReport),
    ) -> Result<EraseReport, EraseError> {
        self.record(tenant, target, by, ("begun", None)).await?;
        let (mut report, mut after) = (EraseReport::default(), None);
        while let Some(page) = self.page(tenant, target, &mut after).await? {
            for recording in page {
                let outcome = self.erase(tenant, recording, by, target.scope()).await;
                report.count(recording, outcome);
                progress(&report);
            }
        }
        if matches!(target, Target::Tenant) && report.is_complete() {
            self.forget_terms(tenant).await?;
        }
        self.record(tenant, target, by, report.told()).await?;
        Ok(report)
    }

    /// Destroys again what the ledger says is deleted, and a backup has brought back; without `does_it`, only counts.
    ///
    /// A hold counts unless the receipt shows that it was released before the deletion and came back with the backup.
    ///
    /// # Errors
    /// As [`Eraser::run`].
    pub async fn replay(
        &self,
        tenant: &TenantId,
        recordings: &BTreeSet<RecordingId>,
        by: &OrderedBy,
        does_it: bool,
    ) -> Result<EraseReport, EraseError> {
        let begun = if does_it { "begun" } else { "looked" };
        self.record_event(tenant, "ledger-replay", tenant.to_string(), by, (begun, None)).await?;
        let mut report = EraseReport::default();
        for recording in recordings {
            let outcome = self.again(tenant, *recording, by, does_it).await;
            report.count(*recording, outcome);
        }
        if does_it {
            let told = report.told();
            self.record_event(tenant, "ledger-replay", tenant.to_string(), by, told).await?;
        }
        Ok(report)
    }

    /// Returns the next recordings of a target, oldest first; `None` behind the last one.
    async fn page(
        &self,
        tenant: &TenantId,
        target: &Target,
        after: &mut Option<RecordingId>,
    ) -> Result<Option<Vec<RecordingId>>, EraseError> {
        let page = match target {
            Target::Recording(recording) if after.is_none() && self.is_known(tenant, *recording).await? => {
                vec![*recording]
            }
            Target::Recording(_) => Vec::new(),
            Target::Term(term) => find(&*self.store, &self.keys, tenant, term, (*after, PAGE)).await?.1,
            Target::Tenant => list(&*self.store, tenant, *after, PAGE).await?,
        };
        *after = page.last().copied().or(*after);
        Ok(Some(page).filter(|page| !page.is_empty()))
    }

    async fn would(&self, tenant: &TenantId, recording: RecordingId) -> Result<Outcome, Failed> {
        let now = self.store.now().await?;
        if !self.is_there(tenant, recording).await? {
            return Ok(Outcome::Gone);
        }
        let verdict = self.deletions.verdict(&case(tenant, recording, now.0), now).await?;
        Ok(match verdict {
            Verdict::Leftover => Outcome::Gone,
            Verdict::Fate(Fate::Hold) => Outcome::Held,
            Verdict::Fate(Fate::Wait) => Outcome::Waiting,
            Verdict::Fate(Fate::Keep { .. } | Fate::Stuck | Fate::Delete { .. } | Fate::Finish) => {
                Outcome::Deleted
            }
        })
    }

    async fn erase(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        by: &OrderedBy,
        scope: Scope,
    ) -> Result<Outcome, Failed> {
        match self.orders.delete_within(tenant, recording, by, scope).await {
            Ok(_) | Err(RetentionError::Refused(Refusal::Deleting)) => {}
            Err(RetentionError::Refused(Refusal::Held)) => return Ok(Outcome::Held),
            // Without its key nobody can open what is there, and nobody needs an order to remove it.
            Err(RetentionError::NotFound) if self.is_there(tenant, recording).await? => {}
            Err(RetentionError::NotFound | RetentionError::Deleted(_)) => return Ok(Outcome::Gone),
            Err(error) => return Err(error.into()),
        }
        self.delete(tenant, recording).await
    }

    async fn delete(&self, tenant: &TenantId, recording: RecordingId) -> Result<Outcome, Failed> {
        let now = self.store.now().await?;
        let case = case(tenant, recording, now.0);
        match self.deletions.delete(&case, now).await {
            Ok(Verdict::Fate(Fate::Delete { .. } | Fate::Finish)) => Ok(Outcome::Deleted),
            Ok(Verdict::Fate(Fate::Hold)) => Ok(Outcome::Held),
            Ok(Verdict::Fate(Fate::Keep { .. } | Fate::Wait | Fate::Stuck)) => Ok(Outcome::Waiting),
            Ok(Verdict::Leftover) => {
                self.deletions.clean(&case).await?;
                Ok(Outcome::Deleted)
            }
            Err(DeletionError::Store(StoreError::Locked { .. })) => Ok(Outcome::Waiting),
            Err(error) => Err(error.into()),
        }
    }

    async fn again(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        by: &OrderedBy,
        does_it: bool,
    ) -> Result<Outcome, Failed> {
        if !self.is_there(tenant, recording).await? {
            return Ok(Outcome::Gone);
        }
        let (store, tag) = (&*self.store, tenant.tag());
        let order = newest_order(store, tag, recording).await?;
        let is_held = order.is_some_and(|(_, order)| order.hold && order.deletion.is_none());
        // Whoever deleted it has seen its orders; no hold is taken of what has a receipt.
        let is_stale = is_held && receipt(store, tag, recording).await?.is_some();
        if is_held && !is_stale {
            return Ok(Outcome::Held);
        }
        if !does_it {
            return Ok(Outcome::Deleted);
        }
        if is_stale {
            store.purge(&layout::orders_prefix(tag, recording)).await?;
        }
        if self.keys.has_envelope(tenant.tag(), recording).await? {
            match self.orders.delete_again(tenant, recording, by).await {
                Ok(_) | Err(RetentionError::Refused(Refusal::Deleting)) => {}
                Err(RetentionError::Refused(Refusal::Held)) => return Ok(Outcome::Held),
                Err(error) => return Err(error.into()),
            }
        }
        self.delete(tenant, recording).await
    }

    /// Whether the store has a key, an object or an entry of the blind index of a recording.
    /// Whether a recording is there, or a receipt says that it was. Of one that never was nobody must be told that it is gone.
    async fn is_known(&self, tenant: &TenantId, recording: RecordingId) -> Result<bool, StoreError> {
        Ok(self.is_there(tenant, recording).await?
            || receipt(&*self.store, tenant.tag(), recording).await?.is_some())
    }

    async fn is_there(&self, tenant: &TenantId, recording: RecordingId) -> Result<bool, StoreError> {
        let tag = tenant.tag();
        if self.keys.has_envelope(tag, recording).await? {
            return Ok(true);
        }
        let objects = self.store.list_after(&layout::recording_prefix(tag, recording), None, 1).await?;
        Ok(!objects.is_empty() || !entries_of(&*self.store, tag, recording).await?.is_empty())
    }

    /// Destroys the blind index of a tenant that has no recording any more.
    async fn forget_terms(&self, tenant: &TenantId) -> Result<(), StoreError> {
        self.keys.shred(tenant.tag(), INDEX_KEY_ID).await?;
        self.store.purge(&layout::index_prefix(tenant.tag())).await?;
        Ok(())
    }

    async fn record(
        &self,
        tenant: &TenantId,
        target: &Target,
        by: &OrderedBy,
        told: (&str, Option<String>),
    ) -> Result<(), AuditError> {
        let subject = match target {
            Target::Recording(recording) => recording.to_string(),
            Target::Term(term) => term.kind().name().to_owned(),
            Target::Tenant => tenant.to_string(),
        };
        self.record_event(tenant, "shred", subject, by, told).await
    }

    async fn record_event(
        &self,
        tenant: &TenantId,
        action: &str,
        subject: String,
        by: &OrderedBy,
        (result, detail): (&str, Option<String>),
    ) -> Result<(), AuditError> {
        let event = AuditEvent {
            role: by.role.to_owned(),
            source: by.source.clone(),
            request: by.request.clone(),
            reason: Some(by.reason.clone()),
            result: result.to_owned(),
            detail,
            ..AuditEvent::by_operator(&by.actor, action, subject)
        };
        self.audit.record(tenant, event).await
    }
}

/// What the expiry index has for an order that was given now leads here.
fn case(tenant: &TenantId, recording: RecordingId, now_ms: u64) -> Case {
    let today = clock::utc_date(crate::domain::time::UnixMillis(now_ms));
    Case { tenant: tenant.clone(), recording, dates: vec![today] }
}

impl EraseReport {
    fn count(&mut self, recording: RecordingId, outcome: Result<Outcome, Failed>) {
        self.found += 1;
        match outcome {
            Ok(Outcome::Deleted) => self.deleted += 1,
            Ok(Outcome::Held) => self.held += 1,
            Ok(Outcome::Waiting) => self.waiting += 1,
            Ok(Outcome::Gone) => self.gone += 1,
            Err(error) => {
                self.failed += 1;
                let error = &error as &dyn std::error::Error;
                tracing::error!(%recording, error, "recording was not destroyed");
            }
        }
    }

    /// Whether nothing is left of what was found.
    pub fn is_complete(&self) -> bool {
        self.held == 0 && self.waiting == 0 && self.failed == 0
    }

    fn told(&self) -> (&'static str, Option<String>) {
        let Self { found, deleted, held, waiting, gone, failed } = self;
        let counts = format!(
            "found={found} deleted={deleted} held={held} waiting={waiting} gone={gone} failed={failed}"
        );
        (if self.is_complete() { "done" } else { "incomplete" }, Some(counts))
    }
}
