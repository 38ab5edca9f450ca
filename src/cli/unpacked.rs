//! Where `open` and `verify` find a recording: in the store of a node, or in the directory of an unpacked export, where the
//! private key of whoever got it is all that is needed. Nothing is written there, and nobody is asked.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::Args;
use serde::Deserialize;

use crate::control::recordings::StoredRecording;
use crate::domain::ids::{RecordingId, TenantId};
use crate::keys::{KeyService, Providers, Recipient, RecipientFile};
use crate::store::Store;
use crate::store::folder::Folder;

use super::target::{Opened, TenantArg};
use super::{ConfigArg, Failure};

/// The file at the beginning of each archive has some hundred bytes.
const MAX_ABOUT_BYTES: u64 = 64 * 1024;

/// One recording, of a node or of an export.
#[derive(Debug, Args)]
pub(super) struct SourceArg {
    #[command(flatten)]
    config: ConfigArg,
    /// The tenant's id
    #[arg(long, value_name = "ID", required_unless_present = "export")]
    tenant: Option<TenantId>,
    /// The recording's id: 32 hexadecimal digits
    #[arg(long, value_name = "ID")]
    pub(super) recording: RecordingId,
    /// The directory of an unpacked export that was sealed for a key pair; no configuration is needed
    #[arg(long, value_name = "DIR", requires = "open_file", conflicts_with_all = ["tenant", "config"])]
    export: Option<PathBuf>,
    /// The open file of that key pair
    #[arg(long, value_name = "FILE", requires = "export")]
    open_file: Option<PathBuf>,
}

/// Where a recording is, and what opens it.
pub(super) struct Source {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Arc<KeyService>,
    pub(super) tenant: TenantId,
    pub(super) recording: RecordingId,
}

/// What the file at the beginning of an archive says.
#[derive(Deserialize)]
struct About {
    v: u8,
    tenant: String,
    format: String,
}

impl SourceArg {
    pub(super) async fn open(&self) -> Result<Source, Failure> {
        let recording = self.recording;
        if let (Some(dir), Some(open_file)) = (&self.export, &self.open_file) {
            let (store, keys, tenant) = unpacked(dir, open_file)?;
            return Ok(Source { store, keys, tenant, recording });
        }
        let tenant = self.tenant.clone().ok_or_else(|| anyhow!("--tenant is missing"))?;
        let Opened { store, keys, .. } =
            TenantArg { config: self.config.clone(), tenant: tenant.clone() }.open().await?;
        Ok(Source { store, keys, tenant, recording })
    }
}

impl Source {
    pub(super) async fn recording(&self) -> anyhow::Result<StoredRecording> {
        let stored =
            StoredRecording::open(Arc::clone(&self.store), &self.keys, &self.tenant, self.recording).await;
        stored.with_context(|| format!("recording {}", self.recording))
    }
}

fn unpacked(dir: &Path, open_file: &Path) -> anyhow::Result<(Arc<dyn Store>, Arc<KeyService>, TenantId)> {
    let path = dir.join("about.json");
    let mut text = Vec::new();
    let file = File::open(&path).with_context(|| format!("{}", path.display()))?;
    file.take(MAX_ABOUT_BYTES).read_to_end(&mut text).with_context(|| format!("{}", path.display()))?;
    let about: Option<About> = serde_json::from_slice(&text).ok();
    // A wrong name opens nothing, as each key is bound to its tenant.
    let tenant: Option<TenantId> = about
        .filter(|about| about.v == 1 && about.format == "sealed")
        .and_then(|about| about.tenant.parse().ok());
    let tenant = tenant.ok_or_else(|| anyhow!("{} is not of a sealed export", path.display()))?;
    let recipient = Recipient::load(open_file, RecipientFile::Open)?;
    let store: Arc<dyn Store> = Arc::new(Folder::reading(dir));
    let keys = Providers::of_recipient(&tenant, recipient);
    let keys = KeyService::new(Arc::new(keys), Arc::clone(&store));
    Ok((store, Arc::new(keys), tenant))
}
