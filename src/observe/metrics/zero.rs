//! What is shown as zero from the start: whatever an alert looks at. A series that only appears with its first event
//! is no increase to Prometheus, so the first loss would wake nobody.

use metrics::{counter, gauge, histogram};

use super::*;
use crate::clock;
use crate::journal::{self, FailureKind, Step};

/// Counters without labels.
const COUNTERS: [&str; 25] = [
    AUDIT_CHECKPOINT_FAILURES,
    AUDIT_FAILURES,
    AUDIT_FILE_FAILURES,
    AUDIT_PURGE_FAILURES,
    AUDIO_SEALED,
    AUDIO_SEALED_MILLIS,
    BYTES_IN,
    CALLS_UNRECORDED,
    FRAMES_SEALED,
    INDEX_FAILURES,
    INTEGRITY_FAILURES,
    KEYS_UNLOCKED,
    MESSAGES_IN,
    NOTICES_DEAD,
    PLAYED_BYTES,
    PROXIED_WITHOUT_ADDRESS,
    RECORDINGS_RECOVERED,
    RECOVERY_FAILED,
    REPAIR_FAILED,
    SEGMENTS_STORED,
    TRACES_EXPORTED,
    UPLOAD_RETRIES,
    WITHOUT_CONSENT,
    journal::DISCARDED_RECORDS,
    journal::CORRUPT_FILES,
];

/// Counters with one label, and its values.
const BY_ONE: [(&str, &str, &[&str]); 10] = [
    (AUDIO_LOST, "reason", &["overload", "lost_before_us"]),
    (RETENTION_FAILURES, "reason", &["clock", "too_much_due", "store", "recording", "kept_until"]),
    (NOTICES_LOST, "reason", &["queue_full", "random", "unreadable"]),
    (HANDSHAKES, "status", &["101", "403", "429", "503", "no_place"]),
    (AGENTS_LOST, "action", &["hold", "hangup", "close"]),
    (UPSTREAM_DIALS, "result", &["opened", "unreachable", "tls", "refused", "protocol", "timeout"]),
    (RELAY_DROPPED, "direction", &["to_agent", "to_provider"]),
    (PLAYS, "result", &["allowed"]),
    (TRACES_DROPPED, "reason", &["queue_full", "unavailable", "refused", "rejected", "shutdown"]),
    (
        MESSAGES_DROPPED,
        "reason",
        &[
            "binary",
            "not_an_event",
            "too_deep",
            "bad_media",
            "bad_base64",
            "unknown_track",
            "repeated_start",
            "after_stop",
        ],
    ),
];

/// Gauges that are set by what may not happen for hours.
const GAUGES: [&str; 8] = [
    CONNECTIONS,
    LIVE_STREAMS,
    RELAYED_CALLS,
    RETENTION_OVERDUE,
    RETENTION_STOPPED,
    NOTICES_OLDEST,
    NOTICES_WAITING,
    LONGEST_PAUSE,
];

/// Shows them.
pub(super) fn show_all() {
    for name in COUNTERS {
        counter!(name).absolute(0);
    }
    for (name, label, values) in BY_ONE {
        for value in values {
            counter!(name, label => *value).absolute(0);
        }
    }
    for purpose in ["mint", "open", "rewrap"] {
        for kind in
            ["bad_envelope", "bad_login", "denied", "foreign_kek", "no_kek", "timed_out", "unavailable"]
        {
            counter!(KEY_ERRORS, "use" => purpose, "kind" => kind).absolute(0);
        }
    }
    for step in [Step::Create, Step::Write, Step::Sync, Step::Remove] {
        for kind in [FailureKind::NoSpace, FailureKind::Limit, FailureKind::Denied, FailureKind::Disk] {
            counter!(journal::FAILURES, "step" => step.label(), "kind" => kind.label()).absolute(0);
        }
    }
    for name in GAUGES {
        gauge!(name).set(0.0);
    }
    for direction in ["to_agent", "to_provider"] {
        drop(histogram!(RELAY_LAG, "direction" => direction));
    }
    for name in [READ_TO_SEALED, SEALED_TO_STORED, journal::FLUSH_DELAY_SECONDS, journal::SYNC_SECONDS] {
        drop(histogram!(name));
    }
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let started = std::time::Duration::from_millis(clock::wall().0);
    gauge!(PROCESS_STARTED).set(started.as_secs_f64());
}
