//! What goes into the open segment: audio, gaps and events.

use std::collections::BTreeMap;
use std::time::Instant;

use zeroize::Zeroizing;

use crate::domain::cmr::{EndReason, GapReason, MAX_FRAME_PAYLOAD_BYTES, SealError};
use crate::domain::ids::TrackId;
use crate::domain::provider::{Media, Payload};
use crate::domain::recording::to_cbor;
use crate::domain::time::UnixMillis;

use super::placement::{Arrival, Place, Sequence};
use super::{CallSession, SessionError};

impl CallSession {
    pub(super) fn seal_gap_before(
        &mut self,
        track: TrackId,
        place: Place,
        sequence: Sequence,
    ) -> Result<(), SessionError> {
        if place.gap == 0 {
            return Ok(());
        }
        let lost = matches!(sequence, Sequence::Next { missing: 1.. });
        let reason = if lost { GapReason::LostBeforeUs } else { GapReason::Source };
        self.seal_gap(track, place.pts.saturating_sub(place.gap), place.gap, reason)
    }

    pub(super) fn seal_gap(
        &mut self,
        track: TrackId,
        pts: u32,
        samples: u32,
        reason: GapReason,
    ) -> Result<(), SessionError> {
        self.segment()?.gap(track, pts, samples, reason)?;
        self.gaps.add(track, pts, samples, reason, &mut self.counts);
        Ok(())
    }

    pub(super) fn seal_audio(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        track: TrackId,
        pts: u32,
        payload: &Payload<'_>,
    ) -> Result<u32, SessionError> {
        if payload.max_bytes() > MAX_FRAME_PAYLOAD_BYTES {
            return self.seal_long_audio(track, pts, payload);
        }
        match self.seal_short_audio(track, pts, payload) {
            Err(SessionError::Seal(SealError::Exhausted)) => self.cut(EndReason::Rotate)?,
            Err(SessionError::Seal(SealError::Cipher(_) | SealError::Poisoned)) => self.abandon()?,
            sealed => return sealed,
        }
        self.open_segment(now, wall)?;
        self.seal_short_audio(track, pts, payload)
    }

    pub(super) fn seal_short_audio(
        &mut self,
        track: TrackId,
        pts: u32,
        payload: &Payload<'_>,
    ) -> Result<u32, SessionError> {
        // One byte of μ-law is one sample.
        self.segment()?.audio_with(track, pts, |inner| {
            let bytes = payload.append_to(inner)?;
            Ok(u32::try_from(bytes).unwrap_or(u32::MAX))
        })
    }

    /// More than one frame can hold: decoded apart and split.
    pub(super) fn seal_long_audio(
        &mut self,
        track: TrackId,
        pts: u32,
        payload: &Payload<'_>,
    ) -> Result<u32, SessionError> {
        let mut audio = Zeroizing::new(Vec::with_capacity(payload.max_bytes()));
        payload.append_to(&mut audio)?;
        let mut samples = 0u32;
        for part in audio.chunks(MAX_FRAME_PAYLOAD_BYTES) {
            samples += self.segment()?.audio_with(track, pts.saturating_add(samples), |inner| {
                inner.extend_from_slice(part);
                Ok::<_, SessionError>(u32::try_from(part.len()).unwrap_or(u32::MAX))
            })?;
        }
        Ok(samples)
    }

    /// Puts a gap where audio could not be read, as long as the audio would have been.
    pub(super) fn seal_undecodable(&mut self, media: &Media<'_>, place: Place) -> Result<(), SessionError> {
        self.counts.undecodable += 1;
        let samples = u32::try_from(media.payload.max_bytes().saturating_sub(3)).unwrap_or(u32::MAX);
        self.seal_gap(media.track, place.pts, samples, GapReason::LostBeforeUs)?;
        self.clock(media.track).advance(place, media.timestamp_ms, samples);
        Ok(())
    }

    pub(super) fn count_frame(&mut self, media: &Media<'_>, place: Place, samples: u32) {
        self.clock(media.track).advance(place, media.timestamp_ms, samples);
        self.counts.frames += 1;
        self.counts.audio_bytes += u64::from(samples);
        match place.arrival {
            Arrival::InOrder => {}
            Arrival::Late => {
                self.counts.late += 1;
                self.gaps.fill(media.track, place.pts, samples, &mut self.counts);
            }
            Arrival::Untimed => self.counts.untimed += 1,
            Arrival::Implausible => self.counts.implausible += 1,
        }
    }

    /// Events stand on the caller's clock.
    pub(super) fn seal_event(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        fields: &[(&str, &str)],
    ) -> Result<(), SessionError> {
        self.rotate_if_due(now, wall)?;
        let body = to_cbor(&fields.iter().copied().collect::<BTreeMap<_, _>>());
        if body.len() > MAX_FRAME_PAYLOAD_BYTES {
            return Ok(());
        }
        let pts = self.clock(TrackId::CALLER).end();
        self.segment()?.event(TrackId::CALLER, pts, &body)?;
        Ok(())
    }
}
