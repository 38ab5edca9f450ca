//! What keeps a node from starting.

use std::path::PathBuf;

use crate::admin::jwt::JwtError;
use crate::admin::tokens::TokensError;
use crate::authorities::AuthoritiesError;
use crate::config::KeyProviderKind;
use crate::domain::ids::TenantId;
use crate::ingest::tls::TlsError;
use crate::journal::OpenError;
use crate::keys::{KeyringError, RecipientError};
use crate::store::StoreError;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The keyring.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// Keys cannot lie in locked memory, and the configuration requires that.
    #[error(
        "keys.require_locked_memory is set, and no memory can be locked; raise its limit (LimitMEMLOCK, ulimit -l)"
    )]
    NotLocked(#[source] std::io::Error),
    /// A tenant has no KEK.
    #[error("tenant {tenant} has no key in {}; make it with: callseal keys init", keyring.display())]
    NoKek {
        /// The tenant.
        tenant: TenantId,
        /// The keyring.
        keyring: PathBuf,
    },
    /// A file of a key pair.
    #[error(transparent)]
    Recipient(#[from] RecipientError),
    /// A tenant has a key pair that no file is of.
    #[error("tenant {tenant} has the key pair {kek}, of which there is no file in {option}")]
    NoRecipient {
        /// The tenant.
        tenant: TenantId,
        /// The key pair.
        kek: String,
        /// Where it should be.
        option: &'static str,
    },
    /// A keyring on a node that must not be able to open anything.
    #[error("keyring {} is on this node, which opens nothing with keys.role = \"ingest\"; take it away", .0.display())]
    KeyringOnIngest(PathBuf),
    /// The role is another one than the node was started with.
    #[error("keys.role is another one now; start the node anew")]
    NewRole,
    /// A tenant has a KEK in a kind of key service that this node has not opened.
    #[error("a tenant's key is in {0}, which this node does not use yet; start the node anew")]
    NewProvider(KeyProviderKind),
    /// The store.
    #[error("store")]
    Store(#[from] StoreError),
    /// The store does not do what the configuration says of it.
    #[error("the store does not do what the configuration claims: {broken}; see: callseal store probe")]
    Claims {
        /// What it does not do, and what to do about it.
        broken: String,
    },
    /// The journal.
    #[error("journal")]
    Journal(#[from] OpenError),
    /// The certificate.
    #[error("certificate")]
    Tls(#[from] TlsError),
    /// The authorities of those who may connect.
    #[error("tls.client_ca_file")]
    Clients(#[source] AuthoritiesError),
    /// Tokens of an identity provider.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// The tokens of the admin API.
    #[error("API tokens")]
    Tokens(#[from] TokensError),
    /// The file that audit records are copied to.
    #[error("audit.file")]
    Audit(#[source] std::io::Error),
    /// How agents are dialled.
    #[error("relay")]
    Relay(#[from] AuthoritiesError),
    /// The authorities of receivers of notices.
    #[error("webhook.ca_file")]
    Webhook(#[source] AuthoritiesError),
    /// The authorities of the collector.
    #[error("traces.ca_file")]
    Traces(#[source] std::io::Error),
    /// An address that cannot be bound, or a signal that cannot be caught.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
