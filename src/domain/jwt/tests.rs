use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::json;

use super::*;
use crate::domain::sign::encode_base64url;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);
const ISSUER: &str = "https://id.example.com";

/// A key pair of an issuer.
enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Pair {
    fn rsa() -> Self {
        Self::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    fn ec() -> Self {
        Self::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().unwrap())
    }

    fn alg(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::Ec(_) => "ES256",
            Self::Ed(_) => "EdDSA",
        }
    }

    fn jwk(&self, kid: &str) -> Value {
        match self {
            Self::Rsa(pair) => {
                // RSAPublicKey of RFC 8017 in DER: heads of 9 bytes before 2,048 bits, and of 2 before 65,537.
                let der = pair.public_key().as_ref();
                let (n, e) = (encode_base64url(&der[9..265]), encode_base64url(&der[267..]));
                assert_eq!(e, "AQAB");
                json!({"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": n, "e": e})
            }
            Self::Ec(pair) => {
                let point = pair.public_key().as_ref();
                let (x, y) = (encode_base64url(&point[1..33]), encode_base64url(&point[33..]));
                json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y})
            }
            Self::Ed(pair) => {
                let x = encode_base64url(pair.public_key().as_ref());
                json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig", "key_ops": ["verify"], "x": x})
            }
        }
    }

    fn sign(&self, text: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature).unwrap();
                signature
            }
            Self::Ec(pair) => pair.sign(&SystemRandom::new(), text).unwrap().as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(text).as_ref().to_vec(),
        }
    }

    fn token(&self, kid: &str, claims: &Value) -> String {
        self.token_with(
            &json!({"alg": self.alg(), "kid": kid, "typ": "JWT"}).to_string(),
            &claims.to_string(),
        )
    }

    /// Signs a header and claims as they are.
    fn token_with(&self, header: &str, claims: &str) -> String {
        let signed = unsigned(header, claims);
        let signature = encode_base64url(&self.sign(signed.as_bytes()));
        format!("{signed}.{signature}")
    }
}

fn unsigned(header: &str, claims: &str) -> String {
    format!("{}.{}", encode_base64url(header.as_bytes()), encode_base64url(claims.as_bytes()))
}

fn set(keys: &[Value]) -> KeySet {
    KeySet::parse(json!({"keys": keys}).to_string().as_bytes()).unwrap()
}

fn rules() -> Rules {
    Rules {
        issuer: ISSUER.to_owned(),
        audiences: vec!["callseal".to_owned(), "other".to_owned()],
        parties: vec!["https://app.example.com".to_owned()],
        algorithms: Algorithm::ALL.into(),
        tenant: "callseal_tenant".parse().unwrap(),
        role: "app_metadata.callseal_role".parse().unwrap(),
        roles: BTreeMap::new(),
        required: Vec::new(),
        second_factor: None,
        leeway: Duration::from_secs(30),
        max_age: Duration::from_secs(600),
    }
}

fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "user_1", "aud": "callseal", "azp": "https://app.example.com",
        "iat": NOW.secs(), "nbf": NOW.secs(), "exp": NOW.secs() + 60, "jti": "token-1",
        "callseal_tenant": "acme", "app_metadata": {"callseal_role": "player"},
    })
}

/// The claims with one changed; null takes it away.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    if claims[name].is_null() {
        claims.as_object_mut().unwrap().remove(name);
    }
    claims
}

fn verify(token: &str, keys: &KeySet, rules: &Rules) -> Result<Principal, Refused> {
    Unverified::parse(token, rules)?.verify(keys, rules, NOW)
}

#[test]
fn a_token_says_who_brings_it_however_it_is_signed() {
    let pairs = [Pair::rsa(), Pair::ec(), Pair::ed()];
    let keys: Vec<_> = pairs.iter().zip(["r", "e", "o"]).map(|(pair, kid)| pair.jwk(kid)).collect();
    let keys = set(&keys);
    for (pair, kid) in pairs.iter().zip(["r", "e", "o"]) {
        let principal = verify(&pair.token(kid, &claims()), &keys, &rules()).unwrap();
        assert_eq!((principal.actor.as_str(), principal.key.as_str()), ("jwt:user_1", "token-1"));
        assert_eq!((principal.roles, principal.reach.to_string()), (vec![Role::Player], "acme".to_owned()));
        let one = Rules { algorithms: vec![Algorithm::from_name(pair.alg()).unwrap()], ..rules() };
        assert!(verify(&pair.token(kid, &claims()), &keys, &one).is_ok());
    }
}

#[test]
fn a_key_serves_only_the_algorithm_it_is_of() {
    let (rsa, ec, ed) = (Pair::rsa(), Pair::ec(), Pair::ed());
    let jwk = rsa.jwk("k");
    let keys = set(std::slice::from_ref(&jwk));
    let of = |alg: &str| json!({"alg": alg, "kid": "k"}).to_string();
    let claims = claims().to_string();
    // What a shared secret would have to be: anything that is public.
    let n = jwk["n"].as_str().unwrap();
    for secret in [n.as_bytes(), &decode_base64url(n.as_bytes()).unwrap(), jwk.to_string().as_bytes(), b""] {
        for alg in ["HS256", "HS384", "HS512"] {
            let signed = unsigned(&of(alg), &claims);
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
            let token = format!("{signed}.{}", encode_base64url(tag.as_ref()));
            assert_eq!(verify(&token, &keys, &rules()), Err(Refused::Algorithm));
        }
    }
    for alg in ["none", "None", "NONE", "nOnE", "", "RS256 ", "rs256", "PS256", "RS384", "ES384", "ES256K"] {
        let signed = unsigned(&of(alg), &claims);
        for signature in [String::new(), encode_base64url(&rsa.sign(signed.as_bytes()))] {
            assert_eq!(verify(&format!("{signed}.{signature}"), &keys, &rules()), Err(Refused::Algorithm));
        }
    }
    // The right kid with another kind of key: neither ours nor theirs.
    for (pair, alg) in [(&ec, "ES256"), (&ed, "EdDSA"), (&rsa, "ES256"), (&rsa, "EdDSA")] {
        assert_eq!(verify(&pair.token_with(&of(alg), &claims), &keys, &rules()), Err(Refused::UnknownKey));
    }
    for pair in [&ec, &ed, &Pair::rsa()] {
        assert_eq!(verify(&pair.token_with(&of("RS256"), &claims), &keys, &rules()), Err(Refused::Signature));
    }
    let only_ec = Rules { algorithms: vec![Algorithm::Es256], ..rules() };
    assert_eq!(verify(&rsa.token_with(&of("RS256"), &claims), &keys, &only_ec), Err(Refused::Algorithm));
}

#[test]
fn keys_that_a_token_brings_along_are_not_looked_at() {
    let (ours, theirs) = (Pair::ec(), Pair::ec());
    let keys = set(&[ours.jwk("k")]);
    let jwk = theirs.jwk("k");
    for header in [
        json!({"alg": "ES256", "kid": "k", "jwk": jwk}),
        json!({"alg": "ES256", "kid": "k", "jku": "https://evil.example.com/keys"}),
        json!({"alg": "ES256", "kid": "k", "x5u": "https://evil.example.com/", "x5c": ["MIIB"]}),
    ] {
        let token = theirs.token_with(&header.to_string(), &claims().to_string());
        assert_eq!(verify(&token, &keys, &rules()), Err(Refused::Signature));
    }
    for kid in ["other", "", "K", "../k"] {
        assert_eq!(verify(&ours.token(kid, &claims()), &keys, &rules()), Err(Refused::UnknownKey), "{kid}");
    }
}

#[test]
fn a_changed_token_is_worth_nothing() {
    let pair = Pair::ec();
    let (keys, token) = (set(&[pair.jwk("k")]), pair.token("k", &claims()));
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(verify(&changed, &keys, &rules()).is_err(), "byte {at}");
    }
    for length in 0..token.len() {
        assert!(verify(&token[..length], &keys, &rules()).is_err(), "{length} bytes");
    }
    let huge = pair.token("k", &with("padding", json!("x".repeat(MAX_TOKEN_BYTES))));
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b.c.d",
        &format!("{token}="),
        &format!(" {token}"),
        &huge,
        &"x".repeat(1 << 20),
    ] {
        let refused = verify(bad, &keys, &rules()).unwrap_err();
        assert!(matches!(refused, Refused::Malformed(_)), "{refused}");
    }
}

#[test]
fn headers_that_ask_for_more_are_refused() {
    let pair = Pair::ec();
    let keys = set(&[pair.jwk("k")]);
    for header in [
        r#"{"alg":"ES256"}"#,
        r#"{"kid":"k"}"#,
        r#"{"alg":"ES256","kid":7}"#,
        r#"{"alg":"ES256","kid":"k","crit":["b64"],"b64":false}"#,
        r#"{"alg":"ES256","kid":"k","typ":"JWE"}"#,
        r#"{"alg":"none","alg":"ES256","kid":"k"}"#,
        r#"{"alg":["ES256"],"kid":"k"}"#,
        r#"["ES256"]"#,
        "",
    ] {
        let refused = verify(&pair.token_with(header, &claims().to_string()), &keys, &rules()).unwrap_err();
        assert!(matches!(refused, Refused::Malformed(_)), "{header}: {refused}");
    }
    for header in [r#"{"alg":"ES256","kid":"k"}"#, r#"{"alg":"ES256","kid":"k","typ":"at+JWT","cat":"x"}"#] {
        assert!(verify(&pair.token_with(header, &claims().to_string()), &keys, &rules()).is_ok());
    }
}

/// Signs these claims, one at a time, and holds what becomes of them against what is wanted.
fn assert_refused(cases: &[(&str, Value, Refused)]) {
    let pair = Pair::ed();
    let keys = set(&[pair.jwk("k")]);
    for (name, value, wanted) in cases {
        let token = pair.token("k", &with(name, value.clone()));
        assert_eq!(verify(&token, &keys, &rules()).as_ref(), Err(wanted), "{name}: {value}");
    }
}

const MALFORMED: Refused = Refused::Malformed("claims");

#[test]
fn a_token_of_or_for_somebody_else_is_refused() {
    assert_refused(&[
        ("iss", json!("https://id.example.com/"), Refused::Issuer),
        ("iss", json!("https://evil.example.com"), Refused::Issuer),
        ("iss", Value::Null, MALFORMED),
        ("iss", json!([ISSUER]), MALFORMED),
        ("aud", json!("callseal2"), Refused::Audience),
        ("aud", json!([]), Refused::Audience),
        ("aud", json!(["x", "y"]), Refused::Audience),
        ("aud", Value::Null, Refused::Audience),
        ("aud", json!(7), MALFORMED),
        ("azp", json!("https://evil.example.com"), Refused::Party),
        ("azp", Value::Null, Refused::Party),
        ("azp", json!(["https://app.example.com"]), MALFORMED),
    ]);
}

#[test]
fn a_token_has_its_time() {
    let now = NOW.secs();
    assert_refused(&[
        ("exp", json!(now - 30), Refused::Expired),
        ("exp", json!(0), Refused::Expired),
        ("exp", Value::Null, MALFORMED),
        ("exp", json!("2099-01-01"), MALFORMED),
        ("exp", json!((now + 60).to_string()), MALFORMED),
        ("exp", json!(1e300), MALFORMED),
        ("exp", json!(-1), MALFORMED),
        ("nbf", json!(now + 31), Refused::NotYet),
        ("nbf", json!("tomorrow"), MALFORMED),
        ("iat", json!(now + 31), Refused::NotYet),
        ("iat", json!(now - 631), Refused::TooOld),
        ("iat", Value::Null, MALFORMED),
    ]);
}

#[test]
fn a_token_is_of_somebody_of_one_tenant_in_a_role() {
    let role = || Refused::Role("app_metadata.callseal_role".to_owned());
    let tenant = || Refused::Tenant("callseal_tenant".to_owned());
    assert_refused(&[
        ("sub", Value::Null, Refused::Subject),
        ("sub", json!(""), Refused::Subject),
        ("sub", json!("a b"), Refused::Subject),
        ("sub", json!("a\nactor=root"), Refused::Subject),
        ("sub", json!("x".repeat(129)), Refused::Subject),
        ("sub", json!("jösé"), Refused::Subject),
        ("sub", json!(7), MALFORMED),
        ("callseal_tenant", Value::Null, tenant()),
        ("callseal_tenant", json!("*"), tenant()),
        ("callseal_tenant", json!("ACME"), tenant()),
        ("callseal_tenant", json!("acme/other"), tenant()),
        ("callseal_tenant", json!(["acme"]), tenant()),
        ("callseal_tenant", json!({"id": "acme"}), tenant()),
        ("app_metadata", Value::Null, role()),
        ("app_metadata", json!({"callseal_role": "root"}), role()),
        ("app_metadata", json!({"callseal_role": []}), role()),
        ("app_metadata", json!({"callseal_role": ["player", 7]}), role()),
        ("app_metadata", json!({"callseal_role": vec!["player"; 33]}), role()),
        ("app_metadata", json!({"callseal_role": {"player": true}}), role()),
        ("app_metadata", json!("callseal_role"), role()),
    ]);
}

#[test]
fn bounds_are_where_they_are_said_to_be() {
    let (pair, now) = (Pair::ed(), NOW.secs());
    let keys = set(&[pair.jwk("k")]);
    for (name, value) in [
        ("exp", json!(now - 29)),
        ("nbf", json!(now + 30)),
        ("nbf", Value::Null),
        ("iat", json!(now + 30)),
        ("iat", json!(now - 630)),
        ("aud", json!(["x", "other"])),
        ("sub", json!("x".repeat(128))),
        ("app_metadata", json!({"callseal_role": ["basic", "player"]})),
    ] {
        let token = pair.token("k", &with(name, value.clone()));
        assert!(verify(&token, &keys, &rules()).is_ok(), "{name}: {value}");
    }
    let twice = claims().to_string().replacen('{', r#"{"iss":"https://evil.example.com","#, 1);
    let header = json!({"alg": "EdDSA", "kid": "k"}).to_string();
    assert_eq!(verify(&pair.token_with(&header, &twice), &keys, &rules()), Err(MALFORMED));
}

#[test]
fn a_token_without_an_id_is_told_from_others() {
    let pair = Pair::ed();
    let keys = set(&[pair.jwk("k")]);
    let key = |claims: &Value| verify(&pair.token("k", claims), &keys, &rules()).unwrap().key;
    let (one, other) = (key(&with("jti", Value::Null)), key(&with("jti", json!("not visible\n"))));
    assert!(one.len() == 16 && other.len() == 16 && one != other, "{one} {other}");
}

#[test]
fn roles_have_the_names_of_the_issuer_and_some_need_a_second_factor() {
    let pair = Pair::ed();
    let keys = set(&[pair.jwk("k")]);
    let named = Rules {
        role: "org_role".parse().unwrap(),
        roles: BTreeMap::from([
            ("org:admin".to_owned(), Role::Operator),
            ("org:member".to_owned(), Role::Player),
        ]),
        second_factor: Some((
            Wanted { claim: "aal".parse().unwrap(), values: vec!["aal2".to_owned()] },
            vec![Role::Operator],
        )),
        required: vec![Wanted { claim: "email_verified".parse().unwrap(), values: vec!["true".to_owned()] }],
        ..rules()
    };
    let roles = |role: Value, aal: Value| {
        let mut claims = with("org_role", role);
        (claims["aal"], claims["email_verified"]) = (aal, json!(true));
        verify(&pair.token("k", &claims), &keys, &named).map(|principal| principal.roles)
    };
    assert_eq!(roles(json!("org:admin"), json!("aal2")), Ok(vec![Role::Operator]));
    assert_eq!(roles(json!("org:admin"), json!(["aal1", "aal2"])), Ok(vec![Role::Operator]));
    for without in [json!("aal1"), json!(2), json!(true), json!(null), json!({"aal2": true})] {
        assert_eq!(roles(json!("org:admin"), without), Err(Refused::SecondFactor));
    }
    assert_eq!(roles(json!(["org:admin", "org:member"]), json!("aal1")), Ok(vec![Role::Player]));
    assert_eq!(roles(json!("org:member"), json!("aal1")), Ok(vec![Role::Player]));
    assert_eq!(roles(json!("operator"), json!("aal2")), Err(Refused::Role("org_role".to_owned())));
    for unmet in [json!(false), json!("yes"), json!(1)] {
        let mut claims = with("org_role", json!("org:member"));
        claims["email_verified"] = unmet;
        let refused = verify(&pair.token("k", &claims), &keys, &named);
        assert_eq!(refused, Err(Refused::Required("email_verified".to_owned())));
    }
}

#[test]
fn key_sets_are_read_with_care() {
    let (rsa, ec, ed) = (Pair::rsa(), Pair::ec(), Pair::ed());
    let changed = |pair: &Pair, name: &str, value: Value| {
        let mut jwk = pair.jwk("k");
        jwk[name] = value;
        jwk
    };
    for useless in [
        changed(&rsa, "kid", Value::Null),
        changed(&rsa, "use", json!("enc")),
        changed(&rsa, "alg", json!("RS512")),
        changed(&rsa, "alg", json!("RSA-OAEP")),
        changed(&rsa, "d", json!("AQAB")),
        changed(&rsa, "n", Value::Null),
        changed(&rsa, "n", json!("+/=")),
        changed(&ec, "crv", json!("P-384")),
        changed(&ec, "y", json!("AAAA")),
        changed(&ed, "key_ops", json!(["sign"])),
        changed(&ed, "crv", json!("X25519")),
        json!({"kty": "oct", "kid": "k", "k": "c2VjcmV0"}),
        json!("key"),
    ] {
        let keys = KeySet::parse(json!({"keys": [useless]}).to_string().as_bytes());
        assert_eq!(keys.unwrap_err(), BadKeySet::NoKey, "{useless}");
        assert_eq!(set(&[useless, ec.jwk("good")]).count(), 1, "the others are used");
    }
    for bad in [&b""[..], b"{}", b"[]", b"{\"keys\":{}}", b"<html>"] {
        assert_eq!(KeySet::parse(bad).unwrap_err(), BadKeySet::Malformed);
    }
    let many = json!({"keys": vec![ec.jwk("k"); 65]}).to_string();
    assert_eq!(KeySet::parse(many.as_bytes()).unwrap_err(), BadKeySet::TooMany);
    // A point that is none, and a modulus that is too short, have signed nothing.
    let off = changed(&ec, "x", json!(encode_base64url(&[7; 32])));
    assert_eq!(verify(&ec.token("k", &claims()), &set(&[off]), &rules()), Err(Refused::Signature));
    let short = changed(&rsa, "n", json!(encode_base64url(&[0xff; 128])));
    assert_eq!(verify(&rsa.token("k", &claims()), &set(&[short]), &rules()), Err(Refused::Signature));
}

#[test]
fn claims_are_found_under_whole_names_and_step_by_step() {
    let claims = json!({"https://example.com/tenant": "a", "o": {"slg": "b", "x": {"y": "c"}}});
    for (path, wanted) in [("https://example.com/tenant", "a"), ("o.slg", "b"), ("o.x.y", "c")] {
        assert_eq!(path.parse::<ClaimPath>().unwrap().find(&claims), Some(&json!(wanted)));
    }
    assert_eq!("o.x.z".parse::<ClaimPath>().unwrap().find(&claims), None);
    for bad in ["", ".", "a.", ".a", "a..b", "a\nb", "a.b.c.d.e.f.g.h.i", &"x".repeat(257)] {
        assert!(bad.parse::<ClaimPath>().is_err(), "{bad}");
    }
}
