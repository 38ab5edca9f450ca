//! What waits for a peer that does not read: bounded. Where audio may go, the oldest goes first; nothing else ever does.

use std::collections::VecDeque;

use super::passed::{Passed, Traffic};

/// Messages to one peer, in order.
pub(super) struct Queue {
    waiting: VecDeque<Passed>,
    bytes: usize,
    max_bytes: usize,
    traffic: Traffic,
}

/// What had to go for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Nothing, or so many messages of audio.
    Kept { dropped: u64 },
    /// There was no audio that may go: a peer that reads nothing at all.
    Overflowed,
}

impl Queue {
    pub(super) fn new(max_bytes: usize, traffic: Traffic) -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, max_bytes, traffic }
    }

    /// Adds a message; while there are too many bytes, the oldest audio goes.
    pub(super) fn push(&mut self, message: Passed) -> Pushed {
        self.bytes += message.len();
        self.waiting.push_back(message);
        let mut dropped = 0;
        while self.bytes > self.max_bytes {
            let oldest = match self.traffic {
                Traffic::Texts => self.waiting.iter().position(Passed::is_audio_text),
                Traffic::Samples { .. } => None,
            };
            let Some(oldest) = oldest else { return Pushed::Overflowed };
            if let Some(gone) = self.waiting.remove(oldest) {
                self.bytes -= gone.len();
            }
            dropped += 1;
        }
        Pushed::Kept { dropped }
    }

    /// Adds a message and drops none, whatever the bound: who pushes has looked for room.
    pub(super) fn push_last(&mut self, message: Passed) {
        self.bytes += message.len();
        self.waiting.push_back(message);
    }

    pub(super) fn pop(&mut self) -> Option<Passed> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Passed {
        Passed::Text(text.into())
    }

    fn media(inside: &str) -> Passed {
        text(&format!(r#"{{"event":"media",{inside}}}"#))
    }

    #[test]
    fn the_oldest_audio_goes_first_and_nothing_else_ever() {
        let mut queue = Queue::new(100, Traffic::Texts);
        assert_eq!(queue.push(text(r#"{"event":"start"}"#)), Pushed::Kept { dropped: 0 });
        for number in 0..3 {
            assert_eq!(queue.push(media(&number.to_string())), Pushed::Kept { dropped: 0 }, "{number}");
        }
        assert_eq!(queue.push(media(&"x".repeat(20))), Pushed::Kept { dropped: 1 });
        assert_eq!(queue.push(text(r#"{"event":"mark"}"#)), Pushed::Kept { dropped: 1 });
        let left: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        let wanted =
            [text(r#"{"event":"start"}"#), media("2"), media(&"x".repeat(20)), text(r#"{"event":"mark"}"#)];
        assert_eq!(left, wanted);
        assert!(queue.is_empty());
    }

    #[test]
    fn without_audio_to_drop_it_overflows() {
        let mut queue = Queue::new(64, Traffic::Texts);
        let mark = || text(&format!(r#"{{"event":"mark","x":"{}"}}"#, "y".repeat(20)));
        assert_eq!(queue.push(mark()), Pushed::Kept { dropped: 0 });
        assert_eq!(queue.push(mark()), Pushed::Overflowed);
        assert_eq!(queue.clear(), 2);
        assert!(!queue.is_full());
    }

    #[test]
    fn no_sample_ever_goes() {
        let mut queue = Queue::new(64, Traffic::Samples { frame_bytes: 4 });
        let samples = || Passed::Binary(vec![0; 40].into());
        assert_eq!(queue.push(samples()), Pushed::Kept { dropped: 0 });
        assert_eq!(queue.push(media("")), Pushed::Kept { dropped: 0 });
        assert_eq!(queue.push(samples()), Pushed::Overflowed);
    }
}
