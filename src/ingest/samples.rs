//! Samples of providers without timestamps: how long they last, and how they are recorded.

use std::time::{Duration, Instant};

use crate::domain::audio::AudioFormat;
use crate::domain::cmr::GapReason;
use crate::domain::ids::TrackId;
use crate::domain::provider::{Media, Payload};
use crate::domain::session::SessionError;
use crate::recorder::Recorder;

/// Returns how long so many samples of a channel last.
pub(super) fn time_of(samples: u64, format: AudioFormat) -> Duration {
    Duration::from_nanos(samples.saturating_mul(1_000_000_000) / u64::from(format.rate()))
}

/// Records what is missing before a message, and then its samples, track by track.
pub(super) fn record<'s>(
    recorder: &mut Recorder,
    now: Instant,
    missing: Option<(Duration, GapReason)>,
    tracks: impl Iterator<Item = (TrackId, &'s [u8])>,
) -> Result<(), SessionError> {
    if let Some((time, reason)) = missing {
        recorder.gap(now, time, reason)?;
    }
    for (track, samples) in tracks {
        let payload = Payload::bytes_of(samples);
        recorder.media(now, &Media { track, sequence: None, timestamp_ms: None, payload })?;
    }
    Ok(())
}
