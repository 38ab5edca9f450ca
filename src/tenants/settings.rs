//! What a tenant of the store says: the options of a tenant's file, with its secrets in them as values.
//!
//! A secret is given once, as `{ value = "…" }`. Whoever asks for the settings later gets `{ kept = "…" }` in its place, a name
//! that tells nothing of it, and may send that back to keep what is there.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use zeroize::Zeroize;

use crate::config::Fault;
use crate::domain::sign::{encode_hex, hmac_sha256};

/// The option of a secret that is given.
const VALUE: &str = "value";
/// The option of a secret that is there.
const KEPT: &str = "kept";
/// Bytes of the name of a secret: enough that no two of a tenant are the same.
const NAME_BYTES: usize = 12;

/// The options of a tenant but its id and status. Secrets in them are wiped when they are dropped; `Debug` shows nothing.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(Table);

impl Settings {
    /// Takes what was given. Secrets that are kept come from `before`; `key` is the one that names were made with. Answers also
    /// every name of a secret that is not there.
    pub fn given(mut table: Table, before: Option<&Self>, key: &[u8]) -> (Self, Vec<Fault>) {
        let mut known = HashMap::new();
        if let Some(Self(before)) = before {
            for (name, value) in before {
                each(value, name, &mut |_, kind, text| {
                    if kind == VALUE {
                        known.insert(name_of(text, key), text.to_owned());
                    }
                });
            }
        }
        let mut faults = Vec::new();
        for (name, value) in &mut table {
            each_mut(value, name, &mut |path, secret| {
                let Some(Value::String(kept)) = secret.get(KEPT) else { return };
                match known.get(kept) {
                    Some(text) => {
                        *secret = Table::from_iter([(VALUE.to_owned(), Value::String(text.clone()))]);
                    }
                    None => faults.push(Fault {
                        option: format!("{path}.{KEPT}"),
                        problem: "names no secret that is there; allowed: a name as it was shown, or { value = \"…\" }"
                            .to_owned(),
                    }),
                }
            });
        }
        known.values_mut().for_each(Zeroize::zeroize);
        (Self(table), faults)
    }

    /// Returns what may be shown: names in the place of secrets.
    pub fn shown(&self, key: &[u8]) -> Table {
        let mut table = self.0.clone();
        for (name, value) in &mut table {
            each_mut(value, name, &mut |_, secret| {
                if let Some(Value::String(text)) = secret.get_mut(VALUE) {
                    let name = name_of(text, key);
                    text.zeroize();
                    *secret = Table::from_iter([(KEPT.to_owned(), Value::String(name))]);
                }
            });
        }
        table
    }

    /// Returns the options with others beside them, to be checked. Whoever gets it sees to it that it is wiped: [`wipe`].
    pub fn with<'a>(&self, others: impl IntoIterator<Item = (&'a str, Value)>) -> Table {
        let mut table = self.0.clone();
        table.extend(others.into_iter().map(|(name, value)| (name.to_owned(), value)));
        table
    }

    /// Returns the options with other days for recordings.
    #[must_use]
    pub fn with_days(&self, days: u32) -> Self {
        let mut settings = self.clone();
        let retention = settings.0.entry("retention").or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(retention) = retention {
            retention.insert("call_audio_days".to_owned(), Value::Integer(days.into()));
        }
        settings
    }

    /// Returns the options.
    pub fn table(&self) -> &Table {
        &self.0
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Settings(***)")
    }
}

/// Wipes the secrets in some options.
pub fn wipe(table: &mut Table) {
    for (name, value) in table {
        each_mut(value, name, &mut |_, secret| {
            if let Some(Value::String(text)) = secret.get_mut(VALUE) {
                text.zeroize();
            }
        });
    }
}

fn name_of(secret: &str, key: &[u8]) -> String {
    let name = hmac_sha256(key, [b"callseal-kept-v1\n".as_slice(), secret.as_bytes()]);
    encode_hex(name.get(..NAME_BYTES).unwrap_or(&name))
}

/// Whether a table is a secret, whatever it is called: no option has another table of this form.
fn is_secret(table: &Table) -> bool {
    table.len() == 1 && [VALUE, KEPT].iter().any(|kind| table.get(*kind).is_some_and(Value::is_str))
}

/// Shows every secret with its path and kind.
fn each(value: &Value, path: &str, show: &mut impl FnMut(&str, &str, &str)) {
    match value {
        Value::Table(table) if is_secret(table) => {
            if let Some((kind, Value::String(text))) = table.iter().next() {
                show(path, kind, text);
            }
        }
        Value::Table(table) => {
            table.iter().for_each(|(name, value)| each(value, &format!("{path}.{name}"), show));
        }
        Value::Array(entries) => {
            let entries = entries.iter().enumerate();
            entries.for_each(|(index, entry)| each(entry, &format!("{path}[{index}]"), show));
        }
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

/// Lets every secret be changed.
fn each_mut(value: &mut Value, path: &str, change: &mut impl FnMut(&str, &mut Table)) {
    match value {
        Value::Table(table) if is_secret(table) => change(path, table),
        Value::Table(table) => {
            for (name, value) in table {
                each_mut(value, &format!("{path}.{name}"), change);
            }
        }
        Value::Array(entries) => {
            for (index, entry) in entries.iter_mut().enumerate() {
                each_mut(entry, &format!("{path}[{index}]"), change);
            }
        }
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"a key that nobody else has, long enough";

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn a_secret_is_given_once_and_never_shown_again() {
        let given = table(
            "[twilio]\nauth_tokens = [{ value = \"tok-1\" }, { value = \"tok-2\" }]\n\
             [route.upstream.headers]\nvalue = { value = \"head\" }\nkept = { value = \"head\" }\n",
        );
        let (settings, faults) = Settings::given(given.clone(), None, KEY);
        assert_eq!(faults, []);
        let shown = settings.shown(KEY).to_string();
        for secret in ["tok-1", "tok-2", "head\""] {
            assert!(!shown.contains(secret), "{shown}");
        }
        let (again, faults) = Settings::given(settings.shown(KEY), Some(&settings), KEY);
        assert_eq!((again.table(), &faults[..]), (&given, &[][..]), "what was shown can be sent back");
        assert_eq!(format!("{settings:?}"), "Settings(***)");
        assert_ne!(
            settings.shown(KEY),
            settings.shown(b"another key"),
            "names cannot be guessed without the key"
        );
    }

    #[test]
    fn a_name_of_another_tenants_secret_is_worth_nothing() {
        let (other, _) = Settings::given(table("a = { value = \"theirs\" }"), None, KEY);
        let (mine, _) = Settings::given(table("a = { value = \"mine\" }"), None, KEY);
        let (_, faults) = Settings::given(other.shown(KEY), Some(&mine), KEY);
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].option, "a.kept");
        assert_eq!(Settings::given(other.shown(KEY), None, KEY).1.len(), 1);
    }

    #[test]
    fn secrets_are_wiped() {
        let mut settings = table("a = [{ value = \"x\" }]\nb = { value = { value = \"y\" } }\nvalue = \"z\"");
        wipe(&mut settings);
        let left = settings.to_string();
        assert!(!left.contains('x') && !left.contains('y') && left.contains('z'), "{left}");
    }
}
