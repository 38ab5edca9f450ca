//! The real program as a child process: its files, its commands, its server.
//!
//! A [`Home`] is a temporary directory with a configuration, tenants and keys, made from a [`Setup`]. [`Home::serve`]
//! starts `callseal serve` in it on ports that the system chooses; see [`Server`]. The home outlives a server, so that
//! another one can find what the first has left behind.

#![allow(dead_code, reason = "no set of tests needs every helper")]

#[cfg(target_os = "linux")]
pub(crate) mod memory;
pub(crate) mod server;
pub(crate) mod socket;
pub(crate) mod stalls;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use callseal::clock;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use server::Server;

/// The account of all invented calls.
pub(crate) const ACCOUNT: &str = "AC000000000000000000000000c0ffee01";
/// The tenant that a [`Setup`] begins with.
pub(crate) const TENANT: &str = "acme-dental";
/// The auth token of [`TENANT`].
pub(crate) const AUTH_TOKEN: &str = "f1e2d3c4b5a6978800112233445566aa";
/// The key that grants of [`TENANT`] are signed with.
pub(crate) const GRANT_KEY: &str = "an invented grant key of more than 32 bytes";
/// How long a condition may take. Far more than on an idle machine, so that a busy one fails no test.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(10);

/// Waits until `look` finds something.
///
/// # Panics
/// When it takes longer than 20 seconds; `what` says what was waited for.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = clock::monotonic();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::since(began) < LIMIT, "waited in vain: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// As [`eventually`], for whole threads.
pub(crate) fn eventually_blocking<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = clock::monotonic();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(clock::since(began) < LIMIT, "waited in vain: {what}");
        std::thread::park_timeout(POLL);
    }
}

/// What a tenant's file says. Made by [`TenantSetup::new`]; change what shall differ.
#[derive(Clone)]
pub(crate) struct TenantSetup {
    pub(crate) id: String,
    pub(crate) auth_tokens: Vec<String>,
    /// Ids and values.
    pub(crate) shared_keys: Vec<(String, String)>,
    /// Empty: the tenant has none.
    pub(crate) grant_key: String,
    /// Lines of TOML at the top of the file.
    pub(crate) top: String,
    /// Lines of TOML in its table `limits`.
    pub(crate) limits: String,
    /// Further lines of TOML in its table `twilio`.
    pub(crate) twilio: String,
    /// Lines of TOML in its table `playback`.
    pub(crate) playback: String,
    /// Name, and further lines of TOML, of each route.
    pub(crate) routes: Vec<(String, String)>,
}

impl TenantSetup {
    /// A tenant with [`AUTH_TOKEN`], [`GRANT_KEY`], and the routes `reception` and `default`.
    pub(crate) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            auth_tokens: vec![AUTH_TOKEN.to_owned()],
            shared_keys: Vec::new(),
            grant_key: GRANT_KEY.to_owned(),
            top: String::new(),
            limits: "max_starts_per_sec = 1000".to_owned(),
            twilio: String::new(),
            playback: String::new(),
            routes: vec![("reception".to_owned(), String::new()), ("default".to_owned(), String::new())],
        }
    }

    /// Writes the tenant's file and those of its secrets.
    fn write(&self, home: &Path) {
        let secret = |name: String, value: &str| {
            let path = home.join("secrets").join(format!("{}.{name}", self.id));
            write_private(&path, value);
            format!("{{ file = {:?} }}", path.display().to_string())
        };
        let tokens: Vec<_> = self
            .auth_tokens
            .iter()
            .enumerate()
            .map(|(i, value)| secret(format!("token-{i}"), value))
            .collect();
        let shared: Vec<_> = self
            .shared_keys
            .iter()
            .map(|(id, value)| format!("{id:?} = {}", secret(format!("shared-{id}"), value)))
            .collect();
        let grant_keys = match self.grant_key.as_str() {
            "" => String::new(),
            key => format!("grant_keys = {{ k1 = {} }}", secret("grant-k1".to_owned(), key)),
        };
        let mut text = format!("id = {:?}\n{}\n[limits]\n{}\n[twilio]\n", self.id, self.top, self.limits);
        writeln!(text, "account_sids = [{ACCOUNT:?}]\nauth_tokens = [{}]", tokens.join(", ")).unwrap();
        writeln!(text, "shared_keys = {{ {} }}\n{}", shared.join(", "), self.twilio).unwrap();
        writeln!(text, "[playback]\n{grant_keys}\n{}", self.playback).unwrap();
        for (name, more) in &self.routes {
            let provider = if more.contains("provider = ") { "" } else { "provider = \"twilio\"\n" };
            writeln!(text, "[[route]]\nname = {name:?}\n{provider}{more}").unwrap();
        }
        fs::write(home.join("tenants").join(format!("{}.toml", self.id)), text).unwrap();
    }
}

/// What a node's configuration says. Made by [`Setup::new`]; change what shall differ.
pub(crate) struct Setup {
    public_url: String,
    /// TOML values by section and option; the top's name is empty.
    options: BTreeMap<(String, String), String>,
    tenants: Vec<TenantSetup>,
}

impl Setup {
    /// A node named `wss://media.example.com` with a certificate of its own making and the tenant [`TENANT`].
    pub(crate) fn new() -> Self {
        let mut setup = Self {
            public_url: "wss://media.example.com".to_owned(),
            options: BTreeMap::new(),
            tenants: vec![TenantSetup::new(TENANT)],
        };
        setup.set("listen", "public", "\"127.0.0.1:0\"");
        setup.set("listen", "admin", "\"127.0.0.1:0\"");
        setup.set("listen", "ops", "\"127.0.0.1:0\"");
        setup.set("tls", "self_signed", "true");
        setup
    }

    /// Names the node otherwise.
    pub(crate) fn public_url(mut self, url: &str) -> Self {
        url.clone_into(&mut self.public_url);
        self
    }

    /// Sets an option to a value in TOML; the top's section is "".
    pub(crate) fn option(mut self, section: &str, option: &str, value: &str) -> Self {
        self.set(section, option, value);
        self
    }

    /// Leaves out an option that [`Setup::new`] has set.
    pub(crate) fn without(mut self, section: &str, option: &str) -> Self {
        self.options.remove(&(section.to_owned(), option.to_owned()));
        self
    }

    /// Changes the first tenant.
    pub(crate) fn tenant(mut self, change: impl FnOnce(&mut TenantSetup)) -> Self {
        change(self.tenants.first_mut().unwrap());
        self
    }

    /// Adds a tenant.
    pub(crate) fn add_tenant(mut self, tenant: TenantSetup) -> Self {
        self.tenants.push(tenant);
        self
    }

    fn set(&mut self, section: &str, option: &str, value: &str) {
        self.options.insert((section.to_owned(), option.to_owned()), value.to_owned());
    }

    /// Writes all files in a new directory and makes the keys.
    pub(crate) fn write(self) -> Home {
        let dir = TempDir::new().unwrap();
        for name in ["tenants", "secrets"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let home = Home { dir, public_url: self.public_url.clone(), tenants: self.tenants.clone() };
        for tenant in &self.tenants {
            tenant.write(home.path());
        }
        let data = home.data().display().to_string();
        let mut text = format!("public_url = {:?}\nnode = \"test\"\ndata_dir = {data:?}\n", self.public_url);
        let mut current = "";
        for ((section, option), value) in &self.options {
            if section != current {
                writeln!(text, "[{section}]").unwrap();
                current = section;
            }
            writeln!(text, "{option} = {value}").unwrap();
        }
        fs::write(home.config(), text).unwrap();
        home.run_ok(&["keys", "init"]);
        home
    }

    /// Writes all files and starts the server.
    pub(crate) fn serve(self) -> (Home, Server) {
        let home = self.write();
        let server = home.serve();
        (home, server)
    }
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A directory with a configuration in it.
pub(crate) struct Home {
    dir: TempDir,
    public_url: String,
    tenants: Vec<TenantSetup>,
}

impl Home {
    /// Returns the directory of everything.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the node's file.
    pub(crate) fn config(&self) -> PathBuf {
        self.path().join("callseal.toml")
    }

    /// Returns the directory of everything that the node makes: `store`, `journal`, `tls`, `keyring.json`.
    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Returns the name of the node.
    pub(crate) fn public_url(&self) -> &str {
        &self.public_url
    }

    /// Returns a tenant as it was written first.
    pub(crate) fn tenant(&self, id: &str) -> &TenantSetup {
        self.tenants.iter().find(|tenant| tenant.id == id).unwrap()
    }

    /// Writes a tenant's file anew; a server takes it with SIGHUP.
    pub(crate) fn rewrite_tenant(&self, tenant: &TenantSetup) {
        tenant.write(self.path());
    }

    /// Starts a server and waits until it takes calls.
    pub(crate) fn serve(&self) -> Server {
        self.serve_with(&[])
    }

    /// The same with other variables of the environment.
    pub(crate) fn serve_with(&self, variables: &[(&str, &str)]) -> Server {
        Server::start(self, variables)
    }

    /// Starts a server under another program that starts it with its own arguments; `None` when that program cannot.
    pub(crate) fn serve_under(&self, starter: &[&str]) -> Option<Server> {
        let works = Command::new(starter[0]).args(&starter[1..]).arg("true").output();
        works.is_ok_and(|done| done.status.success()).then(|| Server::start_under(self, starter))
    }

    /// Starts a command and does not wait for its end; what it prints is not kept.
    pub(crate) fn spawn(&self, args: &[&str]) -> std::process::Child {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Writes the configuration of another node on the same store and keyring, with data of its own.
    pub(crate) fn sibling(&self, node: &str) -> Self {
        let home = Self {
            dir: TempDir::new().unwrap(),
            public_url: self.public_url.clone(),
            tenants: self.tenants.clone(),
        };
        for name in ["tenants", "secrets"] {
            fs::create_dir(home.path().join(name)).unwrap();
        }
        for tenant in &self.tenants {
            tenant.write(home.path());
        }
        let (own, its) = (self.data().display().to_string(), home.data().display().to_string());
        let config = fs::read_to_string(self.config()).unwrap();
        let config = config.replace("node = \"test\"", &format!("node = {node:?}")).replace(&own, &its);
        let (store, ring) = (format!("{own}/store"), format!("{own}/keyring.json"));
        let keys = format!("[keys]\nkeyring_file = {ring:?}");
        let config = if config.contains("[keys]") {
            config.replace("[keys]", &keys)
        } else {
            format!("{config}{keys}\n")
        };
        fs::write(home.config(), format!("{config}[store]\npath = {store:?}\n")).unwrap();
        home
    }

    /// Runs a command under another program.
    pub(crate) fn run_under(&self, starter: &[&str], args: &[&str]) -> Ran {
        Self::ran(self.command_under(starter, args).output().unwrap())
    }

    /// Runs a command of the program with `--config` at its end.
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Self::ran(self.command(args).output().unwrap())
    }

    fn ran(done: Output) -> Ran {
        Ran {
            code: done.status.code(),
            out: String::from_utf8(done.stdout).unwrap(),
            err: String::from_utf8(done.stderr).unwrap(),
        }
    }

    /// Runs a command with other variables of the environment.
    pub(crate) fn run_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Ran {
        Self::ran(self.command(args).envs(variables.iter().copied()).output().unwrap())
    }

    /// Runs a command that reads from stdin.
    pub(crate) fn run_with_input(&self, args: &[&str], input: &str) -> Ran {
        let piped = Stdio::piped;
        let mut command = self.command(args);
        let mut child = command.stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Self::ran(child.wait_with_output().unwrap())
    }

    /// Runs a command that must succeed; answers its output.
    pub(crate) fn run_ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "callseal {args:?}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// Runs a command whose output is one JSON object a line.
    pub(crate) fn run_json(&self, args: &[&str]) -> Vec<Value> {
        self.run_ok(args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns a command of the program, to be run in another way.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_under(&[], args)
    }

    fn command_under(&self, starter: &[&str], args: &[&str]) -> Command {
        let mut words = starter.iter().copied().chain([env!("CARGO_BIN_EXE_callseal")]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(args).arg("--config").arg(self.config()).current_dir(self.path());
        command
    }

    /// Returns the ids of a tenant's recordings, oldest first.
    pub(crate) fn recordings(&self, tenant: &str) -> Vec<String> {
        let listed = self.run_json(&["recordings", "list", "--tenant", tenant, "--json"]);
        listed.iter().map(|recording| recording["recording"].as_str().unwrap().to_owned()).collect()
    }

    /// Returns what is known of a recording.
    pub(crate) fn show(&self, tenant: &str, recording: &str) -> Value {
        let args = ["recordings", "show", "--tenant", tenant, "--recording", recording, "--json"];
        self.run_json(&args).remove(0)
    }

    /// Waits until the manifest of a recording is stored; answers what is known of it.
    pub(crate) async fn finished(&self, tenant: &str, recording: &str) -> Value {
        let look = || {
            let args = ["recordings", "show", "--tenant", tenant, "--recording", recording, "--json"];
            let ran = self.run(&args);
            let shown: Value = serde_json::from_str(&ran.out).ok()?;
            (shown["state"] != "receiving").then_some(shown)
        };
        eventually("a finished recording", look).await
    }

    /// Verifies a recording; answers what the command says.
    pub(crate) fn verify(&self, tenant: &str, recording: &str) -> Value {
        self.run_json(&["verify", "--tenant", tenant, "--recording", recording, "--json"]).remove(0)
    }

    /// Decrypts one track as μ-law; answers the audio without the WAV header, gaps filled with silence (0xff).
    pub(crate) fn open_ulaw(&self, tenant: &str, recording: &str, track: &str) -> Vec<u8> {
        self.open_as(tenant, recording, track, "ulaw")
    }

    /// The same in a format that the command knows.
    pub(crate) fn open_as(&self, tenant: &str, recording: &str, track: &str, format: &str) -> Vec<u8> {
        let out = self.path().join(format!("{recording}.{track}.wav"));
        let name = out.display().to_string();
        let target = ["open", "--tenant", tenant, "--recording", recording, "--out", &name];
        self.run_ok(&[&target[..], &["--format", format, "--track", track]].concat());
        let wav = fs::read(out).unwrap();
        let at = wav.windows(4).position(|name| name == b"data").unwrap();
        let size = u32::from_le_bytes(wav[at + 4..at + 8].try_into().unwrap());
        wav[at + 8..][..usize::try_from(size).unwrap()].to_vec()
    }

    /// Makes a link to a recording; answers what stands behind the name of the node: path and query.
    pub(crate) fn grant(&self, tenant: &str, recording: &str, more: &[&str]) -> String {
        let target = ["grant", "--tenant", tenant, "--recording", recording];
        let url = self.run_ok(&[&target[..], more].concat());
        let at = url.find("/play/").unwrap();
        url[at..].trim().to_owned()
    }
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, text: &str) {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Returns every file below a directory with its content.
pub(crate) fn files_below(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if let Ok(content) = fs::read(&path) {
            files.push((path, content));
        }
    }
    files
}
