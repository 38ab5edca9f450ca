//! The journal: sealed bytes on this machine's disk, so that a crash loses milliseconds and not segments.
//!
//! All calls of the process append to one journal. A recording keeps the sealed bytes of its current segment in memory
//! as well, so the journal is mostly read after a crash, by the next incarnation of the process. Only segments that wait
//! for the store for long are read before: they are appended once more, as [`Record::Whole`], and when that run is durable
//! their bytes may leave the memory. It sees ciphertext and opaque texts; it must not know keys or providers.
//!
//! Two threads serve it. The writer takes what was appended every `flush_interval` and writes it with one call; the
//! syncer makes it durable every `sync_interval`, for all calls together, so that a slow disk stretches the interval and
//! stops nobody. [`Journal::append`] waits for neither.
//!
//! # Files
//!
//! ```text
//! <dir>/lock                                   held by the process that uses the directory
//! <dir>/<incarnation:012x>-<number:08>.cmj     records; incarnation = Unix milliseconds of the start, never reused
//! <dir>/<…>.cmj.corrupt                        a file that ended in corruption, kept after its recordings were released
//! <dir>/released                               `finished` records of released recordings that old files still mention
//! ```
//!
//! A file is a sequence of records without gaps; files are read in the order of their names. Integers are big-endian.
//!
//! ```text
//!  0   4  magic "CMJ1"
//!  4   1  kind
//!  5   3  zero
//!  8   4  length N of the body, at most 1,048,640
//! 12   4  CRC-32 (IEEE 802.3) over bytes 0 to 11 and the body
//! 16   N  body
//! ```
//!
//! | kind | name | body |
//! |---|---|---|
//! | 0 | begin | incarnation (8), file number (4); the first record of a file |
//! | 1 | opened | recording (16), tenant tag (16), opaque text of whoever appended it (at most 1 MiB) |
//! | 2 | sealed | recording (16), writer (16), seq (4), offset in the segment (4), bytes (at most 1 MiB) |
//! | 3 | cut | recording (16), writer (16), seq (4), length of the whole segment (4) |
//! | 4 | stored | recording (16), writer (16), seq (4) |
//! | 5 | finished | recording (16) |
//!
//! A whole segment is written as `sealed` from offset 0 on and `cut`, into files of its own, which it keeps until it is
//! stored while files with pieces go sooner.
//!
//! A reader skips whole records of other kinds. It stops a file at the first record that is not whole: at the end of a
//! file that is a torn tail, as a crash leaves it, elsewhere it is corruption; the next files are read all the same. A
//! segment is the run of its sealed bytes from offset 0 to the first hole. Ranges may overlap, and are equal where they
//! do. An `opened` or `finished` record may appear again in later files, because it is carried on when its file goes.
//!
//! # Loss and failure
//!
//! A file that cannot be written or synced is given up: nothing more is written to it, and after a failed sync nothing
//! in it counts as durable, though it is still read after a crash. A new file is tried after 0.1 to 5 seconds; until
//! then records are discarded. When the new file works, [`Journal::generation`] goes up by one: whatever is not stored yet should be handed over
//! again, each segment from offset 0 and with its `Cut`. Nothing is lost as long as the process lives.
//!
//! A journal whose files reach `max_bytes` fails in the same way, and works again when enough of them are gone.
//!
//! A file is removed when nothing in it is needed: its segments are stored or their recordings finished. `Opened` of
//! running recordings, and `Finished` of those that older files still mention, are first carried into the current file
//! and synced. Removal is no proof, though: after a crash a finished recording may, rarely, come up again, so whoever
//! recovers compares with the store.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::clock;

mod batch;
mod files;
mod inlet;
mod ledger;
pub mod observe;
mod record;
mod replay;
mod runs;
mod scan;
mod status;
mod syncer;
mod unsaved;
mod whole;
mod writer;

pub use files::{JournalFile, JournalFiles, SystemFiles};
pub use observe::{
    CORRUPT_FILES, DISCARDED_RECORDS, DISK_BYTES, FAILURES, FILES, FLUSH_DELAY_SECONDS, JournalMetrics,
    JournalObserver, MAX_BYTES, RECORDS, SYNC_SECONDS, Step, TORN_TAILS, WRITTEN_BYTES,
};
pub use record::{MAX_OPENED_BYTES, Record};
pub use replay::{Replay, ReplayReport, ReplayedRecording, ReplayedSegment};
pub use runs::Runs;
pub use status::{FailureKind, JournalState};
pub use whole::{Keeper, Place, ReadBackError, SegmentId};

use bytes::Bytes;
use files::FileName;
use inlet::Inlet;
use status::Status;
use syncer::Syncer;
use writer::{Command, Writer};

/// How many commands (`sync_now`, `close`) may wait for the writer; each is a task that shuts something down.
const COMMAND_SLOTS: usize = 64;

/// From this share of [`JournalConfig::max_bytes`] on there is room for running calls only.
const NEARLY_FULL_PERCENT: u64 = 95;

/// Where and how often the journal writes.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// The directory, on a local file system; made with mode 0700 if it is missing.
    pub dir: PathBuf,
    /// How long a record waits in memory at most: what a killed process loses. 20 ms is one provider frame.
    pub flush_interval: Duration,
    /// How long written bytes wait for the disk: what a power loss loses. 150 ms keeps that below 250 ms
    /// when frames wait 40 ms to be written and a sync takes 60 ms.
    pub sync_interval: Duration,
    /// From what size on a file is closed and the next one begun. 64 MiB is some seconds of a thousand calls.
    pub file_bytes: u64,
    /// How many bytes all files may have, those of earlier incarnations too; then the journal fails with
    /// [`FailureKind::Limit`] until files go. 16 GiB are more than an hour of 200 calls.
    pub max_bytes: u64,
    /// How many records may wait for the writer: 1,048,576 are ten seconds of a thousand calls with a hundred messages a second.
    pub queue_slots: usize,
    /// How many bytes of callers they may hold in memory; each has 56 more. 256 MiB are ten seconds of a thousand calls.
    pub queue_bytes: usize,
    /// The pause before a new file is tried after a failure; it doubles with each further failure up to 5 s.
    pub retry_pause: Duration,
}

impl JournalConfig {
    /// Returns the default settings for a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            flush_interval: Duration::from_millis(20),
            sync_interval: Duration::from_millis(150),
            file_bytes: 64 << 20,
            max_bytes: 16 << 30,
            queue_slots: 1 << 20,
            queue_bytes: 256 << 20,
            retry_pause: Duration::from_millis(100),
        }
    }
}

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the directory.
    #[error("journal directory {} is in use by another process", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be used.
    #[error("cannot use journal directory {}", dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why a record was not taken. This is no loss: the caller keeps the bytes and hands over a larger range later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many records or bytes wait for the writer.
    #[error("journal queue is full")]
    Full,
    /// The journal is closed.
    #[error("journal is closed")]
    Closed,
    /// The text of an `Opened` record is longer than [`MAX_OPENED_BYTES`].
    #[error("text of an opened recording is too long")]
    TooLarge,
}

/// Why the journal could not say that everything is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// The disk does not take it.
    #[error("journal cannot be written: {0}")]
    Failing(FailureKind),
    /// The time limit passed.
    #[error("journal was not synced in time")]
    TimedOut,
    /// The journal was closed before.
    #[error("journal is closed")]
    Closed,
}

/// A handle to the journal of this process; clones are the same journal.
///
/// When the last handle is dropped, what was appended is still written and synced.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    incarnation: u64,
    max_bytes: u64,
    inlet: Arc<Inlet>,
    commands: SyncSender<Command>,
    status: Arc<Status>,
    syncer: Arc<Syncer>,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    handles: [thread::JoinHandle<()>; 2],
    /// Disconnected when both threads have ended.
    ended: Receiver<()>,
}

impl Journal {
    /// Opens the journal and reads what earlier incarnations left, on the system's files and measured by
    /// [`JournalMetrics`]. Blocks while it reads.
    ///
    /// # Errors
    /// [`OpenError`]; never because of what the files hold.
    pub fn open(config: &JournalConfig) -> Result<(Self, Replay), OpenError> {
        Self::open_with(config, Arc::new(SystemFiles), Arc::new(JournalMetrics::new()))
    }

    /// As [`Journal::open`], with files that may fail on purpose and any observer.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_with(
        config: &JournalConfig,
        files: Arc<dyn JournalFiles>,
        observer: Arc<dyn JournalObserver>,
    ) -> Result<(Self, Replay), OpenError> {
        let io_error = |source| OpenError::Io { dir: config.dir.clone(), source };
        let lock = lock(&config.dir)?;
        let status = Arc::new(Status::default());
        let replay = replay::read(&config.dir, &files, &lock, &status).map_err(io_error)?;
        observer.replayed(replay.report());
        // Later than all files there are, also when the clock went back.
        let incarnation = clock::wall().0.max(replay.last_incarnation().saturating_add(1));
        let journal = start(config, files, observer, status, lock, incarnation).map_err(io_error)?;
        Ok((journal, replay))
    }

    /// Hands a record over to the writer. Copies its bytes, but for those of a whole segment, and waits for no disk.
    ///
    /// Records that one task appends are written in that order, but a [`Record::Whole`] before all that wait. Nothing may follow
    /// a recording's `Finished`.
    ///
    /// # Errors
    /// [`Refused`]; the record is then dropped, and the caller still has its bytes.
    pub fn append(&self, record: Record) -> Result<(), Refused> {
        if matches!(&record, Record::Opened { body, .. } if body.len() > MAX_OPENED_BYTES) {
            return Err(Refused::TooLarge);
        }
        self.shared.inlet.append(record)
    }

    /// Returns a number that goes up whenever bytes that were handed over may be lost from the disk.
    ///
    /// A caller compares it before each append, for every segment that is not stored, and on a change hands the segment
    /// over again from offset 0.
    pub fn generation(&self) -> u64 {
        self.shared.status.generation()
    }

    /// Tells whether the journal can write; for readiness and metrics.
    pub fn state(&self) -> JournalState {
        self.shared.status.state()
    }

    /// Returns the bytes of all journal files, those of earlier incarnations too.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.status.disk_bytes()
    }

    /// Tells whether there is no room for new calls: 95 % of [`JournalConfig::max_bytes`] are used, or the disk is full.
    pub fn is_nearly_full(&self) -> bool {
        match self.state() {
            JournalState::Failing { kind, .. } if kind.is_full() => true,
            JournalState::Healthy | JournalState::Failing { .. } => {
                self.disk_bytes() >= self.shared.max_bytes / 100 * NEARLY_FULL_PERCENT
            }
        }
    }

    /// Reads a segment that was appended as [`Record::Whole`], and checks it. Blocks.
    ///
    /// # Errors
    /// [`ReadBackError`].
    pub fn read_segment(&self, segment: SegmentId, place: Place) -> Result<Bytes, ReadBackError> {
        let name = FileName { incarnation: self.shared.incarnation, number: place.file };
        whole::read(&self.shared.dir.join(name.to_string()), place, segment)
    }

    /// Returns how long ago the oldest frame was sealed that the writer has taken and that is not durable here; zero
    /// when all are. The store may have it meanwhile.
    pub fn oldest_unsaved_age(&self) -> Duration {
        self.shared.syncer.oldest_unsaved().map(clock::since).unwrap_or_default()
    }

    /// Publishes how much the files have and may have.
    pub fn publish_metrics(&self) {
        observe::publish_size(self.disk_bytes(), self.shared.max_bytes);
    }

    /// Makes everything durable that was appended before; blocks up to `limit`, so not for a runtime's thread.
    ///
    /// # Errors
    /// [`SyncError`].
    pub fn sync_now(&self, limit: Duration) -> Result<(), SyncError> {
        let until = clock::monotonic() + limit;
        let failures = self.shared.syncer.failures();
        let (reply, answer) = mpsc::sync_channel(1);
        self.command(Command::Flush(reply))?;
        let position = answer.recv_timeout(limit).map_err(unanswered)?.map_err(SyncError::Failing)?;
        self.shared.syncer.wait_until_synced(position, failures, until)
    }

    /// Writes and syncs everything, and ends both threads; blocks up to `limit`, so not for a runtime's thread.
    ///
    /// Later appends are refused. Closing twice is success.
    ///
    /// # Errors
    /// [`SyncError`]; after [`SyncError::TimedOut`] the threads go on trying to end.
    pub fn close(&self, limit: Duration) -> Result<(), SyncError> {
        let until = clock::monotonic() + limit;
        self.shared.inlet.close();
        let mut threads = self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(running) = threads.take() else { return Ok(()) };
        let synced = self.sync_now(limit);
        self.command(Command::Close).or_else(|error| match error {
            SyncError::Closed => Ok(()),
            SyncError::TimedOut | SyncError::Failing(_) => Err(error),
        })?;
        if running.ended.recv_timeout(left(until)) == Err(RecvTimeoutError::Timeout) {
            *threads = Some(running);
            return Err(SyncError::TimedOut);
        }
        for handle in running.handles {
            handle.join().map_err(|_| SyncError::Closed)?;
        }
        synced
    }

    fn command(&self, command: Command) -> Result<(), SyncError> {
        self.shared.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => SyncError::TimedOut,
            TrySendError::Disconnected(_) => SyncError::Closed,
        })
    }
}

fn unanswered(error: RecvTimeoutError) -> SyncError {
    match error {
        RecvTimeoutError::Timeout => SyncError::TimedOut,
        RecvTimeoutError::Disconnected => SyncError::Closed,
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(clock::monotonic())
}

/// Makes the directory if need be and takes its lock.
fn lock(dir: &Path) -> Result<Arc<File>, OpenError> {
    let io_error = |source| OpenError::Io { dir: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error)?;
    let dir = fs::canonicalize(dir).map_err(io_error)?;
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(dir.join("lock"));
    let file = file.map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(Arc::new(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir }),
        Err(TryLockError::Error(source)) => Err(io_error(source)),
    }
}

fn start(
    config: &JournalConfig,
    files: Arc<dyn JournalFiles>,
    observer: Arc<dyn JournalObserver>,
    status: Arc<Status>,
    lock: Arc<File>,
    incarnation: u64,
) -> io::Result<Journal> {
    let inlet = Arc::new(Inlet::new(config));
    let (commands, commanded) = mpsc::sync_channel(COMMAND_SLOTS);
    let (ending, ended) = mpsc::sync_channel::<()>(1);
    let syncer = Arc::new(Syncer::default());
    let mut writer = Writer::new(writer::Parts {
        config: config.clone(),
        incarnation,
        files: Arc::clone(&files),
        observer: Arc::clone(&observer),
        status: Arc::clone(&status),
        syncer: Arc::clone(&syncer),
        inlet: Arc::clone(&inlet),
    });
    let syncing = {
        let (syncer, config) = (Arc::clone(&syncer), config.clone());
        let (ending, lock) = (ending.clone(), Arc::clone(&lock));
        spawn("journal-sync", move || {
            syncer.run(&config, &*files, &*observer);
            drop((lock, ending));
        })?
    };
    let writing = spawn("journal-write", move || {
        writer.run(&commanded);
        drop((lock, ending));
    });
    // Without a writer nobody would end the other thread.
    let writing = writing.inspect_err(|_| syncer.close())?;
    let threads = Mutex::new(Some(Threads { handles: [writing, syncing], ended }));
    let (dir, max_bytes) = (config.dir.clone(), config.max_bytes);
    let shared = Shared { dir, incarnation, max_bytes, inlet, commands, status, syncer, threads };
    Ok(Journal { shared: Arc::new(shared) })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

#[cfg(test)]
mod tests;
