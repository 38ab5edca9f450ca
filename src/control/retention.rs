//! Orders of people about one recording: hold it, release it, delete it before its time.
//!
//! An order is in the audit log, and one to delete in the deletion ledger, before it has any effect. Nothing is
//! deleted here: the sweeper does that, and it reads the orders. See `domain::retention` for what orders mean.

use std::sync::Arc;

use bytes::Bytes;

use crate::clock;
use crate::control::audit::{AuditError, AuditEvent, AuditLog};
use crate::control::ledger::{Ledger, LedgerError};
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::domain::kept_until::KeptUntil;
use crate::domain::ledger::{Entry, Scope};
use crate::domain::notice::{Event, NoticeKind};
use crate::domain::retention::{Change, Order, Receipt, Refusal};
use crate::domain::time::UnixMillis;
use crate::keys::KeyService;
use crate::notices::Notices;
use crate::store::{ObjectClass, PutOutcome, Store, StoreError, Tags, layout};
use crate::upload::{newest_order, tag_order};

/// How often an order is given again when somebody else gave one at the same moment.
const TRIES: u32 = 8;
/// Revisions have four digits, so that they sort.
const MAX_REVISION: u32 = 9999;

/// Who orders it, and why.
#[derive(Debug, Clone)]
pub struct OrderedBy {
    /// A person's name.
    pub actor: String,
    /// In which role.
    pub role: &'static str,
    /// From which address, if it came from one.
    pub source: Option<String>,
    /// The request's id; empty when no request was behind it.
    pub request: String,
    /// In their words.
    pub reason: String,
}

impl OrderedBy {
    /// An operator at this machine.
    pub fn operator(actor: &str, reason: &str) -> Self {
        let (actor, reason) = (actor.to_owned(), reason.to_owned());
        Self { actor, role: "operator", source: None, request: String::new(), reason }
    }
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// What holds now.
    pub order: Order,
    /// Whether it is another than before.
    pub changed: bool,
}

/// Why an order was not given.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// There is none of that id for this tenant.
    #[error("no such recording")]
    NotFound,
    /// It was deleted.
    #[error("recording was deleted at {}", clock::rfc3339(UnixMillis(.0.deleted_at_ms)))]
    Deleted(Box<Receipt>),
    /// The rules do not allow it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Others give orders at the same time, again and again, or there were too many.
    #[error("too many orders about this recording")]
    Contended,
    /// There is no audit record, so there is no order.
    #[error("audit log")]
    Audit(#[from] AuditError),
    /// There is no entry in the ledger, so there is no order to delete.
    #[error("deletion ledger")]
    Ledger(#[from] LedgerError),
    /// The store; trying again is safe.
    #[error("store")]
    Store(#[from] StoreError),
}

/// Gives orders about recordings.
pub struct Orders {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
    notices: Notices,
    ledger: Ledger,
}

impl Orders {
    /// Keeps orders in `store`.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, audit: AuditLog) -> Self {
        let ledger = Ledger::new(Arc::clone(&store), Arc::clone(&keys));
        Self::with_ledger(store, keys, audit, ledger)
    }

    /// Tells tenants what is held and released.
    #[must_use]
    pub fn with_notices(mut self, notices: Notices) -> Self {
        self.notices = notices;
        self
    }

    /// Notes orders to delete in the ledger that others append to as well.
    pub(super) fn with_ledger(
        store: Arc<dyn Store>,
        keys: Arc<KeyService>,
        audit: AuditLog,
        ledger: Ledger,
    ) -> Self {
        Self { store, keys, audit, notices: Notices::off(), ledger }
    }

    /// Holds a recording: nothing deletes it until it is released.
    ///
    /// # Errors
    /// [`RetentionError`]; after [`RetentionError::Store`] it may be held or not, and calling again is safe.
    pub async fn hold(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        by: &OrderedBy,
    ) -> Result<Placed, RetentionError> {
        self.place(tenant, recording, (Change::Hold, Scope::Recording), by).await
    }

    /// Releases a recording: its date counts again.
    ///
    /// # Errors
    /// As [`Orders::hold`].
    pub async fn release(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        by: &OrderedBy,
    ) -> Result<Placed, RetentionError> {
        self.place(tenant, recording, (Change::Release, Scope::Recording), by).await
    }

    /// Lets a recording expire now; the next sweep deletes it. A call that still runs is deleted when it has ended.
    ///
    /// # Errors
    /// [`Refusal::Held`]; else as [`Orders::hold`].
    pub async fn delete(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        by: &OrderedBy,
    ) -> Result<Placed, RetentionError> {
        self.delete_within(tenant, recording, by, Scope::Recording).await
    }

    /// As [`Orders::delete`], as a part of something larger.
    pub(super) async fn delete_within(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        by: &OrderedBy,
        scope: Scope,
    ) -> Result<Placed, RetentionError> {
        let now = self.store.now().await?;
        self.place(tenant, recording, (Change::ExpireAt(now), scope), by).await
    }

    /// Lets a recording expire at `at`, if that is before its date; a held one stays held.
    ///
    /// # Errors
    /// As [`Orders::hold`].
    pub(super) async fn shorten(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        at: UnixMillis,
        by: &OrderedBy,
    ) -> Result<Placed, RetentionError> {
        self.place(tenant, recording, (Change::Shorten(at), Scope::Tenant), by).await
    }

    /// Lets a recording be kept until the date of `kept`; `seen` is what the newest order had in its place. An order for an
    /// earlier date still counts, and so does a hold.
    ///
    /// # Errors
    /// [`Refusal::Overtaken`]; else as [`Orders::hold`].
    pub(super) async fn lengthen(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        (kept, seen): (KeptUntil, Option<KeptUntil>),
        by: &OrderedBy,
    ) -> Result<Placed, RetentionError> {
        self.place(tenant, recording, (Change::Lengthen { kept, seen }, Scope::Tenant), by).await
    }

    /// Orders that a recording be deleted that was deleted before, and that a backup has brought back.
    pub(super) async fn delete_again(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        by: &OrderedBy,
    ) -> Result<Placed, RetentionError> {
        let now = self.store.now().await?;
        self.note(tenant, recording, (Change::ExpireAt(now), Scope::Replay), by).await?;
        put_expiry(&*self.store, tenant.tag(), recording, now).await?;
        self.put(tenant.tag(), recording, Change::ExpireAt(now)).await.map(|(placed, _)| placed)
    }

    /// Notes in the ledger who orders a deletion, and why.
    async fn note(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        (change, scope): (Change, Scope),
        by: &OrderedBy,
    ) -> Result<(), LedgerError> {
        let (recording, actor, reason) = (recording.to_string(), by.actor.clone(), by.reason.clone());
        let entry = match change {
            Change::Hold | Change::Release | Change::Lengthen { .. } => return Ok(()),
            Change::ExpireAt(at) => Entry::Ordered { recording, scope, actor, reason, at_ms: at.0 },
            Change::Shorten(at) => {
                let at_ms = self.store.now().await?.0;
                Entry::Shortened { recording, actor, reason, at_ms, expires_ms: at.0 }
            }
        };
        self.ledger.append(tenant, &entry).await.map(drop)
    }

    /// Tells what an order would do, and does nothing.
    ///
    /// # Errors
    /// As the order itself.
    pub async fn preview(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        change: Change,
    ) -> Result<Placed, RetentionError> {
        self.check_present(tenant.tag(), recording).await?;
        let (_, order) = self.newest(tenant.tag(), recording).await?;
        let next = order.changed(change)?;
        Ok(Placed { changed: next.is_some(), order: next.unwrap_or(order) })
    }

    async fn place(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        (change, scope): (Change, Scope),
        by: &OrderedBy,
    ) -> Result<Placed, RetentionError> {
        let tag = tenant.tag();
        let preview = self.preview(tenant, recording, change).await;
        if let Err(RetentionError::Refused(refusal)) = &preview {
            self.audit.record(tenant, event(recording, change, by, refusal.code())).await?;
        }
        let preview = preview?;
        self.audit.record(tenant, event(recording, change, by, "allowed")).await?;
        if let Change::Lengthen { kept, .. } = change {
            put_expiry(&*self.store, tag, recording, kept.unproven()).await?;
            // Before the order as well: a pass that dies in between goes by what has its order, and rules of the bucket by tags.
            tag_order(&*self.store, tag, recording, &preview.order).await?;
        }
        if let Change::ExpireAt(at) | Change::Shorten(at) = change {
            if preview.changed {
                self.note(tenant, recording, (change, scope), by).await?;
            }
            // Before the order: an order that no entry leads to would be forgotten until the sealed date, and an entry
            // without an order does no harm.
            put_expiry(&*self.store, tag, recording, at).await?;
        }
        let (placed, revision) = self.put(tag, recording, change).await?;
        self.check_still_present(tag, recording).await?;
        if let Some(kind) = told(change).filter(|_| placed.changed) {
            self.notices.told(tenant, Event::of_recording(kind, recording, revision)).await;
        }
        tag_order(&*self.store, tag, recording, &placed.order).await?;
        tracing::info!(%recording, change = action(change), changed = placed.changed, "retention order");
        Ok(placed)
    }

    /// An order that was given while the last steps of a deletion ran binds nobody, and does not stay.
    async fn check_still_present(
        &self,
        tag: TenantTag,
        recording: RecordingId,
    ) -> Result<(), RetentionError> {
        let present = self.check_present(tag, recording).await;
        if let Err(RetentionError::NotFound | RetentionError::Deleted(_)) = &present {
            self.store.purge(&layout::orders_prefix(tag, recording)).await?;
        }
        present
    }

    async fn put(
        &self,
        tag: TenantTag,
        recording: RecordingId,
        change: Change,
    ) -> Result<(Placed, u32), RetentionError> {
        for _ in 0..TRIES {
            let (revision, order) = self.newest(tag, recording).await?;
            let Some(next) = order.changed(change)? else {
                return Ok((Placed { order, changed: false }, revision));
            };
            if put_order(&*self.store, tag, recording, revision, &next).await? {
                return Ok((Placed { order: next, changed: true }, revision));
            }
        }
        Err(RetentionError::Contended)
    }

    /// Returns the number of the next revision and what holds now.
    async fn newest(&self, tag: TenantTag, recording: RecordingId) -> Result<(u32, Order), StoreError> {
        next_order(&*self.store, tag, recording).await
    }

    async fn check_present(&self, tag: TenantTag, recording: RecordingId) -> Result<(), RetentionError> {
        if let Some(receipt) = receipt(&*self.store, tag, recording).await? {
            return Err(RetentionError::Deleted(Box::new(receipt)));
        }
        match self.keys.has_envelope(tag, recording).await? {
            true => Ok(()),
            // Its deletion may be half-way.
            false => match self.newest(tag, recording).await? {
                (_, order) if order.deletion.is_some() => Err(Refusal::Deleting.into()),
                _ => Err(RetentionError::NotFound),
            },
        }
    }
}

/// Reads the number of the next revision of a recording's order, and the order that holds now.
pub(super) async fn next_order(
    store: &dyn Store,
    tag: TenantTag,
    recording: RecordingId,
) -> Result<(u32, Order), StoreError> {
    let newest = newest_order(store, tag, recording).await?;
    Ok(newest.map_or((0, Order::NONE), |(revision, order)| (revision.saturating_add(1), order)))
}

/// Puts a revision of an order; answers whether it is the one that counts, and not somebody else's.
pub(super) async fn put_order(
    store: &dyn Store,
    tag: TenantTag,
    recording: RecordingId,
    revision: u32,
    order: &Order,
) -> Result<bool, StoreError> {
    if revision > MAX_REVISION {
        return Err(StoreError::Refused { rule: "a recording has at most 10000 retention orders" });
    }
    let json = Bytes::from(serde_json::to_vec(order).unwrap_or_default());
    let name = layout::order(tag, recording, revision);
    let put = store.put_new(&name, json.clone(), &Tags::of(tag, ObjectClass::Order)).await?;
    if put == PutOutcome::AlreadyExists || store.profile().create_once {
        return Ok(put == PutOutcome::Created);
    }
    // Somebody may have written over it.
    Ok(store.get(&name, None).await?.bytes == json)
}

/// Puts the entry of the expiry index that leads to a recording on the date of `at`.
pub(super) async fn put_expiry(
    store: &dyn Store,
    tag: TenantTag,
    recording: RecordingId,
    at: UnixMillis,
) -> Result<(), StoreError> {
    let name = layout::expiry(&clock::utc_date(at), tag, recording);
    store.put_new(&name, Bytes::new(), &Tags::of(tag, ObjectClass::Expiry)).await?;
    Ok(())
}

/// Reads the receipt of a recording's deletion; `None` if it was not deleted.
///
/// # Errors
/// [`StoreError`].
pub async fn receipt(
    store: &dyn Store,
    tag: TenantTag,
    recording: RecordingId,
) -> Result<Option<Receipt>, StoreError> {
    match store.get(&layout::receipt(tag, recording), None).await {
        Err(StoreError::NotFound) => Ok(None),
        fetched => serde_json::from_slice(&fetched?.bytes)
            .map(Some)
            .map_err(|_| StoreError::Corrupt { what: "deletion receipt is not readable" }),
    }
}

/// What a tenant is told of an order; of an early end when it has come.
fn told(change: Change) -> Option<NoticeKind> {
    match change {
        Change::Hold => Some(NoticeKind::Held),
        Change::Release => Some(NoticeKind::Released),
        Change::ExpireAt(_) | Change::Shorten(_) | Change::Lengthen { .. } => None,
    }
}

fn action(change: Change) -> &'static str {
    match change {
        Change::Hold => "hold",
        Change::Release => "release",
        Change::ExpireAt(_) => "delete",
        Change::Shorten(_) => "shorten",
        Change::Lengthen { .. } => "lengthen",
    }
}

fn event(recording: RecordingId, change: Change, by: &OrderedBy, result: &str) -> AuditEvent {
    AuditEvent {
        role: by.role.to_owned(),
        source: by.source.clone(),
        request: by.request.clone(),
        reason: Some(by.reason.clone()),
        result: result.to_owned(),
        ..AuditEvent::by_operator(&by.actor, action(change), recording.to_string())
    }
}
