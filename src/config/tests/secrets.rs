//! Secrets come from where they are said to be, and no text shows them.

use super::*;

#[test]
fn secrets_in_plain_are_refused_and_not_shown() {
    let text = format!(
        "id = \"acme\"\n[twilio]\naccount_sids = [\"{CANARY}\"]\n\
         auth_tokens = [\"{CANARY}\", {{ env = \"{CANARY}\" }}, {{ value = \"{CANARY}\" }}]\n\
         shared_keys = {{ \"{CANARY}!\" = {{ file = \"x\" }}, K = \"{CANARY}\" }}\n\
         auth_token = \"{CANARY}\"\nrequire_shared_key = \"{CANARY}\"\n\
         [playback]\ngrant_keys = \"{CANARY}\"\ngrant_kid = \"{CANARY}\"\n[limits]\nmax_streams = [\"{CANARY}\"]\n"
    );
    let expected = [
        "limits.max_streams",
        "playback.grant_keys",
        "playback.grant_kid",
        "twilio.account_sids[0]",
        "twilio.auth_token",
        "twilio.auth_tokens[0]",
        "twilio.auth_tokens[1]",
        "twilio.auth_tokens[2]",
        "twilio.require_shared_key",
        "twilio.shared_keys",
        "twilio.shared_keys.K",
    ];
    assert_eq!(names(&tenant_faults(&text)), expected);
    for broken in [
        "auth_tokens = [\"canary\"",
        "auth_tokens = canary",
        "a = \"canary\"\na = \"canary\"",
        "canary",
        "\"canary\\q\" = 1",
    ] {
        assert_eq!(faults_of(NODE, &[], &Shelf::with(&[("t.toml", broken)])).len(), 1);
        assert_eq!(faults_of(broken, &[], &Shelf::default()).len(), 1);
    }
    let user = NODE.replace("wss://", "wss://canary:canary@");
    assert_eq!(names(&faults_of(&user, &[], &Shelf::default())), ["public_url"]);
}

#[test]
fn secrets_come_from_files_and_variables() {
    let text = "id = \"acme\"\n[twilio]\n\
                auth_tokens = [{ env = \"CALLSEAL_SECRET_A\" }, { env = \"TOKEN_B\" }, { file = \"f\" }]\n\
                [playback.grant_keys]\nk1 = { file = \"k\" }\n";
    let env = [("CALLSEAL_SECRET_A", "canary-a\n"), ("TOKEN_B", "canary-b")];
    let config = check(NODE, &env, &Shelf::with(&[("t.toml", text)])).expect("the secrets are there");
    let id = "acme".parse().unwrap();
    let tenant = config.tenant(&id).expect("the tenant is there");
    let tokens: Vec<_> = tenant.twilio.auth_tokens.iter().map(Secret::expose).collect();
    assert_eq!(tokens, [b"canary-a".as_slice(), b"canary-b", CANARY.as_bytes()]);
    assert_eq!(tenant.playback.grant_kid.as_deref(), Some("k1"));

    let text =
        text.replace("\"f\"", "\"missing\"").replace("\"k\"", "\"short\"").replace("TOKEN_B", "TOKEN_C");
    let faults = faults_of(NODE, &[("CALLSEAL_SECRET_A", "\n")], &Shelf::with(&[("t.toml", &text)]));
    let expected =
        ["playback.grant_keys.k1", "twilio.auth_tokens[0]", "twilio.auth_tokens[1]", "twilio.auth_tokens[2]"];
    let expected = expected.map(|option| format!("tenants/t.toml: {option}"));
    assert_eq!(names(&faults), expected);
}

#[test]
fn secrets_print_as_stars() {
    let secret = Secret::new(CANARY.as_bytes().to_vec());
    assert_eq!(format!("{secret:?} {secret:#?}"), "Secret(***) Secret(***)");
}

#[cfg(unix)]
mod disk {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(path: &Path, text: &[u8], mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn problem(path: &Path) -> String {
        let problem = Disk.read_secret(path).expect_err("the file is refused");
        assert!(problem.contains(path.to_str().unwrap()) && !problem.contains("canary"), "{problem}");
        problem
    }

    #[test]
    fn secret_files_are_private_and_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for (text, kept) in
            [("canary\n", "canary"), ("canary\r\n", "canary"), ("canary\n\n", "canary\n"), (" c ", " c ")]
        {
            write(&path, text.as_bytes(), 0o600);
            assert_eq!(Disk.read_secret(&path).expect("the file is private").expose(), kept.as_bytes());
        }
        for mode in [0o640, 0o604, 0o660, 0o610] {
            write(&path, b"canary", mode);
            let problem = problem(&path);
            assert!(problem.contains(&format!("mode {mode:04o}")), "{problem}");
            assert!(problem.ends_with(&format!("run: chmod 600 {}", path.display())), "{problem}");
        }
        write(&path, &[b'c'; 4096], 0o400);
        assert_eq!(Disk.read_secret(&path).expect("the longest secret").expose().len(), 4096);
        fs::remove_file(&path).unwrap();
        for length in [4097, 4098, 5000, 100_000] {
            write(&path, &vec![b'c'; length], 0o600);
            assert!(problem(&path).contains("longer than 4096"));
        }
        for empty in ["", "\n", "\r\n"] {
            write(&path, empty.as_bytes(), 0o600);
            assert!(problem(&path).contains("empty"));
        }
        assert!(problem(&dir.path().join("absent")).contains("cannot read"));
        assert!(problem(dir.path()).contains("not a regular file"));
    }

    /// Writes a node, a tenant and its secret, and returns the node's file.
    fn write_all(dir: &Path, mode: u32) -> PathBuf {
        fs::create_dir(dir.join("tenants")).unwrap();
        let tenant = "id = \"acme\"\n[playback.grant_keys]\nk1 = { file = \"../key\" }\n";
        fs::write(dir.join("tenants/acme.toml"), tenant).unwrap();
        fs::write(dir.join("tenants/.hidden.toml"), "not a tenant").unwrap();
        fs::write(dir.join("tenants/README.md"), "not a tenant").unwrap();
        write(&dir.join("key"), CANARY.as_bytes(), mode);
        let path = dir.join("node.toml");
        fs::write(&path, NODE).unwrap();
        path
    }

    #[test]
    fn a_configuration_loads_from_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_all(dir.path(), 0o600);
        let config = Config::load(&path, NO_ENV).expect("the files have no fault");
        assert_eq!(config.tenants.len(), 1);
        assert_eq!(config.tenants[0].playback.grant_keys["k1"].expose(), CANARY.as_bytes());
        let Tls::SelfSigned { dir } = config.tls else { panic!("the certificate is self-signed") };
        assert_eq!(dir, Path::new("data/tls"));
    }

    #[test]
    fn faults_on_disk_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_all(dir.path(), 0o644);
        fs::write(dir.path().join("tenants/binary.toml"), b"\xff").unwrap();
        let faults = Config::load(&path, NO_ENV).expect_err("two files are refused");
        let options: Vec<_> = faults.iter().map(|fault| fault.option.as_str()).collect();
        assert_eq!(options, ["tenants/acme.toml: playback.grant_keys.k1", "tenants/binary.toml"]);
        let absent =
            Config::load(&dir.path().join("absent.toml"), NO_ENV).expect_err("there is no such file");
        assert!(absent.to_string().starts_with("1 fault in the configuration\n"), "{absent}");
        fs::remove_dir_all(dir.path().join("tenants")).unwrap();
        let faults = Config::load(&path, NO_ENV).expect_err("the directory is gone");
        assert_eq!(faults.iter().map(|fault| fault.option.as_str()).collect::<Vec<_>>(), ["tenants.dir"]);
    }
}
