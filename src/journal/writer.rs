//! The writing thread: takes what callers have put into the inlet, writes it in batches, turns over and removes files.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::batch::{BATCH_BYTES, Batch, BatchEntry, Kind};
use super::files::{FileName, write_all};
use super::inlet::{Inlet, Taken};
use super::ledger::Ledger;
use super::status::Status;
use super::syncer::Syncer;
use super::whole::{Pending, Place, Written};
use super::{
    FailureKind, JournalConfig, JournalFile, JournalFiles, JournalObserver, JournalState,
    NEARLY_FULL_PERCENT, Record, Step, left, record,
};
use crate::clock;

/// The longest pause between two tries; each pause is twice the one before.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// After so long without a failure the pauses begin with the first again.
const CALM: Duration = Duration::from_secs(60);
/// From this share of `max_bytes` on somebody should look.
const WARN_AT_PERCENT: u64 = 80;
/// Below this share the next crossing is told again.
const CALM_AT_PERCENT: u64 = 75;

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
    pub(super) inlet: Arc<Inlet>,
}

pub(super) struct Writer {
    parts: Parts,
    ledger: Ledger,
    /// The files being written; none before the first record, after a full file and after a failure.
    frames: Option<Current>,
    wholes: Option<Current>,
    next_number: u32,
    /// The sizes of the files there are.
    sizes: BTreeMap<u32, u64>,
    /// Files that nothing needs once everything up to the position is durable.
    removable: BTreeMap<u32, u64>,
    /// Whole segments that are not durable yet.
    pending: Pending,
    pause: Pause,
    /// Whether it was told that the journal is getting full.
    has_warned: bool,
}

/// What a file holds. Whole segments have files of their own: they stay long after the pieces that they replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Series {
    Frames,
    Wholes,
}

struct Current {
    number: u32,
    file: Arc<dyn JournalFile>,
    /// All bytes in it.
    length: u64,
    /// The bytes of records from the inlet; carried ones do not count, or they alone could fill file after file.
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
    Inlet,
    Carried,
}

impl Writer {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            ledger: Ledger::default(),
            frames: None,
            wholes: None,
            next_number: 0,
            sizes: BTreeMap::new(),
            removable: BTreeMap::new(),
            pending: Pending::default(),
            pause: Pause { length: Duration::ZERO, until: clock::monotonic(), failed_at: None },
            has_warned: false,
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
        self.parts.inlet.close();
        self.parts.syncer.close();
    }

    /// Does everything there is to do now.
    fn turn(&mut self) {
        for (number, kind) in self.parts.syncer.take_failed() {
            self.disbelieve(number, kind);
        }
        self.settle_durable();
        if self.is_failing() {
            self.open_file(Series::Frames);
        }
        if !self.is_failing() {
            self.carry();
        }
        let Taken { wholes, batches } = self.parts.inlet.take();
        // Whole segments first: what follows one may end it.
        self.write_wholes(wholes);
        for batch in batches {
            self.write_batch(Series::Frames, Source::Inlet, &batch);
            self.parts.inlet.written(batch);
        }
        self.remove_files();
        self.watch_size();
    }

    fn flushed(&self) -> Result<u64, FailureKind> {
        match self.parts.status.state() {
            JournalState::Healthy => Ok(self.parts.syncer.written()),
            JournalState::Failing { kind, .. } => Err(kind),
        }
    }

    /// Writes whole segments, as many with one call as a batch and its file may have.
    fn write_wholes(&mut self, wholes: Vec<Record>) {
        let mut wholes = wholes.into_iter().peekable();
        while wholes.peek().is_some() {
            let filled = self.wholes.as_ref().map_or(0, |current| current.filled);
            let room = self.parts.config.file_bytes.saturating_sub(filled);
            let limit = BATCH_BYTES.min(usize::try_from(room).unwrap_or(BATCH_BYTES)).max(1);
            let mut batch = Batch::default();
            while let Some(whole) = wholes.next_if(|_| batch.encoded.len() < limit) {
                batch.push(whole);
            }
            self.write_batch(Series::Wholes, Source::Inlet, &batch);
            self.parts.inlet.written(batch);
        }
    }

    /// Writes the heads that have no safe home.
    fn carry(&mut self) {
        loop {
            let heads = self.ledger.heads_to_carry(BATCH_BYTES);
            if heads.is_empty() {
                return;
            }
            let mut batch = Batch::default();
            heads.into_iter().for_each(|head| batch.push(head));
            if !self.write_batch(Series::Frames, Source::Carried, &batch) {
                return;
            }
        }
    }

    /// Writes a batch with one call, or discards it if no file takes it.
    fn write_batch(&mut self, series: Series, source: Source, batch: &Batch) -> bool {
        self.parts.syncer.begin_write(batch.oldest);
        let is_written = batch.is_empty()
            || self.has_room(source, batch) && self.open_file(series) && self.write(series, source, batch);
        let file = self.current(series).as_ref().map(|current| current.number);
        self.parts.syncer.end_write(file.filter(|_| is_written));
        if !is_written {
            batch.note_discarded(&mut self.ledger);
            self.parts.observer.discarded(batch.records as u64);
        }
        let limit = self.parts.config.file_bytes;
        self.current(series).take_if(|current| current.filled >= limit);
        is_written
    }

    /// Whether the limit of all files allows a batch; heads are few and let files go, so they always may.
    fn has_room(&mut self, source: Source, batch: &Batch) -> bool {
        let bytes = self.parts.status.disk_bytes().saturating_add(batch.encoded.len() as u64);
        if source == Source::Carried || bytes <= self.parts.config.max_bytes {
            return true;
        }
        if !self.is_failing() {
            self.parts.observer.failed(Step::Write, FailureKind::Limit);
            self.fail(FailureKind::Limit);
        }
        false
    }

    fn write(&mut self, series: Series, source: Source, batch: &Batch) -> bool {
        let Some(current) = self.current(series) else { return false };
        let (number, file, at) = (current.number, Arc::clone(&current.file), current.length);
        if let Err(error) = write_all(&*file, &batch.encoded) {
            let kind = FailureKind::of(&error);
            self.parts.observer.failed(Step::Write, kind);
            // The file now ends torn, but what was written before is as good as it was, and is still synced.
            self.fail(kind);
            return false;
        }
        let bytes = batch.encoded.len() as u64;
        current.length += bytes;
        if source == Source::Inlet {
            current.filled += bytes;
        }
        self.count_written(number, &file, batch.records as u64, bytes);
        self.note_written(number, at, batch);
        true
    }

    fn note_written(&mut self, file: u32, at: u64, batch: &Batch) {
        if let Some(oldest) = batch.oldest {
            self.parts.observer.flushed(clock::since(oldest));
        }
        batch.note_written(&mut self.ledger, file);
        let position = self.parts.syncer.written();
        for BatchEntry { start, kind } in &batch.entries {
            if let Kind::Record(Record::Whole { segment, bytes, keeper }) = kind {
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let place = Place { file, at: at + *start as u64, length };
                let keeper = Arc::clone(keeper);
                self.pending.push(position, Written { segment: *segment, place, keeper });
            }
        }
    }

    /// Tells the keepers of whole segments that became durable, and lets go of the pieces that these replace.
    fn settle_durable(&mut self) {
        let Some(synced) = self.parts.syncer.synced() else { return };
        while let Some(Written { segment, place, keeper }) = self.pending.next_durable(synced) {
            if self.ledger.settle(segment, place.file) {
                keeper.kept(place);
            }
        }
    }

    /// Makes sure that there is a file to write to; false while it must not be tried or cannot be done.
    fn open_file(&mut self, series: Series) -> bool {
        if self.current(series).is_some() {
            return true;
        }
        let is_recovery = self.is_failing();
        if is_recovery && (clock::monotonic() < self.pause.until || !self.is_below_limit()) {
            return false;
        }
        let number = self.next_number;
        self.next_number += 1;
        match self.create_file(number, is_recovery) {
            Ok(file) => {
                self.ledger.add_file(number);
                let length = self.sizes.get(&number).copied().unwrap_or_default();
                *self.current(series) = Some(Current { number, file, length, filled: 0 });
                if series == Series::Frames {
                    self.parts.inlet.set_file(number);
                }
                self.parts.observer.files(self.ledger.file_count());
                if is_recovery {
                    self.parts.status.recover();
                    self.parts.syncer.recover();
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

    /// Whether a journal that was at its limit has enough room again to go on.
    ///
    /// Files that only heads keep go as soon as a new file takes these, so then there is no need to wait.
    fn is_below_limit(&self) -> bool {
        let JournalState::Failing { kind: FailureKind::Limit, .. } = self.parts.status.state() else {
            return true;
        };
        let (used, limit) = (self.parts.status.disk_bytes(), self.parts.config.max_bytes);
        let is_kept_by_heads = |file: &u32| self.ledger.is_kept_by_heads(*file);
        used <= limit / 100 * NEARLY_FULL_PERCENT
            || used <= limit && self.ledger.idle_files(&[]).iter().any(is_kept_by_heads)
    }

    /// Tells once when the journal gets full.
    fn watch_size(&mut self) {
        let (bytes, max_bytes) = (self.parts.status.disk_bytes(), self.parts.config.max_bytes);
        if bytes >= max_bytes / 100 * WARN_AT_PERCENT {
            if !std::mem::replace(&mut self.has_warned, true) {
                tracing::warn!(bytes, max_bytes, "journal is getting full: the store does not take enough");
            }
        } else if bytes < max_bytes / 100 * CALM_AT_PERCENT {
            self.has_warned = false;
        }
    }

    fn current(&mut self, series: Series) -> &mut Option<Current> {
        match series {
            Series::Frames => &mut self.frames,
            Series::Wholes => &mut self.wholes,
        }
    }

    /// Stops writing until the pause is over; the next write must prove a new file.
    fn fail(&mut self, kind: FailureKind) {
        let now = clock::monotonic();
        self.parts.status.fail(now, kind);
        self.pause.extend(now, self.parts.config.retry_pause);
        (self.frames, self.wholes) = (None, None);
    }

    /// Stops believing in a file that could not be synced: what counts on it must be written again.
    fn disbelieve(&mut self, number: u32, kind: FailureKind) {
        self.fail(kind);
        self.ledger.carry_heads_of(number);
        self.pending.disbelieve(number);
        self.removable.clear();
    }

    /// Removes the files that nothing needs any more, moving heads out of those that nothing else needs.
    fn remove_files(&mut self) {
        // Whole segments come rarely: their file need not stay until the next.
        self.wholes.take_if(|current| current.filled > 0 && self.ledger.is_idle(current.number));
        let current = [&self.frames, &self.wholes].map(|file| file.as_ref().map(|current| current.number));
        let current: Vec<u32> = current.into_iter().flatten().collect();
        let mut idle = self.ledger.idle_files(&current);
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
