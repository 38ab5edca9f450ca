//! The local keyring: one file with a KEK per tenant and version, readable by its owner only.
//!
//! For development and single nodes. Whoever has this file and the store can open every recording; a key service keeps
//! the two apart.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::domain::cmr::KEY_BYTES;
use crate::domain::ids::TenantId;

/// More than enough for ten thousand tenants.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Why a keyring cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// It is not there.
    #[error("keyring {} does not exist; make it with: callseal keys init", .0.display())]
    Missing(PathBuf),
    /// Others can read it.
    #[error("keyring {} has mode {mode:03o}; it must be for its owner only: chmod 600 {}", path.display(), path.display())]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is damaged. What is wrong with it is not told, for it holds keys.
    #[error("keyring {} is not a keyring of version 1", .0.display())]
    Malformed(PathBuf),
    /// The system refused.
    #[error("keyring {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The KEKs of a node's tenants. `Debug` counts them.
pub struct Keyring {
    keks: Vec<Kek>,
}

/// One KEK.
pub(super) struct Kek {
    pub(super) tenant: TenantId,
    pub(super) version: u32,
    pub(super) key: Zeroizing<[u8; KEY_BYTES]>,
    created: String,
}

#[derive(Serialize, Deserialize)]
struct RawKeyring {
    v: u8,
    keks: Vec<RawKek>,
}

#[derive(Serialize, Deserialize)]
struct RawKek {
    tenant: String,
    version: u32,
    key: Zeroizing<String>,
    created: String,
}

impl Keyring {
    /// Reads a keyring file.
    ///
    /// # Errors
    /// [`KeyringError`]; a file that its group or others may touch is refused.
    pub fn load(path: &Path) -> Result<Self, KeyringError> {
        let io_error = |source: io::Error| {
            if source.kind() == io::ErrorKind::NotFound {
                return KeyringError::Missing(path.to_owned());
            }
            KeyringError::Io { path: path.to_owned(), source }
        };
        let file = File::open(path).map_err(io_error)?;
        let metadata = file.metadata().map_err(io_error)?;
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyringError::Loose { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0)));
        file.take(MAX_FILE_BYTES).read_to_end(&mut text).map_err(io_error)?;
        Self::parse(&text).ok_or_else(|| KeyringError::Malformed(path.to_owned()))
    }

    /// Makes a keyring file that holds a new KEK for every tenant that has none, and keeps those that have one.
    ///
    /// Answers for how many tenants a KEK was made. The file is replaced in one step and is 0600 from its first moment.
    ///
    /// # Errors
    /// [`KeyringError`]; the old file, if any, is then unchanged.
    pub fn init(
        path: &Path,
        tenants: &[TenantId],
        created: &str,
        mut random: impl FnMut(&mut [u8]) -> io::Result<()>,
    ) -> Result<usize, KeyringError> {
        let io_error = |source| KeyringError::Io { path: path.to_owned(), source };
        let mut ring = match Self::load(path) {
            Ok(ring) => ring,
            Err(KeyringError::Missing(_)) => Self { keks: Vec::new() },
            Err(error) => return Err(error),
        };
        let missing: Vec<_> = tenants.iter().filter(|tenant| ring.newest(tenant).is_none()).collect();
        for tenant in &missing {
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            random(&mut *key).map_err(io_error)?;
            ring.keks.push(Kek { tenant: (*tenant).clone(), version: 1, key, created: created.to_owned() });
        }
        if !missing.is_empty() {
            ring.write(path).map_err(io_error)?;
        }
        Ok(missing.len())
    }

    /// Returns the KEK that new DEKs of a tenant are wrapped under.
    pub(super) fn newest(&self, tenant: &TenantId) -> Option<&Kek> {
        self.keks.iter().filter(|kek| kek.tenant == *tenant).max_by_key(|kek| kek.version)
    }

    /// Returns one version of a tenant's KEK.
    pub(super) fn version(&self, tenant: &TenantId, version: u32) -> Option<&Kek> {
        self.keks.iter().find(|kek| kek.tenant == *tenant && kek.version == version)
    }

    /// Whether a tenant has a KEK.
    pub fn has(&self, tenant: &TenantId) -> bool {
        self.newest(tenant).is_some()
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let raw: RawKeyring = serde_json::from_slice(text).ok()?;
        if raw.v != 1 {
            return None;
        }
        let keks = raw.keks.into_iter().map(|raw| {
            let bytes = Zeroizing::new(base64_simd::STANDARD.decode_to_vec(raw.key.as_bytes()).ok()?);
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            if bytes.len() != KEY_BYTES {
                return None;
            }
            key.copy_from_slice(&bytes);
            Some(Kek { tenant: raw.tenant.parse().ok()?, version: raw.version, key, created: raw.created })
        });
        Some(Self { keks: keks.collect::<Option<_>>()? })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let keks = self.keks.iter().map(|kek| RawKek {
            tenant: kek.tenant.to_string(),
            version: kek.version,
            key: Zeroizing::new(base64_simd::STANDARD.encode_to_string(*kek.key)),
            created: kek.created.clone(),
        });
        let raw = RawKeyring { v: 1, keks: keks.collect() };
        let text = Zeroizing::new(serde_json::to_vec_pretty(&raw).map_err(io::Error::other)?);
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(dir)?;
        let new = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(dir)?.sync_all()
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({} keys)", self.keks.len())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn tenants(names: &[&str]) -> Vec<TenantId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn sevens(out: &mut [u8]) -> io::Result<()> {
        out.fill(7);
        Ok(())
    }

    #[test]
    fn init_adds_what_is_missing_and_keeps_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/keyring.json");
        assert_eq!(Keyring::init(&path, &tenants(&["a"]), "now", sevens).unwrap(), 1);
        let nines = |out: &mut [u8]| {
            out.fill(9);
            Ok(())
        };
        assert_eq!(Keyring::init(&path, &tenants(&["a", "b"]), "later", nines).unwrap(), 1);
        let ring = Keyring::load(&path).unwrap();
        assert_eq!(*ring.newest(&"a".parse().unwrap()).unwrap().key, [7; 32]);
        assert_eq!(*ring.version(&"b".parse().unwrap(), 1).unwrap().key, [9; 32]);
        assert!(ring.version(&"b".parse().unwrap(), 2).is_none());
        assert_eq!(format!("{ring:?}"), "Keyring(2 keys)");
    }

    #[test]
    fn loose_permissions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keyring.json");
        Keyring::init(&path, &tenants(&["a"]), "now", sevens).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for mode in [0o640, 0o604, 0o660, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Keyring::load(&path).unwrap_err();
            assert!(matches!(error, KeyringError::Loose { .. }), "{mode:o}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn damage_is_told_without_keys() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keyring.json");
        assert!(matches!(Keyring::load(&path), Err(KeyringError::Missing(_))));
        Keyring::init(&path, &tenants(&["a"]), "now", sevens).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let key = base64_simd::STANDARD.encode_to_string([7; 32]);
        for bad in [String::new(), text.replace(&key, "AAAA"), text.replace("\"v\": 1", "\"v\": 2")] {
            fs::write(&path, bad).unwrap();
            let error = Keyring::load(&path).unwrap_err();
            assert!(matches!(error, KeyringError::Malformed(_)), "{error}");
            assert!(!error.to_string().contains("AAAA"));
        }
    }
}
