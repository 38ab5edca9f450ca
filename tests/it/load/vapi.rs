//! Load in the three ways in which Vapi's audio comes.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::{figure, own, says};
use crate::support::{Home, Server, Setup, TENANT, TenantSetup, write_private};

const FEW: [&str; 4] = ["--calls", "3", "--duration-secs", "2"];

/// Holds what every way must come to: every sample of every call is played.
fn nothing_is_lost(result: &Value, calls: f64) {
    assert!(figure(result, "recordings_compared") == calls && figure(result, "lost_ms") == 0.0, "{result:#}");
    // Both parties of each call.
    let audio_ms = figure(result, "audio_sent_ms");
    assert!(audio_ms >= calls * 2.0 * 2_000.0, "{result:#}");
    assert!(figure(result, "playable_percent") == 100.0, "{result:#}");
}

#[test]
fn calls_of_a_transcriber_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (result, code) = own("vapi", dir.path(), &FEW);
    assert_eq!((code, &result["settings"]["kind"]), (Some(0), &"transcriber".into()), "{result:#}");
    nothing_is_lost(&result, 3.0);
    assert!(figure(&result, "cpu_us_per_message") > 0.0 && figure(&result, "send_lag_p99_ms") > 0.0);
}

#[test]
fn calls_that_the_server_dials_to_hear_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let (result, code) = own("vapi", dir.path(), &[&["--kind", "listen"][..], &FEW].concat());
    assert_eq!((code, &result["settings"]["kind"]), (Some(0), &"listen".into()), "{result:#}");
    nothing_is_lost(&result, 3.0);
    assert!(figure(&result, "cpu_us_per_message") > 0.0 && figure(&result, "handshake_p99_ms") > 0.0);
}

#[test]
fn calls_that_are_passed_on_to_vapi_are_compared_on_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (result, code) = own("vapi", dir.path(), &[&["--kind", "transport"][..], &FEW].concat());
    assert_eq!((code, &result["settings"]["kind"]), (Some(0), &"transport".into()), "{result:#}");
    nothing_is_lost(&result, 3.0);
    assert!(figure(&result, "passed_on_p50_ms") > 0.0, "{result:#}");
    // Two messages every 20 ms, one of each party.
    let per_call = figure(&result, "messages_per_sec") / figure(&result, "open_when_measured");
    assert!((80.0..120.0).contains(&per_call), "{result:#}");
    assert!(figure(&result, "recordings_paused_ms") >= 0.0 && figure(&result, "player_paused_ms") >= 0.0);
}

#[test]
fn many_calls_that_come_and_go_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let options = ["--calls", "3", "--duration-secs", "3", "--churn-secs", "1", "--kind", "transport"];
    let (result, code) = own("vapi", dir.path(), &options);
    assert_eq!(code, Some(0), "{result:#}");
    let calls = figure(&result, "calls");
    assert!(calls > 3.0 && figure(&result, "recordings_compared") == calls, "{result:#}");
    assert!(figure(&result, "lost_ms") == 0.0, "{result:#}");
}

/// A node whose tenant has routes that dial a Vapi of this certificate; answers a token for tickets and playing as well.
fn running(dir: &Path, hosts: &str) -> (Home, Server, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(dir.join("vapi.pem"), made.cert.pem()).unwrap();
    write_private(&dir.join("vapi.key"), &made.signing_key.serialize_pem());
    write_private(&dir.join("secret"), "vapi-secret-0123456789abcdef");
    write_private(&dir.join("ticket"), "an invented ticket key of more than 32 bytes");
    let file = |name: &str| format!("{:?}", dir.join(name).display().to_string());
    let home = Setup::new()
        .option("admin", "tokens_file", "\"tokens.toml\"")
        .option("admin", "requests_per_sec", "10000")
        .option("vapi", "ca_file", &file("vapi.pem"))
        .option("vapi", "allow_private_hosts", "true")
        .tenant(|tenant: &mut TenantSetup| {
            tenant.top = format!(
                "[vapi]\nlisten_hosts = [{hosts:?}]\nsecrets = [{{ file = {} }}]\n[tickets]\nkeys = {{ t1 = {{ file = {} }} }}\n",
                file("secret"),
                file("ticket")
            );
            for provider in ["listen", "transport"] {
                tenant.routes.push((provider.to_owned(), format!("provider = \"vapi-{provider}\"")));
            }
        })
        .write();
    let roles = ["--role", "player", "--role", "ingest", "--tenant", TENANT];
    let token = home.run_ok(&[&["token", "create", "--name", "load"][..], &roles].concat());
    write_private(&dir.join("token"), token.trim());
    let server = home.serve();
    let log = server.log();
    let admin = log.iter().find(|line| line.text.contains("taking calls")).unwrap().field("admin").to_owned();
    (home, server, admin)
}

/// Places a few calls at a server that runs; answers the result and the exit code.
fn at(home: &Home, (server, admin): (&Server, &str), dir: &Path, kind: &str) -> (Value, Option<i32>) {
    let file = |name: &str| dir.join(name).display().to_string();
    let (public, ca) = (server.public().to_string(), home.data().join("tls/ca.pem").display().to_string());
    let (secret, token) = (file("secret"), file("token"));
    let (certificate, key) = (file("vapi.pem"), file("vapi.key"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_callseal-load"));
    command.args(["vapi", "--json", "--kind", kind, "--route", kind, "--ramp-secs", "0"]).args(FEW);
    command.args(["--connect", &public, "--public-url", home.public_url(), "--ca", &ca, "--tenant", TENANT]);
    command.args([
        "--admin",
        admin,
        "--admin-token-file",
        &token,
        "--vapi-cert",
        &certificate,
        "--vapi-key",
        &key,
    ]);
    if kind == "listen" {
        command.args(["--auth-token-file", &secret]);
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let result = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no result: {errors}"));
    (result, output.status.code())
}

#[test]
fn a_running_server_that_knows_the_certificate_is_measured_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let (home, server, admin) = running(dir.path(), "localhost");
    for kind in ["transport", "listen"] {
        let (result, code) = at(&home, (&server, &admin), dir.path(), kind);
        assert_eq!(code, Some(0), "{kind}: {result:#}");
        nothing_is_lost(&result, 3.0);
    }
}

#[test]
fn a_server_that_may_not_dial_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (home, mut server, admin) = running(dir.path(), "elsewhere.test");
    server.allow("listen URL is not dialled");
    let (result, code) = at(&home, (&server, &admin), dir.path(), "listen");
    assert_eq!((code, figure(&result, "failed_calls") == 3.0), (Some(1), true), "{result:#}");
    let told = |list: &str, part: &str| result[list].to_string().contains(part);
    assert!(told("failures", "did not dial the other end") && told("notes", "listen_hosts"), "{result:#}");
    drop(server);

    // It may dial, and does not believe who answers.
    let (home, mut server, admin) = running(dir.path(), "localhost");
    server.allow("agent was not reached");
    server.allow("agent unreachable");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(dir.path().join("vapi.pem"), other.cert.pem()).unwrap();
    write_private(&dir.path().join("vapi.key"), &other.signing_key.serialize_pem());
    let (result, code) = at(&home, (&server, &admin), dir.path(), "transport");
    assert_eq!((code, figure(&result, "failed_calls") == 3.0), (Some(1), true), "{result:#}");
    assert!(result["notes"].to_string().contains("vapi.ca_file"), "{result:#}");
}

#[test]
fn what_cannot_be_is_refused_before_anything_starts() {
    let place = ["vapi", "--connect", "127.0.0.1:1", "--ca", "x", "--tenant", "t"];
    let own = ["vapi", "--dir", "/nonexistent/x", "--callseal", "x"];
    let certificate = ["--vapi-cert", "/nonexistent/c", "--vapi-key", "/nonexistent/k"];
    for (options, part) in [
        (&[&place[..], &["--kind", "listen"]].concat()[..], "give --vapi-cert and --vapi-key"),
        (&[&place[..], &["--kind", "transport"]].concat(), "give --vapi-cert and --vapi-key"),
        (&[&place[..], &["--kind", "transport"], &certificate].concat(), "--admin and --admin-token-file"),
        (&[&place[..], &["--kind", "listen"], &certificate].concat(), "--vapi-cert: read /nonexistent/c"),
        (&[&place[..], &certificate].concat(), "nobody dials Vapi with --kind transcriber"),
        (&[&place[..], &["--vapi-cert", "c"]].concat(), "--vapi-key"),
        (&[&own[..], &certificate].concat(), "cannot be used with"),
        (&[&own[..], &["--kind", "radio"]].concat(), "transcriber, transport, listen"),
        (
            &[&own[..], &["--kind", "listen", "--calls", "30000"]].concat(),
            "allowed with --kind listen: 20000",
        ),
        (&[&own[..], &["--kind", "transport", "--duration-secs", "3600"]].concat(), "of a ticket"),
    ] {
        says(options, part);
    }
}
