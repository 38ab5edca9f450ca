//! Random calls against a model that keeps everything in memory.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::whole::{Noted, whole};
use super::*;

#[derive(Debug, Clone)]
enum Action {
    Open(u8),
    Seal {
        recording: u8,
        length: u16,
    },
    Cut(u8),
    /// Hands the oldest segment that waits over again, whole.
    Keep(u8),
    Store(u8),
    Finish(u8),
    Crash,
}

fn action() -> impl Strategy<Value = Action> {
    let recording = 0..4_u8;
    prop_oneof![
        2 => recording.clone().prop_map(Action::Open),
        8 => (recording.clone(), 1..700_u16).prop_map(|(recording, length)| Action::Seal { recording, length }),
        3 => recording.clone().prop_map(Action::Cut),
        3 => recording.clone().prop_map(Action::Keep),
        3 => recording.clone().prop_map(Action::Store),
        1 => recording.prop_map(Action::Finish),
        1 => Just(Action::Crash),
    ]
}

/// One recording as its caller knows it.
#[derive(Debug, Default)]
struct Call {
    is_finished: bool,
    segments: Vec<Segment>,
}

#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    is_cut: bool,
    is_stored: bool,
    kept: Option<Arc<Noted>>,
}

struct Model {
    /// By a number that is new for every call: nothing follows a `Finished`.
    calls: BTreeMap<u8, Call>,
    current: [Option<u8>; 4],
}

impl Model {
    /// Does an action to the model and returns the records that tell it.
    fn act(&mut self, action: &Action) -> Vec<Record> {
        match action {
            Action::Open(slot) => {
                let number = u8::try_from(self.calls.len()).unwrap();
                if self.current[usize::from(*slot)].is_some() {
                    return vec![];
                }
                self.current[usize::from(*slot)] = Some(number);
                self.calls.insert(number, Call::default());
                vec![opened(RecordingId([number; 16]))]
            }
            Action::Seal { recording, length } => {
                let Some((id, call)) = self.call(*recording) else { return vec![] };
                if call.segments.last().is_none_or(|segment| segment.is_cut) {
                    call.segments.push(Segment::default());
                }
                let seq = call.segments.len() - 1;
                let bytes = &mut call.segments[seq].bytes;
                let offset = bytes.len();
                bytes.extend((0..*length).map(|n| (n ^ n >> 8).to_le_bytes()[0] ^ id.0[0]));
                vec![sealed(id, to_u32(seq), to_u32(offset), bytes[offset..].to_vec())]
            }
            Action::Cut(slot) => {
                let Some((id, call)) = self.call(*slot) else { return vec![] };
                let seq = call.segments.len().saturating_sub(1);
                let Some(segment) = call.segments.last_mut().filter(|segment| !segment.is_cut) else {
                    return vec![];
                };
                segment.is_cut = true;
                vec![cut(id, to_u32(seq), to_u32(segment.bytes.len()))]
            }
            Action::Keep(slot) => {
                let Some((id, call)) = self.call(*slot) else { return vec![] };
                let mut cut = call.segments.iter_mut().enumerate().filter(|(_, s)| s.is_cut && !s.is_stored);
                let Some((seq, segment)) = cut.next() else { return vec![] };
                let noted = segment.kept.get_or_insert_default();
                vec![whole(id, to_u32(seq), segment.bytes.clone(), noted)]
            }
            Action::Store(slot) => {
                let Some((id, call)) = self.call(*slot) else { return vec![] };
                let mut cut = call.segments.iter_mut().enumerate().filter(|(_, s)| s.is_cut && !s.is_stored);
                let Some((seq, segment)) = cut.next() else { return vec![] };
                segment.is_stored = true;
                vec![stored(id, to_u32(seq))]
            }
            Action::Finish(slot) => {
                let Some((id, call)) = self.call(*slot) else { return vec![] };
                call.is_finished = true;
                self.current[usize::from(*slot)] = None;
                vec![finished(id)]
            }
            Action::Crash => vec![],
        }
    }

    fn call(&mut self, slot: u8) -> Option<(RecordingId, &mut Call)> {
        let number = self.current[usize::from(slot)]?;
        Some((RecordingId([number; 16]), self.calls.get_mut(&number)?))
    }

    /// Checks that what was handed over whole can be read back, as long as it is needed.
    fn check_kept(&self, journal: &Journal) {
        for (number, call) in self.calls.iter().filter(|(_, call)| !call.is_finished) {
            for (seq, segment) in call.segments.iter().enumerate().filter(|(_, segment)| !segment.is_stored) {
                let Some(noted) = &segment.kept else { continue };
                wait_for("the keeper to hear", || noted.place().is_some());
                let id = SegmentId { recording: RecordingId([*number; 16]), writer: W, seq: to_u32(seq) };
                assert_eq!(journal.read_segment(id, noted.place().unwrap()).unwrap(), segment.bytes);
            }
        }
    }

    /// Checks a replay of everything that was appended.
    fn check(&self, replay: &Replay) {
        assert_eq!((replay.report().torn_tails, replay.report().corrupt_files), (0, 0));
        for found in replay.recordings() {
            let call = &self.calls[&found.recording.0[0]];
            assert_eq!(found.finished, call.is_finished, "{:?}", found.recording);
        }
        for (number, call) in self.calls.iter().filter(|(_, call)| !call.is_finished) {
            let id = RecordingId([*number; 16]);
            let found =
                replay.recordings().iter().find(|found| found.recording == id).expect("a running call");
            assert_eq!(found.body.as_deref(), Some(&b"{}"[..]));
            for (seq, segment) in call.segments.iter().enumerate().filter(|(_, segment)| !segment.is_stored) {
                let found =
                    found.segments.iter().find(|found| found.seq == to_u32(seq)).expect("its segment");
                assert_eq!(replay.segment_bytes(found).unwrap(), segment.bytes);
                assert_eq!((found.is_whole(), found.stored), (segment.is_cut, false));
            }
        }
    }
}

fn to_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_at_any_moment_brings_back_what_is_needed(actions in vec(action(), 1..80), file_bytes in 100..3000_u64) {
        let dir = tempfile::tempdir().unwrap();
        let config = JournalConfig { file_bytes, ..config(dir.path()) };
        let (journal, _replay) = Journal::open(&config).unwrap();
        let mut model = Model { calls: BTreeMap::new(), current: [None; 4] };
        for action in actions.iter().chain([&Action::Crash]) {
            append(&journal, model.act(action));
            if matches!(action, Action::Crash) {
                journal.sync_now(LIMIT).unwrap();
                model.check_kept(&journal);
                let (_copy, _journal, replay) = crash(dir.path());
                model.check(&replay);
            }
        }
        for slot in 0..4 {
            append(&journal, model.act(&Action::Finish(slot)));
        }
        journal.sync_now(LIMIT).unwrap();
        wait_for("removal of all files but the last", || files(dir.path()).len() <= 1);
    }
}
