//! `callseal-load curve`: the same measurement with more and more calls, and what one of them costs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use callseal::simulate::{Endpoint, TlsClient};
use clap::Args;
use serde_json::{Value, json};

use crate::course::{Course, Voices};
use crate::node::Target;
use crate::place::{Open, Wire};
use crate::process::Process;
use crate::sampler::{Tally, Watched};
use crate::scenario::{Load, compared_figures, figures};
use crate::sheet::{Bound, Sheet, number, tell};
use crate::traffic;

/// Steps at most: each takes its time.
const MAX_STEPS: usize = 20;

/// The options of `callseal-load curve`.
#[derive(Args)]
pub(crate) struct Curve {
    /// The program of `examples/null_sink.rs`, a server that only reads: each step is measured against it too, and
    /// the ratio is told. It takes a folder for its certificate from --null-dir.
    #[arg(long, value_name = "FILE", requires = "null_dir")]
    null_sink: Option<PathBuf>,
    /// Directory for the certificate of that server.
    #[arg(long, value_name = "DIR")]
    null_dir: Option<PathBuf>,
    #[command(flatten)]
    load: Load,
}

/// One step.
struct Step {
    calls: u32,
    callseal: Sheet,
    null: Option<Sheet>,
}

pub(crate) async fn run(options: &Curve) -> anyhow::Result<bool> {
    let numbers = options.load.calls();
    let allowed = "allowed: 1 to 20 numbers of calls, such as 100,500,1000";
    ensure!((1..=MAX_STEPS).contains(&numbers.len()), "--calls: {} numbers; {allowed}", numbers.len());
    let most = numbers.iter().copied().max().unwrap_or(1);
    let mut open = options.load.place.open(u64::from(most), Wire::Twilio).await?;
    ensure!(open.watched.process.is_some(), "a curve is one of costs: give --server-pid, or --dir");
    let base = options.load.wanted_of(1, 30, None)?;
    let mut sheet = Sheet::new("curve", base.seed);
    let steps_text: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    sheet.set("calls", &steps_text.join(","));
    sheet.set("measured secs", &base.measured.as_secs());
    sheet.set("tracks", &format!("{:?}", base.tracks).to_lowercase());
    let mut steps: Vec<Step> = Vec::new();
    for (number, calls) in (0u64..).zip(numbers) {
        // Calls of a step have ids of their own.
        let wanted = crate::course::Wanted { calls: *calls, seed: base.seed.wrapping_add(number), ..base };
        let course = Course::new(&wanted, None)?;
        if !options.load.output.json {
            tell(&format!("{calls} calls"));
        }
        let mut step = Step { calls: *calls, callseal: Sheet::new("steady", wanted.seed), null: None };
        // Memory is compared with that before the first call of all.
        let before = steps.first().and_then(|first| first.callseal.value("server_memory_before_mib"));
        let compared = options.load.place_and_compare(&course, &open, before, &mut step.callseal).await?;
        compared_figures(compared.as_ref(), &mut step.callseal);
        options.load.limits().hold(&mut step.callseal);
        if let (Some(program), Some(dir)) = (&options.null_sink, &options.null_dir) {
            step.null = Some(against_null(program, dir, &options.load, &course, &open).await?);
        }
        steps.push(step);
    }
    if let Some(own) = open.own.take() {
        own.server.stop()?;
    }
    finish(steps, sheet, options)
}

/// Runs the calls of a step against a server that only reads.
async fn against_null(
    program: &Path,
    dir: &Path,
    load: &Load,
    course: &Course,
    open: &Open,
) -> anyhow::Result<Sheet> {
    std::fs::create_dir_all(dir).with_context(|| format!("--null-dir: make {}", dir.display()))?;
    let certificate = dir.join("null-sink.pem");
    let null = NullSink::start(program, &certificate)?;
    let pem = std::fs::read(&certificate).context("read the null sink's certificate")?;
    let target = Target {
        endpoint: Endpoint::new(null.address, &format!("wss://localhost:{}", null.address.port()))?,
        path: open.target.path.clone(),
        tls: TlsClient::new(&pem)?,
        account: open.target.account.clone(),
        auth_token: open.target.auth_token.clone(),
    };
    let voices = Voices::new(load.audio(), course.seed);
    let bar = traffic::progress_bar(course.secs(), !load.output.json);
    let tally: Arc<Tally> = Arc::default();
    let place =
        |call| traffic::twilio(course.plan(call, &target, &voices), target.tls.clone(), Arc::clone(&tally));
    let watched = Watched { process: Some(Process::new(null.child.id())), ops: None };
    let ran = traffic::run(course, watched, &tally, &bar, place).await?;
    bar.finish_and_clear();
    let mut sheet = Sheet::new("null sink", course.seed);
    figures(ran, course.tracks.messages_per_sec(), &mut sheet);
    Ok(sheet)
}

/// A server that reads calls and throws them away.
struct NullSink {
    child: Child,
    address: std::net::SocketAddr,
}

impl NullSink {
    fn start(program: &Path, certificate: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.arg("127.0.0.1:0").arg(certificate).stdin(Stdio::null()).stdout(Stdio::piped());
        // It says of each call that a generator has ended how; nobody wants to read that.
        let mut child = command
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("--null-sink: run {}", program.display()))?;
        let stdout = child.stdout.take().context("the null sink has no output")?;
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        // From here on it is ended where anything fails.
        let mut null = Self { child, address: ([127, 0, 0, 1], 0).into() };
        read.context("the null sink's output")?;
        let address = line.strip_prefix("listening on ").and_then(|rest| rest.split(',').next());
        null.address = address
            .and_then(|address| address.parse().ok())
            .with_context(|| format!("--null-sink: {} is no null_sink", program.display()))?;
        Ok(null)
    }
}

impl Drop for NullSink {
    fn drop(&mut self) {
        let _killed = self.child.kill().is_ok();
        let _waited = self.child.wait().is_ok();
    }
}

/// Makes one sheet of all steps, and prints the curve.
fn finish(steps: Vec<Step>, mut sheet: Sheet, options: &Curve) -> anyhow::Result<bool> {
    let mut table = vec![
        "   calls  CPU ms per call-second  CPU µs per message  × null sink  KiB per call  send lag p99 ms  lost ms"
            .to_owned(),
    ];
    let mut details = Vec::new();
    for step in &steps {
        table.push(row(step, &mut sheet));
        let floor = step.null.as_ref().map(Sheet::json);
        details.push(json!({"calls": step.calls, "callseal": step.callseal.json(), "null_sink": floor}));
    }
    for step in steps {
        take_over(step, &mut sheet);
    }
    table.extend(sheet.bounds.iter().filter(|bound| bound.broken).map(Bound::text));
    table
        .extend(sheet.failures.iter().map(|failure| format!("failed: {} × {}", failure.calls, failure.what)));
    table.extend(sheet.notes.iter().map(|note| format!("note: {note}")));
    sheet.details.insert("steps".to_owned(), Value::Array(details));
    sheet.table = Some(table.join("\n"));
    sheet.finish(&options.load.output)
}

/// Writes a step as a line, and its costs into the sheet.
fn row(step: &Step, sheet: &mut Sheet) -> String {
    let value = |name: &str| step.callseal.value(name);
    let null = step.null.as_ref().and_then(|null| null.value("cpu_us_per_message"));
    let ratio = value("cpu_us_per_message").zip(null).map(|(own, null)| own / null);
    for (name, unit) in [
        ("cpu_ms_per_call_second", "ms"),
        ("cpu_us_per_message", "µs"),
        ("kib_per_call", "KiB"),
        ("send_lag_p99_ms", "ms"),
    ] {
        if let Some(value) = value(name) {
            sheet.cost(format!("{} calls: {name}", step.calls), value, unit);
        }
    }
    if let Some(ratio) = ratio {
        sheet.cost(format!("{} calls: cpu_of_null_sink", step.calls), ratio, "×");
    }
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
    format!(
        "{:>8}  {:>22}  {:>18}  {:>11}  {:>12}  {:>15}  {:>7}",
        step.calls,
        shown(value("cpu_ms_per_call_second")),
        shown(value("cpu_us_per_message")),
        shown(ratio),
        shown(value("kib_per_call")),
        shown(value("send_lag_p99_ms")),
        shown(value("lost_ms")),
    )
}

/// Takes bounds, failures, notes and seconds of a step over into the sheet of all.
fn take_over(step: Step, sheet: &mut Sheet) {
    let Step { calls, callseal, .. } = step;
    sheet.bounds.extend(callseal.bounds.into_iter().map(|mut bound| {
        bound.name = format!("{calls} calls: {}", bound.name);
        bound
    }));
    sheet.failures.extend(callseal.failures);
    sheet.notes.extend(callseal.notes.into_iter().map(|note| format!("{calls} calls: {note}")));
    let later = sheet.samples.last().map_or(Duration::ZERO, |last| last.at);
    sheet.samples.extend(callseal.samples.into_iter().map(|sample| sample.later(later)));
}
