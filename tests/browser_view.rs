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

/// How the HTML goes within its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Base64,
    QuotedPrintable,
    /// As it is; what has lines too long for mail goes as quoted-printable.
    EightBit,
}

/// RFC 2045, 6.7; line ends stay line ends.
fn quoted_printable(html: &[u8]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for line in html.split(|byte| *byte == b'\n') {
        let mut column = 0;
        for (at, byte) in line.iter().enumerate() {
            let last = at + 1 == line.len();
            let plain = matches!(byte, b'!'..=b'<' | b'>'..=b'~') || (*byte == b' ' && !last);
            let piece = if plain { vec![*byte] } else { format!("={byte:02X}").into_bytes() };
            if column + piece.len() > 75 {
                encoded.extend_from_slice(b"=\r\n");
                column = 0;
            }
            column += piece.len();
            encoded.extend(piece);
        }
        encoded.extend_from_slice(b"\r\n");
    }
    encoded
}

fn plain_of(quoted: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(quoted).replace("=\r\n", "");
    let mut pieces = text.split('=');
    let mut plain = pieces.next().unwrap().as_bytes().to_vec();
    for piece in pieces {
        plain.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        plain.extend_from_slice(&piece.as_bytes()[2..]);
    }
    plain
}

impl Encoding {
    fn of(self, html: &[u8]) -> Self {
        let long = html.split(|byte| *byte == b'\n').any(|line| line.len() > 990);
        if self == Self::EightBit && long { Self::QuotedPrintable } else { self }
    }

    fn encode(self, html: &[u8]) -> (&'static str, Vec<u8>) {
        match self {
            Self::Base64 => {
                let text = BASE64.encode(html);
                let lines = text.as_bytes().chunks(76);
                ("base64", lines.flat_map(|line| line.iter().chain(b"\r\n")).copied().collect())
            }
            Self::QuotedPrintable => ("quoted-printable", quoted_printable(html)),
            Self::EightBit => {
                let lines = html.split(|byte| *byte == b'\n');
                ("8bit", lines.flat_map(|line| line.iter().chain(b"\r\n")).copied().collect())
            }
        }
    }

    fn decode(self, body: &[u8]) -> Vec<u8> {
        match self {
            Self::Base64 => BASE64_MIME_PERMISSIVE.decode(body).unwrap(),
            Self::QuotedPrintable => plain_of(body),
            Self::EightBit => body.to_vec(),
        }
    }
}

/// Rewrites an HTML as the only part of a message; gives it back, and how many links lead to the tracker.
fn rewritten(site: &Site, html: &[u8], encoding: Encoding) -> (Vec<u8>, usize) {
    let encoding = encoding.of(html);
    let (name, body) = encoding.encode(html);
    let mut message = format!(
        "From: {SENDER}\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\
         Content-Transfer-Encoding: {name}\r\n\r\n"
    )
    .into_bytes();
    message.extend(body);
    let mut command = site.command();
    command.args(["rewrite", "--sender", SENDER, "--recipient", "anna@example.net"]);
    let output = run_with_input(&mut command, &message);
    assert!(output.status.success(), "{}", said(&output));
    let end = output.stdout.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let html = encoding.decode(&output.stdout[end + 4..]);
    let text = String::from_utf8_lossy(&html);
    let links = text.matches(&format!("{}/c/", site.tracking_url())).count();
    assert!(text.contains(&format!("{}/o/", site.tracking_url())), "no pixel");
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

/// Each newsletter goes through `mailtap rewrite` in each of these encodings; the pictures are those of the originals.
fn look_the_same(name: &str, site: &Site, encodings: &[Encoding]) {
    let before = newsletters();
    assert!(before.len() >= 10, "only {} newsletters", before.len());
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("browser-view").join(name);
    let _ = fs::remove_dir_all(&kept);
    let shoot = |name: &str, pages: &[(String, Vec<u8>)]| {
        let directory = kept.join(name);
        let page = gallery(&directory, pages);
        screenshot(&directory, &page, pages.len())
    };
    let first = shoot("before", &before);
    for (round, encoding) in encodings.iter().enumerate() {
        let mut links = 0;
        let after: Vec<_> = before
            .iter()
            .map(|(name, html)| {
                let (html, more) = rewritten(site, html, *encoding);
                links += more;
                (name.clone(), html)
            })
            .collect();
        assert!(links > before.len(), "only {links} links were rewritten in {encoding:?}");
        let second = shoot(&format!("{encoding:?}"), &after);
        assert!(first == second, "see before/ and {encoding:?}/ in {}", kept.display());
        wait_for("the browser's opens", Duration::from_secs(10), || {
            opens(site) >= before.len() * (round + 1)
        });
    }
    let _ = fs::remove_dir_all(&kept);
}

#[test]
fn newsletters_look_the_same_before_and_after() {
    let site = Site::start(&Options::default());
    look_the_same("end", &site, &[Encoding::Base64, Encoding::QuotedPrintable, Encoding::EightBit]);
}

#[test]
fn a_pixel_at_the_top_moves_nothing() {
    for place in ["top", "both"] {
        let changes = vec![("#pixel_at = \"end\"", format!("pixel_at = \"{place}\""))];
        let site = Site::start(&Options { changes, ..Options::default() });
        look_the_same(place, &site, &[Encoding::Base64]);
    }
}
