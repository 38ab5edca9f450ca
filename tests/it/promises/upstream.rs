//! Whom audio is passed on to: nobody whose certificate is not in order.

use std::fs;
use std::sync::Arc;

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{CallError, Received, Track, TwilioCall};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{LIMIT, Setup, TENANT};

/// Places a call for an agent whose certificate is valid in these years; answers whether the agent came to hear anything.
async fn is_heard(from: i32, until: i32) -> bool {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(from, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let server_key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], server_key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let agent = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(config)).accept(tcp).await.is_ok()
    });
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("agent.pem");
    fs::write(&ca, certificate.pem()).unwrap();
    let (_home, mut server) = Setup::new()
        .option("relay", "ca_file", &format!("{:?}", ca.display().to_string()))
        .tenant(|tenant| {
            let lines =
                format!("mode = \"bidirectional\"\n[route.upstream]\nurl = \"wss://localhost:{port}/\"");
            tenant.routes.push(("agent".to_owned(), lines));
        })
        .serve();
    server.allow("agent was not reached");
    server.allow("agent unreachable");
    let plan = server.plan(&format!("{TENANT}/agent"), 1, Track::whole(&DEMO_CALLER[..1_600]));
    let mut call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    let ended = match call.greet().await {
        Ok(()) => tokio::time::timeout(LIMIT, call.recv()).await.expect("an end").unwrap(),
        Err(CallError::Closed { code, reason }) => Received::Closed { code, reason },
        Err(error) => panic!("{error}"),
    };
    // The one who is reached hangs up at once.
    assert_eq!(ended, Received::Closed { code: Some(1011), reason: "agent unreachable".to_owned() });
    agent.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_an_agent_whose_certificate_is_over_hears_nothing() {
    assert!(!is_heard(2020, 2021).await);
    assert!(!is_heard(2998, 2999).await, "nor one whose certificate is not valid yet");
    assert!(is_heard(2020, 2999).await, "it is the date");
}
