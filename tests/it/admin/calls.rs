//! Tickets, and what is wanted of live calls.

use callseal::domain::sign::encode_base64;
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use serde_json::json;

use super::{Asker, audited, path, serve, setup, token};
use crate::support::socket::{greeting, media, stop, stream_id};
use crate::support::{Home, Server, TENANT, eventually};

/// Waits until a stream is live; answers the id of its recording.
async fn live(asker: &Asker, state: &str) -> String {
    loop {
        let listed = asker.get(&path("streams")).await;
        assert_eq!(listed.status, 200, "{listed:?}");
        if let Some(stream) = listed.body["streams"].as_array().unwrap().iter().find(|s| s["state"] == state)
        {
            return stream["recording"].as_str().unwrap().to_owned();
        }
    }
}

#[tokio::test]
async fn a_ticket_of_the_api_opens_one_call() {
    let (home, server, askers) = serve(&["ingest"]);
    let body = json!({"route": "ticketed", "retention_days": 7, "metadata": {"order": "r-20417"}});
    let made = askers[0].post(&path("tickets"), body).await;
    assert_eq!(made.status, 201, "{made:?}");
    let (_, target) = made.body["url"].as_str().unwrap().split_once("/twilio/v1/").unwrap();
    assert!(target.ends_with(made.body["ticket"].as_str().unwrap()));
    let plan = server.plan(target, 1, Track::whole(&DEMO_CALLER[..1_600]));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let shown = home.show(TENANT, &server.stored(1).await);
    assert_eq!(shown["ticket"]["order"], "r-20417");
    assert_eq!(shown["objects"][0]["tags"]["callseal-retention-days"], "7");
    let record = audited(&home, "mint-ticket").remove(0);
    assert_eq!((&record["role"], &record["source"]), (&"ingest".into(), &"127.0.0.1".into()), "{record}");
    assert!(record["actor"].as_str().unwrap().starts_with("token:"));
    assert_eq!(record["request"], made.request);
}

/// Ends a call and reads what was recorded of the caller.
async fn recorded(home: &Home, server: &Server, number: usize) -> (serde_json::Value, Vec<u8>) {
    let recording = server.stored(number).await;
    (home.show(TENANT, &recording), home.open_ulaw(TENANT, &recording, "caller"))
}

#[tokio::test]
async fn what_is_said_while_a_recording_is_paused_is_nowhere() {
    let (home, server, askers) = serve(&["ingest", "player"]);
    let [asker, player] = &askers[..] else { panic!("two askers") };
    let (mut socket, stream) = (server.open(&format!("{TENANT}/reception")).await, stream_id(1));
    for text in greeting(1) {
        socket.text(text).await;
    }
    for chunk in 1..=10 {
        socket.text(media(&stream, chunk, 0x11)).await;
    }
    socket.settle().await;
    let recording = live(asker, "recording").await;
    let order =
        async |what: &str| asker.post(&path(&format!("recordings/{recording}/{what}")), json!({})).await;
    let paused = order("pause").await;
    assert_eq!((paused.status, &paused.body["state"]), (200, &"paused".into()), "{paused:?}");
    assert_eq!(order("pause").await.body["state"], "paused", "again");
    for chunk in 11..=20 {
        socket.text(media(&stream, chunk, 0x22)).await;
    }
    let digit = json!({"event": "dtmf", "streamSid": stream, "sequenceNumber": "22", "dtmf": {"track": "inbound_track", "digit": "7"}});
    socket.text(digit.to_string()).await;
    socket.settle().await;
    let watched = || (server.metric("streams_paused") == 1.0).then_some(());
    eventually("the pause is counted", watched).await;
    let resumed = order("resume").await;
    assert_eq!((resumed.status, &resumed.body["state"]), (200, &"recording".into()), "{resumed:?}");
    for chunk in 21..=30 {
        let text = media(&stream, chunk, 0x33).replace(
            &format!("\"sequenceNumber\":\"{}\"", chunk + 1),
            &format!("\"sequenceNumber\":\"{}\"", chunk + 2),
        );
        socket.text(text).await;
    }
    socket.text(stop(&stream)).await;
    socket.close(None).await;
    let (shown, audio) = recorded(&home, &server, 1).await;
    assert_eq!(shown["state"], "complete", "a pause is no loss: {shown}");
    assert_eq!(
        shown["gaps"],
        json!([{"track": 0, "pts": 816 + 1_600, "samples": 1_600, "reason": 3}]),
        "{shown}"
    );
    // The stream's first sample is number 816; who listens counts from there.
    let view = player.get(&path(&format!("recordings/{recording}"))).await;
    let (gap, first) = (&view.body["ended"]["gaps"][0], audio.len() - 4_800);
    assert_eq!((&gap["at_seconds"], &gap["seconds"], first), (&json!(0.2), &json!(0.2), 0), "{view:?}");
    let spoken = &audio[first..];
    assert_eq!(
        (&spoken[..1_600], &spoken[1_600..3_200], &spoken[3_200..]),
        (&[0x11; 1_600][..], &[0xff; 1_600][..], &[0x33; 1_600][..])
    );
    let over = order("pause").await;
    assert_eq!((over.status, &over.body["code"]), (409, &"not_live".into()), "{over:?}");
    for action in ["pause", "resume"] {
        assert!(!audited(&home, action).is_empty(), "{action}");
    }
    let payload = encode_base64(&[0x22; 160]);
    assert!(server.log().iter().all(|line| !line.text.contains(&payload)));
}

#[tokio::test]
async fn a_caller_who_agrees_is_recorded_from_then_on() {
    let (home, server, askers) = serve(&["ingest"]);
    let asker = &askers[0];
    let (mut socket, stream) = (server.open(&format!("{TENANT}/consenting")).await, stream_id(1));
    for text in greeting(1) {
        socket.text(text).await;
    }
    for chunk in 1..=10 {
        socket.text(media(&stream, chunk, 0x11)).await;
    }
    socket.settle().await;
    let recording = live(asker, "awaiting-consent").await;
    let order =
        async |what: &str| asker.post(&path(&format!("recordings/{recording}/{what}")), json!({})).await;
    let early = order("resume").await;
    assert_eq!((early.status, &early.body["code"]), (409, &"no_consent".into()), "{early:?}");
    let agreed = order("consent").await;
    assert_eq!((agreed.status, &agreed.body["state"]), (200, &"recording".into()), "{agreed:?}");
    for chunk in 11..=20 {
        socket.text(media(&stream, chunk, 0x22)).await;
    }
    socket.text(stop(&stream)).await;
    socket.close(None).await;
    let (shown, audio) = recorded(&home, &server, 1).await;
    assert_eq!(
        (&shown["state"], &shown["consent"], &shown["recording"]),
        (&"complete".into(), &"api".into(), &recording.into()),
        "{shown}"
    );
    assert_eq!(audio, [0x22; 1_600], "nothing from before");
    assert_eq!(server.metric("streams_without_consent_total"), 0.0);
}

#[tokio::test]
async fn a_node_that_does_not_have_the_call_passes_the_order_on() {
    let home = setup().write();
    let asker_token = token(&home, "ingest", Some(TENANT));
    let first = home.serve();
    let journal = home.path().join("journal-2").display().to_string();
    let second = home.serve_with(&[("CALLSEAL_NODE", "second"), ("CALLSEAL_JOURNAL__DIR", &journal)]);
    let (here, elsewhere) = (Asker::new(&first, &asker_token), Asker::new(&second, &asker_token));
    let (mut socket, stream) = (first.open(&format!("{TENANT}/reception")).await, stream_id(1));
    for text in greeting(1) {
        socket.text(text).await;
    }
    socket.text(media(&stream, 1, 0x11)).await;
    socket.settle().await;
    let recording = live(&here, "recording").await;
    assert_eq!(elsewhere.get(&path("streams")).await.body["streams"], json!([]));
    let order = format!("recordings/{recording}/pause");
    let asked = elsewhere.post(&path(&order), json!({})).await;
    assert_eq!((asked.status, &asked.body["state"]), (202, &"requested".into()), "{asked:?}");
    assert_eq!(live(&here, "paused").await, recording);
    let asked = elsewhere.post(&path(&order.replace("pause", "resume")), json!({})).await;
    assert_eq!(asked.status, 202, "{asked:?}");
    assert_eq!(live(&here, "recording").await, recording);
    socket.text(stop(&stream)).await;
    socket.close(None).await;
    first.stored(1).await;
    let left = || {
        home.data()
            .join("store/i")
            .exists()
            .then(|| crate::support::files_below(&home.data().join("store/i")).is_empty())
    };
    eventually("the orders are gone", || left().unwrap_or(true).then_some(())).await;
}
