//! Segments that wait for the store: in memory as far as the budget goes, else in the journal.
//!
//! From half of the budget on, the newest segments are written to the journal in one run each and, when they are durable
//! there, let go of; the other half is for those on their way. So the budget is used up only when the journal does not
//! take them, and only then audio of running calls must be dropped. After a failure of the journal everything that waits
//! in memory is written again, because it may have lost what it had.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::clock;
use crate::domain::cmr::Row;
use crate::domain::ids::RecordingId;
use crate::journal::{Journal, JournalState, Keeper, Place, ReadBackError, Record, SegmentId};

use super::turns::Urgency;

/// New calls are refused from this share of the budget on, if the journal does not take segments.
const REFUSE_AT_PERCENT: u64 = 80;
/// What may be on its way to a journal that works beyond the budget: 4 s of 200 two-track calls, longer than syncs take.
const LEEWAY_BYTES: u64 = 16 << 20;
/// So long must there be too much before it counts while the journal works. Calls that end together bring all their open
/// segments at once; the memory had these before, and the journal gets through with them in less.
const LASTING: Duration = Duration::from_secs(1);
/// How often is looked whether the journal failed; it is looked at once when much waits.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// All segments that wait.
pub(super) struct Backlog {
    journal: Journal,
    budget_bytes: u64,
    /// The bytes in memory.
    memory_bytes: AtomicU64,
    /// Those of them that the journal was handed whole and has not confirmed.
    handed_bytes: AtomicU64,
    /// The bytes in the journal only.
    spilled_bytes: AtomicU64,
    /// The segments in memory, in the order they came.
    in_memory: Mutex<BTreeMap<u64, Arc<Waiting>>>,
    next_ticket: AtomicU64,
    /// When the first frame of each waiting segment was sealed.
    oldest: Mutex<BTreeMap<Instant, usize>>,
    /// Some segment in memory may not be in the journal.
    is_stale: AtomicBool,
    /// More has waited than the budget and half of the leeway, for [`LASTING`].
    is_lasting: AtomicBool,
    wake: Arc<Notify>,
}

/// One segment that waits until it is stored or given up.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) row: Row,
    pub(super) opened_at: Instant,
    recording: RecordingId,
    ticket: u64,
    /// Whether the journal was handed the whole segment; a hint for whoever does not hold the lock.
    is_handed: AtomicBool,
    place: Mutex<Where>,
    /// Who counts it, for the journal's threads.
    backlog: Weak<Backlog>,
}

/// Where the bytes of a segment are.
#[derive(Debug)]
enum Where {
    /// In memory, and handed to the journal when it had this generation.
    Memory { bytes: Bytes, generation: u64 },
    /// In the journal.
    Journal(Place),
    /// Not needed any more.
    Nowhere,
}

impl Backlog {
    /// Starts with nothing; looks after the journal until it is dropped.
    pub(super) fn start(journal: Journal, budget_bytes: u64) -> Arc<Self> {
        let wake = Arc::new(Notify::new());
        let generation = journal.generation();
        let backlog = Arc::new(Self {
            journal,
            budget_bytes,
            memory_bytes: AtomicU64::new(0),
            handed_bytes: AtomicU64::new(0),
            spilled_bytes: AtomicU64::new(0),
            in_memory: Mutex::default(),
            next_ticket: AtomicU64::new(0),
            oldest: Mutex::default(),
            is_stale: AtomicBool::new(false),
            is_lasting: AtomicBool::new(false),
            wake: Arc::clone(&wake),
        });
        tokio::spawn(look_after(Arc::downgrade(&backlog), wake, generation));
        backlog
    }

    /// Takes a segment whose bytes the journal got when it had `generation`.
    pub(super) fn add(
        self: &Arc<Self>,
        recording: RecordingId,
        row: Row,
        bytes: Bytes,
        opened_at: Instant,
        generation: u64,
    ) -> Arc<Waiting> {
        let ticket = self.next_ticket.fetch_add(1, Ordering::Relaxed);
        let length = bytes.len() as u64;
        let waiting = Arc::new(Waiting {
            row,
            opened_at,
            recording,
            ticket,
            is_handed: AtomicBool::new(false),
            place: Mutex::new(Where::Memory { bytes, generation }),
            backlog: Arc::downgrade(self),
        });
        *self.oldest().entry(opened_at).or_default() += 1;
        let in_memory = self.memory_bytes.fetch_add(length, Ordering::Relaxed) + length;
        self.in_memory().insert(ticket, Arc::clone(&waiting));
        // Looked at after it can be found: whoever saw the failure before did not see this segment.
        if generation != self.journal.generation() {
            self.is_stale.store(true, Ordering::Release);
        }
        if in_memory > self.budget_bytes / 2 {
            self.wake.notify_one();
        }
        waiting
    }

    /// Whether audio must be dropped before sealing: the budget is used up and the journal does not take it over.
    pub(super) fn is_full(&self) -> bool {
        self.memory_bytes() >= self.budget_bytes && self.is_not_taken_over(LEEWAY_BYTES)
    }

    /// Whether new calls must be refused: the budget is nearly used up and the journal does not take segments over.
    pub(super) fn is_nearly_full(&self) -> bool {
        self.memory_bytes() >= self.budget_bytes / 100 * REFUSE_AT_PERCENT
            && self.is_not_taken_over(LEEWAY_BYTES / 2)
    }

    /// Whether the journal fails, or has not kept up for long and leaves more than the budget and `leeway`.
    fn is_not_taken_over(&self, leeway: u64) -> bool {
        let is_over = self.memory_bytes() >= self.budget_bytes.saturating_add(leeway);
        is_over && self.is_lasting.load(Ordering::Relaxed) || !self.journal_works()
    }

    /// The bytes that wait in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// The bytes that wait in the journal only.
    pub(super) fn spilled_bytes(&self) -> u64 {
        self.spilled_bytes.load(Ordering::Relaxed)
    }

    /// How long ago the first frame of the oldest segment was sealed.
    pub(super) fn oldest_age(&self) -> Duration {
        let oldest = self.oldest().first_key_value().map(|(opened_at, _)| clock::since(*opened_at));
        oldest.unwrap_or_default()
    }

    fn journal_works(&self) -> bool {
        self.journal.state() == JournalState::Healthy
    }

    /// Hands everything in memory to the journal that it may have lost.
    fn rewrite(&self, generation: u64) {
        let in_memory: Vec<_> = self.in_memory().values().cloned().collect();
        for waiting in in_memory {
            if !waiting.hand_over(self, |handed_at| handed_at != generation, generation) {
                // The queue is full; the next look goes on.
                self.is_stale.store(true, Ordering::Release);
                return;
            }
        }
    }

    /// Hands the newest segments to the journal until half of the budget holds the rest.
    fn spill(&self, generation: u64) {
        let resting = self.memory_bytes().saturating_sub(self.handed_bytes.load(Ordering::Relaxed));
        let mut excess = resting.saturating_sub(self.budget_bytes / 2);
        if excess == 0 || !self.journal_works() {
            return;
        }
        let mut newest = Vec::new();
        for waiting in self.in_memory().values().rev() {
            if !waiting.is_handed.load(Ordering::Relaxed) {
                newest.push(Arc::clone(waiting));
                excess = excess.saturating_sub(u64::from(waiting.row.byte_len));
            }
            if excess == 0 {
                break;
            }
        }
        for waiting in newest {
            if !waiting.hand_over(self, |_| true, generation) {
                return;
            }
        }
    }

    fn in_memory(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Waiting>>> {
        self.in_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn oldest(&self) -> MutexGuard<'_, BTreeMap<Instant, usize>> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Spills, and rewrites after failures of the journal, for as long as there is a backlog.
async fn look_after(backlog: Weak<Backlog>, wake: Arc<Notify>, mut generation: u64) {
    let mut over_since = None;
    loop {
        // Both mean the same: it is time to look.
        let _woken = tokio::time::timeout(LOOK_EVERY, wake.notified()).await;
        let Some(backlog) = backlog.upgrade() else { return };
        let now = backlog.journal.generation();
        if backlog.is_stale.swap(false, Ordering::AcqRel) || now != generation {
            generation = now;
            backlog.rewrite(now);
        }
        backlog.spill(now);
        let is_over = backlog.memory_bytes() >= backlog.budget_bytes.saturating_add(LEEWAY_BYTES / 2);
        over_since = is_over.then(|| over_since.unwrap_or_else(clock::monotonic));
        let is_lasting = over_since.is_some_and(|since| clock::since(since) >= LASTING);
        backlog.is_lasting.store(is_lasting, Ordering::Relaxed);
    }
}

impl Waiting {
    /// How soon it should be stored: what had to leave the memory has waited long and can go on waiting.
    pub(super) fn urgency(&self) -> Urgency {
        match &*self.place() {
            Where::Journal(_) => Urgency::CatchUp,
            Where::Memory { .. } | Where::Nowhere => Urgency::Live,
        }
    }

    /// Returns the bytes, from memory or the journal.
    ///
    /// # Errors
    /// [`ReadBackError`].
    pub(super) async fn read(&self, backlog: &Backlog) -> Result<Bytes, ReadBackError> {
        loop {
            let place = match &*self.place() {
                Where::Memory { bytes, .. } => return Ok(bytes.clone()),
                Where::Journal(place) => *place,
                Where::Nowhere => return Err(ReadBackError::Lost),
            };
            let (journal, segment) = (backlog.journal.clone(), self.segment());
            let reading = tokio::task::spawn_blocking(move || journal.read_segment(segment, place));
            let read = reading.await.map_err(|error| ReadBackError::Io(error.into()))?;
            // A second copy may have replaced the first meanwhile.
            let has_moved = matches!(&*self.place(), Where::Journal(now) if *now != place);
            if read.is_ok() || !has_moved {
                return read;
            }
        }
    }

    /// Lets go of the segment: it is stored, or left to recovery. To be called before the journal hears of it.
    pub(super) fn done(&self, backlog: &Backlog) {
        let mut place = self.place();
        match std::mem::replace(&mut *place, Where::Nowhere) {
            Where::Memory { bytes, .. } => self.leave_memory(backlog, bytes.len() as u64),
            Where::Journal(_) => {
                backlog.spilled_bytes.fetch_sub(u64::from(self.row.byte_len), Ordering::Relaxed);
            }
            Where::Nowhere => return,
        }
        drop(place);
        let mut oldest = backlog.oldest();
        if let Some(count) = oldest.get_mut(&self.opened_at) {
            *count -= 1;
            if *count == 0 {
                oldest.remove(&self.opened_at);
            }
        }
    }

    /// Hands the whole segment to the journal if it is in memory and `is_due` by the generation it was handed over in;
    /// false if the journal did not take it.
    ///
    /// The lock is held meanwhile, so that nothing follows [`Waiting::done`].
    fn hand_over(self: &Arc<Self>, backlog: &Backlog, is_due: impl FnOnce(u64) -> bool, now: u64) -> bool {
        let mut place = self.place();
        let Where::Memory { bytes, generation } = &mut *place else { return true };
        if !is_due(*generation) {
            return true;
        }
        let keeper: Arc<dyn Keeper> = Arc::<Self>::clone(self);
        let record = Record::Whole { segment: self.segment(), bytes: bytes.clone(), keeper };
        if backlog.journal.append(record).is_err() {
            return false;
        }
        *generation = now;
        if !self.is_handed.swap(true, Ordering::Relaxed) {
            backlog.handed_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        true
    }

    /// Takes a segment that was in memory out of all counts. Its lock is held, so that counts never go below zero.
    fn leave_memory(&self, backlog: &Backlog, bytes: u64) {
        backlog.memory_bytes.fetch_sub(bytes, Ordering::Relaxed);
        if self.is_handed.load(Ordering::Relaxed) {
            backlog.handed_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        backlog.in_memory().remove(&self.ticket);
    }

    fn segment(&self) -> SegmentId {
        SegmentId { recording: self.recording, writer: self.row.writer, seq: self.row.seq }
    }

    fn place(&self) -> MutexGuard<'_, Where> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper for Waiting {
    fn kept(&self, kept: Place) {
        let Some(backlog) = self.backlog.upgrade() else { return };
        let mut place = self.place();
        if matches!(*place, Where::Nowhere) {
            return;
        }
        if let Where::Memory { bytes, .. } = std::mem::replace(&mut *place, Where::Journal(kept)) {
            backlog.spilled_bytes.fetch_add(u64::from(self.row.byte_len), Ordering::Relaxed);
            self.leave_memory(&backlog, bytes.len() as u64);
        }
    }
}
