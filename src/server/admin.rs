//! The admin listener: its tokens, its socket, its API.

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::admin::Api;
use crate::admin::tokens::Tokens;
use crate::config::Config;
use crate::http;
use crate::ingest::serve_public;
use crate::node::Node;

use super::{StartError, bind};

/// The admin listener, before it serves.
pub(super) struct Admin {
    listener: TcpListener,
    tokens: Arc<Tokens>,
}

impl Admin {
    /// Reads the tokens and binds; `None` where the configuration has no admin API.
    pub(super) async fn open(config: &Config) -> Result<Option<Self>, StartError> {
        let Some(admin) = &config.admin else { return Ok(None) };
        let tokens = Arc::new(Tokens::open(&admin.tokens_file)?);
        Ok(Some(Self { listener: bind(config.listen.admin).await?, tokens }))
    }

    /// Returns the socket.
    pub(super) fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// Serves until the node stops.
    pub(super) fn serve(self, acceptor: TlsAcceptor, node: &Arc<Node>) {
        tokio::spawn(Arc::clone(&self.tokens).watch());
        let api = Api::new(Arc::clone(node), self.tokens);
        let handle =
            move |request, source, node: Arc<Node>| http::handle_admin(request, source, node, api.clone());
        tokio::spawn(serve_public(self.listener, acceptor, Arc::clone(node), handle));
    }
}
