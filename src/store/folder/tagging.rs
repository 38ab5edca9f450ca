//! Where the tags of an object are kept: in an attribute of its own file, and beside it where there can be none.
//!
//! An attribute becomes durable with the bytes that it belongs to, by one sync. Not every file system has attributes, and
//! those that have them bound their size: then the tags are a file below `.tags`. Where there is such a file it counts,
//! whatever the attribute says, so that each change of tags is seen whole or not at all.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fsetxattr, lgetxattr};
use rustix::io::Errno;

use super::{Failure, Root, in_new_dirs, is_missing, sync_parent};
use crate::store::{ObjectName, StoreError, Tags};

/// The attribute: the tags as a JSON object. Users may read and write attributes whose names begin with `user.`.
const ATTRIBUTE: &str = "user.callseal.tags";
/// Ten tags of the longest keys and values are 3,961 bytes.
const MAX_BYTES: usize = 4096;

const UNREADABLE: StoreError = StoreError::Corrupt { what: "tags are not readable" };

impl Root {
    /// Reads the tags of an object that is there.
    pub(super) fn tags(&self, name: &ObjectName) -> Result<Tags, Failure> {
        self.existing(name)?.ok_or(StoreError::NotFound)?;
        let text = match fs::read(self.tags_path(name)) {
            Ok(text) => Some(text),
            Err(error) if is_missing(&error) => read_attribute(&self.object_path(name))?,
            Err(error) => return Err(error.into()),
        };
        match text {
            Some(text) => Ok(serde_json::from_slice(&text).map_err(|_| UNREADABLE)?),
            None => Ok(Tags::new()),
        }
    }

    /// Replaces the tags of an object that is there; the caller holds the name's lock.
    pub(super) fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), Failure> {
        let object = File::open(self.object_path(name))?;
        // Also no tags: there may be an attribute that says otherwise.
        if !self.write_attribute(&object, tags)? {
            return self.write_tags_file(name, tags);
        }
        object.sync_all()?;
        self.remove_tags_file(name)
    }

    /// Gives a file that nobody sees yet its tags, which its next sync makes durable; `false` where that is impossible.
    pub(super) fn attach(&self, file: &File, tags: &Tags) -> Result<bool, Failure> {
        Ok(tags.is_empty() || self.write_attribute(file, tags)?)
    }

    /// Whatever the reason why it is impossible: the file that is written instead fails too if it must.
    fn write_attribute(&self, file: &File, tags: &Tags) -> Result<bool, Failure> {
        let text = serde_json::to_vec(tags).map_err(io::Error::other)?;
        Ok(self.has_attributes && fsetxattr(file, ATTRIBUTE, &text, XattrFlags::empty()).is_ok())
    }

    /// Makes the tags of a name durable in a file of their own, whether or not there is an object yet; the caller holds the
    /// name's lock.
    pub(super) fn write_tags_file(&self, name: &ObjectName, tags: &Tags) -> Result<(), Failure> {
        let path = self.tags_path(name);
        let finished = self.temporary()?;
        let text = serde_json::to_vec(tags).map_err(io::Error::other)?;
        finished.file().write_all_at(&text, 0)?;
        finished.file().sync_all()?;
        in_new_dirs(&path, || fs::rename(finished.path(), &path))?;
        Ok(sync_parent(&path)?)
    }

    /// Removes the file, of which there mostly is none; the caller holds the name's lock.
    pub(super) fn remove_tags_file(&self, name: &ObjectName) -> Result<(), Failure> {
        let path = self.tags_path(name);
        match fs::remove_file(&path) {
            Ok(()) => sync_parent(&path)?,
            Err(error) if is_missing(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.remove_empty_parents(&path);
        Ok(())
    }

    /// The `~` keeps the tags of `a` apart from a directory `a.json`, as no name has one.
    pub(super) fn tags_path(&self, name: &ObjectName) -> PathBuf {
        self.path.join(".tags").join(format!("{name}~.json"))
    }
}

/// Reads the attribute of an object; `None` if it has none.
fn read_attribute(object: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let mut text = vec![0; MAX_BYTES];
    match lgetxattr(object, ATTRIBUTE, &mut text) {
        Ok(length) => {
            text.truncate(length);
            Ok(Some(text))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
        Err(Errno::RANGE) => Err(UNREADABLE.into()),
        // It was deleted meanwhile.
        Err(Errno::NOENT | Errno::NOTDIR) => Err(StoreError::NotFound.into()),
        Err(error) => Err(io::Error::from(error).into()),
    }
}
