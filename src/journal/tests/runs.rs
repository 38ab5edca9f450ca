//! Sealed bytes on their way to the writer: in order, noted for the right file, refused.

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

fn put(runs: &mut Runs, seq: u32, offset: u32, bytes: &[u8]) -> Result<(), Refused> {
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
fn frames_that_come_between_two_turns_are_written_together_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = held(dir.path(), &config(dir.path()));
    append(&journal, [opened(R)]);
    let mut runs = journal.runs(R);
    for (offset, byte) in (0..5).zip(b"abcde") {
        put(&mut runs, 0, offset, &[*byte]).unwrap();
    }
    append(&journal, [sealed(R, 0, 5, "f"), cut(R, 0, 6)]);
    put(&mut runs, 1, 0, b"g").unwrap();
    faults.set(|state| state.writes_held = false);
    journal.sync_now(LIMIT).unwrap();
    // The begin of the file, two openings, seven runs and a cut.
    assert_eq!(left(dir.path()), (11, vec![(b"abcdef".to_vec(), true), (b"g".to_vec(), false)]));
}

#[test]
fn a_run_that_comes_into_the_next_file_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let small = JournalConfig { file_bytes: 150, ..config(dir.path()) };
    let (journal, _replay) = Journal::open(&small).unwrap();
    append(&journal, [opened(R)]);
    journal.sync_now(LIMIT).unwrap();
    let mut runs = journal.runs(R);
    // Fills the first file; what follows is written to the next, of which nobody has spoken yet.
    put(&mut runs, 0, 0, &[7; 100]).unwrap();
    journal.sync_now(LIMIT).unwrap();
    put(&mut runs, 0, 100, b"x").unwrap();
    journal.sync_now(LIMIT).unwrap();
    // Beside it only what is over, so that nothing else keeps that file.
    let over = [opened(Q), sealed(Q, 0, 0, vec![8; 100]), cut(Q, 0, 100), stored(Q, 0), finished(Q)];
    append(&journal, over);
    journal.sync_now(LIMIT).unwrap();
    // The third file ends up full and unneeded: once it is gone, so would be the second.
    let other = RecordingId([9; 16]);
    append(
        &journal,
        [opened(other), sealed(other, 0, 0, vec![9; 100]), cut(other, 0, 100), stored(other, 0)],
    );
    append(&journal, [finished(other)]);
    journal.sync_now(LIMIT).unwrap();
    append(&journal, [opened(RecordingId([10; 16]))]);
    wait_for("removal of the third file", || {
        journal.sync_now(LIMIT).unwrap();
        !files(dir.path()).iter().any(|name| name.contains("-00000002"))
    });
    assert_eq!(left(dir.path()).1, [([&[7; 100][..], b"x"].concat(), false)]);
}

#[test]
fn what_was_refused_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let small = JournalConfig { queue_bytes: 100, queue_slots: 3, ..config(dir.path()) };
    let (journal, faults) = held(dir.path(), &small);
    let waiting = || journal.shared.inlet.held_bytes();
    let before = waiting();
    let mut runs = journal.runs(R);
    put(&mut runs, 0, 0, &[7; 90]).unwrap();
    assert_eq!(put(&mut runs, 0, 90, &[7; 90]), Err(Refused::Full), "too many bytes");
    assert_eq!(waiting(), before + 90);
    append(&journal, [cut(R, 0, 90)]);
    // The opening that is being written, a run and a cut.
    assert_eq!(journal.append(cut(R, 0, 90)), Err(Refused::Full), "too many records");
    assert_eq!(put(&mut runs, 1, 0, b"x"), Err(Refused::Full), "too many records");
    assert_eq!(waiting(), before + 90);
    faults.set(|state| state.writes_held = false);
    wait_for("room", || put(&mut runs, 1, 0, &[7; 90]).is_ok());
    journal.sync_now(LIMIT).unwrap();
    assert_eq!(waiting(), 0);
    journal.close(LIMIT).unwrap();
    assert_eq!(put(&mut runs, 1, 90, b"e"), Err(Refused::Closed));
    assert_eq!(journal.append(cut(R, 1, 90)), Err(Refused::Closed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However frames, cuts, turns of the writer and the ends of files fall: every segment is there, byte for byte, as long as it is
    /// not stored.
    #[test]
    fn every_byte_arrives_once(
        steps in prop::collection::vec((1usize..300, any::<bool>(), any::<bool>()), 1..60),
        file_bytes in 100..5000_u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig { file_bytes, ..config(dir.path()) };
        let (journal, _replay) = Journal::open(&config).unwrap();
        append(&journal, [opened(R), opened(Q)]);
        let (mut runs, mut others) = (journal.runs(R), journal.runs(Q));
        let mut segments: Vec<(Vec<u8>, bool)> = vec![Default::default()];
        let mut handed_over = 0;
        let offset = |at: usize| u32::try_from(at).unwrap();
        for (number, (length, is_cut, is_slow)) in steps.into_iter().enumerate() {
            let seq = u32::try_from(segments.len() - 1).unwrap();
            let (bytes, was_cut) = segments.last_mut().unwrap();
            bytes.extend((0..=u8::MAX).cycle().skip(number).take(length));
            put(&mut runs, seq, offset(handed_over), &bytes[handed_over..]).unwrap();
            handed_over = bytes.len();
            // Of another recording all is stored at once, so that files come to be unneeded.
            put(&mut others, offset(number), 0, &[1; 70]).unwrap();
            append(&journal, [cut(Q, offset(number), 70), stored(Q, offset(number))]);
            if is_cut {
                append(&journal, [sealed(R, seq, offset(handed_over), "end"), cut(R, seq, offset(handed_over + 3))]);
                bytes.extend(b"end");
                *was_cut = true;
                handed_over = 0;
                segments.push(Default::default());
            }
            if is_slow {
                journal.sync_now(LIMIT).unwrap();
            }
        }
        segments.retain(|(bytes, _)| !bytes.is_empty());
        journal.sync_now(LIMIT).unwrap();
        prop_assert_eq!(left(dir.path()).1, segments);
    }
}
