//! A TLS server on a free loopback port for the tests of this module.

use std::future::Future;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::tls::{Endpoint, TlsClient};

/// Serves one connection with `serve` and answers how to reach it.
pub(super) async fn serve_one<F, T>(
    serve: impl FnOnce(TlsStream<TcpStream>) -> F + Send + 'static,
) -> (Endpoint, TlsClient, JoinHandle<T>)
where
    F: Future<Output = T> + Send,
    T: Send + 'static,
{
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = Endpoint::new(address, &format!("wss://localhost:{}", address.port())).unwrap();
    let client = TlsClient::new(made.cert.pem().as_bytes()).unwrap();
    let served = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        serve(TlsAcceptor::from(Arc::new(config)).accept(tcp).await.unwrap()).await
    });
    (endpoint, client, served)
}
