//! Requests that are not Vapi's, URLs that lead elsewhere, and bodies that no provider writes.

use callseal::domain::sign::{encode_hex, hmac_sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn who_cannot_prove_to_be_vapi_learns_nothing() {
    let listen = ListenServer::start(None).await.unwrap();
    let hmac = std::env::temp_dir().join(format!("callseal-test-vapi-hmac-{}", std::process::id()));
    write_private(&hmac, "hmac-key");
    let file = hmac.display().to_string();
    let vapi =
        format!("bearer_tokens = [{{ file = {file:?} }}]\n[vapi.hmac]\nsecrets = [{{ file = {file:?} }}]");
    let (_home, mut server) = serve(setup(&listen, &vapi));
    server.allow("server message refused: not authentic");
    let body = listen.describe(CALL).status("ringing", now_ms()).to_string();
    let signed = |at: u64, body: &str| {
        let at = at.to_string();
        let mac = hmac_sha256(b"hmac-key", [at.as_bytes(), b".", body.as_bytes()]);
        (at, encode_hex(&mac))
    };
    let now = now_ms() / 1000;
    let (at, mac) = signed(now, &body);
    let (old_at, old_mac) = signed(now - 301, &body);
    let (_, other_mac) = signed(now, "{}");
    let cases: [(&[(&str, &str)], u16); 10] = [
        (&[("x-vapi-secret", SECRET)], 200),
        (&[("X-Vapi-Secret", SECRET)], 200),
        (&[("authorization", "Bearer hmac-key")], 200),
        (&[("x-timestamp", &at), ("x-signature", &mac)], 200),
        (&[("x-timestamp", &old_at), ("x-signature", &old_mac)], 401),
        (&[("x-timestamp", &at), ("x-signature", &other_mac)], 401),
        (&[("x-vapi-secret", "wrong")], 401),
        (&[("x-vapi-secret", SECRET), ("x-vapi-secret", SECRET)], 401),
        (&[("authorization", "Bearer wrong")], 401),
        (&[], 401),
    ];
    for (headers, status) in cases {
        let answer = post(&server, headers, body.clone()).await;
        assert_eq!(answer.status.as_u16(), status, "{headers:?}");
        if status == 401 {
            let problem: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(
                (&problem["code"], &problem["detail"]),
                (&json!("unauthorized"), &json!("unauthorized"))
            );
        }
    }
    assert_eq!(server.metric("vapi_webhooks_total{result=\"unauthorized\"}"), 6.0);
}

#[tokio::test]
async fn other_requests_are_refused_by_what_is_wrong_with_them() {
    let listen = ListenServer::start(None).await.unwrap();
    let (_home, mut server) = serve(setup(&listen, ""));
    server.allow("answer that a recorder does not have");
    let https = server.https();
    let own = [("x-vapi-secret", SECRET)];
    for (method, target, status) in [
        (Method::GET, EVENTS, 405),
        (Method::PUT, EVENTS, 405),
        (Method::POST, "/vapi/v1/acme-dental/calls/events?x=1", 400),
        (Method::POST, "/vapi/v1/nobody/calls/events", 404),
        (Method::POST, "/vapi/v1/acme-dental/nothing/events", 404),
        (Method::POST, "/vapi/v1/acme-dental/reception/events", 404),
        (Method::POST, "/vapi/v1/acme-dental/events", 404),
        (Method::POST, "/vapi/v1/ACME/calls/events", 404),
        (Method::POST, "/vapi/v1//events", 404),
        (Method::POST, "/vapi/v1/a/b/c/events", 404),
        (Method::POST, "/vapi/v1/acme-dental/calls", 405),
    ] {
        let answer = https.request(method.clone(), target, &own, Vec::new().into()).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{method} {target}");
    }
    // A stream of Twilio does not fit through it either.
    let plan = server.plan("acme-dental/calls", 1, callseal::simulate::Track::whole(vec![0xff; 160]));
    server.allow("stream handshake refused: forbidden");
    assert!(callseal::simulate::TwilioCall::connect(plan, &server.tls()).await.is_err());
    for (body, status) in [
        (Vec::new(), 400),
        (b"not json".to_vec(), 400),
        (b"{\"message\":null}".to_vec(), 400),
        (b"[".repeat(1 << 20), 400),
        (b"{\"message\":".repeat(1 << 17), 400),
        (vec![0xff; 1000], 400),
        (json!({"message": {"type": "speech-update"}}).to_string().into_bytes(), 200),
        (
            json!({"message": {"type": "a-type-of-tomorrow", "x": "y".repeat(3 << 20)}})
                .to_string()
                .into_bytes(),
            200,
        ),
        (json!({"message": {"type": "assistant-request"}}).to_string().into_bytes(), 200),
        (
            json!({"message": {"type": "status-update", "status": "in-progress", "call": {"id": 7}}})
                .to_string()
                .into_bytes(),
            400,
        ),
    ] {
        let start = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        assert_eq!(post(&server, &own, body).await.status.as_u16(), status, "{start}");
    }
    // The answer may come before all of it was sent, which not every client survives.
    let too_large = https.request(Method::POST, EVENTS, &own, vec![b' '; (4 << 20) + 1].into()).await;
    assert!(too_large.is_ok_and(|answer| answer.status.as_u16() == 413));
    assert_eq!(server.metric("vapi_webhooks_total{result=\"needs_answer\"}"), 1.0);
    assert_eq!(server.metric("vapi_webhooks_total{result=\"other\"}"), 2.0);
}

#[tokio::test]
async fn urls_that_lead_elsewhere_are_not_dialled() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let vapi = "org_ids = [\"2f6a7c10-0d4b-4b5f-9d0e-1a7b3c5d9e20\"]";
    let (home, mut server) = serve(setup(&listen, vapi));
    server.allow("listen URL is not dialled");
    server.allow("call is not heard");
    server.allow("a call of another organisation");
    let call = listen.describe(CALL);
    let port = call.authority.rsplit(':').next().unwrap().to_owned();
    let mut refused = 0.0;
    for url in [
        format!("ws://localhost:{port}/{CALL}/listen"),
        format!("wss://127.0.0.1:{port}/{CALL}/listen"),
        format!("wss://user@localhost:{port}/{CALL}/listen"),
        format!("wss://evil-localhost:{port}/{CALL}/listen"),
        format!("wss://localhost:{port}/{CALL}/transport"),
        format!("wss://localhost:{port}/01a024d9-bef8-7b44-9a10-000000000000/listen"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
    ] {
        let mut message = call.status("in-progress", now_ms());
        message["message"]["call"]["monitor"]["listenUrl"] = json!(url);
        tell(&server, &call, &message).await;
        refused += 1.0;
        metric(&server, "vapi_calls_total{result=\"refused_url\"}", refused).await;
    }
    let mut message = call.status("in-progress", now_ms());
    message["message"]["call"]["monitor"] = json!(null);
    tell(&server, &call, &message).await;
    metric(&server, "vapi_calls_total{result=\"no_listen_url\"}", 1.0).await;
    let mut message = call.status("in-progress", now_ms());
    message["message"]["call"]["orgId"] = json!("00000000-0d4b-4b5f-9d0e-1a7b3c5d9e20");
    let answer = post(&server, &[("x-vapi-secret", SECRET)], message.to_string()).await;
    assert_eq!(answer.status.as_u16(), 403);
    // None of them has spoilt it for the call itself.
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let _socket = listener(&mut listen).await;
    assert_eq!(home.recordings(TENANT), [] as [String; 0]);
}

#[tokio::test]
async fn addresses_of_this_machine_are_not_dialled_by_a_node_of_real_calls() {
    let listen = ListenServer::start(None).await.unwrap();
    let (_home, server) = serve(setup(&listen, "").without("vapi", "allow_private_hosts"));
    let call = listen.describe(CALL);
    let mut message = call.status("in-progress", now_ms());
    message["message"]["call"]["monitor"]["listenUrl"] = json!(format!("wss://localhost/{CALL}/listen"));
    tell(&server, &call, &message).await;
    metric(&server, "vapi_dials_total{result=\"not_public\"}", 1.0).await;
    assert_eq!(server.metric("vapi_dials_total{result=\"connected\"}"), 0.0);
    assert_eq!(server.metric("vapi_dials_total{result=\"unreachable\"}"), 0.0);
}

#[tokio::test]
async fn audio_beyond_any_call_ends_the_recording_and_not_the_node() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (home, mut server) = serve(setup(&listen, ""));
    server.allow("listen socket is closed");
    let call = listen.describe(CALL);
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let mut socket = listener(&mut listen).await;
    let message = vec![1; 512 * 1024];
    let flooded = async { while socket.send_binary(message.clone()).await.is_ok() {} };
    tokio::time::timeout(LIMIT, flooded).await.expect("the flood is stopped");
    let recording = server.stored(1).await;
    assert_eq!(home.show(TENANT, &recording)["state"], "partial");
    assert_eq!(server.metric("ingest_streams_ended_total{cause=\"protocol-error\"}"), 1.0);
}

#[tokio::test]
async fn texts_without_end_end_the_call_and_not_the_node() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (_home, mut server) = serve(setup(&listen, ""));
    server.allow("listen socket is closed");
    let call = listen.describe(CALL);
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let mut socket = listener(&mut listen).await;
    let flooded = async { while socket.send_text("{}").await.is_ok() {} };
    tokio::time::timeout(2 * LIMIT, flooded).await.expect("the flood is stopped");
    metric(&server, "vapi_calls_total{result=\"no_audio\"}", 1.0).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let listen = ListenServer::start(None).await.unwrap();
    let (_home, server) = serve(setup(&listen, ""));
    let mut stream = server.connect().await;
    let head = format!(
        "POST {EVENTS} HTTP/1.1\r\nhost: media.example.com\r\nx-vapi-secret: {SECRET}\r\ncontent-length: 100\r\n\r\n{{"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
    assert_eq!(server.metric("vapi_webhooks_total{result=\"timeout\"}"), 1.0);
}
