//! The sweeper: finds the recordings whose time is over in the expiry index, and deletes them.
//!
//! The index only says where to look. What is deleted is decided by the sealed date, the recording's newest retention order
//! and the store's clock, all read again for each recording; an entry that says otherwise is put right. Any number of
//! nodes may sweep at the same time: what they do is safe to do twice.
//!
//! Nothing is deleted while the clocks cannot be believed, or when far more is due than a store normally loses at once.

mod error;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde::Serialize;

use crate::clock;
use crate::control::answers;
use crate::control::audit::AuditLog;
use crate::control::deletion::{Case, DeletionError, Deletions, Verdict};
use crate::control::ledger::Ledger;
use crate::control::retention::put_expiry;
use crate::domain::ids::{RecordingId, TenantId, TenantTag};
use crate::domain::retention::{Fate, Order, check_clocks, entries_needed};
use crate::domain::time::UnixMillis;
use crate::keys::KeyService;
use crate::notices::Notices;
use crate::observe::metrics;
use crate::store::{ObjectName, Store, StoreError, layout};
use crate::upload::tag_order;

pub use error::{SweepError, TooMuchDue};

/// Entries listed at a time.
const PAGE: usize = 1000;
/// An entry that turns out to be too early stays so long after its date: whoever puts an early entry puts the order that
/// needs it a moment later.
const STALE_AFTER: Duration = Duration::from_secs(48 * 3600);
/// Days of used tickets that one sweep destroys; the next one goes on.
const TICKET_DAYS: usize = 16;
/// An hour: far more than clocks may differ.
const TICKET_SLACK_MS: u64 = 3_600_000;
/// An unfinished upload of a recording that nobody works on is given up after so many milliseconds: a day.
const UPLOAD_AGE_MS: u64 = 24 * 3600 * 1000;

/// How a sweeper works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SweepOptions {
    /// How often it is run: what is due for longer is overdue.
    pub interval: Duration,
    /// How long backups and versions of the store may keep what was deleted; for receipts.
    pub grace: Duration,
    /// Deletions of one sweep; the next one goes on.
    pub max_deletions: usize,
    /// Recordings worked on at the same time, at least 1: 8 at some 30 requests of 20 ms are 13 deletions a second.
    pub concurrency: usize,
    /// More than this share of the expiry index being due stops the sweep, in percent; 100 allows everything.
    pub max_share_percent: u8,
}

/// What a sweep found and did. Without deletions, what it would have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SweepReport {
    /// Recordings that are due and not held.
    pub due: u64,
    /// Of these, deleted now.
    pub deleted: u64,
    /// Kept, although their date has come, because they are held.
    pub held: u64,
    /// Entries whose recording is to be kept longer, and entries of recordings that are gone.
    pub tidied: u64,
    /// Recordings that are due later today, or that somebody works on.
    pub waiting: u64,
    /// Recordings that could not be judged or deleted; the log says why.
    pub failed: u64,
    /// Recordings that are due for longer than one interval, and neither held nor deleted. Normal is 0.
    pub overdue: u64,
}

/// What a look at the index has found.
#[derive(Debug)]
pub struct Survey {
    now: UnixMillis,
    due: BTreeMap<(TenantTag, RecordingId), Due>,
    report: SweepReport,
    too_much: Option<TooMuchDue>,
    /// Entries of tenants that this node does not have.
    of_strangers: u64,
}

impl Survey {
    /// Returns what a sweep would do; `deleted` is 0.
    pub fn report(&self) -> SweepReport {
        self.report
    }

    /// Returns why a sweep would stop before it deletes anything.
    pub fn too_much_due(&self) -> Option<TooMuchDue> {
        self.too_much
    }
}

#[derive(Debug)]
struct Due {
    case: Case,
    is_overdue: bool,
}

/// Finds and deletes what is due.
pub struct Sweeper {
    deletions: Deletions,
    options: SweepOptions,
    our_clock: Box<dyn Fn() -> UnixMillis + Send + Sync>,
    /// What the store's clock showed last.
    last: Mutex<Option<UnixMillis>>,
}

impl Sweeper {
    /// Sweeps `store`.
    pub fn new(store: Arc<dyn Store>, keys: Arc<KeyService>, audit: AuditLog, options: SweepOptions) -> Self {
        let ledger = Ledger::new(Arc::clone(&store), Arc::clone(&keys));
        let (notices, grace) = (Notices::off(), options.grace);
        let deletions = Deletions { store, keys, audit, notices, ledger, grace };
        Self { deletions, options, our_clock: Box::new(clock::wall), last: Mutex::new(None) }
    }

    /// Tells tenants what is deleted.
    #[must_use]
    pub fn with_notices(mut self, notices: Notices) -> Self {
        self.deletions.notices = notices;
        self
    }

    /// Reads another clock than this machine's.
    #[must_use]
    pub fn with_clock(mut self, our_clock: impl Fn() -> UnixMillis + Send + Sync + 'static) -> Self {
        self.our_clock = Box::new(our_clock);
        self
    }

    /// Looks at everything whose date has come, and changes nothing.
    ///
    /// # Errors
    /// [`SweepError::Clock`], [`SweepError::Store`].
    pub async fn survey(&self, tenants: &[TenantId]) -> Result<Survey, SweepError> {
        self.look(tenants, false).await
    }

    /// Deletes everything that is due, up to the bounds of its options, and puts the index right.
    ///
    /// # Errors
    /// [`SweepError`]: nothing was deleted. A recording that cannot be deleted is no error but `failed` in the report.
    pub async fn run(&self, tenants: &[TenantId]) -> Result<SweepReport, SweepError> {
        let swept = self.sweep(tenants).await;
        publish(&swept);
        swept
    }

    async fn sweep(&self, tenants: &[TenantId]) -> Result<SweepReport, SweepError> {
        let Survey { now, due, mut report, too_much, .. } = self.look(tenants, true).await?;
        if let Err(error) = self.forget_tickets(now).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "used tickets of earlier days stay in the store"
            );
        }
        if let Err(error) = answers::forget(&*self.deletions.store, now).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "kept answers of the API stay in the store"
            );
        }
        if let Some(too_much) = too_much {
            #[expect(clippy::cast_precision_loss, reason = "recordings are far below 2^52")]
            ::metrics::gauge!(metrics::RETENTION_OVERDUE).set(report.overdue as f64);
            return Err(too_much.into());
        }
        let mut deletions = stream::iter(due.into_values().take(self.options.max_deletions))
            .map(|due| async move { (self.deletions.delete(&due.case, now).await, due) })
            .buffer_unordered(self.options.concurrency);
        while let Some((outcome, Due { case, is_overdue })) = deletions.next().await {
            match outcome {
                Ok(Verdict::Fate(Fate::Delete { .. } | Fate::Finish) | Verdict::Leftover) => {
                    report.deleted += 1;
                    report.overdue -= u64::from(is_overdue);
                }
                Ok(Verdict::Fate(Fate::Hold)) => {
                    report.held += 1;
                    report.due -= 1;
                    report.overdue -= u64::from(is_overdue);
                }
                Ok(Verdict::Fate(Fate::Keep { .. } | Fate::Wait | Fate::Stuck)) => {
                    report.waiting += 1;
                    report.due -= 1;
                }
                // Its key is destroyed already; the bytes go when the store lets them.
                Err(DeletionError::Store(StoreError::Locked { .. })) => {
                    report.waiting += 1;
                    report.due -= 1;
                    report.overdue -= u64::from(is_overdue);
                }
                Err(error) => {
                    report.failed += 1;
                    complain(case.recording, &error);
                }
            }
        }
        Ok(report)
    }

    /// Judges every entry up to today; `tidies`: puts right what is wrong with the index and with tags.
    async fn look(&self, tenants: &[TenantId], tidies: bool) -> Result<Survey, SweepError> {
        let now = self.believed_now().await?;
        let by_tag: BTreeMap<TenantTag, &TenantId> = tenants.iter().map(|id| (id.tag(), id)).collect();
        let today = clock::utc_date(now);
        let mut survey = Survey {
            now,
            due: BTreeMap::new(),
            report: SweepReport::default(),
            too_much: None,
            of_strangers: 0,
        };
        // Entries whose date has come, entries of any date, and due ones beyond the bound, which the next sweep judges.
        let (mut listed, mut unjudged, mut after) = (0, 0, None);
        loop {
            let page = self.page(after.as_ref()).await?;
            listed += page.len() as u64;
            after = page.last().cloned();
            let is_last = page.len() < PAGE;
            let mut entries: Vec<_> = page.into_iter().take_while(|name| is_due_by(name, &today)).collect();
            let is_over = is_last || entries.len() < PAGE;
            let room = if survey.due.len() < self.options.max_deletions { PAGE } else { 0 };
            let beyond = entries.split_off(room.min(entries.len()));
            unjudged += beyond.len() as u64;
            survey.report.overdue += beyond.iter().filter(|name| self.is_past(name, now)).count() as u64;
            self.judge_all(entries, &by_tag, &mut survey, tidies).await;
            if is_over {
                break;
            }
        }
        if survey.of_strangers > 0 {
            tracing::error!(
                recordings = survey.of_strangers,
                "recordings of tenants that this node does not have are due"
            );
        }
        survey.report.due = survey.due.len() as u64 + unjudged;
        survey.too_much = self.too_much(survey.report.due, listed, after).await?;
        Ok(survey)
    }

    /// Destroys what tells that tickets were used, once these are worth nothing anyway.
    async fn forget_tickets(&self, now: UnixMillis) -> Result<(), StoreError> {
        let store = &self.deletions.store;
        // A ticket that another clock still takes has its entry.
        let today = clock::utc_date(UnixMillis(now.0.saturating_sub(TICKET_SLACK_MS)));
        for _ in 0..TICKET_DAYS {
            let first = store.list_after(layout::TICKETS_PREFIX, None, 1).await?.pop();
            let date = first.as_ref().and_then(|info| info.name.as_str().split('/').nth(1));
            let Some(date) = date.filter(|date| *date < today.as_str()) else { return Ok(()) };
            store.purge(&format!("{}{date}/", layout::TICKETS_PREFIX)).await?;
        }
        Ok(())
    }

    /// Reads the store's clock, if it can be believed.
    async fn believed_now(&self) -> Result<UnixMillis, SweepError> {
        let store = self.deletions.store.now().await?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        check_clocks((self.our_clock)(), store, *last)?;
        *last = Some(store);
        Ok(store)
    }

    async fn page(&self, after: Option<&ObjectName>) -> Result<Vec<ObjectName>, StoreError> {
        let page = self.deletions.store.list_after(layout::EXPIRY_PREFIX, after, PAGE).await?;
        Ok(page.into_iter().map(|entry| entry.name).collect())
    }

    async fn judge_all(
        &self,
        entries: Vec<ObjectName>,
        by_tag: &BTreeMap<TenantTag, &TenantId>,
        survey: &mut Survey,
        tidies: bool,
    ) {
        let now = survey.now;
        let mut judged = stream::iter(entries)
            .map(|name| async move {
                let (date, tag, recording) = layout::expiry_of(&name)?;
                let case = by_tag.get(&tag).map(|tenant| Case {
                    tenant: (*tenant).clone(),
                    recording,
                    dates: vec![date.to_owned()],
                });
                let outcome = match &case {
                    None => Err(DeletionError::UnknownTenant(tag)),
                    Some(case) => self.judge_one(case, now, tidies).await,
                };
                Some((self.is_past(&name, now), recording, case, outcome))
            })
            .buffer_unordered(self.options.concurrency);
        while let Some(one) = judged.next().await {
            match one {
                None => {
                    survey.report.failed += 1;
                    tracing::error!("the expiry index has an entry whose name is not one");
                }
                Some((is_past, recording, case, outcome)) => {
                    self.count(survey, is_past, recording, case, outcome);
                }
            }
        }
    }

    fn count(
        &self,
        survey: &mut Survey,
        is_past: bool,
        recording: RecordingId,
        case: Option<Case>,
        outcome: Result<Verdict, DeletionError>,
    ) {
        let report = &mut survey.report;
        match (outcome, case) {
            (Ok(Verdict::Fate(fate @ (Fate::Delete { .. } | Fate::Finish))), Some(case)) => {
                let is_overdue = match fate {
                    Fate::Delete { since: Some(since), .. } => since.plus(self.options.interval) < survey.now,
                    Fate::Delete { since: None, .. }
                    | Fate::Finish
                    | Fate::Hold
                    | Fate::Keep { .. }
                    | Fate::Wait
                    | Fate::Stuck => is_past,
                };
                let key = (case.tenant.tag(), recording);
                match survey.due.get_mut(&key) {
                    Some(due) => due.case.dates.extend(case.dates),
                    None => {
                        report.overdue += u64::from(is_overdue);
                        survey.due.insert(key, Due { case, is_overdue });
                    }
                }
            }
            (Ok(Verdict::Fate(Fate::Hold)), _) => report.held += 1,
            (Ok(Verdict::Fate(Fate::Keep { .. }) | Verdict::Leftover), _) if is_past => report.tidied += 1,
            (Ok(Verdict::Fate(Fate::Stuck)), _) => {
                report.waiting += 1;
                report.overdue += u64::from(is_past);
            }
            (Ok(_), _) => report.waiting += 1,
            (Err(error), _) => {
                report.failed += 1;
                report.overdue += u64::from(is_past);
                if let DeletionError::UnknownTenant(_) = error {
                    survey.of_strangers += 1;
                } else {
                    complain(recording, &error);
                }
            }
        }
    }

    async fn judge_one(&self, case: &Case, now: UnixMillis, tidies: bool) -> Result<Verdict, DeletionError> {
        let verdict = self.deletions.verdict(case, now).await?;
        if tidies {
            self.tidy(case, &verdict, now).await?;
        }
        Ok(verdict)
    }

    /// Does what can be done for a recording that is not deleted.
    async fn tidy(&self, case: &Case, verdict: &Verdict, now: UnixMillis) -> Result<(), DeletionError> {
        let (tag, recording, store) = (case.tenant.tag(), case.recording, &*self.deletions.store);
        match verdict {
            Verdict::Leftover => self.deletions.clean(case).await?,
            Verdict::Fate(Fate::Hold) => {
                let held = Order { hold: true, ..Order::NONE };
                tag_order(store, tag, recording, &held).await?;
                self.abort_old_uploads(tag, recording, now).await?;
            }
            Verdict::Fate(Fate::Keep { until }) => {
                let right = clock::utc_date(*until);
                if case.dates.contains(&right) {
                    return Ok(());
                }
                put_expiry(store, tag, recording, *until).await?;
                let is_stale = |date: &String| {
                    clock::end_of_utc_date(date).is_some_and(|end| end.plus(STALE_AFTER) < now)
                };
                self.deletions.forget(case, is_stale).await?;
            }
            Verdict::Fate(Fate::Stuck) => self.abort_old_uploads(tag, recording, now).await?,
            Verdict::Fate(Fate::Wait | Fate::Delete { .. } | Fate::Finish) => {}
        }
        Ok(())
    }

    async fn abort_old_uploads(
        &self,
        tag: TenantTag,
        recording: RecordingId,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let before = UnixMillis(now.0.saturating_sub(UPLOAD_AGE_MS));
        self.deletions.store.abort_uploads(&layout::final_object(tag, recording), before).await?;
        Ok(())
    }

    /// Whether the date of an entry is over for longer than one interval.
    fn is_past(&self, name: &ObjectName, now: UnixMillis) -> bool {
        let end = layout::expiry_of(name).and_then(|(date, _, _)| clock::end_of_utc_date(date));
        end.is_some_and(|end| end.plus(self.options.interval) < now)
    }

    /// Asks the circuit breaker; lists on in the index only as long as the answer is open.
    async fn too_much(
        &self,
        due: u64,
        mut entries: u64,
        mut after: Option<ObjectName>,
    ) -> Result<Option<TooMuchDue>, StoreError> {
        let allowed_percent = self.options.max_share_percent;
        let needed = entries_needed(due, allowed_percent);
        while entries < needed {
            let page = match &after {
                Some(last) => self.page(Some(last)).await?,
                None => Vec::new(),
            };
            if page.is_empty() {
                return Ok(Some(TooMuchDue { due, entries, allowed_percent }));
            }
            entries += page.len() as u64;
            after = page.last().cloned();
        }
        Ok(None)
    }
}

/// Whether an entry's date is `today` or before; names that are no entries count, so that somebody looks at them.
fn is_due_by(name: &ObjectName, today: &str) -> bool {
    let date = name.as_str().get(layout::EXPIRY_PREFIX.len()..).unwrap_or_default();
    date.get(..today.len()).is_none_or(|date| date <= today)
}

fn complain(recording: RecordingId, error: &DeletionError) {
    ::metrics::counter!(metrics::RETENTION_FAILURES, "reason" => "recording").increment(1);
    tracing::error!(%recording, error = error as &dyn std::error::Error, "recording cannot be deleted now");
}

#[expect(clippy::cast_precision_loss, reason = "recordings and seconds are far below 2^52")]
fn publish(swept: &Result<SweepReport, SweepError>) {
    let is_too_much = matches!(swept, Err(SweepError::TooMuchDue(_)));
    ::metrics::gauge!(metrics::RETENTION_STOPPED).set(f64::from(u8::from(is_too_much)));
    match swept {
        Ok(report) => {
            ::metrics::gauge!(metrics::RETENTION_OVERDUE).set(report.overdue as f64);
            ::metrics::gauge!(metrics::RETENTION_HELD).set(report.held as f64);
            ::metrics::gauge!(metrics::RETENTION_SWEPT).set(clock::wall().secs() as f64);
        }
        Err(error) => {
            ::metrics::counter!(metrics::RETENTION_FAILURES, "reason" => error.label()).increment(1);
            tracing::error!(error = error as &dyn std::error::Error, "nothing was deleted");
        }
    }
}
