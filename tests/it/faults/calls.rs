//! Whole calls while something below them fails: the call goes on, and the recording says what is missing.

use std::time::Duration;

use callseal::domain::ids::RecordingId;
use callseal::journal::Record;
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER, Speech};
use callseal::simulate::{CallError, Direction, Pacing, Track, TwilioCall};
use callseal::store::faulty::Fault;
use serde_json::Value;

use super::backlog::{heard, metric};
use super::node::TestNode;
use crate::support::{Home, Setup, TENANT, eventually};

/// Where people speak, and for how long: 6 s.
const FROM: usize = 80_000;
const SAMPLES: usize = 48_000;

fn caller() -> &'static [u8] {
    &DEMO_CALLER[FROM..FROM + SAMPLES]
}

fn agent() -> &'static [u8] {
    &DEMO_AGENT[FROM..FROM + SAMPLES]
}

/// Segments of at most half a second of two tracks.
fn setup() -> Setup {
    Setup::new().option("segments", "max_bytes", "8192").option("segments", "max_age_ms", "1000")
}

fn assert_complete(home: &Home) {
    let recordings = home.recordings(TENANT);
    assert_eq!(recordings.len(), 1);
    let shown = home.show(TENANT, &recordings[0]);
    assert_eq!((&shown["state"], &shown["cause"]), (&"complete".into(), &"stop".into()), "{shown}");
    assert_eq!(home.verify(TENANT, &recordings[0])["state"], "complete");
    assert!(home.open_ulaw(TENANT, &recordings[0], "caller") == caller());
    assert!(home.open_ulaw(TENANT, &recordings[0], "agent") == agent());
}

/// Places a call while `disturb` does what it wants; the call must not notice.
async fn disturbed(node: &TestNode, disturb: impl Future<Output = ()>) {
    let mut plan = node.plan(1, Track::whole(caller()));
    plan.agent = Some(Track::whole(agent()));
    let call = TwilioCall::connect(plan, &node.tls).await.unwrap();
    let (report, ()) = tokio::join!(call.run(|_| ()), disturb);
    assert_eq!(report.unwrap().close_code, Some(1000), "the call ended as it should");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_does_not_notice_a_store_that_is_busy_breaks_hangs_and_loses_answers() {
    let node = TestNode::start(setup()).await;
    let faults = node.faults.clone();
    disturbed(&node, async {
        let busy = Fault::Busy { retry_after: None };
        for fault in [busy, Fault::Break, Fault::Hang, Fault::LoseAnswer, Fault::Deny, Fault::Full] {
            faults.fail_every(None, 1, fault);
            tokio::time::sleep(Duration::from_millis(200)).await;
            faults.heal();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        faults.fail_every(None, 3, Fault::LoseAnswer);
    })
    .await;
    let metrics = node.node.metrics.render();
    let retries = metrics.lines().find_map(|line| line.strip_prefix("upload_retries_total "));
    assert!(retries.is_some_and(|retries| retries != "0"), "retries are counted");
    faults.heal();
    assert_complete(&node.stop().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_does_not_notice_a_full_disk_of_the_journal() {
    let node = TestNode::start(setup()).await;
    let disk = node.journal_disk.clone();
    disturbed(&node, async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        disk.set_full(true);
        eventually("the full disk", || (disk.refused() > 2).then_some(())).await;
        assert_eq!(node.node.not_ready().await, Some("the journal has no room"));
        tokio::time::sleep(Duration::from_millis(300)).await;
        disk.set_full(false);
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Until the end, and beyond.
        disk.set_full(true);
    })
    .await;
    assert_eq!(node.node.uploader.drained(Duration::from_secs(20)).await, 0, "the store has it all");
    disk.set_full(false);
    eventually("a journal that works", || {
        matches!(node.node.journal.state(), callseal::journal::JournalState::Healthy).then_some(())
    })
    .await;
    assert_complete(&node.stop().await);
}

/// A stretch of a track: first sample and length.
type Span = (usize, usize);

/// Returns the gaps of a track that our own bound has made, counted from the beginning of the recording.
fn overload_gaps(shown: &Value, track: u64) -> Vec<Span> {
    let number = |gap: &Value, field: &str| usize::try_from(gap[field].as_u64().unwrap()).unwrap();
    let reason = u64::from(callseal::domain::cmr::GapReason::Overload.number());
    // The first audio has the timestamp 102 ms.
    let gaps = shown["gaps"].as_array().unwrap().iter().filter(|gap| gap["track"] == track);
    gaps.inspect(|gap| assert_eq!(gap["reason"], reason, "{gap}"))
        .map(|gap| (number(gap, "pts") - 102 * 8, number(gap, "samples")))
        .collect()
}

/// What must be heard: everything said, and silence in the gaps.
fn with_gaps(said: &[u8], gaps: &[Span]) -> Vec<u8> {
    let mut heard = said.to_vec();
    for (at, length) in gaps {
        heard[*at..at + length].fill(0xff);
    }
    heard
}

/// Sends the messages of both tracks from chunk `from` up to chunk `to`.
pub(super) async fn say(call: &mut TwilioCall, tracks: &[Track; 2], from: usize, to: usize) {
    for chunk in from..to {
        for (direction, track) in [Direction::Inbound, Direction::Outbound].into_iter().zip(tracks) {
            let payload = track.base64(chunk).unwrap();
            call.send_media(direction, 102 + chunk as u64 * 20, payload).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_nothing_takes_over_makes_gaps_that_are_counted_to_the_sample() {
    let node = TestNode::start(setup().option("upload", "budget_bytes", "1048576")).await;
    let (whole, part) = (5_000, 4_500);
    let speech = [Speech::new(DEMO_CALLER.into()), Speech::new(DEMO_AGENT.into())];
    let tracks = speech.map(|speech| Track::looped(&speech, 0, whole));
    let mut plan = node.plan(1, tracks[0].clone());
    plan.agent = Some(tracks[1].clone());
    plan.pacing = Pacing::AsFastAsPossible;
    let another = node.plan(2, tracks[0].clone());
    let mut call = TwilioCall::connect(plan, &node.tls).await.unwrap();
    call.greet().await.unwrap();
    node.faults.fail_every(None, 1, Fault::Break);
    node.journal_disk.set_full(true);
    eventually("the full disk", || {
        // Something must be written for it to be noticed; the opening of the call may have come too soon.
        let recording = RecordingId([0; 16]);
        node.node.journal.append(Record::Finished { recording }).unwrap();
        (node.journal_disk.refused() > 0).then_some(())
    })
    .await;
    say(&mut call, &tracks, 0, part).await;
    heard(&node, part * 2).await;
    assert!(node.node.uploader.memory_bytes() >= 1_048_576, "the budget is used up");
    assert!(node.node.uploader.memory_bytes() < 1_048_576 + 2 * 8192, "and no more than that");
    assert_eq!(node.node.uploader.spilled_bytes(), 0);
    let refused = TwilioCall::connect(another, &node.tls).await.err();
    assert!(matches!(refused, Some(CallError::Refused { status: 503 })), "{refused:?}");
    assert_eq!(node.node.not_ready().await, Some("the journal has no room"));

    node.journal_disk.set_full(false);
    node.faults.heal();
    eventually("an empty queue", || {
        (node.node.uploader.memory_bytes() + node.node.uploader.spilled_bytes() == 0).then_some(())
    })
    .await;
    say(&mut call, &tracks, part, whole).await;
    call.send_stop().await.unwrap();
    assert_eq!(call.close(1000, "").await, Some(1000), "the call was never cut off");
    assert_eq!(node.node.uploader.drained(Duration::from_secs(20)).await, 0);
    let counted = metric(&node, "audio_lost_bytes_total{reason=\"overload\"}");
    // A disk that was full is tried again after a while, and with something to write.
    eventually("a journal that works", || {
        node.node.journal.append(Record::Finished { recording: RecordingId([0; 16]) }).unwrap();
        node.node.journal.sync_now(Duration::from_secs(1)).ok()
    })
    .await;
    let home = node.stop().await;
    let recording = home.recordings(TENANT).remove(0);
    let shown = home.show(TENANT, &recording);
    assert_eq!((&shown["state"], &shown["cause"]), (&"partial".into(), &"stop".into()));
    let gaps = [overload_gaps(&shown, 0), overload_gaps(&shown, 1)];
    for (name, (track, gaps)) in ["caller", "agent"].into_iter().zip(tracks.iter().zip(&gaps)) {
        assert_eq!(gaps.len(), 1, "{name}: one gap while store and journal were away: {gaps:?}");
        let heard = home.open_ulaw(TENANT, &recording, name);
        assert!(heard == with_gaps(&track.audio(), gaps), "{name}: all that is not a gap is there");
    }
    let lost: usize = gaps.iter().flatten().map(|(_, samples)| samples).sum();
    assert!(lost > 0);
    let dropped = shown["counts"]["dropped_frames"].as_u64().unwrap();
    assert_eq!(dropped * 160, lost as u64, "the manifest counts what was dropped");
    assert_eq!(shown["counts"]["audio_bytes"].as_u64().unwrap(), (whole * 320 - lost) as u64);
    assert!((counted - lost as f64).abs() < 0.5, "{counted} are not {lost}");
    println!("budget of 1 MiB: {lost} of {} samples are gaps, each of them counted", whole * 320);
}
