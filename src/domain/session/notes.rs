//! What is learned of a call while it runs, to be sealed at its end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::domain::cmr::GapReason;
use crate::domain::recording::{MAX_NOTE_BYTES, MAX_NOTES};
use crate::domain::time::UnixMillis;

use super::{CallSession, SessionError};

/// What the end record will say beside what is counted.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) texts: BTreeMap<String, String>,
    /// The call ran before it was heard.
    pub(super) joined_late: bool,
}

impl CallSession {
    /// Notes a fact; a later one of the same name takes its place. Answers whether there was room.
    pub fn note(&mut self, name: &str, text: &str) -> bool {
        let texts = &mut self.kept.notes.texts;
        let has_room = texts.len() < MAX_NOTES || texts.contains_key(name);
        let fits = name.len() + text.len() <= MAX_NOTE_BYTES;
        if has_room && fits {
            texts.insert(name.to_owned(), text.to_owned());
        }
        has_room && fits
    }

    /// Seals that the call ran for `time` before it was heard; the recording will not count as complete.
    ///
    /// # Errors
    /// See [`CallSession::handle_gap`].
    pub fn handle_joined_late(
        &mut self,
        now: Instant,
        wall: UnixMillis,
        time: Duration,
    ) -> Result<(), SessionError> {
        self.kept.notes.joined_late = true;
        self.note("joined_after_ms", &time.as_millis().to_string());
        self.handle_gap(now, wall, time, GapReason::Source)
    }
}
