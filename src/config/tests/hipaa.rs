//! The rules for health data: each is refused by its name, and everything that the mode changes is in its list.

use super::*;
use crate::config::HIPAA_EFFECTS;

const HIPAA_NODE: &str = "public_url = \"wss://media.example.com\"\n[tls]\nself_signed = true\n\
    [store]\nkind = \"s3\"\nregion = \"us-east-1\"\nbucket = \"calls\"\naccess_key_id = { file = \"id\" }\nsecret_access_key = { file = \"sk\" }\n\
    [keys]\nrequire_locked_memory = true\n[admin]\n[hipaa]\nsecond_factor = \"access proxy\"\n";
const CLINIC: &str = "id = \"clinic\"\n[hipaa]\nmode = \"on\"\nbaa = \"active\"\nbaa_reference = \"contracts/7\"\n\
    vendors = [\"twilio.com\", \"example.com\"]\nregions = [\"us-east-1\"]\n\
    [keys]\nprovider = \"aws-kms\"\nkek = \"arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab\"\n\
    [twilio]\naccount_sids = [\"AC000000000000000000000000c0ffee01\"]\nauth_tokens = [{ file = \"t\" }]\n\
    [playback]\ngrant_keys = { k1 = { file = \"g\" } }\n\
    [webhook]\nurl = \"https://hooks.example.com/\"\nsecrets = [{ file = \"w\" }]\n\
    [[route]]\nname = \"desk\"\nmode = \"bidirectional\"\nupstream = { url = \"wss://agent.example.com/\" }\n";

fn faults(node: &str, tenant: &str) -> Vec<String> {
    match check(node, &[], &Shelf::with(&[("a.toml", tenant)])) {
        Ok(_) => Vec::new(),
        Err(faults) => faults.iter().map(|fault| fault.option.replace("tenants/a.toml: ", "")).collect(),
    }
}

fn clinic() -> Config {
    check(HIPAA_NODE, &[], &Shelf::with(&[("a.toml", CLINIC)])).expect("every rule is kept")
}

#[test]
fn each_rule_that_is_not_kept_is_refused_by_name() {
    assert_eq!(faults(HIPAA_NODE, CLINIC), [""; 0]);
    for (from, to, option) in [
        ("baa = \"active\"", "baa = \"pending\"", "hipaa.baa"),
        ("baa = \"active\"", "baa = \"none\"", "hipaa.baa"),
        ("baa = \"active\"\n", "", "hipaa.baa"),
        ("baa_reference = \"contracts/7\"\n", "", "hipaa.baa_reference"),
        ("baa_reference = \"contracts/7\"", "baa_reference = \" \"", "hipaa.baa_reference"),
        ("regions = [\"us-east-1\"]\n", "", "hipaa.regions"),
        ("regions = [\"us-east-1\"]", "regions = [\"eu-west-1\"]", "hipaa.regions"),
        ("arn:aws:kms:us-east-1", "arn:aws:kms:eu-west-1", "hipaa.regions"),
        ("\"twilio.com\", ", "", "hipaa.vendors"),
        (", \"example.com\"", "", "hipaa.vendors"),
        ("agent.example.com", "agent.example.org", "hipaa.vendors"),
        ("hooks.example.com", "notexample.com", "hipaa.vendors"),
        ("name = \"desk\"", "name = \"desk\"\nprovider = \"vapi-transcriber\"", "hipaa.vendors"),
        ("id = \"clinic\"", "id = \"clinic\"\nno_key_policy = \"pass-unrecorded\"", "no_key_policy"),
        ("[playback]", "[playback]\nmax_ttl_secs = 301", "playback.max_ttl_secs"),
        ("[webhook]", "[webhook]\ncall_ids = true", "webhook.call_ids"),
    ] {
        assert!(CLINIC.contains(from), "{from}");
        let found = faults(HIPAA_NODE, &CLINIC.replace(from, to));
        assert!(found.iter().any(|found| found == option), "{from} -> {to}: {found:?}");
    }
    let at = CLINIC.find("provider = \"aws-kms\"").unwrap();
    let end = CLINIC.find("[twilio]").unwrap();
    let local = format!("{}provider = \"local\"\n{}", &CLINIC[..at], &CLINIC[end..]);
    assert_eq!(faults(HIPAA_NODE, &local), ["keys.provider"]);
    let with_reason = local.replace("[keys]\n", "local_key_reason = \"a pilot\"\n[keys]\n");
    assert_eq!(faults(HIPAA_NODE, &with_reason), [""; 0]);
    for (from, to) in [
        ("require_locked_memory = true", "require_locked_memory = false"),
        ("second_factor = \"access proxy\"", ""),
        (
            "kind = \"s3\"\nregion = \"us-east-1\"\nbucket = \"calls\"\naccess_key_id = { file = \"id\" }\nsecret_access_key = { file = \"sk\" }\n",
            "kind = \"folder\"\n",
        ),
    ] {
        assert!(HIPAA_NODE.contains(from), "{from}");
        assert_eq!(faults(&HIPAA_NODE.replace(from, to), CLINIC), ["hipaa.mode"], "{from}");
    }
    for (endpoint, option) in [
        ("https://collector.example.com/v1/traces", ""),
        ("https://127.0.0.1:4318/v1/traces", ""),
        ("https://collector.example.org/v1/traces", "hipaa.vendors"),
        ("http://127.0.0.1:4318/v1/traces", "hipaa.mode"),
    ] {
        let node = format!("{HIPAA_NODE}[traces]\nendpoint = {endpoint:?}\n");
        assert_eq!(faults(&node, CLINIC).join(" "), option, "{endpoint}");
        // It is no matter of other tenants.
        assert_eq!(faults(&node, "id = \"other\"\n"), [""; 0], "{endpoint}");
    }
    let everybody = HIPAA_NODE.replace("[hipaa]", "[hipaa]\nmode = \"on\"");
    assert_eq!(faults(&everybody, "id = \"other\"\n"), ["hipaa.mode"]);
    assert_eq!(faults(&everybody, CLINIC), [""; 0]);
}

#[test]
fn a_tenant_of_the_store_is_under_the_same_rules() {
    let config = clinic();
    let table = CLINIC
        .replace("{ file = \"t\" }", "{ value = \"f1e2d3c4b5a6978800112233445566aa\" }")
        .replace("{ file = \"g\" }", "{ value = \"an invented key of more than 32 bytes\" }")
        .replace("{ file = \"w\" }", "{ value = \"an invented key of more than 32 bytes\" }");
    assert!(config.check_stored_tenant(table.parse().unwrap()).unwrap().hipaa.is_some());
    let half =
        table.replace("[playback]", "[playback]\nmax_ttl_secs = 900").replace("\"active\"", "\"pending\"");
    let config = check(
        &format!("{HIPAA_NODE}[traces]\nendpoint = \"http://127.0.0.1:4318/v1/traces\"\n"),
        &[],
        &Shelf::default(),
    );
    let faults = config.unwrap().check_stored_tenant(half.parse().unwrap()).unwrap_err();
    let named: Vec<_> = faults.iter().map(|fault| fault.option.as_str()).collect();
    assert_eq!(named, ["hipaa.baa", "hipaa.mode", "playback.max_ttl_secs"]);
}

#[test]
fn the_list_of_effects_is_what_the_mode_does() {
    let (on, off) = (clinic(), CLINIC.replace("mode = \"on\"", "mode = \"off\""));
    let off = check(HIPAA_NODE, &[], &Shelf::with(&[("a.toml", &off)])).unwrap();
    let (on, off) = (&on.tenants[0], &off.tenants[0]);
    assert!(on.hipaa.is_some() && off.hipaa.is_none());
    for (effect, _) in HIPAA_EFFECTS {
        match effect {
            "no_key_policy" => {
                assert_eq!(
                    (on.no_key_policy, off.no_key_policy),
                    (NoKeyPolicy::Refuse, NoKeyPolicy::PassUnrecorded)
                );
            }
            "grant_life" => {
                assert_eq!((on.playback.max_ttl.as_secs(), off.playback.max_ttl.as_secs()), (300, 900));
            }
            // Seen by the tests of control::mint, http::playback and admin::guard.
            "grant_address" | "reason" => {}
            other => panic!("{other} is in the list, and nothing does it"),
        }
    }
    // Nothing else differs.
    let plain = |tenant: &Tenant| {
        let mut tenant = tenant.clone();
        tenant.hipaa = None;
        tenant.no_key_policy = NoKeyPolicy::Refuse;
        tenant.playback.max_ttl = Duration::from_secs(300);
        format!("{tenant:?}")
    };
    assert_eq!(plain(on), plain(off));
}

#[test]
fn links_of_such_a_tenant_are_bound_to_an_address() {
    use crate::control::mint::{self, GrantOrder};
    use crate::domain::ids::RecordingId;
    use crate::domain::playback::grant::TrackSelection;
    use crate::domain::playback::wav::Encoding;
    let config = clinic();
    let order = |ip: Option<&str>| GrantOrder {
        ttl_secs: None,
        sub: "ada".to_owned(),
        reason: None,
        ip: ip.map(|ip| ip.parse().unwrap()),
        track: TrackSelection::Both,
        format: Encoding::Pcm16,
        dl: false,
    };
    let mint = |ip| mint::grant(&config, &config.tenants[0], RecordingId([1; 16]), order(ip));
    for bound in ["192.0.2.7", "192.0.2.7/32", "2001:db8::1", "2001:db8::/64"] {
        assert!(mint(Some(bound)).is_ok(), "{bound}");
    }
    for loose in [None, Some("0.0.0.0/0"), Some("192.0.2.0/24"), Some("2001:db8::/48")] {
        assert_eq!(mint(loose).unwrap_err().field, "ip", "{loose:?}");
    }
}
