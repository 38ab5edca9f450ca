//! The model held against a provider that plays sample by sample.

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
                Down::Caller { end_ms } => self.model.caller_at(self.now(), end_ms.checked_sub(20), 0, 160),
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
