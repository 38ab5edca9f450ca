//! Whole streams through decoder and session, read back and compared with what the published manifest demands.

mod bounds;
mod pcm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use proptest::prelude::*;
use serde_json::Value;

use super::segments::row_span;
use super::*;
use crate::domain::audio::{AudioFormat, Speakers};
use crate::domain::cmr::{Frame, Manifest, RecordingVerifier};
use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::playback::timeline::{Canvas, Timeline};
use crate::domain::provider::twilio::TwilioDecoder;
use crate::domain::provider::{CloseReason, DropReason, Event, Payload, Refusal};
use crate::domain::recording::{EndCause, Life};

/// Counts instead of guessing; unique is all that a test needs.
struct Counting(u8);

impl Entropy for Counting {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyFailed> {
        self.0 = self.0.checked_add(1).ok_or(EntropyFailed)?;
        out.fill(self.0);
        Ok(())
    }
}

fn dek() -> Dek {
    Dek::filled_by::<()>(|key| {
        key.fill(0x42);
        Ok(())
    })
    .unwrap()
}

fn ids() -> Expected {
    let tenant = "acme-dental".parse::<TenantId>().unwrap().tag();
    let recording = RecordingId::new(1_760_000_000_000, &[1; 10]);
    Expected { tenant, recording, key: dek().key_id(tenant, recording) }
}

fn setup(limits: SegmentLimits, dtmf: DtmfPolicy) -> SessionSetup {
    let metadata = RecordingMetadata {
        v: 1,
        tenant: "acme-dental".into(),
        route: "reception".into(),
        provider: "twilio".into(),
        account: "AC".into(),
        call: "CA".into(),
        stream: "MZ".into(),
        started_ms: 0,
        parameters: BTreeMap::new(),
        retention_days: 90,
        own_days: false,
        ticket: BTreeMap::new(),
        consent: None,
        format: AudioFormat::TELEPHONE,
    };
    SessionSetup {
        dek: dek(),
        ids: ids(),
        limits,
        dtmf,
        agent: AgentAudio::Received,
        speakers: Speakers::CallerAndAgent,
        metadata,
    }
}

const LIMITS: SegmentLimits = SegmentLimits { max_age: Duration::from_secs(5), max_bytes: 256 * 1024 };

/// A finished recording, opened again.
struct Recorded {
    end: RecordingEnd,
    segments: Vec<Vec<u8>>,
    /// Per track: payloads in the order they were sealed.
    arrival: [Vec<u8>; 2],
    /// Per track: what is heard.
    heard: [Vec<u8>; 2],
    frames: Vec<String>,
}

fn read_back(session: &mut CallSession) -> Recorded {
    let mut segments = Vec::new();
    let mut finished = None;
    while let Some(output) = session.poll_output() {
        match output {
            Output::Segment(segment) => segments.push(segment.bytes),
            Output::Finished(manifest) => finished = Some(manifest),
        }
    }
    let finished = finished.expect("the session was finished");
    let (dek, ids) = (dek(), ids());
    let manifest = Manifest::open(&finished.bytes, &dek, &ids).unwrap();
    assert_eq!(manifest.rows, finished.rows);
    let timeline = Timeline::new(&manifest.rows, &manifest.spans);
    let whole = 0..timeline.samples();
    let metadata: RecordingMetadata = crate::domain::recording::from_cbor(&manifest.metadata).unwrap();
    let mut canvas = Canvas::new(metadata.format, timeline.origin(), &whole);
    let mut recorded = Recorded {
        end: crate::domain::recording::from_cbor(&manifest.end).unwrap(),
        segments,
        arrival: Default::default(),
        heard: Default::default(),
        frames: Vec::new(),
    };
    assert_eq!(recorded.end, finished.end);
    let mut verifier = RecordingVerifier::new(&dek, ids);
    for ((row, span), segment) in manifest.rows.iter().zip(&manifest.spans).zip(&recorded.segments) {
        let evidence = verifier
            .check_row(row, segment, |frame| {
                canvas.paint_frame(frame).unwrap();
                if let Frame::Audio { track, payload, .. } = frame {
                    recorded.arrival[usize::from(track.number())].extend_from_slice(payload);
                } else {
                    recorded.frames.push(format!("{frame:?}"));
                }
            })
            .unwrap();
        assert_eq!(row_span(&evidence.trailer.unwrap().tracks), *span);
    }
    recorded.heard = [canvas.caller().to_vec(), canvas.agent().to_vec()];
    recorded
}

fn fixture(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/vectors/twilio", name].iter().collect();
    std::fs::read_to_string(path).unwrap()
}

fn decoder() -> TwilioDecoder {
    TwilioDecoder::new(vec!["AC000000000000000000000000c0ffee01".parse().unwrap()], 100)
}

/// What a shell does with one message, without the shell.
fn feed(
    decoder: &mut TwilioDecoder,
    session: &mut Option<CallSession>,
    message: &str,
    now: Instant,
) -> Result<(), Refusal> {
    let wall = UnixMillis(1_760_000_000_000);
    let event = decoder.decode(message);
    match (event?, session) {
        (Event::Start(start), session) => {
            let mut started =
                CallSession::start(setup(LIMITS, DtmfPolicy::Redact), Box::new(Counting(0)), now, wall)
                    .unwrap();
            started.handle_number(start.sequence);
            *session = Some(started);
        }
        (Event::Media(media), Some(session)) => match session.handle_media(now, wall, &media) {
            Ok(_) => {}
            Err(SessionError::BadBase64(_)) => return Err(decoder.dropped(DropReason::BadBase64)),
            Err(error) => panic!("{error}"),
        },
        (Event::Mark { sequence, name }, Some(session)) => {
            session.handle_mark(now, wall, sequence, &name).unwrap();
        }
        (Event::Dtmf { sequence, digit }, Some(session)) => {
            session.handle_dtmf(now, wall, sequence, digit).unwrap();
        }
        (Event::Stop { sequence } | Event::Ignored { sequence, .. }, Some(session)) => {
            session.handle_number(sequence);
        }
        _ => {}
    }
    Ok(())
}

/// Replays a transcript; `None` when no stream ever started.
fn replay(lines: impl Iterator<Item = String>) -> Option<Recorded> {
    let (mut decoder, mut session) = (decoder(), None);
    let mut now = crate::clock::monotonic();
    for line in lines {
        now += Duration::from_millis(10);
        let _dropped = feed(&mut decoder, &mut session, &line, now);
    }
    let cause = if decoder.has_stopped() { EndCause::Stop } else { EndCause::PeerLost };
    let mut session = session?;
    session.finish(UnixMillis(1_760_000_100_000), cause).unwrap();
    Some(read_back(&mut session))
}

fn sha256_hex(bytes: &[u8]) -> String {
    sha256_of(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn sha256_of(bytes: &[u8]) -> [u8; 32] {
    crate::domain::cmr::sha256(bytes)
}

/// The lines of a transcript that Twilio sends.
fn from_twilio(name: &str) -> Vec<String> {
    let lines = fixture(name);
    let unwrap = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        match value.get("from").and_then(Value::as_str) {
            Some("twilio") => Some(value["msg"].to_string()),
            Some(_) => None,
            None => Some(line.to_owned()),
        }
    };
    lines.lines().filter_map(unwrap).collect()
}

#[test]
fn every_transcript_gives_what_the_manifest_demands() {
    let manifest: Value = serde_json::from_str(&fixture("twilio-manifest.json")).unwrap();
    let mut checked = 0;
    for (name, wanted) in manifest["files"].as_object().unwrap() {
        if wanted["expect"] == "n/a" || name == "twilio-frames.jsonl" {
            continue;
        }
        checked += 1;
        let recorded = replay(from_twilio(name).into_iter());
        if name == "twilio-tricky-connected-only.jsonl" {
            assert!(recorded.is_none(), "{name}: no recording without a start");
            continue;
        }
        let recorded = recorded.unwrap_or_else(|| panic!("{name}: a recording"));
        check_transcript(name, wanted, &recorded);
    }
    assert_eq!(checked, 18);
}

fn check_transcript(name: &str, wanted: &Value, recorded: &Recorded) {
    let complete = wanted["final"] == "stop" && wanted["missing_sequence_numbers"].is_null();
    let life = if complete { Life::Complete } else { Life::Partial };
    assert_eq!(recorded.end.life, life, "{name}");
    let counts = &recorded.end.counts;
    assert_eq!(counts.duplicates, wanted["duplicates"].as_u64().unwrap_or(0), "{name}: duplicates");
    assert_eq!(counts.missing_messages, wanted["missing_sequence_numbers"].as_u64().unwrap_or(0), "{name}");
    for (index, track) in ["inbound", "outbound"].iter().enumerate() {
        let wanted_track = &wanted["tracks"][track];
        if wanted_track.is_null() {
            assert!(recorded.arrival[index].is_empty(), "{name}: {track}");
            continue;
        }
        let gaps: Vec<(u64, u64)> = recorded
            .end
            .gaps
            .iter()
            .filter(|gap| usize::from(gap.track) == index)
            .map(|gap| (u64::from(gap.pts / 8), u64::from(gap.samples / 8)))
            .collect();
        let wanted_gaps: Vec<(u64, u64)> = wanted_track["gaps"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|gap| (gap["expected_ts"].as_u64().unwrap(), gap["missing_ms"].as_u64().unwrap()))
            .collect();
        if let Some(sorted) = wanted["sha256_sorted_dedup"][track].as_str() {
            assert_eq!(sha256_hex(&recorded.heard[index]), sorted, "{name}: what is heard");
            assert_eq!(counts.late, 3, "{name}: late, one pair and one turned triple");
            assert_eq!(gaps, [], "{name}: late audio fills the gaps");
            continue;
        }
        assert_eq!(gaps, wanted_gaps, "{name}: gaps");
        assert_eq!(recorded.arrival[index].len() as u64, wanted_track["bytes"].as_u64().unwrap(), "{name}");
        assert_eq!(
            sha256_hex(&recorded.arrival[index]),
            wanted_track["sha256_arrival_order"],
            "{name}: {track}"
        );
    }
}

#[test]
fn every_odd_frame_meets_the_expected_reaction() {
    let manifest: Value = serde_json::from_str(&fixture("twilio-manifest.json")).unwrap();
    let setup = &manifest["files"]["twilio-frames.jsonl"]["setup"];
    let (connected, start) = (setup["connected"].to_string(), setup["start"].to_string());
    let stop = r#"{"event":"stop"}"#;
    let mut seen = 0;
    for line in fixture("twilio-frames.jsonl").lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let name = case["name"].as_str().unwrap();
        let (mut decoder, mut session) = (decoder(), None);
        let now = crate::clock::monotonic();
        let before: &[&str] = match case["state"].as_str().unwrap() {
            "open" => &[],
            "after-connected" => &[&connected],
            "after-start" => &[&connected, &start],
            "after-stop" => &[&connected, &start, stop],
            other => panic!("{other}"),
        };
        before.iter().for_each(|message| feed(&mut decoder, &mut session, message, now).unwrap());
        seen += 1;
        if case["frame"] == "binary" {
            assert_eq!(decoder.dropped(DropReason::Binary), Refusal::Drop(DropReason::Binary));
            continue;
        }
        let reaction = feed(&mut decoder, &mut session, case["raw"].as_str().unwrap(), now);
        let counts = session.as_ref().map(|session| *session.counts()).unwrap_or_default();
        match case["expect"].as_str().unwrap() {
            "drop-message" => {
                assert!(matches!(reaction, Err(Refusal::Drop(_))), "{name}: {reaction:?}");
                assert_eq!(counts.frames, 0, "{name}");
            }
            "close-1008" => assert_eq!(close_code(reaction), Some(1008), "{name}: {reaction:?}"),
            "close-1003" => assert_eq!(close_code(reaction), Some(1003), "{name}: {reaction:?}"),
            "store" => assert_eq!((reaction, counts.frames), (Ok(()), 1), "{name}"),
            "store-without-timestamp" => {
                let untimed = counts.untimed + counts.implausible;
                assert_eq!((reaction, counts.frames, untimed), (Ok(()), 1, 1), "{name}");
            }
            "accept" | "ignore" => assert_eq!((reaction, counts.frames), (Ok(()), 0), "{name}"),
            // The last of two equal keys counts, so this one is a stop.
            "either-but-consistent" => assert!(reaction.is_ok() && decoder.has_stopped(), "{name}"),
            other => panic!("{name}: {other}"),
        }
    }
    assert_eq!(seen, 43);
}

fn close_code(reaction: Result<(), Refusal>) -> Option<u16> {
    match reaction {
        Err(Refusal::Close(reason)) => Some(reason.code()),
        Err(Refusal::Drop(_)) | Ok(()) => None,
    }
}

#[test]
fn a_flood_of_bad_messages_closes_the_stream() {
    let mut decoder = decoder();
    for _ in 0..100 {
        assert_eq!(decoder.decode("x"), Err(Refusal::Drop(DropReason::NotAnEvent)));
    }
    assert_eq!(decoder.decode("x"), Err(Refusal::Close(CloseReason::Flood)));
}

#[test]
fn a_pressed_key_is_sealed_without_the_key_unless_the_route_keeps_it() {
    for (policy, kept) in [(DtmfPolicy::Redact, false), (DtmfPolicy::Keep, true)] {
        let now = crate::clock::monotonic();
        let mut session =
            CallSession::start(setup(LIMITS, policy), Box::new(Counting(0)), now, UnixMillis(0)).unwrap();
        let digit = Digit::parse("7").unwrap();
        session.handle_dtmf(now, UnixMillis(0), None, digit).unwrap();
        session.finish(UnixMillis(0), EndCause::Stop).unwrap();
        let recorded = read_back(&mut session);
        let event = recorded.frames.iter().find(|frame| frame.starts_with("Event")).unwrap();
        let digit_bytes = format!("{:?}", b"digit").trim_matches(['[', ']']).to_owned();
        assert_eq!(event.contains(&digit_bytes), kept, "{event}");
    }
}

#[test]
fn segments_are_cut_by_age_and_by_size_and_empty_time_makes_none() {
    let mut now = crate::clock::monotonic();
    let limits = SegmentLimits { max_age: Duration::from_secs(5), max_bytes: 20_000 };
    let mut session =
        CallSession::start(setup(limits, DtmfPolicy::Redact), Box::new(Counting(0)), now, UnixMillis(0))
            .unwrap();
    assert_eq!(session.poll_timeout(), None, "nothing to cut");
    now += Duration::from_secs(100);
    session.handle_timeout(now, UnixMillis(0)).unwrap();
    let payload = base64::engine::general_purpose::STANDARD.encode([0x55; 160]);
    for i in 0..300u64 {
        now += Duration::from_millis(20);
        let media = Media {
            track: TrackId::CALLER,
            sequence: Some(i + 2),
            timestamp_ms: Some(i * 20),
            payload: Payload::new(payload.as_str()),
        };
        session.handle_media(now, UnixMillis(0), &media).unwrap();
    }
    let due = session.poll_timeout().unwrap();
    session.handle_timeout(due, UnixMillis(0)).unwrap();
    session.handle_timeout(due + Duration::from_secs(60), UnixMillis(0)).unwrap();
    session.finish(UnixMillis(0), EndCause::Stop).unwrap();
    let recorded = read_back(&mut session);
    // 300 frames of about 180 bytes: cut at 20,000 bytes each, the rest by age, then an empty last one.
    assert_eq!(recorded.segments.len(), 4);
    assert_eq!(recorded.heard[0], [0x55; 300 * 160]);
}

#[test]
fn the_journal_sees_every_byte_of_the_open_segment_once() {
    let now = crate::clock::monotonic();
    let mut session =
        CallSession::start(setup(LIMITS, DtmfPolicy::Redact), Box::new(Counting(0)), now, UnixMillis(0))
            .unwrap();
    let mut journal = Vec::new();
    for i in 0..10u64 {
        let unjournaled = session.unjournaled().unwrap();
        assert_eq!(unjournaled.offset as usize, journal.len());
        journal.extend_from_slice(unjournaled.bytes);
        session.mark_journaled();
        assert_eq!(session.unjournaled(), None);
        let media = Media {
            track: TrackId::AGENT,
            sequence: None,
            timestamp_ms: Some(i * 20),
            payload: Payload::new("AAAA"),
        };
        session.handle_media(now, UnixMillis(0), &media).unwrap();
    }
    session.finish(UnixMillis(0), EndCause::Stop).unwrap();
    let Some(Output::Segment(segment)) = session.poll_output() else { panic!("a segment") };
    assert_eq!(segment.journaled_bytes, journal.len());
    assert_eq!(segment.bytes[..journal.len()], journal);
}

#[test]
fn no_random_bytes_no_recording() {
    struct Empty;
    impl Entropy for Empty {
        fn fill(&mut self, _: &mut [u8]) -> Result<(), EntropyFailed> {
            Err(EntropyFailed)
        }
    }
    let started = CallSession::start(
        setup(LIMITS, DtmfPolicy::Redact),
        Box::new(Empty),
        crate::clock::monotonic(),
        UnixMillis(0),
    );
    assert!(matches!(started, Err(SessionError::Entropy(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// A plain model beside the session: in-order audio lands where its timestamp says, and is never lost.
    #[test]
    fn any_stream_plays_back_as_a_plain_model_says(
        steps in proptest::collection::vec((0..2u8, 0..4u8, 1..400usize, any::<u8>()), 1..80),
        max_bytes in 400..6000usize,
    ) {
        let limits = SegmentLimits { max_age: Duration::from_secs(5), max_bytes };
        let mut now = crate::clock::monotonic();
        let mut session =
            CallSession::start(setup(limits, DtmfPolicy::Redact), Box::new(Counting(0)), now, UnixMillis(0)).unwrap();
        let mut model: [BTreeMap<usize, u8>; 2] = Default::default();
        let mut ends = [0usize; 2];
        for (i, (track, pause, eighths, byte)) in steps.iter().enumerate() {
            now += Duration::from_millis(20);
            let index = usize::from(*track);
            // Whole milliseconds of audio; pauses of 0, 10, 20 or 30 ms.
            let audio = vec![*byte; eighths * 8];
            let at_ms = ends[index] / 8 + usize::from(*pause) * 10;
            let media = Media {
                track: TrackId::from_nibble(*track),
                sequence: Some(i as u64 + 2),
                timestamp_ms: Some(at_ms as u64),
                payload: Payload::new(base64::engine::general_purpose::STANDARD.encode(&audio)),
            };
            session.handle_media(now, UnixMillis(0), &media).unwrap();
            for (offset, byte) in audio.iter().enumerate() {
                model[index].insert(at_ms * 8 + offset, *byte);
            }
            ends[index] = at_ms * 8 + audio.len();
        }
        session.finish(UnixMillis(0), EndCause::Stop).unwrap();
        let recorded = read_back(&mut session);
        let origin = model.iter().filter_map(|track| track.keys().next()).min().copied().unwrap();
        let samples = ends.iter().max().unwrap() - origin;
        for (track, heard) in model.iter().zip(&recorded.heard) {
            let wanted: Vec<u8> =
                (origin..origin + samples).map(|at| track.get(&at).copied().unwrap_or(0xff)).collect();
            prop_assert_eq!(heard, &wanted);
        }
        prop_assert_eq!(recorded.end.life, Life::Complete);
    }

    /// The quick scan and the full parser agree wherever the scan answers.
    #[test]
    fn scan_and_parser_agree(sequence in 0..10u64.pow(17), timestamp in 0..10u64.pow(17), outbound: bool, payload in "[A-Za-z0-9+/=]{0,40}") {
        let track = if outbound { "outbound" } else { "inbound" };
        let sid = "MZ2252165048fc02e85c762bae3488638e";
        let quick = format!(r#"{{"event":"media","sequenceNumber":"{sequence}","media":{{"track":"{track}","chunk":"1","timestamp":"{timestamp}","payload":"{payload}"}},"streamSid":"{sid}"}}"#);
        let manifest: Value = serde_json::from_str(&fixture("twilio-manifest.json")).unwrap();
        let start = manifest["files"]["twilio-frames.jsonl"]["setup"]["start"].to_string();
        let decode = |message: &str| {
            let mut decoder = decoder();
            decoder.decode(&start).unwrap();
            format!("{:?}", decoder.decode(message))
        };
        prop_assert_eq!(decode(&quick), decode(&format!(" {quick}")));
    }
}
