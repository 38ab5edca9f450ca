//! What storing costs this process, in CPU time: segments as they come, and the end of a call.
//!
//! ```text
//! store_cost folder DIR                                          [AT-ONCE [CALLS]]
//! store_cost s3 ENDPOINT CA-FILE BUCKET KEY-ID SECRET CHECKSUM   [AT-ONCE [CALLS]]
//! store_cost puts …                                              the same for a store that keeps nothing: puts alone
//! store_cost sink ADDRESS:PORT [CERTIFICATE-FILE]                such a store, over TLS where it is given a file
//! ```
//!
//! The call is the one of the benches: 57.8 s, 12 segments. `AT-ONCE` calls (8) of `CALLS` (40) go on at the same time.
//! `CA-FILE` is `-` where there is none; `CHECKSUM` is `none`, `crc32` or `md5`. Run the store on other cores:
//!
//! ```text
//! taskset -c 0 target/release/examples/store_cost folder /var/tmp/cost
//! ```

#[path = "../benches/shared/call.rs"]
#[allow(dead_code, reason = "shared with the benches, each of which uses a part")]
mod shared;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use callseal::clock;
use callseal::config::{
    AwsCredentials, S3, S3Checksum, S3Claims, S3Encryption, S3ObjectLock, Secret, SecretRef,
};
use callseal::domain::cmr::Row;
use callseal::domain::ids::{RecordingId, TenantId, TenantTag};
use callseal::domain::session::Output;
use callseal::simulate::CallIds;
use callseal::store::folder::Folder;
use callseal::store::s3::S3Store;
use callseal::store::{ObjectClass, Store, Tags, layout};
use callseal::upload::{RetentionTags, RetryPolicy, compact};
use futures_util::{StreamExt, stream};
use md5::{Digest, Md5};
use rustix::time::{ClockId, clock_gettime};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const POLICY: RetryPolicy = RetryPolicy {
    base: Duration::from_millis(100),
    max: Duration::from_secs(1),
    try_timeout: Duration::from_secs(30),
};
/// Of the measurement; longer ones are not worth more.
const MAX_CALLS: usize = 1_000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["sink", address, certificate @ ..] => sink(address, certificate.first().copied()).await,
        ["folder", dir, numbers @ ..] => measure(Arc::new(Folder::open(*dir).await?), numbers, true).await,
        [kind @ ("s3" | "puts"), endpoint, ca_file, bucket, key_id, secret, checksum, numbers @ ..] => {
            let options = options(endpoint, ca_file, bucket, [key_id, secret], checksum)?;
            measure(Arc::new(S3Store::open(&options)?), numbers, *kind == "s3").await
        }
        _ => bail!("usage: see the head of examples/store_cost.rs"),
    }
}

fn options(
    endpoint: &str,
    ca_file: &str,
    bucket: &str,
    keys: [&str; 2],
    checksum: &str,
) -> anyhow::Result<S3> {
    let [access_key_id, secret_access_key] =
        keys.map(|key| SecretRef::fixed(Secret::new(key.as_bytes().to_vec())));
    Ok(S3 {
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".to_owned(),
        bucket: bucket.to_owned(),
        prefix: String::new(),
        path_style: true,
        ca_file: (ca_file != "-").then(|| ca_file.into()),
        credentials: AwsCredentials::Static { access_key_id, secret_access_key, session_token: None },
        claims: S3Claims { tags: true, create_once: true, versions: false, batch_delete: true },
        checksum: match checksum {
            "none" => S3Checksum::None,
            "crc32" => S3Checksum::Crc32,
            "md5" => S3Checksum::Md5,
            _ => bail!("CHECKSUM is none, crc32 or md5"),
        },
        encryption: S3Encryption::None,
        object_lock: S3ObjectLock::None,
        connect_timeout: Duration::from_secs(3),
        attempt_timeout: Duration::from_secs(30),
    })
}

/// A sealed call, as the uploader gets it.
struct Sealed {
    segments: Vec<(Row, Bytes)>,
    manifest: Bytes,
}

impl Sealed {
    fn new() -> Self {
        let call = shared::Call::new(CallIds::new(shared::ACCOUNT, &[1; 16], &[2; 16]));
        let mut recording = shared::Recording::start(&call);
        let mut sealed = Self { segments: Vec::new(), manifest: Bytes::new() };
        for message in &call.media {
            recording.handle_for(message, |output| sealed.take(output));
        }
        recording.finish_for(|output| sealed.take(output));
        sealed
    }

    fn take(&mut self, output: Output) {
        match output {
            Output::Segment(segment) => self.segments.push((segment.row, segment.bytes.into())),
            Output::Finished(manifest) => self.manifest = manifest.bytes.into(),
        }
    }
}

/// One call of the measurement; all have the same bytes under other names.
#[derive(Clone, Copy)]
struct Call {
    tenant: TenantTag,
    recording: RecordingId,
}

impl Call {
    fn tags(self) -> Tags {
        RetentionTags { tenant: self.tenant, days: 365 }.tags(clock::wall())
    }

    async fn put_segments(self, store: &dyn Store, sealed: &Sealed) -> anyhow::Result<()> {
        for (row, bytes) in &sealed.segments {
            let name = layout::segment(self.tenant, self.recording, row.writer, row.seq);
            store.put_new(&name, bytes.clone(), &self.tags()).await?;
        }
        Ok(())
    }

    async fn put_record(self, store: &dyn Store) -> anyhow::Result<()> {
        let name = layout::expiry("2027-01-01", self.tenant, self.recording);
        store.put_new(&name, Bytes::new(), &Tags::of(self.tenant, ObjectClass::Expiry)).await?;
        Ok(())
    }

    async fn end(self, store: &dyn Store, sealed: &Sealed) -> anyhow::Result<()> {
        let name = layout::manifest(self.tenant, self.recording, 0);
        store.put_new(&name, sealed.manifest.clone(), &self.tags()).await?;
        Ok(compact(store, self.tenant, self.recording, &self.tags(), POLICY).await?)
    }
}

async fn measure(store: Arc<dyn Store>, numbers: &[&str], can_read: bool) -> anyhow::Result<()> {
    let number = |at: usize, default: usize| {
        numbers.get(at).map_or(Ok(default), |text| text.parse().context("AT-ONCE and CALLS are numbers"))
    };
    let (at_once, calls) = (number(0, 8)?.clamp(1, MAX_CALLS), number(1, 40)?.clamp(1, MAX_CALLS));
    let sealed = Arc::new(Sealed::new());
    let tenant = "acme-dental".parse::<TenantId>()?.tag();
    let calls: Vec<_> = (0..calls)
        .map(|_| {
            let mut random = [0; 10];
            getrandom::fill(&mut random).map_err(|_| anyhow::anyhow!("the system has no random bytes"))?;
            Ok(Call { tenant, recording: RecordingId::new(clock::wall().0, &random) })
        })
        .collect::<anyhow::Result<_>>()?;
    // Whether a store refuses damaged bytes rules what its puts cost, as it does for a node that probes at its start.
    let probed = layout::expiry("2027-01-01", tenant, RecordingId::new(0, &[0; 10]));
    let refuses_damage = store.refuses_damage(&probed).await?;
    store.delete(&probed).await?;
    announce(&format!("the store refuses damaged bytes: {refuses_damage:?}"));
    let segments = sealed.segments.len();
    let bytes: usize = sealed.segments.iter().map(|(_, bytes)| bytes.len()).sum();
    let what = format!("segment of {} bytes put", bytes / segments);
    timed(&what, &calls, segments, at_once, |call| {
        let (store, sealed) = (Arc::clone(&store), Arc::clone(&sealed));
        async move { call.put_segments(&*store, &sealed).await }
    })
    .await?;
    timed("empty object put", &calls, 1, at_once, |call| {
        let store = Arc::clone(&store);
        async move { call.put_record(&*store).await }
    })
    .await?;
    if !can_read {
        return Ok(());
    }
    timed(&format!("call of {segments} segments ended"), &calls, 1, at_once, |call| {
        let (store, sealed) = (Arc::clone(&store), Arc::clone(&sealed));
        async move { call.end(&*store, &sealed).await }
    })
    .await?;
    for call in calls {
        store.purge(&layout::recording_prefix(call.tenant, call.recording)).await?;
        store.delete(&layout::expiry("2027-01-01", call.tenant, call.recording)).await?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result")]
fn announce(line: &str) {
    println!("{line}");
}

/// Does something for every call and prints what it took, for each of `parts` of a call.
#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
async fn timed<F>(
    what: &str,
    calls: &[Call],
    parts: usize,
    at_once: usize,
    work: impl Fn(Call) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let (cpu, wall) = (cpu_time(), clock::monotonic());
    let mut running =
        stream::iter(calls.iter().map(|call| tokio::spawn(work(*call)))).buffer_unordered(at_once);
    while let Some(done) = running.next().await {
        done??;
    }
    let (cpu, wall) = (cpu_time().saturating_sub(cpu), clock::since(wall));
    let count = (calls.len() * parts) as f64;
    announce(&format!(
        "{what}: {:.0} us of CPU, {:.0} us of time, each of {count}",
        cpu.as_secs_f64() * 1e6 / count,
        wall.as_secs_f64() * 1e6 / count,
    ));
    Ok(())
}

fn cpu_time() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec.try_into().unwrap_or(0))
}

async fn sink(address: &str, certificate_file: Option<&str>) -> anyhow::Result<()> {
    let acceptor = certificate_file.map(make_acceptor).transpose()?;
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    announce(&format!("listening on {}, process {}", listener.local_addr()?, std::process::id()));
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let done = match acceptor {
                None => answer(tcp).await,
                Some(acceptor) => match acceptor.accept(tcp).await {
                    Ok(tls) => answer(tls).await,
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = done {
                eprintln!("{error}");
            }
        });
    }
}

/// Reads requests and says to each whose body is the signed one that all is well, with the ETag that S3 gives a body.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut stream = BufReader::with_capacity(128 * 1024, stream);
    let mut body = Vec::new();
    loop {
        let (mut head, mut length, mut signed) = (String::new(), 0, String::new());
        while !head.ends_with("\r\n\r\n") {
            let start = head.len();
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
            let line = head.get(start..).unwrap_or_default().trim_end();
            match line.split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.parse().map_err(std::io::Error::other)?;
                }
                Some((name, value)) if name.eq_ignore_ascii_case("x-amz-content-sha256") => {
                    value.clone_into(&mut signed)
                }
                _ => {}
            }
        }
        body.resize(length, 0);
        stream.read_exact(&mut body).await?;
        let etag = u128::from_be_bytes(Md5::digest(&body).into());
        let arrived =
            Sha256::digest(&body).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        let said = if arrived == signed {
            format!("HTTP/1.1 200 OK\r\netag: \"{etag:032x}\"\r\ncontent-length: 0\r\n\r\n")
        } else {
            let error = "<Error><Code>XAmzContentSHA256Mismatch</Code></Error>";
            format!("HTTP/1.1 400 Bad\r\ncontent-length: {}\r\n\r\n{error}", error.len())
        };
        stream.write_all(said.as_bytes()).await?;
        stream.flush().await?;
    }
}

fn make_acceptor(certificate_file: &str) -> anyhow::Result<TlsAcceptor> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(certificate_file, made.cert.pem())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
