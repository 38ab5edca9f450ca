//! Reads the sources and holds them against the rules that the compiler cannot know: which folder may import which,
//! what the pure part may not touch, how long a file may get, and what must never be committed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a source file without its tests.
const MAX_LINES: usize = 500;

/// What the code of the pure part must not contain.
const IMPURE: [&str; 8] =
    ["tokio", "hyper", "aws_", "std::fs", "std::net", "std::env", "::now(", "getrandom"];
/// The one exception: a cipher is pure, whoever wrote it.
const PURE_AFTER_ALL: &str = "aws_lc";

/// Which paths the files below a path must not import. Beginnings of module paths without `crate::`.
const MUST_NOT_IMPORT: [(&str, &[&str]); 18] = [
    ("domain/provider", &["domain::cmr", "domain::session", "domain::playback", "domain::recording"]),
    ("domain/session", &["domain::provider::twilio", "domain::playback"]),
    ("domain/cmr", &["domain::provider", "domain::session", "domain::playback", "domain::recording"]),
    ("domain/playback", &["domain::provider", "domain::session"]),
    (
        "aws",
        &["domain::cmr", "store", "journal", "keys", "ingest", "relay", "upload", "control", "http", "cli"],
    ),
    ("config", &["store", "journal", "keys", "ingest", "relay", "upload", "control", "http", "cli"]),
    ("relay", &["domain::cmr", "domain::session", "store", "journal", "keys", "upload"]),
    ("journal", &["domain::provider", "keys", "ingest", "relay", "upload", "control", "http", "cli"]),
    (
        "store",
        &[
            "domain::provider",
            "domain::session",
            "keys",
            "ingest",
            "relay",
            "journal",
            "upload",
            "http",
            "cli",
        ],
    ),
    ("upload", &["domain::provider", "keys", "ingest", "relay", "control", "http", "cli"]),
    ("keys", &["domain::provider", "domain::session", "domain::playback", "ingest", "relay", "http", "cli"]),
    (
        "notices",
        &[
            "domain::provider",
            "domain::session",
            "domain::playback",
            "ingest",
            "relay",
            "journal",
            "upload",
            "control",
            "http",
            "cli",
        ],
    ),
    ("ingest", &["domain::playback", "control", "http", "cli"]),
    ("control", &["domain::cmr::ObjectReader", "ingest", "relay", "http", "cli"]),
    ("http", &["relay", "cli"]),
    ("admin", &["relay", "ingest", "recorder", "journal", "domain::session", "domain::cmr", "http", "cli"]),
    ("live", &["domain::session", "relay", "ingest", "recorder", "keys", "control", "http", "cli"]),
    ("observe", &["http", "cli"]),
];

/// Exceptions: the folder, and what it may import nevertheless. Random bytes are no key.
const MAY_IMPORT: [(&str, &str); 1] = [("upload", "keys::fill_random")];

/// The folders that see ciphertext only, and the names of what would show them more.
const CIPHERTEXT_ONLY: [&str; 3] = ["store", "journal", "upload"];
const KEY_TYPES: [&str; 4] = ["Dek", "Kek", "SealedBox", "ObjectReader"];

/// Who puts the server together, and so may import `http`.
const ASSEMBLY: [&str; 6] = ["main.rs", "lib.rs", "server.rs", "serve.rs", "server/", "cli/"];

/// One file below `src`.
struct Source {
    /// Its path below `src`, with slashes.
    path: String,
    /// All of it.
    text: String,
    /// Its code without tests and without comment lines; empty for a file of tests.
    code: String,
}

impl Source {
    /// The modules that lead to it: `domain/cmr/mod.rs` and `domain/cmr.rs` are both `domain::cmr`.
    fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("mod").trim_end_matches('/');
        path.split('/').filter(|name| !matches!(*name, "lib" | "main" | "")).map(str::to_owned).collect()
    }

    fn is_below(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(['/', '.']))
    }

    /// Every path of this crate that the code names, from its root, such as `domain::cmr::Dek`.
    fn imports(&self) -> Vec<String> {
        let module = self.module();
        let mut found = Vec::new();
        for (at, _) in self.code.match_indices("crate::") {
            if !self.code[..at].ends_with(['$', '_']) {
                expand(&[], &self.code[at + "crate::".len()..], &mut found);
            }
        }
        for (at, _) in self.code.match_indices("super::") {
            if self.code[..at].ends_with("super::") {
                continue;
            }
            let mut rest = &self.code[at..];
            let mut here = module.as_slice();
            while let Some(outer) = rest.strip_prefix("super::") {
                (rest, here) = (outer, here.split_last().map_or(here, |(_, outer)| outer));
            }
            expand(here, rest, &mut found);
        }
        found
    }
}

/// Reads the tree of a `use`, or one path, off the front of `text`; `before` are the modules that lead to it.
fn expand(before: &[String], text: &str, found: &mut Vec<String>) {
    let text = text.trim_start();
    if let Some(group) = text.strip_prefix('{') {
        for part in split_group(group) {
            expand(before, part, found);
        }
        return;
    }
    let name_end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(name_end);
    let mut path = before.to_vec();
    if !name.is_empty() && name != "self" {
        path.push(name.to_owned());
    }
    match rest.strip_prefix("::") {
        Some(rest) if !rest.starts_with('<') => expand(&path, rest, found),
        _ => found.push(path.join("::")),
    }
}

/// Splits `a, b::{c, d}} …` into the parts up to its closing bracket.
fn split_group(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Takes out what is compiled for tests only. rustfmt puts the end of an item at the indentation of its start.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let closed = |line: &str| {
            let at_indent = line.len() - line.trim_start().len() == indent;
            let item =
                at_indent && !line.trim_start().starts_with('#') && !line.trim_start().starts_with(')');
            item && line.ends_with([';', '}', ','])
        };
        // An attribute over several lines ends with `)]`, an item with one of the three.
        let _end = lines.find(|line| closed(line));
    }
    kept
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).fold(String::new(), |kept, line| {
        let code = line.split_once(" // ").map_or(line, |(code, _)| code);
        kept + code + "\n"
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let mut paths = Vec::new();
    files_below(&src, &mut paths);
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap();
        let path = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
        let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
        let code = if is_test { String::new() } else { without_comments(&without_tests(&text)) };
        Source { path, text, code }
    };
    paths.iter().map(read).collect()
}

fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// Whether `path` is `prefix` or lies below it.
fn is_import_of(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

#[test]
fn the_pure_part_reaches_for_nothing_outside() {
    let mut complaints = Vec::new();
    let sources = sources();
    let domain: Vec<_> = sources.iter().filter(|source| source.is_below("domain")).collect();
    assert!(domain.len() > 20, "the pure part was found");
    for source in domain {
        let code = source.code.replace(PURE_AFTER_ALL, "");
        let impure = IMPURE.iter().filter(|word| code.contains(**word));
        complaints.extend(impure.map(|word| format!("src/{}: {word}", source.path)));
        let outside = source.imports().into_iter().filter(|path| !is_import_of(path, "domain"));
        complaints.extend(outside.map(|path| format!("src/{}: imports {path}", source.path)));
    }
    assert_none(&complaints);
}

#[test]
fn every_folder_imports_only_what_it_may_know() {
    let mut complaints = Vec::new();
    for source in sources() {
        let mut imports = source.imports();
        let excepted =
            |path: &String| MAY_IMPORT.iter().any(|(folder, may)| source.is_below(folder) && path == may);
        imports.retain(|path| !excepted(path));
        let rules = MUST_NOT_IMPORT.iter().filter(|(folder, _)| source.is_below(folder));
        for forbidden in rules.flat_map(|(_, forbidden)| *forbidden) {
            let found = imports.iter().filter(|path| is_import_of(path, forbidden));
            complaints.extend(found.map(|path| format!("src/{}: must not import {path}", source.path)));
        }
        if CIPHERTEXT_ONLY.iter().any(|folder| source.is_below(folder)) {
            let found = imports.iter().filter(|path| KEY_TYPES.iter().any(|name| path.ends_with(name)));
            complaints
                .extend(found.map(|path| format!("src/{}: sees ciphertext only, not {path}", source.path)));
        }
    }
    assert_none(&complaints);
}

#[test]
fn the_server_is_put_together_in_one_place() {
    let assembles = |source: &Source| {
        source.is_below("http") || ASSEMBLY.iter().any(|place| source.path.starts_with(place))
    };
    let mut complaints = Vec::new();
    for source in sources().iter().filter(|source| !assembles(source)) {
        let found = source.imports().into_iter().filter(|path| is_import_of(path, "http"));
        complaints.extend(found.map(|path| format!("src/{}: must not import {path}", source.path)));
    }
    assert_none(&complaints);
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut complaints = Vec::new();
    for source in sources() {
        if source.code.is_empty() {
            continue; // Tests only.
        }
        if !source.text.starts_with("//! ") {
            complaints.push(format!("src/{}: does not begin with what it is (//!)", source.path));
        }
        let lines = without_tests(&source.text).lines().count();
        if lines > MAX_LINES {
            complaints.push(format!("src/{}: {lines} lines without tests", source.path));
        }
    }
    assert_none(&complaints);
}

/// The files that git knows; `None` outside of a repository.
fn tracked_files() -> Option<Vec<PathBuf>> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().ok()?;
    let names = String::from_utf8(listed.stdout).ok().filter(|_| listed.status.success())?;
    let files = names.split('\0').filter(|name| !name.is_empty()).map(|name| root().join(name));
    Some(files.filter(|path| path.is_file()).collect())
}

#[test]
fn no_private_key_and_no_directory_of_one_machine_is_committed() {
    let Some(files) = tracked_files() else {
        println!("skipped: not a git repository");
        return;
    };
    // In pieces, so that this file does not find itself.
    let private_key = ["PRIVATE KEY", "-----"].concat();
    let homes = ["home", "root", "Users"].map(|name| format!("/{name}/"));
    let mut complaints = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for (number, line) in text.lines().enumerate() {
            if begins_key(line, &private_key) || homes.iter().any(|home| names_directory(line, home)) {
                complaints.push(format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    assert_none(&complaints);
}

/// Whether `line` is the first of a key in PEM: capital letters and spaces may say which kind.
fn begins_key(line: &str, private_key: &str) -> bool {
    let mut labels = line.split("-----BEGIN ").skip(1).filter_map(|label| label.split_once(private_key));
    labels.any(|(kind, _)| kind.chars().all(|c| c.is_ascii_uppercase() || c == ' '))
}

/// Whether `line` names something below the absolute directory `home`, which is not the middle of another path or URL.
fn names_directory(line: &str, home: &str) -> bool {
    let inside_path = |c: char| c.is_ascii_alphanumeric() || "_.~-".contains(c);
    line.match_indices(home).any(|(at, _)| {
        let starts = !line[..at].ends_with(inside_path);
        let goes_on =
            line[at + home.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '.' || c == '_');
        starts && goes_on
    })
}

#[test]
fn the_rules_would_notice() {
    let source = |path: &str, text: &str| Source {
        path: path.to_owned(),
        text: text.to_owned(),
        code: without_comments(&without_tests(text)),
    };
    let tree = source(
        "store/folder/walk.rs",
        "use crate::{keys::{Kek, service}, clock};\nuse super::super::super::http::router;\nfn f() { crate::domain::cmr::sha256(b\"\"); }\n",
    );
    assert_eq!(
        tree.imports(),
        ["keys::Kek", "keys::service", "clock", "domain::cmr::sha256", "http::router"]
    );
    assert_eq!(source("domain/cmr/mod.rs", "use super::ids::TrackId;").imports(), ["domain::ids::TrackId"]);
    let text = "//! x\n// crate::keys\nfn a() {}\n#[cfg(test)]\n#[expect(\n    lint,\n    reason = \"r\"\n)]\nmod tests {\n    use crate::keys;\n}\nfn b() {}\n";
    assert_eq!(without_tests(text), "//! x\n// crate::keys\nfn a() {}\nfn b() {}\n");
    assert!(source("store/mod.rs", text).imports().is_empty());
    assert!(is_import_of("http::router", "http") && !is_import_of("httparse", "http"));
    let (private_key, home) = (["PRIVATE KEY", "-----"].concat(), ["/ho", "me/"].concat());
    assert!(begins_key(&format!("-----BEGIN EC {private_key}"), &private_key));
    assert!(begins_key(&format!("x = \"-----BEGIN {private_key}\\n"), &private_key));
    assert!(!begins_key("-----BEGIN CERTIFICATE-----", &private_key));
    assert!(names_directory(&format!("cd {home}someone/callseal"), &home));
    assert!(!names_directory(&format!("https://example.com{home}page"), &home));
}
