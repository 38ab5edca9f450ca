//! Streams of 16-bit samples, which come without timestamps.

use super::*;
use crate::domain::audio::Codec;

fn pcm_setup(rate: u32) -> SessionSetup {
    let mut setup = setup(LIMITS, DtmfPolicy::Redact);
    setup.metadata.format = AudioFormat::new(Codec::S16le, rate).unwrap();
    setup.speakers = Speakers::Unnamed;
    setup
}

fn pcm_session(rate: u32, now: Instant) -> CallSession {
    CallSession::start(pcm_setup(rate), Box::new(Counting(0)), now, UnixMillis(0)).unwrap()
}

fn feed_pcm(session: &mut CallSession, now: Instant, track: TrackId, audio: &[u8]) {
    let media = Media { track, sequence: None, timestamp_ms: None, payload: Payload::bytes_of(audio) };
    session.handle_media(now, UnixMillis(0), &media).unwrap();
}

proptest! {
    #[test]
    fn samples_of_two_bytes_are_heard_as_they_came_with_gaps_of_silence(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 2..200), 1..60),
        lost_ms in proptest::collection::vec(0u64..50, 60),
    ) {
        let mut now = crate::clock::monotonic();
        let mut session = pcm_session(16_000, now);
        let (mut caller, mut agent, mut lost) = (Vec::new(), Vec::new(), 0);
        for (message, lost_ms) in messages.iter().zip(lost_ms) {
            now += Duration::from_millis(200);
            let whole = &message[..message.len() & !1];
            let other: Vec<u8> = whole.iter().map(|byte| byte ^ 0x5a).collect();
            feed_pcm(&mut session, now, TrackId::CALLER, whole);
            feed_pcm(&mut session, now, TrackId::AGENT, &other);
            caller.extend_from_slice(whole);
            agent.extend_from_slice(&other);
            if lost_ms > 40 {
                let time = Duration::from_millis(lost_ms);
                session.handle_gap(now, UnixMillis(0), time, GapReason::LostBeforeUs).unwrap();
                let silence = vec![0; usize::try_from(lost_ms).unwrap() * 32];
                caller.extend_from_slice(&silence);
                agent.extend_from_slice(&silence);
                lost += 2 * u32::try_from(lost_ms).unwrap() * 16;
            }
        }
        session.finish(UnixMillis(0), EndCause::Stop).unwrap();
        let recorded = read_back(&mut session);
        // A gap at the end is told, but nothing is played there.
        let heard = recorded.heard[0].len();
        prop_assert!(caller[heard..].iter().all(|byte| *byte == 0));
        prop_assert_eq!(&recorded.heard[0][..], &caller[..heard]);
        prop_assert_eq!(&recorded.heard[1][..], &agent[..heard]);
        prop_assert_eq!(recorded.end.gaps.iter().map(|gap| gap.samples).sum::<u32>(), lost);
        prop_assert_eq!(recorded.end.life == Life::Complete, lost == 0);
        let bytes = 2 * messages.iter().map(|message| message.len() & !1).sum::<usize>();
        prop_assert_eq!(recorded.end.counts.audio_bytes, bytes as u64);
        prop_assert_eq!(recorded.arrival.concat().len(), bytes);
    }
}

#[test]
fn long_messages_are_split_between_samples() {
    let now = crate::clock::monotonic();
    let mut session = pcm_session(48_000, now);
    let message: Vec<u8> = (0u32..1024 * 1024).map(|at| at.to_le_bytes()[(at & 1) as usize]).collect();
    for _ in 0..3 {
        feed_pcm(&mut session, now, TrackId::CALLER, &message);
    }
    session.finish(UnixMillis(0), EndCause::Stop).unwrap();
    let recorded = read_back(&mut session);
    assert!(recorded.heard[0] == message.repeat(3));
    assert!(recorded.heard[1].iter().all(|byte| *byte == 0) && recorded.heard[1].len() == 3 * message.len());
    assert_eq!((recorded.end.life, recorded.segments.len()), (Life::Complete, 3));
}

#[test]
fn a_call_that_was_joined_late_is_never_complete_and_keeps_its_notes() {
    let now = crate::clock::monotonic();
    let mut session = pcm_session(16_000, now);
    session.handle_joined_late(now, UnixMillis(0), Duration::from_millis(250)).unwrap();
    feed_pcm(&mut session, now, TrackId::CALLER, &[1, 2, 3, 4]);
    for number in 0..40 {
        assert_eq!(session.note(&number.to_string(), &"x".repeat(300)), number < 15, "{number}");
    }
    assert!(session.note("3", "another") && !session.note("3", &"x".repeat(400)));
    // As many gaps as can be listed still fit beside them.
    for _ in 0..600 {
        session.handle_gap(now, UnixMillis(0), Duration::from_secs(100), GapReason::LostBeforeUs).unwrap();
        feed_pcm(&mut session, now, TrackId::AGENT, &[1, 2]);
    }
    session.finish(UnixMillis(0), EndCause::Stop).unwrap();
    let recorded = read_back(&mut session);
    assert_eq!((recorded.end.life, recorded.end.gaps[0].samples), (Life::Partial, 4000));
    assert_eq!((recorded.end.notes["joined_after_ms"].as_str(), recorded.end.notes.len()), ("250", 16));
    assert_eq!((recorded.end.notes["3"].as_str(), recorded.end.gaps.len()), ("another", 512));
}

#[test]
fn a_gap_beyond_the_clock_is_refused() {
    let now = crate::clock::monotonic();
    let mut session = pcm_session(48_000, now);
    let mut gap =
        |secs| session.handle_gap(now, UnixMillis(0), Duration::from_secs(secs), GapReason::LostBeforeUs);
    assert_eq!(gap(24 * 3600), Ok(()));
    assert_eq!(gap(3600), Err(SessionError::ClockFull));
    assert_eq!(gap(u64::MAX / 2_000_000), Err(SessionError::ClockFull));
}

#[test]
fn what_an_agent_says_in_samples_of_two_bytes_is_queued_and_cut_between_them() {
    let began = crate::clock::monotonic();
    let mut setup = pcm_setup(16_000);
    setup.agent = AgentAudio::Queued;
    let mut session = CallSession::start(setup, Box::new(Counting(0)), began, UnixMillis(0)).unwrap();
    let at = |ms: u64| began + Duration::from_millis(ms);
    let said: Vec<u8> = (0u16..1600).flat_map(|at| (at + 1).to_le_bytes()).collect();
    for number in 0..10u64 {
        let (silence, timestamp_ms) = ([0; 640], Some(20 * number));
        let payload = Payload::bytes_of(&silence);
        let media = Media { track: TrackId::CALLER, sequence: Some(number), timestamp_ms, payload };
        session.handle_media(at(20 * number + 20), UnixMillis(0), &media).unwrap();
        if number == 0 {
            session.handle_agent_media(at(20), UnixMillis(0), &Payload::bytes_of(&said)).unwrap();
        }
        if number == 2 {
            // 40 ms of it were played.
            session.handle_agent_clear(at(60), UnixMillis(0)).unwrap();
        }
    }
    session.finish(UnixMillis(0), EndCause::Stop).unwrap();
    let recorded = read_back(&mut session);
    assert_eq!(recorded.arrival[1], said[..2 * 640]);
    assert_eq!(recorded.heard[1][640..][..2 * 640], said[..2 * 640]);
}

#[test]
fn without_timestamps_a_queued_agent_is_placed_by_where_the_caller_is() {
    let began = crate::clock::monotonic();
    let mut setup = pcm_setup(16_000);
    (setup.agent, setup.speakers) = (AgentAudio::Queued, Speakers::CallerAndAgent);
    let mut session = CallSession::start(setup, Box::new(Counting(0)), began, UnixMillis(0)).unwrap();
    let at = |ms: u64| began + Duration::from_millis(ms);
    let said: Vec<u8> = (0u16..640).flat_map(|at| (at + 1).to_le_bytes()).collect();
    let speak = |session: &mut CallSession, from: u64| {
        // 300 ms; the first of them half a second after the recording began.
        for number in 0..15u64 {
            feed_pcm(session, at(500 + from + 20 * number + 20), TrackId::CALLER, &[1; 640]);
        }
    };
    speak(&mut session, 0);
    // 200 ms of silence follow, which the caller's clock knows before anybody makes a gap of them.
    session.handle_agent_media(at(500 + 400), UnixMillis(0), &Payload::bytes_of(&said)).unwrap();
    // 60 ms that nobody has looked at, behind the 40 ms in the queue.
    session.handle_agent_missed(at(500 + 401), UnixMillis(0), 960).unwrap();
    session.handle_agent_media(at(500 + 402), UnixMillis(0), &Payload::bytes_of(&said)).unwrap();
    let absent = Duration::from_millis(200);
    session.handle_gap(at(1020), UnixMillis(0), absent, GapReason::Source).unwrap();
    speak(&mut session, 500);
    session.finish(UnixMillis(0), EndCause::Stop).unwrap();

    let recorded = read_back(&mut session);
    let ms = |ms: usize| 32 * ms;
    let [caller, agent] = &recorded.heard;
    assert_eq!(caller[..], [vec![1; ms(300)], vec![0; ms(200)], vec![1; ms(300)]].concat());
    let wanted = [vec![0; ms(400)], said.clone(), vec![0; ms(60)], said, vec![0; ms(260)]].concat();
    assert_eq!(agent[..], wanted[..agent.len()]);
    let gaps: Vec<_> =
        recorded.end.gaps.iter().map(|gap| (gap.track, gap.pts, gap.samples, gap.reason)).collect();
    let (source, overload) = (GapReason::Source.number(), GapReason::Overload.number());
    assert_eq!(gaps, [(1, 7040, 960, overload), (0, 4800, 3200, source)]);
    assert_eq!(recorded.end.life, Life::Partial);
}
