//! Calls that Vapi sends to a custom transcriber: passed on byte for byte, and recorded beside that.

use callseal::simulate::{AgentCall, AgentServer, CallError, ListenSpeech, Received, TranscriberCall};
use serde_json::{Value, json};

use super::{SECRET, channels};
use crate::support::{Home, LIMIT, Server, Setup, TENANT, TenantSetup, files_below, write_private};

const TARGET: &str = "/vapi/v1/acme-dental/words";
const AUTHENTIC: (&str, &str) = ("x-vapi-secret", SECRET);

/// A node with the route `words`, which leads to the tenant's own transcriber.
fn serve(transcriber: &AgentServer, upstream: &str, vapi: &str) -> (Home, Server) {
    let name =
        format!("callseal-test-transcriber-{}-{}.pem", std::process::id(), transcriber.address().port());
    let ca = std::env::temp_dir().join(name);
    std::fs::write(&ca, transcriber.certificate_pem()).unwrap();
    let (secret, tickets) = (ca.with_extension("secret"), ca.with_extension("tickets"));
    write_private(&secret, SECRET);
    write_private(&tickets, "an invented ticket key of more than 32 bytes");
    let [secret, tickets] = [secret, tickets].map(|path| path.display().to_string());
    let port = transcriber.address().port();
    let setup = Setup::new().option("relay", "ca_file", &format!("{:?}", ca.display().to_string())).option(
        "ingest",
        "start_timeout_ms",
        "2000",
    );
    setup
        .tenant(|tenant: &mut TenantSetup| {
            let vapi = if vapi.is_empty() {
                format!("secrets = [{{ file = {secret:?} }}]")
            } else {
                vapi.to_owned()
            };
            tenant.top = format!("[vapi]\n{vapi}\n[tickets]\nkeys = {{ t1 = {{ file = {tickets:?} }} }}\n");
            let upstream = format!("[route.upstream]\nurl = \"wss://localhost:{port}/asr\"\n{upstream}");
            let route = |more: &str| format!("provider = \"vapi-transcriber\"\n{more}{upstream}");
            tenant.routes.push(("words".to_owned(), route("")));
            tenant
                .routes
                .push(("ticketed".to_owned(), route("require_ticket = true\nrecord = \"on-consent\"\n")));
        })
        .serve()
}

async fn dial(server: &Server, target: &str, headers: &[(&str, &str)]) -> Result<TranscriberCall, CallError> {
    TranscriberCall::connect(&server.endpoint(), target, headers, &server.tls()).await
}

async fn reached(transcriber: &mut AgentServer) -> AgentCall {
    tokio::time::timeout(LIMIT, transcriber.call()).await.expect("the transcriber is dialled").unwrap()
}

async fn next(agent: &mut AgentCall) -> Received {
    tokio::time::timeout(LIMIT, agent.recv()).await.expect("something comes").unwrap()
}

async fn next_of(call: &mut TranscriberCall) -> Received {
    tokio::time::timeout(LIMIT, call.recv()).await.expect("something comes").unwrap()
}

/// Cuts audio where Vapi might: in samples, between channels, into nothing.
fn cut(audio: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut messages) = (audio, Vec::new());
    while !rest.is_empty() {
        let length = [1280, 1, 1279, 0, 2563, 637][messages.len() % 6].min(rest.len());
        let (message, after) = rest.split_at(length);
        messages.push(message.to_vec());
        rest = after;
    }
    messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_passed_on_byte_for_byte_and_recorded_sample_by_sample() {
    let mut transcriber = AgentServer::start(None).await.unwrap();
    let (home, mut server) = serve(&transcriber, "", "");
    let speech = ListenSpeech::new(10_000, 5_000);
    let mut call = dial(&server, TARGET, &[AUTHENTIC, ("origin", "https://vapi.ai")]).await.unwrap();
    let mut agent = reached(&mut transcriber).await;
    assert_eq!((agent.target.as_str(), agent.headers.contains_key("x-vapi-secret")), ("/asr", false));
    let start = TranscriberCall::start(16_000, 2);
    call.send_text(start.as_str()).await.unwrap();
    assert_eq!(next(&mut agent).await, Received::Text(start.clone()));
    let odd = r#" {"type" : "of tomorrow", "x": "\u00e9"} "#;
    call.send_text(odd).await.unwrap();
    assert_eq!(next(&mut agent).await, Received::Text(odd.to_owned()));
    for message in cut(&speech.interleaved) {
        call.send_binary(message.clone()).await.unwrap();
        assert_eq!(next(&mut agent).await, Received::Binary(message.into()));
    }
    let word =
        r#"{"type":"transcriber-response","transcription":"I am Zora Quillfeather.","channel":"customer"}"#;
    agent.send_text(word).await.unwrap();
    assert_eq!(next_of(&mut call).await, Received::Text(word.to_owned()));
    call.close(1001).await;
    assert!(matches!(next(&mut agent).await, Received::Closed { code: Some(1001), .. }));

    let recording = server.stored(1).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!(
        (&shown["state"], &shown["cause"], &shown["provider"], &shown["gaps"]),
        (&json!("complete"), &json!("stop"), &json!("vapi"), &json!([])),
        "{shown}"
    );
    assert_eq!(home.verify(TENANT, &recording)["grade"], "evidence");
    assert!(channels(&home, &recording) == speech.channels);
    server.stop().await;
    // What was understood of the call is kept nowhere, and its audio only sealed.
    let log: Vec<String> = server.log().into_iter().map(|line| line.text).collect();
    let mut places = files_below(&home.data());
    places.push(("log".into(), log.join("\n").into_bytes()));
    for (path, content) in places {
        for secret in [&b"Quillfeather"[..], SECRET.as_bytes(), &speech.channels[0][60_000..60_032]] {
            assert!(memchr::memmem::find(&content, secret).is_none(), "in {}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transcriber_that_is_dialled_again_hears_the_caller_on_the_first_channel() {
    let mut transcriber = AgentServer::start(None).await.unwrap();
    let (home, server) = serve(&transcriber, "on_loss = \"hold\"\nhold_secs = 20\n", "");
    let speech = ListenSpeech::new(10_000, 3_000);
    let mut call = dial(&server, TARGET, &[AUTHENTIC]).await.unwrap();
    let mut agent = reached(&mut transcriber).await;
    let start = TranscriberCall::start(16_000, 2);
    call.send_text(start.as_str()).await.unwrap();
    let (before, after) = speech.interleaved.split_at(40_003);
    call.send_binary(before.to_vec()).await.unwrap();
    assert_eq!(next(&mut agent).await, Received::Text(start.clone()));
    assert_eq!(next(&mut agent).await, Received::Binary(before.to_vec().into()));
    agent.reset();
    let mut agent = reached(&mut transcriber).await;
    assert_eq!(next(&mut agent).await, Received::Text(start.clone()));
    call.send_binary(after.to_vec()).await.unwrap();
    // Three bytes of a sample had passed; its last one belongs to what the first transcriber got.
    assert_eq!(next(&mut agent).await, Received::Binary(after[1..].to_vec().into()));
    call.close(1000).await;
    let recording = server.stored(1).await;
    assert!(channels(&home, &recording) == speech.channels, "the recording lacks nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transcriber_that_is_lost_or_does_not_read_gives_the_call_to_the_fallback_plan() {
    let mut transcriber = AgentServer::start(None).await.unwrap();
    let (_home, mut server) = serve(&transcriber, "", "");
    server.allow("agent lost");
    let speech = ListenSpeech::new(10_000, 6_000);
    let mut call = dial(&server, TARGET, &[AUTHENTIC]).await.unwrap();
    let agent = reached(&mut transcriber).await;
    call.send_text(TranscriberCall::start(16_000, 2)).await.unwrap();
    agent.reset();
    assert!(matches!(next_of(&mut call).await, Received::Closed { code: Some(1011), .. }));

    let mut call = dial(&server, TARGET, &[AUTHENTIC]).await.unwrap();
    let _reads_nothing = reached(&mut transcriber).await;
    call.send_text(TranscriberCall::start(48_000, 2)).await.unwrap();
    // More than all buffers on the way, and less than a fast stream: none of it may be missed, so that the end is the end.
    for _ in 0..7 {
        for message in speech.interleaved.chunks(16_000) {
            if call.send_binary(message.to_vec()).await.is_err() {
                break;
            }
        }
    }
    assert!(matches!(next_of(&mut call).await, Received::Closed { code: Some(1011 | 1008), .. }));
    server.stored(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tickets_name_the_call_and_the_consent() {
    let mut transcriber = AgentServer::start(None).await.unwrap();
    let (home, mut server) = serve(&transcriber, "", "");
    server.allow("transcriber handshake refused");
    server.allow("ticket is not taken");
    let made = ["ticket", "--tenant", TENANT, "--route", "ticketed", "--call", "call-17", "--consent"];
    let url = home.run_ok(&made);
    let target = format!("/vapi{}", url.trim().split_once("/vapi").unwrap().1);
    let speech = ListenSpeech::new(10_000, 1_000);
    let without = target.rsplit_once('/').unwrap().0;
    let refused = dial(&server, without, &[AUTHENTIC]).await.err();
    assert!(matches!(refused, Some(CallError::Refused { status: 404 })), "{refused:?}");
    let mut call = dial(&server, &target, &[AUTHENTIC]).await.unwrap();
    let _agent = reached(&mut transcriber).await;
    call.send_text(TranscriberCall::start(8_000, 2)).await.unwrap();
    call.send_binary(speech.interleaved.clone()).await.unwrap();
    call.close(1000).await;
    let recording = server.stored(1).await;
    assert_eq!(home.show(TENANT, &recording)["call"], "call-17");
    let again = dial(&server, &target, &[AUTHENTIC]).await.err();
    assert!(matches!(again, Some(CallError::Refused { status: 403 })), "{again:?}");
}

/// The cases that others have written down: `tests/vectors/vapi/vapi-custom-transcriber-reject.json`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_else_is_refused() {
    let mut transcriber = AgentServer::start(None).await.unwrap();
    let (home, mut server) = serve(&transcriber, "", "");
    let reading = tokio::spawn(async move {
        while let Some(mut reached) = transcriber.call().await {
            tokio::spawn(async move {
                while !matches!(reached.recv().await, Ok(Received::Closed { .. }) | Err(_)) {}
            });
        }
    });
    for text in ["transcriber handshake refused", "stream closed by us", "agent lost"] {
        server.allow(text);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/vapi/vapi-custom-transcriber-reject.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = file["cases"].as_array().unwrap();
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let headers = case.get("handshake_headers").unwrap_or(&file["defaults"]["handshake_headers"]);
        let headers: Vec<(String, String)> = headers.as_object().unwrap().iter().map(header).collect();
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        // A tenant of another path is unknown.
        let target = if case.get("path").is_some() { "/vapi/v1/acme-dental/unknown" } else { TARGET };
        let outcome = outcome(&server, target, &headers, &case["messages"]).await;
        let wanted = case["expect"].as_str().unwrap();
        let is_as_wanted = match name {
            // This tenant has set up a secret only, and it is right: the call is taken, and no start comes in time.
            "two-contradicting-credentials" => outcome == "1008",
            // Whichever bound is reached first: that of a call's pace, or of what waits for a transcriber.
            "faster-than-real-time" => ["1008", "1011"].contains(&outcome.as_str()),
            _ => wanted.contains(&outcome),
        };
        assert!(is_as_wanted, "{name}: {outcome}, wanted: {wanted}");
    }
    assert_eq!(cases.len(), 16);
    // Only where a second start contradicted the first was anything kept, or a message was too long after it.
    let kept = home.recordings(TENANT).len();
    assert!(kept <= 4, "{kept} recordings");
    reading.abort();
}

fn header((name, value): (&String, &Value)) -> (String, String) {
    // The secret of the fixtures is another one than that of these tests.
    let value = value.as_str().unwrap().replace("example-shared-secret-not-real", SECRET);
    (name.to_lowercase(), value)
}

/// Plays a case; answers `HTTP` and a status, the code of the close, or `open`.
async fn outcome(server: &Server, target: &str, headers: &[(&str, &str)], messages: &Value) -> String {
    let mut call = match dial(server, target, headers).await {
        Ok(call) => call,
        Err(CallError::Refused { status }) => return format!("HTTP {status}"),
        Err(error) => panic!("{error}"),
    };
    let messages = messages.as_array().unwrap();
    for message in messages {
        for message in sent(message) {
            let sent = match message {
                Received::Text(text) => call.send_text(text).await,
                Received::Binary(bytes) => call.send_binary(bytes).await,
                Received::Closed { .. } => unreachable!("nobody sends that"),
            };
            if sent.is_err() {
                break;
            }
        }
    }
    match tokio::time::timeout(std::time::Duration::from_secs(4), call.recv()).await {
        Ok(Ok(Received::Closed { code, .. })) => code.map_or("none".to_owned(), |code| code.to_string()),
        Ok(Ok(other)) => panic!("{other:?}"),
        Ok(Err(error)) => format!("{error}"),
        Err(_) => "open".to_owned(),
    }
}

/// What a message of a case stands for.
fn sent(message: &Value) -> Vec<Received> {
    let bytes =
        |text: &Value| callseal::domain::sign::decode_base64(text.as_str().unwrap().as_bytes()).unwrap();
    if let Some(audio) = message.get("binary_b64") {
        return vec![Received::Binary(bytes(audio).into())];
    }
    if let Some(length) = message.get("text_raw_bytes") {
        return vec![Received::Text("x".repeat(usize::try_from(length.as_u64().unwrap()).unwrap()))];
    }
    if let Some(length) = message.get("binary_bytes") {
        return vec![Received::Binary(vec![0; usize::try_from(length.as_u64().unwrap()).unwrap()].into())];
    }
    if let Some(repeat) = message.get("binary_repeat") {
        let count = usize::try_from(repeat["times"].as_u64().unwrap()).unwrap();
        return vec![Received::Binary(bytes(&repeat["b64"]).into()); count];
    }
    vec![Received::Text(message.to_string())]
}
