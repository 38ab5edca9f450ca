//! How connections and players are served: limits, times, logs.
//!
//! The reason for each number stands beside the option in `config/callseal.toml`.

use std::time::Duration;

use toml::Table;
use tracing::Level;

use super::raw;
use super::recipient::KeysRole;
use super::scope::{Bounds, Scope, Words};

const MAX_CONNECTIONS: Bounds = Bounds::new(10_000, 1..=1_000_000);
const MAX_MESSAGE_BYTES: Bounds = Bounds::new(65_536, 4_096..=1_048_576);
const MAX_JSON_DEPTH: Bounds = Bounds::new(32, 4..=128);
const MAX_DROPPED_MESSAGES: Bounds = Bounds::new(100, 0..=100_000);
const MAX_STREAM_HOURS: Bounds = Bounds::new(24, 1..=24);
const TLS_HANDSHAKE_TIMEOUT_MS: Bounds = Bounds::new(5_000, 100..=60_000);
const HEADER_TIMEOUT_MS: Bounds = Bounds::new(5_000, 100..=60_000);
const START_TIMEOUT_MS: Bounds = Bounds::new(10_000, 100..=60_000);
const PING_AFTER_MS: Bounds = Bounds::new(30_000, 100..=600_000);
const DEAD_AFTER_MS: Bounds = Bounds::new(20_000, 100..=600_000);
const READ_BUFFER_BYTES: Bounds = Bounds::new(1_024, 1_024..=1_048_576);
const WRITE_BUFFER_BYTES: Bounds = Bounds::new(4_096, 4_096..=1_048_576);
const DEFAULT_TTL_SECS: Bounds = Bounds::new(300, 1..=86_400);
const MAX_TTL_SECS: Bounds = Bounds::new(900, 1..=86_400);
const CLOCK_SKEW_SECS: Bounds = Bounds::new(30, 0..=300);
const CUT_AFTER_EXP_SECS: Bounds = Bounds::new(60, 0..=300);
const REPAIR_AFTER_SECS: Bounds = Bounds::new(3_600, 1..=604_800);
const REPAIR_INTERVAL_SECS: Bounds = Bounds::new(300, 1..=86_400);
const DRAIN_MAX_SECS: Bounds = Bounds::new(14_400, 1..=86_400);

/// The limits of the providers' connections.
#[derive(Debug, Clone)]
pub struct Ingest {
    /// How many connections the public listener holds at once.
    pub max_connections: usize,
    /// The longest provider message.
    pub max_message_bytes: usize,
    /// How deep a provider message may nest.
    pub max_json_depth: usize,
    /// How many messages of one stream may be dropped as unreadable before it is closed.
    pub max_dropped_messages: u32,
    /// The longest stream; a tenant may have less.
    pub max_stream: Duration,
    /// From accept to the end of the TLS handshake.
    pub tls_handshake_timeout: Duration,
    /// From the end of the handshake to the end of the request's head.
    pub header_timeout: Duration,
    /// From the upgrade to the provider's start message.
    pub start_timeout: Duration,
    /// The silence after which a ping is sent.
    pub ping_after: Duration,
    /// The silence after that ping that ends the connection.
    pub dead_after: Duration,
    /// The read buffer of each websocket.
    pub read_buffer_bytes: usize,
    /// The write buffer of each websocket.
    pub write_buffer_bytes: usize,
}

impl Ingest {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Ingest) = top.section("ingest", table);
        Self {
            max_connections: scope.size("max_connections", raw.max_connections, &MAX_CONNECTIONS),
            max_message_bytes: scope.size("max_message_bytes", raw.max_message_bytes, &MAX_MESSAGE_BYTES),
            max_json_depth: scope.size("max_json_depth", raw.max_json_depth, &MAX_JSON_DEPTH),
            max_dropped_messages: scope.count(
                "max_dropped_messages",
                raw.max_dropped_messages,
                &MAX_DROPPED_MESSAGES,
            ),
            max_stream: scope.hours("max_stream_hours", raw.max_stream_hours, &MAX_STREAM_HOURS),
            tls_handshake_timeout: scope.millis(
                "tls_handshake_timeout_ms",
                raw.tls_handshake_timeout_ms,
                &TLS_HANDSHAKE_TIMEOUT_MS,
            ),
            header_timeout: scope.millis("header_timeout_ms", raw.header_timeout_ms, &HEADER_TIMEOUT_MS),
            start_timeout: scope.millis("start_timeout_ms", raw.start_timeout_ms, &START_TIMEOUT_MS),
            ping_after: scope.millis("ping_after_ms", raw.ping_after_ms, &PING_AFTER_MS),
            dead_after: scope.millis("dead_after_ms", raw.dead_after_ms, &DEAD_AFTER_MS),
            read_buffer_bytes: scope.size("read_buffer_bytes", raw.read_buffer_bytes, &READ_BUFFER_BYTES),
            write_buffer_bytes: scope.size("write_buffer_bytes", raw.write_buffer_bytes, &WRITE_BUFFER_BYTES),
        }
    }
}

/// The times of grants.
#[derive(Debug, Clone)]
pub struct Playback {
    /// How long a grant lives when nobody asks for a time; a tenant's `max_ttl` may be shorter.
    pub default_ttl: Duration,
    /// The longest life of a grant on this node, and a tenant's default.
    pub max_ttl: Duration,
    /// How far the clock of a minting machine may be off.
    pub clock_skew: Duration,
    /// How long after its expiry a grant's running transfer may go on.
    pub cut_after_exp: Duration,
}

impl Playback {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Playback) = top.section("playback", table);
        let playback = Self {
            default_ttl: scope.secs("default_ttl_secs", raw.default_ttl_secs, &DEFAULT_TTL_SECS),
            max_ttl: scope.secs("max_ttl_secs", raw.max_ttl_secs, &MAX_TTL_SECS),
            clock_skew: scope.secs("clock_skew_secs", raw.clock_skew_secs, &CLOCK_SKEW_SECS),
            cut_after_exp: scope.secs("cut_after_exp_secs", raw.cut_after_exp_secs, &CUT_AFTER_EXP_SECS),
        };
        if playback.default_ttl > playback.max_ttl {
            let (default, max) = (playback.default_ttl.as_secs(), playback.max_ttl.as_secs());
            let problem = format!("{default} is given; allowed: at most playback.max_ttl_secs, {max}");
            scope.fault("default_ttl_secs", problem);
        }
        playback
    }
}

/// When recordings of other nodes are finished by this one.
#[derive(Debug, Clone)]
pub struct Repair {
    /// Whether it is done at all.
    pub enabled: bool,
    /// The age of a recording's newest object from which on its node counts as lost.
    pub after: Duration,
    /// From one look at the store to the next.
    pub interval: Duration,
}

impl Repair {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, role: KeysRole) -> Self {
        let (scope, raw): (_, raw::Repair) = top.section("repair", table);
        Self {
            enabled: role.opener(&scope, "enabled", raw.enabled),
            after: scope.secs("after_secs", raw.after_secs, &REPAIR_AFTER_SECS),
            interval: scope.secs("interval_secs", raw.interval_secs, &REPAIR_INTERVAL_SECS),
        }
    }
}

/// How the node stops.
#[derive(Debug, Clone)]
pub struct Drain {
    /// How long running calls may go on after the first signal to stop.
    pub max: Duration,
}

impl Drain {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Drain) = top.section("drain", table);
        Self { max: scope.secs("max_secs", raw.max_secs, &DRAIN_MAX_SECS) }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// The least important level that is written.
    pub level: Level,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object, for machines.
    Json,
    /// Words, for people.
    Text,
}

impl Log {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>) -> Self {
        let (scope, raw): (_, raw::Log) = top.section("log", table);
        let formats = Words {
            default: LogFormat::Json,
            allowed: &[("json", LogFormat::Json), ("text", LogFormat::Text)],
            later: &[],
        };
        let levels = Words {
            default: Level::INFO,
            allowed: &[
                ("error", Level::ERROR),
                ("warn", Level::WARN),
                ("info", Level::INFO),
                ("debug", Level::DEBUG),
                ("trace", Level::TRACE),
            ],
            later: &[],
        };
        Self {
            format: scope.word("format", raw.format.as_deref(), &formats),
            level: scope.word("level", raw.level.as_deref(), &levels),
        }
    }
}
