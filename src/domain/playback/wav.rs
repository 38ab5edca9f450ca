//! Virtual WAV files of constant bit rate: every byte's place is known before the first one is made.
//!
//! A layout turns a number of samples into a header and a total, and a byte range into the samples to render for it.
//! It reads no audio and keeps none; rendering happens elsewhere, in pieces of any size.
//!
//! Files are RIFF WAVE as in Microsoft's and IBM's "Multimedia Programming Interface and Data Specifications 1.0" with
//! the "New Multimedia Data Types" revision 3.0 for the extended format chunk.

use std::ops::Range;

/// The highest sample rate of a layout, in Hz. Providers send 8,000 to 48,000.
pub const MAX_SAMPLE_RATE: u32 = 192_000;

/// μ-law's silence, the code of +0.
pub const ULAW_SILENCE: u8 = 0xff;

/// RIFF stores chunk sizes in 32 bits.
const MAX_RIFF_BYTES: u64 = u32::MAX as u64;

/// How a sample is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// ITU-T G.711 μ-law, one byte a sample, as the provider sent it (WAVE format 7).
    Ulaw,
    /// 16-bit signed little-endian PCM (WAVE format 1).
    Pcm16,
}

impl Encoding {
    const fn bytes_per_sample(self) -> u16 {
        match self {
            Self::Ulaw => 1,
            Self::Pcm16 => 2,
        }
    }

    const fn format_tag(self) -> u16 {
        match self {
            Self::Ulaw => 7,
            Self::Pcm16 => 1,
        }
    }
}

/// How many channels a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channels {
    /// One track.
    Mono,
    /// Two tracks, the first left and the second right.
    Stereo,
}

impl Channels {
    const fn count(self) -> u16 {
        match self {
            Self::Mono => 1,
            Self::Stereo => 2,
        }
    }
}

/// Why there is no such file, or no such frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WavError {
    /// The file would not fit the 32-bit sizes of RIFF.
    #[error("recording is too long for a WAV file")]
    TooLong,
    /// The sample rate is zero or above [`MAX_SAMPLE_RATE`].
    #[error("sample rate is not supported")]
    SampleRate,
    /// The tracks to interleave are not of one length, or a mono file was given two.
    #[error("tracks do not fit the layout")]
    Tracks,
}

/// The shape of one file; its sizes are checked when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WavLayout {
    encoding: Encoding,
    channels: Channels,
    /// In Hz, from 1 to [`MAX_SAMPLE_RATE`].
    sample_rate: u32,
    /// Per channel; the file including header and padding is below 4 GiB.
    samples: u64,
}

/// What to send for a byte range: header bytes, then rendered audio, then perhaps the padding byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WavSlice {
    /// Which bytes of [`WavLayout::header`] come first; may be empty.
    pub header: Range<usize>,
    /// Which samples of each channel to render; may be empty.
    pub samples: Range<u64>,
    /// How many of the rendered bytes to leave out at the start, less than one sample of all channels.
    pub skip_bytes: usize,
    /// How many of the rendered bytes to send after those; what is left over at the end is dropped.
    pub audio_bytes: u64,
    /// Whether a zero byte follows that makes the data chunk even.
    pub padding: bool,
}

impl WavLayout {
    /// Lays out `samples` samples per channel at `sample_rate` Hz.
    ///
    /// # Errors
    /// [`WavError::SampleRate`] and [`WavError::TooLong`], the latter from just below 4 GiB: 37 hours of two-channel PCM
    /// at 8 kHz.
    pub fn new(
        encoding: Encoding,
        channels: Channels,
        sample_rate: u32,
        samples: u64,
    ) -> Result<Self, WavError> {
        if !(1..=MAX_SAMPLE_RATE).contains(&sample_rate) {
            return Err(WavError::SampleRate);
        }
        // Fewer samples than this keep every later sum far away from overflow.
        if samples > MAX_RIFF_BYTES {
            return Err(WavError::TooLong);
        }
        let layout = Self { encoding, channels, sample_rate, samples };
        if layout.riff_bytes() > MAX_RIFF_BYTES {
            return Err(WavError::TooLong);
        }
        Ok(layout)
    }

    /// Returns the samples of each channel.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// Returns the size of the whole file in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.header_bytes() as u64 + self.audio_bytes() + u64::from(self.is_padded())
    }

    /// Returns the bytes before the audio: 44 for PCM; 58 for μ-law, which has a `fact` chunk and an extension size.
    pub fn header(&self) -> Vec<u8> {
        let is_pcm = self.encoding == Encoding::Pcm16;
        let frame_bytes = self.frame_bytes();
        let mut header = Vec::with_capacity(self.header_bytes());
        header.extend_from_slice(b"RIFF");
        header.extend_from_slice(&size_field(self.riff_bytes()));
        header.extend_from_slice(b"WAVEfmt ");
        header.extend_from_slice(&u32::to_le_bytes(if is_pcm { 16 } else { 18 }));
        header.extend_from_slice(&self.encoding.format_tag().to_le_bytes());
        header.extend_from_slice(&self.channels.count().to_le_bytes());
        header.extend_from_slice(&self.sample_rate.to_le_bytes());
        header.extend_from_slice(&(self.sample_rate * u32::from(frame_bytes)).to_le_bytes());
        header.extend_from_slice(&frame_bytes.to_le_bytes());
        header.extend_from_slice(&(self.encoding.bytes_per_sample() * 8).to_le_bytes());
        if !is_pcm {
            header.extend_from_slice(&u16::to_le_bytes(0));
            header.extend_from_slice(b"fact");
            header.extend_from_slice(&u32::to_le_bytes(4));
            header.extend_from_slice(&size_field(self.samples));
        }
        header.extend_from_slice(b"data");
        header.extend_from_slice(&size_field(self.audio_bytes()));
        header
    }

    /// Maps the bytes from `first` to `last`, both included, to what must be sent for them.
    ///
    /// `None` where `last` lies before `first` or behind the end of the file.
    pub fn byte_range(&self, first: u64, last: u64) -> Option<WavSlice> {
        if last < first || last >= self.total_bytes() {
            return None;
        }
        let audio_start = self.header_bytes() as u64;
        let audio_end = audio_start + self.audio_bytes();
        // The borders of the range, moved into the audio.
        let from = first.clamp(audio_start, audio_end) - audio_start;
        let to = (last + 1).clamp(audio_start, audio_end) - audio_start;
        let frame_bytes = u64::from(self.frame_bytes());
        let samples = from / frame_bytes..to.div_ceil(frame_bytes);
        let in_header = |at: u64| usize::try_from(at.min(audio_start)).unwrap_or(self.header_bytes());
        Some(WavSlice {
            header: in_header(first)..in_header(last + 1),
            skip_bytes: usize::try_from(from % frame_bytes).unwrap_or_default(),
            samples,
            audio_bytes: to - from,
            padding: last >= audio_end,
        })
    }

    /// Appends samples of 16 bits, little-endian, to `out`, interleaved.
    ///
    /// `first` and `second` as for [`Self::write_frames`], but with two bytes a sample.
    ///
    /// # Errors
    /// [`WavError::Tracks`], also where this is no layout of 16 bits; nothing is appended then.
    pub fn write_pcm_frames(&self, first: &[u8], second: &[u8], out: &mut Vec<u8>) -> Result<(), WavError> {
        let expected = match self.channels {
            Channels::Mono => 0,
            Channels::Stereo => first.len(),
        };
        let is_whole = first.len().is_multiple_of(2);
        if self.encoding != Encoding::Pcm16 || second.len() != expected || !is_whole {
            return Err(WavError::Tracks);
        }
        out.reserve(first.len() + second.len());
        match self.channels {
            Channels::Mono => out.extend_from_slice(first),
            Channels::Stereo => {
                for (left, right) in first.chunks_exact(2).zip(second.chunks_exact(2)) {
                    out.extend_from_slice(left);
                    out.extend_from_slice(right);
                }
            }
        }
        Ok(())
    }

    /// Appends μ-law audio to `out` in this layout's encoding, interleaved sample by sample.
    ///
    /// `first` and `second` are one byte a sample and of one length; a mono file takes `first` alone, whichever track that
    /// is, and an empty `second`. Appends `first.len()` times the bytes of a sample of all channels.
    ///
    /// # Errors
    /// [`WavError::Tracks`]; nothing is appended then.
    pub fn write_frames(&self, first: &[u8], second: &[u8], out: &mut Vec<u8>) -> Result<(), WavError> {
        let expected = match self.channels {
            Channels::Mono => 0,
            Channels::Stereo => first.len(),
        };
        if second.len() != expected {
            return Err(WavError::Tracks);
        }
        out.reserve(first.len().saturating_mul(usize::from(self.frame_bytes())));
        let pairs = first.iter().zip(second);
        match (self.encoding, self.channels) {
            (Encoding::Ulaw, Channels::Mono) => out.extend_from_slice(first),
            (Encoding::Ulaw, Channels::Stereo) => out.extend(pairs.flat_map(|(left, right)| [*left, *right])),
            (Encoding::Pcm16, Channels::Mono) => out.extend(first.iter().flat_map(|code| pcm16_bytes(*code))),
            (Encoding::Pcm16, Channels::Stereo) => out.extend(pairs.flat_map(|(left, right)| {
                let ([a, b], [c, d]) = (pcm16_bytes(*left), pcm16_bytes(*right));
                [a, b, c, d]
            })),
        }
        Ok(())
    }

    /// Bytes of one sample of all channels: 1 to 4.
    fn frame_bytes(&self) -> u16 {
        self.encoding.bytes_per_sample() * self.channels.count()
    }

    fn header_bytes(&self) -> usize {
        match self.encoding {
            Encoding::Pcm16 => 44,
            Encoding::Ulaw => 58,
        }
    }

    fn audio_bytes(&self) -> u64 {
        self.samples * u64::from(self.frame_bytes())
    }

    /// RIFF chunks start at even places, so an odd data chunk is followed by one byte that its size does not count.
    fn is_padded(&self) -> bool {
        self.audio_bytes() % 2 == 1
    }

    /// What the RIFF chunk's size says: everything after itself, padding included.
    fn riff_bytes(&self) -> u64 {
        self.total_bytes() - 8
    }
}

/// Returns the 16-bit linear value of a μ-law code, from -32,124 to 32,124 (ITU-T G.711, scaled from 14 bits).
#[inline]
pub const fn ulaw_to_pcm16(code: u8) -> i16 {
    #[expect(clippy::indexing_slicing, reason = "a u8 is below the table's 256 entries")]
    PCM16_OF_ULAW[code as usize]
}

static PCM16_OF_ULAW: [i16; 256] = {
    let mut table = [0; 256];
    let mut code = 0u8;
    loop {
        #[expect(clippy::indexing_slicing, reason = "a u8 is below the table's 256 entries")]
        {
            table[code as usize] = expand_ulaw(code);
        }
        if code == u8::MAX {
            break table;
        }
        code += 1;
    }
};

/// Codes travel inverted: then bit 7 is the sign, bits 4 to 6 the segment, bits 0 to 3 the step within it.
const fn expand_ulaw(code: u8) -> i16 {
    const BIAS: i16 = 0x84;
    let bits = !code;
    let magnitude = ((((bits & 0x0f) as i16) << 3) + BIAS) << ((bits & 0x70) >> 4);
    if bits & 0x80 == 0 { magnitude - BIAS } else { BIAS - magnitude }
}

#[inline]
fn pcm16_bytes(code: u8) -> [u8; 2] {
    ulaw_to_pcm16(code).to_le_bytes()
}

/// Writes a size that the constructor has found to fit.
fn size_field(size: u64) -> [u8; 4] {
    u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout(encoding: Encoding, channels: Channels, samples: u64) -> WavLayout {
        WavLayout::new(encoding, channels, 8000, samples).unwrap()
    }

    fn invented(number: u64) -> u8 {
        number.to_le_bytes()[0]
    }

    /// Renders audio in which neighbouring samples differ.
    fn render(layout: &WavLayout, samples: Range<u64>) -> Vec<u8> {
        let first: Vec<u8> = samples.clone().map(|at| invented(at * 7)).collect();
        let second: Vec<u8> = samples.map(|at| invented(at * 11 + 128)).collect();
        let second = if layout.channels == Channels::Stereo { second } else { Vec::new() };
        let mut out = Vec::new();
        layout.write_frames(&first, &second, &mut out).unwrap();
        out
    }

    fn whole(layout: &WavLayout) -> Vec<u8> {
        let mut file = layout.header();
        file.extend(render(layout, 0..layout.samples));
        file.extend(layout.is_padded().then_some(0));
        file
    }

    #[test]
    fn pcm_header_is_the_golden_one() {
        let layout = layout(Encoding::Pcm16, Channels::Stereo, 3);
        let expected: &[u8] =
            b"RIFF\x30\0\0\0WAVEfmt \x10\0\0\0\x01\0\x02\0\x40\x1f\0\0\0\x7d\0\0\x04\0\x10\0data\x0c\0\0\0";
        assert_eq!(layout.header(), expected);
        assert_eq!(layout.total_bytes(), 56);
    }

    #[test]
    fn ulaw_header_is_the_golden_one() {
        let layout = layout(Encoding::Ulaw, Channels::Mono, 3);
        let expected: &[u8] =
            b"RIFF\x36\0\0\0WAVEfmt \x12\0\0\0\x07\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0\0\0\
            fact\x04\0\0\0\x03\0\0\0data\x03\0\0\0";
        assert_eq!(layout.header(), expected);
        assert_eq!(layout.total_bytes(), 58 + 3 + 1);
        assert_eq!(whole(&layout).last(), Some(&0));
    }

    #[test]
    fn sizes_have_limits() {
        let new = |encoding, channels, samples| WavLayout::new(encoding, channels, 8000, samples);
        let largest = |header: u64, frame: u64| (u64::from(u32::MAX) + 8 - header) / frame;
        let pcm = largest(44, 4);
        assert!(new(Encoding::Pcm16, Channels::Stereo, pcm).is_ok());
        assert_eq!(new(Encoding::Pcm16, Channels::Stereo, pcm + 1), Err(WavError::TooLong));
        // The largest odd one has no room left for its padding.
        let ulaw = largest(58, 1);
        assert_eq!(ulaw % 2, 1);
        assert_eq!(new(Encoding::Ulaw, Channels::Mono, ulaw), Err(WavError::TooLong));
        let fits = new(Encoding::Ulaw, Channels::Mono, ulaw - 1).unwrap();
        assert_eq!(fits.total_bytes(), u64::from(u32::MAX) + 7);
        assert_eq!(fits.header()[4..8], (u32::MAX - 1).to_le_bytes());
        assert_eq!(new(Encoding::Ulaw, Channels::Mono, u64::MAX), Err(WavError::TooLong));
        for rate in [0, MAX_SAMPLE_RATE + 1, u32::MAX] {
            let refused = WavLayout::new(Encoding::Ulaw, Channels::Mono, rate, 1);
            assert_eq!(refused, Err(WavError::SampleRate));
        }
    }

    #[test]
    fn ranges_outside_are_refused() {
        let layout = layout(Encoding::Pcm16, Channels::Mono, 10);
        assert_eq!(layout.byte_range(5, 4), None);
        assert_eq!(layout.byte_range(0, layout.total_bytes()), None);
        assert_eq!(layout.byte_range(0, u64::MAX), None);
        let odd = layout.byte_range(45, 47).unwrap();
        let expected =
            WavSlice { header: 44..44, samples: 0..2, skip_bytes: 1, audio_bytes: 3, padding: false };
        assert_eq!(odd, expected);
    }

    /// What a server sends for a byte range of the invented audio.
    fn send(layout: &WavLayout, first: usize, last: usize) -> Vec<u8> {
        let slice = layout.byte_range(first as u64, last as u64).unwrap();
        let rendered = render(layout, slice.samples.clone());
        let audio_bytes = usize::try_from(slice.audio_bytes).unwrap();
        assert!(slice.samples.end <= layout.samples);
        assert!(rendered.len() - audio_bytes < 2 * usize::from(layout.frame_bytes()));
        let mut sent = layout.header()[slice.header].to_vec();
        sent.extend(&rendered[slice.skip_bytes..][..audio_bytes]);
        sent.extend(slice.padding.then_some(0));
        sent
    }

    #[test]
    fn every_range_of_small_files_is_the_slice() {
        for encoding in [Encoding::Ulaw, Encoding::Pcm16] {
            for channels in [Channels::Mono, Channels::Stereo] {
                for samples in 0..4 {
                    let layout = layout(encoding, channels, samples);
                    let file = whole(&layout);
                    assert_eq!(file.len() as u64, layout.total_bytes());
                    for (first, last) in
                        (0..file.len()).flat_map(|last| (0..=last).map(move |first| (first, last)))
                    {
                        assert_eq!(
                            send(&layout, first, last),
                            file[first..=last],
                            "{layout:?} {first}-{last}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn tracks_must_fit() {
        let mut out = vec![9];
        let stereo = layout(Encoding::Pcm16, Channels::Stereo, 10);
        assert_eq!(stereo.write_frames(&[1, 2], &[1], &mut out), Err(WavError::Tracks));
        let mono = layout(Encoding::Ulaw, Channels::Mono, 10);
        assert_eq!(mono.write_frames(&[1], &[1], &mut out), Err(WavError::Tracks));
        assert_eq!(out, [9]);
        stereo.write_frames(&[0x80], &[0x00], &mut out).unwrap();
        assert_eq!(out, [9, 0x7c, 0x7d, 0x84, 0x82]);
        out.clear();
        for (layout, first, second) in
            [(stereo, &[1, 2][..], &[3][..]), (stereo, &[1], &[2]), (mono, &[1, 2], &[])]
        {
            assert_eq!(layout.write_pcm_frames(first, second, &mut out), Err(WavError::Tracks));
        }
        stereo.write_pcm_frames(&[1, 2, 3, 4], &[5, 6, 7, 8], &mut out).unwrap();
        layout(Encoding::Pcm16, Channels::Mono, 10).write_pcm_frames(&[9, 10], &[], &mut out).unwrap();
        assert_eq!(out, [1, 2, 5, 6, 3, 4, 7, 8, 9, 10]);
    }

    #[test]
    fn ulaw_table_is_that_of_g711() {
        assert_eq!(ulaw_to_pcm16(0xff), 0);
        assert_eq!(ulaw_to_pcm16(0x7f), 0);
        assert_eq!(ulaw_to_pcm16(0x00), -32_124);
        assert_eq!(ulaw_to_pcm16(0x80), 32_124);
        assert_eq!(ulaw_to_pcm16(ULAW_SILENCE), 0);
        for code in 0..=255u8 {
            // G.711 table 2: a 14-bit value (2 * step + 33) * 2^segment - 33; four times that in 16 bits.
            let (segment, step) = (i32::from(!code >> 4 & 7), i32::from(!code & 15));
            let magnitude = ((2 * step + 33) * 2i32.pow(segment as u32) - 33) * 4;
            let value = if code < 0x80 { -magnitude } else { magnitude };
            assert_eq!(i32::from(ulaw_to_pcm16(code)), value, "{code:#04x}");
        }
    }

    proptest! {
        #[test]
        fn a_slice_is_the_same_rendered_or_cut(
            pcm in any::<bool>(),
            stereo in any::<bool>(),
            samples in 0u64..60,
            borders in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        ) {
            let encoding = if pcm { Encoding::Pcm16 } else { Encoding::Ulaw };
            let layout = layout(encoding, if stereo { Channels::Stereo } else { Channels::Mono }, samples);
            let file = whole(&layout);
            prop_assert_eq!(file.len() as u64, layout.total_bytes());
            prop_assert_eq!(layout.header().len(), layout.header_bytes());
            prop_assert_eq!(file.len() % 2, 0);
            let (one, other) = (borders.0.index(file.len()), borders.1.index(file.len()));
            let (first, last) = (one.min(other), one.max(other));

            prop_assert_eq!(send(&layout, first, last), &file[first..=last]);
        }
    }
}
