//! Requests that come again with their `Idempotency-Key`: done once, answered alike, on any node, for a day.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use callseal::simulate::Track;
use callseal::simulate::TwilioCall;
use callseal::simulate::speech::DEMO_CALLER;
use hyper::Method;
use serde_json::{Value, json};

use super::{Answered, Asker, audited, path, serve, setup, token};
use crate::support::{Home, Server, TENANT, files_below};

const HOUR: Duration = Duration::from_secs(3600);

async fn ticket(asker: &Asker, key: &str, body: Value) -> Answered {
    asker.ask_with(Method::POST, &path("tickets"), &[("idempotency-key", key)], Some(body)).await
}

/// Starts another node on the same store.
fn second(home: &Home) -> Server {
    let journal = home.path().join("journal-2").display().to_string();
    home.serve_with(&[("CALLSEAL_NODE", "second"), ("CALLSEAL_JOURNAL__DIR", &journal)])
}

/// Returns what is kept, in the order of names.
fn kept(home: &Home) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        files_below(&home.data().join("store/y")).into_iter().map(|(path, _)| path).collect();
    paths.sort();
    paths
}

/// Makes an object so much older, as the store sees it.
fn age(path: &Path, by: Duration) {
    let file = File::options().write(true).open(path).unwrap();
    let before = file.metadata().unwrap().modified().unwrap() - by;
    file.set_modified(before).unwrap();
}

#[tokio::test]
async fn a_ticket_is_made_once_whichever_node_is_asked() {
    let home = setup().write();
    let (text, other) = (token(&home, "ingest", Some(TENANT)), token(&home, "ingest", Some(TENANT)));
    let (one, two) = (home.serve(), second(&home));
    let (here, there) = (Asker::new(&one, &text), Asker::new(&two, &text));
    let body = json!({"route": "ticketed", "ttl_secs": 60});

    let first = ticket(&here, "a-key", body.clone()).await;
    assert_eq!(first.status, 201, "{first:?}");
    assert!(!first.headers.contains_key("idempotency-replayed"));
    for asker in [&here, &there] {
        // Quotes, as the draft of the header has them, are no part of the key.
        for key in ["a-key", "\"a-key\""] {
            let again = ticket(asker, key, body.clone()).await;
            assert_eq!((again.status, &again.body), (201, &first.body), "{again:?}");
            assert_eq!(again.headers["idempotency-replayed"], "true");
            assert_ne!(again.request, first.request, "each request has its own id");
        }
        let changed = ticket(asker, "a-key", json!({"route": "ticketed", "ttl_secs": 61})).await;
        assert_eq!(
            (changed.status, &changed.body["code"]),
            (422, &"idempotency_key_reused".into()),
            "{changed:?}"
        );
    }
    let elses = ticket(&Asker::new(&two, &other), "a-key", body.clone()).await;
    assert_eq!(elses.status, 201);
    assert_ne!(elses.body["ticket"], first.body["ticket"], "keys of other tokens are other keys");
    assert_eq!(audited(&home, "mint-ticket").len(), 2);
    let again = audited(&home, "answer-again");
    assert_eq!((again.len(), &again[0]["subject"]), (4, &"create_ticket".into()));
    assert_eq!(again[0]["detail"], format!("first={}", first.request));

    let secret = first.body["ticket"].as_str().unwrap();
    for (file, content) in files_below(&home.data()) {
        for text in [secret, "a-key"] {
            let found = content.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!found && !file.display().to_string().contains(text), "{text} in {}", file.display());
        }
    }

    for file in kept(&home) {
        age(&file, 24 * HOUR + Duration::from_secs(1));
    }
    let after_a_day = ticket(&there, "a-key", body).await;
    assert_eq!(after_a_day.status, 201);
    assert_ne!(after_a_day.body["ticket"], first.body["ticket"], "a day later it is a new request");
    let all = kept(&home);
    assert_eq!(all.len(), 6);
    home.run_ok(&["sweep", "--yes"]);
    assert_eq!(kept(&home), all, "nothing goes at the last moment");
    for file in &all[..2] {
        age(file, 26 * HOUR);
    }
    home.run_ok(&["sweep", "--yes"]);
    assert_eq!(kept(&home), all[2..]);
}

#[tokio::test]
async fn of_many_at_once_one_is_worked_on() {
    let home = setup().write();
    let text = token(&home, "ingest", Some(TENANT));
    let (one, two) = (home.serve(), second(&home));
    let askers: Vec<_> = (0..12).map(|n| Asker::new(if n % 2 == 0 { &one } else { &two }, &text)).collect();
    let asking = askers.iter().map(|asker| ticket(asker, "k", json!({})));
    let answers = futures_util::future::join_all(asking).await;
    let mut made: Vec<_> = answers.iter().filter(|a| a.status == 201).map(|a| &a.body["ticket"]).collect();
    assert!(!made.is_empty());
    made.dedup();
    assert_eq!(made.len(), 1, "{answers:?}");
    for answer in answers.iter().filter(|answer| answer.status != 201) {
        assert_eq!((answer.status, &answer.body["code"]), (409, &"in_progress".into()), "{answer:?}");
        assert_eq!(answer.headers["retry-after"], "2");
    }
    assert_eq!(audited(&home, "mint-ticket").len(), 1);
}

#[tokio::test]
async fn what_was_refused_may_come_again_and_what_died_may_be_done_anew() {
    let (home, mut server, askers) = serve(&["ingest"]);
    let asker = &askers[0];
    let refused = ticket(asker, "k", json!({"route": "nowhere"})).await;
    assert_eq!(refused.status, 400);
    assert_eq!(kept(&home), Vec::<PathBuf>::new(), "a refusal is not kept");
    let first = ticket(asker, "k", json!({})).await;
    assert_eq!(first.status, 201);

    // A process that died between its work and its answer leaves this.
    let both = kept(&home);
    let [done, run] = &both[..] else { panic!("two objects") };
    assert!(done.ends_with("0000-done") && run.ends_with("0000-run"));
    let answer = fs::read(done).unwrap();
    fs::remove_file(done).unwrap();
    let running = ticket(asker, "k", json!({})).await;
    assert_eq!((running.status, &running.body["code"]), (409, &"in_progress".into()), "{running:?}");
    let other = ticket(asker, "k", json!({"ttl_secs": 1})).await;
    assert_eq!(other.status, 422, "{other:?}");
    age(run, HOUR);
    let anew = ticket(asker, "k", json!({})).await;
    assert_eq!(anew.status, 201, "{anew:?}");
    assert_ne!(anew.body["ticket"], first.body["ticket"]);

    // An answer opens in its own place only, and only as it was written.
    server.allow("kept answer of the admin API is damaged");
    let present = done.with_file_name("0001-done");
    let good = fs::read(&present).unwrap();
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    for wrong in [&answer, &changed, &Vec::new()] {
        fs::write(&present, wrong).unwrap();
        let damaged = ticket(asker, "k", json!({})).await;
        assert_eq!((damaged.status, &damaged.body["code"]), (503, &"damaged".into()), "{damaged:?}");
    }
    fs::write(&present, &good).unwrap();
    assert_eq!(ticket(asker, "k", json!({})).await.body, anew.body);
}

#[tokio::test]
async fn keys_are_bounded_and_without_a_store_nothing_is_done() {
    let (home, mut server, askers) = serve(&["ingest"]);
    let asker = &askers[0];
    for wrong in ["", "a b", "\"\"", &"x".repeat(129)] {
        let answer = ticket(asker, wrong, json!({})).await;
        assert_eq!(
            (answer.status, &answer.body["field"]),
            (400, &"idempotency-key".into()),
            "{wrong:?}: {answer:?}"
        );
    }
    let two = [("idempotency-key", "a"), ("idempotency-key", "b")];
    assert_eq!(asker.ask_with(Method::POST, &path("tickets"), &two, Some(json!({}))).await.status, 400);
    assert_eq!(ticket(asker, &"x".repeat(128), json!({})).await.status, 201);

    server.allow("answers cannot be kept or looked up");
    fs::remove_dir_all(home.data().join("store/y")).unwrap();
    fs::write(home.data().join("store/y"), "no directory").unwrap();
    let answer = ticket(asker, "k", json!({})).await;
    assert_eq!((answer.status, &answer.body["code"]), (503, &"unavailable".into()), "{answer:?}");
    assert_eq!(answer.headers["retry-after"], "2");
    assert_eq!(asker.post(&path("tickets"), json!({})).await.status, 201, "without a key nothing is kept");
    assert_eq!(audited(&home, "mint-ticket").len(), 2);
}

#[tokio::test]
async fn a_link_is_made_once() {
    let (home, server, askers) = serve(&["operator"]);
    let plan = server.plan(&format!("{TENANT}/reception"), 1, Track::whole(&DEMO_CALLER[..1_600]));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let grants = path(&format!("recordings/{}/grants", server.stored(1).await));
    let ask = async |target: &str, reason: &str| {
        let headers = [("idempotency-key", "k"), ("x-callseal-reason", reason)];
        askers[0].ask_with(Method::POST, target, &headers, Some(json!({"sub": "agent-7"}))).await
    };
    let first = ask(&grants, "a complaint").await;
    assert_eq!(first.status, 201, "{first:?}");
    assert_eq!(ask(&grants, "a complaint").await.body, first.body);
    assert_eq!(ask(&grants, "another complaint").await.status, 422, "the reason goes into the audit log");
    let elsewhere = path("recordings/0192f0c1a2b37c4d8e5f60718293a4b5/grants");
    assert_eq!(ask(&elsewhere, "a complaint").await.status, 422, "a key is for one request");
    assert_eq!(audited(&home, "mint-grant").len(), 1);
}
