//! The load generator's fault runs, as a user starts them.

mod vapi;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::s3::servers::{ALL, ceph, table};

/// Runs `callseal-load faults`; answers its result and whether it was content.
fn faults(dir: &Path, options: &[&str]) -> (Value, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callseal-load"));
    command.args(["faults", "--json", "--callseal", env!("CARGO_BIN_EXE_callseal"), "--patience-secs", "60"]);
    // Enough segments that some are cut while something is wrong.
    command.env("CALLSEAL_SEGMENTS__MAX_AGE_MS", "1000");
    let output = command.arg("--dir").arg(dir).args(options).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let result = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no result: {errors}"));
    (result, output.status.success())
}

#[test]
fn a_run_without_a_fault_balances() {
    let dir = tempfile::tempdir().unwrap();
    let (result, is_content) = faults(dir.path(), &["--fault", "none", "--calls", "3", "--secs", "1"]);
    assert!(is_content, "{result:#}");
    let ledger = &result["ledger_samples"];
    assert_eq!((&ledger["sent"], &ledger["playable"]), (&48_000.into(), &48_000.into()));
}

#[test]
fn killed_servers_lose_no_more_than_is_published_and_nothing_silently() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--fault", "kill", "--calls", "3", "--secs", "2", "--repeat", "3", "--seed", "5"];
    let (result, is_content) = faults(dir.path(), &options);
    assert!(is_content, "{result:#}");
    assert_eq!(result["kill_loss"]["tracks"], 18);
    assert_eq!(result["silently_lost_ms"], 0);
}

#[test]
fn a_bound_that_is_broken_fails_the_run() {
    let dir = tempfile::tempdir().unwrap();
    // A journal that writes once a second loses half a second on average; four random moments cannot all be lucky.
    let mut command = Command::new(env!("CARGO_BIN_EXE_callseal-load"));
    command.args(["faults", "--json", "--callseal", env!("CARGO_BIN_EXE_callseal"), "--patience-secs", "60"]);
    command.arg("--dir").arg(dir.path()).args(["--fault", "kill", "--calls", "1", "--secs", "3"]);
    command.args(["--max-kill-loss-ms", "60", "--repeat", "4"]);
    command
        .env("CALLSEAL_JOURNAL__FLUSH_INTERVAL_MS", "1000")
        .env("CALLSEAL_JOURNAL__SYNC_INTERVAL_MS", "1000");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(result["broken_bounds"][0].as_str().unwrap().contains("a kill lost"), "{result:#}");
}

#[test]
fn weather_needs_a_store_that_is_reached_over_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_callseal-load"));
    command.args(["faults", "--fault", "hang", "--callseal", "callseal"]).arg("--dir").arg(dir.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("a folder has no weather"));
}

/// Places calls at a node whose way to Ceph has bad weather for three seconds; answers the result.
async fn calls_in_bad_weather(fault: &str) {
    let Some(ceph) = ceph() else { return };
    let (dir, bucket) = (tempfile::tempdir().unwrap(), ceph.bucket(ALL).await);
    let options = table(dir.path(), &ceph, &bucket);
    let lines: String = options.iter().map(|(option, value)| format!("{option} = {value}\n")).collect();
    let store = dir.path().join("store.toml");
    fs::write(&store, format!("[store]\n{lines}")).unwrap();
    let options = ["--fault", fault, "--calls", "3", "--secs", "8", "--after-secs", "2", "--fault-secs", "3"];
    let with_store = [&options[..], &["--store", store.to_str().unwrap()]].concat();
    let run = dir.path().join("run");
    let (result, is_content) = faults(&run, &with_store);
    assert!(is_content, "{result:#}");
    let ledger = &result["ledger_samples"];
    assert_eq!(ledger["playable"], ledger["sent"], "nothing is lost, not even declared: {result:#}");
    assert_eq!((&result["dropped_calls"], &ledger["sent"]), (&0.into(), &384_000.into()));
    // A connection that is refused is no request that could be counted.
    let is_noticed = fs::read_to_string(run.join("server.log")).unwrap().contains("trying again");
    assert!(is_noticed || result["store"]["mishaps"].as_u64() > Some(0), "no bad weather: {result:#}");
}

#[tokio::test]
async fn nothing_is_lost_at_a_store_that_never_answers() {
    calls_in_bad_weather("hang").await;
}

#[tokio::test]
async fn nothing_is_lost_at_a_store_that_is_away() {
    calls_in_bad_weather("refuse").await;
}

#[tokio::test]
async fn nothing_is_lost_at_a_store_that_is_mostly_busy() {
    calls_in_bad_weather("busy:80").await;
}

#[tokio::test]
async fn nothing_is_lost_at_a_store_whose_answers_are_lost() {
    calls_in_bad_weather("lose-answer:60").await;
}

#[tokio::test]
async fn nothing_is_lost_on_a_way_that_damages_what_passes() {
    calls_in_bad_weather("corrupt:60").await;
}

#[tokio::test]
async fn nothing_is_lost_at_a_store_that_fails_after_it_said_yes() {
    calls_in_bad_weather("error-body:60").await;
}

/// Runs a scenario at a server of its own; answers its result and its exit code.
fn own(scenario: &str, dir: &Path, options: &[&str]) -> (Value, Option<i32>) {
    bare(scenario, dir, &[&["--ramp-secs", "0"], options].concat())
}

/// As [`own`], of a scenario whose calls have no ramp.
fn bare(scenario: &str, dir: &Path, options: &[&str]) -> (Value, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callseal-load"));
    command.args([scenario, "--json", "--callseal", env!("CARGO_BIN_EXE_callseal")]);
    if scenario == "idle" {
        // So that connections that say nothing are closed soon.
        command.env("CALLSEAL_INGEST__HEADER_TIMEOUT_MS", "2000");
        command.env("CALLSEAL_INGEST__START_TIMEOUT_MS", "2000");
    }
    let output = command.arg("--dir").arg(dir).args(options).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let result = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no result: {errors}"));
    (result, output.status.code())
}

/// Returns a figure of a result.
fn figure(result: &Value, name: &str) -> f64 {
    let figures = result["figures"].as_array().unwrap();
    let found = figures.iter().find(|figure| figure["name"] == name);
    found.and_then(|figure| figure["value"].as_f64()).unwrap_or_else(|| panic!("no {name} in {result:#}"))
}

#[test]
fn calls_that_come_and_go_are_measured_each_second_and_compared_through_their_links() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (saved, html) = (file("saved.json"), file("page.html"));
    let options = ["--calls", "3", "--duration-secs", "4", "--churn-secs", "1", "--seed", "7"];
    let kept = [&options[..], &["--save", &saved, "--html", &html]].concat();
    let (result, code) = own("steady", &dir.path().join("one"), &kept);
    assert_eq!(code, Some(0), "{result:#}");
    let calls = figure(&result, "calls");
    assert!(calls > 3.0, "{calls} calls");
    assert_eq!(figure(&result, "recordings_compared").total_cmp(&calls), std::cmp::Ordering::Equal);
    assert!(figure(&result, "audio_sent_ms") > 12_000.0, "{result:#}");
    for name in ["lost_ms", "silently_lost_ms", "declared_lost_ms", "failed_calls"] {
        assert!(figure(&result, name) == 0.0, "{name}: {result:#}");
    }
    assert!(
        figure(&result, "cpu_ms_per_call_second") > 0.0 && figure(&result, "server_memory_peak_mib") > 1.0
    );
    let series = &result["series"];
    let seconds = series["at_secs"].as_array().unwrap().len();
    assert!(seconds >= 4, "{series:#}");
    for name in ["open_calls", "server_cores", "server_memory_mib", "store_lag_secs", "send_lag_p99_ms"] {
        let values = series[name].as_array().unwrap();
        assert!(values.len() == seconds && values.iter().any(Value::is_number), "{name}: {values:?}");
    }
    let page = fs::read_to_string(&html).unwrap();
    assert!(page.contains("<polyline") && page.ends_with("</html>\n"));
    let written: Value = serde_json::from_slice(&fs::read(&saved).unwrap()).unwrap();
    assert_eq!(written, result);

    // The same seed places the same calls; a bound that nothing can keep is told as broken, here and in the comparison.
    let again = [&options[..], &["--max-kib-per-call", "0.001", "--compare", &saved]].concat();
    let mut command = Command::new(env!("CARGO_BIN_EXE_callseal-load"));
    command.args(["steady", "--callseal", env!("CARGO_BIN_EXE_callseal"), "--ramp-secs", "0", "--dir"]);
    let output = command.arg(dir.path().join("two")).args(again).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{table}");
    let line =
        |start: &str| table.lines().rev().find(|line| line.trim_start().starts_with(start)).unwrap_or("");
    assert!(line("calls ").ends_with("(+0.0 %, the same)"), "{table}");
    assert!(line("bound kib_per_call").contains("new, BROKEN"), "{table}");
    assert!(!table.contains("setting "), "the settings are the same: {table}");
}

#[test]
fn a_burst_is_taken_while_other_calls_run() {
    let dir = tempfile::tempdir().unwrap();
    let burst = ["--burst-calls", "8", "--within-ms", "200", "--quiet-secs", "1"];
    let options = [&["--calls", "2", "--duration-secs", "3"][..], &burst].concat();
    let (result, code) = own("burst", dir.path(), &options);
    assert_eq!(code, Some(0), "{result:#}");
    assert!(figure(&result, "calls") == 10.0 && figure(&result, "recordings_compared") == 10.0, "{result:#}");
    assert!(figure(&result, "burst_handshake_p99_ms") > 0.0);
}

#[test]
fn a_storm_of_short_calls_leaves_those_that_run_alone() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--calls", "2", "--rate", "10", "--secs", "2", "--quiet-secs", "2"];
    let (result, code) = own("storm", dir.path(), &options);
    assert_eq!(code, Some(0), "{result:#}");
    assert!(figure(&result, "calls") == 22.0 && figure(&result, "recordings_compared") == 2.0, "{result:#}");
    assert!(figure(&result, "lost_ms") == 0.0 && figure(&result, "burst_handshake_p99_ms") > 0.0);
    for part in ["before_burst", "of_burst"] {
        assert!(figure(&result, &format!("event_loop_lag_worst_second_{part}_p99_ms")) > 0.0, "{result:#}");
    }
}

/// Opens connections that say nothing from `stage` on.
fn silence(stage: &str) {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--stage", stage, "--connections", "20", "--rate", "20", "--watch-secs", "8"];
    let (result, code) = own("idle", dir.path(), &options);
    assert_eq!(code, Some(0), "{result:#}");
    assert!(figure(&result, "silent_connections") == 20.0 && figure(&result, "silent_not_closed") == 0.0);
    assert!(figure(&result, "silent_closed_after_p50_ms") > 1_900.0, "{result:#}");
    assert!(figure(&result, "recordings_compared") == 1.0 && figure(&result, "lost_ms") == 0.0, "{result:#}");
}

#[test]
fn connections_that_end_with_tls_are_closed() {
    silence("tls");
}

#[test]
fn websockets_that_say_nothing_are_closed() {
    silence("upgraded");
}

#[test]
fn a_recording_is_heard_by_many_at_any_pace() {
    let dir = tempfile::tempdir().unwrap();
    let recording = ["--recording-secs", "10", "--seed", "7", "--listeners", "2", "--seeks", "2"];
    let (result, code) = bare("playback", dir.path(), &recording);
    assert_eq!(code, Some(0), "{result:#}");
    assert!(figure(&result, "listeners") == 2.0 && figure(&result, "seeks") == 2.0, "{result:#}");
    assert!(figure(&result, "seek_ttfb_p99_ms") > 0.0 && figure(&result, "opened_mb_per_sec") > 0.0);
    assert!(figure(&result, "playable_percent") == 100.0, "{result:#}");

    let again = ["--recorded", "--pace", "real", "--secs", "2", "--max-ttfb-ms", "0.001"];
    let (result, code) = bare("playback", dir.path(), &[&recording[..], &again].concat());
    assert_eq!(code, Some(1), "no first byte is as fast: {result:#}");
    assert!(figure(&result, "listeners_failed") == 0.0 && figure(&result, "audio_late_max_ms") >= 0.0);
}

#[test]
fn a_server_that_is_asked_to_end_lets_its_calls_end() {
    let dir = tempfile::tempdir().unwrap();
    let (result, code) = own("drain", dir.path(), &["--calls", "4", "--longest-secs", "4"]);
    assert_eq!(code, Some(0), "{result:#}");
    assert!(figure(&result, "recordings_compared") == 4.0 && figure(&result, "lost_ms") == 0.0, "{result:#}");
}

#[test]
fn a_curve_has_a_row_for_each_number_of_calls() {
    let dir = tempfile::tempdir().unwrap();
    let (result, code) = own("curve", dir.path(), &["--calls", "1,3", "--duration-secs", "2"]);
    assert_eq!(code, Some(0), "{result:#}");
    assert_eq!(result["steps"].as_array().map(Vec::len), Some(2));
    for name in ["1 calls: cpu_ms_per_call_second", "3 calls: cpu_ms_per_call_second"] {
        assert!(figure(&result, name) > 0.0, "{result:#}");
    }
}

#[test]
fn wrong_options_are_named_and_measure_nothing() {
    for (options, part) in [
        (&["steady"][..], "--connect"),
        (
            &["steady", "--connect", "192.0.2.1:1", "--ca", "x", "--tenant", "t"],
            "--connect: no loopback address",
        ),
        (&["drain", "--connect", "127.0.0.1:1", "--ca", "x", "--tenant", "t"], "give --dir and --callseal"),
        (&["steady", "--dir", "x", "--callseal", "x", "--calls", "0"], "0 is not in 1..=100000"),
        (&["steady", "--dir", "x", "--callseal", "x", "--calls", "1,2"], "--calls: 2 numbers"),
        (&["playback", "--dir", "x", "--callseal", "x", "--recorded"], "--seed"),
        (&["idle", "--dir", "x", "--callseal", "x", "--connections", "30000"], "takes 20000"),
        (&["slow-store", "--dir", "x", "--callseal", "x"], "a folder has no weather"),
        (&["compare", "/does/not/exist", "/neither"], "read /neither"),
    ] {
        says(options, part);
    }
}

/// Runs with wrong options, which it must refuse in these words.
fn says(options: &[&str], part: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_callseal-load")).args(options).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{options:?}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains(part), "{part} in {errors}");
}

#[test]
fn a_result_that_nobody_reads_is_no_failure_and_one_that_cannot_be_written_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("saved.json");
    fs::write(&file, r#"{"form": 1, "figures": []}"#).unwrap();
    let compare = |stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_callseal-load"));
        let output = command.arg("compare").args([&file, &file]).stdout(stdout).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(compare(writer.into()), (Some(0), String::new()));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, errors) = compare(full.into());
    assert!(code == Some(2) && errors.contains("write the result"), "{code:?}: {errors}");
}
