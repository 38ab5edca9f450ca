//! A relay that knows nothing: it copies bytes between two TCP sockets.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};

/// Copies bytes between whoever connects and `to`; answers where. Runs on a thread of its own until the process ends.
pub(super) async fn relay(to: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let listener = listener.into_std()?;
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((mut from, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(mut agent) = TcpStream::connect(to).await else { return };
                    if from.set_nodelay(true).is_ok() && agent.set_nodelay(true).is_ok() {
                        let _ended = tokio::io::copy_bidirectional(&mut from, &mut agent).await.is_ok();
                    }
                });
            }
        });
    });
    Ok(address)
}
