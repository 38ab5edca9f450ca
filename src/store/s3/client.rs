//! The client: one TLS stack, in-memory bodies, few attempts, and bounds on all of them.

use std::fs;
use std::io;
use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Builder as ConfigBuilder, IdentityCache, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_http_client::Builder as HttpBuilder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::S3;
use crate::store::StoreError;

use super::credentials::{Chain, Rotating};

/// Attempts of one request by the client itself: the second one meets a connection that the store had closed while it
/// was idle. Everything else is for the caller, who knows how long it can wait.
const ATTEMPTS: u32 = 2;

/// Makes the client of a store and returns its credentials beside it. Nothing is sent yet.
///
/// # Errors
/// [`StoreError::Denied`] when the certificates cannot be used.
pub(super) fn client(options: &S3) -> Result<(Client, Rotating), StoreError> {
    let http = http_client(options)?;
    let region = Region::new(options.region.clone());
    let chain = Chain { http: http.clone(), region: region.clone() };
    let credentials = Rotating::new(&options.credentials, chain);
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(options.connect_timeout)
        .operation_attempt_timeout(options.attempt_timeout)
        .build();
    let mut config = ConfigBuilder::new()
        .behavior_version(behavior())
        .http_client(http)
        .region(region)
        .credentials_provider(credentials.clone())
        // The provider keeps them itself, as it must be able to forget them.
        .identity_cache(IdentityCache::no_cache())
        .force_path_style(options.path_style)
        // Never adaptive: its limiter is shared by all clients of a process, and one 503 stops them for many seconds.
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(timeouts)
        // The time of an attempt bounds it; a second clock would end uploads to a store that is merely slow.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // The signature covers the body anyway; several stores refuse further checksums.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    // Without the slash the client glues the bucket to the last part of the endpoint's path.
    config.set_endpoint_url(options.endpoint.as_ref().map(|url| format!("{url}/")));
    Ok((Client::from_conf(config.build()), credentials))
}

/// The behaviour that was tested; newer versions of the client keep to it.
pub(super) fn behavior() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

fn http_client(options: &S3) -> Result<SharedHttpClient, StoreError> {
    if options.endpoint.as_deref().is_some_and(|url| url.starts_with("http://")) {
        return Ok(HttpBuilder::new().build_http());
    }
    let builder = HttpBuilder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    let Some(ca_file) = &options.ca_file else { return Ok(builder.build_https()) };
    let trust = TrustStore::empty().with_pem_certificate(read_certificates(ca_file)?);
    let context = TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|error| unusable("use store.ca_file", error.to_string()))?;
    Ok(builder.tls_context(context).build_https())
}

/// Reads certificates and checks them, because the client would panic at a bad one.
fn read_certificates(path: &Path) -> Result<Vec<u8>, StoreError> {
    const ACTION: &str = "use store.ca_file";
    let pem = fs::read(path).map_err(|source| StoreError::Denied { action: ACTION, source })?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate
            .map_err(|error| error.to_string())
            .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        added.map_err(|problem| unusable(ACTION, problem))?;
    }
    if roots.is_empty() {
        return Err(unusable(ACTION, "it holds no certificate".to_owned()));
    }
    Ok(pem)
}

fn unusable(action: &'static str, problem: String) -> StoreError {
    StoreError::Denied { action, source: io::Error::new(io::ErrorKind::InvalidInput, problem) }
}
