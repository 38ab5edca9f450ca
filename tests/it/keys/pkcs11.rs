//! KEKs in a PKCS#11 token, SoftHSM2: real sessions, logins and AES-GCM of a module that others wrote.

use std::collections::BTreeMap;
use std::fs;

use callseal::keys::KeyError;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::Attribute;
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use super::world::{ACME, OTHER, World, tenant};
use crate::support::write_private;

/// A token, as `scripts/key-servers` described it.
struct Token(BTreeMap<String, String>);

impl Token {
    /// Finds the token.
    ///
    /// # Panics
    /// When it is missing and `CI` is `true`.
    fn find() -> Option<Self> {
        let variable = |name| std::env::var_os(name).and_then(|value| value.into_string().ok());
        // The module reads its own variable when it is loaded.
        let found = variable("TEST_PKCS11").filter(|_| variable("SOFTHSM2_CONF").is_some());
        let Some(path) = found else {
            let is_ci = variable("CI").is_some_and(|ci| ci == "true");
            assert!(!is_ci, "TEST_PKCS11 and SOFTHSM2_CONF are not set; scripts/test sets them");
            println!(
                "SKIPPED, nothing was checked: TEST_PKCS11 and SOFTHSM2_CONF are not set; see scripts/key-servers"
            );
            return None;
        };
        let text = fs::read_to_string(path).unwrap();
        let lines = text.lines().filter_map(|line| line.split_once('='));
        Some(Self(lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    }

    /// Opens a session of our own, beside those of what is tested.
    fn session(&self) -> Session {
        let module = Pkcs11::new(&self.0["PKCS11_MODULE"]).unwrap();
        // Whoever comes first begins for the process.
        let _begun = module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).is_ok();
        let slots = module.get_slots_with_initialized_token().unwrap();
        let is_ours =
            |slot: &_| module.get_token_info(*slot).unwrap().label().trim_end() == self.0["PKCS11_TOKEN"];
        let slot = slots.into_iter().find(is_ours).unwrap();
        let session = module.open_rw_session(slot).unwrap();
        let _logged_in =
            session.login(UserType::User, Some(&AuthPin::new(self.0["PKCS11_PIN"].as_str().into()))).is_ok();
        session
    }

    fn tables(&self, label: &str, more: &str) -> String {
        let (module, token) = (&self.0["PKCS11_MODULE"], &self.0["PKCS11_TOKEN"]);
        format!(
            "[keys]\nprovider = \"pkcs11\"\nkek = {label:?}\n{more}\n\
             [pkcs11]\nmodule = {module:?}\ntoken_label = {token:?}\npin = {{ file = \"pin\" }}\n"
        )
    }
}

fn make_key(session: &Session, label: &str, is_extractable: bool) {
    let template = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::ValueLen(32.into()),
        Attribute::Sensitive(true),
        Attribute::Extractable(is_extractable),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
}

fn destroy_key(session: &Session, label: &str) {
    let found = session.find_objects(&[Attribute::Label(label.as_bytes().to_vec())]).unwrap();
    assert_eq!(found.len(), 1);
    session.destroy_object(found[0]).unwrap();
}

/// One test: a process has one login for all sessions of a token, which this test ends now and then.
#[tokio::test]
async fn a_token_wraps_opens_and_refuses() {
    let Some(token) = Token::find() else { return };
    let session = token.session();
    let mut random = [0; 4];
    getrandom::fill(&mut random).unwrap();
    let name = format!("t{:08x}", u32::from_be_bytes(random));
    for id in [ACME, OTHER] {
        make_key(&session, &format!("{name}-{id}"), false);
    }
    let world = World::new("").await;
    write_private(&world.dir.path().join("pin"), &token.0["PKCS11_PIN"]);
    let world = world.with_node(&token.tables(&format!("{name}-{{tenant}}"), ""));

    let recording = world.mint(ACME).await.unwrap();
    let key = world.open(ACME, recording).await.unwrap();
    let wrap = world.envelope(ACME, recording).await.wraps.remove(0);
    assert_eq!((wrap.provider.as_str(), wrap.kek, wrap.blob.len()), ("pkcs11", format!("{name}-{ACME}"), 84));
    super::attacks::try_forgeries(&world).await;

    // A login that ends, as with a token that was away.
    let service = world.keys();
    assert!(service.open(&tenant(ACME), recording).await.is_ok());
    session.logout().unwrap();
    assert!(service.mint(&tenant(ACME)).await.is_ok());
    let session = token.session();

    // To another key, and with the first one gone.
    let second = format!("{name}-second");
    make_key(&session, &second, false);
    let former = format!("former_keks = [{{ provider = \"pkcs11\", kek = \"{name}-{{tenant}}\" }}]");
    let world = world.with_node(&token.tables(&second, &former));
    let report = world.rewrap(ACME, None).await;
    assert_eq!((report.moved > 0, report.failed), (true, 0), "{report:?}");
    destroy_key(&session, &format!("{name}-{ACME}"));
    assert_eq!(world.open(ACME, recording).await.unwrap(), key);
    let world = world.with_node(&token.tables(&format!("{name}-{{tenant}}"), ""));
    let error = world.mint(ACME).await.unwrap_err();
    assert!(error.to_string().ends_with("there is no such key"), "{error}");

    // Keys that are no safe place.
    let open = format!("{name}-open");
    make_key(&session, &open, true);
    let error = world.with_node(&token.tables(&open, "")).mint(ACME).await.unwrap_err();
    assert!(error.to_string().ends_with("can be taken out of the token"), "{error}");
    refuse_the_rest(&token, session, &name).await;
}

async fn refuse_the_rest(token: &Token, session: Session, name: &str) {
    let twice = format!("{name}-twice");
    make_key(&session, &twice, false);
    make_key(&session, &twice, false);
    let world = World::new("").await;
    write_private(&world.dir.path().join("pin"), &token.0["PKCS11_PIN"]);
    let world = world.with_node(&token.tables(&twice, ""));
    let error = world.mint(ACME).await.unwrap_err();
    assert!(error.to_string().ends_with("several keys have its label"), "{error}");
    let tables = token.tables(&twice, "");
    let elsewhere =
        tables.replace(&format!("token_label = {:?}", token.0["PKCS11_TOKEN"]), "token_label = \"absent\"");
    let world = world.with_node(&elsewhere);
    assert!(matches!(world.mint(ACME).await, Err(KeyError::Unavailable(_))));

    // A wrong PIN is told to the token once: it locks itself after some.
    session.logout().unwrap();
    write_private(&world.dir.path().join("pin"), "0000");
    let world = world.with_node(&tables);
    let service = world.keys();
    for told in ["CKR_PIN_INCORRECT", "not tried again", "not tried again"] {
        let error = service.mint(&tenant(ACME)).await.unwrap_err();
        assert_eq!(error.label(), "bad_login");
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains(told) || told.starts_with("CKR") && text.contains("PIN"), "{text}");
    }
    write_private(&world.dir.path().join("pin"), &token.0["PKCS11_PIN"]);
    let error = service.mint(&tenant(ACME)).await.unwrap_err();
    assert!(error.to_string().ends_with("several keys have its label"), "a better one is tried: {error}");
}
