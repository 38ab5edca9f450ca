//! Where keys are: the node's, a tenant's own, and former ones.

use super::*;

const ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn keks(node: &str, tenant: &str) -> Vec<(&'static str, String)> {
    let tenant = format!("id = \"acme\"\n[keys]\n{tenant}\n");
    let config =
        check(&format!("{NODE}[keys]\n{node}\n"), &[], &Shelf::with(&[("t.toml", &tenant)])).unwrap();
    config.tenants[0].keks.all().map(|kek| (kek.provider.name(), kek.kek.clone())).collect()
}

#[test]
fn a_tenant_has_the_nodes_key_unless_it_has_its_own() {
    let kms = format!("provider = \"aws-kms\"\nkek = {ARN:?}");
    let (local, arn) = (("local", "local/acme".to_owned()), ("aws-kms", ARN.to_owned()));
    assert_eq!(keks("", ""), [local.clone()]);
    assert_eq!(keks(&kms, ""), [arn.clone()]);
    assert_eq!(keks("", &kms), [arn.clone()], "the node's key is not among them");
    assert_eq!(keks(&kms, "provider = \"local\""), [local.clone()]);
    let former = "\nformer_keks = [{ provider = \"local\" }]";
    assert_eq!(keks(&format!("{kms}{former}"), ""), [arn.clone(), local.clone()]);
    assert_eq!(keks("", &format!("{kms}{former}")), [arn.clone(), local.clone()]);
    assert_eq!(keks(&format!("{kms}{former}"), &kms), [arn.clone()], "nor are the node's former ones");
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
