use super::*;
use crate::clock;
use crate::store::conformance;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::SystemTime;

async fn folder() -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path().join("store")).await.unwrap();
    (dir, folder)
}

fn root(folder: &Folder) -> &Path {
    &folder.root.path
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn tagged() -> Tags {
    let mut tags = Tags::new();
    tags.insert("callseal-class", "call").unwrap();
    tags
}

async fn put(folder: &Folder, to: &str) -> Result<PutOutcome, StoreError> {
    folder.put_new(&name(to), Bytes::from_static(b"x"), &tagged()).await
}

#[tokio::test]
async fn conforms() {
    let (_dir, folder) = folder().await;
    conformance::run(&folder, "t/1").await;
    let left: Vec<_> = fs::read_dir(root(&folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().starts_with('.')), "directories go: {left:?}");
    for dir in [".tmp", ".tags"] {
        assert_eq!(fs::read_dir(root(&folder).join(dir)).unwrap().count(), 0, "{dir} is empty");
    }
}

#[tokio::test]
async fn two_handles_on_one_directory_are_one_store() {
    let (_dir, first) = folder().await;
    let second = Folder::open(root(&first)).await.unwrap();
    for n in 0..20 {
        let to = format!("race/{n}");
        let (a, b) = tokio::join!(put(&first, &to), put(&second, &to));
        let outcomes = [a.unwrap(), b.unwrap()];
        assert!(outcomes.contains(&PutOutcome::Created) && outcomes.contains(&PutOutcome::AlreadyExists));
    }
}

#[tokio::test]
async fn puts_survive_deletions_next_door() {
    let (_dir, folder) = folder().await;
    let other = folder.clone();
    let deletions = tokio::spawn(async move {
        for _ in 0..50 {
            put(&other, "r/t/one").await.unwrap();
            other.delete(&name("r/t/one")).await.unwrap();
        }
    });
    for n in 0..50 {
        let own = format!("r/t/two-{n}");
        assert_eq!(put(&folder, &own).await.unwrap(), PutOutcome::Created);
        assert_eq!(folder.tags(&name(&own)).await.unwrap(), tagged());
        folder.delete(&name(&own)).await.unwrap();
    }
    deletions.await.unwrap();
}

#[tokio::test]
async fn only_the_owner_can_read() {
    let (_dir, folder) = folder().await;
    put(&folder, "a/b").await.unwrap();
    let mode = |path: &str| fs::metadata(root(&folder).join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(["", "a", ".tags", ".tmp", ".tags/a"].map(mode), [0o700; 5]);
    assert_eq!(["a/b", ".tags/a/b~.json"].map(mode), [0o600; 2]);
}

#[tokio::test]
async fn links_and_foreign_files_are_no_objects() {
    let (dir, folder) = folder().await;
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "s").unwrap();
    symlink(&outside, root(&folder).join("linked")).unwrap();
    symlink(outside.join("secret"), root(&folder).join("file")).unwrap();
    fs::write(root(&folder).join("UPPER"), "s").unwrap();
    put(&folder, "z").await.unwrap();

    let listed = folder.list_after("", None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["z"]);
    assert!(folder.list_after("linked/", None, 10).await.unwrap().is_empty());
    assert!(matches!(folder.get(&name("file"), None).await, Err(StoreError::NotFound)));
    assert!(matches!(put(&folder, "file").await, Err(StoreError::Refused { .. })));
    folder.delete(&name("file")).await.unwrap();
    assert!(outside.join("secret").exists());
}

#[tokio::test]
async fn an_object_is_no_directory() {
    let (_dir, folder) = folder().await;
    put(&folder, "a").await.unwrap();
    assert!(matches!(put(&folder, "a/b").await, Err(StoreError::Refused { .. })));
    assert!(matches!(folder.get(&name("a/b"), None).await, Err(StoreError::NotFound)));
    put(&folder, "c/d").await.unwrap();
    assert!(matches!(put(&folder, "c").await, Err(StoreError::Refused { .. })));
    folder.delete(&name("c")).await.unwrap();
    assert!(folder.head(&name("c/d")).await.is_ok());
}

#[tokio::test]
async fn only_old_leftovers_are_removed() {
    let (_dir, folder) = folder().await;
    let temporary = root(&folder).join(".tmp");
    for (file, age) in [("old", 3700), ("young", 60)] {
        let written =
            SystemTime::UNIX_EPOCH + Duration::from_millis(clock::wall().0) - Duration::from_secs(age);
        File::create(temporary.join(file)).unwrap().set_modified(written).unwrap();
    }
    Folder::open(root(&folder)).await.unwrap();
    assert!(!temporary.join("old").exists());
    assert!(temporary.join("young").exists());
}

#[tokio::test]
async fn tags_of_a_crashed_put_do_not_reach_the_next_object() {
    let (_dir, folder) = folder().await;
    folder.root.write_tags(&name("a"), &tagged()).unwrap();
    folder.put_new(&name("a"), Bytes::new(), &Tags::new()).await.unwrap();
    assert!(folder.tags(&name("a")).await.unwrap().is_empty());
    fs::write(folder.root.tags_path(&name("a")), "{").unwrap();
    assert!(matches!(folder.tags(&name("a")).await, Err(StoreError::Corrupt { .. })));
}

#[tokio::test]
async fn an_upload_dropped_or_repeated_leaves_no_file() {
    let (_dir, folder) = folder().await;
    let count = || fs::read_dir(root(&folder).join(".tmp")).unwrap().count();
    let mut upload = folder.begin_upload(&name("a"), &tagged()).await.unwrap();
    upload.put_part(Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(count(), 1);
    drop(upload);
    assert_eq!(count(), 0);
    let mut upload = folder.begin_upload(&name("a"), &tagged()).await.unwrap();
    upload.put_part(Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(upload.complete().await.unwrap(), PutOutcome::Created);
    assert_eq!(upload.complete().await.unwrap(), PutOutcome::Created, "the same answer again");
    assert_eq!(count(), 0);
    upload.abort().await.unwrap();
    assert!(folder.head(&name("a")).await.is_ok(), "aborting what is complete changes nothing");
}
