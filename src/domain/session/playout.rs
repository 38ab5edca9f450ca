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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: i64 = 8;
    const JITTER: i64 = 10 * MS;

    /// A provider that plays sample by sample: what stands at each position, `None` for silence.
    #[derive(Default)]
    struct Provider {
        heard: Vec<Option<u8>>,
        queue: VecDeque<u8>,
        /// Names of marks, and how many samples of the queue are before each.
        marks: VecDeque<(String, usize)>,
    }

    impl Provider {
        /// Takes what was sent; answers the marks that it sends back.
        fn receive(&mut self, up: Up) -> Vec<String> {
            match up {
                Up::Say(audio) => self.queue.extend(audio),
                Up::Mark(name) => self.marks.push_back((name, self.queue.len())),
                Up::Clear => {
                    self.queue.clear();
                    return self.marks.drain(..).map(|(name, _)| name).collect();
                }
            }
            Vec::new()
        }

        /// Plays up to a position; answers the marks that it sends back.
        fn play(&mut self, until: usize) -> Vec<String> {
            let mut back = Vec::new();
            loop {
                while self.marks.front().is_some_and(|(_, before)| *before == 0) {
                    back.push(self.marks.pop_front().unwrap().0);
                }
                if self.heard.len() >= until {
                    return back;
                }
                let next = self.queue.pop_front();
                if next.is_some() {
                    self.marks.iter_mut().for_each(|(_, before)| *before -= 1);
                }
                self.heard.push(next);
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Wait(u32),
        Say(usize),
        Clear,
        Mark,
        /// The network holds back for so long what the provider sends.
        Stall(u32),
    }

    /// What a provider is sent.
    enum Up {
        Say(Vec<u8>),
        Clear,
        Mark(String),
    }

    /// What a provider sends.
    enum Down {
        /// 20 ms of the caller that end there.
        Caller {
            end_ms: u64,
        },
        Mark(String),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u32..400).prop_map(Step::Wait),
            4 => (1usize..4_000).prop_map(Step::Say),
            1 => Just(Step::Clear),
            2 => Just(Step::Mark),
            1 => (1u32..900).prop_map(Step::Stall),
        ]
    }

    /// A call that a model follows, and a provider that plays it.
    struct Call {
        began: Instant,
        now_ms: u64,
        /// The ways to and from the provider, and where its clock begins.
        ways: Ways,
        model: Playout,
        provider: Provider,
        heard: Vec<Option<u8>>,
        spoken: u8,
        marks: u32,
        held_until: u64,
        /// What is on its way to the provider, with the time of arrival.
        up: VecDeque<(u64, Up)>,
        /// What is on its way back, in one connection.
        down: VecDeque<(u64, Down)>,
    }

    #[derive(Clone, Copy)]
    struct Ways {
        up_ms: u64,
        down_ms: u64,
        first_ms: u64,
    }

    impl Call {
        /// Runs a schedule; answers what the caller and the model have heard.
        fn run(steps: &[Step], ways: Ways) -> (Vec<Option<u8>>, Vec<Option<u8>>) {
            let began = crate::clock::monotonic();
            let (model, provider) = (Playout::new(began, AudioFormat::TELEPHONE), Provider::default());
            let mut call = Call {
                began,
                now_ms: 0,
                ways,
                model,
                provider,
                heard: Vec::new(),
                spoken: 0,
                marks: 0,
                held_until: 0,
                up: VecDeque::new(),
                down: VecDeque::new(),
            };
            for step in steps.iter().chain([&Step::Wait(4_000)]) {
                call.take(step);
            }
            (call.provider.heard, call.heard)
        }

        fn take(&mut self, step: &Step) {
            let up = match *step {
                Step::Wait(ms) => return (0..ms).for_each(|_| self.one_ms()),
                Step::Stall(ms) => {
                    self.held_until = self.now_ms + u64::from(ms);
                    return;
                }
                Step::Say(samples) => {
                    self.spoken = self.spoken.wrapping_add(1);
                    let audio = vec![self.spoken; samples];
                    self.drain();
                    self.model.push(self.now(), Zeroizing::new(audio.clone())).unwrap();
                    Up::Say(audio)
                }
                Step::Clear => {
                    self.drain();
                    self.model.clear(self.now());
                    Up::Clear
                }
                Step::Mark => {
                    self.marks += 1;
                    self.model.mark_sent(self.now(), &self.marks.to_string());
                    Up::Mark(self.marks.to_string())
                }
            };
            self.up.push_back((self.now_ms + self.ways.up_ms, up));
        }

        fn one_ms(&mut self) {
            let now_ms = self.now_ms;
            let mut back = self.provider.play(usize::try_from(self.ways.first_ms + now_ms).unwrap() * 8);
            while let Some((_, up)) = self.up.pop_front_if(|(at, _)| *at <= now_ms) {
                back.extend(self.provider.receive(up));
            }
            let arrival = now_ms + self.ways.down_ms;
            self.down.extend(back.into_iter().map(|name| (arrival, Down::Mark(name))));
            if now_ms.is_multiple_of(20) {
                self.down.push_back((arrival, Down::Caller { end_ms: self.ways.first_ms + now_ms }));
            }
            // Nobody could tell a connection that stands still from the first message on from a clock that begins late.
            let is_held = now_ms < self.held_until && self.model.clock.is_set();
            while !is_held && let Some((_, down)) = self.down.pop_front_if(|(at, _)| *at <= now_ms) {
                self.drain();
                match down {
                    Down::Caller { end_ms } => {
                        self.model.caller_at(self.now(), end_ms.checked_sub(20), 0, 160)
                    }
                    Down::Mark(name) => self.model.mark_back(self.now(), &name),
                }
            }
            self.drain();
            self.now_ms += 1;
        }

        fn now(&self) -> Instant {
            self.began + Duration::from_millis(self.now_ms)
        }

        fn drain(&mut self) {
            let now = self.now();
            while let Some(piece) = self.model.poll(now) {
                let at = usize::try_from(piece.pts).unwrap();
                assert!(at >= self.heard.len(), "pieces do not overlap");
                self.heard.resize(at, None);
                self.heard.extend(piece.audio.iter().copied().map(Some));
            }
        }
    }

    /// How many samples of each utterance were heard.
    fn amounts(heard: &[Option<u8>]) -> Vec<(u8, i64)> {
        let mut amounts: Vec<(u8, i64)> = Vec::new();
        for said in heard.iter().flatten() {
            match amounts.last_mut() {
                Some((last, samples)) if last == said => *samples += 1,
                _ => amounts.push((*said, 1)),
            }
        }
        amounts
    }

    /// Where each utterance begins.
    fn starts(heard: &[Option<u8>]) -> Vec<(u8, i64)> {
        let mut starts: Vec<(u8, i64)> = Vec::new();
        for (at, said) in heard.iter().enumerate() {
            if let Some(said) = said
                && starts.last().is_none_or(|(last, _)| last != said)
            {
                starts.push((*said, i64::try_from(at).unwrap()));
            }
        }
        starts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn without_delay_the_model_hears_what_the_caller_hears(
            steps in prop::collection::vec(step(), 1..40), first_ms in 0u64..400,
        ) {
            let (truth, heard) = Call::run(&steps, Ways { up_ms: 0, down_ms: 0, first_ms });
            // One millisecond is the step of the schedule, at both ends; ten are taken as an agent's jitter, and a mark may
            // take them back; of a mark that was held back it is known which two of the caller's messages it was between.
            let slack = 2 * JITTER + 4 * MS + 20 * MS;
            for (of_truth, of_model) in [(starts(&truth), starts(&heard)), (amounts(&truth), amounts(&heard))] {
                let long = |list: &[(u8, i64)]| list.len();
                prop_assert!(long(&of_truth).abs_diff(long(&of_model)) <= 2, "{of_truth:?} {of_model:?}");
                for (said, value) in &of_model {
                    if let Some((_, wanted)) = of_truth.iter().find(|(other, _)| other == said) {
                        prop_assert!((value - wanted).abs() <= slack, "{said}: {value} for {wanted}");
                    } else {
                        let amount = amounts(&heard).iter().find(|(other, _)| other == said).unwrap().1;
                        prop_assert!(amount <= slack, "{said} was never heard, recorded are {amount}");
                    }
                }
            }
        }

        #[test]
        fn with_delay_it_is_off_by_no_more_than_the_way_there_and_back(
            steps in prop::collection::vec(step(), 1..40), up_ms in 0u64..80, down_ms in 0u64..80, first_ms in 0u64..400,
        ) {
            let (truth, heard) = Call::run(&steps, Ways { up_ms, down_ms, first_ms });
            let slack = JITTER + (i64::try_from(up_ms + down_ms).unwrap() + 22) * MS;
            for (said, start) in starts(&heard) {
                if let Some((_, wanted)) = starts(&truth).iter().find(|(other, _)| *other == said) {
                    prop_assert!((start - wanted).abs() <= 2 * slack, "{said}: {start} for {wanted}");
                }
            }
        }
    }

    #[test]
    fn marks_teach_the_delay() {
        let began = crate::clock::monotonic();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut model = Playout::new(began, AudioFormat::TELEPHONE);
        model.push(at(0), Zeroizing::new(vec![1; 800])).unwrap();
        model.mark_sent(at(0), "a");
        for frame in 0..12 {
            model.caller_at(at(20 * frame + 20), Some(20 * frame), 0, 160);
        }
        while model.poll(at(300)).is_some() {}
        // 100 ms of audio sent at 0 were played at 250: 150 ms there and back.
        model.mark_back(at(250), "a");
        assert_eq!(model.latency, 150 * MS);
        model.push(at(1_000), Zeroizing::new(vec![2; 160])).unwrap();
        assert!(model.poll(at(1_149)).is_none());
        assert_eq!(model.poll(at(1_300)).unwrap().pts, 1_150 * 8);
        model.mark_back(at(1_300), "never sent");
        assert_eq!(model.latency, 150 * MS);
    }

    #[test]
    fn a_mark_that_was_held_back_teaches_nothing_wrong() {
        let began = crate::clock::monotonic();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut model = Playout::new(began, AudioFormat::TELEPHONE);
        for frame in 0..5 {
            model.caller_at(at(20 * frame + 20), Some(20 * frame), 0, 160);
        }
        model.push(at(100), Zeroizing::new(vec![1; 800])).unwrap();
        model.mark_sent(at(100), "a");
        // Played at 200; then the connection stands still until 900.
        for frame in 5..10 {
            model.caller_at(at(900), Some(20 * frame), 0, 160);
        }
        model.mark_back(at(900), "a");
        assert!(model.latency <= 20 * MS, "{}", model.latency);
    }

    #[test]
    fn the_queue_is_bounded_and_what_follows_keeps_its_place() {
        let began = crate::clock::monotonic();
        let mut model = Playout::new(began, AudioFormat::TELEPHONE);
        for _ in 0..60 {
            model.push(began, Zeroizing::new(vec![1; 8_000])).unwrap();
        }
        assert_eq!(model.push(began, Zeroizing::new(vec![2; 8_000])), Err(Full));
        let later = began + Duration::from_secs(30);
        while model.poll(later).is_some() {}
        model.push(later, Zeroizing::new(vec![3; 8_000])).unwrap();
        let end = began + Duration::from_secs(100);
        let last = std::iter::from_fn(|| model.poll(end)).last().unwrap();
        assert_eq!((last.pts, last.audio[0]), (61 * 8_000, 3));
    }

    #[test]
    fn marks_are_bounded() {
        let began = crate::clock::monotonic();
        let mut model = Playout::new(began, AudioFormat::TELEPHONE);
        for number in 0..1_000 {
            model.mark_sent(began, &number.to_string());
        }
        assert_eq!(model.marks.len(), MAX_MARKS);
        model.mark_back(began, "999");
        assert!(model.marks.is_empty());
    }
}
