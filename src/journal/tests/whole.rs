//! Whole segments: durable, found again, and never instead of pieces that may still be needed.

use super::*;

/// Notes where a segment was kept.
#[derive(Debug, Default)]
pub(super) struct Noted(Mutex<Option<Place>>);

impl Keeper for Noted {
    fn kept(&self, place: Place) {
        *self.0.lock().unwrap() = Some(place);
    }
}

impl Noted {
    pub(super) fn place(&self) -> Option<Place> {
        *self.0.lock().unwrap()
    }
}

fn id(recording: RecordingId, seq: u32) -> SegmentId {
    SegmentId { recording, writer: W, seq }
}

pub(super) fn whole(recording: RecordingId, seq: u32, bytes: impl Into<Bytes>, noted: &Arc<Noted>) -> Record {
    let keeper: Arc<dyn Keeper> = Arc::<Noted>::clone(noted);
    Record::Whole { segment: id(recording, seq), bytes: bytes.into(), keeper }
}

/// Appends a whole segment and waits until it is kept.
fn keep(journal: &Journal, seq: u32, bytes: &[u8]) -> Place {
    let noted = Arc::default();
    append(journal, [whole(R, seq, bytes.to_vec(), &noted)]);
    wait_for("the keeper to hear", || noted.place().is_some());
    noted.place().unwrap()
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n / 7 % 251).unwrap()).collect()
}

#[test]
fn a_whole_segment_replaces_its_pieces_and_goes_when_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _replay) = Journal::open(&JournalConfig { file_bytes: 500, ..config(dir.path()) }).unwrap();
    let bytes = pattern(1800);
    append(&journal, [opened(R)]);
    for (n, piece) in bytes.chunks(600).enumerate() {
        append(&journal, [sealed(R, 0, u32::try_from(n).unwrap() * 600, piece.to_vec())]);
        journal.sync_now(LIMIT).unwrap();
    }
    append(&journal, [cut(R, 0, 1800)]);
    journal.sync_now(LIMIT).unwrap();
    let pieces = files(dir.path());
    assert!(pieces.len() >= 3);

    let place = keep(&journal, 0, &bytes);
    wait_for("the files of the pieces to go", || !files(dir.path()).contains(&pieces[1]));
    assert_eq!(journal.read_segment(id(R, 0), place).unwrap(), bytes);
    assert!(matches!(journal.read_segment(id(R, 1), place), Err(ReadBackError::Lost)), "another's place");
    let (_copy, _journal, replay) = crash(dir.path());
    let segment = &replay.recordings()[0].segments[0];
    assert!(segment.is_whole() && replay.recordings()[0].body.is_some());
    assert_eq!(replay.segment_bytes(segment).unwrap(), bytes);

    append(&journal, [stored(R, 0)]);
    wait_for("its own file to go", || files(dir.path()).len() <= 1);
    assert!(matches!(journal.read_segment(id(R, 0), place), Err(ReadBackError::Lost)));
}

#[test]
fn a_segment_handed_over_twice_stays_where_it_was_told_to_be() {
    let dir = tempfile::tempdir().unwrap();
    // Each run fills a file.
    let (journal, _replay) = Journal::open(&JournalConfig { file_bytes: 500, ..config(dir.path()) }).unwrap();
    let noted = Arc::default();
    append(&journal, [opened(R), whole(R, 0, pattern(600), &noted), whole(R, 0, pattern(600), &noted)]);
    wait_for("the keeper to hear", || noted.place().is_some());
    wait_for("one copy to go", || files(dir.path()).len() <= 2);
    assert_eq!(journal.read_segment(id(R, 0), noted.place().unwrap()).unwrap(), pattern(600));
    append(&journal, [stored(R, 0)]);
    wait_for("the other", || files(dir.path()).len() <= 1);
}

#[test]
fn segments_of_any_size_are_read_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _replay) = open(dir.path());
    for (seq, length) in (0..).zip([1, 176, 90_000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 19, 16 << 20])
    {
        let bytes = pattern(length);
        let place = keep(&journal, seq, &bytes);
        assert!(journal.read_segment(id(R, seq), place).unwrap() == bytes, "{length} bytes");
    }
}

#[test]
fn damage_is_found_when_a_segment_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _replay) = open(dir.path());
    let place = keep(&journal, 0, &pattern(300));
    let file = dir.path().join(&files(dir.path())[0]);
    let honest = fs::read(&file).unwrap();
    // All of the record: what is before and behind it is another's.
    for byte in 28..28 + 56 + 300 {
        let mut damaged = honest.clone();
        damaged[byte] ^= 1 << (byte % 8);
        fs::write(&file, damaged).unwrap();
        assert!(matches!(journal.read_segment(id(R, 0), place), Err(ReadBackError::Lost)), "byte {byte}");
    }
    fs::write(&file, &honest[..28 + 56 + 299]).unwrap();
    assert!(matches!(journal.read_segment(id(R, 0), place), Err(ReadBackError::Lost)));
    fs::write(&file, &honest).unwrap();
    assert!(journal.read_segment(id(R, 0), place).is_ok());
}

#[test]
fn nobody_hears_of_a_whole_segment_that_was_not_synced() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Arc::new(faults::Faults::default());
    let (journal, _replay) = faults::open_faulty(dir.path(), 500, &faults);
    append(&journal, [opened(R), sealed(R, 0, 0, pattern(600)), cut(R, 0, 600)]);
    journal.sync_now(LIMIT).unwrap();
    let pieces = files(dir.path());
    faults.hold_syncs(true);
    let noted = Arc::default();
    append(&journal, [whole(R, 0, pattern(600), &noted)]);
    assert_eq!(journal.sync_now(Duration::from_millis(50)), Err(SyncError::TimedOut));
    assert!(noted.place().is_none(), "it is written, not durable");
    faults.fail_next_sync_and_creates();
    wait_for("the failure", || journal.state() != JournalState::Healthy);
    faults.heal();
    wait_for("recovery", || journal.generation() == 1);
    journal.sync_now(LIMIT).unwrap();
    assert!(noted.place().is_none(), "the file is not believed");
    assert!(files(dir.path()).contains(&pieces[0]), "so its pieces stay");
    // As if the disk had lost the file that failed.
    let second = keep(&journal, 0, &pattern(600));
    assert_eq!(journal.read_segment(id(R, 0), second).unwrap(), pattern(600));
    wait_for("the pieces to go", || !files(dir.path()).contains(&pieces[0]));
    let (_copy, _journal, replay) = crash(dir.path());
    assert_eq!(replay.segment_bytes(&replay.recordings()[0].segments[0]).unwrap(), pattern(600));
}

#[test]
fn a_journal_at_its_limit_takes_nothing_until_files_go() {
    let dir = tempfile::tempdir().unwrap();
    let config = JournalConfig { file_bytes: 1000, max_bytes: 10_000, ..config(dir.path()) };
    let (journal, _replay) = Journal::open(&config).unwrap();
    append(&journal, [opened(R)]);
    let mut seq = 0;
    wait_for("the limit", || {
        append(&journal, [sealed(R, seq, 0, pattern(700)), cut(R, seq, 700)]);
        seq += 1;
        let was_nearly_full = journal.is_nearly_full();
        journal.sync_now(LIMIT).is_err() && was_nearly_full
    });
    assert!(matches!(journal.state(), JournalState::Failing { kind: FailureKind::Limit, .. }));
    assert!(journal.is_nearly_full() && journal.disk_bytes() <= 10_000, "{}", journal.disk_bytes());
    assert!(journal.disk_bytes() > 9_000, "{}", journal.disk_bytes());
    // What is stored meanwhile is remembered, and its files go, also those with the opening of the call.
    append(&journal, (0..seq).map(|seq| stored(R, seq)));
    wait_for("recovery", || journal.generation() == 1);
    wait_for("room", || !journal.is_nearly_full() && files(dir.path()).len() <= 2);
    append(&journal, [sealed(R, seq, 0, pattern(700))]);
    journal.sync_now(LIMIT).unwrap();
    let (_copy, _journal, replay) = crash(dir.path());
    let [found] = replay.recordings() else { panic!("{:?}", replay.recordings()) };
    assert!(found.body.is_some(), "the opening was carried on");
    let last = found.segments.iter().find(|segment| segment.seq == seq).unwrap();
    assert_eq!(replay.segment_bytes(last).unwrap(), pattern(700));
}
