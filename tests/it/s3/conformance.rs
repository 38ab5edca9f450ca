//! The suite that every store passes.

use callseal::config::{S3, S3Checksum, S3Claims, S3Encryption};
use callseal::store::conformance;

use super::servers::{ALL, NO_TAGS, ceph, garage, open};

#[tokio::test]
async fn ceph_conforms_over_plain_http() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    conformance::run(&open(&options).await, "t/plain").await;
}

#[tokio::test]
async fn ceph_conforms_over_tls_below_a_prefix() {
    let Some(ceph) = ceph() else { return };
    let options = S3 { prefix: "some/where/".to_owned(), ..ceph.bucket(ALL).await };
    conformance::run(&open(&ceph.over_tls(&options)).await, "t/tls").await;
    let left = ceph.client().list_objects_v2().bucket(&options.bucket).send().await.unwrap();
    assert!(left.contents().is_empty(), "the suite leaves nothing: {:?}", left.contents());
}

#[tokio::test]
async fn ceph_conforms_with_checksums_beside_the_bodies() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    for (checksum, prefix) in [(S3Checksum::Crc32, "t/crc32"), (S3Checksum::Md5, "t/md5")] {
        let options = S3 { checksum, ..options.clone() };
        conformance::run(&open(&ceph.over_tls(&options)).await, prefix).await;
    }
}

#[tokio::test]
async fn ceph_conforms_as_a_store_that_can_do_nothing_more() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(S3Claims { batch_delete: false, ..NO_TAGS }).await;
    conformance::run(&open(&options).await, "t/poor").await;
}

#[tokio::test]
async fn garage_conforms_without_tags_and_create_once() {
    let Some(garage) = garage() else { return };
    let options = garage.bucket(NO_TAGS).await;
    assert_eq!(options.encryption, S3Encryption::None);
    conformance::run(&open(&options).await, "t/garage").await;
}
