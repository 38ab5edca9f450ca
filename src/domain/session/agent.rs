//! What is left out on purpose, and the agent's audio where it comes from the agent itself.

use std::time::Instant;

use zeroize::Zeroizing;

use crate::domain::cmr::GapReason;
use crate::domain::ids::TrackId;
use crate::domain::provider::Payload;
use crate::domain::time::UnixMillis;

use super::{CallSession, PLAY_EVERY, SessionError, Stored};

impl CallSession {
    /// From now on all audio is left out, as our own bound is reached, or no longer.
    ///
    /// The gap is sealed, as one, before the track's next audio or at the end.
    pub fn set_overloaded(&mut self, is_overloaded: bool) {
        self.is_overloaded = is_overloaded;
    }

    /// Seals from now on neither audio nor pressed keys, and that it is so.
    ///
    /// The gap is sealed when it ends, at the next cut of a segment, or at the end.
    ///
    /// # Errors
    /// See [`CallSession::handle_media`].
    pub fn mute(&mut self, now: Instant, wall: UnixMillis, reason: GapReason) -> Result<(), SessionError> {
        self.play_out(now, wall)?;
        if self.muted.replace(reason).is_none() {
            self.seal_event(now, wall, &[("t", "mute"), ("reason", reason.name())])?;
        }
        Ok(())
    }

    /// Seals audio again.
    ///
    /// # Errors
    /// See [`CallSession::handle_media`].
    pub fn unmute(&mut self, now: Instant, wall: UnixMillis) -> Result<(), SessionError> {
        self.play_out(now, wall)?;
        if self.muted.take().is_some() {
            self.seal_event(now, wall, &[("t", "unmute")])?;
        }
        Ok(())
    }

    /// Queues audio that the agent has sent; it is sealed when it is played.
    ///
    /// # Errors
    /// [`SessionError::BadBase64`]: go on. Anything else: finish the recording.
    pub fn handle_agent_media(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        payload: &Payload<'_>,
    ) -> Result<Stored, SessionError> {
        self.play_out(now, wall)?;
        let codec = self.format.codec();
        let Some(playout) = &mut self.playout else { return Ok(Stored::Nothing) };
        let mut audio = Zeroizing::new(Vec::with_capacity(payload.max_bytes()));
        if let Err(bad) = payload.append_to(&mut audio) {
            self.counts.undecodable += 1;
            return Err(bad.into());
        }
        if audio.is_empty() {
            return Ok(Stored::Nothing);
        }
        let samples = codec.samples_of(audio.len());
        if playout.push(now, audio).is_err() {
            self.counts.dropped_frames += 1;
            let at = playout.end().saturating_sub(samples);
            self.leave_out(TrackId::AGENT, at, samples, GapReason::Overload);
        }
        self.play_by.get_or_insert(now + PLAY_EVERY);
        Ok(Stored::Sealed)
    }

    /// Leaves out samples of the agent that nobody has looked at, because there was no time for it.
    ///
    /// # Errors
    /// See [`CallSession::handle_media`].
    pub fn handle_agent_missed(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        samples: u32,
    ) -> Result<(), SessionError> {
        self.play_out(now, wall)?;
        let Some(playout) = &mut self.playout else { return Ok(()) };
        playout.skip(now, samples as usize);
        let at = playout.end().saturating_sub(samples);
        self.leave_out(TrackId::AGENT, at, samples, GapReason::Overload);
        Ok(())
    }

    /// Throws away what of the agent's audio was not played yet, and seals that it was so.
    ///
    /// # Errors
    /// See [`CallSession::handle_media`].
    pub fn handle_agent_clear(&mut self, now: Instant, wall: UnixMillis) -> Result<(), SessionError> {
        self.play_out(now, wall)?;
        let Some(playout) = &mut self.playout else { return Ok(()) };
        playout.clear(now);
        self.seal_event(now, wall, &[("t", "clear")])
    }

    /// Notes that the agent has sent a mark.
    pub fn handle_agent_mark(&mut self, now: Instant, name: &str) {
        if let Some(playout) = &mut self.playout {
            playout.mark_sent(now, name);
        }
    }
}
