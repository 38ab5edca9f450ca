//! Files that are not objects yet.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use crate::clock;

/// A file under a random name, mode 0600; dropping it removes that name.
#[derive(Debug)]
pub(super) struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    /// Creates an empty one in `dir`.
    pub(super) fn create(dir: &Path) -> io::Result<Self> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let path = dir.join(format!("{:032x}", u128::from_be_bytes(random)));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // A name that was renamed away is gone already; one that stays is removed as a leftover some day.
        fs::remove_file(&self.path).unwrap_or_default();
    }
}

/// Removes the files of `dir` that nobody has written for `age`.
pub(super) fn remove_leftovers(dir: &Path, age: Duration) -> io::Result<()> {
    let now = Duration::from_millis(clock::wall().0);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Somebody else may have removed the file meanwhile.
        let Ok(found) = entry.metadata() else { continue };
        let written = found.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        if found.is_file() && written + age < now {
            fs::remove_file(entry.path()).unwrap_or_default();
        }
    }
    Ok(())
}
