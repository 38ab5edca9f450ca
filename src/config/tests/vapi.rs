//! Vapi's tables and routes.

use crate::domain::provider::vapi_auth::{HmacEncoding, HmacHash};

use super::*;

const LISTEN: &str = "id = \"t\"\n[[route]]\nname = \"calls\"\nprovider = \"vapi-listen\"\n";

fn vapi(lines: &str) -> Result<Config, Faults> {
    check(NODE, &[], &Shelf::with(&[("t.toml", &format!("{LISTEN}[vapi]\n{lines}"))]))
}

#[test]
fn a_tenant_of_vapi_needs_no_twilio_and_a_secret() {
    let config = vapi("secrets = [{ file = \"v\" }]").expect("no fault");
    let tenant = &config.tenants[0];
    assert_eq!(tenant.routes[0].provider, RouteProvider::VapiListen);
    assert_eq!((tenant.vapi.secrets.len(), tenant.vapi.listen_hosts[0].as_str()), (1, "vapi.ai"));
    assert_eq!(tenant.vapi.listen_channels, ListenChannels::Unknown);
    assert_eq!(names(&tenant_faults(LISTEN)), ["vapi.secrets"]);
    assert!(
        check(NODE, &[], &Shelf::with(&[("acme.toml", ACME)])).is_ok(),
        "a tenant of Twilio needs no Vapi"
    );
}

#[test]
fn everything_of_the_table_is_checked() {
    let given = "bearer_tokens = [{ file = \"b\" }]\nlisten_hosts = [\"vapi.ai\", \"eu.vapi.test\"]\n\
                 listen_key = { file = \"k\" }\nlisten_channels = \"assistant-first\"\n\
                 org_ids = [\"2F6A7C10-0d4b-4b5f-9d0e-1a7b3c5d9e20\"]\n\
                 [vapi.hmac]\nsecrets = [{ file = \"h\" }]\nalgorithm = \"sha512\"\nencoding = \"base64\"\nprefix = \"v1,\"\n\
                 payload = \"{svix-id}.{timestamp}.{body}\"\nsignature_header = \"Svix-Signature\"\n";
    let config = vapi(given).expect("no fault");
    let found = &config.tenants[0].vapi;
    let hmac = found.hmac.as_ref().unwrap();
    assert_eq!((hmac.scheme.hash, hmac.scheme.encoding), (HmacHash::Sha512, HmacEncoding::Base64));
    assert_eq!(
        (hmac.signature_header.as_str(), hmac.timestamp_header.as_str()),
        ("svix-signature", "x-timestamp")
    );
    assert_eq!(found.org_ids, ["2f6a7c10-0d4b-4b5f-9d0e-1a7b3c5d9e20"]);
    assert_eq!(found.listen_channels, ListenChannels::AssistantFirst);
    let secret = "secrets = [{ file = \"v\" }]\n";
    for (lines, option) in [
        ("listen_hosts = []", "listen_hosts"),
        ("listen_hosts = [\"*.vapi.ai\"]", "listen_hosts[0]"),
        ("listen_hosts = [\"10.0.0.1\"]", "listen_hosts[0]"),
        ("org_ids = [\"acme\"]", "org_ids[0]"),
        ("listen_channels = \"left\"", "listen_channels"),
        ("listen_key = { file = \"missing\" }", "listen_key[0]"),
        ("listen_key = \"in the clear\"", "listen_key[0]"),
        ("other = 1", "other"),
        ("[vapi.hmac]\nprefix = \"\"", "hmac.secrets"),
        ("[vapi.hmac]\nsecrets = [{ file = \"h\" }]\nalgorithm = \"sha1\"", "hmac.algorithm"),
        ("[vapi.hmac]\nsecrets = [{ file = \"h\" }]\npayload = \"{timestamp}\"", "hmac.payload"),
        ("[vapi.hmac]\nsecrets = [{ file = \"h\" }]\nsignature_header = \"a b\"", "hmac.signature_header"),
        ("[vapi.hmac]\nsecrets = [{ file = \"h\" }]\nprefix = \"a b\"", "hmac.prefix"),
    ] {
        let faults = vapi(&format!("{secret}{lines}\n")).expect_err(lines);
        let found: Vec<_> = faults.iter().map(|fault| fault.option.clone()).collect();
        assert_eq!(found, [format!("tenants/t.toml: vapi.{option}")], "{lines}");
    }
}

#[test]
fn a_listen_route_has_nothing_to_answer_with() {
    let route =
        |lines: &str| tenant_faults(&format!("{LISTEN}{lines}\n[vapi]\nsecrets = [{{ file = \"v\" }}]\n"));
    for (lines, option) in [
        ("mode = \"fork\"", "mode"),
        ("record_only = true", "record_only"),
        ("dtmf = \"keep\"", "dtmf"),
        ("require_ticket = true", "require_ticket"),
        ("upstream = { url = \"wss://a\" }", "upstream"),
        ("record = \"on-consent\"", "record"),
    ] {
        assert_eq!(names(&route(lines)), [format!("route[0].{option}")], "{lines}");
    }
}

#[test]
fn a_transcriber_route_must_lead_somewhere() {
    let route = |lines: &str| {
        let text = LISTEN.replace("vapi-listen", "vapi-transcriber");
        tenant_faults(&format!("{text}{lines}\n[vapi]\nsecrets = [{{ file = \"v\" }}]\n"))
    };
    let upstream = "upstream = { url = \"wss://a\" }\n";
    assert_eq!(names(&route("")), ["route[0].upstream"]);
    for lines in ["dtmf = \"keep\"", "mode = \"bidirectional\""] {
        let option = lines.split_once(' ').unwrap().0;
        assert_eq!(names(&route(&format!("{upstream}{lines}"))), [format!("route[0].{option}")], "{lines}");
    }
    assert_eq!(names(&route(&format!("{upstream}record_only = true"))), ["route[0].upstream"]);
    let faults = route("[route.upstream]\nurl = \"wss://a\"\non_loss = \"hangup\"");
    assert_eq!(names(&faults), ["route[0].upstream.on_loss"]);
    assert!(faults["route[0].upstream.on_loss"].contains("not ours to end"), "{faults:?}");
}

#[test]
fn a_transport_route_has_tickets_and_nothing_else() {
    let transport = LISTEN.replace("vapi-listen", "vapi-transport");
    let tickets = "[tickets]\nkeys = { t1 = { file = \"t\" } }\n";
    let check = |lines: &str| {
        check(NODE, &[], &Shelf::with(&[("t.toml", &format!("{transport}{lines}\n{tickets}"))]))
    };
    for lines in ["", "record = \"on-consent\"", "record = \"never\"", "require_ticket = true"] {
        let route = check(lines).expect(lines).tenants[0].routes[0].clone();
        assert!(route.require_ticket && route.is_passed_on() && route.upstream.is_none(), "{lines}");
    }
    for (lines, option) in [
        ("mode = \"bidirectional\"", "mode"),
        ("record_only = true", "record_only"),
        ("dtmf = \"keep\"", "dtmf"),
        ("upstream = { url = \"wss://a\" }", "upstream"),
        ("require_ticket = false", "require_ticket"),
    ] {
        let faults = check(lines).expect_err(lines);
        let found: Vec<_> = faults.iter().map(|fault| fault.option.clone()).collect();
        assert_eq!(found, [format!("tenants/t.toml: route[0].{option}")], "{lines}");
    }
    assert_eq!(names(&tenant_faults(&transport)), ["tickets.keys"]);
}

#[test]
fn private_hosts_are_for_tests_only() {
    let text = format!("{NODE}[vapi]\nallow_private_hosts = true\n");
    assert!(check(&text, &[], &Shelf::default()).expect("no fault").vapi.allow_private_hosts);
    let real = text.replace("self_signed = true", "cert_file = \"c\"\nkey_file = \"k\"");
    assert_eq!(names(&faults_of(&real, &[], &Shelf::default())), ["vapi.allow_private_hosts"]);
    for example in [
        include_str!("../../../config/production.example.toml"),
        include_str!("../../../config/supabase.example.toml"),
    ] {
        let text = format!("{example}\n[vapi]\nallow_private_hosts = true\n");
        assert!(names(&faults_of(&text, &[], &Shelf::default())).contains(&"vapi.allow_private_hosts"));
    }
}
