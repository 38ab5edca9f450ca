//! Every seed of every fuzz target, with an ordinary compiler: what was found once stays found.

use std::fs;

use crate::reader::repository;

#[expect(unreachable_pub, reason = "the same file is the library of the fuzz targets")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// Calls a target with all of its seeds.
fn run(name: &str, target: fn(&[u8])) {
    let mut seeds = 0;
    for entry in fs::read_dir(repository("fuzz/seeds").join(name)).unwrap() {
        let path = entry.unwrap().path();
        let seed = fs::read(&path).unwrap();
        println!("{}", path.display());
        target(&seed);
        // Cut anywhere, a seed is a hostile input like any other.
        for length in (0..seed.len()).step_by(seed.len() / 16 + 1) {
            target(&seed[..length]);
        }
        seeds += 1;
    }
    assert!(seeds > 0, "{name} has seeds");
}

#[test]
fn provider_message() {
    run("provider_message", targets::provider_message);
}

#[test]
fn segment() {
    run("segment", targets::segment);
}

#[test]
fn manifest() {
    run("manifest", targets::manifest);
}

#[test]
fn range_header() {
    run("range_header", targets::range_header);
}

#[test]
fn grant() {
    run("grant", targets::grant);
}

#[test]
fn form() {
    run("form", targets::form);
}

#[test]
fn vapi_webhook() {
    run("vapi_webhook", targets::vapi_webhook);
}

#[test]
fn config() {
    run("config", targets::config);
}

#[test]
fn every_target_has_seeds_here() {
    for entry in fs::read_dir(repository("fuzz/fuzz_targets")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let here = fs::read_to_string(repository("tests/it/fuzz_seeds.rs")).unwrap();
        assert!(here.contains(&format!("run(\"{name}\", ")), "{name}");
    }
}
