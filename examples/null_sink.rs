//! A server that reads calls and throws them away: what TLS and websockets alone cost.
//!
//! One thread, tokio-tungstenite with a read buffer of 4 KiB per connection, nothing else. It accepts every handshake.
//! Makes a certificate for `localhost` at start and writes it to the given path:
//!
//! ```text
//! taskset -c 0 cargo run --release --example null_sink -- 127.0.0.1:8444 null.pem
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, bail};
use futures_util::StreamExt;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_async_with_config;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// The library's default of 128 KiB for each connection costs more than twice the CPU.
const READ_BUFFER_BYTES: usize = 4 * 1024;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [address, certificate_file] = arguments.as_slice() else {
        bail!("usage: null_sink ADDRESS:PORT CERTIFICATE-FILE");
    };
    let (acceptor, certificate) = make_acceptor()?;
    std::fs::write(certificate_file, certificate).with_context(|| format!("write {certificate_file}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(address.parse().context("ADDRESS:PORT")?, acceptor))
}

#[expect(clippy::print_stdout, reason = "says where it listens")]
async fn serve(address: SocketAddr, acceptor: TlsAcceptor) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    println!("listening on {}, process {}", listener.local_addr()?, std::process::id());
    loop {
        let (tcp, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let Err(error) = discard(tcp, &acceptor).await {
                eprintln!("{error:#}");
            }
        });
    }
}

async fn discard(tcp: TcpStream, acceptor: &TlsAcceptor) -> anyhow::Result<()> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await.context("TLS")?;
    let config = WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES);
    let mut socket = accept_async_with_config(stream, Some(config)).await.context("upgrade")?;
    while let Some(message) = socket.next().await {
        std::hint::black_box(message.context("websocket")?);
    }
    Ok(())
}

fn make_acceptor() -> anyhow::Result<(TlsAcceptor, String)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok((TlsAcceptor::from(Arc::new(config)), made.cert.pem()))
}
