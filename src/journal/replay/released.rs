//! The list of recordings that were released while files with some of their records had to stay.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::domain::ids::RecordingId;
use crate::journal::Record;
use crate::journal::scan::{Found, scan};

/// A file of `finished` records, each synced before its recording counts as released.
pub(super) struct Released {
    path: PathBuf,
    listed: BTreeSet<RecordingId>,
    /// The bytes of its whole records; what is behind them is from a write that failed.
    length: u64,
}

impl Released {
    /// Reads the list of a directory; a missing or torn one is as long as it is.
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let path = dir.join("released");
        let mut listed = BTreeSet::new();
        let length = match File::open(&path) {
            Ok(file) => {
                scan(file, |found| {
                    if let Found::Finished { recording } = found {
                        listed.insert(recording);
                    }
                })
                .length
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        Ok(Self { path, listed, length })
    }

    pub(super) fn contains(&self, recording: RecordingId) -> bool {
        self.listed.contains(&recording)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = RecordingId> {
        self.listed.iter().copied()
    }

    /// Adds recordings durably, all or none of them.
    pub(super) fn add(&mut self, recordings: &BTreeSet<RecordingId>) -> io::Result<()> {
        let mut encoded = Vec::new();
        for recording in recordings.difference(&self.listed) {
            Record::Finished { recording: *recording }.encode(&mut encoded);
        }
        if encoded.is_empty() {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&self.path)?;
        file.set_len(self.length)?;
        file.write_all_at(&encoded, self.length)?;
        file.sync_all()?;
        if let (Some(dir), 0) = (self.path.parent(), self.length) {
            File::open(dir)?.sync_all()?;
        }
        self.length += encoded.len() as u64;
        self.listed.extend(recordings);
        Ok(())
    }

    /// Removes the list when no file needs it.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.listed.clear();
        self.length = 0;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
