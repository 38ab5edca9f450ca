//! What a node that only records leaves to others is done by them: notices, and orders about its calls.

use callseal::simulate::{Track, TwilioCall};
use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use super::recipient::Nodes;
use crate::support::socket::{greeting, media, stop, stream_id};
use crate::support::{Server, TENANT, eventually};
use crate::webhooks::receiver::Identity;
use crate::webhooks::world::{free_port, table};

const PATH: &str = "acme-dental/reception";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_only_records_writes_notices_and_another_delivers_them() {
    let (dir, port) = (TempDir::new().unwrap(), free_port());
    let identity = Identity::new(dir.path(), "receiver");
    let url = format!("https://localhost:{port}/hooks");
    let with_secrets = table(dir.path(), &url, "");
    let without = with_secrets.lines().filter(|line| !line.starts_with("secrets")).collect::<Vec<_>>();
    let ca_file = format!("{:?}", identity.ca_file.display().to_string());
    let nodes = Nodes::with(
        |setup| setup.tenant(|tenant| tenant.playback = without.join("\n")),
        |setup| {
            let setup =
                setup.option("webhook", "ca_file", &ca_file).option("webhook", "scan_interval_secs", "1");
            setup.tenant(|tenant| tenant.playback = with_secrets.clone())
        },
    );
    let receiver = identity.listen(port).await;
    let mut ingest = nodes.ingest.serve();
    let plan = ingest.plan(PATH, 1, Track::whole([0x42; 8_000]));
    TwilioCall::connect(plan, &ingest.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let recording = ingest.stored(1).await;
    eventually("a notice in the outbox", || (ingest.metric("notices_made_total") >= 1.0).then_some(())).await;
    ingest.stop().await;
    assert_eq!(receiver.connections(), 0, "a node without the secret dials nobody");
    let mut playback = nodes.playback.serve();
    let told = || receiver.got().into_iter().find(|got| got.kind() == "recording.complete");
    assert_eq!(eventually("the notice", told).await.json()["recording"], recording.as_str());
    playback.stop().await;
}

/// Asks the admin API of the node that opens.
async fn order(playback: &Server, token: &str, path: &str) -> (u16, Value) {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let answer = playback.admin().request(Method::POST, path, &headers, "{}".into()).await.unwrap();
    (answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_only_records_obeys_orders_of_one_that_opens() {
    let nodes = Nodes::with(
        |setup| setup.option("segments", "max_age_ms", "1000"),
        |setup| setup.option("admin", "tokens_file", "\"tokens.toml\""),
    );
    let made = ["token", "create", "--name", "ops", "--role", "ingest", "--tenant", TENANT];
    let token = nodes.playback.run_ok(&made).trim().to_owned();
    let (mut ingest, mut playback) = (nodes.ingest.serve(), nodes.playback.serve());
    let (mut socket, stream) = (ingest.open(PATH).await, stream_id(1));
    for text in greeting(1) {
        socket.text(text).await;
    }
    for chunk in 1..=50 {
        socket.text(media(&stream, chunk, 0x11)).await;
    }
    socket.settle().await;
    let recording = eventually("a stored segment", || nodes.playback.recordings(TENANT).pop()).await;
    let path = format!("/v1/tenants/{TENANT}/recordings/{recording}/pause");
    let (status, asked) = order(&playback, &token, &path).await;
    assert_eq!((status, &asked["state"]), (202, &"requested".into()), "{asked}");
    eventually("the pause", || (ingest.metric("streams_paused") == 1.0).then_some(())).await;
    for chunk in 51..=100 {
        socket.text(media(&stream, chunk, 0x22)).await;
    }
    socket.text(stop(&stream)).await;
    socket.close(None).await;
    assert_eq!(ingest.stored(1).await, recording);
    let heard = nodes.playback.open_ulaw(TENANT, &recording, "caller");
    assert!(heard.starts_with(&[0x11; 8_000]) && !heard.contains(&0x22), "{} bytes", heard.len());
    ingest.stop().await;
    playback.stop().await;
}
