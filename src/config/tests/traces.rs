//! Where traces may be sent: over TLS, or to this machine; with secrets by reference; and never half a table.

use super::*;

fn node(lines: &str) -> String {
    format!("{NODE}[traces]\n{lines}\n")
}

fn traces(lines: &str) -> Box<Traces> {
    check(&node(lines), &[], &Shelf::default()).expect("no fault").traces.expect("a table")
}

fn problem(lines: &str, option: &str) -> String {
    let mut faults = faults_of(&node(lines), &[], &Shelf::default());
    faults.remove(option).unwrap_or_else(|| panic!("{lines}: {faults:?}"))
}

const ENDPOINT: &str = "endpoint = \"https://collector.example:4318/v1/traces\"";

#[test]
fn there_are_no_traces_unless_a_collector_is_named() {
    assert!(check(NODE, &[], &Shelf::default()).unwrap().traces.is_none());
    assert!(problem("sample_percent = 1.0", "traces.endpoint").starts_with("is missing"));
    let traces = traces(ENDPOINT);
    assert_eq!(traces.endpoint.to_string(), "https://collector.example:4318/v1/traces");
    assert_eq!(traces.authority(), "collector.example:4318");
    assert!((traces.share - 0.01).abs() < 1e-12);
    assert_eq!((traces.interval, traces.timeout), (Duration::from_secs(5), Duration::from_secs(10)));
    assert!(traces.headers.is_empty() && traces.ca_file.is_none());
}

#[test]
fn without_tls_they_stay_on_this_machine() {
    for good in ["http://127.0.0.1:4318/v1/traces", "http://[::1]:4318/v1/traces"] {
        assert!(traces(&format!("endpoint = {good:?}")).are_in_clear(), "{good}");
    }
    for bad in [
        "http://collector.example/v1/traces",
        "http://localhost:4318/v1/traces",
        "http://10.0.0.1/v1/traces",
        "collector.example:4318",
        "grpc://collector.example:4317",
        "https://",
        "https://collector.example/v1/traces?key=1",
        "https://user:pass@collector.example/v1/traces",
    ] {
        let said = problem(&format!("endpoint = {bad:?}"), "traces.endpoint");
        assert!(said.contains("allowed: \"https://host\"") && !said.contains("user:pass"), "{bad}: {said}");
    }
}

#[test]
fn shares_and_times_have_bounds() {
    for (given, share) in [("100", 1.0), ("0", 0.0), ("0.5", 0.005), ("12.5", 0.125)] {
        let traces = traces(&format!("{ENDPOINT}\nsample_percent = {given}"));
        assert!((traces.share - share).abs() < 1e-12, "{given}");
    }
    for (option, given) in [
        ("sample_percent", "100.1"),
        ("sample_percent", "-1"),
        ("sample_percent", "nan"),
        ("interval_ms", "99"),
        ("interval_ms", "60001"),
        ("timeout_ms", "99"),
        ("timeout_ms", "60001"),
    ] {
        let said = problem(&format!("{ENDPOINT}\n{option} = {given}"), &format!("traces.{option}"));
        assert!(said.contains("is given; allowed: "), "{said}");
    }
    let said = problem(&format!("{ENDPOINT}\nsample_percent = \"all\""), "traces.sample_percent");
    assert_eq!(said, "the text \"all\" is given; allowed: a number");
    assert!(problem(&format!("{ENDPOINT}\nca_file = \"missing\""), "traces.ca_file").contains("cannot read"));
    assert!(
        problem(&format!("{ENDPOINT}\nprotocol = \"grpc\""), "traces.protocol").contains("is not an option")
    );
}

#[test]
fn headers_are_secrets_by_reference() {
    let traces = traces(&format!("{ENDPOINT}\nheaders = {{ Authorization = {{ file = \"token\" }} }}"));
    let [(name, secret)] = traces.headers.as_slice() else { panic!("one header") };
    assert_eq!(name.as_str(), "authorization");
    assert!(!format!("{secret:?}").contains("canary"));
    for (header, option) in [
        ("authorization = \"canary\"", "traces.headers.authorization"),
        ("authorization = { file = \"missing\" }", "traces.headers.authorization"),
        ("Content-Type = { file = \"token\" }", "traces.headers"),
        ("traceparent = { file = \"token\" }", "traces.headers"),
        ("\"canary canary\" = { file = \"token\" }", "traces.headers"),
    ] {
        let said = problem(&format!("{ENDPOINT}\nheaders = {{ {header} }}"), option);
        assert!(!said.contains("canary"), "{said}");
    }
    let many: Vec<_> = (0..9).map(|number| format!("x-{number} = {{ file = \"token\" }}")).collect();
    let said = problem(&format!("{ENDPOINT}\nheaders = {{ {} }}", many.join(", ")), "traces.headers");
    assert_eq!(said, "9 are given; allowed: at most 8");
}

#[test]
fn the_environment_can_set_them() {
    let config = check(
        &node(ENDPOINT),
        &[("CALLSEAL_TRACES__SAMPLE_PERCENT", "0.5"), ("CALLSEAL_TRACES__INTERVAL_MS", "200")],
        &Shelf::default(),
    );
    let traces = config.unwrap().traces.unwrap();
    assert!((traces.share - 0.005).abs() < 1e-12);
    assert_eq!(traces.interval, Duration::from_millis(200));
}
