//! What earlier incarnations of the process left in the journal.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::JournalFiles;
use super::files::FileName;
use super::scan::{Ending, Found, Scanned, scan};
use super::status::Status;
use crate::domain::ids::{RecordingId, TenantTag, WriterId};

mod released;

use released::Released;

/// The recordings that earlier incarnations left, without their bytes, which stay in the files until they are asked for.
///
/// It keeps the journal directory locked, and the files until every recording in them is released. Recovery must be able
/// to run again: after another crash everything that was not released comes up again.
pub struct Replay {
    recordings: Vec<ReplayedRecording>,
    report: ReplayReport,
    last_incarnation: u64,
    /// The path of every file that was read; spans refer to it by index.
    paths: Vec<PathBuf>,
    claims: Mutex<Claims>,
    files: Arc<dyn JournalFiles>,
    status: Arc<Status>,
    /// Keeps the lock of the directory.
    _lock: Arc<File>,
}

/// A recording that was not released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayedRecording {
    /// The recording.
    pub recording: RecordingId,
    /// Whose it is, if its `Opened` record was found.
    pub tenant_tag: Option<TenantTag>,
    /// The text of its `Opened` record, if that was found.
    pub body: Option<Bytes>,
    /// Its segments by writer, in order of first appearance, and number. Those that the store has may be missing.
    pub segments: Vec<ReplayedSegment>,
    /// Whether the store has all of it; then there are no segments, and it is released already.
    pub finished: bool,
}

/// A segment, as far as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayedSegment {
    /// The writer of the segment.
    pub writer: WriterId,
    /// The segment's number.
    pub seq: u32,
    /// How many bytes there are from the segment's first byte on without a hole.
    pub length: u32,
    /// The bytes of the whole segment, if it was cut.
    pub cut: Option<u32>,
    /// Whether the store has it.
    pub stored: bool,
    spans: Vec<Span>,
}

impl ReplayedSegment {
    /// Tells whether all bytes of a segment that was cut are there.
    pub fn is_whole(&self) -> bool {
        self.cut == Some(self.length)
    }
}

/// Sealed bytes in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    /// Where they belong in the segment.
    offset: u32,
    length: u32,
    /// The file, by its index.
    file: usize,
    /// Where they are in the file.
    at: u64,
}

/// What reading the files found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Files read.
    pub files: u64,
    /// Whole records in them.
    pub records: u64,
    /// Files cut at their last whole record, as a crash leaves them.
    pub torn_tails: u64,
    /// Files not read further than a wrong record with more behind it.
    pub corrupt_files: u64,
    /// Segments cut at a hole: bytes behind it exist and are not returned.
    pub holes: u64,
}

/// Who still needs which file.
struct Claims {
    files: Vec<OldFile>,
    /// Recordings that nobody needs any more.
    done: HashSet<RecordingId>,
    /// Those of them that may still have to go to the list of released ones.
    unlisted: BTreeSet<RecordingId>,
    released: Released,
}

struct OldFile {
    path: PathBuf,
    bytes: u64,
    is_corrupt: bool,
    recordings: HashSet<RecordingId>,
}

impl Replay {
    /// Returns the recordings in order of first appearance.
    pub fn recordings(&self) -> &[ReplayedRecording] {
        &self.recordings
    }

    /// Returns what reading the files found.
    pub fn report(&self) -> &ReplayReport {
        &self.report
    }

    /// Reads the bytes of a segment, [`ReplayedSegment::length`] of them. Blocks.
    ///
    /// # Errors
    /// What the system says; `NotFound` after the recording was released.
    pub fn segment_bytes(&self, segment: &ReplayedSegment) -> io::Result<Bytes> {
        let mut bytes = Vec::with_capacity(usize::try_from(segment.length).map_err(io::Error::other)?);
        let mut open: Option<(usize, File)> = None;
        for span in &segment.spans {
            let file = match open.take_if(|(index, _)| *index == span.file) {
                Some((_, file)) => file,
                None => File::open(self.paths.get(span.file).ok_or(io::ErrorKind::NotFound)?)?,
            };
            let start = bytes.len();
            bytes.resize(start + usize::try_from(span.length).map_err(io::Error::other)?, 0);
            file.read_exact_at(bytes.split_at_mut(start).1, span.at)?;
            open = Some((span.file, file));
        }
        Ok(bytes.into())
    }

    /// Gives a recording up for good: after this returns it never comes up again, and files that hold nothing else are
    /// removed. Releasing what is not there or twice is success. Blocks.
    ///
    /// # Errors
    /// What the system says; the recording may then come up again after a crash.
    pub fn release(&self, recording: RecordingId) -> io::Result<()> {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if claims.done.insert(recording) {
            claims.unlisted.insert(recording);
        }
        claims.tidy(&*self.files, &self.status)
    }

    pub(super) fn last_incarnation(&self) -> u64 {
        self.last_incarnation
    }
}

impl Claims {
    /// Removes the files that nobody needs, after noting what is done but mentioned in files that stay.
    fn tidy(&mut self, files: &dyn JournalFiles, status: &Status) -> io::Result<()> {
        let done = &self.done;
        let (gone, kept): (Vec<_>, Vec<_>) =
            self.files.drain(..).partition(|file| file.recordings.iter().all(|id| done.contains(id)));
        self.files = kept;
        self.unlisted.retain(|id| self.files.iter().any(|file| file.recordings.contains(id)));
        // On a full disk this fails, and removing files is what helps.
        let mut outcome = self.released.add(&self.unlisted);
        if outcome.is_ok() {
            self.unlisted.clear();
        }
        for file in gone {
            let removed = if file.is_corrupt {
                fs::rename(&file.path, file.path.with_extension("cmj.corrupt"))
            } else {
                files.remove(&file.path)
            };
            match removed {
                Ok(()) => status.remove_disk_bytes(file.bytes),
                Err(error) => {
                    self.files.push(file);
                    outcome = outcome.and(Err(error));
                }
            }
        }
        if self.files.is_empty() && outcome.is_ok() {
            outcome = self.released.remove();
        }
        outcome
    }
}

/// Reads all files of a directory that is locked, and removes those that nobody needs.
pub(super) fn read(
    dir: &Path,
    files: &Arc<dyn JournalFiles>,
    lock: &Arc<File>,
    status: &Arc<Status>,
) -> io::Result<Replay> {
    let released = Released::read(dir)?;
    let mut reader = Reader::default();
    let mut old_files = Vec::new();
    let mut last_incarnation = 0;
    for (index, (name, path)) in journal_files(dir)?.into_iter().enumerate() {
        last_incarnation = last_incarnation.max(name.incarnation);
        let file = reader.read_file(index, path, &released);
        status.add_disk_bytes(file.bytes);
        old_files.push(file);
    }
    let mut report = reader.report;
    let recordings: Vec<_> = reader.recordings.into_iter().map(|found| found.settle(&mut report)).collect();
    let finished = recordings.iter().filter(|found| found.finished).map(|found| found.recording);
    let unlisted: BTreeSet<_> = finished.collect();
    let done = released.ids().chain(unlisted.iter().copied()).collect();
    let paths = old_files.iter().map(|file| file.path.clone()).collect();
    let mut claims = Claims { files: old_files, done, unlisted, released };
    // What cannot be removed now is tried again with every release, and with the next start.
    claims.tidy(&**files, status).unwrap_or_default();
    Ok(Replay {
        recordings,
        report,
        last_incarnation,
        paths,
        claims: Mutex::new(claims),
        files: Arc::clone(files),
        status: Arc::clone(status),
        _lock: Arc::clone(lock),
    })
}

/// Lists the journal files in the order they were written.
fn journal_files(dir: &Path) -> io::Result<Vec<(FileName, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if let (Some(name), true) = (name.to_str().and_then(FileName::parse), entry.file_type()?.is_file()) {
            found.push((name, entry.path()));
        }
    }
    found.sort_unstable_by_key(|(name, _)| *name);
    Ok(found)
}

#[derive(Default)]
struct Reader {
    recordings: Vec<Unsettled>,
    /// Where each recording is in `recordings`.
    places: HashMap<RecordingId, usize>,
    report: ReplayReport,
}

impl Reader {
    fn read_file(&mut self, index: usize, path: PathBuf, released: &Released) -> OldFile {
        let mut recordings = HashSet::new();
        let visit = |found: Found| {
            recordings.insert(found.recording());
            if !released.contains(found.recording()) {
                self.add(found, index);
            }
        };
        // A file that cannot even be opened is as good as one that is corrupt from its first byte.
        let (scanned, bytes) = match File::open(&path) {
            Ok(file) => {
                let bytes = file.metadata().map_or(0, |found| found.len());
                (scan(file, visit), bytes)
            }
            Err(_) => (Scanned { ending: Ending::Corrupt, length: 0, records: 0 }, 0),
        };
        self.report.files += 1;
        self.report.records += scanned.records;
        self.report.torn_tails += u64::from(scanned.ending == Ending::Torn);
        self.report.corrupt_files += u64::from(scanned.ending == Ending::Corrupt);
        OldFile { path, bytes, is_corrupt: scanned.ending == Ending::Corrupt, recordings }
    }

    fn add(&mut self, found: Found, file: usize) {
        let place = *self.places.entry(found.recording()).or_insert_with(|| {
            self.recordings.push(Unsettled::new(found.recording()));
            self.recordings.len() - 1
        });
        if let Some(unsettled) = self.recordings.get_mut(place) {
            unsettled.add(found, file);
        }
    }
}

/// A recording while files are read: spans may overlap and leave holes.
struct Unsettled {
    settled: ReplayedRecording,
    /// Where each segment is among the settled ones.
    places: HashMap<(WriterId, u32), usize>,
    /// The writers in order of appearance.
    writers: HashMap<WriterId, usize>,
}

impl Unsettled {
    fn new(recording: RecordingId) -> Self {
        let settled = ReplayedRecording {
            recording,
            tenant_tag: None,
            body: None,
            segments: Vec::new(),
            finished: false,
        };
        Self { settled, places: HashMap::new(), writers: HashMap::new() }
    }

    fn add(&mut self, found: Found, file: usize) {
        match found {
            Found::Opened { tenant_tag, body, .. } => {
                self.settled.tenant_tag = Some(tenant_tag);
                self.settled.body = Some(body);
            }
            Found::Sealed { writer, seq, offset, length, at, .. } => {
                self.change(writer, seq, |segment| segment.spans.push(Span { offset, length, file, at }));
            }
            Found::Cut { writer, seq, length, .. } => {
                self.change(writer, seq, |segment| segment.cut = Some(length));
            }
            Found::Stored { writer, seq, .. } => self.change(writer, seq, |segment| segment.stored = true),
            Found::Finished { .. } => self.settled.finished = true,
        }
    }

    fn change(&mut self, writer: WriterId, seq: u32, change: impl FnOnce(&mut ReplayedSegment)) {
        let rank = self.writers.len();
        self.writers.entry(writer).or_insert(rank);
        let segments = &mut self.settled.segments;
        let place = *self.places.entry((writer, seq)).or_insert_with(|| {
            segments.push(ReplayedSegment {
                writer,
                seq,
                length: 0,
                cut: None,
                stored: false,
                spans: Vec::new(),
            });
            segments.len() - 1
        });
        if let Some(segment) = segments.get_mut(place) {
            change(segment);
        }
    }

    fn settle(mut self, report: &mut ReplayReport) -> ReplayedRecording {
        if self.settled.finished {
            self.settled.segments = Vec::new();
        }
        for segment in &mut self.settled.segments {
            report.holes += u64::from(settle(segment));
        }
        let rank = |segment: &ReplayedSegment| (self.writers.get(&segment.writer).copied(), segment.seq);
        self.settled.segments.sort_by_key(rank);
        self.settled
    }
}

/// Leaves the spans that make the segment's bytes from 0 on, each byte once; true if there are bytes behind a hole.
fn settle(segment: &mut ReplayedSegment) -> bool {
    let limit = segment.cut.unwrap_or(u32::MAX);
    let mut spans = std::mem::take(&mut segment.spans);
    spans.sort_by_key(|span| span.offset);
    for span in spans {
        if span.offset > segment.length {
            return true;
        }
        // Spans overlap where bytes were handed over twice; they are equal there.
        let known = segment.length - span.offset;
        let end = span.offset.saturating_add(span.length).min(limit);
        if end > segment.length {
            segment.spans.push(Span {
                offset: segment.length,
                length: end - segment.length,
                file: span.file,
                at: span.at + u64::from(known),
            });
            segment.length = end;
        }
    }
    false
}
