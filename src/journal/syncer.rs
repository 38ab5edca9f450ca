//! Makes written files durable, all of them together, beside the writer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::unsaved::Unsaved;
use super::{FailureKind, JournalConfig, JournalFile, JournalFiles, JournalObserver, Step, SyncError, left};
use crate::clock;

/// What the writer and the syncing thread share. Nobody holds the lock while waiting for the disk.
#[derive(Default)]
pub(super) struct Syncer {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Files with bytes that are not durable.
    dirty: BTreeMap<u32, Arc<dyn JournalFile>>,
    /// Files whose names are not durable.
    unnamed: BTreeSet<u32>,
    /// Files that failed once: the system tells an error one time only, so that no later success means anything.
    abandoned: BTreeSet<u32>,
    /// Failures that the writer has not seen.
    failed: Vec<(u32, FailureKind)>,
    /// All failures ever.
    failures: u64,
    last_failure: Option<FailureKind>,
    unsaved: Unsaved,
    /// Bytes written to all files, ever.
    written: u64,
    /// How many of them are durable, or in files the writer knows or will learn are abandoned.
    synced: u64,
    is_asked: bool,
    is_closing: bool,
}

/// What one pass has to do.
struct Pass {
    dirty: BTreeMap<u32, Arc<dyn JournalFile>>,
    unnamed: BTreeSet<u32>,
    position: u64,
    is_last: bool,
}

impl Syncer {
    /// Notes a new file.
    pub(super) fn created(&self, number: u32) {
        self.state().unnamed.insert(number);
    }

    /// Notes bytes written to a file, to be made durable within the interval.
    pub(super) fn wrote(&self, number: u32, file: &Arc<dyn JournalFile>, bytes: u64) {
        let mut state = self.state();
        state.written += bytes;
        if !state.abandoned.contains(&number) {
            state.dirty.entry(number).or_insert_with(|| Arc::clone(file));
        }
    }

    /// Notes that a batch, with a frame sealed at `oldest`, goes to a file.
    pub(super) fn begin_write(&self, oldest: Option<Instant>) {
        self.state().unsaved.begin_write(oldest);
    }

    /// Notes that the batch is written to a file, or, without one, that no file took it.
    pub(super) fn end_write(&self, number: Option<u32>) {
        let mut state = self.state();
        let is_believed = number.is_some_and(|number| !state.abandoned.contains(&number));
        state.unsaved.end_write(is_believed);
    }

    /// Notes that a new file works after a failure.
    pub(super) fn recover(&self) {
        self.state().unsaved.recover();
    }

    /// Returns when the oldest frame was sealed that was taken and is not durable; `None` when all are.
    pub(super) fn oldest_unsaved(&self) -> Option<Instant> {
        self.state().unsaved.oldest()
    }

    /// Returns how often syncing a file failed, for [`Syncer::wait_until_synced`].
    pub(super) fn failures(&self) -> u64 {
        self.state().failures
    }

    /// Takes the failures since the last call.
    pub(super) fn take_failed(&self) -> Vec<(u32, FailureKind)> {
        std::mem::take(&mut self.state().failed)
    }

    /// Returns the position up to which everything was written.
    pub(super) fn written(&self) -> u64 {
        self.state().written
    }

    /// Returns the position up to which everything is durable, or nothing while a failure waits for the writer.
    pub(super) fn synced(&self) -> Option<u64> {
        let state = self.state();
        state.failed.is_empty().then_some(state.synced)
    }

    /// Waits until everything up to a position is durable, asking for it at once.
    ///
    /// A failure after there were `failures` of them leaves that unknown.
    pub(super) fn wait_until_synced(
        &self,
        position: u64,
        failures: u64,
        until: Instant,
    ) -> Result<(), SyncError> {
        let mut state = self.state();
        state.is_asked = true;
        self.changed.notify_all();
        loop {
            if state.failures != failures {
                return Err(SyncError::Failing(state.last_failure.unwrap_or(FailureKind::Disk)));
            }
            if state.synced >= position {
                return Ok(());
            }
            let left = left(until);
            if left.is_zero() {
                return Err(SyncError::TimedOut);
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets the thread end after one more pass.
    pub(super) fn close(&self) {
        self.state().is_closing = true;
        self.changed.notify_all();
    }

    /// Syncs every `sync_interval` what was written, until closed.
    pub(super) fn run(
        &self,
        config: &JournalConfig,
        files: &dyn JournalFiles,
        observer: &dyn JournalObserver,
    ) {
        let mut next = clock::monotonic() + config.sync_interval;
        loop {
            let pass = self.wait_for_pass(next);
            let started = clock::monotonic();
            next = started + config.sync_interval;
            let failed = sync(&pass, config, files);
            if failed.is_empty() && !pass.dirty.is_empty() {
                observer.synced(clock::monotonic().duration_since(started));
            }
            for (_, kind) in &failed {
                observer.failed(Step::Sync, *kind);
            }
            self.end_pass(&pass, failed);
            if pass.is_last {
                return;
            }
        }
    }

    fn wait_for_pass(&self, next: Instant) -> Pass {
        let mut state = self.state();
        loop {
            let left = left(next);
            if state.is_asked || state.is_closing || left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_asked = false;
        state.unsaved.begin_sync();
        Pass {
            dirty: std::mem::take(&mut state.dirty),
            unnamed: std::mem::take(&mut state.unnamed),
            position: state.written,
            is_last: state.is_closing,
        }
    }

    fn end_pass(&self, pass: &Pass, failed: Vec<(u32, FailureKind)>) {
        let mut state = self.state();
        state.unsaved.end_sync(failed.is_empty());
        if failed.is_empty() {
            state.synced = pass.position;
        }
        for (number, kind) in failed {
            state.abandon(number, kind);
        }
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Stops believing in a file, and lets the writer and whoever waits know.
    fn abandon(&mut self, number: u32, kind: FailureKind) {
        self.dirty.remove(&number);
        self.unnamed.remove(&number);
        // A file may fail by its bytes and by its name in one pass.
        if self.abandoned.insert(number) {
            self.failed.push((number, kind));
            self.failures += 1;
            self.last_failure = Some(kind);
        }
    }
}

/// Makes the bytes and then the names of files durable; returns the files that failed.
fn sync(pass: &Pass, config: &JournalConfig, files: &dyn JournalFiles) -> Vec<(u32, FailureKind)> {
    let mut failed = Vec::new();
    for (number, file) in &pass.dirty {
        if let Err(error) = file.sync_data() {
            failed.push((*number, FailureKind::of(&error)));
        }
    }
    if pass.unnamed.is_empty() {
        return failed;
    }
    if let Err(error) = files.sync_dir(&config.dir) {
        failed.extend(pass.unnamed.iter().map(|number| (*number, FailureKind::of(&error))));
    }
    failed
}
