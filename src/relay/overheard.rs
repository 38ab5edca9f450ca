//! Copies of what passes, for whoever listens. Bounded; when the listener is too slow it misses messages and is told how
//! many, and the call is not delayed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::passed::Passed;
use tokio::sync::{mpsc, watch};

/// Messages that may wait: five seconds of a call with both sides talking.
const MAX_MESSAGES: usize = 512;
/// Their bytes: agents send seconds of audio in one message.
const MAX_BYTES: usize = 1 << 20;

/// Who said something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The provider, for the caller.
    Provider,
    /// The agent.
    Agent,
}

/// A copy of a message. Its bytes are shared, not copied.
#[derive(Debug, Clone)]
pub struct Copy {
    /// Who said it.
    pub side: Side,
    /// When it was read from its socket.
    pub at: Instant,
    /// Verbatim.
    pub message: Passed,
    /// What was missed since the last copy.
    pub missed: Missed,
}

/// Messages that were not copied, because there was no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missed {
    /// How many.
    pub messages: u64,
    /// Bytes of samples of the provider among them.
    pub sample_bytes: u64,
    /// Bytes of samples of the agent among them.
    pub agent_bytes: u64,
}

/// What the listener makes of a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The provider has said that the stream is over.
    pub has_stopped: bool,
    /// The provider broke the protocol: the call must end with this code and reason.
    pub close: Option<(u16, &'static str)>,
}

/// The call's end: gives copies, sees verdicts.
pub struct Listener {
    copies: mpsc::Sender<Copy>,
    bytes: Arc<AtomicUsize>,
    missed: Arc<MissedCount>,
    verdicts: watch::Receiver<Verdict>,
}

/// The listener's end.
pub struct Listening {
    copies: mpsc::Receiver<Copy>,
    bytes: Arc<AtomicUsize>,
    missed: Arc<MissedCount>,
    verdicts: watch::Sender<Verdict>,
}

/// Makes both ends.
pub fn overhear() -> (Listener, Listening) {
    let (copies, received) = mpsc::channel(MAX_MESSAGES);
    let (verdict, verdicts) = watch::channel(Verdict::default());
    let (bytes, missed) = (Arc::new(AtomicUsize::new(0)), Arc::new(MissedCount::default()));
    let listener = Listener { copies, bytes: Arc::clone(&bytes), missed: Arc::clone(&missed), verdicts };
    (listener, Listening { copies: received, bytes, missed, verdicts: verdict })
}

/// What was missed and nobody has been told. Only the call adds, so that the numbers belong together.
#[derive(Default)]
struct MissedCount {
    messages: AtomicU64,
    sample_bytes: AtomicU64,
    agent_bytes: AtomicU64,
}

impl MissedCount {
    fn add(&self, missed: Missed) {
        self.messages.fetch_add(missed.messages, Ordering::AcqRel);
        self.sample_bytes.fetch_add(missed.sample_bytes, Ordering::AcqRel);
        self.agent_bytes.fetch_add(missed.agent_bytes, Ordering::AcqRel);
    }

    fn take(&self) -> Missed {
        Missed {
            messages: self.messages.swap(0, Ordering::AcqRel),
            sample_bytes: self.sample_bytes.swap(0, Ordering::AcqRel),
            agent_bytes: self.agent_bytes.swap(0, Ordering::AcqRel),
        }
    }
}

impl Listener {
    /// Gives a copy, or counts that there was no room. Never waits.
    pub fn offer(&self, side: Side, at: Instant, message: &Passed) {
        let length = message.len();
        if self.bytes.fetch_add(length, Ordering::AcqRel) + length <= MAX_BYTES {
            let missed = self.missed.take();
            let copy = Copy { side, at, message: message.clone(), missed };
            match self.copies.try_send(copy) {
                Ok(()) => return,
                Err(_) => self.missed.add(missed),
            }
        }
        self.bytes.fetch_sub(length, Ordering::AcqRel);
        let bytes = if matches!(message, Passed::Binary(_)) { length as u64 } else { 0 };
        self.missed.add(match side {
            Side::Provider => Missed { messages: 1, sample_bytes: bytes, agent_bytes: 0 },
            Side::Agent => Missed { messages: 1, sample_bytes: 0, agent_bytes: bytes },
        });
    }

    /// Returns what the listener makes of the call so far.
    pub fn verdict(&self) -> Verdict {
        *self.verdicts.borrow()
    }

    /// Returns what waits for verdicts.
    pub fn verdicts(&self) -> Verdicts {
        Verdicts(self.verdicts.clone())
    }
}

/// Waits for verdicts.
pub struct Verdicts(watch::Receiver<Verdict>);

impl Verdicts {
    /// Waits for another verdict; for ever when the listener is gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Listening {
    /// Waits for the next copy; `None` when the call is over.
    pub async fn next(&mut self) -> Option<Copy> {
        let copy = self.copies.recv().await?;
        self.bytes.fetch_sub(copy.message.len(), Ordering::AcqRel);
        Some(copy)
    }

    /// Returns the next copy if there is one.
    pub fn next_now(&mut self) -> Option<Copy> {
        let copy = self.copies.try_recv().ok()?;
        self.bytes.fetch_sub(copy.message.len(), Ordering::AcqRel);
        Some(copy)
    }

    /// Returns what was missed since the last copy: at the call's end there is no later one to say so.
    pub fn missed_last(&self) -> Missed {
        self.missed.take()
    }

    /// Tells the call what to make of it.
    pub fn tell(&self, verdict: Verdict) {
        self.verdicts.send_if_modified(|known| {
            let is_new = *known != verdict;
            *known = verdict;
            is_new
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_slow_listener_misses_messages_and_is_told_how_many() {
        let (listener, mut listening) = overhear();
        let now = clock::monotonic();
        let text = Passed::Text("x".into());
        for _ in 0..MAX_MESSAGES + 7 {
            listener.offer(Side::Provider, now, &text);
        }
        let first: Vec<_> = std::iter::from_fn(|| listening.next_now()).collect();
        assert_eq!(
            (first.len(), first.iter().map(|copy| copy.missed.messages).sum::<u64>()),
            (MAX_MESSAGES, 0)
        );
        listener.offer(Side::Agent, now, &text);
        assert_eq!(listening.next_now().unwrap().missed.messages, 7);
        let large = Passed::Text("x".repeat(MAX_BYTES / 2 + 1).into());
        listener.offer(Side::Agent, now, &large);
        listener.offer(Side::Agent, now, &large);
        assert_eq!(listening.next_now().unwrap().missed.messages, 0);
        listener.offer(Side::Agent, now, &large);
        assert_eq!(listening.next_now().unwrap().missed.messages, 1);
        listener.offer(Side::Agent, now, &large);
        listener.offer(Side::Agent, now, &large);
        drop(listener);
        assert_eq!(listening.next_now().unwrap().missed.messages, 0);
        assert_eq!((listening.next_now().is_none(), listening.missed_last().messages), (true, 1));
        assert_eq!(listening.missed_last(), Missed::default(), "told once");
    }

    #[test]
    fn bytes_of_samples_that_were_missed_are_told() {
        let (listener, mut listening) = overhear();
        let now = clock::monotonic();
        let samples = Passed::Binary(vec![0; MAX_BYTES / 2 + 1].into());
        for _ in 0..3 {
            listener.offer(Side::Provider, now, &samples);
            listener.offer(Side::Agent, now, &samples);
        }
        assert_eq!(listening.next_now().unwrap().missed, Missed::default());
        listener.offer(Side::Provider, now, &Passed::Text("x".into()));
        let one = MAX_BYTES as u64 / 2 + 1;
        let missed = Missed { messages: 5, sample_bytes: 2 * one, agent_bytes: 3 * one };
        assert_eq!(listening.next_now().unwrap().missed, missed);
    }

    #[tokio::test]
    async fn verdicts_arrive_and_a_listener_that_is_gone_says_nothing() {
        let (listener, listening) = overhear();
        let mut verdicts = listener.verdicts();
        let verdict = Verdict { has_stopped: true, close: None };
        listening.tell(verdict);
        verdicts.changed().await;
        assert_eq!(listener.verdict(), verdict);
        drop(listening);
        listener.offer(Side::Provider, clock::monotonic(), &Passed::Text("x".into()));
        let silence = tokio::time::timeout(std::time::Duration::from_millis(1), verdicts.changed()).await;
        assert!(silence.is_err());
    }
}
