//! Disks that fail on purpose.

use std::sync::Condvar;

use super::*;

/// Files that fail as they are told.
#[derive(Default)]
pub(super) struct Faults {
    plan: Arc<Plan>,
}

#[derive(Default)]
struct Plan {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct State {
    /// How many bytes the disk still takes, if it is nearly full.
    space: Option<usize>,
    failing_syncs: usize,
    failing_creates: usize,
    failing_dir_syncs: usize,
    pub(super) writes_held: bool,
    syncs_held: bool,
    /// The longest write that is taken at once.
    longest: Option<usize>,
}

struct FaultyFile {
    file: Arc<dyn JournalFile>,
    plan: Arc<Plan>,
}

impl Faults {
    pub(super) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.plan.state.lock().unwrap());
        self.plan.changed.notify_all();
    }

    /// Lets the syncs go on that are held; the first fails, and no file can be created until healed.
    pub(super) fn fail_next_sync_and_creates(&self) {
        self.set(|state| {
            (state.syncs_held, state.failing_syncs, state.failing_creates) = (false, 1, usize::MAX)
        });
    }

    pub(super) fn heal(&self) {
        self.set(|state| *state = State::default());
    }

    pub(super) fn hold_syncs(&self, held: bool) {
        self.set(|state| state.syncs_held = held);
    }
}

fn take(count: &mut usize) -> io::Result<()> {
    if *count == 0 {
        return Ok(());
    }
    *count -= 1;
    Err(io::Error::other("disk fails"))
}

impl JournalFiles for Faults {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>> {
        take(&mut self.plan.state.lock().unwrap().failing_creates)?;
        let file = SystemFiles.create(path)?;
        Ok(Arc::new(FaultyFile { file, plan: Arc::clone(&self.plan) }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        take(&mut self.plan.state.lock().unwrap().failing_dir_syncs)?;
        SystemFiles.sync_dir(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemFiles.remove(path)
    }
}

impl JournalFile for FaultyFile {
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let state = self.plan.state.lock().unwrap();
        let mut state = self.plan.changed.wait_while(state, |state| state.writes_held).unwrap();
        let longest = state.longest.unwrap_or(usize::MAX).min(state.space.unwrap_or(usize::MAX));
        if longest == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = self.file.write(&bytes[..bytes.len().min(longest)])?;
        state.space = state.space.map(|space| space - written);
        Ok(written)
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = self.plan.state.lock().unwrap();
        let mut state = self.plan.changed.wait_while(state, |state| state.syncs_held).unwrap();
        take(&mut state.failing_syncs)
    }
}

pub(super) fn open_faulty(dir: &Path, file_bytes: u64, faults: &Arc<Faults>) -> (Journal, Replay) {
    let config = JournalConfig { file_bytes, ..config(dir) };
    Journal::open_with(&config, Arc::clone(faults) as _, Arc::new(JournalMetrics::new())).unwrap()
}

fn faulty(dir: &Path) -> (Journal, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let (journal, _replay) = open_faulty(dir, 64 << 20, &faults);
    (journal, faults)
}

fn is_failing(journal: &Journal, expected: FailureKind) -> bool {
    matches!(journal.state(), JournalState::Failing { kind, .. } if kind == expected)
}

/// Reads a copy of the journal and returns the first segment of a recording.
fn segment_after_crash(dir: &Path, recording: RecordingId) -> Bytes {
    let (_copy, _journal, replay) = crash(dir);
    let found = replay.recordings().iter().find(|found| found.recording == recording).unwrap();
    assert!(found.body.is_some(), "its opening survives");
    replay.segment_bytes(&found.segments[0]).unwrap()
}

#[test]
fn a_full_disk_is_told_and_overcome() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = faulty(dir.path());
    append(&journal, [opened(R), sealed(R, 0, 0, "abc")]);
    journal.sync_now(LIMIT).unwrap();
    faults.set(|state| state.space = Some(20));
    append(&journal, [opened(Q), sealed(R, 0, 3, "def")]);
    wait_for("the failure", || is_failing(&journal, FailureKind::NoSpace));
    assert_eq!(journal.generation(), 0);
    assert_eq!(segment_after_crash(dir.path(), R), "abc", "what was written stays");
    append(&journal, [sealed(R, 0, 6, "ghi"), finished(Q), opened(Q)]);
    assert!(matches!(journal.sync_now(LIMIT), Err(SyncError::Failing(FailureKind::NoSpace))));

    faults.set(|state| state.space = None);
    wait_for("recovery without anything to write", || journal.generation() == 1);
    assert_eq!(journal.state(), JournalState::Healthy);
    append(&journal, [sealed(R, 0, 0, "abcdefghi"), sealed(Q, 0, 0, "x")]);
    journal.sync_now(LIMIT).unwrap();
    assert_eq!(segment_after_crash(dir.path(), R), "abcdefghi");
    assert_eq!(segment_after_crash(dir.path(), Q), "x");
}

#[test]
fn a_file_that_failed_to_sync_is_never_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = faulty(dir.path());
    append(&journal, [opened(R), sealed(R, 0, 0, "abc")]);
    journal.sync_now(LIMIT).unwrap();
    let first = files(dir.path())[0].clone();
    faults.set(|state| state.failing_syncs = 1);
    append(&journal, [sealed(R, 0, 3, "def")]);
    wait_for("recovery in another file", || journal.generation() == 1);
    append(&journal, [sealed(R, 0, 0, "abcdef")]);
    journal.sync_now(LIMIT).unwrap();
    // As if the disk had lost the first file, all of it.
    fs::remove_file(dir.path().join(first)).unwrap();
    assert_eq!(segment_after_crash(dir.path(), R), "abcdef");
}

#[test]
fn sync_now_tells_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = faulty(dir.path());
    faults.set(|state| (state.failing_syncs, state.syncs_held) = (1, true));
    append(&journal, [opened(R)]);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| journal.sync_now(LIMIT));
        wait_for("writing", || journal.disk_bytes() > 28);
        faults.hold_syncs(false);
        assert_eq!(waiting.join().unwrap(), Err(SyncError::Failing(FailureKind::Disk)));
    });
    wait_for("recovery", || journal.generation() == 1);
    journal.sync_now(LIMIT).unwrap();
}

#[test]
fn a_directory_that_fails_to_sync_counts_as_its_new_file() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = faulty(dir.path());
    faults.set(|state| state.failing_dir_syncs = 1);
    append(&journal, [opened(R), sealed(R, 0, 0, "abc")]);
    wait_for("recovery in another file", || journal.generation() == 1);
    assert_eq!(files(dir.path()).len(), 2);
}

#[test]
fn files_that_cannot_be_created_are_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = faulty(dir.path());
    faults.set(|state| state.failing_creates = 2);
    append(&journal, [opened(R)]);
    wait_for("recovery", || journal.generation() == 1);
    append(&journal, [sealed(R, 0, 0, "abc")]);
    journal.sync_now(LIMIT).unwrap();
    assert_eq!(segment_after_crash(dir.path(), R), "abc");
}

#[test]
fn finishing_frees_files_while_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let (journal, _replay) = open_faulty(dir.path(), 100, &faults);
    for seq in 0..5 {
        append(&journal, [sealed(R, seq, 0, vec![1; 200])]);
    }
    journal.sync_now(LIMIT).unwrap();
    assert_eq!(files(dir.path()).len(), 5);
    faults.set(|state| state.space = Some(0));
    append(&journal, [sealed(R, 5, 0, "x")]);
    wait_for("the failure", || is_failing(&journal, FailureKind::NoSpace));
    append(&journal, [finished(R)]);
    wait_for("removal", || files(dir.path()).is_empty());
}

#[test]
fn short_writes_are_continued() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, faults) = faulty(dir.path());
    faults.set(|state| state.longest = Some(7));
    append(&journal, [opened(R), sealed(R, 0, 0, "abcdefghijklmnop")]);
    journal.sync_now(LIMIT).unwrap();
    assert_eq!(segment_after_crash(dir.path(), R), "abcdefghijklmnop");
}

#[test]
fn every_write_may_fail_once() {
    for space in (0..400).step_by(3) {
        let dir = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::default());
        let (journal, _replay) = open_faulty(dir.path(), 150, &faults);
        faults.set(|state| state.space = Some(space));
        append(&journal, [opened(R), sealed(R, 0, 0, "abc"), opened(Q), sealed(R, 0, 3, "def"), finished(Q)]);
        if journal.sync_now(LIMIT).is_err() {
            faults.set(|state| state.space = None);
            wait_for("recovery", || journal.generation() == 1);
            append(&journal, [sealed(R, 0, 0, "abcdef")]);
            journal.sync_now(LIMIT).unwrap();
        }
        assert_eq!(segment_after_crash(dir.path(), R), "abcdef", "space {space}");
    }
}

#[test]
fn a_full_queue_refuses_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let small = JournalConfig { queue_slots: 4, queue_bytes: 100, ..config(dir.path()) };
    let (journal, _replay) =
        Journal::open_with(&small, Arc::clone(&faults) as _, Arc::new(JournalMetrics::new())).unwrap();
    faults.set(|state| state.writes_held = true);
    append(&journal, [opened(R)]);
    let mut taken = 0;
    wait_for("a full queue", || match journal.append(sealed(R, 0, taken, "x")) {
        Ok(()) => {
            taken += 1;
            false
        }
        Err(refused) => refused == Refused::Full,
    });
    assert!(taken >= 3, "the queue holds four: {taken} and the opening, unless the writer has that");
    faults.set(|state| state.writes_held = false);
    // The caller kept its bytes and hands over a larger range when there is room.
    wait_for("room", || journal.append(sealed(R, 0, taken, vec![b'y'; 300])).is_ok());
    wait_for("room again", || journal.append(cut(R, 0, taken + 300)).is_ok());
    journal.sync_now(LIMIT).unwrap();
    assert_eq!(segment_after_crash(dir.path(), R).len(), taken as usize + 300);
}

#[test]
fn bytes_that_wait_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(Faults::default());
    let small = JournalConfig { queue_bytes: 1000, ..config(dir.path()) };
    let (journal, _replay) =
        Journal::open_with(&small, Arc::clone(&faults) as _, Arc::new(JournalMetrics::new())).unwrap();
    faults.set(|state| state.writes_held = true);
    append(&journal, [sealed(R, 0, 0, vec![0; 5000])]);
    assert_eq!(journal.append(sealed(R, 0, 5000, "x")), Err(Refused::Full));
    faults.set(|state| state.writes_held = false);
    wait_for("room", || journal.append(sealed(R, 0, 5000, "x")).is_ok());
}
