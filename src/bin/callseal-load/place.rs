//! Where calls go: a server that runs already, or one of the generator's own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use callseal::domain::ids::{RouteName, TenantId};
use callseal::domain::provider::twilio::AccountSid;
use callseal::simulate::{Endpoint, TlsClient};
use clap::Args;
use toml::Table;

use crate::faults::{read_store, upstream};
use crate::node::{HEARD, Home, LINE, Launch, Server, TENANT, Target, WORDS};
use crate::process::{Process, raise_open_files};
use crate::recordings::Api;
use crate::sampler::Watched;
use crate::vapi::Kind;

/// How long a server of our own may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// Streams that a server of our own takes.
const OWN_MAX_CALLS: u64 = 20_000;

/// Where calls go.
#[derive(Args)]
pub(crate) struct Place {
    /// Address of a running server; must be a loopback address.
    #[arg(long, value_name = "ADDRESS:PORT", required_unless_present = "dir", requires_all = ["ca", "tenant"])]
    connect: Option<SocketAddr>,
    /// The server's public URL without a path, exactly as in its configuration: it is what Twilio signs.
    #[arg(long, value_name = "URL", default_value = "wss://localhost:8443")]
    public_url: String,
    /// PEM file with the root certificate that the server's certificate comes from.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Tenant that the calls are for.
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Route of the tenant.
    #[arg(long, default_value = RouteName::DEFAULT)]
    route: RouteName,
    /// Twilio account of the tenant.
    #[arg(long, value_name = "AC…")]
    account: Option<AccountSid>,
    /// File with the account's auth token, which signs the handshakes; for Vapi with the tenant's secret,
    /// which its transport does not need.
    #[arg(long, value_name = "FILE")]
    auth_token_file: Option<PathBuf>,
    /// Process id of the server, to measure its CPU time and memory. It must run on this machine.
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// Address of the server's ops listener, to read its metrics page once a second.
    #[arg(long, value_name = "ADDRESS:PORT")]
    ops: Option<SocketAddr>,
    /// Address of the server's admin API. With it every recording is played through a signed URL and compared sample by
    /// sample.
    #[arg(long, value_name = "ADDRESS:PORT", requires_all = ["admin_token_file", "connect"])]
    admin: Option<SocketAddr>,
    /// File with a token of role player (`callseal token create`).
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    /// Start a server of our own with its files in this directory; made if missing.
    #[arg(long, value_name = "DIR", requires = "callseal")]
    #[arg(conflicts_with_all = ["connect", "server_pid", "ops", "tenant"])]
    dir: Option<PathBuf>,
    /// The program of that server.
    #[arg(long, value_name = "FILE", requires = "dir")]
    callseal: Option<PathBuf>,
    /// TOML file with a table "store" of kind "s3" for that server; without it the store is a folder.
    #[arg(long, value_name = "FILE", requires = "dir")]
    store: Option<PathBuf>,
}

/// Whose wire is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Twilio,
    /// One of Vapi's.
    Vapi(Kind),
}

impl Wire {
    /// Returns where calls of a route go; those with tickets have them behind it.
    fn path(self, tenant: &str, route: &str) -> String {
        match self {
            Self::Twilio => format!("/twilio/v1/{tenant}/{route}"),
            Self::Vapi(Kind::Transcriber) => format!("/vapi/v1/{tenant}/{route}"),
            Self::Vapi(Kind::Transport) => format!("/vapi-transport/v1/{tenant}/{route}"),
            Self::Vapi(Kind::Listen) => format!("/vapi/v1/{tenant}/{route}/events"),
        }
    }
}

/// An opened place.
pub(crate) struct Open {
    pub(crate) target: Target,
    pub(crate) watched: Watched,
    /// None where recordings are not compared.
    pub(crate) api: Option<Api>,
    pub(crate) own: Option<Own>,
}

/// A server of our own, and what it is started with.
pub(crate) struct Own {
    pub(crate) server: Server,
    pub(crate) home: Home,
    dir: PathBuf,
    callseal: PathBuf,
    store: Option<Table>,
    token: String,
}

impl Place {
    /// Looks at the options, starts the server if one is to be started.
    pub(crate) async fn open(&self, calls: u64, wire: Wire) -> anyhow::Result<Open> {
        self.open_beside(calls, wire, None).await
    }

    /// As [`Place::open`]; a server of our own may dial whoever has this certificate as Vapi.
    pub(crate) async fn open_beside(
        &self,
        calls: u64,
        wire: Wire,
        vapi: Option<&str>,
    ) -> anyhow::Result<Open> {
        raise_open_files();
        match (&self.dir, &self.callseal) {
            (Some(dir), Some(callseal)) => self.start((dir, callseal), calls, wire, vapi).await,
            _ => self.find(wire),
        }
    }

    /// Whether the server is one of our own.
    pub(crate) fn is_own(&self) -> bool {
        self.dir.is_some()
    }

    /// Whether the server's admin API can be asked.
    pub(crate) fn has_api(&self) -> bool {
        self.is_own() || self.admin.is_some()
    }

    /// Refuses a server that is not ours, for what ends or breaks it.
    pub(crate) fn must_be_own(&self, scenario: &str) -> anyhow::Result<()> {
        ensure!(
            self.dir.is_some(),
            "{scenario} stops its server: give --dir and --callseal instead of --connect"
        );
        Ok(())
    }

    async fn start(
        &self,
        (dir, callseal): (&Path, &Path),
        calls: u64,
        wire: Wire,
        vapi: Option<&str>,
    ) -> anyhow::Result<Open> {
        ensure!(calls <= OWN_MAX_CALLS, "{calls} calls; a server of our own (--dir) takes {OWN_MAX_CALLS}");
        let store = self.store.as_ref().map(read_store).transpose()?;
        store.as_ref().map(upstream).transpose()?;
        let launch = Launch { vapi, ..launch(dir, callseal, store.as_ref()) };
        let home = Home::make(&launch, None)?;
        // Before the server starts, which would need some seconds to notice it.
        let token = home.make_token(callseal)?;
        let server = Server::start(&launch, &home)?;
        let (dir, callseal) = (dir.to_owned(), callseal.to_owned());
        let own = Own { server, home, dir, callseal, store, token };
        own.server.wait_until_ready(READY).await?;
        let (target, api) = own.reach(wire)?;
        Ok(Open { target, watched: own.server.watched(), api: Some(api), own: Some(own) })
    }

    fn find(&self, wire: Wire) -> anyhow::Result<Open> {
        let address = self.connect.context("--connect or --dir is missing")?;
        for (option, address) in [("connect", Some(address)), ("ops", self.ops), ("admin", self.admin)] {
            ensure!(
                address.is_none_or(|address| address.ip().to_canonical().is_loopback()),
                "--{option}: no loopback address; allowed: 127.0.0.0/8 and ::1. Load goes to this machine only, on \
                 another one it is an attack"
            );
        }
        let ca = self.ca.as_ref().context("--ca is missing")?;
        let pem = fs::read(ca).with_context(|| format!("--ca: read {}", ca.display()))?;
        let tls = TlsClient::new(&pem).with_context(|| format!("--ca: use {}", ca.display()))?;
        let tenant = self.tenant.as_ref().context("--tenant is missing")?;
        let endpoint = Endpoint::new(address, &self.public_url).context("--public-url")?;
        let auth_token = match (&self.auth_token_file, wire) {
            (Some(file), _) => secret(file, "--auth-token-file")?.into_bytes(),
            // A ticket is all that proves it.
            (None, Wire::Vapi(Kind::Transport)) => Vec::new(),
            (None, _) => anyhow::bail!("--auth-token-file is missing"),
        };
        let account = match (&self.account, wire) {
            (Some(account), _) => account.clone(),
            (None, Wire::Twilio) => anyhow::bail!("--account is missing"),
            (None, Wire::Vapi(_)) => crate::node::ACCOUNT.parse().context("account")?,
        };
        let api = match (self.admin, &self.admin_token_file) {
            (Some(admin), Some(file)) => {
                let token = secret(file, "--admin-token-file")?;
                Some(Api::new(&tls, endpoint.clone(), admin, &self.public_url, tenant.as_str(), &token)?)
            }
            _ => None,
        };
        Ok(Open {
            target: Target {
                endpoint,
                path: wire.path(tenant.as_str(), self.route.as_str()),
                tls,
                account,
                auth_token,
            },
            watched: Watched { process: self.server_pid.map(Process::new), ops: self.ops },
            api,
            own: None,
        })
    }
}

impl Own {
    /// Starts it again after it has ended.
    pub(crate) async fn start_again(&mut self) -> anyhow::Result<Api> {
        self.server = Server::start(&launch(&self.dir, &self.callseal, self.store.as_ref()), &self.home)?;
        self.server.wait_until_ready(READY).await?;
        Ok(self.reach(Wire::Twilio)?.1)
    }

    fn reach(&self, wire: Wire) -> anyhow::Result<(Target, Api)> {
        let mut target = self.server.target()?;
        if let Wire::Vapi(kind) = wire {
            let route = match kind {
                Kind::Transcriber => WORDS,
                Kind::Transport => LINE,
                Kind::Listen => HEARD,
            };
            target.path = wire.path(TENANT, route);
            target.auth_token = self.home.vapi_secret()?.into_bytes();
        }
        let admin = self.server.admin();
        let url = target.endpoint.public_url().to_owned();
        let api = Api::new(&target.tls, target.endpoint.clone(), admin, &url, TENANT, &self.token)?;
        Ok((target, api))
    }
}

fn launch<'a>(dir: &'a Path, callseal: &'a Path, store: Option<&'a Table>) -> Launch<'a> {
    Launch { dir, callseal, wrap: &[], store, agent: None, vapi: None }
}

fn secret(file: &Path, option: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string(file).with_context(|| format!("{option}: read {}", file.display()))?;
    let text = text.trim_end().to_owned();
    ensure!(!text.is_empty(), "{option}: {} is empty", file.display());
    Ok(text)
}
