//! Reads one table of options and reports what is wrong with it under its full name.
//!
//! A table is read option by option, so that one bad value does not hide the next. Every reader takes what was given
//! and returns a usable value in any case; a default after a fault only serves to find further faults.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::{Table, Value};

use super::faults::Collector;
use super::raw::RawSection;

/// The default of a number and the range it must be in, all in the unit that the option's name says.
pub(super) struct Bounds {
    default: u64,
    allowed: RangeInclusive<u64>,
}

impl Bounds {
    /// Makes bounds that are used as constants.
    pub(super) const fn new(default: u64, allowed: RangeInclusive<u64>) -> Self {
        Self { default, allowed }
    }
}

/// The words that an option takes.
pub(super) struct Words<T: 'static> {
    /// What nothing given means.
    pub(super) default: T,
    /// What each word means.
    pub(super) allowed: &'static [(&'static str, T)],
    /// Words of the design that this version cannot obey.
    pub(super) later: &'static [&'static str],
}

/// One table and where it stands.
pub(super) struct Scope<'f> {
    /// The file's label and a colon, empty for the node's file.
    file: String,
    /// The table's name, empty at the top.
    path: String,
    /// Whether a text where another kind of value is wanted may stand in a fault. In what a tenant says it may be a secret that
    /// was written in the wrong place.
    may_echo: bool,
    faults: &'f Collector,
}

impl<'f> Scope<'f> {
    /// Opens the top of the node's file.
    pub(super) fn node(faults: &'f Collector) -> Self {
        Self { file: String::new(), path: String::new(), may_echo: true, faults }
    }

    /// Opens the top of a tenant's file.
    pub(super) fn tenant_file(faults: &'f Collector, label: &str) -> Self {
        Self { file: format!("{label}: "), path: String::new(), may_echo: false, faults }
    }

    /// Opens the top of what the store has of a tenant.
    pub(super) fn stored_tenant(faults: &'f Collector) -> Self {
        Self { file: String::new(), path: String::new(), may_echo: false, faults }
    }

    /// Opens the table `name` inside this one and reads it; a missing table is an empty one.
    pub(super) fn section<T: RawSection>(&self, name: &str, table: Option<Table>) -> (Scope<'f>, T) {
        let (file, path) = (self.file.clone(), self.join(name));
        let inner = Self { file, path, may_echo: self.may_echo, faults: self.faults };
        let raw = inner.read(table.unwrap_or_default());
        (inner, raw)
    }

    /// Reads the options of this table; those with a fault are left out.
    pub(super) fn read<T: RawSection>(&self, table: Table) -> T {
        let mut sound = Table::new();
        for (name, value) in table {
            match check_kind::<T>(&name, &value, self.may_echo) {
                Ok(()) => drop(sound.insert(name, value)),
                Err(problem) => self.fault(&printable(&name), problem),
            }
        }
        sound.try_into().unwrap_or_default()
    }

    /// Reports a fault of `option` of this table.
    pub(super) fn fault(&self, option: &str, problem: impl Into<String>) {
        let option = format!("{}{}", self.file, self.join(option));
        self.faults.add(option, problem.into());
    }

    /// Reports a fault of this table as a whole.
    pub(super) fn fault_here(&self, problem: impl Into<String>) {
        self.faults.add(format!("{}{}", self.file, self.path), problem.into());
    }

    /// Checks a number against its bounds.
    pub(super) fn number(&self, option: &str, given: Option<i64>, bounds: &Bounds) -> u64 {
        let Some(given) = given else { return bounds.default };
        match u64::try_from(given) {
            Ok(number) if bounds.allowed.contains(&number) => number,
            Ok(_) | Err(_) => {
                let (min, max) = (bounds.allowed.start(), bounds.allowed.end());
                self.fault(option, format!("{given} is given; allowed: {min} to {max}"));
                bounds.default
            }
        }
    }

    /// Checks a number whose bounds fit into 32 bits.
    pub(super) fn count(&self, option: &str, given: Option<i64>, bounds: &Bounds) -> u32 {
        u32::try_from(self.number(option, given, bounds)).unwrap_or(u32::MAX)
    }

    /// Checks a size or count of things in memory.
    pub(super) fn size(&self, option: &str, given: Option<i64>, bounds: &Bounds) -> usize {
        usize::try_from(self.number(option, given, bounds)).unwrap_or(usize::MAX)
    }

    /// Checks a number of milliseconds.
    pub(super) fn millis(&self, option: &str, given: Option<i64>, bounds: &Bounds) -> Duration {
        Duration::from_millis(self.number(option, given, bounds))
    }

    /// Checks a number of seconds.
    pub(super) fn secs(&self, option: &str, given: Option<i64>, bounds: &Bounds) -> Duration {
        Duration::from_secs(self.number(option, given, bounds))
    }

    /// Checks a number of hours.
    pub(super) fn hours(&self, option: &str, given: Option<i64>, bounds: &Bounds) -> Duration {
        Duration::from_secs(self.number(option, given, bounds) * 3600)
    }

    /// Finds the meaning of a word.
    pub(super) fn word<T: Copy>(&self, option: &str, given: Option<&str>, words: &Words<T>) -> T {
        let Some(given) = given else { return words.default };
        if let Some((_, meaning)) = words.allowed.iter().find(|(word, _)| *word == given) {
            return *meaning;
        }
        let what =
            if words.later.contains(&given) { "not supported by this version" } else { "not a choice" };
        let allowed: Vec<_> = words.allowed.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.fault(option, format!("{given:?} is {what}; allowed: {}", allowed.join(", ")));
        words.default
    }

    /// Takes a path as written; nothing given means `default`.
    pub(super) fn path(
        &self,
        option: &str,
        given: Option<String>,
        default: impl FnOnce() -> PathBuf,
    ) -> PathBuf {
        match given {
            None => default(),
            Some(path) if path.is_empty() || path.contains('\0') => {
                self.fault(option, format!("{path:?} is given; allowed: the path of a file or directory"));
                default()
            }
            Some(path) => PathBuf::from(path),
        }
    }

    /// Parses a text whose error says what is allowed.
    pub(super) fn parse<T>(&self, option: &str, given: &str) -> Option<T>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let parsed = given.parse();
        if let Err(problem) = &parsed {
            self.fault(option, format!("{given:?} is given; {problem}"));
        }
        parsed.ok()
    }

    fn join(&self, option: &str) -> String {
        if self.path.is_empty() { option.to_owned() } else { format!("{}.{option}", self.path) }
    }
}

/// Checks that `T` has an option `name` and that `value` is of its kind.
fn check_kind<T: RawSection>(name: &str, value: &Value, may_echo: bool) -> Result<(), String> {
    if T::LATER.contains(&name) {
        return Err("is not supported by this version; leave it out".to_owned());
    }
    if !T::names().contains(&name) {
        return Err(format!("is not an option; allowed here: {}", T::names().join(", ")));
    }
    let alone = Table::from_iter([(name.to_owned(), value.clone())]);
    alone.try_into::<T>().map(drop).map_err(|error| wrong_kind(value, error.message(), may_echo))
}

/// Says what was given and what is wanted, in the words of TOML instead of those of serde.
fn wrong_kind(value: &Value, message: &str, may_echo: bool) -> String {
    let given = match value {
        Value::Array(_) if !message.starts_with("invalid type: sequence") => {
            "a list with another kind of entry".into()
        }
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
        Value::String(text) if may_echo => format!("the text {text:?}"),
        Value::String(_) => "a text".to_owned(),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => value.to_string(),
    };
    let wanted = match message.rsplit_once("expected ").map(|(_, wanted)| wanted) {
        Some("i64") => "a whole number",
        Some("f64") => "a number",
        Some("a string") => "a text in quotes",
        Some("a boolean") => "true or false",
        Some("a sequence") => "a list",
        Some("a map") => "a table",
        Some(_) | None => "another kind of value",
    };
    format!("{given} is given; allowed: {wanted}")
}

/// Makes a name from a file fit on one line.
fn printable(name: &str) -> String {
    name.escape_debug().to_string()
}
