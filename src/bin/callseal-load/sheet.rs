//! What came out of a run: figures, bounds, failures, and what was seen each second; for people and for machines.
//!
//! Every scenario ends in a sheet, so that all of them are printed, drawn, kept and compared in the same way.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::sampler::{Sample, columns};
use crate::{compare, html};

/// The form of the JSON; another one where a reader of this one would be wrong.
pub(crate) const FORM: u64 = 1;

/// Where the result goes.
#[derive(Args)]
pub(crate) struct Output {
    /// Print the result as JSON instead of a table.
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the result as JSON to this file as well, to compare a later run with.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Write the result as one page of HTML with charts, which needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Compare with the saved result of an earlier run: what is more, what is less, which bounds are kept or broken
    /// now.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
}

/// Which direction is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
    /// It depends.
    Neither,
}

/// One number.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// What a number must not be above.
#[derive(Debug, Serialize)]
pub(crate) struct Bound {
    pub(crate) name: String,
    pub(crate) at_most: f64,
    /// None where it was not measured, which breaks the bound.
    pub(crate) value: Option<f64>,
    pub(crate) broken: bool,
}

/// One way in which calls failed.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) calls: u32,
}

/// A result.
#[derive(Default)]
pub(crate) struct Sheet {
    pub(crate) scenario: String,
    pub(crate) seed: u64,
    /// What was asked for, for people and to tell whether two runs can be compared.
    pub(crate) settings: BTreeMap<&'static str, String>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) bounds: Vec<Bound>,
    pub(crate) failures: Vec<Failure>,
    /// What a reader must know to judge the figures.
    pub(crate) notes: Vec<String>,
    pub(crate) samples: Vec<Sample>,
    /// More of the scenario's own; stands beside the rest in the JSON.
    pub(crate) details: Map<String, Value>,
    /// The scenario's own table, where it has one.
    pub(crate) table: Option<String>,
}

impl Sheet {
    pub(crate) fn new(scenario: &str, seed: u64) -> Self {
        Self { scenario: scenario.to_owned(), seed, ..Self::default() }
    }

    pub(crate) fn set(&mut self, name: &'static str, value: &impl ToString) {
        self.settings.insert(name, value.to_string());
    }

    pub(crate) fn figure(&mut self, name: impl Into<String>, value: f64, unit: &'static str, better: Better) {
        self.figures.push(Figure { name: name.into(), value, unit, better });
    }

    /// Adds a figure of which less is better.
    pub(crate) fn cost(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        self.figure(name, value, unit, Better::Lower);
    }

    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
    }

    /// Holds a figure against a bound, if there is one.
    pub(crate) fn bound(&mut self, name: &str, at_most: Option<f64>) {
        let Some(at_most) = at_most else { return };
        let value = self.value(name);
        let broken = value.is_none_or(|value| value > at_most);
        self.bounds.push(Bound { name: name.to_owned(), at_most, value, broken });
    }

    /// Whether all bounds are kept.
    pub(crate) fn all_went_well(&self) -> bool {
        self.bounds.iter().all(|bound| !bound.broken)
    }

    pub(crate) fn json(&self) -> Value {
        let mut json = self.details.clone();
        let mut put = |name: &str, value: Value| json.insert(name.to_owned(), value);
        put("form", json!(FORM));
        put("scenario", json!(self.scenario));
        put("seed", json!(self.seed));
        put("settings", json!(self.settings));
        put("figures", json!(self.figures));
        put("bounds", json!(self.bounds));
        put("failures", json!(self.failures));
        put("notes", json!(self.notes));
        put("kept", json!(self.all_went_well()));
        put("series", Value::Object(columns(&self.samples)));
        Value::Object(json)
    }

    fn table(&self) -> String {
        if let Some(table) = &self.table {
            return table.clone();
        }
        let mut lines = vec![format!("{}, seed {}", self.scenario, self.seed)];
        lines.extend(self.settings.iter().map(|(name, value)| format!("  {name:<34} {value}")));
        let figures = self.figures.iter();
        lines.extend(figures.map(|figure| {
            format!("{:<36} {:>12} {}", figure.name, number(figure.value), figure.unit).trim_end().to_owned()
        }));
        lines.extend(self.bounds.iter().map(Bound::text));
        lines.extend(self.failures.iter().map(|Failure { what, calls }| format!("failed: {calls} × {what}")));
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines.join("\n")
    }

    /// Prints the result, writes what was asked for, and answers whether all bounds are kept.
    pub(crate) fn finish(&self, output: &Output) -> anyhow::Result<bool> {
        let json = self.json();
        let text = serde_json::to_string_pretty(&json)?;
        let compared = match &output.compare {
            Some(file) => compare::with_file(file, &json)?,
            None => Vec::new(),
        };
        if let Some(file) = &output.save {
            fs::write(file, &text).with_context(|| format!("--save {}", file.display()))?;
        }
        if let Some(file) = &output.html {
            fs::write(file, html::page(self, &compared))
                .with_context(|| format!("--html {}", file.display()))?;
        }
        if output.json {
            print_line(&text)?;
            compared.iter().for_each(|line| tell(line));
        } else {
            print_line(&self.table())?;
            compared.iter().try_for_each(|line| print_line(line))?;
        }
        Ok(self.all_went_well())
    }
}

impl Bound {
    pub(crate) fn text(&self) -> String {
        let value = self.value.map_or_else(|| "not measured".to_owned(), number);
        let word = if self.broken { "BROKEN" } else { "kept" };
        format!("bound {word}: {} is {value}, at most {}", self.name, number(self.at_most))
    }
}

/// Writes a number with as many digits as are worth reading.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || value.fract() == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

/// Prints a line of results. Whoever reads may stop, as `head` does: that is no failure.
///
/// # Errors
/// It cannot be written for another reason, such as a full disk.
pub(crate) fn print_line(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("write the result"),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says how a run goes, or what is wrong with it, if anybody can hear it.
pub(crate) fn tell(text: &str) {
    writeln!(io::stderr(), "{text}").unwrap_or_default();
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn invented() -> Sheet {
        let mut sheet = Sheet::new("steady", 7);
        sheet.set("calls", &10);
        sheet.cost("cpu_ms_per_call_second", 0.5, "ms");
        sheet.figure("messages_per_sec", 1_000.0, "", Better::Higher);
        sheet.failures.push(Failure { what: "the server said <no> & \"why\"".to_owned(), calls: 2 });
        sheet.notes.push("a note".to_owned());
        sheet.samples = (1..=3)
            .map(|at: u32| {
                Sample::invented(at.into(), vec![("open_calls", (at != 2).then_some(f64::from(at)))])
            })
            .collect();
        sheet
    }

    #[test]
    fn a_bound_is_kept_up_to_its_value_and_never_by_what_was_not_measured() {
        let mut sheet = invented();
        sheet.bound("cpu_ms_per_call_second", Some(0.5));
        sheet.bound("messages_per_sec", None);
        assert!(sheet.all_went_well());
        sheet.bound("kib_per_call", Some(100.0));
        assert!(!sheet.all_went_well());
        assert!(sheet.table().contains("bound BROKEN: kib_per_call is not measured"), "{}", sheet.table());
        let mut other = invented();
        other.bound("cpu_ms_per_call_second", Some(0.499));
        assert!(!other.all_went_well());
    }

    #[test]
    fn both_forms_say_the_same() {
        let sheet = invented();
        let table = sheet.table();
        for part in ["steady, seed 7", "calls", "0.500 ms", "2 × the server said", "note: a note"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
        let json = sheet.json();
        assert_eq!(json["figures"][0]["value"], 0.5);
        assert_eq!(json["figures"][1]["better"], "higher");
        assert_eq!(json["series"]["open_calls"], json!([1.0, null, 3.0]));
        assert_eq!(json["series"]["at_secs"], json!([1.0, 2.0, 3.0]));
    }
}
