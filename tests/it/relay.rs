//! Calls that are passed on: real TLS, a provider that plays what it is sent, agents that behave and agents that do not.

mod conversation;
mod hangup;
mod loss;
mod process;
mod verbatim;

use std::time::Duration;

use callseal::simulate::{AgentCall, AgentServer, Received, Track, TwilioCall};
use serde_json::{Value, json};

use crate::support::{Home, LIMIT, Server, Setup, TENANT, TenantSetup};

/// The agent's secret for our proof.
const SECRET: &str = "agent-secret-0123456789abcdef";

/// A server with the route `agent`, which leads to `agent`.
fn serve(agent: &AgentServer, upstream: &str) -> (Home, Server) {
    serve_with(agent, upstream, Setup::new())
}

fn serve_with(agent: &AgentServer, upstream: &str, setup: Setup) -> (Home, Server) {
    serve_at((agent.address().port(), agent.certificate_pem()), upstream, setup)
}

/// The same for any agent at a port, with its certificate.
fn serve_at((port, certificate): (u16, &str), upstream: &str, setup: Setup) -> (Home, Server) {
    let dir = std::env::temp_dir();
    let ca = dir.join(format!("callseal-test-agent-{}-{port}.pem", std::process::id()));
    std::fs::write(&ca, certificate).unwrap();
    let secret = ca.with_extension("secret");
    crate::support::write_private(&secret, SECRET);
    let secret = secret.display().to_string();
    let setup = setup.option("relay", "ca_file", &format!("{:?}", ca.display().to_string()));
    let setup = setup.tenant(|tenant: &mut TenantSetup| {
        let lines = format!(
            "mode = \"bidirectional\"\n[route.upstream]\nurl = \"wss://localhost:{port}/agent?v=1\"\n\
             secrets = [{{ file = {secret:?} }}]\n{upstream}"
        );
        tenant.routes.push(("agent".to_owned(), lines));
    });
    setup.serve()
}

/// Dials the route and waits for the agent to be reached.
async fn connect(
    server: &Server,
    agent: &mut AgentServer,
    number: u8,
    caller: Track,
) -> (TwilioCall, AgentCall) {
    let plan = server.plan(&format!("{TENANT}/agent"), number, caller);
    let call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    let reached = tokio::time::timeout(LIMIT, agent.call()).await.expect("the agent is dialled").unwrap();
    (call, reached)
}

async fn next(agent: &mut AgentCall) -> Received {
    tokio::time::timeout(LIMIT, agent.recv()).await.expect("something comes").unwrap()
}

async fn next_text(agent: &mut AgentCall) -> String {
    match next(agent).await {
        Received::Text(text) => text,
        other @ (Received::Binary(_) | Received::Closed { .. }) => panic!("text is expected, {other:?} came"),
    }
}

async fn next_of(call: &mut TwilioCall) -> Received {
    tokio::time::timeout(LIMIT, call.recv()).await.expect("something comes").unwrap()
}

/// Reads until the agent has got `connected` and `start`; answers the stream's id.
async fn greeted(agent: &mut AgentCall) -> String {
    assert!(next_text(agent).await.contains("connected"));
    let start: Value = serde_json::from_str(&next_text(agent).await).unwrap();
    start["streamSid"].as_str().unwrap().to_owned()
}

fn media(stream: &str, audio: &[u8]) -> String {
    let payload = callseal::domain::sign::encode_base64(audio);
    json!({"event": "media", "streamSid": stream, "media": {"payload": payload}}).to_string()
}

fn mark(stream: &str, name: &str) -> String {
    json!({"event": "mark", "streamSid": stream, "mark": {"name": name}}).to_string()
}

fn clear(stream: &str) -> String {
    json!({"event": "clear", "streamSid": stream}).to_string()
}

/// Audio that differs from sample to sample and from seed to seed, and is never silence.
fn noise(seed: u32, samples: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x7f
    })
    .take(samples)
    .collect()
}

/// The recording that a server has finished.
const SECOND: Duration = Duration::from_secs(1);
