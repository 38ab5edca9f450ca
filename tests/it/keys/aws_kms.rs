//! What callseal asks of AWS KMS, and what it makes of its answers.

use std::time::Duration;

use callseal::clock;
use callseal::domain::time::UnixMillis;
use callseal::keys::KeyError;

use super::http::Way;
use super::kms::{FakeKms, Mood};
use super::world::{ACME, OTHER, World, kms_tables};

pub(super) const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
pub(super) const OWN: &str = "arn:aws:kms:eu-west-1:444455556666:key/mrk-1234abcd12ab34cd56ef1234567890ab";

async fn world() -> (FakeKms, World) {
    let kms = FakeKms::start(&[ARN, OWN]).await;
    let world = World::new(&kms_tables(&kms.http.url(), ARN)).await;
    (kms, world)
}

#[tokio::test]
async fn a_key_is_wrapped_with_opaque_ids_and_opened_again() {
    let (kms, world) = world().await;
    let recording = world.mint(ACME).await.unwrap();
    let key = world.open(ACME, recording).await.unwrap();
    let asked = kms.asked();
    let operations: Vec<_> = asked.iter().map(|(operation, _)| operation.as_str()).collect();
    assert_eq!(operations, ["Encrypt", "Decrypt", "Decrypt"], "a wrap is opened before it is relied on");
    for (_, body) in &asked {
        assert_eq!(body["KeyId"], ARN);
        let context = body["EncryptionContext"].as_object().unwrap();
        assert_eq!(context["cmr:recording"], recording.to_string());
        assert_eq!(context["cmr:key_id"], key);
        assert_eq!(context["cmr:purpose"], "recording-dek");
        assert_eq!(context.len(), 4);
        assert!(!body["EncryptionContext"].to_string().contains(ACME), "{body}");
    }
    let wrap = world.envelope(ACME, recording).await.wraps.remove(0);
    assert_eq!((wrap.provider.as_str(), wrap.kek.as_str()), ("aws-kms", ARN));
    assert_eq!(wrap.kek_version, "unversioned");
}

#[tokio::test]
async fn a_tenant_with_its_own_key_has_no_other() {
    let (kms, world) = world().await;
    let before = world.mint(ACME).await.unwrap();
    world.write_tenant(ACME, &format!("provider = \"aws-kms\"\nkek = {OWN:?}"));
    let own = world.mint(ACME).await.unwrap();
    assert_eq!(world.envelope(ACME, own).await.wraps[0].kek, OWN);
    let others = world.mint(OTHER).await.unwrap();
    assert_eq!(world.envelope(OTHER, others).await.wraps[0].kek, ARN);
    // Not named as a former one.
    assert!(matches!(world.open(ACME, before).await, Err(KeyError::ForeignKek)));

    kms.set_state(OWN, "Disabled");
    let asked = kms.asked().len();
    assert!(matches!(world.mint(ACME).await, Err(KeyError::Denied { .. })));
    assert!(matches!(world.open(ACME, own).await, Err(KeyError::Denied { .. })));
    let since = kms.asked().split_off(asked);
    assert!(since.iter().all(|(_, body)| body["KeyId"] == OWN), "no other key is tried: {since:?}");
    assert!(world.open(OTHER, others).await.is_ok());
}

#[tokio::test]
async fn keys_move_from_the_keyring_to_kms_and_on_without_leaving_it() {
    let (kms, world) = world().await;
    let tables = kms_tables(&kms.http.url(), ARN);
    let world = world.with_node("");
    let recording = world.mint(ACME).await.unwrap();
    let key = world.open(ACME, recording).await.unwrap();
    let former = "former_keks = [{ provider = \"local\" }]\n[aws_kms]";
    let world = world.with_node(&tables.replace("[aws_kms]", former));
    assert_eq!(world.open(ACME, recording).await.unwrap(), key, "former keys open what they have wrapped");
    let report = world.rewrap(ACME, None).await;
    assert_eq!((report.moved > 0, report.failed), (true, 0), "{report:?}");
    assert_eq!(world.open(ACME, recording).await.unwrap(), key);

    // To another key of the same region.
    let second = ARN.replace("1234abcd-", "2222abcd-");
    kms.set_state(&second, "Enabled");
    let former = format!("former_keks = [{{ provider = \"aws-kms\", kek = {ARN:?} }}]\n[aws_kms]");
    let tables = kms_tables(&kms.http.url(), &second).replace("[aws_kms]", &former);
    let world = world.with_node(&tables);
    let asked = kms.asked().len();
    let report = world.rewrap(ACME, None).await;
    assert_eq!((report.moved > 0, report.failed), (true, 0), "{report:?}");
    let moves: Vec<_> = kms
        .asked()
        .split_off(asked)
        .into_iter()
        .filter(|(_, body)| body["SourceEncryptionContext"]["cmr:recording"] == recording.to_string())
        .collect();
    assert_eq!(moves.len(), 1);
    assert_eq!(
        (&moves[0].1["SourceKeyId"], &moves[0].1["DestinationKeyId"]),
        (&ARN.into(), &second.as_str().into())
    );
    assert_eq!(world.open(ACME, recording).await.unwrap(), key);

    // Under the same key, what is old enough moves to newer material once.
    let now = UnixMillis(clock::wall().0 + 1);
    assert!(world.rewrap(ACME, None).await.moved == 0);
    assert!(world.rewrap(ACME, Some(UnixMillis(0))).await.moved == 0);
    let report = world.rewrap(ACME, Some(now)).await;
    assert_eq!((report.moved > 0, report.failed), (true, 0), "{report:?}");
    assert_eq!(world.open(ACME, recording).await.unwrap(), key);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let (kms, world) = world().await;
    let recording = world.mint(ACME).await.unwrap();
    for (code, label, attempts) in [
        ("AccessDeniedException", "denied", 1),
        ("DisabledException", "denied", 1),
        ("KMSInvalidStateException", "denied", 1),
        ("NotFoundException", "denied", 1),
        ("InvalidKeyUsageException", "denied", 1),
        ("ValidationException", "denied", 1),
        ("InvalidCiphertextException", "bad_envelope", 1),
        ("IncorrectKeyException", "bad_envelope", 1),
        ("ThrottlingException", "throttled", 3),
        ("KMSInternalException", "unavailable", 3),
        ("KeyUnavailableException", "unavailable", 3),
        ("ExpiredTokenException", "bad_login", 1),
        ("UnrecognizedClientException", "bad_login", 1),
        ("InvalidSignatureException", "bad_login", 1),
    ] {
        kms.set_mood(Mood::Refuse(code));
        let before = kms.asked().len();
        let error = world.open(ACME, recording).await.unwrap_err();
        assert_eq!(error.label(), label, "{code}");
        assert_eq!(kms.asked().len() - before, attempts, "{code}");
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(!text.contains("arn:") && !text.contains("somebody"), "{text}");
    }
    for (state, why) in [
        ("Disabled", "it is disabled"),
        ("PendingDeletion", "it is about to be deleted"),
        ("Gone", "there is no such key"),
    ] {
        kms.set_mood(Mood::Fine);
        kms.set_state(ARN, state);
        let error = world.open(ACME, recording).await.unwrap_err();
        assert!(error.to_string().ends_with(why), "{state}: {error}");
    }
    kms.set_state(ARN, "Enabled");
    assert!(world.open(ACME, recording).await.is_ok());
}

#[tokio::test]
async fn short_trouble_is_outlasted_and_long_trouble_is_bounded() {
    let (kms, world) = world().await;
    let recording = world.mint(ACME).await.unwrap();
    kms.set_mood(Mood::RefuseFirst(2, "ThrottlingException"));
    assert!(world.open(ACME, recording).await.is_ok());
    kms.http.set_way(Way::Closed);
    assert!(matches!(world.open(ACME, recording).await, Err(KeyError::Unavailable(_))));
    kms.http.set_way(Way::Silent);
    let began = clock::monotonic();
    assert!(matches!(world.open(ACME, recording).await, Err(KeyError::TimedOut)));
    assert!(clock::since(began) >= Duration::from_secs(3), "three attempts of a second");
    kms.http.set_way(Way::Open(Duration::ZERO));
    assert!(world.open(ACME, recording).await.is_ok());
}

#[tokio::test]
async fn missing_credentials_are_a_bad_login() {
    let (_kms, world) = world().await;
    let keys = world.keys();
    std::fs::remove_file(world.dir.path().join("secret")).unwrap();
    let failed = keys.mint(&super::world::tenant(ACME)).await;
    assert_eq!(failed.unwrap_err().label(), "bad_login");
}
