//! Whom a node connects to: as the kernel sees it while it works, and where in the sources anything is dialled at all.

use std::collections::BTreeSet;
use std::fs;

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{AgentServer, Received, Track, TwilioCall};

use super::{root, rust_files};
use crate::support::{LIMIT, Setup, TENANT, eventually};
use crate::webhooks::receiver::Identity;
use crate::webhooks::world::table;

/// What opens connections, or finds addresses for them.
const DIALS: [&str; 8] = [
    "TcpStream::connect",
    "HttpConnector",
    "lookup_host",
    "Client::from_conf",
    "UdpSocket",
    "UnixStream",
    "aws_config::",
    "reqwest",
];

/// Where that is, and what says whom: each is a table of the configuration, or a ticket or webhook that has to be signed.
const DIALLERS: [(&str, &str); 11] = [
    ("admin/jwt/fetch.rs", "admin_jwt.jwks_url"),
    ("aws/credentials.rs", "where AWS's own tools look for credentials, if none are given"),
    ("aws/mod.rs", "how long the clients of AWS wait; dials nobody"),
    ("cli/top/fetch.rs", "a command, no node: the --url of callseal top, or listen.ops"),
    ("ingest/hangup.rs", "relay.twilio_api"),
    ("keys/aws_kms.rs", "keys.kek, aws_kms"),
    ("keys/vault/http.rs", "vault.address"),
    ("notices/post.rs", "a tenant's webhook.url"),
    ("observe/traces/post.rs", "traces.endpoint"),
    ("relay/dial.rs", "a route's upstream; for Vapi what its signed webhook names below vapi.listen_hosts"),
    ("store/s3/client.rs", "store"),
];

#[test]
fn a1_connections_are_opened_in_these_places_only() {
    let src = root().join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let mut found = BTreeSet::new();
    for file in files {
        let path = file.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let is_ours = !["simulate/", "bin/", "cli/demo"].iter().any(|other| path.starts_with(other));
        let text = fs::read_to_string(&file).unwrap();
        let mut code = text.lines().take_while(|line| *line != "#[cfg(test)]");
        if is_ours && code.any(|line| DIALS.iter().any(|word| line.contains(word))) {
            found.insert(path);
        }
    }
    assert_eq!(found, DIALLERS.iter().map(|(path, _)| (*path).to_owned()).collect());
}

/// Reads the port of an internet address out of a line of strace; `None` for lines without one.
fn port(line: &str) -> Option<u16> {
    let (_, after) = line.split_once("_port=htons(")?;
    after.split_once(')')?.0.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a1_a_node_connects_to_hosts_of_its_configuration_only() {
    let (dir, mut agent) = (tempfile::tempdir().unwrap(), AgentServer::start(None).await.unwrap());
    let identity = Identity::new(dir.path(), "receiver");
    let receiver = identity.listen(0).await;
    let (agent_ca, trace) = (dir.path().join("agent.pem"), dir.path().join("connects"));
    fs::write(&agent_ca, agent.certificate_pem()).unwrap();
    let quoted = |path: &std::path::Path| format!("{:?}", path.display().to_string());
    let (agent_port, hook_port) = (agent.address().port(), receiver.port);
    let home = Setup::new()
        .option("relay", "ca_file", &quoted(&agent_ca))
        .option("webhook", "ca_file", &quoted(&identity.ca_file))
        .option("webhook", "scan_interval_secs", "1")
        .tenant(|tenant| {
            tenant.playback = table(dir.path(), &format!("https://localhost:{hook_port}/hooks"), "");
            let lines = format!(
                "mode = \"bidirectional\"\n[route.upstream]\nurl = \"wss://localhost:{agent_port}/\""
            );
            tenant.routes.push(("agent".to_owned(), lines));
        })
        .write();
    let trace_name = trace.display().to_string();
    let strace = ["strace", "-D", "-f", "-q", "-e", "trace=connect", "-o", &trace_name];
    let Some(mut server) = home.serve_under(&strace) else {
        println!("skipped: no strace, or nothing may be traced");
        return;
    };
    let call = async |number: u8, route: &str| {
        let plan = server.plan(&format!("{TENANT}/{route}"), number, Track::whole(&DEMO_CALLER[..16_000]));
        TwilioCall::connect(plan, &server.tls()).await.unwrap()
    };
    call(1, "reception").await.run(|_| ()).await.unwrap();
    let passed_on = call(2, "agent").await;
    let reached = tokio::time::timeout(LIMIT, agent.call()).await.expect("the agent is dialled");
    let mut reached = reached.unwrap();
    let hearing = tokio::spawn(async move {
        while reached.recv().await.is_ok_and(|received| !matches!(received, Received::Closed { .. })) {}
    });
    passed_on.run(|_| ()).await.unwrap();
    server.stored(2).await;
    hearing.abort();
    let recording = home.recordings(TENANT).remove(0);
    let link = home.grant(TENANT, &recording, &[]);
    assert_eq!(server.https().get(&link, &[]).await.unwrap().status, 200);
    eventually("notices of both calls", || (receiver.got().len() >= 2).then_some(())).await;
    server.stop().await;

    // Short ids are filled up with spaces.
    let pid = server.pid().to_string();
    let is_over = |line: &str| line.strip_prefix(&pid).is_some_and(|l| l.trim() == "+++ exited with 0 +++");
    let whole = || fs::read_to_string(&trace).ok().filter(|text| text.lines().any(is_over));
    let whole = eventually("the end of the trace", whole).await;
    let mut ports = BTreeSet::new();
    for line in whole.lines().filter(|line| line.contains("connect(")) {
        // The library that resolves names asks a cache on this machine, and tries addresses without sending anything.
        if line.contains("AF_UNSPEC") || line.contains("\"/var/run/nscd/socket\"") {
            continue;
        }
        let is_here = line.contains("inet_addr(\"127.") || line.contains("\"::1\"");
        assert!(is_here, "{line}");
        ports.extend(port(line));
    }
    ports.remove(&0);
    assert_eq!(ports, BTreeSet::from([agent_port, hook_port]));
}
