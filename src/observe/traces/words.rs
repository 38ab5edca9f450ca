//! Every name of a span, an event and an attribute, once. `docs/OPERATIONS.md` says what each is; a test compares the two.

use opentelemetry::trace::SpanKind;

/// A kind of work that spans are of.
#[derive(Debug, Clone)]
pub struct Work {
    /// The name of its spans, or what their names begin with.
    pub name: &'static str,
    pub(super) kind: SpanKind,
}

const fn work(name: &'static str, kind: SpanKind) -> Work {
    Work { name, kind }
}

/// One stream of a call, from its handshake to its end.
pub const STREAM: Work = work("stream", SpanKind::Server);
/// The key of a new stream: one of those made ahead, or a new one.
pub const STREAM_KEY: Work = work("stream.key", SpanKind::Internal);
/// One segment on its way to the store, with everything that waits and is tried again.
pub const UPLOAD: Work = work("segment.upload", SpanKind::Client);
/// The end of a recording: manifest, index, final object.
pub const FINISH: Work = work("recording.finish", SpanKind::Internal);
/// One request to the admin API; the operation's id stands behind it.
pub const ADMIN: Work = work("admin", SpanKind::Server);
/// One request for audio, until its last byte.
pub const PLAYBACK: Work = work("playback", SpanKind::Server);
/// One use of the keyring or a key service; what for stands behind it.
pub const KEY: Work = work("key", SpanKind::Client);
/// One attempt to deliver a notice.
pub const DELIVERY: Work = work("webhook.delivery", SpanKind::Client);
/// One look for recordings whose time is over, and their deletion.
pub const SWEEP: Work = work("sweep", SpanKind::Internal);

/// Every kind of work.
pub const WORKS: [Work; 9] = [STREAM, STREAM_KEY, UPLOAD, FINISH, ADMIN, PLAYBACK, KEY, DELIVERY, SWEEP];

/// The tenant's id.
pub const TENANT: &str = "callseal.tenant";
/// The route's name.
pub const ROUTE: &str = "callseal.route";
/// The provider of a route, or the kind of a key service.
pub const PROVIDER: &str = "callseal.provider";
/// The recording's id.
pub const RECORDING: &str = "callseal.recording";
/// The notice's id.
pub const NOTICE: &str = "callseal.notice";
/// The request's id, as in `X-Request-Id` and the audit log.
pub const REQUEST: &str = "callseal.request";
/// What a request of the admin API is for.
pub const OPERATION: &str = "callseal.operation";
/// The role that allows it.
pub const ROLE: &str = "callseal.role";
/// Why a stream ended.
pub const END_CAUSE: &str = "callseal.end_cause";
/// The state of a recording at its end.
pub const LIFE: &str = "callseal.life";
/// The number of a segment.
pub const SEGMENT: &str = "callseal.segment";
/// Bytes of it.
pub const BYTES: &str = "callseal.bytes";
/// Which attempt it is.
pub const ATTEMPT: &str = "callseal.attempt";
/// Recordings that are due.
pub const DUE: &str = "callseal.due";
/// Recordings deleted.
pub const DELETED: &str = "callseal.deleted";
/// Recordings kept because they are held.
pub const HELD: &str = "callseal.held";
/// Recordings that could not be deleted.
pub const FAILED: &str = "callseal.failed";
/// What became of a call that was to be heard.
pub const RESULT: &str = "callseal.result";
/// The HTTP status of an answer.
pub const STATUS: &str = "http.response.status_code";
/// Why something came to nothing: a fixed word.
pub const WHY: &str = "error.type";

/// Every attribute.
pub const ATTRIBUTES: [&str; 20] = [
    TENANT, ROUTE, PROVIDER, RECORDING, NOTICE, REQUEST, OPERATION, ROLE, END_CAUSE, LIFE, SEGMENT, BYTES,
    ATTEMPT, DUE, DELETED, HELD, FAILED, RESULT, STATUS, WHY,
];

/// The connection has become a websocket.
pub const CONNECTED: &str = "connected";
/// The provider has said what stream it is.
pub const STARTED: &str = "started";
/// The recording has begun.
pub const RECORDED: &str = "recording";
/// The caller must agree first.
pub const AWAITS_CONSENT: &str = "awaits_consent";
/// It is tried again.
pub const RETRY: &str = "retry";

/// Every event.
pub const EVENTS: [&str; 5] = [CONNECTED, STARTED, RECORDED, AWAITS_CONSENT, RETRY];
