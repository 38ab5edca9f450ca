//! Exports: archives that the tools of the system open, through the command and through the API.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use callseal::domain::ids::{RecordingId, TenantId};
use callseal::simulate::speech::DEMO_CALLER;
use callseal::simulate::{Track, TwilioCall};
use hyper::Method;
use serde_json::{Value, json};

use super::{Asker, OTHER, audited, path, serve};
use crate::support::{Home, Server, Setup, TENANT, eventually, files_below};

/// An id that no recording has.
const UNKNOWN: &str = "0192f0c1a2b37c4d8e5f60718293a4b5";

async fn record(server: &Server, number: u8) -> String {
    let plan = server.plan(&format!("{TENANT}/reception"), number, Track::whole(&DEMO_CALLER[..24_000]));
    TwilioCall::connect(plan, &server.tls()).await.unwrap().run(|_| ()).await.unwrap();
    server.stored(usize::from(number)).await
}

/// Runs a program of the system, which must succeed and have nothing to say.
fn run(dir: &Path, program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).current_dir(dir).output().unwrap();
    assert!(done.status.success() && done.stderr.is_empty(), "{program} {args:?}: {done:?}");
}

/// Unpacks an archive and checks its sums; answers its manifest.
fn unpack(archive: &Path, name: &str) -> (PathBuf, Value) {
    let dir = archive.with_file_name(name);
    fs::create_dir(&dir).unwrap();
    run(&dir, "tar", &["xf", &archive.display().to_string()]);
    run(&dir, "sha256sum", &["--strict", "-c", "SHA256SUMS"]);
    let manifest = serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap();
    (dir, manifest)
}

/// Returns the WAV file that `callseal open` makes.
fn opened(home: &Home, recording: &str) -> Vec<u8> {
    let out = home.path().join(format!("{recording}.opened.wav"));
    let name = out.display().to_string();
    home.run_ok(&["open", "--tenant", TENANT, "--recording", recording, "--out", &name]);
    fs::read(out).unwrap()
}

/// Changes one bit of the stored audio of a recording, once it is one object.
async fn damage(home: &Home, recording: &str) {
    let look = || {
        let mut files = files_below(&home.data().join("store/r")).into_iter();
        files.find(|(file, _)| file.ends_with("final.cmr") && file.display().to_string().contains(recording))
    };
    let (file, mut content) = eventually("the final object", look).await;
    content[300] ^= 1;
    fs::write(file, content).unwrap();
}

/// Returns the audio of a WAV file of 16 bits and two channels.
fn samples(wav: &[u8]) -> &[u8] {
    assert_eq!((&wav[..4], &wav[8..16], &wav[36..40]), (&b"RIFF"[..], &b"WAVEfmt "[..], &b"data"[..]));
    &wav[44..]
}

fn export(home: &Home, archive: &str, more: &[&str]) -> crate::support::Ran {
    let out = home.path().join(archive).display().to_string();
    let target = ["export", "--tenant", TENANT, "--out", &out, "--actor", "counsel", "--reason", "a lawsuit"];
    home.run(&[&target[..], more].concat())
}

#[tokio::test]
async fn recordings_are_exported_as_wav_and_a_broken_one_is_named() {
    let (home, mut server, _) = serve(&["operator"]);
    server.allow("recording is not exported: it is damaged");
    let mut recordings = Vec::new();
    for number in 1..=4 {
        recordings.push(record(&server, number).await);
    }
    let broken = recordings[1].clone();
    damage(&home, &broken).await;
    let ran = export(&home, "all.tar", &["--all"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("1 recordings are not in the archive"), "{ran:?}");
    let (dir, manifest) = unpack(&home.path().join("all.tar"), "all");
    assert_eq!((&manifest["exported"], &manifest["left_out"]), (&3.into(), &1.into()), "{manifest}");
    for (listed, recording) in manifest["recordings"].as_array().unwrap().iter().zip(&recordings) {
        assert_eq!(listed["recording"], recording.as_str());
        if *recording == broken {
            assert_eq!((&listed["exported"], &listed["error"]), (&false.into(), &"damaged".into()));
            assert!(!dir.join(format!("recordings/{recording}.wav")).exists(), "verified before bytes leave");
            continue;
        }
        let file = dir.join(listed["files"][0]["name"].as_str().unwrap());
        let wav = fs::read(&file).unwrap();
        assert_eq!(samples(&wav), samples(&opened(&home, recording)));
        assert_eq!(samples(&wav).len(), 4 * 24_000);
        assert_eq!(
            (&listed["about"]["seconds"], &listed["about"]["call"]["route"]),
            (&json!(3.0), &"reception".into())
        );
        if Command::new("ffprobe").arg("-version").output().is_ok_and(|done| done.status.success()) {
            run(&dir, "ffprobe", &["-v", "error", &file.display().to_string()]);
        }
    }
    let audited_first = audited(&home, "export");
    assert_eq!(audited_first.len(), 3, "one that does not leave is not said to have left");
    assert_eq!(
        (&audited_first[0]["actor"], &audited_first[0]["reason"]),
        (&"counsel".into(), &"a lawsuit".into())
    );
    // An existing file is never written over, nor removed.
    let before = fs::read(home.path().join("all.tar")).unwrap();
    assert_eq!(export(&home, "all.tar", &["--all"]).code, Some(1));
    assert_eq!(fs::read(home.path().join("all.tar")).unwrap(), before);
    assert_eq!(export(&home, "none.tar", &[]).code, Some(1), "nothing is not everything");
}

#[tokio::test]
async fn the_api_makes_archives_of_what_is_asked_for() {
    let (home, server, askers) = serve(&["operator"]);
    let operator = &askers[0];
    let recordings = [record(&server, 1).await, record(&server, 2).await, record(&server, 3).await];
    let body = json!({"recordings": [recordings[2], recordings[0], UNKNOWN, recordings[0]]});
    let answer = archive(&server, operator, &body).await;
    assert_eq!(answer.1, "application/x-tar");
    fs::write(home.path().join("api.tar"), &answer.2).unwrap();
    let (api, manifest) = unpack(&home.path().join("api.tar"), "api");
    assert_eq!((&manifest["exported"], &manifest["left_out"]), (&2.into(), &1.into()), "{manifest}");
    assert_eq!(manifest["recordings"][0]["error"], "not_found");
    for recording in [&recordings[0], &recordings[2]] {
        let name = format!("recordings/{recording}.wav");
        assert_eq!(samples(&fs::read(api.join(&name)).unwrap()), samples(&opened(&home, recording)));
    }
    let call = manifest["recordings"][1]["about"]["call"]["call"].as_str().unwrap();
    for body in [json!({"call": call}), json!({"from": "2020-01-01T00:00:00Z", "to": "2020-01-02T00:00:00Z"})]
    {
        let (status, _, bytes) = archive(&server, operator, &body).await;
        assert_eq!(status, 200, "{body}");
        let name = format!("by-{}", bytes.len());
        fs::write(home.path().join("by.tar"), &bytes).unwrap();
        let (_, manifest) = unpack(&home.path().join("by.tar"), &name);
        let found = manifest["recordings"].as_array().unwrap();
        assert_eq!(found.len(), usize::from(body.get("call").is_some()), "{manifest}");
    }
    assert_eq!(audited(&home, "export").len(), 2 + 1);
    assert_eq!(audited(&home, "export-recordings").len(), 3);
}

#[tokio::test]
async fn what_cannot_be_exported_is_refused_by_its_name() {
    let (_home, mut server, askers) = serve(&["operator", "player"]);
    let [operator, player] = &askers[..] else { panic!("two askers") };
    let customer = Customer::new();
    let (wrap, private) = (customer.json("theirs.wrap"), customer.json("theirs.open"));
    let mut renamed = wrap.clone();
    renamed["kek"] = format!("xwing/{}", "0".repeat(64)).into();
    for (body, field) in [
        (json!({}), "recordings"),
        (json!({"recordings": ["x"]}), "recordings[0]"),
        (json!({"recordings": [UNKNOWN], "call": "CA1"}), "recordings"),
        (json!({"call": "CA1", "party": "+4930123456"}), "party"),
        (json!({"party": "030"}), "party"),
        (json!({"from": "now"}), "from"),
        (json!({"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}), "to"),
        (json!({"all": true}), "all"),
        (json!({"recordings": [UNKNOWN], "format": "mp3"}), "format"),
        (json!({"recordings": [UNKNOWN], "recipient": wrap}), "recipient"),
        (json!({"recordings": [UNKNOWN], "format": "wav", "recipient": wrap}), "recipient"),
        (json!({"recordings": [UNKNOWN], "format": "sealed", "recipient": "xwing/00"}), "recipient"),
        (json!({"recordings": [UNKNOWN], "format": "sealed", "recipient": renamed}), "recipient"),
        (json!({"recordings": [UNKNOWN], "format": "sealed", "recipient": private}), "private key"),
    ] {
        let answer = operator.ask(Method::POST, &path("exports"), Some("a test"), Some(body.clone())).await;
        let named = format!("{}: {}", answer.body["field"], answer.body["detail"]);
        assert!(answer.status == 400 && named.contains(field), "{body}: {answer:?}");
        for file in [&wrap, &private] {
            assert!(!named.contains(file["key"].as_str().unwrap()), "{named}");
        }
    }
    server.allow("admin API refuses an operation");
    assert_eq!(player.post(&path("exports"), json!({"call": "CA1"})).await.status, 403);
}

#[tokio::test]
async fn a2_an_export_without_a_reason_is_refused() {
    let (home, mut server, askers) = serve(&["operator", "admin"]);
    let recording = record(&server, 1).await;
    for asker in &askers {
        let answer = asker.post(&path("exports"), json!({"recordings": [recording]})).await;
        assert_eq!((answer.status, &answer.body["field"]), (400, &"x-callseal-reason".into()), "{answer:?}");
    }
    let out = home.path().join("x.tar").display().to_string();
    let export = ["export", "--tenant", TENANT, "--all", "--out", &out, "--actor", "counsel"];
    for reason in [&[][..], &["--reason", ""]] {
        assert_eq!(home.run(&[&export[..], reason].concat()).code, Some(2), "{reason:?}");
    }
    assert!(!Path::new(&out).exists() && audited(&home, "export").is_empty());
    server.stop().await;
}

fn sorted(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = files_below(dir);
    files.sort();
    files
}

/// Somebody who gets an export: a directory with a key pair in it, and nothing of any node.
struct Customer {
    dir: tempfile::TempDir,
}

impl Customer {
    fn new() -> Self {
        let customer = Self { dir: tempfile::tempdir().unwrap() };
        let made = customer.run(&[
            "keys",
            "recipient",
            "init",
            "--open-file",
            "theirs.open",
            "--wrap-file",
            "theirs.wrap",
        ]);
        assert_eq!(made.code, Some(0), "{made:?}");
        customer
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// Runs the program without a configuration, and without anything in its environment.
    fn run(&self, args: &[&str]) -> crate::support::Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_callseal"));
        let done = command.args(args).current_dir(self.dir.path()).env_clear().output().unwrap();
        crate::support::Ran {
            code: done.status.code(),
            out: String::from_utf8(done.stdout).unwrap(),
            err: String::from_utf8(done.stderr).unwrap(),
        }
    }

    /// Opens the caller's track from the directory `sealed` with an open file; answers the samples, or what was said.
    fn open(&self, recording: &str, open_file: &Path) -> Result<Vec<u8>, String> {
        let open_file = open_file.display().to_string();
        let source = ["open", "--export", "sealed", "--open-file", &open_file, "--recording", recording];
        let ran =
            self.run(&[&source[..], &["--out", "a.wav", "--track", "caller", "--format", "ulaw"]].concat());
        let wav = fs::read(self.path("a.wav"));
        if ran.code != Some(0) {
            assert!(wav.is_err(), "nothing is left of what does not open");
            return Err(ran.err);
        }
        fs::remove_file(self.path("a.wav")).unwrap();
        let wav = wav.unwrap();
        let at = wav.windows(4).position(|name| name == b"data").unwrap();
        Ok(wav[at + 8..].to_vec())
    }
}

#[tokio::test]
async fn a3_a_sealed_export_opens_with_the_customers_private_key_alone() {
    let (home, mut server, askers) = serve(&["operator"]);
    let recording = record(&server, 1).await;
    let (customer, stranger) = (Customer::new(), Customer::new());
    let wrap = customer.json("theirs.wrap");
    let body = json!({"recordings": [recording], "format": "sealed", "recipient": wrap});
    let (status, _, bytes) = archive(&server, &askers[0], &body).await;
    assert_eq!(status, 200);
    let kek = wrap["kek"].as_str().unwrap();
    let wanted = format!("format=sealed kek={kek}");
    for action in ["export-recordings", "export"] {
        let record = audited(&home, action).remove(0);
        assert!(record["detail"].as_str().unwrap().contains(&wanted), "{record}");
        assert_eq!(record["reason"], "a lawsuit");
    }
    let sender = wrap["sender"].as_str().unwrap();
    assert!(server.log().iter().all(|line| !line.text.contains(sender)), "not logged");
    // Nothing of the node is left.
    server.stop().await;
    drop((server, home));

    fs::write(customer.path("api.tar"), &bytes).unwrap();
    let (dir, manifest) = unpack(&customer.path("api.tar"), "sealed");
    assert_eq!((&manifest["kek"], &manifest["exported"]), (&wrap["kek"], &1.into()), "{manifest}");
    let files = sorted(&dir);
    let own = customer.path("theirs.open");
    assert!(customer.open(&recording, &own).unwrap() == DEMO_CALLER[..24_000], "sample by sample");
    let source = ["--export", "sealed", "--open-file", "theirs.open", "--recording", &recording];
    let verified = customer.run(&[&["verify", "--json"][..], &source].concat());
    assert!(verified.out.contains(r#""grade":"authentic""#), "{verified:?}");
    assert!(sorted(&dir) == files, "nothing is written into it");

    let refused = customer.open(&recording, &stranger.path("theirs.open")).unwrap_err();
    assert!(refused.contains("is under a key-encryption key that is not this tenant's"), "{refused}");
    let refused = customer.open(&recording, &customer.path("theirs.wrap")).unwrap_err();
    assert!(refused.contains("is a wrap file; allowed here: an open file"), "{refused}");
    let envelope = files.iter().find(|(file, _)| file.starts_with(dir.join("k"))).unwrap();
    let listed = manifest["recordings"][0]["files"].as_array().unwrap();
    assert!(listed.iter().any(|file| dir.join(file["name"].as_str().unwrap()) == envelope.0), "{manifest}");
    let whole: Value = serde_json::from_slice(&envelope.1).unwrap();
    assert_eq!(whole["wraps"].as_array().unwrap().len(), 1, "nobody else's: {whole}");
    let blob = base64_simd::STANDARD.decode_to_vec(whole["wraps"][0]["blob"].as_str().unwrap()).unwrap();
    for at in [0, 1, blob.len() / 2, blob.len() - 1] {
        let (mut changed, mut bytes) = (whole.clone(), blob.clone());
        bytes[at] ^= 1;
        changed["wraps"][0]["blob"] = base64_simd::STANDARD.encode_to_string(bytes).into();
        fs::write(&envelope.0, changed.to_string()).unwrap();
        let refused = customer.open(&recording, &own).unwrap_err();
        assert!(refused.contains("key envelope does not open"), "byte {at}: {refused}");
    }
    // Nor does it help to say that it was for somebody else.
    let mut renamed = whole.clone();
    renamed["wraps"][0]["kek"] = stranger.json("theirs.wrap")["kek"].clone();
    fs::write(&envelope.0, renamed.to_string()).unwrap();
    for open_file in [own, stranger.path("theirs.open")] {
        assert!(customer.open(&recording, &open_file).is_err());
    }
}

#[tokio::test]
async fn the_command_seals_for_a_wrap_file() {
    let (home, server, _) = serve(&["operator"]);
    let recording = record(&server, 1).await;
    let customer = Customer::new();
    let [wrap, open] = ["theirs.wrap", "theirs.open"].map(|name| customer.path(name).display().to_string());
    for (more, problem) in [
        (&["--all", "--recipient", &wrap][..], "--recipient: allowed with --format sealed only"),
        (
            &["--all", "--format", "sealed", "--recipient", &open],
            "is an open file; allowed here: a wrap file",
        ),
    ] {
        let refused = export(&home, "x.tar", more);
        assert!(refused.code == Some(1) && refused.err.contains(problem), "{refused:?}");
    }
    let ran = export(&home, "sealed.tar", &["--all", "--format", "sealed", "--recipient", &wrap]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    fs::copy(home.path().join("sealed.tar"), customer.path("sealed.tar")).unwrap();
    unpack(&customer.path("sealed.tar"), "sealed");
    let opened = customer.open(&recording, Path::new(&open)).unwrap();
    assert!(opened == home.open_ulaw(TENANT, &recording, "caller"));
    let mixed =
        customer.run(&["verify", "--tenant", TENANT, "--export", "sealed", "--recording", &recording]);
    assert_eq!(mixed.code, Some(2), "{mixed:?}");
}

async fn archive(server: &Server, asker: &Asker, body: &Value) -> (u16, String, Vec<u8>) {
    let bearer = format!("Bearer {}", asker.token);
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-callseal-reason", "a lawsuit"),
        ("content-type", "application/json"),
    ];
    let client = server.admin();
    let answer =
        client.request(Method::POST, &path("exports"), &headers, body.to_string().into()).await.unwrap();
    let kind = answer.headers["content-type"].to_str().unwrap().to_owned();
    (answer.status.as_u16(), kind, answer.body.to_vec())
}

#[tokio::test]
async fn a_sealed_export_opens_with_the_key_of_whoever_gets_it_and_with_no_other() {
    let (home, server, askers) = serve(&["operator"]);
    let recording = record(&server, 1).await;
    // Whoever gets it has a keyring and a store of their own, and nothing of the node's.
    let customer = Setup::new().write();
    let ring = customer.data().join("keyring.json").display().to_string();
    let stranger = Setup::new().tenant(|tenant| tenant.id = OTHER.to_owned()).write();
    let foreign = stranger.data().join("keyring.json").display().to_string();
    let refused = export(&home, "x.tar", &["--all", "--format", "sealed", "--keyring", &foreign]);
    assert!(refused.code == Some(1) && refused.err.contains("has no key for tenant"), "{refused:?}");
    assert!(!home.path().join("x.tar").exists());

    let more = ["--recording", &recording, "--format", "sealed", "--keyring", &ring];
    let ran = export(&home, "sealed.tar", &more);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let (dir, manifest) = unpack(&home.path().join("sealed.tar"), "sealed");
    assert_eq!(manifest["recordings"][0]["exported"], true, "{manifest}");
    assert!(manifest["recordings"][0]["about"].get("call").is_none(), "nothing that is sealed: {manifest}");
    fs::create_dir_all(customer.data().join("store")).unwrap();
    for folder in ["r", "k"] {
        run(&dir, "cp", &["-r", folder, &customer.data().join("store").display().to_string()]);
    }
    assert_eq!(
        customer.open_ulaw(TENANT, &recording, "caller"),
        home.open_ulaw(TENANT, &recording, "caller"),
        "it opens far from its node"
    );
    assert_eq!(customer.verify(TENANT, &recording)["grade"], "authentic");

    // As it is stored, it needs the key that it has: not the customer's.
    let answer = archive(&server, &askers[0], &json!({"recordings": [recording], "format": "sealed"})).await;
    assert_eq!(answer.0, 200);
    fs::write(home.path().join("stored.tar"), &answer.2).unwrap();
    let (stored, _) = unpack(&home.path().join("stored.tar"), "stored");
    let (tag, id) = (TENANT.parse::<TenantId>().unwrap().tag(), recording.parse::<RecordingId>().unwrap());
    let envelope = format!("k/{tag}/{id}/0000.json");
    assert_eq!(
        fs::read(stored.join(&envelope)).unwrap(),
        fs::read(home.data().join("store").join(&envelope)).unwrap()
    );
    fs::copy(stored.join(&envelope), customer.data().join("store").join(&envelope)).unwrap();
    let out = customer.path().join("no.wav").display().to_string();
    let ran = customer.run(&["open", "--tenant", TENANT, "--recording", &recording, "--out", &out]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(!Path::new(&out).exists());
    let audio = DEMO_CALLER[..1_000].to_vec();
    for (file, content) in files_below(&dir) {
        assert!(!content.windows(audio.len()).any(|window| window == audio), "audio in {}", file.display());
    }
}
