#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const MARKER: &str = "SECRET-MARKER";

fn property(base_url: &str) -> Property {
    Property {
        takes: Takes::default(),
        measurement_id: "G-TEST".into(),
        api_secret: Some(Secret::new(MARKER.into())),
        base_url: base_url.into(),
        path: "/mp/collect".into(),
        preview: None,
    }
}

const fn travel(timeout_ms: u64) -> Travel {
    Travel { timeout: Duration::from_millis(timeout_ms), most: 4, streams: 4, h2c: false }
}

fn sender(base_url: &str, timeout_ms: u64) -> Sender {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Sender::new(&[property(base_url)], travel(timeout_ms)).unwrap()
}

/// A receiver that reads a request and answers these bytes; `None`: closes without an answer; gives what it read.
async fn receiver(answer: Option<&'static str>) -> (SocketAddr, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"{}") {
            let mut buffer = [0; 4_096];
            let count = stream.read(&mut buffer).await.unwrap();
            read.extend_from_slice(&buffer[..count]);
        }
        if let Some(answer) = answer {
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
        String::from_utf8(read).unwrap()
    });
    (address, task)
}

/// A connection over which a request has come.
async fn asked(listener: &TcpListener) -> tokio::net::TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"{}") {
        read.push(stream.read_u8().await.unwrap());
    }
    stream
}

async fn outcome(answer: Option<&'static str>) -> Outcome {
    let (address, _) = receiver(answer).await;
    sender(&format!("http://{address}"), 2_000).send(0, "{}".into()).await
}

#[tokio::test]
async fn each_answer_has_its_outcome() {
    let answered = |status| format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").leak();
    for status in [200, 204, 299] {
        assert_eq!(outcome(Some(answered(status))).await, Outcome::Sent, "{status}");
    }
    for status in [408, 429, 500, 503, 599] {
        assert_eq!(outcome(Some(answered(status))).await, Outcome::Trouble(status), "{status}");
    }
    for status in [301, 307, 400, 404, 413] {
        assert_eq!(outcome(Some(answered(status))).await, Outcome::Refused(status), "{status}");
    }
    assert!(matches!(outcome(None).await, Outcome::Uncertain(_)), "closed");
    assert!(matches!(outcome(Some("HTTP/1.1 20")).await, Outcome::Uncertain(_)), "half an answer");
    for broken in ["content-length: 9\r\n\r\nx", "transfer-encoding: chunked\r\n\r\nx"] {
        let answer = format!("HTTP/1.1 200 X\r\n{broken}").leak();
        assert_eq!(outcome(Some(answer)).await, Outcome::Sent, "what follows the status changes nothing");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_end_is_one_all_the_same() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("http://{}", listener.local_addr().unwrap()), 700);
    let answering = async {
        let mut stream = asked(&listener).await;
        stream.write_all(b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nx").await.unwrap();
        stream
    };
    assert_eq!(tokio::join!(sender.send(0, "{}".into()), answering).0, Outcome::Sent);
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_leaves_it_uncertain() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    assert!(matches!(sender(&base, 300).send(0, "{}".into()).await, Outcome::Uncertain(_)));
}

#[tokio::test]
async fn a_receiver_that_is_not_there_was_certainly_not_sent_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert!(matches!(
        sender(&format!("http://{address}"), 300).send(0, "{}".into()).await,
        Outcome::NotSent(_)
    ));
    assert!(matches!(
        sender("http://no-such-host.invalid", 2_000).send(0, "{}".into()).await,
        Outcome::NotSent(_)
    ));
}

/// A listener whose queue of connections is full: the kernel leaves further ones without an answer.
#[tokio::test]
async fn a_connection_that_is_never_made_is_not_taken_for_a_missing_answer() {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut full = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(200), tokio::net::TcpStream::connect(address)).await
    {
        full.push(stream);
    }
    let outcome = sender(&format!("http://{address}"), 600).send(0, "{}".into()).await;
    assert!(matches!(outcome, Outcome::NotSent(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_request_goes_to_the_path_with_id_and_secret() {
    for (base, path) in [("", "/mp/collect"), ("/", "/mp/collect"), ("/own/collect", "/own/collect")] {
        let (address, read) = receiver(Some("HTTP/1.1 204 X\r\n\r\n")).await;
        let sent = sender(&format!("http://{address}{base}"), 2_000).send(0, "{}".into()).await;
        assert_eq!(sent, Outcome::Sent);
        let read = read.await.unwrap();
        let line = format!("POST {path}?measurement_id=G-TEST&api_secret={MARKER} HTTP/1.1");
        assert_eq!(read.lines().next().unwrap(), line);
        assert!(read.to_ascii_lowercase().contains("content-type: application/json"));
    }
}

#[tokio::test]
async fn the_secret_shows_nowhere() {
    let closed = outcome(None).await;
    let refused = sender("http://127.0.0.1:1", 300).send(0, "{}".into()).await;
    let unknown = sender("http://no-such-host.invalid", 300).send(0, "{}".into()).await;
    let tls = {
        let (address, _) = receiver(Some("no TLS")).await;
        sender(&format!("https://{address}"), 300).send(0, "{}".into()).await
    };
    let bad = Sender::new(&[property("not a url")], travel(1_000)).unwrap_err();
    let property = property("http://127.0.0.1");
    let shown = format!(
        "{closed:?} {refused:?} {unknown:?} {tls:?} {bad} {bad:?} {property:?} {:?} {:?}",
        sender("http://127.0.0.1", 300),
        property.shown()
    );
    assert!(!shown.contains(MARKER), "{shown}");
    assert_eq!(property.shown().unwrap(), "http://127.0.0.1/mp/collect?measurement_id=G-TEST");
}

/// A receiver that speaks HTTP/2 without TLS, lets one request of a connection run at a time, and takes its time for each.
async fn one_at_a_time() -> SocketAddr {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(async |_| {
                tokio::time::sleep(Duration::from_millis(400)).await;
                Ok::<axum::response::Response, std::convert::Infallible>(axum::response::Response::default())
            });
            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.max_concurrent_streams(1);
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// What waits for its turn on a connection waits before its time begins: it is not taken for one that was not answered.
#[tokio::test]
async fn no_more_is_under_way_on_a_connection_than_it_carries() {
    let base = format!("http://{}", one_at_a_time().await);
    for (streams, all_sent) in [(1, true), (6, false)] {
        let travel = Travel { h2c: true, most: 6, streams, ..travel(1_000) };
        let sender = Sender::new(&[property(&base)], travel).unwrap();
        let sent = futures_util::future::join_all((0..6).map(|_| sender.send(0, "{}".into()))).await;
        assert_eq!(sent.iter().all(|outcome| *outcome == Outcome::Sent), all_sent, "{sent:?}");
        let unsent = sent.iter().any(|outcome| matches!(outcome, Outcome::NotSent(_)));
        assert_eq!(unsent, !all_sent, "what never had its turn was not sent: {sent:?}");
    }
}

#[tokio::test]
async fn an_answer_with_a_body_keeps_its_connection_and_a_preview_has_its_header() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let receiver = tokio::spawn(async move {
        // One connection is all there is.
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut texts = Vec::new();
        for _ in 0..3 {
            let mut read = Vec::new();
            while !read.ends_with(b"{}") {
                let mut buffer = [0; 4_096];
                let count = stream.read(&mut buffer).await.unwrap();
                assert!(count > 0, "closed");
                read.extend_from_slice(&buffer[..count]);
            }
            texts.push(String::from_utf8(read).unwrap().to_ascii_lowercase());
            stream.write_all(b"HTTP/1.1 200 X\r\ncontent-length: 20000\r\n\r\n").await.unwrap();
            stream.write_all(&[b'x'; 20_000]).await.unwrap();
        }
        texts
    });
    let preview = Some(Secret::new("ZW52-MARKER".into()));
    let sender = Sender::new(&[Property { preview, ..property(&base) }], travel(2_000)).unwrap();
    for _ in 0..3 {
        assert_eq!(sender.send(0, "{}".into()).await, Outcome::Sent);
    }
    assert!(receiver.await.unwrap()[0].contains("x-gtm-server-preview: zw52-marker"));
    assert!(!format!("{sender:?}").contains("MARKER"));
}

/// What a receiver that speaks HTTP/2 without TLS does with a request.
#[derive(Clone, Copy)]
enum Does {
    Answers,
    Refuses,
    Hangs,
    /// Answers, and closes the connection.
    Leaves,
}

/// Such a receiver; gets the numbers of the connection and of the request, both from 0. Gives how many connections there were.
async fn receiver_of_http2(
    does: impl Fn(usize, usize) -> Does + Copy + Send + Sync + 'static,
) -> (String, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let connections = Arc::new(AtomicU64::new(0));
    let (counts, requests) = (connections.clone(), Arc::new(AtomicU64::new(0)));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let number = counts.fetch_add(1, Ordering::SeqCst);
            let requests = requests.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut hung = Vec::new();
                while let Some(Ok((request, mut answer))) = connection.accept().await {
                    let (connection_number, request_number) =
                        (usize::try_from(number).unwrap(), requests.fetch_add(1, Ordering::SeqCst));
                    let does = does(connection_number, usize::try_from(request_number).unwrap());
                    match does {
                        Does::Refuses => answer.send_reset(h2::Reason::REFUSED_STREAM),
                        Does::Hangs => hung.push((request, answer)),
                        Does::Answers | Does::Leaves => {
                            drop(answer.send_response(axum::http::Response::new(()), true).unwrap());
                        }
                    }
                    if matches!(does, Does::Leaves) {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    (base, connections)
}

fn h2c(base: &str, timeout_ms: u64) -> Sender {
    Sender::new(&[property(base)], Travel { h2c: true, ..travel(timeout_ms) }).unwrap()
}

/// RFC 9113, section 8.7: a stream that was refused was not processed.
#[tokio::test]
async fn what_the_receiver_has_not_looked_at_goes_once_more_and_is_never_uncertain() {
    let first = |_, request| if request == 0 { Does::Refuses } else { Does::Answers };
    let (base, connections) = receiver_of_http2(first).await;
    assert_eq!(h2c(&base, 2_000).send(0, "{}".into()).await, Outcome::Sent);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let (base, _) = receiver_of_http2(|_, _| Does::Refuses).await;
    let refused = h2c(&base, 2_000).send(0, "{}".into()).await;
    assert!(matches!(refused, Outcome::NotSent(_)), "{refused:?}");
}

#[tokio::test]
async fn a_receiver_may_close_its_connection_after_any_answer() {
    let (base, connections) = receiver_of_http2(|_, _| Does::Leaves).await;
    let over_http2 = h2c(&base, 2_000);
    for _ in 0..5 {
        assert_eq!(over_http2.send(0, "{}".into()).await, Outcome::Sent);
    }
    assert!(connections.load(Ordering::SeqCst) > 1);
    // Over HTTP/1.1 without a word.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("http://{}", listener.local_addr().unwrap()), 2_000);
    for _ in 0..5 {
        let answering = async {
            let mut stream = asked(&listener).await;
            stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").await.unwrap();
        };
        assert_eq!(tokio::join!(sender.send(0, "{}".into()), answering).0, Outcome::Sent);
        // Until the sender has seen the end of it.
        while !sender.lines[0].pools[0].is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn after_a_silence_another_connection_is_tried() {
    let first = |connection, _| if connection == 0 { Does::Hangs } else { Does::Answers };
    let (base, connections) = receiver_of_http2(first).await;
    let sender = h2c(&base, 400);
    assert!(matches!(sender.send(0, "{}".into()).await, Outcome::Uncertain(_)));
    assert_eq!(sender.send(0, "{}".into()).await, Outcome::Sent);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn properties_of_one_receiver_share_its_connection() {
    let (base, connections) = receiver_of_http2(|_, _| Does::Answers).await;
    let travel = Travel { h2c: true, ..travel(2_000) };
    let sender = Sender::new(&[property(&base), property(&base)], travel).unwrap();
    let sent = (0..8).map(|number| sender.send(number % 2, "{}".into()));
    for outcome in futures_util::future::join_all(sent).await {
        assert_eq!(outcome, Outcome::Sent);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("http://{}", listener.local_addr().unwrap()), 2_000);
    let answering = async {
        let mut stream = asked(&listener).await;
        stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").await.unwrap();
        stream
    };
    let (sent, mut stream) = tokio::join!(sender.send(0, "{}".into()), answering);
    assert_eq!(sent, Outcome::Sent);
    tokio::time::pause();
    tokio::time::advance(LONGEST_IDLE + Duration::from_secs(10)).await;
    tokio::time::resume();
    let mut buffer = [0; 8];
    let end = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut buffer)).await;
    assert_eq!(end.unwrap().unwrap(), 0, "closed");
}

/// By `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, as `curl` knows them.
#[tokio::test]
async fn requests_go_through_the_proxy_that_the_environment_names() {
    let through = |proxy: SocketAddr, base: &str, except: &str| {
        let proxies = Matcher::builder().all(format!("http://user:pass@{proxy}")).no(except).build();
        let means = Means::new(false, Duration::from_secs(1), proxies).unwrap();
        Sender::by(&[property(base)], travel(2_000), &means).unwrap()
    };
    let (proxy, read) = receiver(Some("HTTP/1.1 204 X\r\n\r\n")).await;
    let sent = through(proxy, "http://gtm.invalid", "").send(0, "{}".into()).await;
    assert_eq!(sent, Outcome::Sent);
    let read = read.await.unwrap();
    assert!(read.starts_with("POST http://gtm.invalid/mp/collect?measurement_id=G-TEST&"), "{read}");
    let read = read.to_ascii_lowercase();
    assert!(
        read.contains("\r\nhost: gtm.invalid\r\n")
            && read.contains("proxy-authorization: basic dxnlcjpwyxnz")
    );

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let secure = through(listener.local_addr().unwrap(), "https://gtm.invalid", "");
    let tunnel = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            read.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 X\r\n\r\n").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), 0x16, "TLS begins");
        String::from_utf8(read).unwrap()
    };
    let (sent, asked) = tokio::join!(secure.send(0, "{}".into()), tunnel);
    assert!(asked.starts_with("CONNECT gtm.invalid:443 HTTP/1.1\r\n"), "{asked}");
    assert!(asked.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpwyxnz"));
    assert!(matches!(sent, Outcome::NotSent(_)), "{sent:?}");

    let (direct, read) = receiver(Some("HTTP/1.1 204 X\r\n\r\n")).await;
    let sender = through(listener.local_addr().unwrap(), &format!("http://{direct}"), "127.0.0.1");
    assert_eq!(sender.send(0, "{}".into()).await, Outcome::Sent);
    assert!(read.await.unwrap().starts_with("POST /mp/collect?"));
}
