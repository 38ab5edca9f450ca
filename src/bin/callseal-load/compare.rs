//! Two results beside each other.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::sheet::{FORM, number};

/// Differences below this share are called none: two runs of the same never agree to the last digit.
const NOISE_PERCENT: f64 = 3.0;

/// Reads a saved result.
pub(crate) fn read(file: &Path) -> anyhow::Result<Value> {
    let text = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let result: Value = serde_json::from_slice(&text).with_context(|| format!("read {}", file.display()))?;
    ensure!(
        result.get("form").and_then(Value::as_u64) == Some(FORM) && result.get("figures").is_some(),
        "{} is no result of form {FORM}; allowed: a file that --save has written",
        file.display()
    );
    Ok(result)
}

/// Compares a result with a saved one.
pub(crate) fn with_file(old: &Path, new: &Value) -> anyhow::Result<Vec<String>> {
    let name = old.display().to_string();
    Ok(lines(&name, &read(old).context("--compare")?, new))
}

/// Says what is different, line by line.
pub(crate) fn lines(name: &str, old: &Value, new: &Value) -> Vec<String> {
    let mut lines = vec![format!("compared with {name}:")];
    if text(old, "scenario") != text(new, "scenario") {
        lines.push(format!(
            "  NOT THE SAME SCENARIO: {} before, {} now",
            text(old, "scenario"),
            text(new, "scenario")
        ));
    }
    settings(old, new, &mut lines);
    for figure in list(new, "figures") {
        let name = text(figure, "name");
        let Some(value) = figure.get("value").and_then(Value::as_f64) else { continue };
        let before = list(old, "figures").iter().find(|old| text(old, "name") == name);
        lines.push(match before.and_then(|before| before.get("value")?.as_f64()) {
            Some(before) => change(figure, before, value),
            None => format!("  {name:<34} {} (was not measured)", number(value)),
        });
    }
    for figure in list(old, "figures") {
        if !list(new, "figures").iter().any(|new| text(new, "name") == text(figure, "name")) {
            lines.push(format!("  {:<34} is not measured any more", text(figure, "name")));
        }
    }
    bounds(old, new, &mut lines);
    lines
}

fn change(figure: &Value, before: f64, now: f64) -> String {
    let (name, unit) = (text(figure, "name"), text(figure, "unit"));
    let percent = if before == 0.0 { None } else { Some((now - before) / before.abs() * 100.0) };
    let is_same =
        now.total_cmp(&before).is_eq() || percent.is_some_and(|percent| percent.abs() < NOISE_PERCENT);
    let verdict = match (text(figure, "better"), is_same) {
        (_, true) => "the same",
        ("lower", false) => {
            if now < before {
                "better"
            } else {
                "WORSE"
            }
        }
        ("higher", false) => {
            if now > before {
                "better"
            } else {
                "WORSE"
            }
        }
        _ => "different",
    };
    let by = percent.map(|percent| format!("{percent:+.1} %, ")).unwrap_or_default();
    format!("  {name:<34} {} → {} {unit} ({by}{verdict})", number(before), number(now)).replace("  (", " (")
}

fn settings(old: &Value, new: &Value, lines: &mut Vec<String>) {
    let of = |result: &Value, name: &str| -> String {
        let value = result.get("settings").and_then(|settings| settings.get(name)).and_then(Value::as_str);
        value.unwrap_or("not given").to_owned()
    };
    let names = [old, new].into_iter().filter_map(|result| result.get("settings")?.as_object());
    let mut names: Vec<&String> = names.flat_map(serde_json::Map::keys).collect();
    names.sort();
    names.dedup();
    for name in names {
        let (before, now) = (of(old, name), of(new, name));
        if before != now {
            lines.push(format!("  setting {name}: {before} before, {now} now"));
        }
    }
}

fn bounds(old: &Value, new: &Value, lines: &mut Vec<String>) {
    for bound in list(new, "bounds") {
        let name = text(bound, "name");
        let is_broken = |bound: &Value| bound.get("broken").and_then(Value::as_bool).unwrap_or(true);
        let limit = |bound: &Value| bound.get("at_most").and_then(Value::as_f64).unwrap_or(0.0);
        let before = list(old, "bounds").iter().find(|old| text(old, "name") == name);
        let word = |broken: bool| if broken { "BROKEN" } else { "kept" };
        match before {
            None => lines.push(format!("  bound {name}: new, {}", word(is_broken(bound)))),
            Some(before) => {
                if is_broken(before) != is_broken(bound) {
                    let (was, is) = (word(is_broken(before)), word(is_broken(bound)));
                    lines.push(format!("  bound {name}: {was} before, {is} now"));
                }
                if limit(before).total_cmp(&limit(bound)).is_ne() {
                    let (was, is) = (number(limit(before)), number(limit(bound)));
                    lines.push(format!("  bound {name}: at most {was} before, at most {is} now"));
                }
            }
        }
    }
    for bound in list(old, "bounds") {
        if !list(new, "bounds").iter().any(|new| text(new, "name") == text(bound, "name")) {
            lines.push(format!("  bound {}: not set any more", text(bound, "name")));
        }
    }
}

fn list<'a>(result: &'a Value, name: &str) -> &'a [Value] {
    result.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sheet::tests::invented;

    #[test]
    fn differences_have_a_direction_and_bounds_tell_when_they_change() {
        let mut old = invented();
        old.cost("only_before", 1.0, "");
        old.bound("cpu_ms_per_call_second", Some(0.4));
        old.bound("only_before", Some(2.0));
        let mut new = invented();
        new.figures.clear();
        new.set("calls", &20);
        new.cost("cpu_ms_per_call_second", 0.4, "ms");
        new.figure("messages_per_sec", 900.0, "", crate::sheet::Better::Higher);
        new.cost("only_now", 3.0, "");
        new.bound("cpu_ms_per_call_second", Some(0.45));
        new.bound("only_now", Some(1.0));
        let found = lines("old.json", &old.json(), &new.json()).join("\n");
        for part in [
            "setting calls: 10 before, 20 now",
            "0.500 → 0.400 ms (-20.0 %, better)",
            "1000 → 900 (-10.0 %, WORSE)",
            "only_now",
            "(was not measured)",
            "only_before                        is not measured any more",
            "bound cpu_ms_per_call_second: BROKEN before, kept now",
            "bound cpu_ms_per_call_second: at most 0.400 before, at most 0.450 now",
            "bound only_now: new, BROKEN",
            "bound only_before: not set any more",
        ] {
            assert!(found.contains(part), "{part} in\n{found}");
        }
        assert!(!found.contains("NOT THE SAME"));
    }

    #[test]
    fn what_is_no_result_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("old.json");
        for text in ["", "[]", "{}", r#"{"form": 2, "figures": []}"#, r#"{"form": 1}"#] {
            std::fs::write(&file, text).unwrap();
            assert!(read(&file).is_err(), "{text}");
        }
        std::fs::write(&file, invented().json().to_string()).unwrap();
        assert!(read(&file).is_ok());
    }
}
