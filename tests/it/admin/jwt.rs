//! Tokens of an identity provider, as its users bring them; and issuers that are away, lie, hang, or lead elsewhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use callseal::admin::jwt::{Issuer, JwtError, JwtRefusal};
use callseal::clock;
use callseal::config::{AdminJwt, JwtKeys};
use callseal::domain::jwt::{Algorithm, Refused, Rules};
use callseal::domain::sign::encode_base64url;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Asker, OTHER, audited, path, setup};
use crate::support::{Home, Server, TENANT};
use crate::webhooks::receiver::{Answer, Identity, Receiver};

const ISSUER: &str = "https://id.example.com";

/// A key of an issuer.
struct Signer {
    pair: EcdsaKeyPair,
    kid: &'static str,
}

impl Signer {
    fn new(kid: &'static str) -> Self {
        Self { pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(), kid }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (encode_base64url(&point[1..33]), encode_base64url(&point[33..]));
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.kid, "x": x, "y": y})
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"}).to_string();
        let encode = |text: &str| encode_base64url(text.as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(&claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encode_base64url(signature.as_ref()))
    }
}

fn key_set(signers: &[&Signer]) -> String {
    json!({"keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>()}).to_string()
}

fn now() -> u64 {
    clock::wall().secs()
}

fn claims(role: &str) -> Value {
    json!({
        "iss": ISSUER, "sub": "user_1", "aud": "callseal", "iat": now(), "exp": now() + 60, "jti": "token-1",
        "callseal_tenant": TENANT, "callseal_role": role,
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims("player");
    claims[name] = value;
    claims
}

/// Writes the keys where a node looks for them.
fn write_keys(file: &Path, signers: &[&Signer]) {
    fs::write(file, key_set(signers)).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
}

/// A node that knows the tokens of an issuer by a file.
fn serve(keys: &TempDir, signer: &Signer) -> (Home, Server) {
    let file = keys.path().join("jwks.json");
    write_keys(&file, &[signer]);
    setup()
        .option("admin_jwt", "issuer", &format!("{ISSUER:?}"))
        .option("admin_jwt", "audience", "[\"callseal\"]")
        .option("admin_jwt", "jwks_file", &format!("{:?}", file.display().to_string()))
        .serve()
}

#[tokio::test]
async fn a_person_may_what_the_roles_in_the_token_may_and_the_audit_log_says_who() {
    let (keys, signer) = (TempDir::new().unwrap(), Signer::new("k1"));
    let (home, mut server) = serve(&keys, &signer);
    server.allow("nobody can use the admin API yet");
    server.allow("admin API refuses an operation");
    let player = Asker::new(&server, &signer.sign(&claims("player")));
    let listed = player.get(&path("recordings")).await;
    assert_eq!(listed.status, 200, "{listed:?}");
    assert_eq!(player.get(&format!("/v1/tenants/{OTHER}/recordings")).await.status, 404, "of another tenant");
    let forbidden = player.get(&path("audit")).await;
    assert_eq!((forbidden.status, &forbidden.body["code"]), (403, &"forbidden".into()), "{forbidden:?}");
    let auditor = Asker::new(&server, &signer.sign(&claims("auditor")));
    assert_eq!(auditor.get(&path("audit")).await.status, 200);
    let records = audited(&home, "list-recordings");
    let record = records.first().expect("the access is recorded");
    assert_eq!((&record["actor"], &record["key"]), (&"jwt:user_1".into(), &"token-1".into()), "{record}");
    assert_eq!((&record["role"], &record["request"]), (&"player".into(), &listed.request.into()));
    server.stop().await;
}

#[tokio::test]
async fn whoever_brings_a_bad_token_learns_nothing_and_the_log_says_why() {
    let (keys, signer, stranger) = (TempDir::new().unwrap(), Signer::new("k1"), Signer::new("k1"));
    let (_home, mut server) = serve(&keys, &signer);
    for allowed in ["nobody can use the admin API yet", "admin API refuses a token"] {
        server.allow(allowed);
    }
    let none = |signed: &str| format!("{}.{}.", encode_base64url(br#"{"alg":"none","kid":"k1"}"#), signed);
    let payload = signer.sign(&claims("admin")).split('.').nth(1).unwrap().to_owned();
    let bad = [
        (stranger.sign(&claims("admin")), "its signature is wrong"),
        (none(&payload), "its algorithm is not allowed"),
        (Signer::new("k2").sign(&claims("admin")), "its key is not known"),
        (signer.sign(&with("iss", json!("https://evil.example.com"))), "its issuer is another one"),
        (signer.sign(&with("aud", json!("authenticated"))), "its audience is another one"),
        (signer.sign(&with("exp", json!(now() - 60))), "it has expired"),
        (signer.sign(&with("nbf", json!(now() + 600))), "it is not valid yet"),
        (signer.sign(&with("iat", json!(now() - 7_200))), "it is older than allowed"),
        (signer.sign(&with("sub", json!("a b"))), "its subject is missing"),
        (signer.sign(&with("callseal_tenant", json!("*"))), "its claim callseal_tenant is no id of a tenant"),
        (signer.sign(&with("callseal_role", json!("root"))), "its claim callseal_role names no role"),
        (signer.sign(&with("padding", json!("x".repeat(9_000)))), "it is no token: too long"),
        ("a.b.c".to_owned(), "it is no token"),
    ];
    let mut answers = Vec::new();
    for (number, (token, why)) in bad.iter().enumerate() {
        let mut answer = Asker::new(&server, token).get(&path("recordings")).await;
        assert_eq!((answer.status, &answer.body["code"]), (401, &"unauthorized".into()), "{why}: {answer:?}");
        answer.body["request"] = "".into();
        answers.push(answer.body);
        let logged = server.wait_log("admin API refuses a token", number + 1).await;
        assert!(logged.field("why").contains(why), "{why}: {}", logged.text);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    let unknown = Asker::new(&server, "callseal_0000000000000000_x").get(&path("recordings")).await;
    assert_eq!(unknown.status, 401);
    let payload = &bad[0].0;
    assert!(server.log().iter().all(|line| !line.text.contains(payload.as_str())), "no token is in the log");
    server.stop().await;
}

#[tokio::test]
async fn a_file_of_keys_is_read_again_when_it_has_changed() {
    let (keys, signer, next) = (TempDir::new().unwrap(), Signer::new("k1"), Signer::new("k2"));
    let (_home, mut server) = serve(&keys, &signer);
    for allowed in ["nobody can use the admin API yet", "admin API refuses a token", "the old ones stay"] {
        server.allow(allowed);
    }
    let file = keys.path().join("jwks.json");
    fs::write(&file, "no keys").unwrap();
    server.wait_log("keys of the identity provider cannot be used; the old ones stay", 1).await;
    let old = Asker::new(&server, &signer.sign(&claims("player")));
    assert_eq!(old.get(&path("recordings")).await.status, 200);
    write_keys(&file, &[&next]);
    let new = Asker::new(&server, &next.sign(&claims("player")));
    while new.get(&path("recordings")).await.status == 401 {}
    assert_eq!(old.get(&path("recordings")).await.status, 401, "its key is gone");
    server.stop().await;
}

/// An issuer on this machine.
struct Site {
    dir: TempDir,
    identity: Identity,
    receiver: Receiver,
}

impl Site {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let identity = Identity::new(dir.path(), "issuer");
        let receiver = identity.listen(0).await;
        Self { dir, identity, receiver }
    }

    fn config(&self) -> AdminJwt {
        AdminJwt {
            rules: Rules {
                issuer: ISSUER.to_owned(),
                audiences: vec!["callseal".to_owned()],
                parties: Vec::new(),
                algorithms: vec![Algorithm::Es256],
                tenant: "callseal_tenant".parse().unwrap(),
                role: "callseal_role".parse().unwrap(),
                roles: Default::default(),
                required: Vec::new(),
                second_factor: None,
                leeway: Duration::from_secs(30),
                max_age: Duration::from_secs(3600),
            },
            keys: JwtKeys::Url {
                url: format!("https://localhost:{}/jwks.json", self.receiver.port).parse().unwrap(),
                ca_file: Some(self.identity.ca_file.clone()),
                allow_private: true,
            },
            refresh: Duration::from_secs(300),
            stale: Duration::from_secs(3600),
            unknown: Duration::ZERO,
        }
    }

    fn issuer(&self) -> Arc<Issuer> {
        Issuer::open(&self.config()).unwrap()
    }
}

#[tokio::test]
async fn keys_come_from_the_issuer_and_new_ones_when_a_token_names_them() {
    let (site, first, second) = (Site::new().await, Signer::new("k1"), Signer::new("k2"));
    site.receiver.always(Answer::Body(key_set(&[&first])));
    let issuer = site.issuer();
    for _ in 0..3 {
        let principal = issuer.find(&first.sign(&claims("player"))).await.unwrap();
        assert_eq!(principal.actor, "jwt:user_1");
    }
    assert_eq!(site.receiver.connections(), 1, "keys that are there are not asked for");
    assert_eq!(site.receiver.got()[0].target, "/jwks.json");
    let unknown = issuer.find(&second.sign(&claims("player"))).await.unwrap_err();
    assert!(matches!(unknown, JwtRefusal::Refused(Refused::UnknownKey)), "{unknown}");
    site.receiver.always(Answer::Body(key_set(&[&first, &second])));
    assert!(issuer.find(&second.sign(&claims("player"))).await.is_ok());
    site.receiver.always(Answer::Body(key_set(&[&second])));
    assert!(issuer.find(&Signer::new("k3").sign(&claims("player"))).await.is_err());
    let withdrawn = issuer.find(&first.sign(&claims("player"))).await.unwrap_err();
    assert!(matches!(withdrawn, JwtRefusal::Refused(Refused::UnknownKey)), "{withdrawn}");
}

#[tokio::test]
async fn whoever_makes_tokens_up_does_not_make_a_node_ask_all_the_time() {
    let (site, signer) = (Site::new().await, Signer::new("k1"));
    site.receiver.always(Answer::Body(key_set(&[&signer])));
    let issuer = Issuer::open(&AdminJwt { unknown: Duration::from_secs(3600), ..site.config() }).unwrap();
    let stranger = Signer::new("k2");
    let tokens: Vec<_> = (0..50).map(|_| stranger.sign(&claims("admin"))).collect();
    let asking = tokens.iter().map(|token| issuer.find(token));
    assert!(futures_util::future::join_all(asking).await.iter().all(Result::is_err));
    assert_eq!(site.receiver.connections(), 1);
    // Nor by tokens that would be refused in any case.
    assert!(issuer.find("a.b.c").await.is_err());
    assert!(issuer.find(&signer.sign(&claims("player"))).await.is_ok());
    assert_eq!(site.receiver.connections(), 1);
}

#[tokio::test]
async fn an_issuer_that_is_away_or_lies_is_not_believed_and_old_keys_do_for_a_while() {
    let (site, signer) = (Site::new().await, Signer::new("k1"));
    let token = signer.sign(&claims("player"));
    let elsewhere = Site::new().await;
    elsewhere.receiver.always(Answer::Body(key_set(&[&signer])));
    let away = format!("https://localhost:{}/jwks.json", elsewhere.receiver.port);
    let answers = [
        Answer::Redirect(away),
        Answer::Status(500),
        Answer::Status(404),
        Answer::Body("<html>".to_owned()),
        Answer::Body(json!({"keys": []}).to_string()),
        Answer::Body(key_set(&[&signer]) + &" ".repeat(300 * 1024)),
        Answer::Close,
        Answer::Endless,
        Answer::LongHead,
        Answer::Silent,
    ];
    let issuer = site.issuer();
    for answer in answers.clone() {
        site.receiver.always(answer.clone());
        let refused = issuer.find(&token).await.unwrap_err();
        assert!(matches!(refused, JwtRefusal::NoKeys), "{answer:?}: {refused}");
    }
    assert_eq!(elsewhere.receiver.connections(), 0, "redirects are not followed");
    site.receiver.always(Answer::Body(key_set(&[&signer])));
    assert!(issuer.find(&token).await.is_ok());
    let stranger = Signer::new("k2").sign(&claims("admin"));
    for answer in answers.into_iter().filter(|answer| !matches!(answer, Answer::Silent)) {
        site.receiver.always(answer);
        assert!(issuer.find(&stranger).await.is_err(), "asks again, in vain");
        assert!(issuer.find(&token).await.is_ok(), "the keys of before do");
    }
    site.receiver.always(Answer::Body(key_set(&[&signer])));
    let impatient = Issuer::open(&AdminJwt { stale: Duration::ZERO, ..site.config() }).unwrap();
    let refused = impatient.find(&token).await.unwrap_err();
    assert!(matches!(refused, JwtRefusal::NoKeys), "keys that are too old are none: {refused}");
}

#[tokio::test]
async fn keys_are_not_taken_from_within_or_from_whom_nobody_vouches_for() {
    let (site, signer) = (Site::new().await, Signer::new("k1"));
    site.receiver.always(Answer::Body(key_set(&[&signer])));
    let token = signer.sign(&claims("player"));
    let change = |ca: Option<&Identity>, private: bool| {
        let JwtKeys::Url { url, .. } = site.config().keys else { unreachable!("it is one") };
        let ca_file = ca.map(|identity| identity.ca_file.clone());
        AdminJwt { keys: JwtKeys::Url { url, ca_file, allow_private: private }, ..site.config() }
    };
    let within = Issuer::open(&change(Some(&site.identity), false)).unwrap();
    assert!(matches!(within.find(&token).await, Err(JwtRefusal::NoKeys)));
    assert_eq!(site.receiver.connections(), 0, "nobody on this machine is dialled");
    let others = Identity::new(site.dir.path(), "others");
    let unvouched = Issuer::open(&change(Some(&others), true)).unwrap();
    assert!(matches!(unvouched.find(&token).await, Err(JwtRefusal::NoKeys)));
    assert!(site.receiver.got().is_empty());
}

#[tokio::test]
async fn a_file_of_keys_that_others_may_write_is_refused() {
    let (dir, signer) = (TempDir::new().unwrap(), Signer::new("k1"));
    let file = dir.path().join("jwks.json");
    let site = Site::new().await.config();
    let open = || Issuer::open(&AdminJwt { keys: JwtKeys::File(file.clone()), ..site.clone() }).err();
    assert!(matches!(open(), Some(JwtError::Unreadable { .. })));
    write_keys(&file, &[&signer]);
    assert!(open().is_none());
    fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).unwrap();
    assert!(matches!(open(), Some(JwtError::Loose { mode: 0o664, .. })));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "{}").unwrap();
    assert!(matches!(open(), Some(JwtError::Malformed { .. })));
}
