//! How long requests of people about what is kept of them may take.
//!
//! The reason for each number stands beside the option in `config/callseal.toml`.

use std::time::Duration;

use toml::Table;

use super::raw;
use super::scope::{Bounds, Scope};

const DUE_DAYS: Bounds = Bounds::new(30, 1..=365);
const DAY_SECS: u64 = 24 * 3600;

/// How long requests of people about what is kept of them may take.
#[derive(Debug, Clone)]
pub struct Requests {
    /// From when a request came in to when it must be dealt with.
    pub due_after: Duration,
}

impl Requests {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Requests) = top.section("requests", table);
        let days = scope.number("due_days", raw.due_days, &DUE_DAYS);
        Self { due_after: Duration::from_secs(days * DAY_SECS) }
    }
}
