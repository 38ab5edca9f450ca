//! `callseal top` against a running server, against nobody, against impostors, and in a terminal.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::socket::{greeting, media, stop, stream_id};
use crate::support::{ACCOUNT, Ran, Setup, TENANT};

fn top_with(args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callseal"));
    let command = command.arg("top").args(args).envs(variables.iter().copied()).stdin(Stdio::null());
    let done = command.output().unwrap();
    Ran {
        code: done.status.code(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

fn top(args: &[&str]) -> Ran {
    top_with(args, &[])
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/metrics")
}

/// Answers every connection with the same bytes, until the process ends.
fn impostor(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut request = [0; 1024];
            let _read = stream.read(&mut request).unwrap_or_default();
            stream.write_all(&answer).unwrap_or_default();
        }
    });
    address
}

#[tokio::test]
async fn a_live_call_is_shown_and_nobodys_name() {
    let (home, server) = Setup::new().serve();
    let (mut socket, stream) = (server.open(&format!("{TENANT}/reception")).await, stream_id(1));
    for text in greeting(1) {
        socket.text(text).await;
    }
    for chunk in 1..=50 {
        socket.text(media(&stream, chunk, 0x11)).await;
    }
    socket.settle().await;

    let source = url(server.ops());
    let ran = top(&["--json", "--interval-ms", "500", "--url", &source]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let shown: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&shown["source"], &shown["version"]), (&source.into(), &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(shown["losing_audio"], "no", "{shown:#}");
    assert_eq!(shown["calls"]["live_streams"], 1.0);
    assert_eq!(
        (&shown["calls"]["twilio_streams"], &shown["calls"]["vapi_streams"]),
        (&1.0.into(), &0.0.into())
    );
    assert_eq!(shown["losses"]["audio_overload_bytes"], 0.0);
    assert!(shown["process"]["memory_bytes"].as_f64().unwrap() > 1e6, "{shown:#}");
    assert!(shown["process"]["cpu_cores"].as_f64().unwrap() >= 0.0, "{shown:#}");
    // A server of this version says everything; a quantile is unknown where nothing was measured.
    let unknown = shown.as_object().unwrap().values().filter_map(Value::as_object).flatten();
    for (name, _) in unknown.filter(|(_, value)| value.is_null()) {
        assert!(name.contains("_p99_"), "{name} is unknown: {shown:#}");
    }

    // No terminal is as good as --once; the address may come from the configuration, and the environment from a unit.
    let ops = server.ops().to_string();
    let config = home.config().display().to_string();
    let ran = top_with(&["--interval-ms", "500", "--config", &config], &[("CALLSEAL_LISTEN__OPS", &ops)]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(ran.out.starts_with("losing audio? NO  lost 0 B, unsaved "), "{}", ran.out);
    assert!(
        ran.out.contains("\n  live streams                 1\n    Twilio                     1\n"),
        "{}",
        ran.out
    );
    for name in [TENANT, ACCOUNT, "reception", "+1"] {
        assert!(!ran.out.contains(name) && !shown.to_string().contains(name), "{name}: {}", ran.out);
    }

    socket.text(stop(&stream)).await;
    server.stored(1).await;
    let sealed = server.metric("seal_audio_milliseconds_total");
    assert!((sealed - 1000.0).abs() < 0.5, "{sealed} ms");
    assert!(server.metric("process_cpu_milliseconds_total") > 0.0);
}

#[test]
fn nobody_and_impostors_are_told_apart() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ran = top(&["--once", "--url", &url(free)]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains("nobody answers at 127.0.0.1:"), "{}", ran.err);
    let ok =
        |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 5 << 20]].concat();
    for (answer, wanted) in [
        (ok("go_goroutines 7\n"), "callseal_build_info is missing"),
        (ok("<html>"), "callseal_build_info is missing"),
        (ok("\u{0}\u{1b}[2J"), "callseal_build_info is missing"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(), "404 Not Found"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nshort".to_vec(), "cut off, or larger than 4 MiB"),
        (endless, "cut off, or larger than 4 MiB"),
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "speaks no plain HTTP"),
    ] {
        let start = String::from_utf8_lossy(answer.get(..40.min(answer.len())).unwrap()).into_owned();
        let ran = top(&["--once", "--url", &url(impostor(answer))]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{start}");
        assert!(ran.err.contains(wanted), "{start}: {}", ran.err);
    }
    // It takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let ran = top(&["--once", "--url", &url(silent.local_addr().unwrap())]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("no answer within 3 seconds"), "{}", ran.err);
}

#[test]
fn wrong_arguments_are_named_with_what_is_allowed() {
    for (args, wanted) in [
        (["--url", "https://127.0.0.1:9464"], "allowed: http://HOST:PORT/metrics"),
        (["--url", "http://127.0.0.1"], "needs a port"),
        (["--interval-ms", "499"], "500..=60000"),
        (["--interval-ms", "x"], "--interval-ms"),
    ] {
        let ran = top(&args);
        assert_eq!(ran.code, Some(2), "{args:?}");
        assert!(ran.err.contains(wanted) && ran.err.contains(args[0]), "{}", ran.err);
    }
    assert_eq!(top(&["--url", "http://127.0.0.1:1", "--config", "x"]).code, Some(2));

    let home = Setup::new().write();
    let config = home.config().display().to_string();
    let ran = top_with(&["--once", "--config", &config], &[("CALLSEAL_LISTEN__OPS", "127.0.0.1:0")]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("listen.ops has port 0"), "{}", ran.err);
    let ran = top_with(&["--once", "--config", &config], &[("CALLSEAL_LISTEN__OPS", "10.0.0.1:9464")]);
    assert_eq!(ran.code, Some(64));
    assert!(ran.err.contains("listen.ops (set by CALLSEAL_LISTEN__OPS)"), "{}", ran.err);
    // The keys and tenants that a configuration names are not looked at.
    std::fs::remove_dir_all(home.path().join("secrets")).unwrap();
    let ran = top_with(&["--once", "--config", &config], &[("CALLSEAL_LISTEN__OPS", "127.0.0.1:1")]);
    assert!(ran.err.contains("nobody answers at 127.0.0.1:1"), "{}", ran.err);
}

/// Runs the program in a terminal of its own: nobody answers, then somebody does, then it is told to end.
const IN_A_TERMINAL: &str = r#"
import fcntl, os, pty, select, signal, socket, struct, sys, termios, threading, time
program, how = sys.argv[1:3]
with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
page = b'callseal_build_info{version="7.7.7"} 1\ningest_live_streams 314159\n'
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
before = termios.tcgetattr(slave)
child = os.fork()
if child == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(slave, number)
    os.environ["TERM"] = "xterm-256color"
    os.execv(program, [program, "top", "--interval-ms", "500", "--url", f"http://127.0.0.1:{port}"])
shown = b""
def until(text):
    global shown
    end = time.monotonic() + 20
    while text not in shown:
        assert time.monotonic() < end, (text, shown)
        if select.select([master], [], [], 0.1)[0]:
            shown += os.read(master, 65536)
until(b"answers")
assert termios.tcgetattr(slave) != before, "raw mode"
server = socket.create_server(("127.0.0.1", port))
def answer():
    while True:
        stream, _ = server.accept()
        stream.recv(65536)
        stream.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(page), page))
        stream.close()
threading.Thread(target=answer, daemon=True).start()
until(b"314159")
os.write(master, b"p")
until(b"HELD")
os.write(master, b"p?")
until(b"RUNBOOK")
os.write(master, b" ")
if how == "TERM":
    os.kill(child, signal.SIGTERM)
else:
    os.write(master, how.encode())
until(b"\x1b[?1049l")
until(b"\x1b[?25h")
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert b"\x1b[?1049h" in shown
assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor is back"
assert termios.tcgetattr(slave) == before, "the terminal is as it was"
"#;

#[test]
fn it_waits_for_a_node_and_leaves_the_terminal_as_it_was() {
    let python = std::env::var_os("TEST_PYTHON").unwrap_or_else(|| "python3".into());
    for how in ["q", "\u{3}", "TERM"] {
        let mut command = Command::new(&python);
        let done = command.args(["-c", IN_A_TERMINAL, env!("CARGO_BIN_EXE_callseal"), how]).output().unwrap();
        assert!(done.status.success(), "{how:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}
