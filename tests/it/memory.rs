//! What lies in the memory of a running server: keys in locked pages and nowhere else, audio for the moment alone.
//!
//! The memory is read from outside, page by page, as root reads it. Where this process may not do that, the tests say so and
//! are skipped; in CI they fail.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use callseal::domain::playback::wav::ulaw_to_pcm16;
use callseal::keys::{KeyService, Keyring, LocalKeys};
use callseal::store::folder::Folder;
use hkdf::Hkdf;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::memory::{Hit, Needle, Scan, scan};
use crate::support::socket::{greeting, media_of, stop, stream_id};
use crate::support::{Home, Server, Setup, TENANT, eventually, files_below};

const PATH: &str = "acme-dental/reception";
/// Messages of 20 ms in a second.
const SECOND: u32 = 50;
/// Every 16 bytes of audio begin with this, and end with the number of their message. No speech sounds like it.
const MARKER: [u8; 12] = *b"\x8f\x13\xe7\x31\x9c\x05\xd2\x6b\x47\xfa\x2e\xb8";
/// What every object of a recording begins with.
const MAGIC: [u8; 8] = *b"\x89CMR\r\n\x1a\n";
const HEADER_BYTES: usize = 176;

/// Whether this process may read the memory of others.
fn may_look(server: &Server) -> bool {
    let may = scan(server.pid(), &[]);
    if let Err(error) = &may {
        assert!(std::env::var_os("CI").is_none(), "the memory of the server must be readable in CI: {error}");
        println!("skipped: the memory of another process cannot be read: {error}");
    }
    may.is_ok()
}

/// Returns one message of audio, 20 ms, which tells its number wherever 16 bytes of it are found.
fn audio(number: u32) -> [u8; 160] {
    let mut audio = [0; 160];
    for part in audio.as_chunks_mut::<16>().0 {
        part[..12].copy_from_slice(&MARKER);
        part[12..].copy_from_slice(&number.to_be_bytes());
    }
    audio
}

/// What audio may look like in memory: as it is, base64 at all three offsets, and linear samples of both byte orders.
fn audio_needles() -> Vec<Needle> {
    let mut needles = vec![Needle { name: "audio".to_owned(), bytes: MARKER.to_vec() }];
    for offset in 0..3 {
        let text = BASE64_STANDARD.encode([&vec![0; offset][..], &MARKER].concat());
        let text = text.trim_end_matches('=');
        let inner = &text[(offset * 4).div_ceil(3)..text.len() - 1];
        needles.push(Needle { name: format!("audio, base64 at {offset}"), bytes: inner.into() });
    }
    let samples = MARKER.map(ulaw_to_pcm16);
    let linear = |bytes: fn(i16) -> [u8; 2]| samples.into_iter().flat_map(bytes).collect();
    needles.push(Needle { name: "audio, linear".to_owned(), bytes: linear(i16::to_le_bytes) });
    needles.push(Needle { name: "audio, linear, big-endian".to_owned(), bytes: linear(i16::to_be_bytes) });
    needles
}

/// Returns which message a find belongs to; `None` for a part of it that does not tell.
fn number_of(hit: &Hit) -> Option<u32> {
    let number = |bytes: &[u8]| Some(u32::from_be_bytes(*bytes.get(12..)?.first_chunk()?));
    let Some(offset) = hit.name.strip_prefix("audio, base64 at ") else {
        return number(&hit.bytes).filter(|_| hit.name == "audio");
    };
    let offset: usize = offset.parse().unwrap();
    // From the group of four in which the marker begins.
    let before = (offset * 4).div_ceil(3);
    let text = [hit.before.get(hit.before.len().checked_sub(before)?..)?, &hit.bytes].concat();
    let bytes = BASE64_STANDARD.decode(text.get(..24)?).ok()?;
    number(&bytes[offset..])
}

/// The keys of everything that a server has in its store: data keys, those of their objects, and the key-encryption keys.
async fn key_needles(home: &Home) -> Vec<Needle> {
    let keyring = home.data().join("keyring.json");
    let raw: Value = serde_json::from_slice(&fs::read(&keyring).unwrap()).unwrap();
    let mut needles = Vec::new();
    for kek in raw["keks"].as_array().unwrap() {
        let text = kek["key"].as_str().unwrap();
        needles.push(Needle { name: "KEK".to_owned(), bytes: BASE64_STANDARD.decode(text).unwrap() });
        needles.push(Needle { name: "KEK, base64".to_owned(), bytes: text.as_bytes()[..40].into() });
    }
    let files = files_below(&home.data());
    for (key_id, dek) in deks(home, &keyring).await {
        needles.push(Needle { name: "DEK".to_owned(), bytes: dek.to_vec() });
        needles.extend(object_keys(&files, &key_id, &dek));
    }
    needles
}

/// Opens every envelope in the store; answers the id of each key, and the key.
async fn deks(home: &Home, keyring: &Path) -> Vec<(Vec<u8>, [u8; 32])> {
    let store = Arc::new(Folder::open(home.data().join("store")).await.unwrap());
    let keys = Arc::new(KeyService::new(Arc::new(LocalKeys::new(Keyring::load(keyring).unwrap())), store));
    let mut deks = Vec::new();
    for (path, _) in files_below(&home.data().join("store/k")) {
        let recording = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        // One that was never used may go meanwhile.
        if let Ok(opened) = keys.open(&TENANT.parse().unwrap(), recording.parse().unwrap()).await {
            deks.push((opened.ids.key.0.to_vec(), *opened.dek.expose()));
        }
    }
    deks
}

/// Derives the keys of all objects under a data key, wherever the server has put them (`docs/FORMAT.md` section 3).
fn object_keys(files: &[(std::path::PathBuf, Vec<u8>)], key_id: &[u8], dek: &[u8; 32]) -> Vec<Needle> {
    let mut needles = Vec::new();
    for (_, content) in files {
        for at in memchr::memmem::find_iter(content, &MAGIC) {
            let Some(header) = content.get(at..at + HEADER_BYTES) else { continue };
            if header[10] != 1 || header[48..64] != *key_id {
                continue;
            }
            let mut okm = [0; 76];
            let info = [b"cmr1 object\0", &Sha256::digest(&header[..144])[..]].concat();
            Hkdf::<Sha256>::new(Some(&header[96..128]), dek).expand(&info, &mut okm).unwrap();
            assert_eq!(okm[44..], header[144..], "the commitment says that the key is right");
            // The first round keys of AES-256 are the key itself, so that this finds an expanded key as well.
            needles.push(Needle { name: "segment key".to_owned(), bytes: okm[..32].to_vec() });
        }
    }
    needles
}

fn where_found(hits: &[&Hit]) -> Vec<String> {
    let told = |hit: &&Hit| {
        format!("{} in {:?} at {:x}, number {:?}", hit.name, hit.region, hit.address, number_of(hit))
    };
    hits.iter().map(told).collect()
}

fn assert_no_key(found: &Scan, when: &str) {
    for name in ["KEK", "DEK", "segment key"] {
        let hits = found.of(name);
        assert!(hits.is_empty(), "{when}: {:#?}", where_found(&hits));
    }
}

/// The scanner finds what is there, in this process and in another one.
fn assert_scanner_works(home: &Home, server: &Server) {
    let planted = [MARKER, MARKER].concat();
    let here = scan(std::process::id(), &audio_needles()).unwrap();
    let address = planted.as_ptr() as u64;
    assert!(here.hits.iter().any(|hit| hit.address == address), "planted at {address:x}");
    let name = home.public_url().trim_start_matches("wss://").to_owned();
    let there = scan(server.pid(), &[Needle { name, bytes: home.public_url()[6..].into() }]).unwrap();
    assert!(!there.hits.is_empty() && there.bytes > 1 << 20, "{} bytes", there.bytes);
}

/// Waits until as many keys are ready as ever are, so that none is being made during a look.
async fn wait_for_pool(server: &Server) {
    let full = || (server.metric("keys_waiting") >= 8.0).then_some(());
    eventually("a full pool of keys", full).await;
}

/// Waits until no audio is left; answers after how many milliseconds.
async fn wait_for_no_audio(server: &Server, when: &str) -> u128 {
    let began = callseal::clock::monotonic();
    let needles = audio_needles();
    loop {
        let found = scan(server.pid(), &needles).unwrap();
        if found.hits.is_empty() {
            return began.elapsed().as_millis();
        }
        let hits: Vec<_> = found.hits.iter().collect();
        assert!(began.elapsed() < crate::support::LIMIT, "{when}: {:#?}", where_found(&hits));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn keys_lie_in_locked_pages_and_audio_does_not_stay() {
    let (home, server) = Setup::new().option("segments", "max_bytes", "16384").serve();
    if !may_look(&server) {
        return;
    }
    assert_scanner_works(&home, &server);
    let mut socket = server.open(PATH).await;
    for text in greeting(1) {
        socket.text(text).await;
    }
    let sent = 6 * SECOND;
    for number in 1..=sent {
        socket.text(media_of(&stream_id(1), number, &audio(number))).await;
    }
    socket.settle().await;
    wait_for_pool(&server).await;
    let keys = key_needles(&home).await;
    let count = |name: &str| keys.iter().filter(|needle| needle.name == name).count();
    assert!(count("KEK") == 1 && count("DEK") >= 9 && count("segment key") >= 1, "{keys:#?}");

    let live = scan(server.pid(), &[keys.clone(), audio_needles()].concat()).unwrap();
    assert_no_key(&live, "while the call runs");
    for hit in live.of("audio") {
        let number = number_of(hit);
        assert!(number.is_none_or(|number| number > sent - SECOND), "{:#?}", where_found(&[hit]));
    }
    println!("live: {} bytes read, {} finds of audio", live.bytes, live.of("audio").len());
    let by = server.logged("keys lie in locked memory").remove(0).field("by").to_owned();
    assert_eq!(live.secret.iter().any(|name| name.contains("secretmem")), by == "memfd_secret", "{by}");

    socket.text(stop(&stream_id(1))).await;
    let recording = server.stored(1).await;
    println!("ended: no audio after {} ms", wait_for_no_audio(&server, "after the call").await);
    let keys = key_needles(&home).await;
    assert_no_key(&scan(server.pid(), &keys).unwrap(), "after the call");

    let link = home.grant(TENANT, &recording, &[]);
    let played = server.https().get(&link, &[]).await.unwrap();
    assert_eq!(played.status.as_u16(), 200);
    println!("played: no audio after {} ms", wait_for_no_audio(&server, "after it was played").await);
    assert_no_key(&scan(server.pid(), &keys).unwrap(), "after it was played");
    assert_eq!(server.metric("keys_unlocked_total").to_string(), "0");
}

/// The other control: keys that lie in ordinary memory are found there.
#[tokio::test]
async fn without_locked_memory_keys_are_found_counted_and_refused_on_demand() {
    let home = Setup::new().write();
    let no_locks =
        ["setpriv", "--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", "prlimit", "--memlock=0"];
    let Some(mut server) = home.serve_under(&no_locks) else {
        println!(
            "skipped: setpriv and prlimit of util-linux are not there, or this process may not use them"
        );
        return;
    };
    server.allow("no memory can be locked");
    server.allow("no locked memory is left");
    if !may_look(&server) {
        return;
    }
    let mut socket = server.open(PATH).await;
    for text in greeting(1) {
        socket.text(text).await;
    }
    socket.settle().await;
    wait_for_pool(&server).await;
    let found = scan(server.pid(), &key_needles(&home).await).unwrap();
    assert!(!found.of("DEK").is_empty() && !found.of("KEK").is_empty(), "the scanner finds keys");
    assert!(server.metric("keys_unlocked_total") >= 10.0);

    let config = fs::read_to_string(home.config()).unwrap();
    fs::write(home.config(), format!("{config}[keys]\nrequire_locked_memory = true\n")).unwrap();
    let refused = home.run_under(&no_locks, &["serve"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("keys.require_locked_memory is set"), "{}", refused.err);
    home.run_ok(&["keys", "status"]);
}
