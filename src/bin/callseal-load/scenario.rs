//! `steady`, `burst` and `soak`: calls in real time, and what they cost the server.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use callseal::simulate::LagHistogram;
use clap::Args;

use crate::course::{Audio, Burst, Course, Group, Planned, Tracks, Voices, Wanted};
use crate::place::{Open, Place, Wire};
use crate::process::check_open_files;
use crate::recordings::Compared;
use crate::sampler::Tally;
use crate::sheet::{Better, Failure, Output, Sheet};
use crate::storm::{refusals, silences};
use crate::traffic::{self, Ran};

/// A generator that is later than this, one message's time, says how busy the machine is and nothing about the server.
const MAX_LAG_MS: f64 = 20.0;

/// What all scenarios with calls in real time are told.
#[derive(Args)]
pub(crate) struct Load {
    #[command(flatten)]
    pub(crate) place: Place,
    /// Calls at the same time [default: 200; burst 20, soak, storm and vapi 50, idle 1]; for a curve the numbers of its steps, such as
    /// 100,500,1000.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000))]
    calls: Vec<u32>,
    /// Seconds that are measured [default: 30; soak 3600; as long as it takes for storm and idle].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    duration_secs: Option<u64>,
    /// Seconds over which the calls begin, evenly spread: TLS handshakes all at once would show as send lag.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    ramp_secs: u64,
    /// Let calls come and go: their lengths are random with this mean, and each is followed by another. Without it
    /// they last [default: none; soak 60].
    #[arg(long, value_name = "MEAN", value_parser = clap::value_parser!(u64).range(1..=3_600))]
    churn_secs: Option<u64>,
    /// What they say.
    #[arg(long, value_enum, default_value = "noise")]
    audio: Audio,
    /// Which tracks Twilio sends.
    #[arg(long, value_enum, default_value = "both")]
    tracks: Tracks,
    /// Makes ids, lengths and audio repeatable; random without it, and part of the result.
    #[arg(long)]
    seed: Option<u64>,
    /// How long a call's recording may take to be finished before it is compared, in seconds.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    patience_secs: u64,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What makes a run fail; where no default is given there is no bound.
#[derive(Args, Default)]
pub(crate) struct Limits {
    /// Calls that may be refused or break off.
    #[arg(long, default_value_t = 0)]
    pub(crate) max_failed_calls: u32,
    /// Audio that recordings may declare lost, in milliseconds of all tracks. Silently lost is always 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) max_declared_ms: u64,
    /// p99 of how much later than due messages were sent, which a server that does not read makes longer.
    #[arg(long, value_name = "MS")]
    max_send_lag_p99_ms: Option<f64>,
    /// p99 of TCP, TLS and upgrade together.
    #[arg(long, value_name = "MS")]
    max_handshake_p99_ms: Option<f64>,
    /// p99 from the read of a message to its being sealed; needs --ops or --dir.
    #[arg(long, value_name = "MS")]
    max_sealed_p99_ms: Option<f64>,
    /// The server's CPU time for each second of a call; needs --server-pid or --dir.
    #[arg(long, value_name = "MS")]
    max_cpu_ms_per_call_second: Option<f64>,
    /// The server's memory for each call; needs --server-pid or --dir.
    #[arg(long, value_name = "KIB")]
    max_kib_per_call: Option<f64>,
    /// Age of the oldest segment that waits for the store; needs --ops or --dir.
    #[arg(long, value_name = "SECONDS")]
    max_store_lag_secs: Option<f64>,
    /// By how much memory may be higher in the last quarter of the run than in the second; needs --server-pid or --dir
    /// [default: none; soak 10].
    #[arg(long, value_name = "PERCENT")]
    max_memory_growth_percent: Option<f64>,
}

/// A constant number of calls.
#[derive(Args)]
pub(crate) struct Steady {
    #[command(flatten)]
    load: Load,
}

/// Many calls at once, while others run.
#[derive(Args)]
pub(crate) struct BurstOptions {
    #[command(flatten)]
    load: Load,
    /// Calls that begin at once.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    burst_calls: u32,
    /// Milliseconds within which they begin.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    within_ms: u64,
    /// Seconds before them that are measured without them.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    quiet_secs: u64,
}

/// Calls that come and go for long.
#[derive(Args)]
pub(crate) struct Soak {
    #[command(flatten)]
    load: Load,
}

pub(crate) async fn steady(Steady { load }: &Steady) -> anyhow::Result<bool> {
    load.run("steady", load.wanted(200, 30, None)?, None).await
}

pub(crate) async fn burst(options: BurstOptions) -> anyhow::Result<bool> {
    let BurstOptions { load, burst_calls, within_ms, quiet_secs } = options;
    let burst = Burst {
        calls: burst_calls,
        after: Duration::from_secs(quiet_secs),
        within: Duration::from_millis(within_ms),
        lasts: None,
        group: Group::Burst,
    };
    load.run("burst", load.wanted(20, 30, None)?, Some(burst)).await
}

pub(crate) async fn soak(options: Soak) -> anyhow::Result<bool> {
    let Soak { mut load } = options;
    load.limits.max_memory_growth_percent.get_or_insert(10.0);
    load.run("soak", load.wanted(50, 3_600, Some(60))?, None).await
}

impl Load {
    /// Returns what is wanted, with these defaults.
    pub(crate) fn wanted(&self, calls: u32, secs: u64, churn_secs: Option<u64>) -> anyhow::Result<Wanted> {
        ensure!(
            self.calls.len() <= 1,
            "--calls: {} numbers; allowed: one, but for a curve",
            self.calls.len()
        );
        self.wanted_of(self.calls.first().copied().unwrap_or(calls), secs, churn_secs)
    }

    /// Returns the numbers of calls that were given.
    pub(crate) fn calls(&self) -> &[u32] {
        &self.calls
    }

    /// Returns what is wanted for so many calls.
    pub(crate) fn wanted_of(&self, calls: u32, secs: u64, churn_secs: Option<u64>) -> anyhow::Result<Wanted> {
        Ok(Wanted {
            calls,
            measured: Duration::from_secs(self.duration_secs.unwrap_or(secs)),
            ramp: Duration::from_secs(self.ramp_secs),
            churn: self.churn_secs.or(churn_secs).map(Duration::from_secs),
            tracks: self.tracks,
            seed: seed(self.seed)?,
        })
    }

    /// Runs a scenario with calls of Twilio's, and answers whether all bounds are kept.
    pub(crate) async fn run(&self, name: &str, wanted: Wanted, burst: Option<Burst>) -> anyhow::Result<bool> {
        let course = Course::new(&wanted, burst)?;
        let mut open = self.place.open(u64::from(course.most), Wire::Twilio).await?;
        let mut sheet = Sheet::new(name, wanted.seed);
        self.describe(&wanted, &mut sheet);
        if let Some(burst) = burst {
            sheet.set("burst calls", &burst.calls);
            sheet.set("burst within ms", &burst.within.as_millis());
            sheet.set("burst of", &format!("{:?}", burst.group).to_lowercase());
        }
        let compared = self.place_and_compare(&course, &open, None, &mut sheet).await?;
        compared_figures(compared.as_ref(), &mut sheet);
        if let Some(burst) = burst {
            burst_figures(course.from + burst.after, burst.within, &mut sheet);
        }
        self.limits.hold(&mut sheet);
        if burst.is_some_and(|burst| !burst.group.is_compared()) {
            sheet.bound("failed_base_calls", Some(0.0));
            sheet.bound("silent_not_closed", sheet.value("silent_not_closed").map(|_| 0.0));
        }
        if let Some(own) = open.own.take() {
            own.server.stop()?;
        }
        sheet.finish(&self.output)
    }

    /// Runs the calls and compares their recordings; figures go into the sheet. `before_mib` is the server's memory
    /// that more is counted from, unless it is that before this run.
    pub(crate) async fn place_and_compare(
        &self,
        course: &Course,
        open: &Open,
        before_mib: Option<f64>,
        sheet: &mut Sheet,
    ) -> anyhow::Result<Option<Compared>> {
        check_open_files(course.most)?;
        let voices = Voices::new(self.audio, course.seed);
        let bar = traffic::progress_bar(course.secs(), !self.output.json);
        let tally = Arc::new(Tally::default());
        let place = |call: Planned| {
            let plan = course.plan(call, &open.target, &voices);
            let (tls, tally) = (open.target.tls.clone(), Arc::clone(&tally));
            async move {
                match call.group {
                    Group::Base | Group::Burst | Group::Storm => traffic::twilio(plan, tls, tally).await,
                    Group::Silent => traffic::silent(plan, tls, tally, true, call.length).await,
                    Group::SilentTls => traffic::silent(plan, tls, tally, false, call.length).await,
                }
            }
        };
        let mut ran = traffic::run(course, open.watched, &tally, &bar, place).await?;
        ran.before_mib = before_mib.or(ran.before_mib);
        let compared = match &open.api {
            Some(api) => {
                let account = open.target.account.as_str();
                let compared: Vec<_> =
                    ran.outcome.well.iter().filter(|call| call.group.is_compared()).collect();
                let said = compared.into_iter().map(|call| course.said(*call, account, &voices));
                Some(api.compare(said, self.patience(), &bar).await)
            }
            None => None,
        };
        bar.finish_and_clear();
        figures(ran, course.tracks.messages_per_sec(), sheet);
        Ok(compared)
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience_secs)
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn audio(&self) -> Audio {
        self.audio
    }

    pub(crate) fn describe(&self, wanted: &Wanted, sheet: &mut Sheet) {
        sheet.set("calls", &wanted.calls);
        sheet.set("measured secs", &wanted.measured.as_secs());
        sheet.set("ramp secs", &wanted.ramp.as_secs());
        let churn = wanted.churn.map_or("none".to_owned(), |mean| mean.as_secs().to_string());
        sheet.set("mean length of calls in secs", &churn);
        sheet.set("audio", &format!("{:?}", self.audio).to_lowercase());
        sheet.set("tracks", &format!("{:?}", self.tracks).to_lowercase());
    }
}

impl Limits {
    /// Holds the figures against the bounds.
    pub(crate) fn hold(&self, sheet: &mut Sheet) {
        sheet.bound("failed_calls", Some(self.max_failed_calls.into()));
        if sheet.value("recordings_compared").is_some() {
            sheet.bound("silently_lost_ms", Some(0.0));
            sheet.bound("recordings_not_compared", Some(0.0));
            sheet.bound("declared_lost_ms", Some(self.max_declared_ms as f64));
        }
        for (name, at_most) in [
            ("send_lag_p99_ms", self.max_send_lag_p99_ms),
            ("handshake_p99_ms", self.max_handshake_p99_ms),
            ("read_to_sealed_p99_ms", self.max_sealed_p99_ms),
            ("cpu_ms_per_call_second", self.max_cpu_ms_per_call_second),
            ("kib_per_call", self.max_kib_per_call),
            ("store_lag_max_secs", self.max_store_lag_secs),
            ("memory_growth_percent", self.max_memory_growth_percent),
        ] {
            sheet.bound(name, at_most);
        }
    }
}

/// Writes what a run came to.
pub(crate) fn figures(ran: Ran, messages_per_sec: f64, sheet: &mut Sheet) {
    let Ran { outcome, window, samples, before_mib } = ran;
    sheet.figure("calls", (outcome.well.len() as f64) + f64::from(outcome.failed()), "", Better::Neither);
    sheet.cost("failed_calls", outcome.failed().into(), "");
    sheet.cost("failed_base_calls", outcome.base_failed.into(), "");
    sheet.cost("refused_calls", outcome.connect_failures.into(), "");
    let secs = window.took.as_secs_f64();
    sheet.figure("open_when_measured", window.open as f64, "calls", Better::Neither);
    sheet.figure("measured_secs", secs, "s", Better::Neither);
    sheet.figure("messages_per_sec", window.messages as f64 / secs, "", Better::Neither);
    percentiles("send_lag", &outcome.send_lag, sheet);
    percentiles("handshake", &outcome.handshakes, sheet);
    if outcome.burst_handshakes.count() > 0 {
        percentiles("burst_handshake", &outcome.burst_handshakes, sheet);
    }
    refusals(&outcome, sheet);
    silences(&outcome.silent, sheet);
    sheet.cost("generator_cores", window.own_cpu.as_secs_f64() / secs, "");
    if let (Some(cpu), true) = (window.server_cpu, window.messages > 0) {
        let (cpu, messages) = (cpu.as_secs_f64(), window.messages as f64);
        sheet.cost("server_cores", cpu / secs, "");
        sheet.cost("cpu_ms_per_call_second", cpu * 1000.0 * messages_per_sec / messages, "ms");
        sheet.cost("cpu_us_per_message", cpu * 1e6 / messages, "µs");
    }
    let highest = |column: &str| samples.iter().filter_map(|sample| sample.value(column)).reduce(f64::max);
    if let (Some(before), Some(peak)) = (before_mib, highest("server_memory_mib")) {
        let calls = highest("open_calls").unwrap_or(0.0).max(1.0);
        sheet.figure("server_memory_before_mib", before, "MiB", Better::Neither);
        sheet.cost("server_memory_peak_mib", peak, "MiB");
        sheet.figure("open_at_most", calls, "calls", Better::Neither);
        sheet.cost("kib_per_call", (peak - before).max(0.0) * 1024.0 / calls, "KiB");
    }
    let measured: Vec<_> = samples.iter().filter_map(|sample| sample.value("server_memory_mib")).collect();
    if let Some(percent) = growth(&measured) {
        sheet.cost("memory_growth_percent", percent, "%");
    }
    for (name, value, unit) in [
        ("read_to_sealed_p99_ms", window.sealed_p99.map(|secs| secs * 1000.0), "ms"),
        ("store_lag_max_secs", highest("store_lag_secs"), "s"),
        ("server_lost_bytes", window.server_lost_bytes, "bytes"),
    ] {
        if let Some(value) = value {
            sheet.cost(name, value, unit);
        }
    }
    if sheet.value("send_lag_p99_ms") > Some(MAX_LAG_MS) {
        sheet.notes.push(format!(
            "1 % of the messages were sent more than {MAX_LAG_MS} ms late: where the server read in time, the generator \
             or the machine was busy, and the delays say nothing"
        ));
    }
    let failures = outcome.failures.into_iter();
    sheet.failures.extend(failures.map(|(what, calls)| Failure { what, calls }));
    sheet.samples = samples;
}

/// Writes what the comparison of recordings came to.
pub(crate) fn compared_figures(compared: Option<&Compared>, sheet: &mut Sheet) {
    let Some(compared) = compared else {
        sheet.notes.push("recordings were not compared: --admin and --admin-token-file, or --dir".to_owned());
        return;
    };
    sheet.figure("recordings_compared", compared.recordings.into(), "", Better::Neither);
    sheet.cost("recordings_not_compared", compared.failures.len() as f64, "");
    sheet.figure("audio_sent_ms", compared.sent_ms, "ms", Better::Neither);
    if compared.sent_ms > 0.0 {
        sheet.figure(
            "playable_percent",
            compared.playable_ms / compared.sent_ms * 100.0,
            "%",
            Better::Higher,
        );
    }
    sheet.cost("lost_ms", compared.sent_ms - compared.playable_ms, "ms");
    sheet.cost("declared_lost_ms", compared.declared_ms, "ms");
    sheet.cost("silently_lost_ms", compared.silent_ms, "ms");
    for what in compared.failures.iter().take(10) {
        sheet.failures.push(Failure { what: what.clone(), calls: 1 });
    }
}

fn burst_figures(began: Duration, within: Duration, sheet: &mut Sheet) {
    let worst = |delay: &str, from: Duration, until: Duration, sheet: &Sheet| {
        let seconds = sheet.samples.iter().filter(|sample| sample.at > from && sample.at <= until);
        seconds.filter_map(|sample| sample.value(&format!("{delay}_p99_ms"))).reduce(f64::max)
    };
    // A look is up to a second late.
    let over = began + within + Duration::from_secs(2);
    let before = began.saturating_sub(Duration::from_secs(10));
    for delay in ["send_lag", "read_to_sealed", "event_loop_lag"] {
        for (part, from, until) in [("before_burst", before, began), ("of_burst", began, over)] {
            if let Some(value) = worst(delay, from, until, sheet) {
                sheet.cost(format!("{delay}_worst_second_{part}_p99_ms"), value, "ms");
            }
        }
    }
}

pub(crate) fn percentiles(name: &str, delays: &LagHistogram, sheet: &mut Sheet) {
    let millis = |delay: Duration| delay.as_secs_f64() * 1000.0;
    sheet.cost(format!("{name}_p50_ms"), millis(delays.percentile(50)), "ms");
    sheet.cost(format!("{name}_p99_ms"), millis(delays.percentile(99)), "ms");
    sheet.cost(format!("{name}_max_ms"), millis(delays.max()), "ms");
}

/// Returns by how many per cent the last quarter is above the second; `None` for runs that are too short to tell.
fn growth(values: &[f64]) -> Option<f64> {
    let quarter = values.len() / 4;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (second, last) = (values.get(quarter..2 * quarter)?, values.get(3 * quarter..)?);
    (quarter > 0).then(|| (mean(last) / mean(second) - 1.0) * 100.0)
}

/// Returns the seed that was given, or a random one.
pub(crate) fn seed(given: Option<u64>) -> anyhow::Result<u64> {
    match given {
        Some(seed) => Ok(seed),
        None => {
            // JSON's numbers are exact up to 2^53.
            let seed = getrandom::u64().context("no random seed")? >> 12;
            ensure!(seed > 0, "no random seed");
            Ok(seed)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::{Outcome, Window};

    #[test]
    fn costs_are_divided_by_what_they_were_for() {
        let window = Window {
            took: Duration::from_secs(10),
            open: 100,
            messages: 100_000,
            server_cpu: Some(Duration::from_secs(5)),
            own_cpu: Duration::from_secs(1),
            ..Window::default()
        };
        let samples = (1..=8)
            .map(|at: u32| {
                let memory = if at > 6 { 15.0 } else { 12.0 };
                crate::sampler::Sample::invented(
                    at.into(),
                    vec![("server_memory_mib", Some(memory)), ("open_calls", Some(100.0))],
                )
            })
            .collect();
        let mut sheet = Sheet::new("steady", 1);
        let ran = Ran { outcome: Outcome::default(), window, samples, before_mib: Some(10.0) };
        figures(ran, Tracks::Both.messages_per_sec(), &mut sheet);
        let value = |name| sheet.value(name).unwrap();
        assert_eq!((value("server_cores"), value("cpu_ms_per_call_second")), (0.5, 5.0));
        assert_eq!((value("cpu_us_per_message"), value("kib_per_call")), (50.0, 51.2));
        assert_eq!(value("memory_growth_percent"), 25.0);
    }

    #[test]
    fn growth_needs_four_values() {
        assert_eq!(growth(&[1.0, 2.0, 3.0]), None);
        assert_eq!(growth(&[9.0, 2.0, 9.0, 3.0]), Some(50.0));
    }

    #[test]
    fn bounds_are_held_against_the_comparison_only_where_there_was_one() {
        let mut sheet = Sheet::new("steady", 1);
        sheet.cost("failed_calls", 0.0, "");
        compared_figures(None, &mut sheet);
        Limits::default().hold(&mut sheet);
        assert!(sheet.all_went_well());
        let lost = Compared {
            recordings: 1,
            sent_ms: 40.0,
            playable_ms: 20.0,
            declared_ms: 20.0,
            ..Compared::default()
        };
        compared_figures(Some(&lost), &mut sheet);
        let hold = |limits: Limits, mut sheet: Sheet| {
            sheet.bounds.clear();
            limits.hold(&mut sheet);
            sheet.all_went_well()
        };
        let sheet_again = || {
            let mut sheet = Sheet::new("steady", 1);
            sheet.cost("failed_calls", 0.0, "");
            compared_figures(Some(&lost), &mut sheet);
            sheet
        };
        assert!(!hold(Limits::default(), sheet_again()));
        assert!(hold(Limits { max_declared_ms: 20, ..Limits::default() }, sheet_again()));
    }
}
