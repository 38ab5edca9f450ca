//! A store that is away for longer than the budget lasts: what was sealed waits in the journal, and nothing is lost.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use callseal::clock;
use callseal::domain::cmr::Row;
use callseal::domain::ids::{RecordingId, TenantTag, WriterId};
use callseal::journal::{Journal, JournalConfig, JournalMetrics, JournalState, Record};
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER, Speech};
use callseal::simulate::{CallError, Pacing, Track, TwilioCall};
use callseal::store::Store;
use callseal::store::faulty::{Fault, Faults, Faulty};
use callseal::upload::{RetentionTags, RetryPolicy, UploadContext, Uploader};

use super::calls::say;
use super::node::{JournalDisk, TestNode};
use super::sealed::{CHUNK, Disk, Sealed};
use crate::support::{Setup, TENANT, eventually};

/// Far more than a lane needs.
const LIMIT: Duration = Duration::from_secs(20);
/// The least budget that a node takes.
const MIB: u64 = 1 << 20;

/// Segments of half a second of two tracks, and the least budget.
fn setup() -> Setup {
    Setup::new().option("segments", "max_bytes", "8192").option("upload", "budget_bytes", "1048576")
}

fn tracks(chunks: usize) -> [Track; 2] {
    [DEMO_CALLER, DEMO_AGENT].map(|speech| Track::looped(&Speech::new(speech.into()), 0, chunks))
}

/// Begins a call of two tracks that speak when they are told to.
async fn begin(node: &TestNode, number: u8, tracks: &[Track; 2]) -> Result<TwilioCall, CallError> {
    let mut plan = node.plan(number, tracks[0].clone());
    plan.agent = Some(tracks[1].clone());
    plan.pacing = Pacing::AsFastAsPossible;
    let mut call = TwilioCall::connect(plan, &node.tls).await?;
    call.greet().await?;
    Ok(call)
}

async fn end(mut call: TwilioCall) {
    call.send_stop().await.unwrap();
    assert_eq!(call.close(1000, "").await, Some(1000), "the call was never cut off");
}

/// Reads one line of the metrics of this process.
pub(super) fn metric(node: &TestNode, series: &str) -> f64 {
    node.node.uploader.publish_metrics();
    node.node.journal.publish_metrics();
    let page = node.node.metrics.render();
    let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

/// Waits until so many messages were taken; they are counted 500 at a time.
pub(super) async fn heard(node: &TestNode, messages: usize) {
    let counted = (messages - messages % 500) as f64;
    eventually("what was said", || (metric(node, "ingest_messages_total") >= counted).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_costs_nothing_while_the_journal_has_room() {
    let node = TestNode::start(setup()).await;
    node.faults.fail_every(None, 1, Fault::Break);
    let chunks = 3_000;
    let tracks = tracks(chunks);
    let mut calls = Vec::new();
    for number in 1..=2 {
        calls.push(begin(&node, number, &tracks).await.unwrap());
    }
    let mut most = 0;
    for from in (0..chunks).step_by(100) {
        for call in &mut calls {
            say(call, &tracks, from, from + 100).await;
        }
        most = most.max(node.node.uploader.memory_bytes());
    }
    // Two calls of 0.96 MB and what seals them, but for the open segments.
    eventually("the journal to take over", || {
        let (memory, spilled) = (node.node.uploader.memory_bytes(), node.node.uploader.spilled_bytes());
        (memory <= MIB / 2 + 32_768 && memory + spilled > 1_950_000).then_some(())
    })
    .await;
    assert!(most < 2 * MIB, "{most} bytes were in memory at once");
    assert_eq!(metric(&node, "upload_breaker_open"), 1.0, "the store is only probed");
    // What was waited for leaves at least so much.
    assert!(metric(&node, "upload_spilled_bytes") > 1_390_000.0);
    assert!(metric(&node, "upload_oldest_unstored_seconds") > 0.0);
    assert_eq!(node.node.not_ready().await, None, "there is room for more calls");
    let mut late = begin(&node, 3, &tracks).await.unwrap();
    say(&mut late, &tracks, 0, 500).await;

    node.faults.heal();
    for call in calls {
        end(call).await;
    }
    say(&mut late, &tracks, 500, chunks).await;
    end(late).await;
    eventually("an empty backlog", || (node.node.uploader.spilled_bytes() == 0).then_some(())).await;
    assert_eq!(node.node.uploader.drained(LIMIT).await, 0);
    assert_eq!(
        (metric(&node, "upload_breaker_open"), metric(&node, "upload_oldest_unstored_seconds")),
        (0.0, 0.0)
    );
    assert_eq!(metric(&node, "audio_lost_bytes_total{reason=\"overload\"}"), 0.0);
    let home = node.stop().await;
    let recordings = home.recordings(TENANT);
    assert_eq!(recordings.len(), 3);
    for recording in recordings {
        assert_eq!(home.show(TENANT, &recording)["state"], "complete");
        for (name, track) in ["caller", "agent"].into_iter().zip(&tracks) {
            assert!(
                home.open_ulaw(TENANT, &recording, name) == track.audio(),
                "{name}: every sample is there"
            );
        }
    }
    println!("store away, budget of 1 MiB: at most {most} bytes in memory, no gap in 3 calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_is_nearly_full_takes_no_new_calls_and_harms_no_running_one() {
    let setup = setup()
        .option("upload", "budget_bytes", "50331648")
        .option("journal", "file_bytes", "1048576")
        .option("journal", "max_bytes", "4194304");
    let node = TestNode::start(setup).await;
    node.faults.fail_every(None, 1, Fault::Break);
    let chunks = 4_000;
    let tracks = tracks(chunks);
    let mut call = begin(&node, 1, &tracks).await.unwrap();
    // Three quarters of the room are taken by others.
    let others = [7, 8, 9].map(|number| RecordingId([number; 16]));
    for recording in others {
        let (writer, bytes) = (WriterId([0; 16]), Bytes::from(vec![0; 1 << 20]));
        let sealed_at = clock::monotonic();
        let record = Record::Sealed { recording, writer, seq: 0, offset: 0, bytes, sealed_at };
        node.node.journal.append(record).unwrap();
    }
    let mut said = 0;
    while !node.node.journal.is_nearly_full() {
        assert!(said < chunks, "{} bytes", node.node.journal.disk_bytes());
        say(&mut call, &tracks, said, said + 250).await;
        said += 250;
        heard(&node, said * 2).await;
    }
    assert_eq!(node.node.not_ready().await, Some("the journal has no room"));
    let refused = begin(&node, 2, &tracks).await.err();
    assert!(matches!(refused, Some(CallError::Refused { status: 503 })), "{refused:?}");
    // The running call goes on, with the journal and, at its limit, without.
    say(&mut call, &tracks, said, chunks).await;
    eventually("the limit", || {
        matches!(node.node.journal.state(), JournalState::Failing { kind, .. } if kind.is_full())
            .then_some(())
    })
    .await;
    assert!(metric(&node, "journal_disk_bytes") <= metric(&node, "journal_max_bytes"));

    node.faults.heal();
    for recording in others {
        node.node.journal.append(Record::Finished { recording }).unwrap();
    }
    eventually("an empty queue", || (metric(&node, "upload_waiting_bytes") == 0.0).then_some(())).await;
    eventually("room in the journal", || node.node.cannot_keep().is_none().then_some(())).await;
    eventually("a journal that works", || (node.node.journal.state() == JournalState::Healthy).then_some(()))
        .await;
    end(begin(&node, 3, &tracks).await.unwrap()).await;
    end(call).await;
    assert_eq!(node.node.uploader.drained(LIMIT).await, 0);
    let home = node.stop().await;
    let recordings = home.recordings(TENANT);
    let long = recordings.iter().find(|id| home.show(TENANT, id)["counts"]["frames"] == chunks * 2).unwrap();
    assert_eq!(home.show(TENANT, long)["state"], "complete");
    assert!(home.open_ulaw(TENANT, long, "caller") == tracks[0].audio());
    assert!(home.open_ulaw(TENANT, long, "agent") == tracks[1].audio());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_with_segments_in_the_journal_only_has_all_of_them() {
    let (home, mut server) = setup().option("upload", "retry_max_ms", "300").serve();
    server.allow("store did not take an object");
    // The recordings' folder cannot be made: a file is in its way.
    let in_the_way = home.data().join("store/r");
    fs::write(&in_the_way, "in the way").unwrap();
    let chunks = 3_500;
    let tracks = tracks(chunks);
    let mut plan = server.plan("acme-dental/reception", 1, tracks[0].clone());
    plan.agent = Some(tracks[1].clone());
    plan.pacing = Pacing::AsFastAsPossible;
    let mut call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    call.greet().await.unwrap();
    say(&mut call, &tracks, 0, chunks).await;
    let spilled = eventually("segments in the journal only", || {
        let (memory, spilled) =
            (server.metric("upload_waiting_bytes"), server.metric("upload_spilled_bytes"));
        (memory <= 560_000.0 && memory + spilled > 1_200_000.0).then_some(spilled)
    })
    .await;
    server.kill();
    fs::remove_file(&in_the_way).unwrap();

    let mut server = home.serve();
    eventually("readiness", || (server.ops_get("/readyz").status == 200).then_some(())).await;
    assert_eq!(server.metric("recordings_recovered_total"), 1.0);
    let recording = home.recordings(TENANT).remove(0);
    assert_eq!(home.finished(TENANT, &recording).await["state"], "recovered");
    let mut kept = 0;
    for (name, track) in ["caller", "agent"].into_iter().zip(&tracks) {
        let mut heard = home.open_ulaw(TENANT, &recording, name);
        // Silence fills the shorter track up to the length of the other.
        while heard.last() == Some(&0xff) {
            heard.pop();
        }
        assert!(track.audio().starts_with(&heard), "{name}: nothing is missing in the middle");
        kept += heard.len();
    }
    assert!(kept > 1_000_000, "{kept} samples; {spilled} bytes were in the journal only");
    println!("killed with {spilled} bytes in the journal only: {kept} of {} samples kept", chunks * 320);
    server.stop().await;
}

/// A journal on a disk that may be full, and an uploader to a store that is away.
struct Away {
    dir: tempfile::TempDir,
    disk: JournalDisk,
    journal: Journal,
    faults: Faults,
    uploader: Uploader,
}

impl Away {
    async fn new(budget_bytes: u64) -> Self {
        let (dir, disk) = (tempfile::tempdir().unwrap(), JournalDisk::default());
        let mut config = JournalConfig::new(dir.path().join("journal"));
        config.retry_pause = Duration::from_millis(20);
        let files = Arc::new(disk.clone());
        let (journal, _replay) = Journal::open_with(&config, files, Arc::new(JournalMetrics::new())).unwrap();
        let folder = callseal::store::folder::Folder::open(dir.path().join("store")).await.unwrap();
        let store = Faulty::new(folder);
        let faults = store.faults();
        faults.fail_every(None, 1, Fault::Break);
        let policy = RetryPolicy {
            base: Duration::from_millis(5),
            max: Duration::from_millis(50),
            try_timeout: Duration::from_millis(300),
        };
        let uploader = Uploader::new(Arc::new(store), journal.clone(), policy, 8, budget_bytes);
        Self { dir, disk, journal, faults, uploader }
    }

    /// Hands a call to the journal as a recorder does: in pieces, then the ends.
    fn journal(&self, call: &Sealed) {
        let recording = call.ids.recording;
        let body = Bytes::from_static(b"{}");
        self.journal.append(Record::Opened { recording, tenant_tag: call.ids.tenant, body }).unwrap();
        for (row, bytes) in &call.segments {
            let (writer, seq) = (row.writer, row.seq);
            for at in (0..bytes.len()).step_by(1000) {
                let piece = bytes.slice(at..bytes.len().min(at + 1000));
                let offset = u32::try_from(at).unwrap();
                let sealed_at = clock::monotonic();
                let record = Record::Sealed { recording, writer, seq, offset, bytes: piece, sealed_at };
                self.journal.append(record).unwrap();
            }
            self.journal.append(Record::Cut { recording, writer, seq, length: row.byte_len }).unwrap();
        }
    }

    /// Checks that a crash now would leave all segments of a call.
    fn assert_survives_a_crash(&self, call: &Sealed) {
        let copy = tempfile::tempdir().unwrap();
        copy_files(&self.dir.path().join("journal"), copy.path());
        let (_journal, replay) = Journal::open(&JournalConfig::new(copy.path())).unwrap();
        let found = replay.recordings().iter().find(|found| found.recording == call.ids.recording).unwrap();
        assert!(found.body.is_some() && found.segments.len() == call.segments.len());
        for (segment, (row, bytes)) in found.segments.iter().zip(&call.segments) {
            assert!(segment.is_whole() && segment.seq == row.seq, "{segment:?}");
            assert_eq!(replay.segment_bytes(segment).unwrap(), bytes);
        }
    }
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[tokio::test]
async fn segments_that_left_the_memory_survive_a_crash() {
    let (away, call) = (Away::new(1).await, Sealed::call(500, CHUNK, 8 * 1024));
    away.journal(&call);
    let lane = call.lane(&away.uploader);
    call.hand_segments(&lane);
    eventually("an empty memory", || (away.uploader.memory_bytes() == 0).then_some(())).await;
    away.assert_survives_a_crash(&call);
}

#[tokio::test]
async fn what_waits_in_memory_is_written_again_after_a_failure_of_the_journal() {
    let (away, call) = (Away::new(64 * MIB).await, Sealed::call(500, CHUNK, 8 * 1024));
    away.disk.set_full(true);
    away.journal(&call);
    let lane = call.lane(&away.uploader);
    call.hand_segments(&lane);
    eventually("the full disk", || (away.disk.refused() > 0).then_some(())).await;
    away.disk.set_full(false);
    // Nothing but what waits in memory can bring it back.
    eventually("the segments in the new file", || (away.uploader.memory_bytes() == 0).then_some(())).await;
    assert_eq!(away.journal.generation(), 1);
    away.assert_survives_a_crash(&call);
}

#[tokio::test]
async fn a_segment_that_comes_late_from_before_the_failure_is_written_again() {
    let (away, call) = (Away::new(64 * MIB).await, Sealed::call(100, CHUNK, 8 * 1024));
    away.disk.set_full(true);
    away.journal(&call);
    eventually("the full disk", || (away.disk.refused() > 0).then_some(())).await;
    away.disk.set_full(false);
    eventually("recovery", || (away.journal.generation() == 1).then_some(())).await;
    // Its pieces were handed over before, so it says so.
    let lane = call.lane(&away.uploader);
    call.hand_segments(&lane);
    eventually("the segments in the new file", || (away.uploader.memory_bytes() == 0).then_some(())).await;
    away.assert_survives_a_crash(&call);
}

#[tokio::test]
async fn the_budget_counts_when_the_journal_does_not_take_over() {
    let (away, call) = (Away::new(20_000).await, Sealed::call(500, CHUNK, 8 * 1024));
    let lane = call.lane(&away.uploader);
    away.disk.set_full(true);
    away.journal(&call);
    call.hand_segments(&lane);
    eventually("the full disk", || (away.disk.refused() > 0).then_some(())).await;
    assert!(lane.is_full() && away.uploader.is_nearly_full());
    away.disk.set_full(false);
    eventually("room again", || (!lane.is_full() && !away.uploader.is_nearly_full()).then_some(())).await;
}

#[tokio::test]
async fn calls_that_end_together_are_no_overload_but_a_disk_that_hangs_is() {
    // More than the budget and what may be on its way to the journal, all at once.
    let (away, call) = (Away::new(MIB).await, Sealed::call(640, 30_000, 256 * 1024));
    away.disk.set_hanging(true);
    let lane = call.lane(&away.uploader);
    call.hand_segments(&lane);
    assert!(away.uploader.memory_bytes() > 17 * MIB, "{}", away.uploader.memory_bytes());
    assert!(!lane.is_full() && !away.uploader.is_nearly_full(), "nothing is wrong yet");
    eventually("too much for too long", || (lane.is_full() && away.uploader.is_nearly_full()).then_some(()))
        .await;
    away.disk.set_hanging(false);
    eventually("room again", || (!lane.is_full() && !away.uploader.is_nearly_full()).then_some(())).await;
}

#[tokio::test]
async fn what_is_read_back_becomes_the_same_object_or_none() {
    let (disk, call, broken) =
        (Disk::new().await, Sealed::call(500, CHUNK, 8 * 1024), Sealed::call(500, CHUNK, 8 * 1024));
    let store = Faulty::new(disk.folder.clone());
    let faults = store.faults();
    faults.fail_every(None, 1, Fault::Break);
    let uploader = disk.uploader(Arc::new(store), 1).with_catch_up_bytes_per_sec(400_000);
    let lane = broken.lane(&uploader);
    broken.hand_segments(&lane);
    broken.finish(lane);
    eventually("an empty memory", || (uploader.memory_bytes() == 0).then_some(())).await;
    // Wrong bytes in the middle of what the broken call has in the journal.
    damage_journal(&disk);
    let lane = call.lane(&uploader);
    call.hand_segments(&lane);
    call.finish(lane);
    eventually("an empty memory", || (uploader.memory_bytes() == 0).then_some(())).await;
    faults.heal();
    assert_eq!(uploader.drained(LIMIT).await, 0);
    call.assert_stored(&disk.folder).await;
    assert!(disk.folder.head(&broken.final_name()).await.is_err(), "what is wrong is not stored");
    assert_eq!((uploader.memory_bytes(), uploader.spilled_bytes()), (0, 0));
}

/// Flips a bit in the middle of each journal file there is.
fn damage_journal(disk: &Disk) {
    for entry in fs::read_dir(disk.journal_dir()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 1;
        }
        fs::write(&path, bytes).unwrap();
    }
}

/// Resident memory of this process in bytes.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes 2.2 GB twice and takes minutes; run it alone"]
async fn ten_minutes_of_two_hundred_calls_wait_on_the_disk_and_go_up_in_less() {
    const CALLS: u8 = 200;
    const SEGMENTS: u32 = 120;
    let away = Away::new(48 * MIB).await;
    let ids: Vec<_> = (0..CALLS).map(|number| RecordingId([number; 16])).collect();
    let retention = RetentionTags { tenant: TenantTag([1; 16]), days: 90 };
    let lanes: Vec<_> =
        ids.iter().map(|id| away.uploader.lane(UploadContext { recording: *id, retention })).collect();
    let before = resident();
    let mut most = 0;
    for seq in 0..SEGMENTS {
        for lane in &lanes {
            let bytes = Bytes::from(vec![seq.to_le_bytes()[0]; 92_000]);
            let row =
                Row { writer: WriterId([2; 16]), seq, byte_len: 92_000, sha256: [0; 32], complete: true };
            assert!(lane.segment(row, bytes, clock::monotonic(), 0));
        }
        // In truth five seconds pass; here only as many as the disk takes.
        eventually("the journal to take over", || (away.uploader.memory_bytes() <= 26 * MIB).then_some(()))
            .await;
        most = most.max(resident().saturating_sub(before));
    }
    let waiting = away.uploader.memory_bytes() + away.uploader.spilled_bytes();
    assert_eq!(waiting, u64::from(CALLS) * u64::from(SEGMENTS) * 92_000);
    away.faults.heal();
    let healed = clock::monotonic();
    drop(lanes);
    assert_eq!(away.uploader.drained(Duration::from_secs(600)).await, 0);
    println!(
        "{waiting} bytes waited with {most} bytes more in memory, and went up in {:?}",
        clock::since(healed)
    );
    assert!(most <= 64 * MIB);
}
