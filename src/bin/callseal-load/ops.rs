//! The ops listener of a server: whether it is ready, and its metrics page.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use callseal::observe::page::Page;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long one look at the ops listener may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A page has some tens of KiB; more is none of callseal's.
const MAX_PAGE_BYTES: u64 = 16 * 1024 * 1024;

/// Gets a path of an ops listener; answers status and body.
pub(crate) async fn get(ops: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let asking = async {
        let mut stream = TcpStream::connect(ops).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(MAX_PAGE_BYTES).read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(TIMEOUT, asking).await.context("the ops listener hangs")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("the ops listener's answer")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.context("the ops listener's status")?, body.to_owned()))
}

/// Looks at `/metrics` once.
pub(crate) async fn look(ops: SocketAddr) -> anyhow::Result<Page> {
    Ok(Page::new(get(ops, "/metrics").await?.1))
}
