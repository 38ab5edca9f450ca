//! Audio in the pieces that a provider sends, written in base64 once and shared by many calls.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::domain::sign::encode_base64;

/// Bytes of μ-law in one message: 20 ms at 8,000 samples per second.
pub const CHUNK_BYTES: usize = 160;
/// Milliseconds of one message.
pub const CHUNK_MS: u64 = 20;

/// The caller of the demonstration call: 57.8 s of μ-law speech.
pub static DEMO_CALLER: &[u8] = include_bytes!("../../assets/demo/reception-call.caller.ulaw");
/// The agent of the demonstration call, same length and time line as [`DEMO_CALLER`].
pub static DEMO_AGENT: &[u8] = include_bytes!("../../assets/demo/reception-call.agent.ulaw");

/// μ-law audio whose 160-byte chunks are encoded when they are first sent.
pub struct Speech {
    audio: Bytes,
    encoded: Box<[OnceLock<Box<str>>]>,
}

impl Speech {
    /// Takes raw μ-law, 8,000 samples per second, mono.
    pub fn new(audio: Bytes) -> Arc<Self> {
        let chunks = audio.len().div_ceil(CHUNK_BYTES);
        let encoded = std::iter::repeat_with(OnceLock::new).take(chunks).collect();
        Arc::new(Self { audio, encoded })
    }

    fn chunk(&self, index: usize) -> Option<&[u8]> {
        self.audio.chunks(CHUNK_BYTES).nth(index)
    }

    fn base64(&self, index: usize) -> Option<&str> {
        let chunk = self.chunk(index)?;
        Some(self.encoded.get(index)?.get_or_init(|| encode_base64(chunk).into_boxed_str()))
    }
}

/// What one side of a call says.
#[derive(Clone)]
pub struct Track {
    speech: Arc<Speech>,
    /// The chunk that it begins with.
    first: usize,
    /// Chunks after which the speech begins anew.
    cycle: usize,
    chunks: usize,
}

impl Track {
    /// Says all of `audio` once; the last message is shorter where it is no multiple of 160 bytes.
    pub fn whole(audio: impl Into<Bytes>) -> Self {
        let speech = Speech::new(audio.into());
        let chunks = speech.encoded.len();
        Self { speech, first: 0, cycle: chunks, chunks }
    }

    /// Says `chunks` times 20 ms of `speech` from chunk `first` on, over and over.
    ///
    /// A rest of less than 160 bytes at the end of the speech is left out. Speech shorter than that gives no audio.
    pub fn looped(speech: &Arc<Speech>, first: usize, chunks: usize) -> Self {
        let cycle = speech.audio.len() / CHUNK_BYTES;
        Self { speech: Arc::clone(speech), first, cycle, chunks: if cycle == 0 { 0 } else { chunks } }
    }

    /// Returns how many messages it takes.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Returns message `chunk` in base64; `None` after the end.
    pub fn base64(&self, chunk: usize) -> Option<&str> {
        self.speech.base64(self.index(chunk)?)
    }

    /// Returns everything that is said, to compare a recording with.
    pub fn audio(&self) -> Vec<u8> {
        (0..self.chunks)
            .filter_map(|chunk| self.speech.chunk(self.index(chunk)?))
            .flatten()
            .copied()
            .collect()
    }

    fn index(&self, chunk: usize) -> Option<usize> {
        (chunk < self.chunks).then(|| (self.first + chunk) % self.cycle.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::sign::decode_base64;

    fn decoded(track: &Track) -> Vec<u8> {
        (0..track.chunks())
            .flat_map(|i| decode_base64(track.base64(i).unwrap().as_bytes()).unwrap())
            .collect()
    }

    #[test]
    fn all_audio_is_said_once() {
        let audio: Vec<u8> = (0..=255).cycle().take(1_000).collect();
        let track = Track::whole(audio.clone());
        assert_eq!(track.chunks(), 7);
        assert_eq!((track.base64(6).map(str::len), track.base64(7)), (Some(56), None));
        assert_eq!(decoded(&track), audio);
        assert_eq!(track.audio(), audio);
        assert_eq!(Track::whole(Bytes::new()).chunks(), 0);
    }

    #[test]
    fn speech_loops_in_whole_chunks() {
        let speech = Speech::new((0..500u16).map(|i| i.to_be_bytes()[1]).collect());
        let track = Track::looped(&speech, 2, 4);
        let one = |i: usize| speech.chunk(i).unwrap().to_vec();
        assert_eq!(track.audio(), [one(2), one(0), one(1), one(2)].concat());
        assert_eq!(decoded(&track), track.audio());
        assert_eq!(Track::looped(&Speech::new(Bytes::from_static(b"x")), 0, 9).audio(), b"");
    }

    #[test]
    fn the_demonstration_call_has_two_sides_of_one_length() {
        assert_eq!(DEMO_CALLER.len(), 462_400);
        assert_eq!(DEMO_AGENT.len(), DEMO_CALLER.len());
    }
}
