//! Where Twilio's API is, and whom it is asked as.

use super::*;

const ONE: &str = "AC000000000000000000000000c0ffee01";
const OTHER: &str = "AC000000000000000000000000c0ffee02";
const KEY: &str = "SK0123456789abcdef0123456789abcdef";
const ROUTE: &str = "[[route]]\nname = \"x\"\nmode = \"bidirectional\"\n\
                     [route.upstream]\nurl = \"wss://a\"\non_loss = \"hangup\"\n";

/// A tenant with these accounts and lines of the table `twilio`, and a route that ends calls.
fn tenant(accounts: &[&str], lines: &str) -> String {
    format!("id = \"t\"\n[twilio]\naccount_sids = {accounts:?}\n{lines}\n{ROUTE}")
}

fn users(text: &str, account: &str) -> Vec<(String, Vec<u8>)> {
    let config = check(NODE, &[], &Shelf::with(&[("t.toml", text)])).expect("no fault");
    let users = config.tenants[0].twilio.api_users(&account.parse().unwrap());
    // A file is read when it is used, and there is none here.
    let secret =
        |user: &ApiUser| user.secret.read().map(|secret| secret.expose().to_vec()).unwrap_or_default();
    users.iter().map(|user| (user.sid.clone(), secret(user))).collect()
}

#[test]
fn the_only_account_is_asked_as_with_its_tokens() {
    let token = "auth_tokens = [{ file = \"t1\" }, { file = \"t2\" }, { file = \"t3\" }]";
    let user = (ONE.to_owned(), CANARY.as_bytes().to_vec());
    assert_eq!(users(&tenant(&[ONE], token), ONE), [user.clone(), user]);
    assert_eq!(users(&tenant(&[ONE], token), OTHER), []);
}

#[test]
fn a_key_comes_before_tokens_and_several_accounts_need_one_each() {
    let token = "auth_tokens = [{ file = \"t\" }]";
    let key = |account: &str| {
        format!("api_keys.{account} = {{ sid = {KEY:?}, secret = {{ env = \"CALLSEAL_SECRET_KEY\" }} }}\n")
    };
    let env = [("CALLSEAL_SECRET_KEY", CANARY)];
    let with = |text: &str| check(NODE, &env, &Shelf::with(&[("t.toml", text)]));
    let config = with(&tenant(&[ONE], &format!("{token}\n{}", key(ONE)))).expect("no fault");
    let users = config.tenants[0].twilio.api_users(&ONE.parse().unwrap());
    assert_eq!((users.len(), users[0].sid.as_str()), (1, KEY));
    assert_eq!(users[0].secret.read().unwrap().expose(), CANARY.as_bytes());
    assert!(with(&tenant(&[ONE, OTHER], &[token, "\n", &key(ONE), &key(OTHER)].concat())).is_ok());
    let faults = tenant_faults(&tenant(&[ONE, OTHER], token));
    assert_eq!(names(&faults), ["twilio.api_keys"]);
    assert!(faults["twilio.api_keys"].contains("account_sids[0]"), "{faults:?}");
    let shared = "shared_keys = { K = { file = \"s\" } }";
    assert_eq!(names(&tenant_faults(&tenant(&[ONE], shared))), ["twilio.api_keys"], "nothing to ask with");
    let closes = tenant(&[ONE, OTHER], token).replace("hangup", "close");
    assert!(with(&closes).is_ok(), "whoever ends no calls needs none");
}

#[test]
fn api_keys_are_checked_and_what_is_wrong_is_not_shown() {
    let fault = |key: &str| {
        let text = tenant(&[ONE], &format!("auth_tokens = [{{ file = \"t\" }}]\n{key}"));
        tenant_faults(&text)
    };
    let secret = "secret = { file = \"s\" }";
    for (key, option) in [
        (format!("api_keys.{ONE} = {{ {secret} }}"), format!("api_keys.{ONE}.sid")),
        (format!("api_keys.{ONE} = {{ sid = {CANARY:?}, {secret} }}"), format!("api_keys.{ONE}.sid")),
        (format!("api_keys.{ONE} = {{ sid = {KEY:?} }}"), format!("api_keys.{ONE}.secret")),
        (
            format!("api_keys.{ONE} = {{ sid = {KEY:?}, secret = {CANARY:?} }}"),
            format!("api_keys.{ONE}.secret"),
        ),
        (
            format!("api_keys.{ONE} = {{ sid = {KEY:?}, secret = {{ file = \"missing\" }} }}"),
            format!("api_keys.{ONE}.secret"),
        ),
        (format!("api_keys.{ONE} = {{ sid = {KEY:?}, {secret}, x = 1 }}"), format!("api_keys.{ONE}.x")),
        (format!("api_keys.{ONE} = 1"), "api_keys".to_owned()),
        (format!("api_keys.{OTHER} = {{ sid = {KEY:?}, {secret} }}"), "api_keys".to_owned()),
        (format!("api_keys.{CANARY} = {{ sid = {KEY:?}, {secret} }}"), "api_keys".to_owned()),
        ("api_keys = 1".to_owned(), "api_keys".to_owned()),
    ] {
        assert_eq!(names(&fault(&key)), [format!("twilio.{option}")], "{key}");
    }
}

#[test]
fn the_api_is_asked_over_tls_or_on_this_machine() {
    let relay = |lines: &str| check(&format!("{NODE}[relay]\n{lines}\n"), &[], &Shelf::default());
    let api = relay("").expect("no fault").relay.twilio_api;
    assert_eq!((api.url.as_str(), api.timeout), ("https://api.twilio.com", Duration::from_secs(3)));
    for url in ["https://api.dublin.ie1.twilio.com", "https://localhost:8443/", "http://127.0.0.1:80"] {
        let config = relay(&format!("twilio_api_url = {url:?}\ntwilio_api_ca_file = \"c\"")).expect(url);
        assert_eq!(config.relay.twilio_api.url, url.trim_end_matches('/'));
        assert_eq!(config.relay.twilio_api.ca_file.as_deref(), Some(Path::new("/etc/callseal/c")));
    }
    for (lines, option) in [
        ("twilio_api_url = \"http://api.twilio.com\"", "twilio_api_url"),
        ("twilio_api_url = \"api.twilio.com\"", "twilio_api_url"),
        ("twilio_api_url = \"https://AC:token@api.twilio.com\"", "twilio_api_url"),
        ("twilio_api_url = \"https://api.twilio.com/?x\"", "twilio_api_url"),
        ("twilio_api_ca_file = \"missing\"", "twilio_api_ca_file"),
        ("twilio_api_timeout_ms = 199", "twilio_api_timeout_ms"),
        ("twilio_api_timeout_ms = 10001", "twilio_api_timeout_ms"),
    ] {
        let faults = relay(lines).expect_err(lines);
        let found: Vec<_> = faults.iter().map(|fault| fault.option.clone()).collect();
        assert_eq!(found, [format!("relay.{option}")], "{lines}");
    }
}
