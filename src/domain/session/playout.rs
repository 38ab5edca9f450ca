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
//! Invariants: pieces come out in order, without overlap; the queue holds at most [`MAX_QUEUED_SAMPLES`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::domain::provider::SAMPLES_PER_MS;

/// A minute: as much as an agent says in one go. A provider's own limit is not documented.
pub(super) const MAX_QUEUED_SAMPLES: usize = 60_000 * SAMPLES_PER_MS as usize;
/// Audio that comes this little too late follows what was played before: jitter of an agent that sends in real time.
const JITTER: i64 = 10 * SAMPLES_PER_MS as i64;
/// A longer way than this to the provider and back is not believed.
const MAX_LATENCY: i64 = 2_000 * SAMPLES_PER_MS as i64;
/// The queue is moved when it stands this far from where a mark says.
const MOVE_FROM: i64 = 40 * SAMPLES_PER_MS as i64;
/// Marks that are not back yet; more are forgotten, the oldest first.
const MAX_MARKS: usize = 256;
/// The least delayed message is looked for in so long a stretch, twice: clocks drift apart over a day.
const WINDOW: Duration = Duration::from_secs(30);

/// The queue of one call.
pub(super) struct Playout {
    clock: StreamClock,
    queue: VecDeque<Queued>,
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
    pub(super) fn new(now: Instant) -> Self {
        Self {
            clock: StreamClock::new(now),
            queue: VecDeque::new(),
            queued: 0,
            played: 0,
            end: 0,
            latency: 0,
            has_latency: false,
            marks: VecDeque::new(),
        }
    }

    /// Notes that the caller's audio up to a position was there at `now`.
    pub(super) fn caller_at(&mut self, now: Instant, timestamp_ms: Option<u64>, samples: u32) {
        let start = timestamp_ms.and_then(|ms| i64::try_from(ms).ok());
        let Some(start) = start.and_then(|ms| ms.checked_mul(i64::from(SAMPLES_PER_MS))) else { return };
        self.clock.observe(now, start.saturating_add(i64::from(samples)), samples);
    }

    /// Queues audio that was sent to the provider at `now`.
    ///
    /// # Errors
    /// [`Full`]; the audio is not queued, but what follows keeps its place.
    pub(super) fn push(&mut self, now: Instant, audio: Zeroizing<Vec<u8>>) -> Result<(), Full> {
        let arrives = self.clock.position(now).saturating_add(self.latency);
        let at = if arrives - self.end < JITTER { self.end } else { arrives };
        self.end = at.saturating_add(i64::try_from(audio.len()).unwrap_or(i64::MAX));
        if self.queued.saturating_add(audio.len()) > MAX_QUEUED_SAMPLES {
            return Err(Full);
        }
        self.queued += audio.len();
        self.queue.push_back(Queued { at, audio, taken: 0 });
        Ok(())
    }

    /// Returns the next piece that was played by `now`; to be called until there is none.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Piece> {
        let until = self.clock.position(now);
        let first = self.queue.front_mut()?;
        let at = first.at.saturating_add(i64::try_from(first.taken).unwrap_or(i64::MAX));
        let due = usize::try_from(until.checked_sub(at)?).unwrap_or(0);
        let left = first.audio.len().saturating_sub(first.taken);
        let samples = due.min(left);
        let piece = first.audio.get(first.taken..first.taken + samples).filter(|piece| !piece.is_empty())?;
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
        let before = self.queued;
        while let Some(last) = self.queue.back_mut() {
            let kept = usize::try_from(cut.saturating_sub(last.at)).unwrap_or(0).max(last.taken);
            if kept >= last.audio.len() {
                break;
            }
            self.queued -= last.audio.len() - kept;
            if kept > last.taken {
                last.audio.truncate(kept);
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
        if !(-MAX_LATENCY..=MAX_LATENCY).contains(&late) {
            return;
        }
        let step = if self.has_latency { late / 4 } else { late };
        self.latency = (self.latency + step).clamp(0, MAX_LATENCY);
        self.has_latency = true;
        if late >= MOVE_FROM {
            for queued in &mut self.queue {
                queued.at = queued.at.saturating_add(late);
            }
            self.end = self.end.saturating_add(late);
            for mark in &mut self.marks {
                mark.end = mark.end.saturating_add(late);
            }
        }
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
    began: Instant,
    /// Samples from `began` to the beginning of the clock, as the least delayed message shows it.
    newest: Option<i64>,
    before: Option<i64>,
    window_from: Instant,
    /// Where the caller's next message ends at the latest, if it follows the one before.
    next_end: Option<i64>,
}

impl StreamClock {
    fn new(now: Instant) -> Self {
        Self { began: now, newest: None, before: None, window_from: now, next_end: None }
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
        let micros = now.saturating_duration_since(self.began).as_micros();
        let samples = micros.saturating_mul(u128::from(SAMPLES_PER_MS)) / 1000;
        i64::try_from(samples).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: i64 = SAMPLES_PER_MS as i64;

    /// A provider that plays sample by sample: what stands at each position, `None` for silence.
    #[derive(Default)]
    struct Provider {
        heard: Vec<Option<u8>>,
        queue: VecDeque<u8>,
        /// Names of marks, and how many samples of the queue are before each.
        marks: VecDeque<(String, usize)>,
    }

    impl Provider {
        /// Plays up to a position; answers the marks that came back, with the position of each.
        fn play(&mut self, until: usize) -> Vec<(String, usize)> {
            let mut back = Vec::new();
            loop {
                while self.marks.front().is_some_and(|(_, before)| *before == 0) {
                    back.push((self.marks.pop_front().unwrap().0, self.heard.len()));
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

    /// Runs a schedule against model and provider; answers what each has heard.
    ///
    /// `up_ms` and `down_ms` are the ways to and from the provider.
    fn run(steps: &[Step], up_ms: u64, down_ms: u64) -> (Vec<Option<u8>>, Vec<Option<u8>>) {
        let began = crate::clock::monotonic();
        let mut model = Playout::new(began);
        let (mut provider, mut now_ms, mut spoken, mut marks) = (Provider::default(), 0u64, 0u8, 0u32);
        let mut heard: Vec<Option<u8>> = Vec::new();
        let mut held_until = 0;
        // What is on its way to the provider, and what on its way back in one connection, with the time of arrival.
        let mut up: VecDeque<(u64, Step, Vec<u8>, String)> = VecDeque::new();
        let mut down: VecDeque<(u64, Down)> = VecDeque::new();
        let mut pending: VecDeque<Step> = steps.iter().cloned().chain([Step::Wait(4_000)]).collect();
        let mut wait = 0u32;
        loop {
            let now = began + Duration::from_millis(now_ms);
            while wait == 0 {
                let Some(next) = pending.pop_front() else { return (provider.heard, heard) };
                match next {
                    Step::Wait(ms) => wait = ms,
                    Step::Stall(ms) => held_until = now_ms + u64::from(ms),
                    Step::Say(samples) => {
                        spoken = spoken.wrapping_add(1);
                        let audio = vec![spoken; samples];
                        drain(&mut model, now, &mut heard);
                        model.push(now, Zeroizing::new(audio.clone())).unwrap();
                        up.push_back((now_ms + up_ms, Step::Say(samples), audio, String::new()));
                    }
                    Step::Clear => {
                        drain(&mut model, now, &mut heard);
                        model.clear(now);
                        up.push_back((now_ms + up_ms, Step::Clear, Vec::new(), String::new()));
                    }
                    Step::Mark => {
                        marks += 1;
                        model.mark_sent(now, &marks.to_string());
                        up.push_back((now_ms + up_ms, Step::Mark, Vec::new(), marks.to_string()));
                    }
                }
            }
            let mut back = provider.play(usize::try_from(now_ms).unwrap() * 8);
            while up.front().is_some_and(|(at, ..)| *at <= now_ms) {
                match up.pop_front().unwrap() {
                    (_, Step::Say(_), audio, _) => provider.queue.extend(audio),
                    (_, Step::Clear, ..) => {
                        provider.queue.clear();
                        back.extend(provider.marks.drain(..).map(|(name, _)| (name, 0)));
                    }
                    (.., name) => provider.marks.push_back((name, provider.queue.len())),
                }
            }
            down.extend(back.into_iter().map(|(name, _)| (now_ms + down_ms, Down::Mark(name))));
            if now_ms % 20 == 0 {
                down.push_back((now_ms + down_ms, Down::Caller { end_ms: now_ms }));
            }
            while now_ms >= held_until && down.front().is_some_and(|(at, _)| *at <= now_ms) {
                drain(&mut model, now, &mut heard);
                match down.pop_front().unwrap().1 {
                    Down::Caller { end_ms } => model.caller_at(now, end_ms.checked_sub(20), 160),
                    Down::Mark(name) => model.mark_back(now, &name),
                }
            }
            drain(&mut model, now, &mut heard);
            now_ms += 1;
            wait -= 1;
        }
    }

    fn drain(model: &mut Playout, now: Instant, heard: &mut Vec<Option<u8>>) {
        while let Some(piece) = model.poll(now) {
            let at = usize::try_from(piece.pts).unwrap();
            assert!(at >= heard.len(), "pieces do not overlap");
            heard.resize(at, None);
            heard.extend(piece.audio.iter().copied().map(Some));
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
        fn without_delay_the_model_hears_what_the_caller_hears(steps in prop::collection::vec(step(), 1..40)) {
            let (truth, heard) = run(&steps, 0, 0);
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
            steps in prop::collection::vec(step(), 1..40), up in 0u64..80, down in 0u64..80,
        ) {
            let (truth, heard) = run(&steps, up, down);
            let slack = JITTER + (i64::try_from(up + down).unwrap() + 22) * MS;
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
        let mut model = Playout::new(began);
        model.push(at(0), Zeroizing::new(vec![1; 800])).unwrap();
        model.mark_sent(at(0), "a");
        for frame in 0..12 {
            model.caller_at(at(20 * frame + 20), Some(20 * frame), 160);
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
        let mut model = Playout::new(began);
        for frame in 0..5 {
            model.caller_at(at(20 * frame + 20), Some(20 * frame), 160);
        }
        model.push(at(100), Zeroizing::new(vec![1; 800])).unwrap();
        model.mark_sent(at(100), "a");
        // Played at 200; then the connection stands still until 900.
        for frame in 5..10 {
            model.caller_at(at(900), Some(20 * frame), 160);
        }
        model.mark_back(at(900), "a");
        assert!(model.latency <= 20 * MS, "{}", model.latency);
    }

    #[test]
    fn the_queue_is_bounded_and_what_follows_keeps_its_place() {
        let began = crate::clock::monotonic();
        let mut model = Playout::new(began);
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
        let mut model = Playout::new(began);
        for number in 0..1_000 {
            model.mark_sent(began, &number.to_string());
        }
        assert_eq!(model.marks.len(), MAX_MARKS);
        model.mark_back(began, "999");
        assert!(model.marks.is_empty());
    }
}
