//! News of deliveries for whoever runs in the same process as the tap.
//!
//! - Layer: edge
//! - Takes: a publisher.
//! - Gives: a publisher that does the same, and tells of each event `delivered` once it is on disk.
//! - On failure: a listener that does not keep up misses news, which is counted; publishing never waits for it.
//! - Limits: 16,384 news under way.
//! - See: `docs/bots.md`.

use tokio::sync::mpsc;

use super::Publisher;
use super::telling;
use crate::event::{Event, Kind};
use crate::identity::{MessageId, Pseudonym, Timestamp};

/// The next server took a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: MessageId,
    /// Whose copy.
    pub recipient: Option<Pseudonym>,
    /// When, by the log.
    pub time: Timestamp,
}

/// What the listener reads.
pub type News = mpsc::Receiver<Delivery>;

/// The publisher, and the news of what it publishes.
#[must_use]
pub fn telling(inner: Publisher) -> (Publisher, News) {
    let (teller, news) = telling::channel("delivered");
    let delivered = |event: &Event| {
        let (message, recipient, time) = (event.message, event.data.recipient, event.time);
        (event.kind == Kind::Delivered).then_some(Delivery { message, recipient, time })
    };
    (telling::telling(inner, delivered, teller), news)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::queue::telling::NEWS;
    use crate::queue::testing::event;
    use crate::queue::{Publish, PublishError};

    #[derive(Debug, Default)]
    struct Disk(AtomicBool);

    impl Publish for Disk {
        fn publish(
            &self,
            _: Vec<Event>,
        ) -> Pin<Box<dyn Future<Output = Result<(), PublishError>> + Send + '_>> {
            let full = self.0.load(Ordering::Relaxed);
            Box::pin(async move { if full { Err(PublishError::Full) } else { Ok(()) } })
        }
    }

    #[tokio::test]
    async fn deliveries_are_told_once_they_are_on_disk_and_nothing_else_is() {
        let disk = Arc::new(Disk::default());
        let (publisher, mut news) = telling(Arc::clone(&disk) as Publisher);
        let events: Vec<Event> = (0..16).map(event).collect();
        publisher.publish(events.clone()).await.unwrap();
        let mut told = Vec::new();
        while let Ok(delivery) = news.try_recv() {
            told.push(delivery.time);
        }
        let expected = events.iter().filter(|event| event.kind == Kind::Delivered).map(|event| event.time);
        assert_eq!(told, expected.collect::<Vec<_>>());
        assert_eq!(told.len(), 2);
        disk.0.store(true, Ordering::Relaxed);
        assert!(publisher.publish(events.clone()).await.is_err());
        assert!(news.try_recv().is_err(), "what is not on disk did not happen yet");
        disk.0.store(false, Ordering::Relaxed);
        for _ in 0..NEWS {
            publisher.publish(events.clone()).await.unwrap();
        }
        drop(news);
        publisher.publish(events).await.unwrap();
    }
}
