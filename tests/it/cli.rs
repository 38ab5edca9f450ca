//! The command line as people and scripts use it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use callseal::simulate::speech::{DEMO_AGENT, DEMO_CALLER};
use callseal::simulate::{Track, TwilioCall};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Home, Ran, Server, Setup, TENANT, files_below};

const SAMPLES: usize = 16_000;

/// Runs the program without a configuration.
fn callseal(args: &[&str]) -> Ran {
    let done = Command::new(env!("CARGO_BIN_EXE_callseal")).args(args).output().unwrap();
    Ran {
        code: done.status.code(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

/// Records two seconds of two tracks; answers the recording.
async fn record(home: &Home, server: &Server) -> String {
    let mut plan =
        server.plan("acme-dental/reception", 1, Track::whole(&DEMO_CALLER[80_000..80_000 + SAMPLES]));
    plan.agent = Some(Track::whole(&DEMO_AGENT[80_000..80_000 + SAMPLES]));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.wait_log("recording stored", 1).await;
    home.recordings(TENANT).remove(0)
}

#[test]
fn every_command_explains_itself() {
    const TARGET: [&str; 2] = ["--config", "--tenant"];
    const ONE: [&str; 3] = ["--config", "--tenant", "--recording"];
    let commands: [(&[&str], &[&str]); 22] = [
        (
            &[],
            &[
                "demo",
                "serve",
                "check-config",
                "keys",
                "grant",
                "recordings",
                "open",
                "verify",
                "audit",
                "store",
            ],
        ),
        (&["demo"], &["--fast", "--once", "--data", "--port"]),
        (&["serve"], &["--config"]),
        (&["top"], &["--url", "--config", "--interval-ms", "--once", "--json"]),
        (&["check-config"], &["--config"]),
        (&["keys"], &["init"]),
        (&["keys", "init"], &["--config"]),
        (&["grant"], &ONE),
        (&["grant"], &["--ttl-secs", "--sub", "--reason", "--ip", "--track", "--format", "--dl"]),
        (&["recordings"], &["list", "show"]),
        (&["recordings", "list"], &["--config", "--tenant", "--after", "--limit", "--json"]),
        (&["recordings", "show"], &["--recording", "--json"]),
        (&["recordings", "hold"], &["--recording", "--reason", "--actor", "--dry-run", "--json"]),
        (&["recordings", "release"], &["--recording", "--reason", "--actor", "--dry-run", "--json"]),
        (&["recordings", "delete"], &["--recording", "--reason", "--actor", "--dry-run", "--json", "--yes"]),
        (&["sweep"], &["--config", "--dry-run", "--json", "--allow-share", "--yes"]),
        (&["open"], &["--recording", "--out", "--track", "--format"]),
        (&["verify"], &["--recording", "--json"]),
        (&["audit"], &["show", "verify"]),
        (&["store", "probe"], &["--config", "--json"]),
        (&["audit", "show"], &TARGET),
        (&["audit", "verify"], &TARGET),
    ];
    for (command, options) in commands {
        let ran = callseal(&[command, &["--help"]].concat());
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{command:?}");
        for option in options {
            assert!(ran.out.contains(option), "{command:?} does not show {option}:\n{}", ran.out);
        }
    }
    assert!(callseal(&["--version"]).out.starts_with("callseal 0."));
}

#[test]
fn wrong_arguments_are_2_and_say_what_is_right() {
    for args in [
        &["no-such-command"][..],
        &["serve", "--no-such-option"],
        &["grant", "--tenant", TENANT, "--recording", "xyz"],
        &["grant", "--tenant", "Not A Tenant", "--recording", "0"],
        &["recordings", "list", "--tenant", TENANT, "--limit", "0"],
        &["open", "--tenant", TENANT],
        &["demo", "--port", "70000"],
    ] {
        let ran = callseal(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(ran.err.starts_with("error: "), "{args:?}: {}", ran.err);
    }
}

#[test]
fn the_demonstration_proves_itself_and_ends() {
    let dir = TempDir::new().unwrap();
    let data = dir.path().join("demo").display().to_string();
    let ran = callseal(&["demo", "--fast", "--once", "--data", &data, "--port", "0"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    let sections = [
        "\n1. A server",
        "\n2. A call",
        "\n3. One sealed object",
        "\n4. Nothing readable at rest",
        "\n5. Played through a signed link",
        "\n6. Audit trail",
    ];
    let mut rest = ran.out.as_str();
    for section in sections {
        let at = rest.find(section);
        rest = &rest[at.unwrap_or_else(|| panic!("{section:?} is missing: {}", ran.out))..];
    }
    assert!(ran.out.contains("found 0\n") && ran.out.contains("all equal"), "{}", ran.out);
    // What it leaves is an ordinary node's: the call can be listed.
    let config = format!("{data}/callseal.toml");
    let listed = callseal(&["recordings", "list", "--tenant", TENANT, "--json", "--config", &config]);
    assert_eq!(listed.out.lines().count(), 1, "{}{}", listed.out, listed.err);
}

#[test]
fn check_config_lists_every_fault_at_once() {
    let home = Setup::new().write();
    let good = home.run_ok(&["check-config"]);
    assert!(good.contains("no faults; 1 tenant, public URL wss://media.example.com"), "{good}");
    let text = fs::read_to_string(home.config()).unwrap();
    let bad = text.replace("wss://media.example.com", "ftp://x")
        + "\n[segments]\nmax_age_ms = 1\nmax_bytes = \"many\"\n[store]\nkind = \"s3\"\n[nonsense]\na = 1\n";
    fs::write(home.config(), bad).unwrap();
    let tenant = home.path().join("tenants/acme-dental.toml");
    let tenant_text = fs::read_to_string(&tenant).unwrap();
    fs::write(&tenant, tenant_text.replace("provider = \"twilio\"", "provider = \"pigeon\"")).unwrap();
    let ran = home.run(&["check-config"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""));
    let faults =
        ["public_url", "segments.max_age_ms", "segments.max_bytes", "store.kind", "nonsense", "provider"];
    for fault in faults {
        assert!(ran.err.contains(fault), "{fault} is missing: {}", ran.err);
    }
    for command in [&["serve"][..], &["recordings", "list", "--tenant", TENANT], &["keys", "init"]] {
        assert_eq!(home.run(command).code, Some(64), "{command:?}");
    }
    fs::remove_file(home.config()).unwrap();
    let missing = home.run(&["check-config"]);
    assert!(missing.code == Some(64) && missing.err.contains("callseal.toml"), "{}", missing.err);
}

#[test]
fn keys_are_made_once_and_for_their_owner_only() {
    let home = Setup::new().write();
    let files = || {
        let mut files = files_below(&home.path().join("secrets"));
        files.push((home.data().join("keyring.json"), fs::read(home.data().join("keyring.json")).unwrap()));
        files.sort();
        files
    };
    let before = files();
    let again = home.run_ok(&["keys", "init"]);
    assert!(again.contains("made keys for 0 of 1 tenant"), "{again}");
    assert_eq!(files(), before, "what exists is never changed");
    for (path, _) in files() {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    let lost = &before[1].0;
    fs::remove_file(lost).unwrap();
    home.run_ok(&["keys", "init"]);
    assert!(lost.exists(), "a missing secret is made");
}

#[tokio::test]
async fn recordings_are_listed_shown_and_opened() {
    let (home, mut server) = Setup::new().serve();
    let recording = record(&home, &server).await;
    let listed = home.run_json(&["recordings", "list", "--tenant", TENANT, "--json"]);
    assert_eq!(listed.len(), 1);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&listed[0]), ["created", "recording", "seconds", "state"]);
    assert_eq!((&listed[0]["state"], &listed[0]["seconds"]), (&"complete".into(), &2.0.into()));
    let after = ["recordings", "list", "--tenant", TENANT, "--after", &recording];
    assert_eq!(home.run_ok(&after), "");
    let shown = home.show(TENANT, &recording);
    let wanted = [
        "call",
        "cause",
        "counts",
        "ended",
        "expires",
        "gaps",
        "objects",
        "provider",
        "recording",
        "revision",
        "root",
        "route",
        "seconds",
        "segments",
        "started",
        "state",
    ];
    assert_eq!(keys(&shown), wanted);
    let object = &shown["objects"][0];
    assert!(object["name"].as_str().unwrap().ends_with("/final.cmr"));
    assert_eq!(object["tags"]["callseal-retention-days"], "365");
    // Without --json the same, for people.
    let args = ["recordings", "show", "--tenant", TENANT, "--recording", &recording];
    assert_eq!(serde_json::from_str::<Value>(&home.run_ok(&args)).unwrap(), shown);

    let link = home.grant(TENANT, &recording, &["--ttl-secs", "60", "--reason", "a complaint", "--dl"]);
    let played = server.https().get(&link, &[]).await.unwrap();
    assert_eq!((played.status.as_u16(), played.body.len()), (200, 44 + SAMPLES * 4));
    assert!(played.headers.contains_key("content-disposition"));
    let out = home.path().join("out.wav");
    let name = out.display().to_string();
    let args = ["open", "--tenant", TENANT, "--recording", &recording, "--out", &name];
    assert!(home.run_ok(&args).contains("2.00 s, verified"));
    assert_eq!(fs::read(&out).unwrap(), played.body, "what is opened is what is played");
    assert_eq!(python_reads(&name), format!("2 2 8000 {SAMPLES}"));
    home.run_ok(&[&args[..], &["--track", "agent"]].concat());
    assert_eq!(python_reads(&name), format!("1 2 8000 {SAMPLES}"));

    let actions: Vec<_> = home.run_json(&["audit", "show", "--tenant", TENANT]);
    let minted = actions.iter().find(|record| record["action"] == "mint-grant").unwrap();
    assert_eq!((&minted["role"], &minted["reason"]), (&"operator".into(), &"a complaint".into()));
    server.stop().await;
}

/// Runs the program while nobody reads what it says.
fn unread(home: &Home, args: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = home.command(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let mut complaints = String::new();
    child.stderr.take().unwrap().read_to_string(&mut complaints).unwrap();
    (child.wait().unwrap().code(), complaints)
}

#[tokio::test]
async fn a_command_that_nobody_reads_ends_quietly_and_does_its_work() {
    let (home, mut server) = Setup::new().serve();
    let recording = record(&home, &server).await;
    server.stop().await;
    for args in [
        &["check-config"][..],
        &["recordings", "list", "--tenant", TENANT],
        &["audit", "show", "--tenant", TENANT],
        &["audit", "export", "--tenant", TENANT],
    ] {
        assert_eq!(unread(&home, args), (Some(0), String::new()), "{args:?}");
    }
    let hold = [
        "recordings",
        "hold",
        "--tenant",
        TENANT,
        "--recording",
        &recording,
        "--actor",
        "a",
        "--reason",
        "b",
    ];
    assert_eq!(unread(&home, &hold).0, Some(0));
    let held = &home.show(TENANT, &recording)["objects"][0]["tags"]["callseal-hold"];
    assert_eq!(held, "true", "what is changed is changed");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = home.command(&["check-config"]).stdout(full).output().unwrap();
    let complaint = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.code() == Some(1) && complaint.contains("results cannot be written"), "{complaint}");
}

/// What Python's own reader says of a WAV file: channels, bytes of a sample, rate and frames.
fn python_reads(file: &str) -> String {
    let python = std::env::var_os("TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let program = "import sys, wave\nw = wave.open(sys.argv[1])\nframes = w.readframes(w.getnframes())\n\
                   size = w.getsampwidth() * w.getnchannels()\nassert len(frames) == w.getnframes() * size\n\
                   print(w.getnchannels(), w.getsampwidth(), w.getframerate(), w.getnframes())";
    let done = Command::new(python).args(["-c", program, file]).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

#[test]
fn what_is_not_there_is_1_and_named() {
    let home = Setup::new().write();
    let nothing = "0".repeat(32);
    for command in [&["verify"][..], &["open", "--out", "never.wav"], &["grant"], &["recordings", "show"]] {
        let ran = home.run(&[command, &["--tenant", TENANT, "--recording", &nothing]].concat());
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{command:?}");
        assert!(ran.err.starts_with("callseal: recording"), "{command:?}: {}", ran.err);
    }
    assert!(!home.path().join("never.wav").exists());
    let ran = home.run(&["audit", "show", "--tenant", "nobody"]);
    assert!(ran.code == Some(1) && ran.err.contains("no tenant nobody"), "{}", ran.err);
    let too_long = ["grant", "--tenant", TENANT, "--recording", &nothing, "--ttl-secs", "100000"];
    assert_eq!(home.run(&too_long).code, Some(1));
}
