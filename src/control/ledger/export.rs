//! Copies of a ledger outside of the store, for the day on which the store itself has to be restored.
//!
//! A copy holds the objects as they are, entries and the envelopes of the keys that seal them: nobody reads it
//! without the tenant's KEK, and it is checked like the ledger itself.

use std::collections::HashMap;

use bytes::Bytes;

use crate::domain::ids::{RecordingId, TenantId};
use crate::domain::ledger::{ChainFault, Head};
use crate::keys::{envelope_prefix, envelope_recording};
use crate::store::{ObjectName, layout};

use super::{Ledger, LedgerError, Read, Reader};

/// Revisions of an envelope: more than one only while it moves.
const MAX_REVISIONS: usize = 100;

/// The objects of a ledger, and the envelopes of its keys.
pub type Objects = Vec<(ObjectName, Bytes)>;

impl Ledger {
    /// Copies the ledger of a tenant, once it was found unbroken.
    ///
    /// # Errors
    /// As [`Ledger::verify`].
    pub async fn export(&self, tenant: &TenantId) -> Result<(Read, Objects), LedgerError> {
        let read = self.verify(tenant, None).await?;
        let (tag, mut objects, mut keys) = (tenant.tag(), Objects::new(), Vec::new());
        let mut head = Head::EMPTY;
        for number in 0..read.head.links {
            let name = layout::ledger(tag, number);
            let bytes = self.store.get(&name, None).await?.bytes;
            let link = head.next(number, &bytes)?;
            head = head.after(&bytes);
            if let Some(key) = link.key_id().filter(|key| !keys.contains(key)) {
                keys.push(key);
            }
            objects.push((name, bytes));
        }
        for key in keys {
            let revisions = self.store.list_after(&envelope_prefix(tag, key), None, MAX_REVISIONS).await?;
            if let Some(newest) = revisions.last() {
                objects.push((newest.name.clone(), self.store.get(&newest.name, None).await?.bytes));
            }
        }
        Ok((read, objects))
    }

    /// Reads a copy as the ledger itself would be read.
    ///
    /// # Errors
    /// [`LedgerError::Broken`], also for objects that belong to no ledger of the tenant.
    pub async fn read_copy(&self, tenant: &TenantId, objects: Objects) -> Result<Read, LedgerError> {
        let (tag, mut links, mut envelopes) = (tenant.tag(), Vec::new(), HashMap::new());
        for (name, bytes) in objects {
            if name.as_str().starts_with(&layout::ledger_prefix(tag)) {
                links.push((layout::ledger_number(&name), bytes));
            } else if let Some(key) =
                envelope_recording(&name).filter(|key| name.as_str().starts_with(&envelope_prefix(tag, *key)))
            {
                envelopes.insert(key, bytes);
            } else {
                return Err(ChainFault::Malformed(links.len() as u64).into());
            }
        }
        links.sort_by_key(|(number, _)| *number);
        let mut reader = Reader::new(&self.keys, tenant, envelopes);
        for (number, bytes) in links {
            reader.add(number, bytes).await?;
        }
        Ok(reader.done())
    }
}

/// The envelopes that a copy has brought, by what they are of.
pub(super) type Envelopes = HashMap<RecordingId, Bytes>;
