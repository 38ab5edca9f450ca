//! Who tries what, and the error that comes of it: forged envelopes, key services that lie or refuse, and a keyring that is open
//! to others. Nothing of it ends in a recording, or in somebody hearing one.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use callseal::clock;
use callseal::domain::time::UnixMillis;
use callseal::keys::Envelope;

use super::aws_kms::ARN;
use super::kms::Mood;
use super::node::{Node, SECOND_TENANT};
use super::vault_stub;
use super::world::{ACME, OTHER, World};
use crate::support::{Setup, TENANT};

/// What somebody who can write the store makes of an envelope.
type Forgery = fn(&mut Envelope, &[Envelope; 2]);

/// Who tries what in the store, and the kind of error that comes of it. The two other envelopes are another recording's of
/// the same tenant, and one of another tenant.
const FORGERIES: [(&str, &str, Forgery); 14] = [
    ("another key of the service", "foreign_kek", |envelope, _| {
        envelope.wraps[0].kek = ARN.replace("1234abcd-", "ffffffff-");
    }),
    ("another provider", "foreign_kek", |envelope, _| {
        envelope.wraps[0].provider = "local".to_owned();
        envelope.wraps[0].kek = format!("local/{TENANT}");
    }),
    ("a provider that is none", "foreign_kek", |envelope, _| envelope.wraps[0].provider = "rot13".to_owned()),
    ("the envelope of another recording", "bad_envelope", |envelope, others| *envelope = others[0].clone()),
    ("the envelope of another tenant", "bad_envelope", |envelope, others| *envelope = others[1].clone()),
    ("the wrap of another recording", "bad_envelope", |envelope, others| {
        envelope.wraps.clone_from(&others[0].wraps);
    }),
    ("wrap and key id of another recording", "bad_envelope", |envelope, others| {
        envelope.wraps.clone_from(&others[0].wraps);
        envelope.key_id.clone_from(&others[0].key_id);
    }),
    ("the wrap of another tenant", "bad_envelope", |envelope, others| {
        envelope.wraps.clone_from(&others[1].wraps)
    }),
    ("another key id", "bad_envelope", |envelope, _| envelope.key_id = "00".repeat(16)),
    ("no wrap", "bad_envelope", |envelope, _| envelope.wraps.clear()),
    ("too many wraps", "bad_envelope", |envelope, _| envelope.wraps = vec![envelope.wraps[0].clone(); 9]),
    ("a wrap that is no base64", "bad_envelope", |envelope, _| envelope.wraps[0].blob = "%".to_owned()),
    ("an empty wrap", "bad_envelope", |envelope, _| envelope.wraps[0].blob.clear()),
    ("a wrap that is too long", "bad_envelope", |envelope, _| envelope.wraps[0].blob = "A".repeat(40_000)),
];

/// As [`FORGERIES`], for whoever writes no JSON.
fn damages(whole: &Bytes) -> Vec<(&'static str, Bytes)> {
    let text = String::from_utf8(whole.to_vec()).unwrap();
    let mut damages = vec![
        ("empty", Bytes::new()),
        ("not JSON", Bytes::from_static(b"\xff\xfe{")),
        ("deep", Bytes::from("[".repeat(60_000))),
        ("large", Bytes::from(format!("{text}{}", " ".repeat(100_000)))),
        ("twice the same member", Bytes::from(text.replacen('{', "{\"v\":1,", 1))),
        ("another version", Bytes::from(text.replace("\"v\":1", "\"v\":2"))),
    ];
    let ends = [1, whole.len() / 2, whole.len() - 1];
    damages.extend(ends.map(|end| ("cut off", whole.slice(..end))));
    damages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_attack_has_its_own_error_and_is_counted() {
    let mut node = Node::start(|setup| setup).await;
    node.server.allow("\"recording");
    let victim = node.record(TENANT, 1).await;
    let others =
        [(TENANT, node.record(TENANT, 2).await), (SECOND_TENANT, node.record(SECOND_TENANT, 3).await)];
    let parse = |json: &Bytes| serde_json::from_slice::<Envelope>(json).unwrap();
    let whole = node.envelope(TENANT, &victim).await;
    let mut envelopes = Vec::new();
    for (id, recording) in &others {
        envelopes.push(parse(&node.envelope(id, recording).await));
    }
    let envelopes: [Envelope; 2] = envelopes.try_into().unwrap();
    let link = node.home.grant(TENANT, &victim, &[]);
    let mut attacks: Vec<(&str, &str, Bytes)> =
        damages(&whole).into_iter().map(|(who, json)| (who, "bad_envelope", json)).collect();
    for (who, kind, forge) in FORGERIES {
        let mut envelope = parse(&whole);
        forge(&mut envelope, &envelopes);
        attacks.push((who, kind, Bytes::from(serde_json::to_vec(&envelope).unwrap())));
    }
    for (who, kind, json) in attacks {
        let before = node.errors("open", kind);
        node.replace_envelope(TENANT, &victim, json).await;
        let status = node.play(&link).await;
        assert_eq!(status, if kind == "foreign_kek" { 503 } else { 500 }, "{who}");
        assert!(node.errors("open", kind) > before, "{who} counts as {kind}");
    }
    node.replace_envelope(TENANT, &victim, whole).await;

    for (mood, kind, status) in [
        (Mood::MixUpPlaintexts, "bad_envelope", 500),
        (Mood::Refuse("ThrottlingException"), "throttled", 503),
        (Mood::Refuse("ExpiredTokenException"), "bad_login", 503),
        (Mood::Refuse("AccessDeniedException"), "denied", 503),
        (Mood::Refuse("KMSInternalException"), "unavailable", 503),
    ] {
        let before = node.errors("open", kind);
        node.kms.set_mood(mood);
        assert_eq!(node.play(&link).await, status, "{mood:?}");
        assert!(node.errors("open", kind) > before, "{mood:?} counts as {kind}");
    }
    node.kms.set_mood(Mood::Fine);
    for state in ["Disabled", "PendingDeletion"] {
        let before = node.errors("open", "denied");
        node.kms.set_state(ARN, state);
        assert_eq!(node.play(&link).await, 503, "{state}");
        assert!(node.errors("open", "denied") > before, "{state}");
    }
    node.kms.set_state(ARN, "Enabled");
    assert_eq!(node.play(&link).await, 200, "after all of that");
    let requests = "key_requests_total{provider=\"aws-kms\",operation=\"unwrap\",result=\"denied\"}";
    assert!(node.server.metric(requests) > 0.0, "{}", node.server.metrics());
}

/// The same where each tenant has a key of its own: what is another tenant's names another key.
pub(super) async fn try_forgeries(world: &World) {
    let victim = world.mint(ACME).await.unwrap();
    let (same, others) = (world.mint(ACME).await.unwrap(), world.mint(OTHER).await.unwrap());
    let envelopes = [world.envelope(ACME, same).await, world.envelope(OTHER, others).await];
    let whole = world.envelope(ACME, victim).await;
    for (who, kind, forge) in FORGERIES {
        let mut envelope = whole.clone();
        forge(&mut envelope, &envelopes);
        world.replace_envelope(ACME, victim, serde_json::to_vec(&envelope).unwrap()).await;
        let error = world.open(ACME, victim).await.unwrap_err();
        let wanted = if who == "the wrap of another tenant" { "foreign_kek" } else { kind };
        assert_eq!(error.label(), wanted, "{who}: {error}");
        let everything = UnixMillis(clock::wall().0 + 1);
        assert_eq!(world.rewrap(ACME, Some(everything)).await.failed, 1, "{who} is not moved");
    }
    let json = Bytes::from(serde_json::to_vec(&whole).unwrap());
    for (who, json) in damages(&json) {
        world.replace_envelope(ACME, victim, json.to_vec()).await;
        let error = world.open(ACME, victim).await.unwrap_err();
        assert_eq!(error.label(), "bad_envelope", "{who}: {error}");
    }
    world.replace_envelope(ACME, victim, json.to_vec()).await;
    assert!(world.open(ACME, victim).await.is_ok());
}

#[tokio::test]
async fn forged_envelopes_do_not_open_with_a_keyring() {
    try_forgeries(&World::new("").await).await;
}

#[tokio::test]
async fn forged_envelopes_do_not_open_with_vault() {
    let (vault, world) = super::vault::world(super::vault::BY_TOKEN).await;
    try_forgeries(&world).await;
    let (first, _second) = (world.mint(ACME).await.unwrap(), world.mint(ACME).await.unwrap());
    vault.change(|state| state.mood = vault_stub::Mood::MixUpPlaintexts);
    let error = world.open(ACME, first).await.unwrap_err();
    assert_eq!(error.to_string(), "key envelope does not open: opens to another key");
}

#[tokio::test]
async fn a_keyring_that_others_may_read_is_refused() {
    let (home, mut server) = Setup::new().serve();
    server.allow("keys cannot be used; the old configuration stays");
    let ring = home.data().join("keyring.json");
    fs::set_permissions(&ring, fs::Permissions::from_mode(0o640)).unwrap();
    server.signal("HUP");
    let refused = server.wait_log("keys cannot be used; the old configuration stays", 1).await;
    assert!(refused.field("error").contains("must be for its owner only"), "{}", refused.text);
    let started = home.run(&["serve"]);
    assert!(started.code != Some(0) && started.err.contains("chmod 600"), "{}", started.err);
}
