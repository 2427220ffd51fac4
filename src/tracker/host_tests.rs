//! Several tracking hosts in one tracker: each with its own settings, and links that work at the others only if they may.

use super::*;
use crate::tracker::Site;
use crate::tracker::language::Language;

fn two_hosts() -> Settings {
    let site = |name: &str, segment: &str| Site {
        names: vec![format!("{name}.example"), format!("alias.{name}.example")],
        key_site: Some(name.into()),
        click_paths: vec![segment.into()],
        sender_domain: Some(format!("mail.{name}.example")),
        utm: vec![("utm_source".into(), name.into())],
        operator: Some(format!("The {name} company")),
        ..Site::default()
    };
    Settings { site: site("one", "go"), hosts: vec![site("two", "to")], ..Settings::default() }
}

/// A link signed by the key with this id.
fn link(ring: &Keyring, id: u16) -> String {
    sign(&click("https://shop.example/", hour_ago()), ring.by_id(id).unwrap())
}

#[tokio::test]
async fn each_host_has_its_own_paths_parameters_pages_and_senders() {
    let tracker = Tracker::start(two_hosts()).await;
    let token = link(&tracker.ring, 1);
    for (host, segment, source) in [
        ("one.example", "go", "one"),
        ("ALIAS.two.example:443", "to", "two"),
        ("two.example.", "c", "two"),
        ("nobody.example", "go", "one"),
        ("127.0.0.1", "c", "one"),
    ] {
        let reply = tracker.ask_at(host, "GET", &format!("/{segment}/{token}"), BROWSER).await;
        assert_eq!(
            reply.header("location"),
            Some(format!("https://shop.example/?utm_source={source}").as_str()),
            "{host}"
        );
        assert_eq!(tracker.take_event().data.sender_domain, Some(format!("mail.{source}.example")), "{host}");
        let page = tracker.ask_at(host, "GET", "/", "").await;
        assert!(page.html().contains(&format!("The {source} company")), "{host}: {}", page.html());
    }
    assert_eq!(
        tracker.ask_at("two.example", "GET", &format!("/go/{token}"), "").await.status,
        404,
        "a path of the other"
    );
}

#[tokio::test]
async fn a_key_of_one_host_redirects_at_no_other() {
    let past = Timestamp::from_secs(1);
    let mut ring = Keyring::new([7; 32], past);
    let one = ring.rotate_for(Some("one"), [8; 32], past, past).unwrap();
    let two = ring.rotate_for(Some("two"), [9; 32], past, past).unwrap();
    let tracker = Tracker::with(two_hosts(), ring.clone()).await;
    for (host, key, works) in [
        ("one.example", 1, true),
        ("two.example", 1, true),
        ("one.example", one, true),
        ("two.example", two, true),
        ("one.example", two, false),
        ("two.example", one, false),
        ("nobody.example", one, true),
        ("nobody.example", two, false),
    ] {
        let reply = tracker.ask_at(host, "GET", &format!("/c/{}", link(&ring, key)), BROWSER).await;
        assert_eq!(
            (reply.status, reply.is_redirect()),
            if works { (302, true) } else { (404, false) },
            "{host} {key}"
        );
        let events = std::mem::take(&mut *tracker.spool.events.lock().unwrap());
        assert_eq!(events.len(), usize::from(works), "{host} {key}");
    }
}

#[tokio::test]
async fn pages_are_in_the_visitors_language_and_asked_for_again_only_when_they_changed() {
    let languages = vec![Language::En, Language::Pl];
    let site = Site { languages, operator: Some("Zoé <&> Co".into()), ..Site::default() };
    let tracker = Tracker::start(Settings { site, ..Settings::default() }).await;
    for (accept, language, word) in [
        ("", "en", "This host serves"),
        ("Accept-Language: pl-PL, en;q=0.5\r\n", "pl", "Ten serwer"),
        ("Accept-Language: de\r\n", "en", "This host serves"),
    ] {
        let page = tracker.ask("GET", "/", accept).await;
        assert_eq!(
            (page.header("content-language"), page.header("vary")),
            (Some(language), Some("accept-language"))
        );
        assert!(
            page.html().contains(word) && page.html().contains("Zoé &lt;&amp;&gt; Co"),
            "{}",
            page.html()
        );
        let missing = tracker.ask("GET", "/c/x", accept).await;
        assert_eq!(
            (missing.status, missing.header("content-language"), missing.header("etag")),
            (404, Some(language), None)
        );

        let etag = page.header("etag").unwrap();
        for (known, status) in
            [(etag, 304), (&format!("\"x\", W/{etag}"), 304), ("*", 304), ("\"other\"", 200)]
        {
            let reply = tracker.ask("GET", "/", &format!("{accept}If-None-Match: {known}\r\n")).await;
            assert_eq!((reply.status, reply.header("etag")), (status, Some(etag)), "{known}");
            assert_eq!(reply.body.is_empty(), status == 304);
        }
    }
    let robots = tracker.get("/robots.txt").await;
    let known = format!("If-None-Match: {}\r\n", robots.header("etag").unwrap());
    assert_eq!(tracker.ask("HEAD", "/robots.txt", &known).await.status, 304);
    // Links and pixels are asked for each time, whatever the client says it has.
    let any = "If-None-Match: *\r\nIf-Modified-Since: Wed, 25 Nov 2037 00:00:00 GMT\r\n";
    assert_eq!(tracker.ask("GET", &tracker.link("https://shop.example/"), any).await.status, 302);
    assert_eq!(tracker.ask("GET", &tracker.pixel(), any).await.status, 200);
    assert_eq!(tracker.events().len(), 2);
}

#[tokio::test]
async fn files_below_well_known_are_shown_from_memory_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("well-known");
    std::fs::create_dir_all(root.join("acme-challenge")).unwrap();
    std::fs::write(root.join("apple-app-site-association"), "{}").unwrap();
    std::fs::write(directory.path().join("secret.txt"), "secret").unwrap();
    let site = Site { well_known: Some(root.clone()), base_path: "/m".into(), ..Site::default() };
    let tracker = Tracker::start(Settings { site, ..Settings::default() }).await;
    let app = tracker.get("/.well-known/apple-app-site-association").await;
    assert_eq!((app.status, app.header("content-type"), app.html()), (200, Some("application/json"), "{}"));
    let known = format!("If-None-Match: {}\r\n", app.header("etag").unwrap());
    assert_eq!(tracker.ask("GET", "/.well-known/apple-app-site-association", &known).await.status, 304);

    // A challenge is there within a second or so.
    std::fs::write(root.join("acme-challenge/token"), "token.key").unwrap();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while tracker.get("/.well-known/acme-challenge/token").await.status != 200 {
        assert!(std::time::Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for path in [
        "/.well-known/",
        "/.well-known",
        "/.well-known/acme-challenge",
        "/.well-known/acme-challenge/",
        "/.well-known/../secret.txt",
        "/.well-known/..%2fsecret.txt",
        "/.well-known/%2e%2e/secret.txt",
        "/.well-known/..\\secret.txt",
        "/.well-known/acme-challenge/../../../secret.txt",
        "/.well-known//etc/passwd",
        "/.well-known/acme-challenge/token%00",
        "/.well-known/./acme-challenge/token",
        "/m/.well-known/acme-challenge/token",
        "/.WELL-KNOWN/acme-challenge/token",
    ] {
        let reply = tracker.get(path).await;
        assert!(reply.status == 404 && !reply.html().contains("secret"), "{path}: {reply:?}");
    }
    let missing = Settings {
        site: Site { well_known: Some(root.join("nowhere")), ..Site::default() },
        ..Settings::default()
    };
    let Err(error) = crate::tracker::check(&missing) else { panic!("no error") };
    assert!(error.to_string().contains("nowhere"), "{error}");
}
