//! The audio of an answer, made while it is sent: constant memory, and cut off at the first byte that is not authentic.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};
use std::thread::available_parallelism;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use hyper::body::Frame;
use tokio::sync::Semaphore;

use crate::clock;
use crate::control::recordings::{RecordingError, StoredRecording};
use crate::domain::audio::Codec;
use crate::domain::playback::grant::TrackSelection;
use crate::domain::playback::timeline::Canvas;
use crate::domain::playback::wav::WavLayout;
use crate::domain::time::UnixMillis;
use crate::observe::metrics;

use crate::answer::CutOff;

/// Samples painted at a time: bounds memory to about 130 KiB, whatever a gap's length.
const WINDOW_SAMPLES: u64 = 16_000;
/// Sealed rows kept between windows, because neighbours overlap by a frame. One has 90 KB of telephony, mostly.
const KEPT_ROWS: usize = 2;

/// Turns to open and paint a segment, which takes a thread for a millisecond or two: as many at a time as there are threads, however
/// many listen, so that live calls, and whoever comes after, never wait for all of them.
struct Turns {
    /// For the first audio of an answer, which somebody waits for.
    first: Semaphore,
    /// For what is sent ahead.
    rest: Semaphore,
}

static TURNS: LazyLock<Turns> = LazyLock::new(|| {
    let threads = available_parallelism().map_or(1, usize::from);
    Turns { first: Semaphore::new(threads), rest: Semaphore::new(threads) }
});

/// What is played.
pub(super) struct PlayRequest {
    pub(super) recording: Arc<StoredRecording>,
    pub(super) layout: WavLayout,
    pub(super) track: TrackSelection,
    /// A transfer that still runs then is cut off.
    pub(super) cut_at: UnixMillis,
}

/// Returns the bytes from `first` to `last` of the virtual file.
pub(super) fn play(
    request: PlayRequest,
    first: u64,
    last: u64,
) -> impl Stream<Item = Result<Frame<Bytes>, CutOff>> + Send {
    let player = Player::new(request, first, last);
    stream::unfold(player, |mut player| async move {
        match player.next_bytes().await {
            Ok(Some(bytes)) => {
                ::metrics::counter!(metrics::PLAYED_BYTES).increment(bytes.len() as u64);
                Some((Ok(Frame::data(bytes)), player))
            }
            Ok(None) => None,
            Err(error) => {
                player.report(&error);
                player.stop();
                Some((Err(CutOff), player))
            }
        }
    })
}

struct Player {
    request: PlayRequest,
    /// Header bytes not sent yet.
    header: Bytes,
    /// The next sample, and the one to end before.
    next: u64,
    end: u64,
    /// Bytes of the next window that are not wanted.
    skip: usize,
    /// Audio bytes still to send; then the padding.
    left: u64,
    padding: bool,
    has_begun: bool,
    rows: VecDeque<(usize, Bytes)>,
}

impl Player {
    fn new(request: PlayRequest, first: u64, last: u64) -> Self {
        let nothing = Self {
            header: Bytes::new(),
            next: 0,
            end: 0,
            skip: 0,
            left: 0,
            padding: false,
            has_begun: false,
            rows: VecDeque::new(),
            request,
        };
        let Some(slice) = nothing.request.layout.byte_range(first, last) else { return nothing };
        let header = Bytes::from(nothing.request.layout.header()).slice(slice.header.clone());
        Self {
            header,
            next: slice.samples.start,
            end: slice.samples.end,
            skip: slice.skip_bytes,
            left: slice.audio_bytes,
            padding: slice.padding,
            ..nothing
        }
    }

    async fn next_bytes(&mut self) -> Result<Option<Bytes>, RecordingError> {
        if !self.header.is_empty() {
            return Ok(Some(std::mem::take(&mut self.header)));
        }
        if self.left == 0 {
            return Ok(std::mem::take(&mut self.padding).then(|| Bytes::from_static(&[0])));
        }
        if clock::wall() > self.request.cut_at {
            return Err(RecordingError::Unavailable("the grant has expired".into()));
        }
        let window = self.request.recording.timeline().window(self.next, self.end, WINDOW_SAMPLES);
        if window.is_empty() {
            return Err(RecordingError::Integrity("timeline ends early".into()));
        }
        let canvas = self.paint(&window).await?;
        self.next = window.end;
        self.has_begun = true;
        Ok(Some(self.encode(&canvas)?))
    }

    async fn paint(&mut self, window: &std::ops::Range<u64>) -> Result<Canvas, RecordingError> {
        let recording = Arc::clone(&self.request.recording);
        let timeline = recording.timeline();
        let mut canvas = recording.canvas(window);
        for index in timeline.rows_for(window) {
            let segment = self.segment(index).await?;
            let turns = if self.has_begun { &TURNS.rest } else { &TURNS.first };
            // Never closed.
            let turn = turns.acquire().await.ok();
            recording.paint(index, &segment, &mut canvas)?;
            // Everybody else comes before the next turn begins.
            tokio::task::yield_now().await;
            drop(turn);
        }
        Ok(canvas)
    }

    async fn segment(&mut self, index: usize) -> Result<Bytes, RecordingError> {
        if let Some((_, kept)) = self.rows.iter().find(|(kept, _)| *kept == index) {
            return Ok(kept.clone());
        }
        let segment = self.request.recording.segment(index).await?;
        self.rows.push_back((index, segment.clone()));
        if self.rows.len() > KEPT_ROWS {
            self.rows.pop_front();
        }
        Ok(segment)
    }

    fn encode(&mut self, canvas: &Canvas) -> Result<Bytes, RecordingError> {
        let (first, second) = canvas.channels(self.request.track);
        let mut out = Vec::new();
        let layout = &self.request.layout;
        let written = match canvas.format().codec() {
            Codec::Ulaw => layout.write_frames(first, second, &mut out),
            Codec::S16le => layout.write_pcm_frames(first, second, &mut out),
        };
        written.map_err(|error| RecordingError::Integrity(Box::new(error)))?;
        let mut bytes = Bytes::from(out);
        let skip = std::mem::take(&mut self.skip).min(bytes.len());
        bytes = bytes.split_off(skip);
        bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= bytes.len() as u64;
        Ok(bytes)
    }

    fn report(&self, error: &RecordingError) {
        let recording = self.request.recording.ids().recording;
        let source = error as &dyn std::error::Error;
        match error {
            RecordingError::Integrity(_) | RecordingError::NotFound => {
                ::metrics::counter!(metrics::INTEGRITY_FAILURES).increment(1);
                tracing::error!(%recording, error = source, "playback cut off: stored bytes are damaged");
            }
            RecordingError::Unavailable(_) => {
                tracing::warn!(%recording, error = source, "playback cut off");
            }
        }
    }

    fn stop(&mut self) {
        self.header = Bytes::new();
        self.left = 0;
        self.padding = false;
    }
}
