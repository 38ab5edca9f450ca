//! Which labels each metric has. A test reads the sources and holds this table against what they give.

use super::*;
use crate::{journal, store};

/// Metrics with labels; all others have none.
const LABELS: &[(&str, &[&str])] = &[
    (MESSAGES_DROPPED, &["reason"]),
    (HANDSHAKES, &["status"]),
    (STREAMS_ENDED, &["cause"]),
    (STREAMS, &["provider", "state"]),
    (AUDIO_LOST, &["reason"]),
    (journal::FAILURES, &["step", "kind"]),
    (RECORDINGS_FINISHED, &["life"]),
    (RELAY_LAG, &["direction"]),
    (RELAY_DROPPED, &["direction"]),
    (UPSTREAM_DIALS, &["result"]),
    (AGENTS_LOST, &["action"]),
    (HANG_UPS, &["result"]),
    (VAPI_WEBHOOKS, &["result"]),
    (VAPI_CALLS, &["result"]),
    (VAPI_DIALS, &["result"]),
    (ADMIN_REQUESTS, &["operation", "status"]),
    (KEY_ERRORS, &["use", "kind"]),
    (KEY_REQUESTS, &["provider", "operation", "result"]),
    (KEY_SECONDS, &["provider", "operation"]),
    (PLAYS, &["result"]),
    (RETENTION_DELETED, &["reason"]),
    (RETENTION_FAILURES, &["reason"]),
    (store::metered::REQUESTS, &["operation", "outcome"]),
    (store::metered::REQUEST_SECONDS, &["operation"]),
    (store::metered::WRITTEN_BYTES, &["operation"]),
    (store::probe::CAPABILITY, &["feature"]),
    (NOTICES_ATTEMPTS, &["result"]),
    (NOTICES_LOST, &["reason"]),
    (TRACES_DROPPED, &["reason"]),
    (BUILD, &["version"]),
];

/// Returns the names of a metric's labels.
pub fn labels_of(name: &str) -> &'static [&'static str] {
    LABELS.iter().find(|(labelled, _)| *labelled == name).map_or(&[], |(_, labels)| *labels)
}
