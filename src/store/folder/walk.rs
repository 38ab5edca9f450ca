//! Listing in byte order, directory by directory, skipping those that cannot hold what is asked for.

use std::fs;
use std::io;
use std::path::Path;

use super::{info, is_missing};
use crate::store::name::is_segment;
use crate::store::{ObjectInfo, ObjectName};

/// Lists up to `limit` objects under `prefix` after the name `after`.
///
/// Reads each directory on the way whole, to sort it, but only those between `after` and the last object returned. What
/// comes or goes meanwhile may be listed or not.
pub(super) fn list(
    root: &Path,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> io::Result<Vec<ObjectInfo>> {
    let start = prefix.rfind('/').map_or("", |slash| prefix.split_at(slash + 1).0);
    let mut listing = Listing { root, prefix, after, limit, found: Vec::new() };
    if limit > 0 && can_start(root, start)? {
        listing.visit(start)?;
    }
    Ok(listing.found)
}

/// Tells whether every part of a path below `root`, empty or with a `/` at its end, is a directory and no link to one.
fn can_start(root: &Path, start: &str) -> io::Result<bool> {
    let mut dir = root.to_owned();
    for segment in start.split_terminator('/') {
        dir.push(segment);
        if !is_segment(segment) || !is_dir(&dir)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_dir(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(found.is_dir()),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

struct Listing<'a> {
    root: &'a Path,
    prefix: &'a str,
    after: Option<&'a str>,
    limit: usize,
    found: Vec<ObjectInfo>,
}

impl Listing<'_> {
    /// Lists one directory, named with a `/` at its end or empty for the root.
    fn visit(&mut self, dir: &str) -> io::Result<()> {
        for entry in self.wanted_entries(dir)? {
            if entry.ends_with('/') {
                self.visit(&entry)?;
            } else {
                self.add(entry)?;
            }
            if self.found.len() >= self.limit {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns the names in a directory that may be or hold objects asked for, directories with a `/` at their end,
    /// in the order of what they hold.
    fn wanted_entries(&self, dir: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(dir)) {
            Ok(entries) => entries,
            // Removed meanwhile.
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut wanted = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(segment) = name.to_str().filter(|segment| is_segment(segment)) else { continue };
            let kind = entry.file_type()?;
            let name = format!("{dir}{segment}{}", if kind.is_dir() { "/" } else { "" });
            if (kind.is_dir() || kind.is_file()) && self.wants(&name) {
                wanted.push(name);
            }
        }
        wanted.sort_unstable();
        Ok(wanted)
    }

    fn wants(&self, name: &str) -> bool {
        let is_dir = name.ends_with('/');
        let in_prefix = name.starts_with(self.prefix) || (is_dir && self.prefix.starts_with(name));
        let is_after = self.after.is_none_or(|after| name > after || (is_dir && after.starts_with(name)));
        in_prefix && is_after
    }

    fn add(&mut self, name: String) -> io::Result<()> {
        let found = match fs::symlink_metadata(self.root.join(&name)) {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if let (Ok(name), true) = (ObjectName::new(name), found.is_file()) {
            self.found.push(info(name, &found));
        }
        Ok(())
    }
}
