//! Where objects are stored: one of two kinds, with nothing of the other.

use super::*;

const S3: &str = "kind = \"s3\"\nregion = \"eu-central-1\"\nbucket = \"calls\"\n";
const KEYS: &str = "access_key_id = { file = \"id\" }\nsecret_access_key = { env = \"STORE_KEY\" }\n";

fn node(store: &str) -> String {
    format!("{NODE}[store]\n{store}")
}

fn s3(store: &str) -> S3Store {
    let config = check(&node(&format!("{S3}{KEYS}{store}")), &[("STORE_KEY", CANARY)], &Shelf::default());
    match config.expect("the store has no fault").store {
        StoreKind::S3(s3) => *s3,
        StoreKind::Folder { .. } => panic!("an S3 store is meant"),
    }
}

type S3Store = super::super::S3;

fn store_faults(store: &str) -> BTreeMap<String, String> {
    faults_of(&node(store), &[("STORE_KEY", CANARY)], &Shelf::default())
}

#[test]
fn a_bucket_needs_little() {
    let aws = s3("");
    assert_eq!((aws.endpoint, aws.prefix.as_str(), aws.path_style), (None, "", true));
    assert_eq!(aws.claims, S3Claims { tags: true, create_once: true, versions: false, batch_delete: true });
    assert_eq!((aws.checksum, aws.encryption), (S3Checksum::Crc32, S3Encryption::None));
    assert_eq!(aws.attempt_timeout, Duration::from_secs(15));
    let AwsCredentials::Static { access_key_id, secret_access_key, session_token } = aws.credentials else {
        panic!("keys are given")
    };
    assert_eq!(secret_access_key.read().unwrap().expose(), CANARY.as_bytes());
    assert!(access_key_id.read().unwrap_err().contains("/etc/callseal/id"), "read from the disk, each time");
    assert!(session_token.is_none());
}

#[test]
fn profiles_claim_and_options_override() {
    let garage = s3("profile = \"garage\"\nendpoint = \"http://127.0.0.1:3900\"\nprefix = \"a/b/\"");
    assert_eq!(
        garage.claims,
        S3Claims { tags: false, create_once: false, versions: false, batch_delete: true }
    );
    assert_eq!((garage.checksum, garage.prefix.as_str()), (S3Checksum::None, "a/b/"));
    let overridden = s3("profile = \"r2\"\nendpoint = \"https://x.r2.cloudflarestorage.com\"\ntags = true\n\
                         create_once = false\nversions = true\nbatch_delete = false\nchecksum = \"md5\"\n\
                         sse = \"aws-kms\"\nkms_key_id = \"k\"\npath_style = false");
    assert_eq!(
        overridden.claims,
        S3Claims { tags: true, create_once: false, versions: true, batch_delete: false }
    );
    assert_eq!(overridden.encryption, S3Encryption::AwsKms { key_id: Some("k".to_owned()) });
    assert!(!overridden.path_style);
}

#[test]
fn endpoints_without_tls_stay_on_this_machine() {
    for good in [
        "https://s3.example.com",
        "https://s3.example.com:9000/",
        "https://a.supabase.co/storage/v1/s3",
        "http://127.0.0.1:7480",
        "http://[::1]:7480",
    ] {
        assert_eq!(s3(&format!("endpoint = {good:?}")).endpoint.unwrap(), good.trim_end_matches('/'));
    }
    for bad in [
        "http://s3.example.com",
        "http://10.0.0.1:9000",
        "http://localhost:9000",
        "s3.example.com",
        "ftp://s3.example.com",
        "https://",
        "https://a/b?c",
        "https://user:canary@a",
    ] {
        let faults = store_faults(&format!("{S3}{KEYS}endpoint = {bad:?}"));
        assert_eq!(names(&faults), ["store.endpoint"], "{bad}");
    }
}

#[test]
fn options_of_the_other_kind_are_faults() {
    let faults = store_faults("bucket = \"calls\"\ntags = true\nsecret_access_key = { env = \"STORE_KEY\" }");
    assert_eq!(names(&faults), ["store.bucket", "store.secret_access_key", "store.tags"]);
    assert_eq!(faults["store.tags"], "is given; allowed: only with store.kind = \"s3\"");
    let faults = store_faults(&format!("{S3}{KEYS}path = \"data/store\""));
    assert_eq!(faults["store.path"], "is given; allowed: only with store.kind = \"folder\"");
    let faults = store_faults(&format!(
        "{S3}{KEYS}credentials = \"chain\"\nkms_key_id = \"k\"\nobject_lock = \"compliance\""
    ));
    let expected =
        ["store.access_key_id", "store.kms_key_id", "store.object_lock", "store.secret_access_key"];
    assert_eq!(names(&faults), expected);
    assert!(faults["store.object_lock"].contains("only with store.versions = true"));
    let locked = s3("versions = true\nobject_lock = \"governance\"");
    assert_eq!(locked.object_lock, S3ObjectLock::Governance);
    let faults = store_faults(&format!("{S3}{KEYS}versions = true\nobject_lock = true"));
    assert_eq!(names(&faults), ["store.object_lock"]);
}

#[test]
fn what_is_missing_or_wrong_is_told_at_once() {
    let faults = store_faults("kind = \"s3\"\nprofile = \"ceph\"");
    let expected =
        ["store.access_key_id", "store.bucket", "store.endpoint", "store.region", "store.secret_access_key"];
    assert_eq!(names(&faults), expected);
    let faults = store_faults(&format!(
        "kind = \"s3\"\nregion = \"EU\"\nbucket = \"My Bucket\"\nprefix = \"/a\"\nsse = \"rot13\"\nca_file = \"missing\"\n\
         profile = \"tape\"\nchecksum = \"sum\"\naccess_key_id = \"{CANARY}\"\nsecret_access_key = {{ file = \"missing\" }}\n\
         connect_timeout_ms = 1"
    ));
    let expected = [
        "store.access_key_id",
        "store.bucket",
        "store.ca_file",
        "store.checksum",
        "store.connect_timeout_ms",
        "store.endpoint",
        "store.prefix",
        "store.profile",
        "store.region",
        "store.secret_access_key",
        "store.sse",
    ];
    assert_eq!(names(&faults), expected);
    assert!(faults["store.access_key_id"].contains("is not a reference"));
}
