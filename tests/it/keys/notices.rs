//! A tenant is told that no key can be had, while none can be had.

use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use tempfile::TempDir;

use super::http::Way;
use super::node::Node;
use crate::support::{TENANT, eventually};
use crate::webhooks::receiver::{Identity, Receiver};
use crate::webhooks::world::{free_port, table};

fn has(receiver: &Receiver, kind: &str) -> Option<serde_json::Value> {
    receiver.got().iter().find(|got| got.kind() == kind).map(|got| got.json())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_is_told_that_no_key_can_be_had_while_none_can_be_had() {
    let (dir, port) = (TempDir::new().unwrap(), free_port());
    let identity = Identity::new(dir.path(), "receiver");
    let receiver = identity.listen(port).await;
    let mut node = Node::start(|setup| {
        let ca_file = format!("{:?}", identity.ca_file.display().to_string());
        let webhook = table(dir.path(), &format!("https://localhost:{port}/"), "");
        setup.option("webhook", "ca_file", &ca_file).tenant(|tenant| tenant.playback = webhook)
    })
    .await;
    for text in ["cannot mint a key ahead", "no key for a new call"] {
        node.server.allow(text);
    }
    node.record(TENANT, 1).await;
    eventually("a notice", || has(&receiver, "recording.complete")).await;
    node.kms.http.set_way(Way::Closed);
    // The keys that were made ahead last for some calls.
    let mut refused = 0;
    for number in 2..30 {
        let path = format!("{TENANT}/reception");
        let plan = node.server.plan(&path, number, Track::whole(&DEMO_CALLER[..800]));
        match TwilioCall::connect(plan, &node.server.tls()).await {
            Ok(call) => drop(call.run(|_| ()).await.unwrap()),
            Err(_) => refused += 1,
        }
        if refused == 2 {
            break;
        }
    }
    assert_eq!(refused, 2);
    let unavailable = eventually("the notice of the key", || has(&receiver, "key.unavailable")).await;
    assert!(unavailable["reason"].is_string() && unavailable.get("recording").is_none(), "{unavailable}");
    let blocked = eventually("the notice of the call", || has(&receiver, "recording.blocked")).await;
    assert_eq!((&blocked["reason"], &blocked["route"]), (&"no-key".into(), &"reception".into()));
    let count = |kind: &str| receiver.got().iter().filter(|got| got.kind() == kind).count();
    eventually("a notice for each call", || (count("recording.blocked") == 2).then_some(())).await;
    assert!((1..=2).contains(&count("key.unavailable")), "once in five minutes");
}
