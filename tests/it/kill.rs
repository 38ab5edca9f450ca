//! A node that is killed in the middle of calls: what it had sealed is there after the next start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use callseal::simulate::{Pacing, Track, TwilioCall};

use crate::support::{Home, Server, Setup, TENANT, eventually};

const PATH: &str = "acme-dental/reception";
/// The published bound.
const MAX_LOSS_MS: u64 = 60;
/// Samples in a millisecond.
const PER_MS: usize = 8;

/// Audio without silence, different for each call and track, so that every sample tells where it belongs.
fn audio(number: u8, track: u8) -> Vec<u8> {
    let seed = u32::from(number) * 2 + u32::from(track) + 1;
    (0..80_000u32).map(|i| u8::try_from(i.wrapping_mul(seed * 2 + 1) / 7 % 251).unwrap()).collect()
}

/// Places call `number` in real time and kills the server `after` it began; answers what had been sent, in milliseconds.
async fn call_and_kill(server: &mut Server, number: u8, after: Duration) -> u64 {
    let mut plan = server.plan(PATH, number, Track::whole(audio(number, 0)));
    plan.agent = Some(Track::whole(audio(number, 1)));
    plan.pacing = Pacing::RealTime;
    let sent_ms = Arc::new(AtomicU64::new(0));
    let (call, progress) = (TwilioCall::connect(plan, &server.tls()).await.unwrap(), Arc::clone(&sent_ms));
    let running = tokio::spawn(call.run(move |now| progress.store(now.sent_ms, Ordering::SeqCst)));
    tokio::time::sleep(after).await;
    let sent = sent_ms.load(Ordering::SeqCst);
    server.kill();
    assert!(running.await.unwrap().is_err(), "the call was cut off");
    sent
}

/// Returns the audio of a track without the silence at its end, which fills it up to the length of the other.
fn recovered(home: &Home, recording: &str, track: &str) -> Vec<u8> {
    let mut audio = home.open_ulaw(TENANT, recording, track);
    while audio.last() == Some(&0xff) {
        audio.pop();
    }
    audio
}

/// Checks the recording of call `number` after a restart; answers the milliseconds that each track lost.
async fn check(home: &Home, server: &Server, number: u8, sent_ms: u64) -> [u64; 2] {
    eventually("readiness", || (server.ops_get("/readyz").status == 200).then_some(())).await;
    let recording = home.recordings(TENANT).pop().unwrap();
    let shown = home.finished(TENANT, &recording).await;
    assert_eq!((&shown["state"], &shown["cause"]), (&"recovered".into(), &"crash".into()));
    assert_eq!(home.verify(TENANT, &recording)["state"], "recovered");
    [("caller", 0), ("agent", 1)].map(|(name, track)| {
        let (whole, got) = (audio(number, track), recovered(home, &recording, name));
        assert!(whole.starts_with(&got), "{name}: what is recovered is what was sent");
        sent_ms.saturating_sub((got.len() / PER_MS) as u64)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_loses_at_most_60_ms_of_each_track() {
    let home = Setup::new().write();
    let mut losses = Vec::new();
    for number in 1..=10u8 {
        let mut server = home.serve();
        let after = Duration::from_millis(400 + u64::from(number) * 379 % 900);
        let sent_ms = call_and_kill(&mut server, number, after).await;
        let mut server = home.serve();
        let lost = check(&home, &server, number, sent_ms).await;
        assert!(lost.iter().all(|ms| *ms <= MAX_LOSS_MS), "killed after {sent_ms} ms: {lost:?} ms lost");
        losses.extend(lost);
        server.stop().await;
    }
    losses.sort_unstable();
    println!(
        "killed 10 times: per track at most {:?} ms lost, median {}",
        losses.last(),
        losses[losses.len() / 2]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_while_it_recovers_recovers_again() {
    let home = Setup::new().write();
    let mut server = home.serve();
    let sent_ms = call_and_kill(&mut server, 1, Duration::from_millis(700)).await;
    for _ in 0..3 {
        // Right after the start recovery is somewhere on its way.
        home.serve().kill();
    }
    let mut server = home.serve();
    let lost = check(&home, &server, 1, sent_ms).await;
    assert!(lost.iter().all(|ms| *ms <= MAX_LOSS_MS), "{lost:?} ms lost");
    assert_eq!(home.recordings(TENANT).len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_journal_gives_the_audio_before_the_tear() {
    let home = Setup::new().write();
    for number in 1..=4u8 {
        let mut server = home.serve();
        call_and_kill(&mut server, number, Duration::from_millis(600)).await;
        let journal = std::fs::read_dir(home.data().join("journal")).unwrap();
        let files = journal.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some());
        let last = files.max().unwrap();
        let length = std::fs::metadata(&last).unwrap().len();
        let kept = length * u64::from(number * 20) / 100 + u64::from(number);
        std::fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(kept).unwrap();
        let mut server = home.serve();
        // Only the equality of what is left is checked here: the tear is far before the kill.
        check(&home, &server, number, 0).await;
        assert_eq!(server.metric("journal_torn_tails_total"), 1.0);
        server.stop().await;
    }
}
