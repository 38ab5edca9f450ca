//! What becomes of the answers that no server here can be made to give: an invented one gives them. Needs nothing else.

use std::error::Error;
use std::fmt::Write;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use callseal::clock;
use callseal::config::{S3, S3Checksum, S3Encryption, S3ObjectLock};
use callseal::store::{PutOutcome, Store, StoreError, Tags};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::servers::{ALL, keys, name, open};

/// One answer: status, further headers, body.
type Answer = (u16, Vec<(&'static str, String)>, String);
/// Answers a request by its method; nothing means that there will never be an answer.
type Script = fn(&str) -> Option<Answer>;

/// A server that answers by a script and keeps the heads of all requests.
struct Scripted {
    options: S3,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, script, Arc::clone(&kept)));
            }
        });
        let options = S3 {
            endpoint: Some(format!("http://127.0.0.1:{port}/base")),
            region: "anywhere-1".to_owned(),
            bucket: "calls".to_owned(),
            prefix: "p/".to_owned(),
            path_style: true,
            ca_file: None,
            credentials: keys("id", "secret"),
            claims: ALL,
            checksum: S3Checksum::None,
            encryption: S3Encryption::None,
            object_lock: S3ObjectLock::None,
            connect_timeout: Duration::from_secs(3),
            attempt_timeout: Duration::from_secs(20),
        };
        Self { options, heads }
    }

    /// Returns the first lines of the requests so far.
    fn requests(&self) -> Vec<String> {
        self.heads.lock().unwrap().iter().map(|head| head.lines().next().unwrap().to_owned()).collect()
    }

    fn head(&self, number: usize) -> String {
        self.heads.lock().unwrap()[number].to_lowercase()
    }
}

/// Answers one request and closes.
async fn answer(stream: TcpStream, script: Script, heads: Arc<Mutex<Vec<String>>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let length = head.lines().find_map(|line| {
        let (header, value) = line.split_once(": ")?;
        header.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    let method = head.split(' ').next().unwrap().to_owned();
    heads.lock().unwrap().push(head);
    let Some((status, headers, text)) = script(&method) else {
        return std::future::pending().await;
    };
    let mut said =
        format!("HTTP/1.1 {status} Whatever\r\nconnection: close\r\ncontent-length: {}\r\n", text.len());
    for (header, value) in headers {
        write!(said, "{header}: {value}\r\n").unwrap();
    }
    let end = if method == "HEAD" { String::new() } else { text };
    stream.write_all(format!("{said}\r\n{end}").as_bytes()).await
}

/// An error as S3 writes it.
fn refusal(status: u16, code: &str) -> Option<Answer> {
    let text = format!("<Error><Code>{code}</Code><Message>secret words</Message></Error>");
    Some((status, vec![("x-amz-request-id", "tx7".to_owned())], text))
}

async fn put(server: &Scripted) -> Result<PutOutcome, StoreError> {
    let mut tags = Tags::new();
    tags.insert("callseal-hold", "false").unwrap();
    open(&server.options).await.put_new(&name("a/b"), Bytes::from_static(b"sealed"), &tags).await
}

#[tokio::test]
async fn a_put_asks_for_all_it_needs_at_once() {
    let server = Scripted::start(|_| Some((200, Vec::new(), String::new()))).await;
    assert_eq!(put(&server).await.unwrap(), PutOutcome::Created);
    assert_eq!(server.requests().len(), 1);
    let head = server.head(0);
    assert!(head.starts_with("put /base/calls/p/a/b"), "{head}");
    for header in ["if-none-match: *", "x-amz-tagging: callseal-hold=false", "x-amz-meta-callseal-put: "] {
        assert!(head.contains(header), "{header} is missing in {head}");
    }
    // The SHA-256 of the body is signed: no checksum header, and no framing that a store might keep.
    assert!(head.contains("x-amz-content-sha256: ") && !head.contains("unsigned-payload"), "{head}");
    for header in ["x-amz-checksum", "aws-chunked", "if-match", "x-amz-trailer"] {
        assert!(!head.contains(header), "{header} is in {head}");
    }
}

#[tokio::test]
async fn a_busy_store_says_how_long() {
    let server = Scripted::start(|_| {
        let (_, mut headers, text) = refusal(503, "SlowDown")?;
        headers.push(("retry-after", "7".to_owned()));
        Some((503, headers, text))
    })
    .await;
    let busy = put(&server).await.unwrap_err();
    assert!(
        matches!(busy, StoreError::Busy { retry_after: Some(wait) } if wait == Duration::from_secs(7)),
        "{busy:?}"
    );
    assert_eq!(server.requests().len(), 2, "the client itself tries twice");
}

#[tokio::test]
async fn errors_of_the_wire_are_sorted_and_say_little() {
    let cases: [(Script, &str, &str); 6] = [
        (|_| refusal(409, "ConditionalRequestConflict"), "busy", ""),
        (|_| refusal(429, "Whatever"), "busy", ""),
        (|_| refusal(507, "InsufficientStorage"), "full", "507"),
        (|_| refusal(403, "RequestTimeTooSkewed"), "denied", "clocks"),
        (|_| refusal(400, "ExpiredToken"), "denied", "expired"),
        (|_| refusal(500, "InternalError"), "io", "500"),
    ];
    for (script, label, part) in cases {
        let server = Scripted::start(script).await;
        let error = put(&server).await.unwrap_err();
        assert_eq!(error.label(), label, "{error:?}");
        let text = error.source().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains(part), "{text}");
        for hidden in ["secret words", "127.0.0.1", "http:"] {
            assert!(!format!("{error:?}").contains(hidden), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up() {
    let mut server = Scripted::start(|_| None).await;
    server.options.attempt_timeout = Duration::from_millis(300);
    let began = clock::monotonic();
    let error = put(&server).await.unwrap_err();
    let StoreError::Io { source, .. } = &error else { panic!("{error:?}") };
    assert_eq!(source.kind(), io::ErrorKind::TimedOut);
    assert!(clock::since(began) < Duration::from_secs(15), "attempts end");
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn bytes_that_the_store_changed_are_found_and_deleted() {
    let server = Scripted::start(|method| {
        let etag = ("etag", "\"0123456789abcdef0123456789abcdef\"".to_owned());
        match method {
            "PUT" => Some((200, vec![etag], String::new())),
            "GET" => Some((200, vec![etag], "spoilt".to_owned())),
            _ => Some((204, Vec::new(), String::new())),
        }
    })
    .await;
    let error = put(&server).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    let methods: Vec<_> =
        server.requests().iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(methods, ["PUT", "GET", "DELETE"]);
}

#[tokio::test]
async fn etags_that_only_look_like_digests_accuse_nobody() {
    let server = Scripted::start(|method| {
        let etag = ("etag", "\"0123456789abcdef0123456789abcdef\"".to_owned());
        let body = if method == "GET" { "sealed" } else { "" };
        Some((200, vec![etag], body.to_owned()))
    })
    .await;
    let store = open(&server.options).await;
    for text in ["one", "two"] {
        let put = store.put_new(&name(text), Bytes::from_static(b"sealed"), &Tags::new()).await.unwrap();
        assert_eq!(put, PutOutcome::Created);
    }
    let gets = server.requests().iter().filter(|line| line.starts_with("GET")).count();
    assert_eq!(gets, 1, "once is enough to know such a store");
}

#[tokio::test]
async fn a_store_that_refuses_damaged_bytes_needs_no_comparison() {
    static PUTS: AtomicU32 = AtomicU32::new(0);
    let server = Scripted::start(|_| match PUTS.fetch_add(1, Ordering::Relaxed) {
        0 => refusal(400, "XAmzContentSHA256Mismatch"),
        _ => wrong_etag(),
    })
    .await;
    let store = open(&server.options).await;
    assert_eq!(store.refuses_damage(&name("damaged")).await.unwrap(), Some(true));
    let put = store.put_new(&name("a"), Bytes::from_static(b"sealed"), &Tags::new()).await.unwrap();
    assert_eq!((put, server.requests().len()), (PutOutcome::Created, 2), "its ETag is not looked at");
}

#[tokio::test]
async fn a_store_that_takes_damaged_bytes_is_compared_with() {
    let server = Scripted::start(|_| wrong_etag()).await;
    let store = open(&server.options).await;
    assert_eq!(store.refuses_damage(&name("damaged")).await.unwrap(), Some(false));
    store.put_new(&name("a"), Bytes::from_static(b"sealed"), &Tags::new()).await.unwrap_err();
    assert!(server.requests().iter().any(|line| line.starts_with("GET")), "it is read back");
}

#[tokio::test]
async fn a_denial_says_nothing_about_damaged_bytes() {
    let server = Scripted::start(|_| refusal(403, "AccessDenied")).await;
    let asked = open(&server.options).await.refuses_damage(&name("damaged")).await;
    assert!(matches!(asked, Err(StoreError::Denied { .. })), "{asked:?}");
}

fn wrong_etag() -> Option<Answer> {
    Some((200, vec![("etag", "\"0123456789abcdef0123456789abcdef\"".to_owned())], String::new()))
}

#[tokio::test]
async fn a_store_without_batches_is_asked_once_for_each() {
    let server = Scripted::start(|method| match method {
        "POST" => refusal(400, "MissingContentMD5"),
        _ => Some((204, Vec::new(), String::new())),
    })
    .await;
    let store = open(&server.options).await;
    for _ in 0..2 {
        store.delete_all(&[name("a"), name("b"), name("c")]).await.unwrap();
    }
    let posts = server.requests().iter().filter(|line| line.starts_with("POST")).count();
    let deletes = server.requests().iter().filter(|line| line.starts_with("DELETE")).count();
    assert_eq!((posts, deletes), (1, 6), "the refusal is remembered");
}
