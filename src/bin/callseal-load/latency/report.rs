//! The result of a measurement of delays: a table, JSON, and whether the bounds were kept.

use std::time::Duration;

use callseal::simulate::LagHistogram;
use serde_json::{Value, json};

use crate::sampler::Sample;
use crate::sheet::{Bound, Sheet};

/// A generator that is later than this, one message's time, says how busy the machine is and nothing about what it measures.
const MAX_LAG: Duration = Duration::from_millis(20);

/// What was measured.
pub(crate) struct Report {
    calls: u16,
    secs: u64,
    bounds: Bounds,
    pub(super) rows: Vec<Row>,
    /// Calls that did not end as planned.
    pub(super) failed: usize,
}

/// What makes the run fail.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    pub(super) added_p99_us: Option<u64>,
    pub(super) fault_percent: Option<u64>,
}

/// What a part is compared with, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The measure of all.
    Plain,
    /// callseal as it is by default, and nothing is wrong.
    Fair,
    /// Something is wrong with the store.
    Fault,
    /// Shown, and held to no bound.
    Other,
}

/// One part.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// To the agent, to the caller.
    pub(super) delays: [LagHistogram; 2],
    /// How much later than due messages were sent.
    pub(super) lag: LagHistogram,
    /// CPU seconds of the relay in a second.
    pub(super) relay_cores: f64,
    /// The same of this process, with callers and agents.
    pub(super) own_cores: f64,
}

/// Delays of all rows of a kind, both directions.
fn all<'a>(rows: impl IntoIterator<Item = &'a Row>) -> LagHistogram {
    let mut sum = LagHistogram::default();
    for delays in rows.into_iter().flat_map(|row| &row.delays) {
        sum.merge(delays);
    }
    sum
}

/// p50, p99 and p99.9 in microseconds.
fn percentiles(delays: &LagHistogram) -> [u64; 3] {
    [500, 990, 999].map(|per_mille| micros(delays.per_mille(per_mille)))
}

fn micros(delay: Duration) -> u64 {
    u64::try_from(delay.as_micros()).unwrap_or(u64::MAX)
}

impl Report {
    pub(super) fn new(calls: u16, secs: u64, bounds: Bounds) -> Self {
        Self { calls, secs, bounds, rows: Vec::new(), failed: 0 }
    }

    fn of_kind(&self, kind: Kind) -> LagHistogram {
        all(self.rows.iter().filter(|row| row.kind == kind))
    }

    /// By how much the percentiles of a row are above those of the plain relay, whose parts count together.
    fn added(&self, row: &Row) -> [i64; 3] {
        let (plain, found) = (percentiles(&self.of_kind(Kind::Plain)), percentiles(&all([row])));
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        [0, 1, 2].map(|at| match (found.get(at), plain.get(at)) {
            (Some(found), Some(plain)) => signed(*found) - signed(*plain),
            _ => 0,
        })
    }

    fn broken_bounds(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for row in self.rows.iter().filter(|row| row.kind == Kind::Fair) {
            let [_, added, _] = self.added(row);
            if let Some(bound) = self.bounds.added_p99_us
                && added > i64::try_from(bound).unwrap_or(i64::MAX)
            {
                broken
                    .push(format!("{}: p99 is {added} µs above the plain relay's, bound {bound}", row.name));
            }
        }
        let [_, fair, _] = percentiles(&self.of_kind(Kind::Fair));
        for row in self.rows.iter().filter(|row| row.kind == Kind::Fault) {
            let [_, found, _] = percentiles(&all([row]));
            if let Some(percent) = self.bounds.fault_percent
                && found * 100 > fair * (100 + percent)
            {
                broken.push(format!(
                    "{}: p99 is {found} µs, without a fault {fair}, bound {percent} % more",
                    row.name
                ));
            }
        }
        broken
    }

    /// Returns the parts whose figures say nothing.
    fn overloaded(&self) -> Vec<&'static str> {
        self.rows.iter().filter(|row| row.lag.percentile(99) > MAX_LAG).map(|row| row.name).collect()
    }

    /// Makes the sheet: the table of delays as it is printed, the figures that runs are compared by, and the bounds.
    pub(super) fn sheet(&self, samples: Vec<Sample>) -> Sheet {
        let mut sheet = Sheet::new("relay-latency", 0);
        sheet.set("calls", &self.calls);
        sheet.set("secs of each part", &self.secs);
        sheet.cost("failed_calls", self.failed as f64, "");
        sheet.bound("failed_calls", Some(0.0));
        for row in self.rows.iter().filter(|row| row.kind != Kind::Plain) {
            let [p50, p99, _] = self.added(row);
            sheet.cost(format!("{}: added p50", row.name), p50 as f64, "µs");
            sheet.cost(format!("{}: added p99", row.name), p99 as f64, "µs");
        }
        let [p50, p99, _] = percentiles(&self.of_kind(Kind::Plain));
        sheet.cost("plain TCP relay: p50", p50 as f64, "µs");
        sheet.cost("plain TCP relay: p99", p99 as f64, "µs");
        sheet.bounds.extend(self.held());
        sheet.samples = samples;
        sheet.table = Some(self.text());
        if let Value::Object(details) = self.json() {
            sheet.details = details;
        }
        sheet
    }

    /// Returns the bounds that were given, with the worst of what they are about.
    fn held(&self) -> Vec<Bound> {
        let bound = |name: &str, at_most: u64, worst: Option<f64>| {
            let at_most = at_most as f64;
            let broken = worst.is_none_or(|worst| worst > at_most);
            Bound { name: name.to_owned(), at_most, value: worst, broken }
        };
        let of_kind = |kind| self.rows.iter().filter(move |row| row.kind == kind);
        let added = self.bounds.added_p99_us.map(|at_most| {
            let p99 = |row| {
                let [_, p99, _] = self.added(row);
                p99 as f64
            };
            bound("added_p99_us", at_most, of_kind(Kind::Fair).map(p99).reduce(f64::max))
        });
        let fault = self.bounds.fault_percent.map(|at_most| {
            let [_, fair, _] = percentiles(&self.of_kind(Kind::Fair)).map(|micros| micros as f64);
            let above = |row: &Row| {
                let [_, found, _] = percentiles(&all([row])).map(|micros| micros as f64);
                (found - fair) * 100.0 / fair.max(1.0)
            };
            bound("fault_percent", at_most, of_kind(Kind::Fault).map(above).reduce(f64::max))
        });
        added.into_iter().chain(fault).collect()
    }

    /// The delays, and what callseal adds to them.
    fn text(&self) -> String {
        let mut lines = vec![
            format!(
                "{} calls in real time, both sides talking, {} s for each part; {} failed. Microseconds.",
                self.calls, self.secs, self.failed
            ),
            "through                      direction  messages     p50     p99   p99.9      max   lag p99  cores: relay  own"
                .to_owned(),
        ];
        for row in &self.rows {
            self.add_row(row, &mut lines);
        }
        for name in self.overloaded() {
            lines.push(format!(
                "OVERLOADED: {name}: the generator was late by more than {} ms; these figures say nothing",
                MAX_LAG.as_millis()
            ));
        }
        lines.extend(self.broken_bounds().iter().map(|broken| format!("BROKEN: {broken}")));
        lines.join("\n")
    }

    fn add_row(&self, row: &Row, lines: &mut Vec<String>) {
        for (direction, delays) in ["to agent", "to caller"].into_iter().zip(&row.delays) {
            let [p50, p99, p999] = percentiles(delays);
            lines.push(format!(
                "{:<28} {direction:<10} {:>8} {p50:>7} {p99:>7} {p999:>7} {:>8}",
                row.name,
                delays.count(),
                micros(delays.max())
            ));
        }
        let (both, [p50, p99, p999]) = (all([row]), percentiles(&all([row])));
        lines.push(format!(
            "{:<28} {:<10} {:>8} {p50:>7} {p99:>7} {p999:>7} {:>8} {:>9} {:>13.2} {:>4.2}",
            row.name,
            "both",
            both.count(),
            micros(both.max()),
            micros(row.lag.percentile(99)),
            row.relay_cores,
            row.own_cores
        ));
        if row.kind != Kind::Plain {
            let [p50, p99, p999] = self.added(row);
            lines.push(format!("{:<28} {:<19} {p50:>+7} {p99:>+7} {p999:>+7}", row.name, "added"));
        }
    }

    fn json(&self) -> Value {
        let delays = |delays: &LagHistogram| {
            let [p50, p99, p999] = percentiles(delays);
            json!({"messages": delays.count(), "p50": p50, "p99": p99, "p999": p999, "max": micros(delays.max())})
        };
        let rows = self.rows.iter().map(|row| {
            let [to_agent, to_caller] = &row.delays;
            let added = (row.kind != Kind::Plain).then(|| {
                let [p50, p99, p999] = self.added(row);
                json!({"p50": p50, "p99": p99, "p999": p999})
            });
            json!({
                "through": row.name,
                "to_agent_us": delays(to_agent),
                "to_caller_us": delays(to_caller),
                "both_us": delays(&all([row])),
                "added_us": added,
                "generator_lag_us": delays(&row.lag),
                "relay_cores": row.relay_cores,
                "generator_cores": row.own_cores,
            })
        });
        json!({
            "calls": self.calls, "secs": self.secs, "failed": self.failed, "rows": rows.collect::<Vec<_>>(),
            "broken_bounds": self.broken_bounds(), "overloaded": self.overloaded(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, kind: Kind, micros: u64) -> Row {
        let mut delays = LagHistogram::default();
        delays.record(Duration::from_micros(micros));
        let lag = delays.clone();
        Row { name, kind, delays: [delays.clone(), delays], lag, relay_cores: 0.5, own_cores: 0.5 }
    }

    fn report(bounds: Bounds) -> Report {
        let mut report = Report::new(1, 1, bounds);
        report.rows = vec![
            row("plain", Kind::Plain, 100),
            row("plain", Kind::Plain, 200),
            row("fair", Kind::Fair, 1_000),
            row("other", Kind::Other, 9_000),
            row("slow", Kind::Fault, 1_100),
            row("dead", Kind::Fault, 1_500),
        ];
        report
    }

    #[test]
    fn bounds_are_held_against_the_right_rows() {
        let went_well = |report: &Report| report.sheet(Vec::new()).all_went_well();
        assert!(went_well(&report(Bounds::default())), "without bounds nothing is broken");
        let kept = Bounds { added_p99_us: Some(800), fault_percent: Some(50) };
        assert_eq!(report(kept).broken_bounds(), Vec::<String>::new());
        let broken = report(Bounds { added_p99_us: Some(799), fault_percent: Some(10) });
        let found = broken.broken_bounds();
        let names: Vec<_> = found.iter().filter_map(|broken| broken.split(':').next()).collect();
        assert_eq!(names, ["fair", "dead"], "{found:?}");
        assert!(!went_well(&broken) && went_well(&report(kept)));
        assert_eq!(broken.json()["broken_bounds"].as_array().map(Vec::len), Some(2));
        let mut failed = report(Bounds::default());
        failed.failed = 1;
        assert!(!went_well(&failed));
    }

    #[test]
    fn a_generator_that_is_late_is_told() {
        let mut report = report(Bounds::default());
        assert_eq!(report.overloaded(), Vec::<&str>::new());
        report.rows.push(row("late", Kind::Other, 25_000));
        assert_eq!(report.overloaded(), ["late"]);
        assert_eq!(report.json()["overloaded"][0], "late");
    }

    #[test]
    fn what_is_added_may_be_less_than_nothing() {
        let mut report = report(Bounds { added_p99_us: Some(0), fault_percent: None });
        report.rows = vec![row("plain", Kind::Plain, 300), row("fair", Kind::Fair, 200)];
        assert_eq!(report.added(&report.rows[1]), [-100; 3]);
        assert!(report.sheet(Vec::new()).all_went_well());
    }
}
