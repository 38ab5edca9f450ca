//! Runs the recorded streams and the refusals of `tests/vectors/vapi` against the transcriber's decoder.

use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::clock::monotonic;
use crate::domain::sign;

use super::*;

/// One message of a recorded stream.
pub(crate) enum Line {
    Text(String),
    Binary(Vec<u8>),
}

pub(crate) fn vector(name: &str) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/vectors/vapi", name].iter().collect();
    std::fs::read(path).unwrap()
}

/// The messages of one direction with their time in milliseconds.
pub(crate) fn fixture(name: &str, dir: &str) -> Vec<(u64, Line)> {
    let text = String::from_utf8(vector(name)).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Map<String, Value>>(line).unwrap());
    let messages = lines.filter(|line| line["_dir"] == dir && !line.contains_key("_event"));
    messages.map(|line| (line["_t_ms"].as_u64().unwrap(), message(line))).collect()
}

fn message(mut line: Map<String, Value>) -> Line {
    if let Some(audio) = line.get("binary_b64") {
        return Line::Binary(sign::decode_base64(audio.as_str().unwrap().as_bytes()).unwrap());
    }
    if let Some(raw) = line.get("text_raw") {
        return Line::Text(raw.as_str().unwrap().to_owned());
    }
    line.retain(|name, _| !name.starts_with('_'));
    Line::Text(serde_json::to_string(&line).unwrap())
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    sign::encode_hex(&Sha256::digest(bytes))
}

/// The channels of a whole stream, the simple way.
pub(crate) fn channels_of(whole: &[u8], count: usize) -> Vec<Vec<u8>> {
    let channel = |number: usize| {
        whole.chunks_exact(count * 2).flat_map(|step| step[number * 2..][..2].to_vec()).collect()
    };
    (0..count).map(channel).collect()
}

fn start(changes: &[(&str, &str)]) -> String {
    let mut fields = vec![
        ("type", r#""start""#),
        ("encoding", r#""linear16""#),
        ("container", r#""raw""#),
        ("sampleRate", "16000"),
        ("channels", "2"),
    ];
    for (name, value) in changes {
        fields.retain(|(known, _)| known != name);
        fields.push((name, value));
    }
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn format(rate: u32, channels: u8) -> PcmFormat {
    PcmFormat::new(rate, channels).unwrap()
}

const CLOSE: fn(CloseReason) -> Refusal = Refusal::Close;

/// Whether the samples are a sine, to the last digit.
fn is_tone(samples: &[u8], amplitude: f64, hertz: f64, rate: f64) -> bool {
    samples.chunks_exact(2).zip(0u32..).all(|(sample, number)| {
        let found = f64::from(i16::from_le_bytes(sample.try_into().unwrap()));
        let wanted = amplitude * (std::f64::consts::TAU * hertz * f64::from(number) / rate).sin();
        (found - wanted).abs() <= 1.0
    })
}

#[test]
fn the_recorded_streams_give_their_samples() {
    for (name, rate, frames, wanted) in [
        (
            "vapi-custom-transcriber.jsonl",
            16_000,
            24_000,
            "62bcb644155176caf9e47558a289267c327d9f8b438dfffffc5dc4aea0e78396",
        ),
        (
            "vapi-custom-transcriber-edge.jsonl",
            8000,
            4000,
            "12a0c18ddeae19333df5f68ee5d825e2d772cc142f9f765d497fb63cce3af57a",
        ),
    ] {
        let manifest = String::from_utf8(vector("vapi-manifest.json")).unwrap();
        assert!(manifest.contains(wanted), "{name}");
        let began = monotonic();
        let mut decoder = TranscriberDecoder::new(10);
        let (mut whole, mut tracks, mut ignored) = (Vec::new(), [Vec::new(), Vec::new()], 0);
        for (at_ms, line) in fixture(name, "vapi->server") {
            match line {
                Line::Text(text) => match decoder.text(&text) {
                    Ok(TranscriberText::Start(found)) => assert_eq!(found, format(rate, 2)),
                    Ok(TranscriberText::Ignored(IgnoreReason::UnknownEvent))
                    | Err(Refusal::Drop(DropReason::NotAnEvent)) => ignored += 1,
                    other => panic!("{name}: {other:?}"),
                },
                Line::Binary(message) => {
                    let audio = decoder.binary(began + Duration::from_millis(at_ms), &message).unwrap();
                    for (track, samples) in audio.tracks() {
                        tracks[usize::from(track == TrackId::AGENT)].extend_from_slice(samples);
                    }
                    whole.extend(message);
                }
            }
        }
        assert_eq!(digest(&whole), wanted, "{name}");
        assert_eq!(ignored, if rate == 8000 { 2 } else { 0 }, "{name}");
        assert!(channels_of(&whole, 2) == tracks, "{name}");
        assert_eq!(tracks.each_ref().map(Vec::len), [frames * 2; 2], "{name}");
        assert!(is_tone(&tracks[0], 8000.0, 440.0, f64::from(rate)), "{name}");
        assert!(is_tone(&tracks[1], 6000.0, 1000.0, f64::from(rate)), "{name}");
    }
}

/// Sends what a case says; answers the refusal and how many bytes of audio were taken before it.
fn send_case(messages: &[Value]) -> (Option<Refusal>, usize) {
    let now = monotonic();
    let mut decoder = TranscriberDecoder::new(10);
    let mut taken = 0;
    for line in messages {
        let mut line = line.as_object().unwrap().clone();
        let number =
            |name: &str| line.get(name).map(|value| usize::try_from(value.as_u64().unwrap()).unwrap());
        let (sent, times) = if let Some(length) = number("binary_bytes") {
            (Line::Binary(vec![0; length]), 1)
        } else if let Some(length) = number("text_raw_bytes") {
            (Line::Text("x".repeat(length)), 1)
        } else if let Some(repeat) = line.remove("binary_repeat") {
            let audio = sign::decode_base64(repeat["b64"].as_str().unwrap().as_bytes()).unwrap();
            (Line::Binary(audio), repeat["times"].as_u64().unwrap())
        } else {
            (message(line), 1)
        };
        for _ in 0..times {
            let outcome = match &sent {
                Line::Text(text) => decoder.text(text).map(|_| 0),
                Line::Binary(message) => decoder
                    .binary(now, message)
                    .map(|audio| audio.tracks().map(|(_, samples)| samples.len()).sum()),
            };
            match outcome {
                Ok(bytes) => taken += bytes,
                Err(refusal) => return (Some(refusal), taken),
            }
        }
    }
    (None, taken)
}

#[test]
fn every_refusal_of_the_vectors_is_made() {
    let vectors: Value = serde_json::from_slice(&vector("vapi-custom-transcriber-reject.json")).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 16);
    let mut decided = 0;
    for case in cases {
        let (name, expect) = (case["name"].as_str().unwrap(), case["expect"].as_str().unwrap());
        let (reason, taken) = match name {
            // Decided by a credential or a clock, before any message.
            "no-credential"
            | "wrong-secret"
            | "unknown-ingest-token"
            | "two-contradicting-credentials"
            | "no-start-in-time" => continue,
            "binary-before-start" => (CloseReason::MediaBeforeStart, 0),
            "second-start-other-format" => (CloseReason::OtherFormat, 1280),
            "text-frame-too-large" | "binary-frame-too-large" => (CloseReason::TooLarge, 0),
            "faster-than-real-time" => (CloseReason::TooFast, 25 * 64_000),
            _ => (CloseReason::UnsupportedFormat, 0),
        };
        let messages = case["messages"].as_array().unwrap();
        assert_eq!(send_case(messages), (Some(Refusal::Close(reason)), taken), "{name}");
        assert!(expect.contains(&reason.code().to_string()), "{name}: {expect}");
        decided += 1;
    }
    assert_eq!(decided, 11);
    assert_eq!(CloseReason::NoStart.code(), 1008);
}

#[test]
fn a_start_is_read_in_every_spelling() {
    for (changes, wanted) in [
        (&[][..], format(16_000, 2)),
        (&[("sampleRate", "48000"), ("channels", "1")], format(48_000, 1)),
        (&[("sampleRate", "8000.0"), ("channels", "2.0")], format(8000, 2)),
        (&[("sampleRate", "1.6e4")], format(16_000, 2)),
        (&[("type", r#""\u0073tart""#)], format(16_000, 2)),
        (&[("callId", "null"), ("extra", r#"{"a":[1,{"b":2}]}"#)], format(16_000, 2)),
    ] {
        let mut decoder = TranscriberDecoder::new(0);
        assert_eq!(decoder.format(), None);
        assert_eq!(decoder.text(&start(changes)), Ok(TranscriberText::Start(wanted)), "{changes:?}");
        assert_eq!(decoder.format(), Some(wanted));
    }
}

#[test]
fn other_starts_are_refused_before_anything_is_kept() {
    for changes in [
        &[("encoding", r#""mulaw""#)][..],
        &[("encoding", r#""LINEAR16""#)],
        &[("encoding", "null")],
        &[("container", r#""wav""#)],
        &[("container", "[]")],
        &[("sampleRate", "7999")],
        &[("sampleRate", "48001")],
        &[("sampleRate", "-16000")],
        &[("sampleRate", "16000.5")],
        &[("sampleRate", r#""16000""#)],
        &[("sampleRate", "null")],
        &[("sampleRate", "1e300")],
        &[("sampleRate", "18446744073709551615")],
        &[("channels", "0")],
        &[("channels", "3")],
        &[("channels", "258")],
        &[("channels", "true")],
    ] {
        let mut decoder = TranscriberDecoder::new(0);
        let refused = Err(CLOSE(CloseReason::UnsupportedFormat));
        assert_eq!(decoder.text(&start(changes)), refused, "{changes:?}");
        assert_eq!(decoder.format(), None);
    }
    let mut decoder = TranscriberDecoder::new(0);
    assert_eq!(decoder.text(r#"{"type":"start"}"#), Err(CLOSE(CloseReason::UnsupportedFormat)));
}

#[test]
fn a_second_start_changes_nothing() {
    let now = monotonic();
    let mut decoder = TranscriberDecoder::new(0);
    assert!(decoder.text(&start(&[])).is_ok());
    assert_eq!(decoder.binary(now, &[1, 2, 3]).unwrap().samples(), 0);
    assert_eq!(decoder.text(&start(&[("sampleRate", "16000.0")])), Ok(TranscriberText::RepeatedStart));
    let audio = decoder.binary(now, &[4]).unwrap();
    let tracks: Vec<_> = audio.tracks().collect();
    assert_eq!(tracks, [(TrackId::CALLER, &[1, 2][..]), (TrackId::AGENT, &[3, 4])]);
    for other in [&[("channels", "1")][..], &[("encoding", r#""opus""#)], &[("sampleRate", "0")]] {
        assert_eq!(decoder.text(&start(other)), Err(CLOSE(CloseReason::OtherFormat)), "{other:?}");
    }
}

#[test]
fn odd_texts_are_dropped_until_there_are_too_many() {
    let mut decoder = TranscriberDecoder::new(3);
    for unknown in ["{}", r#"{"type":"stop"}"#, r#"{"type":7}"#, r#"{"type":"started"}"#] {
        assert_eq!(
            decoder.text(unknown),
            Ok(TranscriberText::Ignored(IgnoreReason::UnknownEvent)),
            "{unknown}"
        );
    }
    let deep = "[".repeat(MAX_TEXT_BYTES);
    for text in ["", "not json at all", &deep] {
        assert_eq!(decoder.text(text), Err(Refusal::Drop(DropReason::NotAnEvent)));
    }
    assert_eq!(decoder.text("[]"), Err(CLOSE(CloseReason::Flood)));
}

#[test]
fn nothing_shows_audio() {
    let mut decoder = TranscriberDecoder::new(0);
    assert!(decoder.text(&start(&[])).is_ok());
    let audio = decoder.binary(monotonic(), &[77; 9]).unwrap();
    assert_eq!(format!("{audio:?}"), "TranscriberAudio(PcmChunk(2 channels, 2 samples))");
}

proptest! {
    #[test]
    fn any_cutting_of_a_stream_yields_the_same_samples(
        steps in proptest::collection::vec(any::<[u8; 4]>(), 0..100),
        cuts in proptest::collection::vec(0usize..7, 0..150),
    ) {
        let whole = steps.concat();
        let now = monotonic();
        let mut decoder = TranscriberDecoder::new(0);
        prop_assert!(decoder.text(&start(&[])).is_ok());
        let mut found = vec![Vec::new(), Vec::new()];
        let mut rest = whole.as_slice();
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (message, after) = rest.split_at(cut.min(rest.len()));
            rest = after;
            for ((_, samples), track) in decoder.binary(now, message).unwrap().tracks().zip(&mut found) {
                track.extend_from_slice(samples);
            }
        }
        prop_assert!(found == channels_of(&whole, 2));
    }

    #[test]
    fn any_text_is_survived(text in "\\PC{0,60}") {
        let mut decoder = TranscriberDecoder::new(0);
        prop_assert!(!matches!(decoder.text(&text), Ok(TranscriberText::Start(_))));
    }
}
