//! How the audit log is written. How long it is kept is said by each tenant.
//!
//! The reason for each number stands beside the option in `config/callseal.toml`.

use std::path::PathBuf;
use std::time::Duration;

use toml::Table;

use super::raw;
use super::scope::{Bounds, Scope};

const TIMEOUT_MS: Bounds = Bounds::new(5_000, 100..=60_000);
const FILE_TIMEOUT_MS: Bounds = Bounds::new(800, 10..=60_000);
const REFUSALS_PER_MIN: Bounds = Bounds::new(60, 1..=10_000);

/// How the audit log is written.
#[derive(Debug, Clone)]
pub struct Audit {
    /// How long an action waits for its record before it is refused.
    pub timeout: Duration,
    /// A file that every object of records is copied to, sealed as it is; records count only when they are there too.
    pub file: Option<PathBuf>,
    /// How long that file may take for one object.
    pub file_timeout: Duration,
    /// Refusals of strangers that are recorded one by one, for each tenant and minute; the others are counted.
    pub refusals_per_min: u32,
}

impl Audit {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Audit) = top.section("audit", table);
        let file = raw.file.map(|file| scope.path("file", Some(file), PathBuf::new));
        if file.is_none() && raw.file_timeout_ms.is_some() {
            scope.fault("file_timeout_ms", "is given without a file; allowed: only beside audit.file");
        }
        Self {
            timeout: scope.millis("timeout_ms", raw.timeout_ms, &TIMEOUT_MS),
            file,
            file_timeout: scope.millis("file_timeout_ms", raw.file_timeout_ms, &FILE_TIMEOUT_MS),
            refusals_per_min: scope.count("refusals_per_min", raw.refusals_per_min, &REFUSALS_PER_MIN),
        }
    }
}
