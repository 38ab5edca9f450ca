//! What a crash or a bad disk leaves of the files.

use std::collections::BTreeMap;

use super::scan::{Ending, Found, scan_buffered};
use super::*;

/// A small journal and what was appended to it.
struct Small {
    file: Vec<u8>,
    /// Where each record ends.
    ends: Vec<usize>,
    segments: BTreeMap<(RecordingId, u32), Vec<u8>>,
}

fn small() -> Small {
    let mut file = Vec::new();
    record::encode_begin(1, 0, &mut file);
    let mut small = Small { file, ends: vec![28], segments: BTreeMap::new() };
    small.add(&opened(R));
    for n in 0..4_u8 {
        for recording in [R, Q] {
            let seq = u32::from(n / 2);
            let bytes = small.segments.entry((recording, seq)).or_default();
            let offset = u32::try_from(bytes.len()).unwrap();
            let run: Vec<u8> = (0..30 + n).map(|byte| byte ^ recording.0[0]).collect();
            bytes.extend(&run);
            small.add(&sealed(recording, seq, offset, run));
        }
    }
    for last in [cut(R, 0, 61), stored(Q, 0), opened(Q)] {
        small.add(&last);
    }
    small
}

impl Small {
    fn add(&mut self, record: &Record) {
        record.encode(&mut self.file);
        self.ends.push(self.file.len());
    }

    /// Checks that all bytes found are those appended, and returns how many there are.
    fn check(&self, replay: &Replay) -> u32 {
        let mut sum = 0;
        for found in replay.recordings() {
            assert!([R, Q].contains(&found.recording) && !found.finished);
            assert!(found.body.is_none() || found.body.as_deref() == Some(b"{}"));
            for segment in &found.segments {
                let bytes = replay.segment_bytes(segment).unwrap();
                assert_eq!(bytes.len(), segment.length as usize);
                assert!(self.segments[&(found.recording, segment.seq)].starts_with(&bytes));
                sum += segment.length;
            }
        }
        sum
    }
}

/// Reads files in a directory of their own, without starting a journal.
struct Bench {
    dir: TempDir,
    lock: Arc<File>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lock = super::super::lock(dir.path()).unwrap();
        Self { dir, lock }
    }

    fn read(&self, contents: &[&[u8]]) -> Replay {
        for (number, content) in contents.iter().enumerate() {
            fs::write(self.dir.path().join(format!("000000000001-{number:08}.cmj")), content).unwrap();
        }
        let files: Arc<dyn JournalFiles> = Arc::new(SystemFiles);
        replay::read(self.dir.path(), &files, &self.lock, &Arc::default()).unwrap()
    }
}

#[test]
fn a_file_cut_at_any_byte_gives_its_whole_records() {
    let (small, bench) = (small(), Bench::new());
    let mut before = 0;
    for length in 0..=small.file.len() {
        let replay = bench.read(&[&small.file[..length]]);
        let whole = small.ends.iter().filter(|end| **end <= length).count();
        let is_clean = length == 0 || small.ends.contains(&length);
        let expected = ReplayReport {
            files: 1,
            records: whole as u64,
            torn_tails: u64::from(!is_clean),
            ..ReplayReport::default()
        };
        assert_eq!(replay.report(), &expected, "cut at {length}");
        let found = small.check(&replay);
        assert!(found >= before, "cut at {length}");
        before = found;
    }
    let total: usize = small.segments.values().map(Vec::len).sum();
    assert_eq!(before as usize, total);
}

#[test]
fn a_bit_flipped_anywhere_never_gives_wrong_bytes() {
    let (small, bench) = (small(), Bench::new());
    let mut second = Vec::new();
    sealed(RecordingId([9; 16]), 0, 0, "later").encode(&mut second);
    for place in 0..small.file.len() {
        let mut file = small.file.clone();
        file[place] ^= 1 << (place % 8);
        let replay = bench.read(&[&file, &second]);
        let report = replay.report();
        assert_eq!(report.torn_tails + report.corrupt_files, 1, "flip at {place}");
        let whole = small.ends.iter().filter(|end| **end <= place).count();
        assert_eq!(report.records, whole as u64 + 1, "flip at {place}");
        let (later, others): (Vec<_>, Vec<_>) =
            replay.recordings().iter().partition(|found| found.recording == RecordingId([9; 16]));
        assert_eq!(later.len(), 1, "the next file is read");
        assert_eq!(replay.segment_bytes(&later[0].segments[0]).unwrap(), "later");
        assert!(others.iter().all(|found| [R, Q].contains(&found.recording)));
        for found in others {
            for segment in &found.segments {
                let bytes = replay.segment_bytes(segment).unwrap();
                assert!(
                    small.segments[&(found.recording, segment.seq)].starts_with(&bytes),
                    "flip at {place}"
                );
            }
        }
        // Corrupt files are kept aside once nobody needs them; here they are written anew instead.
    }
}

/// A journal of 64 KiB, where each record ends in it, and what is found in it.
fn large() -> (Vec<u8>, Vec<usize>, Vec<Found>) {
    let mut file = Vec::new();
    record::encode_begin(1, 0, &mut file);
    let mut ends = vec![file.len()];
    for n in 0_u32.. {
        let length = 3_500 + usize::try_from(n % 13).unwrap() * 97;
        let run: Vec<u8> = (0..length).map(|byte| byte.to_le_bytes()[0] ^ n.to_le_bytes()[0]).collect();
        let record = if n % 5 == 0 { cut(R, n, 700) } else { sealed(R, n, 0, run) };
        let before = file.len();
        record.encode(&mut file);
        if file.len() > 65_536 {
            file.truncate(before);
            break;
        }
        ends.push(file.len());
    }
    let mut found = Vec::new();
    scan_buffered(&file[..], |record| found.push(record));
    (file, ends, found)
}

/// Reads like a journal; answers how the bytes end, how many whole records there are, and what they say.
fn read_all(bytes: &[u8]) -> (Ending, u64, Vec<Found>) {
    let mut found = Vec::new();
    let scanned = scan_buffered(bytes, |record| found.push(record));
    (scanned.ending, scanned.records, found)
}

#[test]
fn sixty_four_kibibytes_torn_or_wrong_at_any_byte_give_the_longest_valid_prefix() {
    let (mut file, ends, all) = large();
    assert!(file.len() > 60_000 && all.len() == ends.len() - 1);
    for place in 0..file.len() {
        let whole = ends.partition_point(|end| *end <= place);
        let boundary = whole.checked_sub(1).map_or(0, |last| ends[last]);
        let torn = if place == boundary { Ending::Clean } else { Ending::Torn };
        // A reader knows nothing of what it has read, so that all of it need not be read again for every byte.
        assert_eq!(read_all(&file[boundary..place]), (torn, 0, vec![]), "torn at byte {place}");
        file[place] ^= 1 << (place % 8);
        let (ending, records, _) = read_all(&file[boundary..]);
        assert!(ending != Ending::Clean && records == 0, "wrong at byte {place}: {ending:?}");
        if place % 64 == 0 {
            // The first record of a file says nothing to a reader.
            let before = all[..whole.saturating_sub(1)].to_vec();
            assert_eq!(read_all(&file), (ending, whole as u64, before.clone()), "wrong at byte {place}");
            assert_eq!(read_all(&file[..place]), (torn, whole as u64, before), "torn at byte {place}");
        }
        file[place] ^= 1 << (place % 8);
    }
    println!("{} bytes: torn at each, and one bit wrong in each", file.len());
}

#[test]
fn zeros_and_garbage_behind_the_last_record_are_told_apart() {
    let (small, bench) = (small(), Bench::new());
    for (tail, torn, corrupt) in [(vec![0; 5000], 1, 0), (b"CMJ1".repeat(10), 0, 1), (vec![0xff; 99], 0, 1)] {
        let replay = bench.read(&[&[&small.file[..], &tail].concat()]);
        assert_eq!((replay.report().torn_tails, replay.report().corrupt_files), (torn, corrupt));
        assert_eq!(replay.report().records, small.ends.len() as u64);
    }
}

#[test]
fn a_hole_ends_a_segment_and_overlaps_fill_it() {
    let bench = Bench::new();
    let encode = |records: &[Record]| {
        let mut file = Vec::new();
        records.iter().for_each(|record| record.encode(&mut file));
        file
    };
    let first =
        encode(&[sealed(R, 0, 0, "abc"), sealed(R, 0, 6, "gh"), sealed(Q, 0, 4, "late"), cut(R, 1, 4)]);
    let replay = bench.read(&[&first]);
    assert_eq!(replay.report().holes, 2);
    let lengths: Vec<_> = replay.recordings().iter().map(|found| found.segments[0].length).collect();
    assert_eq!(lengths, [3, 0]);
    assert!(!replay.recordings()[0].segments[1].is_whole(), "cut, but without its bytes");

    let again = encode(&[sealed(R, 0, 0, "abcdefg"), sealed(R, 0, 1, "bc"), cut(R, 0, 8)]);
    let replay = bench.read(&[&first, &again]);
    let segment = &replay.recordings()[0].segments[0];
    assert!(segment.is_whole());
    assert_eq!(replay.segment_bytes(segment).unwrap(), "abcdefgh");
    let longer = encode(&[sealed(R, 0, 0, "abcdefgh"), cut(R, 0, 3)]);
    assert_eq!(bench.read(&[&longer, &[]]).recordings()[0].segments[0].length, 3, "not beyond its cut");
}

#[test]
fn released_recordings_never_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _replay) = open(dir.path());
    append(&journal, [opened(R), sealed(R, 0, 0, "ab"), opened(Q), sealed(Q, 0, 0, "cd")]);
    journal.sync_now(LIMIT).unwrap();

    let (copy, journal, replay) = crash(dir.path());
    assert_eq!(replay.recordings().len(), 2);
    replay.release(R).unwrap();
    replay.release(R).unwrap();
    assert_eq!(files(copy.path()).len(), 1, "the other one needs the file");
    journal.close(LIMIT).unwrap();
    drop(replay);

    let (journal, replay) = open(copy.path());
    assert_eq!(replay.recordings().iter().map(|found| found.recording).collect::<Vec<_>>(), [Q]);
    assert_eq!(replay.segment_bytes(&replay.recordings()[0].segments[0]).unwrap(), "cd");
    replay.release(Q).unwrap();
    assert!(files(copy.path()).is_empty() && !copy.path().join("released").exists());
    assert_eq!(journal.disk_bytes(), 0);
    assert!(replay.segment_bytes(&replay.recordings()[0].segments[0]).is_err());
}

#[test]
fn a_torn_list_of_released_recordings_grows_on() {
    let dir = tempfile::tempdir().unwrap();
    let lock = super::super::lock(dir.path()).unwrap();
    let mut file = Vec::new();
    [R, Q, RecordingId([7; 16])].iter().for_each(|id| sealed(*id, 0, 0, "x").encode(&mut file));
    fs::write(dir.path().join("000000000001-00000000.cmj"), file).unwrap();
    let files: Arc<dyn JournalFiles> = Arc::new(SystemFiles);
    let read = || replay::read(dir.path(), &files, &lock, &Arc::default()).unwrap();
    read().release(R).unwrap();
    let list = fs::read(dir.path().join("released")).unwrap();
    fs::write(dir.path().join("released"), [&list[..], &list[..20]].concat()).unwrap();
    read().release(Q).unwrap();
    assert_eq!(read().recordings().len(), 1);
}

#[test]
fn a_corrupt_file_is_kept_aside() {
    let bench = Bench::new();
    let small = small();
    let replay = bench.read(&[&[&small.file[..], b"garbage that is longer than a header"].concat()]);
    replay.release(R).unwrap();
    replay.release(Q).unwrap();
    assert!(files(bench.dir.path()).is_empty());
    assert!(bench.dir.path().join("000000000001-00000000.cmj.corrupt").exists());
}
