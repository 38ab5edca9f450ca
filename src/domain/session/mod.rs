//! One stream being recorded: events in, sealed segments and a manifest out.
//!
//! Knows events, where frames belong in time, and when a segment ends. Must not know wire formats, the store, or what
//! time it is: `now` is an argument, randomness comes from an [`Entropy`]. The caller feeds events, takes
//! [`Output`]s, and wakes the session at [`CallSession::poll_timeout`].
//!
//! Invariants: audio is decoded into the sealed segment's own bytes and encrypted there before anything else happens;
//! nothing unsealed outlives the call of [`CallSession::handle_media`], but for what an agent has said that is not played yet.

mod agent;
mod ending;
mod gaps;
mod notes;
mod placement;
mod playout;
mod sealing;
mod segments;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::domain::audio::{AudioFormat, Speakers};
use crate::domain::cmr::{Dek, Expected, GapReason, Row, RowSpan, SealError};
use crate::domain::ids::{TrackId, WriterId};
use crate::domain::provider::{BadBase64, Digit, Media};
use crate::domain::recording::{RecordingEnd, RecordingMetadata, StreamCounts, to_cbor, track_table};
use crate::domain::time::UnixMillis;

use gaps::GapLedger;
use notes::Notes;
use placement::{Arrival, Sequence, SequenceWindow, TrackClock};
use playout::Playout;
use segments::{Chain, OpenSegment};

/// How long played audio of the agent may wait in the queue when nothing else happens. The caller's messages mostly take it
/// out every 20 ms.
const PLAY_EVERY: Duration = Duration::from_millis(40);

/// Fresh random bytes. Never the same twice, never predictable.
pub trait Entropy: Send {
    /// Fills `out`.
    ///
    /// # Errors
    /// [`EntropyFailed`]; nothing may be sealed then.
    fn fill(&mut self, out: &mut [u8]) -> Result<(), EntropyFailed>;
}

/// The system has no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no random bytes")]
pub struct EntropyFailed;

/// When a segment is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLimits {
    /// Oldest frame of a segment; default 5 s, at most 60 s.
    pub max_age: Duration,
    /// Bytes of a segment; default 256 KiB, at most 16 MiB.
    pub max_bytes: usize,
}

/// What becomes of pressed keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DtmfPolicy {
    /// The time is sealed, the key is not.
    Redact,
    /// Both are sealed.
    Keep,
}

/// Where the agent's audio comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentAudio {
    /// From the provider, with its timestamps, as the caller's does.
    Received,
    /// From the agent: the provider queues it and plays it in order, so that what the caller hears follows from what was
    /// sent, cleared and marked.
    Queued,
}

/// What a session is made from.
pub struct SessionSetup {
    /// The recording's data key.
    pub dek: Dek,
    /// Tenant, recording and key.
    pub ids: Expected,
    /// When segments are cut.
    pub limits: SegmentLimits,
    /// What becomes of pressed keys.
    pub dtmf: DtmfPolicy,
    /// Where the agent's audio comes from.
    pub agent: AgentAudio,
    /// Who is heard on the tracks.
    pub speakers: Speakers,
    /// What is known at the start; also the format of the audio.
    pub metadata: RecordingMetadata,
}

/// A segment to be stored.
#[derive(Debug)]
pub struct SealedSegment {
    /// What the manifest will say of it.
    pub row: Row,
    /// The whole object.
    pub bytes: Vec<u8>,
    /// How many of the bytes were handed to the journal before.
    pub journaled_bytes: usize,
    /// When its first frame was sealed.
    pub opened_at: Instant,
}

/// The manifest to be stored when all segments are.
#[derive(Debug)]
pub struct SealedManifest {
    /// The whole object.
    pub bytes: Vec<u8>,
    /// Every segment in playing order.
    pub rows: Vec<Row>,
    /// What the manifest's trailer says.
    pub end: RecordingEnd,
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Output {
    /// Store a segment.
    Segment(SealedSegment),
    /// Store the manifest; the session is over.
    Finished(SealedManifest),
}

/// Sealed bytes of the open segment that the journal does not have yet.
#[derive(Debug, PartialEq, Eq)]
pub struct Unjournaled<'a> {
    /// The writer incarnation.
    pub writer: WriterId,
    /// The segment's number.
    pub seq: u32,
    /// Where the bytes stand in the segment.
    pub offset: u32,
    /// Header or whole frames.
    pub bytes: &'a [u8],
}

/// Why a frame was not stored as audio.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The payload is not base64; a gap was sealed in its place.
    #[error(transparent)]
    BadBase64(#[from] BadBase64),
    /// Sealing is not possible any more; the recording must be finished.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No random bytes for a new segment; the recording must be finished.
    #[error(transparent)]
    Entropy(#[from] EntropyFailed),
    /// A track's clock is full after more than 100 hours.
    #[error("track clock is full")]
    ClockFull,
}

/// What became of an audio message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// It is sealed.
    Sealed,
    /// It held no audio, or was stored before.
    Nothing,
}

/// Audio of one track that was left out before sealing.
#[derive(Debug, Clone, Copy)]
struct LeftOut {
    start: u32,
    end: u32,
    reason: GapReason,
}

/// One stream being recorded.
///
/// What every message needs lies close together here; all else is behind a box.
pub struct CallSession {
    open: Option<OpenSegment>,
    clocks: [TrackClock; 2],
    format: AudioFormat,
    /// Not longer than the format allows.
    limits: SegmentLimits,
    numbers: SequenceWindow,
    /// Per track, audio that was left out and has no sealed gap yet.
    left_out: [Option<LeftOut>; 2],
    /// The queue of the agent's audio; `None` where the provider sends that itself.
    playout: Option<Box<Playout>>,
    /// When what was played must be taken out of the queue.
    play_by: Option<Instant>,
    /// Why nothing is sealed now.
    muted: Option<GapReason>,
    is_overloaded: bool,
    /// Messages were missed since the last hole in the numbering.
    has_missed: bool,
    counts: StreamCounts,
    outputs: VecDeque<Output>,
    kept: Box<Kept>,
}

/// What is needed where a segment begins or ends, where audio is missing, and at the end of the call.
struct Kept {
    setup: SessionSetup,
    entropy: Box<dyn Entropy>,
    track_table: Vec<u8>,
    metadata: Vec<u8>,
    chain: Chain,
    gaps: GapLedger,
    notes: Notes,
    rows: Vec<Row>,
    spans: Vec<RowSpan>,
}

impl CallSession {
    /// Starts a recording and its first segment, which holds the metadata.
    ///
    /// The envelope of `setup.dek` must already be durable: sealed bytes may leave the process from here on.
    ///
    /// # Errors
    /// [`SessionError::Entropy`] or [`SessionError::Seal`]; nothing was recorded then.
    pub fn start(
        setup: SessionSetup,
        mut entropy: Box<dyn Entropy>,
        now: Instant,
        wall: UnixMillis,
    ) -> Result<Self, SessionError> {
        let chain = Chain::new(entropy.as_mut())?;
        let metadata = to_cbor(&setup.metadata);
        let format = setup.metadata.format;
        let playout = (setup.agent == AgentAudio::Queued).then(|| Playout::new(now, format));
        let limits = segments::bounded(setup.limits);
        let kept = Kept {
            track_table: to_cbor(&track_table(format, setup.speakers)),
            setup,
            entropy,
            metadata,
            chain,
            gaps: GapLedger::default(),
            notes: Notes::default(),
            rows: Vec::new(),
            spans: Vec::new(),
        };
        let mut session = Self {
            open: None,
            clocks: [TrackClock::new(format), TrackClock::new(format)],
            format,
            limits,
            numbers: SequenceWindow::default(),
            left_out: [None; 2],
            playout: playout.map(Box::new),
            play_by: None,
            muted: None,
            is_overloaded: false,
            has_missed: false,
            counts: StreamCounts::default(),
            outputs: VecDeque::new(),
            kept: Box::new(kept),
        };
        session.open_segment(now, wall)?;
        Ok(session)
    }

    /// Notes the number of a message that carries no audio, so that no loss is seen where there is none.
    pub fn handle_number(&mut self, sequence: Option<u64>) {
        self.count_sequence(sequence);
    }

    /// Seals the audio of one message, with the gap before it if there is one.
    ///
    /// # Errors
    /// [`SessionError::BadBase64`]: go on. Anything else: finish the recording.
    pub fn handle_media(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        media: &Media<'_>,
    ) -> Result<Stored, SessionError> {
        self.play_out(now, wall)?;
        let sequence = self.count_sequence(media.sequence);
        let place = self.clock(media.track).place(media.timestamp_ms).ok_or(SessionError::ClockFull)?;
        if place.arrival == Arrival::Late && sequence == Sequence::Seen {
            self.counts.duplicates += 1;
            return Ok(Stored::Nothing);
        }
        if media.payload.is_empty() && place.arrival != Arrival::InOrder {
            return Ok(Stored::Nothing);
        }
        if let Some(playout) = &mut self.playout {
            let samples = self.format.codec().samples_of(media.payload.bytes());
            playout.caller_at(now, media.timestamp_ms, place.pts, samples);
        }
        if let Some(reason) = self.why_not_sealed() {
            self.leave_out_media(media, place, reason);
            return Ok(Stored::Nothing);
        }
        self.rotate_if_due(now, wall)?;
        self.seal_left_out(media.track)?;
        self.seal_gap_before(media.track, place, sequence)?;
        if media.payload.is_empty() {
            self.clock(media.track).advance(place, media.timestamp_ms, 0);
            return Ok(Stored::Nothing);
        }
        match self.seal_audio(now, wall, media.track, place.pts, &media.payload) {
            Ok(samples) => {
                self.count_frame(media, place, samples);
                Ok(Stored::Sealed)
            }
            Err(SessionError::BadBase64(bad)) => {
                self.seal_undecodable(media, place)?;
                Err(bad.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Seals that the agent's mark came back.
    ///
    /// # Errors
    /// See [`CallSession::handle_media`].
    pub fn handle_mark(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        sequence: Option<u64>,
        name: &str,
    ) -> Result<(), SessionError> {
        self.play_out(now, wall)?;
        self.count_sequence(sequence);
        if let Some(playout) = &mut self.playout {
            playout.mark_back(now, name);
        }
        self.seal_event(now, wall, &[("t", "mark"), ("name", name)])
    }

    /// Seals that a key was pressed; which one only if the route keeps it.
    ///
    /// # Errors
    /// See [`CallSession::handle_media`].
    pub fn handle_dtmf(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        sequence: Option<u64>,
        digit: Digit,
    ) -> Result<(), SessionError> {
        self.count_sequence(sequence);
        if self.muted.is_some() {
            return Ok(());
        }
        let mut key = Zeroizing::new([0; 4]);
        match self.kept.setup.dtmf {
            DtmfPolicy::Redact => self.seal_event(now, wall, &[("t", "dtmf")]),
            DtmfPolicy::Keep => {
                let key = digit.expose().encode_utf8(&mut *key);
                self.seal_event(now, wall, &[("t", "dtmf"), ("digit", key)])
            }
        }
    }

    /// Notes that messages of the provider or the agent were not looked at, because there was no time for them.
    ///
    /// A hole in the provider's numbering that follows is of our own making.
    pub fn handle_missed(&mut self, messages: u64) {
        self.counts.dropped_frames += messages;
        self.has_missed = true;
    }

    /// Counts a message that was dropped before it became an event.
    pub fn count_dropped(&mut self) {
        self.counts.dropped += 1;
    }

    /// Cuts the open segment if its time has come.
    ///
    /// # Errors
    /// See [`CallSession::handle_media`].
    pub fn handle_timeout(&mut self, now: Instant, wall: UnixMillis) -> Result<(), SessionError> {
        self.play_out(now, wall)?;
        self.rotate_if_due(now, wall)
    }

    /// Returns when the session wants [`CallSession::handle_timeout`]; `None` while its segment holds no audio and none of
    /// the agent's waits.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let cut = self.open_since().map(|at| at + self.limits.max_age);
        [cut, self.play_by].into_iter().flatten().min()
    }

    /// Returns when the first audio of the open segment was sealed; `None` while it holds none.
    pub fn open_since(&self) -> Option<Instant> {
        self.open.as_ref().filter(|open| open.has_content()).map(|open| open.opened_at)
    }

    /// Returns the next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns the sealed bytes that the journal does not have yet.
    pub fn unjournaled(&self) -> Option<Unjournaled<'_>> {
        let open = self.open.as_ref()?;
        let bytes = open.writer.bytes().get(open.journaled_bytes..).filter(|bytes| !bytes.is_empty())?;
        let ids = open.writer.ids();
        let offset = u32::try_from(open.journaled_bytes).ok()?;
        Some(Unjournaled { writer: ids.writer, seq: ids.seq, offset, bytes })
    }

    /// Notes that the journal took everything that [`CallSession::unjournaled`] showed.
    pub fn mark_journaled(&mut self) {
        if let Some(open) = &mut self.open {
            open.journaled_bytes = open.writer.bytes().len();
        }
    }

    /// Notes that the journal lost what it had: the open segment is handed over again from its start.
    pub fn journal_lost(&mut self) {
        if let Some(open) = &mut self.open {
            open.journaled_bytes = 0;
        }
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> &StreamCounts {
        &self.counts
    }

    fn clock(&mut self, track: TrackId) -> &mut TrackClock {
        let [caller, agent] = &mut self.clocks;
        if track == TrackId::CALLER { caller } else { agent }
    }

    fn count_sequence(&mut self, number: Option<u64>) -> Sequence {
        let sequence = self.numbers.observe(number);
        match sequence {
            Sequence::Next { missing } => self.counts.missing_messages += missing,
            Sequence::Filled => {
                self.counts.missing_messages = self.counts.missing_messages.saturating_sub(1);
            }
            Sequence::Seen | Sequence::Unknown => {}
        }
        sequence
    }
}
