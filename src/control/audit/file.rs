//! A second place for audit records: a file outside of the store, one JSON object a line.
//!
//! A line has the sealed bytes of one object and its digest, so nothing in the file can be read without the tenant's
//! key, and whoever holds it against the store sees what was taken out of either. The file is opened anew for every
//! line, so it can be renamed at any time; it is synced before a record counts as written.
//!
//! One thread writes. While it hangs, every line is refused at once; nothing but audit records ever waits for it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::place::Place;
use crate::domain::cmr::sha256;
use crate::domain::ids::TenantTag;
use crate::domain::sign::{encode_base64, encode_hex};
use crate::store::ObjectName;

/// Lines that wait for the thread: one for each tenant that writes at the same moment.
const WAITING: usize = 1024;
/// Only its owner reads the file: who did what when is nobody else's business, even sealed.
const MODE: u32 = 0o600;

/// The file that audit records are copied to; clones are the same file.
#[derive(Clone)]
pub struct AuditFile {
    lines: SyncSender<Waiting>,
    timeout: Duration,
    turns: Arc<Turns>,
}

/// Numbers of lines: the last one that was sent, written or refused, and given up.
#[derive(Default)]
struct Turns {
    sent: AtomicU64,
    done: AtomicU64,
    given_up: AtomicU64,
}

struct Waiting {
    turn: u64,
    line: String,
    done: oneshot::Sender<io::Result<()>>,
}

/// One object as the file has it.
#[derive(Serialize, Deserialize)]
struct Line {
    v: u8,
    /// Its name in the store.
    object: String,
    /// How many records it has.
    records: usize,
    /// The hash of its last record.
    head: String,
    /// The digest of its bytes.
    sha256: String,
    /// Its bytes.
    #[serde(rename = "box")]
    sealed: String,
}

impl AuditFile {
    /// Starts the thread that writes to `path`; a line that is not durable within `timeout` counts as not written.
    ///
    /// # Errors
    /// The file can be read by others than its owner, or its directory cannot be looked at.
    pub fn open(path: &Path, timeout: Duration) -> io::Result<Self> {
        match std::fs::metadata(path) {
            Ok(found) if found.file_type().is_file() && found.permissions().mode() & 0o077 != 0 => {
                let problem =
                    format!("{} can be read by others than its owner; allowed: mode 0600", path.display());
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                std::fs::metadata(parent.unwrap_or(Path::new(".")))?;
            }
            Err(error) => return Err(error),
        }
        let (lines, waiting) = sync_channel(WAITING);
        let path = path.to_owned();
        let turns = Arc::new(Turns::default());
        let writing = Arc::clone(&turns);
        std::thread::Builder::new()
            .name("audit-file".to_owned())
            .spawn(move || write_lines(&path, &waiting, &writing))?;
        Ok(Self { lines, timeout, turns })
    }

    /// Whether the thread hangs in a line that was given up.
    pub(super) fn hangs(&self) -> bool {
        self.turns.given_up.load(Ordering::Acquire) > self.turns.done.load(Ordering::Acquire)
    }

    /// Makes a line durable.
    ///
    /// # Errors
    /// The line may be in the file all the same; writing it twice does no harm.
    pub(super) async fn append(&self, line: String) -> io::Result<()> {
        if self.hangs() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let turn = self.turns.sent.fetch_add(1, Ordering::AcqRel) + 1;
        let (done, durable) = oneshot::channel();
        if self.lines.try_send(Waiting { turn, line, done }).is_err() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        match tokio::time::timeout(self.timeout, durable).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => {
                self.turns.given_up.fetch_max(turn, Ordering::AcqRel);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

fn write_lines(path: &Path, waiting: &Receiver<Waiting>, turns: &Turns) {
    // What a line that failed half-way may have left must not become part of the next one.
    let mut is_torn = true;
    while let Ok(Waiting { turn, line, done }) = waiting.recv() {
        let written = write_line(path, &line, is_torn);
        is_torn = written.is_err();
        // Whoever gave up waiting tries again.
        let _nobody = done.send(written).is_err();
        turns.done.fetch_max(turn, Ordering::AcqRel);
    }
}

fn write_line(path: &Path, line: &str, is_torn: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(MODE).open(path)?;
    let kind = file.metadata()?.file_type();
    let is_empty = kind.is_file() && file.metadata()?.len() == 0;
    let start = if is_torn && !is_empty { "\n" } else { "" };
    file.write_all(format!("{start}{line}\n").as_bytes())?;
    // A pipe has nothing to sync.
    if kind.is_fifo() || kind.is_char_device() { Ok(()) } else { file.sync_data() }
}

/// Returns the line for one object.
pub(super) fn line(name: &ObjectName, sealed: &[u8], records: usize, head: &str) -> String {
    let line = Line {
        v: 1,
        object: name.as_str().to_owned(),
        records,
        head: head.to_owned(),
        sha256: encode_hex(&sha256(sealed)),
        sealed: encode_base64(sealed),
    };
    serde_json::to_string(&line).expect("texts and numbers are always JSON")
}

/// What a copy outside of the store has of one tenant, to hold the store against.
#[derive(Debug, Default)]
pub struct Witness {
    /// The digest of each object.
    pub(super) objects: HashMap<Place, [u8; 32]>,
    torn_lines: u64,
}

impl Witness {
    /// Reads the lines of one tenant out of files that an [`AuditFile`] wrote.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn read(paths: &[PathBuf], tenant: TenantTag) -> io::Result<Self> {
        let mut witness = Self::default();
        for path in paths {
            let mut lines = BufReader::new(File::open(path)?);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line)? > 0 {
                witness.take(&line, tenant);
                line.clear();
            }
        }
        Ok(witness)
    }

    /// Returns how many lines are none: torn by a full disk, or damaged.
    pub fn torn_lines(&self) -> u64 {
        self.torn_lines
    }

    fn take(&mut self, line: &[u8], tenant: TenantTag) {
        if line.trim_ascii().is_empty() {
            return;
        }
        let parsed = serde_json::from_slice::<Line>(line).ok();
        let name = parsed.as_ref().and_then(|line| ObjectName::new(line.object.as_str()).ok());
        let digest = parsed.as_ref().and_then(|line| parse_digest(&line.sha256));
        match (name, digest) {
            (Some(name), Some(digest)) => {
                if let Some(place) = Place::parse(tenant, &name) {
                    self.objects.insert(place, digest);
                }
            }
            _ => self.torn_lines += 1,
        }
    }
}

fn parse_digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_appended_for_the_owner_alone_and_a_torn_one_spoils_no_other() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("audit.jsonl");
        std::fs::write(&path, "{\"v\":1,\"object\":\"a/x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = AuditFile::open(&path, Duration::from_secs(5)).err().unwrap();
        assert!(refused.to_string().contains("mode 0600"), "{refused}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(MODE)).unwrap();
        let tenant = TenantTag([7; 16]);
        let place = |seq| Place {
            at: crate::domain::time::UnixMillis(1_790_000_000_000),
            chain: crate::domain::ids::RecordingId([1; 16]),
            seq,
        };
        let file = AuditFile::open(&path, Duration::from_secs(60)).unwrap();
        for seq in 0..3_u8 {
            file.append(line(&place(seq.into()).name(tenant), &[seq], 1, "head")).await.unwrap();
        }
        file.append(line(&place(9).name(TenantTag([8; 16])), b"x", 1, "head")).await.unwrap();
        let witness = Witness::read(std::slice::from_ref(&path), tenant).unwrap();
        assert_eq!((witness.objects.len(), witness.torn_lines), (3, 1));
        assert_eq!(witness.objects[&place(1)], sha256(&[1]));
        // Renamed away, a new one is made, for its owner alone.
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        file.append(line(&place(3).name(tenant), b"3", 1, "head")).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    }

    #[tokio::test]
    async fn a_file_that_hangs_refuses_at_once_until_it_goes_on() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        // Nobody reads, so opening it hangs.
        let file = AuditFile::open(&path, Duration::from_millis(50)).unwrap();
        assert_eq!(file.append("1".to_owned()).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(file.hangs());
        assert_eq!(file.append("2".to_owned()).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            BufReader::new(File::open(&path).unwrap()).read_line(&mut text).unwrap();
            text
        });
        assert_eq!(read.await.unwrap().trim(), "");
        while file.hangs() {
            tokio::task::yield_now().await;
        }
    }
}
