//! Two nodes with one store: what one records the other plays, and finishes when the first never comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use callseal::simulate::{Pacing, Track, TwilioCall};

use crate::support::stalls::Stalls;
use crate::support::{Home, Server, Setup, TENANT, eventually};

const PATH: &str = "acme-dental/reception";
/// Samples in a millisecond.
const PER_MS: usize = 8;
/// Calls run so many times faster than they were spoken.
const PACE: u32 = 4;
/// The published bound for a killed node, in time that passed.
const MAX_LOSS_MS: u64 = 60;

/// Audio of a segment of 32 KiB with two tracks, each frame of 160 bytes with about 30 more.
const SEGMENT_MS: u64 = 1_700;

/// Audio without silence that never repeats within a second.
pub(crate) fn audio(track: u8) -> Vec<u8> {
    let step = u32::from(track) * 2 + 3;
    (0..640_000u32).map(|i| u8::try_from(i.wrapping_mul(step) / 7 % 251).unwrap()).collect()
}

pub(crate) fn setup() -> Setup {
    Setup::new().option("segments", "max_bytes", "32768").option("segments", "max_age_ms", "1000")
}

/// A second node with the store and the keys of the first, and a journal of its own.
fn neighbour(of: &Home, change: impl FnOnce(Setup) -> Setup) -> Home {
    let quoted = |path: &str| format!("{:?}", of.data().join(path).display().to_string());
    let shared = setup().option("store", "path", &quoted("store")).option(
        "keys",
        "keyring_file",
        &quoted("keyring.json"),
    );
    change(shared).write()
}

/// Places a call at `server` and, once `segments` are stored and `meanwhile` has been done, kills it. Answers the
/// recording and how many milliseconds of audio had been sent.
pub(crate) async fn call_and_kill(
    home: &Home,
    server: &mut Server,
    segments: usize,
    meanwhile: impl AsyncFnOnce(&str),
) -> (String, u64) {
    let mut plan = server.plan(PATH, 1, Track::whole(audio(0)));
    plan.agent = Some(Track::whole(audio(1)));
    plan.pacing = Pacing::Scaled(PACE.into());
    let sent_ms = Arc::new(AtomicU64::new(0));
    let (call, progress) = (TwilioCall::connect(plan, &server.tls()).await.unwrap(), Arc::clone(&sent_ms));
    let running = tokio::spawn(call.run(move |now| progress.store(now.sent_ms, Ordering::SeqCst)));
    let stored = |recording: &str| home.show(TENANT, recording)["objects"].as_array().map_or(0, Vec::len);
    let recording = eventually("segments", || {
        let recording = home.recordings(TENANT).pop()?;
        (stored(&recording) >= segments).then_some(recording)
    })
    .await;
    meanwhile(&recording).await;
    // In the middle of a segment, so that the journal holds what the store does not.
    let before = stored(&recording);
    eventually("another segment", || (stored(&recording) > before).then_some(())).await;
    let middle = sent_ms.load(Ordering::SeqCst) + SEGMENT_MS / 3;
    eventually("the middle of a segment", || (sent_ms.load(Ordering::SeqCst) >= middle).then_some(())).await;
    let sent = sent_ms.load(Ordering::SeqCst);
    server.kill();
    assert!(running.await.unwrap().is_err(), "the call was cut off while it ran");
    (recording, sent)
}

/// Returns what is heard of a track without the silence at its end.
fn heard(home: &Home, recording: &str, name: &str, track: u8) -> usize {
    let mut heard = home.open_ulaw(TENANT, recording, name);
    while heard.last() == Some(&0xff) {
        heard.pop();
    }
    assert!(!heard.is_empty() && audio(track).starts_with(&heard), "{name}: what is heard is what was said");
    heard.len()
}

pub(crate) fn both(home: &Home, recording: &str) -> [usize; 2] {
    [("caller", 0), ("agent", 1)].map(|(name, track)| heard(home, recording, name, track))
}

/// Plays a recording at a node; answers the samples of the caller.
pub(crate) async fn play(home: &Home, server: &Server, recording: &str) -> Vec<u8> {
    let link = home.grant(TENANT, recording, &["--track", "caller", "--format", "ulaw"]);
    let answer = server.https().get(&link, &[]).await.unwrap();
    assert_eq!(answer.status, 200);
    let at = answer.body.windows(4).position(|name| name == b"data").unwrap();
    answer.body[at + 8..].to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_of_a_dead_node_is_finished_by_another_and_again_when_the_dead_comes_back() {
    let (home, mut server) = setup().serve();
    let stalls = Stalls::watch();
    let other = neighbour(&home, |setup| setup);
    let mut other_server = other.serve();
    let (recording, sent_ms) = call_and_kill(&home, &mut server, 3, async |recording| {
        let played = play(&other, &other_server, recording).await;
        assert!(played.len() > 2000, "{} samples play elsewhere while the call runs", played.len());
        assert!(audio(0).starts_with(&played[..2000]));
    })
    .await;

    let young = other.run_json(&["repair", "--json"]).remove(0);
    assert_eq!(young["did"], "left alone, too young");
    let would = other.run_json(&["repair", "--after", "0", "--dry-run", "--json"]).remove(0);
    assert_eq!((&would["did"], &would["found"]), (&"would be finished".into(), &"segments".into()));
    assert_eq!(other.show(TENANT, &recording)["state"], "receiving");
    let before = both(&other, &recording);

    let target = ["repair", "--tenant", TENANT, "--recording", &recording, "--after", "0", "--json"];
    let did = other.run_json(&target).remove(0);
    assert_eq!((&did["did"], &did["revision"]), (&"finished".into(), &0.into()), "{did}");
    assert_eq!(both(&other, &recording), before, "all that was stored is in it");
    let verified = other.verify(TENANT, &recording);
    assert_eq!((&verified["state"], &verified["grade"]), (&"recovered".into(), &"evidence".into()));
    assert!(audio(0).starts_with(&play(&other, &other_server, &recording).await[..2000]));
    assert!(other.run_json(&target).is_empty(), "nothing is left to do");

    let mut server = home.serve();
    eventually("readiness", || (server.ops_get("/readyz").status == 200).then_some(())).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!((&shown["state"], &shown["revision"]), (&"recovered".into(), &1.into()), "{shown}");
    let names: Vec<_> = shown["objects"].as_array().unwrap().iter().map(|object| &object["name"]).collect();
    assert!(names.len() == 1 && names[0].as_str().unwrap().ends_with("/final-0001.cmr"), "{names:?}");
    assert_eq!(home.verify(TENANT, &recording)["grade"], "evidence");
    let after = both(&home, &recording);
    for (before, after) in before.into_iter().zip(after) {
        assert!(after > before, "the tail from the journal is there: {before}, then {after} samples");
        let lost_ms = sent_ms.saturating_sub((after / PER_MS) as u64) / u64::from(PACE);
        assert!(lost_ms <= stalls.bound(MAX_LOSS_MS), "{lost_ms} ms lost");
    }
    assert_eq!(play(&other, &other_server, &recording).await.len(), after[0].max(after[1]));
    server.stop().await;
    other_server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_node_finds_what_a_dead_one_has_left() {
    let (home, mut server) = setup().serve();
    let other = neighbour(&home, |setup| {
        setup.option("repair", "after_secs", "1").option("repair", "interval_secs", "1")
    });
    let mut other_server = other.serve();
    let (recording, _) = call_and_kill(&home, &mut server, 3, async |_| ()).await;
    other_server.wait_log("abandoned recording finished", 1).await;
    let adopted = both(&other, &recording);
    assert!(adopted.iter().all(|samples| *samples > 2000), "{adopted:?}");
    assert!(other_server.metric("recordings_adopted_total") >= 1.0);
    assert_eq!(other.verify(TENANT, &recording)["grade"], "evidence");
    other_server.stop().await;
}
