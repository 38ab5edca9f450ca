//! Where a tenant is told, and of what.

use super::*;
use crate::domain::notice::NoticeKind;

/// A tenant whose file ends with these lines of its webhook.
fn with(webhook: &str) -> String {
    format!("id = \"acme\"\n[webhook]\n{webhook}\n")
}

const SOUND: &str =
    "url = \"https://hooks.example.com/callseal?token=canary\"\nsecrets = [{ file = \"a\" }]\n";

fn checked(webhook: &str) -> Webhook {
    let config = check(NODE, &[], &Shelf::with(&[("acme.toml", &with(webhook))])).expect("no fault");
    config.tenants[0].webhook.clone().expect("a webhook")
}

#[test]
fn a_webhook_needs_a_url_and_a_secret_and_tells_everything() {
    let webhook = checked(SOUND);
    assert_eq!((webhook.url.host(), webhook.url.target()), ("hooks.example.com", "/callseal?token=canary"));
    assert!(NoticeKind::CHOICES.into_iter().all(|kind| webhook.wants(kind)));
    assert!(!webhook.allow_private && !webhook.call_ids && webhook.secrets.len() == 1);
    let faults = tenant_faults(&with(""));
    assert_eq!(names(&faults), ["webhook.secrets", "webhook.url"]);
    assert!(
        check(NODE, &[], &Shelf::with(&[("a.toml", "id = \"a\"\n")])).unwrap().tenants[0].webhook.is_none()
    );
}

#[test]
fn only_what_is_chosen_is_told() {
    let webhook =
        checked(&format!("{SOUND}events = [\"recording.complete\", \"audio.lost\"]\ncall_ids = true\n"));
    assert!(webhook.wants(NoticeKind::Complete) && webhook.wants(NoticeKind::AudioLost));
    assert!(!webhook.wants(NoticeKind::Partial) && webhook.call_ids);
    for bad in ["[]", "[\"recording.*\"]", "[\"webhook.test\"]"] {
        let faults = tenant_faults(&with(&format!("{SOUND}events = {bad}\n")));
        let (option, problem) = faults.first_key_value().unwrap();
        assert!(option.starts_with("webhook.events"), "{option}");
        assert!(problem.contains("allowed: ") && problem.contains("\"recording.complete\""), "{problem}");
    }
}

#[test]
fn receivers_are_on_the_internet_unless_said_otherwise() {
    let to =
        |url: &str, more: &str| with(&format!("url = \"{url}\"\nsecrets = [{{ file = \"a\" }}]\n{more}\n"));
    for private in [
        "https://127.0.0.1/",
        "https://localhost:8443/x",
        "https://[::1]/",
        "https://169.254.169.254/latest/meta-data",
        "https://10.0.0.7/",
        "https://[::ffff:127.0.0.1]/",
    ] {
        let faults = tenant_faults(&to(private, ""));
        assert!(faults["webhook.url"].contains("allow_private = true"), "{private}: {faults:?}");
        assert!(check(NODE, &[], &Shelf::with(&[("a.toml", &to(private, "allow_private = true"))])).is_ok());
    }
    for bad in ["http://hooks.example.com/canary", "https://u:canary@a/", "ftp://a", "https://a/#canary", ""]
    {
        let faults = tenant_faults(&to(bad, "allow_private = true"));
        assert!(
            faults["webhook.url"].starts_with("is no such URL; allowed: \"https://host/path\""),
            "{faults:?}"
        );
    }
}

#[test]
fn secrets_are_one_or_two_and_long_enough() {
    let list = |secrets: &str| with(&format!("url = \"https://a.example/\"\nsecrets = {secrets}\n"));
    let two = list("[{ file = \"a\" }, { file = \"b\" }]");
    assert!(check(NODE, &[], &Shelf::with(&[("a.toml", &two)])).is_ok());
    for (bad, option) in [
        ("[]", "webhook.secrets"),
        ("[{ file = \"a\" }, { file = \"b\" }, { file = \"c\" }]", "webhook.secrets"),
        ("[{ file = \"a\" }, { file = \"short\" }]", "webhook.secrets[1]"),
        ("[\"canary canary canary canary canary\"]", "webhook.secrets[0]"),
        ("\"canary\"", "webhook.secrets"),
    ] {
        let faults = tenant_faults(&list(bad));
        assert_eq!(names(&faults), [option], "{bad}: {faults:?}");
        assert!(faults[option].contains("allowed: "), "{faults:?}");
    }
}

#[test]
fn how_the_node_delivers_is_bounded() {
    let config = check(NODE, &[], &Shelf::default()).unwrap();
    let WebhookNode { schedule, scan_interval, concurrency, ca_file } = config.webhook;
    assert_eq!((schedule.attempt, schedule.first), (Duration::from_secs(10), Duration::from_secs(15)));
    assert_eq!((schedule.give_up, scan_interval), (Duration::from_secs(86_400), Duration::from_secs(30)));
    assert_eq!((concurrency, ca_file), (4, None));
    let node = format!(
        "{NODE}[webhook]\nattempt_timeout_ms = 99\nfirst_retry_secs = 0\ngive_up_hours = 169\n\
         scan_interval_secs = 0\nconcurrency = 65\nca_file = \"missing\"\nurl = \"https://a\"\n"
    );
    let faults = faults_of(&node, &[], &Shelf::default());
    let expected = [
        "webhook.attempt_timeout_ms",
        "webhook.ca_file",
        "webhook.concurrency",
        "webhook.first_retry_secs",
        "webhook.give_up_hours",
        "webhook.scan_interval_secs",
        "webhook.url",
    ];
    assert_eq!(names(&faults), expected);
    assert_eq!(faults["webhook.attempt_timeout_ms"], "99 is given; allowed: 100 to 30000");
}
