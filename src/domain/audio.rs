//! How the samples of a recording are written, and how fast they come.
//!
//! Knows codecs and rates. Must not know providers, frames or files. All tracks of a recording have one format.

use std::time::Duration;

/// Samples per second that are taken: from telephony to the best that a browser sends.
pub const RATES: std::ops::RangeInclusive<u32> = 8000..=48_000;

/// How one sample is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// ITU-T G.711 μ-law: one byte.
    Ulaw,
    /// Signed 16 bits, little-endian.
    S16le,
}

impl Codec {
    /// Returns the word for it in track tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ulaw => "ulaw",
            Self::S16le => "s16le",
        }
    }

    /// Returns the codec of a word; `None` for one that this version does not know.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Ulaw, Self::S16le].into_iter().find(|codec| codec.name() == name)
    }

    /// Returns the bytes of a sample.
    pub const fn sample_bytes(self) -> usize {
        match self {
            Self::Ulaw => 1,
            Self::S16le => 2,
        }
    }

    /// Returns the byte that digital silence is made of.
    pub const fn silence(self) -> u8 {
        match self {
            Self::Ulaw => 0xff,
            Self::S16le => 0,
        }
    }

    /// Returns how many whole samples so many bytes hold, at most `u32::MAX`.
    pub fn samples_of(self, bytes: usize) -> u32 {
        u32::try_from(bytes / self.sample_bytes()).unwrap_or(u32::MAX)
    }
}

/// The format of a recording's tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AudioFormat {
    codec: Codec,
    rate: u32,
}

impl AudioFormat {
    /// That of telephony: μ-law, 8,000 samples per second.
    pub const TELEPHONE: Self = Self { codec: Codec::Ulaw, rate: 8000 };

    /// Takes a rate of [`RATES`]; `None` for another.
    pub fn new(codec: Codec, rate: u32) -> Option<Self> {
        RATES.contains(&rate).then_some(Self { codec, rate })
    }

    /// Returns how a sample is written.
    pub const fn codec(self) -> Codec {
        self.codec
    }

    /// Returns samples per second.
    pub const fn rate(self) -> u32 {
        self.rate
    }

    /// Returns how many samples a time of milliseconds holds; `None` beyond what can be counted.
    pub fn samples_in_ms(self, ms: u64) -> Option<i64> {
        i64::try_from(ms).ok()?.checked_mul(i64::from(self.rate)).map(|samples| samples / 1000)
    }

    /// Returns how many samples a time holds, at most `i64::MAX`.
    pub fn samples_in(self, time: Duration) -> i64 {
        let samples = time.as_micros().saturating_mul(u128::from(self.rate)) / 1_000_000;
        i64::try_from(samples).unwrap_or(i64::MAX)
    }

    /// Returns how many milliseconds so many samples last.
    pub fn millis(self, samples: u32) -> u64 {
        u64::from(samples) * 1000 / u64::from(self.rate)
    }

    /// Returns how many milliseconds the samples of so many bytes last.
    pub fn millis_of_bytes(self, bytes: u64) -> u64 {
        bytes.saturating_mul(1000) / (self.codec.sample_bytes() as u64 * u64::from(self.rate))
    }
}

/// Who is heard on the tracks of a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Speakers {
    /// The caller on track 0, the agent on track 1.
    CallerAndAgent,
    /// One voice each on tracks 0 and 1, and nobody has said whose.
    Unnamed,
    /// All on track 0.
    Mixed,
}

impl Speakers {
    /// Lists the roles of the tracks in their order, as track tables name them.
    pub const fn roles(self) -> &'static [&'static str] {
        match self {
            Self::CallerAndAgent => &["caller", "agent"],
            Self::Unnamed => &["channel", "channel"],
            Self::Mixed => &["mixed"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_bounds_and_count_samples() {
        assert_eq!(AudioFormat::new(Codec::S16le, 7999), None);
        assert_eq!(AudioFormat::new(Codec::S16le, 48_001), None);
        let odd = AudioFormat::new(Codec::S16le, 11_025).unwrap();
        assert_eq!(odd.samples_in_ms(20), Some(220));
        assert_eq!(odd.samples_in_ms(u64::MAX), None);
        assert_eq!(odd.samples_in(Duration::from_secs(2)), 22_050);
        assert_eq!(odd.samples_in(Duration::MAX), i64::MAX);
        assert_eq!(odd.millis(u32::MAX), 389_566_194);
        assert_eq!((AudioFormat::TELEPHONE.millis_of_bytes(160), odd.millis_of_bytes(160)), (20, 7));
        assert_eq!((Codec::S16le.samples_of(5), Codec::Ulaw.samples_of(5)), (2, 5));
        for codec in [Codec::Ulaw, Codec::S16le] {
            assert_eq!(Codec::from_name(codec.name()), Some(codec));
        }
        assert_eq!(Codec::from_name("opus"), None);
        assert_eq!(AudioFormat::new(Codec::Ulaw, 8000), Some(AudioFormat::TELEPHONE));
    }
}
