//! Retention through the real program: its commands, its server, what a player gets.

use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{Track, TwilioCall};
use serde_json::{Value, json};

use crate::support::{Home, Ran, Server, Setup, TENANT, eventually, files_below};

const SAMPLES: usize = 16_000;

async fn record(server: &Server, number: u8) -> String {
    let from = 80_000;
    let mut plan =
        server.plan("acme-dental/reception", number, Track::whole(&DEMO_CALLER[from..from + SAMPLES]));
    plan.agent = Some(Track::whole(&DEMO_AGENT[from..from + SAMPLES]));
    let before = server.logged("recording stored").len();
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.wait_log("recording stored", before + 1).await.field("recording").to_owned()
}

fn order(home: &Home, what: &str, recording: &str, more: &[&str]) -> Ran {
    let target = ["recordings", what, "--tenant", TENANT, "--recording", recording];
    let by = ["--actor", "counsel", "--reason", "a lawsuit"];
    home.run(&[&target[..], &by, more].concat())
}

fn order_ok(home: &Home, what: &str, recording: &str, more: &[&str]) -> String {
    let ran = order(home, what, recording, more);
    assert_eq!(ran.code, Some(0), "{what}: {}{}", ran.out, ran.err);
    ran.out
}

/// What the store and its tags have of a recording.
fn files_of(home: &Home, recording: &str) -> Vec<String> {
    let store = home.data().join("store");
    let names = files_below(&store)
        .into_iter()
        .map(|(path, _)| path.strip_prefix(&store).unwrap().display().to_string());
    let mut names: Vec<_> = names.filter(|name| name.contains(recording)).collect();
    names.sort();
    names
}

async fn status(server: &Server, link: &str) -> u16 {
    server.https().get(link, &[]).await.unwrap().status.as_u16()
}

#[tokio::test]
async fn a_recording_is_held_released_deleted_and_proven_gone() {
    let (home, mut server) = Setup::new().serve();
    let (recording, kept) = (record(&server, 1).await, record(&server, 2).await);
    let link = home.grant(TENANT, &recording, &[]);
    assert_eq!(status(&server, &link).await, 200);

    let before = files_of(&home, &recording);
    assert!(order_ok(&home, "hold", &recording, &["--dry-run"]).contains("would be held"));
    assert_eq!(files_of(&home, &recording), before, "a dry run writes nothing");
    assert!(order_ok(&home, "hold", &recording, &[]).contains("is held: "));
    assert!(order_ok(&home, "hold", &recording, &[]).contains("is held already"));
    let shown = home.show(TENANT, &recording);
    assert_eq!(
        (&shown["hold"], &shown["objects"][0]["tags"]["callseal-hold"]),
        (&json!(true), &json!("true"))
    );
    let refused = order(&home, "delete", &recording, &["--yes"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("recording is held; release it first"), "{}", refused.err);
    assert!(order_ok(&home, "release", &recording, &[]).contains("is released"));

    let unasked = order(&home, "delete", &recording, &[]);
    assert!(unasked.code == Some(1) && unasked.err.contains("say --yes"), "{}", unasked.err);
    assert_eq!(status(&server, &link).await, 200, "nothing was ordered");
    let ordered: Value =
        serde_json::from_str(&order_ok(&home, "delete", &recording, &["--yes", "--json"])).unwrap();
    assert_eq!((&ordered["changed"], &ordered["hold"]), (&json!(true), &json!(false)));
    assert_eq!(status(&server, &link).await, 410, "ordered, so nobody listens any more");

    let look = home.run_json(&["sweep", "--dry-run", "--json"]).remove(0);
    assert_eq!((&look["due"], &look["deleted"], &look["dry_run"]), (&json!(1), &json!(0), &json!(true)));
    let unasked = home.run(&["sweep"]);
    assert!(
        unasked.code == Some(1) && unasked.err.contains("1 recording will be destroyed"),
        "{}",
        unasked.err
    );
    let swept = home.run_json(&["sweep", "--yes", "--json"]).remove(0);
    let counts = json!({"dry_run": false, "due": 1, "deleted": 1, "held": 0, "tidied": 0, "waiting": 0,
        "failed": 0, "overdue": 0});
    assert_eq!(swept, counts);
    assert!(home.run_ok(&["sweep"]).contains("due 0, deleted 0"), "nothing to ask about");

    let left = files_of(&home, &recording);
    // Its tags are a file of their own where the file system has no attributes.
    let (tags, objects): (Vec<_>, Vec<_>) = left.iter().partition(|name| name.starts_with(".tags/"));
    assert!(objects.len() == 1 && objects[0].starts_with("d/"), "the receipt: {left:?}");
    assert!(tags.iter().all(|name| name.starts_with(".tags/d/")), "{left:?}");
    assert_eq!(status(&server, &link).await, 410);
    assert_eq!(home.recordings(TENANT), std::slice::from_ref(&kept));
    let shown = home.show(TENANT, &recording);
    assert_eq!((&shown["state"], &shown["reason"]), (&json!("deleted"), &json!("requested")));
    let again = order(&home, "hold", &recording, &[]);
    assert!(again.code == Some(1) && again.err.contains("recording was deleted at 20"), "{}", again.err);

    assert_audited(&home, &recording);
    let ledger = home.run_ok(&["ledger", "show", "--tenant", TENANT]);
    let ordered = "by \"counsel\", with its recording, because: \"a lawsuit\"";
    assert!(ledger.lines().count() == 2 && ledger.contains(ordered), "{ledger}");
    assert!(ledger.contains(&format!("deleted  {recording}  requested, ")), "{ledger}");
    assert_eq!(home.verify(TENANT, &kept)["grade"], "evidence");
    server.stop().await;
}

fn assert_audited(home: &Home, recording: &str) {
    let audited = home.run_json(&["audit", "show", "--tenant", TENANT]);
    let of_it = audited.iter().filter(|record| record["subject"] == recording && record["action"] != "play");
    let lines: Vec<_> = of_it
        .map(|record| {
            format!("{} {} {}", record["action"], record["actor"], record["result"]).replace('"', "")
        })
        .collect();
    for line in
        ["hold counsel allowed", "delete counsel held", "release counsel allowed", "delete sweeper allowed"]
    {
        assert!(lines.iter().any(|found| found == line), "{line} is missing: {lines:?}");
    }
}

#[tokio::test]
async fn a_server_sweeps_by_itself() {
    let (home, mut server) = Setup::new().option("retention", "interval_secs", "1").serve();
    let (recording, kept) = (record(&server, 1).await, record(&server, 2).await);
    order_ok(&home, "delete", &recording, &["--yes"]);
    server.wait_log("recording deleted", 1).await;
    let deleted = "retention_deleted_total{reason=\"requested\"}";
    eventually("the end of the sweep", || {
        (server.metric("retention_last_sweep_seconds") > 0.0).then_some(())
    })
    .await;
    assert_eq!(server.metric(deleted), 1.0);
    assert_eq!(server.metric("retention_purge_lag_seconds_count"), 1.0);
    assert_eq!(server.metric("retention_overdue_recordings"), 0.0);
    assert_eq!(server.metric("retention_stopped"), 0.0);
    assert_eq!(home.show(TENANT, &recording)["state"], "deleted");
    assert_eq!(home.show(TENANT, &kept)["state"], "complete");
    server.stop().await;
}
