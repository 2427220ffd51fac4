//! What attackers send: nothing of it redirects, breaks a header, holds a connection, or shows in a log.

use tokio::time::Instant;

use super::*;
use crate::telemetry::Captured;
use crate::tracker::Limits;

#[tokio::test]
async fn the_usual_open_redirects_redirect_nowhere() {
    let tracker = Tracker::start(Settings::default()).await;
    let payloads = [
        "//evil.example",
        "///evil.example",
        "////evil.example/%2e%2e",
        "/\\evil.example",
        "/%5cevil.example",
        "/%09/evil.example",
        "/%2f%2fevil.example",
        "/.evil.example",
        "//evil%E3%80%82example",
        "//evil.example%00.t.example",
        "https://evil.example",
        "https:evil.example",
        "http:/evil.example",
        "https:///evil.example",
        "ht%09tps://evil.example",
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "data:text/html,x",
        "//t.example.org@evil.example",
        "%68ttp://evil.example",
        "?url=https://evil.example",
        "?redirect=//evil.example",
        "?next=/%0d%0aLocation:%20//evil.example",
        "?u=evil.example",
        "?target=https%3A%2F%2Fevil.example",
        "?goto=\\\\evil.example",
        "?r=%E3%80%B1evil.example",
        "/%0d%0aLocation:%20//evil.example",
        "%0d%0aSet-Cookie:%20a=b",
        "%E5%98%8A%E5%98%8DLocation:evil.example",
        "/..;/evil.example",
        "/%2e%2e/c/",
        "/;@evil.example",
    ];
    for payload in payloads {
        for prefix in ["/", "/c/", "/c/AAAA", "/o/", "/c/?", "/robots.txt/", "//"] {
            let reply = tracker.get(&format!("{prefix}{payload}")).await;
            assert!(!reply.is_redirect() && reply.status < 500, "{prefix}{payload}: {reply:?}");
            assert!(!reply.html_lossy().contains("evil"), "{prefix}{payload} shows what it was given");
        }
    }
    // The forms of a request line that are no path.
    for line in
        ["GET https://evil.example/ HTTP/1.1", "GET http://evil.example/c/x HTTP/1.1", "OPTIONS * HTTP/1.1"]
    {
        let bytes = format!("{line}\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
        let reply = Reply::parse(&tracker.send(bytes.as_bytes()).await);
        assert!(!reply.is_redirect() && reply.status < 500, "{line}: {reply:?}");
    }
    assert_eq!(tracker.events(), []);
}

#[tokio::test]
async fn a_request_names_one_host() {
    let tracker = Tracker::start(Settings::default()).await;
    let link = tracker.link("https://shop.example/");
    for (head, status) in [
        ("HTTP/1.1\r\n", 400),
        ("HTTP/1.1\r\nHost: one.example\r\nHost: two.example\r\n", 400),
        ("HTTP/1.1\r\nHost: one.example\r\n", 302),
        ("HTTP/1.0\r\nHost: one.example\r\nHost: two.example\r\n", 400),
        ("HTTP/1.0\r\n", 302),
        ("HTTP/1.1\r\nHost: a b\r\n", 400),
        ("HTTP/1.1\r\nHost: a,b\r\n", 400),
        ("HTTP/1.0\r\nHost: a/b\r\n", 400),
        ("HTTP/1.1\r\nHost: [::1]:8025\r\n", 302),
    ] {
        let bytes = format!("GET {link} {head}Connection: close\r\n\r\n");
        assert_eq!(Reply::parse(&tracker.send(bytes.as_bytes()).await).status, status, "{head:?}");
    }
    assert_eq!(tracker.events().len(), 3);
}

impl Reply {
    fn html_lossy(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

#[tokio::test]
async fn a_signed_target_can_break_no_header() {
    let tracker = Tracker::start(Settings::default()).await;
    for target in [
        "https://e.com/\r\nSet-Cookie: evil=1",
        "https://e.com/\nLocation: https://evil.example/",
        "https://e.com/\u{0}",
        "https://e.com/\u{85}Set-Cookie: evil=1",
    ] {
        let reply = tracker.get(&tracker.link(target)).await;
        assert!(
            reply.status == 404 && !reply.is_redirect() && reply.header("set-cookie").is_none(),
            "{reply:?}"
        );
    }
    // Characters whose low byte is CR or LF, for those who cut characters to bytes.
    let reply = tracker.get(&tracker.link("https://e.com/嘊嘍Set-Cookie:evil")).await;
    assert_eq!(reply.header("location"), Some("https://e.com/%E5%98%8A%E5%98%8DSet-Cookie:evil"));
}

#[tokio::test]
async fn a_request_that_two_parsers_could_read_differently_is_one_or_none() {
    let tracker = Tracker::start(Settings::default()).await;
    let link = tracker.link("https://shop.example/");
    let smuggled = format!("GET {link} HTTP/1.1\r\nHost: t\r\n\r\n");
    for head in [
        "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\nContent-Length: 9\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : t\r\n\r\n",
        "GET /\tHTTP/1.1\r\nHost: t\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0\0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: t\r\nContent-Length\0: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: t\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: t\r\nX: a\r\n b\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: t\r\nX: a\r\0\r\n\r\n",
        "GET /\u{b}a HTTP/1.1\r\nHost: t\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(tracker.address).await.unwrap();
        stream.write_all(format!("{head}{smuggled}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut bytes = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await;
        assert_eq!(tracker.events(), [], "{head:?} {:?}", String::from_utf8_lossy(&bytes));
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let tracker = Tracker::start(Settings::default()).await;
    let (one, two) = (tracker.link("https://one.example/"), tracker.link("https://two.example/"));
    let bytes = format!(
        "GET {one} HTTP/1.1\r\nHost: t\r\n\r\nGET {two} HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    );
    let answer = String::from_utf8(tracker.send(bytes.as_bytes()).await).unwrap();
    let at = |text: &str| answer.find(text).unwrap();
    assert!(at("https://one.example/") < at("https://two.example/"));
    assert_eq!(tracker.events().len(), 2);
}

#[tokio::test]
async fn who_sends_no_more_still_gets_the_answers() {
    // The end is there long before the answers: the spool holds them up.
    let settings = Settings { answer_wait: Duration::from_millis(200), ..Settings::default() };
    let tracker = Tracker::start(settings).await;
    tracker.spool.stalls.store(true, Ordering::Relaxed);
    let link = |number: u8| tracker.link(&format!("https://{number}.example/"));
    let get = |path: &str, version: &str| format!("GET {path} HTTP/{version}\r\nHost: t\r\n\r\n");
    for (bytes, answers) in [
        (get(&link(1), "1.1"), vec!["https://1.example/"]),
        (get(&link(2), "1.0"), vec!["https://2.example/"]),
        (get(&tracker.pixel(), "1.1"), vec!["GIF89a"]),
        (
            get(&link(3), "1.1") + &get(&link(4), "1.1") + &get(&link(5), "1.1"),
            vec!["https://3.example/", "https://4.example/", "https://5.example/"],
        ),
    ] {
        let mut stream = TcpStream::connect(tracker.address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = String::from_utf8_lossy(&read_all(&mut stream).await).into_owned();
        assert_eq!(answer.matches("HTTP/1.").count(), answers.len(), "{answer}");
        assert!(answers.iter().all(|text| answer.contains(text)), "{answer}");
    }
    tracker.spool.stalls.store(false, Ordering::Relaxed);
    tracker.life.stop.cancel();
    let spool = Arc::clone(&tracker.spool);
    tracker.task.await.unwrap().unwrap();
    assert_eq!(spool.events.lock().unwrap().len(), 6, "each was answered and is counted");
}

#[tokio::test]
async fn who_is_gone_wholly_or_sends_half_a_head_holds_no_place() {
    let limits = Limits { connections_per_client: 1, ..Limits::default() };
    let settings = Settings { trusted_proxies: vec![], limits, ..Settings::default() };
    for (part, half, reset) in
        [(1, false, true), (1, false, false), (2, false, false), (2, true, false), (1_000, true, false)]
    {
        let tracker = Tracker::start(settings.clone()).await;
        let request = format!("GET {} HTTP/1.1\r\nHost: t\r\n\r\n", tracker.link("https://shop.example/"));
        let mut stream = TcpStream::connect(tracker.address).await.unwrap();
        stream.write_all(&request.as_bytes()[..request.len() / part]).await.unwrap();
        if half {
            stream.shutdown().await.unwrap();
            assert!(!String::from_utf8_lossy(&read_all(&mut stream).await).contains("302"));
        }
        if reset {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        assert!(has_a_place(&tracker).await, "still there: 1/{part} {half} {reset}");
    }
}

#[tokio::test]
async fn who_closed_a_half_and_takes_no_answer_is_cut_in_time() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("large.txt"), vec![b'x'; 256 * 1024]).unwrap();
    let site = crate::tracker::Site { well_known: Some(directory.path().to_owned()), ..Default::default() };
    let limits = Limits { connections_per_client: 1, ..hasty().limits };
    let tracker = Tracker::start(Settings { site, trusted_proxies: vec![], limits, ..hasty() }).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(tracker.address).await.unwrap();
    // More than the buffers between take.
    let requests = "GET /.well-known/large.txt HTTP/1.1\r\nHost: t\r\n\r\n".repeat(100);
    stream.write_all(requests.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(has_a_place(&tracker).await, "never cut");
}

/// Whether a client that may have one connection only can have it, soon.
async fn has_a_place(tracker: &Tracker) -> bool {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let mut stream = TcpStream::connect(tracker.address).await.unwrap();
        let request = b"GET /robots.txt HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(request).await;
        if stream.read_u8().await.is_ok() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn too_large_a_head_is_refused() {
    let limits = Limits { head_bytes: Limits::MIN_HEAD_BYTES, headers: 10, ..Limits::default() };
    let tracker = Tracker::start(Settings { limits, ..Settings::default() }).await;
    let link = tracker.link("https://shop.example/");
    let many = "X-A: b\r\n".repeat(20);
    assert_eq!(tracker.ask("GET", &link, &many).await.status, 431);
    let long = format!("X-A: {}\r\n", "b".repeat(20_000));
    assert_eq!(tracker.ask("GET", &link, &long).await.status, 431);
    assert_eq!(tracker.events(), []);
    assert_eq!(tracker.get(&link).await.status, 302);
}

fn hasty() -> Settings {
    let (head_timeout, idle_timeout) = (Duration::from_millis(300), Duration::from_millis(600));
    Settings { limits: Limits { head_timeout, idle_timeout, ..Limits::default() }, ..Settings::default() }
}

/// How long the tracker left a connection open.
async fn time_until_cut(stream: &mut TcpStream) -> Duration {
    let began = Instant::now();
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes))
        .await
        .expect("never cut");
    began.elapsed()
}

#[tokio::test]
async fn slow_clients_are_cut() {
    let tracker = Tracker::start(hasty()).await;
    let mut silent = TcpStream::connect(tracker.address).await.unwrap();
    let took = time_until_cut(&mut silent).await;
    assert!(took > Duration::from_millis(200) && took < Duration::from_millis(2_000), "silent: {took:?}");

    // A byte now and then does not help.
    let (mut reader, mut writer) = TcpStream::connect(tracker.address).await.unwrap().into_split();
    let began = Instant::now();
    let trickle = tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\nX-Slow: ".iter().chain([b'a'; 1_000].iter()) {
            if writer.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut bytes = Vec::new();
    let _ = reader.read_to_end(&mut bytes).await;
    let took = began.elapsed();
    assert!(took > Duration::from_millis(200) && took < Duration::from_millis(2_000), "trickle: {took:?}");
    trickle.abort();
}

#[tokio::test]
async fn an_idle_connection_stays_longer_than_a_slow_one_and_not_for_ever() {
    let tracker = Tracker::start(hasty()).await;
    let mut stream = TcpStream::connect(tracker.address).await.unwrap();
    let request = format!("HEAD {} HTTP/1.1\r\nHost: t\r\n\r\n", tracker.pixel());
    for pause in [0, 400] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("still open"));
        }
    }
    let took = time_until_cut(&mut stream).await;
    assert!(took > Duration::from_millis(400) && took < Duration::from_millis(2_500), "{took:?}");

    // A second request that does not end is cut by the shorter time, long before the longer.
    let limits = Limits { idle_timeout: Duration::from_secs(60), ..hasty().limits };
    let tracker = Tracker::start(Settings { limits, ..hasty() }).await;
    let mut stream = TcpStream::connect(tracker.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(b"GET / HT").await.unwrap();
    time_until_cut(&mut stream).await;
}

/// What comes on a connection until `end` has come so often.
async fn read_until(stream: &mut TcpStream, end: &str, count: usize) -> String {
    let mut text = String::new();
    while text.matches(end).count() < count {
        text.push(char::from(stream.read_u8().await.expect("still open")));
    }
    text
}

#[tokio::test]
async fn a_connection_that_has_rested_goes_on_where_it_was() {
    let tracker = Tracker::start(Settings::default()).await;
    let mut stream = TcpStream::connect(tracker.address).await.unwrap();
    let request = "GET /robots.txt HTTP/1.1\r\nHost: t\r\n\r\n";
    let body = "Disallow: /\n";
    // Whole requests; the next one's beginning together with the last; and its end by itself.
    let half = request.len() / 2;
    for (sent, answers) in [
        (request.to_owned(), 1),
        (request.repeat(3), 3),
        (format!("{request}{}", &request[..half]), 1),
        (request[half..].to_owned(), 1),
    ] {
        stream.write_all(sent.as_bytes()).await.unwrap();
        let text = read_until(&mut stream, body, answers).await;
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), answers);
        // Longer than it keeps its buffers.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn the_rest_of_a_body_is_no_request_however_late_it_comes() {
    let tracker = Tracker::start(hasty()).await;
    for head in ["Content-Length: 200", "Transfer-Encoding: chunked"] {
        let mut stream = TcpStream::connect(tracker.address).await.unwrap();
        let request = format!("POST / HTTP/1.1\r\nHost: t\r\n{head}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n", 1).await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        // It may be closed by now.
        let _ = stream.write_all(b"GET /robots.txt HTTP/1.1\r\nHost: t\r\n\r\n").await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.unwrap();
        let rest = String::from_utf8_lossy(&rest);
        assert!(!rest.contains("Disallow"), "{head}: {rest}");
    }
}

#[tokio::test]
async fn a_client_has_only_so_many_connections() {
    let limits = Limits { connections_per_client: 3, ..Limits::default() };
    let strangers = Settings { trusted_proxies: vec![], limits, ..Settings::default() };
    let tracker = Tracker::start(strangers.clone()).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(tracker.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
        stream.read_u8().await.unwrap();
        open.push(stream);
    }
    let mut fourth = TcpStream::connect(tracker.address).await.unwrap();
    assert!(fourth.read_u8().await.is_err());
    drop(open);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(tracker.get("/").await.status, 200);

    let proxied = Settings { trusted_proxies: Settings::default().trusted_proxies, ..strangers };
    let tracker = Tracker::start(proxied).await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(tracker.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n").await.unwrap();
        stream.read_u8().await.expect("a proxy has all connections of all clients");
        open.push(stream);
    }
}

#[tokio::test]
async fn beyond_the_limit_connections_wait_for_a_place() {
    let limits = Limits { connections: 2, ..hasty().limits };
    let tracker = Tracker::start(Settings { limits, ..hasty() }).await;
    let held: Vec<_> = [
        TcpStream::connect(tracker.address).await.unwrap(),
        TcpStream::connect(tracker.address).await.unwrap(),
    ]
    .into();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    assert_eq!(tracker.get("/").await.status, 200, "the silent ones are cut, then it is this one's turn");
    assert!(began.elapsed() > Duration::from_millis(100));
    drop(held);
}

/// One thread, so that the log of this thread is the log of the tracker.
#[tokio::test(flavor = "current_thread")]
async fn no_log_names_whom_a_proxy_names_or_who_fails_at_tls() {
    let (captured, _guard) = Captured::start();
    let directory = tempfile::tempdir().unwrap();
    let (files, trusted) = super::wire::certificate(directory.path(), "one", &["one.example"]);
    let site = crate::tracker::Site { tls: Some(files), ..Default::default() };
    let limits = Limits { connections_per_client: 1, ..hasty().limits };
    let tracker = Tracker::start(Settings { site, proxy_protocol: true, limits, ..hasty() }).await;
    let header = super::wire::proxied([203, 0, 113, 77]);
    // No TLS; a handshake that the client breaks off; a header that is none; a client with too many connections.
    tracker.send(&[&header[..], b"GET /c/secret HTTP/1.1\r\n\r\n"].concat()).await;
    tracker.send(b"PROXY TCP4 203.0.113.77 127.0.0.1 1 2\r\n").await;
    assert!(super::wire::connect(tracker.address, "one.example", &trusted, &[]).await.is_err());
    let mut held = TcpStream::connect(tracker.address).await.unwrap();
    held.write_all(&header).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    tracker.send(&header).await;
    tracker.life.stop.cancel();
    tracker.task.await.unwrap().unwrap();
    let log = captured.text();
    for expected in ["no TLS", "proxy-signature", "client-limit"] {
        assert!(log.contains(expected), "{expected} is not in {log}");
    }
    assert!(!log.contains("203.0.113.77") && !log.contains("secret"), "{log}");
}

/// One thread, so that the log of this thread is the log of the tracker.
#[tokio::test(flavor = "current_thread")]
async fn no_log_names_a_client_a_token_or_a_target() {
    let (captured, _guard) = Captured::start();
    let tracker = Tracker::start(hasty()).await;
    let headers = format!(
        "{BROWSER}X-Forwarded-For: 203.0.113.77\r\nCookie: _ga=GA1.1.987654.321\r\nReferer: https://mail.example/inbox\r\n"
    );
    let link = tracker.link("https://shop.example/secret?mail=ann@example.org");
    let pixel = tracker.pixel();
    for path in [link.as_str(), &pixel, "/c/forged-token", "/nowhere"] {
        tracker.ask("GET", path, &headers).await;
    }
    tracker.send(b"nonsense\r\n\r\n").await;
    tracker.life.stop.cancel();
    tracker.task.await.unwrap().unwrap();

    let log = captured.text();
    assert!(log.contains("recorded") && log.contains("refused"), "the log is captured: {log}");
    let recipient = Pseudonym::from([0x11; 12]).to_string();
    let (click_token, open_token) = (&link["/c/".len()..], &pixel["/o/".len()..]);
    for secret in [
        "203.0.113.77",
        "987654",
        "mail.example",
        "shop.example",
        "ann@",
        "forged-token",
        recipient.as_str(),
        click_token,
        open_token,
    ] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}

/// One thread, so that the log of this thread is the log of the tracker.
#[tokio::test(flavor = "current_thread")]
async fn a_proxy_that_names_nobody_is_said_once_and_makes_no_sweep() {
    let (captured, _guard) = Captured::start();
    let tracker = Tracker::start(Settings::default()).await;
    // Many recipients within seconds, just after the message was accepted: a sweep, if one client did it.
    let link = |number: u8| {
        let token = Token::Click(Click {
            message: MessageId::new(clock::now().minus(Duration::from_secs(20)), 7),
            recipient: Some(Pseudonym::from([number; 12])),
            link: 1,
            campaign: None,
            target: "https://shop.example/".into(),
        });
        format!("/c/{}", sign(&token, tracker.ring.signing(clock::now()).unwrap()))
    };
    tracker.get("/").await;
    assert!(!captured.text().contains("names no client"), "a look at the page is no click");
    for (named, sweeps) in [(false, false), (true, true)] {
        for number in 0..12 {
            let headers =
                if named { format!("{BROWSER}X-Forwarded-For: 203.0.113.9\r\n") } else { BROWSER.to_owned() };
            assert_eq!(tracker.ask("GET", &link(number), &headers).await.status, 302);
        }
        let events = std::mem::take(&mut *tracker.spool.events.lock().unwrap());
        let swept =
            events.iter().any(|event| event.data.machine_rule.as_deref() == Some("sweep-of-recipients"));
        assert_eq!(swept, sweeps, "{events:?}");
    }
    let log = captured.text();
    assert_eq!(log.matches("a trusted proxy names no client").count(), 1, "{log}");
    assert!(log.contains("X-Forwarded-For") && !log.contains("203.0.113.9"), "{log}");
}

/// One thread, so that the log of this thread is the log of the tracker.
#[tokio::test(flavor = "current_thread")]
async fn peers_that_are_no_trusted_proxies_are_said_once_without_their_addresses() {
    let (captured, _guard) = Captured::start();
    let settings = Settings { proxy_protocol: true, trusted_proxies: vec![], ..Settings::default() };
    let tracker = Tracker::start(settings).await;
    for _ in 0..3 {
        assert_eq!(tracker.send(b"GET / HTTP/1.1\r\n\r\n").await, b"");
    }
    let log = captured.text();
    assert_eq!(log.matches("none of tracker.trusted_proxies").count(), 1, "{log}");
    let warned = log.lines().find(|line| line.contains("WARN")).unwrap();
    assert!(warned.contains("tracker.proxy_protocol") && !warned.contains("127.0.0.1"), "{warned}");
}
