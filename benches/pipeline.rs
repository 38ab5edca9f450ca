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

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use callseal::clock;
use callseal::domain::audio::{AudioFormat, Speakers};
use callseal::domain::cmr::{Dek, Expected};
use callseal::domain::ids::{RecordingId, TenantId};
use callseal::domain::provider::Event;
use callseal::domain::provider::twilio::TwilioDecoder;
use callseal::domain::recording::{EndCause, RecordingMetadata};
use callseal::domain::session::{
    AgentAudio, CallSession, DtmfPolicy, Entropy, EntropyFailed, SegmentLimits, SessionSetup,
};
use callseal::domain::time::UnixMillis;
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{CHUNK_BYTES, CallIds, Direction, Track, TwilioMessages};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const ACCOUNT: &str = "AC000000000000000000000000c0ffee01";
const LIMITS: SegmentLimits = SegmentLimits { max_age: Duration::from_secs(5), max_bytes: 256 * 1024 };
/// Messages in 5 s of two tracks.
const SEGMENT_MESSAGES: usize = 500;

/// A whole call as Twilio sends it, without its greeting and `stop`.
struct Call {
    start: String,
    media: Vec<String>,
    stream: String,
}

impl Call {
    fn new() -> Self {
        let ids = CallIds::new(ACCOUNT, &[1; 16], &[2; 16]);
        let stream = ids.stream.clone();
        let mut messages = TwilioMessages::new(ids);
        let directions = [Direction::Inbound, Direction::Outbound];
        let start = messages.start(&directions, &BTreeMap::new());
        let tracks = [Track::whole(DEMO_CALLER), Track::whole(DEMO_AGENT)];
        let mut media = Vec::new();
        for chunk in 0..DEMO_CALLER.len() / CHUNK_BYTES {
            for (direction, track) in directions.into_iter().zip(&tracks) {
                let payload = track.base64(chunk).expect("both tracks are of one length");
                media.push(messages.media(direction, 102 + chunk as u64 * 20, payload));
            }
        }
        Self { start, media, stream }
    }
}

struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyFailed> {
        getrandom::fill(out).map_err(|_| EntropyFailed)
    }
}

/// One stream being recorded, without sockets and disks.
struct Recording {
    decoder: TwilioDecoder,
    session: CallSession,
    now: Instant,
}

impl Recording {
    fn start(call: &Call) -> Self {
        let account = ACCOUNT.parse().expect("a valid account");
        let mut decoder = TwilioDecoder::new(vec![account], 0);
        decoder.decode(&call.start).expect("a valid start");
        let now = clock::monotonic();
        let session = CallSession::start(setup(), Box::new(SystemEntropy), now, UnixMillis(0))
            .expect("the system has random bytes");
        Self { decoder, session, now }
    }

    fn handle(&mut self, message: &str) {
        self.now += Duration::from_millis(10);
        let Ok(Event::Media(media)) = self.decoder.decode(message) else { panic!("a media message") };
        self.session.handle_media(self.now, UnixMillis(0), &media).expect("the input is sound");
        self.take_outputs();
    }

    fn finish(mut self) {
        self.session.finish(UnixMillis(0), EndCause::Stop).expect("the manifest is sealed");
        self.take_outputs();
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.session.poll_output() {
            black_box(output);
        }
    }
}

fn setup() -> SessionSetup {
    let dek = Dek::filled_by(|key| getrandom::fill(key)).expect("the system has random bytes");
    let tenant = "acme-dental".parse::<TenantId>().expect("a valid id").tag();
    let recording = RecordingId::new(1_760_000_000_000, &[1; 10]);
    let ids = Expected { tenant, recording, key: dek.key_id(tenant, recording) };
    let metadata = RecordingMetadata {
        v: 1,
        tenant: "acme-dental".to_owned(),
        route: "reception".to_owned(),
        provider: "twilio".to_owned(),
        account: ACCOUNT.to_owned(),
        call: "CA".to_owned(),
        stream: "MZ".to_owned(),
        started_ms: 0,
        parameters: BTreeMap::new(),
        retention_days: 90,
        ticket: BTreeMap::new(),
        consent: None,
        format: AudioFormat::TELEPHONE,
    };
    SessionSetup {
        dek,
        ids,
        limits: LIMITS,
        dtmf: DtmfPolicy::Redact,
        agent: AgentAudio::Received,
        speakers: Speakers::CallerAndAgent,
        metadata,
    }
}

fn pipeline(c: &mut Criterion) {
    let call = Call::new();
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
            let decoded = json::decode(message, &call.stream);
            black_box((decoded.sequence, decoded.outbound, decoded.timestamp_ms));
            segment.extend_from_slice(&plain.encrypt(&decoded.audio));
            in_segment += 1;
        });
    });
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
