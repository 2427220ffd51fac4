//! Links followed in a real browser, over TLS and HTTP/2: it arrives, and the visit joins the mail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Options, Site, http, said, wait_for};
use mailtap::identity::{MessageId, Pseudonym};
use mailtap::keys::Keys;
use mailtap::keys::token::{Click, Token, sign};
use mailtap::service::clock;

/// The website: a page that has set the visitor's `_ga` and then follows a link, and the page where it arrives.
fn website(link: String) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let link = link.replace("{port}", &port.to_string());
            std::thread::spawn(move || {
                let mut line = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let _ = reader.read_line(&mut line);
                let page = if line.starts_with("GET /mail ") {
                    format!(
                        "<script>document.cookie = '_ga=GA1.1.111.222; domain=shop.example; path=/';\
                         location = '{link}';</script>"
                    )
                } else {
                    format!("<p id=arrived>{}</p>", line.split(' ').nth(1).unwrap_or_default())
                };
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                    page.len()
                );
            });
        }
    });
    port
}

/// The page that the browser ends at, as text; its log of the network goes to `net_log`.
fn browse(directory: &Path, tracker: u16, website: u16, net_log: &Path, more: &[&str]) -> String {
    let output = Command::new("chromium")
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--disable-crash-reporter", "--disable-background-networking", "--proxy-server=direct://"])
        .args(["--ignore-certificate-errors", "--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!(
            "--host-resolver-rules=MAP t.shop.example 127.0.0.1:{tracker}, MAP www.shop.example 127.0.0.1:{website}, MAP * ~NOTFOUND"
        ))
        .arg(format!("--user-data-dir={}", directory.join("profile").display()))
        .arg(format!("--log-net-log={}", net_log.display()))
        .args(more)
        .arg("http://www.shop.example/mail")
        .stdin(Stdio::null())
        .output()
        .expect("chromium: tests/lib/install chromium");
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether the browser spoke HTTP/2 with a host.
fn spoke_http_2(net_log: &Path, host: &str) -> bool {
    let log: serde_json::Value = serde_json::from_slice(&fs::read(net_log).unwrap()).unwrap();
    let session = &log["constants"]["logEventTypes"]["HTTP2_SESSION"];
    assert!(session.is_number(), "the browser's log is of another kind");
    log["events"].as_array().unwrap().iter().any(|event| {
        event["type"] == *session
            && event["params"]["host"].as_str().is_some_and(|name| name.starts_with(host))
    })
}

/// A site with TLS whose relay sends to a collector.
fn site(directory: &Path) -> Site {
    let pair = rcgen::generate_simple_self_signed(vec!["t.shop.example".to_owned()]).unwrap();
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    fs::write(&certificate, pair.cert.pem()).unwrap();
    fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let tls = format!(
        "[tracker]\ntls_certificate = \"{}\"\ntls_key = \"{}\"\n",
        certificate.display(),
        key.display()
    );
    Site::start(&Options {
        without_postfix: true,
        changes: vec![("[tracker]\n", tls), ("[tap]\n#enabled = true", "[tap]\nenabled = false".to_owned())],
        ..Options::default()
    })
}

/// The URL of a link in a mail of an hour ago.
fn link(site: &Site, recipient: Option<Pseudonym>) -> String {
    let keys = Keys::open(&site.dir.join("mailtap/keyring.json")).unwrap();
    let now = clock::now();
    let token = Token::Click(Click {
        message: MessageId::new(now.minus(Duration::from_secs(3_600)), 7),
        recipient,
        link: 1,
        campaign: None,
        target: "http://www.shop.example/arrived?a=1&b=%C3%A9#part".to_owned(),
    });
    format!("https://t.shop.example/c/{}", sign(&token, keys.current().signing(now).unwrap()))
}

#[test]
fn a_browser_follows_a_link_over_http_2_and_brings_its_visit_along() {
    let temporary = tempfile::tempdir().unwrap();
    let site = site(temporary.path());
    let website = website(link(&site, None));
    let net_log = temporary.path().join("net.json");
    let page = browse(temporary.path(), site.tracker, website, &net_log, &[]);
    assert!(page.contains("<p id=\"arrived\">/arrived?a=1&amp;b=%C3%A9</p>"), "{page}");
    assert!(spoke_http_2(&net_log, "t.shop.example"), "not by HTTP/2");
    wait_for("the click", Duration::from_secs(60), || site.counts().get("email_click") == Some(&1));
    let collected = fs::read_to_string(site.dir.join("collected.jsonl")).unwrap();
    assert!(collected.contains("\"client_id\":\"111.222\""), "the visitor of _ga: {collected}");
}

/// Chromium sends the signal when told so by a switch.
#[test]
fn a_browser_with_global_privacy_control_arrives_and_nothing_personal_is_recorded() {
    let temporary = tempfile::tempdir().unwrap();
    let site = site(temporary.path());
    let recipient = Pseudonym::from([0x11; 12]);
    let website = website(link(&site, Some(recipient)));
    let net_log = temporary.path().join("net.json");
    let switch = ["--enable-features=GlobalPrivacyControlForce"];
    let page = browse(temporary.path(), site.tracker, website, &net_log, &switch);
    assert!(page.contains("<p id=\"arrived\">/arrived?a=1&amp;b=%C3%A9</p>"), "{page}");
    let network = fs::read_to_string(&net_log).unwrap().to_lowercase();
    assert!(network.contains("sec-gpc: 1"), "this Chromium does not know the switch, or it has another name");
    let metrics = http(site.admin, "GET", "/metrics", &[]).unwrap().body;
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("mailtap_tracker_anonymous_total{reason=\"gpc\"} 1\n"), "{metrics}");
    wait_for("the click", Duration::from_secs(60), || site.counts().get("email_click") == Some(&1));
    let collected = fs::read_to_string(site.dir.join("collected.jsonl")).unwrap();
    assert!(!collected.contains("111.222") && !collected.contains(&recipient.to_string()), "{collected}");
}
