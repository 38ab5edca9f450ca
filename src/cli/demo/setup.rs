//! The files of a demonstration: an ordinary configuration that `callseal serve` takes as well.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::{Failure, keys};
use crate::config::{Config, Tls, process_environment};
use crate::ingest::tls::SelfSigned;
use crate::simulate::tls::{Endpoint, TlsClient};

/// The route that the call takes.
pub(super) const ROUTE: &str = "reception";

/// The tenant of the demonstration; everything about it is invented.
const TENANT: &str = r#"# An invented tenant.
id = "acme-dental"

[retention]
profile = "1string"

[twilio]
account_sids = ["AC000000000000000000000000c0ffee01"]
auth_tokens = [{ file = "../secrets/twilio-token" }]

[playback]
grant_keys = { k1 = { file = "../secrets/grant-k1" } }

[[route]]
name = "reception"
provider = "twilio"
mode = "fork"
"#;

/// A prepared demonstration.
pub(super) struct Demo {
    config_file: PathBuf,
}

/// What calls and listens.
pub(super) struct Clients {
    pub(super) tls: TlsClient,
    pub(super) endpoint: Endpoint,
}

impl Demo {
    /// Writes the configuration, and makes secrets and keys that are missing.
    pub(super) fn prepare(data: &Path, port: u16) -> Result<Self, Failure> {
        let public = free_port(port)?;
        let ops = free_port(0)?;
        fs::create_dir_all(data.join("tenants")).with_context(|| format!("make {}", data.display()))?;
        let data = fs::canonicalize(data).with_context(|| format!("open {}", data.display()))?;
        let text = node_config(&data, public, ops);
        let config_file = data.join("callseal.toml");
        fs::write(&config_file, text).with_context(|| format!("write {}", config_file.display()))?;
        fs::write(data.join("tenants/acme-dental.toml"), TENANT).context("write the tenant")?;
        keys::init(&config_file)?;
        Ok(Self { config_file })
    }

    /// Reads what was written, as `callseal serve` would.
    pub(super) fn load(&self) -> Result<Config, Failure> {
        Config::load(&self.config_file, process_environment()).map_err(Failure::Config)
    }
}

fn node_config(data: &Path, public: u16, ops: u16) -> String {
    let data_dir = toml::Value::String(data.display().to_string());
    format!(
        r#"# Written by `callseal demo`; `callseal serve --config` takes it as well.
public_url = "wss://localhost:{public}"
node = "demo"
data_dir = {data_dir}

[listen]
public = "127.0.0.1:{public}"
ops = "127.0.0.1:{ops}"

[tls]
self_signed = true

[log]
format = "text"
level = "warn"

[tenants]
dir = "tenants"
"#
    )
}

/// Returns `port` if it is free, else another one.
fn free_port(port: u16) -> Result<u16, std::io::Error> {
    let wanted = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = match wanted {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?,
    };
    Ok(listener.local_addr()?.port())
}

/// Returns clients that trust nothing but the demonstration's own authority.
pub(super) fn clients(config: &Config, server: SocketAddr) -> anyhow::Result<Clients> {
    let Tls::SelfSigned { dir } = &config.tls else { anyhow::bail!("a demonstration makes its certificate") };
    let ca_file = SelfSigned::in_dir(dir).ca_file;
    let root = fs::read(&ca_file).with_context(|| format!("read {}", ca_file.display()))?;
    let tls = TlsClient::new(&root)?;
    Ok(Clients { tls, endpoint: Endpoint::new(server, config.public_url.as_str())? })
}
