//! What does one message cost from websocket text to sealed segment?
//!
//! Input: the demonstration call, 57.8 s of two tracks, 5,780 messages of 160 bytes of audio, over and over. Unit: ns
//! per message (one element is one message, which is one frame).
//!
//! - `callseal`: [`TwilioDecoder::decode`] and [`CallSession::handle_media`]: duplicates, gaps and clocks, sealing, a
//!   segment cut every 5 s with trailer, SHA-256 and new keys, a manifest at the end of each call.
//! - `plain`: `serde_json` into a struct, crate `base64`, `aes-gcm` into a new `Vec`, appended to a segment of 500
//!   frames: no place on a time line, no associated data, no checksum, no manifest, one key.

#[path = "plain/cipher.rs"]
mod cipher;
#[path = "plain/json.rs"]
mod json;
#[path = "shared/call.rs"]
mod shared;

use std::hint::black_box;

use callseal::simulate::CallIds;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use shared::{ACCOUNT, Call, Recording};

/// Messages in 5 s of two tracks.
const SEGMENT_MESSAGES: usize = 500;

fn pipeline(c: &mut Criterion) {
    let ids = CallIds::new(ACCOUNT, &[1; 16], &[2; 16]);
    let call = Call::new(ids.clone());
    let mut group = c.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(1));

    let mut recording = Recording::start(&call);
    let mut rest = call.media.iter();
    group.bench_function("callseal", |b| {
        b.iter(|| {
            let message = rest.next().unwrap_or_else(|| {
                std::mem::replace(&mut recording, Recording::start(&call)).finish();
                rest = call.media.iter();
                rest.next().expect("a call has messages")
            });
            recording.handle(black_box(message));
        });
    });

    let mut plain = cipher::Plain::new();
    let (mut segment, mut in_segment) = (Vec::new(), 0);
    let mut messages = call.media.iter().cycle();
    group.bench_function("plain", |b| {
        b.iter(|| {
            if in_segment == SEGMENT_MESSAGES {
                black_box(std::mem::take(&mut segment));
                in_segment = 0;
            }
            let message = black_box(messages.next().expect("messages come round"));
            let decoded = json::decode(message, &ids.stream);
            black_box((decoded.sequence, decoded.outbound, decoded.timestamp_ms));
            segment.extend_from_slice(&plain.encrypt(&decoded.audio));
            in_segment += 1;
        });
    });
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
