//! What callseal asks of Vault's Transit engine, how it logs in, and what it makes of the answers.

use std::time::Duration;

use callseal::clock;
use callseal::domain::time::UnixMillis;
use callseal::keys::KeyError;

use super::http::Way;
use super::vault_stub::{Key, Mood, TOKEN, VaultStub};
use super::world::{ACME, OTHER, World, tenant};
use crate::support::{eventually, write_private};

const NAMES: [&str; 2] = ["callseal-acme", "callseal-other"];

pub(super) fn vault_tables(vault: &VaultStub, login: &str) -> String {
    format!(
        "[keys]\nprovider = \"vault-transit\"\nkek = \"transit/callseal-{{tenant}}\"\nattempt_timeout_ms = 1000\n\
         [vault]\naddress = {:?}\n{login}\n",
        vault.http.url()
    )
}

pub(super) const BY_TOKEN: &str = "namespace = \"telephony\"\ntoken = { file = \"token\" }";
const BY_ROLE: &str =
    "auth = \"approle\"\nrole_id = { file = \"role\" }\nsecret_id = { file = \"role-secret\" }";

pub(super) async fn world(login: &str) -> (VaultStub, World) {
    let vault = VaultStub::start(&NAMES).await;
    let world = World::new("").await;
    for (name, secret) in [("token", TOKEN), ("role", "role-1"), ("role-secret", "secret-1")] {
        write_private(&world.dir.path().join(name), secret);
    }
    let tables = vault_tables(&vault, login);
    (vault, world.with_node(&tables))
}

#[tokio::test]
async fn each_tenant_has_a_key_and_each_recording_a_context() {
    let (vault, world) = world(BY_TOKEN).await;
    let (one, two) = (world.mint(ACME).await.unwrap(), world.mint(ACME).await.unwrap());
    let others = world.mint(OTHER).await.unwrap();
    for (id, recording) in [(ACME, one), (ACME, two), (OTHER, others)] {
        world.open(id, recording).await.unwrap();
        let wrap = world.envelope(id, recording).await.wraps.remove(0);
        assert_eq!((wrap.provider.as_str(), wrap.kek), ("vault-transit", format!("transit/callseal-{id}")));
        assert_eq!(wrap.kek_version, "1");
    }
    let requests = vault.http.requests();
    let mut contexts = Vec::new();
    for request in &requests {
        assert_eq!(request.headers["x-vault-namespace"], "telephony");
        assert_eq!(request.headers["x-vault-token"], TOKEN);
        if request.path.contains("/encrypt/") {
            contexts.push(request.body["context"].clone());
        }
    }
    contexts.sort_by_key(ToString::to_string);
    contexts.dedup();
    assert_eq!(contexts.len(), 3);
    assert!(vault.asked().contains(&"POST /v1/transit/encrypt/callseal-acme".to_owned()));
}

#[tokio::test]
async fn a_key_that_is_not_derived_is_refused_before_it_is_used() {
    let (vault, world) = world(BY_TOKEN).await;
    let plain = Key { derived: false, versions: 1, min_decryption_version: 1 };
    vault.change(|state| state.keys.extend([("callseal-acme".to_owned(), plain)]));
    let error = world.mint(ACME).await.unwrap_err();
    assert!(error.to_string().contains("not derived"), "{error}");
    assert!(vault.asked().iter().all(|line| !line.contains("encrypt")), "{:?}", vault.asked());
    vault.change(|state| state.keys.retain(|name, _| name != "callseal-acme"));
    let error = world.mint(ACME).await.unwrap_err();
    assert!(error.to_string().ends_with("there is no such key"), "{error}");
}

#[tokio::test]
async fn a_new_version_is_moved_to_inside_vault() {
    // Vault tells whole seconds.
    let began = UnixMillis(clock::wall().0 / 1000 * 1000);
    let (vault, world) = world(BY_TOKEN).await;
    let recording = world.mint(ACME).await.unwrap();
    let key = world.open(ACME, recording).await.unwrap();
    vault.change(|state| state.keys.get_mut("callseal-acme").unwrap().versions = 2);
    let newer = world.mint(ACME).await.unwrap();
    assert_eq!(world.envelope(ACME, newer).await.wraps[0].kek_version, "2");
    let made = world.keys().newest_kek_made(&tenant(ACME)).await.unwrap();
    assert!(made.is_some_and(|made| made >= began), "Vault tells when it was made: {made:?}");
    let report = world.rewrap(ACME, None).await;
    assert_eq!((report.moved, report.failed), (1, 0), "{report:?}");
    assert!(vault.asked().contains(&"POST /v1/transit/rewrap/callseal-acme".to_owned()));
    vault.change(|state| state.keys.get_mut("callseal-acme").unwrap().min_decryption_version = 2);
    assert_eq!(world.open(ACME, recording).await.unwrap(), key);
    assert_eq!(world.rewrap(ACME, None).await.moved, 0);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let (vault, world) = world(BY_TOKEN).await;
    let recording = world.mint(ACME).await.unwrap();
    for (mood, label, words) in [
        (Mood::Refuse(400, "invalid ciphertext: unable to decrypt"), "bad_envelope", ""),
        (
            Mood::Refuse(400, "ciphertext or signature version is disallowed by policy (too old)"),
            "denied",
            "version",
        ),
        (Mood::Refuse(400, "encryption key not found"), "denied", "no such key"),
        (Mood::Refuse(403, "1 error occurred:\n\t* permission denied\n\n"), "denied", "no right"),
        (Mood::Refuse(404, "no handler for route"), "denied", "no such key"),
        (Mood::Refuse(405, "unsupported operation"), "denied", "not taken"),
        (Mood::Refuse(412, "required index state not present"), "unavailable", ""),
        (Mood::Refuse(429, "request path \"transit/decrypt\": rate limit quota exceeded"), "throttled", ""),
        (Mood::Refuse(500, "internal error"), "unavailable", ""),
        (Mood::Refuse(502, "bad gateway"), "unavailable", ""),
    ] {
        let keys = world.keys();
        vault.change(|state| state.mood = mood);
        let error = keys.open(&tenant(ACME), recording).await.unwrap_err();
        assert_eq!(error.label(), label, "{mood:?}");
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains(words) && !text.contains("transit"), "{text}");
        vault.change(|state| state.mood = Mood::Fine);
    }
    for (mood, words) in [(Mood::Sealed, "503, it is sealed"), (Mood::Standby, "307, it names another node")]
    {
        let keys = world.keys();
        keys.open(&tenant(ACME), recording).await.unwrap();
        vault.change(|state| state.mood = mood);
        // Both with a login of before and with none.
        for _ in 0..2 {
            let error = keys.mint(&tenant(ACME)).await.unwrap_err();
            let text = format!("{:#}", anyhow::Error::from(error));
            assert!(text.contains("not available") && text.contains(words), "{text}");
        }
        let error = world.open(ACME, recording).await.unwrap_err();
        assert_eq!(error.label(), "unavailable", "{mood:?}");
        vault.change(|state| state.mood = Mood::Fine);
    }
    vault.http.set_way(Way::Silent);
    assert!(matches!(world.open(ACME, recording).await, Err(KeyError::TimedOut)));
    vault.http.set_way(Way::Closed);
    assert!(matches!(world.open(ACME, recording).await, Err(KeyError::Unavailable(_))));
}

#[tokio::test]
async fn a_token_that_ends_is_replaced_and_a_wrong_one_is_a_bad_login() {
    let (vault, world) = world(BY_TOKEN).await;
    let keys = world.keys();
    let acme = tenant(ACME);
    let recording = keys.mint(&acme).await.unwrap().ids.recording;
    vault.end_tokens();
    assert!(matches!(keys.open(&acme, recording).await, Err(KeyError::BadLogin(_))));
    assert!(
        matches!(world.open(ACME, recording).await, Err(KeyError::BadLogin(_))),
        "with a wrong one from the start"
    );
    // Somebody puts another one in its place.
    vault.change(|state| state.add_token("hvs.the-next"));
    write_private(&world.dir.path().join("token"), "hvs.the-next\n");
    while keys.open(&acme, recording).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_role_logs_in_renews_and_logs_in_again() {
    let (vault, world) = world(BY_ROLE).await;
    vault.change(|state| state.lease = Duration::from_secs(2));
    let keys = world.keys();
    let acme = tenant(ACME);
    let recording = keys.mint(&acme).await.unwrap().ids.recording;
    let count = |line: &str| vault.asked().iter().filter(|asked| asked.contains(line)).count();
    assert_eq!(count("approle/login"), 1);
    // Without any other request, before its end.
    eventually("two renewals", || (count("renew-self") >= 2).then_some(())).await;
    assert_eq!(count("approle/login"), 1);
    assert!(world.open(ACME, recording).await.is_ok());

    let logins = count("approle/login");
    vault.change(|state| state.renewable = false);
    eventually("another login", || (count("approle/login") > logins).then_some(())).await;
    vault.end_tokens();
    assert!(keys.mint(&acme).await.is_ok(), "a login that ended early is made anew at once");

    vault.change(|state| state.role.1 = "secret-2".to_owned());
    vault.end_tokens();
    assert!(matches!(keys.mint(&acme).await, Err(KeyError::BadLogin(_))));
}

#[tokio::test]
async fn a_missing_right_causes_no_storm_of_logins() {
    let (vault, world) = world(BY_ROLE).await;
    let keys = world.keys();
    let recording = keys.mint(&tenant(ACME)).await.unwrap().ids.recording;
    vault.change(|state| state.mood = Mood::Refuse(403, "1 error occurred:\n\t* permission denied\n\n"));
    for _ in 0..20 {
        assert!(matches!(keys.open(&tenant(ACME), recording).await, Err(KeyError::Denied { .. })));
    }
    let logins = vault.asked().iter().filter(|asked| asked.contains("login")).count();
    assert_eq!(logins, 1);
}

#[tokio::test]
async fn over_tls_only_the_named_authority_is_believed() {
    let world = World::new("").await;
    write_private(&world.dir.path().join("token"), TOKEN);
    let (ours, theirs) = (world.dir.path().join("tls"), world.dir.path().join("other-tls"));
    let vault = VaultStub::start_tls(&NAMES, &ours).await;
    let _others = VaultStub::start_tls(&NAMES, &theirs).await;
    let tables = |ca: &str| vault_tables(&vault, &format!("{BY_TOKEN}\nca_file = {ca:?}"));
    let world = world.with_node(&tables("tls/ca.pem"));
    let recording = world.mint(ACME).await.unwrap();
    assert!(world.open(ACME, recording).await.is_ok());
    let world = world.with_node(&tables("other-tls/ca.pem"));
    assert!(matches!(world.open(ACME, recording).await, Err(KeyError::Unavailable(_))));
}
