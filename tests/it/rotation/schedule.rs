//! Keys that have become too old: told, or rotated by the node itself.

use std::fs;

use callseal::config::KeyProviderKind;
use serde_json::Value;

use super::record;
use crate::support::{Home, Setup, TENANT, eventually};

/// Makes the keys of a home's keyring older than any policy allows.
fn age_keys(home: &Home) {
    let file = home.data().join("keyring.json");
    let mut ring: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for kek in ring["keks"].as_array_mut().unwrap() {
        kek["created"] = "2024-01-01T00:00:00Z".into();
    }
    fs::write(&file, ring.to_string()).unwrap();
}

fn newest_version(home: &Home) -> u64 {
    let ring: Value = serde_json::from_slice(&fs::read(home.data().join("keyring.json")).unwrap()).unwrap();
    ring["keks"].as_array().unwrap().iter().map(|kek| kek["version"].as_u64().unwrap()).max().unwrap()
}

#[tokio::test]
async fn an_old_key_is_told_and_never_rotated_behind_anybodys_back() {
    let home = Setup::new().write();
    age_keys(&home);
    let mut server = home.serve();
    let told = server.wait_log("key should have been rotated; see: callseal keys rotate", 1).await;
    assert_eq!((told.field("level"), told.field("tenant")), ("WARN", TENANT));
    server.allow("key should have been rotated");
    eventually("the metrics", || (server.metric("keks_due") > 0.0).then_some(())).await;
    assert!(server.metric("kek_oldest_age_seconds") > 2.0 * 365.0 * 86_400.0);
    assert_eq!(server.metric("keks_of_unknown_age").to_string(), "0");
    assert_eq!(newest_version(&home), 1);
    let status = home.run_json(&["keys", "status", "--json"]).remove(0);
    assert_eq!((&status["rotate_after_days"], &status["due"]), (&365.into(), &true.into()), "{status}");
    assert!(home.run_ok(&["keys", "status"]).contains("should have been rotated"));
}

#[tokio::test]
async fn a_tenant_has_its_own_age_and_zero_is_never() {
    for (own, due) in [("0", 0.0), ("3650", 0.0), ("30", 1.0)] {
        let never = Setup::new().option("keys", "rotate_after_days", if due > 0.0 { "0" } else { "1" });
        let home =
            never.tenant(|tenant| tenant.top = format!("keys = {{ rotate_after_days = {own} }}")).write();
        age_keys(&home);
        let mut server = home.serve();
        server.allow("key should have been rotated");
        eventually("the metrics", || server.metrics().contains("keks_due ").then_some(())).await;
        assert_eq!(server.metric("keks_due").to_string(), due.to_string(), "rotate_after_days = {own}");
    }
}

#[tokio::test]
async fn a_node_that_may_makes_a_new_version_and_uses_it() {
    let home = Setup::new().option("keys", "rotate", "\"auto\"").write();
    age_keys(&home);
    let mut server = home.serve();
    server.allow("a new version of a key was made");
    let made =
        server.wait_log("a new version of a key was made; copy the keyring to where its backup is", 1).await;
    assert_eq!(made.json["version"], 2);
    server.wait_log("keyring was read again", 1).await;
    let recording = record(&server, 1).await;
    let envelopes = crate::support::files_below(&home.data().join("store/k"));
    let (_, envelope) =
        envelopes.iter().find(|(path, _)| path.to_str().unwrap().contains(&recording)).unwrap();
    let envelope: Value = serde_json::from_slice(envelope).unwrap();
    let wrap = &envelope["wraps"][0];
    assert_eq!(
        (&wrap["provider"], &wrap["kek_version"]),
        (&KeyProviderKind::Local.name().into(), &"2".into())
    );
    assert_eq!(newest_version(&home), 2);
    assert_eq!(server.logged("key should have been rotated; see: callseal keys rotate").len(), 0);
    let audit = home.run_ok(&["audit", "show", "--tenant", TENANT]);
    assert!(audit.contains("keys-rotate") && audit.contains("days old"), "{audit}");
    let status = home.run_json(&["keys", "status", "--json"]).remove(0);
    assert_eq!(status["due"], false, "{status}");
}

#[tokio::test]
async fn nodes_that_share_a_keyring_make_one_new_version() {
    let home = Setup::new().option("keys", "rotate", "\"auto\"").write();
    age_keys(&home);
    let mut first = home.serve();
    // Another journal and certificate, the same keyring and store.
    let other = home.sibling("other");
    let mut second = other.serve();
    for server in [&mut first, &mut second] {
        server.allow("a new version of a key was made");
    }
    for server in [&first, &second] {
        server.wait_log("keyring was read again", 1).await;
    }
    assert_eq!(newest_version(&home), 2);
    let recording = record(&first, 1).await;
    let link = home.grant(TENANT, &recording, &[]);
    assert_eq!(second.https().get(&link, &[]).await.unwrap().status.as_u16(), 200);
}
