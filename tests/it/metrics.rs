//! `docs/METRICS.md` says what the code says, and the table of labels says what the code gives.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use callseal::observe::metrics::{ALL, Kind, labels_of};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/METRICS.md");
/// With this variable set the page is written instead of compared.
const WRITE: &str = "CALLSEAL_WRITE_DOCS";

const HEAD: &str = "# Metrics

Served on the ops listener at `/metrics` in the Prometheus text format. No label ever holds a tenant, a call or
a number. Made from `src/observe/metrics.rs`; a test compares the two. `CALLSEAL_WRITE_DOCS=1 cargo test --test it metrics::`
writes this page anew.

Alert rules are in `config/prometheus/alerts.yml` (what each means: `docs/RUNBOOK.md`), a dashboard is in
`config/grafana/callseal.json`.

| name | kind | labels | unit | meaning |
|---|---|---|---|---|
";

const TAIL: &str = "
\"Are we losing audio?\" is answered by `audio_lost_bytes_total`, `integrity_failures_total`,
`journal_failures_total` and `recordings_recovery_failed_total`, whose normal value is 0, by `upload_dropping`, which is 1 at
the very moment (`audio_lost_bytes_total` is counted when a call ends), and by three ages:

| age | is | normal |
|---|---|---|
| `oldest_unsaved_seconds` | of the oldest sealed frame that neither the journal nor the store has for certain: what a power loss would take | below 0.5 s |
| `store_lag_seconds` | of the oldest sealed frame that is not in the store, open segments among them: what the loss of the machine would take | near the segment age (5 s) |
| `upload_oldest_unstored_seconds` | of the oldest closed segment that waits for the store | 0, or near the segment age |

Recordings that were left to recovery are not in these ages; the log names them. A frame between being sealed and being taken by
the journal's writer, some 20 ms, is not in the first.

`ingest_read_to_sealed_seconds`, `journal_flush_delay_seconds` (from the same read) and `upload_sealed_to_stored_seconds` tell
where time goes. The first is collected per call and published once per segment at the upper bound of its buckets.
`event_loop_lag_seconds` is how late a timer of the runtime is that looks twenty times a second: what every task of the node had
to wait for its turn. Below 2 ms it says nothing, because timers have a grain of 1 ms.
";

fn page() -> String {
    let mut page = String::from(HEAD);
    for metric in ALL {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels: Vec<_> = labels_of(metric.name).iter().map(|label| format!("`{label}`")).collect();
        let (labels, unit) = (labels.join(", "), metric.unit.as_str());
        writeln!(page, "| `{}` | {kind} | {labels} | {unit} | {} |", metric.name, metric.help).unwrap();
    }
    page + TAIL
}

#[test]
fn the_page_lists_every_metric() {
    if std::env::var_os(WRITE).is_some() {
        fs::write(PAGE, page()).unwrap();
    }
    let written = fs::read_to_string(PAGE).unwrap_or_default();
    assert!(written == page(), "docs/METRICS.md is out of date; write it anew with {WRITE}=1");
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

/// Source files and their texts without tests, but those that go through all metrics.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && name != "tests" && name != "bin" {
                walk(&path, found);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned();
                found.push((path, code));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// The metrics that a source uses: how it names them, and the labels that it gives.
fn uses(code: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, text) in code.match_indices("!(") {
        let is_metric = ["counter", "gauge", "histogram"]
            .iter()
            .any(|kind| code[..at].strip_suffix(kind).is_some_and(|before| !before.ends_with('_')));
        if !is_metric {
            continue;
        }
        let (mut depth, rest) = (1, &code[at + text.len()..]);
        let end = rest.find(|c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth == 0
        });
        let arguments = &rest[..end.unwrap()];
        let (name, labels) = arguments.split_once(',').unwrap_or((arguments, ""));
        let before_arrows = labels.split("=>").map(|part| part.trim_end().trim_end_matches('"'));
        let mut labels: Vec<_> =
            before_arrows.filter_map(|part| part.rsplit('"').next()).map(str::to_owned).collect();
        labels.pop();
        found.push((name.trim().to_owned(), labels));
    }
    found
}

/// The texts of all constants by name, with the files that they are in.
fn constants(sources: &[(PathBuf, String)]) -> BTreeMap<&str, Vec<(&Path, &str)>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (path, code) in sources {
        for line in code.lines() {
            let Some((_, rest)) = line.split_once("const ") else { continue };
            let Some((name, value)) = rest.split_once(": &str = \"") else { continue };
            let value = value.trim_end_matches("\";");
            found.entry(name).or_default().push((path.as_path(), value));
        }
    }
    found
}

#[test]
fn every_metric_has_the_labels_that_the_table_says() {
    let sources = sources();
    let constants = constants(&sources);
    let (mut seen, mut complaints) = (BTreeSet::new(), Vec::new());
    for (path, code) in &sources {
        let shown = path.display();
        // What goes through the whole table names no metric.
        if ["metrics.rs", "zero.rs"].iter().any(|name| path.ends_with(Path::new("metrics").join(name)))
            || path.ends_with("observe/metrics.rs")
        {
            continue;
        }
        for (name, labels) in uses(code) {
            let ident = name.rsplit("::").next().unwrap();
            let candidates = constants.get(ident).map_or(&[][..], Vec::as_slice);
            let here = |(file, _): &&(&Path, &str)| *file == path.as_path();
            let named = |(file, _): &&(&Path, &str)| file.ends_with("observe/metrics/names.rs");
            let found = candidates.iter().find(here).or_else(|| candidates.iter().find(named));
            let Some((_, metric)) = found.or(candidates.first()) else {
                complaints.push(format!("{shown}: {name} is no constant"));
                continue;
            };
            seen.insert(*metric);
            if !ALL.iter().any(|known| known.name == *metric) {
                complaints.push(format!("{shown}: {metric} is not in the table of metrics"));
            }
            if labels != labels_of(metric) {
                complaints.push(format!(
                    "{shown}: {metric} has the labels {labels:?}; the table says {:?}",
                    labels_of(metric)
                ));
            }
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
    let unseen =
        ALL.iter().filter(|metric| !labels_of(metric.name).is_empty() && !seen.contains(metric.name));
    // Set where all are shown as zero.
    let unseen: Vec<_> =
        unseen.map(|metric| metric.name).filter(|name| *name != "callseal_build_info").collect();
    assert!(unseen.is_empty(), "with labels in the table, and nowhere used: {unseen:?}");
}

#[test]
fn uses_are_read_from_the_sources() {
    let code = "let a = counter!(names::A).increment(1); histogram!(\n  B, \"x\" => f(1, \"q\"), \"y\" => z,\n);\
                describe_gauge!(C, u); gauge!(metrics::D, \"p\" => \"v\");";
    let named = |name: &str, labels: &[&str]| {
        (name.to_owned(), labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(uses(code), [named("names::A", &[]), named("B", &["x", "y"]), named("metrics::D", &["p"])]);
}
