//! What people ask for about their own recordings, through the real program: told, copied, deleted, restricted; in time or not.

use std::collections::BTreeMap;
use std::fs;

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Home, Ran, Server, Setup, TENANT, TenantSetup, eventually, files_below};

const CALLER: &str = "+4930901820017";
const OTHER: &str = "other-tenant";
const BY: [&str; 4] = ["--actor", "j.doe", "--reason", "a letter of 3 May"];

async fn record(server: &Server, number: u8, caller: &str) -> String {
    let mut plan = server.plan("acme-dental/reception", number, Track::whole(&DEMO_CALLER[..8_000]));
    plan.parameters = BTreeMap::from([("from".to_owned(), caller.to_owned())]);
    let before = server.logged("recording stored").len();
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.stored(before + 1).await
}

fn run(home: &Home, what: &str, more: &[&str]) -> Ran {
    home.run(&[&["requests", what, "--tenant", TENANT], more].concat())
}

fn json_of(ran: &Ran) -> Value {
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

fn open(home: &Home, kind: &str, more: &[&str]) -> String {
    let ran = run(home, "open", &[&["--kind", kind, "--party", CALLER, "--json"][..], &BY, more].concat());
    let opened = json_of(&ran);
    assert_eq!((&opened["kind"], &opened["state"]), (&json!(kind), &json!("open")));
    assert!(!ran.out.contains("901820017"), "{}", ran.out);
    opened["request"].as_str().unwrap().to_owned()
}

fn step(home: &Home, what: &str, id: &str, more: &[&str]) -> Ran {
    run(home, what, &[&["--id", id][..], &BY, more].concat())
}

fn show(home: &Home, id: &str) -> Value {
    json_of(&run(home, "show", &["--id", id]))
}

async fn status(server: &Server, link: &str) -> u16 {
    server.https().get(link, &[]).await.unwrap().status.as_u16()
}

fn neighbour(of: &Home) -> Home {
    let quoted = |path: &str| format!("{:?}", of.data().join(path).display().to_string());
    let shared = Setup::new().option("store", "path", &quoted("store"));
    shared.option("keys", "keyring_file", &quoted("keyring.json")).write()
}

/// Nobody who has disk and store but no key reads the number.
fn assert_unreadable(home: &Home) {
    for (path, content) in files_below(&home.data()) {
        for number in [CALLER, &CALLER[1..]] {
            assert!(!path.display().to_string().contains(number));
            assert!(memchr::memmem::find(&content, number.as_bytes()).is_none(), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn a_restriction_counts_on_every_node_until_it_is_lifted() {
    let (home, mut server) = Setup::new().serve();
    let second = neighbour(&home);
    let mut other_server = second.serve();
    let theirs = record(&server, 1, "+49 30 90182-0017").await;
    let another = record(&server, 2, "+4930901820018").await;
    let links = [&theirs, &another].map(|recording| home.grant(TENANT, recording, &[]));
    let id = open(&home, "restrict", &[]);
    for node in [&server, &other_server] {
        assert_eq!(status(node, &links[0]).await, 200, "asked for, and not in force yet");
    }
    let unknown = step(&home, "lift", &id, &[]);
    assert!(unknown.code == Some(1) && unknown.err.contains("only a restriction that is in force"));
    assert_eq!(json_of(&step(&home, "fulfil", &id, &[]))["state"], "fulfilled");
    for node in [&server, &other_server] {
        let refused = node.https().get(&links[0], &[]).await.unwrap();
        let problem: Value = serde_json::from_slice(&refused.body).unwrap();
        assert_eq!((refused.status.as_u16(), &problem["code"]), (451, &json!("restricted")));
        assert_eq!(status(node, &links[1]).await, 200, "another's");
    }
    let wav = home.path().join("restricted.wav").display().to_string();
    let target = ["--tenant", TENANT, "--recording", &theirs];
    for command in [&["grant"][..], &["open", "--out", &wav]] {
        let ran = home.run(&[command, &target].concat());
        assert!(ran.code == Some(1) && ran.err.contains("restricted"), "{command:?}: {}", ran.err);
    }
    let tar = home.path().join("all.tar").display().to_string();
    let exported =
        home.run(&[&["export", "--tenant", TENANT, "--all", "--out", &tar, "--json"][..], &BY].concat());
    assert!(exported.err.contains("1 recordings are not in the archive"), "{}", exported.err);
    let report: Value = serde_json::from_str(&exported.out).unwrap();
    assert_eq!((&report["exported"], &report["left_out"]), (&json!(1), &json!(1)));
    assert_unreadable(&home);

    // Another index key makes other blind ids, and the restriction counts all the same.
    let reindex = ["recordings", "reindex", "--tenant", TENANT, "--new-key", "--yes", "--json"];
    home.run_ok(&[&reindex[..], &BY].concat());
    assert_eq!(status(&server, &links[0]).await, 451);
    assert_eq!(status(&server, &links[1]).await, 200);
    // So it does after a restart, and for another call of theirs.
    server.stop().await;
    let mut server = home.serve();
    assert_eq!(status(&server, &links[0]).await, 451);
    let later = record(&server, 3, CALLER).await;
    assert_eq!(home.run(&["grant", "--tenant", TENANT, "--recording", &later]).code, Some(1));

    assert_eq!(step(&home, "lift", &id, &[]).code, Some(0));
    for node in [&server, &other_server] {
        assert_eq!(status(node, &links[0]).await, 200);
    }
    let steps = show(&home, &id)["steps"].clone();
    let steps: Vec<_> = steps.as_array().unwrap().iter().map(|step| step["what"].clone()).collect();
    assert_eq!(steps, ["opened", "fulfilled", "lifted"]);
    let again = step(&home, "fulfil", &id, &[]);
    assert!(again.code == Some(1) && again.err.contains("request is lifted already"), "{}", again.err);
    assert_eq!(home.recordings(TENANT).len(), 3, "nothing was deleted");
    server.stop().await;
    other_server.stop().await;
}

#[tokio::test]
async fn they_are_told_what_is_kept_and_given_a_copy() {
    let (home, mut server) = Setup::new().serve();
    let theirs = [record(&server, 1, CALLER).await, record(&server, 2, CALLER).await];
    record(&server, 3, "+4930901820018").await;
    home.run_ok(&[&["recordings", "hold", "--tenant", TENANT, "--recording", &theirs[1]][..], &BY].concat());
    let access = open(&home, "access", &["--on-behalf-of", "their lawyer"]);
    let report = json_of(&step(&home, "report", &access, &[]));
    let kept = report["recordings"].as_array().unwrap();
    let ids: Vec<_> = kept.iter().map(|one| one["recording"].as_str().unwrap()).collect();
    assert_eq!(ids, theirs);
    for (one, held) in kept.iter().zip([false, true]) {
        assert_eq!(
            (&one["state"], &one["millis"], &one["held"], &one["restricted"]),
            (&json!("complete"), &json!(1000), &json!(held), &json!(false))
        );
        assert_eq!((&one["route"], &one["provider"]), (&json!("reception"), &json!("twilio")));
        assert!(one["expires"].as_str().unwrap() > one["ended"].as_str().unwrap(), "{one}");
        assert!(one["bytes"].as_u64().unwrap() > 1_000 && one["objects"].as_u64().unwrap() >= 1);
    }
    let fulfilled = json_of(&step(&home, "fulfil", &access, &[]));
    assert_eq!(
        (&fulfilled["state"], &fulfilled["report"]["recordings"]),
        (&json!("fulfilled"), &report["recordings"])
    );
    let shown = show(&home, &access);
    assert_eq!((&shown["party"], &shown["on_behalf_of"]), (&json!(CALLER), &json!("their lawyer")));

    let port = open(&home, "port", &[]);
    let out = home.path().join("copy");
    let name = out.display().to_string();
    let said = step(&home, "export", &port, &["--out", &name]);
    assert!(said.code == Some(0) && said.out.contains("2 recordings"), "{} {}", said.out, said.err);
    let mut sums = 0;
    for line in fs::read_to_string(out.join("SHA256SUMS")).unwrap().lines() {
        let (sum, name) = line.split_once("  ").unwrap();
        let digest = Sha256::digest(fs::read(out.join(name)).unwrap());
        assert_eq!(
            digest.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
            sum,
            "{name}"
        );
        sums += 1;
    }
    assert_eq!(sums, 5, "two recordings, what is known of them, and the report");
    let wav = fs::read(out.join(format!("{}.wav", theirs[0]))).unwrap();
    assert_eq!((&wav[..4], wav.len() > 16_000), (&b"RIFF"[..], true));
    let written = step(&home, "export", &port, &["--out", &name]);
    assert!(written.code == Some(1) && written.err.contains("make "), "never over another: {}", written.err);
    assert_eq!(json_of(&step(&home, "fulfil", &port, &[]))["state"], "fulfilled");
    assert_unreadable(&home);
    server.stop().await;
}

#[tokio::test]
async fn they_are_deleted_but_for_what_is_held() {
    let (home, mut server) = Setup::new().serve();
    let theirs = [record(&server, 1, CALLER).await, record(&server, 2, CALLER).await];
    home.run_ok(&[&["recordings", "hold", "--tenant", TENANT, "--recording", &theirs[1]][..], &BY].concat());
    let link = home.grant(TENANT, &theirs[0], &[]);
    let id = open(&home, "delete", &[]);
    let unasked = step(&home, "fulfil", &id, &[]);
    assert_eq!((unasked.code, show(&home, &id)["state"].clone()), (Some(1), json!("open")), "it asks");
    let done = json_of(&step(&home, "fulfil", &id, &["--yes"]));
    assert_eq!(
        (&done["state"], &done["exceptions"], &done["deleted"]["deleted"], &done["deleted"]["held"]),
        (&json!("fulfilled"), &json!([theirs[1]]), &json!(1), &json!(1))
    );
    assert_eq!(status(&server, &link).await, 410);
    assert_eq!(home.recordings(TENANT), [theirs[1].clone()]);
    assert_eq!(home.run(&["ledger", "verify", "--tenant", TENANT]).code, Some(0));
    let refused = open(&home, "delete", &[]);
    assert_eq!(step(&home, "refuse", &refused, &[]).code, Some(0));
    assert_eq!(step(&home, "fulfil", &refused, &["--yes"]).code, Some(1), "it was declined");

    let mut records = home.run_json(&["audit", "show", "--tenant", TENANT]);
    records.retain(|record| record["action"].as_str().unwrap().starts_with("request-"));
    let told: Vec<_> =
        records.iter().map(|record| (record["action"].clone(), record["subject"].clone())).collect();
    let expected = [
        ("request-open", &id),
        ("request-fulfil", &id),
        ("request-open", &refused),
        ("request-refuse", &refused),
    ];
    assert_eq!(told, expected.map(|(action, id)| (json!(action), json!(id))));
    assert!(records.iter().all(|record| !record.to_string().contains("901820017")), "no number");
    assert_eq!(home.run(&["audit", "verify", "--tenant", TENANT]).code, Some(0));
    server.stop().await;
}

#[tokio::test]
async fn what_is_overdue_is_counted_and_told_until_it_is_dealt_with() {
    let home = Setup::new().write();
    open(&home, "access", &[]);
    let late = open(&home, "access", &["--received", "2026-01-01T00:00:00Z"]);
    assert_eq!(show(&home, &late)["due"], "2026-01-31T00:00:00Z");
    let listed = run(&home, "list", &["--open"]);
    assert_eq!((listed.out.lines().count(), listed.out.matches("OVERDUE").count()), (2, 1), "{}", listed.out);
    let mut server = home.serve();
    server.allow("somebody's request is overdue");
    let line = server.wait_log("somebody's request is overdue", 1).await;
    assert_eq!(line.field("request"), late);
    let counted = |open: f64, overdue: f64| {
        let server = &server;
        move || {
            let now = (server.metric("requests_open"), server.metric("requests_overdue"));
            (now == (open, overdue)).then_some(())
        }
    };
    eventually("both to be counted", counted(2.0, 1.0)).await;
    server.stop().await;
    assert_eq!(step(&home, "fulfil", &late, &[]).code, Some(0));
    let mut server = home.serve();
    let counted = || (server.metric("requests_open") == 1.0).then(|| server.metric("requests_overdue"));
    assert_eq!(eventually("one to be counted", counted).await, 0.0);
    server.stop().await;
}

#[test]
fn wrong_requests_get_clear_errors_and_others_are_not_there() {
    let home = Setup::new().add_tenant(TenantSetup::new(OTHER)).write();
    for (more, code, error) in [
        (&["--kind", "forget", "--party", CALLER][..], 2, "allowed: access, delete, port, restrict"),
        (
            &["--kind", "access", "--party", "0301234567"],
            1,
            "--party: party must be a number in international form",
        ),
        (&["--kind", "access"], 2, "--party <NUMBER>"),
        (&["--kind", "access", "--party", CALLER, "--received", "yesterday"], 2, "allowed: a time such as"),
        (&["--kind", "access", "--party", CALLER, "--on-behalf-of", ""], 2, "allowed: 1 to 256 bytes"),
    ] {
        let ran = run(&home, "open", &[more, &BY].concat());
        assert!(ran.code == Some(code) && ran.err.contains(error), "{more:?}: {:?} {}", ran.code, ran.err);
        assert!(!ran.err.contains("0301234567"), "no number is shown: {}", ran.err);
    }
    let id = open(&home, "restrict", &[]);
    let elsewhere = home.run(&[&["requests", "fulfil", "--tenant", OTHER, "--id", &id][..], &BY].concat());
    assert!(elsewhere.code == Some(1) && elsewhere.err.contains("no such request"), "{}", elsewhere.err);
    let none = step(&home, "refuse", "0192f0c1a2b37c4d8e5f60718293a4b5", &[]);
    assert!(none.code == Some(1) && none.err.contains("no such request"), "{}", none.err);
    assert_eq!(run(&home, "show", &["--id", "x"]).code, Some(2));

    // A request that was changed, or put in the place of another, is none.
    let store = home.data().join("store");
    let objects =
        || files_below(&store).into_iter().filter(|(path, _)| path.to_string_lossy().contains("/r/"));
    let second = open(&home, "delete", &[]);
    let (path, bytes) = objects().find(|(path, _)| path.to_string_lossy().contains(&id)).unwrap();
    let (_, foreign) = objects().find(|(path, _)| path.to_string_lossy().contains(&second)).unwrap();
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    for wrong in [changed, foreign, Vec::new()] {
        fs::write(&path, wrong).unwrap();
        let ran = run(&home, "show", &["--id", &id]);
        assert!(ran.code == Some(1) && ran.err.contains("request does not open"), "{}", ran.err);
    }
    fs::write(&path, bytes).unwrap();
    assert_eq!(show(&home, &id)["state"], "open");
}
