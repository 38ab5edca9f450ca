use std::sync::{Arc, Mutex};

use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::handshake::server as upgrade;

use futures_util::StreamExt;

use super::*;
use crate::domain::provider::Event;
use crate::domain::provider::twilio::TwilioDecoder;
use crate::domain::provider::twilio_signature::{SignatureHeaders, TwilioSecrets, verify_handshake};
use crate::simulate::messages::CallIds;
use crate::simulate::speech::{CHUNK_BYTES, Track};
use crate::simulate::test_server::serve_one;
use crate::simulate::tls::Endpoint;

const ACCOUNT: &str = "AC000000000000000000000000c0ffee01";
const TARGET: &str = "/twilio/v1/acme-dental/reception";
const TOKEN: &[u8] = b"f1e2d3c4b5a6978800112233445566aa";

type Server = WebSocketStream<tokio_rustls::server::TlsStream<TcpStream>>;

/// What a server saw: the handshake's headers, every message, and how it ended.
struct Seen {
    headers: Vec<(String, String)>,
    texts: Vec<String>,
    end: Result<Option<u16>, tungstenite::Error>,
}

async fn watch(stream: tokio_rustls::server::TlsStream<TcpStream>) -> Seen {
    let headers = Arc::new(Mutex::new(Vec::new()));
    let seen_headers = Arc::clone(&headers);
    #[expect(clippy::result_large_err, reason = "the library's signature")]
    let copy_headers = move |request: &upgrade::Request, response| {
        let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        *seen_headers.lock().unwrap() = request.headers().iter().map(text).collect();
        Ok(response)
    };
    let mut socket = accept_hdr_async(stream, copy_headers).await.unwrap();
    let mut texts = Vec::new();
    let end = loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => texts.push(text.as_str().to_owned()),
            Some(Ok(Message::Close(frame))) => break Ok(frame.map(|frame| frame.code.into())),
            Some(Ok(other)) => panic!("{other:?}"),
            Some(Err(error)) => break Err(error),
            None => break Ok(None),
        }
    };
    // Answers the close.
    while socket.next().await.is_some() {}
    let headers = headers.lock().unwrap().clone();
    Seen { headers, texts, end }
}

fn plan(endpoint: Endpoint, chunks: usize) -> CallPlan {
    let ids = CallIds::new(ACCOUNT, &[1; 16], &[2; 16]);
    let audio: Vec<u8> = (0..=255).cycle().take(chunks * CHUNK_BYTES).collect();
    let mut plan = CallPlan::new(endpoint, TARGET, TOKEN, ids, Track::whole(audio.clone()));
    plan.agent = Some(Track::whole(audio.into_iter().rev().collect::<Vec<_>>()));
    plan.pacing = Pacing::AsFastAsPossible;
    plan
}

#[tokio::test]
async fn a_call_looks_like_twilios() {
    let (endpoint, tls, served) = serve_one(watch).await;
    let base = endpoint.public_url().to_owned();
    let plan = plan(endpoint, 100);
    let (caller, agent) = (plan.caller.audio(), plan.agent.as_ref().unwrap().audio());
    let mut steps = Vec::new();
    let report = TwilioCall::connect(plan, &tls).await.unwrap().run(|step| steps.push(step)).await.unwrap();
    let seen = served.await.unwrap();

    assert_eq!((report.messages, report.received, report.close_code), (203, 0, Some(1000)));
    assert_eq!(report.bytes, seen.texts.iter().map(|text| text.len() as u64).sum::<u64>());
    assert_eq!(
        steps.last(),
        Some(&Progress { sent_ms: 2000, total_ms: 2000, messages: 202, lag: Duration::ZERO })
    );
    assert_eq!(seen.end.unwrap(), Some(1000));

    let mut names: Vec<_> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "connection",
            "host",
            "sec-websocket-key",
            "sec-websocket-version",
            "upgrade",
            "user-agent",
            "x-twilio-signature"
        ]
    );
    let header =
        |name| seen.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_bytes()).unwrap();
    let secrets = TwilioSecrets { auth_tokens: &[TOKEN], shared_keys: &|_| None, require_shared_key: true };
    let headers = SignatureHeaders { signatures: &[header("x-twilio-signature")], settings: &[] };
    assert!(verify_handshake(&secrets, &base, TARGET, headers).is_err(), "a shared key is required");
    let secrets = TwilioSecrets { require_shared_key: false, ..secrets };
    verify_handshake(&secrets, &base, TARGET, headers).unwrap();

    let heard = listen(&seen.texts);
    assert_eq!(heard, [caller, agent]);
}

/// Decodes a whole call; answers the audio of both tracks.
fn listen(texts: &[String]) -> [Vec<u8>; 2] {
    let mut decoder = TwilioDecoder::new(vec![ACCOUNT.parse().unwrap()], 0);
    let mut heard = [Vec::new(), Vec::new()];
    let mut timestamps = [102; 2];
    for text in texts {
        if let Event::Media(media) = decoder.decode(text).unwrap() {
            let track = usize::from(media.track.number());
            assert_eq!(media.timestamp_ms, Some(timestamps[track]));
            timestamps[track] += 20;
            media.payload.append_to(&mut heard[track]).unwrap();
        }
    }
    assert!(decoder.has_stopped());
    heard
}

#[tokio::test]
async fn a_paced_call_takes_its_time() {
    let (endpoint, tls, served) = serve_one(watch).await;
    let plan = CallPlan { pacing: Pacing::Scaled(2.0), ..plan(endpoint, 11) };
    let report = TwilioCall::connect(plan, &tls).await.unwrap().run(|_| {}).await.unwrap();
    let took = report.last_sent - report.started_at;
    // Ten intervals and the agent's delay, at twice the speed.
    assert!(took >= Duration::from_millis(105), "{took:?}");
    assert_eq!(report.send_lag.count(), 22);
    served.await.unwrap();
}

#[tokio::test]
async fn calls_end_as_planned() {
    let (endpoint, tls, served) = serve_one(watch).await;
    let call = CallPlan { end: CallEnd::CloseWithoutStop, ..plan(endpoint, 3) };
    let report = TwilioCall::connect(call, &tls).await.unwrap().run(|_| {}).await.unwrap();
    assert_eq!(report.messages, 8);
    assert_eq!(served.await.unwrap().end.unwrap(), Some(1000));

    let (endpoint, tls, served) = serve_one(watch).await;
    let call = CallPlan { end: CallEnd::Drop, ..plan(endpoint, 3) };
    let report = TwilioCall::connect(call, &tls).await.unwrap().run(|_| {}).await.unwrap();
    let seen = served.await.unwrap();
    assert_eq!((report.close_code, seen.texts.len()), (None, 8), "what was sent before is not lost");
    assert!(matches!(seen.end, Err(tungstenite::Error::Io(_))), "{:?}", seen.end);
}

#[tokio::test]
async fn a_refusal_tells_its_status() {
    let (endpoint, tls, _served) = serve_one(|stream| async {
        #[expect(clippy::result_large_err, reason = "the library's signature")]
        let refuse = |_: &upgrade::Request, _| {
            Err(http::Response::builder().status(503).body(Some("full".to_owned())).unwrap())
        };
        accept_hdr_async(stream, refuse).await.is_err()
    })
    .await;
    let refused = TwilioCall::connect(plan(endpoint, 1), &tls).await.err();
    assert!(matches!(refused, Some(CallError::Refused { status: 503 })), "{refused:?}");
}

#[tokio::test]
async fn a_server_that_hangs_up_is_named() {
    for pacing in [Pacing::RealTime, Pacing::AsFastAsPossible] {
        let (endpoint, tls, _served) = serve_one(|stream| async {
            let mut socket: Server = tokio_tungstenite::accept_async(stream).await.unwrap();
            let closing = CloseFrame { code: 1008.into(), reason: "bad_start".into() };
            socket.close(Some(closing)).await.unwrap();
            while socket.next().await.is_some() {}
        })
        .await;
        let plan = CallPlan { pacing, ..plan(endpoint, 100_000) };
        let ended = TwilioCall::connect(plan, &tls).await.unwrap().run(|_| {}).await.err().unwrap();
        assert!(
            matches!(&ended, CallError::Closed { code: Some(1008), reason } if reason == "bad_start"),
            "{pacing:?}: {ended:?}"
        );
    }
}

#[tokio::test]
async fn anything_can_be_sent_and_received() {
    let (endpoint, tls, served) = serve_one(|stream| async {
        let mut socket: Server = tokio_tungstenite::accept_async(stream).await.unwrap();
        for _ in 0..3 {
            let message = socket.next().await.unwrap().unwrap();
            socket.send(message).await.unwrap();
        }
    })
    .await;
    let plan = CallPlan { signing: Signing::Missing, ..plan(endpoint, 0) };
    let mut call = TwilioCall::connect(plan, &tls).await.unwrap();
    call.send_text("{").await.unwrap();
    assert_eq!(call.recv().await.unwrap(), Received::Text("{".to_owned()));
    call.send_binary(vec![0, 1]).await.unwrap();
    assert_eq!(call.recv().await.unwrap(), Received::Binary(Bytes::from_static(&[0, 1])));
    call.send(Message::Ping(Bytes::new())).await.unwrap();
    served.await.unwrap();
    assert_eq!(call.close(1000, "").await, None);
}

#[tokio::test]
async fn another_root_is_not_trusted() {
    let (endpoint, _, _served) = serve_one(|_| async {}).await;
    let (_, stranger, _unused) = serve_one(|_| async {}).await;
    let refused = TwilioCall::connect(plan(endpoint, 1), &stranger).await.err();
    assert!(matches!(refused, Some(CallError::Connect(ConnectError::Tls(..)))), "{refused:?}");
}
