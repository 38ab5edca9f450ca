//! callseal and the independent reader (`tests/reader`) must describe the same sealed bytes in the same words.
//!
//! Whole provider transcripts are recorded in memory, put together as a folder store would hold them, and opened by
//! both. Python comes from `TEST_PYTHON`, which `scripts/test` sets; without it these tests are skipped, in CI they fail.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use callseal::clock;
use callseal::domain::audio::{AudioFormat, Codec, Speakers};
use callseal::domain::cmr::{
    Dek, Expected, Frame, GapReason, Manifest, RecordingVerifier, TAIL_BYTES, Tail, sha256,
};
use callseal::domain::ids::{RecordingId, TenantId, TrackId};
use callseal::domain::playback::timeline::{Canvas, Timeline};
use callseal::domain::provider::twilio::TwilioDecoder;
use callseal::domain::provider::{Event, Media, Payload};
use callseal::domain::recording::{EndCause, RecordingEnd, RecordingMetadata, TrackEntry, from_cbor};
use callseal::domain::session::{
    AgentAudio, CallSession, DtmfPolicy, Entropy, EntropyFailed, Output, SegmentLimits, SessionSetup,
};
use callseal::domain::time::UnixMillis;
use serde_json::{Value, json};

const TENANT: &str = "acme-dental";
const ACCOUNT: &str = "AC000000000000000000000000c0ffee01";
const STARTED: UnixMillis = UnixMillis(1_760_000_000_000);
/// Small, so that every transcript is cut into several segments.
const LIMITS: SegmentLimits = SegmentLimits { max_age: Duration::from_secs(5), max_bytes: 2500 };

/// Counts instead of guessing; unique is all that a test needs.
struct Counting(u8);

impl Entropy for Counting {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyFailed> {
        self.0 = self.0.checked_add(1).ok_or(EntropyFailed)?;
        out.fill(self.0);
        Ok(())
    }
}

/// Makes a key from its bytes.
pub(crate) fn dek_of(bytes: &[u8]) -> Dek {
    Dek::filled_by(|key| {
        key.copy_from_slice(bytes);
        Ok::<_, ()>(())
    })
    .unwrap()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A finished recording as it lies in a store.
struct Recorded {
    dek: [u8; 32],
    ids: Expected,
    segments: Vec<Vec<u8>>,
    manifest: Vec<u8>,
}

impl Recorded {
    /// Records what Twilio sends in one transcript. `None` when no stream ever starts.
    fn from_transcript(name: &str, number: u8) -> Option<Self> {
        let dek = [number; 32];
        let tenant = TENANT.parse::<TenantId>().unwrap().tag();
        let recording = RecordingId::new(STARTED.0, &[number; 10]);
        let ids = Expected { tenant, recording, key: dek_of(&dek).key_id(tenant, recording) };
        let mut decoder = TwilioDecoder::new(vec![ACCOUNT.parse().unwrap()], 100);
        let (mut session, mut now) = (None, clock::monotonic());
        for message in from_twilio(name) {
            now += Duration::from_millis(10);
            feed(&mut decoder, &mut session, &message, now, &dek, ids);
        }
        let mut session = session?;
        let cause = if decoder.has_stopped() { EndCause::Stop } else { EndCause::PeerLost };
        session.finish(STARTED.plus(Duration::from_secs(100)), cause).unwrap();
        Some(Self::sealed(session, dek, ids))
    }

    /// Takes what a session has sealed.
    fn sealed(mut session: CallSession, dek: [u8; 32], ids: Expected) -> Self {
        let (mut segments, mut manifest) = (Vec::new(), Vec::new());
        while let Some(output) = session.poll_output() {
            match output {
                Output::Segment(segment) => segments.push(segment.bytes),
                Output::Finished(finished) => manifest = finished.bytes,
            }
        }
        Self { dek, ids, segments, manifest }
    }

    /// Records two channels of 16-bit samples with a gap, over several segments.
    fn of_pcm(number: u8) -> Self {
        let dek = [number; 32];
        let tenant = TENANT.parse::<TenantId>().unwrap().tag();
        let recording = RecordingId::new(STARTED.0, &[number; 10]);
        let ids = Expected { tenant, recording, key: dek_of(&dek).key_id(tenant, recording) };
        let setup = SessionSetup {
            dek: dek_of(&dek),
            ids,
            limits: LIMITS,
            dtmf: DtmfPolicy::Keep,
            agent: AgentAudio::Received,
            speakers: Speakers::Unnamed,
            metadata: RecordingMetadata {
                v: 1,
                tenant: TENANT.to_owned(),
                route: "reception".to_owned(),
                provider: "vapi".to_owned(),
                account: String::new(),
                call: "01a024d9-bef8-7b44-9a10-6f2c8e51b7d0".to_owned(),
                stream: String::new(),
                started_ms: STARTED.0,
                parameters: BTreeMap::new(),
                retention_days: 90,
                own_days: false,
                ticket: BTreeMap::new(),
                consent: None,
                format: AudioFormat::new(Codec::S16le, 16_000).unwrap(),
            },
        };
        let mut now = clock::monotonic();
        let mut session = CallSession::start(setup, Box::new(Counting(0)), now, STARTED).unwrap();
        for message in 0u8..200 {
            now += Duration::from_millis(100);
            for track in [TrackId::CALLER, TrackId::AGENT] {
                let audio = [message ^ track.number(), track.number() + 1].repeat(320);
                let payload = Payload::bytes_of(&audio);
                let media = Media { track, sequence: None, timestamp_ms: None, payload };
                session.handle_media(now, STARTED, &media).unwrap();
            }
            if message == 77 {
                let time = Duration::from_millis(1234);
                session.handle_gap(now, STARTED, time, GapReason::LostBeforeUs).unwrap();
            }
        }
        session.finish(STARTED.plus(Duration::from_secs(100)), EndCause::Stop).unwrap();
        Self::sealed(session, dek, ids)
    }

    /// The final object, as the compactor makes it without any key.
    fn compacted(&self) -> Vec<u8> {
        let mut object = self.segments.concat();
        let tail = Tail {
            manifest_offset: object.len() as u64,
            manifest_len: u32::try_from(self.manifest.len()).unwrap(),
            segments: u32::try_from(self.segments.len()).unwrap(),
        };
        object.extend_from_slice(&self.manifest);
        object.extend_from_slice(&tail.encode());
        object
    }

    fn put_final(&self, store: &Path) {
        let dir = self.folder(store);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("final.cmr"), self.compacted()).unwrap();
    }

    fn put_parts(&self, store: &Path) {
        let dir = self.folder(store);
        fs::create_dir_all(dir.join("s")).unwrap();
        for (row, segment) in Manifest::rows_without_key(&self.manifest).unwrap().iter().zip(&self.segments) {
            fs::write(dir.join(format!("s/{}-{:08}.cmr", row.writer, row.seq)), segment).unwrap();
        }
        fs::write(dir.join("m-0000.cmr"), &self.manifest).unwrap();
    }

    fn folder(&self, store: &Path) -> PathBuf {
        store.join(format!("r/{}/{}", self.ids.tenant, self.ids.recording))
    }

    /// Opens the final object and tells what the independent reader is asked to tell.
    fn described(&self) -> Value {
        let (object, dek) = (self.compacted(), dek_of(&self.dek));
        let tail = Tail::parse(&object, object.len() as u64).unwrap();
        let offset = usize::try_from(tail.manifest_offset).unwrap();
        let manifest_bytes = &object[offset..object.len() - TAIL_BYTES];
        let manifest = Manifest::open(manifest_bytes, &dek, &self.ids).unwrap();
        let timeline = Timeline::new(&manifest.rows, &manifest.spans);
        let metadata: RecordingMetadata = from_cbor(&manifest.metadata).unwrap();
        let mut seen = Seen::new(metadata.format, &timeline);
        let mut verifier = RecordingVerifier::new(&dek, self.ids);
        let mut rows = Vec::new();
        for (number, row) in timeline.rows().iter().enumerate() {
            let start = usize::try_from(row.offset).unwrap();
            let segment = &object[start..start + row.row.byte_len as usize];
            verifier.check_row(&row.row, segment, |frame| seen.frame(number, frame)).unwrap();
            let row = row.row;
            let writer = row.writer.to_string();
            rows.push(json!({"writer": writer, "seq": row.seq, "bytes": row.byte_len, "state": "Complete"}));
        }
        assert_eq!(timeline.segment_bytes(), tail.manifest_offset);
        json!({
            "grade": "authentic",
            "state": "complete",
            "root": hex(&sha256(manifest_bytes)),
            "revision": manifest.revision,
            "metadata": metadata,
            "reason": from_cbor::<RecordingEnd>(&manifest.end).unwrap(),
            "unlisted": [],
            "rows": rows,
            "tracks": seen.tracks(),
            "gaps": seen.gaps,
            "events": seen.events,
        })
    }
}

/// What the frames of a recording show.
struct Seen {
    canvas: Canvas,
    table: Vec<TrackEntry>,
    tracks: BTreeMap<u8, TrackSeen>,
    gaps: Vec<Value>,
    events: Vec<Value>,
}

#[derive(Default)]
struct TrackSeen {
    frames: u64,
    audio: Vec<u8>,
    span: Option<(u32, u32)>,
}

impl Seen {
    fn new(format: AudioFormat, timeline: &Timeline) -> Self {
        let canvas = Canvas::new(format, timeline.origin(), &(0..timeline.samples()));
        Self { canvas, table: Vec::new(), tracks: BTreeMap::new(), gaps: Vec::new(), events: Vec::new() }
    }

    fn frame(&mut self, row: usize, frame: &Frame<'_>) {
        self.canvas.paint_frame(frame).unwrap();
        match frame {
            Frame::Audio { track, pts, samples, payload } => {
                let seen = self.tracks.entry(track.number()).or_default();
                let end = pts + samples;
                let (first, last) = seen.span.unwrap_or((*pts, end));
                seen.span = Some((first.min(*pts), last.max(end)));
                seen.frames += 1;
                seen.audio.extend_from_slice(payload);
            }
            Frame::Gap { track, pts, samples, reason } => {
                self.gaps.push(gap(row, *track, *pts, *samples, *reason))
            }
            Frame::Event { track, pts, body } => {
                let event: Value = from_cbor(body).unwrap();
                self.events.push(json!({"row": row, "track": track.number(), "pts": pts, "event": event}));
            }
            Frame::TrackTable(table) => self.table = from_cbor(table).unwrap(),
            Frame::Metadata(_) | Frame::TimeIndex(_) | Frame::Trailer(_) => {}
            Frame::Unknown(kind) => panic!("kind {kind} is never written"),
        }
    }

    fn tracks(&self) -> Value {
        let describe = |(number, seen): (&u8, &TrackSeen)| {
            let role = &self.table.iter().find(|entry| entry.track == *number).unwrap().role;
            let heard =
                if *number == TrackId::CALLER.number() { self.canvas.caller() } else { self.canvas.agent() };
            let (first_pts, end_pts) = seen.span.unwrap();
            let described = json!({
                "role": role,
                "frames": seen.frames,
                "payload_bytes": seen.audio.len(),
                "first_pts": first_pts,
                "end_pts": end_pts,
                "sha256": hex(&sha256(&seen.audio)),
                "rendered_sha256": hex(&sha256(heard)),
                "rendered_bytes": heard.len(),
            });
            (number.to_string(), described)
        };
        Value::Object(self.tracks.iter().map(describe).collect())
    }
}

fn gap(row: usize, track: TrackId, pts: u32, samples: u32, reason: GapReason) -> Value {
    json!({
        "row": row,
        "track": track.number(),
        "pts": pts,
        "samples": samples,
        "reason": reason.number(),
    })
}

/// Every transcript of one stream, by name.
fn transcripts() -> Vec<String> {
    let manifest = fs::read_to_string(repository("tests/vectors/twilio/twilio-manifest.json")).unwrap();
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let files = manifest["files"].as_object().unwrap();
    let streams =
        files.iter().filter(|(name, file)| file["expect"] != "n/a" && *name != "twilio-frames.jsonl");
    streams.map(|(name, _)| name.clone()).collect()
}

/// The messages of a transcript that Twilio sends.
fn from_twilio(name: &str) -> Vec<String> {
    let lines = fs::read_to_string(repository("tests/vectors/twilio").join(name)).unwrap();
    let message = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        match value.get("from").and_then(Value::as_str) {
            Some("twilio") => Some(value["msg"].to_string()),
            Some(_) => None,
            None => Some(line.to_owned()),
        }
    };
    lines.lines().filter_map(message).collect()
}

/// What a connection does with one message, without the connection.
fn feed(
    decoder: &mut TwilioDecoder,
    session: &mut Option<CallSession>,
    message: &str,
    now: Instant,
    dek: &[u8],
    ids: Expected,
) {
    let Ok(event) = decoder.decode(message) else { return };
    match (event, session) {
        (Event::Start(start), session) => {
            let metadata = RecordingMetadata {
                v: 1,
                tenant: TENANT.to_owned(),
                route: "reception".to_owned(),
                provider: "twilio".to_owned(),
                account: start.account,
                call: start.call,
                stream: start.stream,
                started_ms: STARTED.0,
                parameters: start.parameters,
                retention_days: 90,
                own_days: false,
                ticket: BTreeMap::new(),
                consent: None,
                format: AudioFormat::TELEPHONE,
            };
            let setup = SessionSetup {
                dek: dek_of(dek),
                ids,
                limits: LIMITS,
                dtmf: DtmfPolicy::Keep,
                agent: AgentAudio::Received,
                speakers: Speakers::CallerAndAgent,
                metadata,
            };
            let mut started = CallSession::start(setup, Box::new(Counting(0)), now, STARTED).unwrap();
            started.handle_number(start.sequence);
            *session = Some(started);
        }
        (Event::Media(media), Some(session)) => {
            let _undecodable = session.handle_media(now, STARTED, &media);
        }
        (Event::Mark { sequence, name }, Some(session)) => {
            session.handle_mark(now, STARTED, sequence, &name).unwrap();
        }
        (Event::Dtmf { sequence, digit }, Some(session)) => {
            session.handle_dtmf(now, STARTED, sequence, digit).unwrap();
        }
        (Event::Stop { sequence } | Event::Ignored { sequence, .. }, Some(session)) => {
            session.handle_number(sequence);
        }
        _ => {}
    }
}

/// Runs a Python program of this repository; `None` when there is no Python for it.
fn python(arguments: &[&OsStr]) -> Option<(bool, String)> {
    let Some(python) = std::env::var_os("TEST_PYTHON") else {
        let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!in_ci, "TEST_PYTHON is not set; run scripts/test");
        println!("skipped: TEST_PYTHON is not set; run scripts/test");
        return None;
    };
    let ran = Command::new(python).args(arguments).output().unwrap();
    let said = String::from_utf8(ran.stdout).unwrap() + &String::from_utf8_lossy(&ran.stderr);
    Some((ran.status.success(), said))
}

fn opened_by_the_other(store: &Path, recorded: &Recorded) -> Option<Value> {
    described_by_the_other(store, &recorded.dek, recorded.ids.recording)
}

/// Opens a recording of [`TENANT`] with the independent reader; `None` when there is no Python for it.
pub(crate) fn described_by_the_other(store: &Path, dek: &[u8], recording: RecordingId) -> Option<Value> {
    described_by_the_other_with(store, "--dek", hex(dek).as_ref(), &recording.to_string())
}

/// The same with another option that leads to the key.
pub(crate) fn described_by_the_other_with(
    store: &Path,
    option: &str,
    key: &Path,
    recording: &str,
) -> Option<Value> {
    let reader = repository("tests/reader/cmr1.py");
    let arguments = ["open", "--json", "--tenant", TENANT, "--recording", recording, "--store"];
    let mut all = vec![reader.as_os_str()];
    all.extend(arguments.map(OsStr::new));
    all.extend([store.as_os_str(), OsStr::new(option), key.as_os_str()]);
    let (success, said) = python(&all)?;
    assert!(success, "{said}");
    Some(serde_json::from_str(&said).unwrap())
}

#[test]
fn both_readers_describe_every_transcript_alike() {
    let (mut compared, mut several_rows, mut gaps, mut events) = (0, 0, 0, 0);
    for (number, name) in (1u8..).zip(transcripts()) {
        let Some(recorded) = Recorded::from_transcript(&name, number) else { continue };
        let ours = recorded.described();
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        recorded.put_final(whole.path());
        recorded.put_parts(parts.path());
        for store in [whole.path(), parts.path()] {
            let Some(theirs) = opened_by_the_other(store, &recorded) else { return };
            let theirs = theirs.as_object().unwrap();
            for (key, value) in ours.as_object().unwrap() {
                let of_parts_only = key == "unlisted" && store == whole.path();
                assert!(theirs.get(key) == Some(value) || of_parts_only, "{name}: {key}: {value} {theirs:?}");
            }
            assert!(theirs.keys().all(|key| ours.get(key).is_some()), "{name}: {theirs:?}");
        }
        let length = |key: &str| ours[key].as_array().unwrap().len();
        compared += 1;
        several_rows += usize::from(length("rows") > 1);
        gaps += length("gaps");
        events += length("events");
    }
    assert_eq!(compared, 17, "every transcript but the one without a start");
    assert!(several_rows >= 10 && gaps >= 5 && events >= 6, "{several_rows} {gaps} {events}");
}

#[test]
fn both_readers_describe_samples_of_two_bytes_alike() {
    let recorded = Recorded::of_pcm(99);
    let ours = recorded.described();
    let track = &ours["tracks"]["1"];
    assert_eq!(track["role"], "channel");
    assert_eq!(track["rendered_bytes"], 2 * (200 * 320 + 1234 * 16));
    assert_eq!(track["payload_bytes"], 2 * 200 * 320);
    assert!(ours["rows"].as_array().unwrap().len() > 1);
    let store = tempfile::tempdir().unwrap();
    recorded.put_final(store.path());
    let Some(theirs) = opened_by_the_other(store.path(), &recorded) else { return };
    for (key, value) in ours.as_object().unwrap() {
        assert!(theirs.get(key) == Some(value) || key == "unlisted", "{key}: {value} {theirs:?}");
    }
}

#[test]
fn the_other_reader_passes_its_own_test_and_wrote_the_vectors() {
    let checks: [(&str, &str); 2] =
        [("tests/reader/cmr1.py", "selftest"), ("tests/vectors/cmr1/make_vectors.py", "--check")];
    for (program, argument) in checks {
        let program = repository(program);
        let Some((success, said)) = python(&[program.as_os_str(), OsStr::new(argument)]) else { return };
        assert!(success, "{said}");
    }
}
