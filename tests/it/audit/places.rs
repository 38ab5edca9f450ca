//! Stores and files that fail, hang, or lose what they were told: reads are refused in time, calls go on, and no chain has
//! a hole afterwards.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use callseal::clock;
use callseal::control::audit::{AuditEvent, AuditFile, AuditOptions, Filter};
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Pacing, Track, TwilioCall};
use callseal::store::Operation;
use callseal::store::faulty::Fault;
use serde_json::Value;

use super::world::{DAY, HOUR, World, played};
use crate::playback::{grant, target};
use crate::support::{GRANT_KEY, Home, LIMIT, Setup, TENANT, eventually};

/// Long enough for a slow machine, and far below the limits that would hide a wait.
const SHORT: Duration = Duration::from_millis(300);

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Reads a pipe until its last writer has gone, again and again.
fn drain(path: &Path) -> std::sync::mpsc::Receiver<u8> {
    let (bytes, read) = std::sync::mpsc::sync_channel(1 << 20);
    let mut pipe = File::options().read(true).write(true).open(path).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = pipe.read(&mut buffer) {
            if buffer[..count].iter().any(|byte| bytes.send(*byte).is_err()) {
                return;
            }
        }
    });
    read
}

#[tokio::test]
async fn a_store_that_fails_or_hangs_refuses_and_leaves_no_hole() {
    for fault in [Fault::Break, Fault::LoseAnswer, Fault::Hang, Fault::Full, Fault::Deny] {
        let world = World::new().await;
        let process = world.process_with("a", AuditOptions { timeout: SHORT, ..world.options() });
        // With the chain's key; the first one may take longer than the short limit.
        while process.log.record(&world.tenant, played("alice", "::1", "k1", "0")).await.is_err() {}
        world.faults.fail_next(Operation::PutNew, 1, fault);
        let began = clock::monotonic();
        let refused = process.log.record(&world.tenant, played("alice", "::1", "k1", "1")).await;
        assert!(refused.is_err(), "{fault:?}");
        assert!(clock::since(began) < LIMIT);
        world.faults.release();
        while process.log.record(&world.tenant, played("alice", "::1", "k1", "2")).await.is_err() {}
        process.end().await;
        let verified = world.verify().await;
        assert!(verified.is_unbroken(), "{fault:?}: {:?}", verified.findings);
        assert_eq!(verified.chains.len(), 1, "{fault:?}: the chain went on");
        let all = world.reader().query(&world.tenant, &Filter::default(), None, 1000).await.unwrap().records;
        let subjects: Vec<_> = all.iter().map(|record| record.event.subject.as_str()).collect();
        assert!(subjects.contains(&"1") && subjects.ends_with(&["2"]), "{fault:?}: {subjects:?}");
    }
}

#[tokio::test]
async fn a_chain_that_was_silent_for_a_day_is_not_gone_on_with() {
    let world = World::new().await;
    let process = world.process("a");
    process.record(&world.tenant, played("alice", "::1", "k1", "0")).await;
    world.time.advance(23 * HOUR);
    process.record(&world.tenant, played("alice", "::1", "k1", "1")).await;
    assert_eq!(world.verify().await.chains.len(), 1);
    world.time.advance(DAY + HOUR);
    process.record(&world.tenant, played("alice", "::1", "k1", "2")).await;
    assert_eq!(world.verify().await.chains.len(), 2);
}

#[tokio::test]
async fn a_clock_that_goes_back_breaks_no_chain() {
    let world = World::new().await;
    let process = world.process("a");
    for number in 0..5 {
        process.record(&world.tenant, played("alice", "::1", "k1", &number.to_string())).await;
        world.time.go_back(HOUR);
    }
    process.end().await;
    world.time.advance(DAY);
    let verified = world.verify().await;
    assert!(verified.is_unbroken() && verified.records == 6, "{:?}", verified.findings);
}

#[tokio::test]
async fn a_second_place_that_hangs_refuses_in_time_and_gets_everything_later() {
    let world = World::new().await;
    let pipe = world.path().join("copy");
    make_pipe(&pipe);
    let file = AuditFile::open(&pipe, SHORT).unwrap();
    let process = world.process_with("a", AuditOptions { file: Some(file), ..world.options() });
    // Nobody reads the pipe, so opening it hangs.
    let mut waits = Vec::new();
    for number in 0..20 {
        let began = clock::monotonic();
        process
            .log
            .record(&world.tenant, played("alice", "::1", "k1", &number.to_string()))
            .await
            .unwrap_err();
        waits.push(clock::since(began));
    }
    let at_once = waits.iter().filter(|wait| **wait < SHORT).count();
    assert!(at_once >= 19, "only the first waits: {waits:?}");
    assert_eq!(world.objects(&world.tenant).await.len(), 1, "refusals fill no store");
    let read = drain(&pipe);
    let written = async {
        while process.log.record(&world.tenant, played("alice", "::1", "k1", "later")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, written).await.expect("it works again");
    process.end().await;
    let verified = world.verify().await;
    assert!(verified.is_unbroken() && verified.chains.len() == 1, "{:?}", verified.findings);
    let copy = world.path().join("read");
    fs::write(&copy, read.try_iter().collect::<Vec<u8>>()).unwrap();
    eventually("the last line", || {
        let mut text = fs::read(&copy).unwrap();
        text.extend(read.try_iter());
        fs::write(&copy, &text).unwrap();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"{"));
        (lines.count() as u64 >= verified.objects).then_some(())
    })
    .await;
    assert!(world.verify_against(&copy).await.is_unbroken());
}

#[tokio::test]
async fn a_full_second_place_refuses_and_stays_whole() {
    let world = World::new().await;
    let directory = world.path().join("gone");
    fs::create_dir(&directory).unwrap();
    let path = directory.join("copy.jsonl");
    let file = AuditFile::open(&path, LIMIT).unwrap();
    let process = world.process_with("a", AuditOptions { file: Some(file), ..world.options() });
    process.record(&world.tenant, played("alice", "::1", "k1", "0")).await;
    // Whatever cannot be opened is refused, and tried again with the next record.
    fs::rename(&directory, world.path().join("moved")).unwrap();
    process.log.record(&world.tenant, played("alice", "::1", "k1", "1")).await.unwrap_err();
    process.log.record(&world.tenant, played("alice", "::1", "k1", "2")).await.unwrap_err();
    fs::rename(world.path().join("moved"), &directory).unwrap();
    process.record(&world.tenant, played("alice", "::1", "k1", "3")).await;
    process.end().await;
    let verified = world.verify_against(&path).await;
    assert!(verified.is_unbroken() && verified.witnessed, "{:?}", verified.findings);
    assert_eq!(verified.objects, 4, "0, 1, 3 and the end");
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains("alice") && !text.contains("play"), "nothing in it can be read");
}

#[tokio::test]
async fn refusals_of_strangers_are_bounded_and_effects_never() {
    let world = World::new().await;
    let process = world.process_with("a", AuditOptions { refusals_per_minute: 10, ..world.options() });
    let stranger = |number: u32| AuditEvent {
        result: "grant_malformed".to_owned(),
        ..played("unknown", &format!("192.0.2.{}", number % 3), "", "r")
    };
    for number in 0..500 {
        process.log.record_refusal(&world.tenant, stranger(number)).await.unwrap();
    }
    for _ in 0..30 {
        process.record(&world.tenant, played("alice", "::1", "k1", "r")).await;
    }
    process.end().await;
    // Of two minutes, if one ended in between.
    assert!(world.objects(&world.tenant).await.len() <= 2 * (10 + 1) + 30 + 1);
    let all = world.reader().query(&world.tenant, &Filter::default(), None, 1000).await.unwrap().records;
    let with = |result: &str| all.iter().filter(|record| record.event.result == result).collect::<Vec<_>>();
    assert_eq!(with("allowed").len(), 30);
    assert!([3, 6].contains(&with("more-refusals").len()), "one for each address and minute");
    let mut told = with("grant_malformed").len();
    for record in with("more-refusals") {
        assert!(record.event.source.is_some());
        let detail = record.event.detail.as_ref().unwrap();
        told += detail.split(' ').next().unwrap().parse::<usize>().unwrap();
    }
    assert_eq!(told, 500, "every one is told");
}

#[tokio::test]
async fn a_hanging_file_stops_playback_within_a_second_while_a_call_goes_on() {
    let setup = Setup::new();
    let home = setup.option("audit", "file", "\"copy\"").option("audit", "refusals_per_min", "5").write();
    let pipe = home.path().join("copy");
    make_pipe(&pipe);
    let read = drain(&pipe);
    let mut server = home.serve();
    server.allow("audit");
    let audio = &DEMO_CALLER[..32_000];
    TwilioCall::connect(server.plan("acme-dental/reception", 1, Track::whole(audio)), &server.tls())
        .await
        .unwrap()
        .run(|_| ())
        .await
        .unwrap();
    let recording = server.stored(1).await;
    let (https, link) = (server.https(), target(&grant(&recording), GRANT_KEY));
    assert_eq!(https.get(&link, &[]).await.unwrap().status.as_u16(), 200);
    for _ in 0..20 {
        let refused = https.get(&format!("{link}&dl=2"), &[]).await.unwrap();
        assert_eq!(refused.status.as_u16(), 400);
    }
    // From now on nobody reads, so the file hangs once its pipe is full.
    drop(read);
    let mut plan = server.plan("acme-dental/reception", 2, Track::whole(audio));
    plan.pacing = Pacing::Scaled(1.0);
    let call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    let running = tokio::spawn(call.run(|_| ()));
    server.wait_log("recording begins", 2).await;
    let refused = async {
        loop {
            let began = clock::monotonic();
            let status = https.get(&link, &[]).await.unwrap().status.as_u16();
            if status == 503 {
                return clock::since(began);
            }
        }
    };
    let took = tokio::time::timeout(LIMIT, refused).await.expect("playback is refused");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let began = clock::monotonic();
    assert_eq!(https.get(&link, &[]).await.unwrap().status.as_u16(), 503);
    println!("the first refusal took {took:?}, the next {:?}", clock::since(began));
    assert!(
        server.metric("audit_failures_total") >= 2.0 && server.metric("audit_file_failures_total") >= 1.0
    );
    assert_eq!(running.await.unwrap().unwrap().close_code, Some(1000), "the call went on to its end");
    let stored = server.stored(2).await;
    assert_eq!(home.open_ulaw(TENANT, &stored, "caller"), audio);
    let _read = drain(&pipe);
    let began = clock::monotonic();
    while https.get(&link, &[]).await.unwrap().status.as_u16() != 200 {
        assert!(clock::since(began) < LIMIT, "playback does not work again");
    }
    server.stop().await;
    assert_all_refusals_are_told(&home);
    assert!(home.run_ok(&["audit", "verify", "--tenant", TENANT]).contains("all chains unbroken"));
}

/// The twenty refusals of a stranger, of which five a minute are recorded one by one.
fn assert_all_refusals_are_told(home: &Home) {
    let shown = home.run_json(&["audit", "query", "--tenant", TENANT, "--result", "grant_malformed"]);
    // Twice the bound, if a minute ended in between.
    assert!(shown.len() <= 10, "refusals of strangers are bounded");
    let more = home.run_json(&["audit", "query", "--tenant", TENANT, "--result", "more-refusals"]);
    let told = |record: &Value| -> usize {
        record["detail"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(shown.len() + more.iter().map(told).sum::<usize>(), 20, "every one is told");
}
