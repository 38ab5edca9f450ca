//! What goes into the open segment: audio, gaps and events.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::domain::cmr::{EndReason, GapReason, MAX_FRAME_PAYLOAD_BYTES, SealError};
use crate::domain::ids::TrackId;
use crate::domain::provider::{Media, Payload};
use crate::domain::recording::to_cbor;
use crate::domain::time::UnixMillis;

use super::placement::{Arrival, Place, Sequence};
use super::playout::Playout;
use super::{CallSession, LeftOut, PLAY_EVERY, SessionError};

impl CallSession {
    /// Reads a little of what the next message needs, so that it is in the processor's cache by then.
    pub fn prefetch(&self) {
        let [caller, agent] = &self.clocks;
        black_box((caller.end(), agent.end(), self.counts.frames, self.muted, self.play_by));
        if let Some(open) = &self.open {
            black_box((open.opened_at, open.journaled_bytes));
            open.writer.prefetch();
        }
    }

    /// Seals that `time` of all tracks is missing, from where they stand on; of the caller's alone where the agent's is queued.
    ///
    /// For providers without timestamps: what follows has its place behind it.
    ///
    /// # Errors
    /// See [`CallSession::handle_media`]; [`SessionError::ClockFull`] where the gap would be too long.
    pub fn handle_gap(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        time: Duration,
        reason: GapReason,
    ) -> Result<(), SessionError> {
        let samples = self.format.samples_in(time);
        let samples = u32::try_from(samples).map_err(|_| SessionError::ClockFull)?;
        self.rotate_if_due(now, wall)?;
        let tracks = if self.playout.is_some() { 1 } else { self.kept.setup.speakers.roles().len() };
        for track in [TrackId::CALLER, TrackId::AGENT].into_iter().take(tracks) {
            let at = self.clock(track).end();
            at.checked_add(samples).ok_or(SessionError::ClockFull)?;
            self.seal_left_out(track)?;
            self.seal_gap(track, at, samples, reason)?;
            self.clock(track).skip(samples);
        }
        Ok(())
    }

    /// Returns how many samples so many bytes of audio hold.
    pub(super) fn samples_of(&self, bytes: usize) -> u32 {
        self.format.codec().samples_of(bytes)
    }

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
        let reason = match (lost, lost && std::mem::take(&mut self.has_missed)) {
            (_, true) => GapReason::Overload,
            (true, false) => GapReason::LostBeforeUs,
            (false, false) => GapReason::Source,
        };
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
        self.kept.gaps.add(track, pts, samples, reason, &mut self.counts);
        Ok(())
    }

    /// Seals what of the agent's audio was played by `now`.
    pub(super) fn play_out(&mut self, now: Instant, wall: UnixMillis) -> Result<(), SessionError> {
        while let Some(piece) = self.playout.as_mut().and_then(|playout| playout.poll(now)) {
            let samples = self.samples_of(piece.audio.len());
            if let Some(reason) = self.why_not_sealed() {
                self.leave_out(TrackId::AGENT, piece.pts, samples, reason);
                continue;
            }
            self.rotate_if_due(now, wall)?;
            self.seal_left_out(TrackId::AGENT)?;
            self.seal_piece(now, wall, piece.pts, &piece.audio)?;
            self.counts.frames += 1;
            self.counts.audio_bytes += piece.audio.len() as u64;
        }
        let is_waiting = self.playout.as_deref().is_some_and(Playout::is_waiting);
        self.play_by = is_waiting.then_some(now + PLAY_EVERY);
        Ok(())
    }

    fn seal_piece(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        mut pts: u32,
        audio: &[u8],
    ) -> Result<(), SessionError> {
        for part in audio.chunks(MAX_FRAME_PAYLOAD_BYTES) {
            let samples = self.samples_of(part.len());
            match self.seal_part(pts, part, samples) {
                Err(SessionError::Seal(SealError::Exhausted)) => self.cut(EndReason::Rotate)?,
                Err(SessionError::Seal(SealError::Cipher(_) | SealError::Poisoned)) => self.abandon()?,
                sealed => {
                    sealed?;
                    pts = pts.saturating_add(samples);
                    continue;
                }
            }
            self.open_segment(now, wall)?;
            self.seal_part(pts, part, samples)?;
            pts = pts.saturating_add(samples);
        }
        Ok(())
    }

    fn seal_part(&mut self, pts: u32, part: &[u8], samples: u32) -> Result<(), SessionError> {
        self.segment()?.audio_with(TrackId::AGENT, pts, |inner| {
            inner.extend_from_slice(part);
            Ok::<_, SessionError>(samples)
        })?;
        Ok(())
    }

    /// Returns why audio is left out now; `None` when it is sealed.
    pub(super) fn why_not_sealed(&self) -> Option<GapReason> {
        if self.is_overloaded { Some(GapReason::Overload) } else { self.muted }
    }

    /// Leaves out the audio of one message, and what was missing before it.
    pub(super) fn leave_out_media(&mut self, media: &Media<'_>, place: Place, reason: GapReason) {
        if media.payload.is_empty() {
            return;
        }
        let samples = self.samples_of(media.payload.bytes());
        self.clock(media.track).advance(place, media.timestamp_ms, samples);
        if reason == GapReason::Overload {
            self.counts.dropped_frames += 1;
        }
        let start = place.pts.saturating_sub(place.gap);
        self.leave_out(media.track, start, samples.saturating_add(place.gap), reason);
    }

    /// Adds a stretch to what is left out of a track; as one gap where the reason stays.
    pub(super) fn leave_out(&mut self, track: TrackId, start: u32, samples: u32, reason: GapReason) {
        let end = start.saturating_add(samples);
        let left_out = left_out_of(&mut self.left_out, track);
        match left_out {
            Some(known) if known.reason == reason => {
                *known = LeftOut { start: start.min(known.start), end: end.max(known.end), reason };
            }
            Some(known) => {
                let known = std::mem::replace(known, LeftOut { start, end, reason });
                // No frame says so, only the manifest: two reasons follow each other without any audio between them.
                self.kept.gaps.add(
                    track,
                    known.start,
                    known.end - known.start,
                    known.reason,
                    &mut self.counts,
                );
            }
            None => *left_out = Some(LeftOut { start, end, reason }),
        }
    }

    /// Seals the gap of what was left out of a track.
    pub(super) fn seal_left_out(&mut self, track: TrackId) -> Result<(), SessionError> {
        match left_out_of(&mut self.left_out, track).take() {
            Some(LeftOut { start, end, reason }) => self.seal_gap(track, start, end - start, reason),
            None => Ok(()),
        }
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
        let codec = self.format.codec();
        self.segment()?.audio_with(track, pts, |inner| Ok(codec.samples_of(payload.append_to(inner)?)))
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
        let codec = self.format.codec();
        for part in audio.chunks(MAX_FRAME_PAYLOAD_BYTES) {
            samples += self.segment()?.audio_with(track, pts.saturating_add(samples), |inner| {
                inner.extend_from_slice(part);
                Ok::<_, SessionError>(codec.samples_of(part.len()))
            })?;
        }
        Ok(samples)
    }

    /// Puts a gap where audio could not be read, as long as the audio would have been.
    pub(super) fn seal_undecodable(&mut self, media: &Media<'_>, place: Place) -> Result<(), SessionError> {
        self.counts.undecodable += 1;
        let samples = self.samples_of(media.payload.max_bytes().saturating_sub(3));
        self.seal_gap(media.track, place.pts, samples, GapReason::LostBeforeUs)?;
        self.clock(media.track).advance(place, media.timestamp_ms, samples);
        Ok(())
    }

    pub(super) fn count_frame(&mut self, media: &Media<'_>, place: Place, samples: u32) {
        self.clock(media.track).advance(place, media.timestamp_ms, samples);
        self.counts.frames += 1;
        let sample_bytes = self.format.codec().sample_bytes() as u64;
        self.counts.audio_bytes += u64::from(samples) * sample_bytes;
        match place.arrival {
            Arrival::InOrder => {}
            Arrival::Late => {
                self.counts.late += 1;
                self.kept.gaps.fill(media.track, place.pts, samples, &mut self.counts);
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

/// Returns what is left out of a track at the moment.
fn left_out_of(tracks: &mut [Option<LeftOut>; 2], track: TrackId) -> &mut Option<LeftOut> {
    let [caller, agent] = tracks;
    if track == TrackId::CALLER { caller } else { agent }
}
