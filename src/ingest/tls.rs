//! TLS: 1.2 and 1.3, ECDHE with AEAD suites only, the server's order, no early data, certificates re-read on change.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, version};

/// How often certificate files are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// Throw-away certificates live for a year.
const SELF_SIGNED_DAYS: i64 = 365;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file without a certificate or key in PEM.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The library refuses.
    #[error("TLS")]
    Rustls(#[from] rustls::Error),
    /// A throw-away certificate could not be made.
    #[error("throw-away certificate")]
    Made(#[from] rcgen::Error),
}

/// The provider of all cryptography of TLS, passed explicitly everywhere.
pub fn crypto_provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A certificate that is read again when its files change.
#[derive(Debug)]
pub struct Certificate {
    cert_file: PathBuf,
    key_file: PathBuf,
    current: ArcSwap<CertifiedKey>,
}

impl Certificate {
    /// Reads certificate chain and key.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn load(cert_file: &Path, key_file: &Path) -> Result<Arc<Self>, TlsError> {
        let current = ArcSwap::from_pointee(read_certificate(cert_file, key_file)?);
        Ok(Arc::new(Self { cert_file: cert_file.to_owned(), key_file: key_file.to_owned(), current }))
    }

    /// Reads the files again. What is in use stays when they cannot be used.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn reload(&self) -> Result<(), TlsError> {
        let read = read_certificate(&self.cert_file, &self.key_file)?;
        self.current.store(Arc::new(read));
        Ok(())
    }

    /// Reloads whenever a file has changed, for as long as the process lives.
    pub async fn watch(self: Arc<Self>) {
        let mut seen = self.changed();
        loop {
            tokio::time::sleep(WATCH_INTERVAL).await;
            let now = self.changed();
            if now == seen {
                continue;
            }
            match self.reload() {
                Ok(()) => tracing::info!("certificate was read again"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "changed certificate cannot be used; the old one stays");
                }
            }
            seen = now;
        }
    }

    fn changed(&self) -> [Option<SystemTime>; 2] {
        [&self.cert_file, &self.key_file].map(|file| fs::metadata(file).and_then(|m| m.modified()).ok())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// Returns the settings of a listener. Where `clients` are given, one of them must have certified whoever connects.
///
/// # Errors
/// [`TlsError::Rustls`].
pub fn server_config(
    certificate: Arc<Certificate>,
    clients: Option<RootCertStore>,
) -> Result<Arc<ServerConfig>, TlsError> {
    // All suites of this provider are ECDHE with an AEAD cipher, in TLS 1.2 as in 1.3; a test says so.
    let config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])?;
    let config = match clients {
        None => config.with_no_client_auth(),
        Some(clients) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(clients), crypto_provider()).build();
            let verifier = verifier.map_err(|error| rustls::Error::General(error.to_string()))?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let mut config = config.with_cert_resolver(certificate);
    config.ignore_client_order = true;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read_certificate(cert_file: &Path, key_file: &Path) -> Result<CertifiedKey, TlsError> {
    let content = |path: &Path, problem: String| TlsError::Content { path: path.to_owned(), problem };
    let cert_pem =
        fs::read(cert_file).map_err(|source| TlsError::File { path: cert_file.to_owned(), source })?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert_pem).collect();
    let chain = chain.map_err(|error| content(cert_file, error.to_string()))?;
    if chain.is_empty() {
        return Err(content(cert_file, "no certificate in PEM".to_owned()));
    }
    let key_pem = zeroize::Zeroizing::new(
        fs::read(key_file).map_err(|source| TlsError::File { path: key_file.to_owned(), source })?,
    );
    let key = PrivateKeyDer::from_pem_slice(&key_pem)
        .map_err(|_| content(key_file, "no private key in PEM".to_owned()))?;
    let certified = CertifiedKey::from_der(chain, key, &crypto_provider())
        .map_err(|error| content(key_file, error.to_string()))?;
    Ok(certified)
}

/// Where throw-away certificates lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfSigned {
    /// The authority that clients must trust.
    pub ca_file: PathBuf,
    /// The server's certificate.
    pub cert_file: PathBuf,
    /// The server's key, mode 0600.
    pub key_file: PathBuf,
}

impl SelfSigned {
    /// Names the files in a directory.
    pub fn in_dir(dir: &Path) -> Self {
        Self { ca_file: dir.join("ca.pem"), cert_file: dir.join("cert.pem"), key_file: dir.join("key.pem") }
    }

    /// Makes an authority and a certificate for `host` and loopback, unless they are there. The authority's key is
    /// thrown away at once.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn ensure(dir: &Path, host: &str) -> Result<Self, TlsError> {
        let files = Self::in_dir(dir);
        if files.ca_file.exists() && files.cert_file.exists() && files.key_file.exists() {
            return Ok(files);
        }
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::File { path, source }
        };
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(Vec::<String>::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        ca.distinguished_name.push(DnType::CommonName, "callseal throw-away authority");
        limit_validity(&mut ca);
        let ca_cert = ca.self_signed(&ca_key)?;
        let mut names =
            vec![host.to_owned(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        names.dedup();
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, host);
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        limit_validity(&mut leaf);
        let leaf_key = KeyPair::generate()?;
        let leaf_cert = leaf.signed_by(&leaf_key, &Issuer::from_params(&ca, &ca_key))?;
        write(&files.key_file, leaf_key.serialize_pem().as_bytes(), 0o600)
            .map_err(io_error(&files.key_file))?;
        write(&files.cert_file, leaf_cert.pem().as_bytes(), 0o644).map_err(io_error(&files.cert_file))?;
        write(&files.ca_file, ca_cert.pem().as_bytes(), 0o644).map_err(io_error(&files.ca_file))?;
        Ok(files)
    }
}

fn limit_validity(params: &mut CertificateParams) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(crate::clock::wall().0);
    params.not_before = (now - Duration::from_secs(3600)).into();
    params.not_after =
        (now + Duration::from_secs(u64::try_from(SELF_SIGNED_DAYS * 86_400).unwrap_or(0))).into();
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_suites_are_ephemeral_and_authenticated() {
        for suite in &crypto_provider().cipher_suites {
            let name = format!("{:?}", suite.suite());
            let modern = name.starts_with("TLS13_") || name.starts_with("TLS_ECDHE_");
            let aead = name.contains("_GCM_") || name.contains("_CHACHA20_POLY1305");
            assert!(modern && aead, "{name}");
        }
    }

    #[test]
    fn a_changed_certificate_is_used_and_a_broken_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = SelfSigned::ensure(&dir.path().join("a"), "localhost").unwrap();
        let other = SelfSigned::ensure(&dir.path().join("b"), "localhost").unwrap();
        let certificate = Certificate::load(&first.cert_file, &first.key_file).unwrap();
        let leaf = |c: &Certificate| c.current.load().cert.first().cloned();
        let before = leaf(&certificate);
        fs::write(&first.cert_file, "nonsense").unwrap();
        assert!(certificate.reload().is_err());
        assert_eq!(leaf(&certificate), before);
        fs::copy(&other.cert_file, &first.cert_file).unwrap();
        assert!(certificate.reload().is_err(), "the key belongs to another certificate");
        fs::copy(&other.key_file, &first.key_file).unwrap();
        certificate.reload().unwrap();
        assert_ne!(leaf(&certificate), before);
    }
}
