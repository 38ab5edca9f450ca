//! A recording as one WAV file, made piece by piece: memory for seconds of audio, whatever its length.

use crate::control::recordings::{RecordingError, StoredRecording};
use crate::domain::audio::Codec;
use crate::domain::playback::grant::TrackSelection;
use crate::domain::playback::wav::{Encoding, WavError, WavLayout};

/// Samples made at a time: five seconds of telephony.
const WINDOW_SAMPLES: u64 = 40_000;

/// A WAV file of a recording. Every piece is authentic; one that is not is an error.
pub struct WavFile<'r> {
    recording: &'r StoredRecording,
    layout: WavLayout,
    track: TrackSelection,
    next_sample: u64,
    written: u64,
}

impl<'r> WavFile<'r> {
    /// Lays out the file.
    ///
    /// # Errors
    /// [`WavError`]; [`WavError::Tracks`] for μ-law of a recording with samples of 16 bits.
    pub fn new(
        recording: &'r StoredRecording,
        track: TrackSelection,
        encoding: Encoding,
    ) -> Result<Self, WavError> {
        let format = recording.format();
        if encoding == Encoding::Ulaw && format.codec() != Codec::Ulaw {
            return Err(WavError::Tracks);
        }
        let samples = recording.timeline().samples();
        let layout = WavLayout::new(encoding, track.channels(), format.rate(), samples)?;
        Ok(Self { recording, layout, track, next_sample: 0, written: 0 })
    }

    /// Returns its size.
    pub fn total_bytes(&self) -> u64 {
        self.layout.total_bytes()
    }

    /// Makes the next piece; `None` after the last.
    ///
    /// # Errors
    /// [`RecordingError`].
    pub async fn piece(&mut self) -> Result<Option<Vec<u8>>, RecordingError> {
        let total = self.recording.timeline().samples();
        let piece = if self.written == 0 {
            self.layout.header()
        } else if self.next_sample < total {
            self.window(total).await?
        } else if self.written < self.layout.total_bytes() {
            // The RIFF rule: chunks have an even length.
            vec![0]
        } else {
            return Ok(None);
        };
        self.written += piece.len() as u64;
        Ok(Some(piece))
    }

    async fn window(&mut self, total: u64) -> Result<Vec<u8>, RecordingError> {
        let timeline = self.recording.timeline();
        let window = timeline.window(self.next_sample, total, WINDOW_SAMPLES);
        let mut canvas = self.recording.canvas(&window);
        for index in timeline.rows_for(&window) {
            self.recording.paint(index, &self.recording.segment(index).await?, &mut canvas)?;
        }
        let (first, second) = canvas.channels(self.track);
        let mut frames = Vec::new();
        let made = match self.recording.format().codec() {
            Codec::Ulaw => self.layout.write_frames(first, second, &mut frames),
            Codec::S16le => self.layout.write_pcm_frames(first, second, &mut frames),
        };
        made.map_err(|error| RecordingError::Integrity(Box::new(error)))?;
        self.next_sample = window.end.max(self.next_sample + 1);
        Ok(frames)
    }
}
