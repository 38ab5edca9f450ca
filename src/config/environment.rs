//! The environment as an argument: overrides of options, and secrets that are kept in variables.

use std::collections::BTreeMap;
use std::ffi::OsString;

use toml::{Table, Value};

use super::faults::Collector;
use super::raw;

/// Variables with this start override an option of the node's file.
const OVERRIDE: &str = "CALLSEAL_";
/// Variables with this start hold secrets that a `{ env = "…" }` may name; they override nothing.
const SECRET: &str = "CALLSEAL_SECRET_";

/// Returns the environment of this process, for [`Config::load`](super::Config::load).
///
/// Nothing outside `config` reads it.
pub fn process_environment() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os()
}

/// The variables that the configuration may use; not printable, because some are secret.
pub(super) struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// Takes all variables whose name is valid UTF-8; no other name can be meant.
    pub(super) fn new<K: Into<OsString>, V: Into<OsString>>(
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let named = variables
            .into_iter()
            .filter_map(|(name, value)| Some((name.into().into_string().ok()?, value.into())));
        Self(named.collect())
    }

    /// Returns the text of a variable.
    ///
    /// # Errors
    /// The problem: the variable is not set, or is not UTF-8.
    pub(super) fn text(&self, name: &str) -> Result<&str, String> {
        let value = self.0.get(name).ok_or_else(|| format!("the environment variable {name} is not set"))?;
        value.to_str().ok_or_else(|| format!("the environment variable {name} is not valid UTF-8"))
    }

    /// Writes the overrides into the node's table; returns each option that was set and the variable that set it.
    ///
    /// `CALLSEAL_SEGMENTS__MAX_AGE_MS` sets `segments.max_age_ms`. Names that are no option are faults.
    pub(super) fn apply(&self, table: &mut Table, faults: &Collector) -> Vec<(String, String)> {
        let sections = raw::node_sections();
        let mut applied = Vec::new();
        for variable in self.0.keys().filter(|name| name.starts_with(OVERRIDE) && !name.starts_with(SECRET)) {
            let Some((section, option)) = option_of(variable, &sections) else {
                faults.add(variable.clone(), unknown_variable());
                continue;
            };
            match self.text(variable) {
                Ok(text) => set(table, section, option, value_of(text, takes_fractions(section, option))),
                Err(problem) => faults.add(variable.clone(), problem),
            }
            let name = if section.is_empty() { option.to_owned() } else { format!("{section}.{option}") };
            applied.push((name, variable.clone()));
        }
        applied
    }
}

fn unknown_variable() -> String {
    format!(
        "names no option of the node's file; allowed: CALLSEAL_<OPTION>, CALLSEAL_<SECTION>__<OPTION>, \
         or {SECRET}<NAME> for a variable that holds a secret"
    )
}

/// Finds the section, empty for the top, and the option that a variable is named after.
fn option_of(
    variable: &str,
    sections: &[(&'static str, Vec<&'static str>)],
) -> Option<(&'static str, &'static str)> {
    let name = variable.strip_prefix(OVERRIDE)?;
    let (section, option) = name.split_once("__").unwrap_or(("", name));
    let (section, options) = sections.iter().find(|(known, _)| known.to_ascii_uppercase() == section)?;
    let option = options.iter().find(|known| known.to_ascii_uppercase() == option)?;
    let is_section = section.is_empty() && sections.iter().any(|(known, _)| known == option);
    (!is_section).then_some((*section, *option))
}

/// Sets the option; a section that is not a table stays as it is, and is a fault when it is read.
fn set(table: &mut Table, section: &str, option: &str, value: Value) {
    if section.is_empty() {
        table.insert(option.to_owned(), value);
        return;
    }
    let inner = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(inner) = inner {
        inner.insert(option.to_owned(), value);
    }
}

/// Whether an option is a number that need not be whole. For all others such a number is a text, as versions and names are.
fn takes_fractions(section: &str, option: &str) -> bool {
    (section, option) == ("traces", "sample_percent")
}

/// Reads a boolean, a whole number, a list or a quoted text as TOML; everything else is the text itself.
fn value_of(text: &str, takes_fractions: bool) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok();
    let parsed = parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    match parsed {
        Some(value @ (Value::Boolean(_) | Value::Integer(_) | Value::Array(_) | Value::String(_))) => value,
        Some(value @ Value::Float(_)) if takes_fractions => value,
        Some(Value::Float(_) | Value::Datetime(_) | Value::Table(_)) | None => Value::String(text.to_owned()),
    }
}
