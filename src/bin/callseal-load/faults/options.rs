//! What is to be broken, when and how.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use callseal::simulate::{Mishap, Weather};
use clap::{Args, ValueEnum};
use toml::Table;

use crate::node::Launch;
use crate::random::SplitMix;
use crate::sheet::Output;

/// The options of `callseal-load faults`.
#[derive(Args)]
pub(crate) struct Faults {
    /// What breaks: none, kill, hook, refuse, hang, delay:MS, trickle:BYTES_PER_SEC, or one of busy, error, error-body,
    /// reset-request, reset-answer, lose-answer, corrupt with the share of requests, such as busy:50.
    #[arg(long, value_name = "FAULT", value_parser = Fault::parse)]
    fault: Fault,
    #[command(flatten)]
    run: FaultRun,
}

/// The options of `callseal-load slow-store`.
#[derive(Args)]
pub(crate) struct SlowStore {
    /// How late the store answers.
    #[arg(long, value_name = "MS", default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    delay_ms: u64,
    #[command(flatten)]
    run: FaultRun,
}

/// The options of `callseal-load store-outage`.
#[derive(Args)]
pub(crate) struct StoreOutage {
    /// What connections to it meet.
    #[arg(long, value_enum, default_value = "refuse")]
    how: Outage,
    #[command(flatten)]
    run: FaultRun,
}

/// The options of `callseal-load kill`.
#[derive(Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    run: FaultRun,
}

/// How a store is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Outage {
    /// Connections are refused
    Refuse,
    /// Connections are taken, and nothing is ever answered
    Hang,
}

/// What is broken, under what name, and around what.
pub(crate) struct Ordered {
    pub(super) scenario: &'static str,
    fault: Fault,
    pub(super) run: FaultRun,
}

impl From<Faults> for Ordered {
    fn from(Faults { fault, run }: Faults) -> Self {
        Self { scenario: "faults", fault, run }
    }
}

impl From<SlowStore> for Ordered {
    fn from(SlowStore { delay_ms, run }: SlowStore) -> Self {
        let fault = Fault::Weather(Weather::Delay(Duration::from_millis(delay_ms)));
        Self { scenario: "slow-store", fault, run }
    }
}

impl From<StoreOutage> for Ordered {
    fn from(StoreOutage { how, run }: StoreOutage) -> Self {
        let weather = match how {
            Outage::Refuse => Weather::Refuse,
            Outage::Hang => Weather::Hang,
        };
        Self { scenario: "store-outage", fault: Fault::Weather(weather), run }
    }
}

impl From<Kill> for Ordered {
    fn from(Kill { run }: Kill) -> Self {
        Self { scenario: "kill", fault: Fault::Kill, run }
    }
}

/// What all of these are told.
#[derive(Args)]
pub(crate) struct FaultRun {
    /// Directory for configuration, keys, journal and a folder store; made if missing.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The server's program.
    #[arg(long, value_name = "FILE")]
    callseal: PathBuf,
    /// TOML file with a table "store" of kind "s3" and an endpoint on loopback; without it the store is a folder, and
    /// only `kill` and `hook` are possible.
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// Calls at the same time, two tracks each.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=5000))]
    calls: u32,
    /// Length of the calls, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=14_400))]
    secs: u64,
    /// Seconds over which the calls begin.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=600))]
    ramp_secs: u64,
    /// When the fault begins, in seconds after the first call; a random moment of the calls unless given.
    #[arg(long)]
    after_secs: Option<u64>,
    /// How long it lasts.
    #[arg(long, default_value_t = 5)]
    fault_secs: u64,
    /// Command that is run when the fault begins; before a kill.
    #[arg(long, value_name = "COMMAND")]
    at_fault: Option<String>,
    /// Command that is run when the fault is over; after a kill, before the new start.
    #[arg(long, value_name = "COMMAND")]
    after_fault: Option<String>,
    /// Words before the server's command line, such as "strace -D -f -qq -o strace.log -e inject=fdatasync:error=EIO:when=9+7",
    /// which lets system calls fail. The process must become the server.
    #[arg(long, value_name = "WORDS")]
    wrap: Option<String>,
    /// How often all of it is done, one after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeat: u32,
    /// Makes ids and random moments repeatable.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long the server may take to catch up, to recover, and to finish its recordings, in seconds.
    #[arg(long, default_value_t = 600)]
    patience_secs: u64,
    /// Declared losses above this fail the run, in milliseconds of all tracks together.
    #[arg(long, default_value_t = 0)]
    max_declared_ms: u64,
    /// A killed server may lose so much of each track, in milliseconds.
    #[arg(long, default_value_t = 60)]
    max_kill_loss_ms: u64,
    /// The server's memory may grow by so much during the fault, in MiB.
    #[arg(long, default_value_t = 64)]
    max_growth_mib: u64,
    #[command(flatten)]
    pub(super) output: Output,
}

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: what the others are compared with.
    None,
    /// The server, with SIGKILL; it is started again.
    Kill,
    /// Whatever the given commands break.
    Hook,
    /// The way to the store.
    Weather(Weather),
}

impl Fault {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number.parse::<u32>().context("no number after the colon")?)),
            None => (text, None),
        };
        let fault = match name {
            "busy" => Mishap::Busy,
            "error" => Mishap::InternalError,
            "error-body" => Mishap::ErrorBody,
            "reset-request" => Mishap::ResetRequest,
            "reset-answer" => Mishap::ResetAnswer,
            "lose-answer" => Mishap::LoseAnswer,
            "corrupt" => Mishap::Corrupt,
            _ => return Self::parse_plain(name, number),
        };
        let percent = number.and_then(|n| u8::try_from(n).ok()).filter(|percent| *percent <= 100);
        let percent =
            percent.with_context(|| format!("{name} needs a share from 0 to 100, such as {name}:50"))?;
        Ok(Self::Weather(Weather::Some { percent, fault }))
    }

    fn parse_plain(name: &str, number: Option<u32>) -> anyhow::Result<Self> {
        Ok(match (name, number) {
            ("none", None) => Self::None,
            ("kill", None) => Self::Kill,
            ("hook", None) => Self::Hook,
            ("refuse", None) => Self::Weather(Weather::Refuse),
            ("hang", None) => Self::Weather(Weather::Hang),
            ("delay", Some(millis)) => Self::Weather(Weather::Delay(Duration::from_millis(millis.into()))),
            ("trickle", Some(bytes_per_sec)) => Self::Weather(Weather::Trickle { bytes_per_sec }),
            _ => bail!("there is no fault {name:?} of this form; see --help"),
        })
    }
}

/// The options, checked.
pub(crate) struct Plan {
    pub(crate) dir: PathBuf,
    pub(crate) callseal: PathBuf,
    pub(crate) wrap: Vec<String>,
    /// The `[store]` table of the server, without its endpoint's proxy.
    pub(crate) store: Option<Table>,
    /// Where that store really is.
    pub(crate) upstream: Option<SocketAddr>,
    pub(crate) fault: Fault,
    pub(crate) calls: u32,
    pub(crate) length: Duration,
    pub(crate) ramp: Duration,
    after: Option<Duration>,
    pub(crate) fault_length: Duration,
    pub(crate) at_fault: Option<String>,
    pub(crate) after_fault: Option<String>,
    pub(crate) repeat: u32,
    pub(crate) seed: u64,
    pub(crate) patience: Duration,
    pub(crate) max_declared_ms: u64,
    pub(crate) max_kill_loss_ms: u64,
    pub(crate) max_growth_mib: u64,
}

impl Ordered {
    pub(super) fn plan(&self) -> anyhow::Result<Plan> {
        self.run.plan(self.fault)
    }
}

impl FaultRun {
    fn plan(&self, fault: Fault) -> anyhow::Result<Plan> {
        let store = self.store.as_ref().map(read_store).transpose()?;
        let upstream = store.as_ref().map(upstream).transpose()?;
        if let (Fault::Weather(_), None) = (fault, upstream) {
            bail!("a folder has no weather: give --store, or a fault of kill or hook");
        }
        let seconds = Duration::from_secs;
        let after = self.after_secs.map(seconds);
        let (length, ramp) = (seconds(self.secs), seconds(self.ramp_secs));
        ensure!(after.is_none_or(|after| after < length), "--after-secs lies behind the end of the calls");
        Ok(Plan {
            dir: self.dir.clone(),
            callseal: self.callseal.clone(),
            wrap: self.wrap.iter().flat_map(|words| words.split_whitespace()).map(str::to_owned).collect(),
            store,
            upstream,
            fault,
            calls: self.calls,
            length,
            ramp,
            after,
            fault_length: seconds(self.fault_secs),
            at_fault: self.at_fault.clone(),
            after_fault: self.after_fault.clone(),
            repeat: self.repeat,
            seed: self.seed,
            patience: seconds(self.patience_secs),
            max_declared_ms: self.max_declared_ms,
            max_kill_loss_ms: self.max_kill_loss_ms,
            max_growth_mib: self.max_growth_mib,
        })
    }
}

impl Plan {
    pub(super) fn launch(&self) -> Launch<'_> {
        Launch {
            dir: &self.dir,
            callseal: &self.callseal,
            wrap: &self.wrap,
            store: self.store.as_ref(),
            agent: None,
            vapi: None,
        }
    }

    /// Returns when the fault of a run begins; a random moment lies between the first 0.3 s and the last 0.1 s.
    pub(super) fn fault_at(&self, run: u32) -> Duration {
        self.after.unwrap_or_else(|| {
            let share = SplitMix(self.seed ^ (u64::from(run) << 32)).share();
            let (first, last) = (0.3, (self.length.as_secs_f64() - 0.1).max(0.3));
            Duration::from_secs_f64(first + share * (last - first))
        })
    }
}

/// Reads the `[store]` table of a file.
pub(crate) fn read_store(path: &PathBuf) -> anyhow::Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let mut file: Table = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    match file.remove("store") {
        Some(toml::Value::Table(store)) => Ok(store),
        _ => bail!("{} has no [store] table", path.display()),
    }
}

/// Finds out where a store is.
pub(crate) fn upstream(store: &Table) -> anyhow::Result<SocketAddr> {
    let endpoint =
        store.get("endpoint").and_then(toml::Value::as_str).context("the store has no endpoint")?;
    let address = endpoint.strip_prefix("http://").context("the store's endpoint must begin with http://")?;
    let address: SocketAddr = address.trim_end_matches('/').parse().context("the store's endpoint")?;
    ensure!(
        address.ip().is_loopback(),
        "{address} is not a loopback address: faults are made on this machine only"
    );
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read() {
        assert_eq!(Fault::parse("kill").unwrap(), Fault::Kill);
        assert_eq!(
            Fault::parse("delay:2000").unwrap(),
            Fault::Weather(Weather::Delay(Duration::from_secs(2)))
        );
        let busy = Weather::Some { percent: 50, fault: Mishap::Busy };
        assert_eq!(Fault::parse("busy:50").unwrap(), Fault::Weather(busy));
        for wrong in ["", "busy", "busy:101", "delay", "kill:3", "rain", "hang:x"] {
            assert!(Fault::parse(wrong).is_err(), "{wrong}");
        }
    }
}
