//! One lane per recording: its segments go up in order, then its manifest, then its final object.
//!
//! A byte budget bounds what all lanes hold in memory: when it is used up, no new call is taken and running calls drop
//! audio before sealing, as counted gaps, until the store takes bytes again. A lane does not give up on a store that fails: it
//! tries again until the store takes its objects or the process ends, and then the journal has them. It ends when the
//! store holds other bytes than it was given; the journal then keeps the recording.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::clock;
use crate::domain::cmr::Row;
use crate::domain::ids::RecordingId;
use crate::domain::recording::Life;
use crate::domain::time::UnixMillis;
use crate::journal::{Journal, Record};
use crate::observe::metrics;
use crate::store::{Store, Tags, layout};

use super::compact::{CompactError, compact};
use super::put::{PutError, put_verified, random_u32};
use super::retry::{Retry, RetryPolicy};
use super::tags::RetentionTags;

/// Segments of one recording that may wait: more than the budget allows for any call.
const LANE_QUEUE: usize = 4096;
/// New calls are refused from this share of the budget on.
const REFUSE_AT_PERCENT: u64 = 80;

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
    puts: Semaphore,
    budget_bytes: u64,
    waiting_bytes: AtomicU64,
    /// When the first frame of each waiting segment was sealed.
    oldest: Mutex<BTreeMap<Instant, usize>>,
    lanes: watch::Sender<usize>,
}

/// The way of one recording to the store. Dropping it without [`Lane::finish`] leaves the rest to recovery.
pub struct Lane {
    queue: mpsc::Sender<Item>,
    shared: Arc<Shared>,
}

enum Item {
    Segment { row: Row, bytes: Bytes, opened_at: Instant },
    Finish { manifest: Bytes, ended: UnixMillis, life: Life },
}

impl Uploader {
    /// Uploads to `store` with at most `concurrency` puts at once and about `budget_bytes` waiting in memory.
    pub fn new(
        store: Arc<dyn Store>,
        journal: Journal,
        policy: RetryPolicy,
        concurrency: usize,
        budget_bytes: u64,
    ) -> Self {
        let shared = Shared {
            store,
            journal,
            policy,
            puts: Semaphore::new(concurrency),
            budget_bytes,
            waiting_bytes: AtomicU64::new(0),
            oldest: Mutex::default(),
            lanes: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Opens a recording's way to the store.
    pub fn lane(&self, context: UploadContext) -> Lane {
        let (queue, items) = mpsc::channel(LANE_QUEUE);
        self.shared.lanes.send_modify(|lanes| *lanes += 1);
        let task = LaneTask { context, shared: Arc::clone(&self.shared) };
        tokio::spawn(async move {
            task.run(items).await;
            task.shared.lanes.send_modify(|lanes| *lanes -= 1);
        });
        Lane { queue, shared: Arc::clone(&self.shared) }
    }

    /// Whether new calls must be refused: most of the budget is used up.
    pub fn is_nearly_full(&self) -> bool {
        self.shared.waiting() >= self.shared.budget_bytes / 100 * REFUSE_AT_PERCENT
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

    /// Publishes how much waits and for how long.
    #[expect(clippy::cast_precision_loss, reason = "waiting bytes are far below 2^52")]
    pub fn publish_metrics(&self) {
        ::metrics::gauge!(metrics::UPLOAD_WAITING).set(self.shared.waiting() as f64);
        let oldest = self.shared.oldest().first_key_value().map(|(sealed_at, _)| clock::since(*sealed_at));
        ::metrics::gauge!(metrics::OLDEST_UNSTORED).set(oldest.unwrap_or_default().as_secs_f64());
    }
}

impl Lane {
    /// Hands a segment over. Never waits.
    ///
    /// Answers whether it was taken; if not, the segment stays in the journal for recovery.
    pub fn segment(&self, row: Row, bytes: Bytes, opened_at: Instant) -> bool {
        self.shared.count_in(bytes.len() as u64, opened_at);
        let length = bytes.len() as u64;
        let taken = self.queue.try_send(Item::Segment { row, bytes, opened_at }).is_ok();
        if !taken {
            self.shared.count_out(length, opened_at);
        }
        taken
    }

    /// Hands the manifest over and ends the lane.
    pub fn finish(self, manifest: Bytes, ended: UnixMillis, life: Life) -> bool {
        self.queue.try_send(Item::Finish { manifest, ended, life }).is_ok()
    }

    /// Whether the budget is used up: audio must be dropped before sealing, as a gap.
    pub fn is_full(&self) -> bool {
        self.shared.waiting() >= self.shared.budget_bytes
    }
}

impl Shared {
    fn waiting(&self) -> u64 {
        self.waiting_bytes.load(Ordering::Relaxed)
    }

    fn count_in(&self, bytes: u64, opened_at: Instant) {
        self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        *self.oldest().entry(opened_at).or_default() += 1;
    }

    fn count_out(&self, bytes: u64, opened_at: Instant) {
        self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let mut oldest = self.oldest();
        if let Some(count) = oldest.get_mut(&opened_at) {
            *count -= 1;
            if *count == 0 {
                oldest.remove(&opened_at);
            }
        }
    }

    fn oldest(&self) -> std::sync::MutexGuard<'_, BTreeMap<Instant, usize>> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, record: Record) {
        // Not noted only means that a restart compares with the store once more.
        if let Err(refused) = self.journal.append(record) {
            tracing::debug!(error = &refused as &dyn std::error::Error, "journal did not note progress");
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
}

struct LaneTask {
    context: UploadContext,
    shared: Arc<Shared>,
}

impl LaneTask {
    async fn run(&self, mut items: mpsc::Receiver<Item>) {
        while let Some(item) = items.recv().await {
            let outcome = match item {
                Item::Segment { row, bytes, opened_at } => self.store_segment(&row, bytes, opened_at).await,
                Item::Finish { manifest, ended, life } => self.finish(manifest, ended, life).await,
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
                Item::Segment { bytes, opened_at, .. } => {
                    self.shared.count_out(bytes.len() as u64, opened_at);
                }
                Item::Finish { .. } => {}
            }
        }
    }

    async fn store_segment(&self, row: &Row, bytes: Bytes, opened_at: Instant) -> Result<(), LaneError> {
        let UploadContext { recording, retention } = self.context;
        let name = layout::segment(retention.tenant, recording, row.writer, row.seq);
        let tags = retention.tags(clock::wall());
        let put = {
            let _permit = self.shared.puts.acquire().await;
            put_verified(&*self.shared.store, &name, &bytes, &tags, self.shared.policy).await
        };
        self.shared.count_out(bytes.len() as u64, opened_at);
        put?;
        self.shared.note(Record::Stored { recording, writer: row.writer, seq: row.seq });
        ::metrics::counter!(metrics::SEGMENTS_STORED).increment(1);
        ::metrics::histogram!(metrics::SEALED_TO_STORED).record(clock::since(opened_at).as_secs_f64());
        Ok(())
    }

    async fn finish(&self, manifest: Bytes, ended: UnixMillis, life: Life) -> Result<(), LaneError> {
        let _permit = self.shared.puts.acquire().await;
        let UploadContext { recording, retention } = self.context;
        let (store, policy) = (&*self.shared.store, self.shared.policy);
        let tags = retention.tags(ended);
        let date = clock::utc_date(retention.expires(ended));
        let expiry = layout::expiry(&date, retention.tenant, recording);
        put_verified(store, &expiry, &Bytes::new(), &Tags::new(), policy).await?;
        let name = layout::manifest(retention.tenant, recording, 0);
        put_verified(store, &name, &manifest, &tags, policy).await?;
        let mut retry = Retry::new(policy);
        while let Err(error) = compact(store, retention.tenant, recording, &tags, policy).await {
            if !error.is_retryable() {
                return Err(error.into());
            }
            let wait = retry.next_wait(random_u32());
            warn_of_compaction(recording, &error, wait);
            tokio::time::sleep(wait).await;
        }
        self.shared.note(Record::Finished { recording });
        ::metrics::counter!(metrics::RECORDINGS_FINISHED, "life" => life.name()).increment(1);
        tracing::info!(%recording, life = life.name(), "recording stored");
        Ok(())
    }
}

fn warn_of_compaction(recording: RecordingId, error: &CompactError, wait: Duration) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(%recording, error, wait_ms = wait.as_millis(), "compaction failed; trying again");
}
