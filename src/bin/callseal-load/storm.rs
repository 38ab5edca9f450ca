//! `storm` and `idle`: connections beside running calls, many in a second, or many that say nothing.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::course::{Burst, Group};
use crate::scenario::{Load, percentiles};
use crate::sheet::{Better, Sheet};
use crate::traffic::{Outcome, Silences};

/// A short call of a storm: ten messages of each track.
const STORM_CALL: Duration = Duration::from_millis(200);
/// Before and after what disturbs, to see the difference.
const CALM: Duration = Duration::from_secs(2);

/// Short calls at a high rate, while others run.
#[derive(Args)]
pub(crate) struct StormOptions {
    #[command(flatten)]
    load: Load,
    /// New calls in a second.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    rate: u32,
    /// Seconds of them.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    secs: u32,
    /// Seconds before them that are measured without them.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    quiet_secs: u64,
}

/// Connections that say nothing, while others run.
#[derive(Args)]
pub(crate) struct IdleOptions {
    #[command(flatten)]
    load: Load,
    /// Connections that say nothing.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: u32,
    /// How far they come.
    #[arg(long, value_enum, default_value = "upgraded")]
    stage: Stage,
    /// New ones in a second.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    rate: u32,
    /// How long the server may take to close one.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
    watch_secs: u64,
}

/// Where a connection falls silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// After the TLS handshake
    Tls,
    /// After the upgrade to a websocket
    Upgraded,
}

pub(crate) async fn storm(options: StormOptions) -> anyhow::Result<bool> {
    let StormOptions { load, rate, secs, quiet_secs } = options;
    let (after, within) = (Duration::from_secs(quiet_secs), Duration::from_secs(secs.into()));
    let calls = rate.saturating_mul(secs);
    let burst = Burst { calls, after, within, lasts: Some(STORM_CALL), group: Group::Storm };
    load.run("storm", load.wanted(50, (after + within + CALM).as_secs(), None)?, Some(burst)).await
}

pub(crate) async fn idle(options: IdleOptions) -> anyhow::Result<bool> {
    let IdleOptions { load, connections, stage, rate, watch_secs } = options;
    let (within, lasts) =
        (Duration::from_secs(connections.div_ceil(rate).into()), Duration::from_secs(watch_secs));
    let group = match stage {
        Stage::Tls => Group::SilentTls,
        Stage::Upgraded => Group::Silent,
    };
    let burst = Burst { calls: connections, after: CALM, within, lasts: Some(lasts), group };
    load.run("idle", load.wanted(1, (CALM + within + lasts + CALM).as_secs(), None)?, Some(burst)).await
}

/// Says with which status calls were refused, and which option lets more of them in.
pub(crate) fn refusals(outcome: &Outcome, sheet: &mut Sheet) {
    for (status, calls) in &outcome.refused {
        sheet.cost(format!("refused_with_{status}"), (*calls).into(), "");
        let raise = match status {
            429 => "the tenant's limits.max_streams or limits.max_starts_per_sec are reached",
            503 => "the server drains, or cannot keep more, or has no key; its log says why",
            401 | 403 => {
                "the signature or the account is not the tenant's: --public-url, --auth-token-file, --account"
            }
            _ => continue,
        };
        sheet.notes.push(format!("refused with {status}: {raise}"));
    }
    let refused: u32 = outcome.refused.values().sum();
    if outcome.connect_failures > refused {
        sheet.notes.push(format!(
            "{} connections broke before an answer: ingest.max_connections is reached, open files have run out, or the \
             server did not answer in 10 s",
            outcome.connect_failures - refused
        ));
    }
}

/// Writes what became of connections that said nothing.
pub(crate) fn silences(silent: &Silences, sheet: &mut Sheet) {
    let closed = silent.closed_after.count() as f64;
    let all = closed + f64::from(silent.not_closed);
    if all > 0.0 {
        sheet.figure("silent_connections", all, "", Better::Neither);
        sheet.cost("silent_not_closed", silent.not_closed.into(), "");
        percentiles("silent_closed_after", &silent.closed_after, sheet);
        let ends = silent.ends.iter();
        sheet.notes.extend(ends.map(|(how, times)| format!("closed by the server: {times} × {how}")));
    }
}
