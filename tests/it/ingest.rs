//! What becomes of a provider's messages: recorded calls, odd frames and broken websockets against the whole program.

use std::collections::BTreeSet;

use callseal::domain::cmr::sha256;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::reader::hex;
use crate::support::socket::{Socket, fixture, greeting, manifest, media, stop, stream_id, transcript};
use crate::support::wire::read_to_end;
use crate::support::{Home, Server, Setup, TENANT, eventually};

const PATH: &str = "acme-dental/reception";
const SILENCE: u8 = 0xff;
/// What the server says when it closes a stream for what the provider sent.
const CLOSED_BY_US: &str = "stream closed by us";

/// How a recorded call ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// `stop` is its last message; then a close frame.
    Stop,
    /// A close frame, with a code or an empty body, which is read as 1005.
    CloseFrame(Option<u16>),
    /// A TCP reset.
    Abrupt,
}

impl Ending {
    fn of(wanted: &Value) -> Vec<Self> {
        match wanted["final"].as_str().unwrap() {
            "stop" => vec![Self::Stop],
            "close-frame" => vec![Self::CloseFrame(Some(1000)), Self::CloseFrame(None)],
            "abrupt" => vec![Self::Abrupt],
            other => panic!("{other}"),
        }
    }

    fn cause(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::CloseFrame(_) => "closed-early",
            Self::Abrupt => "peer-lost",
        }
    }

    async fn end(self, mut socket: Socket, name: &str) {
        socket.settle().await;
        match self {
            Self::Stop => assert_eq!(socket.close(Some(1000)).await, Some(1000), "{name}"),
            Self::CloseFrame(code) => assert_eq!(socket.close(code).await, code, "{name}"),
            Self::Abrupt => socket.reset(),
        }
    }
}

/// Waits until recording `count` of this server is stored; answers its id and what is known of it.
async fn recorded(home: &Home, server: &Server, count: usize) -> (String, Value) {
    let sealed = server.wait_log("recording sealed", count).await;
    let recording = sealed.field("recording").to_owned();
    let shown = home.finished(TENANT, &recording).await;
    (recording, shown)
}

/// Waits until all streams have ended.
async fn idle(server: &Server) {
    eventually("no live stream", || (server.metric("ingest_live_streams") == 0.0).then_some(())).await;
}

#[tokio::test]
async fn every_recorded_call_is_stored_as_it_was_sent() {
    let (home, server) = Setup::new().serve();
    let manifest = manifest();
    let (mut calls, mut recordings) = (0, 0);
    for (name, wanted) in manifest["files"].as_object().unwrap() {
        if wanted["expect"] == "n/a" || name == "twilio-frames.jsonl" {
            continue;
        }
        for ending in Ending::of(wanted) {
            calls += 1;
            let mut socket = server.open(PATH).await;
            for message in transcript(name) {
                socket.text(message).await;
            }
            ending.end(socket, name).await;
            idle(&server).await;
            if name == "twilio-tricky-connected-only.jsonl" {
                assert_eq!(server.metric(r#"ingest_streams_ended_total{cause="never-started"}"#), 1.0);
                continue;
            }
            recordings += 1;
            let (recording, shown) = recorded(&home, &server, recordings).await;
            check_recording(&home, &recording, &shown, name, wanted, ending);
        }
    }
    assert_eq!((calls, recordings), (19, 18));
    assert_eq!(home.recordings(TENANT).len(), 18);
}

fn check_recording(home: &Home, recording: &str, shown: &Value, name: &str, wanted: &Value, ending: Ending) {
    let is_whole = ending == Ending::Stop && wanted["missing_sequence_numbers"].is_null();
    assert_eq!(shown["state"], if is_whole { "complete" } else { "partial" }, "{name}");
    assert_eq!(shown["cause"], ending.cause(), "{name}");
    let verified = home.verify(TENANT, recording);
    assert_eq!(verified["grade"], "evidence", "{name}");
    let count = |of: &str| shown["counts"][of].as_u64().unwrap();
    assert_eq!(count("missing_messages"), wanted["missing_sequence_numbers"].as_u64().unwrap_or(0), "{name}");
    assert_eq!(count("duplicates"), wanted["duplicates"].as_u64().unwrap_or(0), "{name}");
    assert_eq!(count("late"), wanted["late_messages"].as_u64().unwrap_or(0), "{name}");
    let tracks = wanted["tracks"].as_object().unwrap();
    let sent: u64 = tracks.values().map(|track| track["bytes"].as_u64().unwrap()).sum();
    assert_eq!(count("audio_bytes"), wanted["bytes_sorted_dedup"].as_u64().unwrap_or(sent), "{name}");
    let first_ts = tracks.values().map(|track| track["first_ts"].as_u64().unwrap()).min();
    for (index, (track, role)) in [("inbound", "caller"), ("outbound", "agent")].into_iter().enumerate() {
        let wav = home.open_ulaw(TENANT, recording, role);
        let Some(wanted_track) = tracks.get(track) else {
            assert!(wav.iter().all(|byte| *byte == SILENCE), "{name}: {track}");
            continue;
        };
        let gaps = check_gaps(shown, wanted_track, index, name);
        let after_first = wanted_track["first_ts"].as_u64().unwrap() - first_ts.unwrap();
        let heard = heard(&wav, usize::try_from(after_first * 8).unwrap(), &gaps, first_ts.unwrap());
        let sorted = wanted["sha256_sorted_dedup"][track].as_str();
        let bytes = wanted["bytes_sorted_dedup"].as_u64().or(wanted_track["bytes"].as_u64()).unwrap();
        let audio = &heard[..usize::try_from(bytes).unwrap()];
        let wanted_hash = sorted.or(wanted_track["sha256_arrival_order"].as_str()).unwrap();
        assert_eq!(hex(&sha256(audio)), wanted_hash, "{name}: {track}");
        assert!(heard[audio.len()..].iter().all(|byte| *byte == SILENCE), "{name}: {track}");
    }
}

/// Compares a track's gaps; answers where they are and how long, in milliseconds.
fn check_gaps(shown: &Value, wanted: &Value, track: usize, name: &str) -> Vec<(u64, u64)> {
    let number = |value: &Value| value.as_u64().unwrap();
    let gaps = shown["gaps"].as_array().unwrap().iter().filter(|gap| gap["track"] == track);
    let gaps: Vec<_> = gaps.map(|gap| (number(&gap["pts"]) / 8, number(&gap["samples"]) / 8)).collect();
    let wanted = wanted["gaps"].as_array().into_iter().flatten();
    let wanted: Vec<_> =
        wanted.map(|gap| (number(&gap["expected_ts"]), number(&gap["missing_ms"]))).collect();
    assert_eq!(gaps, wanted, "{name}: gaps");
    gaps
}

/// Cuts what lies before the first audio, and the gaps, out of what is heard. All of it must be silence.
fn heard(wav: &[u8], first: usize, gaps: &[(u64, u64)], origin_ms: u64) -> Vec<u8> {
    let mut silences: Vec<_> = gaps
        .iter()
        .map(|(at, length)| {
            usize::try_from((at - origin_ms) * 8).unwrap()
                ..usize::try_from((at - origin_ms + length) * 8).unwrap()
        })
        .collect();
    silences.insert(0, 0..first);
    let (mut audio, mut end) = (Vec::new(), 0);
    for silence in silences {
        audio.extend_from_slice(&wav[end..silence.start]);
        assert!(wav[silence.clone()].iter().all(|byte| *byte == SILENCE), "{silence:?}");
        end = silence.end;
    }
    audio.extend_from_slice(&wav[end..]);
    audio
}

/// What must become of a stream after an odd frame.
enum Fate {
    /// It goes on, and so many audio messages are stored: the odd one if it holds audio, and a good one after it.
    Frames(u64),
    /// It goes on, but it was over before.
    Over,
    /// The server closes it.
    Closed(u16),
}

fn fate(case: &Value) -> Fate {
    match case["expect"].as_str().unwrap() {
        "drop-message" if case["state"] == "after-stop" => Fate::Over,
        // Of two equal keys the last counts, so this one says stop.
        "either-but-consistent" => Fate::Over,
        "drop-message" | "ignore" | "accept" | "ignore-or-close" => Fate::Frames(1),
        "store" | "store-without-timestamp" => Fate::Frames(2),
        closed => Fate::Closed(closed.strip_prefix("close-").unwrap().parse().unwrap()),
    }
}

#[tokio::test]
async fn odd_frames_cost_no_call() {
    let (home, mut server) = Setup::new().serve();
    server.allow(CLOSED_BY_US);
    let manifest = manifest();
    let setup = &manifest["files"]["twilio-frames.jsonl"]["setup"];
    let (connected, start) = (setup["connected"].to_string(), setup["start"].to_string());
    let stream = setup["stream_sid"].as_str().unwrap();
    let (mut cases, mut recordings) = (0, 0);
    for line in fixture("twilio-frames.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let (name, raw) = (&case["name"], case["raw"].as_str().unwrap());
        cases += 1;
        let mut socket = server.open(PATH).await;
        let before = match case["state"].as_str().unwrap() {
            "open" => vec![],
            "after-connected" => vec![connected.clone()],
            "after-start" => vec![connected.clone(), start.clone()],
            "after-stop" => vec![connected.clone(), start.clone(), stop(stream)],
            other => panic!("{other}"),
        };
        let begins = matches!(case["state"].as_str(), Some("after-start" | "after-stop"));
        for message in before {
            socket.text(message).await;
        }
        let is_binary = case["frame"] == "binary";
        let odd = if is_binary { Message::binary(raw.as_bytes().to_vec()) } else { Message::text(raw) };
        socket.send(odd).await;
        let fate = fate(&case);
        if let Fate::Closed(code) = fate {
            assert_eq!(socket.closed().await.map(|(code, _)| code), Some(code), "{name}");
        } else {
            // Later than any odd audio, and without a number, so that no message seems to be missing.
            socket.text(media(stream, 50, 7).replacen("sequenceNumber", "unnumbered", 1)).await;
            socket.settle().await;
            socket.text(stop(stream)).await;
            assert_eq!(socket.close(Some(1000)).await, Some(1000), "{name}");
        }
        idle(&server).await;
        if begins || !matches!(fate, Fate::Closed(_)) {
            recordings += 1;
            let (_, shown) = recorded(&home, &server, recordings).await;
            let (frames, state, cause) = match fate {
                Fate::Frames(frames) => (frames, "complete", "stop"),
                Fate::Over => (0, "complete", "stop"),
                Fate::Closed(_) => (0, "partial", "protocol-error"),
            };
            assert_eq!(shown["counts"]["frames"], frames, "{name}: {shown}");
            assert_eq!(shown["cause"], cause, "{name}");
            // Audio that nobody could read is lost audio, and a number that is too high means that messages are missing.
            let numbered: Value = serde_json::from_str(raw).unwrap_or_default();
            let is_lost = name.as_str().unwrap().starts_with("bad-base64")
                || matches!(numbered["sequenceNumber"].as_str(), Some("3" | "5"));
            assert_eq!(shown["state"], if is_lost { "partial" } else { state }, "{name}: {shown}");
        }
    }
    assert_eq!((cases, server.logged("recording sealed").len()), (43, recordings));
}

#[tokio::test]
async fn a_flood_of_unreadable_messages_ends_the_stream() {
    let (home, mut server) = Setup::new().serve();
    server.allow(CLOSED_BY_US);
    let mut socket = server.open(PATH).await;
    for message in greeting(1) {
        socket.text(message).await;
    }
    for _ in 0..100 {
        socket.text("hello").await;
    }
    socket.text(media(&stream_id(1), 1, 7)).await;
    socket.settle().await;
    socket.text("hello").await;
    assert_eq!(socket.closed().await, Some((1008, "flood".to_owned())));
    let (_, shown) = recorded(&home, &server, 1).await;
    assert_eq!((shown["state"].as_str(), shown["cause"].as_str()), (Some("partial"), Some("protocol-error")));
    assert_eq!(
        (shown["counts"]["frames"].as_u64(), shown["counts"]["dropped"].as_u64()),
        (Some(1), Some(100))
    );
    assert_eq!(server.metric(r#"ingest_messages_dropped_total{reason="not_an_event"}"#), 100.0);
}

#[tokio::test]
async fn a_message_may_have_64_kib_and_no_more() {
    let (home, server) = Setup::new().serve();
    let padded = |message: String, to: usize| {
        let room = to - message.len();
        format!("{}{}", message, " ".repeat(room))
    };
    for (number, size) in [(1, 64 * 1024 + 1), (2, 100_000), (3, 4_000_000)] {
        let mut socket = server.open(PATH).await;
        for message in greeting(number) {
            socket.text(message).await;
        }
        let stream = stream_id(number);
        socket.text(padded(media(&stream, 1, 7), 64 * 1024)).await;
        socket.settle().await;
        // The server may close before it has all of it.
        let _sent = socket.try_send(Message::text(padded(media(&stream, 2, 7), size))).await.is_ok();
        assert_eq!(socket.closed().await.map(|(code, _)| code), Some(1009), "{size}");
        let (_, shown) = recorded(&home, &server, usize::from(number)).await;
        assert_eq!((shown["counts"]["frames"].as_u64(), shown["state"].as_str()), (Some(1), Some("partial")));
    }
}

#[tokio::test]
async fn a_message_in_many_fragments_is_no_way_around_the_limit() {
    let (_home, server) = Setup::new().serve();
    let mut socket = server.open(PATH).await;
    for message in greeting(1) {
        socket.text(message).await;
    }
    socket.settle().await;
    let part = |opcode| Message::Frame(Frame::message(vec![b' '; 1000], opcode, false));
    socket.send(part(OpCode::Data(Data::Text))).await;
    for _ in 0..70 {
        if socket.try_send(part(OpCode::Data(Data::Continue))).await.is_err() {
            break;
        }
    }
    assert_eq!(socket.closed().await.map(|(code, _)| code), Some(1009));
}

#[tokio::test]
async fn a_stream_must_begin_in_time() {
    let (home, server) = Setup::new().option("ingest", "start_timeout_ms", "300").serve();
    let mut silent = server.open(PATH).await;
    let mut greeting_only = server.open(PATH).await;
    greeting_only.text(&greeting(1)[0]).await;
    let mut begun = server.open(PATH).await;
    for message in greeting(2) {
        begun.text(message).await;
    }
    assert_eq!(silent.closed().await, Some((1008, "no_start".to_owned())));
    assert_eq!(greeting_only.closed().await, Some((1008, "no_start".to_owned())));
    begun.settle().await;
    begun.text(stop(&stream_id(2))).await;
    assert_eq!(begun.close(Some(1000)).await, Some(1000));
    recorded(&home, &server, 1).await;
    assert_eq!(home.recordings(TENANT).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_kept_while_it_answers_pings() {
    let setup =
        Setup::new().option("ingest", "ping_after_ms", "200").option("ingest", "dead_after_ms", "1000");
    let (home, server) = setup.serve();
    let mut alive = server.open(PATH).await;
    let mut dead = server.open(PATH).await;
    for (socket, number) in [(&mut alive, 1), (&mut dead, 2)] {
        for message in greeting(number) {
            socket.text(message).await;
        }
        socket.text(media(&stream_id(number), 1, number)).await;
        socket.settle().await;
    }
    let (over, mut is_over) = tokio::sync::oneshot::channel::<()>();
    let answering = tokio::spawn(async move {
        let mut pings = 0;
        loop {
            tokio::select! {
                message = alive.next() => match message {
                    Some(Ok(Message::Ping(data))) => assert!(data.is_empty()),
                    other => panic!("{other:?}"),
                },
                _ = &mut is_over => return (alive, pings),
            }
            pings += 1;
        }
    });
    // Half open: nobody reads there any more, so nobody answers.
    let half_open = dead.into_inner();
    let (recording, shown) = recorded(&home, &server, 1).await;
    assert_eq!((shown["state"].as_str(), shown["cause"].as_str()), (Some("partial"), Some("peer-lost")));
    assert_eq!(home.open_ulaw(TENANT, &recording, "caller"), [2; 160]);
    let only_one = || (server.metric("ingest_live_streams") == 1.0).then_some(());
    eventually("one live stream", only_one).await;
    over.send(()).unwrap();
    let (mut alive, pings) = answering.await.unwrap();
    assert!(pings >= 4, "{pings} pings in more than 1.2 s of silence");
    alive.text(media(&stream_id(1), 2, 1)).await;
    alive.text(stop(&stream_id(1))).await;
    assert_eq!(alive.close(Some(1000)).await, Some(1000));
    let (recording, shown) = recorded(&home, &server, 2).await;
    assert_eq!(shown["state"], "complete");
    assert_eq!(home.open_ulaw(TENANT, &recording, "caller"), [1; 320]);
    drop(half_open);
}

#[tokio::test]
async fn after_stop_the_server_closes_if_nobody_else_does() {
    let (home, server) = Setup::new().serve();
    let mut socket = server.open(PATH).await;
    for message in greeting(1) {
        socket.text(message).await;
    }
    socket.text(stop(&stream_id(1))).await;
    // Stored at once, not when the socket is closed.
    let (_, shown) = recorded(&home, &server, 1).await;
    assert_eq!(shown["state"], "complete");
    socket.settle().await;
    assert_eq!(socket.closed().await.map(|(code, _)| code), Some(1000));
}

#[tokio::test]
async fn a_stream_id_is_live_once() {
    let (home, server) = Setup::new().serve();
    let mut first = server.open(PATH).await;
    for message in greeting(1) {
        first.text(message).await;
    }
    first.text(media(&stream_id(1), 1, 5)).await;
    first.settle().await;
    let mut second = server.open(PATH).await;
    for message in greeting(1) {
        second.text(message).await;
    }
    assert_eq!(second.closed().await, Some((1008, "other_stream".to_owned())));
    first.text(media(&stream_id(1), 2, 5)).await;
    first.text(stop(&stream_id(1))).await;
    assert_eq!(first.close(Some(1000)).await, Some(1000));
    let (recording, shown) = recorded(&home, &server, 1).await;
    assert_eq!(shown["state"], "complete");
    assert_eq!(home.open_ulaw(TENANT, &recording, "caller"), [5; 320]);
    // Of another call it may come again.
    let mut third = server.open(PATH).await;
    for message in greeting(1) {
        third.text(message).await;
    }
    third.text(stop(&stream_id(1))).await;
    assert_eq!(third.close(Some(1000)).await, Some(1000));
    recorded(&home, &server, 2).await;
    let ids: BTreeSet<_> = home.recordings(TENANT).into_iter().collect();
    assert_eq!(ids.len(), 2);
}

#[tokio::test]
async fn binary_messages_are_ignored_and_fragments_put_together() {
    let (home, server) = Setup::new().serve();
    let mut socket = server.open(PATH).await;
    for message in greeting(1) {
        socket.text(message).await;
    }
    let stream = stream_id(1);
    socket.send(Message::binary(media(&stream, 1, 9).into_bytes())).await;
    // A whole message in three frames, a ping between them, one character torn apart.
    let text = media(&stream, 1, 6).replacen('{', "{\"note\":\"é\",", 1);
    let tear = text.find('é').unwrap() + 1;
    let (first, rest) = text.as_bytes().split_at(tear);
    let (second, third) = rest.split_at(50);
    let frame =
        |bytes: &[u8], opcode, is_final| Message::Frame(Frame::message(bytes.to_vec(), opcode, is_final));
    socket.send(frame(first, OpCode::Data(Data::Text), false)).await;
    socket.send(Message::Ping(b"between"[..].into())).await;
    socket.send(frame(second, OpCode::Data(Data::Continue), false)).await;
    socket.send(frame(third, OpCode::Data(Data::Continue), true)).await;
    socket.settle().await;
    socket.text(stop(&stream)).await;
    assert_eq!(socket.close(Some(1000)).await, Some(1000));
    let (recording, shown) = recorded(&home, &server, 1).await;
    assert_eq!(shown["state"], "complete");
    assert_eq!(home.open_ulaw(TENANT, &recording, "caller"), [6; 160]);
    assert_eq!(server.metric(r#"ingest_messages_dropped_total{reason="binary"}"#), 1.0);
}

/// Writes one frame by hand; `mask` of zeros leaves the payload as it is.
fn raw_frame(first_byte: u8, is_masked: bool, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    assert!(length < 126);
    let mut frame = vec![first_byte, if is_masked { 0x80 | length } else { length }];
    if is_masked {
        frame.extend_from_slice(&[0; 4]);
    }
    frame.extend_from_slice(payload);
    frame
}

#[tokio::test]
async fn broken_frames_end_the_stream_with_the_code_for_it() {
    let (home, server) = Setup::new().serve();
    let text = br#"{"event":"connected"}"#;
    let broken = [
        ("not masked", 1002, raw_frame(0x81, false, text)),
        ("a reserved bit, as if compressed", 1002, raw_frame(0xc1, true, text)),
        ("a reserved opcode", 1002, raw_frame(0x83, true, text)),
        ("a continuation of nothing", 1002, raw_frame(0x80, true, text)),
        ("a control frame in parts", 1002, raw_frame(0x09, true, b"x")),
        ("not UTF-8", 1007, raw_frame(0x81, true, b"{\"event\":\"\xff\"}")),
    ];
    for (number, (what, code, frame)) in (1..).zip(broken) {
        let mut socket = server.open(PATH).await;
        for message in greeting(number) {
            socket.text(message).await;
        }
        socket.text(media(&stream_id(number), 1, number)).await;
        socket.settle().await;
        let mut stream = socket.into_inner();
        stream.write_all(&frame).await.unwrap();
        let answer = read_to_end(&mut stream).await;
        assert_eq!(answer.first(), Some(&0x88), "{what}: a close frame, not {answer:02x?}");
        assert_eq!(answer.get(2..4), Some(&u16::to_be_bytes(code)[..]), "{what}");
        let (_, shown) = recorded(&home, &server, usize::from(number)).await;
        assert_eq!((shown["state"].as_str(), shown["counts"]["frames"].as_u64()), (Some("partial"), Some(1)));
    }
}
