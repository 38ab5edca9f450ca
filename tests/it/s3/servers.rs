//! The servers that the tests run against, and buckets on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Builder, Credentials, Region};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
use bytes::Bytes;
use callseal::config::{
    AwsCredentials, S3, S3Checksum, S3Claims, S3Encryption, S3ObjectLock, Secret, SecretRef,
};
use callseal::store::s3::S3Store;
use callseal::store::{ObjectName, PutOutcome, Store, Tags};

use crate::support::write_private;

/// What Ceph and AWS claim.
pub(crate) const ALL: S3Claims =
    S3Claims { tags: true, create_once: true, versions: false, batch_delete: true };
/// What Garage claims.
pub(crate) const NO_TAGS: S3Claims =
    S3Claims { tags: false, create_once: false, versions: false, batch_delete: true };

/// A running server, as `scripts/storage-servers` described it.
pub(crate) struct Server(BTreeMap<String, String>);

/// Finds Ceph.
///
/// # Panics
/// When it is missing and `CI` is `true`.
pub(crate) fn ceph() -> Option<Server> {
    let found = Server::find("TEST_S3_CEPH");
    let is_ci = variable("CI").is_some_and(|ci| ci == "true");
    assert!(found.is_some() || !is_ci, "TEST_S3_CEPH is not set; scripts/test starts Ceph and sets it");
    found
}

/// Finds Garage, which takes long to build and so may be missing anywhere.
pub(crate) fn garage() -> Option<Server> {
    Server::find("TEST_S3_GARAGE")
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty())
}

impl Server {
    fn find(name: &str) -> Option<Self> {
        let Some(path) = variable(name) else {
            println!("SKIPPED, nothing was checked: {name} is not set; see scripts/storage-servers");
            return None;
        };
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}={path}: {error}"));
        let lines = text.lines().filter_map(|line| line.split_once('='));
        Some(Self(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }

    pub(crate) fn value(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("the server's file has no {name}"))
    }

    /// Makes a bucket that nobody else uses and describes how to reach it over plain HTTP.
    pub(crate) async fn bucket(&self, claims: S3Claims) -> S3 {
        let bucket = new_name();
        self.client().create_bucket().bucket(&bucket).send().await.unwrap();
        self.options(bucket, claims)
    }

    /// Makes a bucket whose objects can be locked, and which so keeps versions.
    pub(crate) async fn bucket_with_locks(&self, object_lock: S3ObjectLock) -> S3 {
        let bucket = new_name();
        let create = self.client().create_bucket().bucket(&bucket).object_lock_enabled_for_bucket(true);
        create.send().await.unwrap();
        let claims = S3Claims { versions: true, create_once: false, ..ALL };
        S3 { object_lock, ..self.options(bucket, claims) }
    }

    fn options(&self, bucket: String, claims: S3Claims) -> S3 {
        S3 {
            endpoint: Some(self.value("S3_ENDPOINT").to_owned()),
            region: self.value("S3_REGION").to_owned(),
            bucket,
            prefix: String::new(),
            path_style: true,
            ca_file: None,
            credentials: keys(self.value("S3_ACCESS_KEY_ID"), self.value("S3_SECRET_ACCESS_KEY")),
            claims,
            checksum: S3Checksum::None,
            encryption: S3Encryption::None,
            object_lock: S3ObjectLock::None,
            connect_timeout: Duration::from_secs(3),
            attempt_timeout: Duration::from_secs(30),
        }
    }

    /// The same bucket over TLS.
    pub(crate) fn over_tls(&self, options: &S3) -> S3 {
        S3 {
            endpoint: Some(self.value("S3_TLS_ENDPOINT").to_owned()),
            ca_file: Some(PathBuf::from(self.value("S3_CA_FILE"))),
            ..options.clone()
        }
    }

    /// Has a bucket keep what is deleted.
    pub(crate) async fn keep_versions(&self, bucket: &str) {
        let on = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        let client = self.client();
        client.put_bucket_versioning().bucket(bucket).versioning_configuration(on).send().await.unwrap();
    }

    /// A client without anything of ours around it.
    pub(crate) fn client(&self) -> Client {
        let credentials = Credentials::new(
            self.value("S3_ACCESS_KEY_ID"),
            self.value("S3_SECRET_ACCESS_KEY"),
            None,
            None,
            "tests",
        );
        let config = Builder::new()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::new(self.value("S3_REGION").to_owned()))
            .credentials_provider(credentials)
            .endpoint_url(self.value("S3_ENDPOINT"))
            .force_path_style(true)
            .build();
        Client::from_conf(config)
    }
}

fn new_name() -> String {
    let mut random = [0; 8];
    getrandom::fill(&mut random).unwrap();
    format!("t-{:016x}", u64::from_be_bytes(random))
}

pub(crate) fn keys(id: &str, secret: &str) -> AwsCredentials {
    let fixed = |text: &str| SecretRef::fixed(Secret::new(text.as_bytes().to_vec()));
    AwsCredentials::Static { access_key_id: fixed(id), secret_access_key: fixed(secret), session_token: None }
}

pub(crate) async fn open(options: &S3) -> S3Store {
    S3Store::open(options).unwrap()
}

pub(crate) fn name(text: &str) -> ObjectName {
    ObjectName::new(text).unwrap()
}

/// Puts a small object, which must be new.
pub(crate) async fn put(store: &dyn Store, text: &str) {
    let body = Bytes::copy_from_slice(text.as_bytes());
    assert_eq!(store.put_new(&name(text), body, &Tags::new()).await.unwrap(), PutOutcome::Created);
}

/// Writes the options of a node's `[store]`, with the credentials in files below `dir`.
pub(crate) fn table(dir: &Path, server: &Server, options: &S3) -> Vec<(&'static str, String)> {
    let secret = |file: &str, variable: &str| {
        let path = dir.join(file);
        write_private(&path, server.value(variable));
        format!("{{ file = {:?} }}", path.display().to_string())
    };
    let claims = &options.claims;
    vec![
        ("kind", "\"s3\"".to_owned()),
        ("profile", format!("{:?}", if claims.tags { "ceph" } else { "garage" })),
        ("endpoint", format!("{:?}", options.endpoint.as_deref().unwrap())),
        ("region", format!("{:?}", options.region)),
        ("bucket", format!("{:?}", options.bucket)),
        ("access_key_id", secret("access-key-id", "S3_ACCESS_KEY_ID")),
        ("secret_access_key", secret("secret-access-key", "S3_SECRET_ACCESS_KEY")),
    ]
}
