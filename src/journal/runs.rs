//! Sealed bytes of one recording on their way to the writer. What comes between two of its turns becomes one record, so that
//! a message costs a copy and not a place in the queue.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::whole::SegmentId;
use super::{Entry, Journal, Refused};
use crate::domain::ids::{RecordingId, WriterId};

/// Room for the frames of two tracks that come between two turns of the writer.
const USUAL_BYTES: usize = 512;
/// More room than this is not kept for the next run: it came with a writer that was late.
const MAX_KEPT_BYTES: usize = 4 * USUAL_BYTES;

/// The way of one recording's sealed bytes into the journal.
pub struct Runs {
    journal: Journal,
    waiting: Arc<Waiting>,
}

/// The bytes of one recording that wait; the writer finds it in its queue when there are some.
pub(super) struct Waiting {
    recording: RecordingId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    run: Option<Run>,
    /// Empty, with the room of the last run.
    room: Vec<u8>,
    /// The last segment and file that the ledger was told of.
    noted: Option<(WriterId, u32, u32)>,
}

/// Sealed bytes that follow each other in a segment.
pub(super) struct Run {
    pub(super) writer: WriterId,
    pub(super) seq: u32,
    pub(super) offset: u32,
    pub(super) bytes: Vec<u8>,
    /// When the oldest frame was sealed.
    pub(super) sealed_at: Instant,
}

impl Runs {
    pub(super) fn new(journal: Journal, recording: RecordingId) -> Self {
        Self { journal, waiting: Arc::new(Waiting { recording, state: Mutex::default() }) }
    }

    /// Hands whole sealed frames over, which begin at `offset` of the segment `seq` of `writer`, in bytes; copies them and does
    /// not wait. They are written within [`JournalConfig::flush_interval`](super::JournalConfig::flush_interval).
    ///
    /// # Errors
    /// [`Refused`], also while other bytes wait than those before `offset`; the caller hands a larger range over with its next
    /// frames.
    pub fn append(
        &self,
        (writer, seq): (WriterId, u32),
        offset: u32,
        bytes: &[u8],
        sealed_at: Instant,
    ) -> Result<(), Refused> {
        self.journal.reserve(bytes.len())?;
        let mut state = self.waiting.state();
        let State { run: waiting, room, .. } = &mut *state;
        let taken = match waiting {
            Some(run) if run.ends_at(writer, seq, offset) => {
                run.bytes.extend_from_slice(bytes);
                Ok(())
            }
            Some(_) => Err(Refused::Full),
            None => self.journal.send(Entry::Waiting(Arc::clone(&self.waiting))).map(|()| {
                let mut run = std::mem::take(room);
                run.reserve(USUAL_BYTES.max(bytes.len()));
                run.extend_from_slice(bytes);
                *waiting = Some(Run { writer, seq, offset, bytes: run, sealed_at });
            }),
        };
        taken.inspect_err(|_| self.journal.release(bytes.len()))
    }

    /// Reads a little of what [`Runs::append`] needs, so that it is in the processor's cache by then.
    pub fn prefetch(&self) {
        black_box(self.waiting.recording);
    }

    /// Takes back what waits of a segment of which `journaled` bytes were handed over. Answers how many of these the journal
    /// keeps; the caller hands the rest over in another way.
    pub fn take_back(&self, (writer, seq): (WriterId, u32), journaled: usize) -> usize {
        let taken = self.waiting.state().run.take_if(|run| (run.writer, run.seq) == (writer, seq));
        let Some(run) = taken else { return journaled };
        self.journal.release(run.bytes.len());
        // It may wait behind bytes that the journal has lost, and that count as not handed over by now.
        usize::try_from(run.offset).unwrap_or(usize::MAX).min(journaled)
    }
}

impl Waiting {
    pub(super) fn recording(&self) -> RecordingId {
        self.recording
    }

    /// Takes what waits; `None` when it was taken back.
    pub(super) fn take(&self) -> Option<Run> {
        self.state().run.take()
    }

    /// Gives the room of a run back, for the next one.
    pub(super) fn give_back(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        if bytes.capacity() <= MAX_KEPT_BYTES {
            self.state().room = bytes;
        }
    }

    /// Notes that a file has a run of a segment; whether the ledger does not know that yet.
    pub(super) fn note_written(&self, segment: SegmentId, file: u32) -> bool {
        let noted = Some((segment.writer, segment.seq, file));
        std::mem::replace(&mut self.state().noted, noted) != noted
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Run {
    fn ends_at(&self, writer: WriterId, seq: u32, offset: u32) -> bool {
        let end = u32::try_from(self.bytes.len()).ok().and_then(|length| self.offset.checked_add(length));
        (self.writer, self.seq, end) == (writer, seq, Some(offset))
    }
}

impl Journal {
    /// Opens the way for a recording's sealed bytes.
    pub fn runs(&self, recording: RecordingId) -> Runs {
        Runs::new(self.clone(), recording)
    }

    /// Counts bytes that are about to wait for the writer.
    pub(super) fn reserve(&self, bytes: usize) -> Result<(), Refused> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Refused::Closed);
        }
        let waiting = self.shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One record of any size fits into an empty queue.
        if waiting == 0 || waiting.saturating_add(bytes) <= self.shared.queue_bytes {
            return Ok(());
        }
        self.release(bytes);
        Err(Refused::Full)
    }

    /// Counts bytes off that do not wait any more.
    pub(super) fn release(&self, bytes: usize) {
        self.shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}
