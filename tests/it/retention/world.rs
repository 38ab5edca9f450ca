//! A store with an invented clock, nodes that sweep it, and recordings in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use callseal::clock;
use callseal::control::audit::{self, AuditLog, AuditRecord};
use callseal::control::erase::Eraser;
use callseal::control::ledger::Ledger;
use callseal::control::redate::Redating;
use callseal::control::retention::{OrderedBy, Orders};
use callseal::control::sweep::{SweepError, SweepOptions, SweepReport, Sweeper};
use callseal::domain::audio::{AudioFormat, Speakers};
use callseal::domain::cmr::Expected;
use callseal::domain::ids::{BlindId, RecordingId, TenantId};
use callseal::domain::index::{IndexEntry, IndexKind, Term};
use callseal::domain::provider::{Media, Payload};
use callseal::domain::recording::{EndCause, RecordingMetadata};
use callseal::domain::retention::Receipt;
use callseal::domain::session::{
    AgentAudio, CallSession, DtmfPolicy, Entropy, EntropyFailed, Output, SegmentLimits, SessionSetup,
};
use callseal::domain::sign::encode_base64;
use callseal::domain::time::UnixMillis;
use callseal::keys::{KeyService, Keyring, LocalKeys, fill_random, system_random};
use callseal::store::faulty::{Faults, Faulty};
use callseal::store::folder::Folder;
use callseal::store::{
    ByteRange, Fetched, ObjectInfo, ObjectName, PutOutcome, Store, StoreError, StoreProfile, Tags, Upload,
    layout,
};
use callseal::upload::{Requests, RetentionTags, RetryPolicy, compact, put_entries};
use tempfile::TempDir;

use crate::support::TENANT;

pub(super) const HOUR: u64 = 3_600_000;
pub(super) const DAY: u64 = 24 * HOUR;
pub(super) const OPTIONS: SweepOptions = SweepOptions {
    interval: Duration::from_secs(3600),
    grace: Duration::from_secs(30 * 24 * 3600),
    max_deletions: 1000,
    concurrency: 8,
    max_share_percent: 10,
};

/// The call and the party that all recordings belong to.
const ENTRIES: [IndexEntry; 2] = [
    IndexEntry { kind: IndexKind::Call, blind: BlindId([0xca; 16]) },
    IndexEntry { kind: IndexKind::Party, blind: BlindId([0xfa; 16]) },
];

/// The system's random bytes.
struct Random;

impl Entropy for Random {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyFailed> {
        fill_random(out).map_err(|_| EntropyFailed)
    }
}

/// What the store and the nodes show as time.
#[derive(Clone, Default)]
pub(super) struct Clocks {
    store_ms: Arc<AtomicU64>,
    /// By how much the nodes are ahead of the store.
    ahead_ms: Arc<AtomicI64>,
    has_no_tags: Arc<AtomicBool>,
}

impl Clocks {
    pub(super) fn now(&self) -> UnixMillis {
        UnixMillis(self.store_ms.load(Ordering::SeqCst))
    }

    fn ours(&self) -> UnixMillis {
        UnixMillis(self.now().0.saturating_add_signed(self.ahead_ms.load(Ordering::SeqCst)))
    }

    pub(super) fn advance(&self, by_ms: u64) {
        self.store_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    pub(super) fn go_back(&self, by_ms: u64) {
        self.store_ms.fetch_sub(by_ms, Ordering::SeqCst);
    }

    pub(super) fn set_ahead(&self, ahead_ms: i64) {
        self.ahead_ms.store(ahead_ms, Ordering::SeqCst);
    }

    pub(super) fn take_tags_away(&self) {
        self.has_no_tags.store(true, Ordering::SeqCst);
    }
}

/// Shows another time, and perhaps no tags.
struct Clocked {
    inner: Faulty<Arc<dyn Store>>,
    clocks: Clocks,
}

impl Clocked {
    fn kept(&self, tags: &Tags) -> Tags {
        if self.profile().tags { tags.clone() } else { Tags::new() }
    }
}

#[async_trait]
impl Store for Clocked {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.inner.put_new(name, body, &self.kept(tags)).await
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        self.inner.get(name, range).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        self.inner.head(name).await
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        self.inner.list_after(prefix, after, limit).await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.inner.delete(name).await
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        match self.profile().tags {
            true => self.inner.tags(name).await,
            false => Err(StoreError::Unsupported { feature: "tags" }),
        }
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        match self.profile().tags {
            true => self.inner.set_tags(name, tags).await,
            false => Err(StoreError::Unsupported { feature: "tags" }),
        }
    }

    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        self.inner.lock(name, until).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.begin_upload(name, &self.kept(tags)).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }

    fn profile(&self) -> StoreProfile {
        let has_no_tags = self.clocks.has_no_tags.load(Ordering::SeqCst);
        let inner = self.inner.profile();
        StoreProfile { tags: inner.tags && !has_no_tags, ..inner }
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        self.inner.now().await?;
        Ok(self.clocks.now())
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        self.inner.delete_all(names).await
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        self.inner.purge(prefix).await
    }

    async fn abort_uploads(&self, name: &ObjectName, before: UnixMillis) -> Result<u64, StoreError> {
        self.inner.abort_uploads(name, before).await
    }
}

/// One store, and what is needed to start nodes on it.
pub(super) struct World {
    dir: TempDir,
    pub(super) clocks: Clocks,
    pub(super) faults: Faults,
    pub(super) store: Arc<dyn Store>,
    pub(super) tenant: TenantId,
}

/// One process.
pub(super) struct Node {
    pub(super) keys: Arc<KeyService>,
    pub(super) sweeper: Sweeper,
    pub(super) orders: Orders,
    pub(super) eraser: Eraser,
    pub(super) ledger: Ledger,
    pub(super) redating: Redating,
    tenant: TenantId,
}

impl Node {
    pub(super) async fn sweep(&self) -> Result<SweepReport, SweepError> {
        self.sweeper.run(std::slice::from_ref(&self.tenant)).await
    }

    /// Sweeps; everything due must be deleted.
    pub(super) async fn sweep_well(&self) -> SweepReport {
        let report = self.sweep().await.unwrap();
        assert_eq!((report.failed, report.overdue, report.due), (0, 0, report.deleted), "{report:?}");
        report
    }

    pub(super) async fn survey(&self) -> SweepReport {
        self.sweeper.survey(std::slice::from_ref(&self.tenant)).await.unwrap().report()
    }
}

pub(super) fn by() -> OrderedBy {
    OrderedBy::operator("counsel", "a lawsuit")
}

impl World {
    pub(super) async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let folder = Folder::open(dir.path().join("store")).await.unwrap();
        Self::with(dir, Arc::new(folder))
    }

    /// The world of another store than a folder.
    pub(super) fn of(store: Arc<dyn Store>) -> Self {
        Self::with(TempDir::new().unwrap(), store)
    }

    fn with(dir: TempDir, inner: Arc<dyn Store>) -> Self {
        let inner = Faulty::new(inner);
        let (faults, clocks) = (inner.faults(), Clocks::default());
        clocks.advance(clock::wall().0);
        let store: Arc<dyn Store> = Arc::new(Clocked { inner, clocks: clocks.clone() });
        let tenant: TenantId = TENANT.parse().unwrap();
        let ring = dir.path().join("keyring.json");
        Keyring::init(&ring, std::slice::from_ref(&tenant), "2026-01-01T00:00:00Z", system_random).unwrap();
        Self { dir, clocks, faults, store, tenant }
    }

    pub(super) fn node(&self, options: SweepOptions) -> Node {
        let ring = Keyring::load(&self.dir.path().join("keyring.json")).unwrap();
        let keys = Arc::new(KeyService::new(Arc::new(LocalKeys::new(ring)), Arc::clone(&self.store)));
        let audit = AuditLog::start("test".to_owned(), Arc::clone(&keys), Arc::clone(&self.store));
        let clocks = self.clocks.clone();
        let sweeper = Sweeper::new(Arc::clone(&self.store), Arc::clone(&keys), audit.clone(), options)
            .with_clock(move || clocks.ours());
        let orders = Orders::new(Arc::clone(&self.store), Arc::clone(&keys), audit.clone());
        let redating = Redating::new(Arc::clone(&self.store), Arc::clone(&keys), audit.clone());
        let eraser = Eraser::new(Arc::clone(&self.store), Arc::clone(&keys), audit, options.grace);
        let ledger = Ledger::new(Arc::clone(&self.store), Arc::clone(&keys));
        Node { keys, sweeper, orders, eraser, ledger, redating, tenant: self.tenant.clone() }
    }

    /// Stores what there is of a call after its end: segments, entry and manifest.
    pub(super) async fn store_parts(&self, node: &Node, days: u32) -> RecordingId {
        self.store_parts_of(node, (days, false)).await
    }

    async fn store_parts_of(&self, node: &Node, (days, own_days): (u32, bool)) -> RecordingId {
        let ended = self.clocks.now();
        let metadata = RecordingMetadata { own_days, ..metadata(days, ended) };
        let (ids, segments, manifest) = self.seal(node, metadata, ended).await;
        let retention = RetentionTags { tenant: ids.tenant, days };
        let tags = retention.tags(ended);
        for (name, bytes) in segments {
            self.store.put_new(&name, bytes, &tags).await.unwrap();
        }
        let expiry = layout::expiry(&clock::utc_date(retention.expires(ended)), ids.tenant, ids.recording);
        self.store.put_new(&expiry, Bytes::new(), &Tags::new()).await.unwrap();
        let policy = World::policy();
        let requests = Requests::new(&*self.store, policy);
        put_entries(requests, retention, ids.recording, (&ENTRIES, ended)).await.unwrap();
        if let Some(manifest) = manifest {
            let name = layout::manifest(ids.tenant, ids.recording, 0);
            self.store.put_new(&name, manifest, &tags).await.unwrap();
        }
        ids.recording
    }

    /// Stores a finished recording that ends now.
    pub(super) async fn record(&self, node: &Node, days: u32) -> RecordingId {
        let recording = self.store_parts(node, days).await;
        self.compact(recording, days).await;
        recording
    }

    /// Stores a finished recording whose days its call's ticket gave.
    pub(super) async fn record_own(&self, node: &Node, days: u32) -> RecordingId {
        let recording = self.store_parts_of(node, (days, true)).await;
        self.compact(recording, days).await;
        recording
    }

    pub(super) async fn compact(&self, recording: RecordingId, days: u32) {
        let tenant = self.tenant.tag();
        let tags = RetentionTags { tenant, days }.tags(self.clocks.now());
        compact(&*self.store, tenant, recording, &tags, Self::policy()).await.unwrap();
    }

    fn policy() -> RetryPolicy {
        RetryPolicy {
            base: Duration::from_millis(1),
            max: Duration::from_millis(2),
            try_timeout: Duration::from_secs(60),
        }
    }

    async fn seal(
        &self,
        node: &Node,
        metadata: RecordingMetadata,
        ended: UnixMillis,
    ) -> (Expected, Vec<(ObjectName, Bytes)>, Option<Bytes>) {
        let minted = node.keys.mint(&self.tenant).await.unwrap();
        let ids = minted.ids;
        let setup = SessionSetup {
            dek: minted.dek,
            ids,
            limits: SegmentLimits { max_age: Duration::from_secs(5), max_bytes: 65_536 },
            dtmf: DtmfPolicy::Redact,
            agent: AgentAudio::Received,
            speakers: Speakers::CallerAndAgent,
            metadata,
        };
        let mut session = CallSession::start(setup, Box::new(Random), clock::monotonic(), ended).unwrap();
        let media = Media {
            track: callseal::domain::ids::TrackId::CALLER,
            sequence: Some(1),
            timestamp_ms: Some(0),
            payload: Payload::new(encode_base64(&[7; 160])),
        };
        session.handle_media(clock::monotonic(), ended, &media).unwrap();
        session.finish(ended, EndCause::Stop).unwrap();
        let (mut segments, mut manifest) = (Vec::new(), None);
        while let Some(output) = session.poll_output() {
            match output {
                Output::Segment(segment) => {
                    let name =
                        layout::segment(ids.tenant, ids.recording, segment.row.writer, segment.row.seq);
                    segments.push((name, Bytes::from(segment.bytes)));
                }
                Output::Finished(finished) => manifest = Some(Bytes::from(finished.bytes)),
            }
        }
        (ids, segments, manifest)
    }

    /// Makes a recording findable by a term.
    pub(super) async fn index(&self, node: &Node, recording: RecordingId, term: &Term) {
        let key = node.keys.index_key(&self.tenant).await.unwrap();
        let entries = [term.blind(key.dek.expose())];
        let retention = RetentionTags { tenant: self.tenant.tag(), days: 30 };
        let requests = Requests::new(&*self.store, Self::policy());
        put_entries(requests, retention, recording, (&entries, self.clocks.now())).await.unwrap();
    }

    /// Returns everything in the store but audit records: names, bytes and tags.
    pub(super) async fn backup(&self) -> Vec<(ObjectName, Bytes, Tags)> {
        let mut all = Vec::new();
        for object in self.store.list_after("", None, 100_000).await.unwrap() {
            let bytes = self.store.get(&object.name, None).await.unwrap().bytes;
            let tags = self.store.tags(&object.name).await.unwrap();
            if !object.name.as_str().starts_with("a/") {
                all.push((object.name, bytes, tags));
            }
        }
        all
    }

    /// Puts objects of a backup back that are not there any more.
    pub(super) async fn restore(&self, backup: &[(ObjectName, Bytes, Tags)]) {
        for (name, bytes, tags) in backup {
            self.store.put_new(name, bytes.clone(), tags).await.unwrap();
        }
    }

    /// Returns the names of all objects of a recording: its own, envelopes, orders, receipt and entries.
    pub(super) async fn objects_of(&self, recording: RecordingId) -> Vec<String> {
        let all = self.store.list_after("", None, 100_000).await.unwrap();
        let names = all.into_iter().map(|object| object.name.to_string());
        names.filter(|name| name.contains(&recording.to_string())).collect()
    }

    /// Checks that nothing is left of a recording but the receipt; answers it.
    pub(super) async fn assert_deleted(&self, recording: RecordingId, when: &str) -> Receipt {
        let name = layout::receipt(self.tenant.tag(), recording);
        assert_eq!(self.objects_of(recording).await, [name.to_string()], "{when}");
        let receipt = self.store.get(&name, None).await.unwrap().bytes;
        serde_json::from_slice(&receipt).unwrap()
    }

    /// Checks that a finished recording has its audio, its key and an entry.
    pub(super) async fn assert_whole(&self, recording: RecordingId, when: &str) {
        let objects = self.objects_of(recording).await;
        let tag = self.tenant.tag();
        assert!(objects.contains(&format!("r/{tag}/{recording}/final.cmr")), "{when}: {objects:?}");
        assert!(objects.contains(&format!("k/{tag}/{recording}/0000.json")), "{when}: {objects:?}");
        assert!(objects.iter().any(|name| name.starts_with("e/")), "{when}: {objects:?}");
        let entries = objects.iter().filter(|name| name.starts_with("x/")).count();
        assert_eq!(entries, 2 * ENTRIES.len(), "{when}: {objects:?}");
        assert!(!objects.iter().any(|name| name.starts_with("d/")), "{when}: {objects:?}");
    }

    pub(super) async fn hold_tag(&self, recording: RecordingId) -> String {
        let name = layout::final_object(self.tenant.tag(), recording);
        self.store.tags(&name).await.unwrap().value("callseal-hold").unwrap().to_owned()
    }

    /// Returns action, role, reason and result of all audit records.
    pub(super) async fn audited(&self, node: &Node) -> Vec<AuditRecord> {
        audit::read(&self.tenant, &node.keys, &*self.store).await.unwrap()
    }
}

fn metadata(days: u32, started: UnixMillis) -> RecordingMetadata {
    RecordingMetadata {
        v: 1,
        tenant: TENANT.to_owned(),
        route: "reception".to_owned(),
        provider: "twilio".to_owned(),
        account: "AC".to_owned(),
        call: "CA".to_owned(),
        stream: "MZ".to_owned(),
        started_ms: started.0,
        parameters: BTreeMap::new(),
        retention_days: days,
        own_days: false,
        ticket: BTreeMap::new(),
        consent: None,
        format: AudioFormat::TELEPHONE,
    }
}
