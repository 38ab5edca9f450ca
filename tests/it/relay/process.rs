//! The agent of `examples/agent.rs`, which is a process of its own, and a call whose agent is killed.

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use callseal::domain::sign::{decode_base64, encode_base64};
use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{Direction, Received, Track, TwilioCall};
use serde_json::Value;
use tempfile::TempDir;

use super::{SECRET, next_of, serve_at};
use crate::support::{Home, Server, Setup, TENANT, write_private};

/// The agent, ended when it is dropped.
struct Agent {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    port: u16,
    dir: TempDir,
}

impl Agent {
    /// Starts it as its documentation says, with a secret.
    fn start(secret: &str) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_callseal")).with_file_name("examples").join("agent");
        assert!(program.exists(), "{} is missing: cargo build --example agent", program.display());
        let dir = tempfile::tempdir().unwrap();
        let (certificate, secret_file) = (dir.path().join("agent.pem"), dir.path().join("secret"));
        write_private(&secret_file, secret);
        let mut command = Command::new(program);
        command.arg("127.0.0.1:0").args([&certificate, &secret_file]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = lines.next().unwrap().unwrap();
        let port = listening.rsplit_once(':').unwrap().1.parse().unwrap();
        Self { child, lines, port, dir }
    }

    fn serve(&self, upstream: &str) -> (Home, Server) {
        let certificate = std::fs::read_to_string(self.dir.path().join("agent.pem")).unwrap();
        serve_at((self.port, &certificate), upstream, Setup::new())
    }

    /// Returns what it says next.
    fn says(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    /// Kills it with SIGKILL.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is as good.
        let _killed = self.child.kill().is_ok();
        let _waited = self.child.wait().is_ok();
    }
}

async fn dial(server: &Server) -> TwilioCall {
    let plan = server.plan(&format!("{TENANT}/agent"), 1, Track::whole(DEMO_CALLER));
    let mut call = TwilioCall::connect(plan, &server.tls()).await.unwrap();
    call.greet().await.unwrap();
    call
}

/// The next message of the agent.
async fn said(call: &mut TwilioCall) -> Value {
    match next_of(call).await {
        Received::Text(text) => serde_json::from_str(&text).unwrap(),
        other @ (Received::Binary(_) | Received::Closed { .. }) => panic!("text is expected, {other:?} came"),
    }
}

fn audio(message: &Value) -> Vec<u8> {
    decode_base64(message["media"]["payload"].as_str().unwrap().as_bytes()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_of_the_examples_answers_and_killed_it_gives_the_call_back() {
    let mut agent = Agent::start(SECRET);
    let (home, mut server) = agent.serve("");
    server.allow("agent lost");
    let mut call = dial(&server).await;
    assert!(audio(&said(&mut call).await) == DEMO_AGENT[..24_000], "its greeting");
    assert_eq!(said(&mut call).await["mark"]["name"], "greeting");
    let track = Track::whole(DEMO_CALLER);
    for chunk in 0..51 {
        let timestamp = 102 + 20 * u64::try_from(chunk).unwrap();
        call.send_media(Direction::Inbound, timestamp, track.base64(chunk).unwrap()).await.unwrap();
    }
    let echo = said(&mut call).await;
    assert_eq!(echo["media"]["payload"], encode_base64(&DEMO_CALLER[..160]), "the caller hears himself");
    assert_eq!(agent.says(), "call begins");
    agent.kill();
    let lost = Received::Closed { code: Some(1011), reason: "agent lost".to_owned() };
    assert_eq!(next_of(&mut call).await, lost);
    let recording = server.stored(1).await;
    assert_eq!(home.show(TENANT, &recording)["cause"], "agent-lost");
    let recorded = home.open_ulaw(TENANT, &recording, "caller");
    assert!(recorded[..51 * 160] == DEMO_CALLER[..51 * 160], "nothing is lost of what the caller said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_of_the_examples_answers_nobody_whose_secret_is_another() {
    let mut agent = Agent::start("another secret");
    let (_home, server) = agent.serve("");
    let mut call = dial(&server).await;
    let refused = Received::Closed { code: Some(1008), reason: "unknown caller".to_owned() };
    assert_eq!(next_of(&mut call).await, refused);
    assert_eq!(agent.says(), "refused: not signed with our secret");
}
