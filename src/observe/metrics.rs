//! Every metric, once: its name, kind and meaning. `docs/METRICS.md` is tested against this table.
//!
//! Labels come from closed sets; there is never a tenant, call or number in one.

mod labels;
mod names;
mod zero;

use std::time::Duration;

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{journal, store};

pub use labels::labels_of;
pub use names::*;

pub use super::local_histogram::LocalHistogram;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// Its meaning, one sentence.
    pub help: &'static str,
}

const fn metric(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Metric {
    Metric { name, kind, unit, help }
}

/// The table.
pub const ALL: &[Metric] = &[
    metric(MESSAGES_IN, Kind::Counter, Unit::Count, "Websocket messages from providers."),
    metric(BYTES_IN, Kind::Counter, Unit::Bytes, "Bytes of websocket messages from providers."),
    metric(
        MESSAGES_DROPPED,
        Kind::Counter,
        Unit::Count,
        "Messages dropped, by reason; their streams went on.",
    ),
    metric(HANDSHAKES, Kind::Counter, Unit::Count, "Websocket handshakes, by HTTP status."),
    metric(CONNECTIONS, Kind::Gauge, Unit::Count, "Open connections on the public listener."),
    metric(
        PROXIED_WITHOUT_ADDRESS,
        Kind::Counter,
        Unit::Count,
        "Requests of trusted proxies that name no client; the audit log has the proxy's address.",
    ),
    metric(LIVE_STREAMS, Kind::Gauge, Unit::Count, "Streams being recorded."),
    metric(STREAMS_ENDED, Kind::Counter, Unit::Count, "Streams ended, by cause."),
    metric(
        READ_TO_SEALED,
        Kind::Histogram,
        Unit::Seconds,
        "From the start of a read to its frames being sealed.",
    ),
    metric(FRAMES_SEALED, Kind::Counter, Unit::Count, "Audio frames sealed."),
    metric(AUDIO_SEALED, Kind::Counter, Unit::Bytes, "Audio bytes sealed."),
    metric(
        AUDIO_SEALED_MILLIS,
        Kind::Counter,
        Unit::Milliseconds,
        "Audio sealed, in time; two tracks of a call count twice.",
    ),
    metric(AUDIO_LOST, Kind::Counter, Unit::Bytes, "Audio bytes lost, by reason. Normal is 0."),
    metric(journal::FLUSH_DELAY_SECONDS, Kind::Histogram, Unit::Seconds, "From sealing to the journal file."),
    metric(
        journal::SYNC_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "How long making the journal durable took.",
    ),
    metric(journal::WRITTEN_BYTES, Kind::Counter, Unit::Bytes, "Bytes written to the journal."),
    metric(journal::RECORDS, Kind::Counter, Unit::Count, "Records written to the journal."),
    metric(
        journal::DISCARDED_RECORDS,
        Kind::Counter,
        Unit::Count,
        "Records not journaled because no file worked.",
    ),
    metric(journal::FAILURES, Kind::Counter, Unit::Count, "Journal failures, by step and kind. Normal is 0."),
    metric(journal::FILES, Kind::Gauge, Unit::Count, "Journal files of this process."),
    metric(journal::DISK_BYTES, Kind::Gauge, Unit::Bytes, "Bytes of all journal files."),
    metric(journal::MAX_BYTES, Kind::Gauge, Unit::Bytes, "Bytes that all journal files may have."),
    metric(journal::TORN_TAILS, Kind::Counter, Unit::Count, "Torn journal tails cut at start."),
    metric(
        journal::CORRUPT_FILES,
        Kind::Counter,
        Unit::Count,
        "Journal files with wrong bytes. Normal is 0.",
    ),
    metric(
        SEALED_TO_STORED,
        Kind::Histogram,
        Unit::Seconds,
        "From a segment's first frame to its being stored.",
    ),
    metric(SEGMENTS_STORED, Kind::Counter, Unit::Count, "Segments stored and verified."),
    metric(UPLOAD_RETRIES, Kind::Counter, Unit::Count, "Uploads tried again."),
    metric(UPLOAD_WAITING, Kind::Gauge, Unit::Bytes, "Sealed bytes waiting in memory for the store."),
    metric(UPLOAD_SPILLED, Kind::Gauge, Unit::Bytes, "Sealed bytes waiting in the journal for the store."),
    metric(
        BREAKER_OPEN,
        Kind::Gauge,
        Unit::Count,
        "1 while the store fails and is only probed. Normal is 0.",
    ),
    metric(
        OLDEST_UNSTORED,
        Kind::Gauge,
        Unit::Seconds,
        "Age of the oldest segment that waits for the store.",
    ),
    metric(
        DROPPING,
        Kind::Gauge,
        Unit::Count,
        "1 while audio of running calls is dropped before it is sealed. Normal is 0.",
    ),
    metric(
        STORE_LAG,
        Kind::Gauge,
        Unit::Seconds,
        "Age of the oldest sealed frame that is not in the store, those of open segments among them.",
    ),
    metric(
        OLDEST_UNSAVED,
        Kind::Gauge,
        Unit::Seconds,
        "Age of the oldest sealed frame that is neither durable in the journal nor in the store.",
    ),
    metric(RECORDINGS_FINISHED, Kind::Counter, Unit::Count, "Recordings finished, by life."),
    metric(RECORDINGS_RECOVERED, Kind::Counter, Unit::Count, "Recordings finished after a crash."),
    metric(
        RECORDINGS_HANDED_OVER,
        Kind::Counter,
        Unit::Count,
        "Recordings cut off by a crash, stored for a node that opens them to finish.",
    ),
    metric(RECOVERY_FAILED, Kind::Counter, Unit::Count, "Recordings not recovered at start. Normal is 0."),
    metric(
        RECORDINGS_ADOPTED,
        Kind::Counter,
        Unit::Count,
        "Recordings of nodes that never came back, finished by this one.",
    ),
    metric(
        RECORDINGS_TAKEN_OVER,
        Kind::Counter,
        Unit::Count,
        "Recordings of this node that another one had finished meanwhile.",
    ),
    metric(
        REPAIR_FAILED,
        Kind::Counter,
        Unit::Count,
        "Abandoned recordings that a scan could not finish. Normal is 0.",
    ),
    metric(
        RECORDINGS_UNSETTLED,
        Kind::Gauge,
        Unit::Count,
        "Recordings not in their final form at the last scan, running calls among them.",
    ),
    metric(RELAYED_CALLS, Kind::Gauge, Unit::Count, "Calls passed on to an agent now."),
    metric(
        RELAY_LAG,
        Kind::Histogram,
        Unit::Seconds,
        "From a message's being read to its being with the kernel for the other side, by direction.",
    ),
    metric(RELAY_DROPPED, Kind::Counter, Unit::Count, "Messages not passed on, by direction."),
    metric(UPSTREAM_DIALS, Kind::Counter, Unit::Count, "Attempts to reach an agent, by result."),
    metric(AGENTS_LOST, Kind::Counter, Unit::Count, "Agents lost, by what became of the call."),
    metric(HANG_UPS, Kind::Counter, Unit::Count, "Phone calls to be ended for want of an agent, by result."),
    metric(VAPI_WEBHOOKS, Kind::Counter, Unit::Count, "Server messages of Vapi, by kind or refusal."),
    metric(VAPI_CALLS, Kind::Counter, Unit::Count, "Calls that Vapi told of, by what became of them."),
    metric(VAPI_DIALS, Kind::Counter, Unit::Count, "Attempts to reach a listen socket, by result."),
    metric(
        VAPI_SOCKETS_LOST,
        Kind::Counter,
        Unit::Count,
        "Listen sockets that ended before their calls were said to be over.",
    ),
    metric(
        VAPI_FORMAT_IN_DOUBT,
        Kind::Counter,
        Unit::Count,
        "Calls whose audio did not come as its format says.",
    ),
    metric(
        VAPI_UNCONFIRMED,
        Kind::Counter,
        Unit::Count,
        "Calls heard although the store did not say that nobody else does.",
    ),
    metric(TICKETS_UNCONFIRMED, Kind::Counter, Unit::Count, "Tickets taken that the store did not confirm."),
    metric(STREAMS_PAUSED, Kind::Gauge, Unit::Count, "Streams whose recording is paused."),
    metric(LONGEST_PAUSE, Kind::Gauge, Unit::Seconds, "How long the longest pause has lasted."),
    metric(ADMIN_REQUESTS, Kind::Counter, Unit::Count, "Requests to the admin API."),
    metric(
        KEY_SET_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Looks at the keys of an identity provider that failed. Normal is 0.",
    ),
    metric(WITHOUT_CONSENT, Kind::Counter, Unit::Count, "Streams not recorded for want of consent."),
    metric(CALLS_UNRECORDED, Kind::Counter, Unit::Count, "Calls passed on without a recording."),
    metric(
        KEY_ERRORS,
        Kind::Counter,
        Unit::Count,
        "Keys that could not be minted, opened or moved, by use and kind.",
    ),
    metric(
        KEY_REQUESTS,
        Kind::Counter,
        Unit::Count,
        "Requests to keyring and key services, by provider, operation and result.",
    ),
    metric(
        KEY_SECONDS,
        Kind::Histogram,
        Unit::Seconds,
        "Duration of those requests with their repetitions, by provider and operation.",
    ),
    metric(KEYS_WAITING, Kind::Gauge, Unit::Count, "Keys minted ahead of calls."),
    metric(KEYS_LOCKED, Kind::Gauge, Unit::Count, "Keys in locked memory."),
    metric(KEYS_UNLOCKED, Kind::Counter, Unit::Count, "Keys in memory that is not locked. Normal is 0."),
    metric(KEK_AGE, Kind::Gauge, Unit::Seconds, "Age of the oldest of the tenants' KEKs, where it is known."),
    metric(KEKS_DUE, Kind::Gauge, Unit::Count, "Tenants whose KEK should have been rotated."),
    metric(KEKS_OF_UNKNOWN_AGE, Kind::Gauge, Unit::Count, "Tenants whose KEK has no known age."),
    metric(PLAYS, Kind::Counter, Unit::Count, "Playback requests, by result."),
    metric(PLAYED_BYTES, Kind::Counter, Unit::Bytes, "Audio bytes played."),
    metric(
        INTEGRITY_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Stored bytes that failed authentication. Normal is 0.",
    ),
    metric(AUDIT_RECORDS, Kind::Counter, Unit::Count, "Audit records made durable."),
    metric(
        AUDIT_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Audit records not made durable; the action did not happen.",
    ),
    metric(
        INDEX_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Recordings stored and not found by call or number. Normal is 0.",
    ),
    metric(
        AUDIT_FILE_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Audit objects that the file beside the store did not take. Normal is 0.",
    ),
    metric(
        AUDIT_CHECKPOINT_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Audit checkpoints not made durable. Normal is 0.",
    ),
    metric(
        AUDIT_REFUSALS_COUNTED,
        Kind::Counter,
        Unit::Count,
        "Refusals of strangers told in sums instead of one by one.",
    ),
    metric(
        AUDIT_PURGE_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Purges of old audit records that failed. Normal is 0.",
    ),
    metric(RETENTION_DELETED, Kind::Counter, Unit::Count, "Recordings deleted, by reason."),
    metric(
        RETENTION_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Sweeps stopped, recordings not deleted, and later dates that are not proven, by reason. Normal is 0.",
    ),
    metric(
        RETENTION_LAG,
        Kind::Histogram,
        Unit::Seconds,
        "From a recording's last moment to its being gone.",
    ),
    metric(
        RETENTION_OVERDUE,
        Kind::Gauge,
        Unit::Count,
        "Recordings due for more than one sweep interval, neither held nor deleted. Normal is 0.",
    ),
    metric(RETENTION_HELD, Kind::Gauge, Unit::Count, "Recordings whose date has come and that are held."),
    metric(RETENTION_SWEPT, Kind::Gauge, Unit::Seconds, "When the last sweep was finished, Unix time."),
    metric(RETENTION_STOPPED, Kind::Gauge, Unit::Count, "1 while sweeps stop because too much is due."),
    metric(
        store::metered::REQUESTS,
        Kind::Counter,
        Unit::Count,
        "Requests to the store, by operation and result.",
    ),
    metric(store::metered::REQUEST_SECONDS, Kind::Histogram, Unit::Seconds, "Duration of store requests."),
    metric(store::metered::WRITTEN_BYTES, Kind::Counter, Unit::Bytes, "Bytes written to the store."),
    metric(store::metered::READ_BYTES, Kind::Counter, Unit::Bytes, "Bytes read from the store."),
    metric(
        store::probe::CAPABILITY,
        Kind::Gauge,
        Unit::Count,
        "Whether the store was seen to do something, 1 or 0, by feature; set by the probe at start.",
    ),
    metric(
        REQUESTS_OPEN,
        Kind::Gauge,
        Unit::Count,
        "Requests of people about what is kept of them that are open.",
    ),
    metric(
        REQUESTS_OVERDUE,
        Kind::Gauge,
        Unit::Count,
        "Requests of people that should have been dealt with. Normal is 0.",
    ),
    metric(
        REQUESTS_COUNT_FAILURES,
        Kind::Counter,
        Unit::Count,
        "Counts of requests of people that failed; the gauges are old then. Normal is 0.",
    ),
    metric(NOTICES_MADE, Kind::Counter, Unit::Count, "Notices put into the outbox."),
    metric(NOTICES_ATTEMPTS, Kind::Counter, Unit::Count, "Attempts to deliver a notice, by result."),
    metric(NOTICES_DEAD, Kind::Counter, Unit::Count, "Notices not delivered in time. Normal is 0."),
    metric(
        NOTICES_LOST,
        Kind::Counter,
        Unit::Count,
        "Notices that never reached the outbox or cannot be read, by reason. Normal is 0.",
    ),
    metric(
        NOTICES_WAITING,
        Kind::Gauge,
        Unit::Count,
        "Notices in the outbox at the last look, those of other nodes among them.",
    ),
    metric(
        NOTICES_OLDEST,
        Kind::Gauge,
        Unit::Seconds,
        "Age of the oldest notice in the outbox at the last look.",
    ),
    metric(
        STREAMS,
        Kind::Gauge,
        Unit::Count,
        "Streams that are recorded or could be, by provider and state.",
    ),
    metric(TRACES_EXPORTED, Kind::Counter, Unit::Count, "Spans that the collector has taken."),
    metric(
        TRACES_DROPPED,
        Kind::Counter,
        Unit::Count,
        "Spans that the collector does not get, by reason. Normal is 0.",
    ),
    metric(
        LOOP_LAG,
        Kind::Histogram,
        Unit::Seconds,
        "How late a timer of the server's runtime is; timers have a grain of 1 ms.",
    ),
    metric(
        LOOP_LONGEST_LAG,
        Kind::Gauge,
        Unit::Seconds,
        "The longest of these delays in the last 10 to 20 seconds.",
    ),
    metric(BUILD, Kind::Gauge, Unit::Count, "1, with the version as a label."),
    metric(PROCESS_STARTED, Kind::Gauge, Unit::Seconds, "When the process began, Unix time."),
    metric(PROCESS_MAX_FILES, Kind::Gauge, Unit::Count, "Files that the process may have open."),
    metric(
        PROCESS_CPU_MILLIS,
        Kind::Counter,
        Unit::Milliseconds,
        "CPU time that the process has used, on all cores.",
    ),
    metric(PROCESS_MEMORY, Kind::Gauge, Unit::Bytes, "Resident memory of the process."),
    metric(PROCESS_FILES, Kind::Gauge, Unit::Count, "Open files of the process."),
];

/// Bounds of every duration: 50 µs to one minute, for sealing as for a slow store.
const SECONDS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
];

/// Bounds of the time that a deletion is late: one minute to 30 days.
const LAG_SECONDS: &[f64] =
    &[60.0, 600.0, 3600.0, 7200.0, 21_600.0, 86_400.0, 172_800.0, 604_800.0, 2_592_000.0];

/// Why metrics cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up metrics: {0}")]
pub struct MetricsError(String);

/// Installs the recorder of this process and describes every metric.
///
/// # Errors
/// [`MetricsError`] when a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, MetricsError> {
    let failed = |error: &dyn std::error::Error| MetricsError(error.to_string());
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
        .map_err(|error| failed(&error))?
        .set_buckets_for_metric(Matcher::Full(RETENTION_LAG.to_owned()), LAG_SECONDS)
        .map_err(|error| failed(&error))?
        .install_recorder()
        .map_err(|error| failed(&error))?;
    describe_all();
    Ok(handle)
}

fn describe_all() {
    for Metric { name, kind, unit, help } in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *help),
            Kind::Gauge => describe_gauge!(*name, *unit, *help),
            Kind::Histogram => describe_histogram!(*name, *unit, *help),
        }
    }
    zero::show_all();
}

/// Reads CPU time, memory, open files and their limit of this process and sets their metrics. Memory and files are left
/// out where `/proc` is missing.
#[expect(clippy::cast_precision_loss, reason = "memory and files are far below 2^52")]
pub fn sample_process() {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    if let Ok(cpu) = Duration::try_from(cpu) {
        metrics::counter!(PROCESS_CPU_MILLIS).absolute(u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX));
    }
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    // Second field: resident pages of 4 KiB on every platform this runs on.
    if let Some(pages) = statm.split(' ').nth(1).and_then(|field| field.parse::<u64>().ok()) {
        metrics::gauge!(PROCESS_MEMORY).set((pages * 4096) as f64);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        metrics::gauge!(PROCESS_FILES).set(entries.count() as f64);
    }
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        metrics::gauge!(PROCESS_MAX_FILES).set(most as f64);
    }
}
