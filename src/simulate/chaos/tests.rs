//! Each kind of weather against a server that answers what it was sent.

use super::*;

/// Serves an echo, one connection after the other.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = service_fn(|request: Request<Incoming>| async {
                let host = request.headers()["host"].clone();
                let body = collect(request.into_body()).await?;
                let answer = Response::builder().header("x-host", host).body(Full::new(body));
                Ok::<_, io::Error>(answer.unwrap())
            });
            tokio::spawn(server::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    address
}

async fn ask(chaos: &Chaos, body: &'static str) -> io::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(chaos.address()).await?;
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let request = Request::put("/bucket/object").header("host", "store.example");
    let answer = sender.send_request(request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap());
    let answer = answer.await.map_err(io::Error::other)?;
    assert!(answer.headers().get("x-host").is_none_or(|host| host == "store.example"));
    let status = answer.status();
    Ok((status, collect(answer.into_body()).await?))
}

#[tokio::test]
async fn fair_weather_passes_everything_and_counts_it() {
    let chaos = Chaos::start(echo().await).await.unwrap();
    assert_eq!(ask(&chaos, "sealed").await.unwrap(), (StatusCode::OK, Bytes::from_static(b"sealed")));
    let passed = chaos.passed();
    assert_eq!((passed.requests, passed.writes, passed.sent_bytes, passed.mishaps), (1, 1, 6, 0));
}

#[tokio::test]
async fn a_refusing_store_comes_back_on_its_port() {
    let chaos = Chaos::start(echo().await).await.unwrap();
    chaos.set(Weather::Refuse);
    while ask(&chaos, "x").await.is_ok() {
        tokio::task::yield_now().await;
    }
    let refused = ask(&chaos, "x").await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    chaos.set(Weather::Fair);
    while ask(&chaos, "x").await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_hanging_request_ends_unanswered_when_the_weather_changes() {
    let chaos = Arc::new(Chaos::start(echo().await).await.unwrap());
    chaos.set(Weather::Hang);
    let asking = tokio::spawn({
        let chaos = Arc::clone(&chaos);
        async move { ask(&chaos, "x").await }
    });
    while chaos.passed().mishaps == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!asking.is_finished());
    chaos.set(Weather::Fair);
    assert!(asking.await.unwrap().is_err());
    assert!(ask(&chaos, "x").await.is_ok());
}

#[tokio::test]
async fn every_mishap_is_what_it_says() {
    let chaos = Chaos::start(echo().await).await.unwrap();
    let with = |fault| {
        chaos.set(Weather::Some { percent: 100, fault });
        ask(&chaos, "sealed audio")
    };
    assert_eq!(with(Mishap::Busy).await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(with(Mishap::InternalError).await.unwrap().0, StatusCode::INTERNAL_SERVER_ERROR);
    let (status, body) = with(Mishap::ErrorBody).await.unwrap();
    assert!(status == StatusCode::OK && body.starts_with(b"<?xml"));
    assert_eq!(chaos.passed().requests, 0, "none of these reached the store");
    with(Mishap::ResetRequest).await.unwrap_err();
    with(Mishap::ResetAnswer).await.unwrap_err();
    with(Mishap::LoseAnswer).await.unwrap_err();
    let (_, body) = with(Mishap::Corrupt).await.unwrap();
    assert!(body.len() == 12 && body != "sealed audio");
    assert_eq!((chaos.passed().requests, chaos.passed().mishaps), (3, 7));
}

#[tokio::test]
async fn half_of_the_requests_go_wrong() {
    let chaos = Chaos::start(echo().await).await.unwrap();
    chaos.set(Weather::Some { percent: 50, fault: Mishap::Busy });
    let mut refused = 0;
    for _ in 0..100 {
        refused += usize::from(ask(&chaos, "x").await.unwrap().0 == StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(refused, 50);
}

#[tokio::test]
async fn a_slow_network_takes_its_time() {
    let chaos = Chaos::start(echo().await).await.unwrap();
    chaos.set(Weather::Delay(Duration::from_millis(120)));
    let began = tokio::time::Instant::now();
    ask(&chaos, "x").await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(120));
    chaos.set(Weather::Trickle { bytes_per_sec: 100 });
    let began = tokio::time::Instant::now();
    ask(&chaos, "six by").await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(120), "six bytes there and six back");
}
