//! What does it cost to seal one frame?
//!
//! Input: 160 bytes of μ-law, the audio of one message. Unit: ns per frame (one element is one frame).
//!
//! - `segment_writer`: [`SegmentWriter::audio_with`], two tracks in turn, a new segment after 500 frames (5 s), its
//!   keys derived anew; prefix, kind, nonce, 16 bytes of associated data and tag included. Its trailer and checksum are
//!   part of `pipeline`.
//! - `cipher_alone`: the same AES-256-GCM with the same associated data, in place on one buffer: the floor.
//! - `aes_gcm_to_vec`: `aes-gcm` without associated data into a new `Vec`, as most programs would.

#[path = "plain/cipher.rs"]
mod cipher;

use std::hint::black_box;

use callseal::domain::audio::{AudioFormat, Speakers};
use callseal::domain::cmr::{
    CipherSuite, DefaultSuite, Dek, Expected, KeyBox, SealError, SegmentIds, SegmentWriter,
};
use callseal::domain::ids::{RecordingId, TenantId, TrackId, WriterId};
use callseal::domain::recording::{to_cbor, track_table};
use callseal::simulate::CHUNK_BYTES;
use callseal::simulate::speech::DEMO_CALLER;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Five seconds of two tracks, the default age of a segment.
const SEGMENT_FRAMES: u32 = 500;

struct Recorder {
    dek: Dek,
    ids: SegmentIds,
    track_table: Vec<u8>,
    salt: u64,
}

impl Recorder {
    fn new() -> Self {
        let dek = Dek::filled_by::<()>(|key| {
            key.fill(0x42);
            Ok(())
        })
        .expect("filling never fails");
        let tenant = "acme-dental".parse::<TenantId>().expect("a valid id").tag();
        let recording = RecordingId::new(1_760_000_000_000, &[1; 10]);
        let expected = Expected { tenant, recording, key: dek.key_id(tenant, recording) };
        let ids =
            SegmentIds { ids: expected, writer: WriterId([3; 16]), seq: 1, created_ms: 0, prev: [0; 16] };
        Self {
            dek,
            ids,
            track_table: to_cbor(&track_table(AudioFormat::TELEPHONE, Speakers::CallerAndAgent)),
            salt: 0,
        }
    }

    fn start_segment(&mut self) -> SegmentWriter {
        self.salt += 1;
        let mut salt = [0; 32];
        salt[..8].copy_from_slice(&self.salt.to_be_bytes());
        SegmentWriter::start(&self.dek, self.ids, &salt, &self.track_table, None, 0)
            .expect("a new segment has room")
    }
}

fn frames() -> impl Iterator<Item = &'static [u8]> {
    DEMO_CALLER.chunks_exact(CHUNK_BYTES).cycle()
}

fn seal(c: &mut Criterion) {
    let mut group = c.benchmark_group("seal");
    group.throughput(Throughput::Elements(1));

    let mut recorder = Recorder::new();
    let mut segment = recorder.start_segment();
    let mut audio = frames();
    let (mut turn, mut waiting) = ((TrackId::CALLER, 0u32), (TrackId::AGENT, 0u32));
    group.bench_function("segment_writer", |b| {
        b.iter(|| {
            if segment.frames() > SEGMENT_FRAMES {
                segment = recorder.start_segment();
            }
            let frame = black_box(audio.next().expect("frames come round"));
            let (track, pts) = turn;
            let samples = segment.audio_with(track, pts, |inner| {
                inner.extend_from_slice(frame);
                Ok::<_, SealError>(160)
            });
            turn = (track, pts.wrapping_add(samples.expect("the segment has room")));
            std::mem::swap(&mut turn, &mut waiting);
        });
    });

    let mut key = DefaultSuite::seal_key(KeyBox::holding(&[0x42; 32]));
    let (mut audio, mut counter, mut text) = (frames(), 0u64, [0; 1 + CHUNK_BYTES]);
    group.bench_function("cipher_alone", |b| {
        b.iter(|| {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&counter.to_be_bytes());
            counter += 1;
            text[1..].copy_from_slice(black_box(audio.next().expect("frames come round")));
            black_box(DefaultSuite::seal(&mut key, &nonce, &[7; 16], &mut text).expect("the nonce counts up"))
        });
    });

    let mut plain = cipher::Plain::new();
    let mut audio = frames();
    group.bench_function("aes_gcm_to_vec", |b| {
        b.iter(|| black_box(plain.encrypt(black_box(audio.next().expect("frames come round")))));
    });
    group.finish();
}

criterion_group!(benches, seal);
criterion_main!(benches);
