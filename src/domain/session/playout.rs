//! What of an agent's audio the caller hears, and when.
//!
//! A provider queues what the agent sends and plays it in order, in real time; `clear` empties the queue; a mark comes back
//! when everything sent before it was played, or thrown away. The model does the same with a queue of its own. Audio leaves
//! it as it is played, so that nothing is recorded which nobody heard, wherever a call ends.
//!
//! Positions are samples on the clock of the provider's timestamps. An instant is put on that clock by the caller's least
//! delayed message; how much later than our sending the provider plays is learned from marks. A mark comes in order with the
//! caller's audio, so the audio before it says when it was sent, however late both arrive.
//!
//! Limit: a connection that stands still from the first message on looks like a clock that begins late. What the agent says
//! meanwhile is placed too late by as much, until a message that was delayed less corrects it.
//!
//! Invariants: pieces come out in order, without overlap; the queue holds at most [`Bounds::max_queued`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::domain::audio::AudioFormat;

/// Parts of a minute, in samples.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// A minute: as much as an agent says in one go. A provider's own limit is not documented.
    max_queued: usize,
    /// 10 ms. Audio that comes this little too late follows what was played before: jitter of an agent that sends in real
    /// time.
    jitter: i64,
    /// Two seconds. A longer way than this to the provider and back is not believed.
    max_latency: i64,
    /// 40 ms. The queue is moved when it stands this far from where a mark or a better clock says.
    move_from: i64,
    /// An agent may greet before the caller's first message; where a second passes without one, none is waited for.
    clock_by: i64,
}

impl Bounds {
    fn new(format: AudioFormat) -> Self {
        let second = i64::from(format.rate());
        Self {
            max_queued: usize::try_from(60 * second).unwrap_or(usize::MAX),
            jitter: second / 100,
            max_latency: 2 * second,
            move_from: second / 25,
            clock_by: second,
        }
    }
}

/// Marks that are not back yet; more are forgotten, the oldest first.
const MAX_MARKS: usize = 256;
/// The least delayed message is looked for in so long a stretch, twice: clocks drift apart over a day.
const WINDOW: Duration = Duration::from_secs(30);

/// The queue of one call.
pub(super) struct Playout {
    format: AudioFormat,
    bounds: Bounds,
    clock: StreamClock,
    queue: VecDeque<Queued>,
    /// Samples that wait.
    queued: usize,
    /// Where what was played ends.
    played: i64,
    /// Where the queue ends.
    end: i64,
    /// How much later than its sending audio is played, in samples; learned from marks.
    latency: i64,
    has_latency: bool,
    marks: VecDeque<Mark>,
}

struct Queued {
    /// Where its first sample is played.
    at: i64,
    audio: Zeroizing<Vec<u8>>,
    /// How many of its samples were played.
    taken: usize,
}

struct Mark {
    name: String,
    /// Where everything before it is played.
    end: i64,
}

/// Audio that was played.
pub(super) struct Piece {
    pub(super) pts: u32,
    pub(super) audio: Zeroizing<Vec<u8>>,
}

/// There is no room for more audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Playout {
    pub(super) fn new(now: Instant, format: AudioFormat) -> Self {
        Self {
            format,
            bounds: Bounds::new(format),
            clock: StreamClock::new(now, format),
            queue: VecDeque::new(),
            queued: 0,
            played: 0,
            end: 0,
            latency: 0,
            has_latency: false,
            marks: VecDeque::new(),
        }
    }

    /// Notes that the caller's audio up to a position was there at `now`; without timestamps it is where it was placed.
    pub(super) fn caller_at(
        &mut self,
        now: Instant,
        timestamp_ms: Option<u64>,
        placed_at: u32,
        samples: u32,
    ) {
        let start = match timestamp_ms {
            Some(ms) => self.format.samples_in_ms(ms),
            None => Some(i64::from(placed_at)),
        };
        let Some(start) = start else { return };
        let (was_set, before) = (self.clock.is_set(), self.clock.position(now));
        self.clock.observe(now, start.saturating_add(i64::from(samples)), samples);
        let by = self.clock.position(now).saturating_sub(before);
        // What is queued was placed by a worse clock.
        if by >= self.bounds.move_from || !was_set {
            self.move_by(by);
        }
    }

    /// Queues audio that was sent to the provider at `now`.
    ///
    /// # Errors
    /// [`Full`]; the audio is not queued, but what follows keeps its place.
    pub(super) fn push(&mut self, now: Instant, audio: Zeroizing<Vec<u8>>) -> Result<(), Full> {
        let samples = audio.len() / self.sample_bytes();
        let at = self.skip(now, samples);
        if self.queued.saturating_add(samples) > self.bounds.max_queued {
            return Err(Full);
        }
        self.queued += samples;
        self.queue.push_back(Queued { at, audio, taken: 0 });
        Ok(())
    }

    /// Keeps the place of samples that were sent to the provider at `now`; answers where it begins.
    pub(super) fn skip(&mut self, now: Instant, samples: usize) -> i64 {
        let arrives = self.clock.position(now).saturating_add(self.latency);
        let at = if arrives - self.end < self.bounds.jitter { self.end } else { arrives };
        self.end = at.saturating_add(i64::try_from(samples).unwrap_or(i64::MAX));
        at
    }

    /// Returns the next piece that was played by `now`; to be called until there is none.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Piece> {
        if !self.clock.is_set() && self.clock.since_begin(now) < self.bounds.clock_by {
            return None;
        }
        let (until, width) = (self.clock.position(now), self.sample_bytes());
        let first = self.queue.front_mut()?;
        let at = first.at.saturating_add(i64::try_from(first.taken).unwrap_or(i64::MAX));
        // A better clock may have moved it behind what was played, or before the provider's clock began.
        let at = at.max(self.played);
        let due = usize::try_from(until.checked_sub(at)?).unwrap_or(0);
        let left = (first.audio.len() / width).saturating_sub(first.taken);
        let samples = due.min(left);
        let bytes = first.taken * width..(first.taken + samples) * width;
        let piece = first.audio.get(bytes).filter(|piece| !piece.is_empty())?;
        let piece = Zeroizing::new(piece.to_vec());
        first.taken += samples;
        if samples == left {
            self.queue.pop_front();
        }
        self.queued -= samples;
        self.played = at.saturating_add(i64::try_from(samples).unwrap_or(i64::MAX));
        Some(Piece { pts: u32::try_from(at).ok()?, audio: piece })
    }

    /// Throws away what will not be played after a `clear` that was sent at `now`. Answers whether there was any.
    pub(super) fn clear(&mut self, now: Instant) -> bool {
        // The provider goes on playing until it hears of it.
        let cut = self.clock.position(now).saturating_add(self.latency);
        let (before, width) = (self.queued, self.sample_bytes());
        while let Some(last) = self.queue.back_mut() {
            let kept = usize::try_from(cut.saturating_sub(last.at)).unwrap_or(0).max(last.taken);
            let samples = last.audio.len() / width;
            if kept >= samples {
                break;
            }
            self.queued -= samples - kept;
            if kept > last.taken {
                last.audio.truncate(kept * width);
                break;
            }
            self.queue.pop_back();
        }
        self.end = self.end.min(cut).max(self.played);
        // They come back at once and tell nothing about time.
        self.marks.clear();
        self.queued < before
    }

    /// Notes that the agent has sent a mark.
    pub(super) fn mark_sent(&mut self, now: Instant, name: &str) {
        if self.marks.len() >= MAX_MARKS {
            self.marks.pop_front();
        }
        let end = self.end.max(self.clock.position(now).saturating_add(self.latency));
        self.marks.push_back(Mark { name: name.to_owned(), end });
    }

    /// Learns from a mark that came back at `now`.
    pub(super) fn mark_back(&mut self, now: Instant, name: &str) {
        // They come back in order; those before it were never returned.
        let Some(index) = self.marks.iter().position(|mark| mark.name == name) else { return };
        let Some(mark) = self.marks.drain(..=index).next_back() else { return };
        let Some(sent_at) = self.clock.sent_at(now) else { return };
        let late = sent_at - mark.end;
        let max_latency = self.bounds.max_latency;
        if !(-max_latency..=max_latency).contains(&late) {
            return;
        }
        let step = if self.has_latency { late / 4 } else { late };
        self.latency = (self.latency + step).clamp(0, max_latency);
        self.has_latency = true;
        if late >= self.bounds.move_from {
            self.move_by(late);
        }
    }

    /// Moves what is queued.
    fn move_by(&mut self, samples: i64) {
        for queued in &mut self.queue {
            queued.at = queued.at.saturating_add(samples);
        }
        self.end = self.end.saturating_add(samples);
        for mark in &mut self.marks {
            mark.end = mark.end.saturating_add(samples);
        }
    }

    fn sample_bytes(&self) -> usize {
        self.format.codec().sample_bytes()
    }

    /// Returns where the queue ends.
    pub(super) fn end(&self) -> u32 {
        u32::try_from(self.end.max(0)).unwrap_or(u32::MAX)
    }

    /// Whether something waits to be played.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }
}

/// Puts instants on the provider's clock.
struct StreamClock {
    format: AudioFormat,
    began: Instant,
    /// Samples from `began` to the beginning of the clock, as the least delayed message shows it.
    newest: Option<i64>,
    before: Option<i64>,
    window_from: Instant,
    /// Where the caller's next message ends at the latest, if it follows the one before.
    next_end: Option<i64>,
}

impl StreamClock {
    fn new(now: Instant, format: AudioFormat) -> Self {
        Self { format, began: now, newest: None, before: None, window_from: now, next_end: None }
    }

    /// Audio of `samples` that ends at `end` was there at `now`.
    fn observe(&mut self, now: Instant, end: i64, samples: u32) {
        self.next_end = self.next_end.max(Some(end.saturating_add(i64::from(samples))));
        if now.saturating_duration_since(self.window_from) >= WINDOW {
            (self.before, self.newest, self.window_from) = (self.newest, None, now);
        }
        let offset = self.since_begin(now).saturating_sub(end);
        self.newest = Some(self.newest.map_or(offset, |least| least.min(offset)));
    }

    /// Whether the caller was heard. Before, positions count from the stream's beginning, whatever the provider's clock says.
    fn is_set(&self) -> bool {
        self.next_end.is_some()
    }

    fn position(&self, now: Instant) -> i64 {
        let offset = match (self.before, self.newest) {
            (Some(before), Some(newest)) => before.min(newest),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => 0,
        };
        self.since_begin(now).saturating_sub(offset)
    }

    /// Returns where the provider was when it sent what arrives at `now`: no later than the least delay allows, and before
    /// the caller's next message. `None` before the caller's first.
    fn sent_at(&self, now: Instant) -> Option<i64> {
        self.next_end.map(|next| next.min(self.position(now)))
    }

    fn since_begin(&self, now: Instant) -> i64 {
        self.format.samples_in(now.saturating_duration_since(self.began))
    }
}

#[cfg(test)]
mod tests;
