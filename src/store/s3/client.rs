//! The client: one TLS stack, in-memory bodies, few attempts, and bounds on all of them.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Builder as ConfigBuilder, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};

use crate::aws::{Chain, Rotating, behavior, http_client};
use crate::config::S3;
use crate::store::StoreError;

/// Attempts of one request by the client itself: the second one meets a connection that the store had closed while it
/// was idle. Everything else is for the caller, who knows how long it can wait.
const ATTEMPTS: u32 = 2;

/// Makes the client of a store and returns its credentials beside it. Nothing is sent yet.
///
/// # Errors
/// [`StoreError::Denied`] when the certificates cannot be used.
pub(super) fn client(options: &S3) -> Result<(Client, Rotating), StoreError> {
    let http = http_client(options.endpoint.as_deref(), options.ca_file.as_deref())
        .map_err(|source| StoreError::Denied { action: "use store.ca_file", source })?;
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
