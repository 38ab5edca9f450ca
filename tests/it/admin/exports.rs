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
    ] {
        let answer = operator.ask(Method::POST, &path("exports"), Some("a test"), Some(body.clone())).await;
        let named = format!("{}: {}", answer.body["field"], answer.body["detail"]);
        assert!(answer.status == 400 && named.contains(field), "{body}: {answer:?}");
    }
    server.allow("admin API refuses an operation");
    assert_eq!(player.post(&path("exports"), json!({"call": "CA1"})).await.status, 403);
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
