//! Sealed bytes on their way to the writer: joined, taken back, refused.

use std::sync::Arc;

use proptest::prelude::*;

use super::faults::Faults;
use super::*;

/// A journal whose files take nothing until `faults` lets them, with something in the writer's hands already.
fn held(dir: &Path, config: &JournalConfig) -> (Journal, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    faults.set(|state| state.writes_held = true);
    let (journal, _replay) =
        Journal::open_with(config, Arc::clone(&faults) as _, Arc::new(JournalMetrics::new())).unwrap();
    append(&journal, [opened(Q)]);
    wait_for("a writer that waits for its file", || !files(dir).is_empty());
    (journal, faults)
}

fn put(runs: &Runs, seq: u32, offset: u32, bytes: &[u8]) -> Result<(), Refused> {
    runs.append((W, seq), offset, bytes, clock::monotonic())
}

/// Reads what a crash would leave of a recording: each segment's bytes, and whether it was cut.
fn left(dir: &Path) -> (u64, Vec<(Vec<u8>, bool)>) {
    let (_copy, _journal, replay) = crash(dir);
    let recording = replay.recordings().iter().find(|found| found.recording == R).unwrap();
    let read =
        |segment: &ReplayedSegment| (replay.segment_bytes(segment).unwrap().to_vec(), segment.cut.is_some());
    (replay.report().records, recording.segments.iter().map(read).collect())
}

#[test]
fn frames_that_come_between_two_turns_are_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = held(dir.path(), &config(dir.path()));
    append(&journal, [opened(R)]);
    let runs = journal.runs(R);
    for (offset, byte) in (0..5).zip(b"abcde") {
        put(&runs, 0, offset, &[*byte]).unwrap();
    }
    faults.set(|state| state.writes_held = false);
    journal.sync_now(LIMIT).unwrap();
    // The begin of the file, two openings, and one run.
    assert_eq!(left(dir.path()), (4, vec![(b"abcde".to_vec(), false)]));
}

#[test]
fn what_was_taken_back_is_handed_over_by_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = held(dir.path(), &config(dir.path()));
    append(&journal, [opened(R)]);
    let runs = journal.runs(R);
    put(&runs, 0, 0, b"ab").unwrap();
    assert_eq!(runs.take_back((W, 1), 7), 7, "nothing waits of that segment");
    assert_eq!(runs.take_back((W, 0), 2), 0);
    assert_eq!(runs.take_back((W, 0), 2), 2, "nothing waits any more");
    append(&journal, [sealed(R, 0, 0, "abc"), cut(R, 0, 3)]);
    put(&runs, 1, 0, b"d").unwrap();
    faults.set(|state| state.writes_held = false);
    journal.sync_now(LIMIT).unwrap();
    assert_eq!(left(dir.path()), (6, vec![(b"abc".to_vec(), true), (b"d".to_vec(), false)]));
}

#[test]
fn a_segment_that_the_journal_lost_is_handed_over_from_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _faults) = held(dir.path(), &config(dir.path()));
    let runs = journal.runs(R);
    put(&runs, 0, 40, b"late").unwrap();
    // The bytes before 40 are in a file that was given up, so its owner counts from 0 again.
    assert_eq!(runs.take_back((W, 0), 0), 0);
}

#[test]
fn what_does_not_follow_waits_for_the_next_turn() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = held(dir.path(), &config(dir.path()));
    append(&journal, [opened(R)]);
    let runs = journal.runs(R);
    put(&runs, 0, 0, b"ab").unwrap();
    for (seq, offset) in [(0, 0), (0, 1), (0, 3), (1, 0), (1, 2)] {
        assert_eq!(put(&runs, seq, offset, b"x"), Err(Refused::Full), "segment {seq} from {offset}");
    }
    faults.set(|state| state.writes_held = false);
    wait_for("the writer's turn", || put(&runs, 1, 0, b"cd").is_ok());
    journal.sync_now(LIMIT).unwrap();
    assert_eq!(left(dir.path()).1, [(b"ab".to_vec(), false), (b"cd".to_vec(), false)]);
    journal.close(LIMIT).unwrap();
    assert_eq!(put(&runs, 1, 2, b"e"), Err(Refused::Closed));
}

#[test]
fn bytes_that_were_refused_or_taken_back_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let small = JournalConfig { queue_bytes: 100, queue_slots: 2, ..config(dir.path()) };
    let (journal, faults) = held(dir.path(), &small);
    let waiting = || journal.shared.waiting_bytes.load(Ordering::Relaxed);
    let before = waiting();
    let runs = journal.runs(R);
    put(&runs, 0, 0, &[7; 90]).unwrap();
    assert_eq!(put(&runs, 0, 90, &[7; 90]), Err(Refused::Full), "too many bytes");
    assert_eq!(put(&runs, 1, 0, b"x"), Err(Refused::Full), "another segment");
    assert_eq!(waiting(), before + 90);
    assert_eq!(runs.take_back((W, 0), 90), 0);
    wait_for("a full queue", || journal.append(cut(R, 0, 90)) == Err(Refused::Full));
    assert_eq!(put(&runs, 0, 0, &[7; 90]), Err(Refused::Full), "no place in the queue");
    assert_eq!(waiting(), before);
    faults.set(|state| state.writes_held = false);
    wait_for("room", || put(&runs, 0, 0, &[7; 90]).is_ok());
    journal.sync_now(LIMIT).unwrap();
    assert_eq!(waiting(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However frames, cuts and turns of the writer fall: every segment is there, byte for byte.
    #[test]
    fn every_byte_arrives_once(steps in prop::collection::vec((1usize..300, any::<bool>()), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _replay) = open(dir.path());
        append(&journal, [opened(R)]);
        let runs = journal.runs(R);
        let mut segments: Vec<(Vec<u8>, bool)> = vec![Default::default()];
        let mut handed_over = 0;
        for (number, (length, is_cut)) in steps.into_iter().enumerate() {
            let seq = u32::try_from(segments.len() - 1).unwrap();
            let (bytes, was_cut) = segments.last_mut().unwrap();
            bytes.extend((0..=u8::MAX).cycle().skip(number).take(length));
            let offset = |at: usize| u32::try_from(at).unwrap();
            if put(&runs, seq, offset(handed_over), &bytes[handed_over..]).is_ok() {
                handed_over = bytes.len();
            }
            if is_cut {
                let from = runs.take_back((W, seq), handed_over);
                append(&journal, [
                    sealed(R, seq, offset(from), bytes[from..].to_vec()),
                    cut(R, seq, offset(bytes.len())),
                ]);
                *was_cut = true;
                handed_over = 0;
                segments.push(Default::default());
            }
        }
        // What was refused at last.
        let (bytes, _) = segments.last().unwrap();
        let seq = u32::try_from(segments.len() - 1).unwrap();
        if handed_over < bytes.len() {
            wait_for("the writer's turn", || {
                put(&runs, seq, u32::try_from(handed_over).unwrap(), &bytes[handed_over..]).is_ok()
            });
        }
        segments.retain(|(bytes, _)| !bytes.is_empty());
        journal.sync_now(LIMIT).unwrap();
        prop_assert_eq!(left(dir.path()).1, segments);
    }
}
