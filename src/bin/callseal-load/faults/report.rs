//! What all runs came to.

use serde::Serialize;

use super::Run;
use super::options::Plan;
use crate::ledger::Ledger;
use crate::sampler::Sample;
use crate::sheet::{Better, Failure, Sheet};

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
        Self {
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
        }
    }

    /// Makes the sheet: figures, bounds, and all of this beside them.
    pub(super) fn sheet(
        mut self,
        scenario: &str,
        plan: &Plan,
        samples: Vec<Sample>,
    ) -> serde_json::Result<Sheet> {
        let mut sheet = Sheet::new(scenario, plan.seed);
        sheet.set("fault", &format!("{:?}", plan.fault));
        sheet.set("calls", &self.calls);
        sheet.set("secs", &plan.length.as_secs());
        sheet.set("fault secs", &plan.fault_length.as_secs());
        sheet.set("runs", &self.runs);
        let sent_ms = self.ledger_samples.sent as f64 / PER_MS as f64;
        sheet.figure("audio_sent_ms", sent_ms, "ms", Better::Neither);
        for (name, value, unit, at_most) in self.held(plan) {
            sheet.cost(name, value, unit);
            sheet.bound(name, Some(at_most));
        }
        if let Some(drained) = self.drained_after_secs {
            sheet.cost("drained_after_secs", drained, "s");
        }
        if let Some(ready) = self.ready_after_ms_p50 {
            sheet.cost("ready_again_p50_ms", ready as f64, "ms");
        }
        let (count, why) = (self.dropped_calls, self.why_dropped.join("; "));
        if count > 0 {
            sheet.failures.push(Failure { what: why, calls: count });
        }
        let broken = sheet.bounds.iter().filter(|bound| bound.broken);
        self.broken_bounds = broken.map(|bound| self.why(&bound.name)).collect();
        sheet.samples = samples;
        if let serde_json::Value::Object(details) = serde_json::to_value(&self)? {
            sheet.details = details;
        }
        Ok(sheet)
    }

    /// What is held to a bound: name, value, unit, and what it may be at most.
    fn held(&self, plan: &Plan) -> Vec<(&'static str, f64, &'static str, f64)> {
        let mut held = vec![
            ("silently_lost_samples", self.ledger_samples.silent as f64, "", 0.0),
            ("runs_without_audio", f64::from(u8::from(self.ledger_samples.sent == 0)), "", 0.0),
            ("declared_lost_ms", self.declared_lost_ms as f64, "ms", plan.max_declared_ms as f64),
            ("dropped_calls", self.dropped_calls.into(), "", 0.0),
            ("memory_growth_mib", self.memory_growth_mib as f64, "MiB", plan.max_growth_mib as f64),
            ("backlog_not_drained_in_time", f64::from(u8::from(self.never_drained)), "", 0.0),
        ];
        if let Some(loss) = &self.kill_loss {
            held.push(("kill_loss_max_ms", loss.max_ms as f64, "ms", plan.max_kill_loss_ms as f64));
        }
        held
    }

    /// Says what a broken bound means.
    fn why(&self, bound: &str) -> String {
        match bound {
            "silently_lost_samples" => format!("{} samples silently lost", self.ledger_samples.silent),
            "runs_without_audio" => "nothing was compared".to_owned(),
            "declared_lost_ms" => format!("{} ms declared lost", self.declared_lost_ms),
            "dropped_calls" => format!("{} calls dropped", self.dropped_calls),
            "memory_growth_mib" => format!("memory grew by {} MiB", self.memory_growth_mib),
            "kill_loss_max_ms" => {
                let worst = self.kill_loss.as_ref().map_or(0, |loss| loss.max_ms);
                format!("a kill lost {worst} ms of a track")
            }
            _ => "the backlog was not drained in time".to_owned(),
        }
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
