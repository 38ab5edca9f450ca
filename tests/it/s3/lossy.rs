//! Answers that are lost on the way: the store did what it was asked, and nobody was told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use callseal::config::S3;
use callseal::store::{MIN_PART_BYTES, PutOutcome, Store, StoreError, Tags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use super::servers::{ALL, Server, ceph, name, open};

/// A way to a server on which answers can be lost. Goes with its runtime.
struct Lossy {
    port: u16,
    to_lose: Arc<AtomicUsize>,
}

impl Lossy {
    async fn before(server: &Server) -> Self {
        let upstream = server.value("S3_ENDPOINT").strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let to_lose = Arc::new(AtomicUsize::new(0));
        let losing = Arc::clone(&to_lose);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, TcpStream::connect(upstream.clone()), Arc::clone(&losing)));
            }
        });
        Self { port, to_lose }
    }

    fn leads_to(&self, options: &S3) -> S3 {
        S3 { endpoint: Some(format!("http://127.0.0.1:{}", self.port)), ..options.clone() }
    }

    /// Loses the next answers.
    fn lose(&self, answers: usize) {
        self.to_lose.store(answers, Ordering::SeqCst);
    }

    fn is_lossless(&self) -> bool {
        self.to_lose.load(Ordering::SeqCst) == 0
    }
}

/// Carries bytes both ways until either side ends, or until an answer is lost with its connection.
async fn carry(
    client: TcpStream,
    upstream: impl Future<Output = std::io::Result<TcpStream>>,
    to_lose: Arc<AtomicUsize>,
) {
    let (mut from_server, mut to_server) = upstream.await.unwrap().into_split();
    let (mut from_client, mut to_client) = client.into_split();
    let forth = copy(&mut from_client, &mut to_server);
    let back = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = from_server.read(&mut buffer).await?;
            let is_lost =
                to_lose.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if length == 0 || is_lost.is_ok() {
                return Ok::<(), std::io::Error>(());
            }
            to_client.write_all(&buffer[..length]).await?;
        }
    };
    // Either way both connections end here.
    tokio::select! {
        _ = forth => {}
        _ = back => {}
    }
}

fn some_tags() -> Tags {
    let mut tags = Tags::new();
    tags.insert("callseal-hold", "false").unwrap();
    tags
}

#[tokio::test]
async fn a_put_whose_answer_is_lost_is_known_as_ours() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    let way = Lossy::before(&ceph).await;
    let store = open(&way.leads_to(&options)).await;

    way.lose(1);
    let put = store.put_new(&name("once"), Bytes::from_static(b"mine"), &some_tags()).await.unwrap();
    assert!(way.is_lossless(), "an answer was lost");
    assert_eq!(put, PutOutcome::Created, "the second attempt met the object of the first");
    assert_eq!(store.tags(&name("once")).await.unwrap(), some_tags());

    way.lose(2);
    let put = store.put_new(&name("twice"), Bytes::from_static(b"mine"), &Tags::new()).await;
    assert!(matches!(put, Err(StoreError::Io { .. })), "{put:?}");
    let again = store.put_new(&name("twice"), Bytes::from_static(b"mine"), &Tags::new()).await.unwrap();
    assert_eq!(again, PutOutcome::AlreadyExists, "somebody's, perhaps mine: the caller compares");
    assert_eq!(store.get(&name("twice"), None).await.unwrap().bytes, "mine");
}

#[tokio::test]
async fn an_upload_is_completed_again_after_a_lost_answer() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    let way = Lossy::before(&ceph).await;
    let store = open(&way.leads_to(&options)).await;
    let direct = open(&options).await;

    let mut upload = store.begin_upload(&name("large"), &some_tags()).await.unwrap();
    way.lose(1);
    upload.put_part(Bytes::from(vec![1; MIN_PART_BYTES])).await.unwrap();
    assert!(way.is_lossless(), "an answer was lost");
    upload.put_part(Bytes::from_static(b"end")).await.unwrap();
    // The look before, the completion, and both attempts of everything: more losses than one call survives.
    let mut failures = 0;
    for losses in 1..=6 {
        way.lose(losses);
        match upload.complete().await {
            Ok(outcome) => {
                assert_eq!(outcome, PutOutcome::Created);
                break;
            }
            Err(error) => {
                assert!(matches!(error, StoreError::Io { .. }), "{error:?}");
                failures += 1;
            }
        }
    }
    way.lose(0);
    assert_eq!(upload.complete().await.unwrap(), PutOutcome::Created, "after {failures} failures");
    assert_eq!(direct.head(&name("large")).await.unwrap().size, MIN_PART_BYTES as u64 + 3);
    assert_eq!(
        direct.tags(&name("large")).await.unwrap(),
        some_tags(),
        "tags come although answers were lost"
    );
}

#[tokio::test]
async fn another_upload_of_the_name_is_not_taken_for_ours() {
    let Some(ceph) = ceph() else { return };
    let options = ceph.bucket(ALL).await;
    let store = open(&options).await;
    let mut ours = store.begin_upload(&name("large"), &some_tags()).await.unwrap();
    ours.put_part(Bytes::from_static(b"ours")).await.unwrap();
    let mut theirs = store.begin_upload(&name("large"), &Tags::new()).await.unwrap();
    theirs.put_part(Bytes::from_static(b"theirs")).await.unwrap();
    assert_eq!(theirs.complete().await.unwrap(), PutOutcome::Created);
    assert_eq!(ours.complete().await.unwrap(), PutOutcome::AlreadyExists);
    assert_eq!(ours.complete().await.unwrap(), PutOutcome::AlreadyExists, "also when it is asked again");
    assert_eq!(store.get(&name("large"), None).await.unwrap().bytes, "theirs");
    let uploads = ceph.client().list_multipart_uploads().bucket(&options.bucket).send().await.unwrap();
    assert!(uploads.uploads().is_empty(), "no part is left behind");
}
