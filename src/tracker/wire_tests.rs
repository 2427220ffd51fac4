//! TLS, HTTP/2, the PROXY protocol, rates and full houses, over real sockets.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hyper::body::{Body, Bytes};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::tracker::{Limits, Rates, Site, TlsFiles};

/// Writes a fresh certificate for a name over the files; gives it.
pub(super) fn certificate(
    directory: &Path,
    host: &str,
    names: &[&str],
) -> (TlsFiles, CertificateDer<'static>) {
    let made =
        rcgen::generate_simple_self_signed(names.iter().copied().map(str::to_owned).collect::<Vec<_>>())
            .unwrap();
    let file = |end: &str, text: String, mode| {
        let path = directory.join(format!("{host}.{end}"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    };
    let files = TlsFiles {
        certificate: file("pem", made.cert.pem(), 0o644),
        key: file("key", made.signing_key.serialize_pem(), 0o640),
    };
    (files, made.cert.der().clone())
}

fn with_tls(site: Site, files: TlsFiles) -> Site {
    Site { tls: Some(files), ..site }
}

/// A TLS connection that trusts just this certificate.
pub(super) async fn connect(
    address: SocketAddr,
    name: &str,
    trusted: &CertificateDer<'static>,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
}

/// A request body that is none.
#[derive(Default)]
struct Nothing;

impl Body for Nothing {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

/// Requests over one connection of HTTP/2; gives status and location of each.
async fn over_http_2<S>(stream: S, host: &str, paths: &[String]) -> Vec<(u16, Option<String>)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut answers = Vec::new();
    for path in paths {
        let request = hyper::Request::get(format!("https://{host}{path}")).body(Nothing).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let location = answer.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
        answers.push((answer.status().as_u16(), location));
    }
    driver.abort();
    answers
}

#[tokio::test]
async fn http_2_is_spoken_with_and_without_tls_and_its_authority_is_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let site = |name: &str| Site {
        names: vec![name.into()],
        utm: vec![("utm_source".into(), name.split('.').next().unwrap().into())],
        ..Site::default()
    };
    let (files, trusted) = certificate(directory.path(), "both", &["one.example", "two.example"]);
    for tls in [false, true] {
        let first = if tls { with_tls(site("one.example"), files.clone()) } else { site("one.example") };
        let settings = Settings { site: first, hosts: vec![site("two.example")], ..Settings::default() };
        let tracker = Tracker::start(settings).await;
        let paths = [tracker.link("https://shop.example/a"), tracker.pixel(), "/c/x".into(), "/".into()];
        for host in ["one", "two"] {
            let name = format!("{host}.example");
            let answers = if tls {
                let stream = connect(tracker.address, &name, &trusted, &[b"h2", b"http/1.1"]).await.unwrap();
                assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
                over_http_2(stream, &name, &paths).await
            } else {
                over_http_2(TcpStream::connect(tracker.address).await.unwrap(), &name, &paths).await
            };
            let target = format!("https://shop.example/a?utm_source={host}");
            assert_eq!(
                answers,
                [(302, Some(target)), (200, None), (404, None), (200, None)],
                "{host} tls {tls}"
            );
        }
        assert_eq!(tracker.events().len(), 4);
    }
}

#[tokio::test]
async fn head_over_http_2_has_the_length_of_the_body_and_no_body() {
    let tracker = Tracker::start(Settings::default()).await;
    let stream = TcpStream::connect(tracker.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    for path in ["/", "/robots.txt", "/c/x", &tracker.pixel(), &tracker.link("https://shop.example/a")] {
        let mut lengths = Vec::new();
        for method in ["GET", "HEAD"] {
            let request = hyper::Request::builder().method(method).uri(format!("http://one.example{path}"));
            let answer = sender.send_request(request.body(Nothing).unwrap()).await.unwrap();
            let length =
                answer.headers().get("content-length").map(|value| value.to_str().unwrap().to_owned());
            let mut body = answer.into_body();
            let mut sent = 0;
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                sent += frame.unwrap().into_data().unwrap().len();
            }
            assert!(method == "GET" || sent == 0, "{sent} bytes behind {method} {path}");
            lengths.push(length.map_or(sent, |length| length.parse().unwrap()));
        }
        assert_eq!(lengths[0], lengths[1], "{path}");
    }
    driver.abort();
}

#[tokio::test]
async fn certificates_are_chosen_by_name_and_read_again_when_they_change() {
    let directory = tempfile::tempdir().unwrap();
    let (one, of_one) = certificate(directory.path(), "one", &["one.example"]);
    let (two, of_two) = certificate(directory.path(), "two", &["two.example", "alias.example"]);
    let settings = Settings {
        site: with_tls(Site { names: vec!["one.example".into()], ..Site::default() }, one.clone()),
        hosts: vec![with_tls(
            Site { names: vec!["two.example".into(), "alias.example".into()], ..Site::default() },
            two,
        )],
        ..Settings::default()
    };
    let tracker = Tracker::start(settings).await;
    let speaks = async |name: &str, trusted: &CertificateDer<'static>| {
        let Ok(mut stream) = connect(tracker.address, name, trusted, &[b"http/1.1"]).await else {
            return false;
        };
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer.starts_with(b"HTTP/1.1 200")
    };
    assert!(speaks("one.example", &of_one).await && speaks("two.example", &of_two).await);
    assert!(speaks("ALIAS.example", &of_two).await);
    assert!(!speaks("two.example", &of_one).await, "not the first's certificate");

    // A key that belongs to no certificate, and one that everybody reads: the pair in use stays.
    let good = fs::read(&one.key).unwrap();
    for (key, mode) in
        [(rcgen::KeyPair::generate().unwrap().serialize_pem().into_bytes(), 0o600), (good.clone(), 0o644)]
    {
        fs::write(&one.key, key).unwrap();
        fs::set_permissions(&one.key, fs::Permissions::from_mode(mode)).unwrap();
        tracker.reload.send_modify(|count| *count += 1);
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(speaks("one.example", &of_one).await);
    }
    // Refused for its rights, and looked at again once they are mended.
    let (_, renewed) = certificate(directory.path(), "one", &["one.example"]);
    fs::set_permissions(&one.key, fs::Permissions::from_mode(0o644)).unwrap();
    tracker.reload.send_modify(|count| *count += 1);
    tokio::time::sleep(Duration::from_millis(150)).await;
    fs::set_permissions(&one.key, fs::Permissions::from_mode(0o640)).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while !speaks("one.example", &renewed).await {
        assert!(Instant::now() < end, "the new certificate is not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!speaks("one.example", &of_one).await);
}

#[tokio::test]
async fn a_certificate_that_cannot_work_is_said_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let (files, _) = certificate(directory.path(), "one", &["one.example"]);
    let starts = async |files: TlsFiles| {
        let settings = Settings { site: with_tls(Site::default(), files), ..Settings::default() };
        let tracker = Tracker::start(settings).await;
        match tokio::time::timeout(Duration::from_millis(300), tracker.task).await {
            Ok(ended) => ended.unwrap().unwrap_err().to_string(),
            Err(_) => "it runs".to_owned(),
        }
    };
    assert_eq!(starts(files.clone()).await, "it runs");
    let swapped = TlsFiles { certificate: files.key.clone(), key: files.key.clone() };
    assert!(starts(swapped).await.contains("no certificate in PEM form"));
    let missing = TlsFiles { key: "/nonexistent/key.pem".into(), ..files.clone() };
    assert!(starts(missing).await.contains("/nonexistent/key.pem"));
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o604)).unwrap();
    assert!(starts(files).await.contains("chmod 640"));
}

#[tokio::test]
async fn who_ends_tls_with_the_request_still_gets_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    let (files, trusted) = certificate(directory.path(), "one", &["one.example"]);
    let settings = Settings { site: with_tls(Site::default(), files), ..Settings::default() };
    let tracker = Tracker::start(settings).await;
    // The end is there before the answer.
    tracker.spool.stalls.store(true, Ordering::Relaxed);
    let link = tracker.link("https://shop.example/");
    let mut stream = connect(tracker.address, "one.example", &trusted, &[b"http/1.1"]).await.unwrap();
    stream.write_all(format!("GET {link} HTTP/1.1\r\nHost: t\r\n\r\n").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 302"), "{}", answer.escape_ascii());
    tracker.spool.stalls.store(false, Ordering::Relaxed);
}

#[tokio::test]
async fn who_speaks_no_tls_or_nothing_at_all_is_cut() {
    let directory = tempfile::tempdir().unwrap();
    let (files, trusted) = certificate(directory.path(), "one", &["one.example"]);
    let limits = Limits { head_timeout: Duration::from_millis(300), ..Limits::default() };
    let settings = Settings { site: with_tls(Site::default(), files), limits, ..Settings::default() };
    let tracker = Tracker::start(settings).await;
    let plain = tracker.send(format!("GET {} HTTP/1.1\r\nHost: t\r\n\r\n", tracker.pixel()).as_bytes()).await;
    assert!(!plain.starts_with(b"HTTP"), "no answer without TLS");
    let began = Instant::now();
    assert_eq!(read_all(&mut TcpStream::connect(tracker.address).await.unwrap()).await, b"");
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(
        connect(tracker.address, "one.example", &trusted, &[b"h3"]).await.is_err(),
        "no protocol in common"
    );
    assert!(connect(tracker.address, "one.example", &trusted, &[]).await.is_ok());
    assert_eq!(tracker.events(), []);
}

// ---- HTTP/2, frame by frame ----

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A request's header block: GET, http, the path, the host `t`.
fn block(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x01, 1, b't', 0x04];
    // An integer with a prefix of seven bits (RFC 7541 section 5.1).
    if path.len() < 127 {
        block.push(u8::try_from(path.len()).unwrap());
    } else {
        let rest = path.len() - 127;
        block.extend([127, u8::try_from(rest % 128 + 128).unwrap(), u8::try_from(rest / 128).unwrap()]);
    }
    block.extend(path.as_bytes());
    block
}

async fn http_2(tracker: &Tracker) -> TcpStream {
    let mut stream = TcpStream::connect(tracker.address).await.unwrap();
    stream.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
    stream
}

/// Writes until the tracker ends the connection; how many times that worked.
async fn until_cut(stream: TcpStream, mut next: impl FnMut(u32) -> Vec<u8>) -> u32 {
    let (mut reader, mut writer) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut bytes = vec![0; 64 * 1024];
        while reader.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    });
    let mut written = 0;
    let writing = async {
        while !reading.is_finished() && writer.write_all(&next(written)).await.is_ok() {
            written += 1;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), writing).await.expect("never cut");
    written
}

#[tokio::test]
async fn requests_taken_back_at_once_end_the_connection_and_no_other() {
    let tracker = Tracker::start(Settings::default()).await;
    let path = tracker.pixel();
    let stream = http_2(&tracker).await;
    let written = until_cut(stream, |number| {
        let id = number * 2 + 1;
        [frame(1, 5, id, &block(&path)), frame(3, 0, id, &8_u32.to_be_bytes())].concat()
    })
    .await;
    assert!(written < 50_000, "{written}");
    assert_eq!(tracker.get("/").await.status, 200);
}

#[tokio::test]
async fn a_head_without_end_is_cut() {
    let tracker = Tracker::start(Settings::default()).await;
    let stream = http_2(&tracker).await;
    // Literal headers, never indexed, that never end: CONTINUATION without END_HEADERS (CVE-2024-27316).
    let filler = [&[0x10, 1, b'x', 100][..], &[b'y'; 100]].concat().repeat(100);
    let written =
        until_cut(
            stream,
            |number| {
                if number == 0 { frame(1, 1, 1, &block("/")) } else { frame(9, 0, 1, &filler) }
            },
        )
        .await;
    assert!(written < 2_000, "{written} frames of 10 KB");
    assert_eq!(tracker.get("/").await.status, 200);
}

#[tokio::test]
async fn who_takes_no_bytes_and_only_pings_is_cut_when_the_idle_time_is_over() {
    let (head_timeout, idle_timeout) = (Duration::from_millis(300), Duration::from_millis(900));
    let limits = Limits { head_timeout, idle_timeout, ..Limits::default() };
    let tracker = Tracker::start(Settings { limits, ..Settings::default() }).await;
    let mut stream = TcpStream::connect(tracker.address).await.unwrap();
    // SETTINGS_INITIAL_WINDOW_SIZE 0: the image can never be sent.
    let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    stream
        .write_all(&[PREFACE, &settings, &frame(1, 5, 1, &block(&tracker.pixel()))].concat())
        .await
        .unwrap();
    let began = Instant::now();
    let (mut reader, mut writer) = stream.into_split();
    let pings = tokio::spawn(async move {
        while writer.write_all(&frame(6, 0, 0, &[0; 8])).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), reader.read_to_end(&mut bytes))
        .await
        .expect("never cut");
    assert!(began.elapsed() >= Duration::from_millis(800), "a PING is no head: {:?}", began.elapsed());
    pings.abort();
}

// ---- PROXY ----

pub(super) fn proxied(from: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(from);
    header.extend([127, 0, 0, 1, 0x12, 0x34, 0, 80]);
    header
}

#[tokio::test]
async fn a_proxy_says_who_asks_and_nobody_else_may_connect() {
    let settings = Settings { proxy_protocol: true, ..Settings::default() };
    let tracker = Tracker::start(settings.clone()).await;
    let link = tracker.link("https://shop.example/");
    let request = |more: &str| {
        format!("GET {link} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{BROWSER}{more}\r\n").into_bytes()
    };
    for (from, rule) in [([203, 0, 113, 9], None), ([40, 92, 0, 1], Some("exchange-online-protection"))] {
        // Both at once: not one byte of the request is lost.
        let reply = Reply::parse(&tracker.send(&[proxied(from), request("")].concat()).await);
        assert_eq!(reply.status, 302);
        assert_eq!(tracker.take_event().data.machine_rule.as_deref(), rule);
    }
    // The client that the header names is none of our proxies: its X-Forwarded-For says nothing.
    let forged = [proxied([203, 0, 113, 9]), request("X-Forwarded-For: 40.92.0.1\r\n")].concat();
    assert_eq!(Reply::parse(&tracker.send(&forged).await).status, 302);
    assert_eq!(tracker.take_event().data.machine_rule, None);
    for bytes in [request(""), [b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(), request("")].concat()] {
        assert_eq!(tracker.send(&bytes).await, b"", "no header, no answer");
    }
    let strangers = Tracker::start(Settings { trusted_proxies: vec![], ..settings }).await;
    assert_eq!(strangers.send(&[proxied([203, 0, 113, 9]), request("")].concat()).await, b"");
    assert_eq!(tracker.events(), []);
}

#[tokio::test]
async fn behind_a_proxy_each_client_has_its_own_places() {
    let limits = Limits { connections_per_client: 2, ..Limits::default() };
    let tracker = Tracker::start(Settings { proxy_protocol: true, limits, ..Settings::default() }).await;
    let mut open = Vec::new();
    let request = b"GET /robots.txt HTTP/1.1\r\nHost: t\r\n\r\n";
    for (from, works) in [
        ([203, 0, 113, 1], true),
        ([203, 0, 113, 1], true),
        ([203, 0, 113, 1], false),
        ([203, 0, 113, 2], true),
    ] {
        let mut stream = TcpStream::connect(tracker.address).await.unwrap();
        stream.write_all(&[&proxied(from)[..], request].concat()).await.unwrap();
        assert_eq!(stream.read_u8().await.is_ok(), works, "{from:?}");
        open.push(stream);
    }
}

// ---- Rates ----

#[tokio::test]
async fn beyond_a_rate_links_lead_on_pixels_are_pixels_and_nothing_is_recorded() {
    let settings = Settings { rates: Rates::new(1, 0), ..Settings::default() };
    let tracker = Tracker::start(settings).await;
    let (link, pixel) = (tracker.link("https://shop.example/"), tracker.pixel());
    let from = |client: &str| format!("{BROWSER}X-Forwarded-For: {client}\r\n");
    let greedy = from("203.0.113.9");
    let mut last = 0;
    for _ in 0..30 {
        last = tracker.ask("GET", "/c/forged", &greedy).await.status;
    }
    assert_eq!(last, 429);
    let refused = tracker.ask("GET", "/nowhere", &greedy).await;
    assert_eq!((refused.status, refused.body.len(), refused.header("retry-after")), (429, 0, Some("10")));
    assert_eq!(tracker.ask("GET", &link, &greedy).await.header("location"), Some("https://shop.example/"));
    assert_eq!(tracker.ask("GET", &pixel, &greedy).await.status, 200);
    assert_eq!(tracker.ask("GET", "/o/forged", &greedy).await.status, 200);
    assert_eq!(tracker.events(), [], "none of it is recorded");
    assert_eq!(tracker.ask("GET", &link, &from("203.0.113.10")).await.status, 302);
    assert_eq!(
        tracker.ask("GET", "/c/forged", &from("203.0.113.10")).await.status,
        404,
        "others are not held up"
    );
    assert_eq!(tracker.events().len(), 1);
}

#[tokio::test]
async fn one_link_of_one_recipient_is_recorded_only_so_often() {
    let tracker = Tracker::start(Settings { rates: Rates::new(0, 5), ..Settings::default() }).await;
    let (link, pixel) = (tracker.link("https://shop.example/"), tracker.pixel());
    for number in 0..12 {
        let reply = tracker.get(&format!("{link}&n={number}")).await;
        assert_eq!((reply.status, reply.header("location")), (302, Some("https://shop.example/")));
    }
    assert_eq!(tracker.events().len(), 5);
    assert_eq!(tracker.get(&pixel).await.status, 200);
    assert_eq!(tracker.events().len(), 6, "the pixel has a rate of its own");
}

// ---- A full house ----

#[tokio::test]
async fn idle_connections_make_room_for_new_ones() {
    let limits = Limits { connections: 20, ..Limits::default() };
    let tracker = Tracker::start(Settings { limits, ..Settings::default() }).await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(tracker.address).await.unwrap();
        stream.write_all(b"HEAD / HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
        stream.read_u8().await.unwrap();
        idle.push(stream);
    }
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(tracker.get(&tracker.link("https://shop.example/")).await.status, 302);
    }
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "far below the idle time of 75 s: {:?}",
        began.elapsed()
    );
}
