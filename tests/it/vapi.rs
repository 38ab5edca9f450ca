//! Calls of Vapi that are heard: real messages over TLS, a real listen socket with speech, and the trouble that may come.

mod hostile;
mod transcriber;
mod transport;
mod trouble;

use callseal::clock;
use callseal::domain::playback::grant::{Grant, TrackSelection};
use callseal::domain::playback::wav::Encoding;
use callseal::simulate::{AgentCall, ListenServer, ListenSpeech, Response, VapiMessages};
use hyper::Method;
use serde_json::{Value, json};

use crate::playback::target;
use crate::support::{
    GRANT_KEY, Home, LIMIT, Server, Setup, TENANT, TenantSetup, eventually, files_below, write_private,
};

const SECRET: &str = "vapi-secret-0123456789abcdef";
const CALL: &str = "01a024d9-bef8-7b44-9a10-6f2c8e51b7d0";
const EVENTS: &str = "/vapi/v1/acme-dental/calls/events";

/// A node with the route `calls`, whose calls are heard at `listen`.
fn setup(listen: &ListenServer, vapi: &str) -> Setup {
    let ca = std::env::temp_dir().join(format!(
        "callseal-test-vapi-{}-{}.pem",
        std::process::id(),
        listen.describe(CALL).authority.replace(':', "-")
    ));
    std::fs::write(&ca, listen.certificate_pem()).unwrap();
    let secret = ca.with_extension("secret");
    write_private(&secret, SECRET);
    let secret = secret.display().to_string();
    Setup::new()
        .option("vapi", "ca_file", &format!("{:?}", ca.display().to_string()))
        .option("vapi", "allow_private_hosts", "true")
        .option("log", "level", "\"debug\"")
        .tenant(|tenant: &mut TenantSetup| {
            tenant.top = format!(
                "[vapi]\nlisten_hosts = [\"localhost\"]\nsecrets = [{{ file = {secret:?} }}]\n{vapi}"
            );
            tenant.routes.push(("calls".to_owned(), "provider = \"vapi-listen\"".to_owned()));
        })
}

/// Starts a node. Tests send audio as fast as they can, which leaves its format in doubt where that takes two seconds.
fn serve(setup: Setup) -> (Home, Server) {
    let (home, mut server) = setup.serve();
    server.allow("audio does not come as its format says");
    (home, server)
}

/// Sends a body with headers.
async fn post(server: &Server, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Response {
    let body = body.into().into();
    server.https().request(Method::POST, EVENTS, headers, body).await.unwrap()
}

/// Sends a message of a call as Vapi does; it must be taken.
async fn tell(server: &Server, call: &VapiMessages, message: &Value) {
    let answer = call.post(&server.https(), EVENTS, SECRET, message).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"{}"[..]));
}

fn now_ms() -> u64 {
    clock::wall().0
}

async fn listener(listen: &mut ListenServer) -> AgentCall {
    tokio::time::timeout(LIMIT, listen.listener()).await.expect("the call is dialled").unwrap()
}

/// Sends audio in messages that are cut anywhere.
async fn say(socket: &mut AgentCall, audio: &[u8]) {
    let (mut rest, mut number) = (audio, 0);
    while !rest.is_empty() {
        number += 1;
        let (message, after) = rest.split_at([1280, 1, 1279, 0, 2563, 640][number % 6].min(rest.len()));
        socket.send_binary(message.to_vec()).await.unwrap();
        rest = after;
    }
}

/// Waits for a metric to have a value.
async fn metric(server: &Server, series: &str, value: f64) {
    eventually(&format!("{series} {value}"), || (server.metric(series) >= value).then_some(())).await;
}

fn grant(recording: &str, track: TrackSelection, format: Encoding) -> String {
    target(&Grant { track, format: Some(format), ..crate::playback::grant(recording) }, GRANT_KEY)
}

fn channels(home: &Home, recording: &str) -> [Vec<u8>; 2] {
    ["caller", "agent"].map(|track| home.open_as(TENANT, recording, track, "pcm"))
}

#[tokio::test]
async fn a_call_is_heard_recorded_and_played_sample_by_sample() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let (home, mut server) = serve(setup(&listen, ""));
    let call = listen.describe(CALL);
    let speech = ListenSpeech::new(10_000, 6_000);
    tell(&server, &call, &call.status("ringing", now_ms())).await;
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let mut socket = listener(&mut listen).await;
    assert_eq!(socket.target, format!("/{CALL}/listen"));
    assert!(!socket.headers.contains_key("authorization"));
    let start = json!({"type": "start", "encoding": "linear16", "container": "raw", "sampleRate": 16_000, "channels": 2});
    socket.send_text(start.to_string()).await.unwrap();
    socket.send_text(r#"{"type":"+12025550188"}"#).await.unwrap();
    say(&mut socket, &speech.interleaved).await;
    tell(&server, &call, &call.status("ended", now_ms())).await;
    tell(&server, &call, &call.report(now_ms())).await;
    let recording = server.stored(1).await;
    metric(&server, "vapi_calls_total{result=\"recorded\"}", 1.0).await;

    let shown = home.show(TENANT, &recording);
    // Joined while the call ran: never complete, and the gap is no loss.
    assert_eq!(
        (&shown["state"], &shown["provider"], &shown["call"]),
        (&json!("partial"), &json!("vapi"), &json!(CALL))
    );
    assert_eq!(shown["gaps"].as_array().unwrap().len(), 2, "{shown}");
    assert!(shown["gaps"].as_array().unwrap().iter().all(|gap| gap["reason"] == 1), "{shown}");
    assert_eq!(shown["parameters"]["customer_number"], VapiMessages::CUSTOMER);
    assert_eq!(shown["notes"]["ended_reason"], "customer-ended-call");
    assert_eq!(shown["notes"]["started_at"], "2026-08-21T15:04:08.311Z");
    assert!(shown["notes"]["joined_after_ms"].as_str().unwrap().parse::<u64>().unwrap() < 20_000);
    assert_eq!(server.metric("audio_lost_bytes_total{reason=\"lost_before_us\"}"), 0.0);
    assert_eq!(home.verify(TENANT, &recording)["grade"], "evidence");
    assert!(channels(&home, &recording) == speech.channels);

    let https = server.https();
    let answer = https.get(&grant(&recording, TrackSelection::Both, Encoding::Pcm16), &[]).await.unwrap();
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(answer.body[24..28], 16_000u32.to_le_bytes());
    assert!(answer.body[44..] == speech.interleaved);
    let part = [("range", "bytes=70001-70010")];
    let answer = https.get(&grant(&recording, TrackSelection::Both, Encoding::Pcm16), &part).await.unwrap();
    assert_eq!(answer.body[..], speech.interleaved[70_001 - 44..][..10]);
    let answer = https.get(&grant(&recording, TrackSelection::Both, Encoding::Ulaw), &[]).await.unwrap();
    let problem: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status.as_u16(), &problem["code"]), (400, &json!("format_unavailable")));
    server.stop().await;

    let log: Vec<String> = server.log().into_iter().map(|line| line.text).collect();
    let mut places = files_below(&home.data());
    places.push(("log".into(), log.join("\n").into_bytes()));
    for (path, content) in places {
        for secret in
            ["/listen", "/control", "presigned", "Quillfeather", "202555", SECRET, CALL, "localhost:"]
        {
            let found = memchr::memmem::find(&content, secret.as_bytes()).is_some();
            assert!(!found, "{secret} in {}", path.display());
        }
        let sample = &speech.channels[0][60_000..60_032];
        assert!(memchr::memmem::find(&content, sample).is_none(), "audio in {}", path.display());
    }
}

#[tokio::test]
async fn channels_can_be_named_and_the_public_key_is_sent() {
    let mut listen = ListenServer::start(None).await.unwrap();
    let key = std::env::temp_dir().join(format!("callseal-test-vapi-key-{}", std::process::id()));
    write_private(&key, "public-key");
    let vapi = format!(
        "listen_channels = \"assistant-first\"\nlisten_key = {{ file = {:?} }}",
        key.display().to_string()
    );
    let (home, server) = serve(setup(&listen, &vapi));
    let call = listen.describe(CALL);
    let speech = ListenSpeech::new(0, 1_000);
    tell(&server, &call, &call.status("in-progress", now_ms())).await;
    let mut socket = listener(&mut listen).await;
    assert_eq!(socket.headers["authorization"], "Bearer public-key");
    say(&mut socket, &speech.interleaved).await;
    // Vapi closes first and tells of the end later.
    socket.close(1000, "").await.unwrap();
    metric(&server, "vapi_sockets_lost_total", 1.0).await;
    tell(&server, &call, &call.status("ended", now_ms())).await;
    let recording = server.stored(1).await;
    let [caller, agent] = channels(&home, &recording);
    assert!(caller == speech.channels[1] && agent == speech.channels[0]);
    assert_eq!(server.metric("ingest_streams_ended_total{cause=\"stop\"}"), 1.0);
}
