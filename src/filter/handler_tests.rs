//! Tests of the handler with a spool that does not answer, or refuses.
//!
//! - Layer: role
//! - Takes: small messages, publishers with faults.
//! - Gives: proof that mail goes on, and how soon.
//! - On failure: the test fails.
#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};

use mailtap_milter::session::Path;

use super::*;
use crate::consent::{Consent, Fixed};
use crate::filter::hosts::TrackingHost;
use crate::identity::PseudonymKey;
use crate::keys::Keys;
use crate::queue::{Publish, PublishError};
use crate::service::Health;

const HTML: &[u8] = b"<html><body><a href=\"https://www.example.org/?a=1&amp;b=2\">x</a></body></html>\r\n";

/// Answers, refuses, or never answers.
#[derive(Debug, Default)]
struct Faulty(AtomicU8);

const ANSWERS: u8 = 0;
const REFUSES: u8 = 1;
const HANGS: u8 = 2;

impl Publish for Faulty {
    fn publish(&self, _: Vec<Event>) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        Box::pin(async {
            match self.0.load(Ordering::Relaxed) {
                ANSWERS => Ok(()),
                REFUSES => Err(PublishError::Full),
                _ => std::future::pending().await,
            }
        })
    }
}

struct Site {
    filter: Filter,
    publisher: Arc<Faulty>,
    health: Health,
    _directory: tempfile::TempDir,
}

fn site() -> Site {
    let directory = tempfile::tempdir().unwrap();
    let ring = directory.path().join("keyring.json");
    crate::keys::create_ring(&ring).unwrap();
    let publisher = Arc::new(Faulty::default());
    let deps = Deps {
        keys: Keys::open(&ring).unwrap(),
        pseudonyms: PseudonymKey::new(&[9; 32]),
        consents: Arc::new(Fixed { clicks: Consent::Granted, opens: Consent::Granted }),
        publisher: Arc::clone(&publisher) as _,
        copies: None,
        served: None,
        host: "test".into(),
    };
    let policy = Policy::new(vec!["example.org".into()], TrackingHost::at("https://t.example.org/"));
    let health = Health::default();
    let component = health.component("milter");
    component.ready();
    let filter = Filter::new(policy, Duration::from_secs(5), None, Agreement::proven(), component, deps);
    Site { filter, publisher, health, _directory: directory }
}

fn message(bytes: usize) -> Message {
    let mut body = HTML.to_vec();
    while body.len() < bytes {
        body.extend_from_slice(b"<p>and so on</p>\r\n");
    }
    Message::new(Path::new("<news@example.org>"))
        .with_recipient(Path::new("<ann@example.net>"))
        .with_header("MIME-Version", b" 1.0")
        .with_header("Content-Type", b" text/html; charset=utf-8")
        .with_body(body)
}

impl Site {
    async fn is_edited(&self, bytes: usize) -> bool {
        let response = self.filter.message(message(bytes), &Fallback::default()).await;
        format!("{:?}", response.answer) != format!("{:?}", Answer::unmodified())
    }
}

#[tokio::test]
async fn small_and_large_messages_are_edited() {
    let site = site();
    assert!(site.is_edited(0).await);
    assert!(site.is_edited(2 * LARGE_BYTES).await);
}

#[tokio::test]
async fn a_refusal_lets_the_message_through() {
    let site = site();
    site.publisher.0.store(REFUSES, Ordering::Relaxed);
    assert!(!site.is_edited(0).await);
    site.publisher.0.store(ANSWERS, Ordering::Relaxed);
    assert!(site.is_edited(0).await);
}

#[tokio::test(start_paused = true)]
async fn a_spool_that_hangs_delays_three_messages_and_no_more() {
    let site = site();
    site.publisher.0.store(HANGS, Ordering::Relaxed);
    let start = tokio::time::Instant::now();
    for _ in 0..100 {
        assert!(!site.is_edited(0).await);
    }
    assert_eq!(start.elapsed().as_secs(), 15);
    assert_eq!(site.health.troubles().len(), 1);
}
