//! Rotation while calls are recorded and played, and rewraps that are killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use callseal::domain::ids::RecordingId;
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};

use super::World;
use crate::support::{Home, Server, Setup, TENANT, eventually, files_below};

/// Calls at the same time.
const CALLERS: u8 = 4;
const ROTATIONS: usize = 3;
/// Half a second of audio.
const SAMPLES: usize = 4_000;

/// What the tasks of a run share.
struct Run {
    home: Home,
    server: Server,
    is_over: AtomicBool,
    placed: AtomicUsize,
    played: AtomicUsize,
}

impl Run {
    /// Places calls one after the other until it is over; each must be taken and end well.
    async fn call_on(self: Arc<Self>, caller: u8) {
        while !self.is_over.load(Ordering::Relaxed) {
            let placed = self.placed.fetch_add(1, Ordering::Relaxed);
            let number = caller + CALLERS * u8::try_from(placed % 50).unwrap();
            let audio = Track::whole(&DEMO_CALLER[..SAMPLES]);
            let plan = self.server.plan("acme-dental/reception", number, audio);
            TwilioCall::connect(plan, &self.server.tls()).await.unwrap().run(|_| ()).await.unwrap();
        }
    }

    /// Plays each recording once, so that each play opens an envelope: keys that were opened are kept for minutes.
    async fn play_on(self: Arc<Self>) {
        for number in 1.. {
            let next = || self.server.logged("recording stored").into_iter().nth(number - 1);
            let or_over = || self.is_over.load(Ordering::Relaxed).then_some(None);
            let stored = eventually("a recording", || next().map(Some).or_else(or_over)).await;
            let Some(stored) = stored else { return };
            let run = Arc::clone(&self);
            let recording = stored.field("recording").to_owned();
            let link = tokio::task::spawn_blocking(move || run.home.grant(TENANT, &recording, &[])).await;
            let answer = self.server.https().get(&link.unwrap(), &[]).await.unwrap();
            assert_eq!(answer.status.as_u16(), 200, "{}", stored.text);
            self.played.store(number, Ordering::Relaxed);
        }
    }

    async fn keys(self: &Arc<Self>, what: &'static [&'static str]) -> String {
        let run = Arc::clone(self);
        let args = [&["keys"], what, &["--actor", "ops", "--reason", "drill"]].concat();
        tokio::task::spawn_blocking(move || run.home.run_ok(&args)).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_under_load_fails_no_call_and_no_play() {
    let (home, server) = Setup::new().serve();
    let (is_over, placed, played) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let run = Arc::new(Run { home, server, is_over, placed, played });
    let mut tasks: Vec<_> = (0..CALLERS).map(|n| tokio::spawn(Arc::clone(&run).call_on(n))).collect();
    tasks.push(tokio::spawn(Arc::clone(&run).play_on()));
    for round in 1..=ROTATIONS {
        let before = run.placed.load(Ordering::Relaxed);
        run.keys(&["rotate"]).await;
        run.server.signal("HUP");
        run.server.wait_log("tenants, their secrets and keys were read again", round).await;
        let moved = run.keys(&["rewrap", "--json", "--per-sec", "10000"]).await;
        let moved: serde_json::Value = serde_json::from_str(&moved).unwrap();
        assert_eq!(moved["failed"], 0, "{moved}");
        let more = || (run.placed.load(Ordering::Relaxed) > before + 8).then_some(());
        eventually("calls between rotations", more).await;
    }
    run.is_over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }

    let Run { home, server, placed, played, .. } = &*run;
    let (placed, played) = (placed.load(Ordering::Relaxed), played.load(Ordering::Relaxed));
    println!("{placed} calls, {played} plays, {ROTATIONS} rotations");
    assert!(played >= ROTATIONS, "{played} were played");
    server.wait_log("recording stored", placed).await;
    // All were sealed and stored; some, the oldest and the newest among them, are opened from what lies in the store now.
    let stored = server.logged("recording stored");
    assert_eq!(stored.len(), placed);
    for stored in stored.iter().step_by(placed / 8).chain(stored.last()) {
        let recording = stored.field("recording");
        assert_eq!(home.open_ulaw(TENANT, recording, "caller"), DEMO_CALLER[..SAMPLES], "{recording}");
    }
    for series in ["key_errors_total{use=\"open\",kind=\"no_kek\"}", "calls_unrecorded_total"] {
        assert_eq!(server.metric(series).to_string(), "0", "{series}");
    }
}

#[tokio::test]
async fn a_killed_rewrap_is_finished_by_the_next_one() {
    const ENVELOPES: usize = 200;
    let home = Setup::new().write();
    let world = World::of(&home).await;
    let mut recordings = Vec::new();
    for _ in 0..ENVELOPES {
        recordings.push(world.keys().mint(&world.tenant).await.unwrap().ids.recording);
    }
    let by = ["--actor", "ops", "--reason", "drill"];
    home.run_ok(&[&["keys", "rotate"][..], &by].concat());

    let moved = || {
        let files = files_below(&home.data().join("store/k"));
        files.iter().filter(|(path, _)| path.ends_with("0001.json")).count()
    };
    let mut rewrap = home.spawn(&[&["keys", "rewrap", "--per-sec", "50"][..], &by].concat());
    eventually("some moved envelopes", || (moved() >= ENVELOPES / 10).then_some(())).await;
    rewrap.kill().unwrap();
    rewrap.wait().unwrap();
    let half = moved();
    assert!(half < ENVELOPES, "killed before its end");
    for recording in &recordings {
        world.keys().open(&world.tenant, *recording).await.unwrap();
    }

    let report = home.run_json(&[&["keys", "rewrap", "--json"][..], &by].concat()).remove(0);
    println!("killed after {half}; the next one: {report}");
    assert_eq!(report["failed"], 0, "{report}");
    assert!(report["moved"].as_u64().unwrap() < ENVELOPES as u64, "it goes on, and does not begin anew");
    assert_all_under(&world, &recordings, "2").await;
}

async fn assert_all_under(world: &World, recordings: &[RecordingId], version: &str) {
    for recording in recordings {
        let wrap = world.keys().wrap_of(&world.tenant, *recording).await.unwrap().unwrap();
        assert_eq!((wrap.kek_version.as_str(), world.revisions(*recording).await), (version, 1));
        world.keys().open(&world.tenant, *recording).await.unwrap();
    }
}

#[tokio::test]
async fn a_half_done_rotation_is_given_up_by_another_one() {
    let home = Setup::new().write();
    let world = World::of(&home).await;
    let by = ["--actor", "ops", "--reason", "seen while it was copied"];
    let run = |what: &[&str]| home.run_ok(&[&["keys"], what, &by].concat());
    let mut recordings = Vec::new();
    for _ in 0..3 {
        recordings.push(world.keys().mint(&world.tenant).await.unwrap().ids.recording);
    }
    run(&["rotate"]);
    // One was moved, one came new, two stayed.
    let (keys, newest) = (world.keys(), world.keys().newest_kek(&world.tenant).await.unwrap());
    keys.rewrap(&world.tenant, recordings[0], (&newest, None)).await.unwrap();
    recordings.push(keys.mint(&world.tenant).await.unwrap().ids.recording);
    run(&["rotate"]);
    for recording in &recordings {
        world.keys().open(&world.tenant, *recording).await.unwrap();
    }
    run(&["rewrap"]);
    assert_all_under(&world, &recordings, "3").await;
    for version in ["1", "2"] {
        run(&["retire", "--tenant", TENANT, "--version", version, "--after-hours", "0", "--yes"]);
    }
    assert_all_under(&world, &recordings, "3").await;
}

/// `CALLSEAL_ENVELOPES=100000 cargo nextest run --release --run-ignored only -E 'test(many_envelopes)' --no-capture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: makes and moves a hundred thousand envelopes; run it alone"]
async fn how_long_many_envelopes_take() {
    let wanted = std::env::var_os("CALLSEAL_ENVELOPES")
        .map_or(100_000, |text| text.to_str().unwrap().parse().unwrap());
    let home = Setup::new().write();
    let world = World::of(&home).await;
    let keys = world.keys();
    let began = callseal::clock::monotonic();
    for _ in 0..wanted / 100 {
        let minting = (0..100).map(|_| keys.mint(&world.tenant));
        futures_util::future::try_join_all(minting).await.unwrap();
    }
    println!("made {wanted} envelopes in {:.1} s", began.elapsed().as_secs_f64());
    let by = ["--actor", "ops"];
    home.run_ok(&[&["keys", "rotate"][..], &by].concat());
    for what in ["status", "rewrap", "rewrap", "status"] {
        let began = callseal::clock::monotonic();
        let more: &[&str] =
            if what == "rewrap" { &["--json", "--per-sec", "10000", by[0], by[1]] } else { &["--json"] };
        let said = home.run_ok(&[&["keys", what][..], more].concat());
        println!("keys {what}: {:.1} s, {}", began.elapsed().as_secs_f64(), said.trim());
    }
}
