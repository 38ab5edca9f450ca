//! Published messages, and any others.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const CALL: &str = "01a024d9-bef8-7b44-9a10-6f2c8e51b7d0";

fn fixture(name: &str) -> Vec<u8> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/vapi/");
    std::fs::read(format!("{dir}vapi-webhook-{name}.json")).unwrap()
}

#[test]
fn published_messages_are_read() {
    let Ok(Webhook::InProgress(running)) = Webhook::parse(&fixture("status-update-in-progress")) else {
        panic!("a call that runs")
    };
    assert_eq!((running.call.as_str(), running.sent_ms), (CALL, Some(1_787_324_648_311)));
    let url = running.listen_url.as_ref().unwrap();
    assert!(url.expose().ends_with("/listen") && !format!("{running:?}").contains("wss"));
    let facts = &running.facts.0;
    assert_eq!(facts["customer_number"], "+12025550188");
    assert_eq!(facts["own_number"], "+12025550123");
    assert_eq!(facts["phone_call"], "CA00000000000000000000000000000042");
    assert!(!facts.contains_key("ended_reason") && !format!("{running:?}").contains("202555"));
    let Ok(Webhook::Ended(call, facts)) = Webhook::parse(&fixture("status-update-ended")) else {
        panic!("a call that is over")
    };
    assert_eq!((call.as_str(), facts.0["ended_reason"].as_str()), (CALL, "customer-ended-call"));
    let Ok(Webhook::Report(call, facts)) = Webhook::parse(&fixture("end-of-call-report")) else {
        panic!("a report")
    };
    assert_eq!((call.as_str(), facts.0["started_at"].as_str()), (CALL, "2026-08-21T15:04:08.311Z"));
    assert_eq!(facts.0["consent_granted_at"], "2026-08-21T15:04:20.000Z");
    let kept: usize = facts.0.values().map(String::len).sum();
    assert!(kept < 500 && facts.0.values().all(|text| !text.contains("presigned")), "{facts:?}");
    for name in [
        "speech-update",
        "call-deleted",
        "call-artifact-upload",
        "assistant-request",
        "status-update-forwarding",
    ] {
        assert!(matches!(Webhook::parse(&fixture(name)), Ok(Webhook::Other(Some(_)))), "{name}");
    }
}

#[test]
fn fields_of_another_kind_count_as_absent() {
    let odd = [
        json!(null),
        json!(7),
        json!(-7),
        json!(7.5),
        json!("x"),
        json!([1, [2]]),
        json!({"a": {"b": []}}),
        json!(true),
    ];
    for value in &odd {
        let body = json!({"message": {
            "type": "status-update", "status": "in-progress", "timestamp": value, "customer": value,
            "phoneNumber": {"number": value}, "assistant": value, "endedReason": value, "compliance": value,
            "call": {"id": CALL, "orgId": value, "monitor": value, "customer": value, "type": value},
        }});
        let parsed = Webhook::parse(body.to_string().as_bytes());
        let Ok(Webhook::InProgress(running)) = parsed else { panic!("{value}: {parsed:?}") };
        assert_eq!((running.call.as_str(), running.listen_url), (CALL, None), "{value}");
        assert!(running.facts.0.len() <= 5, "{value}");
    }
    for (body, wanted) in [
        (
            json!({"message": {"type": "status-update", "status": "in-progress", "call": {"id": "no"}}}),
            BadWebhook::NoCall,
        ),
        (json!({"message": {"type": "end-of-call-report"}}), BadWebhook::NoCall),
        (json!({"message": {"type": 7}}), BadWebhook::NotAMessage),
        (json!({"message": []}), BadWebhook::NotAMessage),
        (json!([]), BadWebhook::NotAMessage),
        (json!({"type": "status-update"}), BadWebhook::NotAMessage),
    ] {
        assert_eq!(Webhook::parse(body.to_string().as_bytes()), Err(wanted), "{body}");
    }
    let number = json!({"message": {"type": "+12025550188"}});
    assert_eq!(Webhook::parse(number.to_string().as_bytes()), Ok(Webhook::Other(None)));
}

#[test]
fn long_texts_are_left_out_and_depth_is_bounded() {
    let long = "9".repeat(5000);
    let body = json!({"message": {"type": "end-of-call-report", "endedReason": long, "call": {"id": CALL, "monitor": {"listenUrl": long}}}});
    let parsed = Webhook::parse(body.to_string().as_bytes());
    assert_eq!(parsed, Ok(Webhook::Report(CALL.parse().unwrap(), CallFacts::default())));
    for deep in ["[".repeat(200_000), r#"{"message":"#.repeat(100_000)] {
        assert_eq!(Webhook::parse(deep.as_bytes()), Err(BadWebhook::NotAMessage));
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z-]{0,12}".prop_map(Value::from),
        Just(json!("status-update")),
        Just(json!("in-progress")),
        Just(json!(CALL)),
    ];
    let key = prop::sample::select(vec![
        "message",
        "type",
        "status",
        "call",
        "id",
        "monitor",
        "listenUrl",
        "customer",
        "number",
        "compliance",
        "x",
    ]);
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|fields| fields.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_read_or_refused(value in any_json(), message in any_json()) {
        for body in [value, json!({"message": message})] {
            let _parsed = Webhook::parse(body.to_string().as_bytes());
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in any::<prop::sample::Index>(), flip in any::<u8>()) {
        prop_assert!(Webhook::parse(&bytes).is_err());
        let mut body = fixture("status-update-in-progress");
        let at = at.index(body.len());
        body[at] ^= flip;
        let _parsed = Webhook::parse(&body);
        let _cut = Webhook::parse(&body[..at]);
    }
}
