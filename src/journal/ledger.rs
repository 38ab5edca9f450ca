//! Which file is still needed for what: the rules of removal, without any file.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;

use super::Record;
use super::whole::SegmentId;
use crate::domain::ids::{RecordingId, TenantTag, WriterId};

/// Knows, for every file of this incarnation, what in it is still needed.
///
/// A file is needed for segments that are neither stored nor of a finished recording, and as the *home* of a recording's
/// *head*: the one `Opened` or `Finished` record that counts. Heads can be carried to another file.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    files: BTreeMap<u32, FileEntry>,
    recordings: HashMap<RecordingId, RecordingEntry>,
    /// Recordings whose head must be written again, into the current file.
    carry: BTreeSet<RecordingId>,
}

#[derive(Debug, Default)]
struct FileEntry {
    /// How many segments need this file.
    segments: usize,
    /// All recordings with a record in it.
    recordings: HashSet<RecordingId>,
}

#[derive(Debug, Default)]
struct RecordingEntry {
    head: Head,
    /// The file with the head, if any has it.
    home: Option<u32>,
    /// The segments that are not stored, each with the few files that hold some of it.
    segments: HashMap<(WriterId, u32), Vec<u32>>,
    /// All files with a record of it.
    files: BTreeSet<u32>,
}

#[derive(Debug, Default)]
enum Head {
    #[default]
    Missing,
    Opened {
        tenant_tag: TenantTag,
        body: Bytes,
    },
    Finished,
}

impl Ledger {
    pub(super) fn add_file(&mut self, file: u32) {
        self.files.entry(file).or_default();
    }

    /// Notes a record that was written to a file.
    pub(super) fn note_written(&mut self, record: &Record, file: u32) {
        let recording = record.recording();
        match record {
            Record::Opened { tenant_tag, body, .. } => {
                let entry = self.mention(recording, file);
                entry.head = Head::Opened { tenant_tag: *tenant_tag, body: body.clone() };
                entry.home = Some(file);
                self.carry.remove(&recording);
            }
            Record::Sealed { writer, seq, .. } | Record::Cut { writer, seq, .. } => {
                self.note_run(SegmentId { recording, writer: *writer, seq: *seq }, file);
            }
            Record::Whole { segment, .. } => self.note_run(*segment, file),
            Record::Stored { writer, seq, .. } => {
                self.mention(recording, file);
                self.release_segment(recording, (*writer, *seq));
            }
            Record::Finished { .. } => {
                self.mention(recording, file);
                self.finish(recording, Some(file));
            }
        }
    }

    /// Notes that a file has some of a segment.
    pub(super) fn note_run(&mut self, segment: SegmentId, file: u32) {
        let SegmentId { recording, writer, seq } = segment;
        let entry = self.mention(recording, file);
        if matches!(entry.head, Head::Finished) {
            return;
        }
        let files = entry.segments.entry((writer, seq)).or_default();
        if !files.contains(&file) {
            files.push(file);
            self.files.entry(file).or_default().segments += 1;
        }
    }

    /// Notes that a file has a record of a recording.
    fn mention(&mut self, recording: RecordingId, file: u32) -> &mut RecordingEntry {
        self.files.entry(file).or_default().recordings.insert(recording);
        let entry = self.recordings.entry(recording).or_default();
        entry.files.insert(file);
        entry
    }

    /// Notes a record that could not be written: what it says is true all the same.
    pub(super) fn note_discarded(&mut self, record: &Record) {
        let recording = record.recording();
        match record {
            Record::Opened { tenant_tag, body, .. } => {
                let entry = self.recordings.entry(recording).or_default();
                entry.head = Head::Opened { tenant_tag: *tenant_tag, body: body.clone() };
                self.carry.insert(recording);
            }
            Record::Sealed { .. } | Record::Cut { .. } | Record::Whole { .. } => {}
            Record::Stored { writer, seq, .. } => self.release_segment(recording, (*writer, *seq)),
            Record::Finished { .. } => self.finish(recording, None),
        }
    }

    /// Lets go of all of a segment but what is in `file`, which has all of it durably. False if nothing of it is needed
    /// there: it is stored, or another file has all of it durably.
    pub(super) fn settle(&mut self, segment: SegmentId, file: u32) -> bool {
        let SegmentId { recording, writer, seq } = segment;
        let entry = self.recordings.get_mut(&recording);
        let files = entry.and_then(|entry| entry.segments.get_mut(&(writer, seq)));
        let Some(files) = files.filter(|files| files.contains(&file)) else { return false };
        let before = std::mem::replace(files, vec![file]);
        self.release_files(before.into_iter().filter(|before| *before != file));
        true
    }

    /// Lets all heads that live in a file be written again.
    pub(super) fn carry_heads_of(&mut self, file: u32) {
        let Some(entry) = self.files.get(&file) else { return };
        let lives_here = |id: &&RecordingId| self.recordings.get(id).is_some_and(|r| r.home == Some(file));
        self.carry.extend(entry.recordings.iter().filter(lives_here));
    }

    /// Forgets a file that was removed.
    pub(super) fn remove_file(&mut self, file: u32) {
        let Some(removed) = self.files.remove(&file) else { return };
        for recording in removed.recordings {
            let Some(entry) = self.recordings.get_mut(&recording) else { continue };
            entry.files.remove(&file);
            if entry.home == Some(file) {
                entry.home = None;
            }
            self.forget_if_done(recording);
        }
    }

    /// Returns heads to be written again, up to about `limit` bytes; [`Ledger::note_written`] takes them off the list.
    pub(super) fn heads_to_carry(&self, limit: usize) -> Vec<Record> {
        let mut bytes = 0;
        let mut heads = Vec::new();
        for recording in &self.carry {
            let head = match self.recordings.get(recording).map(|entry| &entry.head) {
                Some(Head::Opened { tenant_tag, body }) => {
                    Record::Opened { recording: *recording, tenant_tag: *tenant_tag, body: body.clone() }
                }
                Some(Head::Finished) => Record::Finished { recording: *recording },
                Some(Head::Missing) | None => continue,
            };
            bytes += head.held_bytes() + 64;
            heads.push(head);
            if bytes >= limit {
                break;
            }
        }
        heads
    }

    /// Returns the files that no segment needs, but none of `current`.
    pub(super) fn idle_files(&self, current: &[u32]) -> Vec<u32> {
        let idle = self.files.iter().filter(|(file, entry)| entry.segments == 0 && !current.contains(file));
        idle.map(|(file, _)| *file).collect()
    }

    /// Tells whether no segment needs a file.
    pub(super) fn is_idle(&self, file: u32) -> bool {
        self.files.get(&file).is_none_or(|entry| entry.segments == 0)
    }

    /// Tells whether heads keep a file: it is their home, or it may have a copy of an `Opened` one whose home failed.
    pub(super) fn is_kept_by_heads(&self, file: u32) -> bool {
        let keeps = |id: &RecordingId| {
            self.recordings.get(id).is_some_and(|entry| {
                let may_be_copy = matches!(entry.head, Head::Opened { .. }) && self.carry.contains(id);
                entry.home == Some(file) || may_be_copy
            })
        };
        self.files.get(&file).is_some_and(|entry| entry.recordings.iter().any(keeps))
    }

    pub(super) fn file_count(&self) -> usize {
        self.files.len()
    }

    fn release_segment(&mut self, recording: RecordingId, segment: (WriterId, u32)) {
        let released = self.recordings.get_mut(&recording).and_then(|entry| entry.segments.remove(&segment));
        self.release_files(released.into_iter().flatten());
        self.forget_if_done(recording);
    }

    fn finish(&mut self, recording: RecordingId, home: Option<u32>) {
        let entry = self.recordings.entry(recording).or_default();
        entry.head = Head::Finished;
        entry.home = home;
        let released: Vec<_> = entry.segments.drain().flat_map(|(_, files)| files).collect();
        self.release_files(released);
        if home.is_some() {
            self.carry.remove(&recording);
        } else {
            self.carry.insert(recording);
        }
        self.forget_if_done(recording);
    }

    fn release_files(&mut self, files: impl IntoIterator<Item = u32>) {
        for file in files {
            if let Some(entry) = self.files.get_mut(&file) {
                entry.segments = entry.segments.saturating_sub(1);
            }
        }
    }

    /// Forgets a recording that no file mentions, or that is finished and mentioned nowhere but at home.
    fn forget_if_done(&mut self, recording: RecordingId) {
        let Some(entry) = self.recordings.get(&recording) else { return };
        let is_done = match entry.head {
            Head::Opened { .. } => false,
            Head::Missing => entry.files.is_empty(),
            Head::Finished => entry.files.iter().all(|file| Some(*file) == entry.home),
        };
        if is_done {
            self.recordings.remove(&recording);
            self.carry.remove(&recording);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const R: RecordingId = RecordingId([1; 16]);
    const Q: RecordingId = RecordingId([2; 16]);

    fn opened(recording: RecordingId) -> Record {
        Record::Opened { recording, tenant_tag: TenantTag([0; 16]), body: Bytes::from_static(b"{}") }
    }

    fn sealed(recording: RecordingId, seq: u32) -> Record {
        let (writer, bytes) = (WriterId([3; 16]), Bytes::from_static(b"x"));
        Record::Sealed { recording, writer, seq, offset: 0, bytes, sealed_at: clock::monotonic() }
    }

    fn stored(recording: RecordingId, seq: u32) -> Record {
        Record::Stored { recording, writer: WriterId([3; 16]), seq }
    }

    fn finished(recording: RecordingId) -> Record {
        Record::Finished { recording }
    }

    fn ledger(written: &[(Record, u32)]) -> Ledger {
        let mut ledger = Ledger::default();
        for (record, file) in written {
            ledger.add_file(*file);
            ledger.note_written(record, *file);
        }
        ledger
    }

    #[test]
    fn a_segment_keeps_all_its_files_until_stored() {
        let mut ledger = ledger(&[(opened(R), 0), (sealed(R, 0), 0), (sealed(R, 0), 1), (sealed(R, 1), 1)]);
        assert_eq!(ledger.idle_files(&[]), [] as [u32; 0]);
        ledger.note_written(&stored(R, 0), 2);
        assert_eq!(ledger.idle_files(&[2]), [0]);
        ledger.note_discarded(&stored(R, 1));
        assert_eq!(ledger.idle_files(&[2]), [0, 1]);
        assert!(ledger.is_kept_by_heads(0) && !ledger.is_kept_by_heads(1));
    }

    #[test]
    fn the_head_of_a_running_recording_is_carried_before_its_file_goes() {
        let mut ledger = ledger(&[(opened(R), 0), (sealed(R, 0), 0), (stored(R, 0), 1)]);
        ledger.carry_heads_of(0);
        let heads = ledger.heads_to_carry(1000);
        assert!(matches!(&heads[..], [Record::Opened { recording: R, .. }]));
        assert!(ledger.is_kept_by_heads(0), "until it is written elsewhere");
        ledger.note_written(&heads[0], 1);
        assert!(!ledger.is_kept_by_heads(0) && ledger.heads_to_carry(1000).is_empty());
    }

    #[test]
    fn a_finished_head_lives_as_long_as_another_file_mentions_the_recording() {
        let mut ledger =
            ledger(&[(opened(Q), 0), (sealed(Q, 0), 0), (sealed(R, 0), 0), (finished(R), 1), (opened(Q), 2)]);
        assert_eq!(ledger.idle_files(&[]), [1, 2]);
        ledger.carry_heads_of(1);
        assert!(matches!(ledger.heads_to_carry(1000)[..], [Record::Finished { recording: R }]));
        ledger.note_written(&stored(Q, 0), 2);
        ledger.remove_file(0);
        assert!(ledger.heads_to_carry(1000).is_empty(), "nobody mentions it any more");
        assert!(!ledger.is_kept_by_heads(1));
    }

    #[test]
    fn heads_of_discarded_records_wait_to_be_written() {
        let mut ledger = ledger(&[(sealed(R, 0), 0)]);
        ledger.note_discarded(&opened(Q));
        ledger.note_discarded(&finished(R));
        assert_eq!(ledger.idle_files(&[]), [0], "finishing needs no disk");
        assert_eq!(ledger.heads_to_carry(1000).len(), 2);
        assert_eq!(ledger.heads_to_carry(1).len(), 1);
        ledger.note_discarded(&finished(Q));
        assert_eq!(ledger.heads_to_carry(1000).len(), 1, "what no file mentions needs no end");
    }

    #[test]
    fn a_copy_of_a_head_stays_while_its_home_is_not_believed() {
        let mut ledger = ledger(&[(opened(R), 0), (opened(R), 1), (finished(Q), 0)]);
        assert!(!ledger.is_kept_by_heads(0));
        ledger.carry_heads_of(1);
        assert!(ledger.is_kept_by_heads(0));
        ledger.note_written(&opened(R), 2);
        assert!(!ledger.is_kept_by_heads(0) && !ledger.is_kept_by_heads(1));
    }

    #[test]
    fn what_follows_the_end_of_a_recording_needs_nothing() {
        let mut ledger = ledger(&[(sealed(R, 0), 0), (finished(R), 1)]);
        ledger.note_written(&sealed(R, 1), 1);
        assert_eq!(ledger.idle_files(&[]), [0, 1]);
    }

    #[test]
    fn nothing_is_remembered_of_what_is_over() {
        let mut ledger = ledger(&[(opened(R), 0), (sealed(R, 0), 0), (finished(R), 0), (sealed(Q, 0), 0)]);
        ledger.note_written(&finished(Q), 1);
        ledger.remove_file(0);
        ledger.remove_file(1);
        assert!(ledger.recordings.is_empty() && ledger.carry.is_empty() && ledger.file_count() == 0);
    }
}
