//! Several tracking hosts in one tracker: each with its own settings, and links that work at the others only if they may.

use super::*;
use crate::tracker::Site;

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
