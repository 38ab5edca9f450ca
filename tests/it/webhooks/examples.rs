//! The examples for receivers, and our own signatures, against vectors that none of callseal's code has made.

use std::path::{Path, PathBuf};
use std::process::Command;

use callseal::domain::notice::sign;
use serde_json::Value;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn vectors() -> PathBuf {
    repository().join("tests/vectors/notices.json")
}

fn cases() -> Vec<Value> {
    let text = std::fs::read_to_string(vectors()).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["cases"].as_array().unwrap().clone()
}

fn unhex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn our_signatures_are_those_of_the_vectors() {
    let mut compared = 0;
    for case in cases().iter().filter(|case| case["made_by"] == "callseal") {
        let secrets: Vec<_> = case["secrets_hex"].as_array().unwrap().iter().map(unhex).collect();
        let body = case["body"].as_str().unwrap().as_bytes();
        let signed = sign(secrets.iter().map(Vec::as_slice), case["timestamp"].as_u64().unwrap(), body);
        assert_eq!(case["headers"]["x-signature-256"], signed.body, "{}", case["name"]);
        assert_eq!(case["headers"]["x-callseal-signature"], signed.timed, "{}", case["name"]);
        compared += 1;
    }
    assert!(compared >= 8, "{compared} compared");
}

/// Runs an example against the vectors; `false` where its language is missing.
fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> bool {
    let name = program.as_ref().display().to_string();
    let command = Command::new(program).args(arguments).arg(vectors()).current_dir(repository()).output();
    let Ok(ran) = command else {
        println!("skipped: no {name}");
        return false;
    };
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{name}: {out}{err}");
    assert_eq!(out.trim(), format!("{} vectors", cases().len()));
    true
}

#[test]
fn the_example_in_python_keeps_to_the_vectors() {
    let python = std::env::var_os("TEST_PYTHON").unwrap_or_else(|| "python3".into());
    assert!(run(python, &["examples/webhooks/verify.py"]), "the tests need python3");
}

#[test]
fn the_example_in_javascript_keeps_to_the_vectors() {
    run("node", &["examples/webhooks/verify.mjs"]);
}

/// Runs the example in TypeScript, which is a module alone, once it is JavaScript.
const CHECK: &str = r#"import { readFileSync } from "node:fs";
import { verify } from "./verify.js";
const { cases } = JSON.parse(readFileSync(process.argv[2], "utf8"));
for (const one of cases) {
  const secrets = one.receiver_secrets_hex.map((hex) => Buffer.from(hex, "hex"));
  const outcome = await verify(secrets, one.headers, Buffer.from(one.body), one.now).then(() => "accepted", String);
  if ((outcome === "accepted") !== one.accepted) throw new Error(`${one.name}: ${outcome}`);
}
console.log(`${cases.length} vectors`);
"#;

#[test]
fn the_example_in_typescript_has_no_fault_and_keeps_to_the_vectors() {
    let Some(compiler) = std::env::var_os("TEST_TSC") else {
        println!("skipped: TEST_TSC names no compiler of TypeScript");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("package.json", r#"{"type": "module"}"#), ("check.js", CHECK)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let options = ["--strict", "--noUncheckedIndexedAccess", "--target", "es2022", "--module", "es2022"];
    let compiled = Command::new("node")
        .arg(compiler)
        .args(options)
        .args(["--lib", "es2022,dom", "examples/webhooks/verify.ts", "--outDir"])
        .arg(dir.path())
        .current_dir(repository())
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stdout));
    assert!(run("node", &[&dir.path().join("check.js").display().to_string()]));
}

#[test]
fn the_example_in_go_keeps_to_the_vectors() {
    run("go", &["run", "examples/webhooks/verify.go"]);
}

#[test]
fn the_vectors_are_what_their_maker_writes() {
    let before = std::fs::read(vectors()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let maker = dir.path().join("make_notices.py");
    std::fs::copy(repository().join("tests/vectors/make_notices.py"), &maker).unwrap();
    let python = std::env::var_os("TEST_PYTHON").unwrap_or_else(|| "python3".into());
    assert!(Command::new(python).arg(&maker).status().unwrap().success());
    assert_eq!(std::fs::read(dir.path().join("notices.json")).unwrap(), before);
}
