//! What all clients of AWS's services have in common: one TLS stack, and credentials that may change.
//!
//! Must not know which service is asked, nor for what.

mod credentials;

use std::fs;
use std::io;
use std::path::Path;

use aws_config::BehaviorVersion;
use aws_smithy_http_client::Builder as HttpBuilder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_runtime_api::client::http::SharedHttpClient;

use crate::authorities;

pub(crate) use credentials::{Chain, Rotating};

/// The behaviour that was tested; newer versions of the clients keep to it.
pub(crate) fn behavior() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

/// Makes the HTTP client for an endpoint; without one it is for AWS itself. The certificates in `ca_file` alone are
/// believed, or else those of the system.
///
/// # Errors
/// The certificates cannot be used.
pub(crate) fn http_client(endpoint: Option<&str>, ca_file: Option<&Path>) -> io::Result<SharedHttpClient> {
    if endpoint.is_some_and(|url| url.starts_with("http://")) {
        return Ok(HttpBuilder::new().build_http());
    }
    let builder = HttpBuilder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    let Some(ca_file) = ca_file else { return Ok(builder.build_https()) };
    // The client would panic at a bad one.
    authorities::of_file(ca_file).map_err(|error| unusable(error.to_string()))?;
    let trust = TrustStore::empty().with_pem_certificate(fs::read(ca_file)?);
    let context = TlsContext::builder().with_trust_store(trust).build();
    let context = context.map_err(|error| unusable(error.to_string()))?;
    Ok(builder.tls_context(context).build_https())
}

fn unusable(problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, problem)
}
