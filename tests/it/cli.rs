//! Commands as people and scripts use them.

use std::process::Command;

use crate::support::{Home, Setup, TENANT};

fn callseal(args: &[&str]) -> (Option<i32>, String) {
    let done = Command::new(env!("CARGO_BIN_EXE_callseal")).args(args).output().unwrap();
    let text = String::from_utf8([done.stdout, done.stderr].concat()).unwrap();
    (done.status.code(), text)
}

#[test]
fn help_teaches_every_command() {
    let (code, top) = callseal(&["--help"]);
    assert_eq!(code, Some(0));
    for word in
        ["demo", "serve", "check-config", "keys", "grant", "recordings", "open", "verify", "audit", "64"]
    {
        assert!(top.contains(word), "{word}");
    }
    for command in [
        &["demo"][..],
        &["serve"],
        &["check-config"],
        &["keys", "init"],
        &["grant"],
        &["recordings", "list"],
        &["recordings", "show"],
        &["open"],
        &["verify"],
        &["audit", "show"],
    ] {
        let (code, text) = callseal(&[command, &["--help"]].concat());
        assert_eq!(code, Some(0), "{command:?}");
        assert!(
            text.contains(if command == ["demo"] { "--fast" } else { "--config" }),
            "{command:?}: {text}"
        );
    }
    assert_eq!(callseal(&["record"]).0, Some(2), "wrong arguments");
}

#[test]
fn the_demonstration_proves_itself() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("demo").display().to_string();
    let (code, text) = callseal(&["demo", "--fast", "--once", "--data", &data, "--port", "0"]);
    assert_eq!(code, Some(0), "{text}");
    for said in [
        "1. A server",
        "2. A call",
        "callseal-retention-days = 365",
        "found 0",
        "462400 samples of each track compared with what was sent: all equal",
        "play         allowed",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    // What it wrote is an ordinary configuration.
    let (code, text) = callseal(&["check-config", "--config", &format!("{data}/callseal.toml")]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_configuration_with_faults_is_refused_whole_before_anything_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("callseal.toml"), dir.path().join("data"));
    std::fs::create_dir(dir.path().join("tenants")).unwrap();
    std::fs::write(dir.path().join("tenants/a.toml"), "id = \"a\"\n[limits]\nmax_streams = 0\n").unwrap();
    let text = format!(
        "public_url = \"wss://localhost\"\ndata_dir = {data:?}\n[tls]\nself_signed = true\n[segments]\nmax_age_ms = 1\n\
         [store]\nkind = \"s3\"\n[ingest]\nno_such_option = true\n[tenants]\ndir = \"tenants\"\n"
    );
    std::fs::write(&file, text).unwrap();
    for command in ["check-config", "serve"] {
        let (code, said) = callseal(&[command, "--config", &file.display().to_string()]);
        assert_eq!(code, Some(64), "{command}: {said}");
        for option in ["segments.max_age_ms", "store.kind", "no_such_option", "limits.max_streams"] {
            assert!(said.contains(option), "{command} does not name {option}: {said}");
        }
    }
    assert!(!data.exists(), "nothing was made");
}

#[test]
fn keys_are_made_once_and_kept_to_their_owner() {
    let home = Setup::new().write();
    let keyring = find_keyring(&home);
    let before = std::fs::read(&keyring).unwrap();
    home.run_ok(&["keys", "init"]);
    assert_eq!(std::fs::read(&keyring).unwrap(), before, "what exists is never changed");
    let loose = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&keyring, loose).unwrap();
    let ran = home.run(&["serve"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("chmod 600"), "{}", ran.err);
    std::fs::remove_file(&keyring).unwrap();
    let ran = home.run(&["serve"]);
    assert!(ran.code == Some(1) && ran.err.contains("keys init"), "{}", ran.err);
}

fn find_keyring(home: &Home) -> std::path::PathBuf {
    let files = crate::support::files_below(home.path()).into_iter().map(|(path, _)| path);
    files.into_iter().find(|path| path.ends_with("keyring.json")).unwrap()
}

#[test]
fn an_unknown_recording_or_tenant_is_said_to_be_one() {
    let home = Setup::new().write();
    let unknown = "0".repeat(32);
    for command in [&["verify"][..], &["recordings", "show"], &["grant"], &["open", "--out", "x.wav"]] {
        let ran = home.run(&[command, &["--tenant", TENANT, "--recording", &unknown]].concat());
        assert_eq!(ran.code, Some(1), "{command:?}");
        assert!(ran.err.contains("recording"), "{command:?}: {}", ran.err);
    }
    let ran = home.run(&["recordings", "list", "--tenant", "nobody"]);
    assert!(ran.code == Some(1) && ran.err.contains("no tenant nobody"), "{}", ran.err);
    assert_eq!(home.run(&["recordings", "list", "--tenant", "No Body"]).code, Some(2));
    assert_eq!(home.recordings(TENANT), Vec::<String>::new());
}
