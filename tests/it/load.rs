//! The load generator's fault runs, as a user starts them.

use std::fs;
use std::path::Path;
use std::process::Command;

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
