//! The audit log: who did what to which recording, when, from where and why.
//!
//! Every record is chained to the one before it by a hash, sealed under an audit key of its tenant, and durable in every
//! place where it must be before the action it tells of has any effect. A process writes one chain per tenant; chains
//! bear witness to each other's ends, see [`Mark`]. One task owns a tenant's chain, and puts records that wait at the
//! same time into one object.
//!
//! Reading needs the tenant's keys and nothing else: [`AuditReader`] queries, exports and verifies. It must not know
//! who asks.

mod chain;
mod error;
mod export;
mod file;
mod links;
mod log;
mod look;
mod place;
mod purge;
mod query;
mod read;
mod record;
mod refusals;
mod verify;
mod writer;

use futures_util::TryStreamExt;

use crate::domain::ids::TenantId;
use crate::keys::KeyService;
use crate::store::Store;

pub use error::{AuditError, Finding, Id};
pub use export::{BadExport, ChainProof, ExportCheck, ExportFormat, Proof};
pub use file::{AuditFile, Witness};
pub use log::{AuditLog, AuditOptions, WallClock};
pub use place::Place;
pub use purge::{Purged, purge};
pub use query::{Cursor, Filter, Found, InvalidCursor, Page};
pub use read::{AuditReader, Span};
pub use record::{AuditEvent, AuditRecord, ChainEnd, Mark};
pub use verify::{ChainLife, ChainState, Verification};

/// Reads all audit records of a tenant but checkpoints into memory, oldest first. For small logs; [`AuditReader`] streams.
///
/// # Errors
/// [`AuditError::Broken`] when an object does not open.
pub async fn read(
    tenant: &TenantId,
    keys: &KeyService,
    store: &dyn Store,
) -> Result<Vec<AuditRecord>, AuditError> {
    let filter = Filter::default();
    let mut records = Vec::new();
    let mut found = std::pin::pin!(AuditReader::new(keys, store).find(tenant, &filter, None));
    while let Some(found) = found.try_next().await? {
        match found {
            Found::Record(record, _) => records.push(*record),
            Found::Damage(finding) => return Err(finding.into()),
        }
    }
    Ok(records)
}
