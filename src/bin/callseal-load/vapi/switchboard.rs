//! Vapi's own end of calls: whom the server dials, and which call it dials for.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use callseal::simulate::{AgentCall, AgentServer, CallError, Received};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::sheet::Sheet;

use super::{Kind, PATIENCE, Socket};

/// What the server says to a client whose other end it has not reached.
const UNREACHABLE: &str = "agent unreachable";

/// Calls that have not been dialled yet, by path.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<HashMap<String, oneshot::Sender<AgentCall>>>>);

/// A simulated Vapi that is dialled.
pub(super) struct Switchboard {
    certificate_pem: String,
    authority: String,
    waiting: Waiting,
    answering: JoinHandle<()>,
}

/// One call that the server is to dial.
pub(super) struct Line {
    pub(super) authority: String,
    path: String,
    waiting: Waiting,
    reached: oneshot::Receiver<AgentCall>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, oneshot::Sender<AgentCall>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Switchboard {
    /// Listens on a free port of this machine with this certificate and key, or with one of its own making.
    ///
    /// # Errors
    /// A certificate or key that cannot be used, no port.
    pub(super) async fn start(identity: Option<(&str, &[u8])>) -> anyhow::Result<Self> {
        let address = (Ipv4Addr::LOCALHOST, 0).into();
        let mut server = match identity {
            Some((certificate, key)) => AgentServer::listen_as(address, certificate, key, None).await?,
            None => AgentServer::start(None).await?,
        };
        let waiting = Waiting::default();
        let (certificate_pem, port) = (server.certificate_pem().to_owned(), server.address().port());
        let calls = waiting.clone();
        let answering = tokio::spawn(async move {
            while let Some(call) = server.call().await {
                let expected = calls.lock().remove(&call.target);
                if let Some(expected) = expected {
                    // Whoever waited may have given up; then the call ends here, as one that nobody expects does.
                    drop(expected.send(call));
                }
            }
        });
        Ok(Self { certificate_pem, authority: format!("localhost:{port}"), waiting, answering })
    }

    pub(super) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns what the server dials for a call.
    pub(super) fn url(&self, call: &str, kind: Kind) -> String {
        format!("wss://{}{}", self.authority, path(call, kind))
    }

    /// Expects that a call is dialled.
    pub(super) fn line(&self, call: &str, kind: Kind) -> Line {
        let (reach, reached) = oneshot::channel();
        let path = path(call, kind);
        self.waiting.lock().insert(path.clone(), reach);
        Line { authority: self.authority.clone(), path, waiting: self.waiting.clone(), reached }
    }
}

impl Drop for Switchboard {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

impl Line {
    /// Waits until the server has dialled.
    pub(super) async fn reached(&mut self) -> Result<AgentCall, CallError> {
        let reached = timeout(PATIENCE, &mut self.reached).await;
        reached.ok().and_then(Result::ok).ok_or(CallError::NotDialled)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.path);
    }
}

impl Socket for AgentCall {
    async fn say(&mut self, message: Vec<u8>) -> Result<(), CallError> {
        Ok(self.send_binary(message).await?)
    }

    async fn hear(&mut self) -> Result<Received, CallError> {
        Ok(self.recv().await?)
    }
}

fn path(call: &str, kind: Kind) -> String {
    format!("/{call}/{}", kind.name())
}

/// Says what a server needs to dial us, where calls failed because it did not.
pub(super) fn note(sheet: &mut Sheet) {
    let not_dialled = CallError::NotDialled.to_string();
    let is_missing = |what: &str| what.contains(&not_dialled) || what.contains(UNREACHABLE);
    if sheet.failures.iter().any(|failure| is_missing(&failure.what)) {
        sheet.notes.push(
            "calls were not dialled: the server needs --vapi-cert as vapi.ca_file, vapi.allow_private_hosts = true, and \
             listen_hosts = [\"localhost\"] in the tenant's [vapi]; its metrics vapi_calls_total, vapi_dials_total and \
             relay_dials_total say more"
                .to_owned(),
        );
    }
}

#[cfg(test)]
mod tests {
    use callseal::simulate::{Endpoint, TlsClient, TranscriberCall};

    use super::*;

    #[tokio::test]
    async fn a_call_reaches_whoever_expects_it_and_nobody_else() {
        let switchboard = Switchboard::start(None).await.unwrap();
        let tls = TlsClient::new(switchboard.certificate_pem().as_bytes()).unwrap();
        let (_, port) = switchboard.authority.split_once(':').unwrap();
        let address = (Ipv4Addr::LOCALHOST, port.parse().unwrap()).into();
        let endpoint = Endpoint::new(address, &format!("wss://{}", switchboard.authority)).unwrap();
        let mut lines = ["a", "b"].map(|call| switchboard.line(call, Kind::Listen));
        assert_eq!(switchboard.url("a", Kind::Transport), format!("wss://localhost:{port}/a/transport"));
        let mut stranger = TranscriberCall::connect(&endpoint, "/c/listen", &[], &tls).await.unwrap();
        assert!(stranger.recv().await.is_err(), "nobody expects it");
        let mut caller = TranscriberCall::connect(&endpoint, "/b/listen", &[], &tls).await.unwrap();
        caller.send_text("hello").await.unwrap();
        let mut reached = lines[1].reached().await.unwrap();
        assert_eq!(reached.hear().await.unwrap(), Received::Text("hello".to_owned()));
        drop(lines);
        assert!(switchboard.waiting.lock().is_empty());
    }
}
