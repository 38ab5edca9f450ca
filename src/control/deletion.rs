//! Judges one recording whose date seems to have come, and deletes it if it has.
//!
//! Order of a deletion, each step safe to repeat, so that any node can go on where another stopped:
//! 1. The order that begins it is created: from here on no hold is taken, and every node that comes by finishes it.
//! 2. The audit record, while the recording can still be opened.
//! 3. The envelope, all revisions and versions: from here on nobody can open the recording.
//! 4. The entry in the deletion ledger.
//! 5. Everything under the recording's prefix, whatever its manifest says: segments without an owner, unfinished uploads.
//! 6. The receipt, which names that entry.
//! 7. The entries of the blind index.
//! 8. The other entries of the expiry index, the orders, and last the entry that leads here: while any of the steps
//!    before is not done, the index leads back to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::control::audit::{AuditError, AuditEvent, AuditLog};
use crate::control::ledger::{Ledger, LedgerError};
use crate::control::recordings::{RecordingError, StoredRecording};
use crate::control::retention::{next_order, put_order, receipt};
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::domain::ledger::Entry;
use crate::domain::notice::{Event, NoticeKind};
use crate::domain::retention::{BUSY, Deletion, Fate, Order, Reason, Receipt, Stored, decide};
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService, envelope_prefix};
use crate::notices::Notices;
use crate::observe::metrics;
use crate::store::{ObjectClass, ObjectName, Store, StoreError, Tags, layout};
use crate::upload::remove_entries;

/// Objects listed at a time.
const PAGE: usize = 1000;
/// How often a recording is judged again when somebody gives an order meanwhile.
const TRIES: u32 = 4;

/// Why a recording that may be due was neither deleted nor kept for a reason.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeletionError {
    /// The store; the next sweep goes on.
    #[error("store")]
    Store(#[from] StoreError),
    /// Its manifest cannot be read now.
    #[error("recording")]
    Recording(#[from] RecordingError),
    /// There is no audit record, so nothing is deleted.
    #[error("audit log")]
    Audit(#[from] AuditError),
    /// The ledger cannot be kept now; the next sweep goes on.
    #[error("deletion ledger")]
    Ledger(#[from] LedgerError),
    /// No tenant of this node has its tag.
    #[error("no tenant has the tag {0}")]
    UnknownTenant(TenantTag),
    /// Somebody gives orders about it again and again.
    #[error("too many orders about this recording")]
    Contended,
}

/// A recording, and the dates of the expiry index under which it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) tenant: TenantId,
    pub(super) recording: RecordingId,
    /// At least one.
    pub(super) dates: Vec<String>,
}

/// What was found about a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// By the rules.
    Fate(Fate),
    /// It was deleted before, and only its entry is left.
    Leftover,
}

/// What the next revision of its order is, and what the rules say.
struct Judgement {
    verdict: Verdict,
    revision: u32,
    order: Order,
    /// The dates of its manifest and of its order, where they can be read.
    known: Vec<UnixMillis>,
}

/// Judges and deletes recordings.
pub(super) struct Deletions {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Arc<KeyService>,
    pub(super) audit: AuditLog,
    pub(super) notices: Notices,
    pub(super) ledger: Ledger,
    /// How much longer backups and versions may live.
    pub(super) grace: Duration,
}

impl Deletions {
    /// Says what must become of a recording; `now` is the store's clock.
    pub(super) async fn verdict(&self, case: &Case, now: UnixMillis) -> Result<Verdict, DeletionError> {
        Ok(self.judge(case, now).await?.verdict)
    }

    /// Deletes a recording if it still is due; answers what became of it otherwise.
    pub(super) async fn delete(&self, case: &Case, now: UnixMillis) -> Result<Verdict, DeletionError> {
        for _ in 0..TRIES {
            let Judgement { verdict, revision, order, known } = self.judge(case, now).await?;
            let Verdict::Fate(fate) = &verdict else { return Ok(verdict) };
            match (*fate, &order.deletion) {
                (Fate::Finish, Some(deletion)) => {
                    self.finish(case, deletion, false).await?;
                    return Ok(verdict);
                }
                (Fate::Delete { reason, since }, _) => {
                    let deletion = Deletion {
                        reason,
                        expires_ms: since.map(|since| since.0),
                        objects: self.count_objects(case).await?,
                        dates: dates(case, known, &order),
                    };
                    let begun = order.begin(deletion.clone());
                    let (tag, recording) = (case.tenant.tag(), case.recording);
                    if put_order(&*self.store, tag, recording, revision, &begun).await? {
                        self.finish(case, &deletion, true).await?;
                        return Ok(verdict);
                    }
                }
                _ => return Ok(verdict),
            }
        }
        Err(DeletionError::Contended)
    }

    async fn judge(&self, case: &Case, now: UnixMillis) -> Result<Judgement, DeletionError> {
        let (tag, recording) = (case.tenant.tag(), case.recording);
        let (revision, order) = next_order(&*self.store, tag, recording).await?;
        let judged = |verdict, known| Judgement { verdict, revision, order: order.clone(), known };
        if order.deletion.is_some() || order.hold {
            // What is stored does not matter.
            return Ok(judged(Verdict::Fate(decide(Stored::Busy, &order, now)), Vec::new()));
        }
        let (stored, known) = self.stored(case, &order, now).await?;
        if stored == Stored::Gone && receipt(&*self.store, tag, recording).await?.is_some() {
            return Ok(judged(Verdict::Leftover, Vec::new()));
        }
        Ok(judged(Verdict::Fate(decide(stored, &order, now)), known))
    }

    /// Says what there is of a recording, and its sealed and its later date if they can be read.
    async fn stored(
        &self,
        case: &Case,
        order: &Order,
        now: UnixMillis,
    ) -> Result<(Stored, Vec<UnixMillis>), DeletionError> {
        let (tag, recording) = (case.tenant.tag(), case.recording);
        let opened = StoredRecording::open_finished(&self.store, &self.keys, &case.tenant, recording).await;
        let may_be_busy = UnixMillis(recording.created_ms()).plus(BUSY) > now;
        let (stored, known) = match opened {
            Ok(Some(found)) => {
                let sealed = found.manifest().map(|finished| UnixMillis(finished.end.expires_ms));
                let expires = found.kept_until(order).unwrap_or(UnixMillis(u64::MAX));
                (Stored::Finished { expires }, sealed.into_iter().chain([expires]).collect())
            }
            // A key known by heart opens what another node is deleting.
            Ok(None) | Err(RecordingError::NotFound) if !self.keys.has_envelope(tag, recording).await? => {
                (Stored::Gone, Vec::new())
            }
            Ok(None) | Err(RecordingError::NotFound) if self.is_emptied(case, now).await? => {
                (Stored::Emptied, Vec::new())
            }
            Ok(None) | Err(RecordingError::NotFound) => (Stored::Unfinished, Vec::new()),
            Err(RecordingError::Integrity(error)) => {
                tracing::error!(%recording, error = &*error as &dyn std::error::Error, "date of a recording is damaged");
                (Stored::Damaged, Vec::new())
            }
            // Its KEK is lost or withdrawn: nobody can read its date, and an order to delete it must count all the same.
            Err(RecordingError::Unavailable(cause))
                if cause.downcast_ref::<KeyError>().is_some_and(KeyError::is_refusal) =>
            {
                let error = &*cause as &dyn std::error::Error;
                tracing::error!(%recording, error, "the key-encryption key of a recording cannot be used");
                (Stored::Damaged, Vec::new())
            }
            Err(error @ RecordingError::Unavailable(_)) => return Err(error.into()),
        };
        let is_there = !matches!(stored, Stored::Gone | Stored::Emptied);
        if is_there && may_be_busy && !self.is_settled(tag, recording).await? {
            return Ok((Stored::Busy, known));
        }
        Ok((stored, known))
    }

    /// Whether a recording has no object any more, and all its dates are so long past that nobody has any to come.
    async fn is_emptied(&self, case: &Case, now: UnixMillis) -> Result<bool, StoreError> {
        let is_past = |date: &String| clock::end_of_utc_date(date).is_some_and(|end| end.plus(BUSY) <= now);
        if !case.dates.iter().all(is_past) {
            return Ok(false);
        }
        let prefix = layout::recording_prefix(case.tenant.tag(), case.recording);
        Ok(self.store.list_after(&prefix, None, 1).await?.is_empty())
    }

    /// Whether nothing is left to be done for a recording: it has final objects and nothing else.
    async fn is_settled(&self, tag: TenantTag, recording: RecordingId) -> Result<bool, StoreError> {
        let (all, finals) = (layout::recording_prefix(tag, recording), layout::finals_prefix(tag, recording));
        let objects = self.store.list_after(&all, None, PAGE).await?;
        Ok(!objects.is_empty() && objects.iter().all(|object| object.name.as_str().starts_with(&finals)))
    }

    async fn count_objects(&self, case: &Case) -> Result<u64, StoreError> {
        let (tag, recording) = (case.tenant.tag(), case.recording);
        let mut count = 0;
        for prefix in [layout::recording_prefix(tag, recording), envelope_prefix(tag, recording)] {
            let mut after = None;
            loop {
                let page = self.store.list_after(&prefix, after.as_ref(), PAGE).await?;
                let Some(last) = page.last() else { break };
                count += page.len() as u64;
                after = Some(last.name.clone());
            }
        }
        Ok(count)
    }

    /// Does everything that follows on the order that began a deletion; `is_new`: by us, and right now.
    async fn finish(&self, case: &Case, deletion: &Deletion, is_new: bool) -> Result<(), DeletionError> {
        let (tag, recording) = (case.tenant.tag(), case.recording);
        let store = &*self.store;
        let is_proven = receipt(store, tag, recording).await?.is_some();
        // Without an envelope an earlier try has got beyond this step.
        if !is_proven && (is_new || self.keys.has_envelope(tag, recording).await?) {
            self.audit.record(&case.tenant, event(recording, deletion)).await?;
        }
        self.keys.shred(tag, recording).await?;
        let kind = match deletion.reason {
            Reason::Expired => NoticeKind::Expired,
            Reason::Requested => NoticeKind::Deleted,
        };
        self.notices.told(&case.tenant, Event::of_recording(kind, recording, 0)).await;
        let noted = match is_proven {
            true => None,
            false => Some(self.note(case, deletion, is_new).await?),
        };
        store.purge(&layout::recording_prefix(tag, recording)).await?;
        if let Some(number) = noted {
            self.prove(tag, recording, (deletion, number)).await?;
        }
        self.notices.told(&case.tenant, Event::of_recording(NoticeKind::Purged, recording, 0)).await;
        let entry = |date: &String| layout::expiry(date, tag, recording);
        let (last, others) = match deletion.dates.split_first() {
            Some((last, others)) => (Some(last), others),
            None => (None, [].as_slice()),
        };
        let found = case.dates.iter().filter(|date| Some(*date) != last);
        let others: Vec<ObjectName> = others.iter().chain(found).map(entry).collect();
        remove_entries(store, tag, recording).await?;
        self.remove(&others).await?;
        store.purge(&layout::orders_prefix(tag, recording)).await?;
        self.remove(&last.map(entry).into_iter().collect::<Vec<_>>()).await?;
        Ok(())
    }

    /// Removes entries of the expiry index, with their versions where there are any.
    async fn remove(&self, entries: &[ObjectName]) -> Result<(), StoreError> {
        if !self.store.profile().versions {
            return self.store.delete_all(entries).await;
        }
        for entry in entries {
            self.store.purge(entry.as_str()).await?;
        }
        Ok(())
    }

    /// Notes in the ledger that the key is gone; answers the number of the entry.
    async fn note(&self, case: &Case, deletion: &Deletion, is_new: bool) -> Result<u64, DeletionError> {
        if !is_new && let Some(number) = self.ledger.was_noted(&case.tenant, case.recording).await? {
            return Ok(number);
        }
        let deleted_at = self.store.now().await?;
        let entry = Entry::Deleted {
            recording: case.recording.to_string(),
            reason: deletion.reason,
            expires_ms: deletion.expires_ms,
            deleted_at_ms: deleted_at.0,
            final_at_ms: deleted_at.plus(self.grace).0,
            objects: deletion.objects,
        };
        Ok(self.ledger.append(&case.tenant, &entry).await?)
    }

    async fn prove(
        &self,
        tag: TenantTag,
        recording: RecordingId,
        (deletion, number): (&Deletion, u64),
    ) -> Result<(), DeletionError> {
        let deleted_at = self.store.now().await?;
        let receipt = Receipt::new(tag, recording, (deletion, number), deleted_at, self.grace);
        let json = Bytes::from(serde_json::to_vec(&receipt).unwrap_or_default());
        let tags = Tags::of(tag, ObjectClass::Receipt);
        // A taken name is the receipt of another node that finished the same deletion.
        self.store.put_new(&layout::receipt(tag, recording), json, &tags).await?;
        let reason = deletion.reason.name();
        ::metrics::counter!(metrics::RETENTION_DELETED, "reason" => reason).increment(1);
        if let Some(expires) = deletion.expires_ms {
            let lag = Duration::from_millis(deleted_at.0.saturating_sub(expires));
            ::metrics::histogram!(metrics::RETENTION_LAG).record(lag.as_secs_f64());
        }
        tracing::info!(%recording, reason, objects = deletion.objects, "recording deleted");
        Ok(())
    }

    /// Removes the entries of a recording that was deleted before, and what somebody may have stored of it since.
    pub(super) async fn clean(&self, case: &Case) -> Result<(), StoreError> {
        let (tag, recording) = (case.tenant.tag(), case.recording);
        self.store.purge(&layout::recording_prefix(tag, recording)).await?;
        remove_entries(&*self.store, tag, recording).await?;
        self.forget(case, |_| true).await
    }

    /// Removes entries of the expiry index under which a case was found.
    pub(super) async fn forget(
        &self,
        case: &Case,
        is_wrong: impl Fn(&String) -> bool,
    ) -> Result<(), StoreError> {
        let entry = |date: &String| layout::expiry(date, case.tenant.tag(), case.recording);
        let wrong: Vec<_> = case.dates.iter().filter(|date| is_wrong(date)).map(entry).collect();
        self.remove(&wrong).await
    }
}

/// Returns every date under which the expiry index may have a recording; first one under which it was found.
fn dates(case: &Case, known: Vec<UnixMillis>, order: &Order) -> Vec<String> {
    let mut dates = case.dates.clone();
    for at in known.into_iter().chain(order.expires_ms.map(UnixMillis)) {
        let date = clock::utc_date(at);
        if !dates.contains(&date) {
            dates.push(date);
        }
    }
    dates
}

fn event(recording: RecordingId, deletion: &Deletion) -> AuditEvent {
    let action = match deletion.reason {
        Reason::Expired => "expire",
        Reason::Requested => "delete",
    };
    AuditEvent {
        reason: Some(deletion.reason.name().to_owned()),
        detail: Some(format!("objects={}", deletion.objects)),
        ..AuditEvent::by_node("sweeper", action, recording.to_string())
    }
}
