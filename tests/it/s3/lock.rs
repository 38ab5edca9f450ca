//! Locked objects, which the store keeps whoever asks.

use std::time::Duration;

use bytes::Bytes;
use callseal::clock;
use callseal::config::{S3, S3Claims, S3ObjectLock};
use callseal::domain::time::UnixMillis;
use callseal::store::probe::{self, Feature, Finding, Found};
use callseal::store::{MIN_PART_BYTES, Store, StoreError, Tags};

use super::servers::{ALL, ceph, name, open, put};

/// Locks end at whole seconds.
const SHORT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn what_is_locked_stays_until_its_moment() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket_with_locks(S3ObjectLock::Compliance).await;
    let store = open(&options).await;
    put(&store, "calls/small").await;
    put(&store, "calls/free").await;
    let large = name("calls/large");
    let mut upload = store.begin_upload(&large, &Tags::new()).await.unwrap();
    upload.put_part(Bytes::from(vec![1; MIN_PART_BYTES])).await.unwrap();
    upload.put_part(Bytes::from_static(b"rest")).await.unwrap();
    upload.complete().await.unwrap();

    let until = clock::wall().plus(SHORT);
    for locked in ["calls/small", "calls/large"] {
        store.lock(&name(locked), until).await.unwrap();
        store.lock(&name(locked), UnixMillis(1)).await.expect("a moment that is over locks nothing");
    }
    let missing = store.lock(&name("calls/missing"), until).await;
    assert!(matches!(missing, Err(StoreError::NotFound)), "{missing:?}");

    let purged = store.purge("calls/").await;
    let Err(StoreError::Locked { until: told }) = purged else { panic!("{purged:?}") };
    assert_eq!(told.0 / 1000, until.0 / 1000, "it says until when");
    assert!(matches!(store.head(&name("calls/free")).await, Err(StoreError::NotFound)), "the others go");
    for locked in ["calls/small", "calls/large"] {
        store.delete(&name(locked)).await.expect("a mark that hides it");
    }
    let began = clock::monotonic();
    while let Err(error) = store.purge("calls/").await {
        assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
        assert!(clock::since(began) < 10 * SHORT, "the lock does not end");
        tokio::time::sleep(SHORT / 10).await;
    }
    let left = ceph.client().list_object_versions().bucket(&options.bucket).send().await.unwrap();
    assert!(left.versions().is_empty() && left.delete_markers().is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_probe_sees_whether_a_bucket_locks() {
    let Some(ceph) = ceph() else { return };
    let broken = |findings: &[Finding]| {
        let broken = findings.iter().filter(|finding| finding.is_broken_claim());
        broken.map(|finding| finding.feature).collect::<Vec<_>>()
    };
    let options = ceph.bucket_with_locks(S3ObjectLock::Governance).await;
    let findings = probe::run(&open(&options).await).await.unwrap();
    assert_eq!(broken(&findings), []);
    let lock = findings.iter().find(|finding| finding.feature == Feature::ObjectLock).unwrap();
    assert_eq!((lock.claimed, lock.found), (true, Found::Yes));
    let left = ceph.client().list_object_versions().bucket(&options.bucket).send().await.unwrap();
    assert!(left.versions().is_empty(), "the probe waits for its lock and leaves nothing");

    let plain = ceph.bucket(S3Claims { versions: true, create_once: false, ..ALL }).await;
    ceph.keep_versions(&plain.bucket).await;
    let claimed = S3 { object_lock: S3ObjectLock::Governance, ..plain };
    assert_eq!(broken(&probe::run(&open(&claimed).await).await.unwrap()), [Feature::ObjectLock]);
}
