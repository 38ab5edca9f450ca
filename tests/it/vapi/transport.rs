//! Calls of Vapi's websocket transport: the tenant's client on one side, Vapi's own line on the other, and both voices recorded.

use callseal::domain::provider::vapi_webhook::SecretUrl;
use callseal::domain::ticket::{Ticket, VapiLine};
use callseal::simulate::{AgentCall, AgentServer, CallError, ListenSpeech, Received, TranscriberCall};
use serde_json::json;

use super::CALL;
use crate::support::{Home, LIMIT, Server, Setup, TENANT, TenantSetup, files_below, write_private};

const TICKET_KEY: &str = "an invented ticket key of more than 32 bytes";
const PCM: &str = "pcm_s16le:16000";
/// Bytes of a second of [`PCM`].
const SECOND: usize = 32_000;

/// A node with the routes `line` and `agreed`, whose calls go on to `vapi`.
fn setup(vapi: &AgentServer, allow_private_hosts: bool) -> Setup {
    let name = format!("callseal-test-line-{}-{}.pem", std::process::id(), vapi.address().port());
    let ca = std::env::temp_dir().join(name);
    std::fs::write(&ca, vapi.certificate_pem()).unwrap();
    let tickets = ca.with_extension("tickets");
    write_private(&tickets, TICKET_KEY);
    let tickets = tickets.display().to_string();
    Setup::new()
        .option("vapi", "ca_file", &format!("{:?}", ca.display().to_string()))
        .option("vapi", "allow_private_hosts", &allow_private_hosts.to_string())
        .option("log", "level", "\"debug\"")
        .tenant(|tenant: &mut TenantSetup| {
            tenant.top = format!(
                "[vapi]\nlisten_hosts = [\"localhost\"]\n[tickets]\nkeys = {{ t1 = {{ file = {tickets:?} }} }}\n"
            );
            let provider = "provider = \"vapi-transport\"\n";
            tenant.routes.push(("line".to_owned(), provider.to_owned()));
            tenant.routes.push(("agreed".to_owned(), format!("{provider}record = \"on-consent\"\n")));
        })
}

fn url_of(vapi: &AgentServer) -> String {
    format!("wss://localhost:{}/{CALL}/transport", vapi.address().port())
}

/// Makes a ticket as an operator does; answers the path of its URL.
fn ticket(home: &Home, url: &str, audio: &str, more: &[&str]) -> String {
    let file = home.path().join("line-url");
    write_private(&file, &format!("{url}\n"));
    let file = file.display().to_string();
    let args = ["ticket", "--tenant", TENANT, "--vapi-url-file", &file, "--vapi-audio", audio];
    let route: &[&str] = if more.contains(&"--route") { &[] } else { &["--route", "line"] };
    let made = home.run_ok(&[&args[..], route, more].concat());
    made.trim().strip_prefix(home.public_url()).unwrap().to_owned()
}

/// Seals what no operator would.
fn forged(change: impl FnOnce(&mut Ticket)) -> String {
    let now = callseal::clock::wall().secs();
    let mut ticket = Ticket {
        v: 1,
        id: "0".repeat(32),
        iat: now,
        exp: now + 60,
        route: "line".to_owned(),
        call: None,
        retention_days: None,
        consent: false,
        metadata: std::collections::BTreeMap::new(),
        vapi: None,
    };
    change(&mut ticket);
    let text = ticket.seal(&TENANT.parse().unwrap(), "t1", TICKET_KEY.as_bytes(), &[7; 32]).unwrap();
    format!("/vapi-transport/v1/{TENANT}/line/{text}")
}

async fn dial(server: &Server, target: &str) -> Result<TranscriberCall, CallError> {
    TranscriberCall::connect(&server.endpoint(), target, &[], &server.tls()).await
}

async fn reached(vapi: &mut AgentServer) -> AgentCall {
    tokio::time::timeout(LIMIT, vapi.call()).await.expect("Vapi is dialled").unwrap()
}

async fn next(vapi: &mut AgentCall) -> Received {
    tokio::time::timeout(LIMIT, vapi.recv()).await.expect("something comes").unwrap()
}

async fn next_of(call: &mut TranscriberCall) -> Received {
    tokio::time::timeout(LIMIT, call.recv()).await.expect("something comes").unwrap()
}

async fn close_code(call: &mut TranscriberCall) -> Option<u16> {
    loop {
        if let Received::Closed { code, .. } = next_of(call).await {
            return code;
        }
    }
}

/// Cuts audio where anybody might: in samples, into nothing, never longer than 20 ms of [`PCM`].
fn cut(audio: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut messages) = (audio, Vec::new());
    while !rest.is_empty() {
        let length = [640, 1, 639, 0, 563, 77][messages.len() % 6].min(rest.len());
        let (message, after) = rest.split_at(length);
        messages.push(message.to_vec());
        rest = after;
    }
    messages
}

/// The caller says something; Vapi hears it byte for byte, message by message.
async fn speak(call: &mut TranscriberCall, vapi: &mut AgentCall, audio: &[u8]) {
    for message in cut(audio) {
        call.send_binary(message.clone()).await.unwrap();
        assert_eq!(next(vapi).await, Received::Binary(message.into()));
    }
}

/// The assistant says something, at once and not in real time.
async fn answer(vapi: &mut AgentCall, call: &mut TranscriberCall, audio: &[u8]) {
    for message in audio.chunks(12_801) {
        vapi.send_binary(message.to_vec()).await.unwrap();
        assert_eq!(next_of(call).await, Received::Binary(message.to_vec().into()));
    }
}

async fn interrupt(vapi: &mut AgentCall, call: &mut TranscriberCall) {
    let interrupted = r#"{"type":"user-interrupted"}"#;
    vapi.send_text(interrupted).await.unwrap();
    assert_eq!(next_of(call).await, Received::Text(interrupted.to_owned()));
}

/// Where a part of what somebody said stands in a track.
fn find(track: &[u8], said: &[u8], part: std::ops::Range<usize>) -> usize {
    let at = memchr::memmem::find(track, &said[part.clone()]).expect("it was heard");
    at - part.start
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_passed_on_and_the_agent_is_recorded_as_it_was_heard() {
    let mut vapi = AgentServer::start(None).await.unwrap();
    let (home, mut server) = setup(&vapi, true).serve();
    let target = ticket(&home, &url_of(&vapi), PCM, &["--call", CALL]);
    let caller = ListenSpeech::new(10_000, 8_000).channels[0].clone();
    let said: Vec<u8> =
        (0..30 * SECOND).map(|at| u8::try_from((at * at / 7 + at / 256) % 251).unwrap()).collect();
    let later: Vec<u8> =
        (0..SECOND / 10).map(|at| u8::try_from(((at * 31 + at / 200) % 253) | 1).unwrap()).collect();

    let mut call = dial(&server, &target).await.unwrap();
    let mut line = reached(&mut vapi).await;
    assert_eq!(line.target, format!("/{CALL}/transport"));
    assert!(!line.headers.contains_key("authorization"));
    let odd = r#" {"type" : "of tomorrow", "x": "\u00e9"} "#;
    call.send_text(odd).await.unwrap();
    assert_eq!(next(&mut line).await, Received::Text(odd.to_owned()));
    speak(&mut call, &mut line, &caller[..SECOND]).await;
    let transcript = r#"{"type":"transcript","role":"user","transcript":"I am Zora Quillfeather."}"#;
    line.send_text(transcript).await.unwrap();
    assert_eq!(next_of(&mut call).await, Received::Text(transcript.to_owned()));
    answer(&mut line, &mut call, &said).await;
    speak(&mut call, &mut line, &caller[SECOND..2 * SECOND]).await;
    interrupt(&mut line, &mut call).await;
    speak(&mut call, &mut line, &caller[2 * SECOND..5 * SECOND]).await;
    answer(&mut line, &mut call, &later).await;
    speak(&mut call, &mut line, &caller[5 * SECOND..]).await;
    // Vapi may write at length of a long conversation.
    let long = format!(r#"{{"type":"conversation-update","x":"{}"}}"#, "y".repeat(100_000));
    line.send_text(long.as_str()).await.unwrap();
    assert_eq!(next_of(&mut call).await, Received::Text(long));
    call.close(1000).await;
    assert!(matches!(next(&mut line).await, Received::Closed { code: Some(1000), .. }));

    let recording = server.stored(1).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!(
        (&shown["state"], &shown["cause"], &shown["provider"], &shown["call"], &shown["gaps"]),
        (&json!("complete"), &json!("stop"), &json!("vapi"), &json!(CALL), &json!([])),
        "{shown}"
    );
    assert_eq!(home.verify(TENANT, &recording)["grade"], "evidence");
    let [heard, agent] = super::channels(&home, &recording);
    assert!(heard.starts_with(&caller), "{} of {}", heard.len(), caller.len());
    // It spoke after the caller's first second, was interrupted after the second one at the earliest, and long before its end.
    let began = find(&agent, &said, 0..64);
    let common = agent[began..].iter().zip(&said).take_while(|(heard, said)| heard == said).count() & !1;
    assert!(began >= SECOND, "began at {began}");
    assert!(began + common >= 2 * SECOND && common < said.len(), "from {began} on {common} bytes");
    let began_later = find(&agent, &later, 0..later.len());
    assert!(began_later >= 5 * SECOND && began_later > began + common, "{began_later}");
    assert!(agent[..began].iter().all(|byte| *byte == 0));
    assert!(agent[began + common..began_later].iter().all(|byte| *byte == 0), "interrupted is not heard");
    server.stop().await;
    nothing_is_told(&home, &server, &target, &caller[60_000..60_032]);
}

/// Nothing of the texts, no line, no ticket and no sample is kept or logged.
fn nothing_is_told(home: &Home, server: &Server, target: &str, sample: &[u8]) {
    let log: Vec<String> = server.log().into_iter().map(|line| line.text).collect();
    let mut places = files_below(&home.data());
    places.push(("log".into(), log.join("\n").into_bytes()));
    let ticket = target.rsplit_once("t1.").unwrap().1;
    let secrets = [b"Quillfeather".as_slice(), b"/transport", CALL.as_bytes(), ticket.as_bytes(), sample];
    for (path, content) in places {
        for secret in secrets {
            let found = memchr::memmem::find(&content, secret).is_some();
            assert!(!found, "{} in {}", String::from_utf8_lossy(secret), path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mulaw_is_kept_as_it_is_and_vapi_may_end_the_call() {
    let mut vapi = AgentServer::start(None).await.unwrap();
    let (home, server) = setup(&vapi, true).serve();
    let target = ticket(&home, &url_of(&vapi), "mulaw:8000", &["--route", "agreed", "--consent"]);
    let caller: Vec<u8> = (0..16_000u32).map(|at| u8::try_from(at * 7 % 251).unwrap()).collect();
    let greeting: Vec<u8> = (0..800u32).map(|at| u8::try_from(at * 13 % 249).unwrap()).collect();
    let mut call = dial(&server, &target).await.unwrap();
    let mut line = reached(&mut vapi).await;
    answer(&mut line, &mut call, &greeting).await;
    for message in caller.chunks(160) {
        call.send_binary(message.to_vec()).await.unwrap();
        assert_eq!(next(&mut line).await, Received::Binary(message.to_vec().into()));
    }
    line.close(1000, "done").await.unwrap();
    assert_eq!(close_code(&mut call).await, Some(1000));
    let recording = server.stored(1).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!((&shown["state"], &shown["cause"]), (&json!("complete"), &json!("agent-closed")), "{shown}");
    assert!(home.open_ulaw(TENANT, &recording, "caller").starts_with(&caller));
    let agent = home.open_ulaw(TENANT, &recording, "agent");
    find(&agent, &greeting, 0..greeting.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_consent_a_call_goes_on_unrecorded() {
    let mut vapi = AgentServer::start(None).await.unwrap();
    let (home, server) = setup(&vapi, true).serve();
    let target = ticket(&home, &url_of(&vapi), PCM, &["--route", "agreed"]);
    let mut call = dial(&server, &target).await.unwrap();
    let mut line = reached(&mut vapi).await;
    speak(&mut call, &mut line, &[1; 1280]).await;
    answer(&mut line, &mut call, &[2; 1280]).await;
    call.close(1000).await;
    assert!(matches!(next(&mut line).await, Received::Closed { code: Some(1000), .. }));
    super::metric(&server, "streams_without_consent_total", 1.0).await;
    assert!(home.recordings(TENANT).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_good_ticket_opens_a_line_and_only_once() {
    let mut vapi = AgentServer::start(None).await.unwrap();
    let (home, mut server) = setup(&vapi, true).serve();
    for text in
        ["transport handshake refused", "ticket is not taken", "Vapi's URL in a ticket is not dialled"]
    {
        server.allow(text);
    }
    let url = url_of(&vapi);
    let good = ticket(&home, &url, PCM, &[]);
    let line = |url: &str| Some(VapiLine { url: SecretUrl::new(url), audio: PCM.parse().unwrap() });
    let (path, text) = good.rsplit_once('/').unwrap();
    let mut tampered = text.to_owned().into_bytes();
    tampered[20] = if tampered[20] == b'A' { b'B' } else { b'A' };
    let elsewhere = format!("wss://evil.test/{CALL}/transport");
    let other = url.replace("01a024d9", "01a024d8");
    let refused = [
        ("none", path.to_owned()),
        ("an empty one", format!("{path}/")),
        ("more behind it", format!("{good}/x")),
        ("tampered with", format!("{path}/{}", String::from_utf8(tampered).unwrap())),
        ("of another route", good.replace("/line/", "/agreed/")),
        ("a route of another provider", good.replace("/line/", "/reception/")),
        ("of another tenant", good.replace(TENANT, "another")),
        (
            "expired",
            forged(|ticket| {
                ticket.vapi = line(&url);
                (ticket.iat, ticket.exp) = (1_000, 1_060);
            }),
        ),
        ("without a line", forged(|_| {})),
        ("a line elsewhere", forged(|ticket| ticket.vapi = line(&elsewhere))),
        ("a listen socket", forged(|ticket| ticket.vapi = line(&url.replace("/transport", "/listen")))),
        (
            "of another call",
            forged(|ticket| {
                ticket.vapi = line(&other);
                ticket.call = Some(CALL.to_owned());
            }),
        ),
    ];
    for (what, target) in refused {
        let outcome = dial(&server, &target).await.err();
        assert!(matches!(outcome, Some(CallError::Refused { status: 403 })), "{what}: {outcome:?}");
    }
    let origin = [("origin", "https://app.example.com")];
    let page = TranscriberCall::connect(&server.endpoint(), &good, &origin, &server.tls()).await.err();
    assert!(matches!(page, Some(CallError::Refused { status: 403 })), "{page:?}");
    // None of it has used the good one, and nobody was dialled.
    let call = dial(&server, &good).await.unwrap();
    let mut reached = reached(&mut vapi).await;
    let again = dial(&server, &good).await.err();
    assert!(matches!(again, Some(CallError::Refused { status: 403 })), "{again:?}");
    call.close(1000).await;
    assert!(matches!(next(&mut reached).await, Received::Closed { code: Some(1000), .. }));
    assert!(home.recordings(TENANT).is_empty(), "nobody has said anything");
}

#[tokio::test]
async fn a_ticket_of_a_line_is_made_from_what_vapi_has_answered_only() {
    let vapi = AgentServer::start(None).await.unwrap();
    let home = setup(&vapi, true).write();
    let url = url_of(&vapi);
    let make =
        |more: &[&str]| home.run(&[&["ticket", "--tenant", TENANT, "--route", "line"][..], more].concat());
    assert_eq!(make(&["--vapi-url", &url, "--vapi-audio", PCM]).code, Some(0));
    let from_stdin =
        ["ticket", "--tenant", TENANT, "--route", "line", "--vapi-url", "-", "--vapi-audio", PCM];
    let made = home.run_with_input(&from_stdin, &format!("{url}\n"));
    assert_eq!(made.code, Some(0), "{}", made.err);
    assert!(!made.out.contains(CALL), "it is sealed");
    let elsewhere = format!("wss://api.vapi.ai/{CALL}/transport");
    for (wanted, more) in [
        ("--vapi-url", &[][..]),
        ("--vapi-url", &["--vapi-audio", PCM]),
        ("--vapi-audio", &["--vapi-url", &url]),
        ("pcm_s16le:RATE", &["--vapi-url", &url, "--vapi-audio", "opus:48000"]),
        ("its host", &["--vapi-url", &elsewhere, "--vapi-audio", PCM]),
        ("its call", &["--vapi-url", &url, "--vapi-audio", PCM, "--call", "CA1"]),
    ] {
        let ran = make(more);
        assert_ne!(ran.code, Some(0), "{more:?}");
        assert!(ran.err.contains(wanted) && !ran.err.contains(CALL), "{more:?}: {}", ran.err);
    }
    let of_twilio =
        ["ticket", "--tenant", TENANT, "--route", "reception", "--vapi-url", &url, "--vapi-audio", PCM];
    let ran = home.run(&of_twilio);
    assert!(ran.code != Some(0) && ran.err.contains("vapi-transport"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_ends_with_1011_where_vapi_refuses_or_is_lost() {
    let refusing = AgentServer::start(Some(403)).await.unwrap();
    let (home, mut server) = setup(&refusing, true).serve();
    for text in ["agent was not reached", "agent unreachable"] {
        server.allow(text);
    }
    let mut call = dial(&server, &ticket(&home, &url_of(&refusing), PCM, &[])).await.unwrap();
    call.send_binary(vec![1; 640]).await.unwrap();
    assert_eq!(close_code(&mut call).await, Some(1011));
    drop(server);

    let mut vapi = AgentServer::start(None).await.unwrap();
    let (home, mut server) = setup(&vapi, true).serve();
    server.allow("agent lost");
    for is_reset in [true, false] {
        let mut call = dial(&server, &ticket(&home, &url_of(&vapi), PCM, &[])).await.unwrap();
        let mut line = reached(&mut vapi).await;
        speak(&mut call, &mut line, &[1; 6400]).await;
        if is_reset {
            line.reset();
        } else {
            line.close(1012, "restart").await.unwrap();
        }
        assert_eq!(close_code(&mut call).await, Some(1011));
    }
    let recording = server.stored(2).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!((&shown["state"], &shown["cause"]), (&json!("partial"), &json!("agent-lost")), "{shown}");
    assert_eq!(home.open_as(TENANT, &recording, "caller", "pcm"), [1; 6400]);
    assert!(tokio::time::timeout(std::time::Duration::ZERO, vapi.call()).await.is_err(), "dialled once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_of_this_machine_is_dialled_for_a_ticket() {
    let vapi = AgentServer::start(None).await.unwrap();
    let (home, mut server) = setup(&vapi, false).serve();
    server.allow("agent was not reached");
    server.allow("agent unreachable");
    let mut call =
        dial(&server, &ticket(&home, &format!("wss://localhost/{CALL}/transport"), PCM, &[])).await.unwrap();
    assert_eq!(close_code(&mut call).await, Some(1011));
    super::metric(&server, "relay_dials_total{result=\"not_public\"}", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_beyond_its_bounds_is_closed() {
    let mut vapi = AgentServer::start(None).await.unwrap();
    let (home, mut server) = setup(&vapi, true).serve();
    server.allow("stream closed by us");
    for (what, wanted) in [("a long text", 1009), ("a long message", 1009), ("too fast", 1008)] {
        let mut call = dial(&server, &ticket(&home, &url_of(&vapi), PCM, &[])).await.unwrap();
        let mut line = reached(&mut vapi).await;
        match what {
            "a long text" => call.send_text("x".repeat(65_537)).await.unwrap(),
            "a long message" => drop(call.send_binary(vec![0; (1 << 20) + 1]).await),
            _ => {
                // Half a second each, 30 in all; Vapi has read every one before the next, so that nothing waits for it.
                for _ in 0..60 {
                    let sent = call.send_binary(vec![0; SECOND / 2]).await;
                    if sent.is_err() || !matches!(next(&mut line).await, Received::Binary(_)) {
                        break;
                    }
                }
            }
        }
        assert_eq!(close_code(&mut call).await, Some(wanted), "{what}");
    }
}
