//! A node that is killed in the middle of calls: what it had sealed is there after the next start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use callseal::simulate::{Pacing, Track, TwilioCall};

use crate::support::stalls::Stalls;
use crate::support::{Home, Server, Setup, TENANT, eventually};

const PATH: &str = "acme-dental/reception";
/// The published bound, where the machine has time for the process.
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
    paced_call_and_kill(server, number, after, Pacing::RealTime).await
}

async fn paced_call_and_kill(server: &mut Server, number: u8, after: Duration, pacing: Pacing) -> u64 {
    let mut plan = server.plan(PATH, number, Track::whole(audio(number, 0)));
    plan.agent = Some(Track::whole(audio(number, 1)));
    plan.pacing = pacing;
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
    let stalls = Stalls::watch();
    let mut losses = Vec::new();
    for number in 1..=10u8 {
        let mut server = home.serve();
        let after = Duration::from_millis(400 + u64::from(number) * 379 % 900);
        let sent_ms = call_and_kill(&mut server, number, after).await;
        let mut server = home.serve();
        let lost = check(&home, &server, number, sent_ms).await;
        let bound = stalls.bound(MAX_LOSS_MS);
        assert!(lost.iter().all(|ms| *ms <= bound), "killed after {sent_ms} ms: {lost:?} ms lost");
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
    let stalls = Stalls::watch();
    let mut server = home.serve();
    let sent_ms = call_and_kill(&mut server, 1, Duration::from_millis(700)).await;
    for _ in 0..3 {
        // Right after the start recovery is somewhere on its way.
        home.serve().kill();
    }
    let mut server = home.serve();
    let lost = check(&home, &server, 1, sent_ms).await;
    assert!(lost.iter().all(|ms| *ms <= stalls.bound(MAX_LOSS_MS)), "{lost:?} ms lost");
    assert_eq!(home.recordings(TENANT).len(), 1);
    server.stop().await;
}

/// Returns the journal file that the last process wrote.
fn last_journal_file(home: &Home) -> std::path::PathBuf {
    let journal = std::fs::read_dir(home.data().join("journal")).unwrap();
    let files = journal.map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "cmj")).max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_journal_gives_the_audio_before_the_tear() {
    let home = Setup::new().write();
    for number in 1..=4u8 {
        let mut server = home.serve();
        call_and_kill(&mut server, number, Duration::from_millis(600)).await;
        let last = last_journal_file(&home);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_has_and_what_the_journal_has_become_one_recording() {
    // Segments of half a second of this call, and four times as much speech a second: several are stored before the kill.
    let home = Setup::new().option("segments", "max_bytes", "8192").write();
    let stalls = Stalls::watch();
    let mut worst = 0;
    for number in 1..=4u8 {
        let mut server = home.serve();
        let after = Duration::from_millis(700 + u64::from(number) * 211);
        let sent_ms = paced_call_and_kill(&mut server, number, after, Pacing::Scaled(4.0)).await;
        let stored = crate::support::files_below(&home.data().join("store/r"));
        let segments = stored.iter().filter(|(path, _)| path.parent().unwrap().ends_with("s")).count();
        assert!(segments >= 3, "{segments} segments were stored");
        let mut server = home.serve();
        // Of the time that passed: four milliseconds of audio each.
        let lost = check(&home, &server, number, sent_ms).await.map(|ms| ms / 4);
        let bound = stalls.bound(MAX_LOSS_MS);
        assert!(lost.iter().all(|ms| *ms <= bound), "killed after {sent_ms} ms: {lost:?} ms lost");
        worst = worst.max(lost[0]).max(lost[1]);
        server.stop().await;
    }
    println!("killed 4 times with segments stored: per track at most {worst} ms lost");
}

/// Whether so many final objects are there.
fn has_finals(home: &Home, count: u8) -> bool {
    objects(home, "final.cmr") >= usize::from(count)
}

/// Counts the objects of recordings whose names end so.
fn objects(home: &Home, end: &str) -> usize {
    let mut found = 0;
    let mut dirs = vec![home.data().join("store/r")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            found += usize::from(entry.file_name().to_string_lossy().ends_with(end));
            dirs.push(entry.path());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_while_it_stores_the_end_of_a_call_has_all_of_it() {
    let home = Setup::new().option("segments", "max_bytes", "4096").write();
    let mut unfinished = 0;
    for number in 1..=6u8 {
        let mut server = home.serve();
        let [caller, agent] = [0, 1].map(|track| audio(number, track)[..32_000].to_vec());
        let mut plan = server.plan(PATH, number, Track::whole(caller.clone()));
        plan.agent = Some(Track::whole(agent.clone()));
        plan.pacing = Pacing::Scaled(20.0);
        let call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
        assert_eq!(call.run(|_| ()).await.unwrap().close_code, Some(1000));
        // Somewhere on the way from the manifest to the final object, or a little later.
        let manifest = || objects(&home, "m-0000.cmr") > 0 || has_finals(&home, number);
        while !manifest() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(u64::from(number - 1) * 3)).await;
        unfinished += usize::from(!has_finals(&home, number));
        server.kill();
        let mut server = home.serve();
        eventually("readiness", || (server.ops_get("/readyz").status == 200).then_some(())).await;
        let recording = home.recordings(TENANT).pop().unwrap();
        let shown = home.finished(TENANT, &recording).await;
        assert_eq!(home.verify(TENANT, &recording)["state"], shown["state"]);
        assert!(home.open_ulaw(TENANT, &recording, "caller") == caller, "killed at {shown}");
        assert!(home.open_ulaw(TENANT, &recording, "agent") == agent, "killed at {shown}");
        let names: Vec<_> =
            shown["objects"].as_array().unwrap().iter().map(|object| &object["name"]).collect();
        assert!(names.len() == 1 && names[0].as_str().unwrap().ends_with("/final.cmr"), "{names:?}");
        assert_eq!(shown["state"], "complete");
        server.stop().await;
    }
    println!(
        "killed 6 times after the end of a call, {unfinished} times before its final object: nothing lost"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_damage_of_a_journal_keeps_a_node_from_starting() {
    let home = Setup::new().write();
    for (kept, number) in [0u64, 7, 16, 60, 200].into_iter().zip(1..) {
        let mut server = home.serve();
        call_and_kill(&mut server, number, Duration::from_millis(300)).await;
        let last = last_journal_file(&home);
        std::fs::OpenOptions::new().write(true).open(&last).unwrap().set_len(kept).unwrap();
        let before = home.recordings(TENANT).len();
        let mut server = home.serve();
        eventually("readiness", || (server.ops_get("/readyz").status == 200).then_some(())).await;
        // Of a recording that the journal has lost there is nothing; others stay as they were.
        assert_eq!(home.recordings(TENANT).len(), before, "{kept} bytes kept");
        server.stop().await;
    }
    // Wrong bytes in the middle: what stands before them is recovered, and the file is kept for a closer look.
    let mut server = home.serve();
    server.allow("journal");
    call_and_kill(&mut server, 9, Duration::from_millis(600)).await;
    let last = last_journal_file(&home);
    let mut bytes = std::fs::read(&last).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(&last, bytes).unwrap();
    let mut server = home.serve();
    server.allow("journal");
    check(&home, &server, 9, 0).await;
    assert_eq!(server.metric("journal_corrupt_files_total"), 1.0);
    server.stop().await;
}
