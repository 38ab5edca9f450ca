//! Logs: one JSON object a line on standard error, or text for people.
//!
//! Lines carry ids, never contents. What a library says below WARN is not shown at any setting: some print payloads.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::MakeWriter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStyle {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// Why logging cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up logging: {0}")]
pub struct LogsError(String);

/// Installs logging for this process. `level` holds for callseal; libraries are heard from WARN on.
///
/// # Errors
/// [`LogsError`] when logging is installed already.
pub fn install<W>(style: LogStyle, level: Level, writer: W) -> Result<(), LogsError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = EnvFilter::new(format!("warn,callseal={level}"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    let installed = match style {
        LogStyle::Json => {
            lines.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
        }
        LogStyle::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    installed.map_err(|error| LogsError(error.to_string()))
}
