//! For how many days a tenant's recordings are kept: who may change that, and what nobody may.

use callseal::clock;
use hyper::Method;
use serde_json::{Value, json};

use super::tenants::{NEW, about, create, put, put_revision, settings, setup, takes_calls};
use super::{Answered, Asker, token};
use crate::support::{Home, Server, TENANT, eventually};

/// Makes a token of an admin with a name of its own.
fn admin_named(home: &Home, name: &str) -> String {
    let made = ["token", "create", "--name", name, "--role", "admin", "--all-tenants"];
    home.run_ok(&made).trim().to_owned()
}

/// A node with a tenant of the store that keeps recordings for 90 days, and two admins of all tenants.
async fn serve() -> (Home, Server, [Asker; 2]) {
    let home = setup()
        .option("retention", "interval_secs", "1")
        .option("retention", "max_share_percent", "100")
        .write();
    let tokens = ["ann", "bob"].map(|name| admin_named(&home, name));
    let server = home.serve();
    let askers = tokens.map(|token| Asker::new(&server, &token));
    let mut new = settings(NEW);
    new["retention"] = json!({"profile": "ring-the-pro"});
    assert_eq!(create(&askers[0], new).await.status, 201);
    (home, server, askers)
}

async fn ask(asker: &Asker, what: &str, etag: &str, body: Option<Value>) -> Answered {
    let headers = [("x-callseal-reason", "a second look"), ("if-match", etag)];
    asker.ask_with(Method::POST, &about(NEW, &format!("/retention{what}")), &headers, body).await
}

async fn change(asker: &Asker, etag: &str, days: u32) -> Answered {
    ask(asker, "", etag, Some(json!({"call_audio_days": days, "reason": "contract 4711"}))).await
}

async fn shown(asker: &Asker) -> Answered {
    let answer = asker.get(&about(NEW, "/retention")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

fn assert_refused(answer: &Answered, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.body["code"]), (status, &code.into()), "{answer:?}");
}

/// Days that hold, days that are proposed, and outcomes.
fn summary(answer: &Answered) -> (u64, Option<u64>, Vec<String>) {
    let history = answer.body["history"].as_array().unwrap().iter();
    (
        answer.body["call_audio_days"].as_u64().unwrap(),
        answer.body["pending"]["call_audio_days"].as_u64(),
        history.map(|one| one["outcome"].as_str().unwrap().to_owned()).collect(),
    )
}

#[tokio::test]
async fn a17_fewer_days_hold_at_once_and_more_need_a_second_actor() {
    let (home, _server, [ann, bob]) = serve().await;
    let first = shown(&ann).await;
    assert_eq!((summary(&first), first.etag.as_str()), ((90, None, vec![]), "\"1\""));

    let shorter = change(&ann, &first.etag, 30).await;
    assert_eq!((shorter.status, shorter.etag.as_str()), (200, "\"2\""), "{shorter:?}");
    assert_eq!(summary(&shorter), (30, None, vec!["shortened".to_owned()]));
    assert_refused(&change(&ann, &shorter.etag, 30).await, 409, "same_days");
    assert_refused(&change(&ann, &first.etag, 20).await, 412, "stale");

    let proposed = change(&ann, &shorter.etag, 400).await;
    assert_eq!(
        (proposed.status, summary(&proposed).0, summary(&proposed).1),
        (200, 30, Some(400)),
        "{proposed:?}"
    );
    assert_refused(&change(&bob, &proposed.etag, 500).await, 409, "proposal_pending");
    assert_refused(&ask(&ann, "/approve", &proposed.etag, None).await, 409, "same_actor");
    assert_eq!(ann.get(&about(NEW, "")).await.body["call_audio_days"], 30, "nothing changes until then");
    let approved = ask(&bob, "/approve", &proposed.etag, None).await;
    assert_eq!((approved.status, summary(&approved).0), (200, 400), "{approved:?}");
    let decision = &approved.body["history"][1]["decision"];
    assert!(
        decision["by"].as_str().unwrap().ends_with(":bob") && decision["reason"] == "a second look",
        "{decision}"
    );
    assert_refused(&ask(&bob, "/approve", &proposed.etag, None).await, 412, "stale");
    assert_refused(&ask(&bob, "/approve", &approved.etag, None).await, 409, "no_proposal");

    let again = change(&ann, &approved.etag, 500).await;
    let withdrawn = ask(&ann, "/withdraw", &again.etag, None).await;
    assert_eq!(
        (withdrawn.status, summary(&withdrawn).0, summary(&withdrawn).1),
        (200, 400, None),
        "{withdrawn:?}"
    );
    assert_refused(&ask(&bob, "/approve", &withdrawn.etag, None).await, 409, "no_proposal");
    let (one, two) = tokio::join!(change(&ann, &withdrawn.etag, 600), change(&bob, &withdrawn.etag, 700));
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412], "{one:?} {two:?}");
    assert_eq!(shown(&bob).await.body["history"].as_array().unwrap().len(), 3);

    let audited = home.run_json(&["audit", "show", "--tenant", NEW]);
    let said = |action: &str, result: &str| {
        let found = audited.iter().find(|record| record["action"] == action && record["result"] == result);
        found.unwrap_or_else(|| panic!("{action} {result} is not in the audit log")).clone()
    };
    assert_eq!(said("retention.shortened", "allowed")["reason"], "contract 4711");
    assert!(said("retention.lengthened", "allowed")["detail"].as_str().unwrap().contains("days=30->400"));
    for (action, result) in [
        ("retention.proposed", "allowed"),
        ("retention.withdrawn", "allowed"),
        ("retention.approve", "same_actor"),
        ("retention.approve", "no_proposal"),
        ("retention.change", "proposal_pending"),
    ] {
        said(action, result);
    }
}

#[tokio::test]
async fn a17_there_is_no_other_way_to_more_days() {
    let (home, mut server, [ann, bob]) = serve().await;
    server.allow("admin API refuses an operation");
    let etag = shown(&ann).await.etag;
    for retention in [json!({"call_audio_days": 400}), json!({}), json!({"call_audio_days": 10})] {
        let mut other = settings(NEW);
        other["retention"] = retention;
        assert_refused(&put(&bob, NEW, &etag, other).await, 409, "retention_days");
    }
    let mut same = settings(NEW);
    same["retention"] = json!({"call_audio_days": 90});
    let updated = put(&bob, NEW, &etag, same).await;
    assert_eq!(updated.status, 200, "{updated:?}");
    let proposed = change(&ann, &updated.etag, 400).await;
    let mut other = settings(NEW);
    other["retention"] = json!({"call_audio_days": 400});
    assert_refused(&put(&bob, NEW, &proposed.etag, other).await, 409, "retention_days");
    let suspended = {
        let headers = [("x-callseal-reason", "why"), ("if-match", proposed.etag.as_str())];
        ann.ask_with(Method::POST, &about(NEW, "/suspend"), &headers, None).await
    };
    assert_eq!(summary(&shown(&ann).await), (90, Some(400), vec![]), "other changes keep what is proposed");

    let withdrawn = ask(&bob, "/withdraw", &suspended.etag, None).await;
    for (body, field) in [
        (json!({"call_audio_days": 0, "reason": "x"}), "call_audio_days"),
        (json!({"call_audio_days": 3651, "reason": "x"}), "call_audio_days"),
        (json!({"call_audio_days": 9, "reason": " "}), "reason"),
        (json!({"call_audio_days": 9, "reason": "x".repeat(513)}), "reason"),
    ] {
        let answer = ask(&ann, "", &withdrawn.etag, Some(body)).await;
        assert_eq!((answer.status, &answer.body["field"]), (400, &field.into()), "{answer:?}");
    }
    let bare = ann.post(&about(NEW, "/retention"), json!({"call_audio_days": 9, "reason": "x"})).await;
    assert_refused(&bare, 428, "precondition_required");

    // A tenant shortens its own days and proposes more; approving is not for itself.
    let own = Asker::new(&server, &token(&home, "admin", Some(NEW)));
    while own.get(&about(NEW, "")).await.status == 401 {
        server.allow("admin API refuses a token");
    }
    let proposed = change(&own, &withdrawn.etag, 200).await;
    assert_eq!(proposed.status, 200, "{proposed:?}");
    assert_refused(&ask(&own, "/approve", &proposed.etag, None).await, 403, "forbidden");
    let shorter = change(&own, &proposed.etag, 60).await;
    let outcomes = ["withdrawn", "superseded", "shortened"].map(str::to_owned).to_vec();
    assert_eq!(summary(&shorter), (60, None, outcomes), "{shorter:?}");
    assert_eq!(own.get(&format!("/v1/tenants/{TENANT}/retention")).await.status, 404);

    // A tenant of a file: read here, changed there.
    let of_file = ann.get(&format!("/v1/tenants/{TENANT}/retention")).await;
    assert_eq!((of_file.status, summary(&of_file)), (200, (365, None, vec![])), "{of_file:?}");
    let headers = [("if-match", "\"1\"")];
    let body = json!({"call_audio_days": 9, "reason": "x"});
    let path = format!("/v1/tenants/{TENANT}/retention");
    assert_refused(&ann.ask_with(Method::POST, &path, &headers, Some(body)).await, 409, "file_tenant");
}

#[tokio::test]
async fn a17_more_days_reach_ended_calls_when_a_second_actor_approves() {
    let (home, mut server, [ann, bob]) = serve().await;
    assert!(takes_calls(&server, NEW, 1).await);
    let recording = server.stored(1).await;
    home.finished(NEW, &recording).await;
    let sealed = home.show(NEW, &recording)["expires"].clone();
    let etag = shown(&ann).await.etag;
    let body = |dry_run| json!({"call_audio_days": 365, "reason": "dispute 117", "also_ended": true, "dry_run": dry_run});
    let looked = ask(&ann, "", &etag, Some(body(true))).await;
    assert_eq!((looked.status, &looked.body["ended"]["longer"]), (200, &1.into()), "{looked:?}");
    let proposed = ask(&ann, "", &etag, Some(body(false))).await;
    assert_eq!(
        (proposed.status, &proposed.body["pending"]["also_ended"]),
        (200, &true.into()),
        "{proposed:?}"
    );
    assert_eq!(proposed.body["ended"], Value::Null);
    assert_refused(&ask(&ann, "/approve", &proposed.etag, None).await, 409, "same_actor");
    assert_eq!(home.show(NEW, &recording)["expires"], sealed, "nothing before it is approved");
    let approved = ask(&bob, "/approve", &proposed.etag, None).await;
    assert!([200, 202].contains(&approved.status), "{approved:?}");
    assert_eq!(approved.body["history"][0]["also_ended"], true, "{approved:?}");
    eventually("the later date", || (home.show(NEW, &recording)["expires"] != sealed).then_some(())).await;
    let at = |text: &Value| clock::parse_rfc3339(text.as_str().unwrap()).unwrap().0;
    let later = home.show(NEW, &recording)["expires"].clone();
    assert_eq!(at(&later) - at(&sealed), 275 * 24 * 3_600_000);
    let shown = ann.get(&about(NEW, &format!("/recordings/{recording}"))).await;
    assert_eq!(shown.body["ended"]["expires"], later, "{shown:?}");
    server.stop().await;
}

#[tokio::test]
async fn a17_ended_calls_get_their_date_as_the_look_said() {
    let (home, mut server, [ann, _]) = serve().await;
    for number in 1..=3 {
        assert!(takes_calls(&server, NEW, number).await);
        server.stored(usize::from(number)).await;
    }
    let recordings = home.recordings(NEW);
    for recording in &recordings {
        home.finished(NEW, recording).await;
    }
    let by = ["--actor", "ada", "--reason", "a lawsuit"];
    home.run_ok(&[&["recordings", "hold", "--tenant", NEW, "--recording", &recordings[0]][..], &by].concat());

    let etag = shown(&ann).await.etag;
    let body = |dry_run| json!({"call_audio_days": 7, "reason": "asked for", "also_ended": true, "dry_run": dry_run});
    let looked = ask(&ann, "", &etag, Some(body(true))).await;
    assert_eq!((looked.status, &looked.body["dry_run"]), (200, &true.into()), "{looked:?}");
    assert_eq!((&looked.body["ended"]["shorter"], &looked.body["ended"]["held"]), (&3.into(), &1.into()));
    assert_eq!(shown(&ann).await.etag, etag, "a look changes nothing");
    let done = ask(&ann, "", &etag, Some(body(false))).await;
    assert!([200, 202].contains(&done.status), "{done:?}");
    if done.status == 200 {
        // A sweep may have come first to some.
        let count = |name: &str| done.body["ended"][name].as_u64().unwrap();
        assert_eq!(count("shorter") + count("unchanged"), 3, "{done:?}");
    }
    eventually("every date", || {
        let ordered = |recording: &String| home.show(NEW, recording)["ordered_expiry"].is_string();
        recordings.iter().all(ordered).then_some(())
    })
    .await;

    // Calls of the first minute may have begun on a node that did not know yet, so that it is noted a minute later.
    assert!(shown(&ann).await.body["history"][0]["done"].is_null());
    put_revision(&home, NEW, |revision| {
        let mut policy = serde_json::to_value(&revision.retention).unwrap();
        let at = policy["history"][0]["at_ms"].as_u64().unwrap();
        policy["history"][0]["at_ms"] = (at - 61_000).into();
        revision.retention = serde_json::from_value(policy).unwrap();
    })
    .await;
    eventually("the note of a sweep", || {
        let line = home.run_json(&["retention", "show", "--tenant", NEW, "--json"]).remove(0);
        line["history"][0]["done"].is_string().then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a17_commands_shorten_propose_approve_and_withdraw() {
    let (home, mut server, [ann, _]) = serve().await;
    assert!(takes_calls(&server, NEW, 1).await);
    let recording = server.stored(1).await;
    home.finished(NEW, &recording).await;
    server.stop().await;
    drop(ann);
    let run = |what: &str, actor: &str, more: &[&str]| {
        let by = ["--tenant", NEW, "--actor", actor, "--reason", "contract 4711"];
        home.run(&[&["retention", what][..], &by, more].concat())
    };
    let proposed = run("change", "ada", &["--days", "400"]);
    assert!(proposed.code == Some(0) && proposed.out.contains("400 days are proposed"), "{proposed:?}");
    let own = run("approve", "Ada", &[]);
    assert!(own.code == Some(1) && own.err.contains("somebody else must"), "{own:?}");
    assert_eq!(run("approve", "grace", &["--revision", "1"]).code, Some(1), "not what was read");
    let approved = run("approve", "grace", &["--json"]);
    assert_eq!(approved.code, Some(0), "{approved:?}");
    let approved: Value = serde_json::from_str(&approved.out).unwrap();
    assert_eq!((&approved["call_audio_days"], &approved["revision"]), (&400.into(), &3.into()));
    assert_eq!(run("change", "ada", &["--days", "500"]).code, Some(0));
    assert_eq!(run("withdraw", "ada", &[]).code, Some(0));

    let ended = ["--days", "7", "--also-ended"];
    let unasked = run("change", "ada", &ended);
    assert!(
        unasked.code == Some(1) && unasked.err.contains("1 recording of new-tenant will expire earlier"),
        "{unasked:?}"
    );
    let looked = run("change", "ada", &[&ended[..], &["--dry-run", "--json"]].concat());
    let done = run("change", "ada", &[&ended[..], &["--yes", "--json"]].concat());
    let [looked, done] = [looked, done].map(|ran| serde_json::from_str::<Value>(&ran.out).unwrap());
    assert_eq!(
        (&looked["ended"], &looked["ended"]["shorter"]),
        (&done["ended"], &1.into()),
        "{looked} {done}"
    );
    assert!(home.show(NEW, &recording)["ordered_expiry"].is_string());
    let text = home.run_ok(&["retention", "show", "--tenant", NEW]);
    for part in
        ["kept for 7 days", "90 -> 400 days", "by \"grace\"", "withdrawn", "ended calls wait for a sweep"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let of_file = home.run(&[
        "retention",
        "change",
        "--tenant",
        TENANT,
        "--days",
        "9",
        "--actor",
        "a",
        "--reason",
        "b",
    ]);
    assert!(of_file.code == Some(1) && of_file.err.contains("change the file"), "{of_file:?}");
    let audited = home.run_json(&["audit", "show", "--tenant", NEW]);
    let refused =
        audited.iter().find(|record| record["result"] == "same_actor").expect("the refusal is audited");
    assert_eq!((&refused["action"], &refused["actor"]), (&"retention.approve".into(), &"Ada".into()));
}
