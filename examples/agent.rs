//! An agent behind callseal, as small as one can be: it greets the caller, then repeats what it hears.
//!
//! It listens with a certificate of its own making for `localhost`, which it writes to the given file; name that file in
//! `relay.ca_file`. With a secret it answers only calls that are signed with it (`upstream.secrets`, docs/TWILIO.md).
//!
//! ```text
//! cargo run --example agent -- 127.0.0.1:9800 agent.pem [SECRET-FILE]
//! ```

use std::time::Duration;

use anyhow::{Context, bail};
use callseal::domain::relay_proof::{
    PROOF_HEADER, Proof, ROUTE_HEADER, STREAM_HEADER, TENANT_HEADER, TIMESTAMP_HEADER,
};
use callseal::domain::sign::{encode_base64, equal};
use callseal::simulate::speech::DEMO_AGENT;
use callseal::simulate::{AgentCall, AgentServer, Received};
use serde_json::{Value, json};

/// How old a signature may be.
const MAX_AGE_SECS: u64 = 300;
/// How much is said in the greeting: three seconds at 8,000 samples a second.
const GREETING_SAMPLES: usize = 24_000;
/// The caller hears himself so much later: 50 messages of 20 ms.
const ECHO_DELAY: usize = 50;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "says what it does")]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (address, certificate_file, secret_file) = match arguments.as_slice() {
        [address, certificate] => (address, certificate, None),
        [address, certificate, secret] => (address, certificate, Some(secret)),
        _ => bail!("usage: agent ADDRESS:PORT CERTIFICATE-FILE [SECRET-FILE]"),
    };
    let secret = secret_file.map(std::fs::read_to_string).transpose().context("SECRET-FILE")?;
    let secret = secret.map(|secret| secret.trim_end().to_owned());
    let mut server = AgentServer::listen(address.parse().context("ADDRESS:PORT")?, "localhost", None).await?;
    std::fs::write(certificate_file, server.certificate_pem()).context("CERTIFICATE-FILE")?;
    println!("listening on wss://localhost:{}", server.address().port());
    while let Some(call) = server.call().await {
        let secret = secret.clone();
        tokio::spawn(async move {
            if secret.is_some_and(|secret| !is_ours(&call, &secret)) {
                println!("refused: not signed with our secret");
                return drop(call.close(1008, "unknown caller").await);
            }
            println!("call begins");
            match talk(call).await {
                Ok(()) => println!("call ends"),
                Err(error) => println!("call ends: {error:#}"),
            }
        });
    }
    Ok(())
}

/// Checks the signature of callseal.
fn is_ours(call: &AgentCall, secret: &str) -> bool {
    let header =
        |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let timestamp: u64 = header(TIMESTAMP_HEADER).parse().unwrap_or(0);
    let proof = Proof {
        timestamp,
        tenant: header(TENANT_HEADER),
        route: header(ROUTE_HEADER),
        stream: header(STREAM_HEADER),
        target: &call.target,
    };
    let expected = proof.signatures(&[secret.as_bytes()]);
    let is_signed = header(PROOF_HEADER).split(',').any(|one| equal(expected.as_bytes(), one.as_bytes()));
    let now = callseal::clock::wall().0 / 1000;
    is_signed && now.abs_diff(timestamp) <= MAX_AGE_SECS
}

/// Greets, then sends back what the caller says, one second later; stops talking when a key is pressed.
async fn talk(mut call: AgentCall) -> anyhow::Result<()> {
    let mut stream = String::new();
    let mut heard: std::collections::VecDeque<String> = std::collections::VecDeque::new();
    loop {
        let received = tokio::time::timeout(Duration::from_secs(60), call.recv()).await;
        let text = match received.context("nothing was heard for a minute")?? {
            Received::Text(text) => text,
            Received::Binary(_) => continue,
            Received::Closed { .. } => return Ok(()),
        };
        let message: Value = serde_json::from_str(&text).unwrap_or_default();
        let field = |path: &str| message.pointer(path).and_then(Value::as_str).unwrap_or_default();
        match field("/event") {
            "start" => {
                field("/streamSid").clone_into(&mut stream);
                let audio = DEMO_AGENT.get(..GREETING_SAMPLES).unwrap_or(DEMO_AGENT);
                call.send_text(media(&stream, &encode_base64(audio))).await?;
                let mark = json!({"event": "mark", "streamSid": stream, "mark": {"name": "greeting"}});
                call.send_text(mark.to_string()).await?;
            }
            "media" => {
                heard.push_back(field("/media/payload").to_owned());
                if heard.len() > ECHO_DELAY
                    && let Some(payload) = heard.pop_front()
                {
                    call.send_text(media(&stream, &payload)).await?;
                }
            }
            "dtmf" => {
                heard.clear();
                call.send_text(json!({"event": "clear", "streamSid": stream}).to_string()).await?;
            }
            _ => {}
        }
    }
}

fn media(stream: &str, payload: &str) -> String {
    json!({"event": "media", "streamSid": stream, "media": {"payload": payload}}).to_string()
}
