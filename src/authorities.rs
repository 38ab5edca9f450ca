//! Whom we believe when we dial: the authorities in a file alone, or those of the system.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Why nobody can be believed.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    /// The file cannot be read, or holds something else.
    #[error("certificates in {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// The file holds none.
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    /// A certificate that is no authority's, or the library refuses.
    #[error("TLS")]
    Tls(#[from] rustls::Error),
}

/// Returns the client side of TLS 1.2 and 1.3, without a certificate of our own and without ALPN.
///
/// # Errors
/// [`AuthoritiesError`].
pub fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, AuthoritiesError> {
    let roots = ca_file.map_or_else(|| Ok(of_system()), of_file)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Reads the authorities in a PEM file.
///
/// # Errors
/// [`AuthoritiesError`].
pub fn of_file(path: &Path) -> Result<RootCertStore, AuthoritiesError> {
    let unreadable = |source| AuthoritiesError::File { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        roots.add(certificate.map_err(unreadable)?)?;
    }
    if roots.is_empty() { Err(AuthoritiesError::Empty(path.to_owned())) } else { Ok(roots) }
}

fn of_system() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (_added, ignored) = roots.add_parsable_certificates(found.certs);
    if ignored > 0 || !found.errors.is_empty() {
        let errors = found.errors.len();
        tracing::warn!(ignored, errors, "some of the system's authorities cannot be used");
    }
    roots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_vouches_for_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        assert!(matches!(of_file(&file), Err(AuthoritiesError::File { .. })));
        std::fs::write(&file, "no certificate\n").unwrap();
        assert!(matches!(client_config(Some(&file)), Err(AuthoritiesError::Empty(_))));
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&file, made.cert.pem()).unwrap();
        assert_eq!(of_file(&file).unwrap().len(), 1);
    }
}
