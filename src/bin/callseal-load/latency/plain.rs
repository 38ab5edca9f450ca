//! A relay that knows nothing: it copies bytes between two TCP sockets. A process of its own, so that it can be put on the
//! same core as the server that is compared with it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use clap::Args;
use tokio::net::{TcpListener, TcpStream};

use crate::process::Process;

/// The scenario's name on the command line; for this program's own use.
const NAME: &str = "plain-relay";

#[derive(Args)]
pub(crate) struct PlainRelay {
    /// Where the bytes go
    #[arg(value_name = "ADDRESS:PORT")]
    to: SocketAddr,
}

/// Relays whoever connects, until standard input ends: then whoever started it is gone. The first line says where.
pub(crate) fn run(options: &PlainRelay) -> anyhow::Result<()> {
    ensure!(options.to.ip().is_loopback(), "{} is not a loopback address", options.to);
    std::thread::spawn(|| {
        // An input that cannot be read has ended as well.
        let _ended = std::io::stdin().read_to_end(&mut Vec::new()).is_ok();
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(relay(options.to))
}

async fn relay(to: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    crate::sheet::print_line(&listener.local_addr()?.to_string())?;
    loop {
        let (mut from, _) = listener.accept().await?;
        tokio::spawn(async move {
            let Ok(mut agent) = TcpStream::connect(to).await else { return };
            if from.set_nodelay(true).is_ok() && agent.set_nodelay(true).is_ok() {
                let _ended = tokio::io::copy_bidirectional(&mut from, &mut agent).await.is_ok();
            }
        });
    }
}

/// A plain relay that was started.
pub(super) struct Running {
    child: Child,
    address: SocketAddr,
}

impl Running {
    /// Starts one behind the words of `wrap`.
    pub(super) fn start(wrap: &[String], to: SocketAddr) -> anyhow::Result<Self> {
        let this = std::env::current_exe().context("find this program")?;
        let mut words = wrap.iter().map(std::ffi::OsString::from).chain([this.into_os_string()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args([NAME, &to.to_string()]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start the plain relay")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("the plain relay has no standard output")?;
        BufReader::new(stdout).read_line(&mut line).context("ask the plain relay where it listens")?;
        let address = line.trim().parse().context("where the plain relay listens")?;
        Ok(Self { child, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn process(&self) -> Process {
        Process::new(self.child.id())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is as good.
        let _killed = self.child.kill().is_ok();
        let _waited = self.child.wait().is_ok();
    }
}
