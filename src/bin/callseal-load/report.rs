//! What came out, for people and for machines.

use std::time::Duration;

use callseal::simulate::LagHistogram;
use serde::Serialize;

use crate::scenario::Used;

/// The result of a scenario.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: &'static str,
    pub(crate) seed: u64,
    pub(crate) calls: u32,
    /// Calls that were open when the measurement began.
    pub(crate) connected_in_time: u64,
    pub(crate) connect_failures: u32,
    /// Calls that were open and broke off.
    pub(crate) call_failures: u32,
    pub(crate) failures: Vec<Failure>,
    pub(crate) window_secs: f64,
    /// Messages sent in the window.
    pub(crate) messages: u64,
    pub(crate) messages_per_sec: f64,
    /// Over the whole of every call that ended as planned.
    pub(crate) send_lag: LagReport,
    pub(crate) server: Option<ServerReport>,
    pub(crate) generator: GeneratorReport,
}

/// One way in which calls failed.
#[derive(Serialize)]
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) calls: u32,
}

/// How much later than due messages were sent.
#[derive(Serialize)]
pub(crate) struct LagReport {
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// What the server used in the window.
#[derive(Serialize)]
pub(crate) struct ServerReport {
    cpu_percent_of_core: f64,
    cpu_ms_per_call_second: f64,
    cpu_us_per_message: f64,
    resident_before_kib: u64,
    resident_peak_kib: u64,
    kib_per_call: f64,
}

/// What the generator itself used in the window: near 100 %, its lag is its own.
#[derive(Serialize)]
pub(crate) struct GeneratorReport {
    cpu_percent_of_core: f64,
}

impl Report {
    /// Whether every call was accepted and ended as planned.
    pub(crate) fn all_went_well(&self) -> bool {
        self.connect_failures == 0 && self.call_failures == 0
    }
}

impl LagReport {
    pub(crate) fn new(lags: &LagHistogram) -> Self {
        Self {
            p50_ms: millis(lags.percentile(50)),
            p99_ms: millis(lags.percentile(99)),
            max_ms: millis(lags.max()),
        }
    }
}

impl ServerReport {
    pub(crate) fn new(used: &Used, resident_before_kib: u64, resident_peak_kib: u64) -> Self {
        let calls = used.calls.max(1) as f64;
        let grown = resident_peak_kib.saturating_sub(resident_before_kib);
        Self {
            cpu_percent_of_core: percent_of_core(used.cpu, used.took),
            cpu_ms_per_call_second: millis(used.cpu) / (calls * used.took.as_secs_f64()),
            cpu_us_per_message: millis(used.cpu) * 1000.0 / used.messages.max(1) as f64,
            resident_before_kib,
            resident_peak_kib,
            kib_per_call: grown as f64 / calls,
        }
    }
}

impl GeneratorReport {
    pub(crate) fn new(cpu: Duration, took: Duration) -> Self {
        Self { cpu_percent_of_core: percent_of_core(cpu, took) }
    }
}

/// Prints the report on standard output.
///
/// # Errors
/// When it cannot be written as JSON.
#[expect(clippy::print_stdout, reason = "the result is what the program is for")]
pub(crate) fn print(report: &Report, json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(report)? } else { table(report) };
    println!("{text}");
    Ok(())
}

/// Prints any result as JSON on standard output.
///
/// # Errors
/// When it cannot be written as JSON.
#[expect(clippy::print_stdout, reason = "the result is what the program is for")]
pub(crate) fn print_json(report: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(report)?);
    Ok(())
}

fn table(report: &Report) -> String {
    let mut rows = vec![
        ("scenario", format!("{}, seed {}", report.scenario, report.seed)),
        ("calls", format!("{} ({} open when measured)", report.calls, report.connected_in_time)),
        ("connect failures", report.connect_failures.to_string()),
        ("broken calls", report.call_failures.to_string()),
        ("measured", format!("{:.1} s", report.window_secs)),
        ("messages", format!("{} ({:.0} a second)", report.messages, report.messages_per_sec)),
    ];
    let LagReport { p50_ms, p99_ms, max_ms } = &report.send_lag;
    rows.push(("send lag", format!("p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, max {max_ms:.2} ms")));
    rows.push(("generator CPU", format!("{:.1} % of a core", report.generator.cpu_percent_of_core)));
    if let Some(server) = &report.server {
        let ServerReport { resident_before_kib, resident_peak_kib, kib_per_call, .. } = server;
        rows.push(("server CPU", format!("{:.1} % of a core", server.cpu_percent_of_core)));
        rows.push(("  per call-second", format!("{:.3} ms (two tracks)", server.cpu_ms_per_call_second)));
        rows.push(("  per message", format!("{:.2} µs", server.cpu_us_per_message)));
        let memory =
            format!("{kib_per_call:.0} KiB per call ({resident_before_kib} → {resident_peak_kib} KiB)");
        rows.push(("server memory", memory));
    }
    let mut lines: Vec<_> = rows.into_iter().map(|(name, value)| format!("{name:<18} {value}")).collect();
    for Failure { what, calls } in &report.failures {
        lines.push(format!("failed             {calls} × {what}"));
    }
    lines.join("\n")
}

fn percent_of_core(cpu: Duration, took: Duration) -> f64 {
    cpu.as_secs_f64() / took.as_secs_f64() * 100.0
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let used = Used {
            cpu: Duration::from_secs(5),
            took: Duration::from_secs(10),
            calls: 100,
            messages: 100_000,
        };
        let mut lags = LagHistogram::default();
        lags.record(Duration::from_millis(2));
        Report {
            scenario: "steady",
            seed: 7,
            calls: 101,
            connected_in_time: 100,
            connect_failures: 1,
            call_failures: 0,
            failures: vec![Failure { what: "server refused the call with status 503".to_owned(), calls: 1 }],
            window_secs: 10.0,
            messages: used.messages,
            messages_per_sec: 10_000.0,
            send_lag: LagReport::new(&lags),
            server: Some(ServerReport::new(&used, 10_000, 14_000)),
            generator: GeneratorReport::new(Duration::from_secs(1), Duration::from_secs(10)),
        }
    }

    #[test]
    fn costs_are_divided_by_what_they_were_for() {
        let report = report();
        let server = report.server.as_ref().unwrap();
        assert_eq!((server.cpu_percent_of_core, server.cpu_ms_per_call_second), (50.0, 5.0));
        assert_eq!((server.cpu_us_per_message, server.kib_per_call), (50.0, 40.0));
        assert!(!report.all_went_well());
    }

    #[test]
    fn both_forms_say_the_same() {
        let report = report();
        let table = table(&report);
        for part in ["5.000 ms", "50.00 µs", "40 KiB per call", "p99 2.00 ms", "1 × server refused the call"]
        {
            assert!(table.contains(part), "{part} in\n{table}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["server"]["cpu_us_per_message"], 50.0);
        assert_eq!(json["failures"][0]["calls"], 1);
    }
}
