//! Rewriting and signing: mailtap's whole decision on a message.
//!
//! - `newsletter-64k-200-links`: against `lol_html` doing the same work on the HTML alone; compare the two of one run
//! - `few-links`: messages of 1 KB to 10 MB with one link a 64 KB; what is looked at must cost as little as can be
//! - `hostile`: input that would hurt if anything were worse than linear; the throughput must not fall with the size, up to 50 MB
//!
//! `cargo bench --bench rewrite [-- GROUP]`
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lol_html::{RewriteStrSettings, element, rewrite_str};
use mailtap::consent::{Consent, Fixed};
use mailtap::filter::decide::{Decision, Envelope, Means, Policy, decide};
use mailtap::filter::hosts::TrackingHost;
use mailtap::identity::{MessageId, PseudonymKey, Timestamp};
use mailtap::keys::ring::Keyring;
use mailtap::keys::token::{Click, Open, Token, sign};
use mailtap::rewrite::Plan;

const LINKS: usize = 200;
const BYTES: usize = 64 * 1024;

fn html() -> String {
    let filler = "<td style=\"padding:4px;color:#222\">Lorem ipsum dolor sit amet, consectetur adipiscing elit.</td>\r\n";
    let mut html = String::from("<html><head><title>News</title></head><body><table>\r\n");
    for number in 0..LINKS {
        html.push_str(&format!(
            "<tr><td><a class=\"b\" href=\"https://www.example.org/shop/item?id={number}&amp;src=mail\">Item</a></td>\r\n"
        ));
        while html.len() < BYTES * (number + 1) / LINKS {
            html.push_str(filler);
        }
    }
    html.push_str("</table></body></html>\r\n");
    html
}

fn ring() -> Keyring {
    Keyring::new([7; 32], Timestamp::from_secs(1))
}

fn html_message(html: &str) -> String {
    format!(
        "From: a@example.org\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}"
    )
}

/// All that a decision draws on.
struct Site {
    policy: Policy,
    ring: Keyring,
    pseudonyms: PseudonymKey,
    consents: Fixed,
    recipients: [String; 1],
}

impl Site {
    fn new() -> Self {
        let plan = Plan {
            own_prefixes: vec!["https://t.example.org/c/".into(), "https://t.example.org/o/".into()],
            max_message_bytes: 128 << 20,
            text: true,
            // As the milter does.
            list_links: false,
            ..Plan::default()
        };
        Self {
            policy: Policy {
                plan,
                ..Policy::new(vec!["example.org".into()], TrackingHost::at("https://t.example.org/"))
            },
            ring: ring(),
            pseudonyms: PseudonymKey::new(&[9; 32]),
            consents: Fixed { clicks: Consent::Granted, opens: Consent::Granted },
            recipients: ["ann@example.net".to_owned()],
        }
    }

    fn means(&self) -> Means<'_> {
        Means {
            policy: &self.policy,
            ring: &self.ring,
            pseudonyms: &self.pseudonyms,
            consents: &self.consents,
            now: Timestamp::from_secs(1_795_000_000),
            random: 1,
        }
    }

    fn decide(&self, message: &str) -> Decision {
        let envelope = Envelope { sender: "news@example.org", recipients: &self.recipients };
        decide(message.as_bytes(), envelope, &self.means())
    }

    /// The links that were rewritten, and the message as it goes out.
    fn rewrite(&self, message: &str) -> (usize, Vec<u8>) {
        match self.decide(message) {
            Decision::Track(tracked) => (tracked.report.tracked.into(), tracked.apply(message.as_bytes())),
            Decision::Pass(..) => panic!("not tracked"),
        }
    }
}

/// Frees a large block, after which glibc keeps freed memory up to that size: as in a milter that has had a larger message. Otherwise
/// whoever frees a little more than 128 KiB for each message measures page faults.
fn warm_up_allocator() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(4 << 20)));
}

fn newsletter(criterion: &mut Criterion) {
    warm_up_allocator();
    let html = html();
    let message = html_message(&html);
    let site = Site::new();
    assert_eq!(site.rewrite(&message).0, LINKS);
    let (means, ring, pseudonyms) = (site.means(), &site.ring, &site.pseudonyms);
    let mut group = criterion.benchmark_group("newsletter-64k-200-links");
    group.throughput(Throughput::Bytes(html.len() as u64));
    group.bench_function("mailtap", |bencher| bencher.iter(|| site.rewrite(&message)));
    group.bench_function("lol_html-hmac", |bencher| {
        let key = ring.by_id(1).unwrap();
        let id = MessageId::new(means.now, 1);
        let recipient = Some(pseudonyms.pseudonym(&site.recipients[0]));
        bencher.iter(|| {
            let mut link = 0;
            let handler = element!("a[href], area[href]", |element| {
                link += 1;
                let target = element.get_attribute("href").unwrap().replace("&amp;", "&");
                let click = Token::Click(Click { message: id, recipient, link, campaign: None, target });
                element.set_attribute("href", &format!("https://t.example.org/c/{}", sign(&click, key)))?;
                Ok(())
            });
            let pixel = element!("body", |element| {
                let open = Token::Open(Open { message: id, recipient, campaign: None });
                let pixel = format!("<img src=\"https://t.example.org/o/{}\">", sign(&open, key));
                element.append(&pixel, lol_html::html_content::ContentType::Html);
                Ok(())
            });
            let settings = RewriteStrSettings::new()
                .append_element_content_handler(handler)
                .append_element_content_handler(pixel);
            rewrite_str(&html, settings).unwrap()
        });
    });
    group.finish();
}

/// Text of so many bytes with a link in every 64 KB.
fn few_links(bytes: usize) -> String {
    let paragraph = "<p>Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt.</p>\r\n";
    let mut html = String::with_capacity(bytes + 200);
    while html.len() < bytes {
        html.push_str("<a href=\"https://www.example.org/shop\">x</a>\r\n");
        let end = bytes.min(html.len() + 64 * 1024);
        while html.len() < end {
            html.push_str(paragraph);
        }
    }
    html
}

fn sizes(criterion: &mut Criterion) {
    let site = Site::new();
    let mut group = criterion.benchmark_group("few-links");
    group.sample_size(20);
    for kilobytes in [1, 16, 64, 256, 1_024, 10_240] {
        let message = html_message(&few_links(kilobytes * 1_024));
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{kilobytes}-KiB")), |bencher| {
            bencher.iter(|| site.rewrite(&message));
        });
    }
    group.finish();
}

/// Repeats a piece, one line each, up to so many bytes.
fn repeated(piece: &str, bytes: usize) -> String {
    format!("{piece}\r\n").repeat(bytes / (piece.len() + 2))
}

/// A way to make a hostile message of so many bytes.
type Hostile = (&'static str, fn(usize) -> String);

/// A message of one part with these headers.
fn part(headers: &str, body: &str) -> String {
    format!("From: a@example.org\r\nMIME-Version: 1.0\r\n{headers}\r\n\r\n{body}")
}

fn base64(headers: &str, body: &str) -> String {
    let encoded = data_encoding::BASE64_MIME.encode(body.as_bytes());
    part(&format!("{headers}\r\nContent-Transfer-Encoding: base64"), &encoded)
}

fn quoted(body: &str) -> String {
    part("Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable", body)
}

/// Containers within containers, as deep as is allowed, and lines that look like delimiters in the innermost.
fn deep(bytes: usize) -> String {
    const LEVELS: usize = 19;
    let mut message = String::from("From: a@example.org\r\nMIME-Version: 1.0\r\n");
    for level in 0..LEVELS {
        message.push_str(&format!("Content-Type: multipart/mixed; boundary=b{level}\r\n\r\n--b{level}\r\n"));
    }
    message.push_str("Content-Type: text/html\r\n\r\n");
    message.push_str(&repeated("--b", bytes));
    for level in (0..LEVELS).rev() {
        message.push_str(&format!("\r\n--b{level}--\r\n"));
    }
    message
}

const HOSTILE: &[Hostile] = &[
    ("quoted-printable", |bytes| {
        quoted(&repeated("<a href=3D\"https://e.org/=\r\na=3Db\">=C3=A4</a>", bytes))
    }),
    ("soft-breaks", |bytes| quoted(&repeated("=", bytes))),
    ("base64", |bytes| {
        base64("Content-Type: text/html", &repeated("<a href=\"https://e.org/a\">x</a>", bytes / 4 * 3))
    }),
    ("text-one-word", |bytes| base64("Content-Type: text/plain", &"https://e.org/a,".repeat(bytes / 64 * 3))),
    ("text-brackets", |bytes| {
        base64("Content-Type: text/plain", &format!("https://e.org/{}", ")".repeat(bytes / 4 * 3)))
    }),
    ("text-marks", |bytes| part("Content-Type: text/plain", &repeated("https://e.org/a[[data-msys-", bytes))),
    ("deep-mime", deep),
    ("svg", |bytes| html_message(&repeated("<svg><title>x</title><path>", bytes))),
    ("links", |bytes| html_message(&repeated("<a href=\"https://e.org/a\">x</a>", bytes))),
    ("attributes", |bytes| {
        html_message(&format!("<a {} href=\"https://e.org/\">x</a>", repeated("a=b", bytes)))
    }),
    ("nesting", |bytes| html_message(&repeated("<div>", bytes))),
    ("open-quotes", |bytes| html_message(&repeated("<a href=\"https://e.org/", bytes))),
    ("open-comments", |bytes| html_message(&repeated("<!-- <!--[if mso]>", bytes))),
    ("open-tags", |bytes| html_message(&repeated("<", bytes))),
    ("references", |bytes| {
        html_message(&repeated("<a href=\"https://e.org/?&amp;&amp;&amp;&amp;&amp;&copy\">", bytes))
    }),
    ("raw-text", |bytes| html_message(&repeated("<style></styl", bytes))),
];

fn hostile(criterion: &mut Criterion) {
    let site = Site::new();
    let mut group = criterion.benchmark_group("hostile");
    group.sample_size(10);
    for (name, make) in HOSTILE {
        for megabytes in [1, 4, 16, 50] {
            let message = make(megabytes << 20);
            group.throughput(Throughput::Bytes(message.len() as u64));
            group.bench_function(BenchmarkId::new(*name, format!("{megabytes}-MiB")), |bencher| {
                bencher.iter(|| site.decide(&message));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, newsletter, sizes, hostile);
criterion_main!(benches);
