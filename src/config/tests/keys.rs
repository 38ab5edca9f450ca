//! Where keys are: the node's, a tenant's own, and former ones.

use super::*;

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn with_keys(node: &str, tenant: &str) -> Config {
    let tenant = format!("id = \"acme\"\n[keys]\n{tenant}\n");
    check(&format!("{NODE}[keys]\n{node}\n"), &[], &Shelf::with(&[("t.toml", &tenant)])).unwrap()
}

fn keks(node: &str, tenant: &str) -> Vec<(&'static str, String)> {
    let config = with_keys(node, tenant);
    config.tenants[0].keks.all().map(|kek| (kek.provider.name(), kek.kek.clone())).collect()
}

#[test]
fn a_tenant_has_the_nodes_key_unless_it_has_its_own() {
    let kms = format!("provider = \"aws-kms\"\nkek = {ARN:?}");
    let (local, arn) = (("local", "local/acme".to_owned()), ("aws-kms", ARN.to_owned()));
    let (local_alone, arn_alone) = (vec![local.clone()], vec![arn.clone()]);
    assert_eq!(keks("", ""), local_alone);
    assert_eq!(keks(&kms, ""), arn_alone);
    assert_eq!(keks("", &kms), arn_alone, "the node's key is not among them");
    assert_eq!(keks(&kms, "provider = \"local\""), local_alone);
    let former = "\nformer_keks = [{ provider = \"local\" }]";
    assert_eq!(keks(&format!("{kms}{former}"), ""), [arn.clone(), local.clone()]);
    assert_eq!(keks("", &format!("{kms}{former}")), [arn.clone(), local.clone()]);
    assert_eq!(keks(&format!("{kms}{former}"), &kms), arn_alone, "nor are the node's former ones");
    let former = format!("former_keks = [{{ provider = \"aws-kms\", kek = {ARN:?} }}]");
    assert_eq!(keks("", &former), [local, arn], "going back");
}

#[test]
fn names_of_keys_are_checked() {
    let of_node = |keys: &str| faults_of(&format!("{NODE}[keys]\n{keys}\n"), &[], &Shelf::default());
    for bad in [
        "provider = \"aws-kms\"".to_owned(),
        "kek = \"x\"".to_owned(),
        format!("provider = \"aws-kms\"\nkek = {:?}", ARN.replace("key/", "alias/")),
        format!("provider = \"aws-kms\"\nkek = {:?}", ARN.replace("1111", "111")),
        format!("provider = \"aws-kms\"\nkek = {:?}", ARN.replace("kms", "s3")),
        format!("provider = \"aws-kms\"\nkek = {:?}", format!("{ARN}/../x")),
        format!("provider = \"aws-kms\"\nkek = {:?}", &ARN[..30]),
    ] {
        assert_eq!(names(&of_node(&bad)), ["keys.kek"], "{bad}");
    }
    assert_eq!(names(&of_node("provider = \"kms\"")), ["keys.provider"]);
    let bad = format!("former_keks = [{{ kek = {ARN:?} }}, {{ provider = \"aws-kms\", key = 1 }}]");
    let expected = [
        "keys.former_keks[0].kek",
        "keys.former_keks[0].provider",
        "keys.former_keks[1].kek",
        "keys.former_keks[1].key",
    ];
    assert_eq!(names(&of_node(&bad)), expected);
    let many = format!("former_keks = [{}]", vec!["{ provider = \"local\" }"; 17].join(", "));
    assert_eq!(names(&of_node(&many)), ["keys.former_keks"]);
    let tenant = "id = \"a\"\n[keys]\nkek = \"x\"\n";
    assert_eq!(names(&tenant_faults(tenant)), ["keys.kek"]);
}

#[test]
fn the_way_to_kms_is_checked() {
    let of = |text: &str| faults_of(&format!("{NODE}[aws_kms]\n{text}\n"), &[], &Shelf::default());
    assert_eq!(names(&of("endpoint = \"http://kms.example.com\"")), ["aws_kms.endpoint"]);
    assert_eq!(names(&of("ca_file = \"missing\"")), ["aws_kms.ca_file"]);
    assert_eq!(names(&of("access_key_id = { file = \"x\" }")), ["aws_kms.access_key_id"]);
    let missing = ["aws_kms.access_key_id", "aws_kms.secret_access_key"];
    assert_eq!(names(&of("credentials = \"static\"")), missing);
}

#[test]
fn the_way_to_vault_is_checked() {
    let of = |text: &str| faults_of(&format!("{NODE}[vault]\n{text}\n"), &[], &Shelf::default());
    assert_eq!(names(&of("")), ["vault.address", "vault.token"]);
    let token = "address = \"https://vault.example.com:8200\"\ntoken = { file = \"t\" }\n";
    for (more, option) in [
        ("ca_file = \"missing\"", "vault.ca_file"),
        ("namespace = \"../x\"", "vault.namespace"),
        ("namespace = \"a?b\"", "vault.namespace"),
        ("role_id = { file = \"r\" }", "vault.role_id"),
        ("auth = \"ldap\"", "vault.auth"),
        ("connect_timeout_ms = 1", "vault.connect_timeout_ms"),
    ] {
        assert_eq!(names(&of(&format!("{token}{more}"))), [option], "{more}");
    }
    for address in ["http://vault.example.com", "ftp://a", "https://u:p@vault", "https://"] {
        assert_eq!(
            names(&of(&token.replace("https://vault.example.com:8200", address))),
            ["vault.address"],
            "{address}"
        );
    }
    let approle = "address = \"http://127.0.0.1:8200\"\nauth = \"approle\"\n";
    assert_eq!(names(&of(approle)), ["vault.role_id", "vault.secret_id"]);
    let both = format!(
        "{approle}role_id = {{ file = \"r\" }}\nsecret_id = {{ file = \"s\" }}\ntoken = {{ file = \"t\" }}"
    );
    assert_eq!(names(&of(&both)), ["vault.token"]);
}

#[test]
fn a_transit_key_needs_a_vault_and_a_plain_name() {
    let vault = "[vault]\naddress = \"https://vault.example.com\"\ntoken = { file = \"t\" }\n";
    let kek = |kek: &str| format!("provider = \"vault-transit\"\nkek = {kek:?}\n{vault}");
    let names_of = [("vault-transit", "transit/callseal-acme".to_owned())];
    assert_eq!(keks(&kek("transit/callseal-{tenant}"), ""), names_of);
    for bad in
        ["transit", "transit/", "/x", "a//b", "transit/../sys", "transit/a b", "transit/a?x", "transit/{x}"]
    {
        let text = format!("{NODE}[keys]\n{}", kek(bad));
        assert_eq!(names(&faults_of(&text, &[], &Shelf::default())), ["keys.kek"], "{bad}");
    }
    // A tenant's own name stands for itself.
    let tenant = "id = \"acme\"\n[keys]\nprovider = \"vault-transit\"\nkek = \"transit/callseal-{tenant}\"\n";
    let shelf = Shelf::with(&[("t.toml", tenant)]);
    let faults = faults_of(&format!("{NODE}{vault}"), &[], &shelf);
    assert_eq!(names(&faults), ["tenants/t.toml: keys.kek"]);
    let tenant = tenant.replace("{tenant}", "x");
    assert_eq!(names(&faults_of(NODE, &[], &Shelf::with(&[("t.toml", &tenant)]))), ["vault"]);
}

#[test]
fn a_key_in_a_token_needs_a_token_and_a_label() {
    let token = "[pkcs11]\nmodule = \"/usr/lib/x.so\"\ntoken_label = \"kek\"\npin = { file = \"p\" }\n";
    let kek = |kek: &str| format!("provider = \"pkcs11\"\nkek = {kek:?}\n");
    let names_of = [("pkcs11", "callseal-acme".to_owned())];
    assert_eq!(keks(&format!("{}{token}", kek("callseal-{tenant}")), ""), names_of);
    let of = |text: &str| faults_of(&format!("{NODE}[keys]\n{text}"), &[], &Shelf::default());
    for bad in ["", "a b", "a%", "{x}", &"k".repeat(129)] {
        assert_eq!(names(&of(&format!("{}{token}", kek(bad)))), ["keys.kek"], "{bad}");
    }
    assert_eq!(names(&of("[pkcs11]\n")), ["pkcs11.module", "pkcs11.pin", "pkcs11.token_label"]);
    assert_eq!(names(&of(&token.replace("/usr/lib/x.so", "missing"))), ["pkcs11.module"]);
    assert_eq!(names(&of(&token.replace("\"kek\"", "\"\""))), ["pkcs11.token_label"]);
    let tenant = format!("id = \"acme\"\n[keys]\n{}", kek("x"));
    assert_eq!(names(&faults_of(NODE, &[], &Shelf::with(&[("t.toml", &tenant)]))), ["pkcs11"]);
}

#[test]
fn a_key_gets_as_old_as_its_tenant_or_its_node_says() {
    let after = |node: &str, tenant: &str| {
        let config = with_keys(node, tenant);
        (
            config.tenants[0].keks.rotate_after.map(|after| after.as_secs() / 86_400),
            config.keys.rotate_by_itself,
        )
    };
    assert_eq!(after("", ""), (Some(365), false));
    assert_eq!(after("rotate_after_days = 90\nrotate = \"auto\"", ""), (Some(90), true));
    assert_eq!(after("rotate_after_days = 90", "rotate_after_days = 30"), (Some(30), false));
    assert_eq!(after("rotate_after_days = 90", "rotate_after_days = 0"), (None, false));
    assert_eq!(after("rotate_after_days = 0", "provider = \"local\""), (None, false));
    for (bad, option) in
        [("rotate_after_days = 3651", "keys.rotate_after_days"), ("rotate = \"yearly\"", "keys.rotate")]
    {
        assert_eq!(names(&faults_of(&format!("{NODE}[keys]\n{bad}\n"), &[], &Shelf::default())), [option]);
    }
    assert_eq!(
        names(&tenant_faults("id = \"a\"\n[keys]\nrotate_after_days = -1\n")),
        ["keys.rotate_after_days"]
    );
}

const PAIR: &str = "xwing/00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[test]
fn a_key_pair_needs_a_name_and_the_file_of_the_nodes_role() {
    let kek = format!("provider = \"recipient\"\nkek = {PAIR:?}\n");
    let open = "[recipient]\nopen_files = [\"pair.open\"]\n";
    let wrap = "[recipient]\nwrap_files = [\"pair.wrap\"]\n";
    assert_eq!(keks(&format!("{kek}{open}"), ""), [("recipient", PAIR.to_owned())]);
    let acme = Shelf::with(&[("t.toml", "id = \"acme\"")]);
    let of = |text: &str| faults_of(&format!("{NODE}[keys]\n{text}"), &[], &acme);
    for bad in
        ["", "xwing/", "xwing/00", &PAIR[6..], &PAIR.to_uppercase(), &format!("{PAIR}0"), "xwing/{tenant}"]
    {
        let kek = format!("provider = \"recipient\"\nkek = {bad:?}\n");
        assert_eq!(names(&of(&format!("{kek}{open}"))), ["keys.kek"], "{bad}");
    }
    assert_eq!(names(&of(&kek)), ["recipient.open_files"]);
    assert_eq!(names(&of(&format!("{kek}{wrap}"))), ["recipient.open_files", "recipient.wrap_files"]);
    assert_eq!(
        names(&of(&format!("{kek}{}", open.replace("pair.open", "missing")))),
        ["recipient.open_files[0]"]
    );
    let many = format!("open_files = [{}]", vec!["\"x\""; 257].join(", "));
    assert_eq!(names(&of(&format!("{kek}[recipient]\n{many}"))), ["recipient.open_files"]);

    let locked = format!("require_locked_memory = true\n{kek}{open}");
    assert_eq!(names(&of(&locked)), ["recipient.open_files"], "private keys do not lie there");
    let locked = format!("require_locked_memory = true\nrole = \"ingest\"\n{kek}{wrap}");
    assert!(check(&format!("{NODE}[keys]\n{locked}"), &[], &acme).is_ok());

    let ingest = format!("role = \"ingest\"\n{kek}");
    let config = check(&format!("{NODE}[keys]\n{ingest}{wrap}"), &[], &acme).unwrap();
    assert_eq!(config.keys.role, KeysRole::Ingest);
    assert_eq!(config.key_services.recipient.wrap, [Path::new("/etc/callseal/pair.wrap")]);
    assert!(!config.repair.enabled && !config.retention.sweep, "both take keys that open");
    assert_eq!(names(&of(&ingest)), ["recipient.wrap_files"]);
    assert_eq!(names(&of(&format!("{ingest}{open}"))), ["recipient.open_files", "recipient.wrap_files"]);
}

#[test]
fn a_node_that_only_records_is_refused_whatever_opens() {
    let node = format!(
        "{NODE}[recipient]\nwrap_files = [\"pair.wrap\"]\n[keys]\nrole = \"ingest\"\nprovider = \"recipient\"\n\
         kek = {PAIR:?}\n"
    );
    let of =
        |more: &str| faults_of(&format!("{node}{more}"), &[], &Shelf::with(&[("t.toml", "id = \"acme\"")]));
    for (more, fault) in [
        ("former_keks = [{ provider = \"local\" }]", "keys.former_keks[0].provider"),
        ("rotate = \"auto\"", "keys.rotate"),
        ("[repair]\nenabled = true", "repair.enabled"),
        ("[admin]", "admin"),
        ("[retention]\nsweep = true", "retention.sweep"),
        ("[aws_kms]", "aws_kms"),
        ("[vault]\naddress = \"https://vault.example.com\"\ntoken = { file = \"t\" }", "vault"),
        ("[pkcs11]\nmodule = \"/x.so\"\ntoken_label = \"kek\"\npin = { file = \"p\" }", "pkcs11"),
    ] {
        assert_eq!(names(&of(more)), [fault], "{more}");
    }
    let without = node.replace("provider = \"recipient\"\n", "").replace(&format!("kek = {PAIR:?}\n"), "");
    assert_eq!(
        names(&faults_of(&without, &[], &Shelf::default())),
        ["keys.provider"],
        "the default is \"local\""
    );
    let tenant = |text: &str| {
        let text = format!("id = \"acme\"\n{text}");
        let faults = check(&node, &[], &Shelf::with(&[("t.toml", &text)])).err();
        faults.map(|faults| faults.iter().map(|fault| fault.option.clone()).collect::<Vec<_>>())
    };
    for (text, fault) in [
        ("[keys]\nprovider = \"local\"", "keys.provider"),
        ("[keys]\nformer_keks = [{ provider = \"local\" }]", "keys.former_keks[0].provider"),
        ("[playback]\ngrant_keys.k1 = { file = \"g\" }", "playback.grant_keys"),
        ("[webhook]\nurl = \"https://example.com/\"\nsecrets = [{ file = \"w\" }]", "webhook.secrets"),
    ] {
        assert_eq!(tenant(text).unwrap(), [format!("tenants/t.toml: {fault}")], "{text}");
    }
    let another = PAIR.replace("00112233", "ffffffff");
    assert_eq!(tenant(&format!("[keys]\nprovider = \"recipient\"\nkek = {another:?}")), None);
    assert_eq!(tenant("[webhook]\nurl = \"https://example.com/\""), None, "notices are written");
    assert_eq!(names(&of("[repair]\nenabled = 1")), ["repair.enabled"]);
    assert!(
        check(
            &format!("{node}[repair]\nenabled = false\n[retention]\nsweep = false"),
            &[],
            &Shelf::default()
        )
        .is_ok()
    );
}
