//! Who is let in: websocket handshakes and status callbacks as bytes on the wire, and what the answers say.

use std::fs;

use callseal::domain::provider::twilio_signature::{
    SignatureHeaders, TwilioSecrets, parse_form, sign_url, verify_handshake,
};
use callseal::simulate::{CallError, Track, TwilioCall};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::reader::repository;
use crate::support::wire::{self, Answer, signature_of, signed_upgrade, upgrade};
use crate::support::{AUTH_TOKEN, Home, Server, Setup, TenantSetup, eventually};

const PATH: &str = "/twilio/v1/acme-dental/reception";
/// What the server says of every handshake that it refuses for its signature, tenant or route.
const REFUSED: &str = "stream handshake refused: forbidden";

fn vectors() -> Value {
    let text = fs::read_to_string(repository("tests/vectors/twilio-signatures.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn pairs(value: &Value) -> Vec<(String, String)> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned())).collect()
}

/// Every answer, whatever it says, tells browsers the same.
fn check_common_headers(answer: &Answer) {
    for (name, value) in [
        ("strict-transport-security", "max-age=63072000; includeSubDomains; preload"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
    ] {
        assert_eq!(answer.header(name), value, "{name} of {answer:?}");
    }
    assert!(answer.header("cache-control").contains("no-store"), "{answer:?}");
}

/// Serves what a vector expects to be configured. Tenants are more than one, so that paths can be mixed up.
fn serve_for(vector: &Value) -> (Home, Server) {
    let (tokens, shared_keys) = (texts(&vector["tokens"]), pairs(&vector["shared_keys"]));
    let configure = |tenant: &mut TenantSetup| {
        (tenant.auth_tokens, tenant.shared_keys) = (tokens.clone(), shared_keys.clone());
    };
    let mut other = TenantSetup::new("other-tenant");
    configure(&mut other);
    let base = vector["public_bases"][0].as_str().unwrap();
    let (home, mut server) = Setup::new().public_url(base).tenant(configure).add_tenant(other).serve();
    server.allow(REFUSED);
    (home, server)
}

#[tokio::test]
async fn every_recorded_handshake_gets_its_status() {
    let vectors = vectors();
    let mut servers: Vec<(Value, Home, Server)> = Vec::new();
    let (mut sent, mut accepted) = (0, 0);
    for vector in vectors["handshakes"].as_array().unwrap() {
        let request = vector["request"].as_str().unwrap();
        if request.starts_with("GET / ") {
            continue;
        }
        let key = serde_json::json!([vector["public_bases"], vector["tokens"], vector["shared_keys"]]);
        if !servers.iter().any(|(configured, ..)| *configured == key) {
            let (home, server) = serve_for(vector);
            servers.push((key.clone(), home, server));
        }
        let (.., server) = servers.iter().find(|(configured, ..)| *configured == key).unwrap();
        let answer = server.exchange(request).await;
        assert_eq!(answer.status.to_string(), vector["expect"].as_str().unwrap(), "{}", vector["id"]);
        check_common_headers(&answer);
        if answer.status == 101 {
            accepted += 1;
            assert_eq!(answer.header("sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
            assert_eq!(answer.header("sec-websocket-extensions"), "");
            assert_eq!(answer.header("sec-websocket-protocol"), "");
        }
        sent += 1;
    }
    assert_eq!((sent, accepted), (21, 9));
}

/// The vector of a stream at the root of a host. No stream of ours has such a URL, because the path names the tenant,
/// and `/` is a 404 to everybody; so only the check of the signature can be asked.
#[tokio::test]
async fn a_stream_at_the_root_is_signed_without_a_path() {
    let vectors = vectors();
    let vector = vectors["handshakes"].as_array().unwrap().iter().find(|v| v["id"] == "ok-root").unwrap();
    let request = vector["request"].as_str().unwrap();
    let signature = request.lines().find_map(|line| line.strip_prefix("x-twilio-signature: ")).unwrap();
    let secrets = TwilioSecrets {
        auth_tokens: &[AUTH_TOKEN.as_bytes()],
        shared_keys: &|_| None,
        require_shared_key: false,
    };
    let headers = SignatureHeaders { signatures: &[signature.as_bytes()], settings: &[] };
    assert!(verify_handshake(&secrets, "wss://media.example.com", "/", headers).is_ok());

    let (_home, server) = serve_for(vector);
    let answer = server.exchange(request).await;
    assert_eq!(answer.status, 404);
    check_common_headers(&answer);
}

#[tokio::test]
async fn every_refusal_looks_the_same() {
    let mut suspended = TenantSetup::new("suspended");
    suspended.top = "status = \"suspended\"".to_owned();
    let (_home, mut server) = Setup::new().add_tenant(suspended).serve();
    server.allow(REFUSED);
    server.allow("ticket is not taken");
    server.allow("call refused: its tenant takes none");
    let other = sign_url(b"another token", &format!("wss://media.example.com{PATH}"));
    let requests = [
        ("another signature", upgrade(PATH, &format!("x-twilio-signature: {other}\r\n"))),
        ("no signature", upgrade(PATH, "")),
        ("not base64", upgrade(PATH, "x-twilio-signature: ?\r\n")),
        ("two signatures", upgrade(PATH, &signature_of(PATH).repeat(2))),
        ("no such tenant", signed_upgrade("/twilio/v1/nobody/reception")),
        ("no such route", signed_upgrade("/twilio/v1/acme-dental/nowhere")),
        ("no tenant at all", signed_upgrade("/twilio/v1/")),
        ("a tenant that cannot exist", signed_upgrade("/twilio/v1/Acme%20Dental/reception")),
        ("a suspended tenant", signed_upgrade("/twilio/v1/suspended/reception")),
        ("one segment too many", signed_upgrade("/twilio/v1/acme-dental/reception/ticket")),
        ("two segments too many", signed_upgrade("/twilio/v1/acme-dental/reception/ticket/more")),
        ("the path of the callback", signed_upgrade("/twilio/v1/acme-dental/reception/status")),
        ("a path up the tree", signed_upgrade("/twilio/v1/nobody/../acme-dental/reception")),
        ("a page of somebody's", with_line(&signed_upgrade(PATH), "Origin: https://x.example")),
    ];
    let mut first: Option<Answer> = None;
    for (what, request) in requests {
        let answer = server.exchange(request).await;
        assert_eq!(answer.status, 403, "{what}");
        check_common_headers(&answer);
        let first = first.get_or_insert_with(|| answer.clone());
        assert_eq!(answer.headers, first.headers, "{what}");
        assert_eq!(answer.body_without_id(), first.body_without_id(), "{what}");
    }
    // The same bytes but for what was wrong with them.
    assert_eq!(server.exchange(signed_upgrade(PATH)).await.status, 101);
    assert!(server.log().iter().all(|line| !line.text.contains(&other)));
}

/// Puts a line at the end of a request's head.
fn with_line(request: &str, line: &str) -> String {
    format!("{}{line}\r\n\r\n", request.strip_suffix("\r\n").unwrap())
}

#[tokio::test]
async fn the_form_is_checked_before_the_signature() {
    let (_home, server) = Setup::new().serve();
    let plain = |method: &str, target: &str| {
        format!("{method} {target} HTTP/1.1\r\nHost: media.example.com\r\nContent-Length: 0\r\n\r\n")
    };
    let signed = signed_upgrade(PATH);
    let requests = [
        (405, plain("POST", PATH)),
        (405, plain("PUT", PATH)),
        (405, plain("POST", "/twilio/v1/nobody/reception")),
        (400, signed.replacen(PATH, &format!("{PATH}?x=1"), 1)),
        (400, signed.replacen(PATH, &format!("{PATH}?"), 1)),
        (400, plain("POST", &format!("{PATH}/status?x=1"))),
        (426, plain("GET", PATH)),
        (426, plain("GET", "/twilio/v1/nobody/reception")),
        (426, signed.replacen("Version: 13", "Version: 8", 1)),
        (426, signed.replacen("Upgrade: websocket", "Upgrade: h2c", 1)),
        (426, signed.replacen("Connection: Upgrade", "Connection: keep-alive", 1)),
        (426, signed.replacen("dGhlIHNhbXBsZSBub25jZQ==", "short", 1)),
        (404, plain("GET", "/")),
        (404, plain("GET", "/twilio/v2/acme-dental")),
        (404, plain("GET", "/metrics")),
        (404, plain("GET", "/readyz")),
        (404, plain("POST", "/drain")),
        (405, plain("POST", "/healthz")),
        (200, plain("GET", "/healthz")),
        (404, plain("GET", "/play/")),
        (405, plain("DELETE", "/play/acme-dental/01890000000000000000000000000000.wav")),
    ];
    for (status, request) in requests {
        let answer = server.exchange(&request).await;
        assert_eq!(answer.status, status, "{request}");
        check_common_headers(&answer);
        if status >= 400 {
            assert_eq!(answer.header("content-type"), "application/problem+json", "{request}");
            assert_eq!(answer.body_without_id()["status"], status);
        }
    }
}

/// The one exception to the common headers: what cannot be read as a request never gets to us; the library answers.
#[tokio::test]
async fn what_is_no_request_gets_a_bare_refusal() {
    let (_home, server) = Setup::new().serve();
    let long = "y".repeat(20_000);
    for (status, request) in [
        (400, "GARBAGE\r\n\r\n".to_owned()),
        (400, "GET / HTTP/1.1\r\nHost: media.example.com\r\nX: \x01\r\n\r\n".to_owned()),
        (431, format!("GET / HTTP/1.1\r\nHost: media.example.com\r\nX: {long}\r\n\r\n")),
        (431, format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(120))),
    ] {
        let answer = server.exchange(&request).await;
        assert_eq!((answer.status, answer.header("connection")), (status, "close"));
        assert_eq!(answer.body, "");
    }
}

#[tokio::test]
async fn there_are_no_more_connections_than_allowed() {
    let (_home, server) = Setup::new().option("ingest", "max_connections", "1").serve();
    let mut stream = server.open("acme-dental/reception").await;
    let mut one_too_many = TcpStream::connect(server.public()).await.unwrap();
    assert_eq!(wire::read_to_end(&mut one_too_many).await, b"");
    assert_eq!(server.metric(r#"ingest_handshakes_total{status="no_place"}"#), 1.0);
    // The stream keeps its place for as long as it lives, not only until it is a websocket.
    stream.settle().await;
    assert_eq!(stream.close(Some(1000)).await, Some(1000));
    let free = || (server.metric("ingest_connections") == 0.0).then_some(());
    eventually("a free place", free).await;
    let mut status = None;
    while status.is_none() {
        let connected = server.tls().connect(&server.endpoint()).await;
        if let Ok(mut stream) = connected {
            status = Some(wire::exchange(&mut stream, signed_upgrade(PATH)).await.status);
        }
    }
    assert_eq!(status, Some(101));
}

#[tokio::test]
async fn a_tenant_has_no_more_streams_than_it_may() {
    let limits = "max_streams = 2\nmax_starts_per_sec = 1000".to_owned();
    let (_home, server) =
        Setup::new().tenant(|t| t.limits = limits).add_tenant(TenantSetup::new("another")).serve();
    let mut first = server.connect().await;
    assert_eq!(wire::exchange(&mut first, signed_upgrade(PATH)).await.status, 101);
    let mut second = server.connect().await;
    assert_eq!(wire::exchange(&mut second, signed_upgrade(PATH)).await.status, 101);
    let third = server.exchange(signed_upgrade(PATH)).await;
    assert_eq!((third.status, third.body_without_id()["code"].as_str()), (429, Some("too_many_streams")));
    check_common_headers(&third);
    let another = server.exchange(signed_upgrade("/twilio/v1/another/reception")).await;
    assert_eq!(another.status, 101, "tenants do not share");
    // A place is free again when a stream has ended, and only then.
    drop(first);
    let mut status = 429;
    while status == 429 {
        status = server.exchange(signed_upgrade(PATH)).await.status;
    }
    assert_eq!(status, 101);
}

#[tokio::test]
async fn a_tenant_starts_no_faster_than_it_may() {
    let limits = "max_starts_per_sec = 2".to_owned();
    let (_home, server) = Setup::new().tenant(|t| t.limits = limits).serve();
    // Within less than a second, unless the machine stands still: then a few more are let in.
    let mut refused = None;
    for _ in 0..50 {
        let answer = server.exchange(signed_upgrade(PATH)).await;
        if answer.status == 429 {
            refused = Some(answer);
            break;
        }
        assert_eq!(answer.status, 101);
    }
    let refused = refused.expect("a refusal");
    assert_eq!(refused.body_without_id()["code"], "too_many_starts");
    check_common_headers(&refused);
    let mut status = 429;
    while status == 429 {
        status = server.exchange(signed_upgrade(PATH)).await.status;
    }
    assert_eq!(status, 101, "a second later");
}

#[tokio::test]
async fn a_draining_node_takes_no_new_call() {
    let (_home, server) = Setup::new().serve();
    let plan = server.plan("acme-dental/reception", 1, Track::whole(vec![0xff; 160]));
    let mut call = TwilioCall::connect(plan.clone(), &server.tls()).await.unwrap();
    call.greet().await.unwrap();
    server.wait_log("recording begins", 1).await;
    assert_eq!(server.ops_request("POST", "/drain").status, 202);
    let answer = server.exchange(signed_upgrade(PATH)).await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "2"));
    check_common_headers(&answer);
    let refused = TwilioCall::connect(plan, &server.tls()).await;
    assert!(matches!(refused, Err(CallError::Refused { status: 503 })));
    assert_eq!(server.ops_get("/readyz").status, 503);
    assert_eq!(server.ops_get("/healthz").status, 200, "draining is no illness");
    call.send_stop().await.unwrap();
    assert_eq!(call.close(1000, "").await, Some(1000));
}

/// Signs a callback as Twilio does: the URL, then names and values in the order of the names.
fn sign_callback(url: &str, body: &str) -> String {
    let mut form = parse_form(body.as_bytes()).unwrap();
    form.sort();
    let form: String = form.iter().map(|(name, value)| format!("{name}{value}")).collect();
    sign_url(AUTH_TOKEN.as_bytes(), &format!("{url}{form}"))
}

fn callback(target: &str, signature: &str, body: &str) -> String {
    format!(
        "POST {target} HTTP/1.1\r\nHost: media.example.com\r\nX-Twilio-Signature: {signature}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn status_callbacks_are_believed_when_they_are_signed() {
    let (_home, mut server) = Setup::new().serve();
    server.allow("Twilio reports a stream error");
    let target = format!("{PATH}/status");
    let url = format!("https://media.example.com{target}");
    let vectors = vectors();
    for vector in vectors["status_callbacks"].as_array().unwrap() {
        let (body, given) = (vector["body"].as_str().unwrap(), vector["signature"].as_str().unwrap());
        // The vectors were signed for another path, which shows that the helper above signs as Twilio does.
        let theirs = vector["url"].as_str().unwrap();
        let is_good = vector["expect"] == "204";
        assert_eq!(sign_callback(theirs, body) == given, is_good, "{vector}");
        // What was changed after signing is changed after signing here, too.
        let signed = if is_good { body.to_owned() } else { format!("{body}-before-the-change") };
        let answer = server.exchange(callback(&target, &sign_callback(&url, &signed), body)).await;
        assert_eq!(answer.status.to_string(), vector["expect"].as_str().unwrap(), "{vector}");
        check_common_headers(&answer);
        let elsewhere = server.exchange(callback(&target, given, body)).await;
        assert_eq!(elsewhere.status, 403, "signed for another URL");
        check_common_headers(&elsewhere);
    }
    server.wait_log("Twilio reports a stream error", 2).await;
    assert_eq!(server.logged("Twilio reports a stream error").len(), 2, "and no more");
}

#[tokio::test]
async fn odd_callbacks_are_refused() {
    let (_home, server) = Setup::new().serve();
    let target = format!("{PATH}/status");
    let sign = |target: &str, body: &str| sign_callback(&format!("https://media.example.com{target}"), body);
    let wss = sign_url(AUTH_TOKEN.as_bytes(), &format!("wss://media.example.com{target}StreamEventx"));
    let body = "StreamEvent=x";
    let unknown = "/twilio/v1/nobody/reception/status";
    let nowhere = "/twilio/v1/acme-dental/nowhere/status";
    let large = format!("a={}", "x".repeat(65 * 1024));
    for (status, request) in [
        (204, callback(&target, &sign(&target, body), body)),
        (403, callback(&target, &wss, body)),
        (403, callback(&target, "", body)),
        (403, callback(unknown, &sign(unknown, body), body)),
        (403, callback(nowhere, &sign(nowhere, body), body)),
        (413, callback(&target, &wss, &large)),
        (400, callback(&target, &wss, "a=%zz")),
    ] {
        let answer = server.exchange(&request).await;
        assert_eq!(answer.status, status, "{}", request.get(..300).unwrap_or(&request));
        check_common_headers(&answer);
    }
}
