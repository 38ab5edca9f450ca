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
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use toml::Table;

use crate::process::Process;

const PUBLIC_URL: &str = "wss://localhost:8443";
const ACCOUNT: &str = "AC000000000000000000000000c0ffee01";
const PATH: &str = "/twilio/v1/acme-dental/reception";
/// The tenant's id.
pub(crate) const TENANT: &str = "acme-dental";
/// The file of the agent's certificate.
const AGENT_CA: &str = "agent.pem";
/// How long one look at the ops listener may take.
const OPS_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

const TENANT_FILE: &str = r#"# An invented tenant.
id = "acme-dental"

[retention]
profile = "ring-the-pro"

[limits]
max_streams = 10000
max_starts_per_sec = 1000

[twilio]
account_sids = ["AC000000000000000000000000c0ffee01"]
auth_tokens = [{ file = "../secrets/twilio-token" }]

[[route]]
name = "reception"
provider = "twilio"
mode = "fork"
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
        put("listen", pairs(&[("public", "127.0.0.1:0".into()), ("ops", "127.0.0.1:0".into())]));
        put("tls", pairs(&[("self_signed", true.into())]));
        if self.dir.join(AGENT_CA).exists() {
            put("relay", pairs(&[("ca_file", AGENT_CA.into())]));
        }
        if let Some(store) = store {
            put("store", toml::Value::Table(store));
        }
        fs::write(path, toml::to_string(&file)?).with_context(|| format!("write {}", path.display()))
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
            if self.ops_get("/readyz").await?.0 == 200 {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("the server was not ready within {patience:?}")
    }

    /// Returns the value of a series without labels; 0 when there is none.
    pub(crate) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let (_, page) = self.ops_get("/metrics").await?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map(str::parse).transpose()?.unwrap_or(0.0))
    }

    async fn ops_get(&self, path: &str) -> anyhow::Result<(u16, String)> {
        let asking = async {
            let mut stream = TcpStream::connect(self.ops).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = tokio::time::timeout(OPS_TIMEOUT, asking).await.context("the ops listener hangs")??;
        let (head, body) = answer.split_once("\r\n\r\n").context("the ops listener's answer")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.context("the ops listener's status")?, body.to_owned()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is as good.
        let _killed = self.child.kill().is_ok();
        let _waited = self.child.wait().is_ok();
    }
}
