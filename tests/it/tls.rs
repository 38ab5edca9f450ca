//! TLS on the public listener, and what a connection may do before its first request is there.

use std::fs;
use std::path::Path;
use std::time::Duration;

use callseal::ingest::tls::SelfSigned;
use callseal::simulate::TlsClient;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, version};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::socket::{greeting, media, stop, stream_id};
use crate::support::wire::{Raw, exchange, read_to_end};
use crate::support::{Home, Server, Setup, TENANT, eventually};

const HOST: &str = "media.example.com";
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: media.example.com\r\n\r\n";

/// Connects and offers these protocols by ALPN.
async fn connect_offering(server: &Server, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(server.ca_pem()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let tcp = TcpStream::connect(server.public()).await.unwrap();
    let name = ServerName::try_from(HOST).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken() {
    let (_home, server) = Setup::new().serve();
    for (offered, spoken) in
        [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let client = TlsClient::with_versions(server.ca_pem(), &[offered]).unwrap();
        let mut stream: Raw = client.connect(&server.endpoint()).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(spoken));
        assert_eq!(exchange(&mut stream, HEALTH).await.status, 200);
    }
}

/// Handshakes that a modern library offers only when it is asked to: the last argument of each is what must come out.
const OLD_CLIENTS: &str = r"
import socket, ssl, sys, warnings
warnings.simplefilter('ignore')
host, port = sys.argv[1], int(sys.argv[2])

def offer(minimum, maximum, ciphers):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(ciphers + ':@SECLEVEL=0')
    context.minimum_version, context.maximum_version = minimum, maximum
    try:
        with socket.create_connection((host, port), 10) as tcp, context.wrap_socket(tcp) as tls:
            return tls.version() + ' ' + tls.cipher()[0]
    except (ssl.SSLError, ConnectionError) as error:
        return 'refused'

V = ssl.TLSVersion
print('1.0', offer(V.TLSv1, V.TLSv1, 'ALL'))
print('1.1', offer(V.TLSv1_1, V.TLSv1_1, 'ALL'))
print('cbc', offer(V.TLSv1_2, V.TLSv1_2, 'ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES128-SHA'))
print('rsa', offer(V.TLSv1_2, V.TLSv1_2, 'AES128-GCM-SHA256:AES256-GCM-SHA384'))
print('good', offer(V.TLSv1_2, V.TLSv1_2, 'ECDHE-ECDSA-AES128-GCM-SHA256'))
";

/// Needs a Python with `ssl`. Whether its OpenSSL can still speak TLS 1.1 does not show in the result; that it can
/// speak at all does, and the suites of 1.2 are in every OpenSSL.
#[tokio::test]
async fn old_versions_and_suites_are_refused() {
    let python = std::process::Command::new("python3").args(["-c", "import ssl"]).status();
    if !python.is_ok_and(|status| status.success()) {
        println!("skipped: no python3 with ssl");
        return;
    }
    let (_home, server) = Setup::new().serve();
    let (host, port) = (server.public().ip().to_string(), server.public().port().to_string());
    let ran = std::process::Command::new("python3").args(["-c", OLD_CLIENTS, &host, &port]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let wanted =
        "1.0 refused\n1.1 refused\ncbc refused\nrsa refused\ngood TLSv1.2 ECDHE-ECDSA-AES128-GCM-SHA256\n";
    assert_eq!(said, wanted, "{}", String::from_utf8_lossy(&ran.stderr));
}

#[tokio::test]
async fn both_versions_of_http_are_spoken() {
    let (_home, server) = Setup::new().serve();
    let mut stream = connect_offering(&server, &[b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(exchange(&mut stream, HEALTH).await.body, "ok\n");

    let stream = connect_offering(&server, &[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (path, status) in [("/healthz", 200), ("/nothing", 404), ("/twilio/v1/acme-dental/reception", 426)] {
        let uri = format!("https://{HOST}{path}");
        let request = hyper::Request::get(uri).body(Empty::<bytes::Bytes>::new()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert!(answer.headers().contains_key("strict-transport-security"));
        answer.into_body().collect().await.unwrap();
    }
}

#[tokio::test]
async fn plain_http_gets_no_answer() {
    let (_home, server) = Setup::new().serve();
    let mut stream = TcpStream::connect(server.public()).await.unwrap();
    stream.write_all(HEALTH.as_bytes()).await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // A TLS alert and nothing else.
    assert!(answer.len() <= 7, "{answer:?}");
}

#[tokio::test]
async fn slow_connections_are_closed_while_a_call_goes_on() {
    let setup = Setup::new()
        .option("ingest", "tls_handshake_timeout_ms", "300")
        .option("ingest", "header_timeout_ms", "300")
        .option("ingest", "max_connections", "6");
    let (home, server) = setup.serve();
    let mut call = server.open("acme-dental/reception").await;
    for message in greeting(1) {
        call.text(message).await;
    }
    call.text(media(&stream_id(1), 1, 1)).await;
    call.settle().await;

    let silent = TcpStream::connect(server.public()).await.unwrap();
    let mut half_a_hello = TcpStream::connect(server.public()).await.unwrap();
    half_a_hello.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
    let no_request = connect_offering(&server, &[b"http/1.1"]).await;
    let mut half_a_request = connect_offering(&server, &[b"http/1.1"]).await;
    half_a_request.write_all(b"GET /healthz HTTP/1.1\r\nHost: med").await.unwrap();
    let no_h2_preface = connect_offering(&server, &[b"h2"]).await;
    let before = callseal::clock::monotonic();
    let (mut silent, mut no_request, mut no_h2_preface) = (silent, no_request, no_h2_preface);
    assert_eq!(read_to_end(&mut silent).await, b"");
    read_to_end(&mut half_a_hello).await;
    read_to_end(&mut no_request).await;
    read_to_end(&mut half_a_request).await;
    read_to_end(&mut no_h2_preface).await;
    assert!(callseal::clock::since(before) < Duration::from_secs(5));

    call.text(media(&stream_id(1), 2, 1)).await;
    call.text(stop(&stream_id(1))).await;
    assert_eq!(call.close(Some(1000)).await, Some(1000));
    let sealed = server.wait_log("recording sealed", 1).await;
    assert_eq!(home.finished(TENANT, sealed.field("recording")).await["state"], "complete");
    let none_left = || (server.metric("ingest_connections") == 0.0).then_some(());
    eventually("all connections closed", none_left).await;
}

fn copy(from: &SelfSigned, to: &SelfSigned) {
    fs::copy(&from.key_file, &to.key_file).unwrap();
    fs::copy(&from.cert_file, &to.cert_file).unwrap();
}

/// Tells whether a client that trusts this authority can connect.
async fn is_trusted(server: &Server, ca_file: &Path) -> bool {
    let client = TlsClient::new(&fs::read(ca_file).unwrap()).unwrap();
    client.connect(&server.endpoint()).await.is_ok()
}

fn serve_with_files(dir: &SelfSigned) -> (Home, Server) {
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    Setup::new()
        .without("tls", "self_signed")
        .option("tls", "cert_file", &quoted(&dir.cert_file))
        .option("tls", "key_file", &quoted(&dir.key_file))
        .serve()
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let [used, first, second, third] =
        ["used", "a", "b", "c"].map(|name| SelfSigned::ensure(&dir.path().join(name), HOST).unwrap());
    copy(&first, &used);
    let (_home, mut server) = serve_with_files(&used);
    assert!(is_trusted(&server, &first.ca_file).await);
    assert!(!is_trusted(&server, &second.ca_file).await);

    // Found by looking at the files.
    copy(&second, &used);
    server.wait_log("certificate was read again", 1).await;
    assert!(is_trusted(&server, &second.ca_file).await);
    assert!(!is_trusted(&server, &first.ca_file).await);

    // At once with SIGHUP, and what cannot be used is not taken.
    copy(&third, &used);
    server.signal("HUP");
    server.wait_log("tenants, their secrets and keys were read again", 1).await;
    let taken = async { while !is_trusted(&server, &third.ca_file).await {} };
    tokio::time::timeout(Duration::from_secs(10), taken).await.expect("taken in time");
    server.allow("certificate cannot be used; the old one stays");
    fs::write(&used.cert_file, "nonsense").unwrap();
    server.signal("HUP");
    server.wait_log("certificate cannot be used; the old one stays", 1).await;
    assert!(is_trusted(&server, &third.ca_file).await);
    server.allow("changed certificate cannot be used; the old one stays");
}

/// Somebody who certifies clients.
struct Authority {
    key: KeyPair,
    params: CertificateParams,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Self { key: KeyPair::generate().unwrap(), params }
    }

    fn pem(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    /// Certifies a client that lives until a year.
    fn client(&self, until: i32) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::new(vec!["proxy.example.com".to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap();
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }
}

/// Connects with a certificate or without, and asks something; `None` when there is no answer.
async fn ask_as(
    server: &Server,
    version: &'static rustls::SupportedProtocolVersion,
    client: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Option<String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(server.ca_pem()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[version]).unwrap().with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).unwrap(),
    };
    let tcp = TcpStream::connect(server.public()).await.unwrap();
    let name = ServerName::try_from(HOST).unwrap();
    let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
    // With TLS 1.3 a client learns only afterwards that it is refused.
    tls.write_all(HEALTH.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n").as_bytes()).await.ok()?;
    let answer = read_to_end(&mut tls).await;
    (!answer.is_empty()).then(|| String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn b8_without_a_client_certificate_there_is_no_connection() {
    let (proxy, stranger) = (Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("clients.pem");
    fs::write(&ca, proxy.pem()).unwrap();
    let home = Setup::new()
        .option("tls", "client_ca_file", &format!("{:?}", ca.display().to_string()))
        .option("admin", "tokens_file", "\"tokens.toml\"")
        .write();
    let mut server = home.serve();
    server.allow("nobody can use the admin API yet");
    for version in [&version::TLS12, &version::TLS13] {
        for wrong in [None, Some(stranger.client(2999)), Some(proxy.client(2021))] {
            assert_eq!(ask_as(&server, version, wrong).await, None, "{version:?}");
        }
        let answer = ask_as(&server, version, Some(proxy.client(2999))).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    // Operators have tokens, and are not behind that proxy.
    assert_eq!(server.admin().get("/openapi.json", &[]).await.unwrap().status, 200);
    server.stop().await;

    fs::write(&ca, "no certificate").unwrap();
    let refused = home.run(&["serve"]);
    assert!(refused.code == Some(1) && refused.err.contains("tls.client_ca_file"), "{refused:?}");
}
