//! Recovery by others: finds recordings whose node never came back, and finishes them from the store alone.
//!
//! A recording counts as abandoned when its newest object is older than `repair.after_secs` by the store's clock, and
//! this process has seen nothing change for half that time while the store answered. Wrong guesses do no harm: what its
//! recorder adds later is joined as a later revision. See [`settle`] for why any number of nodes may do this at once.

mod look;
pub mod settle;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::clock;
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::time::UnixMillis;
use crate::observe::metrics;
use crate::store::{ObjectInfo, ObjectName, Store, StoreError, layout};
use crate::upload::Listed;

pub use settle::{Outcome, SettleError, Settlement, Settler};

/// Objects listed at a time; finished recordings have one each.
const PAGE: usize = 1000;
/// How often everything is listed, rather than what came after the last recordings that were finished: late segments of
/// finished recordings are for their own node to bring in, so this is a safety net.
const FULL_SCAN: Duration = Duration::from_secs(24 * 60 * 60);
/// Unsettled recordings remembered between scans; far more than nodes carry calls at once.
const MAX_SIGHTINGS: usize = 100_000;

/// A recording that is not in its final form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsettled {
    /// The recording.
    pub recording: RecordingId,
    /// What there is of it.
    pub state: State,
    /// How many objects.
    pub objects: usize,
    /// When the newest was stored, by the store's clock, if it tells.
    pub newest: Option<UnixMillis>,
}

/// What the names of a recording's objects say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Segments without a manifest: the call goes on, or its node died.
    Segments,
    /// A manifest without a final object.
    Manifest,
    /// Objects beside a final one: a compaction was interrupted, or segments came late.
    Leftovers,
}

impl State {
    /// Returns the word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Segments => "segments",
            Self::Manifest => "manifest",
            Self::Leftovers => "leftovers",
        }
    }
}

/// What a scan of one tenant found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// Recordings that are not in their final form, oldest first.
    pub unsettled: Vec<Unsettled>,
    /// How many are.
    pub settled: u64,
    /// The last recording before which all are.
    pub settled_up_to: Option<RecordingId>,
}

/// Lists a tenant's recordings that come after `after` and tells which are not in their final form.
///
/// One request for each thousand objects. A finished recording has one object.
///
/// # Errors
/// [`StoreError`].
pub async fn scan(
    store: &dyn Store,
    tenant: &TenantId,
    after: Option<RecordingId>,
    try_timeout: Duration,
) -> Result<Scan, StoreError> {
    let prefix = layout::recordings_prefix(tenant.tag());
    // After every object of a recording comes no name before this one.
    let mut after = after.and_then(|recording| ObjectName::new(format!("{prefix}{recording}/z")).ok());
    let (mut scan, mut current) = (Scan::default(), Vec::new());
    loop {
        let listing = store.list_after(&prefix, after.as_ref(), PAGE);
        let late = || StoreError::Io { action: "list in time", source: std::io::ErrorKind::TimedOut.into() };
        let page = tokio::time::timeout(try_timeout, listing).await.map_err(|_| late())??;
        let is_last = page.len() < PAGE;
        after = page.last().map(|object| object.name.clone());
        for object in page {
            let same = current.last().is_none_or(|last: &ObjectInfo| {
                layout::recording_of(&last.name) == layout::recording_of(&object.name)
            });
            if !same {
                scan.add(std::mem::take(&mut current));
            }
            current.push(object);
        }
        if is_last {
            scan.add(current);
            return Ok(scan);
        }
    }
}

impl Scan {
    /// Judges all objects of one recording.
    fn add(&mut self, objects: Vec<ObjectInfo>) {
        let Some(recording) = objects.first().and_then(|object| layout::recording_of(&object.name)) else {
            return;
        };
        let newest = objects.iter().map(|object| object.modified).max().flatten();
        let count = objects.len();
        let listed = Listed::new(objects);
        let parts = listed.manifests.len() + listed.segments.len();
        let state = match (listed.finals.len(), listed.manifests.len()) {
            (1, 0) if parts == 0 => {
                self.settled += 1;
                if self.unsettled.is_empty() {
                    self.settled_up_to = Some(recording);
                }
                return;
            }
            (0, 0) if parts == 0 => return,
            (0, 0) => State::Segments,
            (0, _) => State::Manifest,
            (_, _) => State::Leftovers,
        };
        self.unsettled.push(Unsettled { recording, state, objects: count, newest });
    }
}

/// When a recording counts as abandoned.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// The age of its newest object.
    pub after: Duration,
    /// From one scan to the next.
    pub interval: Duration,
}

/// Scans again and again, and finishes what is abandoned.
pub struct Repair {
    settler: Settler,
    store: std::sync::Arc<dyn Store>,
    schedule: Schedule,
    sightings: HashMap<RecordingId, Sighting>,
    /// Where the next scan of each tenant begins, and when everything was listed last.
    settled: HashMap<TenantId, (Option<RecordingId>, Instant)>,
}

/// When a recording was first seen as it still is.
struct Sighting {
    objects: usize,
    newest: Option<UnixMillis>,
    since: Instant,
}

impl Repair {
    /// Repairs what is in `store`.
    pub fn new(settler: Settler, store: std::sync::Arc<dyn Store>, schedule: Schedule) -> Self {
        Self { settler, store, schedule, sightings: HashMap::new(), settled: HashMap::new() }
    }

    /// Runs as long as the process. `tenants` answers who is configured, `is_live` whether this process records or stores
    /// a recording itself.
    pub async fn run(
        mut self,
        tenants: impl Fn() -> Vec<TenantId> + Send,
        is_live: impl Fn(RecordingId) -> bool + Send,
    ) {
        loop {
            tokio::time::sleep(self.schedule.interval).await;
            self.scan_all(&tenants(), &is_live).await;
        }
    }

    /// One round over all tenants.
    pub async fn scan_all(&mut self, tenants: &[TenantId], is_live: &(impl Fn(RecordingId) -> bool + Send)) {
        let mut unsettled = 0;
        for tenant in tenants {
            match self.scan_tenant(tenant, is_live).await {
                Ok(found) => unsettled += found,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(%tenant, error, "store does not answer; nothing counts as abandoned");
                    // Nobody could store anything: what looks old now says nothing about its node.
                    self.sightings.clear();
                    return;
                }
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "recordings are far below 2^52")]
        ::metrics::gauge!(metrics::RECORDINGS_UNSETTLED).set(unsettled as f64);
    }

    async fn scan_tenant(
        &mut self,
        tenant: &TenantId,
        is_live: &(impl Fn(RecordingId) -> bool + Send),
    ) -> Result<usize, StoreError> {
        let try_timeout = self.settler.policy().try_timeout;
        let late =
            || StoreError::Io { action: "answer in time", source: std::io::ErrorKind::TimedOut.into() };
        // A store that lists but takes no writes keeps every recorder waiting.
        let asking = async {
            self.store.ping().await?;
            self.store.now().await
        };
        let now = tokio::time::timeout(try_timeout, asking).await.map_err(|_| late())??;
        let (after, listed_at) = match self.settled.get(tenant) {
            Some((after, listed_at)) if clock::since(*listed_at) < FULL_SCAN => (*after, *listed_at),
            Some(_) | None => (None, clock::monotonic()),
        };
        let scan = scan(&*self.store, tenant, after, try_timeout).await?;
        self.settled.insert(tenant.clone(), (scan.settled_up_to.or(after), listed_at));
        for found in &scan.unsettled {
            if !is_live(found.recording) && self.is_abandoned(found, now) {
                self.settle(tenant, found).await;
            }
        }
        let is_unfinished =
            |recording: RecordingId| scan.unsettled.iter().any(|found| found.recording == recording);
        let indexed = self.settler.index_wanted(tenant, is_unfinished).await?.indexed;
        if indexed > 0 {
            tracing::info!(%tenant, indexed, "recordings of nodes that only record are found by call and number");
        }
        Ok(scan.unsettled.len())
    }

    /// Whether it is old by the store's clock, and this process has watched it long enough.
    fn is_abandoned(&mut self, found: &Unsettled, now: UnixMillis) -> bool {
        if self.sightings.len() >= MAX_SIGHTINGS {
            self.sightings.clear();
        }
        let seen = self.sightings.entry(found.recording).or_insert_with(|| Sighting::of(found));
        if (seen.objects, seen.newest) != (found.objects, found.newest) {
            *seen = Sighting::of(found);
        }
        let watched = clock::since(seen.since);
        match found.newest {
            Some(newest) => newest.plus(self.schedule.after) <= now && watched >= self.schedule.after / 2,
            // The store does not tell: only what this process has seen counts.
            None => watched >= self.schedule.after,
        }
    }

    async fn settle(&mut self, tenant: &TenantId, found: &Unsettled) {
        let recording = found.recording;
        match self.settler.settle(tenant, recording).await {
            Ok(settlement) => {
                report(recording, found.state, &settlement);
                // What is set aside is looked at again after another while.
                self.sightings.remove(&recording);
            }
            Err(error) => {
                ::metrics::counter!(metrics::REPAIR_FAILED).increment(1);
                if !error.is_retryable() {
                    self.settler.tell_failed(tenant, recording, "repair").await;
                }
                let error = &error as &dyn std::error::Error;
                tracing::error!(%recording, error, "abandoned recording cannot be finished; it stays as it is");
            }
        }
    }
}

impl Sighting {
    fn of(found: &Unsettled) -> Self {
        Self { objects: found.objects, newest: found.newest, since: clock::monotonic() }
    }
}

fn report(recording: RecordingId, state: State, settlement: &Settlement) {
    if settlement.set_aside > 0 {
        let segments = settlement.set_aside;
        tracing::warn!(%recording, segments, "segments behind a missing one are left alone until it comes");
    }
    match &settlement.outcome {
        Outcome::Finished { revision, rows, life } => {
            ::metrics::counter!(metrics::RECORDINGS_ADOPTED).increment(1);
            let (found, life) = (state.name(), life.name());
            tracing::info!(%recording, found, revision, rows, life, "abandoned recording finished");
        }
        Outcome::Cleaned => tracing::info!(%recording, "leftovers of a finished recording deleted"),
        Outcome::AlreadyFinal | Outcome::Nothing => {
            tracing::debug!(%recording, "recording was settled by others");
        }
    }
}
