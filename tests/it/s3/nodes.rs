//! Two nodes on one bucket.

use std::path::Path;

use tempfile::TempDir;

use callseal::config::S3;

use crate::repair::{both, call_and_kill, play, setup};
use crate::support::{Home, Setup, TENANT};

use super::servers::{ALL, NO_TAGS, Server, ceph, garage, table};

/// A node with a bucket and the keys of `keyring`.
fn node(setup: Setup, server: &Server, bucket: &S3, secrets: &Path) -> Setup {
    table(secrets, server, bucket)
        .into_iter()
        .fold(setup, |setup, (option, value)| setup.option("store", option, &value))
}

/// The second node has the keys of the first.
fn with_keys_of(setup: Setup, home: &Home) -> Setup {
    let keyring = home.data().join("keyring.json").display().to_string();
    setup.option("keys", "keyring_file", &format!("{keyring:?}"))
}

async fn what_one_records_the_other_plays_and_finishes(server: &Server, bucket: &S3) {
    let secrets = TempDir::new().unwrap();
    let (home, mut first) = node(setup(), server, bucket, secrets.path()).serve();
    let adopting = setup().option("repair", "after_secs", "1").option("repair", "interval_secs", "1");
    let (other, mut second) = with_keys_of(node(adopting, server, bucket, secrets.path()), &home).serve();
    let (recording, _) = call_and_kill(&home, &mut first, 3, async |recording| {
        let played = play(&other, &second, recording).await;
        assert!(played.len() > 2000, "{} samples play elsewhere while the call runs", played.len());
    })
    .await;
    second.wait_log("abandoned recording finished", 1).await;
    let adopted = both(&other, &recording);
    assert!(adopted.iter().all(|samples| *samples > 2000), "{adopted:?}");
    let verified = other.verify(TENANT, &recording);
    assert_eq!((&verified["state"], &verified["grade"]), (&"recovered".into(), &"evidence".into()));
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_share_a_bucket_of_ceph() {
    let Some(ceph) = ceph() else { return };
    let bucket = ceph.bucket(ALL).await;
    what_one_records_the_other_plays_and_finishes(&ceph, &bucket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_share_a_bucket_of_garage() {
    let Some(garage) = garage() else { return };
    let bucket = garage.bucket(NO_TAGS).await;
    what_one_records_the_other_plays_and_finishes(&garage, &bucket).await;
}
