//! The timeline of a recording: which rows hold which samples, and what they sound like.
//!
//! Frames stand at absolute positions. Later frames cover earlier ones, audio covers gaps, and what nothing covers is
//! digital silence: the manifest accounts for every segment, so a hole is what the recorder left, never a frame that
//! failed. A failed frame is an error.

use std::ops::Range;

use crate::domain::audio::AudioFormat;
use crate::domain::cmr::{Frame, Row, RowSpan};
use crate::domain::ids::TrackId;

use crate::domain::recording::{BadRecord, format_of_table};

use super::grant::TrackSelection;

/// Which rows hold which samples.
#[derive(Debug, Clone)]
pub struct Timeline {
    rows: Vec<TimelineRow>,
    origin: u32,
    end: u32,
    /// Per row, the largest end of it and all rows before.
    end_up_to: Vec<u32>,
    /// Per row, the smallest start of it and all rows after.
    start_from: Vec<u32>,
}

/// One segment and where its bytes lie in the final object.
#[derive(Debug, Clone, Copy)]
pub struct TimelineRow {
    /// What the manifest says of it.
    pub row: Row,
    /// Offset of its first byte in the final object.
    pub offset: u64,
}

impl Timeline {
    /// Lays out the rows of a manifest, or of a running recording's segments, in playing order.
    pub fn new(rows: &[Row], spans: &[RowSpan]) -> Self {
        let mut offset = 0;
        let laid_out = rows.iter().map(|row| {
            let here = TimelineRow { row: *row, offset };
            offset += u64::from(row.byte_len);
            here
        });
        let rows = laid_out.collect();
        let starts: Vec<u32> =
            spans.iter().map(|row| row.iter().map(|s| s.first_pts).min().unwrap_or(u32::MAX)).collect();
        let ends: Vec<u32> =
            spans.iter().map(|row| row.iter().map(|s| s.end_pts).max().unwrap_or(0)).collect();
        let end = ends.iter().copied().max().unwrap_or(0);
        let origin = starts.iter().copied().min().unwrap_or(0).min(end);
        let mut largest = 0;
        let end_up_to = ends.iter().map(|end| {
            largest = largest.max(*end);
            largest
        });
        let end_up_to = end_up_to.collect();
        let mut smallest = u32::MAX;
        let mut start_from: Vec<u32> = starts
            .iter()
            .rev()
            .map(|start| {
                smallest = smallest.min(*start);
                smallest
            })
            .collect();
        start_from.reverse();
        Self { rows, origin, end, end_up_to, start_from }
    }

    /// Returns how many samples the recording plays, from its first audio to its last.
    pub fn samples(&self) -> u64 {
        u64::from(self.end.saturating_sub(self.origin))
    }

    /// Returns the position of the first sample played.
    pub fn origin(&self) -> u32 {
        self.origin
    }

    /// Returns the bytes of all segments together.
    pub fn segment_bytes(&self) -> u64 {
        self.rows.last().map_or(0, |last| last.offset + u64::from(last.row.byte_len))
    }

    /// Returns the rows.
    pub fn rows(&self) -> &[TimelineRow] {
        &self.rows
    }

    /// Returns the indices of the rows that may hold samples of `window`, which counts from the origin.
    pub fn rows_for(&self, window: &Range<u64>) -> Range<usize> {
        let at = |sample: u64| u64::from(self.origin) + sample;
        let first = self.end_up_to.partition_point(|end| u64::from(*end) <= at(window.start));
        let last = self.start_from.partition_point(|start| u64::from(*start) < at(window.end));
        first..last.max(first)
    }

    /// Returns a window from `start` on, at most up to `limit`, that ends where a row ends and is at most `longest`
    /// samples long, so that each row is opened few times.
    pub fn window(&self, start: u64, limit: u64, longest: u64) -> Range<u64> {
        let from_origin = |pts: u32| u64::from(pts.saturating_sub(self.origin));
        let row = self.end_up_to.partition_point(|end| from_origin(*end) <= start);
        let natural = self.end_up_to.get(row).map_or(limit, |end| from_origin(*end));
        start..natural.min(limit).min(start.saturating_add(longest)).max(start)
    }
}

/// A stretch of both tracks being painted, in the codec of the recording.
#[derive(Debug)]
pub struct Canvas {
    start: u64,
    format: AudioFormat,
    tracks: [Vec<u8>; 2],
}

impl Canvas {
    /// Starts with silence. `window` counts samples from `origin`; its length bounds the memory.
    pub fn new(format: AudioFormat, origin: u32, window: &Range<u64>) -> Self {
        let samples = usize::try_from(window.end.saturating_sub(window.start)).unwrap_or(0);
        let silence = vec![format.codec().silence(); samples * format.codec().sample_bytes()];
        Self { start: u64::from(origin) + window.start, format, tracks: [silence.clone(), silence] }
    }

    /// Returns the format of what is painted.
    pub fn format(&self) -> AudioFormat {
        self.format
    }

    /// Returns the caller's samples.
    pub fn caller(&self) -> &[u8] {
        &self.tracks[0]
    }

    /// Returns the agent's samples.
    pub fn agent(&self) -> &[u8] {
        &self.tracks[1]
    }

    /// Returns the channels of a selection as a WAV file takes them; the second is empty where there is one.
    pub fn channels(&self, track: TrackSelection) -> (&[u8], &[u8]) {
        match track {
            TrackSelection::Both => (self.caller(), self.agent()),
            TrackSelection::Caller => (self.caller(), &[]),
            TrackSelection::Agent => (self.agent(), &[]),
        }
    }

    /// Paints one frame if it is audio.
    ///
    /// # Errors
    /// [`BadRecord`] for a track table that names another format.
    pub fn paint_frame(&mut self, frame: &Frame<'_>) -> Result<(), BadRecord> {
        match frame {
            Frame::Audio { track, pts, payload, .. } => self.paint(*track, u64::from(*pts), payload),
            Frame::TrackTable(table) if format_of_table(table)? != self.format => return Err(BadRecord),
            Frame::TrackTable(_)
            | Frame::Gap { .. }
            | Frame::Event { .. }
            | Frame::Metadata(_)
            | Frame::TimeIndex(_)
            | Frame::Trailer(_)
            | Frame::Unknown(_) => {}
        }
        Ok(())
    }

    fn paint(&mut self, track: TrackId, pts: u64, audio: &[u8]) {
        let width = self.format.codec().sample_bytes();
        let bytes = |samples: u64| usize::try_from(samples).unwrap_or(usize::MAX).saturating_mul(width);
        let Some(painted) = self.tracks.get_mut(usize::from(track.number())) else { return };
        let Some(audio) = audio.get(bytes(self.start.saturating_sub(pts))..) else { return };
        let Some(room) = painted.get_mut(bytes(pts.saturating_sub(self.start))..) else { return };
        for (old, new) in room.iter_mut().zip(audio) {
            *old = *new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::audio::{Codec, Speakers};
    use crate::domain::cmr::TrackSpan;
    use crate::domain::ids::WriterId;
    use crate::domain::recording::{to_cbor, track_table};

    fn timeline(spans: &[(u32, u32)]) -> Timeline {
        let row = Row { writer: WriterId([0; 16]), seq: 0, byte_len: 10, sha256: [0; 32], complete: true };
        let span = |(first_pts, end_pts): &(u32, u32)| {
            if first_pts == end_pts {
                return Vec::new();
            }
            vec![TrackSpan { track: TrackId::CALLER, first_pts: *first_pts, end_pts: *end_pts }]
        };
        Timeline::new(&vec![row; spans.len()], &spans.iter().map(span).collect::<Vec<_>>())
    }

    #[test]
    fn finds_the_rows_of_a_window_even_when_rows_overlap() {
        let line = timeline(&[(100, 200), (190, 300), (0, 0), (250, 400), (380, 390)]);
        assert_eq!((line.origin(), line.samples(), line.segment_bytes()), (100, 300, 50));
        assert_eq!(line.rows_for(&(0..50)), 0..1);
        assert_eq!(line.rows_for(&(95..120)), 0..2);
        assert_eq!(line.rows_for(&(150..151)), 1..4);
        assert_eq!(line.rows_for(&(299..300)), 3..5);
        assert_eq!(line.rows_for(&(300..400)), 5..5);
        assert_eq!(line.rows()[3].offset, 30);
    }

    #[test]
    fn windows_end_where_rows_end() {
        let line = timeline(&[(0, 100), (100, 200)]);
        assert_eq!(line.window(0, 200, 1000), 0..100);
        assert_eq!(line.window(50, 200, 10), 50..60);
        assert_eq!(line.window(150, 180, 1000), 150..180);
        assert_eq!(line.window(200, 200, 1000), 200..200);
    }

    #[test]
    fn an_empty_recording_has_no_samples() {
        let line = timeline(&[(0, 0)]);
        assert_eq!(line.samples(), 0);
        assert!(line.rows_for(&(0..0)).is_empty());
    }

    #[test]
    fn painting_clips_at_both_ends() {
        const SILENCE: u8 = 0xff;
        let mut canvas = Canvas::new(AudioFormat::TELEPHONE, 10, &(5..9));
        canvas.paint(TrackId::CALLER, 12, &[1, 2, 3, 4, 5]);
        canvas.paint(TrackId::AGENT, 18, &[6, 7, 8]);
        canvas.paint(TrackId::AGENT, 0, &[9]);
        canvas.paint(TrackId::from_nibble(7), 15, &[9]);
        assert_eq!(canvas.caller(), [4, 5, SILENCE, SILENCE]);
        assert_eq!(canvas.agent(), [SILENCE, SILENCE, SILENCE, 6]);
    }

    #[test]
    fn samples_of_two_bytes_are_painted_whole_and_another_format_is_refused() {
        let format = AudioFormat::new(Codec::S16le, 16_000).unwrap();
        let mut canvas = Canvas::new(format, 10, &(5..9));
        canvas.paint(TrackId::CALLER, 14, &[1, 2, 3, 4, 5, 6]);
        canvas.paint(TrackId::AGENT, 18, &[7, 8, 9, 10]);
        assert_eq!(canvas.caller(), [3, 4, 5, 6, 0, 0, 0, 0]);
        assert_eq!(canvas.agent(), [0, 0, 0, 0, 0, 0, 7, 8]);
        for (table, is_same) in [(format, true), (AudioFormat::TELEPHONE, false)] {
            let table = to_cbor(&track_table(table, Speakers::CallerAndAgent));
            assert_eq!(canvas.paint_frame(&Frame::TrackTable(&table)).is_ok(), is_same);
        }
        assert!(canvas.paint_frame(&Frame::TrackTable(b"\x80")).is_err());
    }
}
