//! Searches everything at rest for what was said.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use memchr::memmem::Finder;

use crate::config::{Config, StoreKind};
use crate::domain::playback::wav::ulaw_to_pcm16;
use crate::domain::sign::encode_base64;
use crate::simulate::speech::{DEMO_AGENT, DEMO_CALLER};

/// The number that the demonstration's call comes from; reserved for fiction.
pub(super) const PHONE_NUMBER: &str = "+15555550123";
/// Bytes of one piece of audio: 4 ms, long enough that no ciphertext holds it by chance.
const PIECE_BYTES: usize = 32;
/// Pieces with fewer different values are silence, which nobody could tell from noise.
const MIN_DIFFERENT: usize = 16;
/// So many pieces must be found in the audio itself, or the search proves nothing.
const MIN_AUDIBLE: u64 = 20;
/// One piece is searched for in every so many samples.
const STRIDE: usize = 16_000;

/// What a search covered.
pub(super) struct Searched {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) needles: usize,
    pub(super) hits: u64,
}

/// Searches store and journal for pieces of both tracks and for the caller's number.
///
/// # Errors
/// Files that cannot be read, and a search that could not have found anything.
pub(super) fn search(config: &Config) -> anyhow::Result<Searched> {
    let needles = needles();
    let finders: Vec<Finder<'_>> = needles.iter().map(Finder::new).collect();
    let audible = [DEMO_CALLER, DEMO_AGENT].map(|track| hits(&finders, track)).iter().sum::<u64>();
    ensure!(audible >= MIN_AUDIBLE, "the search would not find what it looks for");
    let mut searched = Searched { files: 0, bytes: 0, needles: needles.len(), hits: 0 };
    let StoreKind::Folder { path } = &config.store else { bail!("the demonstration searches a folder") };
    for dir in [path, &config.journal.dir] {
        search_dir(dir, &finders, &mut searched)?;
    }
    ensure!(searched.files > 0, "there is nothing to search");
    Ok(searched)
}

fn needles() -> Vec<Vec<u8>> {
    let mut needles = vec![PHONE_NUMBER.as_bytes().to_vec()];
    for track in [DEMO_CALLER, DEMO_AGENT] {
        for stretch in track.chunks(STRIDE) {
            let piece = stretch.chunks_exact(PIECE_BYTES).max_by_key(|piece| different(piece));
            let Some(piece) = piece.filter(|piece| different(piece) >= MIN_DIFFERENT) else { continue };
            needles.push(piece.to_vec());
            needles.push(piece.iter().flat_map(|code| ulaw_to_pcm16(*code).to_le_bytes()).collect());
            // Base64 of the same bytes looks different at each of the three places it can begin.
            for skip in 0..3 {
                let aligned = piece.get(skip..skip + 27).unwrap_or_default();
                needles.push(encode_base64(aligned).into_bytes());
            }
        }
    }
    needles
}

fn different(piece: &[u8]) -> usize {
    piece.iter().collect::<BTreeSet<_>>().len()
}

fn search_dir(dir: &Path, finders: &[Finder<'_>], searched: &mut Searched) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("search {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            search_dir(&entry.path(), finders, searched)?;
            continue;
        }
        let bytes = match fs::read(entry.path()) {
            Ok(bytes) => bytes,
            // Removed meanwhile, as journal files are.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("search {}", entry.path().display())),
        };
        searched.files += 1;
        searched.bytes += bytes.len() as u64;
        searched.hits += hits(finders, &bytes);
    }
    Ok(())
}

fn hits(finders: &[Finder<'_>], bytes: &[u8]) -> u64 {
    finders.iter().map(|finder| u64::from(finder.find(bytes).is_some())).sum()
}
