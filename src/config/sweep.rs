//! How expired recordings are deleted. How long they are kept is said by each tenant.
//!
//! The reason for each number stands beside the option in `config/callseal.toml`.

use std::time::Duration;

use toml::Table;

use super::raw;
use super::recipient::KeysRole;
use super::scope::{Bounds, Scope};

const INTERVAL_SECS: Bounds = Bounds::new(3_600, 1..=86_400);
const GRACE_DAYS: Bounds = Bounds::new(30, 0..=3_650);
const MAX_DELETIONS: Bounds = Bounds::new(10_000, 1..=1_000_000);
const CONCURRENCY: Bounds = Bounds::new(8, 1..=256);
const MAX_SHARE_PERCENT: Bounds = Bounds::new(10, 1..=100);
const DAY_SECS: u64 = 24 * 3600;

/// How expired recordings are deleted.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// Whether `callseal serve` does it; else somebody has to run `callseal sweep`.
    pub sweep: bool,
    /// How often.
    pub interval: Duration,
    /// How long backups and versions of the store may keep what was deleted.
    pub grace: Duration,
    /// How many recordings one sweep deletes.
    pub max_deletions: usize,
    /// How many recordings a sweep works on at the same time.
    pub concurrency: usize,
    /// The share of all recordings that one sweep may find due, in percent, 1 to 100.
    pub max_share_percent: u8,
}

impl Sweep {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, role: KeysRole) -> Self {
        let (scope, raw): (_, raw::Sweep) = top.section("retention", table);
        let grace_days = scope.number("grace_days", raw.grace_days, &GRACE_DAYS);
        let share = scope.number("max_share_percent", raw.max_share_percent, &MAX_SHARE_PERCENT);
        Self {
            sweep: role.opener(&scope, "sweep", raw.sweep),
            interval: scope.secs("interval_secs", raw.interval_secs, &INTERVAL_SECS),
            grace: Duration::from_secs(grace_days * DAY_SECS),
            max_deletions: scope.size("max_deletions_per_run", raw.max_deletions_per_run, &MAX_DELETIONS),
            concurrency: scope.size("concurrency", raw.concurrency, &CONCURRENCY),
            max_share_percent: u8::try_from(share).unwrap_or(100),
        }
    }
}
