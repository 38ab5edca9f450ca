//! The files of the journal, behind a small trait so that tests can make them fail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// What the journal asks of a file system to write.
pub trait JournalFiles: Send + Sync {
    /// Creates a new, empty file, readable by its owner only.
    ///
    /// # Errors
    /// What the system says, also if the file exists.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>>;

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says, also if there is none.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// A file that only grows, used by two threads at once.
pub trait JournalFile: Send + Sync {
    /// Writes at the end, perhaps not all of it; returns how many bytes.
    ///
    /// # Errors
    /// What the system says.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// Makes what was written durable (`fdatasync`). After an error nothing that was written can be relied on.
    ///
    /// # Errors
    /// What the system says.
    fn sync_data(&self) -> io::Result<()>;
}

/// The files of the system.
#[derive(Debug, Clone, Copy)]
pub struct SystemFiles;

impl JournalFiles for SystemFiles {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn JournalFile>> {
        Ok(Arc::new(OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

impl JournalFile for File {
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut &*self, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }
}

/// Writes everything, with one call unless the system takes less.
pub(super) fn write_all(file: &dyn JournalFile, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The name of a journal file; they order as the files were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileName {
    /// The Unix time in milliseconds that the process began at.
    pub(super) incarnation: u64,
    /// The number of the file among those of its process.
    pub(super) number: u32,
}

impl FileName {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (incarnation, number) = text.strip_suffix(".cmj")?.split_once('-')?;
        let name =
            Self { incarnation: u64::from_str_radix(incarnation, 16).ok()?, number: number.parse().ok()? };
        (name.to_string() == text).then_some(name)
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:012x}-{:08}.cmj", self.incarnation, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_written() {
        let name = FileName { incarnation: 0x0199_a1b2_c3d4, number: 17 };
        assert_eq!(name.to_string(), "0199a1b2c3d4-00000017.cmj");
        assert_eq!(FileName::parse("0199a1b2c3d4-00000017.cmj"), Some(name));
        for other in ["lock", "released", "0199a1b2c3d4-00000017.cmj.corrupt", "199a1b2c3d4-17.cmj", "-.cmj"]
        {
            assert_eq!(FileName::parse(other), None, "{other}");
        }
    }
}
