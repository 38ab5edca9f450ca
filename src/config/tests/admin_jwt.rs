//! Tokens of an identity provider.

use super::*;
use crate::domain::access::Role;
use crate::domain::jwt::Algorithm;

const SOUND: &str = "issuer = \"https://id.example.com\"\naudience = [\"callseal\"]\n";
const URL: &str = "jwks_url = \"https://id.example.com/.well-known/jwks.json\"\n";

fn node(lines: &str) -> String {
    format!("{NODE}[admin]\n[admin_jwt]\n{lines}\n")
}

fn checked(lines: &str) -> AdminJwt {
    let config = check(&node(lines), &[], &Shelf::default()).expect("no fault");
    config.admin.unwrap().jwt.expect("tokens of an identity provider are known")
}

fn faults(lines: &str) -> BTreeMap<String, String> {
    faults_of(&node(lines), &[], &Shelf::default())
}

#[test]
fn an_issuer_an_audience_and_keys_are_enough() {
    let jwt = checked(&format!("{SOUND}{URL}"));
    let JwtKeys::Url { url, ca_file: None, allow_private: false } = &jwt.keys else {
        panic!("{:?}", jwt.keys)
    };
    assert_eq!((url.host(), url.target()), ("id.example.com", "/.well-known/jwks.json"));
    assert_eq!(jwt.rules.algorithms, Algorithm::ALL);
    assert_eq!(
        (jwt.rules.tenant.to_string(), jwt.rules.role.to_string()),
        ("callseal_tenant".into(), "callseal_role".into())
    );
    assert_eq!((jwt.rules.leeway.as_secs(), jwt.rules.max_age.as_secs()), (30, 3_600));
    assert_eq!((jwt.refresh.as_secs(), jwt.unknown.as_secs(), jwt.stale.as_secs()), (300, 30, 86_400));
    assert!(jwt.rules.second_factor.is_none() && jwt.rules.required.is_empty() && jwt.rules.roles.is_empty());
    let of_file = checked("issuer = \"x\"\nazp = [\"https://app.example.com\"]\njwks_file = \"jwks.json\"");
    let JwtKeys::File(path) = of_file.keys else { panic!("a file is given") };
    assert_eq!(path, Path::new("/etc/callseal/jwks.json"));
    assert!(check(&format!("{NODE}[admin]\n"), &[], &Shelf::default()).unwrap().admin.unwrap().jwt.is_none());
}

#[test]
fn what_is_missing_or_twice_is_named() {
    assert_eq!(names(&faults("")), ["admin_jwt.audience", "admin_jwt.issuer", "admin_jwt.jwks_url"]);
    let both = format!("{SOUND}{URL}jwks_file = \"jwks.json\"");
    assert_eq!(names(&faults(&both)), ["admin_jwt.jwks_file"]);
    let alone = format!("{NODE}[admin_jwt]\n{SOUND}{URL}");
    assert_eq!(names(&faults_of(&alone, &[], &Shelf::default())), ["admin_jwt"]);
    for (lines, option) in [
        ("jwks_file = \"missing\"", "admin_jwt.jwks_file"),
        ("jwks_file = \"jwks.json\"\nca_file = \"ca.pem\"", "admin_jwt.ca_file"),
        ("jwks_file = \"jwks.json\"\nallow_private = true", "admin_jwt.allow_private"),
    ] {
        assert_eq!(names(&faults(&format!("{SOUND}{lines}"))), [option], "{lines}");
    }
}

#[test]
fn algorithms_that_anybody_could_use_are_refused_by_name() {
    for (name, why) in [
        ("none", "without a signature"),
        ("None", "without a signature"),
        ("HS256", "shared secret"),
        ("HS512", "shared secret"),
        ("PS256", "allowed: RS256, ES256, EdDSA"),
        ("rs256", "allowed: RS256, ES256, EdDSA"),
    ] {
        let faults = faults(&format!("{SOUND}{URL}algorithms = [\"RS256\", {name:?}]"));
        let (option, problem) = faults.first_key_value().unwrap();
        assert_eq!((faults.len(), option.as_str()), (1, "admin_jwt.algorithms[1]"));
        assert!(problem.contains(why), "{name}: {problem}");
    }
    assert_eq!(names(&faults(&format!("{SOUND}{URL}algorithms = []"))), ["admin_jwt.algorithms"]);
    let one = checked(&format!("{SOUND}{URL}algorithms = [\"EdDSA\"]"));
    assert_eq!(one.rules.algorithms, [Algorithm::EdDsa]);
}

#[test]
fn keys_are_not_looked_for_within_unless_that_is_said() {
    for url in [
        "https://localhost/jwks",
        "https://127.0.0.1/jwks",
        "https://[::1]/jwks",
        "https://169.254.169.254/latest",
        "https://10.0.0.1/",
        "http://id.example.com/jwks",
        "https://user:password@id.example.com/jwks",
        "file:///etc/passwd",
        "",
    ] {
        let lines = format!("{SOUND}jwks_url = {url:?}\n");
        assert_eq!(names(&faults(&lines)), ["admin_jwt.jwks_url"], "{url}");
    }
    let within = checked(&format!("{SOUND}jwks_url = \"https://10.0.0.1/jwks\"\nallow_private = true"));
    assert!(matches!(within.keys, JwtKeys::Url { allow_private: true, .. }));
}

#[test]
fn roles_and_second_factors_are_read() {
    let jwt = checked(&format!(
        "{SOUND}{URL}roles = {{ \"org:admin\" = \"operator\", member = \"player\" }}\n\
         required = {{ \"a.b\" = \"yes\" }}\nmfa_claim = \"aal\"\nmfa_values = [\"aal2\"]\nmfa_roles = [\"operator\"]\n"
    ));
    assert_eq!(jwt.rules.roles.get("org:admin"), Some(&Role::Operator));
    assert_eq!(jwt.rules.required[0].values, ["yes"]);
    let (wanted, roles) = jwt.rules.second_factor.unwrap();
    assert_eq!((wanted.claim.to_string(), roles), ("aal".to_owned(), vec![Role::Operator]));
    for (lines, options) in [
        ("roles = { a = \"root\" }", &["admin_jwt.roles.a"][..]),
        ("roles = { a = 7 }", &["admin_jwt.roles.a"]),
        ("required = { a = [\"x\"] }", &["admin_jwt.required.a"]),
        ("required = { \"a..b\" = \"x\" }", &["admin_jwt.required.a..b"]),
        ("mfa_claim = \"aal\"", &["admin_jwt.mfa_roles", "admin_jwt.mfa_values"]),
        ("mfa_claim = \"aal\"\nmfa_values = [\"aal2\"]\nmfa_roles = [\"root\"]", &["admin_jwt.mfa_roles[0]"]),
        ("tenant_claim = \"a..b\"", &["admin_jwt.tenant_claim"]),
        ("role_claim = \"\"", &["admin_jwt.role_claim"]),
        ("audience = []", &["admin_jwt.audience"]),
        ("leeway_secs = 61", &["admin_jwt.leeway_secs"]),
        ("max_age_secs = 59", &["admin_jwt.max_age_secs"]),
        ("refresh_secs = 29", &["admin_jwt.refresh_secs"]),
        ("unknown_kid_secs = 0", &["admin_jwt.unknown_kid_secs"]),
        ("stale_secs = 604801", &["admin_jwt.stale_secs"]),
        ("refresh_secs = 3600\nstale_secs = 3599", &["admin_jwt.stale_secs"]),
        ("issuer_url = \"x\"", &["admin_jwt.issuer_url"]),
    ] {
        let sound = SOUND.replace("audience = [\"callseal\"]", "azp = [\"x\"]");
        assert_eq!(names(&faults(&format!("{sound}{URL}{lines}"))), options, "{lines}");
    }
}
