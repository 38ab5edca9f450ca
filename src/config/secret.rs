//! Secrets: named in the configuration by reference, read once, never printed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::{Table, Value};
use zeroize::Zeroizing;

use super::environment::Environment;
use super::files::{Disk, Files};
use super::scope::Scope;

/// How long a secret may be, in bytes: far more than any token, far less than a file named by mistake.
pub(super) const MAX_SECRET_BYTES: usize = 4096;

const NOT_A_VALUE: &str = "allowed: { value = \"…\" }, or { kept = \"…\" } for the one that is there";
const NOT_A_REFERENCE: &str =
    "allowed: { file = \"…\" } or { env = \"…\" }; the secret itself must not stand in the configuration";

/// Secret bytes that are erased when the last user drops them. Clones share them.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Takes the bytes as they are.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// Returns the bytes, for the one computation that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Takes what a file or variable holds, without the newline that editors put at the end.
    ///
    /// # Errors
    /// The problem: nothing is left, or more than [`MAX_SECRET_BYTES`].
    pub(super) fn from_text(mut text: Zeroizing<Vec<u8>>) -> Result<Self, String> {
        let kept = text.strip_suffix(b"\r\n").or_else(|| text.strip_suffix(b"\n")).unwrap_or(&text).len();
        text.truncate(kept);
        match text.len() {
            0 => Err("the secret is empty".to_owned()),
            1..=MAX_SECRET_BYTES => Ok(Self(Arc::new(text))),
            _ => Err(format!("the secret is longer than {MAX_SECRET_BYTES} bytes")),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// A secret that is read again while the node runs, because somebody else changes it.
#[derive(Debug, Clone)]
pub struct SecretRef(Source);

#[derive(Debug, Clone)]
enum Source {
    /// Read each time.
    File(PathBuf),
    /// From the environment, which does not change while a process lives.
    Fixed(Secret),
}

impl SecretRef {
    /// Refers to a file of this machine.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }

    /// Holds a secret that never changes.
    pub fn fixed(secret: Secret) -> Self {
        Self(Source::Fixed(secret))
    }

    /// Reads the secret as it is now. It may block for a moment.
    ///
    /// # Errors
    /// The problem, as when the configuration is read: the file is missing, open to others, empty or too long.
    pub fn read(&self) -> Result<Secret, String> {
        match &self.0 {
            Source::File(path) => Disk.read_secret(path),
            Source::Fixed(secret) => Ok(secret.clone()),
        }
    }
}

/// What the references of one file are looked up in.
pub(super) struct References<'a> {
    /// The directory that relative paths start from.
    pub(super) dir: &'a Path,
    pub(super) env: &'a Environment,
    pub(super) files: &'a dyn Files,
    /// For a tenant of the store, whose secrets are values: nothing that it says is looked up anywhere.
    pub(super) from_store: Option<FromStore>,
}

/// What holds for a tenant of the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct FromStore {
    pub(super) allow_private_hosts: bool,
}

impl References<'_> {
    /// Reads a list of references; entries with a fault are left out.
    pub(super) fn list(&self, scope: &Scope<'_>, option: &str, given: Option<Value>) -> Vec<Secret> {
        let entries = match given {
            None => return Vec::new(),
            Some(Value::Array(entries)) => entries,
            Some(_) => {
                scope.fault(option, format!("is not a list of references; {}", self.allowed()));
                return Vec::new();
            }
        };
        let read = |(index, entry): (usize, Value)| self.read(scope, &format!("{option}[{index}]"), &entry);
        entries.into_iter().enumerate().filter_map(read).collect()
    }

    /// Reads named references; entries with a fault are left out. Names have 1 to `max_name` characters.
    pub(super) fn map(
        &self,
        scope: &Scope<'_>,
        option: &str,
        given: Option<Value>,
        max_name: usize,
    ) -> BTreeMap<String, Secret> {
        let entries = match given {
            None => return BTreeMap::new(),
            Some(Value::Table(entries)) => entries,
            Some(_) => {
                scope.fault(option, format!("is not a table of references; {}", self.allowed()));
                return BTreeMap::new();
            }
        };
        let mut secrets = BTreeMap::new();
        for (index, (name, entry)) in entries.into_iter().enumerate() {
            if !is_key_name(&name, max_name) {
                let problem = format!(
                    "entry {} has a wrong name; allowed: 1 to {max_name} characters of A-Z, a-z, 0-9, '_' and '-'",
                    index + 1
                );
                scope.fault(option, problem);
                continue;
            }
            if let Some(secret) = self.read(scope, &format!("{option}.{name}"), &entry) {
                secrets.insert(name, secret);
            }
        }
        secrets
    }

    /// Whether what a tenant names must be of the internet.
    pub(super) fn public_only(&self) -> bool {
        self.from_store.is_some_and(|rules| !rules.allow_private_hosts)
    }

    /// Whether a table can only be meant as a reference.
    pub(super) fn is_reference(table: &Table) -> bool {
        table.len() == 1 && ["file", "env"].iter().any(|kind| table.get(*kind).is_some_and(Value::is_str))
    }

    pub(super) fn read(&self, scope: &Scope<'_>, option: &str, entry: &Value) -> Option<Secret> {
        let secret = self.look_up(entry);
        if let Err(problem) = &secret {
            scope.fault(option, problem);
        }
        secret.ok()
    }

    /// Reads one reference to a secret that others make and change; it can be read now.
    pub(super) fn given(&self, scope: &Scope<'_>, option: &str, entry: &Value) -> Option<SecretRef> {
        let checked = self.place(entry).and_then(|place| match place {
            Place::File(path) => self.files.read_given_secret(&path).map(|_| SecretRef(Source::File(path))),
            Place::Variable(name) => self.variable(name).map(|secret| SecretRef(Source::Fixed(secret))),
            Place::Here(text) => value(text).map(|secret| SecretRef(Source::Fixed(secret))),
        });
        if let Err(problem) = &checked {
            scope.fault(option, problem);
        }
        checked.ok()
    }

    fn look_up(&self, entry: &Value) -> Result<Secret, String> {
        match self.place(entry)? {
            Place::File(path) => self.files.read_secret(&path),
            Place::Variable(name) => self.variable(name),
            Place::Here(text) => value(text),
        }
    }

    fn allowed(&self) -> &'static str {
        if self.from_store.is_some() { NOT_A_VALUE } else { NOT_A_REFERENCE }
    }

    fn place<'e>(&self, entry: &'e Value) -> Result<Place<'e>, String> {
        let reference = entry.as_table().filter(|table| table.len() == 1);
        let what = if self.from_store.is_some() { "is no secret" } else { "is not a reference" };
        let not_one = || format!("{what}; {}", self.allowed());
        let (kind, target) = reference.and_then(|table| table.iter().next()).ok_or_else(not_one)?;
        if self.from_store.is_some() {
            return target.as_str().filter(|_| kind == "value").map(Place::Here).ok_or_else(not_one);
        }
        match (kind.as_str(), target.as_str()) {
            ("file", Some(path)) if !path.is_empty() => Ok(Place::File(self.dir.join(path))),
            ("env", Some(name)) if is_variable_name(name) => Ok(Place::Variable(name)),
            ("env", Some(_)) => Err("env must name a variable; allowed: A-Z, 0-9 and '_'".to_owned()),
            _ => Err(not_one()),
        }
    }

    fn variable(&self, name: &str) -> Result<Secret, String> {
        let text = self.env.text(name)?;
        let secret = Secret::from_text(Zeroizing::new(text.as_bytes().to_vec()));
        secret.map_err(|problem| format!("{problem}, in the environment variable {name}"))
    }
}

/// Where a secret is.
enum Place<'e> {
    File(PathBuf),
    Variable(&'e str),
    Here(&'e str),
}

fn value(text: &str) -> Result<Secret, String> {
    Secret::from_text(Zeroizing::new(text.as_bytes().to_vec()))
}

/// Tells whether a text can only be a variable's name; anything else might be the secret itself and is not shown.
fn is_variable_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_uppercase() || first == '_')
        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
}

fn is_key_name(name: &str, max: usize) -> bool {
    (1..=max).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}
