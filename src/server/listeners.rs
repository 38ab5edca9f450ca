//! The sockets of a node: bound all before any is served, so that a node that cannot start has bound nothing for long.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::admin::Api;
use crate::admin::jwt::Issuer;
use crate::admin::tokens::Tokens;
use crate::authorities;
use crate::config::{Config, Tls};
use crate::http::{self, serve_ops};
use crate::ingest::serve_public;
use crate::ingest::tls::{Certificate, SelfSigned, server_config};
use crate::node::Node;

use super::StartError;

/// The sockets, before they are served.
pub(super) struct Listeners {
    public: TcpListener,
    admin: Option<Admin>,
    ops: TcpListener,
}

/// The admin listener with who may use it; there is none where the configuration has no admin API.
struct Admin {
    listener: TcpListener,
    tokens: Arc<Tokens>,
    issuer: Option<Arc<Issuer>>,
}

/// TLS of the two listeners that have it; only the public one may ask for the certificates of those who connect.
pub(super) struct Acceptors {
    public: TlsAcceptor,
    admin: TlsAcceptor,
}

impl Acceptors {
    pub(super) fn open(config: &Config, certificate: &Arc<Certificate>) -> Result<Self, StartError> {
        let clients = config.client_ca_file.as_deref().map(authorities::of_file).transpose();
        let clients = clients.map_err(StartError::Clients)?;
        Ok(Self {
            public: TlsAcceptor::from(server_config(Arc::clone(certificate), clients)?),
            admin: TlsAcceptor::from(server_config(Arc::clone(certificate), None)?),
        })
    }
}

/// Where a node listens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) public: SocketAddr,
    pub(super) admin: Option<SocketAddr>,
    pub(super) ops: SocketAddr,
}

impl Listeners {
    /// Binds them.
    pub(super) async fn bind(config: &Config) -> Result<Self, StartError> {
        let admin = match &config.admin {
            None => None,
            Some(admin) => {
                let tokens = Arc::new(Tokens::open(&admin.tokens_file)?);
                let issuer = admin.jwt.as_ref().map(Issuer::open).transpose()?;
                Some(Admin { listener: bind(config.listen.admin).await?, tokens, issuer })
            }
        };
        Ok(Self { public: bind(config.listen.public).await?, admin, ops: bind(config.listen.ops).await? })
    }

    /// Returns what they are bound to.
    pub(super) fn addresses(&self) -> Result<Addresses, StartError> {
        Ok(Addresses {
            public: address(&self.public)?,
            admin: self.admin.as_ref().map(|admin| address(&admin.listener)).transpose()?,
            ops: address(&self.ops)?,
        })
    }

    /// Serves them until the node stops.
    pub(super) fn serve(self, acceptors: Acceptors, node: &Arc<Node>) {
        tokio::spawn(serve_ops(self.ops, Arc::clone(node)));
        if let Some(Admin { listener, tokens, issuer }) = self.admin {
            tokio::spawn(Arc::clone(&tokens).watch());
            if let Some(issuer) = &issuer {
                tokio::spawn(Arc::clone(issuer).watch());
            }
            let api = Api::new(Arc::clone(node), tokens, issuer);
            let handle = move |request, source, node: Arc<Node>| {
                http::handle_admin(request, source, node, api.clone())
            };
            tokio::spawn(serve_public(listener, acceptors.admin, Arc::clone(node), handle));
        }
        tokio::spawn(serve_public(self.public, acceptors.public, Arc::clone(node), http::handle));
    }
}

/// Opens the certificate, and makes one first where it is to be our own.
pub(super) fn open_certificate(config: &Config) -> Result<Arc<Certificate>, StartError> {
    let (cert_file, key_file) = match &config.tls {
        Tls::Files { cert_file, key_file } => (cert_file.clone(), key_file.clone()),
        Tls::SelfSigned { dir } => {
            let made = SelfSigned::ensure(dir, config.public_url.host())?;
            (made.cert_file, made.key_file)
        }
    };
    Ok(Certificate::load(&cert_file, &key_file)?)
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::System { what: format!("bind {address}"), source })
}

fn address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener
        .local_addr()
        .map_err(|source| StartError::System { what: "address of a listener".to_owned(), source })
}
