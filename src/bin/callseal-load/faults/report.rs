//! What all runs came to.

use serde::Serialize;

use super::Run;
use super::ledger::Ledger;
use super::options::Plan;

/// Samples in a millisecond of one track.
const PER_MS: u64 = 8;

/// The result; all bounds are those of the options.
#[derive(Serialize)]
pub(crate) struct Report {
    runs: usize,
    calls: u32,
    ledger_samples: Ledger,
    declared_lost_ms: u64,
    silently_lost_ms: u64,
    dropped_calls: u32,
    why_dropped: Vec<String>,
    kill_loss: Option<KillLoss>,
    ready_after_ms_p50: Option<u128>,
    ready_after_ms_max: Option<u128>,
    memory_growth_mib: u64,
    drained_after_secs: Option<f64>,
    /// Where it was to be measured and did not come in time.
    never_drained: bool,
    store: Option<StoreCost>,
    broken_bounds: Vec<String>,
}

/// Losses of the tracks of killed servers.
#[derive(Serialize)]
struct KillLoss {
    tracks: usize,
    p50_ms: u64,
    p99_ms: u64,
    max_ms: u64,
}

/// What the store was asked, per minute of a call.
#[derive(Serialize)]
struct StoreCost {
    call_minutes: f64,
    writes: f64,
    reads: f64,
    listings: f64,
    deletions: f64,
    sent_kib: f64,
    received_kib: f64,
    mishaps: u64,
}

impl Report {
    pub(super) fn new(plan: &Plan, runs: &[Run]) -> Self {
        let mut ledger = Ledger::default();
        runs.iter().for_each(|run| ledger.add(run.ledger));
        let mut why_dropped: Vec<String> = runs.iter().flat_map(|run| run.why_dropped.clone()).collect();
        why_dropped.sort();
        why_dropped.dedup();
        let growth = runs.iter().map(|run| run.resident_peak_kib.saturating_sub(run.resident_before_kib));
        let drained = runs.iter().filter_map(|run| run.drained_after);
        let waited = matches!(plan.fault, super::Fault::Weather(_) | super::Fault::Hook);
        let mut ready: Vec<u128> =
            runs.iter().filter_map(|run| run.ready_after).map(|d| d.as_millis()).collect();
        ready.sort_unstable();
        let mut report = Self {
            runs: runs.len(),
            calls: plan.calls,
            ledger_samples: ledger,
            declared_lost_ms: ledger.declared.div_ceil(PER_MS),
            silently_lost_ms: ledger.silent.div_ceil(PER_MS),
            dropped_calls: runs.iter().map(|run| run.dropped_calls).sum(),
            why_dropped,
            kill_loss: KillLoss::new(runs),
            ready_after_ms_p50: ready.get(ready.len() / 2).copied(),
            ready_after_ms_max: ready.last().copied(),
            memory_growth_mib: growth.max().unwrap_or(0) / 1024,
            drained_after_secs: drained.map(|d| d.as_secs_f64()).reduce(f64::max),
            never_drained: waited && runs.iter().any(|run| run.drained_after.is_none()),
            store: StoreCost::new(runs),
            broken_bounds: Vec::new(),
        };
        report.broken_bounds = report.judge(plan);
        report
    }

    pub(crate) fn all_went_well(&self) -> bool {
        self.broken_bounds.is_empty()
    }

    fn judge(&self, plan: &Plan) -> Vec<String> {
        let mut broken = Vec::new();
        let mut check = |is_broken: bool, text: String| {
            if is_broken {
                broken.push(text);
            }
        };
        check(
            self.ledger_samples.silent > 0,
            format!("{} samples silently lost", self.ledger_samples.silent),
        );
        check(self.ledger_samples.sent == 0, "nothing was compared".to_owned());
        check(
            self.declared_lost_ms > plan.max_declared_ms,
            format!("{} ms declared lost", self.declared_lost_ms),
        );
        check(self.dropped_calls > 0, format!("{} calls dropped", self.dropped_calls));
        check(
            self.memory_growth_mib > plan.max_growth_mib,
            format!("memory grew by {} MiB", self.memory_growth_mib),
        );
        check(self.never_drained, "the backlog was not drained in time".to_owned());
        let worst = self.kill_loss.as_ref().map_or(0, |loss| loss.max_ms);
        check(worst > plan.max_kill_loss_ms, format!("a kill lost {worst} ms of a track"));
        broken
    }
}

impl KillLoss {
    fn new(runs: &[Run]) -> Option<Self> {
        let mut losses: Vec<u64> = runs.iter().flat_map(|run| run.kill_losses_ms.clone()).collect();
        losses.sort_unstable();
        let at =
            |percent: usize| losses.get((losses.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { tracks: losses.len(), p50_ms: at(50)?, p99_ms: at(99)?, max_ms: at(100)? })
    }
}

impl StoreCost {
    fn new(runs: &[Run]) -> Option<Self> {
        let call_minutes = runs.iter().map(|run| run.call_secs).sum::<f64>() / 60.0;
        let mut total = callseal::simulate::Passed::default();
        for run in runs {
            total = total.plus(run.passed?);
        }
        let per_minute = |count: u64| count as f64 / call_minutes.max(f64::MIN_POSITIVE);
        Some(Self {
            call_minutes,
            writes: per_minute(total.writes),
            reads: per_minute(total.reads),
            listings: per_minute(total.listings),
            deletions: per_minute(total.deletions),
            sent_kib: per_minute(total.sent_bytes) / 1024.0,
            received_kib: per_minute(total.received_bytes) / 1024.0,
            mishaps: total.mishaps,
        })
    }
}
