//! What the store had of tenants when it was looked at last, checked.
//!
//! Nothing that was seen is forgotten or taken back while a process lives: a revision that is missing now, or cannot be read, leaves
//! what was known.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use bytes::Bytes;
use toml::{Table, Value};

use crate::config::{Config, Faults, Origin, Tenant};
use crate::domain::ids::TenantTag;
use crate::domain::time::UnixMillis;
use crate::store::layout;

use super::book::{Book, BookError};
use super::cache;
use super::revision::Revision;
use super::settings::wipe;

/// The tenants of the store as they were seen last.
#[derive(Default)]
pub struct View {
    known: BTreeMap<TenantTag, Known>,
    /// Revisions that were complained about.
    told: BTreeSet<(TenantTag, u32)>,
    /// What was wrong at the last look.
    trouble: Vec<String>,
}

struct Known {
    revision: u32,
    /// The last revision that could be used.
    tenant: Option<Tenant>,
    /// The newest one as it is in the store.
    object: Bytes,
}

impl View {
    /// Looks at what has changed; answers whether anything has.
    ///
    /// # Errors
    /// [`BookError`]: the store cannot be listed. What was known stays.
    pub async fn look(&mut self, book: &Book, config: &Config) -> Result<bool, BookError> {
        let newest = book.list().await?;
        self.trouble.clear();
        let mut has_changed = false;
        for (tag, known) in &self.known {
            if newest.get(tag).is_none_or(|newest| *newest < known.revision)
                && self.told.insert((*tag, u32::MAX))
            {
                tracing::error!(tenant = %tag, revision = known.revision, "newest revision of a tenant is gone; it still holds");
            }
        }
        for (tag, revision) in newest {
            if self.known.get(&tag).is_some_and(|known| known.revision >= revision) {
                continue;
            }
            let sealed = book.sealed(tag, revision).await;
            match sealed.and_then(|object| Ok((book.open(tag, revision, &object)?, object))) {
                Ok((read, object)) => {
                    let tenant = self.checked(config, &read, tag);
                    self.known.insert(tag, Known { revision, tenant, object });
                    has_changed = true;
                }
                Err(error) => {
                    self.trouble.push(format!("tenant {tag}: {}", with_cause(&error)));
                    if self.told.insert((tag, revision)) || !matches!(error, BookError::Unreadable { .. }) {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(tenant = %tag, revision, error, "a tenant cannot be read; what was known holds");
                    }
                }
            }
        }
        Ok(has_changed)
    }

    /// Takes the copy of an earlier process, for as long as the store does not answer.
    ///
    /// # Errors
    /// The copy cannot be read; nothing is known then.
    pub fn recall(&mut self, path: &Path, book: &Book, config: &Config) -> io::Result<()> {
        for (name, object) in cache::read(path)? {
            let Some((tag, revision)) = layout::tenant_revision_of(&name) else { continue };
            match book.open(tag, revision, &object) {
                Ok(read) => {
                    let tenant = self.checked(config, &read, tag);
                    self.known.insert(tag, Known { revision, tenant, object });
                }
                Err(error) => self.trouble.push(format!("tenant {tag}: {}", with_cause(&error))),
            }
        }
        Ok(())
    }

    /// Writes the copy for a later process.
    ///
    /// # Errors
    /// What the system says; the old copy is unchanged.
    pub fn remember(&self, path: &Path) -> io::Result<()> {
        let object = |(tag, known): (&TenantTag, &Known)| {
            (layout::tenant_revision(*tag, known.revision), known.object.clone())
        };
        cache::write(path, self.known.iter().map(object))
    }

    /// Returns what was wrong at the last look, for people.
    pub fn trouble(&self) -> &[String] {
        &self.trouble
    }

    /// Returns those that can be used.
    pub fn tenants(&self) -> Vec<Tenant> {
        self.known.values().filter_map(|known| known.tenant.clone()).collect()
    }

    /// Checks a revision. Of one with faults the status counts all the same, with the settings of the one before.
    fn checked(&mut self, config: &Config, revision: &Revision, tag: TenantTag) -> Option<Tenant> {
        match check(config, revision) {
            Ok(tenant) => Some(tenant),
            Err(faults) => {
                self.trouble.push(format!("tenant {}: {faults}", revision.tenant));
                tracing::error!(tenant = revision.tenant, revision = revision.revision, %faults,
                    "settings of a tenant of the store cannot be used on this node");
                let before = self.known.get(&tag).and_then(|known| known.tenant.clone())?;
                Some(Tenant { origin: origin(revision), status: revision.status, ..before })
            }
        }
    }
}

fn with_cause(error: &BookError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// Checks what a revision says, on this node.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn check(config: &Config, revision: &Revision) -> Result<Tenant, Faults> {
    let (id, status) = (revision.tenant.clone(), revision.status.name().to_owned());
    let table = revision.settings.with([("id", Value::String(id)), ("status", Value::String(status))]);
    Ok(Tenant { origin: origin(revision), ..check_table(config, table)? })
}

/// Checks options, id and status among them, and wipes their secrets.
pub(super) fn check_table(config: &Config, mut table: Table) -> Result<Tenant, Faults> {
    let checked = config.check_stored_tenant(table.clone());
    wipe(&mut table);
    checked
}

pub(super) fn origin(revision: &Revision) -> Origin {
    Origin::Store {
        revision: revision.revision,
        close_by: revision.close_by_ms.map(UnixMillis),
        redates: revision.retention.outstanding().next().is_some(),
    }
}

/// Puts tenants of files and of the store together. Where both have one of a name, the file's counts.
pub fn together(files: &[Tenant], stored: Vec<Tenant>) -> Vec<Tenant> {
    let (shadowed, stored): (Vec<_>, Vec<_>) =
        stored.into_iter().partition(|tenant| files.iter().any(|file| file.id == tenant.id));
    for tenant in shadowed {
        tracing::error!(tenant = %tenant.id, "a file and the store have a tenant of this name; the file's counts");
    }
    files.iter().cloned().chain(stored).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::super::revision::tests::{keys, revision};
    use super::super::settings::Settings;
    use super::*;
    use crate::config::{Disk, TenantStatus};
    use crate::store::Store;
    use crate::store::folder::Folder;

    struct World {
        dir: tempfile::TempDir,
        store: Arc<dyn Store>,
        book: Book,
        config: Config,
    }

    impl World {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("tenants")).unwrap();
            let text = "public_url = \"wss://media.example.com\"\n[tls]\nself_signed = true\n";
            let config = Config::from_toml(text, dir.path(), [("A", "B"); 0], &Disk).unwrap();
            let store: Arc<dyn Store> = Arc::new(Folder::open(&dir.path().join("store")).await.unwrap());
            let book = Book::new(Arc::clone(&store), &keys(&["s1"]));
            Self { dir, store, book, config }
        }

        /// Puts a revision with these settings; answers the tenant's tag.
        async fn put(&self, tenant: &str, number: u32, status: TenantStatus, settings: &str) -> TenantTag {
            let (settings, _) = Settings::given(settings.parse().unwrap(), None, b"k");
            let revision = Revision { status, settings, ..revision(tenant, number) };
            let tag = revision.id().unwrap().tag();
            assert!(self.book.put(tag, &revision).await.unwrap());
            tag
        }

        async fn look(&self, view: &mut View) -> bool {
            view.look(&self.book, &self.config).await.unwrap()
        }

        fn copy(&self) -> PathBuf {
            self.dir.path().join("data/tenants.json")
        }
    }

    /// Id, revision, status and streams of each.
    fn seen(view: &View) -> Vec<(String, u32, TenantStatus, u32)> {
        let tenants = view.tenants().into_iter();
        let mut seen: Vec<_> = tenants
            .map(|tenant| match tenant.origin {
                Origin::Store { revision, .. } => {
                    (tenant.id.to_string(), revision, tenant.status, tenant.limits.max_streams)
                }
                Origin::File => panic!("there are no files"),
            })
            .collect();
        seen.sort_by(|one, other| one.0.cmp(&other.0));
        seen
    }

    const FIVE: &str = "[limits]\nmax_streams = 5";
    const WRONG: &str = "colour = \"red\"";

    #[tokio::test]
    async fn what_was_seen_is_never_taken_back() {
        let (world, mut view) = (World::new().await, View::default());
        assert!(!world.look(&mut view).await);
        let acme = world.put("acme", 1, TenantStatus::Active, FIVE).await;
        world.put("broken", 1, TenantStatus::Active, WRONG).await;
        assert!(world.look(&mut view).await);
        assert!(view.trouble()[0].contains("colour"), "{:?}", view.trouble());
        let first = ("acme".to_owned(), 1, TenantStatus::Active, 5);
        assert_eq!(
            seen(&view),
            std::slice::from_ref(&first),
            "one without settings that can be used is nobody"
        );
        assert!(!world.look(&mut view).await, "nothing is new");
        world.put("acme", 2, TenantStatus::Suspended, WRONG).await;
        assert!(world.look(&mut view).await);
        let second = ("acme".to_owned(), 2, TenantStatus::Suspended, 5);
        assert_eq!(seen(&view), std::slice::from_ref(&second), "the status counts, whatever the settings");
        world.store.delete(&layout::tenant_revision(acme, 2)).await.unwrap();
        assert!(!world.look(&mut view).await);
        assert_eq!(seen(&view), std::slice::from_ref(&second), "an older revision never counts again");
        let garbage = Bytes::from_static(b"garbage");
        let tags = crate::store::Tags::new();
        world.store.put_new(&layout::tenant_revision(acme, 3), garbage, &tags).await.unwrap();
        assert!(!world.look(&mut view).await);
        assert_eq!(seen(&view), [second]);
        assert_eq!(view.trouble().len(), 1);
    }

    #[tokio::test]
    async fn a_copy_stands_in_for_a_store_that_does_not_answer() {
        let (world, mut view) = (World::new().await, View::default());
        world.put("acme", 1, TenantStatus::Active, FIVE).await;
        world.put("acme", 2, TenantStatus::Active, "[limits]\nmax_streams = 6").await;
        world.look(&mut view).await;
        view.remember(&world.copy()).unwrap();
        let text = std::fs::read(world.copy()).unwrap();
        assert!(!text.windows(11).any(|part| part == b"max_streams"), "it is sealed");
        let mut later = View::default();
        later.recall(&world.copy(), &world.book, &world.config).unwrap();
        assert_eq!(seen(&later), seen(&view));
        assert!(!world.look(&mut later).await, "the store says nothing else");
        world.put("acme", 3, TenantStatus::Suspended, FIVE).await;
        assert!(world.look(&mut later).await, "and counts as soon as it answers");
        assert_eq!(seen(&later), [("acme".to_owned(), 3, TenantStatus::Suspended, 5)]);
        let foreign = Book::new(Arc::clone(&world.store), &keys(&["s2"]));
        let mut nothing = View::default();
        nothing.recall(&world.copy(), &foreign, &world.config).unwrap();
        assert!(seen(&nothing).is_empty() && nothing.trouble().len() == 1);
    }
}
