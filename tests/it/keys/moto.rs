//! AWS KMS as moto imitates it: the protocol, contexts and moving of a server that others wrote. It does not refuse disabled
//! keys, so that this is no evidence for states of keys.

use std::fs;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::{BehaviorVersion, Builder, Credentials, Region};
use callseal::clock;
use callseal::domain::time::UnixMillis;
use callseal::keys::KeyError;

use super::world::{ACME, OTHER, World, kms_tables};

/// Finds moto, as `scripts/key-servers` described it.
///
/// # Panics
/// When it is missing and `CI` is `true`.
fn endpoint() -> Option<String> {
    let variable = |name| std::env::var_os(name).and_then(|value| value.into_string().ok());
    let Some(path) = variable("TEST_KMS_MOTO").filter(|path| !path.is_empty()) else {
        let is_ci = variable("CI").is_some_and(|ci| ci == "true");
        assert!(!is_ci, "TEST_KMS_MOTO is not set; scripts/test starts moto and sets it");
        println!("SKIPPED, nothing was checked: TEST_KMS_MOTO is not set; see scripts/key-servers");
        return None;
    };
    let text = fs::read_to_string(&path).unwrap();
    let endpoint = text.lines().find_map(|line| line.strip_prefix("KMS_ENDPOINT="));
    Some(endpoint.expect("the server's file has an endpoint").to_owned())
}

/// Makes a key; answers its ARN.
async fn make_key(endpoint: &str) -> String {
    let config = Builder::new()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .region(Region::new("eu-central-1"))
        .credentials_provider(Credentials::new("id", "secret", None, None, "tests"))
        .endpoint_url(endpoint)
        .build();
    let made = Client::from_conf(config).create_key().send().await.unwrap();
    made.key_metadata().unwrap().arn().unwrap().to_owned()
}

#[tokio::test]
async fn keys_are_wrapped_opened_and_moved() {
    let Some(endpoint) = endpoint() else { return };
    let (first, second) = (make_key(&endpoint).await, make_key(&endpoint).await);
    let world = World::new(&kms_tables(&endpoint, &first)).await;
    let recording = world.mint(ACME).await.unwrap();
    let key = world.open(ACME, recording).await.unwrap();

    let now = UnixMillis(clock::wall().0 + 1);
    let report = world.rewrap(ACME, Some(now)).await;
    assert_eq!((report.moved > 0, report.failed), (true, 0), "{report:?}");
    assert_eq!(world.open(ACME, recording).await.unwrap(), key);

    let former = format!("former_keks = [{{ provider = \"aws-kms\", kek = {first:?} }}]\n[aws_kms]");
    let world = world.with_node(&kms_tables(&endpoint, &second).replace("[aws_kms]", &former));
    let report = world.rewrap(ACME, None).await;
    assert_eq!((report.moved > 0, report.failed), (true, 0), "{report:?}");
    assert_eq!(world.open(ACME, recording).await.unwrap(), key);
}

#[tokio::test]
async fn wrong_contexts_keys_and_bytes_are_refused() {
    let Some(endpoint) = endpoint() else { return };
    let (first, second) = (make_key(&endpoint).await, make_key(&endpoint).await);
    let world = World::new(&kms_tables(&endpoint, &first)).await;
    let (one, two) = (world.mint(ACME).await.unwrap(), world.mint(ACME).await.unwrap());
    let others = world.mint(OTHER).await.unwrap();
    let whole = world.envelope(ACME, one).await;
    // The wrap of another recording, of another tenant, of another key, and a changed byte.
    let mut swaps = vec![
        world.envelope(ACME, two).await.wraps[0].clone(),
        world.envelope(OTHER, others).await.wraps[0].clone(),
    ];
    let mut changed = whole.wraps[0].clone();
    let last = if changed.blob.ends_with("A=") { "B=" } else { "A=" };
    changed.blob.replace_range(changed.blob.len() - 2.., last);
    swaps.push(changed);
    for wrap in swaps {
        let mut envelope = whole.clone();
        envelope.wraps[0] = wrap;
        world.replace_envelope(ACME, one, serde_json::to_vec(&envelope).unwrap()).await;
        let error = world.open(ACME, one).await.unwrap_err();
        assert!(matches!(error, KeyError::BadEnvelope(_)), "{error}");
    }
    let mut envelope = whole.clone();
    envelope.wraps[0].kek.clone_from(&second);
    world.replace_envelope(ACME, one, serde_json::to_vec(&envelope).unwrap()).await;
    assert!(matches!(world.open(ACME, one).await, Err(KeyError::ForeignKek)));
    world.replace_envelope(ACME, one, serde_json::to_vec(&whole).unwrap()).await;
    assert!(world.open(ACME, one).await.is_ok());
}
