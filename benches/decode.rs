//! What does it cost to get the audio out of one message?
//!
//! Input: a recorded Twilio media message, 377 bytes of JSON with 160 bytes of audio in base64. Unit: ns per message
//! (one element is one message, which is one frame).
//!
//! - `callseal`: [`TwilioDecoder::decode`] with its checks of stream, track and numbers, base64 into a `Vec` in use.
//! - `callseal_parsed`: the same for a message that the quick scan leaves to the full parser, here by one space.
//! - `serde_json_typed`: a borrowing struct, numbers parsed, stream compared, crate `base64` into a new `Vec`.
//! - `serde_json_value`: a `serde_json::Value`, otherwise the same.

#[path = "plain/json.rs"]
mod json;

use std::hint::black_box;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use callseal::domain::provider::Event;
use callseal::domain::provider::twilio::TwilioDecoder;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde_json::Value;

const TRANSCRIPT: &str = include_str!("../tests/vectors/twilio/twilio-uni-both-tracks.jsonl");
const STREAM: &str = "MZ4401e1a4c513dd3b87fed3ab17f29b2a";

/// Returns a decoder behind the start message, and a media message from the middle of the call.
fn input() -> (TwilioDecoder, &'static str) {
    let account = "AC000000000000000000000000c0ffee01".parse().expect("a valid account");
    let mut decoder = TwilioDecoder::new(vec![account], 0);
    for line in TRANSCRIPT.lines().take(2) {
        decoder.decode(line).expect("the transcript begins with connected and start");
    }
    let message = TRANSCRIPT.lines().nth(100).expect("the transcript has 201 messages");
    (decoder, message)
}

/// Decodes a media message into `audio`.
fn decode(decoder: &mut TwilioDecoder, message: &str, audio: &mut Vec<u8>) {
    let Ok(Event::Media(media)) = decoder.decode(message) else { panic!("the input is a media message") };
    audio.clear();
    media.payload.append_to(audio).expect("the input has audio");
    black_box((media.track, media.sequence, media.timestamp_ms, audio));
}

#[expect(clippy::indexing_slicing, reason = "a Value answers null for a missing key")]
fn decode_value(message: &str) -> json::Decoded {
    let message: Value = serde_json::from_str(message).expect("the input is JSON");
    assert!(message["event"] == "media" && message["streamSid"] == STREAM);
    let number = |field: &Value| field.as_str().and_then(|text| text.parse().ok()).expect("a number");
    let media = &message["media"];
    json::Decoded {
        sequence: number(&message["sequenceNumber"]),
        outbound: media["track"] == "outbound",
        timestamp_ms: number(&media["timestamp"]),
        audio: STANDARD.decode(media["payload"].as_str().expect("a payload")).expect("the input has audio"),
    }
}

fn bench(c: &mut Criterion) {
    let (mut decoder, message) = input();
    let spaced = format!(" {message}");
    let mut audio = Vec::with_capacity(1024);
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    group.bench_function("callseal", |b| {
        b.iter(|| decode(&mut decoder, black_box(message), &mut audio));
    });
    group.bench_function("callseal_parsed", |b| {
        b.iter(|| decode(&mut decoder, black_box(&spaced), &mut audio));
    });
    group.bench_function("serde_json_typed", |b| b.iter(|| used(json::decode(black_box(message), STREAM))));
    group.bench_function("serde_json_value", |b| b.iter(|| used(decode_value(black_box(message)))));
    group.finish();
}

/// Keeps the compiler from leaving out what nobody reads.
fn used(decoded: json::Decoded) {
    let json::Decoded { sequence, outbound, timestamp_ms, audio } = decoded;
    black_box((sequence, outbound, timestamp_ms, audio));
}

criterion_group!(benches, bench);
criterion_main!(benches);
