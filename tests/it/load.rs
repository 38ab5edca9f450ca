//! The load generator's fault runs, as a user starts them.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs `callseal-load faults` with a folder store; answers its result and whether it was content.
fn faults(dir: &Path, options: &[&str]) -> (Value, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callseal-load"));
    command.args(["faults", "--json", "--callseal", env!("CARGO_BIN_EXE_callseal"), "--patience-secs", "60"]);
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
