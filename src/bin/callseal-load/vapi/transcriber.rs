//! Vapi dials the server as it dials a custom transcriber, and sends both parties in one stream.

use std::sync::atomic::Ordering;

use callseal::clock;
use callseal::simulate::{CallError, Received, TranscriberCall};

use crate::traffic::{CallFailed, Went};

use super::{CHANNELS, Dialled, NORMAL, RATE, Socket};

/// Places one call and stays to its end.
pub(super) async fn place(dialled: Dialled) -> Result<Went, CallFailed> {
    let began = clock::monotonic();
    let headers = [("x-vapi-secret", dialled.secret.as_str())];
    let connected =
        TranscriberCall::connect(&dialled.endpoint, &dialled.target, &headers, &dialled.tls).await;
    let handshake = clock::since(began);
    dialled.tally.tried.fetch_add(1, Ordering::Relaxed);
    let mut call = connected.map_err(CallFailed::Connect)?;
    let talking = async {
        call.send_text(TranscriberCall::start(RATE, CHANNELS)).await?;
        dialled.talk(&mut call).await
    };
    let send_lag = dialled.while_open(talking).await.map_err(CallFailed::Later)?;
    call.close(NORMAL).await;
    Ok(Went { handshake, send_lag, ..Went::default() })
}

impl Socket for TranscriberCall {
    async fn say(&mut self, message: Vec<u8>) -> Result<(), CallError> {
        self.send_binary(message).await
    }

    async fn hear(&mut self) -> Result<Received, CallError> {
        self.recv().await
    }
}
