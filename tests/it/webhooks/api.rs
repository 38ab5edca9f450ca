//! Notices through the admin API: where they go, which are dead, once more, and a trial.

use serde_json::json;

use super::program::{Site, call};
use super::receiver::Answer;
use crate::admin::{Asker, audited, path, token};
use crate::support::{TENANT, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_notices_are_listed_and_sent_again_through_the_api() {
    let site = Site::with("", |setup| {
        setup.option("admin", "tokens_file", "\"tokens.toml\"").option("admin", "requests_per_sec", "10000")
    });
    let text = token(&site.home, "admin", Some(TENANT));
    let receiver = site.listen().await;
    receiver.always(Answer::Status(410));
    let mut server = site.home.serve();
    server.allow("notice is dead");
    for number in 1..=3 {
        call(&server, "reception", number).await;
    }
    server.wait_log("notice is dead", 3).await;
    let asker = Asker::new(&server, &text);

    let webhook = asker.get(&path("webhook")).await;
    assert_eq!((webhook.status, &webhook.body["waiting"]), (200, &0.into()), "{webhook:?}");
    assert!(webhook.body["host"].as_str().unwrap().starts_with("localhost:"), "{webhook:?}");
    assert!(!webhook.body.to_string().contains("t0ken"), "the URL may hold a secret");
    assert!(webhook.body["events"].as_array().unwrap().contains(&"recording.complete".into()));

    let first = asker.get(&path("notices?limit=2")).await;
    let next = first.body["next"].as_str().unwrap();
    let second = asker.get(&path(&format!("notices?limit=2&cursor={next}"))).await;
    let mut ids = Vec::new();
    for page in [&first, &second] {
        assert_eq!(page.status, 200, "{page:?}");
        ids.extend(page.body["notices"].as_array().unwrap().iter().map(|notice| {
            assert_eq!(
                (&notice["state"], &notice["body"]["type"]),
                (&"dead".into(), &"recording.complete".into())
            );
            assert!(notice["last"].as_str().unwrap().contains("410"), "{notice}");
            notice["id"].as_str().unwrap().to_owned()
        }));
    }
    assert_eq!((ids.len(), second.body["next"].is_null()), (3, true));
    let shown = asker.get(&path(&format!("notices/{}", ids[0]))).await;
    assert_eq!(shown.body, first.body["notices"][0]);

    let trial = asker.post(&path("webhook/test"), json!({})).await;
    assert_eq!(
        (trial.status, &trial.body["delivered"], &trial.body["error"]),
        (200, &false.into(), &"gone".into()),
        "{trial:?}"
    );
    receiver.always(Answer::Status(200));
    let trial = asker.post(&path("webhook/test"), json!({})).await;
    assert_eq!((&trial.body["delivered"], &trial.body["status"]), (&true.into(), &200.into()), "{trial:?}");

    let again = asker.post(&path(&format!("notices/{}/redeliver", ids[0])), json!({})).await;
    assert_eq!((again.status, &again.body["state"]), (202, &"waiting".into()), "{again:?}");
    let had = || receiver.got().iter().filter(|got| got.id() == ids[0]).count() == 2;
    eventually("the notice is sent again", || had().then_some(())).await;
    let mut sent = asker.get(&path("notices?state=sent")).await;
    while sent.body["notices"].as_array().unwrap().is_empty() {
        sent = asker.get(&path("notices?state=sent")).await;
    }
    assert_eq!(sent.body["notices"][0]["id"], ids[0].as_str());
    assert_eq!(asker.get(&path("notices?state=dead")).await.body["notices"].as_array().unwrap().len(), 2);
    for action in ["show-webhook", "webhook-test", "list-notices", "show-notice", "webhook-redeliver"] {
        assert!(audited(&site.home, action).iter().all(|record| record["role"] == "admin"), "{action}");
        assert!(!audited(&site.home, action).is_empty(), "{action}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_refused_and_a_receiver_that_hangs_is_answered_in_time() {
    let site = Site::with("", |setup| {
        let admin = setup.option("admin", "tokens_file", "\"tokens.toml\"");
        admin.option("admin", "request_timeout_ms", "1000").option("webhook", "attempt_timeout_ms", "30000")
    });
    let text = token(&site.home, "admin", Some(TENANT));
    let receiver = site.listen().await;
    receiver.always(Answer::Silent);
    let mut server = site.home.serve();
    let asker = Asker::new(&server, &text);
    let late = asker.post(&path("webhook/test"), json!({})).await;
    assert_eq!((late.status, &late.body["code"]), (503, &"unavailable".into()), "{late:?}");
    assert_eq!(late.headers["retry-after"], "2");
    for (target, field) in [("limit=0", "limit"), ("state=lost", "state"), ("cursor=x", "cursor")] {
        let answer = asker.get(&path(&format!("notices?{target}"))).await;
        assert_eq!((answer.status, &answer.body["field"]), (400, &field.into()), "{answer:?}");
    }
    let nobodys = path(&format!("notices/{}/redeliver", "0".repeat(32)));
    assert_eq!(asker.post(&nobodys, json!({})).await.status, 404);
    server.stop().await;
}
