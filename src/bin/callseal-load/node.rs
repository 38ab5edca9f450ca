//! The server of a run: its files, its process, its metrics.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use callseal::clock;
use callseal::config::{Config, process_environment};
use callseal::domain::provider::twilio::AccountSid;
use callseal::simulate::{Endpoint, TlsClient};
use serde_json::Value;
use toml::Table;

use crate::ops;
use crate::process::Process;
use crate::sampler::Watched;

const PUBLIC_URL: &str = "wss://localhost:8443";
/// The tenant's Twilio account.
pub(crate) const ACCOUNT: &str = "AC000000000000000000000000c0ffee01";
const PATH: &str = "/twilio/v1/acme-dental/reception";
/// The tenant's id.
pub(crate) const TENANT: &str = "acme-dental";
/// The route of a custom transcriber of Vapi's.
pub(crate) const WORDS: &str = "words";
/// The route of calls of Vapi's that are listened to.
pub(crate) const HEARD: &str = "heard";
/// The route of Vapi's websocket transport.
pub(crate) const LINE: &str = "line";
/// Requests to the admin API that comparisons may make in a second.
const ADMIN_REQUESTS_PER_SEC: i64 = 10_000;
/// Connections that a server of our own holds: calls, and as many that say nothing.
const MAX_CONNECTIONS: i64 = 25_000;
/// The file of the agent's certificate.
const AGENT_CA: &str = "agent.pem";
/// The file of the simulated Vapi's certificate.
const VAPI_CA: &str = "vapi.pem";
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

const TENANT_FILE: &str = r#"# An invented tenant.
id = "acme-dental"

[retention]
profile = "ring-the-pro"

[limits]
max_streams = 20000
max_starts_per_sec = 10000

[twilio]
account_sids = ["AC000000000000000000000000c0ffee01"]
auth_tokens = [{ file = "../secrets/twilio-token" }]

[vapi]
listen_hosts = ["localhost"]
secrets = [{ file = "../secrets/vapi-secret" }]

[tickets]
keys = { t1 = { file = "../secrets/ticket-t1" } }

[playback]
grant_keys = { k1 = { file = "../secrets/grant-k1" } }

[[route]]
name = "reception"
provider = "twilio"
mode = "fork"

[[route]]
name = "words"
provider = "vapi-transcriber"
record_only = true

[[route]]
name = "heard"
provider = "vapi-listen"

[[route]]
name = "line"
provider = "vapi-transport"
"#;

/// The routes that are passed on to an agent.
const AGENT_ROUTE: &str = r#"
[[route]]
name = "agent"
provider = "twilio"
mode = "bidirectional"
[route.upstream]
url = "wss://localhost:PORT/agent"

[[route]]
name = "unrecorded"
provider = "twilio"
mode = "bidirectional"
record = "never"
[route.upstream]
url = "wss://localhost:PORT/agent"
"#;

/// Where calls go.
pub(crate) struct Target {
    pub(crate) endpoint: Endpoint,
    pub(crate) path: String,
    pub(crate) tls: TlsClient,
    pub(crate) account: AccountSid,
    pub(crate) auth_token: Vec<u8>,
}

/// What a server is started with.
#[derive(Clone, Copy)]
pub(crate) struct Launch<'a> {
    /// Where its files go.
    pub(crate) dir: &'a Path,
    /// The program.
    pub(crate) callseal: &'a Path,
    /// A program before it, and its words.
    pub(crate) wrap: &'a [String],
    /// Its `[store]` table; a folder without one.
    pub(crate) store: Option<&'a Table>,
    /// The port and the certificate of an agent, for the routes `agent` and `unrecorded`.
    pub(crate) agent: Option<(u16, &'a str)>,
    /// The certificate of the Vapi that is dialled for the routes [`HEARD`] and [`LINE`].
    pub(crate) vapi: Option<&'a str>,
}

/// The directory of a server.
pub(crate) struct Home {
    dir: PathBuf,
    config: PathBuf,
    direct: PathBuf,
}

impl Home {
    /// Writes configurations, keys and secrets: one for the server, whose store is behind the proxy, and one that
    /// reaches the store directly, to compare.
    pub(crate) fn make(launch: &Launch<'_>, proxy: Option<SocketAddr>) -> anyhow::Result<Self> {
        let given = launch.dir;
        fs::create_dir_all(given.join("tenants")).with_context(|| format!("make {}", given.display()))?;
        let dir = fs::canonicalize(given).with_context(|| format!("open {}", given.display()))?;
        let home = Self { config: dir.join("callseal.toml"), direct: dir.join("direct.toml"), dir };
        let mut tenant = TENANT_FILE.to_owned();
        if let Some((port, certificate)) = launch.agent {
            tenant.push_str(&AGENT_ROUTE.replace("PORT", &port.to_string()));
            fs::write(home.dir.join(AGENT_CA), certificate).context("write the agent's certificate")?;
        }
        if let Some(certificate) = launch.vapi {
            fs::write(home.dir.join(VAPI_CA), certificate).context("write Vapi's certificate")?;
        }
        fs::write(home.dir.join("tenants/acme-dental.toml"), tenant).context("write the tenant")?;
        let mut behind_proxy = launch.store.cloned();
        if let (Some(store), Some(proxy)) = (&mut behind_proxy, proxy) {
            store.insert("endpoint".to_owned(), toml::Value::String(format!("http://{proxy}")));
        }
        home.write(&home.config, behind_proxy)?;
        home.write(&home.direct, launch.store.cloned())?;
        let made =
            Command::new(launch.callseal).args(["keys", "init", "--config"]).arg(&home.config).output();
        let made = made.with_context(|| format!("run {}", launch.callseal.display()))?;
        ensure!(made.status.success(), "keys init: {}", String::from_utf8_lossy(&made.stderr));
        Ok(home)
    }

    fn write(&self, path: &Path, store: Option<Table>) -> anyhow::Result<()> {
        let mut file = Table::new();
        let mut put = |name: &str, value: toml::Value| file.insert(name.to_owned(), value);
        put("public_url", PUBLIC_URL.into());
        put("node", "load".into());
        put("data_dir", self.dir.display().to_string().into());
        let pairs = |pairs: &[(&str, toml::Value)]| {
            toml::Value::Table(
                pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
            )
        };
        let free = || toml::Value::from("127.0.0.1:0");
        put("listen", pairs(&[("public", free()), ("ops", free()), ("admin", free())]));
        put("admin", pairs(&[("requests_per_sec", ADMIN_REQUESTS_PER_SEC.into())]));
        put("ingest", pairs(&[("max_connections", MAX_CONNECTIONS.into())]));
        put("tls", pairs(&[("self_signed", true.into())]));
        if self.dir.join(AGENT_CA).exists() {
            put("relay", pairs(&[("ca_file", AGENT_CA.into())]));
        }
        if self.dir.join(VAPI_CA).exists() {
            put("vapi", pairs(&[("ca_file", VAPI_CA.into()), ("allow_private_hosts", true.into())]));
        }
        if let Some(store) = store {
            put("store", toml::Value::Table(store));
        }
        fs::write(path, toml::to_string(&file)?).with_context(|| format!("write {}", path.display()))
    }

    /// Makes a token of the admin API that may find and play recordings, and make tickets.
    pub(crate) fn make_token(&self, callseal: &Path) -> anyhow::Result<String> {
        let mut command = Command::new(callseal);
        command.args(["token", "create", "--name", "load", "--role", "player", "--role", "ingest"]);
        command.args(["--tenant", TENANT, "--days", "2", "--config"]).arg(&self.config);
        let made = command.output().with_context(|| format!("run {}", callseal.display()))?;
        ensure!(made.status.success(), "token create: {}", String::from_utf8_lossy(&made.stderr));
        Ok(String::from_utf8(made.stdout).context("token create")?.trim_end().to_owned())
    }

    /// Reads the tenant's secret for Vapi.
    pub(crate) fn vapi_secret(&self) -> anyhow::Result<String> {
        let secret =
            fs::read_to_string(self.dir.join("secrets/vapi-secret")).context("read Vapi's secret")?;
        Ok(secret.trim_end().to_owned())
    }

    /// Reads the configuration that reaches the store directly.
    pub(crate) fn direct_config(&self) -> anyhow::Result<Config> {
        Config::load(&self.direct, process_environment()).map_err(|faults| anyhow::anyhow!("{faults}"))
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    public: SocketAddr,
    ops: SocketAddr,
    admin: SocketAddr,
    ca_file: PathBuf,
    token_file: PathBuf,
}

impl Server {
    /// Starts it and waits until it takes calls. Its log goes to `server.log`.
    pub(crate) fn start(launch: &Launch<'_>, home: &Home) -> anyhow::Result<Self> {
        let mut command = match launch.wrap.split_first() {
            Some((wrapper, words)) => {
                let mut command = Command::new(wrapper);
                command.args(words).arg(launch.callseal);
                command
            }
            None => Command::new(launch.callseal),
        };
        command.args(["serve", "--config"]).arg(&home.config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("run {}", launch.callseal.display()))?;
        let stderr = child.stderr.take().context("the server has no standard error")?;
        let log = home.dir.join("server.log");
        let mut log = fs::File::options().create(true).append(true).open(&log).context("open server.log")?;
        let mut lines = BufReader::new(stderr).lines();
        let taking_calls = loop {
            let Some(line) = lines.next().transpose()? else {
                bail!("the server ended at once; see {}", home.dir.join("server.log").display());
            };
            std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes())?;
            let json: Value = serde_json::from_str(&line).unwrap_or_default();
            if json.get("message").is_some_and(|message| message == "taking calls") {
                break json;
            }
        };
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let written = std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes());
                if written.is_err() {
                    return;
                }
            }
        });
        let address = |name: &str| -> anyhow::Result<SocketAddr> {
            taking_calls
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .parse()
                .with_context(|| format!("address {name}"))
        };
        Ok(Self {
            public: address("public")?,
            ops: address("ops")?,
            admin: address("admin")?,
            child,
            ca_file: home.dir.join("tls/ca.pem"),
            token_file: home.dir.join("secrets/twilio-token"),
        })
    }

    pub(crate) fn target(&self) -> anyhow::Result<Target> {
        let ca = fs::read(&self.ca_file).with_context(|| format!("read {}", self.ca_file.display()))?;
        let token = fs::read_to_string(&self.token_file).context("read the auth token")?;
        Ok(Target {
            endpoint: Endpoint::new(self.public, PUBLIC_URL)?,
            path: PATH.to_owned(),
            tls: TlsClient::new(&ca)?,
            account: ACCOUNT.parse().context("account")?,
            auth_token: token.trim_end().as_bytes().to_vec(),
        })
    }

    pub(crate) fn process(&self) -> Process {
        Process::new(self.child.id())
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub(crate) fn watched(&self) -> Watched {
        Watched { process: Some(self.process()), ops: Some(self.ops) }
    }

    /// Asks it to end as a process manager does: no new calls, and an end when the last one is over.
    pub(crate) fn drain(&self) -> anyhow::Result<()> {
        let signalled = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        ensure!(signalled.context("run kill")?.success(), "the server cannot be signalled");
        Ok(())
    }

    /// Whether it answers that it takes calls; `None` when it does not answer at all.
    pub(crate) async fn is_ready(&self) -> Option<bool> {
        ops::get(self.ops, "/readyz").await.ok().map(|(status, _)| status == 200)
    }

    /// Waits until it has ended by itself, and well.
    pub(crate) async fn ended(&mut self, patience: Duration) -> anyhow::Result<()> {
        let began = clock::monotonic();
        while clock::since(began) < patience {
            if let Some(status) = self.child.try_wait().context("wait for the server")? {
                ensure!(status.success(), "the server ended with {status}");
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("the server had not ended after {patience:?}")
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().context("kill the server")?;
        self.child.wait().context("wait for the server")?;
        Ok(())
    }

    /// Stops it as an operator would.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        let signalled = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        ensure!(signalled.context("run kill")?.success(), "the server cannot be signalled");
        let status = self.child.wait().context("wait for the server")?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    pub(crate) async fn wait_until_ready(&self, patience: Duration) -> anyhow::Result<()> {
        let began = clock::monotonic();
        while clock::since(began) < patience {
            if ops::get(self.ops, "/readyz").await?.0 == 200 {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("the server was not ready within {patience:?}")
    }

    /// Returns the sum of all series of a name; 0 when there is none.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(ops::look(self.ops).await?.sum(name).unwrap_or(0.0))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is as good.
        let _killed = self.child.kill().is_ok();
        let _waited = self.child.wait().is_ok();
    }
}
