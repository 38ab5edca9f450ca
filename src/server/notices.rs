//! Starts what tells tenants what happens to their recordings.

use std::sync::Arc;

use crate::config::Config;
use crate::keys::KeyService;
use crate::notices::courier::Courier;
use crate::notices::{Notices, Poster};
use crate::store::Store;

use super::StartError;

/// Makes the outbox, and who delivers from it. To be called within a runtime.
///
/// # Errors
/// [`StartError::Webhook`].
pub(super) fn open(
    config: &Config,
    keys: &Arc<KeyService>,
    store: &Arc<dyn Store>,
) -> Result<(Notices, Courier, Poster), StartError> {
    let poster = open_poster(config)?;
    let (keys, store) = (Arc::clone(keys), Arc::clone(store));
    let (notices, handover) = Notices::start(keys, store, config.node.as_str(), &config.tenants);
    let courier = Courier::new(handover, poster.clone(), (&config.webhook).into());
    Ok((notices, courier, poster))
}

/// Makes what posts notices.
///
/// # Errors
/// [`StartError::Webhook`].
pub fn open_poster(config: &Config) -> Result<Poster, StartError> {
    let webhook = &config.webhook;
    Poster::new(webhook.ca_file.as_deref(), webhook.schedule.attempt).map_err(StartError::Webhook)
}
