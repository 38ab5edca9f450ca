//! The index key of a tenant: what makes call ids and telephone numbers blind.
//!
//! It lies in an envelope as the data keys of recordings do, under an id that no recording has, so that every node and every
//! command gets the same one, and a rewrap moves it along. Whoever holds it can try numbers until one fits, so it is kept
//! as well as a data key.

use std::time::Duration;

use crate::domain::cmr::{Dek, Expected};
use crate::domain::ids::TenantId;
use crate::domain::index::INDEX_KEY_ID;

use super::envelope::Envelope;
use super::service::{MINT_TIMEOUT, noted};
use super::{KeyError, KeyService, OpenedKey, fill_random};

/// Where names are not created once: how long another node that makes the same key may be on its way.
const RACE: Duration = Duration::from_secs(1);

impl KeyService {
    /// Opens the index key of a tenant, and makes it if there is none yet.
    ///
    /// # Errors
    /// [`KeyError`]; calling again is safe.
    pub async fn index_key(&self, tenant: &TenantId) -> Result<OpenedKey, KeyError> {
        match self.open(tenant, INDEX_KEY_ID).await {
            Err(KeyError::NoEnvelope) => {}
            opened => return opened,
        }
        self.put_index_key(tenant, 0).await?;
        self.open(tenant, INDEX_KEY_ID).await
    }

    /// Opens the index key of a tenant; `None` if nothing was ever made blind with one.
    ///
    /// # Errors
    /// [`KeyError`].
    pub async fn known_index_key(&self, tenant: &TenantId) -> Result<Option<OpenedKey>, KeyError> {
        match self.open(tenant, INDEX_KEY_ID).await {
            Err(KeyError::NoEnvelope) => Ok(None),
            opened => opened.map(Some),
        }
    }

    /// Puts another index key in the place of a tenant's present one, which need not open. Nothing is found any more by what
    /// was made blind with that one; other nodes take the new key within five minutes.
    ///
    /// # Errors
    /// [`KeyError`]; calling again is safe.
    pub async fn replace_index_key(&self, tenant: &TenantId) -> Result<(), KeyError> {
        let next = match self.newest_envelope_revision(tenant.tag(), INDEX_KEY_ID).await? {
            Some(newest) => newest.checked_add(1).ok_or(KeyError::BadEnvelope("revision"))?,
            None => 0,
        };
        self.put_index_key(tenant, next).await?;
        self.forget(tenant.tag(), INDEX_KEY_ID);
        self.drop_older(tenant, INDEX_KEY_ID).await
    }

    async fn put_index_key(&self, tenant: &TenantId, revision: u32) -> Result<(), KeyError> {
        let making = async {
            let dek = Dek::filled_by(|key| fill_random(key))?;
            let (tag, recording) = (tenant.tag(), INDEX_KEY_ID);
            let ids = Expected { tenant: tag, recording, key: dek.key_id(tag, recording) };
            let wrap = self.provider.wrap(tenant, &ids, &dek).await?;
            self.unwrap_checked(tenant, &ids, &wrap).await?;
            // A taken name is the key that another node has made; what is there counts.
            self.put_envelope(&ids, revision, &Envelope::new(&ids, wrap)).await?;
            Ok(())
        };
        let made = tokio::time::timeout(MINT_TIMEOUT, making).await.unwrap_or(Err(KeyError::TimedOut));
        noted("mint", made)?;
        if !self.store.profile().create_once {
            tokio::time::sleep(RACE).await;
        }
        Ok(())
    }
}
