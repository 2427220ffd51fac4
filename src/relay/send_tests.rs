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
