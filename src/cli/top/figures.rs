//! The figures of a node: what its metrics page says, with rates and quantiles of the last seconds. Pure.
//!
//! No label and no name of the page is shown, but the version: whatever page it is, what is shown are our words and numbers.

use std::time::Instant;

use crate::journal;
use crate::observe::metrics as names;
use crate::observe::page::{Buckets, Page};
use crate::store::metered;

/// How a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Normal,
    /// Somebody should look.
    Odd,
    /// Audio is lost or may be.
    Bad,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Count,
    PerSecond,
    Seconds,
    /// Seconds, the upper bound of a bucket.
    AtMostSeconds,
    Bytes,
    BytesPerSecond,
    /// 1 is a whole core.
    Cores,
    /// 1 is all of it.
    Share,
    /// 1 or 0.
    YesNo,
}

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    /// Its name in JSON.
    pub(super) name: &'static str,
    /// Its name for people, at most 19 characters.
    pub(super) label: &'static str,
    pub(super) unit: Unit,
    /// `None` when the page does not say.
    pub(super) value: Option<f64>,
    pub(super) level: Level,
}

/// Figures that belong together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Section {
    /// Its name in JSON.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) figures: Vec<Figure>,
}

/// Whether audio is being lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    No,
    /// Nothing was lost for certain, and something is bad that may have cost audio or will if it goes on.
    AtRisk,
    /// Some was, or whole calls, since the node began or the view did.
    Lost,
    Now,
    /// The page does not say.
    Unknown,
}

/// What is normally 0 and counted from the start of a node on.
struct Loss {
    name: &'static str,
    label: &'static str,
    unit: Unit,
    level: Level,
    of: fn(&Page) -> Option<f64>,
}

const fn loss(
    name: &'static str,
    label: &'static str,
    unit: Unit,
    level: Level,
    of: fn(&Page) -> Option<f64>,
) -> Loss {
    Loss { name, label, unit, level, of }
}

const REASONS: [&str; 2] = ["overload", "lost_before_us"];

const LOSSES: [Loss; 9] = [
    loss("audio_overload_bytes", "audio, overload", Unit::Bytes, Level::Bad, |page| {
        lost_for(page, "overload")
    }),
    loss("audio_lost_before_us_bytes", "audio, before us", Unit::Bytes, Level::Bad, |page| {
        lost_for(page, "lost_before_us")
    }),
    loss("audio_other_bytes", "audio, other", Unit::Bytes, Level::Bad, |page| {
        let known: f64 = REASONS.into_iter().filter_map(|reason| lost_for(page, reason)).sum();
        page.sum(names::AUDIO_LOST).map(|all| all - known)
    }),
    loss("calls_unrecorded", "calls unrecorded", Unit::Count, Level::Bad, |page| {
        page.sum(names::CALLS_UNRECORDED)
    }),
    loss("journal_failures", "journal failures", Unit::Count, Level::Bad, |page| page.sum(journal::FAILURES)),
    loss("integrity_failures", "integrity failures", Unit::Count, Level::Bad, |page| {
        page.sum(names::INTEGRITY_FAILURES)
    }),
    loss("recoveries_failed", "recoveries failed", Unit::Count, Level::Bad, |page| {
        page.sum(names::RECOVERY_FAILED)
    }),
    loss("messages_dropped", "messages dropped", Unit::Count, Level::Odd, |page| {
        page.sum(names::MESSAGES_DROPPED)
    }),
    loss("webhooks_lost", "webhooks lost", Unit::Count, Level::Odd, |page| {
        Some(page.sum(names::NOTICES_LOST)? + page.sum(names::NOTICES_DEAD)?)
    }),
];

/// How many losses are told apart.
pub(super) const KINDS_OF_LOSS: usize = LOSSES.len();

/// Counters of which rates are shown.
const RATES: [&str; 8] = [
    names::MESSAGES_IN,
    names::AUDIO_SEALED_MILLIS,
    names::FRAMES_SEALED,
    journal::RECORDS,
    names::SEGMENTS_STORED,
    metered::WRITTEN_BYTES,
    names::UPLOAD_RETRIES,
    names::PROCESS_CPU_MILLIS,
];

/// Histograms of which quantiles are shown.
const DELAYS: [&str; 3] = [names::LOOP_LAG, journal::FLUSH_DELAY_SECONDS, names::RELAY_LAG];

/// The counters of one look, of which a later one makes rates and quantiles.
#[derive(Debug, Clone)]
pub(super) struct Counted {
    pub(super) at: Instant,
    rates: [Option<f64>; RATES.len()],
    delays: [Buckets; DELAYS.len()],
}

/// A page beside the counters of an earlier one.
struct Between<'a> {
    page: &'a Page,
    now: &'a Counted,
    /// Missing at the first look.
    before: Option<&'a Counted>,
}

/// Everything that one look shows of a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct View {
    pub(super) at: Instant,
    /// The node's version, short and printable; empty for a page that is not callseal's.
    pub(super) version: String,
    /// When the node began, Unix seconds.
    pub(super) started: Option<f64>,
    pub(super) uptime_seconds: Option<f64>,
    pub(super) verdict: Verdict,
    pub(super) sections: Vec<Section>,
}

impl Counted {
    pub(super) fn of(page: &Page, at: Instant) -> Self {
        Self { at, rates: RATES.map(|name| page.sum(name)), delays: DELAYS.map(|name| page.buckets(name)) }
    }
}

impl View {
    /// Makes the view of a page, looked at when the wall clock said `wall_seconds`. `carried` is what was lost before the
    /// node was started anew.
    pub(super) fn new(
        page: &Page,
        now: &Counted,
        before: Option<&Counted>,
        carried: &[f64; KINDS_OF_LOSS],
        wall_seconds: f64,
    ) -> Self {
        let between = Between { page, now, before };
        let started = started(page);
        let sections = vec![
            losses(page, carried),
            delays(&between),
            process(&between),
            calls(page),
            waiting(&between),
            rates(&between),
        ];
        Self {
            at: now.at,
            version: version(page),
            started,
            uptime_seconds: started.map(|started| (wall_seconds - started).max(0.0)),
            verdict: verdict(page, &sections),
            sections,
        }
    }

    /// Returns all figures in their order.
    pub(super) fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.sections.iter().flat_map(|section| &section.figures)
    }

    /// Returns a figure by its name.
    pub(super) fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures().find(|figure| figure.name == name)
    }

    /// Returns what was lost, in the order of the table.
    pub(super) fn lost(&self) -> [f64; KINDS_OF_LOSS] {
        LOSSES.map(|Loss { name, .. }| self.figure(name).and_then(|figure| figure.value).unwrap_or(0.0))
    }

    /// Returns how many bytes of audio were lost.
    pub(super) fn audio_lost(&self) -> f64 {
        let audio = figures_of(&self.sections, "losses").filter(|figure| figure.unit == Unit::Bytes);
        audio.filter_map(|figure| figure.value).sum()
    }
}

impl Between<'_> {
    /// Returns what a counter gains in a second; `None` at the first look and for what the page does not have.
    fn rate(&self, name: &str) -> Option<f64> {
        let at = RATES.iter().position(|known| *known == name)?;
        let before = self.before?;
        let seconds = self.now.at.saturating_duration_since(before.at).as_secs_f64();
        let gained = (*self.now.rates.get(at)?)? - (*before.rates.get(at)?)?;
        Some(gained.max(0.0) / seconds.max(0.001))
    }

    fn p99(&self, name: &str) -> Option<f64> {
        let at = DELAYS.iter().position(|known| *known == name)?;
        self.now.delays.get(at)?.quantile_since(self.before?.delays.get(at)?, 0.99)
    }
}

impl Level {
    fn of(value: Option<f64>, odd: f64, bad: f64) -> Self {
        match value {
            Some(value) if value > bad => Self::Bad,
            Some(value) if value > odd => Self::Odd,
            Some(_) | None => Self::Normal,
        }
    }
}

fn figure(name: &'static str, label: &'static str, unit: Unit, value: Option<f64>) -> Figure {
    Figure { name, label, unit, value, level: Level::Normal }
}

impl Figure {
    /// Judges it: odd or bad above these values. Those of `config/prometheus/alerts.yml` where it has the metric.
    fn judged(self, odd: f64, bad: f64) -> Self {
        Self { level: Level::of(self.value, odd, bad), ..self }
    }
}

const NEVER: f64 = f64::INFINITY;

fn lost_for(page: &Page, reason: &str) -> Option<f64> {
    page.sum_where(names::AUDIO_LOST, "reason", reason)
}

fn losses(page: &Page, carried: &[f64; KINDS_OF_LOSS]) -> Section {
    let figures = LOSSES.iter().zip(carried).map(|(Loss { name, label, unit, level, of }, carried)| {
        let value = of(page).map(|value| value + carried);
        let level = if value.is_some_and(|value| value > 0.0) { *level } else { Level::Normal };
        Figure { level, ..figure(name, label, *unit, value) }
    });
    Section { name: "losses", title: "lost since the start", figures: figures.collect() }
}

fn delays(between: &Between<'_>) -> Section {
    let now = |name| between.page.sum(name);
    let figures = vec![
        figure("oldest_unsaved_seconds", "oldest unsaved", Unit::Seconds, now(names::OLDEST_UNSAVED))
            .judged(0.5, 2.0),
        figure("store_lag_seconds", "store lag", Unit::Seconds, now(names::STORE_LAG)).judged(30.0, 60.0),
        figure(
            "event_loop_longest_lag_seconds",
            "event loop, longest",
            Unit::Seconds,
            now(names::LOOP_LONGEST_LAG),
        )
        .judged(0.05, 0.5),
        figure(
            "event_loop_lag_p99_seconds",
            "event loop, p99",
            Unit::AtMostSeconds,
            between.p99(names::LOOP_LAG),
        )
        .judged(0.025, NEVER),
        figure(
            "sealed_to_journal_p99_seconds",
            "to journal, p99",
            Unit::AtMostSeconds,
            between.p99(journal::FLUSH_DELAY_SECONDS),
        ),
        figure("relay_p99_seconds", "relay, p99", Unit::AtMostSeconds, between.p99(names::RELAY_LAG))
            .judged(0.01, NEVER),
    ];
    Section { name: "delays", title: "delays", figures }
}

fn process(between: &Between<'_>) -> Section {
    let (files, most) = (between.page.sum(names::PROCESS_FILES), between.page.sum(names::PROCESS_MAX_FILES));
    let cores = between.rate(names::PROCESS_CPU_MILLIS).map(|millis| millis / 1000.0);
    let level = Level::of(share(files, most), NEVER, 0.8);
    let figures = vec![
        figure("memory_bytes", "memory", Unit::Bytes, between.page.sum(names::PROCESS_MEMORY)),
        Figure { level, ..figure("open_files", "open files", Unit::Count, files) },
        figure("cpu_cores", "CPU cores", Unit::Cores, cores),
    ];
    Section { name: "process", title: "process", figures }
}

fn calls(page: &Page) -> Section {
    let of_provider = |provider| page.sum_where(names::STREAMS, "provider", provider);
    let paused = page.sum_where(names::STREAMS, "state", "paused");
    let level = Level::of(page.sum(names::LONGEST_PAUSE), 300.0, NEVER);
    let figures = vec![
        figure("live_streams", "live streams", Unit::Count, page.sum(names::LIVE_STREAMS)),
        figure("twilio_streams", "  Twilio", Unit::Count, of_provider("twilio")),
        figure("vapi_streams", "  Vapi", Unit::Count, of_provider("vapi")),
        Figure { level, ..figure("paused_streams", "  paused", Unit::Count, paused) },
        figure("relayed_calls", "passed on to agents", Unit::Count, page.sum(names::RELAYED_CALLS)),
    ];
    Section { name: "calls", title: "calls", figures }
}

fn waiting(between: &Between<'_>) -> Section {
    let now = |name| between.page.sum(name);
    let used = share(now(journal::DISK_BYTES), now(journal::MAX_BYTES));
    let figures = vec![
        figure("store_away", "store away", Unit::YesNo, now(names::BREAKER_OPEN)).judged(NEVER, 0.0),
        figure("waiting_in_memory_bytes", "waits in memory", Unit::Bytes, now(names::UPLOAD_WAITING)),
        figure("waiting_in_journal_bytes", "waits in journal", Unit::Bytes, now(names::UPLOAD_SPILLED)),
        figure("journal_used_share", "journal used", Unit::Share, used).judged(NEVER, 0.8),
        figure(
            "upload_retries_per_second",
            "upload retries",
            Unit::PerSecond,
            between.rate(names::UPLOAD_RETRIES),
        )
        .judged(1.0, NEVER),
        figure("envelopes_ready", "envelopes ready", Unit::Count, now(names::KEYS_WAITING)),
        figure("webhooks_waiting", "webhooks waiting", Unit::Count, now(names::NOTICES_WAITING)),
        figure("oldest_webhook_seconds", "oldest webhook", Unit::Seconds, now(names::NOTICES_OLDEST))
            .judged(3600.0, NEVER),
    ];
    Section { name: "waiting", title: "store and backlog", figures }
}

fn rates(between: &Between<'_>) -> Section {
    let rate = |name| between.rate(name);
    let audio = rate(names::AUDIO_SEALED_MILLIS).map(|millis| millis / 1000.0);
    let figures = vec![
        figure("messages_per_second", "messages", Unit::PerSecond, rate(names::MESSAGES_IN)),
        figure("audio_seconds_per_second", "audio seconds", Unit::PerSecond, audio),
        figure("frames_sealed_per_second", "frames sealed", Unit::PerSecond, rate(names::FRAMES_SEALED)),
        figure("journal_records_per_second", "journal records", Unit::PerSecond, rate(journal::RECORDS)),
        figure(
            "segments_stored_per_second",
            "segments stored",
            Unit::PerSecond,
            rate(names::SEGMENTS_STORED),
        ),
        figure("stored_bytes_per_second", "stored", Unit::BytesPerSecond, rate(metered::WRITTEN_BYTES)),
    ];
    Section { name: "rates", title: "each second", figures }
}

fn share(part: Option<f64>, all: Option<f64>) -> Option<f64> {
    all.filter(|all| *all > 0.0).zip(part).map(|(all, part)| part / all)
}

/// Returns when the node began, Unix seconds.
pub(super) fn started(page: &Page) -> Option<f64> {
    page.sum(names::PROCESS_STARTED).filter(|started| *started > 0.0)
}

fn version(page: &Page) -> String {
    let version = page.named(names::BUILD).find_map(|series| series.label("version")).unwrap_or_default();
    version.chars().filter(char::is_ascii_graphic).take(32).collect()
}

fn verdict(page: &Page, sections: &[Section]) -> Verdict {
    let says = [names::AUDIO_LOST, names::OLDEST_UNSAVED, names::STORE_LAG]
        .iter()
        .all(|name| page.sum(name).is_some());
    let Some(dropping) = page.sum(names::DROPPING).filter(|_| says) else { return Verdict::Unknown };
    let bad = |name| figures_of(sections, name).filter(|figure| figure.level == Level::Bad);
    if dropping > 0.0 {
        Verdict::Now
    } else if bad("losses").any(|figure| figure.unit == Unit::Bytes || figure.name == "calls_unrecorded") {
        Verdict::Lost
    } else if ["losses", "delays", "waiting"].into_iter().any(|name| bad(name).next().is_some()) {
        Verdict::AtRisk
    } else {
        Verdict::No
    }
}

fn figures_of<'a>(sections: &'a [Section], name: &'a str) -> impl Iterator<Item = &'a Figure> {
    sections.iter().filter(move |section| section.name == name).flat_map(|section| &section.figures)
}
