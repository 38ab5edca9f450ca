//! Answers that are lost, and refusals.

use std::error::Error;
use std::fs;

use bytes::Bytes;
use callseal::config::{AwsCredentials, S3, SecretRef};
use callseal::store::s3::S3Store;
use callseal::store::{PutOutcome, Store, StoreError, Tags};

use crate::support::write_private;

use super::servers::{ALL, ceph, keys, name, open, put};

/// Returns what the store said, for an error that needs an operator.
fn denied(error: &StoreError) -> String {
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    assert!(!error.is_retryable(), "{error:?}");
    error.source().unwrap().to_string()
}

#[tokio::test]
async fn wrong_credentials_and_missing_rights_are_told_apart() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    put(&open(&options).await, "one").await;
    for (id, secret, code) in [
        ("nobody", "nothing", "InvalidAccessKeyId"),
        (ceph.value("S3_ACCESS_KEY_ID"), "another-secret-000001", "SignatureDoesNotMatch"),
        (
            ceph.value("S3_STRANGER_ACCESS_KEY_ID"),
            ceph.value("S3_STRANGER_SECRET_ACCESS_KEY"),
            "AccessDenied",
        ),
    ] {
        let store = open(&S3 { credentials: keys(id, secret), ..options.clone() }).await;
        let error = store.get(&name("one"), None).await.unwrap_err();
        let text = denied(&error);
        assert!(text.contains(code), "{text}");
        for secret in [id, secret, &options.bucket, "127.0.0.1", "http"] {
            assert!(!text.contains(secret) && !error.to_string().contains(secret), "{text} shows {secret}");
        }
        let put = store.put_new(&name("two"), Bytes::from_static(b"x"), &Tags::new()).await;
        denied(&put.unwrap_err());
        denied(&store.ping().await.unwrap_err());
        denied(&store.list_after("", None, 1).await.unwrap_err());
    }
}

#[tokio::test]
async fn an_unknown_bucket_says_so() {
    let Some(ceph) = ceph() else { return };
    let options = S3 { bucket: "never-made".to_owned(), ..ceph.bucket(ALL).await };
    let store = open(&options).await;
    let put = store.put_new(&name("one"), Bytes::from_static(b"x"), &Tags::new()).await.unwrap_err();
    assert!(denied(&put).contains("no such bucket"), "{put:?}");
    for error in [
        store.ping().await.unwrap_err(),
        store.now().await.unwrap_err(),
        store.list_after("", None, 1).await.unwrap_err(),
        store.get(&name("one"), None).await.unwrap_err(),
    ] {
        assert!(denied(&error).contains("no such bucket"), "{error:?}");
    }
}

#[tokio::test]
async fn keys_are_rotated_without_a_restart() {
    let Some(ceph) = ceph() else { return };
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    write_private(&secret, "outdated");
    let mut options = ceph.bucket(ALL).await;
    options.credentials = AwsCredentials::Static {
        access_key_id: SecretRef::fixed(callseal::config::Secret::new(
            ceph.value("S3_ACCESS_KEY_ID").as_bytes().to_vec(),
        )),
        secret_access_key: SecretRef::file(&secret),
        session_token: None,
    };
    let store = open(&options).await;
    denied(&store.ping().await.unwrap_err());
    write_private(&secret, ceph.value("S3_SECRET_ACCESS_KEY"));
    // They are read again some seconds after a denial at the latest; a minute without one would be far too long.
    let started = callseal::clock::monotonic();
    while let Err(error) = store.ping().await {
        denied(&error);
        let waited = callseal::clock::since(started);
        assert!(waited < std::time::Duration::from_secs(30), "the new key is not used");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_server_with_another_certificate_is_not_believed() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.over_tls(&ceph.bucket(ALL).await);
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("ca.pem");
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    fs::write(&other, ca.pem()).unwrap();
    let strange = open(&S3 { ca_file: Some(other.clone()), ..options.clone() }).await;
    let error = strange.ping().await.unwrap_err();
    assert!(matches!(error, StoreError::Io { .. }), "{error:?}");

    fs::write(&other, "no certificate").unwrap();
    let none = S3Store::open(&S3 { ca_file: Some(other), ..options }).unwrap_err();
    assert!(denied(&none).contains("no certificate"), "{none:?}");
}

#[tokio::test]
async fn a_second_writer_of_a_name_is_told_whatever_came_before() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    let (one, other) = (open(&options).await, open(&options).await);
    put(&one, "name").await;
    let again = other.put_new(&name("name"), Bytes::from_static(b"name"), &Tags::new()).await.unwrap();
    assert_eq!(again, PutOutcome::AlreadyExists, "the same bytes of another writer are not ours");
}
