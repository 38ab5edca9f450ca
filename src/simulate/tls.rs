//! The client end of TLS: one given root certificate, an explicit crypto provider, no session resumption.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long TCP and TLS may take together. A local server answers in milliseconds, a busy one in a second or two.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP: nobody listens, or the way is broken.
    #[error("connect to {0}")]
    Tcp(SocketAddr, #[source] io::Error),
    /// TLS: another protocol, or a certificate that the root does not vouch for.
    #[error("TLS handshake with {0}")]
    Tls(SocketAddr, #[source] io::Error),
    /// No answer within ten seconds.
    #[error("{0} did not answer within 10 s")]
    Timeout(SocketAddr),
}

/// Why a [`TlsClient`] or [`Endpoint`] cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The root certificate is not PEM.
    #[error("root certificate is not PEM")]
    RootPem(#[source] pem::Error),
    /// The root is missing, or is no certificate.
    #[error("root certificate cannot be used")]
    Root(#[source] rustls::Error),
    /// The name in the URL is neither a host name nor an address.
    #[error("server name {0:?} is no host name")]
    ServerName(String, #[source] InvalidDnsNameError),
    /// Not `scheme://host[:port]`.
    #[error("public URL {0:?} must be scheme://host[:port] without a path")]
    PublicUrl(String),
}

/// Makes TLS connections that trust one root.
#[derive(Clone)]
pub struct TlsClient(Arc<ClientConfig>);

impl TlsClient {
    /// Trusts the certificates in `root_pem` and nothing else; offers TLS 1.3 and 1.2.
    ///
    /// # Errors
    /// [`SetupError`] when there is no usable certificate in it.
    pub fn new(root_pem: &[u8]) -> Result<Self, SetupError> {
        Self::with_versions(root_pem, rustls::DEFAULT_VERSIONS)
    }

    /// As [`TlsClient::new`], but offers only these protocol versions.
    ///
    /// # Errors
    /// [`SetupError`] when there is no usable certificate, or no usable version.
    pub fn with_versions(
        root_pem: &[u8],
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<Self, SetupError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(root_pem) {
            roots.add(certificate.map_err(SetupError::RootPem)?).map_err(SetupError::Root)?;
        }
        if roots.is_empty() {
            return Err(SetupError::RootPem(pem::Error::NoItemsFound));
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(SetupError::Root)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }

    /// Connects, with Nagle's algorithm off, and shakes hands.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(&self, endpoint: &Endpoint) -> Result<TlsStream<TcpStream>, ConnectError> {
        let address = endpoint.connect;
        let connecting = async {
            let tcp = dial(endpoint).await.map_err(|e| ConnectError::Tcp(address, e))?;
            tcp.set_nodelay(true).map_err(|e| ConnectError::Tcp(address, e))?;
            TlsConnector::from(Arc::clone(&self.0))
                .connect(endpoint.server_name.clone(), tcp)
                .await
                .map_err(|e| ConnectError::Tls(address, e))
        };
        timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| ConnectError::Timeout(address))?
    }
}

async fn dial(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let Some(from) = endpoint.from else { return TcpStream::connect(endpoint.connect).await };
    let socket = if from.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind((from, 0).into())?;
    socket.connect(endpoint.connect).await
}

/// Where a server is and what it is called.
#[derive(Debug, Clone)]
pub struct Endpoint {
    connect: SocketAddr,
    from: Option<IpAddr>,
    server_name: ServerName<'static>,
    public_url: String,
}

impl Endpoint {
    /// Connects to `connect`, whatever the name in `public_url` (`wss://host[:port]`) resolves to.
    ///
    /// The host of the URL is what the server's certificate must be for.
    ///
    /// # Errors
    /// [`SetupError`] when the URL has a path or no host.
    pub fn new(connect: SocketAddr, public_url: &str) -> Result<Self, SetupError> {
        let authority = authority(public_url).ok_or_else(|| SetupError::PublicUrl(public_url.to_owned()))?;
        let server_name = server_name(host(authority))?;
        Ok(Self { connect, from: None, server_name, public_url: public_url.to_owned() })
    }

    /// Expects the server's certificate to be for another name than that of the URL.
    ///
    /// # Errors
    /// [`SetupError::ServerName`].
    pub fn with_server_name(mut self, name: &str) -> Result<Self, SetupError> {
        self.server_name = server_name(name)?;
        Ok(self)
    }

    /// Connects from this address of the machine: one address has 28,000 ports for its connections.
    pub fn from_address(mut self, from: IpAddr) -> Self {
        self.from = Some(from);
        self
    }

    /// Returns the address that is connected to.
    pub fn address(&self) -> SocketAddr {
        self.connect
    }

    /// Returns the URL without a path, as given.
    pub fn public_url(&self) -> &str {
        &self.public_url
    }

    /// Returns host and port of the URL: the value of the `Host` header.
    pub fn authority(&self) -> &str {
        authority(&self.public_url).unwrap_or_default()
    }
}

/// Returns `host[:port]` of a URL that has nothing behind it.
fn authority(url: &str) -> Option<&str> {
    let (_, authority) = url.split_once("://")?;
    (!authority.is_empty() && !authority.contains(['/', '?', '#', '@'])).then_some(authority)
}

/// Returns the host of `host[:port]`, an IPv6 address without its brackets.
fn host(authority: &str) -> &str {
    if let Some((address, _)) = authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

fn server_name(name: &str) -> Result<ServerName<'static>, SetupError> {
    ServerName::try_from(name.to_owned()).map_err(|e| SetupError::ServerName(name.to_owned(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_take_their_names_from_the_url() {
        let address: SocketAddr = "127.0.0.1:8443".parse().unwrap();
        for (url, authority, name) in [
            ("wss://localhost:8443", "localhost:8443", "localhost"),
            ("wss://media.example.com", "media.example.com", "media.example.com"),
            ("https://[::1]:8443", "[::1]:8443", "::1"),
        ] {
            let endpoint = Endpoint::new(address, url).unwrap();
            assert_eq!(endpoint.authority(), authority);
            assert_eq!(endpoint.server_name.to_str(), name);
        }
        for bad in ["localhost:8443", "wss://", "wss://a/b", "wss://u@h", "wss://:8443"] {
            assert!(Endpoint::new(address, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_root_is_required() {
        assert!(matches!(TlsClient::new(b""), Err(SetupError::RootPem(_))));
        let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(TlsClient::new(garbage), Err(SetupError::Root(_))));
    }
}
