//! `docs/METRICS.md` says what the code says.

use std::fmt::Write;

use callseal::observe::metrics::{ALL, Kind};

fn page() -> String {
    let mut page = String::from(
        "# Metrics\n\nServed on the ops listener at `/metrics` in the Prometheus text format. No label ever holds a tenant, a call or\na number. Made from `src/observe/metrics.rs`; a test compares the two and prints this page when they differ.\n\n| name | kind | unit | meaning |\n|---|---|---|---|\n",
    );
    for metric in ALL {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name, metric.unit.as_str(), metric.help)
            .unwrap();
    }
    page.push_str(
        "\n\"Are we losing audio?\" is answered by `audio_lost_bytes_total`, `integrity_failures_total`,\n`journal_failures_total` and `recordings_recovery_failed_total`, whose normal value is 0, and by\n`upload_oldest_unstored_seconds`, which stays near the segment age. `ingest_read_to_sealed_seconds`,\n`journal_flush_delay_seconds` and `upload_sealed_to_stored_seconds` tell where time goes. The first is collected per call and\npublished once per segment at the upper bound of its buckets.\n",
    );
    page
}

#[test]
fn the_page_lists_every_metric() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == page(), "docs/METRICS.md should be:\n{}", page());
}

#[test]
fn names_follow_the_rules() {
    let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), ALL.len(), "every name once");
    for metric in ALL {
        let is_total = metric.name.ends_with("_total");
        assert_eq!(
            is_total,
            metric.kind == Kind::Counter,
            "{}: counters and nothing else end in _total",
            metric.name
        );
        assert!(metric.help.ends_with('.'), "{}", metric.name);
    }
}
