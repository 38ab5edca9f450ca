//! Wraps for a recipient: as published, and with the two files of a key pair.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::domain::ids::{KeyId, RecordingId, TenantId, TenantTag};

fn unhex(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn unhex_16(value: &Value) -> [u8; 16] {
    unhex(value).try_into().unwrap()
}

fn published_pair(pair: &Value) -> Recipient {
    let private = PrivateKey::parse(&unhex(&pair["private"])).unwrap();
    let sender = KeyBox::holding(unhex(&pair["sender"]).as_slice().try_into().unwrap());
    Recipient::new(Half::Private(Box::new(private)), sender, "2026-01-05T09:30:00Z")
}

#[test]
fn wraps_open_or_do_not_as_published() {
    let published = include_str!("../../../tests/vectors/cmr1/recipients.json");
    let published: Value = serde_json::from_str(published).unwrap();
    let pairs: Vec<Recipient> = published["pairs"].as_array().unwrap().iter().map(published_pair).collect();
    for (pair, wanted) in pairs.iter().zip(published["pairs"].as_array().unwrap()) {
        assert_eq!(pair.kek().kek, wanted["kek"].as_str().unwrap());
    }
    let cases = published["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let ids = Expected {
            tenant: TenantTag(unhex_16(&case["tenant_tag"])),
            recording: RecordingId(unhex_16(&case["recording_id"])),
            key: KeyId(unhex_16(&case["key_id"])),
        };
        let pair = usize::try_from(case["pair"].as_u64().unwrap()).unwrap();
        let opened = pairs[pair].unwrap(&ids, &unhex(&case["blob"]));
        match case.get("dek") {
            Some(dek) => assert_eq!(opened.unwrap().expose().as_slice(), unhex(dek), "{name}"),
            None => assert!(matches!(opened, Err(KeyError::BadEnvelope(_))), "{name}"),
        }
    }
}

struct Files {
    dir: TempDir,
}

impl Files {
    fn new() -> (Self, Recipient) {
        let files = Self { dir: TempDir::new().unwrap() };
        let made = init_recipient(&files.open(), &files.wrap(), "2026-01-05T09:30:00Z").unwrap();
        (files, made)
    }

    fn open(&self) -> PathBuf {
        self.dir.path().join("made/recipient.open")
    }

    fn wrap(&self) -> PathBuf {
        self.dir.path().join("made/recipient.wrap")
    }

    fn load(&self) -> (Recipient, Recipient) {
        (
            Recipient::load(&self.open(), RecipientFile::Open).unwrap(),
            Recipient::load(&self.wrap(), RecipientFile::Wrap).unwrap(),
        )
    }
}

fn dek_and_ids(tenant: &str) -> (Dek, Expected) {
    let tenant = tenant.parse::<TenantId>().unwrap().tag();
    let dek = Dek::filled_by(|key| fill_random(key)).unwrap();
    let recording = RecordingId([7; 16]);
    let ids = Expected { tenant, recording, key: dek.key_id(tenant, recording) };
    (dek, ids)
}

#[test]
fn what_a_wrap_file_wraps_only_its_open_file_opens() {
    let (files, _) = Files::new();
    let (open, wrap) = files.load();
    let (_, stranger) = Files::new();
    let (dek, ids) = dek_and_ids("acme");
    for blob in [wrap.wrap(&ids, &dek).unwrap(), open.wrap(&ids, &dek).unwrap()] {
        assert_eq!(blob.len(), 1234);
        assert_eq!(open.unwrap(&ids, &blob).unwrap().expose(), dek.expose());
        assert!(matches!(wrap.unwrap(&ids, &blob), Err(KeyError::WriteOnly)));
        assert!(matches!(stranger.unwrap(&ids, &blob), Err(KeyError::BadEnvelope("wrong key or context"))));
        let (_, others) = dek_and_ids("other");
        for ids in [
            Expected { tenant: others.tenant, ..ids },
            Expected { key: others.key, ..ids },
            Expected { recording: RecordingId([8; 16]), ..ids },
        ] {
            assert!(matches!(open.unwrap(&ids, &blob), Err(KeyError::BadEnvelope(_))), "{ids:?}");
        }
        for (at, bit) in (0..blob.len()).zip([1, 2, 4, 8, 16, 32, 64, 128].into_iter().cycle()) {
            let mut changed = blob.clone();
            changed[at] ^= bit;
            assert!(open.unwrap(&ids, &changed).is_err(), "byte {at}");
        }
        for length in 0..blob.len() {
            assert!(open.unwrap(&ids, &blob[..length]).is_err(), "{length} bytes");
        }
    }
}

#[test]
fn whoever_knows_the_public_key_alone_makes_no_wrap_that_is_believed() {
    let (files, _) = Files::new();
    let (open, wrap) = files.load();
    let (dek, ids) = dek_and_ids("acme");
    let forger =
        Recipient { name: wrap.name, key: wrap.key, sender: KeyBox::default(), created: String::new() };
    let blob = forger.wrap(&ids, &dek).unwrap();
    assert!(matches!(open.unwrap(&ids, &blob), Err(KeyError::BadEnvelope("wrong key or context"))));
}

#[test]
fn both_files_have_one_name_and_are_private() {
    let (files, made) = Files::new();
    let (open, wrap) = files.load();
    assert_eq!(open.kek(), made.kek());
    assert_eq!(wrap.kek(), made.kek());
    assert!(open.opens() && !wrap.opens());
    assert_eq!(format!("{wrap:?}"), format!("Recipient({})", made.kek().kek));
    for path in [files.open(), files.wrap()] {
        let again = init_recipient(&path, &files.dir.path().join("new"), "now");
        assert!(matches!(again, Err(RecipientError::Exists(_))), "{again:?}");
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for loose in [0o640, 0o604, 0o660, 0o601] {
            mode(loose);
            let error = Recipient::load_either(&path).unwrap_err();
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        mode(0o600);
    }
    let swapped = Recipient::load(&files.open(), RecipientFile::Wrap).unwrap_err().to_string();
    assert!(swapped.ends_with("is an open file; allowed here: a wrap file"), "{swapped}");
    let missing = Recipient::load(&files.dir.path().join("none"), RecipientFile::Open);
    assert!(matches!(missing, Err(RecipientError::Missing(_))));
}

#[test]
fn a_lost_wrap_file_is_made_anew() {
    let (files, made) = Files::new();
    fs::remove_file(files.wrap()).unwrap();
    let open = Recipient::load(&files.open(), RecipientFile::Open).unwrap();
    write_wrap_file(&open, &files.wrap()).unwrap();
    assert_eq!(files.load().1.kek(), made.kek());
}

#[test]
fn damaged_files_are_refused_without_a_word_of_what_is_in_them() {
    let (files, _) = Files::new();
    for path in [files.open(), files.wrap()] {
        let whole: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let changed = |member: &str, value: Value| {
            let mut changed = whole.clone();
            changed[member] = value;
            changed.to_string()
        };
        let (others, _) = Files::new();
        let other = if path == files.open() { others.open() } else { others.wrap() };
        let other: Value = serde_json::from_slice(&fs::read(other).unwrap()).unwrap();
        let mut key = base64_simd::STANDARD.decode_to_vec(whole["key"].as_str().unwrap()).unwrap();
        key[600] ^= 1;
        let flipped = base64_simd::STANDARD.encode_to_string(&key);
        for bad in [
            String::new(),
            "[".repeat(16 << 10),
            whole.to_string().repeat(9),
            changed("v", json!(2)),
            changed("suite", json!("x25519")),
            changed("kind", json!("callseal key")),
            changed("kek", json!("xwing/00")),
            changed("sender", json!(base64_simd::STANDARD.encode_to_string([0; 32]))),
            changed("sender", json!("AAAA")),
            changed("key", json!(flipped)),
            changed("key", other["key"].clone()),
            changed("kek", other["kek"].clone()),
            changed("key", json!("%")),
            changed("more", json!(1)),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = Recipient::load_either(&path).unwrap_err();
            assert!(matches!(error, RecipientError::Malformed(_)), "{error}: {bad:.80}");
            assert!(!error.to_string().contains("AAAA"), "{error}");
        }
    }
}
