//! `callseal-load playback`: one long recording, heard by many at the same time and from anywhere.
//!
//! The call is sent as fast as the server takes it, with the timestamps of its length. The recording is compared with
//! what was said, sample by sample; then every byte that a listener hears with the recording.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use callseal::clock;
use callseal::simulate::{CallPlan, HttpsClient, LagHistogram, Pacing};
use clap::{Args, ValueEnum};
use futures_util::{StreamExt, stream};
use tokio::task::JoinSet;

use crate::course::{Audio, Course, Voices};
use crate::ops;
use crate::place::{Open, Place, Wire};
use crate::process::{Process, check_open_files};
use crate::random::SplitMix;
use crate::recordings::{Api, Compared, Encoding, Heard};
use crate::sampler::{Sampler, Tally, Watched};
use crate::scenario::{compared_figures, percentiles, seed};
use crate::sheet::{Better, Failure, Output, Sheet};
use crate::traffic::{self, CallFailed};

/// Bytes of one second: two tracks of μ-law.
const BYTES_PER_SEC: u64 = 16_000;
/// Bytes of a seek: four seconds, about what a player waits for.
const SEEK_BYTES: u64 = 65_536;
/// Seeks at the same time.
const SEEKS_AT_ONCE: usize = 4;
/// The longest life of a link where the node has its defaults.
const LINK_SECS: u64 = 900;

/// The options of `callseal-load playback`.
#[derive(Args)]
pub(crate) struct Playback {
    #[command(flatten)]
    place: Place,
    /// Length of the recording.
    #[arg(long, default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(10..=14_400))]
    recording_secs: u64,
    /// The recording of this seed and length is there already.
    #[arg(long, requires = "seed")]
    recorded: bool,
    /// Who listen at the same time.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    listeners: u32,
    /// How fast they listen.
    #[arg(long, value_enum, default_value = "full")]
    pace: Pace,
    /// Seconds that listeners in real time listen, each from a random position on.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=600))]
    secs: u64,
    /// Jumps to random positions afterwards.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    seeks: u32,
    /// Makes the call, its audio and the positions repeatable; random without it, and part of the result.
    #[arg(long)]
    seed: Option<u64>,
    /// How long the recording may take to be finished after its call, in seconds.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    patience_secs: u64,
    /// p99 of the time from a seek, TCP and TLS included, to its first byte.
    #[arg(long, value_name = "MS")]
    max_ttfb_ms: Option<f64>,
    /// p99 of the server's event loop lag in the worst second, while all listen: what live calls would wait for; needs --ops or --dir.
    #[arg(long, value_name = "MS")]
    max_event_loop_lag_ms: Option<f64>,
    /// The server's CPU time for each second of audio; needs --server-pid or --dir.
    #[arg(long, value_name = "MS")]
    max_cpu_ms_per_listener_second: Option<f64>,
    #[command(flatten)]
    output: Output,
}

/// How fast is listened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pace {
    /// As a loudspeaker does
    Real,
    /// As a download does, the whole recording
    Full,
}

/// One request for a part of the recording.
struct Wish {
    player: HttpsClient,
    path: String,
    /// The whole file, as it was compared.
    whole: Bytes,
    first: u64,
    last: u64,
    /// When a listener in real time stops; the others stop at the end.
    until: Option<Instant>,
}

/// What came of it.
struct Listened {
    first_byte: Duration,
    bytes: u64,
    differing: u64,
    /// How much later than due audio came, of listeners in real time.
    late: LagHistogram,
}

/// What came of all of them.
#[derive(Default)]
struct All {
    first_byte: LagHistogram,
    late: LagHistogram,
    bytes: u64,
    differing: u64,
    failures: Vec<String>,
}

pub(crate) async fn run(options: &Playback) -> anyhow::Result<bool> {
    let mut open = options.place.open(u64::from(options.listeners), Wire::Twilio).await?;
    check_open_files(options.listeners)?;
    let api = open.api.clone().context("playback needs --admin and --admin-token-file, or --dir")?;
    let course = Course::one(Duration::from_secs(options.recording_secs), seed(options.seed)?);
    let mut sheet = Sheet::new("playback", course.seed);
    options.describe(&mut sheet);
    let heard = options.recording(&course, &open, &api, &mut sheet).await?;
    let bar = traffic::progress_bar(u64::from(options.listeners), !options.output.json);
    bar.set_message("listeners");
    options.listen(&api, &heard, open.watched, course.seed, &mut sheet).await?;
    bar.set_message("seeks");
    options.seek(&api, &heard, course.seed, &mut sheet).await?;
    bar.finish_and_clear();
    options.hold(&mut sheet);
    if let Some(own) = open.own.take() {
        own.server.stop()?;
    }
    sheet.finish(&options.output)
}

impl Playback {
    fn describe(&self, sheet: &mut Sheet) {
        sheet.set("recording secs", &self.recording_secs);
        sheet.set("listeners", &self.listeners);
        sheet.set("pace", &format!("{:?}", self.pace).to_lowercase());
        sheet.set("seeks", &self.seeks);
        if self.pace == Pace::Real {
            sheet.set("secs", &self.secs);
        }
    }

    /// Makes the recording unless it is there, and compares it with what was said.
    async fn recording(
        &self,
        course: &Course,
        open: &Open,
        api: &Api,
        sheet: &mut Sheet,
    ) -> anyhow::Result<Heard> {
        let voices = Voices::new(Audio::Noise, course.seed);
        let call = *course.calls.first().context("a course of one call has one")?;
        let began = clock::monotonic();
        if !self.recorded {
            let plan =
                CallPlan { pacing: Pacing::AsFastAsPossible, ..course.plan(call, &open.target, &voices) };
            let placed = traffic::twilio(plan, open.target.tls.clone(), Arc::default()).await;
            placed.map_err(CallFailed::error).context("the call")?;
        }
        let said = course.said(call, open.target.account.as_str(), &voices);
        let patience = Duration::from_secs(self.patience_secs);
        let Ok(heard) = tokio::time::timeout(patience, api.hear(&said)).await else {
            bail!("call {} has no finished recording after {patience:?}", said.call);
        };
        let heard = heard.with_context(|| format!("call {}", said.call))?;
        if !self.recorded {
            let took = clock::since(began).as_secs_f64();
            sheet.figure("recording_made_in_secs", took, "s", Better::Lower);
        }
        let mut compared = Compared::default();
        compared.add(&heard);
        compared_figures(Some(&compared), sheet);
        Ok(heard)
    }

    /// Lets everybody listen at the same time, each by a link of their own.
    async fn listen(
        &self,
        api: &Api,
        heard: &Heard,
        watched: Watched,
        seed: u64,
        sheet: &mut Sheet,
    ) -> anyhow::Result<()> {
        let mut paths = Vec::new();
        for _ in 0..self.listeners {
            paths.push(api.link(&heard.recording, Encoding::Ulaw, Some(LINK_SECS)).await?);
        }
        let before = Costs::now(watched).await?;
        let before_mib =
            watched.process.map(Process::resident_kib).transpose()?.map(|kib| kib as f64 / 1024.0);
        let began = clock::monotonic();
        let sampler = Sampler::start(watched, Arc::new(Tally::default()), began);
        let (mut random, mut listening) = (SplitMix(seed), JoinSet::new());
        let last = (heard.wav.len() as u64).saturating_sub(1);
        for path in paths {
            let (first, until) = match self.pace {
                Pace::Full => (0, None),
                // In the first half, so that there is something to listen to.
                Pace::Real => (random.next() % (last / 2 + 1), Some(began + Duration::from_secs(self.secs))),
            };
            let wish =
                Wish { player: api.player().clone(), path, whole: heard.wav.clone(), first, last, until };
            listening.spawn(wish.listen());
        }
        let mut all = All::default();
        while let Some(listened) = listening.join_next().await {
            all.add(listened.context("a listener's task died")?);
        }
        let took = clock::since(began);
        let costs = Costs::now(watched).await?.since(&before);
        sheet.samples = sampler.stop().await;
        self.listened(&all, took, &costs, sheet);
        let most =
            |column: &str| sheet.samples.iter().filter_map(|sample| sample.value(column)).reduce(f64::max);
        let (peak, lag) = (most("server_memory_mib"), most("event_loop_lag_p99_ms"));
        // What live calls would have waited for.
        if let Some(lag) = lag {
            sheet.cost("event_loop_lag_worst_second_p99_ms", lag, "ms");
        }
        if let (Some(before), Some(peak)) = (before_mib, peak) {
            sheet.figure("server_memory_before_mib", before, "MiB", Better::Neither);
            sheet.cost("server_memory_peak_mib", peak, "MiB");
            sheet.cost(
                "kib_per_listener",
                (peak - before).max(0.0) * 1024.0 / f64::from(self.listeners),
                "KiB",
            );
        }
        Ok(())
    }

    fn listened(&self, all: &All, took: Duration, costs: &Costs, sheet: &mut Sheet) {
        let secs = took.as_secs_f64().max(0.001);
        all.figures("listeners", "listen_ttfb", sheet);
        if self.pace == Pace::Real {
            percentiles("audio_late", &all.late, sheet);
        }
        sheet.figure("listened_secs", secs, "s", Better::Neither);
        // What a server has sent is ahead of what was heard by whatever the sockets hold.
        let bytes = costs.played_bytes.unwrap_or(all.bytes as f64);
        let better = if self.pace == Pace::Full { Better::Higher } else { Better::Neither };
        sheet.figure("opened_mb_per_sec", bytes / 1e6 / secs, "MB/s", better);
        if let (Some(cpu), true) = (costs.cpu, bytes > 0.0) {
            sheet.cost("server_cores", cpu.as_secs_f64() / secs, "");
            let per_second = cpu.as_secs_f64() * 1000.0 / (bytes / BYTES_PER_SEC as f64);
            sheet.cost("cpu_ms_per_listener_second", per_second, "ms");
            if per_second > 0.0 {
                sheet.figure("listeners_per_core", 1000.0 / per_second, "", Better::Higher);
            }
        }
    }

    /// Jumps about.
    async fn seek(&self, api: &Api, heard: &Heard, seed: u64, sheet: &mut Sheet) -> anyhow::Result<()> {
        if self.seeks == 0 {
            return Ok(());
        }
        let path = api.link(&heard.recording, Encoding::Ulaw, Some(LINK_SECS)).await?;
        let (mut random, length) = (SplitMix(!seed), heard.wav.len() as u64);
        let wishes = (0..self.seeks).map(|_| {
            let first = random.next() % length.max(1);
            let last = (first + SEEK_BYTES).min(length).saturating_sub(1);
            let (player, path, whole) = (api.player().clone(), path.clone(), heard.wav.clone());
            Wish { player, path, whole, first, last, until: None }.listen()
        });
        let mut seeking = stream::iter(wishes).buffer_unordered(SEEKS_AT_ONCE);
        let mut all = All::default();
        while let Some(listened) = seeking.next().await {
            all.add(listened);
        }
        all.figures("seeks", "seek_ttfb", sheet);
        Ok(())
    }

    fn hold(&self, sheet: &mut Sheet) {
        for name in ["silently_lost_ms", "declared_lost_ms"] {
            sheet.bound(name, Some(0.0));
        }
        for what in ["listeners", "seeks"] {
            if sheet.value(what).is_some() {
                sheet.bound(&format!("{what}_failed"), Some(0.0));
                sheet.bound(&format!("{what}_differing_bytes"), Some(0.0));
            }
        }
        sheet.bound("seek_ttfb_p99_ms", self.max_ttfb_ms);
        sheet.bound("event_loop_lag_worst_second_p99_ms", self.max_event_loop_lag_ms);
        sheet.bound("cpu_ms_per_listener_second", self.max_cpu_ms_per_listener_second);
    }
}

impl Wish {
    /// Listens and compares.
    async fn listen(self) -> anyhow::Result<Listened> {
        let Self { player, path, whole, first, last, until } = self;
        let range = format!("bytes={first}-{last}");
        let began = clock::monotonic();
        let mut answer = player.get_streaming(&path, &[("range", &range)]).await?;
        ensure!(answer.status == 206, "status {}", answer.status);
        let mut expected = whole.get(bounds(first, last)).context("a range beyond the end")?;
        let mut listened =
            Listened { first_byte: Duration::ZERO, bytes: 0, differing: 0, late: LagHistogram::default() };
        let mut playing_since = None;
        while let Some(chunk) = answer.chunk().await.context("the answer breaks off")? {
            let playing_since = *playing_since.get_or_insert_with(|| {
                listened.first_byte = clock::since(began);
                clock::monotonic()
            });
            let (same, rest) = expected.split_at_checked(chunk.len()).context("more than was asked for")?;
            expected = rest;
            listened.differing += differing(same, &chunk);
            if let Some(until) = until {
                let due = playing_since + played_in(listened.bytes);
                listened.late.record(clock::monotonic().saturating_duration_since(due));
                let heard = playing_since + played_in(listened.bytes + chunk.len() as u64);
                tokio::time::sleep_until(heard.min(until).into()).await;
            }
            listened.bytes += chunk.len() as u64;
            if until.is_some_and(|until| clock::monotonic() >= until) {
                return Ok(listened);
            }
        }
        ensure!(expected.is_empty(), "the answer ends {} bytes early", expected.len());
        Ok(listened)
    }
}

fn bounds(first: u64, last: u64) -> std::ops::RangeInclusive<usize> {
    let index = |byte| usize::try_from(byte).unwrap_or(usize::MAX);
    index(first)..=index(last)
}

/// How long so many bytes are heard.
fn played_in(bytes: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / BYTES_PER_SEC)
}

fn differing(one: &[u8], other: &[u8]) -> u64 {
    if one == other { 0 } else { one.iter().zip(other).filter(|(one, other)| one != other).count() as u64 }
}

impl All {
    fn add(&mut self, listened: anyhow::Result<Listened>) {
        match listened {
            Ok(listened) => {
                self.first_byte.record(listened.first_byte);
                self.late.merge(&listened.late);
                self.bytes += listened.bytes;
                self.differing += listened.differing;
            }
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }

    fn figures(&self, what: &str, first_byte: &str, sheet: &mut Sheet) {
        let failed = self.failures.len() as f64;
        sheet.figure(what, self.first_byte.count() as f64 + failed, "", Better::Neither);
        sheet.cost(format!("{what}_failed"), failed, "");
        sheet.cost(format!("{what}_differing_bytes"), self.differing as f64, "bytes");
        percentiles(first_byte, &self.first_byte, sheet);
        for failure in self.failures.iter().take(10) {
            sheet.failures.push(Failure { what: format!("{what}: {failure}"), calls: 1 });
        }
    }
}

/// What the server has spent and sent.
struct Costs {
    cpu: Option<Duration>,
    played_bytes: Option<f64>,
}

impl Costs {
    async fn now(watched: Watched) -> anyhow::Result<Self> {
        let page = match watched.ops {
            Some(ops) => ops::look(ops).await.ok(),
            None => None,
        };
        let played_bytes = page.map(|page| page.sum("playback_bytes_total").unwrap_or(0.0));
        Ok(Self { cpu: watched.process.map(Process::cpu).transpose()?, played_bytes })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            cpu: self.cpu.zip(before.cpu).map(|(now, before)| now.saturating_sub(before)),
            played_bytes: self.played_bytes.zip(before.played_bytes).map(|(now, before)| now - before),
        }
    }
}
