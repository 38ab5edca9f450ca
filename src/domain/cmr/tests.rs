//! Round trips, and every attack that a store's owner could try.

mod vectors;

use proptest::prelude::*;

use super::header::ObjectHeader;
use super::segment::seal_bytes;
use super::writer::ObjectWriter;
use super::*;
use crate::domain::ids::{KeyId, RecordingId, TenantId, TrackId, WriterId};

const CREATED_MS: u64 = 1_760_000_000_000;

fn dek() -> Dek {
    dek_of(|i| i as u8)
}

fn dek_of(byte: impl Fn(usize) -> u8) -> Dek {
    Dek::filled_by::<()>(|key| {
        key.iter_mut().enumerate().for_each(|(i, b)| *b = byte(i));
        Ok(())
    })
    .unwrap()
}

fn expected() -> Expected {
    let tenant = "acme-dental".parse::<TenantId>().unwrap().tag();
    let recording = "018f4c2e7b5a7c3d9e1f0a2b3c4d5e6f".parse::<RecordingId>().unwrap();
    Expected { tenant, recording, key: dek().key_id(tenant, recording) }
}

fn writer() -> WriterId {
    "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf".parse().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The published vector of 563 bytes.
fn tiny() -> Vec<u8> {
    let header = ObjectHeader {
        kind: ObjectKind::Segment,
        ids: expected(),
        writer: writer(),
        seq: 0,
        created_ms: CREATED_MS,
        salt: [0x11; 32],
        prev: [0; 16],
    };
    let mut object = ObjectWriter::new(&dek(), &[0x11; 32], header.encode(&[]).unwrap(), 0);
    seal_bytes(&mut object, 0x10, false, &[&[0; 4][..], &[0xff; 160]].concat()).unwrap();
    seal_bytes(&mut object, 0x00, false, &[0x7f; 160]).unwrap();
    seal_bytes(&mut object, 0xf0, true, &[0, 0, 0, 3, 0, 0]).unwrap();
    object.into_bytes()
}

/// Opens a whole object; answers how it ended and what it holds.
fn read_all(object: &[u8]) -> Result<(EndOfObject, usize, Vec<String>), ReadError> {
    let dek = dek();
    let mut reader = ObjectReader::new(object, ObjectKind::Segment, &dek, &expected())?;
    let (mut scratch, mut seen) = (Vec::new(), Vec::new());
    while let Some(frame) = reader.next_frame(&mut scratch)? {
        seen.push(format!("{frame:?}"));
    }
    Ok((reader.end().unwrap(), reader.consumed_bytes(), seen))
}

#[test]
fn a_box_opens_only_as_it_was_sealed() {
    let sealed = SealedBox::WRAPPED_DEK.seal(&[1; 32], &[2; 32], b"context", &[9; 32]).unwrap();
    let open = |key, context: &[u8], bytes: &[u8]| SealedBox::WRAPPED_DEK.open(&key, context, bytes);
    assert!(open([1; 32], b"context", &sealed).is_ok());
    assert!(open([3; 32], b"context", &sealed).is_err(), "another key");
    assert!(open([1; 32], b"context2", &sealed).is_err(), "another context");
    assert!(SealedBox::AUDIT_RECORD.open(&[1; 32], b"context", &sealed).is_err(), "another use");
    for end in 0..sealed.len() {
        assert!(open([1; 32], b"context", &sealed[..end]).is_err(), "cut at {end}");
    }
    for bit in 0..sealed.len() * 8 {
        let mut flipped = sealed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(open([1; 32], b"context", &flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn every_bit_flip_of_an_object_is_noticed() {
    let object = tiny();
    let (_, _, honest) = read_all(&object).unwrap();
    for bit in 0..object.len() * 8 {
        let mut flipped = object.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        if let Ok((end, _, frames)) = read_all(&flipped) {
            // A length that points past the end reads as torn; the manifest's flag catches that.
            assert_eq!(end, EndOfObject::TornTail, "bit {bit}");
            assert_eq!(frames[..], honest[..frames.len()], "bit {bit}: only honest frames are released");
        }
    }
}

#[test]
fn every_prefix_of_an_object_is_a_torn_one() {
    let object = tiny();
    let boundaries = [176, 359, 538];
    for length in 0..object.len() {
        let prefix = &object[..length];
        match read_all(prefix) {
            Ok((end, consumed, _)) => {
                let whole = boundaries.contains(&length);
                assert_eq!(end, if whole { EndOfObject::Unfinished } else { EndOfObject::TornTail });
                assert_eq!(consumed, whole_frames_prefix(prefix), "cut at {length}");
            }
            Err(error) => {
                assert!(length < HEADER_BYTES, "cut at {length}: {error}");
                assert_eq!(whole_frames_prefix(prefix), 0);
            }
        }
    }
}

#[test]
fn another_tenant_recording_or_key_is_refused_before_decryption() {
    let (object, dek, good) = (tiny(), dek(), expected());
    let mut other = good;
    other.tenant.0[0] ^= 1;
    let open =
        |expected: &Expected| ObjectReader::new(&object, ObjectKind::Segment, &dek, expected).err().unwrap();
    assert_eq!(open(&other), ReadError::ContextMismatch("tenant"));
    let mut other = good;
    other.recording.0[0] ^= 1;
    assert_eq!(open(&other), ReadError::ContextMismatch("recording"));
    let other = Expected { key: KeyId([0; 16]), ..good };
    assert_eq!(open(&other), ReadError::ContextMismatch("key"));
    let wrong = dek_of(|_| 9);
    let error = ObjectReader::new(&object, ObjectKind::Segment, &wrong, &good).err();
    assert_eq!(error, Some(ReadError::WrongKeyOrTamperedHeader));
}

/// A recording of `segments` small segments of one writer, with its manifest.
fn small_recording(segments: u32) -> (Vec<Vec<u8>>, Vec<Row>, Vec<u8>) {
    let dek = dek();
    let (mut objects, mut rows, mut spans, mut prev) = (Vec::new(), Vec::new(), Vec::new(), [0; 16]);
    for seq in 0..segments {
        let ids = SegmentIds { ids: expected(), writer: writer(), seq, created_ms: CREATED_MS, prev };
        let mut segment =
            SegmentWriter::start(&dek, ids, &[seq as u8 + 1; 32], b"\x80", (seq == 0).then_some(b"\xa0"), 0)
                .unwrap();
        for i in 0..3 {
            let pts = seq * 480 + i * 160;
            audio(&mut segment, TrackId::CALLER, pts, &[i as u8; 160]).unwrap();
        }
        let finished = segment.finish(EndReason::Rotate).unwrap();
        prev = finished.commitment_half;
        spans.push(vec![TrackSpan {
            track: TrackId::CALLER,
            first_pts: seq * 480,
            end_pts: seq * 480 + 480,
        }]);
        rows.push(finished.row);
        objects.push(finished.bytes);
    }
    let manifest = ManifestWriter {
        ids: expected(),
        writer: writer(),
        revision: 0,
        created_ms: CREATED_MS,
        rows: &rows,
        spans: &spans,
        metadata: b"\xa0",
        state: EndState::Complete,
        end: b"\xa0",
    }
    .seal(&dek, &[0xee; 32])
    .unwrap();
    (objects, rows, manifest)
}

fn audio(segment: &mut SegmentWriter, track: TrackId, pts: u32, payload: &[u8]) -> Result<u32, SealError> {
    segment.audio_with(track, pts, |inner| {
        inner.extend_from_slice(payload);
        Ok(payload.len() as u32)
    })
}

/// Verifies `objects` as the rows of a recording.
fn verify(objects: &[Vec<u8>], rows: &[Row]) -> Result<(), ReadError> {
    let dek = dek();
    let mut verifier = RecordingVerifier::new(&dek, expected());
    for (row, object) in rows.iter().zip(objects) {
        verifier.check_row(row, object, |_| ())?;
    }
    Ok(())
}

/// The row that an attacker who can rewrite the manifest would make for `object`.
fn row_for(object: &[u8], like: &Row) -> Row {
    Row { byte_len: object.len() as u32, sha256: sha256(object), ..*like }
}

#[test]
fn a_manifest_opens_to_what_was_sealed() {
    let (objects, rows, manifest) = small_recording(3);
    let opened = Manifest::open(&manifest, &dek(), &expected()).unwrap();
    assert_eq!(opened.rows, rows);
    assert_eq!(opened.spans[2][0].first_pts, 960);
    assert_eq!((opened.state, opened.revision), (EndState::Complete, 0));
    assert_eq!(Manifest::rows_without_key(&manifest).unwrap(), rows);
    verify(&objects, &rows).unwrap();
}

#[test]
fn every_bit_flip_and_prefix_of_a_manifest_is_refused() {
    let (_, _, manifest) = small_recording(2);
    let (dek, expected) = (dek(), expected());
    for bit in 0..manifest.len() * 8 {
        let mut flipped = manifest.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Manifest::open(&flipped, &dek, &expected).is_err(), "bit {bit}");
    }
    for length in 0..manifest.len() {
        assert!(Manifest::open(&manifest[..length], &dek, &expected).is_err(), "cut at {length}");
    }
    let longer = [&manifest[..], &[0]].concat();
    assert!(Manifest::open(&longer, &dek, &expected).is_err());
}

#[test]
fn segments_cannot_be_moved_dropped_or_swapped() {
    let (objects, rows, _) = small_recording(3);
    let swapped = [objects[1].clone(), objects[0].clone(), objects[2].clone()];
    assert_eq!(verify(&swapped, &rows), Err(ReadError::DigestMismatch(0)));
    let swapped_rows = [rows[1], rows[0], rows[2]];
    assert_eq!(verify(&swapped, &swapped_rows), Err(ReadError::SequenceMismatch(0)));
    let dropped = [objects[0].clone(), objects[2].clone()];
    assert_eq!(verify(&dropped, &[rows[0], rows[2]]), Err(ReadError::SequenceMismatch(1)));
    let renumbered = Row { seq: 1, ..rows[2] };
    assert_eq!(verify(&dropped, &[rows[0], renumbered]), Err(ReadError::SequenceMismatch(1)));
}

#[test]
fn a_segment_of_another_chain_is_refused() {
    let (mut objects, mut rows, _) = small_recording(2);
    let ids = SegmentIds { ids: expected(), writer: writer(), seq: 1, created_ms: 0, prev: [7; 16] };
    let forged = SegmentWriter::start(&dek(), ids, &[0x99; 32], b"\x80", None, 0).unwrap();
    objects[1] = forged.finish(EndReason::CallEnd).unwrap().bytes;
    rows[1] = row_for(&objects[1], &rows[1]);
    assert_eq!(verify(&objects, &rows), Err(ReadError::ChainMismatch(1)));
}

#[test]
fn completeness_must_be_what_the_manifest_says() {
    let (mut objects, mut rows, _) = small_recording(2);
    rows[1].complete = false;
    assert_eq!(verify(&objects, &rows), Err(ReadError::StateMismatch(1)));
    let whole = objects[1].len();
    objects[1].truncate(whole - 10);
    rows[1] = row_for(&objects[1], &rows[1]);
    assert_eq!(verify(&objects, &rows), Ok(()), "a torn last segment is a crash");
    rows[1].complete = true;
    assert_eq!(verify(&objects, &rows), Err(ReadError::StateMismatch(1)));
    rows[0].complete = false;
    let whole = objects[0].len();
    objects[0].truncate(whole - 10);
    rows[0] = row_for(&objects[0], &rows[0]);
    assert_eq!(verify(&objects, &rows), Err(ReadError::StateMismatch(1)), "a torn one in the middle is not");
}

#[test]
fn bytes_after_the_trailer_are_refused() {
    let (mut objects, mut rows, _) = small_recording(1);
    objects[0].push(0);
    rows[0] = row_for(&objects[0], &rows[0]);
    assert_eq!(verify(&objects, &rows), Err(ReadError::TrailingData));
}

#[test]
fn a_full_segment_says_so_and_still_ends_properly() {
    let ids = SegmentIds { ids: expected(), writer: writer(), seq: 0, created_ms: 0, prev: [0; 16] };
    let mut segment = SegmentWriter::start(&dek(), ids, &[1; 32], b"\x80", None, 0).unwrap();
    let mut sealed = 1;
    let error = loop {
        match audio(&mut segment, TrackId::CALLER, sealed, &[0xff]) {
            Ok(_) => sealed += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error, sealed), (SealError::Exhausted, limits::FRAMES - 1));
    let finished = segment.finish(EndReason::Limit).unwrap();
    verify(&[finished.bytes], &[finished.row]).unwrap();
}

#[test]
fn a_frame_that_cannot_be_filled_leaves_no_trace() {
    let ids = SegmentIds { ids: expected(), writer: writer(), seq: 0, created_ms: 0, prev: [0; 16] };
    let mut segment = SegmentWriter::start(&dek(), ids, &[1; 32], b"\x80", None, 0).unwrap();
    let before = segment.bytes().to_vec();
    let refused: Result<u32, SealError> = segment.audio_with(TrackId::CALLER, 0, |inner| {
        inner.extend_from_slice(b"secret");
        Err(SealError::FrameSize(6))
    });
    assert!(refused.is_err());
    assert_eq!(segment.bytes(), before);
    assert!(audio(&mut segment, TrackId::CALLER, 0, &vec![0; MAX_FRAME_PAYLOAD_BYTES + 1]).is_err());
    assert!(audio(&mut segment, TrackId::CALLER, 0, &vec![0; MAX_FRAME_PAYLOAD_BYTES]).is_ok());
    let finished = segment.finish(EndReason::CallEnd).unwrap();
    verify(&[finished.bytes], &[finished.row]).unwrap();
}

#[derive(Debug, Clone)]
enum Written {
    Audio { track: u8, pts: u32, payload: Vec<u8> },
    Gap { track: u8, pts: u32, samples: u32, reason: u8 },
    Event { pts: u32, body: Vec<u8> },
}

fn written() -> impl Strategy<Value = Written> {
    prop_oneof![
        4 => (0..3u8, 0..100_000u32, proptest::collection::vec(any::<u8>(), 1..400))
            .prop_map(|(track, pts, payload)| Written::Audio { track, pts, payload }),
        1 => (0..3u8, 0..1u32 << 31, 0..1u32 << 31, 1..6u8)
            .prop_map(|(track, pts, samples, reason)| Written::Gap { track, pts, samples, reason }),
        1 => (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..50))
            .prop_map(|(pts, body)| Written::Event { pts, body }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is sealed comes back as it was, with every position right.
    #[test]
    fn any_sequence_of_frames_round_trips(script in proptest::collection::vec(written(), 0..60)) {
        let ids = SegmentIds { ids: expected(), writer: writer(), seq: 0, created_ms: 0, prev: [0; 16] };
        let mut segment = SegmentWriter::start(&dek(), ids, &[4; 32], b"\x80", Some(b"\xa0"), 0).unwrap();
        let mut wanted = Vec::new();
        for item in &script {
            match item {
                Written::Audio { track, pts, payload } => {
                    audio(&mut segment, TrackId::from_nibble(*track), *pts, payload).unwrap();
                    wanted.push(format!("audio {track} {pts} {payload:?}"));
                }
                Written::Gap { track, pts, samples, reason } => {
                    let reason = GapReason::from_number(*reason).unwrap();
                    segment.gap(TrackId::from_nibble(*track), *pts, *samples, reason).unwrap();
                    wanted.push(format!("gap {track} {pts} {samples} {reason:?}"));
                }
                Written::Event { pts, body } => {
                    segment.event(TrackId::CALLER, *pts, body).unwrap();
                    wanted.push(format!("event {pts} {body:?}"));
                }
            }
        }
        let finished = segment.finish(EndReason::CallEnd).unwrap();
        let mut seen = Vec::new();
        let dek = dek();
        RecordingVerifier::new(&dek, expected()).check_row(&finished.row, &finished.bytes, |frame| match frame {
            Frame::Audio { track, pts, payload, .. } => {
                seen.push(format!("audio {} {pts} {payload:?}", track.number()));
            }
            Frame::Gap { track, pts, samples, reason } => {
                seen.push(format!("gap {} {pts} {samples} {reason:?}", track.number()));
            }
            Frame::Event { pts, body, .. } => seen.push(format!("event {pts} {body:?}")),
            _ => {}
        }).unwrap();
        prop_assert_eq!(seen, wanted);
    }

    /// Hostile bytes never panic and never read as a whole object.
    #[test]
    fn arbitrary_bytes_are_never_a_recording(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), real in any::<bool>()) {
        if real && bytes.len() > 16 {
            bytes[..16].copy_from_slice(&tiny()[..16]);
        }
        prop_assert!(read_all(&bytes).is_err());
        prop_assert!(Manifest::open(&bytes, &dek(), &expected()).is_err());
        prop_assert!(Manifest::rows_without_key(&bytes).is_err());
        prop_assert!(Tail::parse(&bytes, bytes.len() as u64).is_err());
        prop_assert!(whole_frames_prefix(&bytes) <= bytes.len());
    }
}
