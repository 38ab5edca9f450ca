//! `callseal-load drain`: a server is asked to end while calls run. It must take no new ones, let each running one
//! come to its own end, and end by itself; after a new start every recording is compared.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use callseal::clock;
use callseal::simulate::{CallError, TwilioCall};
use clap::Args;

use crate::course::{Audio, Course, Group, Planned, Voices};
use crate::node::{Server, Target};
use crate::place::{Place, Wire};
use crate::process::check_open_files;
use crate::sampler::{Sampler, Tally, Watched};
use crate::scenario::{compared_figures, seed};
use crate::sheet::{Better, Failure, Output, Sheet};
use crate::traffic::{self, Outcome};

/// How long a server may take to answer that it drains.
const NOTICE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The status of a handshake that a draining server refuses.
const UNAVAILABLE: u16 = 503;

/// The options of `callseal-load drain`.
#[derive(Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    place: Place,
    /// Calls; their lengths are random.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    calls: u32,
    /// The longest of them, in seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..=3_600))]
    longest_secs: u64,
    /// Seconds over which they begin; after that the server is asked to end.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=600))]
    ramp_secs: u64,
    /// What they say.
    #[arg(long, value_enum, default_value = "noise")]
    audio: Audio,
    /// Makes ids, lengths and audio repeatable; random without it, and part of the result.
    #[arg(long)]
    seed: Option<u64>,
    /// How long the server may take to end after the last call, and a recording to be finished, in seconds.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    patience_secs: u64,
    /// Calls that may be refused or break off.
    #[arg(long, default_value_t = 0)]
    max_failed_calls: u32,
    /// From the end of the last call to that of the server; no bound unless given.
    #[arg(long, value_name = "SECONDS")]
    max_end_secs: Option<f64>,
    #[command(flatten)]
    output: Output,
}

/// What was seen of a draining server.
struct Drained {
    not_ready_after: Duration,
    /// Handshakes that were not answered with 503.
    taken: u32,
    ended_at: Instant,
}

pub(crate) async fn run(options: &Drain) -> anyhow::Result<bool> {
    options.place.must_be_own("drain")?;
    check_open_files(options.calls)?;
    let ramp = Duration::from_secs(options.ramp_secs);
    let (longest, patience) =
        (Duration::from_secs(options.longest_secs), Duration::from_secs(options.patience_secs));
    let course = Course::ending(options.calls, ramp, longest, seed(options.seed)?);
    let voices = Voices::new(options.audio, course.seed);
    let mut open = options.place.open(u64::from(options.calls), Wire::Twilio).await?;
    let own = open.own.as_mut().context("--dir is missing")?;
    let bar = traffic::progress_bar(course.secs(), !options.output.json);
    let tally: Arc<Tally> = Arc::default();
    let began = clock::monotonic();
    let sampler = Sampler::start(own.server.watched(), Arc::clone(&tally), began);
    let target = &open.target;
    let calls = async {
        let place = |call| {
            traffic::twilio(course.plan(call, target, &voices), target.tls.clone(), Arc::clone(&tally))
        };
        let outcome = traffic::all_calls(&course, began, place).await?;
        anyhow::Ok((outcome, clock::monotonic()))
    };
    bar.set_message("calls run, and the server is asked to end");
    let draining = drain(&mut own.server, &course, &tally, target, &voices, longest + patience);
    let ((outcome, calls_over), drained) = tokio::try_join!(calls, draining)?;
    sampler.watch(Watched::default());
    let samples = sampler.stop().await;
    let api = own.start_again().await.context("start again")?;
    let account = target.account.as_str();
    let said = outcome.well.iter().map(|call| course.said(*call, account, &voices));
    let compared = api.compare(said, patience, &bar).await;
    bar.finish_and_clear();
    let mut sheet = Sheet::new("drain", course.seed);
    sheet.set("calls", &options.calls);
    sheet.set("longest secs", &options.longest_secs);
    sheet.set("ramp secs", &options.ramp_secs);
    sheet.samples = samples;
    figures(&outcome, &drained, calls_over, &mut sheet);
    compared_figures(Some(&compared), &mut sheet);
    hold(options, &mut sheet);
    if let Some(own) = open.own.take() {
        own.server.stop()?;
    }
    sheet.finish(&options.output)
}

/// Asks the server to end once the last call has begun, and stays until it has.
async fn drain(
    server: &mut Server,
    course: &Course,
    tally: &Tally,
    target: &Target,
    voices: &Voices,
    patience: Duration,
) -> anyhow::Result<Drained> {
    let all = course.calls.len() as u64;
    while tally.tried.load(Ordering::Relaxed) < all {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    server.drain()?;
    let asked = clock::monotonic();
    while server.is_ready().await == Some(true) {
        ensure!(clock::since(asked) < NOTICE, "the server still says that it is ready after {NOTICE:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let not_ready_after = clock::since(asked);
    let taken = u32::from(!is_refused(course, target, voices).await);
    server.ended(patience).await?;
    Ok(Drained { not_ready_after, taken, ended_at: clock::monotonic() })
}

/// Whether one more call is refused.
async fn is_refused(course: &Course, target: &Target, voices: &Voices) -> bool {
    // A number that no other call has.
    let call = Planned {
        index: u32::MAX,
        start: Duration::ZERO,
        length: Duration::from_secs(1),
        group: Group::Base,
    };
    match TwilioCall::connect(course.plan(call, target, voices), &target.tls).await {
        Ok(call) => {
            call.reset();
            false
        }
        // A server whose last call is over does not listen any more.
        Err(CallError::Refused { status }) => status == UNAVAILABLE,
        Err(_) => true,
    }
}

fn figures(outcome: &Outcome, drained: &Drained, calls_over: Instant, sheet: &mut Sheet) {
    sheet.figure("calls", (outcome.well.len() as f64) + f64::from(outcome.failed()), "", Better::Neither);
    sheet.cost("failed_calls", outcome.failed().into(), "");
    sheet.cost("calls_taken_while_draining", drained.taken.into(), "");
    sheet.cost("not_ready_after_ms", drained.not_ready_after.as_secs_f64() * 1000.0, "ms");
    let ended = drained.ended_at.saturating_duration_since(calls_over);
    sheet.cost("ended_after_last_call_secs", ended.as_secs_f64(), "s");
    let failures = outcome.failures.iter();
    sheet.failures.extend(failures.map(|(what, calls)| Failure { what: what.clone(), calls: *calls }));
}

fn hold(options: &Drain, sheet: &mut Sheet) {
    sheet.bound("failed_calls", Some(options.max_failed_calls.into()));
    sheet.bound("calls_taken_while_draining", Some(0.0));
    sheet.bound("silently_lost_ms", Some(0.0));
    sheet.bound("declared_lost_ms", Some(0.0));
    sheet.bound("recordings_not_compared", Some(0.0));
    sheet.bound("ended_after_last_call_secs", options.max_end_secs);
}
