//! Streams that press against the bounds of the format.

use super::*;
use crate::domain::cmr::limits::OBJECT_BYTES;

/// Feeds one message on the caller's track.
fn feed_audio(session: &mut CallSession, now: Instant, number: u64, at_ms: u64, payload: &str) {
    let media = Media {
        track: TrackId::CALLER,
        sequence: Some(number),
        timestamp_ms: Some(at_ms),
        payload: Payload::new(payload),
    };
    session.handle_media(now, UnixMillis(0), &media).unwrap();
}

#[test]
fn any_number_of_gaps_can_be_finished_and_is_listed_or_counted() {
    let now = crate::clock::monotonic();
    let mut session =
        CallSession::start(setup(LIMITS, DtmfPolicy::Redact), Box::new(Counting(0)), now, UnixMillis(0))
            .unwrap();
    for i in 0..3000u64 {
        // Odd places first: every second one is late and splits or fills a gap.
        feed_audio(&mut session, now, 4 * i + 2, i * 200 + 100, "/////////38=");
        feed_audio(&mut session, now, 4 * i + 1, i * 200 + 40, "/////////38=");
    }
    session.finish(UnixMillis(0), EndCause::Stop).unwrap();
    let end = read_back(&mut session).end;
    assert!(end.gaps.len() <= 512, "{}", end.gaps.len());
    let listed: u64 = end.gaps.iter().map(|gap| u64::from(gap.samples)).sum();
    let told = listed + end.counts.unlisted_gap_samples;
    // Late audio takes one of 199 milliseconds back where the gap is listed.
    assert!((2999 * 198 * 8..2999 * 199 * 8).contains(&told), "{told}");
}

#[test]
fn a_segment_never_grows_beyond_what_readers_accept() {
    let now = crate::clock::monotonic();
    let limits = SegmentLimits { max_age: Duration::from_secs(60), max_bytes: OBJECT_BYTES };
    let mut session =
        CallSession::start(setup(limits, DtmfPolicy::Redact), Box::new(Counting(0)), now, UnixMillis(0))
            .unwrap();
    // The longest message that a configuration can allow.
    let payload = base64::engine::general_purpose::STANDARD.encode(vec![0x55; 780_000]);
    for i in 0..22u64 {
        feed_audio(&mut session, now, i + 2, i * 97_500, &payload);
    }
    session.finish(UnixMillis(0), EndCause::Stop).unwrap();
    let recorded = read_back(&mut session);
    assert_eq!(recorded.segments.len(), 2);
    assert_eq!(recorded.heard[0].len(), 22 * 780_000);
}
