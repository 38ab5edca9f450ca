//! Where objects are stored: a folder of this machine, or a bucket of an S3-compatible store.
//!
//! What a store can do differs more than its API admits: several take tags or create-once puts, answer 200 and ignore
//! them. So the operator names the kind of store with `profile`, which claims what it can do, and the probe at start
//! holds the store against the claims. What stands behind each preset is in `docs/STORAGE.md`.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::{Table, Value};

use super::net::host_of;
use super::raw;
use super::scope::{Bounds, Scope, Words};
use super::secret::{References, SecretRef};

const CONNECT_TIMEOUT_MS: Bounds = Bounds::new(3_000, 100..=60_000);
const ATTEMPT_TIMEOUT_MS: Bounds = Bounds::new(15_000, 1_000..=300_000);
/// The longest prefix: with the longest name of an object it must fit into S3's 1024 bytes of a key.
const MAX_PREFIX_BYTES: usize = 256;

/// Where objects are stored.
#[derive(Debug, Clone)]
pub enum StoreKind {
    /// A directory of this machine.
    Folder {
        /// Made when missing.
        path: PathBuf,
    },
    /// A bucket.
    S3(Box<S3>),
}

/// A bucket of an S3-compatible store and how to reach it.
#[derive(Debug, Clone)]
pub struct S3 {
    /// The store's URL; none means AWS, by region.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket; it exists already.
    pub bucket: String,
    /// What every key begins with: empty, or with a slash at its end.
    pub prefix: String,
    /// The bucket is part of the path, not of the host.
    pub path_style: bool,
    /// PEM certificates that alone are believed; none means those of the system.
    pub ca_file: Option<PathBuf>,
    /// Who we are to the store.
    pub credentials: AwsCredentials,
    /// What the store is said to do.
    pub claims: S3Claims,
    /// What is sent beside a body for the store to check.
    pub checksum: S3Checksum,
    /// How the store encrypts our ciphertext once more.
    pub encryption: S3Encryption,
    /// Whether finished recordings are locked until their date.
    pub object_lock: S3ObjectLock,
    /// From dialling to a connection.
    pub connect_timeout: Duration,
    /// One attempt of one request, from sending to the end of its answer.
    pub attempt_timeout: Duration,
}

/// Who we are to a store or key service of AWS.
#[derive(Debug, Clone)]
pub enum AwsCredentials {
    /// Keys of the configuration, read again while the node runs.
    Static {
        /// The public half.
        access_key_id: SecretRef,
        /// The secret half.
        secret_access_key: SecretRef,
        /// For temporary keys.
        session_token: Option<SecretRef>,
    },
    /// What AWS's tools find: environment, profile files, web identity, container and instance roles.
    Chain,
}

/// What a store is said to do; filled from a preset and its overrides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct S3Claims {
    /// Keeps tags.
    pub tags: bool,
    /// Obeys `If-None-Match: *` on puts, for exactly one of many writers.
    pub create_once: bool,
    /// Keeps deleted objects as versions.
    pub versions: bool,
    /// Deletes many objects with one request.
    pub batch_delete: bool,
}

/// What is sent beside a body for the store to check. The signature covers the body's SHA-256 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Checksum {
    /// Nothing.
    None,
    /// `x-amz-checksum-crc32`.
    Crc32,
    /// `Content-MD5`.
    Md5,
}

/// How a store encrypts what it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum S3Encryption {
    /// As its bucket says; nothing is sent.
    None,
    /// With a key of the store (SSE-S3).
    Aes256,
    /// With a key of AWS KMS.
    AwsKms {
        /// The key; none means the account's default.
        key_id: Option<String>,
    },
}

/// How firmly a store keeps finished recordings until their date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3ObjectLock {
    /// Not at all.
    None,
    /// Nobody may destroy them but who has a right of its own for that, which callseal never uses.
    Governance,
    /// Nobody may, the owner of the bucket included.
    Compliance,
}

/// What is known of a kind of store.
#[derive(Debug, Clone, Copy)]
struct Preset {
    claims: S3Claims,
    checksum: S3Checksum,
}

const fn preset(claims: [bool; 4], checksum: S3Checksum) -> Preset {
    let [tags, create_once, versions, batch_delete] = claims;
    Preset { claims: S3Claims { tags, create_once, versions, batch_delete }, checksum }
}

/// Tags, create-once, versions, batch delete. Measured for Ceph and Garage, else from the vendors' documents; what they
/// do not mention is not claimed.
const PRESETS: Words<Preset> = Words {
    default: preset([true, true, false, true], S3Checksum::Crc32),
    allowed: &[
        ("aws", preset([true, true, false, true], S3Checksum::Crc32)),
        ("ceph", preset([true, true, false, true], S3Checksum::None)),
        ("garage", preset([false, false, false, true], S3Checksum::None)),
        ("supabase", preset([false, false, false, true], S3Checksum::None)),
        ("r2", preset([false, true, false, true], S3Checksum::None)),
        ("gcs", preset([false, false, false, false], S3Checksum::None)),
        ("b2", preset([false, false, true, true], S3Checksum::None)),
        ("minio", preset([true, true, false, true], S3Checksum::None)),
    ],
    later: &[],
};

impl StoreKind {
    pub(super) fn check(
        table: Option<Table>,
        top: &Scope<'_>,
        data_dir: &Path,
        references: &References<'_>,
    ) -> Option<Self> {
        let (scope, raw): (_, raw::Store) = top.section("store", table);
        let kinds = Words { default: false, allowed: &[("folder", false), ("s3", true)], later: &[] };
        let is_s3 = scope.word("kind", raw.kind.as_deref(), &kinds);
        if is_s3 {
            refuse_other_kind(&scope, &[("path", raw.path.is_some())], "folder");
            return S3::check(raw, &scope, references).map(|s3| Self::S3(Box::new(s3)));
        }
        refuse_other_kind(&scope, &given_of_s3(&raw), "s3");
        Some(Self::Folder { path: scope.path("path", raw.path, || data_dir.join("store")) })
    }
}

impl S3 {
    fn check(raw: raw::Store, scope: &Scope<'_>, references: &References<'_>) -> Option<Self> {
        let preset = scope.word("profile", raw.profile.as_deref(), &PRESETS);
        let is_aws = raw.profile.as_deref().is_none_or(|name| name == "aws");
        let endpoint = check_endpoint(scope, raw.endpoint, is_aws);
        let region = check_word(scope, "region", raw.region.as_deref(), is_region, REGION_RULE);
        let bucket = check_word(scope, "bucket", raw.bucket.as_deref(), is_bucket, BUCKET_RULE);
        let prefix = check_prefix(scope, raw.prefix);
        let keys = [raw.access_key_id, raw.secret_access_key, raw.session_token];
        let credentials = check_credentials(scope, (raw.credentials.as_deref(), false), keys, references);
        let ca_file = raw.ca_file.map(|path| check_ca_file(scope, path, references));
        let checksums = Words {
            default: preset.checksum,
            allowed: &[("none", S3Checksum::None), ("crc32", S3Checksum::Crc32), ("md5", S3Checksum::Md5)],
            later: &[],
        };
        let claims = S3Claims {
            tags: raw.tags.unwrap_or(preset.claims.tags),
            create_once: raw.create_once.unwrap_or(preset.claims.create_once),
            versions: raw.versions.unwrap_or(preset.claims.versions),
            batch_delete: raw.batch_delete.unwrap_or(preset.claims.batch_delete),
        };
        let checksum = scope.word("checksum", raw.checksum.as_deref(), &checksums);
        let encryption = check_encryption(scope, raw.sse.as_deref(), raw.kms_key_id);
        let object_lock = check_object_lock(scope, raw.object_lock.as_deref(), &claims);
        let connect_timeout = scope.millis("connect_timeout_ms", raw.connect_timeout_ms, &CONNECT_TIMEOUT_MS);
        let attempt_timeout = scope.millis("attempt_timeout_ms", raw.attempt_timeout_ms, &ATTEMPT_TIMEOUT_MS);
        Some(Self {
            endpoint,
            region: region?,
            bucket: bucket?,
            prefix,
            path_style: raw.path_style.unwrap_or(true),
            ca_file,
            credentials: credentials?,
            claims,
            checksum,
            encryption,
            object_lock,
            connect_timeout,
            attempt_timeout,
        })
    }
}

/// Which options of a bucket are given.
fn given_of_s3(raw: &raw::Store) -> [(&'static str, bool); 21] {
    [
        ("endpoint", raw.endpoint.is_some()),
        ("region", raw.region.is_some()),
        ("bucket", raw.bucket.is_some()),
        ("prefix", raw.prefix.is_some()),
        ("profile", raw.profile.is_some()),
        ("tags", raw.tags.is_some()),
        ("create_once", raw.create_once.is_some()),
        ("versions", raw.versions.is_some()),
        ("batch_delete", raw.batch_delete.is_some()),
        ("checksum", raw.checksum.is_some()),
        ("sse", raw.sse.is_some()),
        ("kms_key_id", raw.kms_key_id.is_some()),
        ("path_style", raw.path_style.is_some()),
        ("ca_file", raw.ca_file.is_some()),
        ("credentials", raw.credentials.is_some()),
        ("access_key_id", raw.access_key_id.is_some()),
        ("secret_access_key", raw.secret_access_key.is_some()),
        ("session_token", raw.session_token.is_some()),
        ("connect_timeout_ms", raw.connect_timeout_ms.is_some()),
        ("attempt_timeout_ms", raw.attempt_timeout_ms.is_some()),
        ("object_lock", raw.object_lock.is_some()),
    ]
}

fn refuse_other_kind(scope: &Scope<'_>, options: &[(&str, bool)], kind: &str) {
    for (option, _) in options.iter().filter(|(_, is_given)| *is_given) {
        scope.fault(option, format!("is given; allowed: only with store.kind = {kind:?}"));
    }
}

const URL_RULE: &str =
    "\"https://host\", with a port and a path if need be; http for loopback addresses only";
const REGION_RULE: &str = "1 to 64 characters of a-z, 0-9 and '-', such as \"eu-central-1\" or \"auto\"";
const BUCKET_RULE: &str = "the name of a bucket: 3 to 63 characters of a-z, 0-9, '.' and '-'";

fn is_region(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_bucket(text: &str) -> bool {
    (3..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
        && !text.starts_with(['-', '.'])
}

/// Checks a text that is required.
fn check_word(
    scope: &Scope<'_>,
    option: &str,
    given: Option<&str>,
    is_allowed: fn(&str) -> bool,
    rule: &str,
) -> Option<String> {
    match given {
        None => scope.fault(option, format!("is missing with store.kind = \"s3\"; allowed: {rule}")),
        Some(text) if is_allowed(text) => return Some(text.to_owned()),
        Some(text) => scope.fault(option, format!("{text:?} is given; allowed: {rule}")),
    }
    None
}

/// Checks the store's URL. Without TLS it may only be on this machine: requests and ciphertext would be open to all.
pub(super) fn check_endpoint(scope: &Scope<'_>, given: Option<String>, is_aws: bool) -> Option<String> {
    let Some(given) = given else {
        if !is_aws {
            scope.fault("endpoint", format!("is missing with this profile; allowed: {URL_RULE}"));
        }
        return None;
    };
    Some(check_url(scope, "endpoint", &given))
}

/// Checks the URL of a service, and takes slashes off its end.
pub(super) fn check_url(scope: &Scope<'_>, option: &str, given: &str) -> String {
    if given.contains('@') {
        scope.fault(option, format!("holds a user or password; allowed: {URL_RULE}"));
        return String::new();
    }
    let url = given.trim_end_matches('/');
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_path = path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~".contains(&b));
    let is_allowed = match (scheme, host_of(authority)) {
        ("https", Some(_)) => is_path,
        ("http", Some(host)) => is_path && host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        _ => false,
    };
    if !is_allowed {
        scope.fault(option, format!("{given:?} is given; allowed: {URL_RULE}"));
    }
    url.to_owned()
}

/// Checks a file of certificates, relative to the file that names it.
pub(super) fn check_ca_file(scope: &Scope<'_>, given: String, references: &References<'_>) -> PathBuf {
    let path = references.dir.join(scope.path("ca_file", Some(given), PathBuf::new));
    if let Err(problem) = references.files.check_readable(&path) {
        scope.fault("ca_file", problem);
    }
    path
}

/// Checks the prefix of all keys and puts a slash at its end.
fn check_prefix(scope: &Scope<'_>, given: Option<String>) -> String {
    let given = given.unwrap_or_default();
    let prefix = given.trim_end_matches('/');
    let is_segment = |text: &str| {
        !text.is_empty()
            && !text.starts_with('.')
            && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
    };
    if prefix.is_empty() && given.is_empty() {
        return String::new();
    }
    if prefix.len() > MAX_PREFIX_BYTES || !prefix.split('/').all(is_segment) {
        let rule = format!("at most {MAX_PREFIX_BYTES} of a-z, 0-9, '.', '_' and '-', in parts split by '/'");
        scope.fault("prefix", format!("{given:?} is given; allowed: {rule}"));
    }
    format!("{prefix}/")
}

/// Checks who we are; `is_chain` says what nothing given means.
pub(super) fn check_credentials(
    scope: &Scope<'_>,
    (given, is_chain): (Option<&str>, bool),
    keys: [Option<Value>; 3],
    references: &References<'_>,
) -> Option<AwsCredentials> {
    let kinds = Words { default: is_chain, allowed: &[("static", false), ("chain", true)], later: &[] };
    let names = ["access_key_id", "secret_access_key", "session_token"];
    if scope.word("credentials", given, &kinds) {
        for (name, _) in names.iter().zip(&keys).filter(|(_, key)| key.is_some()) {
            scope.fault(name, "is given; allowed: only with credentials = \"static\" in the same table");
        }
        return Some(AwsCredentials::Chain);
    }
    let [id, secret, token] = keys;
    let required = |option: &str, given: Option<Value>| {
        if given.is_none() {
            scope.fault(option, "is missing; allowed: { file = \"…\" } or { env = \"…\" }");
        }
        given.and_then(|entry| references.given(scope, option, &entry))
    };
    let access_key_id = required("access_key_id", id);
    let secret_access_key = required("secret_access_key", secret);
    let session_token = match token {
        Some(entry) => Some(references.given(scope, "session_token", &entry)?),
        None => None,
    };
    Some(AwsCredentials::Static {
        access_key_id: access_key_id?,
        secret_access_key: secret_access_key?,
        session_token,
    })
}

fn check_encryption(scope: &Scope<'_>, given: Option<&str>, key_id: Option<String>) -> S3Encryption {
    let kinds = Words { default: 0, allowed: &[("none", 0), ("aes256", 1), ("aws-kms", 2)], later: &[] };
    let kind = scope.word("sse", given, &kinds);
    if kind != 2 && key_id.is_some() {
        scope.fault("kms_key_id", "is given; allowed: only with store.sse = \"aws-kms\"");
    }
    match kind {
        0 => S3Encryption::None,
        1 => S3Encryption::Aes256,
        _ => S3Encryption::AwsKms { key_id },
    }
}

fn check_object_lock(scope: &Scope<'_>, given: Option<&str>, claims: &S3Claims) -> S3ObjectLock {
    let kinds = Words {
        default: S3ObjectLock::None,
        allowed: &[
            ("none", S3ObjectLock::None),
            ("governance", S3ObjectLock::Governance),
            ("compliance", S3ObjectLock::Compliance),
        ],
        later: &[],
    };
    let lock = scope.word("object_lock", given, &kinds);
    if lock != S3ObjectLock::None && !claims.versions {
        scope.fault(
            "object_lock",
            "is given; allowed: only with store.versions = true, as buckets with locks have versions",
        );
    }
    lock
}
