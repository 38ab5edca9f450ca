//! Where callers put what the writer shall write: one place for all calls, in the order in which it comes, already as it will be
//! on disk. Whoever comes waits for no disk, only while another copies its bytes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::batch::{BATCH_BYTES, Batch};
use super::whole::SegmentId;
use super::{JournalConfig, Record, Refused};

/// Emptied batches whose memory is kept: one is filled while the other is written.
const SPARE_BATCHES: usize = 2;

/// A segment of which some is noted for a file.
pub(super) type Noted = Option<(SegmentId, u32)>;

/// What was appended and not yet taken by the writer.
pub(super) struct Inlet {
    batch_bytes: usize,
    max_records: usize,
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    filling: Batch,
    full: Vec<Batch>,
    /// Whole segments, which are long: the writer copies them.
    wholes: Vec<Record>,
    spare: Vec<Batch>,
    /// The file that frames are written to at the moment.
    file: Option<u32>,
    /// Of everything that waits or is being written.
    records: usize,
    held_bytes: usize,
    is_closed: bool,
}

/// What the writer has taken.
pub(super) struct Taken {
    pub(super) wholes: Vec<Record>,
    pub(super) batches: Vec<Batch>,
}

impl Inlet {
    pub(super) fn new(config: &JournalConfig) -> Self {
        let file_bytes = usize::try_from(config.file_bytes).unwrap_or(usize::MAX);
        Self {
            batch_bytes: BATCH_BYTES.min(file_bytes),
            max_records: config.queue_slots.max(1),
            max_bytes: config.queue_bytes,
            state: Mutex::default(),
        }
    }

    /// Takes a record.
    pub(super) fn append(&self, record: Record) -> Result<(), Refused> {
        let mut state = self.state();
        self.count(&mut state, record.held_bytes())?;
        if matches!(record, Record::Whole { .. }) {
            state.wholes.push(record);
        } else {
            self.batch(&mut state).push(record);
        }
        Ok(())
    }

    /// Takes a run of sealed frames. `noted` is what was noted of its recording last, and is kept for the next.
    pub(super) fn append_run(
        &self,
        segment: SegmentId,
        offset: u32,
        bytes: &[u8],
        sealed_at: Instant,
        noted: &mut Noted,
    ) -> Result<(), Refused> {
        let mut state = self.state();
        self.count(&mut state, bytes.len())?;
        let place = state.file.map(|file| (segment, file));
        let is_news = place.is_none() || *noted != place;
        *noted = place;
        self.batch(&mut state).push_run(segment, offset, bytes, sealed_at, is_news);
        Ok(())
    }

    /// Takes everything that waits; it goes on counting until [`Inlet::written`].
    pub(super) fn take(&self) -> Taken {
        let mut state = self.state();
        if !state.filling.is_empty() {
            state.begin_batch();
        }
        Taken { wholes: std::mem::take(&mut state.wholes), batches: std::mem::take(&mut state.full) }
    }

    /// Gives the memory of a batch back that was written or given up.
    pub(super) fn written(&self, mut batch: Batch) {
        let (records, held_bytes) = (batch.records, batch.held_bytes);
        batch.clear();
        let mut state = self.state();
        state.records -= records;
        state.held_bytes -= held_bytes;
        if state.spare.len() < SPARE_BATCHES {
            state.spare.push(batch);
        }
    }

    /// Frames go to this file from now on. What waits may still come into it, and was noted for another.
    pub(super) fn set_file(&self, file: u32) {
        let mut state = self.state();
        state.file = Some(file);
        match state.filling.is_empty() {
            true => state.filling.file = Some(file),
            false => state.begin_batch(),
        }
    }

    /// Refuses everything from now on.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
    }

    /// Returns the bytes of callers in what waits or is being written.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.state().held_bytes
    }

    /// Counts one more record, if there is room.
    fn count(&self, state: &mut State, bytes: usize) -> Result<(), Refused> {
        if state.is_closed {
            return Err(Refused::Closed);
        }
        // One record of any size fits where nothing waits.
        let has_room = state.held_bytes == 0 || state.held_bytes.saturating_add(bytes) <= self.max_bytes;
        if !has_room || state.records >= self.max_records {
            return Err(Refused::Full);
        }
        state.records += 1;
        state.held_bytes += bytes;
        Ok(())
    }

    /// Returns the batch that is being filled.
    fn batch<'s>(&self, state: &'s mut State) -> &'s mut Batch {
        if state.filling.encoded.len() >= self.batch_bytes {
            state.begin_batch();
        }
        &mut state.filling
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin_batch(&mut self) {
        let next = Batch { file: self.file, ..self.spare.pop().unwrap_or_default() };
        self.full.push(std::mem::replace(&mut self.filling, next));
    }
}
