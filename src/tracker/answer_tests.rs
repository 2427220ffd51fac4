//! What comes back over the wire, and what is recorded of it.

use super::*;
use crate::event::{Kind, Machine};
use crate::tracker::Site;

const ONE_PIXEL: &[u8] = &crate::tracker::answer::PIXEL;

#[tokio::test]
async fn a_link_redirects_and_its_event_is_stored_before_the_answer() {
    let tracker = Tracker::start(Settings::default()).await;
    let target = "https://shop.example/a?b=1&c=%zz#top";
    let reply = tracker.get(&tracker.link(target)).await;
    let event = tracker.take_event();
    assert_eq!((reply.status, reply.header("location")), (302, Some(target)));
    assert_eq!(reply.header("cache-control"), Some("no-store, no-cache, must-revalidate, private"));
    assert_eq!(reply.body, b"");
    assert_eq!(
        (event.kind, event.data.machine, event.data.link),
        (Kind::Clicked, Some(Machine::No), Some(1))
    );
    assert_eq!(event.source, "mailtap/tracker/test");
}

#[tokio::test]
async fn case_58_over_the_wire_no_altered_byte_of_a_token_redirects() {
    let tracker = Tracker::start(Settings::default()).await;
    let link = tracker.link("https://shop.example/");
    let mut stream = TcpStream::connect(tracker.address).await.unwrap();
    for at in "/c/".len()..link.len() {
        let mut altered = link.clone().into_bytes();
        altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
        let altered = String::from_utf8(altered).unwrap();
        let request = format!("HEAD {altered} HTTP/1.1\r\nHost: t\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let reply = Reply::parse(&head);
        assert!(reply.status == 404 && !reply.is_redirect(), "{at}: {reply:?}");
    }
    assert_eq!(tracker.events(), []);
}

#[tokio::test]
async fn case_66_a_pixel_is_a_pixel_whatever_its_token() {
    let tracker = Tracker::start(Settings::default()).await;
    let good = tracker.pixel();
    let paths = [
        good.clone(),
        "/o/x".into(),
        "/o/".into(),
        format!("{good}A"),
        tracker.link("http://e.com/").replace("/c/", "/o/"),
    ];
    for path in paths {
        let reply = tracker.get(&path).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("image/gif")), "{path}");
        assert_eq!(reply.header("content-length"), Some("43"));
        assert_eq!(reply.header("cache-control"), Some("no-store, no-cache, must-revalidate, private"));
        assert_eq!(reply.header("pragma"), Some("no-cache"));
        assert_eq!(reply.body, ONE_PIXEL);
    }
    assert_eq!(tracker.take_event().kind, Kind::Opened, "only the good one is recorded");
}

#[tokio::test]
async fn case_62_head_is_answered_alike_and_is_no_person() {
    let tracker = Tracker::start(Settings::default()).await;
    let link = tracker.link("https://shop.example/");
    let (get, head) = (tracker.get(&link).await, tracker.ask("HEAD", &link, BROWSER).await);
    assert_eq!((head.status, head.header("location")), (get.status, get.header("location")));
    let machines: Vec<_> = tracker.events().iter().map(|event| event.data.machine).collect();
    assert_eq!(machines, [Some(Machine::No), Some(Machine::Certain)]);

    let pixel = tracker.ask("HEAD", &tracker.pixel(), BROWSER).await;
    assert_eq!((pixel.status, pixel.header("content-length"), pixel.body.len()), (200, Some("43"), 0));

    let prefetch = tracker.ask("GET", &link, &format!("{BROWSER}Sec-Purpose: prefetch\r\n")).await;
    assert_eq!((prefetch.status, prefetch.header("location")), (302, get.header("location")));
    assert_eq!(tracker.events().pop().unwrap().data.machine_rule.as_deref(), Some("prefetch"));
}

#[tokio::test]
async fn cases_61_67_and_72_parameters_of_others_neither_disturb_nor_pass() {
    let tracker = Tracker::start(Settings::default()).await;
    let target = "https://shop.example/?a=1";
    let link = tracker.link(target);
    for added in [
        "?utm_source=x",
        "?url=https://evil.example/",
        "?src=http://169.254.169.254/",
        "?",
        "&x=y",
        "?a=%00%ff",
        ".",
    ] {
        let reply = tracker.get(&format!("{link}{added}")).await;
        assert_eq!((reply.status, reply.header("location")), (302, Some(target)), "{added}");
        let reply = tracker.get(&format!("{}{added}", tracker.pixel())).await;
        assert_eq!(reply.body, ONE_PIXEL, "{added}");
    }
}

#[tokio::test]
async fn case_67_what_a_parameter_names_is_never_fetched() {
    let tracker = Tracker::start(Settings::default()).await;
    let victim = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}/", victim.local_addr().unwrap());
    for path in [tracker.link("https://shop.example/"), tracker.link(&url), tracker.pixel(), "/".into()] {
        for name in ["src", "url", "u", "href", "image"] {
            let reply = tracker.get(&format!("{path}?{name}={url}")).await;
            assert!(reply.status < 400, "{path} {name}: {reply:?}");
        }
    }
    let asked = tokio::time::timeout(Duration::from_millis(200), victim.accept()).await;
    assert!(asked.is_err(), "{asked:?}");
}

#[tokio::test]
async fn case_76_a_proxy_that_looks_like_people_is_known_by_its_network_too() {
    // The client is whom the trusted proxy, this host, names.
    let tracker = Tracker::start(Settings::default()).await;
    let prefetch = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                    Chrome/42.0.2311.135 Safari/537.36 Edge/12.246 Mozilla/5.0";
    let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0";
    let verdict = async |client: &str, agent: &str, path: &str| {
        let headers = format!("X-Forwarded-For: {client}\r\nUser-Agent: {agent}\r\n");
        assert!(tracker.ask("GET", path, &headers).await.status < 400);
        let event = tracker.events().pop().unwrap();
        (event.data.machine.unwrap(), event.data.machine_rule)
    };
    let link = tracker.link("https://shop.example/");
    let scanner = verdict("40.92.0.1", firefox, &link).await;
    assert_eq!(scanner, (Machine::Certain, Some("exchange-online-protection".into())));
    for cloud in ["20.42.0.1", "34.64.0.1"] {
        assert_eq!(verdict(cloud, firefox, &link).await.0, Machine::No, "{cloud}");
    }
    let pixel = tracker.pixel();
    let gmail = verdict("66.249.84.10", prefetch, &pixel).await;
    assert_eq!(gmail, (Machine::Certain, Some("gmail-prefetch".into())));
    assert_eq!(verdict("192.0.2.1", prefetch, &pixel).await.0, Machine::No, "the agent alone says nothing");
    assert_eq!(verdict("66.249.84.10", firefox, &pixel).await.0, Machine::No, "nor does the network");
}

#[tokio::test]
async fn case_63_other_methods_change_and_redirect_nothing() {
    let tracker = Tracker::start(Settings::default()).await;
    let link = tracker.link("https://shop.example/");
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"] {
        let reply = tracker.ask(method, &link, "Content-Length: 0\r\n").await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{method}");
        assert!(!reply.is_redirect());
    }
    assert_eq!(tracker.events(), []);
}

#[tokio::test]
async fn case_64_paths_are_the_sites_own() {
    let site = Site {
        base_path: "/mail/x".into(),
        click_paths: vec!["go".into(), "read".into()],
        open_paths: vec!["img".into()],
        ..Site::default()
    };
    let tracker = Tracker::start(Settings { site, ..Settings::default() }).await;
    let (link, pixel) = (tracker.link("https://shop.example/"), tracker.pixel());
    let moved = |path: &str| path.replace("/c/", "/mail/x/go/").replace("/o/", "/mail/x/img/");
    assert_eq!(tracker.get(&moved(&link)).await.status, 302);
    assert_eq!(tracker.get(&moved(&link).replace("/go/", "/read/")).await.status, 302);
    assert_eq!(tracker.get(&format!("/mail/x{link}")).await.status, 302, "links of before");
    assert_eq!(tracker.get(&moved(&link).replace("/go/", "/img/")).await.body, ONE_PIXEL);
    assert_eq!(tracker.get(&moved(&pixel)).await.body, ONE_PIXEL);
    assert_eq!(tracker.get(&link).await.status, 404);
    assert_eq!(tracker.get(&pixel).await.status, 404);
}

#[tokio::test]
async fn cases_60_and_73_a_link_that_nobody_remembers_redirects_and_is_late() {
    let tracker = Tracker::start(Settings::default()).await;
    let key = tracker.ring.by_id(1).unwrap();
    for (days, late) in [(1, false), (89, false), (91, true), (3_650, true)] {
        let sent = MessageId::new(clock::now().minus(Duration::from_secs(days * 24 * 3_600)), 7);
        let link = format!("/c/{}", sign(&click("https://shop.example/", sent), key));
        assert_eq!(tracker.get(&link).await.header("location"), Some("https://shop.example/"), "{days}");
        assert_eq!(tracker.take_event().data.late, Some(late), "{days}");
        let forged = format!("{}{}", &link[..link.len() - 1], if link.ends_with('A') { 'B' } else { 'A' });
        assert!(!tracker.get(&forged).await.is_redirect(), "{days}");
    }
    assert_eq!(tracker.events(), []);
}

#[tokio::test]
async fn case_65_old_keys_verify_and_a_leaked_one_asks() {
    let now = clock::now();
    let (first, later) = (Keyring::new([7; 32], now), now.plus(Duration::from_millis(1)));
    let target = "https://shop.example/?a=1&b=%22<script>";
    let link = format!("/c/{}", sign(&click(target, hour_ago()), &first.keys()[0]));

    let mut rotated = first.clone();
    rotated.rotate([8; 32], now, now).unwrap();
    rotated.retire(1, later).unwrap();
    let tracker = Tracker::with(Settings::default(), rotated.clone()).await;
    assert_eq!(tracker.get(&link).await.header("location"), Some(target));

    let mut revoked = rotated.clone();
    revoked.revoke(1, later).unwrap();
    let tracker = Tracker::with(Settings::default(), revoked).await;
    let reply = tracker.get(&link).await;
    assert!(reply.status == 200 && !reply.is_redirect(), "{reply:?}");
    let escaped = "https://shop.example/?a=1&amp;b=%22&lt;script&gt;";
    let anchor = format!("<a href=\"{escaped}\" rel=\"noreferrer nofollow\">{escaped}</a>");
    assert!(reply.html().contains(&anchor), "{}", reply.html());
    assert!(!reply.html().contains("<script") && reply.header("content-security-policy").is_some());
    assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(tracker.events(), [], "anybody may have made it");

    let mut removed = rotated;
    removed.remove(1, later).unwrap();
    let tracker = Tracker::with(Settings::default(), removed).await;
    assert_eq!(tracker.get(&link).await.status, 404);
}

#[tokio::test]
async fn case_68_odd_bytes_do_not_cost_the_redirect_or_the_event() {
    let tracker = Tracker::start(Settings::default()).await;
    let link = tracker.link("https://shop.example/");
    let mut odd =
        format!("GET {link}?q=%00%ff HTTP/1.1\r\nHost: t\r\nConnection: close\r\nUser-Agent: ").into_bytes();
    odd.extend(b"\xff\xfe\xc0\x80 Mozilla\r\nCookie: _ga=\xff; \xfe\r\nReferer: \xc3\x28\r\n\r\n");
    let reply = Reply::parse(&tracker.send(&odd).await);
    assert_eq!(reply.status, 302);
    assert_eq!(tracker.take_event().data.machine, Some(Machine::No));
    let pixel = tracker.pixel();
    for (path, agent, status) in [
        (format!("{link}?a=").into_bytes(), &b"\xe4"[..], 302),
        ([link.as_bytes(), b"?a=\xe4"].concat(), b"a", 302),
        ([link.as_bytes(), b"?a=\""].concat(), b"a", 302),
        ([link.as_bytes(), b"?a=<b>&c=\0{|}`\\^"].concat(), b"a", 302),
        ([link.as_bytes(), b">"].concat(), b"a", 302),
        ([pixel.as_bytes(), b"\xe4\"<"].concat(), b"a", 200),
        // RFC 9110 section 5.5 has NUL refused, or replaced as here.
        (link.clone().into_bytes(), b"a\0b\x01\x7f", 302),
    ] {
        let bytes = [
            b"GET ",
            &path[..],
            b" HTTP/1.1\r\nHost: t\r\nConnection: close\r\nUser-Agent: ",
            agent,
            b"\r\n\r\n",
        ]
        .concat();
        let reply = Reply::parse(&tracker.send(&bytes).await);
        assert_eq!(reply.status, status, "{}", bytes.escape_ascii());
        tracker.take_event();
    }
}

#[tokio::test]
async fn odd_bytes_that_need_more_room_than_there_is_come_whole_and_in_order() {
    let tracker = Tracker::start(Settings::default()).await;
    let (one, two) = (tracker.link("https://one.example/"), tracker.pixel());
    let odd = vec![0xe4; 9_000];
    let get = |path: &str, more: &str| {
        [format!("GET {path}?").as_bytes(), &odd, format!(" HTTP/1.1\r\nHost: t\r\n{more}\r\n").as_bytes()]
            .concat()
    };
    // Several at once; then one in pieces, with pauses in which a connection gives its buffers back.
    let mut stream = TcpStream::connect(tracker.address).await.unwrap();
    stream.write_all(&get(&one, "").repeat(3)).await.unwrap();
    for _ in 0..3 {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 302"), "{}", head.escape_ascii());
    }
    tokio::time::sleep(Duration::from_millis(60)).await;
    let last = get(&two, "Connection: close\r\n");
    for piece in last.chunks(4_000) {
        stream.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    let reply = Reply::parse(&read_all(&mut stream).await);
    assert_eq!((reply.status, reply.body.len()), (200, 43));
    assert_eq!(tracker.events().len(), 4);
}

#[tokio::test]
async fn the_few_pages_say_what_this_host_is() {
    let site = Site {
        operator: Some("Example & Sons".into()),
        privacy_url: Some("https://www.example.org/privacy".into()),
        base_path: "/m".into(),
        ..Site::default()
    };
    let tracker = Tracker::start(Settings { site, ..Settings::default() }).await;
    for path in ["/", "/m", "/m/"] {
        let reply = tracker.get(path).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert!(reply.html().contains("Example &amp; Sons"));
        assert!(reply.html().contains("<a href=\"https://www.example.org/privacy\""));
        for name in ["content-security-policy", "referrer-policy", "x-content-type-options"] {
            assert!(reply.header(name).is_some(), "{name}");
        }
    }
    let robots = tracker.get("/robots.txt").await;
    assert_eq!((robots.status, robots.html()), (200, "User-agent: *\nDisallow: /\n"));
    for path in ["/favicon.ico", "/c", "/wp-login.php", "/m/c"] {
        assert_eq!(tracker.get(path).await.status, 404, "{path}");
    }
    assert_eq!(tracker.events(), []);
}

#[tokio::test]
async fn campaign_parameters_are_added_where_they_are_wanted() {
    let mut settings = Settings::default();
    settings.site.utm =
        vec![("utm_source".into(), "mail".into()), ("utm_campaign".into(), "{campaign}".into())];
    settings.site.utm_hosts = vec!["shop.example".into()];
    let tracker = Tracker::start(settings).await;
    for (target, location) in [
        (
            "https://www.shop.example/?b=2&a=1#f",
            "https://www.shop.example/?b=2&a=1&utm_source=mail&utm_campaign=spring#f",
        ),
        ("https://shop.example/?utm_source=own", "https://shop.example/?utm_source=own&utm_campaign=spring"),
        ("https://other.example/?b=2", "https://other.example/?b=2"),
    ] {
        assert_eq!(tracker.get(&tracker.link(target)).await.header("location"), Some(location));
    }
}

#[tokio::test]
async fn the_client_behind_a_trusted_proxy_is_judged() {
    let scanner = format!("{BROWSER}X-Forwarded-For: 198.51.100.1, 40.92.0.1\r\n");
    let rule = |settings: Settings| {
        let scanner = scanner.clone();
        async move {
            let tracker = Tracker::start(settings).await;
            let link = tracker.link("https://shop.example/");
            assert_eq!(tracker.ask("GET", &link, &scanner).await.status, 302);
            tracker.take_event().data.machine_rule
        }
    };
    assert_eq!(rule(Settings::default()).await.as_deref(), Some("exchange-online-protection"));
    assert_eq!(rule(Settings { trusted_proxies: vec![], ..Settings::default() }).await, None);
}
