//! Raw 16-bit audio in messages of any size: cut into whole samples, one channel apart from the other.
//!
//! Messages may end inside a sample or between two channels. What is left over waits for the next message; trimming it,
//! as Vapi's own guide does, would swap the channels for the rest of the call.

use std::time::{Duration, Instant};

use zeroize::{Zeroize, Zeroizing};

use crate::domain::audio::{AudioFormat, Codec};

/// Bytes of one sample: signed 16 bits, little-endian.
pub const SAMPLE_BYTES: usize = 2;
/// Channels of one message at most: the two parties of a call.
pub const MAX_CHANNELS: usize = 2;

/// Seconds over which [`Pace`] looks back.
const WINDOW_SECS: usize = 10;
/// Audio that is never held against a stream: what was said while it was being connected.
const FREE_SECS: u64 = 10;

/// What a stream of interleaved 16-bit samples is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PcmFormat {
    audio: AudioFormat,
    channels: u8,
}

impl PcmFormat {
    /// Takes a rate of [`RATES`] and one or two channels; `None` for anything else.
    ///
    /// [`RATES`]: crate::domain::audio::RATES
    pub fn new(sample_rate: u32, channels: u8) -> Option<Self> {
        let audio = AudioFormat::new(Codec::S16le, sample_rate)?;
        (1..=MAX_CHANNELS).contains(&usize::from(channels)).then_some(Self { audio, channels })
    }

    /// Returns the format of one channel.
    pub fn audio(self) -> AudioFormat {
        self.audio
    }

    /// Returns how many channels there are, one or two.
    pub fn channels(self) -> u8 {
        self.channels
    }

    /// Returns the bytes of one second, all channels together.
    pub fn bytes_per_second(self) -> u32 {
        // Below 200,000: see the rates that there are.
        self.audio.rate() * u32::from(self.channels) * 2
    }

    /// Returns the bytes of one sample of every channel.
    fn step(self) -> usize {
        usize::from(self.channels) * SAMPLE_BYTES
    }
}

/// Takes the channels of one stream apart, whatever the messages are cut at.
///
/// Its memory is bounded by the largest message, is used again for the next one, and is erased at the end.
pub struct PcmSplit {
    format: PcmFormat,
    /// What the messages so far ended with: less than one sample of every channel.
    residue: Zeroizing<Vec<u8>>,
    /// Bytes that are still to come of a sample whose beginning is missing.
    to_discard: u64,
    channels: [Zeroizing<Vec<u8>>; MAX_CHANNELS],
}

impl PcmSplit {
    /// Begins a stream.
    pub fn new(format: PcmFormat) -> Self {
        let residue = Zeroizing::new(Vec::with_capacity(MAX_CHANNELS * SAMPLE_BYTES));
        Self { format, residue, to_discard: 0, channels: Default::default() }
    }

    /// Returns what the stream is.
    pub fn format(&self) -> PcmFormat {
        self.format
    }

    /// Returns how many bytes wait for the rest of their sample.
    pub fn waiting_bytes(&self) -> usize {
        self.residue.len()
    }

    /// Takes one message; the answer is valid until the next one.
    pub fn push(&mut self, message: &[u8]) -> PcmChunk<'_> {
        let discarded = usize::try_from(self.to_discard).unwrap_or(usize::MAX).min(message.len());
        self.to_discard -= discarded as u64;
        let (_, message) = message.split_at(discarded);
        let step = self.format.step();
        let steps = (self.residue.len() + message.len()) / step;
        for channel in self.channels.iter_mut().take(usize::from(self.format.channels)) {
            make_room(channel, steps * SAMPLE_BYTES);
        }
        let missing = (step - self.residue.len()) % step;
        let (head, rest) = message.split_at(missing.min(message.len()));
        self.residue.extend_from_slice(head);
        if self.residue.len() == step {
            deal(&self.residue, &mut self.channels);
            self.forget_residue();
        }
        let mut whole = rest.chunks_exact(step);
        for step in whole.by_ref() {
            deal(step, &mut self.channels);
        }
        // Empty where the residue is not full yet: `rest` is empty then.
        self.residue.extend_from_slice(whole.remainder());
        let [first, second] = &self.channels;
        PcmChunk { channels: [first, second], count: self.format.channels }
    }

    /// Goes on behind `bytes` of the stream that nobody has; answers how many samples of each channel are missing by that.
    /// One of which a part is there counts as missing.
    pub fn skip(&mut self, bytes: u64) -> u64 {
        let step = self.format.step() as u64;
        let pending = bytes.min(self.to_discard);
        self.to_discard -= pending;
        let bytes = bytes - pending;
        if bytes == 0 {
            return 0;
        }
        let behind = self.residue.len() as u64 + bytes;
        self.forget_residue();
        self.to_discard = (step - behind % step) % step;
        behind.div_ceil(step)
    }

    fn forget_residue(&mut self) {
        // Also the bytes behind the length, which `clear` alone would leave.
        self.residue.zeroize();
    }
}

/// Empties a channel for the next message. A larger buffer replaces the old one instead of leaving a copy behind.
fn make_room(channel: &mut Zeroizing<Vec<u8>>, bytes: usize) {
    if channel.capacity() < bytes {
        *channel = Zeroizing::new(Vec::with_capacity(bytes));
    }
    channel.clear();
}

/// Gives each channel its sample.
fn deal(step: &[u8], channels: &mut [Zeroizing<Vec<u8>>; MAX_CHANNELS]) {
    for (sample, channel) in step.chunks_exact(SAMPLE_BYTES).zip(channels) {
        channel.extend_from_slice(sample);
    }
}

/// The whole samples of one message, each channel apart. `Debug` shows no audio.
#[derive(Clone, Copy)]
pub struct PcmChunk<'a> {
    channels: [&'a [u8]; MAX_CHANNELS],
    count: u8,
}

impl<'a> PcmChunk<'a> {
    /// Lists the channels in order, each as samples of two bytes, little-endian; all are equally long.
    pub fn channels(self) -> impl Iterator<Item = &'a [u8]> {
        self.channels.into_iter().take(usize::from(self.count))
    }

    /// Returns how many samples each channel has.
    pub fn samples(self) -> usize {
        let [first, _] = self.channels;
        first.len() / SAMPLE_BYTES
    }
}

impl std::fmt::Debug for PcmChunk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PcmChunk({} channels, {} samples)", self.count, self.samples())
    }
}

/// Tells a stream that brings more audio than a call can make: above one and a half times real time over ten seconds.
///
/// The first ten seconds of audio are free. A stall of a few seconds whose audio then comes at once stays below.
pub struct Pace {
    bytes_per_second: u64,
    began: Option<Instant>,
    /// Bytes of audio that were not counted yet because they are free.
    free_left: u64,
    /// Bytes by second, the second of `newest` at its index modulo the length.
    seconds: [u64; WINDOW_SECS],
    newest: u64,
}

impl Pace {
    /// Watches a stream of so many bytes a second.
    pub fn new(bytes_per_second: u32) -> Self {
        let bytes_per_second = u64::from(bytes_per_second);
        Self {
            bytes_per_second,
            began: None,
            free_left: bytes_per_second * FREE_SECS,
            seconds: [0; WINDOW_SECS],
            newest: 0,
        }
    }

    /// Counts a message; `false` when the stream is too fast.
    pub fn admits(&mut self, now: Instant, bytes: usize) -> bool {
        let began = *self.began.get_or_insert(now);
        // Time that goes back counts as the newest second.
        let second = now.saturating_duration_since(began).as_secs().max(self.newest);
        let passed = (second - self.newest).min(WINDOW_SECS as u64);
        for empty in 0..passed {
            if let Some(slot) = self.slot(second - empty) {
                *slot = 0;
            }
        }
        self.newest = second;
        let bytes = bytes as u64;
        let free = bytes.min(self.free_left);
        self.free_left -= free;
        if let Some(slot) = self.slot(second) {
            *slot = slot.saturating_add(bytes - free);
        }
        let counted = self.seconds.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        counted <= self.bytes_per_second * WINDOW_SECS as u64 * 3 / 2
    }

    fn slot(&mut self, second: u64) -> Option<&mut u64> {
        let index = usize::try_from(second % WINDOW_SECS as u64).unwrap_or_default();
        self.seconds.get_mut(index)
    }
}

/// How fast audio came during the first two seconds, against what its format says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRate {
    /// Two seconds have not passed.
    Unknown,
    /// Near enough to the format.
    AsExpected,
    /// So far off that the format is in doubt.
    Differs {
        /// What came, in bytes per second.
        bytes_per_second: u32,
    },
}

/// Measures a [`ByteRate`].
pub struct ByteRateCheck {
    began: Option<Instant>,
    bytes: u64,
    found: ByteRate,
}

/// How long is measured.
const RATE_SPAN: Duration = Duration::from_secs(2);

impl ByteRateCheck {
    /// Begins before the first audio.
    pub fn new() -> Self {
        Self { began: None, bytes: 0, found: ByteRate::Unknown }
    }

    /// Counts a message of a stream that should bring `expected` bytes per second.
    pub fn count(&mut self, now: Instant, bytes: usize, expected: u32) {
        if self.found != ByteRate::Unknown {
            return;
        }
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began);
        if passed < RATE_SPAN {
            self.bytes = self.bytes.saturating_add(bytes as u64);
            return;
        }
        let (measured, expected) = (self.bytes / RATE_SPAN.as_secs(), u64::from(expected));
        // Wrong by a factor of two is what is looked for; a quarter off is a network.
        let is_near = measured * 4 >= expected * 3 && measured * 2 <= expected * 3;
        self.found = if is_near {
            ByteRate::AsExpected
        } else {
            ByteRate::Differs { bytes_per_second: u32::try_from(measured).unwrap_or(u32::MAX) }
        };
    }

    /// Returns what was found so far.
    pub fn found(&self) -> ByteRate {
        self.found
    }
}

impl Default for ByteRateCheck {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::clock::monotonic;

    use super::*;

    /// Collects the channels of all messages.
    fn split(format: PcmFormat, messages: &[&[u8]]) -> (Vec<Vec<u8>>, usize) {
        let mut split = PcmSplit::new(format);
        let mut channels = vec![Vec::new(); usize::from(format.channels())];
        for message in messages {
            let chunk = split.push(message);
            for (whole, part) in channels.iter_mut().zip(chunk.channels()) {
                assert!(part.len() == chunk.samples() * SAMPLE_BYTES);
                whole.extend_from_slice(part);
            }
        }
        (channels, split.waiting_bytes())
    }

    #[test]
    fn formats_have_bounds() {
        for (rate, channels, is_taken) in [
            (8000, 1, true),
            (48_000, 2, true),
            (16_000, 2, true),
            (7999, 2, false),
            (48_001, 2, false),
            (16_000, 0, false),
            (16_000, 3, false),
        ] {
            assert_eq!(PcmFormat::new(rate, channels).is_some(), is_taken, "{rate} {channels}");
        }
        assert_eq!(PcmFormat::new(16_000, 2).unwrap().bytes_per_second(), 64_000);
    }

    proptest! {
        #[test]
        fn what_is_missing_is_counted_and_the_rest_keeps_its_place(
            messages in proptest::collection::vec((0usize..40, any::<bool>()), 0..60),
        ) {
            let mut split = PcmSplit::new(PcmFormat::new(16_000, 2).unwrap());
            let bytes: usize = messages.iter().map(|(length, _)| length).sum();
            // Each sample says where it is, and in which channel.
            let stream: Vec<u8> = (0..bytes.div_ceil(4)).flat_map(|at| {
                let at = i16::try_from(at).unwrap();
                [at.to_le_bytes(), (-at).to_le_bytes()].concat()
            }).collect();
            let (mut rest, mut position) = (&stream[..bytes], 0i16);
            for (length, is_there) in messages {
                let (message, later) = rest.split_at(length);
                rest = later;
                if !is_there {
                    position += i16::try_from(split.skip(length as u64)).unwrap();
                    continue;
                }
                let chunk = split.push(message);
                let [first, second]: [&[u8]; 2] = chunk.channels().collect::<Vec<_>>().try_into().unwrap();
                for (first, second) in first.chunks_exact(2).zip(second.chunks_exact(2)) {
                    prop_assert_eq!(i16::from_le_bytes(first.try_into().unwrap()), position);
                    prop_assert_eq!(i16::from_le_bytes(second.try_into().unwrap()), -position);
                    position += 1;
                }
            }
            prop_assert!((usize::try_from(position).unwrap()).abs_diff(bytes / 4) <= 1);
        }

        #[test]
        fn any_cutting_gives_the_same_samples(
            audio in proptest::collection::vec(any::<u8>(), 0..400),
            cuts in proptest::collection::vec(0usize..9, 0..200),
            channels in 1u8..=2,
        ) {
            let format = PcmFormat::new(16_000, channels).unwrap();
            let mut messages = Vec::new();
            let mut rest = audio.as_slice();
            for cut in cuts {
                let (message, after) = rest.split_at(cut.min(rest.len()));
                messages.push(message);
                rest = after;
            }
            messages.push(rest);
            let (found, waiting) = split(format, &messages);
            let step = usize::from(channels) * 2;
            prop_assert_eq!(waiting, audio.len() % step);
            for (number, channel) in found.iter().enumerate() {
                let wanted: Vec<u8> =
                    audio.chunks_exact(step).flat_map(|step| step[number * 2..][..2].to_vec()).collect();
                prop_assert!(channel == &wanted);
            }
        }
    }

    #[test]
    fn real_time_stalls_and_half_as_much_again_are_admitted() {
        let began = monotonic();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut steady = Pace::new(64_000);
        assert!((0..3000).all(|number| steady.admits(at(number * 20), 1280)));
        let mut stalled = Pace::new(64_000);
        for round in 0..10 {
            // Five seconds of silence on the line, then five seconds at once.
            assert!(stalled.admits(at(round * 5000), 5 * 64_000), "{round}");
        }
        let mut fast = Pace::new(64_000);
        assert!((0..60).all(|second| fast.admits(at(second * 1000), 96_000)));
    }

    #[test]
    fn more_is_refused() {
        let began = monotonic();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut twice = Pace::new(64_000);
        let admitted = (0..60).take_while(|second| twice.admits(at(second * 1000), 128_000)).count();
        assert_eq!(admitted, 12, "five seconds are free, seven more fit");
        let mut at_once = Pace::new(64_000);
        let admitted = (0..3000).take_while(|_| at_once.admits(began, 1280)).count();
        assert_eq!(admitted, 25 * 50, "ten seconds are free, fifteen more fit");
        assert!(!at_once.admits(at(9999), 0));
        assert!(at_once.admits(at(10_000), 1280));
        assert!(at_once.admits(at(9000), 1280), "time that goes back is no harm");
        let mut endless = Pace::new(64_000);
        assert!(!endless.admits(began, usize::MAX) && !endless.admits(began, usize::MAX));
    }

    #[test]
    fn the_byte_rate_is_measured_over_two_seconds() {
        let began = monotonic();
        for (bytes, wanted) in [
            (1280, ByteRate::AsExpected),
            (1000, ByteRate::AsExpected),
            (640, ByteRate::Differs { bytes_per_second: 32_000 }),
            (2560, ByteRate::Differs { bytes_per_second: 128_000 }),
            (0, ByteRate::Differs { bytes_per_second: 0 }),
        ] {
            let mut check = ByteRateCheck::new();
            for number in 0..100 {
                check.count(began + Duration::from_millis(number * 20), bytes, 64_000);
                assert_eq!(check.found(), ByteRate::Unknown);
            }
            check.count(began + Duration::from_secs(2), bytes, 64_000);
            assert_eq!(check.found(), wanted, "{bytes}");
            check.count(began + Duration::from_secs(9), 1_000_000, 64_000);
            assert_eq!(check.found(), wanted, "{bytes}");
        }
    }
}
