//! How often a message makes the allocator work: for newsletters of several sizes and for hostile ones, allocations, bytes and the
//! peak for the whole decision and the message as it goes out.
//!
//! `cargo bench --bench allocations`; the figures do not depend on the machine.
#![allow(clippy::unwrap_used, missing_docs)]

use mailtap::consent::{Consent, Fixed};
use mailtap::filter::decide::{Decision, Envelope, Means, Policy, decide};
use mailtap::filter::hosts::TrackingHost;
use mailtap::identity::{PseudonymKey, Timestamp};
use mailtap::keys::ring::Keyring;
use mailtap::rewrite::Plan;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

fn message(links: usize, bytes: usize) -> String {
    let mut text = String::from(
        "From: a@example.org\r\nMIME-Version: 1.0\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<html><body>\r\n",
    );
    for number in 0..links {
        text.push_str(&format!(
            "<a href=\"https://www.example.org/item?id={number}&amp;src=mail\">Item</a>\r\n"
        ));
        while text.len() < bytes * (number + 1) / links {
            text.push_str("<p>Lorem ipsum dolor sit amet, consectetur adipiscing elit.</p>\r\n");
        }
    }
    text + "</body></html>\r\n"
}

fn main() {
    let policy = Policy {
        plan: Plan {
            own_prefixes: vec!["https://t.example.org/c/".into()],
            max_message_bytes: 128 << 20,
            // As the milter does.
            list_links: false,
            ..Plan::default()
        },
        ..Policy::new(vec!["example.org".into()], TrackingHost::at("https://t.example.org/"))
    };
    let means = Means {
        policy: &policy,
        ring: &Keyring::new([7; 32], Timestamp::from_secs(1)),
        pseudonyms: &PseudonymKey::new(&[9; 32]),
        consents: &Fixed { clicks: Consent::Granted, opens: Consent::Granted },
        now: Timestamp::from_secs(1_795_000_000),
        random: 1,
    };
    let recipients = ["ann@example.net".to_owned()];
    println!(
        "{:>10} {:>6} {:>12} {:>14} {:>12}",
        "bytes", "links", "allocations", "bytes in all", "peak bytes"
    );
    for (links, kilobytes) in
        [(1, 4), (20, 4), (20, 64), (200, 64), (200, 1_024), (100_000, 8_192), (200, 40_960)]
    {
        let message = message(links, kilobytes * 1_024);
        let profiler = dhat::Profiler::builder().testing().build();
        let envelope = Envelope { sender: "news@example.org", recipients: &recipients };
        let Decision::Track(tracked) = decide(message.as_bytes(), envelope, &means) else {
            panic!("not tracked")
        };
        let output = tracked.apply(message.as_bytes());
        let used = dhat::HeapStats::get();
        assert_eq!(usize::from(tracked.report.tracked), links.min(1_000));
        // The message as it goes out, and what is remembered of at most 20,000 links.
        assert!(used.max_bytes < 3 * message.len() + (16 << 20), "{} bytes at once", used.max_bytes);
        let bytes = message.len();
        println!(
            "{bytes:>10} {links:>6} {:>12} {:>14} {:>12}",
            used.total_blocks, used.total_bytes, used.max_bytes
        );
        drop((output, profiler));
    }
}
