//! Where sealed audio goes: journal, segments and upload.
//!
//! The reason for each number stands beside the option in `config/callseal.toml`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Table;

use super::raw;
use super::scope::{Bounds, Scope};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

const FLUSH_INTERVAL_MS: Bounds = Bounds::new(20, 1..=1000);
const SYNC_INTERVAL_MS: Bounds = Bounds::new(150, 1..=10_000);
const FILE_BYTES: Bounds = Bounds::new(64 * MIB, MIB..=GIB);
const JOURNAL_MAX_BYTES: Bounds = Bounds::new(16 * GIB, 4 * MIB..=16 * 1024 * GIB);
const SEGMENT_MAX_AGE_MS: Bounds = Bounds::new(5_000, 1_000..=30_000);
const SEGMENT_MAX_BYTES: Bounds = Bounds::new(256 * KIB, KIB..=16 * MIB);
const CONCURRENCY: Bounds = Bounds::new(8, 1..=256);
const BUDGET_BYTES: Bounds = Bounds::new(32 * MIB, MIB..=64 * GIB);
const CATCH_UP_BYTES_PER_SEC: Bounds = Bounds::new(0, 0..=GIB * 100);
const TRY_TIMEOUT_MS: Bounds = Bounds::new(10_000, 100..=300_000);
const RETRY_BASE_MS: Bounds = Bounds::new(200, 1..=60_000);
const RETRY_MAX_MS: Bounds = Bounds::new(30_000, 1..=3_600_000);

/// The journal that bounds what a crash can lose.
#[derive(Debug, Clone)]
pub struct Journal {
    /// Made when missing.
    pub dir: PathBuf,
    /// The longest time a sealed frame waits in memory before it is written.
    pub flush_interval: Duration,
    /// The longest time between two syncs to the disk; not less than `flush_interval`.
    pub sync_interval: Duration,
    /// The size at which a new file begins.
    pub file_bytes: u64,
    /// The size of all files; not less than four of them.
    pub max_bytes: u64,
}

impl Journal {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, data_dir: &Path) -> Self {
        let (scope, raw): (_, raw::Journal) = top.section("journal", table);
        let journal = Self {
            dir: scope.path("dir", raw.dir, || data_dir.join("journal")),
            flush_interval: scope.millis("flush_interval_ms", raw.flush_interval_ms, &FLUSH_INTERVAL_MS),
            sync_interval: scope.millis("sync_interval_ms", raw.sync_interval_ms, &SYNC_INTERVAL_MS),
            file_bytes: scope.number("file_bytes", raw.file_bytes, &FILE_BYTES),
            max_bytes: scope.number("max_bytes", raw.max_bytes, &JOURNAL_MAX_BYTES),
        };
        if journal.max_bytes < 4 * journal.file_bytes {
            let (max, file) = (journal.max_bytes, journal.file_bytes);
            let problem =
                format!("{max} is given; allowed: not less than 4 times journal.file_bytes, {file}");
            scope.fault("max_bytes", problem);
        }
        if journal.sync_interval < journal.flush_interval {
            let (sync, flush) = (journal.sync_interval.as_millis(), journal.flush_interval.as_millis());
            let problem =
                format!("{sync} is given; allowed: not less than journal.flush_interval_ms, {flush}");
            scope.fault("sync_interval_ms", problem);
        }
        journal
    }
}

/// When a segment ends.
#[derive(Debug, Clone)]
pub struct Segments {
    /// The longest time from the first frame of a segment to its end.
    pub max_age: Duration,
    /// The size of a segment that ends it.
    pub max_bytes: usize,
}

impl Segments {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Segments) = top.section("segments", table);
        Self {
            max_age: scope.millis("max_age_ms", raw.max_age_ms, &SEGMENT_MAX_AGE_MS),
            max_bytes: scope.size("max_bytes", raw.max_bytes, &SEGMENT_MAX_BYTES),
        }
    }
}

/// How segments get to the store.
#[derive(Debug, Clone)]
pub struct Upload {
    /// How many objects are put at once.
    pub concurrency: usize,
    /// How much ciphertext may wait in memory; what is over it waits in the journal.
    pub budget_bytes: usize,
    /// How much of what waited in the journal may go up in a second; 0 is no bound.
    pub catch_up_bytes_per_sec: u64,
    /// The longest time one try may take.
    pub try_timeout: Duration,
    /// The wait after the first failed try; it doubles with every further one.
    pub retry_base: Duration,
    /// The longest wait between two tries.
    pub retry_max: Duration,
}

impl Upload {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, segments: &Segments) -> Self {
        let (scope, raw): (_, raw::Upload) = top.section("upload", table);
        let upload = Self {
            concurrency: scope.size("concurrency", raw.concurrency, &CONCURRENCY),
            budget_bytes: scope.size("budget_bytes", raw.budget_bytes, &BUDGET_BYTES),
            catch_up_bytes_per_sec: scope.number(
                "catch_up_bytes_per_sec",
                raw.catch_up_bytes_per_sec,
                &CATCH_UP_BYTES_PER_SEC,
            ),
            try_timeout: scope.millis("try_timeout_ms", raw.try_timeout_ms, &TRY_TIMEOUT_MS),
            retry_base: scope.millis("retry_base_ms", raw.retry_base_ms, &RETRY_BASE_MS),
            retry_max: scope.millis("retry_max_ms", raw.retry_max_ms, &RETRY_MAX_MS),
        };
        if upload.budget_bytes < segments.max_bytes {
            let (budget, segment) = (upload.budget_bytes, segments.max_bytes);
            let problem = format!("{budget} is given; allowed: not less than segments.max_bytes, {segment}");
            scope.fault("budget_bytes", problem);
        }
        if upload.retry_max < upload.retry_base {
            let (max, base) = (upload.retry_max.as_millis(), upload.retry_base.as_millis());
            let problem = format!("{max} is given; allowed: not less than upload.retry_base_ms, {base}");
            scope.fault("retry_max_ms", problem);
        }
        upload
    }
}
