use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::domain::ids::{RecordingId, TenantTag, WriterId};

mod crash;
mod faults;
mod model;
mod removal;
mod runs;
mod whole;

/// Longer than any of this takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);
const R: RecordingId = RecordingId([1; 16]);
const Q: RecordingId = RecordingId([2; 16]);
const W: WriterId = WriterId([3; 16]);
const TENANT: TenantTag = TenantTag([4; 16]);

fn config(dir: &Path) -> JournalConfig {
    let flush_interval = Duration::from_millis(1);
    let sync_interval = Duration::from_millis(2);
    JournalConfig { flush_interval, sync_interval, retry_pause: flush_interval, ..JournalConfig::new(dir) }
}

fn open(dir: &Path) -> (Journal, Replay) {
    Journal::open(&config(dir)).unwrap()
}

fn opened(recording: RecordingId) -> Record {
    Record::Opened { recording, tenant_tag: TENANT, body: Bytes::from_static(b"{}") }
}

fn sealed(recording: RecordingId, seq: u32, offset: u32, bytes: impl Into<Bytes>) -> Record {
    Record::Sealed { recording, writer: W, seq, offset, bytes: bytes.into(), sealed_at: clock::monotonic() }
}

fn cut(recording: RecordingId, seq: u32, length: u32) -> Record {
    Record::Cut { recording, writer: W, seq, length }
}

fn stored(recording: RecordingId, seq: u32) -> Record {
    Record::Stored { recording, writer: W, seq }
}

fn finished(recording: RecordingId) -> Record {
    Record::Finished { recording }
}

fn append(journal: &Journal, records: impl IntoIterator<Item = Record>) {
    records.into_iter().for_each(|record| journal.append(record).unwrap());
}

/// Copies a journal as a crash would leave it, and reads the copy.
fn crash(dir: &Path) -> (TempDir, Journal, Replay) {
    loop {
        let copy = tempfile::tempdir().unwrap();
        // A copy takes time, a crash does not: if the journal removed a file meanwhile, what replaces it may be missing.
        if files(dir).iter().all(|name| is_copied(&dir.join(name), &copy.path().join(name))) {
            let (journal, replay) = open(copy.path());
            return (copy, journal, replay);
        }
    }
}

fn is_copied(from: &Path, to: &Path) -> bool {
    match fs::copy(from, to) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => panic!("{error}"),
    }
}

/// Returns the names of the journal files, in order.
fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".cmj")).collect();
    names.sort();
    names
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = clock::monotonic() + LIMIT;
    while !is_so() {
        assert!(clock::monotonic() < until, "{what} did not happen");
        thread::park_timeout(Duration::from_millis(1));
    }
}

#[test]
fn what_was_appended_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, replay) = open(dir.path());
    assert!(replay.recordings().is_empty());
    append(
        &journal,
        [opened(R), opened(Q), sealed(R, 0, 0, "ab"), sealed(Q, 0, 0, "xy"), sealed(R, 0, 2, "c")],
    );
    append(&journal, [cut(R, 0, 3), sealed(R, 1, 0, "de"), stored(R, 0), stored(Q, 0), finished(Q)]);
    journal.close(LIMIT).unwrap();
    drop(replay);

    let (_journal, replay) = open(dir.path());
    let [r, q] = replay.recordings() else { panic!("{:?}", replay.recordings()) };
    assert_eq!((r.recording, r.tenant_tag, r.body.as_deref()), (R, Some(TENANT), Some(&b"{}"[..])));
    let [first, second] = &r.segments[..] else { panic!("{r:?}") };
    assert_eq!((first.seq, first.length, first.cut, first.stored), (0, 3, Some(3), true));
    assert_eq!((second.seq, second.length, second.cut, second.stored), (1, 2, None, false));
    assert!(first.is_whole() && !second.is_whole());
    assert_eq!(replay.segment_bytes(first).unwrap(), "abc");
    assert_eq!(replay.segment_bytes(second).unwrap(), "de");
    assert!(q.finished && q.segments.is_empty() && !r.finished);
    assert_eq!(replay.report(), &ReplayReport { files: 1, records: 11, ..ReplayReport::default() });
}

#[test]
fn dropping_the_last_handle_writes_what_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, replay) = open(dir.path());
    append(&journal, [opened(R), sealed(R, 0, 0, "abc")]);
    drop((journal.clone(), journal, replay));
    let mut found = None;
    wait_for("the end of the threads", || {
        found = Journal::open(&config(dir.path())).ok();
        found.is_some()
    });
    let (_journal, replay) = found.unwrap();
    assert_eq!(replay.recordings()[0].segments[0].length, 3);
}

#[test]
fn one_directory_has_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, replay) = open(dir.path());
    let error = Journal::open(&config(dir.path())).err().unwrap();
    assert!(matches!(error, OpenError::Locked { .. }), "{error:?}");
    journal.close(LIMIT).unwrap();
    assert!(Journal::open(&config(dir.path())).is_err(), "the replay may remove files");
    drop(replay);
    open(dir.path());
}

#[test]
fn closed_means_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _replay) = open(dir.path());
    append(&journal, [opened(R)]);
    journal.close(LIMIT).unwrap();
    journal.close(LIMIT).unwrap();
    assert_eq!(journal.append(opened(Q)), Err(Refused::Closed));
    assert_eq!(journal.sync_now(LIMIT), Err(SyncError::Closed));
}

#[test]
fn files_turn_over_and_only_the_owner_reads_them() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let config = JournalConfig { file_bytes: 1000, ..config(&path) };
    let (journal, _replay) = Journal::open(&config).unwrap();
    for n in 0..10 {
        append(&journal, [sealed(R, 0, n * 600, vec![7; 600])]);
    }
    journal.sync_now(LIMIT).unwrap();
    let names = files(&path);
    assert_eq!(names.len(), 5);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    assert!(names.iter().all(|name| mode(&path.join(name)) == 0o600));
    let sizes = names.iter().map(|name| fs::metadata(path.join(name)).unwrap().len());
    assert_eq!(journal.disk_bytes(), sizes.sum::<u64>());
    let (_copy, _journal, replay) = crash(&path);
    assert_eq!(replay.segment_bytes(&replay.recordings()[0].segments[0]).unwrap(), vec![7; 6000]);
}

#[test]
fn a_clock_that_went_back_does_not_change_the_order() {
    let dir = tempfile::tempdir().unwrap();
    let future = clock::wall().0 + 1_000_000;
    let mut old = Vec::new();
    record::encode_begin(future, 0, &mut old);
    sealed(R, 0, 0, "ab").encode(&mut old);
    fs::write(dir.path().join(format!("{future:012x}-00000000.cmj")), old).unwrap();
    let (journal, replay) = open(dir.path());
    append(&journal, [sealed(R, 1, 0, "cd")]);
    journal.close(LIMIT).unwrap();
    drop(replay);
    assert!(files(dir.path())[1].starts_with(&format!("{:012x}-", future + 1)));
}

#[test]
fn a_text_too_long_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _replay) = open(dir.path());
    let opened = |length| Record::Opened { recording: R, tenant_tag: TENANT, body: vec![0; length].into() };
    assert_eq!(journal.append(opened(MAX_OPENED_BYTES + 1)), Err(Refused::TooLarge));
    append(&journal, [opened(MAX_OPENED_BYTES)]);
    journal.sync_now(LIMIT).unwrap();
    let (_copy, _journal, replay) = crash(dir.path());
    assert_eq!(replay.recordings()[0].body.as_ref().unwrap().len(), MAX_OPENED_BYTES);
}

#[test]
fn the_observer_hears_of_everything() {
    #[derive(Default)]
    struct Heard {
        records: AtomicU64,
        bytes: AtomicU64,
        flushed: AtomicU64,
        synced: AtomicU64,
        replayed: AtomicU64,
    }
    impl JournalObserver for Heard {
        fn wrote(&self, records: u64, bytes: u64) {
            self.records.fetch_add(records, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        fn flushed(&self, delay: Duration) {
            assert!(delay < LIMIT);
            self.flushed.fetch_add(1, Ordering::Relaxed);
        }
        fn synced(&self, _took: Duration) {
            self.synced.fetch_add(1, Ordering::Relaxed);
        }
        fn replayed(&self, _report: &ReplayReport) {
            self.replayed.fetch_add(1, Ordering::Relaxed);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let heard = Arc::new(Heard::default());
    let (journal, _replay) =
        Journal::open_with(&config(dir.path()), Arc::new(SystemFiles), Arc::clone(&heard) as _).unwrap();
    append(&journal, [opened(R), sealed(R, 0, 0, "ab"), sealed(R, 0, 2, "cd")]);
    journal.sync_now(LIMIT).unwrap();
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!((count(&heard.records), count(&heard.replayed)), (4, 1));
    assert!((1..=2).contains(&count(&heard.flushed)), "once for each batch with sealed frames");
    assert_eq!(count(&heard.bytes), journal.disk_bytes());
    assert!(count(&heard.synced) > 0);
}
