//! Round trips, the published vectors, and what an attacker would try on a URL.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

const KEY: &[u8] = b"a grant key of thirty-two bytes!";
const RECORDING: &str = "018f4c2e7b5a7c3d9e1f0a2b3c4d5e6f";
const IAT: u64 = 1_760_000_000;

fn tenant() -> TenantId {
    "acme-dental".parse().unwrap()
}

fn recording() -> RecordingId {
    RECORDING.parse().unwrap()
}

fn small() -> Grant {
    Grant {
        tenant: tenant(),
        recording: recording(),
        iat: IAT,
        exp: IAT + 300,
        kid: "g1".to_owned(),
        sub: "user/42".to_owned(),
        reason: None,
        ip: None,
        track: TrackSelection::Both,
        dl: false,
        format: None,
    }
}

fn full() -> Grant {
    Grant {
        reason: Some("Beschwerde #7: größer & lauter?".to_owned()),
        ip: Some("203.0.113.0/24".parse().unwrap()),
        track: TrackSelection::Caller,
        dl: true,
        format: Some(Encoding::Ulaw),
        ..small()
    }
}

fn request() -> GrantCheck<'static> {
    GrantCheck {
        key: Some(KEY),
        now: UnixMillis((IAT + 10) * 1000),
        limits: GrantLimits { max_ttl_secs: 900, skew_secs: 30 },
        source: Some("203.0.113.7".parse().unwrap()),
        not_before: None,
    }
}

fn parse(query: &str) -> Result<SignedGrant, GrantFault> {
    SignedGrant::parse_query(&tenant(), recording(), query)
}

fn decide(query: &str) -> Result<Grant, String> {
    let signed = parse(query).map_err(|fault| fault.to_string())?;
    signed.verify(&request()).cloned().map_err(|denied| denied.code().to_owned())
}

#[test]
fn what_is_signed_comes_back() {
    for grant in [small(), full()] {
        assert_eq!(grant.validate(), Ok(()));
        assert_eq!(decide(&grant.sign(KEY)), Ok(grant));
    }
}

#[test]
fn debug_output_gives_nothing_away() {
    let signed = parse(&full().sign(KEY)).unwrap();
    assert_eq!(format!("{signed:?}"), "SignedGrant { kid: \"g1\", .. }");
}

#[test]
fn vectors_are_reproduced() {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/grants.json"));
    let file: Value = serde_json::from_str(text).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert!(vectors.len() >= 8);
    for vector in vectors {
        let word = |name: &str| vector[name].as_str().unwrap_or_else(|| panic!("{name} of {vector}"));
        let field = |name: &str| vector["fields"].get(name).and_then(Value::as_str);
        let number = |name: &str| vector["fields"][name].as_u64().unwrap();
        let grant = Grant {
            tenant: word("tenant").parse().unwrap(),
            recording: word("recording").parse().unwrap(),
            iat: number("iat"),
            exp: number("exp"),
            kid: field("kid").unwrap().to_owned(),
            sub: field("sub").unwrap().to_owned(),
            reason: field("reason").map(str::to_owned),
            ip: field("ip").map(|range| range.parse().unwrap()),
            track: field("track").map_or(TrackSelection::Both, |track| parse_track(track).unwrap()),
            dl: vector["fields"].get("dl").is_some(),
            format: field("format").map(|format| parse_format(format).unwrap()),
        };
        let key = unhex(word("key_hex"));
        let (path, query) = word("url").split_once('?').unwrap();
        assert_eq!(path, format!("/play/{}/{}.wav", grant.tenant, grant.recording));
        let signed = SignedGrant::parse_query(&grant.tenant, grant.recording, query).unwrap();
        assert_eq!(signed.canonical_query, word("canonical_query"));
        assert_eq!(
            string_to_sign(&grant.tenant, grant.recording, &signed.canonical_query),
            word("string_to_sign")
        );
        assert_eq!(sign::encode_base64url(&signed.signature), word("sig"));
        let source = grant.ip.map(|_| word("listener").parse().unwrap());
        let check = GrantCheck { key: Some(&key), now: UnixMillis(grant.iat * 1000), source, ..request() };
        assert_eq!(signed.verify(&check), Ok(&grant), "{}", word("name"));
        if word("made_by") == "callseal" {
            assert_eq!(grant.sign(&key), query, "{}", word("name"));
        }
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn no_flipped_bit_is_accepted() {
    let query = full().sign(KEY);
    let canonical_query = parse(&query).unwrap().canonical_query;
    let (mut tried, mut same_value) = (0, 0);
    for at in 0..query.len() {
        for bit in 0..8 {
            let mut bytes = query.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            tried += 1;
            let Ok(flipped) = String::from_utf8(bytes) else { continue };
            // The case of a digit within an escape is the one thing that may change: the value is the same.
            if parse(&flipped).is_ok_and(|signed| signed.canonical_query == canonical_query)
                && query.to_lowercase() == flipped.to_lowercase()
                && query.ends_with(flipped.rsplit('&').next().unwrap())
            {
                same_value += 1;
                continue;
            }
            assert!(decide(&flipped).is_err(), "{flipped}");
        }
    }
    assert_eq!(tried, query.len() * 8);
    let letters_in_escapes = query.split('%').skip(1).flat_map(|piece| piece[..2].chars());
    assert_eq!(same_value, letters_in_escapes.filter(|digit| digit.is_ascii_alphabetic()).count());
}

#[test]
fn no_cut_or_doubled_byte_is_accepted() {
    let query = full().sign(KEY);
    for at in (0..query.len()).filter(|at| query.is_char_boundary(*at)) {
        assert!(decide(&query[..at]).is_err(), "cut at {at}");
        let doubled = format!("{}{}", &query[..=at], &query[at..]);
        assert!(decide(&doubled).is_err(), "{doubled}");
        let removed = format!("{}{}", &query[..at], &query[at + 1..]);
        assert!(decide(&removed).is_err(), "{removed}");
    }
}

#[test]
fn signatures_have_one_spelling() {
    let query = small().sign(KEY);
    let (rest, sig) = query.split_once("&sig=").unwrap();
    let with = |sig: &str| decide(&format!("{rest}&sig={sig}"));
    assert_eq!(decide(rest), Err("parameter \"sig\" is missing".to_owned()));
    let malformed = Err("parameter \"sig\" is malformed".to_owned());
    let standard = sign::encode_base64(&parse(&query).unwrap().signature);
    let bytes = parse(&query).unwrap().signature;
    let non_canonical = format!("{}{}", &sig[..42], if sig.ends_with('A') { 'B' } else { '_' });
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    for bad in [
        "",
        &format!("{sig}="),
        &format!("{sig}%3D"),
        &standard,
        &sig[..42],
        &non_canonical,
        &hex,
        "null",
        "%00",
    ] {
        assert_eq!(with(bad), malformed, "{bad}");
    }
    assert_eq!(decide(&format!("{query}&sig={sig}")), Err("parameter \"sig\" is repeated".to_owned()));
    assert_eq!(with(&sign::encode_base64url(&[0; 32])), Err("grant_signature".to_owned()));
}

#[test]
fn spelling_and_order_do_not_matter() {
    let query = small().sign(KEY);
    assert!(query.contains("sub=user%2F42"), "{query}");
    for same in ["sub=user%2f42", "sub=user/42", "%73ub=%75ser%2F42"] {
        assert_eq!(decide(&query.replace("sub=user%2F42", same)), Ok(small()), "{same}");
    }
    let mut pieces: Vec<_> = query.split('&').collect();
    for _ in 0..pieces.len() {
        pieces.rotate_left(1);
        assert_eq!(decide(&pieces.join("&")), Ok(small()));
    }
    let spaced = Grant { sub: "a b".to_owned(), ..small() }.sign(KEY);
    assert!(decide(&spaced).is_ok());
    assert_eq!(decide(&spaced.replace("a%20b", "a+b")), Err("grant_signature".to_owned()));
}

#[test]
fn parameters_are_checked() {
    let query = small().sign(KEY);
    let with = |more: &str| parse(&format!("{query}&{more}")).unwrap_err();
    let instead = |name: &str, value: &str| {
        let pieces = query.split('&').map(|piece| match piece.split_once('=') {
            Some((known, _)) if known == name => format!("{name}={value}"),
            _ => piece.to_owned(),
        });
        parse(&pieces.collect::<Vec<_>>().join("&"))
    };
    let without = |name: &str| {
        let pieces = query.split('&').filter(|piece| !piece.starts_with(&format!("{name}=")));
        parse(&pieces.collect::<Vec<_>>().join("&")).unwrap_err()
    };
    for name in ["iat", "exp", "kid", "sub", "sig"] {
        assert_eq!(without(name), GrantFault::Missing(name));
        assert_eq!(with(&format!("{name}=1")), GrantFault::Repeated(name));
        assert_eq!(instead(name, ""), Err(GrantFault::Malformed(name)));
        assert_eq!(instead(name, "%00"), Err(GrantFault::Malformed(name)));
    }
    let numbers = [
        "1760000600.0",
        "-1",
        "+1760000600",
        "01760000600",
        "1.76e9",
        "1e9",
        "0x10",
        " 1760000600",
        "1760000600 ",
        "9007199254740993",
        "9223372036854775808",
        "18446744073709551616",
        "%D9%A1",
        "1_760_000_600",
        "NaN",
        "00",
        "%201760000600",
    ];
    for number in numbers {
        assert!(matches!(instead("exp", number), Err(GrantFault::Malformed("exp"))), "{number}");
        assert!(matches!(instead("iat", number), Err(GrantFault::Malformed("iat"))), "{number}");
    }
    assert!(instead("exp", "9007199254740992").is_ok());
    assert_eq!(instead("exp", &IAT.to_string()), Err(GrantFault::Malformed("exp")));
    assert_eq!(instead("exp", "0"), Err(GrantFault::Malformed("exp")));
    for kid in ["..%2Fg1", "../g1", "g1%00", "g.1", "g1;", "g%201", "g%C4%B1", &"k".repeat(65)] {
        assert_eq!(instead("kid", kid), Err(GrantFault::Malformed("kid")), "{kid}");
    }
    for sub in ["a%0Ab", "a%7Fb", "a b", "é", "a%", "a%2", "a=b", "a%FF", "a#b", "a\"b", &"s".repeat(257)] {
        assert_eq!(instead("sub", sub), Err(GrantFault::Malformed("sub")), "{sub}");
    }
    assert!(instead("sub", &"s".repeat(256)).is_ok());
}

#[test]
fn optional_parameters_are_checked() {
    let query = small().sign(KEY);
    let with = |more: &str| parse(&format!("{query}&{more}")).unwrap_err();
    let rows = [
        ("track=Both", "track"),
        ("track=", "track"),
        ("track=b%D0%BEth", "track"),
        ("dl=0", "dl"),
        ("dl=true", "dl"),
        ("dl=", "dl"),
        ("format=wav", "format"),
        ("format=PCM", "format"),
        ("ip=203.0.113.1/24", "ip"),
        ("ip=", "ip"),
        ("ip=example.com", "ip"),
        ("reason=", "reason"),
        ("reason=%0D%0A", "reason"),
    ];
    for (more, name) in rows {
        assert_eq!(with(more), GrantFault::Malformed(name), "{more}");
    }
    for unknown in
        ["v", "tenant", "recording", "alg", "SIG", "Exp", "exp[]", "exp ", "exp%00", "track;dl", "nbf", ""]
    {
        let escaped = unknown.replace(' ', "%20").replace('[', "%5B").replace(']', "%5D");
        assert!(matches!(with(&format!("{escaped}=1")), GrantFault::Unknown(_)), "{unknown}");
    }
    assert_eq!(with(&format!("{}=1", "x".repeat(100))), GrantFault::Unknown("x".repeat(32)));
    assert_eq!(with("track=both&track=both"), GrantFault::Repeated("track"));
    for broken in ["", "track", "&track=both", "tr%ck=both"] {
        assert_eq!(with(broken), GrantFault::Query, "{broken}");
    }
    assert_eq!(parse(""), Err(GrantFault::Missing("iat")));
    assert_eq!(parse("&"), Err(GrantFault::Query));
    assert_eq!(parse(&format!("?{query}")), Err(GrantFault::Unknown("?exp".to_owned())));
    assert_eq!(parse(&format!("reason={}", "x".repeat(MAX_QUERY_BYTES))), Err(GrantFault::Query));
    for added in
        ["track=caller", "track=both", "dl=1", "format=pcm", "format=ulaw", "reason=x", "ip=203.0.113.7"]
    {
        assert_eq!(decide(&format!("{query}&{added}")), Err("grant_signature".to_owned()), "{added}");
    }
    for removed in ["ip", "track", "dl", "format", "reason"] {
        let pieces = full().sign(KEY);
        let pieces = pieces.split('&').filter(|piece| !piece.starts_with(&format!("{removed}=")));
        let rest = pieces.collect::<Vec<_>>().join("&");
        assert_eq!(decide(&rest), Err("grant_signature".to_owned()), "{removed}");
    }
}

#[test]
fn the_largest_grant_fits() {
    let largest = Grant {
        iat: MAX_TIME_SECS - 1,
        exp: MAX_TIME_SECS,
        kid: "k".repeat(MAX_KID_BYTES),
        sub: "é".repeat(MAX_SUB_BYTES / 2),
        reason: Some(" ".repeat(MAX_REASON_BYTES)),
        ip: Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap()),
        ..full()
    };
    assert_eq!(parse(&largest.sign(KEY)).map(|signed| signed.grant), Ok(largest));
}

#[test]
fn a_grant_is_for_one_recording_of_one_tenant() {
    let query = small().sign(KEY);
    let places = [
        ("acme-denta", RECORDING),
        ("acme-dental2", RECORDING),
        ("other", RECORDING),
        ("acme-dental", "018f4c2e7b5a7c3d9e1f0a2b3c4d5e70"),
    ];
    for (tenant, recording) in places {
        let signed =
            SignedGrant::parse_query(&tenant.parse().unwrap(), recording.parse().unwrap(), &query).unwrap();
        assert_eq!(signed.verify(&request()), Err(Denied::Signature), "{tenant} {recording}");
    }
}

#[test]
fn keys_are_not_confused() {
    let query = small().sign(KEY);
    let signed = parse(&query).unwrap();
    let with = |key| signed.verify(&GrantCheck { key, ..request() }).map(|_| ());
    assert_eq!(signed.kid(), "g1");
    assert_eq!(with(None), Err(Denied::UnknownKey));
    assert_eq!(with(Some(b"")), Err(Denied::UnknownKey));
    assert_eq!(with(Some(b"another")), Err(Denied::Signature));
    // Signed with the empty key, as the dummy hash of an unknown key is.
    let forged = parse(&small().sign(b"")).unwrap();
    assert_eq!(forged.verify(&GrantCheck { key: None, ..request() }), Err(Denied::UnknownKey));
    let renamed = query.replace("kid=g1", "kid=g2");
    assert_eq!(decide(&renamed), Err("grant_signature".to_owned()));
}

#[test]
fn content_is_checked_in_time_place_and_length() {
    let at = |now_ms, grant: Grant| {
        let signed = parse(&grant.sign(KEY)).unwrap();
        signed.verify(&GrantCheck { now: UnixMillis(now_ms), ..request() }).map(|_| ())
    };
    assert_eq!(at((IAT + 300) * 1000 - 1, small()), Ok(()));
    assert_eq!(at((IAT + 300) * 1000, small()), Err(Denied::Expired));
    assert_eq!(at((IAT - 30) * 1000, small()), Ok(()));
    assert_eq!(at((IAT - 30) * 1000 - 1, small()), Err(Denied::NotYetValid));
    assert_eq!(at(0, small()), Err(Denied::NotYetValid));
    assert_eq!(at(u64::MAX, small()), Err(Denied::Expired));
    assert_eq!(at(IAT * 1000, Grant { exp: IAT + 900, ..small() }), Ok(()));
    assert_eq!(at(IAT * 1000, Grant { exp: IAT + 901, ..small() }), Err(Denied::TooLong));

    let bound = parse(&full().sign(KEY)).unwrap();
    let from = |source: Option<&str>| {
        let source = source.map(|text| text.parse().unwrap());
        bound.verify(&GrantCheck { source, ..request() }).map(|_| ())
    };
    assert_eq!(from(Some("203.0.113.255")), Ok(()));
    assert_eq!(from(Some("::ffff:203.0.113.255")), Ok(()));
    assert_eq!(from(Some("203.0.114.0")), Err(Denied::Address));
    assert_eq!(from(Some("::1")), Err(Denied::Address));
    assert_eq!(from(None), Err(Denied::Address));

    let signed = parse(&small().sign(KEY)).unwrap();
    let revoked = |not_before| signed.verify(&GrantCheck { not_before, ..request() }).map(|_| ());
    assert_eq!(revoked(Some(IAT)), Ok(()));
    assert_eq!(revoked(Some(IAT + 1)), Err(Denied::Revoked));
}

#[test]
fn nothing_is_told_before_the_signature_matched() {
    let mut check = GrantCheck { source: None, not_before: Some(u64::MAX), ..request() };
    for now in [0, IAT * 1000, u64::MAX] {
        check.now = UnixMillis(now);
        let forged = parse(&full().sign(b"another key")).unwrap();
        assert_eq!(forged.verify(&check), Err(Denied::Signature));
    }
}

#[test]
fn fields_are_validated_before_signing() {
    let rows = [
        (Grant { exp: IAT, ..small() }, "exp"),
        (Grant { exp: MAX_TIME_SECS + 1, ..small() }, "exp"),
        (Grant { iat: MAX_TIME_SECS + 1, ..small() }, "iat"),
        (Grant { kid: String::new(), ..small() }, "kid"),
        (Grant { sub: "a\nb".to_owned(), ..small() }, "sub"),
        (Grant { reason: Some(String::new()), ..small() }, "reason"),
    ];
    for (grant, name) in rows {
        assert_eq!(grant.validate(), Err(GrantFault::Malformed(name)));
        assert!(decide(&grant.sign(KEY)).is_err(), "{name}");
    }
}

fn any_grant() -> impl Strategy<Value = Grant> {
    let text = "[^\\p{Cc}]{1,40}";
    let track =
        prop_oneof![Just(TrackSelection::Caller), Just(TrackSelection::Agent), Just(TrackSelection::Both)];
    let format = prop_oneof![Just(None), Just(Some(Encoding::Pcm16)), Just(Some(Encoding::Ulaw))];
    let options = (proptest::option::of(text), any::<Option<u32>>(), track, any::<bool>(), format);
    ("[A-Za-z0-9_-]{1,64}", text, 1u64..=900, options).prop_map(
        |(kid, sub, ttl, (reason, address, track, dl, format))| Grant {
            exp: IAT + ttl,
            kid,
            sub,
            reason,
            ip: address.map(|bits| core::net::Ipv4Addr::from_bits(bits).to_string().parse().unwrap()),
            track,
            dl,
            format,
            ..small()
        },
    )
}

proptest! {
    #[test]
    fn any_grant_is_signed_and_read_back(grant in any_grant()) {
        let signed = parse(&grant.sign(KEY)).unwrap();
        let source = grant.ip.map(|range| range.to_string().trim_end_matches("/32").parse().unwrap());
        let check = GrantCheck { source, now: UnixMillis(IAT * 1000), ..request() };
        prop_assert_eq!(signed.verify(&check), Ok(&grant));
        prop_assert_eq!(signed.verify(&GrantCheck { key: Some(b"x"), ..check }), Err(Denied::Signature));
    }

    #[test]
    fn two_grants_never_share_a_signature(one in any_grant(), other in any_grant()) {
        prop_assert_eq!(one == other, one.sign(KEY) == other.sign(KEY));
    }

    #[test]
    fn any_query_is_answered(query in any::<String>(), pieces in "([a-z]{2,5}=[%0-9a-zA-Z+/]{0,8}&){0,6}") {
        prop_assert!(decide(&query).is_err());
        prop_assert!(decide(&pieces).is_err());
    }
}
