//! What is passed on, and what a call is made of.

use tokio_tungstenite::tungstenite::{Bytes, Message, Utf8Bytes};

/// A message that is passed on as it is. Clones share its bytes.
#[derive(Clone, PartialEq, Eq)]
pub enum Passed {
    /// A text.
    Text(Utf8Bytes),
    /// Bytes.
    Binary(Bytes),
}

/// What the messages of a call are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Texts, each complete in itself. An agent that is too slow misses the oldest of those that hold audio; binary messages
    /// are passed on to nobody.
    Texts,
    /// Texts, and samples in binary messages that may end anywhere. None of them may be missed: an agent that is too slow
    /// is lost.
    Samples {
        /// Bytes of one sample of all channels, where a provider's samples may begin for a new agent.
        frame_bytes: usize,
    },
}

impl Passed {
    /// Returns its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is a provider's audio in JSON, by how it begins. One that is written in another way counts as something
    /// else.
    pub(super) fn is_audio_text(&self) -> bool {
        match self {
            Self::Text(text) => {
                text.starts_with(r#"{"event":"media""#) || text.starts_with(r#"{"event": "media""#)
            }
            Self::Binary(_) => false,
        }
    }
}

/// Without what is said in it.
impl std::fmt::Debug for Passed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

impl From<Utf8Bytes> for Passed {
    fn from(text: Utf8Bytes) -> Self {
        Self::Text(text)
    }
}

impl From<Passed> for Message {
    fn from(passed: Passed) -> Self {
        match passed {
            Passed::Text(text) => Self::Text(text),
            Passed::Binary(bytes) => Self::Binary(bytes),
        }
    }
}

/// Sees to it that samples begin with the first channel for an agent that was not there from the start.
#[derive(Debug)]
pub(super) struct Alignment {
    /// Bytes of one sample of all channels.
    frame_bytes: usize,
    /// How many of them have passed of the newest one.
    phase: usize,
    /// Bytes that are left out, because a new agent does not know what they belong to.
    skip: usize,
}

impl Alignment {
    pub(super) fn new(traffic: Traffic) -> Self {
        let frame_bytes = match traffic {
            Traffic::Texts => 1,
            Traffic::Samples { frame_bytes } => frame_bytes.max(1),
        };
        Self { frame_bytes, phase: 0, skip: 0 }
    }

    /// Takes a message of the provider; answers what the agent gets of it.
    pub(super) fn take(&mut self, message: Passed) -> Passed {
        let Passed::Binary(bytes) = &message else { return message };
        self.phase = (self.phase + bytes.len()) % self.frame_bytes;
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        if skipped == 0 { message } else { Passed::Binary(bytes.slice(skipped..)) }
    }

    /// The next message is the first that another agent gets.
    pub(super) fn begin_anew(&mut self) {
        self.skip = (self.frame_bytes - self.phase) % self.frame_bytes;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_new_agent_hears_the_first_channel_first(
            before in prop::collection::vec(0usize..9, 0..20), after in prop::collection::vec(0usize..9, 1..20),
            frame_bytes in 1usize..9,
        ) {
            let mut alignment = Alignment::new(Traffic::Samples { frame_bytes });
            // Each byte says which of its frame it is.
            let mut number = 0;
            let mut message = |length: usize| {
                let bytes: Vec<u8> = (number..number + length).map(|at| u8::try_from(at % frame_bytes).unwrap()).collect();
                number += length;
                Passed::Binary(bytes.into())
            };
            for length in before {
                let sent = message(length);
                prop_assert_eq!(alignment.take(sent.clone()), sent);
            }
            alignment.begin_anew();
            let mut heard = Vec::new();
            for length in after {
                if let Passed::Binary(bytes) = alignment.take(message(length)) {
                    heard.extend_from_slice(&bytes);
                }
            }
            for (at, byte) in heard.iter().enumerate() {
                prop_assert_eq!(usize::from(*byte), at % frame_bytes);
            }
        }
    }
}
