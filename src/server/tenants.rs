//! Keeps the tenants of a node as files and store say, for as long as it runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::clock;
use crate::config::{Config, HIPAA_EFFECTS, KeyProviderKind, KeysRole, Tenant, TenantStatus};
use crate::drain::Phase;
use crate::jitter::jittered;
use crate::keys::{Keyring, Providers, system_random};
use crate::node::Node;
use crate::store::Store;
use crate::tenants::{Ask, Book, BookError, NotAdmitted, View, together};

use super::StartError;
use super::keys;

/// How often the store is looked at, at least: one listing. With the time that a look takes, a change holds on every node within
/// 15 seconds.
const INTERVAL: Duration = Duration::from_secs(10);

/// The tenants of files and store together, put in place whenever either changes.
pub(super) struct Keeper {
    node: Arc<Node>,
    providers: Arc<Providers>,
    state: Mutex<State>,
}

struct State {
    /// As it was read last; its tenants are those of files.
    config: Config,
    stored: Vec<Tenant>,
}

impl Keeper {
    pub(super) fn new(
        node: Arc<Node>,
        providers: Arc<Providers>,
        files: Vec<Tenant>,
        stored: Vec<Tenant>,
    ) -> Self {
        log_hipaa(&node);
        let config = Config { tenants: files, ..node.config.clone() };
        Self { node, providers, state: Mutex::new(State { config, stored }) }
    }

    /// Takes a configuration that was read anew.
    ///
    /// # Errors
    /// Keys that cannot be used; then everything stays as it is.
    pub(super) fn take_config(&self, config: Config) -> Result<(), StartError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.put_in_place(&config, state.stored.clone())?;
        state.config = config;
        Ok(())
    }

    fn take_stored(&self, stored: Vec<Tenant>) -> Result<(), StartError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.put_in_place(&state.config, stored.clone())?;
        state.stored = stored;
        Ok(())
    }

    fn put_in_place(&self, files: &Config, stored: Vec<Tenant>) -> Result<(), StartError> {
        let (stored, unusable) = usable(files, stored, |kind| self.providers.has(kind));
        complain(&unusable);
        let config = Config { tenants: together(&files.tenants, stored), ..files.clone() };
        keys::replace(&self.providers, &self.node.keys, &config)?;
        self.node.replace_tenants(config.tenants);
        Ok(())
    }

    /// Looks at the store until the node stops, and answers what is asked meanwhile; nothing to do without tenants in the store.
    pub(super) async fn keep(self: Arc<Self>, mut view: View, asked: Option<mpsc::Receiver<Ask>>) {
        let book = self.node.tenants.stored().map(|stored| stored.book.clone());
        let Some((book, mut asked)) = book.zip(asked) else { return };
        // What was seen before the node ran may be old.
        let mut due = clock::monotonic();
        loop {
            let wait = due.saturating_duration_since(clock::monotonic());
            tokio::select! {
                () = tokio::time::sleep(wait) => {
                    self.look(&mut view, &book, false).await;
                    due = clock::monotonic() + jittered(INTERVAL);
                }
                () = self.node.drain.reached(Phase::Stopping) => return,
                ask = asked.recv() => match ask {
                    Some(Ask::Look(done)) => {
                        self.look(&mut view, &book, true).await;
                        let _asker_waits = done.send(()).is_ok();
                    }
                    Some(Ask::Admit(tenant, answer)) => {
                        let _asker_waits = answer.send(self.admit(&tenant).await).is_ok();
                    }
                    None => return,
                },
            }
        }
    }

    /// `is_due`: keys of a tenant were taken that may not have been put.
    async fn look(&self, view: &mut View, book: &Book, is_due: bool) {
        match view.look(book, &self.node.config).await {
            Ok(false) if !is_due => {}
            Ok(_) => match self.take_stored(view.tenants()) {
                Ok(()) => {
                    tracing::info!("tenants of the store were taken");
                    remember(view, &self.node.config);
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "keys cannot be used; the old tenants stay");
                }
            },
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    "tenants of the store cannot be looked at now; those that are known stay"
                );
            }
        }
    }

    /// Sees to it that a key can be had for a tenant.
    async fn admit(&self, tenant: &Tenant) -> Result<(), NotAdmitted> {
        let not = |option, problem: String| NotAdmitted { option, problem };
        if let Some(kek) = tenant.keks.all().find(|kek| !self.providers.has(kek.provider)) {
            let problem = format!("{} is no key service that this node has opened", kek.provider);
            return Err(not("keys.provider", problem));
        }
        if tenant.keks.use_provider(KeyProviderKind::Local) {
            let keys = &self.node.config.keys;
            make_kek(keys.rotate_by_itself, &keys.keyring_file, tenant)
                .map_err(|problem| not("keys", problem))?;
            keys::take_keyring(&self.providers, &keys.keyring_file)
                .map_err(|error| not("keys", format!("keyring: {error}")))?;
        }
        self.providers.admit(&tenant.id, &tenant.keks);
        match self.node.keys.mint(&tenant.id).await {
            Ok(minted) => {
                self.node.keys.give_back(&tenant.id, minted);
                Ok(())
            }
            Err(error) => Err(not("keys", format!("no key can be had with it: {error}"))),
        }
    }
}

/// Adds the tenants of the store to a configuration, as far as the store answers; answers what was seen.
pub(super) async fn first_look(config: Config, store: &Arc<dyn Store>) -> (Config, Vec<Tenant>, View) {
    let mut view = View::default();
    let Some(rules) = &config.stored_tenants else { return (config, Vec::new(), view) };
    let book = Book::new(Arc::clone(store), rules);
    match view.look(&book, &config).await {
        Ok(_) => remember(&view, &config),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                "the store does not tell its tenants; those that were seen last are taken"
            );
            if let Err(error) = view.recall(&copy_file(&config), &book, &config) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    "nor is there a copy of them; their calls are refused until the store answers"
                );
            }
        }
    }
    let stored = view.tenants();
    let (usable, unusable) = usable(&config, stored.clone(), |kind| is_configured(&config, kind));
    complain(&unusable);
    let tenants = together(&config.tenants, usable);
    (Config { tenants, ..config }, stored, view)
}

/// Says what the rules for health data change, and for whom.
fn log_hipaa(node: &Node) {
    for tenant in node.tenants.load().iter().filter(|tenant| tenant.hipaa.is_some()) {
        let changes = HIPAA_EFFECTS.map(|(name, _)| name).join(", ");
        tracing::info!(tenant = %tenant.id, changes, "hipaa.mode is on");
    }
}

/// Where the copy of the store's tenants is, sealed as they are there.
fn copy_file(config: &Config) -> PathBuf {
    config.data_dir.join("tenants.json")
}

fn remember(view: &View, config: &Config) {
    if let Err(error) = view.remember(&copy_file(config)) {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "tenants of the store cannot be copied to this machine for the next start");
    }
}

/// Adds the tenants of the store to a configuration, for commands, which look once; answers also what is wrong with some.
///
/// # Errors
/// [`BookError`].
pub async fn complete(config: Config, store: &Arc<dyn Store>) -> Result<(Config, Vec<String>), BookError> {
    let Some(rules) = &config.stored_tenants else { return Ok((config, Vec::new())) };
    let mut view = View::default();
    view.look(&Book::new(Arc::clone(store), rules), &config).await?;
    let (usable, unusable) = usable(&config, view.tenants(), |kind| is_configured(&config, kind));
    let trouble = [view.trouble(), &unusable].concat();
    let tenants = together(&config.tenants, usable);
    Ok((Config { tenants, ..config }, trouble))
}

/// Whether a node opens this kind of key service for tenants of the store.
fn is_configured(config: &Config, kind: KeyProviderKind) -> bool {
    let recipients = &config.key_services.recipient;
    if config.keys.role == KeysRole::Ingest {
        return kind == KeyProviderKind::Recipient && !recipients.wrap.is_empty();
    }
    match kind {
        KeyProviderKind::Local | KeyProviderKind::AwsKms => true,
        KeyProviderKind::VaultTransit => config.key_services.vault.is_some(),
        KeyProviderKind::Pkcs11 => config.key_services.pkcs11.is_some(),
        KeyProviderKind::Recipient => !recipients.open.is_empty(),
    }
}

fn complain(unusable: &[String]) {
    for why in unusable {
        tracing::error!(why, "a tenant of the store cannot be served by this node");
    }
}

/// Makes a key in the keyring for a tenant that has none, where that may be.
///
/// # Errors
/// What is wrong, and what is allowed.
pub fn make_kek(may_make: bool, file: &Path, tenant: &Tenant) -> Result<(), String> {
    if Keyring::load(file).is_ok_and(|ring| ring.has(&tenant.id)) {
        return Ok(());
    }
    if !may_make {
        return Err(
            "the keyring has no key for this tenant, and this node does not write it (keys.rotate = \"manual\"); allowed: make \
             the tenant with: callseal tenant create, or give it a key in a key service"
                .to_owned(),
        );
    }
    let now = clock::rfc3339(clock::wall());
    Keyring::init(file, std::slice::from_ref(&tenant.id), &now, system_random)
        .map(drop)
        .map_err(|error| format!("keyring: {error}"))
}

/// Leaves out tenants of the store that this node has no key for, as they must not keep it from serving the others; answers why.
fn usable(
    config: &Config,
    mut stored: Vec<Tenant>,
    has: impl Fn(KeyProviderKind) -> bool,
) -> (Vec<Tenant>, Vec<String>) {
    let is_local = |tenant: &Tenant| tenant.keks.current.provider == KeyProviderKind::Local;
    let ring =
        stored.iter().any(is_local).then(|| Keyring::load(&config.keys.keyring_file).unwrap_or_default());
    let mut unusable = Vec::new();
    stored.retain(|tenant| {
        let id = &tenant.id;
        if let Some(kek) = tenant.keks.all().find(|kek| !has(kek.provider)) {
            unusable
                .push(format!("tenant {id}: {} is no key service that this node has opened", kek.provider));
            return false;
        }
        let has_key = !is_local(tenant) || ring.as_ref().is_some_and(|ring| ring.has(id));
        // The key of a closed tenant is destroyed in the end.
        if !has_key && tenant.status != TenantStatus::Closed {
            unusable.push(format!(
                "tenant {id}: the keyring has no key for it; make it with: callseal keys init"
            ));
        }
        has_key
    });
    (stored, unusable)
}
