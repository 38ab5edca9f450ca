//! Stored recordings through the API: lists, links, holds, deletion.

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use hyper::Method;
use serde_json::json;

use super::{audited, path, serve};
use crate::support::{Server, TENANT};

async fn record(server: &Server, number: u8) -> String {
    let plan = server.plan(&format!("{TENANT}/reception"), number, Track::whole(&DEMO_CALLER[..1_600]));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.stored(usize::from(number)).await
}

#[tokio::test]
async fn a_recording_is_listed_shown_played_held_and_deleted() {
    let (home, server, askers) = serve(&["player", "operator"]);
    let [player, operator] = &askers[..] else { panic!("two askers") };
    let recording = record(&server, 1).await;
    let one = path(&format!("recordings/{recording}"));

    let shown = player.get(&one).await;
    assert_eq!(
        (shown.status, &shown.body["state"], &shown.body["hold"]),
        (200, &"complete".into(), &false.into()),
        "{shown:?}"
    );
    assert_eq!(
        (&shown.body["seconds"], &shown.body["ended"]["route"]),
        (&json!(0.2), &"reception".into()),
        "{shown:?}"
    );
    let made = player
        .post(
            &format!("{one}/grants"),
            json!({"sub": "agent-7", "ttl_secs": 60, "format": "ulaw", "track": "caller"}),
        )
        .await;
    assert_eq!(made.status, 201, "{made:?}");
    let url = made.body["url"].as_str().unwrap();
    let played = server.https().get(&url[url.find("/play/").unwrap()..], &[]).await.unwrap();
    assert_eq!(played.status, 200);
    assert_eq!(played.body[played.body.len() - 1_600..], DEMO_CALLER[..1_600]);

    let hold = operator.post_because(&format!("{one}/hold"), "a lawsuit").await;
    assert_eq!(
        (hold.status, &hold.body["hold"], &hold.body["changed"]),
        (200, &true.into(), &true.into()),
        "{hold:?}"
    );
    assert_eq!(operator.post_because(&format!("{one}/hold"), "a lawsuit").await.body["changed"], false);
    let held = operator.ask(Method::DELETE, &one, Some("the caller asks"), None).await;
    assert_eq!((held.status, &held.body["code"]), (409, &"held".into()), "{held:?}");
    assert_eq!(operator.post_because(&format!("{one}/release"), "settled").await.body["hold"], false);
    let deleted = operator.ask(Method::DELETE, &one, Some("the caller asks"), None).await;
    assert_eq!(deleted.status, 202, "{deleted:?}");
    home.run_ok(&["sweep", "--yes"]);
    let gone = player.get(&one).await;
    assert_eq!((gone.status, &gone.body["code"]), (410, &"deleted".into()), "{gone:?}");
    assert_eq!(player.post(&format!("{one}/grants"), json!({"sub": "agent-7"})).await.status, 410);

    let record = audited(&home, "hold").remove(0);
    assert_eq!(
        (&record["role"], &record["reason"], &record["source"], &record["subject"]),
        (&"operator".into(), &"a lawsuit".into(), &"127.0.0.1".into(), &recording.clone().into()),
        "{record}"
    );
    assert_eq!(record["request"], hold.request);
    let minted = audited(&home, "mint-grant").remove(0);
    assert!(minted["detail"].as_str().unwrap().contains("sub=agent-7"), "{minted}");
    for action in ["show-recording", "release", "delete"] {
        assert!(!audited(&home, action).is_empty(), "{action}");
    }
}

#[tokio::test]
async fn a5_an_operator_gives_a_reason_for_each_link_and_the_audit_log_has_it() {
    let (home, server, askers) = serve(&["operator"]);
    let recording = record(&server, 1).await;
    let (grants, body) = (path(&format!("recordings/{recording}/grants")), json!({"sub": "j.doe"}));
    let refused = askers[0].post(&grants, body.clone()).await;
    assert_eq!((refused.status, &refused.body["field"]), (400, &"x-callseal-reason".into()), "{refused:?}");
    assert!(audited(&home, "mint-grant").is_empty());
    let made = askers[0].ask(Method::POST, &grants, Some("ticket 4711"), Some(body)).await;
    let url = made.body["url"].as_str().unwrap();
    let played = server.https().get(&url[url.find("/play/").unwrap()..], &[]).await.unwrap();
    assert_eq!(played.status, 200);
    for action in ["mint-grant", "play"] {
        let record = audited(&home, action).remove(0);
        assert_eq!(
            (&record["reason"], &record["subject"]),
            (&"ticket 4711".into(), &recording.clone().into())
        );
    }
}

#[tokio::test]
async fn lists_come_in_pages_and_by_time() {
    let (home, server, askers) = serve(&["player"]);
    let player = &askers[0];
    let mut recordings = Vec::new();
    for number in 1..=5 {
        recordings.push(record(&server, number).await);
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = player.get(&path(&format!("recordings?limit=2&details=true{cursor}"))).await;
        assert_eq!(page.status, 200, "{page:?}");
        let listed = page.body["recordings"].as_array().unwrap();
        assert!(listed.len() <= 2);
        assert!(listed.iter().all(|one| one["state"] == "complete" && one["seconds"] == 0.2), "{page:?}");
        seen.extend(listed.iter().map(|one| one["recording"].as_str().unwrap().to_owned()));
        match page.body["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, recordings);
    let created = |index: usize| -> String {
        let listed = home.run_json(&["recordings", "list", "--tenant", TENANT, "--json"]);
        listed[index]["created"].as_str().unwrap().to_owned()
    };
    let (from, to) = (created(1), created(4));
    let page = player.get(&path(&format!("recordings?from={from}&to={to}"))).await;
    let listed: Vec<_> =
        page.body["recordings"].as_array().unwrap().iter().map(|one| one["recording"].clone()).collect();
    assert_eq!(listed, recordings[1..4], "{page:?}");
    assert_eq!(audited(&home, "list-recordings").len(), 4);
}
