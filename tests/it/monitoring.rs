//! Alert rules and the dashboard against the metrics page of a running server: every expression is parsed, and every
//! metric and label in it is on the page.

mod promql;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use callseal::observe;
use callseal::observe::metrics::{ALL, Kind, labels_of};
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{Setup, eventually};
use promql::Selector;

/// What Prometheus adds to every series.
const ADDED: [&str; 2] = ["instance", "job"];
/// The metric that Prometheus makes of the scrape itself.
const UP: &str = "up";
const RUNBOOK: &str = "docs/RUNBOOK.md";

fn read(path: &str) -> String {
    fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The file of rules, as far as Prometheus knows its fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Alert>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alert {
    alert: String,
    expr: String,
    #[serde(default, rename = "for")]
    wait: Option<String>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

fn alerts() -> Vec<Alert> {
    let rules: Rules = serde_norway::from_str(&read("config/prometheus/alerts.yml")).unwrap();
    let names: BTreeSet<_> = rules.groups.iter().map(|group| group.name.clone()).collect();
    assert_eq!(names.len(), rules.groups.len(), "every group once");
    rules.groups.into_iter().flat_map(|group| group.rules).collect()
}

/// The panels of the dashboard, those of rows among them.
fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&read("config/grafana/callseal.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    panels
        .iter()
        .flat_map(|panel| {
            let inner = panel["panels"].as_array().cloned().unwrap_or_default();
            std::iter::once(panel.clone()).chain(inner)
        })
        .collect()
}

/// The expressions of the dashboard with the panels that they are from.
fn dashboard_expressions() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in panels() {
        for target in panel["targets"].as_array().unwrap_or(&Vec::new()) {
            // Grafana puts an interval in its place.
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            found.push((panel["title"].as_str().unwrap().to_owned(), expression));
        }
    }
    found
}

/// The series of a metrics page by name.
#[derive(Default)]
struct Page(BTreeMap<String, Vec<BTreeMap<String, String>>>);

impl Page {
    fn parse(text: &str) -> Self {
        let mut page = Self::default();
        for series in observe::page::Page::new(text.to_owned()).series() {
            let labels = series.labels().map(|(name, value)| (name.to_owned(), value.to_owned()));
            page.0.entry(series.name.to_owned()).or_default().push(labels.collect());
        }
        page
    }

    /// What an expression asks for that is not there.
    fn complaints(&self, expression: &str) -> Vec<String> {
        let asked = match promql::parse(expression) {
            Ok(asked) => asked,
            Err(error) => return vec![format!("{expression}: {error}")],
        };
        let mut complaints: Vec<_> =
            asked.selectors.iter().flat_map(|selector| self.missing(selector)).collect();
        for (labels, selectors) in &asked.groupings {
            let is_known = |label: &&String| {
                ADDED.contains(&label.as_str())
                    || selectors.iter().any(|selector| self.has_label(&selector.name, label))
            };
            let unknown = labels.iter().filter(|label| !is_known(label));
            complaints.extend(unknown.map(|label| format!("groups by {label}, which no series has")));
        }
        if asked.selectors.is_empty() {
            complaints.push("asks for nothing".to_owned());
        }
        complaints
    }

    fn missing(&self, Selector { name, matchers }: &Selector) -> Vec<String> {
        if name == UP {
            return Vec::new();
        }
        let Some(series) = self.0.get(name) else { return vec![format!("{name} is not on the page")] };
        let mut complaints = Vec::new();
        for (label, operator, value) in matchers.iter().filter(|(label, ..)| !ADDED.contains(&label.as_str()))
        {
            let values: Vec<&str> =
                if operator.ends_with('~') { value.split('|').collect() } else { vec![value.as_str()] };
            let is_there =
                |value: &&str| series.iter().any(|labels| labels.get(label).is_some_and(|is| is == value));
            let missing = values.iter().filter(|value| !is_there(value));
            complaints.extend(missing.map(|value| format!("{name} has no {label}={value:?}")));
        }
        complaints
    }

    fn has_label(&self, name: &str, label: &str) -> bool {
        self.0.get(name).is_some_and(|series| series.iter().any(|labels| labels.contains_key(label)))
    }
}

#[tokio::test]
async fn every_metric_of_alerts_and_dashboard_is_on_the_page_of_a_server() {
    let (_home, server) = Setup::new().option("retention", "interval_secs", "1").serve();
    let plan = server.plan("acme-dental/reception", 1, Track::whole(&DEMO_CALLER[80_000..88_000]));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.wait_log("recording stored", 1).await;
    eventually("a sweep", || (server.metric("retention_last_sweep_seconds") > 0.0).then_some(())).await;
    eventually("the ages of keys", || server.metrics().contains("\nkeks_due ").then_some(())).await;

    let page = Page::parse(&server.metrics());
    let mut complaints = Vec::new();
    for Alert { alert, expr, .. } in alerts() {
        complaints.extend(page.complaints(&expr).into_iter().map(|what| format!("alert {alert}: {what}")));
    }
    for (panel, expression) in dashboard_expressions() {
        let found = page.complaints(&expression);
        complaints.extend(found.into_iter().map(|what| format!("panel {panel:?}: {what}")));
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));

    // And the other way round: what is on the page is in the table, with the labels that it says.
    for (name, series) in &page.0 {
        let base = |suffix: &str| name.strip_suffix(suffix).unwrap_or(name);
        let is_of = |metric: &str, kind: Kind| match kind {
            Kind::Counter | Kind::Gauge => metric == name,
            Kind::Histogram => ["_bucket", "_sum", "_count"].iter().any(|suffix| metric == base(suffix)),
        };
        let metric = ALL.iter().find(|metric| is_of(metric.name, metric.kind));
        let metric = metric.unwrap_or_else(|| panic!("{name} is not in the table of metrics"));
        let wanted: BTreeSet<&str> = labels_of(metric.name).iter().copied().collect();
        for labels in series {
            let labels: BTreeSet<&str> =
                labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
            assert_eq!(labels, wanted, "{name}");
        }
    }
}

#[test]
fn every_alert_says_how_bad_it_is_and_what_to_do() {
    let runbook = read(RUNBOOK);
    let headings: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let alerts = alerts();
    let names: Vec<_> = alerts.iter().map(|alert| alert.alert.as_str()).collect();
    assert_eq!(headings, names, "the runbook has every alert, in their order");
    for Alert { alert, wait, labels, annotations, .. } in &alerts {
        assert!(["critical", "warning"].contains(&labels["severity"].as_str()), "{alert}");
        assert!(!annotations["summary"].trim().is_empty(), "{alert}");
        assert_eq!(annotations["runbook"], format!("{RUNBOOK}#{}", alert.to_lowercase()), "{alert}");
        let is_time = |wait: &String| wait.trim_end_matches(['s', 'm', 'h']).parse::<u32>().is_ok();
        assert!(wait.as_ref().is_none_or(is_time), "{alert}: for {wait:?}");
    }
}

#[test]
fn prometheus_itself_takes_the_rules() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/prometheus/alerts.yml");
    match Command::new("promtool").args(["check", "rules"]).arg(&file).output() {
        Ok(done) => assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr)),
        Err(error) => println!("skipped: no promtool on this machine: {error}"),
    }
}

#[test]
fn the_dashboard_begins_with_what_matters_most() {
    let panels = panels();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "every id once");
    let top: Vec<_> = panels.iter().filter(|panel| panel["gridPos"]["y"] == 1).collect();
    let titles: Vec<_> = top.iter().map(|panel| panel["title"].as_str().unwrap()).collect();
    assert_eq!(
        titles,
        ["Event loop lag", "Store lag", "Oldest unsaved frame", "Live calls", "Audio lost, 24 h"]
    );
    let mut taken = BTreeSet::new();
    for panel in &panels {
        let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for y in at("y")..at("y") + at("h") {
            for x in at("x")..at("x") + at("w") {
                assert!(taken.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
    }
}

#[test]
fn the_checks_would_notice() {
    let page = Page::parse(
        "# HELP a_total x\na_total{reason=\"x\"} 1\na_total{reason=\"y z\",kind=\"w\"} 2\nb 3\nc_bucket{le=\"+Inf\"} 1\n",
    );
    for good in [
        "increase(a_total{reason=\"x\"}[5m]) > 0",
        "sum by (instance, reason) (rate(a_total{reason=~\"x|y z\",kind=\"w\"}[5m])) / b{instance=~\"$instance\"}",
        "histogram_quantile(0.99, sum by (le) (rate(c_bucket[5m])))",
        "up{job=\"callseal\"} == 0",
    ] {
        assert_eq!(page.complaints(good), [""; 0], "{good}");
    }
    for bad in [
        "sum(a_total",
        "rate(b) > 0 or",
        "increase(a[5m]) > 0",
        "a_total{reason=\"z\"}",
        "a_total{reason=~\"x|q\"}",
        "b{reason=\"x\"}",
        "sum by (reason) (b)",
        "b + missing",
        "{reason=\"x\"}",
        "1 + 1",
    ] {
        assert!(!page.complaints(bad).is_empty(), "{bad}");
    }
}
