//! Writes tar archives (POSIX ustar) while their files are made, and remembers the SHA-256 of each.
//!
//! The format is 512 bytes of header before each file, zeros up to the next 512 bytes after it, and 1,024 zeros at the end.
//! Headers are made by the crate `tar`, whose own archives are written by threads that may block.

use sha2::{Digest, Sha256};
use tar::{EntryType, Header};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::domain::sign::encode_hex;

const BLOCK: usize = 512;
/// Eleven octal digits: what is larger would be written in a way that not every reader knows.
const MAX_BYTES: u64 = (1 << 33) - 1;

/// Why a file cannot be in an archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Its name or size does not fit.
    #[error("name or size of a file does not fit a tar archive")]
    DoesNotFit,
    /// Whoever takes the archive does not.
    #[error("archive cannot be written")]
    Output(#[from] std::io::Error),
}

/// An archive that is being written.
pub struct Tar<W> {
    out: W,
    /// Unix seconds, the same for all files.
    made_secs: u64,
    digest: Sha256,
    /// Bytes of the present file that are not written yet, and of its padding.
    left: u64,
    padding: usize,
    sums: String,
}

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filed {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest, hexadecimal.
    pub sha256: String,
}

impl<W: AsyncWrite + Unpin> Tar<W> {
    /// Begins an archive.
    pub fn new(out: W, made_secs: u64) -> Self {
        Self { out, made_secs, digest: Sha256::new(), left: 0, padding: 0, sums: String::new() }
    }

    /// Begins a file of `bytes` bytes. The one before has ended.
    ///
    /// # Errors
    /// [`TarError`].
    pub async fn begin(&mut self, name: &str, bytes: u64) -> Result<(), TarError> {
        let header = header(name, bytes, self.made_secs).ok_or(TarError::DoesNotFit)?;
        self.out.write_all(header.as_bytes()).await?;
        self.left = bytes;
        self.padding = padding(bytes);
        self.digest = Sha256::new();
        Ok(())
    }

    /// Writes more of the present file.
    ///
    /// # Errors
    /// [`TarError::DoesNotFit`] for more than was said.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        let left = self.left.checked_sub(bytes.len() as u64).ok_or(TarError::DoesNotFit)?;
        self.left = left;
        self.digest.update(bytes);
        Ok(self.out.write_all(bytes).await?)
    }

    /// Ends the present file, which is whole; its sum will be in the archive.
    ///
    /// # Errors
    /// [`TarError`].
    pub async fn end(&mut self, name: &str, bytes: u64) -> Result<Filed, TarError> {
        if self.left > 0 {
            return Err(TarError::DoesNotFit);
        }
        self.pad().await?;
        let sha256 = encode_hex(&std::mem::take(&mut self.digest).finalize());
        self.sums.push_str(&format!("{sha256}  {name}\n"));
        Ok(Filed { name: name.to_owned(), bytes, sha256 })
    }

    /// Fills the rest of the present file, which cannot be had, with zeros. It gets no sum.
    ///
    /// # Errors
    /// [`TarError`].
    pub async fn fill(&mut self) -> Result<(), TarError> {
        let zeros = [0; 16 * BLOCK];
        while self.left > 0 {
            let some = zeros.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.out.write_all(zeros.get(..some).unwrap_or(&zeros)).await?;
            self.left -= some as u64;
        }
        self.pad().await
    }

    /// Writes a whole file.
    ///
    /// # Errors
    /// [`TarError`].
    pub async fn file(&mut self, name: &str, content: &[u8]) -> Result<Filed, TarError> {
        self.begin(name, content.len() as u64).await?;
        self.write(content).await?;
        self.end(name, content.len() as u64).await
    }

    /// Ends the archive with the sums of all its files, as `sha256sum -c` reads them.
    ///
    /// # Errors
    /// [`TarError`].
    pub async fn finish(mut self, sums_name: &str) -> Result<(), TarError> {
        let sums = std::mem::take(&mut self.sums);
        self.file(sums_name, sums.as_bytes()).await?;
        self.out.write_all(&[0; 2 * BLOCK]).await?;
        Ok(self.out.flush().await?)
    }

    async fn pad(&mut self) -> Result<(), TarError> {
        let zeros = [0; BLOCK];
        let padding = std::mem::take(&mut self.padding);
        Ok(self.out.write_all(zeros.get(..padding).unwrap_or(&zeros)).await?)
    }
}

fn padding(bytes: u64) -> usize {
    let over = usize::try_from(bytes % BLOCK as u64).unwrap_or(0);
    (BLOCK - over) % BLOCK
}

/// Makes the header of a regular file that its owner may read and write.
fn header(name: &str, bytes: u64, made_secs: u64) -> Option<Header> {
    if !name.is_ascii() || bytes > MAX_BYTES {
        return None;
    }
    let mut header = Header::new_ustar();
    header.set_path(name).ok()?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(bytes);
    header.set_mtime(made_secs.min(MAX_BYTES));
    header.set_cksum();
    Some(header)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn the_tar_of_the_system_reads_it() {
        let (long, long_file) = (["r", &"a".repeat(32), &"b".repeat(32), "s"].join("/"), "c".repeat(45));
        let deep = format!("{long}/{long_file}.cmr");
        assert!(deep.len() > 100, "too long for one field");
        let mut archive = Vec::new();
        let mut tar = Tar::new(&mut archive, 1_790_000_000);
        for (name, content) in [("empty", &b""[..]), ("block", &[7; BLOCK]), (&deep, b"deep")] {
            tar.file(name, content).await.unwrap();
        }
        tar.begin("cut", 20_000).await.unwrap();
        tar.write(&[1; 10]).await.unwrap();
        assert!(matches!(tar.write(&[1; 20_000]).await, Err(TarError::DoesNotFit)));
        assert!(matches!(tar.end("cut", 20_000).await, Err(TarError::DoesNotFit)));
        tar.fill().await.unwrap();
        tar.finish("SHA256SUMS").await.unwrap();

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.tar"), &archive).unwrap();
        let run = |program: &str, args: &[&str]| {
            let done = Command::new(program).args(args).current_dir(dir.path()).output().unwrap();
            assert!(done.status.success() && done.stderr.is_empty(), "{program}: {done:?}");
        };
        run("tar", &["xf", "a.tar"]);
        run("sha256sum", &["-c", "SHA256SUMS"]);
        assert_eq!(std::fs::read(dir.path().join(&deep)).unwrap(), b"deep");
        let cut = std::fs::read(dir.path().join("cut")).unwrap();
        assert_eq!((cut.len(), &cut[..12]), (20_000, &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0][..]));
        let sums = std::fs::read_to_string(dir.path().join("SHA256SUMS")).unwrap();
        assert_eq!(sums.lines().count(), 3, "what is not whole has no sum: {sums}");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for name in ["", "/etc/passwd", "\u{e4}", &"a".repeat(101), &format!("{}/a", "b".repeat(156))] {
            assert!(header(name, 1, 0).is_none(), "{name}");
        }
        assert!(header("a", MAX_BYTES, 0).is_some() && header("a", MAX_BYTES + 1, 0).is_none());
        for (bytes, zeros) in [(0, 0), (1, 511), (511, 1), (512, 0), (513, 511)] {
            assert_eq!(padding(bytes), zeros, "{bytes}");
        }
    }
}
