//! A configuration with key services, and a store, for tests of one process.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use callseal::config::{Config, process_environment};
use callseal::control::audit::AuditLog;
use callseal::control::retention::OrderedBy;
use callseal::control::rewrap::{Rewrap, RewrapReport};
use callseal::domain::ids::{RecordingId, TenantId};
use callseal::domain::time::UnixMillis;
use callseal::keys::{Envelope, KeyError, KeyService, Keyring, envelope_name, system_random};
use callseal::server::open_keys;
use callseal::store::folder::Folder;
use callseal::store::{Store, Tags};
use tempfile::TempDir;

use crate::support::write_private;

pub(super) const ACME: &str = "acme";
pub(super) const OTHER: &str = "other";

/// Files of a configuration, and a store that outlives changes of them.
pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) store: Arc<dyn Store>,
    node: String,
}

impl World {
    /// Takes the tables `keys`, `aws_kms` and so on of the node's file. There are the tenants [`ACME`] and [`OTHER`].
    pub(super) async fn new(node: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let store = Folder::open(dir.path().join("store")).await.unwrap();
        fs::create_dir(dir.path().join("tenants")).unwrap();
        for (name, secret) in [("id", "AKTESTTESTTESTTEST00"), ("secret", "not-a-secret-of-anybody")] {
            write_private(&dir.path().join(name), secret);
        }
        let world = Self { dir, store: Arc::new(store), node: String::new() }.with_node(node);
        let ring = world.keyring();
        let tenants = [ACME, OTHER].map(tenant);
        Keyring::init(&ring, &tenants, "2026-01-01T00:00:00Z", system_random).unwrap();
        for id in [ACME, OTHER] {
            world.write_tenant(id, "");
        }
        world
    }

    /// Writes the node's file anew.
    pub(super) fn with_node(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        let data = self.dir.path().join("data").display().to_string();
        let text = format!(
            "public_url = \"wss://media.example.com\"\ndata_dir = {data:?}\n[tls]\nself_signed = true\n{node}\n"
        );
        fs::write(self.config_file(), text).unwrap();
        self
    }

    /// Writes a tenant's table `keys`.
    pub(super) fn write_tenant(&self, id: &str, keys: &str) {
        let text = format!("id = {id:?}\n[keys]\n{keys}\n");
        fs::write(self.dir.path().join("tenants").join(format!("{id}.toml")), text).unwrap();
    }

    pub(super) fn keyring(&self) -> PathBuf {
        self.dir.path().join("data/keyring.json")
    }

    fn config_file(&self) -> PathBuf {
        self.dir.path().join("callseal.toml")
    }

    pub(super) fn config(&self) -> Config {
        Config::load(&self.config_file(), process_environment()).unwrap()
    }

    /// Begins anew, with nothing known by heart.
    pub(super) fn keys(&self) -> Arc<KeyService> {
        open_keys(&self.config(), &self.store).unwrap()
    }

    pub(super) async fn mint(&self, id: &str) -> Result<RecordingId, KeyError> {
        self.keys().mint(&tenant(id)).await.map(|minted| minted.ids.recording)
    }

    /// Opens the key of a recording; answers the id of the key.
    pub(super) async fn open(&self, id: &str, recording: RecordingId) -> Result<String, KeyError> {
        self.keys().open(&tenant(id), recording).await.map(|opened| opened.ids.key.to_string())
    }

    pub(super) async fn rewrap(&self, id: &str, older_than: Option<UnixMillis>) -> RewrapReport {
        let keys = self.keys();
        let audit = AuditLog::start("test".to_owned(), Arc::clone(&keys), Arc::clone(&self.store));
        let by = OrderedBy::operator("ops", "test");
        let rewrap = Rewrap::new(Arc::clone(&self.store), keys, audit, 10_000).older_than(older_than);
        rewrap.run(&tenant(id), &by, |_| ()).await.unwrap()
    }

    /// Reads the first revision of an envelope.
    pub(super) async fn envelope(&self, id: &str, recording: RecordingId) -> Envelope {
        let found = self.store.get(&envelope_name(tenant(id).tag(), recording, 0), None).await.unwrap();
        serde_json::from_slice(&found.bytes).unwrap()
    }

    /// Puts other bytes in the place of an envelope.
    pub(super) async fn replace_envelope(&self, id: &str, recording: RecordingId, json: Vec<u8>) {
        let name = envelope_name(tenant(id).tag(), recording, 0);
        self.store.delete(&name).await.unwrap();
        self.store.put_new(&name, Bytes::from(json), &Tags::new()).await.unwrap();
    }
}

pub(super) fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

/// The tables of a node whose tenants have their KEKs in a KMS.
pub(super) fn kms_tables(endpoint: &str, arn: &str) -> String {
    format!(
        "[keys]\nprovider = \"aws-kms\"\nkek = {arn:?}\nattempt_timeout_ms = 1000\n[aws_kms]\nendpoint = {endpoint:?}\n\
         credentials = \"static\"\naccess_key_id = {{ file = \"id\" }}\nsecret_access_key = {{ file = \"secret\" }}\n"
    )
}
