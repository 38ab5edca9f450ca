//! How AWS KMS is reached. Its region stands in the ARN of each key, so that a tenant's key may be anywhere.

use std::path::PathBuf;
use std::time::Duration;

use toml::Table;

use super::raw;
use super::scope::{Bounds, Scope};
use super::secret::References;
use super::store::{AwsCredentials, check_ca_file, check_credentials, check_endpoint};

const CONNECT_TIMEOUT_MS: Bounds = Bounds::new(1_000, 100..=30_000);

/// How AWS KMS is reached.
#[derive(Debug, Clone)]
pub struct AwsKms {
    /// Its URL for all regions, such as that of a VPC endpoint; none means AWS, by the region of the key.
    pub endpoint: Option<String>,
    /// PEM certificates that alone are believed; none means those of the system.
    pub ca_file: Option<PathBuf>,
    /// Who we are to it.
    pub credentials: AwsCredentials,
    /// From dialling to a connection.
    pub connect_timeout: Duration,
}

impl AwsKms {
    pub(super) fn check(table: Option<Table>, top: &Scope<'_>, references: &References<'_>) -> Option<Self> {
        let (scope, raw): (_, raw::AwsKms) = top.section("aws_kms", table);
        let keys = [raw.access_key_id, raw.secret_access_key, raw.session_token];
        let credentials = check_credentials(&scope, (raw.credentials.as_deref(), true), keys, references);
        Some(Self {
            endpoint: check_endpoint(&scope, raw.endpoint, true),
            ca_file: raw.ca_file.map(|path| check_ca_file(&scope, path, references)),
            connect_timeout: scope.millis("connect_timeout_ms", raw.connect_timeout_ms, &CONNECT_TIMEOUT_MS),
            credentials: credentials?,
        })
    }
}

/// What is allowed as the name of a KMS key.
pub(super) const ARN_RULE: &str = "the ARN of a KMS key, such as \
    \"arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab\", not that of an alias";

/// Whether a text is the ARN of a key. An alias is none: it can be put on another key at any time.
pub(super) fn is_key_arn(text: &str) -> bool {
    let parts: Vec<&str> = text.splitn(6, ':').collect();
    let [arn, partition, service, region, account, resource] = parts.as_slice() else { return false };
    let is_word = |text: &str, longest: usize| {
        (1..=longest).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    let is_key = resource.strip_prefix("key/").is_some_and(|id| is_word(id, 64));
    *arn == "arn"
        && is_word(partition, 32)
        && *service == "kms"
        && is_word(region, 32)
        && is_account
        && is_key
}

/// Returns the region in the ARN of a key.
pub(crate) fn region_of_arn(arn: &str) -> &str {
    arn.split(':').nth(3).unwrap_or_default()
}
