//! What is wrong with a configuration, all of it at once.

use std::cell::RefCell;
use std::fmt;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where: `segments.max_age_ms`, or `tenants/acme.toml: route[0].mode`, or the name of a file.
    pub option: String,
    /// The value given, unless it may be secret, and what is allowed.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.option, self.problem)
    }
}

/// Everything that is wrong with a configuration, at least one thing; displayed as a count and a line for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Returns the faults in the order of the files.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }

    /// Makes the faults of a file that cannot be used at all.
    pub(super) fn one(option: String, problem: String) -> Self {
        Self(vec![Fault { option, problem }])
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} fault{} in the configuration", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for Faults {}

/// Collects faults while the configuration is checked; shared by everything that checks.
#[derive(Default)]
pub(super) struct Collector(RefCell<Vec<Fault>>);

impl Collector {
    /// Keeps one fault.
    pub(super) fn add(&self, option: String, problem: String) {
        self.0.borrow_mut().push(Fault { option, problem });
    }

    /// Says in the faults of `option` that `variable` set it, because the file does not show that value.
    pub(super) fn name_variable(&self, option: &str, variable: &str) {
        for fault in self.0.borrow_mut().iter_mut() {
            let rest = fault.option.strip_prefix(option);
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('[')) {
                fault.option.push_str(&format!(" (set by {variable})"));
            }
        }
    }

    /// Returns `checked` when nothing was wrong.
    pub(super) fn finish<T>(self, checked: Option<T>) -> Result<T, Faults> {
        let faults = self.0.into_inner();
        match checked {
            Some(checked) if faults.is_empty() => Ok(checked),
            Some(_) | None => Err(Faults(faults)),
        }
    }
}
