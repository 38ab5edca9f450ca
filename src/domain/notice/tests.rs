use std::collections::BTreeSet;

use super::*;
use crate::domain::recording::{EndCause, StreamCounts};

const SCHEDULE: Schedule = Schedule {
    attempt: Duration::from_secs(10),
    first: Duration::from_secs(15),
    longest: Duration::from_secs(4 * 3600),
    give_up: Duration::from_secs(24 * 3600),
};
const RECORDING: RecordingId = RecordingId([7; 16]);

fn tenant() -> TenantId {
    "acme-dental".parse().unwrap()
}

fn end(gaps: Vec<GapEntry>) -> RecordingEnd {
    RecordingEnd {
        v: 1,
        life: Life::Partial,
        cause: EndCause::PeerLost,
        ended_ms: 1_790_000_000_000,
        expires_ms: 1_821_536_000_000,
        gaps,
        counts: StreamCounts::default(),
        notes: BTreeMap::new(),
    }
}

fn gap(track: u8, samples: u32, reason: GapReason) -> GapEntry {
    GapEntry { track, pts: 0, samples, reason: reason.number() }
}

fn events(end: &RecordingEnd) -> Vec<Event> {
    ended(&Ended {
        recording: RECORDING,
        revision: 0,
        end,
        format: AudioFormat::TELEPHONE,
        route: "reception",
        call: "CA1",
    })
}

#[test]
fn every_kind_has_a_name_of_its_own() {
    let names: BTreeSet<_> = NoticeKind::CHOICES.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), NoticeKind::CHOICES.len());
    for kind in NoticeKind::CHOICES {
        assert_eq!(NoticeKind::from_name(kind.name()), Some(kind));
    }
    assert_eq!(NoticeKind::from_name("webhook.test"), Some(NoticeKind::Test));
    assert_eq!(NoticeKind::from_name("recording.*"), None);
}

#[test]
fn ids_follow_from_what_happened_and_to_whom() {
    let (acme, other) = (tenant().tag(), "other".parse::<TenantId>().unwrap().tag());
    let event = |kind, subject| Event { kind, subject, facts: Facts::default() };
    let complete = event(NoticeKind::Complete, Subject::Recording(RECORDING, 0));
    assert_eq!(complete.id(acme), event(NoticeKind::Complete, Subject::Recording(RECORDING, 0)).id(acme));
    assert_eq!(complete.id(acme), complete.clone().because("x").id(acme), "facts are not part of it");
    let ids: BTreeSet<_> = [
        complete.id(acme),
        complete.id(other),
        event(NoticeKind::Partial, Subject::Recording(RECORDING, 0)).id(acme),
        event(NoticeKind::Complete, Subject::Recording(RECORDING, 1)).id(acme),
        event(NoticeKind::Complete, Subject::Recording(RecordingId([8; 16]), 0)).id(acme),
        event(NoticeKind::Complete, Subject::Call([7; 16])).id(acme),
        event(NoticeKind::Complete, Subject::Period(7)).id(acme),
        event(NoticeKind::Complete, Subject::Period(8)).id(acme),
    ]
    .into();
    assert_eq!(ids.len(), 8);
}

#[test]
fn lost_audio_is_added_up_by_reason_and_pauses_are_none() {
    let mut end = end(vec![
        gap(0, 80, GapReason::Overload),
        gap(1, 81, GapReason::Overload),
        gap(0, 8000, GapReason::LostBeforeUs),
        gap(0, 999_999, GapReason::Source),
        gap(0, 999_999, GapReason::Pause),
        gap(0, 999_999, GapReason::Policy),
    ]);
    end.counts.unlisted_gap_samples = 17;
    let lost = Lost::of(&end, AudioFormat::TELEPHONE);
    // 161 samples are 20.125 ms.
    assert_eq!(lost.lost_ms_by_reason, [("overload", 21), ("lost_before_us", 1000)].into());
    assert_eq!((lost.lost_ms, lost.unlisted_gap_ms), (1021, 3));
    let told = events(&end);
    assert_eq!(
        told.iter().map(|event| event.kind).collect::<Vec<_>>(),
        [NoticeKind::Partial, NoticeKind::AudioLost]
    );
    let told = events(&super::tests::end(vec![gap(0, 8000, GapReason::Source)]));
    assert_eq!(told.iter().map(|event| event.kind).collect::<Vec<_>>(), [NoticeKind::Partial]);
}

#[test]
fn a_body_is_json_with_ids_and_nothing_personal() {
    let told = events(&end(vec![gap(0, 8, GapReason::Overload)]));
    let body = String::from_utf8(told[1].body(&tenant(), "2026-11-26T12:00:00Z")).unwrap();
    let id = told[1].id(tenant().tag());
    assert_eq!(
        body,
        format!(
            "{{\"id\":\"{id}\",\"type\":\"audio.lost\",\"created\":\"2026-11-26T12:00:00Z\",\"tenant\":\"acme-dental\",\
             \"recording\":\"{RECORDING}\",\"revision\":0,\"route\":\"reception\",\"call\":\"CA1\",\"cause\":\"peer-lost\",\
             \"ended_ms\":1790000000000,\"expires_ms\":1821536000000,\"lost_ms\":1,\
             \"lost_ms_by_reason\":{{\"overload\":1}},\"unlisted_gap_ms\":0}}"
        )
    );
    let key =
        Event { kind: NoticeKind::KeyUnavailable, subject: Subject::Period(3), facts: Facts::default() };
    let body = String::from_utf8(key.because("denied").body(&tenant(), "2026-11-26T12:00:00Z")).unwrap();
    assert!(!body.contains("recording") && body.ends_with("\"reason\":\"denied\"}"), "{body}");
}

#[test]
fn each_secret_makes_a_signature() {
    // RFC 4231 test case 2.
    let signed = sign([&b"Jefe"[..]].into_iter(), 0, b"what do ya want for nothing?");
    assert_eq!(signed.body, "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
    let two = sign([&b"Jefe"[..], b"other"].into_iter(), 7, b"what do ya want for nothing?");
    assert!(two.body.starts_with(&format!("{},sha256=", signed.body)));
    assert_eq!(two.body.len(), 2 * 71 + 1);
    let timed = sign([&b"Jefe"[..]].into_iter(), 7, b"x").timed;
    assert_eq!(timed, sign([&b"Jefe"[..]].into_iter(), 0, b"7.x").body);
}

#[test]
fn statuses_are_judged() {
    let all = [(200, Verdict::Delivered), (204, Verdict::Delivered), (301, Verdict::Redirect)];
    let all = [&all[..], &[(400, Verdict::Again), (404, Verdict::Again), (410, Verdict::Gone)]].concat();
    for (status, verdict) in
        [&all[..], &[(429, Verdict::Again), (500, Verdict::Again), (101, Verdict::Again)]].concat()
    {
        assert_eq!(judge(status), verdict, "{status}");
    }
}

#[test]
fn pauses_double_up_to_a_bound_and_never_overlap_an_attempt() {
    let id = NoticeId([1; 16]);
    for attempt in 1..=40u32 {
        let pause = (SCHEDULE.first * 2u32.pow(attempt.min(20) - 1)).min(SCHEDULE.longest);
        let wait = SCHEDULE.wait(id, attempt);
        assert!(wait >= SCHEDULE.attempt + pause && wait <= SCHEDULE.attempt + pause * 3 / 2, "{attempt}");
        assert_eq!(wait, SCHEDULE.wait(id, attempt), "all nodes agree");
    }
    let waits: BTreeSet<_> = (0..100).map(|n| SCHEDULE.wait(NoticeId([n; 16]), 3)).collect();
    assert!(waits.len() > 90, "attempts are spread");
}

#[test]
fn a_notice_is_tried_for_a_day_and_about_fourteen_times() {
    for seed in 0..50 {
        let id = NoticeId([seed; 16]);
        let attempts = (1..100).find(|attempt| SCHEDULE.is_last(id, *attempt)).unwrap();
        assert!((11..=16).contains(&attempts), "{attempts} attempts");
        let last_at: Duration = (1..attempts).map(|attempt| SCHEDULE.wait(id, attempt)).sum();
        assert!(last_at <= SCHEDULE.give_up && last_at + SCHEDULE.wait(id, attempts) > SCHEDULE.give_up);
        assert!(SCHEDULE.is_last(id, attempts + 1));
    }
}
