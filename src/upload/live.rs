//! Which recordings this process is storing: nobody here may take them for abandoned.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::ids::RecordingId;

/// The recordings of all lanes, from a call's start to the end of its lane; clones are the same set.
#[derive(Debug, Clone, Default)]
pub(super) struct LiveRecordings {
    lanes: Arc<Mutex<HashMap<RecordingId, usize>>>,
}

/// Keeps a recording in the set for as long as it lives.
#[derive(Debug)]
pub(super) struct LiveGuard {
    set: LiveRecordings,
    recording: RecordingId,
}

impl LiveRecordings {
    pub(super) fn enter(&self, recording: RecordingId) -> LiveGuard {
        *self.lanes().entry(recording).or_default() += 1;
        LiveGuard { set: self.clone(), recording }
    }

    pub(super) fn contains(&self, recording: RecordingId) -> bool {
        self.lanes().contains_key(&recording)
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<RecordingId, usize>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LiveGuard {
    fn drop(&mut self) {
        let mut lanes = self.set.lanes();
        if let Some(count) = lanes.get_mut(&self.recording) {
            *count -= 1;
            if *count == 0 {
                lanes.remove(&self.recording);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_live_until_its_last_guard_is_gone() {
        let (set, recording) = (LiveRecordings::default(), RecordingId([7; 16]));
        let guards = [set.enter(recording), set.enter(recording)];
        let [first, second] = guards;
        drop(first);
        assert!(set.contains(recording));
        drop(second);
        assert!(!set.contains(recording));
    }
}
