//! When files go, and what must not go with them.

use super::*;

/// Opens a journal whose files are full after one run of [`RUN`] bytes.
fn open_small_files(dir: &Path) -> (Journal, Replay) {
    Journal::open(&JournalConfig { file_bytes: 500, ..config(dir) }).unwrap()
}

const RUN: u32 = 600;

fn run(recording: RecordingId, seq: u32) -> Record {
    sealed(recording, seq, 0, vec![1; RUN as usize])
}

/// Appends records and waits until they are in their file.
fn write(journal: &Journal, records: impl IntoIterator<Item = Record>) {
    append(journal, records);
    journal.sync_now(LIMIT).unwrap();
}

fn found(replay: &Replay) -> Vec<RecordingId> {
    replay.recordings().iter().filter(|found| !found.finished).map(|found| found.recording).collect()
}

#[test]
fn a_long_call_keeps_its_opening_and_frees_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _replay) = open_small_files(dir.path());
    append(&journal, [opened(R)]);
    for seq in 0..40 {
        write(&journal, [run(R, seq), cut(R, seq, RUN), stored(R, seq)]);
    }
    wait_for("removal of the files of stored segments", || files(dir.path()).len() <= 2);
    let (_copy, _journal, replay) = crash(dir.path());
    let [found] = replay.recordings() else { panic!("{:?}", replay.recordings()) };
    assert_eq!((found.recording, found.body.as_deref()), (R, Some(&b"{}"[..])));
    assert!(found.segments.len() < 40);

    write(&journal, [finished(R), opened(Q), run(Q, 0)]);
    wait_for("removal of the finished call", || files(dir.path()).len() <= 1);
    let (_copy, _journal, replay) = crash(dir.path());
    assert_eq!(super::removal::found(&replay), [Q]);
}

#[test]
fn a_call_that_cannot_be_stored_keeps_its_own_file_only() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _replay) = open_small_files(dir.path());
    // The first file holds a part of Q, so that it must not be forgotten that Q is finished.
    write(&journal, [opened(R), sealed(R, 0, 0, "stuck"), opened(Q), run(Q, 0)]);
    write(&journal, [run(Q, 1)]);
    write(&journal, [run(Q, 2), finished(Q)]);
    for n in 10..20 {
        write(&journal, [run(RecordingId([n; 16]), 0), finished(RecordingId([n; 16]))]);
    }
    wait_for("removal of all others", || files(dir.path()).len() <= 3);
    let (_copy, _journal, replay) = crash(dir.path());
    assert_eq!(found(&replay), [R]);
    assert_eq!(replay.segment_bytes(&replay.recordings()[0].segments[0]).unwrap(), "stuck");
}

#[test]
fn a_segment_over_two_files_keeps_both() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _replay) = open_small_files(dir.path());
    write(&journal, [opened(R), run(R, 0)]);
    write(&journal, [sealed(R, 0, RUN, vec![2; RUN as usize])]);
    write(&journal, [cut(R, 0, 2 * RUN), opened(Q), run(Q, 0)]);
    let (_copy, _journal, replay) = crash(dir.path());
    assert!(replay.recordings()[0].segments[0].is_whole());
    assert_eq!(files(dir.path()).len(), 3);
    write(&journal, [stored(R, 0), stored(Q, 0)]);
    wait_for("removal of both", || files(dir.path()).len() <= 2);
}

#[test]
fn a_file_is_not_removed_before_what_replaces_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let files_with_slow_sync = Arc::new(faults::Faults::default());
    let (journal, _replay) = faults::open_faulty(dir.path(), 500, &files_with_slow_sync);
    write(&journal, [opened(R), run(R, 0)]);
    files_with_slow_sync.hold_syncs(true);
    append(&journal, [opened(Q), stored(R, 0), run(Q, 0), opened(RecordingId([5; 16])), run(Q, 1)]);
    wait_for("writing", || journal.disk_bytes() > 3 * u64::from(RUN));
    // Several turns of the writer pass without any removal.
    for _ in 0..5 {
        assert_eq!(journal.sync_now(Duration::from_millis(5)), Err(SyncError::TimedOut));
        assert!(files(dir.path())[0].ends_with("-00000000.cmj"));
    }
    files_with_slow_sync.hold_syncs(false);
    wait_for("removal", || !files(dir.path())[0].ends_with("-00000000.cmj"));
    let (_copy, _journal, replay) = crash(dir.path());
    let with_text = replay.recordings().iter().filter(|found| found.body.is_some());
    assert_eq!(with_text.count(), 3);
}

#[test]
fn a_file_stays_while_what_replaced_it_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(faults::Faults::default());
    let (journal, _replay) = faults::open_faulty(dir.path(), 500, &faults);
    write(&journal, [opened(R), run(R, 0)]);
    // The opening is carried into the second file, which then cannot be synced.
    faults.hold_syncs(true);
    append(&journal, [stored(R, 0), opened(Q)]);
    assert_eq!(journal.sync_now(Duration::from_millis(50)), Err(SyncError::TimedOut));
    faults.fail_next_sync_and_creates();
    wait_for("the failure", || journal.state() != JournalState::Healthy);
    for _ in 0..20 {
        assert!(journal.sync_now(LIMIT).is_err());
        assert!(files(dir.path())[0].ends_with("-00000000.cmj"));
    }
    faults.heal();
    wait_for("removal after recovery", || !files(dir.path())[0].ends_with("-00000000.cmj"));
    let (copy, _journal, replay) = crash(dir.path());
    assert_eq!(found(&replay), [R, Q]);
    drop(copy);
}
