//! A newsletter of 64 KB with 200 links, rewritten and signed: mailtap's whole decision on the message against `lol_html` doing
//! the same work on the HTML alone.
//!
//! `cargo bench --bench rewrite`; compare the two figures of one run.
#![allow(clippy::unwrap_used, missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lol_html::{RewriteStrSettings, element, rewrite_str};
use mailtap::consent::{Consent, Fixed};
use mailtap::filter::decide::{Decision, Envelope, Means, Policy, decide};
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

fn by_mailtap(criterion: &mut Criterion) {
    let html = html();
    let message = format!(
        "From: a@example.org\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{html}"
    );
    let policy = Policy {
        sender_domains: vec!["example.org".into()],
        share: true,
        campaign_headers: Vec::new(),
        campaign_rules: Vec::new(),
        tracking_url: "https://t.example.org/".into(),
        max_url_bytes: 2_000,
        plan: Plan { own_prefixes: vec!["https://t.example.org/".into()], ..Plan::default() },
    };
    let ring = ring();
    let pseudonyms = PseudonymKey::new(&[9; 32]);
    let consents = Fixed { clicks: Consent::Granted, opens: Consent::Granted };
    let recipients = ["ann@example.net".to_owned()];
    let means = Means {
        policy: &policy,
        ring: &ring,
        pseudonyms: &pseudonyms,
        consents: &consents,
        now: Timestamp::from_secs(1_795_000_000),
        random: 1,
    };
    let envelope = Envelope { sender: "news@example.org", recipients: &recipients };
    let mut group = criterion.benchmark_group("newsletter-64k-200-links");
    group.throughput(Throughput::Bytes(html.len() as u64));
    group.bench_function("mailtap", |bencher| {
        bencher.iter(|| match decide(message.as_bytes(), envelope, &means) {
            Decision::Track(tracked) => {
                assert_eq!(usize::from(tracked.report.tracked), LINKS);
                tracked.apply(message.as_bytes())
            }
            Decision::Pass(..) => panic!("not tracked"),
        });
    });
    group.bench_function("lol_html-hmac", |bencher| {
        let key = ring.by_id(1).unwrap();
        let id = MessageId::new(means.now, 1);
        let recipient = Some(pseudonyms.pseudonym("ann@example.net"));
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

criterion_group!(benches, by_mailtap);
criterion_main!(benches);
