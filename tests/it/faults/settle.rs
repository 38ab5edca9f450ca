//! Recordings finished from the store alone: interrupted at every request, by many at once, and with segments that come
//! late. Whatever happens, every segment that the store ever took is in the end in one final object.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use callseal::control::audit::{self, AuditLog};
use callseal::control::recordings::StoredRecording;
use callseal::control::repair::{Outcome, Settler};
use callseal::domain::cmr::{EndState, RecordingVerifier};
use callseal::domain::ids::TenantId;
use callseal::domain::recording::Life;
use callseal::domain::sign::encode_hex;
use callseal::domain::time::UnixMillis;
use callseal::keys::{KeyService, Keyring, LocalKeys};
use callseal::store::faulty::{Fault, Faults, Faulty};
use callseal::store::folder::Folder;
use callseal::store::{
    ByteRange, Fetched, MIN_PART_BYTES, ObjectInfo, ObjectName, Operation, PutOutcome, Store, StoreError,
    StoreProfile, Tags, Upload, layout,
};
use callseal::upload::RetryPolicy;

use super::sealed::{CHUNK, Disk, Sealed};
use crate::reader::described_by_the_other;
use crate::support::{Home, Setup, TENANT};

const ENDED: UnixMillis = UnixMillis(1_790_000_000_000);
/// Waits of milliseconds, and a limit that only a hanging request reaches.
const POLICY: RetryPolicy = RetryPolicy {
    base: Duration::from_millis(1),
    max: Duration::from_millis(2),
    try_timeout: Duration::from_secs(60),
};

/// A call, its keys, and a folder store in which only its envelope lies.
pub(super) struct Stage {
    home: Arc<Home>,
    pub(super) disk: Disk,
    keys: Arc<KeyService>,
    pub(super) call: Arc<Sealed>,
}

pub(super) fn tenant() -> TenantId {
    TENANT.parse().unwrap()
}

/// The tenant's keys, with envelopes in the store of `disk`.
fn keys(home: &Home, disk: &Disk) -> Arc<KeyService> {
    let ring = Keyring::load(&home.data().join("keyring.json")).unwrap();
    Arc::new(KeyService::new(Arc::new(LocalKeys::new(ring)), Arc::new(disk.folder.clone())))
}

impl Stage {
    /// A call of `chunks` messages in segments of about `max_bytes`.
    async fn new(chunks: usize, chunk_bytes: usize, max_bytes: usize) -> Self {
        let (home, disk) = (Arc::new(Setup::new().write()), Disk::new().await);
        let keys = keys(&home, &disk);
        let minted = keys.mint(&tenant()).await.unwrap();
        let call = Arc::new(Sealed::call_of(minted.ids, &minted.dek, chunks, chunk_bytes, max_bytes));
        Self { home, disk, keys, call }
    }

    /// The same call with an empty store.
    async fn again(&self) -> Self {
        let disk = Disk::new().await;
        let prefix = format!("k/{}/{}/", self.call.ids.tenant, self.call.ids.recording);
        for envelope in self.disk.folder.list_after(&prefix, None, 10).await.unwrap() {
            let bytes = self.disk.folder.get(&envelope.name, None).await.unwrap().bytes;
            disk.folder.put_new(&envelope.name, bytes, &Tags::new()).await.unwrap();
        }
        let keys = keys(&self.home, &disk);
        Self { home: Arc::clone(&self.home), disk, keys, call: Arc::clone(&self.call) }
    }

    pub(super) async fn short() -> Self {
        let stage = Self::new(120, CHUNK, 4 * 1024).await;
        assert!(stage.call.segments.len() >= 5, "{}", stage.call.segments.len());
        stage
    }

    /// Puts the segments of these numbers.
    pub(super) async fn put(&self, segments: impl IntoIterator<Item = usize>) {
        let tags = self.call.retention().tags(ENDED);
        for index in segments {
            let bytes = self.call.segments[index].1.clone();
            self.disk.folder.put_new(&self.call.segment_name(index), bytes, &tags).await.unwrap();
        }
    }

    async fn put_manifest(&self) {
        let tags = self.call.retention().tags(ENDED);
        let manifest = self.call.manifest.clone();
        self.disk.folder.put_new(&self.call.manifest_name(), manifest, &tags).await.unwrap();
    }

    pub(super) fn all(&self) -> std::ops::Range<usize> {
        0..self.call.segments.len()
    }

    pub(super) fn settler(&self, store: Arc<dyn Store>) -> Settler {
        let audit_store: Arc<dyn Store> = Arc::new(self.disk.folder.clone());
        let audit = AuditLog::start("b".to_owned(), Arc::clone(&self.keys), audit_store);
        Settler::new(store, Arc::clone(&self.keys), audit, "b".to_owned(), POLICY)
    }

    pub(super) async fn settle(&self) -> Outcome {
        let settler = self.settler(Arc::new(self.disk.folder.clone()));
        settler.settle(&tenant(), self.call.ids.recording).await.unwrap().outcome
    }

    pub(super) async fn names(&self) -> Vec<String> {
        let prefix = layout::recording_prefix(self.call.ids.tenant, self.call.ids.recording);
        let objects = self.disk.folder.list_after(&prefix, None, 1000).await.unwrap();
        objects.iter().map(|object| object.name.as_str().strip_prefix(&prefix).unwrap().to_owned()).collect()
    }

    async fn open(&self) -> StoredRecording {
        let store: Arc<dyn Store> = Arc::new(self.disk.folder.clone());
        StoredRecording::open(store, &self.keys, &tenant(), self.call.ids.recording).await.unwrap()
    }

    /// Checks that the first `segments` are there, verified, and play as they were sent.
    pub(super) async fn assert_plays(&self, segments: usize, when: &str) -> StoredRecording {
        let stored = self.open().await;
        let found: Vec<_> = stored.timeline().rows().iter().map(|row| row.row).collect();
        let sealed: Vec<_> = self.call.segments[..segments].iter().map(|(row, _)| *row).collect();
        assert_eq!(found, sealed, "{when}: the rows");
        let mut verifier = RecordingVerifier::new(&self.call.dek, self.call.ids);
        let whole = 0..stored.timeline().samples();
        let mut canvas = stored.canvas(&whole);
        for (index, row) in found.iter().enumerate() {
            let segment = stored.segment(index).await.unwrap();
            verifier.check_row(row, &segment, |_| ()).unwrap();
            stored.paint(index, &segment, &mut canvas).unwrap();
        }
        let heard = canvas.caller();
        assert!(!heard.is_empty() && self.call.audio.starts_with(heard), "{when}: the audio");
        if segments == self.call.segments.len() {
            assert_eq!(heard.len(), self.call.audio.len(), "{when}: all of the audio");
        }
        stored
    }
}

#[tokio::test]
async fn segments_alone_become_a_recording_that_the_audit_log_knows() {
    let stage = Stage::short().await;
    let all = stage.call.segments.len();
    stage.put(stage.all()).await;
    stage.assert_plays(all, "before").await;
    let expected = Outcome::Finished { revision: 0, rows: all, life: Life::Recovered };
    assert_eq!(stage.settle().await, expected);
    assert_eq!(stage.names().await, ["final.cmr"]);
    let stored = stage.assert_plays(all, "after").await;
    let finished = stored.manifest().unwrap();
    assert_eq!(finished.state, EndState::Recovered);
    let records = audit::read(&tenant(), &stage.keys, &stage.disk.folder).await.unwrap();
    let root = format!("root={} revision=0 rows={all}", encode_hex(&finished.root));
    let known =
        records.iter().filter_map(|record| record.event.detail.as_deref()).any(|detail| detail == root);
    assert!(known, "{records:?}");
    let date = callseal::clock::utc_date(UnixMillis(finished.end.expires_ms));
    let expiry = layout::expiry(&date, stage.call.ids.tenant, stage.call.ids.recording);
    stage.disk.folder.head(&expiry).await.expect("the entry in the expiry index");
    assert_eq!(stage.settle().await, Outcome::AlreadyFinal);
}

#[tokio::test]
async fn an_interrupted_compaction_keeps_what_the_recorder_has_said() {
    let stage = Stage::short().await;
    stage.put(stage.all()).await;
    stage.put_manifest().await;
    assert!(matches!(stage.settle().await, Outcome::Finished { revision: 0, life: Life::Complete, .. }));
    stage.call.assert_stored(&stage.disk.folder).await;
}

#[tokio::test]
async fn late_segments_become_a_later_revision_and_the_recorders_own_manifest_wins() {
    let stage = Stage::short().await;
    let all = stage.call.segments.len();
    stage.put(0..2).await;
    assert!(matches!(stage.settle().await, Outcome::Finished { revision: 0, rows: 2, .. }));
    // Some that the final object has already, and new ones.
    stage.put(1..4).await;
    stage.assert_plays(2, "before it is joined").await;
    assert!(matches!(stage.settle().await, Outcome::Finished { revision: 1, rows: 4, .. }));
    assert_eq!(stage.names().await, ["final-0001.cmr"]);
    stage.assert_plays(4, "revision 1").await;
    // The recorder ends the call as if nobody had touched it.
    stage.put(4..all).await;
    stage.put_manifest().await;
    let expected = Outcome::Finished { revision: 2, rows: all, life: Life::Complete };
    assert_eq!(stage.settle().await, expected);
    assert_eq!(stage.names().await, ["final-0002.cmr"]);
    let stored = stage.assert_plays(all, "revision 2").await;
    assert_eq!(stored.manifest().unwrap().state, EndState::Complete);
    assert_eq!(stage.settle().await, Outcome::AlreadyFinal);
    let store = stage.disk.path(&ObjectName::new("r").unwrap()).with_file_name("");
    let ids = stage.call.ids;
    let Some(other) = described_by_the_other(&store, stage.call.dek.expose(), ids.recording) else { return };
    assert_eq!((&other["revision"], &other["state"]), (&2.into(), &"complete".into()));
    assert_eq!(other["rows"].as_array().unwrap().len(), all);
}

#[tokio::test]
async fn an_older_final_object_that_comes_back_changes_nothing_for_long() {
    let stage = Stage::short().await;
    stage.put(0..2).await;
    stage.settle().await;
    let (first, tags) = (stage.call.final_name(), stage.call.retention().tags(ENDED));
    let bytes = stage.disk.folder.get(&first, None).await.unwrap().bytes;
    stage.put(2..4).await;
    let reading = stage.open().await;
    stage.settle().await;
    for index in 0..2 {
        let segment = reading.segment(index).await.unwrap();
        assert_eq!(segment, stage.call.segments[index].1, "whoever began to read the old one goes on");
    }
    // A process that was slow to make it is through at last.
    stage.disk.folder.put_new(&first, bytes, &tags).await.unwrap();
    stage.assert_plays(2, "the old one is whole").await;
    assert_eq!(stage.settle().await, Outcome::Cleaned);
    assert_eq!(stage.names().await, ["final-0001.cmr"]);
    stage.assert_plays(4, "the new one again").await;
}

#[tokio::test]
async fn a_segment_behind_a_hole_waits_for_the_missing_one() {
    let stage = Stage::short().await;
    stage.put([0, 1, 3]).await;
    let settler = stage.settler(Arc::new(stage.disk.folder.clone()));
    let settlement = settler.settle(&tenant(), stage.call.ids.recording).await.unwrap();
    assert_eq!(settlement.set_aside, 1);
    stage.assert_plays(2, "with a hole").await;
    assert!(stage.disk.path(&stage.call.segment_name(3)).exists());
    assert_eq!(stage.settle().await, Outcome::AlreadyFinal, "and again changes nothing");
    stage.put([2]).await;
    assert!(matches!(stage.settle().await, Outcome::Finished { revision: 1, rows: 4, .. }));
    stage.assert_plays(4, "without it").await;
}

#[tokio::test]
async fn nothing_goes_whose_bytes_the_final_object_does_not_hold() {
    let stage = Stage::short().await;
    stage.put(0..3).await;
    stage.settle().await;
    let (name, tags) = (stage.call.segment_name(1), Tags::new());
    let mut other = stage.call.segments[1].1.to_vec();
    *other.last_mut().unwrap() ^= 1;
    stage.disk.folder.put_new(&name, Bytes::from(other), &tags).await.unwrap();
    let settler = stage.settler(Arc::new(stage.disk.folder.clone()));
    let error = settler.settle(&tenant(), stage.call.ids.recording).await.unwrap_err();
    assert!(!error.is_retryable() && error.to_string().contains("other bytes"), "{error}");
    assert!(stage.disk.path(&name).exists(), "it stays for a closer look");
    std::fs::remove_file(stage.disk.path(&name)).unwrap();
    // A copy that was cut short, as a torn journal gives it, is a beginning of what is there.
    let cut = stage.call.segments[1].1.slice(..400);
    stage.disk.folder.put_new(&name, cut, &tags).await.unwrap();
    assert_eq!(stage.settle().await, Outcome::Cleaned);
    assert_eq!(stage.names().await, ["final.cmr"]);
    stage.assert_plays(3, "after all").await;
}

/// What is in the store when somebody begins to settle.
#[derive(Debug, Clone, Copy)]
enum Scene {
    Segments,
    Manifest,
    Late,
    LateAndOwn,
}

impl Scene {
    async fn set(self, stage: &Stage) -> usize {
        let all = stage.call.segments.len();
        match self {
            Self::Segments => stage.put(0..all).await,
            Self::Manifest => {
                stage.put(0..all).await;
                stage.put_manifest().await;
            }
            Self::Late | Self::LateAndOwn => {
                stage.put(0..2).await;
                stage.settle().await;
                stage.put(1..all).await;
                if matches!(self, Self::LateAndOwn) {
                    stage.put_manifest().await;
                }
            }
        }
        all
    }
}

/// Settles until the request that `plan` lets hang, at which the process dies. Answers whether it came that far.
async fn settle_until(stage: &Stage, plan: impl FnOnce(&Faults)) -> bool {
    let store = Arc::new(Faulty::new(stage.disk.folder.clone()));
    let faults = store.faults();
    plan(&faults);
    let (settler, tenant) = (stage.settler(store), tenant());
    let hangs = async {
        while faults.hanging() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        outcome = settler.settle(&tenant, stage.call.ids.recording) => {
            outcome.unwrap();
            false
        }
        () = hangs => true,
    }
}

/// Interrupts at request 1, 2, 3 and so on until there is none left; answers how many there are.
async fn interrupt_everywhere(original: &Stage, scene: Scene) -> u32 {
    let at = |request| move |faults: &Faults| faults.fail_every(None, request, Fault::Hang);
    for request in 1.. {
        let stage = original.again().await;
        let all = scene.set(&stage).await;
        let when = format!("{scene:?}, died at request {request}");
        let died = settle_until(&stage, at(request)).await;
        if died {
            // A reader in between finds something consistent, and the next process dies as well.
            let between = stage.open().await;
            for index in 0..between.timeline().rows().len() {
                between.segment(index).await.unwrap();
            }
            settle_until(&stage, at(request.div_ceil(2))).await;
            stage.settle().await;
        }
        let stored = stage.assert_plays(all, &when).await;
        assert!(stored.is_final(), "{when}");
        assert_eq!(stage.names().await.len(), 1, "{when}: {:?}", stage.names().await);
        assert_eq!(stage.settle().await, Outcome::AlreadyFinal, "{when}");
        if !died {
            return request - 1;
        }
    }
    unreachable!("requests end")
}

async fn stop_at_every_request(scene: Scene) {
    let requests = interrupt_everywhere(&Stage::short().await, scene).await;
    println!("{scene:?}: {requests} requests, stopped at each");
    assert!(requests > 10);
}

#[tokio::test]
async fn wherever_a_rebuild_stops_it_ends_in_one_object_with_everything() {
    stop_at_every_request(Scene::Segments).await;
}

#[tokio::test]
async fn wherever_an_adopted_compaction_stops_it_ends_in_one_object_with_everything() {
    stop_at_every_request(Scene::Manifest).await;
}

#[tokio::test]
async fn wherever_joining_late_segments_stops_it_ends_in_one_object_with_everything() {
    stop_at_every_request(Scene::Late).await;
}

#[tokio::test]
async fn wherever_joining_a_late_end_stops_it_ends_in_one_object_with_everything() {
    stop_at_every_request(Scene::LateAndOwn).await;
}

#[tokio::test]
async fn late_segments_of_a_large_recording_are_joined_after_an_upload_in_parts_was_interrupted() {
    let stage = Stage::new(140, 64 * 1024, 3 << 20).await;
    assert!(stage.call.audio.len() > MIN_PART_BYTES);
    let all = Scene::Late.set(&stage).await;
    assert!(settle_until(&stage, |faults| faults.fail_next(Operation::Complete, 1, Fault::Hang)).await);
    assert!(matches!(stage.settle().await, Outcome::Finished { revision: 1, .. }));
    assert_eq!(stage.names().await, ["final-0001.cmr"]);
    stage.assert_plays(all, "in parts").await;
}

#[tokio::test]
async fn a_store_that_fails_now_and_then_is_asked_again() {
    for fault in [Fault::Busy { retry_after: None }, Fault::Break, Fault::LoseAnswer] {
        for scene in [Scene::Segments, Scene::LateAndOwn] {
            let stage = Stage::short().await;
            let all = scene.set(&stage).await;
            let store = Faulty::new(stage.disk.folder.clone());
            store.faults().fail_every(None, 3, fault);
            stage.settler(Arc::new(store)).settle(&tenant(), stage.call.ids.recording).await.unwrap();
            stage.assert_plays(all, &format!("{scene:?}, {fault:?}")).await;
            assert_eq!(stage.names().await.len(), 1);
        }
    }
}

/// Several settle at once, and the recorder goes on adding what it has.
async fn race(original: &Stage, seed: u64) {
    let stage = Arc::new(original.again().await);
    let all = stage.call.segments.len();
    stage.put(0..3).await;
    let mut tasks = tokio::task::JoinSet::new();
    for racer in 0..3u64 {
        let (stage, store) = (Arc::clone(&stage), Arc::new(Shuffled::new(seed * 10 + racer)));
        let settler = stage.settler(Arc::new(Over { inner: stage.disk.folder.clone(), shuffled: store }));
        tasks.spawn(async move {
            for _ in 0..4 {
                // Losing every race in a row is no fault; nothing may be lost by it.
                if let Err(error) = settler.settle(&tenant(), stage.call.ids.recording).await {
                    assert!(error.is_retryable(), "seed {seed}: {error:?}");
                }
            }
        });
    }
    let recorder = Arc::clone(&stage);
    let shuffled = Shuffled::new(seed);
    tasks.spawn(async move {
        for index in 3..all {
            shuffled.pause().await;
            shuffled.pause().await;
            recorder.put([index]).await;
        }
        if seed.is_multiple_of(2) {
            recorder.put_manifest().await;
        }
    });
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    stage.settle().await;
    let stored = stage.assert_plays(all, &format!("seed {seed}")).await;
    assert!(stored.is_final());
    assert_eq!(stage.names().await.len(), 1, "seed {seed}: {:?}", stage.names().await);
    assert_eq!(stage.settle().await, Outcome::AlreadyFinal, "seed {seed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_settle_at_once_lose_nothing() {
    let stage = Stage::new(200, CHUNK, 4 * 1024).await;
    for seed in 0..24 {
        race(&stage, seed).await;
    }
}

/// A little of random numbers, so that requests of several come in any order.
struct Shuffled {
    state: std::sync::Mutex<u64>,
}

impl Shuffled {
    fn new(seed: u64) -> Self {
        Self { state: std::sync::Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1) }
    }

    fn next(&self) -> u64 {
        let mut state = self.state.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    /// Lets others go first, sometimes for long.
    async fn pause(&self) {
        match self.next() % 8 {
            0 => tokio::time::sleep(Duration::from_millis(self.next() % 12)).await,
            turns => {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// A store whose requests wait at random, before and after they are carried out.
struct Over {
    inner: Folder,
    shuffled: Arc<Shuffled>,
}

impl Over {
    async fn shuffled<T>(&self, request: impl Future<Output = T>) -> T {
        self.shuffled.pause().await;
        let answer = request.await;
        self.shuffled.pause().await;
        answer
    }
}

#[async_trait]
impl Store for Over {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.shuffled(self.inner.put_new(name, body, tags)).await
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        self.shuffled(self.inner.get(name, range)).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.shuffled(self.inner.head(name)).await
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        self.shuffled(self.inner.list_after(prefix, after, limit)).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.shuffled(self.inner.delete(name)).await
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        self.shuffled(self.inner.tags(name)).await
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        self.shuffled(self.inner.set_tags(name, tags)).await
    }

    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        self.shuffled(self.inner.lock(name, until)).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        self.shuffled(self.inner.begin_upload(name, tags)).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }

    fn profile(&self) -> StoreProfile {
        self.inner.profile()
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        self.inner.now().await
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        self.shuffled(self.inner.delete_all(names)).await
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        self.inner.purge(prefix).await
    }

    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError> {
        self.inner.abort_uploads(name, before).await
    }
}
