//! Runs the recorded answers of Twilio's own libraries against ours; how they were made stands in the file's `about`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const VECTORS: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/twilio-signatures.json"));
const TOKEN: &str = "f1e2d3c4b5a6978800112233445566aa";
const BASE: &str = "wss://media.example.com";
const TARGET: &str = "/twilio/v1/acme-dental";

fn section(name: &str) -> Vec<Value> {
    let whole: Value = serde_json::from_str(VECTORS).unwrap();
    whole[name].as_array().unwrap().clone()
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or_else(|| panic!("{name} of {row}"))
}

fn tokens_only<'a>(auth_tokens: &'a [&'a [u8]]) -> TwilioSecrets<'a> {
    TwilioSecrets { auth_tokens, shared_keys: &|_| None, require_shared_key: false }
}

fn check(
    base: &str,
    target: &str,
    token: &str,
    signatures: &[&[u8]],
    settings: &[&[u8]],
) -> Result<(), Refusal> {
    let tokens = [token.as_bytes()];
    verify_handshake(&tokens_only(&tokens), base, target, SignatureHeaders { signatures, settings })
}

fn params(row: &Value) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    for (name, value) in row["params"].as_object().unwrap() {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        fields.extend(values.iter().map(|value| (name.clone(), value.as_str().unwrap().to_owned())));
    }
    fields
}

#[test]
fn every_vector_gives_its_signature() {
    let vectors = section("vectors");
    assert_eq!(vectors.len(), 23);
    for row in &vectors {
        let algorithm = Algorithm::parse(text(row, "algorithm")).unwrap();
        let received = sign::decode_base64(text(row, "signature").as_bytes()).unwrap();
        let url = CandidateUrl([text(row, "url"), "", "", "", ""]);
        let key = text(row, "token").as_bytes();
        let matches = algorithm.matches(key, url, &signed_form(&params(row)), &received);
        assert!(bool::from(matches), "{}", row["id"]);
        if params(row).is_empty() && algorithm == Algorithm::HmacSha1 {
            assert_eq!(sign_url(key, text(row, "url")), text(row, "signature"), "{}", row["id"]);
        }
    }
}

#[test]
fn every_handshake_is_decided_as_recorded() {
    let handshakes = section("handshakes");
    assert_eq!(handshakes.len(), 22);
    for row in &handshakes {
        let (target, headers) = split_request(text(row, "request"));
        let values = |wanted: &str| -> Vec<&[u8]> {
            headers.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_bytes()).collect()
        };
        let tokens: Vec<&[u8]> = row["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token.as_str().unwrap().as_bytes())
            .collect();
        let known: BTreeMap<String, String> =
            serde_json::from_value(row.get("shared_keys").cloned().unwrap_or_else(|| serde_json::json!({})))
                .unwrap();
        let shared_keys = |id: &str| known.get(id).map(String::as_bytes);
        let secrets =
            TwilioSecrets { auth_tokens: &tokens, shared_keys: &shared_keys, require_shared_key: false };
        let (signatures, settings) =
            (values("x-twilio-signature"), values("x-twilio-webhooks-signature-settings"));
        let headers = SignatureHeaders { signatures: &signatures, settings: &settings };
        let base = row["public_bases"][0].as_str().unwrap();
        let decision = verify_handshake(&secrets, base, target, headers);
        match (text(row, "expect"), text(row, "id")) {
            // Method and upgrade are decided before the signature, which is valid in the one and absent in the other.
            ("426", "not-websocket") | ("101", _) => assert_eq!(decision, Ok(()), "{}", row["id"]),
            ("405", "post") => assert_eq!(decision, Err(Refusal::MissingSignature)),
            ("403", id) => assert_eq!(decision, Err(refusal_of(id)), "{id}"),
            other => panic!("unexpected row {other:?}"),
        }
    }
}

fn refusal_of(handshake: &str) -> Refusal {
    match handshake {
        "no-header" => Refusal::MissingSignature,
        "empty-header" | "urlsafe-b64" => Refusal::MalformedSignature,
        "two-headers" => Refusal::RepeatedHeader,
        "sha256-unknown-key" => Refusal::UnknownSharedKey,
        "sha512" => Refusal::UnknownAlgorithm,
        _ => Refusal::Mismatch,
    }
}

/// Returns the request target and the headers, names in lower case.
fn split_request(request: &str) -> (&str, Vec<(String, &str)>) {
    let mut lines = request.trim_end_matches("\r\n").split("\r\n");
    let target = lines.next().unwrap().split(' ').nth(1).unwrap();
    let headers = lines.map(|line| line.split_once(':').unwrap());
    (target, headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim())).collect())
}

#[test]
fn every_status_callback_is_decided_as_recorded() {
    let callbacks = section("status_callbacks");
    assert_eq!(callbacks.len(), 4);
    for row in &callbacks {
        let params = parse_form(text(row, "body").as_bytes()).unwrap();
        let tokens = [TOKEN.as_bytes()];
        let signatures = [text(row, "signature").as_bytes()];
        let headers = SignatureHeaders { signatures: &signatures, settings: &[] };
        let decision = verify_callback(&tokens_only(&tokens), text(row, "url"), &params, headers);
        let expected = if text(row, "expect") == "204" { Ok(()) } else { Err(Refusal::Mismatch) };
        assert_eq!(decision, expected, "{row}");
    }
}

#[test]
fn callbacks_may_come_by_get_and_with_a_port() {
    let vectors = section("vectors");
    let row = vectors.iter().find(|row| row["id"] == "callback-get").unwrap();
    let tokens = [TOKEN.as_bytes()];
    let signatures = [text(row, "signature").as_bytes()];
    let headers = SignatureHeaders { signatures: &signatures, settings: &[] };
    for port in ["", ":443", ":8443"] {
        let url = text(row, "url").replacen(".com", &format!(".com{port}"), 1);
        assert_eq!(verify_callback(&tokens_only(&tokens), &url, &[], headers), Ok(()), "{url}");
    }
    let slash = text(row, "url").replacen("stream-status", "stream-status/", 1);
    assert_eq!(verify_callback(&tokens_only(&tokens), &slash, &[], headers), Err(Refusal::Mismatch));
}

/// Where Twilio's libraries answer otherwise than we do, our answer and why.
const DIFFERENCES: [(&str, bool, &str); 6] = [
    ("signed with :443, server validates without port", true, "they add :80 to a wss URL, we add :443"),
    ("signed with :80, server validates without port", false, "they add :80 to a wss URL, we never do"),
    ("signed with slash, server validates without", true, "Twilio's documents tell servers to try the slash"),
    ("signed root with slash, server validates root without", true, "both arrive as GET /; python says no"),
    ("signed root without slash, server validates root with", true, "both arrive as GET /"),
    ("signed percent-encoded, server validates decoded", false, "nothing is normalised; node does"),
];

#[test]
fn libraries_agree_but_for_known_differences() {
    let vectors = section("vectors");
    let rows = section("sdk_validate_behaviour");
    assert_eq!(rows.len(), 13);
    for row in &rows {
        let vector = vectors.iter().find(|vector| vector["id"] == row["signature_of"]).unwrap();
        let url = text(row, "validated_url");
        let path = url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at);
        let (base, target) = url.split_at(path);
        let target = if target.is_empty() { "/" } else { target };
        let ours =
            check(base, target, text(row, "token"), &[text(vector, "signature").as_bytes()], &[]).is_ok();
        let theirs = (row["twilio_python_validate"].as_bool(), row["twilio_node_validateRequest"].as_bool());
        match DIFFERENCES.iter().find(|(case, ..)| row["case"] == *case) {
            Some((case, expected, why)) => {
                assert_eq!(ours, *expected, "{case}: {why}");
                assert_ne!(theirs, (Some(ours), Some(ours)), "{case} is no difference");
            }
            None => assert_eq!(theirs, (Some(ours), Some(ours)), "{}", row["case"]),
        }
    }
}

#[test]
fn candidates_are_the_documented_ones() {
    let listed = |base, target| candidates(base, target).map(|url| url.to_string()).collect::<Vec<_>>();
    assert_eq!(
        listed("wss://h.example", "/a"),
        ["wss://h.example/a", "wss://h.example/a/", "wss://h.example:443/a", "wss://h.example:443/a/"]
    );
    assert_eq!(
        listed("wss://h.example:8443", "/"),
        ["wss://h.example:8443/", "wss://h.example:8443", "wss://h.example/", "wss://h.example"]
    );
    assert_eq!(listed("wss://h.example", "/a/"), ["wss://h.example/a/", "wss://h.example:443/a/"]);
    assert_eq!(
        listed("wss://[2001:db8::1]", "/a/"),
        ["wss://[2001:db8::1]/a/", "wss://[2001:db8::1]:443/a/"]
    );
    assert_eq!(
        listed("wss://[2001:db8::1]:8443", "/a/"),
        ["wss://[2001:db8::1]:8443/a/", "wss://[2001:db8::1]/a/"]
    );
    assert_eq!(
        listed("wss://h.example/x:1", "/a/"),
        ["wss://h.example/x:1/a/", "wss://h.example:443/x:1/a/"]
    );
}

#[test]
fn a_port_is_found_in_the_authority_only() {
    let toggled = |url| with_and_without_port(url).map(|url| url.to_string())[1].clone();
    assert_eq!(toggled("https://h.example?at=1:2"), "https://h.example:443?at=1:2");
    assert_eq!(toggled("https://h.example:1?at=1:2"), "https://h.example?at=1:2");
    assert_eq!(toggled("https://h.example:1/a:2"), "https://h.example/a:2");
    for odd in ["", ":", "://", "é", "[", "wss:"] {
        assert_eq!(with_and_without_port(odd)[0].to_string(), odd);
    }
}

#[test]
fn odd_targets_and_headers_are_refused() {
    let good: &[u8] = b"xLfNepaevEGYXpPdNv+VBj1Jlm0=";
    assert_eq!(check(BASE, TARGET, TOKEN, &[good], &[]), Ok(()));
    for target in ["", "twilio", "/twilio/v1/acme-dental?x=1", "/twilio/v1/acme-dental#x", "*"] {
        assert_eq!(check(BASE, target, TOKEN, &[good], &[]), Err(Refusal::MalformedTarget), "{target}");
    }
    assert_eq!(check(BASE, TARGET, TOKEN, &[good, good], &[]), Err(Refusal::RepeatedHeader));
    // An account without a token must not verify under the empty key.
    let forged = sign_url(b"", "wss://media.example.com/twilio/v1/acme-dental");
    assert_eq!(check(BASE, TARGET, "", &[forged.as_bytes()], &[]), Err(Refusal::Mismatch));
    let sha256 = b"055riCcDXFRs5kKyg3sFm83BfAc7I/8LeX66k20uSXo=";
    assert_eq!(check(BASE, TARGET, TOKEN, &[sha256], &[]), Err(Refusal::MalformedSignature));
}

#[test]
fn settings_never_fall_back() {
    let rows: [(&[&[u8]], Refusal); 10] = [
        (&[b""], Refusal::MalformedSettings),
        (&[b"algorithm=HMAC_SHA1"], Refusal::MalformedSettings),
        (&[b"key=,algorithm=HMAC_SHA1"], Refusal::MalformedSettings),
        (&[b"key=a,key=a"], Refusal::MalformedSettings),
        (&[b"key=a,algorithm=HMAC_SHA1,algorithm=HMAC_SHA1"], Refusal::MalformedSettings),
        (&[b"key=a,"], Refusal::MalformedSettings),
        (&[b"key=\xff"], Refusal::MalformedSettings),
        (&[b"key=a,algorithm="], Refusal::UnknownAlgorithm),
        (&[b"key=a"], Refusal::UnknownSharedKey),
        (&[b"key=a", b"key=a"], Refusal::RepeatedHeader),
    ];
    for (settings, refusal) in rows {
        let decision = check(BASE, TARGET, TOKEN, &[b"xLfNepaevEGYXpPdNv+VBj1Jlm0="], settings);
        assert_eq!(decision, Err(refusal), "{settings:?}");
    }
}

#[test]
fn settings_choose_key_and_algorithm() {
    let shared_keys = |id: &str| (id == "K=1").then_some(b"sk-invented-shared-key-secret-7Qm2".as_slice());
    let token = [TOKEN.as_bytes()];
    let secrets = TwilioSecrets { auth_tokens: &token, shared_keys: &shared_keys, require_shared_key: true };
    let verify = |signature: &str, settings: &[&[u8]]| {
        let signatures = [signature.as_bytes()];
        verify_handshake(&secrets, BASE, TARGET, SignatureHeaders { signatures: &signatures, settings })
    };
    let (sha1, sha256) = ("Ooky0nq4YvC3pvzb0h79u1ksrmc=", "055riCcDXFRs5kKyg3sFm83BfAc7I/8LeX66k20uSXo=");
    assert_eq!(verify(sha1, &[b"key=K=1"]), Ok(()));
    assert_eq!(verify(sha1, &[b" key = K=1 , algorithm = hmac_sha1 , later = 1"]), Ok(()));
    assert_eq!(verify(sha256, &[b"algorithm=HMAC_SHA256,key=K=1"]), Ok(()));
    assert_eq!(verify(sha256, &[b"key=K=1"]), Err(Refusal::MalformedSignature));
    assert_eq!(verify(sha1, &[b"key=K=1,algorithm=HMAC_SHA256"]), Err(Refusal::MalformedSignature));
    assert_eq!(verify("xLfNepaevEGYXpPdNv+VBj1Jlm0=", &[b"key=K=1"]), Err(Refusal::Mismatch));
    assert_eq!(verify("xLfNepaevEGYXpPdNv+VBj1Jlm0=", &[]), Err(Refusal::SharedKeyRequired));
}

#[test]
fn forms_are_read_strictly() {
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(parse_form(b""), Ok(vec![]));
    assert_eq!(
        parse_form(b"A=Zo%C3%AB+%2b+1&a=x=y&B=&B="),
        Ok(vec![field("A", "Zoë + 1"), field("a", "x=y"), field("B", ""), field("B", "")])
    );
    for bad in
        [&b"a"[..], b"a=1&", b"&a=1", b"a=%", b"a=%4", b"a=%zz", b"a=\xff", b"a=%ff", b"a=\n", b"a=1&&b=2"]
    {
        assert_eq!(parse_form(bad), Err(FormFault::Malformed), "{bad:?}");
    }
    let fields = |count| vec!["a=1"; count].join("&").into_bytes();
    assert_eq!(parse_form(&fields(MAX_FORM_FIELDS)).map(|form| form.len()), Ok(MAX_FORM_FIELDS));
    assert_eq!(parse_form(&fields(MAX_FORM_FIELDS + 1)), Err(FormFault::TooLarge));
    let long = |bytes: usize| format!("a={}", "x".repeat(bytes - 2)).into_bytes();
    assert!(parse_form(&long(MAX_FORM_BYTES)).is_ok());
    assert_eq!(parse_form(&long(MAX_FORM_BYTES + 1)), Err(FormFault::TooLarge));
}

proptest! {
    #[test]
    fn only_the_signed_url_passes(path in "/[a-z0-9%/-]{0,20}", other in "/[a-z0-9%/-]{0,20}") {
        let signature = sign_url(TOKEN.as_bytes(), &format!("{BASE}{path}"));
        let decision = check(BASE, &other, TOKEN, &[signature.as_bytes()], &[]);
        let allowed = other == path || (!other.ends_with('/') && format!("{other}/") == path);
        prop_assert_eq!(decision.is_ok(), allowed);
    }

    #[test]
    fn forms_come_back(fields in proptest::collection::vec((any::<String>(), any::<String>()), 1..5)) {
        let mut body = String::new();
        for (name, value) in &fields {
            if !body.is_empty() {
                body.push('&');
            }
            percent::encode_into(name, &mut body);
            body.push('=');
            percent::encode_into(value, &mut body);
        }
        prop_assert_eq!(parse_form(body.as_bytes()), Ok(fields));
    }

    #[test]
    fn any_input_is_answered(body in proptest::collection::vec(any::<u8>(), 0..64), url in any::<String>()) {
        if let Ok(form) = parse_form(&body) {
            prop_assert!(form.len() <= body.len());
        }
        let headers = SignatureHeaders { signatures: &[b"xLfNepaevEGYXpPdNv+VBj1Jlm0="], settings: &[&body] };
        prop_assert!(verify_callback(&tokens_only(&[b"t"]), &url, &[], headers).is_err());
    }
}
