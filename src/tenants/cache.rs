//! A copy of the tenants of the store on this machine's disk, sealed as they are there: a node that starts while the store does not
//! answer takes the calls that it took before.
//!
//! It is read only then. Losing it loses nothing.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::store::ObjectName;

/// More than the tenants of any node have.
const MAX_FILE_BYTES: u64 = 256 << 20;

#[derive(Serialize, Deserialize)]
struct Copy {
    v: u8,
    /// Objects by their names in the store, base64.
    objects: BTreeMap<String, String>,
}

/// Writes the copy in one step.
///
/// # Errors
/// What the system says; the old copy is unchanged.
pub(super) fn write(path: &Path, objects: impl Iterator<Item = (ObjectName, Bytes)>) -> io::Result<()> {
    let encode = |(name, object): (ObjectName, Bytes)| {
        (name.as_str().to_owned(), base64_simd::STANDARD.encode_to_string(&object))
    };
    let text = serde_json::to_vec(&Copy { v: 1, objects: objects.map(encode).collect() })?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

/// Reads the copy; none at all is an empty one.
///
/// # Errors
/// What the system says, or that it is no copy.
pub(super) fn read(path: &Path) -> io::Result<Vec<(ObjectName, Bytes)>> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(found) if found.len() > MAX_FILE_BYTES => return Err(io::Error::other("is too large")),
        found => found?,
    };
    let copy: Copy = serde_json::from_slice(&fs::read(path)?)?;
    let decode = |(name, object): (String, String)| {
        let object = base64_simd::STANDARD.decode_to_vec(object.as_bytes()).ok()?;
        Some((ObjectName::new(name).ok()?, Bytes::from(object)))
    };
    let objects: Option<Vec<_>> = copy.objects.into_iter().map(decode).collect();
    objects.filter(|_| copy.v == 1).ok_or_else(|| io::Error::other("is no copy of tenants"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data/tenants.json");
        assert!(read(&path).unwrap().is_empty());
        let objects =
            vec![(ObjectName::new("t/a/00000001".to_owned()).unwrap(), Bytes::from_static(&[0, 255]))];
        write(&path, objects.clone().into_iter()).unwrap();
        assert_eq!(read(&path).unwrap(), objects);
        for wrong in ["", "{}", "{\"v\":2,\"objects\":{}}", "{\"v\":1,\"objects\":{\"t\":\"!\"}}"] {
            fs::write(&path, wrong).unwrap();
            assert!(read(&path).is_err(), "{wrong}");
        }
    }
}
