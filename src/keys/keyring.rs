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

use crate::domain::cmr::{KEY_BYTES, KeyBox};
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
    /// A tenant has no KEK in it.
    #[error("tenant {0} has no key in the keyring; make it with: callseal keys init")]
    NoKek(TenantId),
    /// A version that is not there, or that new keys are wrapped under.
    #[error(
        "version {version} of the key of tenant {tenant} cannot be retired; allowed: a version below the newest"
    )]
    NotRetirable {
        /// The tenant.
        tenant: TenantId,
        /// The version.
        version: u32,
    },
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

/// The KEKs of a node's tenants; none by default. `Debug` counts them.
#[derive(Default)]
pub struct Keyring {
    keks: Vec<Kek>,
}

/// One KEK.
pub(super) struct Kek {
    pub(super) tenant: TenantId,
    pub(super) version: u32,
    pub(super) key: KeyBox,
    pub(super) created: String,
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
        let missing_or = |source: io::Error| {
            if source.kind() == io::ErrorKind::NotFound {
                return KeyringError::Missing(path.to_owned());
            }
            io_error(path)(source)
        };
        let file = File::open(path).map_err(missing_or)?;
        let metadata = file.metadata().map_err(missing_or)?;
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyringError::Loose { path: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0)));
        file.take(MAX_FILE_BYTES).read_to_end(&mut text).map_err(missing_or)?;
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
        let _only_one = lock(path)?;
        let mut ring = match Self::load(path) {
            Ok(ring) => ring,
            Err(KeyringError::Missing(_)) => Self { keks: Vec::new() },
            Err(error) => return Err(error),
        };
        let missing: Vec<_> = tenants.iter().filter(|tenant| ring.newest(tenant).is_none()).collect();
        for tenant in &missing {
            ring.add(tenant, 1, created, &mut random).map_err(io_error(path))?;
        }
        if !missing.is_empty() {
            ring.write(path).map_err(io_error(path))?;
        }
        Ok(missing.len())
    }

    /// Adds a new version of a tenant's KEK to a keyring file, under which new DEKs are wrapped from then on; older versions
    /// stay, to open what they have wrapped. Answers the new version.
    ///
    /// # Errors
    /// [`KeyringError`]; the file is then unchanged. [`KeyringError::NoKek`] for a tenant without a KEK.
    pub fn rotate(
        path: &Path,
        tenant: &TenantId,
        created: &str,
        random: impl FnMut(&mut [u8]) -> io::Result<()>,
    ) -> Result<u32, KeyringError> {
        let _only_one = lock(path)?;
        Self::load(path)?.rotated(path, tenant, created, random)
    }

    /// Writes this ring with a new version of a tenant's KEK. The file is locked.
    fn rotated(
        mut self,
        path: &Path,
        tenant: &TenantId,
        created: &str,
        mut random: impl FnMut(&mut [u8]) -> io::Result<()>,
    ) -> Result<u32, KeyringError> {
        let newest = self.newest(tenant).ok_or_else(|| KeyringError::NoKek(tenant.clone()))?.version;
        let version = newest.checked_add(1).ok_or_else(|| KeyringError::Malformed(path.to_owned()))?;
        self.add(tenant, version, created, &mut random).map_err(io_error(path))?;
        self.write(path).map_err(io_error(path))?;
        Ok(version)
    }

    /// As [`Keyring::rotate`], unless another version than `from` is the newest by now: whoever was first has done it.
    /// Answers the version that was made.
    ///
    /// # Errors
    /// As [`Keyring::rotate`].
    pub fn rotate_from(
        path: &Path,
        tenant: &TenantId,
        from: u32,
        created: &str,
        random: impl FnMut(&mut [u8]) -> io::Result<()>,
    ) -> Result<Option<u32>, KeyringError> {
        let _only_one = lock(path)?;
        let ring = Self::load(path)?;
        match ring.newest(tenant) {
            Some(newest) if newest.version != from => Ok(None),
            _ => ring.rotated(path, tenant, created, random).map(Some),
        }
    }

    /// Takes an older version of a tenant's KEK out of a keyring file, for good.
    ///
    /// The caller has made sure that nothing is wrapped under it any more.
    ///
    /// # Errors
    /// [`KeyringError`]; the file is then unchanged. [`KeyringError::NotRetirable`] for a version that does not exist, and
    /// for the newest.
    pub fn retire(path: &Path, tenant: &TenantId, version: u32) -> Result<(), KeyringError> {
        let _only_one = lock(path)?;
        let mut ring = Self::load(path)?;
        let is_newest = ring.newest(tenant).is_none_or(|newest| newest.version == version);
        if is_newest || ring.version(tenant, version).is_none() {
            return Err(KeyringError::NotRetirable { tenant: tenant.clone(), version });
        }
        ring.keks.retain(|kek| kek.tenant != *tenant || kek.version != version);
        ring.write(path).map_err(io_error(path))
    }

    /// Takes all versions of a tenant's KEK out of a keyring file, for good; answers whether there were any.
    ///
    /// The caller has made sure that nothing of the tenant is left that they could open.
    ///
    /// # Errors
    /// [`KeyringError`]; the file is then unchanged.
    pub fn remove(path: &Path, tenant: &TenantId) -> Result<bool, KeyringError> {
        let _only_one = lock(path)?;
        let mut ring = Self::load(path)?;
        let before = ring.keks.len();
        ring.keks.retain(|kek| kek.tenant != *tenant);
        let has_changed = ring.keks.len() < before;
        if has_changed {
            ring.write(path).map_err(io_error(path))?;
        }
        Ok(has_changed)
    }

    /// Returns the versions of a tenant's KEK, the oldest first, and when each was made (RFC 3339).
    pub fn versions(&self, tenant: &TenantId) -> Vec<(u32, &str)> {
        let of_tenant = self.keks.iter().filter(|kek| kek.tenant == *tenant);
        let mut versions: Vec<_> = of_tenant.map(|kek| (kek.version, kek.created.as_str())).collect();
        versions.sort_unstable();
        versions
    }

    fn add(
        &mut self,
        tenant: &TenantId,
        version: u32,
        created: &str,
        random: &mut impl FnMut(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let key = KeyBox::filled_by(|key| random(key))?;
        self.keks.push(Kek { tenant: tenant.clone(), version, key, created: created.to_owned() });
        Ok(())
    }

    /// Returns the KEK that new DEKs of a tenant are wrapped under.
    pub(super) fn newest(&self, tenant: &TenantId) -> Option<&Kek> {
        self.keks.iter().filter(|kek| kek.tenant == *tenant).max_by_key(|kek| kek.version)
    }

    /// Returns one version of a tenant's KEK.
    pub(super) fn version(&self, tenant: &TenantId, version: u32) -> Option<&Kek> {
        self.keks.iter().find(|kek| kek.tenant == *tenant && kek.version == version)
    }

    /// Returns the version that new DEKs of a tenant are wrapped under.
    pub fn newest_version(&self, tenant: &TenantId) -> Option<u32> {
        self.newest(tenant).map(|kek| kek.version)
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
            let key = KeyBox::holding(bytes.first_chunk().filter(|_| bytes.len() == KEY_BYTES)?);
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
        let dir = directory(path);
        let new = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(dir)?.sync_all()
    }
}

/// Keeps other programs from changing the file until it is dropped: two changes at the same time would lose one's keys.
fn lock(path: &Path) -> Result<File, KeyringError> {
    let dir = directory(path);
    fs::create_dir_all(dir).map_err(io_error(path))?;
    let held = File::open(dir).map_err(io_error(path))?;
    held.lock().map_err(io_error(path))?;
    Ok(held)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> KeyringError {
    |source| KeyringError::Io { path: path.to_owned(), source }
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
    fn rotation_adds_a_version_and_only_older_ones_are_retired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keyring.json");
        let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
        Keyring::init(&path, std::slice::from_ref(&a), "then", sevens).unwrap();
        let nines = |out: &mut [u8]| {
            out.fill(9);
            Ok(())
        };
        assert_eq!(Keyring::rotate(&path, &a, "now", nines).unwrap(), 2);
        let ring = Keyring::load(&path).unwrap();
        assert_eq!(ring.versions(&a), [(1, "then"), (2, "now")]);
        assert_eq!((*ring.newest(&a).unwrap().key, *ring.version(&a, 1).unwrap().key), ([9; 32], [7; 32]));
        assert!(matches!(Keyring::rotate(&path, &b, "now", sevens), Err(KeyringError::NoKek(_))));
        for (tenant, version) in [(&a, 2), (&a, 3), (&b, 1)] {
            let refused = Keyring::retire(&path, tenant, version);
            assert!(matches!(refused, Err(KeyringError::NotRetirable { .. })), "{tenant} {version}");
        }
        Keyring::retire(&path, &a, 1).unwrap();
        assert_eq!(Keyring::load(&path).unwrap().versions(&a), [(2, "now")]);
    }

    #[test]
    fn changes_at_the_same_time_lose_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keyring.json");
        let names: Vec<TenantId> = (0..8).map(|n| format!("t{n}").parse().unwrap()).collect();
        std::thread::scope(|scope| {
            for name in &names {
                let path = &path;
                scope.spawn(move || Keyring::init(path, std::slice::from_ref(name), "now", sevens).unwrap());
            }
        });
        let ring = Keyring::load(&path).unwrap();
        assert!(names.iter().all(|name| ring.has(name)));
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
