//! What `docs/PROMISES.md` says is proved: that the tests that it names are there, and the tests that belong to no other part.

mod addresses;
mod headers;
mod outbound;
mod upstream;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The promises that callseal makes true by itself: each needs a test.
const PROVED: [&str; 22] = [
    "A1", "A3", "A4", "A5", "A7", "A8", "A9", "A10", "A11", "A12", "A16", "A17", "A18", "B1", "B2", "B3",
    "B5", "B6", "B7", "B8", "B12", "B13",
];
/// These as well; they have several rows.
const PROVED_AS_WELL: [&str; 2] = ["B15", "B18"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns the names of all tests below `src` and `tests/it`: functions right below an attribute that makes them tests.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    for dir in ["src", "tests/it"] {
        rust_files(&root().join(dir), &mut files);
    }
    files.iter().flat_map(|file| tests_of(&fs::read_to_string(file).unwrap())).collect()
}

fn tests_of(text: &str) -> Vec<String> {
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        let code = line.strip_prefix("async ").unwrap_or(line);
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = code.strip_prefix("fn ") {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            found.extend(is_test.then(|| name.to_owned()));
            is_test = false;
        }
    }
    found
}

/// Returns the cells of the rows of the first table below a heading, without its two head lines.
fn table<'t>(text: &'t str, heading: &str) -> Vec<Vec<&'t str>> {
    let (_, below) = text.split_once(heading).unwrap_or_else(|| panic!("no heading {heading:?}"));
    let rows =
        below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    rows.skip(2).map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Returns what stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_promise_names_tests_that_are_there() {
    let (text, tests) = (fs::read_to_string(root().join("docs/PROMISES.md")).unwrap(), tests());
    assert!(tests.len() > 500, "the tests were found: {}", tests.len());
    let (mut proved, mut complaints) = (BTreeSet::new(), Vec::new());
    for row in table(&text, "## What callseal makes true") {
        let [refs, _promise, _control, named, _rest] = row[..] else { panic!("five cells: {row:?}") };
        proved.extend(refs.split(", ").map(str::to_owned));
        let unknown = quoted(named).filter(|name| !tests.contains(*name));
        complaints.extend(unknown.map(|name| format!("{refs}: there is no test {name}")));
        if quoted(named).next().is_none() {
            complaints.push(format!("{refs}: names no test"));
        }
    }
    let wanted = PROVED.iter().chain(&PROVED_AS_WELL).map(|name| (*name).to_owned()).collect();
    assert_eq!(proved, wanted, "a row for each promise");
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn the_names_of_tests_are_read() {
    let text = "#[test]\n#[cfg(unix)]\nfn one() {}\nfn none() {}\n#[tokio::test(flavor = \"x\")]\n    async fn two() {}\n";
    assert_eq!(tests_of(text), ["one", "two"]);
    let table = table("x\n## T\n\n| a | b |\n|---|---|\n| A1, B1 | `one`, `two` |\n\n| c |", "## T");
    assert_eq!(table, [["A1, B1", "`one`, `two`"]]);
    assert_eq!(quoted(table[0][1]).collect::<Vec<_>>(), ["one", "two"]);
}

/// Every option of node and tenant is in these files, another test says. What one of them is called, it might do.
#[test]
fn a4_b3_no_option_turns_sealing_or_verification_off() {
    let mut options = 0;
    for file in ["config/callseal.toml", "config/tenants/acme-dental.toml"] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        for line in text.lines() {
            let line = line.trim_start_matches(['#', ' ']);
            let Some((option, _)) = line.split_once(" = ") else { continue };
            options += 1;
            for word in [
                "plain",
                "insecure",
                "unsealed",
                "cleartext",
                "skip",
                "verify",
                "no_tls",
                "unsafe",
                "trust_all",
            ] {
                assert!(!option.contains(word), "{file}: {option}");
            }
        }
    }
    assert!(options > 100, "{options} options");
    let home = crate::support::Setup::new().write();
    let good = fs::read_to_string(home.config()).unwrap();
    for wrong in [
        "[seal]\nenabled = false",
        "[encryption]\nmode = \"off\"",
        "[keys]\nprovider = \"none\"",
        "[relay]\nverify = false",
        "[webhook]\ninsecure = true",
        "[vault]\naddress = \"http://vault.example.com:8200\"",
        "[store]\nkind = \"s3\"\nbucket = \"b\"\nregion = \"r\"\nendpoint = \"http://s3.example.com\"",
    ] {
        fs::write(home.config(), format!("{good}{wrong}\n")).unwrap();
        let ran = home.run(&["check-config"]);
        assert_eq!(ran.code, Some(64), "{wrong}: {ran:?}");
    }
}
