//! A running `callseal serve`: its logs, its two listeners, signals, and its end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use callseal::simulate::{CallIds, CallPlan, Endpoint, HttpsClient, Pacing, TlsClient, Track};
use serde_json::Value;

use super::{ACCOUNT, AUTH_TOKEN, Home, eventually, eventually_blocking};

/// The ops listener answers at once or not at all.
const OPS_TIMEOUT: Duration = Duration::from_secs(10);

/// One line of standard error.
#[derive(Debug, Clone)]
pub(crate) struct LogLine {
    /// As written.
    pub(crate) text: String,
    /// As read; null for a line that is no JSON.
    pub(crate) json: Value,
}

impl LogLine {
    fn new(text: String) -> Self {
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        Self { text, json }
    }

    /// Returns a field as text; empty when there is none.
    pub(crate) fn field(&self, name: &str) -> &str {
        self.json[name].as_str().unwrap_or_default()
    }
}

/// What the ops listener answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OpsAnswer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// A server as a child process. Dropped, it is killed; then its log must hold no WARN, ERROR or foreign line that
/// [`Server::allow`] has not named.
pub(crate) struct Server {
    child: Child,
    lines: Arc<Mutex<Vec<LogLine>>>,
    reader: Option<JoinHandle<()>>,
    allowed: Vec<String>,
    public_url: String,
    ca_pem: Vec<u8>,
    public: SocketAddr,
    /// Where there is an admin listener.
    admin: Option<SocketAddr>,
    ops: SocketAddr,
}

impl Server {
    /// Starts a server and waits until it takes calls.
    pub(super) fn start(home: &Home, variables: &[(&str, &str)]) -> Self {
        Self::wait_for(home, serve_command(home, &[]).envs(variables.iter().copied()).spawn().unwrap())
    }

    /// As [`Server::start`], under another program.
    pub(super) fn start_under(home: &Home, starter: &[&str]) -> Self {
        Self::wait_for(home, serve_command(home, starter).spawn().unwrap())
    }

    fn wait_for(home: &Home, mut child: Child) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (stderr, collected) = (child.stderr.take().unwrap(), Arc::clone(&lines));
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n') {
                let Ok(line) = line else { return };
                let line = LogLine::new(String::from_utf8_lossy(&line).into_owned());
                collected.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut server = Self {
            child,
            lines,
            reader: Some(reader),
            allowed: Vec::new(),
            public_url: home.public_url().to_owned(),
            ca_pem: Vec::new(),
            public: nowhere,
            admin: None,
            ops: nowhere,
        };
        let taking_calls = eventually_blocking("the server to take calls", || {
            let found = server.find_log("taking calls");
            let exited = server.child.try_wait().unwrap();
            assert!(found.is_some() || exited.is_none(), "ended at once: {:#?}", server.log());
            found
        });
        server.public = taking_calls.field("public").parse().unwrap();
        server.admin = taking_calls.field("admin").parse().ok();
        server.ops = taking_calls.field("ops").parse().unwrap();
        // Missing when the certificate is given by files; then the test names the authority.
        server.ca_pem = std::fs::read(home.data().join("tls/ca.pem")).unwrap_or_default();
        server
    }

    /// Expects WARN or ERROR lines that contain this text; they then fail no test.
    pub(crate) fn allow(&mut self, text: &str) {
        self.allowed.push(text.to_owned());
    }

    /// Returns the address of the public listener.
    pub(crate) fn public(&self) -> SocketAddr {
        self.public
    }

    /// Returns the address of the ops listener.
    pub(crate) fn ops(&self) -> SocketAddr {
        self.ops
    }

    /// Returns the authority that clients trust, PEM.
    pub(crate) fn ca_pem(&self) -> &[u8] {
        &self.ca_pem
    }

    /// Waits until so many recordings are stored; returns the id of the newest of them.
    pub(crate) async fn stored(&self, number: usize) -> String {
        self.wait_log("recording stored", number).await.field("recording").to_owned()
    }

    /// Returns the id of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the public listener under the node's public name.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.public, &self.public_url).unwrap()
    }

    /// Returns a client that trusts the node's certificate.
    pub(crate) fn tls(&self) -> TlsClient {
        TlsClient::new(&self.ca_pem).unwrap()
    }

    /// Returns a client of the public listener.
    pub(crate) fn https(&self) -> HttpsClient {
        HttpsClient::new(&self.tls(), self.endpoint())
    }

    /// Returns a client of the admin listener.
    pub(crate) fn admin(&self) -> HttpsClient {
        let address = self.admin.expect("the setup has an admin listener");
        HttpsClient::new(&self.tls(), Endpoint::new(address, &self.public_url).unwrap())
    }

    /// Plans a call number `number` to `/twilio/v1/{path}`, signed with [`AUTH_TOKEN`], sent as fast as possible.
    pub(crate) fn plan(&self, path: &str, number: u8, caller: Track) -> CallPlan {
        let ids = CallIds::new(ACCOUNT, &[number; 16], &[number; 16]);
        let target = format!("/twilio/v1/{path}");
        let mut plan = CallPlan::new(self.endpoint(), &target, AUTH_TOKEN.as_bytes(), ids, caller);
        plan.pacing = Pacing::AsFastAsPossible;
        plan
    }

    /// Returns all log lines so far.
    pub(crate) fn log(&self) -> Vec<LogLine> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the log lines with this message.
    pub(crate) fn logged(&self, message: &str) -> Vec<LogLine> {
        self.log().into_iter().filter(|line| line.field("message") == message).collect()
    }

    fn find_log(&self, message: &str) -> Option<LogLine> {
        self.logged(message).into_iter().next()
    }

    /// Waits for log line `count` (from 1) with this message.
    pub(crate) async fn wait_log(&self, message: &str, count: usize) -> LogLine {
        let look = || self.logged(message).into_iter().nth(count.checked_sub(1)?);
        eventually(&format!("log line {message:?}, number {count}"), look).await
    }

    /// Asks the ops listener: `GET path` as the plainest HTTP/1.1 client would.
    pub(crate) fn ops_get(&self, path: &str) -> OpsAnswer {
        self.ops_request("GET", path)
    }

    /// As [`Server::ops_get`], with another method.
    pub(crate) fn ops_request(&self, method: &str, path: &str) -> OpsAnswer {
        let mut stream = TcpStream::connect(self.ops).unwrap();
        stream.set_read_timeout(Some(OPS_TIMEOUT)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: ops\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        OpsAnswer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), body: body.to_owned() }
    }

    /// Returns the metrics page.
    pub(crate) fn metrics(&self) -> String {
        self.ops_get("/metrics").body
    }

    /// Returns the value of a series, such as `name` or `name{label="value"}`; 0 when there is none.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let page = self.metrics();
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Sends a signal, such as "TERM".
    pub(crate) fn signal(&self, name: &str) {
        let signal = format!("-{name}");
        let sent = Command::new("kill").args([&signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Returns how the process ended, if it has.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end of the process.
    pub(crate) async fn exit_status(&mut self) -> ExitStatus {
        eventually("the end of the server", || self.child.try_wait().unwrap()).await
    }

    /// Stops at once with SIGINT and expects exit code 0.
    pub(crate) async fn stop(&mut self) {
        self.signal("INT");
        assert!(self.exit_status().await.success());
    }

    /// Kills with SIGKILL, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn unexpected(&self) -> Vec<String> {
        let is_bad = |line: &LogLine| !matches!(line.field("level"), "INFO" | "DEBUG" | "TRACE");
        let is_allowed = |line: &LogLine| self.allowed.iter().any(|allowed| line.text.contains(allowed));
        let bad = self.log().into_iter().filter(|line| is_bad(line) && !is_allowed(line));
        bad.map(|line| line.text).collect()
    }
}

fn serve_command(home: &Home, starter: &[&str]) -> Command {
    let mut command = home.command_under(starter, &["serve"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail when it has ended already, which is as good.
        let _killed = self.child.kill().is_ok();
        let _waited = self.child.wait().is_ok();
        // Its end is the end of the log, which must be complete before it is judged.
        let read_to_end = self.reader.take().is_some_and(|reader| reader.join().is_ok());
        if std::thread::panicking() {
            eprintln!("log of the server:");
            for line in self.log() {
                eprintln!("  {}", line.text);
            }
            return;
        }
        assert!(read_to_end, "the log could not be read");
        let unexpected = self.unexpected();
        assert!(unexpected.is_empty(), "unexpected log lines: {unexpected:#?}");
    }
}
