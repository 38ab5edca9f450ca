//! How a node stops, and what it reads again while it runs.

use std::fs;

use callseal::domain::provider::twilio_signature::sign_url;
use callseal::simulate::{Signing, Track, TwilioCall};

use tokio_tungstenite::tungstenite::Message;

use crate::support::socket::{Socket, greeting, media, stop, stream_id};
use crate::support::wire::{signed_upgrade, upgrade};
use crate::support::{Home, Server, Setup, TENANT, TenantSetup};

const PATH: &str = "acme-dental/reception";
const TARGET: &str = "/twilio/v1/acme-dental/reception";

/// Begins call `number`; its first 20 ms are with the server.
async fn begin(server: &Server, number: u8) -> Socket {
    let mut socket = server.open(PATH).await;
    for message in greeting(number) {
        socket.text(message).await;
    }
    socket.text(media(&stream_id(number), 1, number)).await;
    socket.settle().await;
    socket
}

/// Checks that call `number`, begun before, is still recorded, and ends it.
async fn end(home: &Home, server: &Server, mut socket: Socket, number: u8) {
    let count = server.logged("recording sealed").len() + 1;
    socket.text(media(&stream_id(number), 2, number)).await;
    socket.text(stop(&stream_id(number))).await;
    assert_eq!(socket.close(Some(1000)).await, Some(1000));
    let sealed = server.wait_log("recording sealed", count).await;
    let shown = home.finished(TENANT, sealed.field("recording")).await;
    assert_eq!(shown["state"], "complete");
    assert_eq!(home.open_ulaw(TENANT, sealed.field("recording"), "caller"), [number; 320]);
}

#[tokio::test]
async fn a_call_is_recorded() {
    let (home, mut server) = Setup::new().serve();
    assert_eq!(server.ops_get("/readyz").status, 200);
    let audio: Vec<u8> = (0..=255).cycle().take(1600).collect();
    let plan = server.plan(PATH, 1, Track::whole(audio.clone()));
    let call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    assert_eq!(call.run(|_| ()).await.unwrap().close_code, Some(1000));
    let sealed = server.wait_log("recording sealed", 1).await;
    let shown = home.finished(TENANT, sealed.field("recording")).await;
    assert_eq!(shown["state"], "complete");
    assert_eq!(home.open_ulaw(TENANT, sealed.field("recording"), "caller"), audio);
    server.stop().await;
}

#[tokio::test]
async fn a_live_call_outlasts_the_first_signal() {
    let (home, mut server) = Setup::new().serve();
    let call = begin(&server, 1).await;
    server.signal("TERM");
    server.wait_log("draining", 1).await;
    assert_eq!(server.ops_get("/readyz").body, "not ready: draining\n");
    assert_eq!(server.ops_get("/readyz").status, 503);
    assert_eq!(server.exchange(signed_upgrade(TARGET)).await.status, 503);
    assert_eq!(server.exited(), None);
    end(&home, &server, call, 1).await;
    assert!(server.exit_status().await.success());
    assert_eq!(server.logged("stopped").len(), 1);
    assert_eq!(home.recordings(TENANT).len(), 1);
}

#[tokio::test]
async fn the_second_signal_closes_live_calls() {
    let (home, mut server) = Setup::new().serve();
    server.allow("second signal: running calls are closed");
    let mut calls = Vec::new();
    for number in 1..=8 {
        calls.push(begin(&server, number).await);
    }
    server.signal("TERM");
    server.wait_log("draining", 1).await;
    server.signal("TERM");
    for call in &mut calls {
        assert_eq!(call.closed().await, Some((1001, "shutting down".to_owned())));
    }
    assert!(server.exit_status().await.success());
    let recordings = home.recordings(TENANT);
    assert_eq!(recordings.len(), 8);
    for recording in recordings {
        let shown = home.show(TENANT, &recording);
        assert_eq!((shown["state"].as_str(), shown["cause"].as_str()), (Some("partial"), Some("shutdown")));
        assert_eq!(home.open_ulaw(TENANT, &recording, "caller").len(), 160);
        assert_eq!(home.verify(TENANT, &recording)["grade"], "evidence");
    }
}

#[tokio::test]
async fn an_interrupt_closes_live_calls_at_once() {
    let (home, mut server) = Setup::new().serve();
    server.allow("calls are closed: the drain has lasted its longest");
    let mut call = begin(&server, 1).await;
    server.signal("INT");
    assert_eq!(call.closed().await.map(|(code, _)| code), Some(1001));
    assert!(server.exit_status().await.success());
    let shown = home.show(TENANT, &home.recordings(TENANT)[0]);
    assert_eq!((shown["state"].as_str(), shown["cause"].as_str()), (Some("partial"), Some("shutdown")));
}

#[tokio::test]
async fn a_stream_without_a_recording_is_told_as_well() {
    let (_home, mut server) = Setup::new().serve();
    server.allow("calls are closed: the drain has lasted its longest");
    let mut streams = Vec::new();
    for number in 1..=8 {
        let mut socket = server.open(PATH).await;
        socket.text(&greeting(number)[0]).await;
        socket.settle().await;
        streams.push(socket);
    }
    server.signal("INT");
    for stream in &mut streams {
        assert_eq!(stream.closed().await.map(|(code, _)| code), Some(1001));
    }
    assert!(server.exit_status().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_goes_on_sending_is_told_as_well() {
    let (_home, mut server) = Setup::new().serve();
    server.allow("calls are closed: the drain has lasted its longest");
    let mut streams = Vec::new();
    for number in 1..=4 {
        let mut call = begin(&server, number).await;
        streams.push(tokio::spawn(async move {
            // A provider does not stop for us; what it sends after our close frame must not undo that.
            let audio = media(&stream_id(number), 2, number);
            while call.try_send(Message::text(audio.clone())).await.is_ok() {
                if let Some(closed) = call.closed_already() {
                    return Some(closed.0);
                }
            }
            call.closed().await.map(|(code, _)| code)
        }));
    }
    server.signal("INT");
    for stream in streams {
        assert_eq!(stream.await.unwrap(), Some(1001));
    }
    assert!(server.exit_status().await.success());
}

#[tokio::test]
async fn a_drain_ends_when_it_has_lasted_its_longest() {
    let (home, mut server) = Setup::new().option("drain", "max_secs", "1").serve();
    server.allow("calls are closed: the drain has lasted its longest");
    let mut call = begin(&server, 1).await;
    server.signal("TERM");
    assert_eq!(call.closed().await.map(|(code, _)| code), Some(1001));
    assert!(server.exit_status().await.success());
    assert_eq!(home.show(TENANT, &home.recordings(TENANT)[0])["cause"], "shutdown");
}

#[tokio::test]
async fn an_idle_node_stops_at_the_first_signal() {
    let (_home, mut server) = Setup::new().serve();
    server.signal("TERM");
    assert!(server.exit_status().await.success());
}

/// Writes a handshake that another auth token has signed.
fn signed_with(token: &str) -> String {
    let signature = sign_url(token.as_bytes(), &format!("wss://media.example.com{TARGET}"));
    upgrade(TARGET, &format!("x-twilio-signature: {signature}\r\n"))
}

#[tokio::test]
async fn a_changed_tenant_counts_for_new_calls() {
    let (home, mut server) = Setup::new().serve();
    server.allow("stream handshake refused: forbidden");
    let live = begin(&server, 1).await;
    let next_token = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";
    assert_eq!(server.exchange(signed_with(next_token)).await.status, 403);
    let mut changed = home.tenant(TENANT).clone();
    changed.auth_tokens = vec![next_token.to_owned()];
    changed.limits = "max_streams = 2\nmax_starts_per_sec = 1000".to_owned();
    home.rewrite_tenant(&changed);
    // Nothing is read before it is asked for.
    assert_eq!(server.exchange(signed_with(next_token)).await.status, 403);
    server.signal("HUP");
    server.wait_log("tenants, their secrets and keys were read again", 1).await;
    assert_eq!(server.exchange(signed_upgrade(TARGET)).await.status, 403, "the old token is gone");
    let mut plan = server.plan(PATH, 2, Track::whole(vec![0xff; 160]));
    plan.signing = Signing::AuthToken(next_token.as_bytes().to_vec().into());
    let mut second = server.open_planned(plan).await;
    second.settle().await;
    assert_eq!(server.exchange(signed_with(next_token)).await.status, 429, "the new limit");
    end(&home, &server, live, 1).await;

    // A broken file changes nothing, nor does a missing one.
    server.allow("configuration cannot be used; the old one stays");
    let file = home.path().join("tenants/acme-dental.toml");
    fs::write(&file, "id = \"acme-dental\"\nstatus = \"asleep\"\n").unwrap();
    server.signal("HUP");
    let fault = server.wait_log("configuration cannot be used; the old one stays", 1).await;
    assert!(fault.text.contains("asleep"), "{}", fault.text);
    assert_eq!(server.exchange(signed_with(next_token)).await.status, 101);
    fs::remove_file(home.config()).unwrap();
    server.signal("HUP");
    server.wait_log("configuration cannot be used; the old one stays", 2).await;
    assert_eq!(server.ops_get("/readyz").status, 200);
    second.settle().await;
}

#[tokio::test]
async fn a_tenant_without_a_key_is_refused_until_it_has_one() {
    let (home, mut server) = Setup::new().serve();
    server.allow("keys cannot be used; the old configuration stays");
    server.allow("stream handshake refused: forbidden");
    home.rewrite_tenant(&TenantSetup::new("newcomer"));
    let target = "/twilio/v1/newcomer/reception";
    server.signal("HUP");
    server.wait_log("keys cannot be used; the old configuration stays", 1).await;
    assert_eq!(server.exchange(signed_upgrade(target)).await.status, 403, "nothing has changed");
    home.run_ok(&["keys", "init"]);
    server.signal("HUP");
    server.wait_log("tenants, their secrets and keys were read again", 1).await;
    assert_eq!(server.exchange(signed_upgrade(target)).await.status, 101);
}
