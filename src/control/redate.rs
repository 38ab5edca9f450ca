//! Gives recordings of calls that have ended the date that other days of their tenant give them.
//!
//! Each gets an order with its end plus these days, in the audit log as any other, and in the deletion ledger if the date is
//! earlier; the sweeper does the rest. A later date needs days that two people have decided on, and is proven with the
//! recording's own key. One that has the date already is passed by, so that a pass that died is gone on with by any node, and
//! changes nothing twice. When no recording is left that may still need the date, that is noted with the tenant.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::clock;
use crate::config::{Config, Origin, Tenant};
use crate::control::audit::{AuditError, AuditEvent, AuditLog};
use crate::control::recordings::{RecordingError, StoredRecording, list};
use crate::control::retention::{OrderedBy, Orders, RetentionError};
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::kept_until::KeptUntil;
use crate::domain::policy::{Reach, Settled, Way};
use crate::domain::retention::{BUSY, Order, Refusal, check_clocks};
use crate::domain::time::UnixMillis;
use crate::keys::{KeyError, KeyService};
use crate::store::{Store, StoreError};
use crate::tenants::{Author, Book, BookError, ChangeError, Desk};
use crate::upload::newest_order;

/// Recordings listed at a time.
const PAGE: usize = 500;
/// Recordings worked on at the same time.
const CONCURRENCY: usize = 8;
/// So many recordings that fail end a pass: then it is not they.
const MAX_FAILURES: usize = 16;
/// How long after a change a node may still begin recordings with the days from before: four times what it takes until
/// every node knows.
const SLACK: Duration = Duration::from_secs(60);
const DAY_MS: u64 = 24 * 3600 * 1000;

/// Why a pass has stopped. Another one goes on.
#[derive(Debug, thiserror::Error)]
pub enum RedateError {
    /// A recording cannot be read now, or they cannot be listed.
    #[error("recordings of the tenant")]
    Recordings(#[from] RecordingError),
    /// A recording cannot be given its date.
    #[error(transparent)]
    Order(#[from] RetentionError),
    /// The store.
    #[error("store")]
    Store(#[from] StoreError),
    /// There is no audit record, so nothing is noted.
    #[error("audit log")]
    Audit(#[from] AuditError),
    /// The tenant cannot be read.
    #[error("tenant")]
    Book(#[from] BookError),
    /// What was done cannot be noted with the tenant.
    #[error("note of the tenant")]
    Note(#[from] ChangeError),
}

/// What becomes of recordings by other days, or would.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Redated {
    /// Recordings that get an earlier date.
    pub shorter: u64,
    /// Recordings that get a later date.
    pub longer: u64,
    /// Among those with an earlier one: their date is over at once, and they are not held: the next sweep deletes them.
    pub due_at_once: u64,
    /// Among those with another date: they are held, and nothing deletes them before they are released.
    pub held: u64,
    /// Recordings that keep their date, because the ticket of their call gave it.
    pub own_days: u64,
    /// Recordings whose date stays: fewer days give no earlier one, or more days no later one. Where it is over, or an order has
    /// made it earlier, more days give none.
    pub unchanged: u64,
    /// Recordings of calls that run or are being finished: they are looked at again.
    pub running: u64,
    /// Recordings whose date nobody can read; they are kept until somebody orders otherwise.
    pub unreadable: u64,
}

/// What other days mean for one recording.
enum Found {
    Shorter {
        at: UnixMillis,
        is_held: bool,
    },
    Longer {
        kept: KeptUntil,
        seen: Option<KeptUntil>,
        is_held: bool,
    },
    OwnDays,
    Unchanged,
    Running,
    Unreadable,
    /// It is gone, or its deletion has begun.
    Gone,
}

/// Returns the tenants whose ended recordings wait for a date.
pub fn waiting<'a>(tenants: impl IntoIterator<Item = &'a Tenant>) -> Vec<TenantId> {
    let waits = |tenant: &&Tenant| matches!(tenant.origin, Origin::Store { redates: true, .. });
    tenants.into_iter().filter(waits).map(|tenant| tenant.id.clone()).collect()
}

/// Gives dates.
pub struct Redating {
    store: Arc<dyn Store>,
    keys: Arc<KeyService>,
    audit: AuditLog,
    orders: Orders,
}

impl Redating {
    /// Works in `store`.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, audit: AuditLog) -> Self {
        let orders = Orders::new(Arc::clone(&store), Arc::clone(&keys), audit.clone());
        Self { store, keys, audit, orders }
    }

    /// Counts what a change would do now, and does nothing; `progress` is called after each recording.
    ///
    /// # Errors
    /// [`RedateError`].
    pub async fn survey(
        &self,
        tenant: &TenantId,
        (days, way): (u32, Way),
        progress: impl FnMut(&Redated),
    ) -> Result<Redated, RedateError> {
        let at = self.store.now().await?;
        self.pass(tenant, Reach { days, at, way }, None, progress).await
    }

    /// Gives every recording that `reach` is for its date; `progress` is called after each.
    ///
    /// # Errors
    /// [`RedateError`]: some may not have it, and calling again goes on.
    pub async fn run(
        &self,
        tenant: &TenantId,
        reach: Reach,
        by: &OrderedBy,
        progress: impl FnMut(&Redated),
    ) -> Result<Redated, RedateError> {
        self.pass(tenant, reach, Some(by), progress).await
    }

    /// Does for a tenant what its policy waits for, and notes with it what is done. Answers what became of the recordings
    /// by the last change that was waited for; `None` when none was.
    ///
    /// # Errors
    /// [`RedateError`]: calling again goes on.
    pub async fn carry_out(
        &self,
        desk: &Desk<'_>,
        tenant: &TenantId,
        mut progress: impl FnMut(&Redated),
    ) -> Result<Option<Redated>, RedateError> {
        let Some(newest) = desk.book.newest(tenant.tag()).await? else { return Ok(None) };
        let mut last = None;
        for settled in newest.retention.outstanding() {
            let by = OrderedBy { role: "node", ..OrderedBy::operator(&settled.by, &settled.reason) };
            let reach = newest.retention.reach(settled);
            let done = self.run(tenant, reach, &by, &mut progress).await?;
            if done.running == 0 && self.is_over(reach.at).await? {
                self.note(desk, tenant, settled, &done).await?;
            }
            last = Some(done);
        }
        Ok(last)
    }

    /// The same for tenants that [`waiting`] has named; what stops it for one is logged.
    pub async fn carry_out_all(&self, (config, book): (&Config, &Book), waiting: &[TenantId]) {
        let author = Author { name: config.node.as_str().to_owned(), reason: None };
        let desk = Desk { config, of_files: Vec::new(), book, author };
        for tenant in waiting {
            match Box::pin(self.carry_out(&desk, tenant, |_| {})).await {
                Ok(done) => tracing::info!(%tenant, ?done, "ended recordings have another date"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(%tenant, error, "not every ended recording has its other date");
                }
            }
        }
    }

    /// Whether no call can have begun with the days from before any more. A clock that is wrong says nothing.
    async fn is_over(&self, at: UnixMillis) -> Result<bool, StoreError> {
        let now = self.store.now().await?;
        Ok(check_clocks(clock::wall(), now, None).is_ok() && at.plus(SLACK) <= now)
    }

    async fn note(
        &self,
        desk: &Desk<'_>,
        tenant: &TenantId,
        settled: &Settled,
        done: &Redated,
    ) -> Result<(), RedateError> {
        let Some(draft) = desk.retention_done(tenant, settled.number).await? else { return Ok(()) };
        let Redated { shorter, longer, held, own_days, unchanged, unreadable, .. } = done;
        let detail = format!(
            "{} change={} shorter={shorter} longer={longer} held={held} own_days={own_days} unchanged={unchanged} unreadable={unreadable}",
            draft.detail(),
            settled.number
        );
        let action = draft.revision.made.action();
        let event = AuditEvent {
            detail: Some(detail),
            ..AuditEvent::by_node(&desk.author.name, action, tenant.to_string())
        };
        self.audit.record(tenant, event).await?;
        match draft.put(desk.book).await {
            // Somebody else has changed the tenant, perhaps by the same note: the next round sees.
            Ok(()) | Err(ChangeError::Contended) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Looks at every recording that `reach` is for, and orders its date if somebody gives the order. One that fails keeps no
    /// other from its date; the first failure is the answer.
    async fn pass(
        &self,
        tenant: &TenantId,
        reach: Reach,
        by: Option<&OrderedBy>,
        mut progress: impl FnMut(&Redated),
    ) -> Result<Redated, RedateError> {
        let now = self.store.now().await?;
        let last = match reach.way {
            Way::Longer { began_by: Some(by) } => reach.at.plus(SLACK).min(by),
            Way::Longer { began_by: None } | Way::Shorter => reach.at.plus(SLACK),
        };
        let (mut counts, mut after, mut failures) = (Redated::default(), None, Vec::new());
        loop {
            let page = list(&*self.store, tenant, after, PAGE).await?;
            let Some(next) = page.last().copied() else { break };
            after = Some(next);
            // Ids begin with the time at which the call began.
            let in_reach = page.into_iter().filter(|recording| recording.created_ms() <= last.0);
            let mut looked = stream::iter(in_reach)
                .map(|recording| self.one(tenant, recording, (reach, now), by))
                .buffer_unordered(CONCURRENCY);
            while let Some(found) = looked.next().await {
                match found {
                    Ok(found) => counts.count(&found, now),
                    Err(error) => failures.push(error),
                }
                progress(&counts);
                if failures.len() >= MAX_FAILURES {
                    break;
                }
            }
            if next.created_ms() > last.0 || failures.len() >= MAX_FAILURES {
                break;
            }
        }
        failures.into_iter().next().map_or(Ok(counts), Err)
    }

    async fn one(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        (reach, now): (Reach, UnixMillis),
        by: Option<&OrderedBy>,
    ) -> Result<Found, RedateError> {
        let found = self.look(tenant, recording, (reach, now)).await?;
        let placed = match (&found, by) {
            (Found::Shorter { at, .. }, Some(by)) => self.orders.shorten(tenant, recording, *at, by).await,
            (Found::Longer { kept, seen, .. }, Some(by)) => {
                self.orders.lengthen(tenant, recording, (*kept, *seen), by).await
            }
            _ => return Ok(found),
        };
        match placed {
            Ok(_) => Ok(found),
            Err(
                RetentionError::NotFound
                | RetentionError::Deleted(_)
                | RetentionError::Refused(Refusal::Deleting),
            ) => Ok(Found::Gone),
            Err(error) => Err(error.into()),
        }
    }

    async fn look(
        &self,
        tenant: &TenantId,
        recording: RecordingId,
        (reach, now): (Reach, UnixMillis),
    ) -> Result<Found, RedateError> {
        let tag = tenant.tag();
        let order = newest_order(&*self.store, tag, recording).await?.map_or(Order::NONE, |(_, order)| order);
        if order.deletion.is_some() {
            return Ok(Found::Gone);
        }
        let opened = StoredRecording::open_finished(&self.store, &self.keys, tenant, recording).await;
        let opened = match opened {
            Ok(opened) => opened,
            Err(RecordingError::NotFound) => None,
            Err(RecordingError::Integrity(_)) => return Ok(Found::Unreadable),
            Err(RecordingError::Unavailable(cause))
                if cause.downcast_ref::<KeyError>().is_some_and(KeyError::is_refusal) =>
            {
                return Ok(Found::Unreadable);
            }
            Err(error @ RecordingError::Unavailable(_)) => return Err(error.into()),
        };
        let Some(opened) = opened else {
            if !self.keys.has_envelope(tag, recording).await? {
                return Ok(Found::Gone);
            }
            let may_be_busy = UnixMillis(recording.created_ms()).plus(BUSY) > now;
            return Ok(if may_be_busy { Found::Running } else { Found::Unreadable });
        };
        Ok(found(&opened, &order, (reach, now)))
    }
}

/// Says what other days mean for a recording that can be read.
fn found(opened: &StoredRecording, order: &Order, (reach, now): (Reach, UnixMillis)) -> Found {
    let (Some(finished), Some(kept)) = (opened.manifest(), opened.kept_until(order)) else {
        return Found::Unreadable;
    };
    let at = UnixMillis(finished.end.ended_ms.saturating_add(u64::from(reach.days) * DAY_MS));
    let (until, _) = order.effective(kept);
    let is_held = order.hold;
    match reach.way {
        Way::Shorter if until <= at => Found::Unchanged,
        // What is over stays over: nobody can play it any more.
        Way::Longer { .. } if order.effective(kept.max(at)).0 <= until || (until <= now && !is_held) => {
            Found::Unchanged
        }
        Way::Shorter | Way::Longer { .. } if finished.metadata.own_days => Found::OwnDays,
        Way::Shorter => Found::Shorter { at, is_held },
        Way::Longer { .. } => {
            let (ids, key) = (opened.ids(), opened.key().dek.kept_until_key());
            let kept = KeptUntil::seal(&key, ids.tenant, ids.recording, at);
            Found::Longer { kept, seen: order.kept_until, is_held }
        }
    }
}

impl Redated {
    fn count(&mut self, found: &Found, now: UnixMillis) {
        match found {
            Found::Shorter { at, is_held } => {
                self.shorter += 1;
                self.held += u64::from(*is_held);
                self.due_at_once += u64::from(!is_held && *at <= now);
            }
            Found::Longer { is_held, .. } => {
                self.longer += 1;
                self.held += u64::from(*is_held);
            }
            Found::OwnDays => self.own_days += 1,
            Found::Unchanged => self.unchanged += 1,
            Found::Running => self.running += 1,
            Found::Unreadable => self.unreadable += 1,
            Found::Gone => {}
        }
    }
}
