//! Traces, as a collector sees them: over TLS, in the form of OTLP, with nothing in them that is anybody's business, and no matter
//! of the node when the collector is in trouble.

mod collector;

use std::collections::BTreeSet;
use std::fs;

use callseal::observe::traces::words::{ATTRIBUTES, EVENTS, WORKS};
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use hyper::Method;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use crate::admin::{Asker, token};
use crate::secrets::Canaries;
use crate::support::{ACCOUNT, AUTH_TOKEN, GRANT_KEY, Server, Setup, TENANT, eventually};
use crate::webhooks::receiver::{Answer, Identity, Receiver};
use crate::webhooks::world::{SECRETS, table};
use collector::{Collector, Spans};

const NAME: &str = "Zora Quillfeather";
const PHONE: &str = "+15550142857";
const REASON: &str = "complaint of Quillfeather";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const TOKEN: &str = "Bearer a-token-of-the-collector-4929";
/// Nothing that OpenTelemetry would take from the environment changes anything.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("OTEL_TRACES_SAMPLER", "always_off"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1"),
    ("OTEL_RESOURCE_ATTRIBUTES", "owner=Quillfeather"),
    ("OTEL_SERVICE_NAME", "another"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9/"),
];

async fn call(server: &Server, number: u8) {
    let mut plan = server.plan(&format!("{TENANT}/reception"), number, Track::whole(&DEMO_CALLER[..16_000]));
    plan.parameters =
        [("name", NAME), ("phone", PHONE)].map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    assert_eq!(call.run(|_| ()).await.unwrap().close_code, Some(1000));
}

#[tokio::test]
async fn whole_traces_reach_the_collector_and_nothing_recognisable_does() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::listen(dir.path()).await;
    let identity = Identity::new(dir.path(), "receiver");
    let receiver = identity.listen(0).await;
    let hook = format!("https://localhost:{}/hooks?token=t0ken-of-the-hook", receiver.port);
    let home = collector
        .setup("sample_percent = 100")
        .option("traces", "headers", &collector.header(TOKEN))
        .option("webhook", "ca_file", &format!("{:?}", identity.ca_file.display().to_string()))
        .option("webhook", "scan_interval_secs", "1")
        .option("retention", "interval_secs", "1")
        .option("admin", "tokens_file", "\"tokens.toml\"")
        .tenant(|tenant| tenant.playback = table(dir.path(), &hook, ""))
        .write();
    let admin_token = token(&home, "operator", Some(TENANT));
    let mut server = home.serve_with(&ENVIRONMENT);
    call(&server, 1).await;
    server.stored(1).await;
    let recording = home.recordings(TENANT).remove(0);
    let link = home.grant(TENANT, &recording, &["--sub", NAME, "--reason", REASON]);
    let played = server.https().get(&link, &[]).await.unwrap();
    assert_eq!(played.status, 200);
    let asker = Asker::new(&server, &admin_token);
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let headers =
        [("x-callseal-reason", REASON), ("traceparent", parent.as_str()), ("tracestate", "who=Quillfeather")];
    let path = format!("/v1/tenants/{TENANT}/webhook/test");
    assert_eq!(asker.ask_with(Method::POST, &path, &headers, None).await.status, 200);
    // Of the end of the recording, and the one that was asked for.
    eventually("notices", || (receiver.got().len() >= 2).then_some(())).await;
    eventually("a sweep", || collector.spans().named("sweep").next().map(drop)).await;
    server.stop().await;

    let spans = collector.spans();
    let root = spans.one("stream");
    check_stream(&spans, &recording);
    check_others(&spans, &recording, played.body.len());
    check_parents_are_sent_on(&spans, &receiver);
    assert!(root.span.end_time_unix_nano > root.span.start_time_unix_nano);
    check_form(&collector);
    let canaries = canaries(&link, &admin_token);
    for request in collector.got() {
        canaries.check("a request to the collector", &request.body);
        // Numbers and times have bytes of all kinds; texts are looked at once more as such.
        canaries.check("spans", format!("{:?}", collector::decode(&request.body)).as_bytes());
    }
    assert!(collector.got().len() > 1, "spans are sent while the node runs");
}

/// What must not be seen.
fn canaries(link: &str, admin_token: &str) -> Canaries {
    let mut canaries = Canaries::new();
    let signature = link.rsplit_once("sig=").unwrap().1;
    for (name, secret) in [
        ("name", "Quillfeather"),
        ("phone number", &PHONE[2..]),
        ("reason", "complaint"),
        ("account", ACCOUNT),
        ("call", "CA0101010101"),
        ("stream", "MZ0101010101"),
        ("auth token", AUTH_TOKEN),
        ("grant key", GRANT_KEY),
        ("signature", signature),
        ("API token", admin_token),
        ("collector's token", "a-token-of-the-collector"),
        ("webhook secret", SECRETS[0]),
        ("webhook URL", "t0ken-of-the-hook"),
        ("public URL", "media.example.com"),
        ("path of the call", "/twilio/"),
        ("address", "127.0.0.1"),
    ] {
        canaries.add(name, secret.as_bytes());
    }
    canaries
}

/// The trace of a call: one stream, and its parts below it.
fn check_stream(spans: &Spans, recording: &str) {
    let stream = spans.one("stream");
    assert!(stream.span.parent_span_id.is_empty(), "a provider is no part of anybody's trace");
    assert_eq!(stream.span.kind(), SpanKind::Server);
    for (key, value) in [
        ("callseal.tenant", TENANT),
        ("callseal.route", "reception"),
        ("callseal.provider", "twilio"),
        ("callseal.recording", recording),
        ("callseal.end_cause", "stop"),
    ] {
        assert_eq!(stream.text(key), value, "{key}");
    }
    assert_eq!(stream.events(), ["connected", "started", "recording"]);
    let key = spans.one("stream.key");
    assert_eq!(key.span.parent_span_id, stream.span.span_id);
    let finish = spans.one("recording.finish");
    assert_eq!(finish.span.parent_span_id, stream.span.span_id);
    assert_eq!((finish.text("callseal.life"), finish.text("callseal.recording")), ("complete", recording));
    let upload = spans.one("segment.upload");
    assert_eq!(upload.span.parent_span_id, stream.span.span_id);
    assert!(upload.number("callseal.bytes") > 16_000 && upload.number("callseal.segment") == 0);
    for part in [&key, &finish, &upload] {
        assert_eq!(part.span.trace_id, stream.span.trace_id);
        assert_eq!(part.span.status.as_ref().unwrap().code(), StatusCode::Unset);
    }
    // The first call of a tenant finds no key made ahead.
    let wraps: Vec<_> = spans.named("key.wrap").collect();
    assert!(wraps.iter().any(|wrap| wrap.span.parent_span_id == key.span.span_id));
    assert!(wraps.iter().all(|wrap| wrap.text("callseal.provider") == "local"));
}

fn check_others(spans: &Spans, recording: &str, played: usize) {
    let playback = spans.one("playback");
    assert_eq!((playback.text("callseal.tenant"), playback.text("callseal.recording")), (TENANT, recording));
    assert_eq!(playback.number("http.response.status_code"), 200);
    assert_eq!(usize::try_from(playback.number("callseal.bytes")).unwrap(), played);
    let admin = spans.one("admin.test_webhook");
    assert_eq!(collector::hex(&admin.span.trace_id), TRACE);
    assert_eq!(collector::hex(&admin.span.parent_span_id), "b7ad6b7169203331");
    assert_eq!((admin.text("callseal.operation"), admin.text("callseal.role")), ("test_webhook", "operator"));
    assert_eq!(admin.span.trace_state, "");
    assert_eq!(admin.text("callseal.request").len(), 12);
    let sweep = spans.named("sweep").next().unwrap();
    assert_eq!((sweep.number("callseal.due"), sweep.number("callseal.failed")), (0, 0));
}

/// Whoever gets a notice can go on with the trace of its delivery, or with that of the request that wanted it.
fn check_parents_are_sent_on(spans: &Spans, receiver: &Receiver) {
    let deliveries: Vec<_> = spans.named("webhook.delivery").collect();
    assert!(!deliveries.is_empty());
    assert!(deliveries.iter().all(|delivery| delivery.number("http.response.status_code") == 200));
    let known: BTreeSet<String> = deliveries
        .iter()
        .chain(&spans.named("admin.test_webhook").collect::<Vec<_>>())
        .map(|span| {
            format!("00-{}-{}-01", collector::hex(&span.span.trace_id), collector::hex(&span.span.span_id))
        })
        .collect();
    let got = receiver.got();
    let sent: BTreeSet<String> = got.iter().map(|got| got.headers["traceparent"].clone()).collect();
    assert_eq!(sent, known);
    assert!(got.iter().all(|got| !got.headers.contains_key("tracestate")));
}

/// What the specification of OTLP asks of requests, and what we ask of ourselves.
fn check_form(collector: &Collector) {
    let got = collector.got();
    for request in &got {
        assert_eq!(request.target, "/v1/traces");
        assert_eq!(request.headers["content-type"], "application/x-protobuf");
        assert_eq!(request.headers["authorization"], TOKEN);
        assert!(request.headers["user-agent"].starts_with("callseal/"));
        for resource_spans in collector::decode(&request.body).resource_spans {
            let resource = resource_spans.resource.unwrap();
            let said: Vec<_> = resource.attributes.iter().map(|pair| pair.key.as_str()).collect();
            assert_eq!(
                BTreeSet::from_iter(said),
                BTreeSet::from(["service.name", "service.version", "service.instance.id"])
            );
            for scope_spans in resource_spans.scope_spans {
                assert_eq!(scope_spans.scope.unwrap().name, "callseal");
            }
        }
    }
    let (names, keys): (Vec<_>, Vec<_>) = (WORKS.map(|work| work.name).into(), ATTRIBUTES.into());
    for span in collector.spans().all() {
        let span = &span.span;
        assert!(
            names.iter().any(|name| span.name == *name || span.name.starts_with(&format!("{name}."))),
            "{}",
            span.name
        );
        assert!(
            span.attributes.iter().all(|pair| keys.contains(&pair.key.as_str())),
            "{:?}",
            span.attributes
        );
        assert!(span.events.iter().all(|event| EVENTS.contains(&event.name.as_str())), "{:?}", span.events);
        assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
        assert!(span.trace_id.iter().any(|byte| *byte != 0) && span.span_id.iter().any(|byte| *byte != 0));
        assert!(span.start_time_unix_nano > 0 && span.end_time_unix_nano >= span.start_time_unix_nano);
        assert_eq!((span.dropped_attributes_count, span.dropped_events_count), (0, 0));
        assert_eq!(span.status.as_ref().unwrap().message, "");
    }
}

#[tokio::test]
async fn a_request_that_is_not_to_be_traced_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::listen(dir.path()).await;
    let home =
        collector.setup("sample_percent = 0").option("admin", "tokens_file", "\"tokens.toml\"").write();
    let admin_token = token(&home, "auditor", Some(TENANT));
    let mut server = home.serve();
    call(&server, 1).await;
    server.stored(1).await;
    let asker = Asker::new(&server, &admin_token);
    let other = TRACE.replace('0', "1");
    for parent in [format!("00-{other}-b7ad6b7169203331-00"), format!("00-{TRACE}-b7ad6b7169203331-01")] {
        let path = format!("/v1/tenants/{TENANT}/recordings");
        let answer = asker.ask_with(Method::GET, &path, &[("traceparent", &parent)], None).await;
        assert_eq!(answer.status, 200);
    }
    // Whoever is not known says nothing about traces.
    let stranger = Asker::new(&server, &format!("{admin_token}x"));
    let parent = format!("00-{other}-b7ad6b7169203331-01");
    let path = format!("/v1/tenants/{TENANT}/recordings");
    server.allow("admin API refuses a token");
    assert_eq!(stranger.ask_with(Method::GET, &path, &[("traceparent", &parent)], None).await.status, 401);
    server.stop().await;
    let spans = collector.spans();
    assert_eq!(collector::hex(&spans.one("admin.list_recordings").span.trace_id), TRACE);
    assert!(spans.all().all(|span| collector::hex(&span.span.trace_id) == TRACE));
}

#[tokio::test]
async fn a_dead_collector_harms_nobody_and_is_told_of_once() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::listen(dir.path()).await;
    let (port, home) = (collector.port(), collector.setup("sample_percent = 100").write());
    drop(collector);
    let mut server = home.serve();
    server.allow("collector does not take traces");
    for number in 1..=3 {
        call(&server, number).await;
    }
    server.stored(3).await;
    let failed = "collector does not take traces; some will be dropped, calls go on";
    let line = server.wait_log(failed, 1).await;
    assert_eq!(line.field("collector"), format!("localhost:{port}"));
    let dropped = || (server.metric("traces_dropped_total{reason=\"unavailable\"}") > 0.0).then_some(());
    eventually_within_a_minute("spans to be given up", dropped).await;
    assert_eq!(server.metric("traces_exported_total"), 0.0);
    assert_eq!(server.logged(failed).len(), 1, "one line for one trouble");
    assert_eq!(home.recordings(TENANT).len(), 3);
    // Nothing is told again, and the end of the node does not wait for the collector.
    server.stop().await;
    assert_eq!(server.logged(failed).len(), 1);
}

async fn eventually_within_a_minute(what: &str, look: impl Fn() -> Option<()>) {
    let waiting = async {
        while look().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    assert!(
        tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await.is_ok(),
        "waited in vain: {what}"
    );
}

#[tokio::test]
async fn a_collector_that_says_nothing_delays_neither_calls_nor_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::listen(dir.path()).await;
    collector.receiver.always(Answer::Silent);
    let home = collector.setup("sample_percent = 100\ntimeout_ms = 60000").write();
    let mut server = home.serve();
    call(&server, 1).await;
    server.stored(1).await;
    eventually("a request to the collector", || (!collector.got().is_empty()).then_some(())).await;
    call(&server, 2).await;
    server.stored(2).await;
    let began = callseal::clock::monotonic();
    server.stop().await;
    // Two seconds for the collector, and what a busy machine takes; far from the minute that a request may take.
    assert!(callseal::clock::since(began).as_secs() < 20);
    assert_eq!(server.logged("stopped").len(), 1);
}

#[tokio::test]
async fn what_a_collector_answers_is_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let collector = Collector::listen(dir.path()).await;
    collector.receiver.next([
        Answer::Status(503),
        Answer::Status(200),
        // Three of them rejected, as protobuf.
        Answer::Body("\u{a}\u{2}\u{8}\u{3}".to_owned()),
        Answer::Status(400),
        Answer::Redirect("https://elsewhere.example/v1/traces".to_owned()),
    ]);
    let home = collector.setup("sample_percent = 100").write();
    let mut server = home.serve();
    server.allow("collector does not take traces");
    let dropped = |reason: &str| server.metric(&format!("traces_dropped_total{{reason={reason:?}}}"));
    call(&server, 1).await;
    eventually("spans to be taken", || (server.metric("traces_exported_total") > 0.0).then_some(())).await;
    let got = collector.got();
    assert_eq!(got[0].body, got[1].body, "the same again");
    assert_eq!(dropped("refused") + dropped("unavailable"), 0.0);
    server.wait_log("collector takes traces again", 1).await;
    let mut number = 1;
    // Each call makes at least one request; which spans are in which, nobody knows.
    while dropped("rejected") < 3.0 || dropped("refused") == 0.0 || collector.got().len() < 6 {
        let before = collector.got().len();
        number += 1;
        call(&server, number).await;
        eventually("another request", || (collector.got().len() > before).then_some(())).await;
        assert!(number < 20, "{}", server.metrics());
    }
    assert_eq!(dropped("rejected"), 3.0);
    assert_eq!(dropped("unavailable"), 0.0);
    server.stop().await;
    // The trouble of 503 was over before that of 400.
    assert_eq!(server.logged("collector does not take traces; some will be dropped, calls go on").len(), 2);
}

#[tokio::test]
async fn a_stranger_with_another_certificate_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (collector, other) = (Collector::listen(dir.path()).await, Identity::new(dir.path(), "other"));
    let ca_file = format!("{:?}", other.ca_file.display().to_string());
    let home = collector.setup("sample_percent = 100").option("traces", "ca_file", &ca_file).write();
    let mut server = home.serve();
    server.allow("collector does not take traces");
    call(&server, 1).await;
    let line = server.wait_log("collector does not take traces; some will be dropped, calls go on", 1).await;
    assert!(line.text.contains("cannot be reached") && line.text.contains("certificate"), "{}", line.text);
    server.stop().await;
    assert!(collector.receiver.connections() > 0 && collector.got().is_empty());
}

#[tokio::test]
async fn without_a_collector_there_is_nothing_to_see() {
    let (home, mut server) = Setup::new().serve();
    call(&server, 1).await;
    server.stored(1).await;
    assert_eq!(server.metric("traces_exported_total"), 0.0);
    assert!(server.metrics().contains("traces_dropped_total{reason=\"queue_full\"} 0"));
    server.stop().await;
    drop(home);
}

#[test]
fn the_documentation_names_what_there_is() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATIONS.md")).unwrap();
    let (_, section) =
        page.split_once("## How do I see where the time goes?").expect("the section on traces");
    let section = section.split("\n## ").next().unwrap();
    let quoted: BTreeSet<&str> = section.split('`').skip(1).step_by(2).collect();
    for name in WORKS.iter().map(|work| work.name).chain(EVENTS) {
        assert!(
            quoted.iter().any(|word| word.split(['.', '{']).next() == Some(name) || *word == name),
            "{name}"
        );
    }
    for name in ATTRIBUTES {
        assert!(quoted.contains(name), "{name}");
    }
}
