//! What a node that only records leaves to others is done by them: index entries, notices, and orders about its calls.

use std::collections::BTreeMap;
use std::path::Path;

use callseal::simulate::{Track, TwilioCall};
use hyper::Method;
use serde_json::Value;
use tempfile::TempDir;

use super::recipient::Nodes;
use crate::support::socket::{greeting, media, stop, stream_id};
use crate::support::{Home, Server, TENANT, eventually, files_below};
use crate::webhooks::receiver::Identity;
use crate::webhooks::world::{free_port, table};

const PATH: &str = "acme-dental/reception";
const CALLER: &str = "+4930901820017";
const BY: [&str; 4] = ["--actor", "j.doe", "--reason", "request 17"];

fn found(home: &Home, more: &[&str]) -> Vec<Value> {
    home.run_json(&[&["recordings", "list", "--tenant", TENANT, "--json"][..], &BY, more].concat())
}

/// Names of the index, below its tenant.
fn index(store: &Path) -> Vec<String> {
    let names = files_below(&store.join("x")).into_iter();
    names.map(|(path, _)| path.strip_prefix(store).unwrap().display().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_is_found_by_number_once_a_node_that_opens_has_seen_it() {
    let nodes = Nodes::with(|setup| setup, |setup| setup.option("repair", "interval_secs", "1"));
    let mut ingest = nodes.ingest.serve();
    let mut plan = ingest.plan(PATH, 1, Track::whole(vec![0x42; 8_000]));
    plan.parameters = BTreeMap::from([("From".to_owned(), CALLER.to_owned())]);
    let call = plan.ids.call.clone();
    TwilioCall::connect(plan, &ingest.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let recording = ingest.stored(1).await;
    let store = nodes.store.path();
    let wanted = format!("/wanted/{recording}");
    let left = index(store);
    assert!(
        left.len() == 1 && left[0].ends_with(&wanted),
        "a request, and nothing made with a key: {left:?}"
    );
    assert!(found(&nodes.playback, &["--party", CALLER]).is_empty());

    let mut playback = nodes.playback.serve();
    let is_done = || index(store).iter().all(|name| !name.contains("wanted")).then_some(());
    eventually("the request is done", is_done).await;
    for term in [["--party", CALLER], ["--call", &call]] {
        let found = found(&nodes.playback, &term);
        assert_eq!(found.len(), 1, "{term:?}");
        assert_eq!(found[0]["recording"], recording.as_str());
    }
    assert_eq!(ingest.metric("index_failures_total") + playback.metric("index_failures_total"), 0.0);
    ingest.stop().await;
    playback.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_a_recording_that_is_deleted_goes_away() {
    let nodes = Nodes::with(|setup| setup, |setup| setup.option("repair", "interval_secs", "1"));
    let mut ingest = nodes.ingest.serve();
    let plan = ingest.plan(PATH, 1, Track::whole(vec![0x42; 8_000]));
    TwilioCall::connect(plan, &ingest.tls()).await.unwrap().run(|_| ()).await.unwrap();
    let recording = ingest.stored(1).await;
    ingest.stop().await;
    let delete = ["recordings", "delete", "--tenant", TENANT, "--recording", &recording, "--yes"];
    nodes.playback.run_ok(&[&delete[..], &BY].concat());
    nodes.playback.run_ok(&["sweep", "--yes"]);
    let mut playback = nodes.playback.serve();
    let is_empty = || index(nodes.store.path()).is_empty().then_some(());
    eventually("nothing is left in the index", is_empty).await;
    playback.stop().await;
}

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
    let plan = ingest.plan(PATH, 1, Track::whole(vec![0x42; 8_000]));
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
