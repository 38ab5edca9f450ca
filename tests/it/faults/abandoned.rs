//! Which recordings count as abandoned, and a recorder that was only cut off from the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use callseal::clock;
use callseal::control::repair::{Outcome, Repair, Schedule, State, scan};
use callseal::domain::ids::RecordingId;
use callseal::domain::time::UnixMillis;
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{Track, TwilioCall};
use callseal::store::faulty::{Fault, Faulty};
use callseal::store::folder::Folder;
use callseal::store::{
    ByteRange, Fetched, ObjectInfo, ObjectName, Operation, PutOutcome, Store, StoreError, StoreProfile, Tags,
    Upload,
};

use super::node::TestNode;
use super::settle::{Stage, tenant};
use crate::support::{Setup, TENANT, eventually, files_below};

const SECOND: Duration = Duration::from_secs(1);
const HOUR_MS: i64 = 3_600_000;

fn repair(stage: &Stage, store: Arc<dyn Store>, after: Duration) -> Repair {
    let schedule = Schedule { after, interval: SECOND };
    Repair::new(stage.settler(Arc::clone(&store)), store, schedule)
}

/// Scans until the recording has its final form.
async fn scan_until_settled(stage: &Stage, repair: &mut Repair) {
    let began = clock::monotonic();
    while stage.names().await != ["final.cmr"] {
        assert!(clock::since(began) < 20 * SECOND, "scanned in vain");
        repair.scan_all(&[tenant()], &|_| false).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Scans for `time`; nothing may be touched.
async fn scan_in_vain(stage: &Stage, repair: &mut Repair, time: Duration, is_live: bool) {
    let (before, began) = (stage.names().await, clock::monotonic());
    while clock::since(began) < time {
        repair.scan_all(&[tenant()], &|_: RecordingId| is_live).await;
        assert_eq!(stage.names().await, before);
    }
}

#[tokio::test]
async fn a_scan_tells_what_is_not_in_its_final_form() {
    let stage = Stage::short().await;
    let (store, recording) = (stage.disk.folder.clone(), stage.call.ids.recording);
    let tenant = tenant();
    let scan = || scan(&store, &tenant, None, SECOND);
    assert!(scan().await.unwrap().unsettled.is_empty());
    stage.put(0..2).await;
    let found = scan().await.unwrap();
    let only = &found.unsettled[0];
    assert_eq!((only.recording, only.state, only.objects), (recording, State::Segments, 2));
    assert!(only.newest.is_some() && found.settled_up_to.is_none());
    stage.settle().await;
    let found = scan().await.unwrap();
    assert!(found.unsettled.is_empty() && found.settled == 1 && found.settled_up_to == Some(recording));
    stage.put(1..3).await;
    assert_eq!(scan().await.unwrap().unsettled[0].state, State::Leftovers);
}

#[tokio::test]
async fn a_recording_of_this_process_is_never_taken_for_abandoned() {
    let stage = Stage::short().await;
    stage.put(0..2).await;
    let mut repair = repair(&stage, Arc::new(stage.disk.folder.clone()), Duration::ZERO);
    scan_in_vain(&stage, &mut repair, SECOND / 5, true).await;
    scan_until_settled(&stage, &mut repair).await;
}

#[tokio::test]
async fn the_clock_of_the_store_decides_about_age() {
    let stage = Stage::short().await;
    stage.put(0..2).await;
    let store = Arc::new(OtherClock { inner: stage.disk.folder.clone(), ahead_ms: AtomicI64::new(-HOUR_MS) });
    let mut patient = repair(&stage, Arc::<OtherClock>::clone(&store), SECOND / 5);
    scan_in_vain(&stage, &mut patient, SECOND, false).await;
    store.ahead_ms.store(0, Ordering::SeqCst);
    scan_until_settled(&stage, &mut patient).await;
}

#[tokio::test]
async fn what_looks_old_is_watched_before_it_is_touched_and_anew_after_an_outage() {
    let stage = Stage::short().await;
    stage.put(0..2).await;
    let clock_ahead = OtherClock { inner: stage.disk.folder.clone(), ahead_ms: AtomicI64::new(HOUR_MS) };
    let store = Faulty::new(clock_ahead);
    let faults = store.faults();
    let mut repair = repair(&stage, Arc::new(store), 4 * SECOND);
    // An hour old by the store's clock, but seen for the first time.
    repair.scan_all(&[tenant()], &|_| false).await;
    assert_eq!(stage.names().await.len(), 2);
    tokio::time::sleep(2 * SECOND).await;
    for operation in [Operation::Ping, Operation::ListAfter] {
        faults.fail_next(operation, 1, Fault::Break);
        repair.scan_all(&[tenant()], &|_| false).await;
        repair.scan_all(&[tenant()], &|_| false).await;
        assert_eq!(stage.names().await.len(), 2, "watched anew after a store that did not answer");
    }
    scan_until_settled(&stage, &mut repair).await;
}

#[tokio::test]
async fn a_recording_that_changes_is_watched_anew() {
    let stage = Stage::short().await;
    stage.put(0..1).await;
    let clock_ahead = OtherClock { inner: stage.disk.folder.clone(), ahead_ms: AtomicI64::new(HOUR_MS) };
    let mut repair = repair(&stage, Arc::new(clock_ahead), 2 * SECOND);
    for segment in 1..stage.call.segments.len() {
        repair.scan_all(&[tenant()], &|_| false).await;
        tokio::time::sleep(SECOND / 2).await;
        stage.put([segment]).await;
    }
    assert_eq!(stage.names().await.len(), stage.call.segments.len(), "nothing was touched");
    scan_until_settled(&stage, &mut repair).await;
    assert_eq!(stage.settle().await, Outcome::AlreadyFinal);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recorder_that_was_cut_off_while_others_finished_its_recording_loses_nothing() {
    let setup = Setup::new().option("segments", "max_bytes", "8192").option("segments", "max_age_ms", "1000");
    let node = TestNode::start(setup).await;
    let (caller, agent) = (&DEMO_CALLER[80_000..128_000], &DEMO_AGENT[80_000..128_000]);
    let mut plan = node.plan(1, Track::whole(caller));
    plan.agent = Some(Track::whole(agent));
    let call = TwilioCall::connect(plan, &node.tls).await.unwrap();
    let cut_off = async {
        let segments = || files_below(&node.home.data().join("store/r")).len();
        eventually("some segments", || (segments() >= 3).then_some(())).await;
        node.faults.fail_every(None, 1, Fault::Break);
        // Another node, for which the store works, takes it for abandoned.
        let did = node.home.run_json(&["repair", "--after", "0", "--json"]).remove(0);
        assert_eq!((&did["found"], &did["did"]), (&"segments".into(), &"finished".into()), "{did}");
        assert_eq!(did["revision"], 0);
        let recording = did["recording"].as_str().unwrap().to_owned();
        let heard = node.home.open_ulaw(TENANT, &recording, "caller");
        assert!(heard.len() > 1000 && caller.starts_with(&heard[..heard.len() - 1000]), "{}", heard.len());
        recording
    };
    let (report, recording) = tokio::join!(call.run(|_| ()), cut_off);
    assert_eq!(report.unwrap().close_code, Some(1000), "the call noticed nothing");
    node.faults.heal();
    assert_eq!(node.node.uploader.drained(20 * SECOND).await, 0, "the lane comes to an end");
    let id: RecordingId = recording.parse().unwrap();
    eventually("a recording that is not live", || (!node.node.uploader.is_live(id)).then_some(())).await;
    assert!(node.node.metrics.render().contains("recordings_taken_over_total 1"));
    let did = node.home.run_json(&["repair", "--after", "0", "--json"]).remove(0);
    assert_eq!((&did["found"], &did["did"]), (&"leftovers".into(), &"finished".into()), "{did}");
    assert_eq!((&did["revision"], &did["life"]), (&1.into(), &"complete".into()), "{did}");
    let home = node.stop().await;
    assert!(home.open_ulaw(TENANT, &recording, "caller") == caller);
    assert!(home.open_ulaw(TENANT, &recording, "agent") == agent);
    assert_eq!(home.verify(TENANT, &recording)["grade"], "evidence");
    // Nor does its journal bring anything back.
    let mut server = home.serve();
    server.wait_log("journal of earlier processes is worked off", 1).await;
    assert!(home.run_json(&["repair", "--after", "0", "--json"]).is_empty());
    server.stop().await;
}

/// A store whose clock is ahead of, or behind, that of this machine.
struct OtherClock {
    inner: Folder,
    ahead_ms: AtomicI64,
}

#[async_trait]
impl Store for OtherClock {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        self.inner.put_new(name, body, tags).await
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
        self.inner.tags(name).await
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        self.inner.set_tags(name, tags).await
    }

    async fn lock(&self, name: &ObjectName, until: UnixMillis) -> Result<(), StoreError> {
        self.inner.lock(name, until).await
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.begin_upload(name, tags).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }

    fn profile(&self) -> StoreProfile {
        self.inner.profile()
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        let now = self.inner.now().await?;
        Ok(UnixMillis(now.0.saturating_add_signed(self.ahead_ms.load(Ordering::SeqCst))))
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
