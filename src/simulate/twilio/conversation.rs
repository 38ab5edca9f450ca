//! Twilio's end of a bidirectional stream: sends the caller's audio, plays the agent's in real time, returns marks.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clock;
use crate::domain::sign::decode_base64;
use crate::simulate::messages::Direction;
use crate::simulate::speech::CHUNK_MS;

use super::super::received::Received;
use super::{CallError, TwilioCall};

/// Samples per millisecond of μ-law at 8,000 Hz.
const SAMPLES_PER_MS: u64 = 8;

/// What was heard and said in a conversation.
#[derive(Debug, Default)]
pub struct Conversation {
    /// What the caller heard from the stream's beginning on, sample by sample; `None` is silence.
    pub heard: Vec<Option<u8>>,
    /// Every message of the agent, verbatim.
    pub received: Vec<String>,
    /// Names of marks in the order in which they came back.
    pub marks: Vec<String>,
    /// Code and reason with which the server ended it, if it did.
    pub closed: Option<(Option<u16>, String)>,
    /// How much later than it should have the most delayed message of the caller was sent: this process was busy.
    pub worst_delay: Duration,
}

/// What Twilio plays: 20 ms with each message of the caller.
struct Player {
    conversation: Conversation,
    queue: VecDeque<u8>,
    /// Names, and how many samples of the queue are before each.
    marks: VecDeque<(String, usize)>,
}

impl Player {
    /// Plays up to a position on the stream's clock, in samples; answers the marks that are to be returned.
    fn play(&mut self, until: u64) -> Vec<String> {
        let until = usize::try_from(until).unwrap_or(usize::MAX);
        let mut returned = Vec::new();
        loop {
            returned.append(&mut self.reached());
            if self.conversation.heard.len() >= until {
                return returned;
            }
            let sample = self.queue.pop_front();
            if sample.is_some() {
                self.marks.iter_mut().for_each(|(_, before)| *before -= 1);
            }
            self.conversation.heard.push(sample);
        }
    }

    /// Returns the marks before which nothing is left to play.
    fn reached(&mut self) -> Vec<String> {
        let reached = self.marks.iter().take_while(|(_, before)| *before == 0).count();
        self.marks.drain(..reached).map(|(name, _)| name).collect()
    }

    /// Takes a message of the agent; answers the marks that are to be returned at once.
    fn take(&mut self, text: &str) -> Vec<String> {
        self.conversation.received.push(text.to_owned());
        let Ok(message) = serde_json::from_str::<Value>(text) else { return Vec::new() };
        let field = |path: &str| message.pointer(path).and_then(Value::as_str).unwrap_or_default();
        match field("/event") {
            "media" => {
                self.queue.extend(decode_base64(field("/media/payload").as_bytes()).unwrap_or_default());
                Vec::new()
            }
            "mark" => {
                self.marks.push_back((field("/mark/name").to_owned(), self.queue.len()));
                self.reached()
            }
            "clear" => {
                self.queue.clear();
                self.marks.drain(..).map(|(name, _)| name).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl TwilioCall {
    /// Plays the plan's caller in real time, and what the agent sends, until `longest` is over or the server closes. The
    /// greeting is sent first; nothing is sent at the end.
    ///
    /// # Errors
    /// [`CallError`] when the connection breaks without a close.
    pub async fn converse(&mut self, longest: Duration) -> Result<Conversation, CallError> {
        self.greet().await?;
        let began = clock::monotonic();
        let first_ms = self.plan.first_timestamp_ms;
        let mut player =
            Player { conversation: Conversation::default(), queue: VecDeque::new(), marks: VecDeque::new() };
        // The stream's clock ran while it was set up: nobody could be heard then.
        let silence = player.play(first_ms * SAMPLES_PER_MS);
        debug_assert!(silence.is_empty(), "there are no marks yet");
        let ticks = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX) / CHUNK_MS;
        for tick in 0..ticks {
            let due = began + Duration::from_millis(tick * CHUNK_MS);
            if !self.listen_until(due, &mut player).await? {
                return Ok(player.conversation);
            }
            let delay = clock::since(due);
            player.conversation.worst_delay = player.conversation.worst_delay.max(delay);
            let timestamp_ms = first_ms + tick * CHUNK_MS;
            // The caller's 20 ms are over when they are sent, and so are those that were played meanwhile.
            let returned = player.play((timestamp_ms + CHUNK_MS) * SAMPLES_PER_MS);
            let chunk = usize::try_from(tick).unwrap_or(usize::MAX);
            if let Some(payload) = self.plan.caller.base64(chunk) {
                let media = self.messages.media(Direction::Inbound, timestamp_ms, payload);
                self.send_text(media).await?;
            }
            self.return_marks(returned, &mut player).await?;
        }
        Ok(player.conversation)
    }

    /// Takes what the agent sends until `due`; `false` when the server has closed.
    async fn listen_until(&mut self, due: Instant, player: &mut Player) -> Result<bool, CallError> {
        let alarm = tokio::time::sleep_until(due.into());
        tokio::pin!(alarm);
        loop {
            let received = tokio::select! {
                biased;
                () = &mut alarm => return Ok(true),
                received = self.recv() => received?,
            };
            match received {
                Received::Text(text) => {
                    let returned = player.take(&text);
                    self.return_marks(returned, player).await?;
                }
                Received::Closed { code, reason } => {
                    player.conversation.closed = Some((code, reason));
                    return Ok(false);
                }
                Received::Binary(_) => {}
            }
        }
    }

    async fn return_marks(&mut self, names: Vec<String>, player: &mut Player) -> Result<(), CallError> {
        for name in names {
            let mark = self.messages.mark(&name);
            player.conversation.marks.push(name);
            self.send_text(mark).await?;
        }
        Ok(())
    }
}
