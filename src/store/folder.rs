//! A store in a directory of this machine.
//!
//! ```text
//! <root>/<name>              an object, mode 0600; directories 0700; its tags are an attribute of it
//! <root>/.tags/<name>~.json  its tags, where they cannot be an attribute or were written by an older version
//! <root>/.tmp/<random>       objects and tags being written
//! <root>/.locks/<00..3f>     one lock file for all names of a hash; held while a name appears, goes or is tagged
//! ```
//!
//! An object appears whole, by a hard link to a finished temporary file: the link fails if the name is taken, which makes
//! it create-once. Bytes and tags are durable before the link, by one sync for both, and the link before success is told,
//! by another (`docs/decisions/0022-what-a-segment-costs.md`). Any number of processes may use one directory. A symbolic
//! link is no object, and listing follows none.
//!
//! Where this differs from S3: an object's name cannot continue another object's name after a `/`, as a file cannot be a
//! directory; such a put is [`StoreError::Refused`].

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    ByteRange, Fetched, ObjectInfo, ObjectName, PutOutcome, Store, StoreError, StoreProfile, Tags, Upload,
};
use crate::domain::time::UnixMillis;

mod tagging;
mod temporary;
mod upload;
mod walk;

use temporary::Temporary;

/// How old a temporary file must be before opening the folder removes it: other processes may be writing younger ones.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);
/// How many lock files share the names; more means that fewer names wait for each other.
const LOCKS: u32 = 64;
/// How often a put makes its directories again when deletions remove them at the same time.
const DIRECTORY_TRIES: u32 = 16;
/// Objects listed at a time to be purged, and deleted at a time.
const PURGE_PAGE: usize = 1000;

/// A store in a directory; see the module's head. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Folder {
    root: Arc<Root>,
}

impl Folder {
    /// Opens a directory as a store, makes it if it is missing, and removes what crashed writers left over an hour ago.
    ///
    /// # Errors
    /// [`StoreError`] if the directory cannot be made or written.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let folder = Self::reading(root);
        folder.blocking("open folder", Root::prepare).await?;
        Ok(folder)
    }

    /// Reads a directory that was filled by others, such as an unpacked export; nothing in it is made or changed for that.
    pub fn reading(root: impl Into<PathBuf>) -> Self {
        Self::over(root.into(), true)
    }

    fn over(path: PathBuf, has_attributes: bool) -> Self {
        Self { root: Arc::new(Root { path, has_attributes }) }
    }

    /// Does blocking work on a thread that may block; `action` completes "cannot …".
    async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Root) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let root = Arc::clone(&self.root);
        let done = tokio::task::spawn_blocking(move || work(&root)).await;
        match done {
            Ok(outcome) => outcome.map_err(|failure| failure.during(action)),
            Err(stopped) => Err(StoreError::from_io(action, io::Error::other(stopped))),
        }
    }
}

#[async_trait]
impl Store for Folder {
    async fn put_new(&self, name: &ObjectName, body: Bytes, tags: &Tags) -> Result<PutOutcome, StoreError> {
        let (name, tags) = (name.clone(), tags.clone());
        self.blocking("write object", move |root| root.put_new(&name, &body, &tags)).await
    }

    async fn get(&self, name: &ObjectName, range: Option<ByteRange>) -> Result<Fetched, StoreError> {
        let name = name.clone();
        self.blocking("read object", move |root| root.read(&name, range.as_ref())).await
    }

    async fn head(&self, name: &ObjectName) -> Result<ObjectInfo, StoreError> {
        let name = name.clone();
        self.blocking("look at object", move |root| {
            let found = root.existing(&name)?.ok_or(StoreError::NotFound)?;
            Ok(info(name, &found))
        })
        .await
    }

    async fn list_after(
        &self,
        prefix: &str,
        after: Option<&ObjectName>,
        limit: usize,
    ) -> Result<Vec<ObjectInfo>, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        self.blocking("list objects", move |root| {
            Ok(walk::list(&root.path, &prefix, after.as_ref().map(ObjectName::as_str), limit)?)
        })
        .await
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let name = name.clone();
        self.blocking("delete object", move |root| root.delete(&name)).await
    }

    async fn tags(&self, name: &ObjectName) -> Result<Tags, StoreError> {
        let name = name.clone();
        self.blocking("read tags", move |root| root.tags(&name)).await
    }

    async fn set_tags(&self, name: &ObjectName, tags: &Tags) -> Result<(), StoreError> {
        let (name, tags) = (name.clone(), tags.clone());
        self.blocking("write tags", move |root| {
            let _lock = root.lock(&name)?;
            root.existing(&name)?.ok_or(StoreError::NotFound)?;
            root.set_tags(&name, &tags)
        })
        .await
    }

    async fn lock(&self, _name: &ObjectName, _until: UnixMillis) -> Result<(), StoreError> {
        Err(StoreError::Unsupported { feature: "object lock" })
    }

    async fn begin_upload(&self, name: &ObjectName, tags: &Tags) -> Result<Box<dyn Upload>, StoreError> {
        let parts = self.blocking("begin upload", |root| Ok(root.temporary()?)).await?;
        Ok(Box::new(upload::FolderUpload::new(self.clone(), name.clone(), tags.clone(), parts)))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.blocking("write to folder", |root| Ok(root.temporary()?.file().write_all_at(b"ping", 0)?)).await
    }

    fn profile(&self) -> StoreProfile {
        StoreProfile { tags: true, create_once: true, versions: false, object_lock: false }
    }

    async fn now(&self) -> Result<UnixMillis, StoreError> {
        self.blocking("read the folder's clock", |root| {
            let written = root.temporary()?;
            written.file().write_all_at(b"now", 0)?;
            Ok(modified(&written.file().metadata()?)
                .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?)
        })
        .await
    }

    async fn delete_all(&self, names: &[ObjectName]) -> Result<(), StoreError> {
        for page in names.chunks(PURGE_PAGE) {
            let page = page.to_vec();
            self.blocking("delete objects", move |root| root.delete_all(&page)).await?;
        }
        Ok(())
    }

    async fn purge(&self, prefix: &str) -> Result<u64, StoreError> {
        if prefix.is_empty() {
            return Err(StoreError::Refused { rule: "a prefix to be purged is not empty" });
        }
        let mut purged = 0;
        loop {
            let page = self.list_after(prefix, None, PURGE_PAGE).await?;
            if page.is_empty() {
                return Ok(purged);
            }
            let names: Vec<_> = page.into_iter().map(|object| object.name).collect();
            self.delete_all(&names).await?;
            purged += names.len() as u64;
        }
    }

    /// An upload is a temporary file of its process, which goes with it; others are removed when the folder is opened.
    async fn abort_uploads(&self, _name: &ObjectName, _before: UnixMillis) -> Result<u64, StoreError> {
        Ok(0)
    }
}

/// An error inside this module, before it is known what was being done.
#[derive(Debug)]
enum Failure {
    Store(StoreError),
    Io(io::Error),
}

impl Failure {
    fn during(self, action: &'static str) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Io(error) => StoreError::from_io(action, error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The directory itself; everything here blocks.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    /// Tags are attributes where the file system has some. A test turns this off.
    has_attributes: bool,
}

impl Root {
    fn prepare(&self) -> Result<(), Failure> {
        for dir in
            [self.path.clone(), self.temporary_dir(), self.path.join(".tags"), self.path.join(".locks")]
        {
            make_dirs(&dir)?;
        }
        Ok(temporary::remove_leftovers(&self.temporary_dir(), LEFTOVER_AGE)?)
    }

    fn put_new(&self, name: &ObjectName, body: &[u8], tags: &Tags) -> Result<PutOutcome, Failure> {
        if self.existing(name)?.is_some() {
            return Ok(PutOutcome::AlreadyExists);
        }
        let finished = self.temporary()?;
        finished.file().write_all_at(body, 0)?;
        self.publish(&finished, name, tags)
    }

    /// Makes a finished temporary file durable and gives it its name; the temporary name goes when the caller drops it.
    fn publish(&self, finished: &Temporary, name: &ObjectName, tags: &Tags) -> Result<PutOutcome, Failure> {
        let path = self.object_path(name);
        let is_tagged = self.attach(finished.file(), tags)?;
        finished.file().sync_all()?;
        let _lock = self.lock(name)?;
        if self.existing(name)?.is_some() {
            return Ok(PutOutcome::AlreadyExists);
        }
        // A file that a crash has left would count.
        if is_tagged {
            self.remove_tags_file(name)?
        } else {
            self.write_tags_file(name, tags)?
        }
        let linked = in_new_dirs(&path, || fs::hard_link(finished.path(), &path));
        match linked {
            Ok(()) => {
                sync_parent(&path)?;
                Ok(PutOutcome::Created)
            }
            // Not an object, as that was looked for under the lock: it is a directory or something foreign.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(StoreError::from_io("write object", io::ErrorKind::IsADirectory.into()).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, name: &ObjectName, range: Option<&ByteRange>) -> Result<Fetched, Failure> {
        self.existing(name)?.ok_or(StoreError::NotFound)?;
        let file = File::open(self.object_path(name))?;
        let total_size = file.metadata()?.len();
        let wanted = match range {
            None => 0..total_size,
            Some(range) => range.within(total_size).ok_or(StoreError::OutOfRange { total_size })?,
        };
        let length = usize::try_from(wanted.end - wanted.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, wanted.start)?;
        Ok(Fetched { bytes: bytes.into(), total_size })
    }

    fn delete(&self, name: &ObjectName) -> Result<(), Failure> {
        let _lock = self.lock(name)?;
        self.delete_locked(name)
    }

    /// The same; the caller holds the name's lock.
    fn delete_locked(&self, name: &ObjectName) -> Result<(), Failure> {
        if self.existing(name)?.is_some() {
            let path = self.object_path(name);
            fs::remove_file(&path)?;
            sync_parent(&path)?;
            self.remove_empty_parents(&path);
        }
        // A crash between object and tags leaves tags alone; they go here or when the name is taken again.
        self.remove_tags_file(name)
    }

    /// Deletes objects; those of one directory are made to be gone by one sync.
    fn delete_all(&self, names: &[ObjectName]) -> Result<(), Failure> {
        let mut removed = BTreeSet::new();
        let outcome = names.iter().try_for_each(|name| self.remove(name, &mut removed));
        // Also after a failure: whoever calls again finds nothing left to be removed and synced.
        for dir in &removed {
            sync_dir(dir)?;
        }
        for dir in &removed {
            self.remove_empty(dir);
        }
        outcome
    }

    /// Removes an object and notes the directory that is to be synced.
    fn remove(&self, name: &ObjectName, removed: &mut BTreeSet<PathBuf>) -> Result<(), Failure> {
        let _lock = self.lock(name)?;
        if fs::symlink_metadata(self.tags_path(name)).is_ok() {
            // The tags must stay until it is certain that their object is gone.
            return self.delete_locked(name);
        }
        if self.existing(name)?.is_some() {
            let path = self.object_path(name);
            fs::remove_file(&path)?;
            removed.extend(path.parent().map(Path::to_owned));
        }
        Ok(())
    }

    /// Looks for an object; a directory, symbolic link or anything else but a regular file is none.
    fn existing(&self, name: &ObjectName) -> io::Result<Option<fs::Metadata>> {
        match fs::symlink_metadata(self.object_path(name)) {
            Ok(found) => Ok(found.is_file().then_some(found)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Locks a name against every other thread and process that makes, tags or deletes it, until the file is dropped.
    fn lock(&self, name: &ObjectName) -> io::Result<File> {
        let number = crc32fast::hash(name.as_str().as_bytes()) % LOCKS;
        let path = self.path.join(".locks").join(format!("{number:02x}"));
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        file.lock()?;
        Ok(file)
    }

    fn temporary(&self) -> io::Result<Temporary> {
        Temporary::create(&self.temporary_dir())
    }

    fn remove_empty_parents(&self, path: &Path) {
        path.parent().into_iter().for_each(|dir| self.remove_empty(dir));
    }

    /// Removes a directory that became empty and those above it, so that listings need not walk through them.
    fn remove_empty(&self, dir: &Path) {
        let inside = dir.ancestors().take_while(|dir| dir.starts_with(&self.path) && *dir != self.path);
        for dir in inside {
            if *dir == self.path.join(".tags") || fs::remove_dir(dir).is_err() {
                return;
            }
        }
    }

    fn object_path(&self, name: &ObjectName) -> PathBuf {
        self.path.join(name.as_str())
    }

    fn temporary_dir(&self) -> PathBuf {
        self.path.join(".tmp")
    }
}

fn info(name: ObjectName, found: &fs::Metadata) -> ObjectInfo {
    ObjectInfo { name, size: found.len(), modified: modified(found) }
}

fn modified(found: &fs::Metadata) -> Option<UnixMillis> {
    let since_1970 = found.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(UnixMillis(0).plus(since_1970))
}

/// Does what puts a file at `path`, making the missing directories above it first.
fn in_new_dirs(path: &Path, put: impl Fn() -> io::Result<()>) -> io::Result<()> {
    for _ in 0..DIRECTORY_TRIES {
        match put() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => return outcome,
        }
        // A deletion next door may remove the directories as soon as they are made; then the next try makes them again.
        path.parent().map_or(Ok(()), make_dirs)?;
    }
    put()
}

/// Makes a directory and those above it, each durable before it is used by this call.
///
/// Another call may use it a moment earlier; syncing its own new entry then makes the directory durable on the journaling
/// file systems (ext4, XFS, Btrfs).
fn make_dirs(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => sync_parent(dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).ok_or(error)?;
            make_dirs(parent)?;
            match DirBuilder::new().mode(0o700).create(dir) {
                Ok(()) => sync_parent(dir),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) =>
                {
                    Ok(())
                }
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Makes the entry of `path` in its directory durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => sync_dir(dir),
        _ => sync_dir(Path::new(".")),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir) {
        Ok(dir) => dir.sync_all(),
        // Somebody removed the directory with the entry in it, which is then gone for good.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests;
