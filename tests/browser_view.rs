//! What a recipient sees: newsletters in a real browser, before and after, are the same picture.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use data_encoding::{BASE64, BASE64_MIME_PERMISSIVE};
use harness::{Options, SENDER, Site, http, repository, run_with_input, said, wait_for};

const WIDTH: usize = 700;
const HEIGHT: usize = 1_300;
const COLUMNS: usize = 4;

/// The newsletters of the test data, by name.
fn newsletters() -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(repository().join("tests/data/newsletters"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "html"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

/// Rewrites an HTML as the only part of a message; gives it back, and how many links lead to the tracker.
fn rewritten(site: &Site, html: &[u8]) -> (Vec<u8>, usize) {
    let mut message = format!(
        "From: {SENDER}\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n"
    );
    for line in BASE64.encode(html).as_bytes().chunks(76) {
        message.push_str(std::str::from_utf8(line).unwrap());
        message.push_str("\r\n");
    }
    let mut command = site.command();
    command.args(["rewrite", "--sender", SENDER, "--recipient", "anna@example.net"]);
    let output = run_with_input(&mut command, message.as_bytes());
    assert!(output.status.success(), "{}", said(&output));
    let message = String::from_utf8(output.stdout).unwrap();
    let (_, body) = message.split_once("\r\n\r\n").unwrap();
    let html = BASE64_MIME_PERMISSIVE.decode(body.as_bytes()).unwrap();
    let links = String::from_utf8_lossy(&html).matches(&format!("{}/c/", site.tracking_url())).count();
    assert!(String::from_utf8_lossy(&html).contains(&format!("{}/o/", site.tracking_url())), "no pixel");
    (html, links)
}

/// A page that shows many.
fn gallery(directory: &Path, pages: &[(String, Vec<u8>)]) -> PathBuf {
    fs::create_dir_all(directory).unwrap();
    let mut page = String::from("<!doctype html><body style=\"margin:0;font-size:0\">");
    for (name, html) in pages {
        fs::write(directory.join(name).with_extension("html"), html).unwrap();
        page.push_str(&format!(
            "<iframe src=\"{name}.html\" style=\"border:0;width:{WIDTH}px;height:{HEIGHT}px\" scrolling=no></iframe>"
        ));
    }
    let path = directory.join("gallery.htm");
    fs::write(&path, page).unwrap();
    path
}

fn screenshot(directory: &Path, page: &Path, count: usize) -> Vec<u8> {
    let picture = directory.join("picture.png");
    let output = Command::new("chromium")
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ])
        .args(["--disable-crash-reporter", "--no-first-run", "--disable-background-networking"])
        // Pictures of others are not there, on both sides.
        .args(["--proxy-server=direct://", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
        .arg(format!("--user-data-dir={}", directory.join("profile").display()))
        .arg(format!("--window-size={},{}", WIDTH * COLUMNS, HEIGHT * count.div_ceil(COLUMNS)))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null())
        .output()
        .expect("chromium: tests/lib/install chromium");
    assert!(output.status.success(), "{}", said(&output));
    fs::read(&picture).unwrap_or_else(|error| panic!("no picture: {error}\n{}", said(&output)))
}

fn opens(site: &Site) -> usize {
    let metrics = http(site.admin, "GET", "/metrics", &[]).map(|answer| answer.body).unwrap_or_default();
    let metrics = String::from_utf8_lossy(&metrics).into_owned();
    metrics
        .lines()
        .filter(|line| line.starts_with("mailtap_tracker_opens_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
        .sum()
}

#[test]
fn newsletters_look_the_same_before_and_after() {
    let site = Site::start(&Options::default());
    let before = newsletters();
    assert!(before.len() >= 10, "only {} newsletters", before.len());
    let mut links = 0;
    let after: Vec<_> = before
        .iter()
        .map(|(name, html)| {
            let (html, more) = rewritten(&site, html);
            links += more;
            (name.clone(), html)
        })
        .collect();
    assert!(links > before.len(), "only {links} links were rewritten");
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("browser-view");
    let _ = fs::remove_dir_all(&kept);
    let shoot = |name: &str, pages: &[(String, Vec<u8>)]| {
        let directory = kept.join(name);
        let page = gallery(&directory, pages);
        screenshot(&directory, &page, pages.len())
    };
    let (first, second) = (shoot("before", &before), shoot("after", &after));
    assert!(first == second, "see before/ and after/ in {}", kept.display());
    wait_for("the browser's opens", Duration::from_secs(10), || opens(&site) >= before.len());
    let _ = fs::remove_dir_all(&kept);
}
