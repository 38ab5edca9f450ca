//! The two files of a key pair: small JSON objects, mode 0600, which name the key pair that they are of.
//!
//! A file whose content does not come to the name in it is refused, so that a damaged one wraps nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::xwing::{PRIVATE_BYTES, PUBLIC_BYTES, PrivateKey, PublicKey};
use super::{Half, KeyError, Recipient, SenderKey};

/// A private key in base64 has 3,244 characters.
const MAX_FILE_BYTES: usize = 16 << 10;
const SUITE: &str = "x-wing";
const SENT_RULE: &str = "allowed: the content of a wrap file, as callseal keys recipient init makes it";

/// Why a file of a key pair cannot be used. What is wrong with its content is not told, for it holds keys.
#[derive(Debug, thiserror::Error)]
pub enum RecipientError {
    /// It is not there.
    #[error("{} does not exist; make a key pair with: callseal keys recipient init", .0.display())]
    Missing(PathBuf),
    /// It is there already, and is never written over.
    #[error("{} exists already; allowed: the name of a new file", .0.display())]
    Exists(PathBuf),
    /// Others can read it.
    #[error("{} has mode {mode:03o}; it must be for its owner only: chmod 600 {}", path.display(), path.display())]
    Loose {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is damaged.
    #[error("{} is no file of a key pair of version 1, or it is damaged", .0.display())]
    Malformed(PathBuf),
    /// It is the other file of a key pair.
    #[error("{} is {found}; allowed here: {wanted}", path.display())]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: RecipientFile,
        /// What it should be.
        wanted: RecipientFile,
    },
    /// The key pair could not be made.
    #[error("key pair")]
    Key(#[from] KeyError),
    /// The system refused.
    #[error("{}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Which of the two files of a key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecipientFile {
    /// With the private key.
    #[serde(rename = "callseal open key")]
    Open,
    /// With the public key.
    #[serde(rename = "callseal wrap key")]
    Wrap,
}

impl std::fmt::Display for RecipientFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open => "an open file",
            Self::Wrap => "a wrap file",
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    v: u8,
    kind: RecipientFile,
    suite: String,
    kek: String,
    /// The private key, or the public one.
    key: Zeroizing<String>,
    sender: Zeroizing<String>,
    created: String,
}

impl Recipient {
    /// Reads one of the two files of a key pair.
    ///
    /// # Errors
    /// [`RecipientError`]; a file that its group or others may touch is refused.
    pub fn load(path: &Path, wanted: RecipientFile) -> Result<Self, RecipientError> {
        let (found, recipient) = Self::load_either(path)?;
        if found == wanted {
            return Ok(recipient);
        }
        Err(RecipientError::WrongKind { path: path.to_owned(), found, wanted })
    }

    /// Reads a file of a key pair, and says which of the two it is.
    ///
    /// # Errors
    /// As [`Recipient::load`].
    pub fn load_either(path: &Path) -> Result<(RecipientFile, Self), RecipientError> {
        let text = read_private(path)?;
        let raw: Option<RawFile> = serde_json::from_slice(&text).ok();
        let read = raw.and_then(|raw| Some((raw.kind, parse(&raw)?)));
        read.ok_or_else(|| RecipientError::Malformed(path.to_owned()))
    }

    /// Takes the content of a wrap file that somebody has sent. Its texts are wiped.
    ///
    /// # Errors
    /// What is wrong with it, to be said behind the name of where it stood; nothing of it is in there.
    pub fn sent(file: serde_json::Value) -> Result<Self, &'static str> {
        let raw: RawFile = serde_json::from_value(file).map_err(|_| SENT_RULE)?;
        if raw.kind == RecipientFile::Open {
            return Err(
                "has a private key, which nobody else should have; allowed: the content of the wrap file",
            );
        }
        parse(&raw).ok_or(SENT_RULE)
    }
}

/// Makes a key pair and writes its two files; neither may exist.
///
/// # Errors
/// [`RecipientError`]; there may be an open file then, which opens nothing that anybody has wrapped.
pub fn init_recipient(open: &Path, wrap: &Path, created: &str) -> Result<Recipient, RecipientError> {
    for path in [open, wrap] {
        if path.symlink_metadata().is_ok() {
            return Err(RecipientError::Exists(path.to_owned()));
        }
    }
    let (recipient, private) = Recipient::generate(created)?;
    // First the one that must not be lost.
    write(open, &recipient, RecipientFile::Open, &private)?;
    write_wrap_file(&recipient, wrap)?;
    Ok(recipient)
}

/// Writes the wrap file of a key pair anew, such as after the only one was lost.
///
/// # Errors
/// [`RecipientError`].
pub fn write_wrap_file(recipient: &Recipient, path: &Path) -> Result<(), RecipientError> {
    write(path, recipient, RecipientFile::Wrap, recipient.public().bytes())
}

fn write(path: &Path, recipient: &Recipient, kind: RecipientFile, key: &[u8]) -> Result<(), RecipientError> {
    let encode = |bytes: &[u8]| Zeroizing::new(base64_simd::STANDARD.encode_to_string(bytes));
    let raw = RawFile {
        v: 1,
        kind,
        suite: SUITE.to_owned(),
        kek: recipient.kek().kek,
        key: encode(key),
        sender: encode(recipient.sender.as_slice()),
        created: recipient.created.clone(),
    };
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::AlreadyExists {
            return RecipientError::Exists(path.to_owned());
        }
        RecipientError::Io { path: path.to_owned(), source }
    };
    // With room for all of it, so that no copy stays behind when it grows.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES));
    serde_json::to_writer_pretty(&mut *text, &raw).map_err(|error| failed(io::Error::other(error)))?;
    text.push(b'\n');
    write_new(path, &text).map_err(failed)
}

fn write_new(path: &Path, text: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()
}

fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, RecipientError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            return RecipientError::Missing(path.to_owned());
        }
        RecipientError::Io { path: path.to_owned(), source }
    };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(RecipientError::Loose { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES));
    file.take(MAX_FILE_BYTES as u64).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

fn parse(raw: &RawFile) -> Option<Recipient> {
    if raw.v != 1 || raw.suite != SUITE {
        return None;
    }
    let decode = |text: &str| base64_simd::STANDARD.decode_to_vec(text.as_bytes()).ok().map(Zeroizing::new);
    let (key, sender_bytes) = (decode(&raw.key)?, decode(&raw.sender)?);
    let sender = SenderKey::holding(sender_bytes.as_slice().try_into().ok()?);
    let half = match raw.kind {
        RecipientFile::Open if key.len() == PRIVATE_BYTES => {
            Half::Private(Box::new(PrivateKey::parse(&key).ok()?))
        }
        RecipientFile::Wrap if key.len() == PUBLIC_BYTES => {
            Half::Public(Box::new(PublicKey::parse(&key).ok()?))
        }
        RecipientFile::Open | RecipientFile::Wrap => return None,
    };
    let recipient = Recipient::new(half, sender, &raw.created);
    (recipient.kek().kek == raw.kek).then_some(recipient)
}
