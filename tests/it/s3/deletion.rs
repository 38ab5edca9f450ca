//! What is deleted is gone, also where the bucket keeps versions.

use std::sync::Arc;

use bytes::Bytes;
use callseal::config::S3Claims;
use callseal::store::{ObjectName, Store, Tags};
use futures_util::future::join_all;

use super::servers::{ALL, Server, ceph, name, open, put};

/// Counts versions, delete markers and unfinished uploads of a bucket.
async fn left(server: &Server, bucket: &str) -> (usize, usize, usize) {
    let client = server.client();
    let versions = client.list_object_versions().bucket(bucket).send().await.unwrap();
    let uploads = client.list_multipart_uploads().bucket(bucket).send().await.unwrap();
    (versions.versions().len(), versions.delete_markers().len(), uploads.uploads().len())
}

#[tokio::test]
async fn more_objects_than_one_request_takes_are_deleted() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    let store = Arc::new(open(&options).await);
    let names: Vec<ObjectName> = (0..1_203).map(|n| name(&format!("many/{n:04}"))).collect();
    let none = Tags::new();
    for some in names.chunks(32) {
        let puts = some.iter().map(|name| store.put_new(name, Bytes::from_static(b"x"), &none));
        for done in join_all(puts).await {
            done.unwrap();
        }
    }
    let listed = store.list_after("many/", None, 5_000).await.unwrap();
    assert_eq!(listed.len(), names.len(), "a listing has more than one page");
    assert!(listed.iter().map(|info| &info.name).eq(&names), "in order, without gaps");

    store.delete_all(&names[..1_101]).await.unwrap();
    let rest = store.list_after("many/", None, 5_000).await.unwrap();
    assert!(rest.iter().map(|info| &info.name).eq(&names[1_101..]), "exactly those that were named are gone");
    assert_eq!(store.purge("many/").await.unwrap(), 102);
    assert_eq!(left(&ceph, &options.bucket).await, (0, 0, 0));
}

#[tokio::test]
async fn a_purge_destroys_versions_markers_and_unfinished_uploads() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(S3Claims { versions: true, ..ALL }).await;
    ceph.keep_versions(&options.bucket).await;
    let store = open(&options).await;

    for text in ["gone/a", "gone/b", "kept/c"] {
        put(&store, text).await;
    }
    store.delete(&name("gone/a")).await.unwrap();
    put(&store, "gone/a").await;
    store.delete_all(&[name("gone/a"), name("gone/b")]).await.unwrap();
    let mut upload = store.begin_upload(&name("gone/large"), &Tags::new()).await.unwrap();
    upload.put_part(Bytes::from_static(b"part")).await.unwrap();
    assert!(store.list_after("gone/", None, 9).await.unwrap().is_empty(), "deleted objects are not listed");
    assert_eq!(left(&ceph, &options.bucket).await, (4, 3, 1), "but they are all there");

    assert_eq!(store.purge("gone/").await.unwrap(), 3, "two versions of one name and one of the other");
    assert_eq!(left(&ceph, &options.bucket).await, (1, 0, 0), "only the neighbour is left");
    assert_eq!(store.purge("gone/").await.unwrap(), 0, "nothing is left to purge");
}

#[tokio::test]
async fn objects_of_others_are_neither_listed_nor_in_the_way() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    let store = open(&options).await;
    let client = ceph.client();
    for key in ["mix/0 Foreign", "mix/1/", "mix/2É"] {
        client.put_object().bucket(&options.bucket).key(key).send().await.unwrap();
    }
    for text in ["mix/a", "mix/b"] {
        put(&store, text).await;
    }
    let first = store.list_after("mix/", None, 1).await.unwrap();
    assert_eq!(first.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(), ["mix/a"]);
    assert_eq!(store.list_after("mix/", None, 9).await.unwrap().len(), 2);
    assert_eq!(store.purge("mix/").await.unwrap(), 5, "a purge takes everything under its prefix");
}
