//! Sockets that break, messages in any order and number, and calls that cannot be heard.

use std::time::Duration;

use super::*;

#[tokio::test]
async fn a_lost_socket_is_dialled_again_and_what_was_missed_is_a_gap() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (home, server) = serve(setup(&listen, ""));
    let call = listen.describe(CALL);
    let (first, second) = (ListenSpeech::new(5_000, 1_500), ListenSpeech::new(20_000, 1_500));
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let mut socket = listener(&mut listen).await;
    say(&mut socket, &first.interleaved).await;
    // All of it was read before the connection breaks.
    let bytes = first.interleaved.len() as f64;
    metric(&server, "ingest_bytes_total", bytes).await;
    socket.reset();
    let mut socket = listener(&mut listen).await;
    say(&mut socket, &second.interleaved).await;
    tell(&server, &call, &call.report(now_ms())).await;
    let recording = server.stored(1).await;
    let shown = home.show(TENANT, &recording);
    let lost: Vec<_> = shown["gaps"].as_array().unwrap().iter().filter(|gap| gap["reason"] == 5).collect();
    assert_eq!(lost.len(), 2, "{shown}");
    let missing = usize::try_from(lost[0]["samples"].as_u64().unwrap()).unwrap();
    // A socket of a short life is dialled again after half a second at the least.
    assert!(missing > 16_000 / 3 && missing < 16_000 * 20, "{missing}");
    for (track, heard) in channels(&home, &recording).iter().enumerate() {
        let (before, after) = (&first.channels[track], &second.channels[track]);
        assert_eq!(heard.len(), before.len() + 2 * missing + after.len());
        assert!(heard.starts_with(before) && heard.ends_with(after));
        assert!(heard[before.len()..][..2 * missing].iter().all(|byte| *byte == 0));
    }
    assert_eq!(server.metric("audio_lost_bytes_total{reason=\"lost_before_us\"}"), (4 * missing) as f64);
}

#[tokio::test]
async fn audio_that_comes_at_half_its_pace_is_kept_and_in_doubt() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (home, server) = serve(setup(&listen, ""));
    let call = listen.describe(CALL);
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let mut socket = listener(&mut listen).await;
    let speech = ListenSpeech::new(0, 2_000);
    // One channel where two are expected.
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    for message in speech.channels[0].chunks(640) {
        pace.tick().await;
        socket.send_binary(message.to_vec()).await.unwrap();
    }
    let doubt = || (server.metric("vapi_format_in_doubt_total") > 0.0).then_some(());
    while doubt().is_none() {
        pace.tick().await;
        socket.send_binary(vec![0; 640]).await.unwrap();
    }
    tell(&server, &call, &call.report(now_ms())).await;
    let recording = server.stored(1).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!(shown["notes"]["format_in_doubt"], "true");
    // Time that has no audio is silence that the source did not send, never a loss.
    assert!(shown["gaps"].as_array().unwrap().iter().all(|gap| gap["reason"] == 1), "{shown}");
    let [first, second] = channels(&home, &recording);
    let heard: Vec<u8> =
        first.chunks_exact(2).zip(second.chunks_exact(2)).flat_map(|(a, b)| [a, b].concat()).collect();
    // Up to the first gap, which takes two seconds to be noticed.
    assert!(heard[..32_000] == speech.channels[0][..32_000]);
}

#[tokio::test]
async fn messages_in_any_order_and_number_make_one_recording() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (home, server) = serve(setup(&listen, ""));
    let over = listen.describe("01a024d9-bef8-7b44-9a10-000000000000");
    tell(&server, &over, &over.report(now_ms())).await;
    tell(&server, &over, &over.status("in-progress", now_ms())).await;
    metric(&server, "vapi_calls_total{result=\"over\"}", 1.0).await;
    let call = listen.describe(CALL);
    for _ in 0..5 {
        tell(&server, &call, &call.status("in-progress", now_ms())).await;
    }
    let mut socket = listener(&mut listen).await;
    metric(&server, "vapi_calls_total{result=\"duplicate\"}", 4.0).await;
    let speech = ListenSpeech::new(0, 500);
    say(&mut socket, &speech.interleaved).await;
    for _ in 0..20 {
        tell(&server, &call, &call.status("ended", now_ms())).await;
    }
    for _ in 0..3 {
        tell(&server, &call, &call.report(now_ms())).await;
    }
    let recording = server.stored(1).await;
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    metric(&server, "vapi_calls_total{result=\"over\"}", 2.0).await;
    assert_eq!(home.recordings(TENANT), std::slice::from_ref(&recording));
    assert!(channels(&home, &recording) == speech.channels);
    assert_eq!(server.metric("vapi_dials_total{result=\"connected\"}"), 1.0);
}

#[tokio::test]
async fn of_two_nodes_one_hears_a_call_that_both_are_told_of() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (home, server) = serve(setup(&listen, ""));
    // The same bucket, another node: its journal is elsewhere.
    let journal = home.path().join("journal-2").display().to_string();
    let other = home.serve_with(&[("CALLSEAL_JOURNAL__DIR", &journal), ("CALLSEAL_NODE", "other")]);
    let call = listen.describe(CALL);
    let message = call.status("in-progress", now_ms());
    tell(&server, &call, &message).await;
    let mut socket = listener(&mut listen).await;
    let speech = ListenSpeech::new(0, 500);
    say(&mut socket, &speech.interleaved).await;
    metric(&server, "ingest_bytes_total", speech.interleaved.len() as f64).await;
    tell(&other, &call, &message).await;
    metric(&other, "vapi_calls_total{result=\"elsewhere\"}", 1.0).await;
    tell(&server, &call, &call.report(now_ms())).await;
    let recording = server.stored(1).await;
    assert_eq!(home.recordings(TENANT), [recording]);
}

#[tokio::test]
async fn a_socket_that_refuses_is_given_up_when_the_call_ends() {
    let listen = ListenServer::start(Some(503)).await.unwrap();
    let (home, server) = serve(setup(&listen, ""));
    let call = listen.describe(CALL);
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    metric(&server, "vapi_dials_total{result=\"refused\"}", 2.0).await;
    tell(&server, &call, &call.report(now_ms())).await;
    metric(&server, "vapi_calls_total{result=\"over\"}", 1.0).await;
    assert_eq!(home.recordings(TENANT), [] as [String; 0]);
}

#[tokio::test]
async fn a_call_without_audio_makes_no_recording() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (home, server) = serve(setup(&listen, ""));
    let call = listen.describe(CALL);
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let mut socket = listener(&mut listen).await;
    socket.send_text("{}").await.unwrap();
    tell(&server, &call, &call.report(now_ms())).await;
    metric(&server, "vapi_calls_total{result=\"no_audio\"}", 1.0).await;
    assert_eq!(home.recordings(TENANT), [] as [String; 0]);
}

#[tokio::test]
async fn a_stop_closes_the_socket_and_finishes_the_recording() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (home, mut server) = serve(setup(&listen, ""));
    let call = listen.describe(CALL);
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let mut socket = listener(&mut listen).await;
    let speech = ListenSpeech::new(0, 700);
    say(&mut socket, &speech.interleaved).await;
    metric(&server, "ingest_bytes_total", speech.interleaved.len() as f64).await;
    server.allow("calls are closed: the drain has lasted its longest");
    let closed = tokio::spawn(async move { socket.recv().await });
    server.stop().await;
    let closed = closed.await.unwrap().unwrap();
    assert!(matches!(closed, callseal::simulate::Received::Closed { code: Some(1001), .. }), "{closed:?}");
    let recording = home.recordings(TENANT).remove(0);
    assert_eq!(home.show(TENANT, &recording)["state"], "partial");
    assert!(channels(&home, &recording) == speech.channels);
}

#[tokio::test]
async fn a_tenant_at_its_limit_hears_no_more() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let setup = setup(&listen, "").tenant(|tenant| tenant.limits.push_str("\nmax_streams = 1"));
    let (_home, mut server) = serve(setup);
    server.allow("call is not heard");
    let first = listen.describe(CALL);
    tell(&server, &first, &first.status("in-progress", now_ms())).await;
    let _socket = listener(&mut listen).await;
    let second = listen.describe("01a024d9-bef8-7b44-9a10-000000000002");
    tell(&server, &second, &second.status("in-progress", now_ms())).await;
    metric(&server, "vapi_calls_total{result=\"too_many_streams\"}", 1.0).await;
    // It is not taken for a call that is over.
    let third = second.status("in-progress", now_ms());
    tell(&server, &second, &third).await;
    metric(&server, "vapi_calls_total{result=\"too_many_streams\"}", 2.0).await;
}

#[tokio::test]
async fn a_node_that_drains_takes_no_new_call_and_ends_the_old_one_in_peace() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (home, mut server) = serve(setup(&listen, ""));
    let call = listen.describe(CALL);
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let mut socket = listener(&mut listen).await;
    let speech = ListenSpeech::new(0, 500);
    say(&mut socket, &speech.interleaved).await;
    assert_eq!(server.ops_request("POST", "/drain").status, 202);
    server.wait_log("draining", 1).await;
    let other = listen.describe("01a024d9-bef8-7b44-9a10-000000000002");
    let body = other.status("in-progress", now_ms()).to_string();
    let answer = post(&server, &[("x-vapi-secret", SECRET)], body).await;
    assert_eq!(answer.status.as_u16(), 503);
    tell(&server, &call, &call.report(now_ms())).await;
    let recording = server.stored(1).await;
    assert!(server.exit_status().await.success());
    assert!(channels(&home, &recording) == speech.channels);
}
