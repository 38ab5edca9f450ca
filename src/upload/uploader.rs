//! One lane per recording: its segments go up in order, then its manifest, then its final object.
//!
//! What waits in memory is bounded by a byte budget; what is over it waits in the journal and is read back when its lane
//! gets to it. A lane does not give up on a store that fails: it tries again until the store takes its objects or the
//! process ends, and then the journal has them. While it waits it holds up no other lane. It ends when the store holds
//! other bytes than it was given, or the journal does not hold a segment any more; recovery then sees to the recording.

mod indexing;
mod traced;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::clock;
use crate::domain::cmr::Row;
use crate::domain::ids::RecordingId;
use crate::domain::recording::Life;
use crate::domain::time::UnixMillis;
use crate::journal::{Journal, ReadBackError, Record};
use crate::observe::metrics;
use crate::observe::traces::{Place, Span};
use crate::store::{MIN_PART_BYTES, ObjectClass, ObjectName, Store, StoreError, Tags, layout};

use super::backlog::{Backlog, Waiting};
use super::breaker::LONGEST_RETRY_AFTER;
use super::compact::{CompactError, compact};
use super::door::Door;
use super::index::Index;
use super::live::LiveRecordings;
use super::pace::Pace;
use super::put::{PutError, random_u32, try_put, warn_of_retry};
use super::retry::{Retry, RetryPolicy};
use super::tags::RetentionTags;
use super::turns::Urgency;
use indexing::LaneIndex;

/// Memory for all recordings that are being merged, in MiB: four long ones, or more short ones. Calls may end together,
/// by hundreds.
const MERGING_MIB: u32 = 24;
/// Segments of one recording that may wait. A day of the shortest ones, of one second, is 86,400; bursts make some more.
/// Their bytes are bounded elsewhere; each costs about 200 bytes here.
const LANE_QUEUE: usize = 1 << 18;

/// Whose objects a lane stores, and how long they are kept.
#[derive(Debug, Clone, Copy)]
pub struct UploadContext {
    /// The recording.
    pub recording: RecordingId,
    /// Tenant and days.
    pub retention: RetentionTags,
}

/// Stores the objects of all recordings of this process; clones are the same uploader.
#[derive(Clone)]
pub struct Uploader {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    journal: Journal,
    policy: RetryPolicy,
    door: Door,
    backlog: Arc<Backlog>,
    catch_up: Mutex<Pace>,
    lanes: watch::Sender<usize>,
    live: LiveRecordings,
    /// A permit for each MiB that merging may take.
    merging: Semaphore,
}

/// The way of one recording to the store. Dropping it without [`Lane::finish`] leaves the rest to recovery.
pub struct Lane {
    recording: RecordingId,
    queue: mpsc::Sender<Item>,
    shared: Arc<Shared>,
}

enum Item {
    Segment(Arc<Waiting>),
    Finish { manifest: Bytes, ended: UnixMillis, life: Life, told: BoxFuture<'static, ()> },
}

impl Uploader {
    /// Uploads to `store` with at most `concurrency` puts at once and about `budget_bytes` waiting in memory. Must be
    /// called in a runtime.
    pub fn new(
        store: Arc<dyn Store>,
        journal: Journal,
        policy: RetryPolicy,
        concurrency: usize,
        budget_bytes: u64,
    ) -> Self {
        let shared = Shared {
            store,
            backlog: Backlog::start(journal.clone(), budget_bytes),
            journal,
            policy,
            door: Door::new(concurrency, policy.max),
            catch_up: Mutex::new(Pace::new(0)),
            lanes: watch::Sender::new(0),
            live: LiveRecordings::default(),
            merging: Semaphore::new(MERGING_MIB as usize),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Bounds the bytes per second that are read back from the journal; 0, as at first, is no bound.
    #[must_use]
    pub fn with_catch_up_bytes_per_sec(self, bytes_per_sec: u64) -> Self {
        *self.shared.catch_up.lock().unwrap_or_else(PoisonError::into_inner) = Pace::new(bytes_per_sec);
        self
    }

    /// Opens a recording's way to the store; it is found by none of its terms.
    pub fn lane(&self, context: UploadContext) -> Lane {
        self.open_lane(context, None)
    }

    /// Opens the way to the store of a recording that is to be found by its terms, also while its call goes on.
    pub fn indexed_lane(&self, context: UploadContext, index: Arc<dyn Index>) -> Lane {
        self.open_lane(context, Some(LaneIndex::new(index)))
    }

    fn open_lane(&self, context: UploadContext, index: Option<LaneIndex>) -> Lane {
        let (queue, items) = mpsc::channel(LANE_QUEUE);
        self.shared.lanes.send_modify(|lanes| *lanes += 1);
        let (shared, stored_bytes) = (Arc::clone(&self.shared), AtomicU64::new(0));
        let task = LaneTask { context, shared, stored_bytes, index, place: Place::here() };
        let live = self.shared.live.enter(context.recording);
        tokio::spawn(async move {
            let _live = live;
            task.run(items).await;
            task.shared.lanes.send_modify(|lanes| *lanes -= 1);
        });
        Lane { recording: context.recording, queue, shared: Arc::clone(&self.shared) }
    }

    /// Whether this process records or stores a recording.
    pub fn is_live(&self, recording: RecordingId) -> bool {
        self.shared.live.contains(recording)
    }

    /// Whether new calls must be refused: most of the budget is used up and the journal does not take over what waits.
    pub fn is_nearly_full(&self) -> bool {
        self.shared.backlog.is_nearly_full()
    }

    /// Returns the bytes that wait in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.shared.backlog.memory_bytes()
    }

    /// Returns the bytes that wait in the journal only.
    pub fn spilled_bytes(&self) -> u64 {
        self.shared.backlog.spilled_bytes()
    }

    /// Returns how long ago the first frame of the oldest segment was sealed that waits for the store; zero when none waits.
    pub fn oldest_age(&self) -> Duration {
        self.shared.backlog.oldest_age()
    }

    /// Waits until every lane has ended; answers how many have not.
    pub async fn drained(&self, limit: Duration) -> usize {
        let mut lanes = self.shared.lanes.subscribe();
        let ended = lanes.wait_for(|lanes| *lanes == 0);
        match tokio::time::timeout(limit, ended).await {
            Ok(_) => 0,
            Err(_) => *self.shared.lanes.borrow(),
        }
    }

    /// Publishes how much waits and for how long, and whether the store is left alone.
    #[expect(clippy::cast_precision_loss, reason = "waiting bytes are far below 2^52")]
    pub fn publish_metrics(&self) {
        let Shared { backlog, door, .. } = &*self.shared;
        ::metrics::gauge!(metrics::UPLOAD_WAITING).set(backlog.memory_bytes() as f64);
        ::metrics::gauge!(metrics::UPLOAD_SPILLED).set(backlog.spilled_bytes() as f64);
        ::metrics::gauge!(metrics::OLDEST_UNSTORED).set(backlog.oldest_age().as_secs_f64());
        ::metrics::gauge!(metrics::BREAKER_OPEN).set(f64::from(u8::from(door.is_open())));
        ::metrics::gauge!(metrics::DROPPING).set(f64::from(u8::from(backlog.is_full())));
    }
}

impl Lane {
    /// Hands a segment over whose bytes the journal got when it had `generation`, see [`Journal::generation`]. Never waits.
    ///
    /// Answers whether it was taken; if not, the segment stays in the journal for recovery.
    pub fn segment(&self, row: Row, bytes: Bytes, opened_at: Instant, generation: u64) -> bool {
        let backlog = &self.shared.backlog;
        let waiting = backlog.add(self.recording, row, bytes, opened_at, generation);
        let taken = self.queue.try_send(Item::Segment(Arc::clone(&waiting))).is_ok();
        if !taken {
            waiting.done(backlog);
        }
        taken
    }

    /// Hands the manifest over and ends the lane.
    pub fn finish(self, manifest: Bytes, ended: UnixMillis, life: Life) -> bool {
        self.finish_and_tell(manifest, ended, life, Box::pin(std::future::ready(())))
    }

    /// The same. `told` tells somebody that the recording is stored; a crash before it has ended leaves the recording to
    /// recovery, which tells it again.
    pub fn finish_and_tell(
        self,
        manifest: Bytes,
        ended: UnixMillis,
        life: Life,
        told: BoxFuture<'static, ()>,
    ) -> bool {
        self.queue.try_send(Item::Finish { manifest, ended, life, told }).is_ok()
    }

    /// Whether audio must be dropped before sealing, as a gap: the budget is used up and the journal does not take over
    /// what waits.
    pub fn is_full(&self) -> bool {
        self.shared.backlog.is_full()
    }
}

impl Shared {
    fn note(&self, record: Record) {
        // Not noted only means that a restart compares with the store once more.
        if let Err(refused) = self.journal.append(record) {
            tracing::debug!(error = &refused as &dyn std::error::Error, "journal did not note progress");
        }
    }

    /// Waits until something from the journal may go up, so that catching up stays within its bound.
    async fn pace(&self, bytes: u64) {
        let wait = {
            let mut pace = self.catch_up.lock().unwrap_or_else(PoisonError::into_inner);
            pace.reserve(clock::monotonic(), bytes)
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Why a recording cannot be stored, however often it is tried.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error(transparent)]
    Put(#[from] PutError),
    #[error(transparent)]
    Compact(#[from] CompactError),
    #[error("segment that waited in the journal")]
    ReadBack(#[source] ReadBackError),
}

/// What is put.
#[derive(Clone, Copy)]
enum Body<'a> {
    Bytes(&'a Bytes),
    Segment(&'a Waiting),
}

/// Why one try was none.
enum Failed {
    /// The store's answer; nothing if there was none in time.
    Store(Option<StoreError>),
    /// The journal's disk.
    Journal(ReadBackError),
}

impl LaneError {
    /// Whether another node has finished the recording meanwhile. Then every segment of the lane is in the store, in its
    /// final object or beside it, and repair joins them.
    fn is_adopted(&self, manifest: &ObjectName) -> bool {
        match self {
            Self::Put(PutError::Taken(name)) => name == manifest,
            Self::Compact(error) => matches!(error, CompactError::Adopted),
            Self::ReadBack(_) => false,
        }
    }
}

struct LaneTask {
    context: UploadContext,
    shared: Arc<Shared>,
    /// Of this recording, so far.
    stored_bytes: AtomicU64,
    index: Option<LaneIndex>,
    place: Place,
}

impl LaneTask {
    async fn run(&self, mut items: mpsc::Receiver<Item>) {
        while let Some(item) = items.recv().await {
            let outcome = match item {
                Item::Segment(waiting) => self.store_segment(&waiting).await,
                Item::Finish { manifest, ended, life, told } => {
                    self.finish(manifest, ended, life, told).await
                }
            };
            if let Err(error) = outcome {
                ::metrics::counter!(metrics::INTEGRITY_FAILURES).increment(1);
                let error = &error as &dyn std::error::Error;
                tracing::error!(recording = %self.context.recording, error, "recording cannot be stored");
                return self.give_up(items);
            }
        }
    }

    /// Lets go of what still waits; the journal has it.
    fn give_up(&self, mut items: mpsc::Receiver<Item>) {
        items.close();
        while let Ok(item) = items.try_recv() {
            match item {
                Item::Segment(waiting) => waiting.done(&self.shared.backlog),
                Item::Finish { .. } => {}
            }
        }
    }

    async fn store_segment(&self, waiting: &Waiting) -> Result<(), LaneError> {
        let UploadContext { recording, retention } = self.context;
        let row = &waiting.row;
        let name = layout::segment(retention.tenant, recording, row.writer, row.seq);
        let tags = retention.tags(clock::wall());
        let mut span = self.upload_span(row);
        let put = self.put(&name, Body::Segment(waiting), &tags, &mut span).await;
        traced::end(span, &put);
        waiting.done(&self.shared.backlog);
        put?;
        self.stored_bytes.fetch_add(u64::from(row.byte_len), Ordering::Relaxed);
        self.shared.note(Record::Stored { recording, writer: row.writer, seq: row.seq });
        ::metrics::counter!(metrics::SEGMENTS_STORED).increment(1);
        ::metrics::histogram!(metrics::SEALED_TO_STORED)
            .record(clock::since(waiting.opened_at).as_secs_f64());
        self.index_beside();
        Ok(())
    }

    /// Puts an object and tries again for as long as the process lives; a name that is taken is compared.
    async fn put(
        &self,
        name: &ObjectName,
        body: Body<'_>,
        tags: &Tags,
        span: &mut Span,
    ) -> Result<(), LaneError> {
        let mut retry = Retry::new(self.shared.policy);
        loop {
            let failed = match self.try_once(name, body, tags).await {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(PutError::Taken(name.clone()).into()),
                Err(Failed::Journal(error @ ReadBackError::Lost)) => return Err(LaneError::ReadBack(error)),
                Err(failed) => failed,
            };
            span.retry(failed.label());
            let mut wait = retry.next_wait(random_u32());
            match &failed {
                Failed::Journal(error) => {
                    let error = error as &dyn std::error::Error;
                    tracing::warn!(object = %name, error, "segment cannot be read from the journal; trying again");
                }
                Failed::Store(error) => {
                    wait = wait.max(asked_wait(error.as_ref()));
                    ::metrics::counter!(metrics::UPLOAD_RETRIES).increment(1);
                    warn_of_retry(name, error.as_ref(), wait);
                    if self.shared.door.is_open() {
                        // The door knows better when the store may be tried.
                        continue;
                    }
                }
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// One try, when it is this lane's turn. `Ok(false)`: other bytes have the name.
    async fn try_once(&self, name: &ObjectName, body: Body<'_>, tags: &Tags) -> Result<bool, Failed> {
        let Shared { store, door, policy, backlog, .. } = &*self.shared;
        let urgency = match body {
            Body::Bytes(_) => Urgency::Live,
            Body::Segment(waiting) => waiting.urgency(),
        };
        if let (Body::Segment(waiting), Urgency::CatchUp) = (body, urgency) {
            self.shared.pace(u64::from(waiting.row.byte_len)).await;
        }
        let _pass = door.enter(self.context.retention.tenant, urgency).await;
        // Read only now, so that no more is in memory than is put at once.
        let bytes = match body {
            Body::Bytes(bytes) => bytes.clone(),
            Body::Segment(waiting) => waiting.read(backlog).await.map_err(Failed::Journal)?,
        };
        let tried = try_put(&**store, name, &bytes, tags, policy.try_timeout).await;
        door.report(tried.as_ref().map(|_| ()).map_err(Option::as_ref));
        tried.map_err(Failed::Store)
    }

    async fn finish(
        &self,
        manifest: Bytes,
        ended: UnixMillis,
        life: Life,
        told: BoxFuture<'static, ()>,
    ) -> Result<(), LaneError> {
        let UploadContext { recording, retention } = self.context;
        let name = layout::manifest(retention.tenant, recording, 0);
        let mut span = self.finish_span(life);
        let stored = span.place().around(self.store_end(&name, manifest, ended, &mut span)).await;
        traced::end(span, &stored);
        match stored {
            Ok(()) => {
                ::metrics::counter!(metrics::RECORDINGS_FINISHED, "life" => life.name()).increment(1);
                tracing::info!(%recording, life = life.name(), "recording stored");
                told.await;
            }
            Err(error) if error.is_adopted(&name) => {
                ::metrics::counter!(metrics::RECORDINGS_TAKEN_OVER).increment(1);
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%recording, error, "another node has finished this recording; repair joins what is left");
            }
            Err(error) => return Err(error),
        }
        self.shared.note(Record::Finished { recording });
        Ok(())
    }

    /// Stores the manifest, makes the recording findable, and makes the final object.
    async fn store_end(
        &self,
        name: &ObjectName,
        manifest: Bytes,
        ended: UnixMillis,
        span: &mut Span,
    ) -> Result<(), LaneError> {
        let UploadContext { recording, retention } = self.context;
        let tags = retention.tags(ended);
        let date = clock::utc_date(retention.expires(ended));
        let expiry = layout::expiry(&date, retention.tenant, recording);
        let expiry_tags = Tags::of(retention.tenant, ObjectClass::Expiry);
        self.put(&expiry, Body::Bytes(&Bytes::new()), &expiry_tags, span).await?;
        self.put(name, Body::Bytes(&manifest), &tags, span).await?;
        // Before its final object, so that it is found when it may be deleted.
        let is_indexed = self.index_now(ended).await;
        let mut retry = Retry::new(self.shared.policy);
        while let Err(error) = self.compact(&tags).await {
            if !error.is_retryable() {
                return Err(error.into());
            }
            span.retry("compaction");
            let wait = retry.next_wait(random_u32());
            warn_of_compaction(recording, &error, wait);
            tokio::time::sleep(wait).await;
        }
        if !is_indexed {
            self.index_at_last(ended).await;
        }
        Ok(())
    }

    /// Makes the final object when it is this lane's turn. That may take long, so it counts as catching up.
    async fn compact(&self, tags: &Tags) -> Result<(), CompactError> {
        let UploadContext { recording, retention } = self.context;
        let Shared { store, door, policy, .. } = &*self.shared;
        // The semaphore is never closed; without permits there is only more memory in use.
        let _memory = self.shared.merging.acquire_many(self.merging_mib()).await.ok();
        let _pass = door.enter(retention.tenant, Urgency::CatchUp).await;
        let done = compact(&**store, retention.tenant, recording, tags, *policy).await;
        match &done {
            Ok(()) => door.report(Ok(())),
            Err(CompactError::Store(error)) => door.report(Err(Some(error))),
            // It says nothing about the store.
            Err(_) => {}
        }
        done
    }

    /// A part, or the whole of a short recording, and what is read ahead or back.
    fn merging_mib(&self) -> u32 {
        let part = self.stored_bytes.load(Ordering::Relaxed).min(MIN_PART_BYTES as u64);
        u32::try_from(part.div_ceil(1 << 20) + 1).unwrap_or(MERGING_MIB).clamp(1, MERGING_MIB)
    }
}

/// How long a busy store asks to be left alone, within reason.
fn asked_wait(error: Option<&StoreError>) -> Duration {
    match error {
        Some(StoreError::Busy { retry_after: Some(wait) }) => (*wait).min(LONGEST_RETRY_AFTER),
        Some(_) | None => Duration::ZERO,
    }
}

fn warn_of_compaction(recording: RecordingId, error: &CompactError, wait: Duration) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(%recording, error, wait_ms = wait.as_millis(), "compaction failed; trying again");
}
