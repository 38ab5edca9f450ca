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

/// The same directory as a file system without attributes would have it.
fn without_attributes(folder: &Folder) -> Folder {
    Folder::over(root(folder).to_owned(), false)
}

fn root(folder: &Folder) -> &Path {
    &folder.root.path
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

fn tagged() -> Tags {
    class("call")
}

fn class(class: &str) -> Tags {
    let mut tags = Tags::new();
    tags.insert("callseal-class", class).unwrap();
    tags
}

async fn put(folder: &Folder, to: &str) -> Result<PutOutcome, StoreError> {
    folder.put_new(&name(to), Bytes::from_static(b"x"), &tagged()).await
}

#[tokio::test]
async fn conforms() {
    let (_dir, with) = folder().await;
    for folder in [without_attributes(&with), with] {
        conforms_and_leaves_nothing(&folder).await;
    }
}

async fn conforms_and_leaves_nothing(folder: &Folder) {
    conformance::run(folder, "t/1").await;
    let left: Vec<_> = fs::read_dir(root(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().starts_with('.')), "directories go: {left:?}");
    for dir in [".tmp", ".tags"] {
        assert_eq!(fs::read_dir(root(folder).join(dir)).unwrap().count(), 0, "{dir} is empty");
    }
}

#[tokio::test]
async fn tags_are_in_the_file_of_their_object() {
    let (dir, folder) = folder().await;
    put(&folder, "a/b").await.unwrap();
    if fs::read_dir(root(&folder).join(".tags")).unwrap().next().is_some() {
        println!("SKIPPED, nothing was checked: the file system has no attributes");
        return;
    }
    fs::rename(root(&folder).join("a"), dir.path().join("a")).unwrap();
    let moved = Folder::reading(dir.path());
    assert_eq!(moved.tags(&name("a/b")).await.unwrap(), tagged(), "they go where their object goes");
}

#[tokio::test]
async fn tags_in_files_and_in_attributes_are_never_mixed() {
    let (_dir, new) = folder().await;
    let old = without_attributes(&new);
    let object = name("a/b");
    let file = new.root.tags_path(&object);
    put(&old, "a/b").await.unwrap();
    assert!(file.exists());
    assert_eq!(new.tags(&object).await.unwrap(), tagged(), "those of an older version are read");
    new.set_tags(&object, &class("new")).await.unwrap();
    assert_eq!(new.tags(&object).await.unwrap(), class("new"));
    old.set_tags(&object, &class("old")).await.unwrap();
    assert_eq!(new.tags(&object).await.unwrap(), class("old"), "the last word counts, wherever it is");
    old.set_tags(&object, &Tags::new()).await.unwrap();
    assert!(new.tags(&object).await.unwrap().is_empty(), "none is a word too");
    new.set_tags(&object, &class("new")).await.unwrap();
    new.set_tags(&object, &Tags::new()).await.unwrap();
    assert!(new.tags(&object).await.unwrap().is_empty());
    new.delete(&object).await.unwrap();
    assert!(!file.exists());
    new.put_new(&object, Bytes::new(), &Tags::new()).await.unwrap();
    assert!(new.tags(&object).await.unwrap().is_empty(), "a new object has its own");
}

#[tokio::test]
async fn many_are_deleted_wherever_their_tags_are() {
    let (_dir, new) = folder().await;
    let old = without_attributes(&new);
    for (folder, names) in [(&new, ["r/s/1", "r/s/2", "r/t/1"]), (&old, ["r/s/3", "r/u/1", "r/s/4"])] {
        for name in names {
            put(folder, name).await.unwrap();
        }
    }
    let gone = ["r/s/1", "r/s/3", "r/s/2", "r/t/1", "r/u/1", "r/none"].map(name);
    new.delete_all(&gone).await.unwrap();
    let left: Vec<_> = new.list_after("", None, 9).await.unwrap().into_iter().map(|info| info.name).collect();
    assert_eq!(left, [name("r/s/4")]);
    assert_eq!(new.tags(&left[0]).await.unwrap(), tagged(), "what stays keeps its tags");
    for dir in ["r/t", "r/u", ".tags/r/u"] {
        assert!(!root(&new).join(dir).exists(), "{dir} is empty and goes");
    }
    assert_eq!(new.purge("r/").await.unwrap(), 1);
    assert!(!root(&new).join("r").exists() && !root(&new).join(".tags/r").exists());
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
    let folder = without_attributes(&folder);
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
    folder.root.write_tags_file(&name("a"), &tagged()).unwrap();
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
