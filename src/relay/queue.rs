//! What waits for a peer that does not read: bounded, the oldest audio goes first, nothing else ever does.

use std::collections::VecDeque;

use tokio_tungstenite::tungstenite::Utf8Bytes;

/// Messages to one peer, in order.
pub(super) struct Queue {
    waiting: VecDeque<Utf8Bytes>,
    bytes: usize,
    max_bytes: usize,
}

/// What had to go for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Nothing, or so many messages of audio.
    Kept { dropped: u64 },
    /// There was no audio left to drop: a peer that reads nothing at all.
    Overflowed,
}

impl Queue {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, max_bytes }
    }

    /// Adds a message; while there are too many bytes, the oldest audio goes.
    pub(super) fn push(&mut self, message: Utf8Bytes) -> Pushed {
        self.bytes += message.len();
        self.waiting.push_back(message);
        let mut dropped = 0;
        while self.bytes > self.max_bytes {
            let Some(oldest) = self.waiting.iter().position(|message| is_audio(message)) else {
                return Pushed::Overflowed;
            };
            if let Some(gone) = self.waiting.remove(oldest) {
                self.bytes -= gone.len();
            }
            dropped += 1;
        }
        Pushed::Kept { dropped }
    }

    /// Adds a message and drops none, whatever the bound: who pushes has looked for room.
    pub(super) fn push_last(&mut self, message: Utf8Bytes) {
        self.bytes += message.len();
        self.waiting.push_back(message);
    }

    pub(super) fn pop(&mut self) -> Option<Utf8Bytes> {
        let message = self.waiting.pop_front()?;
        self.bytes -= message.len();
        Some(message)
    }

    /// Throws everything away; answers how many messages that were.
    pub(super) fn clear(&mut self) -> u64 {
        let gone = self.waiting.len() as u64;
        self.waiting.clear();
        self.bytes = 0;
        gone
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes >= self.max_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Whether a message is audio, by how it begins. One that is written in another way counts as something else and is kept.
pub(super) fn is_audio(message: &str) -> bool {
    message.starts_with(r#"{"event":"media""#) || message.starts_with(r#"{"event": "media""#)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(text: &str) -> Utf8Bytes {
        format!(r#"{{"event":"media",{text}}}"#).into()
    }

    #[test]
    fn the_oldest_audio_goes_first_and_nothing_else_ever() {
        let mut queue = Queue::new(100);
        assert_eq!(queue.push(r#"{"event":"start"}"#.into()), Pushed::Kept { dropped: 0 });
        for number in 0..3 {
            assert_eq!(queue.push(media(&number.to_string())), Pushed::Kept { dropped: 0 }, "{number}");
        }
        assert_eq!(queue.push(media(&"x".repeat(20))), Pushed::Kept { dropped: 1 });
        assert_eq!(queue.push(r#"{"event":"mark"}"#.into()), Pushed::Kept { dropped: 1 });
        let left: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        let wanted =
            [r#"{"event":"start"}"#.into(), media("2"), media(&"x".repeat(20)), r#"{"event":"mark"}"#.into()];
        assert_eq!(left, wanted);
        assert!(queue.is_empty());
    }

    #[test]
    fn without_audio_to_drop_it_overflows() {
        let mut queue = Queue::new(64);
        let mark = || Utf8Bytes::from(format!(r#"{{"event":"mark","x":"{}"}}"#, "y".repeat(20)));
        assert_eq!(queue.push(mark()), Pushed::Kept { dropped: 0 });
        assert_eq!(queue.push(mark()), Pushed::Overflowed);
        assert_eq!(queue.clear(), 2);
        assert!(!queue.is_full());
    }
}
