//! The `aws-kms` provider: KEKs that never leave AWS KMS.
//!
//! A DEK is made here and wrapped with `Encrypt`, bound by an encryption context of opaque ids, which KMS writes in clear into
//! its log. Every request names the key by its ARN, and an answer about another key is refused. `ReEncrypt` moves a DEK from
//! key to key, or to newer material of the same key, inside KMS.
//!
//! KMS does not say which material of a key `Encrypt` used, so that wraps are [`UNVERSIONED`]: their age tells instead.
//! The client keeps copies of a DEK in its buffers that nobody wipes; see `docs/THREATS.md`.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{
    Builder as ConfigBuilder, IdentityCache, Region, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use zeroize::Zeroizing;

use crate::aws::{Chain, Rotating, behavior, http_client};
use crate::config::{AwsKms as Options, region_of_arn};
use crate::domain::cmr::{Dek, Expected};

use super::envelope::UNVERSIONED;
use super::{KekService, KeyError, Said, Wrapped};

/// What a wrapped DEK is for; a grant or policy can ask for it.
const PURPOSE: &str = "recording-dek";

/// AWS KMS in all regions that keys are in.
pub(crate) struct AwsKms {
    options: Options,
    http: SharedHttpClient,
    /// Made as they are needed: as many as there are regions in the configuration.
    regions: Mutex<HashMap<String, Regional>>,
}

/// The client of one region.
#[derive(Clone)]
struct Regional {
    client: Client,
    credentials: Rotating,
}

impl AwsKms {
    /// Prepares to ask KMS; nothing is sent yet.
    ///
    /// # Errors
    /// The certificates of `aws_kms.ca_file` cannot be used.
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        let http = http_client(options.endpoint.as_deref(), options.ca_file.as_deref())?;
        Ok(Self { options: options.clone(), http, regions: Mutex::default() })
    }

    fn region_of(&self, arn: &str) -> Regional {
        let region = region_of_arn(arn);
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions.entry(region.to_owned()).or_insert_with(|| self.open(region.to_owned())).clone()
    }

    fn open(&self, region: String) -> Regional {
        let region = Region::new(region);
        let chain = Chain { http: self.http.clone(), region: region.clone() };
        let credentials = Rotating::new(&self.options.credentials, chain);
        let mut config = ConfigBuilder::new()
            .behavior_version(behavior())
            .http_client(self.http.clone())
            .region(region)
            .credentials_provider(credentials.clone())
            // The provider keeps them itself, as it must be able to forget them.
            .identity_cache(IdentityCache::no_cache())
            // Who asks repeats, and bounds each attempt.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(self.options.connect_timeout).build())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        config.set_endpoint_url(self.options.endpoint.clone());
        Regional { client: Client::from_conf(config.build()), credentials }
    }
}

impl Regional {
    /// Sorts a failure, and has the credentials read again when they may be the reason.
    fn failed<E>(&self, error: &SdkError<E, HttpResponse>) -> KeyError
    where
        E: Error + ProvideErrorMetadata + 'static,
    {
        let sorted = sort(error);
        if matches!(sorted, KeyError::Denied { .. } | KeyError::BadLogin(_)) {
            self.credentials.doubt();
        }
        sorted
    }
}

#[async_trait]
impl KekService for AwsKms {
    async fn wrap(&self, kek: &str, ids: &Expected, dek: &Dek) -> Result<Wrapped, KeyError> {
        let region = self.region_of(kek);
        let request = region.client.encrypt().key_id(kek).plaintext(Blob::new(dek.expose().as_slice()));
        let answer = request.set_encryption_context(Some(context(ids))).send().await;
        let answer = answer.map_err(|error| region.failed(&error))?;
        check_key(kek, answer.key_id())?;
        wrapped(answer.ciphertext_blob)
    }

    async fn unwrap(&self, kek: &str, ids: &Expected, blob: &[u8]) -> Result<Dek, KeyError> {
        let region = self.region_of(kek);
        let request = region.client.decrypt().key_id(kek).ciphertext_blob(Blob::new(blob));
        let answer = request.set_encryption_context(Some(context(ids))).send().await;
        let answer = answer.map_err(|error| region.failed(&error))?;
        check_key(kek, answer.key_id())?;
        let plaintext = answer.plaintext.map(Blob::into_inner).unwrap_or_default();
        super::dek_of(&Zeroizing::new(plaintext))
    }

    async fn rewrap(
        &self,
        from: &str,
        to: &str,
        ids: &Expected,
        blob: &[u8],
    ) -> Result<Option<Wrapped>, KeyError> {
        if region_of_arn(from) != region_of_arn(to) {
            return Ok(None);
        }
        let region = self.region_of(to);
        let request = region
            .client
            .re_encrypt()
            .source_key_id(from)
            .destination_key_id(to)
            .ciphertext_blob(Blob::new(blob))
            .set_source_encryption_context(Some(context(ids)))
            .set_destination_encryption_context(Some(context(ids)));
        let answer = request.send().await.map_err(|error| region.failed(&error))?;
        check_key(from, answer.source_key_id())?;
        check_key(to, answer.key_id())?;
        wrapped(answer.ciphertext_blob).map(Some)
    }

    async fn newest_version(&self, _kek: &str) -> Result<String, KeyError> {
        Ok(UNVERSIONED.to_owned())
    }
}

/// What a wrapped DEK is bound to: the ids that are in object names too, and no others, as KMS logs them.
fn context(ids: &Expected) -> HashMap<String, String> {
    HashMap::from([
        ("cmr:tenant".to_owned(), ids.tenant.to_string()),
        ("cmr:recording".to_owned(), ids.recording.to_string()),
        ("cmr:key_id".to_owned(), ids.key.to_string()),
        ("cmr:purpose".to_owned(), PURPOSE.to_owned()),
    ])
}

fn check_key(asked: &str, answered: Option<&str>) -> Result<(), KeyError> {
    match answered {
        Some(arn) if arn == asked => Ok(()),
        Some(_) | None => Err(KeyError::BadEnvelope("key service used another key")),
    }
}

fn wrapped(blob: Option<Blob>) -> Result<Wrapped, KeyError> {
    let blob = blob.map(Blob::into_inner).filter(|blob| !blob.is_empty());
    let blob = blob.ok_or(KeyError::BadEnvelope("key service answered without a wrapped key"))?;
    Ok(Wrapped { blob, version: UNVERSIONED.to_owned() })
}

/// Sorts what KMS answered, by the codes in its API reference.
fn sort<E>(error: &SdkError<E, HttpResponse>) -> KeyError
where
    E: Error + ProvideErrorMetadata + 'static,
{
    if let Some(error) = credentials_error(error) {
        let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        return KeyError::BadLogin(Said::new(&format!("no credentials: {why}")));
    }
    let is_late = matches!(error, SdkError::TimeoutError(_))
        || matches!(error, SdkError::DispatchFailure(failure) if failure.is_timeout());
    if is_late {
        return KeyError::TimedOut;
    }
    let Some(raw) = error.raw_response() else {
        return KeyError::Unavailable(Said::new("no answer"));
    };
    let metadata = error.as_service_error().map(ProvideErrorMetadata::meta);
    let code = metadata.and_then(|metadata| metadata.code()).unwrap_or_default();
    let message = metadata.and_then(|metadata| metadata.message()).unwrap_or_default();
    let request = raw.headers().get("x-amzn-requestid").unwrap_or_default();
    let status = raw.status().as_u16();
    sort_answer(status, code, message, Said::new(&format!("{status} {code} (request {request})")))
}

/// The text of KMS holds ARNs and accounts, so that it is looked at but not kept.
fn sort_answer(status: u16, code: &str, message: &str, said: Said) -> KeyError {
    let denied = |why| KeyError::Denied { why, source: said.clone() };
    match code {
        "AccessDeniedException" => denied("no right to use it"),
        "DisabledException" => denied("it is disabled"),
        "KMSInvalidStateException" if message.contains("pending deletion") => {
            denied("it is about to be deleted")
        }
        "KMSInvalidStateException" => denied("its state does not allow it"),
        "NotFoundException" => denied("there is no such key"),
        "InvalidKeyUsageException" => denied("it is not a key to encrypt with"),
        "InvalidCiphertextException" => KeyError::BadEnvelope("wrong key or context"),
        "IncorrectKeyException" => KeyError::BadEnvelope("wrapped under another key"),
        "ThrottlingException" | "Throttling" | "RequestLimitExceeded" | "LimitExceededException" => {
            KeyError::Throttled(said)
        }
        "UnrecognizedClientException"
        | "InvalidSignatureException"
        | "InvalidClientTokenId"
        | "SignatureDoesNotMatch"
        | "ExpiredTokenException"
        | "MissingAuthenticationTokenException"
        | "IncompleteSignature"
        | "NotAuthorized"
        | "OptInRequired"
        | "RequestExpired" => KeyError::BadLogin(said),
        "KeyUnavailableException" | "KMSInternalException" | "DependencyTimeoutException" => {
            KeyError::Unavailable(said)
        }
        _ if status == 429 => KeyError::Throttled(said),
        _ if status >= 500 || code.is_empty() => KeyError::Unavailable(said),
        _ => denied("the request is not taken"),
    }
}

/// Finds the failure to get credentials among the causes of an error.
fn credentials_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e CredentialsError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}
