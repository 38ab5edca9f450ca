//! The files that a configuration names: secrets, certificates, tenants.
//!
//! [`Files`] stands between the checks and the disk, so that the checks run in tests without one.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::secret::{MAX_SECRET_BYTES, Secret};

/// The text of one tenant's file.
pub struct TenantFile {
    /// The file's name, without directories.
    pub name: String,
    /// The text, or why it cannot be read.
    pub text: Result<String, String>,
}

/// Where the files come from. Errors are the problems to report, and name the file.
pub trait Files {
    /// Reads a secret.
    ///
    /// # Errors
    /// The problem: missing, not a regular file, open to group or others, empty or over 4 KiB.
    fn read_secret(&self, path: &Path) -> Result<Secret, String>;

    /// Reads a secret that somebody else makes, such as the key of a store, so that it is never made here.
    ///
    /// # Errors
    /// As [`Files::read_secret`].
    fn read_given_secret(&self, path: &Path) -> Result<Secret, String> {
        self.read_secret(path)
    }

    /// Checks that a file exists and can be opened for reading.
    ///
    /// # Errors
    /// The problem with it.
    fn check_readable(&self, path: &Path) -> Result<(), String>;

    /// Reads all tenants' files of a directory (`*.toml`, not hidden), sorted by name.
    ///
    /// # Errors
    /// The problem with the directory.
    fn tenant_files(&self, dir: &Path) -> Result<Vec<TenantFile>, String>;
}

/// The files of this machine.
pub struct Disk;

impl Files for Disk {
    fn read_secret(&self, path: &Path) -> Result<Secret, String> {
        let file = open_regular(path)?;
        check_private(&file, path)?;
        // Room for the longest secret and a line end: the buffer never grows, so no stray copy stays in memory.
        let limit = MAX_SECRET_BYTES + 2;
        let mut text = Zeroizing::new(Vec::with_capacity(limit + 1));
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        file.take(limit).read_to_end(&mut text).map_err(|error| unreadable(path, &error))?;
        Secret::from_text(text).map_err(|problem| format!("{problem}, in {}", path.display()))
    }

    fn check_readable(&self, path: &Path) -> Result<(), String> {
        open_regular(path).map(drop)
    }

    fn tenant_files(&self, dir: &Path) -> Result<Vec<TenantFile>, String> {
        let entries = fs::read_dir(dir).map_err(|error| unreadable(dir, &error))?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| unreadable(dir, &error))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.ends_with(".toml") && !name.starts_with('.') {
                let text = fs::read_to_string(&path).map_err(|error| unreadable(&path, &error));
                files.push(TenantFile { name, text });
            }
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }
}

/// Notes which secret files a configuration names instead of reading them.
#[derive(Default)]
pub(super) struct Survey(pub(super) RefCell<Vec<PathBuf>>);

impl Files for Survey {
    fn read_secret(&self, path: &Path) -> Result<Secret, String> {
        self.0.borrow_mut().push(path.to_owned());
        // Long enough for every check; never leaves the survey.
        Ok(Secret::new(vec![b'0'; 32]))
    }

    fn read_given_secret(&self, _path: &Path) -> Result<Secret, String> {
        Ok(Secret::new(vec![b'0'; 32]))
    }

    fn check_readable(&self, _path: &Path) -> Result<(), String> {
        Ok(())
    }

    fn tenant_files(&self, dir: &Path) -> Result<Vec<TenantFile>, String> {
        Disk.tenant_files(dir)
    }
}

/// Opens a file that is neither a directory nor something that could block.
fn open_regular(path: &Path) -> Result<File, String> {
    let kind = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !kind.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    File::open(path).map_err(|error| unreadable(path, &error))
}

/// Checks the mode of the open file, so that it cannot be another file's.
#[cfg(unix)]
fn check_private(file: &File, path: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;

    let mode = file.metadata().map_err(|error| unreadable(path, &error))?.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path = path.display();
    Err(format!("{path} has mode {mode:04o}, open to group or others; run: chmod 600 {path}"))
}

/// Other systems have no mode to check.
#[cfg(not(unix))]
fn check_private(_file: &File, _path: &Path) -> Result<(), String> {
    Ok(())
}

/// Says that a file or directory cannot be read, and why.
pub(super) fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}
