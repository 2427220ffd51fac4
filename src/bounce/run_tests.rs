use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use super::*;
use crate::delivery::Classifier;
use crate::event::Event;
use crate::identity::{MessageId, PseudonymKey};
use crate::queue::{Publish, PublishError};

#[derive(Debug, Default)]
struct Spool {
    full: bool,
    events: Mutex<Vec<Event>>,
}

impl Publish for Spool {
    fn publish(
        &self,
        events: Vec<Event>,
    ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
        Box::pin(async move {
            if self.full {
                return Err(PublishError::Full);
            }
            self.events.lock().unwrap().extend(events);
            Ok(())
        })
    }
}

#[tokio::test]
async fn the_exit_tells_postfix_whether_to_keep_the_message() {
    let reader = Reader {
        host: "relay1".into(),
        pseudonyms: PseudonymKey::new(&[7; 32]),
        verify_ref: Arc::new(|text| text.starts_with("test-ref-").then(|| MessageId::from([1; 10]))),
        classifier: Classifier::built_in(),
        providers: crate::delivery::Providers::default(),
        replies: crate::delivery::Replies::Off,
        own_hosts: Arc::new(Vec::new),
    };
    let report = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/dsn/failed-multi-1.eml"));
    let now = Timestamp::from_secs(1_800_000_000);
    let spool = Arc::new(Spool::default());
    let publisher: Publisher = spool.clone();
    let exit = run_once(report, &reader, &publisher, now).await;
    assert_eq!((exit, exit.code()), (Exit::Stored(2), 0));
    assert_eq!(spool.events.lock().unwrap().len(), 2);
    let exit = run_once(b"Subject: x\n\nhello", &reader, &publisher, now).await;
    assert_eq!((exit, exit.code()), (Exit::NotOurs("no report"), 0));
    let full: Publisher = Arc::new(Spool { full: true, ..Spool::default() });
    let exit = run_once(report, &reader, &full, now).await;
    assert_eq!((exit, exit.code()), (Exit::TryAgain, 75));
}
