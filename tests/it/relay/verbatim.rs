//! Messages and closes are passed on as they are, and nothing goes where it does not belong.

use callseal::domain::relay_proof::Proof;
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{AgentServer, CallError, Received, Track, TwilioCall};

use super::{SECRET, connect, greeted, media, next, next_of, next_text, noise, serve};
use crate::support::{LIMIT, TENANT, eventually};

fn caller() -> Track {
    Track::whole(&DEMO_CALLER[..8_000])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_pass_byte_for_byte_in_order_both_ways_and_closes_with_their_code() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (home, server) = serve(&agent, "");
    let (mut call, mut reached) = connect(&server, &mut agent, 1, caller()).await;
    call.greet().await.unwrap();
    let stream = greeted(&mut reached).await;
    // What is said before, odd white space, escapes, and what is no message at all.
    let odd = [
        " {\"event\" :\t\"unknown\", \"x\": \"\\u00e9\\/ü\"} ".to_owned(),
        "not json".to_owned(),
        media(&stream, &noise(1, 20_000)),
        String::new(),
        "{\"event\":\"mark\"}".to_owned(),
        "ÿ".repeat(10_000),
    ];
    for text in &odd {
        reached.send_text(text.as_str()).await.unwrap();
        assert_eq!(next_of(&mut call).await, Received::Text(text.clone()));
    }
    for text in odd.iter().filter(|text| !text.contains("media")) {
        call.send_text(text.as_str()).await.unwrap();
        assert_eq!(next_text(&mut reached).await, *text);
    }
    // As many as the recorder's queue holds, should it be late.
    for number in 0..200 {
        call.send_text(format!("{{\"event\":\"x\",\"n\":{number}}}")).await.unwrap();
        reached.send_text(format!("{{\"event\":\"y\",\"n\":{number}}}")).await.unwrap();
    }
    for number in 0..200 {
        assert_eq!(next_text(&mut reached).await, format!("{{\"event\":\"x\",\"n\":{number}}}"));
        assert_eq!(next_of(&mut call).await, Received::Text(format!("{{\"event\":\"y\",\"n\":{number}}}")));
    }
    // What is no text is passed on to nobody.
    reached.send_binary(vec![1, 2, 3]).await.unwrap();
    call.send_binary(vec![1, 2, 3]).await.unwrap();
    reached.send_text("after").await.unwrap();
    assert_eq!(next_of(&mut call).await, Received::Text("after".to_owned()));
    reached.close(4_321, "good bye").await.unwrap();
    assert_eq!(
        next_of(&mut call).await,
        Received::Closed { code: Some(4_321), reason: "good bye".to_owned() }
    );
    let recording = server.stored(1).await;
    let shown = home.show(TENANT, &recording);
    assert_eq!((&shown["state"], &shown["cause"]), (&"complete".into(), &"agent-closed".into()), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_close_reaches_the_agent_with_its_code() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (_home, server) = serve(&agent, "");
    for (number, code) in [(1, 1000), (2, 1001), (3, 4_000)] {
        let (mut call, mut reached) = connect(&server, &mut agent, number, caller()).await;
        call.greet().await.unwrap();
        greeted(&mut reached).await;
        call.send_stop().await.unwrap();
        assert!(next_text(&mut reached).await.contains("stop"));
        let closing = tokio::spawn(call.close(code, "done"));
        assert_eq!(
            next(&mut reached).await,
            Received::Closed { code: Some(code), reason: "done".to_owned() }
        );
        assert_eq!(closing.await.unwrap(), Some(code));
    }
    let (mut call, mut reached) = connect(&server, &mut agent, 4, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    call.reset();
    let reason = "caller's connection was lost".to_owned();
    assert_eq!(next(&mut reached).await, Received::Closed { code: Some(1001), reason });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_knows_who_calls_and_hears_nothing_of_strangers() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (_home, mut server) = serve(&agent, "");
    let (mut call, mut reached) = connect(&server, &mut agent, 1, caller()).await;
    let header = |name: &str| reached.headers[name].to_str().unwrap().to_owned();
    assert_eq!(reached.target, "/agent?v=1");
    let (stream, timestamp) = (header("x-callseal-stream"), header("x-callseal-timestamp"));
    let proof = Proof {
        timestamp: timestamp.parse().unwrap(),
        tenant: TENANT,
        route: "agent",
        stream: &stream,
        target: "/agent?v=1",
    };
    assert_eq!(header("x-callseal-signature"), proof.signatures(&[SECRET.as_bytes()]));
    assert_eq!(
        (header("x-callseal-tenant"), header("x-callseal-route")),
        (TENANT.to_owned(), "agent".to_owned())
    );
    assert!(!reached.headers.contains_key("x-twilio-signature"));
    // A start of another account ends the call before the agent has heard a word.
    let start = call.messages().start(&[callseal::simulate::Direction::Inbound], &Default::default());
    server.allow("stream closed by us");
    call.send_text(start.replace(crate::support::ACCOUNT, "AC000000000000000000000000c0ffee99"))
        .await
        .unwrap();
    assert!(matches!(next_of(&mut call).await, Received::Closed { code: Some(1008), .. }));
    assert!(!matches!(reached.recv().await, Ok(Received::Text(_))), "nothing was passed on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_another_stream_ends_a_call() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (_home, mut server) = serve(&agent, "");
    server.allow("stream closed by us");
    let (mut call, mut reached) = connect(&server, &mut agent, 1, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    let track = caller();
    let foreign = call
        .messages()
        .media(callseal::simulate::Direction::Inbound, 102, track.base64(0).unwrap())
        .replace("\"streamSid\":\"MZ", "\"streamSid\":\"MZf");
    call.send_text(foreign).await.unwrap();
    assert!(matches!(next_of(&mut call).await, Received::Closed { code: Some(1008), .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_long_ends_a_call_and_says_so() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (home, server) = serve(&agent, "");
    let (mut call, mut reached) = connect(&server, &mut agent, 1, caller()).await;
    call.greet().await.unwrap();
    greeted(&mut reached).await;
    call.send_text("x".repeat(70_000)).await.unwrap();
    assert!(matches!(next_of(&mut call).await, Received::Closed { code: Some(1009), .. }));
    assert!(matches!(next(&mut reached).await, Received::Closed { code: Some(1001), .. }));
    let recording = server.stored(1).await;
    assert_eq!(home.show(TENANT, &recording)["cause"], "protocol-error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_does_not_read_never_makes_us_read_the_caller_late() {
    let mut agent = AgentServer::start(None).await.unwrap();
    let (_home, mut server) = serve(&agent, "");
    server.allow("agent lost");
    let (mut call, reached) = connect(&server, &mut agent, 1, caller()).await;
    call.greet().await.unwrap();
    let (track, messages) = (Track::whole(DEMO_CALLER), 60_000u64);
    // 24 MB, far more than all buffers on the way to the agent, which reads nothing.
    let sending = async {
        for number in 0..messages {
            let payload = track.base64(usize::try_from(number).unwrap() % track.chunks()).unwrap();
            let media =
                call.messages().media(callseal::simulate::Direction::Inbound, 102 + number * 20, payload);
            call.send_text(media).await.unwrap();
        }
        call.send_stop().await.unwrap();
    };
    tokio::time::timeout(LIMIT, sending).await.expect("the caller's messages are always read");
    let dropped = || {
        let metrics = server.ops_get("/metrics").body;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("relay_messages_dropped_total{direction=\"to_agent\"}"))?;
        line.rsplit(' ').next()?.parse::<f64>().ok().filter(|count| *count > 10_000.0)
    };
    eventually("dropped messages are counted", dropped).await;
    drop(reached);
    server.stored(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_without_a_valid_certificate_are_not_spoken_to() {
    let agent = AgentServer::start(None).await.unwrap();
    let impostor = AgentServer::start(None).await.unwrap();
    let other_name =
        AgentServer::listen(([127, 0, 0, 1], 0).into(), "other.example.com", None).await.unwrap();
    for (case, wrong) in [&impostor, &other_name].into_iter().enumerate() {
        let believed = if case == 0 { &agent } else { wrong };
        let port = wrong.address().port();
        let (_home, mut server) = super::serve_with(
            believed,
            "",
            crate::support::Setup::new().tenant(|tenant| {
                let lines =
                    format!("mode = \"bidirectional\"\n[route.upstream]\nurl = \"wss://localhost:{port}/\"");
                tenant.routes.push(("wrong".to_owned(), lines));
            }),
        );
        server.allow("agent was not reached");
        server.allow("agent unreachable");
        let plan = server.plan(&format!("{TENANT}/wrong"), 1, caller());
        let mut call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
        let greeted: Result<(), CallError> = call.greet().await;
        let ended = match greeted {
            Ok(()) => next_of(&mut call).await,
            Err(CallError::Closed { code, reason }) => Received::Closed { code, reason },
            Err(error) => panic!("{error}"),
        };
        assert_eq!(ended, Received::Closed { code: Some(1011), reason: "agent unreachable".to_owned() });
    }
}
