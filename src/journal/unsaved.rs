//! How old the oldest sealed bytes are that the journal was handed and has not made durable.
//!
//! Costs some assignments for each batch and each sync, and nothing for a message. What is uncertain counts as not
//! durable, so that the age is never too low for what the writer has taken.

use std::time::Instant;

/// When the oldest frame was sealed of what is on each step of its way to the disk.
#[derive(Debug, Default)]
pub(super) struct Unsaved {
    /// The batch that is being written.
    writing: Option<Instant>,
    /// What the system has taken since the last sync began.
    written: Option<Instant>,
    /// What the running sync makes durable.
    syncing: Option<Instant>,
    /// What no file took, or what a file lost; it is handed over again when a file works.
    lost: Option<Instant>,
}

impl Unsaved {
    /// A batch goes to a file.
    pub(super) fn begin_write(&mut self, oldest: Option<Instant>) {
        self.writing = oldest;
    }

    /// The batch is with the system, in a file that is believed or not.
    pub(super) fn end_write(&mut self, is_believed: bool) {
        let to = if is_believed { &mut self.written } else { &mut self.lost };
        *to = earlier(*to, self.writing.take());
    }

    /// A sync of everything written begins.
    pub(super) fn begin_sync(&mut self) {
        self.syncing = earlier(self.syncing, self.written.take());
    }

    /// The sync ended. Where it failed, what was written meanwhile may be in the file that failed.
    pub(super) fn end_sync(&mut self, is_durable: bool) {
        let synced = self.syncing.take();
        if !is_durable {
            self.lost = earlier(self.lost, earlier(synced, self.written.take()));
        }
    }

    /// A new file works: what was lost is handed over again, and the next sync makes it durable.
    pub(super) fn recover(&mut self) {
        self.written = earlier(self.written, self.lost.take());
    }

    /// When the oldest frame that is not durable was sealed; `None` when everything is.
    pub(super) fn oldest(&self) -> Option<Instant> {
        [self.writing, self.written, self.syncing, self.lost].into_iter().flatten().min()
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::time::Duration;

    fn moments() -> [Instant; 3] {
        let first = clock::monotonic();
        [first, first + Duration::from_secs(1), first + Duration::from_secs(2)]
    }

    #[test]
    fn a_batch_is_unsaved_until_a_sync_that_began_after_it_has_ended() {
        let [first, second, _] = moments();
        let mut unsaved = Unsaved::default();
        assert_eq!(unsaved.oldest(), None);
        unsaved.begin_write(Some(first));
        assert_eq!(unsaved.oldest(), Some(first), "a write that hangs is seen");
        unsaved.begin_sync();
        unsaved.end_write(true);
        unsaved.end_sync(true);
        assert_eq!(unsaved.oldest(), Some(first), "that sync began before the batch was with the system");
        unsaved.begin_sync();
        unsaved.begin_write(Some(second));
        unsaved.end_write(true);
        assert_eq!(unsaved.oldest(), Some(first), "a sync that hangs is seen");
        unsaved.end_sync(true);
        assert_eq!(unsaved.oldest(), Some(second));
        unsaved.begin_sync();
        unsaved.end_sync(true);
        assert_eq!(unsaved.oldest(), None);
    }

    #[test]
    fn what_was_lost_stays_unsaved_until_a_file_works_and_is_synced() {
        let [first, second, third] = moments();
        let mut unsaved = Unsaved::default();
        unsaved.begin_write(Some(first));
        unsaved.end_write(true);
        unsaved.begin_sync();
        unsaved.end_sync(false);
        unsaved.begin_write(Some(second));
        unsaved.end_write(false);
        // Nothing is dirty, so nothing fails; it proves nothing either.
        unsaved.begin_sync();
        unsaved.end_sync(true);
        assert_eq!(unsaved.oldest(), Some(first));
        unsaved.recover();
        unsaved.begin_write(Some(third));
        unsaved.end_write(true);
        assert_eq!(unsaved.oldest(), Some(first));
        unsaved.begin_sync();
        unsaved.end_sync(true);
        assert_eq!(unsaved.oldest(), None);
    }

    #[test]
    fn what_was_written_while_a_sync_failed_is_in_doubt_as_well() {
        let [first, second, _] = moments();
        let mut unsaved = Unsaved::default();
        unsaved.begin_write(Some(first));
        unsaved.end_write(true);
        unsaved.begin_sync();
        unsaved.begin_write(Some(second));
        unsaved.end_write(true);
        unsaved.end_sync(false);
        // The next sync has nothing of the file that failed.
        unsaved.begin_sync();
        unsaved.end_sync(true);
        assert_eq!([unsaved.lost, unsaved.oldest()], [Some(first); 2]);
        unsaved.recover();
        unsaved.begin_sync();
        unsaved.end_sync(true);
        assert_eq!(unsaved.oldest(), None);
    }

    #[test]
    fn a_batch_without_frames_is_nothing_to_lose() {
        let mut unsaved = Unsaved::default();
        unsaved.begin_write(None);
        unsaved.end_write(false);
        assert_eq!(unsaved.oldest(), None);
    }
}
