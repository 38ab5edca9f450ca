//! Vapi tells the server of a call, the server dials Vapi and hears both parties, and Vapi tells of the end.
//!
//! Both parties are silent until the server is there: what is said before is lost for any listener.

use std::sync::atomic::Ordering;

use callseal::clock;
use callseal::simulate::{AgentCall, CallError, HttpsClient, HttpsError, Received, VapiMessages};
use serde_json::Value;
use tokio::time::timeout;

use crate::traffic::{CallFailed, Went};

use super::switchboard::Line;
use super::{Dialled, PATIENCE};

/// Tells of one call, waits to be dialled, and stays to the end of it. What is called its handshake is the time from the first
/// word about the call to the socket on which it can be heard.
pub(super) async fn place(dialled: Dialled, mut line: Line) -> Result<Went, CallFailed> {
    let messages = VapiMessages { call: dialled.name.clone(), authority: line.authority.clone() };
    let https = HttpsClient::new(&dialled.tls, dialled.endpoint.clone());
    let began = clock::monotonic();
    let told = tell(&dialled, &messages, &https, &messages.status("in-progress", clock::wall().0)).await;
    dialled.tally.tried.fetch_add(1, Ordering::Relaxed);
    told.map_err(CallFailed::Connect)?;
    let mut socket = line.reached().await.map_err(CallFailed::Later)?;
    let handshake = clock::since(began);
    let hearing = async {
        let send_lag = dialled.talk(&mut socket).await?;
        tell(&dialled, &messages, &https, &messages.status("ended", clock::wall().0)).await?;
        tell(&dialled, &messages, &https, &messages.report(clock::wall().0)).await?;
        let ended = timeout(PATIENCE, closed(&mut socket)).await;
        ended.map_err(|_| CallError::NotEnded)?;
        Ok(send_lag)
    };
    let send_lag = dialled.while_open(hearing).await.map_err(CallFailed::Later)?;
    Ok(Went { handshake, send_lag, ..Went::default() })
}

/// Posts a message about the call; the server must take it.
async fn tell(
    dialled: &Dialled,
    messages: &VapiMessages,
    https: &HttpsClient,
    message: &Value,
) -> Result<(), CallError> {
    let answer = messages.post(https, &dialled.target, &dialled.secret, message).await;
    let status = match answer {
        Ok(answer) => answer.status.as_u16(),
        Err(HttpsError::Connect(error)) => return Err(error.into()),
        Err(error) => return Err(CallError::NotTold(Box::new(error))),
    };
    if status == 200 { Ok(()) } else { Err(CallError::Refused { status }) }
}

/// Waits until the server has ended the call.
async fn closed(socket: &mut AgentCall) {
    while !matches!(socket.recv().await, Ok(Received::Closed { .. }) | Err(_)) {}
}
