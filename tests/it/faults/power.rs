//! The power of the disk below a folder store is cut: what was told to be stored is there, and nothing is there by half.
//!
//! Needs root, a loop device and ext4, so it is asked for: `TEST_POWER_CUT=1 cargo nextest run power`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use callseal::store::folder::Folder;
use callseal::store::{ObjectName, PutOutcome, Store, Tags};

/// How often, each time on the disk that the one before has left.
const CUTS: usize = 5;
/// Writers at the same time, each in a directory of its own.
const WRITERS: usize = 4;
/// Objects that are stored before each cut.
const BEFORE: usize = 60;

/// A disk of its own, gone when it is dropped.
struct Disk {
    file: PathBuf,
    dir: PathBuf,
}

impl Disk {
    fn make(home: &Path) -> Option<Self> {
        if std::env::var_os("TEST_POWER_CUT").is_none_or(|value| value != "1") {
            println!("SKIPPED, nothing was checked: TEST_POWER_CUT is not 1");
            return None;
        }
        let disk = Self { file: home.join("disk.img"), dir: home.join("disk") };
        disk.power_cut("make", true);
        Some(disk)
    }

    fn power_cut(&self, what: &str, names_the_file: bool) {
        let status = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/power-cut"))
            .arg(what)
            .args(names_the_file.then_some(&self.file))
            .arg(&self.dir)
            .status()
            .unwrap();
        assert!(status.success(), "scripts/power-cut {what}: {status}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.power_cut("remove", true);
    }
}

/// Bytes and tags that belong to a name.
fn object(number: usize) -> (Bytes, Tags) {
    let mut tags = Tags::new();
    tags.insert("callseal-number", number.to_string()).unwrap();
    tags.insert("callseal-more", "x".repeat(200)).unwrap();
    let byte = number.to_le_bytes()[0];
    (Bytes::from(vec![byte; 90_000]), tags)
}

fn name(cut: usize, writer: usize, number: usize) -> ObjectName {
    ObjectName::new(format!("r/{cut}-{writer}/s/{number}")).unwrap()
}

fn number_of(name: &ObjectName) -> usize {
    name.as_str().rsplit('/').next().unwrap().parse().unwrap()
}

/// Stores until the disk fails; answers how many objects it was told to be stored, all with lower numbers.
async fn store_until_it_fails(folder: Folder, cut: usize, writer: usize, stored: Arc<AtomicUsize>) -> usize {
    for number in 0.. {
        let (body, tags) = object(number);
        match folder.put_new(&name(cut, writer, number), body, &tags).await {
            Ok(outcome) => assert_eq!(outcome, PutOutcome::Created),
            Err(_) => return number,
        }
        stored.fetch_add(1, Ordering::Relaxed);
    }
    unreachable!("the disk fails before numbers end")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_folder_has_taken_survives_a_power_cut() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::make(home.path()) else { return };
    for cut in 0..CUTS {
        let folder = Folder::open(disk.dir.join("store")).await.unwrap();
        let stored = Arc::new(AtomicUsize::new(0));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                tokio::spawn(store_until_it_fails(folder.clone(), cut, writer, Arc::clone(&stored)))
            })
            .collect();
        while stored.load(Ordering::Relaxed) < BEFORE {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        disk.power_cut("cut", false);
        let mut told = Vec::new();
        for writer in writers {
            told.push(writer.await.unwrap());
        }
        drop(folder);
        disk.power_cut("restore", true);
        let folder = Folder::open(disk.dir.join("store")).await.unwrap();
        for (writer, told) in told.into_iter().enumerate() {
            for number in 0..told {
                let found = folder.head(&name(cut, writer, number)).await;
                assert!(found.is_ok(), "cut {cut}: {number} of {told} was stored and is gone: {found:?}");
            }
        }
        for found in folder.list_after("", None, 10_000).await.unwrap() {
            let (body, tags) = object(number_of(&found.name));
            assert_eq!(folder.get(&found.name, None).await.unwrap().bytes, body, "{}", found.name);
            assert_eq!(folder.tags(&found.name).await.unwrap(), tags, "{}", found.name);
        }
        assert!(stored.load(Ordering::Relaxed) >= BEFORE);
        folder.purge("r/").await.unwrap();
    }
}

#[tokio::test]
async fn what_a_folder_has_deleted_stays_deleted() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::make(home.path()) else { return };
    let open = || Folder::open(disk.dir.join("store"));
    let folder = open().await.unwrap();
    let names: Vec<_> = (0..12).map(|number| name(0, number % 2, number)).collect();
    for name in &names {
        let (body, tags) = object(number_of(name));
        folder.put_new(name, body, &tags).await.unwrap();
    }
    let (kept, gone) = names.split_first().unwrap();
    folder.delete_all(gone).await.unwrap();
    disk.power_cut("cut", false);
    drop(folder);
    disk.power_cut("restore", true);
    let folder = open().await.unwrap();
    let left: Vec<_> =
        folder.list_after("", None, 100).await.unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(left, std::slice::from_ref(kept));
}
