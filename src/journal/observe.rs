//! What the journal tells about itself.

use std::time::Duration;

use metrics::{Counter, Histogram, counter, gauge, histogram};

use super::{FailureKind, ReplayReport};

/// Counter of bytes written to journal files.
pub const WRITTEN_BYTES: &str = "journal_written_bytes_total";
/// Counter of records written.
pub const RECORDS: &str = "journal_records_total";
/// Counter of records that were taken but not written, because no file could be; callers hand their bytes over again.
pub const DISCARDED_RECORDS: &str = "journal_discarded_records_total";
/// Histogram of the seconds from sealing the oldest frame of a batch until the system has taken the batch.
pub const FLUSH_DELAY_SECONDS: &str = "journal_flush_delay_seconds";
/// Histogram of the seconds that making everything durable took.
pub const SYNC_SECONDS: &str = "journal_sync_seconds";
/// Counter of failures; labels `step` and `kind`.
pub const FAILURES: &str = "journal_failures_total";
/// Gauge of the files of this incarnation.
pub const FILES: &str = "journal_files";
/// Gauge of the bytes of all journal files, those of earlier incarnations too.
pub const DISK_BYTES: &str = "journal_disk_bytes";
/// Gauge of the most bytes that all journal files may have.
pub const MAX_BYTES: &str = "journal_max_bytes";
/// Counter of torn tails that were cut when the journal was read.
pub const TORN_TAILS: &str = "journal_torn_tails_total";
/// Counter of files with wrong bytes in the middle.
pub const CORRUPT_FILES: &str = "journal_corrupt_files_total";

/// What the journal was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Creating a file.
    Create,
    /// Writing to it.
    Write,
    /// Making it, or its name, durable.
    Sync,
    /// Removing it.
    Remove,
}

impl Step {
    /// Names the step for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Remove => "remove",
        }
    }
}

/// Sets the gauges of size and limit.
#[expect(clippy::cast_precision_loss, reason = "bytes of a journal are far below 2^52")]
pub(super) fn publish_size(bytes: u64, max_bytes: u64) {
    gauge!(DISK_BYTES).set(bytes as f64);
    gauge!(MAX_BYTES).set(max_bytes as f64);
}

/// Watches the journal. The methods are called on its threads and must not block.
pub trait JournalObserver: Send + Sync {
    /// A batch was written.
    fn wrote(&self, _records: u64, _bytes: u64) {}
    /// Records were taken but not written, because no file can be written now.
    fn discarded(&self, _records: u64) {}
    /// A batch with sealed frames was written so long after its oldest frame was sealed.
    fn flushed(&self, _delay: Duration) {}
    /// Everything written before was made durable, and it took so long.
    fn synced(&self, _took: Duration) {}
    /// Something failed.
    fn failed(&self, _step: Step, _kind: FailureKind) {}
    /// There are so many files of this incarnation now.
    fn files(&self, _count: usize) {}
    /// The files of earlier incarnations were read.
    fn replayed(&self, _report: &ReplayReport) {}
}

/// Tells everything to the `metrics` crate, through the recorder installed when it is made.
pub struct JournalMetrics {
    written_bytes: Counter,
    records: Counter,
    flush_delay: Histogram,
    sync: Histogram,
}

impl JournalMetrics {
    /// Registers the metrics of the hot path.
    pub fn new() -> Self {
        Self {
            written_bytes: counter!(WRITTEN_BYTES),
            records: counter!(RECORDS),
            flush_delay: histogram!(FLUSH_DELAY_SECONDS),
            sync: histogram!(SYNC_SECONDS),
        }
    }
}

impl Default for JournalMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl JournalObserver for JournalMetrics {
    fn wrote(&self, records: u64, bytes: u64) {
        self.records.increment(records);
        self.written_bytes.increment(bytes);
    }

    fn discarded(&self, records: u64) {
        counter!(DISCARDED_RECORDS).increment(records);
    }

    fn flushed(&self, delay: Duration) {
        self.flush_delay.record(delay.as_secs_f64());
    }

    fn synced(&self, took: Duration) {
        self.sync.record(took.as_secs_f64());
    }

    fn failed(&self, step: Step, kind: FailureKind) {
        counter!(FAILURES, "step" => step.label(), "kind" => kind.label()).increment(1);
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of files is far below 2^52")]
    fn files(&self, count: usize) {
        gauge!(FILES).set(count as f64);
    }

    fn replayed(&self, report: &ReplayReport) {
        counter!(TORN_TAILS).increment(report.torn_tails);
        counter!(CORRUPT_FILES).increment(report.corrupt_files);
    }
}
