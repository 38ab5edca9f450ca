//! The writing thread: takes records from the queue, writes them in batches, turns over and removes files.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::files::{FileName, write_all};
use super::ledger::Ledger;
use super::status::Status;
use super::syncer::Syncer;
use super::{
    FailureKind, JournalConfig, JournalFile, JournalFiles, JournalObserver, JournalState, Record, Step, left,
    record,
};
use crate::clock;

/// From how many bytes on a batch is written; bounds the memory of the writer.
const BATCH_BYTES: usize = 4 << 20;
/// The longest pause between two tries; each pause is twice the one before.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After so long without a failure the pauses begin with the first again.
const CALM: Duration = Duration::from_secs(60);

/// What the writer is told beside records.
#[derive(Debug)]
pub(super) enum Command {
    /// Write everything appended before, then answer with the position to be synced.
    Flush(SyncSender<Result<u64, FailureKind>>),
    /// Write everything and end.
    Close,
}

/// What a writer is made of.
pub(super) struct Parts {
    pub(super) config: JournalConfig,
    pub(super) incarnation: u64,
    pub(super) files: Arc<dyn JournalFiles>,
    pub(super) observer: Arc<dyn JournalObserver>,
    pub(super) status: Arc<Status>,
    pub(super) syncer: Arc<Syncer>,
    /// The bytes held by the records in the queue.
    pub(super) waiting_bytes: Arc<AtomicUsize>,
    pub(super) appended: Receiver<Record>,
}

pub(super) struct Writer {
    parts: Parts,
    ledger: Ledger,
    /// The file being written; none before the first record, after a full file and after a failure.
    current: Option<Current>,
    next_number: u32,
    /// The sizes of the files there are.
    sizes: BTreeMap<u32, u64>,
    /// Files that nothing needs once everything up to the position is durable.
    removable: BTreeMap<u32, u64>,
    pause: Pause,
    batch: Vec<Record>,
    /// The batch as it is on disk.
    encoded: Vec<u8>,
}

struct Current {
    number: u32,
    file: Arc<dyn JournalFile>,
    /// The bytes of records from the queue; carried ones do not count, or they alone could fill file after file.
    filled: u64,
}

/// When to try again after a failure.
struct Pause {
    length: Duration,
    until: Instant,
    failed_at: Option<Instant>,
}

impl Pause {
    fn extend(&mut self, now: Instant, first: Duration) {
        let is_calm = self.failed_at.is_none_or(|at| now.saturating_duration_since(at) > CALM);
        self.length = if is_calm { first } else { (self.length * 2).min(LONGEST_PAUSE) };
        self.until = now + self.length;
        self.failed_at = Some(now);
    }
}

/// Where the records of a batch come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Queue,
    Carried,
}

impl Writer {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            ledger: Ledger::default(),
            current: None,
            next_number: 0,
            sizes: BTreeMap::new(),
            removable: BTreeMap::new(),
            pause: Pause { length: Duration::ZERO, until: clock::monotonic(), failed_at: None },
            batch: Vec::new(),
            encoded: Vec::new(),
        }
    }

    /// Writes what was appended every `flush_interval`, until told to close or until all handles are gone.
    pub(super) fn run(&mut self, commands: &Receiver<Command>) {
        let mut next = clock::monotonic();
        loop {
            let command = commands.recv_timeout(left(next));
            next = clock::monotonic() + self.parts.config.flush_interval;
            self.turn();
            match command {
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody waiting for the answer is no fault.
                Ok(Command::Flush(reply)) => reply.send(self.flushed()).unwrap_or_default(),
                Ok(Command::Close) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.parts.syncer.close();
    }

    /// Does everything there is to do now. Takes at most as many records as the queue can hold, so that it ends.
    fn turn(&mut self) {
        for (number, kind) in self.parts.syncer.take_failed() {
            self.disbelieve(number, kind);
        }
        if self.is_failing() {
            self.open_file();
        }
        if !self.is_failing() {
            self.carry();
        }
        let mut left = self.parts.config.queue_slots.max(1);
        while left > 0 && self.fill_batch(&mut left) {
            self.write_batch(Source::Queue);
        }
        self.remove_files();
    }

    fn flushed(&self) -> Result<u64, FailureKind> {
        match self.parts.status.state() {
            JournalState::Healthy => Ok(self.parts.syncer.written()),
            JournalState::Failing { kind, .. } => Err(kind),
        }
    }

    /// Takes records from the queue until the batch or the file is full; false if there is none.
    fn fill_batch(&mut self, left: &mut usize) -> bool {
        let filled = self.current.as_ref().map_or(0, |current| current.filled);
        let room = self.parts.config.file_bytes.saturating_sub(filled);
        let limit = BATCH_BYTES.min(usize::try_from(room).unwrap_or(BATCH_BYTES));
        while *left > 0 {
            let Ok(record) = self.parts.appended.try_recv() else { break };
            *left -= 1;
            record.encode(&mut self.encoded);
            self.batch.push(record);
            if self.encoded.len() >= limit {
                break;
            }
        }
        !self.batch.is_empty()
    }

    /// Writes the heads that have no safe home.
    fn carry(&mut self) {
        loop {
            self.batch = self.ledger.heads_to_carry(BATCH_BYTES);
            if self.batch.is_empty() {
                return;
            }
            self.batch.iter().for_each(|head| head.encode(&mut self.encoded));
            if !self.write_batch(Source::Carried) {
                return;
            }
        }
    }

    /// Writes the batch with one call, or discards it if no file takes it; it is empty afterwards.
    fn write_batch(&mut self, source: Source) -> bool {
        let is_written = self.open_file() && self.append_encoded(source);
        let batch = std::mem::take(&mut self.batch);
        if source == Source::Queue {
            let held = batch.iter().map(Record::held_bytes).sum();
            self.parts.waiting_bytes.fetch_sub(held, Ordering::Relaxed);
        }
        if is_written {
            self.note_written(&batch);
        } else {
            batch.iter().for_each(|record| self.ledger.note_discarded(record));
            self.parts.observer.discarded(batch.len() as u64);
        }
        self.close_full_file();
        self.batch = batch;
        self.batch.clear();
        self.encoded.clear();
        // A single huge record must not keep its memory for ever.
        self.encoded.shrink_to(2 * BATCH_BYTES);
        is_written
    }

    fn append_encoded(&mut self, source: Source) -> bool {
        let Some(current) = &mut self.current else { return false };
        let (number, file, bytes) = (current.number, Arc::clone(&current.file), self.encoded.len() as u64);
        if let Err(error) = write_all(&*file, &self.encoded) {
            let kind = FailureKind::of(&error);
            self.parts.observer.failed(Step::Write, kind);
            // The file now ends torn, but what was written before is as good as it was, and is still synced.
            self.fail(kind);
            return false;
        }
        if source == Source::Queue {
            current.filled += bytes;
        }
        self.count_written(number, &file, self.batch.len() as u64, bytes);
        true
    }

    fn note_written(&mut self, batch: &[Record]) {
        let Some(number) = self.current.as_ref().map(|current| current.number) else { return };
        let now = clock::monotonic();
        for record in batch {
            self.ledger.note_written(record, number);
            if let Record::Sealed { sealed_at, .. } = record {
                self.parts.observer.flushed(now.saturating_duration_since(*sealed_at));
            }
        }
    }

    /// Makes sure that there is a file to write to; false while it must not be tried or cannot be done.
    fn open_file(&mut self) -> bool {
        if self.current.is_some() {
            return true;
        }
        let is_recovery = self.is_failing();
        if is_recovery && clock::monotonic() < self.pause.until {
            return false;
        }
        let number = self.next_number;
        self.next_number += 1;
        match self.create_file(number, is_recovery) {
            Ok(file) => {
                self.ledger.add_file(number);
                self.current = Some(Current { number, file, filled: 0 });
                self.parts.observer.files(self.ledger.file_count());
                if is_recovery {
                    self.parts.status.recover();
                }
                true
            }
            Err((step, error)) => {
                let kind = FailureKind::of(&error);
                self.parts.observer.failed(step, kind);
                // What cannot be removed holds no recording and goes when the journal is opened next.
                self.parts.files.remove(&self.path(number)).unwrap_or_default();
                self.fail(kind);
                false
            }
        }
    }

    /// Creates a file and writes its first record; after a failure the file must also prove that it can be synced.
    fn create_file(
        &mut self,
        number: u32,
        is_recovery: bool,
    ) -> Result<Arc<dyn JournalFile>, (Step, io::Error)> {
        let file = self.parts.files.create(&self.path(number)).map_err(|error| (Step::Create, error))?;
        let mut begin = Vec::new();
        record::encode_begin(self.parts.incarnation, number, &mut begin);
        write_all(&*file, &begin).map_err(|error| (Step::Write, error))?;
        if is_recovery {
            file.sync_data().map_err(|error| (Step::Sync, error))?;
        }
        self.parts.syncer.created(number);
        self.count_written(number, &file, 1, begin.len() as u64);
        Ok(file)
    }

    fn count_written(&mut self, number: u32, file: &Arc<dyn JournalFile>, records: u64, bytes: u64) {
        *self.sizes.entry(number).or_default() += bytes;
        self.parts.status.add_disk_bytes(bytes);
        self.parts.syncer.wrote(number, file, bytes);
        self.parts.observer.wrote(records, bytes);
    }

    fn close_full_file(&mut self) {
        let limit = self.parts.config.file_bytes;
        self.current.take_if(|current| current.filled >= limit);
    }

    /// Stops writing until the pause is over; the next write must prove a new file.
    fn fail(&mut self, kind: FailureKind) {
        let now = clock::monotonic();
        self.parts.status.fail(now, kind);
        self.pause.extend(now, self.parts.config.retry_pause);
        self.current = None;
    }

    /// Stops believing in a file that could not be synced: what counts on it must be written again.
    fn disbelieve(&mut self, number: u32, kind: FailureKind) {
        self.fail(kind);
        self.ledger.carry_heads_of(number);
        self.removable.clear();
    }

    /// Removes the files that nothing needs any more, moving heads out of those that nothing else needs.
    fn remove_files(&mut self) {
        let mut idle = self.ledger.idle_files(self.current.as_ref().map(|current| current.number));
        idle.retain(|number| !self.removable.contains_key(number));
        if !idle.is_empty() && !self.is_failing() {
            idle.iter().for_each(|number| self.ledger.carry_heads_of(*number));
            self.carry();
        }
        let position = self.parts.syncer.written();
        for number in idle {
            if !self.ledger.is_kept_by_heads(number) {
                self.removable.insert(number, position);
            }
        }
        let Some(synced) = self.parts.syncer.synced() else { return };
        let ready: Vec<u32> =
            self.removable.iter().filter(|(_, at)| **at <= synced).map(|(number, _)| *number).collect();
        ready.into_iter().for_each(|number| self.remove_file(number));
    }

    fn remove_file(&mut self, number: u32) {
        match self.parts.files.remove(&self.path(number)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.parts.observer.failed(Step::Remove, FailureKind::of(&error));
                // Tried again when more was written and synced, not with every turn.
                self.removable.insert(number, self.parts.syncer.written() + 1);
                return;
            }
        }
        self.removable.remove(&number);
        self.ledger.remove_file(number);
        self.parts.status.remove_disk_bytes(self.sizes.remove(&number).unwrap_or_default());
        self.parts.observer.files(self.ledger.file_count());
    }

    fn is_failing(&self) -> bool {
        self.parts.status.state() != JournalState::Healthy
    }

    fn path(&self, number: u32) -> PathBuf {
        let name = FileName { incarnation: self.parts.incarnation, number };
        self.parts.config.dir.join(name.to_string())
    }
}
